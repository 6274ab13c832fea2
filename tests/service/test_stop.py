"""SIGTERM in every phase: status 0 in time, and each event is written or in the journal."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import signal
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.influx import HANG, FakeInflux
from tests.fakes.still_house import StillHouse
from tests.service.pace import changing
from tests.service.process import TOKEN, Service, service

SHUTDOWN_TIMEOUT_S = 4.0

_STATE = re.compile(rb'state_value="(\d+)"')


@pytest.fixture
def settings(influx_settings: dict[str, str]) -> dict[str, str]:
    """Return settings for Home Assistant and InfluxDB, with a short shutdown timeout."""
    return influx_settings | {
        "SHUTDOWN_TIMEOUT": str(SHUTDOWN_TIMEOUT_S),
    }


async def stopped_in_time(running: Service) -> None:
    """Send SIGTERM; assert that the process exits with status 0 within SHUTDOWN_TIMEOUT."""
    begun = time.monotonic()
    status = await running.stop()
    took_s = time.monotonic() - begun

    assert status == 0, running.output.read_text()
    assert took_s <= SHUTDOWN_TIMEOUT_S, f"it took {took_s:.2f} s"
    assert not (running.output.parent / "data" / "journal.db-wal").exists(), (
        "the journal was not closed"
    )


def stored(folder: Path, influx: FakeInflux) -> list[int]:
    """Return the states in the database and those pending in the journal, sorted."""
    with contextlib.closing(sqlite3.connect(folder / "data" / "journal.db")) as journal:
        (acked,) = journal.execute("SELECT settled FROM cursors").fetchone()
        rows = journal.execute("SELECT first, gzip FROM journal_rows").fetchall()
    pending = [
        line
        for first, packed in rows
        for number, line in enumerate(gzip.decompress(packed).splitlines(), start=first)
        if number > acked
    ]
    return sorted(
        {int(state) for line in [*influx.lines, *pending] for state in _STATE.findall(line)}
    )


def in_state(state: str) -> Callable[[Any], bool]:
    """Return a condition on /health: the connection is in this state."""
    return lambda health: bool(health["connection"]["current_state"] == state)


def received(count: int) -> Callable[[Any], bool]:
    """Return a condition on /health: at least `count` events were received."""
    return lambda health: bool(health["subscription"]["total_events_received"] >= count)


async def test_a_stop_while_the_journal_opens_is_orderly(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """The signal takes effect once everything opened can be closed again."""
    driver = ("-m", "tests.service.driver", "--armed", "--signal", "SIGTERM")
    command = (*driver, "--at", "before INSERT OR IGNORE INTO cursors", "--", "app", "run")

    async with service(tmp_path, settings, command=command) as running, asyncio.timeout(20):
        status = await running.process.wait()

    assert status == 0
    assert not (tmp_path / "data" / "journal.db-wal").exists()


async def test_a_stop_while_connecting_is_orderly(settings: dict[str, str], tmp_path: Path) -> None:
    """Home Assistant accepts the TCP connection and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent_server:
        url = f"http://127.0.0.1:{silent_server.getsockname()[1]}"
        async with service(tmp_path, settings | {"HOME_ASSISTANT_URL": url}) as running:
            await running.until("/health", in_state("connecting"))

            await stopped_in_time(running)


async def test_a_stop_while_authenticating_is_orderly(
    settings: dict[str, str], home_assistant: FakeHomeAssistant, tmp_path: Path
) -> None:
    """Home Assistant opens the WebSocket and does not send `auth_required`."""
    home_assistant.fall_silent()
    async with service(tmp_path, settings) as running:
        await running.until("/health", in_state("authenticating"))

        await stopped_in_time(running)


async def test_a_stop_while_subscribing_is_orderly(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """Home Assistant accepts the token and answers no command."""

    async def converse(connection: ServerConnection) -> None:
        await connection.send(json.dumps({"type": "auth_required", "ha_version": "2026.11.0"}))
        await connection.recv()
        await connection.send(json.dumps({"type": "auth_ok", "ha_version": "2026.11.0"}))
        await connection.wait_closed()

    async with serve(converse, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        url = {"HOME_ASSISTANT_URL": f"http://127.0.0.1:{port}"}
        async with service(tmp_path, settings | url) as running:
            await running.until("/health", in_state("subscribing"))

            await stopped_in_time(running)


async def test_a_stop_while_waiting_to_reconnect_is_orderly(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """Home Assistant is down."""
    unreachable = settings | {"HOME_ASSISTANT_URL": "http://127.0.0.1:9"}
    async with service(tmp_path, unreachable) as running:
        await running.until("/health", in_state("waiting"))

        await stopped_in_time(running)


async def test_a_stop_while_events_wait_for_the_registries_loses_nothing(
    house: StillHouse, settings: dict[str, str], influx: FakeInflux, tmp_path: Path
) -> None:
    """On the first start; waiting events are written without areas rather than lost."""
    slow = FakeHomeAssistant(house, token=TOKEN, unknown_commands=["config/area_registry/list"])
    async with slow as home_assistant:
        house.fire = home_assistant.fire
        url = {"HOME_ASSISTANT_URL": home_assistant.url}
        async with service(tmp_path, settings | url) as running:
            await running.until("/health", in_state("connected"))
            for number in range(300):
                house.set_state("sensor.counter", str(number))
            health = await running.until("/health", received(300))

            await stopped_in_time(running)

    assert health["accounting"]["events"]["pending"] == 300
    assert stored(tmp_path, influx) == list(range(300))


async def test_a_stop_while_idle_is_orderly(
    house: StillHouse, settings: dict[str, str], influx: FakeInflux, tmp_path: Path
) -> None:
    """Everything has been delivered already."""
    async with service(tmp_path, settings) as running:
        await running.until("/health", in_state("connected"))
        for number in range(300):
            house.set_state("sensor.counter", str(number))
        await running.until("/health", lambda health: health["sinks"][0]["points_written"] == 300)

        await stopped_in_time(running)

    assert len(influx.lines) == 300
    assert stored(tmp_path, influx) == list(range(300))


async def test_a_stop_while_events_stream_loses_nothing(
    house: StillHouse, settings: dict[str, str], influx: FakeInflux, tmp_path: Path
) -> None:
    """Reading stops at one event; all events before it are stored, none after it."""
    async with service(tmp_path, settings) as running:
        await running.until("/health", in_state("connected"))
        async with changing(house, per_s=2_000):
            await running.until("/health", received(1_000))
            health = await running.get("/health")

            await stopped_in_time(running)

    states = stored(tmp_path, influx)
    assert len(states) >= health["subscription"]["total_events_received"]
    assert states == list(range(len(states)))


async def test_a_stop_while_a_backlog_drains_leaves_the_rest_in_the_journal(
    house: StillHouse, settings: dict[str, str], influx: FakeInflux, tmp_path: Path
) -> None:
    """Points that are not written in time stay in the journal."""
    influx.delay_s = 0.4
    slow = settings | {"INFLUXDB_MAX_BATCH_POINTS": "100"}
    async with service(tmp_path, slow) as running:
        await running.until("/health", in_state("connected"))
        for number in range(3_000):
            house.set_state("sensor.counter", str(number))
            if number % 500 == 0:
                await asyncio.sleep(0)
        await running.until("/health", received(3_000))

        await stopped_in_time(running)

    assert 0 < len(influx.lines) < 3_000
    assert stored(tmp_path, influx) == list(range(3_000))


async def test_a_stop_while_a_database_request_hangs_loses_nothing(
    house: StillHouse, settings: dict[str, str], influx: FakeInflux, tmp_path: Path
) -> None:
    """The points of that request stay in the journal for the next start."""
    influx.script.append(HANG)
    async with service(tmp_path, settings) as running:
        await running.until("/health", in_state("connected"))
        for number in range(300):
            house.set_state("sensor.counter", str(number))
        await running.until("/health", received(300))
        await influx.wait_for(lambda influx: influx.requests != [])

        await stopped_in_time(running)

    assert influx.lines == []
    assert stored(tmp_path, influx) == list(range(300))


async def test_a_stop_does_not_wait_for_a_request_that_never_ends(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """Its connection is closed."""
    async with service(tmp_path, settings) as running:
        await running.until("/health", in_state("connected"))
        async with connected_client(running, SLOW_REQUEST) as reader:
            await running.get("/health")  # answered only after the other request arrived

            await stopped_in_time(running)
            await reader.read()


async def test_a_stop_does_not_wait_for_subscribers_that_do_not_read(
    house: StillHouse, settings: dict[str, str], influx: FakeInflux, tmp_path: Path
) -> None:
    """Their send buffers are full of events."""
    async with service(tmp_path, settings) as running, contextlib.AsyncExitStack() as stack:
        await running.until("/health", in_state("connected"))
        for _ in range(5):
            await stack.enter_async_context(connected_client(running, SUBSCRIBE))
        async with changing(house, per_s=2_000):
            await running.until("/health", received(4_000))
            health = await running.get("/health")

            await stopped_in_time(running)

    states = stored(tmp_path, influx)
    assert health["status"] == "healthy"
    assert len(states) >= 4_000
    assert states == list(range(len(states)))


async def test_a_second_sigterm_does_not_disturb_the_stop(
    house: StillHouse, settings: dict[str, str], influx: FakeInflux, tmp_path: Path
) -> None:
    """As sent by an impatient operator."""
    influx.script.append(HANG)
    async with service(tmp_path, settings) as running:
        await running.until("/health", in_state("connected"))
        house.set_state("sensor.counter", "0")
        await influx.wait_for(lambda influx: influx.requests != [])
        running.process.send_signal(signal.SIGTERM)

        await stopped_in_time(running)

    assert stored(tmp_path, influx) == [0]


SLOW_REQUEST = (
    b"POST /api/v1/dead-letters/retry HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
)
SUBSCRIBE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@contextlib.asynccontextmanager
async def connected_client(running: Service, sent: bytes) -> AsyncIterator[asyncio.StreamReader]:
    """Send some bytes to the service, and then neither write nor read."""
    host, _, port = running.url.removeprefix("http://").partition(":")
    # A small limit: what the service sends soon fills the sockets on both sides.
    reader, writer = await asyncio.open_connection(host, int(port), limit=1_024)
    writer.write(sent)
    await writer.drain()
    try:
        yield reader
    finally:
        writer.transport.abort()
