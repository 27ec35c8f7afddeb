"""Pictures of a data set that may or may not be on this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import streamlit as st
from PIL import Image

from brainmri.data import read_pixels
from brainmri.errors import BrainMRIError


def find_picture(root: Path, path: str) -> Path | None:
    """The file of a path in a manifest; None where it is missing or leads out of the data set's folder."""
    file = root / path
    return file if file.is_file() and file.resolve().is_relative_to(root.resolve()) else None


@st.cache_data(show_spinner=False, max_entries=400)
def thumbnail(file: str, side: int = 256) -> np.ndarray:
    """A square grey copy of an image file, uint8 (side, side); black where it cannot be read."""
    square = Image.new("L", (side, side))
    try:
        image = Image.fromarray(read_pixels(file))
    except (BrainMRIError, OSError):
        return np.asarray(square)
    image.thumbnail((side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square)
