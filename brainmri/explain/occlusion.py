"""Occlusion: how far the logit falls when a patch of the slice is blurred away.

References
----------
.. [1] Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, arXiv:1311.2901.
.. [2] Fong & Vedaldi, "Interpretable Explanations of Black Boxes by Meaningful Perturbation", ICCV 2017,
   arXiv:1704.03296: blur leaves the picture closer to a scan than a grey square does.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from brainmri.explain.base import Batch, Explainer, Method

PATCH_SHARE, CELLS = 0.25, 8
"""Patch side as a share of the picture's, and patches along each side; neighbours overlap by half."""


def grids(
    explainer: Explainer,
    batch: Batch,
    targets: np.ndarray,
    layer_name: str,
    *,
    seed: int = 0,
    cells: int = CELLS,
    patch_share: float = PATCH_SHARE,
) -> np.ndarray:
    """Signed falls of the target logit (n, cells, cells), float32, for a patch centred on each cell."""
    size = batch.inputs.shape[1]
    centres = (np.arange(cells) + 0.5) * size / cells
    inside = np.abs(np.arange(size) + 0.5 - centres[:, None]) < size * patch_share / 2
    patches = (inside[:, None, :, None] & inside[None, :, None, :]).reshape(-1, size, size)
    result = np.empty((len(batch.inputs), cells, cells), np.float32)
    for i, picture in enumerate(batch.inputs):
        blurred = ndimage.gaussian_filter(picture, size * patch_share / 2)
        hidden = explainer.logits(np.where(patches, blurred, picture))[:, targets[i]]
        result[i] = (batch.logits[i, targets[i]] - hidden).reshape(cells, cells)
    return result


METHOD = Method(
    "occlusion",
    "Occlusion",
    grids,
    "Blurs one patch after another and shows how far the class's score falls without it.",
    "A patch is a quarter of the picture wide, evidence that is there twice is not missed, and a blurred patch is "
    "itself something the network never saw.",
    "Zeiler & Fergus, ECCV 2014, arXiv:1311.2901",
    explains_pixels=True,
)
