"""Series viewer: a DICOM series read, scrolled through, answered as a whole, explained and kept."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st

from brainmri import patients
from brainmri.dicom import (
    Reading,
    Series,
    SeriesAnswer,
    Window,
    answer_series,
    is_dicom,
    is_zip,
    read_files,
    read_series,
)
from brainmri.displays import counted
from brainmri.errors import BrainMRIError, InvalidDicomError
from brainmri.explain import METHODS, explain
from brainmri.look import CLASS_COLOURS, DECISION_COLOURS, DECISION_TITLES
from brainmri.pipeline import analyse_stack
from brainmri.types import CLASS_NAMES, Analysis
from brainmri.ui import state
from brainmri.ui.canvas import Panel, canvas
from brainmri.ui.results import Answer, show_answer
from brainmri.ui.theme import answer_title, class_title, legend, link, plain, research_notice

if TYPE_CHECKING:
    from brainmri.accounts import User

_BATCH = 16
_STACK_BYTES = 80_000_000
"""Values of a series up to this size go to the browser at once; larger series are shown slice by slice."""
INSIST = "Other modalities than MR, localisers, diffusion, derived images, and pictures marked as holding text."
_STACK_METHODS = ("grad-cam", "hires-cam", "layer-cam")


@dataclass
class _Opened:
    """What this browser session has read and shown of one upload.

    Attributes
    ----------
    answers, kept : dict
        By position of the series.
    views : dict
        By position of the series: how often a slice was jumped to, which names the widgets, and the slice, from 0.
    maps : tuple or None
        Position of the series and method, and the maps drawn last.
    origin : str
        The PACS that it was fetched from, or the upload's name.
    fetched : bool
        From a PACS.
    """

    token: tuple
    reading: Reading
    answers: dict[int, list[Analysis]] = field(default_factory=dict)
    kept: dict[int, list[int]] = field(default_factory=dict)
    views: dict[int, tuple[int, int]] = field(default_factory=dict)
    maps: tuple[tuple[int, str], np.ndarray] | None = None
    origin: str = ""
    fetched: bool = False

    def key(self, widget: str) -> str:
        """Session key of a widget that knows nothing of other uploads."""
        return f"series.{hashlib.sha256(repr(self.token).encode()).hexdigest()[:12]}.{widget}"

    def view(self, index: int) -> tuple[int, int]:
        """Of a series; before anything is chosen, the slice to show first."""
        return self.views.get(index) or (0, analyses_peak(self.answers[index]))


def open_reading(user: User, reading: Reading, origin: str) -> None:
    """Show a reading that was fetched, until something is uploaded or it is closed; see `pick_upload`."""
    st.session_state["series.opened"] = _Opened((user.id, origin, time.time_ns()), reading, origin=origin, fetched=True)


def pick_upload(user: User) -> Reading | None:
    """Uploader, options and the reading of what was given; None while there is nothing to show.

    What is open stays open when the reader has been on another page, where the uploader forgets its files.
    """

    def forget() -> None:
        st.session_state.pop("series.opened", None)

    settings = state.settings()
    left, right = st.columns([2, 1], vertical_alignment="bottom")
    folder = right.segmented_control(
        "What you have", ["Files or a zip", "A folder"], default="Files or a zip", key="series.kind", required=True
    )
    uploads = left.file_uploader(
        "DICOM series",
        accept_multiple_files="directory" if folder == "A folder" else True,
        help=f"DICOM files or a zip of them, up to {settings.dicom.max_archive_mb:,.0f} MB.",
        key=f"series.upload.{folder}",
        on_change=forget,
    )
    opened = st.session_state.get("series.opened")
    if opened is not None and opened.token[0] != user.id:
        forget()
        opened = None
    remains = opened is not None and not uploads
    insist = right.toggle(
        "Take everything", key="series.insist", help=INSIST, disabled=remains, persist_state="session"
    )
    if not uploads:
        return _still_open(opened) if opened is not None else None
    token = (user.id, insist, *(f.file_id for f in uploads))
    if opened is None or opened.token != token:
        forget()
        name = uploads[0].name if len(uploads) == 1 else f"{len(uploads)} files"
        try:
            with st.spinner(f"Reading {len(uploads)} files …" if len(uploads) > 1 else "Reading the upload …"):
                if len(uploads) == 1:
                    content = uploads[0].getvalue()
                    if not (is_dicom(content) or is_zip(content)):
                        raise InvalidDicomError(
                            f"{uploads[0].name}: neither a DICOM file nor a zip; pictures such as PNG go to Predict"
                        )
                    reading = read_series(content, name, settings, insist=insist)
                else:
                    files = ((f.name, f.getvalue()) for f in uploads)
                    reading = read_files(files, name, settings, insist=insist)
        except BrainMRIError as error:
            st.error(plain(str(error)), icon=":material/broken_image:")
            return None
        st.session_state["series.opened"] = opened = _Opened(token, reading, origin=name)
    return opened.reading


def _still_open(opened: _Opened) -> Reading | None:
    with st.container(horizontal=True, vertical_alignment="center"):
        how = ", de-identified" if opened.fetched and state.settings().dicom.deidentify else ""
        what = ":material/dns: Fetched from" if opened.fetched else ":material/folder_open: Still open:"
        st.markdown(f"{what} **{plain(opened.origin)}**{how}.")
        if st.button("Close", icon=":material/close:", key="series.close"):
            del st.session_state["series.opened"]
            st.rerun()
    return opened.reading


def empty_state() -> None:
    """What this page does, before there is anything to show."""
    identity = (
        "names, dates and identifiers are taken out before anything else sees them"
        if state.settings().dicom.deidentify
        else "names and dates stay as they are, for de-identification is switched off (dicom.deidentify)"
    )
    st.info(
        "Give a zip, a folder or the files of one MR series. Slices are put in anatomical order, localisers, diffusion "
        f"and derived images are set aside with the reason, and {identity}.",
        icon=":material/view_in_ar:",
    )


def show_reading(reading: Reading, user: User) -> None:
    """All of one upload: choice of series, viewer, answer, maps, keeping."""
    opened: _Opened = st.session_state["series.opened"]
    index = 0
    if len(reading.series) > 1:
        index = st.selectbox(
            "Series",
            range(len(reading.series)),
            format_func=lambda i: f"{i + 1} · {_title(reading.series[i])}",  # stacks of one series are told by number
            key=opened.key("choice"),
            persist_state="session",
        )
    series = reading.series[index]
    if len(reading.series) == 1:
        st.subheader(plain(_title(series)), anchor=False)
    notes = [*series.notes, *_common_notes(series)]
    if notes:
        st.caption("  \n".join(f":material/info: {plain(note[0].upper() + note[1:])}." for note in notes))
    if index not in opened.answers:
        opened.answers[index] = _answer(series)
    analyses = opened.answers[index]
    state.note_answers_seen(s.sha256 for s in series.slices)
    answer = answer_series(analyses)
    viewer, side = st.columns([3, 2], gap="large")
    with side:
        _show_series_answer(answer, analyses)
        jump = _chart(opened, index)
        jump = _driving_slices(answer, index) if jump is None else jump
        if jump is not None:  # new widgets at the new slice: the chart takes a click on the same slice again
            opened.views[index] = (opened.view(index)[0] + 1, jump)
            st.rerun()
    with viewer:
        current = _viewer(opened, index)
    st.divider()
    st.subheader(f"Slice {current + 1} of {len(series.frames)}", anchor=False)
    kept = opened.kept.get(index)
    shown = Answer.from_analysis(analyses[current], kept[current] if kept else None)
    show_answer(replace(shown, notes=tuple(note for note in shown.notes if note not in notes)))
    st.divider()
    _keep_section(opened, series, analyses, index, current, user)
    _show_lists(reading)


def _title(series: Series) -> str:
    parts = [series.label, series.plane or "", f"{len(series.frames)} slices" if len(series.frames) > 1 else "1 slice"]
    return f"{series.patient_id or 'no patient id'} · " + " · ".join(part for part in parts if part)


def _common_notes(series: Series) -> list[str]:
    """Notes that every slice carries: said once."""
    shared = set(series.frames[0].slice.notes)
    for frame in series.frames[1:]:
        shared &= set(frame.slice.notes)
    return [note for note in series.frames[0].slice.notes if note in shared]


def _answer(series: Series) -> list[Analysis]:
    classifier = state.classifier()
    with st.spinner(f"Answering {len(series.frames)} slices …"):
        return analyse_stack(classifier, series.slices)


def _viewer(opened: _Opened, index: int) -> int:
    """Canvas with the slice slider; returns the slice shown, from 0."""
    series, analyses = opened.reading.series[index], opened.answers[index]
    counter, current = opened.view(index)
    choices = series.windows()
    picked = st.columns(2)
    window = picked[0].selectbox(
        "Window",
        choices,
        format_func=_window_title,
        key=opened.key(f"window.{index}"),
        persist_state="session",
        help="Shift + drag on the image changes it.",
    )
    method = picked[1].selectbox(
        "Heatmap",
        (None, *_STACK_METHODS),
        format_func=lambda name: METHODS[name].title if name else "None",
        placeholder="None",
        key="series.method",
        persist_state="session",
    )
    image, start_window = _stack(series, window)
    maps = _maps(opened, index, method) if method else None
    whole = image.nbytes * (2 if maps is not None else 1) <= _STACK_BYTES
    labels = [_decision(a) for a in analyses]
    frame = series.frames[0].slice
    shared: dict[str, Any] = {"spacing_mm": frame.spacing_mm, "orientation": frame.orientation}
    identity = opened.key(f"{index}.{choices.index(window)}")  # a window chosen anew is to be seen
    if whole:
        panels = [Panel(image, "Slice" if method else "", slice_labels=labels, **shared)]
        if method and maps is not None:
            panels.append(Panel(image, METHODS[method].title, saliency=maps, slice_labels=labels, **shared))
        key = opened.key(f"canvas.{index}.{counter}.{choices.index(window)}.{method}")
        drawn = canvas(panels, key=key, identity=identity, window=start_window, slice_index=current, report_slice=True)
        current = min(drawn.slice_index, len(analyses) - 1)
    else:
        key = opened.key(f"slice.{index}.{counter}")
        current = st.slider("Slice", 1, len(analyses), current + 1, key=key) - 1
        panels = [Panel(image[current], labels[current], **shared)]
        if method and maps is not None:
            panels.append(Panel(image[current], METHODS[method].title, saliency=maps[current], **shared))
        canvas(panels, key="series.canvas.one", identity=identity, window=start_window)
    opened.views[index] = (counter, current)
    if maps is not None:
        text = "The map shows where the network finds evidence for its answer, and ends where its crop does. "
        text += "It outlines no lesion."
        if analyses[current].decision == "rejected":
            text += " This slice was rejected and has none."
        elif not maps[current].any():
            text += " In this slice the method finds none: the map is empty. Another method may find some."
        st.caption(text)
    return current


def analyses_peak(analyses: Sequence[Analysis]) -> int:
    """Slice to show first: where the series' strongest run peaks, else the middle."""
    runs = answer_series(analyses).runs
    return runs[0].peak if runs else len(analyses) // 2


def _stack(series: Series, window: Window) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Values for the browser with the starting window; grey values where the window is not a plain linear one."""
    linear = window.lut is None and window.function in ("LINEAR", "LINEAR_EXACT")
    kinds = {f.values.dtype.name for f in series.frames}
    if not linear or any(f.windows != series.frames[0].windows and window.source == "file" for f in series.frames):
        own = [f.windows[0] if window.source == "file" and f.windows else window for f in series.frames]
        if window.source == "file" and window in series.frames[0].windows:
            position = series.frames[0].windows.index(window)
            own = [f.windows[position] if position < len(f.windows) else window for f in series.frames]
        return np.stack([f.shown(w) for f, w in zip(series.frames, own, strict=True)]), None
    values = np.stack([f.values for f in series.frames])
    if kinds <= {"uint8", "int8"}:
        values = values.astype(np.int16)
    centre, width = window.center, window.width
    if window.function == "LINEAR" and width > 1:  # PS3.3 C.11.2.1.2: centre - 0.5, width - 1
        centre, width = centre - 0.5, width - 1
    if series.frames[0].inverted:
        values, centre = -values.astype(np.float32), -centre
    if values.dtype.name not in ("int16", "uint16", "float32"):
        values = values.astype(np.float32)
    return values, (centre, width)


def _window_title(window: Window) -> str:
    if window.source == "file" and window.lut is None:
        return f"{window.name}: {window.center:g} / {window.width:g}"
    return window.name.removeprefix("whole series, ")  # no room for it on a narrow screen


def _maps(opened: _Opened, index: int, method: str) -> np.ndarray | None:
    """Maps of all slices that were not rejected, (n, height, width) in [0, 1]."""
    slot, analyses = (index, method), opened.answers[index]
    if opened.maps is None or opened.maps[0] != slot:
        chosen = [i for i, a in enumerate(analyses) if a.decision != "rejected"]
        maps = np.zeros((len(analyses), *analyses[0].slice.pixels.shape), np.float32)
        try:
            with st.spinner("Drawing the maps …"):
                for start in range(0, len(chosen), _BATCH):
                    part = chosen[start : start + _BATCH]
                    found = explain(
                        state.classifier(),
                        [analyses[i] for i in part],
                        (method,),
                        directory=state.settings().model.directory,
                    )
                    for i, explanations in zip(part, found, strict=True):
                        maps[i] = explanations[0].saliency_map
        except BrainMRIError as error:
            st.warning(plain(str(error)), icon=":material/warning:")
            return None
        opened.maps = (slot, maps)
    return opened.maps[1]


def _show_series_answer(answer: SeriesAnswer, analyses: Sequence[Analysis]) -> None:
    title = class_title(answer.label) if answer.label else "No answer"
    st.markdown(f"##### Series answer: {title}")
    st.write(answer.text)
    counts = Counter(a.decision for a in analyses)
    of = counted(len(analyses), "slice")
    st.caption(f"{counts['rejected']:,} of {of} rejected, {counts['undecided']:,} undecided")
    research_notice()


def _chart(opened: _Opened, index: int) -> int | None:
    """Probabilities along the slices with the decision below; a click chooses a slice."""
    analyses = opened.answers[index]
    rows = [
        # What was rejected has no probabilities: the line breaks.
        {"slice": i + 1, "class": class_title(name), "probability": None if _rejected(a) else a.probabilities[name]}
        for i, a in enumerate(analyses)
        for name in CLASS_NAMES
    ]
    titles = [class_title(name) for name in CLASS_NAMES]
    colours = alt.Scale(domain=titles, range=[CLASS_COLOURS[name] for name in CLASS_NAMES])
    extent = alt.Scale(domain=[0.5, len(analyses) + 0.5], nice=False)
    x = alt.X("slice:Q", title="Slice", scale=extent, axis=alt.Axis(tickMinStep=1, format="d", grid=False))
    pick = alt.selection_point(name="pick", fields=["slice"], on="click", empty=False)
    lines = (
        alt.Chart(pd.DataFrame(rows))
        .mark_line(point=alt.OverlayMarkDef(size=28))
        .encode(
            x=x,
            y=alt.Y("probability:Q", title="Probability", scale=alt.Scale(domain=[-0.12, 1]), axis=_PERCENT),
            color=alt.Color("class:N", scale=colours, legend=None),
            shape=alt.Shape("class:N", title=None, sort=titles, legend=None),
        )
    )
    strip_rows = [
        {"left": i + 0.5, "right": i + 1.5, "decision": _decision(a), "colour": _decision_colour(a), "slice": i + 1}
        | {class_title(name): "–" if _rejected(a) else f"{a.probabilities[name]:.1%}" for name in CLASS_NAMES}
        for i, a in enumerate(analyses)
    ]
    columns = alt.Chart(pd.DataFrame(strip_rows)).encode(
        x=alt.X("left:Q", scale=extent, title="Slice"), x2=alt.X2("right:Q")
    )
    strip = columns.mark_rect().encode(y=alt.datum(-0.11), y2=alt.datum(-0.04), color=alt.Color("colour:N", scale=None))
    # What takes the click and says what is there: a column a slice. Nearest points do not work on lines.
    targets = (
        columns.mark_rect(fill="white", fillOpacity=0.001, cursor="pointer")
        .encode(
            y=alt.datum(-0.12),
            y2=alt.datum(1),
            tooltip=["slice:Q", "decision:N", *(f"{title}:N" for title in titles)],
        )
        .add_params(pick)
    )
    counter, current = opened.view(index)
    rule = alt.Chart(pd.DataFrame({"slice": [current + 1]})).mark_rule(strokeDash=[4, 3], size=1.5, color="#8a949a")
    chart = alt.layer(lines, strip, rule.encode(x=x), targets).resolve_scale(color="independent").properties(height=310)
    key = opened.key(f"chart.{index}.{counter}")
    legend(
        {class_title(name): CLASS_COLOURS[name] for name in CLASS_NAMES}
        | {DECISION_TITLES[decision]: colour for decision, colour in DECISION_COLOURS.items()}
    )
    event = st.altair_chart(chart, on_select="rerun", selection_mode="pick", key=key)
    st.caption("Strip: each slice's decision. A rejected slice has no probabilities. Click a slice to see it.")
    points = event.selection.get("pick") or [] if event else []
    return int(points[0]["slice"]) - 1 if points and "slice" in points[0] else None


_PERCENT = alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1])


def _rejected(analysis: Analysis) -> bool:
    return analysis.decision == "rejected"


def _decision(analysis: Analysis) -> str:
    return answer_title(analysis.label, analysis.decision)


def _decision_colour(analysis: Analysis) -> str:
    return CLASS_COLOURS[analysis.label] if analysis.label else DECISION_COLOURS[analysis.decision]


def _driving_slices(answer: SeriesAnswer, index: int) -> int | None:
    """Buttons to the slices that drive the answer."""
    if not answer.runs:
        return None
    st.caption("Slices that drive the answer" if answer.label else "Slices that say tumour")
    jump = None
    with st.container(horizontal=True):
        for number, run in enumerate(answer.runs[:4]):
            where = f"{run.first + 1}" if run.length == 1 else f"{run.first + 1}–{run.last + 1}"
            label = f"{class_title(run.label)} {where} · {run.probability:.0%}"
            if st.button(label, key=f"series.run.{index}.{number}", icon=":material/my_location:"):
                jump = run.peak
    return jump


def _keep_section(
    opened: _Opened, series: Series, analyses: list[Analysis], index: int, current: int, user: User
) -> None:
    kept = opened.kept.get(index)
    if user.id is None:
        st.info("Guest session: nothing is stored. Sign in to keep a series and report on it.", icon=":material/lock:")
        return
    if kept is None:
        st.write("Nothing is stored yet. Keeping stores the de-identified files, the answers and a patient's entry.")
        if st.button("Keep this series", type="primary", icon=":material/save:", key="series.keep"):
            try:
                opened.kept[index] = _keep(series, analyses, user)
            except BrainMRIError as error:
                st.error(plain(str(error)), icon=":material/error:")
                return
            st.rerun()
        return
    st.success(f"Kept as cases {kept[0]} to {kept[-1]}." if len(kept) > 1 else f"Kept as case {kept[0]}.")
    with st.container(horizontal=True):
        if st.button(
            f"Report on slice {current + 1}", type="primary", icon=":material/description:", key="series.report"
        ):
            st.switch_page("pages/clinical/reports.py", query_params={"case": str(kept[current])})
        filed = patients.patient_of(state.database(), user, kept[current])
        if filed is not None:
            link("pages/clinical/patients.py", f"Patient {filed[0].pseudonym}", patient=str(filed[0].id))


def _keep(series: Series, analyses: list[Analysis], user: User) -> list[int]:
    """Store all slices under their patient, or nothing."""
    bar = st.progress(0.0, "Keeping …")

    def report(done: int, total: int) -> None:
        bar.progress(done / total, f"Keeping slice {done} of {total}")

    records = patients.keep_series(state.database(), state.settings(), user, series, analyses, report=report)
    bar.empty()
    return [record.id for record in records]


def _show_lists(reading: Reading) -> None:
    if reading.set_aside:
        n = len(reading.set_aside)
        with st.expander(f"Set aside ({n:,})", icon=":material/inbox:"):
            rows = pd.DataFrame([{"File": a.name, "Reason": a.reason} for a in reading.set_aside])
            st.dataframe(rows, hide_index=True, width="stretch")
    if reading.removed:
        with st.expander("What was taken out to de-identify", icon=":material/shield_person:"):
            st.caption("DICOM PS3.15 Basic Profile. UIDs and the patient id became keyed codes; values are not shown.")
            rows = pd.DataFrame(reading.removed).rename(columns=str.title)
            st.dataframe(rows, hide_index=True, width="stretch")
