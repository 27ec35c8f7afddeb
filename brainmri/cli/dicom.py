"""``brainmri dicom``: look into a series, regenerate the table of formats, fuzz the reader, measure the series rule."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from brainmri.errors import InvalidDicomError


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(no_args_is_help=True, help="Look into DICOM: its series, the formats read, damaged files.")
    group.command("show")(show)
    group.command("table")(table)
    group.command("fuzz")(fuzz)
    group.command("measure")(measure)
    app.add_typer(group, name="dicom")


def show(
    path: Annotated[Path, typer.Argument(help="DICOM file, zip or folder.")],
    insist: Annotated[bool, typer.Option(help="Take other modalities and what would be set aside.")] = False,
) -> None:
    """List the series in a file, zip or folder, what is set aside and why, and what de-identification takes out."""
    from brainmri.config import load_settings
    from brainmri.dicom import read_folder, read_series

    settings = load_settings()
    if not path.exists():
        raise InvalidDicomError(f"{path}: no such file or folder")
    if path.is_dir():
        reading = read_folder(path, settings, insist=insist)
    else:
        reading = read_series(path.read_bytes(), path.name, settings, insist=insist)
    for series in reading.series:
        first = series.frames[0].slice
        typer.echo(
            f"{series.patient_id}  {series.label}  {series.plane or '?'}  {len(series.frames)} slices  {series.uid}"
        )
        letters = "".join(first.orientation) if first.orientation else "unknown"
        typer.echo(f"  edges (left right top bottom) {letters}; spacing {first.spacing_mm or 'unknown'} mm")
        for note in (*series.notes, *first.notes):
            typer.echo(f"  {note}")
    for aside in reading.set_aside:
        typer.echo(f"set aside  {aside.name}: {aside.reason}")
    for item in reading.removed:
        typer.echo(f"{item['action']:>9}  {item['name']} ({item['count']})")


def table(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Markdown file that holds the marks.")] = None,
) -> None:
    """Read every image file of pydicom's test set and write the table of docs/dicom.md (or print it)."""
    from brainmri.config import load_settings
    from brainmri.dicom.conformance import conformance_table, write_table

    if output is None:
        typer.echo(conformance_table(load_settings()))
    else:
        write_table(output, load_settings())


def fuzz(
    count: Annotated[int, typer.Option(min=1, help="Number of damaged files.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the damage.")] = 0,
) -> None:
    """Read damaged files: no crash, none over 5 seconds, nothing left behind; exit code 1 otherwise."""
    from brainmri.config import load_settings
    from brainmri.dicom.fuzz import run_fuzz

    result = run_fuzz(load_settings(), count, seed=seed)
    typer.echo(
        f"{count} files: {result.decoded} decoded, {result.refused} refused "
        f"({result.workers_lost} by ending a decoder), {len(result.failures)} failures, "
        f"slowest {result.slowest_seconds:.2f} s, {len(result.left_behind)} left behind"
    )
    for failure in result.failures[:20]:
        typer.echo(failure)
    if result.failures or result.left_behind or result.slowest_seconds > 5:
        raise typer.Exit(1)


def measure(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Markdown file that holds the marks.")] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="CSV with path, label, split, patient, sequence, slice; default: lgg's.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="What its paths are relative to; default: lgg beside the data.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model id; default: the one in config.yaml.")] = None,
) -> None:
    """Measure the series rule on stacks of known truth: choose its number on val, report on test.

    Exit code 1 where validation asks for another number than the one in force (`series.MIN_RUN`).
    """
    from rich.console import Console
    from rich.progress import Progress

    from brainmri.config import load_settings
    from brainmri.data import SPLITS_DIRECTORY
    from brainmri.dicom.measure import choose_min_run, figures, read_stacks
    from brainmri.dicom.series import MIN_RUN
    from brainmri.documents import write_tables
    from brainmri.inference import load_classifier

    settings = load_settings()
    chosen = settings.model
    classifier = load_classifier(model or chosen.id, chosen.directory, chosen.engine)
    manifest = manifest or SPLITS_DIRECTORY / "lgg.csv"
    images = images or settings.data.root.parent / "lgg"
    stacks = {}
    with Progress(console=Console(stderr=True), transient=True) as bars:
        for split in ("val", "test"):
            task = bars.add_task(f"Answering {split}", total=None)
            show = partial(_show, bars, task)
            stacks[split] = read_stacks(classifier, manifest, images, split, show)
    text = figures(stacks["val"], stacks["test"], manifest.stem, classifier.card.id)
    if output is None:
        typer.echo(text)
    else:
        write_tables(output, {"series": text})
    if (best := choose_min_run(stacks["val"])) != MIN_RUN:
        typer.echo(f"validation asks for {best} slices in a row, the rule has {MIN_RUN}: set series.MIN_RUN", err=True)
        raise typer.Exit(1)


def _show(bars: Any, task: Any, done: int, total: int) -> None:
    bars.update(task, completed=done, total=total)
