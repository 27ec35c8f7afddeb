"""A node that a scanner or PACS sends studies to: received, answered, kept, and the answer sent on.

What comes is on disk before its sender is told so, and stays there until it is answered. It lies there as it came, with
names, for the owner of the process alone; what is kept is what `brainmri.dicom` leaves of it.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy.exc import OperationalError

from brainmri import pacs, patients
from brainmri.config import Settings
from brainmri.dicom import Series, answer_series, read_files
from brainmri.errors import BrainMRIError, InvalidDicomError, PacsError, RefusedError, StorageError
from brainmri.pipeline import analyse_stack
from brainmri.storage import sync_folder, write_private
from brainmri.types import CLASS_TITLES

if TYPE_CHECKING:
    from brainmri.accounts import User
    from brainmri.inference import Classifier
    from brainmri.storage import Database
    from brainmri.types import Analysis

_FREE_BYTES = 1_000_000_000
"""Of disk that is left to others: past it nothing more is taken."""
_RETRY_S = 60.0
_MOST_TRIES = 30
_INCOMPLETE = "incomplete.txt"
_STOPPED = "the listener stopped while it came; let it be sent again"
_UNKNOWN = "?"
_SUCCESS, _OUT_OF_RESOURCES, _CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000  # PS3.4 B.2.3


class Listener:
    """Takes studies, answers each once nothing more of it comes, and keeps the answers for a user.

    ``start``, then ``step`` again and again, then ``stop``; or ``run``, which does all three.

    Parameters
    ----------
    user : User
        Whose cases they become.
    say : callable
        Called with a line for the operator; no line says anything of a patient.
    """

    def __init__(
        self, settings: Settings, database: Database, user: User, classifier: Classifier, say: Callable[[str], None]
    ):
        self.settings, self.database, self.user, self.classifier, self.say = settings, database, user, classifier, say
        self.spool = Spool(settings)
        self._tries: dict[Path, tuple[int, float]] = {}  # of what failed for a passing reason, and when the next is due
        self._send_at = 0.0

    def start(self) -> None:
        """Listen (C-STORE of MR, C-ECHO) to the callers that the settings name.

        Raises
        ------
        PacsError
            The address is taken or not this machine's, or the spool cannot be written.
        """
        from pynetdicom import AE, evt

        mine = self.settings.pacs
        self.spool.open()
        entity = AE(ae_title=mine.ae_title)
        entity.require_called_aet = True
        entity.require_calling_aet = [*mine.callers, *(server.ae_title for server in mine.servers)]
        if not entity.require_calling_aet:
            raise PacsError("nobody may send: name AE titles under pacs.callers, or servers under pacs.servers")
        entity.network_timeout = entity.dimse_timeout = entity.acse_timeout = mine.timeout_seconds
        entity.add_supported_context(pacs.VERIFICATION)
        for uid in pacs.MR_CLASSES:
            entity.add_supported_context(uid, list(pacs.SYNTAXES))
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_RELEASED, lambda event: self.spool.end(event.assoc, released=True)),
            (evt.EVT_CONN_CLOSE, lambda event: self.spool.end(event.assoc, released=False)),
        ]
        try:
            entity.start_server((mine.host, mine.port), block=False, evt_handlers=handlers)
        except OSError as error:
            raise PacsError(f"cannot listen at {mine.host}:{mine.port}: {error.strerror}; is one running?") from error
        self._entity = entity
        self.say(f"{mine.ae_title} listens at {mine.host}:{mine.port} to {', '.join(entity.require_calling_aet)}")

    def stop(self) -> None:
        """Stop listening; what came and is not answered yet waits for the next start."""
        self._entity.shutdown()

    def run(self) -> None:
        """Listen until interrupted."""
        self.start()
        try:
            while True:
                self.step()
                time.sleep(0.5)
        finally:
            self.stop()

    def step(self) -> None:
        """Answer what is complete, and send on what waits."""
        for reason in self.spool.take_complete(self.settings.pacs.quiet_seconds):
            self.say(f"a study is not answered, it lies in {self.spool.failed}: {reason}")
        # What a crash left half-way is done again: a slice that is kept twice counts once, by its newest answer.
        for study in self.spool.studies_to_answer():
            if time.monotonic() >= self._tries.get(study, (0, 0.0))[1]:
                self._answer(study)
        self._send_on()

    def _store(self, event: Any) -> int:
        """One object that came, in the association's thread; what is returned is the status that its sender gets."""
        keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
        study, series, instance, sop_class = (_uid(event, keyword) for keyword in keywords)
        if not (study and series and instance and sop_class):
            self.spool.refuse(study, instance, "it cannot be read or lacks a UID", event.assoc)
            self.say("refused an object that cannot be read or lacks a UID")
            return _CANNOT_UNDERSTAND
        refused = self.spool.put(study, series, instance, event.encoded_dataset(), event.assoc)
        if refused:
            self.say(f"refused an object: {refused}")
        return _OUT_OF_RESOURCES if refused else _SUCCESS

    def _answer(self, study: Path) -> None:
        """Answer a study series by series; a series whose turn is over is gone from its folder."""
        folders = _folders(study)
        derived = [folder for folder in folders if _is_derived(folder)]
        if len(derived) < len(folders):  # derived images are for studies that hold nothing else
            for folder in derived:
                shutil.rmtree(folder)
                self.say("set aside: a series of derived images or localisers")
        for folder in _folders(study):
            try:
                self._answer_series(folder)
            except (StorageError, OperationalError, OSError) as error:  # a database or disk may come back
                tries = self._tries.get(study, (0, 0.0))[0] + 1
                if tries < _MOST_TRIES:
                    self._tries[study] = (tries, time.monotonic() + _RETRY_S)
                    self.say(f"a study waits, the next try is in a minute: {type(error).__name__}")
                    return
                self._put_aside(folder, error)
            except Exception as error:  # whatever one series brings about, the next ones are answered
                self._put_aside(folder, error)
        self._tries.pop(study, None)
        shutil.rmtree(study)

    def _answer_series(self, folder: Path) -> None:
        start = time.perf_counter()
        files = ((path.name, path.read_bytes()) for path in sorted(folder.glob("*.dcm")))
        reading = read_files(files, "the series", self.settings, may_be_empty=True)
        failed = [item.reason for item in reading.set_aside if item.failed]
        if failed and not reading.series:
            raise InvalidDicomError("; ".join(dict.fromkeys(failed)))
        if reading.set_aside:
            self.say(f"set aside: {len(reading.set_aside)} images, {len(failed)} of them unreadable or refused")
        for series in reading.series:
            analyses = analyse_stack(self.classifier, series.slices)
            picture = self._draw(folder, series, analyses) if self.settings.pacs.answer_to else None
            records = patients.keep_series(self.database, self.settings, self.user, series, analyses)
            if picture is not None:
                self.spool.keep_outgoing(picture)
                self._send_at = 0.0
            self.say(
                f"{len(records)} slices kept as cases {records[0].id} to {records[-1].id} "
                f"({time.perf_counter() - start:.1f} s). {answer_series(analyses).text}"
            )
        shutil.rmtree(folder)

    def _put_aside(self, folder: Path, error: Exception) -> None:
        words = str(error) if isinstance(error, BrainMRIError) else "".join(traceback.format_exception(error))
        where = self.spool.fail(folder, words)
        self.say(f"a series is not answered ({type(error).__name__}), it lies in {where}; reason.txt says why")

    def _draw(self, folder: Path, series: Series, analyses: Sequence[Analysis]) -> bytes | None:
        """The answer to a series as a DICOM file: its strongest slice, and where that comes from."""
        from pydicom import dcmread

        from brainmri.dicom.capture import secondary_capture
        from brainmri.explain import explain
        from brainmri.explain.figures import as_pixels, explanation_page

        answer = answer_series(analyses)
        seen = [i for i, a in enumerate(analyses) if a.decision != "rejected"]
        if not seen:
            self.say("no answer is sent: every slice was rejected as no brain MRI")
            return None
        shown = answer.runs[0].peak if answer.runs else seen[len(seen) // 2]
        analysis, frame = analyses[shown], series.frames[shown]
        maps = explain(self.classifier, [analysis], ("grad-cam",), directory=self.settings.model.directory)[0]
        title = CLASS_TITLES[answer.label] if answer.label else "no answer"
        heading = (f"Research only, no diagnosis. Series: {title}", answer.text, f"Slice {shown + 1} is shown:")
        capture = secondary_capture(
            dcmread(folder / frame.file_name, stop_before_pixels=True),
            as_pixels(explanation_page(analysis, maps, heading=heading)),
            frame=frame.slice.frame,
            description="brainmri: research only",
            comment=answer.text,
            source=f"{analysis.model_id} {analysis.weights_sha256[:12]}",
        )
        buffer = io.BytesIO()
        capture.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    def _send_on(self) -> None:
        """Send answers that wait; while the server is away they are tried again every minute."""
        waiting = sorted(self.spool.outgoing.glob("*.dcm"))
        if not waiting or time.monotonic() < self._send_at:
            return
        from pydicom import dcmread

        self._send_at = time.monotonic() + _RETRY_S
        try:
            server = pacs.find_server(self.settings, self.settings.pacs.answer_to or "nowhere")
            for path in waiting:
                try:
                    pacs.send(self.settings, server, [dcmread(path)])
                except RefusedError as error:
                    where = self.spool.fail(path, str(error))
                    self.say(f"{server.name} refuses an answer, it lies in {where}; reason.txt says why")
                else:
                    path.unlink()
                    self.say(f"an answer was sent to {server.name}")
        except PacsError as error:
            self.say(f"{len(list(self.spool.outgoing.glob('*.dcm')))} answers wait: {error}")


class Spool:
    """What came and is not answered, what is answered and not sent, and what failed; one listener at a time.

    ``incoming/<study>/<series>/<instance>.dcm`` becomes ``working/...`` once the study is complete; names are hashes,
    for a UID is whatever somebody sent. ``failed`` and ``outgoing`` are flat. While a study comes, and where a part of
    it is missing, a file `_INCOMPLETE` in its folder says so, why, and which instances have to come (again); it
    outlives a crash.
    """

    def __init__(self, settings: Settings):
        self.root, self.limits = settings.pacs.spool, settings.dicom
        self.incoming, self.working, self.failed, self.outgoing = (
            self.root / name for name in ("incoming", "working", "failed", "outgoing")
        )
        self._lock = threading.Lock()
        self._senders: dict[Path, dict[Any, set[str]]] = {}  # of a study: instances by the association that sends them
        self._missing: dict[Path, dict[str, str]] = {}  # of a study: instances that have to come (again), and why
        self._sizes: dict[Path, dict[str, int]] = {}  # of a series: bytes by file

    def open(self) -> None:
        """Make the folders, drop what a crash left half-written, and note which studies it left incomplete.

        The sender of what is dropped was not told that it was taken.

        Raises
        ------
        PacsError
            They cannot be written.
        """
        try:
            for folder in (self.root, self.incoming, self.working, self.failed, self.outgoing):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for partial in self.root.rglob("*.part"):
                partial.unlink()
            for marker in self.incoming.glob(f"*/{_INCOMPLETE}"):
                reason, *names = marker.read_text("utf-8", "replace").splitlines() or [_STOPPED]
                written = marker.stat().st_mtime_ns
                names += [path.name for path in marker.parent.glob("*/*.dcm") if path.stat().st_mtime_ns >= written]
                self._missing[marker.parent] = dict.fromkeys(names or [_UNKNOWN], reason)
        except OSError as error:
            raise PacsError(f"{error.filename}: {error.strerror}; set pacs.spool to a folder to write to") from error

    def put(self, study_uid: str, series_uid: str, instance_uid: str, content: bytes, sender: Any) -> str:
        """Write an object to disk; returns why not, or nothing."""
        study = self.incoming / _name(study_uid)
        folder, file_name = study / _name(series_uid), f"{_name(instance_uid)}.dcm"
        with self._lock:
            begins = not self._senders.get(study)
            self._note_sender(study, sender, file_name)
            if folder not in self._sizes:
                self._sizes[folder] = {path.name: path.stat().st_size for path in folder.glob("*.dcm")}
            sizes = self._sizes[folder] | {file_name: len(content)}
        refused = ""
        if len(sizes) > self.limits.max_slices or sum(sizes.values()) > self.limits.max_archive_mb * 1e6:
            refused = "its series has too many or is too large (dicom.max_slices, dicom.max_archive_mb)"
        elif shutil.disk_usage(self.root).free < _FREE_BYTES + len(content):
            refused = "the disk is nearly full"
        else:
            try:
                study.mkdir(mode=0o700, exist_ok=True)
                folder.mkdir(mode=0o700, exist_ok=True)
                if begins or not (study / _INCOMPLETE).exists():
                    with self._lock:
                        self._mark(study)
                _write(folder / file_name, content)
                sync_folder(study)
                sync_folder(self.incoming)
            except OSError as error:
                refused = f"it cannot be written ({error.strerror})"
        with self._lock:
            if refused:
                self._lack(study, [file_name], f"a part was refused: {refused}")
            else:
                self._sizes[folder][file_name] = len(content)
                lacking = self._missing.get(study, {})
                lacking.pop(file_name, None)
                if not lacking:
                    self._missing.pop(study, None)
            if study.is_dir():
                os.utime(study)  # what is waited for is that nothing of the study comes
        return refused

    def refuse(self, study_uid: str, instance_uid: str, reason: str, sender: Any) -> None:
        """Note that an object was refused for lack of a UID: its study lacks it, or any that its association sends."""
        name = f"{_name(instance_uid)}.dcm" if instance_uid else _UNKNOWN
        with self._lock:
            if study_uid:
                studies = [self.incoming / _name(study_uid)]
            else:
                studies = [study for study, senders in self._senders.items() if sender in senders]
            for study in studies:
                self._note_sender(study, sender, name)
                self._lack(study, [name], f"a part was refused: {reason}")

    def end(self, sender: Any, *, released: bool) -> None:
        """An association is over; without a release of it the studies that it sent are not whole."""
        with self._lock:
            for study in [study for study, senders in self._senders.items() if sender in senders]:
                sent = self._senders[study].pop(sender)
                if not released:
                    self._lack(study, sent, "its sender broke off; let it be sent again")
                if self._senders[study] or study in self._missing:
                    self._try_to_mark(study)
                else:
                    (study / _INCOMPLETE).unlink(missing_ok=True)

    def _note_sender(self, study: Path, sender: Any, name: str) -> None:
        self._senders.setdefault(study, {}).setdefault(sender, set()).add(name)

    def _lack(self, study: Path, names: Iterable[str], reason: str) -> None:
        """Note instances that have to come (again) before a study is whole; on disk at the first, and at the end."""
        first = study not in self._missing
        for name in names:
            self._missing.setdefault(study, {}).setdefault(name, reason)
        if first or not (study / _INCOMPLETE).exists():
            self._try_to_mark(study)

    def _try_to_mark(self, study: Path) -> None:
        with suppress(OSError):  # a full disk, say: then this process alone knows
            study.mkdir(mode=0o700, exist_ok=True)
            self._mark(study)

    def _mark(self, study: Path) -> None:
        """Write down what a study lacks, and what it would lack if this process ended now."""
        missing = self._missing.get(study, {})
        coming: set[str] = set().union(*self._senders.get(study, {}).values())
        lines = [next(iter(missing.values()), _STOPPED), *sorted(coming.union(missing))]
        _write(study / _INCOMPLETE, "\n".join(lines).encode())

    def take_complete(self, quiet_seconds: float) -> list[str]:
        """Move studies of which nothing came for so long to ``working``; returns why others are put aside instead."""
        reasons = []
        for study in _folders(self.incoming):
            with self._lock:
                if self._senders.get(study) or time.time() - study.stat().st_mtime < quiet_seconds:
                    continue
                self._senders.pop(study, None)
                self._missing.pop(study, None)
                for folder in _folders(study):
                    self._sizes.pop(folder, None)
                missing = study / _INCOMPLETE
                if missing.exists():
                    reason = missing.read_text("utf-8", "replace").partition("\n")[0] or _STOPPED
                    self.fail(study, reason)
                    reasons.append(reason)
                else:
                    study.rename(self.working / f"{study.name}-{time.time_ns()}")
        return reasons

    def studies_to_answer(self) -> list[Path]:
        """Studies that are complete and not answered."""
        return _folders(self.working)

    def fail(self, path: Path, reason: str) -> Path:
        """Put a folder or file aside with the reason; returns where it lies."""
        where = self.failed / f"{path.stem}-{time.time_ns()}"
        if path.is_dir():
            path.rename(where)
        else:
            where.mkdir(mode=0o700)
            path.rename(where / path.name)
        (where / "reason.txt").write_text(f"{reason}\n", "utf-8")
        return where

    def keep_outgoing(self, content: bytes) -> None:
        """An answer that waits to be sent."""
        _write(self.outgoing / f"{time.time_ns()}.dcm", content)


def _name(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


def _uid(event: Any, keyword: str) -> str:
    """A UID of an object that came; empty where it has none, several, or cannot be read."""
    try:
        uid = event.dataset.get(keyword)
    except Exception:  # pydicom's own, of all kinds
        return ""
    return uid if isinstance(uid, str) and uid.strip() else ""


def _folders(folder: Path) -> list[Path]:
    """Folders in it; a stray file is none."""
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _is_derived(folder: Path) -> bool:
    """Whether all of a series is derived images or localisers; what cannot be read fails later."""
    from pydicom import dcmread

    try:
        for path in folder.glob("*.dcm"):
            ds = dcmread(path, specific_tags=["ImageType"], stop_before_pixels=True)
            kinds = ds.get("ImageType") or ()
            if not {"DERIVED", "SECONDARY", "LOCALIZER"} & set([kinds] if isinstance(kinds, str) else kinds):
                return False
    except Exception:
        return False
    return True


def _write(path: Path, content: bytes) -> None:
    """On disk, whole, and for the owner alone, or not there."""
    partial = path.with_name(f"{uuid4().hex}.part")
    try:
        write_private(partial, content)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
