"""What a network trains on: a recipe's slices in memory, and the random views that are drawn of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

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
from brainmri.errors import DataError
from brainmri.imaging import PREPROCESSING, preprocess
from brainmri.model import sha256_of
from brainmri.recipes import PAINTED_AWAY, Recipe, Source, Stage
from brainmri.types import CLASS_NAMES, NO_TUMOR

CACHE_SIZE = 160
"""Side in pixels at which preprocessed slices wait in memory, at least; views are cut from it."""

MASK_STEP = 4
"""A view's outline is kept as the share that it covers of cells of so many pixels a side."""

_NONE = CLASS_NAMES.index(NO_TUMOR)
_CHUNK = 48
_SPAWN = get_context("spawn")
"""Fresh processes load this module alone; a fork would inherit TensorFlow's locks."""


@dataclass(frozen=True)
class TrainingSet:
    """Preprocessed slices in memory.

    Attributes
    ----------
    images, masks : ndarray of shape (n, side, side), uint8
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

    def save(self, directory: Path) -> None:
        """Write one ``.npy`` an attribute; the folder appears whole or not at all."""
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(mkdtemp(dir=directory.parent))
        for field in fields(self):
            np.save(temporary / f"{field.name}.npy", getattr(self, field.name))
        try:
            os.replace(temporary, directory)
        except OSError:
            shutil.rmtree(temporary)
            if not directory.is_dir():  # else a run beside this one was faster, with the same slices
                raise

    @classmethod
    def open(cls, directory: Path) -> TrainingSet:
        """What `save` wrote; arrays stay on disk until they are read."""
        return cls(**{field.name: np.load(directory / f"{field.name}.npy", mmap_mode="r") for field in fields(cls)})

    @cached_property
    def sha256(self) -> str:
        """Of all of it: what views are drawn from, wherever it came from."""
        digest = hashlib.sha256()
        for field in fields(self):
            values = np.ascontiguousarray(getattr(self, field.name))
            digest.update(f"{field.name} {values.dtype} {values.shape}".encode() + values.tobytes())
        return digest.hexdigest()


def manifest_file(source: Source) -> Path:
    """Where a source's manifest lies: as it says, else in ``data/splits``."""
    manifest = Path(source.manifest)
    return manifest if manifest.is_file() else SPLITS_DIRECTORY / manifest


def manifest_hashes(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of each source's manifest.

    Raises
    ------
    DataError
        One is not there.
    """
    try:
        return {source.name: sha256_of(manifest_file(source)) for source in recipe.sources}
    except OSError as error:
        raise DataError(f"{recipe.name}: a source's manifest cannot be read ({error})") from error


def load_training_set(
    recipe: Recipe,
    data_root: Path,
    split: str,
    progress: Callable | None = None,
    *,
    side: int = CACHE_SIZE,
    directory: Path | None = None,
    workers: int = 0,
) -> TrainingSet:
    """Read one split of a recipe's sources; ``data_root`` is the Kaggle set's folder, the others lie beside it.

    All need a train split; of the others, those that have none of another split are left out. So are held-out images
    that show a training slice upside down (`data.clean_leaks`).

    Parameters
    ----------
    side : int
        Pixels at which the slices wait.
    directory : Path, optional
        Where the prepared slices are kept; what is there already of the same manifests, data root and preprocessing is
        read instead.
    workers : int
        Processes that read; 0: this one.
    """
    outlines = bool(recipe.mask_weight or recipe.counterfactuals or recipe.augmentation == "full")
    if directory is not None:
        sources = [source.model_dump(include={"name", "images", "split_column"}) for source in recipe.sources]
        leaks = [] if split == "train" else list(clean_leaks()["path"])
        contents = [manifest_hashes(recipe), leaks, str(data_root.resolve())]
        directory = directory / f"{split}-{_digest([PREPROCESSING, side, split, sources, contents, outlines])}"
        if directory.is_dir():
            return TrainingSet.open(directory)
    tables: list[pd.DataFrame] = []
    for source in recipe.sources:
        table = read_manifest(
            manifest_file(source),
            data_root if source.images == "." else data_root.parent / source.images,
            source.split_column,
        )
        if split == "train" or not tables or split in set(table["split"]):  # one head has nobody to hold out
            rows = select_split(table, split).assign(source=source.name)
            tables.append(rows if split == "train" else rows[~rows["path"].isin(clean_leaks()["path"])])
    data = _load(pd.concat(tables, ignore_index=True), progress, side, workers, outlines)
    if split == "train" and recipe.counterfactuals and not len(data.outlined):
        raise DataError(
            f"{recipe.name}: counterfactuals paint and paste outlined tumours, but no training image has an outline; "
            "add masks to the manifest, or set counterfactuals: false"
        )
    if directory is not None:
        data.save(directory)
    return data


def _load(table: pd.DataFrame, progress: Callable | None, side: int, workers: int, outlines: bool) -> TrainingSet:
    n = len(table)
    images, masks = (np.zeros((n, side, side), np.uint8) for _ in range(2))
    known, targets = np.zeros(n, bool), np.zeros((n, len(CLASS_NAMES)), np.float32)
    rows = table.to_dict("records")
    with ExitStack() as opened:
        pool = opened.enter_context(ProcessPoolExecutor(workers, _SPAWN)) if workers else None
        prepare = partial(_prepared, side, outlines)
        prepared = pool.map(prepare, rows, chunksize=_CHUNK) if pool else map(prepare, rows)
        for i, (row, (image, mask)) in enumerate(zip(rows, prepared, strict=True)):
            images[i] = image
            if mask is not None:
                masks[i] = mask
            known[i] = mask is not None or row["label"] == NO_TUMOR
            if row["label"] == UNKNOWN_TUMOUR:
                targets[i] = [name != NO_TUMOR for name in CLASS_NAMES]
            else:
                targets[i, CLASS_NAMES.index(row["label"])] = 1
            if progress:
                progress(i + 1, n)
    columns = {c: table.get(c, pd.Series([""] * n)).fillna("").to_numpy(str) for c in ("source", "group", "plane")}
    return TrainingSet(images, masks, known, targets, **columns, outlined=np.flatnonzero(masks.any(axis=(1, 2))))


def _prepared(side: int, outlines: bool, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """A slice and, where they are asked for, its outline as the network sees them."""
    pixels = read_pixels(row["file"])
    view, transform = preprocess(pixels, side)
    mask = _outline(row, pixels.shape) if outlines else None
    if mask is not None:
        square = Image.fromarray(transform.to_network(mask.astype(np.uint8) * 255))
        mask = np.asarray(square.resize((side, side), Image.Resampling.BILINEAR))
    return np.rint(view * 255).astype(np.uint8), mask


def _outline(row: dict[str, Any], shape: tuple[int, int]) -> np.ndarray | None:
    """The row's tumour mask; of a box ("cx cy w h", relative) the ellipse inside it."""
    if isinstance(row.get("mask"), str) and row["mask"]:
        root = row["file"][: -len(row["path"])]
        try:
            mask = read_mask(root + row["mask"])
        except OSError as error:
            raise DataError(
                f"{root}{row['mask']}: no readable outline ({error}). Outlines are no part of the Kaggle set "
                "(docs/model.md says whose they are); recipes with mask_weight, counterfactuals or full augmentation "
                "need them, classic does not"
            ) from error
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


def epoch_indices(data: TrainingSet, recipe: Recipe, number: int) -> np.ndarray:
    """Which images the views of one epoch show, in order; a function of (view_seed, number)."""
    rng = np.random.default_rng([_seed(recipe), number])
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


def _seed(recipe: Recipe) -> int:
    return recipe.seed if recipe.view_seed is None else recipe.view_seed


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


def draw_view(
    data: TrainingSet,
    recipe: Recipe,
    index: int,
    draw: tuple[int, ...],
    size: int,
    painted_away: float = PAINTED_AWAY,
    mild: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """One view of one slice; a function of (view_seed, draw, index) and the shares of the stage.

    Returns
    -------
    image, mask : ndarray of shape (size, size), uint8
    target : ndarray of shape (4,), float32
    mask_known : bool
    """
    rng = np.random.default_rng([_seed(recipe), *draw, index])
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
        view = resize(image, size) / 255.0
        mask = np.rint(resize(mask, size)).astype(np.uint8)
        if recipe.augmentation == "brightness_contrast":
            view = np.clip((view - 0.5) * rng.uniform(0.8, 1.2) + 0.5 + rng.uniform(-0.1, 0.1), 0, 1)
    return np.rint(view * 255).astype(np.uint8), mask, target, mask_known


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """A square picture at another size, antialiased; float32, the same range."""
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


def mask_cells(masks: np.ndarray, cells: int) -> np.ndarray:
    """Share of each cell of a coarse grid that the tumour covers; (n, side, side) -> float32 (n, cells, cells)."""
    n, side, _ = masks.shape
    step = side // cells
    return masks.reshape(n, cells, step, cells, step).mean(axis=(2, 4), dtype=np.float32)


@dataclass(frozen=True)
class Drawn:
    """Views that were drawn.

    Attributes
    ----------
    index : ndarray of shape (n,), int
        The slices that they show.
    images : ndarray of shape (n, size, size), uint8
    masks : ndarray of shape (n, size / MASK_STEP, size / MASK_STEP), uint8
        255 where an outline covers the whole cell.
    targets : ndarray of shape (n, 4), float32
    mask_known : ndarray of shape (n,), bool
    """

    index: np.ndarray
    images: np.ndarray
    masks: np.ndarray
    targets: np.ndarray
    mask_known: np.ndarray


class Views:
    """A stage's views, one epoch's worth after the other: drawn when asked for or, by other processes, ahead of it.

    Parameters
    ----------
    size : int
        Side of the views in pixels.
    first : int
        Number of the stage's first epoch.
    directory : Path, optional
        Views are kept there, for every run whose recipe gives the same ones.
    workers : int
        Processes that draw; 0: this one, when asked.
    """

    def __init__(
        self,
        data: TrainingSet,
        recipe: Recipe,
        stage: Stage,
        size: int,
        *,
        first: int = 0,
        directory: Path | None = None,
        workers: int = 0,
    ):
        self.data, self.recipe, self.workers = data, recipe, workers
        self.stage, self.size, self.first = stage, size, first
        named = {"sources", "one_per_group", "draws", "augmentation", "counterfactuals", "exchanged", "warp"}
        shares = [size, stage.painted_away, stage.mild] + ([] if recipe.draws else [first, stage.epochs])
        decides = [_seed(recipe), shares, recipe.model_dump(mode="json", include=named)]
        self.directory = directory / f"views-{_digest([data.sha256, *decides])}" if directory else None
        self.begun: dict[int, list[Future]] = {}
        self.pool: ProcessPoolExecutor | None = None
        self.opened = ExitStack()

    def __enter__(self) -> Views:
        return self

    def __exit__(self, *error) -> None:
        for part in chain.from_iterable(self.begun.values()):
            part.cancel()
        self.opened.close()
        self.pool = None

    def _started(self) -> ProcessPoolExecutor:
        """The processes, started when the first view has to be drawn."""
        if self.pool is None:
            folder = Path(self.opened.enter_context(TemporaryDirectory())) / "set"
            self.data.save(folder)
            pool = ProcessPoolExecutor(self.workers, _SPAWN, _open_set, (folder, self.recipe))
            self.pool = self.opened.enter_context(pool)
        return self.pool

    def how(self, number: int) -> dict[str, Any]:
        """What `draw_view` is told about an epoch's views besides the recipe."""
        last = max(self.stage.epochs - 1, 1)
        grown = 1.0 if self.recipe.draws else min((number - self.first) / last, 1.0)
        return {"size": self.size, "painted_away": self.stage.painted_away, "mild": self.stage.mild * grown}

    def prepare(self, number: int) -> None:
        """Have an epoch's views drawn while other work goes on."""
        if self.workers and number not in self.begun and not self._kept(number):
            order = epoch_indices(self.data, self.recipe, number)
            chunks = [range(k, min(k + _CHUNK, len(order))) for k in range(0, len(order), _CHUNK)]
            self.begun[number] = [
                self._started().submit(_draw_in_process, order[c.start : c.stop], number, c.start, self.how(number))
                for c in chunks
            ]

    def of(self, number: int) -> Drawn:
        """An epoch's views; a function of what the recipe says and ``number``."""
        if (path := self._kept(number)) is not None:
            with np.load(path) as archive:
                return Drawn(**archive)
        if self.workers:
            self.prepare(number)
            drawn = _joined([part.result() for part in self.begun.pop(number)])
        else:
            order = epoch_indices(self.data, self.recipe, number)
            drawn = _draw(self.data, self.recipe, order, number, 0, self.how(number))
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            temporary = self.directory / f"{number}.{os.getpid()}.npz"
            np.savez(temporary, **{field.name: getattr(drawn, field.name) for field in fields(drawn)})
            os.replace(temporary, self.directory / f"{number}.npz")
        return drawn

    def _kept(self, number: int) -> Path | None:
        path = self.directory / f"{number}.npz" if self.directory else None
        return path if path is not None and path.is_file() else None


def _draw(data: TrainingSet, recipe: Recipe, order: np.ndarray, number: int, first: int, how: dict) -> Drawn:
    # The position is part of the seed: an image drawn twice in an epoch gives two views.
    views = [draw_view(data, recipe, int(i), (number, first + k), **how) for k, i in enumerate(order)]
    images, masks, targets, known = (np.stack(column) for column in zip(*views, strict=True))
    side = how["size"] // MASK_STEP
    cells = np.rint(mask_cells(masks, side)).astype(np.uint8)
    return Drawn(order, images, cells, targets, known)


def _joined(parts: list[Drawn]) -> Drawn:
    columns = [asdict(part) for part in parts]
    return Drawn(**{name: np.concatenate([c[name] for c in columns]) for name in columns[0]})


_SET: tuple[TrainingSet, Recipe] | None = None


def _open_set(directory: Path, recipe: Recipe) -> None:
    global _SET
    _SET = (TrainingSet.open(directory), recipe)


def _draw_in_process(order: np.ndarray, number: int, first: int, how: dict) -> Drawn:
    if _SET is None:
        raise RuntimeError("the process has no training set; start it with _open_set")
    return _draw(*_SET, order, number, first, how)


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
