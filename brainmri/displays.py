"""Numbers -> figures. Each figure has one ``*_frame`` that shapes the numbers; matplotlib and Altair both draw that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from brainmri.look import CLASS_COLOURS, DECISION_TITLES
from brainmri.types import CLASS_TITLES, NO_TUMOR

if TYPE_CHECKING:
    import altair
    from matplotlib.figure import Figure

_CURVE_COLOURS = {**CLASS_COLOURS, "tumour against none": "#9AA5B1", "macro": "#B07AA1"}
_DASHES = {"tumour against none": [6, 3], "macro": [2, 2]}

_MEASURES = {"sensitivity": "#D55E00", "specificity": "#009E73"}
TRADE_OFF_NEAR = 0.2
"""Share of brain MRI wrongly rejected up to which a gate's trade-off is drawn closer: who would use a costlier one?"""
_OTHERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")


_VALUES = {
    "plane": {"ax": "axial", "co": "coronal", "sa": "sagittal"},
    "mirrored": {"0": "no", "1": "yes"},
    "sequence": {"flair": "FLAIR", "post": "after contrast"},
    "kind": {"chest_xray": "chest X-ray", "head_ct": "head CT", "head_t1": "healthy head, T1", "photo": "photograph",
             "synthetic": "synthetic sample"},
    "decision": DECISION_TITLES,
}  # fmt: skip


# --- words ------------------------------------------------------------------------------------------------------------


def class_title(name: str) -> str:
    """A class id or ``tumour`` as a reader sees it."""
    return CLASS_TITLES.get(name, "Tumour, type unknown" if name and name != NO_TUMOR else name)


def value_title(column: str, value: str) -> str:
    """A value of a column of predictions as a reader sees it."""
    if column in ("label", "predicted"):
        return class_title(value)
    return _VALUES.get(column, {}).get(value, str(value).replace("_", " "))


def counted(n: int, noun: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


# --- frames: what is drawn ------------------------------------------------------------------------------------------


def confusion_frame(metrics: dict[str, Any]) -> pd.DataFrame:
    """``true``, ``predicted``, ``n`` and ``share`` of the true class (NaN for a class without images)."""
    matrix = np.array(metrics["confusion_matrix"])
    names = [CLASS_TITLES[c] for c in metrics["class_names"]]
    support = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, support, out=np.full(matrix.shape, np.nan), where=support > 0)
    return pd.DataFrame(
        [
            {"true": t, "predicted": p, "n": int(matrix[i, j]), "share": float(share[i, j])}
            for i, t in enumerate(names)
            for j, p in enumerate(names)
        ]
    )


def curve_frame(metrics: dict[str, Any]) -> pd.DataFrame:
    """Operating points of every class against the rest and of tumour against none, with the legend's text.

    ``curve``, ``legend``, ``threshold``, ``sensitivity`` (= recall), ``one_minus_specificity``, ``precision`` and
    ``step`` (along the curve). ``macro`` is the mean sensitivity of the classes at equal specificity: it has neither
    threshold nor precision.
    """
    parts = []
    curves = dict(metrics["curves"])
    if metrics["tumour_vs_none"].get("curve"):
        curves["tumour against none"] = metrics["tumour_vs_none"]["curve"]
    for name, curve in curves.items():
        tumour = name == "tumour against none"
        area = metrics["tumour_vs_none"]["roc_auc"] if tumour else metrics["roc_auc"]["per_class"][name]
        title = "Tumour against none" if tumour else CLASS_TITLES[name]
        frame = pd.DataFrame(curve)
        parts.append(
            frame.assign(
                curve=name,
                legend=f"{title} (AUC {area:.3f})",
                one_minus_specificity=1 - frame["specificity"],
            )
        )
    macro = metrics["roc_auc"]["macro"]
    if macro is not None:
        even = np.linspace(0, 1, 201)
        classes = [p for p in parts if p["curve"].iloc[0] != "tumour against none"]
        mean = np.mean([np.interp(even, p["one_minus_specificity"], p["sensitivity"]) for p in classes], axis=0)
        values = {"sensitivity": mean, "specificity": 1 - even, "one_minus_specificity": even}
        parts.append(pd.DataFrame(values).assign(curve="macro", legend=f"Mean of the classes (AUC {macro:.3f})"))
    columns = ["threshold", "sensitivity", "specificity", "precision", "curve", "legend", "one_minus_specificity"]
    if not parts:
        return pd.DataFrame(columns=[*columns, "step"])
    return pd.concat([part.assign(step=range(len(part))) for part in parts], ignore_index=True)


def reliability_frame(metrics: dict[str, Any]) -> pd.DataFrame:
    """``when`` (before / after temperature), ``mean_probability``, ``accuracy``, ``low``, ``high``, ``n`` per bin."""
    calibration = metrics.get("calibration") or {}
    rows = []
    for key, title in (("before", "before temperature"), ("after", "as shown to readers")):
        for b in (calibration.get(key) or {}).get("bins", []):
            low, high = b["interval"] or (np.nan, np.nan)
            rows.append({"when": title, **{k: b[k] for k in ("mean_probability", "accuracy", "n")}, "low": low,
                         "high": high})  # fmt: skip
    return pd.DataFrame(rows, columns=["when", "mean_probability", "accuracy", "n", "low", "high"])


def robustness_frame(metrics: dict[str, Any]) -> pd.DataFrame:
    """``perturbation``, ``severity``, ``n``, ``accuracy``, ``low``, ``high``, ``rejected_share``."""
    rows = []
    for kind, points in (metrics.get("robustness") or {}).items():
        for point in points:
            low, high = point["interval"] or (np.nan, np.nan)
            rows.append({"perturbation": kind, **{k: point[k] for k in ("severity", "n", "accuracy", "rejected_share")},
                         "low": low, "high": high})  # fmt: skip
    return pd.DataFrame(rows, columns=["perturbation", "severity", "n", "accuracy", "rejected_share", "low", "high"])


def operating_frame(metrics: dict[str, Any]) -> pd.DataFrame:
    """``threshold``, ``measure`` (sensitivity or specificity of tumour against none) and its ``value``."""
    columns = ["threshold", "sensitivity", "specificity"]
    frame = pd.DataFrame(metrics["tumour_vs_none"].get("curve") or {}, columns=columns).query("threshold <= 1")
    return frame.melt("threshold", columns[1:], var_name="measure", value_name="value")


SUBGROUP_MEASURES = {"accuracy": "accuracy", "tumour_roc_auc": "AUC, tumour against none"}


def subgroup_frame(metrics: dict[str, Any], measure: str = "accuracy", column: str | None = None) -> pd.DataFrame:
    """``title`` of the column, ``value`` and ``name`` (with n) in words, ``n``, ``n_groups``, the measure, its span."""
    rows = []
    for row in metrics.get("subgroups") or []:
        if row.get(measure) is None or column not in (None, row["column"]):
            continue
        low, high = row.get(f"{measure}_interval") or (np.nan, np.nan)
        value = value_title(row["column"], row["value"])
        rows.append({**{k: row[k] for k in ("title", "n", "n_groups", measure)}, "value": value,
                     "name": f"{value} (n = {row['n']:,})", "low": low, "high": high})  # fmt: skip
    return pd.DataFrame(rows, columns=["title", "n", "n_groups", measure, "value", "name", "low", "high"])


# --- matplotlib -----------------------------------------------------------------------------------------------------


def figures(metrics: dict[str, Any]) -> dict[str, Callable[..., Figure]]:
    """The figures that the numbers allow: name -> what draws it (``metrics``, ``title``)."""
    curves, binary = curve_frame(metrics), metrics["tumour_vs_none"].get("curve")
    allowed = {
        "confusion_matrix": (plot_confusion_matrix, metrics["n_typed"]),
        "roc": (plot_roc, len(curves)),
        "precision_recall": (plot_precision_recall, len(curves)),
        "operating_point": (plot_operating_point, binary),
        "reliability": (plot_reliability, metrics.get("calibration")),
        "subgroups": (plot_subgroups, len(subgroup_frame(metrics))),
        "robustness": (plot_robustness, metrics.get("robustness")),
        "gate_trade_off": (plot_trade_off, metrics.get("trade_off")),
    }
    return {name: plot for name, (plot, has) in allowed.items() if has}


def save_figures(metrics: dict[str, Any], directory: Path | str, *, title: str = "") -> list[Path]:
    """Write every figure that the numbers allow as PNG; returns the paths."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    paths = []
    for name, plot in figures(metrics).items():
        paths.append(Path(directory) / f"{name}.png")
        FigureCanvasAgg(plot(metrics, title=title)).print_figure(paths[-1], dpi=150)
    return paths


def _figure(width: float = 6.0, height: float = 5.0, title: str = "", rows: int = 1, columns: int = 1, **options):
    from matplotlib.figure import Figure  # not pyplot: nothing global, safe in threads

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    if title:
        figure.suptitle(title, fontsize=9, color="#555555")
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot_confusion_matrix(metrics: dict[str, Any], *, title: str = "") -> Figure:
    """Counts, shaded by the share of the true class."""
    frame = confusion_frame(metrics)
    names = list(dict.fromkeys(frame["true"]))
    share = frame["share"].to_numpy().reshape(len(names), -1)
    counts = frame["n"].to_numpy().reshape(share.shape)
    figure, axes = _figure(6.4, 5.2, title)
    ax = axes[0, 0]
    shown = ax.imshow(np.nan_to_num(share), cmap="Blues", vmin=0, vmax=1)
    for (i, j), value in np.ndenumerate(share):
        text = f"{counts[i, j]}\n{value:.1%}" if np.isfinite(value) else "–"
        ax.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if value > 0.55 else "#222222")
    ax.set_xticks(range(len(names)), names, rotation=20, ha="right")
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    figure.colorbar(shown, ax=ax, shrink=0.8, label="share of the true class")
    return figure


def plot_roc(metrics: dict[str, Any], *, title: str = "") -> Figure:
    """One curve a class against the rest, and tumour against none."""
    figure, axes = _figure(5.6, 5.4, title)
    ax = axes[0, 0]
    ax.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1, linestyle=":")
    for (name, legend), part in curve_frame(metrics).groupby(["curve", "legend"], sort=False):
        ax.plot(part["one_minus_specificity"], part["sensitivity"], linestyle=_style(name),
                color=_CURVE_COLOURS[name], label=legend)  # fmt: skip
    _unit_axes(ax, "1 - specificity", "sensitivity")
    return figure


def plot_precision_recall(metrics: dict[str, Any], *, title: str = "") -> Figure:
    """Precision against recall, one curve a class against the rest, and tumour against none."""
    figure, axes = _figure(5.6, 5.4, title)
    ax = axes[0, 0]
    frame = curve_frame(metrics).query("curve != 'macro'")
    for (name, legend), part in frame.groupby(["curve", "legend"], sort=False):
        ax.plot(part["sensitivity"], part["precision"], linestyle=_style(name), color=_CURVE_COLOURS[name],
                label=legend.split(" (")[0])  # fmt: skip
    _unit_axes(ax, "recall", "precision")
    return figure


def _style(curve: str):
    return (0, _DASHES[curve]) if curve in _DASHES else "-"


def _unit_axes(ax, x: str, y: str) -> None:
    ax.set(xlabel=x, ylabel=y, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=8, loc="lower right" if y == "sensitivity" else "lower left")


def plot_reliability(metrics: dict[str, Any], *, title: str = "") -> Figure:
    """Top probability against how often it was right, with intervals over groups."""
    figure, axes = _figure(5.6, 5.4, title)
    ax = axes[0, 0]
    ax.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1, linestyle=":")
    for colour, (when, part) in zip(("#999999", "#0072B2"), reliability_frame(metrics).groupby("when", sort=False),
                                    strict=False):  # fmt: skip
        errors = np.abs(part[["low", "high"]].to_numpy().T - part["accuracy"].to_numpy())
        ax.errorbar(part["mean_probability"], part["accuracy"], errors, fmt="o-", markersize=3, linewidth=1,
                    color=colour, label=when)  # fmt: skip
    _unit_axes(ax, "mean top probability of the bin", "share that was right")
    ax.set_title(f"ECE {metrics['calibration']['ece']:.3f}", fontsize=9)
    return figure


def plot_operating_point(metrics: dict[str, Any], *, title: str = "") -> Figure:
    """Sensitivity and specificity of tumour against none over the threshold; the one fixed on validation marked."""
    figure, axes = _figure(6.4, 4.6, title)
    ax = axes[0, 0]
    for measure, part in operating_frame(metrics).groupby("measure", sort=False):
        ax.plot(part["threshold"], part["value"], color=_MEASURES[measure], label=measure)
    fixed = metrics["tumour_vs_none"]["threshold"]
    if fixed is not None:
        ax.axvline(fixed, color="#888888", linewidth=1, linestyle=":", label=f"fixed on validation ({fixed:.3f})")
    ax.set(xlabel="threshold on 1 - p(no tumour)", ylabel="share", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    ax.legend(frameon=False, fontsize=8, loc="lower center")
    return figure


def plot_subgroups(metrics: dict[str, Any], *, title: str = "") -> Figure:
    """Accuracy in every subgroup: a dot with its interval a value, one panel a column of the table."""
    parts = list(subgroup_frame(metrics).groupby("title", sort=False))
    heights = [len(part) + 1.0 for _, part in parts]
    figure, axes = _figure(7, 0.6 + 0.3 * sum(heights), title, rows=len(parts), sharex=True,
                           height_ratios=heights)  # fmt: skip
    for ax, (column, part) in zip(axes[:, 0], parts, strict=True):
        spans = np.abs(part[["low", "high"]].to_numpy().T - part["accuracy"].to_numpy())
        ax.errorbar(part["accuracy"], range(len(part)), xerr=spans, fmt="o", markersize=4, color="#0072B2")
        ax.set_yticks(range(len(part)), part["name"])
        ax.set_ylim(len(part) - 0.5, -0.5)
        ax.set_xlim(0, 1.01)
        ax.set_title(str(column).capitalize(), fontsize=9, loc="left")
    axes[-1, 0].set_xlabel("accuracy")
    return figure


def plot_robustness(metrics: dict[str, Any], *, title: str = "") -> Figure:
    """Accuracy under each perturbation as it grows."""
    frame = robustness_frame(metrics)
    kinds = list(dict.fromkeys(frame["perturbation"]))
    columns = min(4, len(kinds))
    figure, axes = _figure(11, 5.2, title, rows=-(-len(kinds) // columns), columns=columns, sharey=True)
    for ax, kind in zip(axes.flat, kinds, strict=False):
        part = frame[frame["perturbation"] == kind].sort_values("severity")
        ax.plot(part["severity"], part["accuracy"], "o-", markersize=3, color="#0072B2")
        ax.fill_between(part["severity"], part["low"], part["high"], alpha=0.15, color="#0072B2", linewidth=0)
        ax.set_title(kind, fontsize=9)
        ax.set_ylim(0, 1.02)
    for ax in list(axes.flat)[len(kinds) :]:
        ax.set_visible(False)
    axes[0, 0].set_ylabel(f"accuracy of a sample, n = {frame['n'].max():,}")
    return figure


def plot_trade_off(metrics: dict[str, Any], *, title: str = "") -> Figure:
    """What each gate threshold rejects of other pictures, against the brain MRI it turns away: near none, and whole."""
    frame = pd.DataFrame(metrics["trade_off"]).sort_values("threshold")
    at = frame.loc[np.isclose(frame["threshold"], 1.0), "wrongly_rejected"]
    figure, axes = _figure(10, 5, title, columns=2, sharey=True)
    for ax, limit in zip(axes[0], (TRADE_OFF_NEAR, 1.0), strict=True):
        for colour, (kind, part) in zip(_OTHERS, frame.groupby("kind", sort=False), strict=False):
            ax.plot(part["wrongly_rejected"], part["rejected"], color=colour, label=value_title("kind", str(kind)))
        if len(at):
            ax.axvline(float(at.iloc[0]), color="#888888", linewidth=1, linestyle=":", label="threshold in use")
        ax.set(xlabel="brain MRI wrongly rejected", ylim=(-0.01, 1.01), xlim=(-0.01 * limit, 1.01 * limit))
    axes[0, 0].set_ylabel("rejected")
    axes[0, 0].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


# --- Altair ---------------------------------------------------------------------------------------------------------


def chart_confusion_matrix(metrics: dict[str, Any], *, normalised: bool = False) -> altair.Chart:
    """The confusion matrix with counts, or with shares of the true class."""
    import altair as alt

    frame = confusion_frame(metrics)
    order = list(dict.fromkeys(frame["true"]))
    frame["text"] = [
        "–" if np.isnan(s) else f"{s:.1%}" if normalised else f"{n:,}"
        for n, s in zip(frame["n"], frame["share"], strict=True)
    ]
    labels: dict[str, Any] = {
        "labelOverlap": False,
        "labelAngle": 0,
        "labelFontSize": 10,
        "labelExpr": "split(datum.label, ' ')",
    }  # one word a line
    base = alt.Chart(frame).encode(
        x=alt.X("predicted:N", sort=order, title="predicted", axis=alt.Axis(orient="top", **labels)),
        y=alt.Y("true:N", sort=order, title="true", axis=alt.Axis(**labels)),
        tooltip=["true", "predicted", alt.Tooltip("n", format=","), alt.Tooltip("share", format=".1%")],
    )
    cells = base.mark_rect(cornerRadius=3).encode(
        color=alt.Color("share:Q", scale=alt.Scale(scheme="blues", domain=[0, 1]), legend=None)
    )
    # A class without images has no shade: its dash must be seen on a light and on a dark page.
    ink = alt.when("!isValid(datum.share)").then(alt.value("#8a8f98")).when("datum.share > 0.55")
    text = base.mark_text(fontSize=14).encode(
        text="text", color=ink.then(alt.value("white")).otherwise(alt.value("#1f2937"))
    )
    return (cells + text).properties(height=340)


def _curve_encodings(frame: pd.DataFrame) -> dict[str, Any]:
    """Colour and dashes of the curves, with one legend for both."""
    import altair as alt

    pairs = frame[["curve", "legend"]].drop_duplicates()
    names = list(pairs["legend"])
    # A stroke as long as two dashes, or the legend shows none.
    legend = alt.Legend(title=None, orient="bottom", columns=1, labelLimit=260, symbolType="stroke", symbolSize=400)
    dashes = [_DASHES.get(c, [1, 0]) for c in pairs["curve"]]
    colours = [_CURVE_COLOURS[c] for c in pairs["curve"]]
    return {
        "color": alt.Color("legend:N", scale=alt.Scale(domain=names, range=colours), legend=legend),
        "strokeDash": alt.StrokeDash("legend:N", scale=alt.Scale(domain=names, range=dashes), legend=legend),
    }


def _diagonal(x: str, y: str):
    """The line of chance; its axes carry the titles of what is drawn on it, or Vega would show both."""
    import altair as alt

    line = alt.Chart(pd.DataFrame({"x": [0, 1], "y": [0, 1]})).mark_line(
        strokeDash=[2, 4], color="#999999", strokeWidth=1
    )
    return line.encode(x=alt.X("x:Q", title=x), y=alt.Y("y:Q", title=y))


def chart_roc(metrics: dict[str, Any]) -> altair.Chart:
    """ROC curves; hover shows the operating point."""
    import altair as alt

    frame = curve_frame(metrics)
    lines = (
        alt.Chart(frame)
        .mark_line(interpolate="linear")
        .encode(
            x=alt.X("one_minus_specificity:Q", title="1 - specificity", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("sensitivity:Q", title="sensitivity", scale=alt.Scale(domain=[0, 1])),
            **_curve_encodings(frame),
            order="step:Q",
            detail="curve:N",
            tooltip=["legend", *(alt.Tooltip(f, format=".3f") for f in ("threshold", "sensitivity", "specificity"))],
        )
    )
    return (_diagonal("1 - specificity", "sensitivity") + lines).properties(height=440)


def chart_precision_recall(metrics: dict[str, Any]) -> altair.Chart:
    """Precision against recall."""
    import altair as alt

    frame = curve_frame(metrics).query("curve != 'macro'")
    frame["legend"] = frame["legend"].str.replace(r" \(AUC.*", "", regex=True)
    return (
        alt.Chart(frame)
        .mark_line()
        .encode(
            x=alt.X("sensitivity:Q", title="recall", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("precision:Q", scale=alt.Scale(domain=[0, 1])),
            **_curve_encodings(frame),
            order="step:Q",
            detail="curve:N",
            tooltip=["legend", *(alt.Tooltip(f, format=".3f") for f in ("threshold", "sensitivity", "precision"))],
        )
        .properties(height=440)
    )


def chart_reliability(metrics: dict[str, Any]) -> altair.Chart:
    """Reliability diagram before and after temperature."""
    import altair as alt

    frame = reliability_frame(metrics)
    colour = alt.Color(
        "when:N",
        scale=alt.Scale(domain=["before temperature", "as shown to readers"], range=["#999999", "#0072B2"]),
        legend=alt.Legend(title=None, orient="bottom"),
    )
    x = alt.X("mean_probability:Q", title="mean top probability of the bin", scale=alt.Scale(domain=[0, 1]))
    base = alt.Chart(frame).encode(x=x, color=colour)
    bars = base.mark_rule(opacity=0.6).encode(
        y=alt.Y("low:Q", title="share that was right", scale=alt.Scale(domain=[0, 1])), y2="high:Q"
    )
    points = base.mark_line(point=True, strokeWidth=1.5).encode(
        y=alt.Y("accuracy:Q", title="share that was right"),
        tooltip=["when", "n", *(alt.Tooltip(f, format=".3f") for f in ("mean_probability", "accuracy", "low", "high"))],
    )
    axes = _diagonal("mean top probability of the bin", "share that was right")
    return (axes + bars + points).properties(height=440)


def chart_operating_point(metrics: dict[str, Any], threshold: float) -> altair.Chart:
    """Sensitivity and specificity of tumour against none over the threshold, with the chosen one marked."""
    import altair as alt

    lines = (
        alt.Chart(operating_frame(metrics))
        .mark_line()
        .encode(
            x=alt.X("threshold:Q", title="threshold on 1 - p(no tumour)", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("value:Q", title="share", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color(
                "measure:N",
                scale=alt.Scale(domain=list(_MEASURES), range=list(_MEASURES.values())),
                legend=alt.Legend(title=None, orient="bottom"),
            ),
            tooltip=["measure", alt.Tooltip("threshold", format=".3f"), alt.Tooltip("value", format=".3f")],
        )
    )
    mark = alt.Chart(pd.DataFrame({"threshold": [threshold]})).mark_rule(strokeDash=[4, 3], color="#888888")
    return (lines + mark.encode(x="threshold:Q")).properties(height=340)


def chart_robustness(metrics: dict[str, Any]) -> dict[str, altair.Chart]:
    """One small chart a perturbation, for the page to lay out: accuracy as it grows."""
    import altair as alt

    charts = {}
    for name, part in robustness_frame(metrics).groupby("perturbation", sort=False):
        base = alt.Chart(part).encode(x=alt.X("severity:Q", title=f"{name} · n = {part['n'].max():,}"))
        y = alt.Scale(domain=[0, 1])
        band = base.mark_area(opacity=0.15, color="#0072B2").encode(
            y=alt.Y("low:Q", title="accuracy", scale=y), y2=alt.Y2("high:Q", title=None)
        )
        line = base.mark_line(point=True, color="#0072B2").encode(
            y=alt.Y("accuracy:Q", title="accuracy", scale=y),
            tooltip=[
                "severity",
                "n",
                *(alt.Tooltip(f, format=".3f") for f in ("accuracy", "low", "high", "rejected_share")),
            ],
        )
        charts[str(name)] = (band + line).properties(height=190)
    return charts


def chart_trade_off(metrics: dict[str, Any], limit: float = 1.0) -> altair.Chart:
    """Rejected pictures of each kind against brain MRI wrongly rejected, up to a share of the latter."""
    import altair as alt

    shown = pd.DataFrame(metrics["trade_off"])
    shown["kind"] = [value_title("kind", kind) for kind in shown["kind"]]
    lines = (
        alt.Chart(shown)
        .mark_line(clip=True)
        .encode(
            x=alt.X(
                "wrongly_rejected:Q",
                title="brain MRI wrongly rejected",
                axis=alt.Axis(format="%"),
                scale=alt.Scale(domain=[0, limit]),
            ),
            y=alt.Y("rejected:Q", title="rejected", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
            color=alt.Color(
                "kind:N", scale=alt.Scale(range=list(_OTHERS)), legend=alt.Legend(title=None, orient="bottom")
            ),
            order="threshold:Q",
            tooltip=["kind", *(alt.Tooltip(f, format=".3f") for f in ("threshold", "wrongly_rejected", "rejected"))],
        )
    )
    at = shown[np.isclose(shown["threshold"], 1.0)].head(1)
    mark = alt.Chart(at).mark_rule(strokeDash=[4, 3], color="#888888", clip=True).encode(x="wrongly_rejected:Q")
    return (lines + mark).properties(height=360)


def chart_subgroups(metrics: dict[str, Any], column: str, measure: str = "accuracy") -> altair.Chart:
    """A dot with its interval per value of one subgroup column."""
    import altair as alt

    frame = subgroup_frame(metrics, measure, column)
    names = alt.Axis(labelLimit=220, labelOverlap=False)
    base = alt.Chart(frame).encode(y=alt.Y("name:N", title=None, sort=None, axis=names))
    rule = base.mark_rule(color="#0072B2").encode(
        x=alt.X("low:Q", title=SUBGROUP_MEASURES[measure], scale=alt.Scale(domain=[0, 1])), x2="high:Q"
    )
    dots = base.mark_point(filled=True, size=70, color="#0072B2").encode(
        x=f"{measure}:Q",
        tooltip=["value", "n", "n_groups", *(alt.Tooltip(f, format=".3f") for f in (measure, "low", "high"))],
    )
    return (rule + dots).properties(height=34 * len(frame) + 80)
