"""The sign-in gate: streamlit-authenticator's forms and cookie, over accounts that live in the database."""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Any

import jwt
import streamlit as st
from PIL import Image
from streamlit_authenticator import Authenticate
from streamlit_authenticator.controllers import AuthenticationController, CookieController
from streamlit_authenticator.models import CookieModel

from brainmri import accounts
from brainmri.accounts import User
from brainmri.errors import AccountError, DataError
from brainmri.synthetic import samples
from brainmri.types import CLASS_TITLES
from brainmri.ui import theme
from brainmri.ui.state import GUEST_KEY, SESSION_KEY, current_user, database, settings, signed_in_user

PRODUCT = "Brain MRI"
TAGLINE = "Sorts brain-MRI slices into glioma, meningioma, pituitary tumour and no tumour, and shows what it looked at."
DISCLAIMER = "For research and teaching. Not a medical device, not a diagnosis."

_COOKIE = "brainmri_cookie"
"""Session state: what this session last had the browser do with its cookie, as the JavaScript that does it."""

_MESSAGE = "brainmri_message"

_PASSWORD_HELP = (
    f"At least {accounts.MIN_PASSWORD_CHARACTERS} characters, at most {accounts.MAX_PASSWORD_BYTES} bytes. "
    "A few unrelated words make a good one; the user name, common words alone and sequences do not."
)


class SessionCookie(CookieModel):
    """The library's cookie, with a session id inside its token that the database must still know.

    The library's own token holds a name and a date only, so it could not be taken back.
    """

    def __init__(self, name: str, key: str, days: float):
        # Not the parent's: it puts a hidden frame on every page. Here only a change of the cookie does.
        self.cookie_name, self.cookie_key, self.cookie_expiry_days = name, key, days
        self.token = self.exp_date = None

    def get_cookie(self) -> dict[str, Any] | None:
        """The token of the cookie that the browser sent, if its session is alive."""
        raw = st.context.cookies.get(self.cookie_name)
        if not raw:
            return None
        try:
            token = jwt.decode(raw, self.cookie_key, algorithms=["HS256"], options={"require": ["exp"]})
        except jwt.InvalidTokenError:
            return None
        session_id = token.get("session_id")
        user = accounts.session_user(database(), session_id) if isinstance(session_id, str) else None
        return {**token, "username": user.username} if user else None

    def set_cookie(self) -> None:
        """Have the browser keep the session; see `flush`."""
        self.exp_date = self._set_exp_date()
        self._write(self._token_encode(), int(self.exp_date or 0))

    def delete_cookie(self) -> None:
        """Have the browser forget the session; see `flush`."""
        self._write("", 0)

    def _token_encode(self) -> str:
        claims = {"session_id": st.session_state[SESSION_KEY], "exp": int(self.exp_date or 0)}
        return jwt.encode(claims, self.cookie_key, algorithm="HS256")

    def _write(self, value: str, expires: int) -> None:
        secure = "; Secure" if (st.context.url or "").startswith("https:") else ""
        cookie = (
            f"{self.cookie_name}={value}; Expires={formatdate(expires, usegmt=True)}; Path=/; SameSite=Strict{secure}"
        )
        st.session_state[_COOKIE] = f"document.cookie = {json.dumps(cookie)}".replace("<", "\\u003c")

    def flush(self) -> None:
        """Put the script that sets or deletes the cookie on the page, for the rest of the session.

        The browser runs it once. A component would answer with a rerun of its own, in which a click that has just been
        made is lost.
        """
        st.html("<style>.st-key-cookie_frame { display: none; }</style>")
        with st.container(key="cookie_frame"):  # always there: what stands below must not move under a click
            if script := st.session_state.get(_COOKIE):
                st.html(f"<script>{script}</script>", unsafe_allow_javascript=True)


class DatabaseController(AuthenticationController):
    """What the library's forms call; every decision is `accounts`'."""

    def __init__(self) -> None:
        # Not the parent's: it keeps all users in a dictionary.
        for key in ("name", "authentication_status", "username", "email", "roles", "logout"):
            st.session_state.setdefault(key, None)

    def login(
        self, username: str | None = None, password: str | None = None, *_: Any, token: Any = None, **__: Any
    ) -> bool | None:
        """By cookie, else by password."""
        if token:
            _enter(token["session_id"])
            return True
        if not username or not password:
            raise AccountError("Enter user name and password.")
        days = settings().accounts.cookie_days
        address = st.context.ip_address or ""  # none from this machine
        _enter(accounts.sign_in(database(), username, password, days=days, client=_client(), address=address)[1])
        return True

    def logout(self, callback: Callable[..., None] | None = None) -> None:
        """End all of the user's sessions and forget everything this one holds."""
        if user := signed_in_user():
            accounts.sign_out(database(), user)
        script = st.session_state.get(_COOKIE)
        st.session_state.clear()
        if script:
            st.session_state[_COOKIE] = script

    def register_user(
        self,
        new_first_name: str,
        new_last_name: str,
        new_email: str,
        new_username: str,
        new_password: str,
        new_password_repeat: str,
        password_hint: str,
        *_: Any,
        **__: Any,
    ) -> tuple[str | None, str, str]:
        """Sign up and in. The form's hint field asks for the invitation code: hints are off."""
        if new_password != new_password_repeat:
            raise AccountError("The two passwords differ.")
        made = accounts.sign_up(
            database(),
            settings().accounts.signup,
            username=new_username,
            name=f"{new_first_name} {new_last_name}",
            email=new_email,
            password=new_password,
            code=password_hint,
        )
        self.login(made.username, new_password)
        return made.email, made.username, made.name

    def reset_password(
        self, username: str, password: str, new_password: str, new_password_repeat: str, *_: Any, **__: Any
    ) -> bool:
        """Change one's own password; the user's other sessions end."""
        user = signed_in_user()
        if user is None or user.username != username:
            raise AccountError("Sign in to change your password.")
        if new_password != new_password_repeat:
            raise AccountError("The two new passwords differ.")
        accounts.change_password(database(), user, password, new_password, st.session_state[SESSION_KEY])
        return True


class Authenticator(Authenticate):
    """The library's forms over `DatabaseController` and `SessionCookie`."""

    def __init__(self) -> None:
        chosen = settings().accounts
        self.attrs = {"login_sleep_time": 0, "password_instructions": _PASSWORD_HELP}  # its pause guards nothing here
        self.path = self.api_key = None
        self.cookie = SessionCookie(chosen.cookie_name, accounts.cookie_key(chosen.key_file), chosen.cookie_days)
        self.cookie_controller = CookieController.__new__(CookieController)
        self.cookie_controller.cookie_model = self.cookie
        self.authentication_controller = DatabaseController()


def _enter(session_id: str) -> None:
    st.session_state[SESSION_KEY] = session_id
    st.session_state.pop(GUEST_KEY, None)
    st.session_state["authentication_status"] = True


def _client() -> str:
    """Browser and system, as the browser names itself, in two words."""
    agent = st.context.headers.get("User-Agent", "")
    browsers = {"Edg/": "Edge", "OPR/": "Opera", "Firefox/": "Firefox", "Chrome/": "Chrome", "Safari/": "Safari"}
    systems = {"Android": "Android", "iPhone": "iPhone", "iPad": "iPad", "Windows": "Windows", "Mac OS": "macOS"}
    browser = next((name for sign, name in browsers.items() if sign in agent), "Browser")
    system = next((name for sign, name in {**systems, "Linux": "Linux"}.items() if sign in agent), "")
    return f"{browser} on {system}" if system else browser


def authenticate() -> User | None:
    """Who is signed in to this run: by this session, else by the browser's cookie. The gate every run goes through."""
    user = signed_in_user()
    # Where `current_user` found that the session has ended, its key is gone and only the status tells of it.
    if user is None and any(st.session_state.get(k) for k in (SESSION_KEY, GUEST_KEY, "authentication_status")):
        st.session_state.clear()  # whoever signs in next may be someone else
    authenticator = Authenticator()
    if user is None and (token := authenticator.cookie.get_cookie()):
        authenticator.authentication_controller.login(token=token)
        user = signed_in_user()
    authenticator.cookie.flush()
    return user


def sign_in_page() -> None:
    """What everybody sees who is not signed in, whatever page they asked for."""
    chosen = settings().accounts
    first = not accounts.has_admin(database())
    may_sign_up = chosen.signup != "closed" or first
    left, right = st.columns([6, 5], gap="large", vertical_alignment="top")
    with left:
        st.title(f":material/neurology: {PRODUCT}", anchor=False)
        st.markdown(f"#### {TAGLINE}")
        with contextlib.suppress(DataError):  # the samples' anatomy is not installed: the door opens all the same
            st.image(_strip(), width="stretch", output_format="PNG", alt="Four synthetic slices, one of each class")
            st.caption(f"{' · '.join(CLASS_TITLES.values())}: synthetic samples, drawn by this program.")
        if chosen.guest:
            with st.container(horizontal=True, vertical_alignment="center"):
                if st.button("Try as a guest", icon=":material/visibility:", type="primary", key="guest"):
                    st.session_state[GUEST_KEY] = True
                    st.rerun()
                st.caption("No account needed; nothing is stored.", width="content")
        st.info(f"**Research use only.** {DISCLAIMER}", icon=":material/science:")
    with right:
        if may_sign_up:
            sign_in_tab, sign_up_tab = st.tabs(["Sign in", "Sign up"])
            with sign_in_tab:
                _sign_in_form()
            with sign_up_tab:
                _sign_up_form(chosen.signup, first)
        else:
            _sign_in_form()
            st.caption("Accounts are made by an administrator.")


@functools.cache
def _strip() -> bytes:
    """PNG of the synthetic samples side by side."""
    drawn = [samples()[name].slice.pixels for name in CLASS_TITLES]
    strip = Image.new("LA", (4 * 252 - 12, 240))
    for i, pixels in enumerate(drawn):
        strip.paste(Image.fromarray(pixels).resize((240, 240)).convert("LA"), (i * 252, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "PNG")
    return buffer.getvalue()


def _sign_in_form() -> None:
    try:
        Authenticator().login(
            fields={"Form name": "Sign in", "Username": "User name", "Password": "Password", "Login": "Sign in"},
            key="sign_in",
        )
    except AccountError as error:
        st.error(str(error), icon=":material/error:")
        return
    if signed_in_user():
        st.rerun()


def _sign_up_form(policy: str, first: bool) -> None:
    if first:
        st.caption("There is no administrator yet: the server printed a one-time code on its console that makes one.")
    code = {"open": "Code (optional)", "invite": "Invitation code", "closed": "Set-up code"}[policy]
    try:
        Authenticator().register_user(
            fields={
                "Form name": "Sign up",
                "First name": "First name",
                "Last name": "Last name (optional)",
                "Email": "E-mail (optional)",
                "Username": "User name",
                "Password": "Password",
                "Repeat password": "Repeat password",
                "Password hint": code,
                "Register": "Sign up",
            },
            captcha=False,
            key="sign_up",
        )
    except AccountError as error:
        st.error(str(error), icon=":material/error:")
        return
    if signed_in_user():
        Authenticator().cookie.set_cookie()
        st.rerun()


def password_form(user: User) -> None:
    """The library's form for changing one's own password."""
    st.session_state["authentication_status"] = True  # the library asks; `DatabaseController` asks the database
    try:
        changed = Authenticator().reset_password(
            user.username,
            fields={
                "Form name": "Password",
                "Current password": "Current password",
                "New password": "New password",
                "Repeat password": "Repeat new password",
                "Reset": "Change password",
            },
            clear_on_submit=True,
            key="password",
        )
    except AccountError as error:
        st.error(str(error), icon=":material/error:")
        return
    if changed:
        leave_message("Your password is changed, and your other sign-ins have ended.")
        st.rerun()


def leave_message(text: str, secret: str | None = None) -> None:
    """Say something after the coming rerun; see `show_message`."""
    st.session_state[_MESSAGE] = (text, secret)


def show_message() -> None:
    """Show what the run before left, once; a secret in a box it can be copied from."""
    text, secret = st.session_state.pop(_MESSAGE, (None, None))
    if text:
        st.success(text, icon=":material/check:")
    if secret:
        st.code(secret, language=None)


def refusal_page(roles: Sequence[str]) -> None:
    """What a signed-in user sees at the address of a page that is not for their role.

    Parameters
    ----------
    roles : sequence of str
        Whom the page is for.
    """
    user = current_user()
    if user.id is None:
        st.info("This page needs an account: sign in or sign up from the sidebar.", icon=":material/lock:")
    else:
        only = " and ".join(f"“{role}”" for role in roles)
        whom = "" if user.role == "admin" else "; ask an administrator"
        st.info(f"This page is not open to the role “{user.role}”, only to {only}{whom}.", icon=":material/lock:")


def user_menu(user: User) -> None:
    """Who is signed in, and the way out, at the foot of the sidebar."""
    with st.sidebar:
        if user.id is None:
            st.caption("You are a guest: nothing is stored.")
            if st.button("Sign in or sign up", icon=":material/login:", key="leave_guest", width="stretch"):
                st.session_state.clear()
                st.rerun()
            return
        st.caption(f"{theme.plain(user.name)} · {user.role}")
        if st.button("Sign out", icon=":material/logout:", key="sign_out", width="stretch"):
            authenticator = Authenticator()
            authenticator.authentication_controller.logout()
            authenticator.cookie.delete_cookie()
            st.rerun()
