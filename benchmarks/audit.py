"""What an audit costs as a set grows, and what it finds: 1,000, 7,023 and 70,000 images, written into docs/audit.md.

    python benchmarks/audit.py [--images data/brain_tumor_mri] [--sizes 1000 7023 70000] [--threads 2] [--write]

Sets larger than the folder are filled with augmented copies (mirrored, darker, noisy, recompressed). Each size runs in
a process of its own, so that its peak memory is its own. Without ``--write`` the table is only printed. Where the
folder has a ``manifest.csv`` that knows which images show the same slice, what is found is held to it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from brainmri.audit import Audit, audit, check
from brainmri.config import load_settings
from brainmri.data import read_folder
from brainmri.documents import write_tables

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs/audit.md"


def augmented(job: tuple[str, str, int]) -> None:
    """One changed copy of a picture."""
    source, target, seed = job
    rng = np.random.default_rng(seed)
    with Image.open(source) as image:
        pixels = np.asarray(image.convert("L"), np.float32)
    pixels = 255 * (pixels / 255 * rng.uniform(0.7, 1.0)) ** rng.uniform(0.85, 1.2) + rng.normal(0, 3, pixels.shape)
    pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target, quality=int(rng.integers(50, 95)))


def make_set(images: Path, n: int, folder: Path) -> pd.DataFrame:
    """``n`` rows: the folder's own images, then augmented copies of them."""
    table = read_folder(images)
    if n <= len(table):
        return table.sample(n, random_state=0).reset_index(drop=True) if n < len(table) else table
    copies = table.sample(n - len(table), replace=True, random_state=0).reset_index(drop=True)
    targets = [str(folder / f"{i:06d}.jpg") for i in range(len(copies))]
    with ProcessPoolExecutor() as pool:
        jobs = zip(copies["file"], targets, range(len(copies)), strict=True)
        for _ in pool.map(augmented, jobs, chunksize=64):
            pass
    copies["file"], copies["path"] = targets, [Path(t).name for t in targets]
    return pd.concat([table, copies], ignore_index=True)


def measure(images: Path, n: int, threads: int) -> dict:
    """Audit one size in a fresh process; its cost, and what it found."""
    with tempfile.TemporaryDirectory() as folder:
        make_set(images, n, Path(folder)).to_csv(f"{folder}/set.csv", index=False)
        command = [sys.executable, __file__, "--child", f"{folder}/set.csv", "--threads", str(threads)]
        allowed = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        subprocess.run(command, check=True, env=os.environ | allowed)
        found = Audit.load(f"{folder}/found")
    known = images / "manifest.csv"
    row = {
        "n": n,
        **found.summary["cost"],
        "groups": found.summary["n_groups"],
        "pairs": len(found.pairs),
    }
    if known.is_file() and n == len(read_folder(images)):
        row["check"] = check(found, pd.read_csv(known, dtype=str, keep_default_na=False).set_index("path"))
    return row


def report(rows: list[dict], threads: int) -> str:
    """The rows as Markdown."""
    lines = ["| images | seconds | CPU seconds | µs per image and log₂ n | peak memory | slices | pairs |"]
    lines.append("|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        each = 1e6 * row["cpu_seconds"] / row["n"] / np.log2(row["n"])
        lines.append(
            f"| {row['n']:,} | {row['seconds']:.0f} | {row['cpu_seconds']:.0f} | {each:.0f} | "
            f"{row['peak_memory_mb']:,.0f} MB | {row['groups']:,} | {row['pairs']:,} |"
        )
    lines.append(f"\n{threads} threads, Python {platform.python_version()}, {date.today()}.")
    for found in (row["check"] for row in rows if "check" in row):
        lines.append(
            f"\nHeld to a manifest that knows which images show the same slice: **{found['found_share']:.1%}** of the "
            f"{found['n_known']:,} pairs across the official split are in one group. Of {found['n_reported']:,} "
            f"reported pairs {found['n_wrong']} are two slices of figshare: **{found['wrong_share']:.2%}**, or "
            f"{found['wrong_share_of_comparable']:.2%} of the {found['n_comparable']:,} whose figshare numbers are "
            "both known."
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 7023, 70000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        table = pd.read_csv(arguments.child, dtype=str, keep_default_na=False)
        audit(table, threads=arguments.threads).save(arguments.child.parent / "found")
        return
    images = arguments.images or load_settings().data.root
    rows = []
    for n in arguments.sizes:
        rows.append(measure(images, n, arguments.threads))
        print(json.dumps(rows[-1]), file=sys.stderr)
    text = report(rows, arguments.threads)
    print(text)
    if arguments.write:
        write_tables(DOC, {"figures": text})


if __name__ == "__main__":
    main()
