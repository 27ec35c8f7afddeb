"""Many readers at once: a real server, and sessions that speak Streamlit's websocket protocol as a browser does.

    python benchmarks/load.py [--sessions 50] [--seconds 120] [--every 10] [--visits 200]
    python benchmarks/load.py --fresh [--rounds 3]

Each session opens the app, enters as a guest, goes to Predict and presses a sample every ``--every`` seconds; its
latency is that of the whole answer, from the click until the page is drawn. Then ``--visits`` further sessions come
one after the other, predict once and leave; the server's memory is read before and after. Prints JSON; exit code 1
after any error. With ``--fresh`` instead the first answer of a fresh server, both engines in turns. Loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def server(model_directory: Path | str, model_id: str, engine: str = "auto") -> Iterator[tuple[int, psutil.Process]]:
    """Start the app on a free port with a database and uploads of its own; yields port and process."""
    with tempfile.TemporaryDirectory() as scratch, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        config = Path(scratch) / "config.yaml"
        model = {"id": model_id, "directory": str(Path(model_directory).resolve()), "engine": engine}
        config.write_text(
            yaml.safe_dump(
                {
                    "model": model,
                    "database": {"url": f"sqlite:///{scratch}/app.db"},
                    "uploads": {"directory": f"{scratch}/uploads"},
                    "accounts": {"key_file": f"{scratch}/cookie.key"},
                    "dicom": {"key_file": f"{scratch}/uid.key"},
                }
            )
        )
        options = ["--server.port", str(port), "--server.address", "127.0.0.1", "--server.headless", "true"]
        command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "Home.py"), *options]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "BRAINMRI_CONFIG": str(config)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError("the server did not start") from None
                    time.sleep(0.05)
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(20)


class Session:
    """One reader's browser tab."""

    def __init__(self, port: int):
        self.port = port
        self.buttons: dict[str, str] = {}
        self.pages: dict[str, str] = {}
        self.errors: list[str] = []
        self.texts: list[str] = []
        self.page = ""
        self.socket: Any = None

    async def open(self) -> None:
        """Connect, enter as a guest, go to Predict."""
        import websockets

        self.socket = await websockets.connect(
            f"ws://127.0.0.1:{self.port}/_stcore/stream",
            subprotocols=[websockets.Subprotocol("streamlit")],
            max_size=None,
            open_timeout=60,
            ping_timeout=120,
        )
        await self.run()
        await self.run(self._button("Try as a guest"))
        self.page = self.pages["predict"]
        await self.run()

    async def predict(self) -> float:
        """Press a sample; seconds until the answer is drawn."""
        self.texts.clear()
        start = time.perf_counter()
        await self.run(self._button(random.choice(("Glioma", "Meningioma", "No tumour", "Pituitary"))))
        elapsed = time.perf_counter() - start
        if not any("Guest session" in text for text in self.texts) or len(self.texts) < 3:
            self.errors.append(f"no answer on the page: {self.texts}")
        return elapsed

    async def close(self) -> None:
        """Close the tab."""
        await self.socket.close()

    def _button(self, label: str) -> str:
        if label not in self.buttons:
            raise RuntimeError(f"no button {label!r}; there are {sorted(self.buttons)}; errors: {self.errors}")
        return self.buttons[label]

    async def run(self, pressed: str | None = None) -> None:
        """Have the script run, with a button pressed, and read the page until it is finished."""
        from streamlit.proto.BackMsg_pb2 import BackMsg
        from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

        message = BackMsg()
        message.rerun_script.query_string = ""
        message.rerun_script.page_script_hash = self.page
        if pressed:
            state = message.rerun_script.widget_states.widgets.add()
            state.id, state.trigger_value = pressed, True
        await self.socket.send(message.SerializeToString())
        while True:
            answer = ForwardMsg()
            answer.ParseFromString(await asyncio.wait_for(self.socket.recv(), 120))
            kind = answer.WhichOneof("type")
            if kind == "navigation":
                self.pages = {p.url_pathname: p.page_script_hash for p in answer.navigation.app_pages}
                self.page = self.page or answer.navigation.page_script_hash
            elif kind == "delta" and answer.delta.WhichOneof("type") == "new_element":
                self._read(answer.delta.new_element)
            elif kind == "script_finished" and answer.script_finished in (0, 1):
                return
            elif kind == "auth_redirect":
                self.errors.append("redirected")

    def _read(self, element: Any) -> None:
        kind = element.WhichOneof("type")
        if kind == "button":
            self.buttons[element.button.label] = element.button.id
        elif kind == "exception":
            self.errors.append(element.exception.message)
        elif kind == "alert":
            self.texts.append(element.alert.body)
            if element.alert.format == 1 or "busy" in element.alert.body:
                self.errors.append(element.alert.body)
        elif kind in ("markdown", "heading"):
            self.texts.append(str(getattr(element, kind).body))


async def crowd(port: int, sessions: int, seconds: float, every: float) -> tuple[list[float], list[str], float]:
    """Sessions side by side; latencies, errors and predictions a second."""
    rng = random.Random(0)
    latencies: list[float] = []
    readers = [Session(port) for _ in range(sessions)]
    for start in range(0, sessions, 10):
        await asyncio.gather(*(reader.open() for reader in readers[start : start + 10]))
    await asyncio.gather(*(reader.predict() for reader in readers[:1]))
    begin = time.perf_counter()

    async def read(reader: Session) -> None:
        await asyncio.sleep(rng.uniform(0, every))
        while time.perf_counter() - begin < seconds:
            next_click = time.perf_counter() + every
            latencies.append(await reader.predict())
            await asyncio.sleep(max(0.0, next_click - time.perf_counter()))

    await asyncio.gather(*(read(reader) for reader in readers))
    throughput = len(latencies) / (time.perf_counter() - begin)
    await asyncio.gather(*(reader.close() for reader in readers))
    return latencies, [error for reader in readers for error in reader.errors], throughput


async def visit(port: int, visits: int) -> list[str]:
    """Sessions one after the other, a prediction each."""
    errors: list[str] = []
    for _ in range(visits):
        reader = Session(port)
        await reader.open()
        await reader.predict()
        await reader.close()
        errors += reader.errors
    return errors


async def first_prediction(port: int) -> tuple[Session, float]:
    """The first prediction of a fresh server, and seconds from its click to the drawn answer."""
    reader = Session(port)
    await reader.open()
    seconds = await reader.predict()
    await reader.close()
    return reader, seconds


def measure_fresh_app(model_directory: Path | str, model_id: str, engine: str) -> dict[str, float]:
    """A fresh server's first answer, asked for as soon as its page is drawn.

    Returns
    -------
    dict
        ``seconds`` from starting the server to the answer, ``click_to_answer_s`` of them after the click, ``peak_mib``
        of the server by then.
    """
    start = time.perf_counter()
    with server(model_directory, model_id, engine) as (port, process):
        reader, click_to_answer = asyncio.run(first_prediction(port))
        seconds = time.perf_counter() - start
        if reader.errors:
            raise RuntimeError(f"errors on the page: {reader.errors}")
        return {"seconds": seconds, "click_to_answer_s": click_to_answer, "peak_mib": peak_mib(process)}


def peak_mib(process: psutil.Process) -> float:
    """Largest resident memory so far; where the system does not say, the present one."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    return process.memory_info().rss / 2**20


def measure_load(
    model_directory: Path | str, model_id: str, *, sessions: int, seconds: float, every: float, visits: int
) -> dict[str, Any]:
    """See the module's docstring."""
    with server(model_directory, model_id) as (port, process):
        latencies, errors, throughput = asyncio.run(crowd(port, sessions, seconds, every))
        errors += asyncio.run(visit(port, min(20, visits)))
        before = process.memory_info().rss
        errors += asyncio.run(visit(port, visits))
        grown = process.memory_info().rss - before
    ordered = sorted(latencies)
    return {
        "sessions": sessions,
        "predictions": len(latencies),
        "errors": errors,
        "p50_s": statistics.median(ordered),
        "p95_s": ordered[int(0.95 * (len(ordered) - 1))],
        "predictions_per_second": throughput,
        "visits": visits,
        "rss_mib": (before + grown) / 2**20,
        "rss_growth_mib": grown / 2**20,
    }


def main() -> None:
    """Entry point."""
    from brainmri.config import load_settings

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--every", type=float, default=10)
    parser.add_argument("--visits", type=int, default=200)
    parser.add_argument("--fresh", action="store_true", help="the first prediction of a fresh app, both engines, alone")
    parser.add_argument("--rounds", type=int, default=3, help="of --fresh")
    options = parser.parse_args()
    model = load_settings().model
    if options.fresh:
        runs: dict[str, list[dict[str, float]]] = {"keras": [], "openvino": []}
        for _ in range(options.rounds):
            for engine, results in runs.items():
                results.append(measure_fresh_app(model.directory, model.id, engine))
        found = {
            engine: {key: statistics.median(r[key] for r in results) for key in results[0]}
            for engine, results in runs.items()
        }
        found["ratios"] = {
            "seconds": found["keras"]["seconds"] / found["openvino"]["seconds"],
            "click_to_answer": found["keras"]["click_to_answer_s"] / found["openvino"]["click_to_answer_s"],
            "memory": found["openvino"]["peak_mib"] / found["keras"]["peak_mib"],
        }
        print(json.dumps(found, indent=2))
        return
    result = measure_load(
        model.directory,
        model.id,
        sessions=options.sessions,
        seconds=options.seconds,
        every=options.every,
        visits=options.visits,
    )
    print(json.dumps(result, indent=2))
    sys.exit(1 if result["errors"] else 0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
