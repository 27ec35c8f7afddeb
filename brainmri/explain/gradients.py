"""Gradients of logits through the whole network, in TensorFlow. Imported late: serving and Grad-CAM do without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from brainmri.errors import ExplanationError
from brainmri.model import FEATURE_LAYER, LOGITS_LAYER

if TYPE_CHECKING:
    import keras


class GradientNetwork:
    """Differentiates target logits to a layer or to the picture. Reads a network's layers, never changes them.

    Parameters
    ----------
    network : keras.Model
        With the layer ``logits``.
    precision : str
        ``"float32"``; ``"bfloat16"`` computes on a copy, about three times faster where the processor has AMX.
    chunk : int
        Slices differentiated at once; bounds memory.
    """

    def __init__(self, network: keras.Model, *, precision: str = "float32", chunk: int = 16):
        import keras
        import tensorflow as tf

        if precision == "bfloat16":
            network = _bfloat16_copy(network)
        self.network = network
        self.chunk = chunk
        logits = network.get_layer(LOGITS_LAYER).output
        self._logits = keras.Model(network.input, logits)
        both = keras.Model(network.input, [logits, network.get_layer(FEATURE_LAYER).output])
        self._layers: dict = {}

        @tf.function(reduce_retracing=True)
        def forward(batch):
            return [tf.cast(x, tf.float32) for x in both(batch, training=False)]

        @tf.function(reduce_retracing=True)
        def pixels(grey, targets):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(grey)
                values = tf.cast(self._logits(tf.repeat(grey[..., None], 3, axis=-1), training=False), tf.float32)
                score = tf.gather(values, targets, axis=1, batch_dims=1)
            return tape.gradient(score, grey)

        self._forward, self._pixels = forward, pixels

    def forward(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ``inference.Engine.forward``."""
        logits, features = self._forward(batch)
        return logits.numpy(), features.numpy()

    def pixels(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Gradient of each target logit to the grey network input; (n, size, size), float32."""
        steps = range(0, len(inputs), self.chunk)
        parts = [self._pixels(inputs[i : i + self.chunk], targets[i : i + self.chunk]).numpy() for i in steps]
        return np.concatenate(parts).astype(np.float32)

    def layer(self, inputs: np.ndarray, targets: np.ndarray, layer_name: str) -> tuple[np.ndarray, np.ndarray]:
        """Activations of a layer and the gradient of each target logit to them; (n, rows, columns, channels)."""
        call = self._layers.get(layer_name) or self._layers.setdefault(layer_name, self._build(layer_name))
        parts = []
        for i in range(0, len(inputs), self.chunk):
            batch = np.repeat(inputs[i : i + self.chunk, ..., None], 3, axis=-1)
            parts.append([x.numpy() for x in call(batch, targets[i : i + self.chunk])])
        activations, gradients = (np.concatenate([part[k] for part in parts]) for k in range(2))
        return activations, gradients

    def activations(self, inputs: np.ndarray, layer_name: str) -> np.ndarray:
        """Activations of a layer, (n, rows, columns, channels)."""
        return self.layer(inputs, np.zeros(len(inputs), np.int64), layer_name)[0]

    def _build(self, layer_name: str):
        import keras
        import tensorflow as tf

        known = {layer.name: layer for layer in self.network.layers}
        if layer_name not in known:
            names = ", ".join(name for name in known if "_conv" in name)
            raise ExplanationError(f"this network has no layer {layer_name!r}; convolutional layers: {names}")
        model = keras.Model(self.network.input, [self._logits.output, known[layer_name].output])

        @tf.function(reduce_retracing=True)
        def layer(batch, targets):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(batch)
                values, activations = model(batch, training=False)
                score = tf.gather(tf.cast(values, tf.float32), targets, axis=1, batch_dims=1)
            gradients = tape.gradient(score, activations)
            return tf.cast(activations, tf.float32), tf.cast(gradients, tf.float32)

        return layer


def _bfloat16_copy(network: keras.Model) -> keras.Model:
    from brainmri.model import copy_network, dtype_policy

    with dtype_policy("mixed_bfloat16"):
        return copy_network(network)
