"""De-identification by DICOM PS3.15 annex E, Basic Application Level Confidentiality Profile.

The table of attributes and actions is dicom-anonymizer's (2024b edition). It is applied to every level of nesting, to
the elements that are there, so that large enhanced multi-frame files stay quick. Of what the table does not know, text,
dates and UIDs go as well, but for what says how to read the picture. UIDs and the patient's id become keyed hashes: one
study stays one study, one patient one patient, and nobody without the key can tell which.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainmri.dicom.pixels import strip_pixels
from brainmri.errors import StorageError

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset
    from pydicom.tag import BaseTag

_METHOD = "brainmri PS3.15 basic profile "
_PSEUDONYM = re.compile("P-[0-9A-F]{12}")
_OWN_ROOT = "2.25."
_MARKED = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID")
_TEXT = {"AE", "AS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT"}
"""Value representations (PS3.5 6.2) that hold words, names or dates."""
_DECIMAL = re.compile(r"[0-9+\-.eE\\ \0]*")
_NUMBERS = {"AT", "DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"}
_KEPT_TEXT = {
    "CodeMeaning",
    "CodeValue",
    "CodingSchemeDesignator",
    "CodingSchemeVersion",
    "DeidentificationMethod",
    "ImagedNucleus",
    "Manufacturer",
    "ManufacturerModelName",
    "ModalityLUTType",
    "MultiCoilElementName",
    "PulseSequenceName",
    "ReceiveCoilManufacturerName",
    "ReceiveCoilName",
    "RescaleType",
    "SequenceName",
    "SoftwareVersions",
    "StackID",
    "TransmitCoilManufacturerName",
    "TransmitCoilName",
}
"""What scanners write by themselves: most of it MR images must have (PS3.3 A.4 and A.36)."""
_TABLE = "dicomfields_2024b"
_PLACEHOLDER = re.compile(
    r"(anon[a-z]*|unknown|unnamed|none|noname|deidentified|removed|redacted|(test)?patient(id)?|test|null|undefined|na)\d{0,2}"
)


def load_key(path: Path) -> bytes:
    """Read the installation's secret for UIDs and pseudonyms; made at first use, readable by its owner only.

    Returns
    -------
    bytes
        32 of them. Who loses the file loses the link between old and new uploads of one study.

    Raises
    ------
    StorageError
        The file cannot be read or made, or holds something else.
    """
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
            try:
                os.link(temporary, path)  # fails where another process was quicker: its key wins
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        key = bytes.fromhex(path.read_text("ascii").strip())
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: the key for de-identified UIDs cannot be read or made ({error})") from error
    if len(key) < 16:
        raise StorageError(f"{path}: holds {len(key)} bytes of key, expected 32 as hexadecimal digits")
    return key


def new_uid(uid: str, key: bytes) -> str:
    """Map a UID to its keyed counterpart, a UUID-derived UID (PS3.5 B.2); the same one every time."""
    digest = bytearray(hmac.new(key, b"uid:" + uid.strip("\0 ").encode(), hashlib.sha256).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80  # RFC 9562: version 8, own construction
    digest[8] = digest[8] & 0x3F | 0x80
    return f"2.25.{int.from_bytes(digest, 'big')}"


def pseudonym(identity: str, key: bytes) -> str:
    """Map who somebody is to a short code such as ``P-1A2B3C4D5E6F``: 48 bits of a keyed hash."""
    return "P-" + hmac.new(key, b"patient:" + identity.encode(), hashlib.sha256).hexdigest()[:12].upper()


def patient_pseudonym(ds: Dataset, key: bytes) -> str:
    """Pseudonym of a dataset's patient.

    From id, issuer, name and birth date together where the id tells people apart (a short one, such as ``17``, only
    with a birth date); otherwise from the study, since two patients taken for one do more harm than one taken for two.
    """
    if is_ours(ds, key):
        return _text(ds, "PatientID")
    keywords = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate")
    parts = [" ".join(re.split(r"[\s^=]+", _text(ds, k).casefold())).strip() for k in keywords]
    if not (tells_apart(parts[0]) and (len(parts[0]) >= 6 or _is_birth_date(parts[-1]))):
        # Without any UID it is no valid DICOM; then every picture is somebody of its own.
        parts = [_text(ds, "StudyInstanceUID") or _text(ds, "SeriesInstanceUID") or _text(ds, "SOPInstanceUID")]
        parts = parts if parts[0] else [hashlib.sha256(ds.get("PixelData") or b"").hexdigest()]
    return pseudonym("\0".join(parts), key)


def tells_apart(patient_id: str) -> bool:
    """Whether a patient's id can be one person's: no placeholder such as ``0``, ``123456`` or ``ANON1``."""
    signs = "".join(c for c in patient_id.casefold() if c.isalnum())
    in_a_row = len(signs) > 3 and signs in "01234567890"
    return len(set(signs)) > 1 and not in_a_row and not _PLACEHOLDER.fullmatch(signs) and len(patient_id) <= 64


def _is_birth_date(text: str) -> bool:
    """Whether it is a day; 1 January 1900 and what lies before are what anonymisers write."""
    return len(text) == 8 and text.isdecimal() and "19000101" < text < "2200" and text[4:] != "0000"


def is_ours(ds: Dataset, key: bytes) -> bool:
    """True where this installation has de-identified the dataset before: its patient and UIDs are kept as they are.

    Not where somebody has put the patient back since, as archives do that coerce what comes.
    """
    method = ds.get("DeidentificationMethod") or ""
    last = method if isinstance(method, str) else (list(method) or [""])[-1]
    uids = [_text(ds, keyword) for keyword in _MARKED]
    return (
        hmac.compare_digest(str(last).encode(), _mark(ds, key).encode())
        and _PSEUDONYM.fullmatch(_text(ds, "PatientID")) is not None
        and all(uid.startswith(_OWN_ROOT) for uid in uids if uid)
    )


def deidentify(ds: Dataset, key: bytes) -> list[dict[str, Any]]:
    """Take out of a dataset what tells who the patient is. Modifies it.

    Returns
    -------
    list of dict
        ``name``, ``action`` (``"removed"``, ``"emptied"``, ``"replaced"``, ``"new UID"``) and ``count`` of what
        held a value. Values are not listed.
    """
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    ours, patient = is_ours(ds, key), patient_pseudonym(ds, key)
    done: Counter[tuple[str, str]] = Counter((what, "removed") for what in strip_pixels(ds))
    _clean(ds, key, ours, done)
    ds.PatientID = ds.PatientName = patient
    ds.PatientIdentityRemoved = "YES"
    ds.LongitudinalTemporalInformationModified = "REMOVED"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
    code.CodeMeaning = "Basic Application Confidentiality Profile"
    ds.DeidentificationMethodCodeSequence = Sequence([code])
    if "SOPInstanceUID" in ds:
        ds.DeidentificationMethod = _mark(ds, key)
    return [{"name": name, "action": action, "count": n} for (name, action), n in sorted(done.items()) if n]


def _mark(ds: Dataset, key: bytes) -> str:
    """What says that a dataset is de-identified already, and stands for these values of it alone."""
    said = "\0".join(_text(ds, keyword) for keyword in ("PatientID", *_MARKED))
    return _METHOD + hmac.new(key, b"mark:" + said.encode(), hashlib.sha256).hexdigest()[:16]


@lru_cache(maxsize=1)
def _actions() -> tuple[dict[tuple[int, int], str], list[tuple[int, int, int, int]]]:
    """The profile's table as tag -> X, Z, D or U, and the masked (repeating group) tags to remove."""
    from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector

    table = dicom_anonymization_database_selector(_TABLE)
    kinds = {
        "X_TAGS": "X",
        "X_Z_TAGS": "Z",  # kept but empty: where the standard demands presence, that is enough
        "Z_TAGS": "Z",
        "D_TAGS": "D",
        "Z_D_TAGS": "D",
        "X_D_TAGS": "D",
        "X_Z_D_TAGS": "D",
        "U_TAGS": "U",
        "X_Z_U_STAR_TAGS": "S",
    }
    single = {tag: kind for group, kind in kinds.items() for tag in table[group] if len(tag) == 2}
    masked = [tag for tag in table["X_TAGS"] if len(tag) == 4]
    return single, masked


@lru_cache(maxsize=4096)
def _rule(tag: BaseTag) -> tuple[str, str, frozenset[str]]:
    """What becomes of an element: its name, the kind of action (as in `_actions`; "" for none), the VRs it may have."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag, repeater_has_tag

    name = keyword_for_tag(tag) or f"({tag.group:04X},{tag.element:04X})"
    single, masked = _actions()
    if (
        tag.is_private
        or not (dictionary_has_tag(tag) or repeater_has_tag(tag))
        or 0x6000 <= tag.group <= 0x60FF  # overlays: drawings, names and remarks
        or any(tag.group & m[2] == m[0] & m[2] and tag.element & m[3] == m[1] & m[3] for m in masked)
    ):
        return "private element" if tag.is_private else name, "X", frozenset()
    vr = dictionary_VR(tag)
    kind = single.get((tag.group, tag.element), "")
    if not kind and vr in _TEXT and name not in _KEPT_TEXT:
        kind = "Z"
    if not kind and vr == "UI" and "SOPClass" not in name and "TransferSyntax" not in name:
        kind = "R"
    return name, kind, frozenset((vr, *vr.split(" or ")))


def _clean(ds: Dataset, key: bytes, ours: bool, done: Counter[tuple[str, str]]) -> None:
    from dicomanonymizer.simpledicomanonymizer import replace_element

    implicit = bool(ds.original_encoding[0])
    for tag in list(ds.keys()):
        name, kind, vrs = _rule(tag)
        held = ds.get_item(tag)
        if kind in ("", "S"):
            if _is_plain(held, vrs, implicit):
                continue  # and is written as it came: converting every value is what large files take time for
            element = ds[tag]
            if element.VR == "SQ":
                for item in element.value or ():
                    _clean(item, key, ours, done)
            # Text or a whole sequence can hide in an element that says to be of another kind.
            if (element.VR in vrs or element.VR in _NUMBERS) and _is_decimal(element):
                continue
            kind = "X"
        if kind == "X":
            del ds[tag]
            done[name, "removed"] += bool(getattr(held, "value", None))
            continue
        element = ds[tag]
        if element.is_empty:
            continue
        if kind in ("U", "R"):
            before = [str(element.value)] if element.VM == 1 else [str(value) for value in element.value]
            after = [_mapped(uid, key, ours, registered=kind == "R") for uid in before]
            if after != before:
                element.value = after[0] if len(after) == 1 else after
                done[name, "new UID"] += 1
        elif kind == "Z":
            element.value = [] if element.VR == "SQ" else None
            done[name, "emptied"] += 1
        elif element.VR == "SQ":
            element.value = []
            done[name, "emptied"] += 1
        else:
            before = element.value
            try:
                replace_element(element)
            except NotImplementedError:
                element.value = None
            if element.value != before:
                done[name, "replaced"] += 1


def _is_plain(held: Any, vrs: frozenset[str], implicit: bool) -> bool:
    """Whether an element is still bytes, of a VR that it may have, and no sequence to look into."""
    if not held.is_raw or "SQ" in vrs or not (held.VR in vrs or (held.VR is None and implicit)):
        return False
    return vrs.isdisjoint(("DS", "IS")) or _DECIMAL.fullmatch((held.value or b"").decode("latin-1")) is not None


def _is_decimal(element: DataElement) -> bool:
    """Whether an element of decimals or integers as strings (DS, IS) holds such; True for any other."""
    if element.VR not in ("DS", "IS") or element.is_empty:
        return True
    values = [element.value] if element.VM == 1 else element.value
    return all(_DECIMAL.fullmatch(str(value)) for value in values)


def _mapped(uid: str, key: bytes, ours: bool, *, registered: bool) -> str:
    """A UID's counterpart; itself where it is one already, or (``registered``) where DICOM gave it out."""
    if (ours and uid.startswith(_OWN_ROOT)) or (registered and uid.startswith("1.2.840.10008.")):
        return uid
    return new_uid(uid, key)


def _text(ds: Dataset, keyword: str) -> str:
    return str(ds.get(keyword) or "").strip("\0 ")
