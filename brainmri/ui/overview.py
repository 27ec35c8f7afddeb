"""What the Overview page shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from brainmri.look import DECISION_TITLES, limit_texts, metrics_table
from brainmri.types import CLASS_NAMES
from brainmri.ui.theme import NOTICE, class_title, link, text_table

if TYPE_CHECKING:
    from brainmri.accounts import User
    from brainmri.model import ModelCard


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
            st.markdown("**Known limits**\n" + "\n".join(f"- {limit}" for limit in limit_texts(card.limits)))
        with st.expander("Data, recipe and hashes", icon=":material/list_alt:"):
            st.json(card.model_dump(mode="json", exclude={"metrics", "limits", "intended_use"}), expanded=2)
