"""What every method shares: a bound network to ask, the table entry, and the way from raw grids to drawn maps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from brainmri.errors import ExplanationError
from brainmri.explain.head import Head
from brainmri.imaging import as_network_batch
from brainmri.model import BLOCKS, FEATURE_LAYER
from brainmri.types import CLASS_NAMES, CropTransform

if TYPE_CHECKING:
    from brainmri.explain.gradients import GradientNetwork
    from brainmri.inference import Classifier

CONVOLUTIONS = tuple(
    f"block{block}_conv{index}" for block, (_, repeats) in enumerate(BLOCKS, 1) for index in range(1, repeats + 1)
)
"""VGG16's convolutional layers, first to last."""
PIXELS = "image"
"""Stands for a layer's name where a method explains the network's input itself."""


@dataclass(frozen=True)
class Batch:
    """Slices with what their one forward pass left behind.

    Attributes
    ----------
    inputs : ndarray of shape (n, size, size), float32
        Network inputs in [0, 1].
    feature_maps : ndarray of shape (n, rows, columns, channels), float32
        Of block5_conv3, after ReLU.
    logits : ndarray of shape (n, n_classes), float32
    """

    inputs: np.ndarray
    feature_maps: np.ndarray
    logits: np.ndarray

    def __getitem__(self, index: slice | np.ndarray) -> Batch:
        """Some of the slices."""
        return Batch(self.inputs[index], self.feature_maps[index], self.logits[index])


class Explainer:
    """One network, ready to be asked about: forward passes on any engine, gradients when a method needs them.

    Parameters
    ----------
    forward : callable
        float32 (n, size, size, 3) -> logits, feature maps; see ``inference.Engine.forward``.
    head : callable
        Gives the `Head`; called once.
    gradients : callable
        Gives a `GradientNetwork`; called once, and only when a method needs more than the head: this imports
        TensorFlow.
    """

    def __init__(
        self,
        forward: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
        head: Callable[[], Head],
        gradients: Callable[[], GradientNetwork],
    ):
        self._forward, self._head, self._gradients = forward, head, gradients
        self._made: dict[str, Any] = {}
        self._lock = threading.RLock()

    @classmethod
    def of(cls, classifier: Classifier, directory: Path | str, *, precision: str = "float32") -> Explainer:
        """Bind to a classifier whose weights lie in ``directory``; gradients in ``float32`` or ``bfloat16``."""
        card, engine = classifier.card, classifier.engine  # not the classifier: `explainer_of` lets go of it

        def gradients() -> GradientNetwork:
            from brainmri.explain.gradients import GradientNetwork
            from brainmri.model import load_network

            network = getattr(engine, "network", None)
            return GradientNetwork(network or load_network(card, directory), precision=precision)

        return cls(engine.forward, lambda: Head.load(card, directory), gradients)

    @classmethod
    def of_network(cls, network, *, precision: str = "float32") -> Explainer:
        """Bind to a Keras network, without a classifier."""
        from brainmri.explain.gradients import GradientNetwork

        gradients = GradientNetwork(network, precision=precision)
        return cls(gradients.forward, lambda: Head.of_network(network), lambda: gradients)

    @property
    def head(self) -> Head:
        """Weights behind block5_conv3, as arrays."""
        return self._once("head", self._head)

    @property
    def gradients(self) -> GradientNetwork:
        """The network in TensorFlow."""
        return self._once("gradients", self._gradients)

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        with self._lock:
            if name not in self._made:
                self._made[name] = make()
            return self._made[name]

    def batch(self, inputs: np.ndarray, *, size: int = 32) -> Batch:
        """Run network inputs (n, size, size) through the engine."""
        parts = [self._forward(as_network_batch(inputs[i : i + size])) for i in range(0, len(inputs), size)]
        logits, features = (np.concatenate([part[k] for part in parts]) for k in range(2))
        return Batch(np.asarray(inputs, np.float32), features, logits)

    def logits(self, inputs: np.ndarray, *, size: int = 32) -> np.ndarray:
        """Logits (n, n_classes) of network inputs (n, size, size); any number of them."""
        parts = [self._forward(as_network_batch(inputs[i : i + size]))[0] for i in range(0, len(inputs), size)]
        return np.concatenate(parts)

    def activations_and_gradients(
        self, batch: Batch, targets: np.ndarray, layer_name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Activations of a layer and the gradient of each slice's target logit to them, (n, rows, columns, channels).

        For block5_conv3 both come from the forward pass that is already there.
        """
        if layer_name == FEATURE_LAYER:
            return batch.feature_maps, self.head.gradient(batch.feature_maps, targets)
        return self.gradients.layer(batch.inputs, targets, layer_name)


class GridFunction(Protocol):
    """A method: raw maps (n, rows, columns), float32, one a slice; larger is more evidence for the target."""

    def __call__(
        self, explainer: Explainer, batch: Batch, targets: np.ndarray, layer_name: str, *, seed: int
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class Method:
    """A row in the table of methods.

    Attributes
    ----------
    name, title : str
        As typed, and as shown.
    grids : GridFunction
    meaning, misleads : str
        Two plain sentences for a reader.
    explains_pixels : bool
        Explains the network's input and takes no layer; otherwise any convolutional layer.
    percentile : float
        Of the positive part of a raw map that is drawn as 1: 100 is its maximum.
    """

    name: str
    title: str
    grids: GridFunction
    meaning: str
    misleads: str
    reference: str
    explains_pixels: bool = False
    percentile: float = 100.0

    @property
    def units(self) -> str:
        """Label of the colour bar."""
        return (
            "share of the map's maximum" if self.percentile == 100 else f"share of its {self.percentile:g}th percentile"
        )

    def check_layer(self, layer_name: str | None) -> str:
        """Name of the layer to explain.

        Raises
        ------
        ExplanationError
            No such layer (lists those that are), one without positions, or a method that takes none.
        """
        if self.explains_pixels:
            if layer_name in (None, PIXELS):
                return PIXELS
            raise ExplanationError(
                f"{self.name} explains the pixels of the network's input and takes no layer, got {layer_name!r}; "
                "leave the layer out, or take a CAM method"
            )
        layer_name = layer_name or FEATURE_LAYER
        if layer_name in ("flatten", "dense", "logits", "probabilities", "dropout_1", "dropout_2"):
            raise ExplanationError(
                f"{self.name} needs a layer with positions; {layer_name!r} has none left. "
                f"Convolutional layers: {', '.join(CONVOLUTIONS)}"
            )
        if layer_name not in CONVOLUTIONS:
            raise ExplanationError(f"no layer {layer_name!r}; convolutional layers: {', '.join(CONVOLUTIONS)}")
        return layer_name


def class_index(target_class: str | int) -> int:
    """Column of a class.

    Raises
    ------
    ExplanationError
        No such class; lists those that are.
    """
    if isinstance(target_class, str) and target_class in CLASS_NAMES:
        return CLASS_NAMES.index(target_class)
    if isinstance(target_class, int | np.integer) and 0 <= target_class < len(CLASS_NAMES):
        return int(target_class)
    raise ExplanationError(f"no class {target_class!r}; classes: {', '.join(CLASS_NAMES)}")


def normalise(grid: np.ndarray, percentile: float = 100.0) -> np.ndarray:
    """Positive part of a raw map over its maximum (or percentile).

    Returns
    -------
    ndarray of ``grid``'s shape, float32
        At least 0, above 1 past the percentile; all zeros where nothing is positive. What is not finite counts as no
        evidence.
    """
    positive = np.where(np.isfinite(grid), np.maximum(grid, 0), 0).astype(np.float64)
    top = positive.max(initial=0.0)
    if percentile < 100 and top > 0:
        top = np.percentile(positive, percentile) or top
    # A percentile may be next to nothing; interpolation needs values that stay finite in float32.
    return np.zeros(grid.shape, np.float32) if top <= 0 else np.minimum(positive / top, 1e30).astype(np.float32)


def draw(
    grid: np.ndarray, transform: CropTransform, shape: tuple[int, int], percentile: float = 100.0
) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Normalise a raw map and lay it into the original image.

    Returns
    -------
    saliency_map : ndarray of ``shape``, float32
        In [0, 1].
    peak : (row, column) or None
        Of its maximum before all above the percentile became 1, original pixels; None for an all-zero map.
    """
    laid = transform.to_original(normalise(grid, percentile), shape)
    row, column = divmod(int(laid.argmax()), shape[1])
    return np.clip(laid, 0, 1), (row, column) if laid[row, column] > 0 else None


def upsampling_matrix(size: int, cells: int) -> np.ndarray:
    """Linear interpolation of ``cells`` values to ``size`` positions, corner on corner; float32 (size, cells).

    The same as ``scipy.ndimage.zoom(order=1)``, which Score-CAM's reference implementation uses.
    """
    if cells == 1:
        return np.ones((size, 1), np.float32)
    position = np.linspace(0, cells - 1, size)
    low = np.minimum(position.astype(int), cells - 2)
    matrix = np.zeros((size, cells), np.float32)
    rows = np.arange(size)
    matrix[rows, low] = 1 - (position - low)
    matrix[rows, low + 1] += position - low
    return matrix


def as_targets(targets: Sequence[int] | np.ndarray) -> np.ndarray:
    """Class columns as an int64 array."""
    return np.asarray(targets, np.int64)
