"""``brainmri optimize``: make the network that serves, and refuse a precision that changes the answers."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("optimize")(optimize)


def optimize(model_id: str | None = typer.Argument(None)) -> None:
    """Make models/<id>.openvino.xml/.bin from models/<id>.keras."""
    from brainmri import optimize as optimizing
    from brainmri.config import load_settings
    from brainmri.model import read_card

    settings = load_settings()
    card = read_card(model_id or settings.model.id, settings.model.directory)
    model = optimizing.export_network(card, settings.model.directory)
    typer.echo(optimizing.write_optimised(model, "bf16", card, settings.model.directory))
