"""One DICOM file -> checked, de-identified, decoded frames. Needs pydicom; runs in the worker process (see `guard`).

Native decoders have been seen to crash on damaged files, and a few kilobytes can ask for gigabytes, so nothing here
runs in the process that serves pages.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from brainmri.dicom.deidentify import deidentify, patient_pseudonym
from brainmri.dicom.pixels import PIXEL_KEYWORDS, is_native, native_size
from brainmri.errors import InvalidDicomError
from brainmri.imaging import LONGEST, MIN_SIDE, pixel_aspect

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.tag import BaseTag

MODALITIES = {
    "CT": "computed tomography",
    "CR": "computed radiography",
    "DX": "digital X-ray",
    "MG": "mammography",
    "US": "ultrasound",
    "PT": "positron emission tomography",
    "NM": "nuclear medicine",
    "XA": "X-ray angiography",
    "OT": "other",
    "SC": "secondary capture",
    "RTDOSE": "radiotherapy dose",
    "RTPLAN": "radiotherapy plan",
    "RTSTRUCT": "radiotherapy structures",
    "SEG": "segmentation",
    "SR": "structured report",
    "ECG": "electrocardiogram",
    "PR": "presentation state",
    "ES": "endoscopy",
    "RF": "radiofluoroscopy",
}
MR_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.4",  # MR Image Storage
    "1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR
    "1.2.840.10008.5.1.4.1.1.4.4",  # Legacy Converted Enhanced MR
)
_MOST_ASPECT = 10
"""Pixels that are longer than this are a wrong header's."""
_FRAME_ATTRIBUTES = (
    "ImageType",
    "FrameType",
    "ComplexImageComponent",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "WindowCenter",
    "WindowWidth",
    "WindowCenterWidthExplanation",
    "VOILUTFunction",
    "VOILUTSequence",
    "ModalityLUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "DiffusionBValue",
    "DiffusionDirectionality",
    "EchoTime",
    "EffectiveEchoTime",
    "InversionTime",
    "InversionTimes",
    "AcquisitionNumber",
    "FrameAcquisitionNumber",
    "TriggerTime",
    "NominalCardiacTriggerDelayTime",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "BitsStored",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "SliceThickness",
)


@dataclass(frozen=True)
class Limits:
    """What a file may ask for."""

    max_pixels: int
    max_frames: int
    max_bytes: int


def read_file(
    content: bytes, name: str, *, key: bytes | None, insist: bool, limits: Limits
) -> Iterator[tuple[dict[str, Any], np.ndarray | bytes]]:
    """Read one file: first (header, de-identified file), then (frame header, modality values) for each frame.

    Parameters
    ----------
    content : bytes
        The file.
    name : str
        For error messages.
    key : bytes or None
        Secret for de-identification; None leaves the file as it is.
    insist : bool
        Take other modalities than MR and pictures marked as having text burned in.

    Raises
    ------
    InvalidDicomError
        Not DICOM, no image, not MR, damaged, too large; says which.
    """
    try:
        yield from _read(content, name, key, insist, limits)
    except InvalidDicomError:
        raise
    except MemoryError as error:
        raise InvalidDicomError(f"{name}: decoding it needs more memory than a file may take") from error
    except RecursionError as error:
        raise InvalidDicomError(f"{name}: its sequences are nested too deep to be an image file") from error
    except Exception as error:  # parsers and codecs raise whatever they like on damaged bytes
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise InvalidDicomError(f"{name}: the DICOM file is damaged or cannot be decoded ({text})") from error


def _read(
    content: bytes, name: str, key: bytes | None, insist: bool, limits: Limits
) -> Iterator[tuple[dict[str, Any], np.ndarray | bytes]]:
    ds = _parse(content, name, limits)
    _check_kind(ds, name, insist)
    n_frames = _check_size(ds, name, limits)
    header = _header(ds, key)
    header["n_frames"] = n_frames
    if key is not None:
        header["removed"] = deidentify(ds, key)
    stored = _write(ds) if key is not None else content
    header.update(
        {k: _text(ds, v) for k, v in (("sop_instance_uid", "SOPInstanceUID"), ("study_uid", "StudyInstanceUID"))},
        series_uid=_text(ds, "SeriesInstanceUID"),
        frame_of_reference_uid=_text(ds, "FrameOfReferenceUID"),
    )
    yield header, stored
    interpretation = _text(ds, "PhotometricInterpretation").upper()
    for index, raw in enumerate(_raw_frames(ds, n_frames)):
        view = _frame_view(ds, index)
        notes: list[str] = []
        frame: dict[str, Any] = {"frame": index + 1 if n_frames > 1 else None}
        if raw.ndim == 3 or interpretation == "PALETTE COLOR":
            values, frame["colour_share"] = _luminance(raw, ds)
            frame["windows"] = [_full_range(values)]
            notes.append("colour shown as luminance")
        else:
            values = _modality_values(raw, ds, view, notes)
            frame["windows"] = _windows(view, ds)
        frame["inverted"] = interpretation == "MONOCHROME1"
        frame.update(_geometry(view, ds, notes))
        frame["notes"] = notes
        yield frame, values


def _raw_frames(ds: Dataset, n_frames: int) -> Iterator[np.ndarray]:
    """Decode frame by frame; frames whose sign pydicom must correct in place go the way that copies."""
    from pydicom.pixels import iter_pixels, pixel_array

    done = 0
    try:
        for raw in iter_pixels(ds):
            yield raw
            done += 1
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        for index in range(done, n_frames):
            yield pixel_array(ds, index=index)


def _parse(content: bytes, name: str, limits: Limits) -> Dataset:
    import pydicom
    from pydicom import config
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian
    from pydicom.uid import ImplicitVRLittleEndian as Implicit

    config.settings.reading_validation_mode = config.IGNORE
    config.settings.writing_validation_mode = config.IGNORE
    warnings.simplefilter("ignore")
    content = _inflate_checked(content, name, limits, DeflatedExplicitVRLittleEndian)
    ds = pydicom.dcmread(io.BytesIO(content), force=True)
    if "MediaStorageSOPClassUID" in ds.file_meta and ds.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.1.3.10":
        raise InvalidDicomError(f"{name}: a DICOMDIR, which is only an index; give the image files or a zip of them")
    if not any(k in ds for k in ("SOPClassUID", "Modality", "Rows", "StudyInstanceUID", *PIXEL_KEYWORDS)):
        raise InvalidDicomError(f"{name}: not a DICOM file, or nothing of one is left")
    if "TransferSyntaxUID" not in ds.file_meta:
        implicit, little = ds.original_encoding
        ds.file_meta.TransferSyntaxUID = (
            Implicit if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        )
    return ds


def _inflate_checked(content: bytes, name: str, limits: Limits, deflated: str) -> bytes:
    """Refuse a deflated data set that would inflate past the limit, before pydicom inflates it in one go."""
    if content[128:132] != b"DICM" or deflated.encode() not in content[:2048]:
        return content
    # (0002,0000) group length, explicit VR little endian: tag 4, VR 2, length 2, value 4 bytes
    if content[132:136] == b"\x02\x00\x00\x00" and len(content) >= 144:
        start = 144 + struct.unpack("<I", content[140:144])[0]
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            if len(inflater.decompress(content[start:], limits.max_bytes + 1)) > limits.max_bytes:
                raise InvalidDicomError(f"{name}: deflated data over {limits.max_bytes / 1e6:.0f} MB when unpacked")
        except zlib.error as error:
            raise InvalidDicomError(f"{name}: its deflated data is damaged ({error})") from error
    return content


def _check_kind(ds: Dataset, name: str, insist: bool) -> None:
    modality = _text(ds, "Modality").upper()
    title = f"{modality} ({MODALITIES[modality]})" if modality in MODALITIES else modality or "unknown modality"
    if not any(k in ds for k in PIXEL_KEYWORDS):
        kind = ds.get("SOPClassUID")
        kind = getattr(kind, "name", None) or "no SOP class"
        raise InvalidDicomError(f"{name}: holds no image; it is {title}, {kind}")
    if modality != "MR" and not insist:
        raise InvalidDicomError(
            f"{name}: {title}, not MR; insist if it is one all the same (--insist, or Take everything)"
        )
    if _text(ds, "BurnedInAnnotation").upper() == "YES" and not insist:
        raise InvalidDicomError(
            f"{name}: its header says that text is burned into the picture (BurnedInAnnotation YES), "
            "which de-identification cannot take out; insist if the picture is clean"
        )


def _check_size(ds: Dataset, name: str, limits: Limits) -> int:
    rows, columns = int(ds.get("Rows") or 0), int(ds.get("Columns") or 0)
    frames = int(ds.get("NumberOfFrames") or 1)
    syntax = ds.file_meta.TransferSyntaxUID
    if not syntax.is_transfer_syntax:
        raise InvalidDicomError(
            f"{name}: unknown transfer syntax {syntax[:64] or '(empty)'}; expected one of DICOM's own: "
            "have the sender write Explicit VR Little Endian (1.2.840.10008.1.2.1)"
        )
    samples, bits = int(ds.get("SamplesPerPixel") or 1), int(ds.get("BitsAllocated") or 0)
    if "FloatPixelData" in ds or "DoubleFloatPixelData" in ds:
        bits = bits or 32
    if min(rows, columns) < MIN_SIDE:
        raise InvalidDicomError(f"{name}: {columns} x {rows} pixels, at least {MIN_SIDE} x {MIN_SIDE} are needed")
    if max(rows, columns) > LONGEST * min(rows, columns):
        raise InvalidDicomError(f"{name}: {columns} x {rows} pixels, one side is over {LONGEST} times the other")
    stored, high = int(ds.get("BitsStored") or 0), ds.get("HighBit")
    if stored and high is not None and int(high) != stored - 1:  # PS3.5 8.1.1
        raise InvalidDicomError(
            f"{name}: HighBit is {high} with {stored} BitsStored, expected {stored - 1}: the header is damaged"
        )
    if rows * columns > limits.max_pixels:
        raise InvalidDicomError(f"{name}: {columns} x {rows} pixels, the limit is {limits.max_pixels:,}")
    if not 1 <= frames <= limits.max_frames:
        raise InvalidDicomError(f"{name}: {frames:,} frames, the limit is {limits.max_frames:,} (dicom.max_slices)")
    if samples not in (1, 3) or not 1 <= bits <= 64:
        raise InvalidDicomError(f"{name}: {samples} samples of {bits} bits a pixel; expected 1 or 3 of 1 to 64")
    expected = rows * columns * frames * samples * bits // 8  # decoded, however it lies there
    if expected > limits.max_bytes:
        raise InvalidDicomError(
            f"{name}: {expected / 1e6:,.0f} MB of pixels, the limit is {limits.max_bytes / 1e6:,.0f} MB"
            " (dicom.max_archive_mb)"
        )
    if is_native(ds):
        expected = native_size(ds)
        held = len(next(ds[k].value or b"" for k in PIXEL_KEYWORDS if k in ds))
        if held < expected:
            raise InvalidDicomError(
                f"{name}: cut short: {held:,} bytes of pixels, its header declares {expected:,} "
                f"({columns} x {rows} x {frames})"
            )
    return frames


def _header(ds: Dataset, key: bytes | None) -> dict[str, Any]:
    """What series building needs, read before de-identification; free text is reduced to known words."""
    syntax = ds.file_meta.TransferSyntaxUID
    # A protocol's name can be the whole examination's: it counts only where the series has none of its own.
    described = _text(ds, "SeriesDescription") or _text(ds, "ProtocolName")
    free_text = f"{described} {_text(ds, 'SequenceName')}"
    burned = _text(ds, "BurnedInAnnotation").upper()
    header: dict[str, Any] = {
        "modality": _text(ds, "Modality").upper(),
        "sop_class": _text(ds, "SOPClassUID"),
        "is_mr_class": _text(ds, "SOPClassUID") in MR_CLASSES,
        "transfer_syntax": syntax.name,
        "free_text": free_text,
        "series_number": _integer(ds, "SeriesNumber"),
        "instance_number": _integer(ds, "InstanceNumber"),
        "burned_in": burned or None,
        "patient_id": patient_pseudonym(ds, key) if key is not None else _text(ds, "PatientID"),
        "removed": [],
    }
    if key is None:
        header["patient"] = {k: _text(ds, k) for k in ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate")}
    return header


def _write(ds: Dataset) -> bytes:
    """Write the de-identified file with meta information made anew (the preamble and group 2 can hold anything)."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(_text(ds, "SOPClassUID") or MR_CLASSES[0])
    meta.MediaStorageSOPInstanceUID = UID(_text(ds, "SOPInstanceUID") or "2.25.0")
    meta.TransferSyntaxUID = ds.file_meta.TransferSyntaxUID
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    ds.file_meta = meta
    ds.preamble = b"\0" * 128
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _frame_view(ds: Dataset, index: int) -> Dataset:
    """Gather one frame's attributes: top level, then shared, then per-frame functional groups (PS3.3 C.7.6.16)."""
    from pydicom.dataset import Dataset

    view = Dataset()
    view.file_meta = ds.file_meta
    view.set_original_encoding(*ds.original_encoding)
    groups = [ds]
    for keyword, position in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", index)):
        items = ds.get(keyword) or []
        if position < len(items):
            for element in items[position]:
                if element.VR == "SQ" and element.value:
                    groups.append(element.value[0])
    for group in groups:
        for tag in _frame_tags() & group.keys():
            if not group[tag].is_empty:
                view[tag] = group[tag]
        if group is ds and int(ds.get("NumberOfFrames") or 1) > 1:
            view.pop("ImagePositionPatient", None)  # of one frame at most
    return view


@lru_cache(maxsize=1)
def _frame_tags() -> frozenset[BaseTag]:
    from pydicom.tag import Tag

    return frozenset(Tag(keyword) for keyword in _FRAME_ATTRIBUTES)


def _modality_values(raw: np.ndarray, ds: Dataset, view: Dataset, notes: list[str]) -> np.ndarray:
    """Apply the modality LUT or rescale, and paint padding as the darkest tissue."""
    from pydicom.pixels import apply_modality_lut

    padding = _padding_mask(raw, ds)
    slope, intercept = (_number(view, k) for k in ("RescaleSlope", "RescaleIntercept"))
    if view.get("ModalityLUTSequence"):
        values = apply_modality_lut(raw, view)
    elif slope is None or intercept is None or slope == 0 or (slope == 1 and intercept == 0):
        values = raw
    else:
        values = raw.astype(np.float64) * slope + intercept
    if not np.all(np.isfinite(values)):
        notes.append("values that are no numbers are shown as zero")
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    if values.dtype not in (np.uint8, np.int8, np.uint16, np.int16):
        values = values.astype(np.float32)
    if padding is not None:
        values = values.copy()
        inside = values[~padding]
        darkest = inside.max() if _text(ds, "PhotometricInterpretation") == "MONOCHROME1" else inside.min()
        values[padding] = darkest
    return values


def _padding_mask(raw: np.ndarray, ds: Dataset) -> np.ndarray | None:
    low = _number(ds, "PixelPaddingValue")
    if low is None:
        return None
    high = _number(ds, "PixelPaddingRangeLimit")
    low, high = sorted((low, low if high is None else high))
    mask = (raw >= low) & (raw <= high)
    return mask if mask.any() and not mask.all() else None


def _luminance(raw: np.ndarray, ds: Dataset) -> tuple[np.ndarray, float]:
    """Colour to luminance (ITU-R BT.601), as 8-bit pictures are turned grey elsewhere, and the `colour_share`."""
    from PIL import Image
    from pydicom.pixels import apply_color_lut

    from brainmri.imaging import colour_share

    if raw.ndim == 2:
        raw = apply_color_lut(raw, ds)
    bits = 8 * raw.dtype.itemsize
    if bits > 16:
        raw, bits = raw >> (bits - 16), 16
    colours = raw[..., :3]
    share = colour_share(Image.fromarray(np.ascontiguousarray(colours >> (bits - 8), np.uint8)))
    grey = colours.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.rint(grey).astype(np.uint8 if bits == 8 else np.uint16), share


def _full_range(values: np.ndarray) -> dict[str, Any]:
    top = float(np.iinfo(values.dtype).max)
    return {"center": top / 2, "width": top, "function": "LINEAR_EXACT", "name": "as stored"}


def _windows(view: Dataset, ds: Dataset) -> list[dict[str, Any]]:
    windows: list[dict[str, Any]] = []
    for item in view.get("VOILUTSequence") or []:
        descriptor = [int(v) for v in item.LUTDescriptor]
        data = item.LUTData
        if isinstance(data, bytes):
            order = "<" if ds.file_meta.TransferSyntaxUID.is_little_endian else ">"
            data = np.frombuffer(data, f"{order}u2")
        table = np.asarray(data, np.float64)[: descriptor[0] or 65536]
        if not table.size or not 8 <= descriptor[2] <= 16:
            continue
        grey = np.rint(np.clip(table / (2 ** descriptor[2] - 1), 0, 1) * 255).astype(int).tolist()
        first = descriptor[1] - 65536 if descriptor[1] > 32767 and ds.get("PixelRepresentation") == 1 else descriptor[1]
        windows.append(
            {
                "center": first + len(grey) / 2,
                "width": float(len(grey)),
                "function": "LUT",
                "name": _text(item, "LUTExplanation") or "VOI LUT",
                "lut": grey,
                "first_mapped": first,
            }
        )
    function = _text(view, "VOILUTFunction").upper() or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        function = "LINEAR"
    centers, widths = _numbers(view, "WindowCenter"), _numbers(view, "WindowWidth")
    names = view.get("WindowCenterWidthExplanation") or []
    names = [names] if isinstance(names, str) else list(names)
    for i, (center, width) in enumerate(zip(centers, widths, strict=False)):
        if center is None or width is None or width <= 0 or (function == "LINEAR" and width < 1):
            continue
        name = str(names[i]) if i < len(names) else f"file's window {i + 1}"
        windows.append({"center": center, "width": width, "function": function, "name": name[:40]})
    return windows[:16]


def _is_compact(ds: Dataset, spacing: list[float]) -> bool:
    """Whether the picture is no line in its true proportions, which preprocessing squares (see `imaging.LONGEST`)."""
    sides = int(ds.Rows) * spacing[0], int(ds.Columns) * spacing[1]
    return max(sides) <= LONGEST * min(sides)


def _geometry(view: Dataset, ds: Dataset, notes: list[str]) -> dict[str, Any]:
    from brainmri.dicom import geometry

    letters = plane = None
    cosines = geometry.checked_cosines(_vector(view, "ImageOrientationPatient"))
    if cosines is not None:
        letters, plane = geometry.edge_letters(cosines), geometry.plane_of(cosines)
        notes.extend(geometry.orientation_notes(cosines))
    else:
        values = ds.get("PatientOrientation") or []
        letters = geometry.letters_from_patient_orientation([values] if isinstance(values, str) else list(values))
        if letters is None:
            notes.append("the file does not say which side is which")
    spacing = _vector(view, "PixelSpacing")
    if spacing is None or len(spacing) != 2 or not all(0.01 <= s <= 20 for s in spacing):
        spacing = None
        notes.append("the file does not say how large a pixel is")
    elif max(spacing) > _MOST_ASPECT * min(spacing) or not _is_compact(ds, spacing):
        notes.append(f"the size of a pixel, {spacing[0]:.2f} x {spacing[1]:.2f} mm, is not credible and not used")
        spacing = None
    elif pixel_aspect((spacing[0], spacing[1])) != 1:
        notes.append(f"pixels are not square ({spacing[0]:.2f} x {spacing[1]:.2f} mm): answered in true proportions")
    place = _vector(view, "ImagePositionPatient")
    kinds: list[Any] = []
    for keyword in ("ImageType", "FrameType", "ComplexImageComponent"):
        value = view.get(keyword) or []
        kinds += [value] if isinstance(value, str) else list(value)
    return {
        "orientation": letters,
        "cosines": None if cosines is None else cosines.ravel().tolist(),
        "plane": plane,
        "image_position": place if place is not None and len(place) == 3 else None,
        "spacing_mm": spacing,
        "image_type": [str(kind).upper() for kind in kinds],
        "b_value": _number(view, "DiffusionBValue"),
        "directionality": _text(view, "DiffusionDirectionality").upper(),
        "echo_time": _number(view, "EchoTime") or _number(view, "EffectiveEchoTime"),
        "temporal": _number(view, "TemporalPositionIdentifier") or _number(view, "TemporalPositionIndex"),
        "inversion_time": _number(view, "InversionTime") or _number(view, "InversionTimes"),
        "acquisition": _number(view, "AcquisitionNumber") or _number(view, "FrameAcquisitionNumber"),
        "trigger_time": _number(view, "TriggerTime") or _number(view, "NominalCardiacTriggerDelayTime"),
    }


def _text(ds: Dataset, keyword: str) -> str:
    return str(ds.get(keyword) or "").strip("\0 ")


def _numbers(ds: Dataset, keyword: str) -> list[float | None]:
    value = ds.get(keyword)
    if value is None or value == "":
        return []
    items = [value] if isinstance(value, (str, int, float)) or not hasattr(value, "__iter__") else list(value)
    result: list[float | None] = []
    for item in items:
        try:
            number = float(item)
        except (TypeError, ValueError):
            number = float("nan")
        result.append(number if np.isfinite(number) else None)
    return result


def _number(ds: Dataset, keyword: str) -> float | None:
    return next(iter(_numbers(ds, keyword)), None)


def _integer(ds: Dataset, keyword: str) -> int | None:
    number = _number(ds, keyword)
    return None if number is None else int(number)


def _vector(ds: Dataset, keyword: str) -> list[float] | None:
    numbers = _numbers(ds, keyword)
    return None if not numbers or None in numbers else [n for n in numbers if n is not None]
