"""``brainmri ...``: one module a command group; parses, calls, prints. Never imports Streamlit."""

from __future__ import annotations

import importlib
import sys

import typer

from brainmri.errors import BrainMRIError

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)

# Each module adds its commands to `app` in `register(app)`; they import heavy packages only when a command runs.
COMMAND_MODULES = ()


for _module in COMMAND_MODULES:
    importlib.import_module(f"brainmri.cli.{_module}").register(app)


def main() -> None:
    """Entry point: an expected error is one line on stderr and exit code 1."""
    try:
        app()
    except BrainMRIError as error:
        sys.exit(f"brainmri: {error}")
