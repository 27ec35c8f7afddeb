"""Every method on a network in miniature: what all of them promise, and what each alone must get right."""

from __future__ import annotations

import dataclasses
import gc
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
from PIL import Image

from brainmri.errors import ExplanationError, ModelError
from brainmri.explain import CONVOLUTIONS, METHODS, Batch, Explainer, explain, explainer_of, find_method
from brainmri.explain.base import class_index, draw, normalise, upsampling_matrix
from brainmri.explain.brain import brain_mask
from brainmri.explain.head import Head
from brainmri.pipeline import analyse
from brainmri.types import CLASS_NAMES, CropTransform, MRISlice

FAST = {
    "score-cam": {"channels": 8},
    "integrated-gradients": {"steps": 4},
    "smooth-grad": {"samples": 3},
    "occlusion": {"cells": 4},
}
CAMS = [name for name, method in METHODS.items() if not method.explains_pixels]


@pytest.fixture(scope="module")
def network():
    """VGG16's layout, few channels, random weights with a head that reacts."""
    from conftest import TINY_BLOCKS

    from brainmri import model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "BLOCKS", TINY_BLOCKS)
        import keras

        keras.utils.set_random_seed(1)
        built = model.build_network()
    rng = np.random.default_rng(1)
    for layer in built.layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, rng.normal(0, 0.05, bias.shape)])
    return built


@pytest.fixture(scope="module")
def explainer(network) -> Explainer:
    return Explainer.of_network(network)


@pytest.fixture(scope="module")
def batch(explainer, slices) -> Batch:
    from brainmri.imaging import preprocess

    return explainer.batch(np.stack([preprocess(pixels)[0] for pixels in slices[:4]]))


@pytest.fixture
def classifier(tiny_models, tiny_blocks):
    from brainmri.inference import load_classifier

    return load_classifier("tiny", tiny_models, "keras")


@pytest.fixture
def analyses(classifier, slices):
    pictures = [MRISlice(p, f"{i}.png", str(i), "PNG") for i, p in enumerate(slices[:3])]
    return [dataclasses.replace(a, decision="class") for a in analyse(classifier, pictures)]


def run(explainer, batch, name, targets, layer_name=None, seed=0):
    method = METHODS[name]
    layer_name = method.check_layer(layer_name)
    return method.grids(explainer, batch, np.asarray(targets), layer_name, seed=seed, **FAST.get(name, {}))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("target", range(4))
def test_maps_are_finite_deterministic_and_independent_of_the_batch(explainer, batch, name, target):
    together = run(explainer, batch, name, [target] * 4)
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    np.testing.assert_array_equal(together, run(explainer, batch, name, [target] * 4))
    alone = run(explainer, batch[2:3], name, [target])
    np.testing.assert_allclose(alone[0], together[2], rtol=2e-3, atol=2e-4 * np.abs(together[2]).max() + 1e-12)


def test_the_seed_moves_smooth_grad_and_nothing_else(explainer, batch):
    for name in METHODS:
        same = np.array_equal(run(explainer, batch, name, [0] * 4), run(explainer, batch, name, [0] * 4, seed=1))
        assert same == (name != "smooth-grad")


@pytest.mark.parametrize("name", METHODS)
def test_methods_never_change_the_network(network, explainer, batch, name):
    before = [w.copy() for w in network.get_weights()]
    layers, outputs = [layer.name for layer in network.layers], network.output
    run(explainer, batch, name, [1] * 4)
    assert [layer.name for layer in network.layers] == layers
    assert network.output is outputs
    for old, new in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("name", METHODS)
def test_maps_differ_between_classes(explainer, batch, name):
    maps = np.stack([run(explainer, batch, name, [t] * 4) for t in range(4)])
    assert any(not np.allclose(maps[i], maps[j]) for i in range(4) for j in range(i))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("inputs", [np.zeros, np.ones])
def test_no_evidence_gives_zeros_never_nan(network, name, inputs):
    import keras

    dead = keras.models.clone_model(network)  # all weights zero: every logit is the same whatever comes in
    dead.set_weights([np.zeros_like(w) for w in network.get_weights()])
    explainer = Explainer.of_network(dead)
    batch = explainer.batch(inputs((2, 128, 128), np.float32))
    for grid in run(explainer, batch, name, [0, 1]):
        saliency_map, peak = draw(grid, CropTransform(-3, 4, 90, 128), (80, 100), METHODS[name].percentile)
        assert peak is None
        assert saliency_map.shape == (80, 100)
        assert not saliency_map.any()


@pytest.mark.parametrize("name", CAMS)
@pytest.mark.parametrize("layer_name", ["block2_conv1", "block5_conv1", "block5_conv3"])
def test_cam_methods_work_on_any_convolution(explainer, batch, name, layer_name):
    side = {"block2_conv1": 64, "block5_conv1": 8, "block5_conv3": 8}[layer_name]
    grids = run(explainer, batch[:2], name, [0, 1], layer_name)
    assert grids.shape == (2, side, side)
    assert (grids >= 0).all()


def test_head_is_keras_own_gradient(network, explainer, batch):
    head, targets = Head.of_network(network), np.array([0, 1, 2, 3])
    np.testing.assert_allclose(head.logits(batch.feature_maps), batch.logits, rtol=1e-4, atol=1e-5)
    activations, gradients = explainer.gradients.layer(batch.inputs, targets, "block5_conv3")
    np.testing.assert_allclose(activations, batch.feature_maps, rtol=1e-4, atol=1e-6)
    ours = head.gradient(batch.feature_maps, targets)
    scale = np.abs(gradients).max()
    # Where all four cells of a window are 0 the gradient may sit on any: compare by window, and times activation.
    windows = lambda g: g.reshape(4, 4, 2, 4, 2, -1).sum((2, 4))  # noqa: E731
    np.testing.assert_allclose(windows(ours), windows(gradients), atol=1e-5 * scale)
    np.testing.assert_allclose(ours * activations, gradients * activations, atol=1e-5 * scale * activations.max())
    np.testing.assert_allclose(
        head.mean_gradient(batch.feature_maps, targets), ours.mean((1, 2)), rtol=1e-4, atol=1e-6 * scale
    )


def test_head_is_read_from_the_weight_file_without_tensorflow(tiny_models, classifier):
    read, kept = Head.load(classifier.card, tiny_models), Head.of_network(classifier.engine.network)
    for name in ("dense_kernel", "dense_bias", "logits_kernel", "logits_bias"):
        np.testing.assert_array_equal(getattr(read, name), getattr(kept, name))
    code = (
        "import sys; from brainmri.explain.head import Head; from brainmri.model import read_card;"
        f"Head.load(read_card('tiny', {str(tiny_models)!r}), {str(tiny_models)!r});"
        "import brainmri.explain; assert not {'tensorflow', 'keras', 'streamlit'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_head_refuses_other_feature_maps(network):
    with pytest.raises(ModelError, match="do not fit"):
        Head.of_network(network).logits(np.zeros((1, 6, 6, 16), np.float32))


def test_integrated_gradients_add_up_to_the_logit(explainer, batch):
    grids = METHODS["integrated-gradients"].grids(explainer, batch, np.array([0, 1, 2, 3]), "image", seed=0, steps=64)
    black = explainer.logits(np.zeros((1, 128, 128), np.float32))[0]
    expected = batch.logits[range(4), range(4)] - black
    np.testing.assert_allclose(grids.sum((1, 2)), expected, rtol=0.05, atol=0.02 * np.abs(expected).max())


def test_occlusion_is_the_fall_of_the_logit(explainer, batch):
    from scipy import ndimage

    grid = METHODS["occlusion"].grids(explainer, batch[:1], np.array([2]), "image", seed=0, cells=4)[0]
    picture = batch.inputs[0].copy()
    picture[:32, 96:] = ndimage.gaussian_filter(picture, 16)[:32, 96:]
    fall = batch.logits[0, 2] - explainer.logits(picture[None])[0, 2]
    assert grid[0, 3] == pytest.approx(fall, abs=1e-4)


def test_score_cam_on_all_channels_differs_from_few_only_in_what_it_leaves_out(explainer, batch):
    every = METHODS["score-cam"].grids(explainer, batch[:1], np.array([0]), "block5_conv3", seed=0, channels=None)
    same = METHODS["score-cam"].grids(explainer, batch[:1], np.array([0]), "block5_conv3", seed=0, channels=16)
    np.testing.assert_allclose(every, same, rtol=1e-5)


def test_score_cam_has_a_map_where_every_probability_is_next_to_nothing(explainer, batch):
    class Sure(Explainer):
        def logits(self, inputs, **rest):
            return super().logits(inputs, **rest) + np.array([0, 500, 0, 0], np.float32)

    expected = METHODS["score-cam"].grids(explainer, batch, np.zeros(4, int), "block5_conv3", seed=0, channels=16)
    sure = Sure(explainer._forward, explainer._head, explainer._gradients)
    found = METHODS["score-cam"].grids(sure, batch, np.zeros(4, int), "block5_conv3", seed=0, channels=16)
    assert np.isfinite(found).all()
    assert (expected.any(axis=(1, 2)) == found.any(axis=(1, 2))).all()
    assert found.any()


def test_upsampling_is_scipys():
    from scipy import ndimage

    grid = np.random.default_rng(0).random((8, 8)).astype(np.float32)
    matrix = upsampling_matrix(128, 8)
    np.testing.assert_allclose(matrix @ grid @ matrix.T, ndimage.zoom(grid, 16, order=1, mode="nearest"), atol=1e-6)


def test_maps_lie_in_the_original_image(classifier, analyses, tiny_models):
    results = explain(classifier, analyses, list(METHODS), [None, "pituitary"], directory=tiny_models, options=FAST)
    for analysis, explanations in zip(analyses, results, strict=True):
        assert len(explanations) == 2 * len(METHODS)
        for e in explanations:
            assert e.saliency_map.shape == analysis.slice.pixels.shape
            assert e.saliency_map.dtype == np.float32
            assert e.saliency_map.min() >= 0
            assert e.saliency_map.max() <= 1
            assert (e.peak is None) == (not e.saliency_map.any())
            assert e.elapsed_ms > 0
            if e.peak:
                assert e.saliency_map[e.peak] == e.saliency_map.max()
        assert explanations[0].target_class == CLASS_NAMES[analysis.logits.argmax()]
        assert explanations[1].target_class == "pituitary"


def test_a_peak_is_drawn_where_its_cell_lies():
    grid = np.zeros((8, 8), np.float32)
    grid[1, 6] = 3
    _, peak = draw(grid, CropTransform(20, 30, 160, 128), (240, 220))
    assert abs(peak[0] - (20 + 1.5 * 20)) <= 1
    assert abs(peak[1] - (30 + 6.5 * 20)) <= 1


def test_a_peak_is_the_maximum_also_of_a_map_cut_at_a_percentile():
    grid = np.zeros((20, 20), np.float32)
    grid[:10] = 1  # all above the percentile is drawn as 1, first of all the first row
    grid[15, 12] = 5
    whole = CropTransform(0, 0, 20, 20)
    saliency_map, peak = draw(grid, whole, (20, 20), 90)
    assert peak == (15, 12)
    assert saliency_map.max() == saliency_map[0, 0] == 1
    assert draw(grid, whole, (20, 20))[1] == peak
    grid[:10] = 1e-40  # a percentile next to nothing
    saliency_map, peak = draw(grid, CropTransform(0, 0, 50, 20), (50, 50), 90)
    assert np.isfinite(saliency_map).all()
    assert abs(peak[0] - 38) <= 2


@pytest.mark.parametrize("by", [(1, 1.5), (1, 2), (1.5, 1), (2, 1)])
def test_a_peak_lies_where_it_lies_in_the_square_original(by):
    from brainmri.imaging import preprocess
    from brainmri.synthetic import sample

    pixels = sample("pituitary").slice.pixels
    height, width = pixels.shape
    size = (round(width / by[1]), round(height / by[0]))
    squashed = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    _, whole = preprocess(pixels)
    _, transform = preprocess(squashed, spacing_mm=(0.5 * by[0], 0.5 * by[1]))
    for cell in ((1, 6), (4, 2), (6, 6)):
        grid = np.zeros((8, 8), np.float32)
        grid[cell] = 1
        expected_map, expected = draw(grid, whole, pixels.shape)
        saliency_map, peak = draw(grid, transform, squashed.shape)
        assert saliency_map.shape == squashed.shape
        np.testing.assert_allclose(np.multiply(peak, by), expected, atol=6)  # a tenth of a cell
        back = np.asarray(Image.fromarray(saliency_map).resize((width, height), Image.Resampling.BILINEAR))
        assert np.abs(back - expected_map).max() < 0.15


def test_answers_without_activations_are_explained_all_the_same(classifier, analyses, tiny_models):
    stripped = [dataclasses.replace(a, feature_maps=np.zeros(0, np.float32)) for a in analyses]
    for kept, lost in zip(
        explain(classifier, analyses, directory=tiny_models),
        explain(classifier, stripped, directory=tiny_models),
        strict=True,
    ):
        np.testing.assert_allclose(kept[0].saliency_map, lost[0].saliency_map, atol=1e-4)


def test_normalise_counts_what_is_not_finite_as_no_evidence():
    grid = np.array([[np.nan, -1], [np.inf, 2]], np.float32)
    np.testing.assert_array_equal(normalise(grid), [[0, 0], [0, 1]])
    assert normalise(np.zeros((3, 3)), 99.5).max() == 0


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"methods": ["grad-camera"]}, "methods: grad-cam, grad-cam\\+\\+"),
        ({"target_classes": ["cyst"]}, "classes: glioma, meningioma, notumor, pituitary"),
        ({"layer_name": "block9_conv1"}, "block1_conv1, block1_conv2"),
        ({"layer_name": "dense"}, "has none left"),
        ({"methods": ["smooth-grad"], "layer_name": "block5_conv3"}, "takes no layer"),
        ({"layer_name": "block3_conv2"}, "this network has no layer"),
    ],
)
def test_unknown_names_list_the_known(classifier, analyses, tiny_models, keywords, words):
    with pytest.raises(ExplanationError, match=words):
        explain(classifier, analyses, directory=tiny_models, **keywords)


def test_rejected_images_need_an_explicit_word(classifier, analyses, tiny_models):
    rejected = [dataclasses.replace(analyses[0], decision="rejected", label=None)]
    with pytest.raises(ExplanationError, match="rejected as not a brain MRI"):
        explain(classifier, rejected, directory=tiny_models)
    assert len(explain(classifier, rejected, directory=tiny_models, allow_rejected=True)) == 1


def test_analyses_of_other_weights_are_refused(classifier, analyses, tiny_models):
    foreign = [dataclasses.replace(analyses[0], weights_sha256="0" * 64)]
    with pytest.raises(ExplanationError, match="other weights"):
        explain(classifier, foreign, directory=tiny_models)


def test_names_and_columns():
    assert class_index("notumor") == class_index(2) == 2
    assert find_method("occlusion").check_layer(None) == "image"
    assert len(CONVOLUTIONS) == 13
    for method in METHODS.values():
        assert method.meaning.endswith(".")
        assert method.misleads.endswith(".")
    with pytest.raises(ExplanationError):
        class_index(4)


def test_one_explainer_a_classifier(classifier, tiny_models):
    found: list[Explainer] = []
    workers = [threading.Thread(target=lambda: found.append(explainer_of(classifier, tiny_models))) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_an_explainer_does_not_keep_its_classifier(tiny_models, tiny_blocks):
    from brainmri.inference import load_classifier

    classifier = load_classifier("tiny", tiny_models, "keras")
    explainer, gone = explainer_of(classifier, tiny_models), weakref.ref(classifier)
    assert explainer.head.dense_kernel.size
    del classifier
    gc.collect()
    assert gone() is None


def test_brain_mask_lies_inside_the_head():
    rows, columns = np.mgrid[-1:1:160j, -1:1:140j]
    radius = np.hypot(rows, columns / 0.85)
    pixels = (np.where(radius < 0.62, 120, 0) + np.where((radius > 0.68) & (radius < 0.8), 200, 0)).astype(np.uint8)
    mask = brain_mask(pixels)
    assert mask[80, 70]
    assert not mask[radius > 0.8].any()
    assert mask[radius < 0.6].mean() > 0.95
    assert brain_mask(np.zeros((50, 60), np.uint8)).all()
