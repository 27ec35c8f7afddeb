"""Grad-CAM++: Grad-CAM with positive gradients weighted by a closed form of higher derivatives.

References
----------
.. [1] Chattopadhay et al., "Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks", WACV 2018,
   arXiv:1710.11063.
"""

from __future__ import annotations

import numpy as np

from brainmri.explain.base import Batch, Explainer, Method


def grids(explainer: Explainer, batch: Batch, targets: np.ndarray, layer_name: str, *, seed: int = 0) -> np.ndarray:
    """Raw maps (n, rows, columns), float32, >= 0, up to the factor exp(logit) of the paper's exponential score."""
    return combine(*explainer.activations_and_gradients(batch, targets, layer_name))


def combine(activations: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Maps (n, rows, columns) from activations and gradients (n, rows, columns, channels).

    With the score exp(logit) the paper's second and third derivative are exp(logit) g^2 and exp(logit) g^3, so the
    factor cancels in alpha, and leaving it out of the rest keeps a very small logit from rounding the map to zero.
    Where the denominator nearly vanishes the formula is ill-conditioned, in this implementation as in others.
    """
    total = activations.sum(axis=(1, 2), keepdims=True)
    denominator = 2 + gradients * total
    usable = (gradients != 0) & (denominator != 0)
    alphas = np.divide(1, denominator, out=np.zeros_like(gradients), where=usable)
    sums = alphas.sum(axis=(1, 2), keepdims=True)
    alphas /= np.where(sums == 0, 1, sums)
    weights = (np.maximum(gradients, 0) * alphas).sum(axis=(1, 2))
    return np.maximum(np.einsum("nijc,nc->nij", activations, weights, optimize=True), 0)


METHOD = Method(
    "grad-cam++",
    "Grad-CAM++",
    grids,
    "Like Grad-CAM, but features that speak for the class in a small part of the picture count as much as large ones.",
    "It drops negative gradients, so it tends to show more than the evidence and hardly changes when another class "
    "is asked about.",
    "Chattopadhay et al., WACV 2018, arXiv:1710.11063",
)
