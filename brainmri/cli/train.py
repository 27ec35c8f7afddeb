"""``brainmri train``: a recipe, end to end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

INTENDED_USE = (
    "Research and teaching: exploring how a VGG16 classifies single brain-MRI slices, and how far its heatmaps can be "
    "trusted. Not a medical device; not for diagnosis."
)
LIMITS = (
    "One slice at a time: no neighbouring slices, no other sequences, no history.",
    "Tumours in training are mostly contrast-enhanced T1 from one source; other pathology (stroke, bleeding, "
    "metastasis, infection) is not a class and may be called any of the four.",
)


def limits() -> tuple[str, ...]:
    """What a card says of a model's limits, with how much of clean test leaked into training."""
    from brainmri.data import KAGGLE, clean_leaks

    leaks = clean_leaks()
    leaks = leaks[(leaks["collection"] == KAGGLE) & (leaks["split"] == "test")]
    n_healthy = leaks["path"].str.contains("/notumor/").sum()
    return (
        *LIMITS,
        "Splits keep slices and, as far as the sources tell, patients apart; patients are guessed for the Kaggle "
        f"images, and {len(leaks)} of clean test, {n_healthy} of them healthy, show a slice that training has too "
        "(docs/evaluation.md).",
    )


def register(app: typer.Typer) -> None:
    """Add ``brainmri train``."""

    @app.command()
    def train(
        recipe: Annotated[str, typer.Option(help="Name in recipes/, or a YAML file.")] = "classic",
        output: Annotated[Path | None, typer.Option(help="Run folder; default runs/<recipe>.")] = None,
        weights: Annotated[str, typer.Option(help="imagenet, none, or a .h5/.npz file.")] = "imagenet",
        teacher: Annotated[
            Path | None,
            typer.Option(help="Folder of the runs of the recipe's teachers, trained if empty; or a teacher's card."),
        ] = None,
        teacher_weights: Annotated[
            str | None,
            typer.Option(help="What a teacher starts from: a file of scripts/teacher_weights.py, or none."),
        ] = None,
        start: Annotated[
            Path | None,
            typer.Option(metavar="CARD", help="Card of the model to go on from, where the recipe continues another."),
        ] = None,
        views: Annotated[
            Path | None, typer.Option(help="Folder that keeps prepared slices and drawn views, for other runs as well.")
        ] = None,
        workers: Annotated[int, typer.Option(min=0, help="Processes that draw views; 0: the one that trains.")] = max(
            1, (os.cpu_count() or 1) - 1
        ),
        model_id: Annotated[str | None, typer.Option(help="Also save to models/ under this id.")] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
        epochs: Annotated[int | None, typer.Option(help="Epochs of every stage, instead of the recipe's.")] = None,
        precision: Annotated[str | None, typer.Option(help="float32 or mixed_bfloat16.")] = None,
        seed: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
        masks: Annotated[
            bool, typer.Option(help="Without: the twin that heatmaps are compared with, trained without outlines.")
        ] = True,
    ) -> None:
        """Train a recipe: checkpoints, history.csv, curves.png and the model in the run folder."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        # TensorFlow's default is as many as cores. Two, with a teacher answering beside the training step, once came to
        # wait for each other for ever.
        os.environ.setdefault("TF_NUM_INTEROP_THREADS", "8")
        from brainmri import training
        from brainmri.config import load_settings
        from brainmri.errors import ConfigError
        from brainmri.model import load_network, read_card, save_model
        from brainmri.recipes import load_recipe, override

        settings = load_settings()
        chosen = override(load_recipe(recipe), epochs=epochs, precision=precision, seed=seed, masks=masks)
        if model_id and chosen.architecture != "vgg16":
            raise ConfigError(f"{chosen.name}: a teacher is not served; leave --model-id out, its run folder is enough")
        run = output or Path("runs") / chosen.name
        total = sum(stage.epochs for stage in chosen.stages)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}")) as progress:
            task = progress.add_task("reading", total=1, note="")

            def report(event: dict) -> None:
                if "loading" in event:
                    progress.update(task, total=event["of"], completed=event["loading"])
                    return
                done = sum(s.epochs for s in chosen.stages[: event["stage"]]) + event["epoch"] + 1
                minutes = event["remaining_s"] / 60
                progress.update(
                    task,
                    description=f"{event['input_size']} px",
                    total=total,
                    completed=done,
                    note=f"loss {event['loss']:.3f}, val {event['val_accuracy']:.3f}, {minutes:.0f} min left",
                )

            def finished(card_file: Path):
                card = read_card(card_file.stem, card_file.parent)
                if "epochs_run" not in card.recipe:
                    raise ConfigError(
                        f"{card_file}: the card does not say how the network was trained, and the new one's card would "
                        "have to; give one that brainmri train made"
                    )
                return card, load_network(card, card_file.parent)

            before, start_network = finished(start) if start else (None, None)
            taught_by, answers = finished(teacher) if teacher and teacher.suffix == ".json" else (teacher, teacher)
            network = training.train(
                chosen,
                settings.data.root,
                run,
                weights=weights,
                start=start_network,
                teacher=answers,
                teacher_weights=teacher_weights,
                views=views,
                workers=workers,
                resume=resume,
                report=report,
            )
        training.plot_history(run)
        if chosen.architecture != "vgg16":
            typer.echo(
                f"{run}: a recipe that names {chosen.name} takes --teacher {run.parent}, runs named seed-N in it"
            )
            return
        card = training.card_facts(chosen, run, settings.data.root, before, taught_by) | {
            "id": model_id or chosen.name,
            "intended_use": INTENDED_USE,
            "limits": limits(),
        }
        directory = settings.model.directory if model_id else run
        saved = save_model(network, card, directory)
        typer.echo(f"{directory / saved.id}.keras  sha256 {saved.weights_sha256[:12]}…")

    @app.command()
    def search(
        output: Annotated[Path, typer.Option(help="Folder of the runs; those there already are kept.")] = Path(
            "runs/search"
        ),
        log: Annotated[Path, typer.Option(help="Where the measured rows are written.")] = Path(
            "evaluations/search.csv"
        ),
        weights: Annotated[str, typer.Option(help="imagenet, none, or a .h5/.npz file.")] = "imagenet",
        measure: Annotated[
            list[Path] | None,
            typer.Option(metavar="CARD", help="Only measure this model and put its row at the log's end; no training."),
        ] = None,
        adds: Annotated[
            str, typer.Option(help="With --measure: what the row says of a model not shipped.")
        ] = "not shipped",
    ) -> None:
        """Train and measure the rows of recipes/search/table.yaml, then the configured model; resumable."""
        import pandas as pd

        from brainmri import search as searching
        from brainmri.config import load_settings
        from brainmri.errors import ConfigError
        from brainmri.model import load_network, read_card

        def report(event: dict) -> None:
            if "loss" in event:
                typer.echo(f"  {event['input_size']} px, epoch {event['epoch'] + 1}: val {event['val_accuracy']:.3f}")

        settings = load_settings()

        def row_of(card_id: str, directory: Path, adds: str, mirror: bool = False) -> dict:
            card = read_card(card_id, directory)
            if "epochs_run" not in card.recipe:
                raise ConfigError(f"{directory / card_id}.json: the card does not say how the network was trained")
            made = {"name": f"{card.id}, mirrored" if mirror else card.id, "adds": adds, "seed": card.recipe["seed"]}
            steps = card.recipe.get("lineage", [])  # what it builds on cost its epochs and minutes too
            made |= {"epochs": card.recipe["epochs_run"] + sum(step["epochs"] for step in steps)}
            made |= {"minutes": round(card.recipe["minutes"] + sum(step["minutes"] for step in steps), 1)}
            return made | searching.measure_network(load_network(card, directory), settings.data.root, mirror=mirror)

        shipped = Path(settings.model.directory) / f"{settings.model.id}.json"

        def others(rows: list[dict], measured: list[dict]) -> list[dict]:
            names = {row["name"] for row in measured}
            return [row for row in rows if row["name"] not in names]

        rows = pd.read_csv(log).to_dict("records") if log.is_file() else []
        if not measure:
            trained = searching.run_search(settings.data.root, output, weights=weights, report=report)
            rows = trained + others(rows, trained)
        for path in measure or [shipped]:
            if path.resolve() == shipped.resolve():
                mirrored = "mean of the picture and its mirror image: twice the cost"
                new = [row_of(path.stem, path.parent, "shipped"), row_of(path.stem, path.parent, mirrored, mirror=True)]
            else:
                new = [row_of(path.stem, path.parent, adds)]
            rows = others(rows, new) + new
        log.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(log, index=False)
        typer.echo(f"{len(rows)} rows in {log}")
