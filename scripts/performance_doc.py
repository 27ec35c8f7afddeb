"""Fill the tables of docs/performance.md and docs/scaling.md from benchmarks/results.json.

python scripts/performance_doc.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from brainmri.archive import CHUNK_FILES  # noqa: E402
from brainmri.benchmark import as_table  # noqa: E402
from brainmri.config import load_settings  # noqa: E402
from brainmri.documents import write_tables  # noqa: E402
from brainmri.model import read_card  # noqa: E402

SECTIONS = ("engines", "fresh_app", "load", "memory", "ray", "limits")
"""Of benchmarks/record.py."""

# The paper cluster of docs/scaling.md: what is assumed, not measured.
SLICES = 100_000_000
CORES_PER_NODE = 32
CORE_HOUR_USD = 0.04
"""Of a general-purpose cloud core, on demand; interruptible ones cost about a third."""
INPUT_MB = 0.53
"""A 512 x 512, 16-bit DICOM slice without compression."""
LISTING_PASSES = 3
"""Survey, dealing out, putting together: `archive.run_chunks` reads the listing in each."""


def main() -> None:
    """Write between the markers."""
    machines = json.loads((ROOT / "benchmarks" / "results.json").read_text("utf-8"))
    for machine, sections in machines.items():
        if missing := sorted(set(SECTIONS) - set(sections)):
            print(f"not measured on {machine}: python benchmarks/record.py {' '.join(missing)}", file=sys.stderr)
    write_tables(
        ROOT / "docs" / "performance.md", performance(machines) if whole(machines) else {"precision": precisions()}
    )
    if whole(machines):
        write_tables(ROOT / "docs" / "scaling.md", scaling(machines))


def whole(machines: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The machines that every section was measured on, last measured first."""
    complete = [sections for sections in machines.values() if set(SECTIONS) <= set(sections)]
    complete.sort(key=lambda sections: max(s["date"] for s in sections.values()), reverse=True)
    return {sections["engines"]["machine"]: sections for sections in complete}


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def dated(section: dict[str, Any], rows: list[tuple[str, str]]) -> str:
    """A section's figures under its command, date and machine."""
    return f"{origin(section)}:\n\n" + table(("measured", "value"), rows)


def origin(section: dict[str, Any]) -> str:
    """Where figures come from; a load average above the processes' own says that the machine was busy with more."""
    return (
        f"`{section['command']}`, {section['date']}, {section['machine']}, {section['precision']}, load average "
        f"{section['load_average_before']:.1f} before it began"
    )


def bars(machines: dict[str, Any]) -> str:
    """What is wanted, and what each machine reached."""
    limits: dict[str, tuple[str, dict[str, str]]] = {}
    legend: list[str] = []
    letters = dict(zip(whole(machines), "ABCDEFGH", strict=False))
    for machine, letter in letters.items():
        results = whole(machines)[machine]
        engines, fresh, load, memory, ray = (
            results[name]["result"] for name in ("engines", "fresh_app", "load", "memory", "ray")
        )
        ratios = engines["ratios"]
        precision = engines["default_precision"]
        settled = ", ".join(
            f"{name}: `{results[name]['command'].removeprefix('python ')}`"
            for name in ("fresh_app", "load", "memory", "ray")
        )
        weights = ", ".join(sorted({results[name]["weights_sha256"][:8] for name in SECTIONS}))
        legend.append(f"- {letter}: {machine}, {precision}, weights {weights}; {settled}")
        for name, value, sign, limit in (
            (
                "default over Keras `predict`, batch 1",
                "default_vs_keras_predict_batch_1",
                ">=",
                {"int8": 5, "bf16": 3.5},
            ),
            (
                "default over Keras `predict`, batch 32",
                "default_vs_keras_predict_batch_32",
                ">=",
                {"int8": 3.5, "bf16": 2.2},
            ),
            ("cold start of `brainmri predict`, faster than with Keras", "cold_start_vs_keras", ">=", 6),
            (
                "fresh app, click to first answer, faster than with Keras",
                fresh["ratios"].get("click_to_answer"),
                ">=",
                6,
            ),
            ("fresh app, start of the server to first answer, likewise", fresh["ratios"]["seconds"], ">=", 6),
            ("archive over bare engine", "archive_vs_bare_engine", ">=", 0.9),
            ("Ray, two workers over one", ray["efficiency"], ">=", 0.85),
            ("memory of that cold start over Keras's", "cold_start_memory_vs_keras", "<=", 1 / 3),
            ("memory of that fresh app over Keras's", fresh["ratios"]["memory"], "<=", 1 / 3),
            ("prediction + Grad-CAM over prediction", "grad_cam_over_prediction", "<=", 1.15),
            ("temperature, prediction set and gate, share of a prediction", "decision_over_prediction", "<=", 0.10),
            ("p95 of the load test, s", load["p95_s"], "<=", 3),
            ("growth of memory over many predictions, MiB", memory["growth_mib"], "<=", 50),
        ):
            mark = "≥" if sign == ">=" else "≤"
            if isinstance(limit, dict):
                wanted = f"{mark} " + ", ".join(f"{value:.3g} in {name}" for name, value in limit.items())
                limit = limit["int8" if precision == "int8" else "bf16"]
            else:
                wanted = f"{mark} {limit:.3g}"
            figure = ratios.get(value) if isinstance(value, str) else value
            met = figure is not None and (figure >= limit if sign == ">=" else figure <= limit)
            shown = "–" if figure is None else f"{figure:.2f}" if met else f"**{figure:.2f}**"
            limits.setdefault(name, (wanted, {}))[1][letter] = shown
    rows = [(name, wanted, *(found.get(x, "–") for x in letters.values())) for name, (wanted, found) in limits.items()]
    said = "Bold falls short. Columns measured by other commands, or other weights, are not to be compared row by row."
    return table(("ratio or limit", "wanted", *letters.values()), rows) + f"\n\n{said}\n\n" + "\n".join(legend)


def performance(machines: dict[str, Any]) -> dict[str, str]:
    """Blocks of docs/performance.md: the bars of every machine, the tables of the one measured last."""
    results = next(iter(whole(machines).values()))
    engines, fresh, load, memory, ray = (
        results[name]["result"] for name in ("engines", "fresh_app", "load", "memory", "ray")
    )
    by_size = {name: {int(b): ms for b, ms in sizes.items()} for name, sizes in engines["latency_ms"].items()}
    return {
        "bars": bars(machines),
        "engines": f"{origin(results['engines'])}:\n\n" + as_table({**engines, "latency_ms": by_size}),
        "fresh": dated(results["fresh_app"], [(name, fresh_app(fresh[name])) for name in ("keras", "openvino")]),
        "load": dated(
            results["load"],
            [
                ("sessions, one prediction each 10 s", str(load["sessions"])),
                ("predictions", f"{load['predictions']} ({load['predictions_per_second']:.2f} a second)"),
                ("errors", str(len(load["errors"]))),
                ("p50 / p95, click to drawn page", f"{load['p50_s']:.2f} s / {load['p95_s']:.2f} s"),
                (
                    f"server's memory after {load['visits']} further sessions",
                    f"{load['rss_mib']:.0f} MiB, {load['rss_growth_mib']:+.1f} MiB by them",
                ),
            ],
        ),
        "memory": dated(
            results["memory"],
            [
                ("predictions", f"{memory['predictions']:,} ({memory['predictions_per_second']:.0f} a second)"),
                (
                    "memory after the warm-up / at the end",
                    f"{memory['rss_mib_after_warm_up']:.0f} / {memory['rss_mib']:.0f} MiB",
                ),
                ("growth", f"{memory['growth_mib']:+.1f} MiB"),
            ],
        ),
        "precision": precisions(),
        "ray": dated(
            results["ray"],
            [
                ("one worker", f"{ray['files_per_second']['1']:.1f} files/s"),
                ("two workers", f"{ray['files_per_second']['2']:.1f} files/s"),
                ("efficiency", f"{ray['efficiency']:.2f}"),
                *([("the same of bare engines", f"{ray['bare_efficiency']:.2f}")] if "bare_efficiency" in ray else []),
            ],
        ),
    }


def fresh_app(found: dict[str, float]) -> str:
    """A fresh server's first answer."""
    click = f"{found['click_to_answer_s']:.2f} s" if "click_to_answer_s" in found else "–"
    return f"{found['seconds']:.2f} s, from the click {click}; {found['peak_mib']:.0f} MiB"


def precisions() -> str:
    """What the shipped card says of each precision."""
    settings = load_settings().model
    measured: dict[str, Any] = read_card(settings.id, settings.directory).precision  # type: ignore[assignment]
    rows = []
    for name, f in measured["candidates"].items():
        figures = ("–",) * 5
        if "flips" in f:
            figures = (
                f"{f['flips']} of {f['n']}",
                f"{f['only_this_right']} / {f['only_float32_right']}",
                f"{f['mean_probability_shift']:.4f}",
                f"{f['same_peak']:.1%}",
                f"{f['rank_correlation']:.4f}",
            )
        verdict = "; ".join(f["refused"]) or ("default" if name == measured["default"] else "passes")
        rows.append((name, *figures, f"{f['ms_per_image_batch_1']:.1f} / {f['ms_per_image_batch_32']:.1f}", verdict))
    head = ("precision", "flips", "right only here / in float32", "mean shift", "same peak", "rank correlation")
    text = f"`brainmri optimize`, {measured['measured']}, {measured['processor']}; {measured['images']}:\n\n"
    return text + table((*head, "ms an image, batch 1 / 32", "verdict"), rows)


def scaling(machines: dict[str, Any]) -> dict[str, str]:
    """Blocks of docs/scaling.md, from the machine measured last."""
    results = next(iter(whole(machines).values()))
    ray, limits = results["ray"]["result"], results["limits"]["result"]
    listing, dealing, memory = (limits[name] for name in ("listing", "dealing", "memory"))
    worker_mib = max(v["worker_mib"] for k, v in memory.items() if k.startswith("peak_"))
    driver_mib = max(v["driver_mib"] for k, v in memory.items() if k.startswith("peak_"))
    reading = limits["reading"]
    # The measured job read small JPEGs; the one on paper reads DICOM.
    extra_s = (reading["dicom_ms"] - reading["jpeg_ms"]) / 1e3
    per_core = 1 / (1 / (ray["files_per_second"]["1"] * min(1.0, ray["efficiency"])) + extra_s)
    dealt = dealing["chunks_per_second"] * CHUNK_FILES
    listing_h = SLICES / listing["files_per_second"] / 3600
    measured = [
        ("one core, whole job on Ray, JPEGs of 256 x 256", f"{ray['files_per_second']['1']:.1f} slices/s"),
        (
            "reading such a JPEG / a DICOM slice of 512 x 512",
            f"{reading['jpeg_ms']:.1f} / {reading['dicom_ms']:.1f} ms",
        ),
        ("kept by each core beside others", f"{min(1.0, ray['efficiency']):.2f}"),
        ("one process lists and cuts into chunks", f"{listing['files_per_second']:,.0f} files/s"),
        ("one driver deals out, workers with nothing to do", f"{dealing['chunks_per_second']:,.0f} chunks/s"),
        ("peak memory of driver / of one worker", f"{driver_mib:,.0f} MiB / {worker_mib:,.0f} MiB"),
        *(
            (f"the same, {key.split('_')[1]} files", f"{v['driver_mib']:,.0f} MiB / {v['worker_mib']:,.0f} MiB")
            for key, v in memory.items()
            if key.startswith("peak_")
        ),
        ("output", f"{memory['output_bytes_per_row']:.0f} bytes a row"),
        ("joining parts into one file", f"{memory['joined_rows_per_second']:,.0f} rows/s"),
    ]
    rows = []
    for nodes in (1, 4, 16, 64, 256):
        cores = nodes * CORES_PER_NODE
        rate = min(cores * per_core, dealt)
        hours = SLICES / rate / 3600
        total = hours + listing_h * 2  # the last pass but one overlaps with the work
        rows.append(
            (
                f"{nodes} x {CORES_PER_NODE}",
                f"{rate:,.0f}" + (" (driver's limit)" if cores * per_core > dealt else ""),
                f"{hours:,.1f}",
                f"{total:,.1f}",
                f"{CORES_PER_NODE * worker_mib / 1024:.0f} GiB",
                f"{rate * INPUT_MB * 8 / 1e3 / nodes:.2f} Gbit/s",
                f"{total * cores * CORE_HOUR_USD:,.0f}",
            )
        )
    core_hours = SLICES / per_core / 3600
    breaks = sorted(
        [
            (
                dealt / per_core,
                "one driver dealing out chunks",
                f"{dealt:,.0f} slices/s",
                "larger chunks (`chunk_files`), or a job a subtree",
            ),
            (
                core_hours / (LISTING_PASSES * listing_h),
                f"listing, {LISTING_PASSES} passes in one process, takes as long as the work",
                f"{LISTING_PASSES * listing_h:.1f} h",
                "a job a subtree: each lists its own, side by side",
            ),
            (
                core_hours / (SLICES / memory["joined_rows_per_second"] / 3600),
                "joining parts into one file takes as long as the work",
                f"{SLICES / memory['joined_rows_per_second'] / 3600:.1f} h",
                "an output folder: its parts are the table, nothing is joined",
            ),
            (
                10_000 / (per_core * INPUT_MB * 8),
                "one link of 10 Gbit/s from the store",
                f"{10_000 / (INPUT_MB * 8):,.0f} slices/s",
                "a link for each node, and an object store that answers from many machines; compressed DICOM halves it",
            ),
        ]
    )
    return {
        "measured": f"{origin(results['ray'])}; {origin(results['limits'])}:\n\n"
        + table(("measured", "value"), measured),
        "assumed": table(
            ("assumed", "value"),
            [
                ("slices", f"{SLICES:,}, one a file, {INPUT_MB} MB each ({SLICES * INPUT_MB / 1e6:,.0f} TB)"),
                ("node", f"{CORES_PER_NODE} cores like those measured, one worker a core"),
                ("a slice on a core", f"{per_core:.1f} a second: as measured, with DICOM's reading for the JPEG's"),
                ("price", f"{CORE_HOUR_USD} USD a core and hour"),
                ("reading from the store", "overlaps with inference, as it does from a local disk"),
            ],
        ),
        "cluster": f"{core_hours:,.0f} core-hours of work, {core_hours * CORE_HOUR_USD:,.0f} USD; output "
        f"{SLICES * memory['output_bytes_per_row'] / 1e9:,.0f} GB in {SLICES / CHUNK_FILES:,.0f} parts.\n\n"
        + table(
            (
                "nodes",
                "slices/s",
                "hours of work",
                "hours with listing",
                "memory a node",
                "input a node",
                "USD",
            ),
            rows,
        ),
        "breaks": table(
            ("at about this many cores", "breaks", "limit", "way out"),
            [(f"{cores:,.0f}", *rest) for cores, *rest in breaks],
        ),
    }


if __name__ == "__main__":
    main()
