"""Does the network use what a map shows? Deletion, insertion, average drop and increase.

References
----------
.. [1] Petsiuk, Das & Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018,
   arXiv:1806.07421 (deletion from the slice to black, insertion from a blurred slice).
.. [2] Chattopadhay et al., "Grad-CAM++", WACV 2018, arXiv:1710.11063 (average drop, increase in confidence).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from brainmri.explain.base import Explainer

STEPS = 10
"""Parts of the picture that are taken away or put back one after another."""
BLUR = 10.0
"""Standard deviation of the blurred start of insertion, network pixels, as in RISE."""
MEASURES = ("deletion", "insertion", "drop", "increase")


def faithfulness(
    explainer: Explainer, picture: np.ndarray, maps: Sequence[np.ndarray], target: int
) -> list[dict[str, float]]:
    """Measure maps of one network input; all altered pictures go through the network together.

    Parameters
    ----------
    picture : ndarray of shape (size, size), float32 in [0, 1]
    maps : sequence of ndarray of shape (size, size), float in [0, 1]
        On the network's field of view.
    target : int
        Column of the class explained.

    Returns
    -------
    list of dict
        One a map: ``deletion`` and ``insertion``: area under the target's probability as the most salient parts go
        (lower is better) or come (higher is better); ``drop``: share of the probability lost when the slice is
        multiplied by the map (lower is better); ``increase``: 1.0 where it rose instead.
    """
    blurred = ndimage.gaussian_filter(picture, BLUR)
    pictures = [np.stack([picture, blurred, np.zeros_like(picture)])]  # where every curve starts or ends
    for saliency in maps:
        # A stable sort breaks ties from the top left, alike for every method; an all-zero map is thus a fixed sweep.
        order = np.argsort(-saliency.ravel(), kind="stable")
        ranks = np.empty(order.size, np.int64)
        ranks[order] = np.arange(order.size)
        gone = ranks.reshape(saliency.shape) < (np.arange(1, STEPS) * order.size / STEPS)[:, None, None]
        pictures += [
            np.where(gone, np.float32(0), picture),
            np.where(gone, picture, blurred),
            (picture * saliency)[None],
        ]
    logits = explainer.logits(np.concatenate(pictures).astype(np.float32))
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = exponents[:, target] / exponents.sum(axis=1)
    whole, start, black = (float(v) for v in p[:3])
    result = []
    for part in p[3:].reshape(len(maps), 2 * STEPS - 1):
        masked = float(part[-1])
        result.append(
            {
                "deletion": float(np.trapezoid([whole, *part[: STEPS - 1], black], dx=1 / STEPS)),
                "insertion": float(np.trapezoid([start, *part[STEPS - 1 : -1], whole], dx=1 / STEPS)),
                "drop": max(0.0, whole - masked) / max(whole, 1e-12),
                "increase": float(masked > whole),
            }
        )
    return result
