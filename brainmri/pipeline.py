"""The one workflow: slices in, answers (and explanations) out. Page, command line, batch and PACS all call it."""

from __future__ import annotations

from collections.abc import Sequence

from brainmri.inference import Classifier
from brainmri.types import CLASS_NAMES, Analysis, MRISlice


def analyse(classifier: Classifier, slices: Sequence[MRISlice]) -> list[Analysis]:
    """Predict and decide for each slice; one forward pass for all of them.

    Returns
    -------
    list of Analysis
        In the order of ``slices``.
    """
    if not slices:
        return []
    prediction = classifier.predict([s.pixels for s in slices])
    results = []
    for i, mri_slice in enumerate(slices):
        probabilities = {name: float(p) for name, p in zip(CLASS_NAMES, prediction.probabilities[i], strict=True)}
        decision = prediction.decisions[i]
        results.append(
            Analysis(
                slice=mri_slice,
                decision=decision,
                label=max(probabilities, key=probabilities.__getitem__) if decision == "class" else None,
                prediction_set=prediction.prediction_sets[i],
                probabilities=probabilities,
                ood_score=float(prediction.ood_score[i]),
                ood_threshold=prediction.ood_threshold,
                transform=prediction.transforms[i],
                network_input=prediction.inputs[i],
                feature_maps=prediction.feature_maps[i],
                logits=prediction.logits[i],
                model_id=prediction.model_id,
                weights_sha256=prediction.weights_sha256,
                engine=prediction.engine,
                precision=prediction.precision,
                elapsed_ms=prediction.elapsed_ms / len(slices),
            )
        )
    return results
