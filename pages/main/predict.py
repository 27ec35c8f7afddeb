"""Predict: choose images, see the answers, find them again in History."""

import streamlit as st

from brainmri.ui import predict, state
from brainmri.ui.inputs import clear_sources, pick_sources
from brainmri.ui.theme import page_header

user = state.current_user()
page_header("Predict", "Sort brain-MRI slices into glioma, meningioma, pituitary tumour or no tumour.")
if user.id is None:
    st.info(
        "Guest session: nothing you choose here is stored. Sign in to keep cases.", icon=":material/visibility_off:"
    )
model_id = predict.choose_model(user)
sources = pick_sources("predict")
if not sources:
    predict.empty_state()
    st.stop()

st.divider()
answers, errors = predict.answer_all(sources, model_id, user)
predict.engine_notice(model_id)
predict.show_all(answers, errors, sources)
st.button("Clear", icon=":material/close:", on_click=clear_sources, args=("predict",))
