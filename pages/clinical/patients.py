"""Patients: their studies, answers and verdicts over time."""

import streamlit as st

from brainmri.ui import patients, state
from brainmri.ui.theme import page_header

user = state.require_role("reader", "radiologist", "admin")
page_header("Patients", "Answers gathered by patient: timeline, comparison, corrections that keep what was there.")
if asked := st.query_params.get("patient", ""):
    patients.show_patient(asked, user)
else:
    patients.show_list(user)
