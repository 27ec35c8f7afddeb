"""``brainmri predict``: classify files and folders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from brainmri.config import Settings
    from brainmri.inference import Classifier
    from brainmri.types import Analysis, MRISlice

_BATCH = 16
_IGNORED = {"thumbs.db", "desktop.ini", "dicomdir"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(predict)


def predict(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files or folders; folders recurse.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array instead of a table.")] = False,
    model: Annotated[str | None, typer.Option(help="Model id; default: the one in config.yaml.")] = None,
) -> None:
    """Classify brain-MRI slices. A file that cannot be read is reported, the others still come; exit code 1."""
    from rich.console import Console
    from rich.progress import track

    from brainmri.config import load_settings
    from brainmri.inference import load_classifier

    settings = load_settings()
    chosen = settings.model
    files = list(find_files(paths))
    console = Console(stderr=True)
    with console.status("Loading the model"):
        classifier = load_classifier(model or chosen.id, chosen.directory, chosen.engine)
    watched = track(files, "Predicting", console=console, transient=True, disable=not console.is_terminal)
    rows = list(predict_files(classifier, watched, settings))
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        for row in rows:
            typer.echo(_line(row))
    if any("error" in row for row in rows):
        raise typer.Exit(1)


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Files in the order given; those of a folder sorted, hidden ones left out. What does not exist comes through."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for file in sorted(path.rglob("*")):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file.is_file() and not hidden and file.name.lower() not in _IGNORED:
                yield file


def predict_files(classifier: Classifier, files: Iterable[Path], settings: Settings) -> Iterator[dict[str, Any]]:
    """Classify files a batch at a time.

    Yields
    ------
    dict
        In the order of ``files``: ``path``, ``label`` (None unless the decision is ``class``), ``probabilities``,
        ``model_id``, ``elapsed_ms``, ``decision``, ``prediction_set``, ``ood_score``, and ``slice`` (from 1) for each
        slice of a file that holds several; or ``path`` and ``error``.
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
            waiting.append((file, _read(file, settings)))
            n_slices += len(waiting[-1][1])
        except BrainMRIError as error:
            waiting.append((file, str(error)))
        except OSError as error:
            waiting.append((file, f"{file.name}: cannot be read ({error.strerror})"))
        if n_slices >= _BATCH:
            yield from flush()
            n_slices = 0
    yield from flush()


def _read(file: Path, settings: Settings) -> list[MRISlice]:
    from brainmri.errors import InvalidImageError
    from brainmri.pipeline import read_slices

    limit_mb = max(settings.uploads.max_size_mb, settings.dicom.max_archive_mb)
    size_mb = file.stat().st_size / 1e6
    if size_mb > limit_mb:
        raise InvalidImageError(f"{file.name}: {size_mb:.0f} MB, the limit is {limit_mb:.0f} MB")
    return read_slices(file.read_bytes(), file.name, settings)


def _row(path: Path, analysis: Analysis) -> dict[str, Any]:
    return {
        "path": str(path),
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
