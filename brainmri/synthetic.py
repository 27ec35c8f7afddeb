"""Sample images that may be shown to anyone: real anatomy carried by packages, a head and a lesion painted on it.

No patient's image is involved. The axial and coronal brains are the MNI152 average T1 template that nilearn ships,
which has no skull, so scalp, skull and skull base are painted around it; the sagittal head is matplotlib's
``s1045.ima.gz``. Lesions follow the textbook look on contrast-enhanced T1 and their masks are known. Every sample says
in its name and notes that it is synthetic.

References
----------
.. [1] Fonov et al., "Unbiased nonlinear average age-appropriate brain templates", NeuroImage 47, 2009, S102.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from brainmri.errors import DataError
from brainmri.types import CLASS_NAMES, CLASS_TITLES, MRISlice

SCALE = 2
"""Drawn pixels per millimetre; the template has one."""

_MNI_T1 = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


@dataclass(frozen=True)
class Sample:
    """A synthetic slice with the truth about it.

    Attributes
    ----------
    label : str
        The class it was painted as.
    slice : MRISlice
        As if it had been uploaded; the name begins with ``synthetic``.
    mask : ndarray of shape (height, width), bool, or None
        The painted lesion without its oedema; None for ``notumor``.
    content : bytes
        The PNG file that ``slice`` was decoded from.
    title, description : str
        What a reader sees.
    """

    label: str
    slice: MRISlice
    mask: np.ndarray | None
    content: bytes
    title: str
    description: str


def samples() -> dict[str, Sample]:
    """Return one synthetic sample a class, in the order of ``CLASS_NAMES``; drawn once per process, the same always.

    Raises
    ------
    DataError
        The anatomy cannot be found: nilearn or matplotlib is not installed whole.
    """
    drawn = {label: sample(label) for label in CLASS_NAMES}
    _template_volume.cache_clear()  # 9 MB, and nothing else is cut from it
    return drawn


@cache
def sample(label: str) -> Sample:
    """Return the sample of one class; see `samples`."""
    painters = {"glioma": _glioma, "meningioma": _meningioma, "notumor": _notumor, "pituitary": _pituitary}
    if label not in painters:
        raise DataError(f"{label}: no such sample; there are {', '.join(painters)}")
    image, mask, description = painters[label](np.random.default_rng(20240 + CLASS_NAMES.index(label)))
    pixels = np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)
    pixels.setflags(write=False)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    content = buffer.getvalue()
    mri_slice = MRISlice(
        pixels,
        f"synthetic-{label}.png",
        hashlib.sha256(content).hexdigest(),
        "PNG",
        notes=("synthetic: painted on template anatomy, no patient's image",),
    )
    return Sample(label, mri_slice, mask, content, f"Synthetic: {CLASS_TITLES[label].lower()}", description)


# Lesions --------------------------------------------------------------------------------------------------------------


def _glioma(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, str]:
    brain = _template(axis=2, index=94)
    rows, columns = _grid(brain.shape)
    row, column = 205.0, 150.0
    angle = np.arctan2(rows - row, columns - column)
    radius = np.hypot((rows - row) / 1.15, columns - column)
    lobes = 34 + 5 * np.sin(2 * angle + 0.6) + 4 * np.sin(3 * angle + 2.1) + 2.5 * np.sin(5 * angle)
    lobes = lobes + 5 * _texture(brain.shape, 9, rng)
    brain = _push(brain, row, column, reach=80, strength=9)
    head = _post_contrast(brain)
    tissue = ndimage.gaussian_filter((brain > 0.3).astype(float), 2)
    oedema = _soft(lobes + 30 + 14 * _texture(brain.shape, 14, rng) - radius, 7) * tissue
    head = head * (1 - 0.42 * oedema)
    tumour = _soft(lobes - radius, 1.6)
    thickness = 8 + 3.5 * _texture(brain.shape, 10, rng)
    core = _soft(lobes - thickness - radius, 2)
    rim_signal = 0.74 + 0.10 * _texture(brain.shape, 4, rng)
    core_signal = 0.15 + 0.04 * _texture(brain.shape, 6, rng)
    head = head * (1 - tumour) + tumour * (rim_signal * (1 - core) + core_signal * core)
    image = _finish(_around_axial(head, brain, rng), rng)
    return image, _placed(tumour > 0.5, margin=26), "Axial, ring-enhancing with a dark core and oedema around it."


def _meningioma(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, str]:
    head = _sagittal_head()
    rows, columns = _grid(head.shape)
    row, column = 108.0, 226.0
    radius = np.hypot((rows - row) / 0.84, (columns - column) / 1.14) + 2.6 * _texture(head.shape, 22, rng)
    # Flattened where it meets the inner table, a straight line to a good approximation over so short a stretch.
    vault = (rows - 76) + 0.06 * (columns - column)
    inside = np.minimum(35 - radius, 1.6 * vault)
    tumour = _soft(inside, 2)
    signal = 0.76 + 0.04 * _texture(head.shape, 4, rng) - 0.06 * _soft(12 - radius, 8)
    cleft = np.exp(-(((inside + 2.5) / 2) ** 2)) * (vault > 12)
    head = head * (1 - 0.45 * cleft)
    head = head * (1 - tumour) + tumour * signal
    return _finish(head, rng), tumour > 0.5, "Sagittal, a bright and smooth mass that sits broadly on the dura."


def _notumor(rng: np.random.Generator) -> tuple[np.ndarray, None, str]:
    brain = _template(axis=2, index=86)
    return _finish(_around_axial(0.92 * brain**1.3, brain, rng, fat=0.78), rng), None, "Axial, nothing added."


def _pituitary(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, str]:
    brain = _template(axis=1, index=136)
    head, origin = _around_coronal(_post_contrast(brain), brain, rng)
    rows, columns = _grid(head.shape)
    row, column = origin[0] + 272.0, origin[1] + 197.0
    wobble = 2.5 * _texture(head.shape, 12, rng)
    lower = np.hypot((rows - row) / 0.95, (columns - column) / 1.1) + wobble
    upper = np.hypot((rows - row + 22) / 1.0, (columns - column - 1) / 0.85) + wobble
    tumour = np.maximum(_soft(26 - lower, 1.5), _soft(20 - upper, 1.5))
    # Adenomas take up less contrast than the dura or a meningioma.
    signal = 0.50 + 0.06 * _texture(head.shape, 4, rng) - 0.08 * _soft(7 - lower, 4)
    head = head * (1 - tumour) + tumour * signal
    return _finish(head, rng), tumour > 0.5, "Coronal, an enhancing mass that rises out of the sella."


# Heads ----------------------------------------------------------------------------------------------------------------


@cache
def _template_volume() -> np.ndarray:
    # nilearn itself takes seconds to import; its file is all that is needed.
    spec = importlib.util.find_spec("nilearn")
    path = Path(spec.origin).parent / _MNI_T1 if spec and spec.origin else None
    if path is None or not path.is_file():
        raise DataError("samples: nilearn's MNI152 template is not installed; run: pip install nilearn")
    # nibabel imports every DICOM decoder there is; NIfTI-1 says in its first 352 bytes where the voxels are.
    with gzip.open(path) as file:
        content = file.read()
    shape = np.frombuffer(content, "<i2", 3, offset=42)
    offset, slope = int(np.frombuffer(content, "<f4", 1, offset=108)[0]), np.frombuffer(content, "<f4", 2, offset=112)
    if np.frombuffer(content, "<i2", 1, offset=70)[0] != 2 or slope[0] not in (0, 1) or slope[1] != 0:
        raise DataError(
            f"samples: {path.name} does not hold unscaled 8-bit voxels; reinstall the nilearn that is pinned"
        )
    return np.frombuffer(content, np.uint8, int(np.prod(shape)), offset=offset).reshape(shape, order="F")


def _template(*, axis: int, index: int) -> np.ndarray:
    """One slice of the template in [0, 1], radiological way up, at ``SCALE``."""
    plane = np.rot90(np.take(_template_volume(), index, axis=axis)).astype(np.float64) / 255
    return np.clip(ndimage.zoom(plane, SCALE, order=3), 0, 1)


def _sagittal_head() -> np.ndarray:
    """matplotlib's sagittal head in [0, 1] at 512 x 512, its coil shading evened out."""
    spec = importlib.util.find_spec("matplotlib")  # its file is all that is needed
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    try:
        with gzip.open(folder / "mpl-data" / "sample_data" / "s1045.ima.gz") as file:
            raw = np.frombuffer(file.read(), np.uint16).reshape(256, 256).astype(np.float64)
    except (OSError, ValueError) as error:
        raise DataError(f"samples: matplotlib's sample data s1045.ima.gz cannot be read ({error})") from error
    head = ndimage.zoom(raw / raw.max(), SCALE, order=3)
    shading = ndimage.gaussian_filter(head, 40) / (ndimage.gaussian_filter((head > 0.06).astype(float), 40) + 0.15)
    return np.clip(0.34 * head / (0.12 + shading), 0, 1)


def _around_axial(head: np.ndarray, brain: np.ndarray, rng: np.random.Generator, *, fat: float = 0.72) -> np.ndarray:
    """Paint meninges, skull and scalp around an axial brain, layer by layer outwards from its smoothed outline."""
    head, brain = _placed(head, margin=26), _placed(brain, margin=26)
    return _layers(head, _outline(brain), rng, fat=fat)[0]


def _layers(
    head: np.ndarray, outline: np.ndarray, rng: np.random.Generator, *, fat: float
) -> tuple[np.ndarray, np.ndarray]:
    """Paint CSF, inner table, marrow, outer table, fat and skin; returns it and the distance outside the dura."""
    shape = head.shape
    distance = ndimage.distance_transform_edt(~outline)
    outside = np.maximum(distance + 1.2 * _texture(shape, 30, rng), 0.01) * (distance > 0)
    table = 3.4 + 0.7 * _texture(shape, 25, rng)
    marrow = 7.5 + 1.8 * _texture(shape, 50, rng)
    skin = 2 * table + marrow + 13 + 2.5 * _texture(shape, 60, rng)
    dark = np.full(shape, 0.045)
    bands = (
        (np.zeros(shape), dark),
        (table, 0.30 + 0.07 * _texture(shape, 5, rng)),
        (table + marrow, dark),
        (2 * table + marrow, fat + 0.07 * _texture(shape, 4, rng)),
        (skin - 3, np.full(shape, 0.42)),
        (skin, np.zeros(shape)),
    )
    painted = np.where(head > 0.02, head, 0.09)
    for start, signal in bands:
        painted = np.where(outside > start, signal, painted)
    return ndimage.gaussian_filter(painted, 0.9), outside


def _around_coronal(
    head: np.ndarray, brain: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[int, int]]:
    """Paint vault, skull base, muscles and airway around a coronal brain; returns it and the brain's origin in it."""
    top, bottom = 4, 96
    side = (head.shape[0] + top + bottom - head.shape[1]) // 2
    head, brain = (np.pad(x, ((top, bottom), (side, side))) for x in (head, brain))
    shape = brain.shape
    rows, columns = _grid(shape)
    outline = _outline(brain)
    vault, outside = _layers(head, outline, rng, fat=0.72)

    filled = np.flatnonzero(outline.any(axis=1))
    base, centre = float(filled[-1]), float(np.flatnonzero(outline.any(axis=0)).mean())
    off = np.abs(columns - centre)
    # Temples, cheeks and neck hang from the vault's widest part and narrow downwards; one outline around it all.
    widest = off[outline].max() + 26
    half_width = widest - 12 * _soft(rows - base, 50) - 26 * _soft(rows - base - 70, 40)
    below = (rows > base - 120) & (off < half_width)
    whole = ndimage.gaussian_filter(((outside < 30) | below).astype(float), 7) > 0.5
    depth = ndimage.distance_transform_edt(np.pad(whole, ((1, 0), (1, 1))))[1:, 1:-1] * whole

    fibres = np.sin((columns + 0.4 * rows * np.sign(columns - centre)) / 3.2 + 2 * _texture(shape, 18, rng))
    flesh = 0.25 + 0.03 * _texture(shape, 5, rng) + 0.025 * _texture(shape, 16, rng) + 0.018 * fibres
    planes = np.exp(-((_texture(shape, 22, rng) / 0.12) ** 2))  # thin fat between muscles
    flesh = flesh + 0.20 * planes
    ramus = np.abs(off - (widest - 62) + 4 * _texture(shape, 40, rng))
    jaw = _soft(rows - base - 4, 30) * _soft(10 + _texture(shape, 20, rng) - ramus, 4)
    flesh = flesh * (1 - jaw) + jaw * (0.05 + 0.33 * _soft(5 - ramus, 4))
    fat = _soft(11 + 2 * _texture(shape, 40, rng) - depth, 2)
    flesh = flesh * (1 - fat) + fat * (0.70 + 0.06 * _texture(shape, 4, rng))
    flesh = np.where(depth < 3, 0.42, flesh) * whole

    skull = outside < 13
    image = np.where(outline | skull, vault, flesh)
    sella = base - 58
    blobs = (  # row, column offset, half height, half width, signal: sphenoid, its sinuses, pharynx, carotids
        (sella + 52, 0, 46, 74, 0.33 + 0.06 * _texture(shape, 4, rng)),
        (sella + 48, 21, 24, 18, 0.03),
        (sella + 122, 0, 22, 36, 0.03),
        (sella + 4, 33, 8, 8, 0.04),
    )
    for row, offset, height, width, signal in blobs:
        ragged = 1 + 0.09 * _texture(shape, 14, rng)
        blob = _soft(ragged - np.hypot((rows - row) / height, (off - offset) / width), 0.09)
        blob = blob * (~outline | (brain < 0.1))
        image = image * (1 - blob) + signal * blob
    image = np.where(outline & (head > 0.02), head, image)
    return ndimage.gaussian_filter(image, 0.9), (top, side)


def _post_contrast(brain: np.ndarray) -> np.ndarray:
    """Flatten grey and white matter towards each other, as a contrast-enhanced spin-echo T1 shows them."""
    return np.where(brain > 0.02, 0.10 + 0.30 * brain**1.6, 0.0)


def _outline(brain: np.ndarray) -> np.ndarray:
    """The dura's course: the brain with its sulci closed, a little larger, bool."""
    small = ndimage.zoom((brain > 0.1).astype(np.uint8), 0.25, order=0)
    closed = ndimage.binary_closing(np.pad(small, 12), iterations=9)[12:-12, 12:-12]
    closed = ndimage.binary_fill_holes(ndimage.binary_dilation(closed))
    factor = (brain.shape[0] / closed.shape[0], brain.shape[1] / closed.shape[1])
    return ndimage.gaussian_filter(ndimage.zoom(closed.astype(float), factor, order=1), 5) > 0.5


def _push(image: np.ndarray, row: float, column: float, *, reach: float, strength: float) -> np.ndarray:
    """Mass effect: move tissue away from a point, most at half ``reach`` pixels, never at the brain's rim."""
    rows, columns = _grid(image.shape)
    down, right = rows - row, columns - column
    distance = np.hypot(down, right) + 1e-6
    shift = strength * (distance / reach) * np.exp(1 - distance / reach)
    rim = ndimage.distance_transform_edt(_outline(image))
    shift = shift * np.clip(rim / 40, 0, 1)
    return ndimage.map_coordinates(image, [rows - shift * down / distance, columns - shift * right / distance], order=1)


def _finish(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add what a scanner adds: coil shading and Rician noise (Gudbjartsson & Patz, MRM 34, 1995)."""
    shaded = image * (1 + 0.06 * _texture(image.shape, 120, rng))
    noise = 0.012 * rng.standard_normal((2, *image.shape))
    return np.clip(ndimage.gaussian_filter(np.hypot(shaded + noise[0], noise[1]), 0.5), 0, 1)


def _placed(image: np.ndarray, *, margin: int) -> np.ndarray:
    """Centre an array in a square with that many pixels to spare at its longer side."""
    side = max(image.shape) + 2 * margin
    rows, columns = side - image.shape[0], side - image.shape[1]
    return np.pad(image, ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)))


def _texture(shape: tuple[int, ...], scale: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of zero mean and unit deviation whose blobs are about ``scale`` pixels wide."""
    step = max(1, int(scale / 3))
    coarse = tuple(size // step + 3 for size in shape)
    noise = ndimage.gaussian_filter(rng.standard_normal(coarse), scale / step)
    noise = (noise - noise.mean()) / noise.std()
    if step == 1:
        return noise[: shape[0], : shape[1]]
    wide = Image.fromarray(noise.astype(np.float32)).resize((coarse[1] * step, coarse[0] * step))
    return np.asarray(wide, np.float64)[: shape[0], : shape[1]]


def _grid(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    return rows, columns


def _soft(signed_distance: np.ndarray, width: float) -> np.ndarray:
    """Logistic step of about ``width`` pixels: 1 inside (positive), 0 outside."""
    return 1 / (1 + np.exp(-np.clip(signed_distance / (width / 2), -30, 30)))
