"""The gate on real servers: deep links as the first request, the start with a wrong configuration, a real browser."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import jwt
import psutil
import pytest
from conftest import PASSWORD, free_port
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.testing.v1 import AppTest

from brainmri import accounts
from brainmri.ui import state

ROOT = Path(__file__).resolve().parent.parent
SIGN_IN_FORMS = {"sign_in", "sign_up"}
URL_PATHS = re.findall(r'\("[a-z_]+/[a-z_]+\.py", ".+?", ".+?", "([a-z_-]+)"', (ROOT / "Home.py").read_text("utf-8"))


def start_server(folder: Path, config: str = "model: {id: tiny, directory: models}"):
    """`streamlit run Home.py` with a configuration of its own, and no more; the process and its port."""
    (folder / "config.yaml").write_text(config, "utf-8")
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", "Home.py", f"--server.port={port}"]
    environment = {**os.environ, "BRAINMRI_CONFIG": str(folder / "config.yaml"), "PYTHONUNBUFFERED": "1"}
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    return server, port


@contextlib.contextmanager
def running_server(folder: Path, **options):
    server, port = start_server(folder, **options)
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health"):
                break
            assert server.poll() is None, (folder / "log").read_text("utf-8")
            time.sleep(0.1)
        yield port
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def first_request(port: int, path: str) -> list[ForwardMsg]:
    """All that a server sends to the browser whose first request is this address."""
    from websockets.sync.client import connect

    received = []
    with connect(f"ws://127.0.0.1:{port}/_stcore/stream", subprotocols=["streamlit"], max_size=None) as socket_:
        ask = BackMsg()
        ask.rerun_script.page_name = path
        ask.rerun_script.query_string = ""
        socket_.send(ask.SerializeToString())
        while not received or received[-1].WhichOneof("type") != "script_finished":
            message = ForwardMsg()
            message.ParseFromString(socket_.recv(timeout=60))
            received.append(message)
    return received


def shown(messages: list[ForwardMsg]) -> list[str]:
    """Kind and words of every element, without ids that differ from page to page."""
    elements = [
        m.delta.new_element for m in messages if m.WhichOneof("type") == "delta" and m.delta.HasField("new_element")
    ]
    found = []
    for element in elements:
        kind = element.WhichOneof("type")
        inner = getattr(element, kind)
        words = [getattr(inner, name) for name in ("body", "label", "placeholder") if hasattr(inner, name)]
        found.append(f"{kind}: {' '.join(words)}")
    return found


@pytest.fixture(scope="module")
def sign_in_page(tmp_path_factory):
    with running_server(tmp_path_factory.mktemp("start")) as port:
        messages = first_request(port, "")
    return shown(messages)


def test_the_start_page_is_the_sign_in_page(sign_in_page):
    assert any("Brain MRI" in text for text in sign_in_page)
    assert any(text.startswith("text_input: Password") for text in sign_in_page)


@pytest.mark.parametrize("path", URL_PATHS)
def test_a_deep_link_as_the_first_request_of_a_fresh_server_shows_the_sign_in_page_only(tmp_path, sign_in_page, path):
    with running_server(tmp_path) as port:
        messages = first_request(port, path)
    assert shown(messages) == sign_in_page
    kinds = [m.WhichOneof("type") for m in messages]
    assert "page_not_found" not in kinds
    (navigation,) = (m.navigation for m in messages if m.WhichOneof("type") == "navigation")
    assert {page.page_name for page in navigation.app_pages} == {"Sign in"}


@pytest.mark.parametrize("path", ["Home", "settings/account", "pages/main/predict", "account.py", "../secret"])
def test_no_other_address_shows_anything_either(tmp_path_factory, fresh_server, sign_in_page, path):
    assert shown(first_request(fresh_server, path)) == sign_in_page


@pytest.fixture(scope="module")
def fresh_server(tmp_path_factory):
    with running_server(tmp_path_factory.mktemp("fresh")) as port:
        yield port


def test_a_server_listens_on_this_machine_only(fresh_server):
    found = [c.laddr for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == fresh_server]
    assert {address.ip for address in found} <= {"127.0.0.1", "::1"}
    assert found


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("model: {id: tiny}\naccounts: {sign_up: open}", "unknown key 'accounts.sign_up'"),
        ("model: {id: tiny}\naccounts: {signup: maybe}", "'accounts.signup' is 'maybe'"),
        ("model: {id: tiny}\ndatabase: {url: 'nonsense'}", "check database.url"),
        ("model: [", "not valid YAML"),
        ("model: {id: tiny}\naccounts: {key_file: config.yaml/key}", "or name another file in accounts.key_file"),
        ("model: {id: tiny}\nuploads: {directory: config.yaml}", "correct 'uploads.directory'"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_no_server(tmp_path, config, says):
    server, port = start_server(tmp_path, config)
    try:
        assert server.wait(timeout=60) == 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
    (line,) = (tmp_path / "log").read_text("utf-8").split("\n")[:-1]  # nor does it say that there is something to see
    assert line.startswith("brainmri: ")
    assert says in line
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize(
    ("role", "says"),
    [
        ("reader", "not open to the role “reader”, only to “radiologist”; ask an administrator."),
        ("admin", "not open to the role “admin”, only to “radiologist”."),
    ],
)
def test_who_is_turned_away_reads_whom_the_page_is_for(make_user, role, says):
    def turned_away():
        from brainmri.ui import auth

        auth.refusal_page(("radiologist",))

    page = AppTest.from_function(turned_away)
    page.session_state[state.SESSION_KEY] = accounts.start_session(state.database(), make_user(role).id, days=1)
    page.run()
    assert page.info[0].value.endswith(says)


# --- in a real browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def address(server_folder):
    with running_server(server_folder) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def context(chromium, address):
    context = chromium.new_context()
    context.set_default_timeout(30_000)
    yield context
    context.close()


def sign_up(page, username, code=""):
    page.get_by_role("tab", name="Sign up").click()
    form = page.get_by_test_id("stForm").filter(has_text="First name")
    form.get_by_label("First name").fill("Ada")
    form.get_by_label("User name").fill(username)
    form.get_by_label("Password", exact=True).fill(PASSWORD)
    form.get_by_label("Repeat password").fill(PASSWORD)
    form.get_by_label("Code (optional)").fill(code)
    form.get_by_role("button", name="Sign up").click()


def sign_in(page, username):
    form = page.get_by_test_id("stForm").filter(has_not_text="First name").first
    form.get_by_label("User name").fill(username)
    form.get_by_label("Password", exact=True).fill(PASSWORD)
    form.get_by_role("button", name="Sign in").click()


def kept_cookie(context, forgotten=False):
    """The session's cookie once the browser has it (or has it no more)."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        cookies = [c for c in context.cookies() if c["name"] == "brainmri"]
        if bool(cookies) is not forgotten:
            return cookies[0] if cookies else None
        time.sleep(0.1)
    raise AssertionError(f"cookie {'still' if forgotten else 'never'} there")


def test_the_walk_through_the_gate(context, address, server_folder):
    code = re.search(r"become one: (\S+)", (server_folder / "log").read_text("utf-8")).group(1)
    page = context.new_page()
    page.goto(f"{address}/account")
    sign_up(page, "ada", code)
    page.get_by_role("heading", name="Account").wait_for()  # where the address pointed to
    assert page.url == f"{address}/account"
    page.get_by_text("role admin").wait_for()

    cookie = kept_cookie(context)
    assert cookie["sameSite"] == "Strict"
    assert 6.9 < (cookie["expires"] - time.time()) / 86400 < 7.1
    token = jwt.decode(cookie["value"], options={"verify_signature": False})
    assert set(token) == {"session_id", "exp"}

    for path in ("", "overview"):  # the start page answers at its own address, too
        page.goto(f"{address}/{path}")
        page.get_by_role("heading", name="Brain MRI classifier").wait_for()
        page.wait_for_timeout(500)
        assert page.title() == "Overview · Brain MRI"
        assert page.get_by_text("Page not found").count() == 0
        assert page.get_by_test_id("stSidebarNavLink").filter(has_text="Overview").count() == 1
    page.goto(f"{address}/pacs")
    page.get_by_text("not open to the role “admin”, only to “radiologist”.").wait_for()
    page.goto(f"{address}/account")
    page.get_by_role("heading", name="Account").wait_for()
    page.get_by_test_id("stSidebarNavLink").filter(has_text="Users").click()
    page.get_by_role("heading", name="Users").wait_for()
    second = context.new_page()
    second.goto(f"{address}/users")
    second.get_by_role("heading", name="Users").wait_for()

    page.get_by_test_id("stSidebar").get_by_role("button", name="Sign out").click()
    page.get_by_role("tab", name="Sign up").wait_for()
    kept_cookie(context, forgotten=True)
    for leave in (page.go_back, page.reload):
        leave()
        page.get_by_role("tab", name="Sign up").wait_for()
        page.wait_for_timeout(1000)
        assert page.url == f"{address}/account"
        assert page.get_by_text("Where you are signed in").count() == 0
        assert page.get_by_test_id("stSidebarNavLink").count() == 0

    second.get_by_role("tab", name="Add a user").click()
    second.get_by_role("button", name="Add user").click()  # the next thing done there
    second.get_by_role("tab", name="Sign up").wait_for()

    context.add_cookies([cookie])  # someone kept a copy
    page.goto(f"{address}/users")
    page.get_by_role("tab", name="Sign up").wait_for()
    assert page.get_by_role("heading", name="Users").count() == 0


def test_signing_in_again_at_once_is_not_lost(context, address):
    page = context.new_page()
    page.goto(f"{address}/account")
    sign_up(page, "eve")
    for pause_ms in (0, 100, 300, 700):
        page.get_by_test_id("stSidebar").get_by_role("button", name="Sign out").click()
        page.get_by_role("tab", name="Sign up").wait_for()
        page.wait_for_timeout(pause_ms)
        sign_in(page, "eve")
        page.get_by_role("heading", name="Account").wait_for()
        assert kept_cookie(context)


@pytest.mark.parametrize("forge", ["key", "none", "expired", "rubbish"])
def test_forged_cookies_open_nothing(context, address, forge):
    claims = {"session_id": "x" * 43, "username": "ada", "exp": time.time() + (-1 if forge == "expired" else 1000)}
    token = {
        "none": jwt.encode(claims, "", algorithm="none"),
        "rubbish": "%00%ff",
    }.get(forge) or jwt.encode(claims, "some key of somebody else, long enough", algorithm="HS256")
    context.add_cookies([{"name": "brainmri", "value": token, "url": address}])
    page = context.new_page()
    page.goto(address)
    page.get_by_role("tab", name="Sign up").wait_for()


def test_a_password_change_signs_out_the_other_browser(chromium, context, address):
    page = context.new_page()
    page.goto(f"{address}/account")
    sign_up(page, "bob")
    page.get_by_role("heading", name="Account").wait_for()
    kept_cookie(context)
    elsewhere = chromium.new_context()
    other = elsewhere.new_page()
    other.goto(f"{address}/account")
    sign_in(other, "bob")
    other.get_by_role("heading", name="Account").wait_for()
    kept_cookie(elsewhere)

    page.get_by_label("Current password").fill(PASSWORD)
    page.get_by_label("New password", exact=True).fill("another long password")
    page.get_by_label("Repeat new password").fill("another long password")
    page.get_by_role("button", name="Change password").click()
    page.get_by_text("Your password is changed").wait_for()
    page.reload()
    page.get_by_role("heading", name="Account").wait_for()
    other.reload()
    other.get_by_role("tab", name="Sign up").wait_for()
    elsewhere.close()


def test_a_guest_leaves_no_trace(context, address, server_folder):
    page = context.new_page()
    page.goto(address)
    page.get_by_role("button", name="Try as a guest").click()
    page.get_by_text("nothing is stored").first.wait_for()
    page.goto(f"{address}/account")  # a new visit: a guest has no cookie
    page.get_by_role("tab", name="Sign up").wait_for()
    assert [c["name"] for c in context.cookies() if c["name"] == "brainmri"] == []
    assert not (server_folder / "uploads").exists()
