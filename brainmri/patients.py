"""Patients, their studies and what was said about them over time: kept, searched, edited, handed out, deleted.

Answers (`storage.Record`) never change; a patient only gathers them. Every edit keeps what was there before.
"""

from __future__ import annotations

import csv
import io
import secrets
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, Session, mapped_column

from brainmri.config import Settings
from brainmri.errors import BrainMRIError, PermissionDeniedError, StorageError
from brainmri.events import note_event
from brainmri.storage import (
    Base,
    Database,
    DeletionRow,
    Record,
    UtcDateTime,
    attached_to,
    contains_text,
    delete_record,
    deleting,
    load_slice,
    lock,
    may_delete,
    may_delete_signed,
    may_see_images,
    plain_cell,
    save_record,
    search_key,
    sees_all,
    signature,
    utc_now,
    visible_to,
)
from brainmri.types import CLASS_NAMES, CLASS_TITLES, Analysis

if TYPE_CHECKING:
    from brainmri.accounts import User
    from brainmri.dicom import Series

SEXES = {"": "not given", "F": "female", "M": "male", "O": "other"}
VERDICTS = {**CLASS_TITLES, "other": "Something else", "unsure": "Cannot tell"}
"""What a reader can say about a slice: a class, or neither."""


class Patient(Base):
    """A person, pseudonymous unless somebody writes a name."""

    __tablename__ = "patients"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    pseudonym: Mapped[str] = mapped_column(sa.String(64), unique=True)  # P-XXXXXXXXXXXX
    name: Mapped[str] = mapped_column(sa.String(200), default="")
    birth_date: Mapped[date | None]
    sex: Mapped[str] = mapped_column(sa.String(10), default="")  # F, M, O or empty, as DICOM (0010,0040)
    search_key: Mapped[str] = mapped_column(sa.String(300), default="")  # storage.search_key of pseudonym and name

    @property
    def title(self) -> str:
        """Name where there is one, and the pseudonym."""
        return f"{self.name} ({self.pseudonym})" if self.name else self.pseudonym


class Study(Base):
    """One visit to the scanner."""

    __tablename__ = "studies"
    __table_args__ = (sa.UniqueConstraint("patient_id", "study_uid", name="uq_studies_patient_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    patient_id: Mapped[int] = mapped_column(sa.ForeignKey("patients.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    study_uid: Mapped[str | None] = mapped_column(sa.String(64))  # (0020,000D) UI, as de-identified
    title: Mapped[str] = mapped_column(sa.String(200), default="")
    study_date: Mapped[date | None]  # (0008,0020) DA; de-identification takes it out, a reader may give it

    @property
    def moment(self) -> datetime:
        """When it was made; where that is not known, when it was kept."""
        return datetime.combine(self.study_date, time.min, UTC) if self.study_date else self.created_at


class StudyRecord(Base):
    """Which study a record belongs to, and where in its series."""

    __tablename__ = "study_records"

    record_id: Mapped[int] = mapped_column(sa.ForeignKey("records.id", ondelete="CASCADE"), primary_key=True)
    study_id: Mapped[int] = mapped_column(sa.ForeignKey("studies.id", ondelete="CASCADE"), index=True)
    series_uid: Mapped[str | None] = mapped_column(sa.String(64))  # (0020,000E) UI, as de-identified
    series_index: Mapped[int | None]  # from 1, in anatomical order
    series_length: Mapped[int | None]
    position_mm: Mapped[float | None] = mapped_column(sa.Double)

    @property
    def slice_of(self) -> tuple[int, int] | None:
        """Which slice of how many; None outside a series."""
        # Cases filed by hand have no series, yet were numbered once.
        if self.series_uid is None or self.series_index is None or self.series_length is None:
            return None
        return self.series_index, self.series_length


class Verdict(Base):
    """What a reader says about a slice. A new one does not replace the old one in the table, only on the page."""

    __tablename__ = "verdicts"

    id: Mapped[int] = mapped_column(primary_key=True)
    record_id: Mapped[int] = mapped_column(sa.ForeignKey("records.id", ondelete="CASCADE"), index=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    verdict: Mapped[str] = mapped_column(sa.String(40))  # key of VERDICTS
    note: Mapped[str] = mapped_column(sa.Text, default="")


class Edit(Base):
    """Who changed what of a patient, when, and what was there before."""

    __tablename__ = "edits"

    id: Mapped[int] = mapped_column(primary_key=True)
    patient_id: Mapped[int] = mapped_column(sa.ForeignKey("patients.id", ondelete="CASCADE"), index=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    username: Mapped[str] = mapped_column(sa.String(64))
    what: Mapped[str] = mapped_column(sa.String(100))
    before: Mapped[str] = mapped_column(sa.Text)
    after: Mapped[str] = mapped_column(sa.Text)


@dataclass(frozen=True)
class PatientSummary:
    """A line of the list of patients."""

    patient: Patient
    n_studies: int
    n_records: int
    last_at: datetime | None


@dataclass(frozen=True)
class PatientPage:
    """Patients, those with the newest cases first, and how many match altogether."""

    patients: list[PatientSummary]
    total: int


@dataclass(frozen=True)
class TimelineEntry:
    """One answer on a patient's timeline with the study it belongs to and what readers said, newest first.

    A verdict comes with who said it, as ``Name (user name)``.
    """

    record: Record
    study: Study
    place: StudyRecord
    verdicts: tuple[tuple[Verdict, str], ...]


@dataclass(frozen=True)
class Stack:
    """A kept stack: each slice once, with its newest answer, in anatomical order.

    ``record_ids`` names all its answers, older ones as well.
    """

    records: tuple[Record, ...]
    record_ids: frozenset[int]


def create_patient(
    database: Database,
    user: User,
    *,
    pseudonym: str = "",
    name: str = "",
    birth_date: date | None = None,
    sex: str = "",
) -> Patient:
    """Make a patient; without a pseudonym a random one is given.

    Raises
    ------
    PermissionDeniedError
        A guest.
    StorageError
        The pseudonym is taken, or a value is not allowed.
    """
    if user.id is None:
        raise PermissionDeniedError("a guest stores nothing; sign in to keep patients")
    pseudonym = _checked_pseudonym(pseudonym or f"P-{secrets.token_hex(6).upper()}")
    values = _checked(name=name, birth_date=birth_date, sex=sex)
    patient = Patient(user_id=user.id, pseudonym=pseudonym, **values, search_key=_search_key(pseudonym, name))
    with database.write() as session:
        if session.scalar(sa.select(sa.exists().where(Patient.pseudonym == pseudonym))):
            raise StorageError(f"there is a patient {pseudonym} already; choose another id")
        session.add(patient)
    return patient


def find_patients(
    database: Database,
    user: User,
    *,
    text: str = "",
    sexes: Sequence[str] = (),
    labels: Sequence[str] = (),
    offset: int = 0,
    limit: int = 25,
) -> PatientPage:
    """One page of the patients that a user may see.

    Parameters
    ----------
    text : str
        Part of the pseudonym or name, in any case and alphabet.
    sexes, labels : sequence of str
        Any of these; a label means that one of the patient's answers says so. Empty means all.
    """
    conditions = [_visible_patients(user)]
    if text.strip():
        conditions.append(contains_text(Patient.search_key, text.strip()))
    if sexes:
        conditions.append(Patient.sex.in_(sexes))
    if labels:
        conditions.append(Patient.id.in_(_patients_with(Record.label.in_(labels), visible_to(user))))
    with database.read() as session:
        total = session.scalar(sa.select(sa.func.count()).select_from(Patient).where(*conditions)) or 0
        last = sa.func.max(Record.created_at)
        rows = session.execute(
            sa.select(Patient, sa.func.count(Study.id.distinct()), sa.func.count(Record.id), last)
            .outerjoin(Study, Study.patient_id == Patient.id)
            .outerjoin(StudyRecord, StudyRecord.study_id == Study.id)
            .outerjoin(Record, sa.and_(Record.id == StudyRecord.record_id, visible_to(user)))
            .where(*conditions)
            .group_by(Patient.id)
            .order_by(sa.func.coalesce(last, Patient.created_at).desc(), Patient.id.desc())
            .offset(offset)
            .limit(limit)
        ).all()
    return PatientPage([PatientSummary(p, studies, records, at) for p, studies, records, at in rows], total)


def open_patient(database: Database, user: User, patient_id: int) -> Patient:
    """One patient.

    Raises
    ------
    StorageError
        None with this number, or not this user's to see (the two are not told apart).
    """
    with database.read() as session:
        return _patient(session, user, patient_id)


def edit_patient(
    database: Database, user: User, patient_id: int, *, seen: int | None = None, **changes: str | date | None
) -> Patient:
    """Change ``pseudonym``, ``name``, ``birth_date`` or ``sex``; what was there is kept as an `Edit` for each.

    Parameters
    ----------
    seen : int, optional
        Number of the newest edit that the user saw before writing (`newest_edit`); None: whatever is there is replaced.

    Raises
    ------
    StorageError
        No such patient, a value that is not allowed, or an edit that came after ``seen``; nothing was changed.
    """
    unknown = set(changes) - {"pseudonym", "name", "birth_date", "sex"}
    if unknown:
        raise StorageError(f"a patient has no {', '.join(sorted(unknown))}; it has pseudonym, name, birth_date, sex")
    with database.write() as session:
        patient = _patient(session, user, patient_id)
        _check_seen(session, patient_id, seen)
        if "pseudonym" in changes:
            changes["pseudonym"] = _checked_pseudonym(str(changes["pseudonym"]))
            taken = sa.exists().where(Patient.pseudonym == changes["pseudonym"], Patient.id != patient.id)
            if session.scalar(sa.select(taken)):
                raise StorageError(f"there is a patient {changes['pseudonym']} already; choose another id")
        _checked(**{k: v for k, v in changes.items() if k != "pseudonym"})
        for field, after in changes.items():
            before = getattr(patient, field)
            if before != after:
                _keep_edit(session, user, patient_id, field.replace("_", " "), before, after)
                setattr(patient, field, after)
        patient.search_key = _search_key(patient.pseudonym, patient.name)
    return patient


def _check_seen(session: Session, patient_id: int, seen: int | None) -> None:
    """Refuse to write over what somebody else wrote since; keeps others out until the transaction ends."""
    lock(session, f"patient {patient_id}")
    if seen is None:
        return
    newer = session.scalars(sa.select(Edit).where(Edit.patient_id == patient_id, Edit.id > seen)).all()
    if newer:
        what = "; ".join(f"{e.username} made {e.what} {e.after!r}" for e in newer)
        raise StorageError(f"this patient was changed meanwhile ({what}); look, and save again what still holds")


def newest_edit(database: Database, user: User, patient_id: int) -> int:
    """Number of the newest of a patient's edits; 0 where there is none."""
    with database.read() as session:
        _patient(session, user, patient_id)
        return session.scalar(sa.select(sa.func.max(Edit.id)).where(Edit.patient_id == patient_id)) or 0


def edit_study(
    database: Database, user: User, study_id: int, *, title: str, study_date: date | None, seen: int | None = None
) -> Study:
    """Name a study or give its date; what was there is kept as an `Edit` of the patient.

    Parameters
    ----------
    seen : int, optional
        As for `edit_patient`.

    Raises
    ------
    StorageError
        No such study among those of the user's patients, a date that is none, or an edit that came after ``seen``;
        nothing was changed.
    """
    _check_day(study_date, "study date")
    with database.write() as session:
        study = session.get(Study, study_id)
        if study is None:
            raise StorageError(f"there is no study {study_id}; open its patient again")
        _patient(session, user, study.patient_id)
        _check_seen(session, study.patient_id, seen)
        title = title.strip()[:200]
        for what, before, after in (("title", study.title, title), ("date", study.study_date, study_date)):
            if before != after:
                _keep_edit(session, user, study.patient_id, f"{what} of study {study_id}", before, after)
        study.title, study.study_date = title, study_date
    return study


def edits_of(database: Database, user: User, patient_id: int) -> list[Edit]:
    """What was changed of a patient, newest first."""
    with database.read() as session:
        _patient(session, user, patient_id)
        return list(session.scalars(sa.select(Edit).where(Edit.patient_id == patient_id).order_by(Edit.id.desc())))


def known_patient(database: Database, user: User, pseudonym: str) -> Patient | None:
    """The patient with this pseudonym among those that a user may see."""
    query = sa.select(Patient).where(
        Patient.pseudonym.in_((pseudonym, _own_pseudonym(user, pseudonym))), _visible_patients(user)
    )
    with database.read() as session:
        return session.scalar(query.order_by(sa.func.length(Patient.pseudonym)).limit(1))


def patient_for_pseudonym(
    database: Database, user: User, pseudonym: str, *, name: str = "", birth_date: date | None = None, sex: str = ""
) -> Patient:
    """Patient of a study: the one with this pseudonym among those that the user may see, made at first sight.

    Where only somebody else has that patient, this user gets one of their own, marked with their number.
    """
    found = known_patient(database, user, pseudonym)
    if found is not None:
        return found
    with database.read() as session:
        taken = session.scalar(sa.select(sa.exists().where(Patient.pseudonym == pseudonym)))
    chosen = _own_pseudonym(user, pseudonym) if taken else pseudonym
    return create_patient(database, user, pseudonym=chosen, name=name, birth_date=birth_date, sex=sex)


def _own_pseudonym(user: User, pseudonym: str) -> str:
    return f"{pseudonym} (user {user.id})"


def file_records(
    database: Database,
    user: User,
    patient_id: int,
    records: Sequence[Record],
    *,
    study_uid: str | None = None,
    series_uid: str | None = None,
    title: str = "",
    study_date: date | None = None,
    positions_mm: Sequence[float | None] = (),
) -> Study:
    """Put records into a patient's study, in the order of their series; the study is made at first need.

    Without a ``series_uid`` new ones are cases of their own, which no series answer counts. A record that lay in
    another study moves and keeps its place in its series; the move is kept as an edit of both patients, and a study
    that holds nothing more goes.

    Raises
    ------
    PermissionDeniedError
        A record with a signed report would go to another patient; a radiologist or an administrator moves it.
    StorageError
        A patient or a record that this user may not see, or a date that is none; nothing was filed.
    """
    _check_day(study_date, "study date")
    with database.write() as session:
        _patient(session, user, patient_id)
        study = None
        if study_uid:
            study = session.scalar(sa.select(Study).where(Study.patient_id == patient_id, Study.study_uid == study_uid))
        if study is None:
            study = Study(patient_id=patient_id, study_uid=study_uid or None, title=title[:200], study_date=study_date)
            session.add(study)
            session.flush()
        left: set[int] = set()
        numbered = series_uid is not None and len(records) > 1
        for i, record in enumerate(records):
            if not session.scalar(sa.select(sa.exists().where(Record.id == record.id, visible_to(user)))):
                raise StorageError(f"there is no case {record.id} among yours; nothing was filed")
            place = session.get(StudyRecord, record.id)
            if place is None:
                place = StudyRecord(record_id=record.id)
                session.add(place)
            elif place.study_id != study.id:
                _move(session, user, record, place.study_id, patient_id)
                left.add(place.study_id)
            place.study_id = study.id
            if series_uid is not None:
                place.series_uid = series_uid
                place.series_index = i + 1 if numbered else None
                place.series_length = len(records) if numbered else None
                place.position_mm = positions_mm[i] if i < len(positions_mm) else None
        session.flush()
        held = sa.exists().where(StudyRecord.study_id == Study.id)
        session.execute(sa.delete(Study).where(Study.id.in_(left), ~held))
    return study


def _move(session: Session, user: User, record: Record, from_study: int, patient_id: int) -> None:
    """Keep as edits that a record goes from a study to a patient; refuse what a signed report stands against."""
    before = session.get(Study, from_study)
    if before is None or before.patient_id == patient_id:
        return
    if attached_to(session, [record.id]).signed and not sees_all(user):
        raise PermissionDeniedError(
            f"case {record.id} has a signed report; a radiologist or an administrator files it under another patient"
        )
    _keep_edit(session, user, before.patient_id, f"case {record.id}", "here", "filed elsewhere")
    _keep_edit(session, user, patient_id, f"case {record.id}", "filed elsewhere", "here")


def keep_series(
    database: Database,
    settings: Settings,
    user: User,
    series: Series,
    analyses: Sequence[Analysis],
    *,
    report: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """Keep the answers to all slices of a series under their patient, or nothing.

    Parameters
    ----------
    analyses : sequence of Analysis
        One for each frame, in order.
    report : callable, optional
        Called with the slices kept so far and all of them.

    Raises
    ------
    PermissionDeniedError
        A guest.
    StorageError
        A slice cannot be stored, or the files say of the patient what is not allowed.
    """
    patient_id, person = _person(series)
    said = series.frames[0].patient  # None unless de-identification is off
    known = known_patient(database, user, patient_id)
    # The patient first: what the files say of one may be refused.
    patient = known or patient_for_pseudonym(database, user, patient_id, **person)
    records: list[Record] = []
    try:
        for analysis in analyses:
            records.append(save_record(database, settings, user, analysis, None))
            if report:
                report(len(records), len(analyses))
        file_records(
            database,
            user,
            patient.id,
            records,
            study_uid=series.study_uid,
            series_uid=series.uid,
            title=" ".join(part for part in (series.label, series.plane or "") if part),
            study_date=read_day(said["StudyDate"]) if said else None,
            positions_mm=[f.position_mm for f in series.frames],
        )
        if known and not known.name and person:
            edit_patient(database, user, known.id, **person)
    except BaseException:  # Streamlit's own, too, which a click half-way raises
        for record in records:
            with suppress(BrainMRIError):
                delete_record(database, settings, user, record.id)
        if known is None:
            with suppress(BrainMRIError):
                _delete_unused(database, user, patient.id)
        raise
    return records


def _delete_unused(database: Database, user: User, patient_id: int) -> None:
    """Delete a patient that was made for cases which could not be kept, unless somebody filed others meanwhile."""
    with database.write() as session:
        _hold(session, patient_id)
        patient = session.get(Patient, patient_id)
        if patient is not None and not session.scalar(sa.select(_records_of(patient_id).exists())):
            session.delete(patient)
            session.add(DeletionRow(user_id=user.id, username=user.username, what=f"patient {patient_id}: no cases"))


def _person(series: Series) -> tuple[str, dict[str, Any]]:
    """Patient's id, and where de-identification is off what else the files say of who it is."""
    from brainmri.dicom.deidentify import pseudonym, tells_apart

    said = series.frames[0].patient
    if said is None:
        return series.patient_id, {}
    family, _, given = said["PatientName"].replace("=", "^").partition("^")
    name = " ".join(part for part in (given.replace("^", " ").strip(), family.strip()) if part)
    person = {
        "name": "".join(c if _one_line(c) else " " for c in name)[:200],
        "birth_date": read_day(said["PatientBirthDate"]),
        "sex": said["PatientSex"] if said["PatientSex"] in ("F", "M", "O") else "",
    }
    patient_id = series.patient_id
    if not tells_apart(patient_id):  # or all who have no id would be one patient
        patient_id = pseudonym(series.study_uid or series.uid or series.slices[0].sha256, b"")
    return patient_id, {key: value for key, value in person.items() if value}


def patient_of(database: Database, user: User, record_id: int) -> tuple[Patient, Study, StudyRecord] | None:
    """Whom a record belongs to, or None where it is filed nowhere that this user may see."""
    with database.read() as session:
        row = session.execute(
            sa.select(Patient, Study, StudyRecord)
            .join(Study, Study.patient_id == Patient.id)
            .join(StudyRecord, StudyRecord.study_id == Study.id)
            .join(Record, Record.id == StudyRecord.record_id)
            .where(Record.id == record_id, visible_to(user))
        ).first()
    return None if row is None else (row[0], row[1], row[2])


def filed_under(database: Database, user: User, record_ids: Sequence[int]) -> dict[int, Patient]:
    """Patients by the records filed under them, of those that the user may see."""
    query = (
        sa.select(StudyRecord.record_id, Patient)
        .join(Study, Study.id == StudyRecord.study_id)
        .join(Patient, Patient.id == Study.patient_id)
        .join(Record, Record.id == StudyRecord.record_id)
        .where(StudyRecord.record_id.in_(record_ids), visible_to(user))
    )
    with database.read() as session:
        return dict(session.execute(query).tuples().all())


def timeline(database: Database, user: User, patient_id: int) -> list[TimelineEntry]:
    """All answers of a patient that this user may see: newest study first, inside it in series order.

    Studies without a date count from when they were kept.
    """
    from brainmri.storage import UserRow

    with database.read() as session:
        _patient(session, user, patient_id)
        rows = session.execute(
            sa.select(Record, Study, StudyRecord)
            .join(StudyRecord, StudyRecord.record_id == Record.id)
            .join(Study, Study.id == StudyRecord.study_id)
            .where(Study.patient_id == patient_id, visible_to(user))
            .order_by(Study.id, StudyRecord.series_index, Record.id)
        ).all()
        said: dict[int, list[tuple[Verdict, str]]] = {}
        query = (
            sa.select(Verdict, UserRow.name, UserRow.username)
            .join(UserRow, UserRow.id == Verdict.user_id)
            .join(StudyRecord, StudyRecord.record_id == Verdict.record_id)
            .join(Study, Study.id == StudyRecord.study_id)
            .where(Study.patient_id == patient_id)
            .order_by(Verdict.id.desc())
        )
        for verdict, name, username in session.execute(query):
            said.setdefault(verdict.record_id, []).append((verdict, signature(name, username)))
    entries = [TimelineEntry(r, s, place, tuple(said.get(r.id, ()))) for r, s, place in rows]
    return sorted(entries, key=lambda e: (e.study.moment, e.study.id), reverse=True)  # stable: series stay in order


def series_stacks(kept: Sequence[tuple[Record, StudyRecord]]) -> list[Stack]:
    """The stacks of more than one slice among the records of one study, those kept first in front.

    A series may be kept again, whole or in part, and may hold several stacks (planes, echoes): what was kept at once is
    one stack, and so is what was kept at different times but has a slice in common.
    """
    filings: list[list[tuple[Record, StudyRecord]]] = []
    of_series = [k for k in kept if k[1].series_uid is not None]
    for record, place in sorted(of_series, key=lambda k: (k[1].series_uid or "", k[0].id)):
        before = filings[-1][-1][1] if filings else None
        # The numbers start again where the series, or another stack of it, was kept.
        if (
            before is None
            or place.series_uid != before.series_uid
            or (place.series_index or 1) <= (before.series_index or 1)
        ):
            filings.append([])
        filings[-1].append((record, place))
    stacks: list[list[tuple[Record, StudyRecord]]] = []
    for filing in filings:
        keys = {_slice_key(*k) for k in filing}
        same = [s for s in stacks if any(_slice_key(*k) in keys for k in s)]
        stacks = [s for s in stacks if s not in same] + [[k for s in same for k in s] + filing]
    found = [_stack(s) for s in stacks if any(place.series_length for _, place in s)]
    return sorted((s for s in found if len(s.records) > 1), key=lambda s: min(s.record_ids))


def _slice_key(record: Record, place: StudyRecord) -> tuple:
    return place.series_uid, record.sop_instance_uid or record.image_sha256, record.frame


def _stack(kept: Sequence[tuple[Record, StudyRecord]]) -> Stack:
    newest = list({_slice_key(*k): k for k in kept}.values())  # oldest first, so the last of a slice is its newest
    placed = all(place.position_mm is not None for _, place in newest)
    # A part that was kept by itself was numbered by itself.
    newest.sort(key=lambda k: (round(k[1].position_mm or 0.0, 3) if placed else 0.0, k[1].series_index or 1))
    return Stack(tuple(record for record, _ in newest), frozenset(record.id for record, _ in kept))


def add_verdict(database: Database, user: User, record_id: int, verdict: str, note: str = "") -> Verdict:
    """Say something about a slice. Earlier verdicts stay.

    Raises
    ------
    PermissionDeniedError, StorageError
        A guest; no such record among those the user sees; an unknown verdict.
    """
    if user.id is None:
        raise PermissionDeniedError("a guest stores nothing; sign in to keep verdicts")
    if verdict not in VERDICTS:
        raise StorageError(f"{verdict!r} is no verdict; expected one of {', '.join(VERDICTS)}")
    row = Verdict(record_id=record_id, user_id=user.id, verdict=verdict, note=note.strip()[:10_000])
    with database.write() as session:
        if not session.scalar(sa.select(sa.exists().where(Record.id == record_id, visible_to(user)))):
            raise StorageError(f"there is no case {record_id} among yours; choose one in History")
        session.add(row)
    return row


def export_patient(database: Database, settings: Settings, user: User, patient_id: int) -> bytes:
    """Pack everything about one patient that this user may see. It is logged.

    Returns
    -------
    bytes
        A zip: ``patient.csv``, ``records.csv``, ``verdicts.csv``, ``edits.csv``, ``images/`` (PNG of every slice),
        ``reports/`` (PDF as issued) and ``summary.pdf`` (the timeline). Reports that name another patient, under whom
        the case was filed then, stay out; ``reports/left_out.txt`` numbers them.

    Raises
    ------
    PermissionDeniedError
        The user sees the patient but not the images.
    """
    from brainmri import report
    from brainmri.report_pdf import render_summary

    patient = open_patient(database, user, patient_id)
    entries = timeline(database, user, patient_id)
    if not all(may_see_images(settings, user, entry.record) for entry in entries):
        raise PermissionDeniedError("an administrator does not see other users' images; a radiologist can export them")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "patient.csv",
            _csv(
                ["pseudonym", "name", "birth_date", "sex", "created_at"],
                [[patient.pseudonym, patient.name, patient.birth_date or "", patient.sex, patient.created_at]],
            ),
        )
        columns = ["record", "study", "study_date", "study_uid", "series_uid", "series_index", "position_mm"]
        columns += ["created_at", "name", "decision", "label", "prediction_set", *(f"p_{c}" for c in CLASS_NAMES)]
        columns += ["ood_score", "model_id", "weights_sha256", "engine", "precision"]
        columns += ["sop_instance_uid", "frame", "image"]
        rows = []
        for entry in entries:
            r, place = entry.record, entry.place
            picture = f"images/{r.id:06d}.png"
            try:
                archive.writestr(picture, _png(load_slice(settings, r).pixels))
            except BrainMRIError as error:
                picture = f"not readable: {error}"
            number = place.slice_of[0] if place.slice_of else None
            study = entry.study
            where = [study.id, study.study_date, study.study_uid, place.series_uid, number, place.position_mm]
            answer = [
                r.decision,
                r.label,
                " ".join(r.prediction_set),
                *(r.probabilities[c] for c in CLASS_NAMES),
            ]
            source = [r.model_id, r.weights_sha256, r.engine, r.precision, r.sop_instance_uid, r.frame, picture]
            rows.append([r.id, *where, r.created_at, r.name, *answer, r.ood_score, *source])
        archive.writestr("records.csv", _csv(columns, rows))
        said = [[v.record_id, v.created_at, who, v.verdict, v.note] for e in entries for v, who in e.verdicts]
        archive.writestr("verdicts.csv", _csv(["record", "at", "reader", "verdict", "note"], said))
        edits = [[e.at, e.username, e.what, e.before, e.after] for e in edits_of(database, user, patient_id)]
        archive.writestr("edits.csv", _csv(["at", "user", "what", "before", "after"], edits))
        others = []
        for issued in report.reports_of_patient(database, user, patient_id):
            if issued.patient_id not in (None, patient_id):
                others.append(f"report {issued.id} on case {issued.record_id}: issued when it was another patient's\n")
                continue
            archive.writestr(f"reports/{issued.file_name}", issued.pdf)
        if others:
            archive.writestr("reports/left_out.txt", "".join(others))
        archive.writestr("summary.pdf", render_summary(patient, entries, settings.reports.han))
    with database.write() as session:
        note_event(session, user, "patient exported", f"patient {patient_id}")
    return buffer.getvalue()


def what_deletion_takes(database: Database, user: User, patient_id: int) -> str:
    """What `delete_patient` would delete, in words such as ``1 studies, 24 cases, 1 signed report``.

    Raises
    ------
    PermissionDeniedError, StorageError
        As `delete_patient` would.
    """
    with database.read() as session:
        return _deletable(session, user, patient_id)[1]


def delete_patient(database: Database, settings: Settings, user: User, patient_id: int) -> str:
    """Delete a patient with all studies, cases, image files, verdicts, edits and reports, or nothing; one line stays.

    Returns
    -------
    str
        That line.

    Raises
    ------
    PermissionDeniedError
        Some of the cases belong to somebody else, or a signed report is on one (only an administrator deletes those).
    StorageError
        No such patient, or an image file cannot be removed.
    """
    with deleting(database, settings) as (session, remove):
        _hold(session, patient_id)
        records, takes = _deletable(session, user, patient_id)
        remove(records)
        session.execute(sa.delete(Patient).where(Patient.id == patient_id))
        line = f"patient {patient_id}: {takes}"
        session.add(DeletionRow(user_id=user.id, username=user.username, what=line))
    return line


def _hold(session: Session, patient_id: int) -> None:
    """Let nobody file, sign or delete anything of a patient until the transaction ends: PostgreSQL has many at once."""
    for query in (
        sa.select(Patient.id).where(Patient.id == patient_id),
        sa.select(Study.id).where(Study.patient_id == patient_id).order_by(Study.id),
        sa.select(Record.id).where(Record.id.in_(_records_of(patient_id))).order_by(Record.id),
    ):
        session.execute(query.with_for_update())


def _deletable(session: Session, user: User, patient_id: int) -> tuple[Sequence[Record], str]:
    """Records of a patient that this user may delete, and what goes with the patient, in words."""
    patient = _patient(session, user, patient_id)
    records = session.scalars(sa.select(Record).where(Record.id.in_(_records_of(patient_id)))).all()
    if (patient.user_id != user.id and user.role != "admin") or not all(may_delete(user, r) for r in records):
        raise PermissionDeniedError("this patient has cases of other users; ask an administrator to delete it")
    attached = attached_to(session, _records_of(patient_id))
    if attached.signed and not may_delete_signed(user):
        raise PermissionDeniedError(
            f"this patient's cases have {attached.text}; only an administrator deletes signed reports"
        )
    n_studies = session.scalar(sa.select(sa.func.count()).select_from(Study).where(Study.patient_id == patient_id))
    takes = f"{n_studies} studies, {len(records)} cases"
    return records, takes + (f", {attached.text}" if attached.text else "")


def _records_of(patient_id: int) -> sa.Select:
    return (
        sa.select(StudyRecord.record_id)
        .join(Study, Study.id == StudyRecord.study_id)
        .where(Study.patient_id == patient_id)
    )


def deletions(database: Database, user: User, limit: int = 100) -> list[DeletionRow]:
    """Lines left by deletions, newest first: a user's own, an administrator's all."""
    query = sa.select(DeletionRow).order_by(DeletionRow.id.desc()).limit(limit)
    if user.role != "admin":
        query = query.where(DeletionRow.user_id == user.id)
    with database.read() as session:
        return list(session.scalars(query))


def _patient(session: Session, user: User, patient_id: int) -> Patient:
    patient = session.scalar(sa.select(Patient).where(Patient.id == patient_id, _visible_patients(user)))
    if patient is None:
        raise StorageError(f"there is no patient {patient_id} among yours; choose one in Patients")
    return patient


def _visible_patients(user: User) -> sa.ColumnElement[bool]:
    """A reader's own and those with a case of theirs; a radiologist and an administrator see all."""
    if user.id is None:
        return sa.false()
    if sees_all(user):
        return sa.true()
    return sa.or_(Patient.user_id == user.id, Patient.id.in_(_patients_with(Record.user_id == user.id)))


def _patients_with(*conditions: sa.ColumnElement[bool]) -> sa.Select:
    return (
        sa.select(Study.patient_id)
        .join(StudyRecord, StudyRecord.study_id == Study.id)
        .join(Record, Record.id == StudyRecord.record_id)
        .where(*conditions)
    )


def _keep_edit(session: Session, user: User, patient_id: int, what: str, before: object, after: object) -> None:
    texts = ("" if value is None else str(value) for value in (before, after))
    session.add(Edit(patient_id=patient_id, username=user.username, what=what, before=next(texts), after=next(texts)))


def _checked_pseudonym(pseudonym: str) -> str:
    pseudonym = pseudonym.strip()
    if not 1 <= len(pseudonym) <= 64 or not pseudonym.isprintable():
        raise StorageError(f"{pseudonym[:70]!r} is no patient id; expected 1 to 64 printable characters")
    return pseudonym


def _checked(**values: object) -> dict:
    name, birth_date, sex = values.get("name", ""), values.get("birth_date"), values.get("sex", "")
    if not isinstance(name, str) or len(name) > 200 or not _one_line(name):
        raise StorageError("a name has at most 200 printable characters on one line")
    _check_day(birth_date, "birth date")
    if sex not in SEXES:
        raise StorageError(f"{sex!r} is not one of F, M, O or nothing")
    return values


def read_day(text: str) -> date | None:
    """A day as DICOM writes it (``19610203``); None where it is none, or none that a living patient saw."""
    try:
        day = date.fromisoformat(text if text.isdecimal() else "")
        _check_day(day, "day")
    except (ValueError, StorageError):
        return None
    return day


def _one_line(text: str) -> bool:
    """Printable; Persian and Indic names need the joiners that Unicode counts as formatting."""
    return text.replace("\u200c", "").replace("\u200d", "").isprintable()


def _check_day(day: object, what: str) -> None:
    if day is not None and (not isinstance(day, date) or not date(1880, 1, 1) <= day <= date.today()):
        raise StorageError(f"{day} is no {what}; expected one from 1880 until today")


def _search_key(pseudonym: str, name: str) -> str:
    return search_key(f"{pseudonym} {name}")[:300]


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """CSV that a spreadsheet shows as text."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(header)
    for row in rows:
        cells = ("" if v is None else v.isoformat() if isinstance(v, date) else v for v in row)
        writer.writerow([plain_cell(c) for c in cells])
    return "\ufeff" + buffer.getvalue()


def _png(pixels) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
