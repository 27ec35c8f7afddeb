"""The precision gate: what it measures, what it refuses, what it writes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import binomtest

from brainmri import optimize
from brainmri.cli import main
from brainmri.decision import DecisionRule
from brainmri.errors import DataError, EngineError
from brainmri.inference import load_classifier
from brainmri.model import read_card
from brainmri.optimize import Answers, compare_answers, corrupt, refusals
from brainmri.types import CLASS_NAMES


@pytest.fixture
def table(tmp_path, slices):
    """Eight validation and forty training pictures, all classes."""
    rows = []
    for i in range(48):
        file = tmp_path / f"{i}.png"
        Image.fromarray(np.roll(slices[i % 12], i, axis=1)).save(file)
        rows.append((file.name, str(file), CLASS_NAMES[i % 4], "val" if i < 8 else "train"))
    return pd.DataFrame(rows, columns=["path", "file", "label", "split"])


@pytest.fixture
def models(tiny_models, tiny_blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(optimize, "MIN_IMAGES", 40)
    return shutil.copytree(tiny_models, tmp_path / "models")


def _answers(classes, probability=0.9, peak=0):
    n = len(classes)
    probabilities = np.full((n, 4), (1 - probability) / 3, np.float32)
    probabilities[np.arange(n), classes] = probability
    grids = np.tile(np.linspace(1, 0.1, 64, dtype=np.float32), (n, 1))
    return Answers(probabilities, np.full(n, "class"), np.roll(grids, peak, axis=1).reshape(n, 8, 8))


def test_figures_by_hand():
    y_true = np.zeros(1000, int)
    classes = np.zeros(1000, int)
    changed = classes.copy()
    changed[:7], classes[7:9] = 1, 2  # seven right only in float32, two right only in the other
    figures = compare_answers(_answers(classes), _answers(changed, 0.8), y_true)
    assert (figures["flips"], figures["only_float32_right"], figures["only_this_right"]) == (9, 7, 2)
    assert figures["mcnemar_p"] == pytest.approx(binomtest(7, 9).pvalue)
    assert figures["accuracy_float32"] == 0.998
    expected = (991 * 0.1 + 9 * (0.9 - 0.2 / 3)) / 1000
    assert figures["mean_probability_shift"] == pytest.approx(expected, rel=1e-4)
    assert figures["same_peak"] == 1.0
    assert figures["rank_correlation"] == pytest.approx(1)


def test_equal_answers_pass():
    same = _answers(np.arange(400) % 4)
    assert refusals(compare_answers(same, same, np.arange(400) % 4)) == []


@pytest.mark.parametrize(
    ("changed", "probability", "peak", "reason"),
    [
        (30, 0.9, 0, "30 of 2000 answers flip"),
        (12, 0.9, 0, "float32 alone is right 12 times"),
        (0, 0.88, 0, "mean |Δprobability| is 0.0200"),
        (0, 0.9, 1, "Grad-CAM's peak stays in 0.0%"),
        (0, 0.9, 32, "rank correlation is -0.5"),
    ],
)
def test_each_limit_refuses(changed, probability, peak, reason):
    y_true = np.arange(2000) % 4
    classes = y_true.copy()
    classes[:changed] = (classes[:changed] + 1) % 4
    reasons = refusals(compare_answers(_answers(y_true), _answers(classes, probability, peak), y_true))
    assert any(reason in r for r in reasons), reasons


def test_significantly_better_is_no_reason_to_refuse():
    y_true = np.arange(2000) % 4
    worse = y_true.copy()
    worse[:12] = (worse[:12] + 1) % 4
    assert refusals(compare_answers(_answers(worse), _answers(y_true), y_true)) == []


@pytest.mark.parametrize("kind", optimize.CORRUPTIONS)
def test_corruptions(kind, slices):
    before = slices[0].copy()
    changed = corrupt(slices[0], kind, np.random.default_rng(1))
    again = corrupt(slices[0], kind, np.random.default_rng(1))
    np.testing.assert_array_equal(changed, again)
    np.testing.assert_array_equal(slices[0], before)
    assert changed.dtype == np.uint8
    assert (kind == "clean") == np.array_equal(changed, slices[0])
    assert (changed.size < slices[0].size) == (kind == "crop")


def test_calibration_and_steering_are_disjoint_training_images(table):
    calibration, steering = optimize.calibration_inputs(table, per_class=5)
    assert len(calibration) == 20
    assert len(steering) == 40  # each with a noisy copy
    assert np.bincount(calibration.y_true).tolist() == [5, 5, 5, 5]
    gate = optimize._prepare(table[table["split"] == "val"], ("clean",), 0)
    seen = {x.tobytes() for x in calibration.inputs}
    assert not seen & {x.tobytes() for x in steering.inputs}
    assert not seen & {x.tobytes() for x in gate.inputs}


def test_bf16_passes_and_is_installed(models, table, monkeypatch, slices, native_bf16):
    for limit in ("MIN_SAME_PEAK", "MIN_RANK_CORRELATION"):
        monkeypatch.setattr(optimize, limit, 0.0)  # random weights draw flat maps: any cell may be the peak
    monkeypatch.setattr(optimize, "time_engines", _bf16_is_fastest)
    DecisionRule(weights_sha256="0" * 64).save(models / "tiny.npz")  # of the weights before: no obstacle
    card, default = optimize.optimise(read_card("tiny", models), models, table)
    (models / "tiny.npz").unlink()
    written = json.loads((models / "tiny.json").read_text())["precision"]
    assert written == card.precision
    assert written["default"] == default
    assert {"int8", "bf16", "float32"} == set(written["candidates"])
    assert written["candidates"]["bf16"]["n"] == 40
    assert written["candidates"]["bf16"]["flips"] >= 0
    assert written["candidates"]["int8"]["layers_in_int8"] >= 0
    classifier = load_classifier("tiny", models)
    assert classifier.fallback_reason is None
    if native_bf16 == "bf16":
        assert default == "bf16"
    else:  # what cannot be measured here is refused, and the next best is served
        assert "measure elsewhere" in written["candidates"]["bf16"]["refused"][-1]
        assert default == "int8"
    assert classifier.engine.precision == default
    assert not [p for p in models.iterdir() if p.is_dir()]  # nothing left behind


def _bf16_is_fastest(engines, inputs, **_):
    speed = {"float32": 3.0, "int8": 2.0, "bf16": 1.0}
    return {n: {"ms_per_image_batch_1": speed[n], "ms_per_image_batch_32": speed[n]} for n in engines}


def test_int8_runs_in_int8(models, table):
    """Quantised for real: NNCF's network loads, says so, and still answers much like float32."""
    card = read_card("tiny", models)
    model = optimize.export_network(card, models)
    calibration, steering = optimize.calibration_inputs(table, per_class=5)
    assert optimize.int8_layers(model) == []
    quantised = optimize.quantise(model, calibration, steering, max_drop=1)
    assert "block2_conv1" in optimize.int8_layers(quantised)
    assert not set(optimize.int8_layers(quantised)) & set(optimize.KEPT_IN_FLOAT)
    optimize.write_optimised(quantised, "int8", card, models)
    classifier = load_classifier("tiny", models)
    assert classifier.engine.precision == "int8"
    assert classifier.fallback_reason is None
    with pytest.raises(EngineError, match="optimised for int8"):
        load_classifier("tiny", models, precision="bf16")


def test_a_wrecked_precision_is_refused_and_nothing_changes(models, table, monkeypatch):
    """A first layer that is off, as a bad quantisation would leave it."""
    before = {p.name: p.read_bytes() for p in models.iterdir()}
    monkeypatch.setattr(optimize, "quantise", lambda model, *_: _wreck(model))
    with pytest.raises(EngineError, match=r"int8 is refused: .*(flip|Δprobability|peak)"):
        optimize.optimise(read_card("tiny", models), models, table, precisions=("int8",))
    assert {p.name: p.read_bytes() for p in models.iterdir()} == before


def test_the_command_refuses_with_exit_code_1_and_the_figures(models, table, tmp_path, monkeypatch):
    monkeypatch.setattr(optimize, "quantise", lambda model, *_: _wreck(model))
    (tmp_path / "config.yaml").write_text(f"model: {{id: tiny, directory: '{models}'}}\ndata: {{root: '{tmp_path}'}}\n")
    monkeypatch.setenv("BRAINMRI_CONFIG", str(tmp_path / "config.yaml"))
    manifest = tmp_path / "slices.csv"
    table[["path", "label", "split"]].to_csv(manifest, index=False)
    arguments = ["optimize", "--precision", "int8", "--manifest", str(manifest), "--split-column", "split"]
    monkeypatch.setattr("sys.argv", ["brainmri", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert "int8 is refused" in stopped.value.code  # a text: printed, and the exit code is 1
    assert "of 40 answers flip" in stopped.value.code
    monkeypatch.setattr("sys.argv", ["brainmri", *arguments[:2], "fp4", *arguments[3:]])
    with pytest.raises(SystemExit, match="unknown precision 'fp4'; known: float32, bf16, int8"):
        main()


def _wreck(model):
    from brainmri.inference import import_openvino

    opset = import_openvino().opset13
    operation = next(op for op in model.get_ordered_ops() if op.get_friendly_name() == "logits")
    consumers = list(operation.output(0).get_target_inputs())
    turned = opset.multiply(operation.output(0), opset.constant(np.float32(-3)))
    for consumer in consumers:
        consumer.replace_source_output(turned.output(0))
    return model


def test_bad_requests(models, table):
    card = read_card("tiny", models)
    with pytest.raises(EngineError, match="unknown precision 'fp4'; known: float32, bf16, int8"):
        optimize.optimise(card, models, table, precisions=("fp4",))
    with pytest.raises(DataError, match="the precision gate needs 40"):
        optimize.optimise(card, models, table[table["path"] != "0.png"])
