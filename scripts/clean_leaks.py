"""Write data/splits/clean_leaks.csv: held-out images that show a slice which the networks trained on.

    python scripts/clean_leaks.py

The splits joined copies and left-right mirrored copies within a collection. Two things find more. An audit of all
collections together knows slices that are turned, and other collections' copies. The network's own crops, compared in
eight orientations, know copies that were cropped, scaled or shaded otherwise, and a second scan of the same place of
the same head: down to `MIN_CORRELATION` all pairs looked at by eye were that, below it other heads begin. Most of what
the audit lists are repeats, which clean val and test leave out, but the official test holds some of these as well.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from brainmri.audit import ORIENTATIONS, audit, reorient
from brainmri.config import load_settings
from brainmri.data import KAGGLE, SPLITS_DIRECTORY, read_manifest, read_pixels
from brainmri.imaging import preprocess
from brainmri.runs import thumbnail

MIN_CORRELATION = 0.966
SIDE = 32
COLLECTIONS = {KAGGLE: "clean_split"} | dict.fromkeys(
    ("lgg", "brisc_notumor", "br35h_tumour", "colin27", "elsewhere"), "split"
)
"""Name -> split column; the first one's training images are the first to be named as the original."""


def read_collections() -> pd.DataFrame:
    """All images that have a split: ``collection``, ``path``, ``file``, ``label``, ``split``."""
    root = load_settings().data.root
    tables = []
    for name, column in COLLECTIONS.items():
        table = read_manifest(SPLITS_DIRECTORY / f"{name}.csv", root.parent / name, column)
        tables.append(table.loc[table["split"] != "", ["path", "file", "label", "split"]].assign(collection=name))
    return pd.concat(tables, ignore_index=True)


def audited_leaks(table: pd.DataFrame) -> pd.DataFrame:
    """Held-out images that an audit puts in one group with a training image."""
    named = table.assign(path=table["collection"] + "/" + table["path"])
    found = audit(named, name="all collections").images[["path", "group"]]
    joined = named.merge(found, on="path", validate="one_to_one").assign(path=table["path"])
    trained = joined[joined["split"] == "train"].drop_duplicates("group").set_index("group")
    held_out = joined[(joined["split"] != "train") & joined["group"].isin(trained.index)]
    held_out = held_out[[np.ptp(read_pixels(file)) > 0 for file in held_out["file"]]]  # black ones are all alike
    return held_out.assign(
        copy_collection=held_out["group"].map(trained["collection"]), copy_of=held_out["group"].map(trained["path"])
    )


def similar_crops(table: pd.DataFrame) -> pd.DataFrame:
    """Validation and test images whose crop is a training image's."""
    rows = table[table["split"].isin(("train", "val", "test"))].reset_index(drop=True)
    crops = np.stack([thumbnail(preprocess(read_pixels(file), 2 * SIDE)[0], SIDE) for file in rows["file"]])
    train, held_out = np.flatnonzero(rows["split"] == "train"), np.flatnonzero(rows["split"] != "train")
    asked = crops[held_out].reshape(-1, SIDE, SIDE)
    turned = (reorient(asked, orientation).reshape(len(asked), -1) for orientation in range(len(ORIENTATIONS)))
    nearest = np.maximum.reduce([each @ crops[train].T for each in turned])
    best = nearest.max(axis=1) >= MIN_CORRELATION
    copies = rows.iloc[train[nearest.argmax(axis=1)[best]]]
    return rows.iloc[held_out[best]].assign(
        copy_collection=copies["collection"].to_numpy(), copy_of=copies["path"].to_numpy()
    )


def clean_leaks() -> pd.DataFrame:
    """Columns ``collection``, ``path``, ``split`` (never train), ``copy_collection``, ``copy_of``, ``found_by``."""
    table = read_collections()
    found = pd.concat([audited_leaks(table).assign(found_by="audit"), similar_crops(table).assign(found_by="crop")])
    columns = ["collection", "path", "split", "copy_collection", "copy_of", "found_by"]
    return found.drop_duplicates(["collection", "path"])[columns].sort_values(["collection", "path"], ignore_index=True)


if __name__ == "__main__":
    clean_leaks().to_csv(SPLITS_DIRECTORY / "clean_leaks.csv", index=False)
