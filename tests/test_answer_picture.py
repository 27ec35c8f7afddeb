"""The picture beside an answer."""

import io

import numpy as np
import pytest
from PIL import Image
from streamlit.elements.lib import image_utils

from brainmri.imaging import preprocess
from brainmri.storage import Record
from brainmri.types import CropTransform, MRISlice
from brainmri.ui import results


def slice_of(pixels, spacing_mm=None):
    return MRISlice(pixels, "a", "00", "DICOM", spacing_mm=spacing_mm)


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def outline_of(shown: np.ndarray) -> tuple[int, ...]:
    outline = (shown == results._OUTLINE).all(axis=2)
    rows, columns = (np.flatnonzero(outline.any(axis=axis)) for axis in (1, 0))
    return rows[0], columns[0], rows[-1], columns[-1]


@pytest.mark.parametrize(("shape", "side"), [((120, 90), 900), ((300, 400), 200)])
def test_it_is_the_grey_original_with_an_outline_and_served_as_it_is(shape, side):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    content = results._original(slice_of(pixels), CropTransform(10, 20, 60, 128), side)
    shown = opened(content)
    outline = (shown == results._OUTLINE).all(axis=2)
    expected = Image.fromarray(pixels)
    expected.thumbnail((side, side))
    grey = np.minimum(np.asarray(expected), 254)
    np.testing.assert_array_equal(shown[~outline], np.stack([grey] * 3, axis=2)[~outline])
    factor = shown.shape[1] / shape[1]
    top, left, bottom, right = outline_of(shown)
    np.testing.assert_allclose((top, left, bottom, right), np.array([10, 20, 69, 79]) * factor, atol=1)
    assert not outline[top + 3 : bottom - 2, left + 3 : right - 2].any()
    assert image_utils._validate_image_format_string(content, "PNG") == Image.open(io.BytesIO(content)).format


def test_bright_edges_take_no_colour_of_the_outline_when_shrunk():
    pixels = np.zeros((300, 400), np.uint8)
    pixels[40:140, 60:200] = pixels[180:260:20, 60:340] = 254
    pixels[60:120, 220:330] = 255
    content = results._original(slice_of(pixels), CropTransform(0, 0, 400, 128), 200)
    shown = opened(content)[3:-3, 3:-3]  # without the outline at the edge
    assert shown.max() == 254
    assert (shown == shown[..., :1]).all()


@pytest.mark.parametrize(("shape", "spacing"), [((200, 100), (0.5, 1.0)), ((100, 200), (1.0, 0.5))])
def test_it_has_its_true_proportions_where_pixels_are_not_square(shape, spacing):
    pixels = np.random.default_rng(0).integers(0, 200, shape, np.uint8)
    rows = (10, 69) if shape[0] == 200 else (5, 34)
    transform = CropTransform(rows[0], 20, rows[1] - rows[0] + 1, 128, 30 if shape[0] == 200 else 60)
    for side in (900, 150):
        shown = opened(results._original(slice_of(pixels, spacing), transform, side))
        assert shown.shape == ((200, 200, 3) if side == 900 else (150, 150, 3))
        factors = np.array([shown.shape[0] / shape[0], shown.shape[1] / shape[1]] * 2)
        expected = np.array([rows[0], 20, rows[1], 20 + transform.columns - 1]) * factors
        np.testing.assert_allclose(outline_of(shown), expected, atol=1.5)


def kept_record(transform, shape):
    """What History draws of a record, its crop as the database holds it."""
    texts = dict.fromkeys(("source_format", "weights_sha256", "engine", "precision", "image_sha256"), "x")
    numbers = {"ood_score": 1.0, "ood_threshold": 2.0, "elapsed_ms": 1.0, "height": shape[0], "width": shape[1]}
    return Record(**texts, **numbers, prediction_set=[], probabilities={}, transform=transform)


def test_answers_of_earlier_versions_are_drawn_with_the_crop_that_was_seen():
    """They hold no columns; where pixels are not square the network saw the head squashed."""
    pixels = np.zeros((200, 100), np.uint8)
    pixels[40:160, 20:80] = np.random.default_rng(0).integers(60, 200, (120, 60), np.uint8)
    squashed = slice_of(pixels, (0.5, 1.0))
    now, transform = preprocess(pixels, spacing_mm=(0.5, 1.0))
    answer = results.Answer.from_record(kept_record(dict(vars(transform)), pixels.shape), squashed)
    np.testing.assert_array_equal(opened(answer.network_view)[..., 0], np.rint(now * 255))
    old = {"top": 40, "left": -10, "side": 120, "network_size": 128}
    answer = results.Answer.from_record(kept_record(old, pixels.shape), squashed)
    seen = opened(answer.network_view)[..., 0] > 30
    assert seen.any(axis=0).sum() == pytest.approx(64, abs=3)  # half as wide as it is high, as it was
    assert seen.any(axis=1).sum() == pytest.approx(128, abs=3)
    assert opened(answer.original).shape == (200, 200, 3)
