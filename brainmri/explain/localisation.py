"""Does a map point at the tumour? Pointing game, energy inside the mask and overlap, against expert masks.

References
----------
.. [1] Zhang et al., "Top-down Neural Attention by Excitation Backprop", IJCV 2018, arXiv:1608.00507 (pointing game).
.. [2] Wang et al., "Score-CAM", CVPRW 2020, arXiv:1910.01279 (energy-based pointing game).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brainmri.explain.base import draw
from brainmri.types import CLASS_NAMES, NO_TUMOR, CropTransform

if TYPE_CHECKING:
    import pandas as pd

    from brainmri.inference import Classifier

FIXED_THRESHOLD = 0.5
MEASURES = ("pointing", "pointing_cell", "energy", "iou_fixed", "iou_best")
CELLS = 8


def localise(saliency_map: np.ndarray, peak: tuple[int, int] | None, mask: np.ndarray, cell: int) -> dict[str, float]:
    """Compare one map with one mask, both in the original image.

    Parameters
    ----------
    saliency_map : ndarray of shape (height, width), float in [0, 1]
    peak : (row, column) or None
        Of its maximum; None for an all-zero map, which misses.
    mask : ndarray of shape (height, width), bool
        Not empty.
    cell : int
        Side of one cell of the layer's grid, original pixels.

    Returns
    -------
    dict
        ``pointing`` (peak inside the mask), ``pointing_cell`` (inside the mask widened by one cell), ``energy`` (share
        of the map's sum inside the mask), ``iou_fixed`` (of the map at `FIXED_THRESHOLD`), ``iou_best`` (at the best of
        0.05, 0.10 … 0.95 for this very image: an upper bound, no operating point).
    """
    if peak is None:
        return dict.fromkeys(MEASURES, 0.0)
    total = float(saliency_map.sum(dtype=np.float64))
    # Counts of pixels at or above each threshold, inside the mask and altogether, from two histograms.
    bins = np.floor(saliency_map * 20 + 1e-6).astype(np.int64)
    inside = np.bincount(bins[mask], minlength=21)[::-1].cumsum()[::-1][1:20]
    everywhere = np.bincount(bins.ravel(), minlength=21)[::-1].cumsum()[::-1][1:20]
    overlaps = inside / (everywhere + int(mask.sum()) - inside)
    return {
        "pointing": float(mask[peak]),
        "pointing_cell": float(near_mask(peak, mask, cell)),
        "energy": float(saliency_map[mask].sum(dtype=np.float64)) / total,
        "iou_fixed": float(overlaps[round(FIXED_THRESHOLD * 20) - 1]),
        "iou_best": float(overlaps.max()),
    }


def near_mask(peak: tuple[int, int], mask: np.ndarray, cell: int) -> bool:
    """Whether a point lies in a mask widened by ``cell`` pixels on all sides."""
    row, column = peak
    return bool(mask[max(0, row - cell) : row + cell + 1, max(0, column - cell) : column + cell + 1].any())


def cell_side(transform: CropTransform, cells: int = CELLS) -> int:
    """Side of one cell of the network's last grid, original pixels."""
    return max(1, round(transform.side / cells))


def centre_blob(cells: int = 32) -> np.ndarray:
    """Baseline: a Gaussian on the middle of the head, standard deviation a quarter of its side."""
    axis = (np.arange(cells) + 0.5) / cells - 0.5
    return np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * 0.25**2)).astype(np.float32)


def random_grid(key: str, cells: int = CELLS) -> np.ndarray:
    """Baseline: uniform noise on the network's grid; the same for the same image."""
    import hashlib

    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).random((cells, cells), dtype=np.float32)


def mask_file(row: Any) -> Path:
    """Path of a manifest row's mask."""
    return Path(row.file[: -len(row.path)]) / row.mask


def peak_in_mask_rate(
    classifier: Classifier,
    rows: pd.DataFrame,
    *,
    directory: Path | str | None = None,
    batch: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """How often Grad-CAM's peak for the predicted class lies in the mask widened by one cell of the 8 x 8 grid.

    Parameters
    ----------
    rows : DataFrame
        Of `brainmri.data.read_manifest`; those without a ``mask`` are left out.
    directory : path, optional
        Where the classifier's weights lie; default: as configured.

    Returns
    -------
    dict
        For ``all``, for ``right`` (those classified right) and for each tumour class of these: ``n``, ``hits``,
        ``rate``, its 95 % ``interval`` over groups, and ``baseline_centre``: the same for the middle of the head.
    """
    from brainmri.data import read_mask, read_pixels
    from brainmri.evaluation import GroupBootstrap
    from brainmri.explain import METHODS, Batch, explainer_of

    masked = rows[rows["mask"] != ""].reset_index(drop=True)
    explainer = explainer_of(classifier, directory)
    outcomes: list[tuple[bool, float, float]] = []
    for start in range(0, len(masked), batch):
        part = list(masked.iloc[start : start + batch].itertuples())
        pixels = [read_pixels(row.file) for row in part]
        prediction = classifier.predict(pixels)
        predicted = prediction.logits.argmax(axis=1)
        grids = METHODS["grad-cam"].grids(
            explainer,
            Batch(prediction.inputs, prediction.feature_maps, prediction.logits),
            predicted,
            "block5_conv3",
            seed=0,
        )
        for i, row in enumerate(part):
            mask, transform = read_mask(mask_file(row)), prediction.transforms[i]
            peaks = [draw(g, transform, pixels[i].shape)[1] for g in (grids[i], centre_blob())]
            hit, centre = (float(p is not None and near_mask(p, mask, cell_side(transform))) for p in peaks)
            outcomes.append((CLASS_NAMES[predicted[i]] == row.label, hit, centre))
        if progress:
            progress(len(outcomes), len(masked))
    right, hits, centres = np.array(outcomes, float).reshape(-1, 3).T
    subsets = {"all": np.ones(len(masked), bool), "right": right > 0}
    for name in CLASS_NAMES:
        if name != NO_TUMOR:
            subsets[name] = subsets["right"] & (masked["label"] == name).to_numpy()
    return {
        name: {
            "n": int(chosen.sum()),
            "hits": int(hits[chosen].sum()),
            "rate": round(float(hits[chosen].mean()), 4) if chosen.any() else None,
            "interval": GroupBootstrap(masked["group"][chosen], 2000).mean(hits[chosen]) if chosen.any() else None,
            "baseline_centre": round(float(centres[chosen].mean()), 4) if chosen.any() else None,
        }
        for name, chosen in subsets.items()
    }
