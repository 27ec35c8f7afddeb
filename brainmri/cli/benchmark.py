"""``brainmri benchmark``: every engine and precision in one table."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(benchmark)


def benchmark(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds: about two minutes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with all figures and ratios.")] = False,
    model: Annotated[str | None, typer.Option(help="Model id; default: the one in config.yaml.")] = None,
) -> None:
    """Measure latency, cold start, throughput and memory of every engine, in turns, and their ratios."""
    from brainmri import benchmark as measuring
    from brainmri.config import load_settings

    result = measuring.run_benchmark(
        load_settings(), model_id=model, quick=quick, report=lambda line: typer.echo(line, err=True)
    )
    typer.echo(measuring.as_json(result) if as_json else measuring.as_table(result))
