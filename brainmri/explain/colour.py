"""Colour maps for saliency: perceptually uniform and readable with any colour vision."""

from __future__ import annotations

from functools import cache

import numpy as np

from brainmri.errors import ExplanationError

COLOUR_MAPS = ("inferno", "magma", "viridis", "cividis")
"""matplotlib's perceptually uniform maps: lightness rises evenly, also under red-green and blue-yellow blindness.

Rainbow maps such as jet are left out on purpose: they draw edges where the data have none (Borland & Taylor,
IEEE CG&A 2007)."""
DEFAULT_COLOUR_MAP = "inferno"


@cache
def colour_table(name: str = DEFAULT_COLOUR_MAP) -> np.ndarray:
    """Colours of a map.

    Returns
    -------
    ndarray of shape (256, 3), uint8
        sRGB, from value 0 to value 1; read-only.

    Raises
    ------
    ExplanationError
        Unknown name; lists those that exist.
    """
    if name not in COLOUR_MAPS:
        raise ExplanationError(f"{name}: no such colour map; choose one of {', '.join(COLOUR_MAPS)}")
    from matplotlib import colormaps

    table = (colormaps[name](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    table.setflags(write=False)
    return table


def overlay(
    pixels: np.ndarray,
    saliency_map: np.ndarray,
    *,
    opacity: float = 0.5,
    threshold: float = 0.2,
    colour_map: str = DEFAULT_COLOUR_MAP,
) -> np.ndarray:
    """Lay a map over a slice.

    Parameters
    ----------
    pixels : ndarray of shape (height, width), uint8
    saliency_map : ndarray of shape (height, width), float in [0, 1]
    opacity, threshold : float in [0, 1]
        The map is drawn with this opacity where it is above zero and at least the threshold.

    Returns
    -------
    ndarray of shape (height, width, 3), uint8
        sRGB.
    """
    grey = np.repeat(pixels[..., None], 3, axis=-1)
    colours = colour_table(colour_map)[np.rint(np.clip(saliency_map, 0, 1) * 255).astype(np.uint8)]
    shown = ((saliency_map > 0) & (saliency_map >= threshold))[..., None]
    return np.where(shown, np.rint(grey * (1 - opacity) + colours * opacity), grey).astype(np.uint8)
