"""What can hide in pixel data beside the pixels: bytes behind them, bits above them, remarks in a JPEG or JPEG 2000."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pydicom import Dataset

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_KEPT_SEGMENTS = {0xE0: (b"JFIF\0", 16), 0xEE: (b"Adobe", 14), 0xE8: (b"mrfx", 7)}
"""Application segments that say what the colours are: their marker's second byte, first bytes and length."""
_COMMENT, _SCAN, _JPEG2000_COMMENT, _TILE = 0xFE, 0xDA, 0x64, 0x90


def native_size(ds: Dataset) -> int:
    """Bytes of pixels that a data set without compression must hold, from its header (PS3.5 8.1.1)."""
    values = math.prod(int(ds.get(k) or 1) for k in ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"))
    bits = int(ds.get("BitsAllocated") or 0) or (64 if "DoubleFloatPixelData" in ds else 32)
    size = -(-values * bits // 8)
    return size * 2 // 3 if "422" in str(ds.get("PhotometricInterpretation") or "") else size


def is_native(ds: Dataset) -> bool:
    """Whether pixels lie there uncompressed; a deflated data set is inflated when it is read."""
    syntax = ds.file_meta.TransferSyntaxUID
    return not syntax.is_compressed or syntax.is_deflated


def strip_pixels(ds: Dataset) -> list[str]:
    """Take out of the pixel data what is none. Modifies the data set; the pixels stay what they are.

    Overlays could once lie in the bits that pixels leave unused (PS3.3 C.9.2, retired). In compressed pixels such bits
    stay.

    Returns
    -------
    list of str
        What was taken out.
    """
    keyword = next((k for k in PIXEL_KEYWORDS if k in ds), None)
    if keyword is None or not ds[keyword].value:
        return []
    if is_native(ds):
        return _strip_native(ds, keyword)
    name = ds.file_meta.TransferSyntaxUID.name
    return _strip_frames(ds, jpeg2000="2000" in name) if "JPEG" in name else []


def _strip_native(ds: Dataset, keyword: str) -> list[str]:
    from pydicom.uid import ExplicitVRBigEndian

    whole, found = bytes(ds[keyword].value), []
    content = whole[: native_size(ds)]
    if whole[len(content) :].strip(b"\0"):
        found.append("bytes behind the pixels")
    allocated, stored = int(ds.get("BitsAllocated") or 0), int(ds.get("BitsStored") or 0)
    if keyword == "PixelData" and allocated in (8, 16, 32) and 0 < stored < allocated:
        order = ">" if ds.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else "<"
        kind = "i" if ds.get("PixelRepresentation") == 1 else "u"
        values = np.frombuffer(content, f"{order}{kind}{allocated // 8}")
        # Above a signed value stands its sign, as scanners write it.
        low, high = (-(1 << stored - 1), (1 << stored - 1) - 1) if kind == "i" else (0, (1 << stored) - 1)
        if values.min() < low or values.max() > high:
            found.append("bits above the pixels")
            content = (values << allocated - stored >> allocated - stored).astype(values.dtype).tobytes()
    if found:
        ds[keyword].value = content + b"\0" * (len(content) % 2)
    return found


def _strip_frames(ds: Dataset, *, jpeg2000: bool) -> list[str]:
    from pydicom.encaps import encapsulate, generate_frames

    tables = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
    offsets = tuple(ds[k].value for k in tables) if all(k in ds for k in tables) else None
    frames = list(
        generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames") or 1), extended_offsets=offsets)
    )
    bare = [_without_remarks(frame, jpeg2000) for frame in frames]
    if bare == frames:
        return []
    ds.PixelData = encapsulate(bare)
    for keyword in tables:  # the offset table that was made anew takes their place
        if keyword in ds:
            del ds[keyword]
    return ["remarks in compressed pixels"]


def _without_remarks(frame: bytes, jpeg2000: bool) -> bytes:
    """A JPEG, JPEG-LS or JPEG 2000 code stream without comments, application data and what follows its end.

    As it came where its segments do not follow one another: then decoding it says what is wrong.
    """
    if frame[:2] != (b"\xff\x4f" if jpeg2000 else b"\xff\xd8"):
        return frame
    parts, at = [frame[:2]], 2
    while True:
        while frame[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        marker, size = frame[at + 1 : at + 2], int.from_bytes(frame[at + 2 : at + 4], "big")
        if frame[at : at + 1] != b"\xff" or not marker or size < 2:
            return frame
        if marker[0] == (_TILE if jpeg2000 else _SCAN):
            break
        segment = frame[at : at + 2 + size]
        if not _is_remark(marker[0], segment, jpeg2000):
            parts.append(segment)
        at += 2 + size
    end = frame.rfind(b"\xff\xd9")
    image = frame[at:] if end < at or not frame[end + 2 :].strip(b"\0") else frame[at : end + 2]
    return b"".join([*parts, image])


def _is_remark(marker: int, segment: bytes, jpeg2000: bool) -> bool:
    if jpeg2000:
        return marker == _JPEG2000_COMMENT
    if marker == _COMMENT:
        return True
    start, size = _KEPT_SEGMENTS.get(marker, (b"", 0))
    return 0xE0 <= marker <= 0xEF and not (start and segment[4:].startswith(start) and len(segment) - 2 == size)
