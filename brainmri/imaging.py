"""Bytes -> MRISlice, and the one preprocessing function that training, serving and explanation share."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError
from scipy import ndimage

from brainmri.errors import InvalidImageError
from brainmri.types import CropTransform, MRISlice

NETWORK_SIZE = 128
PREPROCESSING = f"preprocess-{NETWORK_SIZE}-1"
"""Name of what `preprocess` does, in cards, kept cases and prepared training slices. Another last number where the same
picture comes out otherwise; version 1 was ``preprocess-128`` in records until it had one."""
ACCEPTED_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")
MIN_SIDE = 16
LONGEST = 20
"""A side over the other: beyond it a picture is a line."""
MOST_SQUARED = 2
"""Pixels of the square around a picture over those that it may have: preprocessing pads to a square, and a long picture
would fill the memory."""
COLOUR_DIFFERENCE = 24
"""A pixel is coloured where its channels lie further apart, of 255. A grey JPEG's chroma is off by half a quantiser
step at most: some 16 levels at quality 10, two or three at usual ones."""
COLOUR_LIMIT = 0.1
"""Largest share of coloured pixels in a picture that may be a brain MRI; a label, a scale bar or an outline fits in."""
COLOUR_NOTE = "the picture is in colour"
"""How the note begins that a slice over `COLOUR_LIMIT` carries."""
RIVAL_LIMIT = 0.25
"""Largest area, as a share of the head's, of a second bright region in a picture of one slice. Of 8,290 training slices
13 are over it, tips of temporal or occipital lobes, of sheets of 2 to 16 of them 96 % (`scripts/sheets.py`)."""
SEVERAL_NOTE = "the picture holds several regions of like size"
"""How the note begins that a slice over `RIVAL_LIMIT` carries."""
BLANK_NOTE = "the picture is blank or nearly so"
"""How the note begins that a slice without anything to see carries; see `is_blank`."""
SQUARE_WITHIN = 1.02
"""Pixels whose sides differ by no more than this factor count as square: over a head it is under two of 128 pixels."""
_DARK, _FEW = 8, 64
"""Grey values up to the first are air; where fewer pixels of the network's view are over it, it is not stretched."""
_LEAST_CONTRAST = 8.0
"""Grey values that are stretched to [0, 1] at least: noise stays noise."""
_BLOCK = 4_000_000
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_CROSS = ndimage.generate_binary_structure(2, 1)
_ACCEPTED = "accepted: PNG, JPEG, TIFF, BMP, GIF, WebP and DICOM"


def decode_image(
    content: bytes, name: str, *, max_pixels: int = 50_000_000, max_size_bytes: int = 20_000_000
) -> MRISlice:
    """Decode a picture file to grey display intensities.

    EXIF rotation is undone, transparency is laid on black, colour becomes luminance, 16-bit and float data are
    stretched linearly from their minimum and maximum to 0-255, and of an animation the first frame is taken.

    Parameters
    ----------
    content : bytes
        The file, whatever its name says.
    name : str
        For the reader; only its last path component is kept.

    Raises
    ------
    InvalidImageError
        Empty, too large, truncated, too many pixels, too small, too long, or no image at all.
    """
    name = name.replace("\\", "/").rsplit("/", 1)[-1] or "image"
    if not content:
        raise InvalidImageError(f"{name}: the file is empty (0 bytes); {_ACCEPTED}")
    if len(content) > max_size_bytes:
        raise InvalidImageError(
            f"{name}: {len(content) / 1e6:.1f} MB, the limit is {max_size_bytes / 1e6:.0f} MB (uploads.max_size_mb)"
        )
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
            image = Image.open(io.BytesIO(content), formats=ACCEPTED_FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise InvalidImageError(
                f"{name}: {width} x {height} pixels, the limit is {max_pixels:,} pixels (uploads.max_pixels)"
            )
        if min(width, height) < MIN_SIDE:
            raise InvalidImageError(f"{name}: {width} x {height} pixels, at least {MIN_SIDE} x {MIN_SIDE} are needed")
        if max(width, height) > LONGEST * min(width, height):
            raise InvalidImageError(f"{name}: {width} x {height} pixels, one side is over {LONGEST} times the other")
        if max(width, height) ** 2 > MOST_SQUARED * max_pixels:
            raise InvalidImageError(
                f"{name}: {width} x {height} pixels, the limit for the longer side is "
                f"{int((MOST_SQUARED * max_pixels) ** 0.5):,} (uploads.max_pixels)"
            )
        if image.mode == "LAB":
            raise InvalidImageError(f"{name}: colours in CIELAB are not read; save it in grey or RGB")
        source_format = str(image.format)
        # Not n_frames: to count them Pillow walks through all, of which a small file can have tens of thousands.
        if getattr(image, "is_animated", False):
            notes.append("first of several frames")
        image.load()
        pixels, share = _to_grey(image, notes)
    except InvalidImageError:
        raise
    except Image.DecompressionBombError as error:
        count = next(iter(re.findall(r"\d+", str(error))), "too many")  # Pillow's own guard knows the size, we do not
        raise InvalidImageError(
            f"{name}: {count} pixels, the limit is {max_pixels:,} pixels (uploads.max_pixels)"
        ) from error
    except UnidentifiedImageError as error:
        raise InvalidImageError(f"{name}: not an image that can be read; {_ACCEPTED}") from error
    except Exception as error:  # a damaged file makes Pillow raise whatever its format's reader comes across
        raise InvalidImageError(f"{name}: the image is damaged or cut short; {_ACCEPTED}") from error
    pixels.setflags(write=False)
    sha256 = hashlib.sha256(content).hexdigest()
    return MRISlice(pixels, name, sha256, source_format, notes=(*notes, *colour_notes(share)), colour_share=share)


def _to_grey(image: Image.Image, notes: list[str]) -> tuple[np.ndarray, float]:
    """Grey values, the right way up, and `colour_share`."""
    tags = getattr(image, "tag_v2", {})  # of TIFF; a turned picture has them no more
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        notes.append(f"{f'{bits}-bit' if image.mode != 'F' else 'float'} data stretched to 0-255")
        grey = stretch_to_uint8(np.asarray(image, np.float32))
        # Pillow sees to that where there are 8 bits or fewer.
        return 255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey, 0.0
    if image.mode in ("RGBA", "LA", "PA", "P") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.array(image.convert("L")), colour_share(image)


def colour_share(image: Image.Image) -> float:
    """Share of pixels, in [0, 1], whose channels differ by more than `COLOUR_DIFFERENCE`; 0 for a grey picture."""
    if image.mode in ("1", "L"):
        return 0.0
    # A share needs no more pixels than these; mixed pixels would be less coloured, so: nearest.
    few = image.resize([min(side, 256) for side in image.size], Image.Resampling.NEAREST)
    red, green, blue = few.convert("RGB").split()
    highest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    lowest = ImageChops.darker(ImageChops.darker(red, green), blue)
    counts = ImageChops.subtract(highest, lowest).histogram()
    return sum(counts[COLOUR_DIFFERENCE + 1 :]) / sum(counts)


def colour_notes(share: float) -> tuple[str, ...]:
    """The note for the reader of a picture that is too coloured to be a brain MRI; none for any other."""
    return (f"{COLOUR_NOTE} ({share:.0%} of its pixels)",) if share > COLOUR_LIMIT else ()


def several_notes(transform: CropTransform) -> tuple[str, ...]:
    """The note for the reader of a picture that looks like several slices on one sheet; none for any other."""
    if transform.rival <= 100 * RIVAL_LIMIT:
        return ()
    return (f"{SEVERAL_NOTE} (the second has {transform.rival} % of the first)",)


def is_blank(pixels: np.ndarray, network_input: np.ndarray) -> bool:
    """Whether a picture, and what `preprocess` made of it, shows nothing: black, one grey, the noise of dark air.

    So it does where pixels differ by too little to be stretched to 1, or too few are over air. Of 13,340 pictures of
    the collections 11 do, empty ones of lgg.
    """
    if network_input.max() < 1 or np.count_nonzero(network_input > _DARK / 255) < _FEW:
        return True
    return int(pixels.max()) - int(pixels.min()) < _LEAST_CONTRAST  # even, but not square: it was padded with black


def blank_notes(pixels: np.ndarray, network_input: np.ndarray) -> tuple[str, ...]:
    """The note for the reader of a picture that shows nothing; none for any other."""
    return (BLANK_NOTE,) if is_blank(pixels, network_input) else ()


def picture_reason(notes: Iterable[str]) -> str | None:
    """The sentence, without its full stop, why a slice with these notes is turned away whatever the network sees."""
    for note in notes:
        for begins, ends in (
            (COLOUR_NOTE, "and brain MRI is grey"),
            (SEVERAL_NOTE, "like a sheet of several slices"),
            (BLANK_NOTE, "with no head to be seen"),
        ):
            if note.startswith(begins):
                return f"{note[0].upper()}{note[1:]}, {ends}"
    return None


def stretch_to_uint8(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Map [low, high] (default: the finite minimum and maximum) linearly to 0-255, clipping what lies outside."""
    values = np.asarray(values)
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, np.uint8)
    low = float(values[finite].min()) if low is None else low
    high = float(values[finite].max()) if high is None else high
    factor = 255.0 / max(high - low, 1e-12)
    stretched = np.empty(values.shape, np.uint8)
    step = max(1, _BLOCK // max(1, values[0].size))  # block by block: the copies of a large picture add up
    for start in range(0, len(values), step):
        block = np.nan_to_num(values[start : start + step], nan=low, posinf=high, neginf=low)
        stretched[start : start + step] = np.clip(np.rint((block - low) * factor), 0, 255)
    return stretched


def pixel_aspect(spacing_mm: tuple[float, float] | None) -> float:
    """Width of a pixel over its height, from (row, column) spacing; 1 where that is unknown or nearly 1."""
    if spacing_mm is None or max(spacing_mm) <= SQUARE_WITHIN * min(spacing_mm):
        return 1.0
    return spacing_mm[1] / spacing_mm[0]


def preprocess(
    pixels: np.ndarray, size: int = NETWORK_SIZE, *, spacing_mm: tuple[float, float] | None = None
) -> tuple[np.ndarray, CropTransform]:
    """Make the network's view of a slice: crop to the head, pad to a square, resize, stretch to [0, 1].

    The crop takes margins, white borders, scale bars and text at the rim out of the picture, so that a head fills
    the frame whatever the scanner's field of view; the stretch takes brightness and contrast settings out. Resizing
    gives a head its proportions where pixels are not square.

    Parameters
    ----------
    pixels : ndarray of shape (height, width), uint8
        Grey display intensities. Not modified.
    size : int
        Side of the result in pixels.
    spacing_mm : (row, column), optional
        Distance between pixel centres, millimetres; default: pixels are square.

    Returns
    -------
    network_input : ndarray of shape (size, size), float32
        In [0, 1]; the 1st and 99.5th percentile of the head become 0 and 1.
    transform : CropTransform
        Where that lies in ``pixels``.

    Raises
    ------
    InvalidImageError
        Wrong rank, dtype or size.
    """
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.dtype != np.uint8:
        came = f"{getattr(pixels, 'dtype', type(pixels).__name__)} of shape {getattr(pixels, 'shape', '?')}"
        raise InvalidImageError(f"expected a uint8 array of shape (height, width), got {came}")
    if min(pixels.shape) < MIN_SIDE:
        raise InvalidImageError(f"expected at least {MIN_SIDE} x {MIN_SIDE} pixels, got {pixels.shape}")
    aspect = pixel_aspect(spacing_mm)
    (top, left, bottom, right), rival = _find_head(pixels, aspect)
    height, width = bottom - top, right - left
    rows = max(height, round(width * aspect))
    columns = max(width, round(height / aspect))
    transform = CropTransform(
        top - (rows - height) // 2, left - (columns - width) // 2, rows, size, 0 if aspect == 1 else columns, rival
    )
    # Only what lies in the box is shown: the crop's padding is black even where the original holds text there.
    square = np.zeros((rows, columns), np.uint8)
    row, column = top - transform.top, left - transform.left
    square[row : row + height, column : column + width] = pixels[top:bottom, left:right]
    # Resampling.BOX would alias where the factor is near 1, so: antialiased linear.
    resized = np.asarray(
        Image.fromarray(square).convert("F").resize((size, size), Image.Resampling.BILINEAR), np.float32
    )
    foreground = resized[resized > _DARK]
    if foreground.size < _FEW:
        return np.clip(resized / 255.0, 0, 1), transform
    # np.sort is vectorised and several times faster than np.percentile's partition; the values are the same.
    foreground.sort()
    low, high = (_percentile(foreground, q, np.float64) for q in (1, 99.5))
    stretched = resized - low  # float64, as the percentiles are
    stretched /= max(high - low, _LEAST_CONTRAST)
    stretched = stretched.astype(np.float32)
    return np.clip(stretched, 0, 1, out=stretched), transform


def head_box(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """Find the head: bounding box (top, left, bottom, right; ends exclusive) of the largest bright region.

    The whole image where no region stands out. Pixels are taken for square.
    """
    return _find_head(pixels, 1.0)[0]


def _find_head(pixels: np.ndarray, aspect: float) -> tuple[tuple[int, int, int, int], int]:
    """`head_box`, and the area of the next largest region in percent of the head's.

    Works on a copy of at most 128 pixels a side, which are square where ``aspect`` is the original's (`pixel_aspect`).
    """
    height, width = pixels.shape
    tall, wide = height * max(1.0, 1 / aspect), width * max(1.0, aspect)
    factor = max(1.0, max(tall, wide) / 128)
    shape = (max(8, round(tall / factor)), max(8, round(wide / factor)))
    small = np.asarray(_shrink(pixels, factor, shape), np.float32)
    rim_top, rim_left, rim_bottom, rim_right = _strip_bright_border(small)
    inner = small[rim_top:rim_bottom, rim_left:rim_right]
    smooth = _smooth(inner)
    # Air is the darkest mode; a third of Otsu's threshold keeps dark CSF, skull and low-signal scalp in the head.
    threshold = max(6.0, float(_percentile(np.sort(smooth, axis=None), 2)) + 0.35 * _otsu(smooth))
    mask = _open(smooth > threshold)
    labels, count = ndimage.label(mask, _CROSS)
    box, rival = (0, 0, *inner.shape), 0
    if count:
        areas = np.bincount(labels.ravel())[1:]
        largest = int(areas.argmax()) + 1
        if count > 1:
            rival = int(100 * np.partition(areas, -2)[-2] // areas.max())
        region = labels == largest
        rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
        found = (rows[-1] + 1 - rows[0]) * (columns[-1] + 1 - columns[0])
        if found >= 0.1 * inner.size:
            box = (int(rows[0]) - 1, int(columns[0]) - 1, int(rows[-1]) + 2, int(columns[-1]) + 2)
    top = max(0, rim_top + max(box[0], 0)) * height / shape[0]
    left = max(0, rim_left + max(box[1], 0)) * width / shape[1]
    bottom = (rim_top + min(box[2], inner.shape[0])) * height / shape[0]
    right = (rim_left + min(box[3], inner.shape[1])) * width / shape[1]
    return (int(top), int(left), min(height, int(np.ceil(bottom))), min(width, int(np.ceil(right)))), rival


def _strip_bright_border(small: np.ndarray) -> tuple[int, int, int, int]:
    """Peel off rows and columns that are evenly bright from edge to edge (a page's white border, a frame)."""
    top, left, bottom, right = 0, 0, *small.shape
    for _ in range(max(small.shape) // 3):
        before = (top, left, bottom, right)
        top += _is_border(small[top, left:right])
        bottom -= _is_border(small[bottom - 1, left:right])
        left += _is_border(small[top:bottom, left])
        right -= _is_border(small[top:bottom, right - 1])
        if before == (top, left, bottom, right) or bottom - top < 16 or right - left < 16:
            break
    return top, left, bottom, right


def _is_border(line: np.ndarray) -> bool:
    # A head that touches the edge is neither this bright nor this even along the whole edge.
    if np.count_nonzero(line > 150) < 0.9 * line.size - 1:  # cannot be; far quicker than the percentile
        return False
    return bool(np.percentile(line, 10) > 150)


def _shrink(pixels: np.ndarray, factor: float, shape: tuple[int, int]) -> Image.Image:
    """``Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.BOX)``; quicker for factors 2, 4 and 8."""
    image = Image.fromarray(pixels)
    if factor in (2, 4, 8) and (shape[0] * factor, shape[1] * factor) == pixels.shape:
        # Columns, then rows, as resizing does it: what is rounded in between makes the values the same.
        return image.reduce((int(factor), 1)).reduce((1, int(factor)))
    return image.resize(shape[::-1], Image.Resampling.BOX)


def _smooth(image: np.ndarray) -> np.ndarray:
    """Mean of 3 x 3 pixels of whole grey values: ``ndimage.uniform_filter(image, 3)`` to the last bit, thrice as fast.

    A third of a whole number is the same whether float32 is divided or float64 is divided and rounded; the sum of three
    such thirds is not.
    """
    height, width = image.shape
    padded = np.empty((height + 2, width + 2), np.float32)
    padded[1:-1, 1:-1] = image
    padded[0, 1:-1], padded[-1, 1:-1] = image[0], image[-1]
    padded[:, 0], padded[:, -1] = padded[:, 1], padded[:, -2]
    rows = ((padded[:-2] + padded[1:-1] + padded[2:]) / 3).astype(np.float64)
    total = rows[:, :-2] + rows[:, 1:-1]
    total += rows[:, 2:]
    total /= 3
    return total.astype(np.float32)


def _open(mask: np.ndarray) -> np.ndarray:
    """Binary opening with a cross, two iterations: ``ndimage.binary_opening(mask, iterations=2)``, far faster."""
    height, width = mask.shape
    padded = np.zeros((height + 2, width + 2), bool)
    padded[1:-1, 1:-1] = mask
    # As one long row: what is beyond a row's end is a margin, which is empty and which no opening reaches.
    line, wide = padded.ravel(), width + 2
    for combine in (np.logical_and, np.logical_and, np.logical_or, np.logical_or):
        result = line.copy()
        inner = result[wide:-wide]
        for step in (-wide, wide, -1, 1):
            combine(inner, line[wide + step : line.size - wide + step], out=inner)
        line = result
    return line.reshape(padded.shape)[1:-1, 1:-1]


def _percentile(ordered: np.ndarray, q: float, dtype: type[np.floating] = np.float32):
    """``np.percentile`` of sorted float32 values; ``dtype`` is float64 for what it gives for several q at once."""
    position = (ordered.size - 1) * (q / 100)
    index = int(position)
    weight = position - index
    low, high = ordered[index], ordered[min(index + 1, ordered.size - 1)]
    step = dtype(high - low)
    return dtype(low) + step * dtype(weight) if weight < 0.5 else dtype(high) - step * dtype(1 - weight)


def _otsu(values: np.ndarray) -> float:
    """Otsu's threshold (IEEE Trans. SMC 1979) of grey values in 0-255."""
    counts = np.array(Image.fromarray(values.astype(np.uint8)).histogram(), np.float64)  # np.bincount widens to int64
    below = np.cumsum(counts)
    above = below[-1] - below
    mass = np.cumsum(counts * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mass[-1] * below / below[-1] - mass) ** 2 / (below * above)
    return float(np.argmax(np.where(np.isfinite(between), between, -1)))


def as_network_batch(inputs: np.ndarray) -> np.ndarray:
    """Repeat grey network inputs (n, size, size) to the three channels VGG16 expects; float32 (n, size, size, 3).

    A read-only view: the three channels are one and the same memory.
    """
    inputs = np.asarray(inputs, np.float32)
    return np.broadcast_to(inputs[..., None], (*inputs.shape, 3))
