"""EfficientNet-Lite2, whose answers a recipe's network may learn from; it trains like VGG16 and is never shipped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brainmri.errors import ModelError
from brainmri.model import LOGITS_LAYER, mask_output
from brainmri.types import CLASS_NAMES

if TYPE_CHECKING:
    import keras

STAGES = (
    # repeats, kernel, stride, expansion, filters
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""EfficientNet's stages of inverted bottlenecks (Tan & Le, ICML 2019, table 1)."""

WIDTH, DEPTH = 1.1, 1.2
"""Multipliers of Lite2's filters and repeats."""


def build_teacher(*, input_size: int, n_classes: int = len(CLASS_NAMES), mask_head: bool = False) -> keras.Model:
    """Build EfficientNet-Lite2: EfficientNet without squeeze and excitation, with ReLU6 [1]_.

    Parameters
    ----------
    input_size : int
        Side of the square input in pixels, a multiple of 32.
    mask_head : bool
        Add the output ``mask``, class probabilities per cell of 16 × 16 pixels, as `model.build_network` does.

    Returns
    -------
    keras.Model
        Input (n, size, size, 3) in [0, 1] -> ``probabilities`` (n, n_classes), or with ``mask_head``
        {"probabilities", "mask"}.

    References
    ----------
    .. [1] Tan & Le, "EfficientNet", ICML 2019, arXiv:1905.11946; Lite as in TensorFlow's TPU models.
    """
    import keras
    from keras import layers

    def normalised(x, name: str, active: bool = True):
        x = layers.BatchNormalization(momentum=0.97, epsilon=1e-3, name=f"{name}_bn")(x)
        return layers.ReLU(6.0, name=f"{name}_relu")(x) if active else x

    def convolved(x, filters: int, name: str, kernel: int = 1, strides: int = 1, active: bool = True):
        x = layers.Conv2D(filters, kernel, strides, "same", use_bias=False, name=name)(x)
        return normalised(x, name, active)

    repeats = [r if k in (0, len(STAGES) - 1) else math.ceil(r * DEPTH) for k, (r, *_) in enumerate(STAGES)]
    image = keras.Input((input_size, input_size, 3), name="image")
    x = layers.Rescaling(255 / 128, -127 / 128, name="scaled")(image)
    x = convolved(x, 32, "stem", 3, 2)
    number, fine = 0, None
    for (_, kernel, stride, expansion, filters), n in zip(STAGES, repeats, strict=True):
        for index in range(n):
            before, name = x, f"block{number}"
            strides = stride if index == 0 else 1
            if expansion > 1:
                x = convolved(x, x.shape[-1] * expansion, f"{name}_expand")
            if strides == 2:
                fine = x
            x = layers.DepthwiseConv2D(kernel, strides, "same", use_bias=False, name=f"{name}_depthwise")(x)
            x = normalised(x, f"{name}_depthwise")
            x = convolved(x, _rounded(filters * WIDTH), f"{name}_project", active=False)
            if index:
                # Stochastic depth (Huang et al., ECCV 2016): later blocks are left out more often.
                rate = 0.2 * number / sum(repeats)
                x = layers.Dropout(rate, noise_shape=(None, 1, 1, 1), name=f"dropout_{number}")(x)
                x = layers.Add(name=f"{name}_add")([x, before])
            number += 1
    features = convolved(x, 1280, "head")
    x = layers.GlobalAveragePooling2D(name="average")(features)
    x = layers.Dropout(0.3, name=f"dropout_{number}")(x)
    logits = layers.Dense(n_classes, name=LOGITS_LAYER, dtype="float32")(x)
    probabilities = layers.Activation("softmax", name="probabilities", dtype="float32")(logits)
    if not mask_head:
        return keras.Model(image, probabilities, name="teacher")
    mask = mask_output(fine, layers.UpSampling2D(name="mask_coarse")(features), n_classes)
    return keras.Model(image, {"probabilities": probabilities, "mask": mask}, name="teacher_training")


def _rounded(filters: float) -> int:
    """The nearest multiple of 8, but no more than a tenth below."""
    nearest = max(8, int(filters + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * filters else nearest


def load_teacher_imagenet(network: keras.Model, path: Path | str) -> None:
    """Put ImageNet's weights into all but the last layer.

    Parameters
    ----------
    path : path
        ``.npz`` that ``scripts/teacher_weights.py`` makes of the published file: arrays in the network's order, each
        convolution's kernel (out, in, rows, columns) followed by its batch norm's scale, shift, mean and variance.

    Raises
    ------
    ModelError
        No such file, or arrays that do not fit.
    """
    if not Path(path).is_file():
        raise ModelError(f"{path}: no such file; make it with scripts/teacher_weights.py, or pass none")
    with np.load(path) as archive:
        arrays = [archive[name] for name in archive.files]
    wanted = [x for x in network.layers if x.name.endswith("_bn")]
    if len(arrays) != 5 * len(wanted):
        raise ModelError(f"{path}: holds {len(arrays)} arrays, EfficientNet-Lite2 needs {5 * len(wanted)}")
    for k, norm in enumerate(wanted):
        layer = network.get_layer(norm.name.removesuffix("_bn"))
        kernel = arrays[5 * k].transpose(2, 3, 1, 0)
        if layer.name.endswith("_depthwise"):
            kernel = kernel.transpose(0, 1, 3, 2)
        if kernel.shape != tuple(layer.kernel.shape):
            raise ModelError(f"{path}: {layer.name} has kernel {kernel.shape}, expected {tuple(layer.kernel.shape)}")
        layer.kernel.assign(kernel)
        norm.set_weights(arrays[5 * k + 1 : 5 * k + 5])


def without_mask_head(network: keras.Model) -> keras.Model:
    """The network that answers with probabilities alone; it shares its layers with ``network``."""
    import keras

    return keras.Model(network.input, network.get_layer("probabilities").output, name="teacher")
