"""Users: roles, deactivation, one-time passwords, invitations, the log."""

import streamlit as st

from brainmri import accounts, events
from brainmri.errors import AccountError, PermissionDeniedError
from brainmri.ui import auth, state, theme

LOG_LINES = 25  # on a page

user = state.require_role("admin")
database = state.database()
policy = state.settings().accounts.signup
POLICIES = {
    "open": "Anyone may sign up and becomes a reader.",
    "invite": "Signing up needs an invitation.",
    "closed": "Only administrators make accounts.",
}


def act(change, done: str) -> None:
    """Make a change and say so after the rerun; a refusal is shown in its place."""
    try:
        change()
    except (AccountError, PermissionDeniedError) as error:
        st.error(str(error), icon=":material/error:")
    else:
        auth.leave_message(done)
        st.rerun()


theme.page_header("Users")
st.caption(f"{POLICIES[policy]} (`accounts.signup: {policy}`)")
auth.show_message()
rows = accounts.list_users(database, user)
st.dataframe(
    [
        {
            "User name": row.user.username,
            "Name": row.user.name,
            "E-mail": row.user.email or "",
            "Role": row.user.role,
            "State": "locked" if row.locked_until else "active" if row.active else "deactivated",
            "Cases": row.n_records,
            "Signed in": row.n_sessions,
            "Last sign-in": theme.local_time(row.last_sign_in_at) if row.last_sign_in_at else "",
            "Since": theme.local_time(row.created_at)[:10],
        }
        for row in rows
    ],
    hide_index=True,
    column_config={
        "Signed in": st.column_config.NumberColumn(help="On how many browsers now"),
    },
)

change, add, invite, log = st.tabs(["Change a user", "Add a user", "Invitations", "Log"])

with change:
    # Oneself last: what is chosen at first is another.
    by_name = {row.user.username: row for row in sorted(rows, key=lambda row: row.user.id == user.id)}
    chosen = by_name[
        st.selectbox("User", by_name, format_func=lambda name: f"{name} · {by_name[name].user.name}", key="chosen")
    ]
    username = chosen.user.username
    with st.form("role", border=False):
        role = st.segmented_control(
            "Role", accounts.ROLES, default=chosen.user.role, required=True, key=f"r_{username}"
        )
        if st.form_submit_button("Set role", icon=":material/badge:"):
            act(lambda: accounts.set_role(database, user, username, role), f"{username} is {role} now.")
    with st.container(horizontal=True):
        if st.button("Reset password", icon=":material/key:", help="One-time password; ends this user's sessions"):
            try:
                with st.spinner("Resetting …"):
                    password = accounts.reset_password(database, user, username)
            except AccountError as error:
                st.error(str(error), icon=":material/error:")
            else:
                auth.leave_message(
                    f"One-time password of {username}, shown this once, good for {accounts.ONE_TIME_DAYS} days; "
                    "it must be changed at the next sign-in:",
                    password,
                )
                st.rerun()
        if chosen.active:
            if st.button("Deactivate", icon=":material/person_off:", help="Signs the user out and keeps them out"):
                act(lambda: accounts.set_active(database, user, username, False), f"{username} is deactivated.")
        elif st.button("Activate", icon=":material/person_check:"):
            act(lambda: accounts.set_active(database, user, username, True), f"{username} is active again.")
        if chosen.locked_until and st.button("Unlock", icon=":material/lock_open:"):
            act(lambda: accounts.unlock(database, user, username), f"{username} may try again.")

with add, st.form("add", border=False):
    added_before = st.session_state.get("users.added", 0)  # empty fields after each success, and only then
    new_username = st.text_input("User name", max_chars=64, key=f"new_username.{added_before}")
    new_name = st.text_input("Name", max_chars=200, key=f"new_name.{added_before}")
    new_email = st.text_input("E-mail (optional)", max_chars=254, key=f"new_email.{added_before}")
    new_role = st.segmented_control("Role", accounts.ROLES, default="reader", required=True, key="new_role")
    if st.form_submit_button("Add user", icon=":material/person_add:", type="primary"):
        password = accounts.one_time_password()
        try:
            added = accounts.add_user(
                database,
                user,
                username=new_username,
                name=new_name,
                email=new_email,
                role=new_role,
                password=password,
                one_time=True,
            )
        except AccountError as error:
            st.error(str(error), icon=":material/error:")
        else:
            st.session_state["users.added"] = added_before + 1
            days = accounts.ONE_TIME_DAYS
            auth.leave_message(
                f"Added {added.username}. One-time password, shown this once, good for {days} days:", password
            )
            st.rerun()

with invite:
    with st.form("invite", border=False):
        invited_role = st.segmented_control("Role", accounts.ROLES, default="reader", required=True, key="invited_role")
        note = st.text_input("For whom (a note for you)", max_chars=200)
        if st.form_submit_button("Make an invitation", icon=":material/mail:", disabled=policy == "closed"):
            code = accounts.create_invite(database, user, role=invited_role, note=note)
            auth.leave_message(f"Invitation, shown this once, good for {accounts.INVITE_DAYS} days:", code)
            st.rerun()
    for row in accounts.list_invites(database, user):
        with st.container(border=True, horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            fate = f"used by {theme.plain(row.used_by)}" if row.used_by else f"open until {row.expires_at:%d %b %Y}"
            st.markdown(f"**{row.role}** · {fate}  \n:gray[{theme.plain(row.note) or 'no note'}]", width="content")
            if not row.used_by and st.button("Take back", key=f"revoke_{row.id}", icon=":material/undo:"):
                accounts.revoke_invite(database, user, row.id)
                st.rerun()

with log:
    number = st.session_state.get("log_page", 1)
    page = events.find_events(database, user, limit=LOG_LINES, offset=(number - 1) * LOG_LINES)
    if page.events:
        first = (number - 1) * LOG_LINES + 1
        st.caption(f"{first}–{first + len(page.events) - 1} of {page.total:,}, newest first. Lines are never changed.")
        st.dataframe(
            [
                {
                    "When": theme.local_time(event.at),
                    "Who": event.username,
                    "What": event.what,
                    "Target": event.target,
                    "Before": event.before,
                    "After": event.after,
                }
                for event in page.events
            ],
            hide_index=True,
            height="content",
        )
    else:
        st.caption("Nothing was changed yet.")
    if page.total > LOG_LINES:
        st.pagination(-(-page.total // LOG_LINES), default=number, key="log_page")
