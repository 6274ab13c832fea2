"""The object graph follows the settings: what its parts do, not how they are built."""

from __future__ import annotations

import asyncio
import contextlib
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from unittest.mock import Mock

import msgspec
import pytest

from app.api.connections import Connections
from app.container import Container
from app.main import _components, configure_logs
from app.runtime.errors import SourceAuthRejected, SourceUnavailable
from app.settings import CopySourceSettings, ServingSettings, _Section, load_settings
from app.settings_store import SettingsStore
from app.sinks.delivery import Delivery
from tests.fakes.influx import FakeInflux
from tests.fakes.points import numbered_lines
from tests.unit.test_homeiq import BARE

REQUIRED = {"HOME_ASSISTANT_URL": "http://ha:8123", "HOME_ASSISTANT_TOKEN": "t" * 40}
INFLUX = {"INFLUXDB_URL": "http://influx:8086"}
CLOSED_PORT = "http://127.0.0.1:1"

Build = Callable[[Mapping[str, str]], Container]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Build:
    """Return what builds the object graph of some variables; nothing is opened."""

    def built(variables: Mapping[str, str]) -> Container:
        for name, value in {"DATA_DIR": str(tmp_path), **REQUIRED, **variables}.items():
            monkeypatch.setenv(name, value)
        return Container(settings=load_settings(None))

    return built


@contextlib.asynccontextmanager
async def delivering(container: Container, points: int) -> AsyncIterator[Delivery]:
    """Journal some points and let the first sink deliver them."""
    (sink, *_), (delivery, *_) = container.sinks(), container.deliveries()
    async with container.dead_letters(), sink, container.journal() as journal:
        await journal.append(numbered_lines(1, points), received_at=time.time())
        running = asyncio.create_task(delivery.run())
        try:
            async with asyncio.timeout(20):
                yield delivery
        finally:
            running.cancel()
            await asyncio.wait([running])


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
async def test_batches_go_to_the_configured_bucket_with_the_configured_token(
    build: Build, kind: str
) -> None:
    """BATCH_SIZE is no bound below INFLUXDB_MAX_BATCH_POINTS, and the journal may be any."""
    async with FakeInflux(token="a", org="b", bucket="c").serving() as server:
        container = build(
            {
                "INFLUXDB_URL": server.url,
                "INFLUXDB_API": "v2",
                "INFLUXDB_TOKEN": "a",
                "INFLUXDB_ORG": "b",
                "INFLUXDB_BUCKET": "c",
                "INFLUXDB_MAX_BATCH_POINTS": "20",
                "BATCH_SIZE": "10",
                "BATCH_TIMEOUT": "0.1",
                "JOURNAL": kind,
            }
        )
        async with delivering(container, 45) as delivery:
            while delivery.status().points_written < 45:
                await asyncio.sleep(0.01)

    (query,) = {(each.query["org"], each.query["bucket"]) for each in server.requests}
    assert query == ("b", "c")
    assert max(len(each.lines) for each in server.requests) <= 20


async def test_a_user_and_a_password_select_influxdb_1(build: Build) -> None:
    """No version is configured."""
    async with FakeInflux(version="v1", token="", username="d", password="e").serving() as server:
        variables = {"INFLUXDB_USERNAME": "d", "INFLUXDB_PASSWORD": "e", "BATCH_SIZE": "1"}
        async with delivering(build({"INFLUXDB_URL": server.url, **variables}), 1) as delivery:
            while not delivery.status().points_written:
                await asyncio.sleep(0.01)

    expected = f"Basic {b64encode(b'd:e').decode()}"
    assert {each.headers["Authorization"] for each in server.requests} == {expected}


@pytest.mark.parametrize(("threshold", "state"), [("1", "open"), ("1000", "closed")])
async def test_the_threshold_of_the_circuit_breakers_is_the_configured_one(
    build: Build, threshold: str, state: str
) -> None:
    """Both of the database's and of Home Assistant's."""
    container = build(
        {
            "HOME_ASSISTANT_URL": CLOSED_PORT,
            "INFLUXDB_URL": CLOSED_PORT,
            "BATCH_SIZE": "1",
            "CIRCUIT_BREAKER_THRESHOLD": threshold,
            "WEBSOCKET_MAX_RETRIES": "0",
        }
    )
    async with delivering(container, 1) as delivery:
        while delivery.status().last_error is None:
            await asyncio.sleep(0.01)
        with pytest.raises(SourceUnavailable):
            await container.source().run(Mock())

        states = (delivery.status().breaker, container.source().status().breaker.state)

    assert states == (state, state)


def test_points_have_the_configured_measurement_tag_and_fields(build: Build) -> None:
    """INFLUXDB_MEASUREMENT, INSTANCE_NAME and INFLUXDB_ATTRIBUTE_FIELDS."""
    container = build(
        {
            "INFLUXDB_MEASUREMENT": "m",
            "INSTANCE_NAME": "cabin",
            "INFLUXDB_ATTRIBUTE_FIELDS": "hue",
        }
    )
    change = msgspec.structs.replace(BARE, attributes=b'{"hue":7}')

    encoder = container.encoder()
    assert encoder is not None
    line = encoder.encode([change]).data

    assert line.startswith(b"m,")
    assert b"instance=cabin" in line
    assert b"attr_hue=7" in line


@pytest.mark.parametrize(
    ("variables", "most"),
    [
        ({"JOURNAL_MAX_MB": "64"}, 64_000_000),
        ({"JOURNAL": "memory", "JOURNAL_MAX_MB": "64", "MAX_MEMORY_MB": "100"}, 25_000_000),
        ({"JOURNAL": "memory", "JOURNAL_MAX_MB": "16", "MAX_MEMORY_MB": "100"}, 16_000_000),
    ],
)
def test_the_journal_is_bounded_and_in_memory_leaves_room(
    build: Build, variables: Mapping[str, str], most: int
) -> None:
    """A quarter of MAX_MEMORY_MB at most."""
    assert build(variables).journal().status().max_bytes == most


def test_stopping_takes_at_most_the_configured_time(build: Build) -> None:
    """SHUTDOWN_TIMEOUT, minus what closing the files needs."""
    supervisor = build({"SHUTDOWN_TIMEOUT": "3"}).supervisor()

    supervisor.begin_stop()

    assert 1.5 <= supervisor.remaining_s <= 3


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


def test_the_container_builds_each_component_once(build: Build) -> None:
    """Two journals in one process would lose what the other writes."""
    container = build({**INFLUX, "EMBEDDED_STORE": "on"})

    for part in ("journal", "influx_sink", "embedded_store", "source", "catalog", "deliveries"):
        assert getattr(container, part)() is getattr(container, part)(), part


def test_every_setting_is_read_when_the_service_is_built(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is read by something when the service is built."""
    file = {"DATA_API_URL": "http://data-api:8006", "STORE_DEVICE_HISTORY_IN_INFLUXDB": "true"}
    file |= {"HEALTH_IN_HOME_ASSISTANT": "auto", "MQTT_URL": "mqtt://broker"}
    read: set[tuple[type, str]] = set()

    def recorded(section: _Section, name: str) -> object:
        read.add((type(section), name))
        return object.__getattribute__(section, name)

    for kind, schema in (("sqlite", "homeiq"), ("memory", "home_assistant")):
        variables = {"EMBEDDED_STORE": "on", "JOURNAL": kind, "INFLUXDB_SCHEMA": schema}
        container = build({**INFLUX, **file, **variables})
        with monkeypatch.context() as patch:
            patch.setattr(_Section, "__getattribute__", recorded)
            patch.setattr("app.main.configure", lambda **_: None)  # the log is the process's
            container.backfill()
            container.health_report()
            _components(container, Connections(), SettingsStore())
            configure_logs(container.settings())

    sections = [type(section) for _, section in container.settings()]
    every = {(section, name) for section in sections for name in section.model_fields}
    of_commands = {
        (ServingSettings, "host"),
        (ServingSettings, "port"),
        *((CopySourceSettings, name) for name in CopySourceSettings.model_fields),
    }
    assert every - read == of_commands


def test_the_timeouts_for_home_assistant_are_the_documented_ones(build: Build) -> None:
    """A dead connection is noticed within 30 s, megabytes are read, a bad token tried slowly."""
    source = build({}).source()

    endpoint = source._endpoint
    assert endpoint._ping_interval_s + endpoint._ping_timeout_s <= 30
    assert endpoint._max_message_bytes >= 64 * 1024 * 1024
    assert endpoint._auth_timeout_s <= 10
    assert endpoint.command_timeout_s <= 30
    assert source._reconnect.delay_s(SourceAuthRejected(), has_streamed=False) == 300
