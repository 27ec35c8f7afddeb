"""``brainmri data``: the image data set."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add ``brainmri data fetch``."""
    data = typer.Typer(no_args_is_help=True, help="The image data set.")
    app.add_typer(data, name="data")

    @data.callback()
    def _group() -> None: ...

    @data.command()
    def fetch() -> None:
        """Download the Kaggle data set into data.root."""
        from brainmri import data as datasets
        from brainmri.config import load_settings

        root = datasets.fetch(load_settings().data.root)
        table = datasets.read_folder(root)
        typer.echo(f"{root}: {len(table)} images")
        typer.echo(table.groupby(["split", "label"]).size().to_string())
