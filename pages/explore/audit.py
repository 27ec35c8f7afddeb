"""Dataset audit: copies, leaks and label conflicts of an image set, and a split that does not leak."""

from brainmri.ui import audit, state
from brainmri.ui.theme import page_header

user = state.current_user()
page_header("Dataset audit", "Is the same slice in training and in the test? Does it carry two labels?")
audit.show(user)
