"""Cut a healthy head into slices for training: data/colin27/*.png and data/splits/colin27.csv.

The head is Colin27 (Holmes et al., J Comput Assist Tomogr 1998), one healthy man's T1, 27 scans averaged, 1 mm.
Debian's package mricron-data has it as ``ch2.nii.gz``:

    apt-get download mricron-data && dpkg-deb -x mricron-data_*.deb mricron
    python scripts/healthy_head.py mricron/usr/share/mricron/templates/ch2.nii.gz data/colin27
"""

from __future__ import annotations

import argparse
import gzip
import struct
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from brainmri.data import SPLITS_DIRECTORY

PLANES = {"sa": (0, range(25, 157)), "co": (1, range(20, 196)), "ax": (2, range(8, 160))}
"""Axis of the volume and the slices that show brain, in the manifest's words for a plane."""


def main() -> None:
    """Write one PNG a slice, and the manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    volume = read_nifti(arguments.volume)
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for plane, (axis, numbers) in PLANES.items():
        for k in numbers:
            name = f"{plane}_{k:03}"
            # Voxels run from right to left, back to front, foot to head: transposed and turned upright.
            Image.fromarray(np.take(volume, k, axis).T[::-1]).save(arguments.output / f"{name}.png")
            rows.append({"path": f"{name}.png", "label": "notumor", "plane": plane, "group": name, "split": "train"})
    pd.DataFrame(rows).to_csv(SPLITS_DIRECTORY / "colin27.csv", index=False)
    print(f"{arguments.output}: {len(rows)} slices")


def read_nifti(path: Path) -> np.ndarray:
    """The voxels of an 8-bit NIfTI-1 file, uint8 (columns, rows, slices)."""
    data = gzip.decompress(path.read_bytes())
    n_axes, *shape = struct.unpack("<8h", data[40:56])
    kind, offset = struct.unpack("<h", data[70:72])[0], int(struct.unpack("<f", data[108:112])[0])
    if kind != 2 or n_axes != 3:
        raise SystemExit(f"{path}: data type {kind}, {n_axes} axes; expected 2 (uint8) and 3")
    return np.frombuffer(data, np.uint8, int(np.prod(shape[:3])), offset).reshape(shape[:3], order="F")


if __name__ == "__main__":
    main()
