"""Train by recipe: fit, checkpoint, resume, log. A run is a folder; killing it loses at most the epoch it was in."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from brainmri import augment
from brainmri.data import (
    SPLITS_DIRECTORY,
    UNKNOWN_TUMOUR,
    clean_leaks,
    read_manifest,
    read_mask,
    read_pixels,
    select_split,
)
from brainmri.decision import softmax
from brainmri.errors import ConfigError, DataError
from brainmri.imaging import as_network_batch, preprocess
from brainmri.types import CLASS_NAMES, NO_TUMOR

RECIPES_DIRECTORY = Path(__file__).resolve().parent.parent / "recipes"
CACHE_SIZE = 160
"""Side in pixels at which preprocessed slices wait in memory; views are cut from it."""

PAINTED_AWAY = 0.18
"""Share of outlined tumours painted away where a stage names none."""

_NONE = CLASS_NAMES.index(NO_TUMOR)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """One image collection a recipe trains on.

    Attributes
    ----------
    manifest : str
        File in ``data/splits`` (or a path).
    images : str
        Folder beside the data root.
    per_epoch : int or None
        Groups drawn each epoch (None: all); one image a group.
    repeat : int
        Draws of each drawn group each epoch.
    """

    name: str
    manifest: str
    images: str
    split_column: str = "split"
    per_epoch: int | None = None
    repeat: int = 1


class Stage(_Strict):
    """Epochs at one input size and peak learning rate.

    Attributes
    ----------
    frozen_blocks : tuple of int or None
        Leading blocks that are not trained; None: the recipe's.
    painted_away : float
        With the recipe's ``counterfactuals``: the share of outlined tumours that is painted away and called no tumour.
    mild : float
        With ``full`` augmentation: the share of views whose grey values change only as they do between two scans of one
        protocol (`augment.mild_intensity`), reached at the stage's end; it grows linearly from none.
    sharpness : float
        Radius of sharpness-aware minimisation [2]_: each step descends from the worst point this far away, found with
        half of its batch [3]_; 0: plain descent.
    mixed : float
        With a teacher: the share of views that are a mixture of two [4]_, falling linearly to none at the stage's end.
        What such a picture shows the teacher alone says; it has neither label nor outline.
    averaged : bool
        The hidden layer sees the mean over positions (`model.build_network`).
    contribution_weight : float
        With ``averaged`` and the recipe's mask head: weight of the loss that holds Grad-CAM to the outlines.
    average_epochs : int
        The stage ends with the mean of its last n epochs' weights, batch statistics measured anew [1]_; 0: without.

    References
    ----------
    .. [1] Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018.
    .. [2] Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021.
    .. [3] Du et al., "Efficient Sharpness-aware Minimization for Improved Training of Neural Networks", ICLR 2022.
    .. [4] Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; taught: Beyer et al., CVPR 2022.
    """

    input_size: Literal[32, 64, 96, 128, 160]
    epochs: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    frozen_blocks: tuple[int, ...] | None = None
    painted_away: float = Field(PAINTED_AWAY, ge=0, le=1)
    mild: float = Field(0.0, ge=0, le=1)
    sharpness: float = Field(0.0, ge=0)
    mixed: float = Field(0.0, ge=0, le=1)
    averaged: bool = False
    contribution_weight: float = Field(0.0, ge=0)
    average_epochs: int = Field(0, ge=0)


class Recipe(_Strict):
    """Everything that decides what a training run does; a YAML file in ``recipes/``.

    Attributes
    ----------
    continues : str or None
        The recipe whose finished model this one starts from, batch norm put back (`model.unfold_batch_norm`).
    architecture : str
        ``vgg16``, or ``efficientnet-lite2`` for a network that is only another's teacher.
    teacher : str or None
        Recipe of a network whose probabilities for each view this one learns from as well [3]_; it is trained first.
        Views are drawn at the size that it sees and made smaller for the one that learns.
    teacher_weight : float
        Its share of the class loss.
    start_teaches : bool
        The network that this one starts from is a second teacher: for each batch one of the two is drawn to answer.
    start_share : float
        What ships is the mean of the trained weights and those that it started from, which weigh this much [2]_: along
        the line between them lie networks that are right where either is.
    imagenet_blocks : tuple of int
        Blocks that start from ImageNet; the others start from He's initialisation.
    frozen_blocks : tuple of int
        Leading blocks that are not trained.
    normalised_blocks : tuple of int
        Blocks with batch norm while training.
    one_per_group : bool
        An epoch draws one image of each slice group, else every image.
    class_balance : bool
        Classes weigh the same in the loss.
    plane_balance : bool
        With ``class_balance``: they do within each plane, or else a plane alone says which tumour to expect.
    cached_draws : int
        0: every epoch sees fresh views. n > 0: n views of each image are pushed through the frozen blocks once, and
        epochs cycle over those features.
    augmentation : str
        ``brightness_contrast`` (the classic), ``full``, or ``none``.
    mask_weight : float
        Weight of the auxiliary mask loss; 0 trains without the mask head.
    bias_correction : bool
        After training, add to the logits the per-class bias that minimises the log loss of the first source's val
        split, together with a temperature [1]_: views painted away and class balance shift the share of no tumour.
    counterfactuals : bool
        Train on tumours painted away (as no tumour), paint elsewhere (unchanged label), and pasted tumours.
    exchanged : float
        With ``counterfactuals``: share of the first source's outlined tumours that are painted away and another
        patient's put in, of any type, seen in the same plane. Nothing but the tumour tells its type then.
    warp : float
        With ``full`` augmentation: how much views are bent (`augment.random_affine`).

    References
    ----------
    .. [1] Alexandari, Kundaje & Shrikumar, "Maximum Likelihood with Bias-Corrected Calibration is Hard-To-Beat at Label
       Shift Adaptation", ICML 2020.
    .. [2] Wortsman et al., "Robust Fine-Tuning of Zero-Shot Models", CVPR 2022, arXiv:2109.01903.
    .. [3] Beyer et al., "Knowledge Distillation: A Good Teacher Is Patient and Consistent", CVPR 2022.
    """

    name: str
    description: str = ""
    sources: tuple[Source, ...]
    stages: tuple[Stage, ...]
    continues: str | None = None
    architecture: Literal["vgg16", "efficientnet-lite2"] = "vgg16"
    teacher: str | None = None
    teacher_weight: float = Field(0.0, ge=0, le=1)
    start_teaches: bool = False
    start_share: float = Field(0.0, ge=0, le=1)
    imagenet_blocks: tuple[int, ...] = ()
    frozen_blocks: tuple[int, ...] = ()
    normalised_blocks: tuple[int, ...] = ()
    one_per_group: bool = True
    cached_draws: int = Field(0, ge=0)
    optimizer: Literal["adam", "adamw"] = "adamw"
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = 0.0
    batch_size: int = Field(32, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_balance: bool = False
    plane_balance: bool = False
    augmentation: Literal["none", "brightness_contrast", "full"] = "full"
    mask_weight: float = 0.0
    counterfactuals: bool = False
    exchanged: float = Field(0.0, ge=0, le=1)
    warp: float = Field(0.0, ge=0, le=0.1)
    bias_correction: bool = False
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    seed: int = 0

    @model_validator(mode="after")
    def _what_one_field_needs_of_another(self):
        if self.teacher and self.cached_draws:
            raise ValueError("teacher: answers for views that are drawn anew; leave cached_draws out")
        mixed = any(stage.mixed for stage in self.stages)
        if (self.start_teaches or mixed) and not (self.teacher and self.teacher_weight):
            raise ValueError("start_teaches, mixed: only where a teacher answers; name one and its teacher_weight")
        if (self.start_teaches or self.start_share) and not self.continues:
            raise ValueError("start_teaches, start_share: only where a recipe continues another; name it in continues")
        return self


def load_recipe(name: str) -> Recipe:
    """Read ``recipes/<name>.yaml`` or a path.

    Raises
    ------
    ConfigError
        No such recipe (lists those there are), or a key or value that is wrong (named).
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES_DIRECTORY / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES_DIRECTORY.glob("*.yaml")))
        raise ConfigError(f"no recipe '{name}'; recipes: {known}")
    try:
        return Recipe(**yaml.safe_load(path.read_text("utf-8")))
    except (yaml.YAMLError, ValidationError, TypeError) as error:
        raise ConfigError(f"{path.name}: {' '.join(str(error).split())}") from error


@dataclass(frozen=True)
class TrainingSet:
    """Preprocessed slices in memory.

    Attributes
    ----------
    images, masks : ndarray of shape (n, CACHE_SIZE, CACHE_SIZE), uint8
        Network view of each slice, and its tumour's outline there (zero where none or unknown).
    mask_known : ndarray of shape (n,), bool
        An expert's outline exists, or there is no tumour.
    targets : ndarray of shape (n, 4), float32
        1 for each class the slice may be: one for a known type, three for a tumour of unknown type.
    source, group, plane : ndarray of shape (n,), str
    outlined : ndarray of int
        Indices of the slices with an outlined tumour.
    """

    images: np.ndarray
    masks: np.ndarray
    mask_known: np.ndarray
    targets: np.ndarray
    source: np.ndarray
    group: np.ndarray
    plane: np.ndarray
    outlined: np.ndarray


def load_training_set(recipe: Recipe, data_root: Path, split: str, progress: Callable | None = None) -> TrainingSet:
    """Read one split of a recipe's sources; ``data_root`` is the Kaggle set's folder, the others lie beside it.

    All need a train split; of the others, those that have none of another split are left out. So are held-out images
    that show a training slice upside down (`data.clean_leaks`).
    """
    tables: list[pd.DataFrame] = []
    for source in recipe.sources:
        manifest = Path(source.manifest)
        table = read_manifest(
            manifest if manifest.is_file() else SPLITS_DIRECTORY / manifest,
            data_root if source.images == "." else data_root.parent / source.images,
            source.split_column,
        )
        if split == "train" or not tables or split in set(table["split"]):  # one head has nobody to hold out
            rows = select_split(table, split).assign(source=source.name)
            tables.append(rows if split == "train" else rows[~rows["path"].isin(clean_leaks()["path"])])
    return _load(pd.concat(tables, ignore_index=True), progress)


def _load(table: pd.DataFrame, progress: Callable | None) -> TrainingSet:
    n = len(table)
    images, masks = (np.zeros((n, CACHE_SIZE, CACHE_SIZE), np.uint8) for _ in range(2))
    known, targets = np.zeros(n, bool), np.zeros((n, len(CLASS_NAMES)), np.float32)
    for i, row in enumerate(table.to_dict("records")):
        pixels = read_pixels(row["file"])
        view, transform = preprocess(pixels, CACHE_SIZE)
        images[i] = np.rint(view * 255)
        mask = _outline(row, pixels.shape)
        if mask is not None:
            square = Image.fromarray(transform.to_network(mask.astype(np.uint8) * 255))
            masks[i] = np.asarray(square.resize((CACHE_SIZE, CACHE_SIZE), Image.Resampling.BILINEAR))
        known[i] = mask is not None or row["label"] == NO_TUMOR
        if row["label"] == UNKNOWN_TUMOUR:
            targets[i] = [name != NO_TUMOR for name in CLASS_NAMES]
        else:
            targets[i, CLASS_NAMES.index(row["label"])] = 1
        if progress:
            progress(i + 1, n)
    columns = {c: table.get(c, pd.Series([""] * n)).fillna("").to_numpy(str) for c in ("source", "group", "plane")}
    return TrainingSet(images, masks, known, targets, **columns, outlined=np.flatnonzero(masks.any(axis=(1, 2))))


def _outline(row: dict[str, Any], shape: tuple[int, int]) -> np.ndarray | None:
    """The row's tumour mask; of a box ("cx cy w h", relative) the ellipse inside it."""
    if isinstance(row.get("mask"), str) and row["mask"]:
        root = row["file"][: -len(row["path"])]
        mask = read_mask(root + row["mask"])
        if mask.shape != shape:
            raise DataError(f"{row['mask']}: mask is {mask.shape}, its image {shape}; expected the same size")
        return mask
    if isinstance(row.get("boxes"), str) and row["boxes"]:
        y, x = np.mgrid[: shape[0], : shape[1]]
        mask = np.zeros(shape, bool)
        for box in row["boxes"].split(";"):
            cx, cy, w, h = (float(v) for v in box.split())
            mask |= ((x / shape[1] - cx) / (w / 2)) ** 2 + ((y / shape[0] - cy) / (h / 2)) ** 2 <= 1
        return mask
    return None


def epoch_indices(data: TrainingSet, recipe: Recipe, *epoch: int) -> np.ndarray:
    """Which images an epoch sees, in order; a function of (seed, epoch) or (seed, stage, epoch)."""
    rng = np.random.default_rng([recipe.seed, *epoch])
    chosen = []
    for source in recipe.sources:
        rows = np.flatnonzero(data.source == source.name)
        order = rng.permutation(rows)
        if recipe.one_per_group:
            _, first = np.unique(data.group[order], return_index=True)
            order = order[rng.permutation(first)]
        picks = order[: source.per_epoch]
        chosen.append(np.repeat(picks, source.repeat))
    return rng.permutation(np.concatenate(chosen))


def draw_view(
    data: TrainingSet,
    recipe: Recipe,
    index: int,
    draw: tuple[int, ...],
    size: int,
    painted_away: float = PAINTED_AWAY,
    mild: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """One view of one slice; a function of (seed, draw, index) and the shares of the stage.

    Returns
    -------
    image : ndarray of shape (size, size), float32, in [0, 1]
    mask : ndarray of shape (size, size), float32, in [0, 1]
    target : ndarray of shape (4,), float32
    mask_known : bool
    """
    rng = np.random.default_rng([recipe.seed, *draw, index])
    image, mask, target = data.images[index], data.masks[index], data.targets[index]
    mask_known = bool(data.mask_known[index])
    if recipe.counterfactuals:
        image, mask, target, mask_known = _counterfactual_view(data, recipe, index, rng, painted_away)
    if recipe.augmentation == "full":
        image = augment.cut_away(image, mask, rng)
        image, mask = augment.random_affine(image, mask, size, rng, recipe.warp)
        grey = image.astype(np.float32) / 255.0
        if rng.random() < mild:
            view = augment.mild_intensity(grey, rng)
        else:
            view = augment.random_intensity(grey, rng, data.images[rng.integers(len(data.images))])
    else:
        view = _resize(image, size) / 255.0
        mask = _resize(mask, size)
        if recipe.augmentation == "brightness_contrast":
            view = np.clip((view - 0.5) * rng.uniform(0.8, 1.2) + 0.5 + rng.uniform(-0.1, 0.1), 0, 1)
    return view.astype(np.float32), mask.astype(np.float32) / 255.0, target, mask_known


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).convert("F").resize((size, size), Image.Resampling.BILINEAR), np.float32)


def _counterfactual_view(
    data: TrainingSet, recipe: Recipe, index: int, rng: np.random.Generator, painted_away: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    image, mask, target = data.images[index], data.masks[index], data.targets[index]
    known, dice = bool(data.mask_known[index]), rng.random()
    none = np.eye(len(CLASS_NAMES), dtype=np.float32)[_NONE]
    if target[_NONE] == 1:
        if dice < 0.3:
            donor = _donor(data, index, rng)
            image, mask = augment.paste_tumour(image, data.images[donor], data.masks[donor], rng)
            return image, mask, data.targets[donor] if mask.any() else target, True
        if dice < 0.4:
            painted = augment.counterfactual(image, data.masks[rng.choice(data.outlined)], rng, away=False)
            return image if painted is None else painted, mask, target, True
    elif known and mask.any():
        if dice < painted_away and (painted := augment.counterfactual(image, mask, rng, away=True)) is not None:
            return painted, np.zeros_like(mask), none, True
        if dice < painted_away + 0.12 and (painted := augment.counterfactual(image, mask, rng, away=False)) is not None:
            return painted, mask, target, True
        # Without it no number is drawn: the views of recipes that do not exchange stay what they were.
        if recipe.exchanged and data.source[index] == data.source[0] and rng.random() < recipe.exchanged:
            painted, donor = augment.counterfactual(image, mask, rng, away=True), _donor(data, index, rng)
            # Heads differ in shape: a donor's tumour may come to lie in the air beside this one.
            if painted is not None and (painted[data.masks[donor] > 127] > 12).mean() > 0.9:
                view, outline = augment.paste_tumour(painted, data.images[donor], data.masks[donor], rng)
                if outline.any():
                    return view, outline, data.targets[donor], True
    return image, mask, target, known


def _donor(data: TrainingSet, index: int, rng: np.random.Generator) -> int:
    """An outlined tumour of the first source, the only one that names a plane and a type for each; same plane."""
    donors = data.outlined[data.source[data.outlined] == data.source[0]]
    same = donors[data.plane[donors] == (data.plane[index] or "ax")]
    return int(rng.choice(same if len(same) else donors))


def mask_cells(mask: np.ndarray, cells: int) -> np.ndarray:
    """Fraction of each cell of a coarse grid that the tumour covers; float32 (cells, cells)."""
    step = mask.shape[0] // cells
    return mask.reshape(cells, step, cells, step).mean(axis=(1, 3))


def class_loss(smoothing: float, teacher_weight: float = 0.0):
    """Cross-entropy of the probability that the slice is one of the classes it may be, with label smoothing.

    With a teacher, ``y_true`` (n, 8) is the allowed classes, then its probabilities: the cross-entropy with these
    has ``teacher_weight`` of the loss.
    """
    from keras import ops

    def loss(y_true, y_pred):
        n = y_pred.shape[-1]
        log_p = ops.log(ops.clip(y_pred, 1e-7, 1.0))
        allowed = -ops.log(ops.clip(ops.sum(y_true[..., :n] * y_pred, axis=-1), 1e-7, 1.0))
        own = (1 - smoothing) * allowed - smoothing * ops.mean(log_p, axis=-1)
        if not teacher_weight:
            return own
        return (1 - teacher_weight) * own - teacher_weight * ops.sum(y_true[..., n:] * log_p, axis=-1)

    return loss


def mask_loss(y_true, y_pred):
    """Per-cell cross-entropy. ``y_true`` (n, cells, cells, 5): covered fraction, then the slice's allowed classes."""
    from keras import ops

    fraction, allowed = y_true[..., 0], y_true[..., 1:]
    tumour = -ops.log(ops.clip(ops.sum(allowed * y_pred, axis=-1), 1e-6, 1.0))
    none = -ops.log(ops.clip(y_pred[..., _NONE], 1e-6, 1.0))
    # Tumours cover few cells: they count three times.
    return ops.mean(3.0 * fraction * tumour + (1 - fraction) * none, axis=(1, 2))


def contribution_loss(y_true, y_pred):
    """Cross-entropy between where the true class's logit comes from and where its tumour lies.

    ``y_true`` as for `mask_loss`; ``y_pred`` (n, cells, cells, 4) are contributions to the logits. A logit is their
    mean, some units high: divided by 16, a lesion of a few cells can gather nearly all of the softmax over cells.
    """
    from keras import ops

    fraction, allowed = y_true[..., 0], y_true[..., 1:]
    score = ops.sum(allowed * y_pred, axis=-1) / ops.maximum(ops.sum(allowed, axis=-1), 1.0) / 16.0
    cells = fraction.shape[1] * fraction.shape[2]
    log_share = ops.log_softmax(ops.reshape(score, (-1, cells)), axis=-1)
    where = ops.reshape(fraction, (-1, cells))
    return -ops.sum(where * log_share, axis=-1) / ops.maximum(ops.sum(where, axis=-1), 1e-6)


def sample_weights(data: TrainingSet, recipe: Recipe) -> np.ndarray:
    """Weight of each slice in the loss, float32 (n,): see `Recipe.class_balance` and ``plane_balance``.

    A slice that may be several classes weighs as their mean; one of no known plane counts as axial, as most are.
    """
    if not recipe.class_balance:
        return np.ones(len(data.targets), np.float32)
    allowed = data.targets / data.targets.sum(axis=1, keepdims=True)
    plane = np.where(data.plane == "", "ax", data.plane) if recipe.plane_balance else np.full(len(allowed), "ax")
    drawn = epoch_indices(data, recipe, 0)
    cells = {p: allowed[drawn][plane[drawn] == p].sum(axis=0) for p in np.unique(plane)}
    by_class = {p: counts.sum() / np.maximum(counts, 1) for p, counts in cells.items()}
    weights = (allowed * np.stack([by_class[p] for p in plane])).sum(axis=1)
    return (weights / weights[drawn].mean()).astype(np.float32)


def train(
    recipe: Recipe,
    data_root: Path,
    run_directory: Path,
    *,
    weights: str = "none",
    start: Any = None,
    teacher: Path | None = None,
    teacher_weights: str | None = None,
    resume: bool = False,
    report: Callable[[dict[str, Any]], None] | None = None,
):
    """Train a recipe; returns the plain network (batch norm folded, mask head dropped) of the last epoch.

    Parameters
    ----------
    data_root : Path
        Folder of the Kaggle set; a recipe's other sources lie beside it.
    run_directory : Path
        Gets ``recipe.yaml``, ``stage<k>.weights.h5`` and ``state.json`` each epoch, ``history.csv``, ``curves.png``.
    weights : str
        Where ``imagenet_blocks`` come from: ``imagenet``, a file, or ``none`` (see `model.load_imagenet`).
    start : keras.Model, optional
        The finished network of the recipe that this one ``continues``; None trains that one first, in a folder of its
        name in ``run_directory``.
    teacher : Path, optional
        Run folder of the recipe's teacher; None: a folder of its name in ``run_directory``. What is not trained there
        is trained first.
    teacher_weights : str, optional
        What a teacher still to be trained starts from (`teacher.load_teacher_imagenet`), or ``none``; no default.
    resume : bool
        Go on from the checkpoint; what follows is what an unbroken run would have done.
    report : callable, optional
        Called with ``{"loading", "of"}`` while reading, and after each epoch with its row of the history and
        ``remaining_s``.

    Raises
    ------
    ConfigError
        A folder that holds another run, nothing to resume, or a teacher to train without being told from what.
    """
    import keras

    run = _Run(Path(run_directory), recipe, resume)
    loading = (lambda i, n: report({"loading": i, "of": n})) if report else None
    if run.state["stage"] == len(recipe.stages):  # finished before: only the network is asked for
        network = _build(recipe, len(recipe.stages) - 1)
        network.load_weights(run.checkpoint(len(recipe.stages) - 1))
        run.hold(start=start)
        if recipe.start_share and start is None:
            start = _train_before(recipe, data_root, run, weights, teacher_weights, report)
        return _finish(recipe, network, start, lambda: load_training_set(recipe, data_root, "val", loading))
    teachers = []
    if recipe.teacher:
        folder = teacher or run.directory / recipe.teacher
        teachers = [_train_teacher(recipe.teacher, data_root, folder, teacher_weights, report)]
    run.hold(start=start, teacher=teachers[0] if teachers else None)
    if recipe.continues and start is None:
        start = _train_before(recipe, data_root, run, weights, teacher_weights, report)
    data = load_training_set(recipe, data_root, "train", loading)
    held_out = load_training_set(recipe, data_root, "val", loading)
    keras.utils.set_random_seed(recipe.seed)
    keras.mixed_precision.set_global_policy(recipe.precision)
    try:
        if recipe.start_teaches:
            teachers.append(_in_training_precision(start))
        for number in range(run.state["stage"], len(recipe.stages)):
            network = _start_stage(recipe, number, run, weights, start, data)
            _fit_stage(recipe, number, network, data, held_out, run, report, teachers)
        return _finish(recipe, network, start, lambda: held_out)
    finally:
        keras.mixed_precision.set_global_policy("float32")


def _in_training_precision(network):
    """The same plain network, built anew under the policy that is set."""
    from brainmri.model import build_network

    copy = build_network(input_size=network.input_shape[1])
    copy.set_weights(network.get_weights())
    return copy


def _train_teacher(name: str, data_root: Path, folder: Path, weights: str | None, report):
    begun = (folder / "state.json").exists()
    if not begun and weights is None:
        raise ConfigError(
            f"{folder}: no trained {name} there; name its run with --teacher, or what it starts from with "
            "--teacher-weights (a file of scripts/teacher_weights.py, or none)"
        )
    return train(load_recipe(name), data_root, folder, weights=weights or "none", resume=begun, report=report)


def _train_before(recipe: Recipe, data_root: Path, run: _Run, weights: str, teacher_weights: str | None, report):
    """The finished network of the recipe that this one continues, in a folder of its name; trained where it is not."""
    folder = run.directory / str(recipe.continues)
    begun = (folder / "state.json").exists()
    if run.history() and not begun:
        raise ConfigError(f"{run.directory}: was started from a model that is not in it; name it again with --start")
    before = load_recipe(str(recipe.continues))
    return train(
        before, data_root, folder, weights=weights, teacher_weights=teacher_weights, resume=begun, report=report
    )


def _finish(recipe: Recipe, network, start, held_out: Callable[[], TrainingSet]):
    from brainmri.model import fold_batch_norm
    from brainmri.teacher import without_mask_head

    plain = fold_batch_norm(network) if recipe.architecture == "vgg16" else without_mask_head(network)
    if share := recipe.start_share:
        both = zip(plain.get_weights(), start.get_weights(), strict=True)
        plain.set_weights([(1 - share) * trained + share * before for trained, before in both])
    if recipe.bias_correction:
        correct_bias(plain, held_out(), recipe)
    return plain


def correct_bias(network, held_out: TrainingSet, recipe: Recipe) -> None:
    """Shift the logits' bias as `Recipe.bias_correction` says; the network is changed."""
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    from brainmri.model import LOGITS_LAYER, logits_of

    rows = np.flatnonzero(held_out.source == recipe.sources[0].name)
    size, layer = network.input_shape[1], network.get_layer(LOGITS_LAYER)
    views = np.stack([_resize(image, size) / 255.0 for image in held_out.images[rows]])
    logits, true = logits_of(network, views).astype(float), held_out.targets[rows].argmax(axis=1)

    def log_loss(x: np.ndarray) -> float:
        scaled = logits / np.exp(x[0]) + x[1:]
        return float((logsumexp(scaled, axis=1) - scaled[np.arange(len(true)), true]).mean())

    # Bounded: on a split of a few separable images the best temperature and bias are infinite.
    bounds = [(-3, 3)] + [(-5, 5)] * logits.shape[1]
    found = minimize(log_loss, np.zeros(len(bounds)), method="L-BFGS-B", bounds=bounds).x
    bias = found[1:] * np.exp(found[0])
    layer.bias.assign_add(bias - bias.mean())


class _Run:
    """A run's folder: its recipe, its state and its history. State is written last, so it never speaks of a
    checkpoint that is not there."""

    def __init__(self, directory: Path, recipe: Recipe, resume: bool):
        self.directory = directory
        state_file = directory / "state.json"
        self.state: dict[str, Any] = {"stage": 0, "epoch": 0, "elapsed_s": 0.0}
        if resume:
            before = [directory / name for name in (recipe.continues, recipe.teacher) if name]
            if not state_file.is_file() and not any(folder.is_dir() for folder in before):
                raise ConfigError(f"{directory}: nothing to resume; expected state.json from an earlier run")
            if not _same(yaml.safe_load((directory / "recipe.yaml").read_text("utf-8")), recipe):
                raise ConfigError(f"{directory}: was started with another recipe; pass the same, or another --output")
            if state_file.is_file():  # else it was still at what it continues or learns from
                self.state = json.loads(state_file.read_text())
        elif state_file.exists():
            raise ConfigError(f"{directory}: holds a run already; pass --resume to go on, or another --output")
        directory.mkdir(parents=True, exist_ok=True)
        self._write("recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))

    def hold(self, **networks) -> None:
        """Refuse to go on with other networks to start or learn from than the run began with."""
        digests = {name: _digest(network) for name, network in networks.items() if network is not None}
        before = self.state.setdefault("from", {})
        other = [name for name, digest in digests.items() if before.get(name, digest) != digest]
        if other:
            raise ConfigError(f"{self.directory}: was begun with another {', '.join(other)}; pass the same one again")
        before.update(digests)

    def checkpoint(self, number: int) -> Path:
        return self.directory / f"stage{number}.weights.h5"

    def snapshot(self, number: int, epoch: int) -> Path:
        return self.directory / f"stage{number}.epoch{epoch}.weights.h5"

    def finish_epoch(self, network, number: int, epoch: int, last: bool, row: dict[str, Any]) -> None:
        temporary = self.directory / "next.weights.h5"
        network.save_weights(temporary)
        os.replace(temporary, self.checkpoint(number))
        history = [r for r in self.history() if (int(r["stage"]), int(r["epoch"])) < (number, epoch)] + [row]
        lines = [",".join(row)] + [",".join(str(r.get(k, "")) for k in row) for r in history]
        self._write("history.csv", "\n".join(lines) + "\n")
        self.state |= {"stage": number + last, "epoch": 0 if last else epoch + 1, "elapsed_s": row["elapsed_s"]}
        self._write("state.json", json.dumps(self.state))

    def history(self) -> list[dict[str, Any]]:
        path = self.directory / "history.csv"
        return list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []

    def _write(self, name: str, text: str) -> None:
        temporary = self.directory / f"{name}.tmp"
        temporary.write_text(text, "utf-8")
        os.replace(temporary, self.directory / name)


def _digest(network) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(w).tobytes() for w in network.get_weights())).hexdigest()


def _same(stored: dict[str, Any], recipe: Recipe) -> bool:
    """Whether a stored recipe trains what this one does: other words, and fields added since, change nothing."""
    try:
        before = Recipe.model_validate(stored)
    except ValidationError:
        return False
    return before.model_dump(exclude={"description"}) == recipe.model_dump(exclude={"description"})


def _start_stage(recipe: Recipe, number: int, run: _Run, weights: str, start, data: TrainingSet):
    """The network a stage begins with: ImageNet and He, the recipe before, or the stage before it, enlarged."""
    from brainmri.model import enlarge_input, load_imagenet, unfold_batch_norm
    from brainmri.teacher import load_teacher_imagenet

    network = _build(recipe, number)
    if number == 0 and start is not None:
        size = recipe.stages[0].input_size
        if start.input_shape[1] != size:
            raise ConfigError(f"{recipe.name}: starts at {size} px, what it continues has {start.input_shape[1]} px")
        views = [draw_view(data, recipe, int(i), (0,), size)[0] for i in epoch_indices(data, recipe, 0)[:512]]
        unfold_batch_norm(start, network, as_network_batch(np.stack(views)))
    elif number == 0:
        if recipe.architecture != "vgg16" and weights != "none":
            load_teacher_imagenet(network, weights)
        elif recipe.imagenet_blocks and weights != "none":
            load_imagenet(network, weights, recipe.imagenet_blocks)
    else:
        previous = _build(recipe, number - 1)
        previous.load_weights(run.checkpoint(number - 1))
        enlarge_input(previous, network)
    frozen = recipe.stages[number].frozen_blocks
    for layer in network.layers:
        layer.trainable = not any(
            layer.name.startswith(f"block{b}_") for b in (recipe.frozen_blocks if frozen is None else frozen)
        )
    return network


def _build(recipe: Recipe, number: int):
    from brainmri.model import build_network
    from brainmri.teacher import build_teacher

    if recipe.architecture != "vgg16":
        return build_teacher(input_size=recipe.stages[number].input_size, mask_head=recipe.mask_weight > 0)
    return build_network(
        input_size=recipe.stages[number].input_size,
        normalised_blocks=recipe.normalised_blocks,
        mask_head=recipe.mask_weight > 0,
        averaged=recipe.stages[number].averaged,
    )


def _fit_stage(
    recipe: Recipe, number: int, network, data: TrainingSet, held_out: TrainingSet, run: _Run, report, teachers=()
):
    stage = recipe.stages[number]
    size = stage.input_size
    per_epoch = len(epoch_indices(data, recipe, 0))
    batches = _Batches(network, data, recipe, number, teachers)
    trained = _sharpness_aware(batches.trained, stage.sharpness) if stage.sharpness else batches.trained
    trained.compile(
        optimizer=_optimizer(recipe, stage, -(-per_epoch // recipe.batch_size)),
        loss=_losses(recipe, stage),
        loss_weights=_loss_weights(recipe, stage),
        jit_compile=False,
    )
    first = run.state["epoch"]
    if first:
        trained.optimizer.build(trained.trainable_variables)
        trained.load_weights(run.checkpoint(number))
    inputs = np.stack([_resize(image, size) / 255.0 for image in held_out.images])
    for epoch in range(first, stage.epochs):
        start = time.perf_counter()
        _seed_dropout(trained, recipe.seed, number, epoch)
        log = trained.fit(batches.of_epoch(epoch), epochs=1, shuffle=False, verbose=0).history
        row: dict[str, Any] = {"stage": number, "input_size": size, "epoch": epoch, "loss": round(log["loss"][0], 5)}
        if epoch >= stage.epochs - stage.average_epochs:
            trained.save_weights(run.snapshot(number, epoch))
            if epoch + 1 == stage.epochs:
                last = range(max(0, stage.epochs - stage.average_epochs), stage.epochs)
                _average(trained, [run.snapshot(number, e) for e in last])
                _measure_batch_statistics(trained, batches.of_epoch(epoch))
        row |= _validate(network, inputs, held_out, recipe)
        elapsed = time.perf_counter() - start
        row["elapsed_s"] = round(run.state["elapsed_s"] + elapsed, 1)
        finished = epoch + 1 == stage.epochs
        # What is trained on cached features is a part of the network; whoever comes after the stage needs all of it.
        run.finish_epoch(network if finished else trained, number, epoch, finished, row)
        if report:
            left = sum(s.epochs * (s.input_size / size) ** 1.5 for s in recipe.stages[number + 1 :])
            report(row | {"remaining_s": elapsed * (stage.epochs - epoch - 1 + left)})


class _Batches:
    """Batches of an epoch: fresh views each time, or features of the frozen blocks computed once per view."""

    def __init__(self, network, data: TrainingSet, recipe: Recipe, number: int, teachers=()):
        import keras
        import tensorflow as tf

        stage = recipe.stages[number]
        # A later stage's epochs begin at 0 again: without its number it would see the first stage's views once more.
        self.number = (number,) if number else ()
        self.teachers = [(t.input_shape[1], tf.function(partial(t, training=False))) for t in teachers]
        self.view_size = max([stage.input_size, *(size for size, _ in self.teachers)])
        if recipe.mask_weight and self.view_size % (stage.input_size // 16):
            raise ConfigError(
                f"{recipe.name}: views of {self.view_size} px, which the teacher sees, do not divide into the "
                f"{stage.input_size // 16} cells a side that a stage of {stage.input_size} px has; choose another size"
            )
        self.data, self.recipe, self.stage = data, recipe, stage
        self.weights = sample_weights(data, recipe)
        self.trained = network
        self.features: np.ndarray | None = None
        if recipe.cached_draws:
            pool = network.get_layer(f"block{max(recipe.frozen_blocks)}_pool").output
            self.trained = keras.Model(pool, network.output, name="trained")
            self.features = self._extract(keras.Model(network.input, pool))

    def _extract(self, frozen) -> np.ndarray:
        """float16 (cached_draws, n, rows, columns, channels): what the frozen blocks make of each view."""
        n, draws = len(self.data.images), self.recipe.cached_draws
        features = np.empty((draws, n, *frozen.output_shape[1:]), np.float16)
        for draw in range(draws):
            for start in range(0, n, 64):
                views = [self._view(i, draw)[0] for i in range(start, min(start + 64, n))]
                features[draw, start : start + len(views)] = frozen(as_network_batch(np.stack(views)))
        return features

    def _view(self, index: int, epoch: int, *position: int):
        stage = self.stage
        mild = stage.mild * epoch / max(stage.epochs - 1, 1)
        draw = (*self.number, epoch, *position)
        return draw_view(self.data, self.recipe, index, draw, self.view_size, stage.painted_away, mild)

    def of_epoch(self, epoch: int):
        """A ``keras.utils.PyDataset`` of one epoch."""
        import keras

        outer, order = self, epoch_indices(self.data, self.recipe, *self.number, epoch)
        size = self.recipe.batch_size

        class Epoch(keras.utils.PyDataset):
            def __len__(self) -> int:
                return -(-len(order) // size)

            def __getitem__(self, i: int):
                chosen = range(i * size, min((i + 1) * size, len(order)))
                if outer.features is not None:
                    return outer._cached(order[chosen.start : chosen.stop], epoch)
                # The position is part of the seed: an image drawn twice in an epoch gives two views.
                views = [outer._view(int(order[k]), epoch, k) for k in chosen]
                rng = np.random.default_rng([outer.recipe.seed, *outer.number, epoch, i])
                return outer._fresh(views, outer.weights[order[chosen.start : chosen.stop]], epoch, rng)

        return Epoch(workers=1, use_multiprocessing=False, max_queue_size=6)

    def _cached(self, chosen: np.ndarray, epoch: int):
        assert self.features is not None
        x = self.features[epoch % self.recipe.cached_draws, chosen].astype(np.float32)
        return x, self.data.targets[chosen], self.weights[chosen]

    def _fresh(self, views: list, weights: np.ndarray, epoch: int, rng: np.random.Generator):
        image, mask, targets, known = (np.stack(column) for column in zip(*views, strict=True))
        if mixed := round(self.stage.mixed * (1 - epoch / max(self.stage.epochs - 1, 1)) * len(image)):
            share = rng.random((mixed, 1, 1), np.float32)
            image[:mixed] = share * image[:mixed] + (1 - share) * np.roll(image, 1, axis=0)[:mixed]
            targets[:mixed], known[:mixed] = 1, False
        x, classes = as_network_batch(image), targets
        if self.teachers:
            classes = np.concatenate([targets, self._taught(x, rng)], axis=1)
            x = _resized(x, self.stage.input_size)
        if not self.recipe.mask_weight:
            return x, classes, weights
        fraction = np.stack([mask_cells(m, self.stage.input_size // 16) for m in mask])
        tumours = targets * (np.arange(len(CLASS_NAMES)) != _NONE)
        allowed = np.broadcast_to(tumours[:, None, None, :], (*fraction.shape, len(CLASS_NAMES)))
        y_mask = np.concatenate([fraction[..., None], allowed], axis=-1).astype(np.float32)
        y = {"probabilities": classes, "mask": y_mask}
        counts = {"probabilities": weights, "mask": known.astype(np.float32)}
        if self.stage.averaged:
            outlined = known & fraction.any(axis=(1, 2))
            y, counts = y | {"contributions": y_mask}, counts | {"contributions": outlined.astype(np.float32)}
        return x, y, counts

    def _taught(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A teacher's probabilities, for the views or for their mirror images.

        Which teacher and which of the two is drawn: the loss is linear in the answer, so it is on average what the mean
        of all of them would give, at the cost of one.
        """
        import tensorflow as tf

        size, answers_of = self.teachers[rng.integers(len(self.teachers))]
        x = _resized(x, size)
        return np.asarray(answers_of(tf.constant(x[:, :, ::-1] if rng.random() < 0.5 else x)))


def _resized(x: np.ndarray, size: int) -> np.ndarray:
    import tensorflow as tf

    return x if x.shape[1] == size else tf.image.resize(x, [size] * 2, antialias=True).numpy()


def _sharpness_aware(network, radius: float):
    """The same layers, trained as `Stage.sharpness` says."""
    import keras
    import tensorflow as tf

    class SharpnessAware(keras.Model):
        def train_step(self, data):
            half = tf.nest.map_structure(lambda v: v[: (tf.shape(v)[0] + 1) // 2], data)
            x, y, weights = keras.utils.unpack_x_y_sample_weight(half)
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True), weights)
            variables = [v.value for v in self.trainable_variables]
            gradients = tape.gradient(loss, variables)
            scale = radius / (tf.linalg.global_norm(gradients) + 1e-12)
            climbs = [g * scale for g in gradients]
            for variable, climb in zip(variables, climbs, strict=True):
                variable.assign_add(climb)
            log = super().train_step(data)
            for variable, climb in zip(variables, climbs, strict=True):
                variable.assign_sub(climb)
            return log

    return SharpnessAware(network.input, network.output)


def _average(network, snapshots: list[Path]) -> None:
    mean: list[np.ndarray] = []
    for path in snapshots:
        network.load_weights(path)
        weights = [np.asarray(w, np.float64) / len(snapshots) for w in network.get_weights()]
        mean = [a + b for a, b in zip(mean, weights, strict=True)] if mean else weights
    network.set_weights([w.astype(np.float32) for w in mean])


def _measure_batch_statistics(network, batches) -> None:
    """The mean of weights is no network that was trained: its batch norm needs statistics of its own."""
    for i in range(min(len(batches), 120)):
        network(batches[i][0], training=True)


def _losses(recipe: Recipe, stage: Stage):
    loss = class_loss(recipe.label_smoothing, recipe.teacher_weight if recipe.teacher else 0.0)
    if not recipe.mask_weight:
        return loss
    losses = {"probabilities": loss, "mask": mask_loss}
    return losses | {"contributions": contribution_loss} if stage.averaged else losses


def _loss_weights(recipe: Recipe, stage: Stage) -> dict[str, float] | None:
    if not recipe.mask_weight:
        return None
    weights = {"probabilities": 1.0, "mask": recipe.mask_weight}
    return weights | {"contributions": stage.contribution_weight} if stage.averaged else weights


def _optimizer(recipe: Recipe, stage: Stage, steps: int):
    import keras

    rate: Any = stage.learning_rate
    if recipe.schedule == "cosine":
        total = steps * stage.epochs
        warmup = min(steps, total // 4)
        rate = keras.optimizers.schedules.CosineDecay(
            rate / 20, total - warmup, warmup_target=rate, warmup_steps=warmup
        )
    if recipe.optimizer == "adam":
        return keras.optimizers.Adam(rate)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=recipe.weight_decay, global_clipnorm=5.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def _seed_dropout(network, *seed: int) -> None:
    """Dropout's generators are no weights and so in no checkpoint: set them from (seed, stage, epoch) instead."""
    for layer in network.layers:
        if layer.name.startswith("dropout_"):
            number = int(layer.name.removeprefix("dropout_"))
            layer.seed_generator.state.assign(np.random.SeedSequence([*seed, number]).generate_state(2))


def _validate(network, inputs: np.ndarray, held_out: TrainingSet, recipe: Recipe) -> dict[str, float]:
    """Accuracy on the first source's val split, and tumour against none in each of the others."""
    from sklearn.metrics import roc_auc_score

    from brainmri.model import logits_of

    y_prob = softmax(logits_of(network, inputs))
    tumour = held_out.targets[:, _NONE] == 0
    figures: dict[str, float] = {}
    for number, source in enumerate(recipe.sources):
        rows = held_out.source == source.name
        if not rows.any():
            continue
        if number == 0:
            right = held_out.targets[rows, y_prob[rows].argmax(axis=1)] == 1
            truth = np.clip((y_prob[rows] * held_out.targets[rows]).sum(axis=1), 1e-7, 1)
            figures |= {"val_accuracy": right.mean(), "val_loss": -np.log(truth).mean()}
        elif 0 < tumour[rows].sum() < rows.sum():
            figures[f"val_auc_{source.name}"] = roc_auc_score(tumour[rows], 1 - y_prob[rows, _NONE])
        else:
            figures[f"val_right_{source.name}"] = ((y_prob[rows, _NONE] < 0.5) == tumour[rows]).mean()
    return {k: round(float(v), 4) for k, v in figures.items()}


def plot_history(run_directory: Path) -> Path:
    """Draw ``history.csv`` as ``curves.png``: losses and validation figures by epoch."""
    from matplotlib.figure import Figure

    table = pd.read_csv(run_directory / "history.csv")
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = np.arange(1, len(table) + 1)
    for column in ("loss", "val_loss"):
        left.plot(epochs, table[column], label=column)
    for column in table.columns[table.columns.str.startswith("val_") & (table.columns != "val_loss")]:
        right.plot(epochs, table[column], label=column)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.legend()
        axes.grid(alpha=0.3)
    path = run_directory / "curves.png"
    figure.savefig(path, dpi=120)
    return path


def override(recipe: Recipe, *, epochs: int | None = None, precision: str | None = None, seed: int | None = None):
    """A recipe with some of its values replaced, checked like the file."""
    changes: dict[str, Any] = {}
    if epochs is not None:
        changes["stages"] = [stage.model_dump() | {"epochs": epochs} for stage in recipe.stages]
    if precision is not None:
        changes["precision"] = precision
    if seed is not None:
        changes["seed"] = seed
    try:
        return Recipe(**(recipe.model_dump() | changes))
    except ValidationError as error:
        raise ConfigError(f"{recipe.name}: {' '.join(str(error).split())}") from error


def lineage(
    recipe: Recipe, run_directory: Path, start: Any = None, teacher: Path | None = None
) -> list[dict[str, Any]]:
    """What a run builds on, oldest first: the recipes that it continues, and the teachers.

    Parameters
    ----------
    start : ModelCard, optional
        Card of the network that it started from; None: the run that it continues lies in ``run_directory``.
    teacher : Path, optional
        Run folder of the teacher; None: in ``run_directory``.

    Returns
    -------
    list of dict
        ``recipe``, ``role`` (``continued`` or ``taught``), ``epochs``, ``minutes``; of a model with a card also
        ``weights_sha256``.
    """
    steps: list[dict[str, Any]] = []
    if recipe.continues and start is not None:
        steps += start.recipe.get("lineage", [])
        own = {"epochs": start.recipe["epochs_run"], "minutes": start.recipe["minutes"]}
        steps.append({"recipe": recipe.continues, "role": "continued", **own, "weights_sha256": start.weights_sha256})
    elif recipe.continues:
        folder = run_directory / recipe.continues
        steps += lineage(load_recipe(recipe.continues), folder)
        steps.append({"recipe": recipe.continues, "role": "continued", **_epochs_and_minutes(folder)})
    if recipe.teacher:
        folder = teacher or run_directory / recipe.teacher
        steps.append({"recipe": recipe.teacher, "role": "taught", **_epochs_and_minutes(folder)})
    return steps


def _epochs_and_minutes(run_directory: Path) -> dict[str, Any]:
    history = pd.read_csv(run_directory / "history.csv")
    return {"epochs": len(history), "minutes": round(float(history["elapsed_s"].iloc[-1]) / 60, 1)}


def card_facts(
    recipe: Recipe, run_directory: Path, data_root: Path, start: Any = None, teacher: Path | None = None
) -> dict[str, Any]:
    """What a model card says about how and on what a run was trained: recipe, history, `lineage`, split hashes."""
    from brainmri.imaging import NETWORK_SIZE
    from brainmri.model import sha256_of

    own = _epochs_and_minutes(run_directory)
    sources = {}
    for source in recipe.sources:
        manifest = Path(source.manifest)
        manifest = manifest if manifest.is_file() else SPLITS_DIRECTORY / manifest
        table = read_manifest(manifest, data_root, source.split_column)
        sources[source.name] = {
            "manifest": manifest.name,
            "manifest_sha256": sha256_of(manifest),
            "split_column": source.split_column,
            "train": table.loc[table["split"] == "train", "label"].value_counts().sort_index().to_dict(),
        }
    return {
        "class_names": CLASS_NAMES,
        "created": time.strftime("%Y-%m-%d", time.gmtime()),
        "architecture": f"VGG16 (13 convolutions) + Dense 128 + Dense {len(CLASS_NAMES)}, batch norm folded",
        "preprocessing": {"function": "brainmri.imaging.preprocess", "version": 1, "size": NETWORK_SIZE},
        "recipe": {
            **recipe.model_dump(mode="json"),
            "epochs_run": own["epochs"],
            "minutes": own["minutes"],
            "lineage": lineage(recipe, run_directory, start, teacher),
        },
        "data": sources,
    }
