"""A node that a scanner or PACS sends studies to: received, answered, kept, and the answer sent on.

What comes is on disk before its sender is told so, and stays there until it is answered: a stop or a crash loses
nothing. It lies there as it came, with names, for the owner of the process alone; kept is what `brainmri.dicom` leaves.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainmri import pacs, patients
from brainmri.config import Settings
from brainmri.dicom import Series, answer_series, read_files
from brainmri.errors import BrainMRIError, PacsError
from brainmri.pipeline import analyse_stack
from brainmri.types import CLASS_TITLES

if TYPE_CHECKING:
    from brainmri.accounts import User
    from brainmri.inference import Classifier
    from brainmri.storage import Database
    from brainmri.types import Analysis

_FREE_BYTES = 1_000_000_000
"""Of disk that is left to others: past it nothing more is taken."""
_SUCCESS, _OUT_OF_RESOURCES, _CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000  # PS3.4 B.2.3
_RESEND_S = 60.0


class Listener:
    """Takes studies, answers each once nothing more of it comes, and keeps the answers for a user.

    ``start``, then ``step`` again and again, then ``stop``; or ``run``, which does all three.

    Parameters
    ----------
    user : User
        Whose cases they become.
    say : callable
        Called with a line for the operator; no line names a patient.
    """

    def __init__(
        self, settings: Settings, database: Database, user: User, classifier: Classifier, say: Callable[[str], None]
    ):
        self.settings, self.database, self.user, self.classifier, self.say = settings, database, user, classifier, say
        spool = settings.pacs.spool
        self.incoming, self.working, self.failed, self.outgoing = (
            spool / name for name in ("incoming", "working", "failed", "outgoing")
        )
        self._lock = threading.Lock()
        self._sent_at = -_RESEND_S

    def start(self) -> None:
        """Listen (C-STORE of MR, C-ECHO) to the callers that the settings name.

        Raises
        ------
        PacsError
            The address is taken or not this machine's, or the spool cannot be written.
        """
        from pynetdicom import AE, evt

        try:
            for folder in (self.settings.pacs.spool, self.incoming, self.working, self.failed, self.outgoing):
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o700)
        except OSError as error:
            raise PacsError(f"{error.filename}: {error.strerror}; set pacs.spool to a folder to write to") from error
        mine = self.settings.pacs
        entity = AE(ae_title=mine.ae_title)
        entity.require_called_aet = True
        entity.require_calling_aet = [*mine.callers, *(server.ae_title for server in mine.servers)]
        if not entity.require_calling_aet:
            raise PacsError("nobody may send: name AE titles under pacs.callers, or servers under pacs.servers")
        entity.network_timeout = entity.dimse_timeout = entity.acse_timeout = mine.timeout_seconds
        entity.add_supported_context("1.2.840.10008.1.1")
        for uid in pacs.MR_CLASSES:
            entity.add_supported_context(uid, list(pacs.SYNTAXES))
        try:
            entity.start_server((mine.host, mine.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
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
        # What a crash left half-way is done again: an answer kept twice counts once.
        for folder in sorted(self.working.iterdir()):
            self._answer(folder)
        for folder in sorted(self.incoming.iterdir()):
            if time.time() - folder.stat().st_mtime >= self.settings.pacs.quiet_seconds:
                with self._lock:
                    taken = folder.rename(self.working / f"{folder.name}-{time.time_ns()}")
                self._answer(taken)
        self._send_on()

    def _store(self, event: Any) -> int:
        """One object that came; what is returned is the status that its sender gets."""
        content = event.encoded_dataset()
        try:
            study, instance = str(event.dataset.StudyInstanceUID), str(event.request.AffectedSOPInstanceUID)
        except Exception as error:  # pydicom's own, of all kinds: what came cannot be read
            self.say(f"refused an object that cannot be read: {type(error).__name__}")
            return _CANNOT_UNDERSTAND
        folder = self.incoming / _name(study)
        try:
            with self._lock:
                folder.mkdir(mode=0o700, exist_ok=True)
                there = list(folder.glob("*.dcm"))
                limit = self.settings.dicom.max_archive_mb * 1e6
                if (
                    len(there) >= self.settings.dicom.max_slices
                    or sum(path.stat().st_size for path in there) + len(content) > limit
                    or shutil.disk_usage(folder).free < _FREE_BYTES + len(content)
                ):
                    self.say("refused an object: its study has too many, is too large, or the disk is full")
                    return _OUT_OF_RESOURCES
                _write(folder / f"{_name(instance)}.dcm", content)
        except OSError as error:
            self.say(f"refused an object that cannot be written: {error.strerror}")
            return _OUT_OF_RESOURCES
        return _SUCCESS

    def _answer(self, folder: Path) -> None:
        """Answer a study; where that fails it is put aside with the reason."""
        start = time.perf_counter()
        try:
            files = ((path.name, path.read_bytes()) for path in sorted(folder.glob("*.dcm")))
            reading = read_files(files, "study", self.settings)
            for series in reading.series:
                analyses = analyse_stack(self.classifier, series.slices)
                records = patients.keep_series(self.database, self.settings, self.user, series, analyses)
                self.say(
                    f"{series.patient_id}: {len(records)} slices kept as cases {records[0].id} to {records[-1].id} "
                    f"({time.perf_counter() - start:.1f} s). {answer_series(analyses).text}"
                )
                if self.settings.pacs.answer_to:
                    self._draw(folder, series, analyses)
            for item in reading.set_aside:
                self.say(f"set aside: {item.reason}")
        except BrainMRIError as error:
            aside = self.failed / folder.name
            folder.rename(aside)
            (aside / "reason.txt").write_text(f"{error}\n", "utf-8")
            self.say(f"not answered, put aside in {aside}: {error}")
            return
        shutil.rmtree(folder)

    def _draw(self, folder: Path, series: Series, analyses: Sequence[Analysis]) -> None:
        """The answer to a series as a picture that waits to be sent: its strongest slice, and where that comes from."""
        from pydicom import dcmread

        from brainmri.dicom.capture import secondary_capture
        from brainmri.explain import explain
        from brainmri.explain.figures import as_pixels, explanation_page

        answer = answer_series(analyses)
        seen = [i for i, a in enumerate(analyses) if a.decision != "rejected"]
        if not seen:
            self.say("no answer is sent: every slice was rejected as no brain MRI")
            return
        shown = answer.runs[0].peak if answer.runs else seen[len(seen) // 2]
        analysis = analyses[shown]
        maps = explain(self.classifier, [analysis], ("grad-cam",), directory=self.settings.model.directory)[0]
        title = CLASS_TITLES[answer.label] if answer.label else "no answer"
        heading = (f"Research only, no diagnosis. Series: {title}", answer.text, f"Slice {shown + 1} is shown:")
        page = explanation_page(analysis, maps, heading=heading)
        capture = secondary_capture(
            dcmread(folder / series.frames[shown].file_name, stop_before_pixels=True),
            as_pixels(page, dpi=100),
            description="brainmri: research only",
            comment=answer.text,
            source=f"{analysis.model_id} {analysis.weights_sha256[:12]}",
        )
        buffer = io.BytesIO()
        capture.save_as(buffer, enforce_file_format=True)
        _write(self.outgoing / f"{capture.SOPInstanceUID}.dcm", buffer.getvalue())
        self._sent_at = -_RESEND_S

    def _send_on(self) -> None:
        """Send answers that wait; those that are not taken are tried again a minute later."""
        waiting = sorted(self.outgoing.glob("*.dcm"))
        if not waiting or time.monotonic() - self._sent_at < _RESEND_S:
            return
        from pydicom import dcmread

        self._sent_at = time.monotonic()
        server = pacs.find_server(self.settings, self.settings.pacs.answer_to)
        for path in waiting:
            try:
                pacs.send(self.settings, server, [dcmread(path)])
            except PacsError as error:
                self.say(f"{len(waiting)} answers wait, the next try is in a minute: {error}")
                return
            path.unlink()
            self.say(f"an answer was sent to {server.name}")


def _name(uid: str) -> str:
    """A file name for whatever somebody sent as a UID."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


def _write(path: Path, content: bytes) -> None:
    """On disk, whole, and for the owner alone, or not there."""
    partial = path.with_suffix(".part")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
