"""What lies in a gap is decided by Home Assistant's own times, whatever any clock shows."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from app.model import StoredPoint
from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.captured_home import SENSOR, Process, numbers, running, states
from tests.fakes.still_house import StillHouse, now
from tests.fakes.tcp_proxy import TcpProxy

OTHER = "sensor.other"


class HouseClock:
    """Home Assistant's clock, which a test may set."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> datetime:
        """Return the time."""
        return now() + timedelta(seconds=self.ahead_s)


@pytest.fixture
def clock() -> HouseClock:
    """Home Assistant's clock."""
    return HouseClock()


@pytest.fixture
def house(clock: HouseClock) -> StillHouse:
    """A home with that clock."""
    return StillHouse(clock=clock)


@pytest.fixture
async def proxy(fake: FakeHomeAssistant) -> AsyncIterator[TcpProxy]:
    """A proxy in front of it."""
    async with TcpProxy(fake.port) as between:
        yield between


class Counter:
    """Counts on, in Home Assistant."""

    def __init__(self, house: StillHouse) -> None:
        self._house = house
        self.next = 0

    def count(self, changes: int = 1) -> None:
        """Let the sensor count."""
        for _ in range(changes):
            self._house.set_state(SENSOR, str(self.next))
            self.next += 1

    async def capture(self, process: Process) -> None:
        """Let the sensor count to five more, and a process capture them."""
        self.count(5)
        await process.until_journaled(5)

    async def count_until(self, met: Callable[[], bool]) -> None:
        """Count until something is so, and a little longer."""
        async with asyncio.timeout(20):
            while not met():
                self.count()
                await asyncio.sleep(0.02)
        self.count(3)


def counted(points: Sequence[StoredPoint]) -> list[object]:
    """Return the counted states; a change that is there twice is not counted twice."""
    return sorted(states(points), key=lambda state: int(str(state)))


async def all_filled(process: Process, gaps: int) -> None:
    """Wait until so many gaps are closed, and none is open."""

    def met() -> bool:
        coverage = process.coverage
        return not coverage.count("open") and len(coverage.gaps()) >= gaps

    await process.until(met)


@pytest.mark.parametrize("delay_s", [1.5, 5.0])
async def test_changes_during_a_delayed_handshake_are_read_back(
    house: StillHouse, proxy: TcpProxy, tmp_path: Path, delay_s: float
) -> None:
    """The answer to the handshake is on its way for longer than any margin."""
    counter, process = Counter(house), Process(tmp_path, proxy)
    async with running(process):
        await counter.capture(process)
        proxy.delay_s = delay_s
        connections = process.source.status().successful_connections
        proxy.cut()
        await counter.count_until(
            lambda: process.source.status().successful_connections > connections
        )
        await all_filled(process, 1)
        points = await process.points()

    assert counted(points) == numbers(0, counter.next)


def with_date(date: str | None) -> Callable[[bytes], bytes]:
    """Return what gives a response another `Date`."""
    header = b"" if date is None else f"Date: {date}\r\n".encode()
    return lambda answer: re.sub(rb"(?i)^date:[^\n]*\n", header, answer, flags=re.MULTILINE)


def stamped(ahead_s: float) -> Callable[[bytes], bytes]:
    """Return what stamps a response with a clock that is ahead."""

    def rewrite(answer: bytes) -> bytes:
        moment = datetime.now(UTC) + timedelta(seconds=ahead_s)
        return with_date(format_datetime(moment, usegmt=True))(answer)

    return rewrite


@pytest.mark.parametrize(
    "rewrite",
    [
        *(stamped(ahead_s) for ahead_s in (3600.0, -3600.0, 10.0, -10.0)),
        with_date(None),
        with_date("yesterday, or so"),
        with_date("Thu, 01 Jan 9999 00:00:00 +9999"),
    ],
    ids=["+1 h", "-1 h", "+10 s", "-10 s", "absent", "garbled", "absurd"],
)
async def test_the_date_header_of_a_proxy_does_not_move_a_gap(
    house: StillHouse, proxy: TcpProxy, tmp_path: Path, rewrite: Callable[[bytes], bytes]
) -> None:
    """It is the proxy's own clock, if it is any."""
    proxy.rewrite = rewrite
    counter = Counter(house)
    async with running(Process(tmp_path, proxy)) as process:
        await counter.capture(process)
    counter.count(5)
    async with running(Process(tmp_path, proxy)) as process:
        await counter.capture(process)
        await all_filled(process, 1)
        points = await process.points()

    assert counted(points) == numbers(0, 15)


YEAR_S = 366 * 86_400.0


@pytest.mark.parametrize("ahead_s", [-50 * YEAR_S, -3600.0, 3600.0, 14 * YEAR_S])
async def test_a_wrong_clock_of_this_machine_does_not_move_a_gap(
    house: StillHouse,
    fake: FakeHomeAssistant,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ahead_s: float,
) -> None:
    """A machine that starts with a wrong date misses nothing, and gives nothing up."""
    counter = Counter(house)
    async with running(Process(tmp_path, fake)) as process:
        await counter.capture(process)
    counter.count(5)
    plain = time.time
    monkeypatch.setattr(time, "time", lambda: plain() + ahead_s)
    process = Process(tmp_path, fake)
    async with running(process):
        await counter.capture(process)
        process.journal.ack("influxdb", process.journal._cursors.tail)
        await all_filled(process, 1)
        monkeypatch.setattr(time, "time", plain)
        process.source._reconnect.streaming()
        fake.abort()
        await process.until(lambda: not process.pipeline.streaming.is_set())
        counter.count(5)
        await process.until(process.pipeline.streaming.is_set)
        await all_filled(process, 2)
        points = await process.points()

    assert {gap.state for gap in process.coverage.gaps()} == {"filled"}
    assert counted(points) == numbers(0, counter.next)


@pytest.mark.parametrize("ahead_s", [-3 * 3600.0, -20.0, 3600.0])
async def test_changes_around_a_changed_clock_of_home_assistant_are_read_back(
    house: StillHouse,
    fake: FakeHomeAssistant,
    clock: HouseClock,
    tmp_path: Path,
    ahead_s: float,
) -> None:
    """Changes before it was set, and after it, are missed; and then all is as usual."""
    counter = Counter(house)
    async with running(Process(tmp_path, fake)) as process:
        await counter.capture(process)
    counter.count(5)
    clock.ahead_s = ahead_s
    house.restart_time(clock)
    counter.count(5)
    async with running(Process(tmp_path, fake)) as process:
        await counter.capture(process)
        await all_filled(process, 1)
        points = await process.points()
    counter.count(5)
    async with running(Process(tmp_path, fake)) as process:
        await counter.capture(process)
        await all_filled(process, 2)
        points = await process.points()

    assert counted(points) == numbers(0, counter.next)


async def test_a_removal_as_the_last_change_before_a_connection_is_read_back(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """No state shows when it was, and no event comes: the gap is filled all the same."""
    async with running(Process(tmp_path, fake)) as process:
        house.set_state(OTHER, "on")
        house.set_state(SENSOR, "0")
        await process.until_journaled(2)
    await asyncio.sleep(1.1)  # the only state left is older than any margin of a second
    house.remove(SENSOR)

    async with running(Process(tmp_path, fake)) as process:
        await all_filled(process, 1)
        points = await process.points()

    assert [point.fields.get("removed") for point in points] == [None, None, True]


async def test_changes_that_come_live_before_the_states_are_listed_are_written_once(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """It is in the gap's answers, and still on its way to the journal."""
    counter = Counter(house)
    async with running(Process(tmp_path, fake)) as process:
        await counter.capture(process)
    counter.count(5)
    house.backlog = 1  # keeps the backfill from listing the states
    async with running(Process(tmp_path, fake)) as process:
        for _ in range(20):
            counter.count()
            await asyncio.sleep(0.01)
        house.backlog = 0
        await all_filled(process, 1)
        await process.until_journaled(20)
        points = await process.points()

    assert states(points) == numbers(0, counter.next)


async def test_connections_in_quick_succession_miss_nothing(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """Spans that are shorter than a second, and some without an event."""
    counter, process = Counter(house), Process(tmp_path, fake)
    async with running(process):
        await counter.capture(process)
        for number in range(6):
            fake.abort()
            await process.until(lambda: not process.pipeline.streaming.is_set())
            counter.count(2)
            await process.until(process.pipeline.streaming.is_set)
            counter.count(number % 2)
        await all_filled(process, 1)
        points = await process.points()

    assert counted(points) == numbers(0, counter.next)


async def test_a_crash_before_the_end_of_a_gap_is_known_loses_nothing(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """The gap is in the file, and goes on with the next connection."""
    counter = Counter(house)
    async with running(Process(tmp_path, fake)) as process:
        await counter.capture(process)
    counter.count(5)
    house.ha_state = "NOT_RUNNING"  # nothing is filled yet
    async with running(Process(tmp_path, fake)) as process:
        await process.until(lambda: not process.coverage.changes_to_save().gaps)
        assert not process.coverage.gaps()[0].end_known
    counter.count(5)
    house.ha_state = "RUNNING"
    async with running(Process(tmp_path, fake)) as process:
        await all_filled(process, 1)
        points = await process.points()

    assert len(process.coverage.gaps()) == 1
    assert states(points) == numbers(0, 15)
