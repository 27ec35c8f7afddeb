"""Overview: what this is and is not, how to start, and the card of the model that answers."""

from brainmri.model import read_card
from brainmri.ui import overview, state
from brainmri.ui.theme import page_header

user = state.current_user()
page_header("Brain MRI classifier", "A VGG16 that sorts single brain-MRI slices, and shows what it looked at.")
state.classifier_ready()  # starts loading the model, so that it is there when the reader gets to Predict
overview.show_welcome(user)
overview.show_scope()
settings = state.settings().model
overview.show_card(read_card(settings.id, settings.directory))
