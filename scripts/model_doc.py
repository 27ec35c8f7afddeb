"""Fill the tables in docs/model.md, docs/evaluation.md and README.md, and the cards' metrics, from evaluations/.

python scripts/model_doc.py
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from brainmri.config import load_settings
from brainmri.documents import write_tables
from brainmri.errors import DataError
from brainmri.model import ModelCard, list_models, read_card, write_card

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("accuracy", "balanced_accuracy", "macro_f1", "ece")
OTHERS = ("fine-tuned", "united", "elsewhere")
"""Networks that were measured on the test splits as the shipped one was, but do not serve by default."""


SEARCH = {
    "name": "Row",
    "adds": "Adds",
    "seed": "Seed",
    "epochs": "Epochs",
    "minutes": "Minutes",
    "val_accuracy": "Clean val",
    "test_accuracy": "Clean test",
    "test_macro_f1": "Macro F1",
    "test_ece": "ECE",
    "test_auc_tumour": "Tumour AUC",
    "lgg_auc_flair": "lgg FLAIR AUC",
    "lgg_auc_post": "lgg post AUC",
}


def search_table() -> str:
    """The logged rows of ``brainmri search``."""
    log = ROOT / "evaluations" / "search.csv"
    if not log.is_file():
        return "No rows logged yet: run `brainmri search`."
    with log.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = ["| " + " | ".join(SEARCH.values()) + " |", "|---" * len(SEARCH) + "|"]
    for row in rows:
        cells = [f"{float(row[c]):.3f}" if c.startswith(("val_", "test_", "lgg_")) else row[c] for c in SEARCH]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval(value: float | None, bounds: list[float] | None = None) -> str:
    """A figure with its 95 % interval."""
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" ({bounds[0]:.3f} – {bounds[1]:.3f})" if bounds else "")


def gate_table(strange: dict[str, Any], clean: dict[str, Any]) -> str:
    """Rejected share of each kind of picture, and what the learned gate alone does."""
    lines = ["| Pictures | n | In colour | Rejected | Grey only |", "|---|---|---|---|---|"]
    for kind, row in strange.get("kinds", {}).items():
        alone = interval(row.get("rejected_share_colour_ignored"))
        lines.append(f"| {kind} | {row['n']} | {row.get('n_in_colour', '–')} | {row['rejected_share']:.3f} | {alone} |")
    if strange.get("clean_test_rejected") is not None:
        share = f"{strange['clean_test_rejected']:.3f}"
        lines.append(f"| clean test (brain MRI) | {clean.get('n', '–')} | – | {share} | – |")
    return "\n".join(lines)


def seen_table(clean: dict[str, Any], official: dict[str, Any]) -> str:
    """Images whose slice the network trained on, and the others."""
    lines = ["| Run | Seen in training | n | Accuracy | Specificity: likeliest class | by the threshold of val |"]
    lines.append("|---" * 6 + "|")
    for title, run in (("clean test", clean), ("official test", official)):
        for row in run.get("subgroups") or []:
            if row["column"] == "seen_in_training":
                figure = interval(row["accuracy"], row["accuracy_interval"])
                healthy = [interval(row[key]) for key in ("specificity", "specificity_at_threshold")]
                lines.append(f"| {title} | {row['value']} | {row['n']} | {figure} | {' | '.join(healthy)} |")
        if baseline := run.get("baseline"):
            figure = interval(baseline["accuracy"], baseline["interval"])
            lines.append(f"| {title}, nearest neighbour | – | {run['n']} | {figure} | – | – |")
    return "\n".join(lines)


def bars_table(clean: dict[str, Any], strange: dict[str, Any]) -> str:
    """What the project set itself to reach beside what was measured; on clean test where a row names no other data."""
    spans, binary, panel, sets = clean["intervals"], clean["tumour_vs_none"], clean["shortcuts"], clean["conformal"]
    at, at_spans, gate = binary["at_threshold"], binary["intervals"], clean["gate"]
    painted = [row for row in panel["counterfactuals"].values() if isinstance(row, dict) and "changed" in row]
    flair, post = (panel["lgg_by_sequence"][sequence] for sequence in ("flair", "post"))
    found, head, peaks = panel["br35h_groups"], panel["head_t1"], panel["peak_in_mask"]["right"]
    planes = [(row["roc_auc"], row["interval"]) for row in panel["within_plane"].values()]
    turned_away = {kind: [(row["rejected_share"],)] for kind, row in strange["kinds"].items()}
    coverage = {level: [(row["coverage"], row["coverage_interval"])] for level, row in sets.items()}
    recalls = [(row["recall"], spans[f"recall_{c}"]) for c, row in clean["per_class"].items()]
    bars: list[tuple[str, str, float, list[tuple]]] = [
        ("accuracy", "≥", 0.92, [(clean["accuracy"], spans["accuracy"])]),
        ("macro F1", "≥", 0.91, [(clean["macro_f1"], spans["macro_f1"])]),
        ("recall of each class", "≥", 0.88, recalls),
        *(
            (f"{kind}, threshold fixed on val", "≥", bar, [(at[kind], at_spans.get(f"at_threshold_{kind}"))])
            for kind, bar in (("sensitivity", 0.97), ("specificity", 0.93))
        ),
        ("lgg FLAIR: tumour AUC", "≥", 0.97, [(flair["roc_auc"], flair["interval"])]),
        ("lgg post-contrast: tumour AUC", "≥", 0.88, [(post["roc_auc"], post["interval"])]),
        ("br35h: groups found", "≥", 0.85, [(found["found"] / found["groups"],)]),
        ("within plane (tumours and none of different sources): AUC", "≥", 0.97, planes),
        ("tumour painted away: none or undecided", "≥", 0.70, [(row["changed"], row["interval"]) for row in painted]),
        (
            "painted elsewhere: answer changes",
            "≤",
            0.10,
            [(row["elsewhere_changed"], row["elsewhere_interval"]) for row in painted],
        ),
        (
            "healthy head, slices that show brain: likeliest class no tumour",
            "≥",
            0.50,
            [(head["brain_called_none"] / head["n_brain"],)],
        ),
        (
            "Grad-CAM's peak in or within a cell of the outline, right answers",
            "≥",
            0.85,
            [(peaks["rate"], peaks["interval"])],
        ),
        ("ECE", "≤", 0.03, [(clean["calibration"]["ece"],)]),
        ("90 % sets: coverage", "≥", 0.86, coverage["0.90"]),
        ("95 % sets: coverage", "≥", 0.92, coverage["0.95"]),
        ("95 % sets: mean size", "≤", 1.4, [(sets["0.95"]["mean_set_size"],)]),
        ("photographs rejected", "≥", 0.99, turned_away["photo"]),
        ("chest X-rays rejected", "≥", 0.99, turned_away["chest_xray"]),
        ("head CT rejected", "≥", 0.80, turned_away["head_ct"]),
        ("clean test rejected", "≤", 0.02, [(gate["rejected_share"], gate["rejected_interval"])]),
    ]
    lines = ["| | Bar | Measured | |", "|---|---|---|---|"]
    for name, sign, bar, figures in bars:
        met = all(value <= bar if sign == "≤" else value >= bar for value, *_ in figures)
        measured = ", ".join(interval(*figure) for figure in figures)
        lines.append(f"| {name} | {sign} {bar:g} | {measured} | {'met' if met else '**missed**'} |")
    return "\n".join(lines)


def headline(clean: dict[str, Any]) -> str:
    """What the shipped model reaches, in a sentence for the README."""
    at = clean["tumour_vs_none"]["at_threshold"]
    unseen = next(r for r in clean["subgroups"] if (r["column"], r["value"]) == ("seen_in_training", "no"))
    said = {"n": clean["n"], "accuracy": clean["accuracy"], **at, "unseen": unseen["specificity_at_threshold"]}
    return (
        "On {n} held-out slices (clean test; patients are kept apart as far as they are known): accuracy "
        "{accuracy:.2f}; tumour or none at sensitivity {sensitivity:.2f} and specificity {specificity:.2f} "
        "({unseen:.2f} without pictures whose slice training has too). Not all of its own bars are met: "
        "[what it reaches](docs/model.md#what-it-reaches)."
    ).format(**said)


def networks_table(networks: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """Networks side by side; of each its runs on clean test and lgg test."""
    lines = ["| | " + " | ".join(networks) + " |", "|---" * (len(networks) + 1) + "|"]
    columns = []
    for clean, lgg in networks.values():
        at, spans = clean["tumour_vs_none"]["at_threshold"], clean["tumour_vs_none"]["intervals"]
        column = {
            f"clean test: {name}": interval(clean[key], clean["intervals"][key])
            for name, key in (("accuracy", "accuracy"), ("macro F1", "macro_f1"))
        }
        for name, row in clean["per_class"].items():
            column[f"clean test: recall of {name}"] = interval(row["recall"], clean["intervals"][f"recall_{name}"])
        for kind in ("sensitivity", "specificity"):
            column[f"clean test: {kind}"] = interval(at[kind], spans.get(f"at_threshold_{kind}"))
        column["clean test: ECE"] = interval(clean["calibration"]["ece"])
        for row in lgg["subgroups"]:
            if row["column"] == "sequence":
                column[f"lgg test, {row['value']}: tumour AUC"] = interval(row["tumour_roc_auc"])
        panel = clean["shortcuts"]
        for name, row in panel["counterfactuals"].items():
            if isinstance(row, dict) and "changed" in row:
                figure = f"{interval(row['changed'], row['interval'])} of {panel['counterfactuals']['n']}"
                column[f"painted away ({name}): none or undecided"] = figure
        healthy = [row for row in panel["elsewhere"] if not row["tumour"]]
        called, answered, n = (sum(row[key] for row in healthy) for key in ("called", "answered", "n"))
        column["elsewhere, slices without a tumour: called so (answered so)"] = f"{called} ({answered}) of {n}"
        columns.append(column)
    lines += [f"| {name} | " + " | ".join(column[name] for column in columns) + " |" for name in columns[0]]
    return "\n".join(lines)


def calibration_table(clean: dict[str, Any]) -> str:
    """Probabilities on clean test without and with the temperature."""
    lines = ["| Clean test | ECE | ECE by chance: mean, 95th percentile | Brier | Log loss |", "|---|---|---|---|---|"]
    said = clean.get("calibration") or {}
    for title, when in (("before the temperature", "before"), ("after", "after")):
        if row := said.get(when):
            chance = said["ece_by_chance"]
            by_chance = f"{chance['mean']:.3f}, {chance['percentile_95']:.3f}" if when == "after" else "–"
            lines.append(f"| {title} | {row['ece']:.3f} | {by_chance} | {row['brier']:.3f} | {row['log_loss']:.3f} |")
    return "\n".join(lines)


def conformal_table(clean: dict[str, Any]) -> str:
    """Coverage and size of the prediction sets on clean test."""
    lines = ["| Sets | Coverage on clean test | Mean size |", "|---|---|---|"]
    for level, row in clean.get("conformal", {}).items():
        covered = interval(row["coverage"], row.get("coverage_interval") or row.get("interval"))
        lines.append(f"| {float(level):.0%} | {covered} | {row['mean_set_size']:.2f} |")
    return "\n".join(lines)


def shortcut_table(clean: dict[str, Any]) -> str:
    """The shortcut panel of the clean-test run."""
    panel = clean.get("shortcuts") or {}
    lines = ["| Question | n | Figure |", "|---|---|---|"]
    for sequence, row in (panel.get("lgg_by_sequence") or {}).items():
        lines.append(f"| lgg test, {sequence}: AUC | {row['n']} | {interval(row['roc_auc'], row['interval'])} |")
    for plane, row in (panel.get("within_plane") or {}).items():
        n = row["n_tumour"] + row["n_none"]
        lines.append(f"| within plane {plane}: AUC | {n} | {interval(row['roc_auc'], row['interval'])} |")
    if found := panel.get("br35h_groups"):
        lines.append(f"| br35h test: groups found | {found['groups']} | {found['found']} |")
    if head := panel.get("head_t1"):
        n = head["n_brain"]
        lines.append(
            f"| head_t1, slices that show brain: likeliest class no tumour | {n} | {head['brain_called_none']} |"
        )
        lines.append(
            f"| head_t1, slices that show brain: answered with no tumour | {n} | {head['brain_answered_none']} |"
        )
    for row in panel.get("elsewhere") or []:
        shown = "with a tumour: called one" if row["tumour"] else "without a tumour: called so"
        figure = f"{row['called']} ({row['answered']})"
        lines.append(f"| elsewhere, {row['head']}, slices {shown} (answered so) | {row['n']} | {figure} |")
    painted = panel.get("counterfactuals") or {}
    methods = {name: row for name, row in painted.items() if isinstance(row, dict) and "changed" in row}
    for name, row in methods.items():
        figure = interval(row["changed"], row["interval"])
        lines.append(f"| painted away ({name}): none or undecided | {painted['n']} | {figure} |")
    for name, row in methods.items():
        figure = interval(row["elsewhere_changed"], row["elsewhere_interval"])
        lines.append(f"| painted elsewhere ({name}): answer changes | {painted['n_elsewhere']} | {figure} |")
    if peaks := (panel.get("peak_in_mask") or {}).get("right"):
        figure = interval(peaks["rate"], peaks["interval"])
        lines.append(f"| Grad-CAM's peak in or within a cell of the outline, right answers | {peaks['n']} | {figure} |")
    probe = panel.get("source_probe") or {}
    if "balanced_accuracy" in probe:
        figure = f"{probe['balanced_accuracy']:.3f} (chance {probe['chance']:.3f})"
        lines.append(f"| source told from block 5, no tumour | {sum(probe['n'].values())} | {figure} |")
    for name, row in (panel.get("blind") or {}).items():
        if isinstance(row, dict):
            figure = interval(row["accuracy"], row["interval"])
            lines.append(f"| forest that sees only {name.replace('_', ' ')}: accuracy | {clean['n']} | {figure} |")
            auc = interval(row["tumour_roc_auc"])
            lines.append(f"| the same: AUC, tumour or none | {clean['n']} | {auc} |")
    return "\n".join(lines)


def preprocessing_table(clean: dict[str, Any]) -> str:
    """What preprocessing is worth on clean val, and mirror averaging on clean test."""
    found = clean.get("preprocessing") or {}
    lines = ["| Version of clean val | As served | Plainly resized | Gain |", "|---|---|---|---|"]
    for row in found.get("clean_val", []):
        gain = interval(row["gain"], row["gain_interval"])
        lines.append(f"| {row['version']} | {row['served']:.3f} | {row['plain']:.3f} | {gain} |")
    if mirror := found.get("mirror_averaging"):
        gain = interval(mirror["gain"], mirror["gain_interval"])
        lines += [
            "",
            f"Mirror averaging on clean test (logged, never served; twice the cost): {mirror['one_look']:.3f}",
        ]
        lines[-1] += f" becomes {mirror['averaged']:.3f}, gain {gain}."
    return "\n".join(lines)


def robustness_table(clean: dict[str, Any]) -> str:
    """Accuracy on a sample of clean test under each perturbation."""
    lines = ["| Perturbation | Severity: accuracy |", "|---|---|"]
    for name, points in (clean.get("robustness") or {}).items():
        lines.append(f"| {name} | " + ", ".join(f"{p['severity']:g}: {p['accuracy']:.3f}" for p in points) + " |")
    return "\n".join(lines)


def run_metrics(name: str) -> dict[str, Any]:
    """Figures of a saved run; none where it is missing."""
    path = ROOT / "evaluations" / name / "metrics.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def fill_evaluation(model_id: str) -> str:
    """Write the tables of docs/evaluation.md between their markers; returns the table of bars."""
    clean, strange = (run_metrics(f"{model_id}-{part}") for part in ("clean-test", "out-of-distribution"))
    tables = {
        "seen": seen_table(clean, run_metrics(f"{model_id}-official-test")),
        "calibration": calibration_table(clean),
        "conformal": conformal_table(clean),
        "gate": gate_table(strange, clean),
        "shortcuts": shortcut_table(clean),
        "preprocessing": preprocessing_table(clean),
        "robustness": robustness_table(clean),
    }
    write_tables(ROOT / "docs" / "evaluation.md", tables)
    return bars_table(clean, strange)


def runs_of(model_id: str) -> dict[str, dict[str, Any]]:
    """A model's runs that have labels, by the split that names them."""
    found = {}
    for path in sorted((ROOT / "evaluations").glob(f"{model_id}-*/metrics.json")):
        metrics = json.loads(path.read_text("utf-8"))
        # Another model's name may begin alike.
        if metrics["model"]["id"] == model_id and metrics["n_typed"]:
            found[path.parent.name.removeprefix(f"{model_id}-")] = metrics | (metrics.get("calibration") or {})
    return found


def figures_table(model_id: str) -> str:
    """All runs of a model; n of what accuracy and ECE are of, images of a known type."""
    lines = ["| Run | n | Accuracy | Balanced accuracy | Macro F1 | ECE |", "|---|---|---|---|---|---|"]
    for split, flat in runs_of(model_id).items():
        figures = [f"{flat[c]:.3f}" if isinstance(flat.get(c), int | float) else "–" for c in COLUMNS]
        lines.append(f"| {model_id}-{split} | {flat['n_typed']} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def fill_card(card: ModelCard, directory: Path) -> None:
    """Write a card's metrics from its model's runs, clean test first; without runs it keeps what it has."""
    metrics: dict[str, dict[str, float]] = {}
    for split, flat in sorted(runs_of(card.id).items(), key=lambda kv: kv[0] != "clean-test"):
        if flat["model"]["weights_sha256"] != card.weights_sha256:
            raise DataError(f"evaluations/{card.id}-{split} is of other weights than {card.id}.json; evaluate again")
        metrics[split] = {c: flat[c] for c in ("n", *COLUMNS) if isinstance(flat.get(c), int | float)}
        if isinstance(flat.get("roc_auc"), dict) and isinstance(flat["roc_auc"].get("macro"), float):
            metrics[split]["roc_auc"] = flat["roc_auc"]["macro"]
        called = flat["tumour_vs_none"]["called"]
        metrics[split] |= {k: called[k] for k in ("sensitivity", "specificity") if isinstance(called[k], float)}
        seen = {r["value"]: r["n"] for r in flat.get("subgroups") or [] if r["column"] == "seen_in_training"}
        if seen.get("yes"):
            metrics[split]["seen_in_training"] = round(seen["yes"] / sum(seen.values()), 6)
    if metrics:
        write_card(card.model_copy(update={"metrics": metrics}), directory)


def main() -> None:
    """Write the tables between the markers, and the cards."""
    settings = load_settings().model
    bars = fill_evaluation(settings.id)
    beside = {m: (run_metrics(f"{m}-clean-test"), run_metrics(f"{m}-lgg-test")) for m in (settings.id, *OTHERS)}
    beside = {m: runs for m, runs in beside.items() if "shortcuts" in runs[0]}
    tables = {"figures": figures_table(settings.id), "bars": bars}
    tables |= {"networks": networks_table(beside), "search": search_table()}
    write_tables(ROOT / "docs" / "model.md", tables)
    write_tables(ROOT / "README.md", {"headline": headline(run_metrics(f"{settings.id}-clean-test"))})
    for model_id in list_models(settings.directory):
        fill_card(read_card(model_id, settings.directory), settings.directory)


if __name__ == "__main__":
    main()
