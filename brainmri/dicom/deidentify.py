"""De-identification by DICOM PS3.15 annex E, Basic Application Level Confidentiality Profile.

The table of attributes and actions is dicom-anonymizer's (2024b edition). It is applied to every level of nesting, to
the elements that are there, so that large enhanced multi-frame files stay quick. UIDs and the patient's id become keyed
hashes: one study stays one study, one patient one patient, and nobody without the key can tell which.
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

from brainmri.errors import StorageError

if TYPE_CHECKING:
    from pydicom import Dataset

_METHOD = "brainmri PS3.15 basic profile "
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
        return str(ds.PatientID)
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
    """True where this installation has de-identified the dataset before: its UIDs are kept as they are."""
    method = ds.get("DeidentificationMethod") or ""
    last = method if isinstance(method, str) else (list(method) or [""])[-1]
    return hmac.compare_digest(str(last).encode(), _mark(_text(ds, "SOPInstanceUID"), key).encode())


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
    done: Counter[tuple[str, str]] = Counter()
    _clean(ds, key, ours, done)
    ds.PatientID = ds.PatientName = patient
    ds.PatientIdentityRemoved = "YES"
    ds.LongitudinalTemporalInformationModified = "REMOVED"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
    code.CodeMeaning = "Basic Application Confidentiality Profile"
    ds.DeidentificationMethodCodeSequence = Sequence([code])
    if "SOPInstanceUID" in ds:
        ds.DeidentificationMethod = _mark(_text(ds, "SOPInstanceUID"), key)
    return [{"name": name, "action": action, "count": n} for (name, action), n in sorted(done.items()) if n]


def _mark(sop_instance_uid: str, key: bytes) -> str:
    return _METHOD + hmac.new(key, b"mark:" + sop_instance_uid.encode(), hashlib.sha256).hexdigest()[:16]


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


def _clean(ds: Dataset, key: bytes, ours: bool, done: Counter[tuple[str, str]]) -> None:
    from dicomanonymizer.simpledicomanonymizer import replace_element
    from pydicom.datadict import dictionary_has_tag, keyword_for_tag, repeater_has_tag

    single, masked = _actions()
    for tag in list(ds.keys()):
        pair = (tag.group, tag.element)
        kind = single.get(pair, "")
        if (
            tag.is_private
            or not (dictionary_has_tag(tag) or repeater_has_tag(tag))
            or any(tag.group & m[2] == m[0] & m[2] and tag.element & m[3] == m[1] & m[3] for m in masked)
        ):
            kind = "X"
        name = "private element" if tag.is_private else keyword_for_tag(tag) or f"({tag.group:04X},{tag.element:04X})"
        if kind == "X":
            held_something = bool(getattr(ds.get_item(tag), "value", None))
            del ds[tag]
            done[name, "removed"] += held_something
            continue
        element = ds[tag]
        if kind == "" and element.VR == "PN":  # a name the table does not know
            kind = "Z"
        if kind == "" or kind == "S":
            if element.VR == "SQ":
                for item in element.value or ():
                    _clean(item, key, ours, done)
            continue
        if element.is_empty:
            continue
        if kind == "U":
            if ours:
                continue
            values = [element.value] if element.VM == 1 else list(element.value)
            mapped = [new_uid(str(value), key) for value in values]
            element.value = mapped[0] if len(mapped) == 1 else mapped
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


def _text(ds: Dataset, keyword: str) -> str:
    return str(ds.get(keyword) or "").strip("\0 ")
