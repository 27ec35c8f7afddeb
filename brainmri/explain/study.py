"""How far to trust each method on one model: localisation, faithfulness and sanity, run once, resumed after a stop."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brainmri.errors import DataError
from brainmri.explain import METHODS, Explainer
from brainmri.explain.base import draw, normalise
from brainmri.explain.faithfulness import MEASURES as FAITHFULNESS
from brainmri.explain.faithfulness import faithfulness
from brainmri.explain.localisation import (
    FIXED_THRESHOLD,
    cell_side,
    centre_blob,
    localise,
    mask_file,
    peak_in_mask_rate,
    random_grid,
)
from brainmri.explain.localisation import MEASURES as LOCALISATION
from brainmri.explain.occlusion import CELLS
from brainmri.explain.sanity import STAGES, cascade, rank_correlation
from brainmri.types import CLASS_NAMES, CLASS_TITLES, NO_TUMOR, CropTransform

if TYPE_CHECKING:
    import pandas as pd

    from brainmri.evaluation import GroupBootstrap
    from brainmri.inference import Classifier

BASELINES = {"centre": "Centre of the head (baseline)", "random": "Random (baseline)"}
SIZES = {"small": (0.0, 0.01), "medium": (0.01, 0.025), "large": (0.025, 1.01)}
"""Tumour area as a share of the image, from - to."""
Progress = Callable[[str], Callable[[int, int], None]]


@dataclass(frozen=True)
class Plan:
    """How much is measured; part of the name under which finished parts are kept.

    Attributes
    ----------
    limit : int or None
        At most this many masked images, evenly by class.
    n_faithfulness, n_sanity : int
        Images, evenly by class, that hash order picks: the same on every run.
    precision : str
        Of gradients through the whole network.
    steps, samples, channels : int
        Of Integrated Gradients, SmoothGrad and Score-CAM.
    sanity_steps, sanity_samples, sanity_channels, sanity_cells : int
        The same, and patches along a side of occlusion, for each of the randomised networks.
    """

    limit: int | None = None
    n_faithfulness: int = 120
    n_sanity: int = 30
    precision: str = "bfloat16"
    steps: int = 8
    samples: int = 8
    channels: int = 64
    sanity_steps: int = 4
    sanity_samples: int = 4
    sanity_channels: int = 16
    sanity_cells: int = 4
    batch: int = 16
    seed: int = 0

    def options(self, *, sanity: bool = False) -> dict[str, dict[str, int]]:
        """Keyword arguments by method."""
        if sanity:
            return {
                "score-cam": {"channels": self.sanity_channels},
                "integrated-gradients": {"steps": self.sanity_steps},
                "smooth-grad": {"samples": self.sanity_samples},
                "occlusion": {"cells": self.sanity_cells},
            }
        return {
            "score-cam": {"channels": self.channels},
            "integrated-gradients": {"steps": self.steps},
            "smooth-grad": {"samples": self.samples},
        }


def run_study(
    classifier: Classifier,
    rows: pd.DataFrame,
    directory: Path | str,
    work: Path | str,
    plan: Plan | None = None,
    *,
    progress: Progress | None = None,
    beside: Sequence[tuple[Classifier, Path | str]] = (),
) -> dict[str, Any]:
    """Measure every method.

    Parameters
    ----------
    rows : DataFrame
        One split of a manifest with a ``mask`` column (empty: no mask); intervals resample its ``group``.
    directory : path
        Where the classifier's weights lie.
    work : path
        Finished parts go to a folder in here that model, data and plan determine; the next run goes on from them.
    progress : callable, optional
        Called with a stage's name; what it returns is called with (done, total).
    beside : sequence of (Classifier, directory)
        Other networks, one trained without masks say, whose Grad-CAM is pointed at the same images.

    Returns
    -------
    dict
        JSON-serialisable: ``model_id``, ``weights_sha256``, ``plan``, ``peak_in_mask``, ``localisation``,
        ``faithfulness``, ``sanity``, each with ``n``; see docs/explanations.md.

    Raises
    ------
    DataError
        No masked image, or masks that are missing.
    """
    plan = plan or Plan()
    progress = progress or (lambda _name: lambda _done, _total: None)
    masked = _masked(rows, plan.limit)
    even = _spread(rows, plan.n_faithfulness if plan.limit is None else min(plan.n_faithfulness, plan.limit))
    few = _spread(even, plan.n_sanity)
    shown = [[list(part["path"]), list(part["group"].astype(str))] for part in (masked, even, few)]
    key = json.dumps([classifier.card.weights_sha256, classifier.engine.precision, asdict(plan), shown])
    folder = Path(work) / f"{classifier.card.id}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    explainer = Explainer.of(classifier, directory, precision=plan.precision)
    clock, start = folder / "elapsed.json", time.monotonic()
    before = json.loads(clock.read_text("utf-8")) if clock.is_file() else 0.0

    def stage(name: str) -> Callable[[int, int], None]:
        report = progress(name)

        def timed(done: int, total: int) -> None:
            _write_whole(clock, before + time.monotonic() - start)  # of all runs together
            report(done, total)

        return timed

    peak_in_mask = measure_peaks([(classifier, directory), *beside], masked, progress=stage)
    localisation = _parts(
        folder, "localisation", masked, plan.batch, stage("Localisation"),
        lambda part: _localisation_rows(classifier, explainer, part, plan, folder, set(even["path"])),
    )  # fmt: skip
    faithful = _parts(
        folder, "faithfulness", even, plan.batch, stage("Faithfulness"),
        lambda part: _faithfulness_rows(classifier, explainer, part, plan, folder),
    )  # fmt: skip
    sanity = _sanity(classifier, directory, few, plan, folder, stage("Sanity (weight randomisation)"))
    return {
        "model_id": classifier.card.id,
        "weights_sha256": classifier.card.weights_sha256,
        "engine": classifier.engine.name,
        "engine_precision": classifier.engine.precision,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "elapsed_s": round(json.loads(clock.read_text("utf-8")), 1),
        "plan": asdict(plan),
        "peak_in_mask": peak_in_mask,
        "localisation": _summarise_localisation(localisation),
        "faithfulness": _summarise_faithfulness(faithful),
        "sanity": sanity,
    }


def measure_peaks(
    networks: Sequence[tuple[Classifier, Path | str]],
    rows: pd.DataFrame,
    limit: int | None = None,
    *,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """The ``peak_in_mask`` of `run_study` alone: for each network ``model_id``, ``weights_sha256``, ``subsets``."""
    masked = _masked(rows, limit)
    return [
        {
            "model_id": c.card.id,
            "weights_sha256": c.card.weights_sha256,
            "subsets": peak_in_mask_rate(
                c, masked, directory=d, progress=progress and progress(f"Grad-CAM's peak, {c.card.id}")
            ),
        }
        for c, d in networks
    ]


def _masked(rows: pd.DataFrame, limit: int | None) -> pd.DataFrame:
    if "mask" not in rows or not (rows["mask"] != "").any():
        raise DataError("no image of this split has a mask; the manifest needs a 'mask' column with paths")
    masked = _spread(rows[rows["mask"] != ""], limit)
    missing = [row.mask for row in masked.itertuples() if not mask_file(row).is_file()]
    if missing:
        root = Path(masked["file"].iloc[0][: -len(masked["path"].iloc[0])])
        raise DataError(
            f"{len(missing)} of {len(masked)} masks are missing under {root} (first: {missing[0]}); 'brainmri data "
            "fetch' brings the images alone, docs/model.md says whose outlines these are: put them there"
        )
    return masked


def _spread(rows: pd.DataFrame, n: int | None) -> pd.DataFrame:
    """At most ``n`` rows, evenly by label, picked by the hash of their path: no choice of ours, the same every time."""
    if n is None or len(rows) <= n:
        return rows.reset_index(drop=True)
    keyed = rows.assign(_key=[hashlib.sha256(p.encode()).hexdigest() for p in rows["path"]]).sort_values("_key")
    turn = keyed.groupby("label").cumcount()
    picked = keyed.assign(_turn=turn).sort_values(["_turn", "label"]).head(n)
    return picked.drop(columns=["_key", "_turn"]).reset_index(drop=True)


def _parts(
    folder: Path,
    name: str,
    rows: pd.DataFrame,
    batch: int,
    report: Callable[[int, int], None],
    measure: Callable[[pd.DataFrame], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    done: list[dict[str, Any]] = []
    report(0, len(rows))
    for start in range(0, len(rows), batch):
        path = folder / f"{name}-{start:05d}.json"
        if path.is_file():
            done += json.loads(path.read_text("utf-8"))
        else:
            part = measure(rows.iloc[start : start + batch])
            _write_whole(path, part)
            done += part
        report(min(start + batch, len(rows)), len(rows))
    return done


def _write_whole(path: Path, content: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content), "utf-8")
    os.replace(temporary, path)


def _predict(classifier: Classifier, part: pd.DataFrame):
    from brainmri.data import read_pixels
    from brainmri.explain import Batch

    pixels = [read_pixels(file) for file in part["file"]]
    prediction = classifier.predict(pixels)
    batch = Batch(prediction.inputs, prediction.feature_maps, prediction.logits)
    return pixels, batch, prediction.transforms, prediction.logits.argmax(axis=1)


def _all_grids(explainer, batch, targets, keys, plan: Plan, *, sanity: bool = False) -> dict[str, np.ndarray]:
    """Raw maps of every method, and of the baselines, which have no logit to explain."""
    options = plan.options(sanity=sanity)
    grids = {
        name: method.grids(explainer, batch, targets, method.check_layer(None), seed=plan.seed, **options.get(name, {}))
        for name, method in METHODS.items()
    }
    if not sanity:
        grids["centre"] = np.stack([centre_blob()] * len(targets))
        grids["random"] = np.stack([random_grid(key) for key in keys])
    return grids


def _percentile(name: str) -> float:
    return METHODS[name].percentile if name in METHODS else 100.0


def _maps_file(folder: Path, path: str) -> Path:
    return folder / f"maps-{hashlib.sha256(path.encode()).hexdigest()[:16]}.npz"


def _localisation_rows(
    classifier, explainer, part: pd.DataFrame, plan: Plan, folder: Path, again: set[str]
) -> list[dict[str, Any]]:
    """Measures of each image; the raw maps of images that come ``again`` are kept for faithfulness."""
    from brainmri.data import read_mask

    pixels, batch, transforms, targets = _predict(classifier, part)
    grids = _all_grids(explainer, batch, targets, part["path"], plan)
    rows = []
    for i, row in enumerate(part.itertuples()):
        if row.path in again:
            _write_npz(_maps_file(folder, row.path), {name: maps[i] for name, maps in grids.items()})
        mask = read_mask(mask_file(row))
        values = {}
        for name, maps in grids.items():
            saliency_map, peak = draw(maps[i], transforms[i], pixels[i].shape, _percentile(name))
            values[name] = localise(saliency_map, peak, mask, cell_side(transforms[i]))
        rows.append(
            {
                "path": row.path,
                "label": row.label,
                "predicted": CLASS_NAMES[targets[i]],
                "group": row.group,
                "area": float(mask.mean()),
                "values": values,
            }
        )
    return rows


def _faithfulness_rows(classifier, explainer, part: pd.DataFrame, plan: Plan, folder: Path) -> list[dict[str, Any]]:
    _, batch, _, targets = _predict(classifier, part)
    per_image: list[dict[str, np.ndarray]] = []
    for i, path in enumerate(part["path"]):
        file = _maps_file(folder, path)
        if file.is_file():
            per_image.append(_read_npz(file))
        else:
            grids = _all_grids(explainer, batch[i : i + 1], targets[i : i + 1], [path], plan)
            per_image.append({name: maps[0] for name, maps in grids.items()})
    size = batch.inputs.shape[1]
    whole = CropTransform(0, 0, size, size)
    rows = []
    for i, row in enumerate(part.itertuples()):
        maps = {name: draw(grid, whole, (size, size), _percentile(name))[0] for name, grid in per_image[i].items()}
        measured = faithfulness(explainer, batch.inputs[i], list(maps.values()), int(targets[i]))
        values = dict(zip(maps, measured, strict=True))
        rows.append({"path": row.path, "label": row.label, "group": row.group, "values": values})
    return rows


def _sanity(classifier, directory, rows: pd.DataFrame, plan: Plan, folder: Path, report) -> dict[str, Any]:
    """Rank correlation of each method's maps before and after each stage of randomisation; kept stage by stage."""
    from brainmri.model import load_network

    network: Any = None
    inputs: Any = None
    targets: Any = None
    found: dict[str, Any]
    before: dict[str, np.ndarray] = {}
    intact = folder / "sanity-intact.npz"
    methods: dict[str, dict[str, Any]] = {name: {} for name in METHODS}
    stages = ("intact", *STAGES)
    files = [intact, *(folder / f"sanity-{stage}.json" for stage in STAGES)]
    report(0, len(stages))
    if not all(file.is_file() for file in files):
        _, batch, _, targets = _predict(classifier, rows)
        inputs = batch.inputs
        network = getattr(classifier.engine, "network", None) or load_network(classifier.card, directory)
    networks = cascade(network, plan.seed) if network is not None else iter([])
    bootstrap = _bootstrap(rows["group"])
    for number, (stage, file) in enumerate(zip(stages, files, strict=True)):
        _, changed = next(networks, (stage, None))  # randomised further even where its maps are there already
        if file.is_file():
            found = _read_npz(file) if stage == "intact" else json.loads(file.read_text("utf-8"))
        else:
            explainer = Explainer.of_network(changed, precision=plan.precision)
            grids = _all_grids(explainer, explainer.batch(inputs), targets, rows["path"], plan, sanity=True)
            maps = {  # as they are drawn
                name: np.stack([np.minimum(normalise(grid, METHODS[name].percentile), 1) for grid in raw])
                for name, raw in grids.items()
            }
            if stage == "intact":
                found = maps
                _write_npz(file, maps)
            else:
                found = {name: _stability(before[name], after, bootstrap) for name, after in maps.items()}
                _write_whole(file, found)
        if stage == "intact":
            before = found
        else:
            for name, value in found.items():
                methods[name][stage] = value
        report(number + 1, len(stages))
    return {"n": len(rows), "stages": list(STAGES), "methods": methods}


def _stability(before: np.ndarray, after: np.ndarray, bootstrap: GroupBootstrap) -> dict[str, Any]:
    """Mean rank correlation of maps with those of the intact network; empty maps have none and are counted."""
    values = np.array([rank_correlation(a, b) for a, b in zip(before, after, strict=True)])
    known = np.isfinite(values)
    return {
        "mean": round(float(values[known].mean()), 4) if known.any() else None,
        "interval": bootstrap.mean(values, known, share=False),
        "all_zero": int((~known).sum()),
    }


def _bootstrap(groups) -> GroupBootstrap:
    from brainmri.evaluation import GroupBootstrap

    return GroupBootstrap(groups, 2000)


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as kept:
        return dict(kept)


def _write_npz(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    temporary = file.with_suffix(".tmp.npz")
    np.savez(temporary, **arrays)  # type: ignore[arg-type]
    os.replace(temporary, file)


def _summarise_localisation(rows: list[dict[str, Any]]) -> dict[str, Any]:
    subsets = {"all": rows}
    for name in sorted({r["label"] for r in rows}):
        subsets[f"class {name}"] = [r for r in rows if r["label"] == name]
    for name, (low, high) in SIZES.items():
        subsets[f"size {name}"] = [r for r in rows if low <= r["area"] < high]
    subsets["right class"] = [r for r in rows if r["label"] == r["predicted"]]
    subsets["wrong class"] = [r for r in rows if r["label"] != r["predicted"]]
    table: dict[str, Any] = {}
    for subset, chosen in subsets.items():
        table[subset] = {"n": len(chosen), "methods": _means(chosen, LOCALISATION)}
    return {
        "n": len(rows),
        "threshold": FIXED_THRESHOLD,
        "sizes": {k: list(v) for k, v in SIZES.items()},
        "subsets": table,
    }


def _summarise_faithfulness(rows: list[dict[str, Any]]) -> dict[str, Any]:
    counts = {name: sum(r["label"] == name for r in rows) for name in CLASS_NAMES}
    return {"n": len(rows), "by_class": counts, "methods": _means(rows, FAITHFULNESS)}


def _means(rows: list[dict[str, Any]], measures: tuple[str, ...]) -> dict[str, Any]:
    if not rows:
        return {}
    bootstrap = _bootstrap([r["group"] for r in rows])
    return {
        name: {
            measure: {
                "mean": round(float((values := np.array([r["values"][name][measure] for r in rows])).mean()), 4),
                "interval": bootstrap.mean(values),
            }
            for measure in measures
        }
        for name in (*METHODS, *BASELINES)
    }


# --- tables ---------------------------------------------------------------------------------------------------------

LOCALISATION_TITLES = {
    "pointing": "peak in mask",
    "pointing_cell": "… or within a cell",
    "energy": "energy in mask",
    "iou_fixed": "IoU at 0.5",
    "iou_best": "IoU, best threshold",
}
FAITHFULNESS_TITLES = {
    "deletion": "deletion ↓",
    "insertion": "insertion ↑",
    "drop": "average drop ↓",
    "increase": "increase ↑",
}


def title_of(name: str) -> str:
    """A method's or baseline's name as a reader sees it."""
    return METHODS[name].title if name in METHODS else BASELINES[name]


def tables_of(result: Mapping[str, Any]) -> dict[str, str]:
    """Markdown tables by marker name."""
    return {
        "study": study_line(result),
        "peak-in-mask": _peak_table(result["peak_in_mask"]),
        "localisation": _localisation_table(result["localisation"]["subsets"]["all"]),
        "localisation-subsets": _subset_table(result["localisation"]["subsets"]),
        "faithfulness": _table(result["faithfulness"], FAITHFULNESS_TITLES),
        "sanity": _sanity_table(result["sanity"]),
    }


def study_line(result: Mapping[str, Any]) -> str:
    """On what, how and how far reduced a study measured; Markdown."""
    plan = result["plan"]
    return (
        f"Model `{result['model_id']}`, weights `{result['weights_sha256'][:12]}`, {result['created'][:10]}; forward "
        f"passes on {result['engine']} in {result['engine_precision']}, gradients in {plan['precision']}; Score-CAM on "
        f"its {plan['channels']} strongest channels, Integrated Gradients with {plan['steps']} steps, SmoothGrad with "
        f"{plan['samples']} samples, occlusion with {CELLS**2} patches; for each of the randomised networks "
        f"{plan['sanity_channels']}, {plan['sanity_steps']}, {plan['sanity_samples']} and {plan['sanity_cells'] ** 2}. "
        f"Took {result['elapsed_s'] / 60:.1f} minutes."
    )


PEAK_SUBSETS = {"all": "All", "right": "Class right", **{n: f"… {t}" for n, t in CLASS_TITLES.items() if n != NO_TUMOR}}


def _peak_table(networks: list[Mapping[str, Any]]) -> str:
    heads = [f"`{network['model_id']}` ({network['weights_sha256'][:8]})" for network in networks]
    lines = [
        "| Grad-CAM's peak in or within a cell of the mask | n | " + " | ".join(heads) + " | centre of the head |",
        "|---" * (len(heads) + 3) + "|",
    ]
    for name, title in PEAK_SUBSETS.items():
        parts = [network["subsets"][name] for network in networks]
        cells = [with_interval({"mean": p["rate"], "interval": p["interval"]}) if p["n"] else "–" for p in parts]
        centre = f"{parts[0]['baseline_centre']:.3f}" if parts[0]["n"] else "–"
        lines.append(f"| {title} | {counts(parts)} | " + " | ".join(cells) + f" | {centre} |")
    return "\n".join(lines)


def counts(parts: Sequence[Mapping[str, Any]]) -> str:
    """``n`` of several networks, in their order; once where all are equal."""
    each = [str(part["n"]) for part in parts]
    return " / ".join(each if len(set(each)) > 1 else each[:1])


def with_interval(value: Mapping[str, Any]) -> str:
    """A mean with three digits, its interval in brackets where it has one."""
    interval = value["interval"]
    return f"{value['mean']:.3f}" + (f" ({interval[0]:.3f}–{interval[1]:.3f})" if interval else "")


def _table(part: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    lines = [f"| method (n = {part['n']}) | " + " | ".join(titles.values()) + " |", "|---" * (len(titles) + 1) + "|"]
    for name, values in part["methods"].items():
        lines.append(f"| {title_of(name)} | " + " | ".join(with_interval(values[m]) for m in titles) + " |")
    return "\n".join(lines)


def _localisation_table(part: Mapping[str, Any]) -> str:
    return _table(part, LOCALISATION_TITLES)


def _subset_table(subsets: Mapping[str, Any]) -> str:
    shown = {name: part for name, part in subsets.items() if name != "all" and part["n"]}
    heads = [f"{_subset_title(name)} (n = {part['n']})" for name, part in shown.items()]
    lines = ["| peak in mask | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in (*METHODS, *BASELINES):
        lines.append(
            f"| {title_of(name)} | "
            + " | ".join(with_interval(part["methods"][name]["pointing"]) for part in shown.values())
            + " |"
        )
    return "\n".join(lines)


def _subset_title(name: str) -> str:
    kind, _, value = name.partition(" ")
    if kind == "class" and value in CLASS_TITLES:
        return CLASS_TITLES[value]
    if kind == "size":
        low, high = SIZES[value]
        return f"{value}: " + (
            f"over {low:.1%}" if high > 1 else f"{low:.1%}–{high:.1%}" if low else f"under {high:.1%}"
        )
    return {"right class": "class right", "wrong class": "class wrong"}.get(name, name)


def _sanity_table(part: Mapping[str, Any]) -> str:
    stages = part["stages"]
    lines = [
        f"| rank correlation with the intact map (n = {part['n']}) | " + " | ".join(f"… {s}" for s in stages) + " |",
        "|---" * (len(stages) + 1) + "|",
    ]
    for name, values in part["methods"].items():
        lines.append(f"| {title_of(name)} | " + " | ".join(_correlation(values[s]) for s in stages) + " |")
    return "\n".join(lines)


def _correlation(value: Mapping[str, Any]) -> str:
    shown = "–" if value["mean"] is None else f"{value['mean']:.2f}"
    return shown + (f" ({value['all_zero']} empty)" if value["all_zero"] else "")
