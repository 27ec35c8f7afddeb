"""Pictures that are no brain MRI, drawn at random: what the gate learns the difference from. No file is needed.

Photographs are imitated by dead leaves, noise with natural spectra, and simple scenes: faces, landscapes, rooms, round
things, foliage, lamps at night; X-rays by a body with lungs and ribs; head CT by a training head that is given a bone
ring and a CT window; the rest are drawings, print and training heads taken apart.
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


def _fit(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return ndimage.zoom(picture, [a / b for a, b in zip(shape, picture.shape, strict=True)], order=1)


@functools.cache
def _sample_photographs() -> tuple[np.ndarray, ...]:
    """The photographs that scikit-learn and matplotlib carry, float32 (height, width, 3) in [0, 1]."""
    from matplotlib import cbook
    from PIL import Image
    from sklearn.datasets import load_sample_images

    found = [np.asarray(image, np.float32) / 255 for image in load_sample_images().images]
    for name in ("grace_hopper.jpg", "Minduka_Present_Blue_Pack.png"):
        file = cbook.get_sample_data(name, asfileobj=False)
        found.append(np.asarray(Image.open(str(file)).convert("RGB"), np.float32) / 255)
    return tuple(found)


def photograph_crop(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    """A part of a photograph, seen through a colour filter: grass is bright in one and dark in the other."""
    from PIL import Image

    photographs = _sample_photographs()
    whole = photographs[int(rng.integers(len(photographs)))]
    height, width = (max(24, int(s * rng.uniform(0.15, 1))) for s in whole.shape[:2])
    top, left = rng.integers(whole.shape[0] - height + 1), rng.integers(whole.shape[1] - width + 1)
    part = whole[top : top + height, left : left + width] @ rng.dirichlet((1, 1, 1)).astype(np.float32)
    part = part[:: rng.choice([-1, 1], p=[0.1, 0.9]), :: rng.choice([-1, 1])]
    size = _shape(rng)[::-1]
    angle = rng.uniform(-25, 25) if rng.random() < 0.3 else 0.0
    turned = Image.fromarray(np.ascontiguousarray(part)).rotate(angle, Image.Resampling.BILINEAR)
    part = np.asarray(turned.resize(size, Image.Resampling.BILINEAR))
    return _camera(rng, 1 - part if rng.random() < 0.15 else part)


def _camera(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Exposure, contrast, vignette, focus and grain of a photograph."""
    picture = np.clip(picture, 0, 1) ** rng.uniform(0.45, 2.2)
    if rng.random() < 0.5:
        steep = rng.uniform(4, 10)
        picture = 1 / (1 + np.exp(-steep * (picture - rng.uniform(0.3, 0.6))))
    if rng.random() < 0.4:
        rows, columns = np.mgrid[-1 : 1 : picture.shape[0] * 1j, -1 : 1 : picture.shape[1] * 1j]
        picture = picture * np.clip(1.2 - rng.uniform(0.3, 1.1) * np.hypot(rows, columns), 0, 1)
    if rng.random() < 0.5:
        picture = ndimage.gaussian_filter(picture, rng.uniform(0.3, 1.6))
    return picture + rng.normal(0, rng.uniform(0, 0.04), picture.shape)


def _ground(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A wall, a cloth, a sky: plain or graded, with some texture; black and white more often than chance has it."""
    rows, columns = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    base = rng.choice([0.02, 0.95, rng.random()], p=[0.35, 0.2, 0.45])
    texture = _spectrum(rng, shape, rng.uniform(0.8, 2.2)) - 0.5
    return base + rng.uniform(-0.25, 0.25) * rows + rng.uniform(-0.25, 0.25) * columns + rng.uniform(0, 0.4) * texture


def _solid(rng: np.random.Generator, picture: np.ndarray, centre, radii, angle: float, texture: float) -> np.ndarray:
    """Put a round body lit from one side into a picture; ``centre`` and ``radii`` are (row, column) in pixels."""
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    y, x = rows - centre[0], columns - centre[1]
    v = (y * np.cos(angle) - x * np.sin(angle)) / radii[0]
    u = (x * np.cos(angle) + y * np.sin(angle)) / radii[1]
    depth = np.sqrt(np.clip(1 - u**2 - v**2, 0, 1))
    light = rng.normal(size=3)
    light[2] = abs(light[2]) + 0.3
    light /= np.linalg.norm(light)
    shade = np.clip(light[0] * u + light[1] * v + light[2] * depth, 0, 1)
    body = rng.uniform(0.05, 0.35) + rng.uniform(0.3, 0.9) * shade + rng.uniform(0, 0.7) * shade ** rng.uniform(8, 40)
    body = body + texture * (_spectrum(rng, (picture.shape[0], picture.shape[1]), rng.uniform(0.8, 2)) - 0.5)
    return np.where(u**2 + v**2 < 1, body, picture)


def _still_life(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    """Fruit, pots, pebbles: a few round things, often one before black, as round as a head."""
    shape = _shape(rng)
    picture = _ground(rng, shape)
    count = 1 if rng.random() < 0.4 else int(rng.integers(2, 9))
    for _ in range(count):
        radii = rng.uniform(0.25, 0.48, 2) * min(shape) if count == 1 else rng.uniform(0.06, 0.35, 2) * min(shape)
        centre = np.array(shape) * rng.uniform(0.4 if count == 1 else 0.1, 0.6 if count == 1 else 0.9, 2)
        picture = _solid(rng, picture, centre, radii, rng.uniform(0, np.pi), rng.uniform(0, 0.6))
    return _camera(rng, picture)


def _portrait(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    """Shoulders, hair, a face with eyes, brows and a mouth."""
    shape = _shape(rng)
    size = rng.uniform(0.18, 0.38) * shape[0]
    top, left = shape[0] * rng.uniform(0.38, 0.55), shape[1] * rng.uniform(0.35, 0.65)
    picture = _ground(rng, shape)
    picture = _solid(rng, picture, (top + 2.3 * size, left), (1.2 * size, 1.9 * size), 0, rng.uniform(0, 0.8))
    if rng.random() < 0.85:
        hair = picture.copy()
        hair = _solid(rng, hair, (top - 0.2 * size, left), (1.25 * size, rng.uniform(0.85, 1.2) * size), 0, 0.5)
        picture = np.where(hair != picture, rng.uniform(0.1, 1) * hair, picture)
    tilt = rng.normal(0, 0.12)
    picture = _solid(rng, picture, (top, left), (size, rng.uniform(0.65, 0.8) * size), tilt, rng.uniform(0, 0.2))
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    features = [(-0.15, -0.33, 0.09, 0.15), (-0.15, 0.33, 0.09, 0.15), (0.5, 0.0, 0.07, 0.28), (0.22, 0.0, 0.06, 0.13)]
    features += [(-0.36, -0.33, 0.05, 0.2), (-0.36, 0.33, 0.05, 0.2)]
    for down, right, high, wide in features:
        y, x = rows - top - size * (down + right * tilt), columns - left - size * right
        dark = np.exp(-((y / (high * size)) ** 2) - (x / (wide * size)) ** 2)
        picture = picture * (1 - rng.uniform(0.3, 0.9) * dark)
    return _camera(rng, picture)


def _landscape(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    """Sky, ridges one behind the other, ground that grows coarser towards the reader; houses and trees."""
    shape = _shape(rng)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    horizon = rng.uniform(0.25, 0.75) * shape[0]
    sky, cloud = rng.uniform(0.3, 1), _spectrum(rng, shape, 2) - 0.5
    picture = sky + rng.uniform(-0.4, 0.1) * (horizon - rows) / shape[0] + rng.uniform(0, 0.6) * cloud
    below = np.maximum(rows - horizon, 1)
    texture = _spectrum(rng, (256, 256), rng.uniform(0.6, 1.8))
    near = texture[(4000 / below).astype(int) % 256, (128 + 60 * (columns - shape[1] / 2) / below).astype(int) % 256]
    ground = rng.uniform(0.1, 0.8) + rng.uniform(0.1, 0.8) * (near - 0.5)
    for step in range(int(rng.integers(0, 4))):
        line = _spectrum(rng, (2, shape[1]), rng.uniform(1, 2))[0] * rng.uniform(0.05, 0.35) * shape[0]
        haze = rng.uniform(0.1, 0.8) * (1 - 0.2 * step)
        picture = np.where(rows > horizon - line * (1 - 0.2 * step), haze + 0.2 * cloud, picture)
    for _ in range(int(rng.integers(0, 7))):
        x, wide, high = rng.random() * shape[1], rng.uniform(4, 30), rng.uniform(8, 0.8 * horizon)
        shade = rng.random()
        if rng.random() < 0.5:  # a house with windows
            inside = (np.abs(columns - x) < wide) & (rows > horizon - high) & (rows < horizon + 6)
            window = (columns % rng.integers(5, 12) < 3) & (rows % rng.integers(6, 14) < 4)
            shade = shade + rng.uniform(-0.5, 0.5) * window
        else:
            crown = ((columns - x) / wide) ** 2 + ((rows - horizon + 0.6 * high) / (0.4 * high)) ** 2 < 1 + 2 * cloud
            inside = crown | ((np.abs(columns - x) < 2) & (rows > horizon - 0.6 * high) & (rows < horizon + 4))
            shade = 0.5 * shade + 0.6 * (near - 0.5)
        picture = np.where(inside, shade, picture)
    return _camera(rng, np.where(rows > horizon, ground, picture))


def _room(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    """Walls, floor and ceiling that meet at a far wall; pictures, doors and boxes; tiles and planks."""
    shape = _shape(rng)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    middle = np.array(shape) * rng.uniform(0.3, 0.7, 2)
    y, x = (rows - middle[0]) / shape[0], (columns - middle[1]) / shape[1]
    far = np.maximum(np.abs(x), np.abs(y) * rng.uniform(0.7, 1.4))
    side = np.where(np.abs(x) >= far, np.where(x > 0, 1, 3), np.where(y > 0, 2, 0))
    side = np.where(far < rng.uniform(0.05, 0.25), 4, side)
    along, across = 1 / np.maximum(far, 0.02), np.where(side % 2 == 1, y, x) / np.maximum(far, 0.02)
    picture = rng.uniform(0.1, 0.95, 5)[side] * (1 - rng.uniform(-0.2, 0.5) / (1 + 3 * far))
    tiled = (np.sin(along * rng.uniform(1, 6)) > 0) ^ (np.sin(across * rng.uniform(2, 14)) > 0)
    picture = picture + (side == rng.integers(4)) * rng.uniform(-0.4, 0.4) * tiled
    for _ in range(int(rng.integers(1, 9))):
        top, left = rng.random(2) * shape
        bottom, right = np.array([top, left]) + rng.uniform(8, 60, 2)
        lean = rng.uniform(-0.3, 0.3) * (rows - top)
        inside = (rows > top) & (rows < bottom) & (columns > left + lean) & (columns < right + lean)
        picture = np.where(inside, rng.random() + 0.3 * (columns - left) / shape[1], picture)
    return _camera(rng, picture + rng.uniform(0, 0.3) * (_spectrum(rng, shape, 1.2) - 0.5))


def _foliage(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    """Leaves, grass or petals: many of one form, the nearer the brighter, with shadow between them."""
    from PIL import Image, ImageDraw

    shape = _shape(rng)
    image = Image.new("L", shape[::-1], int(rng.integers(0, 60)))
    draw = ImageDraw.Draw(image)
    count, length, slim = int(rng.integers(80, 700)), rng.uniform(5, 40), rng.uniform(0.06, 0.8)
    heading, scatter = rng.uniform(0, np.pi), rng.choice([0.15, 3.0])
    turn = np.linspace(0, 2 * np.pi, 10)
    for near in np.linspace(0.1, 1, count):
        angle = heading + scatter * rng.normal()
        u, v = length * (0.4 + 0.6 * near) * np.cos(turn), length * slim * (0.4 + 0.6 * near) * np.sin(turn)
        x = rng.random() * shape[1] + u * np.cos(angle) - v * np.sin(angle)
        y = rng.random() * shape[0] + u * np.sin(angle) + v * np.cos(angle)
        draw.polygon(list(zip(x, y, strict=True)), fill=int(255 * near * rng.uniform(0.4, 1)))
    picture = np.asarray(image, np.float32) / 255
    return _camera(rng, picture * (1 - rng.uniform(0, 0.7) * _spectrum(rng, shape, 2)))


def _drawing(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    """Strokes, outlines, filled forms and words, dark on bright or the other way round: sketches, plots, signs."""
    from PIL import Image, ImageDraw, ImageFont

    shape = _shape(rng)
    image = Image.new("L", shape[::-1], 255)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 30))):
        x, y = rng.random(2) * shape[::-1]
        wide, high = rng.uniform(5, 90, 2)
        ink, width, what = int(rng.integers(0, 180)), int(rng.integers(1, 5)), int(rng.integers(5))
        inside = ink if rng.random() < 0.5 else None
        if what == 0:
            walk = np.array([x, y]) + np.cumsum(rng.normal(0, 8, (int(rng.integers(3, 25)), 2)), axis=0)
            draw.line([tuple(p) for p in walk], fill=ink, width=width)
        elif what == 1:
            draw.line((x, y, x + wide * rng.choice([-1, 1]), y + rng.choice([0, high])), fill=ink, width=width)
        elif what == 2:
            draw.ellipse((x, y, x + wide, y + high), outline=ink, width=width, fill=inside)
        elif what == 3:
            draw.rectangle((x, y, x + wide, y + high), outline=ink, width=width, fill=inside)
        else:
            word = "".join(chr(c) for c in rng.integers(65, 123, int(rng.integers(1, 9))))
            draw.text((x - 30, y), word, fill=ink, font=ImageFont.load_default(int(rng.integers(8, 50))))
    picture = np.asarray(image, np.float32) / 255
    return _camera(rng, 1 - picture if rng.random() < 0.4 else picture)


def _lights(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    """Night: lamps in and out of focus before a dark scene."""
    shape = _shape(rng)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    picture = rng.uniform(0, 0.35) * (_dead_leaves if rng.random() < 0.5 else _room)(rng, head)
    picture = _fit(picture, shape)
    for _ in range(int(rng.integers(2, 30))):
        distance = np.hypot(rows - rng.random() * shape[0], columns - rng.random() * shape[1])
        radius = rng.uniform(1, 22)
        soft = np.clip(radius - distance, 0, 1) if rng.random() < 0.6 else np.exp(-((distance / radius) ** 2))
        picture = picture + rng.uniform(0.2, 1) * soft
    return _camera(rng, picture)


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
    inside = (_dead_leaves, _noise, photograph_crop)[int(rng.integers(3))](rng, head)
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


# No crops of photographs by themselves: with them in, photographs left out are turned away less often.
KINDS: tuple[Callable[[np.random.Generator, np.ndarray], np.ndarray], ...] = (
    _head_ct,
    _portrait,
    _x_ray,
    _dead_leaves,
    _object,
    _landscape,
    _noise,
    _still_life,
    _room,
    _head_ct,
    _negative,
    _foliage,
    _page,
    _x_ray,
    _drawing,
    _shuffled,
    _lights,
)
