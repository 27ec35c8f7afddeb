"""Words and colours of answers, the same on pages and in figures."""

from __future__ import annotations

CLASS_COLOURS = {"glioma": "#d1495b", "meningioma": "#c9851b", "notumor": "#2a9d78", "pituitary": "#5b7bd5"}
"""Readable on a light and a dark ground, and apart from each other for colour-blind readers; never the only cue."""

DECISION_TITLES = {"class": "Answered", "undecided": "Undecided", "rejected": "Rejected"}
DECISION_COLOURS = {"undecided": "#8a949a", "rejected": "#5a656b"}
"""Of slices that have no class."""
