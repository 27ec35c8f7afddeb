"""What the answer would be without the tumour: paint a masked area away, or an equal area elsewhere."""

from __future__ import annotations

import numpy as np
from scipy import ndimage, signal

METHODS = ("diffusion", "mirror", "patch")
"""Where the fill comes from: the rim alone, the other half of the head, or the best-fitting place nearby."""


def inpaint(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, method: str = "diffusion", *, margin: int = 2
) -> np.ndarray:
    """Paint a masked area away so that it continues what surrounds it.

    All methods clone seamlessly: ``source + harmonic fill of (image - source)``, so the fill meets the rim without a
    step. They differ in the source: nothing but noise of the rim's texture (``diffusion``), the head mirrored about
    its vertical axis (``mirror``), or the image shifted to where the rim fits best (``patch``).

    Parameters
    ----------
    image : ndarray of shape (height, width), uint8
        Grey display intensities. Not modified.
    mask : ndarray of shape (height, width), bool
        What to paint away. Unchanged image where it is empty.
    rng : numpy.random.Generator
        Draws the texture and breaks ties; the same state gives the same picture.
    method : str
        One of ``METHODS``.
    margin : int
        Pixels by which the mask is grown first: outlines leave a bright rim outside.

    Returns
    -------
    ndarray of shape (height, width), uint8

    Raises
    ------
    ValueError
        Unknown method, or a mask of another shape.

    References
    ----------
    .. [1] Pérez, Gangnet & Blake, "Poisson Image Editing", SIGGRAPH 2003: membrane interpolation of the seam.
    .. [2] Gortler et al., "The Lumigraph", SIGGRAPH 1996: the push-pull pyramid.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    if mask.shape != image.shape:
        raise ValueError(f"mask has shape {mask.shape}, the image {image.shape}; expected the same")
    if not mask.any() or mask.all():
        return image.copy()
    result = image.copy()
    window = _window(mask, margin + 10)  # nothing farther away takes part
    hole = mask[window] > 0
    if margin > 0:
        hole = ndimage.distance_transform_edt(~hole) <= margin
    if hole.all():
        return result
    values = image[window].astype(np.float32)
    source = _source(image, window, values, hole, rng, method)
    filled = source + _harmonic_fill(values - source, hole)
    # One soft pixel at the seam hides what compression left of the tumour's edge.
    alpha = ndimage.uniform_filter(hole.astype(np.float32), 3)
    outside = (alpha > 0.05) & ~hole
    filled[outside] = ndimage.uniform_filter(np.where(hole, filled, values), 3)[outside]
    alpha[hole] = 1.0
    result[window] = np.clip(np.rint(values + alpha * (filled - values)), 0, 255)
    return result


def elsewhere(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, *, gap: int = 4) -> np.ndarray | None:
    """Move a mask to another place inside the head: the control to painting the tumour away.

    Parameters
    ----------
    image : ndarray of shape (height, width), uint8
    mask : ndarray of shape (height, width), bool
    gap : int
        Pixels that must stay between the old place and the new.

    Returns
    -------
    ndarray of shape (height, width), bool, or None
        The same shape (perhaps turned by 180° or flipped), drawn evenly from all places with at least 97 % inside
        the head and clear of the old place; None where there is no such place.
    """
    inside = ndimage.binary_erosion(head_mask(image), iterations=max(2, min(image.shape) // 40))
    forbidden = ~inside | ndimage.binary_dilation(mask, iterations=gap)
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if rows.size == 0:
        return None
    template = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    for index in rng.permutation(4):
        turned = template[:: -1 if index & 1 else 1, :: -1 if index & 2 else 1]
        conflicts = signal.fftconvolve(forbidden.astype(np.float32), turned[::-1, ::-1].astype(np.float32), "valid")
        places = np.argwhere(conflicts <= 0.03 * turned.sum() + 0.01)
        if len(places):
            top, left = places[rng.integers(len(places))]
            moved = np.zeros(mask.shape, bool)
            moved[top : top + turned.shape[0], left : left + turned.shape[1]] = turned
            return moved & ~ndimage.binary_dilation(mask, iterations=1)
    return None


def head_mask(image: np.ndarray) -> np.ndarray:
    """Largest bright region with its holes filled; bool (height, width)."""
    smooth = ndimage.uniform_filter(image.astype(np.float32), 5)
    labels, count = ndimage.label(smooth > max(12.0, 0.3 * float(smooth.mean() + smooth.std())))
    if not count:
        return np.ones(image.shape, bool)
    return ndimage.binary_fill_holes(labels == np.bincount(labels.ravel())[1:].argmax() + 1)


def blank_head(image: np.ndarray) -> np.ndarray:
    """The picture without its head: what is left is border, size, text and brightness of the background."""
    return np.where(ndimage.binary_dilation(head_mask(image), iterations=3), 0, image).astype(np.uint8)


def _window(mask: np.ndarray, reach: int) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return (
        slice(max(rows[0] - reach, 0), rows[-1] + reach + 1),
        slice(max(columns[0] - reach, 0), columns[-1] + reach + 1),
    )


def _source(
    image: np.ndarray,
    window: tuple[slice, slice],
    values: np.ndarray,
    hole: np.ndarray,
    rng: np.random.Generator,
    method: str,
) -> np.ndarray:
    """What is cloned into the hole, float32, for the window only."""
    ring = ndimage.binary_dilation(hole, iterations=4) & ~hole
    if method == "mirror":
        columns = _mirrored_columns(image)
        mirrored = image[window[0]][:, columns[window[1]]].astype(np.float32)
        whole = np.zeros((hole.shape[0], image.shape[1]), bool)
        whole[:, window[1]] = hole
        own = whole[:, columns[window[1]]]
        # A tumour across the midline would be mirrored into itself.
        if (own & hole).sum() < 0.25 * hole.sum():
            return _harmonic_fill(mirrored, own)
        method = "patch"
    if method == "patch":
        shifted = _best_shift(image, window, hole, ring, rng)
        if shifted is not None:
            return shifted
    smooth = ndimage.uniform_filter(values, 3)
    spread = float(np.median(np.abs((values - smooth)[ring]))) * 1.4826 if ring.any() else 0.0
    height, width = values.shape
    grain = ndimage.uniform_filter(rng.standard_normal((height, width), dtype=np.float32), 2)
    coarse = rng.standard_normal((height // 4 + 1, width // 4 + 1), dtype=np.float32).repeat(4, 0).repeat(4, 1)
    return spread * (2.0 * grain + 0.8 * ndimage.uniform_filter(coarse[:height, :width], 5))


def _mirrored_columns(image: np.ndarray) -> np.ndarray:
    """For each column the one opposite, about the centre of the bright columns rather than of the picture."""
    weight = (image > 0.2 * image.max()).sum(axis=0)
    bright = np.flatnonzero(weight > 0.1 * weight.max())
    axis = int(bright[0] + bright[-1]) if bright.size else image.shape[1] - 1
    return np.clip(axis - np.arange(image.shape[1]), 0, image.shape[1] - 1)


def _best_shift(
    image: np.ndarray,
    window: tuple[slice, slice],
    hole: np.ndarray,
    ring: np.ndarray,
    rng: np.random.Generator,
    tries: int = 24,
) -> np.ndarray | None:
    """The image shifted so that around the hole it looks most like itself; None where no shift is clear of the hole."""
    height, width = image.shape
    whole = np.zeros(image.shape, bool)
    whole[window] = hole
    rows, columns = np.nonzero(hole)
    ring_rows, ring_columns = np.nonzero(ring)
    step = max(1, len(ring_rows) // 400)
    ring_rows, ring_columns = ring_rows[::step] + window[0].start, ring_columns[::step] + window[1].start
    at_ring = image[ring_rows, ring_columns].astype(np.float32)
    reach = max(np.ptp(rows), np.ptp(columns)) + 1
    rows, columns = rows + window[0].start, columns + window[1].start
    best, best_error = None, np.inf
    for angle, radius in zip(rng.uniform(0, 2 * np.pi, tries), rng.uniform(0.8, 2.0, tries), strict=True):
        down, right = round(np.sin(angle) * radius * reach), round(np.cos(angle) * radius * reach)
        if rows[0] + down < 0 or rows[-1] + down >= height:
            continue
        at_columns = columns + right
        if at_columns.min() < 0 or at_columns.max() >= width or whole[rows + down, at_columns].mean() > 0.02:
            continue
        there = image[np.clip(ring_rows + down, 0, height - 1), np.clip(ring_columns + right, 0, width - 1)]
        error = float(np.abs(at_ring - there).mean())
        if error < best_error:
            best, best_error = (down, right), error
    if best is None:
        return None
    return image[
        np.clip(np.arange(height)[window[0]] + best[0], 0, height - 1)[:, None],
        np.clip(np.arange(width)[window[1]] + best[1], 0, width - 1)[None, :],
    ].astype(np.float32)


def _harmonic_fill(values: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Solve Laplace's equation in the hole by a push-pull pyramid with a few Jacobi steps per level."""
    if not hole.any() or hole.all():
        return values
    known = (~hole).astype(np.float32)
    return np.where(hole, _push_pull(values * known, known), values)


def _push_pull(weighted: np.ndarray, weight: np.ndarray) -> np.ndarray:
    height, width = weighted.shape
    known = weight > 0
    own = weighted / np.where(known, weight, 1)
    if known.all() or min(height, width) < 2:
        return np.where(known, own, own[known].mean() if known.any() else 0.0)
    pad = ((0, height % 2), (0, width % 2))
    coarse_sum, coarse_weight = (
        np.pad(a, pad).reshape((height + 1) // 2, 2, (width + 1) // 2, 2).sum(axis=(1, 3)) for a in (weighted, weight)
    )
    coarse = _push_pull(coarse_sum, coarse_weight)
    result = np.where(known, own, np.repeat(np.repeat(coarse, 2, axis=0), 2, axis=1)[:height, :width])
    for _ in range(8):
        padded = np.pad(result, 1, mode="edge")
        mean = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]) * 0.25
        result = np.where(known, own, mean)
    return result.astype(np.float32)
