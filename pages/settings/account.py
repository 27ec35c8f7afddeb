"""Account: profile, password, sign-ins."""

import streamlit as st

from brainmri.ui import state

user = state.current_user()
st.title("Account")
st.write(user.name)
