"""What happens once, before the server listens."""

from __future__ import annotations

import threading

from streamlit import get_option
from streamlit.runtime.pages_manager import PagesManager

from brainmri.errors import BrainMRIError
from brainmri.synthetic import samples
from brainmri.ui import state


def start() -> None:
    """Check the configuration, open the database, begin to load the model, print the address.

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
    threading.Thread(target=samples, name="draw samples", daemon=True).start()  # the first page shows them
    if get_option("logger.hideWelcomeMessage"):
        address, port = get_option("server.address") or "localhost", get_option("server.port")
        scheme = "https" if get_option("server.sslCertFile") else "http"
        print(f"\n  {scheme}://{address}:{port}/{get_option('server.baseUrlPath').strip('/')}\n", flush=True)
