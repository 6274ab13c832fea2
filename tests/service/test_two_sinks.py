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
    """Return a home whose states only the test changes."""
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
    """The store has everything at once; /health names the sink behind; then both are equal."""
    influx = FakeInflux()
    async with influx.serving():
        port = int(influx.url.rpartition(":")[2])

    async with service(tmp_path, environment(home_assistant, influx)) as running:
        await _play(running, house)
        await _until_sinks(running, lambda sinks: sinks["embedded"]["points_written"] == CHANGES)
        unavailable = await _until_sinks(
            running, lambda sinks: sinks["influxdb"]["state"] == "waiting"
        )
        async with influx.serving(port=port):
            recovered = await _until_sinks(running, lambda sinks: sinks["influxdb"]["held"] == 0)
            health = await running.until("/health", lambda health: health["status"] == "healthy")
        await running.stop()

    assert unavailable["status"] == "degraded"
    assert [
        reason for reason in unavailable["reasons"] if reason.startswith("InfluxDB has not been")
    ]
    assert _totals(unavailable) == {"influxdb": (0, CHANGES), "embedded": (CHANGES, 0)}
    assert _sinks(unavailable)["embedded"]["state"] == "ok"
    assert _sinks(unavailable)["influxdb"]["lag_seconds"] > 0
    assert _totals(recovered) == {"influxdb": (CHANGES, 0), "embedded": (CHANGES, 0)}
    assert health["reasons"] == []
    assert _states_in(influx) == _states_in_store(tmp_path) == _played()


async def test_a_slow_database_lags_behind_and_the_totals_of_both_sinks_balance(
    home_assistant: FakeHomeAssistant, house: StillHouse, tmp_path: Path
) -> None:
    """Each sink reads one journal at its own speed, and the totals balance at every moment."""
    influx = FakeInflux()
    influx.delay_s = 0.4
    balances: list[int] = []

    def slow_sink_is_done(sinks: Any) -> bool:
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
        await _until_sinks(running, slow_sink_is_done)
        await running.stop()

    written, held = _totals(ahead)["influxdb"]
    assert written < CHANGES
    assert written + held == CHANGES
    assert set(balances) == {CHANGES}
    assert max(len(request.lines) for request in influx.requests) <= 250
    assert _states_in(influx) == _states_in_store(tmp_path) == _played()


async def _play(running: Service, house: StillHouse) -> None:
    """Change the states, and wait until all changes are in the journal."""
    await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
    for state in _played():
        house.set_state("sensor.counter", state)
    await running.until(
        "/health", lambda health: health["accounting"]["events"]["journaled"] == CHANGES
    )


def _played() -> list[str]:
    return [str(number) for number in range(CHANGES)]


async def _until_sinks(running: Service, condition: Callable[[Any], bool]) -> Any:
    """Wait until the sinks, by name, meet a condition; return all of /health."""
    return await running.until("/health", lambda health: condition(_sinks(health)), timeout_s=30)


def _sinks(health: Any) -> dict[str, Any]:
    return {sink["name"]: sink for sink in health["sinks"]}


def _totals(health: Any) -> dict[str, tuple[int, int]]:
    """Return the written and the pending points of each sink."""
    return {sink["name"]: (sink["points_written"], sink["held"]) for sink in health["sinks"]}


def _states_in(influx: FakeInflux) -> list[str]:
    return [match[1].decode() for line in influx.lines if (match := _STATE.search(line))]


def _states_in_store(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "data" / "events.db") as database:
        rows = database.execute("SELECT state FROM events ORDER BY time_ns").fetchall()
    database.close()
    return [row[0] for row in rows]
