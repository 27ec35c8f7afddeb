"""Slices -> Prediction, whichever engine runs underneath."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from brainmri.decision import DecisionRule
from brainmri.imaging import as_network_batch, preprocess
from brainmri.model import FEATURE_LAYER, LOGITS_LAYER, ModelCard, load_network, read_card
from brainmri.types import Prediction


class Engine(Protocol):
    """Runs the network: one forward pass gives logits and the feature layer's activations."""

    name: str
    precision: str

    def forward(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 (n, 128, 128, 3) in [0, 1] -> logits (n, 4), feature maps (n, 8, 8, 512), float32."""
        ...


class KerasEngine:
    """The reference: float32, TensorFlow."""

    name = "keras"
    precision = "float32"

    def __init__(self, card: ModelCard, directory: Path | str):
        import keras
        import tensorflow as tf

        self.network = load_network(card, directory)
        both = keras.Model(
            self.network.input,
            [self.network.get_layer(LOGITS_LAYER).output, self.network.get_layer(FEATURE_LAYER).output],
        )
        self._call = tf.function(lambda x: both(x, training=False), reduce_retracing=True)

    def forward(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Engine.forward`."""
        import tensorflow as tf

        logits, features = self._call(tf.constant(batch))
        return logits.numpy(), features.numpy()


class Classifier:
    """A model ready to answer: engine, card and decision rule. Safe to share between threads; never mutated."""

    def __init__(self, card: ModelCard, engine: Engine, rule: DecisionRule):
        self.card = card
        self.engine = engine
        self.rule = rule

    def predict(self, images: Sequence[np.ndarray]) -> Prediction:
        """Classify slices.

        Parameters
        ----------
        images : sequence of ndarray of shape (height, width), uint8
            Grey display intensities; sizes may differ. Not modified.

        Raises
        ------
        InvalidImageError
            Wrong rank, dtype or size.
        """
        start = time.perf_counter()
        inputs, transforms = zip(*(preprocess(image) for image in images), strict=True)
        stacked = np.stack(inputs)
        logits, feature_maps = self.engine.forward(as_network_batch(stacked))
        probabilities, ood_score, sets, decisions = self.rule.apply(logits, feature_maps)
        return Prediction(
            logits=logits,
            probabilities=probabilities,
            feature_maps=feature_maps,
            decisions=decisions,
            prediction_sets=sets,
            ood_score=ood_score,
            ood_threshold=self.rule.ood_threshold,
            transforms=transforms,
            inputs=stacked,
            model_id=self.card.id,
            weights_sha256=self.card.weights_sha256,
            engine=self.engine.name,
            precision=self.engine.precision,
            elapsed_ms=(time.perf_counter() - start) * 1e3,
        )


def load_classifier(model_id: str, directory: Path | str, engine: str = "auto") -> Classifier:
    """Load a model by id with its card, fitted statistics and engine (``auto``, ``openvino`` or ``keras``)."""
    card = read_card(model_id, directory)
    return Classifier(card, KerasEngine(card, directory), DecisionRule.load(Path(directory) / f"{model_id}.npz"))
