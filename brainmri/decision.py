"""Logits -> calibrated probabilities, conformal sets, the not-a-brain-MRI gate, and the decision they make together.

All of it is fitted after training by `fit_rule` (command ``brainmri calibrate``) and kept in ``models/<id>.npz``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from brainmri.errors import ModelError
from brainmri.gate import Gate
from brainmri.imaging import COLOUR_LIMIT, RIVAL_LIMIT
from brainmri.types import CLASS_NAMES

LEVELS = (0.90, 0.95)
"""Coverages of the prediction sets; the last one decides."""


@dataclass(frozen=True)
class DecisionRule:
    """Fitted statistics of one model: ``models/<id>.npz``.

    Attributes
    ----------
    temperature : float
        Logits are divided by it before the softmax (Guo et al., ICML 2017).
    quantiles : tuple of float
        Per coverage in ``LEVELS``: a class belongs to the set where 1 - probability is at most this.
    gate : Gate or None
    weights_sha256 : str
        The weights it was fitted to; empty for the identity rule of a model that has not been calibrated.
    tumour_threshold : float or None
        On 1 - p(notumor), for tumour against none; chosen on validation data, used in evaluations only.
    """

    temperature: float = 1.0
    quantiles: tuple[float, ...] = ()
    gate: Gate | None = None
    weights_sha256: str = ""
    tumour_threshold: float | None = None

    @property
    def ood_threshold(self) -> float:
        """Largest accepted ``ood_score``."""
        return 1.0 if self.gate else float("inf")

    @classmethod
    def load(cls, path: Path | str, weights_sha256: str | None = None) -> DecisionRule:
        """Read ``<id>.npz``; the identity rule where there is none.

        Parameters
        ----------
        weights_sha256 : str, optional
            Of the weights it must belong to; default: what the card beside it says.

        Raises
        ------
        ModelError
            Damaged, or fitted to other weights.
        """
        path = Path(path)
        if not path.is_file():
            return cls()
        if weights_sha256 is None and path.with_suffix(".json").is_file():
            from brainmri.model import read_card

            weights_sha256 = read_card(path.stem, path.parent).weights_sha256
        try:
            with np.load(path, allow_pickle=False) as archive:
                rule = cls(
                    float(archive["temperature"]),
                    tuple(float(q) for q in archive["quantiles"]),
                    Gate.from_arrays(archive) if archive["has_gate"] else None,
                    str(archive["weights_sha256"]),
                    None if np.isnan(archive["tumour_threshold"]) else float(archive["tumour_threshold"]),
                )
        except (OSError, KeyError, ValueError, EOFError, BadZipFile) as error:
            raise ModelError(
                f"{path.name}: not the statistics that 'brainmri calibrate' writes ({error}); run it again"
            ) from error
        if weights_sha256 is not None and rule.weights_sha256 != weights_sha256:
            raise ModelError(
                f"{path.name}: fitted to weights {rule.weights_sha256[:12]}…, but {path.stem} has "
                f"{weights_sha256[:12]}…; run 'brainmri calibrate' for these weights, or remove the file"
            )
        return rule

    def save(self, path: Path | str) -> None:
        """Write ``<id>.npz``, whole or not at all."""
        arrays: dict[str, np.ndarray] = {
            "temperature": np.array(self.temperature),
            "tumour_threshold": np.array(np.nan if self.tumour_threshold is None else self.tumour_threshold),
            "levels": np.array(LEVELS),
            "quantiles": np.array(self.quantiles),
            "weights_sha256": np.array(self.weights_sha256),
            "has_gate": np.array(self.gate is not None),
            **(self.gate.arrays() if self.gate else {}),
        }
        path = Path(path)
        temporary = path.with_suffix(".npz.tmp")
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Temperature-scaled softmax, float32 (n, n_classes)."""
        return softmax(logits / self.temperature).astype(np.float32)

    def prediction_sets(self, probabilities: np.ndarray, level: float = LEVELS[-1]) -> np.ndarray:
        """Which classes are in each set, bool (n, n_classes); the likeliest alone where nothing is calibrated."""
        if not self.quantiles:
            return probabilities.argmax(axis=1)[:, None] == np.arange(probabilities.shape[1])
        return conformal_sets(probabilities, self.quantiles[LEVELS.index(level)])

    def apply(
        self,
        logits: np.ndarray,
        feature_maps: np.ndarray,
        inputs: np.ndarray | None = None,
        colour_share: Sequence[float] | None = None,
        rival_share: Sequence[float] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, tuple[tuple[str, ...], ...], tuple[str, ...]]:
        """Decide for each slice.

        Parameters
        ----------
        logits : ndarray of shape (n, n_classes), float32
        feature_maps : ndarray of shape (n, rows, columns, channels), float32
            block5_conv3 after ReLU.
        inputs : ndarray of shape (n, 128, 128), float32
            What the network saw, in [0, 1]; the gate needs it.
        colour_share : sequence of float, optional
            Of each slice, in [0, 1]; default: all are grey. A rule without a gate ignores it, as it rejects nothing.
        rival_share : sequence of float, optional
            Second largest bright region over the head, of each slice; default: each picture shows one.

        Returns
        -------
        probabilities : ndarray of shape (n, n_classes), float32
        ood_score : ndarray of shape (n,), float32
            The largest of the gate's score and ``colour_share`` and ``rival_share`` over their limits.
        prediction_sets : tuple of tuple of str
            95 % conformal sets, likeliest class first.
        decisions : tuple of str
            ``"rejected"`` goes before ``"undecided"`` (no class, or more than one, in the set), else ``"class"``.
        """
        probabilities = self.probabilities(logits)
        if self.gate is None:
            ood_score = np.zeros(len(logits), np.float32)
        elif inputs is None:
            raise ModelError("the gate was fitted on network inputs too; pass them to DecisionRule.apply")
        else:
            ood_score = self.gate.score(feature_maps, inputs)
            for share, limit in ((colour_share, COLOUR_LIMIT), (rival_share, RIVAL_LIMIT)):
                if share is not None:
                    ood_score = np.maximum(ood_score, np.asarray(share, np.float32) / np.float32(limit))
        sets, decisions = [], []
        for p, members, rejected in zip(
            probabilities, self.prediction_sets(probabilities), ood_score > self.ood_threshold, strict=True
        ):
            sets.append(tuple(CLASS_NAMES[i] for i in np.argsort(-p, kind="stable") if members[i]))
            decisions.append("rejected" if rejected else "class" if len(sets[-1]) == 1 else "undecided")
        return probabilities, ood_score, tuple(sets), tuple(decisions)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def conformal_sets(probabilities: np.ndarray, quantile: float) -> np.ndarray:
    """Classes whose score 1 - p is at most the quantile; bool (n, n_classes). May be empty."""
    return 1.0 - probabilities.astype(np.float64) <= quantile


def fit_temperature(logits: np.ndarray, y_true: np.ndarray) -> float:
    """Temperature that minimises the log loss of a held-out split.

    Parameters
    ----------
    logits : ndarray of shape (n, n_classes)
    y_true : ndarray of shape (n,), int
        Class indices.

    References
    ----------
    .. [1] Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599.
    """
    from scipy.optimize import minimize_scalar

    logits = np.asarray(logits, np.float64)

    def log_loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        peak = scaled.max(axis=1)
        log_sum = peak + np.log(np.exp(scaled - peak[:, None]).sum(axis=1))
        return float((log_sum - scaled[np.arange(len(y_true)), y_true]).mean())

    return float(np.exp(minimize_scalar(log_loss, bounds=(-3, 3), method="bounded").x))


def conformal_quantile(
    probabilities: np.ndarray, y_true: np.ndarray, level: float, units: Sequence[Any] | None = None
) -> float:
    """Split-conformal quantile of the score 1 - p(true class).

    The ⌈(n + 1) · level⌉-th smallest of n scores; 1 (every class is in the set) where n is too small for the level.

    Parameters
    ----------
    units : sequence of length n, optional
        What is independent of each other, patients say. Slices of one patient are alike, so n of them promise less than
        n patients would: the level becomes level · (k + 1) / k with k = n² / Σ n_u², the number of independent images
        that they are worth (Kish). Without units, or with one image a unit, k is n and this is plain split conformal.

    References
    ----------
    .. [1] Sadinle, Lei & Wasserman, "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels", JASA 2019.
    .. [2] Angelopoulos & Bates, "A Gentle Introduction to Conformal Prediction", 2021, arXiv:2107.07511.
    .. [3] Kish, "Survey Sampling", Wiley 1965: effective sample size.
    .. [4] Dunn, Wasserman & Ramdas, "Distribution-Free Prediction Sets for Two-Layer Hierarchical Models", JASA 2023:
       the promise for a new subject is governed by the number of subjects.
    """
    scores = np.sort(1.0 - probabilities.astype(np.float64)[np.arange(len(y_true)), y_true])
    n = len(scores)
    independent = float(n) if units is None else effective_size(units)
    # 19 digits of a level such as 0.9 are not 0.9: without rounding 10 * 0.9 can become 9.000000000000002 -> 10
    rank = int(np.ceil(round(n * level * (independent + 1) / independent, 9)))
    return float(scores[rank - 1]) if rank <= n else 1.0


def effective_size(units: Sequence[Any]) -> float:
    """Kish's effective sample size n² / Σ n_u² of images that come in units."""
    _, sizes = np.unique(np.asarray(units).astype(str), return_counts=True)
    return float(sizes.sum() ** 2 / (sizes.astype(np.float64) ** 2).sum())
