"""The one image component: slices side by side with maps over them, drawn and steered in the browser.

Opacity, threshold, colour map, contour, window/level, zoom, pan, probe and the slice of a stack all move without a
script run: the arrays go to the browser once, as bytes.

>>> import numpy as np
>>> panels = [Panel(np.zeros((64, 48), np.uint8), "Slice", spacing_mm=(0.9, 0.9), orientation=("R", "L", "A", "P"))]
>>> canvas(panels, key="viewer")  # doctest: +SKIP
CanvasState(slice_index=0)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from PIL import Image

from brainmri.errors import BrainMRIError
from brainmri.explain.colour import COLOUR_MAPS, DEFAULT_COLOUR_MAP, colour_table

_HERE = Path(__file__).parent
_IMAGE_TYPES = {"uint8": "|u1", "uint16": "<u2", "int16": "<i2", "float32": "<f4"}
STYLES = ("fill", "contour")
MOST_PIXELS = 2000
"""Along a side, of what is sent: more than a screen shows, and a page breaks over a message of 200 MB."""


class CanvasError(BrainMRIError):
    """Arrays or settings that the canvas cannot draw; a mistake of the calling page."""


@dataclass(frozen=True)
class Panel:
    """One picture on the canvas: a slice, or a stack of slices to scroll through.

    Attributes
    ----------
    image : ndarray of shape (height, width) or (n_slices, height, width); uint8, uint16, int16 or float32
        Intensities in any unit; the window maps them to grey. Panels that share one array send it once.
    title, caption : str
        Above and below the picture; plain text.
    saliency : ndarray of ``image``'s shape, float in [0, 1], optional
        Drawn through the colour map; 0 is always transparent. Sent as 8 bits: the probe reads in steps of 1/255.
    mask : bool ndarray of ``image``'s shape, optional
        Drawn as a white outline (an expert's contour, say).
    brain : bool ndarray of ``image``'s shape, optional
        Where "Brain only" keeps the map.
    spacing_mm : (row, column), optional
        Distance between pixel centres, millimetres: gives a scale bar, true aspect and a probe in mm.
    frame : (top, left, height, width), optional
        Drawn as a thin rectangle, in pixels of the image, past which it may reach (the network's crop, say).
    peak : (row, column), optional
        Where the map of one slice peaks, in pixels of the image; default: its first maximum as sent, in 8 bits. "Brain
        only" marks the maximum of what it leaves.
    orientation : (left, right, top, bottom), optional
        Letters L/R/A/P/S/I at the picture's edges.
    badge : str
        A warning drawn into the picture ("Rejected: not a brain MRI").
    units : str
        Of the colour bar.
    slice_labels : sequence of str, optional
        One a slice of a stack, shown beside its number.
    """

    image: np.ndarray
    title: str = ""
    saliency: np.ndarray | None = None
    mask: np.ndarray | None = None
    brain: np.ndarray | None = None
    frame: tuple[int, int, int, int] | None = None
    peak: tuple[int, int] | None = None
    spacing_mm: tuple[float, float] | None = None
    orientation: tuple[str, str, str, str] | None = None
    caption: str = ""
    badge: str = ""
    units: str = "share of the map's maximum"
    slice_labels: Sequence[str] | None = None


@dataclass(frozen=True)
class CanvasState:
    """What the reader did on the canvas; ``slice_index`` counts from 0 and is kept up to date with ``report_slice``."""

    slice_index: int = 0


def canvas(
    panels: Sequence[Panel],
    *,
    key: str,
    identity: str | None = None,
    window: tuple[float, float] | None = None,
    opacity: float = 0.5,
    threshold: float = 0.2,
    colour_map: str = DEFAULT_COLOUR_MAP,
    style: str = "fill",
    slice_index: int = 0,
    report_slice: bool = False,
    max_height: int = 560,
) -> CanvasState:
    """Draw panels side by side with linked zoom, pan, probe and slice.

    Parameters
    ----------
    panels : sequence of Panel
        At least one; sizes may differ, zoom and probe are linked by relative position.
    key : str
        Unique on the page; the reader's settings are remembered under it for the browser tab.
    identity : str, optional
        Of what is pictured; default: the key. Zoom, pan, window and slice are forgotten when it changes under a key;
        how maps are drawn is not.
    window : (centre, width), optional
        Starting window in the image's units; default: 0-255 for uint8, else the 1st to 99th percentile.
    opacity, threshold : float in [0, 1]
        Starting values. Below the threshold the map is not drawn.
    colour_map : str
        One of ``brainmri.explain.colour.COLOUR_MAPS``.
    style : str
        ``"fill"`` or ``"contour"``.
    slice_index : int
        First slice shown of a stack.
    report_slice : bool
        Run the script again when the reader lets go of the slice slider, and return the slice; costs a run a change.
    max_height : int
        Of one picture, CSS pixels.

    Returns
    -------
    CanvasState

    Raises
    ------
    CanvasError
        No panel, shapes that do not fit, an image type that cannot be drawn, or an unknown style or colour map.
    """
    if style not in STYLES or colour_map not in COLOUR_MAPS:
        raise CanvasError(f"style {style!r}, colour_map {colour_map!r}: expected {STYLES} and {COLOUR_MAPS}")
    settings = {
        "opacity": opacity,
        "threshold": threshold,
        "colour_map": colour_map,
        "style": style,
        "slice": slice_index,
        "window": window,
    }
    data = encode(
        panels, key=key, identity=identity or key, settings=settings, report_slice=report_slice, max_height=max_height
    )
    result = _component()(key=key, data=data, default={"slice": slice_index}, on_slice_change=lambda: None)
    return CanvasState(int(result.slice or 0))


def encode(panels: Sequence[Panel], **header: Any) -> bytes:
    """Pack panels for the browser, shrunk to `MOST_PIXELS` a side; rows and columns read there are the image's own.

    Returns
    -------
    bytes
        Length of the header (uint32, little endian), the header (JSON, UTF-8), then the arrays, each aligned to 8
        bytes, at the offsets that the header gives.
    """
    if not panels:
        raise CanvasError("canvas: at least one panel is needed")
    blob = bytearray()
    offsets: dict[tuple[int, str], int] = {}

    def put(kind: str, source: Any, make: Callable[[Any], np.ndarray]) -> int | None:
        if source is None:
            return None
        slot = (id(source), kind)
        if slot not in offsets:
            blob.extend(b"\0" * (-len(blob) % 8))
            offsets[slot] = len(blob)
            blob.extend(np.ascontiguousarray(make(source)).tobytes())
        return offsets[slot]

    described = []
    for panel in panels:
        image = np.asarray(panel.image)
        if image.dtype.name not in _IMAGE_TYPES or image.ndim not in (2, 3) or not image.size:
            raise CanvasError(
                f"panel {panel.title!r}: image is {image.dtype} {image.shape}; expected (height, width) or "
                f"(n_slices, height, width) of {', '.join(_IMAGE_TYPES)}"
            )
        for name in ("saliency", "mask", "brain"):
            layer = getattr(panel, name)
            if layer is not None and np.shape(layer) != image.shape:
                raise CanvasError(f"panel {panel.title!r}: {name} is {np.shape(layer)}, its image {image.shape}")
        if image.dtype == np.uint8:
            low, high, window = 0.0, 255.0, (127.5, 255.0)
        else:
            low, high = float(image.min()), float(image.max())
            first, last = (float(v) for v in np.percentile(image, (1, 99)))
            window = ((first + last) / 2, max(last - first, 1e-6))
        kind = np.dtype(_IMAGE_TYPES[image.dtype.name])
        described.append(
            {
                "title": panel.title,
                "caption": panel.caption,
                "badge": panel.badge,
                "units": panel.units,
                "shape": [1 if image.ndim == 2 else len(image), *_sent(image.shape[-2:])],
                "size": list(image.shape[-2:]),
                "dtype": image.dtype.name,
                "range": [low, high],
                "window": window,
                "image": put("image", panel.image, partial(_shrunk, kind=kind)),
                "saliency": put("saliency", panel.saliency, lambda a: quantise(_shrunk(a, np.float32))),
                "mask": put("mask", panel.mask, partial(_shrunk, kind=np.uint8)),
                "brain": put("brain", panel.brain, partial(_shrunk, kind=np.uint8)),
                "frame": panel.frame,
                "peak": panel.peak,
                "spacing_mm": panel.spacing_mm,
                "orientation": panel.orientation,
                "slice_labels": list(panel.slice_labels) if panel.slice_labels is not None else None,
            }
        )
    tables = {name: put("table", name, colour_table) for name in COLOUR_MAPS}
    text = json.dumps({"panels": described, "colour_maps": tables, **header}, allow_nan=False).encode()
    text += b" " * (-(len(text) + 4) % 8)
    return len(text).to_bytes(4, "little") + text + bytes(blob)


def _sent(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns that an image's arrays are sent with."""
    height, width = shape
    factor = max(1.0, height / MOST_PIXELS, width / MOST_PIXELS)
    return max(1, round(height / factor)), max(1, round(width / factor))


def _shrunk(array: Any, kind: np.dtype | type) -> np.ndarray:
    """An image, stack or layer as it is sent: each pixel the mean of what it covers."""
    array = np.asarray(array)
    height, width = array.shape[-2:]
    rows, columns = _sent((height, width))
    if (rows, columns) == (height, width):
        return array.astype(kind, copy=False)
    slices = array.reshape(-1, height, width)
    result = np.empty((len(slices), rows, columns), np.float32)
    for one, small in zip(slices, result, strict=True):
        picture = Image.fromarray(one.astype(np.float32))
        small[:] = np.asarray(picture.resize((columns, rows), Image.Resampling.BOX))
    rounded = result if np.issubdtype(kind, np.floating) else np.rint(result)
    return rounded.astype(kind).reshape(*array.shape[:-2], rows, columns)


def quantise(saliency: np.ndarray) -> np.ndarray:
    """Float [0, 1] -> uint8; what is above 0 stays above 0, so that it can still be seen and probed."""
    clipped = np.clip(np.nan_to_num(saliency), 0, 1)
    return np.where(clipped > 0, np.maximum(np.rint(clipped * 255), 1), 0).astype(np.uint8)


@cache
def _component():
    # The files hold no user content: text and arrays arrive as data and are set as text, never as HTML.
    return st.components.v2.component(
        "brainmri_canvas",
        html='<div class="canvas-root"></div>',
        css=(_HERE / "canvas.css").read_text("utf-8"),
        js=(_HERE / "canvas.js").read_text("utf-8"),
    )
