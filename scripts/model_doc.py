"""Fill the table in docs/model.md, and the shipped card's metrics, from the saved runs in evaluations/.

python scripts/model_doc.py
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

from brainmri.config import load_settings
from brainmri.model import read_card, write_card

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("accuracy", "balanced_accuracy", "macro_f1", "ece")


SEARCH = {
    "name": "Row",
    "adds": "Adds",
    "seed": "Seed",
    "epochs": "Epochs",
    "minutes": "Minutes",
    "val_accuracy": "Clean val",
    "test_accuracy": "Clean test",
    "test_macro_f1": "Macro F1",
    "test_ece": "ECE",
    "test_auc_tumour": "Tumour AUC",
    "lgg_auc_flair": "lgg FLAIR AUC",
    "lgg_auc_post": "lgg post AUC",
}


def search_table() -> str:
    """The logged rows of ``brainmri search``."""
    with (ROOT / "evaluations" / "search.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = ["| " + " | ".join(SEARCH.values()) + " |", "|---" * len(SEARCH) + "|"]
    for row in rows:
        cells = [f"{float(row[c]):.3f}" if c.startswith(("val_", "test_", "lgg_")) else row[c] for c in SEARCH]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Write the table between the markers."""
    card_metrics = {}
    rows = ["| Run | n | Accuracy | Balanced accuracy | Macro F1 | ECE |", "|---|---|---|---|---|---|"]
    for path in sorted((ROOT / "evaluations").glob("*/metrics.json")):
        metrics = json.loads(path.read_text("utf-8"))
        flat = metrics | (metrics.get("calibration") or {})
        # The card names a run by its split; a run without typed labels has no accuracy to show there.
        split = path.parent.name.removeprefix(f"{metrics['model']['id']}-")
        if not isinstance(flat.get("accuracy"), float):
            rows.append(f"| {path.parent.name} | {metrics.get('n', '–')} | – | – | – | – |")
            continue
        card_metrics[split] = {c: flat[c] for c in ("n", *COLUMNS) if isinstance(flat.get(c), int | float)}
        if isinstance(flat.get("roc_auc"), dict) and isinstance(flat["roc_auc"].get("macro"), float):
            card_metrics[split]["roc_auc"] = flat["roc_auc"]["macro"]
        figures = [f"{flat[c]:.3f}" if isinstance(flat.get(c), int | float) else "–" for c in COLUMNS]
        rows.append(f"| {path.parent.name} | {metrics.get('n', '–')} | " + " | ".join(figures) + " |")
    document = ROOT / "docs" / "model.md"
    text = document.read_text("utf-8")
    table = "\n".join(rows)
    text = re.sub(
        r"<!-- figures -->.*<!-- /figures -->", f"<!-- figures -->\n\n{table}\n\n<!-- /figures -->", text, flags=re.S
    )
    text = re.sub(
        r"<!-- search -->.*<!-- /search -->",
        f"<!-- search -->\n\n{search_table()}\n\n<!-- /search -->",
        text,
        flags=re.S,
    )
    document.write_text(text, "utf-8")
    settings = load_settings().model
    card = read_card(settings.id, settings.directory)
    write_card(
        card.model_copy(update={"metrics": dict(sorted(card_metrics.items(), key=lambda kv: kv[0] != "clean-test"))}),
        settings.directory,
    )


if __name__ == "__main__":
    main()
