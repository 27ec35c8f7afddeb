"""``brainmri ...``: one module a command group; parses, calls, prints. Never imports Streamlit."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import typer

from brainmri.errors import BrainMRIError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Sort brain-MRI slices, show how far an answer can be trusted, keep records. Research use only, no diagnosis.",
    pretty_exceptions_enable=False,
)

# Every module of this folder adds its commands to `app`; heavy packages are imported when a command runs.
for _module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"brainmri.cli.{_module}").register(app)


def main() -> None:
    """Entry point: an expected error is one line on stderr and exit code 1."""
    try:
        app()
    except BrainMRIError as error:
        sys.exit(f"brainmri: {error}")
    except OSError as error:  # a full disk, an output that cannot be written: its own text names the file
        sys.exit(f"brainmri: {' '.join(str(error).split())}" + ("; check that path" if error.filename else ""))
