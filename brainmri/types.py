"""The few things that travel through the package: bytes -> slice -> prediction -> explanation -> record."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

CLASS_NAMES = ("glioma", "meningioma", "notumor", "pituitary")
"""Order of every logit and probability column."""

NO_TUMOR = "notumor"

CLASS_TITLES = {
    "glioma": "Glioma",
    "meningioma": "Meningioma",
    "notumor": "No tumour",
    "pituitary": "Pituitary tumour",
}
"""Class names as a reader sees them."""


@dataclass(frozen=True)
class CropTransform:
    """Crop of the original image, square in millimetres, that became the network's input.

    Attributes
    ----------
    top, left : int
        First row and column of the crop in original pixels; negative where the crop reaches past the image.
    side : int
        Rows of the crop in original pixels, and its columns where pixels are square.
    network_size : int
        Side of the network's input in pixels.
    columns : int
        Columns of the crop where pixels are not square; 0 where they are.
    rival : int
        Area of the second largest bright region, percent of the head's; see `imaging.several_notes`.
    """

    top: int
    left: int
    side: int
    network_size: int
    columns: int = 0
    rival: int = field(default=0, compare=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the crop in original pixels."""
        return self.side, self.columns or self.side

    def to_original(self, grid: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Draw a map given on the network's field of view in the original image's coordinates.

        Parameters
        ----------
        grid : ndarray of shape (rows, columns), float
            Any resolution; it covers the whole crop.
        shape : (height, width)
            Of the original image, pixels.

        Returns
        -------
        ndarray of shape (height, width), float32
            Linearly interpolated; zero outside the crop.
        """
        from PIL import Image

        resized = np.asarray(
            Image.fromarray(np.asarray(grid, np.float32)).resize(self.shape[::-1], Image.Resampling.BILINEAR)
        )
        canvas = np.zeros(shape, np.float32)
        top, left, bottom, right = self._inside(shape)
        canvas[top:bottom, left:right] = resized[
            top - self.top : bottom - self.top, left - self.left : right - self.left
        ]
        return canvas

    def to_network(self, image: np.ndarray) -> np.ndarray:
        """Crop an original-size array (a mask, say) to the network's field of view.

        Returns
        -------
        ndarray of shape ``shape``, dtype of ``image``
            Zero where the crop reaches past the image.
        """
        canvas = np.zeros(self.shape, image.dtype)
        top, left, bottom, right = self._inside(image.shape)
        canvas[top - self.top : bottom - self.top, left - self.left : right - self.left] = image[top:bottom, left:right]
        return canvas

    def _inside(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """The part of the crop that lies in an image: top, left, bottom, right; ends exclusive."""
        (rows, columns), (height, width) = self.shape, shape
        return (
            max(self.top, 0),
            max(self.left, 0),
            min(self.top + rows, height),
            min(self.left + columns, width),
        )


@dataclass(frozen=True)
class MRISlice:
    """One 2-D image as it came, decoded.

    Attributes
    ----------
    pixels : ndarray of shape (height, width), uint8
        Grey display intensities, 0-255, arbitrary units; read-only.
    name : str
        What the reader calls it; never used as a path.
    sha256 : str
        Of the bytes it was decoded from (for DICOM: after de-identification).
    source_format : str
        ``"PNG"``, ``"JPEG"``, ``"DICOM"`` ...
    spacing_mm : (row, column) or None
        Distance between pixel centres, millimetres.
    orientation : (left, right, top, bottom) or None
        Letters L/R/A/P/S/I at the picture's edges.
    sop_instance_uid, frame : str or None, int or None
        DICOM identity, as de-identified; frame counts from 1.
    notes : tuple of str
        What a reader should know about how it was decoded.
    colour_share : float
        Share of coloured pixels in the picture as it came, in [0, 1]; see `imaging.colour_share`.
    content : bytes or None
        What may be kept of it, where that is not the file as it came: the de-identified DICOM file.
    """

    pixels: np.ndarray
    name: str
    sha256: str
    source_format: str
    spacing_mm: tuple[float, float] | None = None
    orientation: tuple[str, str, str, str] | None = None
    sop_instance_uid: str | None = None
    frame: int | None = None
    notes: tuple[str, ...] = ()
    colour_share: float = 0.0
    content: bytes | None = field(default=None, repr=False, compare=False)

    @property
    def may_be_sheet(self) -> bool:
        """Whether the picture may hold several slices; one of a DICOM series is what it says."""
        return self.source_format != "DICOM"


@dataclass(frozen=True)
class Prediction:
    """What the network says about a batch of slices.

    Attributes
    ----------
    logits, probabilities : ndarray of shape (n_slices, n_classes), float32
        Columns as ``CLASS_NAMES``; probabilities are temperature-scaled and sum to 1.
    feature_maps : ndarray of shape (n_slices, 8, 8, 512), float32
        Activations of block5_conv3 (after ReLU) from the same forward pass.
    decisions : tuple of str
        ``"class"``, ``"undecided"`` or ``"rejected"`` per slice.
    prediction_sets : tuple of tuple of str
        Classes in the 95 % conformal set per slice.
    ood_score : ndarray of shape (n_slices,), float32
        Distance from the training data, or how coloured the picture is; rejected where over ``ood_threshold``.
    transforms : tuple of CropTransform
        Where each network input lies in its original image.
    inputs : ndarray of shape (n_slices, 128, 128), float32
        What the network saw, in [0, 1].
    elapsed_ms : float
        Wall time of the batch, milliseconds.
    """

    logits: np.ndarray
    probabilities: np.ndarray
    feature_maps: np.ndarray
    decisions: tuple[str, ...]
    prediction_sets: tuple[tuple[str, ...], ...]
    ood_score: np.ndarray
    ood_threshold: float
    transforms: tuple[CropTransform, ...]
    inputs: np.ndarray
    model_id: str
    weights_sha256: str
    engine: str
    precision: str
    elapsed_ms: float


@dataclass(frozen=True)
class Explanation:
    """Where one class logit finds its evidence in one slice.

    Attributes
    ----------
    saliency_map : ndarray of shape (height, width), float32
        In [0, 1], in the original image's coordinates; all zeros where there is no positive evidence.
    grid : ndarray of shape (rows, columns), float32
        The raw map before upsampling and normalisation, on the layer's grid.
    method, target_class, layer_name : str
    peak : (row, column) or None
        Of the map's maximum, original pixels; None for an all-zero map.
    """

    saliency_map: np.ndarray
    grid: np.ndarray
    method: str
    target_class: str
    layer_name: str
    peak: tuple[int, int] | None
    elapsed_ms: float


@dataclass(frozen=True)
class Analysis:
    """One slice with the answer to it: what a page shows, the command line prints and the database keeps.

    ``label`` is None unless ``decision`` is ``"class"``. ``probabilities`` maps class name to calibrated probability.
    """

    slice: MRISlice
    decision: str
    label: str | None
    prediction_set: tuple[str, ...]
    probabilities: dict[str, float]
    ood_score: float
    ood_threshold: float
    transform: CropTransform
    network_input: np.ndarray
    feature_maps: np.ndarray
    logits: np.ndarray
    model_id: str
    weights_sha256: str
    engine: str
    precision: str
    elapsed_ms: float
    explanations: tuple[Explanation, ...] = field(default=())
