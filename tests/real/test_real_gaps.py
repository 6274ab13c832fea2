"""Home Assistant's own record against InfluxDB, through kills and restarts of everybody.

`GAPS_SECONDS` makes it longer: each fault comes again until the time is up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.real.influx_1 import Database
from tests.real.servers import HomeAssistant, Recorded, Server, influxdb
from tests.service.process import Service, service

SECONDS = float(os.environ.get("GAPS_SECONDS", "100"))
RATE = 200
SENSORS = 50
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EDGE = timedelta(seconds=2)

logger = logging.getLogger(__name__)

# The first test waits for Home Assistant to start, which takes minutes on a busy machine.
pytestmark = [pytest.mark.real, pytest.mark.timeout(SECONDS + 500)]


@pytest.fixture
def influx(tmp_path: Path) -> Iterator[Server]:
    """Return an InfluxDB 1 of this test's own, to be stopped at will."""
    with influxdb(tmp_path / "influxdb") as server:
        yield server


class Stage:
    """The service and its two neighbors; each fault leaves all three running again."""

    def __init__(self, folder: Path, home_assistant: HomeAssistant, influx: Server) -> None:
        self._folder = folder
        self._home_assistant = home_assistant
        self._influx = influx
        self._life = contextlib.AsyncExitStack()
        self.running: Service | None = None

    async def start_service(self) -> None:
        """Start the service and wait until events stream."""
        settings = {
            "HOME_ASSISTANT_URL": self._home_assistant.url,
            "HOME_ASSISTANT_TOKEN": self._home_assistant.token,
            "INFLUXDB_URL": self._influx.url,
            "INFLUXDB_API": "v1",
            "BATCH_TIMEOUT": "0.5",
            "WEBSOCKET_MAX_RETRY_DELAY": "2",
            "CIRCUIT_BREAKER_RESET_SECONDS": "2",
        }
        self.running = await self._life.enter_async_context(service(self._folder, settings))
        await self.until(lambda health: health["subscription"]["is_subscribed"])

    async def until(self, condition: Callable[[Any], bool], *, timeout_s: float = 120) -> Any:
        """Wait for a condition of health."""
        assert self.running is not None
        return await self.running.until("/health", condition, timeout_s=timeout_s)

    async def end_service(self, number: signal.Signals) -> None:
        """Kill or stop the service."""
        assert self.running is not None
        await self.running.stop(number)
        await self._life.aclose()

    async def kill_the_service(self) -> None:
        """End it as a power cut would, and start it again."""
        await self.end_service(signal.SIGKILL)
        await asyncio.sleep(1)
        await self.start_service()

    async def stop_the_service(self) -> None:
        """End it as an operator would, and start it again."""
        await self.end_service(signal.SIGTERM)
        await asyncio.sleep(1)
        await self.start_service()

    async def kill_influxdb(self) -> None:
        """End it as a power cut would, and start it again."""
        process = self._influx._process
        assert process is not None
        process.kill()
        await asyncio.to_thread(process.wait)
        await asyncio.sleep(2)
        await asyncio.to_thread(self._influx.start)

    async def restart_influxdb(self) -> None:
        """Stop it and start it again."""
        await asyncio.to_thread(self._influx.stop)
        await asyncio.sleep(2)
        await asyncio.to_thread(self._influx.start)

    async def restart_home_assistant(self) -> None:
        """Stop it and start it again, and wait until events stream."""
        await asyncio.to_thread(self._home_assistant.restart)
        await self.until(lambda health: health["subscription"]["is_subscribed"])


@contextlib.asynccontextmanager
async def changing(home_assistant: HomeAssistant) -> AsyncIterator[None]:
    """Let Home Assistant's sensors change until the block ends, whatever is restarted."""
    ended = asyncio.Event()

    async def change() -> None:
        while not ended.is_set():
            try:
                await asyncio.to_thread(home_assistant.emit, 2 * RATE, rate=RATE, sensors=SENSORS)
            except httpx.HTTPError:
                await asyncio.sleep(0.5)  # it is being restarted

    task = asyncio.create_task(change(), name="change")
    try:
        yield
    finally:
        ended.set()
        await task


async def test_every_row_of_the_recorder_is_one_point_in_influxdb(
    home_assistant: HomeAssistant, influx: Server, tmp_path: Path
) -> None:
    """Missing 0, extra 0, twice 0, and the states are the same, whoever was restarted when."""
    seed = int(os.environ.get("SEED", "0")) or random.randrange(1, 1_000_000)
    chance = random.Random(seed)
    stage = Stage(tmp_path, home_assistant, influx)
    faults: list[Callable[[], Awaitable[None]]] = [
        stage.kill_the_service,
        stage.restart_home_assistant,
        stage.kill_influxdb,
        stage.stop_the_service,
        stage.restart_influxdb,
    ]
    await stage.start_service()
    start = datetime.now(UTC) + _EDGE
    done: Counter[str] = Counter()
    async with changing(home_assistant):
        until = time.monotonic() + SECONDS
        while time.monotonic() < until or len(done) < len(faults):
            fault = faults[done.total() % len(faults)]
            await asyncio.sleep(chance.uniform(1, 6))
            await fault()
            done[fault.__name__] += 1
    end = datetime.now(UTC) - _EDGE
    # The recorder commits within a second, and a filled gap has been asked for twice.
    health = await stage.until(_settled, timeout_s=180)
    await stage.end_service(signal.SIGTERM)
    stored = await asyncio.to_thread(_stored, influx, start, end)
    recorded = home_assistant.recorded(start, end)

    logger.info("%s: %d rows, %s", dict(done), len(recorded), health["gaps"])
    assert health["gaps"]["unfillable"] == 0
    assert health["gaps"]["filled"] >= 3
    assert sorted(Counter(recorded) - Counter(stored)) == [], f"missing, SEED={seed}"
    assert sorted(Counter(stored) - Counter(recorded)) == [], f"extra or twice, SEED={seed}"
    assert len(recorded) > RATE * SECONDS / 4


def _settled(health: Any) -> bool:
    held = sum(sink["held"] for sink in health["sinks"])
    return not held and not health["gaps"]["open"] and health["subscription"]["is_subscribed"]


def _stored(influx: Server, start: datetime, end: datetime) -> list[Recorded]:
    """Return every point between two moments, whatever its tags."""
    query = (
        "SELECT state_value, available FROM home_assistant_events"
        f" WHERE time > {_ns(start)} AND time < {_ns(end)} GROUP BY *"
    )
    return [
        Recorded(
            point.tags["entity_id"],
            _EPOCH + timedelta(microseconds=point.time_ns // 1_000),
            _text(point.fields.get("state_value")),
        )
        for point in Database(influx.url, "home_assistant_events").points(query)
    ]


def _ns(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1_000


def _text(state: object) -> str | None:
    return None if state is None else str(state)
