"""How fast, how large: every engine and precision in turns within one run, so that ratios hold on a busy machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from brainmri.config import Settings
from brainmri.errors import EngineError
from brainmri.imaging import as_network_batch, preprocess
from brainmri.inference import (
    Classifier,
    KerasEngine,
    OpenVINOEngine,
    check_optimised,
    import_openvino,
    load_classifier,
    optimised_path,
)
from brainmri.model import ModelCard, read_card
from brainmri.types import MRISlice

BATCHES = (1, 8, 32)
KERAS_PREDICT = "keras predict"
"""What a Keras user would call: ``model.predict``; every ratio is against it."""

Report = Callable[[str], None]


class _KerasPredict:
    """``model.predict`` of the plain network."""

    def __init__(self, engine: KerasEngine):
        self.network = engine.network

    def forward(self, batch: np.ndarray) -> Any:
        return self.network.predict(batch, verbose=0)


def run_benchmark(
    settings: Settings, *, model_id: str | None = None, quick: bool = False, report: Report = lambda line: None
) -> dict[str, Any]:
    """Measure latency, prediction + Grad-CAM, cold start, throughput, memory and the share of the machine's peak.

    Runs on synthetic slices; needs no data set.

    Parameters
    ----------
    quick : bool
        A third of the rounds, one cold start, a small archive.

    Returns
    -------
    dict
        ``machine``, ``model_id``, ``default_precision``, ``latency_ms`` (engine -> batch -> median milliseconds an
        image), ``images_per_second``, ``peak_gflops`` and ``peak_fraction`` by precision, ``grad_cam``, ``decision``,
        ``cold_start`` (engine -> seconds, peak_mib), ``archive`` and ``ratios``.

    Raises
    ------
    EngineError
        TensorFlow or OpenVINO is missing, or there is no optimised network that belongs to the weights.
    """
    from brainmri.optimize import processor_name

    directory = Path(settings.model.directory)
    card = read_card(model_id or settings.model.id, directory)
    check_optimised(optimised_path(card.id, directory), card)
    slices = _slices()
    inputs = np.stack([preprocess(s.pixels)[0] for s in slices])
    with _engines(card, directory, report) as engines:
        report(f"latency: {', '.join(engines)}")
        latency = measure_latency(engines, inputs, rounds=5 if quick else 15)
        report("the machine's peak in each precision")
        peak = measure_peaks(
            [e.precision for e in engines.values() if hasattr(e, "precision")], rounds=5 if quick else 15
        )
        gflop = network_gflop(engines["openvino float32"])
    classifier = load_classifier(card.id, directory)
    default = classifier.engine.precision  # not the network's: bf16 is computed in float32 where the processor lacks it
    chosen = f"openvino {default}"
    report("prediction with and without Grad-CAM")
    grad_cam = measure_grad_cam(classifier, slices, directory, rounds=20 if quick else 60)
    report("decision and gate")
    decision = measure_decision(classifier, slices, rounds=60 if quick else 200)
    report("cold start as whole processes")
    cold = measure_cold_start(settings, card.id, repeats=1 if quick else 3)
    report("archive")
    archive = measure_archive(settings, card.id, inputs, n_files=1024 if quick else 4096)
    best = {name: min(by_batch.values()) for name, by_batch in latency.items()}
    precisions = {name: name.rsplit(" ", 1)[1] for name in latency if name.startswith("openvino")}
    return {
        "date": date.today().isoformat(),
        "machine": processor_name(),
        "model_id": card.id,
        "weights_sha256": card.weights_sha256,
        "default_precision": default,
        "gflop_per_image": gflop,
        "latency_ms": latency,
        "images_per_second": {name: 1e3 / ms for name, ms in best.items()},
        "peak_gflops": peak,
        "peak_fraction": {name: gflop / best[name] * 1e3 / peak[p] for name, p in precisions.items()},
        "grad_cam": grad_cam,
        "decision": decision,
        "cold_start": cold,
        "archive": archive,
        "ratios": {
            **{f"default_vs_keras_predict_batch_{b}": latency[KERAS_PREDICT][b] / latency[chosen][b] for b in BATCHES},
            "grad_cam_over_prediction": grad_cam["prediction_and_map_ms"] / grad_cam["prediction_ms"],
            "decision_over_prediction": decision["decision_ms"] / decision["prediction_ms"],
            "cold_start_vs_keras": cold["keras"]["seconds"] / cold["openvino"]["seconds"],
            "cold_start_memory_vs_keras": cold["openvino"]["peak_mib"] / cold["keras"]["peak_mib"],
            "archive_vs_bare_engine": archive["files_per_second"] / archive["bare_engine_per_second"],
        },
    }


def _slices() -> list[MRISlice]:
    from brainmri.synthetic import samples

    return [sample.slice for sample in samples().values()]


@contextlib.contextmanager
def _engines(card: ModelCard, directory: Path, report: Report) -> Iterator[dict[str, Any]]:
    """Every engine and precision of a model; int8 stands for its speed alone unless it is what ships."""
    from brainmri import optimize

    keras = KerasEngine(card, directory)
    engines: dict[str, Any] = {KERAS_PREDICT: _KerasPredict(keras), "keras tf.function": keras}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = optimize.export_network(card, directory)
        network = optimize.write_optimised(model, "float32", card, folder)
        for precision in ("float32", "bf16"):
            engine = OpenVINOEngine(card, directory, precision=precision, network=network)
            if engine.precision == precision:  # a processor without bfloat16 would show float32 twice
                engines[f"openvino {precision}"] = engine
        shipped = optimised_path(card.id, directory)
        if check_optimised(shipped, card) == "int8":
            engines["openvino int8"] = OpenVINOEngine(card, directory)
        else:
            (folder / "int8").mkdir()
            try:
                quantised = optimize.quantise_blindly(model, np.stack([preprocess(s.pixels)[0] for s in _slices()]))
            except EngineError as error:
                report(f"without int8: {error}")
            else:
                optimize.write_optimised(quantised, "int8", card, folder / "int8")
                engines["openvino int8"] = OpenVINOEngine(card, folder / "int8")
        yield engines


def measure_latency(
    engines: Mapping[str, Any], inputs: np.ndarray, *, rounds: int, batches: tuple[int, ...] = BATCHES
) -> dict[str, dict[int, float]]:
    """Median milliseconds an image by engine and batch size; in each round every engine has its turn."""
    stacked = {size: as_network_batch(np.resize(inputs, (size, *inputs.shape[1:]))) for size in batches}
    times: dict[tuple[str, int], list[float]] = {(name, size): [] for name in engines for size in batches}
    for turn in range(rounds + 1):
        for size, batch in stacked.items():
            for name, engine in engines.items():
                engine.forward(batch)  # the one before it has the caches
                start = time.perf_counter()
                engine.forward(batch)
                if turn:
                    times[name, size].append((time.perf_counter() - start) * 1e3 / size)
    return {name: {size: float(np.median(times[name, size])) for size in batches} for name in engines}


def network_gflop(engine: OpenVINOEngine) -> float:
    """Multiplications and additions of one forward pass, in 10^9, from the network's shapes."""
    total = 0
    for op in import_openvino().Core().read_model(engine.path).get_ordered_ops():
        if op.get_type_name() == "Convolution":
            _, channels, rows, columns = op.get_output_partial_shape(0)
            kernel = op.get_input_partial_shape(1)
            total += (
                2
                * channels.get_length()
                * rows.get_length()
                * columns.get_length()
                * int(np.prod([d.get_length() for d in list(kernel)[1:]]))
            )
        elif op.get_type_name() == "MatMul":
            total += 2 * int(np.prod([d.get_length() for d in op.get_input_partial_shape(1)]))
    return total / 1e9


def measure_peaks(precisions: list[str], *, rounds: int) -> dict[str, float]:
    """Largest rate in 10^9 operations a second that oneDNN reaches here, in chains of products and convolutions."""
    openvino = import_openvino()
    opset = openvino.opset13
    rng = np.random.default_rng(0)

    def quantised(node, int8: bool):
        return opset.fake_quantize(node, *(np.float32(x) for x in (0, 1, 0, 1)), 256) if int8 else node

    def weights(shape, int8: bool):
        node = opset.constant(rng.uniform(-1, 1, shape).astype(np.float32))
        return opset.fake_quantize(node, *(np.float32(x) for x in (-1, 1, -1, 1)), 255) if int8 else node

    def convolutions(channels: int, side: int, batch: int, repeats: int, int8: bool):
        x = image = opset.parameter([batch, channels, side, side], np.float32)
        for _ in range(repeats):
            kernel = weights((channels, channels, 3, 3), int8)
            x = opset.relu(opset.convolution(quantised(x, int8), kernel, [1, 1], [1, 1], [1, 1], [1, 1]))
        pooled = opset.reduce_mean(x, opset.constant(np.array([2, 3])))
        return openvino.Model([pooled], [image]), repeats * 2 * batch * side * side * channels * channels * 9

    def products(size: int, repeats: int, int8: bool):
        x = image = opset.parameter([size, size], np.float32)
        for _ in range(repeats):
            x = opset.relu(opset.matmul(quantised(x, int8), weights((size, size), int8), False, True))
        pooled = opset.reduce_mean(x, opset.constant(np.array([1])))
        return openvino.Model([pooled], [image]), repeats * 2 * size**3

    peaks: dict[str, float] = {}
    for precision in dict.fromkeys(precisions):
        int8 = precision == "int8"
        hint = "f32" if precision == "float32" else "bf16"
        chains = [convolutions(c, s, b, 8, int8) for c, s, b in ((128, 64, 4), (256, 32, 8), (512, 16, 8))]
        chains += [products(size, 4, int8) for size in (1024, 2048)]
        for model, operations in chains:
            options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
            request = openvino.compile_model(model, "CPU", options).create_infer_request()
            batch = rng.random([d.get_length() for d in model.inputs[0].get_partial_shape()], np.float32)
            for turn in range(rounds + 1):
                start = time.perf_counter()
                request.infer([batch], share_inputs=True, share_outputs=True)
                if turn:
                    rate = operations / (time.perf_counter() - start) / 1e9
                    peaks[precision] = max(peaks.get(precision, 0.0), rate)
    return peaks


def measure_grad_cam(
    classifier: Classifier, slices: list[MRISlice], directory: Path, *, rounds: int
) -> dict[str, float]:
    """Median milliseconds of one prediction alone and with its Grad-CAM map, in turns."""
    from brainmri.explain import explain
    from brainmri.pipeline import analyse

    alone, mapped = [], []
    for turn in range(rounds + 3):
        mri_slice = slices[turn % len(slices)]
        start = time.perf_counter()
        analyse(classifier, [mri_slice])
        middle = time.perf_counter()
        explain(classifier, analyse(classifier, [mri_slice]), allow_rejected=True, directory=directory)
        if turn >= 3:
            alone.append((middle - start) * 1e3)
            mapped.append((time.perf_counter() - middle) * 1e3)
    return {"prediction_ms": float(np.median(alone)), "prediction_and_map_ms": float(np.median(mapped))}


def measure_decision(classifier: Classifier, slices: list[MRISlice], *, rounds: int) -> dict[str, float]:
    """Median milliseconds of temperature, prediction set and gate, and of one slice's whole prediction with them."""
    whole, rule = [], []
    for turn in range(rounds + 3):
        mri_slice = slices[turn % len(slices)]
        start = time.perf_counter()
        answer = classifier.predict([mri_slice.pixels])
        middle = time.perf_counter()
        classifier.rule.apply(answer.logits, answer.feature_maps, answer.inputs, [mri_slice.colour_share])
        if turn >= 3:
            whole.append((middle - start) * 1e3)
            rule.append((time.perf_counter() - middle) * 1e3)
    return {"prediction_ms": float(np.median(whole)), "decision_ms": float(np.median(rule))}


def measure_cold_start(settings: Settings, model_id: str, *, repeats: int) -> dict[str, dict[str, float]]:
    """``brainmri predict one.png`` as a whole process: median seconds and peak resident memory, engines in turns."""
    found: dict[str, list[tuple[float, float]]] = {"keras": [], "openvino": []}
    with tempfile.TemporaryDirectory() as scratch:
        picture = Path(scratch) / "one.png"
        Image.fromarray(_slices()[0].pixels).save(picture)
        configs = {}
        for engine in found:
            configs[engine] = Path(scratch) / f"{engine}.yaml"
            chosen = {"id": model_id, "directory": str(Path(settings.model.directory).resolve()), "engine": engine}
            configs[engine].write_text(yaml.safe_dump({"model": chosen}))
        for turn in range(repeats + 1):  # the first round fills the page cache
            for engine, config in configs.items():
                seconds, mib = run_process(["predict", str(picture), "--json"], config, engine)
                if turn:
                    found[engine].append((seconds, mib))
    return {
        engine: dict(zip(("seconds", "peak_mib"), np.median(runs, axis=0).tolist(), strict=True))
        for engine, runs in found.items()
    }


def run_process(arguments: list[str], config: Path, engine: str | None = None) -> tuple[float, float]:
    """Run the command line as a process of its own; seconds and peak resident memory in MiB.

    Raises
    ------
    EngineError
        It failed, or fell back to another engine.
    """
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "BRAINMRI_CONFIG": str(config), "PYTHONPATH": path}
    command = [sys.executable, "-m", "brainmri", *arguments]
    done = subprocess.run(
        [sys.executable, "-c", _LAUNCH, *command], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode or "does not load" in done.stderr:
        raise EngineError(f"'brainmri {' '.join(arguments)}' with {engine} failed: {done.stderr.strip()[-300:]}")
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), float(peak) / (1 << 20 if sys.platform == "darwin" else 1 << 10)


# A process inherits the peak memory of the one that forks it, so a small one must.
_LAUNCH = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
print(time.perf_counter() - start, usage.ru_maxrss)
sys.exit(process.returncode)
"""


def measure_archive(
    settings: Settings, model_id: str, inputs: np.ndarray, *, n_files: int, seconds: float = 4.0, turns: int = 3
) -> dict[str, float]:
    """Files a second of ``predict ROOT --output`` on JPEG files against the bare engine on the same cores.

    Both run as they do in the job, one single-threaded engine a worker process; the engine alone is fed network inputs
    in batches of 32 that are ready in memory. The job's rate is that of its steady state: the start of its processes,
    which a real archive does not notice, is left out by timing from the first chunk of each to the last.
    """
    from brainmri.archive import available_cores, make_job, run_archive

    workers = available_cores()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "images"
        root.mkdir()
        rng = np.random.default_rng(0)
        slices = _slices()
        for i in range(n_files):
            pixels = np.roll(slices[i % len(slices)].pixels, int(rng.integers(-8, 9)), axis=1)
            Image.fromarray(pixels).resize((256, 256)).save(root / f"{i:06}.jpg", quality=90)
        np.save(Path(scratch) / "batch.npy", as_network_batch(np.resize(inputs, (32, *inputs.shape[1:]))))
        bare: list[float] = []
        rates: list[float] = []
        for turn in range(turns):
            bare.append(bare_rate(settings, model_id, workers, Path(scratch) / "batch.npy", seconds))
            job = make_job(
                root, Path(scratch) / f"out{turn}", settings, model_id=model_id, workers=workers, chunk_files=64
            )
            seen: list[tuple[float, int]] = []
            run_archive(
                job,
                workers=workers,
                progress=lambda s, seen=seen: seen.append((time.perf_counter(), s.files)),  # type: ignore[misc]
            )
            warm = next(i for i, (_, files) in enumerate(seen) if files > n_files / 4)
            rates.append((seen[-1][1] - seen[warm][1]) / (seen[-1][0] - seen[warm][0]))
    return {
        "workers": workers,
        "files": n_files,
        "files_per_second": float(np.median(rates)),
        "bare_engine_per_second": float(np.median(bare)),
    }


_BARE = """
import sys, time
import numpy as np
from brainmri.inference import load_classifier
engine = load_classifier(sys.argv[1], sys.argv[2], threads=int(sys.argv[3])).engine
batch = np.load(sys.argv[4])
for _ in range(3):
    engine.forward(batch)
print("ready", flush=True)
sys.stdin.readline()
count, start = 0, time.perf_counter()
while time.perf_counter() - start < float(sys.argv[5]):
    engine.forward(batch)
    count += len(batch)
print(count / (time.perf_counter() - start), flush=True)
"""


def bare_rate(
    settings: Settings, model_id: str, workers: int, batch: Path, seconds: float, *, threads: int | None = None
) -> float:
    """Images a second of that many engines at once, each in a process of its own and fed one batch again and again.

    Parameters
    ----------
    batch : path
        ``.npy`` of network inputs, float32 (n, 128, 128, 3).
    threads : int, optional
        Of each engine; default its share of the cores.
    """
    from brainmri.archive import available_cores

    root = str(Path(__file__).resolve().parent.parent)
    threads = threads or max(1, available_cores() // workers)
    arguments = (model_id, settings.model.directory, threads, batch, seconds)
    command = [sys.executable, "-c", _BARE, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": root}
    crew = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(workers)
    ]
    for process in crew:
        if process.stdout is None or process.stdout.readline().strip() != "ready":
            raise EngineError("an engine did not start in a process of its own")
    for process in crew:
        if process.stdin is not None:
            process.stdin.write("go\n")
            process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in crew)


def as_table(result: Mapping[str, Any]) -> str:
    """The result as one Markdown table a topic."""
    latency = result["latency_ms"]
    lines = [
        f"{result['date']}, {result['machine']}; model {result['model_id']}, default {result['default_precision']}, "
        f"{result['gflop_per_image']:.2f} GFLOP an image.",
        "",
        "| engine | batch 1 | batch 8 | batch 32 | images/s | vs Keras predict (1 / 32) | of peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, by_batch in latency.items():
        fraction = result["peak_fraction"].get(name)
        speedup = [latency[KERAS_PREDICT][b] / by_batch[b] for b in (1, 32)]
        lines.append(
            f"| {name} | {by_batch[1]:.2f} ms | {by_batch[8]:.2f} ms | {by_batch[32]:.2f} ms | "
            f"{result['images_per_second'][name]:.0f} | {speedup[0]:.1f} / {speedup[1]:.1f} | "
            f"{f'{fraction:.0%}' if fraction else ''} |"
        )
    lines += ["", "| measured | value |", "|---|---|"]
    for precision, peak in result["peak_gflops"].items():
        lines.append(f"| peak in {precision} | {peak:,.0f} GFLOP/s |")
    for engine, figures in result["cold_start"].items():
        lines.append(f"| cold start, {engine} | {figures['seconds']:.2f} s, {figures['peak_mib']:.0f} MiB |")
    grad_cam, archive = result["grad_cam"], result["archive"]
    lines += [
        f"| prediction | {grad_cam['prediction_ms']:.2f} ms |",
        f"| prediction + Grad-CAM | {grad_cam['prediction_and_map_ms']:.2f} ms |",
        f"| archive, {archive['workers']} workers; bare engine | {archive['files_per_second']:.0f} files/s; "
        f"{archive['bare_engine_per_second']:.0f} images/s |",
        *(f"| {name} | {value:.2f} |" for name, value in result["ratios"].items()),
    ]
    return "\n".join(lines)


def as_json(result: Mapping[str, Any]) -> str:
    """The result as JSON, four significant digits."""

    def shorten(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): shorten(v) for k, v in value.items()}
        return float(f"{value:.4g}") if isinstance(value, float) else value

    return json.dumps(shorten(dict(result)), indent=2)
