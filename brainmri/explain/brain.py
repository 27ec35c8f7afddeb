"""A rough brain mask of one slice, for looking at a map without the skull and what lies outside."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

_SIDE = 128


def brain_mask(pixels: np.ndarray) -> np.ndarray:
    """Estimate what lies inside the skull.

    The head is the largest bright region with its holes filled; the brain is the largest part of the head that is
    left when a rim of skull and scalp is taken off. An aid for looking, made from one slice of unknown contrast: no
    segmentation, and not used in any figure.

    Parameters
    ----------
    pixels : ndarray of shape (height, width), uint8

    Returns
    -------
    ndarray of shape (height, width), bool
        All true where no head stands out.
    """
    height, width = pixels.shape
    factor = max(height, width) / _SIDE
    shape = (max(8, round(height / factor)), max(8, round(width / factor)))
    small = np.asarray(Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.BOX), np.float32)
    smooth = ndimage.uniform_filter(small, 3)
    head = _largest(
        ndimage.binary_closing(np.pad(smooth > max(8.0, 0.35 * smooth.mean() + 4), 4), iterations=3)[4:-4, 4:-4]
    )
    head = ndimage.binary_fill_holes(head)
    if head.mean() < 0.1:
        return np.ones(pixels.shape, bool)
    rim = max(2, round(0.07 * np.sqrt(head.sum())))
    brain = _largest(ndimage.distance_transform_edt(np.pad(head, 1))[1:-1, 1:-1] > rim)
    resized = Image.fromarray(brain.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized) > 127


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask)
    return mask if count < 2 else labels == 1 + int(np.bincount(labels.ravel())[1:].argmax())
