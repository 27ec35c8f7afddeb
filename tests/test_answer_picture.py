"""The picture beside an answer."""

import io

import numpy as np
import pytest
from PIL import Image
from streamlit.elements.lib import image_utils

from brainmri.types import CropTransform
from brainmri.ui import results


@pytest.mark.parametrize(("shape", "side"), [((120, 90), 900), ((300, 400), 200)])
def test_it_is_the_grey_original_with_an_outline_and_served_as_it_is(shape, side):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    content = results._original(pixels, CropTransform(10, 20, 60, 128), side)
    shown = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    outline = (shown == results._OUTLINE).all(axis=2)
    expected = Image.fromarray(pixels)
    expected.thumbnail((side, side))
    grey = np.minimum(np.asarray(expected), 254)
    np.testing.assert_array_equal(shown[~outline], np.stack([grey] * 3, axis=2)[~outline])
    factor = shown.shape[1] / shape[1]
    rows, columns = (np.flatnonzero(outline.any(axis=axis)) for axis in (1, 0))
    edges = (rows[0], columns[0], rows[-1], columns[-1])
    np.testing.assert_allclose(edges, np.array([10, 20, 69, 79]) * factor, atol=1)
    assert not outline[rows[0] + 3 : rows[-1] - 2, columns[0] + 3 : columns[-1] - 2].any()
    assert image_utils._validate_image_format_string(content, "PNG") == Image.open(io.BytesIO(content)).format


def test_bright_edges_take_no_colour_of_the_outline_when_shrunk():
    pixels = np.zeros((300, 400), np.uint8)
    pixels[40:140, 60:200] = pixels[180:260:20, 60:340] = 254
    pixels[60:120, 220:330] = 255
    content = results._original(pixels, CropTransform(0, 0, 400, 128), 200)
    shown = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))[3:-3, 3:-3]  # without the outline at the edge
    assert shown.max() == 254
    assert (shown == shown[..., :1]).all()
