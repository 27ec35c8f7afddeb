"""The maps of the engine that serves against those of Keras in float32, on the shipped weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from conftest import need_real_part

from brainmri import synthetic
from brainmri.config import load_settings
from brainmri.explain import METHODS, Batch, explainer_of
from brainmri.explain.sanity import rank_correlation
from brainmri.inference import load_classifier
from brainmri.model import read_card
from brainmri.optimize import MIN_RANK_CORRELATION, MIN_SAME_PEAK

LIVE = 192


@pytest.fixture(scope="module")
def model():
    return load_settings().model


@pytest.fixture(scope="module")
def served(model):
    return load_classifier(model.id, model.directory, "openvino")


@pytest.fixture(scope="module")
def reference(model):
    return load_classifier(model.id, model.directory, "keras")


def compare(served, reference, pictures, directory) -> tuple[np.ndarray, np.ndarray]:
    """Whether Grad-CAM peaks in the same cell, and its rank correlation; by picture, empty maps left out."""
    targets, grids = None, []
    for classifier in (reference, served):
        prediction = classifier.predict(pictures)
        targets = prediction.logits.argmax(axis=1) if targets is None else targets
        batch = Batch(prediction.inputs, prediction.feature_maps, prediction.logits)
        explainer = explainer_of(classifier, directory)
        grids.append(METHODS["grad-cam"].grids(explainer, batch, targets, "block5_conv3", seed=0))
    pairs = [(a, b) for a, b in zip(*grids, strict=True) if a.any()]
    return np.array([a.argmax() == b.argmax() for a, b in pairs]), np.array([rank_correlation(a, b) for a, b in pairs])


def test_the_gate_measured_the_served_precision(model, served):
    """``brainmri optimize`` measures every precision on clean val and installs none that moves maps; see the card."""
    measured = read_card(model.id, model.directory).model_extra["precision"]
    assert served.engine.precision in (measured["default"], "float32")  # float32 where the processor lacks bfloat16
    if measured["default"] != "float32":
        figures = measured["candidates"][measured["default"]]
        assert figures["maps"] >= 200
        assert figures["same_peak"] >= MIN_SAME_PEAK >= 0.98
        assert figures["rank_correlation"] >= MIN_RANK_CORRELATION >= 0.98


def test_maps_of_samples_agree(served, reference, model):
    pictures = [sample.slice.pixels for sample in synthetic.samples().values()]
    _, correlation = compare(served, reference, pictures, model.directory)
    assert len(correlation) >= 3
    assert correlation.mean() >= MIN_RANK_CORRELATION


def test_maps_of_clean_test_images_agree(served, reference, model):
    """A fixed few, evenly by class: the gate's bar less two pictures in a hundred, for processors without VNNI, whose
    int8 rounds otherwise than where the gate measured."""
    from brainmri.data import SPLITS_DIRECTORY, read_manifest, read_pixels, select_split

    root = Path(load_settings().data.root)
    if not (root / "Testing").is_dir():
        need_real_part("the data set (BRAINMRI_DATA)")
    rows = select_split(read_manifest(SPLITS_DIRECTORY / "brain_tumor_mri.csv", root, "clean_split"), "test")
    rows = rows.assign(key=[hashlib.sha256(p.encode()).hexdigest() for p in rows["path"]]).sort_values("key")
    files = rows.groupby("label").head(LIVE // 4)["file"]
    same, correlation = compare(served, reference, [read_pixels(f) for f in files], model.directory)
    assert len(same) > LIVE // 2
    assert same.sum() >= (MIN_SAME_PEAK - 0.02) * len(same)
    assert correlation.mean() >= MIN_RANK_CORRELATION
