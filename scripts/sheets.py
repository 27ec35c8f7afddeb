"""How often a second bright region (`imaging.RIVAL_LIMIT`) tells a sheet of several slices from one slice.

    python scripts/sheets.py

Training slices of all collections, and sheets put together from them. The limit was chosen on these; no test split is
read.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from brainmri.config import load_settings
from brainmri.data import SPLITS_DIRECTORY, read_manifest, select_split
from brainmri.imaging import RIVAL_LIMIT, preprocess

COLLECTIONS = {
    "brain_tumor_mri": "clean_split",
    "lgg": "split",
    "brisc_notumor": "split",
    "br35h_tumour": "split",
    "colin27": "split",
    "elsewhere": "split",
}
GRIDS = ((1, 2), (2, 1), (2, 2), (2, 3), (3, 3), (4, 4))
GAPS = ((0, 0), (4, 0), (4, 255), (10, 0))
"""Pixels between slices, and their grey value."""
SHEETS = 50


def main() -> None:
    """Measure and print."""
    rng, root = np.random.default_rng(0), load_settings().data.root
    n, over, found = 0, 0, {grid: [] for grid in GRIDS}
    for name, column in COLLECTIONS.items():
        table = read_manifest(SPLITS_DIRECTORY / f"{name}.csv", root.parent / name, column)
        slices = [np.asarray(Image.open(file).convert("L")) for file in select_split(table, "train")["file"]]
        n, over = n + len(slices), over + sum(is_sheet(pixels) for pixels in slices)
        if len(slices) > 500:
            for grid in GRIDS:
                found[grid] += [is_sheet(sheet(slices, grid, rng)) for _ in range(SHEETS)]
    print(f"{over} of {n} training slices are over {RIVAL_LIMIT:.0%}")
    for (rows, columns), hits in found.items():
        print(f"{rows} x {columns}: {np.mean(hits):.2f} of {len(hits)} sheets")


def is_sheet(pixels: np.ndarray) -> bool:
    """What the pipeline would say."""
    return preprocess(pixels)[1].rival > 100 * RIVAL_LIMIT


def sheet(slices: list[np.ndarray], grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Neighbouring slices of the list in a grid, with a gap between them."""
    (rows, columns), side = grid, int(rng.choice([128, 256]))
    gap, grey = GAPS[rng.integers(len(GAPS))]
    step, first = side + gap, rng.integers(len(slices))
    page = np.full((rows * step - gap, columns * step - gap), grey, np.uint8)
    for k in range(rows * columns):
        top, left = k // columns * step, k % columns * step
        one = Image.fromarray(slices[(first + k) % len(slices)]).resize((side, side))
        page[top : top + side, left : left + side] = one
    return page


if __name__ == "__main__":
    main()
