"""Explanations on paper: one map with its colour bar, or a whole page with what each map means."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from brainmri.explain import METHODS
from brainmri.explain.colour import DEFAULT_COLOUR_MAP, overlay
from brainmri.types import CLASS_TITLES, Analysis, Explanation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOTICE = "For research and teaching only. A map shows where a score comes from; it is not the outline of a lesion."


def rejection(analysis: Analysis) -> str:
    """The sentence that a picture of a rejected slice must carry; empty for any other."""
    if analysis.decision != "rejected":
        return ""
    return (
        f"Rejected as not a brain MRI (score {analysis.ood_score:.3g}, limit {analysis.ood_threshold:.3g}): "
        "no class is claimed and the map explains a score that means nothing here."
    )


def answer(analysis: Analysis) -> str:
    """One line: the decision with the probabilities behind it."""
    shown = ", ".join(f"{CLASS_TITLES[name]} {p:.1%}" for name, p in analysis.probabilities.items())
    if analysis.decision == "rejected":
        return "Rejected: not a brain MRI"
    verdict = CLASS_TITLES[analysis.label] if analysis.label else "Undecided"
    return f"{verdict} ({shown})"


def explanation_panel(
    analysis: Analysis,
    explanation: Explanation,
    *,
    mask: np.ndarray | None = None,
    opacity: float = 0.5,
    threshold: float = 0.2,
    colour_map: str = DEFAULT_COLOUR_MAP,
) -> Figure:
    """Draw one map over its slice, with colour bar and, where it applies, the rejection.

    Parameters
    ----------
    mask : bool ndarray of the slice's shape, optional
        Drawn as a white outline.
    opacity, threshold, colour_map
        See `brainmri.explain.colour.overlay`.

    Returns
    -------
    matplotlib.figure.Figure
        Without pyplot: safe in any thread, nothing to close.
    """
    figure = _figure((5.2, 5.0))
    axes = figure.add_subplot()
    _draw(axes, analysis, explanation, mask, opacity, threshold, colour_map)
    _colour_bar(figure, axes, METHODS[explanation.method].units, colour_map)
    if warning := rejection(analysis):
        figure.supxlabel(textwrap.fill(warning, 70), fontsize=8, color="darkred")
    return figure


def explanation_page(
    analysis: Analysis,
    explanations: Sequence[Explanation],
    *,
    mask: np.ndarray | None = None,
    opacity: float = 0.5,
    threshold: float = 0.2,
    colour_map: str = DEFAULT_COLOUR_MAP,
) -> Figure:
    """Lay a slice, up to eight maps of it, the answer and what each method means on one landscape A4 page.

    See `explanation_panel` for the parameters.
    """
    explanations = list(explanations)[:8]
    columns = min(len(explanations) + 1, 5)
    rows = -(-(len(explanations) + 1) // columns)
    figure = _figure((11.69, 8.27))
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1.0] * rows + [0.75 if rows == 1 else 0.6])
    axes = [figure.add_subplot(grid[divmod(i, columns)]) for i in range(len(explanations) + 1)]
    _draw(axes[0], analysis, None, mask, opacity, threshold, colour_map)
    for ax, explanation in zip(axes[1:], explanations, strict=True):
        _draw(ax, analysis, explanation, mask, opacity, threshold, colour_map)
        _colour_bar(figure, ax, METHODS[explanation.method].units, colour_map)
    text = figure.add_subplot(grid[rows, :])
    text.axis("off")
    used = dict.fromkeys(e.method for e in explanations)
    lines = [
        line
        for name in used
        for line in textwrap.wrap(f"{METHODS[name].title}: {METHODS[name].meaning} {METHODS[name].misleads}", 190)
    ]
    lines += [
        "",
        f"Model {analysis.model_id}, weights {analysis.weights_sha256[:12]}, engine {analysis.engine} "
        f"{analysis.precision}; image sha256 {analysis.slice.sha256[:12]}.",
        f"Maps are drawn from {threshold:.2f} up at {opacity:.0%} opacity. {NOTICE}",
    ]
    text.text(0, 1, "\n".join(lines), va="top", fontsize=7.5, wrap=False)
    figure.suptitle(f"{analysis.slice.name}\n{answer(analysis)}", fontsize=12)
    if warning := rejection(analysis):
        figure.supxlabel(warning, fontsize=10, color="white", backgroundcolor="darkred")
    return figure


def as_bytes(figure: Figure, kind: str = "png", *, dpi: int = 150) -> bytes:
    """Encode a figure as ``png``, ``pdf`` or ``svg``; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    stamp = {"CreationDate": None} if kind == "pdf" else {"Date": None} if kind == "svg" else {}
    figure.savefig(buffer, format=kind, dpi=dpi, metadata=stamp)
    return buffer.getvalue()


def as_npz(analysis: Analysis, explanations: Sequence[Explanation]) -> bytes:
    """Pack maps for a script.

    Returns
    -------
    bytes
        An ``.npz`` with ``saliency_map`` (n_maps, height, width) float32, ``method``, ``target_class``, ``layer_name``
        (n_maps,), ``peak`` (n_maps, 2) in original pixels, -1 where a map is all zero, each raw ``grid_<i>``, and
        ``decision``, ``label``, ``logits``, ``model_id``, ``weights_sha256``, ``image_sha256``. Of a single map the
        leading axis is left out.
    """
    arrays: dict[str, Any] = {
        "saliency_map": np.stack([e.saliency_map for e in explanations]),
        "method": np.array([e.method for e in explanations]),
        "target_class": np.array([e.target_class for e in explanations]),
        "layer_name": np.array([e.layer_name for e in explanations]),
        "peak": np.array([e.peak or (-1, -1) for e in explanations], np.int32),
    }
    if len(explanations) == 1:
        arrays = {name: value[0] for name, value in arrays.items()}
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        **arrays,  # type: ignore[arg-type]
        **{f"grid_{i}": e.grid for i, e in enumerate(explanations)},  # type: ignore[arg-type]
        decision=analysis.decision,
        label=analysis.label or "",
        logits=analysis.logits,
        model_id=analysis.model_id,
        weights_sha256=analysis.weights_sha256,
        image_sha256=analysis.slice.sha256,
    )
    return buffer.getvalue()


def _figure(size: tuple[float, float]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw(
    axes: Axes,
    analysis: Analysis,
    explanation: Explanation | None,
    mask: np.ndarray | None,
    opacity: float,
    threshold: float,
    colour_map: str,
) -> None:
    pixels = analysis.slice.pixels
    row_mm, column_mm = analysis.slice.spacing_mm or (1.0, 1.0)
    if explanation is None:
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, aspect=row_mm / column_mm)
        axes.set_title("Image", fontsize=9)
    else:
        drawn = overlay(pixels, explanation.saliency_map, opacity=opacity, threshold=threshold, colour_map=colour_map)
        axes.imshow(drawn, aspect=row_mm / column_mm)
        where = "" if explanation.peak else "\nno positive evidence"
        axes.set_title(
            f"{METHODS[explanation.method].title}\nfor {CLASS_TITLES[explanation.target_class]}{where}", fontsize=9
        )
    if mask is not None and mask.any():
        axes.contour(mask.astype(float), levels=[0.5], colors="black", linewidths=2.0)
        axes.contour(mask.astype(float), levels=[0.5], colors="white", linewidths=1.0)
    if analysis.slice.orientation:
        for letter, x, y in zip(
            analysis.slice.orientation, (0.03, 0.97, 0.5, 0.5), (0.5, 0.5, 0.96, 0.04), strict=True
        ):
            axes.text(x, y, letter, transform=axes.transAxes, color="white", ha="center", va="center", fontsize=8)
    if analysis.decision == "rejected":
        axes.text(
            0.5, 0.02, "REJECTED: not a brain MRI", transform=axes.transAxes, color="white", ha="center", va="bottom",
            fontsize=7, fontweight="bold", backgroundcolor="darkred",
        )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])


def _colour_bar(figure: Figure, axes: Axes, units: str, colour_map: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), cmap=colour_map), ax=axes, orientation="horizontal", fraction=0.05, pad=0.02
    )
    bar.set_label(units, fontsize=7)
    bar.ax.tick_params(labelsize=7)
