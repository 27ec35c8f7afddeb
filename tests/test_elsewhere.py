"""Heads from the archives of other packages: which way up, and what counts as a tumour."""

from __future__ import annotations

import gzip
import io
import tarfile

import nibabel
import numpy as np
import pandas as pd
import pytest
from conftest import SCRIPTS, script
from PIL import Image

elsewhere = script("elsewhere", SCRIPTS)
SHAPE = (6, 8, 10)
RAS = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
"""Left to right, back to front, foot to head."""


def _archive(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _nifti(voxels, affine):
    return gzip.compress(nibabel.Nifti1Image(voxels, affine).to_bytes())


def _nrrd(voxels, directions):
    kind = {"int16": "short", "int32": "int"}[str(voxels.dtype)]
    fields = {"type": kind, "space": "left-posterior-superior", "sizes": " ".join(map(str, voxels.shape))}
    fields |= {"space directions": directions, "encoding": "gzip"}
    head = ["NRRD0004", *(f"{name}: {value}" for name, value in fields.items())]
    return "\n".join(head).encode() + b"\n\n" + gzip.compress(voxels.tobytes(order="F"))


def test_a_nifti_of_any_orientation_is_turned():
    turned = np.flip(RAS, 0).transpose(0, 2, 1)  # right to left, foot to head, back to front
    affine = np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], float)
    np.testing.assert_array_equal(elsewhere.read_volume({"a.nii.gz": _nifti(turned, affine)}), RAS)


@pytest.mark.parametrize(
    ("directions", "flipped"),
    [("(1,0,0) (0,1,0) (0,0,1)", (0, 1)), ("(1,0,0) (0,-1,0) (0,0,1)", (0,)), ("(-1,0,0) (0,-1,0) (0,0,-2)", (2,))],
)
def test_an_nrrd_is_turned_by_its_directions(directions, flipped):
    content = _nrrd(np.flip(RAS, flipped), directions)
    np.testing.assert_array_equal(elsewhere.read_volume({"a.nrrd": content}), RAS)


def test_slices_lie_upright_and_a_tumours_edge_is_left_out(tmp_path, monkeypatch):
    volume = np.zeros((20, 20, 12), np.int16) + 50
    volume[:, 15:] = 200  # the front
    outline = np.zeros(volume.shape, np.int32)
    outline[2:14, 2:14, 4] = 1
    outline[2:4, 2:4, 5] = 1
    identity = "(-1,0,0) (0,-1,0) (0,0,1)"
    members = {"x/one_image.nrrd": _nrrd(volume, identity), "x/one_label.nrrd": _nrrd(outline, identity)}
    _archive(tmp_path / "p-1.tar.gz", members | {"x/plain.nii.gz": _nifti(volume, np.eye(4))})
    heads = {
        "tumour1": elsewhere.Head("p-1", "one_image.nrrd", "test", {"ax": (0, 12)}),
        "plain": elsewhere.Head("p-1", "plain.nii.gz", "train", {"ax": (0, 12), "sa": (4, 8)}),
    }
    monkeypatch.setattr(elsewhere, "HEADS", heads)
    monkeypatch.setattr(elsewhere, "SPLITS_DIRECTORY", tmp_path)
    monkeypatch.setattr("sys.argv", ["elsewhere.py", str(tmp_path), str(tmp_path / "out")])
    elsewhere.main()
    table = pd.read_csv(tmp_path / "elsewhere.csv", keep_default_na=False).set_index("path")
    pd.testing.assert_frame_equal(
        table, pd.read_csv(tmp_path / "out" / "manifest.csv", keep_default_na=False, index_col=0)
    )
    tumour = table[table["head"] == "tumour1"]
    assert list(tumour.index[tumour["label"] == "tumour"]) == ["tumour1_ax_004.png"]
    assert [int(p[-7:-4]) for p in tumour.index[tumour["label"] == "notumor"]] == [0, 1, 8, 9, 10, 11]
    assert set(tumour["group"]) == {"tumour1"}
    mask = np.asarray(Image.open(tmp_path / "out" / tumour.loc["tumour1_ax_004.png", "mask"]))
    picture = np.asarray(Image.open(tmp_path / "out" / "tumour1_ax_004.png"))
    assert mask.shape == picture.shape == (20, 20)
    assert (picture[:5] > picture[5:].max()).all()  # the front lies on top
    assert mask[6:18, 2:14].all()
    assert mask.sum() == 144 * 255
    plain = table[table["head"] == "plain"]
    assert list(plain.index) == [f"plain_ax_{k:03}.png" for k in range(0, 12, 2)] + [
        "plain_sa_004.png",
        "plain_sa_006.png",
    ]
    assert plain["group"].is_unique


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no such archive"):
        elsewhere.read_members(tmp_path / "p-1.tar.gz", "a.nrrd")
    _archive(tmp_path / "p-1.tar.gz", {"x/b.nrrd": b""})
    with pytest.raises(SystemExit, match="holds no a"):
        elsewhere.read_members(tmp_path / "p-1.tar.gz", "a.nrrd")
