"""Archives: every file answered once, whatever dies in between."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import psutil
import pytest
from dicom_maker import dicom, stack, zipped
from PIL import Image

from brainmri import archive
from brainmri.archive import Chunk, ChunkWorker, list_chunks, make_job, run_archive, run_chunks
from brainmri.config import ModelSettings, Settings
from brainmri.errors import DataError, StorageError
from brainmri.inference import load_classifier

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def settings(tiny_models):
    return Settings(model=ModelSettings(id="tiny", directory=tiny_models))


@pytest.fixture
def images(tmp_path, slices):
    """Forty pictures in two folders, and three files that are none."""
    root = tmp_path / "images"
    for i in range(40):
        file = root / f"series {i % 2}" / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(slices[i % 12], i, axis=1)).save(file)
    (root / "empty.png").write_bytes(b"")
    (root / "notes.txt").write_text("not an image")
    (root / "series 0" / "cut.png").write_bytes((root / "series 0" / "000.png").read_bytes()[:200])
    (root / ".hidden").write_text("left out")
    return root


BAD = {"empty.png", "notes.txt", "series 0/cut.png"}


def check(table, bad, images):
    """Every file exactly once, in one of the two tables."""
    expected = {p.relative_to(images).as_posix() for p in images.rglob("*.*") if p.name[0] != "."}
    assert sorted(table["path"]) == sorted(expected - BAD)
    assert sorted(bad["path"]) == sorted(BAD)


def test_answers_are_those_of_predict(images, tmp_path, settings, native_bf16):
    seen = []
    output = tmp_path / "results.parquet"
    job = make_job(images, output, settings, workers=2, chunk_files=8)
    summary = run_archive(job, workers=2, progress=seen.append)
    table, bad = pd.read_parquet(output), pd.read_parquet(tmp_path / "results.bad.parquet")
    check(table, bad, images)
    assert (summary.rows, summary.bad_files, summary.files) == (40, 3, 43)
    assert [s.files for s in seen] == sorted(s.files for s in seen)
    assert seen[-1].files == seen[-1].total_files == 43
    assert seen[0].remaining_s > 0
    assert bad.set_index("path").loc["empty.png", "message"].startswith("empty.png: the file is empty")
    assert not (tmp_path / "results.parquet.parts").exists()
    classifier = load_classifier("tiny", settings.model.directory)
    for row in table.sample(5, random_state=0).itertuples():
        prediction = classifier.predict([np.asarray(Image.open(images / row.path))])
        assert (row.p_glioma, row.p_pituitary) == pytest.approx(tuple(prediction.probabilities[0, [0, 3]]), abs=1e-3)
        assert (row.engine, row.precision, row.decision) == ("openvino", native_bf16, prediction.decisions[0])
    again = run_archive(job, workers=2)
    assert (again.files, again.resumed_files, again.rows) == (43, 43, 0)


def test_colour_is_in_the_results(tmp_path, settings):
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:10] = (200, 100, 20)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    job = make_job(tmp_path, tmp_path / "results.parquet", settings, workers=1)
    run_archive(job, workers=1)
    (row,) = pd.read_parquet(tmp_path / "results.parquet").to_dict("records")
    assert row["colour_share"] == pytest.approx(0.25)
    assert row["notes"] == "the picture is in colour (25% of its pixels)"


def test_the_crop_is_in_the_results(tmp_path, settings):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(dicom(PixelSpacing=[0.5, 1.0]))
    (tmp_path / "in" / "b.dcm").write_bytes(dicom(PixelSpacing=[0.5, 0.5]))
    output = tmp_path / "results.parquet"
    run_archive(make_job(tmp_path / "in", output, settings, workers=1), workers=1)
    long, square = pd.read_parquet(output).sort_values("path").to_dict("records")
    assert long["crop_side"] == 2 * long["crop_columns"]
    assert square["crop_side"] == square["crop_columns"]


def test_killed_and_resumed(images, tmp_path, settings):
    """kill -9 of the whole job, twice, then once more to the end: nothing lost, nothing doubled, nothing done twice."""
    output = tmp_path / "results"
    config = tmp_path / "config.yaml"
    config.write_text(f"model:\n  id: tiny\n  directory: {settings.model.directory}\n")
    code = (
        "from brainmri.archive import *; from brainmri.config import load_settings\n"
        "if __name__ == '__main__':\n"
        f"    print(run_archive(make_job({str(images)!r}, {str(output)!r}, load_settings(), chunk_files=3), workers=2))"
    )
    script = tmp_path / "job.py"
    script.write_text(code)
    environment = {**os.environ, "BRAINMRI_CONFIG": str(config), "PYTHONPATH": str(ROOT)}

    def parts():
        return {p.name: p.stat().st_mtime_ns for p in output.glob("part-*.parquet")}

    n_chunks = len(list(list_chunks(make_job(images, output, settings, chunk_files=3))))
    assert n_chunks > 6
    for kept in (1, 3):
        process = subprocess.Popen([sys.executable, script], env=environment, start_new_session=True)
        while len(parts()) < kept and process.poll() is None:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = parts()
    assert kept <= len(before) < n_chunks
    done = subprocess.run([sys.executable, script], env=environment, check=True, capture_output=True, text=True)
    assert "resumed_files=" in done.stdout
    assert {name: parts()[name] for name in before} == before
    check(pd.read_parquet(output), pd.read_parquet(output / "_bad"), images)
    assert sorted(p.name for p in output.glob("_*")) == ["_bad", "_job.json"]


POISON = """
import os
from brainmri import imaging, pipeline
decode = imaging.decode_image
def decode_image(content, name, **options):
    if name == "poison.png":
        open(os.environ["POISON_LOG"], "a").write("x")
        os._exit(11)  # as a decoder that segfaults would
    return decode(content, name, **options)
pipeline.decode_image = decode_image
"""


def test_a_poison_file_is_set_aside_after_two_tries(images, tmp_path, settings, monkeypatch):
    (images / "series 1" / "poison.png").write_bytes((images / "series 1" / "001.png").read_bytes())
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(POISON)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{ROOT}")
    monkeypatch.setenv("POISON_LOG", str(tmp_path / "log"))
    output = tmp_path / "results.parquet"
    summary = run_archive(make_job(images, output, settings, workers=2, chunk_files=100), workers=2)
    bad = pd.read_parquet(tmp_path / "results.bad.parquet").set_index("path")
    assert "two processes died" in bad.loc["series 1/poison.png", "message"]
    assert len(bad) == 4
    assert summary.rows == len(pd.read_parquet(output)) == 40
    assert (tmp_path / "log").read_text() == "xxx"  # once with its chunk, twice alone


def test_a_killed_worker_is_replaced_and_its_chunk_done_again(images, tmp_path, settings):
    killed = []

    def kill_one(_summary):
        if not killed:
            killed.append(multiprocessing.active_children()[0])
            os.kill(killed[0].pid, signal.SIGKILL)

    output = tmp_path / "results"
    summary = run_archive(make_job(images, output, settings, workers=2, chunk_files=3), workers=2, progress=kill_one)
    assert killed[0].exitcode == -signal.SIGKILL
    assert (summary.files, summary.rows, summary.bad_files) == (43, 40, 3)
    check(pd.read_parquet(output), pd.read_parquet(output / "_bad"), images)


def test_a_killed_parent_leaves_no_process(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from brainmri.archive import _end_with_parent\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    pool = ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    child.wait(30)
    assert not child.is_running()


def test_workers_that_always_die_end_the_job(images, tmp_path, settings, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os; from brainmri import archive; archive.ChunkWorker.run = lambda *_: os._exit(9)"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{ROOT}")
    with pytest.raises(StorageError, match="4 worker processes died over the same"):
        run_archive(make_job(images, tmp_path / "results", settings, chunk_files=100))
    assert multiprocessing.active_children() == []


def test_workers_do_not_run_the_main_module_again(images, tmp_path, settings):
    """A script without a ``__name__`` guard; a page of the app is one as well."""
    script = tmp_path / "job.py"
    script.write_text(
        "from brainmri.archive import *; from brainmri.config import Settings, ModelSettings\n"
        f"settings = Settings(model=ModelSettings(id='tiny', directory={str(settings.model.directory)!r}))\n"
        f"open({str(tmp_path / 'log')!r}, 'a').write('x')\n"
        f"print(run_archive(make_job({str(images)!r}, {str(tmp_path / 'out')!r}, settings), workers=2).rows)\n"
    )
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "40\n"
    assert (tmp_path / "log").read_text() == "x"


def test_after_a_page_has_run_in_this_process(open_page, images, tmp_path, settings):
    """AppTest leaves the page behind as the process's main module."""
    open_page("main/predict.py", "guest")
    assert run_archive(make_job(images, tmp_path / "out", settings), workers=2).rows == 40


def test_decoding_and_inference_overlap(images, tmp_path, settings, monkeypatch):
    """While one batch is in the engine the next is decoded."""
    now: dict[str, int] = Counter()
    together = []

    def watched(name, function):
        def run(*arguments, **options):
            now[name] += 1
            together.append(bool(now["decode"] and now["infer"]))
            try:
                time.sleep(0.002)
                return function(*arguments, **options)
            finally:
                now[name] -= 1

        return run

    worker = ChunkWorker(make_job(images, tmp_path / "out", settings))
    monkeypatch.setattr(archive, "BATCH_FILES", 4)
    monkeypatch.setattr(archive, "read_file", watched("decode", archive.read_file))
    worker.classifier.forward = watched("infer", worker.classifier.forward)
    (chunk,) = list_chunks(worker.job)
    assert worker.run(chunk) == (40, 3)
    assert any(together)


def test_a_new_file_changes_its_own_chunk_alone(images, tmp_path, settings, slices):
    job = make_job(images, tmp_path / "results", settings, chunk_files=4)
    run_archive(job)
    before = {c.name for c in list_chunks(job)}
    Image.fromarray(slices[0]).save(images / "series 1" / "new.png")
    after = {c.name for c in list_chunks(job)}
    assert len(before - after) <= 1
    summary = run_archive(job)
    assert summary.resumed_files > 30
    table = pd.read_parquet(tmp_path / "results")
    check(table, pd.read_parquet(tmp_path / "results" / "_bad"), images)
    (images / "series 1" / "new.png").unlink()
    run_archive(job)
    assert len(pd.read_parquet(tmp_path / "results")) == 40


def test_file_urls_in_worker_processes(images, tmp_path, settings):
    job = make_job(f"file://{images}", f"file://{tmp_path}/results.parquet", settings, chunk_files=8)
    summary = run_archive(job, workers=2)
    assert (summary.rows, summary.bad_files) == (40, 3)
    check(pd.read_parquet(tmp_path / "results.parquet"), pd.read_parquet(tmp_path / "results.bad.parquet"), images)


def test_urls_and_the_same_writer_in_process(images, tmp_path, settings):
    """memory:// stands for any remote store."""
    remote = fsspec.filesystem("memory")
    for file in images.rglob("*.png"):
        remote.pipe_file(f"/archive/{file.relative_to(images).as_posix()}", file.read_bytes())
    job = make_job("memory://archive", "memory://results.parquet", settings, chunk_files=8)
    worker = ChunkWorker(job)
    run_chunks(job, lambda chunks: ((c, *worker.run(c)) for c in chunks))
    with remote.open("/results.parquet") as file:
        assert len(pd.read_parquet(file)) == 40
    assert remote.exists("/results.bad.parquet")
    assert not remote.exists("/results.parquet.parts")


def executing(job, meanwhile):
    """What `run_chunks` asks for, in this process; `meanwhile` is told how many chunks are done, and last None."""

    def execute(chunks):
        worker = ChunkWorker(job)
        for n, chunk in enumerate(chunks):
            meanwhile(n)
            yield chunk, *worker.run(chunk)
        meanwhile(None)

    return execute


@pytest.mark.parametrize("name", ["results.parquet", "results"])
def test_files_that_come_and_change_at_the_end_cost_no_answer(images, tmp_path, settings, caplog, name):
    def meanwhile(n):
        if n is None:
            (images / "series 1" / "new.png").write_bytes((images / "series 1" / "001.png").read_bytes())
            (images / "series 0" / "002.png").write_bytes((images / "series 0" / "000.png").read_bytes())

    job = make_job(images, tmp_path / name, settings, chunk_files=8)
    summary = run_chunks(job, executing(job, meanwhile))
    assert (summary.files, summary.rows) == (43, 40)
    table = pd.read_parquet(job.output)
    assert len(pd.read_parquet(job.bad)) == 3
    assert sorted(table["path"]) == sorted(f"series {i % 2}/{i:03}.png" for i in range(40))
    assert "while the job ran" in caplog.text
    assert ("--overwrite" in caplog.text) is job.single_file
    if job.single_file:  # it does not pass for the answers to all files
        with pytest.raises(StorageError, match="other images"):
            run_archive(job)
    caplog.clear()
    run_archive(job, overwrite=job.single_file)
    check(pd.read_parquet(job.output), pd.read_parquet(job.bad), images)
    assert "while the job ran" not in caplog.text


@pytest.mark.parametrize("name", ["results.parquet", "results"])
def test_a_file_that_comes_before_its_folder_is_dealt_out_is_answered(images, tmp_path, settings, caplog, name):
    def meanwhile(n):
        if n == 0:
            (images / "series 1" / "new.png").write_bytes((images / "series 1" / "001.png").read_bytes())

    job = make_job(images, tmp_path / name, settings, chunk_files=4)
    summary = run_chunks(job, executing(job, meanwhile))
    assert (summary.files, summary.total_files, summary.rows) == (44, 44, 41)
    check(pd.read_parquet(job.output), pd.read_parquet(job.bad), images)
    assert "while the job ran" not in caplog.text
    assert run_archive(job).resumed_files == 44


def test_a_part_that_is_gone_is_an_error_and_no_shorter_table(images, tmp_path, settings):
    """Another job with the same output has put it together and swept up."""

    def meanwhile(n):
        if n is None:
            min((tmp_path / "results.parquet.parts").glob("part-*")).unlink()

    job = make_job(images, tmp_path / "results.parquet", settings, chunk_files=8)
    with pytest.raises(StorageError, match=r"part-\w+.parquet is gone; .*run the same command again"):
        run_chunks(job, executing(job, meanwhile))
    assert not list(tmp_path.glob("*.parquet"))
    run_archive(job)
    check(pd.read_parquet(job.output), pd.read_parquet(job.bad), images)


def test_an_output_of_another_job_is_not_touched(images, tmp_path, settings):
    output = tmp_path / "results.parquet"
    pd.DataFrame({"precious": [1]}).to_parquet(output)
    content = output.read_bytes()
    job = make_job(images, output, settings, chunk_files=100)
    with pytest.raises(StorageError, match="answers to other images, of another model"):
        run_archive(job)
    assert output.read_bytes() == content
    run_archive(job, overwrite=True)
    assert len(pd.read_parquet(output)) == 40
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("precious")
    with pytest.raises(StorageError, match=r"holds other files .*letter.txt"):
        run_archive(make_job(images, tmp_path / "mine", settings), overwrite=True)


def changed(settings, **uploads):
    return settings.model_copy(update={"uploads": settings.uploads.model_copy(update=uploads)})


def test_what_is_not_the_jobs_own_stays_in_its_folder(images, tmp_path, settings):
    output = tmp_path / "results"
    run_archive(make_job(images, output, settings, chunk_files=100))
    parts = {p.name for p in output.glob("part-*")}
    (output / "mine").mkdir()
    for name in ("mine.parquet", "notes.txt", "mine/table.csv"):
        (output / name).write_text("precious")
    run_archive(make_job(images, output, settings, chunk_files=100))
    run_archive(make_job(images, output, changed(settings, max_size_mb=19)), overwrite=True)
    assert {p.name for p in output.glob("part-*")}.isdisjoint(parts)
    for name in ("mine.parquet", "notes.txt", "mine/table.csv"):
        assert (output / name).read_text() == "precious"
    assert sorted(p.name for p in output.glob("_*")) == ["_bad", "_job.json"]


def test_what_lies_beside_the_parts_of_a_table_stays_there(images, tmp_path, settings):
    def meanwhile(n):
        if n is None:
            (tmp_path / "results.parquet.parts" / "notes.txt").write_text("precious")

    job = make_job(images, tmp_path / "results.parquet", settings, chunk_files=8)
    run_chunks(job, executing(job, meanwhile))
    assert [p.name for p in (tmp_path / "results.parquet.parts").iterdir()] == ["notes.txt"]
    check(pd.read_parquet(job.output), pd.read_parquet(job.bad), images)


@pytest.mark.parametrize("name", ["results.parquet", "results"])
def test_answers_under_other_settings_are_another_jobs(images, tmp_path, settings, name):
    output = tmp_path / name
    assert run_archive(make_job(images, output, changed(settings, max_pixels=100))).rows == 0
    job = make_job(images, output, settings)
    with pytest.raises(StorageError, match="under other settings"):
        run_archive(job)
    assert run_archive(job, overwrite=True).rows == 40
    check(pd.read_parquet(job.output), pd.read_parquet(job.bad), images)


def test_a_whole_table_is_made_anew_on_request(images, tmp_path, settings):
    job = make_job(images, tmp_path / "results.parquet", settings, chunk_files=100)
    run_archive(job)
    again = run_archive(job, overwrite=True)
    assert (again.resumed_files, again.rows) == (0, 40)


def test_what_decides_the_answers_is_the_jobs_identity(tmp_path, settings, tiny_models):
    def identity(of=settings, **parts):
        own = of.model_copy(update={k: getattr(of, k).model_copy(update=v) for k, v in parts.items()})
        return make_job(tmp_path, tmp_path / "out", own).identity()

    folder = tmp_path / "models"
    shutil.copytree(tiny_models, folder)
    network = folder / "tiny.openvino.xml"
    copied = identity(model={"directory": folder})
    assert copied == identity()
    network.write_text(network.read_text() + " ")
    others = [
        {"model": {"directory": folder}},
        {"model": {"engine": "keras"}},
        {"uploads": {"max_size_mb": 1.0}},
        {"dicom": {"max_slices": 1}},
        {"dicom": {"max_archive_mb": 1.0}},
        {"dicom": {"deidentify": False}},
    ]
    assert [identity(**other) != copied for other in others] == [True] * 6


def test_names_that_are_no_utf8_are_answered(tmp_path, settings, slices):
    root = tmp_path / "in"
    root.mkdir()
    Image.fromarray(slices[0]).save(root / "a.png")
    (root / "a.png").rename(os.fsdecode(os.fsencode(root) + b"/M\xfcller.png"))
    Path(os.fsdecode(os.fsencode(root) + b"/M\xfcller.dcm")).write_bytes(dicom()[:500])
    dicom_settings = settings.dicom.model_copy(update={"key_file": tmp_path / "uid.key"})
    job = make_job(root, tmp_path / "out", settings.model_copy(update={"dicom": dicom_settings}))
    assert run_archive(job).rows == 1
    assert pd.read_parquet(tmp_path / "out")["path"].tolist() == ["M\\xfcller.png"]
    (bad,) = pd.read_parquet(tmp_path / "out" / "_bad").to_dict("records")
    assert bad["path"] == "M\\xfcller.dcm"
    assert "M\\xfcller.dcm" in bad["message"]


def test_links_are_followed_once_and_pipes_left_out(tmp_path, settings):
    root, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for folder in (root / "own", elsewhere):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(b"1")
    (root / "linked").symlink_to(elsewhere)
    (root / "linked again").symlink_to(elsewhere)
    (root / "own" / "loop").symlink_to(root)
    (root / "b.png").symlink_to(elsewhere / "a.png")
    (root / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "pipe.png")
    (root / "linked pipe.png").symlink_to(root / "pipe.png")
    job = make_job(root, tmp_path / "out", settings)
    before = dict(archive.list_files(job))
    assert list(before) == ["b.png", "gone.png", "linked/a.png", "own/a.png"]
    os.utime(elsewhere / "a.png", (1, 1))
    after = dict(archive.list_files(job))
    assert {path for path in before if before[path] != after[path]} == {"b.png", "linked/a.png"}
    assert ChunkWorker(job).run(Chunk("part-x", ("gone.png",))) == (0, 1)


@pytest.mark.parametrize("content", [b"", b"a letter, longer than a Parquet file's foot"])
def test_an_output_that_is_no_parquet_file_is_not_touched(images, tmp_path, settings, content):
    output = tmp_path / "results.parquet"
    output.write_bytes(content)
    job = make_job(images, output, settings, chunk_files=100)
    with pytest.raises(StorageError, match=r"is no Parquet file; choose another --output, or --overwrite"):
        run_archive(job)
    assert output.read_bytes() == content
    run_archive(job, overwrite=True)
    assert len(pd.read_parquet(output)) == 40


def test_bad_roots(tmp_path, settings):
    with pytest.raises(DataError, match="no such folder"):
        run_archive(make_job(tmp_path / "nowhere", tmp_path / "out", settings))
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="holds no file"):
        run_archive(make_job(tmp_path / "void", tmp_path / "out", settings))
    with pytest.raises(DataError, match="fsspec can open"):
        run_archive(make_job("nonsense://bucket", tmp_path / "out", settings))


def test_the_output_may_lie_in_the_input(images, settings):
    job = make_job(images, images / "results.parquet", settings, chunk_files=100)
    run_archive(job)
    assert len(pd.read_parquet(images / "results.parquet")) == 40
    assert run_archive(job).resumed_files == 43


@pytest.mark.parametrize("isolated", [False, True])
def test_what_a_zip_holds_beside_its_series_is_in_the_side_table(tmp_path, settings, isolated):
    series = stack(4)
    cut = series.pop("IM003.dcm")[:-3000]
    localiser = dicom(SeriesDescription="3plane loc", SOPInstanceUID="1.7", SeriesInstanceUID="1.2.9")
    root = tmp_path / "in"
    root.mkdir()
    content = zipped({**series, "loc.dcm": localiser, "cut.dcm": cut, "DICOMDIR": localiser})
    (root / "study.zip").write_bytes(content)
    dicom_settings = settings.dicom.model_copy(update={"key_file": tmp_path / "uid.key"})
    job = make_job(root, tmp_path / "out", settings.model_copy(update={"dicom": dicom_settings}))
    (chunk,) = list_chunks(job)
    if isolated:  # someone died over this chunk
        (tmp_path / "out/_tries").mkdir(parents=True)
        (tmp_path / "out/_tries" / chunk.name).touch()
    assert ChunkWorker(job).run(chunk) == (3, 2)
    bad = pd.read_parquet(tmp_path / "out" / "_bad").sort_values("file")
    assert bad["path"].tolist() == ["study.zip"] * 2
    assert bad[["file", "error"]].to_numpy().tolist() == [["cut.dcm", "InvalidDicomError"], ["loc.dcm", "SetAside"]]
    assert "cut short" in bad["message"].iloc[0]
    assert bad["message"].iloc[1] == "localiser"


def test_whatever_a_file_makes_a_reader_raise_costs_that_file_alone(images, tmp_path, settings, monkeypatch):
    read = archive.read_file

    def stumbling(job, path):
        if path.endswith("003.png"):
            raise RuntimeError("a reader's own")
        return read(job, path)

    monkeypatch.setattr(archive, "read_file", stumbling)
    files = ("series 1/001.png", "series 1/003.png", "series 1/005.png")
    assert ChunkWorker(make_job(images, tmp_path / "out", settings)).run(Chunk("part-x", files)) == (2, 1)
    assert pd.read_parquet(tmp_path / "out" / "_bad")["error"].tolist() == ["RuntimeError"]


def test_a_missing_file_is_a_bad_file(images, tmp_path, settings):
    """Gone between listing and reading."""
    job = make_job(images, tmp_path / "out", settings)
    assert ChunkWorker(job).run(Chunk("part-x", ("gone.png",))) == (0, 1)
    assert "FileNotFoundError" in pd.read_parquet(tmp_path / "out" / "_bad")["error"].tolist()
