"""Drawn outliers: the same every time, of every kind, and none of them a picture of a plain head."""

import numpy as np
import pytest

from brainmri.imaging import preprocess
from brainmri.outliers import KINDS, draw_outliers


@pytest.fixture(scope="module")
def heads():
    rows, columns = np.mgrid[:128, :128]
    rng = np.random.default_rng(0)
    disc = np.hypot(rows - 64, columns - 64) < 50
    return [(disc * rng.uniform(0.2, 0.9, (128, 128))).astype(np.float32) for _ in range(3)]


def test_every_kind_is_drawn_and_can_be_preprocessed(heads):
    drawn = draw_outliers(heads, 2 * len(KINDS))
    for picture in drawn:
        assert picture.dtype == np.uint8
        assert picture.ndim == 2
        assert 64 <= min(picture.shape) <= max(picture.shape) <= 160
        view, _ = preprocess(picture)
        assert np.isfinite(view).all()
        assert np.ptp(picture) > 30


def test_the_seed_decides(heads):
    first, again, other = (draw_outliers(heads, 6, seed) for seed in (0, 0, 1))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(first, other, strict=True))


def test_heads_are_not_written_to(heads):
    before = [h.copy() for h in heads]
    draw_outliers(heads, len(KINDS))
    for a, b in zip(before, heads, strict=True):
        np.testing.assert_array_equal(a, b)


def test_head_ct_has_a_white_rim_and_darker_inside(heads):
    ct = next(i for i, kind in enumerate(KINDS) if kind.__name__ == "_head_ct")
    picture = draw_outliers(heads, ct + 1)[ct]
    rows, columns = np.mgrid[:128, :128]
    depth = 50 - np.hypot(rows - 64, columns - 64)
    rim = [picture[np.abs(depth - d) < 1].mean() for d in range(2, 22, 2)]
    assert max(rim) > 200
    assert picture[depth > 30].mean() < 0.7 * max(rim)
