"""Concurrent predictions share passes, keep their answers apart, and are refused when there are too many."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from brainmri.errors import BusyError
from brainmri.inference import Classifier, load_classifier
from brainmri.serving import BatchingClassifier


class SlowEngine:
    """Counts its passes; holds each until it is let go."""

    name = precision = "slow"

    def __init__(self, fails: bool = False):
        self.batches: list[int] = []
        self.go = threading.Event()
        self.started = threading.Event()
        self.fails = fails

    def forward(self, batch):
        self.batches.append(len(batch))
        self.started.set()
        self.go.wait(10)
        if self.fails:
            raise RuntimeError("the engine broke")
        logits = np.repeat(batch.mean((1, 2, 3))[:, None], 4, 1)
        return logits, np.zeros((len(batch), 8, 8, 512), np.float32)


@pytest.fixture
def make(tiny_models):
    real = load_classifier("tiny", tiny_models)
    made = []

    def build(engine=None, **options):
        made.append(BatchingClassifier(Classifier(real.card, engine or real.engine, real.rule, "why"), **options))
        return made[-1]

    build.made = made
    yield build
    for classifier in made:
        if isinstance(classifier.engine, SlowEngine):
            classifier.engine.go.set()
        classifier.close()


def test_answers_are_those_of_the_plain_classifier(make, tiny_models, slices):
    plain, batching = load_classifier("tiny", tiny_models), make()
    expected = [plain.predict([s]) for s in slices]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda s: batching.predict([s]), slices * 5))
    for i, prediction in enumerate(found):
        np.testing.assert_allclose(prediction.logits, expected[i % len(slices)].logits, atol=1e-3)
        assert prediction.decisions == expected[i % len(slices)].decisions
    assert batching.fallback_reason == "why"


def test_numpy_leaves_the_cores_to_the_engine(make):
    with threadpool_limits(2, user_api="blas"):
        make()
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}


def test_concurrent_calls_share_a_pass(make, slices):
    engine = SlowEngine()
    classifier = make(engine, max_batch=8)
    with ThreadPoolExecutor(12) as pool:
        first = pool.submit(classifier.predict, slices[:1])
        assert engine.started.wait(10)
        others = [pool.submit(classifier.predict, [s]) for s in slices[1:12]]
        while classifier._queue.n_waiting < 11:
            time.sleep(0.001)
        engine.go.set()
        assert first.result(10).logits.shape == (1, 4)
        answers = [other.result(10).logits[0, 0] for other in others]
    assert engine.batches == [1, 8, 3]
    assert len(set(answers)) == 11  # each caller got its own slice's answer


def test_a_full_queue_refuses_at_once(make, slices):
    engine = SlowEngine()
    classifier = make(engine, max_batch=2, queue_size=3)
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(classifier.predict, slices[:1])]
        assert engine.started.wait(10)
        running += [pool.submit(classifier.predict, [s]) for s in slices[1:4]]
        while classifier._queue.n_waiting < 3:
            time.sleep(0.001)
        start = time.perf_counter()
        with pytest.raises(BusyError, match="busy: 3 slices wait"):
            classifier.predict(slices[:1])
        assert time.perf_counter() - start < 1
        engine.go.set()
        assert [r.result(10).logits.shape for r in running] == [(1, 4)] * 4
    assert classifier.predict(slices[:1]).logits.shape == (1, 4)  # and there is room again


def test_a_large_call_is_finished_once_let_in(make, slices):
    classifier = make(max_batch=4, queue_size=4)
    with ThreadPoolExecutor(2) as pool:
        large = [pool.submit(classifier.predict, slices) for _ in range(2)]
        done = [f for f in large if not f.exception(10)]
    assert done
    assert all(f.result().logits.shape == (len(slices), 4) for f in done)
    assert all(isinstance(f.exception(), BusyError) for f in large if f not in done)


def test_an_engine_error_reaches_its_callers_only(make, slices):
    engine = SlowEngine(fails=True)
    engine.go.set()
    classifier = make(engine)
    with pytest.raises(RuntimeError, match="broke"):
        classifier.predict(slices[:1])
    engine.fails = False
    assert classifier.predict(slices[:1]).logits.shape == (1, 4)


def test_closed(make, slices):
    classifier = make()
    classifier.close()
    with pytest.raises(BusyError, match="shutting down"):
        classifier.predict(slices[:1])


def test_a_classifier_that_nobody_holds_leaves_memory_with_its_thread(make, slices):
    engine = SlowEngine()
    held, thread = [], make(engine)._thread
    gone = weakref.ref(engine)
    held.append(make.made.pop())
    del engine
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: held.pop().predict(slices[:1]).logits.shape)
        assert gone().started.wait(10)
        gc.collect()
        assert thread.is_alive()  # who asked is answered first
        gone().go.set()
        assert running.result(10) == (1, 4)
    thread.join(10)
    gc.collect()
    assert not thread.is_alive()
    assert gone() is None


def test_memory_stays_flat(make, slices):
    """A short run of benchmarks/memory.py."""
    classifier = make()
    process = psutil.Process()

    def some(n):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: classifier.predict([slices[i % 12]]).logits, range(n)))
        return process.memory_info().rss / 1e6

    some(300)
    before = some(300)
    assert some(1500) - before < 15
