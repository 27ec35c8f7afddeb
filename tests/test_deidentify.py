"""De-identification: nothing of the patient is left, one study stays one study, the key stays secret."""

from __future__ import annotations

import io
import re
import stat

import pydicom
import pytest
from dicom_maker import STUDY, dataset, dicom, enhanced, picture, to_bytes
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from brainmri.config import load_settings
from brainmri.dicom import read_series
from brainmri.dicom.deidentify import load_key, new_uid
from brainmri.dicom.fuzz import pydicom_files
from brainmri.errors import InvalidDicomError, StorageError


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
