"""What happens once, before the server listens."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from streamlit import get_option
from streamlit.runtime.pages_manager import PagesManager

from brainmri import accounts, config
from brainmri.errors import BrainMRIError, StorageError
from brainmri.synthetic import samples
from brainmri.ui import state


def start() -> None:
    """Check the configuration and the files it names, open the database, begin to load the model, print the address.

    Raises
    ------
    SystemExit
        With one line that says what is wrong, instead of a server that cannot answer.
    """
    try:
        _check_files()
        state.database()
    except BrainMRIError as error:
        raise SystemExit(f"brainmri: {error}") from None
    # Streamlit looks through pages/ itself until a session has called st.navigation: a first visitor who asks for
    # any address but / would be told that there is no such page.
    PagesManager.uses_pages_directory = False
    state.classifier_ready()
    threading.Thread(target=samples, name="draw samples", daemon=True).start()  # the first page shows them
    if get_option("logger.hideWelcomeMessage"):
        address, port = get_option("server.address") or "localhost", get_option("server.port")
        scheme = "https" if get_option("server.sslCertFile") else "http"
        print(f"\n  {scheme}://{address}:{port}/{get_option('server.baseUrlPath').strip('/')}\n", flush=True)


@asynccontextmanager
async def lifespan(_app: Any) -> AsyncIterator[None]:
    """While the server runs; after its end, by a signal too, SQLite's file is whole without the log beside it."""
    yield
    state.database().close()


def _check_files() -> None:
    """Make the cookie key, and see that uploads can be kept: a page would find out only when somebody is there."""
    chosen = state.settings()
    config.check_writable(chosen.uploads.directory, "uploads.directory")
    try:
        accounts.cookie_key(chosen.accounts.key_file)
    except StorageError as error:
        raise StorageError(f"{error}; let the server write there, or name another file in accounts.key_file") from error
