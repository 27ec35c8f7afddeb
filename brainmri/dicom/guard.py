"""Decoding in worker processes: a crash, a hang or a hunger for memory costs one file, never the server."""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from typing import Any, BinaryIO, cast

from brainmri.errors import InvalidDicomError

STEP_SECONDS = 20.0
"""Wall time for one step (parse, or one frame) on a busy machine; the worker itself ends after 3 s of CPU time."""

MAX_WORKERS = max(1, min(4, os.cpu_count() or 1))


class _Worker:
    def __init__(self) -> None:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "brainmri.dicom.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
        )
        self.requests = cast(BinaryIO, self.process.stdin)
        self.answers = cast(BinaryIO, self.process.stdout)
        self.buffer = bytearray()
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.answers, selectors.EVENT_READ)

    def ask(self, header: dict[str, Any], content: bytes) -> list[tuple[dict[str, Any], bytes]]:
        from brainmri.dicom.worker import send

        send(self.requests, header, content)
        parts: list[tuple[dict[str, Any], bytes]] = []
        while True:
            answer, data = self._receive()
            if answer["kind"] == "error":
                raise InvalidDicomError(answer["message"])
            if answer["kind"] == "end":
                return parts
            parts.append((answer, data))

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        deadline = time.monotonic() + STEP_SECONDS
        while (end := self.buffer.find(b"\n")) < 0:
            self._fill(deadline)
        header = json.loads(self.buffer[:end])
        del self.buffer[: end + 1]
        size = header["n_bytes"]
        while len(self.buffer) < size:
            self._fill(deadline)
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return header, data

    def _fill(self, deadline: float) -> None:
        if not self.selector.select(max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        chunk = os.read(self.answers.fileno(), 1 << 20)
        if not chunk:
            raise EOFError
        self.buffer += chunk

    def close(self) -> None:
        self.selector.close()
        self.process.kill()
        self.process.wait()
        for stream in (self.requests, self.answers):
            try:
                stream.close()
            except OSError:  # unsent bytes for a process that is gone
                continue


_idle: list[_Worker] = []
_lock = threading.Lock()
_slots = threading.BoundedSemaphore(MAX_WORKERS)


def decode(
    content: bytes, name: str, *, key: bytes | None, insist: bool, limits: dict[str, int]
) -> list[tuple[dict[str, Any], bytes]]:
    """Run `decode.read_file` in a worker.

    Returns
    -------
    list of (header, bytes)
        The file's header with the bytes to keep, then each frame's header with its values.

    Raises
    ------
    InvalidDicomError
        What `read_file` raised; or the worker crashed, ran out of time or memory.
    """
    request = {"name": name, "key": key.hex() if key else "", "insist": insist, "limits": limits}
    with _slots:
        with _lock:
            worker = _idle.pop() if _idle else None
        if worker is None or worker.process.poll() is not None:
            worker = _Worker()
        try:
            parts = worker.ask(request, content)
        except InvalidDicomError:
            _give_back(worker)
            raise
        except TimeoutError as error:
            worker.close()
            raise InvalidDicomError(f"{name}: decoding it took too long and was stopped") from error
        except (EOFError, BrokenPipeError, ConnectionError, ValueError, KeyError) as error:
            worker.close()
            raise InvalidDicomError(f"{name}: the decoder crashed or ran out of time or memory on it") from error
        except BaseException:  # an interrupt between request and answer: the stream is out of step
            worker.close()
            raise
        _give_back(worker)
        return parts


def _give_back(worker: _Worker) -> None:
    with _lock:
        _idle.append(worker)


@atexit.register
def stop_workers() -> None:
    """End the idle workers; they would end by themselves when this process does."""
    with _lock:
        while _idle:
            _idle.pop().close()
