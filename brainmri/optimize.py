"""``<id>.keras`` -> ``<id>.openvino.xml/.bin``: the network that serves, in the lowest precision that stays true."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brainmri.errors import EngineError
from brainmri.inference import optimised_path
from brainmri.model import FEATURE_LAYER, LOGITS_LAYER, ModelCard, load_network, sha256_of

if TYPE_CHECKING:
    import openvino

_log = logging.getLogger(__name__)


def export_network(card: ModelCard, directory: Path | str) -> openvino.Model:
    """Convert a card's Keras network to OpenVINO: image -> (logits, block5_conv3's activations), any batch size.

    Raises
    ------
    EngineError
        OpenVINO or TensorFlow is not installed.
    ModelError
        Weights that are missing or not the card's.
    """
    try:
        import keras
        import openvino
    except ImportError as error:
        raise EngineError(f"optimising needs both TensorFlow and OpenVINO ({error})") from error
    network = load_network(card, directory)
    both = keras.Model(network.input, [network.get_layer(LOGITS_LAYER).output, network.get_layer(FEATURE_LAYER).output])
    both(np.zeros((1, *network.input_shape[1:]), np.float32))  # export wants a model that has been called
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "network.xml")  # export takes a str
        both.export(path, format="openvino", verbose=False)
        model = openvino.Core().read_model(path, config={"ENABLE_MMAP": False})
    for output, name in zip(model.outputs, ("logits", "feature_maps"), strict=True):
        output.get_tensor().set_names({name})
    return model


def write_optimised(model: openvino.Model, precision: str, card: ModelCard, directory: Path | str) -> Path:
    """Write a network beside its weights with float16 constants; both files appear whole, or the engine refuses them.

    ``rt_info/brainmri`` names the sha256 of the ``.keras`` file and of the ``.bin``, and the precision.
    """
    import openvino

    target = optimised_path(card.id, directory)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        path = Path(folder) / "network.xml"
        openvino.save_model(model, path, compress_to_fp16=True)
        digest = sha256_of(path.with_suffix(".bin"))
        made = {"weights_sha256": card.weights_sha256, "bin_sha256": digest, "precision": precision}
        for key, value in made.items():
            model.set_rt_info(value, ["brainmri", key])
        openvino.save_model(model, path, compress_to_fp16=True)
        if sha256_of(path.with_suffix(".bin")) != digest:
            raise EngineError("OpenVINO wrote the same weights twice and differently; please report this")
        os.replace(path.with_suffix(".bin"), target.with_suffix(".bin"))
        os.replace(path, target)
    return target
