"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

PASSWORD = "correct horse battery"
PAGES = Path(__file__).resolve().parent.parent / "pages"
BENCHMARKS = PAGES.parent / "benchmarks"
SCRIPTS = PAGES.parent / "scripts"
TINY_BLOCKS = ((4, 1), (8, 1), (8, 1), (8, 1), (16, 3))


def script(name: str, folder: Path = BENCHMARKS):
    """A file of ``benchmarks/`` or ``scripts/`` as a module."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> Path:
    """A models folder with `tiny`: a VGG16 in miniature (random weights), its card and its bf16 OpenVINO network."""
    from brainmri import model, optimize

    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "BLOCKS", TINY_BLOCKS)
        import keras

        keras.utils.set_random_seed(0)
        card = {
            "id": "tiny",
            "class_names": model.CLASS_NAMES,
            "created": "2026-01-01",
            "architecture": "vgg16 in miniature",
            "preprocessing": {"function": "brainmri.imaging.preprocess", "size": 128},
        }
        written = model.save_model(model.build_network(), card, folder)
        optimize.write_optimised(optimize.export_network(written, folder), "bf16", written, folder)
    return folder


@pytest.fixture(scope="session")
def native_bf16() -> str:
    """What this processor computes a bf16 network in: bf16 itself, or float32 where it lacks bfloat16."""
    import openvino

    return "bf16" if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "float32"


@pytest.fixture(scope="session")
def two_gflop_s() -> float:
    """Seconds of a float32 product of 1024 x 1024 matrices here: about what int8 takes for a prediction, anywhere."""
    a = np.ones((1024, 1024), np.float32)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.fixture
def tiny_blocks(monkeypatch) -> None:
    """Let the Keras engine load `tiny` in this process."""
    from brainmri import model

    monkeypatch.setattr(model, "BLOCKS", TINY_BLOCKS)


@pytest.fixture(scope="session")
def slices() -> list[np.ndarray]:
    """Twelve grey pictures with a bright disc each, of several sizes, uint8."""
    rng = np.random.default_rng(0)
    pictures = []
    for index in range(12):
        height, width = 96 + 16 * (index % 5), 112 + 16 * (index % 3)
        rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        disc = (rows**2 + columns**2 < 0.7) * (120 + 60 * np.sin(5 * rows + index))
        pictures.append((disc + rng.integers(0, 40, (height, width)) * (disc > 0)).clip(0, 255).astype(np.uint8))
    return pictures


@pytest.fixture
def app_database_url() -> str:
    """URL for `app_settings`; empty for a new SQLite file. `on_both_databases` is what others override it with."""
    return ""


def on_both_databases():
    """An `app_database_url` that runs a file's tests on SQLite and on PostgreSQL."""

    @pytest.fixture(params=["sqlite", "postgresql"])
    def app_database_url(request) -> str:
        return "" if request.param == "sqlite" else request.getfixturevalue("postgresql_url")

    return app_database_url


@pytest.fixture
def app_settings(tmp_path, monkeypatch, tiny_models, app_database_url):
    """Settings of a fresh installation in a temporary folder with the model `tiny`; pages and command line see them."""
    from brainmri import accounts, config

    path = tmp_path / "config.yaml"
    database = f"database: {{url: '{app_database_url}'}}\n" if app_database_url else ""
    path.write_text(f"model: {{id: tiny, directory: '{tiny_models}'}}\n{database}", "utf-8")
    monkeypatch.setenv("BRAINMRI_CONFIG", str(path))
    monkeypatch.setattr(accounts, "BCRYPT_ROUNDS", 4)
    return config.load_settings()


@pytest.fixture
def make_user(app_settings):
    """`make_user(role="reader", username=None) -> User` in the application's database; the password is PASSWORD."""
    from brainmri import accounts
    from brainmri.ui import state

    def make(role: str = "reader", username: str | None = None) -> accounts.User:
        return accounts.add_user(
            state.database(), None, username=username or role, name=role.title(), role=role, password=PASSWORD
        )

    return make


@pytest.fixture
def open_page(make_user):
    """`open_page("main/predict.py", role="reader")`: an AppTest of one page, signed in (role or User) and run once."""
    from streamlit.testing.v1 import AppTest

    from brainmri import accounts
    from brainmri.ui import state

    def open_(file: str, role="reader", *, timeout: float = 60, session: dict | None = None) -> AppTest:
        page = AppTest.from_file(str(PAGES / file), default_timeout=timeout)
        if role == "guest":
            page.session_state[state.GUEST_KEY] = True
        elif role:
            user = make_user(role) if isinstance(role, str) else role
            page.session_state[state.SESSION_KEY] = accounts.start_session(state.database(), user.id, days=1)
        for key, value in (session or {}).items():
            page.session_state[key] = value
        return page.run()

    return open_


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory):
    """URL of a real PostgreSQL server started for the tests, without the database's name."""
    import glob
    import tempfile

    programs = [os.path.dirname(shutil.which("initdb") or ""), *sorted(glob.glob("/usr/lib/postgresql/*/bin"))]
    programs = [p for p in programs if p and os.path.exists(f"{p}/initdb")]
    try:
        import psycopg
    except ImportError:
        psycopg = None
    if not programs or psycopg is None:
        need_real_part("PostgreSQL: apt-get install postgresql, .venv/bin/pip install -e '.[postgres]'")
    # The server refuses to run as root; Debian's package brings a user for it.
    owner = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    port = free_port()
    folder = tempfile.mkdtemp(prefix="brainmri-postgresql-")  # pytest's own folders are closed to other users
    if owner:
        shutil.chown(folder, "postgres", "postgres")
    run = {"check": True, "cwd": "/", "stdout": subprocess.DEVNULL, **owner}
    subprocess.run([f"{programs[-1]}/initdb", "-D", f"{folder}/db", "-U", "tests", "-A", "trust"], **run)
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    server = [f"{programs[-1]}/pg_ctl", "-D", f"{folder}/db", "-l", f"{folder}/log", "-w"]
    subprocess.run([*server, "-o", options, "start"], **run)
    yield f"postgresql+psycopg://tests@127.0.0.1:{port}"
    subprocess.run([*server, "-m", "immediate", "stop"], **run)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql_url(postgresql_server):
    """URL of an empty database."""
    from uuid import uuid4

    import sqlalchemy as sa

    name = f"t{uuid4().hex}"
    engine = sa.create_engine(f"{postgresql_server}/postgres", isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} LOCALE 'C' ENCODING 'UTF8' TEMPLATE template0")
    yield f"{postgresql_server}/{name}"
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def need_real_part(what: str) -> None:
    """Skip where a real part is missing, and fail where CI promises that it is there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"missing under CI: {what}")
    pytest.skip(f"needs {what}")


def free_port() -> int:
    """A port that nothing listens at, a moment ago."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class AppServer:
    """`streamlit run Home.py` over a configuration (by default the test's own); can be stopped and started again."""

    def __init__(self, log: Path, config: Path | None = None):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self.environment = os.environ | ({"BRAINMRI_CONFIG": str(config)} if config else {})
        self.start()

    def start(self) -> None:
        options = ["--server.port", str(self.port), "--server.fileWatcherType", "none"]
        command = [sys.executable, "-m", "streamlit", "run", "Home.py", *options]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, cwd=PAGES.parent, env=self.environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2).close()
                return
            except OSError:
                assert self.process.poll() is None, self.log.read_text("utf-8", "replace")[-2000:]
                time.sleep(0.25)
        raise AssertionError("the server did not answer within 90 s")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def server(app_settings, tmp_path):
    """The app over the test's configuration."""
    running = AppServer(tmp_path / "server.log")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    """A real PACS, empty: Debian's Orthanc. Yields how the configuration names it and where its REST interface is."""
    import json

    from brainmri.config import PacsServer

    program = shutil.which("Orthanc", path=f"{os.environ.get('PATH')}:/usr/sbin")
    if program is None:
        need_real_part("Orthanc: apt-get install orthanc")
    folder, dicom, http = tmp_path_factory.mktemp("orthanc"), free_port(), free_port()
    always = {f"DicomAlwaysAllow{what}": True for what in ("Echo", "Store", "Find", "Get")}
    configuration = {
        "StorageDirectory": str(folder / "images"),
        "IndexDirectory": str(folder / "images"),
        "DicomPort": dicom,
        "HttpPort": http,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": True,
        "DefaultEncoding": "Utf8",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        **always,
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    process = subprocess.Popen(
        [program, str(folder / "orthanc.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url, deadline = f"http://127.0.0.1:{http}", time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{url}/system", timeout=2).close()
            break
        except OSError:
            assert process.poll() is None, "Orthanc ended"
            assert time.monotonic() < deadline, "Orthanc does not answer"
            time.sleep(0.1)
    yield PacsServer(name="Archive", ae_title="ORTHANC", host="127.0.0.1", port=dicom), url
    process.terminate()
    process.wait(timeout=30)


@pytest.fixture(scope="module")
def chromium():
    """Debian's Chromium under Playwright."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        need_real_part("Chromium and Playwright: apt-get install chromium, pip install playwright")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()
