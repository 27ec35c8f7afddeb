"""Evaluation runs: predict a table of images so that stopping loses nothing, measure, save, reopen, export."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from brainmri.data import KAGGLE, clean_leaks, read_manifest, read_pixels, read_slice, select_split
from brainmri.decision import LEVELS
from brainmri.errors import DataError
from brainmri.imaging import COLOUR_DIFFERENCE, COLOUR_LIMIT
from brainmri.types import CLASS_NAMES, MRISlice, Prediction

if TYPE_CHECKING:
    from brainmri.decision import DecisionRule
    from brainmri.inference import Classifier

CHUNK = 64
SLICES_A_PATIENT = 13
METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.parquet"
PARTIAL = ".partial"
"""What the names of unfinished work in a run's folder begin with."""
KEPT_COLUMNS = ("path", "label", "split", "group", "plane", "source", "sequence", "kind", "mirrored", "mask",
                "seen_in_training")  # fmt: skip
NEEDED = {"model", "data", "n", "n_groups", "n_typed", "undefined", "intervals", "accuracy", "balanced_accuracy",
          "macro_f1", "roc_auc", "per_class", "curves", "tumour_vs_none"}  # fmt: skip
"""What the page reads of every run."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Run:
    """A saved evaluation: ``<directory>/metrics.json`` and ``predictions.parquet``.

    Attributes
    ----------
    metrics : dict
        What `evaluation.measure` returned, with ``model``, ``data``, ``environment`` and ``created``.
    """

    directory: Path
    metrics: dict[str, Any] = field(repr=False)

    @property
    def id(self) -> str:
        """Name of its folder."""
        return self.directory.name

    @property
    def title(self) -> str:
        """Model, data, split and n: the four things no figure goes without."""
        data = self.metrics["data"]["name"]
        return f"{self.metrics['model']['id']} · {data} · {self.split_title} · n = {self.metrics['n']:,}"

    @property
    def split_title(self) -> str:
        """The split with what tells its column from others: ``clean test``, ``official test``, ``test``."""
        data = self.metrics["data"]
        column = (data.get("split_column") or "").removesuffix("split").strip("_").replace("_", " ")
        return f"{column} {data['split']}".strip()

    def predictions(self) -> pd.DataFrame:
        """One row an image; see `predict_rows`."""
        path = self.directory / PREDICTIONS_FILE
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.id}: {PREDICTIONS_FILE} cannot be read ({error}); evaluate again") from error


# --- predicting -----------------------------------------------------------------------------------------------------


def predict_rows(
    classifier: Classifier,
    rows: pd.DataFrame,
    work: Path | str,
    *,
    progress: Progress | None = None,
    read: Callable[[str], MRISlice] = read_slice,
) -> pd.DataFrame:
    """Predict every image of a table; finished chunks are kept under ``work`` and not computed again.

    Parameters
    ----------
    rows : DataFrame
        ``path``, ``file``, ``label``, ``group`` as `data.read_manifest` gives them.
    work : path
        Folder for finished chunks of this model and these rows; `save_run` removes it once the run is whole.
    progress : callable, optional
        Called with images done and in all.
    read : callable, optional
        File to slice.

    Returns
    -------
    DataFrame
        The rows' own columns (those of ``KEPT_COLUMNS``), ``logit_<class>``, ``p_<class>``, ``predicted``,
        ``decision``, ``set_90``, ``set_95`` (classes joined by ``|``), ``ood_score``, ``height``, ``width``,
        ``mean_grey``, ``colour_share``.

    Raises
    ------
    InvalidImageError
        A file that is no image; what was finished is kept.
    ModelError
        Probabilities that are no numbers.
    """
    work = Path(work) / key_of(classifier, rows)
    work.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, len(rows), CHUNK):
        path = work / f"{start:07d}.parquet"
        chunk = rows.iloc[start : start + CHUNK]
        if path.is_file():
            parts.append(pd.read_parquet(path))
        else:
            parts.append(_predict_chunk(classifier, chunk, read))
            temporary = path.with_suffix(".tmp")
            parts[-1].to_parquet(temporary)
            os.replace(temporary, path)
        if progress:
            progress(min(start + CHUNK, len(rows)), len(rows))
    return pd.concat(parts, ignore_index=True)


def key_of(classifier: Classifier, rows: pd.DataFrame) -> str:
    """Changes with weights, engine, decision rule and rows (all of them that a run keeps)."""
    said: list[Any] = [classifier.card.weights_sha256, classifier.engine.name, classifier.engine.precision]
    said += [rule_sha256(classifier.rule), COLOUR_DIFFERENCE, COLOUR_LIMIT, CHUNK]
    said.append(rows[[c for c in KEPT_COLUMNS if c in rows]].to_csv(index=False))
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def rule_sha256(rule: DecisionRule) -> str:
    """Changes with anything that ``models/<id>.npz`` holds: a rule fitted again has another one."""
    numbers = [rule.temperature, LEVELS, rule.quantiles, rule.tumour_threshold, rule.weights_sha256]
    digest = hashlib.sha256(json.dumps(numbers).encode())
    for name, values in sorted(rule.gate.arrays().items() if rule.gate else ()):
        digest.update(f"{name} {values.dtype} {values.shape}".encode() + values.tobytes())
    return digest.hexdigest()


def model_entry(classifier: Classifier) -> dict[str, Any]:
    """What a run says of its model under ``model``; where any of it differs, figures are another model's."""
    return {
        "id": classifier.card.id,
        "weights_sha256": classifier.card.weights_sha256,
        "engine": classifier.engine.name,
        "precision": classifier.engine.precision,
        "temperature": classifier.rule.temperature,
        "calibrated": bool(classifier.rule.weights_sha256),
        "rule_sha256": rule_sha256(classifier.rule),
    }


def _predict_chunk(classifier: Classifier, chunk: pd.DataFrame, read: Callable[[str], MRISlice]) -> pd.DataFrame:
    slices = [read(file) for file in chunk["file"]]
    images = [s.pixels for s in slices]
    table = chunk[[c for c in KEPT_COLUMNS if c in chunk.columns]].reset_index(drop=True)
    answers = answers_table(classifier, classifier.predict_slices(slices))
    classifier.require_numbers(answers[[f"logit_{c}" for c in CLASS_NAMES]].to_numpy(), table["path"])
    table = pd.concat([table, answers], axis=1)
    # The manifest knows the original's size where the images at hand are scaled copies.
    for name, axis in (("height", 0), ("width", 1)):
        own = pd.Series([image.shape[axis] for image in images])
        table[name] = pd.to_numeric(chunk[name], errors="coerce").to_numpy() if name in chunk else own
        table[name] = table[name].fillna(own).astype("int32")
    table["mean_grey"] = np.array([image[image > 15].mean() if (image > 15).any() else 0 for image in images], "f4")
    table["colour_share"] = np.array([s.colour_share for s in slices], "f4")
    return table


def predict_table(classifier: Classifier, images: Sequence[np.ndarray]) -> pd.DataFrame:
    """Answers to grey pictures of square pixels as a table (see `answers_table`)."""
    return answers_table(classifier, classifier.predict(images))


def answers_table(classifier: Classifier, answer: Prediction) -> pd.DataFrame:
    """Answers as a table: the columns that `predict_rows` adds."""
    columns: dict[str, Any] = {f"logit_{c}": answer.logits[:, i] for i, c in enumerate(CLASS_NAMES)}
    columns |= {f"p_{c}": answer.probabilities[:, i] for i, c in enumerate(CLASS_NAMES)}
    columns["predicted"] = [CLASS_NAMES[i] for i in answer.probabilities.argmax(axis=1)]
    columns["decision"] = list(answer.decisions)
    for level in LEVELS:
        members = classifier.rule.prediction_sets(answer.probabilities, level)
        columns[f"set_{level * 100:.0f}"] = ["|".join(np.array(CLASS_NAMES)[m]) for m in members]
    columns["ood_score"] = answer.ood_score
    return pd.DataFrame(columns)


def add_subgroups(table: pd.DataFrame) -> pd.DataFrame:
    """Add ``size`` and ``brightness`` columns, from what was measured while predicting."""
    longest = table[["height", "width"]].max(axis=1)
    size = pd.cut(longest, [0, 256, 511, 512, 1e9], labels=["≤ 256 px", "257–511 px", "512 px", "> 512 px"])
    brightness = pd.cut(table["mean_grey"], [-1, 60, 90, 256], labels=["dark", "medium", "bright"])
    return table.assign(size=size.astype(str), brightness=brightness.astype(str))


# --- baseline -------------------------------------------------------------------------------------------------------


def thumbnail(pixels: np.ndarray, side: int = 32) -> np.ndarray:
    """Small copy with mean 0 and norm 1, so that a dot product is a correlation; float32 (side * side,)."""
    from PIL import Image

    small = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX), np.float32).ravel()
    small = small - small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-6)


def nearest_neighbour_baseline(
    training: pd.DataFrame, rows: pd.DataFrame, *, progress: Progress | None = None
) -> dict[str, Any] | None:
    """What the label of the most similar training thumbnail gets right: the bar any model must clear by far.

    Returns
    -------
    dict or None
        ``accuracy``, ``interval``, ``n_training``; None where there is nothing to look up.
    """
    from brainmri.evaluation import GroupBootstrap

    typed = rows[rows["label"].isin(CLASS_NAMES)]
    training = training[training["label"].isin(CLASS_NAMES)]
    if typed.empty or training.empty:
        return None
    total, thumbnails = len(training) + len(typed), []
    for done, file in enumerate([*training["file"], *typed["file"]], start=1):
        thumbnails.append(thumbnail(read_pixels(file)))
        if progress and (done % 50 == 0 or done == total):
            progress(done, total)
    known, asked = np.stack(thumbnails[: len(training)]), np.stack(thumbnails[len(training) :])
    nearest = np.concatenate([(part @ known.T).argmax(axis=1) for part in np.array_split(asked, len(asked) // 512 + 1)])
    right = training["label"].to_numpy()[nearest] == typed["label"].to_numpy()
    return {
        "accuracy": round(float(right.mean()), 6),
        "interval": GroupBootstrap(typed["group"]).mean(right),
        "n_training": len(training),
        "method": "label of the most correlated 32 x 32 thumbnail of the training images",
    }


def why_no_baseline(training: pd.DataFrame, rows: pd.DataFrame) -> str | None:
    """Why the nearest training image says nothing about these rows; None where it does.

    Raises
    ------
    DataError
        Some training images are missing: looked up in the others, the bar would be lower than it is.
    """
    known = training[training["label"].isin(CLASS_NAMES)]
    if not rows["label"].isin(CLASS_NAMES).any():
        return "no image here has one of the four classes"
    if known.empty:
        return "there are no training images with one of the four classes"
    if known["label"].nunique() < 2:
        return "the training images are of one class, which every neighbour would have"
    missing = [p for p, f in zip(known["path"], known["file"], strict=True) if not Path(f).is_file()]
    if len(missing) == len(known):
        return f"none of the {len(known):,} training images is there"
    if missing:
        raise DataError(
            f"{len(missing)} of {len(known)} training images are missing (first: {missing[0]}); the nearest neighbour "
            "needs them all: put them back, or evaluate with --no-baseline"
        )
    return None


# --- a whole evaluation ---------------------------------------------------------------------------------------------


def read_rows(manifest: Path | str, images: Path | str | None, split_column: str) -> pd.DataFrame:
    """A manifest as `data.read_manifest` reads it, with ``source`` and ``seen_in_training`` where they can be known.

    ``group`` becomes what is independent of each other (see `independent_units`); ``slice_group`` is the manifest's,
    those that `clean_leaks` lists joined with the training slice that they show.
    """
    table = read_manifest(manifest, images, split_column)
    if "figshare_index" in table.columns:
        table["source"] = np.where(table["figshare_index"] != "", "figshare", "other")
    kaggle = "clean_split" in table.columns
    leaks = clean_leaks()  # copies of training slices that the splits' makers overlooked
    leaks = leaks[leaks["collection"] == (KAGGLE if kaggle else collection_of(manifest))]
    seen = table["path"].isin(leaks["path"])
    if kaggle and split_column != "clean_split":
        seen |= table["group"].isin(set(table.loc[table["clean_split"] == "train", "group"]))
    if kaggle or seen.any():
        table["seen_in_training"] = np.where(seen, "yes", "no")
        own = dict(zip(table["path"], table["group"], strict=True))
        leaks = leaks[leaks["copy_collection"] == leaks["collection"]]
        joined = {own[p]: own[c] for p, c in zip(leaks["path"], leaks["copy_of"], strict=True) if {p, c} <= own.keys()}
        table["group"] = [joined.get(g, g) for g in table["group"]]
    table["slice_group"] = table["group"]
    table["group"] = independent_units(table)
    return table


def collection_of(manifest: Path | str) -> str:
    """What data a manifest is of: its folder's name, or its own where it is no ``manifest.csv``."""
    manifest = Path(manifest)
    return manifest.stem if manifest.stem != "manifest" else manifest.absolute().parent.name


def independent_units(rows: pd.DataFrame) -> list[str]:
    """Patients where they are known, runs of 13 neighbours for figshare's slices, else slice groups.

    figshare lists a patient's slices next to each other, 3,064 of 233 patients: 13 a patient.
    """
    units = rows["group"].astype(str)
    if "patient" in rows:
        units = units.where(rows["patient"] == "", rows["patient"])
    if "figshare_index" in rows:
        index = pd.to_numeric(rows["figshare_index"], errors="coerce")
        units = units.where(index.isna(), "figshare " + (index // SLICES_A_PATIENT).astype(str))
    return [str(u) for u in units]


def evaluate(
    classifier: Classifier,
    manifest: Path | str,
    images: Path | str | None,
    split_column: str,
    split: str,
    output: Path | str,
    *,
    name: str | None = None,
    baseline: bool = True,
    training_split: str = "train",
    progress: Callable[[str], Progress] | None = None,
) -> Run:
    """Evaluate one split of one manifest and save the run.

    Parameters
    ----------
    output : path
        The run's folder; an interrupted run there goes on where it stopped.
    name : str, optional
        Of the data; default: the manifest's folder or file name.
    baseline : bool
        Also look up the nearest training thumbnail (reads every training image); where there is none, ``undefined``
        says why.
    progress : callable, optional
        Called with a stage's name; gives the callable that takes images done and in all.

    Raises
    ------
    DataError, InvalidImageError, ModelError
        Empty split, missing files, foreign labels, broken weights, or a folder that holds a run of something else.
    """
    manifest = Path(manifest)
    name = name or collection_of(manifest)
    _require_own_folder(Path(output), (classifier.card.id, name, f"{split_column}: {split}"))
    table = read_rows(manifest, images, split_column)
    rows = select_split(table, split)
    # What the network learned from, where that is known; another split's training images are not that.
    training = table[table["clean_split" if "clean_split" in table else "split"] == training_split]
    why: str | None = "the nearest training images were not asked for (--no-baseline)"
    if baseline and split == training_split:
        why = "these are the training images themselves"
    elif baseline:
        why = why_no_baseline(training, rows)
    predictions = predict_rows(
        classifier, rows, Path(output) / PARTIAL, progress=progress("predicting") if progress else None
    )
    metrics: dict[str, Any] = {"key": key_of(classifier, rows), "baseline": None}
    if why:
        metrics["undefined"] = {"baseline": why}
    else:
        metrics["baseline"] = nearest_neighbour_baseline(
            training, rows, progress=progress("nearest neighbours") if progress else None
        )
    data = {
        "name": name,
        "manifest": manifest.name,
        "manifest_sha256": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        "split_column": split_column,
        "split": split,
    }
    return save_run(output, classifier, predictions, data, metrics)


def _require_own_folder(output: Path, about: tuple[str, str, str]) -> None:
    """A run measured anew replaces itself; another model's or another split's is not lost to it."""
    try:
        found = open_run(output).metrics
        there = (
            found["model"]["id"],
            found["data"]["name"],
            f"{found['data']['split_column']}: {found['data']['split']}",
        )
    except (DataError, KeyError):
        return  # none, or none that could be lost
    if there != about:
        raise DataError(
            f"{output}: holds a run of {', '.join(there)}; this one is of {', '.join(about)}. Name another folder, or "
            "remove that one"
        )


def save_run(
    output: Path | str,
    classifier: Classifier,
    predictions: pd.DataFrame,
    data: dict[str, Any],
    extra: dict[str, Any] | None = None,
) -> Run:
    """Measure a table of predictions, write ``metrics.json`` and ``predictions.parquet``, drop the finished chunks.

    ``extra`` goes into the metrics as it is; its ``undefined`` joins the reasons found while measuring.
    """
    from brainmri.evaluation import measure

    output = Path(output)
    predictions = add_subgroups(predictions)
    measured = measure(predictions, tumour_threshold=classifier.rule.tumour_threshold)
    metrics = {
        "model": model_entry(classifier),
        "data": data,
        **measured,
        **(extra or {}),
        "undefined": measured["undefined"] | (extra or {}).get("undefined", {}),
        "environment": environment(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    output.mkdir(parents=True, exist_ok=True)
    temporary = output / f"{PREDICTIONS_FILE}.tmp"
    _compact(predictions).to_parquet(temporary, compression="zstd", index=False)
    os.replace(temporary, output / PREDICTIONS_FILE)
    write_metrics(output, metrics)
    for finished in output.glob(f"{PARTIAL}*/"):
        shutil.rmtree(finished)
    return Run(output, metrics)


def write_metrics(output: Path | str, metrics: dict[str, Any]) -> None:
    """Write ``metrics.json``, whole or not at all."""
    path = Path(output) / METRICS_FILE
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
    os.replace(temporary, path)


def _compact(table: pd.DataFrame) -> pd.DataFrame:
    """Half the size and a quarter of the opening time: repeated words become categories."""
    table = table.copy()
    for column in table.columns:
        if table[column].dtype.kind in "OTU" or str(table[column].dtype).startswith("str"):
            table[column] = table[column].astype(str)
            if table[column].nunique() < max(20, len(table) // 10):
                table[column] = table[column].astype("category")
        elif table[column].dtype == np.float64:
            table[column] = table[column].astype(np.float32)
    return table


def environment() -> dict[str, Any]:
    """What the numbers were computed with."""
    import importlib.metadata as metadata

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    packages = ("numpy", "pandas", "scikit-learn", "keras", "tensorflow", "openvino")
    from brainmri import __version__

    return {
        "brainmri": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cpu_count": os.cpu_count(),
        "packages": {p: v for p in packages if (v := version(p))},
    }


def open_run(directory: Path | str) -> Run:
    """Open a saved run; predictions are read when asked for.

    Raises
    ------
    DataError
        No run there, or a damaged one.
    """
    directory = Path(directory)
    try:
        metrics = json.loads((directory / METRICS_FILE).read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{directory}: no saved evaluation there (no {METRICS_FILE})") from error
    except ValueError as error:
        raise DataError(f"{directory.name}/{METRICS_FILE}: damaged ({error}); evaluate again") from error
    if not isinstance(metrics, dict) or not set(metrics) >= NEEDED:
        raise DataError(f"{directory.name}/{METRICS_FILE}: not what 'brainmri evaluate' writes; evaluate again")
    return Run(directory, metrics)


def list_runs(root: Path | str) -> list[Run]:
    """All runs in a folder that open, newest first; `damaged_runs` names the others."""
    runs = [found for found in _opened(Path(root)) if isinstance(found, Run)]
    return sorted(runs, key=lambda run: (run.metrics.get("created", ""), run.id), reverse=True)


def damaged_runs(directory: Path) -> list[str]:
    """One line for each run in a folder that does not open, is not finished or lacks its predictions."""
    import pyarrow.parquet as parquet

    lines = []
    for found in _opened(Path(directory)):
        if isinstance(found, DataError):
            lines.append(str(found))
            continue
        try:
            parquet.read_metadata(found.directory / PREDICTIONS_FILE)
        except FileNotFoundError:
            lines.append(f"{found.id}: {PREDICTIONS_FILE} is missing; evaluate again")
        except (OSError, ValueError) as error:
            lines.append(f"{found.id}/{PREDICTIONS_FILE}: damaged ({error}); evaluate again")
    return lines


def _opened(root: Path) -> Iterator[Run | DataError]:
    """Every run folder's run, or why there is none; folders of other things (audits) are passed over."""
    for folder in sorted(path for path in root.glob("*") if path.is_dir()):
        if (folder / METRICS_FILE).is_file():
            try:
                yield open_run(folder)
            except DataError as error:
                yield error
        elif (folder / PREDICTIONS_FILE).exists() or any(folder.glob(f"{PARTIAL}*")):
            yield DataError(f"{folder.name}: not finished (no {METRICS_FILE}); the same command goes on")


def data_title(run: Run) -> str:
    """Data and split in words: ``brain_tumor_mri, clean test``."""
    whole = run.metrics["data"]["split"] == "all"
    return run.metrics["data"]["name"] + ("" if whole else f", {run.split_title}")


def side_by_side(found: Sequence[Run]) -> pd.DataFrame:
    """Runs and, below each, its sources, in one table: what stands in the way of choosing the nicest figure.

    Parameters
    ----------
    found : sequence of Run
        The clean split comes first, then the official one, then the others in their order.

    Returns
    -------
    DataFrame
        ``data``, ``n``, ``n_groups``, ``accuracy`` ... None where undefined; each ``<measure>_interval`` beside it.
    """
    rank = {"clean_split": 0, "official_split": 1}
    rows: list[dict[str, Any]] = []
    for run in sorted(found, key=lambda r: rank.get(r.metrics["data"].get("split_column") or "", 2)):
        m, binary = run.metrics, run.metrics["tumour_vs_none"]
        gate, calibration = m.get("gate") or {}, m.get("calibration") or {}
        sets = (m.get("conformal") or {}).get("0.95", {})
        row: dict[str, Any] = {"run": run.id, "data": data_title(run), "n": m["n"], "n_groups": m["n_groups"]}
        for name, value in (("accuracy", m["accuracy"]), ("balanced_accuracy", m["balanced_accuracy"]),
                            ("macro_f1", m["macro_f1"]), ("roc_auc_macro", m["roc_auc"]["macro"])):  # fmt: skip
            row |= {name: value, f"{name}_interval": m["intervals"].get(name)}
        row |= {"tumour_roc_auc": binary["roc_auc"], "tumour_roc_auc_interval": binary["intervals"].get("roc_auc")}
        for kind in ("sensitivity", "specificity"):
            row[kind], row[f"{kind}_interval"] = binary["called"][kind], binary["intervals"].get(f"called_{kind}")
        row |= {"baseline": (m.get("baseline") or {}).get("accuracy"), "ece": calibration.get("ece"),
                "coverage_95": sets.get("coverage"), "coverage_95_interval": sets.get("coverage_interval"),
                "rejected_share": gate.get("rejected_share"),
                "accuracy_decided": gate.get("accuracy_decided")}  # fmt: skip
        rows.append(row)
        for part in m.get("subgroups", []):
            if part["column"] in ("source", "seen_in_training"):
                what = part["value"] if part["column"] == "source" else f"{part['title']}: {part['value']}"
                rows.append({"run": run.id, "data": f"↳ {what}", **{k: part.get(k) for k in row if k in part}})
    return pd.DataFrame(rows)


def export(run: Run, output: Path | str | None = None) -> list[Path]:
    """Write ``predictions.csv`` and the figures as PNG beside a run (or into ``output``)."""
    from brainmri import displays

    output = Path(output or run.directory)
    output.mkdir(parents=True, exist_ok=True)
    table = output / "predictions.csv"
    run.predictions().to_csv(table, index=False)
    return [table, *displays.save_figures(run.metrics, output, title=run.title)]
