"""Grad-CAM: feature maps, each weighted by the mean gradient of the logit to it.

References
----------
.. [1] Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017,
   arXiv:1610.02391.
"""

from __future__ import annotations

import numpy as np

from brainmri.explain.base import Batch, Explainer, Method
from brainmri.model import FEATURE_LAYER


def grids(explainer: Explainer, batch: Batch, targets: np.ndarray, layer_name: str, *, seed: int = 0) -> np.ndarray:
    """Raw maps (n, rows, columns), float32, >= 0."""
    if layer_name == FEATURE_LAYER:
        activations = batch.feature_maps
        weights = explainer.head.mean_gradient(activations, targets)
    else:
        activations, gradients = explainer.activations_and_gradients(batch, targets, layer_name)
        weights = gradients.mean(axis=(1, 2))
    return np.maximum(np.einsum("nijc,nc->nij", activations, weights, optimize=True), 0)


METHOD = Method(
    "grad-cam",
    "Grad-CAM",
    grids,
    "Shows the cells whose features, weighted by how much each feature raises the class on average, speak for it.",
    "It is as coarse as the layer (8 x 8 cells), and because it averages gradients over the picture it may light up "
    "cells that the network did not use.",
    "Selvaraju et al., ICCV 2017, arXiv:1610.02391",
)
