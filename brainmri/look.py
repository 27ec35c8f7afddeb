"""Words and colours of answers, the same on pages and in figures."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

CLASS_COLOURS = {"glioma": "#d1495b", "meningioma": "#c9851b", "notumor": "#2a9d78", "pituitary": "#5b7bd5"}
"""Readable on a light and a dark ground, and apart from each other for colour-blind readers; never the only cue."""

DECISION_TITLES = {"class": "Answered", "undecided": "Undecided", "rejected": "Rejected"}
DECISION_COLOURS = {"undecided": "#8a949a", "rejected": "#5a656b"}
"""Of slices that have no class."""

_METRICS = {
    "n": "Images",
    "accuracy": "Accuracy",
    "sensitivity": "Tumours found",
    "specificity": "No tumour recognised",
    "roc_auc": "Macro AUC",
}
_SPLITS = {
    "clean-test": "Clean test",
    "lgg-test": "LGG, two sequences of one source",
    "brisc-notumor-test": "BRISC, healthy heads",
    "elsewhere-test": "Heads of other scanners",
    "official-test": "Official test",
}
"""A card's splits as a reader knows them, in the order to read them; what training has seen most of comes last."""


def metrics_table(metrics: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Split -> column -> text, of the splits that the card has figures for; all with the same columns.

    A split that was partly seen in training says so.
    """
    rows: dict[str, dict[str, str]] = {}
    for split in (*(s for s in _SPLITS if s in metrics), *(s for s in metrics if s not in _SPLITS)):
        values = metrics[split]
        if not isinstance(values, dict):
            continue
        row: dict[str, str] = {}
        for key, title in _METRICS.items():
            value = values.get(key)
            if isinstance(value, dict):
                value = value.get("macro")
            if isinstance(value, int | float) and not isinstance(value, bool):
                row[title] = f"{value:,}" if key == "n" else f"{value:.3f}"
        if row:
            seen = values.get("seen_in_training")
            name = _SPLITS.get(split, split.replace("_", " "))
            rows[f"{name} ({seen:.0%} of it seen in training)" if seen else name] = row
    columns = [t for t in _METRICS.values() if any(t in row for row in rows.values())]
    return {name: {title: row.get(title, "–") for title in columns} for name, row in rows.items()}


def limit_texts(limits: Iterable[str]) -> list[str]:
    """A card's limits as sentences for a reader who has no docs folder at hand."""
    return [re.sub(r" \(docs/\S+\)", "", limit) for limit in limits]
