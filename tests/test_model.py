"""The network: its shape, ImageNet layers, folding, enlarging, weights and card."""

from __future__ import annotations

import io
import json
import os
import pickle

import numpy as np
import pytest
from conftest import SCRIPTS, script

from brainmri import model
from brainmri.errors import ModelError
from brainmri.types import CLASS_NAMES

CARD = {
    "id": "m",
    "class_names": CLASS_NAMES,
    "created": "2026-01-01",
    "architecture": "miniature",
    "preprocessing": {},
}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((3, 64, 64, 3), dtype=np.float32)


def test_full_size_network_is_vgg16_flat():
    network = model.build_network()
    convolutions = [layer.name for layer in network.layers if "conv" in layer.name]
    assert convolutions == [f"block{b}_conv{i}" for b, (_, n) in enumerate(model.BLOCKS, 1) for i in range(1, n + 1)]
    assert network.get_layer("flatten").output.shape == (None, 8192)
    assert sum(np.prod(w.shape) for layer in network.layers[:19] for w in layer.weights) == 14_714_688  # keras: notop
    assert [type(layer).__name__ for layer in network.layers[-6:]] == [
        "Flatten",
        "Dropout",
        "Dense",
        "Dropout",
        "Dense",
        "Activation",
    ]


@pytest.mark.usefixtures("tiny_blocks")
def test_folding_keeps_the_function(images):
    network = model.build_network(input_size=64, normalised_blocks=(3, 4, 5), mask_head=True)
    rng = np.random.default_rng(1)
    for layer in network.layers:
        if layer.name.endswith("_bn"):
            layer.set_weights([rng.uniform(0.3, 1.5, w.shape) for w in layer.get_weights()])
    plain = model.fold_batch_norm(network)
    assert not [layer for layer in plain.layers if "bn" in layer.name or "mask" in layer.name]
    expected = np.asarray(network(images, training=False)["probabilities"])
    np.testing.assert_allclose(np.asarray(plain(images)), expected, atol=1e-5)
    assert expected.std() > 1e-3


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize("averaged", [False, True])
def test_unfolding_gives_batch_norm_back_and_keeps_the_function(images, averaged):
    kind = {"input_size": 64, "normalised_blocks": (3, 4, 5), "mask_head": True, "averaged": averaged}
    plain = model.fold_batch_norm(model.build_network(**kind))
    network = model.build_network(**kind)
    model.unfold_batch_norm(plain, network, images)
    expected = np.asarray(plain(images))
    np.testing.assert_allclose(np.asarray(network(images, training=False)["probabilities"]), expected, atol=1e-5)
    np.testing.assert_allclose(np.asarray(model.fold_batch_norm(network)(images)), expected, atol=1e-5)
    # The statistics are those of these pictures: the first layer normalised by the batch's own changes nothing.
    import keras

    first = keras.Model(network.input, network.get_layer("block3_conv1_bn").output)
    np.testing.assert_allclose(first(images, training=True), first(images, training=False), rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("tiny_blocks")
def test_enlarged_network_sees_an_enlarged_feature_map_alike():
    small, large = model.build_network(input_size=32), model.build_network(input_size=64)
    model.enlarge_input(small, large)
    cells = np.random.default_rng(0).random((1, 1, 1, 16)).astype(np.float32)
    for name in ("dense", "logits"):
        assert small.get_layer(name).get_weights()[1].shape == large.get_layer(name).get_weights()[1].shape
    one = small.get_layer("dense")(cells.reshape(1, -1))
    four = large.get_layer("dense")(np.tile(cells, (1, 2, 2, 1)).reshape(1, -1))
    np.testing.assert_allclose(one, four, atol=1e-5)


def _write_h5(path, layers):
    """The layout of keras.applications' weight files."""
    import h5py

    with h5py.File(path, "w") as file:
        for name, (kernel, bias) in layers.items():
            group = file.create_group(name)
            group.create_dataset(f"{name}_W_1:0", data=kernel)
            group.create_dataset(f"{name}_b_1:0", data=bias)
        file.create_group("block1_pool")


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_imagenet_layout_gives_the_same_activations(tmp_path, suffix):
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(3, 3, 3, 4)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    path = tmp_path / f"w{suffix}"
    if suffix == ".h5":
        _write_h5(path, {"block1_conv1": (kernel, bias)})
    else:
        np.savez(path, **{"block1_conv1/kernel": kernel, "block1_conv1/bias": bias})
    network = model.build_network(input_size=32)
    assert model.load_imagenet(network, str(path)) == ("block1_conv1",)
    grey = rng.random((1, 32, 32, 1)).astype(np.float32)
    ours = np.asarray(network.get_layer("block1_conv1")(np.repeat(grey, 3, -1)))
    caffe = np.repeat(grey * 255, 3, -1) - np.array(model.CAFFE_MEANS_BGR, np.float32)
    import tensorflow as tf

    theirs = np.maximum(tf.nn.conv2d(caffe, kernel, 1, "SAME") + bias, 0)
    np.testing.assert_allclose(ours[:, 1:-1, 1:-1], theirs[:, 1:-1, 1:-1], rtol=2e-3, atol=0.05)


@pytest.mark.usefixtures("tiny_blocks")
def test_wrong_weight_files_are_refused(tmp_path):
    network = model.build_network(input_size=32)
    with pytest.raises(ModelError, match="no such file"):
        model.load_imagenet(network, str(tmp_path / "none.npz"))
    (tmp_path / "junk.h5").write_bytes(b"junk")
    with pytest.raises(ModelError, match="not a VGG16 weight file"):
        model.load_imagenet(network, str(tmp_path / "junk.h5"))
    np.savez(tmp_path / "w.npz", **{"block1_conv1/kernel": np.zeros((3, 3, 3, 9)), "block1_conv1/bias": np.zeros(9)})
    with pytest.raises(ModelError, match=r"kernel \(3, 3, 3, 9\), expected \(3, 3, 3, 4\)"):
        model.load_imagenet(network, str(tmp_path / "w.npz"))


@pytest.mark.usefixtures("tiny_blocks")
def test_offline_imagenet_names_the_file_to_put_where(monkeypatch):
    import keras

    def offline(**_):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.applications, "VGG16", offline)
    with pytest.raises(ModelError, match=model.IMAGENET_FILE) as caught:
        model.load_imagenet(model.build_network(input_size=32), "imagenet")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("tiny_blocks")
def test_saved_model_loads_and_a_foreign_file_does_not(tmp_path, images):
    network = model.build_network(input_size=64)
    card = model.save_model(network, CARD, tmp_path)
    again = model.load_network(model.read_card("m", tmp_path), tmp_path)
    np.testing.assert_allclose(np.asarray(again(images)), np.asarray(network(images)), atol=2e-3)
    assert {w.dtype for w in again.weights} == {"float32"}
    assert model.list_models(tmp_path) == ["m"]

    path = tmp_path / "m.keras"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ModelError, match="restore both files"):
        model.load_network(card, tmp_path)
    path.unlink()
    with pytest.raises(ModelError, match="no such weight file"):
        model.load_network(card, tmp_path)
    with pytest.raises(ModelError, match="no model card"):
        model.read_card("other", tmp_path)
    (tmp_path / "m.json").write_text(json.dumps({"id": "m"}))
    with pytest.raises(ModelError, match="not a model card"):
        model.read_card("m", tmp_path)


@pytest.mark.usefixtures("tiny_blocks")
def test_an_averaged_head_ships_as_the_flat_one_and_contributions_are_grad_cam():
    import keras

    from brainmri.explain.head import Head

    training_network = model.build_network(
        input_size=64, normalised_blocks=(1, 2, 3, 4, 5), mask_head=True, averaged=True
    )
    rng = np.random.default_rng(0)
    for layer in training_network.layers:
        if layer.name.endswith("_bn"):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    plain = model.fold_batch_norm(training_network)
    assert plain.get_layer("flatten")
    x = rng.random((3, 64, 64, 3), np.float32)
    outputs, targets = training_network(x), np.array([0, 1, 3])
    np.testing.assert_allclose(outputs["probabilities"], plain(x), atol=1e-5)
    features = np.asarray(keras.Model(plain.input, plain.get_layer(model.FEATURE_LAYER).output)(x))
    cells = features.shape[1] * features.shape[2]
    weights = Head.of_network(plain).mean_gradient(features, targets)
    grad_cam = np.einsum("nijc,nc->nij", features, weights) * cells
    contributions = np.asarray(outputs["contributions"])[np.arange(3), :, :, targets]
    np.testing.assert_allclose(contributions, grad_cam, rtol=1e-3, atol=1e-4 * np.abs(grad_cam).max())
    assert grad_cam.std() > 0


@pytest.mark.usefixtures("tiny_blocks")
def test_a_kernel_summed_over_positions_answers_alike_for_even_features():
    rng = np.random.default_rng(0)
    channels = model.BLOCKS[-1][0]
    kernel, feature = rng.normal(size=(16 * channels, 5)), rng.normal(size=channels)
    averaged = model._fit_positions(kernel, channels)
    np.testing.assert_allclose(np.tile(feature, 16) @ kernel, feature @ averaged)
    np.testing.assert_allclose(np.tile(feature, 16) @ model._fit_positions(averaged, 16 * channels), feature @ averaged)


def test_published_vgg16_becomes_what_load_imagenet_reads():
    published = script("vgg16_weights", SCRIPTS)
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(0, 0.3, (3, 3, 3, 8)).astype(np.float32), rng.normal(0, 1, 8).astype(np.float32)
    x = rng.uniform(0, 1, (1, 6, 6, 3))  # RGB, as torchvision takes it
    from keras import ops

    normalised = (x - published.MEAN_RGB) / published.STD_RGB
    expected = np.asarray(ops.conv(normalised.astype(np.float32), kernel)) + bias
    caffe_kernel, caffe_bias = published.as_caffe(kernel, bias)
    caffe = (x[..., ::-1] * 255 - model.CAFFE_MEANS_BGR).astype(np.float32)
    np.testing.assert_allclose(np.asarray(ops.conv(caffe, caffe_kernel)) + caffe_bias, expected, atol=1e-4)


def test_a_file_of_weights_that_names_a_function_is_refused():
    published = script("vgg16_weights", SCRIPTS)
    arrays = {"kernel": np.arange(3.0)}
    found = published._Arrays(io.BytesIO(pickle.dumps(arrays, protocol=3))).load()
    np.testing.assert_array_equal(found["kernel"], arrays["kernel"])
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.getcwd|os\.getcwd"):
        published._Arrays(io.BytesIO(pickle.dumps(os.getcwd))).load()
