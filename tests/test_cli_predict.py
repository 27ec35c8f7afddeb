"""`brainmri predict` on files and folders."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest
from dicom_maker import dicom, enhanced, stack, zipped
from typer.testing import CliRunner

from brainmri import synthetic
from brainmri.cli import app, predict
from brainmri.types import CLASS_NAMES

KEYS = ["path", "label", "probabilities", "model_id", "elapsed_ms", "decision", "prediction_set", "ood_score",
        "colour_share", "notes"]  # fmt: skip


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


@pytest.fixture
def study(tmp_path):
    """A folder as scanners export it: a series in two subfolders under names in no order, a localiser, a DWI and a
    derived image, a cut file and a text."""
    folder = tmp_path / "study"
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    for i, (name, content) in enumerate(stack(6).items()):
        (folder / "ab"[i % 2] / name).write_bytes(content)
    other = {"SeriesInstanceUID": "1.2.9", "InstanceNumber": 1}
    (folder / "loc.dcm").write_bytes(dicom(SeriesDescription="3plane loc", SOPInstanceUID="1.7", **other))
    (folder / "dwi.dcm").write_bytes(dicom(SeriesDescription="ep2d diff b1000", SOPInstanceUID="1.8", **other))
    (folder / "mip.dcm").write_bytes(dicom(ImageType=["DERIVED", "SECONDARY", "MPR"], SOPInstanceUID="1.9", **other))
    return folder


def test_a_folder_of_a_series_is_answered_like_its_zip(app_settings, study, tmp_path):
    archive = tmp_path / "study.zip"
    archive.write_bytes(zipped({f.relative_to(study).as_posix(): f.read_bytes() for f in sorted(study.rglob("*.dcm"))}))
    of_folder, of_zip = run(study, "--json"), run(archive, "--json")
    assert of_folder.exit_code == 0, of_folder.output
    rows, zip_rows = json.loads(of_folder.stdout), json.loads(of_zip.stdout)
    slices = [row for row in rows if "slice" in row]
    assert [row["slice"] for row in slices] == [1, 2, 3, 4, 5, 6]
    contents = [Path(row["path"]).read_bytes() for row in slices]
    order = [pydicom.dcmread(io.BytesIO(c)).ImagePositionPatient[2] for c in contents]
    assert order == sorted(order)
    assert len({row["sop_instance_uid"] for row in slices}) == 6
    assert all(row["sop_instance_uid"].startswith("2.25.") for row in slices)  # as de-identified
    (summary,) = [row for row in rows if "series_answer" in row]
    assert rows.index(summary) == 6
    assert summary["path"] == str(study)
    assert summary["series"] == slices[0]["series"]
    answer = summary["series_answer"]
    assert (answer["slices"], answer["plane"], answer["title"]) == (6, "axial", "T1 MPRAGE AX")
    assert sum(answer["counts"].values()) == 6
    for driving in answer["runs"]:
        assert 1 <= driving["first"] <= driving["peak"] <= driving["last"] <= 6
    aside = {Path(row["path"]).name: row["set_aside"] for row in rows if "set_aside" in row}
    assert aside["loc.dcm"] == "localiser"
    assert aside["dwi.dcm"].startswith("diffusion")
    assert aside["mip.dcm"].startswith("derived")
    # The zip says the same, under its own name.
    keys = ("sop_instance_uid", "frame", "label", "probabilities", "series", "slice", "series_answer", "set_aside")
    assert [{k: row[k] for k in keys if k in row} for row in zip_rows] == [
        {k: row[k] for k in keys if k in row} for row in rows
    ]
    assert {row["path"] for row in zip_rows} == {str(archive)}
    assert {row["file"] for row in zip_rows if "set_aside" in row} == set(aside)


def test_a_folder_of_pictures_and_dicom_gives_both(app_settings, study, folder):
    for file in folder.glob("[ab]*.png"):
        (study / f"c{file.name}").write_bytes(file.read_bytes())
    (study / "cut.dcm").write_bytes(stack(1)["IM000.dcm"][:-3000])
    (study / "notes.txt").write_bytes(b"nothing to see")
    done = run(study, "--json")
    assert done.exit_code == 1
    rows = json.loads(done.stdout)
    assert sum("slice" in row for row in rows) == 6
    picture_row = next(row for row in rows if row["path"].endswith("ca.png"))
    assert list(picture_row) == KEYS
    errors = {Path(row["path"]).name: row["error"] for row in rows if "error" in row}
    assert set(errors) == {"cut.dcm", "notes.txt"}
    assert "cut short" in errors["cut.dcm"]
    lines = run(study).stdout.splitlines()
    assert any("series T1 MPRAGE AX, 6 slices: " in line for line in lines)
    assert any(line.endswith("loc.dcm: set aside: localiser") for line in lines)


def test_a_folder_too_large_for_one_upload_is_read_folder_by_folder(app_settings, study):
    from brainmri.cli.predict import DicomFolder, find_inputs

    def found(**changes):
        dicom_settings = app_settings.dicom.model_copy(update=changes)
        settings = app_settings.model_copy(update={"dicom": dicom_settings})
        return [(i.path.name, len(i.files)) for i in find_inputs([study], settings) if isinstance(i, DicomFolder)]

    assert found() == [("study", 9)]
    assert found(max_slices=8) == [("a", 3), ("b", 3), ("study", 3)]
    assert found(max_archive_mb=0.05) == [("a", 3), ("b", 3), ("study", 3)]


def test_a_folder_with_nothing_usable_says_why(app_settings, tmp_path):
    for name, content in stack(2, Modality="CT").items():
        (tmp_path / name).write_bytes(content)
    done = run(tmp_path, "--json")
    assert done.exit_code == 1
    (row,) = [row for row in json.loads(done.stdout) if row["path"] == str(tmp_path)]
    assert "no usable MR image" in row["error"]
    assert "CT (computed tomography), not MR" in row["error"]
    (insisted,) = [r for r in json.loads(run(tmp_path, "--json", "--insist").stdout) if "series_answer" in r]
    assert insisted["series_answer"]["slices"] == 2


def test_several_frames_are_a_series(app_settings, tmp_path):
    (tmp_path / "many.dcm").write_bytes(enhanced(3))
    rows = json.loads(run(tmp_path / "many.dcm", "--json").stdout)
    assert [row.get("frame") for row in rows] == [3, 2, 1, None]  # by position, feet to head
    assert rows[3]["series_answer"]["slices"] == 3


@pytest.mark.parametrize(
    ("members", "said"),
    [(["glioma", "pituitary"], "undecided between glioma, pituitary"), ([], "undecided, no class is likely enough")],
)
def test_a_line_says_between_what_it_is_undecided(members, said):
    row = {"path": "a.png", "decision": "undecided", "label": None, "prediction_set": members, "elapsed_ms": 1.0}
    assert predict._line(row | {"probabilities": {"glioma": 0.6, "pituitary": 0.4}}).startswith(f"a.png: {said} (")


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


@pytest.mark.parametrize("command", [["predict", "--output", "{file}/x.parquet"], ["explain", "-o", "{file}"]])
def test_an_output_that_cannot_be_written_is_one_line(app_settings, folder, tmp_path, command):
    (tmp_path / "afile").write_bytes(b"")
    words = [word.format(file=tmp_path / "afile") for word in command]
    words = [sys.executable, "-m", "brainmri", words[0], str(folder), *words[1:]]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("brainmri: ")
    assert str(tmp_path / "afile") in last


def test_help_says_that_an_archive_is_answered_file_by_file():
    assert "file by file and builds no series" in " ".join(run("--help").output.replace("│", " ").split())


def test_streamlit_is_not_imported():
    code = "import sys, brainmri.cli; sys.exit(any(m in sys.modules for m in ('streamlit', 'tensorflow', 'keras')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
