"""Look and words that every page shares: header, tables, the research notice."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from zoneinfo import ZoneInfo

import streamlit as st
from streamlit.errors import StreamlitPageNotFoundError

from brainmri.look import DECISION_TITLES
from brainmri.types import CLASS_TITLES

NOTICE = "Research use only. Not a medical device, not a diagnosis."

_LOGO = """
<svg xmlns="http://www.w3.org/2000/svg" width="150" height="32" viewBox="0 0 150 32">
  <g fill="none" stroke="#14919b" stroke-width="2.2" stroke-linecap="round">
    <ellipse cx="16" cy="16" rx="11.5" ry="14"/>
    <path d="M16 4.5v23M11 9.5c2.6 1 2.6 4 0 5M21 9.5c-2.6 1-2.6 4 0 5"/>
    <path d="M9.5 20c2-.6 3.6.4 3.8 2.6M22.5 20c-2-.6-3.6.4-3.8 2.6"/>
  </g>
  <text x="38" y="22.5" font-family="sans-serif" font-size="18" font-weight="700" fill="#14919b">Brain MRI</text>
</svg>
"""

_STYLES = """
<style>
[data-testid="stMainBlockContainer"] { max-width: 1240px; padding-top: 3.2rem; padding-bottom: 3rem; }
[data-testid="stMain"] h1 { letter-spacing: -0.01em; padding-bottom: 0.1rem; }
[data-testid="stMain"] img { border-radius: 0.4rem; }
[data-testid="stMarkdownContainer"]:has(> table) { overflow-x: auto; }
[data-testid="stMarkdown"] td:nth-child(2):last-child { overflow-wrap: anywhere; }
[data-testid="stMarkdown"] td:first-child { min-width: 7rem; }
[data-testid="stMarkdown"] thead:not(:has(th:not(:empty))) { display: none; }
[data-testid="stMetricValue"] { font-variant-numeric: tabular-nums; }
@media (max-width: 640px) {
  [data-testid="stMainBlockContainer"] { padding: 3.4rem 0.9rem 2rem; }
  [data-testid="stMain"] h1 { font-size: 1.5rem; }
  [data-testid="stMarkdown"] :is(td, th) { padding: 0.35rem 0.45rem; font-size: 0.85rem; }
  [class*="sample_grid"] > div { width: calc(50% - 0.5rem) !important; flex: none; }
  [class*="sample_grid"] img { width: 100% !important; }
}
</style>
"""


def page_header(title: str, subtitle: str = "") -> None:
    """Title, one line below it and the page's styles; the first call of every page."""
    st.logo(_LOGO, size="large")
    st.html(_STYLES)
    st.title(title, anchor=False)
    if subtitle:
        st.caption(subtitle)


def research_notice() -> None:
    """The one sentence that stands beside every answer."""
    st.caption(f":material/science: {NOTICE}")


def link(page: str, label: str, icon: str = ":material/arrow_forward:", **query_params: str) -> None:
    """Link to a page; plain words where the reader's role does not open it."""
    try:
        st.page_link(page, label=label, icon=icon, query_params=query_params or None)
    except StreamlitPageNotFoundError:
        st.caption(f"{icon} {label}")


def text_table(rows: Mapping[str, Sequence[str]], columns: Sequence[str] = ("",)) -> None:
    """A small table of words, one row a name. ``st.table`` would load pandas and pyarrow for it, 50 MiB."""
    lines = [["", *columns], ["---"] * (1 + len(columns))]
    lines += [[f"**{plain(name)}**", *map(plain, values)] for name, values in rows.items()]
    st.markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))


def legend(colours: Mapping[str, str]) -> None:
    """Names with their colours in a line that wraps: a chart's own legend is cut off where the chart is narrow."""
    marks = (
        f'<span style="white-space: nowrap"><span style="color: {colour}">■</span> {escape(name)}</span>'
        for name, colour in colours.items()
    )
    st.html(f'<div style="font-size: 0.85rem; display: flex; flex-wrap: wrap; gap: 0 1rem">{"".join(marks)}</div>')


def plain(text: str) -> str:
    """Text from outside (a file's name, an error that quotes it) as Markdown that shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]()#+.!~|<>:$-])", r"\\\1", text)


def class_title(label: str | None) -> str:
    """Class name as a reader sees it; a dash for none."""
    return CLASS_TITLES.get(label, label) if label else "–"


def answer_title(label: str | None, decision: str) -> str:
    """An answer as a reader sees it: its class or, where it gives none, the decision."""
    return class_title(label) if label else DECISION_TITLES[decision]


def class_list(labels: tuple[str, ...] | list[str]) -> str:
    """Class names as a reader sees them, comma separated."""
    return ", ".join(class_title(label) for label in labels) or "none"


def browser_zone() -> ZoneInfo:
    """The reader's time zone, UTC where the browser does not say."""
    try:
        return ZoneInfo(st.context.timezone or "UTC")
    except (KeyError, ValueError, OSError):  # a name that this machine's zone tables lack
        return ZoneInfo("UTC")


def local_time(moment: datetime) -> str:
    """A moment in the reader's time zone, to the minute."""
    return moment.astimezone(browser_zone()).strftime("%Y-%m-%d %H:%M")


def rows_key(prefix: str, ids: Sequence[int | str]) -> str:
    """Key of a table whose rows can be chosen: a choice made on other rows than are there now means nothing."""
    return f"{prefix}.{hashlib.sha256(repr(list(ids)).encode()).hexdigest()[:16]}"
