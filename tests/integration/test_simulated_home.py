"""The simulated home on disk, and behind the fake Home Assistant."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import connect

from simulator.fake_home_assistant import FakeHomeAssistant, JsonObject
from simulator.home import SimulatedHome

TOKEN = "demo-token-0123456789-0123456789-0123456789"
MORNING = datetime(2026, 11, 23, 7, 30, tzinfo=UTC)
POWER = "sensor.electricity_meter_power"


class Clock:
    """A clock that advances when somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = MORNING.timestamp()

    def __call__(self) -> float:
        """Return seconds since the epoch."""
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        """Let the time pass at once."""
        self.seconds += seconds
        await asyncio.sleep(0)


@asynccontextmanager
async def running(home: SimulatedHome, fake: FakeHomeAssistant) -> AsyncIterator[None]:
    """Run the home while the block lasts."""
    task = asyncio.create_task(home.run(fake.fire), name="home")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_client_sees_the_states_and_then_each_change_of_them(tmp_path: Path) -> None:
    """Through the fake's protocol, the old state of a change is the state shown before."""
    clock = Clock()
    home = SimulatedHome(tmp_path, clock=clock, sleep=clock.sleep)
    async with (
        asyncio.timeout(20),
        FakeHomeAssistant(home, token=TOKEN) as fake,
        running(home, fake),
        connect(fake.url, compression=None) as socket,
    ):
        await socket.recv()
        await socket.send(msgspec.json.encode({"type": "auth", "access_token": TOKEN}), text=True)
        await socket.recv()
        for command in (
            {"id": 1, "type": "subscribe_events", "event_type": "state_changed"},
            {"id": 2, "type": "get_states"},
        ):
            await socket.send(msgspec.json.encode(command), text=True)
        shown: dict[str, Any] = {}
        changes = 0
        while changes < 100:
            match msgspec.json.decode(await socket.recv()):
                case {"id": 2, "result": list(result)}:
                    shown = {row["entity_id"]: row for row in result}
                case {"type": "event", "event": {"data": data}} if shown:
                    assert data["old_state"] == shown[data["entity_id"]]
                    shown[data["entity_id"]] = data["new_state"]
                    changes += 1

    assert len(shown) == len(home.states())


async def test_a_running_home_saves_itself_every_minute_and_at_the_end(tmp_path: Path) -> None:
    """A killed demo loses a minute; a stopped one loses nothing."""
    clock = Clock()
    home = SimulatedHome(tmp_path, clock=clock, sleep=clock.sleep, save_every_s=60.0)
    file = tmp_path / "home.json"
    async with FakeHomeAssistant(home, token=TOKEN) as fake, running(home, fake):
        async with asyncio.timeout(20):
            while not file.exists():
                await asyncio.sleep(0)
        in_time = clock.seconds - MORNING.timestamp()

    assert 60 <= in_time <= 61
    assert _totals(_woken(tmp_path, clock)) == _totals(home)


@pytest.mark.parametrize("hours", [0.5, 10.0, 100.0])
def test_the_recorder_has_what_a_home_did_while_it_was_not_running(
    tmp_path: Path, hours: float
) -> None:
    """However long that was: it goes on from where it ended, and then at its usual pace."""
    clock = Clock()
    first = _woken(tmp_path, clock)
    first.save()
    begun = datetime.fromtimestamp(clock.seconds, UTC)
    clock.seconds += hours * 3600

    second = _woken(tmp_path, clock)
    rows = second.history(begun, begun + timedelta(hours=hours), [POWER])[POWER]
    later = 0
    for _ in range(60):
        clock.seconds += 1
        later += len(second.advance())

    moments = [datetime.fromisoformat(str(row["last_updated"])) for row in rows]
    assert 1_000 < len(rows) <= 3_000
    assert moments == sorted(moments)
    assert moments[0] - begun < timedelta(hours=hours / 100)
    assert begun + timedelta(hours=hours) - moments[-1] < timedelta(hours=hours / 100)
    assert all(
        before <= after for before, after in zip(_totals(first), _totals(second), strict=True)
    )
    assert 100 < later < 400


def _woken(folder: Path, clock: Clock) -> SimulatedHome:
    home = SimulatedHome(folder, clock=clock)
    home.wake()
    return home


def _totals(home: SimulatedHome) -> list[float]:
    return [
        float(home.state(str(row["entity_id"])))
        for row in home.states()
        if str(row["entity_id"]).endswith("_energy")
    ]


def test_a_new_simulated_home_has_one_hour_of_history(tmp_path: Path) -> None:
    """The recorder knows every entity, and nothing from before."""
    home = _woken(tmp_path, Clock())
    entity_ids = [str(row["entity_id"]) for row in home.states()]

    found = home.history(MORNING - timedelta(hours=2), MORNING, entity_ids)

    assert set(found) == set(entity_ids)
    assert home.history(MORNING - timedelta(hours=9), MORNING - timedelta(hours=1), [POWER]) == {}


@pytest.mark.parametrize("content", [b"", b'{"moment_us": 1}', b"\x00\xff"])
def test_a_damaged_file_of_the_demo_starts_a_new_home(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A demo always starts, and logs what it could not read."""
    (tmp_path / "home.json").write_bytes(content)

    with caplog.at_level(logging.WARNING):
        home = _woken(tmp_path, Clock())

    assert "starts anew" in caplog.text
    assert len(home.states()) > 50


async def test_a_simulated_home_that_cannot_be_saved_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full or read-only disk costs the memory, not the demo."""
    (tmp_path / "home").write_text("a file where a folder should be")
    clock = Clock()
    home = SimulatedHome(tmp_path / "home", clock=clock, sleep=clock.sleep)
    fired: list[JsonObject] = []
    task = asyncio.create_task(home.run(fired.append), name="home")
    async with asyncio.timeout(20):
        while "not saved" not in caplog.text or len(fired) < 100:
            await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
