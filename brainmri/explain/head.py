"""The layers behind block5_conv3 (max pool, two dense layers) in NumPy: the backward pass that Grad-CAM needs.

A prediction's forward pass leaves block5_conv3's activations behind. From a logit back to them the gradient passes the
small dense layers and a 2 x 2 max pool only, so no second pass through the network, and no TensorFlow, is needed.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from brainmri.errors import ModelError
from brainmri.model import ModelCard, check_weights


@dataclass(frozen=True, eq=False)
class Head:
    """Pool, dense (ReLU), logits.

    Attributes
    ----------
    dense_kernel : ndarray of shape (pooled_rows * pooled_columns * channels, units), float32
    dense_bias : ndarray of shape (units,), float32
    logits_kernel : ndarray of shape (units, n_classes), float32
    logits_bias : ndarray of shape (n_classes,), float32
    """

    dense_kernel: np.ndarray
    dense_bias: np.ndarray
    logits_kernel: np.ndarray
    logits_bias: np.ndarray
    _sums: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, card: ModelCard, directory: Path | str) -> Head:
        """Read the head out of ``<id>.keras`` without TensorFlow; cached by the file's sha256.

        Raises
        ------
        ModelError
            Missing or foreign weights, or a layout that is not this package's.
        """
        return _load(check_weights(card, directory), card.weights_sha256)

    @classmethod
    def of_network(cls, network) -> Head:
        """Copy the head out of a Keras network."""
        arrays = [*network.get_layer("dense").get_weights(), *network.get_layer("logits").get_weights()]
        first, second, third, fourth = (np.asarray(a, np.float32) for a in arrays)
        return cls(first, second, third, fourth)  # type: ignore[arg-type]

    def logits(self, feature_maps: np.ndarray) -> np.ndarray:
        """Logits (n, n_classes) of feature maps (n, rows, columns, channels)."""
        hidden = np.maximum(self._before_relu(feature_maps), 0)
        return hidden @ self.logits_kernel + self.logits_bias

    def gradient(self, feature_maps: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Gradient of each slice's target logit to its feature maps.

        Parameters
        ----------
        feature_maps : ndarray of shape (n, rows, columns, channels), float32
            Rows and columns even.
        targets : ndarray of shape (n,), int

        Returns
        -------
        ndarray of ``feature_maps``'s shape, float32
            In each pooling window the whole gradient lies on the first maximum, as in TensorFlow.
        """
        n, rows, columns, channels = feature_maps.shape
        pooled = (self._hidden_gradient(feature_maps, targets) @ self.dense_kernel.T).reshape(
            n, rows // 2, 1, columns // 2, 1, channels
        )
        windows = feature_maps.reshape(n, rows // 2, 2, columns // 2, 2, channels)
        gradient = np.zeros_like(windows)
        highest = windows.max(axis=(2, 4), keepdims=True)
        free = np.ones(highest.shape, bool)
        for i in range(2):
            for j in range(2):
                here = free & (windows[:, :, i : i + 1, :, j : j + 1] == highest)
                gradient[:, :, i : i + 1, :, j : j + 1] = np.where(here, pooled, 0)
                free &= ~here
        return gradient.reshape(feature_maps.shape)

    def mean_gradient(self, feature_maps: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Mean of `gradient` over positions, (n, channels): pooling only moves gradient, so no window is searched."""
        cells, channels = feature_maps.shape[1] * feature_maps.shape[2], feature_maps.shape[3]
        return self._hidden_gradient(feature_maps, targets) @ self._summed_kernel(channels).T / np.float32(cells)

    def _hidden_gradient(self, feature_maps: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return np.where(self._before_relu(feature_maps) > 0, self.logits_kernel[:, targets].T, np.float32(0))

    def _before_relu(self, feature_maps: np.ndarray) -> np.ndarray:
        n, rows, columns, channels = feature_maps.shape
        if rows % 2 or columns % 2 or rows * columns * channels != 4 * len(self.dense_kernel):
            raise ModelError(
                f"feature maps of {rows} x {columns} x {channels} do not fit a dense layer with "
                f"{len(self.dense_kernel)} inputs; expected those of the same model's block5_conv3"
            )
        pooled = feature_maps.reshape(n, rows // 2, 2, columns // 2, 2, channels)
        # Two maxima of two are several times faster than one over two axes.
        pooled = np.maximum(pooled[:, :, 0], pooled[:, :, 1])
        pooled = np.maximum(pooled[:, :, :, 0], pooled[:, :, :, 1])
        return pooled.reshape(n, -1) @ self.dense_kernel + self.dense_bias

    def _summed_kernel(self, channels: int) -> np.ndarray:
        if channels not in self._sums:
            self._sums[channels] = self.dense_kernel.reshape(-1, channels, self.dense_kernel.shape[1]).sum(0)
        return self._sums[channels]


@lru_cache(maxsize=4)
def _load(path: Path, weights_sha256: str) -> Head:
    import h5py

    try:
        # Keras stores it uncompressed: only what is asked for is read.
        with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as content, h5py.File(content) as file:
            arrays = [
                np.asarray(file[f"layers/{layer}/vars/{index}"], np.float32)
                for layer in ("dense", "dense_1")
                for index in range(2)
            ]
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{path.name}: no head found ({error}); expected this package's VGG16 with two dense layers"
        ) from error
    for array in arrays:
        array.setflags(write=False)
    first, second, third, fourth = arrays
    return Head(first, second, third, fourth)  # type: ignore[arg-type]
