"""De-identification: nothing of the patient is left, one study stays one study, the key stays secret."""

from __future__ import annotations

import io
import re
import stat
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from dicom_maker import STUDY, dataset, dicom, enhanced, picture, to_bytes
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_sequence
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian

from brainmri.config import load_settings
from brainmri.dicom import read_series
from brainmri.dicom.deidentify import load_key, new_uid
from brainmri.dicom.fuzz import pydicom_files
from brainmri.errors import InvalidDicomError, StorageError
from brainmri.inference import load_classifier
from brainmri.pipeline import analyse
from brainmri.storage import load_slice, save_record


@pytest.fixture
def settings(tmp_path):
    base = load_settings()
    return base.model_copy(update={"dicom": base.dicom.model_copy(update={"key_file": tmp_path / "uid.key"})})


def with_(settings, **changes):
    return settings.model_copy(update={"dicom": settings.dicom.model_copy(update=changes)})


def only_frame(content: bytes, settings):
    return read_series(content, "Johanna Mueller.dcm", settings).series[0].frames[0]


def secretive() -> bytes:
    """Names and dates at the top, in sequences, in private elements, in the preamble and behind the pixels."""
    ds = dataset(AccessionNumber="ACC-99", PatientComments="called JOHANNA", OperatorsName="Nurse^Secret")
    inner = Dataset()
    inner.PatientName = "Inner^Johanna"
    inner.ReferencedSOPInstanceUID = "1.2.3.999"
    inner.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    ds.ReferencedImageSequence = Sequence([inner])
    deep = Dataset()
    deep.PersonName = "Deep^Johanna"
    code = Dataset()
    code.CodeMeaning = "ok"
    deep.ConceptNameCodeSequence = Sequence([code])
    ds.add_new(0x00400555, "SQ", Sequence([deep]))
    block = ds.private_block(0x0029, "SIEMENS CSA", create=True)
    block.add_new(0x10, "LO", "private JOHANNA")
    ds.add_new(0x60003000, "OW", b"JOHANNA!" * 4)
    ds.DataSetTrailingPadding = b"JOHANNA "
    ds.preamble = b"JOHANNA ".ljust(128, b"\0")
    return to_bytes(ds)


def test_no_trace_is_left(settings):
    frame = only_frame(secretive(), settings)
    kept = frame.slice.content
    for secret in (
        b"JOHANNA",
        b"Johanna",
        b"M\xc3\xbcller",
        b"K4711Q",
        b"19610203",
        b"20240405",
        b"101112",
        b"Elsewhere",
    ):
        assert secret not in kept, secret
    for secret in (
        b"Who",
        b"ACC-99",
        b"Secret",
        STUDY.encode() + b"\0",
        b"1.2.3.999",
        b"Mueller",
        b"SIEMENS",
        b"101112",
    ):
        assert secret not in kept, secret
    assert "Mueller" not in frame.slice.name + frame.label + frame.patient_id
    assert frame.label == "T1 MPRAGE AX"
    ds = pydicom.dcmread(io.BytesIO(kept))
    assert ds.PatientIdentityRemoved == "YES"
    assert ds.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert ds.PatientName == ds.PatientID == frame.patient_id
    assert frame.patient is None


def test_what_was_removed_is_listed_without_values(settings):
    removed = only_frame(secretive(), settings).removed
    names = {(item["name"], item["action"]) for item in removed}
    assert ("PatientComments", "removed") in names
    assert ("private element", "removed") in names
    assert ("StudyInstanceUID", "new UID") in names
    assert "JOHANNA" not in str(removed)
    assert "K4711Q" not in str(removed)


def test_uids_are_keyed_and_stable(settings, tmp_path):
    a, b = only_frame(dicom(InstanceNumber=1), settings), only_frame(dicom(InstanceNumber=2), settings)
    assert a.study_uid == b.study_uid != STUDY
    assert a.series_uid == b.series_uid
    assert a.patient_id == b.patient_id
    assert a.slice.sop_instance_uid != b.slice.sop_instance_uid
    assert len(a.study_uid) <= 64
    other = only_frame(dicom(), with_(settings, key_file=tmp_path / "other.key"))
    assert other.study_uid != a.study_uid
    assert other.patient_id != a.patient_id
    assert only_frame(dicom(PatientID="HOSPITAL-4712"), settings).patient_id != a.patient_id


@pytest.mark.parametrize(
    "tags",
    [
        {"PatientID": None, "PatientName": "Anonymous"},
        {"PatientID": "0"},
        {"PatientID": "ANON"},
        {"PatientID": "anonymous 1", "PatientName": "Anonymous"},
        {"PatientID": "12345"},
        {"PatientID": None, "PatientName": None, "PatientBirthDate": None},
        {"PatientID": "17", "PatientName": "Anonymous", "PatientBirthDate": None},
        {"PatientID": "17", "PatientName": "Anonymous", "PatientBirthDate": "19000101"},
        {"PatientID": "x" * 65},
    ],
)
def test_who_cannot_be_told_apart_is_a_patient_by_study(settings, tags):
    a, again, b = (
        only_frame(dicom(StudyInstanceUID=study, InstanceNumber=i, **tags), settings).patient_id
        for i, study in enumerate(("1.2.3.1", "1.2.3.1", "1.2.3.2"))
    )
    assert a == again != b
    assert re.fullmatch("P-[0-9A-F]{12}", a)


def test_a_patient_is_known_by_id_issuer_name_and_birth_date(settings):
    base = only_frame(dicom(StudyInstanceUID="1.2.3.1"), settings).patient_id
    assert (
        only_frame(dicom(StudyInstanceUID="1.2.3.2", PatientName="MÜLLER^Johanna^Maria"), settings).patient_id == base
    )
    research = {"PatientID": "TCGA-CS-4941", "PatientName": "TCGA-CS-4941", "PatientBirthDate": None}
    linked = {only_frame(dicom(StudyInstanceUID=s, **research), settings).patient_id for s in ("1.2.3.1", "1.2.3.2")}
    assert len(linked) == 1
    for tags in ({"PatientName": "Other"}, {"PatientBirthDate": "19610204"}, {"IssuerOfPatientID": "Elsewhere"}):
        assert only_frame(dicom(**tags), settings).patient_id != base


def test_without_any_uid_every_picture_is_somebody(settings):
    none = {"PatientID": "0", "StudyInstanceUID": None, "SeriesInstanceUID": None, "SOPInstanceUID": None}
    ids = [only_frame(dicom(picture(i), **none), settings).patient_id for i in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2]


def test_reading_a_kept_file_again_changes_nothing(settings):
    for content in (dicom(), secretive(), enhanced()):
        first = read_series(content, "x", settings).series[0].frames[0]
        again = read_series(first.slice.content, "x", settings).series[0].frames[0]
        assert again.slice.sha256 == first.slice.sha256
        assert again.slice.content == first.slice.content
        assert again.slice.sop_instance_uid == first.slice.sop_instance_uid
        assert (again.slice.pixels == first.slice.pixels).all()


def test_a_forged_mark_is_not_believed(settings):
    frame = only_frame(dicom(DeidentificationMethod="brainmri PS3.15 basic profile 0123456789abcdef"), settings)
    assert frame.study_uid != STUDY


def changed(content: bytes, **tags) -> bytes:
    """A kept file after somebody set these tags in it."""
    ds = pydicom.dcmread(io.BytesIO(content))
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    return to_bytes(ds)


COERCED = {
    "PatientID": "0401-1961 MUELLER",
    "StudyInstanceUID": "1.2.840.555.7",
    "SeriesInstanceUID": "1.2.840.555.8",
    "FrameOfReferenceUID": "1.2.840.555.9",
    "SOPInstanceUID": "1.2.840.555.10",
}


@pytest.mark.parametrize("keyword", COERCED)
def test_a_kept_file_that_an_archive_has_coerced_is_a_strangers(settings, keyword):
    first = only_frame(dicom(FrameOfReferenceUID="1.2.3.7"), settings)
    content = changed(first.slice.content, **{keyword: COERCED[keyword]}, PatientName="Müller^Johanna")
    kept = only_frame(content, settings).slice.content
    assert COERCED[keyword].encode() not in kept
    assert "Müller".encode() not in kept
    assert re.fullmatch("P-[0-9A-F]{12}", str(pydicom.dcmread(io.BytesIO(kept)).PatientID))


def test_a_uid_that_was_put_into_a_kept_file_is_replaced(settings):
    inner = Dataset()
    inner.ReferencedSOPClassUID, inner.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.555.11"
    first = only_frame(dicom(), settings)
    again = only_frame(changed(first.slice.content, ReferencedImageSequence=Sequence([inner])), settings)
    assert again.study_uid == first.study_uid
    assert b"1.2.840.555.11" not in again.slice.content
    assert b"1.2.840.10008.5.1.4.1.1.4" in again.slice.content


def test_a_kept_file_of_an_earlier_version_is_anonymised_anew(settings):
    """Its mark stood for one UID alone; in storage it is still found by its frame."""
    import hashlib
    import hmac

    key = load_key(settings.dicom.key_file)
    first = only_frame(dicom(), settings)
    mark = hmac.new(key, b"mark:" + first.slice.sop_instance_uid.encode(), hashlib.sha256).hexdigest()[:16]
    old = changed(first.slice.content, DeidentificationMethod=f"brainmri PS3.15 basic profile {mark}")
    again = only_frame(old, settings)
    assert re.fullmatch("P-[0-9A-F]{12}", again.patient_id)
    assert again.patient_id != first.patient_id
    assert (again.slice.pixels == first.slice.pixels).all()


def test_a_case_of_an_earlier_version_is_opened_as_it_was(app_settings, make_user):
    from brainmri.ui import state

    frame = only_frame(dicom(), app_settings)
    old = changed(frame.slice.content, DeidentificationMethod="brainmri PS3.15 basic profile 0123456789abcdef")
    classifier = load_classifier("tiny", app_settings.model.directory)
    (analysis,) = analyse(classifier, [replace(frame.slice, content=old)])
    record = save_record(state.database(), app_settings, make_user("reader"), analysis, None)
    opened = load_slice(app_settings, record)
    np.testing.assert_array_equal(opened.pixels, frame.slice.pixels)
    assert opened.notes == frame.slice.notes
    assert opened.sop_instance_uid == frame.slice.sop_instance_uid


def test_overlays_go_whole(settings):
    ds = dataset()
    ds.add_new(0x60000010, "US", 64)
    ds.add_new(0x60000022, "LO", "JOHANNA MUELLER")
    ds.add_new(0x60001500, "LO", "born 19610203")
    ds.add_new(0x601E0022, "LO", "JOHANNA too")
    ds.add_new(0x60003000, "OW", b"\xff" * 384)
    kept = pydicom.dcmread(io.BytesIO(only_frame(to_bytes(ds), settings).slice.content))
    assert not [e.tag for e in kept if 0x6000 <= e.tag.group <= 0x60FF]


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_an_overlay_above_the_pixels_goes(settings, signed, big_endian):
    values = (picture() & 0x0FFF).astype(np.int32) - (700 if signed else 0)
    drawn = np.zeros(values.shape, np.uint16)
    drawn[10:20, 10:30] = 0x8000
    stored = (values.astype(np.uint16) & 0x0FFF) | drawn
    ds = dataset(stored, BitsStored=12, HighBit=11, PixelRepresentation=int(signed))
    if big_endian:
        ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        ds.PixelData = stored.astype(">u2").tobytes()
        ds["PixelData"].VR = "OW"
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, ds, implicit_vr=False, little_endian=False, enforce_file_format=True)
        content = buffer.getvalue()
    else:
        content = to_bytes(ds)
    frame = only_frame(content, settings)
    np.testing.assert_array_equal(frame.values, values)
    kept = pydicom.dcmread(io.BytesIO(frame.slice.content)).PixelData
    raw = np.frombuffer(kept, ">u2" if big_endian else "<u2").reshape(values.shape)
    np.testing.assert_array_equal(raw, values.astype(np.uint16))  # above a signed value stands its sign
    assert {"name": "bits above the pixels", "action": "removed", "count": 1} in frame.removed


def test_bytes_behind_the_pixels_go(settings):
    ds = dataset()
    ds.PixelData = ds.PixelData + b"JOHANNA MUELLER 1961"
    frame = only_frame(to_bytes(ds), settings)
    assert b"JOHANNA" not in frame.slice.content
    assert {"name": "bytes behind the pixels", "action": "removed", "count": 1} in frame.removed


REMARK = b"JOHANNA MUELLER "
COMPRESSED = {
    "SC_rgb_jpeg_dcmtk.dcm": b"\xff\xfe",
    "SC_rgb_jpeg_app14_dcmd.dcm": b"\xff\xe1",
    "SC_rgb_jpeg_gdcm.dcm": b"\xff\xfe",
    "MR_small_jpeg_ls_lossless.dcm": b"\xff\xff\xfe",
    "MR_small_jp2klossless.dcm": b"\xff\x64",
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_remarks_in_compressed_pixels_go_and_the_picture_stays(settings, name):
    content = next(p for p in pydicom_files() if p.name == name).read_bytes()
    ds = pydicom.dcmread(io.BytesIO(content))
    ds.Modality = "MR"
    before = only_frame(to_bytes(ds), settings)
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    segment = COMPRESSED[name] + (len(REMARK) + 2).to_bytes(2, "big") + REMARK
    first = 2  # in JPEG 2000 the size comes first (ISO 15444-1 A.5.1)
    if name.startswith("MR_small_jp2k"):
        first += 2 + int.from_bytes(frame[4:6], "big")
    ds.PixelData = encapsulate([frame[:first] + segment + frame[first:].rstrip(b"\0") + REMARK])
    after = only_frame(to_bytes(ds), settings)
    assert REMARK not in after.slice.content
    np.testing.assert_array_equal(after.values, before.values)
    assert {"name": "remarks in compressed pixels", "action": "removed", "count": 1} in after.removed
    again = only_frame(after.slice.content, settings)
    assert again.slice.content == after.slice.content


LEFTOVERS = {
    0x00100033: ("LO", "JOHANNA 19610203"),  # birth date in another calendar
    0x00200242: ("UI", "1.2.840.777.1"),
    0x00081167: ("UI", "1.2.840.777.2"),
    0x00400400: ("LT", "JOHANNA"),
    0x00401006: ("SH", "JOHANNA"),
    0x00401060: ("LO", "JOHANNA"),
    0x00189423: ("LO", "JOHANNA"),
    0x00209453: ("LO", "JOHANNA"),
    0x0040A160: ("UT", "JOHANNA"),
    0x00281055: ("LO", "JOHANNA"),
    0x00140102: ("DA", "19610203"),
    0x00080409: ("UR", "file:///JOHANNA"),
}


@pytest.mark.parametrize("nested", [False, True])
def test_what_the_table_does_not_know_goes_but_for_what_reading_needs(settings, nested):
    ds = dataset(WindowCenter=700, WindowWidth=1400, Manufacturer="SIEMENS", RescaleType="US")
    inner = Dataset()
    inner.CodeMeaning, inner.CodingSchemeUID = "Brain", "1.2.840.10008.2.6.1"
    ds.AnatomicRegionSequence = Sequence([inner])
    for tag, (vr, value) in LEFTOVERS.items():
        (inner if nested else ds).add_new(tag, vr, value)
    frame = only_frame(to_bytes(ds), settings)
    for secret in (b"JOHANNA", b"19610203", b"1.2.840.777"):
        assert secret not in frame.slice.content, secret
    assert "JOHANNA" not in str(frame.windows)
    kept = pydicom.dcmread(io.BytesIO(frame.slice.content))
    assert (kept.Manufacturer, kept.RescaleType, kept.WindowCenter) == ("SIEMENS", "US", 700)
    code = kept.AnatomicRegionSequence[0]
    assert (code.CodeMeaning, code.CodingSchemeUID) == ("Brain", "1.2.840.10008.2.6.1")
    assert kept.SOPClassUID == "1.2.840.10008.5.1.4.1.1.4"


@pytest.mark.parametrize("vr", ["OB", "UN"])
def test_a_sequence_that_says_to_be_something_else_goes_or_is_looked_into(settings, vr):
    inner = Dataset()
    inner.PatientName, inner.ReferencedSOPInstanceUID = "Inner^Johanna", "1.2.3.999"
    body = DicomBytesIO()
    body.is_little_endian, body.is_implicit_VR = True, True
    write_sequence(body, pydicom.DataElement(0x00081140, "SQ", Sequence([inner])), ["iso8859"])
    value = body.getvalue()
    value += b"\0" * (len(value) % 2)
    ds = dataset()
    ds.add_new(0x00081140, "OB", value)
    content = to_bytes(ds).replace(b"\x08\x00\x40\x11OB", b"\x08\x00\x40\x11" + vr.encode())
    kept = only_frame(content, settings).slice.content
    assert b"Johanna" not in kept
    assert b"1.2.3.999" not in kept


@pytest.mark.parametrize("keyword", ["EchoTime", "AcquisitionNumber", "SeriesNumber"])
def test_text_in_a_number_goes(settings, keyword):
    content = dicom(**{keyword: "12345678"}).replace(b"12345678", b"JOHANNA ")
    frame = only_frame(content, settings)
    assert b"JOHANNA" not in frame.slice.content
    assert {"name": keyword, "action": "removed", "count": 1} in frame.removed


def test_every_image_of_pydicoms_set_loses_its_patient(settings):
    n = 0
    for path in pydicom_files():
        content = path.read_bytes()
        try:
            frame = read_series(content, path.name, settings, insist=True).series[0].frames[0]
        except InvalidDicomError:
            continue
        before = pydicom.dcmread(io.BytesIO(content), force=True)
        kept = pydicom.dcmread(io.BytesIO(frame.slice.content))
        for keyword in ("PatientName", "PatientID", "InstitutionName", "ReferringPhysicianName", "StudyInstanceUID"):
            old = str(before.get(keyword) or "").strip()
            assert not old or str(kept.get(keyword) or "") != old, (path.name, keyword)
        assert not [e for e in kept.iterall() if e.tag.is_private], path.name
        n += 1
    assert n > 60


def test_off_means_off_and_says_who_it_is(settings):
    frame = only_frame(dicom(), with_(settings, deidentify=False))
    assert frame.patient["PatientName"].startswith("Müller")
    assert frame.study_uid == STUDY
    assert frame.slice.name == "Johanna Mueller.dcm"
    assert frame.removed == ()


def test_originals_are_kept_only_on_demand(settings):
    content = dicom()
    assert only_frame(content, settings).slice.content != content
    assert only_frame(content, with_(settings, keep_originals=True)).slice.content == content


def test_the_key_file(tmp_path):
    path = tmp_path / "deep" / "uid.key"
    key = load_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key(path) == key
    assert len(key) == 32
    assert list(path.parent.iterdir()) == [path]
    assert new_uid("1.2.3", key) == new_uid("1.2.3", key) != new_uid("1.2.4", key)
    path.write_text("not hexadecimal")
    with pytest.raises(StorageError, match=r"uid\.key"):
        load_key(path)
