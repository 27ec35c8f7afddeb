"""``brainmri evaluate`` and ``brainmri calibrate``."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from brainmri.errors import DataError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("evaluate")(evaluate)
    app.command("calibrate")(calibrate)


@contextmanager
def stages(width: int = 28):
    """Progress bars on stderr, one a stage: call with the stage's name, get a callable (done, total)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(f"{{task.description:<{width}}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def stage(name: str):
            task = bars.add_task(name, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield stage


def _load(model: str | None, engine: str | None):
    from brainmri.config import load_settings
    from brainmri.inference import load_classifier

    settings = load_settings()
    return load_classifier(
        model or settings.model.id, settings.model.directory, engine or settings.model.engine
    ), settings


def evaluate(
    manifest: Annotated[Path | None, typer.Option(help="CSV with path, label and a split column")] = None,
    images: Annotated[Path | None, typer.Option(help="what the manifest's paths are relative to")] = None,
    split_column: Annotated[str, typer.Option(help="which column names the split")] = "split",
    split: Annotated[str, typer.Option(help="which split to evaluate")] = "test",
    output: Annotated[Path | None, typer.Option(help="folder of the run (or of the suite's runs)")] = None,
    suite: Annotated[
        Path | None,
        typer.Option(help="data folder: the whole release suite (--output: default evaluation.directory)"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="model id; default from config.yaml")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, openvino or keras; default from config.yaml")] = None,
    name: Annotated[str | None, typer.Option(help="what to call the data")] = None,
    baseline: Annotated[bool, typer.Option(help="look up the nearest training thumbnail too (a suite does)")] = True,
    only: Annotated[list[str] | None, typer.Option(help="parts of the suite to run; default: all")] = None,
) -> None:
    """Evaluate a model on a split, or on the whole release suite, and print the report.

    Each run's folder gets metrics.json and predictions.parquet; that of a single run predictions.csv and figures (PNG)
    as well. Stopped half-way, the same command goes on.
    """
    from brainmri.evaluation import classification_report

    if suite is not None:
        from brainmri.suite import run_suite

        classifier, settings = _load(model, engine)
        output = output or settings.evaluation.directory
        with stages() as progress:
            runs = run_suite(classifier, suite, output, only=only, progress=progress)
        for run in runs:
            typer.echo(f"\n{run.title}\n{classification_report(run.metrics)}")
            _echo_rest(run.metrics)
        typer.echo(f"\nwritten to {output}")
        return
    if manifest is None or output is None:
        raise DataError("evaluate needs --manifest CSV and --output DIR (or --suite DATA)")
    from brainmri import runs as saved

    classifier, _ = _load(model, engine)
    with stages() as progress:
        run = saved.evaluate(
            classifier, manifest, images, split_column, split, output, name=name, baseline=baseline, progress=progress
        )
    saved.export(run)
    typer.echo(run.title)
    typer.echo(classification_report(run.metrics))
    _echo_rest(run.metrics)
    typer.echo(f"written to {output}")


def _echo_rest(metrics: dict) -> None:
    if metrics["calibration"]:
        said = metrics["calibration"]
        chance = f" (exactly right probabilities: {said['ece_by_chance']['mean']:.3f})"
        typer.echo(f"ECE {said['ece']:.3f}{chance}, Brier {said['brier']:.3f}")
    for level, row in metrics["conformal"].items():
        typer.echo(f"{float(level):.0%} sets: coverage {row['coverage']:.3f}, mean size {row['mean_set_size']:.2f}")
    if metrics["gate"]:
        gate = metrics["gate"]
        line = f"rejected {gate['rejected_share']:.1%}, decided {gate['decided_share']:.1%}"
        for what in ("accepted", "decided"):
            if (accuracy := gate[f"accuracy_{what}"]) is not None:
                line += f", accuracy of what was {what} {accuracy:.3f}"
        typer.echo(line)
    if metrics.get("baseline"):
        typer.echo(f"nearest training thumbnail: accuracy {metrics['baseline']['accuracy']:.3f}")
    for key, reason in metrics["undefined"].items():
        typer.echo(f"undefined: {key} ({reason})")


def calibrate(
    manifest: Annotated[Path | None, typer.Option(help="CSV with path, label and a split column")] = None,
    images: Annotated[Path | None, typer.Option(help="what the manifest's paths are relative to")] = None,
    split_column: Annotated[str, typer.Option(help="which column names the split")] = "clean_split",
    training_split: Annotated[str, typer.Option(help="the gate's statistics come from this split")] = "train",
    validation_split: Annotated[str, typer.Option(help="temperature, quantiles and thresholds from this one")] = "val",
    model: Annotated[str | None, typer.Option(help="model id; default from config.yaml")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, openvino or keras; default from config.yaml")] = None,
) -> None:
    """Fit temperature, conformal quantiles and the not-a-brain-MRI gate; writes models/<id>.npz and the card.

    Run it after every change of weights. Default data: the clean split of the configured data set.
    """
    from brainmri.config import load_settings
    from brainmri.data import SPLITS_DIRECTORY
    from brainmri.suite import calibrate as fit

    settings = load_settings()
    if manifest is None:
        manifest, images = SPLITS_DIRECTORY / "brain_tumor_mri.csv", images or settings.data.root
    images = images or manifest.parent
    with stages() as progress:
        found = fit(
            model or settings.model.id,
            settings.model.directory,
            engine or settings.model.engine,
            manifest,
            images,
            split_column,
            training_split,
            validation_split,
            progress=progress,
        )
    for key, value in found.items():
        typer.echo(f"{key}: {value}")
