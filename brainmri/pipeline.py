"""The one workflow: bytes -> slices -> answers. Pages, command line and archive jobs all call it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from brainmri.config import Settings
from brainmri.imaging import blank_notes, decode_image, several_notes
from brainmri.inference import Classifier
from brainmri.types import CLASS_NAMES, Analysis, MRISlice

if TYPE_CHECKING:
    from brainmri.dicom import SetAside

_BATCH = 16
_MOST_FEATURE_MAPS = 256


def analyse(classifier: Classifier, slices: Sequence[MRISlice]) -> list[Analysis]:
    """Predict and decide for each slice; one forward pass for all of them.

    Returns
    -------
    list of Analysis
        In the order of ``slices``.

    Raises
    ------
    ModelError
        The network's answer is no number.
    """
    if not slices:
        return []
    prediction = classifier.predict_slices(slices)
    classifier.require_numbers(prediction.logits, [s.name for s in slices])
    results = []
    for i, mri_slice in enumerate(slices):
        probabilities = {name: float(p) for name, p in zip(CLASS_NAMES, prediction.probabilities[i], strict=True)}
        decision, transform = prediction.decisions[i], prediction.transforms[i]
        notes = several_notes(transform) if mri_slice.may_be_sheet else ()
        notes += blank_notes(mri_slice.pixels, prediction.inputs[i])
        if not set(notes) <= set(mri_slice.notes):  # a kept case has it already
            mri_slice = replace(mri_slice, notes=(*mri_slice.notes, *notes))
        results.append(
            Analysis(
                slice=mri_slice,
                decision=decision,
                label=max(probabilities, key=probabilities.__getitem__) if decision == "class" else None,
                prediction_set=prediction.prediction_sets[i],
                probabilities=probabilities,
                ood_score=float(prediction.ood_score[i]),
                ood_threshold=prediction.ood_threshold,
                transform=transform,
                network_input=prediction.inputs[i],
                feature_maps=prediction.feature_maps[i],
                logits=prediction.logits[i],
                model_id=prediction.model_id,
                weights_sha256=prediction.weights_sha256,
                engine=prediction.engine,
                precision=prediction.precision,
                elapsed_ms=prediction.elapsed_ms / len(slices),
            )
        )
    return results


def analyse_stack(classifier: Classifier, slices: Sequence[MRISlice]) -> list[Analysis]:
    """`analyse` for many slices, a batch at a time; past 256 slices without feature maps, which a map makes anew.

    Raises
    ------
    ModelError
        As `analyse`.
    """
    done: list[Analysis] = []
    for start in range(0, len(slices), _BATCH):
        done += analyse(classifier, slices[start : start + _BATCH])
    if len(slices) > _MOST_FEATURE_MAPS:
        done = [replace(a, feature_maps=np.empty(0, np.float32)) for a in done]
    return done


def read_slices(content: bytes, name: str, settings: Settings, *, insist: bool = False) -> list[MRISlice]:
    """`read_file` without what was set aside: for files that hold one image."""
    return read_file(content, name, settings, insist=insist)[0]


def read_file(
    content: bytes, name: str, settings: Settings, *, insist: bool = False
) -> tuple[list[MRISlice], tuple[SetAside, ...]]:
    """Decode one uploaded file of any accepted kind: a picture, a DICOM file, or a zip of a DICOM series.

    ``insist`` takes DICOM that would be refused or set aside: other modalities, localisers, diffusion, derived images.

    Returns
    -------
    slices : list of MRISlice
        One for a picture; all frames of a DICOM file, all slices of a series, in order of position.
    set_aside : tuple of SetAside
        Files of a zip, and frames, that are in no series, each with the reason; ``failed`` where unreadable or refused.

    Raises
    ------
    InvalidImageError
        Nothing usable; says what came and what is accepted.
    """
    from brainmri import dicom

    if dicom.is_dicom(content) or dicom.is_zip(content):
        reading = dicom.read_series(content, name, settings, insist=insist)
        return [s for series in reading.series for s in series.slices], reading.set_aside
    limits = settings.uploads
    size = int(limits.max_size_mb * 1_000_000)
    return [decode_image(content, name, max_pixels=limits.max_pixels, max_size_bytes=size)], ()
