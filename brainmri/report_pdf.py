"""Drawing a report: A4 pages with patient, picture and maps, the answer, the reader's words, and the model."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from brainmri import __version__
from brainmri.imaging import picture_reason
from brainmri.look import limit_texts, metrics_table
from brainmri.types import CLASS_NAMES, CLASS_TITLES, Explanation, MRISlice

if TYPE_CHECKING:
    from reportlab.pdfgen.canvas import Canvas

    from brainmri.model import ModelCard
    from brainmri.patients import Patient, Study, StudyRecord, TimelineEntry
    from brainmri.pdf_text import TextSetter
    from brainmri.storage import Record

DISCLAIMER = "Research software. Not a medical device; not a diagnosis. A qualified reader is responsible for the text."
_LOCK = threading.Lock()  # reportlab's fonts hold state

_MM = 72 / 25.4
_WIDTH, _HEIGHT = 210 * _MM, 297 * _MM  # A4
_MARGIN = 17 * _MM
_INNER = _WIDTH - 2 * _MARGIN
_FOOT = 20 * _MM
_ACCENT, _INK, _GREY, _PALE = "#0f5f6b", "#14181b", "#5b656b", "#dfe5e8"


@dataclass(frozen=True)
class Content:
    """All that one report shows."""

    record: Record
    mri_slice: MRISlice
    issued_at: datetime
    author: str
    author_role: str
    final: bool
    canonical_sha256: str
    explanations: tuple[Explanation, ...] = ()
    patient: Patient | None = None
    study: Study | None = None
    place: StudyRecord | None = None
    series_text: str = ""
    card: ModelCard | None = None
    findings: str = ""
    impression: str = ""
    earlier: str = ""
    han: str = "zh-Hans"
    software: str = field(default=__version__)


def render(content: Content) -> bytes:
    """Draw a report.

    Returns
    -------
    bytes
        A PDF, A4, fonts embedded; its metadata names no patient.
    """
    record = content.record
    title = f"Brain MRI report, case {record.id}"
    with _LOCK:
        page = _Page(title, content, _all_text(content), content.han)
        _draw_head(page, content)
        _draw_patient(page, content)
        _draw_pictures(page, content)
        _draw_answer(page, content)
        page.section("Findings")
        page.paragraph(content.findings or "None written.", colour=_INK if content.findings else _GREY)
        page.section("Impression")
        page.paragraph(content.impression or "None written.", colour=_INK if content.impression else _GREY)
        _draw_signature(page, content)
        _draw_model(page, content)
        return page.finish()


def missing_characters(content: Content) -> str:
    """Characters that no font here draws, of what a signature stands for: author, patient, findings, impression."""
    from brainmri.pdf_text import TextSetter

    patient, study = content.patient, content.study
    parts = [content.author, content.findings, content.impression, study.title if study else ""]
    text = "".join((*parts, patient.title if patient else ""))
    with _LOCK:
        return " ".join(TextSetter(text, content.han).missing(text))


def render_summary(patient: Patient, entries: Sequence[TimelineEntry], han: str = "zh-Hans") -> bytes:
    """Draw a patient's timeline as a table: date, slice, answer, what readers said."""
    from brainmri.patients import SEXES, VERDICTS

    facts = f"Born {patient.birth_date:%d %B %Y}" if patient.birth_date else "Birth date not given"
    facts += f" · sex {SEXES[patient.sex]} · {len(entries)} answers"
    said = {
        entry.record.id: "; ".join(
            f"{who}: {VERDICTS[v.verdict]}" + (f" ({v.note})" if v.note else "") for v, who in entry.verdicts
        )
        for entry in entries
    }
    everything = [patient.title, facts, *said.values()]
    everything += [text for entry in entries for text in (entry.record.name, entry.study.title)]
    with _LOCK:
        page = _Page("Patient summary", None, "".join(everything), han)
        page.text(_MARGIN, "Patient summary", 17, bold=True, colour=_ACCENT)
        page.down(22)
        page.paragraph(patient.title, size=12, bold=True)
        page.paragraph(facts, colour=_GREY)
        page.paragraph(DISCLAIMER, size=8, colour=_GREY)
        study = None
        for entry in entries:
            record = entry.record
            if entry.study.id != study:
                study = entry.study.id
                page.section(f"Study {study}: {study_text(entry.study)}")
            page.need(26)
            page.text(_MARGIN, f"Case {record.id}", 9)
            page.text(_MARGIN + 22 * _MM, when_text(record.created_at), 9, colour=_GREY)
            answer = _answer_line(record)
            room = _INNER - 72 * _MM - page.setter.width(answer, 9, bold=True) - 3 * _MM
            page.text(_MARGIN + 72 * _MM, page.setter.clip(record.name, room, 9), 9, colour=_GREY)
            page.text(_MARGIN + _INNER, answer, 9, bold=True, align="right")
            page.down(13)
            if said[record.id]:
                page.paragraph(said[record.id], size=9)
        return page.finish()


class _Page:
    """A cursor that runs down A4 pages, and what every page carries."""

    def __init__(self, title: str, content: Content | None, everything: str, han: str):
        from reportlab.pdfgen.canvas import Canvas

        from brainmri.pdf_text import REGULAR, TextSetter

        self.title, self.content = title, content
        self.setter: TextSetter = TextSetter(everything + title + "DRAFT", han)
        self.buffer = io.BytesIO()
        self.canvas: Canvas = Canvas(
            self.buffer, pagesize=(_WIDTH, _HEIGHT), pageCompression=1, initialFontName=REGULAR
        )
        self.canvas.setTitle(title)
        self.canvas.setAuthor(content.author if content else "brainmri")
        self.canvas.setCreator(f"brainmri {__version__}")
        self.pages: list[dict[str, Any]] = []
        self.y = _HEIGHT - _MARGIN

    def text(self, x: float, text: str, size: float, *, y: float | None = None, **style: Any) -> None:
        self.canvas.setFillColor(style.pop("colour", _INK))
        self.setter.draw(self.canvas, x, self.y if y is None else y, text, size, **style)

    def down(self, points: float) -> None:
        self.y -= points

    def need(self, points: float) -> None:
        if self.y - points < _FOOT + 4 * _MM:
            self._end_page()

    def rule(self) -> None:
        self.canvas.setStrokeColor(_PALE)
        self.canvas.setLineWidth(0.7)
        self.canvas.line(_MARGIN, self.y, _MARGIN + _INNER, self.y)
        self.down(12)

    def section(self, title: str, keep: float = 40) -> None:
        self.need(keep)
        self.down(8)
        self.text(_MARGIN, title, 11, bold=True, colour=_ACCENT)
        self.down(14)

    def paragraph(self, text: str, *, size: float = 10, bold: bool = False, colour: str = _INK) -> None:
        for part in text.splitlines() or [""]:
            rtl, han = self.setter.is_rtl(part), self.setter.language(part)
            x, align = (_MARGIN + _INNER, "right") if rtl else (_MARGIN, "left")
            for line in self.setter.wrap(part, _INNER, size, bold=bold):
                self.need(size * 1.4)
                self.text(x, line, size, bold=bold, colour=colour, align=align, rtl=rtl, han=han)
                self.down(size * 1.4)

    def finish(self) -> bytes:
        self._end_page()
        total = len(self.pages)
        for number, state in enumerate(self.pages, 1):
            self.canvas.__dict__.update(state)
            self._furniture(number, total)
            type(self.canvas).showPage(self.canvas)
        self.canvas.save()
        return self.buffer.getvalue()

    def _end_page(self) -> None:
        self.pages.append(dict(self.canvas.__dict__))
        self.canvas._startPage()
        self.y = _HEIGHT - _MARGIN

    def _furniture(self, number: int, total: int) -> None:
        from reportlab.lib.colors import Color

        canvas, foot = self.canvas, 11 * _MM
        canvas.setStrokeColor(_PALE)
        canvas.line(_MARGIN, foot + 14, _MARGIN + _INNER, foot + 14)
        self.text(_MARGIN + _INNER, f"Page {number} of {total}", 8, y=foot, colour=_GREY, align="right")
        if self.content is None:
            self.text(_MARGIN, f"brainmri {__version__}", 8, y=foot, colour=_GREY)
            return
        self.text(
            _MARGIN,
            f"Case {self.content.record.id} · record SHA-256 {self.content.canonical_sha256[:32]}… · "
            "check with: brainmri report verify FILE.pdf",
            8,
            y=foot,
            colour=_GREY,
        )
        if not self.content.final:
            canvas.saveState()
            canvas.translate(_WIDTH / 2, _HEIGHT / 2)
            canvas.rotate(52)
            self.text(0, "DRAFT", 150, y=-50, bold=True, colour=Color(0.7, 0, 0.13, alpha=0.12), align="centre")
            canvas.restoreState()


def _draw_head(page: _Page, content: Content) -> None:
    record, side = content.record, 24 * _MM
    _draw_code(page.canvas, _MARGIN + _INNER - side, page.y + 4 - side + 8, side, code_text(content))
    page.down(8)
    page.text(_MARGIN, "Brain MRI report", 19, bold=True, colour=_ACCENT)
    page.down(18)
    status = "FINAL" if content.final else "DRAFT, not signed"
    page.text(_MARGIN, status, 11, bold=True, colour=_INK if content.final else "#b00020")
    page.down(15)
    page.text(_MARGIN, f"Case {record.id} · issued {when_text(content.issued_at)}", 9, colour=_GREY)
    page.down(12)
    page.text(_MARGIN, DISCLAIMER, 8, colour=_GREY)
    page.down(12)
    if content.earlier:
        page.text(_MARGIN, content.earlier, 8.5, bold=True)
        page.down(12)
    page.down(3)
    page.rule()


def _draw_patient(page: _Page, content: Content) -> None:
    from brainmri.patients import SEXES

    record, patient, place = content.record, content.patient, content.place
    rows = [("Patient", patient.pseudonym if patient else "not filed under a patient")]
    if patient and patient.name:
        rows.append(("Name", patient.name))
    if patient and patient.birth_date:
        rows.append(("Born", f"{patient.birth_date:%d %B %Y}"))
    if patient and patient.sex:
        rows.append(("Sex", SEXES[patient.sex]))
    spacing = record.spacing_mm
    if content.study:
        rows.append(("Study", study_text(content.study)))
    right = [("Slice", record.name)]
    if place and place.slice_of:
        right.append(("Series", "slice {} of {}".format(*place.slice_of)))
    size = f"{record.width} × {record.height} px"
    right.append(("Image", size + (f", {spacing[0]:.2f} × {spacing[1]:.2f} mm" if spacing else ", scale unknown")))
    right.append(("Answered", when_text(record.created_at)))
    half = _INNER / 2
    top = page.y
    for column, pairs in enumerate((rows, right)):
        y = top
        for label, value in pairs:
            x = _MARGIN + column * half
            page.text(x, label, 8.5, y=y, colour=_GREY)
            for line in page.setter.wrap(value, half - 62, 10):
                page.text(x + 54, line, 10, y=y, han=page.setter.language(value))
                y -= 14
        page.y = min(page.y, y)
    page.down(2)


def _draw_pictures(page: _Page, content: Content) -> None:
    from brainmri.explain import METHODS
    from brainmri.explain.colour import overlay

    original = content.mri_slice
    pictures: list[tuple[str, np.ndarray, bool]] = [("Slice as read", original.pixels, False)]
    for e in content.explanations:
        method = METHODS[e.method].title if e.method in METHODS else e.method
        caption = f"{method}, evidence for {CLASS_TITLES.get(e.target_class, e.target_class).lower()}"
        if not e.saliency_map.any():
            caption += ": none found, the map is empty"
        pictures.append((caption, overlay(original.pixels, e.saliency_map), True))
    columns = 2 if len(pictures) <= 2 else 3
    gap = 5 * _MM
    box = min((_INNER - gap * (columns - 1)) / columns, 76 * _MM)
    spacing = original.spacing_mm or (1.0, 1.0)
    height_mm, width_mm = original.pixels.shape[0] * spacing[0], original.pixels.shape[1] * spacing[1]
    points = box / max(height_mm, width_mm)
    width, height = width_mm * points, height_mm * points
    for start in range(0, len(pictures), columns):
        page.need(height + 30)
        row_top = page.y
        for i, (caption, pixels, has_map) in enumerate(pictures[start : start + columns]):
            x, y = _MARGIN + i * (box + gap), row_top - height
            canvas = page.canvas
            _draw_image(canvas, pixels, x, y, width, height)
            _draw_letters(page, original.orientation, x, y, width, height)
            if original.spacing_mm:
                _draw_scale(page, x, y, width, points)
            if has_map:
                _draw_colour_bar(page, x + width + 3, y, height)
            for k, line in enumerate(page.setter.wrap(caption, box, 8)[:2]):
                page.text(x, line, 8, y=y - 11 - 9 * k, colour=_GREY)
        page.y = row_top - height - 28
    if original.orientation is None:
        page.paragraph("The image does not say which side is the patient's left.", size=8, colour=_GREY)
    if content.explanations:
        page.paragraph(
            "Colours show where the network finds evidence, as a share of the map's maximum; they outline no lesion.",
            size=8,
            colour=_GREY,
        )


def _draw_image(canvas: Canvas, pixels: np.ndarray, x: float, y: float, width: float, height: float) -> None:
    from PIL import Image
    from reportlab.lib.utils import ImageReader

    image = Image.fromarray(np.asarray(pixels))
    longest = max(image.size)
    if longest > 1024:  # what 76 mm can show at 340 dpi
        image = image.resize(
            (max(1, image.width * 1024 // longest), max(1, image.height * 1024 // longest)), Image.Resampling.LANCZOS
        )
    canvas.drawImage(ImageReader(image), x, y, width, height)


def _draw_letters(
    page: _Page, orientation: tuple[str, str, str, str] | None, x: float, y: float, width: float, height: float
) -> None:
    if orientation is None:
        return
    left, right, top, bottom = orientation
    places = [(left, x + 6, y + height / 2 - 3), (right, x + width - 6, y + height / 2 - 3)]
    places += [(top, x + width / 2, y + height - 11), (bottom, x + width / 2, y + 5)]
    for letter, cx, cy in places:
        for dx, dy, colour in ((0.6, -0.6, "#000000"), (0, 0, "#ffffff")):
            page.text(cx + dx, letter, 9, y=cy + dy, bold=True, colour=colour, align="centre")


def _draw_scale(page: _Page, x: float, y: float, width: float, points_per_mm: float) -> None:
    length = next((n for n in (50, 20, 10, 5, 2) if n * points_per_mm <= 0.4 * width), 1)
    end, base, canvas = x + width - 8, y + 16, page.canvas
    for thickness, colour in ((2.6, "#000000"), (1.4, "#ffffff")):
        canvas.setStrokeColor(colour)
        canvas.setLineWidth(thickness)
        canvas.line(end - length * points_per_mm, base, end, base)
    for dx, dy, colour in ((0.5, -0.5, "#000000"), (0, 0, "#ffffff")):
        page.text(end + dx, f"{length} mm", 7.5, y=base + 3 + dy, colour=colour, align="right")


def _draw_colour_bar(page: _Page, x: float, y: float, height: float) -> None:
    from brainmri.explain.colour import colour_table

    bar = np.repeat(colour_table()[::-1][:, None], 4, axis=1)
    _draw_image(page.canvas, bar, x, y, 5, height)
    page.text(x + 7, "1", 6.5, y=y + height - 6, colour=_GREY)
    page.text(x + 7, "0", 6.5, y=y, colour=_GREY)


def _draw_answer(page: _Page, content: Content) -> None:
    record = content.record
    page.section("What the network says about this slice", keep=130)
    page.down(4)
    page.text(_MARGIN, _answer_title(record), 14, bold=True)
    page.down(17)
    chosen = ", ".join(CLASS_TITLES.get(c, c).lower() for c in record.prediction_set) or "no class"
    if record.decision == "rejected":
        reason = picture_reason(record.notes) or (
            f"Not like the brain-MRI slices it was trained on (distance {record.ood_score:.3g}, limit "
            f"{record.ood_threshold:.3g})"
        )
        page.paragraph(f"{reason}; no class is given.")
    else:
        page.paragraph(f"95 % prediction set: {chosen}. Calibrated probabilities:", size=9.5)
        page.down(2)
        bar = 88 * _MM
        for name in CLASS_NAMES:
            p = record.probabilities[name]
            page.text(_MARGIN, CLASS_TITLES[name], 9.5, bold=name == record.label)
            x = _MARGIN + 36 * _MM
            page.canvas.setFillColor(_PALE)
            page.canvas.rect(x, page.y - 1, bar, 8, stroke=0, fill=1)
            page.canvas.setFillColor(_ACCENT)
            page.canvas.rect(x, page.y - 1, bar * p, 8, stroke=0, fill=1)
            page.text(x + bar + 34, f"{p:.1%}", 9.5, align="right")
            page.down(14)
    if content.series_text:
        page.paragraph("Series: " + content.series_text, size=9.5)
    for note in content.mri_slice.notes:
        page.paragraph("Note: " + note, size=8, colour=_GREY)


def _draw_signature(page: _Page, content: Content) -> None:
    page.need(48)
    page.down(6)
    page.rule()
    if content.final:
        page.paragraph(f"Signed by {content.author}, {content.author_role}", size=11, bold=True)
        page.paragraph(when_text(content.issued_at), size=9)
    else:
        page.paragraph(f"Draft by {content.author}, {content.author_role}; nobody has signed it.", size=10, bold=True)


def _draw_model(page: _Page, content: Content) -> None:
    record, card = content.record, content.card
    page.section("Model", keep=70)
    page.paragraph(
        f"{record.model_id} · weights SHA-256 {record.weights_sha256[:16]}… · {record.engine}, {record.precision} · "
        f"preprocessing {record.preprocessing} · software {record.software_version}",
        size=8.5,
    )
    if card is None:
        page.paragraph("Its card is not here any more: limits and figures unknown.", size=8.5, colour=_GREY)
        return
    page.paragraph("Measured, by collection:", size=8.5)
    for line in _measured(card):
        page.paragraph("• " + line, size=8.5)
    page.need(40)  # not alone at the foot of a page
    page.paragraph("Limits:", size=8.5)
    for limit in limit_texts(card.limits):
        page.paragraph("• " + limit, size=8.5, colour=_GREY)


_FIGURES = ("Images", "Accuracy", "Tumours found", "No tumour recognised")
"""Columns of `metrics_table` for which a line has room."""


def _measured(card: ModelCard) -> list[str]:
    """The card's figures, one line a split."""
    lines = (
        f"{split}: " + ", ".join(f"{title.lower()} {row[title]}" for title in _FIGURES if row.get(title, "–") != "–")
        for split, row in metrics_table(card.metrics).items()
    )
    return [f"{line}." for line in lines] or ["The card holds no measured figures yet."]


def code_text(content: Content) -> str:
    """What the square code holds: record id and hash of the canonical record; nothing about the patient."""
    return f"brainmri:case:{content.record.id}:sha256:{content.canonical_sha256}"


def _draw_code(canvas: Canvas, x: float, y: float, side: float, text: str) -> None:
    import qrcode

    code = qrcode.QRCode(border=2, error_correction=qrcode.constants.ERROR_CORRECT_M)
    code.add_data(text)
    matrix = np.array(code.get_matrix())
    cell = side / len(matrix)
    canvas.setFillColor("#000000")
    path = canvas.beginPath()
    for row, line in enumerate(matrix):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], line.astype(np.int8), [0]))))
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            path.rect(x + start * cell, y + side - (row + 1) * cell, (end - start) * cell, cell)
    canvas.drawPath(path, stroke=0, fill=1)


def _answer_title(record: Record) -> str:
    if record.decision == "rejected":
        return "Rejected: not recognised as a brain-MRI slice"
    if record.decision == "undecided" or record.label is None:
        return "Undecided"
    return CLASS_TITLES[record.label]


def _answer_line(record: Record) -> str:
    if record.decision == "class" and record.label:
        return f"{CLASS_TITLES[record.label]}, {record.probabilities[record.label]:.1%}"
    return _answer_title(record)


def study_text(study: Study) -> str:
    """Title and date of a study, as far as they are known."""
    date = f"{study.study_date:%d %B %Y}" if study.study_date else "date not known"
    return f"{study.title}, {date}" if study.title else date


def when_text(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%d %B %Y, %H:%M} UTC"


def _all_text(content: Content) -> str:
    patient = content.patient
    parts: list[str] = [content.author, content.findings, content.impression, content.record.name, content.series_text]
    parts += [patient.pseudonym, patient.name] if patient else []
    parts += [content.study.title] if content.study else []
    parts += list(content.mri_slice.notes) + list(content.card.limits if content.card else ())
    return "".join(parts)
