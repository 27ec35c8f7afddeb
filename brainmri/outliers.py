"""Pictures that are no brain MRI, drawn at random: what the gate learns the difference from. No file is needed.

Photographs are imitated by dead leaves, noise with natural spectra and shapes; X-rays by a body with lungs and ribs;
head CT by a training head that is given a bone ring and a CT window; the rest are training heads taken apart.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

SIDE = 160


def draw_outliers(heads: Sequence[np.ndarray], n: int, seed: int = 0) -> list[np.ndarray]:
    """Draw ``n`` pictures, kinds in turn.

    Parameters
    ----------
    heads : sequence of ndarray of shape (height, width), float32 in [0, 1]
        Network inputs of training images, material for the kinds that are made from heads.

    Returns
    -------
    list of ndarray, uint8
        Of sizes around 160 pixels.

    References
    ----------
    .. [1] Hendrycks et al., "Deep Anomaly Detection with Outlier Exposure", ICLR 2019, arXiv:1812.04606.
    .. [2] Baradad et al., "Learning to See by Looking at Noise", NeurIPS 2021: dead leaves, spectra.
    """
    drawn = []
    for index in range(n):
        rng = np.random.default_rng([seed, index])
        head = np.asarray(heads[int(rng.integers(len(heads)))], np.float32)
        picture = KINDS[index % len(KINDS)](rng, head)
        drawn.append(np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8))
    return drawn


def _shape(rng: np.random.Generator) -> tuple[int, int]:
    aspect = rng.uniform(0.6, 1.0)
    return (SIDE, int(SIDE * aspect)) if rng.random() < 0.4 else (int(SIDE * aspect), SIDE)


def _spectrum(rng: np.random.Generator, shape: tuple[int, int], power: float) -> np.ndarray:
    rows, columns = np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None]
    radius = np.hypot(rows, columns)
    radius[0, 0] = 1
    phase = np.exp(2j * np.pi * rng.random(shape))
    noise = np.real(np.fft.ifft2(phase / radius**power))
    low, high = np.percentile(noise, (1, 99))
    return np.clip((noise - low) / max(high - low, 1e-9), 0, 1)


def _dead_leaves(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    shape = _shape(rng)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    picture = np.full(shape, rng.random())
    texture = _spectrum(rng, shape, rng.uniform(0.8, 2)) - 0.5
    for radius in np.sort(5 + 55 * rng.random(int(rng.integers(30, 140))) ** 3)[::-1]:
        y, x = rng.random() * shape[0], rng.random() * shape[1]
        angle, squash = rng.random() * np.pi, rng.uniform(0.3, 1)
        u = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
        v = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        if rng.random() < 0.5:
            inside = (u / radius) ** 2 + (v / radius / squash) ** 2 < 1
        else:
            inside = (np.abs(u) < radius) & (np.abs(v) < radius * squash)
        shade = rng.random() + rng.uniform(-0.4, 0.4) * u / radius + rng.uniform(0, 0.6) * texture
        picture = np.where(inside, shade, picture)
    return ndimage.gaussian_filter(picture + rng.uniform(0, 0.3) * texture, rng.uniform(0, 1))


def _noise(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    return _spectrum(rng, _shape(rng), rng.uniform(0.3, 2.2)) ** rng.uniform(0.5, 2)


def _photograph(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    """A subject before a ground, each plain, graded, leaves or cut from a photograph."""
    shape = _shape(rng)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    ground = rng.random() + rng.uniform(-0.6, 0.6) * rows / shape[0] + rng.uniform(-0.4, 0.4) * columns / shape[1]
    ground = ground + rng.uniform(0, 0.3) * (_spectrum(rng, shape, rng.uniform(1, 2)) - 0.5)
    if rng.random() < 0.4:
        ground = _fit(_photograph_crop(rng, head), shape) * rng.uniform(0.4, 1)
    subject = _fit((_dead_leaves if rng.random() < 0.5 else _photograph_crop)(rng, head), shape)
    y, x = shape[0] * rng.uniform(0.3, 0.8), shape[1] * rng.uniform(0.3, 0.7)
    blob = ndimage.gaussian_filter(_spectrum(rng, shape, 2.0), 3)
    blob = blob + 0.6 * np.exp(-(((rows - y) / 45) ** 2 + ((columns - x) / 40) ** 2))
    picture = np.where(blob > np.quantile(blob, rng.uniform(0.4, 0.8)), subject, ground)
    return ndimage.gaussian_filter(picture, rng.uniform(0.2, 1.5))


def _fit(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return ndimage.zoom(picture, [a / b for a, b in zip(shape, picture.shape, strict=True)], order=1)


@functools.cache
def _sample_photographs() -> tuple[np.ndarray, ...]:
    """The photographs that scikit-learn and matplotlib carry, grey in [0, 1]."""
    from matplotlib import cbook
    from PIL import Image
    from sklearn.datasets import load_sample_images

    found = [np.asarray(image, np.float32).mean(axis=2) / 255 for image in load_sample_images().images]
    for name in ("grace_hopper.jpg", "Minduka_Present_Blue_Pack.png"):
        file = cbook.get_sample_data(name, asfileobj=False)
        found.append(np.asarray(Image.open(str(file)).convert("L"), np.float32) / 255)
    return tuple(found)


def _photograph_crop(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    from PIL import Image

    photographs = _sample_photographs()
    whole = photographs[int(rng.integers(len(photographs)))]
    height, width = (max(24, int(s * rng.uniform(0.15, 1))) for s in whole.shape)
    top, left = rng.integers(whole.shape[0] - height + 1), rng.integers(whole.shape[1] - width + 1)
    part = whole[top : top + height, left : left + width][:, :: rng.choice([-1, 1])]
    size = _shape(rng)[::-1]
    angle = rng.uniform(-25, 25) if rng.random() < 0.3 else 0.0
    turned = Image.fromarray(np.ascontiguousarray(part)).rotate(angle, Image.Resampling.BILINEAR)
    part = np.asarray(turned.resize(size, Image.Resampling.BILINEAR))
    return (1 - part if rng.random() < 0.15 else part) ** rng.uniform(0.5, 2)


def _x_ray(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    shape = (int(SIDE * rng.uniform(0.75, 1)), SIDE)
    rows, columns = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    body = 1 / (1 + np.exp(14 * (np.abs(columns) - rng.uniform(0.75, 1.1) - 0.25 * rows)))
    picture = body * rng.uniform(0.55, 0.95) + rng.uniform(0, 0.3)
    for side in (-1, 1):
        x, y = side * rng.uniform(0.35, 0.48), rng.uniform(-0.25, 0.1)
        w, h = rng.uniform(0.2, 0.33), rng.uniform(0.5, 0.8)
        lung = 1 / (1 + np.exp(rng.uniform(6, 14) * (np.hypot((columns - x) / w, (rows - y) / h) - 1)))
        ribs = 1 - rng.uniform(0.1, 0.4) * (np.sin((rows + 0.5 * np.abs(columns - x)) * rng.uniform(18, 30)) > 0.3)
        picture = picture - lung * rng.uniform(0.3, 0.7) * ribs
    picture = picture + rng.uniform(0.1, 0.4) * np.exp(-((columns / rng.uniform(0.08, 0.2)) ** 2))
    picture = picture + rng.uniform(0, 0.4) * (rows > rng.uniform(0.3, 0.7)) + 0.1 * (_spectrum(rng, shape, 1.5) - 0.5)
    return ndimage.gaussian_filter(picture, rng.uniform(0.4, 1.5))


def _head_ct(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    """Bone is the brightest in CT and dark in MRI: a white ring, and inside it a narrow window of greys."""
    outline = ndimage.binary_fill_holes(ndimage.gaussian_filter(head, 1) > 0.1)
    outline = ndimage.binary_opening(outline, iterations=4)
    depth = ndimage.distance_transform_edt(outline)
    wobble = 1 + 0.8 * (_spectrum(rng, head.shape, 2.0) - 0.5)
    skin, bone = rng.uniform(0, 5) * wobble, rng.uniform(4, 15) * wobble
    inner = depth > skin + bone
    values = head[inner] if inner.any() else head
    low, high = np.percentile(values, (5, 95))
    tissue = np.clip((head - low) / max(high - low, 1e-3), 0, 1)
    if rng.random() < 0.5:
        tissue = ndimage.gaussian_filter(tissue, rng.uniform(0.5, 2))
    picture = rng.uniform(0.15, 0.5) + rng.uniform(0.05, 0.4) * (tissue - 0.5)
    if rng.random() < 0.3:  # a bleed
        blob = ndimage.gaussian_filter(_spectrum(rng, head.shape, 2.0), 2)
        picture = np.where(blob > np.quantile(blob, rng.uniform(0.85, 0.98)), rng.uniform(0.6, 0.9), picture)
    picture = np.where(inner, picture, 1.0)
    picture = np.where(depth < skin, rng.uniform(0, 0.4), picture) + rng.normal(0, rng.uniform(0.005, 0.06), head.shape)
    return np.where(outline, picture, 0)


def _object(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    """A head's outline with no brain in it: a thing on a black ground."""
    outline = ndimage.binary_fill_holes(ndimage.gaussian_filter(head, 1) > 0.1)
    inside = (_dead_leaves, _noise, _photograph_crop)[int(rng.integers(3))](rng, head)
    return np.where(outline, 0.2 + 0.8 * _fit(inside, (head.shape[0], head.shape[1])), 0)


def _page(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    """Lines of print, dark on bright or the other way round."""
    shape = _shape(rng)
    picture = np.ones(shape)
    height = int(rng.integers(3, 9))
    for top in range(int(rng.integers(4, 20)), shape[0] - height, int(height * rng.uniform(1.5, 2.5))):
        letters = np.repeat(rng.random(shape[1] // 2 + 1) < rng.uniform(0.4, 0.7), 2)[: shape[1]]
        letters[: int(rng.integers(5, 20))] = False
        letters[shape[1] - int(rng.integers(5, 60)) :] = False
        picture[top : top + height][:, letters] = rng.uniform(0, 0.4)
    return 1 - picture if rng.random() < 0.3 else picture


def _shuffled(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    cells = int(rng.choice([2, 4]))
    side = 128 // cells
    tiles = head.reshape(cells, side, cells, side).swapaxes(1, 2).reshape(-1, side, side)
    tiles = tiles[np.roll(rng.permutation(len(tiles)), 1)] if cells > 2 else tiles[[3, 2, 1, 0]]
    return tiles.reshape(cells, cells, side, side).swapaxes(1, 2).reshape(128, 128)


def _negative(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    return 1 - head


KINDS: tuple[Callable[[np.random.Generator, np.ndarray], np.ndarray], ...] = (
    _photograph_crop,
    _head_ct,
    _photograph,
    _x_ray,
    _dead_leaves,
    _object,
    _photograph_crop,
    _noise,
    _photograph,
    _head_ct,
    _photograph_crop,
    _negative,
    _page,
    _x_ray,
    _photograph,
    _shuffled,
)
