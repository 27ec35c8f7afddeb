"""Arrays in, numbers out: accuracy, ROC, calibration, conformal coverage, the gate, comparisons, all with intervals.

Whatever cannot be computed is None in the numbers and has its reason under ``undefined``; nothing becomes zero in
silence. Intervals are 95 % percentile bootstrap over groups (copies of a slice, slices of a patient), not images; below
``MIN_GROUPS`` groups there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from brainmri.decision import LEVELS, softmax
from brainmri.errors import DataError, ModelError
from brainmri.types import CLASS_NAMES, CLASS_TITLES, NO_TUMOR

MEASURE = 2
"""Another number where the same predictions give other figures: the suite then measures saved runs anew."""
N_BOOTSTRAP = 1000
MIN_GROUPS = 10
"""Fewer groups have no interval: resampling so few repeats what was seen, and what was right once is right for sure."""
FEW_GROUPS = 5
N_BINS = 15
CURVE_POINTS = 2000
_NONE = CLASS_NAMES.index(NO_TUMOR)


# --- resampling -----------------------------------------------------------------------------------------------------


class GroupBootstrap:
    """Resamples whole groups with replacement; every measure takes its image weights from the same draws.

    Parameters
    ----------
    groups : sequence of length n_images
        Images with the same value are drawn together.
    n_replicates, seed : int
    """

    def __init__(self, groups: Sequence[Any], n_replicates: int = N_BOOTSTRAP, seed: int = 0):
        names, self.codes = np.unique(np.asarray(groups).astype(str), return_inverse=True)
        self.n_groups = len(names)
        self.n_replicates = n_replicates
        rng = np.random.default_rng(seed)
        share = np.full(self.n_groups, 1.0 / max(self.n_groups, 1))
        self.counts = rng.multinomial(self.n_groups, share, size=n_replicates).astype(np.float32)

    def batches(self, rows: int = 4_000_000):
        """Image weights, float32 (replicates of the batch, n_images)."""
        step = max(1, rows // max(len(self.codes), 1))
        for start in range(0, self.n_replicates, step):
            yield self.counts[start : start + step][:, self.codes]

    def group_sums(self, values: np.ndarray) -> np.ndarray:
        """Sums of image values per replicate: (n_images, k) -> (n_replicates, k), without touching images again."""
        per_group = np.zeros((self.n_groups, values.shape[1]))
        np.add.at(per_group, self.codes, values)
        return self.counts @ per_group

    def mean(self, values: np.ndarray, where: np.ndarray | None = None, *, share: bool = True) -> list[float] | None:
        """Interval of the mean of image values (of those ``where`` holds).

        Where all of a share's values are 1, or all 0, every resample says so too; the interval then is Clopper and
        Pearson's for as many groups (Biometrika 1934), not a point. Where fewer than ``FEW_GROUPS`` groups differ, the
        resamples hang on those, and the interval is no narrower than that on the side where all would agree.

        Parameters
        ----------
        share : bool
            Whether the values lie between 0 and 1. Sizes and differences do not: no bound is known for their mean, so
            where all agree there is no interval.
        """
        where = np.ones(len(values), bool) if where is None else where
        n_groups, said = len(np.unique(self.codes[where])), set(values[where].astype(float).tolist())
        reach = round(0.025 ** (1 / max(n_groups, 1)), 6)
        if share and n_groups >= MIN_GROUPS and said in ({0.0}, {1.0}):
            return [reach, 1.0] if said == {1.0} else [0.0, round(1 - reach, 6)]
        sums = self.group_sums(np.stack([np.where(where, values, 0.0), where.astype(float)], axis=1))
        found = self.interval(_ratio(sums[:, 0], sums[:, 1]), where)
        if found is not None and share:
            off = [len(np.unique(self.codes[where & (values != agreed)])) for agreed in (0, 1)]
            low = min(found[0], reach) if off[1] < FEW_GROUPS else found[0]
            high = max(found[1], round(1 - reach, 6)) if off[0] < FEW_GROUPS else found[1]
            found = [low, high]
        return found

    def interval(self, replicates: np.ndarray, *parts: np.ndarray) -> list[float] | None:
        """2.5th and 97.5th percentile of a measure.

        None where fewer than ``MIN_GROUPS`` groups carry it (all, or those in one of ``parts``: masks of the images
        that it counts), where too many replicates cannot be computed, or where both percentiles are the same: resamples
        that all agree (an AUC of exactly 1) do not make a figure certain.
        """
        replicates = np.asarray(replicates, float)
        usable = replicates[np.isfinite(replicates)]
        n_groups = min([self.n_groups, *(len(np.unique(self.codes[part])) for part in parts)])
        if n_groups < MIN_GROUPS or len(usable) < 0.9 * max(len(replicates), 1):
            return None
        low, high = (round(float(v), 6) for v in np.percentile(usable, (2.5, 97.5)))
        return [low, high] if low < high else None


# --- curves ---------------------------------------------------------------------------------------------------------


def roc_auc(is_positive: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve (Mann-Whitney; ties count half).

    Parameters
    ----------
    is_positive : ndarray of shape (n,), bool
    score : ndarray of shape (n,)
    weights : ndarray of shape (m, n), optional
        One row per replicate.

    Returns
    -------
    ndarray of shape (m,), float64
        NaN where a replicate has no positive or no negative.
    """
    weights = np.ones((1, len(score)), np.float32) if weights is None else weights
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    positive = is_positive[order].astype(np.float32)
    weights = weights[:, order]
    tied_positive = np.add.reduceat(weights * positive, starts, axis=1, dtype=np.float64)
    tied_negative = np.add.reduceat(weights * (1 - positive), starts, axis=1, dtype=np.float64)
    below = np.cumsum(tied_negative, axis=1) - tied_negative
    with np.errstate(invalid="ignore", divide="ignore"):
        return (tied_positive * (below + 0.5 * tied_negative)).sum(axis=1) / (
            tied_positive.sum(axis=1) * tied_negative.sum(axis=1)
        )


def operating_curve(is_positive: np.ndarray, score: np.ndarray) -> dict[str, list[float]]:
    """Sensitivity and specificity of ``score >= threshold`` at every threshold; thinned where there are thousands.

    Returns
    -------
    dict
        ``threshold`` (falling, from above every score), ``sensitivity``, ``specificity``, ``precision``.
    """
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(score[order]) < 0, True])
    hits = np.cumsum(is_positive[order])[ends]
    falls = ends + 1 - hits
    n_positive, n_negative = max(int(is_positive.sum()), 1), max(int((~is_positive).sum()), 1)
    threshold = np.r_[np.nextafter(score.max(), np.inf), score[order][ends]]
    sensitivity = np.r_[0.0, hits / n_positive]
    specificity = np.r_[1.0, 1 - falls / n_negative]
    precision = np.r_[1.0, hits / (ends + 1)]
    keep = np.arange(len(threshold))
    if len(keep) > 2 * CURVE_POINTS:  # even steps along both axes keep the corners of the curve
        along = sensitivity + 1 - specificity + np.abs(np.diff(precision, prepend=1.0)).cumsum() * 0.5
        wanted = np.linspace(along[0], along[-1], 2 * CURVE_POINTS)
        keep = np.unique(np.r_[0, np.searchsorted(along, wanted).clip(0, len(along) - 1), len(along) - 1])
    return {
        "threshold": _short(threshold[keep], 7),
        "sensitivity": _short(sensitivity[keep]),
        "specificity": _short(specificity[keep]),
        "precision": _short(precision[keep]),
    }


def predictive_values(sensitivity: float, specificity: float, prevalence: float) -> tuple[float | None, float | None]:
    """Positive and negative predictive value at a prevalence (Bayes); None where nothing is called so."""
    called = sensitivity * prevalence + (1 - specificity) * (1 - prevalence)
    cleared = specificity * (1 - prevalence) + (1 - sensitivity) * prevalence
    positive = sensitivity * prevalence / called if called > 0 else None
    return positive, specificity * (1 - prevalence) / cleared if cleared > 0 else None


def operating_point(curve: dict[str, list[float]], threshold: float) -> tuple[float, float]:
    """Sensitivity and specificity of ``score >= threshold``, read off a saved `operating_curve`."""
    last = int(np.count_nonzero(np.asarray(curve["threshold"]) >= threshold)) - 1
    return curve["sensitivity"][max(last, 0)], curve["specificity"][max(last, 0)]


def choose_threshold(is_positive: np.ndarray, score: np.ndarray, sensitivity: float = 0.985) -> float:
    """Highest threshold on ``score`` that finds at least this share of the positives (halfway to the next below)."""
    positives = np.sort(score[is_positive])
    missed = int(np.floor(round(len(positives) * (1 - sensitivity), 9)))
    chosen = positives[missed]
    below = score[score < chosen]
    return float((chosen + below.max()) / 2) if below.size else float(chosen)


# --- calibration ----------------------------------------------------------------------------------------------------


def reliability(
    y_true: np.ndarray, probabilities: np.ndarray, bootstrap: GroupBootstrap | None = None, n_bins: int = N_BINS
) -> dict[str, Any]:
    """Equal-mass bins of the top probability against how often it was right.

    Returns
    -------
    dict
        ``ece`` (expected calibration error, weights by bin), ``bins``: list of ``mean_probability``, ``accuracy``,
        ``n`` and ``interval``.
    """
    top = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == y_true
    bins, error = [], 0.0
    for members in np.array_split(np.argsort(top, kind="stable"), min(n_bins, len(top))):
        inside = np.zeros(len(top), bool)
        inside[members] = True
        error += abs(float(right[members].mean() - top[members].mean())) * len(members) / len(top)
        bins.append(
            {
                "mean_probability": round(float(top[members].mean()), 6),
                "accuracy": round(float(right[members].mean()), 6),
                "n": len(members),
                "interval": bootstrap.mean(right, inside) if bootstrap else None,
            }
        )
    return {"ece": round(error, 6), "bins": bins}


def expected_calibration_error(y_true: np.ndarray, probabilities: np.ndarray, n_bins: int = N_BINS) -> float:
    """ECE over equal-mass bins of the top probability."""
    return reliability(y_true, probabilities, None, n_bins)["ece"]


def ece_by_chance(
    probabilities: np.ndarray, n_bins: int = N_BINS, n_draws: int = 1000, seed: int = 0
) -> dict[str, float]:
    """ECE that the same probabilities would show if every one of them were exactly right.

    An ECE averages distances, so it is above 0 even then: bins hold few images. Images are taken as independent.

    Parameters
    ----------
    probabilities : ndarray of shape (n, n_classes)

    Returns
    -------
    dict
        ``mean`` and ``percentile_95`` over ``n_draws`` draws of which images are right.

    References
    ----------
    .. [1] Bröcker & Smith, "Increasing the Reliability of Reliability Diagrams", Weather and Forecasting 2007:
       consistency resampling.
    """
    top = np.sort(probabilities.max(axis=1).astype(np.float64))
    starts = [members[0] for members in np.array_split(np.arange(len(top)), min(n_bins, len(top)))]
    rng, errors = np.random.default_rng(seed), []
    for draws in np.array_split(np.arange(n_draws), max(1, n_draws * len(top) // 4_000_000)):
        right = rng.random((len(draws), len(top))) < top
        errors.append(np.abs(np.add.reduceat(right - top, starts, axis=1)).sum(axis=1) / len(top))
    found = np.concatenate(errors)
    return {"mean": round(float(found.mean()), 6), "percentile_95": round(float(np.percentile(found, 95)), 6)}


def proper_scores(y_true: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Brier score (sum over classes, 0-2) and log loss (natural, probabilities clipped at 1e-12)."""
    chosen = np.clip(probabilities[np.arange(len(y_true)), y_true].astype(np.float64), 1e-12, 1)
    target = np.eye(probabilities.shape[1])[y_true]
    return {
        "brier": round(float(((probabilities - target) ** 2).sum(axis=1).mean()), 6),
        "log_loss": round(float(-np.log(chosen).mean()), 6),
    }


# --- the whole report -----------------------------------------------------------------------------------------------


def check_predictions(table: pd.DataFrame) -> None:
    """Refuse a table that no honest number can come from.

    Raises
    ------
    DataError
        No rows, missing columns, or labels outside the classes.
    ModelError
        A probability that is not a number, or a row that does not sum to 1.
    """
    from brainmri.data import UNKNOWN_TUMOUR

    if table.empty:
        raise DataError("there is nothing to evaluate: the table of predictions has no rows")
    needed = ["path", "label", "group", *(f"p_{c}" for c in CLASS_NAMES)]
    missing = [c for c in needed if c not in table.columns]
    if missing:
        raise DataError(f"predictions lack the column {', '.join(missing)}; expected {', '.join(needed)}")
    strange = sorted(set(table["label"]) - {*CLASS_NAMES, UNKNOWN_TUMOUR, ""})
    if strange:
        raise DataError(f"label '{strange[0]}' is none of {', '.join(CLASS_NAMES)}, {UNKNOWN_TUMOUR}")
    p = table[[f"p_{c}" for c in CLASS_NAMES]].to_numpy(np.float64)
    wrong = ~np.isfinite(p).all(axis=1) | (np.abs(p.sum(axis=1) - 1) > 1e-3)
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise ModelError(
            f"{int(wrong.sum())} of {len(table)} predictions are no probabilities (first: {table['path'].iloc[i]}, "
            f"{p[i].tolist()}); the weights or the engine are broken"
        )


def measure(
    table: pd.DataFrame,
    *,
    tumour_threshold: float | None = None,
    n_bootstrap: int | None = None,
    seed: int = 0,
    subgroups: bool = True,
) -> dict[str, Any]:
    """Everything that a table of predictions says.

    Parameters
    ----------
    table : DataFrame
        One row an image: ``path``, ``label`` (a class, ``tumour`` for one of unknown type, or empty), ``group``,
        ``p_<class>``; where there: ``logit_<class>`` (before temperature), ``set_90``, ``set_95`` (classes joined
        by ``|``), ``decision``, ``ood_score``, and the columns that `subgroup_columns` names.
    tumour_threshold : float, optional
        On 1 - p(notumor), fixed on validation data.
    n_bootstrap : int, optional
        Replicates; default 1,000, fewer (200 at the least) beyond 20,000 images, where intervals are narrow anyway.

    Returns
    -------
    dict
        Ready for JSON. ``None`` where undefined, with the reason under ``undefined``.

    Raises
    ------
    DataError, ModelError
        See `check_predictions`.
    """
    check_predictions(table)
    n_bootstrap = n_bootstrap or int(np.clip(2e7 / len(table), 200, N_BOOTSTRAP))
    undefined: dict[str, str] = {}
    labels = table["label"].to_numpy(str)
    probabilities = table[[f"p_{c}" for c in CLASS_NAMES]].to_numpy(np.float64)
    bootstrap = GroupBootstrap(table["group"], n_bootstrap, seed)
    if bootstrap.n_groups < MIN_GROUPS:
        groups = "1 group" if bootstrap.n_groups == 1 else f"{bootstrap.n_groups} groups"
        undefined["intervals"] = f"an interval needs {MIN_GROUPS} groups of images, and here is no more than {groups}"
    typed = np.isin(labels, CLASS_NAMES)
    result: dict[str, Any] = {
        "measure": MEASURE,
        "n": len(table),
        "n_groups": bootstrap.n_groups,
        "class_names": list(CLASS_NAMES),
        "undefined": undefined,
        "intervals": {},
        "bootstrap": {"over": "group", "replicates": n_bootstrap, "level": 0.95, "seed": seed},
    }
    result |= _classification(table, labels, probabilities, typed, bootstrap, undefined, result["intervals"])
    result["tumour_vs_none"] = _tumour_against_none(labels, probabilities, bootstrap, undefined, tumour_threshold)
    result["calibration"] = _calibration(table, labels, probabilities, typed, bootstrap, undefined)
    result["conformal"] = _conformal(table, labels, typed, bootstrap, undefined)
    result["gate"] = _gate(table, labels, probabilities, typed, bootstrap, undefined)
    if "intervals" not in undefined:
        binary = {f"tumour_vs_none_{name}": span for name, span in result["tumour_vs_none"]["intervals"].items()}
        for name, span in {**result["intervals"], **binary}.items():
            if span is None:
                undefined[f"interval_{name}"] = (
                    f"fewer than {MIN_GROUPS} groups of images carry it, or every resample gives the same figure"
                )
    if subgroups:
        result["subgroups"] = measure_subgroups(
            table, tumour_threshold=tumour_threshold, n_bootstrap=n_bootstrap, seed=seed
        )
    return result


def _classification(table, labels, probabilities, typed, bootstrap, undefined, intervals) -> dict[str, Any]:
    n_classes = len(CLASS_NAMES)
    y_true = np.array([CLASS_NAMES.index(v) if v in CLASS_NAMES else -1 for v in labels])
    y_pred = probabilities.argmax(axis=1)
    confusion = np.zeros((n_classes, n_classes), int)
    np.add.at(confusion, (y_true[typed], y_pred[typed]), 1)
    support = confusion.sum(axis=1)
    absent = [name for name, s in zip(CLASS_NAMES, support, strict=True) if s == 0]
    found: dict[str, Any] = {
        "n_typed": int(typed.sum()),
        "accuracy": None,
        "balanced_accuracy": None,
        "macro_f1": None,
        "roc_auc": {"macro": None, "per_class": dict.fromkeys(CLASS_NAMES)},
        "per_class": {},
        "confusion_matrix": confusion.tolist(),
        "curves": {},
    }
    if not typed.any():
        undefined["accuracy"] = "no image has one of the four classes as its label"
        undefined["balanced_accuracy"] = undefined["macro_f1"] = undefined["roc_auc"] = undefined["accuracy"]
        return found
    right = (y_true == y_pred) & typed
    if len(absent) == n_classes - 1:
        only = next(name for name in CLASS_NAMES if name not in absent)
        undefined["accuracy"] = f"all images of a known type are {CLASS_TITLES[only].lower()}: see the recall of that"
    else:
        found["accuracy"] = _number(right.sum() / typed.sum())
        intervals["accuracy"] = bootstrap.mean(right, typed)
    # Confusion matrices of all replicates at once: each image adds to one cell.
    cells = np.zeros((len(labels), n_classes * n_classes), np.float32)
    cells[np.flatnonzero(typed), y_true[typed] * n_classes + y_pred[typed]] = 1
    replicates = bootstrap.group_sums(cells).reshape(-1, n_classes, n_classes)
    of_class = [typed & (y_true == i) for i in range(n_classes)]
    f1_samples = _f1(replicates)
    for i, class_name in enumerate(CLASS_NAMES):
        entry: dict[str, Any] = {"support": int(support[i])}
        found["per_class"][class_name] = entry
        called = typed & (y_pred == i)
        for name, value, counted in (
            ("precision", _ratio(confusion[i, i], called.sum()), called),
            ("recall", _ratio(confusion[i, i], support[i]), of_class[i]),
            ("f1", _ratio(2 * confusion[i, i], support[i] + called.sum()), of_class[i]),
        ):
            entry[name], reason = None, None
            if support[i] == 0:
                reason = "no image of this class"
            elif name != "recall" and len(absent) > n_classes - 2:
                reason = "needs images of other classes"  # without them precision is 1 whatever the model says
            elif not np.isfinite(value):
                reason = "no image was called this class"
            if reason:
                undefined[f"{name}_{class_name}"] = reason
                continue
            entry[name] = _number(value)
            intervals[f"{name}_{class_name}"] = (
                bootstrap.interval(f1_samples[:, i], counted) if name == "f1" else bootstrap.mean(right, counted)
            )
    if absent:
        missing = ", ".join(CLASS_TITLES[c].lower() for c in absent)
        reason = f"no image of {missing}: an average over four classes does not exist"
        undefined["balanced_accuracy"] = undefined["macro_f1"] = undefined["roc_auc_macro"] = reason
    else:
        found["balanced_accuracy"] = _number(_ratio(np.diag(confusion), support).mean())
        intervals["balanced_accuracy"] = bootstrap.interval(_recalls(replicates).mean(axis=1), *of_class)
        found["macro_f1"] = _number(_ratio(2 * np.diag(confusion), support + confusion.sum(axis=0)).mean())
        intervals["macro_f1"] = bootstrap.interval(f1_samples.mean(axis=1), *of_class)
    samples = np.full((bootstrap.n_replicates, n_classes), np.nan)
    for i, class_name in enumerate(CLASS_NAMES):
        if not 0 < support[i] < typed.sum():
            undefined[f"roc_auc_{class_name}"] = "needs images of this class and of others"
            continue
        positive, score = (y_true == i)[typed], probabilities[typed, i]
        found["roc_auc"]["per_class"][class_name] = _number(roc_auc(positive, score)[0])
        samples[:, i] = np.concatenate([roc_auc(positive, score, w[:, typed]) for w in bootstrap.batches()])
        intervals[f"roc_auc_{class_name}"] = bootstrap.interval(samples[:, i], of_class[i], typed & ~of_class[i])
        found["curves"][class_name] = operating_curve(positive, score)
    if not absent:
        found["roc_auc"]["macro"] = _number(np.mean(list(found["roc_auc"]["per_class"].values())))
        intervals["roc_auc_macro"] = bootstrap.interval(samples.mean(axis=1), *of_class)
    return found


def _tumour_against_none(labels, probabilities, bootstrap, undefined, threshold) -> dict[str, Any]:
    """One minus p(notumor) as the score; tumours of unknown type take part."""
    known = labels != ""
    positive, score = (labels != NO_TUMOR) & known, 1 - probabilities[:, _NONE]
    found: dict[str, Any] = {
        "n_tumour": int(positive.sum()),
        "n_none": int((known & ~positive).sum()),
        "roc_auc": None,
        "threshold": threshold,
        "called": {"sensitivity": None, "specificity": None},
        "at_threshold": {"sensitivity": None, "specificity": None},
        "intervals": {},
    }
    called = probabilities.argmax(axis=1) != _NONE
    for name, answer in (("called", called), ("at_threshold", score >= (threshold if threshold is not None else 2))):
        if name == "at_threshold" and threshold is None:
            undefined["tumour_vs_none_at_threshold"] = "the model has no threshold fixed on validation data"
            continue
        for kind, where, hit in (
            ("sensitivity", positive, answer),
            ("specificity", known & ~positive, ~answer),
        ):
            if where.any():
                found[name][kind] = _number(hit[where].mean())
                found["intervals"][f"{name}_{kind}"] = bootstrap.mean(hit, where)
            else:
                undefined[f"tumour_vs_none_{kind}"] = (
                    f"no image {'with' if kind == 'sensitivity' else 'without'} tumour"
                )
    if positive.any():
        # A group counts as found when most of its images are called tumour.
        groups = pd.DataFrame({"group": bootstrap.codes[positive], "found": called[positive]}).groupby("group").mean()
        found["tumour_groups"] = len(groups)
        found["tumour_groups_found"] = int((groups["found"] > 0.5).sum())
    if found["n_tumour"] and found["n_none"]:
        found["roc_auc"] = _number(roc_auc(positive[known], score[known])[0])
        samples = [roc_auc(positive[known], score[known], w[:, known]) for w in bootstrap.batches()]
        found["intervals"]["roc_auc"] = bootstrap.interval(np.concatenate(samples), positive, known & ~positive)
        found["curve"] = operating_curve(positive[known], score[known])
    else:
        undefined["tumour_vs_none_roc_auc"] = "needs images with and without tumour"
    return found


def _calibration(table, labels, probabilities, typed, bootstrap, undefined) -> dict[str, Any] | None:
    if typed.sum() < 2:
        undefined["calibration"] = "needs at least two images with one of the four classes as their label"
        return None
    part = GroupBootstrap(table["group"].to_numpy()[typed], min(bootstrap.n_replicates, 500))
    y_true = np.array([CLASS_NAMES.index(v) for v in labels[typed]])
    after = reliability(y_true, probabilities[typed], part) | proper_scores(y_true, probabilities[typed])
    found = {"bins_equal_mass": min(N_BINS, int(typed.sum())), "after": after, "before": None}
    columns = [f"logit_{c}" for c in CLASS_NAMES]
    if set(columns) <= set(table.columns):
        raw = softmax(table.loc[typed, columns].to_numpy(np.float64))
        found["before"] = reliability(y_true, raw, part) | proper_scores(y_true, raw)
    found["ece_by_chance"] = ece_by_chance(probabilities[typed], n_draws=part.n_replicates)
    found["ece"], found["brier"], found["log_loss"] = after["ece"], after["brier"], after["log_loss"]
    return found


def _conformal(table, labels, typed, bootstrap, undefined) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for level in LEVELS:
        name = f"{level:.2f}"
        column = f"set_{level * 100:.0f}"
        if column not in table.columns or not typed.any():
            undefined[f"conformal_{name}"] = "no prediction sets in the table" if typed.any() else "no typed label"
            continue
        sets = [frozenset(filter(None, s.split("|"))) for s in table[column]]
        covered = np.array([label in s for label, s in zip(labels, sets, strict=True)])
        size = np.array([len(s) for s in sets])
        found[name] = {
            "coverage": _number(covered[typed].mean()),
            "coverage_interval": bootstrap.mean(covered, typed),
            "mean_set_size": _number(size[typed].mean()),
            "mean_set_size_interval": bootstrap.mean(size, typed, share=False),
            "set_sizes": {str(k): int((size[typed] == k).sum()) for k in range(len(CLASS_NAMES) + 1)},
            "coverage_per_class": {
                c: _number(covered[labels == c].mean()) if (labels == c).any() else None for c in CLASS_NAMES
            },
        }
    return found


def _gate(table, labels, probabilities, typed, bootstrap, undefined) -> dict[str, Any] | None:
    if "decision" not in table.columns:
        undefined["gate"] = "no decisions in the table"
        return None
    decision = table["decision"].to_numpy(str)
    called = np.array(CLASS_NAMES)[probabilities.argmax(axis=1)]
    right = called == labels
    found: dict[str, Any] = {
        "counts": {name: int((decision == name).sum()) for name in ("class", "undecided", "rejected")},
        "rejected_share": _number((decision == "rejected").mean()),
        "rejected_interval": bootstrap.mean(decision == "rejected"),
        "decided_share": _number((decision == "class").mean()),
        "decided_interval": bootstrap.mean(decision == "class"),
        "accuracy_accepted": None,
        "accuracy_decided": None,
        "answers": count_answers(labels, called, decision),
    }
    for name, where in (("accepted", typed & (decision != "rejected")), ("decided", typed & (decision == "class"))):
        if where.any():
            found[f"accuracy_{name}"] = _number(right[where].mean())
            found[f"accuracy_{name}_interval"] = bootstrap.mean(right, where)
        elif typed.any():
            undefined[f"accuracy_{name}"] = f"no image was {name}"
    if "ood_score" in table.columns:
        scores = table["ood_score"].to_numpy(np.float64)
        found["score_percentiles"] = {str(q): _number(np.percentile(scores, q)) for q in (1, 5, 25, 50, 75, 95, 99)}
    return found


def count_answers(labels: np.ndarray, called: np.ndarray, decision: np.ndarray) -> dict[str, dict[str, int]]:
    """What readers are told: true class -> answer (a class, undecided, rejected) -> images."""
    told = np.where(decision == "class", called, decision)
    answers = {label: np.unique(told[labels == label], return_counts=True) for label in np.unique(labels[labels != ""])}
    return {
        str(label): dict(zip(names.tolist(), counts.tolist(), strict=True))
        for label, (names, counts) in answers.items()
    }


# --- subgroups ------------------------------------------------------------------------------------------------------

SUBGROUP_COLUMNS = {
    "label": "class",
    "plane": "plane",
    "source": "source",
    "sequence": "sequence",
    "kind": "kind",
    "seen_in_training": "slice seen in training",
    "mirrored": "mirrored",
    "size": "picture size",
    "brightness": "brightness of the picture",
}
"""Columns of a table of predictions that make subgroups, with their titles."""


def measure_subgroups(
    table: pd.DataFrame, *, tumour_threshold: float | None = None, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
) -> list[dict[str, Any]]:
    """Accuracy and tumour-against-none per value of each column in ``SUBGROUP_COLUMNS`` that has several.

    Returns
    -------
    list of dict
        ``column``, ``value``, ``n``, ``n_groups``, ``accuracy``, ``sensitivity``, ``specificity`` (of tumour
        against none, by the likeliest class), ``specificity_at_threshold``, ``tumour_roc_auc``; None where undefined.
    """
    rows = []
    for column, title in SUBGROUP_COLUMNS.items():
        if column not in table.columns or table[column].nunique() < 2 or table[column].nunique() > 12:
            continue
        for value, part in table.groupby(column, sort=True):
            if value == "" or len(part) < 2:
                continue
            labels = part["label"].to_numpy(str)
            p = part[[f"p_{c}" for c in CLASS_NAMES]].to_numpy(np.float64)
            typed, known = np.isin(labels, CLASS_NAMES), labels != ""
            bootstrap = GroupBootstrap(part["group"], min(n_bootstrap, 400), seed)
            called, right = p.argmax(axis=1), np.array(CLASS_NAMES)[p.argmax(axis=1)] == labels
            tumour = known & (labels != NO_TUMOR)
            none = known & (labels == NO_TUMOR)
            row: dict[str, Any] = {
                "column": column,
                "title": title,
                "value": str(value),
                "n": len(part),
                "n_groups": bootstrap.n_groups,
                "accuracy": _number(right[typed].mean()) if typed.any() else None,
                "accuracy_interval": bootstrap.mean(right, typed) if typed.any() else None,
                "sensitivity": _number((called != _NONE)[tumour].mean()) if tumour.any() else None,
                "specificity": _number((called == _NONE)[none].mean()) if none.any() else None,
                "specificity_at_threshold": None,
                "tumour_roc_auc": None,
                "tumour_roc_auc_interval": None,
            }
            if none.any() and tumour_threshold is not None:
                row["specificity_at_threshold"] = _number((1 - p[none, _NONE] < tumour_threshold).mean())
            if tumour.any() and none.any():
                score = 1 - p[known, _NONE]
                row["tumour_roc_auc"] = _number(roc_auc(tumour[known], score)[0])
                samples = [roc_auc(tumour[known], score, w[:, known]) for w in bootstrap.batches()]
                row["tumour_roc_auc_interval"] = bootstrap.interval(np.concatenate(samples), tumour, none)
            if "decision" in part.columns:
                rejected = part["decision"].to_numpy(str) == "rejected"
                row["rejected_share"], row["rejected_interval"] = _number(rejected.mean()), bootstrap.mean(rejected)
            rows.append(row)
    return rows


# --- comparing ------------------------------------------------------------------------------------------------------


def compare(first: pd.DataFrame, second: pd.DataFrame, *, n_bootstrap: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Two runs on the same images: McNemar's exact test and the paired bootstrap difference over groups.

    Returns
    -------
    dict
        ``n``, ``accuracy`` (both), ``difference`` (second - first) with ``interval``, ``only_first_right``,
        ``only_second_right``, ``mcnemar_p``, ``undefined`` (why there is no interval), and ``changed``: DataFrame of
        the cases whose class differs.

    Raises
    ------
    DataError
        No image in common, an image that a run holds twice, or different labels for the same image.

    References
    ----------
    .. [1] McNemar, Psychometrika 12 (1947); exact binomial form on the discordant pairs.
    """
    from scipy.stats import binomtest

    for table in (first, second):
        check_predictions(table)
        if (twice := table["path"].duplicated()).any():
            raise DataError(f"a run holds {table.loc[twice, 'path'].iloc[0]} twice; compare runs with one row an image")
    columns = ["path", "label", "group", *(f"p_{c}" for c in CLASS_NAMES)]
    # Saved runs hold words as categories, and pandas compares no categories of two kinds.
    words = {"path": str, "label": str, "group": str}
    both = first[columns].astype(words).merge(second[columns].astype(words), on="path", suffixes=("_first", "_second"))
    if both.empty:
        raise DataError("the two runs have no image in common; compare runs of the same data and split")
    if (both["label_first"] != both["label_second"]).any():
        wrong = both.loc[both["label_first"] != both["label_second"], "path"].iloc[0]
        raise DataError(f"the two runs disagree about the label of {wrong}; compare runs of the same data")
    both = both[np.isin(both["label_first"], CLASS_NAMES)].reset_index(drop=True)
    if both.empty:
        raise DataError("no common image has one of the four classes as its label")
    labels = both["label_first"].to_numpy(str)
    names = np.array(CLASS_NAMES)
    probabilities = {k: both[[f"p_{c}_{k}" for c in CLASS_NAMES]].to_numpy(float) for k in ("first", "second")}
    called = {k: names[p.argmax(axis=1)] for k, p in probabilities.items()}
    right = {k: v == labels for k, v in called.items()}
    only_first = int((right["first"] & ~right["second"]).sum())
    only_second = int((right["second"] & ~right["first"]).sum())
    discordant = only_first + only_second
    difference = right["second"].astype(float) - right["first"]
    changed = called["first"] != called["second"]
    bootstrap = GroupBootstrap(both["group_first"], int(np.clip(4e7 / len(both), 200, n_bootstrap)), seed)
    interval = bootstrap.mean(difference, share=False)
    undefined: dict[str, str] = {}
    if bootstrap.n_groups < MIN_GROUPS:
        undefined["interval"] = f"it needs {MIN_GROUPS} groups of images, here there are {bootstrap.n_groups}"
    elif interval is None:
        undefined["interval"] = "every resample gives the same difference, which does not make it certain"
    return {
        "n": len(both),
        "accuracy": {k: _number(v.mean()) for k, v in right.items()},
        "difference": _number(difference.mean()),
        "interval": interval,
        "undefined": undefined,
        "only_first_right": only_first,
        "only_second_right": only_second,
        "mcnemar_p": float(binomtest(only_first, discordant).pvalue) if discordant else 1.0,
        "changed": pd.DataFrame(
            {
                "path": both["path"],
                "label": labels,
                "first": called["first"],
                "p_first": probabilities["first"].max(axis=1),
                "second": called["second"],
                "p_second": probabilities["second"].max(axis=1),
            }
        )[changed].reset_index(drop=True),
    }


def find_errors(table: pd.DataFrame) -> pd.DataFrame:
    """The wrong answers by likeliest class, the surest first.

    Parameters
    ----------
    table : DataFrame
        Predictions as `measure` takes them. A tumour of unknown type is wrong where "no tumour" was likeliest.

    Returns
    -------
    DataFrame
        ``path``, ``label``, ``predicted``, ``p_predicted``, ``p_label`` (NaN for an unknown type), and of
        ``decision``, ``set_95``, ``ood_score``, ``group``, ``plane``, ``source``, ``sequence`` what is there.
    """
    labels = table["label"].to_numpy(str)
    p = table[[f"p_{c}" for c in CLASS_NAMES]].to_numpy(np.float64)
    names = np.array(CLASS_NAMES)
    best, typed = p.argmax(axis=1), np.isin(labels, CLASS_NAMES)
    wrong = np.where(typed, names[best] != labels, (labels != "") & (best == _NONE))
    rows = np.flatnonzero(wrong)
    rows = rows[np.argsort(-p[rows].max(axis=1), kind="stable")]
    where = np.array([CLASS_NAMES.index(v) if v in CLASS_NAMES else -1 for v in labels[rows]], int)
    found = pd.DataFrame(
        {
            "path": table["path"].to_numpy(str)[rows],
            "label": labels[rows],
            "predicted": names[best[rows]],
            "p_predicted": p[rows].max(axis=1),
            "p_label": np.where(where >= 0, p[rows, where], np.nan),
        }
    )
    more = [c for c in ("decision", "set_95", "ood_score", "group", "plane", "source", "sequence") if c in table]
    return found.assign(**{c: table[c].to_numpy()[rows] for c in more})


KINDS_TO_ACCEPT = ("head_t1", "synthetic")
"""Kinds of pictures in an out-of-distribution run that the gate should let pass."""


def trade_off(known: np.ndarray, strange: dict[str, np.ndarray]) -> pd.DataFrame:
    """What every gate threshold would cost and bring, from one that rejects all to one that rejects nothing.

    Parameters
    ----------
    known : ndarray of shape (n,)
        Out-of-distribution scores of brain MRI that should be accepted.
    strange : dict of str to ndarray
        Scores of each kind of picture that should be rejected.

    Returns
    -------
    DataFrame
        ``threshold``, ``wrongly_rejected``, ``kind``, ``rejected``: long form, ready to draw, some 200 rows a kind.
    """
    known = np.sort(np.asarray(known, float))
    rejected = np.r_[np.linspace(0, 0.2, 81), np.linspace(0.22, 1, 40)]  # dense where a gate may be of use
    every = np.concatenate([known, *(np.asarray(scores, float) for scores in strange.values())])
    # Quantiles of the other pictures reach beyond the largest score of a brain.
    beyond = [np.quantile(np.asarray(scores, float), np.linspace(0, 1, 21)) for scores in strange.values()]
    nothing_passes = np.floor(every.min() - 1e-6)
    thresholds = np.unique(np.r_[nothing_passes, np.quantile(known, 1 - rejected), *beyond, 1.0])
    wrongly = 1 - np.searchsorted(known, thresholds, side="right") / len(known)
    parts = []
    for kind, scores in strange.items():
        scores = np.sort(np.asarray(scores, float))
        share = 1 - np.searchsorted(scores, thresholds, side="right") / len(scores)
        parts.append(
            pd.DataFrame({"threshold": thresholds, "wrongly_rejected": wrongly, "kind": kind, "rejected": share})
        )
    return pd.concat(parts, ignore_index=True)


def classification_report(metrics: dict[str, Any]) -> str:
    """The classic text table, from `measure`'s numbers."""

    def show(value):
        return "undefined" if value is None else f"{value:.3f}"

    lines = [f"{'':<12}{'precision':>11}{'recall':>11}{'f1':>11}{'support':>9}"]
    for name, row in metrics["per_class"].items():
        lines.append(
            f"{name:<12}{show(row['precision']):>11}{show(row['recall']):>11}{show(row['f1']):>11}{row['support']:>9}"
        )
    for title, value, interval in (
        ("accuracy", metrics["accuracy"], metrics["intervals"].get("accuracy")),
        ("balanced accuracy", metrics["balanced_accuracy"], metrics["intervals"].get("balanced_accuracy")),
        ("macro F1", metrics["macro_f1"], metrics["intervals"].get("macro_f1")),
        ("macro ROC AUC", metrics["roc_auc"]["macro"], metrics["intervals"].get("roc_auc_macro")),
        (
            "tumour vs none AUC",
            metrics["tumour_vs_none"]["roc_auc"],
            metrics["tumour_vs_none"]["intervals"].get("roc_auc"),
        ),
    ):
        span = f"  [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        lines.append(f"{title:<24}{show(value):>10}{span}")
    return "\n".join(lines)


def _number(value) -> float:
    return round(float(value), 6)


def _short(values: np.ndarray, digits: int = 5) -> list[float]:
    return [round(float(v), digits) for v in values]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(numerator, float) / np.asarray(denominator, float)


def _recalls(confusions: np.ndarray) -> np.ndarray:
    return _ratio(np.diagonal(confusions, axis1=1, axis2=2), confusions.sum(axis=2))


def _f1(confusions: np.ndarray) -> np.ndarray:
    return _ratio(2 * np.diagonal(confusions, axis1=1, axis2=2), confusions.sum(axis=1) + confusions.sum(axis=2))
