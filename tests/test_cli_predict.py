"""`brainmri predict` on files and folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from brainmri import synthetic
from brainmri.cli import app
from brainmri.types import CLASS_NAMES

KEYS = ["path", "label", "probabilities", "model_id", "elapsed_ms", "decision", "prediction_set", "ood_score"]


@pytest.fixture
def folder(tmp_path):
    """Two samples, one of them one level down, a broken file and files that are nobody's business."""
    images = tmp_path / "images"
    (images / "deeper").mkdir(parents=True)
    (images / "a.png").write_bytes(synthetic.sample("glioma").content)
    (images / "deeper" / "b.png").write_bytes(synthetic.sample("notumor").content)
    (images / ".hidden.png").write_bytes(b"x")
    (images / "Thumbs.db").write_bytes(b"x")
    return images


def run(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def test_json_has_one_object_a_file(app_settings, folder):
    done = run(folder / "a.png", "--json")
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert list(row) == KEYS
    assert row["path"] == str(folder / "a.png")
    assert row["model_id"] == "tiny"
    assert list(row["probabilities"]) == list(CLASS_NAMES)
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert row["elapsed_ms"] > 0
    if row["decision"] == "class":
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)


def test_folders_recurse_and_one_bad_file_spoils_nothing(app_settings, folder):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = run(folder, folder / "missing.png", "--json")
    assert done.exit_code == 1
    rows = json.loads(done.stdout)
    assert [row["path"] for row in rows] == [
        str(folder / name) for name in ("a.png", "broken.png", "deeper/b.png", "missing.png")
    ]
    assert [set(row) == {"path", "error"} for row in rows] == [False, True, False, True]
    assert "No such file" in rows[3]["error"]


def test_more_files_than_a_batch_keep_their_order(app_settings, folder):
    content = synthetic.sample("pituitary").content
    for number in range(20):
        (folder / f"n{number:02d}.png").write_bytes(b"" if number == 5 else content)
    rows = json.loads(run(folder, "--json").stdout)
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    assert [row["path"] for row in rows if "error" in row] == [str(folder / "n05.png")]
    answers = {json.dumps(r["probabilities"]) for r in rows if "/n" in r["path"] and "error" not in r}
    assert len(answers) == 1


def test_without_json_it_prints_a_line_a_file(app_settings, folder):
    done = run(folder)
    assert done.exit_code == 0
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{folder / 'a.png'}: ")


def test_an_empty_folder_is_an_error(app_settings, tmp_path):
    (tmp_path / "empty").mkdir()
    done = run(tmp_path / "empty", "--json")
    assert done.exit_code == 1
    assert "no file in this folder" in json.loads(done.stdout)[0]["error"]


def test_unknown_model_is_one_line(app_settings, folder):
    command = [sys.executable, "-m", "brainmri", "predict", str(folder), "--model", "nosuch"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "models here: tiny" in done.stderr.strip().splitlines()[-1]


def test_streamlit_is_not_imported():
    code = "import sys, brainmri.cli; sys.exit(any(m in sys.modules for m in ('streamlit', 'tensorflow', 'keras')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
