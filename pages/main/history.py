"""History: the answers that were given, as they were given."""

import streamlit as st

from brainmri.storage import sees_all
from brainmri.ui import history, state
from brainmri.ui.theme import page_header

user = state.current_user()
page_header("History", f"{'All' if sees_all(user) else 'Your'} cases, as they were answered.")
if case := st.query_params.get("case"):
    history.show_case(case, user)
else:
    history.show_list(user)
