"""Reading mode's verdicts: kept with their times, told apart by reader, handed out, gone with their case."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta

import pytest
from conftest import on_both_databases

from brainmri import readings, storage
from brainmri.errors import PermissionDeniedError, StorageError
from brainmri.inference import load_classifier
from brainmri.pipeline import analyse
from brainmri.types import MRISlice

app_database_url = on_both_databases()
SHOWN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def database(app_settings):
    from brainmri.ui import state

    return state.database()


@pytest.fixture
def case(database, app_settings, make_user, slices):
    """A reader and a record of theirs."""
    reader = make_user("reader")
    classifier = load_classifier("tiny", app_settings.model.directory)
    (analysis,) = analyse(classifier, [MRISlice(slices[0], "=1+1.png", "0" * 64, "PNG")])
    return reader, storage.save_record(database, app_settings, reader, analysis, None)


def test_verdicts_are_kept_with_their_times_and_never_replaced(database, case):
    reader, record = case
    readings.add_reading(database, reader, record.id, "class", "glioma", shown_at=SHOWN, blind=True, note=" sure ")
    readings.add_reading(database, reader, record.id, "class", "unsure", shown_at=SHOWN + timedelta(days=1))
    maps = ["grad-cam for glioma at block5_conv3"]
    readings.add_reading(database, reader, record.id, "map", "fits", shown_at=SHOWN, maps=maps)
    said = readings.readings_of(database, reader, record.id)
    assert [(r.kind, r.verdict, r.blind, r.note) for r, _, _ in said] == [
        ("class", "glioma", True, "sure"),
        ("class", "unsure", False, ""),
        ("map", "fits", False, ""),
    ]
    assert [who for *_, who in said] == ["reader"] * 3
    assert said[0][0].shown_at == SHOWN
    assert said[0][0].created_at > SHOWN
    assert said[2][0].maps == maps


def test_who_sees_them(database, case, make_user):
    reader, record = case
    other, radiologist = make_user("reader", "other"), make_user("radiologist")
    readings.add_reading(database, reader, record.id, "class", "glioma", shown_at=SHOWN)
    readings.add_reading(database, radiologist, record.id, "class", "meningioma", shown_at=SHOWN)
    assert len(readings.readings_of(database, reader)) == 2
    assert len(readings.readings_of(database, radiologist)) == 2
    assert readings.readings_of(database, other) == []
    with pytest.raises(StorageError, match="no case"):
        readings.add_reading(database, other, record.id, "class", "glioma", shown_at=SHOWN)
    with pytest.raises(StorageError, match="no verdict on a map"):
        readings.add_reading(database, reader, record.id, "map", "glioma", shown_at=SHOWN)
    from brainmri.accounts import GUEST

    with pytest.raises(PermissionDeniedError):
        readings.add_reading(database, GUEST, record.id, "class", "glioma", shown_at=SHOWN)


def test_the_csv_holds_what_a_reader_study_needs(database, case):
    reader, record = case
    readings.add_reading(database, reader, record.id, "class", "glioma", shown_at=SHOWN, blind=True, note="=cmd()")
    (row,) = csv.DictReader(io.StringIO(readings.export_readings(database, reader)))
    assert tuple(row) == readings.COLUMNS
    assert (row["name"], row["note"]) == ("'=1+1.png", "'=cmd()")  # no formula for a spreadsheet
    assert (row["case_id"], row["reader"], row["blind"]) == (str(record.id), "reader", "1")
    assert float(row["seconds"]) > 0
    assert float(row["p_glioma"]) == pytest.approx(record.probabilities["glioma"], abs=1e-5)


def test_the_csv_holds_ones_own_verdicts_only(database, case, make_user):
    reader, record = case
    radiologist = make_user("radiologist")
    for user in (reader, radiologist):
        readings.add_reading(database, user, record.id, "class", "glioma", shown_at=SHOWN)
    (row,) = csv.DictReader(io.StringIO(readings.export_readings(database, radiologist)))
    assert row["reader"] == "radiologist"


def test_they_go_with_their_case(database, app_settings, case):
    reader, record = case
    readings.add_reading(database, reader, record.id, "class", "glioma", shown_at=SHOWN)
    storage.delete_record(database, app_settings, reader, record.id)
    assert readings.readings_of(database, reader) == []
