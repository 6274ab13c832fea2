"""DATA_DIR/settings.json: below the environment and `.env`, above the defaults."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from app.runtime.environment import read_environment
from app.runtime.errors import SettingsError
from app.runtime.settings_file import read_settings, write_settings
from app.settings import load_for_setup, load_settings, stored_settings, variables, warnings

TOKEN = "t" * 40
HOME = {"HOME_ASSISTANT_URL": "http://ha:8123", "HOME_ASSISTANT_TOKEN": TOKEN}


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the file is, in an environment that sets only DATA_DIR."""
    for variable in variables():
        for name in variable.names:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    return tmp_path / "settings.json"


def test_what_is_written_is_read_again(file: Path) -> None:
    """Every setting keeps its text."""
    write_settings(file, HOME)

    assert stored_settings(read_environment(None)) == (file, HOME)
    assert load_settings().home_assistant.token.get_secret_value() == TOKEN


def test_only_its_owner_may_read_the_file(file: Path) -> None:
    """Also where a start that was interrupted left an unfinished one."""
    unfinished = file.with_name("settings.json.new")
    unfinished.write_text("{")
    unfinished.chmod(0o644)

    write_settings(file, HOME)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [each.name for each in file.parent.iterdir()] == ["settings.json"]


def test_a_write_that_fails_leaves_the_file_as_it_was(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new content is complete and on the disk before the name is given to it."""
    write_settings(file, HOME)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_settings(file, {**HOME, "LOG_LEVEL": "DEBUG"})

    assert stored_settings(read_environment(None))[1] == HOME


def test_the_file_has_precedence_over_the_defaults(file: Path) -> None:
    """It is where a set-up in the browser stores what it chose."""
    write_settings(file, {**HOME, "BATCH_SIZE": "7"})

    assert load_settings().batch.size == 7


def test_the_env_file_has_precedence_over_the_file(file: Path, tmp_path: Path) -> None:
    """Whoever edits `.env` means it."""
    write_settings(file, {**HOME, "BATCH_SIZE": "7", "BATCH_TIMEOUT": "9"})
    env_file = tmp_path / ".env"
    env_file.write_text("BATCH_SIZE=8\n")

    batch = load_settings(env_file).batch

    assert (batch.size, batch.timeout_s) == (8, 9.0)


def test_the_environment_has_precedence_over_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under any of its names; empty counts as unset."""
    write_settings(file, {**HOME, "BATCH_SIZE": "7"})
    monkeypatch.setenv("HA_HTTP_URL", "http://other:8123")
    monkeypatch.setenv("BATCH_SIZE", "")

    settings = load_settings()

    assert settings.home_assistant.url == "ws://other:8123/api/websocket"
    assert settings.batch.size == 7


def test_a_mounted_secret_has_precedence_over_the_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two do not contradict each other as two variables would."""
    write_settings(file, HOME)
    secret = tmp_path / "token"
    secret.write_text("u" * 40)
    monkeypatch.setenv("HOME_ASSISTANT_TOKEN_FILE", str(secret))

    assert load_settings().home_assistant.token.get_secret_value() == "u" * 40


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is damaged or was not written by this service"),
        ('{"version": 1, "settings": {"HOME', "is damaged or was not written by this service"),
        ("[" * 100_000, "is damaged or was not written by this service"),
        ("[]", "is damaged or was not written by this service"),
        ('{"settings": {}}', "is damaged or was not written by this service"),
        ('{"version": 1, "settings": {}, "more": 1}', "is damaged or was not written by"),
        ('{"version": 2, "settings": {}}', "is of a newer version of this service"),
        ('{"version": 1, "settings": {"BATCH_SIZ": "7"}}', "'BATCH_SIZ' is no setting that it may"),
        ('{"version": 1, "settings": {"HA_TOKEN": "x"}}', "'HA_TOKEN' is no setting that it may"),
        ('{"version": 1, "settings": {"DATA_DIR": "/x"}}', "'DATA_DIR' is no setting that it may"),
        ('{"version": 1, "settings": {"LOG_FILE": "/x"}}', "'LOG_FILE' is no setting that it may"),
        ('{"version": 1, "settings": {"BATCH_SIZE": 7}}', "the value of BATCH_SIZE is not a text"),
    ],
)
def test_an_unusable_file_ends_the_start_and_stays(file: Path, content: str, sentence: str) -> None:
    """It may hold the only copy of the token, so nothing is replaced or guessed."""
    file.write_text(content)

    for load in (load_settings, load_for_setup, warnings):
        with pytest.raises(SettingsError, match=f"settings.json: {sentence}"):
            load()
    assert file.read_text() == content


def test_the_file_cannot_name_files_code_or_who_is_trusted() -> None:
    """Its settings come from clients of the API."""
    names = {each.names[0] for each in variables() if each.is_environment_only}

    assert {name for name in names if not name.endswith("_FILE")} == {
        "COPY_FROM_CLIENT_CERT",
        "COPY_FROM_CLIENT_KEY",
        "DATA_DIR",
        "HOMEIQ_SHARED_PATH",
        "HOME_ASSISTANT_CLIENT_CERT",
        "HOME_ASSISTANT_CLIENT_KEY",
        "INFLUXDB_CLIENT_CERT",
        "INFLUXDB_CLIENT_KEY",
        "INFLUXDB_SCHEMA_CONFIG",
        "INGEST_TRANSFORMS",
        "INGRESS_PEERS",
        "TRUSTED_PEERS",
        "TRUSTED_PROXIES",
    }
    assert {"LOG_FILE", "API_KEY_FILE", "ENTITY_FILTER_CONFIG_FILE"} <= names


def test_an_invalid_value_in_the_file_is_reported_like_one_in_the_environment(file: Path) -> None:
    """With the name of the setting and its description."""
    write_settings(file, {**HOME, "BATCH_SIZE": "0"})

    with pytest.raises(SettingsError, match="BATCH_SIZE: input should be greater than 0"):
        load_settings()


def test_a_first_start_needs_the_set_up(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that are not about Home Assistant apply to it, wherever they come from."""
    write_settings(file, {"BATCH_SIZE": "7"})
    monkeypatch.setenv("WEBSOCKET_INGESTION_PORT", "9000")
    monkeypatch.setenv("HOME_ASSISTANT_URL", "")  # as in a copy of .env.example
    monkeypatch.setenv("API_TOKEN", "of another program")

    settings = load_for_setup()

    assert settings is not None
    assert (settings.batch.size, settings.serving.port) == (7, 9000)


@pytest.mark.parametrize(
    "name",
    [
        "HOME_ASSISTANT_URL",
        "HA_TOKEN",
        "HOME_ASSISTANT_TOKEN_FILE",
        "HA_SSL_VERIFY",
        "HOMEASSISTANT_URL",
        "HOME_ASISTANT_URL",
        "home_assistant_tokn",
        "HASS_TOKEN",
    ],
)
def test_a_partial_or_misspelt_set_needs_no_set_up(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It is a mistake in a configuration that exists: the start ends with status 2."""
    monkeypatch.setenv(name, "true")

    assert load_for_setup() is None
    with pytest.raises(SettingsError, match="HOME_ASSISTANT_"):
        load_settings()


def test_a_partial_set_in_the_file_needs_no_set_up(file: Path) -> None:
    """Only hands can have made it."""
    write_settings(file, {"HOME_ASSISTANT_URL": "http://ha:8123"})

    assert load_for_setup() is None


def test_an_unreadable_line_of_the_env_file_needs_no_set_up(tmp_path: Path) -> None:
    """The line may be the one about Home Assistant."""
    env_file = tmp_path / ".env"
    env_file.write_text('HOME_ASSISTANT_URL="http://ha:8123\n')

    with pytest.raises(SettingsError, match="HOME_ASSISTANT_URL: line 1"):
        load_for_setup(env_file)


def test_the_set_up_reports_settings_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start with an invalid setting ends with status 2 in any mode."""
    monkeypatch.setenv("BATCH_SIZE", "0")

    with pytest.raises(SettingsError, match="BATCH_SIZE"):
        load_for_setup()


@pytest.mark.parametrize("folder", ["missing", "a file"])
def test_nothing_is_read_from_a_folder_that_is_none(tmp_path: Path, folder: str) -> None:
    """The start creates it, or reports DATA_DIR."""
    (tmp_path / "a file").touch()

    assert read_settings(tmp_path / folder / "settings.json", allowed=()) == {}
