"""The one workflow from bytes to answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dicom_maker import dicom
from PIL import Image

from brainmri.config import DEFAULT_PATH, load_settings
from brainmri.dicom import read_slices
from brainmri.imaging import picture_reason
from brainmri.inference import Classifier, load_classifier
from brainmri.pipeline import analyse
from brainmri.runs import answers_table
from brainmri.synthetic import sample


@pytest.mark.parametrize("by", [(1, 1.5), (2, 1)])
def test_pixels_that_are_not_square_change_no_answer(by, tmp_path):
    base = load_settings(DEFAULT_PATH)
    settings = base.model_copy(update={"dicom": base.dicom.model_copy(update={"key_file": tmp_path / "uid.key"})})
    classifier = load_classifier(base.model.id, base.model.directory, base.model.engine)
    square = sample("pituitary").slice
    height, width = square.pixels.shape
    size = (round(width / by[1]), round(height / by[0]))
    values = np.asarray(Image.fromarray(square.pixels).resize(size, Image.Resampling.BOX)).astype(np.uint16)
    content = dicom(values, PixelSpacing=[0.5 * by[0], 0.5 * by[1]], WindowCenter=127.5, WindowWidth=256)
    expected, given = analyse(classifier, [square, *read_slices(content, "a.dcm", settings)])
    assert given.label == expected.label == "pituitary"
    for name, p in expected.probabilities.items():
        assert given.probabilities[name] == pytest.approx(p, abs=0.03)
    assert any(note.startswith("pixels are not square") for note in given.slice.notes)
    rows = answers_table(classifier, classifier.predict_slices([square, given.slice]))  # what evaluation measures
    np.testing.assert_allclose(
        rows["p_pituitary"], [a.probabilities["pituitary"] for a in (expected, given)], atol=1e-6
    )


@pytest.mark.parametrize("grid", [(1, 2), (2, 2)])
def test_a_sheet_of_slices_gets_no_class(grid):
    base = load_settings(DEFAULT_PATH)
    classifier = load_classifier(base.model.id, base.model.directory, base.model.engine)
    one = sample("glioma").slice
    page = replace(one, pixels=np.tile(one.pixels, grid))
    alone, sheet, series = analyse(classifier, [one, page, replace(page, source_format="DICOM")])
    assert picture_reason(alone.slice.notes) is None
    assert alone.decision != "rejected"
    assert sheet.decision == "rejected"
    assert sheet.ood_score > sheet.ood_threshold
    assert picture_reason(sheet.slice.notes).startswith(
        "The picture holds several regions of like size (the second has "
    )
    assert picture_reason(series.slice.notes) is None  # a file of a series is one slice
    assert series.ood_score < sheet.ood_score
    (again,) = analyse(classifier, [sheet.slice])
    assert again.slice.notes == sheet.slice.notes


@pytest.mark.parametrize("kind", ["PNG", "DICOM"])
def test_what_shows_no_head_gets_no_class_whatever_the_gate_says(kind):
    base = load_settings(DEFAULT_PATH)
    classifier = load_classifier(base.model.id, base.model.directory, base.model.engine)
    # A gate that accepts everything, as another model's may accept black.
    lenient = replace(classifier.rule.gate, limits=(1e9, 1e9))
    classifier = Classifier(classifier.card, classifier.engine, replace(classifier.rule, gate=lenient))
    head = sample("glioma").slice
    black = replace(head, pixels=np.zeros_like(head.pixels), source_format=kind)
    seen, empty = analyse(classifier, [head, black])
    assert (seen.decision != "rejected", seen.slice.notes) == (True, head.notes)
    assert (empty.decision, empty.label) == ("rejected", None)
    assert empty.ood_score > empty.ood_threshold > seen.ood_score
    assert picture_reason(empty.slice.notes) == "The picture is blank or nearly so, with no head to be seen"
    (again,) = analyse(classifier, [empty.slice])
    assert again.slice.notes == empty.slice.notes
