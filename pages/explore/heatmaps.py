"""Heatmaps: where a class score comes from, method beside method, and how far to trust it."""

import streamlit as st

from brainmri.ui import heatmaps, state
from brainmri.ui.theme import page_header

user = state.current_user()
page_header("Heatmaps", "Where in the slice the network's score for a class comes from, method beside method.")
maps, trust = st.tabs(["Maps", "How far to trust the maps"])
with maps:
    heatmaps.show_maps(user)
with trust:
    heatmaps.show_trust()
