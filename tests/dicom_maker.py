"""Small DICOM files made for tests: a bright disc in a 64 x 48 slice, tags as asked."""

from __future__ import annotations

import io
import zipfile

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

STUDY, SERIES = "1.2.3.4", "1.2.3.4.5"
AXIAL = [1, 0, 0, 0, 1, 0]


def picture(seed: int = 0, shape: tuple[int, int] = (64, 48)) -> np.ndarray:
    """12-bit values: a textured disc on a dark ground."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    disc = rows**2 + columns**2 < 0.7
    return (disc * (900 + 400 * np.sin(7 * rows + seed)) + rng.integers(0, 60, shape)).astype(np.uint16)


def dataset(values: np.ndarray | None = None, **tags) -> FileDataset:
    """An MR data set; a tag given as None is left out."""
    values = picture() if values is None else values
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = tags.get("SOPClassUID", MRImageStorage)
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    defaults = {
        "SOPClassUID": MRImageStorage,
        "SOPInstanceUID": generate_uid(
            entropy_srcs=[str(tags.get("InstanceNumber", 1)), str(tags.get("SeriesInstanceUID"))]
        ),
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": SERIES,
        "Modality": "MR",
        "ImageType": ["ORIGINAL", "PRIMARY", "M"],
        "PatientName": "Müller^Johanna Maria",
        "PatientID": "HOSPITAL-K4711Q",
        "PatientBirthDate": "19610203",
        "PatientSex": "F",
        "StudyDate": "20240405",
        "StudyTime": "101112",
        "InstitutionName": "St. Elsewhere",
        "ReferringPhysicianName": "Doktor^Who",
        "SeriesDescription": "t1_mprage_ax Mrs Mueller",
        "SpecificCharacterSet": "ISO_IR 192",
        "InstanceNumber": 1,
        "SeriesNumber": 3,
        "ImageOrientationPatient": AXIAL,
        "ImagePositionPatient": [-60, -80, 0],
        "PixelSpacing": [0.9, 0.9],
        "Rows": values.shape[-2],
        "Columns": values.shape[-1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": values.dtype.itemsize * 8,
        "BitsStored": values.dtype.itemsize * 8,
        "HighBit": values.dtype.itemsize * 8 - 1,
        "PixelRepresentation": int(values.dtype.kind == "i"),
    }
    for keyword, value in {**defaults, **tags}.items():
        if value is not None:
            setattr(ds, keyword, value)
    ds.PixelData = values.tobytes()
    meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "1.2")
    return ds


def to_bytes(ds: FileDataset) -> bytes:
    """The file."""
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicom(values: np.ndarray | None = None, **tags) -> bytes:
    """`dataset` as a file."""
    return to_bytes(dataset(values, **tags))


def stack(n: int = 6, **tags) -> dict[str, bytes]:
    """Files of an axial series, feet to head by 5 mm, under names in no order."""
    files = {}
    for i in range(n):
        position = [-60, -80, 5.0 * i]
        name = f"IM{(i * 7) % n:03d}.dcm"
        files[name] = dicom(picture(i), InstanceNumber=i + 1, ImagePositionPatient=position, **tags)
    return files


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip of files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def enhanced(n: int = 3) -> bytes:
    """An enhanced multi-frame file: geometry, window and rescale in functional groups, frames head to feet."""
    values = np.stack([picture(i) for i in range(n)])
    ds = dataset(
        values,
        SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1",
        NumberOfFrames=n,
        ImageOrientationPatient=None,
        ImagePositionPatient=None,
        PixelSpacing=None,
        InstanceNumber=None,
    )

    def item(**tags) -> Sequence:
        inner = Dataset()
        for keyword, value in tags.items():
            setattr(inner, keyword, value)
        return Sequence([inner])

    shared = Dataset()
    shared.PixelMeasuresSequence = item(PixelSpacing=[0.5, 0.5])
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=AXIAL)
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for i in range(n):
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=[0, 0, 10.0 * (n - i)])
        frame.FrameVOILUTSequence = item(WindowCenter=600 + 10 * i, WindowWidth=1200)
        frame.PixelValueTransformationSequence = item(RescaleSlope=2, RescaleIntercept=-i, RescaleType="US")
        frame.FrameContentSequence = item(FrameReferenceDateTime="20240405101112")
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return to_bytes(ds)
