"""The release suite: every evaluation that a shipped model comes with, and the fit of its decision rule."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from brainmri import runs, shortcuts
from brainmri.augment import random_affine, random_intensity
from brainmri.data import KAGGLE, SPLITS_DIRECTORY, read_pixels, read_slice, select_split
from brainmri.decision import (
    LEVELS,
    DecisionRule,
    conformal_quantile,
    effective_size,
    fit_temperature,
    softmax,
)
from brainmri.errors import BrainMRIError, DataError
from brainmri.evaluation import KINDS_TO_ACCEPT, MEASURE, choose_threshold, trade_off
from brainmri.gate import Gate, describe, fit_gate
from brainmri.imaging import COLOUR_LIMIT, NETWORK_SIZE, preprocess
from brainmri.outliers import draw_outliers
from brainmri.served_inputs import mirror_averaging, preprocessing_gain
from brainmri.types import CLASS_NAMES, NO_TUMOR, MRISlice

if TYPE_CHECKING:
    from brainmri.inference import Classifier
    from brainmri.runs import Progress, Run

Stages = Callable[[str], "Progress"]
MANIFEST = "manifest.csv"
STRANGE = "out_of_distribution"
SETS = {
    "clean-test": (KAGGLE, "clean_split", "test"),
    "official-test": (KAGGLE, "official_split", "test"),
    "lgg-test": ("lgg", "split", "test"),
    "brisc-notumor-test": ("brisc_notumor", "split", "test"),
    "br35h-tumour-test": ("br35h_tumour", "split", "test"),
    "elsewhere-test": ("elsewhere", "split", "test"),
}
"""Part of the suite -> data folder, split column, split."""
PARTS = (*SETS, "out-of-distribution", "preprocessing", "shortcuts", "robustness")
BATCH = 32


# --- fitting the decision rule --------------------------------------------------------------------------------------


N_HEADS, N_MORE_HEADS, N_VIEWS, N_DRAWN, N_CT_VIEWS = 1400, 300, 700, 2550, 150
"""What the gate is fitted to: one image a group of the training split, of every other collection, augmented views of
them, drawn outliers, augmented views of head CT. Some 5,600 forward passes."""


def calibrate(
    model_id: str,
    directory: Path | str,
    engine: str,
    manifest: Path | str,
    images: Path | str | None,
    split_column: str = "clean_split",
    training_split: str = "train",
    validation_split: str = "val",
    *,
    progress: Stages | None = None,
) -> dict[str, Any]:
    """Fit temperature, conformal quantiles, tumour threshold and gate; write ``<id>.npz`` and the card.

    The gate learns from the training split, from the training splits of the other collections that lie beside it
    (``lgg``, ``brisc_notumor``, ``br35h_tumour``, ``elsewhere``) and from drawn outliers; everything else, and the
    gate's limits, come from validation.

    Returns
    -------
    dict
        What went into the card under ``decision``.

    Raises
    ------
    DataError, ModelError
        Missing images or classes, or weights that are not the card's.
    """
    from brainmri.inference import load_classifier
    from brainmri.model import write_card

    classifier = load_classifier(model_id, directory, engine, rule=DecisionRule())
    table = runs.read_rows(manifest, images, split_column)
    training, validation = select_split(table, training_split), select_split(table, validation_split)
    absent = sorted(set(CLASS_NAMES) - set(validation["label"]))
    if absent or not validation["label"].isin(CLASS_NAMES).all():
        raise DataError(
            f"split '{validation_split}' is needed with the four classes and no other label; "
            f"it {'lacks ' + ', '.join(absent) if absent else 'has unknown types'}"
        )
    n_validation = len(validation)
    if "seen_in_training" in validation:  # what the network was trained on would make it look surer than it may be
        validation = validation[validation["seen_in_training"] != "yes"]
    inputs = network_inputs(validation["file"])
    logits, described = forward_inputs(classifier, inputs, progress and progress("validation images"))
    material = gate_material(classifier, [training, *other_training(images)], progress=progress)
    gate = fit_gate_to(material, described[~is_head_ct(validation)])
    units = validation["group"]
    rule = fit_rule(logits, validation["label"], gate, classifier.card.weights_sha256, units)
    rule.save(Path(directory) / f"{model_id}.npz")
    said = {
        "temperature": round(rule.temperature, 6),
        "conformal_quantiles": dict(zip((f"{v:.2f}" for v in LEVELS), rule.quantiles, strict=True)),
        "tumour_threshold": rule.tumour_threshold,
        "gate": "larger of outlier exposure's log odds and Mahalanobis distance, each over its limit",
        "gate_fitted_to": {kind: len(rows) for kind, rows in material.items()},
        "fitted_on": {
            "manifest": Path(manifest).name,
            "manifest_sha256": hashlib.sha256(Path(manifest).read_bytes()).hexdigest(),
            "split_column": split_column,
            "training_split": training_split,
            "n_training": len(training),
            "validation_split": validation_split,
            "n_validation": len(validation),
            "n_left_out_as_seen_in_training": n_validation - len(validation),
            "effective_n_validation": round(effective_size(units), 1),
        },
    }
    write_card(classifier.card.model_copy(update={"decision": said}), directory)
    return said


def fit_rule(
    logits: np.ndarray,
    labels: Sequence[str],
    gate: Gate | None,
    weights_sha256: str,
    units: Sequence[Any] | None = None,
) -> DecisionRule:
    """Fit temperature, quantiles (see `decision.conformal_quantile` for the units) and threshold to validation."""
    y_true = np.array([CLASS_NAMES.index(v) for v in labels])
    temperature = fit_temperature(logits, y_true)
    # float32, as the probabilities will be that the quantiles are compared with
    p = softmax(logits / temperature).astype(np.float32)
    none = CLASS_NAMES.index(NO_TUMOR)
    return DecisionRule(
        temperature,
        tuple(conformal_quantile(p, y_true, level, units) for level in LEVELS),
        gate,
        weights_sha256,
        choose_threshold(y_true != none, 1 - p[:, none]),
    )


def gate_material(
    classifier: Classifier, collections: Sequence[pd.DataFrame], *, seed: int = 0, progress: Stages | None = None
) -> dict[str, np.ndarray]:
    """What the gate is fitted to, from training tables (the main one first): descriptors (n, d) by kind of picture.

    Drawn outliers come in the order of `outliers.draw_outliers`. A kind of which the tables hold none is left out.
    """
    rng = np.random.default_rng(seed)
    heads, strange = [], []
    for i, table in enumerate(collections):
        known, ct = gate_rows(table, seed, main=i == 0)
        heads.append(network_inputs(known["file"].head(N_MORE_HEADS if i else N_HEADS)))
        strange.append(network_inputs(ct["file"]))
    head_inputs, ct_inputs = np.concatenate(heads), np.concatenate(strange)
    drawn = [preprocess(picture)[0] for picture in draw_outliers(list(head_inputs), N_DRAWN, seed)]
    kinds = {
        "heads": head_inputs,
        "views of heads": _views(head_inputs, N_VIEWS, rng),
        "drawn outliers": np.stack(drawn),
        "head CT": ct_inputs,
        "views of head CT": _views(ct_inputs, N_CT_VIEWS, rng),
    }
    return {
        kind: forward_inputs(classifier, inputs, progress and progress(kind))[1]
        for kind, inputs in kinds.items()
        if len(inputs)
    }


def gate_rows(table: pd.DataFrame, seed: int, *, main: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A training table's heads, in the order in which the gate takes them, and its head CT.

    One head a group where there are many groups; with fewer a scan's slices or copies are needed.
    """
    shuffled = table.sample(frac=1, random_state=seed)
    ct = is_head_ct(shuffled)
    known = shuffled[~ct]
    group = "slice_group" if main and "slice_group" in known else "group"
    return known.drop_duplicates(group) if known[group].nunique() > N_MORE_HEADS else known, shuffled[ct]


def fit_gate_to(material: dict[str, np.ndarray], validation: np.ndarray, *, seed: int = 0) -> Gate:
    """Fit the gate to what `gate_material` gave and to descriptors of validation heads."""
    drawn = material["drawn outliers"]
    ct = [material[kind] for kind in ("head CT", "views of head CT") if kind in material]
    # Real CT is rare and worth more than drawn CT: together a quarter of the outliers' say.
    n_ct = sum(map(len, ct))
    return fit_gate(
        np.concatenate([material["heads"], material["views of heads"]]),
        np.concatenate([drawn, *ct]),
        validation,
        outliers_weights=np.concatenate([np.ones(len(drawn)), np.full(n_ct, len(drawn) / max(3 * n_ct, 1))]),
        seed=seed,
    )


def is_head_ct(table: pd.DataFrame) -> np.ndarray:
    """Which rows are head CT: the collections hold some among MRI; found by eye, in training and validation only."""
    listed = pd.read_csv(SPLITS_DIRECTORY / "head_ct.csv", dtype=str)
    return table["path"].isin(listed["path"]).to_numpy()


def other_training(images: Path | str | None) -> list[pd.DataFrame]:
    """Training rows of the collections beside the main one, where they are."""
    found = []
    for name in dict.fromkeys(folder for folder, _, _ in SETS.values() if folder != KAGGLE):
        folder = Path(images).parent / name if images is not None else None
        if folder is not None and folder.is_dir():
            table = runs.read_rows(SPLITS_DIRECTORY / f"{name}.csv", folder, "split")
            found.append(select_split(table, "train"))
    return found


def network_inputs(files: Sequence[str]) -> np.ndarray:
    """Image files as the network sees them, float32 (n, 128, 128)."""
    inputs = [preprocess(read_pixels(file))[0] for file in files]
    return np.stack(inputs) if inputs else np.zeros((0, NETWORK_SIZE, NETWORK_SIZE), np.float32)


def _views(inputs: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Augmented views, half of them preprocessed again as a file of them would be."""
    views = []
    for index in rng.integers(0, len(inputs), n) if len(inputs) else ():
        grey = np.rint(inputs[index] * 255).astype(np.uint8)
        view = random_intensity(random_affine(grey, grey, NETWORK_SIZE, rng)[0].astype(np.float32) / 255, rng)
        again = preprocess(np.rint(view * 255).astype(np.uint8))[0]
        views.append(again if rng.random() < 0.5 else view)
    return np.stack(views) if views else inputs[:0]


def forward_inputs(classifier: Classifier, inputs: np.ndarray, progress: Progress | None = None):
    """Logits, and the gate's descriptors, of network inputs."""
    logits, described = [], []
    for start in range(0, len(inputs), BATCH):
        part = inputs[start : start + BATCH]
        answer, feature_maps = classifier.forward(part)
        logits.append(answer)
        described.append(describe(feature_maps, part))
        if progress:
            progress(min(start + BATCH, len(inputs)), len(inputs))
    return np.concatenate(logits), np.concatenate(described)


# --- the suite ------------------------------------------------------------------------------------------------------


def run_suite(
    classifier: Classifier,
    data: Path | str,
    output: Path | str,
    *,
    only: Sequence[str] | None = None,
    progress: Stages | None = None,
) -> list[Run]:
    """Evaluate a model on everything that a data folder holds; runs go to ``<output>/<model id>-<part>/``.

    Preprocessing, shortcuts and robustness become part of the clean-test run. What is finished is kept; starting again
    goes on, and only other weights, another engine or decision rule, other rows of a manifest or a removed folder make
    it start over; a picture replaced under its name does not. What runs take from each other is renewed every time.

    Parameters
    ----------
    data : path
        Holds ``brain_tumor_mri``, ``lgg``, ``brisc_notumor``, ``br35h_tumour``, ``elsewhere`` (each with
        ``manifest.csv``, or as ``data/splits`` lists it), ``out_of_distribution/<kind>/`` and ``dicom/head_t1``; what
        is missing is left out.
    only : sequence of str, optional
        Some of ``PARTS``.

    Raises
    ------
    DataError
        An unknown part, or no data at all.
    """
    data, output = Path(data), Path(output)
    strange = sorted(set(only or ()) - set(PARTS))
    if strange:
        raise DataError(f"unknown part '{strange[0]}' of the suite; known: {', '.join(PARTS)}")
    wanted = [part for part in PARTS if not only or part in only]
    made: dict[str, Run] = {}
    for part in (p for p in wanted if p in SETS):
        folder, column, split = SETS[part]
        manifest = _manifest(data, folder)
        if manifest is None:
            continue
        rows = select_split(runs.read_rows(manifest, data / folder, column), split)
        if finished := _finished(classifier, output, part, rows):
            made[part] = finished
            continue
        made[part] = runs.evaluate(
            classifier,
            manifest,
            data / folder,
            column,
            split,
            _folder(classifier, output, part),
            name=folder,
            progress=_named(progress, part),
        )
    if "out-of-distribution" in wanted and (data / STRANGE).is_dir():
        made["out-of-distribution"] = _strange_run(classifier, data, output, progress)
    for part, compute in (("preprocessing", _preprocessing), ("shortcuts", _shortcuts), ("robustness", _robustness)):
        if part in wanted and _manifest(data, KAGGLE) is not None:
            made["clean-test"] = _extend_clean_run(classifier, data, output, part, compute, progress)
    if not made:
        known = dict.fromkeys((*(folder for folder, _, _ in SETS.values()), STRANGE))
        raise DataError(f"{data}: holds none of the folders {', '.join(known)} that the suite knows")
    renewed = _renew_copies(classifier, output)
    return [renewed.get(part, run) for part, run in made.items()]


def _manifest(data: Path, folder: str) -> Path | None:
    """The collection's own manifest, else the copy in ``data/splits``; None where the collection is not there."""
    own = data / folder / MANIFEST
    if own.is_file():
        return own
    return SPLITS_DIRECTORY / f"{folder}.csv" if (data / folder).is_dir() else None


def _named(progress: Stages | None, part: str) -> Stages | None:
    return None if progress is None else lambda stage: progress(f"{part}: {stage}")


def _folder(classifier: Classifier, output: Path, part: str) -> Path:
    return output / f"{classifier.card.id}-{part}"


def _open(classifier: Classifier, output: Path, part: str) -> Run | None:
    """A part's saved run if it is of these weights, this engine and decision rule, measured as today."""
    try:
        run = runs.open_run(_folder(classifier, output, part))
    except DataError:
        return None
    same = run.metrics.get("measure") == MEASURE
    return run if same and runs.model_entry(classifier).items() <= run.metrics["model"].items() else None


def _finished(classifier: Classifier, output: Path, part: str, rows: pd.DataFrame) -> Run | None:
    """A part's saved run if it is this model's answer to the same rows."""
    run = _open(classifier, output, part)
    return run if run and run.metrics.get("key") == runs.key_of(classifier, rows) else None


class _Kept:
    """Answers of finished steps in a JSON file, so that an interrupted part goes on after the last of them.

    ``saved`` holds the answers of a finished run. One that was undefined is computed again: its data may have come.
    """

    def __init__(self, path: Path, key: str, saved: dict[str, Any] | None = None):
        self.path = path
        self.saved = {name: v for name, v in (saved or {}).items() if not (isinstance(v, dict) and "undefined" in v)}
        try:
            known = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            known = {}
        self.known = known if known.get("key") == key else {"key": key}

    def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
        """The answer kept under a name; computed and kept where there is none."""
        if name in self.saved:
            return self.saved[name]
        if name not in self.known:
            self.known[name] = compute()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps(self.known), "utf-8")
            os.replace(temporary, self.path)
        return self.known[name]


def _extend_clean_run(classifier, data, output, part, compute, progress) -> Run:
    manifest = _manifest(data, KAGGLE)
    assert manifest is not None, "the caller asked"
    rows = runs.read_rows(manifest, data / KAGGLE, "clean_split")
    run = _finished(classifier, output, "clean-test", select_split(rows, "test"))
    if run is None:
        raise DataError(f"'{part}' extends the clean-test run of the same weights and rule; evaluate that part first")
    saved = run.metrics.get(part, {})
    kept = _Kept(run.directory / f"{runs.PARTIAL}-{part}.json", runs.key_of(classifier, rows), saved)
    run = _rewritten(run, {part: saved | compute(classifier, data, rows, kept, _named(progress, part))})
    kept.path.unlink(missing_ok=True)
    return run


def _rewritten(run: Run, parts: dict[str, Any]) -> Run:
    """The run with some of its metrics replaced; its file stays untouched where they say the same."""
    metrics = run.metrics | json.loads(json.dumps(parts))
    if metrics != run.metrics:
        runs.write_metrics(run.directory, metrics)
    return runs.Run(run.directory, metrics)


def _robustness(classifier, data, rows, kept, progress) -> dict[str, Any]:
    if set(kept.saved) == set(shortcuts.PERTURBATIONS):
        return kept.saved
    return shortcuts.robustness(
        classifier, select_split(rows, "test"), kept=kept, progress=progress and progress("curves")
    )


def _preprocessing(classifier, data, rows, kept, progress) -> dict[str, Any]:
    validation, test = select_split(rows, "val"), select_split(rows, "test")
    return {
        "clean_val": kept(
            "clean_val",
            lambda: preprocessing_gain(classifier, validation, kept=kept, progress=progress and progress("versions")),
        ),
        "mirror_averaging": kept(
            "mirror_averaging", lambda: mirror_averaging(classifier, test, progress=progress and progress("mirrors"))
        ),
    }


def _shortcuts(classifier, data, rows, kept, progress) -> dict[str, Any]:
    """The panel's own figures; `_copied` adds those of other runs."""
    test = select_split(rows, "test")
    steps: dict[str, Callable[[Progress | None], Any]] = {
        "counterfactuals": lambda p: shortcuts.counterfactuals(classifier, test, data / KAGGLE, kept=kept, progress=p),
        "source_probe": lambda p: shortcuts.source_probe(classifier, _healthy(data, rows), progress=p),
        "blind": lambda p: shortcuts.blind_classifiers(select_split(rows, "train"), test, progress=p),
        "peak_in_mask": lambda p: _peak_in_mask(classifier, test, p),
    }
    return {
        name: kept(name, lambda name=name, step=step: step(progress and progress(name.replace("_", " "))))
        for name, step in steps.items()
    }


def _renew_copies(classifier: Classifier, output: Path) -> dict[str, Run]:
    """Write anew what one run takes from others, which may have come, gone or changed since."""
    known = {part: _open(classifier, output, part) for part in (*SETS, "out-of-distribution")}
    clean, strange = known["clean-test"], known["out-of-distribution"]
    predictions = strange.predictions() if strange else None
    head = None if predictions is None else _healthy_head(predictions)
    renewed = {}
    if clean is not None and "shortcuts" in clean.metrics:
        panel = clean.metrics["shortcuts"] | _copied(clean, known) | {"head_t1": head}
        renewed["clean-test"] = _rewritten(clean, {"shortcuts": panel})
    if strange is not None and predictions is not None:
        parts = _trade_off(classifier, clean, predictions) | {"head_t1": head}
        renewed["out-of-distribution"] = _rewritten(strange, parts)
    return renewed


def _copied(clean: Run, known: dict[str, Run | None]) -> dict[str, Any]:
    """The shortcut panel's figures of other collections: each is None where its run is missing."""
    found: dict[str, Any] = dict.fromkeys(("lgg_by_sequence", "within_plane", "br35h_groups", "elsewhere"))
    if lgg := known["lgg-test"]:
        found["lgg_by_sequence"] = {
            row["value"]: {"roc_auc": row["tumour_roc_auc"], "interval": row["tumour_roc_auc_interval"], "n": row["n"]}
            for row in lgg.metrics["subgroups"]
            if row["column"] == "sequence"
        }
    if brisc := known["brisc-notumor-test"]:
        found["within_plane"] = shortcuts.within_plane_auc(clean.predictions(), brisc.predictions())
    if br35h := known["br35h-tumour-test"]:
        binary = br35h.metrics["tumour_vs_none"]
        found["br35h_groups"] = {"found": binary["tumour_groups_found"], "groups": binary["tumour_groups"]}
    if elsewhere := known["elsewhere-test"]:
        found["elsewhere"] = _by_head(elsewhere.predictions())
    return found


def _by_head(predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """Heads from other scanners: of each, its slices with a tumour and those without, called and answered right."""
    none = predictions["predicted"].astype(str) == NO_TUMOR
    healthy = predictions["label"].astype(str) == NO_TUMOR
    called = none == healthy
    answered = called & (predictions["decision"].astype(str) == "class")
    rows = []
    for (head, without), part in predictions.groupby(["group", healthy.rename("healthy")], observed=True, sort=False):
        figures = {"n": len(part), "called": int(called[part.index].sum()), "answered": int(answered[part.index].sum())}
        rows.append({"head": str(head), "tumour": not without} | figures)
    return rows


def _healthy_head(predictions: pd.DataFrame) -> dict[str, Any] | None:
    """How the slices of the healthy head are answered, those apart that show brain (listed by eye: many show neck)."""
    head = predictions[predictions["kind"] == "head_t1"]
    if head.empty:
        return None
    listed = pd.read_csv(SPLITS_DIRECTORY / "head_t1.csv", dtype=str)
    brain = head["path"].astype(str).str.split("/").str[-1].isin(listed.loc[listed["shows_brain"] == "yes", "slice"])
    none = head["predicted"].astype(str) == NO_TUMOR
    answered, accepted = none & (head["decision"] == "class"), head["decision"] != "rejected"
    return {
        "n": len(head),
        "accepted": int(accepted.sum()),
        "called_none": int(none.sum()),
        "answered_none": int(answered.sum()),
        "n_brain": int(brain.sum()),
        "brain_accepted": int((brain & accepted).sum()),
        "brain_called_none": int((brain & none).sum()),
        "brain_answered_none": int((brain & answered).sum()),
    }


def _trade_off(classifier: Classifier, clean: Run | None, strange: pd.DataFrame) -> dict[str, Any]:
    """The gate's trade-off between clean test's slices and foreign pictures; None without the clean-test run."""
    foreign = strange[~strange["kind"].isin(KINDS_TO_ACCEPT)]
    if clean is None or classifier.rule.gate is None or foreign.empty:
        return {"trade_off": None, "clean_test_rejected": None}
    brain = clean.predictions()["ood_score"].to_numpy(float)
    scores = {str(k): part["ood_score"].to_numpy(float) for k, part in foreign.groupby("kind", observed=True)}
    return {
        "trade_off": trade_off(brain, scores).round(6).to_dict("list"),
        "clean_test_rejected": round(float((brain > classifier.rule.ood_threshold).mean()), 6),
    }


def _peak_in_mask(classifier: Classifier, test: pd.DataFrame, progress: Progress | None) -> dict[str, Any] | None:
    """Whether Grad-CAM looks at the tumour; None for a network that is no VGG16 with a card."""
    from brainmri.errors import ModelError
    from brainmri.explain.localisation import peak_in_mask_rate

    if "mask" not in test or not (test["mask"] != "").any():
        return None
    try:
        return peak_in_mask_rate(classifier, test, progress=progress)
    except ModelError:
        return None


def _healthy(data: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Pictures without tumour that were not trained on, from every collection at hand, with their ``source``."""
    parts = [rows.assign(source="Kaggle notumor")]
    for folder, source in (("brisc_notumor", "BRISC"), ("lgg", "TCGA LGG")):
        if (manifest := _manifest(data, folder)) is not None:
            table = runs.read_rows(manifest, data / folder, "split")
            parts.append(table.assign(source=source))
    found = pd.concat(parts, ignore_index=True)
    unseen = (found["split"] != "train") & (found["seen_in_training"] != "yes")
    return found.loc[(found["label"] == NO_TUMOR) & unseen, ["path", "file", "group", "source"]]


# --- pictures that are no brain MRI ---------------------------------------------------------------------------------


def _strange_run(classifier: Classifier, data: Path, output: Path, progress: Stages | None) -> Run:
    """Rejected share per kind of picture, and MRI that the gate should accept; `_trade_off` is added later.

    Each picture is asked twice, as it is and as if it were grey, so that colour does not hide what the gate learned.
    """
    known: dict[str, MRISlice] = {}
    rows = []
    for folder in sorted(p for p in (data / STRANGE).iterdir() if p.is_dir()):
        rows += [(f"{folder.name}/{f.name}", str(f), folder.name) for f in sorted(folder.iterdir()) if f.is_file()]
    for kind, found in (("head_t1", _head_slices(data)), ("synthetic", _synthetic())):
        for name, mri_slice in found.items():
            key = f"{kind}/{name}"
            known[key] = mri_slice
            rows.append((key, key, kind))
    table = pd.DataFrame(rows, columns=["path", "file", "kind"]).assign(label="", split="all")
    table["group"] = table["path"].where(table["kind"] != "head_t1", "head_t1")  # slices of one head
    if finished := _finished(classifier, output, "out-of-distribution", table):
        return finished
    folder = _folder(classifier, output, "out-of-distribution")

    def predict(stage: str, read: Callable[[str], MRISlice]) -> pd.DataFrame:
        report = progress and progress(f"out-of-distribution: {stage}")
        return runs.predict_rows(classifier, table, folder / f"{runs.PARTIAL}-{stage}", progress=report, read=read)

    def as_it_is(file: str) -> MRISlice:
        return known.get(file) or read_slice(file)

    predictions = predict("predicting", as_it_is)
    as_grey = predict("colour ignored", lambda file: replace(as_it_is(file), colour_share=0.0))
    kinds = sorted(predictions["kind"].unique())
    extra: dict[str, Any] = {
        "key": runs.key_of(classifier, table),
        "kinds": {k: _kind(predictions[predictions["kind"] == k], as_grey[as_grey["kind"] == k]) for k in kinds},
        "baseline": None,
        "undefined": {"baseline": "pictures that are no brain MRI have no class that a neighbour could have"},
    }
    source = {"name": STRANGE, "manifest": None, "manifest_sha256": None, "split_column": None, "split": "all"}
    return runs.save_run(folder, classifier, predictions, source, extra)


def _kind(part: pd.DataFrame, as_grey: pd.DataFrame) -> dict[str, Any]:
    shares = {
        name: round(float((table["decision"] == "rejected").mean()), 6)
        for name, table in (("rejected_share", part), ("rejected_share_colour_ignored", as_grey))
    }
    return {"n": len(part), "n_in_colour": int((part["colour_share"] > COLOUR_LIMIT).sum()), **shares}


def _head_slices(data: Path) -> dict[str, MRISlice]:
    """A healthy head from another scanner, where the data folder has one; all of it, or an error."""
    from brainmri.config import load_settings
    from brainmri.pipeline import read_slices

    found: dict[str, MRISlice] = {}
    settings = load_settings()
    for file in sorted((data / "dicom" / "head_t1").glob("*.dcm")):
        try:
            found[file.stem] = read_slices(file.read_bytes(), file.name, settings)[0]
        except BrainMRIError as error:
            raise DataError(f"{file}: cannot be evaluated ({error}); replace it or take it away") from error
    return found


def _synthetic() -> dict[str, MRISlice]:
    from brainmri.synthetic import samples

    return {name: sample.slice for name, sample in samples().items()}
