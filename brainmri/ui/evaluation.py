"""What the Evaluation page shows: saved runs. It computes nothing that a run holds."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import streamlit as st

from brainmri import displays, runs
from brainmri.errors import DataError
from brainmri.evaluation import (
    KINDS_TO_ACCEPT,
    MIN_GROUPS,
    compare,
    find_errors,
    operating_point,
    predictive_values,
)
from brainmri.look import DECISION_TITLES
from brainmri.runs import Run, data_title, list_runs, open_run, side_by_side
from brainmri.types import CLASS_TITLES
from brainmri.ui import state
from brainmri.ui.pictures import find_picture, thumbnail
from brainmri.ui.theme import plain

if TYPE_CHECKING:
    import altair

ERRORS_A_PAGE = 12
_TABS = ("Classes", "Tumour or none", "Probabilities", "Gate", "Errors", "Subgroups", "Shortcuts", "Compare", "Export")
_MEASURES = {
    "accuracy": "Accuracy",
    "baseline": "Nearest neighbour",
    "tumour_roc_auc": "AUC, tumour or none",
    "sensitivity": "Tumours found",
    "specificity": "No tumour recognised",
    "rejected_share": "Rejected",
}
"""Columns of the table of all runs: as many as a page is wide; the rest stands in each run's tabs."""


def show() -> None:
    """The whole page."""
    folder = state.settings().evaluation.directory
    found, damaged = _list_runs(str(folder), _stamp(folder))
    for message in damaged:
        st.warning(plain(message), icon=":material/warning:")
    if not found:
        st.info(
            "There is no saved evaluation yet. Make the release suite's, or one of your own images:",
            icon=":material/fact_check:",
        )
        st.code(
            "brainmri evaluate --suite data\n"
            "brainmri evaluate --manifest images.csv --split test --output evaluations/mine",
            language="bash",
        )
        return
    run, same_model = _choose(found)
    _headline(run, found)
    _side_by_side(same_model)
    tabs = st.tabs(list(_TABS), key="evaluation.tab", on_change="rerun", bind="query-params")
    sections = (_classes, _tumour, _probabilities, _gate, _errors, _subgroups, _shortcuts, _compare, _export)
    for tab, section in zip(tabs, sections, strict=True):
        if tab.open:  # only what is looked at is drawn
            with tab:
                try:
                    section(run, found)
                except DataError as error:
                    st.error(plain(str(error)), icon=":material/error:")


# --- choosing -------------------------------------------------------------------------------------------------------


def _stamp(folder: Path) -> tuple[tuple[str, int], ...]:
    files = [p for name in (runs.METRICS_FILE, runs.PREDICTIONS_FILE) for p in folder.glob(f"*/{name}")]
    return tuple(sorted((str(p), p.stat().st_mtime_ns) for p in files))


@st.cache_resource(show_spinner=False, max_entries=2)
def _list_runs(folder: str, stamp: tuple[tuple[str, int], ...]) -> tuple[list[Run], list[str]]:
    """Runs that open, and what is wrong with the others."""
    return list_runs(folder), runs.damaged_runs(Path(folder))


@st.cache_resource(show_spinner=False, max_entries=4)
def _predictions(directory: str, created: str) -> pd.DataFrame:
    return open_run(directory).predictions()


@st.cache_resource(show_spinner=False, max_entries=4)
def _wrong(directory: str, created: str) -> pd.DataFrame:
    return find_errors(_predictions(directory, created))


def _key(run: Run) -> tuple[str, str]:
    return str(run.directory), run.metrics.get("created", "")


def _choose(found: list[Run]) -> tuple[Run, list[Run]]:
    """The run to read, and all runs of its model's weights."""
    models = list(dict.fromkeys(run.metrics["model"]["id"] for run in found))
    left, right = st.columns([1, 2])
    default = state.settings().model.id
    model = left.selectbox(
        "Model",
        models,
        index=models.index(default) if default in models else 0,
        key="evaluation.model",
        persist_state="session",
    )
    own = [run for run in found if run.metrics["model"]["id"] == model]
    order = list(dict.fromkeys(side_by_side(own)["run"]))
    own.sort(key=lambda run: order.index(run.id))
    by_id = {run.id: run for run in own}  # ids, not runs: a list read anew holds other objects
    chosen = right.selectbox(
        "Run",
        list(by_id),
        key=f"evaluation.run.{model}",
        persist_state="session",
        format_func=lambda i: f"{data_title(by_id[i])} · n = {by_id[i].metrics['n']:,}",
    )
    return by_id[chosen], own


def _side_by_side(own: list[Run]) -> None:
    table = side_by_side(own)
    mixed = [run.id for run in own if run.metrics.get("kinds")]
    table.loc[table["run"].isin(mixed), "rejected_share"] = np.nan  # a mean over pictures to reject and to accept
    shown = pd.DataFrame({"Data and split": table["data"], "n": [f"{n:,.0f}" for n in table["n"]]})
    shown = shown.assign(**_measures(table))
    with st.expander("All runs of this model, side by side", icon=":material/table_rows:"):
        st.table(shown.set_index("Data and split"))
        st.caption(
            "95 % intervals by bootstrap over groups (slices of a patient as far as patients are known or can be "
            "guessed, else copies of a slice), not images. The clean split leads: most official test images of the "
            "Kaggle set show a slice that its training folder holds too, so the official figure measures memory. "
            "Nearest neighbour is what the label of the most similar training thumbnail reaches; a model that is not "
            "far above it has learned nothing that can be shown there. A dash: undefined or not computed there."
        )
    if len({r.metrics["model"]["weights_sha256"] for r in own}) > 1:
        st.warning("These runs are not all of the same weights: evaluate again.", icon=":material/warning:")


def _measures(table: pd.DataFrame) -> dict[str, list[str]]:
    """Columns of ``_MEASURES`` that a table of `side_by_side` has figures for, with their intervals."""
    shown = {}
    for name, title in _MEASURES.items():
        if name in table and table[name].notna().any():
            spans = table.get(f"{name}_interval", pd.Series([None] * len(table)))
            shown[title] = [_with_interval(v, s) for v, s in zip(table[name], spans, strict=True)]
    return shown


def _with_interval(value: Any, interval: Any) -> str:
    if value is None or pd.isna(value):
        return "–"
    span = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if isinstance(interval, list | tuple | np.ndarray) else ""
    return f"{value:.3f}{span}"


# --- headline and undefined -------------------------------------------------------------------------------------------


def _headline(run: Run, found: list[Run]) -> None:
    """What this run measures and what flatters it; what it cannot measure is listed below with the reason."""
    m, undefined = run.metrics, run.metrics["undefined"]
    st.subheader(run.title, anchor=False)
    binary, gate, spans = m["tumour_vs_none"], m.get("gate") or {}, m["intervals"]
    called, baseline = binary["called"], m.get("baseline") or {}
    figures = [
        ("Accuracy", m["accuracy"], spans.get("accuracy")),
        ("Nearest neighbour's accuracy", baseline.get("accuracy"), baseline.get("interval")),
        ("Tumours found", called["sensitivity"], binary["intervals"].get("called_sensitivity")),
        ("No tumour recognised", called["specificity"], binary["intervals"].get("called_specificity")),
    ]
    if m.get("kinds"):
        figures = []
        _kinds(run)
    elif not m["n_typed"]:
        figures.insert(0, ("Rejected", gate.get("rejected_share"), gate.get("rejected_interval")))
    with st.container(horizontal=True, gap="small"):
        for title, value, interval in figures:
            if value is not None:
                _metric(title, value, interval, help=_HELP[title])
        if not m["n_typed"] and binary.get("tumour_groups"):
            groups = f"{binary['tumour_groups_found']:,} of {binary['tumour_groups']:,}"
            st.metric("Groups whose tumour is found", groups, border=True, width="content", help=_GROUPS)
    if warnings := _flattered(run, found):
        st.warning("  \n".join(warnings), icon=":material/warning:")
    if "intervals" in undefined:
        st.caption(f"No intervals: {_words(undefined['intervals'])}.")
    if undefined:
        title = f"{displays.counted(len(undefined), 'figure')} undefined here"
        with st.expander(title, icon=":material/block:"):
            for name, reason in undefined.items():
                st.markdown(f"- **{_words(name.replace('_', ' '))}**: undefined because {_words(reason)}")


_HELP = {
    "Accuracy": "Share of the images whose likeliest class is the true one, whether or not it was given as an answer.",
    "Nearest neighbour's accuracy": "The label of the most similar training thumbnail: what memory alone reaches.",
    "Tumours found": "Sensitivity: share of the tumours whose likeliest class is a tumour, of whatever type.",
    "No tumour recognised": "Specificity: share of the images without a tumour whose likeliest class is no tumour.",
    "Rejected": "Share turned away as no brain MRI.",
}


def _flattered(run: Run, found: list[Run]) -> list[str]:
    """What the figures may owe to the data: to memory, and to sources that give the label away."""
    m, said = run.metrics, []
    part = {r["value"]: r["n"] for r in m.get("subgroups") or [] if r["column"] == "seen_in_training"}
    if seen := part.get("yes"):
        said.append(f"{seen:,} of the {sum(part.values()):,} images show a slice that was in training.")
    baseline, span = m.get("baseline"), m["intervals"].get("accuracy")
    if baseline and m["accuracy"] is not None and (span or [m["accuracy"]])[0] <= baseline["accuracy"]:
        said.append(
            f"The nearest neighbour, which learns nothing, reaches {baseline['accuracy']:.3f} here, and this model is "
            "not clearly above it: what is shown here may be memory, not skill."
        )
    data, area = m["data"]["name"], m["tumour_vs_none"]["roc_auc"]
    holders = [r for r in (run, *found) if r.metrics["data"]["name"] == data and _blind_area(r) is not None]
    if holders and area is not None:
        where = "" if holders[0].split_title == run.split_title else f" on {holders[0].split_title}"
        said.append(
            "Tumour or none is easy to tell here: a random forest that sees nothing but size, border and brightness "
            f"reaches an AUC of {_blind_area(holders[0]):.3f}{where}, the network {area:.3f}. Tumours and healthy "
            "pictures come from different collections. What the network knows of tumours shows within one source: the "
            "lgg run, and the tab Shortcuts."
        )
    return said


def _blind_area(run: Run) -> float | None:
    """AUC, tumour or none, of a random forest that sees no brain."""
    blind = (run.metrics.get("shortcuts") or {}).get("blind") or {}
    return (blind.get("statistics") or {}).get("tumour_roc_auc")


def _kinds(run: Run) -> None:
    """How much of each kind of picture the gate rejects; a mean over all would mix what it should with what not."""
    rows = run.metrics.get("subgroups") or []
    spans = {row["value"]: row.get("rejected_interval") for row in rows if row["column"] == "kind"}
    for accept, wanted in (
        (False, "**Should be rejected**: pictures that are no brain MRI. Rejected share, 1 is best:"),
        (True, "**Should be accepted**: brain MRI and samples drawn like it. Rejected share, 0 is best:"),
    ):
        kinds = {k: row for k, row in run.metrics["kinds"].items() if (k in KINDS_TO_ACCEPT) == accept}
        if not kinds:
            continue
        st.markdown(wanted)
        with st.container(horizontal=True, gap="small"):
            for kind, row in kinds.items():
                title = displays.value_title("kind", kind)
                _metric(f"{title[:1].upper()}{title[1:]}, n = {row['n']:,}", row["rejected_share"], spans.get(kind))
    if not all(spans.get(kind) for kind in run.metrics["kinds"]):
        st.caption(f"No interval where fewer than {MIN_GROUPS} groups carry a share; slices of one head are one group.")


_GROUPS = "A group (copies of a slice, slices of a patient) counts when most of its images are called tumour."


def _words(text: str) -> str:
    """Names of figures and reasons in a run, with classes as a reader knows them."""
    for name, title in CLASS_TITLES.items():
        text = re.sub(rf"\b{name}\b(?! tumour)", title.lower(), text)
    return plain(text.replace("roc auc", "AUC"))


def _metric(
    title: str, value: float | None, interval: Any = None, reason: str | None = None, help: str | None = None
) -> None:
    """A figure with its interval, or that it is undefined and why."""
    if value is None:
        why = _words(reason or "of no data")
        st.metric(title, "undefined", border=True, width="content", help=f"Undefined because {why}.")
        return
    span = f"95 %: {interval[0]:.3f} – {interval[1]:.3f}" if interval else None
    st.metric(
        title,
        f"{value:.3f}",
        delta=span,
        delta_color="off",
        delta_arrow="off",
        border=True,
        width="content",
        help=help,
    )


def _undefined(run: Run, *names: str) -> None:
    reasons = [run.metrics["undefined"][n] for n in names if n in run.metrics["undefined"]]
    because = f": undefined because {_words(reasons[0])}" if reasons else ""
    st.info(f"Nothing to draw here{because}.", icon=":material/block:")


def _chart(chart: altair.Chart) -> None:
    st.altair_chart(chart, width="stretch")


# --- tabs -----------------------------------------------------------------------------------------------------------


def _classes(run: Run, found: list[Run]) -> None:
    m = run.metrics
    if not m["n_typed"]:
        _undefined(run, "accuracy")
        return
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.markdown("**Confusion matrix**")
        how = st.segmented_control(
            "Cells show",
            ["Counts", "Share of the true class"],
            default="Counts",
            key="evaluation.cells",
            label_visibility="collapsed",
        )
        _chart(displays.chart_confusion_matrix(m, normalised=how == "Share of the true class"))
    with right:
        for title, name in (("Balanced accuracy", "balanced_accuracy"), ("Macro F1", "macro_f1")):
            _metric(title, m[name], m["intervals"].get(name), m["undefined"].get(name))
        if m["roc_auc"]["macro"] is not None:
            _metric("Macro AUC", m["roc_auc"]["macro"], m["intervals"].get("roc_auc_macro"))
    st.markdown("**Classification report**")
    rows = []
    for name, row in m["per_class"].items():
        cells: dict[str, Any] = {"Class": CLASS_TITLES[name]}
        for key in ("precision", "recall", "f1"):
            cells[key.capitalize()] = _with_interval(row[key], m["intervals"].get(f"{key}_{name}"))
        auc = m["roc_auc"]["per_class"][name]
        cells["AUC"] = _with_interval(auc, m["intervals"].get(f"roc_auc_{name}"))
        rows.append(cells | {"Images": f"{row['support']:,}"})
    st.table(pd.DataFrame(rows).set_index("Class"))
    if not m["curves"]:
        _undefined(run, "roc_auc_macro")
        return
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("**ROC**, each class against the others")
        _chart(displays.chart_roc(m))
    with right:
        st.markdown("**Precision and recall**")
        _chart(displays.chart_precision_recall(m))


def _tumour(run: Run, found: list[Run]) -> None:
    binary = run.metrics["tumour_vs_none"]
    st.caption(
        "By the probability of a tumour, 1 - p(no tumour). Tumours of unknown type take part. Figures are of slices, "
        "not of patients."
    )
    if not binary.get("curve"):
        with st.container(horizontal=True):
            for kind in ("sensitivity", "specificity"):
                _metric(
                    f"{kind.capitalize()}, likeliest class",
                    binary["called"][kind],
                    binary["intervals"].get(f"called_{kind}"),
                    run.metrics["undefined"].get(f"tumour_vs_none_{kind}"),
                )
        _undefined(run, "tumour_vs_none_roc_auc")
        return
    fixed = binary["threshold"]
    left, right = st.columns([2, 3], gap="large")
    with left:
        start = round(fixed, 3) if fixed is not None else 0.5
        chosen = st.slider(
            "Operating point: call it a tumour from",
            0.0,
            1.0,
            start,
            0.001,
            format="%.3f",
            key=f"evaluation.threshold.{run.id}",
        )
        prevalence = (
            st.number_input(
                "Prevalence of tumours where it is used, %", 0.1, 99.9, 5.0, 0.5, key="evaluation.prevalence"
            )
            / 100
        )
        at_fixed = fixed is not None and chosen == start
        sensitivity, specificity = (
            (binary["at_threshold"]["sensitivity"], binary["at_threshold"]["specificity"])
            if at_fixed
            else operating_point(binary["curve"], chosen)
        )
        positive, negative = predictive_values(sensitivity, specificity, prevalence)
        spans = binary["intervals"] if at_fixed else {}
        with st.container(horizontal=True, gap="small"):
            _metric("Sensitivity", sensitivity, spans.get("at_threshold_sensitivity"))
            _metric("Specificity", specificity, spans.get("at_threshold_specificity"))
            _metric(f"PPV at {prevalence:.1%}", positive, None, "nobody is called ill at this point")
            _metric(f"NPV at {prevalence:.1%}", negative, None, "nobody is called healthy at this point")
        found_ill, false_alarms = 1000 * prevalence * sensitivity, 1000 * (1 - prevalence) * (1 - specificity)
        st.markdown(
            f"Of 1,000 slices {1000 * prevalence:.0f} show a tumour: **{found_ill:.0f} are found**, "
            f"{1000 * prevalence - found_ill:.0f} are missed, and **{false_alarms:.0f} without** are called tumour."
        )
        if at_fixed:
            st.caption(
                "This point was fixed on validation images; intervals are shown for it alone. It serves evaluation: "
                "what a reader sees is decided by the 95 % set."
            )
        elif fixed is not None:
            st.caption(
                f"The point fixed on validation images is {fixed:.3f}. A point chosen while looking at these "
                "figures flatters them."
            )
    with right:
        _chart(displays.chart_operating_point(run.metrics, chosen))
        _metric("AUC, tumour or none", binary["roc_auc"], binary["intervals"].get("roc_auc"))
    called = binary["called"]
    st.caption(
        "By likeliest class: "
        + ", ".join(f"{k} {_with_interval(v, binary['intervals'].get(f'called_{k}'))}" for k, v in called.items())
        + ". "
        f"{binary['tumour_groups_found']:,} of {binary['tumour_groups']:,} tumour groups found (most of a group's "
        "images called tumour)."
    )


def _probabilities(run: Run, found: list[Run]) -> None:
    calibration = run.metrics.get("calibration")
    if not calibration:
        _undefined(run, "calibration")
        return
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.markdown("**Reliability**: is 80 % right eight times in ten?")
        _chart(displays.chart_reliability(run.metrics))
    with right:
        st.markdown("**Before and after temperature**")
        rows = {
            "ece": f"ECE ({calibration['bins_equal_mass']} equal-mass bins)",
            "brier": "Brier score",
            "log_loss": "Log loss",
        }
        before = calibration.get("before") or {}
        table = [
            {
                "": title,
                "before": f"{before[key]:.3f}" if key in before else "–",
                "after": f"{calibration['after'][key]:.3f}",
            }
            for key, title in rows.items()
        ]
        st.dataframe(pd.DataFrame(table), hide_index=True)
        st.caption(
            (
                f"Temperature {run.metrics['model']['temperature']:.3f}, fitted on clean validation images. "
                if run.metrics["model"].get("calibrated", True)
                else "Not calibrated: no temperature has been fitted. "
            )
            + "Lower is better in all three."
        )
        if chance := calibration.get("ece_by_chance"):
            st.caption(
                f"Probabilities that were exactly right would show an ECE of {chance['mean']:.3f} on as many images, "
                f"and up to {chance['percentile_95']:.3f} in 19 of 20 such sets: bins hold few images."
            )
    st.markdown("**Conformal prediction sets**: how often the true class is in the set, and how large the set is")
    conformal = run.metrics.get("conformal") or {}
    if not conformal:
        _undefined(run, "conformal_0.95")
        return
    columns = {f"{float(level):.0%} sets": _sets(row) for level, row in conformal.items()}
    st.table(pd.DataFrame(columns))
    st.caption("The 95 % set decides: exactly one class is an answer, more than one or none is “undecided”.")


def _sets(row: dict[str, Any]) -> dict[str, str]:
    """One level's sets, a line a figure."""
    sizes = {f"Sets of {k} class{'' if k == '1' else 'es'}": f"{n:,}" for k, n in row["set_sizes"].items()}
    covers = row["coverage_per_class"].items()
    return {
        "Coverage": _with_interval(row["coverage"], row["coverage_interval"]),
        "Mean size": _with_interval(row["mean_set_size"], row["mean_set_size_interval"]),
        **{f"Covers {CLASS_TITLES[c].lower()}": _with_interval(v, None) for c, v in covers},
        **sizes,
    }


def _answers(answers: dict[str, dict[str, int]]) -> pd.DataFrame:
    """A line a true class, a column an answer; how many images."""
    # What a narrow screen shows first: on what the reader gets no class.
    columns = {d: DECISION_TITLES[d] for d in ("undecided", "rejected")} | CLASS_TITLES
    rows = [
        {"True class": CLASS_TITLES.get(label, "Tumour of unknown type")}
        | {title: f"{told.get(name, 0):,}" for name, title in columns.items()}
        for label, told in answers.items()
    ]
    return pd.DataFrame(rows).set_index("True class")


def _gate(run: Run, found: list[Run]) -> None:
    gate = run.metrics.get("gate")
    if gate:
        with st.container(horizontal=True, gap="small"):
            for name, title in DECISION_TITLES.items():
                n = gate["counts"][name]
                # A share over kinds of pictures means nothing: those stand apart, above.
                share = None if run.metrics.get("kinds") else f"{n / run.metrics['n']:.1%}"
                st.metric(title, f"{n:,}", share, delta_color="off", delta_arrow="off", border=True, width="content")
            reason = run.metrics["undefined"].get("accuracy")
            _metric(
                "Accuracy of what was answered",
                gate.get("accuracy_decided"),
                gate.get("accuracy_decided_interval"),
                reason,
            )
            _metric(
                "Accuracy of what was not rejected",
                gate["accuracy_accepted"],
                gate.get("accuracy_accepted_interval"),
                reason,
            )
        if not run.metrics["model"].get("calibrated", True):
            st.warning("Not calibrated: nothing is turned away and every set is the likeliest class. "
                       "Run `brainmri calibrate`.", icon=":material/warning:")  # fmt: skip
        if answers := gate.get("answers"):
            st.markdown("**What readers are told**, true class by true class")
            st.table(_answers(answers))
    else:
        _undefined(run, "gate")
    holder = run if run.metrics.get("trade_off") else _other(run, found, "trade_off")
    if holder is None:
        st.info(
            "The trade-off curve needs a run over pictures that are no brain MRI: "
            "`brainmri evaluate --suite data --only out-of-distribution`.",
            icon=":material/info:",
        )
        return
    st.markdown(f"**What every threshold of the gate would cost and bring** · {plain(holder.title)}")
    left, right = st.columns([3, 2], gap="large")
    with left:
        near = f"Up to {displays.TRADE_OFF_NEAR:.0%} wrongly rejected"
        shown = st.segmented_control(
            "Part of the curve",
            [near, "The whole curve"],
            default=near,
            key="evaluation.trade_off",
            label_visibility="collapsed",
        )
        _chart(displays.chart_trade_off(holder.metrics, 1.0 if shown == "The whole curve" else displays.TRADE_OFF_NEAR))
        st.caption("The dashed line is the threshold in use, fixed on clean validation images.")
        if max(holder.metrics["trade_off"]["wrongly_rejected"]) < 1:
            st.caption("This run holds only a part of the curve: evaluate again for the whole one.")
    with right:
        rows = [
            {
                "Kind": displays.value_title("kind", kind),
                "n": f"{row['n']:,}",
                "Rejected": f"{row['rejected_share']:.1%}",
                "Grey only": _percent(row.get("rejected_share_colour_ignored")),
            }
            for kind, row in holder.metrics.get("kinds", {}).items()
        ]
        if holder.metrics.get("clean_test_rejected") is not None:
            rows.append(
                {
                    "Kind": "clean test (brain MRI)",
                    "n": "–",
                    "Rejected": f"{holder.metrics['clean_test_rejected']:.1%}",
                    "Grey only": "–",
                }
            )
        st.dataframe(pd.DataFrame(rows), hide_index=True)
        st.caption(
            "“Grey only”: by the learned gate alone, as if each file were grey. The slices of a healthy head are "
            "from another scanner; they and the synthetic samples should pass."
        )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _other(run: Run, found: list[Run], key: str) -> Run | None:
    """Another run of the same weights that holds something."""
    weights = run.metrics["model"]["weights_sha256"]
    return next((r for r in found if r.metrics.get(key) and r.metrics["model"]["weights_sha256"] == weights), None)


def _picture(run: Run, path: str) -> Path | None:
    """The image of a prediction where its data set is on this machine."""
    root = state.settings().data.root
    return find_picture(root.parent / run.metrics["data"]["name"], path) or find_picture(root, path)


def _errors(run: Run, found: list[Run]) -> None:
    wrong = _wrong(*_key(run))
    if wrong.empty:
        praise = "The likeliest class is right for every image of this run."
        _undefined(run, "accuracy") if not run.metrics["n_typed"] else st.success(praise)
        return
    left, middle, right = st.columns([2, 2, 3])
    label = left.selectbox(
        "True class", ["All", *sorted(wrong["label"].unique())], key=f"evaluation.true.{run.id}", format_func=_title
    )
    predicted = middle.selectbox(
        "Called", ["All", *sorted(wrong["predicted"].unique())], format_func=_title, key=f"evaluation.called.{run.id}"
    )
    decided = (
        right.toggle(
            "Only those given as an answer", key="evaluation.decided", help="Leaves out what was undecided or rejected."
        )
        if "decision" in wrong
        else False
    )
    keep = np.ones(len(wrong), bool)
    if label != "All":
        keep &= (wrong["label"] == label).to_numpy()
    if predicted != "All":
        keep &= (wrong["predicted"] == predicted).to_numpy()
    if decided:
        keep &= (wrong["decision"] == "class").to_numpy()
    shown = wrong[keep].reset_index(drop=True)
    answered = int((wrong["decision"] == "class").sum()) if "decision" in wrong else len(wrong)
    st.caption(
        f"{len(shown):,} of {displays.counted(len(wrong), 'image')} whose likeliest class is wrong, the surest first; "
        f"{answered:,} of all were given as an answer, the others were undecided or rejected."
    )
    if shown.empty:
        return
    config: dict[str, Any] = {
        "p_predicted": st.column_config.ProgressColumn(
            "Probability", min_value=0, max_value=1, format="%.3f", width="small"
        ),
        "p_label": st.column_config.NumberColumn("Probability of true", format="%.3f"),
        "ood_score": st.column_config.NumberColumn(
            "distance", format="%.2f", help="From the training data, as the gate measures it; rejected beyond 1."
        ),
        "path": st.column_config.TextColumn("image", pinned=True),
        "label": "true",
        "predicted": "called",
        "set_95": "95 % set",
    }
    st.dataframe(_in_words(shown), hide_index=True, column_config=config, height=280)
    if run.metrics["data"].get("split_column") == "clean_split":
        st.caption(
            "The clean split divides the Kaggle folders anew: a path may say Training and its image be in the test."
        )
    _gallery(run, shown, f"evaluation.page.{run.id}")


def _in_words(table: pd.DataFrame) -> pd.DataFrame:
    """A table of predictions with classes, planes, decisions and sets as a reader knows them."""
    table = table.copy()
    for column in ("label", "predicted", "first", "second", "plane", "sequence", "decision"):
        if column in table:
            kind = "label" if column in ("first", "second") else column
            table[column] = [displays.value_title(kind, str(value)) for value in table[column]]
    if "set_95" in table:
        sets = (str(value).split("|") if value else [] for value in table["set_95"])
        table["set_95"] = [" or ".join(map(displays.class_title, names)) or "none" for names in sets]
    return table


def _gallery(run: Run, table: pd.DataFrame, key: str) -> None:
    """Pictures of a table's images, page by page."""
    pages = -(-len(table) // ERRORS_A_PAGE)
    number = min(st.pagination(pages, key=key), pages) if pages > 1 else 1
    part = table.iloc[(number - 1) * ERRORS_A_PAGE : number * ERRORS_A_PAGE]
    files = [_picture(run, path) for path in part["path"]]
    if not any(files):
        st.info(
            "The pictures appear here where the data set is on this machine (data.root in config.yaml, or "
            "BRAINMRI_DATA).",
            icon=":material/image_not_supported:",
        )
        return
    with st.container(horizontal=True, gap="small", key="sample_grid_errors"):
        for (_, row), file in zip(part.iterrows(), files, strict=True):
            with st.container(width=220):
                if file is not None:
                    alt = f"{Path(row['path']).name}, {_title(row['label'])}"
                    st.image(thumbnail(str(file)), width="stretch", alt=alt)
                if "first" in row:  # a comparison
                    st.markdown(
                        f"First: **{_title(row['first'])}** {row['p_first']:.1%}  \n"
                        f"Second: **{_title(row['second'])}** {row['p_second']:.1%}"
                    )
                else:
                    st.markdown(f"**{_title(row['predicted'])}** {row['p_predicted']:.1%}")
                decision = f"{DECISION_TITLES[row['decision']]} · " if "decision" in row else ""
                st.caption(f"{decision}is {_title(row['label']).lower()}  \n{plain(Path(row['path']).name)}")


def _title(label: str) -> str:
    return "All" if label == "All" else displays.class_title(label)


def _subgroups(run: Run, found: list[Run]) -> None:
    rows = run.metrics.get("subgroups") or []
    if not rows:
        st.info("This run has no subgroups: every image is alike in plane, size, source and brightness.")
        return
    titles = {row["column"]: row["title"] for row in rows}
    left, right = st.columns([1, 1])
    column = left.selectbox(
        "By", list(titles), format_func=lambda c: titles[c].capitalize(), key=f"evaluation.subgroup.{run.id}"
    )
    part = [row for row in rows if row["column"] == column]
    measures = displays.SUBGROUP_MEASURES
    usable = [m for m in measures if any(row.get(m) is not None for row in part)]
    if usable:
        measure = right.selectbox(
            "Measure", usable, format_func=lambda m: measures[m][:1].upper() + measures[m][1:], key="evaluation.measure"
        )
        _chart(displays.chart_subgroups(run.metrics, column, measure))
    table = pd.DataFrame(
        [
            {
                titles[column].capitalize(): displays.value_title(column, row["value"]),
                "n": f"{row['n']:,}",
                "Groups": f"{row['n_groups']:,}",
                "Accuracy": _with_interval(row["accuracy"], row["accuracy_interval"]),
                "Tumours found": _with_interval(row["sensitivity"], None),
                "No tumour recognised": _with_interval(row["specificity"], None),
                "The same, by the fixed threshold": _with_interval(row.get("specificity_at_threshold"), None),
                "AUC, tumour or none": _with_interval(row["tumour_roc_auc"], row["tumour_roc_auc_interval"]),
                "Rejected": _with_interval(row.get("rejected_share"), row.get("rejected_interval")),
            }
            for row in part
        ]
    )
    table = table.set_index(table.columns[0])
    st.table(table.loc[:, (table != "–").any()])
    st.caption("A dash, or no column: undefined, as these images lack ones with, or without, a tumour or a known type.")


# --- shortcuts and robustness -----------------------------------------------------------------------------------------


def _shortcuts(run: Run, found: list[Run]) -> None:
    st.markdown("Is it right for the right reason? A network can score well by telling **where a picture comes from**.")
    holder = run if run.metrics.get("shortcuts") else _other(run, found, "shortcuts")
    panel: dict[str, Any] = holder.metrics["shortcuts"] if holder else {}
    if holder:
        st.caption(f"From the run {plain(holder.title)}.")
    rows = [*_within_source(run, found, panel), *_counterfactuals(panel), *_blind(panel)]
    if rows:
        st.table(pd.DataFrame(rows).set_index("Question"))
        st.caption(
            "Painted away counts as changed when the answer becomes no tumour or undecided. The rows “Sees only …” are "
            "about the data and not about this network: they say how much can be had without seeing a brain."
        )
    if not holder:
        st.info(
            "No run of these weights holds the whole panel: `brainmri evaluate --suite data --only clean-test "
            "--only shortcuts`.",
            icon=":material/info:",
        )
    st.divider()
    st.markdown("**Robustness**: accuracy as the picture gets worse")
    holder = run if run.metrics.get("robustness") else _other(run, found, "robustness")
    if holder is None:
        st.info(
            "No run of these weights holds robustness curves: `brainmri evaluate --suite data --only clean-test "
            "--only robustness`.",
            icon=":material/info:",
        )
        return
    sample = next(iter(holder.metrics["robustness"].values()))[0]["n"]
    st.caption(
        f"A sample of the run {plain(holder.title)}: n = {sample:,}, every class with its share. Drawn is the share of "
        "the sample that is called right, with 95 % intervals over groups."
    )
    with st.container(horizontal=True, gap="small"):
        for chart in displays.chart_robustness(holder.metrics).values():
            with st.container(width=300):
                _chart(chart)


def _row(question: str, value: str, n: Any, meaning: str) -> dict[str, str]:
    return {"Question": question, "Figure": value, "n": f"{n:,}" if isinstance(n, int) else str(n), "Good is": meaning}


def _within_source(run: Run, found: list[Run], panel: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    sequences = panel.get("lgg_by_sequence")
    if not sequences:
        weights = run.metrics["model"]["weights_sha256"]
        lgg = [
            r for r in found if r.metrics["data"]["name"] == "lgg" and r.metrics["model"]["weights_sha256"] == weights
        ]
        sequences = {
            row["value"]: {"roc_auc": row["tumour_roc_auc"], "interval": row["tumour_roc_auc_interval"], "n": row["n"]}
            for r in lgg[:1]
            for row in r.metrics.get("subgroups", [])
            if row["column"] == "sequence"
        }
    for name, row in (sequences or {}).items():
        rows.append(
            _row(
                f"Tumour or none within one source (TCGA LGG, {displays.value_title('sequence', name)}): AUC",
                _with_interval(row["roc_auc"], row["interval"]),
                row["n"],
                "near 1; 0.5 is chance",
            )
        )
    for plane, row in (panel.get("within_plane") or {}).items():
        rows.append(
            _row(
                f"Tumour or none within one plane ({displays.value_title('plane', plane)}): AUC",
                _with_interval(row["roc_auc"], row["interval"]),
                row["n_tumour"] + row["n_none"],
                "near 1",
            )
        )
    if br35h := panel.get("br35h_groups"):
        rows.append(
            _row(
                "Tumours found in the collection that “no tumour” comes from",
                f"{br35h['found']} of {br35h['groups']}",
                br35h["groups"],
                "all",
            )
        )
    if head := panel.get("head_t1"):
        rows.append(
            _row(
                "Another scanner’s healthy head, slices with brain: likeliest class “no tumour” (answered so)",
                f"{head['brain_called_none']} ({head['brain_answered_none']}) of {head['n_brain']}"
                if "n_brain" in head
                else f"{head['called_none']} of {head['n']}, neck included",
                head.get("n_brain", head["n"]),
                "all",
            )
        )
    for tumour, title in ((False, "slices without a tumour"), (True, "slices with one")):
        if heads := [row for row in panel.get("elsewhere") or [] if row["tumour"] == tumour]:
            n, called, answered = (sum(row[key] for row in heads) for key in ("n", "called", "answered"))
            rows.append(
                _row(
                    f"{displays.counted(len(heads), 'head')} from other scanners, {title}: "
                    "likeliest class right, tumour or none (answered so)",
                    f"{called} ({answered}) of {n}",
                    n,
                    "all",
                )
            )
    return rows


_METHODS = {
    "diffusion": "diffusion",
    "mirror": "the mirrored half",
    "patch": "the best-fitting patch",
}


def _counterfactuals(panel: dict[str, Any]) -> list[dict[str, str]]:
    found = panel.get("counterfactuals") or {}
    if "n" not in found:
        return []
    rows = []
    for name, row in found.items():
        if isinstance(row, dict) and "changed" in row:
            rows.append(
                _row(
                    f"Tumour painted away ({_METHODS.get(name, name)}): answer changes",
                    _with_interval(row["changed"], row.get("interval")),
                    found["n"],
                    "near 1",
                )
            )
    painted = {
        f" ({_METHODS.get(k, k)})": v for k, v in found.items() if isinstance(v, dict) and "elsewhere_changed" in v
    }
    for how, row in (painted or {"": found}).items():  # runs of earlier versions painted elsewhere in one way
        rows.append(
            _row(
                f"An equal area elsewhere painted over{how}: answer changes",
                _with_interval(row["elsewhere_changed"], row.get("elsewhere_interval")),
                found["n_elsewhere"],
                "near 0",
            )
        )
    return rows


def _blind(panel: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    probe = panel.get("source_probe") or {}
    if "balanced_accuracy" in probe:
        rows.append(
            _row(
                "A linear probe on block 5 tells the source of healthy pictures",
                f"{probe['balanced_accuracy']:.3f}",
                sum(probe["n"].values()),
                f"near {probe['chance']:.3f} (chance)",
            )
        )
    blind = panel.get("blind") or {}
    for name, title in (
        ("head_blanked", "only the picture with the head blanked out"),
        ("statistics", "only size, border and brightness"),
    ):
        if name in blind:
            row = blind[name]
            rows.append(
                _row(
                    f"Sees {title}: accuracy",
                    _with_interval(row["accuracy"], row["interval"]),
                    "–",
                    f"near {blind['majority']:.3f} (majority)",
                )
            )
            rows.append(
                _row(
                    f"Sees {title}: AUC, tumour or none",
                    f"{row['tumour_roc_auc']:.3f}",
                    "–",
                    "near 0.5",
                )
            )
    return rows


# --- comparing, exporting ---------------------------------------------------------------------------------------------


@st.cache_resource(show_spinner="Comparing …", max_entries=8)
def _compared(first: tuple[str, str], second: tuple[str, str]) -> dict[str, Any]:
    return compare(_predictions(*first), _predictions(*second))


def _how_to_evaluate(run: Run) -> str:
    """The command that makes another model's run of the same images."""
    from brainmri.suite import PARTS  # with all that fits gates and paints pictures: not for every visit of the page

    data, part = run.metrics["data"], run.id.removeprefix(f"{run.metrics['model']['id']}-")
    if part in PARTS:
        return f"brainmri evaluate --model OTHER --suite data --only {part}"
    return (
        f"brainmri evaluate --model OTHER --manifest FOLDER/{data['manifest']} --images FOLDER "
        f"--split-column {data['split_column']} --split {data['split']} --name {data['name']} "
        f"--output {run.directory.parent.name}/OTHER-{part}"
    )


def _compare(run: Run, found: list[Run]) -> None:
    data = run.metrics["data"]
    others = [
        r
        for r in found
        if r.id != run.id and all(r.metrics["data"].get(k) == data.get(k) for k in ("name", "split_column", "split"))
    ]
    if not others:
        st.info(
            f"No other run is of {plain(data['name'])}, {run.split_title}. Evaluate another model on the same images:",
            icon=":material/info:",
        )
        st.code(_how_to_evaluate(run), language="bash")
        return
    by_id = {r.id: r for r in others}
    table = side_by_side([run, *others]).drop_duplicates("run")  # without the sources below each
    models = {r.id: r.metrics["model"]["id"] for r in (run, *others)}
    st.table(pd.DataFrame({"Model": table["run"].map(models)} | _measures(table)).set_index("Model"))
    chosen = st.selectbox(
        "Compare with",
        list(by_id),
        index=None,
        format_func=lambda i: by_id[i].title,
        placeholder="another model or recipe on the same images",
        key=f"evaluation.compare.{run.id}",
    )
    if chosen is None:
        st.caption(
            "McNemar's exact test and a paired bootstrap over groups, on the images that both runs have. McNemar "
            "counts images as independent; where slices share patients, believe the interval."
        )
        return
    second = by_id[chosen]
    for each in (run, second):
        _predictions(*_key(each))  # damaged ones are an error; runs that do not match are none
    try:
        result = _compared(_key(run), _key(second))
    except DataError as error:
        st.info(plain(str(error)), icon=":material/info:")
        return
    st.markdown(
        f"First: **{plain(run.title)}**  \nSecond: **{plain(second.title)}**  \n"
        f"{displays.counted(result['n'], 'image')} in common"
    )
    with st.container(horizontal=True, gap="small"):
        _metric("Accuracy, first", result["accuracy"]["first"])
        _metric("Accuracy, second", result["accuracy"]["second"])
        _metric("Second - first", result["difference"], result["interval"])
        st.metric("Only first right", f"{result['only_first_right']:,}", border=True, width="content")
        st.metric("Only second right", f"{result['only_second_right']:,}", border=True, width="content")
        st.metric("McNemar's p", f"{result['mcnemar_p']:.3g}", border=True, width="content")
    if reason := result["undefined"].get("interval"):
        st.caption(f"No interval of the difference: {_words(reason)}.")
    changed = result["changed"]
    st.markdown(f"**Called differently: {displays.counted(len(changed), 'image')}**")
    if changed.empty:
        return
    probability = {
        name: st.column_config.NumberColumn(f"Probability, {name.removeprefix('p_')}", format="%.3f")
        for name in ("p_first", "p_second")
    }
    st.dataframe(
        _in_words(changed),
        hide_index=True,
        height=320,
        column_config=probability | {"label": "true", "path": st.column_config.TextColumn(pinned=True)},
    )
    st.download_button(
        "Changed cases as CSV",
        changed.to_csv(index=False),
        f"{run.id}-against-{second.id}.csv",
        "text/csv",
        icon=":material/download:",
        on_click="ignore",
    )
    _gallery(run, changed, f"evaluation.changed.{run.id}.{second.id}")


def _export(run: Run, found: list[Run]) -> None:
    st.markdown("Everything on this page comes from these files; the figures are drawn from the same numbers.")
    with st.container(horizontal=True):
        st.download_button(
            "Predictions (CSV)",
            lambda: _predictions(*_key(run)).to_csv(index=False).encode(),
            f"{run.id}-predictions.csv",
            "text/csv",
            icon=":material/table:",
            on_click="ignore",
        )
        st.download_button(
            "Figures (PNG)",
            lambda: figures(run),
            f"{run.id}-figures.zip",
            "application/zip",
            icon=":material/image:",
            on_click="ignore",
            disabled=not displays.figures(run.metrics),
            help="Every figure that this run's numbers allow.",
        )
        st.download_button(
            "Metrics (JSON)",
            json.dumps(run.metrics, indent=1, ensure_ascii=False),
            f"{run.id}-metrics.json",
            "application/json",
            icon=":material/data_object:",
            on_click="ignore",
        )
    with st.expander("Model, data and environment of this run", icon=":material/list_alt:"):
        st.json({k: run.metrics.get(k) for k in ("model", "data", "bootstrap", "environment", "created")}, expanded=2)


def figures(run: Run) -> bytes:
    """A zip of the run's figures."""
    import tempfile

    content = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(content, "w") as archive:
        for path in displays.save_figures(run.metrics, folder, title=run.title):
            archive.write(path, path.name)
    return content.getvalue()
