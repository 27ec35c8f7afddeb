"""Account: profile, password, sign-ins."""

import streamlit as st

from brainmri import accounts
from brainmri.errors import AccountError
from brainmri.ui import auth, state
from brainmri.ui.theme import local_time, page_header

user = state.require_role("reader", "radiologist", "admin")
session_id = st.session_state[state.SESSION_KEY]
database = state.database()

page_header("Account")
auth.show_message()
if user.must_change_password:
    st.warning("Your password was given to you once. Choose your own to go on.", icon=":material/key:")
else:
    st.caption(f"User name **{user.username}** · role **{user.role}**")

left, right = st.columns(2, gap="large")
with right:
    auth.password_form(user)

if not user.must_change_password:
    with left, st.form("profile"):
        st.subheader("Profile")
        name = st.text_input("Name", user.name, max_chars=200)
        email = st.text_input("E-mail (optional)", user.email or "", max_chars=254)
        if st.form_submit_button("Save", icon=":material/save:"):
            try:
                accounts.update_profile(database, user, name=name, email=email)
            except AccountError as error:
                st.error(str(error), icon=":material/error:")
            else:
                auth.leave_message("Saved.")
                st.rerun()

    st.subheader("Where you are signed in")
    here = accounts.session_key(session_id)
    sign_ins = accounts.list_sessions(database, user)
    for sign_in in sign_ins:
        with st.container(border=True, horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            since, used = local_time(sign_in.created_at), local_time(sign_in.last_seen_at)
            st.markdown(
                f"**{sign_in.client or 'Unknown browser'}**{' · this one' if sign_in.key == here else ''}  \n"
                f":gray[since {since}, last used {used}]",
                width="content",
            )
            if sign_in.key != here and st.button("End", key=f"end_{sign_in.key[:12]}", icon=":material/logout:"):
                accounts.end_session(database, user, sign_in.key)
                st.rerun()
    if len(sign_ins) > 1 and st.button("End all others", icon=":material/devices:"):
        accounts.end_other_sessions(database, user, session_id)
        auth.leave_message("You are signed in here only.")
        st.rerun()
    st.caption("Signing out ends all of them.")
