"""Series: order, what is set aside, zips that mean harm, the answer to a whole series."""

from __future__ import annotations

import io
import os
import random
import struct
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import need_real_part
from dicom_maker import dicom, picture, stack, zipped
from PIL import Image
from typer.testing import CliRunner

from brainmri.cli import app
from brainmri.config import load_settings
from brainmri.dicom import answer_series, measure, read_files, read_folder, read_series
from brainmri.dicom.reading import _unzip
from brainmri.dicom.series import MIN_RUN, known_words
from brainmri.errors import DataError, InvalidDicomError
from brainmri.inference import load_classifier


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    base = load_settings()
    key_file = tmp_path_factory.mktemp("key") / "uid.key"
    return base.model_copy(update={"dicom": base.dicom.model_copy(update={"key_file": key_file})})


def limited(settings, **changes):
    return settings.model_copy(update={"dicom": settings.dicom.model_copy(update=changes)})


def test_slices_come_by_position_whatever_their_names_and_numbers(settings):
    files = list(stack(8).items())
    random.Random(1).shuffle(files)
    (series,) = read_series(zipped(dict(files)), "s.zip", settings).series
    assert [f.position_mm for f in series.frames] == [0, 5, 10, 15, 20, 25, 30, 35]
    for i, frame in enumerate(series.frames):
        np.testing.assert_array_equal(frame.values, picture(i))
    assert series.label == "T1 MPRAGE AX"
    assert series.plane == "axial"
    assert series.notes == ()


def test_missing_positions_fall_back_on_numbers_and_say_so(settings):
    files = {f"{i}": dicom(picture(i), InstanceNumber=9 - i, ImagePositionPatient=None) for i in range(4)}
    (series,) = read_series(zipped(files), "s.zip", settings).series
    assert [f.instance_number for f in series.frames] == [6, 7, 8, 9]
    assert any("positions are missing" in note for note in series.notes)


def test_gaps_are_told(settings):
    files = {str(i): dicom(InstanceNumber=i, ImagePositionPatient=[0, 0, z]) for i, z in enumerate((0, 5, 10, 30))}
    (series,) = read_series(zipped(files), "s.zip", settings).series
    assert any("gaps" in note for note in series.notes)


SET_ASIDE = {
    "localiser": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
    "localiser, by words": {"SeriesDescription": "3-plane loc"},
    "diffusion": {"ImageType": ["ORIGINAL", "PRIMARY", "DIFFUSION"]},
    "diffusion, by value": {"DiffusionBValue": 1000.0},
    "derived": {"ImageType": ["DERIVED", "PRIMARY", "MPR"]},
    "secondary": {"ImageType": ["ORIGINAL", "SECONDARY", "OTHER"]},
    "CT (computed tomography), not MR": {"Modality": "CT"},
}


@pytest.mark.parametrize("reason", SET_ASIDE)
def test_set_aside_by_name_with_the_reason(settings, reason):
    odd = dicom(picture(9), SeriesInstanceUID="1.2.9", InstanceNumber=99, **SET_ASIDE[reason])
    files = {**stack(3), "sub/odd.dcm": odd, "readme.txt": b"hello", ".DS_Store": b"x"}
    reading = read_series(zipped(files), "s.zip", settings)
    assert [len(s.frames) for s in reading.series] == [3]
    aside = {a.name: a.reason for a in reading.set_aside}
    assert aside["sub/odd.dcm"].startswith(reason.split(",")[0]) or reason in aside["sub/odd.dcm"]
    assert aside["readme.txt"] == "no DICOM file"
    assert ".DS_Store" not in aside
    everything = read_series(zipped(files), "s.zip", settings, insist=True)
    assert sum(len(s.frames) for s in everything.series) == 4


def test_a_whole_archive_of_derived_images_is_taken_with_a_note(settings):
    reading = read_series(zipped(stack(3, ImageType=["DERIVED", "SECONDARY"])), "s.zip", settings)
    assert len(reading.series[0].frames) == 3
    assert any("nothing else" in note for note in reading.series[0].frames[0].slice.notes)
    with pytest.raises(InvalidDicomError, match="diffusion"):
        read_series(zipped(stack(3, DiffusionBValue=800.0)), "s.zip", settings)


def test_repeats_are_set_aside(settings):
    files = stack(3)
    files["copy.dcm"] = next(iter(files.values()))
    reading = read_series(zipped(files), "s.zip", settings)
    assert len(reading.series[0].frames) == 3
    assert "a repeat of" in reading.set_aside[0].reason


def several(*variants: dict, n: int = 4, start: int = 0) -> bytes:
    """A zip of one series that holds an image of each variant at each of n places."""
    files = {}
    for k, tags in enumerate(variants):
        for i in range(n):
            own = {name: value[i] if isinstance(value, tuple) else value for name, value in tags.items()}
            number = {"InstanceNumber": start + k * n + i + 1, "ImagePositionPatient": [-60, -80, 5.0 * i]}
            files[f"{k}-{i}.dcm"] = dicom(picture(10 * k + i), **number, **own)
    return zipped(files)


def numbers(reading) -> list[list[int]]:
    return [[f.instance_number for f in s.frames] for s in reading.series]


AT_ONE_PLACE = {
    "magnitude and real": ({"ImageType": ["ORIGINAL", "PRIMARY", "M"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "R"]}),
    "inversion times": ({"InversionTime": 100}, {"InversionTime": 2500}),
    "acquisitions": ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}),
    "trigger times, by slice": ({"TriggerTime": (1, 2, 3, 4)}, {"TriggerTime": (500, 501, 502, 503)}),
    "interleaved acquisitions": ({"AcquisitionNumber": (1, 2, 1, 2)}, {"AcquisitionNumber": (3, 4, 3, 4)}),
    "nothing but their numbers": ({}, {}),
    "close echoes": ({"EchoTime": 2.0}, {"EchoTime": 2.3}),
}


@pytest.mark.parametrize("case", AT_ONE_PLACE)
def test_images_at_one_place_are_stacks_of_their_own(settings, case):
    reading = read_series(several(*AT_ONE_PLACE[case]), "s.zip", settings)
    assert numbers(reading) == [[1, 2, 3, 4], [5, 6, 7, 8]]
    for series in reading.series:
        assert [f.position_mm for f in series.frames] == [0, 5, 10, 15]
        assert series.notes == ()
        for f in series.frames:  # slices are kept and reported one by one
            assert sum("several images at" in note for note in f.slice.notes) == 1


def test_a_mosaic_is_set_aside(settings):
    files = stack(2) | {"m.dcm": dicom(ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"], SOPInstanceUID="1.2.9")}
    reading = read_series(zipped(files), "s.zip", settings)
    assert [len(s.frames) for s in reading.series] == [2]
    assert [(a.name, a.reason) for a in reading.set_aside] == [("m.dcm", "a sheet of several slices (mosaic)")]


def test_two_things_at_once_tell_four_stacks_apart(settings):
    kinds = [{"ImageType": ["ORIGINAL", "PRIMARY", k], "InversionTime": t} for k in "MP" for t in (100, 900)]
    assert numbers(read_series(several(*kinds), "s.zip", settings)) == [
        [1, 2, 3, 4],
        [5, 6, 7, 8],
        [9, 10, 11, 12],
        [13, 14, 15, 16],
    ]


@pytest.mark.parametrize("tags", [{"AcquisitionNumber": (1, 2, 1, 2)}, {"InversionTime": (100, 101, 102, 103)}])
def test_a_stack_whose_numbers_differ_but_not_its_places_stays_one(settings, tags):
    (series,) = read_series(several(tags), "s.zip", settings).series
    assert [f.instance_number for f in series.frames] == [1, 2, 3, 4]
    assert series.notes == ()


def test_a_slice_that_was_taken_again_does_not_tear_its_stack(settings):
    files = {str(i): dicom(picture(i), InstanceNumber=i + 1, ImagePositionPatient=[0, 0, 5.0 * i]) for i in range(5)}
    files["again"] = dicom(picture(9), InstanceNumber=9, ImagePositionPatient=[0, 0, 10.0], AcquisitionNumber=2)
    assert numbers(read_series(zipped(files), "s.zip", settings)) == [[1, 2, 3, 4, 5], [9]]


def test_slices_sent_again_under_new_uids_are_repeats(settings):
    files = stack(4)
    for i in range(4):
        tags = {"InstanceNumber": i + 1, "ImagePositionPatient": [-60, -80, 5.0 * i]}
        files[f"again-{i}"] = dicom(picture(i), **tags, SOPInstanceUID=f"1.9.{i}")
    reading = read_series(zipped(files), "s.zip", settings)
    assert [len(s.frames) for s in reading.series] == [4]
    assert [a.reason[:11] for a in reading.set_aside] == ["a repeat of"] * 4


def test_different_slices_with_one_uid_are_all_taken_and_say_so(settings):
    reading = read_series(zipped(stack(4, SOPInstanceUID="1.2.3.4.5.6")), "s.zip", settings)
    (series,) = reading.series
    assert reading.set_aside == ()
    np.testing.assert_array_equal([f.values for f in series.frames], [picture(i) for i in range(4)])
    uids = [f.slice.sop_instance_uid for f in series.frames if f.slice.sop_instance_uid]
    assert len(uids) == 1
    assert sum(any("same SOP Instance UID" in n for n in f.slice.notes) for f in series.frames) == 3


def test_one_tumour_slice_seen_twice_is_no_run(settings):
    """Two images at one place are one slice: the answer needs slices in a row."""
    content = several(*AT_ONE_PLACE["magnitude and real"], n=6)
    for series in read_series(content, "s.zip", settings).series:
        answers = [said("glioma" if f.position_mm == 15 else "notumor") for f in series.frames]
        assert answer_series(answers).label is None
        assert "slice 4 of 6 only" in answer_series(answers).text


@pytest.mark.parametrize(
    "tags", [{"EchoTime": ("4.604", "4.605", "4.604", "4.606")}, {"EchoTime": ("90", "91", "90", "91")}]
)
def test_jitter_of_the_echo_time_tears_no_stack(settings, tags):
    assert numbers(read_series(several(tags), "s.zip", settings)) == [[1, 2, 3, 4]]


def test_jitter_of_the_orientation_tears_no_stack(settings):
    tilts = tuple([1, 0, 0, 0, 0.99944, 0.0349999 + (i % 2) * 2e-7] for i in range(4))
    assert numbers(read_series(several({"ImageOrientationPatient": tilts}), "s.zip", settings)) == [[1, 2, 3, 4]]


@pytest.mark.parametrize("first", [0, 1])
def test_a_stack_tilted_by_45_degrees_keeps_its_order(settings, first):
    """Rounding decides there in which direction each slice's own normal points most."""
    files = {}
    for i in range(6):
        c, s = (0.70710678, 0.70710679) if i % 2 == first else (0.70710679, 0.70710678)
        place = {"ImageOrientationPatient": [1, 0, 0, 0, c, s], "ImagePositionPatient": [0, -5.0 * i * s, 5.0 * i * c]}
        files[f"{i}.dcm"] = dicom(picture(i), InstanceNumber=i + 1, **place)
    ((*order,),) = numbers(read_series(zipped(files), "s.zip", settings))
    assert order in ([1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1])


EXAM = {"ProtocolName": "BRAIN TUMOR W DTI, 3 plane loc"}


def test_an_examinations_name_makes_no_series_diffusion_or_a_localiser(settings):
    reading = read_series(zipped(stack(3, SeriesDescription="AX T1 POST", **EXAM)), "s.zip", settings)
    assert [(s.label, len(s.frames)) for s in reading.series] == [("AX T1 POST", 3)]
    assert read_series(dicom(SeriesDescription="AX T1 PRE", **EXAM), "s.dcm", settings).series[0].label == "AX T1 PRE"
    for tags in ({"SeriesDescription": None, **EXAM}, {"SeriesDescription": "AX", "SequenceName": "ep_b1000"}):
        with pytest.raises(InvalidDicomError, match=r"localiser|diffusion"):
            read_series(zipped(stack(3, **tags)), "s.zip", settings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("AX T1 WITHOUT CONTRAST", "AX T1"),
        ("AX T1 NO GD", "AX T1"),
        ("AX T1 W/O CE", "AX T1"),
        ("AX_T1_WO_CONTRAST", "AX T1"),
        ("t1 non-contrast tra", "T1 TRA"),
        ("T1 ohne CE cor", "T1 COR"),
        ("AX T1 without IV contrast", "AX T1"),
        ("AX T1 PRE", "AX T1 PRE"),
        ("AX T1 +C", "AX T1 +C"),
        ("SAG T1 W CONTRAST", "SAG T1 CONTRAST"),
        ("AX T1 POST GD", "AX T1 POST GD"),
    ],
)
def test_a_label_says_contrast_only_where_there_was_some(text, words):
    assert known_words(text) == words


def test_echoes_and_planes_are_series_of_their_own(settings):
    files = {**{f"a{n}": c for n, c in stack(3, EchoTime=10.0).items()}}
    for i in range(2):
        files[f"b{i}"] = dicom(InstanceNumber=50 + i, EchoTime=90.0, ImagePositionPatient=[0, 0, 5 * i])
    for i in range(2):
        files[f"c{i}"] = dicom(
            InstanceNumber=80 + i,
            EchoTime=10.0,
            ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
            ImagePositionPatient=[5 * i, 0, 0],
        )
    series = read_series(zipped(files), "s.zip", settings).series
    assert [len(s.frames) for s in series] == [3, 2, 2]


@pytest.mark.parametrize("path", ["../../evil.dcm", "/etc/evil.dcm", "a/../../evil.dcm", "..\\evil.dcm", "C:/evil.dcm"])
def test_a_path_that_leaves_the_folder(settings, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidDicomError, match="leaves its folder"):
        read_series(zipped({path: dicom()}), "s.zip", settings)
    assert list(tmp_path.iterdir()) == []


def test_zip_bombs(settings):
    bomb = zipped({"zeros.dcm": b"\0" * 60_000_000})
    assert len(bomb) < 100_000
    small = limited(settings, max_archive_mb=20)
    with pytest.raises(InvalidDicomError, match="60 MB when unpacked"):
        read_series(bomb, "s.zip", small)
    lying = bytearray(bomb)  # the directory says 100 bytes
    where = lying.rfind(b"PK\x01\x02")
    struct.pack_into("<I", lying, where + 24, 100)
    tracemalloc.start()
    with pytest.raises(InvalidDicomError):
        read_series(bytes(lying), "s.zip", small)
    assert tracemalloc.get_traced_memory()[1] < 60_000_000
    tracemalloc.stop()
    nested = read_series(zipped({**stack(2), "inner.zip": bomb}), "s.zip", small)
    assert nested.set_aside[0].reason.startswith("a zip inside")


def test_damaged_encrypted_and_empty_zips(settings):
    good = zipped(stack(3))
    with pytest.raises(InvalidDicomError, match="damaged or cut short"):
        read_series(good[: len(good) // 2], "s.zip", settings)
    broken = bytearray(good)
    broken[80] ^= 0xFF
    with pytest.raises(InvalidDicomError, match="damaged"):
        read_series(bytes(broken), "s.zip", settings)
    locked = bytearray(good)
    locked[locked.find(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(InvalidDicomError, match="encrypted"):
        read_series(bytes(locked), "s.zip", settings)
    with pytest.raises(InvalidDicomError, match="it is empty"):
        read_series(zipped({}), "s.zip", settings)
    with pytest.raises(InvalidDicomError, match="no usable MR image"):
        read_series(zipped({"a.txt": b"a", "ct.dcm": dicom(Modality="CT")}), "s.zip", settings)


def test_too_many_slices_and_too_many_files(settings):
    few = limited(settings, max_slices=5)
    with pytest.raises(InvalidDicomError, match="more than 5 slices"):
        read_files(stack(8).items(), "folder", few)
    with pytest.raises(InvalidDicomError, match="files in the zip, the limit is 20"):
        read_series(zipped({f"{i}.dcm": b"x" for i in range(21)}), "s.zip", few)
    content, left = dicom(), iter(range(200))
    with pytest.raises(InvalidDicomError, match="MB when decoded"):
        read_files(((str(i), content) for i in left), "folder", limited(settings, max_archive_mb=0.5))
    assert next(left) < 100  # not read on past the limit


def compressed(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in stack(3).items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_is_damaged_anywhere_is_refused(settings, method):
    content = compressed(method)
    assert len(list(_unzip(content, "s.zip", settings))) == 3
    rng = random.Random(method)
    directory, refused = content.find(b"PK\x01\x02"), 0
    for i in range(400):
        damaged = bytearray(content)
        for _ in range(1 + i % 3):  # half of the damage in the directory at its end
            damaged[rng.randrange(4 if i % 2 else directory, len(damaged))] = rng.randrange(256)
        try:
            list(_unzip(bytes(damaged), "s.zip", settings))
        except InvalidDicomError:
            refused += 1
    assert refused > 100


def test_a_zip_whose_compressed_data_is_damaged_is_refused(settings):
    damaged = bytearray(compressed(zipfile.ZIP_LZMA))
    damaged[60] ^= 0xFF
    with pytest.raises(InvalidDicomError, match=r"'IM\d+.dcm' in the zip is damaged"):
        read_series(bytes(damaged), "s.zip", settings)


def test_a_zip_with_a_file_of_no_name_is_refused(settings):
    content = zipped({"a.dcm": dicom()})
    nameless = content.replace(b"a.dcm", b"\0.dcm")
    with pytest.raises(InvalidDicomError):
        read_series(nameless, "s.zip", settings)


def test_ten_thousand_slices_are_refused_before_they_are_read(settings):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        content = dicom()
        for i in range(10_000):
            archive.writestr(f"{i:05d}.dcm", content)
    with pytest.raises(InvalidDicomError, match="10,000 files in the zip, the limit is 8,000"):
        read_series(buffer.getvalue(), "s.zip", settings)


def test_folders(settings, tmp_path):
    for name, content in stack(3).items():
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / "sub" / name).write_bytes(content)
    (tmp_path / "link.dcm").symlink_to("/etc/hostname")
    reading = read_folder(tmp_path, settings)
    assert len(reading.series[0].frames) == 3
    with pytest.raises(InvalidDicomError, match="no such folder"):
        read_folder(tmp_path / "missing", settings)


def test_the_real_head(settings):
    folder = Path(os.environ.get("BRAINMRI_SHARED") or load_settings().data.root.resolve().parent) / "dicom" / "head_t1"
    if not folder.is_dir():
        need_real_part(f"the sample series dicom/head_t1 beside the data set ({folder.name})")
    reading = read_folder(folder, settings)
    (series,) = reading.series
    assert len(series.frames) == 24
    steps = np.diff([f.position_mm for f in series.frames])
    assert np.all(steps > 0)
    np.testing.assert_allclose(steps, steps[0], rtol=0.02)
    assert series.plane == "axial"
    first = series.frames[0].slice
    assert first.orientation == ("R", "L", "A", "P")
    assert first.pixels.shape == (384, 274)
    np.testing.assert_allclose(first.spacing_mm, (0.6667, 0.7), atol=1e-3)
    assert any("percentile" in note for note in first.notes)


def said(label: str | None, decision: str = "class", p: float = 0.9):
    probabilities = dict.fromkeys(("glioma", "meningioma", "notumor", "pituitary"), 0.02)
    if label:
        probabilities[label] = p
    return SimpleNamespace(label=label, decision=decision, probabilities=probabilities)


def test_the_answer_names_the_strongest_run():
    n, g, u = said("notumor"), said("glioma"), said(None, "undecided")
    answer = answer_series([n, n, g, said("glioma", p=0.97), g, n, said("meningioma"), u, n])
    assert answer.label == "glioma"
    run = answer.runs[0]
    assert (run.first, run.last, run.peak, run.length) == (2, 4, 3, 3)
    assert "slices 3-5 of 9" in answer.text
    assert "meningioma" in answer.text
    assert answer.counts["undecided"] == 1
    alone = answer_series([n, g, n, n, g, g], min_run=3)
    assert alone.label is None
    assert "glioma in slices 5-6 of 6 only; 3 slices in a row are needed" in alone.text
    assert alone.runs[0].first == 4
    assert answer_series([n, g, n, n], min_run=1).label == "glioma"
    assert answer_series([g], min_run=3).label == "glioma"
    assert answer_series([g, u], min_run=3).label is None
    assert answer_series([n, n, u]).label == "notumor"
    assert answer_series([u, u, n]).label is None
    assert answer_series([said(None, "rejected")]).label is None
    assert answer_series([]).label is None


def test_a_run_that_is_long_enough_goes_before_a_surer_one_that_is_not():
    sure, weak = said("meningioma", p=0.99), said("glioma", p=0.4)
    answer = answer_series([sure, sure, said("notumor"), weak, weak, weak], min_run=3)
    assert answer.label == "glioma"
    assert [r.label for r in answer.runs] == ["glioma", "meningioma"]


def stack_of(labels: str, truths: str, patient: str = "a", truth: str = "glioma") -> measure.Stack:
    """A stack from a letter a slice: g glioma, m meningioma, n none, u undecided."""
    names = {"g": "glioma", "m": "meningioma", "n": "notumor", "u": None}
    slices = tuple(
        measure.SliceTruth(names[a], "class" if names[a] else "undecided", said(names[a]).probabilities, names[t])
        for a, t in zip(labels, truths, strict=True)
    )
    return measure.Stack(patient, "flair", truth, slices)


def test_the_rule_is_measured_and_its_number_chosen():
    whole = [stack_of("nnggg", "nnggg"), stack_of("nugmm", "nnggg", "b"), stack_of("nnnnn", "nnggg", "c")]
    free = [stack_of("ngn", "nnn", "a", "notumor"), stack_of("nnn", "nnn", "b", "notumor")]
    said_1, said_2 = (measure.apply_rule(whole + free, k) for k in (1, 2))
    assert said_1.labels == ("glioma", "meningioma", "notumor", "glioma", "notumor")
    assert (said_1.right.sum(), said_1.unanswered.sum(), said_1.net) == (2, 0, -1)
    assert said_2.labels == ("glioma", "meningioma", "notumor", None, "notumor")
    assert said_2.net == 0
    assert measure.apply_rule(whole + free, 3).net == 1
    assert measure.choose_min_run(whole + free) == 3
    text = measure.figures(whole + free, whole + free, "three", "tiny")
    assert "| 3 (chosen) | 2 | 2 | 1 | 1 |" in text
    row = next(line for line in text.splitlines() if line.startswith("| 3 with glioma"))
    assert row.endswith(f"| {3 - 1 - 1 - (MIN_RUN < 3)} | {int(MIN_RUN < 3)} | 1 |")
    assert "shows it in 1 of 1" in text


def test_measuring_by_command(app_settings, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    lines = ["path,label,split,patient,sequence,slice"]
    for split, patient in (("val", "a"), ("test", "b"), ("test", "c")):
        for i in range(5):
            name = f"{patient}{i}.png"
            Image.fromarray(picture(i, (96, 96)).clip(0, 255).astype(np.uint8)).save(images / name)
            lines.append(f"{name},{'glioma' if i > 2 else 'notumor'},{split},{patient},flair,{9 - i}")
    manifest = tmp_path / "m.csv"
    manifest.write_text("\n".join(lines), "utf-8")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- series -->\nold\n<!-- /series -->\nafter\n", "utf-8")
    options = ["dicom", "measure", "--manifest", str(manifest), "--images", str(images), "-o", str(page)]
    done = CliRunner().invoke(app, options)
    text = page.read_text("utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "2 stacks of 1 patients to choose on, 4 stacks of 2 patients to report on" in text
    assert done.exit_code == int("set series.MIN_RUN" in done.stderr)
    classifier = load_classifier("tiny", app_settings.model.directory)
    whole, free = measure.read_stacks(classifier, manifest, images, "val")
    assert [s.truth for s in whole.slices] == ["glioma"] * 2 + ["notumor"] * 3
    assert (whole.truth, free.truth, len(free.slices)) == ("glioma", "notumor", 3)
    page.write_text("no marks", "utf-8")
    assert isinstance(CliRunner().invoke(app, options).exception, DataError)


def test_windows_of_a_series_are_the_files_and_one_of_its_own(settings):
    (series,) = read_series(zipped(stack(3, WindowCenter=600, WindowWidth=900)), "s.zip", settings).series
    titles = [w.name for w in series.windows()]
    assert titles[-1].startswith("whole series")
    assert len(titles) == 2
    frame = series.frames[0]
    wide = replace(series.windows()[0], width=5000)
    assert frame.shown(wide).std() < frame.shown(series.windows()[0]).std()
    np.testing.assert_array_equal(frame.shown(None), frame.slice.pixels)


@pytest.mark.parametrize("first", [picture(), np.zeros((64, 48), np.uint16)], ids=["a head", "air"])
def test_a_series_offers_no_window_that_shows_nothing(settings, first):
    tags = {"WindowCenter": [0, 600], "WindowWidth": [1, 900]}
    below = dicom(first, InstanceNumber=9, ImagePositionPatient=[-60, -80, -5.0], **tags)
    (series,) = read_series(zipped({**stack(3, **tags), "below.dcm": below}), "s.zip", settings).series
    assert [(w.center, w.width) for w in series.windows()[:-1]] == [(600, 900)]
    (series,) = read_series(zipped(stack(3, WindowCenter=0, WindowWidth=1)), "s.zip", settings).series
    assert [w.source for w in series.windows()] == ["percentile"]
