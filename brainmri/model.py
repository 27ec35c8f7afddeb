"""VGG16 with a small head: build it, load ImageNet layers into it, fold batch norm, save and load it with its card."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from brainmri.errors import ModelError
from brainmri.imaging import NETWORK_SIZE, as_network_batch
from brainmri.types import CLASS_NAMES

if TYPE_CHECKING:
    import keras

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Filters and convolutions of VGG16's five blocks (Simonyan & Zisserman, arXiv:1409.1556, configuration D)."""

FEATURE_LAYER = "block5_conv3"
LOGITS_LAYER = "logits"
IMAGENET_FILE = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
CAFFE_MEANS_BGR = (103.939, 116.779, 123.68)


class ModelCard(BaseModel):
    """What a weight file is: ``models/<id>.json``.

    Attributes
    ----------
    weights_sha256 : str
        Of ``<id>.keras``; loading refuses any other file.
    class_names : tuple of str
        Order of the logits.
    preprocessing : dict
        Name and parameters of the function in ``imaging``.
    recipe, data, metrics : dict
        How it was trained, on what (manifests with sha256 and counts), and its figures named by split.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    id: str
    weights_sha256: str
    class_names: tuple[str, ...]
    created: str
    architecture: str
    preprocessing: dict[str, Any]
    recipe: dict[str, Any] = {}
    data: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    intended_use: str = ""
    limits: tuple[str, ...] = ()


def build_network(
    *,
    input_size: int = NETWORK_SIZE,
    n_classes: int = len(CLASS_NAMES),
    normalised_blocks: tuple[int, ...] = (),
    mask_head: bool = False,
    averaged: bool = False,
) -> keras.Model:
    """Build VGG16 and its head flat in one functional model.

    Parameters
    ----------
    input_size : int
        Side of the square input in pixels, a multiple of 32.
    normalised_blocks : tuple of int
        Blocks (1-5) whose convolutions carry batch norm while training (the hidden dense layer then does too);
        `fold_batch_norm` removes it exactly.
    mask_head : bool
        Add the auxiliary output ``mask``: class probabilities per cell of block5's grid, seen from block4 and block5.
        Training only; it keeps evidence where the tumour is.
    averaged : bool
        Training only: the hidden layer sees the mean over positions, so that its weights cannot depend on the place;
        `fold_batch_norm` spreads them over the flattened positions, which is the same function. With ``mask_head``
        there is a third output ``contributions``: what each of block5_conv3's cells adds to each logit, which is
        Grad-CAM before its ReLU [1]_, to be held to the outlines.

    Returns
    -------
    keras.Model
        Input (n, size, size, 3) in [0, 1] -> ``probabilities`` (n, n_classes); its input is the layer ``logits``.
        With ``mask_head`` the outputs are {"probabilities", "mask"}, and "contributions" if ``averaged``.

    References
    ----------
    .. [1] Selvaraju et al., "Grad-CAM", ICCV 2017, arXiv:1610.02391; supervised as in Li et al., "Tell Me Where to
       Look", CVPR 2018.
    """
    import keras
    from keras import layers

    image = x = keras.Input((input_size, input_size, 3), name="image")
    block4 = None
    for block, (filters, repeats) in enumerate(BLOCKS, start=1):
        normalised = block in normalised_blocks
        for index in range(1, repeats + 1):
            name = f"block{block}_conv{index}"
            x = layers.Conv2D(
                filters,
                3,
                padding="same",
                activation=None if normalised else "relu",
                use_bias=not normalised,
                kernel_initializer="he_normal",
                name=name,
            )(x)
            if normalised:
                x = layers.BatchNormalization(momentum=0.97, name=f"{name}_bn")(x)
                x = layers.ReLU(name=f"{name}_relu")(x)
        last = x
        x = layers.MaxPooling2D(2, name=f"block{block}_pool")(x)
        if block == 4:
            block4 = x
    features = last
    x = layers.GlobalAveragePooling2D(name="average")(x) if averaged else layers.Flatten(name="flatten")(x)
    x = layers.Dropout(0.3, name="dropout_1")(x)
    # Norm here too while training: on top of normalised features a plain ReLU layer dies within an epoch.
    normalised = bool(normalised_blocks)
    x = layers.Dense(128, None if normalised else "relu", not normalised, kernel_initializer="he_normal", name="dense")(
        x
    )
    if normalised:
        x = layers.BatchNormalization(momentum=0.97, name="dense_bn")(x)
        x = layers.ReLU(name="dense_relu")(x)
    hidden = x
    x = layers.Dropout(0.2, name="dropout_2")(x)
    logits = layers.Dense(n_classes, name=LOGITS_LAYER, dtype="float32")(x)
    probabilities = layers.Activation("softmax", name="probabilities", dtype="float32")(logits)
    if not mask_head:
        return keras.Model(image, probabilities, name="vgg16")
    outputs = {"probabilities": probabilities, "mask": mask_output(block4, features, n_classes)}
    if averaged:
        named = {layer.name: layer for layer in keras.Model(image, logits).layers}
        outputs["contributions"] = _contributions(named)(features, hidden)
    return keras.Model(image, outputs, name="vgg16_training")


def mask_output(finer, features, n_classes: int):
    """The auxiliary output ``mask``: class probabilities per cell, from two layers of the same grid; float32."""
    from keras import layers

    cells = layers.Concatenate(name="mask_features")([finer, features])
    cells = layers.Conv2D(n_classes, 1, name="mask_logits", dtype="float32")(cells)
    return layers.Activation("softmax", name="mask", dtype="float32")(cells)


def _contributions(named: dict[str, keras.Layer]) -> keras.Layer:
    from keras import layers, ops

    class Contributions(layers.Layer):
        def call(self, features, hidden):
            dense, norm = named["dense"], named.get("dense_bn")
            cells = ops.matmul(ops.cast(features, "float32"), ops.cast(dense.kernel, "float32"))
            if norm is not None:
                cells = cells * norm.gamma / ops.sqrt(norm.moving_variance + norm.epsilon)
            active = ops.cast(hidden > 0, "float32")[:, None, None, :]
            return ops.matmul(cells * active, named[LOGITS_LAYER].kernel)

    return Contributions(name="contributions", dtype="float32")


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Build layers under another of Keras' precision policies; the one before comes back."""
    import keras

    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def copy_network(network: keras.Model) -> keras.Model:
    """The same plain network, built anew under the precision policy that is set (`dtype_policy`)."""
    copy = build_network(input_size=network.input_shape[1], n_classes=network.get_layer(LOGITS_LAYER).units)
    copy.set_weights(network.get_weights())
    return copy


def load_imagenet(network: keras.Model, weights: str, blocks: tuple[int, ...] = (1, 2, 3, 4, 5)) -> tuple[str, ...]:
    """Put ImageNet convolutions into a network whose input is grey in [0, 1], repeated to three channels.

    ImageNet's VGG16 expects BGR in 0-255 minus a mean. The first layer's kernel absorbs the scale and its bias the
    mean, so that the same picture gives the same activations (away from the picture's edge).

    Parameters
    ----------
    weights : str
        ``"imagenet"`` (through ``keras.applications``), a ``.h5`` file of the same layout, or a ``.npz`` with
        ``<layer>/kernel`` and ``<layer>/bias`` for any of VGG16's convolutions.
    blocks : tuple of int
        Which blocks to fill.

    Returns
    -------
    tuple of str
        Names of the layers that were filled.

    Raises
    ------
    ModelError
        No such file, no network, or a layout that does not fit.
    """
    arrays = _read_convolutions(weights)
    if not arrays:
        raise ModelError(f"{weights}: holds no VGG16 convolution; expected entries such as block1_conv1/kernel")
    names = {layer.name for layer in network.layers}
    filled = []
    for name, (kernel, bias) in arrays.items():
        if not name.startswith(tuple(f"block{b}_" for b in blocks)):
            continue
        if name not in names:
            raise ModelError(f"{weights}: unknown layer {name}; expected VGG16's block1_conv1 ... block5_conv3")
        layer = network.get_layer(name)
        if kernel.shape != tuple(layer.kernel.shape):
            raise ModelError(f"{weights}: {name} has kernel {kernel.shape}, expected {tuple(layer.kernel.shape)}")
        if name == "block1_conv1":
            bias = bias - (kernel * np.array(CAFFE_MEANS_BGR)[:, None]).sum((0, 1, 2))
            kernel = kernel * 255.0
        layer.kernel.assign(kernel)
        if layer.use_bias:
            layer.bias.assign(bias)
        filled.append(name)
    return tuple(filled)


def _read_convolutions(weights: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    if weights == "imagenet":
        import keras

        try:
            source = keras.applications.VGG16(weights="imagenet", include_top=False)
        except Exception as error:  # keras raises a bare Exception for a failed download
            cache = Path(os.environ.get("KERAS_HOME", "~/.keras")) / "models" / IMAGENET_FILE
            raise ModelError(
                f"ImageNet weights could not be downloaded; put {IMAGENET_FILE} at {cache}, or pass --weights PATH|none"
            ) from error
        return {x.name: (np.asarray(x.kernel), np.asarray(x.bias)) for x in source.layers if x.name[-5:-1] == "conv"}
    path = Path(weights)
    if not path.is_file():
        raise ModelError(f"{weights}: no such file; --weights takes imagenet, none, or a .h5 or .npz file")
    try:
        if path.suffix == ".npz":
            with np.load(path) as archive:
                layers = {key.split("/")[0] for key in archive.files}
                return {name: (archive[f"{name}/kernel"], archive[f"{name}/bias"]) for name in sorted(layers)}
        return _read_h5(path)
    except (OSError, KeyError, ValueError) as error:
        raise ModelError(f"{weights}: not a VGG16 weight file ({error}); expected keras .h5 or .npz layout") from error


def _read_h5(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The layout of keras.applications: one group a layer, holding <layer>_W_1:0 and <layer>_b_1:0 or kernel, bias."""
    import h5py

    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    with h5py.File(path, "r") as file:
        for name, group in file.items():
            arrays: list[np.ndarray] = []
            group.visititems(lambda _, item, a=arrays: a.append(item[()]) if isinstance(item, h5py.Dataset) else None)
            kernel = next((a for a in arrays if a.ndim == 4), None)
            bias = next((a for a in arrays if a.ndim == 1), None)
            if kernel is not None and bias is not None:
                found[name] = (kernel, bias)
    return found


def fold_batch_norm(network: keras.Model) -> keras.Model:
    """Fold batch norm into the convolutions, drop the mask head: what remains is plain VGG16 + head, float32.

    Inference-mode batch norm is affine per channel, so kernel * gamma / sigma and beta - mean * gamma / sigma give
    the same function up to rounding.
    """
    size = network.input_shape[1]
    with dtype_policy("float32"):
        plain = build_network(input_size=size, n_classes=network.get_layer(LOGITS_LAYER).units)
    names = {layer.name for layer in network.layers}
    for layer in plain.layers:
        if not layer.weights:
            continue
        source = network.get_layer(layer.name)
        if f"{layer.name}_bn" in names:
            norm = network.get_layer(f"{layer.name}_bn")
            gamma, beta, mean, variance = (np.asarray(w, np.float64) for w in norm.get_weights())
            scale = gamma / np.sqrt(variance + norm.epsilon)
            weights = [np.asarray(source.kernel) * scale, beta - mean * scale]
        else:
            weights = source.get_weights()
        if layer.name == "dense":
            weights[0] = _fit_positions(weights[0], layer.kernel.shape[0])
        layer.set_weights(weights)
    return plain


def unfold_batch_norm(plain: keras.Model, network: keras.Model, views: np.ndarray) -> None:
    """Give a plain network's weights to one with batch norm: the same function, to be trained further.

    The inverse of `fold_batch_norm`: kernels get the size that they are initialised with, batch norm the statistics
    that the activations then have on ``views``, and the scale and shift that undo both. What only ``network`` has, the
    mask head, is left as it is.

    Parameters
    ----------
    views : ndarray of shape (n, size, size, 3), float32, in [0, 1]
        A few hundred training views.
    """
    import keras
    from keras import ops

    normalised = [x.name.removesuffix("_bn") for x in network.layers if x.name.endswith("_bn")]
    inputs_of = keras.Model(plain.input, [plain.get_layer(name).input for name in normalised])
    sums: dict[str, tuple[Any, Any, int]] = dict.fromkeys(normalised, (0.0, 0.0, 0))
    for start in range(0, len(views), 32):
        for name, x in zip(normalised, inputs_of(views[start : start + 32]), strict=True):
            layer = plain.get_layer(name)
            z = ops.matmul(x, layer.kernel) if name == "dense" else ops.conv(x, layer.kernel, padding="same")
            z = np.asarray(z, np.float64).reshape(-1, z.shape[-1])
            total = sums[name]
            sums[name] = (total[0] + z.sum(0), total[1] + (z**2).sum(0), total[2] + len(z))
    for layer in network.layers:
        if not layer.weights or layer.name not in {x.name for x in plain.layers}:
            continue
        weights = plain.get_layer(layer.name).get_weights()
        if layer.name == "dense":
            weights[0] = _fit_positions(weights[0], layer.kernel.shape[0])
        if layer.name in sums:
            total, squares, n = sums[layer.name]
            norm = network.get_layer(f"{layer.name}_bn")
            mean, shift = total / n, weights[1]
            # To He's size: a step of a given learning rate is then as large a part of every kernel as it once was.
            kernel = weights[0].reshape(-1, weights[0].shape[-1])
            size = np.sqrt(2 / len(kernel)) / np.maximum(np.sqrt((kernel**2).mean(axis=0)), 1e-12)
            variance = (squares / n - mean**2) * size**2
            scale = np.sqrt(variance + norm.epsilon) / size
            norm.set_weights([scale, mean + shift, mean * size, variance])
            weights = [weights[0] * size]
        layer.set_weights(weights)


def enlarge_input(network: keras.Model, target: keras.Model) -> None:
    """Carry weights to a network with a larger input or an averaged head: the dense kernel is spread or summed."""
    for layer in target.layers:
        if not layer.weights:
            continue
        weights = network.get_layer(layer.name).get_weights()
        if layer.name == "dense":
            weights[0] = _fit_positions(weights[0], layer.kernel.shape[0])
        layer.set_weights(weights)


def _fit_positions(kernel: np.ndarray, n_inputs: int) -> np.ndarray:
    """A dense kernel for another number of positions; the same function of features that are equal everywhere.

    Spreading from one position (an average over positions) is exact for any features.
    """
    channels = BLOCKS[-1][0]
    before, after = (round((n / channels) ** 0.5) for n in (len(kernel), n_inputs))
    kernel = kernel.reshape(before, before, channels, -1)
    if after < before:
        step = before // after
        kernel = kernel.reshape(after, step, after, step, channels, -1).sum(axis=(1, 3))
    else:
        step = after // before
        kernel = kernel.repeat(step, axis=0).repeat(step, axis=1) / step**2
    return kernel.reshape(n_inputs, -1)


def logits_of(network: keras.Model, inputs: np.ndarray, batch: int = 64) -> np.ndarray:
    """Logits, float32 (n, n_classes), of network inputs (n, size, size) in [0, 1], batch by batch."""
    import keras

    logits = keras.Model(network.input, network.get_layer(LOGITS_LAYER).output)
    parts = [
        np.asarray(logits(as_network_batch(inputs[i : i + batch]), training=False), np.float32)
        for i in range(0, len(inputs), batch)
    ]
    return np.concatenate(parts)


def save_model(network: keras.Model, card: dict[str, Any], directory: Path | str) -> ModelCard:
    """Write ``<id>.keras`` (float16 weights) and ``<id>.json`` (its card); each appears whole or not at all."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with dtype_policy("float16"):
        half = build_network(input_size=network.input_shape[1], n_classes=network.get_layer(LOGITS_LAYER).units)
    half.set_weights([w.astype(np.float16) for w in network.get_weights()])
    path = directory / f"{card['id']}.keras"
    temporary = directory / f"{card['id']}.tmp.keras"
    half.save(temporary)
    os.replace(temporary, path)
    full = ModelCard(weights_sha256=sha256_of(path), **{k: v for k, v in card.items() if k != "weights_sha256"})
    write_card(full, directory)
    return full


def write_card(card: ModelCard, directory: Path | str) -> None:
    """Write ``<id>.json`` beside its weights."""
    path = Path(directory) / f"{card.id}.json"
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(card.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n", "utf-8")
    os.replace(temporary, path)


def read_card(model_id: str, directory: Path | str) -> ModelCard:
    """Read ``<id>.json``.

    Raises
    ------
    ModelError
        No card, or one that lacks a field; lists the models that have one.
    """
    path = Path(directory) / f"{model_id}.json"
    if not path.is_file():
        known = ", ".join(list_models(directory)) or "none"
        raise ModelError(f"{model_id}: no model card at {path}; models here: {known}")
    try:
        return ModelCard(**json.loads(path.read_text("utf-8")))
    except (json.JSONDecodeError, ValidationError, TypeError) as error:
        raise ModelError(f"{path.name}: not a model card ({' '.join(str(error).split())})") from error


def list_models(directory: Path | str) -> list[str]:
    """Ids of the models in a folder that have both card and weights, sorted."""
    directory = Path(directory)
    return sorted(p.stem for p in directory.glob("*.json") if p.with_suffix(".keras").is_file())


def check_weights(card: ModelCard, directory: Path | str) -> Path:
    """Path of a card's weight file, after comparing its sha256 with the card's.

    Raises
    ------
    ModelError
        Missing, or another file than the card speaks of.
    """
    path = Path(directory) / f"{card.id}.keras"
    if not path.is_file():
        raise ModelError(f"{path.name}: no such weight file beside its card in {path.parent}")
    if (found := sha256_of(path)) != card.weights_sha256:
        raise ModelError(
            f"{path.name}: sha256 {found[:12]}… is not the card's {card.weights_sha256[:12]}…; restore both files"
        )
    return path


def load_network(card: ModelCard, directory: Path | str) -> keras.Model:
    """Load a card's network in float32; see `check_weights` for what is refused."""
    path = check_weights(card, directory)
    import keras

    half = keras.saving.load_model(path, compile=False)
    network = build_network(input_size=half.input_shape[1], n_classes=half.output_shape[-1])
    network.set_weights([w.astype(np.float32) for w in half.get_weights()])
    return network


def sha256_of(path: Path | str) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
