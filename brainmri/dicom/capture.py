"""A picture -> a DICOM Secondary Capture object (PS3.3 A.8.1) that files itself beside the series it is about."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from brainmri import __version__
from brainmri.dicom.deidentify import new_uid

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
_MAY_LACK = ("SpecificCharacterSet", "IssuerOfPatientID", "StudyInstanceUID", "StudyDescription")
"""Of these, what is left out where the original has none; the others are there and empty (type 2)."""
SERIES_NUMBER = 9900
"""High, so that it comes after what the scanner made."""


def secondary_capture(
    original: Dataset, pixels: np.ndarray, *, frame: int | None = None, description: str, comment: str, source: str
) -> FileDataset:
    """Make a Secondary Capture object of a picture about an image.

    Parameters
    ----------
    original : Dataset
        The image that the picture is about, as it came: its patient and study are the new object's.
    pixels : ndarray of shape (height, width, 3), uint8
        RGB.
    frame : int, optional
        Which frame of a multi-frame original it is about, from 1.
    description : str
        Series description, at most 64 characters.
    comment : str
        Image comment, ASCII.
    source : str
        What made it, such as model and weights. The same comment of the same source on the same image is the same
        object, sent again.

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
    meta.MediaStorageSOPInstanceUID = _uid(f"{series} {original.SOPInstanceUID} {frame} {comment}")
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for keyword in _COPIED:
        if keyword in original:
            ds[keyword] = original[keyword]
        elif keyword not in _MAY_LACK:
            setattr(ds, keyword, None)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.SeriesInstanceUID = _uid(series)
    ds.SeriesNumber = SERIES_NUMBER
    ds.InstanceNumber = frame or original.get("InstanceNumber") or 1
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
    if frame is not None:
        about.ReferencedFrameNumber = frame
    ds.SourceImageSequence = [about]
    ds.PatientOrientation = None
    # What is written says nothing of whose it is, but the original's pixels are in the picture.
    if original.get("BurnedInAnnotation"):
        ds.BurnedInAnnotation = original.BurnedInAnnotation
    ds.LossyImageCompression = "00"
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if keyword in original:  # once lossy, always lossy (PS3.3 C.7.6.1.1.5)
            ds[keyword] = original[keyword]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    content = np.ascontiguousarray(pixels, np.uint8).tobytes()
    ds.PixelData = content + b"\0" * (len(content) % 2)
    return ds


def _uid(text: str) -> UID:
    """The same for the same text."""
    from pydicom.uid import UID

    return UID(new_uid(text, b"capture"))
