"""Fill the table in docs/model.md from the saved runs in evaluations/.

python scripts/model_doc.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("accuracy", "balanced_accuracy", "macro_f1", "expected_calibration_error")


def main() -> None:
    """Write the table between the markers."""
    rows = ["| Run | n | Accuracy | Balanced accuracy | Macro F1 | ECE |", "|---|---|---|---|---|---|"]
    for path in sorted((ROOT / "evaluations").glob("*/metrics.json")):
        metrics = json.loads(path.read_text("utf-8"))
        flat = metrics | metrics.get("calibration", {})
        figures = [f"{flat[c]:.3f}" if isinstance(flat.get(c), int | float) else "–" for c in COLUMNS]
        rows.append(f"| {path.parent.name} | {metrics.get('n', '–')} | " + " | ".join(figures) + " |")
    document = ROOT / "docs" / "model.md"
    text = document.read_text("utf-8")
    table = "\n".join(rows)
    text = re.sub(
        r"<!-- figures -->.*<!-- /figures -->", f"<!-- figures -->\n\n{table}\n\n<!-- /figures -->", text, flags=re.S
    )
    document.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
