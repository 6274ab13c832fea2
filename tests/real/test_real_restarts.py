"""Neighbors that restart in the middle of 1,000 changes a second; nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.real.influx_1 import Database
from tests.real.servers import Emitted, HomeAssistant, Server, influxdb
from tests.service.process import Service, service

# The first test waits for Home Assistant to start, which takes minutes on a busy machine.
pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

RATE = 1_000
SENSORS = 200
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture
def influx(tmp_path: Path) -> Iterator[Server]:
    """Return an InfluxDB 1 of this test's own, to be stopped at will."""
    with influxdb(tmp_path / "influxdb") as server:
        yield server


async def test_an_influxdb_that_is_killed_and_stopped_lacks_nothing_afterwards(
    home_assistant: HomeAssistant, influx: Server, tmp_path: Path
) -> None:
    """What Home Assistant emitted meanwhile is in it once, like what the service recorded."""
    async with service(tmp_path, _settings(home_assistant, influx)) as running:
        await _connected(running)
        emitting = asyncio.create_task(_emitted(home_assistant, 9_000), name="emit")
        await _received(running, 2_000)
        await asyncio.to_thread(_kill, influx)
        await _until_sink(running, lambda sink: sink["state"] == "waiting")
        await asyncio.to_thread(influx.start)
        await _received(running, 6_000)
        await asyncio.to_thread(influx.stop)
        await asyncio.to_thread(influx.start)
        emitted = await emitting
        await _received(running, len(emitted))
        health = await _until_sink(running, lambda sink: sink["held"] == 0)
        await running.stop()  # first: what still comes is then in both or in neither
    stored = await asyncio.to_thread(_stored, influx)

    assert _of_load(stored) == sorted(emitted)
    assert stored == _recorded(tmp_path)
    assert health["accounting"]["events"]["dropped"] == {}


async def test_a_home_assistant_and_an_influxdb_that_restart_lose_nothing_that_was_received(
    home_assistant: HomeAssistant, influx: Server, tmp_path: Path
) -> None:
    """Up to the end of the connection all is there, and all since the next one, once."""
    async with service(tmp_path, _settings(home_assistant, influx)) as running:
        await _connected(running)
        first = len(await asyncio.to_thread(home_assistant.emitted))
        interrupted = asyncio.create_task(_emitted(home_assistant, 6_000), name="emit")
        await _received(running, 2_000)
        await asyncio.to_thread(_kill, influx)
        restarting = asyncio.create_task(asyncio.to_thread(home_assistant.restart), name="restart")
        # Back before its sink has learned to wait for half a minute between two attempts.
        await _until_sink(running, lambda sink: sink["state"] == "waiting")
        await asyncio.to_thread(influx.start)
        await restarting
        with contextlib.suppress(httpx.HTTPError):
            await interrupted
        await _connected(running, times=2)
        restarted_at = datetime.now(UTC)
        emitted = await _emitted(home_assistant, 4_000)
        await _until_sink(running, lambda sink: sink["held"] == 0)
        health = await running.until("/health", lambda health: not _pending(health))
        await running.stop()  # first: what still comes is then in both or in neither
    stored = await asyncio.to_thread(_stored, influx)

    before = [change for change in _of_load(stored) if change.last_updated < restarted_at]
    after = [change for change in _of_load(stored) if change.last_updated >= restarted_at]
    numbers = sorted(int(change.state) for change in before)
    # Numbers count up: one that is missing would be a change that was lost before the end.
    assert numbers == list(range(first, first + len(numbers)))
    assert len(numbers) > 1_000
    assert after == sorted(emitted)
    assert stored == _recorded(tmp_path)
    assert health["accounting"]["events"]["dropped"] == {}


def _settings(home_assistant: HomeAssistant, influx: Server) -> dict[str, str]:
    return {
        "HOME_ASSISTANT_URL": home_assistant.url,
        "HOME_ASSISTANT_TOKEN": home_assistant.token,
        "INFLUXDB_URL": influx.url,
        "INFLUXDB_API": "v1",
        "EMBEDDED_STORE": "on",
        "BATCH_TIMEOUT": "0.5",
        "WEBSOCKET_MAX_RETRY_DELAY": "1",
        "CIRCUIT_BREAKER_RESET_SECONDS": "1",
    }


def _kill(server: Server) -> None:
    """End it as a power cut would."""
    process = server._process
    assert process is not None, "the server does not run"
    process.kill()
    process.wait()


async def _emitted(home_assistant: HomeAssistant, count: int) -> list[Emitted]:
    return await asyncio.to_thread(home_assistant.emit, count, rate=RATE, sensors=SENSORS)


async def _connected(running: Service, *, times: int = 1) -> Any:
    """Wait until events stream over the connection of this number."""

    def met(health: Any) -> bool:
        connection, subscription = health["connection"], health["subscription"]
        return bool(
            connection["successful_connections"] >= times
            and subscription["is_subscribed"]
            and health["discovery"]["last_refresh"] is not None
        )

    return await running.until("/health", met, timeout_s=60)


async def _received(running: Service, count: int) -> None:
    """Wait until so many events came from Home Assistant, its demo devices' among them."""
    await running.until(
        "/health",
        lambda health: health["subscription"]["total_events_received"] >= count,
        timeout_s=60,
    )


async def _until_sink(running: Service, condition: Callable[[Any], bool]) -> Any:
    """Wait for a condition of the InfluxDB sink and return the whole of health then."""
    return await running.until(
        "/health", lambda health: condition(health["sinks"][0]), timeout_s=60
    )


def _pending(health: Any) -> bool:
    held = sum(sink["held"] for sink in health["sinks"])
    return bool(held or health["accounting"]["events"]["pending"])


def _stored(influx: Server) -> list[Emitted]:
    """Return every point of InfluxDB."""
    query = "SELECT state_value, removed FROM home_assistant_events GROUP BY *"
    return sorted(
        _emission(point.tags["entity_id"], point.time_ns, point.fields.get("state_value"))
        for point in Database(influx.url, "home_assistant_events").points(query)
    )


def _recorded(folder: Path) -> list[Emitted]:
    """Return every event of the embedded store: the service's own record of what it received."""
    with sqlite3.connect(folder / "data" / "events.db") as database:
        rows = database.execute("SELECT entity_id, time_ns, state FROM events").fetchall()
    database.close()
    return sorted(_emission(*row) for row in rows)


def _emission(entity_id: str, time_ns: int, state: object) -> Emitted:
    """Return a change; a removal has a state that no entity has."""
    at = _EPOCH + timedelta(microseconds=time_ns // 1_000)
    return Emitted(entity_id, at, "(removed)" if state is None else str(state))


def _of_load(changes: Sequence[Emitted]) -> list[Emitted]:
    return [change for change in changes if change.entity_id.startswith("sensor.load_")]
