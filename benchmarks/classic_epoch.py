"""What an epoch of the classic recipe costs when the frozen blocks run once per view instead of once per epoch.

    python benchmarks/classic_epoch.py [--images 256] [--repeats 3] [--precision float32]

Plain ``model.fit`` over the whole network and the recipe's cached epochs take turns on the same images, in the same
precision and the same process; medians and their ratio are printed as JSON, with the one-off extraction beside them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import keras
import numpy as np

from brainmri import training
from brainmri.model import build_network
from brainmri.recipes import load_recipe
from brainmri.views import CACHE_SIZE, TrainingSet, Views


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", default="float32", choices=("float32", "mixed_bfloat16"))
    arguments = parser.parse_args()
    keras.mixed_precision.set_global_policy(arguments.precision)
    classic = load_recipe("classic")
    data = _random_slices(arguments.images, classic.sources[0].name)
    fits, seconds = {}, {}
    for name, draws in (("plain", 0), ("cached", 1)):
        recipe = classic.model_copy(update={"cached_draws": draws})
        network = build_network()
        for layer in network.layers:
            layer.trainable = not layer.name.startswith(tuple(f"block{b}_" for b in recipe.frozen_blocks))
        start = time.perf_counter()
        batches = training._Batches(network, data, recipe, 0, Views(data, recipe, recipe.stages[0], 128))
        seconds[f"{name}_preparation"] = time.perf_counter() - start
        batches.trained.compile(optimizer=keras.optimizers.Adam(1e-4), loss=training.class_loss(0.0), jit_compile=False)
        batches.trained.fit(batches.of_epoch(0), epochs=1, verbose=0)  # tracing
        fits[name] = batches
    times: dict[str, list[float]] = {"plain": [], "cached": []}
    for repeat in range(arguments.repeats):
        for name, batches in fits.items():
            start = time.perf_counter()
            batches.trained.fit(batches.of_epoch(repeat + 1), epochs=1, verbose=0)
            times[name].append(time.perf_counter() - start)
    plain, cached = (statistics.median(times[name]) for name in ("plain", "cached"))
    result = {
        "images": arguments.images,
        "precision": arguments.precision,
        "plain_epoch_s": round(plain, 2),
        "cached_epoch_s": round(cached, 2),
        "cached_over_plain": round(cached / plain, 3),
        "extraction_once_per_view_s": round(seconds["cached_preparation"], 2),
    }
    print(json.dumps(result, indent=2))


def _random_slices(n: int, source: str) -> TrainingSet:
    rng = np.random.default_rng(0)
    size = CACHE_SIZE
    text = np.array([""] * n)
    return TrainingSet(
        images=rng.integers(0, 256, (n, size, size), dtype=np.uint8),
        masks=np.zeros((n, size, size), np.uint8),
        mask_known=np.zeros(n, bool),
        targets=np.eye(4, dtype=np.float32)[rng.integers(0, 4, n)],
        source=np.array([source] * n),
        group=np.arange(n).astype(str),
        plane=text,
        outlined=np.array([], int),
    )


if __name__ == "__main__":
    main()
