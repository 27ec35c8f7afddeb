"""Damaged DICOM files by the thousand: each must decode or be refused in a line, soon, leaving nothing behind."""

from __future__ import annotations

import os
import random
import struct
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from brainmri.config import Settings
from brainmri.dicom.guard import stop_workers
from brainmri.dicom.reading import read_slices
from brainmri.errors import BrainMRIError

_SIZES = (b"\x28\x00\x10\x00", b"\x28\x00\x11\x00", b"\x28\x00\x08\x00", b"\x28\x00\x00\x01", b"\x28\x00\x01\x01")
_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x10\x00", b"\x18\x00", b"\x20\x00", b"\x28\x00", b"\xe0\x7f", b"\xfe\xff")


@dataclass
class FuzzResult:
    """What became of the files; ``failures`` should be empty."""

    decoded: int = 0
    refused: int = 0
    workers_lost: int = 0
    slowest_seconds: float = 0.0
    left_behind: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def pydicom_files() -> list[Path]:
    """pydicom's own test files, as its package carries them; sorted."""
    import pydicom

    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    return sorted(path for path in folder.rglob("*") if path.is_file())


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Damage a file once or a few times: bit flips, cuts, lies about lengths and sizes, blocks moved or zeroed."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if len(data) < 200:
            break
        kind = rng.randrange(7)
        at = rng.randrange(len(data)) if rng.random() < 0.4 else rng.randrange(min(len(data), 3000))
        size = rng.choice((1, 2, 4, 16, 64, 512))
        if kind == 0:
            for _ in range(rng.choice((1, 1, 8, 64))):
                where = rng.randrange(len(data))
                data[where] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = rng.randbytes(size)
        elif kind == 4:
            data[at : at + size] = bytes(min(size, len(data) - at))
        elif kind == 5:  # an element's length
            where = data.find(rng.choice(_GROUPS), at)
            if 0 <= where < len(data) - 12:
                lie = rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE, rng.getrandbits(32)))
                struct.pack_into("<I", data, where + rng.choice((4, 6, 8)), lie)
        else:  # rows, columns, frames, bits
            where = data.find(rng.choice(_SIZES))
            if 0 <= where < len(data) - 12:
                struct.pack_into("<H", data, where + 8, rng.choice((0, 1, 7, 33, 65535, rng.getrandbits(16))))
    return bytes(data)


def run_fuzz(settings: Settings, count: int, *, seed: int = 0, files: Iterable[Path] | None = None) -> FuzzResult:
    """Read ``count`` damaged copies of small DICOM files, whatever their modality.

    Parameters
    ----------
    files : iterable of path, optional
        Default: pydicom's test files. Those under 250 kB that decode unharmed are used.
    """
    rng = random.Random(seed)
    candidates = [content for path in files or pydicom_files() if len(content := path.read_bytes()) < 250_000]
    result = FuzzResult()
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as keys:
        key_file = Path(keys) / "uid.key"
        own = settings.model_copy(update={"dicom": settings.dicom.model_copy(update={"key_file": key_file})})
        os.environ["TMPDIR"] = folder  # of the workers started from here on
        stop_workers()
        try:
            seeds = [content for content in candidates if _decodes(content, own)]
            for number in range(count):
                content = mutate(rng.choice(seeds), rng)
                start = time.perf_counter()
                try:
                    read_slices(content, f"fuzz-{number}", own, insist=True)
                    result.decoded += 1
                except BrainMRIError as error:
                    result.refused += 1
                    lost = ("the decoder crashed", "processor time", "too long")
                    result.workers_lost += any(words in str(error) for words in lost)
                except Exception as error:  # exactly what must not happen
                    result.failures.append(f"file {number} of seed {seed}: {type(error).__name__}: {error}")
                result.slowest_seconds = max(result.slowest_seconds, time.perf_counter() - start)
            result.left_behind = sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*"))
        finally:
            stop_workers()
            if before is None:
                os.environ.pop("TMPDIR", None)
            else:
                os.environ["TMPDIR"] = before
    return result


def _decodes(content: bytes, settings: Settings) -> bool:
    try:
        return bool(read_slices(content, "seed", settings, insist=True))
    except BrainMRIError:
        return False
