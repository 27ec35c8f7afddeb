"""Every command in the README runs, on synthetic samples and a miniature recipe."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", README, re.S) for line in block.splitlines()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with what the commands speak of: scans/, slices.csv, recipe.yaml, and a configuration of its own."""
    from brainmri import synthetic

    folder = tmp_path_factory.mktemp("readme")
    (folder / "scans").mkdir()
    rows = ["path,label,split"]
    for label, sample in synthetic.samples().items():
        Image.fromarray(np.asarray(sample.slice.pixels)).save(folder / "scans" / f"{label}.png")
        for copy, split in enumerate(("train", "val", "test", "test")):
            shutil.copy(folder / "scans" / f"{label}.png", folder / f"{label}{copy}.png")
            rows.append(f"{label}{copy}.png,{label},{split}")
    (folder / "slices.csv").write_text("\n".join(rows) + "\n")
    recipe = {
        "name": "mine",
        "sources": [{"name": "mine", "manifest": "slices.csv", "images": "."}],
        "stages": [{"input_size": 32, "epochs": 1, "learning_rate": 1e-3}],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    settings = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))
    settings["model"]["directory"] = str(ROOT / "models")
    settings["data"] = {"root": "."}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "data").mkdir()
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_command(command, workplace):
    words = shlex.split(command)
    if words[0] == "make":
        done = subprocess.run([*words[:1], "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return
    environment = {k: v for k, v in os.environ.items() if k != "BRAINMRI_DATA"}
    environment["BRAINMRI_CONFIG"] = str(workplace / "config.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "brainmri", *words[1:]],
        cwd=workplace,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    if "--output" in words:
        output = workplace / words[words.index("--output") + 1]
        assert any(output.iterdir())


def test_help_is_written_for_who_reads_it():
    from typer.main import get_command

    from brainmri.cli import app

    def helps(command):
        yield command.help or ""
        for part in getattr(command, "commands", {}).values():
            yield from helps(part)

    assert [text for text in helps(get_command(app)) if "``" in text or "module" in text] == []


def test_readme_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_readme_names_every_command_and_every_document():
    from typer.main import get_command

    from brainmri.cli import app

    table = "\n".join(line for line in README.splitlines() if line.startswith("| `"))
    assert not set(get_command(app).commands) - set(re.findall(r"`([a-z-]+)`", table))
    for document in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{document.name})" in README
