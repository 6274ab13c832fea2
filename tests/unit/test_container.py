"""Every setting reaches the part that acts on it, and the fixed patience is the promised one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import translate
from operator import attrgetter
from pathlib import Path

import pytest

from app.container import Container
from app.journal.journal import SqliteJournal
from app.journal.memory import MemoryJournal
from app.settings import load_settings

REQUIRED = {"HOME_ASSISTANT_URL": "http://ha:8123", "HOME_ASSISTANT_TOKEN": "t" * 40}
INFLUX = {"INFLUXDB_URL": "http://influx:8086"}

Build = Callable[[Mapping[str, str]], Container]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Build:
    """Return what builds the object graph of some variables; nothing is opened."""

    def built(variables: Mapping[str, str]) -> Container:
        for name, value in {"DATA_DIR": str(tmp_path), **REQUIRED, **variables}.items():
            monkeypatch.setenv(name, value)
        return Container(settings=load_settings(None))

    return built


@pytest.mark.parametrize(
    ("name", "value", "part", "attribute", "expected"),
    [
        ("HA_SSL_VERIFY", "false", "source", "_ssl_verify", False),
        ("WEBSOCKET_MAX_RETRIES", "7", "source", "_max_retries", 7),
        ("WEBSOCKET_MAX_RETRY_DELAY", "9", "source", "_backoff.max", 9.0),
        ("CIRCUIT_BREAKER_THRESHOLD", "2", "source", "_breaker._breaker.fail_max", 2),
        ("CIRCUIT_BREAKER_THRESHOLD", "2", "delivery", "_breaker._breaker.fail_max", 2),
        ("CIRCUIT_BREAKER_RESET_SECONDS", "4", "source", "_breaker._reset_s", 4.0),
        ("CIRCUIT_BREAKER_RESET_SECONDS", "4", "delivery", "_breaker._reset_s", 4.0),
        ("SHUTDOWN_TIMEOUT", "3", "supervisor", "_grace_s", 3.0),
        ("MAX_MEMORY_MB", "321", "observer", "_memory_limit_mb", 321),
        ("INSTANCE_NAME", "cabin", "encoder", "_instance", "cabin"),
        ("INFLUXDB_MEASUREMENT", "m", "encoder", "_measurement", b"m"),
        ("INFLUXDB_ATTRIBUTE_FIELDS", "hue", "encoder", "_wanted.pattern", translate("hue")),
        ("INFLUXDB_URL", "http://db:8086", "influx_sink", "_url", "http://db:8086"),
        ("INFLUXDB_TIMEOUT", "6", "influx_sink", "_timeout_s", 6.0),
        ("INFLUXDB_API", "v3", "influx_sink", "_api", "v3"),
        ("INFLUXDB_TOKEN", "a", "influx_sink", "_target.token", "a"),
        ("INFLUXDB_ORG", "b", "influx_sink", "_target.org", "b"),
        ("INFLUXDB_BUCKET", "c", "influx_sink", "_target.bucket", "c"),
        ("INFLUXDB_USERNAME", "d", "influx_sink", "_target.username", "d"),
        ("INFLUXDB_PASSWORD", "e", "influx_sink", "_target.password", "e"),
        ("INFLUXDB_MAX_PENDING_POINTS", "77", "intake", "_max_pending_points", 77),
        ("INFLUXDB_OVERFLOW_STRATEGY", "drop_new", "intake", "_overflow", "drop_new"),
        ("INFLUXDB_OVERFLOW_STRATEGY", "drop_new", "journal", "_bounds.overflow", "drop_new"),
        ("INFLUXDB_MAX_BATCH_POINTS", "900", "delivery", "_limits.max_points", 900),
        ("BATCH_SIZE", "50", "delivery", "_batch_points", 50),
        ("BATCH_TIMEOUT", "2", "delivery", "_batch_timeout_s", 2.0),
        ("JOURNAL_COMMIT_INTERVAL", "0.3", "intake", "_commit_interval_s", 0.3),
        ("JOURNAL_MAX_MB", "64", "journal", "_bounds.max_bytes", 64_000_000),
        ("JOURNAL_MIN_FREE_MB", "5", "journal", "_bounds.min_free_bytes", 5_000_000),
        ("JOURNAL", "sqlite", "journal", "__class__", SqliteJournal),
        ("JOURNAL", "memory", "journal", "__class__", MemoryJournal),
        ("EMBEDDED_RETENTION_DAYS", "2", "embedded_store", "_retention_ns", 172_800 * 10**9),
    ],
)
def test_a_setting_reaches_the_part_that_acts_on_it(  # noqa: PLR0917 - a table: a column each
    build: Build, name: str, value: str, part: str, attribute: str, expected: object
) -> None:
    """What the part makes of it is tested with the part."""
    container = build({**INFLUX, "EMBEDDED_STORE": "on", name: value})

    built = container.deliveries()[0] if part == "delivery" else getattr(container, part)()

    assert attrgetter(attribute)(built) == expected


@pytest.mark.parametrize(
    ("variables", "sinks"),
    [
        ({}, ["embedded"]),
        (INFLUX, ["influxdb"]),
        ({**INFLUX, "EMBEDDED_STORE": "on"}, ["influxdb", "embedded"]),
        ({**INFLUX, "EMBEDDED_STORE": "off"}, ["influxdb"]),
    ],
)
def test_the_sinks_are_those_of_the_settings(
    build: Build, variables: Mapping[str, str], sinks: list[str]
) -> None:
    """Each has a delivery of its own."""
    container = build(variables)

    assert [sink.name for sink in container.sinks()] == sinks
    assert [delivery.name for delivery in container.deliveries()] == sinks


def test_the_patience_with_home_assistant_is_the_promised_one(build: Build) -> None:
    """A dead connection is noticed within 30 s, megabytes are read, a bad token tried slowly."""
    source = build({}).source()

    assert source._ping_interval_s + source._ping_timeout_s <= 30
    assert source._max_message_bytes >= 64 * 1024 * 1024
    assert source._auth_retry_s >= 300
    assert source._auth_timeout_s <= 10
    assert source._command_timeout_s <= 30
