"""``brainmri pacs``: is a node there, what has it, and listen to what is sent here."""

from __future__ import annotations

import signal
from datetime import datetime
from typing import Annotated

import typer

_SERVER = Annotated[str | None, typer.Option("--server", help="Name under pacs.servers; default: the first.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(no_args_is_help=True, help="Verify a connection, search an archive, listen to what it sends.")
    group.command("echo")(echo)
    group.command("find")(find)
    group.command("listen")(listen)
    app.add_typer(group, name="pacs")


def echo(server: _SERVER = None) -> None:
    """Verify the connection to a node."""
    from brainmri import pacs
    from brainmri.config import load_settings

    settings = load_settings()
    node = pacs.find_server(settings, server)
    seconds = pacs.echo(settings, node)
    typer.echo(f"{node.name} ({node.ae_title} at {node.host}:{node.port}) answers, {seconds * 1e3:.0f} ms")


def find(
    patient_id: Annotated[str, typer.Option(help="As the node spells it; * and ? stand for anything.")] = "",
    name: Annotated[str, typer.Option(help="Part of the patient's name.")] = "",
    since: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First study date.")] = None,
    until: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last study date.")] = None,
    server: _SERVER = None,
) -> None:
    """List a node's studies with MR, newest first. Prints what the node says of patients."""
    from brainmri import pacs
    from brainmri.config import load_settings

    settings = load_settings()
    node = pacs.find_server(settings, server)
    dates = {"since": since.date() if since else None, "until": until.date() if until else None}
    studies = pacs.find_studies(settings, node, patient_id=patient_id, name=name, **dates)
    for study in studies[: pacs.MOST_STUDIES]:
        what = " ".join(part for part in ("/".join(study.modalities), study.description) if part)
        number = "? images" if study.n_images is None else f"{study.n_images} images"
        typer.echo(
            f"{study.date or '?'}  {study.patient_id}  {study.patient_name}  {what}  {number}  {study.study_uid}"
        )
    if len(studies) > pacs.MOST_STUDIES:
        typer.echo(f"more than {pacs.MOST_STUDIES} match; narrow the search", err=True)
    if not studies:
        typer.echo("no study matches", err=True)


def listen(
    user: Annotated[str, typer.Option(help="Whose cases the answers become.")],
) -> None:
    """Take studies that are sent here, answer them, keep the answers, and send them on where pacs.answer_to says."""
    from brainmri import accounts
    from brainmri.config import load_settings
    from brainmri.inference import load_classifier
    from brainmri.listener import Listener
    from brainmri.storage import Database

    settings = load_settings()
    database = Database(settings.database.url)
    owner = accounts.find_user(database, user)
    model = settings.model
    classifier = load_classifier(model.id, model.directory, model.engine)
    # As a container's first process it would not hear the default of SIGTERM at all.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with_time = lambda line: typer.echo(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {line}")  # noqa: E731
    try:
        Listener(settings, database, owner, classifier, with_time).run()
    except KeyboardInterrupt:
        with_time("stopped; what came and is not answered waits for the next start")
