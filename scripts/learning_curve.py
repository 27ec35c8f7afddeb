"""A recipe and manifests that leave part of the training patients out, all else equal: what would more patients buy?

    python scripts/learning_curve.py 4 runs/quarter
    brainmri train --recipe runs/quarter/quarter.yaml --weights vgg16.npz --no-masks --epochs 12 --model-id quarter

One patient in PART stays; validation and test are untouched. As many views are drawn in all where epochs are PART times
the 3 a stage of `fine-tuned-without-masks`. Parts are nested: the quarter lies in the half. figshare lists a
patient's slices next to each other, at most 38 of them, so that blocks of 38 indices stand for patients; for healthy
slices groups of copies do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import yaml

from brainmri.data import SPLITS_DIRECTORY
from brainmri.recipes import load_recipe

RECIPE, PATIENT_SLICES = "fine-tuned", 38


def main() -> None:
    """Write the manifests and the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", type=int, help="one patient in how many stays")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    recipe = load_recipe(RECIPE).model_dump(mode="json", exclude_defaults=True)
    recipe |= {"name": options.output.name, "description": f"{RECIPE} on one training patient in {options.part}."}
    for source in recipe["sources"]:
        table = pd.read_csv(SPLITS_DIRECTORY / source["manifest"], dtype=str, keep_default_na=False)
        split = source.get("split_column", "split")
        training = table[split] == "train"
        stays = patient_numbers(table) % options.part == 0
        if source["name"] != "colin27":  # one head
            table.loc[training & ~stays, split] = "left out"
        manifest = options.output / source["manifest"]
        table.to_csv(manifest, index=False)
        print(f"{source['name']}: {(table[split] == 'train').sum()} of {training.sum()} training images")
        source["manifest"] = str(manifest.resolve())
        if "per_epoch" in source:
            source["per_epoch"] = round(source["per_epoch"] / options.part)
    (options.output / f"{options.output.name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def patient_numbers(table: pd.DataFrame) -> pd.Series:
    """A number for each row, the same for slices of one patient as far as that is known."""
    if "patient" in table:
        return table["patient"].rank(method="dense").astype(int)
    known = table.get("figshare_index", pd.Series("", index=table.index))
    groups = table["group"].rank(method="dense").astype(int)
    blocks = pd.to_numeric(known, errors="coerce") // PATIENT_SLICES
    return blocks.fillna(groups).astype(int)


if __name__ == "__main__":
    main()
