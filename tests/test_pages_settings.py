"""Account and Users pages, and the router around them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from brainmri import accounts, storage
from brainmri.errors import AccountError, StorageError
from brainmri.ui import state

PASSWORD = "correct horse battery"
PAGES = Path(__file__).resolve().parent.parent / "pages"
HOME = str(PAGES.parent / "Home.py")


def button(page, label):
    return next(b for b in page.button if b.label == label)


def texts(page, kind):
    return " ".join(str(element.value) for element in page.get(kind))


def open_home(session=None):
    page = AppTest.from_file(HOME, default_timeout=60)
    for key, value in (session or {}).items():
        page.session_state[key] = value
    return page.run()


def session_of(user):
    return {state.SESSION_KEY: accounts.start_session(state.database(), user.id, days=1)}


# --- router ------------------------------------------------------------------------------------------------------


def test_nobody_is_offered_to_sign_in(app_settings):
    page = open_home()
    assert not page.exception
    assert "Brain MRI" in page.title[0].value
    assert "not a diagnosis" in texts(page, "info").lower()
    assert {b.label for b in page.button} == {"Try as a guest", "Sign in", "Sign up"}


@pytest.mark.parametrize("where", ["authenticate", "sign_in_page", "user_menu"])
def test_an_error_at_the_gate_is_a_message_and_no_crash(make_user, monkeypatch, where):
    from brainmri.ui import auth

    def fail(*_):
        raise StorageError("the database refused: disk full; nothing was changed")

    monkeypatch.setattr(auth, where, fail)
    page = open_home(session_of(make_user()) if where == "user_menu" else None)
    assert not page.exception
    assert [e.value.replace("\\", "") for e in page.error] == ["the database refused: disk full; nothing was changed"]


@pytest.mark.parametrize(
    ("accounts_section", "labels"),
    [
        ("{guest: false}", {"Sign in", "Sign up"}),
        ("{signup: invite}", {"Try as a guest", "Sign in", "Sign up"}),
        ("{signup: closed}", {"Try as a guest", "Sign in"}),
        ("{signup: closed, guest: false}", {"Sign in"}),
    ],
)
def test_the_sign_in_page_offers_what_the_configuration_allows(
    app_settings, make_user, monkeypatch, accounts_section, labels
):
    make_user("admin")
    rewrite(app_settings, monkeypatch, accounts_section)
    page = open_home()
    assert {b.label for b in page.button} == labels


def rewrite(app_settings, monkeypatch, accounts_section):
    """The same installation with other account settings."""
    folder = app_settings.accounts.key_file.parent.parent
    path = folder / "other.yaml"
    path.write_text(f"{(folder / 'config.yaml').read_text()}\naccounts: {accounts_section}\n")
    monkeypatch.setenv("BRAINMRI_CONFIG", str(path))


def test_closed_still_takes_the_set_up_code_of_the_console(app_settings, monkeypatch):
    rewrite(app_settings, monkeypatch, "{signup: closed}")
    page = open_home()
    assert "one-time code" in texts(page, "caption")
    fill_sign_up(page, code=accounts.setup_code(state.database()))
    assert accounts.find_user(state.database(), "ada").role == "admin"


def fill_sign_up(page, password=PASSWORD, repeat=None, code=""):
    fields = {field.label: field for field in page.text_input if "sign_up" in field.proto.form_id}
    fields["First name"].input("Ada")
    fields["User name"].input("ada")
    fields["Password"].input(password)
    fields["Repeat password"].input(repeat or password)
    next(f for label, f in fields.items() if "code" in label.lower()).input(code)
    return button(page, "Sign up").click().run()


def test_sign_up_signs_in_as_a_reader(app_settings):
    page = fill_sign_up(open_home())
    assert not page.exception
    assert accounts.find_user(state.database(), "ada").role == "reader"
    assert "Ada · reader" in texts(page, "caption")


@pytest.mark.parametrize(
    ("password", "repeat", "code", "says"),
    [
        ("short", None, "", "at least 10"),
        ("password12", None, "", "choose a few unrelated words"),
        (PASSWORD, "something else", "", "differ"),
        ("x1y" * 30, None, "", "90 bytes"),
        (PASSWORD, None, "ABCD-EFGH", "not valid"),
    ],
)
def test_a_sign_up_that_is_refused_says_why(app_settings, password, repeat, code, says):
    page = fill_sign_up(open_home(), password, repeat, code)
    assert says in texts(page, "error")
    assert accounts.list_users(state.database(), None) == []


def test_sign_in_by_password(make_user):
    make_user("reader", "ada")
    page = open_home()
    for password, signed_in in (("wrong password", False), (PASSWORD, True)):
        fields = {field.label: field for field in page.text_input if "sign_in" in field.proto.form_id}
        fields["User name"].input("Ada ")
        fields["Password"].input(password)
        button(page, "Sign in").click().run()
        assert ("Reader · reader" in texts(page, "caption")) is signed_in
        if not signed_in:
            assert texts(page, "error") == "User name or password is wrong."


def test_a_failed_sign_in_counts_for_the_address_it_came_from(make_user, monkeypatch):
    make_user("reader", "ada")
    monkeypatch.setattr(type(st.context), "ip_address", "203.0.113.7")
    monkeypatch.setattr(accounts, "FREE_ATTEMPTS_OF_ADDRESS", 1)
    page = open_home()
    for name, says in (("nobody", "wrong"), ("ada", "Too many failed attempts")):
        fields = {field.label: field for field in page.text_input if "sign_in" in field.proto.form_id}
        fields["User name"].input(name)
        fields["Password"].input("wrong password")
        button(page, "Sign in").click().run()
        assert says in texts(page, "error")


def test_sign_out_forgets_everything(make_user):
    user = make_user("reader")
    session = session_of(user)
    page = open_home({**session, "picture": "of a patient"})
    button(page, "Sign out").click().run()
    assert "Brain MRI" in page.title[0].value
    assert "picture" not in page.session_state
    assert accounts.session_user(state.database(), session[state.SESSION_KEY]) is None


def test_a_session_that_ended_elsewhere_is_back_at_the_sign_in_page(make_user):
    user = make_user("reader")
    page = open_home(session_of(user))
    assert "reader" in texts(page, "caption")
    accounts.set_active(state.database(), None, user.username, False)
    page.run()
    assert {b.label for b in page.button} == {"Try as a guest", "Sign in", "Sign up"}


GATED = """
from brainmri.ui import auth, history

user = auth.authenticate()
if user is None:
    auth.sign_in_page()
else:
    auth.show_message()
    history.show_list(user)
"""


@pytest.mark.parametrize("noticed", ["by the gate", "by a fragment"])
def test_a_session_that_ended_leaves_nothing_to_the_next_user(make_user, slices, noticed):
    from brainmri.pipeline import analyse
    from brainmri.types import MRISlice
    from brainmri.ui import auth

    for name, pixels in zip(("ada", "bob"), slices, strict=False):
        (analysis,) = analyse(state.classifier(), [MRISlice(pixels, f"{name}.png", name * 21, "PNG")])
        storage.save_record(state.database(), state.settings(), make_user("admin", name), analysis, None)

    def sign_in(username):
        fields = {field.label: field for field in page.text_input if "sign_in" in field.proto.form_id}
        fields["User name"].input(username)
        fields["Password"].input(PASSWORD)
        button(page, "Sign in").click().run()

    page = AppTest.from_string(GATED, default_timeout=60).run()
    sign_in("ada")
    page.text_input(key="history.text").input("a patient").run()
    page.selectbox(key="history.owner").set_value(accounts.find_user(state.database(), "ada").id).run()
    cookie = page.session_state[auth._COOKIE]
    page.session_state[auth._MESSAGE] = ("One-time password of ada:", "ABCD-EFGH")
    page.session_state["picture"] = "of a patient"
    accounts.set_active(state.database(), None, "ada", False)
    if noticed == "by a fragment":  # `state.current_user` forgets it there and has the page run again
        del page.session_state[state.SESSION_KEY]
    page.run()
    assert "Sign in" in {b.label for b in page.button}
    assert "picture" not in page.session_state
    sign_in("bob")
    assert page.session_state[auth._COOKIE] != cookie
    assert not page.exception
    assert not page.code
    assert len(page.dataframe[0].value) == 2
    assert page.text_input(key="history.text").value == ""
    assert page.selectbox(key="history.owner").value is None


def test_what_is_typed_at_the_sign_in_page_stays(app_settings):
    page = open_home()
    page.session_state["kept"] = "by nobody"
    fields = {field.label: field for field in page.text_input if "sign_in" in field.proto.form_id}
    fields["User name"].input("ada")
    button(page, "Sign in").click().run()
    assert "Enter user name and password" in texts(page, "error")
    assert "kept" in page.session_state


def test_a_guest_looks_around_and_leaves(app_settings, monkeypatch):
    page = open_home()
    button(page, "Try as a guest").click().run()
    assert "nothing is stored" in texts(page, "caption")
    rewrite(app_settings, monkeypatch, "{guest: false}")
    page.run()
    assert "Try as a guest" not in {b.label for b in page.button}


def test_a_one_time_password_opens_nothing_but_its_change(make_user):
    make_user("reader", "ada")
    one_time = accounts.reset_password(state.database(), None, "ada")
    page = open_home(session_of(accounts.find_user(state.database(), "ada")))
    assert page.title[0].value == "Account"
    assert "Choose your own" in texts(page, "warning")
    assert {f.label for f in page.text_input} == {"Current password", "New password", "Repeat new password"}
    change_password(page, one_time, "another long password")
    assert accounts.find_user(state.database(), "ada").must_change_password is False


def test_every_listed_page_exists_one_folder_down():
    listed = re.findall(r'\("([a-z_]+/[a-z_]+\.py)"', Path(HOME).read_text())
    assert len(listed) == len(set(listed)) >= 5
    assert sorted(listed) == sorted(str(p.relative_to(PAGES)) for p in PAGES.glob("*/*.py"))
    assert list(PAGES.glob("*.py")) == []  # Streamlit's own discovery would serve these past the router


# --- any page by itself ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(str(p.relative_to(PAGES)) for p in PAGES.glob("*/*.py")))
def test_a_page_run_without_a_signed_in_user_shows_nothing(open_page, file):
    page = open_page(file, None)
    assert not page.exception
    kinds = ("text_input", "selectbox", "button", "file_uploader", "dataframe", "imgs", "markdown")
    assert [kind for kind in kinds if page.get(kind)] == []
    assert texts(page, "info") == "Sign in to see this page."


# --- account -----------------------------------------------------------------------------------------------------


def change_password(page, current, new, repeat=None):
    fields = {field.label: field for field in page.text_input}
    fields["Current password"].input(current)
    fields["New password"].input(new)
    fields["Repeat new password"].input(repeat or new)
    return button(page, "Change password").click().run()


def test_a_password_is_changed_and_other_sign_ins_end(make_user, open_page):
    user = make_user("reader")
    other = accounts.start_session(state.database(), user.id, days=1)
    page = change_password(open_page("settings/account.py", user), PASSWORD, "another long password")
    assert "is changed" in texts(page, "success")
    assert accounts.session_user(state.database(), other) is None
    assert accounts.sign_in(state.database(), user.username, "another long password", days=1)


@pytest.mark.parametrize(
    ("current", "new", "repeat", "says"),
    [
        ("wrong password", "another long password", None, "current password is wrong"),
        (PASSWORD, "another long password", "yet another password", "differ"),
        (PASSWORD, "short", None, "at least 10"),
    ],
)
def test_a_password_change_that_is_refused_says_why(open_page, current, new, repeat, says):
    page = change_password(open_page("settings/account.py", "reader"), current, new, repeat)
    assert says in texts(page, "error")
    assert accounts.sign_in(state.database(), "reader", PASSWORD, days=1)


def test_the_profile_is_saved(open_page):
    page = open_page("settings/account.py", "reader")
    fields = {field.label: field for field in page.text_input}
    fields["Name"].input("Ada King")
    fields["E-mail (optional)"].input("ada@example.org")
    button(page, "Save").click().run()
    assert "Saved" in texts(page, "success")
    assert accounts.find_user(state.database(), "reader").email == "ada@example.org"


def test_other_sign_ins_are_listed_and_ended(make_user, open_page):
    user = make_user("reader")
    others = [accounts.start_session(state.database(), user.id, days=1, client=f"Browser {i}") for i in range(3)]
    page = open_page("settings/account.py", user)
    assert "Browser 2" in texts(page, "markdown")
    assert texts(page, "markdown").count("this one") == 1
    button(page, "End").click().run()
    alive = [o for o in others if accounts.session_user(state.database(), o)]
    assert len(alive) == 2
    button(page, "End all others").click().run()
    assert "here only" in texts(page, "success")
    assert len(accounts.list_sessions(state.database(), user)) == 1


# --- users -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["guest", "reader", "radiologist"])
def test_users_is_for_administrators(make_user, role):
    page = AppTest.from_file(str(PAGES / "settings/users.py"), default_timeout=60)
    if role == "guest":
        page.session_state[state.GUEST_KEY] = True
    else:
        page.session_state[state.SESSION_KEY] = session_of(make_user(role))[state.SESSION_KEY]
    page.run()
    assert page.exception  # the router turns it into a message
    assert not page.dataframe


def test_an_administrator_changes_a_role_deactivates_and_resets(make_user, open_page):
    make_user("reader", "ada")
    page = open_page("settings/users.py", "admin")
    assert not page.exception
    assert list(page.dataframe[0].value["User name"]) == ["ada", "admin"]
    page.selectbox[0].select("ada").run()
    page.segmented_control(key="r_ada").set_value("radiologist")
    button(page, "Set role").click().run()
    assert accounts.find_user(state.database(), "ada").role == "radiologist"
    button(page, "Deactivate").click().run()
    assert "deactivated" in texts(page, "success")
    with pytest.raises(AccountError):
        accounts.sign_in(state.database(), "ada", PASSWORD, days=1)
    button(page, "Activate").click().run()
    button(page, "Reset password").click().run()
    one_time = page.code[0].value
    assert accounts.sign_in(state.database(), "ada", one_time, days=1)[0].must_change_password
    assert not page.run().code  # shown once


def test_an_administrator_does_not_reset_her_own_password(make_user, open_page):
    make_user("reader", "zoe")
    page = open_page("settings/users.py", "admin")
    assert page.selectbox[0].value == "zoe"
    page.selectbox[0].select("admin").run()
    button(page, "Reset password").click().run()
    assert "under Account" in texts(page, "error")
    assert not page.code
    page.run()
    assert page.dataframe
    assert accounts.sign_in(state.database(), "admin", PASSWORD, days=1)[0].must_change_password is False


def test_the_last_administrator_cannot_deactivate_herself(open_page):
    page = open_page("settings/users.py", "admin")
    button(page, "Deactivate").click().run()
    assert "last administrator" in texts(page, "error")


def test_a_locked_user_is_unlocked(make_user, open_page):
    make_user("reader", "ada")
    for _ in range(5):
        with pytest.raises(AccountError):
            accounts.sign_in(state.database(), "ada", "wrong password", days=1)
    page = open_page("settings/users.py", "admin")
    assert "locked" in list(page.dataframe[0].value["State"])
    button(page, "Unlock").click().run()
    assert accounts.sign_in(state.database(), "ada", PASSWORD, days=1)


def test_an_administrator_adds_a_user_and_invites_another(open_page):
    page = open_page("settings/users.py", "admin")
    fields = {field.label: field for field in page.text_input}
    fields["User name"].input("bob")
    fields["Name"].input("Bob")
    button(page, "Add user").click().run()
    assert accounts.sign_in(state.database(), "bob", page.code[0].value, days=1)[0].must_change_password
    button(page, "Make an invitation").click().run()
    code = page.code[0].value
    made = accounts.sign_up(
        state.database(), "invite", username="eve", name="Eve", password="another long password", code=code
    )
    assert made.role == "reader"
    page.run()
    assert "used by eve" in texts(page, "markdown")


def test_the_log_is_paged_newest_first(make_user, open_page):
    for i in range(29):
        make_user("reader", f"user{i:02}")
    page = open_page("settings/users.py", "admin")
    log = page.dataframe[1].value
    assert "1–25 of 30, newest first" in texts(page, "caption")
    assert list(log["Target"])[:2] == ["admin", "user28"]
    assert (log["Who"][0], log["What"][0], log["After"][0]) == ("command line", "user added", "admin")
    page.session_state["log_page"] = 2
    page.run()
    assert list(page.dataframe[1].value["Target"]) == [f"user{i:02}" for i in range(4, -1, -1)]
    assert "26–30 of 30" in texts(page, "caption")
