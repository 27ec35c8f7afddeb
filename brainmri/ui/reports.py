"""Reports: write findings on a kept case, sign, download, verify."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from brainmri import accounts, report
from brainmri.displays import counted
from brainmri.errors import BrainMRIError
from brainmri.explain import METHODS, explain
from brainmri.patients import patient_of
from brainmri.pipeline import analyse
from brainmri.storage import Record, find_records, load_slice, may_see_images, open_record
from brainmri.types import Explanation, MRISlice
from brainmri.ui import state
from brainmri.ui.canvas import Panel, canvas
from brainmri.ui.theme import answer_title, class_title, link, local_time, plain, research_notice

if TYPE_CHECKING:
    from brainmri.accounts import User

_CHOICES = 200
_DRAFTS = 10
_QUICK_METHODS = ("grad-cam", "grad-cam++", "hires-cam", "layer-cam", "occlusion")


def pick_record(user: User) -> Record | None:
    """The case to report on: from the address (``?case=``) or a choice of the newest."""
    database = state.database()
    asked = st.query_params.get("case", "")
    newest = {r.id: r for r in find_records(database, user, limit=_CHOICES).records}
    if asked.isdecimal() and len(asked) < 19 and int(asked) not in newest:
        try:
            record = open_record(database, user, int(asked))
            newest = {record.id: record, **newest}
        except BrainMRIError as error:
            st.warning(plain(str(error)), icon=":material/search_off:")
    if not newest:
        return None
    if asked.isdecimal() and len(asked) < 19 and int(asked) in newest:
        st.session_state["reports.case"] = int(asked)  # the address wins: a link from another page sets it

    def changed() -> None:
        if st.session_state["reports.case"] is None:
            st.query_params.clear()
        else:
            st.query_params["case"] = str(st.session_state["reports.case"])

    chosen = st.selectbox(
        "Case",
        list(newest),
        index=None,
        format_func=lambda i: _title(newest[i]),
        placeholder="Choose a kept case",
        key="reports.case",
        on_change=changed,
        persist_state="session",
    )
    return None if chosen is None else newest[chosen]


def empty_state(user: User) -> None:
    """What to do before a case is chosen, or before there is one."""
    if find_records(state.database(), user, limit=1).total:
        st.info("Choose a case above, or press *Write a report* beside any kept answer.", icon=":material/draft:")
        return
    st.info(
        "A report is written on a kept case. Keep one in Predict or in the Series viewer first.",
        icon=":material/draft:",
    )
    with st.container(horizontal=True):
        link("pages/main/predict.py", "Predict")
        link("pages/clinical/series.py", "Series viewer")


def show_editor(record: Record, user: User) -> None:
    """Picture and maps, the reader's words, draft and signature, reports issued so far."""
    database, settings = state.database(), state.settings()
    filed = patient_of(database, user, record.id)
    who = filed[0].title if filed else "not filed under a patient"
    st.caption(f"{plain(who)} · {plain(record.name)} · answered {local_time(record.created_at)}")
    if not may_see_images(settings, user, record):
        st.info("An administrator does not see other users' images.", icon=":material/visibility_off:")
        return
    try:
        mri_slice = load_slice(settings, record)
    except BrainMRIError as error:
        st.error(plain(str(error)), icon=":material/broken_image:")
        return
    pictures, words = st.columns([3, 2], gap="large")
    with pictures:
        methods = st.multiselect(
            "Heatmaps in the report",
            [m for m in _QUICK_METHODS if m in METHODS],
            default=["grad-cam"] if record.decision != "rejected" else [],
            format_func=lambda name: METHODS[name].title,
            key=f"reports.methods.{record.id}",
            disabled=record.decision == "rejected",
        )
        explanations = _explanations(record, mri_slice, tuple(methods))
        shared: dict[str, Any] = {"spacing_mm": mri_slice.spacing_mm, "orientation": mri_slice.orientation}
        panels = [Panel(mri_slice.pixels, "Slice", **shared)]
        panels += [
            Panel(mri_slice.pixels, METHODS[e.method].title, saliency=e.saliency_map, **shared) for e in explanations
        ]
        canvas(panels, key=f"reports.canvas.{record.id}", max_height=420)
    with words:
        _show_answer(record, report.series_text(database, user, filed[2]) if filed else "")
        findings, impression = _words(record, report.reports_of(database, user, record.id))
        if st.button("Issue a draft", icon=":material/draft:", key="reports.draft"):
            _issue(record, user, findings, impression, explanations, mri_slice, final=False)
        if user.role == "radiologist":
            with st.form(f"reports.sign.{record.id}", border=True, clear_on_submit=True):
                password = st.text_input("Your password, to sign", type="password")
                if st.form_submit_button("Sign and issue", type="primary", icon=":material/signature:"):
                    try:
                        accounts.confirm_password(database, user, password)
                    except BrainMRIError as error:
                        st.error(plain(str(error)), icon=":material/lock:")
                    else:
                        _issue(record, user, findings, impression, explanations, mri_slice, final=True)
        else:
            st.caption("A radiologist signs.")
    _show_issued(record, user)


def _show_answer(record: Record, series_text: str) -> None:
    """What the network says, as the report will print it: whoever signs has seen it."""
    answer = answer_title(record.label, record.decision)
    st.markdown(f"**The network says of this slice: {answer}**")
    if record.decision == "rejected":
        st.caption("Not recognised as a brain-MRI slice: no class, no probabilities, no maps.")
    else:
        chosen = ", ".join(class_title(c).lower() for c in record.prediction_set)
        said = " · ".join(f"{class_title(c)} {p:.1%}" for c, p in record.probabilities.items())
        st.caption(f"95 % prediction set: {chosen}. {said}")
    if series_text:
        st.caption(f"Series: {series_text}")
    research_notice()


def _words(record: Record, issued: list[report.Report]) -> tuple[str, str]:
    """Findings and impression, at first those of the newest report; notes which signed report the author has seen."""
    findings, impression = f"reports.findings.{record.id}", f"reports.impression.{record.id}"
    start = issued[0] if issued else None
    if findings not in st.session_state:  # nothing typed on this case in this session
        st.session_state[findings] = start.findings if start else ""
        st.session_state[impression] = start.impression if start else ""
        st.session_state[f"reports.start.{record.id}"] = (
            f"Starts from report {start.id} of {start.signature}, {local_time(start.created_at)}" if start else ""
        )
        _note_seen(record, issued)
    if st.session_state[f"reports.start.{record.id}"]:
        st.caption(plain(st.session_state[f"reports.start.{record.id}"]))
    return (
        st.text_area("Findings", height=150, key=findings, persist_state="session"),
        st.text_area("Impression", height=90, key=impression, persist_state="session"),
    )


def _note_seen(record: Record, issued: list[report.Report]) -> None:
    newest = report.newest_final(issued)
    st.session_state[f"reports.seen.{record.id}"] = newest.id if newest else 0


def show_verify(user: User) -> None:
    """Check a PDF against what was issued."""
    upload = st.file_uploader("A report's PDF", type="pdf", key="reports.verify")
    if upload is None:
        return
    try:
        verified = report.verify(state.database(), upload.getvalue(), user)
    except BrainMRIError as error:
        st.error(plain(str(error)[0].upper() + str(error)[1:]) + ".", icon=":material/gpp_bad:")
    else:
        text = plain(verified.text[0].upper() + verified.text[1:]) + "."
        if verified.current:
            st.success(text, icon=":material/verified:")
        else:
            st.warning(text, icon=":material/history:")


def _title(record: Record) -> str:
    answer = answer_title(record.label, record.decision)
    return f"{record.id} · {record.name} · {answer} · {local_time(record.created_at)}"


def _explanations(record: Record, mri_slice: MRISlice, methods: tuple[str, ...]) -> tuple[Explanation, ...]:
    """Maps for the class that was answered then; none where the model behind the answer is gone."""
    if not methods or record.decision == "rejected":
        return ()
    slot = (record.id, methods)
    held = st.session_state.get("reports.maps")
    if held is None or held[0] != slot:
        try:
            classifier = state.classifier(record.model_id)
            if classifier.card.weights_sha256 != record.weights_sha256:
                st.info(
                    "The model was trained anew since this answer, so no map can be drawn of it.",
                    icon=":material/info:",
                )
                return ()
            with st.spinner("Drawing the maps …"):
                analyses = analyse(classifier, [mri_slice])
                target = record.label or max(record.probabilities, key=record.probabilities.__getitem__)
                found = explain(
                    classifier,
                    analyses,
                    methods,
                    (target,),
                    allow_rejected=True,
                    directory=state.settings().model.directory,
                )[0]
        except BrainMRIError as error:
            st.warning(plain(str(error)), icon=":material/warning:")
            return ()
        st.session_state["reports.maps"] = held = (slot, found)
    return held[1]


def _issue(
    record: Record,
    user: User,
    findings: str,
    impression: str,
    explanations: tuple[Explanation, ...],
    mri_slice: MRISlice,
    *,
    final: bool,
) -> None:
    try:
        issued = report.issue(
            state.database(),
            state.settings(),
            user,
            record.id,
            findings=findings,
            impression=impression,
            final=final,
            explanations=explanations,
            mri_slice=mri_slice,
            seen=st.session_state[f"reports.seen.{record.id}"],
        )
    except BrainMRIError as error:
        st.error(plain(str(error)[0].upper() + str(error)[1:]) + ".", icon=":material/error:")
    else:
        st.success(f"Report {issued.id} issued, {'signed' if final else 'a draft'}.", icon=":material/task_alt:")
    _note_seen(record, report.reports_of(state.database(), user, record.id))  # they are listed below


def _show_issued(record: Record, user: User) -> None:
    issued = report.reports_of(state.database(), user, record.id)
    if not issued:
        return
    st.subheader("Issued on this case", anchor=False)
    older = [r.id for r in issued if r.status != "final"][_DRAFTS:]
    title = f"List {counted(len(older), 'older draft')} as well"
    if older and not st.toggle(title, key=f"reports.older.{record.id}"):
        issued = [r for r in issued if r.id not in older]
    newest = report.newest_final(issued)
    for row in issued:
        left, right = st.columns([4, 1], vertical_alignment="center")
        kind = "signed by" if row.status == "final" else "draft by"
        replaced = (
            f", replaced by report {newest.id}" if row.status == "final" and newest and newest.id != row.id else ""
        )
        left.write(
            f"**Report {row.id}**, {kind} {plain(row.signature)}, {local_time(row.created_at)}{replaced} · "
            f"`{row.pdf_sha256[:16]}…`"
        )
        right.download_button(
            "PDF",
            partial(report.read_pdf, state.database(), state.settings(), user, row.id),  # read at the click
            file_name=row.file_name,
            mime="application/pdf",
            icon=":material/download:",
            key=f"reports.pdf.{row.id}",
            on_click="ignore",
        )
