"""What happens once, before the server listens."""

from __future__ import annotations

import importlib
import logging

from streamlit.runtime.pages_manager import PagesManager

from brainmri.errors import BrainMRIError
from brainmri.ui import state


def start() -> None:
    """Check the configuration, open the database, begin to load the model.

    Raises
    ------
    SystemExit
        With one line that says what is wrong, instead of a server that cannot answer.
    """
    try:
        state.settings()
        state.database()
    except BrainMRIError as error:
        raise SystemExit(f"brainmri: {error}") from None
    # Streamlit looks through pages/ itself until a session has called st.navigation: a first visitor who asks for
    # any address but / would be told that there is no such page.
    PagesManager.uses_pages_directory = False
    state.classifier_ready()
    _import_quietly("brainmri.ui.auth")  # now, so that the first visitor does not wait for it


def _import_quietly(module: str) -> None:
    """Import a module that declares components: Streamlit warns of each that there is no session yet."""
    logging.disable(logging.WARNING)
    try:
        importlib.import_module(module)
    finally:
        logging.disable(logging.NOTSET)
