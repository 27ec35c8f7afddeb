"""What Grad-CAM adds to a prediction: the same 64 slices with and without, taken in turns; medians and their ratio.

    python benchmarks/grad_cam.py [--batch 64] [--rounds 9] [--engine auto]

Exit code 1 where prediction + Grad-CAM takes more than 1.15 times as long as the prediction alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import numpy as np

from brainmri import synthetic
from brainmri.config import load_settings
from brainmri.explain import explain
from brainmri.inference import load_classifier
from brainmri.pipeline import analyse
from brainmri.types import MRISlice

LIMIT = 1.15


def slices(n: int) -> list[MRISlice]:
    """Different pictures of 256 x 256: the samples, shifted and scaled in brightness."""
    from PIL import Image

    rng = np.random.default_rng(0)
    pictures = [np.asarray(Image.fromarray(s.slice.pixels).resize((256, 256))) for s in synthetic.samples().values()]
    result = []
    for i in range(n):
        pixels = np.roll(pictures[i % len(pictures)] * rng.uniform(0.7, 1.0), rng.integers(-8, 9, 2), (0, 1))
        result.append(MRISlice(pixels.astype(np.uint8), f"{i}.png", f"{i:064d}", "PNG"))
    return result


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--engine", default="auto")
    arguments = parser.parse_args()
    model = load_settings().model
    classifier = load_classifier(model.id, model.directory, arguments.engine)
    batch = slices(arguments.batch)

    def predict_only() -> None:
        analyse(classifier, batch)

    def with_map() -> None:
        explain(classifier, analyse(classifier, batch), allow_rejected=True, directory=model.directory)

    seconds: dict[str, list[float]] = {"prediction": [], "prediction and Grad-CAM": []}
    for number in range(arguments.rounds + 1):
        for name, run in zip(seconds, (predict_only, with_map), strict=True):
            start = time.perf_counter()
            run()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["prediction and Grad-CAM"] / medians["prediction"]
    print(
        json.dumps(
            {
                "batch": arguments.batch,
                "engine": classifier.engine.name,
                "precision": classifier.engine.precision,
                "ms_per_slice": {name: round(1e3 * s / arguments.batch, 3) for name, s in medians.items()},
                "ratio": round(ratio, 4),
                "limit": LIMIT,
            }
        )
    )
    sys.exit(ratio > LIMIT)


if __name__ == "__main__":
    main()
