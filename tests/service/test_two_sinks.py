"""A database and the embedded store at once: neither waits for the other."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.influx import FakeInflux
from tests.fakes.still_house import StillHouse
from tests.service.process import Service, service

HOME_ASSISTANT_TOKEN = "t" * 40
CHANGES = 2_000
_STATE = re.compile(rb'state_value="([^"]*)"')


@pytest.fixture
async def house() -> StillHouse:
    """Return a home where nothing moves by itself."""
    return StillHouse()


@pytest.fixture
async def home_assistant(house: StillHouse) -> AsyncIterator[FakeHomeAssistant]:
    """Serve that home."""
    async with FakeHomeAssistant(house, token=HOME_ASSISTANT_TOKEN) as fake:
        house.fire = fake.fire
        yield fake


def environment(home_assistant: FakeHomeAssistant, influx: FakeInflux) -> dict[str, str]:
    """Return the settings of a service with both sinks."""
    return {
        "HOME_ASSISTANT_URL": home_assistant.url,
        "HOME_ASSISTANT_TOKEN": HOME_ASSISTANT_TOKEN,
        "INFLUXDB_URL": influx.url,
        "INFLUXDB_TOKEN": influx.token,
        "INFLUXDB_API": "v2",
        "INFLUXDB_MAX_BATCH_POINTS": "250",
        "BATCH_TIMEOUT": "0.1",
        "CIRCUIT_BREAKER_RESET_SECONDS": "1",
        "EMBEDDED_STORE": "on",
        "EMBEDDED_RETENTION_DAYS": "36500",
    }


async def test_an_unavailable_database_blocks_nothing_and_gets_everything_later(
    home_assistant: FakeHomeAssistant, house: StillHouse, tmp_path: Path
) -> None:
    """The store has all at once, health says who is behind and why, then both have the same."""
    influx = FakeInflux()
    async with influx.serving():
        port = int(influx.url.rpartition(":")[2])

    async with service(tmp_path, environment(home_assistant, influx)) as running:
        await _play(running, house)
        await _until_sinks(running, lambda sinks: sinks["embedded"]["points_written"] == CHANGES)
        away = await _until_sinks(running, lambda sinks: sinks["influxdb"]["state"] == "waiting")
        async with influx.serving(port=port):
            back = await _until_sinks(running, lambda sinks: sinks["influxdb"]["held"] == 0)
            health = await running.until("/health", lambda health: health["status"] == "healthy")
        await running.stop()

    assert away["status"] == "degraded"
    assert [reason for reason in away["reasons"] if reason.startswith("InfluxDB has not been")]
    assert _books(away) == {"influxdb": (0, CHANGES), "embedded": (CHANGES, 0)}
    assert _sinks(away)["embedded"]["state"] == "ok"
    assert _sinks(away)["influxdb"]["lag_seconds"] > 0
    assert _books(back) == {"influxdb": (CHANGES, 0), "embedded": (CHANGES, 0)}
    assert health["reasons"] == []
    assert _states_in(influx) == _states_in_store(tmp_path) == _played()


async def test_a_slow_database_lags_behind_and_the_totals_of_both_sinks_balance(
    home_assistant: FakeHomeAssistant, house: StillHouse, tmp_path: Path
) -> None:
    """Each sink goes its own speed through one journal; at every moment nothing is unaccounted."""
    influx = FakeInflux()
    influx.delay_s = 0.4
    balances: list[int] = []

    def slow_one_is_done(sinks: Any) -> bool:
        balances.extend(sink["points_written"] + sink["held"] for sink in sinks.values())
        return bool(sinks["influxdb"]["points_written"] == CHANGES)

    async with (
        influx.serving(),
        service(tmp_path, environment(home_assistant, influx)) as running,
    ):
        await _play(running, house)
        ahead = await _until_sinks(
            running, lambda sinks: sinks["embedded"]["points_written"] == CHANGES
        )
        await _until_sinks(running, slow_one_is_done)
        await running.stop()

    written, held = _books(ahead)["influxdb"]
    assert written < CHANGES
    assert written + held == CHANGES
    assert set(balances) == {CHANGES}
    assert max(len(request.lines) for request in influx.requests) <= 250
    assert _states_in(influx) == _states_in_store(tmp_path) == _played()


async def _play(running: Service, house: StillHouse) -> None:
    """Let the home change, and wait until all of it is in the journal."""
    await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
    for state in _played():
        house.set_state("sensor.counter", state)
    await running.until(
        "/health", lambda health: health["accounting"]["events"]["journaled"] == CHANGES
    )


def _played() -> list[str]:
    return [str(number) for number in range(CHANGES)]


async def _until_sinks(running: Service, condition: Callable[[Any], bool]) -> Any:
    """Wait for a condition of the sinks by name, and return the whole of health then."""
    return await running.until("/health", lambda health: condition(_sinks(health)), timeout_s=30)


def _sinks(health: Any) -> dict[str, Any]:
    return {sink["name"]: sink for sink in health["sinks"]}


def _books(health: Any) -> dict[str, tuple[int, int]]:
    """Return what each sink has been given, and what it still has to be given."""
    return {sink["name"]: (sink["points_written"], sink["held"]) for sink in health["sinks"]}


def _states_in(influx: FakeInflux) -> list[str]:
    return [match[1].decode() for line in influx.lines if (match := _STATE.search(line))]


def _states_in_store(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "data" / "events.db") as database:
        rows = database.execute("SELECT state FROM events ORDER BY time_ns").fetchall()
    database.close()
    return [row[0] for row in rows]
