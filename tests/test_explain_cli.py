"""`brainmri explain`: files, lines and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dicom_maker import dicom, stack, zipped
from PIL import Image
from typer.testing import CliRunner

from brainmri.cli import app
from brainmri.decision import DecisionRule
from brainmri.errors import DataError, ExplanationError


@pytest.fixture
def scan(tmp_path, slices):
    Image.fromarray(slices[2]).save(tmp_path / "scan.png")
    return tmp_path / "scan.png"


def run(*arguments):
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


def lines(result) -> list[dict]:
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def test_picture_arrays_and_line(app_settings, scan, slices, tmp_path):
    result = run(scan, "--method", "grad-cam,occlusion", "--target-class", "glioma", "--output", tmp_path / "maps")
    assert result.exit_code == 0, result.output
    rows = lines(result)
    assert [r["method"] for r in rows] == ["grad-cam", "occlusion"]
    for row in rows:
        assert row["target_class"] == "glioma"
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert row["elapsed_ms"] > 0
        stem = tmp_path / "maps" / f"scan.{row['method']}"
        assert Image.open(f"{stem}.png").size[0] > 300
        with np.load(f"{stem}.npz") as arrays:
            assert arrays["saliency_map"].shape == slices[2].shape
            assert arrays["saliency_map"].dtype == np.float32
            assert row["peak"] is None or arrays["peak"].tolist() == row["peak"]


def test_several_classes_and_equal_stems_do_not_overwrite(app_settings, scan, slices, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(slices[1]).save(other / "scan.png")
    result = run(scan, other, "--target-class", "glioma,notumor", "--output", tmp_path / "maps")
    assert result.exit_code == 0, result.output
    assert len({name for row in lines(result) for name in row["files"]}) == 8
    assert len(list((tmp_path / "maps").iterdir())) == 8


def test_unreadable_files_are_reported_and_the_others_come(app_settings, scan, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    result = run(broken, tmp_path / "missing.png", scan, "--output", tmp_path / "maps")
    assert result.exit_code == 1
    assert ["error" in row for row in lines(result)] == [True, True, False]


def test_what_a_zip_holds_beside_its_series_has_lines_of_its_own(app_settings, tmp_path):
    archive = tmp_path / "study.zip"
    localiser = dicom(SeriesDescription="3plane loc", SOPInstanceUID="1.7", SeriesInstanceUID="1.2.9")
    archive.write_bytes(zipped({**stack(1), "loc.dcm": localiser}))
    result = run(archive, "--even-rejected", "--output", tmp_path / "maps")
    assert result.exit_code == 0, result.output
    first, second = lines(result)
    assert first == {"path": str(archive), "file": "loc.dcm", "set_aside": "localiser"}
    assert second["method"] == "grad-cam"
    archive.write_bytes(zipped({**stack(1), "cut.dcm": localiser[:-3000]}))
    result = run(archive, "--even-rejected", "--output", tmp_path / "maps")
    assert result.exit_code == 1
    assert "cut short" in lines(result)[0]["error"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "grad-camera"], "methods: grad-cam"),
        (["--method", ","], "names no method; methods: grad-cam"),
        (["--target-class", "cyst"], "classes: glioma"),
        (["--layer", "dense"], "has none left"),
        (["--method", "occlusion", "--layer", "block5_conv3"], "takes no layer"),
        (["--colour-map", "jet"], "inferno"),
    ],
)
def test_unknown_names_are_said_before_anything_is_made(app_settings, scan, tmp_path, arguments, words):
    result = run(scan, *arguments, "--output", tmp_path / "maps")
    assert isinstance(result.exception, ExplanationError)
    assert words in str(result.exception)
    assert not (tmp_path / "maps").exists()


def test_rejected_images_need_the_option_and_the_picture_says_so(app_settings, scan, tmp_path, monkeypatch):
    apply = DecisionRule.apply

    def reject(self, *arguments):
        probabilities, score, sets, decisions = apply(self, *arguments)
        return probabilities, score + 9, sets, ("rejected",) * len(decisions)

    plain = tmp_path / "plain"
    run(scan, "--output", plain)
    monkeypatch.setattr(DecisionRule, "apply", reject)
    result = run(scan, "--output", tmp_path / "maps")
    assert result.exit_code == 1
    [row] = lines(result)
    assert row["decision"] == "rejected"
    assert "rejected as not a brain MRI" in row["error"]
    assert not list((tmp_path / "maps").iterdir())
    result = run(scan, "--even-rejected", "--output", tmp_path / "maps")
    assert result.exit_code == 0, result.output
    [row] = lines(result)
    assert (row["decision"], row["label"]) == ("rejected", None)
    marked = np.asarray(Image.open(tmp_path / "maps" / "scan.grad-cam.png").convert("RGB"), int)
    dark_red = (abs(marked - [139, 0, 0]).sum(-1) < 40).sum()
    unmarked = np.asarray(Image.open(plain / "scan.grad-cam.png").convert("RGB"), int)
    assert dark_red > 300 + (abs(unmarked - [139, 0, 0]).sum(-1) < 40).sum()


def test_the_study_runs_from_a_manifest_and_goes_on(app_settings, tiny_models, tiny_blocks, slices, tmp_path):
    labels = ["glioma", "meningioma", "pituitary", "notumor"]
    table = ["path,label,mask,split"]
    for i, label in enumerate(labels):
        Image.fromarray(slices[i]).save(tmp_path / f"{i}.png")
        mask = np.zeros(slices[i].shape, np.uint8)
        mask[30:50, 30:50] = 255
        Image.fromarray(mask).save(tmp_path / f"m{i}.png")
        table.append(f"{i}.png,{label},{'' if label == 'notumor' else f'm{i}.png'},test")
    (tmp_path / "manifest.csv").write_text("\n".join(table))
    page = tmp_path / "page.md"
    page.write_text((Path(__file__).parent.parent / "docs" / "explanations.md").read_text("utf-8"), "utf-8")
    arguments = [
        "explain-eval", "--manifest", tmp_path / "manifest.csv", "--images", tmp_path, "--split-column", "split",
        "--limit", 2, "--precision", "float32", "--work", tmp_path / "work", "--docs", page, "--output",
        tmp_path / "result.json", "--beside", tiny_models / "tiny.json",
    ]  # fmt: skip
    card = (tiny_models / "tiny.json").read_text()
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert "Localisation: 2 of 2" in result.stderr
    assert "Sanity (weight randomisation): 8 of 8" in result.stderr
    measured = json.loads((tmp_path / "result.json").read_text())
    assert [network["model_id"] for network in measured["peak_in_mask"]] == ["tiny", "tiny"]
    assert (measured["data"]["manifest"], measured["data"]["split"]) == ("manifest.csv", "split: test")
    text = page.read_text("utf-8")
    assert "Not measured yet" not in text
    for words in ("| Grad-CAM |", "| All | 2 |", "| Random (baseline) |", "Model `tiny`"):
        assert words in text
    assert (tiny_models / "tiny.json").read_text() == card  # a trial does not touch the card
    again = CliRunner().invoke(app, list(map(str, arguments)))
    assert again.exit_code == 0
    repeated = json.loads((tmp_path / "result.json").read_text())
    for part in ("peak_in_mask", "localisation", "faithfulness", "sanity"):
        assert repeated[part] == measured[part]
    peaks = [*arguments, "--beside", tiny_models / "tiny.json", "--peaks-only"]
    assert CliRunner().invoke(app, list(map(str, peaks))).exit_code == 0
    with_two = json.loads((tmp_path / "result.json").read_text())
    assert with_two == repeated | {"peak_in_mask": [*measured["peak_in_mask"], measured["peak_in_mask"][1]]}
    unnamed = arguments[: arguments.index("--output")]
    assert "give --output FILE" in str(CliRunner().invoke(app, list(map(str, unnamed))).exception)
    assert CliRunner().invoke(app, ["explain-eval", "--precision", "bf16"]).exit_code == 2
    peaks[peaks.index("--limit") + 1] = 3
    refused = CliRunner().invoke(app, list(map(str, peaks)))
    assert isinstance(refused.exception, DataError)
    assert json.loads((tmp_path / "result.json").read_text()) == with_two
