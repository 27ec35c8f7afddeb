"""Evaluation: saved runs read from every side, always named by model, data, split and n."""

from brainmri.ui import evaluation, state
from brainmri.ui.theme import page_header

state.current_user()
page_header("Evaluation", "What the model gets right, where it fails, and whether it looks at the tumour.")
evaluation.show()
