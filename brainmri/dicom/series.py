"""Frames -> series in anatomical order, with what was set aside and why; and the answer to a whole series."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Protocol

import numpy as np

from brainmri.dicom import geometry
from brainmri.dicom.windows import Window
from brainmri.types import CLASS_TITLES, NO_TUMOR, MRISlice

_KNOWN_WORDS = re.compile(
    r"(?<![a-z0-9])(t1w?|t2w?\*?|flair|pd|swi|swan|dwi|adc|dti|mprage|spgr|fspgr|bravo|vibe|tse|fse|gre|stir|post|pre|"
    r"gd|gad|\+c|ce|contrast|ax|axial|tra|cor|coronal|sag|sagittal|3d|2d|loc|localizer|localiser|scout|survey)"
    r"(?![a-z0-9])",
    re.IGNORECASE,
)
_WITHOUT = re.compile(
    r"(?<![a-z])(no|non|not|without|w/?o|ohne|sans|sin|senza)[\s/]+(iv\s+)?"
    r"(post|gd|gad|\+c|ce|contrast)(\s+(gd|gad|\+c|ce|contrast))?(?![a-z0-9])",
    re.IGNORECASE,
)
_LOCALISER = re.compile(r"(?<![a-z])(locali[sz]er|scout|survey|3[- ]?plane|plane[- ]?loc|loc)(?![a-z])", re.IGNORECASE)
_DIFFUSION = re.compile(r"(?<![a-z])(dwi|dti|adc|diff(usion)?|trace[w]?|ep_b\d*)(?![a-z])", re.IGNORECASE)

_TELLING = {
    "image_type": "image type",
    "inversion_time": "inversion time",
    "acquisition": "acquisition",
    "trigger_time": "trigger time",
}
"""What tells images at one place apart: attribute of `DicomFrame`, and what a reader calls it."""
_SAME_PLACE_MM = 0.01


@dataclass(frozen=True)
class DicomFrame:
    """One frame with what a viewer needs beyond its default picture.

    Attributes
    ----------
    slice : MRISlice
        Shown through the default window (the file's first, else percentiles): what the network gets.
    values : ndarray of shape (height, width), uint8, int8, uint16, int16 or float32
        Modality values; read-only.
    windows : tuple of Window
        The file's own, in its order.
    inverted : bool
        MONOCHROME1.
    image_position : tuple of three floats or None
        Image Position (Patient), millimetres.
    position_mm : float or None
        Along the stack's normal, towards the patient's left, back or head; None outside a stack.
    image_type : tuple of str
        Image Type, Frame Type and Complex Image Component.
    echo_time, inversion_time, trigger_time : float or None
        Milliseconds.
    temporal, acquisition : float or None
        Temporal position and acquisition number.
    file_name : str
        As it came; for this session's eyes only, because file names hold patients' names.
    removed : tuple of dict
        What de-identification took out: name, action, count.
    patient : dict or None
        Name, birth date, sex and study date; only where de-identification is off.
    """

    slice: MRISlice
    values: np.ndarray = field(repr=False)
    windows: tuple[Window, ...]
    inverted: bool
    modality: str
    patient_id: str
    study_uid: str
    series_uid: str
    label: str
    plane: str | None
    cosines: tuple[float, ...] | None
    image_position: tuple[float, float, float] | None
    instance_number: int | None
    series_number: int | None
    image_type: tuple[str, ...]
    echo_time: float | None
    temporal: float | None
    inversion_time: float | None
    acquisition: float | None
    trigger_time: float | None
    aside_reason: str | None
    file_name: str
    position_mm: float | None = None
    removed: tuple[dict, ...] = ()
    patient: dict | None = None

    def shown(self, window: Window | None) -> np.ndarray:
        """Grey display intensities through a window; None gives the default picture."""
        return self.slice.pixels if window is None else window.apply(self.values, inverted=self.inverted)


@dataclass(frozen=True)
class Series:
    """Frames of one stack in anatomical order: right to left, front to back or feet to head; one at each place."""

    uid: str
    study_uid: str
    patient_id: str
    label: str
    plane: str | None
    frames: tuple[DicomFrame, ...]
    notes: tuple[str, ...] = ()

    @property
    def slices(self) -> tuple[MRISlice, ...]:
        """The frames as the pipeline takes them."""
        return tuple(frame.slice for frame in self.frames)

    def windows(self) -> tuple[Window, ...]:
        """Windows to choose from: the first frame's that show anything, then one made from the whole series' values."""
        pooled = np.concatenate([f.values.ravel()[:: max(1, f.values.size // 4096)] for f in self.frames])
        low, high = (float(v) for v in np.percentile(pooled, (0.5, 99.5)))
        whole = Window(
            (low + high) / 2, max(high - low, 1e-6), "LINEAR_EXACT", "whole series, 0.5-99.5 percentile", "percentile"
        )
        return (*(w for w in self.frames[0].windows if w.shows(pooled)), whole)


@dataclass(frozen=True)
class SetAside:
    """A file that is not part of any series, and why; ``failed`` where it cannot be read or is refused."""

    name: str
    reason: str
    failed: bool = False


@dataclass(frozen=True)
class Reading:
    """All that one upload held.

    Attributes
    ----------
    series : tuple of Series
        Largest first.
    set_aside : tuple of SetAside
        Localisers, diffusion, derived and secondary images, repeats, other modalities, other files.
    removed : tuple of dict
        De-identification's list over all files: name, action, count.
    """

    series: tuple[Series, ...]
    set_aside: tuple[SetAside, ...] = ()
    removed: tuple[dict, ...] = ()


def known_words(text: str) -> str:
    """Keep only words from a fixed list of sequence and plane names: free text may name the patient.

    Contrast that a text says there was none of is left out.
    """
    text = _WITHOUT.sub(" ", text.replace("_", " ").replace("-", " "))
    words = [match.group(0).upper() for match in _KNOWN_WORDS.finditer(text)]
    return " ".join(dict.fromkeys(words))


def reason_to_set_aside(
    image_type: Sequence[str], free_text: str, *, b_value: float | None, directionality: str, secondary: bool
) -> str | None:
    """Say why an image does not belong in a stack of ordinary slices, or None.

    Image Type (0008,0008) is PS3.3 C.7.6.1.1.2; the words of descriptions are those scanners write by default.
    """
    kinds = {kind for part in image_type for kind in part.split("_")} | set(image_type)
    if "LOCALIZER" in kinds or _LOCALISER.search(free_text):
        return "localiser"
    if (
        (b_value or 0) > 0
        or directionality in ("DIRECTIONAL", "BMATRIX", "ISOTROPIC")
        or kinds & {"DIFFUSION", "ADC", "TRACEW", "TRACE", "FA", "DWI"}
        or _DIFFUSION.search(free_text)
    ):
        return "diffusion-weighted (DWI)"
    if "MOSAIC" in kinds:
        return "a sheet of several slices (mosaic)"
    if "DERIVED" in kinds:
        return "derived image (" + "\\".join(image_type[:4]) + ")"
    if secondary or "SECONDARY" in image_type[1:2]:
        return "secondary image, not from the scanner"
    return None


def build_reading(frames: Sequence[DicomFrame], set_aside: list[SetAside], *, insist: bool) -> Reading:
    """Sort frames into series and put aside what is no ordinary slice.

    Derived images are taken, with a note, where the upload holds nothing else: converted and anonymised archives mark
    every image so.
    """
    unique = _without_repeats(frames, set_aside)
    kept = [f for f in unique if f.aside_reason is None or insist]
    last_resort = not kept
    if last_resort:
        kept = [f for f in unique if (f.aside_reason or "").startswith(("derived", "secondary"))]
    taken = {id(f) for f in kept}
    aside = Counter((f.file_name, f.aside_reason or "not taken") for f in unique if id(f) not in taken)
    set_aside += [SetAside(n, reason + (f", {k} frames" if k > 1 else "")) for (n, reason), k in aside.items()]
    if last_resort:
        kept = [_noted(f, f"{f.aside_reason}; taken, there is nothing else") for f in kept]
    found = [_stack(members) for group in _similar(kept) for members in _apart(_placed(group))]
    found.sort(key=lambda s: (-len(s.frames), s.frames[0].series_number or 0, s.uid))
    removed: dict[tuple[str, str], int] = defaultdict(int)
    for taken_once in {f.slice.sha256: f for f in frames}.values():
        for item in taken_once.removed:
            removed[item["name"], item["action"]] += item["count"]
    total = tuple({"name": n, "action": a, "count": k} for (n, a), k in sorted(removed.items()))
    return Reading(tuple(found), tuple(set_aside), total)


def _without_repeats(frames: Sequence[DicomFrame], set_aside: list[SetAside]) -> list[DicomFrame]:
    """Frames but for those that came before, under their own UID or, the same in all but that, under a new one."""
    unique: list[DicomFrame] = []
    seen: dict[tuple, list[DicomFrame]] = defaultdict(list)
    for frame in frames:
        identity = (frame.slice.sop_instance_uid or frame.slice.sha256, frame.slice.frame)
        keys: list[tuple] = [identity]
        if frame.image_position is not None:
            series = (frame.patient_id, frame.study_uid, frame.series_uid, frame.slice.frame)
            told = (frame.image_position, frame.cosines, frame.echo_time, frame.temporal, frame.aside_reason)
            keys.append((*series, *told, *(getattr(frame, name) for name in _TELLING)))
        same = next((f for key in keys for f in seen[key] if _is_same_picture(f, frame)), None)
        if same is not None:
            set_aside.append(SetAside(frame.file_name, f"a repeat of {same.file_name}"))
            continue
        for key in keys:
            seen[key].append(frame)
        if len(seen[identity]) > 1:  # of two pictures with one UID the second has none
            frame = _noted(frame, "another picture has the same SOP Instance UID")
            frame = replace(frame, slice=replace(frame.slice, sop_instance_uid=None))
        unique.append(frame)
    return unique


def _is_same_picture(a: DicomFrame, b: DicomFrame) -> bool:
    return a.image_position == b.image_position and np.array_equal(a.values, b.values)


def _noted(frame: DicomFrame, note: str) -> DicomFrame:
    return replace(frame, slice=replace(frame.slice, notes=(*frame.slice.notes, note)))


def _similar(frames: Sequence[DicomFrame]) -> list[list[DicomFrame]]:
    """Frames of one series, size, orientation, echo and temporal position; scanners jitter about the last digits."""
    groups: dict[tuple, list[list[DicomFrame]]] = defaultdict(list)
    for frame in frames:
        # UIDs may be missing, and be another's then.
        key = (frame.patient_id, frame.study_uid, frame.series_uid, frame.slice.pixels.shape, frame.temporal)
        for group in groups[key]:
            if _close(group[0].cosines, frame.cosines, 0.02) and _close_echo(group[0].echo_time, frame.echo_time):
                group.append(frame)
                break
        else:
            groups[key].append([frame])
    return [group for similar in groups.values() for group in similar]


def _close(a: Sequence[float] | None, b: Sequence[float] | None, by: float) -> bool:
    if a is None or b is None:
        return a is b
    return all(abs(x - y) <= by for x, y in zip(a, b, strict=True))


def _close_echo(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return abs(a - b) <= max(0.5, 0.02 * a)


def _placed(group: Sequence[DicomFrame]) -> list[DicomFrame]:
    """The frames with their positions along the normal that is the whole group's; equal ones are the same place."""
    cosines = group[0].cosines
    if cosines is None:
        return list(group)
    normal = geometry.stack_normal(np.reshape(cosines, (2, 3)))
    positions = [None if f.image_position is None else float(normal @ f.image_position) for f in group]
    places: dict[float, float] = {}
    last = -np.inf
    for position in sorted(p for p in positions if p is not None):
        last = position if position - last > _SAME_PLACE_MM else last
        places[position] = last
    return [replace(f, position_mm=None if p is None else places[p]) for f, p in zip(group, positions, strict=True)]


def _apart(group: list[DicomFrame]) -> list[list[DicomFrame]]:
    """Split a group that holds several images at one place, such as magnitude and phase, into stacks that hold one.

    By the first attribute with a value that is there at all places. Else the first image of each place makes a stack,
    the second another one: numbers may differ between slices of one stack, too, which a split by value would tear.
    What is peculiar to a stack is noted on each of its slices, which are kept and reported one by one.
    """
    at = _images_at(group)
    most = max(at.values(), default=1)
    if most == 1:
        return [group]
    for name, title in _TELLING.items():
        by_value: dict[Any, list[DicomFrame]] = defaultdict(list)
        for frame in group:
            by_value[getattr(frame, name)].append(frame)
        counts = [_images_at(part) for part in by_value.values()]
        is_everywhere = any(c.keys() == at.keys() for c in counts)
        if len(counts) > 1 and is_everywhere and sum(max(c.values(), default=0) for c in counts) == most:
            where = "each place" if all(c.keys() == at.keys() for c in counts) else "some places"
            found = []
            for value, part in by_value.items():
                said = "\\".join(value) if isinstance(value, tuple) else "none" if value is None else f"{value:g}"
                found += _apart([_noted(f, f"one of several images at {where}: {title} {said}") for f in part])
            return found
    layers: list[list[DicomFrame]] = [[] for _ in range(most)]
    seen: Counter[float | None] = Counter()
    for frame in sorted(group, key=_telling_order):
        layers[seen[frame.position_mm]].append(frame)
        seen[frame.position_mm] += frame.position_mm is not None
    return [
        [_noted(frame, f"number {k} of several images at one place") for frame in layer]
        for k, layer in enumerate(layers, 1)
    ]


def _images_at(frames: Sequence[DicomFrame]) -> Counter[float]:
    """Number of images at each place."""
    return Counter(f.position_mm for f in frames if f.position_mm is not None)


def _telling_order(frame: DicomFrame) -> tuple:
    numbers = (frame.echo_time, frame.inversion_time, frame.acquisition, frame.trigger_time)
    return (*(number or 0.0 for number in numbers), *_number_order(frame))


def _stack(members: list[DicomFrame]) -> Series:
    notes: tuple[str, ...] = ()
    positions = [f.position_mm for f in members]
    known = [p for p in positions if p is not None]
    if len(known) == len(members):
        members = sorted(members, key=lambda f: f.position_mm or 0.0)
        steps = np.diff(sorted(known))
        if len(steps) > 1 and steps.max() > 1.5 * np.median(steps):
            notes += (f"the stack has gaps: steps of {np.median(steps):.1f} to {steps.max():.1f} mm",)
    else:
        members = sorted(members, key=_number_order)
        if len(members) > 1:
            notes += ("positions are missing: ordered by instance number, which need not be anatomical",)
    first = members[0]
    label = first.label or f"Series {first.series_number or ''}".strip()
    return Series(first.series_uid, first.study_uid, first.patient_id, label, first.plane, tuple(members), notes)


def _number_order(frame: DicomFrame) -> tuple[int, int, str]:
    return frame.instance_number or 0, frame.slice.frame or 0, frame.file_name


@dataclass(frozen=True)
class Run:
    """Neighbouring slices with the same decided tumour class; ``first`` and ``last`` count from 0, both included."""

    label: str
    first: int
    last: int
    peak: int
    probability: float

    @property
    def length(self) -> int:
        """Number of slices."""
        return self.last - self.first + 1


MIN_RUN = 2
"""Neighbouring slices that must agree on a tumour before a series answer names it.

Chosen on validation stacks by ``brainmri dicom measure``, which says so when other weights ask for another number.
"""


class SliceAnswer(Protocol):
    """What of an answer to one slice counts for its series; `Analysis` and `storage.Record` have it."""

    @property
    def label(self) -> str | None:
        """Decided class."""

    @property
    def decision(self) -> str:
        """``"class"``, ``"undecided"`` or ``"rejected"``."""

    @property
    def probabilities(self) -> Mapping[str, float]:
        """Calibrated probability of each class."""


@dataclass(frozen=True)
class SeriesAnswer:
    """What the slices say together.

    Attributes
    ----------
    label : str or None
        Class of the strongest run that is long enough; ``notumor`` where no slice is decided as tumour and most are
        decided as none; else None.
    runs : tuple of Run
        Those that are long enough first, then by summed probability: the slices that drive the answer.
    counts : dict
        Slices per class name, and under ``"undecided"`` and ``"rejected"``.
    text : str
        One sentence for the reader.
    """

    label: str | None
    runs: tuple[Run, ...]
    counts: dict[str, int]
    text: str


def answer_series(answers: Sequence[SliceAnswer], *, min_run: int = MIN_RUN) -> SeriesAnswer:
    """Put the answers to a stack's slices together, in stack order.

    A rule, not a probability: neighbouring slices are not independent, and the network was calibrated on single
    slices. Undecided and rejected slices break a run. No two answers are about one place: a `Series` holds one image of
    each.

    Parameters
    ----------
    min_run : int
        Length a run needs; all of a shorter stack.
    """
    counts = dict.fromkeys((*CLASS_TITLES, "undecided", "rejected"), 0)
    for a in answers:
        counts[a.label or a.decision] += 1
    n = len(answers)
    needed = max(1, min(min_run, n))
    found: list[tuple[bool, float, Run]] = []
    start = 0
    for label, group in groupby(answers, key=lambda a: a.label):
        members = list(group)
        if label is not None and label != NO_TUMOR:
            scores = [a.probabilities[label] for a in members]
            peak = int(np.argmax(scores))
            run = Run(label, start, start + len(members) - 1, start + peak, scores[peak])
            found.append((run.length >= needed, sum(scores), run))
        start += len(members)
    ordered = tuple(run for *_, run in sorted(found, key=lambda entry: entry[:2], reverse=True))
    label = None
    if ordered:
        run = ordered[0]
        title = CLASS_TITLES[run.label]
        where = f"slice {run.first + 1}" if run.length == 1 else f"slices {run.first + 1}-{run.last + 1}"
        strength = f"strongest at slice {run.peak + 1} ({run.probability:.0%} for that slice alone)."
        if run.length >= needed:
            label, text = run.label, f"{title} in {where} of {n}, {strength}"
        else:
            text = f"No answer: {title.lower()} in {where} of {n} only; {needed} slices in a row are needed."
        others = sorted({CLASS_TITLES[r.label].lower() for r in ordered} - {title.lower()})
        if others:
            text += " Other slices say " + " and ".join(others) + "."
    elif counts[NO_TUMOR] * 2 > n:
        label, text = NO_TUMOR, f"No tumour found in {counts[NO_TUMOR]} of {n} slices; no slice is decided as tumour."
    else:
        text = f"No answer: {counts['undecided']} of {n} slices are undecided and {counts['rejected']} rejected."
    return SeriesAnswer(label, ordered, counts, text)
