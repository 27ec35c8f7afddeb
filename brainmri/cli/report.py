"""``brainmri report RECORD -o FILE.pdf`` and ``brainmri report verify FILE.pdf``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from brainmri.errors import ReportError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(
    record: Annotated[str, typer.Argument(help="Number of a kept case, or the word verify.")],
    file: Annotated[Path | None, typer.Argument(help="With verify: the PDF.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the PDF.")] = None,
    findings: Annotated[str, typer.Option(help="The reader's findings.")] = "",
    impression: Annotated[str, typer.Option(help="The reader's impression.")] = "",
    heatmap: Annotated[list[str] | None, typer.Option(help="Method to show, such as grad-cam; repeatable.")] = None,
    sign: Annotated[str | None, typer.Option(help="Radiologist who signs; asks for the password.")] = None,
    author: Annotated[str | None, typer.Option(help="User name of who drafted it; default: whose case it is.")] = None,
) -> None:
    """Issue a report on a kept case, or check that a report's PDF is the one that was issued."""
    from brainmri.config import load_settings
    from brainmri.storage import Database

    settings = load_settings()
    database = Database(settings.database.url)
    if record == "verify":
        _verify(database, file)
        return
    if file is not None or not record.isdecimal() or output is None:
        raise ReportError("expected: brainmri report RECORD -o FILE.pdf, or: brainmri report verify FILE.pdf")
    from brainmri import accounts
    from brainmri.events import note_event
    from brainmri.report import issue

    if len(record) > 18:  # more than a database counts to
        raise ReportError(f"there is no case {record[:40]}; History shows the numbers")
    _check_writable(output)
    author = sign or author
    user = accounts.find_user(database, author) if author else _owner(database, int(record))
    if sign:
        accounts.confirm_password(database, user, typer.prompt(f"Password of {user.username}", hide_input=True))
    issued = issue(
        database,
        settings,
        user,
        int(record),
        findings=findings,
        impression=impression,
        final=bool(sign),
        explanations=_explanations(database, settings, user, int(record), heatmap or []),
    )
    with database.write() as session:
        target = f"report {issued.id} on case {record}"
        note_event(session, user if sign else None, "report downloaded", target)
    try:
        output.write_bytes(issued.pdf)
    except OSError as error:
        raise ReportError(
            f"report {issued.id} was issued, but {output} cannot be written ({error.strerror}); its PDF is in Reports"
        ) from error
    typer.echo(f"{output}: report {issued.id} on case {record}, {issued.status}, SHA-256 {issued.pdf_sha256}")


def _check_writable(output: Path) -> None:
    """Before a report is issued: it cannot be taken back."""
    target = output if output.exists() else output.parent
    if output.is_dir() or not output.parent.is_dir() or not os.access(target, os.W_OK):
        raise ReportError(f"{output}: cannot be written; expected a file in a folder that exists. No report was issued")


def _verify(database, file: Path | None) -> None:
    from brainmri.report import verify

    if file is None or not file.is_file():
        raise ReportError(f"{file or 'no file'}: expected a report's PDF after the word verify")
    typer.echo(f"{file}: {verify(database, file.read_bytes()).text}")


def _owner(database, record_id: int):
    """Whose case it is: the author of a draft from the command line."""
    from brainmri import accounts
    from brainmri.storage import Record, UserRow

    with database.read() as session:
        found = session.get(Record, record_id)
        owner = session.get(UserRow, found.user_id) if found else None
    if owner is None:
        raise ReportError(f"there is no case {record_id}; History shows the numbers")
    return accounts.find_user(database, owner.username)


def _explanations(database, settings, user, record_id: int, methods: list[str]):
    if not methods:
        return ()
    from brainmri.explain import explain
    from brainmri.inference import load_classifier
    from brainmri.pipeline import analyse
    from brainmri.storage import load_slice, open_record

    record = open_record(database, user, record_id)
    classifier = load_classifier(record.model_id, settings.model.directory, settings.model.engine)
    if classifier.card.weights_sha256 != record.weights_sha256:
        raise ReportError(
            f"{record.model_id} was trained anew since case {record_id}; no map can be drawn of its answer"
        )
    analyses = analyse(classifier, [load_slice(settings, record)])
    directory = settings.model.directory
    return explain(classifier, analyses, methods, (record.label,), directory=directory)[0]
