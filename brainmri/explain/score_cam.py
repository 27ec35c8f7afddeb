"""Score-CAM: each feature map, laid over the picture as a mask, is weighted by the class's score; no gradients.

References
----------
.. [1] Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks", CVPRW 2020,
   arXiv:1910.01279.
.. [2] tabayashi0117, "Faster Score-CAM", github.com/tabayashi0117/Score-CAM: only the channels that vary most.
"""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax

from brainmri.explain.base import Batch, Explainer, Method, upsampling_matrix
from brainmri.model import FEATURE_LAYER

CHANNELS = 64
"""Channels that are tried unless said otherwise: those with the largest standard deviation over the picture."""


def grids(
    explainer: Explainer,
    batch: Batch,
    targets: np.ndarray,
    layer_name: str,
    *,
    seed: int = 0,
    channels: int | None = CHANNELS,
) -> np.ndarray:
    """Raw maps (n, rows, columns), float32, >= 0, up to a factor of each slice's own.

    As in tf-keras-vis a channel's weight is the target's softmax over the logits of the masked picture, that is, its
    logit relative to the other classes': what a mask does to all logits alike cancels. The paper instead compares the
    target's score with that of a baseline picture and takes a softmax over the channels. The largest weight counts as
    1: where every probability is next to nothing, they would all be 0 in float32, and the map empty.
    """
    if layer_name == FEATURE_LAYER:
        activations = batch.feature_maps
    else:
        activations = explainer.gradients.activations(batch.inputs, layer_name)
    n, rows, columns, n_channels = activations.shape
    size = batch.inputs.shape[1]
    down, across = upsampling_matrix(size, rows), upsampling_matrix(size, columns)
    result = np.zeros((n, rows, columns), np.float32)
    for i in range(n):
        maps = activations[i]
        if channels is not None and channels < n_channels:
            maps = maps[..., np.argsort(-maps.std(axis=(0, 1)), kind="stable")[:channels]]
        masks = np.einsum("yr,rck,xc->kyx", down, maps, across, optimize=True)
        low, high = masks.min(axis=(1, 2), keepdims=True), masks.max(axis=(1, 2), keepdims=True)
        logits = explainer.logits(batch.inputs[i] * ((masks - low) / (high - low + 1e-7)))
        logarithms = log_softmax(logits.astype(np.float64), axis=1)[:, targets[i]]
        result[i] = np.maximum(maps @ np.exp(logarithms - logarithms.max()), 0)
    return result


METHOD = Method(
    "score-cam",
    "Score-CAM",
    grids,
    f"Hides all but what one feature sees, asks the network again, and adds up the {CHANNELS} strongest features by "
    "how much of the class is left.",
    "Masked pictures look unlike any scan, so a weight may say more about the mask's shape than about the tissue, "
    "and the map changes little from class to class.",
    "Wang et al., CVPRW 2020, arXiv:1910.01279; weights as in tf-keras-vis (softmax over the classes)",
)
