"""Explanations on paper: one map with its colour bar, or a whole page with what each map means."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from brainmri.errors import ExplanationError
from brainmri.explain import METHODS
from brainmri.explain.base import PIXELS
from brainmri.explain.colour import DEFAULT_COLOUR_MAP, overlay
from brainmri.model import FEATURE_LAYER
from brainmri.types import CLASS_TITLES, Analysis, Explanation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ON_A_PAGE = 4
_LONGEST_NAME = 70
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


def layer_note(explanation: Explanation) -> str:
    """After a comma the layer, where it is not the one that maps are made of by default; else nothing."""
    return "" if explanation.layer_name in (FEATURE_LAYER, PIXELS) else f", {explanation.layer_name}"


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
        figure.suptitle(textwrap.fill(warning, 70), fontsize=8, color="white", backgroundcolor="darkred")
    return figure


def explanation_page(
    analysis: Analysis,
    explanations: Sequence[Explanation],
    *,
    mask: np.ndarray | None = None,
    opacity: float = 0.5,
    threshold: float = 0.2,
    colour_map: str = DEFAULT_COLOUR_MAP,
    heading: Sequence[str] = (),
) -> Figure:
    """Lay a slice, maps of it, the answer and what each method means on one landscape A4 page.

    Parameters
    ----------
    explanations : sequence of Explanation
        One to `MOST_ON_A_PAGE`.
    mask, opacity, threshold, colour_map
        See `explanation_panel`.
    heading : sequence of str
        Title and lines below it, instead of the slice's name.

    Raises
    ------
    ExplanationError
        None or too many.
    """
    if not 1 <= len(explanations) <= MOST_ON_A_PAGE:
        raise ExplanationError(f"{len(explanations)} maps; one page holds 1 to {MOST_ON_A_PAGE}")
    width, height, margin, gap = 11.69, 8.27, 0.5, 0.34  # inches
    figure = _figure((width, height), layout=None)

    def write(x: float, y: float, words: str, **style: Any) -> None:
        """Text whose top left is x, y inches from the page's."""
        style = {"va": "top", "fontsize": 8.5, **style}
        figure.text(x / width, 1 - y / height, words, parse_math=False, **style)  # a file's name may hold two $

    headline, *more = heading or (_short(analysis.slice.name),)
    write(margin, 0.42, headline, fontsize=14, fontweight="bold")
    for number, sentence in enumerate((*more, answer(analysis))):
        write(margin, 0.74 + 0.25 * number, sentence, fontsize=11)
    top = 1.15 + 0.25 * len(more)
    if warning := rejection(analysis):
        write(margin, top, warning, fontsize=10, color="white", backgroundcolor="darkred")
        top += 0.4

    meanings = [
        (METHODS[name].title, textwrap.wrap(f"{METHODS[name].meaning} {METHODS[name].misleads}", 128))
        for name in dict.fromkeys(e.method for e in explanations)
    ]
    line = 0.155
    text_top = height - 1.0 - sum(line * len(words) + 0.07 for _, words in meanings)
    columns = len(explanations) + 1
    head, foot = 0.5, 0.6  # of each picture: its title, its colour bar
    row_mm, column_mm = analysis.slice.spacing_mm or (1.0, 1.0)
    aspect = analysis.slice.pixels.shape[0] * row_mm / (analysis.slice.pixels.shape[1] * column_mm)
    side = min((width - 2 * margin - (columns - 1) * gap) / columns, (text_top - top - head - foot) / aspect, 4.6)
    step = min((width - 2 * margin - side) / (columns - 1), side + 0.8)
    for i, explanation in enumerate([None, *explanations]):
        x, y = margin + i * step, top + head
        axes = figure.add_axes((x / width, 1 - (y + side * aspect) / height, side / width, side * aspect / height))
        _draw(axes, analysis, explanation, mask, opacity, threshold, colour_map)
        if explanation is not None:
            bar = figure.add_axes((x / width, 1 - (y + side * aspect + 0.2) / height, side / width, 0.1 / height))
            _colour_bar(figure, bar, METHODS[explanation.method].units, colour_map, inside=True)
    y = top + head + side * aspect + foot + 0.1
    for title, words in meanings:
        write(margin, y, title, fontweight="bold")
        write(margin + 1.6, y, "\n".join(words), linespacing=1.25)
        y += line * len(words) + 0.07
    outline = "The white line is the known outline. " if mask is not None and mask.any() else ""
    write(
        margin,
        height - 0.72,
        f"Maps are drawn from {threshold:.2f} up at {opacity:.0%} opacity. {outline}{NOTICE}\n"
        f"Model {analysis.model_id}, weights {analysis.weights_sha256[:12]}, engine {analysis.engine} "
        f"{analysis.precision}; image sha256 {analysis.slice.sha256[:12]}.",
        fontsize=7.5,
        color="0.3",
        linespacing=1.4,
    )
    return figure


def as_pixels(figure: Figure, *, dpi: int = 100) -> np.ndarray:
    """Draw a figure: uint8 (height, width, 3), RGB."""
    figure.set_dpi(dpi)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]


def as_bytes(figure: Figure, kind: str = "png", *, dpi: int = 150) -> bytes:
    """Encode a figure as ``png`` or ``pdf``; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=dpi, metadata={"CreationDate": None} if kind == "pdf" else {})
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


def _short(name: str) -> str:
    """On one line of the page; of a long name, beginning and end."""
    name = " ".join(name.split())
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 20]}…{name[-19:]}"


def _figure(size: tuple[float, float], layout: str | None = "constrained") -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout=layout)  # type: ignore[arg-type]
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
            f"{METHODS[explanation.method].title}{layer_note(explanation)}\n"
            f"for {CLASS_TITLES[explanation.target_class]}{where}",
            fontsize=9,
        )
    axes.autoscale(False)
    if mask is not None and mask.any():
        axes.contour(mask.astype(float), levels=[0.5], colors="black", linewidths=2.0)
        axes.contour(mask.astype(float), levels=[0.5], colors="white", linewidths=1.0)
    if analysis.slice.orientation:
        for letter, x, y in zip(
            analysis.slice.orientation, (0.03, 0.97, 0.5, 0.5), (0.5, 0.5, 0.96, 0.04), strict=True
        ):
            axes.text(x, y, letter, transform=axes.transAxes, color="white", ha="center", va="center", fontsize=8)
    if analysis.slice.spacing_mm:
        _scale_bar(axes, pixels.shape, column_mm)
    if analysis.decision == "rejected":
        axes.text(
            0.5, 0.02, "REJECTED: not a brain MRI", transform=axes.transAxes, color="white", ha="center", va="bottom",
            fontsize=7, fontweight="bold", backgroundcolor="darkred",
        )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])


def _scale_bar(axes: Axes, shape: tuple[int, int], column_mm: float) -> None:
    height, width = shape
    length = next((mm for mm in (100, 50, 20, 10, 5, 2) if mm / column_mm < width / 3), 1)
    left, bottom = 0.05 * width, 0.95 * height
    for colour, thick in (("black", 4.0), ("white", 2.0)):
        axes.plot([left, left + length / column_mm], [bottom, bottom], color=colour, linewidth=thick)
    axes.text(left, bottom - 0.02 * height, f"{length} mm", color="white", fontsize=7, va="bottom")


def _colour_bar(figure: Figure, axes: Axes, units: str, colour_map: str, *, inside: bool = False) -> None:
    """Below ``axes``, or ``inside`` axes of its own."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    place: dict[str, Any] = {"cax": axes} if inside else {"ax": axes, "fraction": 0.05, "pad": 0.02}
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), cmap=colour_map), orientation="horizontal", **place)
    bar.set_label(units, fontsize=7)
    bar.ax.tick_params(labelsize=7)
