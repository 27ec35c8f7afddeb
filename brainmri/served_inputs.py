"""What preprocessing and mirror averaging are worth: the same images as other hospitals' files would show them."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from brainmri.counterfactual import head_mask
from brainmri.data import read_pixels
from brainmri.evaluation import GroupBootstrap
from brainmri.imaging import NETWORK_SIZE, decode_image, head_box, preprocess
from brainmri.types import CLASS_NAMES

if TYPE_CHECKING:
    from brainmri.inference import Classifier

Progress = Callable[[int, int], None]
BATCH = 32
DARK, LOW_CONTRAST, BORDER, MARGIN, INSIDE = 0.2, 0.2, 0.12, 0.5, 0.03


def _as_it_is(image: np.ndarray) -> np.ndarray:
    return image


def _white_border(image: np.ndarray) -> np.ndarray:
    return np.pad(image, round(BORDER * max(image.shape)), constant_values=255)


def _wide_field(image: np.ndarray) -> np.ndarray:
    return np.pad(image, round(MARGIN * max(image.shape)), constant_values=0)


def _marks(image: np.ndarray) -> np.ndarray:
    """A scale bar with ticks, letters and lines of text at the rim."""
    picture = Image.fromarray(image)
    draw, (width, height) = ImageDraw.Draw(picture), picture.size
    right, bottom = width - max(6, width // 40), height - max(6, height // 40)
    draw.line([(right, height // 3), (right, 2 * height // 3)], fill=255, width=2)
    for y in np.linspace(height // 3, 2 * height // 3, 6):
        draw.line([(right - 6, y), (right, y)], fill=255, width=1)
    draw.text((3, 2), "R   SE 4/7   TR 500 TE 12", fill=255)
    draw.text((3, bottom - 8), "L 40   W 80   A 12.3", fill=255)
    return np.asarray(picture)


def _tight_crop(image: np.ndarray) -> np.ndarray:
    top, left, bottom, right = head_box(image)
    down, across = round(INSIDE * (bottom - top)), round(INSIDE * (right - left))
    return np.ascontiguousarray(image[top + down : bottom - down, left + across : right - across])


def _mirrored(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[:, ::-1])


def _dark(image: np.ndarray) -> np.ndarray:
    return np.rint(image * DARK).astype(np.uint8)


def _low_contrast(image: np.ndarray) -> np.ndarray:
    return np.rint(110 + LOW_CONTRAST * (image.astype(np.float32) - 110)).astype(np.uint8)


def _inverted(image: np.ndarray) -> np.ndarray:
    """Fluid becomes bright and fat dark while air stays black: no T2 image, but as unlike T1 in its order of greys."""
    head = head_mask(image)
    low, high = int(image[head].min()), int(image[head].max())
    return np.where(head, low + high - image.astype(np.int16), image).astype(np.uint8)


def _sixteen_bit(image: np.ndarray) -> bytes:
    """A PNG file of 16 bits of which the scanner used twelve."""
    buffer = io.BytesIO()
    Image.fromarray(image.astype(np.uint16) * 16).save(buffer, "PNG")
    return buffer.getvalue()


VERSIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": _as_it_is,
    "white border": _white_border,
    "scale bar and text at the rim": _marks,
    "tight crop": _tight_crop,
    "wide field of view": _wide_field,
    "mirrored": _mirrored,
    "dark": _dark,
    "low contrast": _low_contrast,
    "grey values inverted, as T2 against T1": _inverted,
}
SIXTEEN_BIT = "16-bit file, 12 bits used"


def preprocessing_gain(
    classifier: Classifier,
    rows: pd.DataFrame,
    *,
    kept: Callable[[str, Callable[[], Any]], Any] = lambda name, compute: compute(),
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Accuracy under synthetic versions of each image: preprocessed as served, and plainly resized.

    The network is the same on both sides, trained on inputs as served; so "as it is" shows what leaving preprocessing
    out costs, and the other rows against it what each kind of file costs either way.

    Parameters
    ----------
    rows : DataFrame
        ``file``, ``label`` and ``group`` of validation images.
    kept : callable, optional
        Takes a version's name and what computes it; may answer from an earlier run.

    Returns
    -------
    list of dict
        Per version ``version``, ``n``, ``served`` and ``plain`` (accuracies), their ``served_interval`` and
        ``plain_interval``, and ``gain`` with its paired ``gain_interval``.
    """
    images = [read_pixels(file) for file in rows["file"]]
    labels, bootstrap = rows["label"].to_numpy(str), GroupBootstrap(rows["group"])

    def compare(version: str) -> dict[str, Any]:
        if version == SIXTEEN_BIT:
            files = [_sixteen_bit(image) for image in images]
            served = [decode_image(file, "16-bit.png").pixels for file in files]
            # Without the stretch, 16 bits are shown by their upper eight.
            plain = [
                (np.asarray(Image.open(io.BytesIO(file))).astype(np.uint16) >> 8).astype(np.uint8) for file in files
            ]
        else:
            served = plain = [VERSIONS[version](image) for image in images]
        right = _right(classifier, [preprocess(image)[0] for image in served], labels)
        other = _right(classifier, [_plain(image) for image in plain], labels)
        gain = right.astype(float) - other
        return {
            "version": version,
            "n": len(rows),
            "served": round(float(right.mean()), 6),
            "served_interval": bootstrap.mean(right),
            "plain": round(float(other.mean()), 6),
            "plain_interval": bootstrap.mean(other),
            "gain": round(float(gain.mean()), 6),
            "gain_interval": bootstrap.mean(gain, share=False),
        }

    found = []
    for done, version in enumerate([*VERSIONS, SIXTEEN_BIT], start=1):
        found.append(kept(version, functools.partial(compare, version)))
        if progress:
            progress(done * len(rows), (len(VERSIONS) + 1) * len(rows))
    return found


def mirror_averaging(classifier: Classifier, rows: pd.DataFrame, *, progress: Progress | None = None) -> dict[str, Any]:
    """Accuracy of one look, and of the mean probabilities of a slice and its mirror image at twice the cost.

    Returns
    -------
    dict
        ``n``, ``one_look`` and ``averaged`` (accuracies), ``gain`` and its paired ``gain_interval``.
    """
    labels, bootstrap = rows["label"].to_numpy(str), GroupBootstrap(rows["group"])
    once, twice = [], []
    for start in range(0, len(rows), BATCH):
        inputs = np.stack([preprocess(read_pixels(file))[0] for file in rows["file"].iloc[start : start + BATCH]])
        p, q = (classifier.rule.probabilities(classifier.forward(x)[0]) for x in (inputs, inputs[:, :, ::-1]))
        once.append(p.argmax(axis=1))
        twice.append((p + q).argmax(axis=1))
        if progress:
            progress(min(start + BATCH, len(rows)), len(rows))
    one, two = ((np.array(CLASS_NAMES)[np.concatenate(called)] == labels).astype(float) for called in (once, twice))
    return {
        "n": len(rows),
        "one_look": round(float(one.mean()), 6),
        "averaged": round(float(two.mean()), 6),
        "gain": round(float((two - one).mean()), 6),
        "gain_interval": bootstrap.mean(two - one, share=False),
    }


def _plain(image: np.ndarray) -> np.ndarray:
    """The whole picture scaled to the network's square and to [0, 1], as most code on this data set does it."""
    resized = Image.fromarray(image).resize((NETWORK_SIZE, NETWORK_SIZE), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32) / 255


def _right(classifier: Classifier, inputs: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    called = [
        classifier.forward(np.stack(inputs[start : start + BATCH]))[0].argmax(axis=1)
        for start in range(0, len(inputs), BATCH)
    ]
    return np.array(CLASS_NAMES)[np.concatenate(called)] == labels
