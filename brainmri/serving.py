"""Many users, one engine: predictions that arrive together share a forward pass, and a full queue says so at once."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from concurrent.futures import Future

import numpy as np

from brainmri.errors import BusyError
from brainmri.inference import MAX_BATCH, Classifier, one_thread_for_numpy


class BatchingClassifier(Classifier):
    """A classifier whose concurrent `predict` calls are answered in common forward passes.

    One thread runs the engine. Whatever waits when it is free goes into the next pass, up to ``max_batch`` slices, so
    nobody waits for a batch to fill. Preprocessing and the decision stay in the caller's thread.

    Parameters
    ----------
    classifier : Classifier
        What answers; not changed.
    max_batch : int
        Slices in one pass.
    queue_size : int
        Slices that may wait. A call that finds no room is refused; one that was let in is finished: a call with more
        than ``max_batch`` slices queues them ``max_batch`` at a time, so that others come in between.
    """

    def __init__(self, classifier: Classifier, *, max_batch: int = MAX_BATCH, queue_size: int = 256):
        super().__init__(classifier.card, classifier.engine, classifier.rule, classifier.fallback_reason)
        one_thread_for_numpy()
        self.max_batch = max_batch
        self._queue = _Queue(classifier, max_batch, max(queue_size, max_batch))
        self._thread = threading.Thread(target=self._queue.run, name="brainmri-engine", daemon=True)
        self._thread.start()
        weakref.finalize(self, self._queue.close)  # nobody holds it any more: the thread ends, and the engine goes

    def forward(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Classifier.forward`.

        Raises
        ------
        BusyError
            The queue is full.
        """
        parts = []
        for start in range(0, len(inputs), self.max_batch):
            future = self._queue.submit(inputs[start : start + self.max_batch], admitted=start > 0)
            parts.append(future.result())
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def close(self) -> None:
        """Finish what waits, then end the thread; later calls are refused."""
        self._queue.close()
        self._thread.join()


class _Queue:
    """What waits, and the thread's work on it. It does not hold the `BatchingClassifier`, which could never go then."""

    def __init__(self, classifier: Classifier, max_batch: int, size: int):
        self.classifier, self.max_batch, self.size = classifier, max_batch, size
        self.waiting: deque[tuple[np.ndarray, Future]] = deque()
        self.n_waiting = 0
        self.changed = threading.Condition()
        self.closed = False

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def submit(self, inputs: np.ndarray, admitted: bool) -> Future:
        future: Future = Future()
        with self.changed:
            if admitted:
                self.changed.wait_for(lambda: self.closed or self._has_room(inputs))
            if self.closed:
                raise BusyError("the classifier is shutting down; try again in a moment")
            if not self._has_room(inputs):
                raise BusyError(
                    f"busy: {self.n_waiting} slices wait already and the queue holds {self.size}; try again in a moment"
                )
            self.waiting.append((inputs, future))
            self.n_waiting += len(inputs)
            self.changed.notify_all()
        return future

    def _has_room(self, inputs: np.ndarray) -> bool:
        return self.n_waiting + len(inputs) <= self.size

    def _take(self) -> list[tuple[np.ndarray, Future]]:
        """Wait for work, then take whole requests, first come first served, while they fit in one pass."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.closed)
            taken: list[tuple[np.ndarray, Future]] = []
            count = 0
            while self.waiting and (not taken or count + len(self.waiting[0][0]) <= self.max_batch):
                taken.append(self.waiting.popleft())
                count += len(taken[-1][0])
            self.n_waiting -= count
            self.changed.notify_all()
            return taken

    def run(self) -> None:
        while taken := self._take():
            try:
                logits, feature_maps = self.classifier.forward(np.concatenate([inputs for inputs, _ in taken]))
            except BaseException as error:  # whatever it is belongs to the callers, and the thread goes on
                for _, future in taken:
                    future.set_exception(error)
                continue
            start = 0
            for inputs, future in taken:
                end = start + len(inputs)
                future.set_result((logits[start:end].copy(), feature_maps[start:end].copy()))
                start = end
            del taken, logits, feature_maps, future, inputs  # an idle thread holds no activations
