"""The options of the Home Assistant app, and where its files are."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app.commands.home_assistant_app import (
    LIVE,
    STORED,
    bring_live,
    broker_variables,
    environment,
    prepare,
    remove_copy,
    set_aside,
    store_copy,
)
from app.runtime.errors import SettingsError, StorageLocked
from app.runtime.sqlite import owned_folder

TOKEN = "f" * 112
DATA = Path("/data")


def _environment(options: dict[str, Any]) -> dict[str, str]:
    return environment(options, token=TOKEN, data=DATA)


def test_without_options_the_app_connects_through_the_supervisor() -> None:
    """No token is pasted, and only the Supervisor's ingress is trusted."""
    assert _environment({}) == {
        "HOME_ASSISTANT_URL": "ws://supervisor/core/websocket",
        "HOME_ASSISTANT_TOKEN": TOKEN,
        "HEALTH_IN_HOME_ASSISTANT": "auto",
        "WEBSOCKET_INGESTION_HOST": "0.0.0.0",
        "INGRESS_PEERS": "172.30.32.2",
        "DATA_DIR": "/data/live",
    }


def test_an_option_is_the_variable_of_its_name() -> None:
    """Numbers and switches become their text; an option that was cleared counts as unset."""
    options = {"influxdb_url": "http://db:8086", "embedded_retention_days": 7, "x": True, "y": None}

    found = _environment(options)

    assert found["INFLUXDB_URL"] == "http://db:8086"
    assert found["EMBEDDED_RETENTION_DAYS"] == "7"
    assert (found["X"], found["Y"]) == ("true", "")


def test_other_variables_override_the_app_but_not_who_is_trusted() -> None:
    """A user may name another Home Assistant, but nobody is let in by accident."""
    extra = [
        {"name": "home_assistant_url", "value": "http://other:8123"},
        {"name": "INGRESS_PEERS", "value": "0.0.0.0/0"},
        {"name": "DATA_DIR", "value": "/elsewhere"},
    ]

    found = _environment({"environment": extra})

    assert found["HOME_ASSISTANT_URL"] == "http://other:8123"
    assert found["INGRESS_PEERS"] == "172.30.32.2"
    assert found["DATA_DIR"] == "/data/live"


def test_the_supervisor_names_the_broker_of_an_app() -> None:
    """As the Supervisor answers when the Mosquitto app runs."""
    service = {"host": "core-mosquitto", "port": 8883, "ssl": True, "username": "addons"}

    assert broker_variables({"result": "ok", "data": service | {"password": "hush"}}) == {
        "MQTT_URL": "mqtts://core-mosquitto:8883",
        "MQTT_USERNAME": "addons",
        "MQTT_PASSWORD": "hush",
    }


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {"data": {}},
        {"data": {"host": "", "port": 1883}},
        {"data": {"host": "two words", "port": 1883}},
        {"data": {"host": "broker/path", "port": 1883}},
        {"data": {"host": "user@broker", "port": 1883}},
        {"data": {"host": "broker", "port": 70_000}},
        {"data": {"host": "broker", "port": "http"}},
    ],
)
def test_a_broker_that_cannot_be_used_is_none(answer: object) -> None:
    """It must not keep the app from starting: the health of the service goes by REST then."""
    assert broker_variables(answer) == {}


@pytest.mark.parametrize(
    "options",
    [
        {"influxdb_bucket": "a\0b"},
        {"influxdb_bucket": "\ud800"},
        {"environment": [{"name": "a=b", "value": "c"}]},
        {"environment": [{"name": "", "value": "c"}]},
    ],
    ids=["NUL", "surrogate", "equals sign", "no name"],
)
def test_an_option_that_no_variable_can_hold_is_named(options: dict[str, Any]) -> None:
    """The start ends with a sentence, not with a traceback."""
    with pytest.raises(SettingsError, match="no variable can have this name or value"):
        _environment(options)


def test_the_broker_of_the_supervisor_is_used_unless_another_one_is_named() -> None:
    """Its password would not be that of another one."""
    broker = {"MQTT_URL": "mqtt://core-mosquitto:1883", "MQTT_PASSWORD": "hush"}
    extra = [{"name": "mqtt_url", "value": "mqtt://mine"}]

    by_default = environment({}, token=TOKEN, data=DATA, broker=broker)
    named = environment({"environment": extra}, token=TOKEN, data=DATA, broker=broker)

    assert by_default.items() >= broker.items()
    assert named["MQTT_URL"] == "mqtt://mine"
    assert "MQTT_PASSWORD" not in named


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"influxdb_url": ["a"]}, "influxdb_url: must be a text"),
        ({"environment": "A=1"}, "environment: must be a list"),
        ({"environment": ["A=1"]}, "each entry needs a name"),
        ({"environment": [{"name": "A", "value": {}}]}, "A: must be a text"),
    ],
)
def test_options_of_another_kind_are_refused(options: dict[str, Any], problem: str) -> None:
    """The Supervisor validates them; a file that was edited by hand is not trusted."""
    with pytest.raises(SettingsError, match=problem):
        _environment(options)


@pytest.mark.parametrize("text", ["{", "[]", '"text"', "\0"])
def test_an_unusable_options_file_is_a_clear_error(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the file."""
    (tmp_path / "options.json").write_text(text)
    monkeypatch.setenv("SUPERVISOR_TOKEN", TOKEN)

    with pytest.raises(SettingsError, match=r"options\.json"):
        prepare(tmp_path)


def test_outside_of_the_supervisor_the_command_says_what_to_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is moved."""
    monkeypatch.delenv("SUPERVISOR_TOKEN", raising=False)
    (tmp_path / STORED).mkdir()

    with pytest.raises(SettingsError, match="python -m app run"):
        prepare(tmp_path)

    assert (tmp_path / STORED).exists()


def _write(file: Path, value: int) -> None:
    file.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS found (value)")
        connection.execute("INSERT INTO found VALUES (?)", (value,))
        connection.commit()


def _values(file: Path) -> list[int]:
    with closing(sqlite3.connect(file)) as connection:
        return [value for (value,) in connection.execute("SELECT value FROM found")]


def test_a_stopped_service_is_in_backups_and_a_running_one_is_not(tmp_path: Path) -> None:
    """The files move as one folder, so a start never finds only some of them."""
    _write(tmp_path / LIVE / "journal.db", 1)

    set_aside(tmp_path)
    assert _values(tmp_path / STORED / "journal.db") == [1]
    assert not (tmp_path / LIVE).exists()

    bring_live(tmp_path)
    assert _values(tmp_path / LIVE / "journal.db") == [1]
    assert not (tmp_path / STORED).exists()


def test_a_copy_holds_what_an_open_database_has_committed(tmp_path: Path) -> None:
    """Also what is only in its write-ahead log; the log and the lock are left out."""
    live = tmp_path / LIVE
    _write(live / "journal.db", 1)
    (live / "lock").touch()
    (live / "service.log").touch()
    (live / "filter.yaml").write_text("include: []")
    with closing(sqlite3.connect(live / "journal.db")) as open_database:
        open_database.execute("INSERT INTO found VALUES (2)")
        open_database.commit()
        assert (live / "journal.db-wal").stat().st_size

        store_copy(tmp_path)

    assert sorted(file.name for file in (tmp_path / STORED).iterdir()) == [
        "filter.yaml",
        "journal.db",
    ]
    assert _values(tmp_path / STORED / "journal.db") == [1, 2]
    remove_copy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LIVE]


def test_a_copy_that_a_killed_service_left_does_not_replace_newer_files(tmp_path: Path) -> None:
    """Only a restored backup has no live files."""
    _write(tmp_path / LIVE / "journal.db", 1)
    store_copy(tmp_path)
    _write(tmp_path / LIVE / "journal.db", 2)

    bring_live(tmp_path)

    assert _values(tmp_path / LIVE / "journal.db") == [1, 2]
    assert not (tmp_path / STORED).exists()


def test_a_second_backup_replaces_the_copy_of_the_first(tmp_path: Path) -> None:
    """Also what an interrupted one left."""
    _write(tmp_path / LIVE / "journal.db", 1)
    (tmp_path / "stored.new").mkdir()
    store_copy(tmp_path)
    _write(tmp_path / LIVE / "journal.db", 2)
    store_copy(tmp_path)

    assert _values(tmp_path / STORED / "journal.db") == [1, 2]
    assert not (tmp_path / "stored.new").exists()


def test_files_that_another_process_uses_are_not_moved(tmp_path: Path) -> None:
    """A second start must not take them from the first."""
    with owned_folder(tmp_path / LIVE), pytest.raises(StorageLocked):
        set_aside(tmp_path)

    assert (tmp_path / LIVE).exists()


def test_nothing_to_move_is_fine(tmp_path: Path) -> None:
    """A first start, and a start that failed before anything was written."""
    bring_live(tmp_path)
    set_aside(tmp_path)
    store_copy(tmp_path)
    remove_copy(tmp_path)

    assert list(tmp_path.iterdir()) == []
