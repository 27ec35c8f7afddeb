"""What the Heatmaps page does: choose a case, read it, lay maps side by side, export them, say whether they fit."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st

from brainmri import readings, synthetic
from brainmri.errors import BrainMRIError, StorageError
from brainmri.explain import CONVOLUTIONS, METHODS, explain
from brainmri.explain.brain import brain_mask
from brainmri.explain.figures import MOST_ON_A_PAGE, as_bytes, as_npz, explanation_page, layer_note, rejection
from brainmri.explain.study import (
    FAITHFULNESS_TITLES,
    LOCALISATION_TITLES,
    PEAK_SUBSETS,
    SIZES,
    counts,
    study_line,
    title_of,
    with_interval,
)
from brainmri.model import FEATURE_LAYER, read_card
from brainmri.pipeline import analyse, read_slices
from brainmri.storage import open_record, save_record, utc_now
from brainmri.types import CLASS_NAMES, CLASS_TITLES, Analysis, Explanation, MRISlice
from brainmri.ui import state
from brainmri.ui.canvas import Panel, canvas
from brainmri.ui.inputs import clear_sources, pick_slice
from brainmri.ui.results import show_name, undecided_reason
from brainmri.ui.theme import answer_title, class_title, plain, research_notice

if TYPE_CHECKING:
    from brainmri.accounts import User
    from brainmri.inference import Classifier
    from brainmri.storage import Record

MOST_MAPS = MOST_ON_A_PAGE
_DEFAULT_METHODS = ["grad-cam", "hires-cam"]
_KEPT_BYTES = 256 << 20
"""Of maps, in one session: a map of 50 megapixels has 200 MB. Those on the page stay whatever they take."""
_MASKED_CHOICES = 60


@dataclass(frozen=True)
class Case:
    """What is on the page: the slice, the outline where it is known, and its record where it is from History."""

    mri_slice: MRISlice
    mask: np.ndarray | None
    record: Record | None

    @property
    def key(self) -> str:
        """Of session state; also tells the slices of one file apart."""
        digest = hashlib.sha256(self.mri_slice.pixels.tobytes()).hexdigest()[:16]
        return f"{self.mri_slice.sha256[:16]}-{digest}"


# --- the case -------------------------------------------------------------------------------------------------------


def show_maps(user: User) -> None:
    """The tab with the maps."""
    case = _choose_case(user)
    if case is None:
        st.info(
            "Drop an image, press a sample or choose a case above. The maps appear here: the image and up to four "
            "methods or classes side by side.",
            icon=":material/arrow_upward:",
        )
        research_notice()
        return
    st.divider()
    blind = False
    if user.id is None:
        st.caption(":material/lock: Reading mode keeps verdicts and needs an account; as a guest nothing is stored.")
    else:
        blind = st.toggle(
            "Reading mode: my verdict first",
            key="heatmaps.reading",
            persist_state="session",
            help="The model's answer and maps stay hidden until you have said what you see. Your verdicts are kept "
            "with the case, with times.",
        )
    analysis = _analyse(case)
    given = st.session_state.get(f"heatmaps.verdict.{case.key}")
    if blind and given is None:
        _read_blind(case, analysis, user)
        return
    state.note_answers_seen([case.mri_slice.sha256])
    if not blind:  # names may hold the class
        show_name(case.mri_slice.name, case.mri_slice.notes)
    _show_answer(analysis, given)
    if analysis.decision == "rejected" and not _confirm_rejected(case):
        canvas([_image_panel(case, analysis)], key=f"heatmaps.image.{case.key}", max_height=420)
        return
    explanations = _explanations(case, analysis)
    if explanations is None:
        return
    _draw(case, analysis, explanations)
    _export(case, analysis, explanations)
    _meanings(explanations)
    if user.id is not None:
        _judge_map(case, analysis, explanations, user)
    research_notice()


def _choose_case(user: User) -> Case | None:
    slices = pick_slice("heatmaps", blind=bool(st.session_state.get("heatmaps.reading")))
    masked = _pick_masked()
    sources = st.session_state.get("heatmaps.sources", [])
    if masked is not None:
        return masked
    if not slices:
        return None
    index = 0
    if len(slices) > 1:
        index = st.slider("Slice", 1, len(slices), (len(slices) + 1) // 2, key="heatmaps.slice") - 1
    mri_slice = slices[index]
    key = sources[0].key if sources else ""
    record = None
    if key.startswith("record-"):
        with suppress(StorageError):  # deleted meanwhile: a verdict makes a new case
            record = open_record(state.database(), user, int(key.removeprefix("record-")))
    mask = _known_mask(mri_slice)
    if mask is not None and mask.shape != mri_slice.pixels.shape:
        mask = None
    return Case(mri_slice, mask, record)


def _pick_masked() -> Case | None:
    """A test image with an expert's outline, where the data set is on this machine."""
    choices = _masked_images(str(state.settings().data.root))
    if not choices:
        return None
    reading = bool(st.session_state.get("heatmaps.reading"))
    if reading:  # file names and their order give the class away
        listed = sorted(choices, key=lambda p: hashlib.sha256(p.encode()).hexdigest())
        titles = {path: f"Image {number}" for number, path in enumerate(listed, start=1)}
    else:
        titles = {path: f"{path.rsplit('/', 1)[-1]} · {class_title(path.split('/')[-2])}" for path in choices}
    widget = f"heatmaps.masked.{'reading' if reading else 'named'}"  # chosen by its name it is not read blind
    if st.session_state.get("heatmaps.sources"):
        st.session_state[widget] = None  # the last act wins: something was chosen above
    path = st.selectbox(
        "Or a test image with an expert's outline",
        list(titles),
        index=None,
        placeholder=f"{len(choices)} of the clean test split" + (", without their names" if reading else ""),
        format_func=titles.__getitem__,
        key=widget,
        on_change=clear_sources,
        args=("heatmaps",),
        persist_state="session",
        width=480,
    )
    if path is None:
        return None
    file, mask_file = choices[path]
    return _masked_case(file, mask_file)


@st.cache_data(show_spinner=False, max_entries=4)
def _masked_images(root: str) -> dict[str, tuple[str, str]]:
    from brainmri.data import SPLITS_DIRECTORY, read_manifest

    manifest = SPLITS_DIRECTORY / "brain_tumor_mri.csv"
    if not manifest.is_file() or not Path(root).is_dir():
        return {}
    table = read_manifest(manifest, root, "clean_split")
    table = table[(table["split"] == "test") & (table["mask"] != "")]
    table = table.assign(key=[hashlib.sha256(p.encode()).hexdigest() for p in table["path"]]).sort_values("key")
    found = {
        row.path: (row.file, str(Path(root) / row.mask))
        for row in table.groupby("label").head(_MASKED_CHOICES // 3).itertuples()
        if Path(row.file).is_file() and (Path(root) / row.mask).is_file()
    }
    return dict(sorted(found.items(), key=lambda item: (item[0].split("/")[-2], item[0])))


@st.cache_resource(show_spinner=False, max_entries=8)
def _masked_case(file: str, mask_file: str) -> Case:
    from brainmri.data import read_mask

    mri_slice = read_slices(Path(file).read_bytes(), Path(file).name, state.settings())[0]
    return Case(mri_slice, read_mask(mask_file), None)


def _known_mask(mri_slice: MRISlice) -> np.ndarray | None:
    """The painted lesion of a synthetic sample, or the expert's outline of a data set image, by the file's sha256."""
    for label in CLASS_NAMES:
        if synthetic.sample(label).slice.sha256 == mri_slice.sha256:
            return synthetic.sample(label).mask
    path = _masks_by_hash(str(state.settings().data.root)).get(mri_slice.sha256)
    if path is None or not Path(path).is_file():
        return None
    from brainmri.data import read_mask

    return read_mask(path)


@cache
def _masks_by_hash(root: str) -> dict[str, str]:
    from brainmri.data import SPLITS_DIRECTORY, read_manifest

    manifest = SPLITS_DIRECTORY / "brain_tumor_mri.csv"
    if not manifest.is_file():
        return {}
    table = read_manifest(manifest, root, "clean_split")
    return {row.sha256: str(Path(root) / row.mask) for row in table[table["mask"] != ""].itertuples() if row.sha256}


def _classifier(case: Case) -> Classifier:
    """The model that answered the case then, where it is still here; else the configured one, and that is said."""
    record = case.record
    if record is None:
        return state.classifier()
    reason = "cannot be loaded"
    with suppress(BrainMRIError):
        own = state.classifier(record.model_id)
        if own.card.weights_sha256 == record.weights_sha256:
            return own
        reason = "was trained anew since"
    configured = state.classifier()
    st.info(
        f"{plain(record.model_id)}, which answered case {record.id}, {reason}: {plain(configured.card.id)} answers "
        "here, and verdicts are kept with a new case.",
        icon=":material/info:",
    )
    return configured


def _analyse(case: Case) -> Analysis:
    classifier = _classifier(case)
    slot = (case.key, classifier.card.id, classifier.card.weights_sha256)
    cached = st.session_state.get("heatmaps.analysis")
    if cached is None or cached[0] != slot:
        cached = (slot, analyse(classifier, [case.mri_slice])[0])
        st.session_state["heatmaps.analysis"] = cached
        st.session_state[f"heatmaps.shown.{case.key}"] = utc_now()
    return cached[1]


def _show_answer(analysis: Analysis, given: str | None) -> None:
    first = max(analysis.probabilities, key=analysis.probabilities.__getitem__)
    with st.container(horizontal=True, gap="medium", vertical_alignment="center"):
        shown = answer_title(analysis.label, analysis.decision)
        st.metric("The model says", shown, border=True, width="content")
        if given is not None:
            st.metric("You said", readings.CLASS_VERDICTS[given], border=True, width="content")
        if analysis.decision != "rejected":
            said = " · ".join(f"{CLASS_TITLES[n]} **{p:.1%}**" for n, p in analysis.probabilities.items())
            st.markdown(said, width="content")
    if analysis.decision == "undecided":
        st.caption(
            f"{undecided_reason(analysis.prediction_set)} The largest probability is that of "
            f"{class_title(first).lower()}."
        )


def _confirm_rejected(case: Case) -> bool:
    slot = f"heatmaps.rejected.{case.key}"
    if not st.session_state.get(slot):
        st.warning(
            "**Rejected**  \nNot recognised as a brain MRI slice. A map of a class would explain a score that means "
            "nothing here.",
            icon=":material/block:",
        )
        if not st.button("Explain it all the same", key=f"{slot}.button", icon=":material/warning:"):
            return False
        st.session_state[slot] = True
    st.warning(
        "**Rejected**  \nNot recognised as a brain MRI slice: the maps below explain a score that means nothing here."
    )
    return True


# --- maps -----------------------------------------------------------------------------------------------------------


def _explanations(case: Case, analysis: Analysis) -> list[Explanation] | None:
    predicted = CLASS_NAMES[int(analysis.logits.argmax())]
    methods = st.multiselect(
        "Methods",
        list(METHODS),
        default=_DEFAULT_METHODS,
        format_func=lambda name: METHODS[name].title,
        key="heatmaps.methods",
        persist_state="session",
        max_selections=MOST_MAPS,
        help="Up to four. What each means and where it misleads stands below the maps.",
    )
    left, right = st.columns([5, 3])
    classes = left.multiselect(
        "Classes",
        list(CLASS_NAMES),
        default=[predicted],
        format_func=lambda name: CLASS_TITLES[name] + (" (predicted)" if name == predicted else ""),
        key=f"heatmaps.classes.{case.key}",
        help="Any class: choose another one to see what would speak for it.",
    )
    layer = right.selectbox(
        "Layer (CAM methods)",
        CONVOLUTIONS[::-1],
        key="heatmaps.layer",
        persist_state="session",
        help="Later layers mean more, earlier ones are finer. Methods that explain pixels take no layer.",
    )
    if not methods or not classes:
        st.info("Choose at least one method and one class.", icon=":material/arrow_upward:")
        return None
    wanted = list(itertools.product(methods, classes))
    if len(wanted) > MOST_MAPS:
        st.caption(f"{len(wanted)} maps are chosen; the first {MOST_MAPS} are shown. Take fewer methods or classes.")
    result = []
    for method, target in wanted[:MOST_MAPS]:
        try:
            result.append(_explanation(case, analysis, method, target, layer or FEATURE_LAYER))
        except BrainMRIError as error:
            st.error(plain(str(error)), icon=":material/error:")
    return result or None


def _explanation(case: Case, analysis: Analysis, method: str, target: str, layer: str) -> Explanation:
    chosen = None if METHODS[method].explains_pixels else layer
    slot = (case.key, analysis.model_id, analysis.weights_sha256, method, target, chosen)
    kept: dict = st.session_state.setdefault("heatmaps.kept", {})
    if slot not in kept:
        with st.spinner(f"{METHODS[method].title} for {class_title(target).lower()} …"):
            kept[slot] = explain(
                state.classifier(analysis.model_id),
                [analysis],
                [method],
                [target],
                layer_name=chosen,
                allow_rejected=bool(st.session_state.get(f"heatmaps.rejected.{case.key}")),
                directory=state.settings().model.directory,
            )[0][0]
    kept[slot] = kept.pop(slot)  # the newest last
    while len(kept) > MOST_MAPS and sum(e.saliency_map.nbytes for e in kept.values()) > _KEPT_BYTES:
        del kept[next(iter(kept))]
    return kept[slot]


def _image_panel(case: Case, analysis: Analysis, *, title: str = "Image") -> Panel:
    mri_slice = case.mri_slice
    return Panel(
        mri_slice.pixels,
        title,
        mask=case.mask,
        spacing_mm=mri_slice.spacing_mm,
        orientation=mri_slice.orientation,
        badge="Rejected: not a brain MRI" if analysis.decision == "rejected" else "",
    )


def _draw(case: Case, analysis: Analysis, explanations: Sequence[Explanation]) -> None:
    brain = _brain(case.key, case.mri_slice.pixels)
    crop = analysis.transform
    image = replace(_image_panel(case, analysis), frame=(crop.top, crop.left, *crop.shape))
    panels = [image]
    for e in explanations:
        panels.append(
            Panel(
                image.image,
                f"{METHODS[e.method].title} · {class_title(e.target_class)}{layer_note(e)}",
                saliency=e.saliency_map,
                mask=image.mask,
                brain=brain,
                spacing_mm=image.spacing_mm,
                orientation=image.orientation,
                frame=image.frame,
                peak=e.peak,
                caption=_peak_text(case, e),
                badge=image.badge,
                units=METHODS[e.method].units,
            )
        )
    canvas(panels, key="heatmaps.canvas", identity=case.key)
    st.caption("The frame is the network's crop: it saw nothing outside, and maps end there.")


def _peak_text(case: Case, e: Explanation) -> str:
    if e.peak is None:
        return "No positive evidence: the map is zero everywhere."
    where = f"Peak at row {e.peak[0]}, column {e.peak[1]}"
    if case.mask is None or not case.mask.any():
        return where
    inside = float(e.saliency_map[case.mask].sum() / e.saliency_map.sum())
    return f"{where}, {'inside' if case.mask[e.peak] else 'outside'} the outline; {inside:.0%} of the map lies inside."


@st.cache_data(show_spinner=False, max_entries=32)
def _brain(key: str, _pixels: np.ndarray) -> np.ndarray:
    return brain_mask(_pixels)


def _export(case: Case, analysis: Analysis, explanations: Sequence[Explanation]) -> None:
    stem = case.mri_slice.name.rsplit(".", 1)[0] or "slice"
    mask = case.mask

    def picture() -> bytes:
        return as_bytes(explanation_page(analysis, explanations, mask=mask), "png", dpi=200)

    def page() -> bytes:
        return as_bytes(explanation_page(analysis, explanations, mask=mask), "pdf")

    def arrays() -> bytes:
        return as_npz(analysis, explanations)

    with st.container(horizontal=True):
        for title, make, suffix, mime in (
            ("All maps (PNG)", picture, "png", "image/png"),
            ("NPZ (arrays)", arrays, "npz", "application/octet-stream"),
            ("One-page figure (PDF)", page, "pdf", "application/pdf"),
        ):
            st.download_button(
                title,
                make,
                f"{stem}.heatmaps.{suffix}",
                mime,
                icon=":material/download:",
                on_click="ignore",
                key=f"heatmaps.export.{suffix}",
            )
    if warning := rejection(analysis):
        st.caption(f":material/block: {warning} The exports say so, too.")


def _meanings(explanations: Sequence[Explanation]) -> None:
    with st.expander("What these maps mean, and where they mislead", icon=":material/help:"):
        for name in dict.fromkeys(e.method for e in explanations):
            method = METHODS[name]
            st.markdown(f"**{method.title}.** {method.meaning} {method.misleads}  \n:small[{method.reference}]")
        st.markdown(
            "All maps explain a score before softmax; colours run from 0 (no evidence, never drawn) to 1. "
            "**Brain only** hides what a rough estimate takes for skull and air; it is for looking, not for measuring."
        )


# --- reading mode ---------------------------------------------------------------------------------------------------


def _read_blind(case: Case, analysis: Analysis, user: User) -> None:
    """Image only, and the reader's verdict. Nothing that the model said is on the page."""
    seen = _has_seen_answer(case, user)
    if seen:
        st.caption(
            ":material/visibility: The model's answer to this image has been shown to you: your verdict is kept as one "
            "given with the answer known."
        )
    blank = Panel(
        case.mri_slice.pixels,
        "Image",
        spacing_mm=case.mri_slice.spacing_mm,
        orientation=case.mri_slice.orientation,
    )
    left, right = st.columns([3, 2], gap="large")
    with left:
        canvas([blank], key=f"heatmaps.blind.{case.key}")
    with right, st.form(f"heatmaps.class.{case.key}"):
        verdict = st.radio(
            "What do you see?",
            list(readings.CLASS_VERDICTS),
            index=None,
            format_func=readings.CLASS_VERDICTS.__getitem__,
        )
        note = st.text_area("Note", max_chars=readings.NOTE_LENGTH, height=100)
        if st.form_submit_button("Keep my verdict and show the model's", type="primary", icon=":material/visibility:"):
            if verdict is None:
                st.warning("Choose one first; “Cannot tell” counts, too.", icon=":material/arrow_upward:")
                return
            shown_at: datetime = st.session_state[f"heatmaps.shown.{case.key}"]
            record_id = _record_of(case, analysis, user)
            readings.add_reading(
                state.database(), user, record_id, "class", verdict, shown_at=shown_at, blind=not seen, note=note
            )
            st.session_state[f"heatmaps.verdict.{case.key}"] = verdict
            st.session_state[f"heatmaps.revealed.{case.key}"] = utc_now()
            st.rerun()


def _has_seen_answer(case: Case, user: User) -> bool:
    """Whether the answer was on any page in this session, or on this one after an earlier verdict on the case."""
    if state.answer_was_seen(case.mri_slice.sha256):
        return True
    return case.record is not None and bool(readings.readings_of(state.database(), user, case.record.id, own=True))


def _judge_map(case: Case, analysis: Analysis, explanations: Sequence[Explanation], user: User) -> None:
    st.subheader("Does the map fit?", anchor=False)
    revealed = st.session_state.setdefault(f"heatmaps.revealed.{case.key}", utc_now())
    with st.form(f"heatmaps.map.{case.key}", clear_on_submit=True, border=False):
        verdict = st.radio(
            "Does what the maps show fit what you see?",
            list(readings.MAP_VERDICTS),
            index=None,
            format_func=readings.MAP_VERDICTS.__getitem__,
            horizontal=True,
        )
        note = st.text_input("Note", max_chars=readings.NOTE_LENGTH)
        if st.form_submit_button("Keep my verdict on the map", icon=":material/gavel:"):
            if verdict is None:
                st.warning("Choose one first.", icon=":material/arrow_upward:")
            else:
                record_id = _record_of(case, analysis, user)
                maps = [f"{e.method} for {e.target_class} at {e.layer_name}" for e in explanations]
                readings.add_reading(
                    state.database(), user, record_id, "map", verdict, shown_at=revealed, note=note, maps=maps
                )
                st.toast(f"Kept with case {record_id}.", icon=":material/check:")
    st.download_button(
        "My verdicts in reading mode (CSV)",
        lambda: readings.export_readings(state.database(), user).encode(),
        "readings.csv",
        "text/csv",
        icon=":material/table:",
        on_click="ignore",
        key="heatmaps.readings",
    )


def _record_of(case: Case, analysis: Analysis, user: User) -> int:
    """The case in History with this answer, which a verdict belongs to; where there is none, the first makes one."""
    record, model = case.record, (analysis.model_id, analysis.weights_sha256)
    if record is not None and (record.model_id, record.weights_sha256) == model:
        return record.id
    slot = f"heatmaps.record.{case.key}.{'.'.join(model)}"
    if slot not in st.session_state:
        st.session_state[slot] = save_record(state.database(), state.settings(), user, analysis, None).id
    return st.session_state[slot]


# --- trust ----------------------------------------------------------------------------------------------------------


def show_trust() -> None:
    """The tab with what was measured about the maps of the shipped model."""
    model = state.settings().model
    path = Path(model.directory) / f"{model.id}.explanation.json"
    if not path.is_file():
        st.info(
            "Nothing has been measured for this model yet. `brainmri explain-eval` compares every method with expert "
            "masks, deletes and inserts what it shows, and randomises the network's weights.",
            icon=":material/straighten:",
        )
        return
    result = json.loads(path.read_text("utf-8"))
    plan = result["plan"]
    if result["weights_sha256"] != read_card(model.id, model.directory).weights_sha256:
        st.warning("Measured with other weights than those that answer now: run `brainmri explain-eval` again.")
    if plan["limit"] is not None:
        st.warning(f"A quick run on {result['localisation']['n']} images, not the whole test split.")
    st.subheader("Does it point at the tumour?", anchor=False)
    right = result["peak_in_mask"][0]["subsets"]["right"]
    if right["n"]:
        st.markdown(
            f"Where the class is right, Grad-CAM's peak lies in or beside the tumour in **{right['rate']:.0%}** of "
            f"{right['n']} images; the middle of the head would in {right['baseline_centre']:.0%}."
        )
    st.dataframe(_peak_frame(result["peak_in_mask"]), hide_index=True)
    ids = [network["model_id"] for network in result["peak_in_mask"]]
    networks = (
        " n is of the networks in the order of their columns: each is right about other images. Only "
        f"{plain(model.id)} answers here."
    )
    if "fine-tuned-without-masks" in ids:
        networks += (
            " fine-tuned-without-masks was held to no outline: outlines decided only where its views were painted. It "
            "was trained for six epochs of its twin's eighteen, so part of the difference is training."
        )
    st.caption(
        "Share of images whose Grad-CAM peak, for the predicted class, lies in the expert mask or within one cell of "
        "the 8 x 8 grid around it; in brackets the 95 % interval." + (networks if len(ids) > 1 else "")
    )
    subsets = result["localisation"]["subsets"]
    shown = [name for name in subsets if subsets[name]["n"]]
    left, right = st.columns(2)
    subset = left.selectbox("Images", shown, format_func=lambda n: f"{_subset_title(n)} (n = {subsets[n]['n']})")
    measure = str(right.selectbox("Measure", list(LOCALISATION_TITLES), format_func=lambda m: LOCALISATION_TITLES[m]))
    _bars(subsets[subset]["methods"], measure, LOCALISATION_TITLES[measure])
    st.caption(
        "Maps of the predicted class against expert masks of the clean test split. Lines: 95 % intervals, bootstrap "
        "over groups of images. The baselines know nothing about the network. The best threshold is chosen for each "
        "image with the mask in hand: an upper bound."
    )
    _frame(subsets[subset]["methods"], LOCALISATION_TITLES)
    st.subheader("Does the network use what it shows?", anchor=False)
    st.caption(
        f"n = {result['faithfulness']['n']}, evenly by class. Deletion and average drop: lower is better; insertion "
        "and increase: higher is better. Compare with the baselines: altered pictures are unlike scans."
    )
    _frame(result["faithfulness"]["methods"], FAITHFULNESS_TITLES)
    st.subheader("Does it depend on what was learned?", anchor=False)
    _cascade(result["sanity"])
    st.caption(
        f"Rank correlation with the intact network's map as weights are drawn anew from the top layer down "
        f"(n = {result['sanity']['n']}). A map that stays high would look the same for a network that has learned "
        "nothing. Empty maps, which have no ranks, are left out"
        + (f": {empty}." if (empty := _empty_maps(result["sanity"])) else "; there are none.")
    )
    st.caption(study_line(result))


def _subset_title(name: str) -> str:
    kind, _, value = name.partition(" ")
    if name == "all":
        return "All"
    if kind == "class" and value in CLASS_TITLES:
        return CLASS_TITLES[value]
    if kind == "size":
        low, high = SIZES[value]
        area = f"{low:.1%} of the image and more" if high > 1 else f"{low:.1%} to {high:.1%} of the image"
        return f"{value.capitalize()} tumours, {area}"
    return {"right class": "Class predicted right", "wrong class": "Class predicted wrong"}.get(name, name)


def _peak_frame(networks: list[dict]) -> pd.DataFrame:
    def cell(part: dict) -> str:
        return with_interval({"mean": part["rate"], "interval": part["interval"]}) if part["n"] else "–"

    return pd.DataFrame(
        [
            {
                "Images": title,
                "n": counts([network["subsets"][name] for network in networks]),
                **{network["model_id"]: cell(network["subsets"][name]) for network in networks},
                "Centre of the head (baseline)": "–" if centre is None else f"{centre:.3f}",
            }
            for name, title in PEAK_SUBSETS.items()
            for centre in [networks[0]["subsets"][name]["baseline_centre"]]
        ]
    )


def _bars(methods: dict, measure: str, title: str) -> None:
    rows = [
        {
            "Method": title_of(name),
            "value": values[measure]["mean"],
            "low": (values[measure]["interval"] or [values[measure]["mean"]] * 2)[0],
            "high": (values[measure]["interval"] or [values[measure]["mean"]] * 2)[1],
            "kind": "method" if name in METHODS else "baseline",
        }
        for name, values in methods.items()
    ]
    top = max(0.1, *(row["high"] for row in rows))
    base = alt.Chart(pd.DataFrame(rows)).encode(
        y=alt.Y("Method:N", sort=None, title=None, axis=alt.Axis(labelLimit=260, labelFlush=False))
    )
    bars = base.mark_bar(height={"band": 0.6}).encode(
        x=alt.X("value:Q", title=title, scale=alt.Scale(domain=[0, top], nice=True)),
        color=alt.Color(
            "kind:N", scale=alt.Scale(domain=["method", "baseline"], range=["#14919b", "#9aa5b1"]), legend=None
        ),
        tooltip=["Method", alt.Tooltip("value:Q", format=".3f"), alt.Tooltip("low:Q", format=".3f"),
                 alt.Tooltip("high:Q", format=".3f")],
    )  # fmt: skip
    ink = "#e4e7eb" if st.context.theme.type == "dark" else "#323f4b"  # to be seen on the bar and beside it
    lines = base.mark_rule(strokeWidth=2, color=ink).encode(x="low:Q", x2="high:Q")
    st.altair_chart(bars + lines, width="stretch")


def _frame(methods: dict, titles: dict[str, str]) -> None:
    table = pd.DataFrame(
        [
            {"Method": title_of(name), **{titles[m]: with_interval(values[m]) for m in titles}}
            for name, values in methods.items()
        ]
    )
    st.dataframe(table, hide_index=True)


def _empty_maps(sanity: dict) -> str:
    """By method, the most at one stage."""
    most = {name: max(v["all_zero"] for v in values.values()) for name, values in sanity["methods"].items()}
    return ", ".join(f"{METHODS[name].title} up to {n} at one stage" for name, n in most.items() if n)


def _cascade(sanity: dict) -> None:
    rows = [
        {
            "Method": METHODS[name].title,
            "stage": stage,
            "rank correlation": values[stage]["mean"],  # None where all maps are empty: a gap
            "empty maps": values[stage]["all_zero"],
        }
        for name, values in sanity["methods"].items()
        for stage in sanity["stages"]
    ]
    lowest = min((row["rank correlation"] for row in rows if row["rank correlation"] is not None), default=0)
    legend = alt.Legend(orient="bottom", columns=2, symbolSize=400, symbolType="stroke")
    chart = (
        alt.Chart(pd.DataFrame(rows), height=540)
        .mark_line(point=True)
        .encode(
            x=alt.X("stage:N", sort=sanity["stages"], title="randomised down to", axis=alt.Axis(labelAngle=-35)),
            y=alt.Y("rank correlation:Q", scale=alt.Scale(domain=[min(-0.2, lowest), 1])),
            color=alt.Color("Method:N", sort=None, scale=alt.Scale(scheme="tableau10"), legend=legend),
            strokeDash=alt.StrokeDash("Method:N", sort=None, legend=legend),
            tooltip=["Method", "stage", alt.Tooltip("rank correlation:Q", format=".2f"), "empty maps"],
        )
    )
    st.altair_chart(chart, width="stretch")
