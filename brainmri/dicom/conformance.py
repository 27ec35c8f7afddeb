"""The table of docs/dicom.md: what becomes of every image file in pydicom's own test set."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from brainmri.config import Settings
from brainmri.dicom.fuzz import pydicom_files
from brainmri.dicom.reading import read_slices
from brainmri.errors import InvalidDicomError

BEGIN, END = "<!-- table: brainmri dicom table -->", "<!-- end of table -->"


def conformance_table(settings: Settings) -> str:
    """Read each of pydicom's test files that holds an image, as it comes and insisted on; Markdown."""
    import pydicom

    lines = ["| File | Transfer syntax | Modality | As it comes | Insisted on |", "|---|---|---|---|---|"]
    without = decoded = refused = 0
    base = next(p for p in pydicom_files() if p.name == "MR_small.dcm").parent
    for path in pydicom_files():
        content = path.read_bytes()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # most of these files are wrong on purpose
                ds = pydicom.dcmread(io.BytesIO(content), force=True)
            holds_image = any(k in ds for k in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
        except Exception:  # not DICOM at all
            holds_image = False
        if not holds_image:
            without += 1
            continue
        syntax = ds.file_meta.get("TransferSyntaxUID")
        first = _outcome(content, path.name, settings, insist=False)
        second = "" if first.startswith("decoded") else _outcome(content, path.name, settings, insist=True)
        decoded += "decoded" in (first + second)
        refused += "decoded" not in (first + second)
        name = path.relative_to(base).as_posix()
        lines.append(
            f"| {name} | {syntax.name if syntax else 'not given'} | {ds.get('Modality') or '–'} | {first} | {second} |"
        )
    summary = (
        f"{decoded + refused} files hold an image: {decoded} decode (as they come or insisted on), {refused} are "
        f"refused by name. {without} further files hold none (plans, reports, indexes, text) and are refused as such."
    )
    return "\n".join([summary, "", *lines])


def write_table(path: Path, settings: Settings) -> None:
    """Put the table between its marks in a Markdown file."""
    text = path.read_text("utf-8")
    if BEGIN not in text or END not in text:
        raise InvalidDicomError(f"{path}: expected the marks {BEGIN} and {END}")
    head, _, rest = text.partition(BEGIN)
    path.write_text(f"{head}{BEGIN}\n{conformance_table(settings)}\n{END}{rest.partition(END)[2]}", "utf-8")


def _outcome(content: bytes, name: str, settings: Settings, *, insist: bool) -> str:
    try:
        slices = read_slices(content, name, settings, insist=insist)
    except InvalidDicomError as error:
        return "refused: " + str(error).removeprefix(f"{name}: ").split(";")[0].replace("|", "/")[:110]
    height, width = slices[0].pixels.shape
    return f"decoded, {len(slices)} × {width} × {height}" if len(slices) > 1 else f"decoded, {width} × {height}"
