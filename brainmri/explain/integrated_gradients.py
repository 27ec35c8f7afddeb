"""Integrated Gradients: gradients summed up on the way from a black picture to the slice, times the difference.

References
----------
.. [1] Sundararajan, Taly & Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, arXiv:1703.01365.
"""

from __future__ import annotations

import numpy as np

from brainmri.explain.base import Batch, Explainer, Method

STEPS = 32
"""Points of the midpoint rule."""


def grids(
    explainer: Explainer, batch: Batch, targets: np.ndarray, layer_name: str, *, seed: int = 0, steps: int = STEPS
) -> np.ndarray:
    """Signed attributions (n, size, size), float32, that sum to nearly logit(slice) - logit(black picture).

    The baseline is black: what surrounds every head, and the lowest value of the network's input.
    """
    total = np.zeros(batch.inputs.shape, np.float64)
    for step in range(steps):
        total += explainer.gradients.pixels(batch.inputs * np.float32((step + 0.5) / steps), targets)
    return (batch.inputs * total / steps).astype(np.float32)


METHOD = Method(
    "integrated-gradients",
    "Integrated Gradients",
    grids,
    "Shares the class's score out among the pixels: positive and negative shares add up, nearly, to the difference "
    "from a black picture's score; only the positive ones are drawn.",
    "Black pixels can never get a share, so dark tissue that matters stays dark, and single pixels are noisy: look "
    "at where they gather.",
    "Sundararajan et al., ICML 2017, arXiv:1703.01365",
    explains_pixels=True,
    percentile=99.5,
)
