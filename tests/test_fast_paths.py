"""The quick code between bytes and answer against plain implementations of the same thing."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from brainmri import gate, imaging
from brainmri.synthetic import samples

SHAPES = ((16, 16), (64, 200), (128, 128), (129, 127), (256, 256), (256, 150), (512, 512), (333, 1024))


def plain_head_box(pixels):
    height, width = pixels.shape
    factor = max(1.0, max(height, width) / 128)
    shape = (max(8, round(height / factor)), max(8, round(width / factor)))
    small = np.asarray(Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.BOX), np.float32)
    top, left, bottom, right = imaging._strip_bright_border(small)
    inner = small[top:bottom, left:right]
    smooth = ndimage.uniform_filter(inner, 3)
    counts = np.bincount(smooth.astype(np.uint8).ravel(), minlength=256).astype(np.float64)
    below, mass = np.cumsum(counts), np.cumsum(counts * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mass[-1] * below / below[-1] - mass) ** 2 / (below * (below[-1] - below))
    otsu = np.argmax(np.nan_to_num(between, nan=-1, posinf=-1, neginf=-1))
    mask = ndimage.binary_opening(smooth > max(6.0, float(np.percentile(smooth, 2)) + 0.35 * otsu), iterations=2)
    labels, count = ndimage.label(mask)
    box = (0, 0, *inner.shape)
    if count:
        rows, columns = ndimage.find_objects(labels)[int(np.bincount(labels.ravel())[1:].argmax())]
        if (rows.stop - rows.start) * (columns.stop - columns.start) >= 0.1 * inner.size:
            box = (rows.start - 1, columns.start - 1, rows.stop + 1, columns.stop + 1)
    found = (max(top + box[0], top), max(left + box[1], left))
    ends = (top + min(box[2], inner.shape[0]), left + min(box[3], inner.shape[1]))
    scale = (height / shape[0], width / shape[1])
    return (
        int(found[0] * scale[0]),
        int(found[1] * scale[1]),
        min(height, int(np.ceil(ends[0] * scale[0]))),
        min(width, int(np.ceil(ends[1] * scale[1]))),
    )


def plain_preprocess(pixels):
    top, left, bottom, right = plain_head_box(pixels)
    side = max(bottom - top, right - left)
    square = np.zeros((side, side), np.uint8)
    row, column = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    square[row : row + bottom - top, column : column + right - left] = pixels[top:bottom, left:right]
    resized = np.asarray(Image.fromarray(square).convert("F").resize((128, 128), Image.Resampling.BILINEAR))
    if (resized > 8).sum() < 64:
        return np.clip(resized / 255, 0, 1)
    low, high = np.percentile(resized[resized > 8], (1, 99.5))
    return np.clip((resized - low) / max(high - low, 8.0), 0, 1).astype(np.float32)


def plain_describe(feature_maps, picture):
    """One picture at a time, every number from its definition."""
    small = picture.reshape(64, 2, 64, 2).mean(axis=(1, 3))
    white = (picture >= 0.95).reshape(64, 2, 64, 2).mean(axis=(1, 3))
    head = ndimage.binary_fill_holes(np.pad(small > 0.08, 1))
    depth = ndimage.distance_transform_edt(head)[1:-1, 1:-1]
    head = head[1:-1, 1:-1]
    shells = []
    for low, high in zip((0, *gate.DEPTHS), (*gate.DEPTHS, np.inf), strict=True):
        inside = head & (depth >= low) & (depth < high)
        shells += [
            f(a[inside]) if inside.any() else 0 for f, a in ((np.mean, small), (np.std, small), (np.mean, white))
        ]
        shells.append(np.sqrt(inside.sum()) / 64)
    rim = head[0].mean() + head[-1].mean() + head[:, 0].mean() + head[:, -1].mean()
    rough = [np.sqrt(np.abs(d).mean()) for d in (np.diff(small, axis=0), np.diff(picture, axis=1))]
    histogram = np.histogram(np.minimum((picture * 24).astype(int), 23), np.arange(25))[0] / picture.size
    features = np.sqrt(feature_maps.mean(axis=(0, 1)))
    return np.concatenate([features, shells, [head.mean(), depth.max() / 32, rim, *rough], np.sqrt(histogram)])


@pytest.fixture(scope="module")
def pictures():
    """Noise, smooth blobs, flat areas and heads in many sizes, some in a white frame."""
    rng = np.random.default_rng(0)
    made = [np.full((64, 64), value, np.uint8) for value in (0, 120, 255)]
    for shape in SHAPES:
        noise = rng.random(shape)
        blobs = ndimage.gaussian_filter(noise, 9)
        blobs = (blobs - blobs.min()) / np.ptp(blobs)
        made += [(255 * x).astype(np.uint8) for x in (noise, blobs, np.where(blobs > 0.5, blobs, 0.02))]
        for sample in samples().values():
            head = np.array(Image.fromarray(sample.slice.pixels).resize(shape[::-1]))
            framed = head.copy()
            framed[: shape[0] // 9] = framed[:, : shape[1] // 7] = 250
            made += [head, framed]
    return made


def test_preprocessing_is_the_plain_one_to_the_last_bit(pictures):
    for pixels in pictures:
        assert imaging.head_box(pixels) == plain_head_box(pixels), pixels.shape
        np.testing.assert_array_equal(imaging.preprocess(pixels)[0], plain_preprocess(pixels))


def test_the_gates_descriptors_are_the_plain_ones(pictures):
    rng = np.random.default_rng(1)
    inputs = np.stack([imaging.preprocess(pixels)[0] for pixels in pictures])
    feature_maps = rng.random((len(inputs), 8, 8, 16), np.float32)
    described = gate.describe(feature_maps, inputs)
    expected = [plain_describe(f, x) for f, x in zip(feature_maps, inputs, strict=True)]
    np.testing.assert_allclose(described, expected, atol=1e-5)
    one_by_one = [gate.describe(feature_maps[i : i + 1], inputs[i : i + 1])[0] for i in range(len(inputs))]
    np.testing.assert_allclose(described, one_by_one, atol=1e-6)


def test_depths_of_random_masks_are_scipys():
    rng = np.random.default_rng(2)
    masks = np.stack([ndimage.gaussian_filter(rng.normal(size=(64, 64)), s) > -0.3 / (s + 1) for s in range(40)])
    masks[0] = True
    filled = gate._filled(masks)
    squared = gate._squared_depth(filled)
    for mask, fast, depth in zip(masks, filled, squared, strict=True):
        plain = ndimage.binary_fill_holes(np.pad(mask, 1))
        np.testing.assert_array_equal(fast, plain)
        np.testing.assert_allclose(depth, ndimage.distance_transform_edt(plain)[1:-1, 1:-1] ** 2, rtol=1e-12)
