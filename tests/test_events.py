"""The log: who changed which account, in whose sight, unchangeable."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from brainmri import accounts, events
from brainmri.accounts import GUEST
from brainmri.cli import app
from brainmri.errors import AccountError, PermissionDeniedError, StorageError
from brainmri.events import EventRow, find_events, note_event
from brainmri.storage import Database

PASSWORD = "correct horse battery"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path, monkeypatch):
    monkeypatch.setattr(accounts, "BCRYPT_ROUNDS", 4)
    url = f"sqlite:///{tmp_path}/t.db" if request.param == "sqlite" else request.getfixturevalue("postgresql_url")
    opened = Database(url)
    yield opened
    opened.close()


def add(database, username, role="reader", actor=None):
    return accounts.add_user(database, actor, username=username, name=username, role=role, password=PASSWORD)


def lines(database, user=None, **page):
    """Oldest first."""
    found = find_events(database, user, **page).events
    return [(e.username, e.what, e.target, e.before, e.after) for e in reversed(found)]


def test_every_change_of_an_account_leaves_a_line(database):
    admin = add(database, "boss", "admin")
    code = accounts.create_invite(database, admin, role="radiologist", note="Ward 3")
    accounts.create_invite(database, admin, note="a mistake")
    accounts.revoke_invite(database, admin, accounts.list_invites(database, admin)[0].id)
    ada = accounts.sign_up(database, "invite", username="ada", name="Ada", password=PASSWORD, code=code)
    ada = accounts.update_profile(database, ada, name="Dr. Bob", email="ada@example.org")
    accounts.set_role(database, admin, "ada", "reader")
    accounts.set_active(database, admin, "ada", False)
    accounts.set_active(database, None, "ada", True)
    accounts.unlock(database, admin, "ada")
    one_time = accounts.reset_password(database, admin, "ada")
    accounts.change_password(database, ada, one_time, "another long password")
    assert lines(database) == [
        ("command line", "user added", "boss", "", "admin"),
        ("boss", "invitation made", "Ward 3", "", "radiologist"),
        ("boss", "invitation made", "a mistake", "", "reader"),
        ("boss", "invitation taken back", "a mistake", "reader", ""),
        ("ada", "signed up", "ada", "", "radiologist"),
        ("ada", "name changed", "ada", "Ada", "Dr. Bob"),
        ("ada", "e-mail changed", "ada", "", "ada@example.org"),
        ("boss", "role changed", "ada", "radiologist", "reader"),
        ("boss", "deactivated", "ada", "", ""),
        ("command line", "activated", "ada", "", ""),
        ("boss", "unlocked", "ada", "", ""),
        ("boss", "password reset", "ada", "", ""),
        ("ada", "password changed", "ada", "", ""),
    ]
    assert {what for _, what, *_ in lines(database)} <= set(events.WORDS)
    kept = str(lines(database))
    assert not any(secret in kept for secret in (code, one_time, PASSWORD, "another long password"))


def test_what_is_refused_or_changes_nothing_leaves_no_line(database):
    boss, ada = add(database, "boss", "admin"), add(database, "ada")
    before = lines(database)
    for refused in (
        lambda: accounts.set_role(database, ada, "boss", "reader"),
        lambda: accounts.set_role(database, boss, "boss", "reader"),
        lambda: accounts.reset_password(database, boss, "boss"),
        lambda: accounts.change_password(database, ada, "wrong password", "another long password"),
        lambda: accounts.unlock(database, boss, "nobody"),
        lambda: add(database, "ada", actor=boss),
    ):
        with pytest.raises((AccountError, PermissionDeniedError)):
            refused()
    accounts.set_role(database, boss, "ada", "reader")
    accounts.set_active(database, boss, "ada", True)
    accounts.update_profile(database, ada, name=ada.name, email=ada.email)
    accounts.revoke_invite(database, boss, 99)
    assert lines(database) == before


def test_a_line_goes_with_its_change(database, monkeypatch):
    boss = add(database, "boss", "admin")
    add(database, "ada")
    before = lines(database)

    def fail(*_, **__):
        raise StorageError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(accounts, "note_event", fail)
        with pytest.raises(StorageError):
            accounts.set_role(database, boss, "ada", "radiologist")
    assert accounts.find_user(database, "ada").role == "reader"
    with suppress(RuntimeError), database.write() as session:
        note_event(session, boss, "report downloaded", "report 3")
        raise RuntimeError
    assert lines(database) == before


@pytest.mark.parametrize("change", [sa.update(EventRow).values(username="nobody"), sa.delete(EventRow)])
def test_the_database_refuses_to_change_the_log(database, change):
    add(database, "boss", "admin")
    before = lines(database)
    with pytest.raises(StorageError, match="events are only added"), database.write() as session:
        session.execute(change)
    assert lines(database) == before


def test_only_administrators_see_the_lines_of_others(database):
    boss, ada = add(database, "boss", "admin"), add(database, "ada", "radiologist")
    accounts.update_profile(database, ada, name="Ada", email=None)
    accounts.set_role(database, boss, "ada", "reader")
    assert lines(database, boss) == lines(database)
    assert [what for _, what, *_ in lines(database, ada)] == ["name changed"]
    assert find_events(database, ada).total == 1
    assert find_events(database, GUEST) == events.EventPage([], 0)


def test_pages_newest_first(database):
    boss = add(database, "boss", "admin")
    with database.write() as session:
        for i in range(5):
            note_event(session, boss, "report downloaded", f"report {i}")
    page = find_events(database, boss, limit=2, offset=1)
    assert [e.target for e in page.events] == ["report 3", "report 2"]
    assert page.total == 6


def test_a_line_is_a_line(database):
    boss = add(database, "boss", "admin")
    with database.write() as session:
        note_event(session, boss, "patient exported", "P-1\n\x1b[31m\0" + "x" * 300, before="ä" * 300)
    _, _, target, before, _ = lines(database)[-1]
    assert target.startswith("P-1  [31m x")
    assert (len(target), before) == (200, "ä" * 200)
    with pytest.raises(ValueError, match="'shouted' is no word of the log"), database.write() as session:
        note_event(session, boss, "shouted", "boss")


def test_every_word_fits_its_column():
    assert max(map(len, events.WORDS)) <= EventRow.__table__.c.what.type.length


def test_brainmri_user_log(tmp_path, monkeypatch):
    monkeypatch.setattr(accounts, "BCRYPT_ROUNDS", 4)
    (tmp_path / "config.yaml").write_text("model: {id: tiny}")
    monkeypatch.setenv("BRAINMRI_CONFIG", str(tmp_path / "config.yaml"))

    def call(*arguments):
        return CliRunner().invoke(app, ["user", *arguments], input=PASSWORD + "\n").output

    assert "empty" in call("log")
    assert call("log", "--json") == "[]\n"
    call("add", "ada")
    call("set-role", "ada", "radiologist")
    newest, oldest = call("log").splitlines()
    assert newest.endswith("command line  role changed  ada: reader → radiologist")
    assert oldest.endswith("command line  user added  ada: reader")
    assert call("log", "--limit", "1").splitlines()[1:] == ["The newest 1 of 2 lines; --limit shows more."]
    first = json.loads(call("log", "--json"))[0]
    assert (first["username"], first["what"], first["after"]) == ("command line", "role changed", "radiologist")
    assert first["at"].endswith("+00:00")
