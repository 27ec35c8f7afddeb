"""The Dataset audit page, run as Streamlit runs it."""

import threading

import numpy as np
import pytest
from PIL import Image
from test_audit import COPIES, picture

from brainmri import audit as auditing
from brainmri.audit import Audit
from brainmri.data import read_folder
from brainmri.ui import audit as page_audit

PAGE = "explore/audit.py"


@pytest.fixture
def data(app_settings):
    """A small set in the Kaggle layout: two mirrored copies across the splits, one of them with another label."""
    root = app_settings.data.root
    for split, label, seeds in (
        ("Training", "glioma", range(6)),
        ("Training", "notumor", range(6, 12)),
        ("Testing", "glioma", range(20, 23)),
    ):
        (root / split / label).mkdir(parents=True)
        for seed in seeds:
            picture(seed).save(root / split / label / f"{seed:02d}.png")
    (root / "Testing/pituitary").mkdir()
    COPIES["mirrored"][0](picture(2)).save(root / "Testing/pituitary/wrong.png")
    COPIES["mirrored"][0](picture(7)).save(root / "Testing/glioma/leak.png")
    return root


@pytest.fixture
def saved(data, app_settings):
    """An audit of it, in the application's folder."""
    found = auditing.audit(read_folder(data), name="small set")
    found.save(app_settings.evaluation.directory / "audit-small", compressed=True)
    return found


def texts(page) -> str:
    blocks = (page.markdown, page.caption, page.subheader, page.error, page.warning, page.info, page.success)
    return "\n".join(str(element.value) for block in blocks for element in block)


def open_tab(open_page, name, role="guest"):
    page = open_page(PAGE, role, session={"audit.tab": name})
    assert not page.exception, page.exception
    return page


def press(page, label):
    next(b for b in page.button if b.label == label).click()
    return page.run()


def test_without_an_audit_it_says_how_to_make_one(open_page, app_settings):
    page = open_page(PAGE, "guest")
    assert not page.exception
    assert "no saved audit yet" in texts(page)
    assert "not on this machine" in texts(page)
    assert not page.button  # nothing to audit


def test_counts_leaks_and_pairs_with_their_pictures(open_page, saved):
    page = open_tab(open_page, "Leaking pairs")
    shown = texts(page)
    assert "2 of 5 images (40%) of test** show a slice that is in train too" in shown
    assert {m.label: m.value for m in page.metric}["Different slices"] == "15"
    pairs = page.dataframe[-1].value
    assert set(pairs["kind"]) == {"mirrored"}
    assert "leak" in shown
    assert "detail correlation" in shown  # under the pictures


def test_pairs_can_be_narrowed_and_ordered(open_page, saved):
    page = open_tab(open_page, "Leaking pairs")
    page.selectbox(key="audit.order").set_value("Least alike first").run()
    assert page.dataframe[-1].value["of detail"].is_monotonic_increasing
    page.selectbox(key="audit.kind").set_value("mirrored").run()
    assert len(page.dataframe[-1].value) == 2


def test_conflicts_and_split_and_the_rest(open_page, saved):
    page = open_tab(open_page, "Label conflicts")
    assert "glioma or no tumour" in texts(page) or "glioma or pituitary" in texts(page)
    page = open_tab(open_page, "Proposed split")
    assert "no slice of it is in two" in texts(page)
    assert set(page.dataframe[-1].value["Split"]) <= {"train", "val", "test", "repeat"}
    assert saved.proposed()["path"].is_unique
    for name in ("Files and sizes", "How it was found"):
        page = open_tab(open_page, name)
        assert not page.error


def test_a_saved_audit_is_shown_without_the_data_set(open_page, saved, data):
    import shutil

    shutil.rmtree(data)
    page = open_tab(open_page, "Leaking pairs")
    assert "pictures appear here where the data set is" in texts(page)
    assert len(page.dataframe[-1].value) == 2


def test_a_damaged_audit_is_named_and_hides_no_other(open_page, saved, app_settings):
    folder = app_settings.evaluation.directory / "audit-broken"
    folder.mkdir()
    (folder / "audit.json").write_text("{", "utf-8")
    page = open_page(PAGE, "guest")
    assert not page.exception
    assert "run 'brainmri audit'" in page.warning[0].value.replace("\\", "")
    assert any("small set" in s.value for s in page.subheader)


def test_guests_start_no_audit(open_page, data):
    page = open_page(PAGE, "guest")
    assert not page.button
    assert "signed in" in texts(page)


def test_no_audit_is_begun_that_could_not_be_saved(open_page, data, app_settings):
    folder = app_settings.evaluation.directory
    folder.touch()  # a file: nothing can be made below it
    page = open_page(PAGE, "reader")
    assert not page.exception
    assert not page.button
    assert "correct 'evaluation.directory'" in texts(page).replace("\\", "")


def test_a_new_audit_runs_beside_the_page_and_is_saved(open_page, data, app_settings):
    folder = app_settings.evaluation.directory
    auditing.audit(read_folder(data), name="shipped").save(folder / "audit-brain-tumor-mri")
    page = open_page(PAGE, "reader")
    press(page, "Audit the data set anew")
    assert not page.exception
    job = page_audit._jobs()[str(data)]
    assert job.finished.wait(60)
    job.started -= 1000  # nobody looked for a while
    page.run()
    assert not page.exception
    assert job.save_to.name.startswith("audit-brain-tumor-mri-20")
    assert Audit.load(job.save_to).summary["n_images"] == 17
    assert Audit.load(folder / "audit-brain-tumor-mri").summary["name"] == "shipped"
    assert f"Audited anew in {job.result.summary['cost']['seconds']:.0f} s" in texts(page)
    assert any("brain_tumor_mri" in s.value.replace("\\", "") for s in page.subheader)  # the new one comes first
    assert page.selectbox(key="audit.chosen").options[0].endswith(job.save_to.name)


def test_only_who_started_it_and_admins_stop_a_running_audit(open_page, make_user, data, tmp_path):
    starter = make_user("reader", "starter")
    job = page_audit.Job("set", tmp_path, starter.id)
    page_audit._jobs()[str(data)] = job
    others = ["guest", make_user("radiologist", "other"), starter, make_user("admin")]
    offered = [[b.label for b in open_page(PAGE, role).button] for role in others]
    page_audit._jobs().clear()
    assert offered == [[], [], ["Stop"], ["Stop"]]


def test_pictures_are_of_the_audited_data_set_only(open_page, data, app_settings, tmp_path):
    import shutil

    other = shutil.copytree(data, tmp_path / "other")
    auditing.audit(read_folder(other), name="another set").save(app_settings.evaluation.directory / "audit-other")
    for tab in ("Leaking pairs", "Label conflicts"):
        page = open_tab(open_page, tab)
        assert not page.get("image"), tab
    (found,) = app_settings.evaluation.directory.glob("*/audit.json")
    found.write_text(found.read_text("utf-8").replace(str(other), str(data)), "utf-8")
    for tab in ("Leaking pairs", "Label conflicts"):
        page = open_tab(open_page, tab)
        assert page.get("image"), tab


def test_a_running_audit_shows_progress_and_stops(open_page, data, app_settings, monkeypatch):
    gate = threading.Event()
    real = auditing.audit

    def slow(table, *, name, progress):
        progress("indexing", 5, 10)
        gate.wait(20)
        return real(table, name=name, progress=progress)

    monkeypatch.setattr(auditing, "audit", slow)
    page = open_page(PAGE, "reader")
    press(page, "Audit the data set anew")
    job = page_audit._jobs()[str(data)]
    page.run()
    assert [b.label for b in page.button] == ["Stop"]  # and no second start
    assert 0.3 < job.share < 0.45
    press(page, "Stop")
    gate.set()
    assert job.finished.wait(20)
    assert job.stopped
    page.run()
    assert "was stopped" in texts(page)
    assert not list(app_settings.evaluation.directory.glob("*"))
    assert "Audit the data set anew" in [b.label for b in page.button]


def test_an_audit_that_cannot_work_says_why(tmp_path):
    job = page_audit.start("empty", lambda: read_folder(tmp_path), tmp_path / "out")
    assert job.finished.wait(20)
    assert "expected Training/<class>" in job.error
    assert not job.stopped


def test_thumbnails_are_square_and_black_where_unreadable(tmp_path):
    from brainmri.ui.pictures import find_picture, thumbnail

    Image.new("L", (100, 50), 200).save(tmp_path / "wide.png")
    tile = thumbnail(str(tmp_path / "wide.png"), 64)
    assert tile.shape == (64, 64)
    assert tile[0].max() == 0
    assert tile[32].min() > 150
    (tmp_path / "bad.png").write_bytes(b"no")
    np.testing.assert_array_equal(thumbnail(str(tmp_path / "bad.png"), 8), np.zeros((8, 8)))
    (tmp_path / "in").mkdir()
    assert find_picture(tmp_path / "in", "../wide.png") is None
    assert find_picture(tmp_path, "wide.png") == tmp_path / "wide.png"
