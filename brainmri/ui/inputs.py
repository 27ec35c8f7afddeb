"""Choosing images: own files or a folder, a synthetic sample, a case from History."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING

import streamlit as st
from PIL import Image

from brainmri import synthetic
from brainmri.config import IGNORED_NAMES
from brainmri.errors import BrainMRIError, StorageError
from brainmri.types import CLASS_NAMES, CLASS_TITLES, NO_TUMOR, MRISlice
from brainmri.ui import state
from brainmri.ui.theme import local_time, plain

if TYPE_CHECKING:
    from brainmri.dicom import SetAside
    from brainmri.storage import Record

    Decoded = tuple[list[MRISlice], Sequence[SetAside]]

_HISTORY_CHOICES = 50


@dataclass(frozen=True)
class Source:
    """One chosen file, sample or case.

    Attributes
    ----------
    key : str
        New with every act of choosing, so that the same file chosen twice is two answers.
    read : callable
        Returns the slices, decoded, and what the file holds beside them. Raises BrainMRIError.
    content : callable
        Returns the bytes to keep with a record, or None where the slices are kept one by one.
    """

    key: str
    name: str
    read: Callable[[], Decoded]
    content: Callable[[], bytes | None]


def pick_slice(key: str, *, blind: bool = False) -> list[MRISlice]:
    """Let the reader choose one image: an upload, a sample, a case from History or the one in the address.

    Parameters
    ----------
    key : str
        Prefix of the widgets' session keys; one chooser a key.
    blind : bool
        Offer samples and cases without names, which may hold the class.

    Returns
    -------
    list of MRISlice
        Empty while nothing is chosen or the file cannot be read (which is then said on the page); several for a
        series or an archive.
    """
    sources = pick_sources(key, multiple=False, history=True, blind=blind)
    if not sources:
        return []
    source = sources[0]
    cached = st.session_state.get(f"{key}.slices")
    if cached is None or cached[0] != source.key:
        try:
            cached = (source.key, *source.read())
        except BrainMRIError as error:
            st.error(plain(str(error)), icon=":material/broken_image:")
            return []
        st.session_state[f"{key}.slices"] = cached
    show_set_aside(cached[2])
    return cached[1]


def show_set_aside(items: Sequence[SetAside]) -> None:
    """List what came in files without being a slice to answer; nothing where all was."""
    if items:
        with st.expander(f"Set aside ({len(items):,})", icon=":material/inventory_2:"):
            st.markdown("\n".join(f"- {plain(f'{item.name}: {item.reason}')}" for item in items))


def pick_sources(key: str, *, multiple: bool = True, history: bool = False, blind: bool = False) -> list[Source]:
    """Draw the chooser and return what is chosen now; the last act wins, and it outlives a change of page.

    Parameters
    ----------
    multiple : bool
        Many files or a folder instead of one file.
    history : bool
        Offer the reader's newest cases too.
    blind : bool
        Offer samples and cases without names, which may hold the class.
    """
    _warm_up()
    _forget_other_readers(key)
    if history:
        _open_asked(key)
    left, right = st.columns([5, 6], gap="medium")
    with left:
        _upload(key, multiple)
        if history:
            _history(key, blind)
    with right:
        _samples(key, blind)
    return st.session_state.get(f"{key}.sources", [])


def clear_sources(key: str) -> None:
    """Forget what was chosen and empty the uploader."""
    _choose(key, [])


def _forget_other_readers(key: str) -> None:
    """Who signs in after another in the same browser tab sees nothing of the other's choice."""
    user = state.current_user()
    if st.session_state.setdefault(f"{key}.reader", user.username) != user.username:
        for name in [n for n in st.session_state if str(n).startswith(f"{key}.")]:
            del st.session_state[name]
        st.session_state[f"{key}.reader"] = user.username


def _choose(key: str, sources: list[Source], *, empty_uploader: bool = True) -> None:
    if empty_uploader:
        st.session_state[f"{key}.round"] = st.session_state.get(f"{key}.round", 0) + 1
    st.query_params.pop("case", None)  # the case in the address is chosen no more
    st.session_state[f"{key}.sources"] = sources


def _upload(key: str, multiple: bool) -> None:
    uploads = state.settings().uploads
    folder = False
    if multiple:
        kind = st.segmented_control(
            "Upload",
            ["Files", "Folder"],
            default="Files",
            required=True,
            key=f"{key}.kind",
            persist_state="session",
            label_visibility="collapsed",
        )
        folder = kind == "Folder"
    widget = f"{key}.upload.{folder}.{st.session_state.get(f'{key}.round', 0)}"

    def changed() -> None:
        files = st.session_state[widget]
        files = files if isinstance(files, list) else [files] if files else []
        wanted = [f for f in files if not f.name.rsplit("/", 1)[-1].startswith(".")]
        wanted = [f for f in wanted if f.name.rsplit("/", 1)[-1].lower() not in IGNORED_NAMES]
        _choose(key, [_uploaded(f) for f in wanted], empty_uploader=False)

    limit = max(1, int(uploads.max_size_mb))
    st.file_uploader(
        "MRI slices: PNG, JPEG, TIFF, BMP, GIF, WebP, DICOM or a zip of them"
        if multiple
        else "An MRI slice: PNG, JPEG, TIFF, BMP, GIF, WebP or DICOM",
        accept_multiple_files="directory" if folder else multiple,
        max_upload_size=limit,
        key=widget,
        on_change=changed,
    )
    st.caption(f"A file that turns red is larger than {limit:,} MB and left out.")  # the server hears nothing of it


def _uploaded(file) -> Source:
    def read() -> Decoded:
        from brainmri.pipeline import read_file

        return read_file(file.getvalue(), file.name, state.settings())

    return Source(file.file_id, file.name, read, file.getvalue)


def _samples(key: str, blind: bool) -> None:
    st.markdown("**Try a sample**  \n:small[Synthetic images: no patient's, a lesion painted on template anatomy]")
    try:
        thumbnails = {label: _thumbnail(label) for label in CLASS_NAMES}
    except BrainMRIError as error:
        st.info(plain(str(error)), icon=":material/info:")
        return
    labels = list(CLASS_NAMES)
    if blind:
        labels = st.session_state.setdefault(f"{key}.shuffled", random.sample(labels, len(labels)))
    with st.container(horizontal=True, gap="small", key=f"{key}_sample_grid"):
        for number, label in enumerate(labels, start=1):
            with st.container(width=108, gap="xsmall"):
                title = f"Sample {number}" if blind else synthetic.sample(label).title
                st.image(thumbnails[label], width="stretch", alt=title, output_format="PNG")  # as it is, no JPEG of it
                name = CLASS_TITLES[label].removesuffix(" tumour") if label != NO_TUMOR else CLASS_TITLES[label]
                st.button(
                    title if blind else name,
                    key=f"{key}.sample.{number}" if blind else f"{key}.sample.{label}",
                    help=None if blind else synthetic.sample(label).description,
                    width="stretch",
                    on_click=_choose_sample,
                    args=(key, label),
                )


def _choose_sample(key: str, label: str) -> None:
    count = st.session_state[f"{key}.count"] = st.session_state.get(f"{key}.count", 0) + 1
    _choose(key, [_sampled(label, count)])


def _sampled(label: str, count: int) -> Source:
    def read() -> Decoded:
        return [synthetic.sample(label).slice], ()

    def content() -> bytes:
        return synthetic.sample(label).content

    return Source(f"sample-{label}-{count}", f"synthetic-{label}.png", read, content)


def _open_asked(key: str) -> None:
    """Choose the case in the address (``?case=``), which a link from another page sets."""
    asked = st.query_params.get("case", "")
    if not asked or [source.key for source in st.session_state.get(f"{key}.sources", [])] == [f"record-{asked}"]:
        return
    from brainmri.storage import may_see_images, open_record

    user = state.current_user()
    try:
        record = open_record(state.database(), user, int(asked) if asked.isdecimal() and len(asked) < 19 else -1)
    except StorageError:
        st.warning(f"There is no case {plain(asked[:20])} among yours.", icon=":material/search_off:")
        return
    if may_see_images(state.settings(), user, record):
        _choose(key, [_kept(record)])
        st.query_params["case"] = asked
    else:
        st.info("An administrator does not see other users' images.", icon=":material/visibility_off:")


def _kept(record: Record) -> Source:
    def read() -> Decoded:
        from brainmri.storage import load_slice

        return [load_slice(state.settings(), record)], ()

    return Source(f"record-{record.id}", record.name, read, lambda: None)


def _history(key: str, blind: bool) -> None:
    user = state.current_user()
    if user.id is None:
        return
    from brainmri.storage import find_records

    own_only = user.role == "admin" and not state.settings().accounts.admin_sees_images
    owner_id = user.id if own_only else None  # asked of the query: the newest cases may all be others'
    records = find_records(state.database(), user, owner_id=owner_id, limit=_HISTORY_CHOICES).records
    if not records:
        return
    by_id = {r.id: r for r in records}
    widget = f"{key}.case"

    def title(record_id: int) -> str:
        record = by_id[record_id]
        name = "" if blind else f"{record.name} · "
        return f"Case {record_id} · {name}{local_time(record.created_at)}"

    def changed() -> None:
        record = by_id.get(st.session_state[widget])
        _choose(key, [_kept(record)] if record else [])

    # It names what is chosen, whatever chose it: a case by this list or the address, or no case.
    chosen = {source.key for source in st.session_state.get(f"{key}.sources", [])}
    st.session_state[widget] = next((i for i in by_id if f"record-{i}" in chosen), None)
    st.selectbox(
        "Or a case from History",
        list(by_id),
        index=None,
        format_func=title,
        placeholder=f"Newest {len(by_id)}",
        key=widget,
        on_change=changed,
    )


@st.cache_data(show_spinner="Drawing the samples …")
def _thumbnail(label: str) -> bytes:
    image = Image.fromarray(synthetic.sample(label).slice.pixels)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    buffer = io.BytesIO()
    image.crop((left, top, left + side, top + side)).resize((236, 236)).save(buffer, "PNG")
    return buffer.getvalue()


@st.cache_resource(show_spinner=False)
def _warm_up() -> Thread:
    """Draw the samples in the background, once per process, so that the first press answers at once."""
    thread = Thread(target=lambda: [synthetic.sample(label) for label in CLASS_NAMES], daemon=True)
    thread.start()
    return thread
