"""The search: rows build on each other, are trained once, and their figures are the network's."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import SCRIPTS, script
from PIL import Image
from typer.testing import CliRunner

from brainmri import search
from brainmri.cli import app
from brainmri.errors import ConfigError
from brainmri.types import CLASS_NAMES


def test_shipped_table_is_valid():
    rows = search.read_table()
    by_name = {row.name: recipe for row, recipe in rows}
    assert len(by_name) == len(rows)
    assert by_name["masks"].label_smoothing == by_name["smoothing"].label_smoothing > 0
    assert by_name["sources"].stages == by_name["masks"].stages  # after: masks
    with_masks, without = by_name["progressive"], by_name["progressive-without-masks"]
    assert without.model_copy(update={"mask_weight": with_masks.mask_weight, "name": "progressive"}) == with_masks


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{name: a, adds: x, after: nowhere}", "nowhere"),
        ("{name: a, adds: x, changes: {seeds: 3}}", "seeds"),
        ("{name: a, ads: x}", "ads"),
    ],
)
def test_wrong_rows_are_named(tmp_path, row, message):
    base = "{name: b, sources: [], stages: []}"
    (tmp_path / "t.yaml").write_text(f"base: {base}\nrows:\n  - {row}\n")
    with pytest.raises(ConfigError, match=message):
        search.read_table(tmp_path / "t.yaml")


@pytest.fixture
def splits(tmp_path):
    """Discs as a Kaggle-like set and an lgg-like set; manifests in a folder of their own."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    for name in ("kaggle", "lgg", "splits"):
        (tmp_path / name).mkdir()
    kaggle, lgg = ["path,label,clean_split,group"], ["path,label,split,patient,sequence"]
    for i in range(36):
        label = CLASS_NAMES[i % 4]
        head = (x**2 + y**2 < 0.8) * 110 + rng.normal(0, 6, (64, 64))
        if label != "notumor":
            head[(y - 0.2) ** 2 + (x - 0.2 * (i % 4)) ** 2 < 0.03] = 230
        for folder in ("kaggle", "lgg"):
            Image.fromarray(head.clip(0, 255).astype(np.uint8)).save(tmp_path / folder / f"{i}.png")
        kaggle.append(f"{i}.png,{label},{('train', 'val', 'test')[i // 12]},{i}")
        lgg.append(f"{i}.png,{'notumor' if label == 'notumor' else 'glioma'},test,{i},{('flair', 'post')[i % 12 // 6]}")
    (tmp_path / "splits" / "brain_tumor_mri.csv").write_text("\n".join(kaggle) + "\n")
    (tmp_path / "splits" / "lgg.csv").write_text("\n".join(lgg) + "\n")
    return tmp_path / "splits"


@pytest.mark.usefixtures("tiny_blocks")
def test_rows_are_trained_once_and_measured(splits, tmp_path):
    manifest = splits / "brain_tumor_mri.csv"
    table = tmp_path / "table.yaml"
    table.write_text(
        f"""
base:
  name: base
  sources: [{{name: discs, manifest: {manifest}, images: ".", split_column: clean_split}}]
  stages: [{{input_size: 32, epochs: 1, learning_rate: 1.0e-3}}]
  normalised_blocks: [1, 2, 3, 4, 5]
  batch_size: 4
rows:
  - {{name: first, adds: nothing}}
  - {{name: second, adds: smoothing, changes: {{label_smoothing: 0.1}}}}
"""
    )
    options = {"table": table, "splits": splits}
    rows = search.run_search(tmp_path / "kaggle", tmp_path / "runs", **options)
    assert [row["name"] for row in rows] == ["first", "second"]
    for row in rows:
        assert 0 <= row["test_accuracy"] <= 1
        assert 0 <= row["lgg_auc_post"] <= 1
        assert row["epochs"] == 1
        assert row["test_accuracy"] == round(round(row["test_accuracy"] * 12) / 12, 6)  # tables round, the log does not
    stamp = (tmp_path / "runs" / "first" / "first.keras").stat().st_mtime_ns
    (tmp_path / "runs" / "second" / "row.json").unlink()  # as if killed before it was measured
    again = search.run_search(tmp_path / "kaggle", tmp_path / "runs", **options)
    assert again == rows
    assert (tmp_path / "runs" / "first" / "first.keras").stat().st_mtime_ns == stamp
    assert json.loads((tmp_path / "runs" / "second" / "row.json").read_text()) == rows[1]


def test_one_model_is_measured_and_its_row_replaced(tmp_path, monkeypatch):
    lineage = [{"epochs": 10, "minutes": 5.0}, {"epochs": 3, "minutes": 1.5}]
    card = SimpleNamespace(id="other", recipe={"seed": 3, "epochs_run": 20, "minutes": 86.2, "lineage": lineage})
    monkeypatch.setattr("brainmri.model.read_card", lambda card_id, directory: card)
    monkeypatch.setattr("brainmri.model.load_network", lambda card, directory: None)
    monkeypatch.setattr(search, "measure_network", lambda network, root, *, mirror: {"val_accuracy": 0.9})
    log = tmp_path / "search.csv"
    log.write_text(
        "name,adds,seed,epochs,minutes,val_accuracy\nother,not shipped,3,20,86.2,0.1\nplain,nothing,1,1,3,0.5\n"
    )
    for _ in range(2):
        done = CliRunner().invoke(app, ["search", "--measure", str(tmp_path / "other.json"), "--log", str(log)])
        assert done.exit_code == 0, done.output
    rows = pd.read_csv(log)
    assert list(rows["name"]) == ["plain", "other"]
    assert list(rows["val_accuracy"]) == [0.5, 0.9]
    assert rows.loc[1, ["adds", "epochs", "minutes"]].tolist() == ["not shipped", 33, 92.7]
    command = ["search", "--measure", str(tmp_path / "other.json"), "--log", str(log), "--adds", "a teacher"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert pd.read_csv(log).loc[1, "adds"] == "a teacher"


def test_the_shipped_model_is_measured_mirrored_too(tmp_path, monkeypatch):
    card = SimpleNamespace(id="vgg16-brainmri", recipe={"seed": 3, "epochs_run": 20, "minutes": 86.2})
    monkeypatch.setattr("brainmri.model.read_card", lambda card_id, directory: card)
    monkeypatch.setattr("brainmri.model.load_network", lambda card, directory: None)
    monkeypatch.setattr(search, "measure_network", lambda network, root, *, mirror: {"val_accuracy": 0.5 + mirror / 4})
    done = CliRunner().invoke(
        app, ["search", "--measure", "models/vgg16-brainmri.json", "--log", str(tmp_path / "search.csv")]
    )
    assert done.exit_code == 0, done.output
    rows = pd.read_csv(tmp_path / "search.csv")
    assert list(rows["name"]) == ["vgg16-brainmri", "vgg16-brainmri, mirrored"]
    assert list(rows["val_accuracy"]) == [0.5, 0.75]
    assert rows.loc[0, "adds"] == "shipped"


def test_training_the_table_keeps_the_rows_of_whole_networks(tmp_path, monkeypatch):
    card = SimpleNamespace(id="vgg16-brainmri", recipe={"seed": 3, "epochs_run": 20, "minutes": 86.2})
    monkeypatch.setattr("brainmri.model.read_card", lambda card_id, directory: card)
    monkeypatch.setattr("brainmri.model.load_network", lambda card, directory: None)
    monkeypatch.setattr(search, "measure_network", lambda network, root, *, mirror: {"val_accuracy": 0.5})
    monkeypatch.setattr(search, "run_search", lambda *a, **k: [{"name": "plain", "adds": "anew", "val_accuracy": 0.4}])
    log = tmp_path / "search.csv"
    log.write_text("name,adds,val_accuracy\nplain,before,0.1\nother,measured,0.9\n")
    done = CliRunner().invoke(app, ["search", "--output", str(tmp_path), "--log", str(log)])
    assert done.exit_code == 0, done.output
    rows = pd.read_csv(log)
    assert list(rows["name"]) == ["plain", "other", "vgg16-brainmri", "vgg16-brainmri, mirrored"]
    assert list(rows["val_accuracy"]) == [0.4, 0.9, 0.5, 0.5]


def test_networks_measured_before_keep_their_rows_and_no_recipes_are_mixed(tmp_path):
    fit, log = script("training_fit", SCRIPTS), tmp_path / "training_fit.csv"
    assert fit.read_log(log, "release").empty
    first = fit.joined(fit.read_log(log, "release"), {"a": {"accuracy": 0.911528, "lgg": 0.9}})
    assert list(first.index) == ["accuracy", "lgg"]
    first.to_csv(log, index_label="figure")  # as earlier versions wrote it: measured with release
    table = fit.joined(fit.read_log(log, "release"), {"b": {"accuracy": 0.5, "elsewhere": 0.7}})
    assert list(table.index) == ["accuracy", "lgg", "elsewhere"]
    assert table.loc["lgg", "a"] == 0.9
    assert np.isnan(table.loc["lgg", "b"])
    with pytest.raises(SystemExit, match="measured with --recipe release"):
        fit.read_log(log, "elsewhere")
    fit.write_log(log, "elsewhere", table)
    pd.testing.assert_frame_equal(fit.read_log(log, "elsewhere"), table, check_names=False)
    with pytest.raises(SystemExit, match="measured with --recipe elsewhere"):
        fit.read_log(log, "release")
