"""What each ingredient of a recipe earns: short runs, one change each, logged and laid out as a table."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from brainmri.data import SPLITS_DIRECTORY, read_manifest, read_pixels, select_split
from brainmri.errors import ConfigError
from brainmri.imaging import preprocess
from brainmri.recipes import RECIPES_DIRECTORY, Recipe
from brainmri.training import train
from brainmri.types import CLASS_NAMES, NO_TUMOR

TABLE = RECIPES_DIRECTORY / "search" / "table.yaml"
_NONE = CLASS_NAMES.index(NO_TUMOR)


class Row(BaseModel):
    """One run of the search: the recipe of the row ``after`` (default: the one above) with ``changes``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    adds: str
    after: str | None = None
    changes: dict[str, Any] = {}


def read_table(path: Path = TABLE) -> list[tuple[Row, Recipe]]:
    """Read the rows and the recipe each of them trains.

    Raises
    ------
    ConfigError
        A row that names no row above it, or a key or value that no recipe knows.
    """
    table = yaml.safe_load(path.read_text("utf-8"))
    values: dict[str, dict[str, Any]] = {}
    rows, before = [], table["base"]
    for entry in table["rows"]:
        try:
            row = Row(**entry)
            if row.after is not None and row.after not in values:
                raise ConfigError(f"{path.name}: {row.name} comes after '{row.after}'; above it are {list(values)}")
            before = (values[row.after] if row.after else before) | row.changes | {"name": row.name}
            rows.append((row, Recipe(**before)))
        except (ValidationError, TypeError) as error:
            raise ConfigError(f"{path.name}: {' '.join(str(error).split())}") from error
        values[row.name] = before
    return rows


def run_search(
    data_root: Path,
    directory: Path,
    *,
    weights: str = "none",
    table: Path = TABLE,
    splits: Path = SPLITS_DIRECTORY,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Train and measure every row that is not in ``directory`` yet; a row that was begun goes on.

    Each row's folder holds its run (`training.train`), its model and ``row.json``.

    Returns
    -------
    list of dict
        The measured rows, in the table's order; see `measure_network`.
    """
    from brainmri.model import save_model

    rows = []
    for row, recipe in read_table(table):
        folder = directory / row.name
        logged = folder / "row.json"
        if not logged.is_file():
            network = train(
                recipe, data_root, folder, weights=weights, resume=(folder / "state.json").exists(), report=report
            )
            minutes = json.loads((folder / "state.json").read_text())["elapsed_s"] / 60
            epochs = sum(stage.epochs for stage in recipe.stages)
            facts = {"name": row.name, "adds": row.adds, "seed": recipe.seed, "epochs": epochs}
            facts |= {"minutes": round(minutes, 1)} | measure_network(network, data_root, splits=splits)
            card = {
                "id": row.name,
                "recipe": recipe.model_dump(mode="json") | {"epochs_run": epochs, "minutes": facts["minutes"]},
                "class_names": CLASS_NAMES,
                "created": "",
                "architecture": "VGG16",
                "preprocessing": {},
            }
            save_model(network, card, folder)
            temporary = folder / "row.json.tmp"
            temporary.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
            os.replace(temporary, logged)
        rows.append(json.loads(logged.read_text("utf-8")))
    return rows


def measure_network(
    network, data_root: Path, *, mirror: bool = False, splits: Path = SPLITS_DIRECTORY
) -> dict[str, float]:
    """A row's figures: accuracy on clean val and test, macro F1 and ECE on test, AUC on lgg by sequence.

    Parameters
    ----------
    network : keras.Model
        As `training.train` returns it, of any input size.
    mirror : bool
        Average the logits of each picture and its mirror image: twice the cost.
    splits : path
        Folder of the manifests ``brain_tumor_mri.csv`` and ``lgg.csv``.

    Returns
    -------
    dict
        ``val_accuracy``, ``test_accuracy``, ``test_macro_f1``, ``test_ece`` (after a temperature fitted on val),
        ``test_auc_tumour``, ``lgg_auc_flair``, ``lgg_auc_post``.
    """
    from sklearn.metrics import f1_score, roc_auc_score

    from brainmri.decision import fit_temperature, softmax
    from brainmri.evaluation import expected_calibration_error

    kaggle = read_manifest(splits / "brain_tumor_mri.csv", data_root, "clean_split")
    lgg = read_manifest(splits / "lgg.csv", data_root.parent / "lgg", "split")
    val, test, lgg_test = (select_split(t, s) for t, s in ((kaggle, "val"), (kaggle, "test"), (lgg, "test")))
    val_logits, logits, lgg_logits = (_logits(network, rows, mirror) for rows in (val, test, lgg_test))
    val_true, true = (rows["label"].map(CLASS_NAMES.index).to_numpy() for rows in (val, test))
    temperature = fit_temperature(val_logits, val_true)
    probabilities = softmax(logits / temperature)
    figures = {
        "val_accuracy": (val_logits.argmax(1) == val_true).mean(),
        "test_accuracy": (logits.argmax(1) == true).mean(),
        "test_macro_f1": f1_score(true, logits.argmax(1), average="macro"),
        "test_ece": expected_calibration_error(true, probabilities),
        "test_auc_tumour": roc_auc_score(true != _NONE, 1 - probabilities[:, _NONE]),
    }
    lgg_score = 1 - softmax(lgg_logits / temperature)[:, _NONE]
    for sequence in ("flair", "post"):
        where = (lgg_test["sequence"] == sequence).to_numpy()
        figures[f"lgg_auc_{sequence}"] = roc_auc_score((lgg_test["label"] != NO_TUMOR)[where], lgg_score[where])
    return {name: round(float(value), 6) for name, value in figures.items()}


def _logits(network, rows: pd.DataFrame, mirror: bool) -> np.ndarray:
    from brainmri.model import logits_of

    views = np.stack([preprocess(read_pixels(file), network.input_shape[1])[0] for file in rows["file"]])
    logits = logits_of(network, views)
    return (logits + logits_of(network, views[:, :, ::-1])) / 2 if mirror else logits
