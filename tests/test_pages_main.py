"""Overview, Predict and History, each run as Streamlit runs it."""

import io
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from brainmri import storage, synthetic
from brainmri.errors import BusyError, StorageError
from brainmri.look import metrics_table
from brainmri.model import read_card, write_card
from brainmri.types import CLASS_NAMES, CLASS_TITLES
from brainmri.ui import predict, results, state, theme


@pytest.fixture
def png(slices):
    """`png(i)`: bytes of the i-th test picture."""

    def encode(index: int = 0) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(slices[index]).save(buffer, "PNG")
        return buffer.getvalue()

    return encode


def upload(page, *files, kind="image/png"):
    page.file_uploader[0].set_value([(name, content, kind) for name, content in files])
    return page.run()


def texts(page) -> str:
    blocks = (page.markdown, page.caption, page.header, page.subheader, page.error, page.warning, page.info)
    return "\n".join(str(element.value) for block in blocks for element in block)


def press(page, label):
    next(b for b in page.button if b.label == label).click()
    return page.run()


# --- Overview ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["guest", "reader", "admin"])
def test_overview_says_what_it_is_and_is_not(open_page, role):
    page = open_page("main/overview.py", role)
    assert not page.exception
    shown = texts(page)
    assert "not a diagnosis" in shown
    assert "What it is not" in shown
    assert "tiny" in shown
    assert "no figures yet" in shown
    assert ("stores nothing" in shown) == (role == "guest")


def test_metrics_are_named_by_split_and_say_what_training_has_seen():
    metrics = {
        "mine_test": {"n": 9, "accuracy": 0.5},
        "official-test": {"n": 1311, "accuracy": 0.99, "confusion_matrix": [[1]], "seen_in_training": 0.624},
        "clean-test": {"n": 1746, "accuracy": 0.81234, "sensitivity": 0.9, "roc_auc": {"macro": 0.95, "glioma": 0.9}},
        "note": "not a split",
    }
    table = metrics_table(metrics)
    assert list(table) == ["Clean test", "Official test (62% of it seen in training)", "mine test"]
    assert all(list(row) == ["Images", "Accuracy", "Tumours found", "Macro AUC"] for row in table.values())
    assert list(table["Clean test"].values()) == ["1,746", "0.812", "0.900", "0.950"]
    assert table["mine test"]["Macro AUC"] == "–"


def test_the_card_leads_to_evaluation_and_to_no_file_of_the_repository(open_page, app_settings, tiny_models):
    card = read_card("tiny", tiny_models)
    write_card(
        card.model_copy(update={"metrics": {"clean-test": {"n": 3}}, "limits": ("Old (docs/x.md).",)}), tiny_models
    )
    try:
        shown = texts(open_page("main/overview.py"))
    finally:
        write_card(card, tiny_models)
    assert "- Old." in shown
    assert "what flatters these figures" in shown


# --- Predict -------------------------------------------------------------------------------------------------------


def test_predict_tells_what_to_do_first(open_page):
    page = open_page("main/predict.py")
    assert not page.exception
    assert "press a sample" in page.info[0].value
    assert page.file_uploader[0].accept_multiple_files


def test_sample_is_answered_shown_as_synthetic_and_kept(open_page, make_user, app_settings):
    user = make_user()
    page = open_page("main/predict.py", user)
    press(page, "Glioma")
    assert not page.exception
    shown = texts(page)
    assert "Synthetic sample, no patient's image" in shown
    assert "Case 1 in History" in shown
    assert "not a diagnosis" in shown
    record = storage.open_record(state.database(), user, 1)
    sample = synthetic.sample("glioma")
    assert record.name == "synthetic-glioma.png"
    assert storage.read_file(app_settings, record) == sample.content
    np.testing.assert_array_equal(storage.load_slice(app_settings, record).pixels, sample.slice.pixels)
    page.run()  # another run answers and keeps nothing anew
    assert storage.find_records(state.database(), user).total == 1
    press(page, "Glioma")  # another press is another case
    assert storage.find_records(state.database(), user).total == 2


def test_upload_is_answered_and_kept_once(open_page, make_user, png):
    user = make_user()
    page = upload(open_page("main/predict.py", user), ("scan.png", png()))
    assert not page.exception
    assert "Case 1 in History" in texts(page)
    assert "larger than 20 MB" in texts(page)
    page.run()
    found = storage.find_records(state.database(), user)
    assert [r.name for r in found.records] == ["scan.png"]


def test_many_files_come_as_a_table_and_one_bad_file_spoils_nothing(open_page, make_user, png):
    user = make_user()
    files = [(f"{i:02d}.png", png(i % 12)) for i in range(18)] + [
        ("empty.png", b""),
        ("letter.docx", b"hello"),
        ("empty.png", b""),
    ]
    page = upload(open_page("main/predict.py", user), *files)
    assert not page.exception
    table = page.dataframe[0].value
    assert list(table["name"]) == [name for name, _ in files[:18]]
    assert not table.isna().all().any()
    titles = [m.label for m in page.metric]
    order = [*CLASS_TITLES.values(), "Undecided", "Rejected", "Unreadable"]
    assert titles == [title for title in order if title in titles]
    assert titles[-1] == "Unreadable"
    (listed,) = (e for e in page.expander if e.label == "Unreadable (3)")
    told = listed.markdown[0].value
    assert told.count("0 bytes") == 2
    assert "accepted: PNG" in told.replace("\\", "")
    assert storage.find_records(state.database(), user).total == 18


def test_a_zipped_series_has_a_slider_and_keeps_each_slice(open_page, make_user):
    from dicom_maker import stack, zipped

    user = make_user()
    page = upload(open_page("main/predict.py", user), ("series.zip", zipped(stack(4))), kind="application/zip")
    assert not page.exception
    assert len(page.dataframe[0].value) == 4
    page.slider[0].set_value(3)
    page.run()
    assert not page.exception
    assert "Case 3 in History" in texts(page)
    assert storage.find_records(state.database(), user).total == 4


def test_what_a_zip_holds_beside_its_series_is_told(open_page):
    from dicom_maker import dicom, stack, zipped

    series = stack(4)
    cut = series.pop("IM003.dcm")[:-3000]
    localiser = dicom(SeriesDescription="3plane loc", SOPInstanceUID="1.7", SeriesInstanceUID="1.2.9")
    content = zipped({**series, "loc.dcm": localiser, "cut.dcm": cut})
    page = upload(open_page("main/predict.py", "guest"), ("series.zip", content), kind="application/zip")
    assert not page.exception
    assert [e.label for e in page.expander if "aside" in e.label] == ["Set aside (1)"]
    assert "loc.dcm: localiser" in texts(page).replace("\\", "")
    assert len(page.dataframe[0].value) == 3
    assert [e.label for e in page.expander if "Unreadable" in e.label] == ["Unreadable (1)"]
    assert re.search("cut.dcm: .*cut short", texts(page).replace("\\", ""))
    page.run()  # the answers are kept, and so is what was told
    assert [e.label for e in page.expander if "aside" in e.label] == ["Set aside (1)"]


def test_guest_keeps_nothing(open_page, make_user, png, app_settings):
    page = open_page("main/predict.py", "guest")
    press(page, "Pituitary")
    assert not page.exception
    assert "nothing you choose here is stored" in texts(page)
    assert "in History" not in texts(page)
    assert storage.find_records(state.database(), make_user("admin")).total == 0
    assert not app_settings.uploads.directory.exists()


def test_more_files_than_the_limit_are_refused_in_one_line(open_page, png, monkeypatch):
    limited = state.settings()
    limited = limited.model_copy(update={"uploads": limited.uploads.model_copy(update={"max_files": 2})})
    monkeypatch.setattr(state, "settings", lambda: limited)
    page = upload(open_page("main/predict.py"), *[(f"{i}.png", png(i)) for i in range(3)])
    assert not page.exception
    assert "the limit is 2 at once" in page.error[0].value.replace("\\", "")


def test_full_disk_shows_the_answer_and_says_that_it_was_not_kept(open_page, make_user, png, monkeypatch):
    def full(*_args, **_kwargs):
        raise StorageError("the case was not kept: No space left on device")

    monkeypatch.setattr(predict, "save_record", full)
    user = make_user()
    page = upload(open_page("main/predict.py", user), ("scan.png", png()))
    assert not page.exception
    assert "No space left on device" in texts(page)
    assert "in History" not in texts(page)


def test_busy_server_says_so_and_answers_the_next_try(open_page, make_user, png, monkeypatch):
    def busy(*_args):
        raise BusyError("too many requests at the moment; try again")

    page = open_page("main/predict.py", make_user())
    with monkeypatch.context() as patch:
        patch.setattr(predict, "analyse", busy)
        upload(page, ("scan.png", png()))
        assert "try again" in texts(page)
    press(page, "Try again")
    assert "Case 1 in History" in texts(page)


def test_a_slower_engine_is_named(open_page, png, monkeypatch):
    page = open_page("main/predict.py", "guest")
    assert "engine" not in texts(upload(page, ("a.png", png())))
    monkeypatch.setattr(state.classifier(), "fallback_reason", "The keras engine answers, because …")
    assert "The keras engine answers, because" in texts(page.run())


def test_a_rejected_picture_in_colour_is_told_so(open_page, make_user, png, monkeypatch):
    real = predict.analyse
    monkeypatch.setattr(predict, "analyse", lambda *a: [replace(r, decision="rejected", label=None) for r in real(*a)])
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 90, 30)).save(buffer, "PNG")
    page = upload(open_page("main/predict.py", make_user()), ("a.png", buffer.getvalue()))
    assert "The picture is in colour (100% of its pixels), and brain MRI is grey" in page.error[0].value
    assert "distance" not in page.error[0].value


@pytest.mark.parametrize("decision", ["rejected", "undecided"])
def test_a_decision_that_is_no_class_shows_no_class(open_page, make_user, png, monkeypatch, decision):
    real = predict.analyse

    def decided(classifier, slices):
        sets = () if decision == "rejected" else ("glioma", "pituitary")
        return [replace(a, decision=decision, label=None, prediction_set=sets) for a in real(classifier, slices)]

    monkeypatch.setattr(predict, "analyse", decided)
    page = upload(open_page("main/predict.py", make_user()), ("scan.png", png()))
    assert not page.exception
    charts = len(page.get("vega_lite_chart")) + len(page.get("arrow_vega_lite_chart"))
    if decision == "rejected":
        assert "gets no class" in page.error[0].value
        assert charts == 0
        assert not any(
            title in texts(page).split("Try a sample")[-1] for title in ("Glioma", "Meningioma", "Pituitary")
        )
    else:
        (said,) = (w.value for w in page.warning if "Undecided" in w.value)
        assert "Glioma, Pituitary tumour" in said
        assert charts == 1


def test_the_chart_says_its_values_to_who_does_not_see_it():
    chart = results.probability_chart(dict(zip(CLASS_NAMES, (0.5, 0.25, 0.05, 0.2), strict=True)))
    assert chart["description"] == (
        "Probabilities: Glioma 50.0%, Meningioma 25.0%, No tumour 5.0%, Pituitary tumour 20.0%"
    )


def test_another_model_can_be_chosen_and_is_the_one_that_answers(
    open_page, make_user, png, app_settings, tmp_path, monkeypatch, tiny_models
):
    import json
    import shutil

    folder = tmp_path / "models"
    shutil.copytree(tiny_models, folder)
    for path in tiny_models.glob("tiny*"):
        if path.suffix != ".json":
            shutil.copy(path, folder / path.name.replace("tiny", "other", 1))
    card = json.loads((tiny_models / "tiny.json").read_text()) | {"id": "other"}
    (folder / "other.json").write_text(json.dumps(card))
    config = tmp_path / "two.yaml"
    config.write_text(f"model: {{id: tiny, directory: '{folder}'}}\n")
    monkeypatch.setenv("BRAINMRI_CONFIG", str(config))
    user = make_user()
    page = open_page("main/predict.py", user)
    assert page.selectbox[0].value == "tiny"
    page.selectbox[0].set_value("other")
    page.run()
    upload(page, ("scan.png", png()))
    assert not page.exception
    assert storage.open_record(state.database(), user, 1).model_id == "other"
    assert not open_page("main/predict.py", "guest").selectbox


def test_the_next_reader_in_the_same_tab_sees_nothing_of_the_last(open_page, make_user, png):
    from brainmri import accounts

    page = upload(open_page("main/predict.py", make_user()), ("secret.png", png()))
    assert "secret" in texts(page)
    other = make_user("reader", "other")
    page.session_state[state.SESSION_KEY] = accounts.start_session(state.database(), other.id, days=1)
    page.run()
    assert "secret" not in texts(page)
    assert storage.find_records(state.database(), other).total == 0


def test_markup_in_a_file_name_is_shown_as_it_is(open_page, make_user, png):
    page = upload(open_page("main/predict.py", make_user()), ("![x](data:a).png", png()))
    assert "![x](" not in texts(page)
    assert "\\!\\[x\\]\\(data\\:a\\)" in texts(page)


def test_download_has_a_row_for_every_file_and_runs_no_formula(slices):
    from brainmri.types import Analysis, CropTransform, MRISlice

    def answer(name, decision):
        analysis = Analysis(
            MRISlice(slices[0], name, "0" * 64, "PNG"),
            decision,
            "glioma" if decision == "class" else None,
            ("glioma",),
            dict.fromkeys(CLASS_NAMES, 0.25),
            0.5,
            1.0,
            CropTransform(-4, 0, 120, 128),
            np.zeros((128, 128), np.float32),
            np.zeros(0),
            np.zeros(4),
            "m",
            "a" * 64,
            "openvino",
            "bf16",
            3.0,
        )
        return results.Answer.from_analysis(analysis)

    table = results.result_table(
        [answer("=1+1.png", "class"), answer("b.png", "rejected")], [("c.png", "damaged"), ("-d", "-d: bad")]
    )
    back = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    assert list(back["name"]) == ["'=1+1.png", "b.png", "c.png", "'-d"]
    assert list(back["decision"]) == ["class", "rejected", "unreadable", "unreadable"]
    assert back["label"].isna().tolist() == [False, True, True, True]
    assert back["p_glioma"].isna().tolist() == [False, True, True, True]
    assert list(back["error"].iloc[2:]) == ["damaged", "'-d: bad"]


# --- History -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cases(make_user, app_settings, slices):
    """A reader with 30 cases."""
    from brainmri.pipeline import analyse
    from brainmri.types import MRISlice

    user = make_user("reader", "owner")
    made = [MRISlice(slices[i % 12], f"scan-{i:02d}.png", f"{i:064x}", "PNG") for i in range(30)]
    classifier = state.classifier()
    for analysis in analyse(classifier, made):
        storage.save_record(state.database(), app_settings, user, analysis, None)
    return user


def test_empty_history_says_what_to_do(open_page):
    page = open_page("main/history.py")
    assert not page.exception
    assert "No cases yet" in page.info[0].value
    assert "Go to Predict" in texts(page)


def test_history_pages_and_searches(open_page, cases):
    page = open_page("main/history.py", cases)
    assert not page.exception
    assert len(page.dataframe[0].value) == 25
    assert "30 cases" in texts(page)
    page.session_state["history.page"] = 2
    page.run()
    assert list(page.dataframe[0].value["Name"]) == [f"scan-{i:02d}.png" for i in (4, 3, 2, 1, 0)]
    page.text_input[0].set_value("N-1")
    page.run()
    assert len(page.dataframe[0].value) == 10
    page.text_input[0].set_value("nothing like it")
    page.run()
    assert "No case matches" in page.info[0].value
    press(page, "Clear search and filters")
    assert len(page.dataframe[0].value) == 25


def test_a_case_opens_as_it_was_answered_and_is_never_computed_anew(open_page, cases, monkeypatch):
    record = storage.open_record(state.database(), cases, 7)
    monkeypatch.setattr(state, "classifier", None)  # would fail if asked
    page = open_page("main/history.py", cases, session={})
    page.query_params["case"] = "7"
    page.run()
    assert not page.exception
    shown = texts(page)
    assert "Case 7" in shown
    assert theme.class_title(record.label) in shown
    assert f"{record.probabilities[record.label]:.1%}" in shown
    assert "Write a report" in shown
    assert "Heatmaps of this case" in shown
    details = next(m.value for m in page.markdown if "**Software**" in m.value)
    assert theme.plain(record.software_version) in details
    assert record.weights_sha256[:12] in details


def test_nobody_opens_the_case_of_another(open_page, cases):
    page = open_page("main/history.py", "reader")
    assert "No cases yet" in page.info[0].value
    for case in ("7", "999", "0", "x", "7 OR 1=1", "9" * 40):
        page.query_params["case"] = case
        page.run()
        assert not page.exception
        assert "There is no case" in texts(page).replace("there is", "There is")
        assert "scan-" not in texts(page)
    page.query_params["case"] = "[a](b)"
    assert "\\[a\\]\\(b\\)" in texts(page.run())


@pytest.mark.parametrize("role", ["admin", "radiologist"])
def test_who_sees_all_cases_is_told_whose_they_are(open_page, cases, make_user, app_settings, role):
    user = make_user(role)
    (record,) = storage.find_records(state.database(), cases, limit=1).records
    own = again(user, record, app_settings)
    page = open_page("main/history.py", user)
    assert "All cases" in texts(page)
    assert "31 cases" in texts(page)
    assert list(page.dataframe[0].value["Owner"][:2]) == [role, "owner"]
    page.selectbox(key="history.owner").set_value(user.id).run()
    assert list(page.dataframe[0].value["Case"]) == [own.id]
    page = open_page("main/history.py", cases)
    assert list(page.dataframe[0].value) == ["Case", "Answer", "Probability", "Name", "When", "Model"]
    assert page.pills(key="history.decisions").options == ["Answered", "Undecided", "Rejected"]
    for case, deletable in ((own.id, True), (record.id, role == "admin")):
        page = open_page("main/history.py", user)
        page.query_params["case"] = str(case)
        page.run()
        assert not page.exception
        assert any(b.label == "Delete for good" for b in page.button) == deletable


def again(user, record, settings):
    """The same answer as a case of another user."""
    from brainmri.pipeline import analyse

    (analysis,) = analyse(state.classifier(), [storage.load_slice(settings, record)])
    return storage.save_record(state.database(), settings, user, analysis, None)


def test_an_administrator_is_offered_own_cases_behind_many_of_others(
    open_page, cases, make_user, app_settings, monkeypatch
):
    from brainmri.ui import inputs

    admin = make_user("admin")
    (record,) = storage.find_records(state.database(), cases, limit=1).records
    own = again(admin, record, app_settings)
    again(cases, record, app_settings)
    monkeypatch.setattr(inputs, "_HISTORY_CHOICES", 1)
    page = open_page("explore/heatmaps.py", admin)
    (box,) = (b for b in page.selectbox if b.label == "Or a case from History")
    assert len(box.options) == 1
    assert box.options[0].startswith(f"Case {own.id} ")


def test_a_case_with_a_signed_report_is_not_offered_for_deletion(open_page, make_user, cases, app_settings):
    from brainmri import report

    radiologist = make_user("radiologist")
    (record,) = storage.find_records(state.database(), cases, limit=1).records
    report.issue(state.database(), app_settings, radiologist, record.id, findings="a", impression="b", final=True)
    for user, deletable in ((cases, False), (make_user("admin"), True)):
        page = open_page("main/history.py", user)
        page.query_params["case"] = str(record.id)
        page.run()
        assert "1 signed report" in texts(page)
        assert any(b.label == "Delete for good" for b in page.button) == deletable


def test_delete_asks_first(open_page, cases, app_settings):
    page = open_page("main/history.py", cases)
    page.query_params["case"] = "7"
    page.run()
    assert "deleted for good" in texts(page)
    assert storage.open_record(state.database(), cases, 7)
    press(page, "Delete for good")
    assert not page.exception
    assert storage.find_records(state.database(), cases).total == 29
    with pytest.raises(StorageError):
        storage.open_record(state.database(), cases, 7)


def test_a_case_whose_file_was_changed_on_disk_says_so(open_page, cases, app_settings):
    record = storage.open_record(state.database(), cases, 7)
    (app_settings.uploads.directory / record.file_sha256).write_bytes(b"other")
    page = open_page("main/history.py", cases)
    page.query_params["case"] = "7"
    page.run()
    assert not page.exception
    assert "changed on disk" in page.error[0].value


@pytest.mark.parametrize("file", ["main/overview.py", "main/predict.py", "main/history.py"])
def test_nobody_sees_a_page_without_signing_in(open_page, file):
    page = open_page(file, None)
    assert not page.exception
    assert not page.title
    assert "Sign in" in page.info[0].value


def test_card_of_the_model_is_the_one_shown(open_page, app_settings):
    card = read_card("tiny", app_settings.model.directory)
    assert card.architecture in texts(open_page("main/overview.py"))
