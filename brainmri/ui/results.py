"""An answer on the screen: the same for one just given (Predict) and one kept (History)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st
from PIL import Image, ImageDraw

from brainmri.imaging import picture_reason, pixel_aspect, preprocess
from brainmri.look import CLASS_COLOURS, DECISION_TITLES
from brainmri.storage import plain_cell
from brainmri.types import CLASS_NAMES, CLASS_TITLES, Analysis, CropTransform, MRISlice
from brainmri.ui import state
from brainmri.ui.theme import answer_title, class_list, class_title, link, plain, research_notice, text_table

if TYPE_CHECKING:
    import pandas as pd

    from brainmri.storage import Record

PREVIEW_SIDE = 900
SMALL_PREVIEW_SIDE = 256
_OUTLINE = (63, 182, 193)
_SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Answer:
    """What a page shows of one answer; small enough to keep hundreds of them in a browser session.

    Attributes
    ----------
    original, network_view : bytes
        PNG: the image with the crop outlined, at most ``PREVIEW_SIDE`` pixels a side, and the network's input.
    facts : dict
        Label -> text for the details table.
    record_id : int or None
        Its case in History; None where nothing was stored.
    """

    name: str
    decision: str
    label: str | None
    prediction_set: tuple[str, ...]
    probabilities: dict[str, float]
    ood_score: float
    ood_threshold: float
    model_id: str
    elapsed_ms: float
    original: bytes
    network_view: bytes
    facts: dict[str, str]
    notes: tuple[str, ...]
    image_sha256: str
    record_id: int | None = None

    @property
    def title(self) -> str:
        """Class as a reader sees it, or the decision that stands in for one."""
        return answer_title(self.label, self.decision)

    @classmethod
    def from_analysis(cls, analysis: Analysis, record_id: int | None = None, *, side: int = PREVIEW_SIDE) -> Answer:
        """Of an answer just given."""
        mri_slice = analysis.slice
        return cls(
            mri_slice.name,
            analysis.decision,
            analysis.label,
            analysis.prediction_set,
            analysis.probabilities,
            analysis.ood_score,
            analysis.ood_threshold,
            analysis.model_id,
            analysis.elapsed_ms,
            _original(mri_slice, analysis.transform, side),
            _png(np.rint(analysis.network_input * 255).astype(np.uint8)),
            _facts(analysis, mri_slice, mri_slice.pixels.shape, mri_slice.sha256),
            mri_slice.notes,
            mri_slice.sha256,
            record_id,
        )

    @classmethod
    def from_record(cls, record: Record, mri_slice: MRISlice) -> Answer:
        """Of an answer kept: its figures as they were given, its pictures redrawn from the kept image."""
        transform = record.crop_transform()
        view, today = preprocess(mri_slice.pixels, spacing_mm=mri_slice.spacing_mm)
        if today != transform:  # preprocessing has changed since; the stored crop is what was seen
            crop = Image.fromarray(transform.to_network(mri_slice.pixels))
            view = np.asarray(crop.resize((transform.network_size,) * 2), np.float32) / 255
        facts = _facts(record, record, (record.height, record.width), record.image_sha256)
        facts |= {"Preprocessing": record.preprocessing, "Software": record.software_version}
        return cls(
            record.name,
            record.decision,
            record.label,
            tuple(record.prediction_set),
            record.probabilities,
            record.ood_score,
            record.ood_threshold,
            record.model_id,
            record.elapsed_ms,
            _original(mri_slice, transform, PREVIEW_SIDE),
            _png(np.rint(view * 255).astype(np.uint8)),
            facts,
            mri_slice.notes,
            record.image_sha256,
            record.id,
        )

    def row(self) -> dict[str, Any]:
        """One line of the table to download; a rejected image has neither class nor probabilities."""
        shown = self.decision != "rejected"
        return {
            "name": plain_cell(self.name),
            "decision": self.decision,
            "label": self.label,
            "prediction_set": " ".join(self.prediction_set) if shown else None,
            **{f"p_{c}": round(self.probabilities[c], 6) if shown else None for c in CLASS_NAMES},
            "ood_score": self.ood_score,
            "ood_threshold": self.ood_threshold,
            "model_id": self.model_id,
            "elapsed_ms": round(self.elapsed_ms, 2),
            "case": self.record_id,
            "error": None,
        }


def show_answer(answer: Answer, *, history_link: bool = True) -> None:
    """Decision, probabilities, the original beside what the network saw, and where the answer comes from."""
    state.note_answers_seen([answer.image_sha256])
    words, pictures = st.columns([5, 6], gap="medium")
    with words:
        show_decision(answer)
        if answer.decision != "rejected":
            st.vega_lite_chart(spec=probability_chart(answer.probabilities, answer.prediction_set))
        st.caption(
            f":material/timer: {answer.elapsed_ms:.0f} ms · {answer.facts['Engine']} · {answer.model_id}"
            + "".join(f"  \n:material/info: {plain(note)}" for note in answer.notes if not note.startswith(_SYNTHETIC))
        )
        if answer.record_id is not None:
            case = str(answer.record_id)
            with st.container(horizontal=True, gap="small"):
                if history_link:
                    link("pages/main/history.py", f"Case {case} in History", ":material/history:", case=case)
                link("pages/explore/heatmaps.py", "Heatmaps of this case", ":material/blur_on:", case=case)
                link("pages/clinical/reports.py", "Write a report", ":material/description:", case=case)
        research_notice()
    with pictures:
        left, right = st.columns(2, wrap=False)
        # The format keeps Streamlit from making a JPEG of each picture again on every run.
        left.image(
            answer.original,
            "Original; the outline is the crop",
            width="stretch",
            output_format="PNG",
            alt="The slice as it came, with the crop outlined",
        )
        right.image(
            answer.network_view,
            "What the network saw",
            width="stretch",
            output_format="PNG",
            alt="The crop as the network got it",
        )
    with st.expander("Details", icon=":material/list_alt:"):
        text_table({name: [text] for name, text in answer.facts.items()})


def show_name(name: str, notes: Sequence[str] = ()) -> None:
    """Which image an answer is of, and whether it is one of the painted samples."""
    st.caption(plain(name if len(name) < 80 else f"{name[:77]}…"))
    if any(note.startswith(_SYNTHETIC) for note in notes):
        st.badge("Synthetic sample, no patient's image", icon=":material/draw:", color="gray")


def show_decision(answer: Answer) -> None:
    """The answer in words. A rejected image gets no class."""
    show_name(answer.name, answer.notes)
    if answer.decision == "rejected":
        reason = picture_reason(answer.notes) or (
            "This image lies further from the training data than the model may judge "
            f"(distance {answer.ood_score:.3g}, limit {answer.ood_threshold:.3g})"
        )
        st.error(
            f"**{DECISION_TITLES['rejected']}**  \nNot recognised as a brain MRI slice. {reason}, so it gets no class.",
            icon=":material/block:",
        )
    elif answer.decision == "undecided":
        st.warning(
            f"**{DECISION_TITLES['undecided']}**  \n{undecided_reason(answer.prediction_set)} The highest bar is "
            "not an answer.",
            icon=":material/help:",
        )
    else:
        label = answer.label or ""
        with st.container(border=True, gap=None):
            st.header(class_title(label), anchor=False)
            st.markdown(f"Probability **{answer.probabilities[label]:.1%}**")
            st.caption(f"95 % prediction set: {class_list(answer.prediction_set)}")


def undecided_reason(prediction_set: Sequence[str]) -> str:
    """Why there is no answer: several classes are in the 95 % set, or none is."""
    if not prediction_set:
        return "No class is likely enough to be an answer at 95 % coverage."
    return f"At 95 % coverage the model cannot narrow it down further than: **{class_list(list(prediction_set))}**."


def probability_chart(probabilities: dict[str, float], prediction_set: Sequence[str] = ()) -> dict[str, Any]:
    """Horizontal bars, one a class in the fixed order, as Vega-Lite; classes outside the prediction set are faint.

    By hand, and with the data inside the layers, where Streamlit leaves it: Altair is slow to check a chart against its
    schema, and takes 80 MiB with the pandas and pyarrow that carry its four rows.
    """
    titles = [CLASS_TITLES[c] for c in CLASS_NAMES]
    data = [
        {
            "class": CLASS_TITLES[c],
            "probability": probabilities[c],
            "text": f"{probabilities[c]:.1%}",
            "opacity": 1.0 if not prediction_set or c in prediction_set else 0.4,
        }
        for c in CLASS_NAMES
    ]
    percent = {"format": "%", "values": [0, 0.25, 0.5, 0.75, 1]}
    nominal, quantity = {"field": "class", "type": "nominal"}, {"field": "probability", "type": "quantitative"}
    both = {
        "y": {**nominal, "sort": titles, "title": None, "axis": {"labelLimit": 140, "ticks": False, "domain": False}},
        "x": {**quantity, "scale": {"domain": [0, 1.14]}, "title": None, "axis": percent},
        "tooltip": [{**nominal, "title": "Class"}, {**quantity, "format": ".2%"}],
    }
    colours = {"domain": titles, "range": [CLASS_COLOURS[c] for c in CLASS_NAMES]}
    bars = {
        "data": {"values": data},
        "mark": {"type": "bar", "cornerRadiusEnd": 4, "size": 22},
        "encoding": {
            **both,
            "color": {**nominal, "scale": colours, "legend": None},
            "opacity": {"field": "opacity", "type": "quantitative", "scale": None},
        },
    }
    text = {
        "data": {"values": data},
        # Grey is legible on both themes; the theme's own text colour does not reach text marks.
        "mark": {"type": "text", "align": "left", "dx": 5, "fontSize": 13, "color": "#7d8b91"},
        "encoding": {**both, "text": {"field": "text", "type": "nominal"}},
    }
    spoken = ", ".join(f"{row['class']} {row['text']}" for row in data)
    return {"description": f"Probabilities: {spoken}", "height": 170, "layer": [bars, text]}


def result_table(answers: Sequence[Answer], errors: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """One row an answer, then one a file that could not be read; the columns of the download."""
    import pandas as pd

    failed = [{"name": plain_cell(name), "decision": "unreadable", "error": plain_cell(text)} for name, text in errors]
    columns = list(Answer.row(answers[0])) if answers else ["name", "decision", "error"]
    return pd.DataFrame([a.row() for a in answers] + failed, columns=columns)


def _facts(answer: Any, source: Any, shape: tuple[int, ...], sha256: str) -> dict[str, str]:
    """Details of an Analysis or a Record; both name these things alike."""
    facts = {
        "Image": f"{source.source_format}, {shape[1]} × {shape[0]} pixels",
        "Model": f"{answer.model_id} (weights {answer.weights_sha256[:12]}…)",
        "Engine": f"{answer.engine}, {answer.precision}",
        "Time": f"{answer.elapsed_ms:.0f} ms",
        "Distance from training data": _distance(answer.ood_score, answer.ood_threshold),
        "SHA-256": sha256,
    }
    if source.spacing_mm:
        facts["Pixel spacing"] = " × ".join(f"{v:.3g}" for v in source.spacing_mm) + " mm"
    if source.orientation:
        facts["Edges"] = "left {}, right {}, top {}, bottom {}".format(*source.orientation)
    if source.sop_instance_uid:
        facts["SOP instance"] = source.sop_instance_uid
    if source.frame is not None:
        facts["Frame"] = str(source.frame)
    return facts


def _distance(score: float, threshold: float) -> str:
    return f"{score:.3g} (limit {threshold:.3g})" if np.isfinite(threshold) else "not measured: no gate is fitted"


def _original(mri_slice: MRISlice, transform: CropTransform, side: int) -> bytes:
    """PNG of the image, shrunk to ``side``, with the crop's outline; of its 256 colours all but the last are grey.

    In its true proportions where pixels are not square.
    """
    image = Image.fromarray(mri_slice.pixels)
    height, width = mri_slice.pixels.shape
    aspect = pixel_aspect(mri_slice.spacing_mm)
    if aspect == 1:
        image.thumbnail((side, side))
    else:
        tall, wide = height * max(1.0, 1 / aspect), width * max(1.0, aspect)
        factor = min(1.0, side / max(tall, wide))
        image = image.resize((max(1, round(wide * factor)), max(1, round(tall * factor))))
    image = Image.fromarray(np.minimum(np.asarray(image), 254))  # only now: shrinking overshoots at edges
    image.putpalette([value for grey in range(255) for value in (grey, grey, grey)] + list(_OUTLINE))
    rows, columns = transform.shape
    across, down = image.width / width, image.height / height
    box = [transform.left * across, transform.top * down]
    box += [(transform.left + columns - 1) * across, (transform.top + rows - 1) * down]
    # A crop that reaches past the image is outlined along the image's edge.
    line = max(1, round(max(image.size) / 220))
    limits = (image.width - 1, image.height - 1)
    clipped = [min(max(v, 0), limits[i % 2]) for i, v in enumerate(box)]
    ImageDraw.Draw(image).rectangle(clipped, outline=255, width=line)
    return _png(image)


def _png(image: np.ndarray | Image.Image) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, "PNG", compress_level=2)
    return buffer.getvalue()
