"""Where a slice lies in the patient: letters at its edges, plane, position along the stack (DICOM PS3.3 C.7.6.2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np

_LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))  # negative and positive end of the patient's x, y, z axis
_OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}
_FROM_DICOM = {**{letter: letter for letter in "LRAP"}, "H": "S", "F": "I"}
_PLANES = ("sagittal", "coronal", "axial")
_TOPS = {"sagittal": "S", "coronal": "S", "axial": "A"}
"""What is at the top of the pictures that the network learnt from."""
_TURNED_DEGREES = 20

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
    right, bottom = (
        _LETTERS[axis][int(vector[axis] > 0)] for axis, vector in zip(_axes(cosines), cosines, strict=True)
    )
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
    return _PLANES[_main_axis(np.cross(*cosines))]


def obliqueness_degrees(cosines: np.ndarray) -> float:
    """Angle between the slice's normal and the nearest axis of the patient, degrees in [0, 55]."""
    normal = np.abs(np.cross(*cosines))
    return float(np.degrees(np.arccos(np.clip(normal.max() / np.linalg.norm(normal), -1, 1))))


def stack_normal(cosines: np.ndarray) -> np.ndarray:
    """Direction along which a stack is ordered: what Image Position (Patient) of all its slices is projected on.

    It points to the patient's left, back or head, so that slices run right to left, front to back or feet to head
    whichever way the pictures are turned. One for a stack: of slices tilted by 45 degrees rounding decides where each
    one's own points.

    Returns
    -------
    ndarray of shape (3,), float64
        Of length 1.
    """
    normal = np.cross(*cosines)
    return normal * np.sign(normal[_main_axis(normal)])


def orientation_notes(cosines: np.ndarray) -> list[str]:
    """Say what a reader could mistake: the side convention, a turned picture and a tilt."""
    notes = []
    letters, plane = edge_letters(cosines), plane_of(cosines)
    if letters[0] == "L":
        notes.append("the patient's left is at the left of the picture")
    if letters[2] != _TOPS[plane]:
        notes.append(f"{letters[2]} is at the top, not {_TOPS[plane]} as in the pictures that the network learnt from")
    axis = _axes(cosines)[0]
    turn = np.degrees(np.arctan2(abs(cosines[1, axis]), abs(cosines[0, axis])))
    if turn > _TURNED_DEGREES:
        notes.append(f"turned in its plane by {turn:.0f} degrees; letters name the nearest side")
    if (tilt := obliqueness_degrees(cosines)) > _TURNED_DEGREES:
        notes.append(f"oblique: {tilt:.0f} degrees off {plane}; letters name the nearest side")
    return notes


def _main_axis(vector: np.ndarray) -> int:
    """The patient's axis along which a vector runs most nearly; of two equal ones the first."""
    return int(np.abs(vector).round(3).argmax())


def _axes(cosines: np.ndarray) -> tuple[int, int]:
    """The patient's axes, two different ones, along which rows and columns run most nearly."""
    row, column = np.abs(cosines)
    return max(permutations(range(3), 2), key=lambda axes: row[axes[0]] + column[axes[1]])
