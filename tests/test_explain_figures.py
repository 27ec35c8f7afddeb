"""Maps on paper: what stands on the page, where, and that nothing runs off it."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from matplotlib.text import Text

from brainmri import synthetic
from brainmri.errors import ExplanationError
from brainmri.explain import METHODS
from brainmri.explain.base import draw
from brainmri.explain.figures import as_bytes, explanation_page, explanation_panel
from brainmri.types import CLASS_NAMES, Analysis, CropTransform, Explanation

SAMPLE = synthetic.sample("meningioma")


@pytest.fixture
def analysis() -> Analysis:
    height, width = SAMPLE.slice.pixels.shape
    return Analysis(
        slice=dataclasses.replace(SAMPLE.slice, spacing_mm=(1.0, 1.0), orientation=("A", "P", "S", "I")),
        decision="class",
        label="meningioma",
        prediction_set=("meningioma",),
        probabilities=dict(zip(CLASS_NAMES, (0.02, 0.9, 0.05, 0.03), strict=True)),
        ood_score=0.4,
        ood_threshold=1.0,
        transform=CropTransform(0, 0, max(height, width), 128),
        network_input=np.zeros((128, 128), np.float32),
        feature_maps=np.zeros(0, np.float32),
        logits=np.array([0, 3, 1, 0], np.float32),
        model_id="tiny",
        weights_sha256="a" * 64,
        engine="openvino",
        precision="bf16",
        elapsed_ms=1.0,
    )


def explanations(analysis: Analysis, names) -> list[Explanation]:
    grids = np.random.default_rng(0).random((len(names), 8, 8), dtype=np.float32) ** 3
    return [
        Explanation(*draw(g, analysis.transform, analysis.slice.pixels.shape)[:1], g, n, "glioma", "x", (3, 4), 1.0)
        for n, g in zip(names, grids, strict=True)
    ]


def words(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_page_lines_pictures_up_and_keeps_everything_on_it(analysis, count):
    names = list(METHODS)[:count]
    figure = explanation_page(analysis, explanations(analysis, names), mask=SAMPLE.mask)
    figure.canvas.draw()
    pictures = [axes for axes in figure.axes if axes.images]
    assert len(pictures) == count + 1
    boxes = [axes.get_window_extent() for axes in pictures]
    assert len({(round(b.y0), round(b.y1)) for b in boxes}) == 1, "pictures of one row start and end together"
    assert all(b.x1 <= c.x0 for b, c in itertools.pairwise(boxes))
    page = figure.bbox
    texts = sorted((t.get_window_extent() for t in figure.texts), key=lambda box: -box.y1)
    assert all(page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0 and b.y1 <= page.y1 for b in texts)
    assert all(below.y1 <= axes.get_window_extent().y0 for axes in figure.axes for below in texts[2:])
    assert all(a.y0 >= b.y1 - 1 or a.x1 <= b.x0 or b.x1 <= a.x0 for a, b in itertools.pairwise(texts))
    said = words(figure).replace("\n", " ")
    for name in names:
        assert METHODS[name].title in said
        assert METHODS[name].units in said
    assert "share of" in said
    assert "Meningioma 90.0%" in said
    assert "not the outline of a lesion" in said
    assert "100 mm" in said


def test_a_rejection_is_on_every_figure(analysis):
    rejected = dataclasses.replace(analysis, decision="rejected", label=None, ood_score=3.0)
    maps = explanations(analysis, ["grad-cam", "occlusion"])
    for figure in (explanation_page(rejected, maps), explanation_panel(rejected, maps[0])):
        said = words(figure).replace("\n", " ")
        assert "Rejected as not a brain MRI (score 3, limit 1)" in said
        assert "REJECTED: not a brain MRI" in said
    for figure in (explanation_page(analysis, maps), explanation_panel(analysis, maps[0])):
        assert "reject" not in words(figure).lower()


@pytest.mark.parametrize("name", ["a$1$b.png", r"a$\bad{$.png", "line\nbreak.png", "x" * 200 + "7.png"])
@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_a_files_name_is_written_as_it_is(analysis, name, kind):
    named = dataclasses.replace(analysis, slice=dataclasses.replace(analysis.slice, name=name))
    figure = explanation_page(named, explanations(named, ["grad-cam"]))
    assert as_bytes(figure, kind, dpi=60)
    figure.canvas.draw()
    assert all(t.get_window_extent().x1 <= figure.bbox.x1 for t in figure.texts)
    shown = figure.texts[0].get_text()
    assert shown == " ".join(name.split()) or (shown.startswith("xxx") and shown.endswith("…xxxxxxxxxxxxxx7.png"))


def test_a_layer_other_than_the_default_is_named(analysis):
    (one,) = explanations(analysis, ["grad-cam"])
    early = dataclasses.replace(one, layer_name="block3_conv3")
    for figure in (explanation_page(analysis, [early]), explanation_panel(analysis, early)):
        assert "Grad-CAM, block3_conv3\nfor Glioma" in words(figure)
    for name in ("block5_conv3", "image"):
        usual = dataclasses.replace(one, layer_name=name)
        for figure in (explanation_page(analysis, [usual]), explanation_panel(analysis, usual)):
            assert "Grad-CAM\nfor Glioma" in words(figure)


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_the_same_figure_gives_the_same_bytes(analysis, kind):
    first, second = (
        as_bytes(explanation_page(analysis, explanations(analysis, ["grad-cam"])), kind, dpi=60) for _ in range(2)
    )
    assert first == second


def test_a_page_holds_one_to_four_maps(analysis):
    for names in ([], list(METHODS)[:5]):
        with pytest.raises(ExplanationError, match=f"{len(names)} maps; one page holds 1 to 4"):
            explanation_page(analysis, explanations(analysis, names))
