"""``brainmri predict``: classify files and folders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from brainmri.archive import Summary
    from brainmri.config import Settings
    from brainmri.inference import Classifier
    from brainmri.types import Analysis, MRISlice

_BATCH = 16
_IGNORED = {"thumbs.db", "desktop.ini", "dicomdir"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(predict)


def predict(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files or folders; folders recurse.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array instead of a table.")] = False,
    model: Annotated[str | None, typer.Option(help="Model id; default: the one in config.yaml.")] = None,
    insist: Annotated[bool, typer.Option("--insist", help="Take DICOM of any modality and kind.")] = False,
    output: Annotated[
        str | None,
        typer.Option(
            help="Answer a whole archive (PATH: one folder or URL) into this .parquet file, or folder of parts."
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="With --output: processes; default one a core.")] = None,
    ray: Annotated[str | None, typer.Option(help="With --output: a Ray cluster's address, or local.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another job's --output.")] = False,
) -> None:
    """Classify brain-MRI slices. A file that cannot be read is reported, the others still come; exit code 1.

    With --output, a resumable job over every core or a Ray cluster; bad files go to a side table, exit code 0.
    """
    if output:
        _predict_archive(paths, output, model, insist, workers, ray, overwrite)
        return
    if ray or workers or overwrite:
        raise typer.BadParameter("--workers, --ray and --overwrite go with --output")
    from rich.console import Console
    from rich.progress import track

    from brainmri.config import load_settings
    from brainmri.inference import load_classifier

    settings = load_settings()
    chosen = settings.model
    files = list(find_files(Path(p) for p in paths))
    console = Console(stderr=True)
    with console.status("Loading the model"):
        classifier = load_classifier(model or chosen.id, chosen.directory, chosen.engine)
    watched = track(files, "Predicting", console=console, transient=True, disable=not console.is_terminal)
    rows = list(predict_files(classifier, watched, settings, insist=insist))
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        for row in rows:
            typer.echo(_line(row))
    if any("error" in row for row in rows):
        raise typer.Exit(1)


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Files in the order given, a folder's sorted and without hidden ones; a missing or empty one comes through."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        empty = True
        for file in sorted(path.rglob("*")):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file.is_file() and not hidden and file.name.lower() not in _IGNORED:
                empty = False
                yield file
        if empty:
            yield path


def predict_files(
    classifier: Classifier, files: Iterable[Path], settings: Settings, *, insist: bool = False
) -> Iterator[dict[str, Any]]:
    """Classify files a batch at a time.

    Yields
    ------
    dict
        In the order of ``files``: ``path``, ``label`` (None unless the decision is ``class``), ``probabilities``,
        ``model_id``, ``elapsed_ms``, ``decision``, ``prediction_set``, ``ood_score``, and ``slice`` (from 1) for each
        slice of a file that holds several, ``sop_instance_uid`` (as de-identified) and ``frame`` for DICOM; or ``path``
        and ``error``.
    """
    from brainmri.errors import BrainMRIError
    from brainmri.pipeline import analyse

    waiting: list[tuple[Path, list[MRISlice] | str]] = []
    n_slices = 0

    def flush() -> Iterator[dict[str, Any]]:
        slices = [s for _, item in waiting if not isinstance(item, str) for s in item]
        answers = (a for i in range(0, len(slices), _BATCH) for a in analyse(classifier, slices[i : i + _BATCH]))
        for path, item in waiting:
            if isinstance(item, str):
                yield {"path": str(path), "error": item}
                continue
            for number, _ in enumerate(item, start=1):
                row = _row(path, next(answers))
                yield {**row, "slice": number} if len(item) > 1 else row
        waiting.clear()

    for file in files:
        try:
            waiting.append((file, _read(file, settings, insist)))
            n_slices += len(waiting[-1][1])
        except BrainMRIError as error:
            waiting.append((file, str(error)))
        except OSError as error:
            waiting.append((file, f"{file.name}: cannot be read ({error.strerror})"))
        if n_slices >= _BATCH:
            yield from flush()
            n_slices = 0
    yield from flush()


def _read(file: Path, settings: Settings, insist: bool) -> list[MRISlice]:
    from brainmri.errors import InvalidImageError
    from brainmri.pipeline import read_slices

    if file.is_dir():
        raise InvalidImageError(f"{file.name}: there is no file in this folder; expected images")
    limit_mb = max(settings.uploads.max_size_mb, settings.dicom.max_archive_mb)
    size_mb = file.stat().st_size / 1e6
    if size_mb > limit_mb:
        raise InvalidImageError(f"{file.name}: {size_mb:.0f} MB, the limit is {limit_mb:.0f} MB")
    return read_slices(file.read_bytes(), file.name, settings, insist=insist)


def _row(path: Path, analysis: Analysis) -> dict[str, Any]:
    identity = {"sop_instance_uid": analysis.slice.sop_instance_uid, "frame": analysis.slice.frame}
    return {
        "path": str(path),
        **(identity if analysis.slice.sop_instance_uid else {}),
        "label": analysis.label,
        "probabilities": {name: round(p, 6) for name, p in analysis.probabilities.items()},
        "model_id": analysis.model_id,
        "elapsed_ms": round(analysis.elapsed_ms, 3),
        "decision": analysis.decision,
        "prediction_set": list(analysis.prediction_set),
        "ood_score": round(analysis.ood_score, 6),
    }


def _line(row: dict[str, Any]) -> str:
    path = f"{row['path']}#{row['slice']}" if "slice" in row else row["path"]
    if "error" in row:
        return f"{path}: error: {row['error']}"
    if row["decision"] == "rejected":
        return f"{path}: rejected, not recognised as a brain MRI slice (distance {row['ood_score']:.3g})"
    shown = " ".join(f"{name} {p:.1%}" for name, p in row["probabilities"].items())
    return f"{path}: {row['label'] or 'undecided'} ({shown}) {row['elapsed_ms']:.0f} ms"


def _predict_archive(
    paths: list[str],
    output: str,
    model: str | None,
    insist: bool,
    workers: int | None,
    ray: str | None,
    overwrite: bool,
) -> None:
    from brainmri.archive import available_cores, make_job, run_archive
    from brainmri.config import load_settings

    if len(paths) != 1:
        raise typer.BadParameter(f"--output takes one folder or URL, got {len(paths)} paths")
    show = _Progress()
    if ray:
        from brainmri.scale import run_on_ray

        job = make_job(paths[0], output, load_settings(), model_id=model, insist=insist)
        summary = run_on_ray(job, ray, workers=workers, overwrite=overwrite, progress=show)
    else:
        workers = workers or available_cores()
        job = make_job(paths[0], output, load_settings(), model_id=model, insist=insist, workers=workers)
        summary = run_archive(job, workers=workers, overwrite=overwrite, progress=show)
    typer.echo(
        f"{summary.files:,} files ({summary.resumed_files:,} done before), {summary.rows:,} slices answered in "
        f"{summary.elapsed_s:.1f} s: {job.output}"
    )
    if summary.bad_files:
        typer.echo(f"{summary.bad_files:,} files have no answer; why: {job.bad}")


class _Progress:
    """A line on stderr that is rewritten on a terminal and repeated every ten seconds in a log."""

    def __init__(self) -> None:
        self.shown = 0.0

    def __call__(self, summary: Summary) -> None:
        import sys
        import time

        if time.monotonic() - self.shown < (0.2 if sys.stderr.isatty() else 10):
            return
        self.shown = time.monotonic()
        remaining = summary.remaining_s or 0.0
        hours, seconds = divmod(int(remaining), 3600)
        line = (
            f"{summary.files:,} / {summary.total_files:,} files, {summary.files_per_second:,.0f} a second, "
            f"{summary.bad_files:,} bad, {hours}:{seconds // 60:02}:{seconds % 60:02} left"
        )
        print(
            f"\r{line}\033[K" if sys.stderr.isatty() else line, file=sys.stderr, end="" if sys.stderr.isatty() else "\n"
        )
