"""Measures of maps on cases with a known answer, and the study from manifest to tables, stopped and resumed."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from brainmri.documents import write_tables
from brainmri.errors import DataError
from brainmri.explain import METHODS, study
from brainmri.explain.faithfulness import STEPS, faithfulness
from brainmri.explain.localisation import centre_blob, localise, near_mask, peak_in_mask_rate, random_grid
from brainmri.explain.sanity import STAGES, cascade, rank_correlation


@pytest.fixture
def mask():
    mask = np.zeros((80, 80), bool)
    mask[20:40, 30:50] = True
    return mask


def test_a_map_equal_to_the_mask_is_perfect(mask):
    assert set(localise(mask.astype(np.float32), (20, 30), mask, 10).values()) == {1.0}


def test_measures_of_a_map_beside_the_mask(mask):
    saliency = np.zeros((80, 80), np.float32)
    saliency[20:40, 50:60] = 1
    saliency[20:40, 30:50] = 0.25
    found = localise(saliency, (20, 50), mask, 10)
    assert found["pointing"] == 0
    assert found["pointing_cell"] == 1
    assert found["energy"] == pytest.approx(100 / 300)
    assert found["iou_fixed"] == 0
    assert found["iou_best"] == pytest.approx(400 / 600)
    assert not near_mask((20, 60), mask, 10)


def test_an_empty_map_misses(mask):
    assert set(localise(np.zeros((80, 80), np.float32), None, mask, 10).values()) == {0.0}


def test_baselines_do_not_look_at_the_picture():
    blob = centre_blob()
    assert blob.max() == blob[15:17, 15:17].max()
    np.testing.assert_array_equal(random_grid("a"), random_grid("a"))
    assert not np.array_equal(random_grid("a"), random_grid("b"))


class Brightness:
    """A network whose class 0 is how bright the left half is."""

    def logits(self, inputs, *, size=32):
        left = inputs[:, :, :16].mean((1, 2))
        return np.stack([8 * left - 2, -8 * left + 2], axis=1)


def test_faithfulness_prefers_the_evidence():
    picture = np.ones((32, 32), np.float32)
    right_map = np.zeros((32, 32), np.float32)
    right_map[:, :16] = 1
    good, bad = faithfulness(Brightness(), picture, [right_map, 1 - right_map], 0)
    assert good["deletion"] < bad["deletion"]
    assert good["drop"] == pytest.approx(0, abs=1e-6)
    assert bad["drop"] > 0.9
    assert 0 < good["insertion"] <= 1
    assert STEPS == 10


def test_rank_correlation():
    a = np.arange(12.0).reshape(3, 4)
    assert rank_correlation(a, a**3) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert np.isnan(rank_correlation(a, np.zeros((3, 4))))


def test_empty_maps_are_counted_and_left_out_of_the_average():
    maps = np.random.default_rng(0).random((30, 8, 8))
    after = maps.copy()
    after[:16] = 0
    found = study._stability(maps, after, study._bootstrap(range(30)))
    assert (found["mean"], found["all_zero"]) == (1, 16)
    assert study._correlation(found) == "1.00 (16 empty)"
    opposite = study._stability(maps, -maps + np.random.default_rng(1).random(maps.shape), study._bootstrap(range(30)))
    assert opposite["interval"][1] < 0  # a correlation is no share
    none = study._stability(maps, np.zeros_like(maps), study._bootstrap(range(30)))
    assert (none["mean"], none["interval"], study._correlation(none)) == (None, None, "– (30 empty)")


def test_counts_stand_alone_only_where_all_are_equal():
    assert study.counts([{"n": 543}, {"n": 533}, {"n": 543}]) == "543 / 533 / 543"
    assert study.counts([{"n": 594}, {"n": 594}]) == "594"


def test_cascade_randomises_from_the_top_and_leaves_the_network_alone(tiny_models, tiny_blocks):
    from brainmri.model import load_network, read_card

    network = load_network(read_card("tiny", tiny_models), tiny_models)
    before = [w.copy() for w in network.get_weights()]
    changed_before: set[str] = set()
    for stage, copy in cascade(network):
        changed = {
            layer.name
            for layer in copy.layers
            if layer.weights and not np.array_equal(layer.kernel, network.get_layer(layer.name).kernel)
        }
        assert changed_before <= changed
        if stage != "intact":
            assert any(name.startswith(stage) for name in changed - changed_before)
            assert all(any(n.startswith(s) for s in STAGES[: STAGES.index(stage) + 1]) for n in changed)
        else:
            assert not changed
        changed_before = changed
    assert changed_before == {layer.name for layer in network.layers if layer.weights}
    for old, new in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.fixture
def masked_rows(tmp_path, slices):
    """Eight pictures, two a class, six of them with a mask."""
    labels = ["glioma", "meningioma", "notumor", "pituitary"] * 2
    rows = []
    for i, label in enumerate(labels):
        Image.fromarray(slices[i]).save(tmp_path / f"{i}.png")
        mask = np.zeros(slices[i].shape, np.uint8)
        mask[30:50, 30:50] = 255
        Image.fromarray(mask).save(tmp_path / f"m{i}.png")
        has = "" if label == "notumor" else f"m{i}.png"
        rows.append(
            {"path": f"{i}.png", "file": str(tmp_path / f"{i}.png"), "label": label, "group": str(i), "mask": has}
        )
    return pd.DataFrame(rows)


@pytest.fixture
def classifier(tiny_models, tiny_blocks):
    from brainmri.inference import load_classifier

    return load_classifier("tiny", tiny_models, "keras")


def test_peak_in_mask_rate_counts_the_masked(classifier, masked_rows, tiny_models):
    found = peak_in_mask_rate(classifier, masked_rows, directory=tiny_models)
    assert found["all"]["n"] == 6
    assert found["all"]["rate"] == pytest.approx(found["all"]["hits"] / 6, abs=1e-4)
    assert found["all"]["interval"] is None  # of six groups
    assert found["right"]["n"] == sum(found[name]["n"] for name in ("glioma", "meningioma", "pituitary"))
    assert found["right"]["n"] <= 6


def test_study_resumes_and_writes_its_tables(classifier, masked_rows, tiny_models, tmp_path, monkeypatch):
    plan = study.Plan(
        n_faithfulness=4, n_sanity=2, precision="float32", steps=2, samples=2, channels=4, batch=2, sanity_steps=1,
        sanity_samples=1, sanity_channels=2, sanity_cells=2,
    )  # fmt: skip
    seen: list[str] = []
    real = study._localisation_rows

    def stops(*arguments):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append("part")
        return real(*arguments)

    monkeypatch.setattr(study, "_localisation_rows", stops)
    with pytest.raises(KeyboardInterrupt):
        study.run_study(classifier, masked_rows, tiny_models, tmp_path / "work", plan)
    monkeypatch.setattr(study, "_localisation_rows", lambda *a: (seen.append("part"), real(*a))[1])
    beside = [(classifier, tiny_models)]
    result = study.run_study(classifier, masked_rows, tiny_models, tmp_path / "work", plan, beside=beside)
    assert len(seen) == 3  # the two finished parts were not measured again
    (folder,) = (tmp_path / "work").iterdir()
    assert result["elapsed_s"] > 0
    assert result["localisation"]["n"] == 6
    assert result["faithfulness"]["by_class"] == {"glioma": 1, "meningioma": 1, "notumor": 1, "pituitary": 1}
    assert result["sanity"]["n"] == 2
    names = [*METHODS, "centre", "random"]
    assert list(result["localisation"]["subsets"]["all"]["methods"]) == names
    json.dumps(result, allow_nan=False)
    assert [network["model_id"] for network in result["peak_in_mask"]] == ["tiny", "tiny"]
    # A stop in the cascade goes on at its stage, from weights drawn as without the stop.
    for stage in STAGES[-2:]:
        next((tmp_path / "work").glob(f"*/sanity-{stage}.json")).unlink()
    again = study.run_study(classifier, masked_rows, tiny_models, tmp_path / "work", plan)
    assert again["sanity"] == result["sanity"]
    assert again["elapsed_s"] >= result["elapsed_s"]

    assert [f.name for f in (tmp_path / "work").iterdir()] == [folder.name]
    sample = study._spread(masked_rows, plan.n_faithfulness)
    unmasked = sample["path"][sample["mask"] == ""].iloc[0]  # the same masked images, another sample
    fewer = masked_rows[masked_rows["path"] != unmasked]
    study.run_study(classifier, fewer, tiny_models, tmp_path / "work", plan)
    assert len(list((tmp_path / "work").iterdir())) == 2

    page = tmp_path / "page.md"
    tables = study.tables_of(result)
    page.write_text("Words.\n" + "".join(f"<!-- {n} -->\nSTALE\n<!-- /{n} -->\nbetween\n" for n in tables) + "End.\n")
    for _ in range(2):
        write_tables(page, tables)
    text = page.read_text()
    assert text.startswith("Words.")
    assert text.endswith("End.\n")
    assert "STALE" not in text
    assert text.count("between") == len(tables)
    assert text.count("| Grad-CAM |") == 4
    assert "Random (baseline)" in text
    page.write_text("no markers")
    with pytest.raises(DataError, match="no markers"):
        write_tables(page, tables)


def test_a_split_without_masks_is_refused(classifier, masked_rows, tiny_models, tmp_path):
    with pytest.raises(DataError, match="mask"):
        study.run_study(classifier, masked_rows.assign(mask=""), tiny_models, tmp_path)


def test_masks_that_are_missing_are_said(classifier, masked_rows, tiny_models, tmp_path):
    for i in (1, 3):
        (tmp_path / f"m{i}.png").unlink()
    with pytest.raises(DataError, match=r"2 of 6 masks are missing .*m1\.png.*data fetch"):
        study.run_study(classifier, masked_rows, tiny_models, tmp_path / "work")
    with pytest.raises(DataError, match="2 of 6 masks are missing"):
        study.measure_peaks([(classifier, tiny_models)], masked_rows)


def test_the_documentation_has_every_marker():
    from pathlib import Path

    text = (Path(__file__).parent.parent / "docs" / "explanations.md").read_text("utf-8")
    for name in ("study", "peak-in-mask", "localisation", "localisation-subsets", "faithfulness", "sanity"):
        assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1
    for name in METHODS:
        assert f"`{name}`" in text
