"""Recipes, views and the training loop, on a miniature VGG16 and drawn pictures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from brainmri import augment, recipes, teacher, training, views
from brainmri.errors import ConfigError, DataError
from brainmri.imaging import PREPROCESSING
from brainmri.types import CLASS_NAMES

NONE = CLASS_NAMES.index("notumor")


@pytest.fixture(autouse=True)
def _every_epoch_is_written(monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    """24 discs; those of a tumour class hold a bright spot whose mask is known. Returns the manifest."""
    root = tmp_path_factory.mktemp("discs")
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[-1:1:64j, -1:1:64j]
    lines = ["path,label,split,group,mask,plane"]
    for i in range(24):
        label, split = CLASS_NAMES[i % 4], "val" if i >= 20 else "train"
        head = (rows**2 + columns**2 < 0.8) * 110 + rng.normal(0, 6, (64, 64))
        spot = (rows - 0.2) ** 2 + (columns - rng.uniform(-0.4, 0.4)) ** 2 < 0.03
        mask = ""
        if label != "notumor":
            head[spot] = 230
            mask = f"mask{i}.png"
            Image.fromarray((spot * 255).astype(np.uint8)).save(root / mask)
        Image.fromarray(head.clip(0, 255).astype(np.uint8)).save(root / f"{i}.png")
        lines.append(f"{i}.png,{label},{split},{i // 2},{mask},ax")
    (root / "m.csv").write_text("\n".join(lines) + "\n")
    return root / "m.csv"


def _recipe(manifest: Path, **changes) -> recipes.Recipe:
    values = {
        "name": "tiny",
        "sources": [{"name": "discs", "manifest": str(manifest), "images": "."}],
        "stages": [{"input_size": 32, "epochs": 2, "learning_rate": 1e-3}],
        "normalised_blocks": [1, 2, 3, 4, 5],
        "batch_size": 4,
    }
    return recipes.Recipe(**(values | changes))


def test_shipped_recipes_are_valid():
    for path in recipes.RECIPES_DIRECTORY.glob("*.yaml"):
        recipe = recipes.load_recipe(path.stem)
        assert recipe.name == path.stem
        for other in (recipe.continues, recipe.teacher):
            assert other is None or recipes.load_recipe(other)
        for source in recipe.sources:
            table = pd.read_csv(views.SPLITS_DIRECTORY / source.manifest, dtype=str)
            assert "train" in set(table[source.split_column])
    pupil, teacher_of_it = recipes.load_recipe("patient"), recipes.load_recipe("patient-teacher")
    some = SimpleNamespace(sha256="of both")
    shared = {
        views.Views(some, recipe, stage, 192, first=first, directory=Path("kept")).directory
        for recipe in (pupil, teacher_of_it.model_copy(update={"seed": 12}))
        for first, stage in enumerate(recipe.stages)
    }
    assert len(shared) == 1  # teachers and pupil see the same views
    twin = recipes.override(recipes.load_recipe("release"), masks=False)
    assert (twin.name, twin.mask_weight, twin.seed) == (
        "release-without-masks",
        0.0,
        recipes.load_recipe("release").seed,
    )
    classic = recipes.load_recipe("classic")
    assert (classic.optimizer, classic.stages[0].learning_rate, classic.frozen_blocks) == ("adam", 1e-4, (1, 2, 3, 4))


def test_wrong_recipes_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"recipes: .*classic"):
        recipes.load_recipe("nonsense")
    (tmp_path / "r.yaml").write_text("name: r\nsources: []\nstages: []\nepoch: 3\n")
    with pytest.raises(ConfigError, match="epoch"):
        recipes.load_recipe(str(tmp_path / "r.yaml"))
    (tmp_path / "r.yaml").write_text(
        "name: r\nsources: [{name: a, manifest: m.csv, images: .}]\nstages: [{input_size: 32, epochs: 1, "
        "learning_rate: 1.0e-3}]\nteacher: t\ncached_draws: 2\n"
    )
    with pytest.raises(ConfigError, match="neither teacher nor draws"):
        recipes.load_recipe(str(tmp_path / "r.yaml"))


def test_views_depend_on_seed_draw_and_index_only(collection):
    recipe = _recipe(collection, counterfactuals=True, mask_weight=1.0)
    data = views.load_training_set(recipe, collection.parent, "train")
    before = data.images.copy()
    for index in range(8):
        one = views.draw_view(data, recipe, index, (3, 1), 64)
        two = views.draw_view(data, recipe, index, (3, 1), 64)
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)
        assert one[0].dtype == one[1].dtype == np.uint8
        assert one[0].max() > 100
    other = views.draw_view(data, recipe, 0, (4, 1), 64)[0]
    assert not np.array_equal(other, views.draw_view(data, recipe, 0, (3, 1), 64)[0])
    np.testing.assert_array_equal(data.images, before)


def test_counterfactual_views_keep_label_and_mask_together(collection):
    recipe = _recipe(collection, counterfactuals=True)
    data = views.load_training_set(recipe, collection.parent, "train")
    turned = {"away": 0, "pasted": 0}
    for index in range(len(data.images)):
        for draw in range(12):
            _, mask, target, known = views.draw_view(data, recipe, index, (draw, 0), 64)
            if known:
                assert (target[NONE] == 1) == (not mask.any())
            turned["away"] += bool(data.targets[index, NONE] == 0 and target[NONE] == 1)
            turned["pasted"] += bool(data.targets[index, NONE] == 1 and target[NONE] == 0)
    assert turned["away"] > 5
    assert turned["pasted"] > 5


def test_an_epoch_draws_one_image_a_group(collection):
    recipe = _recipe(collection)
    data = views.load_training_set(recipe, collection.parent, "train")
    order = views.epoch_indices(data, recipe, 0)
    assert sorted(data.group[order]) == sorted(set(data.group))
    orders = {tuple(sorted(views.epoch_indices(data, recipe, e))) for e in range(8)}
    assert len(orders) > 1


def test_without_grouping_an_epoch_sees_every_image(collection):
    recipe = _recipe(collection, one_per_group=False)
    data = views.load_training_set(recipe, collection.parent, "train")
    assert sorted(views.epoch_indices(data, recipe, 0)) == list(range(len(data.images)))


def test_a_stage_may_paint_no_tumour_away(collection):
    recipe = _recipe(collection, counterfactuals=True)
    data = views.load_training_set(recipe, collection.parent, "train")
    tumour = int(data.outlined[0])

    def none_views(share: float) -> int:
        drawn = [views.draw_view(data, recipe, tumour, (0, k), 32, share) for k in range(40)]
        return sum(target[NONE] == 1 for _, _, target, _ in drawn)

    assert none_views(0.0) == 0
    assert 0 < none_views(0.3) < none_views(0.9)


def test_exchanged_tumours_bring_their_type_and_outline(collection):
    recipe = _recipe(collection, counterfactuals=True, exchanged=1.0, augmentation="none")
    data = views.load_training_set(recipe, collection.parent, "train")
    tumour = int(data.outlined[0])
    drawn = [views.draw_view(data, recipe, tumour, (0, k), 32, 0.0) for k in range(60)]
    kept = [v for v in drawn if (v[2] == data.targets[tumour]).all()]
    other = [v for v in drawn if not (v[2] == data.targets[tumour]).all()]
    assert len(other) > 10, "tumours of other types are put in"
    assert all(target.sum() == 1 and target[NONE] == 0 and mask.max() > 0 and known for _, mask, target, known in drawn)
    none = views.draw_view(data, recipe.model_copy(update={"exchanged": 0.0}), tumour, (0, 0), 32, 0.0)
    assert (none[2] == data.targets[tumour]).all()
    assert kept, "and so are those of its own"


def test_bent_views_keep_tumour_and_outline_together():
    rows, columns = np.mgrid[:80, :80]
    disc = (np.hypot(rows - 45, columns - 30) < 10).astype(np.uint8) * 255
    straight, _ = augment.random_affine(disc, disc, 40, np.random.default_rng(3))
    changed = []
    for seed in range(10):
        image, mask = augment.random_affine(disc, disc, 40, np.random.default_rng(seed), warp=0.03)
        np.testing.assert_array_equal(image, mask)
        plain, _ = augment.random_affine(disc, disc, 40, np.random.default_rng(seed))
        changed.append((image != plain).mean())
        assert 0.5 < image.sum() / max(plain.sum(), 1) < 2
    assert min(changed) > 0
    nearly, _ = augment.random_affine(disc, disc, 40, np.random.default_rng(3), warp=1e-6)
    assert np.abs(nearly.astype(int) - straight).mean() < 1, "without a move the mesh is the affine map"


@pytest.mark.usefixtures("tiny_blocks")
def test_classes_and_planes_weigh_the_same(collection):
    recipe = _recipe(collection, class_balance=True, one_per_group=False)
    data = views.load_training_set(recipe, collection.parent, "train")
    plane = np.where(np.arange(len(data.plane)) % 5 == 0, "sa", "")
    data = replace(data, plane=plane)
    classes = data.targets.argmax(axis=1)
    by_class = views.sample_weights(data, recipe)
    np.testing.assert_allclose(by_class.mean(), 1, rtol=1e-6)
    totals = np.bincount(classes, by_class)
    np.testing.assert_allclose(totals, totals[0], rtol=1e-5)
    by_plane = views.sample_weights(data, recipe.model_copy(update={"plane_balance": True}))
    for p in ("sa", ""):
        totals = np.bincount(classes[plane == p], by_plane[plane == p])
        np.testing.assert_allclose(totals, (plane == p).sum() / 4, rtol=1e-5)
    assert (views.sample_weights(data, recipe.model_copy(update={"class_balance": False})) == 1).all()


def test_a_slice_of_an_unknown_type_weighs_as_its_classes_mean(collection):
    recipe = _recipe(collection, class_balance=True, one_per_group=False)
    data = views.load_training_set(recipe, collection.parent, "train")
    targets = data.targets.copy()
    targets[0] = [1, 1, 0, 1]
    weights = views.sample_weights(replace(data, targets=targets), recipe)
    others = [weights[1:][targets[1:, c] == 1][0] for c in (0, 1, 3)]
    np.testing.assert_allclose(weights[0], np.mean(others), rtol=1e-5)


def test_cutting_away_leaves_the_tumour_and_the_rest_alone():
    rng = np.random.default_rng(0)
    image = np.full((80, 80), 100, np.uint8)
    mask = np.zeros_like(image)
    mask[5:20, 30:50] = 255  # near the upper rim: lines there are not drawn
    cut = [augment.cut_away(image, mask, rng, share=1.0) for _ in range(60)]
    assert all((c[mask > 0] == 100).all() for c in cut)
    black = [(c == 0).mean() for c in cut]
    assert min(black) == 0
    assert 0.05 < max(black) < 0.4
    assert all(set(np.unique(c)) <= {0, 100} for c in cut)
    assert augment.cut_away(image, mask, rng, share=0.0) is image


def test_mild_views_stay_closer_than_full_ones():
    rng = np.random.default_rng(0)
    image = np.clip(np.add.outer(np.linspace(0, 0.6, 64), np.linspace(0, 0.4, 64)), 0, 1).astype(np.float32)
    mild = [augment.mild_intensity(image, rng) for _ in range(30)]
    full = [augment.random_intensity(image, rng) for _ in range(30)]
    assert all(v.dtype == np.float32 and v.min() >= 0 and v.max() <= 1 for v in mild)
    change = [np.mean([np.abs(v - image).mean() for v in views]) for views in (mild, full)]
    assert change[0] < 0.7 * change[1]


def test_sharpness_descends_from_the_worst_point_nearby():
    import keras

    x = keras.Input((1,))
    network = keras.Model(x, keras.layers.Dense(1, use_bias=False, name="only")(x))
    kernel = network.get_layer("only").kernel
    kernel.assign([[1.0]])
    trained = training._sharpness_aware(network, 0.5)
    trained.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse", jit_compile=False)
    # Loss w² has gradient 2w; from w = 1 the worst point within 0.5 is 1.5.
    trained.fit(np.ones((2, 1), np.float32), np.zeros((2, 1), np.float32), batch_size=2, verbose=0)
    np.testing.assert_allclose(np.asarray(kernel), [[1.0 - 0.1 * 3.0]], rtol=1e-5)


def test_sharpness_without_tensorflow_is_refused(collection, tmp_path, monkeypatch):
    stage = {"input_size": 32, "epochs": 1, "learning_rate": 1e-3, "sharpness": 0.05}
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    with pytest.raises(ConfigError, match="needs TensorFlow"):
        training.train(_recipe(collection, stages=[stage]), collection.parent, tmp_path)
    assert not (tmp_path / "recipe.yaml").exists()


def test_the_last_stage_averages_and_thaws(collection, tmp_path):
    stage = {"input_size": 32, "epochs": 2, "learning_rate": 1e-3}
    frozen = {"frozen_blocks": [1, 2], "normalised_blocks": [3, 4, 5]}
    recipe = _recipe(collection, **frozen, stages=[stage, stage | {"frozen_blocks": [], "average_epochs": 2}])
    training.train(recipe, collection.parent, tmp_path)
    import h5py

    def read(name: str, layer: str) -> np.ndarray:
        with h5py.File(tmp_path / name) as file:
            return np.asarray(file[f"layers/{layer}/vars/0"])

    first, last = (f"stage{k}.weights.h5" for k in (0, 1))
    assert not np.allclose(read(first, "conv2d"), read(last, "conv2d"))
    snapshots = [f"stage1.epoch{epoch}.weights.h5" for epoch in (0, 1)]
    for layer in ("conv2d", "dense"):
        both = [read(name, layer) for name in snapshots]
        assert not np.allclose(*both)
        np.testing.assert_allclose(read(last, layer), sum(both) / 2, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("tiny_blocks")
def test_a_stage_may_average_positions_and_hold_grad_cam_to_the_outlines(collection, tmp_path):
    stage = {"input_size": 64, "epochs": 1, "learning_rate": 1e-3}
    averaged = stage | {"averaged": True, "contribution_weight": 0.5, "average_epochs": 1}
    recipe = _recipe(collection, stages=[stage, averaged], mask_weight=1.0)
    network = training.train(recipe, collection.parent, tmp_path)
    again = training.train(recipe, collection.parent, tmp_path, resume=True)
    np.testing.assert_allclose(again.get_weights()[-2], network.get_weights()[-2])
    kernel = network.get_layer("dense").kernel.numpy()
    positions = np.split(kernel, 4)
    np.testing.assert_allclose(positions[0], positions[3])


@pytest.mark.usefixtures("tiny_blocks")
def test_a_recipe_may_continue_another(collection, tmp_path, monkeypatch):
    first = _recipe(collection, name="first")
    recipe = _recipe(collection, continues="first", stages=[{"input_size": 32, "epochs": 1, "learning_rate": 1e-9}])
    monkeypatch.setattr(training, "load_recipe", {"first": first}.__getitem__)
    whole = training.train(recipe, collection.parent, tmp_path / "whole")  # trains the first one, too
    before = training.train(first, collection.parent, tmp_path / "whole" / "first", resume=True)
    given = training.train(recipe, collection.parent, tmp_path / "given", start=before)
    for a, b in zip(whole.get_weights(), given.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    images = np.random.default_rng(0).uniform(0, 1, (4, 32, 32, 3)).astype(np.float32)
    # At next to no learning rate it is what it started from, but for batch statistics.
    assert np.abs(np.asarray(whole(images)) - np.asarray(before(images))).max() < 0.1

    def stop(event):
        if "loss" in event:
            raise InterruptedError

    with pytest.raises(InterruptedError):  # within what it continues
        training.train(recipe, collection.parent, tmp_path / "killed", report=stop)
    resumed = training.train(recipe, collection.parent, tmp_path / "killed", resume=True)
    np.testing.assert_allclose(resumed.get_weights()[0], whole.get_weights()[0], atol=1e-5)
    fast = recipe.model_copy(update={"stages": (recipe.stages[0].model_copy(update={"learning_rate": 1e-3}),)})
    trained = training.train(fast, collection.parent, tmp_path / "fast", start=before)
    mean = training.train(
        fast.model_copy(update={"start_share": 0.25}), collection.parent, tmp_path / "mean", start=before
    )
    for a, b, c in zip(mean.get_weights(), trained.get_weights(), before.get_weights(), strict=True):
        np.testing.assert_allclose(a, 0.75 * b + 0.25 * c, atol=1e-5)
    with pytest.raises(ConfigError, match="name it again with --start"):
        training.train(fast.model_copy(update={"start_share": 0.25}), collection.parent, tmp_path / "mean", resume=True)
    larger = _recipe(collection, continues="first", stages=[{"input_size": 64, "epochs": 1, "learning_rate": 1e-3}])
    with pytest.raises(ConfigError, match="starts at 64 px"):
        training.train(larger, collection.parent, tmp_path / "larger", start=before)


@pytest.mark.usefixtures("tiny_blocks")
def test_a_recipe_may_learn_from_a_teacher(collection, tmp_path, monkeypatch):
    stage = {"input_size": 64, "epochs": 1, "learning_rate": 1e-3}
    first = _recipe(collection, name="first", architecture="efficientnet-lite2", mask_weight=1.0, stages=[stage])
    monkeypatch.setattr(training, "load_recipe", {"first": first}.__getitem__)
    monkeypatch.setattr(teacher, "STAGES", tuple((1, *shape) for _, *shape in teacher.STAGES))
    monkeypatch.setattr(teacher, "DEPTH", 1.0)
    recipe = _recipe(collection, teacher="first", teacher_weight=1.0, mask_weight=1.0)
    alone = training.train(recipe.model_copy(update={"teacher": None}), collection.parent, tmp_path / "alone")
    with pytest.raises(ConfigError, match="no trained first there"):
        training.train(recipe, collection.parent, tmp_path / "untold")
    whole = training.train(recipe, collection.parent, tmp_path / "whole", teacher_weights="none")  # trains both
    given = training.train(recipe, collection.parent, tmp_path / "given", teacher=tmp_path / "whole" / "first")
    assert not (tmp_path / "given" / "first").exists()

    def stop(event):
        if "loss" in event:
            raise InterruptedError

    with pytest.raises(InterruptedError):  # after the teacher's only epoch
        training.train(recipe, collection.parent, tmp_path / "killed", teacher_weights="none", report=stop)
    resumed = training.train(recipe, collection.parent, tmp_path / "killed", resume=True)
    np.testing.assert_allclose(resumed.get_weights()[0], whole.get_weights()[0], atol=1e-5)
    for a, b in zip(whole.get_weights(), given.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.abs(whole.get_weights()[0] - alone.get_weights()[0]).max() > 1e-4


@pytest.mark.usefixtures("tiny_blocks")
def test_a_teacher_may_be_a_finished_vgg16(collection, tmp_path, monkeypatch):
    stage = {"input_size": 32, "epochs": 1, "learning_rate": 1e-3}
    first = _recipe(collection, name="first", seed=4, stages=[stage])
    monkeypatch.setattr(training, "load_recipe", {"first": first}.__getitem__)
    recipe = _recipe(collection, teacher="first", teacher_weight=0.5, stages=[stage])
    whole = training.train(recipe, collection.parent, tmp_path / "whole")  # trains both
    finished = training.train(first, collection.parent, tmp_path / "whole" / "first" / "seed-4", resume=True)
    given = training.train(recipe, collection.parent, tmp_path / "given", teacher=finished)
    assert not (tmp_path / "given" / "first").exists()
    for a, b in zip(whole.get_weights(), given.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def _halves(size: int, answer: float | None = None):
    """A teacher that answers how bright the left and right half of what it sees are, or always the same."""
    import keras
    from keras import ops

    class Halves(keras.layers.Layer):
        def call(self, x):
            halves = ops.mean(ops.reshape(x, (-1, size, 2, size // 2, 3)), axis=(1, 3, 4))
            halves = ops.concatenate([halves, 0 * halves], axis=1)
            return halves if answer is None else 0 * halves + answer

    x = keras.Input((size, size, 3))
    return keras.Model(x, Halves()(x))


def _batches(recipe, data, number=0, teachers=(), size=32):
    from brainmri.model import build_network

    network = build_network(input_size=32, mask_head=recipe.mask_weight > 0)
    first = sum(stage.epochs for stage in recipe.stages[:number])
    drawn = views.Views(data, recipe, recipe.stages[number], size, first=first)
    return training._Batches(network, data, recipe, number, drawn, teachers)


@pytest.mark.usefixtures("tiny_blocks")
def test_a_view_is_the_same_for_teacher_and_student(collection):
    data = views.load_training_set(_recipe(collection), collection.parent, "train")
    recipe = _recipe(collection, teacher="first", teacher_weight=0.5, mask_weight=1.0)
    batches, mirrored = _batches(recipe, data, teachers=[_halves(64)], size=64), []
    for epoch in range(6):
        x, y, _ = batches.of_epoch(epoch)[0]
        assert (x.shape, x.dtype) == ((4, 64, 64), np.uint8)
        halves = x.reshape(4, 64, 2, 32).mean(axis=(1, 3)) / 255
        answers = y["probabilities"][:, 4:6]
        distance = [np.abs(answers - way).max() for way in (halves, halves[:, ::-1])]
        assert min(distance) < 1e-4 < max(distance)
        mirrored.append(distance[1] < distance[0])
        assert y["mask"].shape == (4, 2, 2, 5)
    assert 0 < sum(mirrored) < 6


@pytest.mark.usefixtures("tiny_blocks")
def test_each_of_two_teachers_answers_in_its_turn(collection):
    data = views.load_training_set(_recipe(collection), collection.parent, "train")
    recipe = _recipe(collection, teacher="first", teacher_weight=0.5)
    batches = _batches(recipe, data, teachers=[_halves(64, 0.1), _halves(32, 0.9)], size=64)
    answers = {float(batches.of_epoch(epoch)[0][1][0, 4]) for epoch in range(8)}
    assert answers == {np.float32(0.1), np.float32(0.9)}


def test_a_network_sees_a_larger_view_made_smaller():
    import keras

    x = keras.Input((32, 32, 3))
    shown = training._of_views(keras.Model(x, x + 0), 64)
    view = np.kron(np.random.default_rng(0).integers(0, 255, (2, 8, 8)), np.ones((8, 8))).astype(np.uint8)
    seen = np.asarray(shown(view))
    assert seen.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(seen[..., 0], seen[..., 2])
    cells = view.reshape(2, 32, 2, 32, 2).mean(axis=(2, 4)) / 255
    assert np.abs(seen[..., 0] - cells)[:, 1::4, 1::4].max() < 0.05  # inside the blocks, where filters agree


@pytest.mark.usefixtures("tiny_blocks")
def test_of_a_mixture_only_the_teacher_says_what_it_is(collection):
    stage = {"input_size": 32, "epochs": 3, "learning_rate": 1e-3, "mixed": 0.5, "averaged": True}
    recipe = _recipe(collection, teacher="first", teacher_weight=0.5, mask_weight=1.0, stages=[stage])
    plain = _recipe(collection, teacher="first", teacher_weight=0.5, mask_weight=1.0, stages=[stage | {"mixed": 0}])
    data = views.load_training_set(recipe, collection.parent, "train")
    batches, alone = (_batches(r, data, teachers=[_halves(32)]) for r in (recipe, plain))
    for epoch, mixed in ((0, 2), (1, 1), (2, 0)):
        x, y, counts = batches.of_epoch(epoch)[0]
        single, labels, _ = alone.of_epoch(epoch)[0]
        np.testing.assert_array_equal(y["probabilities"][:mixed, :4], 1)
        np.testing.assert_array_equal(counts["mask"][:mixed], 0)
        np.testing.assert_array_equal(counts["contributions"][:mixed], 0)
        np.testing.assert_array_equal(x[mixed:], single[mixed:])
        halves = x.reshape(4, 32, 2, 16).mean(axis=(1, 3)) / 255  # the mixture is what the teacher answers for
        answers = y["probabilities"][:, 4:6]
        assert min(np.abs(answers - way).max() for way in (halves, halves[:, ::-1])) < 1e-4
        np.testing.assert_array_equal(y["probabilities"][mixed:, :4], labels["probabilities"][mixed:, :4])
        for k in range(mixed):
            a, b = (single[i].ravel().astype(float) for i in (k, k - 1))
            share = (x[k].ravel() - b) @ (a - b) / ((a - b) @ (a - b))
            assert 0 < share < 1
            np.testing.assert_allclose(x[k].ravel(), share * a + (1 - share) * b, atol=1)


@pytest.mark.usefixtures("tiny_blocks")
def test_of_a_source_that_is_not_taught_the_labels_alone_count(collection):
    first, *others = _recipe(collection).sources
    taught = _recipe(collection, teacher="first", teacher_weight=0.5)
    alone = _recipe(
        collection, teacher="first", teacher_weight=0.5, sources=[first.model_copy(update={"taught": False})]
    )
    assert not others
    data = views.load_training_set(taught, collection.parent, "train")
    for recipe, answer in ((taught, 0.9), (alone, None)):
        _, y, _ = _batches(recipe, data, teachers=[_halves(32, 0.9)]).of_epoch(0)[0]
        expected = y[:, :4] / y[:, :4].sum(axis=1, keepdims=True) if answer is None else np.full((4, 4), answer)
        np.testing.assert_allclose(y[:, 4:], expected, rtol=1e-6)


@pytest.mark.usefixtures("tiny_blocks")
def test_of_an_edited_view_what_was_done_to_it_counts_alone(collection):
    stage = {"input_size": 32, "epochs": 1, "learning_rate": 1e-3, "painted_away": 0.6}
    taught = {"teacher": "first", "teacher_weight": 0.5, "counterfactuals": True, "batch_size": 10, "stages": [stage]}
    both = [_recipe(collection, **taught, edited_taught=asked) for asked in (True, False)]
    data = views.load_training_set(both[0], collection.parent, "train")
    (_, asked, _), (_, spared, _) = (_batches(r, data, teachers=[_halves(32, 0.9)]).of_epoch(0)[0] for r in both)
    order = views.epoch_indices(data, both[0], 0)[:10]
    edited = (asked[:, :4] != data.targets[order]).any(axis=1)
    assert 0 < edited.sum() < 10
    np.testing.assert_allclose(asked[:, 4:], 0.9, rtol=1e-6)
    np.testing.assert_allclose(spared[~edited, 4:], 0.9, rtol=1e-6)
    np.testing.assert_array_equal(spared[edited, 4:], spared[edited, :4])


@pytest.mark.usefixtures("tiny_blocks")
def test_epochs_cycle_over_the_draws_in_another_order_and_mirrored(collection):
    stage = {"input_size": 32, "epochs": 4, "learning_rate": 1e-3}
    recipe = _recipe(collection, draws=2, stages=[stage], batch_size=20)
    data = views.load_training_set(recipe, collection.parent, "train")
    batches = _batches(recipe, data)

    def as_sets(epoch: int) -> tuple[list, set]:
        x = batches.of_epoch(epoch)[0][0]
        return [v.tobytes() for v in x], {min(v.tobytes(), v[:, ::-1].tobytes()) for v in x}

    (first, views_0), (_, views_1), (again, views_2) = (as_sets(epoch) for epoch in range(3))
    assert views_0 == views_2 != views_1
    assert first != again
    assert 0 < len(set(first) & set(again)) < len(first)  # some came as themselves, some as mirror images


@pytest.mark.parametrize("recipe_changes", [{}, {"draws": 2, "counterfactuals": True, "mask_weight": 1.0}])
def test_processes_draw_the_same_views_and_a_folder_keeps_them(collection, tmp_path, monkeypatch, recipe_changes):
    # A page's AppTest leaves the page behind as the main module, and a spawned process would run it.
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    recipe = _recipe(collection, **recipe_changes)
    data = views.load_training_set(recipe, collection.parent, "train")
    kept = views.load_training_set(recipe, collection.parent, "train", directory=tmp_path, workers=2)
    kept.save(next(tmp_path.glob("train-*")))  # as a run beside it would, a little later
    assert [p.name.split("-")[0] for p in tmp_path.iterdir()] == ["train"]
    monkeypatch.setattr(views, "_load", None)  # nothing is read again
    opened = views.load_training_set(recipe, collection.parent, "train", directory=tmp_path)
    for other in (kept, opened):
        for name in ("images", "masks", "targets", "group", "outlined"):
            np.testing.assert_array_equal(getattr(data, name), getattr(other, name))
    stage = recipe.stages[0]
    alone = views.Views(data, recipe, stage, 32).of(1)
    with views.Views(data, recipe, stage, 32, directory=tmp_path, workers=2) as drawing:
        drawing.prepare(1)
        drawn = drawing.of(1)
    (file,) = tmp_path.glob("views-*/1.npz")
    written = file.stat().st_mtime_ns
    read = views.Views(data, recipe, stage, 32, directory=tmp_path).of(1)
    for other in (drawn, read):
        for name in ("index", "images", "masks", "targets", "mask_known"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(other, name))
    assert file.stat().st_mtime_ns == written
    seeded = recipe.model_copy(update={"seed": 7})
    assert views.Views(data, seeded, stage, 32, directory=tmp_path).directory != file.parent
    same = seeded.model_copy(update={"view_seed": recipe.seed})
    assert views.Views(data, same, stage, 32, directory=tmp_path).directory == file.parent


def test_kept_slices_are_those_of_the_manifest_and_the_data(collection, tmp_path, monkeypatch):
    """A split made anew, or another copy of the data, is read: what was a test image must not stay a training image."""
    table = pd.read_csv(collection, dtype=str, keep_default_na=False)
    table.to_csv(tmp_path / "m.csv", index=False)
    recipe, kept = _recipe(tmp_path / "m.csv"), {"directory": tmp_path / "kept"}
    before = views.load_training_set(recipe, collection.parent, "train", **kept)
    swapped = table.assign(split=table["split"].map({"train": "val", "val": "train"}))
    swapped.to_csv(tmp_path / "m.csv", index=False)
    after = views.load_training_set(recipe, collection.parent, "train", **kept)
    assert (len(before.images), len(after.images)) == (20, 4)
    table.to_csv(tmp_path / "m.csv", index=False)
    assert len(views.load_training_set(recipe, collection.parent, "train", **kept).images) == 20
    assert len(list((tmp_path / "kept").iterdir())) == 2
    other = tmp_path / "other"
    other.symlink_to(collection.parent)  # the same folder by another name
    views.load_training_set(recipe, other, "train", **kept)
    assert len(list((tmp_path / "kept").iterdir())) == 2
    held_out = views.load_training_set(recipe, collection.parent, "val", **kept)
    monkeypatch.setattr(views, "clean_leaks", lambda: pd.DataFrame({"path": ["20.png"]}))
    fewer = views.load_training_set(recipe, collection.parent, "val", **kept)
    assert (len(held_out.images), len(fewer.images)) == (4, 3)
    monkeypatch.setattr(views, "PREPROCESSING", "preprocess-128-another")
    monkeypatch.setattr(views, "_load", lambda *a: (_ for _ in ()).throw(InterruptedError))
    with pytest.raises(InterruptedError):
        views.load_training_set(recipe, collection.parent, "train", **kept)
    with pytest.raises(DataError, match="manifest cannot be read"):
        views.load_training_set(_recipe(tmp_path / "gone.csv"), collection.parent, "train", **kept)


def test_drawn_views_are_those_of_the_slices(collection, tmp_path):
    plain = _recipe(collection, augmentation="brightness_contrast")
    outlined = plain.model_copy(update={"mask_weight": 1.0})  # its views are the same but for the outlines
    folders = set()
    for recipe in (plain, outlined):
        data = views.load_training_set(recipe, collection.parent, "train")
        folders.add(views.Views(data, recipe, recipe.stages[0], 32, directory=tmp_path).directory)
    images = data.images.copy()
    images[3, 80, 80] += 1
    changed = replace(data, images=images)
    folders.add(views.Views(changed, outlined, outlined.stages[0], 32, directory=tmp_path).directory)
    assert len(folders) == 3


def test_mild_views_grow_where_every_epoch_is_fresh(collection):
    stage = {"input_size": 32, "epochs": 3, "learning_rate": 1e-3, "mild": 0.6}
    fresh, cycling = (_recipe(collection, stages=[stage], draws=draws) for draws in (0, 2))
    data = views.load_training_set(fresh, collection.parent, "train")
    growing = views.Views(data, fresh, fresh.stages[0], 32, first=5)
    assert [growing.how(5 + epoch)["mild"] for epoch in range(3)] == pytest.approx([0, 0.3, 0.6])
    assert views.Views(data, cycling, cycling.stages[0], 32).how(0)["mild"] == 0.6


def test_outlines_are_read_where_a_recipe_uses_them(collection, tmp_path):
    table = pd.read_csv(collection, dtype=str, keep_default_na=False)
    table["path"] = [str(collection.parent / path) for path in table["path"]]
    table.assign(mask=np.where(table["mask"] == "", "", "gone.png")).to_csv(tmp_path / "m.csv", index=False)
    classic = _recipe(tmp_path / "m.csv", augmentation="brightness_contrast")
    data = views.load_training_set(classic, tmp_path, "train")
    assert not data.masks.any()
    for uses in ({"mask_weight": 1.0}, {"augmentation": "full"}):
        with pytest.raises(DataError, match=r"gone\.png: no readable outline"):
            views.load_training_set(classic.model_copy(update=uses), tmp_path, "train")
    table.assign(mask="").to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(DataError, match="no training image has an outline"):
        views.load_training_set(classic.model_copy(update={"counterfactuals": True}), tmp_path, "train")


@pytest.mark.parametrize("wrong", ["stages: []", "sources: []", "cached_draws: 2", ""])
def test_recipes_that_could_not_be_trained_are_refused(collection, tmp_path, wrong):
    lines = training.yaml.safe_dump(
        _recipe(collection).model_dump(mode="json") | (training.yaml.safe_load(wrong) or {})
    )
    (tmp_path / "r.yaml").write_text(lines if wrong else "")
    with pytest.raises(ConfigError, match=wrong.split(":")[0] or "valid dictionary"):
        recipes.load_recipe(str(tmp_path / "r.yaml"))


def _sizes(*stages) -> list[dict]:
    return [{"input_size": size, "epochs": 1, "learning_rate": 1e-3, "averaged": mean} for size, mean in stages]


@pytest.mark.parametrize("sizes", [(64, 96), (96, 64), (128, 160), (32, 96, 128)])
def test_stages_that_the_dense_kernel_does_not_fit_are_refused(collection, sizes):
    with pytest.raises(ValueError, match=f"from {sizes[-2]} to {sizes[-1]} px the dense kernel"):
        _recipe(collection, stages=_sizes(*((size, False) for size in sizes)))
    _recipe(collection, stages=_sizes(*((size, True) for size in sizes)))
    teacher_of_it = {"architecture": "efficientnet-lite2", "stages": _sizes(*((size, False) for size in sizes))}
    _recipe(collection, **teacher_of_it)


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize("stages", [((64, True), (96, False)), ((96, False), (64, True)), ((96, False), (32, False))])
def test_stages_of_other_sizes_that_fit_are_trained(collection, tmp_path, stages):
    network = training.train(_recipe(collection, stages=_sizes(*stages)), collection.parent, tmp_path)
    assert network.input_shape[1] == stages[-1][0]


def test_a_start_that_would_not_be_used_is_refused(collection, tmp_path):
    with pytest.raises(ConfigError, match="continues no recipe"):
        training.train(_recipe(collection), collection.parent, tmp_path, start=_halves(32))


@pytest.mark.parametrize(
    "wrong",
    [
        {"start_teaches": True},
        {"stages": [{"input_size": 32, "epochs": 1, "learning_rate": 1e-3, "mixed": 0.5}]},
        {"teacher": "first", "start_teaches": True, "continues": "before"},
        {"teacher": "first", "teacher_weight": 0.5, "start_teaches": True},
        {"start_share": 0.5},
    ],
)
def test_what_needs_a_teacher_names_one(collection, wrong):
    with pytest.raises(ValueError, match=r"where a teacher answers|where a recipe continues another"):
        _recipe(collection, **wrong)


@pytest.mark.usefixtures("tiny_blocks")
def test_the_network_that_a_recipe_starts_from_may_teach(collection, tmp_path, monkeypatch):
    stage = {"input_size": 32, "epochs": 1, "learning_rate": 1e-3}
    first = _recipe(collection, name="first", stages=[stage])
    before = _recipe(collection, name="before", stages=[stage])
    monkeypatch.setattr(training, "load_recipe", {"first": first, "before": before}.__getitem__)
    recipe = _recipe(
        collection,
        continues="before",
        teacher="first",
        teacher_weight=1.0,
        start_teaches=True,
        precision="mixed_bfloat16",
    )
    kept: list = []
    batches = training._Batches
    monkeypatch.setattr(training, "_Batches", lambda *a: kept.append(a[-1]) or batches(*a))
    whole = training.train(recipe, collection.parent, tmp_path / "whole", teacher_weights="none")
    assert [len(teachers) for teachers in kept] == [0, 0, 2]
    started = training.train(before, collection.parent, tmp_path / "whole" / "before", resume=True)
    for a, b in zip(kept[-1][1].get_weights(), started.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert kept[-1][1].get_layer("block5_conv3").compute_dtype == "bfloat16"
    assert kept[-1][1].get_layer("logits").compute_dtype == "float32"
    assert np.abs(started.get_weights()[0] - whole.get_weights()[0]).max() > 1e-5

    def stop(event):
        if "loss" in event and event["epoch"] == 0:
            raise InterruptedError

    long = recipe.model_copy(
        update={"stages": (recipe.stages[0].model_copy(update={"epochs": 2, "mixed": 0.5}),), "precision": "float32"}
    )
    given = {"start": started, "teacher": tmp_path / "whole" / "first"}
    unbroken = training.train(long, collection.parent, tmp_path / "unbroken", **given)
    with pytest.raises(InterruptedError):
        training.train(long, collection.parent, tmp_path / "broken", report=stop, **given)
    with pytest.raises(ConfigError, match="was begun with another start"):
        training.train(long, collection.parent, tmp_path / "broken", resume=True, **(given | {"start": whole}))
    resumed = training.train(long, collection.parent, tmp_path / "broken", resume=True, **given)
    for a, b in zip(unbroken.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.usefixtures("tiny_blocks")
def test_batch_norm_is_put_into_imagenets_blocks_without_a_change(collection, tmp_path):
    import keras

    from brainmri.model import build_network, load_imagenet

    published = [layer for layer in build_network(input_size=32).layers if "_conv" in layer.name]
    arrays = {f"{x.name}/{part}": np.asarray(getattr(x, part)) for x in published for part in ("kernel", "bias")}
    np.savez(tmp_path / "vgg16.npz", **arrays)
    recipe = _recipe(collection, imagenet_blocks=[1, 2, 3, 4, 5], normalised_blocks=[3, 4, 5])
    data = views.load_training_set(recipe, collection.parent, "train")
    network = training._start_stage(recipe, 0, None, str(tmp_path / "vgg16.npz"), None, data)
    plain = build_network(input_size=32)
    load_imagenet(plain, str(tmp_path / "vgg16.npz"))
    seen = training._some_views(recipe, data)
    found, expected = (
        np.asarray(keras.Model(model.input, model.get_layer(name).output)(seen))
        for model, name in ((network, "block5_conv3_relu"), (plain, "block5_conv3"))
    )
    assert expected.max() > 0
    np.testing.assert_allclose(found, expected, atol=1e-3 * expected.max())
    assert network.get_layer("block3_conv1_bn").gamma.numpy().std() > 0  # the activations' own spread, not ones


@pytest.mark.usefixtures("tiny_blocks")
def test_a_later_stage_sees_other_views(collection):
    stage = {"input_size": 32, "epochs": 1, "learning_rate": 1e-3}
    recipe = _recipe(collection, stages=[stage, stage])
    data = views.load_training_set(recipe, collection.parent, "train")
    first, second = (_batches(recipe, data, number).of_epoch(0)[0][0] for number in (0, 1))
    assert not np.array_equal(first, second)


def test_a_stage_whose_cells_the_teachers_views_do_not_fit_is_refused(collection):
    stage = {"input_size": 96, "epochs": 1, "learning_rate": 1e-3}
    recipe = _recipe(collection, teacher="first", teacher_weight=0.5, mask_weight=1.0, stages=[stage])
    data = views.load_training_set(recipe, collection.parent, "train")
    with pytest.raises(ConfigError, match="do not divide into the 6 cells"):
        training._Batches(None, data, recipe, 0, views.Views(data, recipe, recipe.stages[0], 160), [_halves(160)])


def test_held_out_copies_of_training_slices_are_not_validated_on(collection, monkeypatch):
    recipe = _recipe(collection)
    everything = views.load_training_set(recipe, collection.parent, "val")
    monkeypatch.setattr(views, "clean_leaks", lambda: pd.DataFrame({"path": ["20.png", "3.png"]}))
    assert len(views.load_training_set(recipe, collection.parent, "val").images) == len(everything.images) - 1
    assert len(views.load_training_set(recipe, collection.parent, "train").images) == 20


def test_a_source_without_held_out_patients_is_left_out_of_val(collection, tmp_path):
    recipe = _recipe(collection)
    table = pd.read_csv(recipe.sources[0].manifest)
    table[table[recipe.sources[0].split_column] == "train"].to_csv(tmp_path / "head.csv", index=False)
    head = recipe.sources[0].model_copy(update={"name": "head", "manifest": str(tmp_path / "head.csv")})
    both = recipe.model_copy(update={"sources": (*recipe.sources, head)})
    assert set(views.load_training_set(both, collection.parent, "train").source) == {recipe.sources[0].name, "head"}
    assert set(views.load_training_set(both, collection.parent, "val").source) == {recipe.sources[0].name}
    with pytest.raises(DataError, match="split 'val' is empty"):
        views.load_training_set(recipe.model_copy(update={"sources": (head,)}), collection.parent, "val")


def test_a_view_without_exchange_draws_no_number_for_it(collection):
    recipe = _recipe(collection, counterfactuals=True, augmentation="none")
    data = views.load_training_set(recipe, collection.parent, "train")
    rng = np.random.default_rng(0)
    views._counterfactual_view(data, recipe, int(data.outlined[0]), rng, painted_away=-1.0)
    expected = np.random.default_rng(0)
    expected.random()
    if rng.bit_generator.state != expected.bit_generator.state:  # painted elsewhere draws more
        pytest.fail("a number was drawn beside the one that chooses the view")


@pytest.mark.usefixtures("tiny_blocks")
def test_bias_correction_lowers_the_log_loss_on_the_held_out_split(collection):
    import keras

    from brainmri.model import build_network

    recipe = _recipe(collection, bias_correction=True)
    held_out = views.load_training_set(recipe, collection.parent, "train")  # 20 images; val has one a class
    keras.utils.set_random_seed(0)
    network = build_network(input_size=32)
    network.get_layer("logits").bias.assign([0.0, 0.0, 6.0, 0.0])  # says no tumour whatever it sees

    def log_loss() -> float:
        seen = np.stack([views.resize(image, 32) / 255 for image in held_out.images])
        p = np.asarray(network(training.as_network_batch(seen))).clip(1e-7)
        return float(-np.log(p[np.arange(len(p)), held_out.targets.argmax(1)]).mean())

    before = log_loss()
    training.correct_bias(network, held_out, recipe)
    assert log_loss() < before - 1
    bias = network.get_layer("logits").bias.numpy()
    assert bias[NONE] - bias.mean() < 3


def test_contributions_belong_where_the_tumour_is():
    y_true, inside, outside = np.zeros((1, 2, 2, 5), np.float32), np.zeros((2, 1, 2, 2, 4), np.float32), None
    y_true[0, 0, 1, 0] = 0.5  # half of one cell
    y_true[..., 1:] = [1, 0, 0, 0]
    inside[0, 0, 0, 1, 0] = inside[1, 0, 1, 0, 0] = 80
    inside, outside = inside
    assert float(training.contribution_loss(y_true, inside)[0]) < 0.03
    assert float(training.contribution_loss(y_true, outside)[0]) > 4
    assert np.isclose(float(training.contribution_loss(y_true, np.zeros_like(inside))[0]), np.log(4))


def test_losses_of_an_unknown_type_ask_for_any_tumour():
    p = np.array([[0.2, 0.3, 0.4, 0.1]], np.float32)
    any_tumour = np.array([[1, 1, 0, 1]], np.float32)
    assert np.isclose(training.class_loss(0.0)(any_tumour, p)[0], -np.log(0.6))
    taught = np.concatenate([any_tumour, np.array([[0.1, 0.1, 0.7, 0.1]], np.float32)], axis=1)
    followed = -(taught[0, 4:] * np.log(p[0])).sum()
    assert np.isclose(training.class_loss(0.0, 0.75)(taught, p)[0], -0.25 * np.log(0.6) + 0.75 * followed)
    y_mask = np.zeros((1, 1, 1, 5), np.float32)
    y_mask[0, 0, 0] = [1.0, 1, 1, 0, 1]
    assert np.isclose(training.mask_loss(y_mask, p[None, None])[0], -3 * np.log(0.6))
    y_mask[0, 0, 0, 0] = 0.0
    assert np.isclose(training.mask_loss(y_mask, p[None, None])[0], -np.log(0.4))


@pytest.mark.usefixtures("tiny_blocks")
def test_resumed_run_is_the_unbroken_run(collection, tmp_path):
    changes = {
        "mask_weight": 1.0,
        "counterfactuals": True,
        "stages": [
            {"input_size": 32, "epochs": 2, "learning_rate": 1e-3},
            {"input_size": 64, "epochs": 2, "learning_rate": 1e-3, "sharpness": 0.05, "mild": 0.5},
        ],
    }
    recipe = _recipe(collection, **changes)
    whole = training.train(recipe, collection.parent, tmp_path / "whole")

    class Stop(Exception):
        pass

    for stop_after in (1, 3):  # in the middle of either stage

        def stop(event, stop_after=stop_after):
            if "loss" in event and 2 * event["stage"] + event["epoch"] + 1 == stop_after:
                raise Stop

        with pytest.raises(Stop):
            training.train(recipe, collection.parent, tmp_path / "broken", resume=stop_after > 1, report=stop)
    resumed = training.train(recipe, collection.parent, tmp_path / "broken", resume=True)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    again = training.train(recipe, collection.parent, tmp_path / "whole", resume=True)  # finished: nothing to do
    np.testing.assert_allclose(again.get_weights()[0], whole.get_weights()[0])
    histories = [pd.read_csv(tmp_path / run / "history.csv").drop(columns="elapsed_s") for run in ("whole", "broken")]
    pd.testing.assert_frame_equal(*histories, rtol=1e-3)
    with pytest.raises(ConfigError, match="holds a run already"):
        training.train(recipe, collection.parent, tmp_path / "whole")
    with pytest.raises(ConfigError, match="nothing to resume"):
        training.train(recipe, collection.parent, tmp_path / "new", resume=True)
    with pytest.raises(ConfigError, match="another recipe"):
        training.train(recipes.override(recipe, seed=5), collection.parent, tmp_path / "whole", resume=True)
    assert training.plot_history(tmp_path / "whole").stat().st_size > 5_000


@pytest.mark.usefixtures("tiny_blocks")
def test_a_run_does_not_go_on_with_another_manifest(collection, tmp_path):
    table = pd.read_csv(collection, dtype=str, keep_default_na=False)
    manifest, run = tmp_path / "m.csv", tmp_path / "run"
    table.to_csv(manifest, index=False)

    def stop(event):
        if "loss" in event:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        training.train(_recipe(manifest), collection.parent, run, report=stop)
    table.assign(split=table["split"].replace("val", "test").mask(table.index < 4, "val")).to_csv(manifest, index=False)
    before = (run / "state.json").read_text()
    with pytest.raises(ConfigError, match=r"was begun with other contents of m\.csv; put those back"):
        training.train(_recipe(manifest), collection.parent, run, resume=True)
    assert (run / "state.json").read_text() == before
    state = training.json.loads(before)
    del state["manifests"]  # of an earlier version
    (run / "state.json").write_text(training.json.dumps(state))
    training.train(_recipe(manifest), collection.parent, run, resume=True)
    assert len(pd.read_csv(run / "history.csv")) == 2


@pytest.mark.usefixtures("tiny_blocks")
def test_cached_features_train_like_the_frozen_network(collection, tmp_path):
    changes = {"normalised_blocks": [], "frozen_blocks": [1, 2, 3, 4], "augmentation": "none", "schedule": "constant"}
    plain = training.train(_recipe(collection, **changes), collection.parent, tmp_path / "plain")
    cached = training.train(_recipe(collection, cached_draws=1, **changes), collection.parent, tmp_path / "cached")
    for a, b in zip(plain.get_weights(), cached.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)  # features wait as float16
    recipe = _recipe(collection, cached_draws=1, description="other words", **changes)
    again = training.train(recipe, collection.parent, tmp_path / "cached", resume=True)  # finished: the whole network
    for a, b in zip(again.get_weights(), cached.get_weights(), strict=True):
        np.testing.assert_allclose(a, b)


@pytest.mark.usefixtures("tiny_blocks")
def test_fewer_epochs_than_are_averaged_are_all_averaged(collection, tmp_path):
    stage = {"input_size": 32, "epochs": 3, "learning_rate": 1e-3, "average_epochs": 3}
    recipe = recipes.override(_recipe(collection, stages=[stage]), epochs=1)
    training.train(recipe, collection.parent, tmp_path)
    assert (tmp_path / "stage0.epoch0.weights.h5").is_file()


def test_kill_9_in_an_epoch_loses_at_most_that_epoch(collection, tmp_path):
    run = tmp_path / "run"
    recipe = _recipe(collection, stages=[{"input_size": 32, "epochs": 300, "learning_rate": 1e-3}])
    (tmp_path / "r.yaml").write_text(training.yaml.safe_dump(recipe.model_dump(mode="json")))
    code = (
        "from pathlib import Path; from brainmri import model, recipes, training; training.CHECKPOINT_S = 0;"
        "model.BLOCKS = ((4, 1), (8, 1), (8, 1), (8, 1), (16, 3));"
        f"training.train(recipes.load_recipe({str(tmp_path / 'r.yaml')!r}), Path({str(collection.parent)!r}),"
        f" Path({str(run)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while not (run / "history.csv").exists() or len((run / "history.csv").read_text().splitlines()) < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(pd.read_csv(run / "history.csv"))
    state = training.json.loads((run / "state.json").read_text())
    # The state is written last: it may lag one epoch behind the history, never the other way.
    assert done - 1 <= state["epoch"] <= done
    assert state["epoch"] >= 2


@pytest.mark.usefixtures("tiny_blocks")
def test_a_card_names_all_that_its_run_builds_on(collection, tmp_path, monkeypatch):
    stage = {"input_size": 32, "epochs": 1, "learning_rate": 1e-3}
    oldest, middle = _recipe(collection, name="oldest", stages=[stage]), {"continues": "oldest", "name": "middle"}
    known = {"oldest": oldest, "middle": _recipe(collection, stages=[stage, stage], **middle)}
    monkeypatch.setattr(training, "load_recipe", known.__getitem__)
    recipe = _recipe(collection, continues="middle", teacher="oldest", teacher_weight=0.5, stages=[stage])
    training.train(recipe, collection.parent, tmp_path / "run", teacher_weights="none")
    steps = training.card_facts(recipe, tmp_path / "run", collection.parent)["recipe"]["lineage"]
    assert [(s["recipe"], s["role"], s["epochs"]) for s in steps] == [
        ("oldest", "continued", 1),
        ("middle", "continued", 2),
        ("oldest", "taught", 1),
    ]
    card = SimpleNamespace(
        recipe={"name": "middle", "lineage": steps[:1], "epochs_run": 2, "minutes": 3.0}, weights_sha256="abc"
    )
    given = training.lineage(recipe, tmp_path / "run", start=card, teacher=tmp_path / "run" / "oldest")
    assert [(s["recipe"], s["epochs"]) for s in given] == [("oldest", 1), ("middle", 2), ("oldest", 1)]
    assert (given[1]["minutes"], given[1]["weights_sha256"]) == (3.0, "abc")
    teacher_card = SimpleNamespace(
        recipe={"name": "oldest", "lineage": steps[:1], "epochs_run": 5, "minutes": 6.0}, weights_sha256="def"
    )
    taught = training.lineage(recipe, tmp_path / "run", start=card, teacher=teacher_card)
    assert [(s["recipe"], s["role"], s["epochs"]) for s in taught[2:]] == [
        ("oldest", "continued", 1),
        ("oldest", "taught", 5),
    ]
    assert taught[-1]["weights_sha256"] == "def"


@pytest.mark.usefixtures("tiny_blocks")
def test_a_card_names_the_weights_that_each_run_began_from(collection, tmp_path, monkeypatch):
    from brainmri.model import build_network, sha256_of

    arrays = {}
    for layer in (x for x in build_network(input_size=32).layers if "_conv" in x.name):
        arrays |= {f"{layer.name}/{part}": np.asarray(getattr(layer, part)) for part in ("kernel", "bias")}
    file, later = tmp_path / "vgg16.npz", tmp_path / "later.npz"
    np.savez(file, **arrays)
    np.savez(later, **{name: values + 1 for name, values in arrays.items()})
    stage = {"input_size": 32, "epochs": 1, "learning_rate": 1e-3}
    oldest = _recipe(collection, name="oldest", imagenet_blocks=[1], normalised_blocks=[2], stages=[stage, stage])
    recipe = _recipe(collection, continues="oldest", stages=[stage])
    monkeypatch.setattr(training, "load_recipe", {"oldest": oldest}.__getitem__)

    def stop(event):
        if "loss" in event:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        training.train(recipe, collection.parent, tmp_path / "run", weights=str(file), report=stop)
    training.train(recipe, collection.parent, tmp_path / "run", weights=str(later), resume=True)  # not used any more
    facts = training.card_facts(recipe, tmp_path / "run", collection.parent)
    assert "weights" not in facts["recipe"]
    (step,) = facts["recipe"]["lineage"]
    assert step["weights"] == {"name": "vgg16.npz", "sha256": sha256_of(file)}
    own = training.card_facts(oldest, tmp_path / "run" / "oldest", collection.parent)
    assert own["recipe"]["weights"] == step["weights"]
    assert own["preprocessing"]["version"] == PREPROCESSING
    card = SimpleNamespace(recipe=own["recipe"], weights_sha256="abc")
    (given,) = training.lineage(recipe, tmp_path / "run", start=card)
    assert given["weights"] == step["weights"]


@pytest.mark.usefixtures("tiny_blocks")
def test_a_recipe_trains_on_jax_too_and_tensorflow_reads_its_run(collection, tmp_path):
    """JAX drives GPUs that TensorFlow's wheels do not; a backend is chosen once a process, so it runs in its own."""
    stage = {"input_size": 32, "epochs": 2, "learning_rate": 1e-3, "averaged": True, "average_epochs": 2}
    recipe = _recipe(collection, name="jax", mask_weight=1.0, draws=1, stages=[stage])
    (tmp_path / "r.yaml").write_text(training.yaml.safe_dump(recipe.model_dump(mode="json")))
    images = np.random.default_rng(0).uniform(0, 1, (3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import numpy as np; from pathlib import Path; from brainmri import model, recipes, training;"
        "model.BLOCKS = ((4, 1), (8, 1), (8, 1), (8, 1), (16, 3));"
        f"data, root = Path({str(collection.parent)!r}), Path({str(tmp_path)!r});"
        "network = training.train(recipes.load_recipe(str(root / 'r.yaml')), data, root / 'run');"
        "import keras; assert keras.backend.backend() == 'jax';"
        "np.save(root / 'logits.npy', model.logits_of(network, np.load(root / 'images.npy')))"
    )
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) == 2
    from brainmri.model import logits_of

    network = training.train(recipe, collection.parent, tmp_path / "run", resume=True)  # finished there
    np.testing.assert_allclose(logits_of(network, images), np.load(tmp_path / "logits.npy"), atol=1e-4)
