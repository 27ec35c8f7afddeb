"""``brainmri optimize``: make the network that serves, and refuse a precision that changes the answers."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(optimize)


def optimize(
    model: Annotated[str | None, typer.Option(help="Model id; default: the one in config.yaml.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32, bf16 or int8; default: the fastest of them that passes.")
    ] = None,
    manifest: Annotated[
        str | None, typer.Option(help="CSV with path, label and the split column; default: the clean split.")
    ] = None,
    split_column: Annotated[str, typer.Option(help="Its column with train and val.")] = "clean_split",
) -> None:
    """Make models/ID.openvino.xml and .bin from ID.keras, measured against float32 on validation images.

    Refuses (exit code 1) a precision that flips more than 1 % of the answers, makes significantly more errors, shifts
    probabilities by more than 0.01 on average, or moves heatmaps. The model's card records the figures.
    """
    from brainmri import optimize as optimizing
    from brainmri.config import load_settings
    from brainmri.data import SPLITS_DIRECTORY, read_manifest
    from brainmri.model import read_card

    settings = load_settings()
    card = read_card(model or settings.model.id, settings.model.directory)
    table = read_manifest(manifest or SPLITS_DIRECTORY / "brain_tumor_mri.csv", settings.data.root, split_column)
    card, default = optimizing.optimise(
        card,
        settings.model.directory,
        table,
        precisions=(precision,) if precision else ("int8", "bf16"),
        report=lambda line: typer.echo(line, err=True),
    )
    for name, figures in card.precision["candidates"].items():  # type: ignore[attr-defined]
        typer.echo(describe(name, figures))
    typer.echo(f"{card.id} is served in {default}: {card.id}.openvino.xml")


def describe(name: str, figures: dict) -> str:
    """One line of figures a precision."""
    speed = f"{figures['ms_per_image_batch_1']:.3g} ms an image alone, {figures['ms_per_image_batch_32']:.3g} ms in 32"
    if "flips" not in figures:
        return f"{name:8} reference; {speed}"
    verdict = "refused: " + "; ".join(figures["refused"]) if figures["refused"] else "passed"
    return (
        f"{name:8} {verdict}; {figures['flips']} of {figures['n']} answers flip, right only here / only in float32: "
        f"{figures['only_this_right']} / {figures['only_float32_right']} (p = {figures['mcnemar_p']:.2g}), "
        f"mean |Δp| {figures['mean_probability_shift']:.4f}, same Grad-CAM peak {figures['same_peak']:.1%}, "
        f"rank correlation {figures['rank_correlation']:.4f}; {speed}"
    )
