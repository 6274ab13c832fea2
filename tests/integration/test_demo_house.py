"""The simulated home on disk, and played through the fake Home Assistant."""

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

from simulator.fake_home_assistant import FakeHomeAssistant, JsonObject, state_row
from simulator.history import History, microseconds
from simulator.house import DemoHouse

TOKEN = "demo-token-0123456789-0123456789-0123456789"
MORNING = datetime(2026, 11, 23, 7, 30, tzinfo=UTC)
POWER = "sensor.electricity_meter_power"
HOUR = timedelta(hours=1)


class Clock:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = MORNING.timestamp()

    def __call__(self) -> float:
        """Return seconds since the epoch."""
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        """Let the time pass at once."""
        self.seconds += seconds
        await asyncio.sleep(0)


def lived(house: DemoHouse, clock: Clock, *, seconds: int) -> list[Any]:
    """Let the house live and return its events."""
    events: list[Any] = []
    for _ in range(seconds):
        clock.seconds += 1
        events += house.advance()
    return events


@asynccontextmanager
async def living(house: DemoHouse, fake: FakeHomeAssistant) -> AsyncIterator[None]:
    """Let the house live while the block lasts."""
    task = asyncio.create_task(house.run(fake.fire), name="house")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_client_sees_the_house_live(tmp_path: Path) -> None:
    """Through the fake's protocol: states first, then the changes that follow from them."""
    clock = Clock()
    house = DemoHouse(tmp_path, clock=clock, sleep=clock.sleep)
    async with (
        asyncio.timeout(20),
        FakeHomeAssistant(house, token=TOKEN) as fake,
        living(house, fake),
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

    assert len(shown) == len(house.states())


async def test_a_house_that_runs_saves_itself_in_time_and_at_the_end(tmp_path: Path) -> None:
    """A killed demo loses a minute; a stopped one loses nothing."""
    clock = Clock()
    house = DemoHouse(tmp_path, clock=clock, sleep=clock.sleep, save_every_s=60.0)
    file = tmp_path / "house.json"
    async with FakeHomeAssistant(house, token=TOKEN) as fake, living(house, fake):
        async with asyncio.timeout(20):
            while not file.exists():
                await asyncio.sleep(0)
        in_time = clock.seconds - MORNING.timestamp()

    again = DemoHouse(tmp_path, clock=clock)
    again.restore()

    assert 60 <= in_time <= 61
    assert again.states() == house.states()


def test_a_second_start_continues_from_the_first(tmp_path: Path) -> None:
    """States, history and devices out of reach are as they were; then life goes on."""
    clock = Clock()
    first = DemoHouse(tmp_path, clock=clock)
    first.restore()
    first.wake()
    events = lived(first, clock, seconds=1200)
    while not any(row["state"] == "unavailable" for row in first.states()):
        events += lived(first, clock, seconds=1)
    first.save()
    clock.seconds += 600

    second = DemoHouse(tmp_path, clock=clock)
    second.restore()
    states = second.states()
    second.wake()
    later = lived(second, clock, seconds=120)

    assert first.states() == states
    assert _history(first) == _history(second, until=events[-1]["time_fired"])
    assert len(_history(first)) > 500
    assert events[-1]["time_fired"] < later[0]["time_fired"]
    assert not any(row["state"] == "unavailable" for row in _never_lost_again(second, later))


def _history(house: DemoHouse, *, until: str | None = None) -> list[tuple[object, ...]]:
    end = datetime.fromisoformat(until) + timedelta(microseconds=1) if until else MORNING + 9 * HOUR
    found = house.history(MORNING - HOUR, end, [POWER])[POWER]
    return [(row["state"], row["attributes"], row["last_updated"]) for row in found]


def _never_lost_again(house: DemoHouse, events: list[Any]) -> list[JsonObject]:
    lost_now = {
        event["data"]["entity_id"]
        for event in events
        if event["data"]["new_state"]["state"] == "unavailable"
    }
    return [row for row in house.states() if row["entity_id"] not in lost_now]


def test_a_new_house_remembers_how_it_began(tmp_path: Path) -> None:
    """The recorder knows every entity from its first state on."""
    house = DemoHouse(tmp_path, clock=Clock())
    house.restore()
    entity_ids = [str(row["entity_id"]) for row in house.states()]

    found = house.history(MORNING - HOUR, MORNING + HOUR, entity_ids)

    assert set(found) == set(entity_ids)
    assert house.history(MORNING + HOUR, MORNING + 2 * HOUR, entity_ids) == {}


@pytest.mark.parametrize("content", [b"", b'{"moment_us": 1}', b"\x00\xff"])
def test_a_damaged_file_begins_a_new_house(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A demo always starts; what could not be read is said."""
    (tmp_path / "house.json").write_bytes(content)
    house = DemoHouse(tmp_path, clock=Clock())

    with caplog.at_level(logging.WARNING):
        house.restore()

    assert "begins anew" in caplog.text
    assert len(house.states()) > 50


async def test_a_house_that_cannot_be_saved_lives_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full or read-only disk costs the memory, not the demo."""
    (tmp_path / "house").write_text("a file where a folder should be")
    clock = Clock()
    house = DemoHouse(tmp_path / "house", clock=clock, sleep=clock.sleep)
    fired: list[JsonObject] = []
    task = asyncio.create_task(house.run(fired.append), name="house")
    async with asyncio.timeout(20):
        while "not saved" not in caplog.text or len(fired) < 100:
            await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


def recorded(history: History, count: int, *, first: int = 0, step: timedelta) -> None:
    """Add rows whose states count up from `first`."""
    for number in range(first, first + count):
        at = MORNING + number * step
        row = state_row("sensor.n", str(number), {"unit": "W", "even": number % 2 == 0}, at=at)
        history.add(row, changed_us=microseconds(at), updated_us=microseconds(at))


def states_in(history: History) -> list[str]:
    """Return all states, oldest first."""
    found = history.between(MORNING - 99 * HOUR, MORNING + 999 * HOUR, ["sensor.n"])
    return [str(row["state"]) for row in found.get("sensor.n", [])]


def test_history_keeps_the_newest_hours(tmp_path: Path) -> None:
    """On disk as in memory: what is too old is gone after the next saving."""
    history = History(tmp_path, max_hours=3)
    recorded(history, 4, step=HOUR)
    history.save()
    recorded(history, 2, first=4, step=HOUR)
    history.save()

    again = History(tmp_path, max_hours=3)
    again.load()

    assert states_in(history) == ["3", "4", "5"]
    assert states_in(again) == ["3", "4", "5"]
    assert len(list(tmp_path.iterdir())) == 3


def test_history_keeps_the_newest_rows(tmp_path: Path) -> None:
    """Its size is bounded also within an hour, when whole hours are no help."""
    history = History(tmp_path, max_rows=10)
    recorded(history, 11, step=timedelta(seconds=1))

    assert states_in(history) == ["6", "7", "8", "9", "10"]
    assert len(history) == 5


def test_history_loaded_within_the_hour_goes_on_in_the_same_page(tmp_path: Path) -> None:
    """Attributes keep their meaning when rows are added to a page that was read back."""
    first = History(tmp_path)
    recorded(first, 3, step=timedelta(seconds=1))
    first.save()
    second = History(tmp_path)
    second.load()
    recorded(second, 3, first=3, step=timedelta(seconds=1))
    second.save()
    third = History(tmp_path)
    third.load()

    found = third.between(MORNING - HOUR, MORNING + HOUR, ["sensor.n"])["sensor.n"]

    assert [(str(number), number % 2 == 0) for number in range(6)] == [
        (row["state"], msgspec.convert(row["attributes"], dict[str, object])["even"])
        for row in found
    ]
    assert len(third) == 6


def test_a_damaged_page_of_history_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One bad hour does not cost the others."""
    history = History(tmp_path)
    recorded(history, 3, step=HOUR)
    history.save()
    sorted(tmp_path.iterdir())[1].write_bytes(b"{")
    (tmp_path / "notes.json").write_bytes(b"not ours")

    again = History(tmp_path)
    with caplog.at_level(logging.WARNING):
        again.load()

    assert states_in(again) == ["0", "2"]
    assert "Left out" in caplog.text
