"""DICOM in: single files, multi-frame files and zips or folders of a series, de-identified on the way."""

from brainmri.dicom.reading import is_dicom, is_zip, read_files, read_folder, read_series, read_slices
from brainmri.dicom.series import DicomFrame, Reading, Series, SeriesAnswer, SetAside, answer_series
from brainmri.dicom.windows import Window, percentile_window

__all__ = [
    "DicomFrame",
    "Reading",
    "Series",
    "SeriesAnswer",
    "SetAside",
    "Window",
    "answer_series",
    "is_dicom",
    "is_zip",
    "percentile_window",
    "read_files",
    "read_folder",
    "read_series",
    "read_slices",
]
