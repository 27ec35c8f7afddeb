"""Decoding in worker processes: a crash, a hang or a hunger for memory costs one file, never the server."""

from __future__ import annotations

import atexit
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from typing import Any, BinaryIO, cast

from brainmri.errors import InvalidDicomError

CPU_SECONDS, CPU_SECONDS_PER_MB, MOST_CPU_SECONDS = 3.0, 3.0, 20.0
"""Processor time that one step (parse, or one frame) may take, by a file's size: many frames have long headers."""
STEP_SECONDS = 20.0
"""Time that a step may take beyond its processor time, on a busy machine."""

MAX_WORKERS = max(1, min(4, os.cpu_count() or 1))


class TooLargeError(Exception):
    """A file that takes more memory than an upload may, once decoded."""


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
        left = header["limits"]["max_bytes"]
        while True:
            answer, data = self._receive(time.monotonic() + header["cpu_seconds"] + STEP_SECONDS)
            if answer["kind"] == "error":
                raise InvalidDicomError(answer["message"])
            if answer["kind"] == "end":
                return parts
            left -= len(data) + math.prod(answer.get("shape", ()))  # a frame is held as values and as a picture
            if left < 0:
                raise TooLargeError
            parts.append((answer, data))

    def _receive(self, deadline: float) -> tuple[dict[str, Any], bytes]:
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
    seconds = min(MOST_CPU_SECONDS, max(CPU_SECONDS, CPU_SECONDS_PER_MB * len(content) / 1e6))
    request = {
        "name": name,
        "key": key.hex() if key else "",
        "insist": insist,
        "limits": limits,
        "cpu_seconds": seconds,
    }
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
            raise InvalidDicomError(
                f"{name}: decoding it took too long and was stopped ({seconds + STEP_SECONDS:.0f} s for one step)"
            ) from error
        except TooLargeError as error:
            worker.close()
            raise InvalidDicomError(
                f"{name}: takes more than {limits['max_bytes'] / 1e6:,.0f} MB when decoded (dicom.max_archive_mb)"
            ) from error
        except (EOFError, BrokenPipeError, ConnectionError, ValueError, KeyError) as error:
            worker.close()
            if worker.process.returncode == -getattr(signal, "SIGPROF", 0):
                why = f"decoding it takes more processor time than a file may ({seconds:.1f} s for one step)"
            else:
                why = "the decoder crashed on it or ran out of memory"
            raise InvalidDicomError(f"{name}: {why}") from error
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
