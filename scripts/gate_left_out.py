"""What the gate makes of pictures of a kind that it was not fitted to: the table in docs/evaluation.md.

    python scripts/gate_left_out.py

Each kind of drawn pictures is left out of the fit in turn, and fresh ones of it are asked about; so are photographs, of
which only parts fill outlines in the fit, and training heads that no fit has seen. No test split is read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from brainmri import suite
from brainmri.config import load_settings
from brainmri.data import KAGGLE, SPLITS_DIRECTORY, select_split
from brainmri.decision import DecisionRule
from brainmri.documents import write_tables
from brainmri.gate import Gate
from brainmri.imaging import preprocess
from brainmri.inference import load_classifier
from brainmri.outliers import KINDS, photograph_crop
from brainmri.runs import read_rows

PAGE = Path(__file__).resolve().parent.parent / "docs" / "evaluation.md"
N, FRESH = 150, 1000


def main() -> None:
    """Fit, ask, write the table."""
    settings = load_settings()
    classifier = load_classifier(settings.model.id, settings.model.directory, rule=DecisionRule())
    table = read_rows(SPLITS_DIRECTORY / f"{KAGGLE}.csv", settings.data.root, "clean_split")
    train, val = select_split(table, "train"), select_split(table, "val")
    val = val[(val["seen_in_training"] != "yes") & ~suite.is_head_ct(val)]
    held_out = suite.forward_inputs(classifier, suite.network_inputs(val["file"]))[1]
    material = suite.gate_material(classifier, [train, *suite.other_training(settings.data.root)])
    unseen = suite.network_inputs(suite.gate_rows(train, 0, main=True)[0]["file"][suite.N_HEADS :])

    def fresh(draw) -> np.ndarray:
        rngs = [np.random.default_rng([FRESH, i]) for i in range(N)]
        pictures = [np.clip(draw(rng, unseen[rng.integers(len(unseen))]), 0, 1) for rng in rngs]
        inputs = [preprocess(np.rint(255 * picture).astype(np.uint8))[0] for picture in pictures]
        return suite.forward_inputs(classifier, np.stack(inputs))[1]

    def fit_without(kind) -> Gate:
        drawn = material["drawn outliers"]
        kept = np.array([KINDS[i % len(KINDS)] is not kind for i in range(len(drawn))])
        return suite.fit_gate_to(material | {"drawn outliers": drawn[kept]}, held_out)

    def rejected(gate: Gate, pictures: np.ndarray) -> str:
        return f"{(gate.margins(pictures) > gate.limits).any(axis=1).mean():.3f}"

    whole = fit_without(None)
    lines = [f"| {N} fresh pictures of a kind | Rejected | Rejected, the kind left out of the fit |", "|---|---|---|"]
    gates = {}
    for kind in dict.fromkeys(KINDS):
        gates[kind], pictures = fit_without(kind), fresh(kind)
        name = kind.__name__.strip("_").replace("_", " ")
        lines.append(f"| {name} | {rejected(whole, pictures)} | {rejected(gates[kind], pictures)} |")
        print(lines[-1], flush=True)
    filled = next(kind for kind in gates if kind.__name__ == "_object")
    pictures = fresh(photograph_crop)
    lines.append(f"| photographs | {rejected(whole, pictures)} | {rejected(gates[filled], pictures)} |")
    heads = suite.forward_inputs(classifier, unseen)[1]
    lines.append(f"| brain MRI, wrongly: {len(heads)} unseen training slices | {rejected(whole, heads)} | – |")
    write_tables(PAGE, {"left-out": "\n".join(lines)})


if __name__ == "__main__":
    main()
