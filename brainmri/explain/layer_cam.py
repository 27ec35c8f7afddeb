"""LayerCAM: feature maps times their positive gradients, cell by cell; made for any layer.

References
----------
.. [1] Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE TIP 2021,
   doi:10.1109/TIP.2021.3089943.
"""

from __future__ import annotations

import numpy as np

from brainmri.explain.base import Batch, Explainer, Method


def grids(explainer: Explainer, batch: Batch, targets: np.ndarray, layer_name: str, *, seed: int = 0) -> np.ndarray:
    """Raw maps (n, rows, columns), float32, >= 0."""
    activations, gradients = explainer.activations_and_gradients(batch, targets, layer_name)
    return np.maximum((activations * np.maximum(gradients, 0)).sum(axis=-1), 0)


METHOD = Method(
    "layer-cam",
    "LayerCAM",
    grids,
    "Shows every cell where a feature is present and more of it would raise the class; it also works on earlier, "
    "finer layers.",
    "It ignores evidence against the class, so it shows something for every class, and on early layers it follows "
    "edges of the picture.",
    "Jiang et al., IEEE TIP 2021, doi:10.1109/TIP.2021.3089943",
)
