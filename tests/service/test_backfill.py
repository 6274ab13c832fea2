"""What happened while nobody listened is in the database all the same, once."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.schema.homeiq import identity_of
from app.schema.line_protocol import parse_line
from tests.fakes.influx import FakeInflux
from tests.fakes.still_house import StillHouse, now
from tests.service.process import service

SENSOR = "sensor.counter"


@pytest.fixture
def house() -> StillHouse:
    """Return a home whose time is ours."""
    return StillHouse(clock=now)


@pytest.fixture
async def influx() -> AsyncIterator[FakeInflux]:
    """Serve an InfluxDB 2 that is well."""
    async with FakeInflux().serving() as fake:
        yield fake


@pytest.fixture
def settings(environment: dict[str, str], influx: FakeInflux) -> dict[str, str]:
    """Return settings with which what was missed is read back."""
    return environment | {
        "INFLUXDB_URL": influx.url,
        "INFLUXDB_TOKEN": influx.token,
        "INFLUXDB_API": "v2",
        "BATCH_TIMEOUT": "0.1",
        "WEBSOCKET_MAX_RETRY_DELAY": "0.2",
        "BACKFILL_ENABLED": "true",
    }


def filled(health: Any) -> bool:
    """Return whether no gap is open any more and all is delivered."""
    gaps = health["gaps"]
    return bool(gaps["filled"] and not gaps["open"] and not health["sinks"][0]["held"])


def connected(health: Any) -> bool:
    """Return whether events stream."""
    return bool(health["subscription"]["is_subscribed"])


async def test_what_changed_while_the_service_was_away_is_written_after_its_start(
    house: StillHouse, settings: dict[str, str], influx: FakeInflux, tmp_path: Path
) -> None:
    """Each change once, with what stood before it, and told apart from live ones."""
    async with service(tmp_path, settings) as running:
        await running.until("/health", connected)
        for number in range(5):
            house.set_state(SENSOR, str(number), {"unit_of_measurement": "W"})
        await running.until("/health", lambda health: health["sinks"][0]["points_written"] == 5)
        assert await running.stop() == 0
    for number in range(5, 10):
        house.set_state(SENSOR, str(number))
    house.set_state("sensor.secret", "hidden")
    house.recorded.pop("sensor.secret")  # the recorder was told to leave it out
    async with service(tmp_path, settings) as running:
        await running.until("/health", connected)
        house.set_state(SENSOR, "10")
        await running.until("/health", filled, timeout_s=40)
        gaps = await running.get("/api/v1/gaps")
        assert await running.stop() == 0

    points = sorted(map(parse_line, influx.lines), key=lambda point: point.time_ns)
    counted = [point for point in points if point.tags["entity_id"] == SENSOR]
    (hidden,) = (point for point in points if point.tags["entity_id"] == "sensor.secret")
    assert [str(number) for number in range(11)] == [
        point.fields["state_value"] for point in counted
    ]
    assert [None, *map(str, range(10))] == [point.fields.get("previous_state") for point in counted]
    assert [number for number, point in enumerate(counted) if point.fields.get("backfilled")] == [
        5,
        6,
        7,
        8,
        9,
    ]
    assert all(
        point.fields["duration_in_state_seconds"]
        == pytest.approx((point.time_ns - before.time_ns) / 1e9)
        for before, point in itertools.pairwise(counted)
    )
    assert {"W"} == {point.tags["unit_of_measurement"] for point in counted}
    assert (hidden.fields["state_value"], hidden.fields["backfilled"]) == ("hidden", True)
    assert len(influx.lines) == len({identity_of(line) for line in influx.lines})
    (gap,) = gaps["gaps"]
    assert (
        gap["reason"],
        gap["state"],
        gap["changes"],
        gap["unrecorded"],
    ) == ("restart", "filled", 5, ["sensor.secret"])
