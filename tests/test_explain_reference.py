"""Our maps against tf-keras-vis 0.8.7, on the shipped weights in float32, before upsampling and normalisation."""

from __future__ import annotations

import numpy as np
import pytest

from brainmri import synthetic
from brainmri.config import load_settings
from brainmri.explain import METHODS, Explainer, grad_cam_plus_plus
from brainmri.imaging import preprocess

TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def explainer():
    from brainmri.model import load_network, read_card

    model = load_settings().model
    return Explainer.of_network(load_network(read_card(model.id, model.directory), model.directory))


@pytest.fixture(scope="module")
def batch(explainer):
    return explainer.batch(np.stack([preprocess(s.slice.pixels)[0] for s in synthetic.samples().values()]))


@pytest.fixture(scope="module")
def logits_model(explainer):
    import keras

    network = explainer.gradients.network
    return keras.Model(network.input, network.get_layer("logits").output)


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert np.abs(theirs).max() > 0
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def colour(batch) -> np.ndarray:
    return np.repeat(batch.inputs[..., None], 3, axis=-1)


@pytest.mark.parametrize("layer_name", ["block5_conv3", "block4_conv3"])
@pytest.mark.parametrize("name", ["grad-cam", "grad-cam++", "layer-cam"])
def test_cam_is_the_references(explainer, batch, logits_model, name, layer_name):
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus
    from tf_keras_vis.layercam import Layercam
    from tf_keras_vis.utils.scores import CategoricalScore

    reference = {"grad-cam": Gradcam, "grad-cam++": GradcamPlusPlus, "layer-cam": Layercam}[name]
    targets = np.array([0, 1, 3, 2])
    ours = METHODS[name].grids(explainer, batch, targets, layer_name, seed=0)
    tolerance = TOLERANCE
    if name == "grad-cam++":
        # Its denominators can nearly vanish; then float32 rounding alone moves the map, theirs as well as ours.
        arrays = explainer.activations_and_gradients(batch, targets, layer_name)
        exact = grad_cam_plus_plus.combine(*(a.astype(np.float64) for a in arrays))
        tolerance = max(TOLERANCE, 2 * relative_difference(ours, exact))
        assert tolerance < 0.05
        ours = (
            ours * np.exp(batch.logits[range(4), targets])[:, None, None]
        )  # the reference keeps the factor exp(score)
    theirs = reference(logits_model)(
        CategoricalScore(targets.tolist()),
        colour(batch),
        penultimate_layer=layer_name,
        seek_penultimate_conv_layer=False,
        expand_cam=False,
        normalize_cam=False,
    )
    assert relative_difference(ours, np.asarray(theirs)) <= tolerance


@pytest.mark.parametrize("channels", [20])
def test_score_cam_is_the_references(explainer, batch, logits_model, channels):
    from tf_keras_vis.scorecam import Scorecam
    from tf_keras_vis.utils.scores import CategoricalScore

    one = batch[channels % 3 : channels % 3 + 1]
    target = int(one.logits[0].argmax())
    ours = METHODS["score-cam"].grids(explainer, one, np.array([target]), "block5_conv3", seed=0, channels=channels)
    theirs = Scorecam(logits_model)(
        CategoricalScore(target),
        colour(one),
        penultimate_layer="block5_conv3",
        max_N=channels,
        expand_cam=False,
        normalize_cam=False,
    )
    theirs = np.asarray(theirs)
    assert relative_difference(ours / ours.max(), theirs / theirs.max()) <= TOLERANCE  # ours is up to a factor


def test_smooth_grad_is_the_references(explainer, batch, monkeypatch):
    import keras
    from tf_keras_vis.saliency import Saliency
    from tf_keras_vis.utils.scores import CategoricalScore

    network = explainer.gradients.network
    grey = keras.Input((128, 128, 1))
    of_grey = keras.Model(network.input, network.get_layer("logits").output)(keras.layers.Concatenate()([grey] * 3))
    targets, samples = np.array([0, 1, 3, 2]), 3
    patterns = np.stack([np.random.default_rng(7).standard_normal((samples, 128, 128), dtype=np.float32)] * 4, axis=1)
    monkeypatch.setattr(np.random, "normal", lambda _mean, sigma, _shape: sigma * patterns[..., None])
    theirs = Saliency(keras.Model(grey, of_grey))(
        CategoricalScore(targets.tolist()),
        batch.inputs[..., None],
        smooth_samples=samples,
        smooth_noise=0.2,
        normalize_map=False,
    )
    ours = METHODS["smooth-grad"].grids(explainer, batch, targets, "image", seed=7, samples=samples)
    assert relative_difference(ours, np.asarray(theirs)) <= TOLERANCE


def test_hires_cam_is_exact_for_a_head_without_averaging(explainer, batch):
    """tf-keras-vis has no HiResCAM: its sum is the activations' share of the logit, by the head's linearity."""
    head, targets = explainer.head, np.array([0, 1, 2, 3])
    shares = (batch.feature_maps * head.gradient(batch.feature_maps, targets)).sum((1, 2, 3))
    step = 1e-3
    moved = head.logits(batch.feature_maps * np.float32(1 - step))[range(4), targets]
    np.testing.assert_allclose((batch.logits[range(4), targets] - moved) / step, shares, rtol=0.05, atol=0.02)
