"""The suite's own parts on a toy classifier: versions of files, curves that go on, what is kept and what is not."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from brainmri import runs, served_inputs, shortcuts, suite
from brainmri.data import SPLITS_DIRECTORY
from brainmri.decision import DecisionRule
from brainmri.imaging import decode_image
from brainmri.inference import Classifier
from brainmri.model import ModelCard
from brainmri.pipeline import analyse
from brainmri.serving import BatchingClassifier
from brainmri.types import CLASS_NAMES


class Toy:
    """An engine that answers by where the brightest quarter lies; counts the images it saw."""

    name, precision = "toy", "float32"

    def __init__(self):
        self.seen = 0

    def forward(self, batch):
        self.seen += len(batch)
        grey = batch[..., 0]
        quarters = np.stack([grey[:, :64, :64], grey[:, :64, 64:], grey[:, 64:, :64], grey[:, 64:, 64:]], axis=1)
        logits = 20 * quarters.mean(axis=(2, 3)).astype(np.float32)
        return logits, np.repeat(logits[:, None, None, :], 8, axis=1).repeat(8, axis=2)


@pytest.fixture
def classifier():
    card = ModelCard(id="toy", weights_sha256="0" * 64, class_names=CLASS_NAMES, created="2026-01-01",
                     architecture="toy", preprocessing={})  # fmt: skip
    return Classifier(card, Toy(), DecisionRule())


@pytest.fixture
def rows(tmp_path):
    """48 discs with one bright quarter, which is the class; Toy is right on all of them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:120, :120] - 60
    lines = []
    for i in range(48):
        quarter = [(y < 0) & (x < 0), (y < 0) & (x >= 0), (y >= 0) & (x < 0), (y >= 0) & (x >= 0)][i % 4]
        disc = (np.hypot(y, x) < 45) * (60.0 + 120 * quarter) + rng.normal(0, 2, y.shape) * (np.hypot(y, x) < 45)
        Image.fromarray(disc.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
        lines.append((f"{i}.png", str(tmp_path / f"{i}.png"), CLASS_NAMES[i % 4], str(i)))
    return pd.DataFrame(lines, columns=["path", "file", "label", "group"])


def test_preprocessing_gain_names_every_version_and_pairs_the_two_sides(classifier, rows):
    found = {r["version"]: r for r in served_inputs.preprocessing_gain(classifier, rows)}
    assert list(found) == [*served_inputs.VERSIONS, served_inputs.SIXTEEN_BIT]
    assert found["as it is"]["served"] == 1.0
    assert found["white border"]["served"] == 1.0
    assert found["16-bit file, 12 bits used"]["served"] == 1.0
    assert found["mirrored"]["served"] == 0.0  # Toy tells left from right, so it must be wrong on all of them
    for row in found.values():
        assert row["gain"] == pytest.approx(row["served"] - row["plain"], abs=1e-6)
        assert row["gain_interval"][0] <= row["gain"] <= row["gain_interval"][1]


def test_versions_do_what_their_names_say():
    image = np.full((100, 80), 0, np.uint8)
    image[20:80, 20:60] = 200
    changed = {name: change(image) for name, change in served_inputs.VERSIONS.items()}
    assert changed["white border"][0].min() == 255
    assert changed["wide field of view"].shape == (200, 180)
    assert changed["dark"].max() == 40
    assert np.ptp(changed["low contrast"]) < 0.25 * np.ptp(image)
    assert changed["tight crop"].shape[0] < 66
    assert (changed["scale bar and text at the rim"] != image).any()
    assert image.max() == 200


def test_mirror_averaging_costs_two_looks(classifier, rows):
    found = served_inputs.mirror_averaging(classifier, rows)
    assert classifier.engine.seen == 2 * len(rows)
    assert found["one_look"] == 1.0
    assert found["gain"] == pytest.approx(found["averaged"] - 1.0)


def test_robustness_takes_classes_in_proportion_and_goes_on_where_it_stopped(classifier, rows, tmp_path):
    rows = pd.concat([rows, rows[rows["label"] == "glioma"]], ignore_index=True)  # 24 of 60
    kept = suite._Kept(tmp_path / "kept.json", "key")
    whole = shortcuts.robustness(classifier, rows, n_images=20, kept=kept)
    assert set(whole) == set(shortcuts.PERTURBATIONS)
    assert all(p["n"] == 20 for points in whole.values() for p in points)
    seen = classifier.engine.seen
    assert seen == len(rows) + 20 * (1 + sum(len(v[2]) for v in shortcuts.PERTURBATIONS.values()))
    known = json.loads(kept.path.read_text())
    del known["gamma 0.4"]
    kept.path.write_text(json.dumps(known))
    again = shortcuts.robustness(classifier, rows, n_images=20, kept=suite._Kept(kept.path, "key"))
    assert classifier.engine.seen == seen + 20
    assert again == whole


def test_a_sample_has_every_stratum_in_proportion():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"label": rng.choice(list("abcd"), 746), "right": rng.random(746) < 0.88})
    for seed in range(5):
        sample = shortcuts.stratified(rows, ["label", "right"], 200, seed)
        assert len(sample) == 200
        assert sample["right"].mean() == pytest.approx(rows["right"].mean(), abs=0.02)
        assert (sample["label"].value_counts() - rows["label"].value_counts() * 200 / 746).abs().max() < 1.01
    assert len(shortcuts.stratified(rows, ["label"], 1000)) == 746


def test_what_was_kept_for_other_weights_is_not_used(tmp_path):
    suite._Kept(tmp_path / "kept.json", "a")("step", lambda: 1)
    assert suite._Kept(tmp_path / "kept.json", "a")("step", lambda: 2) == 1
    assert suite._Kept(tmp_path / "kept.json", "b")("step", lambda: 2) == 2
    (tmp_path / "kept.json").write_text("not json")
    assert suite._Kept(tmp_path / "kept.json", "a")("step", lambda: 3) == 3


def test_gate_is_fitted_from_tables_and_leaves_head_ct_out(classifier, rows, monkeypatch):
    monkeypatch.setattr(suite, "N_DRAWN", 32)
    monkeypatch.setattr(suite, "N_VIEWS", 10)
    monkeypatch.setattr(suite, "N_CT_VIEWS", 4)
    monkeypatch.setattr(suite, "is_head_ct", lambda table: table["path"].isin(["0.png", "1.png"]).to_numpy())
    _, validation = suite._forward(classifier, suite.network_inputs(rows["file"][:30]), None)
    gate, used = suite.fit_gate_of(classifier, [rows], validation)
    assert used == {"heads": 46, "views of heads": 10, "drawn outliers": 32, "head CT": 2, "views of head CT": 4}
    score = gate.score(np.zeros((3, 8, 8, 4), np.float32), np.random.default_rng(0).random((3, 128, 128), np.float32))
    assert (score > 1).all()


class Lenient:
    """A gate that finds nothing wrong with any picture."""

    limits = (0.0, 1.0)

    def score(self, feature_maps, inputs):
        return np.full(len(inputs), 0.5, np.float32)


def test_colour_is_seen_by_evaluation_and_serving_alike(classifier, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "_synthetic", dict)
    folder = tmp_path / "data" / suite.STRANGE / "photo"
    folder.mkdir(parents=True)
    grey = np.asarray(Image.open(rows["file"][0]))
    orange = np.stack([grey, grey // 2, grey // 4], axis=2)
    for name, pixels in (("grey", grey), ("orange", orange)):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    lenient = Classifier(classifier.card, classifier.engine, DecisionRule(gate=Lenient()))
    run = suite._strange_run(lenient, tmp_path / "data", tmp_path / "runs", None)
    expected = {"n": 2, "n_in_colour": 1, "rejected_share": 0.5, "rejected_share_colour_ignored": 0.0}
    assert run.metrics["kinds"] == {"photo": expected}
    table = run.predictions()
    assert not list(run.directory.glob("partial*"))
    batching = BatchingClassifier(lenient)
    slices = [decode_image((folder / f"{name}.png").read_bytes(), name) for name in ("grey", "orange")]
    for served in (lenient, batching):
        answers = analyse(served, slices)
        assert [a.decision for a in answers] == list(table["decision"]) == ["class", "rejected"]
        assert answers[1].label is None
        np.testing.assert_allclose([a.ood_score for a in answers], table["ood_score"])
    batching.close()
    np.testing.assert_allclose(table["colour_share"], [s.colour_share for s in slices])


def test_listed_head_ct_is_training_or_validation_only():
    listed = pd.read_csv(suite.SPLITS_DIRECTORY / "head_ct.csv")
    for name, column in (("brain_tumor_mri", "clean_split"), ("brisc_notumor", "split")):
        table = pd.read_csv(suite.SPLITS_DIRECTORY / f"{name}.csv").set_index("path")
        paths = listed.loc[listed["collection"] == name, "path"]
        assert len(paths)
        assert set(table.loc[paths, column]) <= {"train", "val"}
        assert set(table.loc[paths, "label"]) == {"notumor"}


def test_what_leaks_into_the_clean_split_is_what_the_audit_finds():
    """data/splits/clean_leaks.csv against the saved audit; the rows say so and calibration leaves them out."""
    import importlib.util
    from pathlib import Path

    script = Path(__file__).resolve().parent.parent / "scripts" / "clean_leaks.py"
    spec = importlib.util.spec_from_file_location("clean_leaks", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    listed = runs.clean_leaks()
    pd.testing.assert_frame_equal(listed, module.clean_leaks())
    assert listed["clean_split"].value_counts().to_dict() == {"test": 21, "val": 8}
    rows = runs.read_rows(SPLITS_DIRECTORY / "brain_tumor_mri.csv", None, "clean_split")
    assert set(rows.loc[rows["seen_in_training"] == "yes", "path"]) == set(listed["path"])
    assert (
        rows.loc[rows["split"] == "test", "group"].nunique()
        < rows.loc[rows["split"] == "test", "slice_group"].nunique()
    )
