"""What the Dataset audit page shows: saved audits, and a new one that runs beside the page and can be stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from brainmri import audit as auditing
from brainmri.audit import Audit
from brainmri.config import check_writable
from brainmri.data import read_folder
from brainmri.displays import counted
from brainmri.errors import BrainMRIError, ConfigError
from brainmri.storage import utc_now
from brainmri.ui import state
from brainmri.ui.pictures import find_picture, thumbnail
from brainmri.ui.theme import class_title, link, plain

if TYPE_CHECKING:
    from brainmri.accounts import User

PAIRS_A_PAGE = 6
_PART_OF_STAGE = {"reading": (0.0, 0.3), "indexing": (0.3, 0.15), "searching": (0.45, 0.35), "comparing": (0.8, 0.2)}
"""Where a stage starts in the progress bar, and how much of it is its own; about its share of the time."""


# --- a running audit --------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """Somebody pressed Stop."""


@dataclass
class Job:
    """One audit in a thread of its own; the page polls it."""

    name: str
    save_to: Path
    user_id: int | None = None
    started: float = field(default_factory=time.monotonic)
    stage: str = "reading"
    done: int = 0
    total: int = 0
    result: Audit | None = None
    error: str | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)

    @property
    def stopped(self) -> bool:
        """Whether it ended because it was told to."""
        return self.finished.is_set() and self.result is None and self.error is None

    @property
    def share(self) -> float:
        """Of the work, 0 to 1."""
        start, width = _PART_OF_STAGE.get(self.stage, (0.0, 0.0))
        return min(1.0, start + width * self.done / max(self.total, 1))

    def report(self, stage: str, done: int, total: int) -> None:
        """Progress of `audit.audit`; ends it when Stop was pressed."""
        if self.stop.is_set():
            raise Stopped
        self.stage, self.done, self.total = stage, done, total


def start(name: str, read: Callable[[], pd.DataFrame], save_to: Path, user_id: int | None = None) -> Job:
    """Start an audit of the table that ``read`` gives, for a user; a finished one is saved."""
    job = Job(name, save_to, user_id)

    def work() -> None:
        try:
            found = auditing.audit(read(), name=name, progress=job.report)
            found.save(save_to, compressed=True)
            job.result = found
        except Stopped:
            pass
        except BrainMRIError as error:
            job.error = str(error)
        except Exception as error:  # a thread's exception reaches nobody else
            job.error = f"the audit broke off ({type(error).__name__}: {error})"
            raise
        finally:
            job.finished.set()

    threading.Thread(target=work, name=f"audit {name}", daemon=True).start()
    return job


@st.cache_resource(show_spinner=False)
def _jobs() -> dict[str, Job]:
    """The jobs of the process by data folder: two readers do not audit the same images twice at once."""
    return {}


# --- the page ---------------------------------------------------------------------------------------------------------


def show(user: User) -> None:
    """The whole page."""
    folder = state.settings().evaluation.directory
    _new_audit(user, folder)
    newest_first = sorted(((p.stat().st_mtime_ns, p.parent) for p in folder.glob("*/audit.json")), reverse=True)
    saved = {path.name: (str(path), stamp) for stamp, path in newest_first}
    if not saved:
        st.info(
            "There is no saved audit yet. Audit the configured data set above, or any folder:",
            icon=":material/content_copy:",
        )
        st.code("brainmri audit data/brain_tumor_mri --output evaluations/audit-mine", language="bash")
        return
    titles = {name: _title(*saved[name]) for name in saved}
    usable = [name for name in saved if titles[name] is not None]
    for name in (n for n in saved if n not in usable):
        st.warning(plain(str(_open(*saved[name]))), icon=":material/warning:")
    if not usable:
        return
    chosen = (
        st.selectbox("Audit", usable, format_func=lambda n: f"{titles[n]} · {n}", key="audit.chosen")
        if len(usable) > 1
        else usable[0]
    )
    found = _open(*saved[chosen])
    if not isinstance(found, Audit):  # it went while the page was drawn
        st.warning(plain(str(found)), icon=":material/warning:")
        return
    _counts(found)
    tabs = st.tabs(
        ["Leaking pairs", "Label conflicts", "Proposed split", "Files and sizes", "How it was found"],
        key="audit.tab",
        on_change="rerun",
    )
    for tab, section in zip(tabs, (_pairs, _conflicts, _split, _files, _method), strict=True):
        if tab.open:
            with tab:
                section(found)


@st.cache_resource(show_spinner=False, max_entries=4)
def _open(path: str, stamp: int) -> Audit | BrainMRIError:
    try:
        return Audit.load(path)
    except BrainMRIError as error:
        return error


@st.cache_data(show_spinner=False)
def _title(path: str, stamp: int) -> str | None:
    """What an audit calls its data, without keeping its tables; None where it cannot be opened."""
    found = _open(path, stamp)
    return found.summary["name"] if isinstance(found, Audit) else None


def _new_audit(user: User, folder: Path) -> None:
    root = state.settings().data.root
    job = _jobs().get(str(root))
    if job is not None and not job.finished.is_set():
        _watch(str(root))
        return
    if job is not None:
        _jobs().pop(str(root))
        if job.error:
            st.error(plain(job.error), icon=":material/error:")
        elif job.stopped:
            st.info("The audit was stopped; what was saved before is shown.", icon=":material/stop_circle:")
        elif job.result is not None:
            seconds = job.result.summary["cost"]["seconds"]
            st.success(f"Audited anew in {seconds:.0f} s: {plain(job.save_to.name)}.", icon=":material/check:")
            st.session_state["audit.chosen"] = job.save_to.name
    if not root.is_dir():
        st.caption(
            f":material/image_not_supported: The data set is not on this machine: a saved audit is shown without "
            f"pictures, and no new one can be made ({plain(str(root.name))}; data.root in config.yaml, or "
            "BRAINMRI_DATA)."
        )
        return
    if user.id is None:
        st.caption(":material/lock: A new audit reads every image and is for those who are signed in.")
        return
    try:
        check_writable(folder, "evaluation.directory")  # not after minutes of work
    except ConfigError as error:
        st.caption(f":material/edit_off: No new audit can be made: {plain(str(error))}.")
        return
    if st.button(
        "Audit the data set anew",
        icon=":material/refresh:",
        help="Reads every image once; minutes for thousands. The page stays usable, and it can be stopped.",
    ):
        # A folder of its own: nobody's audit takes the place of another's.
        own = f"audit-{root.name}-{utc_now():%Y%m%d-%H%M%S}".replace("_", "-")
        _jobs()[str(root)] = start(root.name, lambda: read_folder(root), folder / own, user.id)
        st.rerun()


@st.fragment(run_every=1.0)
def _watch(key: str) -> None:
    """Progress of the running audit, looked at every second."""
    job = _jobs().get(key)
    if job is None or job.finished.is_set():
        st.rerun()
    seconds = time.monotonic() - job.started
    count = f" {job.done:,} of {job.total:,}" if job.total else ""
    st.progress(job.share, f"{plain(job.name)}: {job.stage}{count} · {seconds:.0f} s")
    if job.stop.is_set():
        st.caption("Stopping after the step at hand …")
        return
    user = state.current_user()
    if user.id is None or (user.id != job.user_id and user.role != "admin"):
        return
    if st.button("Stop", icon=":material/stop_circle:", key="audit.stop"):
        job.stop.set()
        st.rerun(scope="fragment")


# --- what was found ---------------------------------------------------------------------------------------------------


def _counts(found: Audit) -> None:
    s = found.summary
    st.subheader(plain(s["name"]), anchor=False)
    with st.container(horizontal=True, gap="small"):
        _metric("Images", s["n_images"])
        _metric("Different slices", s["n_groups"], "Groups of images that show the same slice")
        for kind, n in s["pairs"].items():
            _metric(f"Pairs: {kind}", n)
        _metric("Label conflicts", len(s["label_conflicts"]), "Slices whose copies carry different labels")
        _metric("Unreadable", len(s["unreadable"]))
        _metric("Odd sizes", s["sizes"]["n_odd"], "A side under 64 px, or longer than 1.6 times the other")
    if not s["leaks"]:
        st.success("No slice is in two splits.", icon=":material/check:")
        return
    for leak in s["leaks"]:
        share = leak["images"] / leak["of"]
        st.markdown(
            f"**{leak['images']:,} of {counted(leak['of'], 'image')} ({share:.0%}) of {plain(leak['split'])}** show a "
            f"slice that is in {plain(leak['also_in'])} too."
        )
    classes = sorted({c for leak in s["leaks"] for c in leak["classes"]})
    table = [
        {
            "Images of": leak["split"],
            "also in": leak["also_in"],
            "all": f"{leak['images']:,}",
            **{class_title(c): f"{leak['classes'].get(c, 0):,}" for c in classes},
            "pairs": f"{leak['pairs']:,}",
        }
        for leak in s["leaks"]
    ]
    st.dataframe(pd.DataFrame(table), hide_index=True)


def _metric(title: str, value: int, what: str | None = None) -> None:
    st.metric(title, f"{value:,}", border=True, width="content", help=what)


_PAIR_TITLES = {
    "first": "first picture",
    "second": "second picture",
    **dict.fromkeys(("place_first", "place_second"), "its split and class"),
}


def _pair_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """The links as a table that fits a page."""

    def side(which: str) -> dict[str, Any]:
        titles = [class_title(label) for label in pairs[f"label_{which}"]]
        place = [f"{split} · {title}" for split, title in zip(pairs[f"split_{which}"], titles, strict=True)]
        return {which: pairs[which], f"place_{which}": place}

    turned = pairs["orientation"].map(lambda o: f", {o}" if auditing.ORIENTATIONS.index(o) > 1 else "")
    correlations = {"correlation": pairs["correlation"], "of detail": pairs["detail_correlation"]}
    return pd.DataFrame(side("first") | side("second") | {"kind": pairs["kind"] + turned} | correlations)


def _pairs(found: Audit) -> None:
    pairs = found.pairs
    if pairs.empty:
        st.success("No two images show the same slice.", icon=":material/check:")
        return
    left, middle, right = st.columns(3)
    across = left.segmented_control("Show", ["Across splits", "All"], default="Across splits", key="audit.across")
    kinds = middle.selectbox("Kind", ["All", *pairs["kind"].value_counts().index], key="audit.kind")
    order = right.selectbox(
        "Order",
        ["As found", "Least alike first", "Most alike first"],
        key="audit.order",
        help="The least alike are where to look for wrong links.",
    )
    shown = pairs
    if across != "All":
        shown = shown[(shown["split_first"] != shown["split_second"])]
    if kinds != "All":
        shown = shown[shown["kind"] == kinds]
    if order != "As found":
        shown = shown.sort_values("detail_correlation", ascending=order.startswith("Least"), kind="stable")
    st.caption(f"{counted(len(shown), 'direct link')}. Copies of copies are in one group without a link of their own.")
    if shown.empty:
        return
    pages = -(-len(shown) // PAIRS_A_PAGE)
    number = min(st.pagination(pages, key="audit.page"), pages) if pages > 1 else 1
    part = shown.iloc[(number - 1) * PAIRS_A_PAGE : number * PAIRS_A_PAGE]
    if any(_picture(found, path) for path in part["first"]):
        with st.container(horizontal=True, gap="small"):
            for _, pair in part.iterrows():
                with st.container(width=296, border=True):
                    _pair(found, pair)
    else:
        st.info(
            "The pictures appear here where the data set is on this machine (data.root in config.yaml, or "
            "BRAINMRI_DATA).",
            icon=":material/image_not_supported:",
        )
    st.dataframe(_pair_table(shown.head(2000)), hide_index=True, height=260, column_config=_PAIR_TITLES)
    st.download_button(
        "All links (CSV)",
        lambda: pairs.to_csv(index=False).encode(),
        "pairs.csv",
        "text/csv",
        icon=":material/download:",
        on_click="ignore",
    )


def _picture(found: Audit, path: str) -> Path | None:
    """The audited file, where the data set on this machine is the audited one; another may have equal paths.

    Audits of earlier versions do not say what they are of: the configured data set. A relative folder is meant from
    where the folder of evaluations lies, wherever the server was started.
    """
    root, home = state.settings().data.root, state.settings().evaluation.directory.parent
    if (home / found.summary.get("root", root)).resolve() != root.resolve():
        return None
    return find_picture(root, path)


def _pair(found: Audit, pair: pd.Series) -> None:
    orientation = auditing.ORIENTATIONS.index(pair["orientation"])
    with st.container(horizontal=True, gap="small"):
        for side in ("first", "second"):
            file = _picture(found, pair[side])
            with st.container(width=122):
                if file:
                    st.image(thumbnail(str(file)), width="stretch", alt=f"{Path(pair[side]).name}, {side} of a pair")
                st.caption(
                    f"**{plain(pair[f'split_{side}'])}** · {class_title(pair[f'label_{side}'])}  \n"
                    f"{plain(Path(pair[side]).name)}"
                )
    turned = f", {pair['orientation']}" if orientation > 1 else ""
    st.caption(f"{pair['kind']}{turned} · detail correlation {pair['detail_correlation']:.3f}")


def _conflicts(found: Audit) -> None:
    conflicts, second = found.summary["label_conflicts"], found.summary["second_labels"]
    if not conflicts and not second:
        st.success("No slice carries two labels.", icon=":material/check:")
        return
    with st.container(horizontal=True, gap="small"):
        for conflict in conflicts:
            with st.container(width=460, border=True):
                st.markdown(
                    f"**Group {conflict['group']}** · "
                    + " or ".join(sorted({class_title(i["label"]).lower() for i in conflict["images"]}))
                    + "?"
                )
                with st.container(horizontal=True, gap="small"):
                    for image in conflict["images"]:
                        file = _picture(found, image["path"])
                        with st.container(width=150):
                            if file:
                                st.image(thumbnail(str(file)), width="stretch", alt=Path(image["path"]).name)
                            st.caption(f"{class_title(image['label'])}  \n{plain(image['path'])}")
    if second:
        st.markdown("**Another label column of the manifest disagrees**")
        st.dataframe(pd.DataFrame(second), hide_index=True)


def _split(found: Audit) -> None:
    proposed = found.summary["proposed_split"]
    st.markdown(
        "Whole groups only, stratified by class: no slice is on two sides, nor is a patient where the audit had a "
        "`patient` column. In validation and test one image of a group counts; its further copies are `repeat` and "
        "belong nowhere. Other slices of a patient are no copies, and count."
    )
    counts: dict[str, dict[str, Any]] = proposed["counts"]
    order = [s for s in ("train", "val", "test", "repeat") if s in counts]
    table = pd.DataFrame(
        [
            {
                "Split": s,
                **{class_title(c): f"{n:,}" for c, n in counts[s].items()},
                "all": f"{sum(counts[s].values()):,}",
            }
            for s in order
        ]
    )
    st.dataframe(table, hide_index=True)
    if proposed["leaks"]:
        st.error("This split leaks: see audit.json.", icon=":material/error:")
    else:
        st.success("Checked: no slice of it is in two of train, val and test.", icon=":material/check:")
    manifest = found.proposed()
    st.download_button(
        "Download the proposed split (CSV)",
        lambda: manifest.to_csv(index=False).encode(),
        "proposed_split.csv",
        "text/csv",
        icon=":material/download:",
        type="primary",
        on_click="ignore",
    )
    st.caption(
        "A manifest for `brainmri train` and `brainmri evaluate --manifest`. Copies are all it knows of: where "
        "patients are known, give the audit a `patient` column, and it keeps them together too."
    )


def _files(found: Audit) -> None:
    s = found.summary
    st.markdown(
        f"**{counted(s['sizes']['distinct'], 'size')}**; the commonest: "
        + ", ".join(f"{size} ({n:,})" for size, n in s["sizes"]["commonest"].items())
    )
    left, right = st.columns(2)
    left.markdown(f"**{counted(len(s['unreadable']), 'unreadable file')}**")
    if s["unreadable"]:
        left.dataframe(pd.DataFrame(s["unreadable"]), hide_index=True)
    right.markdown(f"**{counted(s['sizes']['n_odd'], 'odd size')}**")
    if s["sizes"]["odd"]:
        right.dataframe(pd.DataFrame(s["sizes"]["odd"]), hide_index=True, height=300)


def _method(found: Audit) -> None:
    s = found.summary
    limits, cost = s["thresholds"], s["cost"]
    st.markdown(
        "Every picture becomes a 64 × 64 thumbnail; its nearest neighbours in fine structure, in all eight ways it can "
        f"be turned and mirrored, are compared in full. Two pictures are the same slice from a correlation of "
        f"**{limits['correlation']}** and, of the fine structure, **{limits['detail_correlation']}**; brightness, "
        "contrast and sharpness do not count. Groups are chains of such links."
    )
    st.markdown(
        "Neighbouring slices of one patient are different pictures, and leak all the same: no audit of pictures "
        "finds them."
    )
    took = f"{cost['seconds']:.0f} s, {cost['cpu_seconds']:.0f} s of processor time"
    st.caption(f"{took}, on {counted(cost['cpu_count'], 'core')}; {cost['peak_memory_mb']:,.0f} MB.")
    link("pages/explore/evaluation.py", "What the leaks do to a model's figures")
