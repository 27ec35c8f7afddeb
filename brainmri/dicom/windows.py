"""Window level: modality values -> grey display intensities (DICOM PS3.3 C.11.2)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Window:
    """One way to show a frame's values.

    Attributes
    ----------
    center, width : float
        In modality units (after rescale); width > 0.
    function : str
        ``"LINEAR"``, ``"LINEAR_EXACT"`` or ``"SIGMOID"`` (PS3.3 C.11.2.1.2 and C.11.2.1.3), or ``"LUT"``.
    name : str
        What the page calls it.
    source : str
        ``"file"``, ``"percentile"`` or ``"reader"``.
    lut, first_mapped : ndarray of uint8 or None, int
        VOI lookup table, already scaled to 0-255, and the value its first entry belongs to.
    """

    center: float
    width: float
    function: str = "LINEAR"
    name: str = ""
    source: str = "file"
    lut: np.ndarray | None = field(default=None, repr=False, compare=False)
    first_mapped: int = 0

    def apply(self, values: np.ndarray, *, inverted: bool = False) -> np.ndarray:
        """Show values through this window.

        Parameters
        ----------
        values : ndarray of shape (height, width), integer or float
            Modality values. Not modified.
        inverted : bool
            True for MONOCHROME1: the lowest value is white.

        Returns
        -------
        ndarray of shape (height, width), uint8
        """
        if self.lut is not None:
            index = np.clip(np.rint(values).astype(np.int64) - self.first_mapped, 0, len(self.lut) - 1)
            grey = self.lut[index]
        else:
            x = values.astype(np.float32)
            if self.function == "SIGMOID":
                exponent = np.clip(-4 * (x - self.center) / self.width, -60, 60)
                level = 1 / (1 + np.exp(exponent))
            elif self.function == "LINEAR_EXACT" or self.width <= 1:
                level = (x - self.center) / self.width + 0.5
            else:
                level = (x - (self.center - 0.5)) / (self.width - 1) + 0.5
            grey = np.rint(np.clip(level, 0, 1) * 255).astype(np.uint8)
        return 255 - grey if inverted else grey

    def shows(self, values: np.ndarray) -> bool:
        """Whether anything can be told apart; of values that are all the same nothing can, through any window."""
        return len(np.unique(self.apply(values))) >= 3 or np.ptp(values) == 0


def percentile_window(values: np.ndarray, name: str = "0.5-99.5 percentile") -> Window:
    """Make a window from the values themselves, for files that carry none."""
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    return Window((low + high) / 2, max(high - low, 1e-6), "LINEAR_EXACT", name, "percentile")


def default_window(values: np.ndarray, windows: tuple[Window, ...], notes: list[str]) -> Window:
    """Choose the file's first window that shows anything, else a percentile window; appends what to tell the reader."""
    for window in windows:
        if window.shows(values):
            return window
        notes.append(f"the file's window {window.center:g}/{window.width:g} shows nothing and is not used")
    chosen = percentile_window(values)
    if not windows:
        notes.append(f"no window in the file: {chosen.name} shown")
    else:
        notes.append(f"{chosen.name} shown instead")
    return chosen
