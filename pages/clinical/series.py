"""Series viewer: a DICOM series in anatomical order, answered slice by slice and as a whole."""

from brainmri.ui import series, state
from brainmri.ui.theme import page_header

user = state.current_user()
page_header("Series viewer", "Scroll through a DICOM series, see which slices drive the answer, keep it.")
reading = series.pick_upload(user)
if reading is None:
    series.empty_state()
else:
    series.show_reading(reading, user)
