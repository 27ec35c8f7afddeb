"""Router: page config, sign-in gate, st.navigation over pages/. Nothing else.

``streamlit run Home.py`` imports this file once before it listens, and runs it as a script for every session.
"""

from functools import partial
from pathlib import Path

import streamlit as st

from brainmri.errors import BrainMRIError
from brainmri.ui import server

SIGNED_IN = ("reader", "radiologist", "admin")
EVERYONE = ("guest", *SIGNED_IN)

# Section -> pages: file, title, icon, URL path, roles that see it. The first page of a role is its start page.
PAGES = {
    "Main": [
        ("main/overview.py", "Overview", ":material/home:", "overview", EVERYONE),
        ("main/predict.py", "Predict", ":material/neurology:", "predict", EVERYONE),
        ("main/history.py", "History", ":material/history:", "history", SIGNED_IN),
    ],
    "Explore": [
        ("explore/heatmaps.py", "Heatmaps", ":material/blur_on:", "heatmaps", EVERYONE),
        ("explore/evaluation.py", "Evaluation", ":material/fact_check:", "evaluation", EVERYONE),
        ("explore/audit.py", "Dataset audit", ":material/content_copy:", "audit", EVERYONE),
    ],
    "Clinical": [
        ("clinical/series.py", "Series viewer", ":material/view_in_ar:", "series", EVERYONE),
        ("clinical/pacs.py", "PACS", ":material/dns:", "pacs", ("radiologist",)),
        ("clinical/patients.py", "Patients", ":material/personal_injury:", "patients", SIGNED_IN),
        ("clinical/reports.py", "Reports", ":material/description:", "reports", SIGNED_IN),
    ],
    "Settings": [
        ("settings/account.py", "Account", ":material/person:", "account", SIGNED_IN),
        ("settings/users.py", "Users", ":material/group:", "users", ("admin",)),
    ],
}
FOLDER = Path(__file__).resolve().parent / "pages"


def run() -> None:
    """One run of one session."""
    st.set_page_config(page_title=auth.PRODUCT, page_icon="🧠", layout="wide")
    try:
        _route()
    except BrainMRIError as error:  # whatever the gate or a page did not turn into a message of its own
        st.error(theme.plain(str(error)), icon=":material/error:")


def _route() -> None:
    user = auth.authenticate()
    if user is None:
        # Every address leads to the sign-in form and stays in the address bar, so that signing in ends up there.
        addresses = [st.Page(auth.sign_in_page, title="Sign in", url_path=entry[3]) for _, entry in _entries()]
        start = st.Page(auth.sign_in_page, title="Sign in", url_path="sign-in", default=True)
        st.navigation([start, *addresses], position="hidden").run()
        return
    pages: dict[str, list] = {section: [] for section in PAGES}
    for section, (file, title, icon, path, roles) in _entries():
        shown, visible = (FOLDER / file, True) if user.role in roles else (partial(auth.refusal_page, roles), False)
        if user.must_change_password:  # then every address leads to where it is changed
            shown, visible = FOLDER / "settings/account.py", path == "account"
        options = {"title": title, "icon": icon}
        if not any(pages.values()):  # the start page answers at /; its own address needs a page of its own
            start = st.Page(
                shown, **options, url_path="start", default=True, visibility="visible" if visible else "hidden"
            )
            pages[section].append(start)
            visible = False
        pages[section].append(st.Page(shown, **options, url_path=path, visibility="visible" if visible else "hidden"))
    page = st.navigation(pages)
    st.set_page_config(page_title=f"{page.title} · {auth.PRODUCT}")
    auth.user_menu(user)
    page.run()


def _entries():
    return [(section, entry) for section, rows in PAGES.items() for entry in rows if (FOLDER / entry[0]).exists()]


if __name__ == "__main__":
    from brainmri.ui import auth, theme  # not above: its component can only be declared while a session runs

    run()
else:
    server.start()
    app = st.App(__file__, lifespan=server.lifespan)
