"""PACS: a series straight from the archive into the Series viewer."""

from brainmri.ui import pacs, state
from brainmri.ui.theme import page_header

user = state.require_role("radiologist")
page_header("PACS", "Search the archive and open a series. What it says of patients is shown here and stored nowhere.")
server = pacs.pick_server()
if server is not None:
    pacs.search(user, server)
