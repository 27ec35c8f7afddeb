"""What pages share: one model per process that loads in the background, one database."""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime

import pytest
from streamlit.testing.v1 import AppTest

from brainmri.errors import ModelError
from brainmri.ui import state


class Loader:
    """Stands in for `load_classifier`: waits to be let go, counts, fails on request."""

    def __init__(self):
        self.calls, self.go, self.error = [], threading.Event(), None

    def __call__(self, model_id, directory, engine):
        self.calls.append((model_id, threading.current_thread().name))
        self.go.wait(30)
        if self.error:
            raise self.error
        return f"classifier {model_id}"


@pytest.fixture
def loader(app_settings, monkeypatch):
    loader = Loader()
    monkeypatch.setattr(state, "load_classifier", loader)
    monkeypatch.setattr(state, "BatchingClassifier", lambda loaded, **_: loaded)
    monkeypatch.setattr(state, "_LOADING", {})
    yield loader
    loader.go.set()


def page():
    import streamlit as st

    from brainmri.ui import state

    st.write(f"ready: {state.classifier_ready()}")


def test_a_page_is_usable_while_the_model_loads_once_for_all_sessions(loader):
    sessions = [AppTest.from_function(page, default_timeout=30).run() for _ in range(3)]
    assert [s.markdown[0].value for s in sessions] == ["ready: False"] * 3
    loader.go.set()
    assert state.classifier() == "classifier tiny"
    assert [s.run().markdown[0].value for s in sessions] == ["ready: True"] * 3
    assert loader.calls == [("tiny", "load tiny")]


def test_a_model_that_fails_is_tried_again_and_leaves_the_others_alone(loader):
    loader.go.set()
    assert state.classifier() == "classifier tiny"
    loader.error = ModelError("no card")
    for _ in range(2):
        with pytest.raises(ModelError, match="no card"):
            state.classifier("other")
    assert not state.classifier_ready("other")  # it begins to load anew, and fails again
    deadline = time.monotonic() + 30
    while state.classifier_failure("other") is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state.classifier_failure("other") == "no card"
    assert state.classifier_failure() is None
    loader.error = None
    assert state.classifier("other") == "classifier other"
    assert state.classifier_failure("other") is None
    assert [name for name, _ in loader.calls].count("tiny") == 1


def test_a_model_trained_anew_is_loaded_anew(loader, app_settings, monkeypatch, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    card = folder / "tiny.json"
    card.write_text("{}")
    chosen = app_settings.model.model_copy(update={"directory": folder})
    monkeypatch.setattr(state, "settings", lambda: app_settings.model_copy(update={"model": chosen}))
    loader.go.set()
    state.classifier()
    state.classifier()
    assert len(loader.calls) == 1
    os.utime(card, (1, 1))
    state.classifier()
    assert len(loader.calls) == 2


def test_the_model_that_nobody_asked_for_the_longest_goes_first_and_never_the_configured_one(loader):
    loader.go.set()
    for name in ("tiny", "a", "b", "c", "a", "d", "e"):
        state.classifier(name)
    assert [key[0] for key in state._LOADING] == ["tiny", "a", "d", "e"]
    state.classifier()
    assert [name for name, _ in loader.calls] == ["tiny", "a", "b", "c", "d", "e"]


def test_names_that_a_spreadsheet_would_run_are_text_in_the_list_of_cases():
    from brainmri.storage import Record
    from brainmri.ui.history import _table

    record = Record(id=1, user_id=1, name="=cmd()", label=None, decision="undecided", created_at=datetime.now(UTC))
    table = _table([record], {1: "@reader", 2: "other"})
    assert (table["Name"][0], table["Owner"][0]) == ("'=cmd()", "'@reader")


def test_the_database_is_opened_once_and_names_the_set_up_code(app_settings, capsys):
    first = state.database()
    assert state.database() is first
    printed = capsys.readouterr().err
    assert printed.count("one-time code") == 1
