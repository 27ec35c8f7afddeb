"""What the Predict page does: answer each chosen image once, keep it, show one answer or a table of many."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from brainmri.errors import BrainMRIError, BusyError, StorageError
from brainmri.inference import UNCALIBRATED
from brainmri.look import DECISION_TITLES
from brainmri.model import list_models
from brainmri.pipeline import analyse
from brainmri.storage import save_record
from brainmri.types import CLASS_NAMES, CLASS_TITLES, Analysis
from brainmri.ui import state
from brainmri.ui.inputs import Source, show_set_aside
from brainmri.ui.results import (
    PREVIEW_SIDE,
    SMALL_PREVIEW_SIDE,
    Answer,
    result_table,
    show_answer,
)
from brainmri.ui.theme import class_title, plain, research_notice, rows_key

if TYPE_CHECKING:
    import pandas as pd

    from brainmri.accounts import User
    from brainmri.dicom import SetAside
    from brainmri.inference import Classifier
    from brainmri.ui.inputs import Decoded

    _Outcome = tuple[list[Answer], Sequence[SetAside]] | str

_BATCH = 16
_MANY = 20
_FEW = 5
_NO_MAPS = np.zeros((0,), np.float32)
_ANSWERS = "predict.answers"


def choose_model(user: User) -> str:
    """Let a signed-in user choose among the models in ``models/``; everyone else gets the configured one."""
    settings = state.settings().model
    models = list_models(settings.directory)
    if user.id is None or len(models) < 2:
        return settings.id
    index = models.index(settings.id) if settings.id in models else 0
    return st.selectbox("Model", models, index=index, key="predict.model", persist_state="session", width=360)


def empty_state() -> None:
    """What to do when nothing is chosen."""
    st.info(
        "Drop one image, many images or a folder above, or press a sample. The answer appears here: the class, "
        "the four probabilities and what the network saw.",
        icon=":material/arrow_upward:",
    )
    if failure := state.classifier_failure():
        st.error(f"The model does not load, so nothing can be answered. {plain(failure)}", icon=":material/error:")
    elif not state.classifier_ready():
        st.caption(":material/hourglass_top: The model is still loading in the background; you can choose already.")
    research_notice()


def engine_notice(model_id: str) -> None:
    """Say so where a slower engine answers than the one configured, or a model that was not calibrated."""
    if not state.classifier_ready(model_id):
        return
    classifier = state.classifier(model_id)
    if classifier.fallback_reason:
        st.warning(plain(classifier.fallback_reason), icon=":material/speed:")
    if not classifier.rule.weights_sha256:
        st.warning(plain(f"{model_id}: {UNCALIBRATED}"), icon=":material/straighten:")


def answer_all(sources: Sequence[Source], model_id: str, user: User) -> tuple[list[Answer], list[tuple[str, str]]]:
    """Answer the chosen images, each once a session and model, and keep the answers of a signed-in user.

    What a zip holds beside its series is listed on the page.

    Returns
    -------
    answers : list of Answer
    errors : list of (name, one line)
        Of the files that could not be read, in a zip too.
    """
    limit = state.settings().uploads.max_files
    if len(sources) > limit:
        text = f"{len(sources)} files came, the limit is {limit} at once (uploads.max_files); choose fewer"
        return [], [(f"{len(sources)} files", text)]
    wanted = {(source.key, model_id) for source in sources}
    kept: dict[tuple[str, str], _Outcome] = {
        key: value for key, value in st.session_state.get(_ANSWERS, {}).items() if key in wanted
    }
    st.session_state[_ANSWERS] = kept
    todo = [source for source in sources if (source.key, model_id) not in kept]
    if todo:
        classifier = state.classifier(model_id)
        side = SMALL_PREVIEW_SIDE if len(sources) > _MANY else PREVIEW_SIDE
        start, bar = time.monotonic(), None
        for first in range(0, len(todo), _BATCH):
            group = todo[first : first + _BATCH]
            try:
                outcomes = _answer_group(classifier, group, user, side)
            except BusyError as error:  # what was answered before is kept, the rest is for the next run
                st.warning(plain(str(error)), icon=":material/hourglass_top:")
                st.button("Try again", icon=":material/refresh:")
                st.stop()
            for source, outcome in zip(group, outcomes, strict=True):
                kept[source.key, model_id] = outcome
            if bar is not None or (len(todo) > _BATCH and time.monotonic() - start > 0.5):
                done = first + len(group)
                left = (time.monotonic() - start) / done * (len(todo) - done)
                text = f"{done} of {len(todo)} files, about {left:.0f} s left"
                bar = bar or st.progress(0.0)
                bar.progress(done / len(todo), text)
        if bar is not None:
            bar.empty()
    answers: list[Answer] = []
    errors: list[tuple[str, str]] = []
    aside: list[SetAside] = []
    for source in sources:
        outcome = kept[source.key, model_id]
        if isinstance(outcome, str):
            errors.append((source.name, outcome))
            continue
        answers += outcome[0]
        for item in outcome[1]:
            if item.failed:
                errors.append((item.name, f"{item.name}: {item.reason}"))
            else:
                aside.append(item)
    show_set_aside(aside)
    return answers, errors


def _answer_group(classifier: Classifier, group: Sequence[Source], user: User, side: int) -> list[_Outcome]:
    """Decode a few files, answer all their slices in one pass, keep them. An error takes only its own file."""
    decoded: list[Decoded | str] = []
    for source in group:
        try:
            decoded.append(source.read())
        except BrainMRIError as error:
            decoded.append(str(error))
    slices = [s for item in decoded if not isinstance(item, str) for s in item[0]]
    small = SMALL_PREVIEW_SIDE if len(slices) > _MANY else side
    # Pass by pass, and at once down to what a page shows: a series of thousands would not fit otherwise.
    answered = [
        (Answer.from_analysis(analysis, side=small), replace(analysis, feature_maps=_NO_MAPS))
        for first in range(0, len(slices), _BATCH)
        for analysis in analyse(classifier, slices[first : first + _BATCH])
    ]
    remaining = iter(answered)
    outcomes: list[_Outcome] = []
    for source, item in zip(group, decoded, strict=True):
        if isinstance(item, str):
            outcomes.append(item)
            continue
        pairs = [next(remaining) for _ in item[0]]
        if user.id is None:
            answers = [answer for answer, _ in pairs]
        else:
            content = source.content()
            answers = [_keep(answer, analysis, user, content) for answer, analysis in pairs]
        outcomes.append((answers, item[1]))
    return outcomes


def _keep(answer: Answer, analysis: Analysis, user: User, content: bytes | None) -> Answer:
    """Keep a picture file as it came; of DICOM the de-identified file, or the original under ``keep_originals``."""
    mri_slice = analysis.slice
    if mri_slice.source_format == "DICOM" or (content and sha256(content).hexdigest() != mri_slice.sha256):
        content = None
    try:
        record = save_record(state.database(), state.settings(), user, analysis, content)
    except StorageError as error:
        return replace(answer, notes=(*answer.notes, f"Not stored: {error}"))
    return replace(answer, record_id=record.id)


def show_all(answers: Sequence[Answer], errors: Sequence[tuple[str, str]], sources: Sequence[Source]) -> None:
    """One answer in full, or a table of many with the chosen one in full below; one file's many have a slider, too."""
    if len(answers) + len(errors) == 1:
        for _, text in errors:
            st.error(plain(text), icon=":material/broken_image:")
        for answer in answers:
            show_answer(answer)
        return
    _summary(answers, errors)
    if not answers:
        return
    state.note_answers_seen(answer.image_sha256 for answer in answers)
    key, series = rows_key("predict.table", [source.key for source in sources]), len(sources) == 1
    event = st.dataframe(
        _screen_table(answers),
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        column_config=_COLUMNS,
        key=key,
    )
    st.download_button(
        "Download the table (CSV)",
        result_table(answers, errors).to_csv(index=False).encode(),
        "predictions.csv",
        "text/csv",
        icon=":material/download:",
        on_click="ignore",
    )
    chosen = event.selection.rows[0] if event.selection.rows else 0
    if series and len(answers) > 1:
        chosen = st.slider("Slice", 1, len(answers), chosen + 1, key=f"{key}.slice.{chosen}") - 1
    st.subheader(f"Image {chosen + 1:,} of {len(answers):,}", anchor=False)
    if not event.selection.rows and not series:
        st.caption("The first of them; choose another row above.")
    show_answer(answers[chosen])


def _summary(answers: Sequence[Answer], errors: Sequence[tuple[str, str]]) -> None:
    """How many of each answer, and what could not be read with the reason."""
    counts = Counter(answer.title for answer in answers)
    counts["Unreadable"] = len(errors)
    titles = (*CLASS_TITLES.values(), *DECISION_TITLES.values(), "Unreadable")
    with st.container(horizontal=True, gap="small"):
        for title in titles:
            if counts[title]:
                st.metric(title, f"{counts[title]:,}", border=True, width="content")
    if errors:
        with st.expander(f"Unreadable ({len(errors):,})", expanded=len(errors) <= _FEW, icon=":material/broken_image:"):
            st.markdown("\n".join(f"- {plain(text)}" for _, text in errors))


def _screen_table(answers: Sequence[Answer]) -> pd.DataFrame:
    import pandas as pd

    rows: list[dict] = []
    for answer in answers:
        shown = answer.decision != "rejected"
        percent = {c: 100 * answer.probabilities[c] if shown else None for c in CLASS_NAMES}
        rows.append({"name": answer.name, "answer": answer.title, **percent, "case": answer.record_id})
    return pd.DataFrame(rows).dropna(axis="columns", how="all")


_COLUMNS = {
    "name": st.column_config.TextColumn("Name"),
    "answer": st.column_config.TextColumn("Answer", width=130),
    **{
        name: st.column_config.ProgressColumn(class_title(name), format="%.1f %%", max_value=100, width=105)
        for name in CLASS_NAMES
    },
    "case": st.column_config.NumberColumn("Case", format="%d", width="small"),
}
