"""The suite's own parts on a toy classifier: versions of files, curves that go on, what is kept and what is not."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SCRIPTS, script
from PIL import Image
from typer.testing import CliRunner

from brainmri import runs, served_inputs, shortcuts, suite
from brainmri.cli import app
from brainmri.cli.train import limits
from brainmri.config import load_settings
from brainmri.data import SPLITS_DIRECTORY, read_slice
from brainmri.decision import DecisionRule
from brainmri.errors import DataError
from brainmri.gate import fit_gate
from brainmri.imaging import decode_image
from brainmri.inference import Classifier
from brainmri.model import ModelCard, read_card
from brainmri.pipeline import analyse
from brainmri.serving import BatchingClassifier
from brainmri.synthetic import sample
from brainmri.types import CLASS_NAMES

SAVED_AUDIT = Path(suite.__file__).resolve().parent.parent / "evaluations" / "audit-brain-tumor-mri"


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
        if row["gain_interval"]:  # none where every image gains the same
            assert row["gain_interval"][0] <= row["gain"] <= row["gain_interval"][1]
    assert found["as it is"]["served_interval"] == [pytest.approx(0.025 ** (1 / 48), abs=1e-6), 1.0]


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
    assert set(np.unique(changed["grey values inverted, as T2 against T1"])) == {0, 200}
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
    _, validation = suite.forward_inputs(classifier, suite.network_inputs(rows["file"][:30]), None)
    material = suite.gate_material(classifier, [rows])
    gate = suite.fit_gate_to(material, validation)
    used = {kind: len(found) for kind, found in material.items()}
    assert used == {"heads": 46, "views of heads": 10, "drawn outliers": 32, "head CT": 2, "views of head CT": 4}
    score = gate.score(np.zeros((3, 8, 8, 4), np.float32), np.random.default_rng(0).random((3, 128, 128), np.float32))
    assert (score > 1).all()


class Lenient:
    """A gate that finds nothing wrong with any picture."""

    limits = (0.0, 1.0)

    def score(self, feature_maps, inputs):
        return np.full(len(inputs), 0.5, np.float32)

    def arrays(self):
        return {"gate_limits": np.array(self.limits)}


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


def test_what_leaks_into_the_clean_split_is_listed_and_told_apart():
    """data/splits/clean_leaks.csv holds at least what the saved audit of this set alone finds; the rows say so."""
    listed = runs.clean_leaks()
    assert not listed.duplicated(["collection", "path"]).any()
    assert not (listed["split"] == "train").any()
    listed = listed[listed["collection"] == "brain_tumor_mri"]
    assert listed["split"].value_counts().to_dict() == {"repeat": 280, "test": 43, "val": 12}
    groups = pd.read_csv(SAVED_AUDIT / "groups.csv.gz", dtype=str)
    rows = runs.read_rows(SPLITS_DIRECTORY / "brain_tumor_mri.csv", None, "clean_split")
    split = groups["path"].map(rows.set_index("path")["split"])
    copies = groups[(split != "train") & groups["group"].isin(set(groups.loc[split == "train", "group"]))]
    assert len(copies) > 300
    assert set(copies["path"]) <= set(listed["path"])
    assert set(rows.loc[rows["seen_in_training"] == "yes", "path"]) == set(listed["path"])
    units, own = rows.set_index("path")["group"], listed[listed["copy_collection"] == "brain_tumor_mri"]
    same = units[own["path"]].to_numpy() == units[own["copy_of"]].to_numpy()
    figshare = rows.set_index("path").loc[own["path"], "source"].to_numpy() == "figshare"
    assert same[~figshare].all()  # figshare's are runs of neighbours, which may be another run
    test = rows["split"] == "test"
    assert rows.loc[test, "group"].nunique() < rows.loc[test, "slice_group"].nunique()


@pytest.mark.parametrize("model_id", ["vgg16-brainmri", "fine-tuned"])
def test_cards_tell_how_much_of_clean_test_leaked(model_id):
    assert read_card(model_id, load_settings().model.directory).limits == limits()


def test_leaks_of_other_collections_are_told_apart():
    rows = runs.read_rows(SPLITS_DIRECTORY / "br35h_tumour.csv", None, "split")
    seen = rows[rows["seen_in_training"] == "yes"]
    assert seen["split"].value_counts().to_dict() == {"test": 2, "val": 2}
    assert "seen_in_training" not in runs.read_rows(SPLITS_DIRECTORY / "lgg.csv", None, "split")


def test_listed_crops_are_alike_and_others_are_not(tmp_path):
    """The rule by which scripts/clean_leaks.py compares crops, on drawn heads: turned, shaded, cropped copies."""
    leaks = script("clean_leaks", SCRIPTS)
    head = sample("glioma").slice.pixels
    half = np.where(np.arange(head.shape[1]) < head.shape[1] // 2, head, 0)
    darker = (head * 0.7).astype(np.uint8)
    versions = {"train": head, "test": np.rot90(head)[:, ::-1], "val": darker, "other": half}
    table = []
    for split, pixels in versions.items():
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / f"{split}.png")
        row = {"collection": "a", "path": split, "file": str(tmp_path / f"{split}.png")}
        table.append(row | {"split": "test" if split == "other" else split})
    found = leaks.similar_crops(pd.DataFrame(table))
    assert set(found["path"]) == {"test", "val"}
    assert set(found["copy_of"]) == {"train"}


def test_what_the_official_test_saw_is_what_the_audit_and_the_crops_find():
    audit = pd.read_csv(SAVED_AUDIT / "groups.csv.gz", dtype=str).set_index("path")
    rows = runs.read_rows(SPLITS_DIRECTORY / "brain_tumor_mri.csv", None, "official_split")
    group = rows["path"].map(audit["group"])
    test, listed = rows["split"] == "test", rows["path"].isin(runs.clean_leaks()["path"])
    trained = group.isin(set(group[rows["clean_split"] == "train"]))
    seen = test & (rows["seen_in_training"] == "yes")
    assert set(rows.loc[test & (trained | listed), "path"]) == set(rows.loc[seen, "path"])
    assert not (trained & test & ~seen).any()


@pytest.fixture
def data(tmp_path, rows):
    """A data folder: clean split (one tumour with an outline), lgg with two sequences, photographs."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / suite.KAGGLE).symlink_to(tmp_path)
    (folder / "lgg").mkdir()
    split = np.array(["train", "val", "test", "test"])[np.arange(48) // 4 % 4]
    table = rows[["path", "label", "group"]].assign(clean_split=split, official_split=split, mask="")
    first = table.index[(table["clean_split"] == "test") & (table["label"] == "glioma")][0]
    area = np.zeros((120, 120), np.uint8)
    area[40:50, 40:50] = 255
    Image.fromarray(area).save(tmp_path / "area.png")
    table.loc[first, "mask"] = "area.png"
    table.to_csv(tmp_path / suite.MANIFEST, index=False)
    lgg = rows[rows["label"].isin(["glioma", "notumor"])].assign(split=split[rows["label"].isin(["glioma", "notumor"])])
    lgg["path"], lgg["sequence"] = "../../" + lgg["path"], ["flair", "post"] * 12
    lgg[["path", "label", "group", "split", "sequence"]].to_csv(folder / "lgg" / suite.MANIFEST, index=False)
    (folder / suite.STRANGE / "photo").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (3, 64, 64), np.uint8)
    for i, picture in enumerate(noise):
        Image.fromarray(picture).save(folder / suite.STRANGE / "photo" / f"{i}.png")
    return folder


def test_what_runs_take_from_each_other_comes_when_the_other_does(classifier, data, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "_synthetic", dict)
    gated = Classifier(classifier.card, classifier.engine, DecisionRule(gate=Lenient()))
    output = tmp_path / "runs"

    def call(*parts):
        return {run.id.removeprefix("toy-"): run for run in suite.run_suite(gated, data, output, only=parts)}

    strange = call("out-of-distribution")["out-of-distribution"]
    assert strange.metrics["trade_off"] is None
    assert "no class" in strange.metrics["undefined"]["baseline"]
    panel = call("clean-test", "shortcuts")["clean-test"].metrics["shortcuts"]
    assert panel["lgg_by_sequence"] is None
    assert panel["counterfactuals"]["n_masked"] == 1
    assert set(runs.open_run(strange.directory).metrics["trade_off"]["kind"]) == {"photo"}
    call("lgg-test")
    seen, clean = gated.engine.seen, output / "toy-clean-test" / runs.METRICS_FILE
    filled = json.loads(clean.read_text())["shortcuts"]
    assert set(filled["lgg_by_sequence"]) == {"flair", "post"}
    assert filled["counterfactuals"] == panel["counterfactuals"]
    before = clean.stat().st_mtime_ns
    assert call("shortcuts")["clean-test"].metrics["shortcuts"] == filled
    assert gated.engine.seen == seen
    assert clean.stat().st_mtime_ns == before
    other = Classifier(classifier.card, classifier.engine, DecisionRule(gate=Lenient(), tumour_threshold=0.3))
    assert suite._open(gated, output, "lgg-test") is not None
    assert suite._open(other, output, "lgg-test") is None  # fitted again: figures of the old rule are not its own
    monkeypatch.setattr(suite, "MEASURE", suite.MEASURE + 1)
    assert suite._open(gated, output, "lgg-test") is None  # the same answers give other figures now


def test_slices_of_one_head_are_one_unit_and_all_must_open(classifier, data, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "_synthetic", dict)
    head = {f"{i}": read_slice(tmp_path / f"{i}.png") for i in range(4)}
    with monkeypatch.context() as patch:
        patch.setattr(suite, "_head_slices", lambda data: head)
        run = suite._strange_run(classifier, data, tmp_path / "runs", None)
    assert run.metrics["n"] == 7
    assert run.metrics["n_groups"] == 4
    (data / "dicom" / "head_t1").mkdir(parents=True)
    (data / "dicom" / "head_t1" / "broken.dcm").write_bytes(b"x" * 200)
    with pytest.raises(DataError, match=r"broken\.dcm"):
        suite._strange_run(classifier, data, tmp_path / "runs", None)


def test_counterfactuals_go_on_and_paint_elsewhere_in_every_way(classifier, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(shortcuts, "BATCH", 8)
    area = np.zeros((120, 120), np.uint8)
    area[52:60, 52:60] = 255
    Image.fromarray(area).save(tmp_path / "area.png")
    masked = rows[rows["label"] != "notumor"].head(20).assign(mask="area.png")
    kept = suite._Kept(tmp_path / "kept.json", "key")
    whole = shortcuts.counterfactuals(classifier, masked, tmp_path, kept=kept)
    assert whole["n"] == whole["n_elsewhere"] == 20
    for method in ("diffusion", "mirror", "patch"):
        assert whole[method]["elsewhere_changed"] == 0
        assert whole[method]["elsewhere_interval"] == [0.0, pytest.approx(1 - 0.025 ** (1 / 20), abs=1e-6)]
    assert whole["elsewhere_changed"] == whole["diffusion"]["elsewhere_changed"]
    seen = classifier.engine.seen
    assert seen == 20 * 7
    del kept.known["counterfactuals from 8"]
    assert shortcuts.counterfactuals(classifier, masked, tmp_path, kept=kept) == whole
    assert classifier.engine.seen == seen + 8 * 7


def test_a_rule_fitted_again_is_another_rule(tmp_path):
    rng = np.random.default_rng(0)
    gate = fit_gate(rng.random((40, 12)), rng.random((40, 12)) + 1, rng.random((20, 12)))
    rule = DecisionRule(1.3, (0.8, 0.9), gate, "0" * 64, 0.4)
    rule.save(tmp_path / "a.npz")
    assert runs.rule_sha256(DecisionRule.load(tmp_path / "a.npz")) == runs.rule_sha256(rule)
    others = [replace(rule, tumour_threshold=0.5), replace(rule, gate=replace(gate, output=gate.output * 2)),
              replace(rule, gate=None)]  # fmt: skip
    assert len({runs.rule_sha256(r) for r in [rule, *others]}) == 4


def test_why_there_is_no_nearest_neighbour(rows):
    training = rows.assign(label=["glioma", "notumor"] * 24)
    assert runs.why_no_baseline(training, rows) is None
    assert "one of the four" in runs.why_no_baseline(training, rows.assign(label="tumour"))
    assert "of one class" in runs.why_no_baseline(rows.assign(label="notumor"), rows)
    assert "none of the 48" in runs.why_no_baseline(rows.assign(file="nowhere.png"), rows)
    Path(rows["file"][3]).unlink()
    with pytest.raises(DataError, match=r"1 of 48 training images are missing \(first: 3\.png\)"):
        runs.why_no_baseline(training, rows)


def test_damaged_runs_are_named(classifier, data, tmp_path):
    output = tmp_path / "runs"
    suite.run_suite(classifier, data, output, only=["clean-test", "lgg-test", "official-test"])
    for name in ("audit", f"stopped/{runs.PARTIAL}", "torn"):
        (output / name).mkdir(parents=True)
    (output / "audit" / "audit.json").write_text("{}")
    (output / "torn" / "metrics.json").write_text("{")
    (output / "toy-lgg-test" / "predictions.parquet").write_bytes(b"PAR1")
    (output / "toy-official-test" / "predictions.parquet").unlink()
    assert [run.id for run in runs.list_runs(output) if run.id == "torn"] == []
    stopped, torn, lgg, official = sorted(runs.damaged_runs(output), key=lambda line: line.replace("toy", "z"))
    assert "stopped: not finished" in stopped
    assert "torn/metrics.json: damaged" in torn
    assert "toy-lgg-test/predictions.parquet: damaged" in lgg
    assert "toy-official-test: predictions.parquet is missing" in official


def test_without_a_manifest_of_its_own_a_collection_is_as_data_splits_lists_it(classifier, data, tmp_path, monkeypatch):
    output = tmp_path / "runs"
    (data / "lgg" / suite.MANIFEST).rename(tmp_path / "lgg.csv")
    monkeypatch.setattr(suite, "SPLITS_DIRECTORY", tmp_path)
    (run,) = suite.run_suite(classifier, data, output, only=["lgg-test"])
    assert run.metrics["data"]["name"] == "lgg"
    with pytest.raises(
        DataError, match=r"holds none of the folders brain_tumor_mri, .*lgg.*, out_of_distribution that"
    ):
        suite.run_suite(classifier, tmp_path / "runs", tmp_path / "more")


def test_a_gate_is_fitted_to_what_lies_beside_the_manifest(data, monkeypatch):
    asked = []
    monkeypatch.setattr(suite, "calibrate", lambda *given, **_: asked.append(given) or {})
    manifest = data / suite.KAGGLE / suite.MANIFEST
    assert CliRunner().invoke(app, ["calibrate", "--manifest", str(manifest)]).exit_code == 0
    assert asked[0][4] == manifest.parent


def test_the_suite_prints_what_a_single_run_prints(classifier, data, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "_synthetic", dict)
    gated = Classifier(classifier.card, classifier.engine, DecisionRule(1.0, (0.9, 0.95), Lenient()))
    monkeypatch.setattr("brainmri.inference.load_classifier", lambda *_, **__: gated)
    parts = [word for part in ("clean-test", "out-of-distribution") for word in ("--only", part)]
    answer = CliRunner().invoke(app, ["evaluate", "--suite", str(data), "--output", str(tmp_path / "runs"), *parts])
    assert answer.exit_code == 0, answer.output
    for words in ("accuracy of what was accepted 1.000", "accuracy of what was decided", "95% sets: coverage",
                  "nearest training thumbnail", "undefined: baseline (pictures that are no brain MRI"):  # fmt: skip
        assert words in answer.output


def test_of_the_healthy_head_slices_with_brain_are_counted_apart():
    slices = ["N2D_0009", "N2D_0153", "N2D_0201", "N2D_0217", "N2D_0377"]
    predictions = pd.DataFrame(
        {
            "kind": ["head_t1"] * 5 + ["photo"],
            "path": [f"head_t1/{name}" for name in slices] + ["N2D_0201"],
            "predicted": ["notumor", "glioma", "notumor", "notumor", "notumor", "notumor"],
            "decision": ["undecided", "class", "class", "undecided", "rejected", "class"],
        }
    )
    found = suite._healthy_head(predictions)
    assert found == {
        "n": 5, "accepted": 4, "called_none": 4, "answered_none": 1,
        "n_brain": 3, "brain_accepted": 3, "brain_called_none": 2, "brain_answered_none": 1,
    }  # fmt: skip
    assert suite._healthy_head(predictions[predictions["kind"] == "photo"]) is None


def test_heads_from_elsewhere_are_counted_one_by_one():
    predictions = pd.DataFrame(
        {
            "group": pd.Categorical(["b", "b", "b", "a", "b"]),
            "label": pd.Categorical(["notumor", "notumor", "tumour", "notumor", "tumour"]),
            "predicted": ["notumor", "glioma", "meningioma", "notumor", "notumor"],
            "decision": ["undecided", "class", "class", "class", "class"],
        }
    )
    assert suite._by_head(predictions) == [
        {"head": "b", "tumour": False, "n": 2, "called": 1, "answered": 0},
        {"head": "b", "tumour": True, "n": 2, "called": 1, "answered": 1},
        {"head": "a", "tumour": False, "n": 1, "called": 1, "answered": 1},
    ]


def test_heads_of_the_elsewhere_manifest_are_in_one_split_each():
    table = pd.read_csv(SPLITS_DIRECTORY / "elsewhere.csv", keep_default_na=False)
    heads = script("elsewhere", SCRIPTS).HEADS
    assert set(table["head"]) == set(heads)
    assert table.groupby("head")["split"].unique().str.len().max() == 1
    assert table["split"].eq(table["head"].map(lambda name: heads[name].split)).all()
    archives = {split: {h.archive for h in heads.values() if h.split == split} for split in ("train", "val", "test")}
    assert not archives["train"] & archives["test"]
    assert not archives["val"] & (archives["train"] | archives["test"])
    assert set(table.loc[table["label"] == "tumour", "split"]) == {"test"}
