"""Two one-core workers against one: how much of a second worker Ray and the job keep.

    python benchmarks/ray_efficiency.py [--files 4096] [--rounds 2]

The same synthetic archive is answered by one worker and by two, in turns, on a local Ray cluster. Rates are of the
steady state, from the first quarter of the files on. Prints JSON; efficiency is rate(2) / (2 x rate(1)).
``bare_efficiency`` is the same of engines alone, in processes of their own: what the cores leave a second worker, which
share caches, memory and clock, and so the most that Ray can reach.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def measure_efficiency(settings: Any, files: int, rounds: int) -> dict[str, Any]:
    """See the module's docstring."""
    import ray

    from brainmri.archive import make_job
    from brainmri.benchmark import bare_rate
    from brainmri.imaging import as_network_batch, preprocess
    from brainmri.scale import run_on_ray
    from brainmri.synthetic import samples

    rates: dict[int, list[float]] = {1: [], 2: []}
    bare: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "images"
        root.mkdir()
        pictures = [sample.slice.pixels for sample in samples().values()]
        for i in range(files):
            pixels = np.roll(pictures[i % len(pictures)], i % 17 - 8, axis=1)
            Image.fromarray(pixels).resize((256, 256)).save(root / f"{i:06}.jpg", quality=90)
        batch = Path(scratch) / "batch.npy"
        np.save(batch, as_network_batch(np.stack([preprocess(p)[0] for p in pictures] * 8)))
        for _ in range(rounds):
            for workers, found in bare.items():
                found.append(bare_rate(settings, settings.model.id, workers, batch, 4.0, threads=1))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
        try:
            for turn in range(rounds):
                for workers in rates:
                    output = Path(scratch) / f"out{turn}-{workers}"
                    job = make_job(root, output, settings, workers=2, chunk_files=32)
                    seen: list[tuple[float, int]] = []
                    run_on_ray(
                        job,
                        "local",
                        workers=workers,
                        progress=lambda s, seen=seen: seen.append((time.perf_counter(), s.files)),
                    )
                    # Bunched reports at the end would flatter; a chunk is small against what is counted.
                    warm = next(i for i, (_, n) in enumerate(seen) if n > files / 4)
                    rates[workers].append((seen[-1][1] - seen[warm][1]) / (seen[-1][0] - seen[warm][0]))
        finally:
            ray.shutdown()
    one, two = (statistics.median(rates[n]) for n in (1, 2))
    bare_one, bare_two = (statistics.median(bare[n]) for n in (1, 2))
    return {
        "files": files,
        "files_per_second": {"1": one, "2": two},
        "efficiency": two / (2 * one),
        "bare_images_per_second": {"1": bare_one, "2": bare_two},
        "bare_efficiency": bare_two / (2 * bare_one),
        "rounds": rates,
    }


def main() -> None:
    """Entry point."""
    from brainmri.config import load_settings

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    print(json.dumps(measure_efficiency(load_settings(), options.files, options.rounds), indent=2))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
