"""Bytes -> slices: one DICOM file, or a zip or folder of a series. Nothing is written to disk on the way."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from brainmri.config import IGNORED_NAMES, Settings
from brainmri.dicom.deidentify import load_key
from brainmri.dicom.guard import decode
from brainmri.dicom.series import DicomFrame, Reading, SetAside, build_reading, known_words, reason_to_set_aside
from brainmri.dicom.windows import Window, default_window
from brainmri.errors import InvalidDicomError
from brainmri.imaging import colour_notes
from brainmri.types import MRISlice

_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"BM", b"RIFF")
MAX_ENTRIES_PER_SLICE = 4
"""Entries of a zip that may be no slice, for each that may be one; past that the archive is refused unread."""


def is_zip(content: bytes) -> bool:
    """True for a zip archive, whatever its name."""
    return content[:4] in (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")


def is_dicom(content: bytes) -> bool:
    """True for a DICOM file: ``DICM`` after the preamble, or a data set that starts without one (PS3.10 7.1)."""
    if content[128:132] == b"DICM":
        return True
    if len(content) < 16 or content.startswith(_PICTURES) or is_zip(content):
        return False
    # First element in group 0002 or 0008, little or big endian, element number low.
    little = content[0] in (2, 8) and content[1] == 0 and content[3] == 0
    big = content[1] in (2, 8) and content[0] == 0 and content[2] == 0
    return little or big


def read_slices(content: bytes, name: str, settings: Settings, *, insist: bool = False) -> list[MRISlice]:
    """Read one DICOM file (multi-frame too) or a zip of a series.

    Parameters
    ----------
    content : bytes
        The upload.
    name : str
        For the reader and error messages.
    settings : Settings
        Limits, de-identification, key file.
    insist : bool
        Take what would be refused or set aside: other modalities, localisers, diffusion, derived images.

    Returns
    -------
    list of MRISlice
        Series after series, each in anatomical order, on the original grid.

    Raises
    ------
    InvalidDicomError
        Nothing usable in it; says why.
    """
    return [s for series in read_series(content, name, settings, insist=insist).series for s in series.slices]


def read_series(content: bytes, name: str, settings: Settings, *, insist: bool = False) -> Reading:
    """Read one DICOM file or a zip into series, with the list of what was set aside and what was de-identified.

    Raises
    ------
    InvalidDicomError
        A single file that cannot be used or that a folder would set aside, a broken or dangerous zip, too many slices,
        or nothing usable in it.
    """
    name = _last_component(name)
    limit = int(settings.dicom.max_archive_mb * 1e6)
    if not content:
        raise InvalidDicomError(f"{name}: the file is empty (0 bytes); expected a DICOM file or a zip of them")
    if len(content) > limit:
        raise InvalidDicomError(
            f"{name}: {len(content) / 1e6:,.0f} MB, the limit is {limit / 1e6:,.0f} MB (dicom.max_archive_mb)"
        )
    if is_zip(content):
        return read_files(_unzip(content, name, settings), name, settings, insist=insist)
    reading = build_reading(_read_one(content, name, settings, insist), [], insist=insist)
    if not reading.series:
        reasons = "; ".join(dict.fromkeys(aside.reason for aside in reading.set_aside))
        raise InvalidDicomError(
            f"{name}: set aside: {reasons}; insist if it is to be answered all the same (--insist, or Take everything)"
        )
    return reading


def read_folder(folder: Path, settings: Settings, *, insist: bool = False) -> Reading:
    """Read a folder and its subfolders; links that lead out of it are not followed."""
    if not folder.is_dir():
        raise InvalidDicomError(f"{folder}: no such folder; expected one that holds DICOM files")

    def files() -> Iterator[tuple[str, bytes]]:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield str(path.relative_to(folder)), path.read_bytes()

    return read_files(files(), folder.name, settings, insist=insist)


def read_files(
    files: Iterable[tuple[str, bytes]],
    name: str,
    settings: Settings,
    *,
    insist: bool = False,
    may_be_empty: bool = False,
) -> Reading:
    """Read many files, one at a time, into series.

    Raises
    ------
    InvalidDicomError
        More slices or decoded bytes than the settings allow, or, unless it may be empty, no usable image among the
        files.
    """
    frames: list[DicomFrame] = []
    aside: list[SetAside] = []
    budget = int(settings.dicom.max_archive_mb * 1e6)
    for file_name, content in files:
        if is_zip(content):
            aside.append(SetAside(file_name, "a zip inside; only one level is opened"))
            continue
        if not is_dicom(content):
            aside.append(SetAside(file_name, "no DICOM file"))
            continue
        try:
            new = _read_one(content, file_name, settings, insist)
        except InvalidDicomError as error:
            aside.append(SetAside(file_name, str(error).removeprefix(f"{file_name}: "), failed=True))
            continue
        frames += new
        budget -= sum(f.values.nbytes + f.slice.pixels.nbytes for f in new) + len(content)
        if len(frames) > settings.dicom.max_slices:
            raise InvalidDicomError(
                f"{name}: more than {settings.dicom.max_slices:,} slices (dicom.max_slices); send one series at a time"
            )
        if budget < 0:
            raise InvalidDicomError(
                f"{name}: takes more than {settings.dicom.max_archive_mb:,.0f} MB when decoded (dicom.max_archive_mb); "
                "send one series at a time"
            )
    reading = build_reading(frames, aside, insist=insist)
    if not reading.series and not may_be_empty:
        reasons = "; ".join(f"{a.name}: {a.reason}" for a in reading.set_aside[:3]) or "it is empty"
        more = f"; and {len(reading.set_aside) - 3} more" if len(reading.set_aside) > 3 else ""
        raise InvalidDicomError(f"{name}: no usable MR image in it ({reasons}{more})")
    return reading


def _unzip(content: bytes, name: str, settings: Settings) -> Iterator[tuple[str, bytes]]:
    """Yield a zip's files one by one, in memory; the directory is checked before anything is unpacked."""
    limit = int(settings.dicom.max_archive_mb * 1e6)
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        entries = [e for e in archive.infolist() if not e.is_dir()]
    except Exception as error:  # zipfile raises whatever a damaged directory leads it to
        raise InvalidDicomError(f"{name}: the zip is damaged or cut short ({error})") from error
    with archive:
        most = settings.dicom.max_slices * MAX_ENTRIES_PER_SLICE
        if len(entries) > most:
            raise InvalidDicomError(f"{name}: {len(entries):,} files in the zip, the limit is {most:,}")
        for entry in entries:
            path = entry.filename.replace("\\", "/")
            if path.startswith("/") or ".." in path.split("/") or path[1:3] == ":/":
                raise InvalidDicomError(f"{name}: the zip holds a path that leaves its folder ({path[:80]!r})")
            if entry.flag_bits & 1:
                raise InvalidDicomError(f"{name}: the zip is encrypted; send it without a password")
        declared = sum(entry.file_size for entry in entries)
        if declared > limit:
            raise InvalidDicomError(
                f"{name}: {declared / 1e6:,.0f} MB when unpacked, the limit is {limit / 1e6:,.0f} MB"
                " (dicom.max_archive_mb)"
            )
        left = limit
        for entry in entries:
            if _is_clutter(entry.filename):
                continue
            try:
                with archive.open(entry) as file:
                    data = file.read(left + 1)
            except Exception as error:  # each decompressor has errors of its own
                raise InvalidDicomError(f"{name}: {entry.filename[-80:]!r} in the zip is damaged ({error})") from error
            left -= len(data)
            if left < 0:  # the directory lied about sizes
                raise InvalidDicomError(f"{name}: over {limit / 1e6:,.0f} MB when unpacked (dicom.max_archive_mb)")
            yield entry.filename, data


def _is_clutter(path: str) -> bool:
    last = _last_component(path)
    return path.startswith("__MACOSX/") or last.startswith(".") or last.lower() in IGNORED_NAMES


def _read_one(content: bytes, name: str, settings: Settings, insist: bool) -> list[DicomFrame]:
    key = load_key(settings.dicom.key_file) if settings.dicom.deidentify else None
    limits = {
        "max_pixels": settings.uploads.max_pixels,
        "max_frames": settings.dicom.max_slices,
        "max_bytes": int(settings.dicom.max_archive_mb * 1e6),
    }
    if not is_dicom(content):
        raise InvalidDicomError(f"{name}: not a DICOM file; its first bytes are {content[:4]!r}")
    (header, stored), *parts = decode(content, name, key=key, insist=insist, limits=limits)
    sha256 = hashlib.sha256(stored).hexdigest()
    kept = content if settings.dicom.keep_originals else stored
    return [_frame(header, kept, sha256, part, data, name, settings) for part, data in parts]


def _frame(
    header: dict[str, Any],
    kept: bytes,
    sha256: str,
    part: dict[str, Any],
    data: bytes,
    name: str,
    settings: Settings,
) -> DicomFrame:
    values = np.frombuffer(data, part["dtype"]).reshape(part["shape"])
    windows = tuple(_window(w) for w in part["windows"])
    share = part.get("colour_share", 0.0)
    notes = [*part["notes"], *colour_notes(share)]
    pixels = default_window(values, windows, notes).apply(values, inverted=part["inverted"])
    pixels.setflags(write=False)
    deidentified = settings.dicom.deidentify
    if header["burned_in"] == "YES":
        notes.append("the header says that text is burned into the picture")
    elif deidentified and header["burned_in"] != "NO":
        notes.append("headers cannot rule out names burned into the picture: look before you share it")
    number, frame_number = header["instance_number"], part["frame"]
    if deidentified:
        shown_name = f"{header['patient_id']}-S{header['series_number'] or 0}-{number or 0:03d}"
    else:
        shown_name = _last_component(name)
    if frame_number is not None:
        shown_name += f" frame {frame_number}"
    letters, spacing = part["orientation"], part["spacing_mm"]
    mri_slice = MRISlice(
        pixels,
        shown_name,
        sha256,
        "DICOM",
        spacing_mm=(spacing[0], spacing[1]) if spacing else None,
        orientation=(letters[0], letters[1], letters[2], letters[3]) if letters else None,
        sop_instance_uid=header["sop_instance_uid"] or None,
        frame=frame_number,
        notes=tuple(dict.fromkeys(notes)),
        colour_share=share,
        content=kept,
    )
    reason = reason_to_set_aside(
        part["image_type"],
        header["free_text"],
        b_value=part["b_value"],
        directionality=part["directionality"],
        secondary=not header["is_mr_class"],
    )
    return DicomFrame(
        slice=mri_slice,
        values=values,
        windows=windows,
        inverted=part["inverted"],
        modality=header["modality"],
        patient_id=header["patient_id"],
        study_uid=header["study_uid"],
        series_uid=header["series_uid"],
        label=known_words(header["free_text"]),
        plane=part["plane"],
        cosines=tuple(part["cosines"]) if part["cosines"] else None,
        image_position=tuple(part["image_position"]) if part["image_position"] else None,
        instance_number=number,
        series_number=header["series_number"],
        image_type=tuple(part["image_type"]),
        echo_time=part["echo_time"],
        temporal=part["temporal"],
        inversion_time=part["inversion_time"],
        acquisition=part["acquisition"],
        trigger_time=part["trigger_time"],
        aside_reason=reason,
        file_name=name,
        removed=tuple(header["removed"]),
        patient=header.get("patient"),
    )


def _window(raw: dict[str, Any]) -> Window:
    lut = raw.get("lut")
    return Window(
        raw["center"],
        raw["width"],
        raw["function"],
        raw["name"],
        "file",
        None if lut is None else np.asarray(lut, np.uint8),
        raw.get("first_mapped", 0),
    )


def _last_component(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or "upload"
