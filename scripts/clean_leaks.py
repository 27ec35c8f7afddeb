"""Write data/splits/clean_leaks.csv: images outside clean train whose slice is in clean train, turned.

The clean split joined copies and left-right mirrored copies; the saved audit also knows those that are upside down.
Most are repeats, which clean val and test leave out, but the official test holds some of these as well.

python scripts/clean_leaks.py
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from brainmri.data import SPLITS_DIRECTORY

ROOT = Path(__file__).resolve().parent.parent


def clean_leaks() -> pd.DataFrame:
    """Columns ``path``, ``clean_split`` (never train), ``copy_of`` (a training image of the same slice)."""
    groups = pd.read_csv(ROOT / "evaluations" / "audit-brain-tumor-mri" / "groups.csv.gz", dtype=str)
    split = pd.read_csv(SPLITS_DIRECTORY / "brain_tumor_mri.csv", dtype=str)[["path", "clean_split"]]
    images = groups[["path", "group"]].merge(split, on="path", validate="one_to_one")
    trained = images[images["clean_split"] == "train"].drop_duplicates("group").set_index("group")["path"]
    held_out = images[(images["clean_split"] != "train") & images["group"].isin(trained.index)]
    held_out = held_out.assign(copy_of=held_out["group"].map(trained))
    return held_out[["path", "clean_split", "copy_of"]].sort_values("path", ignore_index=True)


if __name__ == "__main__":
    clean_leaks().to_csv(SPLITS_DIRECTORY / "clean_leaks.csv", index=False)
