"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

TINY_BLOCKS = ((4, 1), (8, 1), (8, 1), (8, 1), (16, 3))


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> Path:
    """A models folder with `tiny`: a VGG16 in miniature (random weights), its card and its bf16 OpenVINO network."""
    from brainmri import model, optimize

    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "BLOCKS", TINY_BLOCKS)
        import keras

        keras.utils.set_random_seed(0)
        card = {
            "id": "tiny",
            "class_names": model.CLASS_NAMES,
            "created": "2026-01-01",
            "architecture": "vgg16 in miniature",
            "preprocessing": {"function": "brainmri.imaging.preprocess", "size": 128},
        }
        written = model.save_model(model.build_network(), card, folder)
        optimize.write_optimised(optimize.export_network(written, folder), "bf16", written, folder)
    return folder


@pytest.fixture
def tiny_blocks(monkeypatch) -> None:
    """Let the Keras engine load `tiny` in this process."""
    from brainmri import model

    monkeypatch.setattr(model, "BLOCKS", TINY_BLOCKS)


@pytest.fixture(scope="session")
def slices() -> list[np.ndarray]:
    """Twelve grey pictures with a bright disc each, of several sizes, uint8."""
    rng = np.random.default_rng(0)
    pictures = []
    for index in range(12):
        height, width = 96 + 16 * (index % 5), 112 + 16 * (index % 3)
        rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        disc = (rows**2 + columns**2 < 0.7) * (120 + 60 * np.sin(5 * rows + index))
        pictures.append((disc + rng.integers(0, 40, (height, width)) * (disc > 0)).clip(0, 255).astype(np.uint8))
    return pictures
