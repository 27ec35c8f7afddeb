"""The training notebook runs from top to bottom on a tiny configuration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import yaml
from PIL import Image

from brainmri.types import CLASS_NAMES

ROOT = Path(__file__).resolve().parent.parent
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1] + "/notebooks/model_training.ipynb", as_version=4)
NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": sys.argv[1]}}).execute()
nbformat.write(notebook, sys.argv[2])
"""


def test_notebook_trains_evaluates_and_plots(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows = ["path,label,split"]
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{CLASS_NAMES[i % 4]},{'val' if i >= 8 else 'train'}")
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    recipe = {
        "name": "tiny",
        "sources": [{"name": "noise", "manifest": str(tmp_path / "m.csv"), "images": "."}],
        "stages": [{"input_size": 32, "epochs": 1, "learning_rate": 1e-3}],
        "batch_size": 4,
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setenv("BRAINMRI_DATA", str(tmp_path))
    monkeypatch.setenv("BRAINMRI_NOTEBOOK_RECIPE", str(tmp_path / "tiny.yaml"))
    monkeypatch.setenv("BRAINMRI_NOTEBOOK_RUN", str(tmp_path / "run"))
    monkeypatch.setenv("BRAINMRI_NOTEBOOK_WEIGHTS", "none")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # In a process of its own: Playwright's tests leave an event loop running in this one.
    executed = tmp_path / "executed.ipynb"
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(ROOT), str(executed)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    notebook = nbformat.read(executed, as_version=4)
    assert "notebook.keras" in {p.name for p in (tmp_path / "run").iterdir()}
    pictures = [o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 2
