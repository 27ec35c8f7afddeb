"""``brainmri explain`` and ``brainmri explain-eval``."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from brainmri.types import Analysis, Explanation


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("explain")(explain)
    app.command("explain-eval")(explain_eval)


def explain(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files or folders; folders recurse.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the maps; made if missing.")],
    method: Annotated[str, typer.Option(help="One or several of the methods, with commas, or 'all'.")] = "grad-cam",
    target_class: Annotated[
        str | None, typer.Option(help="One or several classes, with commas; default: the predicted one.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Convolutional layer; default: block5_conv3.")] = None,
    seed: Annotated[int, typer.Option(help="Of SmoothGrad's noise.")] = 0,
    colour_map: Annotated[str, typer.Option(help="inferno, magma, viridis or cividis.")] = "inferno",
    even_rejected: Annotated[bool, typer.Option(help="Explain what was rejected as no brain MRI, too.")] = False,
    model: Annotated[str | None, typer.Option(help="Model id; default: the one in config.yaml.")] = None,
) -> None:
    """Map where class scores come from: <stem>.<method>.png and .npz, and one JSON line each on the screen.

    A file that cannot be read or was rejected is reported on its line, the others still come; exit code 1.
    """
    from rich.console import Console

    from brainmri.cli.predict import find_files
    from brainmri.config import load_settings
    from brainmri.errors import BrainMRIError, ExplanationError
    from brainmri.explain import METHODS, find_method
    from brainmri.explain import explain as explain_slices
    from brainmri.explain.base import class_index
    from brainmri.explain.colour import colour_table
    from brainmri.inference import load_classifier
    from brainmri.pipeline import analyse, read_file

    settings = load_settings()
    methods = list(METHODS) if method == "all" else [m.strip() for m in method.split(",") if m.strip()]
    if not methods:
        raise ExplanationError(f"--method {method!r} names no method; methods: {', '.join(METHODS)}, or 'all'")
    targets = [t.strip() for t in target_class.split(",")] if target_class else [None]
    # A misspelt name is said before anything is loaded.
    for name in methods:
        find_method(name).check_layer(layer)
    for target in targets:
        if target is not None:
            class_index(target)
    colour_table(colour_map)
    with Console(stderr=True).status("Loading the model"):
        classifier = load_classifier(model or settings.model.id, settings.model.directory, settings.model.engine)
    output.mkdir(parents=True, exist_ok=True)
    files = list(find_files(paths))
    stems = Counter(path.stem for path in files)
    failed = False
    for path in files:
        try:
            slices, aside = read_file(path.read_bytes(), path.name, settings)
            analyses = analyse(classifier, slices)
        except (BrainMRIError, OSError) as error:
            typer.echo(json.dumps({"path": str(path), "error": str(error)}, ensure_ascii=False))
            failed = True
            continue
        for item in aside:
            said = {"path": str(path), "file": item.name, "error" if item.failed else "set_aside": item.reason}
            typer.echo(json.dumps(said, ensure_ascii=False))
            failed = failed or item.failed
        for number, analysis in enumerate(analyses, 1):
            row: dict[str, Any] = {"path": str(path)}
            # Two files of one stem in different folders must not overwrite each other.
            stem = path.stem if stems[path.stem] == 1 else f"{path.stem}-{analysis.slice.sha256[:8]}"
            if len(analyses) > 1:
                row["slice"], stem = number, f"{stem}.{number:04d}"
            try:
                explanations = explain_slices(
                    classifier, [analysis], methods, targets, layer_name=layer, seed=seed, allow_rejected=even_rejected
                )[0]
            except BrainMRIError as error:
                typer.echo(json.dumps({**row, "decision": analysis.decision, "error": str(error)}, ensure_ascii=False))
                failed = True
                continue
            for explanation in explanations:
                name = f"{stem}.{explanation.method}"
                if len(targets) > 1:
                    name += f".{explanation.target_class}"
                typer.echo(json.dumps({**row, **_write(analysis, explanation, output / name, colour_map)}))
    if failed:
        raise typer.Exit(1)


def _write(analysis: Analysis, explanation: Explanation, stem: Path, colour_map: str) -> dict[str, Any]:
    from brainmri.explain.figures import as_bytes, as_npz, explanation_panel

    picture = as_bytes(explanation_panel(analysis, explanation, colour_map=colour_map))
    files = {".png": picture, ".npz": as_npz(analysis, [explanation])}
    for suffix, content in files.items():
        stem.with_name(stem.name + suffix).write_bytes(content)
    return {
        "method": explanation.method,
        "target_class": explanation.target_class,
        "layer": explanation.layer_name,
        "label": analysis.label,
        "decision": analysis.decision,
        "probabilities": {k: round(p, 6) for k, p in analysis.probabilities.items()},
        "peak": None if explanation.peak is None else list(explanation.peak),
        "elapsed_ms": round(explanation.elapsed_ms, 3),
        "files": [stem.name + suffix for suffix in files],
    }


def explain_eval(
    manifest: Annotated[Path | None, typer.Option(help="CSV with path, label, mask and a split column.")] = None,
    images: Annotated[Path | None, typer.Option(help="What the manifest's paths are relative to.")] = None,
    split_column: Annotated[str, typer.Option(help="Which column names the split.")] = "clean_split",
    split: Annotated[str, typer.Option(help="Which split's masked images.")] = "test",
    limit: Annotated[int | None, typer.Option(help="At most this many masked images, evenly by class.")] = None,
    work: Annotated[Path, typer.Option(help="Where finished parts are kept, to go on after a stop.")] = Path(
        "runs/explain-eval"
    ),
    docs: Annotated[
        Path | None,
        typer.Option(help="Page whose tables are written anew; default: docs/explanations.md, for all of clean test."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="JSON; default for all of clean test: beside the model, <id>.explanation.json."),
    ] = None,
    precision: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="Of gradients; float32 is several times slower.")
    ] = "bfloat16",
    model: Annotated[str | None, typer.Option(help="Model id; default: the one in config.yaml.")] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="CARD",
            help="Card (<id>.json beside <id>.keras) of a network whose peaks are measured too, one trained without "
            "masks say; may be repeated.",
        ),
    ] = None,
    peaks_only: Annotated[
        bool,
        typer.Option("--peaks-only", help="Only Grad-CAM's peaks; the rest is kept as --output has it (minutes)."),
    ] = False,
) -> None:
    """Measure every method against expert masks, by deletion and insertion, and by randomising weights.

    Stopped half-way, the same command goes on where it stopped.
    """
    from brainmri.config import load_settings
    from brainmri.data import SPLITS_DIRECTORY, select_split
    from brainmri.documents import write_tables
    from brainmri.errors import DataError, EngineError
    from brainmri.explain.study import Plan, measure_peaks, run_study, tables_of
    from brainmri.inference import load_classifier
    from brainmri.model import read_card, sha256_of, write_card
    from brainmri.runs import read_rows

    settings = load_settings()
    release = SPLITS_DIRECTORY / "brain_tumor_mri.csv"
    # The card and the page name what the whole test split gave, no trial and no other data.
    official = limit is None and manifest in (None, release) and (split_column, split) == ("clean_split", "test")
    if output is None and not official:
        raise DataError("--limit, --split or --manifest measure something else than the card names: give --output FILE")
    manifest = manifest or release
    rows = select_split(read_rows(manifest, images or settings.data.root, split_column), split)
    data = {"manifest": manifest.name, "sha256": sha256_of(manifest), "split": f"{split_column}: {split}"}
    model_id, directory = model or settings.model.id, settings.model.directory
    try:  # hundreds of thousands of passes: the fastest arithmetic that keeps the maps
        classifier = load_classifier(
            model_id, directory, "openvino", precision="bf16" if precision == "bfloat16" else None
        )
    except EngineError:
        classifier = load_classifier(model_id, directory, settings.model.engine)
    plan = dataclasses.replace(Plan(precision=precision), limit=limit)
    others = [(load_classifier(card.stem, card.parent), card.parent) for card in beside or []]
    path = output or Path(directory) / f"{model_id}.explanation.json"
    before: dict[str, Any] = {}
    if peaks_only:
        before = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        same = {"weights_sha256": classifier.card.weights_sha256, "plan": dataclasses.asdict(plan), "data": data}
        if any(before.get(key) != value for key, value in same.items()):
            raise DataError(
                f"{path.name}: --peaks-only needs a finished measurement of these weights, data, precision and limit; "
                "run the same command without it"
            )
    with _progress() as progress:
        if peaks_only:
            peaks = measure_peaks([(classifier, directory), *others], rows, limit, progress=progress)
            result = before | {"peak_in_mask": peaks}
        else:
            result = run_study(classifier, rows, directory, work, plan, progress=progress, beside=others)
            result["data"] = data
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    temporary.replace(path)
    if output is None and official:
        card = read_card(model_id, directory)
        write_card(card.model_copy(update={"peak_in_mask": result["peak_in_mask"]}), directory)
    tables = tables_of(result)
    if docs is None and official and Path("docs/explanations.md").is_file():
        docs = Path("docs/explanations.md")
    if docs is not None:
        write_tables(docs, tables)
    for title, text in tables.items():
        typer.echo(f"\n{title}\n{text}")
    typer.echo(f"\nwritten to {path}" + (f" and {docs}" if docs is not None else ""))


@contextmanager
def _progress():
    """Bars on a terminal; elsewhere, in a log say, a line for every tenth of a stage."""
    from rich.console import Console

    from brainmri.cli.evaluate import stages

    def lines(stage: str):
        start, said = time.monotonic(), [-1]

        def report(done: int, total: int) -> None:
            if (tenth := 10 * done // max(total, 1)) != said[0]:
                said[0] = tenth
                typer.echo(f"{stage}: {done} of {total}, {time.monotonic() - start:.0f} s", err=True)

        return report

    if not Console(stderr=True).is_terminal:
        yield lines
        return
    with stages(width=36) as bars:
        yield bars
