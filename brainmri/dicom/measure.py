"""How good the series rule is: measured on stacks whose truth is known, its one number chosen on others.

A stack is one sequence of one patient. Each gives two questions: the whole of it, which holds a tumour, and its
tumour-free slices alone, whose right answer is "no tumour".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brainmri.data import read_manifest, read_slice, select_split
from brainmri.dicom.series import MIN_RUN, answer_series
from brainmri.errors import DataError
from brainmri.types import CLASS_NAMES, CLASS_TITLES, NO_TUMOR

if TYPE_CHECKING:
    from brainmri.inference import Classifier

MIN_SLICES = 3
"""Shorter stacks are left out: there is little to put together."""
CANDIDATES = (1, 2, 3, 4)
_BATCH = 16


@dataclass(frozen=True)
class SliceTruth:
    """The answer to one slice (what `answer_series` reads) and what it shows."""

    label: str | None
    decision: str
    probabilities: dict[str, float]
    truth: str


@dataclass(frozen=True)
class Stack:
    """A question to the series rule: slices in order, and the right answer."""

    patient: str
    sequence: str
    truth: str
    slices: tuple[SliceTruth, ...]


@dataclass(frozen=True)
class Outcomes:
    """What the rule said to some stacks, one entry a stack."""

    stacks: tuple[Stack, ...]
    labels: tuple[str | None, ...]

    def where(self, truth: str) -> Outcomes:
        """Those with a tumour, or those without."""
        kept = [i for i, s in enumerate(self.stacks) if s.truth == truth]
        return Outcomes(tuple(self.stacks[i] for i in kept), tuple(self.labels[i] for i in kept))

    @property
    def right(self) -> np.ndarray:
        """Bool (n_stacks,): named as it is."""
        return np.array([a == s.truth for a, s in zip(self.labels, self.stacks, strict=True)], bool)

    @property
    def unanswered(self) -> np.ndarray:
        """Bool (n_stacks,): no answer."""
        return np.array([a is None for a in self.labels], bool)

    @property
    def net(self) -> int:
        """Right answers minus wrong ones: what the choice on validation maximises; no answer counts nothing."""
        return int(2 * self.right.sum() + self.unanswered.sum() - len(self.labels))


def read_stacks(
    classifier: Classifier,
    manifest: Path | str,
    images: Path | str,
    split: str,
    progress: Callable[[int, int], None] | None = None,
) -> list[Stack]:
    """Answer every slice of a split and gather the stacks.

    Parameters
    ----------
    manifest : path
        CSV with ``path``, ``label``, ``split``, ``patient``, ``sequence`` and ``slice`` (the order).

    Raises
    ------
    DataError
        Columns, images or stacks are missing.
    """
    from brainmri.runs import answers_table

    table = read_manifest(manifest, images)
    missing = [c for c in ("patient", "sequence", "slice") if c not in table.columns]
    if missing:
        raise DataError(f"{Path(manifest).name}: no column {', '.join(missing)}; stacks cannot be told apart")
    table = select_split(table, split)
    answers = []
    for start in range(0, len(table), _BATCH):
        slices = [read_slice(file) for file in table["file"].iloc[start : start + _BATCH]]
        answered = answers_table(classifier, classifier.predict_slices(slices))
        answers += answered.to_dict("records")
        if progress:
            progress(min(start + _BATCH, len(table)), len(table))
    gathered: dict[tuple[str, str], list[tuple[int, SliceTruth]]] = {}
    for row, answer in zip(table.to_dict("records"), answers, strict=True):
        decided = answer["predicted"] if answer["decision"] == "class" else None
        of_slice = SliceTruth(
            decided, answer["decision"], {c: float(answer[f"p_{c}"]) for c in CLASS_NAMES}, row["label"]
        )
        gathered.setdefault((row["patient"], row["sequence"]), []).append((int(row["slice"]), of_slice))
    stacks = []
    for (patient, sequence), members in gathered.items():
        ordered = tuple(s for _, s in sorted(members, key=lambda pair: pair[0]))
        healthy = tuple(s for s in ordered if s.truth == NO_TUMOR)
        tumours = {s.truth for s in ordered} - {NO_TUMOR}
        if len(tumours) == 1 and len(ordered) >= MIN_SLICES:
            stacks.append(Stack(patient, sequence, tumours.pop(), ordered))
        if len(healthy) >= MIN_SLICES:
            stacks.append(Stack(patient, sequence, NO_TUMOR, healthy))
    if not stacks:
        raise DataError(f"{Path(manifest).name}: split {split} holds no stack of {MIN_SLICES} slices or more")
    return stacks


def apply_rule(stacks: Sequence[Stack], min_run: int) -> Outcomes:
    """What the series rule says to stacks."""
    return Outcomes(tuple(stacks), tuple(answer_series(s.slices, min_run=min_run).label for s in stacks))


def choose_min_run(stacks: Sequence[Stack]) -> int:
    """The candidate with most right minus wrong answers; of equals the smallest."""
    return max(CANDIDATES, key=lambda k: (apply_rule(stacks, k).net, -k))


def figures(validation: Sequence[Stack], test: Sequence[Stack], name: str, model_id: str) -> str:
    """Write what was measured as Markdown: the choice on validation, then test with the rule in force."""
    best = choose_min_run(validation)
    lines = [
        f"Measured with `{model_id}` on {name}: {_size(validation)} to choose on, {_size(test)} to report on.",
        "",
        "| Slices in a row needed | right | no answer | wrong | right minus wrong (validation) |",
        "|---|---|---|---|---|",
    ]
    for k in CANDIDATES:
        said = apply_rule(validation, k)
        right, unanswered = int(said.right.sum()), int(said.unanswered.sum())
        mark = " (chosen)" if k == best else ""
        lines.append(f"| {k}{mark} | {right} | {unanswered} | {len(said.labels) - right - unanswered} | {said.net} |")
    lines += ["", f"On test stacks, with {MIN_RUN} in a row:", ""]
    lines += ["| Stacks | right | no answer | another tumour | wrong about tumour or none |", "|---|---|---|---|---|"]
    outcomes = apply_rule(test, MIN_RUN)
    for truth in sorted({s.truth for s in test}, key=lambda t: t == NO_TUMOR):
        said = outcomes.where(truth)
        n, right, unanswered = len(said.labels), int(said.right.sum()), int(said.unanswered.sum())
        title = "without a tumour" if truth == NO_TUMOR else f"with {CLASS_TITLES[truth].lower()}"
        other = 0 if truth == NO_TUMOR else sum(a not in (truth, NO_TUMOR, None) for a in said.labels)
        wrong = n - right - unanswered - other
        lines.append(f"| {n} {title} | {_share(said)} | {unanswered} | {other} | {wrong} |")
    peaks = [
        s.slices[answer_series(s.slices).runs[0].peak].truth == s.truth
        for s, label in zip(outcomes.stacks, outcomes.labels, strict=True)
        if label == s.truth != NO_TUMOR
    ]
    lines += ["", f"Where the tumour was named rightly, the strongest slice shows it in {sum(peaks)} of {len(peaks)}."]
    return "\n".join(lines)


def _size(stacks: Sequence[Stack]) -> str:
    return f"{len(stacks)} stacks of {len({s.patient for s in stacks})} patients"


def _share(said: Outcomes) -> str:
    """Right answers, with the 95 % interval over patients: two sequences of one patient are not two patients."""
    from brainmri.evaluation import GroupBootstrap

    interval = GroupBootstrap([s.patient for s in said.stacks]).mean(said.right.astype(float))
    shown = f" (95 % interval {interval[0]:.0%} to {interval[1]:.0%})" if interval else ""
    return f"{int(said.right.sum())}, {said.right.mean():.0%}{shown}"
