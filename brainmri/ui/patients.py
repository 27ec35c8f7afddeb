"""Patients: find one, see the timeline, compare, correct, hand out, delete."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import streamlit as st

from brainmri import patients
from brainmri.dicom import answer_series
from brainmri.displays import counted
from brainmri.errors import BrainMRIError
from brainmri.patients import SEXES, VERDICTS, Patient, Study, TimelineEntry
from brainmri.storage import Record, find_records, load_slice, may_see_images
from brainmri.types import CLASS_NAMES
from brainmri.ui import state
from brainmri.ui.canvas import Panel, canvas
from brainmri.ui.theme import answer_title, class_title, link, local_time, plain, research_notice, rows_key

if TYPE_CHECKING:
    from brainmri.accounts import User

_PAGE = 20
_CHOICES = 200


def show_list(user: User) -> None:
    """Search, filters, one page of patients, a new patient."""
    database = state.database()

    def restart() -> None:
        st.session_state["patients.page"] = 1

    left, right = st.columns([3, 2], vertical_alignment="bottom")
    text = left.text_input(
        "Search",
        placeholder="Part of the id or name",
        icon=":material/search:",
        key="patients.text",
        persist_state="session",
        on_change=restart,
    )
    with right.popover("Filters", icon=":material/filter_list:", width="stretch"):
        labels = st.pills(
            "An answer says",
            CLASS_NAMES,
            selection_mode="multi",
            format_func=class_title,
            key="patients.labels",
            persist_state="session",
            on_change=restart,
        )
        sexes = st.pills(
            "Sex",
            list(SEXES),
            selection_mode="multi",
            format_func=SEXES.__getitem__,
            key="patients.sexes",
            persist_state="session",
            on_change=restart,
        )
    filters: dict[str, Any] = {"text": text, "labels": labels, "sexes": sexes}
    number = st.session_state.get("patients.page", 1)
    found = patients.find_patients(database, user, **filters, offset=(number - 1) * _PAGE, limit=_PAGE)
    if not found.patients and number > 1:  # patients were deleted
        restart()
        found = patients.find_patients(database, user, **filters, limit=_PAGE)
    if found.total == 0:
        st.info(
            "No patient matches."
            if any(filters.values())
            else "No patients yet. Keep a series in the Series viewer, or add one here.",
            icon=":material/person_search:",
        )
    else:
        _table(found)
        pages = -(-found.total // _PAGE)
        if pages > 1:
            st.pagination(pages, default=number, key="patients.page", persist_state="session")
    with st.expander("New patient", icon=":material/person_add:"):
        _new_patient(user)
    lines = patients.deletions(database, user, 20)
    if lines:
        with st.expander("Deleted", icon=":material/delete_sweep:"):
            rows = [{"When": local_time(d.at), "Who": d.username, "What": d.what} for d in lines]
            st.dataframe(pd.DataFrame(rows), hide_index=True, width="stretch")


def _table(found: patients.PatientPage) -> None:
    rows = [
        {
            "Patient": s.patient.pseudonym,
            "Name": s.patient.name,
            "Sex": s.patient.sex,
            "Studies": s.n_studies,
            "Answers": s.n_records,
            "Last answer": local_time(s.last_at) if s.last_at else "",
        }
        for s in found.patients
    ]
    st.caption(f"{found.total:,} patient{'s' if found.total > 1 else ''}; choose a row to open it")
    event = st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        width="stretch",
        on_select="rerun",
        selection_mode="single-row",
        key=rows_key("patients.table", [s.patient.id for s in found.patients]),
    )
    if event.selection.rows:
        st.query_params["patient"] = str(found.patients[event.selection.rows[0]].patient.id)
        st.rerun()


def _new_patient(user: User) -> None:
    with st.form("patients.new", border=False, clear_on_submit=True):
        pseudonym = st.text_input("Id", placeholder="Left empty: a random one such as P-1A2B3C4D5E6F", max_chars=64)
        name, born, sex = _person_fields(None)
        if st.form_submit_button("Add", icon=":material/person_add:"):
            try:
                made = patients.create_patient(
                    state.database(), user, pseudonym=pseudonym, name=name, birth_date=born, sex=sex
                )
            except BrainMRIError as error:
                st.error(plain(str(error)), icon=":material/error:")
                return
            st.query_params["patient"] = str(made.id)
            st.rerun()


def _person_fields(patient: Patient | None) -> tuple[str, date | None, str]:
    key = f"patients.person.{patient.id if patient else 'new'}"
    name = st.text_input("Name (optional)", patient.name if patient else "", max_chars=200, key=f"{key}.name")
    left, right = st.columns(2)
    with left:
        born = _day_field("Born (optional)", patient.birth_date if patient else None, f"{key}.born")
    options, now = list(SEXES), patient.sex if patient else ""
    sex = right.selectbox("Sex (optional)", options, options.index(now), SEXES.__getitem__, key=f"{key}.sex")
    return name.strip(), born, sex


def _day_field(label: str, day: date | None, key: str) -> date | None:
    chosen = st.date_input(label, day, min_value=date(1880, 1, 1), max_value=date.today(), format="YYYY-MM-DD", key=key)
    return chosen if isinstance(chosen, date) else None


def show_patient(asked: str, user: User) -> None:
    """One patient: who, timeline, comparison, verdicts, edits, export, deletion."""
    database = state.database()
    st.button("All patients", icon=":material/arrow_back:", on_click=_close, type="tertiary")
    try:
        patient = patients.open_patient(database, user, int(asked) if asked.isdecimal() and len(asked) < 19 else -1)
    except BrainMRIError as error:
        st.warning(plain(str(error)), icon=":material/search_off:")
        return
    st.subheader(plain(patient.title), anchor=False)
    facts = [f"born {patient.birth_date:%Y-%m-%d}" if patient.birth_date else "birth date not given"]
    facts += [f"sex {SEXES[patient.sex]}", f"since {local_time(patient.created_at)}"]
    st.caption(" · ".join(facts))
    entries = patients.timeline(database, user, patient.id)
    timeline, compare, details = st.tabs(["Timeline", "Side by side", "Details"])
    with timeline:
        _timeline(entries, user)
        _file_cases(patient, entries, user)
    with compare:
        _compare(entries, user)
    with details:
        _details(patient, user)
        _hand_out(patient, user)
        _delete(patient, user)


def _close() -> None:
    st.query_params.clear()
    for key in [k for k in st.session_state if str(k).startswith("patients.table")]:
        del st.session_state[key]


def _timeline(entries: list[TimelineEntry], user: User) -> None:
    if not entries:
        st.info(
            "No answers yet: file kept cases below, or keep a series in the Series viewer.", icon=":material/timeline:"
        )
        return
    for study_id in dict.fromkeys(entry.study.id for entry in entries):
        members = [entry for entry in entries if entry.study.id == study_id]
        _study_line(members[0].study, len(members), user)
        for stack in patients.series_stacks([(e.record, e.place) for e in members]):
            st.caption(f"Series: {answer_series(stack.records).text}")
        rows = [
            {
                "Case": e.record.id,
                "Slice": "{} / {}".format(*e.place.slice_of) if e.place.slice_of else "",
                "Answer": _answer(e.record),
                "Probability": 100 * e.record.probabilities[e.record.label] if e.record.label else None,
                "Verdict": VERDICTS[e.verdicts[0][0].verdict] if e.verdicts else "",
                "Reader": e.verdicts[0][1] if e.verdicts else "",
                "Note": e.verdicts[0][0].note if e.verdicts else "",
            }
            for e in members
        ]
        event = st.dataframe(
            pd.DataFrame(rows),
            hide_index=True,
            width="stretch",
            height=min(38 + 35 * len(rows), 320),
            column_config={"Probability": st.column_config.ProgressColumn(format="%.1f%%", min_value=0, max_value=100)},
            on_select="rerun",
            selection_mode="single-row",
            key=rows_key(f"patients.study.{study_id}", [e.record.id for e in members]),
        )
        if event.selection.rows:
            _entry(members[event.selection.rows[0]], user)


def _study_line(study: Study, n_answers: int, user: User) -> None:
    left, right = st.columns([5, 1], vertical_alignment="center")
    made = f"study of {study.study_date:%Y-%m-%d}" if study.study_date else "study date not known"
    title, kept = plain(study.title) or "Study", local_time(study.created_at)
    left.markdown(f"**{title}** · {made} · kept {kept} · {counted(n_answers, 'answer')}")
    key = f"patients.study_fields.{study.id}"
    with right.popover("Edit", icon=":material/edit:", width="stretch"), st.form(f"{key}.form"):
        seen = _seen(study.patient_id, f"{key}.title", user)
        name, day = _study_fields(study, key)
        if st.form_submit_button("Save", icon=":material/save:"):
            try:
                patients.edit_study(state.database(), user, study.id, title=name, study_date=day, seen=seen)
            except BrainMRIError as error:
                st.error(plain(str(error)), icon=":material/error:")
                _note_seen(study.patient_id, f"{key}.title", user)
            else:
                _note_seen(study.patient_id, f"{key}.title", user)
                st.rerun()


def _seen(patient_id: int, field: str, user: User) -> int:
    """The newest edit of a patient that whoever types in a form has seen; noted when its first field is drawn anew."""
    if field not in st.session_state:
        _note_seen(patient_id, field, user)
    return st.session_state[f"{field}.seen"]


def _note_seen(patient_id: int, field: str, user: User) -> None:
    st.session_state[f"{field}.seen"] = patients.newest_edit(state.database(), user, patient_id)


def _study_fields(study: Study | None, key: str) -> tuple[str, date | None]:
    title = st.text_input(
        "Study", study.title if study else "", placeholder="What the visit was", max_chars=200, key=f"{key}.title"
    )
    return title.strip(), _day_field("Study date (optional)", study.study_date if study else None, f"{key}.date")


def _entry(entry: TimelineEntry, user: User) -> None:
    record = entry.record
    with st.container(border=True):
        left, right = st.columns([1, 1], gap="large")
        with left:
            _picture([record], user, key=f"patients.one.{record.id}")
        with right:
            st.markdown(f"**Case {record.id}: {_answer(record)}**")
            research_notice()
            link("pages/clinical/reports.py", "Report on this case", ":material/description:", case=str(record.id))
            link("pages/main/history.py", "Open in History", ":material/history:", case=str(record.id))
            with st.form(f"patients.verdict.{record.id}", border=False, clear_on_submit=True):
                verdict = st.selectbox("Your verdict", list(VERDICTS), format_func=VERDICTS.__getitem__)
                note = st.text_area("Note", height=80)
                if st.form_submit_button("Keep verdict", icon=":material/gavel:"):
                    patients.add_verdict(state.database(), user, record.id, verdict, note)
                    st.rerun()
            for said, who in entry.verdicts:
                note = f": {plain(said.note)}" if said.note else ""
                st.caption(f"{local_time(said.created_at)}, {plain(who)}: **{VERDICTS[said.verdict]}**{note}")


def _compare(entries: list[TimelineEntry], user: User) -> None:
    if len(entries) < 2:
        st.info("Two answers are needed to lay them side by side.", icon=":material/compare:")
        return
    by_id = {entry.record.id: entry for entry in entries}
    studies = list(dict.fromkeys(entry.study.id for entry in entries))
    newest = [entry.record.id for entry in entries if entry.study.id == studies[0]]
    older = [entry.record.id for entry in entries if entry.study.id == studies[-1]]
    start = (older[len(older) // 2], newest[len(newest) // 2])
    if len(studies) == 1:  # no earlier visit: two places of the one there is
        start = (newest[len(newest) // 3], newest[2 * len(newest) // 3])
    chosen = [
        column.selectbox(
            title,
            list(by_id),
            list(by_id).index(first),
            format_func=lambda r: _entry_title(by_id[r]),
            key=f"patients.compare.{title}.{entries[0].study.patient_id}",
        )
        for column, title, first in zip(st.columns(2), ("First", "Second"), start, strict=True)
    ]
    records = [by_id[i].record for i in chosen]
    _picture(records, user, key=f"patients.pair.{chosen[0]}.{chosen[1]}")
    table = pd.DataFrame(
        {f"Case {r.id}": [_answer(r), *_probabilities(r)] for r in records},
        index=["Answer", *(class_title(c) for c in CLASS_NAMES)],
    )
    st.table(table)


def _picture(records: list[Record], user: User, *, key: str) -> None:
    settings = state.settings()
    if not all(may_see_images(settings, user, record) for record in records):
        st.info("An administrator does not see other users' images.", icon=":material/visibility_off:")
        return
    panels = []
    for record in records:
        try:
            mri_slice = load_slice(settings, record)
        except BrainMRIError as error:
            st.error(plain(str(error)), icon=":material/broken_image:")
            return
        panels.append(
            Panel(
                np.asarray(mri_slice.pixels),
                f"Case {record.id}: {_answer(record)}",
                spacing_mm=mri_slice.spacing_mm,
                orientation=mri_slice.orientation,
                caption=f"answered {local_time(record.created_at)}",
            )
        )
    canvas(panels, key=key, max_height=360)


def _file_cases(patient: Patient, entries: list[TimelineEntry], user: User) -> None:
    database = state.database()
    with st.expander("File kept cases here", icon=":material/create_new_folder:"):
        text = st.text_input("Find cases", placeholder="Part of the name", key="patients.file_text")
        found = find_records(database, user, text=text, limit=_CHOICES)
        here = {entry.record.id for entry in entries}
        free = {r.id: r for r in found.records if r.id not in here}
        if found.total > _CHOICES:
            st.caption(f"The newest {_CHOICES} of {found.total:,} are listed; a part of the name finds older ones.")
        elsewhere = patients.filed_under(database, user, list(free))
        filed = st.session_state.setdefault("patients.filed", 0)  # a new form after each filing, empty
        key = f"patients.file.{patient.id}.{filed}"
        with st.form(key, border=False):
            chosen = st.multiselect("Cases", list(free), format_func=lambda i: _choice(free[i], elsewhere.get(i)))
            title, day = _study_fields(None, key)
            moves = st.checkbox("Take cases away from other patients", help="Kept as an edit of both patients.")
            if not st.form_submit_button("File as one study", icon=":material/create_new_folder:"):
                return
        others = [i for i in chosen if i in elsewhere]
        if not chosen:
            st.info("Choose a case first.", icon=":material/info:")
        elif others and not moves:
            first = _choice(free[others[0]], elsewhere[others[0]])
            st.warning(
                f"Nothing was filed: {plain(first)}. Tick the box to take it from there.", icon=":material/warning:"
            )
        else:
            try:
                patients.file_records(
                    database, user, patient.id, [free[i] for i in chosen], title=title, study_date=day
                )
            except BrainMRIError as error:
                st.error(plain(str(error)), icon=":material/error:")
            else:
                st.session_state["patients.filed"] = filed + 1
                st.rerun()


def _choice(record: Record, filed: Patient | None) -> str:
    now = f" · now under {filed.title}" if filed else ""
    return f"{record.id} · {record.name} · {_answer(record)}{now}"


def _details(patient: Patient, user: User) -> None:
    database = state.database()
    first = f"patients.person.{patient.id}.id"
    seen = _seen(patient.id, first, user)
    with st.form(f"patients.edit.{patient.id}"):
        pseudonym = st.text_input("Id", patient.pseudonym, max_chars=64, key=first)
        name, born, sex = _person_fields(patient)
        if st.form_submit_button("Save", icon=":material/save:"):
            try:
                patients.edit_patient(
                    database,
                    user,
                    patient.id,
                    seen=seen,
                    pseudonym=pseudonym.strip(),
                    name=name,
                    birth_date=born,
                    sex=sex,
                )
            except BrainMRIError as error:
                st.error(plain(str(error)), icon=":material/error:")
                _note_seen(patient.id, first, user)
            else:
                _note_seen(patient.id, first, user)
                st.rerun()
    if edits := patients.edits_of(database, user, patient.id):
        st.caption("What was changed; nothing that was there is lost")
        rows = [
            {"When": local_time(e.at), "Who": e.username, "What": e.what, "Before": e.before, "After": e.after}
            for e in edits
        ]
        st.dataframe(pd.DataFrame(rows), hide_index=True, width="stretch")


def _hand_out(patient: Patient, user: User) -> None:
    if st.button("Prepare the bundle (PDF, images, CSV)", icon=":material/folder_zip:", key="patients.bundle"):
        try:
            with st.spinner("Packing …"):
                content = patients.export_patient(state.database(), state.settings(), user, patient.id)
        except BrainMRIError as error:
            st.error(plain(str(error)), icon=":material/error:")
        else:
            st.download_button(
                "Download",
                content,
                f"{patient.pseudonym}.zip",
                "application/zip",
                icon=":material/download:",
                on_click="ignore",
            )


def _delete(patient: Patient, user: User) -> None:
    with st.popover("Delete this patient", icon=":material/delete:"):
        try:
            takes = patients.what_deletion_takes(state.database(), user, patient.id)
        except BrainMRIError as error:
            st.write(plain(str(error)))
            return
        st.write(f"The patient, {takes}, all images and edits are deleted for good. One line stays.")
        if st.button("Delete for good", type="primary", icon=":material/delete:", key="patients.delete"):
            try:
                line = patients.delete_patient(state.database(), state.settings(), user, patient.id)
            except BrainMRIError as error:
                st.error(plain(str(error)), icon=":material/error:")
                return
            st.toast(f"Deleted {line}", icon=":material/delete:")
            _close()
            st.rerun()


def _answer(record: Record) -> str:
    return answer_title(record.label, record.decision)


def _probabilities(record: Record) -> list[str]:
    return ["–" if record.decision == "rejected" else f"{record.probabilities[c]:.1%}" for c in CLASS_NAMES]


def _entry_title(entry: TimelineEntry) -> str:
    place = f"slice {entry.place.slice_of[0]}, " if entry.place.slice_of else ""
    return f"Case {entry.record.id}, {place}{_answer(entry.record)}, {local_time(entry.record.created_at)}"
