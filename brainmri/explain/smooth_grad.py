"""SmoothGrad: the size of the gradient at each pixel, averaged over noisy copies of the slice.

References
----------
.. [1] Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017, arXiv:1706.03825.
"""

from __future__ import annotations

import numpy as np

from brainmri.explain.base import Batch, Explainer, Method

SAMPLES = 16
NOISE = 0.2
"""Standard deviation of the noise as a share of the slice's range, as in the paper."""


def grids(
    explainer: Explainer,
    batch: Batch,
    targets: np.ndarray,
    layer_name: str,
    *,
    seed: int = 0,
    samples: int = SAMPLES,
    noise: float = NOISE,
) -> np.ndarray:
    """Raw maps (n, size, size), float32, >= 0; the same noise for every slice, whatever its batch.

    As in tf-keras-vis the sizes of the gradients are averaged; the paper averages them with their signs.
    """
    generator = np.random.default_rng(seed)
    spread = np.ptp(batch.inputs, axis=(1, 2), keepdims=True) * np.float32(noise)
    total = np.zeros(batch.inputs.shape, np.float64)
    for _ in range(samples):
        pattern = generator.standard_normal(batch.inputs.shape[1:], dtype=np.float32)
        total += np.abs(explainer.gradients.pixels(batch.inputs + spread * pattern, targets))
    return (total / samples).astype(np.float32)


METHOD = Method(
    "smooth-grad",
    "SmoothGrad",
    grids,
    "Shows how strongly the class's score reacts to a small change of each pixel, averaged over noisy copies.",
    "It shows where the score is sensitive, for or against the class alike, and it likes edges whether or not they "
    "matter.",
    "Smilkov et al. 2017, arXiv:1706.03825; sizes averaged as in tf-keras-vis, not signed gradients",
    explains_pixels=True,
    percentile=99.5,
)
