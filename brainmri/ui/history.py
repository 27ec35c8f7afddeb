"""What the History page does: search the kept answers, open one, delete one."""

from __future__ import annotations

from datetime import datetime, timedelta
from datetime import time as day_time
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from brainmri.errors import BrainMRIError, StorageError
from brainmri.look import DECISION_TITLES
from brainmri.storage import (
    Record,
    attached_to,
    delete_record,
    find_records,
    load_slice,
    may_delete,
    may_delete_signed,
    may_see_images,
    open_record,
    owners,
    plain_cell,
    sees_all,
    used_model_ids,
)
from brainmri.types import CLASS_NAMES
from brainmri.ui import state
from brainmri.ui.results import Answer, show_answer
from brainmri.ui.theme import answer_title, browser_zone, class_title, link, local_time, plain, rows_key

if TYPE_CHECKING:
    from brainmri.accounts import User

PAGE_SIZE = 25
_FILTERS = ("history.text", "history.labels", "history.decisions", "history.days", "history.models", "history.owner")


def show_list(user: User) -> None:
    """Search and filter, a page of cases, and the way into each."""
    filters = _filters(user)
    number = st.session_state.get("history.page", 1)
    page = find_records(state.database(), user, **filters, offset=(number - 1) * PAGE_SIZE, limit=PAGE_SIZE)
    if not page.records and number > 1:  # the filter was narrowed, or cases were deleted
        number = 1
        page = find_records(state.database(), user, **filters, limit=PAGE_SIZE)
    if not page.total:
        _empty(any(filters.values()))
        return
    first = (number - 1) * PAGE_SIZE + 1
    st.caption(f"{page.total:,} {'case' if page.total == 1 else 'cases'}, newest first; choose a row to open it")
    event = st.dataframe(
        _table(page.records, owners(state.database(), user) if sees_all(user) else {}),
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        height="content",
        column_config={
            "Case": st.column_config.NumberColumn(format="%d", width="small"),
            "Probability": st.column_config.ProgressColumn(format="%.1f %%", max_value=100),
        },
        key=rows_key("history.table", [r.id for r in page.records]),
    )
    if event.selection.rows:
        st.query_params["case"] = str(page.records[event.selection.rows[0]].id)
        st.rerun()
    pages = -(-page.total // PAGE_SIZE)
    if pages > 1:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.pagination(pages, default=number, key="history.page", persist_state="session")
            st.caption(f"{first}–{first + len(page.records) - 1} of {page.total:,}")


def show_case(case: str, user: User) -> None:
    """One case: what was said then, never computed anew."""
    st.button("All cases", icon=":material/arrow_back:", on_click=st.query_params.clear, type="tertiary")
    try:
        record = open_record(state.database(), user, int(case) if case.isdecimal() and len(case) < 19 else -1)
    except StorageError:
        st.warning(
            f"There is no case {plain(case[:20])} among yours; choose one in the list.",
            icon=":material/search_off:",
        )
        return
    st.subheader(f"Case {record.id}", anchor=False)
    st.caption(
        f"{plain(record.name)} · answered {local_time(record.created_at)} by {record.model_id} · kept as it was given"
    )
    try:
        mri_slice = load_slice(state.settings(), record) if may_see_images(state.settings(), user, record) else None
    except BrainMRIError as error:
        st.error(plain(str(error)), icon=":material/broken_image:")
        mri_slice = None
    else:
        if mri_slice is None:
            answer = answer_title(record.label, record.decision)
            st.info(f"{answer}. An administrator does not see other users' images.", icon=":material/visibility_off:")
    if mri_slice is not None:
        show_answer(Answer.from_record(record, mri_slice), history_link=False)
    if may_delete(user, record):
        _delete(record, user)


def _delete(record: Record, user: User) -> None:
    with st.popover("Delete this case", icon=":material/delete:"):
        with state.database().read() as session:
            attached = attached_to(session, [record.id])
        if attached.signed and not may_delete_signed(user):
            st.write(f"This case has {attached.text}. Only an administrator deletes a case with a signed report.")
            return
        takes = f", with {attached.text}" if attached.text else ""
        st.write(f"Case {record.id}, **{plain(record.name)}**, and its image are deleted for good{takes}.")
        if st.button("Delete for good", type="primary", icon=":material/delete:", key="history.delete"):
            try:
                delete_record(state.database(), state.settings(), user, record.id)
            except BrainMRIError as error:
                st.error(plain(str(error)), icon=":material/error:")
                return
            st.query_params.clear()
            st.toast(f"Case {record.id} deleted", icon=":material/delete:")
            st.rerun()


def _filters(user: User) -> dict[str, Any]:
    """Widgets -> arguments of `find_records`."""

    def restart() -> None:
        st.session_state["history.page"] = 1

    common: dict[str, Any] = {"on_change": restart, "persist_state": "session"}
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    text = left.text_input(
        "Search", placeholder="Part of the file name", key="history.text", icon=":material/search:", **common
    )
    with right.popover("Filters", icon=":material/filter_list:", width="stretch"):
        labels = st.pills(
            "Class", CLASS_NAMES, selection_mode="multi", format_func=class_title, key="history.labels", **common
        )
        decisions = st.pills(
            "Decision",
            list(DECISION_TITLES),
            selection_mode="multi",
            format_func=DECISION_TITLES.__getitem__,
            key="history.decisions",
            **common,
        )
        days = st.date_input("Days, from and to", value=(), format="YYYY-MM-DD", key="history.days", **common)  # type: ignore[arg-type]
        models = used_model_ids(state.database(), user)
        model_ids = st.multiselect("Model", models, key="history.models", **common) if len(models) > 1 else []
        names = owners(state.database(), user) if sees_all(user) else {}
        owner_id = None
        if len(names) > 1:
            owner_id = st.selectbox(
                "Owner", list(names), index=None, format_func=lambda i: names.get(i, "–"), key="history.owner", **common
            )
        st.button("Clear the filters", on_click=_clear_filters, icon=":material/filter_list_off:")
    since, until = _span(days if isinstance(days, tuple) else (days,))
    chosen = {
        "text": text,
        "labels": labels,
        "decisions": decisions,
        "model_ids": model_ids,
        "since": since,
        "until": until,
        "owner_id": owner_id,
    }
    return chosen


def _clear_filters() -> None:
    empties: tuple[Any, ...] = ("", [], [], (), [], None)
    for key, empty in zip(_FILTERS, empties, strict=True):
        st.session_state[key] = empty
    st.session_state["history.page"] = 1


def _span(days: tuple) -> tuple[datetime | None, datetime | None]:
    """The reader's calendar days -> aware moments; one day alone is that day and those after it."""
    zone = browser_zone()
    since = datetime.combine(days[0], day_time(), zone) if days else None
    until = datetime.combine(days[1] + timedelta(days=1), day_time(), zone) if len(days) > 1 else None
    return since, until


def _table(records: list[Record], names: dict[int, str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Case": [r.id for r in records],
            "Answer": [answer_title(r.label, r.decision) for r in records],
            "Probability": [100 * r.probabilities[r.label] if r.label else None for r in records],
            "Name": [plain_cell(r.name) for r in records],  # the table's own download is a CSV file
            **({"Owner": [plain_cell(names.get(r.user_id, "–")) for r in records]} if len(names) > 1 else {}),
            "When": [local_time(r.created_at) for r in records],
            "Model": [r.model_id for r in records],
        }
    )


def _empty(filtered: bool) -> None:
    if filtered:
        st.info("No case matches. Change the search or clear the filters.", icon=":material/search_off:")
        st.button("Clear search and filters", on_click=_clear_filters)
        return
    st.info("No cases yet. Every answer on the Predict page is kept here.", icon=":material/history:")
    link("pages/main/predict.py", "Go to Predict")
