"""Reports: a kept answer, its picture and maps and a reader's words as a PDF that can be verified later.

A report is issued once and stored with its SHA-256; another wording is another report. Only the byte-identical file
verifies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from brainmri.config import Settings
from brainmri.errors import ModelError, PermissionDeniedError, ReportError, StorageError
from brainmri.report_pdf import Content, render, when_text
from brainmri.storage import (
    Base,
    Database,
    Record,
    UtcDateTime,
    load_slice,
    may_see_images,
    open_record,
    utc_now,
    visible_to,
)
from brainmri.types import Explanation, MRISlice

if TYPE_CHECKING:
    from brainmri.accounts import User
    from brainmri.patients import StudyRecord

MAX_TEXT = 20_000


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
    author: Mapped[str] = mapped_column(sa.String(200))
    canonical_sha256: Mapped[str] = mapped_column(sa.String(64))  # of the record, see canonical_record
    pdf_sha256: Mapped[str] = mapped_column(sa.String(64), unique=True)
    pdf: Mapped[bytes] = mapped_column(sa.LargeBinary, nullable=False, deferred=True)

    @property
    def file_name(self) -> str:
        """A name for the download that says nothing about the patient."""
        return f"report-{self.id}-case-{self.record_id}-{self.status}.pdf"


@dataclass(frozen=True)
class Verified:
    """What `verify` knows about a file that is byte for byte as issued.

    ``owner`` names the patient or, where the record is filed under none, the user whose case it is.
    """

    report: Report
    owner: str
    record_unchanged: bool

    @property
    def text(self) -> str:
        """One line for the reader."""
        r = self.report
        kind = f"final, signed by {r.author}" if r.status == "final" else f"draft by {r.author}"
        changed = "" if self.record_unchanged else "; the record in the database is no longer the one reported"
        return f"genuine: report on case {r.record_id} of {self.owner}, {kind}, {when_text(r.created_at)}{changed}"


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

    Raises
    ------
    PermissionDeniedError
        A guest; an administrator without sight of the image; signing without the role for it.
    ReportError
        Text too long, a final report without findings and impression, or a map of another picture.
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
    earlier = [r for r in reports_of(database, user, record_id) if r.status == "final"]
    content = Content(
        record=record,
        mri_slice=mri_slice,
        issued_at=utc_now(),
        author=user.name or user.username,
        author_role=user.role,
        final=final,
        canonical_sha256=hashlib.sha256(canonical_record(record)).hexdigest(),
        explanations=tuple(explanations),
        patient=filed[0] if filed else None,
        study=filed[1] if filed else None,
        place=filed[2] if filed else None,
        series_text=_series_text(database, user, filed[2]) if filed else "",
        card=card,
        findings=findings,
        impression=impression,
        earlier=f"Replaces the final report of {when_text(earlier[0].created_at)}." if earlier and final else "",
        han=settings.reports.han,
    )
    pdf = render(content)
    row = Report(
        record_id=record_id,
        user_id=user.id,
        created_at=content.issued_at,
        status="final" if final else "draft",
        findings=findings,
        impression=impression,
        methods=[e.method for e in explanations],
        author=content.author,
        canonical_sha256=content.canonical_sha256,
        pdf_sha256=hashlib.sha256(pdf).hexdigest(),
        pdf=pdf,
    )
    with database.write() as session:
        session.add(row)
    return row


def reports_of(database: Database, user: User, record_id: int) -> list[Report]:
    """Reports on one record, newest first."""
    with database.read() as session:
        query = sa.select(Report).join(Record, Record.id == Report.record_id).where(Record.id == record_id)
        return list(session.scalars(query.where(visible_to(user)).order_by(Report.id.desc())))


def reports_of_patient(database: Database, user: User, patient_id: int) -> list[Report]:
    """Reports on one patient's records, oldest first."""
    from brainmri.patients import Study, StudyRecord

    with database.read() as session:
        return list(
            session.scalars(
                sa.select(Report)
                .join(Record, Record.id == Report.record_id)
                .join(StudyRecord, StudyRecord.record_id == Record.id)
                .join(Study, Study.id == StudyRecord.study_id)
                .where(Study.patient_id == patient_id, visible_to(user))
                .order_by(Report.id)
            )
        )


def read_pdf(database: Database, settings: Settings, user: User, report_id: int) -> bytes:
    """A report's file as issued.

    Raises
    ------
    StorageError
        No such report among those this user may see.
    PermissionDeniedError
        It holds an image that this user does not see.
    """
    with database.read() as session:
        row = session.execute(
            sa.select(Report.pdf, Record)
            .join(Record, Record.id == Report.record_id)
            .where(Report.id == report_id, visible_to(user))
        ).first()
    if row is None:
        raise StorageError(f"there is no report {report_id} among yours; choose one in Reports")
    if not may_see_images(settings, user, row[1]):
        raise PermissionDeniedError("an administrator does not see other users' images and reports")
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
    from brainmri.storage import UserRow

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
    if row is None:
        raise ReportError(
            f"not genuine: no report with SHA-256 {digest[:16]}… was issued here. One changed byte is enough; so is a "
            "program that saved the file anew, or a report that was deleted"
        )
    report, record, owner, patient = row
    named = user is None or record.user_id == user.id or user.role in ("radiologist", "admin")
    who = (f"patient {patient.title}" if patient else f"user {owner.name}") if named else "another user"
    return Verified(report, who, hashlib.sha256(canonical_record(record)).hexdigest() == report.canonical_sha256)


def _series_text(database: Database, user: User, place: StudyRecord) -> str:
    """What the kept slices of the record's series say together."""
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
