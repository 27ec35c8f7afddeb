"""Image folders and manifests -> one table; class names and their aliases; the Kaggle download."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from brainmri.errors import DataError
from brainmri.imaging import decode_image
from brainmri.types import CLASS_NAMES, MRISlice

KAGGLE_DATASET = "masoudnickparvar/brain-tumor-mri-dataset"
KAGGLE = "brain_tumor_mri"
"""That data set's name here: of its folder, its manifest and its runs."""
SPLITS_DIRECTORY = Path(__file__).resolve().parent.parent / "data" / "splits"
UNKNOWN_TUMOUR = "tumour"
"""Label of a tumour whose type is not known: counts in tumour-against-none figures only."""

_ALIASES = {
    "glioma": "glioma",
    "meningioma": "meningioma",
    "notumor": "notumor",
    "notumour": "notumor",
    "normal": "notumor",
    "healthy": "notumor",
    "no": "notumor",
    "pituitary": "pituitary",
    "tumour": UNKNOWN_TUMOUR,
    "tumor": UNKNOWN_TUMOUR,
    "yes": UNKNOWN_TUMOUR,
}
_FOLDERS = {"Training": "train", "Testing": "test"}
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"}


def canonical_label(label: str) -> str:
    """Map a class name as data sets spell it (``no_tumor``, ``glioma_tumor`` ...) to the package's.

    Raises
    ------
    DataError
        Not a known class.
    """
    key = "".join(c for c in str(label).lower() if c.isalpha())
    for name in (key, key.removesuffix("tumor"), key.removesuffix("tumour")):
        if name in _ALIASES:
            return _ALIASES[name]
    raise DataError(f"unknown class '{label}'; expected one of {', '.join(CLASS_NAMES)} (or '{UNKNOWN_TUMOUR}')")


def read_folder(root: Path | str) -> pd.DataFrame:
    """List the Kaggle layout ``Training|Testing/<class>/*``.

    Returns
    -------
    DataFrame
        ``path`` (relative), ``file`` (absolute), ``label``, ``split`` (train / test), ``group`` (one per image).

    Raises
    ------
    DataError
        No such folders, or none with an image.
    """
    root = Path(root)
    rows = []
    for folder, split in _FOLDERS.items():
        for class_folder in sorted(p for p in (root / folder).glob("*") if p.is_dir()):
            label = canonical_label(class_folder.name)
            for file in sorted(class_folder.iterdir()):
                if file.suffix.lower() in _SUFFIXES:
                    rows.append((file.relative_to(root).as_posix(), label, split))
    if not rows:
        raise DataError(f"{root}: expected Training/<class>/* and Testing/<class>/* with images; {fetch_hint(root)}")
    return _finish(pd.DataFrame(rows, columns=["path", "label", "split"]), root)


def read_manifest(manifest: Path | str, root: Path | str | None = None, split_column: str = "split") -> pd.DataFrame:
    """Read a CSV with ``path``, ``label`` and a split column; its other columns are kept as text.

    Parameters
    ----------
    root : path, optional
        What ``path`` is relative to; default the manifest's folder.
    split_column : str
        Which column becomes ``split``.

    Returns
    -------
    DataFrame
        ``path``, ``file``, ``label``, ``split``, ``group`` (the row number where the manifest says none) and the rest.

    Raises
    ------
    DataError
        Unreadable, empty, without the columns, or with a label outside the classes (rows are named).
    """
    manifest = Path(manifest)
    try:
        table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{manifest}: not a readable CSV ({error})") from error
    missing = [c for c in ("path", "label", split_column) if c not in table.columns]
    if missing:
        raise DataError(f"{manifest.name}: no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    if table.empty:
        raise DataError(f"{manifest.name}: has no rows")
    labels = {}
    for label in table["label"].unique():
        try:
            labels[label] = canonical_label(label)
        except DataError as error:
            row = int(np.flatnonzero(table["label"] == label)[0]) + 2
            raise DataError(f"{manifest.name}, line {row}: {error}") from error
    table["label"] = table["label"].map(labels)
    table["split"] = table[split_column]
    return _finish(table, Path(root) if root is not None else manifest.parent)


def _finish(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    table["file"] = [str(root / p) for p in table["path"]]
    alone = pd.Series([str(i) for i in range(len(table))], index=table.index)
    table["group"] = table["group"].where(table["group"] != "", alone) if "group" in table else alone
    return table


def select_split(table: pd.DataFrame, split: str, *, require_files: bool = True) -> pd.DataFrame:
    """Rows of one split.

    Raises
    ------
    DataError
        An empty split (lists those there are), or files that are missing (counted, the first ones named).
    """
    rows = table[table["split"] == split].reset_index(drop=True)
    if rows.empty:
        known = ", ".join(sorted(s for s in table["split"].unique() if s)) or "none"
        raise DataError(f"split '{split}' is empty; splits here: {known}")
    if require_files:
        missing = [p for p, f in zip(rows["path"], rows["file"], strict=True) if not Path(f).is_file()]
        if missing:
            root = Path(rows["file"].iloc[0][: -len(rows["path"].iloc[0])])
            some = f"{len(missing)} of {len(rows)} images are missing under {root} (first: {missing[0]})"
            kaggle = missing[0].split("/")[0] in _FOLDERS
            where = "is that the folder the paths start from? 'brainmri data fetch' brings the Kaggle set alone"
            raise DataError(f"{some}; {fetch_hint(root) if kaggle else where}")
    return rows


def clean_leaks() -> pd.DataFrame:
    """Held-out images that show a slice which the networks trained on.

    Made by ``scripts/clean_leaks.py``.

    Returns
    -------
    DataFrame
        ``collection``, ``path``, ``split``; ``copy_collection`` and ``copy_of``: a training image of the same slice, or
        of the same place of the same head; ``found_by``: ``audit`` or ``crop``.
    """
    return pd.read_csv(SPLITS_DIRECTORY / "clean_leaks.csv", dtype=str)


def read_slice(file: Path | str) -> MRISlice:
    """Decode one image file; errors as `imaging.decode_image`."""
    file = Path(file)
    return decode_image(file.read_bytes(), file.name, max_size_bytes=1 << 30)


def read_pixels(file: Path | str) -> np.ndarray:
    """Grey display intensities of one image file, uint8 (height, width); errors as `imaging.decode_image`."""
    return read_slice(file).pixels


def read_mask(file: Path | str) -> np.ndarray:
    """An expert's tumour mask, bool (height, width)."""
    with Image.open(file) as image:
        return np.asarray(image.convert("L")) > 127


def fetch_hint(root: Path | str) -> str:
    """One line that says how the data set gets to where it is expected."""
    return f"run 'brainmri data fetch', or {_by_hand(root)}"


def _by_hand(root: Path | str) -> str:
    return (
        f"download {KAGGLE_DATASET} from kaggle.com by hand and put its Training/ and "
        f"Testing/ folders into {root} (data.root in config.yaml, or BRAINMRI_DATA)"
    )


def fetch(root: Path | str) -> Path:
    """Download the Kaggle data set with kagglehub into ``root``.

    Raises
    ------
    DataError
        No network or no kagglehub, or ``root`` already holds something else; says how to do it by hand.
    """
    root = Path(root)
    if all((root / folder).is_dir() for folder in _FOLDERS):
        return root
    try:
        import kagglehub

        source = Path(kagglehub.dataset_download(KAGGLE_DATASET))
    except Exception as error:  # kagglehub lets requests', urllib3's and its own errors through
        raise DataError(
            f"{KAGGLE_DATASET} could not be downloaded ({type(error).__name__}); {_by_hand(root)}"
        ) from error
    root.mkdir(parents=True, exist_ok=True)
    for folder in (f for f in _FOLDERS if not (root / f).is_dir()):
        copied = root / f"{folder}.part"  # whole or not there: half a folder would pass for the set
        shutil.copytree(source / folder, copied, dirs_exist_ok=True)
        copied.rename(root / folder)
    return root
