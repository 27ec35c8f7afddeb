"""One DICOM file: formats, values, windows, orientation, refusals, and the guarded decoder."""

from __future__ import annotations

import io
import os
import random
import signal

import numpy as np
import pydicom
import pytest
from dicom_maker import dataset, dicom, enhanced, picture, to_bytes
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from brainmri.config import load_settings
from brainmri.dicom import Window, is_dicom, is_zip, read_series, read_slices
from brainmri.dicom import guard as guard_module
from brainmri.dicom.conformance import conformance_table
from brainmri.dicom.fuzz import mutate, pydicom_files, run_fuzz
from brainmri.errors import BrainMRIError, InvalidDicomError


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    base = load_settings()
    key_file = tmp_path_factory.mktemp("key") / "uid.key"
    return base.model_copy(update={"dicom": base.dicom.model_copy(update={"key_file": key_file})})


def frame_of(content: bytes, settings, **options):
    return read_series(content, "x.dcm", settings, **options).series[0].frames[0]


def without_deidentification(settings):
    return settings.model_copy(update={"dicom": settings.dicom.model_copy(update={"deidentify": False})})


def test_values_grid_spacing_and_letters(settings):
    values = picture()
    frame = frame_of(dicom(values), settings)
    np.testing.assert_array_equal(frame.values, values)
    s = frame.slice
    assert s.pixels.shape == values.shape
    assert s.pixels.dtype == np.uint8
    assert s.spacing_mm == (0.9, 0.9)
    assert s.orientation == ("R", "L", "A", "P")
    assert s.source_format == "DICOM"
    assert s.frame is None
    assert any("percentile" in note for note in s.notes)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_window_is_that_of_the_standard(settings, function, photometric):
    ds = dataset(
        WindowCenter=[700, 900],
        WindowWidth=[800, 300],
        VOILUTFunction=function,
        RescaleSlope=2,
        RescaleIntercept=-100,
        PhotometricInterpretation=photometric,
    )
    frame = frame_of(to_bytes(ds), settings)
    values = apply_modality_lut(ds.pixel_array, ds)
    np.testing.assert_allclose(frame.values, values)
    assert [(w.center, w.width) for w in frame.windows] == [(700, 800), (900, 300)]
    for index, window in enumerate(frame.windows):
        low, high = -100.0, 65535 * 2 - 100.0  # pydicom scales to the data type's range
        shown = (apply_voi_lut(values.astype(float), ds, index=index) - low) / (high - low) * 255
        expected = 255 - shown if photometric == "MONOCHROME1" else shown
        np.testing.assert_allclose(frame.shown(window), expected, atol=1.01)


def lookup_table(n: int, first: int, **tags) -> Sequence:
    """A rising table of 16 bits for n values from the first."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [n, first, 16])
    item.add_new("LUTData", "US", np.linspace(0, 65535, n).astype(int).tolist())
    for keyword, value in tags.items():
        setattr(item, keyword, value)
    return Sequence([item])


def test_voi_lut(settings):
    ds = dataset(picture(), VOILUTSequence=lookup_table(1400, 100))
    frame = frame_of(to_bytes(ds), settings)
    expected = apply_voi_lut(ds.pixel_array, ds) / 65535 * 255
    np.testing.assert_allclose(frame.slice.pixels, expected, atol=1.01)


@pytest.mark.parametrize("vr", ["SS", "US"])
def test_voi_lut_of_signed_values(settings, vr):
    """The first value mapped is below zero; some writers put it into an unsigned field all the same."""
    signed = picture().astype(np.int16) - 700
    np.testing.assert_array_equal(frame_of(dicom(signed), settings).values, signed)
    ds = dataset(signed, VOILUTSequence=lookup_table(1400, -600))
    expected = np.interp(signed, [-600, 799], [0, 255])
    if vr == "US":
        ds.VOILUTSequence[0].add_new("LUTDescriptor", "US", [1400, 65536 - 600, 16])
    frame = frame_of(to_bytes(ds), settings)
    assert (frame.windows[0].function, frame.windows[0].first_mapped) == ("LUT", -600)
    np.testing.assert_allclose(frame.slice.pixels, expected, atol=1.01)


def test_modality_lut(settings):
    ds = dataset(picture(), ModalityLUTSequence=lookup_table(1400, 50, ModalityLUTType="US"))
    frame = frame_of(to_bytes(ds), settings)
    np.testing.assert_array_equal(frame.values, apply_modality_lut(ds.pixel_array, ds))
    assert frame.values.max() > 2 * picture().max()


def test_signed_bits_above_the_pixels_are_their_sign(settings):
    values = (picture() & 0x07FF).astype(np.int16) - 700
    content = dicom((values.astype(np.uint16) & 0x0FFF) | 0x5000, BitsStored=12, HighBit=11, PixelRepresentation=1)
    for chosen in (settings, without_deidentification(settings)):
        np.testing.assert_array_equal(frame_of(content, chosen).values, values)


def test_twelve_bits_ignore_what_lies_above(settings):
    values = picture() & 0x0FFF
    content = dicom(values | 0x8000, BitsStored=12, HighBit=11)
    for chosen in (settings, without_deidentification(settings)):
        np.testing.assert_array_equal(frame_of(content, chosen).values, values)


def test_padding_does_not_spoil_the_window(settings):
    values = picture().astype(np.int16)
    values[:20] = -2000
    frame = frame_of(dicom(values, PixelPaddingValue=-2000), settings)
    assert frame.values.min() == values[20:].min()
    assert frame.slice.pixels[:20].max() == frame.slice.pixels.min()


def test_a_window_that_shows_nothing_is_not_used(settings):
    frame = frame_of(dicom(WindowCenter=60000, WindowWidth=10), settings)
    assert len(np.unique(frame.slice.pixels)) > 50
    assert any("shows nothing" in note for note in frame.slice.notes)


def test_colour_becomes_luminance_whatever_the_planes(settings):
    rgb = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    expected = np.rint(rgb @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    for planar in (0, 1):
        stored = rgb if planar == 0 else np.moveaxis(rgb, -1, 0)
        ds = dataset(rgb[..., 0].copy(), SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=planar)
        ds.PixelData = stored.tobytes()
        mri_slice = frame_of(to_bytes(ds), settings).slice
        np.testing.assert_allclose(mri_slice.pixels, expected, atol=1)
        assert mri_slice.colour_share > 0.9
        assert any(note.startswith("the picture is in colour") for note in mri_slice.notes)
        ds.PixelData = np.repeat(rgb[..., :1], 3, axis=2).transpose((0, 1, 2) if planar == 0 else (2, 0, 1)).tobytes()
        assert frame_of(to_bytes(ds), settings).slice.colour_share == 0


@pytest.mark.parametrize(
    ("cosines", "letters", "plane"),
    [
        ([1, 0, 0, 0, 1, 0], ("R", "L", "A", "P"), "axial"),
        ([-1, 0, 0, 0, 1, 0], ("L", "R", "A", "P"), "axial"),
        ([1, 0, 0, 0, 0, -1], ("R", "L", "S", "I"), "coronal"),
        ([0, 1, 0, 0, 0, -1], ("A", "P", "S", "I"), "sagittal"),
        ([0.8, 0.6, 0, 0, 0, -1], ("R", "L", "S", "I"), "coronal"),
    ],
)
def test_letters_follow_the_cosines_and_nothing_is_mirrored(settings, cosines, letters, plane):
    values = picture()
    frame = frame_of(dicom(values, ImageOrientationPatient=cosines), settings)
    assert frame.slice.orientation == letters
    assert frame.plane == plane
    np.testing.assert_array_equal(frame.values, values)
    assert any("patient's left is at the left" in n for n in frame.slice.notes) == (letters[0] == "L")
    assert any(n.startswith("oblique") for n in frame.slice.notes) == (0.8 in cosines)


@pytest.mark.parametrize("degrees", [0, 15, 40, 44.9, 45, 45.1, 60])
def test_letters_of_a_picture_turned_in_its_plane_name_four_sides(settings, degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    frame = frame_of(dicom(ImageOrientationPatient=[float(v) for v in (c, s, 0, -s, c, 0)]), settings)
    assert set(frame.slice.orientation) == set("RLAP")
    assert frame.slice.orientation == (("R", "L", "A", "P") if degrees <= 45 else ("A", "P", "L", "R"))
    turned = [n for n in frame.slice.notes if n.startswith("turned in its plane")]
    assert bool(turned) == (degrees > 20)


@pytest.mark.parametrize(
    ("cosines", "top"),
    [
        ([1, 0, 0, 0, 1, 0], None),
        ([1, 0, 0, 0, -1, 0], "P is at the top, not A"),
        ([0, 1, 0, -1, 0, 0], "L is at the top, not A"),
        ([1, 0, 0, 0, 0, 1], "I is at the top, not S"),
        ([0, 1, 0, 0, 0, -1], None),
    ],
)
def test_an_unusual_top_is_said(settings, cosines, top):
    notes = frame_of(dicom(ImageOrientationPatient=cosines), settings).slice.notes
    assert [n[: len(top or "")] for n in notes if "is at the top" in n] == ([top] if top else [])


def test_the_size_of_a_pixel_that_cannot_be_is_not_used(settings):
    mri_slice = frame_of(dicom(PixelSpacing=[0.1, 15]), settings).slice
    assert mri_slice.spacing_mm is None
    assert any("not credible" in note for note in mri_slice.notes)
    assert any(
        "not square (0.50 x 0.75 mm)" in n for n in frame_of(dicom(PixelSpacing=[0.5, 0.75]), settings).slice.notes
    )


@pytest.mark.parametrize("cosines", [None, [1, 0, 0, 1, 0, 0], [0] * 6])
def test_orientation_that_means_nothing_gives_no_letters(settings, cosines):
    frame = frame_of(dicom(ImageOrientationPatient=cosines), settings)
    assert frame.slice.orientation is None
    assert "the file does not say which side is which" in frame.slice.notes
    fallback = frame_of(dicom(ImageOrientationPatient=None, PatientOrientation=["L", "F"]), settings)
    assert fallback.slice.orientation == ("R", "L", "S", "I")


def test_enhanced_multi_frame(settings):
    reading = read_series(enhanced(3), "multi.dcm", settings)
    (series,) = reading.series
    assert [f.slice.frame for f in series.frames] == [3, 2, 1]  # stored head to feet
    assert series.frames[0].slice.spacing_mm == (0.5, 0.5)
    assert series.frames[2].windows[0].center == 600
    np.testing.assert_array_equal(series.frames[2].values, picture(0) * 2.0)
    np.testing.assert_array_equal(series.frames[0].values, picture(2) * 2.0 - 2)


ALONE = {
    "localiser": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
    "diffusion": {"DiffusionBValue": 1000.0},
    "diffusion-weighted": {"ImageType": ["DERIVED", "PRIMARY", "ADC"]},
}


@pytest.mark.parametrize("reason", ALONE)
def test_what_a_folder_would_set_aside_is_refused_alone_as_well(settings, reason):
    content = dicom(**ALONE[reason])
    with pytest.raises(InvalidDicomError, match=rf"x\.dcm: set aside: {reason}.*insist"):
        read_slices(content, "x.dcm", settings)
    assert len(read_slices(content, "x.dcm", settings, insist=True)) == 1
    derived = read_slices(dicom(ImageType=["DERIVED", "PRIMARY", "MPR"]), "x.dcm", settings)[0]
    assert any("nothing else" in note for note in derived.notes)


def test_an_unknown_transfer_syntax_is_named(settings):
    content = dicom().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.113619.5.2\0\0")
    with pytest.raises(InvalidDicomError, match=r"unknown transfer syntax 1\.2\.840\.113619\.5\.2; expected"):
        read_slices(content, "x.dcm", settings)


def test_a_picture_that_would_be_a_line_in_true_proportions_keeps_its_pixels(settings):
    (line,) = read_slices(dicom(np.ones((400, 25), np.uint16), PixelSpacing=[4.0, 0.5]), "x.dcm", settings)
    assert line.spacing_mm is None
    assert any("not credible and not used" in note for note in line.notes)


REFUSALS = {
    "CT": ({"Modality": "CT"}, r"CT \(computed tomography\), not MR"),
    "CR": ({"Modality": "CR"}, "CR .*not MR"),
    "no modality": ({"Modality": None}, "unknown modality"),
    "burned in": ({"BurnedInAnnotation": "YES"}, "burned into the picture"),
    "small": ({"Rows": 3, "Columns": 3}, "at least 16 x 16"),
    "long": ({"Rows": 16, "Columns": 400}, "one side is over 20 times the other"),
    "high bit": ({"HighBit": 15, "BitsStored": 12}, "HighBit is 15 with 12 BitsStored, expected 11"),
    "huge": ({"Rows": 65535, "Columns": 65535}, "the limit is"),
    "frames": ({"NumberOfFrames": 100_000}, "frames, the limit is"),
    "short": ({"Rows": 200}, "cut short"),
    "samples": ({"SamplesPerPixel": 7}, "samples"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_by_name(settings, case):
    tags, message = REFUSALS[case]
    with pytest.raises(InvalidDicomError, match=message):
        read_slices(dicom(**tags), "x.dcm", settings)


@pytest.mark.parametrize("case", ["CT", "CR", "no modality", "burned in"])
def test_the_reader_may_insist(settings, case):
    assert len(read_slices(dicom(**REFUSALS[case][0]), "x.dcm", settings, insist=True)) == 1


@pytest.mark.parametrize("content", [b"", b"DICM", b"hello" * 100, b"\x89PNG\r\n\x1a\n" + b"0" * 200])
def test_what_is_no_dicom(settings, content):
    with pytest.raises(InvalidDicomError):
        read_slices(content, "x.dcm", settings)
    assert not is_zip(content)


def test_detection(settings):
    content = dicom()
    assert is_dicom(content)
    assert is_dicom(content[132:])  # without preamble
    assert not is_dicom(b"\x89PNG" + b"\0" * 200)
    assert not is_dicom(b"\xff\xd8\xff\xe0" + b"\0" * 200)


def test_cut_anywhere_is_an_error_not_a_crash(settings):
    content = dicom()
    for end in range(140, len(content) - 1, 397):
        with pytest.raises(BrainMRIError):
            read_slices(content[:end], "x.dcm", settings)


def test_deep_nesting(settings):
    inner = Dataset()
    for _ in range(1500):
        outer = Dataset()
        outer.ReferencedImageSequence = Sequence([inner])
        inner = outer
    import sys

    ds = dataset()
    ds.ReferencedImageSequence = inner.ReferencedImageSequence
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    try:
        content = to_bytes(ds)
    finally:
        sys.setrecursionlimit(limit)
    with pytest.raises(InvalidDicomError, match="nested too deep"):
        read_slices(content, "x.dcm", settings)


def test_a_deflated_bomb(settings):
    ds = dataset(np.zeros((4000, 4000), np.uint16))
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    content = to_bytes(ds)
    assert len(content) < 100_000
    tight = settings.model_copy(update={"dicom": settings.dicom.model_copy(update={"max_archive_mb": 10})})
    with pytest.raises(InvalidDicomError, match="deflated data over 10 MB"):
        read_slices(content, "x.dcm", tight)
    assert read_slices(content, "x.dcm", settings)[0].pixels.shape == (4000, 4000)


def test_one_file_may_not_take_more_than_an_upload_once_decoded(settings):
    values = np.zeros((60, 256, 256), np.uint8)
    values[:, 50:150, 50:150] = np.arange(100, dtype=np.uint8)
    content = dicom(values, NumberOfFrames=60, RescaleSlope=2, RescaleIntercept=0)  # one byte a value becomes five
    tight = settings.model_copy(update={"dicom": settings.dicom.model_copy(update={"max_archive_mb": 10})})
    with pytest.raises(InvalidDicomError, match=r"takes more than 10 MB when decoded \(dicom.max_archive_mb\)"):
        read_slices(content, "x.dcm", tight)
    assert len(read_slices(content, "x.dcm", settings)) == 60


def long_headers(n: int) -> bytes:
    """An enhanced file of small frames with what scanners say of each, coil elements above all."""
    ds = pydicom.dcmread(io.BytesIO(enhanced(2)))
    frame = ds.PerFrameFunctionalGroupsSequence[0]
    coil = Dataset()
    coil.ReceiveCoilName, coil.MultiCoilDefinitionSequence = "HEAD", Sequence()
    for i in range(60):
        element = Dataset()
        element.MultiCoilElementName, element.MultiCoilElementUsed = f"C{i}", "YES"
        coil.MultiCoilDefinitionSequence.append(element)
    frame.MRReceiveCoilSequence = Sequence([coil])
    frames = []
    for i in range(n):
        one = Dataset(frame)
        place = Dataset()
        place.ImagePositionPatient = [0, 0, 1.0 * i]
        one.PlanePositionSequence = Sequence([place])
        frames.append(one)
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    ds.NumberOfFrames = n
    ds.PixelData = ds.PixelData[: len(ds.PixelData) // 2] * n
    return to_bytes(ds)


def test_processor_time_goes_by_the_size_of_a_file_and_a_refusal_names_it(settings, monkeypatch):
    content = long_headers(150)
    monkeypatch.setattr(guard_module, "CPU_SECONDS", 0.05)
    assert len(read_slices(content, "x.dcm", settings)) == 150
    monkeypatch.setattr(guard_module, "CPU_SECONDS_PER_MB", 0.0)
    with pytest.raises(InvalidDicomError, match=r"more processor time than a file may \(0\.1 s for one step\)"):
        read_slices(content, "x.dcm", settings)
    monkeypatch.undo()
    assert read_slices(dicom(), "x.dcm", settings)


def test_all_encodings_of_one_picture_agree(settings):
    files = {p.name: p for p in pydicom_files()}
    reference = pydicom.dcmread(files["MR_small.dcm"]).pixel_array
    names = ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_expb.dcm", "MR_small_implicit.dcm"]
    names += ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_padded.dcm"]
    for name in names:
        np.testing.assert_array_equal(frame_of(files[name].read_bytes(), settings).values, reference, err_msg=name)


def test_twelve_bit_jpeg_matches_the_published_reference(settings):
    path = next(p for p in pydicom_files() if p.name == "JPEG-lossy.dcm")
    values = frame_of(path.read_bytes(), settings, insist=True).values
    assert (values[420, 140], values[230, 120]) == (244, 95)  # as pydicom's own tests have it


def test_the_table_in_the_docs_is_what_a_run_gives(settings):
    from pathlib import Path

    table = conformance_table(settings)
    assert "MR_small_jpeg_ls_lossless.dcm | JPEG-LS Lossless Image Compression | MR | decoded, 64 × 64" in table
    docs = (Path(__file__).parent.parent / "docs" / "dicom.md").read_text("utf-8")
    assert table in docs, "regenerate with: brainmri dicom table -o docs/dicom.md"


def test_a_sample_of_the_fuzz(settings):
    result = run_fuzz(settings, 150, seed=7)
    assert result.failures == []
    assert result.left_behind == []
    assert result.slowest_seconds < 5
    assert result.decoded + result.refused == 150
    assert result.decoded > 10


def test_mutations_are_reproducible():
    content = dicom()
    assert mutate(content, random.Random(3)) == mutate(content, random.Random(3))
    assert any(mutate(content, random.Random(i)) != content for i in range(5))


def test_a_decoder_that_dies_or_hangs_costs_one_file(settings, monkeypatch):
    content = dicom()
    assert read_slices(content, "x.dcm", settings)
    worker = guard_module._idle[-1]
    os.kill(worker.process.pid, signal.SIGSTOP)
    monkeypatch.setattr(guard_module, "STEP_SECONDS", 0.5)
    with pytest.raises(InvalidDicomError, match="took too long"):
        read_slices(content, "x.dcm", settings)
    monkeypatch.undo()
    assert worker.process.poll() is not None
    assert read_slices(content, "x.dcm", settings)
    guard_module._idle[-1].process.kill()
    guard_module._idle[-1].process.wait()
    assert read_slices(content, "x.dcm", settings)


def test_windows_are_drawn_like_the_standard_says():
    values = np.array([[0, 50, 100, 150, 200]], np.int16)
    assert Window(100, 101).apply(values).tolist() == [[0, 1, 129, 255, 255]]
    assert Window(100, 100, "LINEAR_EXACT").apply(values).tolist() == [[0, 0, 128, 255, 255]]
    assert Window(100, 100, "LINEAR_EXACT").apply(values, inverted=True).tolist() == [[255, 255, 127, 0, 0]]
