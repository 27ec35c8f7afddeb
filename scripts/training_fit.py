"""How well networks fit clean val and fresh views of their own training slices, side by side, into docs/model.md.

    python scripts/training_fit.py runs/foundation/foundation.json models/vgg16-brainmri.json [--recipe release]

Networks measured before keep their columns (evaluations/training_fit.csv), all of them on the sources and views of one
recipe. No test split is read: this is for choosing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score, log_loss, roc_auc_score

from brainmri import augment
from brainmri.config import load_settings
from brainmri.decision import softmax
from brainmri.documents import write_tables
from brainmri.model import load_network, logits_of, read_card
from brainmri.recipes import load_recipe
from brainmri.types import CLASS_NAMES, NO_TUMOR
from brainmri.views import draw_view, epoch_indices, load_training_set, resize

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "evaluations" / "training_fit.csv"
NONE = CLASS_NAMES.index(NO_TUMOR)
SIZE, N_VIEWS, DRAW = 128, 400, 99
DEFAULT = "release"


def main() -> None:
    """Measure each card's network and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cards", type=Path, nargs="+")
    parser.add_argument("--recipe", default=DEFAULT, help="whose sources and views")
    options = parser.parse_args()
    recipe, root = load_recipe(options.recipe), load_settings().data.root
    logged = read_log(LOG, recipe.name)
    training, val = (load_training_set(recipe, root, split) for split in ("train", "val"))

    index = epoch_indices(training, recipe, 0)[:N_VIEWS]
    share = recipe.stages[-1].painted_away
    drawn = [draw_view(training, recipe, int(i), (DRAW, k), SIZE, share) for k, i in enumerate(index)]
    views, targets = (np.stack([view[k] for view in drawn]) for k in (0, 2))
    unpainted = training.targets[index]
    views = views / np.float32(255)
    relabelled = (targets[:, NONE] == 1) != (unpainted[:, NONE] == 1)

    rng = np.random.default_rng(0)
    kaggle = val.source == recipe.sources[0].name
    outlined = [i for i in val.outlined if kaggle[i]]
    painted = {i: augment.counterfactual(val.images[i], val.masks[i], rng, away=True) for i in outlined}
    painted = {i: image for i, image in painted.items() if image is not None}
    y_true, tumour = val.targets.argmax(axis=1), val.targets[:, NONE] == 0

    columns = {}
    for path in options.cards:
        network = load_network(read_card(path.stem, path.parent), path.parent)
        logits = logits_of(network, np.stack([resize(image, SIZE) / 255 for image in val.images]))
        away = logits_of(network, np.stack([resize(image, SIZE) / 255 for image in painted.values()]))
        on_views = logits_of(network, views)
        p, rows = softmax(logits.astype(float)), kaggle
        right = targets[np.arange(len(targets)), on_views.argmax(axis=1)] == 1
        figures = {
            "clean val: accuracy": (logits.argmax(axis=1) == y_true)[rows].mean(),
            "clean val: macro F1": f1_score(y_true[rows], logits[rows].argmax(axis=1), average="macro"),
            "clean val: log loss before temperature": log_loss(y_true[rows], p[rows]),
            "clean val: tumour AUC": roc_auc_score(tumour[rows], 1 - p[rows, NONE]),
            "clean val, tumour painted away: likeliest class changes": (
                away.argmax(axis=1) != logits[list(painted)].argmax(axis=1)
            ).mean(),
        }
        for source in recipe.sources[1:]:
            here = val.source == source.name
            if not here.any():
                continue
            if 0 < tumour[here].sum() < here.sum():
                figures[f"{source.name} val: tumour AUC"] = roc_auc_score(tumour[here], 1 - p[here, NONE])
            else:
                figures[f"{source.name} val: tumour or none right"] = ((p[here, NONE] < 0.5) == tumour[here]).mean()
        figures["fresh views of training slices: right"] = right.mean()
        figures["the same, painted away or pasted in"] = right[relabelled].mean()
        columns[path.stem] = figures
    table = joined(logged, columns)
    write_log(LOG, recipe.name, table)
    lines = ["| | " + " | ".join(table) + " |", "|---" * (len(table.columns) + 1) + "|"]
    for name, row in table.iterrows():
        lines.append(f"| {name} | " + " | ".join("–" if np.isnan(v) else f"{v:.3f}" for v in row) + " |")
    write_tables(ROOT / "docs" / "model.md", {"fit": "\n".join(lines)})


def read_log(log: Path, recipe: str) -> pd.DataFrame:
    """What was measured before, a column a network; exits where it was on another recipe's sources and views."""
    if not log.is_file():
        return pd.DataFrame()
    table = pd.read_csv(log, index_col="figure", dtype=str)
    # Columns of a log that does not say were measured with the default.
    of = table.loc["recipe"].fillna(DEFAULT) if "recipe" in table.index else pd.Series(DEFAULT, table.columns)
    if other := sorted(set(of) - {recipe}):
        sys.exit(
            f"{log.name}: measured with --recipe {', '.join(other)}, whose figures do not compare with {recipe}'s; "
            "pass that, or move the file away and measure every network anew"
        )
    return table.drop(index="recipe", errors="ignore").astype(float)


def write_log(log: Path, recipe: str, table: pd.DataFrame) -> None:
    """What `read_log` reads."""
    named = pd.DataFrame([[recipe] * len(table.columns)], ["recipe"], table.columns)
    pd.concat([named, table.round(6)]).to_csv(log, index_label="figure")


def joined(logged: pd.DataFrame, columns: dict[str, dict[str, float]]) -> pd.DataFrame:
    """The log with new columns; rows that only one of the two has stay."""
    table = logged.reindex(logged.index.union(list(next(iter(columns.values()))), sort=False))
    for name, measured in columns.items():
        table[name] = pd.Series(measured)
    return table


if __name__ == "__main__":
    main()
