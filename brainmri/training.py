"""Train by recipe: fit, checkpoint, resume, log. Killing a run loses a minute, or the epoch it was in."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from pydantic import ValidationError

from brainmri.data import read_manifest
from brainmri.decision import softmax
from brainmri.errors import ConfigError
from brainmri.imaging import NETWORK_SIZE, PREPROCESSING, as_network_batch
from brainmri.model import sha256_of
from brainmri.recipes import Recipe, Stage, load_recipe
from brainmri.types import CLASS_NAMES, NO_TUMOR
from brainmri.views import (
    CACHE_SIZE,
    MASK_STEP,
    Drawn,
    TrainingSet,
    Views,
    draw_view,
    epoch_indices,
    load_training_set,
    manifest_file,
    manifest_hashes,
    mask_cells,
    resize,
    sample_weights,
)

CHECKPOINT_S = 60.0
"""Seconds of training that are lost at most, and one epoch, when a run is killed."""

_NONE = CLASS_NAMES.index(NO_TUMOR)


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


def train(
    recipe: Recipe,
    data_root: Path,
    run_directory: Path,
    *,
    weights: str = "none",
    start: Any = None,
    teacher: Any = None,
    teacher_weights: str | None = None,
    views: Path | None = None,
    workers: int = 0,
    resume: bool = False,
    report: Callable[[dict[str, Any]], None] | None = None,
):
    """Train a recipe; returns the plain network (batch norm folded, mask head dropped) that its last stage ends with.

    That is its last epoch's, or the mean of the last epochs' weights (`Stage.average_epochs`); none is stopped early.

    Parameters
    ----------
    data_root : Path
        Folder of the Kaggle set; a recipe's other sources lie beside it.
    run_directory : Path
        Gets ``recipe.yaml``; at a stage's end, after an epoch and, where those are short, once a minute
        ``stage<k>.weights.h5``, ``history.csv`` and ``state.json``.
    weights : str
        Where ``imagenet_blocks`` come from: ``imagenet``, a file, or ``none`` (see `model.load_imagenet`).
    start : keras.Model, optional
        The finished network of the recipe that this one ``continues``; None trains that one first, in a folder of its
        name in ``run_directory``.
    teacher : Path or keras.Model, optional
        Folder of the runs of the recipe's teachers; None: a folder of its name in ``run_directory``. What is not
        trained there is trained first. Or the finished network of a recipe that has one teacher.
    teacher_weights : str, optional
        What a teacher still to be trained starts from (`teacher.load_teacher_imagenet`), or ``none``; no default.
    views : Path, optional
        Prepared slices and drawn views are kept there, for other runs (`views.Views`).
    workers : int
        Processes that draw views; 0: this one. The views are the same.
    resume : bool
        Go on from the checkpoint, with the manifests that the run began with; what follows is what an unbroken run
        would have done.
    report : callable, optional
        Called with ``{"loading", "of"}`` while reading, and after each epoch with its row of the history and
        ``remaining_s``.

    Raises
    ------
    ConfigError
        A folder that holds another run, nothing to resume, a manifest that has changed since, a teacher to train
        without being told from what, or a stage that Keras' backend can't train.
    """
    import keras

    from brainmri.model import copy_network, dtype_policy

    if any(stage.sharpness for stage in recipe.stages) and keras.backend.backend() != "tensorflow":
        raise ConfigError(
            f"{recipe.name}: sharpness needs TensorFlow, Keras runs on {keras.backend.backend()}; unset KERAS_BACKEND"
        )
    if start is not None and not recipe.continues:
        raise ConfigError(f"{recipe.name} continues no recipe and would not start from that network; leave it out")
    run = _Run(Path(run_directory), recipe, resume)
    loading = (lambda i, n: report({"loading": i, "of": n})) if report else None

    def load(split: str) -> TrainingSet:
        recipes = [recipe, *(teacher_recipes(recipe) if recipe.teacher else [])]
        side = max(CACHE_SIZE, *(stage.input_size for each in recipes for stage in each.stages))
        return load_training_set(recipe, data_root, split, loading, side=side, directory=views, workers=workers)

    how: dict[str, Any] = {"views": views, "workers": workers, "report": report}
    with dtype_policy(recipe.precision):
        if run.state["stage"] == len(recipe.stages):  # finished before: only the network is asked for
            network = _build(recipe, len(recipe.stages) - 1)
            network.load_weights(run.checkpoint(len(recipe.stages) - 1))
            run.hold(start=[start])
            if recipe.start_share and start is None:
                start = _train_before(recipe, data_root, run, weights, teacher_weights, how)
            return _finish(recipe, network, start, lambda: load("val"))
        teachers = []
        if recipe.teacher and isinstance(teacher, keras.Model):
            teachers = [copy_network(teacher)]
        elif recipe.teacher:
            folder = teacher or run.directory / recipe.teacher
            of_each = {"weights": weights, "teacher_weights": teacher_weights} | how
            teachers = [_train_teacher(each, data_root, folder, **of_each) for each in teacher_recipes(recipe)]
        run.hold(start=[start], teachers=teachers)
        if recipe.continues and start is None:
            start = _train_before(recipe, data_root, run, weights, teacher_weights, how)
        if recipe.start_teaches:
            teachers.append(copy_network(start))
        data, held_out = load("train"), load("val")
        keras.utils.set_random_seed(recipe.seed)
        for number in range(run.state["stage"], len(recipe.stages)):
            network = _start_stage(recipe, number, run, weights, start, data)
            if not number and start is None and (recipe.imagenet_blocks or recipe.architecture != "vgg16"):
                run.note_weights(weights)
            _fit_stage(recipe, number, network, data, held_out, run, report, teachers, views, workers)
        return _finish(recipe, network, start, lambda: held_out)


def teacher_recipes(recipe: Recipe) -> list[Recipe]:
    """The recipes of its teachers: alike but for their seeds."""
    first = load_recipe(str(recipe.teacher))
    return [first.model_copy(update={"seed": first.seed + k}) for k in range(recipe.teachers)]


def _train_teacher(recipe: Recipe, data_root: Path, folder: Path, *, weights: str, teacher_weights: str | None, **how):
    from brainmri.model import copy_network

    run = folder / f"seed-{recipe.seed}"
    begun = (run / "state.json").exists()
    if recipe.architecture == "vgg16":
        network = train(recipe, data_root, run, weights=weights, teacher_weights=teacher_weights, resume=begun, **how)
        return copy_network(network)  # of float32: it answers in the precision that its pupil trains in
    if not begun and teacher_weights is None:
        raise ConfigError(
            f"{run}: no trained {recipe.name} there; name the folder of its runs with --teacher, or what it starts "
            "from with --teacher-weights (a file of scripts/teacher_weights.py, or none)"
        )
    return train(recipe, data_root, run, weights=teacher_weights or "none", resume=begun, **how)


def _train_before(recipe: Recipe, data_root: Path, run: _Run, weights: str, teacher_weights: str | None, how: dict):
    """The finished network of the recipe that this one continues, in a folder of its name; trained where it is not."""
    folder = run.directory / str(recipe.continues)
    begun = (folder / "state.json").exists()
    if run.history() and not begun:
        raise ConfigError(f"{run.directory}: was started from a model that is not in it; name it again with --start")
    before = load_recipe(str(recipe.continues))
    return train(before, data_root, folder, weights=weights, teacher_weights=teacher_weights, resume=begun, **how)


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
    views = np.stack([resize(image, size) / 255.0 for image in held_out.images[rows]])
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
        self.rows: list[dict[str, Any]] = []
        self.written = time.monotonic()
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
        manifests = manifest_hashes(recipe)
        begun_with = self.state.setdefault("manifests", manifests)  # an older run does not say
        if other := [manifest_file(s).name for s in recipe.sources if begun_with.get(s.name) != manifests[s.name]]:
            raise ConfigError(
                f"{directory}: was begun with other contents of {', '.join(other)}; put those back, or pass another "
                "--output"
            )
        directory.mkdir(parents=True, exist_ok=True)
        self._write("recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))

    def hold(self, **networks) -> None:
        """Refuse to go on with other networks to start or learn from than the run began with."""
        given = {name: [_digest(n) for n in some if n is not None] for name, some in networks.items()}
        before = self.state.setdefault("from", {})
        other = [name for name, digests in given.items() if digests and before.get(name, digests) != digests]
        if other:
            raise ConfigError(f"{self.directory}: was begun with another {', '.join(other)}; pass the same one again")
        before.update({name: digests for name, digests in given.items() if digests})

    def note_weights(self, weights: str) -> None:
        """Keep what the first stage's weights came from, for the card; a run that goes on said so when it began."""
        if weights != "none" and not self.history():
            found = {"sha256": sha256_of(weights)} if weights != "imagenet" else {}
            self.state["weights"] = {"name": Path(weights).name} | found

    def checkpoint(self, number: int) -> Path:
        return self.directory / f"stage{number}.weights.h5"

    def snapshot(self, number: int, epoch: int) -> Path:
        return self.directory / f"stage{number}.epoch{epoch}.weights.h5"

    def finish_epoch(self, network, number: int, epoch: int, last: bool, row: dict[str, Any]) -> None:
        """Log an epoch; ``network`` is written at a stage's end, and where a minute has gone since it was."""
        self.rows.append(row)
        self.state |= {"stage": number + last, "epoch": 0 if last else epoch + 1, "elapsed_s": row["elapsed_s"]}
        if not last and time.monotonic() - self.written < CHECKPOINT_S:
            return
        temporary = self.directory / "next.weights.h5"
        network.save_weights(temporary)
        os.replace(temporary, self.checkpoint(number))
        begun = (int(self.rows[0]["stage"]), int(self.rows[0]["epoch"]))
        history = [r for r in self.history() if (int(r["stage"]), int(r["epoch"])) < begun] + self.rows
        lines = [",".join(row)] + [",".join(str(r.get(k, "")) for k in row) for r in history]
        self._write("history.csv", "\n".join(lines) + "\n")
        self._write("state.json", json.dumps(self.state))
        self.written = time.monotonic()

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
    from brainmri.model import build_network, dtype_policy, enlarge_input, load_imagenet, unfold_batch_norm
    from brainmri.teacher import load_teacher_imagenet

    network = _build(recipe, number)
    if number:
        previous = _build(recipe, number - 1)
        previous.load_weights(run.checkpoint(number - 1))
        enlarge_input(previous, network)
    elif start is not None:
        size = recipe.stages[0].input_size
        if start.input_shape[1] != size:
            raise ConfigError(f"{recipe.name}: starts at {size} px, what it continues has {start.input_shape[1]} px")
        unfold_batch_norm(start, network, _some_views(recipe, data))
    elif recipe.architecture != "vgg16" and weights != "none":
        load_teacher_imagenet(network, weights)
    elif recipe.imagenet_blocks and weights != "none":
        if set(recipe.imagenet_blocks) & set(recipe.normalised_blocks):
            # Batch norm would scale and shift what ImageNet's kernels answer: it is put in so that nothing changes.
            with dtype_policy("float32"):
                plain = build_network(input_size=network.input_shape[1], averaged=recipe.stages[0].averaged)
            load_imagenet(plain, weights, recipe.imagenet_blocks)
            unfold_batch_norm(plain, network, _some_views(recipe, data))
        else:
            load_imagenet(network, weights, recipe.imagenet_blocks)
    frozen = recipe.stages[number].frozen_blocks
    for layer in network.layers:
        layer.trainable = not any(
            layer.name.startswith(f"block{b}_") for b in (recipe.frozen_blocks if frozen is None else frozen)
        )
    return network


def _some_views(recipe: Recipe, data: TrainingSet) -> np.ndarray:
    """A few hundred of a recipe's first views, float32 (n, size, size, 3) in [0, 1]."""
    chosen = epoch_indices(data, recipe, 0)[:512]
    views = [draw_view(data, recipe, int(i), (0,), recipe.stages[0].input_size)[0] for i in chosen]
    return as_network_batch(np.stack(views) / np.float32(255))


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
    recipe: Recipe,
    number: int,
    network,
    data: TrainingSet,
    held_out: TrainingSet,
    run: _Run,
    report,
    teachers: list,
    directory: Path | None,
    workers: int,
):
    import keras

    from brainmri.model import LOGITS_LAYER

    stage = recipe.stages[number]
    size = stage.input_size
    view_size = max([size, *(t.input_shape[1] for t in teachers)])
    # A later stage's views are others than the first one's.
    before = sum(s.epochs for s in recipe.stages[:number])
    with Views(data, recipe, stage, view_size, first=before, directory=directory, workers=workers) as views:
        batches = _Batches(network, data, recipe, number, views, teachers)
        trained = _sharpness_aware(batches.trained, stage.sharpness) if stage.sharpness else batches.trained
        trained.compile(
            optimizer=_optimizer(recipe, stage, batches.per_epoch),
            loss=_losses(recipe, stage),
            loss_weights=_loss_weights(recipe, stage),
            jit_compile=_jit(),
        )
        # Built before the first step, or TensorFlow traces that twice.
        trained.optimizer.build(trained.trainable_variables)
        first = run.state["epoch"]
        if first:
            trained.load_weights(run.checkpoint(number))
        inputs = as_network_batch(np.stack([resize(image, size) / 255.0 for image in held_out.images]))
        answers = keras.Model(network.input, network.get_layer(LOGITS_LAYER).output)
        answers.jit_compile = _jit()
        for epoch in range(first, stage.epochs):
            start = time.perf_counter()
            _seed_dropout(network, recipe.seed, number, epoch)
            log = trained.fit(batches.of_epoch(epoch), epochs=1, shuffle=False, verbose=0).history
            row: dict[str, Any] = {"stage": number, "input_size": size, "epoch": epoch}
            row["loss"] = round(log["loss"][0], 5)
            if epoch >= stage.epochs - stage.average_epochs:
                network.save_weights(run.snapshot(number, epoch))
                if epoch + 1 == stage.epochs:
                    last = range(max(0, stage.epochs - stage.average_epochs), stage.epochs)
                    _average(network, [run.snapshot(number, e) for e in last])
                    _measure_batch_statistics(trained, batches.of_epoch(epoch))
            row |= _validate(answers.predict(inputs, batch_size=64, verbose=0), held_out, recipe)
            elapsed = time.perf_counter() - start
            row["elapsed_s"] = round(run.state["elapsed_s"] + elapsed, 1)
            finished = epoch + 1 == stage.epochs
            # Whoever comes after the stage needs the whole network, not what of it was trained on cached features.
            run.finish_epoch(network if finished else trained, number, epoch, finished, row)
            if report:
                left = sum(s.epochs * (s.input_size / size) ** 1.5 for s in recipe.stages[number + 1 :])
                report(row | {"remaining_s": elapsed * (stage.epochs - epoch - 1 + left)})


def _of_views(network, view_size: int):
    """The network that sees grey views, uint8 (n, view_size, view_size), made smaller to its own size."""
    import keras
    from keras import layers, ops

    size = network.input_shape[1]

    class Shown(layers.Layer):
        def call(self, view):
            x = ops.cast(view, "float32")[..., None] / 255.0
            if view_size != size:
                x = ops.image.resize(x, (size, size), antialias=True)
            return ops.repeat(x, 3, axis=-1)

    view = keras.Input((view_size, view_size), dtype="uint8", name="view")
    model = keras.Model(view, network(Shown(dtype="float32", name="shown")(view)), name="of_views")
    model.jit_compile = _jit()
    return model


def _jit() -> bool:
    """JAX knows nothing else; on TensorFlow XLA takes longer to compile than it saves."""
    import keras

    return keras.backend.backend() == "jax"


class _Batches:
    """Batches of an epoch: fresh views each time, or features of the frozen blocks computed once per view."""

    def __init__(self, network, data: TrainingSet, recipe: Recipe, number: int, views: Views, teachers=()):
        import keras

        stage = recipe.stages[number]
        size, view_size = stage.input_size, views.size
        if recipe.mask_weight and (view_size // MASK_STEP) % (size // 16):
            raise ConfigError(
                f"{recipe.name}: views of {view_size} px, which the teacher sees, do not divide into the {size // 16} "
                f"cells a side that a stage of {size} px has; choose another size"
            )
        self.data, self.recipe, self.stage, self.number, self.views = data, recipe, stage, number, views
        self.teachers = [_of_views(t, view_size) for t in teachers]
        self.weights = sample_weights(data, recipe)
        self.untaught = np.isin(data.source, [source.name for source in recipe.sources if not source.taught])
        n = len(epoch_indices(data, recipe, 0))
        self.size = min(recipe.batch_size, n)
        # What a whole number of batches leaves over waits for another epoch: XLA compiles for one size.
        self.per_epoch = n // self.size
        self.features: np.ndarray | None = None
        if recipe.cached_draws:
            pool = network.get_layer(f"block{max(recipe.frozen_blocks)}_pool").output
            self.trained = keras.Model(pool, network.output, name="trained")
            self.features = self._extract(keras.Model(network.input, pool))
        else:
            self.trained = _of_views(network, view_size)

    def _extract(self, frozen) -> np.ndarray:
        """float16 (cached_draws, n, rows, columns, channels): what the frozen blocks make of each view."""
        n, draws = len(self.data.images), self.recipe.cached_draws
        features = np.empty((draws, n, *frozen.output_shape[1:]), np.float16)
        for draw in range(draws):
            for start in range(0, n, 64):
                chosen = range(start, min(start + 64, n))
                views = [draw_view(self.data, self.recipe, i, (draw,), **self.views.how(draw))[0] for i in chosen]
                features[draw, start : chosen.stop] = frozen(as_network_batch(np.stack(views) / np.float32(255)))
        return features

    def _draw(self, epoch: int) -> int:
        number = self.views.first + epoch
        return number % self.recipe.draws if self.recipe.draws else number

    def of_epoch(self, epoch: int):
        """A ``keras.utils.PyDataset`` of one epoch."""
        import keras

        outer, size = self, self.size
        if self.features is None:
            drawn = self.views.of(self._draw(epoch))
            if epoch + 1 < self.stage.epochs:
                self.views.prepare(self._draw(epoch + 1))
            order = np.arange(len(drawn.index))
            if self.recipe.draws:
                order = np.random.default_rng([self.recipe.seed, self.number, epoch]).permutation(order)
        else:
            order = epoch_indices(self.data, self.recipe, self.views.first + epoch)

        class Epoch(keras.utils.PyDataset):
            def __len__(self) -> int:
                return outer.per_epoch

            def __getitem__(self, i: int):
                chosen = order[i * size : (i + 1) * size]
                if outer.features is not None:
                    return outer._cached(chosen, epoch)
                return outer._fresh(
                    drawn, chosen, epoch, np.random.default_rng([outer.recipe.seed, outer.number, epoch, i])
                )

        return Epoch(workers=1, use_multiprocessing=False, max_queue_size=6)

    def _cached(self, chosen: np.ndarray, epoch: int):
        assert self.features is not None
        x = self.features[epoch % self.recipe.cached_draws, chosen].astype(np.float32)
        return x, self.data.targets[chosen], self.weights[chosen]

    def _fresh(self, drawn: Drawn, chosen: np.ndarray, epoch: int, rng: np.random.Generator):
        image, mask = drawn.images[chosen], drawn.masks[chosen]
        targets, known = drawn.targets[chosen], drawn.mask_known[chosen]
        weights = self.weights[drawn.index[chosen]]
        if self.recipe.draws:  # each view comes again: as itself, or as its mirror image
            mirrored = rng.random(len(image)) < 0.5
            image[mirrored], mask[mirrored] = image[mirrored, :, ::-1], mask[mirrored, :, ::-1]
        if mixed := round(self.stage.mixed * (1 - epoch / max(self.stage.epochs - 1, 1)) * len(image)):
            share, grey = rng.random((mixed, 1, 1), np.float32), image.astype(np.float32)
            image[:mixed] = np.rint(share * grey[:mixed] + (1 - share) * np.roll(grey, 1, axis=0)[:mixed])
            targets[:mixed], known[:mixed] = 1, False
        classes = targets
        if self.teachers:
            answers, untaught = self._taught(image, rng), self.untaught[drawn.index[chosen]]
            if not self.recipe.edited_taught:
                untaught |= (targets != self.data.targets[drawn.index[chosen]]).any(axis=1)
            untaught[:mixed] = False
            answers[untaught] = targets[untaught] / targets[untaught].sum(axis=1, keepdims=True)
            classes = np.concatenate([targets, answers], axis=1)
        if not self.recipe.mask_weight:
            return image, classes, weights
        fraction = mask_cells(mask, self.stage.input_size // 16) / np.float32(255)
        tumours = targets * (np.arange(len(CLASS_NAMES)) != _NONE)
        allowed = np.broadcast_to(tumours[:, None, None, :], (*fraction.shape, len(CLASS_NAMES)))
        y_mask = np.concatenate([fraction[..., None], allowed], axis=-1).astype(np.float32)
        y = {"probabilities": classes, "mask": y_mask}
        counts = {"probabilities": weights, "mask": known.astype(np.float32)}
        if self.stage.averaged:
            outlined = known & fraction.any(axis=(1, 2))
            y, counts = y | {"contributions": y_mask}, counts | {"contributions": outlined.astype(np.float32)}
        return image, y, counts

    def _taught(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A teacher's probabilities, for the views or for their mirror images.

        Which teacher and which of the two is drawn: the loss is linear in the answer, so it is on average what the mean
        of all of them would give, at the cost of one.
        """
        teacher = self.teachers[rng.integers(len(self.teachers))]
        return np.array(teacher.predict_on_batch(image[:, :, ::-1] if rng.random() < 0.5 else image))


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


def _validate(logits: np.ndarray, held_out: TrainingSet, recipe: Recipe) -> dict[str, float]:
    """Accuracy on the first source's val split, and tumour against none in each of the others."""
    from sklearn.metrics import roc_auc_score

    y_prob = softmax(logits)
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


def lineage(recipe: Recipe, run_directory: Path, start: Any = None, teacher: Any = None) -> list[dict[str, Any]]:
    """What a run builds on, oldest first: the recipes that it continues, and the teachers.

    Parameters
    ----------
    start : ModelCard, optional
        Card of the network that it started from; None: the run that it continues lies in ``run_directory``.
    teacher : Path or ModelCard, optional
        Folder of the teachers' runs, or the card of the one that taught; None: in ``run_directory``.

    Returns
    -------
    list of dict
        ``recipe``, ``role`` (``continued`` or ``taught``), ``epochs``, ``minutes``; ``weights`` (name, sha256) where
        it began from published ones; of a teacher its ``seed``, of a model with a card ``weights_sha256``.
    """
    steps: list[dict[str, Any]] = []
    if recipe.continues and start is not None:
        steps += _steps_of_card(start, "continued")
    elif recipe.continues:
        folder = run_directory / recipe.continues
        steps += lineage(load_recipe(recipe.continues), folder)
        steps.append({"recipe": recipe.continues, "role": "continued", **_cost_and_weights(folder)})
    if recipe.teacher and teacher is not None and not isinstance(teacher, Path):
        steps += _steps_of_card(teacher, "taught")
    elif recipe.teacher:
        folder = teacher or run_directory / recipe.teacher
        for each in teacher_recipes(recipe):
            run = folder / f"seed-{each.seed}"
            steps += lineage(each, run)
            steps.append({"recipe": each.name, "role": "taught", "seed": each.seed, **_cost_and_weights(run)})
    return steps


def _steps_of_card(card: Any, role: str) -> list[dict[str, Any]]:
    made = card.recipe
    own = {"recipe": made["name"], "role": role, "epochs": made["epochs_run"], "minutes": made["minutes"]}
    own |= {"weights": made["weights"]} if "weights" in made else {}
    return [*made.get("lineage", []), own | {"weights_sha256": card.weights_sha256}]


def _cost_and_weights(run_directory: Path) -> dict[str, Any]:
    history = pd.read_csv(run_directory / "history.csv")
    weights = json.loads((run_directory / "state.json").read_text()).get("weights")
    cost = {"epochs": len(history), "minutes": round(float(history["elapsed_s"].iloc[-1]) / 60, 1)}
    return cost | ({"weights": weights} if weights else {})


def card_facts(
    recipe: Recipe, run_directory: Path, data_root: Path, start: Any = None, teacher: Any = None
) -> dict[str, Any]:
    """What a model card says about how and on what a run was trained: recipe, history, `lineage`, hashes of splits and
    of published weights."""
    own = _cost_and_weights(run_directory)
    sources = {}
    for source in recipe.sources:
        manifest = manifest_file(source)
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
        "preprocessing": {"function": "brainmri.imaging.preprocess", "version": PREPROCESSING, "size": NETWORK_SIZE},
        "recipe": {
            **recipe.model_dump(mode="json"),
            "epochs_run": own["epochs"],
            **{name: own[name] for name in ("minutes", "weights") if name in own},
            "lineage": lineage(recipe, run_directory, start, teacher),
        },
        "data": sources,
    }
