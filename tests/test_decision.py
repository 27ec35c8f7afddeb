"""Temperature, conformal sets and the gate: against MAPIE, against synthetic truth, and tied to their weights."""

import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainmri.decision import (
    LEVELS,
    DecisionRule,
    conformal_quantile,
    conformal_sets,
    effective_size,
    fit_temperature,
    softmax,
)
from brainmri.errors import ModelError
from brainmri.gate import describe, fit_gate
from brainmri.types import CLASS_NAMES


def draw(n, seed=0, temperature=1.0):
    """Logits whose softmax at ``temperature`` is the truth, and labels drawn from it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (n, 4))
    p = softmax(logits / temperature)
    return logits.astype(np.float32), np.array([rng.choice(4, p=row) for row in p])


@pytest.fixture(scope="module")
def gate_data():
    """Descriptors' raw material: 'heads' (soft blobs) for training and validation, and white noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:128, :128]

    def heads(n):
        radius = rng.normal(50, 4, (n, 1, 1))
        inputs = (np.hypot(rows - 64, columns - 64) < radius) * rng.normal(0.5, 0.03, (n, 1, 1))
        inputs = np.clip(inputs + rng.normal(0, 0.02, (n, 128, 128)), 0, 1).astype(np.float32)
        features = np.maximum(rng.normal(1, 0.3, (n, 8, 8, 16)), 0).astype(np.float32)
        return features, inputs

    def noise(n):
        return (np.maximum(rng.normal(3, 2, (n, 8, 8, 16)), 0).astype(np.float32),
                rng.random((n, 128, 128), dtype=np.float32))  # fmt: skip

    def ringed(n):
        features, inputs = heads(n)
        distance = np.hypot(rows - 64, columns - 64)
        inputs[:, (distance < 48) & (distance > 38)] = 1.0
        return features, inputs

    return {"train": heads(150), "validation": heads(120), "test": heads(200), "noise": noise(20),
            "outliers": [np.concatenate(pair) for pair in zip(noise(40), ringed(40), strict=True)],
            "ringed": ringed(20)}  # fmt: skip


@pytest.fixture(scope="module")
def rule(gate_data):
    logits, y = draw(200)
    temperature = fit_temperature(logits, y)
    p = softmax(logits / temperature)
    gate = fit_gate(*(describe(*gate_data[part]) for part in ("train", "outliers", "validation")))
    return DecisionRule(temperature, tuple(conformal_quantile(p, y, level) for level in LEVELS), gate, "a" * 64)


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.5])
def test_temperature_finds_the_one_that_made_the_labels(truth):
    logits, y = draw(6000, temperature=truth)
    assert fit_temperature(logits, y) == pytest.approx(truth, rel=0.08)


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("n", [21, 99, 327])
def test_conformal_sets_are_those_of_mapie(level, n):
    from mapie.classification import SplitConformalClassifier

    class Softmax:
        """A fitted classifier whose input are logits."""

        classes_ = np.arange(4)
        _estimator_type = "classifier"
        __sklearn_is_fitted__ = staticmethod(lambda: True)

        def fit(self, x, y):
            return self

        def predict_proba(self, x):
            return softmax(np.asarray(x, np.float64))

        def predict(self, x):
            return self.predict_proba(x).argmax(axis=1)

    logits, y = draw(n, seed=n)
    test, _ = draw(200, seed=7)
    mapie = SplitConformalClassifier(Softmax(), confidence_level=level, conformity_score="lac", prefit=True)
    mapie.conformalize(logits, y)
    _, expected = mapie.predict_set(test)
    quantile = conformal_quantile(softmax(logits.astype(np.float64)), y, level)
    ours = conformal_sets(softmax(test.astype(np.float64)), quantile)
    np.testing.assert_array_equal(ours, expected[:, :, 0])


@given(n=st.integers(1, 60), level=st.sampled_from([0.8, 0.9, 0.95]), seed=st.integers(0, 99))
def test_conformal_quantile_covers_its_own_calibration_set(n, level, seed):
    rng = np.random.default_rng(seed)
    p, y = softmax(rng.normal(0, 2, (n, 4))), rng.integers(0, 4, n)
    covered = conformal_sets(p, conformal_quantile(p, y, level))[np.arange(n), y].mean()
    assert covered >= level


def test_units_of_one_image_change_nothing_and_patients_widen_the_sets():
    logits, y = draw(400)
    p = softmax(logits)
    for level in LEVELS:
        plain = conformal_quantile(p, y, level)
        assert conformal_quantile(p, y, level, np.arange(400)) == plain
        assert conformal_quantile(p, y, level, np.arange(400) // 20) > plain
    # 20 patients of 20 slices: level 0.9 becomes 0.9 * 21 / 20, the 378th of 400
    assert conformal_quantile(p, y, 0.9, np.arange(400) // 20) == np.sort(1 - p[np.arange(400), y].astype(float))[377]
    assert effective_size(np.arange(400) // 20) == pytest.approx(20)
    assert effective_size(["a"] * 13 + list("bcdefg")) == pytest.approx(19**2 / (169 + 6))


def test_units_keep_the_promise_for_new_patients():
    """Slices of one patient share their difficulty; plain split conformal on few patients falls short of 0.9."""
    rng = np.random.default_rng(0)

    def patients(n):
        margin = np.repeat(rng.normal(1.5, 1.5, n), 12) + rng.normal(0, 0.2, 12 * n)
        p = 1 / (1 + np.exp(-margin))
        return np.stack([p, 1 - p], axis=1), np.zeros(12 * n, int), np.repeat(np.arange(n), 12)

    test, y, _ = patients(3000)
    covered = {True: [], False: []}
    for _ in range(200):
        known, labels, units = patients(20)
        for with_units in covered:
            quantile = conformal_quantile(known, labels, 0.9, units if with_units else None)
            covered[with_units].append(conformal_sets(test, quantile)[np.arange(len(y)), y].mean())
    assert np.mean(covered[False]) < 0.895
    assert 0.89 < np.mean(covered[True]) < 0.94


def test_too_few_images_for_a_level_give_the_full_set():
    p, y = softmax(np.random.default_rng(0).normal(size=(5, 4))), np.zeros(5, int)
    assert conformal_quantile(p, y, 0.95) == 1.0
    assert conformal_sets(p, 1.0).all()


def test_gate_accepts_what_it_knows_and_rejects_noise_and_a_white_rim(gate_data, rule):
    assert (rule.gate.score(*gate_data["validation"]) > 1).mean() <= 0.02
    assert (rule.gate.score(*gate_data["test"]) > 1).mean() <= 0.08
    assert (rule.gate.score(*gate_data["noise"]) > 1).all()
    assert (rule.gate.score(*gate_data["ringed"]) > 1).all()


def test_gate_rejects_what_no_outlier_resembled(gate_data, rule):
    """Neither heads nor any outlier of the fit: only the distance can tell."""
    features, inputs = (a[:20].copy() for a in gate_data["test"])
    assert (rule.gate.score(features + 5, 1 - inputs[:, :, ::-1] / 2) > 1).all()


def test_gate_limits_are_quantiles_of_validation(gate_data, rule):
    margins = rule.gate.margins(describe(*gate_data["validation"]))
    assert np.sort(margins[:, 0])[-1] == pytest.approx(rule.gate.limits[0])  # ceil(121 * 0.99) = 120 of 120
    looser = fit_gate(*(describe(*gate_data[part]) for part in ("train", "outliers", "validation")), rejection=0.05)
    assert np.sort(margins[:, 0])[-6] == pytest.approx(looser.limits[0])  # ceil(121 * 0.95) = 115
    assert margins[:, 1].max() == pytest.approx(rule.gate.limits[1])


def test_gate_weighs_each_image_on_its_own(gate_data, rule):
    features, inputs = gate_data["test"]
    together = rule.gate.score(features[:7], inputs[:7])
    alone = [rule.gate.score(features[i : i + 1], inputs[i : i + 1])[0] for i in range(7)]
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    assert (together > 0).all()
    assert together.dtype == np.float32


@pytest.mark.parametrize("value", [0.0, 1.0, 0.05])
def test_a_blank_picture_has_a_score(rule, value):
    score = rule.gate.score(np.zeros((1, 8, 8, 16), np.float32), np.full((1, 128, 128), value, np.float32))
    assert np.isfinite(score).all()


def test_rejected_goes_before_undecided_and_one_class_is_an_answer(gate_data, rule):
    accepted = rule.gate.score(*gate_data["validation"]) <= 1
    features = np.concatenate([gate_data["validation"][0][accepted][:3], gate_data["noise"][0][:1]])
    inputs = np.concatenate([gate_data["validation"][1][accepted][:3], gate_data["noise"][1][:1]])
    logits = np.array([[20, 0, 0, 0], [3, 3, 3, 3], [0, 0, 25, 0], [3, 3, 3, 3]], np.float32)
    probabilities, score, sets, decisions = rule.apply(logits, features, inputs)
    assert decisions == ("class", "undecided", "class", "rejected")
    assert sets[0] == ("glioma",)
    assert sets[2] == ("notumor",)
    assert set(sets[1]) in (set(CLASS_NAMES), set())
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert probabilities.dtype == score.dtype == np.float32


def test_sets_list_the_likeliest_first():
    rule = DecisionRule(1.0, (0.9, 0.95))
    _, _, sets, decisions = rule.apply(np.log(np.array([[0.2, 0.5, 0.02, 0.28]])), np.zeros((1, 8, 8, 4)))
    assert sets == (("meningioma", "pituitary", "glioma"),)
    assert decisions == ("undecided",)


def test_identity_rule_answers_with_the_likeliest_class(tmp_path):
    rule = DecisionRule.load(tmp_path / "none.npz")
    _, score, sets, decisions = rule.apply(np.eye(4, dtype=np.float32), np.zeros((4, 8, 8, 4), np.float32))
    assert sets == tuple((name,) for name in CLASS_NAMES)
    assert decisions == ("class",) * 4
    assert not score.any()
    assert rule.ood_threshold == float("inf")


def test_save_and_load_give_the_same_decisions(gate_data, rule, tmp_path):
    rule.save(tmp_path / "m.npz")
    again = DecisionRule.load(tmp_path / "m.npz", "a" * 64)
    logits, _ = draw(20)
    features, inputs = gate_data["noise"]
    for x, y in zip(rule.apply(logits, features, inputs), again.apply(logits, features, inputs), strict=True):
        np.testing.assert_array_equal(np.asarray(x, object), np.asarray(y, object))


def test_foreign_statistics_are_refused(rule, tmp_path):
    rule.save(tmp_path / "m.npz")
    with pytest.raises(ModelError, match=r"fitted to weights aaaa.*brainmri calibrate"):
        DecisionRule.load(tmp_path / "m.npz", "b" * 64)
    card = {"id": "m", "weights_sha256": "c" * 64, "class_names": CLASS_NAMES, "created": "2026-01-01",
            "architecture": "vgg16", "preprocessing": {}}  # fmt: skip
    (tmp_path / "m.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="cccc"):
        DecisionRule.load(tmp_path / "m.npz")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut short"])
def test_damaged_statistics_are_refused(tmp_path, content):
    (tmp_path / "m.npz").write_bytes(content)
    with pytest.raises(ModelError, match="brainmri calibrate"):
        DecisionRule.load(tmp_path / "m.npz")


def test_colour_turns_a_head_away_and_a_coloured_label_does_not(gate_data, rule):
    features, inputs = (values[:4] for values in gate_data["train"])
    logits = np.eye(4, dtype=np.float32) * 20
    grey = rule.apply(logits, features, inputs)[1]
    assert (grey <= 1).all()
    _, score, _, decisions = rule.apply(logits, features, inputs, [0.0, 0.02, 0.11, 1.0])
    np.testing.assert_array_equal(score[0], grey[0])
    assert decisions[:2] == ("class", "class")
    assert decisions[2:] == ("rejected", "rejected")
    np.testing.assert_allclose(score[2:], [1.1, 10], rtol=1e-5)
    assert score.dtype == np.float32


def test_a_rule_without_a_gate_does_not_look_at_colour():
    _, score, _, decisions = DecisionRule().apply(np.eye(4), np.zeros((4, 8, 8, 4)), colour_share=[1.0] * 4)
    assert decisions == ("class",) * 4
    assert not score.any()


def test_gate_without_inputs_says_so(rule):
    with pytest.raises(ModelError, match="pass them"):
        rule.apply(np.zeros((1, 4)), np.zeros((1, 8, 8, 16)))


@pytest.mark.alone
def test_deciding_is_cheap(rule, gate_data, two_gflop_s):
    """Little of what a prediction takes; how much exactly is for ``brainmri benchmark`` to say."""
    rng = np.random.default_rng(0)
    features = np.maximum(rng.normal(1, 0.3, (200, 8, 8, 512)), 0).astype(np.float32)
    inputs = np.concatenate([gate_data["train"][1], gate_data["validation"][1]])[:200]
    described = describe(features, inputs)
    wide = DecisionRule(1.0, (0.9, 0.95), fit_gate(described[:100], described[100:], described), "")
    times = []
    for i in range(20):
        start = time.perf_counter()
        wide.apply(np.zeros((1, 4), np.float32), features[i : i + 1], inputs[i : i + 1])
        times.append(time.perf_counter() - start)
    assert min(times) < two_gflop_s / 3, f"{min(times) * 1e3:.2f} ms"
