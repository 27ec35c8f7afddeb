"""The archive job on a real two-node Ray cluster on this machine."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from brainmri.archive import make_job, run_archive
from brainmri.config import ModelSettings, Settings
from brainmri.errors import EngineError

ray = pytest.importorskip("ray") if os.environ.get("CI") != "true" else __import__("ray")
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def settings(tiny_models):
    return Settings(model=ModelSettings(id="tiny", directory=tiny_models))


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    # The head only drives: work goes to the two nodes, of which one is lost.
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8})
    nodes = [made.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(2)]
    made.wait_for_nodes()
    yield made, nodes
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def images(tmp_path, slices):
    root = tmp_path / "images"
    root.mkdir()
    for i in range(120):
        Image.fromarray(np.roll(slices[i % 12], i, axis=1)).save(root / f"{i:03}.png")
    (root / "broken.png").write_text("no image")
    return root


def test_a_node_dies_and_every_row_comes_exactly_once(cluster, images, tmp_path, settings):
    from brainmri.scale import run_on_ray

    made, nodes = cluster
    output = tmp_path / "results"
    job = make_job(f"file://{images}", f"file://{output}", settings, chunk_files=2)
    lost = threading.Event()

    def kill_a_node():
        while len(list(output.glob("part-*.parquet"))) < 5:
            time.sleep(0.01)
        made.remove_node(nodes[1], allow_graceful=False)
        lost.set()

    killer = threading.Thread(target=kill_a_node)
    killer.start()
    at_loss = []

    def progress(summary):
        if lost.is_set() and not at_loss:
            at_loss.append(summary.files)

    summary = run_on_ray(job, made.address, progress=progress)
    killer.join()
    assert at_loss
    assert at_loss[0] < summary.total_files  # it was in mid-job
    table, bad = pd.read_parquet(output), pd.read_parquet(output / "_bad")
    assert sorted(table["path"]) == [f"{i:03}.png" for i in range(120)]
    assert bad["path"].tolist() == ["broken.png"]
    assert (summary.files, summary.rows, summary.bad_files) == (121, 120, 1)
    # The same job on one machine finds every part there: same chunks, same names.
    assert run_archive(job).resumed_files == 121
    assert Counter(table["path"]).most_common(1)[0][1] == 1


def test_no_cluster():
    from brainmri.scale import run_on_ray

    with pytest.raises(EngineError, match="no Ray cluster answers at"):
        run_on_ray(None, "127.0.0.1:1")


def test_without_ray_it_says_how_to_install_it(monkeypatch):
    from brainmri.scale import run_on_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"\.venv/bin/pip install -e '\.\[scale\]'"):
        run_on_ray(None, "local")
