"""``brainmri predict``: classify files and folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from brainmri.archive import Summary
    from brainmri.config import Settings
    from brainmri.dicom import Reading, Series
    from brainmri.inference import Classifier
    from brainmri.types import Analysis, MRISlice

_BATCH = 16


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

    A zip and the DICOM files of a folder are read as series: ordered, answered as a whole too, localisers and the like
    set aside.

    With --output, a resumable job over every core or a Ray cluster. It answers file by file and builds no series; bad
    files, and those set aside in a zip, go to a side table, exit code 0.
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
    files = list(find_inputs((Path(p) for p in paths), settings))
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
    from brainmri.config import IGNORED_NAMES

    for path in paths:
        if not path.is_dir():
            yield path
            continue
        empty = True
        for file in sorted(path.rglob("*")):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file.is_file() and not hidden and file.name.lower() not in IGNORED_NAMES:
                empty = False
                yield file
        if empty:
            yield path


@dataclass(frozen=True)
class DicomFolder:
    """A folder's DICOM files, read together so that series come out in order."""

    path: Path
    files: tuple[Path, ...]


def find_inputs(paths: Iterable[Path], settings: Settings) -> Iterator[Path | DicomFolder]:
    """Files as `find_files` gives them, but the DICOM files of each folder as one, where the first of them stood.

    Where a folder holds more than one upload may (``dicom.max_slices``, ``dicom.max_archive_mb``), each of its
    subfolders is one.
    """
    limit = settings.dicom.max_archive_mb * 1e6
    for path in paths:
        files = list(find_files([path]))
        sizes = {f: f.stat().st_size for f in files if path.is_dir() and _holds_dicom(f)}
        together = [f for f, size in sizes.items() if size <= limit]
        # Half: a slice is held as values and as the picture of them.
        if len(together) <= settings.dicom.max_slices and sum(sizes[f] for f in together) <= limit / 2:
            folders = dict.fromkeys(together, path)
        else:
            folders = {file: file.parent for file in together}
        given = set()
        for file in files:
            folder = folders.get(file)
            if folder is None:
                yield file
            elif folder not in given:
                given.add(folder)
                yield DicomFolder(folder, tuple(f for f in together if folders[f] == folder))


def _holds_dicom(file: Path) -> bool:
    from brainmri.dicom import is_dicom

    try:
        with open(file, "rb") as stream:
            return is_dicom(stream.read(132))
    except OSError:  # said when it is its turn
        return False


@dataclass
class _Input:
    """What one file or folder held: slices to answer in their order, and rows that need no answer."""

    path: Path
    slices: list[MRISlice] = field(default_factory=list)
    sources: list[tuple[Path, Series | None, int]] = field(default_factory=list)  # of each slice: file, series, number
    rows: list[dict[str, Any]] = field(default_factory=list)


def predict_files(
    classifier: Classifier, inputs: Iterable[Path | DicomFolder], settings: Settings, *, insist: bool = False
) -> Iterator[dict[str, Any]]:
    """Classify files and series a batch at a time.

    Yields
    ------
    dict
        In the order of ``inputs``, one a slice: ``path``, ``label`` (None unless the decision is ``class``),
        ``probabilities``, ``model_id``, ``elapsed_ms``, ``decision``, ``prediction_set``, ``ood_score``,
        ``colour_share``, ``notes``; ``sop_instance_uid`` (as de-identified) and ``frame`` for DICOM; ``series`` (UID)
        and ``slice`` (from 1, in anatomical order) in a series of several. After a series' slices ``path``, ``series``
        and ``series_answer``; ``path`` and ``set_aside`` (the reason) for what is in no series; ``path`` and ``error``
        for what cannot be read. ``file`` is the name inside a zip.
    """
    import numpy as np

    from brainmri.pipeline import analyse

    waiting: list[_Input] = []
    nothing = np.empty(0, np.float32)

    def flush() -> Iterator[dict[str, Any]]:
        slices = [s for item in waiting for s in item.slices]
        answers = (a for i in range(0, len(slices), _BATCH) for a in analyse(classifier, slices[i : i + _BATCH]))
        for item in waiting:
            for _, members in groupby(item.sources, key=lambda source: id(source[1])):
                of_series = []
                for path, series, number in members:
                    analysis = next(answers)
                    yield _row(path, analysis, series, number)
                    of_series.append(replace(analysis, feature_maps=nothing, network_input=nothing))
                if series is not None and len(of_series) > 1:
                    yield _series_row(item.path, series, of_series)
            yield from item.rows
        waiting.clear()

    for given in inputs:
        waiting.append(_read(given, settings, insist))
        if sum(len(item.slices) for item in waiting) >= _BATCH:
            yield from flush()
    yield from flush()


def _read(given: Path | DicomFolder, settings: Settings, insist: bool) -> _Input:
    from brainmri.errors import BrainMRIError

    path = given.path if isinstance(given, DicomFolder) else given
    item = _Input(path)
    try:
        if isinstance(given, DicomFolder):
            _read_folder(given, item, settings, insist)
        else:
            _read_file(given, item, settings, insist)
    except BrainMRIError as error:
        item.rows.append({"path": str(path), "error": str(error)})
    except OSError as error:
        item.rows.append({"path": str(path), "error": f"{path.name}: cannot be read ({error.strerror})"})
    return item


def _read_folder(folder: DicomFolder, item: _Input, settings: Settings, insist: bool) -> None:
    from brainmri.dicom import read_files

    def contents() -> Iterator[tuple[str, bytes]]:
        for file in folder.files:
            try:
                content = file.read_bytes()
            except OSError as error:
                item.rows.append({"path": str(file), "error": f"{file.name}: cannot be read ({error.strerror})"})
                continue
            yield file.relative_to(folder.path).as_posix(), content

    reading = read_files(contents(), folder.path.name, settings, insist=insist)
    _take(reading, item, lambda name: {"path": str(folder.path / name)})


def _read_file(file: Path, item: _Input, settings: Settings, insist: bool) -> None:
    from brainmri.dicom import is_dicom, is_zip, read_series
    from brainmri.errors import InvalidImageError
    from brainmri.pipeline import read_slices

    if file.is_dir():
        raise InvalidImageError(f"{file.name}: there is no file in this folder; expected images")
    limit_mb = max(settings.uploads.max_size_mb, settings.dicom.max_archive_mb)
    size_mb = file.stat().st_size / 1e6
    if size_mb > limit_mb:
        raise InvalidImageError(f"{file.name}: {size_mb:.0f} MB, the limit is {limit_mb:.0f} MB")
    content = file.read_bytes()
    if is_zip(content):
        reading = read_series(content, file.name, settings, insist=insist)
        _take(reading, item, lambda name: {"path": str(file), "file": name}, path=file)
    elif is_dicom(content):
        reading = read_series(content, file.name, settings, insist=insist)
        _take(reading, item, lambda name: {"path": str(file)}, path=file)
    else:
        item.slices += read_slices(content, file.name, settings, insist=insist)
        item.sources += [(file, None, 0)] * len(item.slices)


def _take(reading: Reading, item: _Input, where: Callable[[str], dict[str, Any]], path: Path | None = None) -> None:
    for series in reading.series:
        for number, frame in enumerate(series.frames, start=1):
            item.slices.append(frame.slice)
            item.sources.append((path or item.path / frame.file_name, series, number))
    for aside in reading.set_aside:
        item.rows.append({**where(aside.name), "error" if aside.failed else "set_aside": aside.reason})


def _series_row(path: Path, series: Series, analyses: list[Analysis]) -> dict[str, Any]:
    from brainmri.dicom import answer_series

    answer = answer_series(analyses)
    return {
        "path": str(path),
        "series": series.uid,
        "series_answer": {
            "label": answer.label,
            "text": answer.text,
            "title": series.label,
            "plane": series.plane,
            "slices": len(series.frames),
            "runs": [
                {
                    "label": run.label,
                    "first": run.first + 1,
                    "last": run.last + 1,
                    "peak": run.peak + 1,
                    "probability": round(run.probability, 6),
                }
                for run in answer.runs
            ],
            "counts": answer.counts,
        },
    }


def _row(path: Path, analysis: Analysis, series: Series | None, number: int) -> dict[str, Any]:
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
        "colour_share": round(analysis.slice.colour_share, 6),
        "notes": list(analysis.slice.notes),
        **({"series": series.uid, "slice": number} if series is not None and len(series.frames) > 1 else {}),
    }


def _line(row: dict[str, Any]) -> str:
    path = f"{row['path']}#{row['slice']}" if "slice" in row else row["path"]
    if "file" in row:
        path = f"{path}:{row['file']}"
    if "error" in row:
        return f"{path}: error: {row['error']}"
    if "set_aside" in row:
        return f"{path}: set aside: {row['set_aside']}"
    if "series_answer" in row:
        answer = row["series_answer"]
        return f"{path}: series {answer['title']}, {answer['slices']} slices: {answer['text']}"
    if row["decision"] == "rejected":
        from brainmri.imaging import picture_reason

        why = picture_reason(row["notes"]) or f"distance {row['ood_score']:.3g}"
        return f"{path}: rejected, not recognised as a brain MRI slice: {why}"
    shown = " ".join(f"{name} {p:.1%}" for name, p in row["probabilities"].items())
    members = ", ".join(row["prediction_set"])
    said = row["label"] or (f"undecided between {members}" if members else "undecided, no class is likely enough")
    return f"{path}: {said} ({shown}) {row['elapsed_ms']:.0f} ms"


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
