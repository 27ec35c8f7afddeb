"""Is it a brain MRI at all? A small classifier between heads and what is none, on what the network saw and felt.

`describe` turns the forward pass's own feature maps and input into numbers, `fit_gate` learns heads against drawn
outliers (`outliers`) and head CT, `Gate.score` is one matrix product. Fitted by ``brainmri calibrate``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import reduce

import numpy as np
from PIL import Image
from scipy import ndimage

REJECTION = 0.01
"""Share of validation heads that the gate may turn away."""

COMPONENTS, HIDDEN, PENALTY = 160, 1000, 1e-4
SIDE = 64
DEPTHS = (1.5, 2.5, 3.5, 4.5, 5.5, 7, 9, 12, 16, 22)
"""Edges of the shells that a head is cut into from its outline inwards, in pixels of 64 a side."""

_SHELL = np.digitize(np.sqrt(np.arange((SIDE // 2) ** 2 + 1)), DEPTHS)
_SHELL[0] = len(DEPTHS) + 1
"""Number of the shell by squared depth; outside the head the number after the last."""

_BLOCK = 32
_CROSS = ndimage.generate_binary_structure(2, 1)


@dataclass(frozen=True)
class Gate:
    """Whitening, a layer of random ReLUs and a linear read-out: a kernel machine at the cost of a matrix product.

    Attributes
    ----------
    mean, scale : ndarray of shape (d,), float32
        Of the descriptors.
    projection : ndarray of shape (d, k), float32
        Principal components of the scaled descriptors, whitened.
    hidden : ndarray of shape (k, h), bias : ndarray of shape (h,), float32
        Drawn, not learned.
    output : ndarray of shape (1 + k + h,), float32
        Offset, linear and hidden weights of the log odds that it is no brain MRI.
    centre : ndarray of shape (k,), spread : ndarray of shape (k, k), float32
        Of the heads in that space: ``|(component - centre) @ spread|`` is their Mahalanobis distance.
    limits : tuple of float
        Largest accepted result, largest accepted distance.
    """

    mean: np.ndarray
    scale: np.ndarray
    projection: np.ndarray
    hidden: np.ndarray
    bias: np.ndarray
    output: np.ndarray
    centre: np.ndarray
    spread: np.ndarray
    limits: tuple[float, float]

    def margins(self, descriptors: np.ndarray) -> np.ndarray:
        """The read-out and the heads' Mahalanobis distance, float64 (n, 2), of what `describe` returned."""
        components = ((descriptors - self.mean) / self.scale) @ self.projection
        distance = np.sqrt((((components - self.centre) @ self.spread) ** 2).sum(axis=1, dtype=np.float64))
        return np.stack([_expand(components, self.hidden, self.bias) @ self.output, distance], axis=1)

    def score(self, feature_maps: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """How little it looks like a brain MRI, float32 (n,), positive; over 1 is turned away.

        Parameters
        ----------
        feature_maps : ndarray of shape (n, rows, columns, channels), float32
            block5_conv3 after ReLU.
        inputs : ndarray of shape (n, 128, 128), float32
            What the network saw, in [0, 1].
        """
        margins = self.margins(describe(feature_maps, inputs))
        learned = np.exp(0.5 * np.minimum(margins[:, 0] - self.limits[0], 20))
        return np.maximum(learned, margins[:, 1] / self.limits[1]).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """As kept in ``models/<id>.npz``: drawn and projecting matrices in float16, names prefixed ``gate_``."""
        halves = ("projection", "hidden", "bias", "spread")
        kept = {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}
        return {f"gate_{k}": v.astype(np.float16) if k in halves else v for k, v in kept.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Gate:
        """Read what `arrays` gave."""
        kept = {f.name: arrays[f"gate_{f.name}"] for f in fields(cls)}
        low, high = (float(v) for v in kept.pop("limits"))
        return cls(**{k: v.astype(np.float32) for k, v in kept.items()}, limits=(low, high))


def describe(feature_maps: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """What the gate judges by, float32 (n, channels + 73).

    Square root of block5's channel means (what the network sees, wherever it is); per shell of the head from its
    outline inwards mean, spread, share of full white and size (bone is white in CT, dark in MRI; a photograph has no
    shells at all); the outline's size, depth and share on the rim; roughness; square root of the grey histogram.
    """
    inputs = np.asarray(inputs, np.float32)
    features = np.sqrt(np.maximum(feature_maps.mean(axis=(1, 2)), 0))
    shapes = [_describe_heads(inputs[start : start + _BLOCK]) for start in range(0, len(inputs), _BLOCK)]
    return np.hstack([features, np.concatenate(shapes)]).astype(np.float32)


def _describe_heads(inputs: np.ndarray) -> np.ndarray:
    """The part of `describe` that looks at the inputs, (n, 73), of a block of them at once."""
    n, k = len(inputs), len(DEPTHS) + 1
    small = _cell_means(inputs)
    white = _cell_means((inputs >= 0.95).astype(np.float32))
    squared = _squared_depth(_filled(small > 0.08))
    head = squared > 0
    # One bin a shell and picture, and one for what is outside the head, which is dropped.
    bins = (_SHELL[squared] + (k + 1) * np.arange(n)[:, None, None]).ravel()

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(bins, values.ravel(), n * (k + 1)).reshape(n, k + 1)[:, :k]

    count = total(head)
    some = np.maximum(count, 1)
    mean = total(small) / some
    variance = np.maximum(total(small.astype(np.float64) ** 2) / some - mean**2, 0)
    shells = np.stack([mean, np.sqrt(variance), total(white) / some, np.sqrt(count) / SIDE], axis=2)
    rim = sum(edge.mean(axis=1) for edge in (head[:, 0], head[:, -1], head[:, :, 0], head[:, :, -1]))
    depth = np.sqrt(squared.max(axis=(1, 2))) / (SIDE / 2)
    coarse = np.sqrt(np.abs(np.diff(small, axis=1)).mean(axis=(1, 2)))
    fine, histogram = np.empty(n), np.empty((n, 24))
    for i, picture in enumerate(inputs):  # one by one they stay in the processor's cache
        fine[i] = np.sqrt(np.abs(np.diff(picture, axis=1)).mean())
        grey = np.minimum(picture * 24, 23).astype(np.uint8)
        histogram[i] = Image.fromarray(grey).histogram()[:24]  # counts bytes faster than np.bincount
    outline = np.stack([head.mean(axis=(1, 2)), depth, rim, coarse, fine], axis=1)
    return np.hstack([shells.reshape(n, -1), outline, np.sqrt(histogram / inputs[0].size)])


def _cell_means(pictures: np.ndarray) -> np.ndarray:
    """Means of the cells that cut each picture into ``SIDE`` x ``SIDE``; (n, SIDE, SIDE)."""
    factor = pictures.shape[1] // SIDE
    across = reduce(np.add, [pictures[:, :, i::factor] for i in range(factor)])
    return reduce(np.add, [across[:, i::factor] for i in range(factor)]) / np.float32(factor**2)


def _filled(masks: np.ndarray) -> np.ndarray:
    """Masks (n, SIDE, SIDE) without holes, in a margin of one pixel: ``ndimage.binary_fill_holes`` of each."""
    empty = np.pad(~masks, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    labels, _ = ndimage.label(empty.reshape(-1, SIDE + 2), _CROSS)  # on top of each other: the margins are connected
    return (labels != labels[0, 0]).reshape(empty.shape)


def _squared_depth(padded: np.ndarray) -> np.ndarray:
    """Squares of ``ndimage.distance_transform_edt`` of each mask, whose margin is left out; int16 (n, SIDE, SIDE).

    Exact, and for many at once several times faster: distances along columns first, then along rows the least of those
    squares plus the square of the way [1]_.

    References
    ----------
    .. [1] Felzenszwalb & Huttenlocher, "Distance Transforms of Sampled Functions", Theory of Computing 8, 2012.
    """
    far = SIDE // 2  # no pixel is further from the margin
    columns = np.where(padded, np.int16(far), np.int16(0)).transpose(1, 0, 2).copy()
    for i in range(1, SIDE + 2):
        np.minimum(columns[i], columns[i - 1] + 1, out=columns[i])
    for i in range(SIDE, 0, -1):
        np.minimum(columns[i], columns[i + 1] + 1, out=columns[i])
    # As one long row: a step past a row's end has crossed the margin, which is nearer.
    line = (columns**2).transpose(1, 0, 2).ravel()
    nearest = line.copy()
    for step in range(1, far + 1):
        reached = line + np.int16(step**2)
        np.minimum(nearest[step:], reached[:-step], out=nearest[step:])
        np.minimum(nearest[:-step], reached[step:], out=nearest[:-step])
    return nearest.reshape(padded.shape)[:, 1:-1, 1:-1]


def fit_gate(
    heads: np.ndarray,
    outliers: np.ndarray,
    validation: np.ndarray,
    *,
    heads_weights: np.ndarray | None = None,
    outliers_weights: np.ndarray | None = None,
    rejection: float = REJECTION,
    seed: int = 0,
) -> Gate:
    """Fit a gate on descriptors (see `describe`); the limits are the validation heads' quantiles.

    Parameters
    ----------
    heads, outliers : ndarray of shape (n, d)
        Training descriptors of brain MRI and of what is none; each side weighs half.
    validation : ndarray of shape (n_validation, d)
        Of heads: the read-out's limit turns away ``rejection`` of them, the distance's none.
    heads_weights, outliers_weights : ndarray of shape (n,), optional

    Notes
    -----
    Logistic regression on random features: convex, so the same numbers every time, in seconds.

    References
    ----------
    .. [1] Hendrycks et al., "Deep Anomaly Detection with Outlier Exposure", ICLR 2019, arXiv:1812.04606.
    .. [2] Rahimi & Recht, "Random Features for Large-Scale Kernel Machines", NeurIPS 2007.
    .. [3] Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples", NeurIPS 2018.
    """
    x = np.concatenate([heads, outliers]).astype(np.float64)
    y = np.concatenate([-np.ones(len(heads)), np.ones(len(outliers))])
    weight = np.concatenate([_half(heads_weights, len(heads)), _half(outliers_weights, len(outliers))])
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-3
    standard = (x - mean) / scale
    values, vectors = np.linalg.eigh((standard * weight[:, None]).T @ standard)
    k = min(COMPONENTS, x.shape[1])
    whitening = vectors[:, -k:] / np.sqrt(np.maximum(values[-k:], 0) + 1e-3)
    rng = np.random.default_rng(seed)
    drawn = rng.normal(0, k**-0.5, (k, HIDDEN)), rng.uniform(-1, 1, HIDDEN)
    # float16 halves the file; everything after this line is fitted to the rounded numbers.
    projection, hidden, bias = (a.astype(np.float16).astype(np.float32) for a in (whitening, *drawn))
    middle, unit = mean.astype(np.float32), scale.astype(np.float32)
    components = ((x.astype(np.float32) - middle) / unit) @ projection
    expanded = _expand(components, hidden, bias).astype(np.float64)
    output = _logistic(expanded, y, weight).astype(np.float32)
    inside, share = components[: len(heads)].astype(np.float64), 2 * weight[: len(heads)]
    centre = share @ inside
    covariance = ((inside - centre) * share[:, None]).T @ (inside - centre)
    values, vectors = np.linalg.eigh(covariance + 0.05 * np.trace(covariance) / k * np.eye(k))
    spread = (vectors / np.sqrt(values)).astype(np.float16).astype(np.float32)
    gate = Gate(middle, unit, projection, hidden, bias, output, centre.astype(np.float32), spread, (0.0, 1.0))
    margins = gate.margins(validation)
    return replace(gate, limits=(_upper(margins[:, 0], rejection), max(1e-6, float(margins[:, 1].max()))))


def _logistic(x: np.ndarray, y: np.ndarray, weight: np.ndarray, penalty: float = PENALTY) -> np.ndarray:
    """Weights of a logistic regression (y is -1 or 1) with an L2 penalty, by Newton's method."""
    solution = np.zeros(x.shape[1])
    ridge = penalty * np.eye(len(solution))
    for _ in range(12):
        p = 0.5 * (1 + np.tanh(0.5 * y * (x @ solution)))
        gradient = x.T @ (weight * y * (1 - p)) - penalty * solution
        step = np.linalg.solve((x * (weight * p * (1 - p))[:, None]).T @ x + ridge, gradient)
        solution += step
        if np.abs(x @ step).max() < 1e-3:
            break
    return solution


def _half(weights: np.ndarray | None, n: int) -> np.ndarray:
    weights = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    return 0.5 * weights / weights.sum()


def _upper(values: np.ndarray, rejection: float) -> float:
    rank = int(np.ceil(round((len(values) + 1) * (1 - rejection), 9)))
    return float(np.sort(values)[min(rank, len(values)) - 1])


def _expand(components: np.ndarray, hidden: np.ndarray, bias: np.ndarray) -> np.ndarray:
    k, h = hidden.shape
    rectified = np.maximum(components @ hidden + bias, 0) * (2 / np.sqrt(h))
    return np.hstack([np.ones((len(components), 1), np.float32), components / np.sqrt(k), rectified])
