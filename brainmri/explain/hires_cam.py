"""HiResCAM: feature maps times their gradients, cell by cell; no averaging.

References
----------
.. [1] Draelos & Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks",
   2020, arXiv:2011.08891.
"""

from __future__ import annotations

import numpy as np

from brainmri.explain.base import Batch, Explainer, Method


def grids(explainer: Explainer, batch: Batch, targets: np.ndarray, layer_name: str, *, seed: int = 0) -> np.ndarray:
    """Raw maps (n, rows, columns), float32, >= 0."""
    activations, gradients = explainer.activations_and_gradients(batch, targets, layer_name)
    return np.maximum((activations * gradients).sum(axis=-1), 0)


METHOD = Method(
    "hires-cam",
    "HiResCAM",
    grids,
    "Shows the cells by what they add to the class's score through the network's last layers, each cell on its own.",
    "Cells are still 8 x 8, and max pooling hands the whole credit to one cell of four, so a spot may sit a cell "
    "beside what it stands for.",
    "Draelos & Carin 2020, arXiv:2011.08891",
)
