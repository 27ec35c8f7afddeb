"""Manifests, folders, class names and the shipped splits."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from brainmri import data
from brainmri.config import load_settings
from brainmri.errors import DataError
from brainmri.types import CLASS_NAMES


@pytest.mark.parametrize(
    ("spelt", "name"),
    [
        ("no_tumor", "notumor"),
        ("No Tumour", "notumor"),
        ("glioma_tumor", "glioma"),
        ("Meningioma-Tumour", "meningioma"),
        ("pituitary", "pituitary"),
        ("tumour", "tumour"),
    ],
)
def test_class_aliases(spelt, name):
    assert data.canonical_label(spelt) == name


def test_unknown_class_lists_the_known_ones():
    with pytest.raises(DataError, match="'stroke'; expected one of glioma, meningioma, notumor, pituitary"):
        data.canonical_label("stroke")


def _write_images(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 20), 90, np.uint8)).save(root / name)


def test_kaggle_folders(tmp_path):
    _write_images(tmp_path, ["Training/glioma_tumor/a.jpg", "Training/no_tumor/b.png", "Testing/pituitary/c.jpg"])
    (tmp_path / "Training/no_tumor/notes.txt").write_text("not an image")
    table = data.read_folder(tmp_path)
    assert list(zip(table["label"], table["split"], strict=True)) == [
        ("glioma", "train"),
        ("notumor", "train"),
        ("pituitary", "test"),
    ]
    with pytest.raises(DataError, match="brainmri data fetch"):
        data.read_folder(tmp_path / "nowhere")


def test_manifest_keeps_other_columns_and_selects_a_split(tmp_path):
    _write_images(tmp_path, ["x/a.png", "x/b.png"])
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,label,fold,group,plane\nx/a.png,no_tumor,one,7,ax\nx/b.png,glioma,two,8,co\n")
    table = data.read_manifest(manifest, split_column="fold")
    assert list(table["group"]) == ["7", "8"]
    assert list(table["plane"]) == ["ax", "co"]
    assert list(data.select_split(table, "two")["label"]) == ["glioma"]
    with pytest.raises(DataError, match="split 'three' is empty; splits here: one, two"):
        data.select_split(table, "three")
    (tmp_path / "x/b.png").unlink()
    with pytest.raises(DataError, match=r"1 of 1 images are missing.*x/b\.png"):
        data.select_split(table, "two")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na,glioma\n", "no column split"),
        ("path,label,split\n", "has no rows"),
        ("path,label,split\na,glioma,x\nb,stroke,x\n", "line 3: unknown class 'stroke'"),
        ("", "not a readable CSV"),
    ],
)
def test_bad_manifest_is_one_clear_line(tmp_path, text, message):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        data.read_manifest(tmp_path / "m.csv")
    assert "\n" not in str(caught.value)


def test_fetch_without_network_says_how_to_do_it_by_hand(tmp_path, monkeypatch):
    import kagglehub

    def no_network(_):
        raise ConnectionError("unreachable")

    monkeypatch.setattr(kagglehub, "dataset_download", no_network)
    with pytest.raises(DataError, match="by hand") as caught:
        data.fetch(tmp_path / "d")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "d").exists()


def test_fetch_copies_what_was_downloaded(tmp_path, monkeypatch):
    import kagglehub

    _write_images(tmp_path / "cache", ["Training/glioma/a.jpg", "Testing/notumor/b.jpg"])
    monkeypatch.setattr(kagglehub, "dataset_download", lambda _: str(tmp_path / "cache"))
    root = data.fetch(tmp_path / "d")
    assert len(data.read_folder(root)) == 2


def test_a_fetch_that_stopped_half_way_goes_on(tmp_path, monkeypatch):
    import kagglehub

    _write_images(tmp_path / "cache", ["Training/glioma/a.jpg", "Testing/notumor/b.jpg"])
    monkeypatch.setattr(kagglehub, "dataset_download", lambda _: str(tmp_path / "cache"))
    copy = data.shutil.copytree

    def stopping(source, target, *rest, **options):
        if Path(target).name.startswith("Testing"):
            raise KeyboardInterrupt
        return copy(source, target, *rest, **options)

    monkeypatch.setattr(data.shutil, "copytree", stopping)
    with pytest.raises(KeyboardInterrupt):
        data.fetch(tmp_path / "d")
    monkeypatch.setattr(data.shutil, "copytree", copy)
    kept = next(tmp_path.glob("d/Training/*/*")).stat().st_ino
    assert len(data.read_folder(data.fetch(tmp_path / "d"))) == 2
    assert next(tmp_path.glob("d/Training/*/*")).stat().st_ino == kept


def test_shipped_clean_split_shares_no_group():
    table = data.read_manifest(data.SPLITS_DIRECTORY / "brain_tumor_mri.csv", split_column="clean_split")
    groups = {split: set(table.loc[table["split"] == split, "group"]) for split in ("train", "val", "test")}
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["val"]
    assert not groups["val"] & groups["test"]
    assert set(table["label"]) == set(CLASS_NAMES)
    assert table["sha256"].str.fullmatch("[0-9a-f]{64}").all()


def test_shipped_split_fits_the_data_set_on_this_machine():
    root = load_settings().data.root
    if not root.is_dir() and not os.environ.get("CI"):
        pytest.skip(f"no data set: {data.fetch_hint(root)}")
    table = data.read_manifest(data.SPLITS_DIRECTORY / "brain_tumor_mri.csv", root, "clean_split")
    assert len(data.select_split(table, "test")) == 746
    listed = data.read_folder(root)
    assert set(listed["path"]) == set(table["path"])
    merged = listed.merge(table, on="path", suffixes=("", "_manifest"))
    assert (merged["label"] == merged["label_manifest"]).all()
    pd.testing.assert_series_equal(merged["split"], merged["official_split"], check_names=False)
