"""Reading mode: what a reader says about the class before the answer is shown, and about the map after; with times.

Rows are only ever added. Together with the answer they are what a reader study needs: who read which case, how long it
took, whether the answer was hidden, and whether the map was found to fit.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from brainmri.errors import PermissionDeniedError, StorageError
from brainmri.storage import Base, Database, Record, UserRow, UtcDateTime, plain_cell, utc_now, visible_to
from brainmri.types import CLASS_TITLES

if TYPE_CHECKING:
    from brainmri.accounts import User

CLASS_VERDICTS = {**CLASS_TITLES, "unsure": "Cannot tell"}
MAP_VERDICTS = {"fits": "Fits", "does-not-fit": "Does not fit", "unsure": "Unsure"}
VERDICTS = {"class": CLASS_VERDICTS, "map": MAP_VERDICTS}
NOTE_LENGTH = 10_000


class Reading(Base):
    """One verdict of one reader on a class (``kind`` class) or on the maps shown (``kind`` map)."""

    __tablename__ = "readings"

    id: Mapped[int] = mapped_column(primary_key=True)
    record_id: Mapped[int] = mapped_column(sa.ForeignKey("records.id", ondelete="CASCADE"), index=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"))
    kind: Mapped[str] = mapped_column(sa.String(10))
    verdict: Mapped[str] = mapped_column(sa.String(40))
    note: Mapped[str] = mapped_column(sa.Text, default="")
    blind: Mapped[bool]  # given before the model's answer was shown
    maps: Mapped[list[str]] = mapped_column(sa.JSON, default=list)  # "method for class at layer", as shown
    shown_at: Mapped[datetime] = mapped_column(UtcDateTime)  # when the reader first saw what the verdict is about
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


def add_reading(
    database: Database,
    user: User,
    record_id: int,
    kind: str,
    verdict: str,
    *,
    shown_at: datetime,
    blind: bool = False,
    note: str = "",
    maps: Sequence[str] = (),
) -> Reading:
    """Keep a verdict. Earlier ones stay.

    Raises
    ------
    PermissionDeniedError
        A guest.
    StorageError
        Unknown kind or verdict, or no such case among those the user sees.
    """
    if user.id is None:
        raise PermissionDeniedError("a guest stores nothing; sign in to keep verdicts")
    if kind not in VERDICTS or verdict not in VERDICTS[kind]:
        known = "; ".join(f"{name}: {', '.join(values)}" for name, values in VERDICTS.items())
        raise StorageError(f"{verdict!r} is no verdict on a {kind}; expected {known}")
    row = Reading(
        record_id=record_id,
        user_id=user.id,
        kind=kind,
        verdict=verdict,
        note=note.strip()[:NOTE_LENGTH],
        blind=blind,
        maps=list(maps),
        shown_at=shown_at,
        created_at=max(utc_now(), shown_at),
    )
    with database.write() as session:
        if not session.scalar(sa.select(sa.exists().where(Record.id == record_id, visible_to(user)))):
            raise StorageError(f"there is no case {record_id} among yours; choose one in History")
        session.add(row)
    return row


def readings_of(
    database: Database, user: User, record_id: int | None = None, *, own: bool = False
) -> list[tuple[Reading, Record, str]]:
    """Verdicts (``own``: this user's) on the cases a user may see, oldest first, with case and reader's user name."""
    query = (
        sa.select(Reading, Record, UserRow.username)
        .join(Record, Record.id == Reading.record_id)
        .join(UserRow, UserRow.id == Reading.user_id)
        .where(visible_to(user))
        .order_by(Reading.id)
    )
    if record_id is not None:
        query = query.where(Record.id == record_id)
    if own:
        query = query.where(Reading.user_id == user.id)
    with database.read() as session:
        return [(reading, record, who) for reading, record, who in session.execute(query)]


COLUMNS = (
    "reading_id", "case_id", "image_sha256", "name", "reader", "kind", "verdict", "note", "blind", "maps", "shown_at",
    "given_at", "seconds", "model_id", "weights_sha256", "model_decision", "model_label", "p_glioma", "p_meningioma",
    "p_notumor", "p_pituitary",
)  # fmt: skip
"""Of the CSV; times are UTC, ISO 8601."""


def export_readings(database: Database, user: User) -> str:
    """A reader's own verdicts as CSV, one line each with what the model had said."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for reading, record, who in readings_of(database, user, own=True):
        writer.writerow(
            [
                reading.id, record.id, record.image_sha256, plain_cell(record.name), plain_cell(who), reading.kind,
                reading.verdict, plain_cell(reading.note), int(reading.blind), "; ".join(reading.maps),
                reading.shown_at.isoformat(), reading.created_at.isoformat(),
                f"{(reading.created_at - reading.shown_at).total_seconds():.1f}", record.model_id,
                record.weights_sha256, record.decision, record.label or "",
                *(f"{record.probabilities.get(name, float('nan')):.6f}" for name in CLASS_TITLES),
            ]
        )  # fmt: skip
    return buffer.getvalue()
