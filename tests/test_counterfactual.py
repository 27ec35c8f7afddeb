"""Painting away: only the masked area changes, the fill fits the rim, the control stays clear of the tumour."""

import time

import numpy as np
import pytest

from brainmri import counterfactual


@pytest.fixture
def head():
    """A ramp-textured disc on black with a bright blob off centre; image and the blob's mask."""
    rows, columns = np.mgrid[:160, :160]
    disc = np.hypot(rows - 80, columns - 80) < 66
    rng = np.random.default_rng(0)
    image = np.where(disc, 80 + 0.3 * columns + rng.normal(0, 3, disc.shape), 0)
    blob = np.hypot(rows - 70, columns - 50) < 14
    return np.where(blob, 230, image).clip(0, 255).astype(np.uint8), blob


@pytest.mark.parametrize("method", counterfactual.METHODS)
def test_inpaint_removes_the_blob_and_nothing_else(head, method):
    image, blob = head
    before = image.copy()
    painted = counterfactual.inpaint(image, blob, np.random.default_rng(1), method)
    assert painted.dtype == np.uint8
    assert painted.shape == image.shape
    np.testing.assert_array_equal(image, before)
    rows, columns = np.mgrid[:160, :160]
    far = np.hypot(rows - 70, columns - 50) > 14 + 5
    np.testing.assert_array_equal(painted[far], image[far])
    expected = 80 + 0.3 * columns
    if method == "diffusion":  # the harmonic fill of a linear ramp is the ramp
        assert np.abs(painted[blob] - expected[blob]).mean() < 8
    assert painted[blob].max() < 200
    again = counterfactual.inpaint(image, blob, np.random.default_rng(1), method)
    np.testing.assert_array_equal(painted, again)


def test_inpaint_leaves_an_unmasked_image_alone(head):
    image, _ = head
    empty = np.zeros(image.shape, bool)
    np.testing.assert_array_equal(counterfactual.inpaint(image, empty, np.random.default_rng(0)), image)


def test_inpaint_refuses_unknown_methods_and_foreign_masks(head):
    image, blob = head
    with pytest.raises(ValueError, match="diffusion, mirror, patch"):
        counterfactual.inpaint(image, blob, np.random.default_rng(0), "magic")
    with pytest.raises(ValueError, match="expected the same"):
        counterfactual.inpaint(image, blob[:50], np.random.default_rng(0))


@pytest.mark.parametrize("method", counterfactual.METHODS)
@pytest.mark.parametrize("corner", [(0, 0), (0, 140), (140, 0), (140, 140)])
def test_inpaint_at_the_picture_edge(head, method, corner):
    image, _ = head
    mask = np.zeros(image.shape, bool)
    mask[corner[0] : corner[0] + 20, corner[1] : corner[1] + 20] = True
    assert counterfactual.inpaint(image, mask, np.random.default_rng(0), method).shape == image.shape


def test_elsewhere_is_equal_area_inside_the_head_and_clear_of_the_tumour(head):
    image, blob = head
    for seed in range(5):
        moved = counterfactual.elsewhere(image, blob, np.random.default_rng(seed))
        assert moved is not None
        assert abs(moved.sum() - blob.sum()) <= 0.03 * blob.sum()
        assert not (moved & blob).any()
        assert image[moved].min() > 40


def test_elsewhere_has_no_place_for_a_tumour_that_fills_the_head(head):
    image, _ = head
    assert counterfactual.elsewhere(image, image > 40, np.random.default_rng(0)) is None


def test_blank_head_keeps_the_border_only(head):
    image, _ = head
    framed = image.copy()
    framed[:2, :4] = 99
    blank = counterfactual.blank_head(framed)
    assert blank[40:120, 40:120].max() == 0
    assert blank[0, 0] == 99


@pytest.mark.alone
@pytest.mark.parametrize("method", counterfactual.METHODS)
def test_inpaint_is_quick_enough_to_augment_with(head, method, two_gflop_s):
    """Training spends some 25 GFLOP on a view."""
    image, blob = head
    times = []
    for seed in range(15):
        start = time.perf_counter()
        counterfactual.inpaint(image, blob, np.random.default_rng(seed), method)
        times.append(time.perf_counter() - start)
    assert min(times) < two_gflop_s, f"{min(times) * 1e3:.1f} ms for 160 x 160"
