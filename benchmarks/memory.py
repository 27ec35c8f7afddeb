"""Resident memory over many predictions through the batching classifier, from eight threads.

    python benchmarks/memory.py [--predictions 20000]

Prints JSON: memory after a warm-up and at the end, and the growth between.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent


def measure_memory(model_directory: Path | str, model_id: str, predictions: int, warm_up: int = 1000) -> dict[str, Any]:
    """Predict single slices of many sizes; see the module's docstring."""
    from brainmri.inference import load_classifier
    from brainmri.serving import BatchingClassifier

    classifier = BatchingClassifier(load_classifier(model_id, model_directory))
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (200 + 8 * i, 256), dtype=np.uint8) for i in range(16)]
    process = psutil.Process()

    def predict(n: int) -> float:
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda i: classifier.predict([pictures[i % 16]]).decisions, range(n)):
                pass
        return process.memory_info().rss / 2**20

    before = predict(warm_up)
    start = time.perf_counter()
    after = predict(predictions)
    elapsed = time.perf_counter() - start
    classifier.close()
    return {
        "predictions": predictions,
        "predictions_per_second": predictions / elapsed,
        "rss_mib_after_warm_up": before,
        "rss_mib": after,
        "growth_mib": after - before,
    }


def main() -> None:
    """Entry point."""
    from brainmri.config import load_settings

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=int, default=20_000)
    model = load_settings().model
    print(json.dumps(measure_memory(model.directory, model.id, parser.parse_args().predictions), indent=2))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
