"""Another DICOM node asked: is it there, which studies has it, give me this series, take these.

What it says of patients is shown and not stored; what it gives goes through `brainmri.dicom` as any upload does.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from brainmri.config import PacsServer, Settings
from brainmri.dicom.decode import MR_CLASSES
from brainmri.errors import PacsError, RefusedError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset
    from pynetdicom.association import Association

MOST_STUDIES = 200
"""Studies that a search returns at most."""
VERIFICATION = "1.2.840.10008.1.1"
SYNTAXES = (
    "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
    "1.2.840.10008.1.2",  # Implicit VR Little Endian
    "1.2.840.10008.1.2.2",  # Explicit VR Big Endian
    "1.2.840.10008.1.2.4.90",  # JPEG 2000, lossless only
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.4.80",  # JPEG-LS, lossless
    "1.2.840.10008.1.2.4.81",  # JPEG-LS, near-lossless
    "1.2.840.10008.1.2.4.70",  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.57",  # JPEG lossless
    "1.2.840.10008.1.2.4.50",  # JPEG baseline
    "1.2.840.10008.1.2.4.51",  # JPEG extended
    "1.2.840.10008.1.2.5",  # RLE lossless
)
"""Transfer syntaxes that `brainmri.dicom` decodes."""
_OUT_OF_RESOURCES = 0xA700


@dataclass(frozen=True)
class FoundStudy:
    """A study as the node describes it; ``n_images`` is None where it does not say."""

    study_uid: str
    patient_id: str
    patient_name: str
    birth_date: date | None
    date: date | None
    description: str
    modalities: tuple[str, ...]
    n_images: int | None


@dataclass(frozen=True)
class FoundSeries:
    """A series as the node describes it."""

    series_uid: str
    number: int | None
    description: str
    n_images: int | None


def find_server(settings: Settings, name: str | None = None) -> PacsServer:
    """The server of this name in the configuration; without one, the first.

    Raises
    ------
    PacsError
        There is none; lists those there are.
    """
    servers = settings.pacs.servers
    for server in servers:
        if name in (None, server.name):
            return server
    known = ", ".join(server.name for server in servers) or "none"
    wanted = f"no server {name!r}" if name else "no server"
    raise PacsError(f"{wanted} in config.yaml (there: {known}); name it under pacs.servers")


def echo(settings: Settings, server: PacsServer) -> float:
    """Verify the connection (C-ECHO, PS3.4 A).

    Returns
    -------
    float
        Seconds it took, association included.

    Raises
    ------
    PacsError
        The node does not answer, or refuses.
    """
    start = time.perf_counter()
    with _association(settings, server, {VERIFICATION: SYNTAXES[:2]}) as association:
        _check(association.send_c_echo(), server, "to verify the connection")
    return time.perf_counter() - start


def find_studies(
    settings: Settings,
    server: PacsServer,
    *,
    patient_id: str = "",
    name: str = "",
    since: date | None = None,
    until: date | None = None,
) -> list[FoundStudy]:
    """Search for studies that hold MR (C-FIND, Study Root, PS3.4 C.6.2).

    Parameters
    ----------
    patient_id : str
        As the node spells it; ``*`` and ``?`` stand for anything.
    name : str
        Part of the patient's name.
    since, until : date, optional
        First and last study date.

    Returns
    -------
    list of FoundStudy
        Newest first; one more than `MOST_STUDIES` where there are more.

    Raises
    ------
    PacsError
        The node does not answer, refuses, or breaks off.
    """
    # As it is shown, family and given name apart, or as DICOM has it: a space may stand for what parts them.
    parts = [part for part in re.split(r"[\s,^*]+", name) if part]
    first, last = (f"{d:%Y%m%d}" if d else "" for d in (since, until))
    query = _query(
        "STUDY",
        ("PatientBirthDate", "StudyDescription", "StudyInstanceUID", "NumberOfStudyRelatedInstances"),
        PatientID=patient_id.strip(),
        PatientName=f"*{'*'.join(parts)}*" if parts else "",
        StudyDate=f"{first}-{last}" if first or last else "",
        ModalitiesInStudy="MR",
    )

    def wanted(identifier: Dataset) -> bool:  # a node need not match on modalities
        return "MR" in (_values(identifier, "ModalitiesInStudy") or ["MR"])

    found = [
        FoundStudy(
            _text(identifier, "StudyInstanceUID"),
            _text(identifier, "PatientID"),
            " ".join(part for part in _text(identifier, "PatientName").split("=")[0].split("^") if part),
            _date(identifier, "PatientBirthDate"),
            _date(identifier, "StudyDate"),
            _text(identifier, "StudyDescription"),
            tuple(_values(identifier, "ModalitiesInStudy")),
            _number(identifier, "NumberOfStudyRelatedInstances"),
        )
        for identifier in _find(settings, server, query, wanted, MOST_STUDIES + 1)
    ]
    return sorted(found, key=lambda s: (s.date or date.min, s.study_uid), reverse=True)


def find_series(settings: Settings, server: PacsServer, study_uid: str) -> list[FoundSeries]:
    """The MR series of a study, in order of their numbers.

    Raises
    ------
    PacsError
        As `find_studies`.
    """
    query = _query(
        "SERIES",
        ("SeriesInstanceUID", "SeriesDescription", "SeriesNumber", "NumberOfSeriesRelatedInstances"),
        StudyInstanceUID=study_uid,
        Modality="MR",
    )
    found = [
        FoundSeries(
            _text(identifier, "SeriesInstanceUID"),
            _number(identifier, "SeriesNumber"),
            _text(identifier, "SeriesDescription"),
            _number(identifier, "NumberOfSeriesRelatedInstances"),
        )
        for identifier in _find(settings, server, query, lambda i: _text(i, "Modality") in ("", "MR"))
    ]
    return sorted(found, key=lambda s: (s.number or 0, s.series_uid))


def fetch(
    settings: Settings,
    server: PacsServer,
    study_uid: str,
    series_uid: str,
    *,
    report: Callable[[int, int], None] | None = None,
) -> list[tuple[str, bytes]]:
    """Fetch a series (C-GET, PS3.4 C.4.3): it comes over the same connection, nothing has to listen.

    Parameters
    ----------
    report : callable, optional
        Called with the images fetched so far and all of them, as far as the node says.

    Returns
    -------
    list of (str, bytes)
        Names and DICOM files, for `brainmri.dicom.read_files`.

    Raises
    ------
    PacsError
        The node does not answer, refuses, breaks off, gives a part only, or more than the settings allow an upload.
    """
    from pydicom.dataset import Dataset
    from pynetdicom import build_context, build_role, evt

    files: list[tuple[str, bytes]] = []
    announced = 0
    left = int(settings.dicom.max_archive_mb * 1e6)

    def store(event: Any) -> int:
        nonlocal left
        content = event.encoded_dataset()
        left -= len(content)
        if left < 0 or len(files) >= settings.dicom.max_slices:
            left = -1
            return _OUT_OF_RESOURCES
        files.append((f"{event.request.AffectedSOPInstanceUID}.dcm", content))
        return 0

    query = Dataset()
    query.QueryRetrieveLevel = "SERIES"
    query.StudyInstanceUID, query.SeriesInstanceUID = study_uid, series_uid
    # One context for each syntax: in one of several, the node could choose another than it keeps the image in.
    contexts = [build_context(uid, syntax) for uid in MR_CLASSES for syntax in SYNTAXES]
    contexts.append(build_context(_GET, list(SYNTAXES[:2])))
    roles = [build_role(uid, scp_role=True) for uid in MR_CLASSES]
    handlers = [(evt.EVT_C_STORE, store)]
    with _association(settings, server, contexts, roles, handlers, needed={_GET}) as association:
        for status, _ in association.send_c_get(query, _GET):
            if left < 0:
                association.abort()
                raise PacsError(
                    f"{server.name}: the series has more than {settings.dicom.max_slices:,} images or "
                    f"{settings.dicom.max_archive_mb:,.0f} MB (dicom.max_slices, dicom.max_archive_mb)"
                )
            if status.get("Status") in (0xFF00, 0xFF01):
                announced = max(announced, len(files) + int(status.get("NumberOfRemainingSuboperations") or 0))
                if report:
                    report(len(files), announced)
            else:
                _check(status, server, "to give the series")
                failed = int(status.get("NumberOfFailedSuboperations") or 0)
                announced = max(announced, len(files) + failed)
    if len(files) < announced:
        raise PacsError(f"{server.name} gave {len(files)} of {announced} images; half a series is no series, ask again")
    if not files:
        raise PacsError(f"{server.name} has no MR image in this series; search again, it may have been moved")
    return files


def send(settings: Settings, server: PacsServer, datasets: Sequence[FileDataset]) -> None:
    """Give a node DICOM objects to keep (C-STORE, PS3.4 B).

    Raises
    ------
    PacsError
        The node does not answer or refuses one; those before it were taken.
    """
    classes = {str(ds.SOPClassUID): SYNTAXES[:2] for ds in datasets}
    with _association(settings, server, classes) as association:
        for ds in datasets:
            _check(association.send_c_store(ds), server, f"to take {ds.SOPInstanceUID}")


_FIND, _GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"  # Study Root: FIND, GET


def _query(level: str, asked: Sequence[str], **matched: str) -> Dataset:
    """Identifier of a C-FIND: attributes to match, and those that are only asked for."""
    from pydicom.dataset import Dataset

    query = Dataset()
    query.SpecificCharacterSet = "ISO_IR 192"
    query.QueryRetrieveLevel = level
    for keyword, value in {**matched, **dict.fromkeys(asked)}.items():
        setattr(query, keyword, value)
    return query


def _find(
    settings: Settings,
    server: PacsServer,
    query: Dataset,
    wanted: Callable[[Dataset], bool],
    most: int | None = None,
) -> list[Dataset]:
    """Identifiers that match the query and are wanted, up to so many."""
    found: list[Dataset] = []
    with _association(settings, server, {_FIND: SYNTAXES[:2]}) as association:
        for status, identifier in association.send_c_find(query, _FIND):
            if status.get("Status") not in (0xFF00, 0xFF01):
                _check(status, server, "to search")
            elif identifier is not None and wanted(identifier):
                found.append(identifier)
                if len(found) == most:
                    association.abort()  # the rest would come before a release does
                    break
    return found


@contextmanager
def _association(
    settings: Settings, server: PacsServer, contexts, roles=(), handlers=(), needed: Collection[str] = ()
) -> Iterator[Association]:
    """An association in which what is needed was accepted: all SOP classes of a dict of contexts, else ``needed``."""
    from pydicom.uid import UID
    from pynetdicom import AE, build_context

    if isinstance(contexts, dict):
        needed = contexts.keys()
        contexts = [build_context(uid, list(syntaxes)) for uid, syntaxes in contexts.items()]
    entity = AE(ae_title=settings.pacs.ae_title)
    entity.connection_timeout = entity.acse_timeout = settings.pacs.timeout_seconds
    entity.dimse_timeout = entity.network_timeout = settings.pacs.timeout_seconds
    where = f"{server.name} ({server.ae_title} at {server.host}:{server.port})"
    try:
        association = entity.associate(
            server.host,
            server.port,
            contexts=contexts,
            ae_title=server.ae_title,
            ext_neg=list(roles),
            evt_handlers=list(handlers),
        )
    except OSError as error:  # a host that no name server knows
        raise PacsError(f"{where} does not answer: {error.strerror}; check the host's name") from error
    try:
        if association.is_rejected:
            reason = getattr(association.acceptor.primitive, "reason_str", "") or "no reason given"
            raise PacsError(
                f"{where} refuses {settings.pacs.ae_title}: {reason.lower()}; both AE titles have to be known there"
            )
        missing = set(needed) - {str(context.abstract_syntax) for context in association.accepted_contexts}
        if missing and (association.is_established or association.rejected_contexts):
            names = ", ".join(sorted(UID(uid).name for uid in missing))
            raise PacsError(f"{where} does not offer {names}; see its conformance statement, or let it send here")
        if not association.is_established:
            raise PacsError(f"{where} does not answer; check host, port and whether it runs")
        yield association
    except BaseException:
        if association.is_established:
            association.abort()  # in the middle of something: a release would wait for its end
        raise
    if association.is_established:
        association.release()


def _check(status: Dataset, server: PacsServer, what: str) -> None:
    code = status.get("Status")
    if code is None:
        raise PacsError(f"{server.name} broke off or took too long {what}; try again, or raise pacs.timeout_seconds")
    if code != 0 and code & 0xF000 != 0xB000:  # B...: done, with a warning
        said = str(status.get("ErrorComment") or "").strip()
        raise RefusedError(f"{server.name} refuses {what} (status {code:04X}{': ' + said if said else ''})")


def _text(ds: Dataset, keyword: str) -> str:
    value = ds.get(keyword)
    return "" if value is None else str(value).strip()


def _values(ds: Dataset, keyword: str) -> list[str]:
    value = ds.get(keyword)
    return [] if not value else [value] if isinstance(value, str) else [str(v) for v in value]


def _number(ds: Dataset, keyword: str) -> int | None:
    text = _text(ds, keyword)
    return int(text) if text.isdecimal() else None


def _date(ds: Dataset, keyword: str) -> date | None:
    try:
        return datetime.strptime(_text(ds, keyword), "%Y%m%d").date()
    except ValueError:
        return None
