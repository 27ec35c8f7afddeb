"""What every page shares: settings, database, classifier, and who is signed in."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import ParamSpec, TypeVar

import streamlit as st

from brainmri import accounts, config, storage
from brainmri.accounts import GUEST, User
from brainmri.config import ModelSettings, ServingSettings, Settings
from brainmri.errors import PermissionDeniedError
from brainmri.inference import Classifier, load_classifier
from brainmri.serving import BatchingClassifier
from brainmri.storage import Database

P = ParamSpec("P")
T = TypeVar("T")

SESSION_KEY = "brainmri_session"
"""Session state: id of the signed-in session, checked against the database whenever the user is asked for."""

GUEST_KEY = "brainmri_guest"
"""Session state: True after "Try as a guest"."""


_SEEN_KEY = "brainmri_answers_seen"
_LOCK = threading.RLock()


def _once(function: Callable[P, T]) -> Callable[P, T]:
    """One result per process and arguments, shared by all sessions; an error is not kept.

    Unlike ``st.cache_resource`` it also works before the server listens.
    """
    cached = functools.lru_cache(maxsize=8)(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with _LOCK:
            return cached(*args, **kwargs)  # type: ignore[arg-type]

    return call


def settings() -> Settings:
    """The configuration, read once per process.

    Raises
    ------
    ConfigError
    """
    return _settings(os.environ.get("BRAINMRI_CONFIG"), os.environ.get("BRAINMRI_DATA"))


@_once
def _settings(path: str | None, data_root: str | None) -> Settings:
    return config.load_settings(path)


def database() -> Database:
    """The database, opened and brought up to date once per process.

    While there is no administrator, the first call prints the code that makes one on the server's console.

    Raises
    ------
    StorageError
    """
    current = settings()
    return _database(current.database.url, current)


@_once
def _database(url: str, _settings: Settings) -> Database:
    opened = Database(url)
    storage.sweep_uploads(opened, _settings)
    if code := accounts.setup_code(opened):
        print(
            f"\n  There is no administrator yet. Sign up with this one-time code to become one: {code}\n",
            file=sys.stderr,
            flush=True,
        )
    return opened


def classifier(model_id: str | None = None) -> Classifier:
    """The model, shared by all sessions of the process; waits, with a spinner, while it loads.

    Parameters
    ----------
    model_id : str, optional
        Default: ``model.id`` of the configuration.

    Raises
    ------
    ModelError
        It does not load; the next call tries again.
    """
    future = _future(model_id)
    if future.done():
        return future.result()
    with st.spinner("Loading the model …"):
        return future.result()


def classifier_ready(model_id: str | None = None) -> bool:
    """Whether the model is loaded; starts loading it, and does not wait."""
    future = _future(model_id)
    return future.done() and future.exception() is None


def classifier_failure(model_id: str | None = None) -> str | None:
    """Why the model did not load at the last try; None while it loads and where it did. Starts nothing."""
    future = _LOADING.get(_key(model_id or settings().model.id))
    return str(future.exception()) if future is not None and future.done() and future.exception() else None


_Key = tuple[str, ModelSettings, ServingSettings, int]
_LOADING: dict[_Key, Future[Classifier]] = {}
_KEPT_MODELS = 4


def _future(model_id: str | None) -> Future[Classifier]:
    key, configured = _key(model_id or settings().model.id), _key(settings().model.id)
    with _LOCK:
        future = _LOADING.pop(key, None)
        if future is None or (future.done() and future.exception()):
            future = _load(*key[:3])
        _LOADING[key] = future  # last: the first is what nobody asked for the longest
        spare = [k for k in _LOADING if k not in (key, configured)]
        for old in spare[: max(0, len(_LOADING) - _KEPT_MODELS)]:
            del _LOADING[old]  # it leaves memory once nobody holds it
    return future


def _key(model_id: str) -> _Key:
    """A model trained anew under the same id is another model."""
    chosen, serving = settings().model, settings().serving
    card = Path(chosen.directory) / f"{model_id}.json"
    return model_id, chosen, serving, card.stat().st_mtime_ns if card.is_file() else 0


def _load(model_id: str, chosen: ModelSettings, serving: ServingSettings) -> Future[Classifier]:
    future: Future[Classifier] = Future()

    def load() -> None:
        try:
            loaded = load_classifier(model_id, chosen.directory, chosen.engine)
            future.set_result(BatchingClassifier(loaded, max_batch=serving.max_batch, queue_size=serving.queue_size))
        except BaseException as error:
            print(f"Model {model_id} does not load: {error}", file=sys.stderr, flush=True)
            future.set_exception(error)

    threading.Thread(target=load, name=f"load {model_id}", daemon=True).start()
    return future


def note_answers_seen(images: Iterable[str]) -> None:
    """Remember, for this browser session, whose answers were on its screen: images by their sha256."""
    st.session_state.setdefault(_SEEN_KEY, set()).update(images)


def answer_was_seen(image: str) -> bool:
    """Whether the answer to an image was on this session's screen, on whatever page."""
    return image in st.session_state.get(_SEEN_KEY, ())


def signed_in_user() -> User | None:
    """Who is signed in, as the database says now; None for nobody."""
    session_id = st.session_state.get(SESSION_KEY)
    if session_id:
        return accounts.session_user(database(), session_id)
    if st.session_state.get(GUEST_KEY) and settings().accounts.guest:
        return GUEST
    return None


def current_user() -> User:
    """Who is signed in. A page that nobody is signed in to ends here and shows nothing."""
    user = signed_in_user()
    if user is None:
        if st.session_state.pop(SESSION_KEY, None):
            st.rerun()  # the session ended elsewhere: from a fragment, too, back to the sign-in page
        st.info("Sign in to see this page.", icon=":material/lock:")
        st.stop()
    return user


def require_role(*roles: str) -> User:
    """The signed-in user, who must have one of these roles.

    Raises
    ------
    PermissionDeniedError
        Another role.
    """
    user = current_user()
    if user.role not in roles:
        raise PermissionDeniedError(f"This is for {' and '.join(roles)}; you are signed in as {user.role}.")
    return user
