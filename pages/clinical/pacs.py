"""PACS: a series straight from the archive into the Series viewer."""

from brainmri.ui import pacs, state
from brainmri.ui.theme import page_header

user = state.require_role("radiologist")
kept = "stored nowhere" if state.settings().dicom.deidentify else "kept with a series that is kept"
page_header("PACS", f"Search the archive and open a series. What it says of patients is shown here and {kept}.")
server = pacs.pick_server()
if server is not None:
    pacs.search(user, server)
