"""Tables and queries (SQLite by default, PostgreSQL by URL), and the image files that belong to the records."""

from __future__ import annotations

import hashlib
import io
import os
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Mapped, Session, mapped_column

from brainmri import __version__
from brainmri.config import Settings
from brainmri.errors import PermissionDeniedError, StorageError
from brainmri.types import Analysis, CropTransform, MRISlice

if TYPE_CHECKING:
    from brainmri.accounts import User

MIGRATIONS = Path(__file__).resolve().parent / "migrations"
MIGRATION_LOCK = 0x627261696E  # "brain": advisory lock of PostgreSQL, held while one process migrates
BUSY_SECONDS = 30
STALE_FILE_SECONDS = 3600
_PNG = b"\x89PNG"
_NO_LIMIT = 10**12


class UtcDateTime(sa.TypeDecorator):
    """Aware datetime, always UTC; SQLite keeps no zone, so it is put back on the way out."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """UTC on the way in."""
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Aware on the way out."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def utc_now() -> datetime:
    """Now, aware."""
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Base of all tables; the schema itself is made by ``migrations/``."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class UserRow(Base):
    """An account."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    username: Mapped[str] = mapped_column(sa.String(64), unique=True)  # lower case
    name: Mapped[str] = mapped_column(sa.String(200))
    email: Mapped[str | None] = mapped_column(sa.String(254))
    password_hash: Mapped[str] = mapped_column(sa.String(100))  # bcrypt
    role: Mapped[str] = mapped_column(sa.String(20))  # reader, radiologist, admin
    active: Mapped[bool] = mapped_column(default=True)
    must_change_password: Mapped[bool] = mapped_column(default=False)  # after an administrator's reset
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    last_sign_in_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class SessionRow(Base):
    """A sign-in; the cookie carries the id, the table only its hash."""

    __tablename__ = "sessions"

    id_sha256: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    last_seen_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    client: Mapped[str] = mapped_column(sa.String(200), default="")  # browser, as it names itself


class FailureRow(Base):
    """Failed sign-ins under one name, whether an account has it or not: being locked out betrays nothing.

    Counted here as well are passwords mistyped in a live session (``CONFIRM <id>``) and addresses (``FROM …``).
    """

    __tablename__ = "sign_in_failures"

    username: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    attempts: Mapped[int] = mapped_column(default=0)
    last_attempt_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    locked_until: Mapped[datetime | None] = mapped_column(UtcDateTime)


class InviteRow(Base):
    """A one-time code that lets someone sign up, with the role they get."""

    __tablename__ = "invites"

    id: Mapped[int] = mapped_column(primary_key=True)
    code_sha256: Mapped[str] = mapped_column(sa.String(64), unique=True)
    role: Mapped[str] = mapped_column(sa.String(20))
    note: Mapped[str] = mapped_column(sa.String(200), default="")
    created_by: Mapped[int | None] = mapped_column(sa.ForeignKey("users.id"))  # None: the server, for the first admin
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    used_by: Mapped[int | None] = mapped_column(sa.ForeignKey("users.id"))
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Record(Base):
    """An answer as it was given. Never changed afterwards: neither this package nor the database allows it."""

    __tablename__ = "records"
    __table_args__ = (
        # Wide enough to filter a user's history without touching the rows themselves.
        sa.Index("ix_records_user", "user_id", "created_at", "id", "name_key", "label", "decision", "model_id"),
        sa.Index("ix_records_all", "created_at", "id", "name_key", "label", "decision", "model_id", "user_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    name: Mapped[str] = mapped_column(sa.String(255))
    name_key: Mapped[str] = mapped_column(sa.String(255))  # see search_key
    image_sha256: Mapped[str] = mapped_column(sa.String(64))  # of the bytes the slice was decoded from
    file_sha256: Mapped[str] = mapped_column(sa.String(64), index=True)  # of the stored file, and its name
    pixels_sha256: Mapped[str] = mapped_column(sa.String(64))  # of the decoded grey values that were answered
    label: Mapped[str | None] = mapped_column(sa.String(40))  # None unless decision is "class"
    decision: Mapped[str] = mapped_column(sa.String(20))
    prediction_set: Mapped[list[str]] = mapped_column(sa.JSON)
    probabilities: Mapped[dict[str, float]] = mapped_column(sa.JSON)
    logits: Mapped[list[float]] = mapped_column(sa.JSON)
    ood_score: Mapped[float] = mapped_column(sa.Double)
    ood_threshold: Mapped[float] = mapped_column(sa.Double)
    model_id: Mapped[str] = mapped_column(sa.String(100))
    weights_sha256: Mapped[str] = mapped_column(sa.String(64))
    engine: Mapped[str] = mapped_column(sa.String(40))
    precision: Mapped[str] = mapped_column(sa.String(40))
    preprocessing: Mapped[str] = mapped_column(sa.String(100))
    software_version: Mapped[str] = mapped_column(sa.String(40))
    elapsed_ms: Mapped[float] = mapped_column(sa.Double)
    transform: Mapped[dict[str, int]] = mapped_column(sa.JSON)  # fields of CropTransform
    height: Mapped[int]
    width: Mapped[int]
    source_format: Mapped[str] = mapped_column(sa.String(40))
    spacing_mm: Mapped[list[float] | None] = mapped_column(sa.JSON(none_as_null=True))
    orientation: Mapped[list[str] | None] = mapped_column(sa.JSON(none_as_null=True))
    sop_instance_uid: Mapped[str | None] = mapped_column(sa.String(64))
    frame: Mapped[int | None]
    notes: Mapped[list[str]] = mapped_column(sa.JSON)

    def crop_transform(self) -> CropTransform:
        """Where the network's input lay in the image."""
        return CropTransform(**self.transform)


@sa.event.listens_for(Record, "before_update")
def _refuse_update(_mapper: Any, _connection: Any, record: Record) -> None:
    raise StorageError(f"record {record.id} is an answer as it was given and cannot be changed; save a new one")


class DeletionRow(Base):
    """What is left of something deleted: that it was, when and by whom. Never what it held."""

    __tablename__ = "deletions"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    user_id: Mapped[int | None]  # no foreign key: the line outlives the account
    username: Mapped[str] = mapped_column(sa.String(64))
    what: Mapped[str] = mapped_column(sa.String(200))  # "case 12: 1 signed report, 2 verdicts"


class DeletedReportRow(Base):
    """What is left of a signed report that was deleted, so that copies of its PDF are still told from forgeries."""

    __tablename__ = "deleted_reports"

    pdf_sha256: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    record_id: Mapped[int]
    author: Mapped[str] = mapped_column(sa.String(200))
    username: Mapped[str] = mapped_column(sa.String(64))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    deleted_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class Database:
    """A database brought up to the newest schema. Safe to share between threads.

    Parameters
    ----------
    url : str
        SQLAlchemy URL, ``sqlite:///file`` or ``postgresql+psycopg://user:password@host/name``.

    Raises
    ------
    StorageError
        It cannot be opened or brought up to date.
    """

    def __init__(self, url: str):
        try:
            parsed = sa.make_url(url)
            if parsed.get_backend_name() != "sqlite" and "@" in f"{parsed.host}{parsed.database}":
                raise ValueError("an @ in the password")
        except (sa.exc.SQLAlchemyError, ValueError):  # their texts may quote a part of the password
            raise StorageError(
                "the URL of the database cannot be read; expected sqlite:///file or "
                "postgresql+psycopg://user:password@host:5432/name, an @ in the password as %40; check database.url"
            ) from None
        try:
            if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
                Path(parsed.database).touch(mode=0o600)  # it will hold names; the driver's default is everyone's
            self.engine = _make_engine(parsed)
            self._writer = self.engine.execution_options(brainmri_writes=True)
            _upgrade(self._writer)
        except (sa.exc.SQLAlchemyError, ImportError, OSError, ValueError) as error:
            shown = parsed.set(query={}).render_as_string()  # the query may hold a password, too
            missing = isinstance(error, ImportError) and parsed.get_backend_name() == "postgresql"
            todo = "install the driver: .venv/bin/pip install -e '.[postgres]'" if missing else "check database.url"
            raise StorageError(f"database {shown} cannot be used: {_one_line(error)}; {todo}") from error

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for queries."""
        with _translated(), Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session in one transaction: commits at the end, rolls back on any error.

        On SQLite it holds the write lock from the start, so what it reads stays true until it commits.
        """
        with _translated(), Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()


def lock(session: Session, name: str) -> None:
    """Until the transaction ends, keep out others who lock the same name.

    PostgreSQL lets writers work side by side; SQLite has one at a time anyway.
    """
    if session.get_bind().dialect.name == "postgresql":
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
        session.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        raise StorageError(f"the database refused: {_one_line(error)}; nothing was changed") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(getattr(error, "orig", None) or error).split())


def _make_engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True)
    memory = url.database in (None, "", ":memory:")
    engine = sa.create_engine(
        url,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        **({"poolclass": sa.StaticPool} if memory else {}),
    )

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # The driver must not begin transactions behind SQLAlchemy's back: DDL would escape them.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA secure_delete=ON")  # what is deleted is overwritten, not just unlinked
        for attempt in range(100):  # switching to WAL does not wait for other processes by itself
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                break
            except Exception:
                if attempt == 99:
                    raise
                time.sleep(0.05)

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("brainmri_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _upgrade(engine: sa.Engine) -> None:
    """Bring the schema to head. A second process waits for the first, then finds nothing to do."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:  # its schema is none of migrations/
            shown = engine.url.set(query={}).render_as_string()
            raise StorageError(
                f"database {shown}: made by a newer version than this one, {__version__} ({_one_line(error)}); "
                "install that version, or put back the backup from before it"
            ) from error


# --- records -----------------------------------------------------------------------------------------------------


def save_record(
    database: Database,
    settings: Settings,
    user: User,
    analysis: Analysis,
    content: bytes | None,
    *,
    preprocessing: str | None = None,
) -> Record:
    """Keep an answer together with its image: both, or neither.

    Parameters
    ----------
    user : User
        Whose case it becomes; a guest stores nothing.
    content : bytes or None
        The image file as it came (de-identified where it is DICOM). None stores the slice's grey values as PNG.
    preprocessing : str, optional
        Name of the preprocessing behind the answer; default: this version's.

    Raises
    ------
    PermissionDeniedError
        The user is a guest.
    StorageError
        Disk full, folder read-only, database out of reach; nothing was kept.
    """
    if user.id is None:
        raise PermissionDeniedError("a guest stores nothing; sign in to keep cases")
    mri_slice = analysis.slice
    content = mri_slice.content or content  # what the DICOM reader says may be kept, never the upload itself
    if content is None:
        content = _as_png(mri_slice)
    name = printable(mri_slice.name).strip()[:255] or "unnamed"
    if preprocessing is None:
        from brainmri import imaging

        preprocessing = imaging.PREPROCESSING
    record = Record(
        user_id=user.id,
        created_at=utc_now(),
        name=name,
        name_key=search_key(name)[:255],
        image_sha256=mri_slice.sha256,
        file_sha256=hashlib.sha256(content).hexdigest(),
        pixels_sha256=_pixels_sha256(mri_slice),
        label=analysis.label,
        decision=analysis.decision,
        prediction_set=list(analysis.prediction_set),
        probabilities={k: float(v) for k, v in analysis.probabilities.items()},
        logits=[float(v) for v in analysis.logits],
        ood_score=float(analysis.ood_score),
        ood_threshold=float(analysis.ood_threshold),
        model_id=analysis.model_id,
        weights_sha256=analysis.weights_sha256,
        engine=analysis.engine,
        precision=analysis.precision,
        preprocessing=preprocessing,
        software_version=__version__,
        elapsed_ms=float(analysis.elapsed_ms),
        transform={key: int(value) for key, value in vars(analysis.transform).items()},
        height=int(mri_slice.pixels.shape[0]),
        width=int(mri_slice.pixels.shape[1]),
        source_format=mri_slice.source_format,
        spacing_mm=list(map(float, mri_slice.spacing_mm)) if mri_slice.spacing_mm else None,
        orientation=list(mri_slice.orientation) if mri_slice.orientation else None,
        sop_instance_uid=mri_slice.sop_instance_uid,
        frame=mri_slice.frame,
        notes=list(mri_slice.notes),
    )
    folder = settings.uploads.directory
    with _stored_file(database, folder, record.file_sha256, content) as publish, database.write() as session:
        _lock_file(session, record.file_sha256)
        session.add(record)
        session.flush()
        publish()  # inside the transaction: no commit without the file, no file without the commit
    return record


def find_records(
    database: Database,
    user: User,
    *,
    text: str = "",
    labels: Sequence[str] = (),
    decisions: Sequence[str] = (),
    model_ids: Sequence[str] = (),
    since: datetime | None = None,
    until: datetime | None = None,
    owner_id: int | None = None,
    offset: int = 0,
    limit: int = 25,
) -> RecordPage:
    """One page of the records that a user may see, newest first.

    Parameters
    ----------
    text : str
        Part of the name, in any case and alphabet.
    labels, decisions, model_ids : sequence of str
        Any of these; empty means all.
    since, until : datetime, optional
        Aware; ``since`` inclusive, ``until`` exclusive.
    owner_id : int, optional
        Only this user's, among those visible.

    Returns
    -------
    RecordPage
        The page and how many records match altogether.
    """
    conditions = [visible_to(user)]
    if text.strip():
        conditions.append(contains_text(Record.name_key, text.strip()))
    for column, values in ((Record.label, labels), (Record.decision, decisions), (Record.model_id, model_ids)):
        if values:
            conditions.append(column.in_(values))
    if since:
        conditions.append(Record.created_at >= since)
    if until:
        conditions.append(Record.created_at < until)
    if owner_id is not None:
        conditions.append(Record.user_id == owner_id)
    with database.read() as session:
        total = session.scalar(sa.select(sa.func.count()).select_from(Record).where(*conditions)) or 0
        # Ids from the index alone first; the wide rows are read for this page only.
        ids = (
            sa.select(Record.id)
            .where(*conditions)
            .order_by(Record.created_at.desc(), Record.id.desc())
            .offset(offset)
            .limit(limit)
        )
        chosen = list(session.scalars(ids))
        found = {r.id: r for r in session.scalars(sa.select(Record).where(Record.id.in_(chosen)))} if chosen else {}
    return RecordPage([found[i] for i in chosen if i in found], total)


@dataclass(frozen=True)
class RecordPage:
    """Records of one page, newest first, and the number of all that match."""

    records: list[Record]
    total: int


def used_model_ids(database: Database, user: User) -> list[str]:
    """Models that answered any record this user may see, sorted."""
    with database.read() as session:
        return sorted(session.scalars(sa.select(Record.model_id).where(visible_to(user)).distinct()))


def open_record(database: Database, user: User, record_id: int) -> Record:
    """One record.

    Raises
    ------
    StorageError
        There is none with this number, or this user may not see it (the two are not told apart).
    """
    with database.read() as session:
        record = session.scalar(sa.select(Record).where(Record.id == record_id, visible_to(user)))
    if record is None:
        raise StorageError(f"there is no case {record_id} among yours; choose one in History")
    return record


def owners(database: Database, user: User) -> dict[int, str]:
    """User names by id of everyone who has a record that this user may see, sorted by name."""
    owns = sa.exists().where(Record.user_id == UserRow.id, visible_to(user))
    with database.read() as session:
        query = sa.select(UserRow.id, UserRow.username).where(owns).order_by(UserRow.username)
        return dict(session.execute(query).tuples().all())


@dataclass(frozen=True)
class Attached:
    """What hangs on records and is deleted with them."""

    signed: int
    drafts: int
    verdicts: int
    readings: int

    @property
    def text(self) -> str:
        """Such as ``1 signed report, 2 verdicts``; empty where there is nothing."""
        named = {"signed report": self.signed, "draft report": self.drafts}
        named |= {"verdict": self.verdicts, "reading": self.readings}
        return ", ".join(f"{n} {name}{'s' if n > 1 else ''}" for name, n in named.items() if n)


def attached_to(session: Session, record_ids: Sequence[int] | sa.Select) -> Attached:
    """Count what hangs on some records, whoever wrote it."""

    def count(table: str, *conditions: sa.ColumnElement[bool]) -> int:
        # By name: the modules that hold these tables stand above this one.
        rows = sa.table(table, sa.column("record_id"))
        query = sa.select(sa.func.count()).select_from(rows).where(rows.c.record_id.in_(record_ids), *conditions)
        return session.scalar(query) or 0

    status: sa.ColumnClause[str] = sa.column("status")
    return Attached(
        count("reports", status == "final"), count("reports", status != "final"), count("verdicts"), count("readings")
    )


def may_delete_signed(user: User) -> bool:
    """Whether a user may delete records with signed reports: those are others' to rely on."""
    return user.role == "admin"


def delete_record(database: Database, settings: Settings, user: User, record_id: int) -> None:
    """Delete a record with what hangs on it, and its file where no other record uses it.

    Raises
    ------
    PermissionDeniedError
        A signed report is on it, and the user is no administrator.
    StorageError
        No such record among those the user may see, or the file cannot be removed. Nothing was deleted in any case.
    """
    with deleting(database, settings) as (session, remove):
        # Locked first: what is counted below stays true, for whoever signs or deletes it now waits.
        query = sa.select(Record).where(Record.id == record_id, visible_to(user)).with_for_update()
        record = session.scalar(query)
        if record is None or not may_delete(user, record):
            raise StorageError(f"there is no case {record_id} among yours; nothing was deleted")
        attached = attached_to(session, [record_id])
        if attached.signed and not may_delete_signed(user):
            raise PermissionDeniedError(
                f"case {record_id} has {attached.text}; only an administrator deletes a case with a signed report"
            )
        what = f"case {record_id}" + (f": {attached.text}" if attached.text else "")
        session.add(DeletionRow(user_id=user.id, username=user.username, what=what))
        remove([record])


@contextmanager
def deleting(database: Database, settings: Settings) -> Iterator[tuple[Session, Callable[[Sequence[Record]], None]]]:
    """Begin a transaction and yield its session with what deletes records and their files in it: all, or none.

    Files are set aside first; they come back on any error and are gone after the commit.
    """
    moved: list[tuple[Path, Path]] = []

    def remove(records: Sequence[Record]) -> None:
        _remember_signed(session, [record.id for record in records])
        for record in sorted(records, key=lambda r: r.file_sha256):  # in one order: two deletions never wait in a ring
            _lock_file(session, record.file_sha256)
            session.delete(record)
            session.flush()
            if not _is_needed(session, record.file_sha256):
                path = settings.uploads.directory / record.file_sha256
                trash = path.with_name(f"{path.name}.{uuid4().hex}.deleted")
                if path.exists():
                    os.replace(path, trash)
                    moved.append((path, trash))

    try:
        with database.write() as session:
            yield session, remove
    except BaseException as error:
        for path, trash in moved:
            with suppress(OSError):
                os.replace(trash, path)
        if isinstance(error, OSError):
            raise StorageError(f"the images were not deleted: {error.strerror}; correct uploads.directory") from error
        raise
    for _, trash in moved:
        with suppress(OSError):
            trash.unlink()
    if database.engine.dialect.name == "sqlite":  # or its journal would hold what was deleted; waits for readers
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def _remember_signed(session: Session, record_ids: Sequence[int]) -> None:
    kept = ("pdf_sha256", "record_id", "author", "username", "created_at")
    reports = sa.table("reports", sa.column("status"), *(sa.column(name) for name in kept))
    session.execute(
        sa.insert(DeletedReportRow).from_select(
            [*kept, "deleted_at"],
            sa.select(*(reports.c[name] for name in kept), sa.literal(utc_now(), UtcDateTime())).where(
                reports.c.record_id.in_(record_ids), reports.c.status == "final"
            ),
        )
    )


def read_file(settings: Settings, record: Record) -> bytes:
    """The record's image file as it was stored.

    Raises
    ------
    StorageError
        Missing or changed on disk.
    """
    path = settings.uploads.directory / record.file_sha256
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(f"case {record.id}: its image file cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != record.file_sha256:
        raise StorageError(f"case {record.id}: its image file was changed on disk; restore it from a backup")
    return content


def load_slice(settings: Settings, record: Record) -> MRISlice:
    """The slice a record answers, decoded again from its file, with the record's spacing, orientation and notes.

    Raises
    ------
    StorageError
        The file is missing or changed.
    """
    from brainmri import dicom, imaging

    content = read_file(settings, record)
    # What was accepted once stays readable, whatever the limits for uploads are now.
    if record.source_format == "DICOM" and not content.startswith(_PNG):
        unlimited = settings.model_copy(
            update={
                "uploads": settings.uploads.model_copy(update={"max_pixels": _NO_LIMIT}),
                "dicom": settings.dicom.model_copy(update={"max_slices": _NO_LIMIT, "max_archive_mb": _NO_LIMIT}),
            }
        )
        slices = dicom.read_slices(content, record.name, unlimited, insist=True)
        decoded = next((s for s in slices if s.frame == record.frame), slices[0])
    else:
        decoded = imaging.decode_image(
            content, record.name, max_pixels=record.height * record.width, max_size_bytes=len(content)
        )
    notes = tuple(record.notes)
    if changed := changed_note(record, decoded):
        notes += (changed,)
    return replace(
        decoded,
        name=record.name,
        sha256=record.image_sha256,
        source_format=record.source_format,
        spacing_mm=(record.spacing_mm[0], record.spacing_mm[1]) if record.spacing_mm else None,
        orientation=tuple(record.orientation) if record.orientation else None,  # type: ignore[arg-type]
        sop_instance_uid=record.sop_instance_uid,
        frame=record.frame,
        notes=notes,
    )


def changed_note(record: Record, mri_slice: MRISlice) -> str:
    """What to say where a slice is decoded otherwise today than when it was answered; nothing where it is not."""
    if _pixels_sha256(mri_slice) == record.pixels_sha256:
        return ""
    return "The image decodes differently today from when it was answered; the answer shown is the old one."


def visible_to(user: User) -> sa.ColumnElement[bool]:
    """Which records a user may see: own ones, a radiologist and an administrator all, a guest none."""
    if user.id is None:
        return sa.false()
    return sa.true() if sees_all(user) else Record.user_id == user.id


def sees_all(user: User) -> bool:
    """Whether a user sees everybody's records."""
    return user.role in ("admin", "radiologist")


def may_see_images(settings: Settings, user: User, record: Record) -> bool:
    """Whether a user who sees a record sees its image too: an administrator only own ones, unless configured."""
    if user.id is None:
        return False
    return record.user_id == user.id or user.role != "admin" or settings.accounts.admin_sees_images


def may_delete(user: User, record: Record) -> bool:
    """Own records, and an administrator any."""
    return user.id is not None and (record.user_id == user.id or user.role == "admin")


def signature(name: str, username: str) -> str:
    """Who said something, in words: names are chosen freely and change, the user name is the account."""
    return f"{name} ({username})" if name and username and name != username else username or name


def plain_cell(value: object) -> object:
    """A cell for a CSV file: text that a spreadsheet would run as a formula gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def printable(text: str) -> str:
    """Text from elsewhere fit for a screen and any database: no control characters, no broken Unicode."""
    return "".join(c if c.isprintable() else " " for c in text)


def search_key(text: str) -> str:
    """Text as it is searched for: in any case, and however its accents are written (macOS writes file names apart)."""
    return unicodedata.normalize("NFKC", text).casefold()


def contains_text(column: InstrumentedAttribute[str], text: str) -> sa.ColumnElement[bool]:
    """Whether a column of search keys holds a text; older rows hold theirs as it was typed, in lower case alone."""
    forms = {search_key(text), *(unicodedata.normalize(form, text).casefold() for form in ("NFC", "NFD"))}
    return sa.or_(*(column.contains(form, autoescape=True) for form in sorted(forms)))


def _pixels_sha256(mri_slice: MRISlice) -> str:
    height, width = mri_slice.pixels.shape
    return hashlib.sha256(f"{height}x{width}:".encode() + mri_slice.pixels.tobytes()).hexdigest()


def _as_png(mri_slice: MRISlice) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(mri_slice.pixels).save(buffer, "PNG")
    return buffer.getvalue()


# --- image files -------------------------------------------------------------------------------------------------


def _lock_file(session: Session, sha256: str) -> None:
    """Keep out others who save or delete this file. One lock for many: PostgreSQL holds few in a transaction."""
    lock(session, f"file {sha256[:2]}")


def _is_needed(session: Session, sha256: str) -> bool:
    return bool(session.scalar(sa.select(sa.exists().where(Record.file_sha256 == sha256))))


@contextmanager
def _stored_file(database: Database, folder: Path, sha256: str, content: bytes) -> Iterator[Any]:
    """Write beside the final name and yield what renames it there; on any error nothing new stays behind."""
    final = folder / sha256
    temporary = folder / f"{sha256}.{uuid4().hex}.tmp"
    mark = temporary.with_suffix(".new")  # where this process is killed before the commit: final may be nobody's
    created = False

    def publish() -> None:
        nonlocal created
        if _is_whole(final):
            return
        mark.touch(mode=0o600)
        os.replace(temporary, final)
        created = True
        with suppress(OSError):
            sync_folder(folder)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_private(temporary, content)
        yield publish
    except BaseException as error:
        if created:
            # The lock is free again, so another record may name the file by now. Out of reach: the file stays.
            with suppress(OSError, StorageError), database.write() as session:
                _lock_file(session, sha256)
                if not _is_needed(session, sha256):
                    final.unlink()
        if isinstance(error, OSError):
            raise StorageError(
                f"the case was not kept: {folder} cannot be written ({error.strerror or error}); "
                "free some space or correct uploads.directory"
            ) from error
        raise
    finally:
        for path in (temporary, mark):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    """Whether a stored file is there and what its name says; one damaged on disk is written anew."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    except OSError:
        return False


def write_private(path: Path, content: bytes) -> None:
    """A new file, on disk and for the owner alone; OSError where it exists or cannot be written."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make new names and renames in a folder survive a power cut (POSIX); OSError where that cannot be done."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_uploads(database: Database, settings: Settings) -> int:
    """Remove what a killed process left half done more than an hour ago; returns how many files.

    Only names this module makes itself; a file set aside for deletion comes back where a record still needs it. An
    image goes only with a mark that it was being saved: this may be another database than the one that needs it.
    """
    folder = settings.uploads.directory
    limit = time.time() - STALE_FILE_SECONDS
    swept = 0
    for path in [path for kind in ("tmp", "deleted", "new") for path in folder.glob(f"*.{kind}")]:
        with suppress(OSError):
            if path.stat().st_mtime > limit:
                continue
            final = folder / path.name.split(".")[0]
            with database.write() as session:
                _lock_file(session, final.name)
                if path.suffix == ".deleted" and _is_needed(session, final.name) and not final.exists():
                    os.replace(path, final)
                else:
                    if path.suffix == ".new" and not _is_needed(session, final.name):
                        final.unlink(missing_ok=True)
                    path.unlink()
            swept += 1
    return swept
