"""The Series viewer's state belongs to the upload that it was made for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dicom_maker import SERIES, picture, stack, zipped

from brainmri.ui import series


@pytest.fixture
def drawn(monkeypatch):
    """Panels and settings of every canvas drawn, newest last; slices one by one, as of a large series."""
    calls = []
    draw = series.canvas

    def record(panels, **settings):
        calls.append((panels, settings))
        return draw(panels, **settings)

    monkeypatch.setattr(series, "canvas", record)
    monkeypatch.setattr(series, "_STACK_BYTES", 0)
    return calls


def give(page, n, **tags):
    page.file_uploader[0].set_value([("s.zip", zipped(stack(n, **tags)), "application/zip")])
    page.run()
    assert not page.exception, page.exception
    return page.session_state["series.opened"]


def slider(page):
    return next(s for s in page.slider if s.label == "Slice")


@pytest.mark.parametrize("n", [3, 8], ids=["fewer slices", "more slices"])
def test_another_upload_opens_at_its_own_slice(open_page, drawn, n):
    page = open_page("clinical/series.py", "guest")
    give(page, 6)
    slider(page).set_value(5).run()
    assert not page.exception
    assert any(s.value == "Slice 5 of 6" for s in page.subheader)
    opened = give(page, n, SeriesInstanceUID="1.2.9")
    start = series.analyses_peak(opened.answers[0]) + 1
    assert start != 5
    assert (slider(page).value, slider(page).max) == (start, n)
    assert any(s.value == f"Slice {start} of {n}" for s in page.subheader)


def test_a_rejected_slice_has_no_probabilities(open_page, drawn, monkeypatch):
    real = series.analyse_stack

    def decided(classifier, slices):
        first, second, *rest = real(classifier, slices)
        yield replace(first, decision="rejected", label=None)
        yield replace(second, decision="undecided", label=None)
        yield from (replace(a, decision="class", label="glioma") for a in rest)

    monkeypatch.setattr(series, "analyse_stack", lambda *args: list(decided(*args)))
    shown = []
    chart = series.st.altair_chart
    monkeypatch.setattr(series.st, "altair_chart", lambda c, **rest: shown.append(c.to_dict()) or chart(c, **rest))
    page = open_page("clinical/series.py", "guest")
    give(page, 5)
    frames = list(shown[0]["datasets"].values())
    lines, strip = (next(f for f in frames if name in f[0]) for name in ("probability", "decision"))
    assert {row["probability"] for row in lines if row["slice"] == 1} == {None}
    assert None not in {row["probability"] for row in lines if row["slice"] > 1}
    assert [row["decision"] for row in strip[:3]] == ["Rejected", "Undecided", "Glioma"]
    assert [row["Meningioma"] == "–" for row in strip[:2]] == [True, False]
    assert any(c.value == "1 of 5 slices rejected, 1 undecided" for c in page.caption)
    assert drawn[-1][0][0].title == "Glioma"


def test_another_upload_gets_its_own_maps(open_page, drawn, monkeypatch):
    monkeypatch.setattr(series, "id", lambda _: 1, raising=False)  # what was freed may lend its id to what comes next
    page = open_page("clinical/series.py", "guest")
    give(page, 4)
    page.selectbox(key="series.method").set_value("grad-cam").run()
    assert not page.exception
    made = []
    explain = series.explain
    monkeypatch.setattr(series, "explain", lambda *args, **rest: made.append(args) or explain(*args, **rest))
    slider(page).set_value(4).run()
    assert not made, "the same series' maps are drawn once"
    give(page, 5, SeriesInstanceUID="1.2.9")
    assert made


def test_the_canvas_is_told_which_picture_it_shows(open_page, drawn):
    page = open_page("clinical/series.py", "guest")
    give(page, 4)
    slider(page).set_value(2).run()
    slider(page).set_value(3).run()
    give(page, 4)
    shown = [settings["identity"] for _, settings in drawn]
    assert shown[0] == shown[1] == shown[2] != shown[3]


def test_a_window_that_shows_nothing_is_no_choice(open_page, drawn):
    page = open_page("clinical/series.py", "guest")
    opened = give(page, 3, WindowCenter=[0, 600], WindowWidth=[1, 900])
    (found,) = opened.reading.series
    assert [(w.center, w.width) for w in found.windows()[:-1]] == [(600, 900)]
    assert np.ptp(picture()) > 900
    assert drawn[-1][1]["window"] == (599.5, 899)
    assert found.uid != SERIES
