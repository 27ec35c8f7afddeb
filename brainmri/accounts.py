"""Sign-up, sign-in, roles, lockout. Everything is decided here and kept in the database; pages only ask."""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import os
import re
import secrets
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import bcrypt
import sqlalchemy as sa
from sqlalchemy.orm import Mapped, Session, mapped_column

from brainmri.errors import AccountError, PermissionDeniedError, StorageError
from brainmri.events import note_event
from brainmri.storage import (
    Base,
    Database,
    FailureRow,
    InviteRow,
    Record,
    SessionRow,
    UserRow,
    UtcDateTime,
    lock,
    signature,
    utc_now,
)

ROLES = ("reader", "radiologist", "admin")
MIN_PASSWORD_CHARACTERS = 10
MAX_PASSWORD_BYTES = 72  # bcrypt reads no further
MIN_SURPRISES = 6  # characters of a password that do not follow from those before
BCRYPT_ROUNDS = 12
FREE_ATTEMPTS = 5
FREE_ATTEMPTS_OF_ADDRESS = 50  # of one client address in a day, whatever the user names
FIRST_LOCK = timedelta(seconds=30)
LONGEST_LOCK = timedelta(hours=1)
FORGET_FAILURES = timedelta(days=1)
INVITE_DAYS = 7
ONE_TIME_DAYS = 7
SEEN_INTERVAL = timedelta(minutes=1)
_USERNAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{1,62}[a-z0-9]")
_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]+\.[^@\s.]{2,}")
_CODE_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # 32 signs that are not mistaken for each other
_CONFIRM, _FROM = "CONFIRM ", "FROM "  # of counters beside the user names: none of those has capitals
_COMMON = re.compile(
    "password|passwort|passw0rd|p@ssword|p@ssw0rd|qwerty|azerty|1q2w3e4r5t|1qaz2wsx|zaq12wsx|qazwsx|letmein|welcome|"
    "iloveyou|trustno1|changeme|whatever|default|administrator|admin|login|secret|monkey|dragon|football|baseball|"
    "superman|batman|sunshine|princess|master|shadow|michael|computer|internet|spring|summer|autumn|winter|"
    "hospital|doctor|radiologist|radiology|brain ?mri"
)
_ROWS = ("abcdefghijklmnopqrstuvwxyz", "1234567890", "qwertyuiop", "qwertzuiop", "azertyuiop", "asdfghjkl", "zxcvbnm")
_STEPS = frozenset(pair for row in _ROWS for way in (row, row[::-1]) for pair in pairwise(way))


class OneTimeRow(Base):
    """Until when an account's one-time password is good; gone once its owner has chosen another."""

    __tablename__ = "one_time_passwords"

    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)


@dataclass(frozen=True)
class User:
    """Who is asking.

    Attributes
    ----------
    id : int or None
        None for the guest.
    role : str
        ``guest``, ``reader``, ``radiologist`` or ``admin``.
    must_change_password : bool
        An administrator reset it; nothing else is open until it is changed.
    """

    id: int | None
    username: str
    name: str
    role: str
    email: str | None = None
    must_change_password: bool = False

    @property
    def signature(self) -> str:
        """``Name (username)``: names are chosen freely, the user name is the account."""
        return signature(self.name, self.username)


GUEST = User(None, "guest", "Guest", "guest")


@dataclass(frozen=True)
class UserInfo:
    """A line of the list of users."""

    user: User
    active: bool
    created_at: datetime
    last_sign_in_at: datetime | None
    locked_until: datetime | None
    n_sessions: int
    n_records: int


@dataclass(frozen=True)
class SignIn:
    """One of a user's sign-ins. ``key`` names it without being able to use it."""

    key: str
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime
    client: str


@dataclass(frozen=True)
class Invite:
    """An invitation; its code was shown once and only its hash is kept."""

    id: int
    role: str
    note: str
    created_at: datetime
    expires_at: datetime
    used_by: str | None


# --- passwords and keys ------------------------------------------------------------------------------------------


def check_password_rules(password: str, username: str = "") -> None:
    """Refuse a new password that is too short, too long for bcrypt, or among the first to be guessed.

    As NIST SP 800-63B has it: the user name, common words, repetitions and sequences. No kinds of characters are
    prescribed.

    Raises
    ------
    AccountError
    """
    characters, size = len(password), len(_password_bytes(password))
    if characters < MIN_PASSWORD_CHARACTERS:
        raise AccountError(f"The password has {characters} characters; at least {MIN_PASSWORD_CHARACTERS} are needed.")
    if size > MAX_PASSWORD_BYTES:
        raise AccountError(
            f"The password takes {size} bytes (UTF-8); at most {MAX_PASSWORD_BYTES} can be used. Choose a shorter one."
        )
    if "\0" in password:
        raise AccountError("The password holds a NUL character; leave it out.")
    username, folded = username.casefold(), unicodedata.normalize("NFKC", password).casefold()
    own = {username, username.partition("@")[0]}  # of an e-mail address, what stands before the @
    rest = _COMMON.sub("", folded)
    without = rest
    for name in sorted(own, key=len, reverse=True):
        if len(name) > 2:
            without = "" if folded in name else without.replace(name, "")
    if without != rest and _surprises(without) < MIN_SURPRISES:
        raise AccountError(
            "The password is too easy to guess: it is the user name, or part of it, and little more; choose another."
        )
    if _surprises(rest) < MIN_SURPRISES:
        raise AccountError(
            "The password is too easy to guess: little but common words, repetitions or sequences such as 1234 or "
            "qwerty; choose a few unrelated words."
        )


def _surprises(text: str) -> int:
    """How many characters neither repeat what was there nor follow in the alphabet, the digits or a row of keys."""
    pairs = set(pairwise(f" {text}"))
    return sum(pair not in _STEPS and pair[0] != pair[1] for pair in pairs)


def _password_bytes(password: str) -> bytes:
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")


def _hash(password: str) -> str:
    return bcrypt.hashpw(_password_bytes(password), bcrypt.gensalt(BCRYPT_ROUNDS)).decode()


@functools.cache
def _nobodys_hash(rounds: int) -> str:
    return bcrypt.hashpw(secrets.token_bytes(32), bcrypt.gensalt(rounds)).decode()


def _matches(password: str, password_hash: str | None) -> bool:
    """Compare in the same time whether or not the account exists."""
    given = _password_bytes(password)
    usable = len(given) <= MAX_PASSWORD_BYTES and b"\0" not in given
    same = bcrypt.checkpw(given if usable else b"-", (password_hash or _nobodys_hash(BCRYPT_ROUNDS)).encode())
    return same and usable and password_hash is not None


def cookie_key(path: Path) -> str:
    """The key that signs cookies: made at first start, in a file only its owner can read.

    Raises
    ------
    StorageError
        The file cannot be read or made.
    """
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
            try:
                os.link(temporary, path)  # fails where another process was first; then its key counts
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        key = path.read_text().strip()
    except OSError as error:
        raise StorageError(f"{path}: the cookie key cannot be read or made ({error.strerror})") from error
    if len(key) < 32:
        raise StorageError(f"{path}: the cookie key is shorter than 32 signs; delete the file to have a new one made")
    return key


def one_time_password() -> str:
    """A random password of 80 bits that can be read out over a telephone."""
    return _new_code()


def _new_code() -> str:
    return "-".join("".join(secrets.choice(_CODE_ALPHABET) for _ in range(4)) for _ in range(4))  # 80 bits


def _code_sha256(code: str) -> str:
    return _sha256(re.sub(r"[^A-Z0-9]", "", code.upper()))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# --- signing up --------------------------------------------------------------------------------------------------


def sign_up(
    database: Database,
    policy: Literal["open", "invite", "closed"],
    *,
    username: str,
    name: str,
    password: str,
    email: str | None = None,
    code: str | None = None,
) -> User:
    """Make an account for someone who asks for it. The server gives the role.

    Parameters
    ----------
    policy : {"open", "invite", "closed"}
        ``accounts.signup``. Whatever it says, the set-up code of the console makes the first administrator.
    code : str, optional
        An invitation or the set-up code; it is used up.

    Raises
    ------
    AccountError
        Not allowed, name taken, or a field that will not do.
    """
    code = (code or "").strip()
    if not code and policy == "invite":
        raise AccountError("Signing up needs an invitation code; ask an administrator for one.")
    if not code and policy == "closed":
        raise AccountError("Signing up is closed; ask an administrator for an account.")
    with database.read() as session:
        role = _usable_invite(session, policy, code).role if code else "reader"
    fields = _checked_fields(username, name, email)
    check_password_rules(password, fields["username"])
    password_hash = _hash(password)  # a quarter of a second: before the database is locked
    with database.write() as session:
        lock(session, "administrators")
        invite = _usable_invite(session, policy, code) if code else None  # others may have been faster
        row = _insert_user(session, UserRow(**fields, password_hash=password_hash, role=role))
        if invite:
            invite.used_by, invite.used_at = row.id, utc_now()
            if _is_setup(invite):
                session.execute(sa.delete(InviteRow).where(InviteRow.note == SETUP_NOTE, InviteRow.used_by.is_(None)))
        note_event(session, _user(row), "signed up", row.username, after=role)
        return _user(row)


def add_user(
    database: Database,
    actor: User | None,
    *,
    username: str,
    name: str,
    role: str,
    password: str,
    email: str | None = None,
    one_time: bool = False,
) -> User:
    """Make an account for someone else. ``actor`` None is whoever has the server's command line.

    Parameters
    ----------
    one_time : bool
        The password is a `one_time_password`: it expires, and at the first sign-in it must be changed.

    Raises
    ------
    AccountError, PermissionDeniedError
    """
    _check_role(role)
    fields = _checked_fields(username, name, email)
    if not one_time:
        check_password_rules(password, fields["username"])
    password_hash = _hash(password)
    with database.write() as session:
        _require_admin(session, actor)
        row = UserRow(**fields, password_hash=password_hash, role=role, must_change_password=one_time)
        _insert_user(session, row)
        if one_time:
            session.add(_one_time(row))
        note_event(session, actor, "user added", row.username, after=role)
        return _user(row)


def _insert_user(session: Session, row: UserRow) -> UserRow:
    taken = session.scalar(sa.select(UserRow.id).where(UserRow.username == row.username))
    if taken is not None:
        raise AccountError(f"The user name “{row.username}” is taken; choose another.")
    session.add(row)
    try:
        session.flush()
    except sa.exc.IntegrityError as error:  # PostgreSQL: another process was faster
        raise AccountError(f"The user name “{row.username}” is taken; choose another.") from error
    return row


def _checked_fields(username: str, name: str, email: str | None) -> dict[str, Any]:
    username = username.strip().lower()
    if not _USERNAME.fullmatch(username) or username == GUEST.username:
        raise AccountError(
            f"“{username[:64]}” cannot be a user name; 3 to 64 letters a-z, digits and . _ - @ + are possible, "
            "beginning and ending with a letter or digit."
        )
    return {"username": username, **_checked_profile(name, email)}


def _checked_profile(name: str, email: str | None) -> dict[str, Any]:
    name = " ".join(name.split())
    if not name or len(name) > 200 or any(unicodedata.category(c).startswith("C") for c in name):
        raise AccountError("A name is needed: 1 to 200 printable characters.")
    email = (email or "").strip() or None
    if email and (len(email) > 254 or not _EMAIL.fullmatch(email)):
        raise AccountError(f"“{email[:80]}” is no e-mail address; leave the field empty if you have none.")
    return {"name": name, "email": email}


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise AccountError(f"“{role}” is no role; there are {', '.join(ROLES)}.")


# --- signing in and out ------------------------------------------------------------------------------------------


def sign_in(
    database: Database, username: str, password: str, *, days: float, client: str = "", address: str = ""
) -> tuple[User, str]:
    """Check a password and begin a session.

    Parameters
    ----------
    days : float
        How long the session lasts.
    client : str
        How the browser names itself.
    address : str
        The client's IP address; its failures are limited, whatever the user names. Empty where it is not known.

    Returns
    -------
    User, str
        And the session's id, the secret that the cookie carries.

    Raises
    ------
    AccountError
        Wrong name or password (not told apart), too many failures, or a one-time password that has expired.
    """
    username = username.strip().lower()[:64]
    row = _verify(database, username, password, counter=username, address=address)
    if row is None or not row.active:
        raise AccountError("User name or password is wrong.")
    _refuse_expired(database, row)
    session_id = start_session(database, row.id, days=days, client=client)
    return _user(row), session_id


def _verify(database: Database, username: str, password: str, *, counter: str, address: str = "") -> UserRow | None:
    """The account, or None for a wrong password. An attempt is counted before it is made, so that parallel ones are.

    ``counter`` names what failures are counted under.
    """
    # One a day: of an address that many share, failures never end.
    origin = f"{_FROM}{_client_network(address)} {utc_now():%Y-%m-%d}" if address else None
    with database.write() as session:
        session.execute(sa.delete(FailureRow).where(FailureRow.last_attempt_at < utc_now() - FORGET_FAILURES))
        if origin:
            # No doubling: behind a proxy that does not pass addresses on, this one may be everybody's.
            _count_attempt(session, origin, FREE_ATTEMPTS_OF_ADDRESS, lambda _: FIRST_LOCK)
        _count_attempt(session, counter, FREE_ATTEMPTS, lock_time)
        row = session.scalar(sa.select(UserRow).where(UserRow.username == username))
    if not _matches(password, row.password_hash if row else None):
        return None
    with database.write() as session:
        if origin:  # its failures with other names stay
            lock(session, f"sign-in {origin}")
            session.execute(
                sa.update(FailureRow)
                .where(FailureRow.username == origin)
                .values(attempts=FailureRow.attempts - 1, locked_until=None)
            )
        lock(session, f"sign-in {counter}")
        session.execute(sa.delete(FailureRow).where(FailureRow.username == counter))
    return row


def _count_attempt(session: Session, counter: str, free: int, lock_for: Callable[[int], timedelta]) -> None:
    lock(session, f"sign-in {counter}")
    now = utc_now()
    failures = session.get(FailureRow, counter) or FailureRow(username=counter, attempts=0)
    if failures.locked_until and failures.locked_until > now:
        seconds = int((failures.locked_until - now).total_seconds()) + 1
        raise AccountError(f"Too many failed attempts; try again in {_duration(seconds)}.")
    failures.attempts += 1
    failures.last_attempt_at = now
    failures.locked_until = now + lock_for(failures.attempts) if failures.attempts >= free else None
    session.add(failures)


def _client_network(address: str) -> str:
    """What one client can choose its address from: in IPv6 the whole /64."""
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:
        return address[:45]
    return str(parsed.ipv4_mapped or parsed.exploded[:19])


def _confirmations(user_id: int | None) -> str:
    """Counter of the passwords typed in a user's live sessions, which failures at the sign-in form do not touch."""
    return f"{_CONFIRM}{user_id}"


def _forget_failures(session: Session, row: UserRow) -> None:
    session.execute(sa.delete(FailureRow).where(FailureRow.username.in_([row.username, _confirmations(row.id)])))


def _one_time(row: UserRow) -> OneTimeRow:
    return OneTimeRow(user_id=row.id, expires_at=utc_now() + timedelta(days=ONE_TIME_DAYS))


def _refuse_expired(database: Database, row: UserRow) -> None:
    if not row.must_change_password:
        return
    with database.read() as session:
        given = session.get(OneTimeRow, row.id)
    if given is None or given.expires_at < utc_now():
        raise AccountError(
            f"This one-time password was good for {ONE_TIME_DAYS} days and has expired; "
            "ask an administrator for a new one."
        )


def lock_time(attempts: int) -> timedelta:
    """How long an account stays locked after this many failures: 30 s after the fifth, then doubling to an hour."""
    return min(FIRST_LOCK * 2 ** min(attempts - FREE_ATTEMPTS, 20), LONGEST_LOCK)


def _duration(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{-(-seconds // 60)} min"


def start_session(database: Database, user_id: int, *, days: float, client: str = "") -> str:
    """Begin a session and return its id; the database keeps only the id's hash."""
    session_id = secrets.token_urlsafe(32)
    now = utc_now()
    with database.write() as session:
        session.execute(sa.delete(SessionRow).where(SessionRow.expires_at < now))
        expires_at = now + timedelta(days=days)
        session.add(
            SessionRow(
                id_sha256=_sha256(session_id),
                user_id=user_id,
                created_at=now,
                last_seen_at=now,
                expires_at=expires_at,
                client=client[:200],
            )
        )
        session.execute(sa.update(UserRow).where(UserRow.id == user_id).values(last_sign_in_at=now))
    return session_id


def session_user(database: Database, session_id: str) -> User | None:
    """Whose session this is; None once it has ended, expired, or its account is switched off."""
    now = utc_now()
    with database.read() as session:
        found = session.execute(
            sa.select(UserRow, SessionRow.last_seen_at)
            .join(SessionRow, SessionRow.user_id == UserRow.id)
            .where(SessionRow.id_sha256 == _sha256(session_id), SessionRow.expires_at > now, UserRow.active)
        ).first()
    if found is None:
        return None
    row, last_seen_at = found
    if now - last_seen_at > SEEN_INTERVAL:
        with suppress(StorageError), database.write() as session:  # a page must not fail for this
            session.execute(
                sa.update(SessionRow).where(SessionRow.id_sha256 == _sha256(session_id)).values(last_seen_at=now)
            )
    return _user(row)


def sign_out(database: Database, user: User) -> None:
    """End all of a user's sessions, on every device."""
    _end_sessions(database, user)


def end_other_sessions(database: Database, user: User, session_id: str) -> None:
    """End all of a user's sessions but this one."""
    _end_sessions(database, user, SessionRow.id_sha256 != _sha256(session_id))


def end_session(database: Database, user: User, key: str) -> None:
    """End one of a user's own sessions, by its ``SignIn.key``."""
    _end_sessions(database, user, SessionRow.id_sha256 == key)


def _end_sessions(database: Database, user: User, *conditions: sa.ColumnElement[bool]) -> None:
    with database.write() as session:
        session.execute(sa.delete(SessionRow).where(SessionRow.user_id == user.id, *conditions))


def list_sessions(database: Database, user: User) -> list[SignIn]:
    """A user's sessions, the last used first."""
    query = (
        sa.select(SessionRow)
        .where(SessionRow.user_id == user.id, SessionRow.expires_at > utc_now())
        .order_by(SessionRow.last_seen_at.desc())
    )
    with database.read() as session:
        return [
            SignIn(r.id_sha256, r.created_at, r.last_seen_at, r.expires_at, r.client) for r in session.scalars(query)
        ]


def session_key(session_id: str) -> str:
    """The ``SignIn.key`` of a session id."""
    return _sha256(session_id)


# --- changing accounts -------------------------------------------------------------------------------------------


def confirm_password(database: Database, user: User, password: str) -> None:
    """Make sure that whoever signs is the one who is signed in.

    Raises
    ------
    AccountError
        The password is wrong (limited like sign-ins, by a counter of its own), the account is switched off, or it
        must change its password first.
    """
    row = _verify(database, user.username, password, counter=_confirmations(user.id))
    if row is None:
        raise AccountError("The password is wrong.")
    if not row.active:
        raise AccountError("This account is switched off; an administrator can switch it on again.")
    if row.must_change_password:
        raise AccountError("An administrator gave this password; sign in and change it first.")


def change_password(database: Database, user: User, current: str, new: str, session_id: str | None = None) -> None:
    """Change one's own password; every other session of the user ends.

    Raises
    ------
    AccountError
        The current password is wrong (limited like sign-ins, by a counter of its own) or has expired, or the new
        one will not do.
    """
    check_password_rules(new, user.username)
    row = _verify(database, user.username, current, counter=_confirmations(user.id))
    if row is None:
        raise AccountError("The current password is wrong.")
    _refuse_expired(database, row)
    if current == new:
        raise AccountError("The new password is the current one; choose another.")
    password_hash = _hash(new)
    with database.write() as session:
        session.execute(
            sa.update(UserRow)
            .where(UserRow.id == row.id)
            .values(password_hash=password_hash, must_change_password=False)
        )
        keep = SessionRow.id_sha256 != _sha256(session_id) if session_id else sa.true()
        session.execute(sa.delete(SessionRow).where(SessionRow.user_id == row.id, keep))
        session.execute(sa.delete(OneTimeRow).where(OneTimeRow.user_id == row.id))
        note_event(session, user, "password changed", row.username)


def update_profile(database: Database, user: User, *, name: str, email: str | None) -> User:
    """Change one's own name and e-mail address.

    Raises
    ------
    AccountError
    """
    values = _checked_profile(name, email)
    with database.write() as session:
        row = session.get(UserRow, user.id) if user.id is not None else None
        if row is None:
            raise AccountError("A guest has no account to change.")
        if row.name != values["name"]:
            note_event(session, user, "name changed", row.username, row.name, values["name"])
        if row.email != values["email"]:
            note_event(session, user, "e-mail changed", row.username, row.email or "", values["email"] or "")
        row.name, row.email = values["name"], values["email"]
        return _user(row)


def reset_password(database: Database, actor: User | None, username: str) -> str:
    """Give an account a one-time password, unlock it and end its sessions.

    The password is good for `ONE_TIME_DAYS`; at the next sign-in it must be changed.

    Returns
    -------
    str
        Shown once; only its hash is kept.

    Raises
    ------
    AccountError
        No such user, or the actor: whose session would end before the password is shown.
    PermissionDeniedError
    """
    password = one_time_password()
    password_hash = _hash(password)
    with database.write() as session:
        _require_admin(session, actor)
        row = _find(session, username)
        if actor is not None and row.id == actor.id:
            raise AccountError("This is your own account; change its password under Account.")
        row.password_hash, row.must_change_password = password_hash, True
        session.merge(_one_time(row))
        session.execute(sa.delete(SessionRow).where(SessionRow.user_id == row.id))
        _forget_failures(session, row)
        note_event(session, actor, "password reset", row.username)
    return password


def set_role(database: Database, actor: User | None, username: str, role: str) -> None:
    """Change an account's role; only an administrator may, and never the last one's.

    Raises
    ------
    AccountError, PermissionDeniedError
    """
    _check_role(role)
    with database.write() as session:
        lock(session, "administrators")
        _require_admin(session, actor)
        row = _find(session, username)
        if row.role == "admin" and role != "admin":
            _keep_one_admin(session, row)
        if row.role != role:
            note_event(session, actor, "role changed", row.username, row.role, role)
        row.role = role


def set_active(database: Database, actor: User | None, username: str, active: bool) -> None:
    """Switch an account off, which ends its sessions, or on again.

    Raises
    ------
    AccountError, PermissionDeniedError
    """
    with database.write() as session:
        lock(session, "administrators")
        _require_admin(session, actor)
        row = _find(session, username)
        if not active:
            if row.role == "admin":
                _keep_one_admin(session, row)
            session.execute(sa.delete(SessionRow).where(SessionRow.user_id == row.id))
        if row.active != active:
            note_event(session, actor, "activated" if active else "deactivated", row.username)
        row.active = active


def unlock(database: Database, actor: User | None, username: str) -> None:
    """Forget an account's wrong passwords.

    Raises
    ------
    AccountError, PermissionDeniedError
    """
    with database.write() as session:
        _require_admin(session, actor)
        row = _find(session, username)
        _forget_failures(session, row)
        note_event(session, actor, "unlocked", row.username)


def list_users(database: Database, actor: User | None) -> list[UserInfo]:
    """All accounts by user name, for an administrator.

    Raises
    ------
    PermissionDeniedError
    """
    now = utc_now()
    n_sessions = (
        sa.select(sa.func.count())
        .where(SessionRow.user_id == UserRow.id, SessionRow.expires_at > now)
        .correlate(UserRow)
        .scalar_subquery()
    )
    n_records = sa.select(sa.func.count()).where(Record.user_id == UserRow.id).correlate(UserRow).scalar_subquery()
    counters = [UserRow.username, sa.literal(_CONFIRM) + sa.cast(UserRow.id, sa.String)]
    locked_until = (
        sa.select(sa.func.max(FailureRow.locked_until))
        .where(FailureRow.username.in_(counters))
        .correlate(UserRow)
        .scalar_subquery()
    )
    with database.read() as session:
        _require_admin(session, actor)
        rows = session.execute(sa.select(UserRow, locked_until, n_sessions, n_records).order_by(UserRow.username)).all()
    return [
        UserInfo(
            _user(row),
            row.active,
            row.created_at,
            row.last_sign_in_at,
            locked if locked and locked > now else None,
            sessions,
            records,
        )
        for row, locked, sessions, records in rows
    ]


# --- invitations -------------------------------------------------------------------------------------------------


def create_invite(database: Database, actor: User | None, *, role: str = "reader", note: str = "") -> str:
    """Make a one-time sign-up code that is good for a week.

    Raises
    ------
    AccountError, PermissionDeniedError
    """
    _check_role(role)
    code = _new_code()
    with database.write() as session:
        _require_admin(session, actor)
        session.add(
            InviteRow(
                code_sha256=_code_sha256(code),
                role=role,
                note=note.strip()[:200],
                created_by=actor.id if actor else None,
                expires_at=utc_now() + timedelta(days=INVITE_DAYS),
            )
        )
        note_event(session, actor, "invitation made", note.strip(), after=role)
    return code


def list_invites(database: Database, actor: User | None) -> list[Invite]:
    """Invitations that are open or were used, the newest first.

    Raises
    ------
    PermissionDeniedError
    """
    with database.read() as session:
        _require_admin(session, actor)
        rows = session.execute(
            sa.select(InviteRow, UserRow.username)
            .outerjoin(UserRow, UserRow.id == InviteRow.used_by)
            .where(sa.or_(InviteRow.used_by.is_not(None), InviteRow.expires_at > utc_now()))
            .order_by(InviteRow.id.desc())
        ).all()
    return [Invite(r.id, r.role, r.note, r.created_at, r.expires_at, used_by) for r, used_by in rows]


def revoke_invite(database: Database, actor: User | None, invite_id: int) -> None:
    """Take an unused invitation back.

    Raises
    ------
    PermissionDeniedError
    """
    with database.write() as session:
        _require_admin(session, actor)
        unused = sa.delete(InviteRow).where(InviteRow.id == invite_id, InviteRow.used_by.is_(None))
        if gone := session.execute(unused.returning(InviteRow.note, InviteRow.role)).first():
            note_event(session, actor, "invitation taken back", gone.note, before=gone.role)


SETUP_NOTE = "set-up code printed on the server's console"


def setup_code(database: Database) -> str | None:
    """A new one-time code that makes the first administrator, for the server's console; None once there is one."""
    with database.write() as session:
        if _active_admins(session):
            return None
        session.execute(sa.delete(InviteRow).where(InviteRow.expires_at < utc_now(), InviteRow.used_by.is_(None)))
        code = _new_code()
        session.add(
            InviteRow(
                code_sha256=_code_sha256(code),
                role="admin",
                note=SETUP_NOTE,
                expires_at=utc_now() + timedelta(days=INVITE_DAYS),
            )
        )
    return code


def has_admin(database: Database) -> bool:
    """Whether there is an active administrator."""
    with database.read() as session:
        return bool(_active_admins(session))


def _usable_invite(session: Session, policy: str, code: str) -> InviteRow:
    invite = session.scalar(sa.select(InviteRow).where(InviteRow.code_sha256 == _code_sha256(code)))
    if invite is None or invite.used_by is not None or invite.expires_at < utc_now():
        raise AccountError("This code is not valid: mistyped, used already, or older than a week. Ask for a new one.")
    if _is_setup(invite) and _active_admins(session):
        raise AccountError("There is an administrator already; the set-up code has expired.")
    if policy == "closed" and not _is_setup(invite):
        raise AccountError("Signing up is closed; ask an administrator for an account.")
    return invite


def _is_setup(invite: InviteRow) -> bool:
    return invite.note == SETUP_NOTE and invite.created_by is None


# --- shared ------------------------------------------------------------------------------------------------------


def _user(row: UserRow) -> User:
    return User(row.id, row.username, row.name, row.role, row.email, row.must_change_password)


def _find(session: Session, username: str) -> UserRow:
    row = session.scalar(sa.select(UserRow).where(UserRow.username == username.strip().lower()))
    if row is None:
        raise AccountError(f"There is no user “{username}”; `brainmri user list` shows those there are.")
    return row


def find_user(database: Database, username: str) -> User:
    """An account by its user name.

    Raises
    ------
    AccountError
        There is none.
    """
    with database.read() as session:
        return _user(_find(session, username))


def _require_admin(session: Session, actor: User | None) -> None:
    """Asked of the database, not of the page: a role may have changed a moment ago."""
    if actor is None:
        return
    row = session.get(UserRow, actor.id) if actor.id is not None else None
    if row is None or row.role != "admin" or not row.active:
        raise PermissionDeniedError("Only an administrator can do this.")


def _active_admins(session: Session) -> Sequence[int]:
    return session.scalars(sa.select(UserRow.id).where(UserRow.role == "admin", UserRow.active)).all()


def _keep_one_admin(session: Session, row: UserRow) -> None:
    if not any(other != row.id for other in _active_admins(session)):
        raise AccountError(f"“{row.username}” is the last administrator; make another user one first.")
