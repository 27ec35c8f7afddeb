"""The audit on pictures whose copies are known, because they are made here; then on the real data set."""

import functools
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import need_real_part
from PIL import Image, ImageEnhance, ImageFilter
from scipy import ndimage
from typer.testing import CliRunner

from brainmri import audit as auditing
from brainmri.audit import Audit, audit, detail_correlation, propose_split
from brainmri.cli import app
from brainmri.config import load_settings
from brainmri.data import read_folder, read_manifest
from brainmri.errors import DataError
from brainmri.types import CLASS_NAMES

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def picture(seed: int, height: int = 200, width: int = 180) -> Image.Image:
    """A head-like ellipse with a texture of its own."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    texture = ndimage.gaussian_filter(rng.normal(size=(height, width)), 3)
    head = (rows**2 / 0.8 + columns**2 / 0.6) < 1
    return Image.fromarray((head * (110 + 60 * texture / texture.std())).clip(0, 255).astype(np.uint8))


def recompressed(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


COPIES = {
    "recompressed": (lambda x: recompressed(x, 40), "near copy"),
    "resized": (lambda x: x.resize((300, 333)), "near copy"),
    "brighter": (lambda x: ImageEnhance.Brightness(x).enhance(1.25), "near copy"),
    "less contrast": (lambda x: ImageEnhance.Contrast(x).enhance(0.6), "near copy"),
    "sharpened": (lambda x: x.filter(ImageFilter.UnsharpMask(2, 120, 0)), "near copy"),
    "softened": (lambda x: x.filter(ImageFilter.GaussianBlur(2)), "near copy"),
    "mirrored": (lambda x: x.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "mirrored"),
    "mirrored and recompressed": (lambda x: recompressed(x.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 50), "mirrored"),
    "upside down": (lambda x: x.transpose(Image.Transpose.FLIP_TOP_BOTTOM), "rotated"),
    "turned by 90": (lambda x: x.transpose(Image.Transpose.ROTATE_90), "rotated"),
    "turned by 180": (lambda x: x.transpose(Image.Transpose.ROTATE_180), "rotated"),
    "turned by 270, mirrored": (
        lambda x: x.transpose(Image.Transpose.ROTATE_270).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "rotated",
    ),
}


@pytest.fixture
def table(tmp_path):
    """`table({path: image or bytes})` with the label and split that the path says: <split>/<class>/<file>."""

    def make(files) -> pd.DataFrame:
        rows = []
        for path, content in files.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content) if isinstance(content, bytes) else content.save(file)
            split, label, _ = path.split("/")
            rows.append({"path": path, "file": str(file), "label": label, "split": split})
        return pd.DataFrame(rows)

    return make


def originals(n: int, start: int = 0) -> dict:
    return {f"train/{CLASS_NAMES[i % 4]}/{i:03d}.png": picture(start + i) for i in range(n)}


def grouped(found: Audit, *names: str) -> bool:
    groups = found.images.set_index("path")["group"]
    return groups[[p for p in groups.index if any(p.endswith(n) for n in names)]].nunique() == 1


# --- copies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_found_and_named(table, name):
    change, kind = COPIES[name]
    files = originals(12) | {"test/glioma/copy.png": change(picture(4))}
    found = audit(table(files))
    assert len(found.pairs) == 1, found.pairs
    pair = found.pairs.iloc[0]
    assert {pair["first"], pair["second"]} == {"train/glioma/004.png", "test/glioma/copy.png"}
    assert pair["kind"] in (kind, "same picture" if kind == "near copy" else kind)
    assert found.summary["n_groups"] == 12
    (leak,) = [x for x in found.summary["leaks"] if x["split"] == "test"]
    assert (leak["also_in"], leak["images"], leak["of"], leak["classes"]) == ("train", 1, 1, {"glioma": 1})


def test_an_exact_copy_is_found_by_its_bytes_even_of_a_blank_picture(table):
    blank = Image.new("L", (100, 100))
    files = originals(8) | {"train/notumor/a.png": blank, "test/notumor/b.png": blank, "test/pituitary/c.png": blank}
    found = audit(table(files))
    assert set(found.pairs["kind"]) == {"same file"}
    assert grouped(found, "a.png", "b.png", "c.png")
    assert found.summary["pairs"] == {"same file": 2}  # a chain joins three files


def test_pictures_of_their_own_are_not_copies(table):
    found = audit(table(originals(30)))
    assert found.pairs.empty
    assert found.summary["n_groups"] == 30
    assert found.summary["leaks"] == []
    assert found.summary["label_conflicts"] == []


def test_orientation_says_how_the_second_picture_matches(table):
    turned = picture(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    found = audit(table(originals(8) | {"test/pituitary/copy.png": turned}))
    assert found.pairs["orientation"].tolist() == ["mirrored"]


def test_detail_correlation_forgives_sharpening_but_not_another_texture():
    one, other = np.asarray(picture(1)), np.asarray(picture(2))
    sharp = np.asarray(picture(1).filter(ImageFilter.UnsharpMask(3, 300, 0)))
    b = auditing.bands(np.stack([auditing.make_thumbnail(x) for x in (one, sharp, other)]))
    np.testing.assert_allclose(detail_correlation(b[:1], b[:1]), 1, atol=1e-5)
    assert detail_correlation(b[:1], b[1:2])[0] > auditing.MIN_DETAIL_CORRELATION
    assert detail_correlation(b[:1], b[2:])[0] < 0.5
    flat = np.zeros((1, 2, 64, 64), np.float32)
    assert detail_correlation(flat, b[:1])[0] == 0  # no division by nothing


# --- what follows from them ------------------------------------------------------------------------------------------


def test_copies_with_different_labels_are_a_conflict(table):
    files = originals(12) | {"train/pituitary/wrong.png": recompressed(picture(1), 60)}
    (conflict,) = audit(table(files)).summary["label_conflicts"]
    assert {row["label"] for row in conflict["images"]} == {"meningioma", "pituitary"}


def test_a_manifests_second_label_is_compared(table):
    rows = table(originals(4)).assign(figshare_label=["glioma", "pituitary", "", "strange"])
    second = audit(rows).summary["second_labels"]
    assert second == [{"path": "train/meningioma/001.png", "label": "meningioma", "figshare_label": "pituitary"}]


def test_odd_sizes_and_unreadable_files_are_named_and_spoil_nothing(table):
    files = originals(8) | {
        "train/glioma/tiny.png": picture(90, 30, 30),
        "train/glioma/strip.png": picture(91, 60, 400),
        "train/glioma/empty.png": b"",
        "train/glioma/text.png": b"this is no picture",
    }
    rows = table(files)
    gone = {"path": "train/glioma/gone.png", "file": "/nowhere/gone.png", "label": "glioma", "split": "train"}
    found = audit(pd.concat([rows, pd.DataFrame([gone])], ignore_index=True))
    assert {x["path"].split("/")[-1] for x in found.summary["sizes"]["odd"]} == {"tiny.png", "strip.png"}
    bad = {x["path"].split("/")[-1]: x["error"] for x in found.summary["unreadable"]}
    assert set(bad) == {"empty.png", "text.png", "gone.png"}
    assert "No such file" in bad["gone.png"]
    assert (found.summary["n_images"], found.summary["n_readable"]) == (13, 10)
    assert found.summary["sizes"]["n_odd"] == 2


def test_nothing_to_audit_is_an_error(table):
    with pytest.raises(DataError, match="no rows"):
        audit(pd.DataFrame(columns=["path", "file", "label", "split"]))
    with pytest.raises(DataError, match="none of 1 files can be read"):
        audit(table({"train/glioma/empty.png": b""}))


def test_one_picture_and_pictures_without_split(table):
    found = audit(table(originals(1)).assign(split=""))
    assert found.summary["n_groups"] == 1
    assert found.summary["leaks"] == []


def test_an_exception_from_progress_stops_the_audit(table):
    class Stop(Exception):
        pass

    def progress(stage, done, total):
        if stage == "indexing":
            raise Stop

    with pytest.raises(Stop):
        audit(table(originals(4)), progress=progress)


def test_progress_reaches_the_end_of_every_stage(table):
    seen = {}
    pictures = originals(6) | {"test/glioma/copy.png": picture(0)}
    audit(table(pictures), progress=lambda stage, done, total: seen.update({stage: (done, total)}))
    assert list(seen) == ["reading", "indexing", "searching", "comparing"]
    assert all(seen[stage] == (7, 7) for stage in ("reading", "indexing", "searching"))
    done, candidates = seen["comparing"]
    assert done == candidates > 0


# --- the proposed split ---------------------------------------------------------------------------------------------


def test_the_proposed_split_does_not_leak_and_keeps_the_share_of_each_class():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 900, 2000)
    labels = np.array(CLASS_NAMES)[groups % 4]  # whole groups of one class
    split = propose_split(labels, groups)
    frame = pd.DataFrame({"label": labels, "group": groups, "split": split})
    kept = frame[frame["split"] != "repeat"]
    assert kept.groupby("group")["split"].nunique().max() == 1
    assert set(split) == {"train", "val", "test", "repeat"}
    for part, share in auditing.FRACTIONS.items():
        held = frame[frame["group"].isin(kept.loc[kept["split"] == part, "group"])]
        assert np.abs(held["label"].value_counts() / frame["label"].value_counts() - share).max() < 0.02
    evaluated = frame[frame["split"].isin(["val", "test"])]
    assert not evaluated.duplicated("group").any()  # a slice counts once where figures come from
    # a further copy of an evaluated slice trains nothing either
    assert not set(frame.loc[frame["split"] == "repeat", "group"]) & set(frame.loc[frame["split"] == "train", "group"])
    np.testing.assert_array_equal(split, propose_split(labels, groups))  # and the same again


def test_the_proposed_split_keeps_patients_together_and_all_their_slices(table):
    pictures = originals(40)
    copy = recompressed(picture(39), 60)
    rows = table(pictures | {f"train/{CLASS_NAMES[39 % 4]}/copy.png": copy})
    rows["patient"] = [f"P{i // 4}" for i in range(40)] + ["P9"]
    images = audit(rows).images.assign(patient=rows["patient"])
    different = images.drop_duplicates("group")
    assert set(different["proposed_split"]) == {"train", "val", "test"}  # another slice of a patient is no repeat
    assert different.groupby("patient")["proposed_split"].nunique().max() == 1
    assert different["proposed_split"].value_counts().to_dict() == {"train": 28, "test": 8, "val": 4}
    for part in auditing.FRACTIONS:
        assert set(images.loc[images["proposed_split"] == part, "label"]) == set(CLASS_NAMES)
    of_last = images.iloc[39]["proposed_split"]
    assert images.iloc[40]["proposed_split"] == ("train" if of_last == "train" else "repeat")


def test_patients_with_several_classes_are_spread_so_that_each_class_is_in_each_part():
    rng = np.random.default_rng(0)
    patients = np.array([f"P{i}" for i in np.repeat(np.arange(100), rng.integers(15, 40, 100))])
    number = np.char.lstrip(patients, "P").astype(int)
    labels = np.where(rng.random(len(patients)) < 0.4, "glioma", "notumor").astype("U10")
    labels[(number % 10 == 0) & (rng.random(len(patients)) < 0.2)] = "pituitary"  # rare, and in ten patients only
    slices = rng.permutation(len(patients))
    slices[1::50] = slices[::50][: len(slices[1::50])]  # some copies: the next image, mostly of the same patient
    split = propose_split(labels, slices, patients=patients)
    frame = pd.DataFrame({"label": labels, "slice": slices, "patient": patients, "split": split})
    assert (split == "repeat").sum() <= frame.duplicated("slice").sum()
    different = frame[~frame.duplicated("slice")]
    assert "repeat" not in set(different["split"])
    assert different.groupby("patient")["split"].nunique().max() == 1
    shares = pd.crosstab(different["split"], different["label"], normalize="columns")
    for part, share in auditing.FRACTIONS.items():
        assert np.abs(shares.loc[part, ["glioma", "notumor"]] - share).max() < 0.05
        assert shares.loc[part, "pituitary"] > 0


def test_the_lgg_patients_are_split_whole_with_and_without_tumour():
    rows = pd.read_csv(ROOT / "data/splits/lgg.csv", dtype=str, keep_default_na=False)
    split = propose_split(rows["label"].to_numpy(str), np.arange(len(rows)), patients=rows["patient"].to_numpy(str))
    assert rows.assign(split=split).groupby("patient")["split"].nunique().max() == 1
    shares = pd.crosstab(split, rows["label"], normalize="columns")
    assert sorted(shares.index) == ["test", "train", "val"]
    for part, share in auditing.FRACTIONS.items():
        assert np.abs(shares.loc[part] - share).max() < 0.02


def test_a_slice_that_two_patients_share_keeps_both_on_one_side():
    patients = np.repeat([f"P{i}" for i in range(20)], 3)
    slices = np.arange(60)
    slices[58] = 0  # the last patient has the first one's slice
    split = pd.Series(propose_split(np.full(60, "glioma"), slices, patients=patients))
    sides = split[[0, 1, 2, 57, 59]]
    assert sides.nunique() == 1
    assert split[58] == ("train" if sides[0] == "train" else "repeat")


@pytest.mark.parametrize("blank", ["", " ", None])
def test_images_of_unknown_patients_do_not_become_one(table, blank):
    rows = table(originals(40)).assign(patient=blank)
    split = audit(rows).images["proposed_split"]
    assert split.value_counts().to_dict() == {"train": 28, "test": 8, "val": 4}
    rows.loc[:9, "patient"] = "known"
    split = audit(rows).images["proposed_split"]
    assert split[:10].nunique() == 1
    assert set(split[10:]) == {"train", "val", "test"}


def test_a_file_that_is_no_audit_is_refused(table, tmp_path):
    audit(table(originals(4))).save(tmp_path)
    (tmp_path / "audit.json").write_text("{}")
    with pytest.raises(DataError, match="not what 'brainmri audit' writes"):
        Audit.load(tmp_path)


def test_the_proposed_split_of_a_leaking_set_has_no_leaks(table):
    files = originals(40)
    files |= {f"test/{CLASS_NAMES[i % 4]}/m{i}.png": COPIES["mirrored"][0](picture(i)) for i in range(0, 40, 2)}
    found = audit(table(files))
    assert sum(x["images"] for x in found.summary["leaks"]) == 40
    assert found.summary["proposed_split"]["leaks"] == []


# --- how good it is --------------------------------------------------------------------------------------------------


def test_check_counts_wrong_links_and_what_they_join():
    paths = list("abcdef")
    known = pd.DataFrame(
        {
            "group": ["1", "1", "2", "3", "4", "4"],
            "official_split": ["train", "test", "train", "test", "train", "test"],
            "figshare_index": ["10", "10", "20", "", "40", "40"],
        },
        index=pd.Index(paths, name="path"),
    )
    # One wrong link, b to c, makes two wrong pairs: a and c are one group too. The copies e and f are not found.
    images = pd.DataFrame({"path": paths, "group": [0, 0, 0, 0, 1, 2]})
    links = pd.DataFrame({"first": ["a", "b", "c"], "second": ["b", "c", "d"]})
    checked = auditing.check(Audit({}, images, links), known)
    assert (checked["n_known"], checked["found_share"]) == (2, 0.5)
    assert (checked["n_wrong"], checked["n_comparable"], checked["wrong_share_of_comparable"]) == (1, 2, 0.5)
    assert checked["wrong_share"] == round(1 / 3, 5)
    assert (checked["n_wrong_in_groups"], checked["n_comparable_in_groups"]) == (2, 3)
    assert checked["wrong_share_in_groups"] == round(2 / 3, 4)


# --- saving, the command ---------------------------------------------------------------------------------------------


def test_saved_and_opened_again(table, tmp_path):
    found = audit(table(originals(6) | {"test/notumor/copy.png": COPIES["turned by 90"][0](picture(2))}), name="mine")
    found.save(tmp_path / "saved")
    again = Audit.load(tmp_path / "saved")
    assert again.summary == found.summary == json.loads((tmp_path / "saved/audit.json").read_text("utf-8"))
    pd.testing.assert_frame_equal(again.images, found.images, check_dtype=False)
    pd.testing.assert_frame_equal(again.pairs, found.pairs, check_dtype=False)
    again.proposed().to_csv(tmp_path / "split.csv", index=False)
    assert set(read_manifest(tmp_path / "split.csv")["split"]) <= {"train", "val", "test", "repeat"}
    with pytest.raises(DataError, match="run 'brainmri audit'"):
        Audit.load(tmp_path / "nothing")


def test_a_full_disk_leaves_the_audit_that_was_there(table, tmp_path, monkeypatch):
    old, new = audit(table(originals(3)), name="old"), audit(table(originals(5)), name="new")
    old.save(tmp_path / "saved", compressed=True)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_csv", full)
        with pytest.raises(OSError, match="No space"):
            new.save(tmp_path / "saved")
    assert len(Audit.load(tmp_path / "saved").images) == 3
    new.save(tmp_path / "saved")
    assert len(Audit.load(tmp_path / "saved").images) == 5
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == ["audit.json", "groups.csv", "pairs.csv"]


def test_command_takes_a_folder_or_a_manifest(tmp_path, monkeypatch):
    root = tmp_path / "set"
    for folder, seeds in (("Training", range(6)), ("Testing", range(4, 8))):
        (root / folder / "glioma").mkdir(parents=True)
        for seed in seeds:
            picture(seed).save(root / folder / "glioma" / f"{seed}.png")
    run = CliRunner().invoke(app, ["audit", str(root), "--output", str(tmp_path / "a"), "--name", "mine"])
    assert run.exit_code == 0, run.output
    assert "2 of 4 images of 'test' are in 'train' too" in run.output
    saved = json.loads((tmp_path / "a/audit.json").read_text("utf-8"))
    assert (saved["name"], saved["n_groups"], saved["pairs"]) == ("mine", 8, {"same file": 2})
    assert saved["root"] == str(root)
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(app, ["audit", "set", "--output", "relative"])
    assert json.loads((tmp_path / "relative/audit.json").read_text("utf-8"))["root"] == "set"  # can ship
    manifest = pd.DataFrame({"path": ["Training/glioma/0.png", "Testing/glioma/7.png"], "label": "glioma"})
    manifest.assign(part=["one", "two"]).to_csv(root / "list.csv", index=False)
    options = ["--manifest", str(root / "list.csv"), "--split-column", "part", "--output", str(tmp_path / "b")]
    run = CliRunner().invoke(app, ["audit", *options])
    assert run.exit_code == 0, run.output
    assert Audit.load(tmp_path / "b").summary["splits"] == {"one": 1, "two": 1}
    run = CliRunner().invoke(app, ["audit"])
    assert isinstance(run.exception, DataError) or "either ROOT" in run.output


# --- the real set ---------------------------------------------------------------------------------------------------


def test_real_set_meets_its_bars():
    root = load_settings().data.root
    if not (root / "manifest.csv").is_file():
        need_real_part("the Kaggle data set with manifest.csv")
    known = pd.read_csv(root / "manifest.csv", dtype=str, keep_default_na=False).set_index("path")
    found = audit(read_folder(root))
    checked = auditing.check(found, known)
    assert checked["found_share"] >= 0.97
    assert checked["wrong_share"] <= 0.01
    assert checked["wrong_share_of_comparable"] <= 0.01  # of direct links; a group adds what a wrong link joins
    assert checked["wrong_share_in_groups"] <= 0.015
    assert found.summary["proposed_split"]["leaks"] == []
