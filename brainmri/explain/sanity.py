"""Does a map depend on what the network has learned? Cascading weight randomisation, from the top layer down.

References
----------
.. [1] Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, arXiv:1810.03292.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    import keras

STAGES = ("logits", "dense", "block5", "block4", "block3", "block2", "block1")
"""What is randomised, one after the other and kept so."""


def cascade(network: keras.Model, seed: int = 0) -> Iterator[tuple[str, keras.Model]]:
    """Yield stage name and network: first ``"intact"``, then with one stage more of its weights drawn anew.

    It is one copy that changes from stage to stage; the network given is only read. Kernels are drawn by their own
    initialiser (He), biases are set to zero.
    """
    from brainmri.model import copy_network

    copy = copy_network(network)
    yield "intact", copy
    generator = np.random.default_rng(seed)
    for stage in STAGES:
        for layer in copy.layers:
            if layer.name.startswith(stage) and layer.weights:
                shape = layer.kernel.shape
                spread = np.sqrt(2 / np.prod(shape[:-1]))
                layer.kernel.assign(generator.normal(0, spread, shape))
                layer.bias.assign(np.zeros(layer.bias.shape))
        yield stage, copy


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two maps; NaN where one of them is constant (empty, say), which has no ranks."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(stats.spearmanr(first.ravel(), second.ravel()).statistic)
