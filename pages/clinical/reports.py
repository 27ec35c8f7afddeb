"""Reports: findings on a kept case, as a PDF that can be verified."""

import streamlit as st

from brainmri.ui import reports, state
from brainmri.ui.theme import page_header

user = state.require_role("reader", "radiologist", "admin")
page_header("Reports", "Write findings on a kept case, sign them, and check any report's PDF.")
write, verify = st.tabs(["Write", "Verify"])
with write:
    record = reports.pick_record(user)
    if record is None:
        reports.empty_state(user)
    else:
        reports.show_editor(record, user)
with verify:
    reports.show_verify(user)
