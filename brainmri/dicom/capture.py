"""A picture -> a DICOM Secondary Capture object (PS3.3 A.8.1) that files itself beside the series it is about."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from brainmri import __version__

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset
    from pydicom.uid import UID

_COPIED = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Patient and study (PS3.3 C.7.1.1, C.7.2.1): the picture belongs to the same ones."""
_MAY_BE_EMPTY = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
SERIES_NUMBER = 9900
"""High, so that it comes after what the scanner made."""


def secondary_capture(
    original: Dataset, pixels: np.ndarray, *, description: str, comment: str, source: str
) -> FileDataset:
    """Make a Secondary Capture object of a picture about an image.

    Parameters
    ----------
    original : Dataset
        The image that the picture is about, as it came: its patient and study are the new object's.
    pixels : ndarray of shape (height, width, 3), uint8
        RGB.
    description : str
        Series description, at most 64 characters.
    comment : str
        Image comment, ASCII.
    source : str
        What made it, such as model and weights: the same picture of the same source is the same object, sent again.

    Returns
    -------
    FileDataset
        Explicit VR Little Endian.
    """
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    now = datetime.now(UTC).astimezone()
    series = f"{source} {original.SeriesInstanceUID}"
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(f"{series} {original.SOPInstanceUID}")
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for keyword in _COPIED:
        if keyword in original:
            ds[keyword] = original[keyword]
    for keyword in (*_MAY_BE_EMPTY, "AccessionNumber", "ReferringPhysicianName"):
        if keyword not in ds:
            setattr(ds, keyword, None)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.SeriesInstanceUID = _uid(series)
    ds.SeriesNumber, ds.InstanceNumber = SERIES_NUMBER, 1
    ds.SeriesDescription = description[:64]
    ds.Modality, ds.ConversionType, ds.BodyPartExamined = "OT", "SYN", "BRAIN"
    ds.Manufacturer, ds.ManufacturerModelName, ds.SoftwareVersions = "brainmri", source[:64], __version__
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.DerivationDescription = "Answer of a neural network with its Grad-CAM map. Research only."
    ds.ImageComments = comment
    ds.SeriesDate = ds.ContentDate = ds.DateOfSecondaryCapture = now.strftime("%Y%m%d")
    ds.SeriesTime = ds.ContentTime = ds.TimeOfSecondaryCapture = now.strftime("%H%M%S")
    about = Dataset()
    about.ReferencedSOPClassUID, about.ReferencedSOPInstanceUID = original.SOPClassUID, original.SOPInstanceUID
    ds.SourceImageSequence = [about]
    ds.PatientOrientation = None
    ds.BurnedInAnnotation = "NO"  # PS3.3 C.7.6.1: of whose picture it is; what is written says nothing of it
    ds.LossyImageCompression = "00"
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    content = np.ascontiguousarray(pixels, np.uint8).tobytes()
    ds.PixelData = content + b"\0" * (len(content) % 2)
    return ds


def _uid(text: str) -> UID:
    """The same for the same text, below 2.25, where no root of one's own is needed (PS3.5 B.2)."""
    from pydicom.uid import UID

    return UID(f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], 'big')}")
