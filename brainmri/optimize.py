"""``<id>.keras`` -> ``<id>.openvino.xml/.bin``: the network that serves, in the lowest precision that stays true.

A precision is measured against float32 on images it has not seen and refused when it changes answers: post-training
quantisation is known to wreck some networks without a sign of it in their averages.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from brainmri.data import read_pixels, select_split
from brainmri.decision import DecisionRule
from brainmri.errors import DataError, EngineError, ModelError
from brainmri.imaging import as_network_batch, preprocess
from brainmri.inference import (
    MAX_BATCH,
    PRECISIONS,
    SPLIT_INPUT,
    Engine,
    OpenVINOEngine,
    import_openvino,
    optimised_path,
    round_to_bfloat16,
    split_grey,
)
from brainmri.model import FEATURE_LAYER, LOGITS_LAYER, ModelCard, load_network, sha256_of, write_card
from brainmri.types import CLASS_NAMES

if TYPE_CHECKING:
    import keras
    import nncf
    import openvino

MAX_FLIPS = 0.01
"""Share of answers that may differ from float32's."""
MAX_PROBABILITY_SHIFT = 0.01
"""Mean absolute change of the probability of float32's answer."""
MIN_P_VALUE = 0.05
"""Exact McNemar test on the errors that only one of the two makes."""
MIN_SAME_PEAK, MIN_RANK_CORRELATION = 0.98, 0.98
"""Grad-CAM's peak cell and rank correlation against float32's map."""
MIN_IMAGES = 1500

FIRST_LAYER = "block1_conv1"
KEPT_IN_FLOAT = (FIRST_LAYER, FEATURE_LAYER, "dense", LOGITS_LAYER)
"""Never quantised: the first layer's rounding is never made good (see `inference.split_grey`), heatmaps and the
not-a-brain gate read the feature layer; these and the dense layers cost next to nothing."""

CORRUPTIONS = ("clean", "noise", "strong noise", "contrast", "crop")

_log = logging.getLogger(__name__)


def corrupt(pixels: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """A copy of a slice as another scanner or hand might have made it.

    Parameters
    ----------
    pixels : ndarray of shape (height, width), uint8
    kind : str
        One of `CORRUPTIONS`: Gaussian noise of 8 or 20 grey levels, a gamma curve of 0.5-2, up to 12 % cut off each
        side.
    """
    if kind == "clean":
        return pixels
    if kind in ("noise", "strong noise"):
        noise = rng.normal(0, 8 if kind == "noise" else 20, pixels.shape)
        return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    if kind == "contrast":
        return np.rint(255 * (pixels / 255.0) ** (2.0 ** rng.uniform(-1, 1))).astype(np.uint8)
    if kind == "crop":
        height, width = pixels.shape
        top, bottom = (rng.uniform(0, 0.12, 2) * height).astype(int)
        left, right = (rng.uniform(0, 0.12, 2) * width).astype(int)
        return np.ascontiguousarray(pixels[top : height - bottom, left : width - right])
    raise ValueError(f"unknown corruption {kind!r}; known: {', '.join(CORRUPTIONS)}")


@dataclass(frozen=True)
class LabelledInputs:
    """Network inputs, float32 (n, 128, 128) in [0, 1]; class indices (n,); which are not corrupted, bool (n,)."""

    inputs: np.ndarray
    y_true: np.ndarray
    clean: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs)


def gate_inputs(table: pd.DataFrame, *, seed: int = 0) -> LabelledInputs:
    """The clean ``val`` split and its corrupted copies, preprocessed.

    Raises
    ------
    DataError
        Missing files, or fewer than `MIN_IMAGES` images with the copies.
    """
    rows = select_split(table, "val")
    rows = rows[rows["label"].isin(CLASS_NAMES)]
    if len(rows) * len(CORRUPTIONS) < MIN_IMAGES:
        raise DataError(
            f"{len(rows)} validation images make {len(rows) * len(CORRUPTIONS)} with their copies; "
            f"the precision gate needs {MIN_IMAGES}"
        )
    return _prepare(rows, CORRUPTIONS, seed)


def calibration_inputs(
    table: pd.DataFrame, *, per_class: int = 75, seed: int = 0
) -> tuple[LabelledInputs, LabelledInputs]:
    """Two disjoint, class-balanced draws from the clean ``train`` split.

    Returns
    -------
    calibration, steering : LabelledInputs
        To calibrate int8, and to find the layers that must go back to float (each also with noise).
    """
    rows = select_split(table, "train")
    rng = np.random.default_rng(seed)
    drawn = [rows.iloc[rng.permutation(np.flatnonzero(rows["label"] == name))[: 2 * per_class]] for name in CLASS_NAMES]
    first = pd.concat([d.iloc[: len(d) // 2] for d in drawn])
    second = pd.concat([d.iloc[len(d) // 2 :] for d in drawn])
    return _prepare(first, ("clean",), seed), _prepare(second, ("clean", "noise"), seed)


def _prepare(rows: pd.DataFrame, kinds: Sequence[str], seed: int) -> LabelledInputs:
    rng = np.random.default_rng(seed)
    inputs, labels, clean = [], [], []
    for file, label in zip(rows["file"], rows["label"], strict=True):
        pixels = read_pixels(file)
        for kind in kinds:
            inputs.append(preprocess(corrupt(pixels, kind, rng))[0])
            labels.append(CLASS_NAMES.index(label))
            clean.append(kind == "clean")
    return LabelledInputs(np.stack(inputs), np.array(labels), np.array(clean))


def export_network(card: ModelCard, directory: Path | str) -> openvino.Model:
    """Convert a card's Keras network to OpenVINO: image -> (logits, block5_conv3's activations), any batch size.

    Operations carry the names of the Keras layers; the input's channels are those of `inference.split_grey`. One
    random batch is compared with Keras.

    Raises
    ------
    EngineError
        OpenVINO or TensorFlow is not installed, or the conversion computes something else.
    ModelError
        Weights that are missing or not the card's.
    """
    openvino = import_openvino()
    try:
        import keras
    except ImportError as error:
        raise EngineError(f"optimising needs TensorFlow as well as OpenVINO ({error})") from error
    network = load_network(card, directory)
    both = keras.Model(network.input, [network.get_layer(LOGITS_LAYER).output, network.get_layer(FEATURE_LAYER).output])
    both(np.zeros((1, *network.input_shape[1:]), np.float32))  # export wants a model that has been called
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "network.xml")  # export takes a str
        both.export(path, format="openvino", verbose=False)
        model = openvino.Core().read_model(path, config={"ENABLE_MMAP": False})
    for output, name in zip(model.outputs, ("logits", "feature_maps"), strict=True):
        output.get_tensor().set_names({name})
    layers = [layer.name for layer in network.layers if layer.weights]
    operations = [op for op in model.get_ordered_ops() if op.get_type_name() in ("Convolution", "MatMul")]
    for name, operation in zip(layers, operations, strict=True):
        operation.set_friendly_name(name)
    _split_first_kernel(model)
    _check_conversion(model, both)
    return model


def _split_first_kernel(model: openvino.Model) -> None:
    """Let the first layer take `inference.split_grey`'s channels."""
    openvino = import_openvino()
    convolution = next(op for op in model.get_ops() if op.get_friendly_name() == FIRST_LAYER)
    kernel = convolution.input_value(1).get_node().data.astype(np.float32).sum(axis=1)
    high = round_to_bfloat16(kernel)
    constant = openvino.opset13.constant(np.stack([high, high, kernel - high], axis=1))
    convolution.input(1).replace_source_output(constant.output(0))
    model.set_rt_info(SPLIT_INPUT, ["brainmri", "input"])


def _check_conversion(model: openvino.Model, network: keras.Model) -> None:
    batch = as_network_batch(np.random.default_rng(0).random((2, *network.input_shape[1:3]), np.float32))
    compiled = import_openvino().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled([split_grey(batch)])
    for index, expected in enumerate(network(batch)):
        expected = np.asarray(expected)
        error = np.abs(found[index] - expected).max() / max(np.abs(expected).max(), 1e-6)
        if not error < 1e-3:
            raise EngineError(f"the converted network differs from Keras by {error:.2g} of its largest output")


def quantise(
    model: openvino.Model, calibration: LabelledInputs, steering: LabelledInputs, *, max_drop: float = 0.004
) -> openvino.Model:
    """Quantise to int8 with NNCF, and take back the layers that hurt most until the answers hold.

    Parameters
    ----------
    calibration : LabelledInputs
        For the ranges of activations.
    steering : LabelledInputs
        For the accuracy control; disjoint from calibration and from the precision gate's images.
    max_drop : float
        Mean absolute change of the probability of float32's answer that is accepted.

    Raises
    ------
    EngineError
        NNCF is not installed.
    """
    import_openvino()
    try:
        import nncf
    except ImportError as error:
        raise EngineError(f"int8 needs NNCF ({error}); pip install nncf") from error
    nncf.set_log_level(logging.ERROR)
    compiled = import_openvino().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    expected = np.concatenate([_softmax(compiled([x])[0]) for x in _batches(steering.inputs)])
    answer = expected.argmax(axis=1)

    def agreement(candidate, batches) -> tuple[float, list[float]]:
        found = np.concatenate([_softmax(candidate([x])[0]) for x in batches])
        index = np.arange(len(found))
        kept = 1 - np.abs(found[index, answer[: len(found)]] - expected[index, answer[: len(found)]])
        return float(kept.mean()), kept.tolist()

    kept = [op.get_friendly_name() for op in model.get_ops() if op.get_friendly_name() in KEPT_IN_FLOAT]
    with contextlib.redirect_stdout(sys.stderr):  # NNCF's progress bars; standard output is for results
        return nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset([split_grey(as_network_batch(x[None])) for x in calibration.inputs]),
            nncf.Dataset([split_grey(as_network_batch(x[None])) for x in steering.inputs]),
            validation_fn=agreement,
            max_drop=max_drop,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(names=kept),
            advanced_quantization_parameters=_without_bias_correction(),
        )


def _without_bias_correction() -> nncf.AdvancedQuantizationParameters:
    """NNCF's fast correction more than doubles the shift in probabilities here; its slow one changes nothing."""
    import nncf

    return nncf.AdvancedQuantizationParameters(disable_bias_correction=True)


def quantise_blindly(model: openvino.Model, inputs: np.ndarray) -> openvino.Model:
    """Quantise like `quantise`, calibrated on anything and checked for nothing: for its speed alone."""
    import_openvino()
    try:
        import nncf
    except ImportError as error:
        raise EngineError(f"int8 needs NNCF ({error}); pip install nncf") from error
    nncf.set_log_level(logging.ERROR)
    kept = [op.get_friendly_name() for op in model.get_ops() if op.get_friendly_name() in KEPT_IN_FLOAT]
    with contextlib.redirect_stdout(sys.stderr):
        return nncf.quantize(
            model.clone(),
            nncf.Dataset([split_grey(as_network_batch(x[None])) for x in inputs]),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=kept),
            advanced_parameters=_without_bias_correction(),
        )


def int8_layers(model: openvino.Model) -> list[str]:
    """Names of the convolutions and dense layers whose weights are quantised."""
    return [
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if op.get_type_name() in ("Convolution", "MatMul")
        and op.input_value(1).get_node().get_type_name() != "Constant"
    ]


def _batches(inputs: np.ndarray):
    return (split_grey(as_network_batch(inputs[i : i + MAX_BATCH])) for i in range(0, len(inputs), MAX_BATCH))


def _softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def write_optimised(model: openvino.Model, precision: str, card: ModelCard, directory: Path | str) -> Path:
    """Write a network beside its weights with float16 constants; both files appear whole, or the engine refuses them.

    ``rt_info/brainmri`` names the sha256 of the ``.keras`` file and of the ``.bin``, and the precision.
    """
    openvino = import_openvino()
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
        _replace(path, target)
    return target


def _replace(source: Path, target: Path) -> None:
    os.replace(source.with_suffix(".bin"), target.with_suffix(".bin"))
    os.replace(source, target)


@dataclass(frozen=True)
class Answers:
    """What one engine says: probabilities (n, 4), decisions (n,), Grad-CAM grids of float32's answers (n, 8, 8)."""

    probabilities: np.ndarray
    decisions: np.ndarray
    grids: np.ndarray


def collect_answers(
    engine: Engine, rule: DecisionRule, head: Any, inputs: np.ndarray, targets: np.ndarray | None = None
) -> Answers:
    """Run an engine over inputs; ``targets`` are the classes to map, default its own answers."""
    probabilities: list[np.ndarray] = []
    decisions: list[str] = []
    grids: list[np.ndarray] = []
    for start in range(0, len(inputs), MAX_BATCH):
        part = inputs[start : start + MAX_BATCH]
        logits, feature_maps = engine.forward(as_network_batch(part))
        p, _, _, d = rule.apply(logits, feature_maps, part)
        mapped = p.argmax(axis=1) if targets is None else targets[start : start + MAX_BATCH]
        weights = head.mean_gradient(feature_maps, mapped)
        grids.append(np.maximum(np.einsum("nijc,nc->nij", feature_maps, weights, optimize=True), 0))
        probabilities.append(p)
        decisions.extend(d)
    return Answers(np.concatenate(probabilities), np.array(decisions), np.concatenate(grids))


def compare_answers(
    reference: Answers, candidate: Answers, y_true: np.ndarray, clean: np.ndarray | None = None
) -> dict[str, Any]:
    """Figures of a precision against float32.

    Parameters
    ----------
    clean : ndarray of shape (n,), bool, optional
        Whose heatmaps are compared; default all.

    Returns
    -------
    dict
        ``n``, ``flips`` and ``flip_rate``, ``only_float32_right`` and ``only_this_right`` with ``mcnemar_p`` (exact,
        two-sided), ``mean_probability_shift`` and ``max_probability_shift`` (of float32's answer),
        ``accuracy`` and ``accuracy_float32``, ``decision_flips``, ``same_peak`` and ``rank_correlation`` of Grad-CAM's
        8 x 8 grid (share and mean over ``maps`` clean images whose float32 map is not empty).
    """
    from scipy.stats import binomtest, spearmanr

    answer, found = reference.probabilities.argmax(axis=1), candidate.probabilities.argmax(axis=1)
    right, also = answer == y_true, found == y_true
    only_reference, only_candidate = int((right & ~also).sum()), int((also & ~right).sum())
    discordant = only_reference + only_candidate
    index = np.arange(len(answer))
    shift = np.abs(candidate.probabilities[index, answer] - reference.probabilities[index, answer])
    flat, other = (a.grids.reshape(len(answer), -1) for a in (reference, candidate))
    mapped = np.flatnonzero((flat.max(axis=1) > 0) & (True if clean is None else clean))
    ranks = [spearmanr(flat[i], other[i]).statistic if np.ptp(other[i]) and np.ptp(flat[i]) else 0.0 for i in mapped]
    return {
        "n": len(answer),
        "flips": int((answer != found).sum()),
        "flip_rate": float((answer != found).mean()),
        "only_float32_right": only_reference,
        "only_this_right": only_candidate,
        "mcnemar_p": float(binomtest(only_reference, discordant).pvalue) if discordant else 1.0,
        "mean_probability_shift": float(shift.mean()),
        "max_probability_shift": float(shift.max()),
        "accuracy": float(also.mean()),
        "accuracy_float32": float(right.mean()),
        "decision_flips": int((reference.decisions != candidate.decisions).sum()),
        "maps": len(mapped),
        "same_peak": float((flat[mapped].argmax(axis=1) == other[mapped].argmax(axis=1)).mean())
        if len(mapped)
        else 1.0,
        "rank_correlation": float(np.mean(ranks)) if ranks else 1.0,
    }


def refusals(figures: dict[str, Any]) -> list[str]:
    """Why a precision may not serve; empty where it may."""
    reasons = []
    if figures["flip_rate"] > MAX_FLIPS:
        reasons.append(
            f"{figures['flips']} of {figures['n']} answers flip ({figures['flip_rate']:.2%}, at most {MAX_FLIPS:.0%})"
        )
    if figures["only_float32_right"] > figures["only_this_right"] and figures["mcnemar_p"] < MIN_P_VALUE:
        reasons.append(
            f"float32 alone is right {figures['only_float32_right']} times, this precision alone "
            f"{figures['only_this_right']} times (exact McNemar p = {figures['mcnemar_p']:.2g} < {MIN_P_VALUE})"
        )
    if figures["mean_probability_shift"] > MAX_PROBABILITY_SHIFT:
        reasons.append(
            f"mean |Δprobability| is {figures['mean_probability_shift']:.4f} (at most {MAX_PROBABILITY_SHIFT})"
        )
    if figures["same_peak"] < MIN_SAME_PEAK:
        reasons.append(f"Grad-CAM's peak stays in {figures['same_peak']:.1%} of maps (at least {MIN_SAME_PEAK:.0%})")
    if figures["rank_correlation"] < MIN_RANK_CORRELATION:
        reasons.append(
            f"Grad-CAM's rank correlation is {figures['rank_correlation']:.4f} (at least {MIN_RANK_CORRELATION})"
        )
    return reasons


def optimise(
    card: ModelCard,
    directory: Path | str,
    table: pd.DataFrame,
    *,
    precisions: Sequence[str] = ("int8", "bf16"),
    report: Callable[[str], None] = _log.info,
) -> tuple[ModelCard, str]:
    """Measure precisions against float32, install the fastest that passes and write the figures to the card.

    Parameters
    ----------
    table : DataFrame
        Of `data.read_manifest`, with the splits ``train`` and ``val`` and labels in `CLASS_NAMES`.
    precisions : sequence of str
        To try. float32 serves where several are asked for and none passes.

    Returns
    -------
    card : ModelCard
        With ``precision``: ``default``, how it was measured and ``candidates`` with all figures.
    default : str

    Raises
    ------
    EngineError
        One precision is asked for and refused (nothing is installed then; the message has the figures), it is unknown,
        or a package is missing.
    DataError
        No data to measure on.
    """
    from brainmri.explain.head import Head

    if unknown := [p for p in precisions if p not in PRECISIONS]:
        raise EngineError(f"unknown precision '{unknown[0]}'; known: {', '.join(PRECISIONS)}")
    directory = Path(directory)
    try:
        rule = DecisionRule.load(directory / f"{card.id}.npz", card.weights_sha256)
    except ModelError as error:  # of the weights before: they are calibrated with the engine that is made here
        report(f"the likeliest class stands for the decision: {error}")
        rule = DecisionRule()
    head = Head.load(card, directory)
    gate = gate_inputs(table)
    report(f"{len(gate)} images: clean val and its copies ({', '.join(CORRUPTIONS[1:])})")
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        folder = Path(scratch)
        model = export_network(card, directory)
        networks = {"float32": write_optimised(model, "float32", card, folder / _made(folder, "float32"))}
        engines = {"float32": OpenVINOEngine(card, folder / "float32")}
        reference = collect_answers(engines["float32"], rule, head, gate.inputs)
        targets = reference.probabilities.argmax(axis=1)
        candidates: dict[str, dict[str, Any]] = {}
        for precision in (p for p in dict.fromkeys(precisions) if p != "float32"):
            report(f"{precision}: making it and measuring it against float32")
            changed = model if precision == "bf16" else quantise(model.clone(), *calibration_inputs(table))
            networks[precision] = write_optimised(changed, precision, card, folder / _made(folder, precision))
            engines[precision] = OpenVINOEngine(card, folder / precision)
            found = collect_answers(engines[precision], rule, head, gate.inputs, targets)
            figures = compare_answers(reference, found, gate.y_true, gate.clean)
            if precision == "int8":
                figures["layers_in_int8"] = len(int8_layers(changed))
            reasons = refusals(figures)
            if engines[precision].precision != precision:
                reasons.append(
                    f"this processor computes {precision} in {engines[precision].precision}; measure elsewhere"
                )
            candidates[precision] = {**figures, "refused": reasons}
        for precision, timing in time_engines(engines, gate.inputs).items():
            candidates.setdefault(precision, {"refused": []}).update(timing)
        if len(precisions) == 1 and candidates[precisions[0]]["refused"]:
            raise EngineError(f"{precisions[0]} is refused: " + "; ".join(candidates[precisions[0]]["refused"]))
        passed = [p for p in candidates if not candidates[p]["refused"] and (p in precisions or len(precisions) > 1)]
        default = min(passed, key=lambda p: candidates[p]["ms_per_image_batch_32"])
        _replace(networks[default], optimised_path(card.id, directory))
    measured = {
        "default": default,
        "measured": date.today().isoformat(),
        "images": f"{len(gate)}: clean val and copies with {', '.join(CORRUPTIONS[1:])}",
        "calibration": "clean train, class-balanced",
        "processor": processor_name(),
        "candidates": {p: {k: _rounded(v) for k, v in f.items()} for p, f in candidates.items()},
    }
    card = card.model_copy(update={"precision": measured})
    write_card(card, directory)
    return card, default


def _made(folder: Path, name: str) -> str:
    (folder / name).mkdir()
    return name


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def time_engines(engines: Mapping[str, Engine], inputs: np.ndarray, *, rounds: int = 5) -> dict[str, dict[str, float]]:
    """Median milliseconds an image at batch 1 and 32, the engines taking turns."""
    batches = {1: as_network_batch(inputs[:1]), 32: as_network_batch(np.resize(inputs, (32, *inputs.shape[1:])))}
    times: dict[tuple[str, int], list[float]] = {}
    for turn in range(rounds + 1):
        for name, engine in engines.items():
            for size, batch in batches.items():
                for _ in range(5 if size == 1 else 1):
                    start = time.perf_counter()
                    engine.forward(batch)
                    if turn:
                        times.setdefault((name, size), []).append((time.perf_counter() - start) * 1e3 / size)
    return {
        name: {f"ms_per_image_batch_{size}": float(np.median(times[name, size])) for size in batches}
        for name in engines
    }


def processor_name() -> str:
    """The CPU with the matrix instructions that decide how fast a precision is."""
    import platform

    core = import_openvino().Core()
    capabilities = [c for c in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") if c in ("BF16", "INT8", "FP16")]
    flags = ""
    if Path("/proc/cpuinfo").is_file():
        words = set(Path("/proc/cpuinfo").read_text().split())
        flags = "".join(f", {f}" for f in ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx2") if f in words)
    name = core.get_property("CPU", "FULL_DEVICE_NAME") or platform.processor()
    return f"{name}, {os.cpu_count()} cores ({'/'.join(capabilities)}{flags})"
