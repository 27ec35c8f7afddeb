"""What an archive job costs beside the network: listing, a driver's dealing, memory, output. docs/scaling.md uses it.

    python benchmarks/limits.py [--names 100000] [--files 2048] [--chunks 512]

Prints JSON: files a second that one process lists and cuts into chunks; chunks a second that one Ray driver deals out
to workers that have nothing to do (their parts exist); peak memory of driver and workers of a small and a four times
larger job; bytes of output and seconds of joining parts, a row; milliseconds of reading a JPEG of 256 x 256 and an
uncompressed DICOM slice of 512 x 512, one after the other, with all that guards against hostile files.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER_FILES = 1000


def measure_listing(settings: Any, names: int) -> dict[str, Any]:
    """Empty files in folders of `FOLDER_FILES`."""
    from brainmri.archive import list_chunks, make_job

    with tempfile.TemporaryDirectory() as scratch:
        for start in range(0, names, FOLDER_FILES):
            folder = Path(scratch) / "images" / f"{start // FOLDER_FILES:06}"
            folder.mkdir(parents=True)
            for number in range(min(FOLDER_FILES, names - start)):
                (folder / f"{number:06}.dcm").touch()
        job = make_job(Path(scratch) / "images", Path(scratch) / "out", settings)
        start_time = time.perf_counter()
        chunks = sum(1 for _ in list_chunks(job))
        return {"files": names, "chunks": chunks, "files_per_second": names / (time.perf_counter() - start_time)}


def measure_dealing(settings: Any, chunks: int) -> dict[str, Any]:
    """Chunks that are done already, through Ray Data and two actors."""
    import ray

    from brainmri.archive import Chunk, make_job, schema, write_table
    from brainmri.scale import _on_ray

    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "images").mkdir()
        job = make_job(Path(scratch) / "images", Path(scratch) / "out", settings, workers=2)
        names = [f"part-{number:06}" for number in range(chunks)]
        for name in names:
            write_table(f"{job.parts}/{name}.parquet", [], schema())
        made = [Chunk(name, tuple(f"folder/{i:06}.dcm" for i in range(256))) for name in names]
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=200_000_000,
        )
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        try:
            times = [time.perf_counter() for _ in _on_ray(job, made, 2)]
        finally:
            ray.shutdown()
        warm = len(times) // 4
        return {"chunks": chunks, "chunks_per_second": (len(times) - warm - 1) / (times[-1] - times[warm])}


_JOB = """
import json, re, resource, sys
from pathlib import Path
from brainmri.archive import make_job, run_archive
from brainmri.config import load_settings
if __name__ == "__main__":
    job = make_job(sys.argv[1], sys.argv[2], load_settings(), workers=2)
    rows = run_archive(job, workers=2).rows
    # Not getrusage: what it says of a process includes the memory of the one that started it.
    own = int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    print(json.dumps({"driver_mib": own, "worker_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}))
"""


def measure_memory(settings: Any, files: int) -> dict[str, Any]:
    """Peak memory of a job and of one four times as large, and what a row of its output weighs."""
    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    from brainmri import archive
    from brainmri.synthetic import samples

    result: dict[str, Any] = {}
    pictures = [sample.slice.pixels for sample in samples().values()]
    with tempfile.TemporaryDirectory() as scratch:
        for n in (files // 4, files):
            root = Path(scratch) / f"images{n}"
            root.mkdir()
            for i in range(n):
                pixels = np.roll(pictures[i % len(pictures)], i % 17 - 8, axis=1)
                Image.fromarray(pixels).resize((256, 256)).save(root / f"{i:06}.jpg", quality=90)
            output = Path(scratch) / f"out{n}"
            done = subprocess.run(
                [sys.executable, "-c", _JOB, root, output], cwd=ROOT, capture_output=True, text=True, check=True
            )
            result[f"peak_{n}_files"] = json.loads(done.stdout)
        job = archive.make_job(root, output, settings)
        names = [chunk.name for chunk in archive.list_chunks(job)]
        size = sum((output / f"{name}.parquet").stat().st_size for name in names)
        start = time.perf_counter()
        archive._merge(str(output), names * 20, f"{scratch}/one.parquet", archive.schema(), "")
        rows = pq.read_metadata(f"{scratch}/one.parquet").num_rows
        result["joined_rows_per_second"] = rows / (time.perf_counter() - start)
        result["output_bytes_per_row"] = size / files
        result["input_bytes_per_file"] = sum(p.stat().st_size for p in root.iterdir()) / files
    return result


def measure_reading(settings: Any, files: int = 96) -> dict[str, float]:
    """Median over files, so that the start of the process that decodes DICOM does not count."""
    import io

    import numpy as np
    from PIL import Image
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    from brainmri.pipeline import read_file
    from brainmri.synthetic import samples

    picture = Image.fromarray(next(iter(samples().values())).slice.pixels)
    jpeg, values = io.BytesIO(), np.asarray(picture.resize((512, 512)), np.uint16) * 12
    picture.resize((256, 256)).save(jpeg, "JPEG", quality=90)

    def dicom(number: int) -> bytes:
        ds, content = Dataset(), io.BytesIO()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID, ds.SOPClassUID = ExplicitVRLittleEndian, MRImageStorage
        ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = (generate_uid() for _ in range(3))
        ds.Modality, ds.ImageType, ds.PatientID, ds.InstanceNumber = "MR", ["ORIGINAL", "PRIMARY"], "A", number
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, number]
        ds.PixelSpacing, ds.Rows, ds.Columns, ds.SamplesPerPixel = [0.45, 0.45], 512, 512, 1
        ds.PhotometricInterpretation, ds.BitsAllocated, ds.BitsStored = "MONOCHROME2", 16, 12
        ds.HighBit, ds.PixelRepresentation, ds.PixelData = 11, 0, values.tobytes()
        ds.save_as(content, enforce_file_format=True)
        return content.getvalue()

    result = {}
    for kind, contents in (("jpeg", [jpeg.getvalue()] * files), ("dicom", [dicom(i) for i in range(files)])):
        times = []
        for content in contents:
            start = time.perf_counter()
            read_file(content, f"slice.{kind}", settings)
            times.append(time.perf_counter() - start)
        result[f"{kind}_ms"] = 1e3 * float(np.median(times))
    return result


def main() -> None:
    """Entry point."""
    from brainmri.config import load_settings

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=2048)
    parser.add_argument("--chunks", type=int, default=512)
    options = parser.parse_args()
    settings = load_settings()
    result = {
        "listing": measure_listing(settings, options.names),
        "dealing": measure_dealing(settings, options.chunks),
        "memory": measure_memory(settings, options.files),
        "reading": measure_reading(settings),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
