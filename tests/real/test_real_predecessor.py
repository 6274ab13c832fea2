"""A database with earlier data: the predecessor's points, and fields of another type."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.still_house import NOON, StillHouse
from tests.real.influx_1 import Database
from tests.real.servers import Server
from tests.service.process import Service, service

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

HOME_ASSISTANT_TOKEN = "t" * 40
CHANGES = 300
_REFUSING_AFTER = 99
_NOON_MS = int(NOON.timestamp()) * 1_000
_NUMBERS = [f"{number}.5" for number in range(CHANGES)]

PREDECESSOR = [
    "home_assistant_events,domain=sensor,entity_id=sensor.kitchen,event_type=state_changed"
    " state_value=\"{'entity_id': 'sensor.kitchen', 'state': '"
    f"{number}.5', 'attributes': {{'unit': '°C'}}}}\","
    "previous_state=\"{'state': 'unknown'}\","
    'attributes="{\\"friendly_name\\": \\"Kitchen\\"}",'
    'context_id="01JD",friendly_name="Kitchen",duration_in_state_seconds=12.5'
    f" {_NOON_MS - 3_600_000 + number * 1_000}"
    for number in range(10)
]
"""States as the repr of a dict, at whole milliseconds, an hour before ours."""

CONFLICTS = {
    "value": 'value="21.5"',
    "state_value": "state_value=21.5",
    "available": 'available="yes"',
}
"""A field of the point schema, and an earlier value of another type."""


@pytest.fixture
async def house() -> StillHouse:
    """Return a home that only the test changes."""
    return StillHouse()


@pytest.fixture
async def home_assistant(house: StillHouse) -> AsyncIterator[FakeHomeAssistant]:
    """Serve that home."""
    async with FakeHomeAssistant(house, token=HOME_ASSISTANT_TOKEN) as fake:
        house.fire = fake.fire
        yield fake


@pytest.fixture
def database(influx_1: Server) -> Database:
    """Return an empty database."""
    database = Database(influx_1.url, "with a past")
    database.create()
    return database


async def test_the_predecessors_points_and_ours_coexist(
    home_assistant: FakeHomeAssistant,
    house: StillHouse,
    influx_1: Server,
    database: Database,
    tmp_path: Path,
) -> None:
    """Same measurement, entity and field names: there is no conflict, and nothing is lost."""
    database.write("\n".join(PREDECESSOR).encode(), precision="ms")
    theirs = database.points()

    async with service(tmp_path, _settings(home_assistant, influx_1, database)) as running:
        await _play(running, house)
        health = await _until_settled(running)

    stored = database.points()
    assert len(theirs) == 10
    assert [point for point in stored if point in theirs] == theirs
    assert [point.fields["state_value"] for point in stored if point not in theirs] == _NUMBERS
    assert health["status"] == "healthy", health["reasons"]


@pytest.mark.parametrize("field", CONFLICTS)
async def test_a_field_type_conflict_is_named_and_all_points_are_written_once_it_is_fixed(  # noqa: PLR0917 - fixtures
    home_assistant: FakeHomeAssistant,
    house: StillHouse,
    influx_1: Server,
    database: Database,
    tmp_path: Path,
    field: str,
) -> None:
    """Health names the field to drop; then pending points are written, dead letters by request."""
    database.write(_with_field(field))

    async with service(tmp_path, _settings(home_assistant, influx_1, database)) as running:
        await _play(running, house)
        refusing = await _until_refusing(running)
        database.run("DROP MEASUREMENT home_assistant_events")
        await _until_settled(running)
        retried = await _retry(running)
        health = await _until_settled(running)

    assert _named_in(refusing, field)
    assert retried == _REFUSING_AFTER
    assert [point.fields["state_value"] for point in database.points()] == _NUMBERS
    assert health["status"] == "healthy", health["reasons"]


async def test_points_that_one_database_refuses_go_to_another_after_a_restart(
    home_assistant: FakeHomeAssistant,
    house: StillHouse,
    influx_1: Server,
    database: Database,
    tmp_path: Path,
) -> None:
    """A new INFLUXDB_BUCKET is created and gets every point that the old one did not accept."""
    field = "duration_in_state_seconds"
    database.write(_with_field(field))
    other = Database(influx_1.url, "without a past")
    other.run(f'DROP DATABASE "{other.name}"')

    async with service(tmp_path, _settings(home_assistant, influx_1, database)) as running:
        await _play(running, house)
        refusing = await _until_refusing(running)
        await running.stop()
    async with service(tmp_path, _settings(home_assistant, influx_1, other)) as running:
        await _until_settled(running)
        retried = await _retry(running)
        await _until_settled(running)

    # The first change has no duration, so the old database had no reason to refuse it.
    accepted = [point for point in database.points() if "state_value" in point.fields]
    assert [point.fields["state_value"] for point in accepted] == _NUMBERS[:1]
    assert [point.fields["state_value"] for point in other.points()] == _NUMBERS[1:]
    assert _named_in(refusing, field)
    assert retried == _REFUSING_AFTER


def _with_field(field: str) -> bytes:
    """Return a line with the field in its other type, in the week of the test's changes."""
    written = CONFLICTS.get(field, f'{field}="61.2"')
    return f"home_assistant_events,entity_id=sensor.old {written} {_NOON_MS}000000".encode()


def _settings(
    home_assistant: FakeHomeAssistant, influx: Server, database: Database
) -> dict[str, str]:
    return {
        "HOME_ASSISTANT_URL": home_assistant.url,
        "HOME_ASSISTANT_TOKEN": HOME_ASSISTANT_TOKEN,
        "INFLUXDB_URL": influx.url,
        "INFLUXDB_API": "v1",
        "INFLUXDB_BUCKET": database.name,
        "BATCH_TIMEOUT": "0.1",
        "CIRCUIT_BREAKER_RESET_SECONDS": "1",
    }


async def _play(running: Service, house: StillHouse) -> None:
    """Change the kitchen, and wait until everything is in the journal."""
    await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
    for state in _NUMBERS:
        house.set_state("sensor.kitchen", state)
    await running.until(
        "/health", lambda health: health["accounting"]["events"]["journaled"] == CHANGES
    )


async def _until_refusing(running: Service) -> Any:
    return await running.until(
        "/health", lambda health: health["sinks"][0]["state"] == "refusing", timeout_s=30
    )


async def _until_settled(running: Service) -> Any:
    """Wait until nothing is pending."""
    return await running.until(
        "/health",
        lambda health: health["sinks"][0]["held"] == 0 and health["sinks"][0]["state"] == "ok",
        timeout_s=30,
    )


async def _retry(running: Service) -> int:
    """Send the dead letters again, and return their number."""
    async with httpx.AsyncClient(base_url=running.url, timeout=10) as client:
        answer = await client.post("/api/v1/dead-letters/retry")
    return int(answer.raise_for_status().json()["retried"])


def _named_in(health: Any, field: str) -> bool:
    """Whether a reason says that InfluxDB refuses every point, and for which field."""
    return any(
        "refusing every point" in reason and f'"{field}"' in reason for reason in health["reasons"]
    )
