"""Whole archives: folder or URL in, one Parquet table out, on every core, resumable at any point.

The input is cut into chunks, and the answers to a chunk become one part file whose name follows from the chunk's
content (paths, sizes, versions), the weights and the fitted statistics. It is written aside and renamed, so a part
that exists is done, a job that was killed goes on where it was, and doing a chunk twice changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import sys
import threading
import time
import types
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import brainmri
from brainmri.config import IGNORED_NAMES, Settings
from brainmri.errors import BrainMRIError, DataError, InvalidImageError, StorageError
from brainmri.types import CLASS_NAMES, Analysis, MRISlice

if TYPE_CHECKING:
    import pyarrow
    from fsspec import AbstractFileSystem

    from brainmri.dicom import SetAside

    _Read = Callable[[str], tuple[list[MRISlice], tuple[SetAside, ...]]]

CHUNK_FILES = 256
"""Files a chunk on average; at most four times as many."""
BATCH_FILES = 32
MAX_ATTEMPTS = 4
"""Workers that may die over one chunk before the job stops."""

Progress = Callable[["Summary"], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """Files that are answered together: paths relative to the job's root, and the part's name."""

    name: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """Everything a worker needs, on this machine or another.

    Attributes
    ----------
    root : str
        Folder or fsspec URL with pictures, DICOM files and zips.
    output : str
        ``….parquet``: one table, and ``….bad.parquet`` beside it; parts lie in ``….parquet.parts`` until it is whole.
        Anything else is a folder of parts that Parquet readers open as one table.
    insist : bool
        Take DICOM of other modalities and kinds too.
    threads : int
        Of each worker's engine.
    """

    root: str
    output: str
    settings: Settings
    model_id: str
    weights_sha256: str
    rule_sha256: str
    network_sha256: str = ""
    insist: bool = False
    threads: int = 1
    chunk_files: int = CHUNK_FILES

    @property
    def parts(self) -> str:
        """Folder of the parts."""
        return f"{self.output}.parts" if self.single_file else self.output

    @property
    def single_file(self) -> bool:
        """Whether the parts become one file in the end."""
        return self.output.endswith(".parquet")

    @property
    def bad(self) -> str:
        """Where the table of files that have no answer goes: a file or a folder."""
        return f"{self.output.removesuffix('.parquet')}.bad.parquet" if self.single_file else f"{self.output}/_bad"

    def identity(self) -> dict[str, str]:
        """What must be the same for parts to belong together."""
        facts = {"root": self.root, "model_id": self.model_id, "weights_sha256": self.weights_sha256}
        facts |= {"rule_sha256": self.rule_sha256, "network_sha256": self.network_sha256}
        facts |= {"software_version": brainmri.__version__, "insist": str(self.insist)}
        uploads, dicom = self.settings.uploads, self.settings.dicom
        decide = {  # what is refused, and what of a file is read
            "engine": self.settings.model.engine,
            "max_size_mb": uploads.max_size_mb,
            "max_pixels": uploads.max_pixels,
            "max_slices": dicom.max_slices,
            "max_archive_mb": dicom.max_archive_mb,
            "deidentify": dicom.deidentify,
        }
        return facts | {name: str(value) for name, value in decide.items()}


@dataclass(frozen=True)
class Summary:
    """How far a job is.

    Attributes
    ----------
    files, total_files, resumed_files : int
        Done (with those that an earlier run did), all, and done by an earlier run.
    rows, bad_files : int
        Slices answered and files (those inside zips too) without an answer, by this run.
    elapsed_s : float
    """

    files: int = 0
    total_files: int = 0
    resumed_files: int = 0
    rows: int = 0
    bad_files: int = 0
    elapsed_s: float = 0.0

    @property
    def files_per_second(self) -> float:
        """Of this run alone."""
        return (self.files - self.resumed_files) / max(self.elapsed_s, 1e-9)

    @property
    def remaining_s(self) -> float | None:
        """Estimate; None before the first chunk."""
        done = self.files - self.resumed_files
        return (self.total_files - self.files) / self.files_per_second if done else None


def make_job(
    root: str | Path,
    output: str | Path,
    settings: Settings,
    *,
    model_id: str | None = None,
    insist: bool = False,
    workers: int = 1,
    chunk_files: int = CHUNK_FILES,
) -> Job:
    """Describe a job; the card and fitted statistics must be there, the images may be anywhere.

    Raises
    ------
    ModelError
        No such model.
    """
    from brainmri.inference import optimised_path
    from brainmri.model import read_card, sha256_of

    model_id = model_id or settings.model.id
    card = read_card(model_id, settings.model.directory)
    rule = Path(settings.model.directory) / f"{model_id}.npz"
    network = optimised_path(model_id, settings.model.directory)  # names the precision and the .bin's hash
    return Job(
        root=_absolute(root),
        output=_absolute(output),
        settings=settings,
        model_id=model_id,
        weights_sha256=card.weights_sha256,
        rule_sha256=sha256_of(rule) if rule.is_file() else "",
        network_sha256=sha256_of(network) if network.is_file() else "",
        insist=insist,
        threads=max(1, available_cores() // workers),
        chunk_files=chunk_files,
    )


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _absolute(path: str | Path) -> str:
    text = str(path)
    return text.rstrip("/") if "://" in text else str(Path(text).resolve())


def file_system(url: str) -> tuple[AbstractFileSystem, str]:
    """The fsspec file system of a folder or URL, and the path on it.

    Raises
    ------
    DataError
        Unknown protocol, or its package is not installed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise DataError(
            f"{url}: {error}; give a folder or a URL that fsspec can open (s3://, gs://, abfs:// ...)"
        ) from error


def list_files(job: Job) -> Iterator[tuple[str, str]]:
    """Files under the root in order, folder by folder, with what tells a changed file (size and version).

    Hidden files, index files, pipes and the like, and the job's own output are left out. Links are followed, to each
    folder once.

    Raises
    ------
    DataError
        No such folder.
    """
    fs, root = file_system(job.root)
    if not fs.isdir(root):
        raise DataError(f"{job.root}: no such folder; expected one with images")
    own = {file_system(url)[1] for url in (job.parts, job.output, job.bad)}
    seen: set[str] = set()

    def walk(folder: str) -> Iterator[tuple[str, str]]:
        if "file" in fs.protocol:  # nowhere else are links, which may lead in a ring
            real = os.path.realpath(folder)
            if real in seen:
                return
            seen.add(real)
        for entry in sorted(fs.ls(folder, detail=True), key=lambda e: e["name"]):
            path = entry["name"].rstrip("/")
            name = path.rsplit("/", 1)[-1]
            if name.startswith(".") or name.lower() in IGNORED_NAMES or path in own or path == folder:
                continue
            if entry.get("islink"):
                try:
                    entry = fs.info(path)  # of what it leads to
                except OSError:  # nowhere: said when the file is read
                    entry = {**entry, "type": "file"}
            if entry["type"] == "directory":
                yield from walk(path)
            elif entry["type"] == "file":
                version = next(
                    (entry[k] for k in ("ETag", "etag", "mtime", "LastModified", "updated") if k in entry), ""
                )
                yield path[len(root) :].lstrip("/"), f"{entry['size']} {version}"

    yield from walk(root)


def list_chunks(job: Job) -> Iterator[Chunk]:
    """Cut the listing where a path's hash says so: a file more or less changes its own chunk alone."""
    basis = json.dumps({**job.identity(), "root": ""}, sort_keys=True).encode()
    files: list[str] = []
    digest = hashlib.sha256(basis)
    for path, version in list_files(job):
        files.append(path)
        name = path.encode("utf-8", "surrogateescape")  # one on a disk need not be UTF-8
        digest.update(name + f"\n{version}\n".encode())
        cut = int.from_bytes(hashlib.sha256(name).digest()[:8]) % job.chunk_files == 0
        if cut or len(files) == 4 * job.chunk_files:
            yield Chunk(f"part-{digest.hexdigest()[:24]}", tuple(files))
            files, digest = [], hashlib.sha256(basis)
    if files:
        yield Chunk(f"part-{digest.hexdigest()[:24]}", tuple(files))


@dataclass
class ChunkWorker:
    """Holds one engine and answers chunks, in this process; used by local workers and by Ray's actors alike."""

    job: Job
    _classifier: Any = field(default=None, init=False)

    def run(self, chunk: Chunk) -> tuple[int, int]:
        """Answer a chunk and write its part, unless it exists; returns how many rows and bad files."""
        fs, parts = file_system(self.job.parts)
        target = f"{parts}/{chunk.name}.parquet"
        if fs.exists(target):
            return _count(fs, target), _count(fs, f"{parts}/_bad/{chunk.name}.parquet")
        # Whoever died over this chunk left a mark: now each file is decoded in a process that may die alone.
        mark = f"{parts}/_tries/{chunk.name}"
        suspicious = fs.exists(mark)
        fs.makedirs(f"{parts}/_tries", exist_ok=True)
        fs.pipe_file(mark, b"")
        batches = [chunk.files[i : i + BATCH_FILES] for i in range(0, len(chunk.files), BATCH_FILES)]
        rows: list[dict[str, Any]] = []
        bad: list[dict[str, Any]] = []
        # Two threads take turns: one reads, decodes and preprocesses while the other's batch is in the engine.
        # A remote file is mostly waited for, so more of them.
        with _reader(self.job, suspicious) as read, ThreadPoolExecutor(2 if "://" not in self.job.root else 8) as pool:
            for more_rows, more_bad in pool.map(lambda files: self._answer(files, read), batches):
                rows += more_rows
                bad += more_bad
        # The part says that the chunk is done, so it comes last.
        if bad:
            write_table(f"{self.job.parts}/_bad/{chunk.name}.parquet", bad, bad_schema())
        write_table(f"{self.job.parts}/{chunk.name}.parquet", rows, schema())
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(mark)
        return len(rows), len(bad)

    @property
    def classifier(self):
        """Loaded when first asked for."""
        if self._classifier is None:
            from brainmri.inference import load_classifier, one_thread_for_numpy

            one_thread_for_numpy()
            chosen = self.job.settings.model
            self._classifier = load_classifier(
                self.job.model_id, chosen.directory, chosen.engine, threads=self.job.threads
            )
        return self._classifier

    def _answer(self, files: tuple[str, ...], read: _Read):
        from brainmri.pipeline import analyse

        rows: list[dict[str, Any]] = []
        bad: list[dict[str, Any]] = []
        waiting: list[tuple[str, int, MRISlice]] = []

        def flush() -> None:
            answers = analyse(self.classifier, [s for _, _, s in waiting])
            rows.extend(_row(path, number, a) for (path, number, _), a in zip(waiting, answers, strict=True))
            waiting.clear()

        for path in files:
            try:
                slices, aside = read(path)
            except Exception as error:  # whatever it is, it costs this file and not the job
                name = type(error).__name__.lstrip("_")
                bad.append({"path": _shown(path), "error": name, "message": _shown(str(error))})
                continue
            for item in aside:
                name = "InvalidDicomError" if item.failed else "SetAside"
                bad.append({"path": _shown(path), "file": _shown(item.name), "error": name, "message": item.reason})
            for number, mri_slice in enumerate(slices, start=1):
                waiting.append((_shown(path), number, mri_slice))
                if len(waiting) >= BATCH_FILES:
                    flush()
        flush()
        return rows, bad


def _shown(path: str) -> str:
    """A path for a table, which holds UTF-8 alone: other bytes of a file's name as ``\\xfc``."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class _Poison(Exception):
    """A file over which two processes died."""


@contextlib.contextmanager
def _reader(job: Job, isolated: bool) -> Iterator[_Read]:
    if not isolated:
        yield lambda path: read_file(job, path)
        return
    context = multiprocessing.get_context("spawn")
    pool: list[ProcessPoolExecutor] = []
    lock = multiprocessing.get_context("spawn").Lock()

    def read(path: str) -> tuple[list[MRISlice], tuple[SetAside, ...]]:
        with lock:
            for _ in range(2):
                if not pool:
                    pool.append(ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent))
                try:
                    with _no_main_module():  # the process starts with its first task
                        answer = pool[0].submit(read_file, job, path)
                    return answer.result()
                except BrokenProcessPool:
                    pool.pop().shutdown()
            raise _Poison("two processes died reading this file; it is set aside")

    try:
        yield read
    finally:
        for executor in pool:
            executor.shutdown()


def read_file(job: Job, path: str) -> tuple[list[MRISlice], tuple[SetAside, ...]]:
    """Read and decode one file of a job; what of it was set aside comes second.

    Raises
    ------
    InvalidImageError
        Too large or no usable image.
    OSError
        It cannot be read.
    """
    from brainmri import pipeline

    limit_mb = max(job.settings.uploads.max_size_mb, job.settings.dicom.max_archive_mb)
    with _open(job.root, path) as file:
        content = file.read(int(limit_mb * 1e6) + 1)
    if len(content) > limit_mb * 1e6:
        raise InvalidImageError(f"{path}: over {limit_mb:.0f} MB, the limit")
    return pipeline.read_file(content, path.rsplit("/", 1)[-1], job.settings, insist=job.insist)


def _open(root: str, path: str) -> IO[bytes]:
    if "://" not in root:
        return open(f"{root}/{path}", "rb", buffering=0)  # fsspec's own way costs as much as decoding
    fs, folder = file_system(root)
    return fs.open(f"{folder}/{path}", "rb")


def schema() -> pyarrow.Schema:
    """Columns of the results: one row a slice."""
    import pyarrow as pa

    return pa.schema(
        [
            ("path", pa.string()),
            ("slice", pa.int32()),  # within its file, from 1
            ("label", pa.string()),  # null unless the decision is "class"
            ("decision", pa.string()),
            ("prediction_set", pa.list_(pa.string())),
            *((f"p_{name}", pa.float32()) for name in CLASS_NAMES),
            ("ood_score", pa.float32()),
            ("ood_threshold", pa.float32()),
            ("colour_share", pa.float32()),
            ("sha256", pa.string()),
            ("source_format", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("spacing_row_mm", pa.float64()),
            ("spacing_column_mm", pa.float64()),
            ("sop_instance_uid", pa.string()),
            ("frame", pa.int32()),
            ("crop_top", pa.int32()),
            ("crop_left", pa.int32()),
            ("crop_side", pa.int32()),  # rows; columns as well where pixels are square
            ("crop_columns", pa.int32()),
            ("notes", pa.string()),
            ("model_id", pa.string()),
            ("weights_sha256", pa.string()),
            ("engine", pa.string()),
            ("precision", pa.string()),
            ("software_version", pa.string()),
        ]
    )


def bad_schema() -> pyarrow.Schema:
    """Columns of the side table: one row a file without an answer; ``file`` is its name where ``path`` is a zip."""
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in ("path", "file", "error", "message")])


def _row(path: str, number: int, analysis: Analysis) -> dict[str, Any]:
    mri_slice = analysis.slice
    height, width = mri_slice.pixels.shape
    spacing = mri_slice.spacing_mm or (None, None)
    return {
        "path": path,
        "slice": number,
        "label": analysis.label,
        "decision": analysis.decision,
        "prediction_set": list(analysis.prediction_set),
        **{f"p_{name}": p for name, p in analysis.probabilities.items()},
        "ood_score": analysis.ood_score,
        "ood_threshold": analysis.ood_threshold,
        "colour_share": mri_slice.colour_share,
        "sha256": mri_slice.sha256,
        "source_format": mri_slice.source_format,
        "height": height,
        "width": width,
        "spacing_row_mm": spacing[0],
        "spacing_column_mm": spacing[1],
        "sop_instance_uid": mri_slice.sop_instance_uid,
        "frame": mri_slice.frame,
        "crop_top": analysis.transform.top,
        "crop_left": analysis.transform.left,
        "crop_side": analysis.transform.side,
        "crop_columns": analysis.transform.shape[1],
        "notes": "; ".join(mri_slice.notes) or None,
        "model_id": analysis.model_id,
        "weights_sha256": analysis.weights_sha256,
        "engine": analysis.engine,
        "precision": analysis.precision,
        "software_version": brainmri.__version__,
    }


def write_table(url: str, rows: list[dict[str, Any]], table_schema: pyarrow.Schema) -> None:
    """Write rows as Parquet, aside first and then renamed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, table_schema), buffer, compression="zstd")
    _write_aside(url, buffer.getvalue().to_pybytes())


def _count(fs: AbstractFileSystem, path: str) -> int:
    """Rows of a Parquet file, 0 where there is none."""
    import pyarrow.parquet as pq

    if not fs.exists(path):
        return 0
    with fs.open(path, "rb") as file:
        return pq.read_metadata(file).num_rows


def _write_aside(url: str, content: bytes) -> None:
    fs, path = file_system(url)
    folder, name = path.rsplit("/", 1)
    fs.makedirs(folder, exist_ok=True)
    aside = f"{folder}/_{uuid.uuid4().hex}.{name}.tmp"
    fs.pipe_file(aside, content)
    fs.mv(aside, path)


def run_archive(job: Job, *, workers: int = 1, overwrite: bool = False, progress: Progress | None = None) -> Summary:
    """Answer a whole archive on this machine with that many worker processes.

    Called again after any interruption, it goes on where it was.

    Parameters
    ----------
    overwrite : bool
        Replace an output that holds another job's answers, or a table that holds this one's. What else lies in a
        folder stays.
    progress : callable, optional
        Called after each chunk.

    Returns
    -------
    Summary
        At the end.

    Raises
    ------
    DataError
        No such root, or no file under it.
    StorageError
        The output holds another job's answers, or workers die over the same chunk again and again.
    """
    return run_chunks(
        job, lambda chunks: _on_this_machine(job, chunks, workers), overwrite=overwrite, progress=progress
    )


Outcome = tuple[Chunk, int, int]
"""A chunk that is done, its rows and its bad files."""


def run_chunks(
    job: Job,
    execute: Callable[[Iterable[Chunk]], Iterator[Outcome]],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Plan a job, have `execute` answer the chunks that have no part yet, and put the output together."""
    start = time.perf_counter()
    total, job_sha256 = _survey(job)
    if not total:
        raise DataError(f"{job.root}: holds no file; expected images")
    if _claim_output(job, job_sha256, overwrite):
        return Summary(total, total, total, elapsed_s=time.perf_counter() - start)
    fs, parts = file_system(job.parts)
    done = {Path(p).name.removesuffix(".parquet") for p in fs.ls(parts, detail=False)} if fs.isdir(parts) else set()
    summary = Summary(total_files=total)
    resumed = 0
    names: list[str] = []  # what is put together: a later listing may name other chunks, which nobody answered

    def open_chunks() -> Iterator[Chunk]:
        nonlocal resumed
        for chunk in list_chunks(job):
            names.append(chunk.name)
            if chunk.name in done:
                resumed += len(chunk.files)
            else:
                yield chunk

    answered = 0
    for chunk, rows, bad in execute(open_chunks()):
        answered += len(chunk.files)
        summary = replace(
            summary,
            files=resumed + answered,
            resumed_files=resumed,
            rows=summary.rows + rows,
            bad_files=summary.bad_files + bad,
            elapsed_s=time.perf_counter() - start,
        )
        if progress:
            progress(summary)
    files = resumed + answered
    summary = replace(summary, files=files, total_files=files, resumed_files=resumed)
    _finish_output(job, names)
    if _survey(job)[1] != _job_sha256(names):
        _log.warning(
            "%s: files came, went or changed while the job ran, and %s holds what was found first; run the same "
            "command again%s",
            job.root,
            job.output,
            ", with --overwrite" if job.single_file else "",
        )
    return replace(summary, elapsed_s=time.perf_counter() - start)


def _survey(job: Job) -> tuple[int, str]:
    """Number of files, and a hash of the whole plan."""
    total, names = 0, []
    for chunk in list_chunks(job):
        total += len(chunk.files)
        names.append(chunk.name)
    return total, _job_sha256(names)


def _job_sha256(names: list[str]) -> str:
    return hashlib.sha256("".join(names).encode()).hexdigest()


def _claim_output(job: Job, job_sha256: str, overwrite: bool) -> bool:
    """Check that the output is free or this job's; True where it is complete already."""
    import pyarrow.parquet as pq

    fs, parts = file_system(job.parts)
    other = StorageError(
        f"{job.output}: holds the answers to other images, of another model or under other settings; choose another "
        "--output, or --overwrite"
    )
    output = file_system(job.output)[1]
    if job.single_file and fs.exists(output):
        if fs.isdir(output):
            raise StorageError(
                f"{job.output}: is a folder; expected a file name, or a folder whose name has no .parquet"
            )
        with fs.open(output, "rb") as file:
            try:
                found = (pq.read_schema(file).metadata or {}).get(b"brainmri_job", b"").decode()
            except (OSError, ValueError) as error:  # what pyarrow raises is one or the other
                if not overwrite:
                    raise StorageError(
                        f"{job.output}: is no Parquet file; choose another --output, or --overwrite"
                    ) from error
                found = ""
        if not overwrite:
            if found == job_sha256:
                return True
            raise other
    claim = f"{parts}/_job.json"
    if fs.exists(claim):
        if json.loads(fs.cat_file(claim)) == job.identity():
            return False
        if not overwrite:
            raise other
        _remove_own(fs, parts)
    elif fs.isdir(parts):
        strangers = [p for p in fs.ls(parts, detail=False) if p.rsplit("/", 1)[-1][0] != "_"]
        if strangers:
            raise StorageError(f"{job.parts}: holds other files ({strangers[0]}); choose an empty --output")
    _write_aside(f"{job.parts}/_job.json", json.dumps(job.identity(), indent=2).encode())
    return False


def _is_own(path: str) -> bool:
    """Whether a file is a part of some job, or one half-written: what else lies in a folder is somebody else's."""
    name = path.rsplit("/", 1)[-1]
    return (name.startswith("part-") and name.endswith(".parquet")) or (name[0] == "_" and name.endswith(".tmp"))


def _remove_own(fs: AbstractFileSystem, parts: str) -> None:
    """Remove a job's parts and what else it keeps beside them; the folder goes if nothing is left in it."""
    for path in fs.ls(parts, detail=False):
        if _is_own(path):
            fs.rm_file(path)
    for folder in (f"{parts}/_bad", f"{parts}/_tries"):
        if fs.isdir(folder):
            fs.rm(folder, recursive=True)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(f"{parts}/_job.json")  # last: a folder that is claimed can be cleared again
    if fs.isdir(parts) and not fs.ls(parts, detail=False):
        fs.rmdir(parts)


def _finish_output(job: Job, names: list[str]) -> None:
    """Drop parts of files that have changed or gone since; make the single file where one is asked for."""
    fs, parts = file_system(job.parts)
    fs.invalidate_cache()  # the parts were written by other processes
    planned = {f"{name}.parquet" for name in names}
    for folder in (parts, f"{parts}/_bad"):
        if fs.isdir(folder):
            for path in fs.ls(folder, detail=False):
                if _is_own(path) and path.rsplit("/", 1)[-1] not in planned:
                    fs.rm_file(path)
    if fs.isdir(f"{parts}/_tries"):
        fs.rm(f"{parts}/_tries", recursive=True)
    if job.single_file:
        if lost := next((name for name in names if not fs.exists(f"{parts}/{name}.parquet")), None):
            raise StorageError(
                f"{job.parts}: {lost}.parquet is gone; with no other job on this --output, run the same command again"
            )
        with_bad = [name for name in names if fs.exists(f"{parts}/_bad/{name}.parquet")]
        _merge(f"{parts}/_bad", with_bad, job.bad, bad_schema(), _job_sha256(names))
        _merge(parts, names, job.output, schema(), _job_sha256(names))
        _remove_own(fs, parts)


def _merge(folder: str, names: list[str], url: str, table_schema: pyarrow.Schema, job_sha256: str) -> None:
    """Join parts, one in memory at a time."""
    import pyarrow.parquet as pq

    fs, path = file_system(url)
    parent = path.rsplit("/", 1)[0]
    aside = f"{parent}/_{uuid.uuid4().hex}.tmp"
    with (
        fs.open(aside, "wb") as file,
        pq.ParquetWriter(file, table_schema.with_metadata({"brainmri_job": job_sha256}), compression="zstd") as writer,
    ):
        for name in names:
            with fs.open(f"{folder}/{name}.parquet", "rb") as source:
                table = pq.read_table(source)
            if len(table):
                writer.write_table(table.cast(table_schema.with_metadata({"brainmri_job": job_sha256})))
    fs.mv(aside, path)


def _on_this_machine(job: Job, chunks: Iterable[Chunk], workers: int) -> Iterator[Outcome]:
    """Worker processes that each hold an engine and take a chunk at a time; one that dies is replaced."""
    context = multiprocessing.get_context("spawn")
    pending = iter(chunks)
    again: list[Chunk] = []
    attempts: dict[str, int] = {}
    crew: dict[Connection, tuple[Any, Chunk | None]] = {}

    def hire() -> Connection:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, job), name="brainmri-archive")
        with _no_main_module():
            process.start()
        theirs.close()
        crew[ours] = (process, None)
        return ours

    def give(connection: Connection) -> None:
        chunk = again.pop() if again else next(pending, None)
        crew[connection] = (crew[connection][0], chunk)
        if chunk is not None:
            with contextlib.suppress(BrokenPipeError):  # it died idle; the wait below finds it
                connection.send(chunk)

    try:
        for _ in range(workers):
            give(hire())
        while any(chunk for _, chunk in crew.values()):
            for connection in cast(list[Connection], wait([c for c, (_, chunk) in crew.items() if chunk])):
                process, chunk = crew[connection]
                try:
                    answer = connection.recv()
                except (EOFError, ConnectionResetError):
                    answer = None
                if isinstance(answer, BaseException):
                    raise answer
                if answer is not None and chunk is not None:
                    yield chunk, *answer
                    give(connection)
                    continue
                del crew[connection]
                connection.close()
                process.join()
                if chunk is not None:
                    _log.warning(
                        "a worker died; the %d files from %s on are tried again",
                        len(chunk.files),
                        _shown(chunk.files[0]),
                    )
                    attempts[chunk.name] = attempts.get(chunk.name, 0) + 1
                    if attempts[chunk.name] >= MAX_ATTEMPTS:
                        raise StorageError(
                            f"{MAX_ATTEMPTS} worker processes died over the same {len(chunk.files)} files "
                            f"(first: {_shown(chunk.files[0])}); is there enough memory? Fewer --workers need less"
                        )
                    again.append(chunk)
                give(hire())
    finally:
        for connection, (process, chunk) in crew.items():
            connection.close()
            if chunk is not None:
                process.terminate()
        for process, _ in crew.values():
            process.join()


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """Start processes that do not run the parent's main module again.

    They need nothing of it, and a script without a ``__name__`` guard, a notebook's kernel or a page of the app would
    do its work once more in each of them.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _end_with_parent() -> None:
    """Have this process end with the one that started it: a parent that is killed tells nobody.

    What it was at is not lost, a part appears whole or not at all.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        wait([parent.sentinel])  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(connection: Connection, job: Job) -> None:
    """A worker process: chunks in, counts out; ends when the parent does."""
    _end_with_parent()
    worker = ChunkWorker(job)
    while True:
        try:
            chunk = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            answer: Any = worker.run(chunk)
        except KeyboardInterrupt:
            return
        except BrainMRIError as error:
            answer = error
        except Exception as error:
            answer = StorageError(f"{job.output}: a worker failed ({type(error).__name__}: {error})")
        with contextlib.suppress(BrokenPipeError):
            connection.send(answer)
