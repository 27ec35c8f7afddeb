"""Where a class logit finds its evidence in a slice: eight methods, one file each over a tiny base.

Every method explains a logit (a saturated softmax has no gradient left) of any class, never changes the network, is
deterministic under a seed, and gives float32 maps in [0, 1] in the original image's coordinates that are zero where
there is no positive evidence. None of them is a segmentation.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brainmri.errors import ExplanationError
from brainmri.explain import (
    grad_cam,
    grad_cam_plus_plus,
    hires_cam,
    integrated_gradients,
    layer_cam,
    occlusion,
    score_cam,
    smooth_grad,
)
from brainmri.explain.base import CONVOLUTIONS, Batch, Explainer, Method, as_targets, class_index, draw
from brainmri.types import CLASS_NAMES, Analysis, Explanation

if TYPE_CHECKING:
    from brainmri.inference import Classifier

METHODS: Mapping[str, Method] = {
    module.METHOD.name: module.METHOD
    for module in (
        grad_cam,
        grad_cam_plus_plus,
        hires_cam,
        layer_cam,
        score_cam,
        integrated_gradients,
        smooth_grad,
        occlusion,
    )
}
"""By name, in the order shown."""

__all__ = ["CONVOLUTIONS", "METHODS", "Batch", "Explainer", "Method", "explain", "explainer_of", "find_method"]

_explainers: weakref.WeakKeyDictionary[Classifier, Explainer] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def find_method(name: str) -> Method:
    """Look a method up.

    Raises
    ------
    ExplanationError
        Unknown; lists those that exist.
    """
    if name not in METHODS:
        raise ExplanationError(f"no method {name!r}; methods: {', '.join(METHODS)}")
    return METHODS[name]


def explainer_of(classifier: Classifier, directory: Path | str | None = None) -> Explainer:
    """The explainer bound to a classifier; made once. ``directory`` (of its weights) defaults to the settings'."""
    with _making:
        if classifier not in _explainers:
            if directory is None:
                from brainmri.config import load_settings

                directory = load_settings().model.directory
            _explainers[classifier] = Explainer.of(classifier, directory)
        return _explainers[classifier]


def explain(
    classifier: Classifier,
    analyses: Sequence[Analysis],
    methods: Sequence[str] = ("grad-cam",),
    target_classes: Sequence[str | None] = (None,),
    *,
    layer_name: str | None = None,
    seed: int = 0,
    allow_rejected: bool = False,
    directory: Path | str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[tuple[Explanation, ...]]:
    """Map where class logits find their evidence in slices that were analysed.

    Parameters
    ----------
    classifier : Classifier
        That made ``analyses``. Not modified.
    analyses : sequence of Analysis
        Explained in one batch.
    methods : sequence of str
        Keys of ``METHODS``.
    target_classes : sequence of str or None
        Class names; None is the class with the largest logit.
    layer_name : str, optional
        A convolutional layer, default block5_conv3; for CAM methods only.
    seed : int
        Of the noise of SmoothGrad.
    allow_rejected : bool
        Explain slices that were rejected as no brain MRI; the reader must have asked for it.
    directory : path, optional
        Where the classifier's weights lie; default: as configured.
    options : mapping, optional
        Further keyword arguments by method, such as ``{"score-cam": {"channels": 512}}``.

    Returns
    -------
    list of tuple of Explanation
        One tuple a slice: for each method each target class.

    Raises
    ------
    ExplanationError
        Unknown method, class or layer (lists those that exist), a layer that the method cannot serve, analyses of
        another model, or a rejected slice without ``allow_rejected``.
    """
    chosen = [(method := find_method(name), method.check_layer(layer_name)) for name in methods]
    columns = [None if name is None else class_index(name) for name in target_classes]
    if not analyses:
        return []
    for analysis in analyses:
        if analysis.decision == "rejected" and not allow_rejected:
            raise ExplanationError(
                f"{analysis.slice.name}: rejected as not a brain MRI (score {analysis.ood_score:.3g}, limit "
                f"{analysis.ood_threshold:.3g}), so a map of a class would mislead; ask for it explicitly to see it"
            )
        if analysis.weights_sha256 != classifier.card.weights_sha256:
            raise ExplanationError(
                f"{analysis.slice.name}: analysed by {analysis.model_id} with other weights than the loaded "
                f"{classifier.card.id}; analyse it again"
            )
    explainer = explainer_of(classifier, directory)
    inputs = np.stack([a.network_input for a in analyses])
    if all(a.feature_maps.ndim == 3 for a in analyses):
        batch = Batch(inputs, np.stack([a.feature_maps for a in analyses]), np.stack([a.logits for a in analyses]))
    else:  # a page that kept many answers let go of their activations
        batch = explainer.batch(inputs)
    results: list[list[Explanation]] = [[] for _ in analyses]
    for method, layer in chosen:
        for column in columns:
            start = time.perf_counter()
            targets = batch.logits.argmax(axis=1) if column is None else np.full(len(analyses), column)
            keywords = (options or {}).get(method.name, {})
            grids = method.grids(explainer, batch, as_targets(targets), layer, seed=seed, **keywords)
            elapsed_ms = (time.perf_counter() - start) * 1e3 / len(analyses)
            for result, analysis, grid, target in zip(results, analyses, grids, targets, strict=True):
                saliency_map, peak = draw(grid, analysis.transform, analysis.slice.pixels.shape, method.percentile)
                result.append(
                    Explanation(saliency_map, grid, method.name, CLASS_NAMES[target], layer, peak, elapsed_ms)
                )
    return [tuple(result) for result in results]
