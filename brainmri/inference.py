"""Slices -> Prediction, whichever engine runs underneath: OpenVINO where its network is there, else Keras."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from brainmri.decision import DecisionRule
from brainmri.errors import BrainMRIError, EngineError, InvalidImageError, ModelError
from brainmri.imaging import as_network_batch, is_blank, preprocess
from brainmri.model import FEATURE_LAYER, LOGITS_LAYER, ModelCard, load_network, read_card, sha256_of
from brainmri.types import MRISlice, Prediction

PRECISIONS = ("float32", "bf16", "int8")
SPLIT_INPUT = "high, low, high"
"""What an optimised network calls its input's channels where they are those of `split_grey`."""
MAX_BATCH = 32
"""Images in one forward pass: activations grow with it (4 MB an image in bfloat16), throughput hardly does."""
BLANK_SCORE = 2.0
"""``ood_score``, at least, of a picture that shows nothing: over the threshold of any gate."""

UNCALIBRATED = (
    "not calibrated: no prediction sets and nothing that turns away what is no brain MRI; run: brainmri calibrate"
)

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """Runs the network: one forward pass gives logits and the feature layer's activations."""

    name: str
    precision: str

    def forward(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 (n, 128, 128, 3) in [0, 1], grey -> logits (n, 4), feature maps (n, 8, 8, 512), float32."""
        ...


class KerasEngine:
    """The reference: float32, TensorFlow."""

    name = "keras"
    precision = "float32"

    def __init__(
        self, card: ModelCard, directory: Path | str, *, precision: str | None = None, threads: int | None = None
    ):
        if precision not in (None, "float32"):
            raise EngineError(f"the keras engine computes in float32 only, not {precision}; use the openvino engine")
        # What TensorFlow prints about graphics cards that are not there is noise to who asked for an answer.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        try:
            import keras
            import tensorflow as tf
        except ImportError as error:
            raise EngineError(f"TensorFlow does not import ({error}); pip install tensorflow") from error
        if threads is not None:
            try:
                tf.config.threading.set_intra_op_parallelism_threads(threads)
            except RuntimeError:
                _log.warning("TensorFlow already runs in this process: its number of threads stays as it is")
        self.network = load_network(card, directory)
        both = keras.Model(
            self.network.input,
            [self.network.get_layer(LOGITS_LAYER).output, self.network.get_layer(FEATURE_LAYER).output],
        )
        self._call = tf.function(lambda x: both(x, training=False), reduce_retracing=True)

    def forward(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Engine.forward`."""
        import tensorflow as tf

        logits, features = self._call(tf.constant(batch))
        return logits.numpy(), features.numpy()


class OpenVINOEngine:
    """The optimised network beside the weights (``<id>.openvino.xml``, ``.bin``), made by ``brainmri optimize``.

    It names the sha256 of the ``.keras`` file that it was made from and must match the card; the ``.keras`` file
    itself is not read and need not be there.

    Parameters
    ----------
    precision : str, optional
        Of the arithmetic: default what the network was optimised for. A network kept in float runs in ``float32`` or
        ``bf16``; one quantised to ``int8`` runs in that alone.
    threads : int, optional
        Default: every core.
    network : path, optional
        Another ``.xml`` than the card's own.

    Raises
    ------
    EngineError
        No OpenVINO, no optimised network, a damaged one or one made from other weights.
    """

    name = "openvino"

    def __init__(
        self,
        card: ModelCard,
        directory: Path | str,
        *,
        precision: str | None = None,
        threads: int | None = None,
        network: Path | str | None = None,
    ):
        self.path = path = Path(network) if network else optimised_path(card.id, directory)
        made = read_optimised(path, card)
        made_for = made["precision"]
        precision = precision or made_for
        if "int8" in (precision, made_for) and precision != made_for:
            raise EngineError(f"{path.name} is optimised for {made_for} and cannot run in {precision}")
        core = import_openvino().Core()
        # An int8 network's few float layers run in bfloat16, where the processor has it.
        fast = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") and precision != "float32"
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",  # one stream on all cores: best at any batch size on few cores
            "INFERENCE_PRECISION_HINT": "bf16" if fast else "f32",
        }
        if threads is not None:
            # Several processes share the machine: none may pin its threads to the cores that the others pin theirs to.
            options |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        try:
            self._compiled = core.compile_model(str(path), "CPU", options)
        except RuntimeError as error:
            raise EngineError(f"{path.name}: OpenVINO cannot load it ({_first_line(error)})") from error
        self._split = made.get("input") == SPLIT_INPUT
        self.precision = precision if precision != "bf16" or fast else "float32"
        self._request = self._compiled.create_infer_request()
        self._lock = threading.Lock()

    def forward(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Engine.forward`; one batch at a time, on all cores."""
        batch = split_grey(batch) if self._split else np.ascontiguousarray(batch, np.float32)
        with self._lock:
            result = self._request.infer([batch], share_inputs=True, share_outputs=True)
            return result[0].copy(), result[1].copy()  # the request's own memory is used again


ENGINES: dict[str, type[KerasEngine] | type[OpenVINOEngine]] = {"openvino": OpenVINOEngine, "keras": KerasEngine}
"""By name, the fastest first."""


def import_openvino():
    """Import OpenVINO without its telemetry: a program that reads patients' images calls nobody.

    Raises
    ------
    EngineError
        It is not installed or does not load.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise EngineError(f"OpenVINO does not import ({error}); pip install openvino") from error
    return openvino


def one_thread_for_numpy() -> None:
    """Have NumPy's matrix products in this process take one thread.

    The gate's are tiny, and after each of them OpenBLAS's other threads spin for tens of milliseconds on the cores that
    the engine needs: a quarter of what an archive's workers did.
    """
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, user_api="blas")


def optimised_path(model_id: str, directory: Path | str) -> Path:
    """Where the optimised network of a model lies."""
    return Path(directory) / f"{model_id}.openvino.xml"


def split_grey(batch: np.ndarray) -> np.ndarray:
    """Turn three equal channels x into (high, low, high): x rounded to bfloat16, what that leaves, and high again.

    With a first kernel split the same way, (high, high, low), the first layer is exact to 16 bits on hardware that
    multiplies bfloat16, at no cost: the network sees grey, so two of its three channels are free. ImageNet's first
    layer needs it: it works on 0-255 minus a mean, and what is lost in rounding there is never made good.
    """
    grey = np.ascontiguousarray(batch[..., 0], np.float32)
    result = np.empty((*grey.shape, 3), np.float32)
    result[..., 0] = result[..., 2] = high = round_to_bfloat16(grey)
    result[..., 1] = grey - high
    return result


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The nearest float32 with an 8-bit significand, ties to even; finite values only."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


def check_optimised(path: Path, card: ModelCard) -> str:
    """Check an optimised network as `read_optimised` does; return its precision."""
    return read_optimised(path, card)["precision"]


def read_optimised(path: Path, card: ModelCard) -> dict[str, str]:
    """Check that an optimised network is whole and made from a card's weights; return what it says of itself.

    Raises
    ------
    EngineError
        Missing, damaged, or foreign; says what to do.
    """
    again = f"run: brainmri optimize --model {card.id}"
    binary = path.with_suffix(".bin")
    for file in (path, binary):
        if not file.is_file():
            raise EngineError(f"{file.name}: no such file in {file.parent.name}/; {again}")
    try:
        import xml.etree.ElementTree as ElementTree

        # rt_info is a child of the root; the layers before it are small, their weights are in the .bin.
        root = ElementTree.parse(path).getroot()
        made = {item.tag: item.get("value", "") for item in root.findall("./rt_info/brainmri/*")}
        weights, precision, digest = made["weights_sha256"], made["precision"], made["bin_sha256"]
    except (OSError, ElementTree.ParseError, KeyError) as error:
        raise EngineError(f"{path.name}: not a network that brainmri optimize wrote ({error}); {again}") from error
    if weights != card.weights_sha256:
        raise EngineError(
            f"{path.name}: made from weights {weights[:12]}…, the card's are {card.weights_sha256[:12]}…; {again}"
        )
    if sha256_of(binary) != digest:
        raise EngineError(f"{binary.name}: damaged (its sha256 is not the one {path.name} names); {again}")
    if precision not in PRECISIONS:
        raise EngineError(f"{path.name}: unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    return made


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


class Classifier:
    """A model ready to answer: engine, card and decision rule. Safe to share between threads; never mutated.

    Attributes
    ----------
    fallback_reason : str or None
        Why a slower engine answers than the one asked for; fit for a screen.
    """

    def __init__(self, card: ModelCard, engine: Engine, rule: DecisionRule, fallback_reason: str | None = None):
        self.card = card
        self.engine = engine
        self.rule = rule
        self.fallback_reason = fallback_reason

    def predict_slices(self, slices: Sequence[MRISlice]) -> Prediction:
        """`predict` with all that a slice says of itself: what is measured is answered as what is served."""
        return self.predict(
            [s.pixels for s in slices],
            [s.colour_share for s in slices],
            [s.spacing_mm for s in slices],
            [s.may_be_sheet for s in slices],
        )

    def predict(
        self,
        images: Sequence[np.ndarray],
        colour_share: Sequence[float] | None = None,
        spacing_mm: Sequence[tuple[float, float] | None] | None = None,
        sheets: Sequence[bool] | None = None,
    ) -> Prediction:
        """Classify slices.

        Parameters
        ----------
        images : sequence of ndarray of shape (height, width), uint8
            Grey display intensities; sizes may differ. Not modified.
        colour_share : sequence of float, optional
            `MRISlice.colour_share` of each; default: all are grey.
        spacing_mm : sequence of (row, column) or None, optional
            `MRISlice.spacing_mm` of each; default: all pixels are square.
        sheets : sequence of bool, optional
            Whether each may hold several slices (`MRISlice.may_be_sheet`); default: all may.

        Raises
        ------
        InvalidImageError
            No slice, or wrong rank, dtype or size.
        """
        start = time.perf_counter()
        if not len(images):
            raise InvalidImageError("expected at least one slice, got none")
        spacing_mm = spacing_mm or [None] * len(images)
        views = (preprocess(image, spacing_mm=mm) for image, mm in zip(images, spacing_mm, strict=True))
        inputs, transforms = zip(*views, strict=True)
        stacked = np.stack(inputs)
        logits, feature_maps = self.forward(stacked)
        rivals = [t.rival / 100 * may_be for t, may_be in zip(transforms, sheets or [True] * len(images), strict=True)]
        probabilities, ood_score, sets, decisions = self.rule.apply(logits, feature_maps, stacked, colour_share, rivals)
        if self.rule.gate is not None:  # as with colour: a rule without a gate rejects nothing
            blank = [is_blank(image, shown) for image, shown in zip(images, inputs, strict=True)]
            ood_score = np.where(blank, np.maximum(ood_score, BLANK_SCORE), ood_score)
            decisions = tuple("rejected" if b else d for b, d in zip(blank, decisions, strict=True))
        return Prediction(
            logits=logits,
            probabilities=probabilities,
            feature_maps=feature_maps,
            decisions=decisions,
            prediction_sets=sets,
            ood_score=ood_score,
            ood_threshold=self.rule.ood_threshold,
            transforms=transforms,
            inputs=stacked,
            model_id=self.card.id,
            weights_sha256=self.card.weights_sha256,
            engine=self.engine.name,
            precision=self.engine.precision,
            elapsed_ms=(time.perf_counter() - start) * 1e3,
        )

    def require_numbers(self, logits: np.ndarray, names: Sequence[str]) -> None:
        """Refuse answers that are no numbers, naming the first.

        Raises
        ------
        ModelError
            NaN or infinity among ``logits``, (n, n_classes); ``names`` are the n slices'.
        """
        broken = ~np.isfinite(logits).all(axis=1)
        if broken.any():
            raise ModelError(
                f"{list(names)[int(broken.argmax())]}: the network's answer is not a number; the weights or the engine "
                f"({self.engine.name}, {self.engine.precision}) are broken"
            )

    def forward(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run the network on any number of inputs, `MAX_BATCH` at a time.

        Parameters
        ----------
        inputs : ndarray of shape (n, 128, 128), float32
            In [0, 1].

        Returns
        -------
        logits, feature_maps : ndarray of shape (n, 4) and (n, 8, 8, 512), float32
        """
        parts = [
            self.engine.forward(as_network_batch(inputs[start : start + MAX_BATCH]))
            for start in range(0, len(inputs), MAX_BATCH)
        ]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def load_classifier(
    model_id: str,
    directory: Path | str,
    engine: str = "auto",
    *,
    precision: str | None = None,
    threads: int | None = None,
    rule: DecisionRule | None = None,
) -> Classifier:
    """Load a model by id with its card, fitted statistics and engine.

    Parameters
    ----------
    engine : str
        ``"openvino"`` or ``"keras"``; where it does not load the other one answers, with a line in the log and in
        `Classifier.fallback_reason`. ``"auto"`` is ``"openvino"``.
    precision : str, optional
        One of `PRECISIONS`; default the fastest that passed ``brainmri optimize``. Asked for, it is not replaced.
    threads : int, optional
        Default: every core.
    rule : DecisionRule, optional
        Instead of ``<id>.npz``: for fitting a new one, say.

    Raises
    ------
    ModelError
        No such model, or weights that are not the card's.
    EngineError
        Unknown engine or precision (lists the known ones), or no engine loads.
    """
    if engine not in ("auto", *ENGINES):
        raise EngineError(f"unknown engine '{engine}'; known: auto, {', '.join(ENGINES)}")
    if precision not in (None, *PRECISIONS):
        raise EngineError(f"unknown precision '{precision}'; known: {', '.join(PRECISIONS)}")
    card = read_card(model_id, directory)
    if rule is None:
        rule = DecisionRule.load(Path(directory) / f"{model_id}.npz")
        if not rule.weights_sha256:
            _log.warning("%s: %s", model_id, UNCALIBRATED)
    wanted = "openvino" if engine == "auto" else engine
    reasons: list[str] = []
    for name in sorted(ENGINES, key=lambda n: n != wanted):
        try:
            loaded = ENGINES[name](card, directory, precision=precision, threads=threads)
        except BrainMRIError as error:
            _log.warning("engine %s does not load: %s", name, error)
            reasons.append(f"{name}: {error}")
            continue
        reason = (
            f"The {name} engine answers, because the {wanted} engine does not load. {reasons[0]}" if reasons else None
        )
        return Classifier(card, loaded, rule, reason)
    raise EngineError(f"{model_id}: no engine loads. " + "; ".join(reasons))
