"""The Heatmaps page and reading mode, run as Streamlit runs them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from datetime import timedelta

import numpy as np
import pytest
from dicom_maker import stack, zipped
from PIL import Image

from brainmri import readings, storage
from brainmri.decision import DecisionRule
from brainmri.errors import PermissionDeniedError, StorageError
from brainmri.explain import METHODS
from brainmri.explain.study import Plan
from brainmri.pipeline import analyse
from brainmri.types import CLASS_NAMES, MRISlice
from brainmri.ui import heatmaps, inputs, state

# The network in miniature has no Keras twin in this process: methods that only need forward passes, or the head.
QUICK = ["grad-cam", "grad-cam++", "hires-cam", "layer-cam"]


@pytest.fixture
def png(slices):
    buffer = io.BytesIO()
    Image.fromarray(slices[3]).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def opened(open_page, png):
    def open_(role="reader", **session):
        page = open_page("explore/heatmaps.py", role, session=session)
        assert not page.exception
        page.file_uploader[0].set_value(("scan.png", png, "image/png"))
        page.run()
        assert not page.exception, page.exception
        return page

    return open_


def words(page) -> str:
    blocks = (page.markdown, page.caption, page.subheader, page.error, page.warning, page.info)
    return "\n".join(str(element.value) for block in blocks for element in block)


def press(page, label):
    next(b for b in page.button if b.label == label).click()
    page.run()
    assert not page.exception, page.exception


def metrics(page) -> dict[str, str]:
    return {m.label: m.value for m in page.metric}


def test_empty_page_says_what_to_do(open_page):
    page = open_page("explore/heatmaps.py", "guest")
    assert not page.exception
    assert "The maps appear here" in words(page)
    assert "brainmri explain-eval" in words(page)


def test_upload_shows_answer_maps_and_exports(opened):
    page = opened("guest")
    assert "The model says" in metrics(page)
    page.multiselect(key="heatmaps.methods").set_value(QUICK).run()
    assert not page.exception
    assert not page.error
    shown = words(page)
    for name in QUICK:
        assert METHODS[name].misleads in shown
    assert {b.label for b in page.get("download_button")} >= {"All maps (PNG)", "NPZ (arrays)", "One-page figure (PDF)"}
    assert "Reading mode" in shown  # a guest is told why there is none


def test_what_a_zip_holds_beside_its_series_is_told(open_page):
    from dicom_maker import dicom, stack, zipped

    localiser = dicom(SeriesDescription="3plane loc", SOPInstanceUID="1.7", SeriesInstanceUID="1.2.9")
    page = open_page("explore/heatmaps.py", "guest")
    content = zipped({**stack(3), "loc.dcm": localiser})
    page.file_uploader[0].set_value(("series.zip", content, "application/zip")).run()
    assert not page.exception
    assert [e.label for e in page.expander if "aside" in e.label] == ["Set aside (1)"]


def test_at_most_four_maps(opened):
    page = opened("guest")
    page.multiselect(key="heatmaps.methods").set_value(QUICK[:3]).run()
    classes = next(m for m in page.multiselect if m.label == "Classes")
    classes.set_value(["glioma", "meningioma"]).run()
    assert "6 maps are chosen; the first 4 are shown" in words(page)


def test_nothing_chosen_asks_for_a_method(opened):
    page = opened("guest")
    page.multiselect(key="heatmaps.methods").set_value([]).run()
    assert "at least one method" in words(page)


def test_reading_mode_hides_the_answer_until_the_verdict_is_given(opened):
    page = opened("reader", **{"heatmaps.reading": True})
    assert not page.metric
    assert "%" not in words(page)
    press(page, "Keep my verdict and show the model's")
    assert "Choose one first" in words(page)
    assert not page.metric
    page.radio[0].set_value("meningioma")
    page.text_area[0].set_value("=dural tail")
    press(page, "Keep my verdict and show the model's")
    assert metrics(page)["You said"] == "Meningioma"
    assert "The model says" in metrics(page)
    page.radio[0].set_value("does-not-fit")
    press(page, "Keep my verdict on the map")
    user = dataclasses.replace(state.accounts.GUEST, id=1, role="reader")
    rows = list(csv.DictReader(io.StringIO(readings.export_readings(state.database(), user))))
    assert [(r["kind"], r["verdict"], r["blind"]) for r in rows] == [
        ("class", "meningioma", "1"),
        ("map", "does-not-fit", "0"),
    ]
    assert rows[0]["note"] == "'=dural tail"
    assert rows[0]["case_id"] == rows[1]["case_id"]
    assert "grad-cam for" in rows[1]["maps"]
    assert float(rows[0]["seconds"]) >= 0
    assert sum(float(rows[0][f"p_{name}"]) for name in ("glioma", "meningioma", "notumor", "pituitary")) == (
        pytest.approx(1, abs=1e-4)
    )


def verdicts(user) -> list[dict]:
    return list(csv.DictReader(io.StringIO(readings.export_readings(state.database(), user))))


def give_verdict(page, verdict: str) -> None:
    page.radio[0].set_value(verdict)
    press(page, "Keep my verdict and show the model's")


def test_a_verdict_after_the_answer_was_shown_is_not_blind(opened, make_user):
    reader = make_user("reader")
    page = opened(reader)
    assert "The model says" in metrics(page)
    page.toggle(key="heatmaps.reading").set_value(True).run()
    assert not page.metric
    told = words(page)
    give_verdict(page, "meningioma")
    (row,) = verdicts(reader)
    assert (row["verdict"], row["blind"]) == ("meningioma", "0")
    assert "has been shown to you" in told


@pytest.mark.parametrize("page_file", ["main/predict.py", "clinical/series.py"])
def test_an_answer_that_another_page_showed_is_a_known_one(open_page, opened, make_user, png, page_file):
    reader = make_user("reader")
    there = open_page(page_file, reader)
    file = ("scan.png", png, "image/png") if "predict" in page_file else ("s.zip", zipped(stack(2)), "application/zip")
    there.file_uploader[0].set_value([file])
    there.run()
    assert not there.exception
    seen = there.session_state[state._SEEN_KEY]
    if "series" in page_file:
        assert len(seen) == 2
        return
    page = opened(reader, **{"heatmaps.reading": True, state._SEEN_KEY: seen})
    assert "has been shown to you" in words(page)
    give_verdict(page, "meningioma")
    assert [row["blind"] for row in verdicts(reader)] == ["0"]


def test_reading_mode_offers_test_images_without_their_class(open_page, png, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png)
    mask = np.zeros(np.asarray(Image.open(io.BytesIO(png))).shape, np.uint8)
    mask[30:40, 30:40] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    files = {f"Testing/{label}/Te-{label}.png": (tmp_path / "a.png", tmp_path / "m.png") for label in CLASS_NAMES}
    monkeypatch.setattr(heatmaps, "_masked_images", lambda _: {p: (str(a), str(b)) for p, (a, b) in files.items()})
    page = open_page("explore/heatmaps.py", "reader")
    assert "Te-glioma.png · Glioma" in page.selectbox(key="heatmaps.masked.named").options
    page.selectbox(key="heatmaps.masked.named").set_value("Testing/glioma/Te-glioma.png").run()
    page.toggle(key="heatmaps.reading").set_value(True).run()
    offered = page.selectbox(key="heatmaps.masked.reading")
    assert offered.options == ["Image 1", "Image 2", "Image 3", "Image 4"]
    assert offered.value is None  # chosen by its name, it is not read blind
    offered.set_value("Testing/pituitary/Te-pituitary.png").run()
    assert not page.exception
    assert not page.metric
    assert "ituitary" not in words(page)
    press(page, "Keep my verdict and show the model's")
    assert "Choose one first" in words(page)


def test_reading_mode_offers_samples_without_their_class(open_page, make_user, monkeypatch):
    reader, shown = make_user("reader"), []
    monkeypatch.setattr(inputs.st, "image", lambda *_, alt, **rest: shown.append(alt))
    page = open_page("explore/heatmaps.py", reader, session={"heatmaps.reading": True})
    assert not page.exception
    labels = [b.label for b in page.button if b.label.startswith("Sample")]
    assert labels == ["Sample 1", "Sample 2", "Sample 3", "Sample 4"]
    assert not [b for b in page.button if b.label in ("Glioma", "Meningioma", "No tumour", "Pituitary")]
    assert not [b.help for b in page.button if b.label in labels and b.help]
    assert shown == labels
    page.session_state["heatmaps.shuffled"] = ["pituitary", "notumor", "glioma", "meningioma"]
    press(page.run(), "Sample 3")
    assert page.session_state["heatmaps.sources"][0].name == "synthetic-glioma.png"
    assert not page.metric


def test_an_address_opens_a_case(kept, open_page):
    reader, record = kept()
    page = open_page("explore/heatmaps.py", reader)
    page.query_params["case"] = str(record.id)
    page.run()
    assert not page.exception, page.exception
    assert "The model says" in metrics(page)
    press(page, "Glioma")  # what is chosen after it wins
    assert "case" not in page.query_params
    assert page.session_state["heatmaps.sources"][0].name == "synthetic-glioma.png"
    other = open_page("explore/heatmaps.py", "radiologist")
    other.query_params["case"] = "999"
    other.run()
    assert "There is no case 999 among yours" in words(other)
    admin = open_page("explore/heatmaps.py", "admin")
    admin.query_params["case"] = str(record.id)
    admin.run()
    assert "does not see other users' images" in words(admin)
    assert not admin.metric


def test_maps_are_framed_where_the_network_saw(opened, monkeypatch):
    drawn = []
    monkeypatch.setattr(heatmaps, "canvas", lambda panels, **_: drawn.append(panels))
    page = opened("guest")
    panels = drawn[-1]
    assert len(panels) == 3
    (frame,) = {panel.frame for panel in panels}
    crop = page.session_state["heatmaps.analysis"][1].transform
    assert frame == (crop.top, crop.left, *crop.shape)


@pytest.fixture
def twin(app_settings, tiny_models, tmp_path):
    """A models folder with `tiny`, which is configured, and the same network as `twin`."""
    folder = tmp_path / "models"
    folder.mkdir()
    for file in tiny_models.glob("tiny.*"):
        (folder / file.name).write_bytes(file.read_bytes())
        (folder / file.name.replace("tiny", "twin", 1)).write_bytes(file.read_bytes())
    card = json.loads((folder / "tiny.json").read_text("utf-8"))
    (folder / "twin.json").write_text(json.dumps(card | {"id": "twin"}), "utf-8")
    (tmp_path / "config.yaml").write_text(f"model: {{id: tiny, directory: '{folder}'}}\n", "utf-8")
    return app_settings


@pytest.fixture
def kept(twin, make_user, slices):
    """`kept(model_id="twin", **changes) -> (reader, record)`: a case that another model answered."""

    def keep(model_id="twin", **changes):
        reader = make_user("reader")
        (analysis,) = analyse(state.classifier("twin"), [MRISlice(slices[0], "a.png", "a" * 64, "PNG")])
        analysis = dataclasses.replace(analysis, model_id=model_id, label="glioma", decision="class", **changes)
        return reader, storage.save_record(state.database(), twin, reader, analysis, None)

    return keep


def choose(page, record):
    page.selectbox(key="heatmaps.case").set_value(record.id).run()
    assert not page.exception, page.exception


def test_history_offers_cases_without_their_answer(kept, open_page):
    reader, record = kept()
    page = open_page("explore/heatmaps.py", reader, session={"heatmaps.reading": True})
    (label,) = page.selectbox(key="heatmaps.case").options
    assert label.startswith(f"Case {record.id} · 20")  # the date: a name may hold the class
    choose(page, record)
    give_verdict(page, "unsure")
    assert [row["blind"] for row in verdicts(reader)] == ["1"]
    again = open_page("explore/heatmaps.py", reader, session={"heatmaps.reading": True})  # a session of another day
    choose(again, record)
    give_verdict(again, "glioma")
    assert [row["blind"] for row in verdicts(reader)] == ["1", "0"]


def test_a_case_is_explained_by_the_model_that_answered_it(kept, open_page, monkeypatch):
    reader, record = kept()
    used = []
    explain = heatmaps.explain
    monkeypatch.setattr(
        heatmaps, "explain", lambda model, *a, **k: used.append(model.card.id) or explain(model, *a, **k)
    )
    page = open_page("explore/heatmaps.py", reader)
    choose(page, record)
    page.radio[0].set_value("fits")
    press(page, "Keep my verdict on the map")
    assert set(used) == {"twin"}
    assert not [i for i in page.info if "answered case" in i.value]
    assert [(row["case_id"], row["model_id"]) for row in verdicts(reader)] == [(str(record.id), "twin")]


@pytest.mark.parametrize(
    ("model", "said"),
    [({"model_id": "gone"}, "cannot be loaded"), ({"weights_sha256": "f" * 64}, "was trained anew since")],
)
def test_verdicts_on_a_case_whose_model_is_gone_get_a_case_of_their_own(kept, open_page, model, said):
    reader, record = kept(**model)
    page = open_page("explore/heatmaps.py", reader)
    choose(page, record)
    told = words(page)
    for verdict in ("fits", "unsure"):
        page.radio[0].set_value(verdict)
        press(page, "Keep my verdict on the map")
    first, second = verdicts(reader)
    assert first["case_id"] == second["case_id"] != str(record.id)
    assert (first["model_id"], first["image_sha256"]) == ("tiny", record.image_sha256)
    assert said in told


def test_rejected_images_are_explained_only_after_a_click(opened, monkeypatch):
    apply = DecisionRule.apply

    def reject(self, *arguments):
        probabilities, score, sets, decisions = apply(self, *arguments)
        return probabilities, score + 9, sets, ("rejected",) * len(decisions)

    monkeypatch.setattr(DecisionRule, "apply", reject)
    page = opened("guest")
    assert not page.multiselect
    assert not page.get("download_button")
    press(page, "Explain it all the same")
    assert page.multiselect
    assert "Not recognised as a brain MRI slice" in words(page)
    assert "The exports say so, too" in words(page)


def test_trust_tab_shows_what_was_measured(open_page, app_settings):
    path = app_settings.model.directory / "tiny.explanation.json"
    value = {"mean": 0.25, "interval": [0.2, 0.3]}
    names = [*METHODS, "centre", "random"]
    peaks = {"n": 7, "hits": 6, "rate": 0.857, "interval": [0.6, 1.0], "baseline_centre": 0.3}
    result = {
        "model_id": "tiny",
        "weights_sha256": "0" * 64,
        "engine": "openvino",
        "engine_precision": "bf16",
        "created": "2026-01-01T00:00:00+00:00",
        "elapsed_s": 60.0,
        "plan": dataclasses.asdict(Plan()),
        "peak_in_mask": [
            {
                "model_id": "tiny",
                "weights_sha256": "0" * 64,
                "subsets": {name: dict(peaks) for name in heatmaps.PEAK_SUBSETS},
            }
        ],
        "localisation": {
            "n": 594,
            "subsets": {
                "all": {"n": 594, "methods": {n: dict.fromkeys(heatmaps.LOCALISATION_TITLES, value) for n in names}}
            },
        },
        "faithfulness": {"n": 120, "methods": {n: dict.fromkeys(heatmaps.FAITHFULNESS_TITLES, value) for n in names}},
        "sanity": {
            "n": 30,
            "stages": ["logits", "dense"],
            "methods": {
                n: {
                    "logits": value | {"all_zero": 7 if n == "grad-cam" else 0},
                    "dense": {"mean": None, "interval": None, "all_zero": 30}
                    if n == "score-cam"
                    else value | {"all_zero": 0},
                }
                for n in METHODS
            },
        },
    }
    path.write_text(json.dumps(result))
    try:
        page = open_page("explore/heatmaps.py", "guest")
    finally:
        path.unlink()
    assert not page.exception
    assert len(page.dataframe) == 3
    assert page.dataframe[0].value["tiny"].tolist() == ["0.857 (0.600–1.000)"] * 5
    said = words(page)
    assert "n = 120" in said
    assert "Grad-CAM up to 7 at one stage, Score-CAM up to 30 at one stage" in said
    assert "Integrated Gradients with 8 steps, SmoothGrad with 8 samples" in said


def test_maps_are_kept_by_their_size_and_those_on_the_page_stay(opened, monkeypatch):
    page = opened("guest")
    page.multiselect(key="heatmaps.methods").set_value(QUICK).run()
    assert len(page.session_state["heatmaps.kept"]) == 4
    monkeypatch.setattr(heatmaps, "_KEPT_BYTES", 1)
    classes = next(m for m in page.multiselect if m.label == "Classes")
    other = next(name for name in CLASS_NAMES if name not in classes.value)
    classes.set_value([other]).run()
    assert not page.exception
    assert [slot[3:5] for slot in page.session_state["heatmaps.kept"]] == [(name, other) for name in QUICK]


def test_the_peak_that_is_drawn_is_the_one_that_is_written(opened, monkeypatch):
    drawn = []
    monkeypatch.setattr(heatmaps, "canvas", lambda panels, **_: drawn.append(panels))
    opened("guest")
    for panel in drawn[-1][1:]:
        assert panel.caption.startswith(f"Peak at row {panel.peak[0]}, column {panel.peak[1]}") or panel.peak is None


def test_readings_are_checked(make_user, app_settings, slices):
    user, other = make_user("reader"), make_user("reader", "other")
    analysis = analyse(state.classifier(), [MRISlice(slices[0], "a.png", "a" * 64, "PNG")])[0]
    record = storage.save_record(state.database(), app_settings, user, analysis, None)
    now = storage.utc_now()
    with pytest.raises(StorageError, match="fits, does-not-fit, unsure"):
        readings.add_reading(state.database(), user, record.id, "map", "superb", shown_at=now)
    with pytest.raises(StorageError, match="no case"):
        readings.add_reading(state.database(), other, record.id, "map", "fits", shown_at=now)
    with pytest.raises(PermissionDeniedError):
        readings.add_reading(state.database(), state.accounts.GUEST, record.id, "map", "fits", shown_at=now)
    readings.add_reading(
        state.database(), user, record.id, "class", "unsure", shown_at=now - timedelta(seconds=30), blind=True
    )
    [(kept, of, who)] = readings.readings_of(state.database(), user, record.id)
    assert (kept.verdict, of.id, who) == ("unsure", record.id, "reader")
    assert (kept.created_at - kept.shown_at).total_seconds() >= 30
    assert readings.readings_of(state.database(), other) == []
    storage.delete_record(state.database(), app_settings, user, record.id)
    assert readings.readings_of(state.database(), user) == []


def test_true_outline_of_samples(app_settings):
    from brainmri import synthetic

    for label, sample in synthetic.samples().items():
        mask = heatmaps._known_mask(sample.slice)
        assert (mask is None) == (label == "notumor")
    unknown = MRISlice(np.zeros((32, 32), np.uint8), "x", "f" * 64, "PNG")
    assert heatmaps._known_mask(unknown) is None
