"""config.yaml: what ships is valid, and a wrong key or value is one line that names it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from brainmri import config
from brainmri.errors import ConfigError

SHIPPED = Path(__file__).resolve().parent.parent / "config.yaml"


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, "utf-8")
    return path


def test_the_shipped_file_is_valid_and_names_every_setting():
    config.load_settings(SHIPPED)
    written = yaml.safe_load(SHIPPED.read_text("utf-8"))
    known = {name: set(field.annotation.model_fields) for name, field in config.Settings.model_fields.items()}
    assert {section: set(keys) for section, keys in written.items()} == known


def test_relative_paths_count_from_the_file(tmp_path):
    settings = config.load_settings(write(tmp_path, "model: {id: tiny}"))
    assert settings.uploads.directory == tmp_path / "uploads"
    assert settings.accounts.key_file == tmp_path / "data" / "cookie.key"
    assert settings.database.url == f"sqlite:///{tmp_path}/data/brainmri.db"


def test_absolute_paths_and_other_databases_stay(tmp_path):
    text = "model: {id: tiny, directory: /srv/models}\ndatabase: {url: 'postgresql+psycopg://u@h/d'}"
    settings = config.load_settings(write(tmp_path, text))
    assert settings.model.directory == Path("/srv/models")
    assert settings.database.url == "postgresql+psycopg://u@h/d"


def test_the_environment_names_file_and_data(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINMRI_CONFIG", str(write(tmp_path, "model: {id: other}")))
    monkeypatch.setenv("BRAINMRI_DATA", str(tmp_path / "elsewhere"))
    settings = config.load_settings()
    assert (settings.model.id, settings.data.root) == ("other", tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: {id: tiny}\nmodle: {}", "unknown key 'modle'"),
        ("model: {id: tiny, sizw: 3}", "unknown key 'model.sizw'"),
        ("model: {id: tiny}\naccounts: {signup: 'yes'}", "'accounts.signup' is 'yes'"),
        ("model: {id: tiny}\naccounts: {guest: perhaps}", "'accounts.guest' is 'perhaps'"),
        ("model: {id: tiny}\naccounts: {cookie_days: -1}", "'accounts.cookie_days' is -1"),
        ("model: {id: tiny}\naccounts: {cookie_days: 10000000}", "'accounts.cookie_days' is 10000000"),
        ("model: {id: tiny}\naccounts: {cookie_days: .inf}", "'accounts.cookie_days' is inf"),
        ("model: {id: tiny}\naccounts: {cookie_name: 'brain mri;x'}", "'accounts.cookie_name' is 'brain mri;x'"),
        ("model: {id: tiny}\nuploads: {max_pixels: 0}", "'uploads.max_pixels' is 0"),
        ("model: {id: tiny}\nuploads: {max_size_mb: big}", "'uploads.max_size_mb' is 'big'"),
        ("model: {id: ''}", "'model.id' is ''"),
        ("{}", "'model' is missing"),
        ("", "'model' is missing"),
        ("- a list", "expected sections"),
        ("model: [", "not valid YAML"),
        ("model: {id: 2026-02-30}", "not valid YAML"),
        ("model: {id: tiny}\n1: 2", "the key 1 is no text"),
        ("model: {id: tiny, 3: 4}", "the key model.3 is no text"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, text, says):
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        config.load_settings(write(tmp_path, text))
    assert str(caught.value).startswith("config.yaml: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_utf_8_is_one_line(tmp_path):
    (tmp_path / "config.yaml").write_bytes("model: {id: modèle}".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.yaml: not UTF-8 text") as caught:
        config.load_settings(tmp_path / "config.yaml")
    assert "\n" not in str(caught.value)


def test_a_database_url_in_the_wrong_place_is_not_repeated(tmp_path):
    text = "model: {id: tiny}\ndatabase: postgresql+psycopg://u:secret@h/d"
    with pytest.raises(ConfigError, match="'database': ") as caught:
        config.load_settings(write(tmp_path, text))
    assert "secret" not in str(caught.value)


def test_a_missing_file_says_where_it_was_expected(tmp_path):
    with pytest.raises(ConfigError, match="expected a YAML file at") as caught:
        config.load_settings(tmp_path / "config.yaml")
    assert str(tmp_path) in str(caught.value)


def test_a_folder_is_tried_before_anything_is_written_to_it(tmp_path):
    config.check_writable(tmp_path / "not" / "yet", "uploads.directory")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written to .* correct 'uploads\.directory'") as caught:
        config.check_writable(tmp_path / "file" / "uploads", "uploads.directory")
    assert str(tmp_path / "file" / "uploads") in str(caught.value)


def test_settings_cannot_be_changed(tmp_path):
    settings = config.load_settings(write(tmp_path, "model: {id: tiny}"))
    with pytest.raises(ValueError, match="frozen"):
        settings.model.id = "other"
