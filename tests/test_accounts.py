"""Accounts: passwords, sign-up policies, roles, lockout, sessions, the cookie key and `brainmri user`."""

from __future__ import annotations

import json
import statistics
import threading
import time
from contextlib import suppress
from datetime import timedelta

import alembic.command
import bcrypt
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from brainmri import accounts
from brainmri.accounts import GUEST
from brainmri.cli import app
from brainmri.errors import AccountError, PermissionDeniedError, StorageError
from brainmri.storage import Database, FailureRow, InviteRow, SessionRow, UserRow

PASSWORD = "correct horse battery"
LONGEST = "Seven unrelated words of which the eighth is cut: pear kiosk vole thumb!"  # 72 bytes


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path, monkeypatch):
    monkeypatch.setattr(accounts, "BCRYPT_ROUNDS", 4)
    url = f"sqlite:///{tmp_path}/t.db" if request.param == "sqlite" else request.getfixturevalue("postgresql_url")
    opened = Database(url)
    yield opened
    opened.close()


@pytest.fixture
def clock(monkeypatch):
    """Time that only `clock(timedelta)` moves."""
    now = [accounts.utc_now()]
    monkeypatch.setattr(accounts, "utc_now", lambda: now[0])

    def advance(delta):
        now[0] += delta

    return advance


def add(database, username, role="reader"):
    return accounts.add_user(database, None, username=username, name=username, role=role, password=PASSWORD)


def sign_up(database, policy="open", username="ada", password=PASSWORD, **fields):
    return accounts.sign_up(
        database, policy, **{"username": username, "name": "Ada Lovelace", "password": password, **fields}
    )


def sign_in(database, username="ada", password=PASSWORD):
    return accounts.sign_in(database, username, password, days=1)


# --- passwords ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("password", "says"),
    [
        ("short", "5 characters; at least 10"),
        ("", "0 characters"),
        ("ninechars", "9 characters"),
        ("é" * 37, "74 bytes"),
        ("abcdefg" * 11, "77 bytes"),
        ("with\0a nul byte", "NUL"),
        ("aaaaaaaaaaaa", "repetitions"),
        ("abcabcabca", "repetitions"),
        ("密码密码密码密码密码一二", "repetitions"),
        ("1234567890", "sequences"),
        ("qwertyuiop", "sequences"),
        ("9876abcdef", "sequences"),
        ("password12", "common words"),
        ("Passw0rd2024!", "common words"),
        ("radiologist1", "common words"),
        ("Brain MRI 2026", "common words"),
        ("ada.lovelace", "it is the user name, or part of it"),
        ("ADA.Lovelace99", "it is the user name, or part of it"),
    ],
)
def test_passwords_that_will_not_do(database, password, says):
    with pytest.raises(AccountError, match=says):
        sign_up(database, username="ada.lovelace", password=password)
    assert accounts.list_users(database, None) == []


@pytest.mark.parametrize(
    "password",
    [
        "ten chars!",
        "äöüéñçøåëïêbc",
        LONGEST,
        "  spaces around  ",
        "八个不同的汉字做成密码",
        "my password is a fox on ice",  # a common word among others
        "ada likes quiet rivers",  # the user name among others
    ],
)
def test_passwords_that_do(database, password):
    sign_up(database, password=password)
    assert sign_in(database, password=password)[0].username == "ada"
    with pytest.raises(AccountError):
        sign_in(database, password=password.strip() + "!")


@pytest.mark.parametrize(
    ("username", "password"),
    [
        ("anna.mueller@example.org", "Anna.Mueller99"),  # its part before the @
        ("anna.mueller@example.org", "mueller@example"),  # a part of it
        ("xerxes", "XERXES1234"),
    ],
)
def test_a_password_around_the_user_name_is_refused_at_a_change_too(database, username, password):
    user = add(database, username)
    with pytest.raises(AccountError, match="it is the user name, or part of it, and little more"):
        accounts.change_password(database, user, PASSWORD, password)


def test_what_the_program_makes_is_not_held_to_the_rules(database):
    user = accounts.add_user(
        database, None, username="abc", name="A", role="reader", password="ABCD-EFGH-ABCD-EFGH", one_time=True
    )
    assert user.must_change_password


def test_only_a_bcrypt_hash_is_kept(database):
    sign_up(database)
    with database.read() as session:
        kept = session.scalar(sa.select(UserRow.password_hash))
    assert PASSWORD not in kept
    assert bcrypt.checkpw(PASSWORD.encode(), kept.encode())


def test_a_password_reads_the_same_however_its_letters_are_composed(database):
    sign_up(database, password="zwölf Boxkämpfer")
    assert sign_in(database, password="zwo\u0308lf Boxka\u0308mpfer")


def test_no_sign_in_with_a_longer_password_than_bcrypt_reads(database):
    sign_up(database, password=LONGEST)
    with pytest.raises(AccountError, match="wrong"):
        sign_in(database, password=LONGEST + "y")


# --- signing up --------------------------------------------------------------------------------------------------


def test_who_signs_up_is_a_reader(database):
    user = sign_up(database, email="ada@example.org")
    assert (user.role, user.email, user.name) == ("reader", "ada@example.org", "Ada Lovelace")


@pytest.mark.parametrize(
    "fields",
    [
        {"username": "a"},
        {"username": "a b c"},
        {"username": "guest"},
        {"username": "-ada"},
        {"username": "x" * 65},
        {"username": "ädä"},
        {"name": "  "},
        {"name": "a\nb\x1b"},
        {"email": "nobody"},
        {"email": "a@b"},
        {"email": f"{'x' * 300}@example.org"},
    ],
)
def test_fields_that_will_not_do(database, fields):
    with pytest.raises(AccountError):
        sign_up(database, **fields)


def test_a_name_is_given_once_whatever_its_case(database):
    sign_up(database, username="Ada")
    with pytest.raises(AccountError, match="taken"):
        sign_up(database, username=" aDA ")


def test_many_who_want_the_same_name_at_once(database):
    results = []

    def attempt():
        try:
            results.append(sign_up(database).username)
        except AccountError as error:
            results.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results)[0] == "The user name “ada” is taken; choose another."
    assert results.count("ada") == 1


def test_closed_and_invite_policies(database):
    admin = add(database, "admin", "admin")
    with pytest.raises(AccountError, match="closed"):
        sign_up(database, "closed")
    with pytest.raises(AccountError, match="needs an invitation"):
        sign_up(database, "invite")
    code = accounts.create_invite(database, admin, role="radiologist", note="Ward 3")
    with pytest.raises(AccountError, match="closed"):
        sign_up(database, "closed", code=code)
    assert sign_up(database, "invite", code=code.lower().replace("-", " ")).role == "radiologist"
    with pytest.raises(AccountError, match="not valid"):
        sign_up(database, "invite", username="second", code=code)
    (invite,) = accounts.list_invites(database, admin)
    assert (invite.used_by, invite.note, invite.role) == ("ada", "Ward 3", "radiologist")


def test_an_invitation_expires_and_can_be_taken_back(database, clock):
    admin = add(database, "admin", "admin")
    code = accounts.create_invite(database, admin)
    clock(timedelta(days=8))
    with pytest.raises(AccountError, match="older than a week"):
        sign_up(database, "invite", code=code)
    code = accounts.create_invite(database, admin)
    (invite,) = accounts.list_invites(database, admin)
    accounts.revoke_invite(database, admin, invite.id)
    with pytest.raises(AccountError, match="not valid"):
        sign_up(database, "invite", code=code)


def test_an_invitation_is_used_once_by_many_at_once(database):
    code = accounts.create_invite(database, None)
    made = []

    def attempt(i):
        with suppress(AccountError):
            made.append(sign_up(database, "invite", username=f"user{i}", code=code))

    threads = [threading.Thread(target=attempt, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(accounts.list_users(database, None)) == 1


@pytest.mark.parametrize("policy", ["open", "invite", "closed"])
def test_the_set_up_code_makes_the_first_administrator_only(database, policy):
    first, second = accounts.setup_code(database), accounts.setup_code(database)  # two processes print one each
    assert sign_up(database, policy, code=second).role == "admin"
    with pytest.raises(AccountError, match="not valid"):
        sign_up(database, policy, username="mallory", code=first)
    assert accounts.setup_code(database) is None
    with database.read() as session:
        assert [r.used_by is not None for r in session.scalars(sa.select(InviteRow))] == [True]


def test_the_set_up_code_ends_with_an_administrator_from_the_command_line(database):
    code = accounts.setup_code(database)
    add(database, "boss", "admin")
    with pytest.raises(AccountError, match="administrator already"):
        sign_up(database, code=code)


# --- lockout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("username", ["ada", "nobody"])
def test_five_failures_lock_and_the_delay_grows(database, clock, username):
    sign_up(database)

    def fail():
        with pytest.raises(AccountError) as caught:
            sign_in(database, username, "wrong password")
        return str(caught.value)

    assert {fail() for _ in range(5)} == {"User name or password is wrong."}
    assert fail() == "Too many failed attempts; try again in 31 s."
    if username == "ada":
        with pytest.raises(AccountError, match="Too many"):
            sign_in(database)  # not even with the right password
    clock(timedelta(seconds=31))
    assert fail() == "User name or password is wrong."
    assert fail() == "Too many failed attempts; try again in 61 s."
    clock(timedelta(seconds=61))
    fail()
    assert fail() == "Too many failed attempts; try again in 3 min."
    if username == "ada":
        clock(timedelta(minutes=3))
        assert sign_in(database)
        assert fail() == "User name or password is wrong."  # success wiped the slate


def test_the_delay_doubles_up_to_an_hour():
    seconds = [accounts.lock_time(n).total_seconds() for n in range(5, 100)]
    assert seconds[:4] == [30, 60, 120, 240]
    assert seconds[-1] == 3600


def test_the_lock_survives_a_restart(database):
    sign_up(database)
    for _ in range(5):
        with pytest.raises(AccountError):
            sign_in(database, password="wrong password")
    again = Database(database.engine.url.render_as_string(hide_password=False))
    with pytest.raises(AccountError, match="Too many"):
        sign_in(again)
    again.close()


def test_guessing_in_parallel_gets_no_more_tries(database):
    sign_up(database)
    outcomes = []

    def guess(i):
        try:
            sign_in(database, password=f"wrong password {i}")
        except AccountError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=guess, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("User name or password is wrong.") == 5
    assert len(outcomes) == 20


def test_old_failures_are_forgotten(database, clock):
    for i in range(3):
        with pytest.raises(AccountError):
            sign_in(database, f"nobody{i}", "wrong password")
    clock(timedelta(days=2))
    sign_up(database)
    sign_in(database)
    with database.read() as session:
        assert session.scalars(sa.select(FailureRow)).all() == []


def fail(database, username="ada", **options):
    with pytest.raises(AccountError) as caught:
        accounts.sign_in(database, username, "wrong password", days=1, **options)
    return str(caught.value)


def test_whoever_locks_an_account_does_not_stop_its_live_sessions(database):
    user = sign_up(database)
    for _ in range(6):
        said = fail(database)
    assert "Too many" in said
    accounts.confirm_password(database, user, PASSWORD)
    with pytest.raises(AccountError, match="password is wrong"):
        accounts.confirm_password(database, user, "wrong password")
    accounts.change_password(database, user, PASSWORD, "another long password")
    with pytest.raises(AccountError, match="Too many"):
        sign_in(database, password="another long password")  # and the sign-in stays locked


@pytest.mark.parametrize("name", ["CONFIRM {}", "confirm {}", " Confirm {} "])
def test_the_sign_in_form_does_not_reach_the_counter_of_confirmations(database, name):
    user = sign_up(database)
    for _ in range(6):
        fail(database, name.format(user.id))
    accounts.confirm_password(database, user, PASSWORD)


def test_confirmations_are_limited_and_unlocked(database, clock):
    user, other = sign_up(database), add(database, "bob")
    for _ in range(5):
        with pytest.raises(AccountError, match="password is wrong"):
            accounts.confirm_password(database, user, "wrong password")
    for act in (
        lambda: accounts.confirm_password(database, user, PASSWORD),
        lambda: accounts.change_password(database, user, PASSWORD, "another long password"),
    ):
        with pytest.raises(AccountError, match="Too many failed attempts; try again in 31 s"):
            act()
    accounts.confirm_password(database, other, PASSWORD)
    assert sign_in(database)
    assert [row.locked_until is not None for row in accounts.list_users(database, None)] == [True, False]
    accounts.unlock(database, None, "ada")
    accounts.confirm_password(database, user, PASSWORD)


def test_one_address_does_not_try_name_after_name(database, clock):
    sign_up(database)
    known = {"address": "203.0.113.7"}
    for i in range(50):
        assert "wrong" in fail(database, f"nobody{i}", **known)
    with database.read() as session:
        before = session.scalar(sa.select(sa.func.count()).select_from(FailureRow))
    for name in ("ada", "nobody99"):
        assert fail(database, name, **known) == "Too many failed attempts; try again in 31 s."
    with database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(FailureRow)) == before
    assert "wrong" in fail(database, "nobody99", address="203.0.113.8")
    assert "wrong" in fail(database, "nobody98")  # not known
    for i in range(3):  # no longer each time: others may share the address
        clock(timedelta(seconds=31))
        assert "wrong" in fail(database, f"somebody{i}", **known)
        assert "31 s" in fail(database, f"somebody{i}", **known)
    clock(timedelta(seconds=31))
    for _ in range(2):  # a sign-in takes back what it counted, and nothing else
        assert accounts.sign_in(database, "ada", PASSWORD, days=1, **known)
    assert "wrong" in fail(database, "somebody4", **known)
    assert "31 s" in fail(database, "somebody4", **known)
    clock(timedelta(days=1, seconds=31))
    assert "wrong" in fail(database, "nobody1", **known)
    assert "wrong" in fail(database, "nobody2", **known)


def test_who_signs_in_often_is_not_kept_out(database):
    sign_up(database)
    for _ in range(60):
        accounts.sign_in(database, "ada", PASSWORD, days=1, address="203.0.113.7")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:1:2:3", True),  # one client has a whole /64
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:203.0.113.7", "203.0.113.7", True),
        ("::ffff:203.0.113.7", "::ffff:203.0.113.8", False),
        ("no address " * 20, "no address " * 20, True),  # what a proxy says is anything
    ],
)
def test_what_counts_as_one_address(database, monkeypatch, one, other, same):
    monkeypatch.setattr(accounts, "FREE_ATTEMPTS_OF_ADDRESS", 1)
    fail(database, "nobody", address=one)
    assert ("Too many" in fail(database, "somebody", address=other)) is same


@pytest.mark.alone
def test_an_unknown_user_costs_the_same_time_as_a_wrong_password(tmp_path):
    """With the real cost of a hash."""
    database = Database(f"sqlite:///{tmp_path}/t.db")
    sign_up(database)
    accounts._nobodys_hash(accounts.BCRYPT_ROUNDS)

    def took(username):
        start = time.thread_time()  # the test's own time: other processes do not disturb it
        with pytest.raises(AccountError):
            sign_in(database, username, "wrong password")
        return time.thread_time() - start

    known, unknown = [], []
    for i in range(4):
        known.append(took("ada"))
        unknown.append(took(f"nobody{i}"))
    assert statistics.median(known) > 0.02
    assert statistics.median(unknown) == pytest.approx(statistics.median(known), rel=0.3)
    database.close()


# --- sessions ----------------------------------------------------------------------------------------------------


def test_a_session_lasts_as_long_as_it_should(database, clock):
    sign_up(database)
    user, session_id = sign_in(database)
    assert accounts.session_user(database, session_id) == user
    clock(timedelta(hours=23))
    assert accounts.session_user(database, session_id) == user
    clock(timedelta(hours=2))
    assert accounts.session_user(database, session_id) is None
    assert accounts.session_user(database, "made up") is None


def test_the_table_alone_lets_nobody_in(database):
    sign_up(database)
    _, session_id = sign_in(database)
    with database.read() as session:
        (row,) = session.scalars(sa.select(SessionRow))
    assert session_id not in row.id_sha256
    assert accounts.session_user(database, row.id_sha256) is None


def test_sign_out_ends_every_session_of_that_user_and_no_other(database):
    sign_up(database)
    add(database, "bob")
    user, first = sign_in(database)
    _, second = sign_in(database)
    bob, other = sign_in(database, "bob")
    accounts.sign_out(database, user)
    assert accounts.session_user(database, first) is accounts.session_user(database, second) is None
    assert accounts.session_user(database, other) == bob


def test_a_password_change_ends_the_others(database):
    sign_up(database)
    user, here = sign_in(database)
    _, there = sign_in(database)
    accounts.change_password(database, user, PASSWORD, "another long password", here)
    assert accounts.session_user(database, here) == user
    assert accounts.session_user(database, there) is None
    with pytest.raises(AccountError, match="wrong"):
        sign_in(database)
    assert sign_in(database, password="another long password")


@pytest.mark.parametrize(
    ("current", "new", "says"),
    [
        ("wrong password", "another long password", "current password is wrong"),
        (PASSWORD, PASSWORD, "is the current one"),
        (PASSWORD, "short", "at least 10"),
    ],
)
def test_a_password_change_that_is_refused(database, current, new, says):
    user = sign_up(database)
    with pytest.raises(AccountError, match=says):
        accounts.change_password(database, user, current, new)
    assert sign_in(database)


def test_guessing_the_current_password_locks_too(database):
    user = sign_up(database)
    for _ in range(5):
        with pytest.raises(AccountError, match="wrong"):
            accounts.change_password(database, user, "wrong password", "another long password")
    with pytest.raises(AccountError, match="Too many"):
        accounts.change_password(database, user, PASSWORD, "another long password")


def test_deactivation_ends_sessions_and_keeps_out(database):
    admin, user = add(database, "admin", "admin"), sign_up(database)
    _, session_id = sign_in(database)
    accounts.set_active(database, admin, "ada", False)
    assert accounts.session_user(database, session_id) is None
    with pytest.raises(AccountError, match=r"^User name or password is wrong\.$"):
        sign_in(database)
    accounts.set_active(database, admin, "ada", True)
    assert accounts.session_user(database, session_id) is None
    assert sign_in(database)[0] == user


def test_one_session_and_all_others_can_be_ended(database):
    sign_up(database)
    add(database, "bob")
    user, here = sign_in(database)
    sign_in(database)
    _, there = sign_in(database)
    bob, _ = sign_in(database, "bob")
    assert len(accounts.list_sessions(database, user)) == 3
    accounts.end_session(database, bob, accounts.session_key(there))  # not his
    assert accounts.session_user(database, there) == user
    accounts.end_session(database, user, accounts.session_key(there))
    assert accounts.session_user(database, there) is None
    accounts.end_other_sessions(database, user, here)
    assert [s.key for s in accounts.list_sessions(database, user)] == [accounts.session_key(here)]


def test_last_seen_is_kept_to_the_minute(database, clock):
    sign_up(database)
    user, session_id = sign_in(database)
    (before,) = accounts.list_sessions(database, user)
    clock(timedelta(minutes=2))
    accounts.session_user(database, session_id)
    (after,) = accounts.list_sessions(database, user)
    assert after.last_seen_at - before.last_seen_at >= timedelta(minutes=2)


# --- administrators ----------------------------------------------------------------------------------------------


def test_a_reset_password_works_once_until_it_is_changed(database):
    admin = add(database, "admin", "admin")
    sign_up(database)
    _, session_id = sign_in(database)
    for _ in range(5):
        with pytest.raises(AccountError):
            sign_in(database, password="wrong password")
    one_time = accounts.reset_password(database, admin, "ada")
    assert accounts.session_user(database, session_id) is None
    user, _ = sign_in(database, password=one_time)
    assert user.must_change_password
    accounts.change_password(database, user, one_time, "another long password")
    user, _ = sign_in(database, password="another long password")
    assert not user.must_change_password


def test_a_one_time_password_expires(database, clock):
    admin = add(database, "admin", "admin")
    sign_up(database)
    given = {"ada": accounts.reset_password(database, admin, "ada"), "bob": accounts.one_time_password()}
    accounts.add_user(database, admin, username="bob", name="Bob", role="reader", password=given["bob"], one_time=True)
    clock(timedelta(days=6))
    bob, _ = sign_in(database, "bob", given["bob"])
    accounts.change_password(database, bob, given["bob"], "another long password")
    ada, _ = sign_in(database, password=given["ada"])
    clock(timedelta(days=2))
    for late in (
        lambda: sign_in(database, password=given["ada"]),
        lambda: accounts.change_password(database, ada, given["ada"], "another long password"),
    ):
        with pytest.raises(AccountError, match="good for 7 days and has expired; ask an administrator for a new one"):
            late()
    with pytest.raises(AccountError, match=r"^User name or password is wrong\.$"):
        sign_in(database)  # who does not know it is told nothing
    assert sign_in(database, "bob", "another long password")
    again = accounts.reset_password(database, admin, "ada")
    assert sign_in(database, password=again)[0].must_change_password


def test_one_time_passwords_from_before_they_expired_get_a_week(tmp_path, monkeypatch):
    monkeypatch.setattr(accounts, "BCRYPT_ROUNDS", 4)
    upgrade = alembic.command.upgrade
    with monkeypatch.context() as older:
        older.setattr(alembic.command, "upgrade", lambda config, _: upgrade(config, "0004"))
        old = Database(f"sqlite:///{tmp_path}/t.db")
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    with old.write() as session:
        for username in ("given", "own"):
            fields = {"username": username, "name": username, "role": "reader", "password_hash": hashed}
            session.add(UserRow(**fields, must_change_password=username == "given"))
    old.close()
    database = Database(f"sqlite:///{tmp_path}/t.db")
    assert sign_in(database, "given")
    assert sign_in(database, "own")
    with database.read() as session:
        (row,) = session.scalars(sa.select(accounts.OneTimeRow))
    assert timedelta(days=6.9) < row.expires_at - accounts.utc_now() < timedelta(days=7)
    database.close()


def test_nobody_resets_their_own_password_but_on_the_command_line(database):
    admin = add(database, "admin", "admin")
    with pytest.raises(AccountError, match="your own account; change its password under Account"):
        accounts.reset_password(database, admin, "Admin")
    assert not sign_in(database, "admin")[0].must_change_password
    assert accounts.reset_password(database, None, "admin")


ADMIN_ACTS = {
    "add": lambda d, a: accounts.add_user(d, a, username="eve", name="Eve", role="admin", password=PASSWORD),
    "reset": lambda d, a: accounts.reset_password(d, a, "ada"),
    "role": lambda d, a: accounts.set_role(d, a, "ada", "admin"),
    "switch off": lambda d, a: accounts.set_active(d, a, "ada", False),
    "unlock": lambda d, a: accounts.unlock(d, a, "ada"),
    "list": lambda d, a: accounts.list_users(d, a),
    "invite": lambda d, a: accounts.create_invite(d, a, role="admin"),
    "invites": lambda d, a: accounts.list_invites(d, a),
    "revoke": lambda d, a: accounts.revoke_invite(d, a, 1),
}


@pytest.mark.parametrize("act", ADMIN_ACTS)
def test_only_an_active_administrator_administers(database, act):
    add(database, "boss", "admin")
    former, off = add(database, "former", "admin"), add(database, "off", "admin")
    accounts.set_role(database, None, "former", "reader")  # these two objects still say "admin"
    accounts.set_active(database, None, "off", False)
    ada = sign_up(database)
    for actor in (ada, add(database, "rad", "radiologist"), former, off, GUEST):
        with pytest.raises(PermissionDeniedError):
            ADMIN_ACTS[act](database, actor)
    assert accounts.find_user(database, "ada") == ada
    assert sign_in(database)


def test_the_last_administrator_stays(database):
    boss, second = add(database, "boss", "admin"), add(database, "second", "admin")
    accounts.set_role(database, boss, "second", "reader")
    for act in (
        lambda: accounts.set_role(database, boss, "boss", "reader"),
        lambda: accounts.set_active(database, boss, "boss", False),
        lambda: accounts.set_role(database, None, "boss", "reader"),
    ):
        with pytest.raises(AccountError, match="last administrator"):
            act()
    accounts.set_role(database, boss, "second", "admin")
    accounts.set_active(database, boss, "second", False)  # one who is switched off does not count
    with pytest.raises(AccountError, match="last administrator"):
        accounts.set_role(database, boss, "boss", "reader")
    assert second.role == "admin"


def test_two_administrators_cannot_demote_each_other(database):
    users = [add(database, "one", "admin"), add(database, "two", "admin")]
    errors = []

    def demote(actor, target):
        try:
            accounts.set_role(database, actor, target.username, "reader")
        except (AccountError, PermissionDeniedError, StorageError) as error:
            errors.append(error)

    threads = [threading.Thread(target=demote, args=pair) for pair in (users, users[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 1
    assert accounts.has_admin(database)


@pytest.mark.parametrize("role", ["guest", "root", ""])
def test_roles_that_do_not_exist(database, role):
    add(database, "ada")
    with pytest.raises(AccountError, match="no role"):
        accounts.set_role(database, None, "ada", role)
    with pytest.raises(AccountError, match="no role"):
        add(database, "eve", role)


def test_a_profile_is_changed_by_its_owner(database):
    user = sign_up(database)
    changed = accounts.update_profile(database, user, name="Ada  King", email="ada@example.org")
    assert (changed.name, changed.email) == ("Ada King", "ada@example.org")
    assert accounts.find_user(database, "ada") == changed
    with pytest.raises(AccountError, match="e-mail"):
        accounts.update_profile(database, user, name="Ada", email="not one")
    with pytest.raises(AccountError, match="guest"):
        accounts.update_profile(database, GUEST, name="Ada", email=None)


@pytest.mark.parametrize(
    ("name", "signature"), [("Dr. Ada Lovelace", "Dr. Ada Lovelace (ada)"), ("ada", "ada"), ("", "ada")]
)
def test_a_signature_names_the_account(name, signature):
    assert accounts.User(1, "ada", name, "reader").signature == signature


def test_the_list_of_users(database, clock):
    admin = add(database, "admin", "admin")
    sign_up(database)
    sign_in(database)
    for _ in range(5):
        with pytest.raises(AccountError):
            sign_in(database, password="wrong password")
    ada = {row.user.username: row for row in accounts.list_users(database, admin)}["ada"]
    assert ada.active
    assert (ada.n_sessions, ada.n_records) == (1, 0)
    assert ada.locked_until is not None
    assert ada.last_sign_in_at is not None
    accounts.unlock(database, admin, "ada")
    assert sign_in(database)


# --- cookie key --------------------------------------------------------------------------------------------------


def test_the_cookie_key_is_made_once_for_its_owner_only(tmp_path):
    path = tmp_path / "data" / "cookie.key"
    keys = []
    threads = [threading.Thread(target=lambda: keys.append(accounts.cookie_key(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(keys)) == 1
    assert len(keys[0]) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["cookie.key"]
    path.chmod(0o644)
    assert accounts.cookie_key(path) == keys[0]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_cookie_key_that_will_not_do(tmp_path):
    (tmp_path / "short").write_text("abc")
    with pytest.raises(StorageError, match="shorter than 32"):
        accounts.cookie_key(tmp_path / "short")
    with pytest.raises(StorageError, match="cannot be read or made"):
        accounts.cookie_key(tmp_path / "short" / "key")


# --- command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def cli(tmp_path, monkeypatch):
    monkeypatch.setattr(accounts, "BCRYPT_ROUNDS", 4)
    (tmp_path / "config.yaml").write_text("model: {id: tiny}")
    monkeypatch.setenv("BRAINMRI_CONFIG", str(tmp_path / "config.yaml"))

    def call(*arguments, typed=None):
        return CliRunner().invoke(app, ["user", *arguments], input=typed)

    call.database = lambda: Database(f"sqlite:///{tmp_path}/data/brainmri.db")
    return call


def test_brainmri_user(cli):
    assert "No accounts yet" in cli("list").output
    assert cli("add", "boss", "--role", "admin", "--name", "The Boss", typed=PASSWORD + "\n").exit_code == 0
    done = cli("add", "ada", "--one-time-password")
    assert done.exit_code == 0
    one_time = done.output.split()[-1]
    assert accounts.sign_in(cli.database(), "ada", one_time, days=1)[0].must_change_password
    assert cli("set-role", "ada", "radiologist").output == "ada is radiologist now.\n"
    listed = json.loads(cli("list", "--json").output)
    assert [(u["username"], u["role"], u["name"]) for u in listed] == [
        ("ada", "radiologist", "ada"),
        ("boss", "admin", "The Boss"),
    ]
    assert "never signed in" in cli("list").output
    reset = cli("reset-password", "boss").output.split()[-1]
    assert "good for 7 days" in cli("reset-password", "ada").output
    assert accounts.sign_in(cli.database(), "boss", reset, days=1)[0].role == "admin"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("add", "x!"), "cannot be a user name"),
        (("add", "ada", "--role", "root"), "no role"),
        (("set-role", "nobody", "admin"), "no user"),
        (("reset-password", "nobody"), "no user"),
    ],
)
def test_brainmri_user_refuses_in_one_line(cli, arguments, says):
    done = cli(*arguments, typed=PASSWORD + "\n")
    assert isinstance(done.exception, AccountError)
    assert says in str(done.exception)
    assert "\n" not in str(done.exception)


def test_brainmri_user_add_takes_no_short_password(cli):
    assert "at least 10" in str(cli("add", "ada", typed="short\n").exception)
