"""The archive job past one machine: Ray Data over actors that each hold one engine; same chunks, same writer."""

from __future__ import annotations

import itertools
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from typing import Any

from brainmri.archive import Chunk, ChunkWorker, Job, Outcome, Progress, Summary, run_chunks
from brainmri.errors import EngineError


class ChunkActor:
    """Answers chunks on a node of the cluster: one engine, one core."""

    def __init__(self, job: Job):
        self.worker = ChunkWorker(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A chunk in, its counts out; the answers themselves go straight to the output."""
        rows, bad = self.worker.run(Chunk(row["name"], tuple(row["files"])))
        return {"name": row["name"], "rows": rows, "bad": bad}


def run_on_ray(
    job: Job, address: str, *, workers: int | None = None, overwrite: bool = False, progress: Progress | None = None
) -> Summary:
    """Answer an archive on a Ray cluster.

    Every node needs this package, and root, output and models folder under the same path or URL. A chunk whose actor
    or node dies is done again elsewhere; see `archive.ChunkWorker.run` for why no row is lost or doubled.

    Parameters
    ----------
    address : str
        Of the cluster's head (``host:6379``, ``ray://…``, ``auto``), or ``local`` for one on this machine.
    workers : int, optional
        Actors, one core each; default as many as the cluster has cores.

    Raises
    ------
    EngineError
        Ray is not installed or the cluster does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise EngineError(f"Ray does not import ({error}); install it: .venv/bin/pip install -e '.[scale]'") from error
    ours = not ray.is_initialized()
    if ours:
        _check_reachable(address)
        try:
            ray.init(
                address=None if address == "local" else address,
                include_dashboard=False if address == "local" else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise EngineError(f"no Ray cluster answers at {address} ({error}); start one, or pass local") from error
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        crew = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        return run_chunks(job, lambda chunks: _on_ray(job, chunks, crew), overwrite=overwrite, progress=progress)
    finally:
        if ours:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself waits minutes for a head that is not there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise EngineError(
            f"no Ray cluster answers at {address} ({error}); start one with 'ray start --head', or pass local"
        ) from error


def _on_ray(job: Job, chunks: Iterable[Chunk], workers: int) -> Iterator[Outcome]:
    import ray.data

    # Waves keep the driver's memory constant, however long the listing is.
    for wave in _waves(chunks, max(512, 64 * workers)):
        by_name = {chunk.name: chunk for chunk in wave}
        items = [{"name": chunk.name, "files": list(chunk.files)} for chunk in wave]
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
            ChunkActor,  # type: ignore[arg-type]  # a class becomes an actor pool
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers, len(items))),
            num_cpus=1,
        )
        for row in dataset.iter_rows():
            yield by_name[row["name"]], row["rows"], row["bad"]


def _waves(chunks: Iterable[Chunk], size: int) -> Iterator[tuple[Chunk, ...]]:
    source = iter(chunks)
    while wave := tuple(itertools.islice(source, size)):
        yield wave
