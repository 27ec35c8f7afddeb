"""Engines agree, refuse foreign networks, fall back and say so."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from brainmri.errors import EngineError, InvalidImageError
from brainmri.imaging import preprocess
from brainmri.inference import MAX_BATCH, load_classifier, optimised_path, round_to_bfloat16, split_grey


@pytest.fixture
def models(tiny_models, tmp_path):
    """A copy that may be broken."""
    return shutil.copytree(tiny_models, tmp_path / "models")


def test_engines_agree(tiny_models, tiny_blocks, slices):
    keras = load_classifier("tiny", tiny_models, "keras").predict(slices)
    exact = load_classifier("tiny", tiny_models, precision="float32").predict(slices)
    fast = load_classifier("tiny", tiny_models).predict(slices)
    assert (keras.engine, exact.engine, fast.engine) == ("keras", "openvino", "openvino")
    np.testing.assert_allclose(exact.logits, keras.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(exact.feature_maps, keras.feature_maps, rtol=1e-4, atol=1e-5)
    assert keras.feature_maps.max() > 0
    np.testing.assert_allclose(fast.probabilities, keras.probabilities, atol=0.02)
    assert exact.precision == keras.precision == "float32"


def test_many_slices_are_answered_in_chunks(tiny_models, slices):
    classifier = load_classifier("tiny", tiny_models, precision="float32")
    many = (slices * MAX_BATCH)[: 2 * MAX_BATCH + 3]
    prediction = classifier.predict(many)
    assert prediction.logits.shape == (len(many), 4)
    assert prediction.feature_maps.shape[0] == len(many)
    np.testing.assert_allclose(prediction.logits[-1], classifier.predict(many[-1:]).logits[0], atol=1e-4)


def test_threads_share_an_engine(tiny_models, slices):
    classifier = load_classifier("tiny", tiny_models)
    alone = [classifier.predict([s]).logits for s in slices]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda s: classifier.predict([s]).logits, slices * 8))
    for i, logits in enumerate(together):
        np.testing.assert_array_equal(logits, alone[i % len(slices)])


def test_no_slice_is_an_error(tiny_models):
    with pytest.raises(InvalidImageError, match="at least one"):
        load_classifier("tiny", tiny_models).predict([])


def _truncate(models):
    binary = optimised_path("tiny", models).with_suffix(".bin")
    binary.write_bytes(binary.read_bytes()[:-100])


def _flip_a_byte(models):
    binary = optimised_path("tiny", models).with_suffix(".bin")
    content = bytearray(binary.read_bytes())
    content[len(content) // 2] ^= 1
    binary.write_bytes(content)


def _foreign(models):
    path = optimised_path("tiny", models)
    text = path.read_text()
    start = text.index('weights_sha256 value="') + len('weights_sha256 value="')
    path.write_text(text[:start] + "0" * 64 + text[start + 64 :])


BREAKAGES = {
    "missing": (lambda models: optimised_path("tiny", models).unlink(), "no such file"),
    "no weights": (lambda models: optimised_path("tiny", models).with_suffix(".bin").unlink(), "no such file"),
    "not xml": (lambda models: optimised_path("tiny", models).write_text("hello"), "not a network"),
    "another xml": (lambda models: optimised_path("tiny", models).write_text("<net/>"), "not a network"),
    "truncated": (_truncate, "damaged"),
    "flipped": (_flip_a_byte, "damaged"),
    "foreign": (_foreign, "made from weights 000000000000"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_falls_back_to_keras_and_says_so(breakage, models, tiny_blocks, slices, caplog):
    broken, reason = BREAKAGES[breakage]
    broken(models)
    with caplog.at_level(logging.WARNING, "brainmri"):
        classifier = load_classifier("tiny", models)
    assert classifier.engine.name == "keras"
    assert reason in classifier.fallback_reason
    assert reason in caplog.text
    assert classifier.predict(slices[:1]).engine == "keras"


def test_the_page_says_which_engine_answers(open_page, models, tiny_blocks, tmp_path, monkeypatch):
    """A damaged network behind the real app: Keras answers, and Predict names the reason."""
    _flip_a_byte(models)
    (tmp_path / "broken").mkdir()
    config = tmp_path / "broken" / "config.yaml"
    config.write_text(f"model: {{id: tiny, directory: '{models}'}}\n")
    monkeypatch.setenv("BRAINMRI_CONFIG", str(config))
    page = open_page("main/predict.py", "guest")
    next(button for button in page.button if button.label == "Glioma").click()
    page.run()
    assert not page.exception
    (warning,) = (w.value for w in page.warning if "engine" in w.value)
    assert "The keras engine answers, because the openvino engine does not load" in warning
    assert "damaged" in warning
    assert any("not calibrated" in w.value for w in page.warning)


def test_a_model_without_statistics_is_called_uncalibrated(models, caplog):
    with caplog.at_level(logging.WARNING, "brainmri"):
        load_classifier("tiny", models)
    assert "tiny: not calibrated: no prediction sets" in caplog.text


def test_without_openvino(models, tiny_blocks, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    classifier = load_classifier("tiny", models)
    assert classifier.engine.name == "keras"
    assert "does not import" in classifier.fallback_reason


def test_keras_falls_back_too(models):
    (models / "tiny.keras").unlink()
    classifier = load_classifier("tiny", models, "keras")
    assert classifier.engine.name == "openvino"
    assert "no such weight file" in classifier.fallback_reason


def test_nothing_loads(models):
    (models / "tiny.keras").unlink()
    optimised_path("tiny", models).unlink()
    with pytest.raises(EngineError, match=r"no engine loads.*openvino: .*keras: "):
        load_classifier("tiny", models)


def test_unknown_names_list_the_known(tiny_models):
    with pytest.raises(EngineError, match="known: auto, openvino, keras"):
        load_classifier("tiny", tiny_models, "onnx")
    with pytest.raises(EngineError, match="known: float32, bf16, int8"):
        load_classifier("tiny", tiny_models, precision="fp4")
    with pytest.raises(EngineError, match="optimised for bf16"):
        load_classifier("tiny", tiny_models, precision="int8")


def test_serves_without_tensorflow_keras_or_the_weight_file(models, slices):
    (models / "tiny.keras").unlink()
    np.save(models / "slice.npy", slices[0])
    code = (
        "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None; import numpy as np;"
        "from brainmri.inference import load_classifier;"
        f"p = load_classifier('tiny', {str(models)!r}).predict([np.load({str(models / 'slice.npy')!r})]);"
        "print(p.engine, p.probabilities.sum())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("openvino 1.0")


def test_feature_maps_belong_to_the_answer(tiny_models, tiny_blocks, slices):
    """The dense head on the feature maps gives the logits: both come from one forward pass."""
    from brainmri.model import load_network, read_card

    network = load_network(read_card("tiny", tiny_models), tiny_models)
    prediction = load_classifier("tiny", tiny_models, precision="float32").predict(slices[:3])
    np.testing.assert_array_equal(prediction.inputs[0], preprocess(slices[0])[0])
    pooled = prediction.feature_maps.reshape(3, 4, 2, 4, 2, -1).max((2, 4)).reshape(3, -1)
    hidden = np.maximum(pooled @ network.get_layer("dense").kernel.numpy() + network.get_layer("dense").bias.numpy(), 0)
    logits = hidden @ network.get_layer("logits").kernel.numpy() + network.get_layer("logits").bias.numpy()
    np.testing.assert_allclose(logits, prediction.logits, rtol=1e-3, atol=1e-4)


def test_the_first_layer_keeps_16_bits_in_bfloat16():
    """(high, low, high) against (high, high, low) in bfloat16 is the product to 2**-15, not 2**-8."""
    rng = np.random.default_rng(0)
    grey, kernel = rng.random((1, 64, 64, 1), np.float32), rng.normal(size=1000).astype(np.float32)
    high, low, again = np.moveaxis(split_grey(np.repeat(grey, 3, -1)), -1, 0)
    np.testing.assert_array_equal(high + low, grey[..., 0])
    np.testing.assert_array_equal(high, again)
    np.testing.assert_array_equal(high.view(np.uint32) & 0xFFFF, 0)
    assert np.abs(low).max() <= 2.0**-9
    x, w = grey.ravel()[:1000].astype(np.float64), kernel.astype(np.float64)
    x_high, w_high = (round_to_bfloat16(v).astype(np.float64) for v in (x.astype(np.float32), kernel))
    x_low, w_low = (round_to_bfloat16(v.astype(np.float32)) for v in (x - x_high, w - w_high))
    split = x_high * w_high + x_low * w_high + x_high * w_low
    assert np.abs((split - x * w) / (x * w)).max() < 2.0**-15
    assert np.abs((x_high * w_high - x * w) / (x * w)).max() > 2.0**-10
