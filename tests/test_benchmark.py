"""The benchmarks run, in miniature, and their arithmetic is right."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import BENCHMARKS, SCRIPTS, script
from typer.testing import CliRunner

from brainmri import benchmark, optimize
from brainmri.config import ModelSettings, Settings
from brainmri.errors import EngineError
from brainmri.inference import OpenVINOEngine, check_optimised, load_classifier, optimised_path
from brainmri.model import read_card


@pytest.mark.parametrize("name", ["performance", "scaling"])
def test_the_documents_show_the_saved_figures(name):
    """docs/performance.md and docs/scaling.md are what their script makes of benchmarks/results.json."""
    documents = script("performance_doc", SCRIPTS)
    saved = BENCHMARKS / "results.json"
    if not saved.is_file():
        pytest.skip("nothing measured yet: python benchmarks/record.py all")
    results = json.loads(saved.read_text("utf-8"))
    assert documents.whole(results)
    assert set(documents.SECTIONS) == set(script("record").SECTIONS)
    text = (BENCHMARKS.parent / "docs" / f"{name}.md").read_text("utf-8")
    for block in getattr(documents, name)(results).values():
        assert block in text


def test_a_hundred_million_slices_by_hand():
    """20 JPEGs a core and second, 50 ms more a DICOM slice: 10 a second, and 10^8 of them are 2778 core-hours."""
    documents = script("performance_doc", SCRIPTS)
    context = {"command": "it", "date": "2026-01-01", "machine": "a machine", "precision": "bf16"}
    context["load_average_before"] = 0.0
    peak = {"driver_mib": 100.0, "worker_mib": 512.0}
    limits = {
        "listing": {"files_per_second": 100_000.0},
        "dealing": {"chunks_per_second": 100.0},
        "reading": {"jpeg_ms": 10.0, "dicom_ms": 60.0},
        "memory": {"peak_64_files": peak, "joined_rows_per_second": 1e6, "output_bytes_per_row": 200.0},
    }
    ray = {"files_per_second": {"1": 25.0, "2": 40.0}, "efficiency": 0.8}
    sections = dict.fromkeys(documents.SECTIONS, context)
    sections |= {"ray": {**context, "result": ray}, "limits": {**context, "result": limits}}
    blocks = documents.scaling({"a machine": sections})
    assert "2,778 core-hours of work, 111 USD; output 20 GB in 390,625 parts" in blocks["cluster"]
    assert "| 4 x 32 | 1,280 | 21.7 | 22.3 | 16 GiB | 1.36 Gbit/s | 114 |" in blocks["cluster"]
    assert "| 256 x 32 | 25,600 (driver's limit) | 1.1 |" in blocks["cluster"]
    assert "| 2,560 | one driver dealing out chunks |" in blocks["breaks"]
    assert "| 236 | one link of 10 Gbit/s from the store |" in blocks["breaks"]


def test_operations_of_a_network_by_hand(tiny_models):
    engine = OpenVINOEngine(read_card("tiny", tiny_models), tiny_models)
    sizes = [(3, 4, 128), (4, 8, 64), (8, 8, 32), (8, 8, 16), (8, 16, 8), (16, 16, 8), (16, 16, 8)]
    expected = sum(2 * 9 * i * o * s * s for i, o, s in sizes) + 2 * (16 * 4 * 4 * 128 + 128 * 4)
    assert benchmark.network_gflop(engine) == pytest.approx(expected / 1e9)


def test_latency_takes_turns_and_counts_per_image():
    calls = []

    class Engine:
        def __init__(self, name):
            self.name = name

        def forward(self, batch):
            calls.append((self.name, len(batch)))

    engines = {"a": Engine("a"), "b": Engine("b")}
    found = benchmark.measure_latency(engines, np.zeros((3, 8, 8), np.float32), rounds=2, batches=(1, 4))
    assert set(found) == {"a", "b"}
    assert set(found["a"]) == {1, 4}
    assert calls[:8] == [("a", 1)] * 2 + [("b", 1)] * 2 + [("a", 4)] * 2 + [("b", 4)] * 2
    assert all(ms > 0 for by_batch in found.values() for ms in by_batch.values())


@pytest.mark.alone
def test_the_whole_benchmark_in_miniature(tiny_models, tiny_blocks, native_bf16, monkeypatch):
    settings = Settings(model=ModelSettings(id="tiny", directory=tiny_models))
    # A process of its own does not know the miniature network's Keras side; its OpenVINO side is the real thing.
    cold = benchmark.run_process
    monkeypatch.setattr(benchmark, "run_process", lambda a, c, e: (5.0, 900.0) if e == "keras" else cold(a, c, e))
    measure = benchmark.measure_archive
    monkeypatch.setattr(
        benchmark, "measure_archive", lambda *a, n_files: measure(*a, n_files=256, seconds=0.3, turns=1)
    )
    monkeypatch.setattr(benchmark, "measure_peaks", lambda precisions, rounds: dict.fromkeys(precisions, 1000.0))
    result = benchmark.run_benchmark(settings, quick=True)
    decoded = json.loads(benchmark.as_json(result))
    assert {
        "default_vs_keras_predict_batch_1",
        "default_vs_keras_predict_batch_32",
        "grad_cam_over_prediction",
        "decision_over_prediction",
        "cold_start_vs_keras",
        "archive_vs_bare_engine",
    } <= set(decoded["ratios"])
    assert decoded["default_precision"] == native_bf16
    latency = decoded["latency_ms"]
    assert {"keras predict", "keras tf.function", "openvino float32", f"openvino {native_bf16}"} <= set(latency)
    ratio = latency["keras predict"]["32"] / latency[f"openvino {native_bf16}"]["32"]
    assert decoded["ratios"]["default_vs_keras_predict_batch_32"] == pytest.approx(ratio, rel=0.01)
    assert decoded["ratios"]["cold_start_vs_keras"] > 1
    assert 0 < decoded["decision"]["decision_ms"] < decoded["decision"]["prediction_ms"]
    assert 20 < decoded["cold_start"]["openvino"]["peak_mib"] < 600
    table = benchmark.as_table(result)
    assert f"| openvino {native_bf16} |" in table
    assert "cold_start_vs_keras" in table


def test_peak_is_measured_in_each_precision():
    peaks = benchmark.measure_peaks(["float32", "float32"], rounds=1)
    assert list(peaks) == ["float32"]
    assert peaks["float32"] > 1


def test_a_fallback_is_not_measured_as_the_engine(tiny_models, tmp_path):
    """A cold start that quietly ran on another engine would be a false figure."""
    config = tmp_path / "config.yaml"
    config.write_text(f"model:\n  id: nothing\n  directory: {tiny_models}\n")
    with pytest.raises(EngineError, match=r"with openvino failed: .*no model card"):
        benchmark.run_process(["predict", "x.png"], config, "openvino")


def test_memory_stays_flat(tiny_models):
    found = script("memory").measure_memory(tiny_models, "tiny", 800, warm_up=400)
    assert found["growth_mib"] < 15
    assert found["predictions_per_second"] > 1


@pytest.mark.alone
def test_readers_on_a_real_server(tiny_models):
    """benchmarks/load.py in small: websocket sessions as a browser opens them, no error, answers in time."""
    found = script("load").measure_load(tiny_models, "tiny", sessions=4, seconds=4, every=1, visits=3)
    assert found["errors"] == []
    assert found["predictions"] >= 8
    assert found["p95_s"] < 3


def test_a_first_answer_loads_no_library_that_it_does_not_need(tiny_models):
    """Each costs a fresh app memory and time; those with compiled parts show in the process's memory map."""
    load = script("load")
    with load.server(tiny_models, "tiny") as (port, process):
        reader, _ = asyncio.run(load.first_prediction(port))
        mapped = {Path(m.path).parts for m in process.memory_maps()}
    assert reader.errors == []
    loaded = {parts[parts.index("site-packages") + 1] for parts in mapped if "site-packages" in parts}
    assert "openvino" in loaded
    unneeded = {
        "tensorflow",
        "pandas",
        "pyarrow",
        "sklearn",
        "matplotlib",
        "nibabel",
        "faiss",
        "reportlab",
        "rpds",
        "h5py",
    }
    assert not loaded & unneeded  # rpds: Altair's schema checks


def test_listing_and_memory_of_an_archive_job(tiny_models, tmp_path, monkeypatch):
    """benchmarks/limits.py in small."""
    settings = Settings(model=ModelSettings(id="tiny", directory=tiny_models))
    (tmp_path / "config.yaml").write_text(f"model:\n  id: tiny\n  directory: {tiny_models}\n")
    monkeypatch.setenv("BRAINMRI_CONFIG", str(tmp_path / "config.yaml"))
    limits = script("limits")
    listing = limits.measure_listing(settings, 2500)
    assert listing["files"] == 2500
    assert listing["chunks"] >= 3  # of 1024 files at most
    memory = limits.measure_memory(settings, 16)
    assert 20 < memory["peak_16_files"]["driver_mib"] < 400
    assert memory["output_bytes_per_row"] > 100


def test_a_cached_classic_epoch_is_measured(tiny_blocks, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["classic_epoch.py", "--images", "8", "--repeats", "1"])
    script("classic_epoch").main()
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 8
    assert found["cached_over_plain"] > 0


def test_commands_exist():
    from brainmri.cli import app

    for command in ("optimize", "benchmark", "predict"):
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_int8_for_speed_is_int8(tiny_models, tiny_blocks, native_bf16, tmp_path, capsys):
    card = read_card("tiny", tiny_models)
    inputs = np.random.default_rng(0).random((4, 128, 128), np.float32)
    model = optimize.quantise_blindly(optimize.export_network(card, tiny_models), inputs)
    assert capsys.readouterr().out == ""  # --json prints JSON and nothing else
    path = optimize.write_optimised(model, "int8", card, tmp_path)
    assert check_optimised(path, card) == "int8"
    assert len(optimize.int8_layers(model)) == 5
    assert optimised_path("tiny", tmp_path) == path
    assert load_classifier("tiny", tiny_models).engine.precision == native_bf16
