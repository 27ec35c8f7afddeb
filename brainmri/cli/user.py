"""``brainmri user ...``: accounts from the server's command line, which needs no administrator."""

from __future__ import annotations

import sys

import typer

users = typer.Typer(no_args_is_help=True, help="Add, list and change accounts.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(users, name="user")


def _database():
    from brainmri.config import load_settings
    from brainmri.storage import Database

    return Database(load_settings().database.url)


def _ask_password() -> str:
    """From the terminal, twice; from a pipe, its first line."""
    if sys.stdin.isatty():
        return typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    return sys.stdin.readline().rstrip("\r\n")


@users.command("add")
def add(
    username: str,
    role: str = typer.Option("reader", help="reader, radiologist or admin."),
    name: str = typer.Option("", help="Full name; the user name where it is not given."),
    email: str = typer.Option("", help="E-mail address."),
    one_time: bool = typer.Option(False, "--one-time-password", help="Print a password that must be changed."),
) -> None:
    """Add an account. The password is asked for, or read from standard input."""
    from brainmri import accounts

    database = _database()
    password = accounts.one_time_password() if one_time else _ask_password()
    user = accounts.add_user(
        database,
        None,
        username=username,
        name=name or username,
        role=role,
        password=password,
        email=email or None,
        one_time=one_time,
    )
    typer.echo(f"Added {user.username} ({user.role}).")
    if one_time:
        days = accounts.ONE_TIME_DAYS
        typer.echo(f"One-time password, good for {days} days, to be changed at the first sign-in: {password}")


@users.command("list")
def list_(as_json: bool = typer.Option(False, "--json", help="As a JSON array.")) -> None:
    """List all accounts."""
    import json

    from brainmri import accounts

    rows = accounts.list_users(_database(), None)
    if as_json:
        typer.echo(
            json.dumps(
                [
                    {
                        "username": row.user.username,
                        "name": row.user.name,
                        "email": row.user.email,
                        "role": row.user.role,
                        "active": row.active,
                        "records": row.n_records,
                        "created_at": row.created_at.isoformat(),
                        "last_sign_in_at": row.last_sign_in_at.isoformat() if row.last_sign_in_at else None,
                    }
                    for row in rows
                ],
                indent=2,
                ensure_ascii=False,
            )
        )
        return
    if not rows:
        typer.echo("No accounts yet: `brainmri user add NAME --role admin` makes the first.")
        return
    width = max(len(row.user.username) for row in rows)
    for row in rows:
        seen = f"{row.last_sign_in_at:%Y-%m-%d %H:%M}" if row.last_sign_in_at else "never signed in"
        state = "" if row.active else "  deactivated"
        state += f"  locked until {row.locked_until:%H:%M} UTC" if row.locked_until else ""
        typer.echo(f"{row.user.username:{width}}  {row.user.role:11}  {seen:16}  {row.user.name}{state}")


@users.command("set-role")
def set_role(username: str, role: str = typer.Argument(help="reader, radiologist or admin.")) -> None:
    """Change an account's role."""
    from brainmri import accounts

    accounts.set_role(_database(), None, username, role)
    typer.echo(f"{username} is {role} now.")


@users.command("reset-password")
def reset_password(username: str) -> None:
    """Print a one-time password, end the account's sessions and unlock it."""
    from brainmri import accounts

    password = accounts.reset_password(_database(), None, username)
    days = accounts.ONE_TIME_DAYS
    typer.echo(f"One-time password of {username}, good for {days} days, to be changed at the next sign-in: {password}")


@users.command("log")
def log(
    limit: int = typer.Option(50, min=1, help="How many lines, the newest first."),
    as_json: bool = typer.Option(False, "--json", help="As a JSON array."),
) -> None:
    """Show who changed accounts or took data out."""
    import json

    from brainmri import events

    page = events.find_events(_database(), None, limit=limit)
    if as_json:
        fields = ("username", "what", "target", "before", "after")
        lines = [{"at": e.at.isoformat(), **{name: getattr(e, name) for name in fields}} for e in page.events]
        typer.echo(json.dumps(lines, indent=2, ensure_ascii=False))
        return
    if not page.events:
        typer.echo("The log is empty: nothing was changed yet.")
    for e in page.events:
        change = f": {e.before} → {e.after}" if e.before else f": {e.after}" if e.after else ""
        typer.echo(f"{e.at:%Y-%m-%d %H:%M}  {e.username}  {e.what}  {e.target}{change}")
    if page.total > len(page.events):
        typer.echo(f"The newest {len(page.events)} of {page.total} lines; --limit shows more.")
