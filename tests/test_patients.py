"""Patients: kept, found, edited in the open, compared, handed out, deleted; and who may do what."""

from __future__ import annotations

import csv
import io
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from conftest import on_both_databases
from dicom_maker import stack, zipped

from brainmri import patients, storage
from brainmri.dicom import read_series
from brainmri.errors import PermissionDeniedError, StorageError
from brainmri.events import find_events
from brainmri.inference import load_classifier
from brainmri.pipeline import analyse
from brainmri.types import CLASS_NAMES, MRISlice

app_database_url = on_both_databases()


@pytest.fixture
def database(app_settings):
    from brainmri.ui import state

    return state.database()


@pytest.fixture(scope="module")
def answers(tiny_models, tmp_path_factory):
    """Answers to a small DICOM series, and the series."""
    from brainmri.config import load_settings

    base = load_settings()
    key_file = tmp_path_factory.mktemp("key") / "uid.key"
    own = base.model_copy(update={"dicom": base.dicom.model_copy(update={"key_file": key_file})})
    (series,) = read_series(zipped(stack(4)), "s.zip", own).series
    classifier = load_classifier("tiny", tiny_models)
    return series, analyse(classifier, series.slices)


def keep(database, settings, user, answers, study_uid: str | None = None, patient: str | None = None):
    series, analyses = answers
    records = [storage.save_record(database, settings, user, a, None) for a in analyses]
    found = patients.patient_for_pseudonym(database, user, patient or series.patient_id)
    study = patients.file_records(
        database, user, found.id, records, study_uid=study_uid or series.study_uid, series_uid=series.uid, title="T1"
    )
    return found, study, records


def test_kept_series_lie_under_their_patient_in_order(database, app_settings, make_user, answers):
    reader = make_user("reader")
    patient, study, records = keep(database, app_settings, reader, answers)
    assert patient.pseudonym.startswith("P-")
    assert patient.name == ""
    entries = patients.timeline(database, reader, patient.id)
    assert [e.record.id for e in entries] == [r.id for r in records]
    assert [e.place.series_index for e in entries] == [1, 2, 3, 4]
    keep(database, app_settings, reader, answers, study_uid="2.25.77")
    entries = patients.timeline(database, reader, patient.id)
    assert len({e.study.id for e in entries}) == 2
    assert entries[0].study.id != study.id  # newest study first
    assert patients.patient_of(database, reader, records[0].id)[0].id == patient.id


def saying(analysis, label: str, **slice_changes):
    """The same answer with another label, and with another slice where asked."""
    probabilities = {c: 0.97 if c == label else 0.01 for c in CLASS_NAMES}
    changed = replace(analysis.slice, **slice_changes)
    return replace(analysis, slice=changed, decision="class", label=label, probabilities=probabilities)


def series_captions(page) -> list[str]:
    return [c.value.removeprefix("Series: ") for c in page.caption if c.value.startswith("Series: ")]


def patient_page(open_page, user, patient):
    page = open_page("clinical/patients.py", user)
    page.query_params["patient"] = str(patient.id)
    page.run()
    assert not page.exception
    return page


def test_a_series_kept_twice_counts_each_slice_once(database, app_settings, make_user, answers, open_page):
    reader = make_user("reader")
    one = [saying(a, "glioma" if i == 1 else "notumor") for i, a in enumerate(answers[1])]
    for _ in range(2):
        patient, _, records = keep(database, app_settings, reader, (answers[0], one))
    entries = patients.timeline(database, reader, patient.id)
    assert len(entries) == 8  # every answer stays
    (stack_,) = patients.series_stacks([(e.record, e.place) for e in entries])
    assert [r.id for r in stack_.records] == [r.id for r in records]
    assert stack_.record_ids == {e.record.id for e in entries}
    (said,) = series_captions(patient_page(open_page, reader, patient))
    assert said == "No answer: glioma in slice 2 of 4 only; 2 slices in a row are needed."


def test_a_part_kept_after_the_whole_replaces_its_slices_in_place(database, app_settings, make_user, answers):
    reader = make_user("reader")
    series, analyses = answers
    patient = patients.patient_for_pseudonym(database, reader, series.patient_id)
    kept = {}
    for numbers in (range(4), (2, 3)):
        records = [storage.save_record(database, app_settings, reader, analyses[i], None) for i in numbers]
        uids = {"study_uid": series.study_uid, "series_uid": series.uid}
        patients.file_records(
            database, reader, patient.id, records, **uids, positions_mm=[series.frames[i].position_mm for i in numbers]
        )
        kept |= zip(numbers, records, strict=True)
    entries = patients.timeline(database, reader, patient.id)
    (stack_,) = patients.series_stacks([(e.record, e.place) for e in entries])
    assert [r.id for r in stack_.records] == [kept[i].id for i in range(4)]


def test_stacks_of_one_series_do_not_mix(database, app_settings, make_user, answers, open_page):
    reader = make_user("reader")
    for echo in ("1", "2"):
        one = [
            saying(a, "glioma" if i == 1 else "notumor", sop_instance_uid=f"2.25.{echo}{i}")
            for i, a in enumerate(answers[1])
        ]
        patient, *_ = keep(database, app_settings, reader, (answers[0], one))
    said = series_captions(patient_page(open_page, reader, patient))
    assert said == ["No answer: glioma in slice 2 of 4 only; 2 slices in a row are needed."] * 2


@pytest.mark.parametrize("numbered", [False, True])  # as versions before this one stored them
def test_cases_filed_by_hand_are_no_series(database, app_settings, make_user, answers, open_page, numbered):
    reader = make_user("reader")
    patient = patients.create_patient(database, reader)
    records = [storage.save_record(database, app_settings, reader, saying(a, "glioma"), None) for a in answers[1][:3]]
    patients.file_records(database, reader, patient.id, records, title="By hand")
    places = [e.place for e in patients.timeline(database, reader, patient.id)]
    assert {(p.series_index, p.series_length) for p in places} == {(None, None)}
    if numbered:
        with database.write() as session:
            for i, place in enumerate(places):
                stored = session.get(patients.StudyRecord, place.record_id)
                stored.series_index, stored.series_length = i + 1, 3
    page = patient_page(open_page, reader, patient)
    assert series_captions(page) == []
    assert list(page.dataframe[0].value["Slice"]) == ["", "", ""]
    assert not any("slice" in option for box in page.selectbox for option in box.options)
    bundle = zipfile.ZipFile(io.BytesIO(patients.export_patient(database, app_settings, reader, patient.id)))
    rows = csv.DictReader(io.StringIO(bundle.read("records.csv").decode("utf-8-sig")))
    assert {r["series_index"] for r in rows} == {""}


def test_the_kept_file_is_the_deidentified_one(database, app_settings, make_user, answers):
    reader = make_user("reader")
    _, _, records = keep(database, app_settings, reader, answers)
    for record in records:
        content = storage.read_file(app_settings, record)
        assert b"K4711Q" not in content
        assert record.image_sha256 == record.file_sha256
        again = storage.load_slice(app_settings, record)
        assert storage._pixels_sha256(again) == record.pixels_sha256
        assert not any("decodes differently" in n for n in again.notes)
    analysis = replace(answers[1][0])
    record = storage.save_record(database, app_settings, reader, analysis, b"the upload as it came, JOHANNA")
    assert b"JOHANNA" not in storage.read_file(app_settings, record)


def test_search_and_filters(database, app_settings, make_user, answers):
    reader = make_user("reader")
    first = patients.create_patient(database, reader, name="Ελένη ΠΑΠΑΔΟΠΟΎΛΟΥ", sex="F")
    patients.create_patient(database, reader, pseudonym="P-100%", name="王小明", sex="M")
    filed, _, records = keep(database, app_settings, reader, answers)

    def found(**query):
        return {s.patient.pseudonym for s in patients.find_patients(database, reader, **query).patients}

    assert found(text="παπαδοπούλου") == {first.pseudonym}
    assert found(text="小") == {"P-100%"}
    assert found(text="%") == {"P-100%"}
    assert found(sexes=["F"]) == {first.pseudonym}
    label = next(r.label for r in records)
    assert found(labels=[label]) == {filed.pseudonym}
    page = patients.find_patients(database, reader, limit=2)
    assert page.total == 3
    assert len(page.patients) == 2
    assert page.patients[0].n_records in (0, 4)


def test_edits_keep_what_was_there(database, make_user):
    reader = make_user("reader")
    patient = patients.create_patient(database, reader, name="Anna")
    patients.edit_patient(database, reader, patient.id, name="Anna Berg", birth_date=date(1970, 1, 2))
    patients.edit_patient(database, reader, patient.id, name="Anna Berg", sex="F")
    edits = patients.edits_of(database, reader, patient.id)
    assert [(e.what, e.before, e.after) for e in edits] == [
        ("sex", "", "F"),
        ("birth date", "", "1970-01-02"),
        ("name", "Anna", "Anna Berg"),
    ]
    assert {e.username for e in edits} == {"reader"}
    assert edits[0].at.tzinfo is not None


@pytest.mark.parametrize(
    "changes", [{"sex": "X"}, {"name": "a\nb"}, {"birth_date": date(1500, 1, 1)}, {"pseudonym": ""}, {"shoe": "42"}]
)
def test_values_that_are_refused(database, make_user, changes):
    reader = make_user("reader")
    patient = patients.create_patient(database, reader)
    with pytest.raises(StorageError):
        patients.edit_patient(database, reader, patient.id, **changes)
    assert patients.edits_of(database, reader, patient.id) == []


def test_ids_are_unique_and_guests_keep_nothing(database, make_user):
    from brainmri.accounts import GUEST

    reader = make_user("reader")
    patients.create_patient(database, reader, pseudonym="P-1")
    with pytest.raises(StorageError, match="already"):
        patients.create_patient(database, reader, pseudonym="P-1")
    with pytest.raises(PermissionDeniedError):
        patients.create_patient(database, GUEST)
    assert patients.find_patients(database, GUEST).total == 0


def test_roles(database, app_settings, make_user, answers):
    reader, other = make_user("reader"), make_user("reader", "other")
    radiologist, admin = make_user("radiologist"), make_user("admin")
    patient, _, records = keep(database, app_settings, reader, answers)
    record = records[0]
    for user, sees, image in ((reader, 1, 1), (other, 0, 0), (radiologist, 1, 1), (admin, 1, 0)):
        assert patients.find_patients(database, user).total == sees, user
        assert bool(storage.find_records(database, user).total) == bool(sees)
        if sees:
            assert storage.may_see_images(app_settings, user, record) == bool(image), user
        else:
            with pytest.raises(StorageError):
                patients.open_patient(database, user, patient.id)
            with pytest.raises(StorageError):
                patients.add_verdict(database, user, record.id, "glioma")
    with pytest.raises(PermissionDeniedError):
        patients.export_patient(database, app_settings, admin, patient.id)
    shown = app_settings.model_copy(
        update={"accounts": app_settings.accounts.model_copy(update={"admin_sees_images": True})}
    )
    assert storage.may_see_images(shown, admin, record)
    with pytest.raises(StorageError):
        storage.delete_record(database, app_settings, radiologist, record.id)
    with pytest.raises(PermissionDeniedError):
        patients.delete_patient(database, app_settings, radiologist, patient.id)


def test_nobody_gets_at_the_patient_of_another_by_its_pseudonym(database, app_settings, make_user, answers):
    reader, other, radiologist = make_user("reader"), make_user("reader", "other"), make_user("radiologist")
    patient, _, _ = keep(database, app_settings, reader, answers)
    patients.edit_patient(database, reader, patient.id, name="Johanna")
    theirs, _, records = keep(database, app_settings, other, answers)
    assert theirs.id != patient.id
    assert (theirs.user_id, theirs.name) == (other.id, "")
    assert keep(database, app_settings, other, answers)[0].id == theirs.id  # found again, not made anew
    assert keep(database, app_settings, reader, answers)[0].id == patient.id
    with pytest.raises(StorageError, match="no patient"):
        patients.file_records(database, other, patient.id, records)
    with pytest.raises(StorageError, match="no patient"):
        patients.open_patient(database, other, patient.id)
    assert patients.known_patient(database, radiologist, patient.pseudonym).id == patient.id
    patients.delete_patient(database, app_settings, reader, patient.id)
    assert len(patients.timeline(database, other, theirs.id)) == 8


@pytest.mark.parametrize(
    ("text", "day"),
    [("19610203", date(1961, 2, 3)), ("00000000", None), ("18000101", None), ("1961-02-03", None), ("", None)],
)
def test_birth_dates_of_dicom(text, day):
    assert patients.read_day(text) == day


def test_verdicts_add_up(database, app_settings, make_user, answers):
    reader, radiologist = make_user("reader"), make_user("radiologist")
    _, _, records = keep(database, app_settings, reader, answers)
    patients.add_verdict(database, reader, records[0].id, "unsure", "blurred")
    patients.add_verdict(database, radiologist, records[0].id, "glioma")
    patient, *_ = patients.patient_of(database, reader, records[0].id)
    said = patients.timeline(database, reader, patient.id)[0].verdicts
    assert [(v.verdict, v.note, who) for v, who in said] == [
        ("glioma", "", "Radiologist (radiologist)"),
        ("unsure", "blurred", "Reader (reader)"),
    ]
    with pytest.raises(StorageError, match="no verdict"):
        patients.add_verdict(database, reader, records[0].id, "cancer")


def test_moving_a_case_is_kept_as_an_edit(database, app_settings, make_user, answers):
    reader = make_user("reader")
    patient, _, records = keep(database, app_settings, reader, answers)
    other = patients.create_patient(database, reader)
    patients.file_records(database, reader, other.id, records[:1])
    assert len(patients.timeline(database, reader, patient.id)) == 3
    assert patients.edits_of(database, reader, patient.id)[0].after == "filed elsewhere"


def test_a_moved_series_keeps_its_places_and_leaves_no_empty_study(database, app_settings, make_user, answers):
    reader = make_user("reader")
    patient, _, records = keep(database, app_settings, reader, answers)
    other = patients.create_patient(database, reader)
    patients.file_records(database, reader, other.id, records, title="Wrong one")
    filed = patients.filed_under(database, reader, [r.id for r in records])
    assert {i: p.id for i, p in filed.items()} == dict.fromkeys((r.id for r in records), other.id)
    patients.file_records(database, reader, patient.id, records)
    entries = patients.timeline(database, reader, patient.id)
    assert [e.place.slice_of for e in entries] == [(i + 1, len(records)) for i in range(len(records))]
    (stack_again,) = patients.series_stacks([(e.record, e.place) for e in entries])
    assert [r.id for r in stack_again.records] == [r.id for r in records]
    with database.read() as session:
        assert session.query(patients.Study).count() == 1


def test_studies_come_by_their_date_where_it_is_known(database, app_settings, make_user, answers):
    reader = make_user("reader")
    patient, now, records = keep(database, app_settings, reader, answers)
    before = patients.file_records(
        database, reader, patient.id, records[:1], title="Before surgery", study_date=date(2020, 5, 17)
    )
    studies = [e.study.id for e in patients.timeline(database, reader, patient.id)]
    assert list(dict.fromkeys(studies)) == [now.id, before.id]
    patients.edit_study(database, reader, now.id, title="Much earlier", study_date=date(2010, 1, 2))
    studies = [e.study.id for e in patients.timeline(database, reader, patient.id)]
    assert list(dict.fromkeys(studies)) == [before.id, now.id]
    assert {(e.what, e.before, e.after) for e in patients.edits_of(database, reader, patient.id)} >= {
        (f"date of study {now.id}", "", "2010-01-02")
    }
    with pytest.raises(StorageError, match="study date"):
        patients.edit_study(database, reader, now.id, title="", study_date=date(2999, 1, 1))
    with pytest.raises(StorageError, match="no patient"):
        patients.edit_study(database, make_user("reader", "other"), now.id, title="mine", study_date=None)


def test_an_edit_after_somebody_elses_is_refused_once(database, make_user):
    reader, radiologist = make_user("reader"), make_user("radiologist")
    patient = patients.create_patient(database, reader)
    seen = patients.newest_edit(database, reader, patient.id)
    patients.edit_patient(database, radiologist, patient.id, seen=seen, name="A Name")
    with pytest.raises(StorageError, match="radiologist made name 'A Name'"):
        patients.edit_patient(database, reader, patient.id, seen=seen, name="B Name")
    assert patients.open_patient(database, reader, patient.id).name == "A Name"
    seen = patients.newest_edit(database, reader, patient.id)
    assert patients.edit_patient(database, reader, patient.id, seen=seen, name="B Name").name == "B Name"


def test_typed_details_survive_a_change_by_somebody_else(database, make_user, open_page):
    reader, radiologist = make_user("reader"), make_user("radiologist")
    patient = patients.create_patient(database, reader)
    page = open_page("clinical/patients.py", reader)
    page.query_params["patient"] = str(patient.id)
    page.run()
    patients.edit_patient(database, radiologist, patient.id, name="A Name")
    page.text_input(key=f"patients.person.{patient.id}.name").set_value("B Name")
    next(b for b in page.button if b.label == "Save").click().run()
    assert "radiologist made name" in page.error[0].value
    assert page.text_input(key=f"patients.person.{patient.id}.name").value == "B Name"
    assert patients.open_patient(database, reader, patient.id).name == "A Name"


def test_a_study_edited_meanwhile_is_not_written_over(database, app_settings, make_user, answers, open_page):
    reader, radiologist = make_user("reader"), make_user("radiologist")
    patient, study, _ = keep(database, app_settings, reader, answers)
    page = open_page("clinical/patients.py", reader)
    page.query_params["patient"] = str(patient.id)
    page.run()
    patients.edit_study(database, radiologist, study.id, title="theirs", study_date=None)
    field = f"patients.study_fields.{study.id}.title"
    page.text_input(key=field).set_value("mine")
    for saved in ("theirs", "mine"):  # refused once, with what was typed still there
        next(b for b in page.button if b.label == "Save").click().run()
        assert not page.exception
        assert page.text_input(key=field).value == "mine"
        assert patients.timeline(database, reader, patient.id)[0].study.title == saved


def test_names_with_joiners_are_taken(database, make_user):
    name = "علی‌رضا"
    assert patients.create_patient(database, make_user("reader"), name=name).name == name


def test_a_chosen_row_means_nothing_among_other_rows():
    from brainmri.ui.theme import rows_key

    assert rows_key("t", [1, 2]) == rows_key("t", [1, 2])
    assert rows_key("t", [1, 2]) != rows_key("t", [3, 1, 2])


def test_filing_says_whom_a_case_is_taken_from(database, app_settings, make_user, answers, open_page):
    reader = make_user("reader")
    patient, _, records = keep(database, app_settings, reader, answers)
    other = patients.create_patient(database, reader)
    page = open_page("clinical/patients.py", reader)
    page.query_params["patient"] = str(other.id)
    page.run()
    assert all(f"now under {patient.pseudonym}" in option for option in page.multiselect[0].options)
    page.multiselect[0].set_value([records[0].id])
    next(b for b in page.button if b.label == "File as one study").click().run()
    assert "Nothing was filed" in page.warning[0].value
    assert len(patients.timeline(database, reader, patient.id)) == len(records)
    assert page.multiselect[0].value == [records[0].id]  # a refusal takes nothing of what was chosen
    page.checkbox[0].check()
    next(b for b in page.button if b.label == "File as one study").click().run()
    assert not page.exception
    assert [e.record.id for e in patients.timeline(database, reader, other.id)] == [records[0].id]


def test_the_bundle(database, app_settings, make_user, answers):
    from brainmri import report

    reader = make_user("reader")
    patient, _, records = keep(database, app_settings, reader, answers)
    patients.edit_patient(database, reader, patient.id, name="=HYPERLINK(1)")
    patients.add_verdict(database, reader, records[1].id, "meningioma", "seen")
    issued = report.issue(database, app_settings, reader, records[1].id, findings="x")
    bundle = zipfile.ZipFile(io.BytesIO(patients.export_patient(database, app_settings, reader, patient.id)))
    rows = list(csv.DictReader(io.StringIO(bundle.read("records.csv").decode("utf-8-sig"))))
    assert [int(r["record"]) for r in rows] == [r.id for r in records]
    assert float(rows[0]["p_glioma"]) == pytest.approx(records[0].probabilities["glioma"])
    person = next(csv.DictReader(io.StringIO(bundle.read("patient.csv").decode("utf-8-sig"))))
    assert person["name"] == "'=HYPERLINK(1)"  # a spreadsheet must not run it
    assert b"seen" in bundle.read("verdicts.csv")
    assert len([n for n in bundle.namelist() if n.startswith("images/")]) == 4
    pdf = bundle.read(f"reports/{issued.file_name}")
    assert report.verify(database, pdf).report.id == issued.id
    assert bundle.read("summary.pdf").startswith(b"%PDF")
    assert [(e.username, e.target) for e in find_events(database, None).events if e.what == "patient exported"] == [
        ("reader", f"patient {patient.id}")
    ]


def test_deletion_really_deletes_and_leaves_a_line(database, app_settings, make_user, answers):
    reader = make_user("reader")
    patient, _, records = keep(database, app_settings, reader, answers)
    patients.edit_patient(database, reader, patient.id, name="Xanthippe Unmistakable")
    files = [app_settings.uploads.directory / r.file_sha256 for r in records]
    assert all(f.exists() for f in files)
    line = patients.delete_patient(database, app_settings, reader, patient.id)
    assert line == f"patient {patient.id}: 1 studies, 4 cases"
    assert not any(f.exists() for f in files)
    assert storage.find_records(database, reader).total == 0
    assert patients.find_patients(database, reader).total == 0
    assert patients.deletions(database, reader)[0].what == line
    path = database.engine.url.database
    for name in (path, f"{path}-wal"):
        try:
            with open(name, "rb") as file:
                assert b"Unmistakable" not in file.read(), name
        except FileNotFoundError:
            continue


def test_a_signed_report_stands_in_the_way_of_deletion(database, app_settings, make_user, answers):
    from brainmri import report

    radiologist, admin = make_user("radiologist"), make_user("admin")
    patient, _, records = keep(database, app_settings, radiologist, answers)
    record = records[0]
    patients.add_verdict(database, admin, record.id, "unsure")
    report.issue(database, app_settings, radiologist, record.id, findings="a", impression="b", final=True)
    report.issue(database, app_settings, radiologist, record.id)
    what = "1 signed report, 1 draft report, 1 verdict"
    with pytest.raises(PermissionDeniedError, match=what):
        storage.delete_record(database, app_settings, radiologist, record.id)
    with pytest.raises(PermissionDeniedError, match=what):
        patients.delete_patient(database, app_settings, radiologist, patient.id)
    storage.delete_record(database, app_settings, radiologist, records[1].id)
    assert len(patients.timeline(database, radiologist, patient.id)) == 3
    assert patients.what_deletion_takes(database, admin, patient.id) == f"1 studies, 3 cases, {what}"
    storage.delete_record(database, app_settings, admin, record.id)
    lines = [d.what for d in patients.deletions(database, admin)]
    assert lines == [f"case {record.id}: {what}", f"case {records[1].id}"]


def test_a_deletion_that_fails_half_way_leaves_everything(database, app_settings, make_user, answers, monkeypatch):
    reader = make_user("reader")
    patient, _, records = keep(database, app_settings, reader, answers)
    real, calls = storage.os.replace, []

    def fail_later(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(13, "Permission denied")
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "replace", fail_later)
        with pytest.raises(StorageError, match="not deleted: Permission denied"):
            patients.delete_patient(database, app_settings, reader, patient.id)
    assert [e.record.id for e in patients.timeline(database, reader, patient.id)] == [r.id for r in records]
    assert all(storage.read_file(app_settings, r) for r in records)
    assert patients.deletions(database, reader) == []


@pytest.mark.parametrize("whole_patient", [False, True])
def test_a_report_signed_while_its_case_is_deleted_does_not_vanish(
    database, app_settings, make_user, answers, monkeypatch, whole_patient
):
    from brainmri import report

    radiologist = make_user("radiologist")
    patient, _, records = keep(database, app_settings, radiologist, answers)
    mri_slice = storage.load_slice(app_settings, records[0])
    words = {"findings": "a", "impression": "b", "final": True, "mri_slice": mri_slice}
    count, signing, signed = storage.attached_to, [], []

    def sign():
        with suppress(StorageError):  # the case is gone
            signed.append(report.issue(database, app_settings, radiologist, records[0].id, **words))

    def counted(*arguments):
        answer = count(*arguments)
        if not signing:
            signing.append(threading.Thread(target=sign))
            signing[0].start()
            signing[0].join(1)
        return answer

    monkeypatch.setattr(storage, "attached_to", counted)
    monkeypatch.setattr(patients, "attached_to", counted)
    if whole_patient:
        patients.delete_patient(database, app_settings, radiologist, patient.id)
    else:
        storage.delete_record(database, app_settings, radiologist, records[0].id)
    signing[0].join()
    assert signed == []


def test_two_who_delete_the_same_leave_one_line(database, app_settings, make_user, answers, monkeypatch):
    reader = make_user("reader")
    patient, _, records = keep(database, app_settings, reader, answers)
    both, remember = threading.Barrier(2), storage._remember_signed

    def slowly(*arguments):
        with suppress(threading.BrokenBarrierError):
            both.wait(1)
        remember(*arguments)

    monkeypatch.setattr(storage, "_remember_signed", slowly)

    def twice(delete, number) -> int:
        """How many say that they deleted it."""
        both.reset()
        with ThreadPoolExecutor(2) as pool:
            done = [pool.submit(delete, database, app_settings, reader, number) for _ in range(2)]
        assert all(isinstance(d.exception(), StorageError | None) for d in done)
        return sum(d.exception() is None for d in done)

    assert twice(storage.delete_record, records[0].id) == 1
    assert twice(patients.delete_patient, patient.id) == 1
    assert [d.what for d in patients.deletions(database, reader)] == [
        f"patient {patient.id}: 1 studies, 3 cases",
        f"case {records[0].id}",
    ]


def test_a_new_filter_starts_at_the_first_page(database, make_user, open_page):
    reader = make_user("reader")
    for i in range(45):
        patients.create_patient(database, reader, pseudonym=f"P-{i:02d}")
    page = open_page("clinical/patients.py", reader)
    page.session_state["patients.page"] = 3
    page.run()
    assert len(page.dataframe[0].value) == 5
    page.text_input(key="patients.text").set_value("P-44").run()
    assert not page.exception
    assert list(page.dataframe[0].value["Patient"]) == ["P-44"]


def series_page(open_page, user, files, monkeypatch, settings, **dicom):
    """The Series viewer with an upload."""
    from brainmri.ui import state

    changed = settings.model_copy(update={"dicom": settings.dicom.model_copy(update=dicom)})
    monkeypatch.setattr(state, "settings", lambda: changed)
    page = open_page("clinical/series.py", user)
    page.file_uploader[0].set_value([("s.zip", zipped(files), "application/zip")])
    page.run()
    assert not page.exception, page.exception
    return page


@pytest.mark.parametrize(("born", "patient_id"), [("00000000", None), ("18000101", "0"), ("00000000", "x" * 65)])
def test_a_series_with_an_odd_header_is_kept_under_a_patient_of_its_own(
    database, app_settings, make_user, open_page, monkeypatch, born, patient_id
):
    reader = make_user("reader")
    found = []
    for study in ("1.2.3.1", "1.2.3.2"):
        files = stack(2, PatientID=patient_id, PatientBirthDate=born, StudyInstanceUID=study)
        page = series_page(open_page, reader, files, monkeypatch, app_settings, deidentify=False)
        next(b for b in page.button if b.label == "Keep this series").click().run()
        assert not page.exception
        assert not page.error
        found.append(patients.find_patients(database, reader).patients[0].patient)
    assert found[0].id != found[1].id
    assert {p.name for p in found} == {"Johanna Maria Müller"}
    assert {p.birth_date for p in found} == {None}
    assert {p.n_records for p in patients.find_patients(database, reader).patients} == {2}


def test_a_series_that_cannot_be_filed_leaves_what_others_filed_under_its_patient(
    database, app_settings, make_user, answers, monkeypatch
):
    reader = make_user("reader")
    kept, filing = [], patients.file_records

    def fail(*_args, **_kwargs):
        monkeypatch.setattr(patients, "file_records", filing)
        kept.extend(patients.keep_series(database, app_settings, reader, *answers))  # another session's
        raise StorageError("the disk is full")

    monkeypatch.setattr(patients, "file_records", fail)
    with pytest.raises(StorageError, match="the disk is full"):
        patients.keep_series(database, app_settings, reader, *answers)
    (found,) = patients.find_patients(database, reader).patients
    assert [e.record.id for e in patients.timeline(database, reader, found.patient.id)] == [r.id for r in kept]
    assert len(kept) == storage.find_records(database, reader).total == 4


def test_a_series_that_cannot_be_filed_leaves_nothing(database, app_settings, make_user, open_page, monkeypatch):
    reader = make_user("reader")
    page = series_page(open_page, reader, stack(2), monkeypatch, app_settings)

    def fail(*_args, **_kwargs):
        raise StorageError("the database refused")

    with monkeypatch.context() as patch:
        patch.setattr(patients, "file_records", fail)
        next(b for b in page.button if b.label == "Keep this series").click().run()
    assert "the database refused" in page.error[0].value
    assert storage.find_records(database, reader).total == 0
    assert patients.find_patients(database, reader).total == 0
    assert list(app_settings.uploads.directory.iterdir()) == []
    next(b for b in page.button if b.label == "Keep this series").click().run()
    assert not page.exception
    assert storage.find_records(database, reader).total == 2


def test_pages_open_for_those_who_may(database, app_settings, make_user, answers, open_page):
    radiologist = make_user("radiologist")
    patient, _, records = keep(database, app_settings, radiologist, answers)
    page = open_page("clinical/patients.py", radiologist)
    assert not page.exception
    page = open_page("clinical/patients.py", radiologist)
    page.query_params["patient"] = str(patient.id)
    page.run()
    assert not page.exception
    assert patient.pseudonym in page.subheader[0].value.replace("\\", "")
    page = open_page("clinical/reports.py", radiologist)
    page.query_params["case"] = str(records[1].id)
    page.run()
    assert not page.exception
    assert any("sign" in t.label for t in page.text_input)
    page = open_page("clinical/series.py", "guest")
    assert not page.exception
    page = open_page("clinical/reports.py", make_user("admin"))
    page.query_params["case"] = str(records[1].id)
    page.run()
    assert any("does not see" in i.value for i in page.info)


def test_a_picture_without_a_file_of_its_own_is_kept_as_png(database, app_settings, make_user, answers):
    reader = make_user("reader")
    pixels = np.full((40, 40), 90, np.uint8)
    analysis = replace(answers[1][0], slice=MRISlice(pixels, "p.png", "0" * 64, "PNG"))
    record = storage.save_record(database, app_settings, reader, analysis, None)
    assert storage.load_slice(app_settings, record).pixels.shape == (40, 40)
