"""The samples: one a class, the same every time, heads with a known lesion."""

import numpy as np
import pytest

from brainmri import synthetic
from brainmri.errors import DataError
from brainmri.imaging import decode_image, head_box
from brainmri.types import CLASS_NAMES


@pytest.fixture(scope="module")
def samples():
    return synthetic.samples()


def test_one_sample_a_class(samples):
    assert tuple(samples) == CLASS_NAMES
    assert len({s.slice.sha256 for s in samples.values()}) == len(CLASS_NAMES)


@pytest.mark.parametrize("label", CLASS_NAMES)
def test_sample_says_it_is_synthetic_and_is_the_file_it_claims(samples, label):
    sample = samples[label]
    assert sample.slice.name.startswith("synthetic-")
    assert "synthetic" in sample.slice.notes[0]
    assert sample.title.startswith("Synthetic")
    decoded = decode_image(sample.content, sample.slice.name)
    np.testing.assert_array_equal(decoded.pixels, sample.slice.pixels)
    assert decoded.sha256 == sample.slice.sha256


@pytest.mark.parametrize("label", ["glioma", "meningioma", "pituitary"])
def test_lesion_lies_in_the_head_and_stands_out(samples, label):
    sample = samples[label]
    assert sample.mask.shape == sample.slice.pixels.shape
    rows, columns = np.nonzero(sample.mask)
    top, left, bottom, right = head_box(sample.slice.pixels)
    assert top < rows.min() <= rows.max() < bottom
    assert left < columns.min() <= columns.max() < right
    assert 0.005 < sample.mask.mean() < 0.05
    head = sample.slice.pixels > 20
    assert np.percentile(sample.slice.pixels[sample.mask], 90) > 1.5 * np.median(sample.slice.pixels[head])


def test_notumor_has_no_lesion(samples):
    assert samples["notumor"].mask is None


def test_drawn_alike_every_time(samples):
    synthetic.sample.cache_clear()
    again = synthetic.sample("pituitary")
    np.testing.assert_array_equal(again.slice.pixels, samples["pituitary"].slice.pixels)
    np.testing.assert_array_equal(again.mask, samples["pituitary"].mask)


def test_unknown_sample_names_those_there_are():
    with pytest.raises(DataError, match="astrocytoma: no such sample; there are glioma"):
        synthetic.sample("astrocytoma")


def test_the_shipped_model_takes_every_sample_for_a_head(samples):
    from brainmri.config import DEFAULT_PATH, load_settings
    from brainmri.inference import load_classifier

    chosen = load_settings(DEFAULT_PATH).model
    classifier = load_classifier(chosen.id, chosen.directory, chosen.engine)
    if classifier.rule.gate is None:
        pytest.skip(f"{chosen.id} has no gate yet; run: brainmri calibrate")
    decisions = classifier.predict([s.slice.pixels for s in samples.values()]).decisions
    assert "rejected" not in decisions
