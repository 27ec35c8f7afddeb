"""``config.yaml`` -> frozen settings. An unknown key or wrong value is one line that names it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from brainmri.errors import ConfigError

DEFAULT_PATH = Path(__file__).resolve().parent.parent / "config.yaml"
IGNORED_NAMES = frozenset({"thumbs.db", "desktop.ini", "dicomdir"})
"""Files, in lower case, that systems leave beside images: no door takes them for images."""

_AE_TITLE = r"^[!-\[\]-~][ -\[\]-~]{0,15}$"  # PS3.5 6.2: no backslash, no control characters, not spaces alone


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(_Section):
    """Which model answers, and on which engine."""

    id: str = Field(min_length=1)
    directory: Path = Path("models")
    engine: Literal["auto", "openvino", "keras"] = "auto"


class DataSettings(_Section):
    """Where the image data set lies (``BRAINMRI_DATA`` wins)."""

    root: Path = Path("data/brain_tumor_mri")


class EvaluationSettings(_Section):
    """Where saved evaluation runs and audits lie."""

    directory: Path = Path("evaluations")


class DatabaseSettings(_Section):
    """SQLAlchemy URL; relative SQLite paths count from the configuration's folder."""

    url: str = "sqlite:///data/brainmri.db"


class UploadSettings(_Section):
    """Where uploads are kept and what is too large."""

    directory: Path = Path("uploads")
    max_size_mb: PositiveFloat = 20
    max_pixels: PositiveInt = 50_000_000
    max_files: PositiveInt = 500


class AccountSettings(_Section):
    """Who may come in, and how long a sign-in lasts."""

    signup: Literal["open", "invite", "closed"] = "open"
    guest: bool = True
    cookie_name: str = Field(default="brainmri", pattern=r"^[A-Za-z0-9_.-]+$")  # what every browser sends back as it is
    cookie_days: PositiveFloat = Field(default=7, le=3650)
    key_file: Path = Path("data/cookie.key")
    admin_sees_images: bool = False


class DicomSettings(_Section):
    """What happens to DICOM on the way in."""

    deidentify: bool = True
    keep_originals: bool = False
    key_file: Path = Path("data/uid.key")
    max_slices: PositiveInt = 2_000
    max_archive_mb: PositiveFloat = 1_000


class PacsServer(_Section):
    """Another DICOM node."""

    name: str = Field(min_length=1)
    ae_title: str = Field(pattern=_AE_TITLE)
    host: str = Field(min_length=1)
    port: PositiveInt = Field(le=65_535)


class PacsSettings(_Section):
    """DICOM nodes to ask, and the listener that others send to.

    ``callers`` are AE titles that may send beside the servers'; ``answer_to`` names the server that gets the listener's
    answers (empty: none); a study is answered once nothing of it has come for ``quiet_seconds``.
    """

    ae_title: str = Field(default="BRAINMRI", pattern=_AE_TITLE)
    servers: tuple[PacsServer, ...] = ()
    host: str = "127.0.0.1"
    port: PositiveInt = Field(default=11_112, le=65_535)
    callers: tuple[Annotated[str, Field(pattern=_AE_TITLE)], ...] = ()
    answer_to: str = ""
    quiet_seconds: PositiveFloat = 10
    spool: Path = Path("data/pacs")
    timeout_seconds: PositiveFloat = 30

    @model_validator(mode="after")
    def _names_are_known_and_differ(self):
        names = [server.name for server in self.servers]
        if len(set(names)) < len(names):
            raise ValueError("two servers have the same name; give each its own")
        if self.answer_to and self.answer_to not in names:
            raise ValueError(f"answer_to is {self.answer_to!r}; expected the name of one of servers, or empty")
        return self


class ReportSettings(_Section):
    """How reports are set: ``han`` is whose forms Han characters take in text without kana or hangul."""

    han: Literal["zh-Hans", "zh-Hant", "zh-HK", "ja", "ko"] = "zh-Hans"


class ServingSettings(_Section):
    """Micro-batching of concurrent predictions."""

    max_batch: PositiveInt = 32
    queue_size: PositiveInt = 256


class Settings(_Section):
    """All settings; relative paths are resolved against the folder of ``config.yaml``."""

    model: ModelSettings
    data: DataSettings = DataSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    database: DatabaseSettings = DatabaseSettings()
    uploads: UploadSettings = UploadSettings()
    accounts: AccountSettings = AccountSettings()
    dicom: DicomSettings = DicomSettings()
    pacs: PacsSettings = PacsSettings()
    reports: ReportSettings = ReportSettings()
    serving: ServingSettings = ServingSettings()


def load_settings(path: Path | str | None = None) -> Settings:
    """Read and check the configuration.

    Parameters
    ----------
    path : path, optional
        Default: ``BRAINMRI_CONFIG``, else ``config.yaml`` beside the package.

    Raises
    ------
    ConfigError
        Missing file, bad YAML, unknown key or wrong value; one line that names it.
    """
    path = Path(path or os.environ.get("BRAINMRI_CONFIG") or DEFAULT_PATH).resolve()
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"{path.name}: cannot be read ({error.strerror}); expected a YAML file at {path}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name}: not UTF-8 text ({error.reason}, byte {error.start}); save it so") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a day such as 2026-02-30
        raise ConfigError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path.name}: expected sections such as 'model:', got {type(raw).__name__}")
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("; ".join(_describe(path.name, e) for e in error.errors())) from error
    return _resolve(settings, path.parent)


def check_writable(folder: Path, key: str) -> None:
    """Find out early that nothing can be written below a folder; makes nothing there.

    Parameters
    ----------
    key : str
        The setting that names the folder.

    Raises
    ------
    ConfigError
    """
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written to ({error.strerror}); correct '{key}' in the configuration, or who may "
            "write there"
        ) from error


def _describe(file_name: str, error) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{file_name}: unknown key '{key}'; remove it or correct its spelling"
    if error["type"] == "missing":
        return f"{file_name}: '{key}' is missing"
    if error["type"] == "invalid_key":
        return f"{file_name}: the key {key} is no text; remove it or put it in quotes"
    if key.startswith("database"):  # may hold a password
        return f"{file_name}: '{key}': {error['msg']}"
    return f"{file_name}: '{key}' is {error['input']!r}: {error['msg']}"


def _resolve(settings: Settings, base: Path) -> Settings:
    """Make relative paths absolute, and let BRAINMRI_DATA override the data root."""
    updates = {}
    for name, section in settings:
        paths = {key: base / value for key, value in section if isinstance(value, Path)}
        updates[name] = section.model_copy(update=paths)
    if root := os.environ.get("BRAINMRI_DATA"):
        updates["data"] = settings.data.model_copy(update={"root": Path(root).absolute()})
    url = settings.database.url
    prefix = "sqlite:///"
    if url.startswith(prefix) and not url.startswith(prefix + "/") and ":memory:" not in url:
        updates["database"] = DatabaseSettings(url=f"{prefix}{base / url[len(prefix) :]}")
    return settings.model_copy(update=updates)
