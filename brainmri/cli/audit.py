"""``brainmri audit``: copies, leaks and label conflicts of an image set, and a split without leaks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from brainmri.errors import DataError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("audit")(audit)


def audit(
    root: Annotated[Path | None, typer.Argument(help="folder with Training/<class>/* and Testing/<class>/*")] = None,
    manifest: Annotated[Path | None, typer.Option(help="CSV with path, label and a split column instead")] = None,
    images: Annotated[Path | None, typer.Option(help="what the manifest's paths are relative to")] = None,
    split_column: Annotated[str, typer.Option(help="which column of the manifest names the split")] = "split",
    output: Annotated[Path, typer.Option(help="folder for audit.json, groups.csv and pairs.csv")] = Path("audit"),
    name: Annotated[str | None, typer.Option(help="what to call the data")] = None,
    compressed: Annotated[bool, typer.Option(help="write the tables as .csv.gz")] = False,
) -> None:
    """Find exact, near, mirrored and rotated copies, leaks between splits and copies with different labels."""
    from rich.console import Console
    from rich.progress import Progress

    from brainmri import audit as auditing
    from brainmri.data import read_folder, read_manifest
    from brainmri.displays import counted

    if (root is None) == (manifest is None):
        raise DataError("audit needs either ROOT (a folder in the Kaggle layout) or --manifest CSV")
    if root is not None:
        table, known = read_folder(root), root.resolve().name
    elif manifest is not None:
        table, known = read_manifest(manifest, images, split_column), manifest.stem
    with Progress(console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        found = auditing.audit(table, name=name or known, progress=progress)
    found.save(output, compressed=compressed)
    summary = found.summary
    typer.echo(f"{summary['n_readable']} images show {summary['n_groups']} different slices")
    for kind, count in summary["pairs"].items():
        typer.echo(f"  {kind}: {counted(count, 'pair')}")
    for leak in summary["leaks"]:
        typer.echo(f"{leak['images']} of {leak['of']} images of '{leak['split']}' are in '{leak['also_in']}' too")
    typer.echo(f"{len(summary['label_conflicts'])} slices with copies under different labels")
    typer.echo(f"{len(summary['unreadable'])} unreadable files, {summary['sizes']['n_odd']} of odd size")
    typer.echo(f"{summary['cost']['seconds']} s, {summary['cost']['peak_memory_mb']:.0f} MB; written to {output}")
