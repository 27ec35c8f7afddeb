"""What the container is made of and runs with."""

from __future__ import annotations

import fnmatch
import re
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
