"""Where a slice lies in the patient: letters at its edges, plane, position along the stack (DICOM PS3.3 C.7.6.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))  # negative and positive end of the patient's x, y, z axis
_OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}
_FROM_DICOM = {**{letter: letter for letter in "LRAP"}, "H": "S", "F": "I"}
_PLANES = ("sagittal", "coronal", "axial")

Letters = tuple[str, str, str, str]


def checked_cosines(values: Sequence[float] | None) -> np.ndarray | None:
    """Give Image Orientation (Patient) as two unit row vectors, or None where it is no orthonormal pair.

    Parameters
    ----------
    values : six floats or None
        Direction of growing column index, then of growing row index.

    Returns
    -------
    ndarray of shape (2, 3), float64, or None
    """
    if values is None or len(values) != 6 or not np.all(np.isfinite(values)):
        return None
    cosines = np.asarray(values, np.float64).reshape(2, 3)
    lengths = np.linalg.norm(cosines, axis=1)
    if np.any(np.abs(lengths - 1) > 0.05) or abs(float(cosines[0] @ cosines[1])) > 0.05:
        return None
    return cosines / lengths[:, None]


def edge_letters(cosines: np.ndarray) -> Letters:
    """Name the patient's side at the (left, right, top, bottom) edge of the picture: one of L R A P S I each."""
    right, bottom = (_letter(vector) for vector in cosines)
    return _OPPOSITE[right], right, _OPPOSITE[bottom], bottom


def letters_from_patient_orientation(values: Sequence[str]) -> Letters | None:
    """Fall back on Patient Orientation (0020,0020), where it names two different axes."""
    if len(values) != 2 or not all(values):
        return None
    right, bottom = (_FROM_DICOM.get(str(value)[0].upper()) for value in values)
    if right is None or bottom is None or bottom in (right, _OPPOSITE[right]):
        return None
    return _OPPOSITE[right], right, _OPPOSITE[bottom], bottom


def plane_of(cosines: np.ndarray) -> str:
    """Name the nearest of the three planes."""
    return _PLANES[int(np.abs(np.cross(*cosines)).argmax())]


def obliqueness_degrees(cosines: np.ndarray) -> float:
    """Angle between the slice's normal and the nearest axis of the patient, degrees in [0, 55]."""
    normal = np.abs(np.cross(*cosines))
    return float(np.degrees(np.arccos(np.clip(normal.max() / np.linalg.norm(normal), -1, 1))))


def stack_position_mm(cosines: np.ndarray, position: Sequence[float]) -> float:
    """Project Image Position (Patient) on the slice's normal: what a stack is ordered by, millimetres.

    The normal points to the patient's left, back or head, so that slices run right to left, front to back or feet to
    head whichever way the pictures are turned.
    """
    normal = np.cross(*cosines)
    normal = normal * np.sign(normal[int(np.abs(normal).argmax())])
    return float(normal @ np.asarray(position, np.float64))


def orientation_notes(cosines: np.ndarray) -> list[str]:
    """Say what a reader could mistake: the side convention and a tilt."""
    notes = []
    letters = edge_letters(cosines)
    if letters[0] == "L":
        notes.append("the patient's left is at the left of the picture")
    if (tilt := obliqueness_degrees(cosines)) > 20:
        notes.append(f"oblique: {tilt:.0f} degrees off {plane_of(cosines)}; letters name the nearest side")
    return notes


def _letter(vector: np.ndarray) -> str:
    axis = int(np.abs(vector).argmax())
    return _LETTERS[axis][int(vector[axis] > 0)]
