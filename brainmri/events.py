"""The log: who changed which account, who took data out. Lines are added and never changed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, Session, mapped_column

from brainmri.storage import Base, Database, UtcDateTime, printable, utc_now

if TYPE_CHECKING:
    from brainmri.accounts import User

COMMAND_LINE = "command line"
"""The actor's name where there is no account: no user name has a space."""

WORDS = (
    "signed up",
    "user added",
    "role changed",
    "activated",
    "deactivated",
    "unlocked",
    "password reset",  # by an administrator, to a one-time password
    "password changed",  # by its owner
    "name changed",
    "e-mail changed",
    "invitation made",
    "invitation taken back",
    "patient exported",
    "report downloaded",
)
"""What a line can say, so that a log can be searched."""


class EventRow(Base):
    """A line of the log. The database itself refuses to change or delete one."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    user_id: Mapped[int | None] = mapped_column(index=True)  # no foreign key: the line outlives the account
    username: Mapped[str] = mapped_column(sa.String(64))
    what: Mapped[str] = mapped_column(sa.String(40))  # one of WORDS
    target: Mapped[str] = mapped_column(sa.String(200))
    before: Mapped[str] = mapped_column(sa.String(200))
    after: Mapped[str] = mapped_column(sa.String(200))


@dataclass(frozen=True)
class EventPage:
    """Lines of one page, newest first, and the number of all that the user may see."""

    events: list[EventRow]
    total: int


def note_event(session: Session, actor: User | None, what: str, target: str, before: str = "", after: str = "") -> None:
    """Add a line in the transaction of what it tells of: both are kept, or neither.

    Parameters
    ----------
    actor : User or None
        None is whoever has the server's command line.
    what : str
        One of `WORDS`.
    target : str
        Whom or what it was done to, such as a user name.
    before, after : str
        What changed. Never a secret.
    """
    if what not in WORDS:
        raise ValueError(f"{what!r} is no word of the log; expected one of {', '.join(WORDS)}, or add it there")
    session.add(
        EventRow(
            user_id=actor.id if actor else None,
            username=actor.username if actor else COMMAND_LINE,
            what=what,
            target=printable(target)[:200],
            before=printable(before)[:200],
            after=printable(after)[:200],
        )
    )


def find_events(database: Database, user: User | None, *, limit: int = 50, offset: int = 0) -> EventPage:
    """Lines of the log, newest first: all for an administrator and the command line (None), else a user's own."""
    visible = []
    if user is not None and user.role != "admin":
        visible = [EventRow.user_id == user.id, EventRow.user_id.is_not(None)]  # a guest's id is None: no lines
    with database.read() as session:
        total = session.scalar(sa.select(sa.func.count()).select_from(EventRow).where(*visible)) or 0
        query = sa.select(EventRow).where(*visible).order_by(EventRow.id.desc()).offset(offset).limit(limit)
        return EventPage(list(session.scalars(query)), total)
