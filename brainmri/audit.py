"""What is wrong with an image set before anything is trained on it: copies, leaks between splits, label conflicts.

Every picture becomes a 64 x 64 thumbnail. Two descriptors of it are compared by correlation, which brightness and
contrast do not change: the thumbnail itself, and its fine structure (high-passed), which tells neighbouring slices
apart. The fine structure is two bands, and a pair may weigh them differently: a sharpened or softened copy is a copy.
Candidates come from a nearest-neighbour graph (HNSW) over a projection of the fine structure, asked with each of the
eight ways a picture can be turned and mirrored. The cost grows faster than n log n where a set grows by copies: the
more copies a picture has, the more of its neighbours are compared in full, up to all of them (docs/audit.md has times).
"""

from __future__ import annotations

import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainmri.data import canonical_label
from brainmri.errors import BrainMRIError, DataError

SIDE = 64
MIN_CORRELATION = 0.90
MIN_DETAIL_CORRELATION = 0.94
"""Both must be reached for two pictures to count as the same slice; docs/audit.md says what other values would find."""

PROJECTED = 128
NEIGHBOURS = 24
FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}
ORIENTATIONS = ("as it is", "mirrored", "rotated 90°", "rotated 90°, mirrored", "rotated 180°",
                "rotated 180°, mirrored", "rotated 270°", "rotated 270°, mirrored")  # fmt: skip
"""Index: quarter turns * 2 + mirrored, of the second picture of a pair to match the first."""

NEEDED = {"name", "n_images", "n_groups", "splits", "leaks", "label_conflicts", "second_labels", "proposed_split",
          "cost"}  # fmt: skip
"""What the page reads of every audit."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes
    ----------
    summary : dict
        ``audit.json``: counts, thresholds, leaks per pair of splits and class, cost.
    images : DataFrame
        ``groups.csv``: ``path``, ``label``, ``split``, ``group``, ``proposed_split``, ``height``, ``width``.
    pairs : DataFrame
        ``pairs.csv``: direct links ``first``, ``second`` with ``kind``, ``orientation``, ``correlation``,
        ``detail_correlation``, both labels and splits.
    """

    summary: dict[str, Any]
    images: pd.DataFrame
    pairs: pd.DataFrame

    def save(self, directory: Path | str, *, compressed: bool = False) -> None:
        """Write ``audit.json``, ``groups.csv`` and ``pairs.csv`` (``compressed``: the tables as ``.csv.gz``)."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        # No time stamp inside: the same audit gives the same file.
        how = {"compression": {"method": "gzip", "compresslevel": 9, "mtime": 0}} if compressed else {}
        suffix, other = (".gz", "") if compressed else ("", ".gz")
        # All is written before any of an older audit goes: a full disk costs the new one only.
        with tempfile.TemporaryDirectory(dir=directory, prefix=".new-") as fresh:
            for name, table in (("groups.csv", self.images), ("pairs.csv", self.pairs)):
                table.to_csv(Path(fresh) / f"{name}{suffix}", index=False, **how)
            text = json.dumps(self.summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            (Path(fresh) / "audit.json").write_text(text, "utf-8")
            for name in ("groups.csv", "pairs.csv"):
                os.replace(Path(fresh) / f"{name}{suffix}", directory / f"{name}{suffix}")
                (directory / f"{name}{other}").unlink(missing_ok=True)
            os.replace(Path(fresh) / "audit.json", directory / "audit.json")

    @classmethod
    def load(cls, directory: Path | str) -> Audit:
        """Open a saved audit.

        Raises
        ------
        DataError
            None there, or a damaged one.
        """
        directory = Path(directory)
        text = dict.fromkeys(("path", "label", "split", "proposed_split", "first", "second", "split_first",
                              "split_second", "label_first", "label_second", "kind", "orientation"), str)  # fmt: skip
        tables = []
        try:
            summary = json.loads((directory / "audit.json").read_text("utf-8"))
            for name in ("groups.csv", "pairs.csv"):
                file = directory / name
                file = file if file.is_file() else directory / f"{name}.gz"
                tables.append(pd.read_csv(file, dtype=text, keep_default_na=False))
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{directory}: no saved audit there ({error}); run 'brainmri audit'") from error
        if not isinstance(summary, dict) or not set(summary) >= NEEDED:
            raise DataError(f"{directory}/audit.json: not what 'brainmri audit' writes; run it again")
        return cls(summary, *tables)

    def proposed(self) -> pd.DataFrame:
        """The proposed split as a manifest: ``path``, ``label``, ``split``, ``group``."""
        table = self.images[["path", "label", "proposed_split", "group"]]
        return table.rename(columns={"proposed_split": "split"})


def audit(
    table: pd.DataFrame,
    *,
    name: str = "images",
    progress: Progress | None = None,
    threads: int | None = None,
    seed: int = 0,
) -> Audit:
    """Audit a table of images.

    Parameters
    ----------
    table : DataFrame
        ``path``, ``file``, ``label``, ``split`` as `data.read_folder` and `data.read_manifest` give them; slices of
        one ``patient``, where that column exists and is not empty, are kept together in the proposed split.
    progress : callable, optional
        Called with a stage's name, images done and in all; an exception from it stops the audit.

    Raises
    ------
    DataError
        No rows, or no file that can be read.
    """
    if table.empty:
        raise DataError("there is nothing to audit: the table has no rows")
    start, cpu = time.perf_counter(), time.process_time()
    say: Progress = progress or (lambda stage, done, total: None)
    thumbnails, sizes, sha256, unreadable = _read(table, say, threads)
    usable = np.flatnonzero(sizes[:, 0] > 0)
    if not len(usable):
        raise DataError(f"none of {len(table)} files can be read (first: {unreadable[0]['error']})")
    rows = table.iloc[usable].reset_index(drop=True)
    if unreadable:
        thumbnails = thumbnails[usable]
    images = pd.DataFrame({"path": rows["path"], "label": rows["label"], "split": rows["split"]})
    images["height"], images["width"] = sizes[usable, 0], sizes[usable, 1]
    digests = np.array(sha256, object)[usable]
    pairs = _find_pairs(thumbnails, digests, say)
    images["group"] = _components(len(images), pairs["i"].to_numpy(), pairs["j"].to_numpy())
    patients = None
    if "patient" in rows.columns:
        patients = rows["patient"].astype("string").fillna("").str.strip().to_numpy(str)
    labels, groups = images["label"].to_numpy(str), images["group"].to_numpy()
    images["proposed_split"] = propose_split(labels, groups, patients=patients, seed=seed)
    for side in ("i", "j"):
        column = {"i": "first", "j": "second"}[side]
        pairs[column] = images["path"].to_numpy()[pairs[side]]
        pairs[f"label_{column}"] = images["label"].to_numpy()[pairs[side]]
        pairs[f"split_{column}"] = images["split"].to_numpy()[pairs[side]]
    pairs = pairs.drop(columns=["i", "j"])
    summary = {
        "name": name,
        # As it was named: an audit of a relative folder can ship, and names no folder of the machine that made it.
        "root": str(Path(str(table["file"].iloc[0]).removesuffix(table["path"].iloc[0]))),
        "n_images": len(table),
        "n_readable": len(images),
        "n_groups": int(images["group"].nunique()),
        "splits": {str(k): int(v) for k, v in images["split"].value_counts().items()},
        "classes": {str(k): int(v) for k, v in images["label"].value_counts().items()},
        "pairs": {str(k): int(v) for k, v in pairs["kind"].value_counts().items()},
        "unreadable": unreadable,
        "leaks": find_leaks(images),
        "label_conflicts": _conflicts(images),
        "second_labels": _second_labels(rows),
        "sizes": _sizes(images),
        "thresholds": {"correlation": MIN_CORRELATION, "detail_correlation": MIN_DETAIL_CORRELATION},
        "proposed_split": _describe_split(images),
        "cost": {
            "seconds": round(time.perf_counter() - start, 2),
            "cpu_seconds": round(time.process_time() - cpu, 2),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            "cpu_count": os.cpu_count(),
        },
    }
    columns = ["path", "label", "split", "group", "proposed_split", "height", "width"]
    return Audit(summary, images[columns], pairs)


# --- reading --------------------------------------------------------------------------------------------------------


def make_thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Box-averaged 64 x 64 copy, uint8."""
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX))


def _read(table: pd.DataFrame, say: Progress, threads: int | None):
    from brainmri.imaging import decode_image

    def one(file: str):
        try:
            content = Path(file).read_bytes()
            decoded = decode_image(content, Path(file).name, max_size_bytes=1 << 30)
            return make_thumbnail(decoded.pixels), decoded.pixels.shape, decoded.sha256, None
        except OSError as error:
            return None, (0, 0), "", f"{Path(file).name}: {error.strerror}"
        except BrainMRIError as error:
            return None, (0, 0), "", str(error)

    files, paths = table["file"].tolist(), table["path"].tolist()
    thumbnails = np.zeros((len(files), SIDE, SIDE), np.uint8)
    sizes, sha256, unreadable = np.zeros((len(files), 2), int), [""] * len(files), []
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for start in range(0, len(files), 256):
            for i, (small, shape, digest, error) in enumerate(pool.map(one, files[start : start + 256]), start):
                if small is None:
                    unreadable.append({"path": paths[i], "error": error})
                else:
                    thumbnails[i], sizes[i], sha256[i] = small, shape, digest
            say("reading", min(start + 256, len(files)), len(files))
    return thumbnails, sizes, sha256, unreadable


# --- copies ---------------------------------------------------------------------------------------------------------


def bands(thumbnails: np.ndarray) -> np.ndarray:
    """Fine structure in two bands: finer than a blur of 1.4 pixels, and from there to one of 4.

    Returns
    -------
    ndarray of shape (n, 2, 64, 64), float32
        Their sum is what a blur of 4 pixels takes away.
    """
    from scipy import ndimage

    values = thumbnails.astype(np.float32)
    soft, softer = (ndimage.gaussian_filter(values, (0, sd, sd)) for sd in (1.4, 4.0))
    return np.stack([values - soft, soft - softer], axis=1)


def detail(thumbnails: np.ndarray) -> np.ndarray:
    """Both bands together; float32 (n, 64, 64)."""
    from scipy import ndimage

    values = thumbnails.astype(np.float32)
    return values - ndimage.gaussian_filter(values, (0, 4, 4))


def detail_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Correlation of fine structure, the bands of either side weighed so that they fit best (weights not negative).

    Parameters
    ----------
    first, second : ndarray of shape (n, 2, ...)
        `bands` of the two pictures of each pair.

    Returns
    -------
    ndarray of shape (n,), -1 to 1
    """
    first, second = _centred(first), _centred(second)
    return _weighed_to_fit(_products(first, second), _products(first, first), _products(second, second))


def _centred(two_bands: np.ndarray) -> np.ndarray:
    return two_bands - two_bands.mean(axis=tuple(range(2, two_bands.ndim)), keepdims=True)


def _products(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Scalar products of either's bands; (n, 2, 2)."""
    first, second = (x.reshape(len(x), 2, int(np.prod(x.shape[2:]))) for x in (first, second))
    return first @ second.transpose(0, 2, 1)


def _weighed_to_fit(cross: np.ndarray, *own: np.ndarray) -> np.ndarray:
    """See `detail_correlation`; from the scalar products of centred bands."""
    plain = cross.sum(axis=(1, 2)) / np.sqrt(np.maximum(own[0].sum(axis=(1, 2)) * own[1].sum(axis=(1, 2)), 1e-9))
    best = plain
    for weighed, other, fit in ((own[0], own[1], cross.sum(axis=2)), (own[1], own[0], cross.sum(axis=1))):
        ridge = 1e-4 * np.trace(weighed, axis1=1, axis2=2)[:, None, None] * np.eye(2) + 1e-9 * np.eye(2)
        weights = np.maximum(np.linalg.solve(weighed + ridge, fit[..., None])[..., 0], 0)
        norm = np.einsum("nk,nkl,nl->n", weights, weighed, weights) * other.sum(axis=(1, 2))
        best = np.maximum(best, (weights * fit).sum(axis=1) / np.sqrt(np.maximum(norm, 1e-9)))
    return np.minimum(best, 1.0)


def _normalised(values: np.ndarray) -> np.ndarray:
    flat = values.reshape(len(values), int(np.prod(values.shape[1:]))).astype(np.float32)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def reorient(images: np.ndarray, orientation: int) -> np.ndarray:
    """Images (..., side, side) turned and mirrored as `ORIENTATIONS` numbers it."""
    turned = np.rot90(images, orientation // 2, axes=(-2, -1))
    return turned[..., ::-1] if orientation % 2 else turned


def _find_pairs(thumbnails: np.ndarray, digests: np.ndarray, say: Progress) -> pd.DataFrame:
    verified = _verify(thumbnails, _candidates(thumbnails, say), say)
    pairs = pd.concat([verified, _same_files(digests)], ignore_index=True)
    pairs = pairs.sort_values("detail", ascending=False).drop_duplicates(["i", "j"]).sort_values(["i", "j"])
    same_file = digests[pairs["i"].to_numpy(int)] == digests[pairs["j"].to_numpy(int)]
    turned = pairs["orientation"].to_numpy()
    kind = np.select([same_file, turned == 1, turned > 1, pairs["detail"] > 0.999], range(4), 4)
    # As objects a million rows share these few strings.
    pairs["kind"] = np.array(["same file", "mirrored", "rotated", "same picture", "near copy"], object)[kind]
    pairs["orientation"] = np.array(ORIENTATIONS, object)[turned]
    pairs["correlation"] = pairs["correlation"].round(4)
    pairs["detail_correlation"] = pairs.pop("detail").round(4)
    return pairs.reset_index(drop=True)


def _candidates(thumbnails: np.ndarray, say: Progress) -> np.ndarray:
    """Pairs that may be copies: two indices and an orientation; int32 (3, n)."""
    import faiss

    n = len(thumbnails)
    project = _projection(thumbnails)
    index = faiss.IndexHNSWFlat(PROJECTED, 16)
    index.hnsw.efConstruction, index.hnsw.efSearch = 60, 48
    step = 1024
    for start in range(0, n, step):
        index.add(project(_halved(thumbnails[start : start + step]), 0))
        say("indexing", min(start + step, n), n)
    k = min(NEIGHBOURS + 1, n)
    found = []
    for start in range(0, n, step):
        halved = _halved(thumbnails[start : start + step])
        for orientation in range(8):
            distance, neighbour = index.search(project(halved, orientation), k)
            # |a - b|^2 = 2 - 2 cos; the projection loses some of the correlation, so the candidates' bar is lower.
            near = (distance < 2 - 2 * (MIN_DETAIL_CORRELATION - 0.14)) & (neighbour >= 0)
            i, column = np.nonzero(near)
            j = neighbour[i, column]
            # Orientations other than mirrored-in-place come in inverse pairs; keep each pair of pictures once.
            keep = (i + start) < j
            found.append(np.stack([i[keep] + start, j[keep], np.full(keep.sum(), orientation)]).astype(np.int32))
        say("searching", min(start + step, n), n)
    return np.concatenate(found, axis=1)


def _halved(thumbnails: np.ndarray) -> np.ndarray:
    """Fine structure at half the size, which is all that candidates need; float32 (n, 32, 32)."""
    return detail(thumbnails).reshape(len(thumbnails), SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4))


def _projection(thumbnails: np.ndarray, sample: int = 4000) -> Callable[[np.ndarray, int], np.ndarray]:
    """Principal axes of the halved fine structure, from a sample seen in all orientations."""
    chosen = np.random.default_rng(0).permutation(len(thumbnails))[:sample]
    seen = _halved(thumbnails[np.sort(chosen)])
    part = np.concatenate([_normalised(reorient(seen[o::8], o)) for o in range(8)])
    _, vectors = np.linalg.eigh(part.T @ part)
    axes = np.ascontiguousarray(vectors[:, -PROJECTED:], np.float32)

    def project(halved: np.ndarray, orientation: int) -> np.ndarray:
        projected = _normalised(reorient(halved, orientation)) @ axes
        # Unit length again: a picture with much noise must not look far from its own copy.
        return projected / np.maximum(np.linalg.norm(projected, axis=1, keepdims=True), 1e-6)

    return project


def _verify(thumbnails: np.ndarray, candidates: np.ndarray, say: Progress) -> pd.DataFrame:
    """Keep the candidates whose full correlations reach both thresholds, each pair in its best orientation.

    Parameters
    ----------
    candidates : ndarray of int, shape (3, n)
        Two indices in ``thumbnails``, and the orientation.
    """
    # Likely copies of one picture follow each other: most of a block's pairs are between the same few pictures.
    likely_group = _components(len(thumbnails), candidates[0], candidates[1])
    candidates = candidates[:, np.lexsort((candidates[2], candidates[0], likely_group[candidates[0]]))]
    n, step = candidates.shape[1], 1024
    kept = []
    for begin in range(0, n, step):
        first, second, orientations = candidates[:, begin : begin + step]
        pictures, at = np.unique(np.concatenate([first, second]), return_inverse=True)
        at_first, at_second = np.split(at, 2)
        fine_structure = _centred(bands(thumbnails[pictures]))
        own = _products(fine_structure, fine_structure)
        for orientation in np.unique(orientations):
            of = np.flatnonzero(orientations == orientation)
            cross = _products(reorient(fine_structure, orientation)[at_first[of]], fine_structure[at_second[of]])
            fine = _weighed_to_fit(cross, own[at_first[of]], own[at_second[of]])
            likely = fine >= MIN_DETAIL_CORRELATION
            i, j = first[of[likely]], second[of[likely]]
            plain = (_normalised(reorient(thumbnails[i], orientation)) * _normalised(thumbnails[j])).sum(axis=1)
            columns = {"i": i, "j": j, "orientation": orientation, "correlation": plain, "detail": fine[likely]}
            kept.append(pd.DataFrame(columns)[plain >= MIN_CORRELATION])
        say("comparing", min(begin + step, n), n)
    if not kept:
        kept = [pd.DataFrame({name: [] for name in ("i", "j", "orientation", "correlation", "detail")})]
    found = pd.concat(kept, ignore_index=True).sort_values("detail", ascending=False, kind="stable")
    whole = {"i": int, "j": int, "orientation": int, "correlation": np.float32, "detail": np.float32}
    return found.drop_duplicates(["i", "j"]).astype(whole)


def _same_files(digests: np.ndarray) -> pd.DataFrame:
    """Chains of byte-identical files: found by hash, whatever the index says."""
    order = np.argsort(digests, kind="stable")
    same = np.flatnonzero(digests[order][1:] == digests[order][:-1])
    i, j = np.minimum(order[same], order[same + 1]), np.maximum(order[same], order[same + 1])
    return pd.DataFrame({"i": i, "j": j, "orientation": 0, "correlation": 1.0, "detail": 1.0})


def _components(n: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = coo_matrix((np.ones(len(i), bool), (i.astype(int), j.astype(int))), shape=(n, n))
    return connected_components(links, directed=False)[1]


def _join(groups: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Groups that share a patient become one; an empty patient is nobody's and joins nothing."""
    named = patients != ""
    known, codes = np.unique(patients[named], return_inverse=True)
    n_groups = int(groups.max()) + 1
    return _components(n_groups + len(known), groups[named], n_groups + codes)[groups]


# --- what follows from the groups -------------------------------------------------------------------------------------


def find_leaks(images: pd.DataFrame) -> list[dict[str, Any]]:
    """For each ordered pair of splits: how many images of the first show a slice that is in the second too.

    Returns
    -------
    list of dict
        ``split``, ``also_in``, ``images``, ``of``, ``pairs``, and ``classes``: class to images.
    """
    splits = sorted(s for s in images["split"].unique() if s != "")
    sizes = images.groupby(["group", "split"]).size().unstack(fill_value=0)
    leaks = []
    for one in splits:
        part = images[images["split"] == one]
        for other in (s for s in splits if s != one):
            shared = sizes.loc[part["group"], other].to_numpy()
            hit = part[shared > 0]
            if len(hit):
                leaks.append(
                    {
                        "split": one,
                        "also_in": other,
                        "images": len(hit),
                        "of": len(part),
                        "pairs": int(shared.sum()),
                        "classes": {str(k): int(v) for k, v in hit["label"].value_counts().items()},
                    }
                )
    return leaks


def _conflicts(images: pd.DataFrame) -> list[dict[str, Any]]:
    """Groups whose copies carry different labels."""
    differing = images[images.groupby("group")["label"].transform("nunique") > 1]
    return [
        {"group": int(group), "images": part[["path", "label"]].to_dict("records")}
        for group, part in differing.groupby("group")
    ]


def _second_labels(rows: pd.DataFrame) -> list[dict[str, str]]:
    """Images that another label column of the manifest (``*_label``) calls a different class."""
    found = []
    for column in (c for c in rows.columns if c.endswith("_label")):
        for path, label, other in zip(rows["path"], rows["label"], rows[column], strict=True):
            if not other:
                continue
            try:
                differs = canonical_label(other) != label
            except DataError:
                continue
            if differs:
                found.append({"path": path, "label": label, column: other})
    return found


def _sizes(images: pd.DataFrame) -> dict[str, Any]:
    counts = (images["width"].astype(str) + " x " + images["height"].astype(str)).value_counts()
    longest, shortest = images[["width", "height"]].max(axis=1), images[["width", "height"]].min(axis=1)
    odd = images[(shortest < 64) | (longest / shortest > 1.6)]
    return {
        "distinct": len(counts),
        "commonest": {str(k): int(v) for k, v in counts.head(5).items()},
        "odd": [{"path": p, "width": int(w), "height": int(h)} for p, w, h in
                zip(odd["path"], odd["width"], odd["height"], strict=True)][:200],
        "n_odd": len(odd),
    }  # fmt: skip


def propose_split(
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    patients: np.ndarray | None = None,
    fractions: dict[str, float] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Split whole groups so that every class has about the wanted share of its images in each part.

    In validation and test only one image of a group counts; its further copies become ``repeat``.

    Parameters
    ----------
    groups : ndarray
        Same value, same slice.
    patients : ndarray of str, optional
        All slices of a patient go to the same side, and each of them counts there; "" is a patient of its own.

    Returns
    -------
    ndarray of str
        ``train``, ``val``, ``test`` or ``repeat`` per image. No group, and no patient, is on two sides.
    """
    fractions = fractions or FRACTIONS
    rng = np.random.default_rng(seed)
    groups = np.unique(groups, return_inverse=True)[1]
    units = groups if patients is None else np.unique(_join(groups, patients), return_inverse=True)[1]
    classes, label = np.unique(labels, return_inverse=True)
    counts = np.zeros((units.max() + 1, len(classes)), int)
    np.add.at(counts, (units, label), 1)
    # A unit with several classes fills all of them; shares of a class, so that the rare ones weigh as much.
    shares = counts / counts.sum(axis=0)
    parts = np.array(list(fractions.values()))
    room = np.ones((len(parts), len(classes)))
    sides = np.zeros(len(counts), int)
    commonest, size = counts.argmax(axis=1), counts.sum(axis=1)
    for one in range(len(classes)):
        members = rng.permutation(np.flatnonzero(commonest == one))
        for unit in members[np.argsort(-size[members], kind="stable")]:  # large ones while there is room
            sides[unit] = np.argmax((room * shares[unit]).sum(axis=1))
            room[sides[unit]] -= shares[unit] / parts[sides[unit]]
    proposed = np.array(list(fractions), "U6")[sides[units]]
    proposed[pd.Series(groups).duplicated().to_numpy() & (proposed != "train")] = "repeat"
    return proposed


def _describe_split(images: pd.DataFrame) -> dict[str, Any]:
    counts = images.groupby(["proposed_split", "label"]).size().unstack(fill_value=0)
    table = {str(s): {str(c): int(v) for c, v in row.items()} for s, row in counts.iterrows()}
    return {
        "counts": table,
        "leaks": find_leaks(images.assign(split=images["proposed_split"]).query("split != 'repeat'")),
    }


# --- how good is the audit? -------------------------------------------------------------------------------------------


def check(found: Audit, known: pd.DataFrame) -> dict[str, Any]:
    """Hold an audit to a manifest that knows which images show the same slice.

    Parameters
    ----------
    known : DataFrame
        Indexed by path, text: ``group`` (same number, same slice), ``official_split``, ``figshare_index`` (or "").

    Returns
    -------
    dict
        ``found_share`` of the ``n_known`` pairs that ``group`` joins across the splits. Of the direct links,
        ``wrong_share`` are two slices of figshare, ``wrong_share_of_comparable`` of those with both indices. The same
        of all pairs within a group, where one wrong link joins more than two pictures: ``wrong_share_in_groups`` of
        the ``n_comparable_in_groups``.
    """
    sides = known.reset_index(names="path").groupby("official_split")
    one, other = sides.get_group("train"), sides.get_group("test")
    pairs = one[["path", "group"]].merge(other[["path", "group"]], on="group")
    group = found.images.set_index("path")["group"]
    joined = group.reindex(pairs["path_x"]).to_numpy() == group.reindex(pairs["path_y"]).to_numpy()
    index = known["figshare_index"]
    first, second = index.loc[found.pairs["first"]].to_numpy(), index.loc[found.pairs["second"]].to_numpy()
    comparable = (first != "") & (second != "")
    wrong = int((comparable & (first != second)).sum())
    numbered = pd.DataFrame({"group": group, "index": index.reindex(group.index, fill_value="")}).query("index != ''")
    in_groups = _count_pairs(numbered.groupby("group").size())
    wrong_in_groups = in_groups - _count_pairs(numbered.groupby(["group", "index"]).size())
    return {
        "n_known": len(pairs),
        "found_share": round(float(joined.mean()), 4),
        "n_reported": len(found.pairs),
        "n_comparable": int(comparable.sum()),
        "n_wrong": wrong,
        "wrong_share": round(wrong / max(len(found.pairs), 1), 5),
        "wrong_share_of_comparable": round(wrong / max(int(comparable.sum()), 1), 4),
        "n_comparable_in_groups": in_groups,
        "n_wrong_in_groups": wrong_in_groups,
        "wrong_share_in_groups": round(wrong_in_groups / max(in_groups, 1), 4),
    }


def _count_pairs(sizes: pd.Series) -> int:
    """How many pairs sets of these sizes hold."""
    return int((sizes * (sizes - 1) // 2).sum())
