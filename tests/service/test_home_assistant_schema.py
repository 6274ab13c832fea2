"""INFLUXDB_SCHEMA=home_assistant: the whole service with Home Assistant's own schema."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.influx import FakeInflux
from tests.fakes.still_house import StillHouse, now
from tests.service.process import ROOT, service

_CONFIGURATION = """
influxdb:
  host: homeassistant.local
  password: !secret missing
  username: somebody
  default_measurement: !secret measurement
  exclude:
    domains: sun
"""


@pytest.fixture
def house() -> StillHouse:
    """Return a home that uses the real clock."""
    return StillHouse(clock=now)


@pytest.fixture
def settings(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Return settings with the folder of a Home Assistant; the database is added by each test."""
    folder = tmp_path / "homeassistant"
    folder.mkdir()
    (folder / "configuration.yaml").write_text(_CONFIGURATION)
    (folder / "secrets.yaml").write_text("measurement: units\n")
    return environment | {
        "INFLUXDB_TOKEN": "t" * 20,
        "INFLUXDB_API": "v2",
        "INFLUXDB_SCHEMA": "home_assistant",
        "INFLUXDB_SCHEMA_CONFIG": str(folder),
        "INSTANCE_NAME": "cabin",
        "BATCH_TIMEOUT": "0.1",
        "WEBSOCKET_MAX_RETRY_DELAY": "0.2",
        "CIRCUIT_BREAKER_RESET_SECONDS": "1",
        "BACKFILL_ENABLED": "true",
        "BACKFILL_COMMIT_INTERVAL": "0.5",
    }


def _database(influx: FakeInflux) -> dict[str, str]:
    return {"INFLUXDB_URL": influx.url, "INFLUXDB_TOKEN": influx.token}


def _is_subscribed(health: Any) -> bool:
    return bool(health["subscription"]["is_subscribed"])


def _is_delivered(health: Any) -> bool:
    sinks = health["sinks"]
    return not health["gaps"]["open"] and not any(sink["held"] for sink in sinks)


def _bodies(influx: FakeInflux) -> list[str]:
    """Return the lines without their times, in the order of their times."""
    lines = sorted({line.decode() for line in influx.lines}, key=lambda line: line.split()[-1])
    return [line.rpartition(" ")[0] for line in lines]


async def test_each_sink_gets_its_own_schema(
    house: StillHouse, settings: dict[str, str], tmp_path: Path
) -> None:
    """The embedded store has every change, the database what Home Assistant would write."""
    async with FakeInflux().serving() as influx:
        both = settings | _database(influx) | {"EMBEDDED_STORE": "on"}
        async with service(tmp_path, both) as running:
            await running.until("/health", _is_subscribed)
            house.set_state("sensor.a", "21.50", {"unit_of_measurement": "°C", "time": "x"})
            house.set_state("sensor.a", "unavailable", {})
            house.set_state("sun.sun", "above_horizon", {})
            house.set_state("light.b", "on", {"brightness": 128})
            house.remove("light.b")
            await running.until(
                "/health", lambda health: health["accounting"]["events"]["journaled"] == 5
            )
            health = await running.until("/health", _is_delivered)
            metrics = await running.text("/metrics")
            await running.stop()
        output = running.output.read_text()

    sinks = {sink["name"]: sink for sink in health["sinks"]}
    assert _bodies(influx) == [
        '°C,domain=sensor,entity_id=a,instance=cabin time_str="x",value=21.5',
        'units,domain=light,entity_id=b,instance=cabin brightness=128,state="on",value=1',
    ]
    assert all(line for request in influx.requests for line in request.lines)
    assert (sinks["influxdb"]["points_written"], sinks["influxdb"]["points_left_out"]) == (2, 3)
    assert (sinks["embedded"]["points_written"], sinks["embedded"]["points_left_out"]) == (5, 0)
    assert 'ingest_sink_points_left_out_total{sink="influxdb"} 3.0' in metrics
    assert output.count("Not used of INFLUXDB_SCHEMA_CONFIG") == 1
    assert "host, password, username" in output
    with sqlite3.connect(tmp_path / "data" / "events.db") as database:
        (events,) = database.execute("SELECT count(*) FROM events").fetchone()
    database.close()
    assert events == 5


async def test_a_gap_is_filled_in_the_same_schema(
    house: StillHouse, settings: dict[str, str], tmp_path: Path
) -> None:
    """Each missed change once, with the time that Home Assistant would have written."""
    async with FakeInflux().serving() as influx:
        chosen = settings | _database(influx)
        expected = []
        for first in (0, 10):
            async with service(tmp_path, chosen) as running:
                await running.until("/health", _is_subscribed)
                for number in range(first, first + 5):
                    house.set_state("sensor.a", str(number), {"unit_of_measurement": "W"})
                await running.until(
                    "/health", lambda health: health["accounting"]["events"]["journaled"] == 5
                )
                if first:
                    await running.until("/health", lambda health: health["gaps"]["filled"])
                await running.until("/health", _is_delivered)
                await running.stop()
            if not first:
                for number in range(5, 10):
                    house.set_state("sensor.a", str(number), {"unit_of_measurement": "W"})
        expected = [
            f"W,domain=sensor,entity_id=a,instance=cabin value={number}" for number in range(15)
        ]

    assert _bodies(influx) == expected
    assert len({line.split()[-1] for line in influx.lines}) == 15


async def test_what_is_in_the_journal_is_delivered_as_it_was_encoded(
    house: StillHouse, settings: dict[str, str], tmp_path: Path
) -> None:
    """Changing the schema changes only what is received from then on."""
    influx = FakeInflux()
    async with influx.serving():
        port = int(influx.url.rpartition(":")[2])
    chosen = settings | _database(influx)

    async with service(tmp_path, chosen) as running:
        await running.until("/health", _is_subscribed)
        house.set_state("light.b", "on", {})
        house.set_state("light.b", "unavailable", {})
        await running.until(
            "/health", lambda health: health["accounting"]["events"]["journaled"] == 2
        )
        await running.stop()
    async with (
        influx.serving(port=port),
        service(tmp_path, chosen | {"INFLUXDB_SCHEMA": "homeiq"}) as running,
    ):
        await running.until("/health", _is_subscribed)
        house.set_state("light.b", "off", {})
        await running.until(
            "/health", lambda health: health["accounting"]["events"]["journaled"] == 1
        )
        await running.until("/health", _is_delivered)
        await running.stop()

    first, second = influx.lines
    assert first.startswith(b"units,domain=light,entity_id=b,instance=cabin state=")
    assert second.startswith(b"home_assistant_events,")
    assert b'previous_state="unavailable"' in second


async def test_options_that_home_assistant_refuses_end_the_start_with_status_2(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """The file, the line and the key are named; nothing else is printed."""
    file = tmp_path / "homeassistant" / "configuration.yaml"
    file.write_text("influxdb:\n  tags:\n    a:\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "app",
        "run",
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "DATA_DIR": str(tmp_path / "data"),
            **settings,
            "INFLUXDB_URL": "http://127.0.0.1:1",
        },
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(20):
        _, errors = await process.communicate()

    assert process.returncode == 2
    assert f"INFLUXDB_SCHEMA_CONFIG: {file}:3: influxdb.tags.a must be text" in errors.decode()
    assert "Traceback" not in errors.decode()
