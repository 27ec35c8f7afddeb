"""Reports: a kept answer, its picture and maps and a reader's words as a PDF that can be verified later.

A report is issued once and stored with its SHA-256; another wording is another report. Only the byte-identical file
verifies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, Session, mapped_column, undefer

from brainmri.config import Settings
from brainmri.errors import ModelError, PermissionDeniedError, ReportError, StorageError
from brainmri.events import note_event
from brainmri.report_pdf import Content, missing_characters, render, when_text
from brainmri.storage import (
    Base,
    Database,
    DeletedReportRow,
    Record,
    UserRow,
    UtcDateTime,
    changed_note,
    load_slice,
    lock,
    may_see_images,
    open_record,
    signature,
    utc_now,
    visible_to,
)
from brainmri.types import Explanation, MRISlice

if TYPE_CHECKING:
    from brainmri.accounts import User
    from brainmri.patients import StudyRecord

MAX_TEXT = 20_000
DOUBLE_CLICK = timedelta(minutes=1)


class Report(Base):
    """A PDF as issued."""

    __tablename__ = "reports"

    id: Mapped[int] = mapped_column(primary_key=True)
    record_id: Mapped[int] = mapped_column(sa.ForeignKey("records.id", ondelete="CASCADE"), index=True)
    user_id: Mapped[int | None] = mapped_column(sa.ForeignKey("users.id"))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    status: Mapped[str] = mapped_column(sa.String(10))  # draft, final
    findings: Mapped[str] = mapped_column(sa.Text, default="")
    impression: Mapped[str] = mapped_column(sa.Text, default="")
    methods: Mapped[list[str]] = mapped_column(sa.JSON)  # of the heatmaps shown
    author: Mapped[str] = mapped_column(sa.String(200))  # name at that time
    username: Mapped[str] = mapped_column(sa.String(64), default="")  # the account, which a name does not tell
    patient_id: Mapped[int | None]  # under whom the case was filed then; no foreign key: the line outlives the patient
    patient_title: Mapped[str | None] = mapped_column(sa.String(300))  # as printed; None: not filed, or older than 0004
    canonical_sha256: Mapped[str] = mapped_column(sa.String(64))  # of the record, see canonical_record
    pdf_sha256: Mapped[str] = mapped_column(sa.String(64), unique=True)
    pdf: Mapped[bytes] = mapped_column(sa.LargeBinary, nullable=False, deferred=True)

    @property
    def signature(self) -> str:
        """The author as ``Name (user name)``."""
        return signature(self.author, self.username)

    @property
    def file_name(self) -> str:
        """A name for the download that says nothing about the patient."""
        return f"report-{self.id}-case-{self.record_id}-{self.status}.pdf"


@dataclass(frozen=True)
class Verified:
    """What `verify` knows about a file that is byte for byte as issued.

    Attributes
    ----------
    report : Report
    owner : str
        The patient or, where the record is filed under none, the user whose case it is.
    record_unchanged : bool
        The database holds what was reported.
    replaced_by : Report or None
        The newest final report on the case where that is another one.
    other_patient : bool
        The case is filed under somebody else now, or under another name, than the report says.
    """

    report: Report
    owner: str
    record_unchanged: bool
    replaced_by: Report | None = None
    other_patient: bool = False

    @property
    def current(self) -> bool:
        """Nothing stands against relying on it."""
        return self.record_unchanged and self.replaced_by is None and not self.other_patient

    @property
    def text(self) -> str:
        """One line for the reader."""
        r = self.report
        kind = f"final, signed by {r.signature}" if r.status == "final" else f"draft by {r.signature}"
        parts = [f"genuine: report on case {r.record_id} of {self.owner}, {kind}, {when_text(r.created_at)}"]
        if self.replaced_by is not None:
            newer = self.replaced_by
            parts.append(f"replaced by report {newer.id} of {newer.signature}, {when_text(newer.created_at)}")
        if self.other_patient:
            parts.append("the case was filed under another patient or name when it was issued")
        if not self.record_unchanged:
            parts.append("the record in the database is no longer the one reported")
        return "; ".join(parts)


def canonical_record(record: Record) -> bytes:
    """A record as sorted JSON: what the hash in the report's code is taken of."""
    values = {}
    for column in record.__table__.columns:
        value = getattr(record, column.key)
        values[column.key] = value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
    return json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def issue(
    database: Database,
    settings: Settings,
    user: User,
    record_id: int,
    *,
    findings: str = "",
    impression: str = "",
    final: bool = False,
    explanations: Sequence[Explanation] = (),
    mri_slice: MRISlice | None = None,
    seen: int | None = None,
) -> Report:
    """Write a report's PDF and keep it.

    Parameters
    ----------
    user : User
        Author; signs where ``final``.
    findings, impression : str
        The reader's words, any script.
    final : bool
        Sign it; for radiologists. Otherwise a draft with a watermark.
    explanations : sequence of Explanation
        Heatmaps to show, in the slice's own coordinates.
    mri_slice : MRISlice, optional
        The record's slice where the caller has it decoded already.
    seen : int, optional
        Number of the newest final report that the author saw while writing, 0 for none (`newest_final`); None: any.

    Raises
    ------
    PermissionDeniedError
        A guest; an account that is switched off; an administrator without sight of the image; a signature of one
        who is no radiologist.
    ReportError
        Text too long, a map of another picture; a final report without findings and impression, on a picture that is
        decoded otherwise than when it was answered, with a character that no font here draws, that says what this
        author signed less than a minute ago, or after one that the author has not seen.
    StorageError
        No such record among the user's, or its image is gone.
    """
    from brainmri import patients
    from brainmri.model import read_card

    if user.id is None:
        raise PermissionDeniedError("a guest issues no reports; sign in")
    record = open_record(database, user, record_id)
    if not may_see_images(settings, user, record):
        raise PermissionDeniedError("an administrator does not see other users' images and reports on none of them")
    if final and user.role != "radiologist":
        raise PermissionDeniedError(f"only a radiologist signs a report; you are signed in as {user.role}")
    findings, impression = findings.strip(), impression.strip()
    if len(findings) + len(impression) > MAX_TEXT:
        raise ReportError(f"findings and impression have over {MAX_TEXT:,} characters; shorten them")
    if final and not (findings and impression):
        raise ReportError("a final report needs findings and an impression; write both, or keep it a draft")
    mri_slice = mri_slice or load_slice(settings, record)
    if final and (note := changed_note(record, mri_slice)):
        raise ReportError(f"{note} Analyse the file anew and report on that case, or keep this one a draft")
    for explanation in explanations:
        if explanation.saliency_map.shape != mri_slice.pixels.shape:
            raise ReportError(
                f"{explanation.method}: the map is {explanation.saliency_map.shape}, the slice "
                f"{mri_slice.pixels.shape}; explain this slice again"
            )
    try:
        card = read_card(record.model_id, settings.model.directory)
    except ModelError:
        card = None
    if card is not None and card.weights_sha256 != record.weights_sha256:
        card = None  # trained anew under the same id since; its figures are not this answer's
    filed = patients.patient_of(database, user, record_id)
    earlier = newest_final(reports_of(database, user, record_id))
    content = Content(
        record=record,
        mri_slice=mri_slice,
        issued_at=utc_now(),
        author=signature(user.name, user.username),
        author_role=user.role,
        final=final,
        canonical_sha256=hashlib.sha256(canonical_record(record)).hexdigest(),
        explanations=tuple(explanations),
        patient=filed[0] if filed else None,
        study=filed[1] if filed else None,
        place=filed[2] if filed else None,
        series_text=series_text(database, user, filed[2]) if filed else "",
        card=card,
        findings=findings,
        impression=impression,
        earlier=f"Replaces report {earlier.id} of {earlier.signature}, {when_text(earlier.created_at)}."
        if earlier and final
        else "",
        han=settings.reports.han,
    )
    if final and (boxes := missing_characters(content)):
        raise ReportError(f"no font here draws {boxes}; write names, findings and impression without, or keep a draft")
    pdf = render(content)
    row = Report(
        record_id=record_id,
        user_id=user.id,
        created_at=content.issued_at,
        status="final" if final else "draft",
        findings=findings,
        impression=impression,
        methods=[e.method for e in explanations],
        author=user.name or user.username,
        username=user.username,
        patient_id=filed[0].id if filed else None,
        patient_title=filed[0].title if filed else None,
        canonical_sha256=content.canonical_sha256,
        pdf_sha256=hashlib.sha256(pdf).hexdigest(),
        pdf=pdf,
    )
    with database.write() as session:
        _account(session, user)
        lock(session, f"reports {record_id}")
        if final:
            _check_newest(row, _newest_final(session, record_id), seen)
        session.add(row)
    return row


def _account(session: Session, user: User) -> UserRow:
    """The account as it is now: a page may be older than what an administrator did."""
    account = session.get(UserRow, user.id) if user.id is not None else None
    if account is None or not account.active:
        raise PermissionDeniedError(f"the account {user.username} is switched off; ask an administrator")
    return account


def newest_final(reports: Sequence[Report]) -> Report | None:
    """The signed report that holds, of all on one record."""
    return max((r for r in reports if r.status == "final"), key=lambda r: r.id, default=None)


def _newest_final(session: Session, record_id: int) -> Report | None:
    """`newest_final`, whoever may see it."""
    return newest_final(session.scalars(sa.select(Report).where(Report.record_id == record_id)).all())


def _check_newest(row: Report, newest: Report | None, seen: int | None) -> None:
    if newest is None:
        return
    if seen is not None and newest.id != seen:
        raise ReportError(
            f"report {newest.id} was signed by {newest.signature} meanwhile; read it, and sign again if yours stands"
        )
    said = ("user_id", "findings", "impression", "methods", "canonical_sha256", "patient_title")
    twice = row.created_at - newest.created_at < DOUBLE_CLICK  # later, what is printed beside the words may be mended
    if twice and all(getattr(row, name) == getattr(newest, name) for name in said):
        raise ReportError(f"report {newest.id}, signed a moment ago, says the same; none was issued")


def reports_of(database: Database, user: User, record_id: int) -> list[Report]:
    """Reports on one record, newest first."""
    with database.read() as session:
        query = sa.select(Report).join(Record, Record.id == Report.record_id).where(Record.id == record_id)
        return list(session.scalars(query.where(visible_to(user)).order_by(Report.id.desc())))


def reports_of_patient(database: Database, user: User, patient_id: int) -> list[Report]:
    """Reports on one patient's records, oldest first, with their PDFs."""
    from brainmri.patients import Study, StudyRecord

    with database.read() as session:
        return list(
            session.scalars(
                sa.select(Report)
                .join(Record, Record.id == Report.record_id)
                .join(StudyRecord, StudyRecord.record_id == Record.id)
                .join(Study, Study.id == StudyRecord.study_id)
                .where(Study.patient_id == patient_id, visible_to(user))
                .options(undefer(Report.pdf))
                .order_by(Report.id)
            )
        )


def read_pdf(database: Database, settings: Settings, user: User, report_id: int) -> bytes:
    """A report's file as issued, for the account as it is now: a page's button may be older than that. It is logged.

    Raises
    ------
    StorageError
        No such report among those this user may see.
    PermissionDeniedError
        It holds an image that this user does not see, or the account was switched off.
    """
    with database.write() as session:
        user = replace(user, role=_account(session, user).role)
        row = session.execute(
            sa.select(Report.pdf, Record)
            .join(Record, Record.id == Report.record_id)
            .where(Report.id == report_id, visible_to(user))
        ).first()
        if row is None:
            raise StorageError(f"there is no report {report_id} among yours; choose one in Reports")
        if not may_see_images(settings, user, row[1]):
            raise PermissionDeniedError("an administrator does not see other users' images and reports")
        note_event(session, user, "report downloaded", f"report {report_id} on case {row[1].id}")
    return row[0]


def verify(database: Database, content: bytes, user: User | None = None) -> Verified:
    """Check a file against what was issued.

    Parameters
    ----------
    content : bytes
        The PDF.
    user : User, optional
        Whose sight of the record decides whether its owner is named; None (the command line) names it.

    Raises
    ------
    ReportError
        No report with these bytes was issued here: altered, saved anew by some program, from elsewhere, or deleted.
    """
    from brainmri.patients import Patient, Study, StudyRecord

    digest = hashlib.sha256(content).hexdigest()
    with database.read() as session:
        row = session.execute(
            sa.select(Report, Record, UserRow, Patient)
            .join(Record, Record.id == Report.record_id)
            .join(UserRow, UserRow.id == Record.user_id)
            .outerjoin(StudyRecord, StudyRecord.record_id == Record.id)
            .outerjoin(Study, Study.id == StudyRecord.study_id)
            .outerjoin(Patient, Patient.id == Study.patient_id)
            .where(Report.pdf_sha256 == digest)
        ).first()
        newest = _newest_final(session, row[1].id) if row else None
        deleted = None if row else session.get(DeletedReportRow, digest)
    if row is None:
        if deleted is not None:
            who = signature(deleted.author, deleted.username)
            raise ReportError(
                f"deleted: the report on case {deleted.record_id} that {who} signed "
                f"on {when_text(deleted.created_at)} was issued here and deleted on {when_text(deleted.deleted_at)}"
            )
        raise ReportError(
            f"not genuine: no report with SHA-256 {digest[:16]}… was issued here. One changed byte is enough; so is a "
            "program that saved the file anew, or a draft that was deleted"
        )
    report, record, owner, patient = row
    named = user is None or record.user_id == user.id or user.role in ("radiologist", "admin")
    who = f"user {signature(owner.name, owner.username)}"
    if patient or report.patient_title:
        who = f"patient {report.patient_title or patient.title}"
    return Verified(
        report,
        who if named else "another user",
        hashlib.sha256(canonical_record(record)).hexdigest() == report.canonical_sha256,
        newest if newest is not None and newest.id > report.id else None,
        report.patient_title is not None and report.patient_title != (patient.title if patient else None),
    )


def series_text(database: Database, user: User, place: StudyRecord) -> str:
    """What the kept slices of a record's series say together; empty for a case of its own."""
    from brainmri.dicom.series import answer_series
    from brainmri.patients import StudyRecord, series_stacks

    if place.slice_of is None:
        return ""
    with database.read() as session:
        kept = session.execute(
            sa.select(Record, StudyRecord)
            .join(StudyRecord, StudyRecord.record_id == Record.id)
            .where(StudyRecord.study_id == place.study_id, StudyRecord.series_uid == place.series_uid, visible_to(user))
        ).all()
    stacks = series_stacks([(record, at) for record, at in kept])
    return next((answer_series(s.records).text for s in stacks if place.record_id in s.record_ids), "")
