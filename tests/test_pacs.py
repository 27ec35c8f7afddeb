"""A real PACS asked, and listened to: Debian's Orthanc, and dcmtk's and dicom3tools' programs as a second opinion."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
import sys
import time
import urllib.request
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from conftest import free_port, need_real_part
from dicom_maker import STUDY, dataset, dicom, picture, stack, to_bytes
from pydicom import dcmread
from typer.testing import CliRunner

from brainmri import config, pacs, patients
from brainmri.config import PacsServer, PacsSettings, Settings
from brainmri.dicom import read_files
from brainmri.dicom.capture import secondary_capture
from brainmri.errors import ConfigError, PacsError, RefusedError, StorageError
from brainmri.inference import load_classifier
from brainmri.listener import Listener, Spool, _name
from brainmri.storage import Database, find_records
from brainmri.ui import state


def give(orthanc, files):
    for content in files:
        request = urllib.request.Request(f"{orthanc[1]}/instances", data=content, method="POST")
        urllib.request.urlopen(request, timeout=30).close()


def held(orthanc) -> list[dict]:
    """Main tags of all instances that the PACS holds."""
    with urllib.request.urlopen(f"{orthanc[1]}/instances", timeout=30) as reply:
        return json.loads(reply.read())


def with_pacs(settings: Settings, *servers: PacsServer, **changes) -> Settings:
    return settings.model_copy(update={"pacs": PacsSettings(servers=servers, **changes)})


@pytest.fixture
def asked(app_settings, orthanc):
    """Settings that know the PACS, and its server."""
    return with_pacs(app_settings, orthanc[0]), orthanc[0]


def test_a_server_that_is_there_answers_and_others_are_named(asked):
    settings, server = asked
    assert 0 < pacs.echo(settings, server) < 30
    with pytest.raises(PacsError, match=r"refuses BRAINMRI: called ae title not recognised"):
        pacs.echo(settings, server.model_copy(update={"ae_title": "ANOTHER"}))
    with pytest.raises(PacsError, match=r"Archive \(ORTHANC at 127.0.0.1:\d+\) does not answer"):
        pacs.echo(settings, server.model_copy(update={"port": free_port()}))
    with pytest.raises(PacsError, match="check the host's name"):
        pacs.echo(settings, server.model_copy(update={"host": "no-such-host.invalid"}))
    with pytest.raises(PacsError, match=r"no server 'X' in config.yaml \(there: Archive\)"):
        pacs.find_server(settings, "X")


def test_studies_are_found_by_who_and_when(asked, orthanc):
    settings, server = asked
    give(orthanc, stack(2).values())
    other = {"StudyInstanceUID": "1.2.9", "SeriesInstanceUID": "1.2.9.1", "PatientID": "K5", "StudyDate": "20250102"}
    give(orthanc, [dicom(PatientName="Öztürk^Ayşe", StudyDescription="Kopf", **other)])
    ct = {"StudyInstanceUID": "1.2.8", "SeriesInstanceUID": "1.2.8.1", "PatientID": "K6", "Modality": "CT"}
    give(orthanc, [dicom(SOPClassUID="1.2.840.10008.5.1.4.1.1.2", **ct)])

    def found(**query):
        return [s.study_uid for s in pacs.find_studies(settings, server, **query)]

    assert found() == ["1.2.9", STUDY]  # newest first, and no CT
    assert found(patient_id="K5") == ["1.2.9"]
    assert found(patient_id="HOSPITAL*") == [STUDY]
    assert found(patient_id="K") == []
    assert found(name="öztürk") == ["1.2.9"]
    assert found(name="Müller Johanna") == found(name="müller^joh") == [STUDY]
    assert found(since=date(2024, 6, 1)) == ["1.2.9"]
    assert found(until=date(2024, 4, 5)) == [STUDY]
    assert found(since=date(2024, 4, 6), until=date(2024, 12, 31)) == []
    (study,) = pacs.find_studies(settings, server, patient_id="K5")
    assert (study.patient_name, study.birth_date, study.date) == ("Öztürk Ayşe", date(1961, 2, 3), date(2025, 1, 2))
    assert (study.description, study.modalities, study.n_images) == ("Kopf", ("MR",), 1)


def test_a_search_that_matches_too_much_stops(asked, orthanc, monkeypatch):
    settings, server = asked
    for i in range(4):
        give(orthanc, [dicom(StudyInstanceUID=f"1.7.{i}", SeriesInstanceUID=f"1.7.{i}.1", PatientID="MANY")])
    monkeypatch.setattr(pacs, "MOST_STUDIES", 2)
    assert len(pacs.find_studies(settings, server, patient_id="MANY")) == 3  # one more says that there are more
    assert len(pacs.find_studies(settings, server, patient_id="K5*")) <= 1  # and the server still answers


def test_a_series_is_fetched_as_it_lies_there(asked, orthanc):
    settings, server = asked
    files = stack(5, StudyInstanceUID="1.3", SeriesInstanceUID="1.3.1")
    give(orthanc, files.values())
    give(orthanc, [dicom(StudyInstanceUID="1.3", SeriesInstanceUID="1.3.2", SeriesNumber=9)])
    series = pacs.find_series(settings, server, "1.3")
    assert [(s.number, s.n_images) for s in series] == [(3, 5), (9, 1)]
    told = []
    fetched = pacs.fetch(settings, server, "1.3", series[0].series_uid, report=lambda *n: told.append(n))
    assert told[-1] == (5, 5)
    sent = {ds.SOPInstanceUID: ds for ds in map(dcmread, map(io.BytesIO, files.values()))}
    for name, content in fetched:
        ds = dcmread(io.BytesIO(content))
        assert name == f"{ds.SOPInstanceUID}.dcm"
        assert ds == sent[ds.SOPInstanceUID]
    (one,) = read_files(fetched, "series", settings).series
    assert (len(one.frames), one.patient_id[:2]) == (5, "P-")
    assert [f.position_mm for f in one.frames] == [0, 5, 10, 15, 20]


def test_compressed_images_come_as_they_are_kept(asked, orthanc):
    from pydicom.uid import JPEG2000Lossless, RLELossless

    settings, server = asked
    for number, syntax in enumerate((RLELossless, JPEG2000Lossless)):
        ds = dataset(StudyInstanceUID="1.4", SeriesInstanceUID="1.4.1", InstanceNumber=number + 1)
        ds.compress(syntax, encoding_plugin="pylibjpeg" if syntax == JPEG2000Lossless else "")
        give(orthanc, [to_bytes(ds)])
    fetched = pacs.fetch(settings, server, "1.4", "1.4.1")
    kept = {dcmread(io.BytesIO(content)).file_meta.TransferSyntaxUID for _, content in fetched}
    assert kept == {RLELossless, JPEG2000Lossless}
    (one,) = read_files(fetched, "series", settings).series
    for frame in one.frames:
        np.testing.assert_array_equal(frame.values, picture())


def test_what_cannot_be_fetched_is_said(asked, orthanc):
    settings, server = asked
    with pytest.raises(PacsError, match="refuses to give the series"):
        pacs.fetch(settings, server, "1.5", "1.5.1")
    give(orthanc, stack(4, StudyInstanceUID="1.6", SeriesInstanceUID="1.6.1").values())
    small = settings.model_copy(update={"dicom": settings.dicom.model_copy(update={"max_slices": 2})})
    with pytest.raises(PacsError, match="more than 2 images"):
        pacs.fetch(small, server, "1.6", "1.6.1")
    assert len(pacs.fetch(settings, server, "1.6", "1.6.1")) == 4


# Listening.


@pytest.fixture
def listening(app_settings, orthanc, make_user, tmp_path):
    """`listening(**pacs settings)`: a started listener that the PACS may send to, and the lines it said."""
    user, started = make_user("radiologist"), []

    def start(**changes):
        defaults = {"port": free_port(), "callers": ("SCU",), "quiet_seconds": 0.2, "spool": tmp_path / "spool"}
        settings = with_pacs(app_settings, orthanc[0], **(defaults | changes))
        classifier = load_classifier("tiny", settings.model.directory)
        lines: list[str] = []
        listener = Listener(settings, state.database(), user, classifier, lines.append)
        listener.start()
        started.append(listener)
        return listener, lines

    yield start
    for listener in started:
        listener.stop()


def here(listener, ae_title="BRAINMRI") -> PacsServer:
    return PacsServer(name="here", ae_title=ae_title, host="127.0.0.1", port=listener.settings.pacs.port)


def send(listener, files, caller="SCU"):
    from_ = listener.settings.model_copy(update={"pacs": PacsSettings(ae_title=caller)})
    pacs.send(from_, here(listener), [dcmread(io.BytesIO(content)) for content in files])


def step_until(listener, done, seconds=60):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "nothing came of it"
        listener.step()
        time.sleep(0.05)


def spooled(listener, name="incoming"):
    return [p for p in (listener.settings.pacs.spool / name).rglob("*") if p.is_file()]


def reasons(listener) -> str:
    """What is said beside all that failed."""
    return " ".join(p.read_text("utf-8") for p in spooled(listener, "failed") if p.name == "reason.txt")


def test_what_is_sent_is_answered_kept_and_gone(listening, tmp_path):
    listener, lines = listening()
    send(listener, stack(4).values())
    files = spooled(listener)
    assert len(files) == 4
    assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o600}
    assert stat.S_IMODE(files[0].parent.stat().st_mode) == stat.S_IMODE(listener.spool.incoming.stat().st_mode) == 0o700
    step_until(listener, lambda: any("kept as cases" in line for line in lines))
    assert spooled(listener) == spooled(listener, "working") == spooled(listener, "outgoing") == []
    records = find_records(state.database(), listener.user).records
    assert len(records) == 4
    patient, study, place = patients.patient_of(state.database(), listener.user, records[0].id)
    assert patient.pseudonym.startswith("P-")
    assert place.slice_of[1] == 4
    assert study.study_uid != STUDY
    assert not [line for line in lines if "Müller" in line or "K4711" in line or "Mueller" in line]


def test_a_study_waits_until_nothing_more_of_it_comes(listening):
    listener, lines = listening(quiet_seconds=3600)
    files = list(stack(3).values())
    send(listener, files[:1])
    listener.step()
    send(listener, files[1:])
    listener.step()
    assert len(spooled(listener)) == 3
    assert not any("kept" in line for line in lines)


def test_what_came_before_a_stop_is_answered_after_it(listening, monkeypatch):
    listener, _ = listening(quiet_seconds=3600)
    send(listener, stack(3).values())
    monkeypatch.setattr("brainmri.listener.analyse_stack", lambda *_: (_ for _ in ()).throw(SystemExit))
    hasty = listener.settings.model_copy(
        update={"pacs": listener.settings.pacs.model_copy(update={"quiet_seconds": 0.01})}
    )
    listener.settings = hasty
    with pytest.raises(SystemExit):  # a crash half-way
        step_until(listener, lambda: False)
    assert (len(spooled(listener)), len(spooled(listener, "working"))) == (0, 3)
    monkeypatch.undo()
    again = Listener(hasty, listener.database, listener.user, listener.classifier, lambda _: None)
    again.step()
    assert spooled(again, "working") == []
    assert len(find_records(listener.database, listener.user).records) == 3


def test_who_is_not_named_may_not_send(listening):
    listener, _ = listening()
    with pytest.raises(PacsError, match="calling ae title not recognised"):
        send(listener, [dicom()], caller="STRANGER")
    with pytest.raises(PacsError, match="called ae title not recognised"):
        pacs.echo(listener.settings, here(listener, "ANOTHER"))
    with pytest.raises(PacsError, match="does not offer CT Image Storage"):
        send(listener, [dicom(SOPClassUID="1.2.840.10008.5.1.4.1.1.2", Modality="CT")])
    assert spooled(listener) == []


def test_more_than_an_upload_may_hold_is_refused_while_it_comes(listening):
    listener, lines = listening()
    listener.spool.limits = listener.settings.dicom.model_copy(update={"max_slices": 2})
    with pytest.raises(PacsError, match=r"refuses to take .* \(status A700"):
        send(listener, stack(3).values())
    assert len([path for path in spooled(listener) if path.suffix == ".dcm"]) == 2
    assert any("too many" in line for line in lines)
    step_until(listener, lambda: any("is not answered" in line for line in lines))
    assert "a part was refused" in reasons(listener)
    assert find_records(listener.database, listener.user).records == []
    for _ in range(2):  # what is there already is no more than there was
        send(listener, list(stack(3).values())[:2])
    step_until(listener, lambda: any("2 slices kept" in line for line in lines))


def test_a_study_that_cannot_be_answered_is_put_aside_with_the_reason(listening):
    listener, lines = listening()
    broken = dataset()
    broken.PixelData = broken.PixelData[:100]
    send(listener, [to_bytes(broken)])
    step_until(listener, lambda: any("is not answered" in line for line in lines))
    assert len(spooled(listener, "failed")) == 2
    assert "cut short" in reasons(listener)
    send(listener, [dicom()])  # and the next one is answered
    step_until(listener, lambda: any("kept as cases" in line for line in lines))


def test_the_answer_goes_to_the_pacs_as_a_picture_in_the_same_study(listening, orthanc):
    files = stack(3, StudyInstanceUID="1.11", SeriesInstanceUID="1.11.1", PatientID="SENT-1", StudyDescription="Kopf")
    give(orthanc, files.values())
    before = set(held(orthanc))
    listener, lines = listening(answer_to="Archive")
    send(listener, files.values())
    step_until(listener, lambda: any("was sent to Archive" in line for line in lines))
    (new,) = set(held(orthanc)) - before
    with urllib.request.urlopen(f"{orthanc[1]}/instances/{new}/file", timeout=30) as reply:
        capture = dcmread(io.BytesIO(reply.read()))
    assert (capture.PatientID, capture.StudyInstanceUID, capture.Modality) == ("SENT-1", "1.11", "OT")
    assert str(capture.PatientName) == "Müller^Johanna Maria"
    assert capture.SeriesInstanceUID != "1.11.1"
    (about,) = capture.SourceImageSequence
    assert about.ReferencedSOPInstanceUID in {dcmread(io.BytesIO(c)).SOPInstanceUID for c in files.values()}
    assert capture.pixel_array.shape == (827, 1169, 3)
    assert "slices" in capture.ImageComments
    assert spooled(listener, "outgoing") == []
    send(listener, files.values())  # the same study again is the same object again
    step_until(listener, lambda: sum("was sent to Archive" in line for line in lines) == 2)
    assert set(held(orthanc)) - before == {new}


def test_an_answer_waits_for_a_pacs_that_is_away(listening, monkeypatch):
    away = PacsServer(name="Away", ae_title="AWAY", host="127.0.0.1", port=free_port())
    listener, lines = listening(answer_to="Archive")
    reach = pacs.find_server
    monkeypatch.setattr(pacs, "find_server", lambda *_: away)
    send(listener, stack(2, StudyInstanceUID="1.12", SeriesInstanceUID="1.12.1").values())
    step_until(listener, lambda: any("1 answers wait: Away" in line for line in lines))
    listener.step()
    assert sum("answers wait" in line for line in lines) == 1  # not again at once
    monkeypatch.setattr(pacs, "find_server", reach)
    listener._send_at = 0.0
    step_until(listener, lambda: any("was sent to Archive" in line for line in lines))
    assert spooled(listener, "outgoing") == []


def test_an_answer_that_is_refused_lets_the_next_one_pass(listening, monkeypatch):
    listener, lines = listening(answer_to="Archive")
    asked = []

    def refuse_the_first(settings, server, datasets):
        asked.append(datasets)
        if len(asked) == 1:
            raise RefusedError("no")

    monkeypatch.setattr(pacs, "send", refuse_the_first)
    for number in range(2):
        listener.spool.keep_outgoing(dicom(InstanceNumber=number + 1))
    listener.step()
    assert len(asked) == 2
    assert spooled(listener, "outgoing") == []
    assert reasons(listener) == "no\n"
    listener.spool.keep_outgoing(dicom())
    listener.settings = listener.settings.model_copy(update={"pacs": PacsSettings()})  # nobody gets answers any more
    listener._send_at = 0.0
    listener.step()
    assert any("1 answers wait: no server" in line for line in lines)


def test_a_series_that_brings_the_unexpected_about_is_put_aside_and_others_answered(listening, monkeypatch):
    listener, lines = listening()
    keep = patients.keep_series

    def stumble(database, settings, user, series, analyses):
        if len(analyses) == 1:
            raise AttributeError("whatever")
        return keep(database, settings, user, series, analyses)

    monkeypatch.setattr(patients, "keep_series", stumble)
    one = dicom(StudyInstanceUID="1.13", SeriesInstanceUID="1.13.1")
    send(listener, [one, *stack(2, StudyInstanceUID="1.13", SeriesInstanceUID="1.13.2").values()])
    (listener.spool.incoming / ".DS_Store").write_text("")
    step_until(listener, lambda: any("2 slices kept" in line for line in lines) and "AttributeError" in str(lines))
    assert "whatever" in reasons(listener)
    assert not any("whatever" in line for line in lines)
    assert len(find_records(listener.database, listener.user).records) == 2
    assert spooled(listener, "working") == []


def test_a_database_that_is_away_for_a_while_costs_no_study(listening, monkeypatch):
    listener, lines = listening()
    keep, away = patients.keep_series, [StorageError("the database is locked")]

    def sometimes(*arguments):
        if away:
            raise away.pop()
        return keep(*arguments)

    monkeypatch.setattr(patients, "keep_series", sometimes)
    send(listener, stack(2).values())
    step_until(listener, lambda: any("a study waits" in line for line in lines))
    listener.step()
    assert len(spooled(listener, "working")) == 2
    monkeypatch.setattr("brainmri.listener.time.monotonic", lambda real=time.monotonic: real() + 61)
    step_until(listener, lambda: any("2 slices kept" in line for line in lines))
    assert spooled(listener, "working") == spooled(listener, "failed") == []


def associate(listener):
    """An association that stays open until it is told otherwise."""
    from pynetdicom import AE

    entity = AE(ae_title="SCU")
    entity.add_requested_context(pacs.MR_CLASSES[0])
    association = entity.associate("127.0.0.1", listener.settings.pacs.port, ae_title="BRAINMRI")
    assert association.is_established
    return association


def test_a_study_is_not_answered_while_its_sender_may_go_on(listening):
    listener, lines = listening(quiet_seconds=0.01)
    files = [dcmread(io.BytesIO(content)) for content in stack(3).values()]
    association = associate(listener)
    for ds in files[:2]:
        assert association.send_c_store(ds).Status == 0
    time.sleep(0.1)
    listener.step()
    assert not any("kept" in line for line in lines)
    assert association.send_c_store(files[2]).Status == 0
    association.release()
    step_until(listener, lambda: any("3 slices kept" in line for line in lines))


def test_half_a_study_is_not_answered_until_it_comes_again(listening):
    listener, lines = listening(quiet_seconds=0.3)
    files = [dcmread(io.BytesIO(content)) for content in stack(3).values()]
    for _ in range(2):  # the second time it comes to its end
        association = associate(listener)
        for ds in files[: 3 if lines[1:] else 2]:
            assert association.send_c_store(ds).Status == 0
        if lines[1:]:
            association.release()
        else:
            association.abort()
            step_until(listener, lambda: any("broke off" in line for line in lines))
            assert find_records(listener.database, listener.user).records == []
    step_until(listener, lambda: any("3 slices kept" in line for line in lines))
    assert "broke off" in reasons(listener)


def test_a_study_that_was_coming_when_the_listener_crashed_is_half_a_study(listening):
    listener, _ = listening(quiet_seconds=0.01)
    association = associate(listener)
    assert association.send_c_store(dataset()).Status == 0
    lines = []
    again = Listener(listener.settings, listener.database, listener.user, listener.classifier, lines.append)
    (listener.spool.incoming / "torn.part").write_bytes(b"half")
    again.spool.open()
    step_until(again, lambda: any("is not answered" in line for line in lines))
    assert "the listener stopped while it came" in reasons(again)
    assert not list(listener.spool.root.rglob("*.part"))
    association.abort()


def test_objects_without_uids_are_refused(listening):
    listener, lines = listening()
    association = associate(listener)
    for missing in ("StudyInstanceUID", "SeriesInstanceUID"):
        for value in ("", ["1.2", "1.3"]):
            ds = dataset()
            setattr(ds, missing, value)
            assert association.send_c_store(ds).Status == 0xC000
    assert association.send_c_store(dataset(InstanceNumber=2)).Status == 0
    association.release()
    assert any("lacks a UID" in line for line in lines)
    step_until(listener, lambda: any("is not answered" in line for line in lines))
    assert "lacks a UID" in reasons(listener)
    assert find_records(listener.database, listener.user).records == []


# What makes a study incomplete: the spool by itself.


@pytest.fixture
def spool(app_settings, tmp_path):
    """A spool for series of at most two images."""
    settings = with_pacs(app_settings, spool=tmp_path / "spool")
    opened = Spool(settings.model_copy(update={"dicom": settings.dicom.model_copy(update={"max_slices": 2})}))
    opened.open()
    return opened


def bring(spool, *objects, released=True):
    """One association that sends (series, instance) of one study; returns which were refused."""
    sender = object()
    refused = [o for o in objects if spool.put("1.2", *o, b"x", sender)]
    spool.end(sender, released=released)
    return refused


def taken(spool) -> tuple[list[str], int]:
    """Why studies are put aside, and how many are to be answered."""
    time.sleep(0.02)
    return spool.take_complete(0.01), len(spool.studies_to_answer())


def again(spool) -> Spool:
    """The spool after a crash."""
    opened = Spool.__new__(Spool)
    opened.__dict__.update(spool.__dict__ | {"_senders": {}, "_missing": {}, "_sizes": {}})
    opened.open()
    return opened


TOO_MANY = "a part was refused: its series has too many or is too large (dicom.max_slices, dicom.max_archive_mb)"
BROKE_OFF = "its sender broke off; let it be sent again"


@pytest.mark.parametrize("crashed", [False, True])
def test_a_refused_part_is_not_forgotten_by_the_next_association(spool, crashed):
    for instance in "abc":
        assert bring(spool, ("1", instance)) == ([("1", "c")] if instance == "c" else [])
    spool = again(spool) if crashed else spool
    assert bring(spool, ("2", "d")) == []
    assert taken(spool) == ([TOO_MANY], 0)


@pytest.mark.parametrize("crashed", [False, True])
def test_a_break_off_is_not_forgotten_when_another_series_comes(spool, crashed):
    bring(spool, ("1", "a"), ("1", "b"), released=False)
    spool = again(spool) if crashed else spool
    bring(spool, ("2", "c"))
    bring(spool, ("1", "b"))
    assert taken(spool) == ([BROKE_OFF], 0)


@pytest.mark.parametrize("crashed", [False, True])
def test_what_was_missing_and_comes_again_makes_the_study_whole(spool, crashed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
        assert bring(spool, ("2", "c")) == [("2", "c")]
    bring(spool, ("1", "a"), released=False)
    spool = again(spool) if crashed else spool
    assert bring(spool, ("1", "a"), ("1", "b"), ("2", "c")) == []
    assert taken(spool) == ([], 1)


def test_a_first_part_that_is_refused_counts_too(spool, monkeypatch):
    sender = object()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
        assert spool.put("1.2", "1", "a", b"x", sender) == "the disk is nearly full"
    assert spool.put("1.2", "1", "b", b"x", sender) == ""
    spool.end(sender, released=True)
    assert taken(spool) == (["a part was refused: the disk is nearly full"], 0)


def test_an_object_of_no_known_study_leaves_its_whole_association_in_doubt(spool):
    sender = object()
    spool.put("1.2", "1", "a", b"x", sender)
    spool.refuse("", "", "it cannot be read", sender)
    spool.end(sender, released=True)
    assert taken(spool) == (["a part was refused: it cannot be read"], 0)


@pytest.mark.parametrize("ended", [False, True])
def test_a_crash_while_a_study_comes_leaves_it_incomplete_until_all_of_that_comes_again(spool, ended):
    if ended:
        bring(spool, ("1", "a"))
    sender = object()
    spool.put("1.2", "2", "b", b"x", sender)
    spool.put("1.2", "2", "c", b"x", sender)
    crashed = again(spool)
    bring(crashed, ("2", "c"), ("3", "d"))
    assert taken(crashed) == (["the listener stopped while it came; let it be sent again"], 0)
    if ended:
        bring(spool, ("1", "a"))
    spool.put("1.2", "2", "b", b"x", sender)
    spool.put("1.2", "2", "c", b"x", sender)
    crashed = again(spool)
    bring(crashed, ("2", "b"), ("2", "c"), ("3", "d"))
    assert taken(crashed) == ([], 1)


def test_an_empty_marker_says_incomplete(spool):
    sender = object()
    spool.put("1.2", "1", "a", b"x", sender)
    next(spool.incoming.glob("*/incomplete.txt")).write_text("")
    assert taken(again(spool)) == (["the listener stopped while it came; let it be sent again"], 0)


def test_derived_series_and_localisers_are_left_to_studies_that_hold_nothing_else(listening):
    listener, lines = listening()
    derived = {"SeriesInstanceUID": "1.14.2", "ImageType": ["DERIVED", "PRIMARY", "MPR"]}
    scout = dicom(StudyInstanceUID="1.14", SeriesInstanceUID="1.14.3", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    files = [*stack(2, StudyInstanceUID="1.14").values(), dicom(StudyInstanceUID="1.14", **derived), scout]
    send(listener, files)
    step_until(listener, lambda: any("2 slices kept" in line for line in lines))
    send(listener, [dicom(StudyInstanceUID="1.15", **derived)])
    step_until(listener, lambda: any("1 slices kept" in line for line in lines))
    step_until(listener, lambda: not spooled(listener, "working"))
    assert len(find_records(listener.database, listener.user).records) == 3
    assert spooled(listener, "failed") == []


def test_a_derived_image_costs_its_series_nothing(listening):
    listener, lines = listening()
    mixed = [dcmread(io.BytesIO(content)) for content in stack(4, StudyInstanceUID="1.17").values()]
    min(mixed, key=lambda ds: _name(ds.SOPInstanceUID)).ImageType = ["DERIVED", "PRIMARY", "MPR"]
    send(listener, [dicom(StudyInstanceUID="1.17", SeriesInstanceUID="1.17.2"), *map(to_bytes, mixed)])
    step_until(listener, lambda: sum("kept as cases" in line for line in lines) == 2)
    assert any("3 slices kept" in line for line in lines)


def node(handlers, contexts) -> tuple[object, PacsServer]:
    """A node of its own that offers only so much."""
    from pynetdicom import AE

    entity, port = AE(ae_title="ODD"), free_port()
    for uid, roles in contexts:
        entity.add_supported_context(uid, list(pacs.SYNTAXES), **roles)
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    return server, PacsServer(name="Odd", ae_title="ODD", host="127.0.0.1", port=port)


GET = ("1.2.840.10008.5.1.4.1.2.2.3", {})
STORE = (pacs.MR_CLASSES[0], {"scu_role": True, "scp_role": False})


def test_a_node_without_c_get_is_named(app_settings):
    running, server = node([], [STORE])
    try:
        with pytest.raises(PacsError, match=r"does not offer Study Root .* - GET; .*let it send here"):
            pacs.fetch(app_settings, server, "1", "1")
    finally:
        running.shutdown()


def test_a_node_that_gives_less_than_it_says_gives_no_series(app_settings):
    from pynetdicom import evt

    def give_two_of_five(event):
        yield 5
        for number in range(2):
            yield 0xFF00, dataset(InstanceNumber=number + 1)
        yield 0xFE00, None

    running, server = node([(evt.EVT_C_GET, give_two_of_five)], [GET, STORE])
    try:
        with pytest.raises(PacsError, match=r"gave 2 of 5 images|refuses to give the series"):
            pacs.fetch(app_settings, server, "1", "1")
    finally:
        running.shutdown()


def test_who_stops_a_fetch_does_not_wait_for_its_end(asked, orthanc):
    settings, server = asked
    give(orthanc, stack(6, StudyInstanceUID="1.16", SeriesInstanceUID="1.16.1").values())

    def click_elsewhere(done, total):
        raise InterruptedError

    start = time.monotonic()
    with pytest.raises(InterruptedError):
        pacs.fetch(settings, server, "1.16", "1.16.1", report=click_elsewhere)
    assert time.monotonic() - start < settings.pacs.timeout_seconds / 2


def test_dcmtk_sends_too(listening, tmp_path):
    if shutil.which("storescu") is None:
        need_real_part("storescu: apt-get install dcmtk")
    listener, lines = listening()
    for name, content in stack(3).items():
        (tmp_path / name).write_bytes(content)
    port = str(listener.settings.pacs.port)
    names = [str(p) for p in tmp_path.glob("IM*.dcm")]
    subprocess.run(["echoscu", "-aet", "SCU", "-aec", "BRAINMRI", "127.0.0.1", port], check=True, timeout=60)
    subprocess.run(["storescu", "-aet", "SCU", "-aec", "BRAINMRI", "127.0.0.1", port, *names], check=True, timeout=60)
    step_until(listener, lambda: any("3 slices kept" in line for line in lines))


def test_dicom3tools_finds_no_error_in_a_capture(tmp_path):
    if shutil.which("dciodvfy") is None:
        need_real_part("dciodvfy: apt-get install dicom3tools")
    pixels = np.random.default_rng(0).integers(0, 256, (33, 35, 3), np.uint8)
    original = dataset(AccessionNumber="A1", StudyID="7")
    capture = secondary_capture(original, pixels, description="d", comment="An answer.", source="model abc")
    capture.save_as(tmp_path / "c.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(dcmread(tmp_path / "c.dcm").pixel_array, pixels)
    checked = subprocess.run(["dciodvfy", str(tmp_path / "c.dcm")], capture_output=True, text=True, timeout=60)
    lines = (checked.stdout + checked.stderr).splitlines()
    assert any("SCImage" in line for line in lines)
    assert not [line for line in lines if line.startswith("Error")]
    said = {"description": "d", "comment": "An answer.", "source": "model abc"}
    assert secondary_capture(original, pixels, **said).SOPInstanceUID == capture.SOPInstanceUID
    for change in ({"comment": "Another."}, {"source": "model def"}, {"frame": 3}):
        other = secondary_capture(original, pixels, **(said | change))
        assert other.SOPInstanceUID != capture.SOPInstanceUID
    assert (other.SourceImageSequence[0].ReferencedFrameNumber, other.InstanceNumber) == (3, 3)
    assert "BurnedInAnnotation" not in capture
    lossy = secondary_capture(dataset(BurnedInAnnotation="NO", LossyImageCompression="01"), pixels, **said)
    assert (lossy.BurnedInAnnotation, lossy.LossyImageCompression) == ("NO", "01")
    bare = dataset(PatientName=None, PatientID=None, StudyDate=None, SpecificCharacterSet=None)
    empty = secondary_capture(bare, pixels, description="d", comment="c", source="s")
    assert all(k in empty and not empty[k].value for k in ("PatientName", "PatientID", "StudyDate", "StudyID"))


# Settings and the command line.


def test_settings_name_what_is_wrong(tmp_path):
    def load(text: str):
        (tmp_path / "config.yaml").write_text("model: {id: m}\npacs: " + text, "utf-8")
        return config.load_settings(tmp_path / "config.yaml").pacs

    one = "{name: A, ae_title: ORTHANC, host: h, port: 104}"
    assert load(f"{{servers: [{one}], answer_to: A}}").spool == tmp_path / "data/pacs"
    with pytest.raises(ConfigError, match="answer_to is 'B'; expected the name of one of servers"):
        load(f"{{servers: [{one}], answer_to: B}}")
    with pytest.raises(ConfigError, match="two servers have the same name"):
        load(f"{{servers: [{one}, {one}]}}")
    for title in ("'  '", "SEVENTEENLETTERSX", "'A\\B'"):
        with pytest.raises(ConfigError, match="ae_title"):
            load(f"{{ae_title: {title}}}")
    with pytest.raises(ConfigError, match=r"callers\.0"):
        load("{callers: ['']}")


def test_nobody_to_listen_to_and_a_taken_port_are_said(app_settings, tmp_path, make_user):
    def listener(**changes):
        settings = with_pacs(app_settings, spool=tmp_path / "spool", **changes)
        return Listener(settings, Database("sqlite://"), make_user, None, lambda _: None)

    with pytest.raises(PacsError, match="nobody may send"):
        listener(port=free_port()).start()
    first = listener(port=free_port(), callers=("A",))
    first.start()
    try:
        with pytest.raises(PacsError, match=r"cannot listen at 127.0.0.1:\d+: Address already in use"):
            listener(port=first.settings.pacs.port, callers=("A",)).start()
    finally:
        first.stop()
    (tmp_path / "file").write_text("")
    first.settings = with_pacs(app_settings, spool=tmp_path / "file" / "spool", callers=("A",))
    unwritable = Listener(first.settings, first.database, first.user, None, lambda _: None)
    with pytest.raises(PacsError, match=r"set pacs\.spool"):
        unwritable.start()


def test_the_listener_ends_when_it_is_told_to(app_settings, make_user, tmp_path):
    make_user("radiologist")
    state.database().close()
    path, port = Path(os.environ["BRAINMRI_CONFIG"]), free_port()
    path.write_text(path.read_text("utf-8") + f"pacs: {{port: {port}, callers: [SCU], spool: spool}}\n", "utf-8")
    command = [sys.executable, "-m", "brainmri", "pacs", "listen", "--user", "radiologist"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert "BRAINMRI listens at" in process.stdout.readline()
    process.terminate()
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "waits for the next start" in rest


def test_the_command_line(orthanc, tmp_path, monkeypatch):
    from brainmri.cli import app

    give(orthanc, [dicom(StudyInstanceUID="1.20", SeriesInstanceUID="1.20.1", PatientID="CLI-1")])
    server = json.dumps(orthanc[0].model_dump())
    (tmp_path / "config.yaml").write_text(f"model: {{id: m}}\npacs: {{servers: [{server}]}}\n", "utf-8")
    monkeypatch.setenv("BRAINMRI_CONFIG", str(tmp_path / "config.yaml"))
    found = CliRunner().invoke(app, ["pacs", "echo"])
    assert (found.exit_code, "Archive (ORTHANC at" in found.output) == (0, True)
    found = CliRunner().invoke(app, ["pacs", "find", "--patient-id", "CLI-1", "--since", "2024-01-01"])
    assert found.output.split() == ["2024-04-05", "CLI-1", "Müller", "Johanna", "Maria", "MR", "1", "images", "1.20"]
    found = CliRunner().invoke(app, ["pacs", "find", "--patient-id", "nobody"])
    assert (found.exit_code, found.output) == (0, "no study matches\n")
    found = CliRunner().invoke(app, ["pacs", "listen", "--user", "nobody"])
    assert "nobody" in str(found.exception)
