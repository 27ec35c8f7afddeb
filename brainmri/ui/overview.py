"""What the Overview page shows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import streamlit as st

from brainmri.look import DECISION_TITLES
from brainmri.types import CLASS_NAMES
from brainmri.ui.theme import NOTICE, class_title, link, text_table

if TYPE_CHECKING:
    from brainmri.accounts import User
    from brainmri.model import ModelCard

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


def show_welcome(user: User) -> None:
    """The notice and the three steps, each with its page."""
    st.warning(f"**{NOTICE}** Do not use it to decide about a patient.", icon=":material/science:")
    steps = [
        (
            "1 · Choose an image",
            "Drop a slice, a folder or a DICOM file, or press a sample.",
            "pages/main/predict.py",
            "Open Predict",
        ),
        (
            "2 · Read the answer",
            f"A class with four probabilities; “{DECISION_TITLES['undecided']}” where they do not tell it, "
            f"“{DECISION_TITLES['rejected']}” where it is no brain MRI.",
            None,
            "",
        ),
        (
            "3 · Find it again",
            "Every answer is kept as it was given; nothing is computed anew in silence.",
            "pages/main/history.py",
            "Open History",
        ),
    ]
    if user.id is None:
        steps[2] = ("3 · Keep it", "A guest session stores nothing. With an account every answer is kept.", None, "")
    for column, (title, text, page, label) in zip(st.columns(3), steps, strict=True):
        with column, st.container(border=True, height="stretch"):
            st.subheader(title, anchor=False)
            st.write(text)
            if page:
                link(page, label)


def show_scope() -> None:
    """What it is and is not."""
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("What it is", anchor=False)
        st.markdown(
            f"- A classifier of **single slices** into {', '.join(class_title(c).lower() for c in CLASS_NAMES)}.\n"
            "- Open about what it does not know: calibrated probabilities, a 95 % prediction set, and a gate that "
            "turns away what is no brain MRI.\n"
            "- Traceable: each answer names its model, weights, engine and software version."
        )
    with right:
        st.subheader("What it is not", anchor=False)
        st.markdown(
            "- Not a medical device and **not a diagnosis**.\n"
            "- Not a segmentation: it does not outline, measure or grade a tumour.\n"
            "- Not a judge of other diseases: stroke, bleeding, inflammation or a normal variant still get one of its "
            "four classes."
        )


def show_card(card: ModelCard) -> None:
    """The model card: figures named by split, data, recipe, limits."""
    st.subheader("Model card", anchor=False)
    with st.container(border=True):
        st.markdown(f"**{card.id}** · {card.architecture} · trained {card.created}")
        if card.intended_use:
            st.markdown(card.intended_use)
        table = metrics_table(card.metrics)
        if not table:
            st.info("This card holds no figures yet: the model has not been evaluated.", icon=":material/pending:")
        else:
            text_table({name: list(row.values()) for name, row in table.items()}, list(next(iter(table.values()))))
            link("pages/explore/evaluation.py", "Intervals, and what flatters these figures")
        if card.limits:
            limits = (re.sub(r" \(docs/\S+\)", "", limit) for limit in card.limits)  # no page of the dashboard
            st.markdown("**Known limits**\n" + "\n".join(f"- {limit}" for limit in limits))
        with st.expander("Data, recipe and hashes", icon=":material/list_alt:"):
            st.json(card.model_dump(mode="json", exclude={"metrics", "limits", "intended_use"}), expanded=2)


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
