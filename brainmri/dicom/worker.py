"""The process that parses and decodes: ``python -m brainmri.dicom.worker``. Talks with `guard` over stdin and stdout.

A message is one line of JSON, ``{..., "n_bytes": n}``, and n bytes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any, BinaryIO

import numpy as np

MEMORY_LIMIT = 3 * 2**30


def main() -> None:
    """Answer requests until stdin ends."""
    from brainmri.dicom.decode import Limits, read_file
    from brainmri.errors import BrainMRIError

    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a native decoder prints must not get between the answers
    import gdcm  # noqa: F401  loaded before the memory limit counts

    from brainmri.dicom.jpeg12 import register

    register()
    _limit_memory()
    while (message := _receive(requests)) is not None:
        header, content = message
        key = bytes.fromhex(header["key"]) if header["key"] else None
        steps = read_file(content, header["name"], key=key, insist=header["insist"], limits=Limits(**header["limits"]))
        try:
            while True:
                _limit_cpu(header["cpu_seconds"])
                item = next(steps, None)
                _limit_cpu(0)
                if item is None:
                    break
                meta, data = item
                if isinstance(data, np.ndarray):
                    meta = {**meta, "shape": list(data.shape), "dtype": data.dtype.str}
                    data = np.ascontiguousarray(data).tobytes()
                send(answers, {"kind": "part", **meta}, data)
            send(answers, {"kind": "end"})
        except BrainMRIError as error:
            send(answers, {"kind": "error", "message": str(error)})


def send(stream: BinaryIO, header: dict[str, Any], data: bytes = b"") -> None:
    """Write one message."""
    stream.write(json.dumps({**header, "n_bytes": len(data)}).encode() + b"\n")
    stream.write(data)
    stream.flush()


def _receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    line = stream.readline()
    if not line:
        return None
    header = json.loads(line)
    return header, stream.read(header["n_bytes"])


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # not on Windows; macOS does not keep RLIMIT_AS
        return


def _limit_cpu(seconds: float) -> None:
    """Let the kernel end this process after so much work: a Python handler would not run inside native code."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    main()
