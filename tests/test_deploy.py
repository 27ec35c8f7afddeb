"""What the container is made of and runs with."""

from __future__ import annotations

import ast
import fnmatch
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from brainmri.config import load_settings

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def compose():
    return yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))


def test_what_the_container_writes_lies_in_its_volume(monkeypatch):
    monkeypatch.delenv("BRAINMRI_DATA", raising=False)
    settings = load_settings(ROOT / "deploy" / "config.yaml")
    written = [settings.uploads.directory, settings.accounts.key_file, settings.dicom.key_file, settings.pacs.spool]
    assert all(path.is_relative_to("/data") for path in written)
    assert settings.database.url == "sqlite:////data/brainmri.db"
    assert settings.model.directory.resolve() == ROOT / "models"
    assert settings.evaluation.directory.resolve() == ROOT / "evaluations"
    assert (settings.accounts.signup, settings.accounts.guest) == ("invite", False)


def test_services_share_the_volume_and_are_confined(compose):
    assert set(compose["services"]) == {"app", "pacs"}
    for service in compose["services"].values():
        assert service["volumes"] == ["state:/data"]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
    assert compose["services"]["app"]["ports"] == ["127.0.0.1:8501:8501"]


def test_a_configuration_of_ones_own_lies_where_both_services_look(compose):
    text = (ROOT / "docs" / "deployment.md").read_text("utf-8")
    (line,) = re.findall(r"```yaml\n(volumes: .*)\n```", text)
    state, own = yaml.safe_load(line)["volumes"]
    assert [state] == compose["x-confined"]["volumes"]
    assert f"`volumes: [{state}]`" in text
    assert f"volumes: [{state}]\n" in (ROOT / "compose.yaml").read_text("utf-8")
    image = (ROOT / "Dockerfile").read_text("utf-8")
    assert own.split(":")[1] == re.search(r"BRAINMRI_CONFIG=(\S+)", image).group(1)
    user = re.search(r"--uid (\d+)", image).group(1)
    assert f"The container's user, {user}, must be able to read it" in text


def test_the_listeners_command_exists(compose):
    from brainmri.cli import app

    program, *words, option, _ = compose["services"]["pacs"]["command"]
    assert (program, option) == ("brainmri", "--user")
    assert "--user" in CliRunner().invoke(app, [*words, "--help"]).output


def test_the_image_gets_all_that_the_program_needs_and_no_data():
    """.dockerignore, read as Docker does: the last line that fits a path decides."""
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]

    def sent(path: str) -> bool:
        kept = True
        for rule in rules:
            pattern = rule.removeprefix("!")
            parents = [path, *map(str, Path(path).parents)]
            if any(fnmatch.fnmatch(p, pattern) and p.count("/") == pattern.count("/") for p in parents):
                kept = rule.startswith("!")
        return kept

    needed = ["requirements.txt", "pyproject.toml", "Home.py", ".streamlit/config.toml", "brainmri/config.py"]
    needed += ["pages/main/predict.py", "models/vgg16-brainmri.keras", "data/splits/clean_leaks.csv"]
    needed += ["evaluations/search.csv", "recipes/release.yaml", "deploy/config.yaml"]
    assert [path for path in needed if not sent(path)] == []
    assert [path for path in needed if not (ROOT / path).is_file()] == []
    private = ["data/brainmri.db", "data/uid.key", "data/pacs/incoming/a.dcm", "uploads/a.png"]
    private += [".git/config", ".venv/bin/x", "runs/release/a.keras"]
    assert [path for path in private if sent(path)] == []


def test_the_image_installs_what_the_project_pins():
    text = (ROOT / "Dockerfile").read_text("utf-8")
    assert "-r requirements.txt" in text
    (postgres,) = re.findall(r"postgres = \[(.*)\]", (ROOT / "pyproject.toml").read_text("utf-8"))
    assert postgres in text
    ports = re.search(r"^EXPOSE (.*)$", text, re.MULTILINE).group(1).split()
    assert ports == ["8501", str(load_settings(ROOT / "deploy" / "config.yaml").pacs.port)]


def test_what_is_imported_is_listed():
    text = (ROOT / "requirements.txt").read_text("utf-8") + (ROOT / "pyproject.toml").read_text("utf-8").lower()
    listed = {name.lower().replace("_", "-") for name in re.findall(r"[A-Za-z][\w-]*", text)}
    imported = set()
    for file in [ROOT / "Home.py", *(ROOT / "brainmri").rglob("*.py"), *(ROOT / "pages").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    made_by = importlib.metadata.packages_distributions()
    foreign = imported - set(sys.stdlib_module_names) - {"brainmri"}
    missing = [m for m in foreign if not {d.lower().replace("_", "-") for d in made_by.get(m, [m])} & listed]
    assert missing == []


# --- make ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path):
    """`make env` in a folder with this Makefile; `interpreter(path, **)` puts a Python there that says it is one."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.txt", "pyproject.toml"):
        (tmp_path / name).touch()

    def run(python):
        command = ["make", "env", f"PYTHON={python}"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    def interpreter(path, version="3.12", pip=True):
        """Checks its version, has pip or not, and makes a virtual environment of its like."""
        path.parent.mkdir(parents=True, exist_ok=True)
        checked = f"import sys; sys.version_info = ({version.replace('.', ', ')}, 0); exec(sys.argv[1])"
        path.write_text(
            "#!/bin/sh\n"
            f'echo "$0 $*" >> {tmp_path}/calls\n'
            f'case "$*" in -c*) exec {sys.executable} -c \'{checked}\' "$2";;\n'
            f"'-m pip'*) exit {int(not pip)};;\n"
            "'-m venv'*) rm -rf .venv; mkdir -p .venv/bin; cp \"$0\" .venv/bin/python;; esac\n"
        )
        path.chmod(0o755)
        return path

    return run, interpreter


@pytest.mark.parametrize("left", [None, {"pip": False}, {"version": "3.14"}, {"version": "3.10"}])
def test_make_replaces_an_environment_that_is_not_whole_or_of_another_python(make, tmp_path, left):
    run, interpreter = make
    if left is not None:
        interpreter(tmp_path / ".venv" / "bin" / "python", **left)
    done = run(interpreter(tmp_path / "python"))
    assert done.returncode == 0, done.stderr
    assert "-m venv --clear .venv" in (tmp_path / "calls").read_text("utf-8")
    assert (tmp_path / ".venv" / ".core").is_file()


def test_make_keeps_an_environment_that_works(make, tmp_path):
    run, interpreter = make
    interpreter(tmp_path / ".venv" / "bin" / "python")
    done = run("/nowhere/python")
    assert done.returncode == 0, done.stderr
    assert "-m venv" not in (tmp_path / "calls").read_text("utf-8")


@pytest.mark.parametrize("version", ["2.7", "3.10", "3.14"])
def test_make_says_in_one_line_which_pythons_work(make, tmp_path, version):
    run, interpreter = make
    done = run(interpreter(tmp_path / "python", version))
    assert done.returncode != 0
    line, stopped = done.stderr.splitlines()
    assert line.startswith("brainmri needs Python 3.11 to 3.13, and ")
    assert f"is {version}; " in line
    assert stopped.startswith("make")
    assert not (tmp_path / ".venv").exists()
    assert 'requires-python = ">=3.11,<3.14"' in (ROOT / "pyproject.toml").read_text("utf-8")
