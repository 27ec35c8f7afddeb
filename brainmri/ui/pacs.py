"""PACS: search a node's studies, choose a series, open it in the Series viewer."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from brainmri import pacs
from brainmri.dicom import read_files
from brainmri.errors import BrainMRIError
from brainmri.pacs import FoundSeries, FoundStudy
from brainmri.ui import series as viewer
from brainmri.ui import state
from brainmri.ui.theme import plain

if TYPE_CHECKING:
    from brainmri.accounts import User
    from brainmri.config import PacsServer


def pick_server() -> PacsServer | None:
    """The node to ask; None, and a word on how to name one, where the configuration names none."""
    servers = state.settings().pacs.servers
    if not servers:
        st.info(
            "No PACS is configured. An administrator names it in `config.yaml` under `pacs.servers`: name, AE title, "
            "host and port.",
            icon=":material/dns:",
        )
        return None
    if len(servers) == 1:
        return servers[0]
    return st.selectbox("PACS", servers, format_func=lambda server: server.name, key="pacs.server")


def search(user: User, server: PacsServer) -> None:
    """Form, studies found, series of the one chosen, and the way into the viewer."""
    _form(user, server)
    asked = st.session_state.get("pacs.found")
    if asked is None or asked[0] != (user.id, server.name):  # another reader's in this tab, or another node's
        return
    studies, number = asked[1], asked[2]
    if not studies:
        st.info("No study with MR matches.", icon=":material/search_off:")
        return
    study = _choose_study(studies, number)
    if study is None:
        return
    series = _series_of(user, server, study)
    chosen = _choose_series(series, study) if series else None
    if chosen is None:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        pressed = st.button("Open in the Series viewer", type="primary", icon=":material/view_in_ar:", key="pacs.open")
        insist = st.toggle("Take everything", key="pacs.insist", help=viewer.INSIST)
    if pressed:
        _open(user, server, study, chosen, insist)


def _form(user: User, server: PacsServer) -> None:
    with st.form("pacs.form", border=True):
        columns = st.columns([2, 2, 1, 1])
        patient_id = columns[0].text_input("Patient ID", help="As the PACS spells it; * and ? stand for anything.")
        name = columns[1].text_input("Name", help="Any part of it.")
        since = columns[2].date_input("From", None, min_value=date(1990, 1, 1), format="YYYY-MM-DD")
        until = columns[3].date_input("Until", None, min_value=date(1990, 1, 1), format="YYYY-MM-DD")
        pressed = st.form_submit_button("Search", type="primary", icon=":material/search:")
    if not pressed:
        return
    st.session_state.pop("pacs.found", None)
    st.session_state.pop("pacs.series", None)
    settings = state.settings()
    try:
        with st.spinner(f"Asking {server.name} …"):
            found = pacs.find_studies(settings, server, patient_id=patient_id, name=name, since=since, until=until)
    except BrainMRIError as error:
        st.error(plain(str(error)), icon=":material/cloud_off:")
        return
    number = st.session_state["pacs.searches"] = st.session_state.get("pacs.searches", 0) + 1
    st.session_state["pacs.found"] = ((user.id, server.name), found, number)


def _choose_study(studies: list[FoundStudy], number: int) -> FoundStudy | None:
    shown = studies[: pacs.MOST_STUDIES]
    more = (
        f"The newest {len(shown):,} that came; there are more, narrow the search. " if len(studies) > len(shown) else ""
    )
    st.caption(f"{more}{len(shown):,} stud{'ies' if len(shown) > 1 else 'y'}; choose a row")
    rows = [
        {
            "Date": study.date,
            "Patient ID": study.patient_id,
            "Name": study.patient_name,
            "Born": study.birth_date,
            "Description": study.description,
            "Modalities": ", ".join(study.modalities),
            "Images": study.n_images,
        }
        for study in shown
    ]
    return _chosen(shown, rows, f"pacs.studies.{number}")


def _series_of(user: User, server: PacsServer, study: FoundStudy) -> list[FoundSeries]:
    slot = (user.id, server.name, study.study_uid)
    kept = st.session_state.get("pacs.series")
    if kept is None or kept[0] != slot:
        try:
            with st.spinner(f"Asking {server.name} …"):
                kept = (slot, pacs.find_series(state.settings(), server, study.study_uid))
        except BrainMRIError as error:
            st.error(plain(str(error)), icon=":material/cloud_off:")
            return []
        st.session_state["pacs.series"] = kept
    if not kept[1]:
        st.info("This study has no MR series.", icon=":material/search_off:")
    return kept[1]


def _choose_series(series: list[FoundSeries], study: FoundStudy) -> FoundSeries | None:
    st.caption(f"{len(series):,} series; choose a row")
    rows = [{"Number": s.number, "Description": s.description, "Images": s.n_images} for s in series]
    return _chosen(series, rows, f"pacs.series.{study.study_uid}")


def _chosen(items: list, rows: list[dict], key: str):
    event = st.dataframe(
        pd.DataFrame(rows), hide_index=True, width="stretch", on_select="rerun", selection_mode="single-row", key=key
    )
    return items[event.selection.rows[0]] if event.selection.rows else None


def _open(user: User, server: PacsServer, study: FoundStudy, series: FoundSeries, insist: bool) -> None:
    settings = state.settings()
    bar = st.progress(0.0, f"Fetching from {server.name} …")

    def report(done: int, total: int) -> None:
        bar.progress(done / max(total, 1), f"Fetching image {done:,} of {total:,}")

    try:
        files = pacs.fetch(settings, server, study.study_uid, series.series_uid, report=report)
        reading = read_files(files, "the series", settings, insist=insist)
    except BrainMRIError as error:
        bar.empty()
        st.error(plain(str(error)), icon=":material/broken_image:")
        return
    viewer.open_reading(user, reading, server.name)
    st.switch_page("pages/clinical/series.py")
