"""Is it right for the right reason? Counterfactuals, robustness, a source probe and classifiers that cannot see."""

from __future__ import annotations

import functools
import io
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage

from brainmri import counterfactual
from brainmri.data import read_mask, read_pixels
from brainmri.evaluation import GroupBootstrap, roc_auc
from brainmri.runs import predict_table
from brainmri.types import CLASS_NAMES, NO_TUMOR

if TYPE_CHECKING:
    from brainmri.inference import Classifier

Progress = Callable[[int, int], None]
BATCH = 32


# --- robustness -----------------------------------------------------------------------------------------------------


def _noise(image: np.ndarray, sd: float, rng: np.random.Generator) -> np.ndarray:
    return _grey(image + rng.normal(0, sd, image.shape))


def _blur(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    return _grey(ndimage.gaussian_filter(image.astype(np.float32), sigma * max(image.shape) / 256))


def _contrast(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    return _grey((image - image.mean()) * factor + image.mean())


def _gamma(image: np.ndarray, gamma: float, rng: np.random.Generator) -> np.ndarray:
    return _grey(255 * (image / 255.0) ** gamma)


def _rotation(image: np.ndarray, degrees: float, rng: np.random.Generator) -> np.ndarray:
    angle = degrees * (1 if rng.random() < 0.5 else -1)
    return np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR))


def _crop(image: np.ndarray, lost: float, rng: np.random.Generator) -> np.ndarray:
    height, width = (round(s * (1 - lost)) for s in image.shape)
    top, left = rng.integers(image.shape[0] - height + 1), rng.integers(image.shape[1] - width + 1)
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _jpeg(image: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer).convert("L"))


def _grey(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


PERTURBATIONS: dict[str, tuple[Callable[..., np.ndarray], float, tuple[float, ...]]] = {
    "noise (sd, grey levels)": (_noise, 0, (5, 10, 20, 40)),
    "blur (sd, pixels of 256)": (_blur, 0, (0.5, 1, 2, 3)),
    "contrast (factor)": (_contrast, 1, (0.3, 0.6, 1.5, 2.5)),
    "gamma": (_gamma, 1, (0.4, 0.7, 1.5, 2.5)),
    "rotation (degrees)": (_rotation, 0, (5, 10, 20, 45)),
    "crop (share of each side lost)": (_crop, 0, (0.05, 0.1, 0.2, 0.3)),
    "JPEG quality": (_jpeg, 100, (70, 40, 20, 8)),
}
"""Name to function of (image, severity, rng), the severity that changes nothing, and the severities tried."""


def robustness(
    classifier: Classifier,
    rows: pd.DataFrame,
    *,
    n_images: int = 200,
    seed: int = 0,
    kept: Callable[[str, Callable[[], Any]], Any] = lambda name, compute: compute(),
    progress: Progress | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Accuracy of the likeliest class, and how much is rejected, under each perturbation as it grows.

    Parameters
    ----------
    rows : DataFrame
        With ``path``, ``file``, ``label`` and ``group``. All are answered untouched; a seeded sample of ``n_images``,
        stratified by class and by whether that answer was right, is changed: so the curves start where all rows are.
    kept : callable, optional
        Takes a point's name and what computes it; may answer from an earlier run.

    Returns
    -------
    dict
        Perturbation to points: ``severity``, ``n``, ``accuracy``, ``interval``, ``rejected_share``.
    """
    typed = rows[rows["label"].isin(CLASS_NAMES)]
    answered = kept("untouched, all", lambda: _answers(classifier, typed["file"]))
    sample = stratified(typed.assign(right=np.array(answered) == typed["label"]), ["label", "right"], n_images, seed)
    images = [read_pixels(file) for file in sample["file"]]
    bootstrap = GroupBootstrap(sample["group"], 500, seed)
    total = (1 + sum(len(levels) for _, _, levels in PERTURBATIONS.values())) * len(sample)
    done = 0

    def point(severity: float, change: Callable[[np.ndarray, str], np.ndarray]) -> dict[str, Any]:
        changed = [change(x, path) for x, path in zip(images, sample["path"], strict=True)]
        answers = _predict(classifier, changed)
        right = answers["predicted"].to_numpy(str) == sample["label"].to_numpy(str)
        return {
            "severity": severity,
            "n": len(sample),
            "accuracy": round(float(right.mean()), 6),
            "interval": bootstrap.mean(right),
            "rejected_share": round(float((answers["decision"] == "rejected").mean()), 6),
        }

    def count(result: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        done += len(sample)
        if progress:
            progress(done, total)
        return result

    untouched = count(kept("untouched", lambda: point(0, lambda x, path: x)))
    found = {}
    for name, (change, neutral, severities) in PERTURBATIONS.items():
        points = [untouched | {"severity": neutral}]
        for severity in severities:
            perturb = _perturbation(change, severity, seed, name)
            points.append(count(kept(f"{name} {severity}", functools.partial(point, severity, perturb))))
        found[name] = sorted(points, key=lambda p: p["severity"])
    return found


def stratified(rows: pd.DataFrame, by: list[str], n: int, seed: int = 0) -> pd.DataFrame:
    """At most ``n`` random rows, every stratum with its share: each k-th row of the table, shuffled, then sorted."""
    shuffled = rows.sample(frac=1, random_state=seed).sort_values(by, kind="stable")
    steps = np.arange(min(n, len(rows))) + np.random.default_rng(seed).random()
    return shuffled.iloc[(steps * len(rows) / max(len(steps), 1)).astype(int)].reset_index(drop=True)


def _perturbation(change, severity: float, seed: int, name: str) -> Callable[[np.ndarray, str], np.ndarray]:
    return lambda image, path: change(image, severity, _rng(seed, path, name))


def _rng(seed: int, *names: str) -> np.random.Generator:
    return np.random.default_rng([seed, *(zlib.crc32(n.encode()) for n in names)])


def _answers(classifier: Classifier, files: Sequence[str]) -> list[str]:
    parts = (files[i : i + BATCH] for i in range(0, len(files), BATCH))
    return [name for part in parts for name in _predict(classifier, [read_pixels(f) for f in part])["predicted"]]


def _predict(classifier: Classifier, images: Sequence[np.ndarray]) -> pd.DataFrame:
    parts = [predict_table(classifier, images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    return pd.concat(parts, ignore_index=True)


# --- counterfactuals ------------------------------------------------------------------------------------------------


def counterfactuals(
    classifier: Classifier,
    rows: pd.DataFrame,
    root,
    *,
    seed: int = 0,
    methods: Sequence[str] = counterfactual.METHODS,
    kept: Callable[[str, Callable[[], Any]], Any] = lambda name, compute: compute(),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Paint each masked tumour away, and an equal area elsewhere; count what the answers become.

    Parameters
    ----------
    rows : DataFrame
        With ``path``, ``file``, ``label``, ``group`` and ``mask`` (path under ``root``, or empty).
    kept : callable, optional
        Takes a batch's name and what computes it; may answer from an earlier run.

    Returns
    -------
    dict
        ``n`` images whose answer was a tumour before; per method ``changed`` (to no tumour or undecided) with its
        parts and interval, and ``elsewhere_changed`` (another answer than before) with its interval, over
        ``n_elsewhere`` images that had room; the first method's ``elsewhere_changed`` again beside them; the same by
        likeliest class alone under ``likeliest``.
    """
    masked = rows[(rows["mask"] != "") & (rows["label"] != NO_TUMOR)].reset_index(drop=True)
    parts = []
    for start in range(0, len(masked), BATCH):
        part = masked.iloc[start : start + BATCH]
        compute = functools.partial(_painted, classifier, part, root, seed, methods)
        parts.append(kept(f"counterfactuals from {start}", compute))
        if progress:
            progress(min(start + BATCH, len(masked)), len(masked))
    if not parts:
        return {"n_masked": 0, "undefined": "no image has a mask"}
    answers = {name: pd.concat([pd.DataFrame(p[name]) for p in parts], ignore_index=True) for name in parts[0]}
    return {"n_masked": len(masked), **_count_changes(answers, masked["group"], methods)}


def _painted(classifier: Classifier, part: pd.DataFrame, root, seed: int, methods) -> dict[str, dict[str, list]]:
    """Answers ``before``, after each method, and after each method ``elsewhere``; under ``room`` whether there was."""
    images = [read_pixels(file) for file in part["file"]]
    masks = [read_mask(f"{root}/{mask}") for mask in part["mask"]]
    others = [counterfactual.elsewhere(image, mask, _rng(seed, path, "elsewhere")) for image, mask, path in
              zip(images, masks, part["path"], strict=True)]  # fmt: skip

    def answers(areas: Sequence[np.ndarray | None], method: str = "") -> dict[str, list]:
        painted = [image if area is None else counterfactual.inpaint(image, area, _rng(seed, path), method)
                   for image, area, path in zip(images, areas, part["path"], strict=True)]  # fmt: skip
        return predict_table(classifier, painted)[["decision", "predicted"]].to_dict("list")

    found = {"before": answers([None] * len(images)), "room": {"room": [other is not None for other in others]}}
    for method in methods:
        found[method] = answers(masks, method)
        found[f"elsewhere {method}"] = answers(others, method)
    return found


def _count_changes(answers: dict[str, pd.DataFrame], groups, methods: Sequence[str]) -> dict[str, Any]:
    before, room = answers["before"], answers["room"]["room"].to_numpy(bool)
    says_tumour = (before["decision"] == "class").to_numpy() & (before["predicted"] != NO_TUMOR).to_numpy()
    leans_tumour = (before["predicted"] != NO_TUMOR).to_numpy()
    bootstrap = GroupBootstrap(groups)
    compared = says_tumour & room
    found: dict[str, Any] = {"n": int(says_tumour.sum()), "likeliest": {"n": int(leans_tumour.sum())}}
    for method in methods:
        after = answers[method]
        to_none = ((after["decision"] == "class") & (after["predicted"] == NO_TUMOR)).to_numpy()
        undecided = (after["decision"] == "undecided").to_numpy()
        changed = to_none | undecided
        control = answers[f"elsewhere {method}"]
        leans_elsewhere = (control["predicted"] != before["predicted"]).to_numpy()
        other = (control["decision"] != before["decision"]).to_numpy() | leans_elsewhere
        found[method] = {
            "changed": _share(changed, says_tumour),
            "interval": bootstrap.mean(changed, says_tumour),
            "to_none": _share(to_none, says_tumour),
            "to_undecided": _share(undecided, says_tumour),
            "to_rejected": _share((after["decision"] == "rejected").to_numpy(), says_tumour),
            "elsewhere_changed": _share(other, compared),
            "elsewhere_interval": bootstrap.mean(other, compared),
        }
        found["likeliest"][method] = _share((after["predicted"] == NO_TUMOR).to_numpy(), leans_tumour)
        found["likeliest"].setdefault("elsewhere", _share(leans_elsewhere, leans_tumour & room))
    found |= {name: found[methods[0]][name] for name in ("elsewhere_changed", "elsewhere_interval")}
    found["n_elsewhere"] = int(compared.sum())
    return found


def _share(hit: np.ndarray, where: np.ndarray) -> float | None:
    return round(float(hit[where].mean()), 6) if where.any() else None


# --- what can be told without looking at the tumour -------------------------------------------------------------------


def source_probe(
    classifier: Classifier,
    rows: pd.DataFrame,
    *,
    per_source: int = 300,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """How well block5's features tell where a picture without tumour comes from (linear probe, folds by group).

    Parameters
    ----------
    rows : DataFrame
        ``file``, ``group``, ``source``, all without tumour; one image a group, at most ``per_source`` a source.

    Returns
    -------
    dict
        ``balanced_accuracy``, ``chance``, ``n`` per source.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = rows.assign(group=rows["source"] + "/" + rows["group"].astype(str)).sample(frac=1, random_state=seed)
    rows = rows.drop_duplicates("group" if rows["group"].nunique() > 100 else "file")
    rows = rows.groupby("source").head(per_source).reset_index(drop=True)
    counts = rows["source"].value_counts()
    folds = int(min(5, rows.groupby("source")["group"].nunique().min())) if len(rows) else 0
    if len(counts) < 2 or folds < 2:
        return {"undefined": "needs two sources with at least two groups each"}
    features = []
    for start in range(0, len(rows), BATCH):
        images = [read_pixels(file) for file in rows["file"].iloc[start : start + BATCH]]
        features.append(classifier.predict(images).feature_maps.mean(axis=(1, 2)))
        if progress:
            progress(min(start + BATCH, len(rows)), len(rows))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, C=0.1, class_weight="balanced"))
    called = cross_val_predict(
        probe,
        np.concatenate(features),
        rows["source"],
        groups=rows["group"],
        cv=StratifiedGroupKFold(folds, shuffle=True, random_state=seed),
    )
    return {
        "balanced_accuracy": round(float(balanced_accuracy_score(rows["source"], called)), 6),
        "chance": round(1 / len(counts), 6),
        "n": {str(k): int(v) for k, v in counts.items()},
    }


def blind_classifiers(
    training: pd.DataFrame, rows: pd.DataFrame, *, seed: int = 0, progress: Progress | None = None
) -> dict[str, Any]:
    """What a random forest reaches that sees no head: the picture with it blanked out, or only simple statistics.

    Returns
    -------
    dict
        ``head_blanked`` and ``statistics``: ``accuracy`` with ``interval``, ``tumour_roc_auc``; ``majority``: the
        share of the commonest class.
    """
    from sklearn.ensemble import RandomForestClassifier

    training = training.sample(frac=1, random_state=seed).drop_duplicates("slice_group")
    rows = rows[rows["label"].isin(CLASS_NAMES)]
    total, seen = len(training) + len(rows), []
    for done, row in enumerate([*training.itertuples(), *rows.itertuples()], start=1):
        seen.append(_blind_views(read_pixels(row.file), row))
        if progress and (done % 50 == 0 or done == total):
            progress(done, total)
    labels = rows["label"].to_numpy(str)
    bootstrap = GroupBootstrap(rows["group"])
    found: dict[str, Any] = {"majority": round(float(rows["label"].value_counts(normalize=True).max()), 6)}
    for i, name in enumerate(("head_blanked", "statistics")):
        x = np.stack([s[i] for s in seen])
        forest = RandomForestClassifier(200, class_weight="balanced", random_state=seed, min_samples_leaf=2)
        forest.fit(x[: len(training)], training["label"])
        p = forest.predict_proba(x[len(training) :])
        right = forest.classes_[p.argmax(axis=1)] == labels
        score = 1 - p[:, list(forest.classes_).index(NO_TUMOR)]
        found[name] = {
            "accuracy": round(float(right.mean()), 6),
            "interval": bootstrap.mean(right),
            "tumour_roc_auc": round(float(roc_auc(labels != NO_TUMOR, score)[0]), 6),
        }
    return found


def _blind_views(image: np.ndarray, row) -> tuple[np.ndarray, np.ndarray]:
    """The blanked picture's thumbnail; and size, aspect, border and brightness statistics."""
    blank = counterfactual.blank_head(image)
    small = np.asarray(Image.fromarray(blank).resize((24, 24), Image.Resampling.BOX), np.float32).ravel()
    height = float(getattr(row, "height", "") or image.shape[0])
    width = float(getattr(row, "width", "") or image.shape[1])
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).astype(np.float32)
    statistics = [height, width, height / width, border.mean(), border.std(), border.max(), image.mean(), image.std()]
    statistics += [*np.percentile(image, (1, 5, 25, 50, 75, 95, 99)), (image < 8).mean(), (image > 250).mean()]
    return small, np.array(statistics, np.float32)


def within_plane_auc(tumours: pd.DataFrame, none: pd.DataFrame, *, seed: int = 0) -> dict[str, Any]:
    """Tumour against none within each plane: predictions of one set's tumours against another's healthy slices.

    Returns
    -------
    dict
        Plane to ``roc_auc``, ``interval``, ``n_tumour``, ``n_none``.
    """
    found = {}
    tumours, none = tumours[tumours["label"] != NO_TUMOR], none[none["label"] == NO_TUMOR]
    for plane in sorted({*tumours["plane"], *none["plane"]} - {""}):
        both = pd.concat([tumours[tumours["plane"] == plane].assign(side="t"),
                          none[none["plane"] == plane].assign(side="n")])  # fmt: skip
        positive = (both["side"] == "t").to_numpy()
        if positive.all() or not positive.any():
            continue
        score = 1 - both[f"p_{NO_TUMOR}"].to_numpy(float)
        bootstrap = GroupBootstrap(both["side"] + both["group"].astype(str), seed=seed)
        samples = np.concatenate([roc_auc(positive, score, w) for w in bootstrap.batches()])
        found[str(plane)] = {
            "roc_auc": round(float(roc_auc(positive, score)[0]), 6),
            "interval": bootstrap.interval(samples, positive, ~positive),
            "n_tumour": int(positive.sum()),
            "n_none": int((~positive).sum()),
        }
    return found
