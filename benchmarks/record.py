"""Run the benchmarks, keep what they print in benchmarks/results.json, write docs/performance.md and docs/scaling.md.

    python benchmarks/record.py all
    python benchmarks/record.py engines load [--quick]

Sections: engines, fresh_app, load, memory, ray, limits. Without one, only the documents are written. ``--quick``
measures each in a minute or so of a quiet machine, less surely. A section that fails keeps its earlier figures, and
each machine has its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
SECTIONS = {
    "engines": "-m brainmri benchmark --json",
    "fresh_app": "benchmarks/load.py --fresh",
    "load": "benchmarks/load.py",
    "memory": "benchmarks/memory.py",
    "ray": "benchmarks/ray_efficiency.py --files 2048 --rounds 3",
    "limits": "benchmarks/limits.py",
}
QUICK = {
    "engines": "-m brainmri benchmark --quick --json",
    "fresh_app": "benchmarks/load.py --fresh --rounds 1",
    "load": "benchmarks/load.py --seconds 40 --visits 40",
    "memory": "benchmarks/memory.py --predictions 2000",
    "ray": "benchmarks/ray_efficiency.py --files 768 --rounds 1",
    "limits": "benchmarks/limits.py --names 50000 --files 512 --chunks 256",
}


def measure(section: str, arguments: str) -> None:
    """Run one section in a process of its own and keep its JSON."""
    from brainmri.config import load_settings
    from brainmri.inference import check_optimised, optimised_path
    from brainmri.model import read_card
    from brainmri.optimize import processor_name

    load_average = os.getloadavg()[0]
    print(f"{section}: python {arguments}", file=sys.stderr)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, *arguments.split()],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    settings = load_settings().model
    card = read_card(settings.id, settings.directory)
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    machine = processor_name()
    results.setdefault(machine, {})[section] = {
        "command": f"python {arguments}",
        "date": date.today().isoformat(),
        "machine": machine,
        "load_average_before": round(load_average, 1),
        "weights_sha256": card.weights_sha256,
        "precision": check_optimised(optimised_path(card.id, settings.directory), card),
        "result": json.loads(done.stdout),
    }
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", "utf-8")


def main() -> None:
    """Entry point."""
    wanted = [a for a in sys.argv[1:] if a != "--quick"]
    commands = QUICK if "--quick" in sys.argv else SECTIONS
    if unknown := set(wanted) - {*SECTIONS, "all"}:
        sys.exit(f"unknown section {sorted(unknown)[0]!r}; known: all, {', '.join(SECTIONS)}")
    failed = []
    for section in SECTIONS if "all" in wanted else wanted:
        try:
            measure(section, commands[section])
        except (subprocess.CalledProcessError, json.JSONDecodeError) as error:
            failed.append(f"{section}: {error}")
    if RESULTS.is_file():
        subprocess.run([sys.executable, ROOT / "scripts" / "performance_doc.py"], check=True)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
