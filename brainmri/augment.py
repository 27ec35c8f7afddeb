"""Random views of a training slice: geometry, grey curves, artefacts, and counterfactuals that break shortcuts.

Every function draws from the generator it is given and from nothing else, so a view is a function of
(seed, epoch, image).
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from brainmri.counterfactual import METHODS, elsewhere, inpaint


def random_affine(
    image: np.ndarray, mask: np.ndarray, size: int, rng: np.random.Generator, warp: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Flip, rotate (±15°), scale, stretch, shear, shift and bend one view; outside is black.

    Parameters
    ----------
    image, mask : ndarray of shape (side, side), uint8
    warp : float
        Standard deviation, as a share of the side, by which each corner of a 4 × 4 grid is moved: other heads have
        other proportions. 0: without.

    Returns
    -------
    image, mask : ndarray of shape (size, size), uint8
        Twice supersampled where ``size`` is at most half of ``side``.
    """
    side = image.shape[0]
    work = size * 2 if size * 2 <= side else size
    angle = rng.uniform(-15, 15) * np.pi / 180 if rng.random() < 0.8 else 0.0
    scale = np.exp(rng.uniform(np.log(0.86), np.log(1.16)))
    stretch = np.exp(rng.uniform(-0.09, 0.09))
    shear = rng.uniform(-0.08, 0.08)
    shift = rng.uniform(-0.07, 0.07, 2) * side
    flip = -1.0 if rng.random() < 0.5 else 1.0
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1 / (scale * stretch), shear], [0, stretch / scale]])
    matrix = matrix @ np.diag([flip, 1.0]) * (side / work)
    offset = (side - 1) / 2 + shift - matrix @ np.full(2, (work - 1) / 2)
    how: tuple[Any, Any] = (
        Image.Transform.AFFINE,
        (matrix[0, 0], matrix[0, 1], offset[0], matrix[1, 0], matrix[1, 1], offset[1]),
    )
    if warp:
        how = Image.Transform.MESH, _bent_mesh(work, matrix, offset, rng.normal(0, warp * side, (5, 5, 2)))
    views = []
    for array in (image, mask):
        view = Image.fromarray(array).transform((work, work), *how, Image.Resampling.BILINEAR)
        views.append(np.asarray(view if work == size else view.reduce(work // size)))
    return views[0], views[1]


def _bent_mesh(work: int, matrix: np.ndarray, offset: np.ndarray, moves: np.ndarray) -> list[tuple]:
    """Pillow's mesh: for each cell of a grid over the view, the four-sided region of the slice that it shows."""
    edges = np.linspace(0, work, len(moves)).round().astype(int)
    corners = np.stack(np.meshgrid(edges, edges), axis=-1) @ matrix.T + offset + moves  # [row, column] -> (x, y)
    return [
        (
            (edges[c], edges[r], edges[c + 1], edges[r + 1]),
            (*corners[r, c], *corners[r + 1, c], *corners[r + 1, c + 1], *corners[r, c + 1]),
        )
        for r in range(len(edges) - 1)
        for c in range(len(edges) - 1)
    ]


def cut_away(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, share: float = 0.06) -> np.ndarray:
    """Blacken what lies beyond a straight line near the rim in a ``share`` of views, as defacing and tight fields do.

    Parameters
    ----------
    image, mask : ndarray of shape (side, side), uint8
        A view whose tumour the line would meet stays whole.
    """
    if rng.random() >= share:
        return image
    side = image.shape[0]
    angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.4) * side
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    beyond = x * np.cos(angle) + y * np.sin(angle) > depth
    return image if mask[beyond].any() else np.where(beyond, np.uint8(0), image)


def mild_intensity(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change grey values as little as two scans of one protocol differ.

    Parameters
    ----------
    image : ndarray of shape (size, size), float32, in [0, 1]

    Returns
    -------
    ndarray of shape (size, size), float32, in [0, 1]
    """
    image = image ** np.float32(np.exp(rng.normal(0, 0.12)))
    image = image * rng.uniform(0.9, 1.1)
    if rng.random() < 0.3:
        image = image + rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(0.005, 0.02)
    if rng.random() < 0.2:
        image = ndimage.gaussian_filter(image, rng.uniform(0.3, 0.7) * image.shape[0] / 128)
    return np.clip(image, 0, 1).astype(np.float32)


def random_intensity(image: np.ndarray, rng: np.random.Generator, reference: np.ndarray | None = None) -> np.ndarray:
    """Change what a scanner, a sequence or a file format changes, never where things are.

    Parameters
    ----------
    image : ndarray of shape (size, size), float32, in [0, 1]
    reference : ndarray, uint8, optional
        A slice of another source whose histogram the head may be given.

    Returns
    -------
    ndarray of shape (size, size), float32, in [0, 1]
    """
    size = image.shape[0]
    head = image > 0.04
    if reference is not None and rng.random() < 0.2 and head.any():
        image = _match_histogram(image, head, reference)
    if rng.random() < 0.75:
        image = _monotone_curve(image, rng)
    if rng.random() < 0.12:
        image = _any_curve(image, rng)
    if rng.random() < 0.35:
        image = image * _smooth_field(size, rng, 0.35)
    if rng.random() < 0.25:
        image = _lower_resolution(image, rng)
    if rng.random() < 0.2:
        image = ndimage.gaussian_filter(image, rng.uniform(0.3, 1.0) * size / 128)
    if rng.random() < 0.15:
        sharp = image - ndimage.gaussian_filter(image, 1.0)
        image = image + rng.uniform(0.3, 1.2) * sharp
    if rng.random() < 0.4:
        sigma = rng.uniform(0.005, 0.07)
        noise = rng.standard_normal((2, size, size), dtype=np.float32) * sigma
        # Rician: the magnitude of a complex signal (Gudbjartsson & Patz, MRM 1995).
        image = np.hypot(image + noise[0], noise[1]) if rng.random() < 0.5 else image + noise[0]
    if rng.random() < 0.5:
        image = (image - 0.5) * rng.uniform(0.75, 1.3) + 0.5 + rng.uniform(-0.12, 0.12)
        image = np.where(head, image, 0) if rng.random() < 0.7 else image
    image = np.clip(image, 0, 1)
    if rng.random() < 0.12:
        image = np.where(ndimage.binary_fill_holes(head), image, rng.uniform(0.02, 0.25))
    if rng.random() < 0.15:
        image = _border_marks(image, rng)
    if rng.random() < 0.15:
        image = _jpeg(image, int(rng.integers(25, 80)))
    return image.astype(np.float32)


def counterfactual(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, *, away: bool) -> np.ndarray | None:
    """Paint the masked area away, or an equal area elsewhere in the head; None where there is no room."""
    where = mask > 127 if away else elsewhere(image, mask > 127, rng)
    if where is None or not where.any():
        return None
    return inpaint(image, where, rng, METHODS[rng.integers(len(METHODS))], margin=int(rng.integers(1, 6)))


def paste_tumour(
    image: np.ndarray, donor: np.ndarray, donor_mask: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Put a donor's tumour at the same place of another head, as contrast against its surroundings.

    Parameters
    ----------
    image, donor, donor_mask : ndarray of shape (side, side), uint8

    Returns
    -------
    image, mask : ndarray of shape (side, side), uint8
    """
    region = donor_mask > 127
    grown = ndimage.binary_dilation(region, iterations=int(rng.integers(1, 4)))
    ring = ndimage.binary_dilation(grown, iterations=4) & ~grown
    if not ring.any():
        return image, np.zeros_like(donor_mask)
    alpha = ndimage.gaussian_filter(grown.astype(np.float32), rng.uniform(0.7, 1.8))
    surroundings, here = float(np.median(donor[ring])), float(np.median(image[grown | ring]))
    gain = rng.uniform(0.7, 1.4) * (here + 40) / (surroundings + 40)
    contrast = (donor.astype(np.float32) - surroundings) * gain
    # Part of the head's own texture stays visible through the lesion.
    base = rng.uniform(0.0, 0.4) * (image.astype(np.float32) - here) + here
    pasted = image + alpha * (base + contrast - image)
    return np.clip(np.rint(pasted), 0, 255).astype(np.uint8), donor_mask


def _match_histogram(image: np.ndarray, head: np.ndarray, reference: np.ndarray) -> np.ndarray:
    target = np.sort(reference[reference > 10].ravel().astype(np.float32)) / 255.0
    if target.size < 64:
        return image
    quantiles = np.linspace(0, 1, 33)
    source = np.maximum.accumulate(np.quantile(image[head], quantiles) + np.arange(33) * 1e-6)
    wanted = target[(quantiles * (target.size - 1)).astype(int)]
    return np.where(head, np.interp(image, source, wanted), image).astype(np.float32)


def _monotone_curve(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.5:
        return image ** np.float32(np.exp(rng.normal(0, 0.35)))
    heights = np.cumsum(np.concatenate([[0], rng.gamma(2.0, 1.0, 6)]))
    return np.interp(image, np.linspace(0, 1, 7), heights / heights[-1]).astype(np.float32)


def _any_curve(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """T1, T2 and FLAIR order tissues differently: a curve that need not rise. Air stays black."""
    heights = np.concatenate([[0.0], rng.uniform(0.1, 1.0, 5)])
    curve = np.interp(image, [0, 0.15, 0.35, 0.55, 0.78, 1.0], heights)
    return (0.35 * image + 0.65 * curve).astype(np.float32)


def _smooth_field(size: int, rng: np.random.Generator, strength: float) -> np.ndarray:
    coarse = Image.fromarray(rng.uniform(-strength, strength, (4, 4)).astype(np.float32))
    return 1 + np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _lower_resolution(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = image.shape[0]
    small = max(32, int(size * rng.uniform(0.4, 0.9)))
    shrunk = Image.fromarray(image).resize((small, small), Image.Resampling.BILINEAR)
    return np.asarray(shrunk.resize((size, size), Image.Resampling.BILINEAR))


def _border_marks(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A frame line, a scale bar or letters' worth of bright blocks near the rim."""
    image, size = image.copy(), image.shape[0]
    for _ in range(int(rng.integers(1, 4))):
        length, width = int(rng.uniform(0.03, 0.5) * size), max(1, int(rng.uniform(0.005, 0.04) * size))
        along, depth = int(rng.integers(0, size - length)), int(rng.integers(0, max(1, size // 16)))
        view = image if rng.random() < 0.5 else image.T
        row = depth if rng.random() < 0.5 else size - 1 - depth - width
        view[row : row + width, along : along + length] = rng.uniform(0.4, 1.0)
    return image


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray((image * 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), np.float32) / 255.0
