"""The whole way back: a real journal, the real source, and a recorder behind a socket."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from app.backfill.backfill import Backfill
from app.backfill.coverage import Coverage
from app.backfill.filler import GapFiller
from app.backfill.journal_reader import JournalReader
from app.backfill.last_states import LastStates
from app.backfill.writer import BackfillWriter
from app.discovery.catalog import Catalog
from app.discovery.refresh import Discovery
from app.fanout.hub import Hub
from app.homeassistant.connection import HomeAssistantSource
from app.homeassistant.endpoint import Endpoint
from app.homeassistant.reconnect import ReconnectPolicy
from app.homeassistant.recorder import Call, open_recorder
from app.journal.batcher import Batcher
from app.journal.journal import SqliteJournal
from app.model import Gap, Lines, Row, StoredPoint, Times, nanoseconds
from app.normalize.changes import Normalizer
from app.pipeline import Pipeline
from app.runtime.errors import CommandFailed, SourceProtocolError
from app.runtime.retry import Backoff, Breaker
from app.schema.homeiq import HomeiqEncoder, identity_of, last_state_of
from app.schema.line_protocol import parse_line
from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.journal import tidy
from tests.fakes.points import new_telemetry
from tests.fakes.still_house import StillHouse, now
from tests.fakes.tcp_proxy import TcpProxy

TOKEN = "t" * 40
SENSOR = "sensor.counter"
HISTORY = "history/history_during_period"
_GZIP_WINDOW = 31


class Time:
    """Our own clock: it shows the time of day and jumps over what is slept."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.holding: Callable[[], bool] = lambda: False
        """While it returns true, sleepers stay asleep."""
        self._ahead = 0.0

    def __call__(self) -> float:
        """Return seconds since the epoch."""
        return time.time() + self._ahead

    async def sleep(self, seconds: float) -> None:
        """Let our own time pass."""
        self.slept.append(seconds)
        self._ahead += seconds
        await asyncio.sleep(0.001)
        while self.holding():
            await asyncio.sleep(0.001)


@dataclass(frozen=True)
class Asking:
    """A connection for questions that a test may spoil."""

    call: Call


class Process:
    """All parts between Home Assistant and the journal, as one process has them."""

    def __init__(
        self,
        folder: Path,
        fake: FakeHomeAssistant | TcpProxy,
        *,
        fills: bool = True,
        max_hours: float = 240.0,
        points_per_s: float = 2_000.0,
    ) -> None:
        self.time = Time()
        self.failures: list[Exception] = []
        """Raised by the next questions for history, one each."""
        self.refuses: Callable[[Mapping[str, object]], bool] = lambda _: False
        """Whether a question for history, with these parameters, is refused."""
        self.refusal: Exception = SourceProtocolError(f"{HISTORY}: malformed")
        self.refused_commands: set[str] = set()
        self.retention_s: float | None = None
        """How long the database keeps points."""
        self.asked: Counter[str] = Counter()
        self.telemetry = new_telemetry()
        self.coverage = Coverage(fills=fills, clock=self.time)
        self.last_states = LastStates()
        self.journal = SqliteJournal(
            folder / "journal.db",
            sinks=["influxdb"],
            max_bytes=50_000_000,
            overflow="drop_new",
            telemetry=self.telemetry,
            coverage=self.coverage,
            last_states=self.last_states,
            housekeeping_s=0.01,
            save_states_s=0.0,
        )
        self.batcher = Batcher(
            self.journal,
            telemetry=self.telemetry,
            coverage=self.coverage,
            commit_interval_s=0.01,
            overflow="drop_new",
        )
        self.source = HomeAssistantSource(
            Endpoint(fake.url, token=TOKEN, ssl_verify=True),
            reconnect=ReconnectPolicy(
                backoff=Backoff(first_s=0.01, max_s=0.01),
                breaker=Breaker("Home Assistant", threshold=100, reset_s=0.01),
            ),
            telemetry=self.telemetry,
            readiness_poll_s=0.01,
        )
        self.catalog = catalog = Catalog()
        self.discovery = Discovery(
            commands=self.source.commands,
            catalog=catalog,
            backoff=Backoff(first_s=0.01, max_s=0.01),
            interval_s=1_000.0,
        )
        self.normalizer = Normalizer(catalog.placements)
        self.pipeline = Pipeline(
            discovery=self.discovery,
            normalizer=self.normalizer,
            encoder=HomeiqEncoder("events", instance=None, attribute_fields=()),
            batcher=self.batcher,
            coverage=self.coverage,
            last_states=self.last_states,
            hub=Hub(),
            telemetry=self.telemetry,
        )
        self.journal_reader = JournalReader(
            self.journal,
            batcher=self.batcher,
            caught_up=self.source.caught_up,
            coverage=self.coverage,
            last_states=self.last_states,
            parse=parse_line,
            identity_of=identity_of,
            last_state_of=last_state_of,
            sleep=self.time.sleep,
        )
        self.backfill = Backfill(
            filler=GapFiller(
                coverage=self.coverage,
                last_states=self.last_states,
                journal=self.journal_reader,
                writer=BackfillWriter(
                    self.journal.append,
                    encode=HomeiqEncoder("events", instance=None, attribute_fields=()).encode,
                    last_states=self.last_states,
                    telemetry=self.telemetry,
                    points_per_s=points_per_s,
                    clock=self.time,
                    sleep=self.time.sleep,
                ),
                caught_up=self.source.caught_up,
                select=self.pipeline.selected,
                placements=catalog.placements,
                names=self.normalizer.last_names,
                renames=catalog.renames,
                retention_s=self._ask_retention_s,
                max_hours=max_hours,
                clock=self.time,
            ),
            recorder=partial(
                open_recorder, self._commands, commit_interval_s=5.0, sleep=self.time.sleep
            ),
            streaming=self.pipeline.streaming,
            is_running=lambda: self.source.is_running,
            missing_component=lambda: self.source.missing_component,
            coverage=self.coverage,
            telemetry=self.telemetry,
            backoffs=lambda: Backoff(first_s=1.0, max_s=300.0),
            clock=self.time,
            sleep=self.time.sleep,
        )

    @asynccontextmanager
    async def _commands(self) -> AsyncIterator[Asking]:
        async with self.source.commands() as commands:

            async def call(command: str, **parameters: object) -> msgspec.Raw:
                self.asked[command] += 1
                if command in self.refused_commands:
                    raise CommandFailed(command, code="unknown_error", message="Unknown error")
                if command == HISTORY and self.failures:
                    raise self.failures.pop(0)
                if command == HISTORY and self.refuses(parameters):
                    raise self.refusal
                return await commands.call(command, **parameters)

            yield Asking(call)

    async def _ask_retention_s(self) -> float | None:
        self.asked["retention"] += 1
        return self.retention_s

    async def points(self) -> list[StoredPoint]:
        """Return all that is in the journal, in the order of the events."""
        rows = [row async for row in self.journal.retained()]
        found = [parse_line(line) for row in rows for line in lines_of(row)]
        return sorted(found, key=lambda point: point.time_ns)

    async def until(self, met: Callable[[], bool]) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(20):
            while not met():
                await asyncio.sleep(0.005)

    async def until_journaled(self, points: int) -> None:
        """Wait until so many points came live and are durable."""
        await self.until(lambda: self.telemetry.journaled >= points)

    async def until_filled(self, gaps: int = 1) -> None:
        """Wait until so many gaps are closed and none is open, and all lie in the past.

        Home Assistant's clock, unlike ours, does not jump: a gap ends up to a second from now.
        """

        def met() -> bool:
            found = self.coverage.gaps()
            is_past = all(gap.end_ns < time.time_ns() for gap in found)
            return not self.coverage.count("open") and len(found) >= gaps and is_past

        await self.until(met)

    def gap(self) -> Gap:
        """Return the only gap."""
        (gap,) = self.coverage.gaps()
        return gap


@asynccontextmanager
async def running(process: Process) -> AsyncIterator[Process]:
    """Run all loops for as long as the block lasts, and close the journal."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(process.journal)
        await process.journal_reader.recall()
        loops = {
            "journal": process.journal.run(),
            "batcher": process.batcher.run(),
            "discovery": process.discovery.run(process.pipeline.placed),
            "backfill": process.backfill.run(),
            "source": process.source.run(process.pipeline),
        }
        tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
        try:
            await process.until(process.pipeline.streaming.is_set)
            yield process
            assert not any(task.done() for task in tasks), tasks
        finally:
            for task in reversed(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def lines_of(row: Row) -> list[bytes]:
    """Return the lines of a row."""
    return Lines(zlib.decompress(row.gzip, _GZIP_WINDOW), row.points).split()


def states(points: Sequence[StoredPoint], entity_id: str = SENSOR) -> list[object]:
    """Return the states of an entity, oldest first."""
    return [p.fields.get("state_value") for p in points if p.tags["entity_id"] == entity_id]


def previous(points: Sequence[StoredPoint], entity_id: str = SENSOR) -> list[object]:
    """Return the previous states of an entity, oldest first."""
    return [p.fields.get("previous_state") for p in points if p.tags["entity_id"] == entity_id]


def numbers(first: int, end: int) -> list[str]:
    """Return counted states."""
    return [str(number) for number in range(first, end)]


def assert_once(points: Sequence[StoredPoint]) -> None:
    """No change is there twice."""
    identities = Counter((point.tags["entity_id"], point.time_ns) for point in points)
    assert [identity for identity, count in identities.items() if count > 1] == []


@pytest.fixture
def house() -> StillHouse:
    """A home whose time is ours."""
    return StillHouse(clock=now)


@pytest.fixture
async def fake(house: StillHouse) -> AsyncIterator[FakeHomeAssistant]:
    """Serve it."""
    async with FakeHomeAssistant(house, token=TOKEN) as server:
        house.fire = server.fire
        yield server


async def lived(process: Process, house: StillHouse, first: int, end: int) -> None:
    """Have a process see the counter count."""
    for number in range(first, end):
        house.set_state(SENSOR, str(number))
    await process.until_journaled(end - first)


async def test_a_fill_that_was_killed_in_a_window_goes_on_behind_it(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """Nothing twice, nothing missing, and each change follows the one before it."""
    first, second = tmp_path / "first", tmp_path / "second"
    async with running(Process(first, fake)) as process:
        await lived(process, house, 0, 5)
    for number in range(5, 1_005):
        house.set_state(SENSOR, str(number))

    process = Process(first, fake)
    process.time.holding = lambda: process.telemetry.backfilled >= 400
    async with running(process):
        await process.until(lambda: process.telemetry.backfilled >= 400)
        shutil.copytree(first, second)
    assert process.coverage.count("open") == 1

    async with running(Process(second, fake)) as process:
        await process.until_filled()
        points = await process.points()

    assert_once(points)
    assert numbers(0, 1_005) == states(points)
    assert [None, *numbers(0, 1_004)] == previous(points)


async def test_a_fill_that_lost_its_connection_goes_on(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """Windows that are done stay done, and the first row behind them knows the one before."""
    start = datetime.now(UTC) - timedelta(seconds=300)
    house._moments = iter(start + timedelta(seconds=number) for number in range(101))
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    for number in range(1, 101):
        house.set_state(SENSOR, str(number))
    process = Process(tmp_path, fake)
    process.time.holding = lambda: process.telemetry.backfilled >= 20 and held
    held = True

    async with running(process):
        await process.until(lambda: process.telemetry.backfilled >= 20)
        process.failures = [SourceProtocolError("No answer within 30 s")]
        held = False
        await process.until_filled()
        points = await process.points()

    assert not process.failures
    assert_once(points)
    assert numbers(0, 101) == states(points)
    assert [None, *numbers(0, 100)] == previous(points)
    assert [point.fields.get("duration_in_state_seconds") for point in points[1:]].count(None) == 0


async def test_a_fill_goes_on_from_the_start_when_there_are_more_sources(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """What only the logbook names was not in the windows that are done."""
    start = datetime.now(UTC) - timedelta(seconds=300)
    house._moments = iter(start + timedelta(seconds=number) for number in range(104))
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    for state in ("on", "off"):
        house.set_state("light.guest", state)
    house.remove("light.guest")
    house.logbook_entries = [{"entity_id": "light.guest", "when": start.timestamp()}]
    for number in range(1, 101):
        house.set_state(SENSOR, str(number))
    process = Process(tmp_path, fake)
    process.refused_commands = {"logbook/get_events"}
    process.time.holding = lambda: process.telemetry.backfilled >= 20 and held
    held = True

    async with running(process):
        await process.until(lambda: process.telemetry.backfilled >= 20)
        process.refused_commands.clear()
        process.failures = [SourceProtocolError("No answer within 30 s")]
        held = False
        await process.until_filled()
        points = await process.points()
        gap = process.gap()

    assert_once(points)
    assert states(points) == numbers(0, 101)
    assert states(points, "light.guest") == ["on", "off", None]
    assert "logbook" in gap.sources
    assert not [text for text in gap.limitations if "does not show logbook" in text]


async def test_a_fill_that_goes_on_still_says_what_its_first_attempt_found(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """Here that the recorder does not reach back to the start."""
    start = datetime.now(UTC) - timedelta(seconds=300)
    house._moments = iter(start + timedelta(seconds=number) for number in range(101))
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    for number in range(1, 101):
        house.set_state(SENSOR, str(number))
    house.recorded[SENSOR] = house.recorded[SENSOR][2:]
    process = Process(tmp_path, fake)
    process.time.holding = lambda: process.telemetry.backfilled >= 20 and held
    held = True

    async with running(process):
        await process.until(lambda: process.telemetry.backfilled >= 20)
        process.failures = [SourceProtocolError("No answer within 30 s")]
        held = False
        await process.until_filled()

    assert not process.failures
    assert any("holds no state from before" in text for text in process.gap().limitations)


async def test_live_events_do_not_wait_for_a_gap(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """While one is being filled they become durable as ever."""
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 5)
    for number in range(5, 1_005):
        house.set_state(SENSOR, str(number))
    process = Process(tmp_path, fake)
    process.time.holding = lambda: 200 <= process.telemetry.backfilled < 1_000 and held
    held = True

    async with running(process):
        await process.until(lambda: process.telemetry.backfilled >= 200)
        house.set_state(SENSOR, "1005")
        await process.until_journaled(1)
        assert process.coverage.count("open") == 1
        held = False
        await process.until_filled()
        points = await process.points()

    assert_once(points)
    assert numbers(0, 1_006) == states(points)


async def test_the_rate_is_a_bound(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """No more than BACKFILL_RATE points a second, in small appends; what is there is read fast."""
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    for number in range(1, 1_001):
        house.set_state(SENSOR, str(number))

    async with running(Process(tmp_path, fake, points_per_s=50)) as process:
        await process.until_filled()

    pauses = [seconds for seconds in process.time.slept if seconds not in {0.1, 1.0, 6.0}]
    compared = 1 / 50_000  # the one point of the journal
    assert pauses == [compared, *[4.0] * 5]
    assert process.telemetry.backfilled == 1_000


async def test_restarts_in_a_row_write_nothing_twice(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """What came live in the first second of a connection lies in the gap as well."""
    for number in range(4):
        async with running(Process(tmp_path, fake)) as process:
            await lived(process, house, number * 10, number * 10 + 5)
            await process.until_filled(gaps=number)
            points = await process.points()
        for missed in range(number * 10 + 5, number * 10 + 10):
            house.set_state(SENSOR, str(missed))

    assert_once(points)
    assert numbers(0, 35) == states(points)
    assert [None, *numbers(0, 34)] == previous(points)
    live = [int(str(p.fields["state_value"])) % 10 < 5 for p in points]
    assert live == ["backfilled" not in point.fields for point in points]


async def test_a_quiet_edge_is_not_written_again_after_a_long_fill(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """The newest live point is the start of the next gap, however long ago it came."""
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    house.set_state(SENSOR, "1")
    process = Process(tmp_path, fake)
    async with running(process):
        await lived(process, house, 2, 3)
        await process.until_filled()
        process.journal.ack("influxdb", process.journal._cursors.tail)  # all is delivered
        # Hours later old points are still put into the journal: read back, or retried.
        old = Lines(b"events,entity_id=sensor.old x=1 1\n", 1)
        await process.journal.append(old, received_at=process.time() + 7_200)
        process.journal.ack("influxdb", process.journal._cursors.tail)
        await asyncio.sleep(0.1)
    house.set_state(SENSOR, "3")

    async with running(Process(tmp_path, fake)) as process:
        await process.until_filled(gaps=2)
        points = await process.points()

    counted = [point for point in points if point.tags["entity_id"] == SENSOR]
    assert states(points)[-2:] == ["2", "3"]
    assert "backfilled" not in counted[-2].fields
    assert "backfilled" in counted[-1].fields


async def test_what_changed_without_a_record_is_listed_and_written(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """Its newest state; what came before it cannot be known."""
    async with running(Process(tmp_path, fake)) as process:
        house.set_state("sensor.secret", "a")
        house.set_state("sensor.still", "b")
        await process.until_journaled(2)
    house.set_state("sensor.secret", "c")
    house.recorded.clear()

    async with running(Process(tmp_path, fake)) as process:
        await process.until_filled()
        points = await process.points()

    assert process.gap().unrecorded == ("sensor.secret",)
    assert states(points, "sensor.secret") == ["a", "c"]
    assert previous(points, "sensor.secret") == [None, "a"]
    assert states(points, "sensor.still") == ["b"]


async def test_without_history_the_newest_states_are_all_there_is(
    house: StillHouse, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The gap is given up, and it is said why."""
    async with FakeHomeAssistant(house, token=TOKEN, unknown_commands=[HISTORY]) as fake:
        house.fire = fake.fire
        async with running(Process(tmp_path, fake)) as process:
            await lived(process, house, 0, 1)
        for number in range(1, 5):
            house.set_state(SENSOR, str(number))
        async with running(Process(tmp_path, fake)) as process:
            await process.until_filled()
            points = await process.points()

    gap = process.gap()
    assert (gap.state, gap.unrecorded) == ("unfillable", (SENSOR,))
    assert "unknown_command" in str(gap.detail)
    assert states(points) == ["0", "4"]
    assert "cannot be filled" in caplog.text


@pytest.mark.parametrize("code", ["unknown_error", "home_assistant_error", "timeout"])
async def test_trouble_that_may_pass_gives_nothing_up(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path, code: str
) -> None:
    """The recorder may be busy with itself: it is asked again."""
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    house.set_state(SENSOR, "1")
    process = Process(tmp_path, fake)
    process.failures = [CommandFailed(HISTORY, code=code, message="Unknown error")] * 3

    async with running(process):
        await process.until_filled()
        points = await process.points()

    assert process.gap().state == "filled"
    assert states(points) == ["0", "1"]


async def test_trouble_that_does_not_pass_does_not_hold_up_all_other_gaps(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """After ten attempts, an hour or so, the gap is given up with the reason."""
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    process = Process(tmp_path, fake)
    process.failures = [CommandFailed(HISTORY, code="unknown_error", message="broken")] * 100

    async with running(process):
        await process.until_filled()

    gap = process.gap()
    # The last attempt looks for an entity that is to blame.
    assert (gap.state, len(process.failures)) == ("unfillable", 100 - 10 - 1)
    assert "broken" in str(gap.detail)


async def test_an_entity_whose_history_fails_costs_only_its_own_history(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """All others are read back, and the gap names it."""
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    house.set_state("sensor.bad", "1")
    house.set_state(SENSOR, "1")

    process = Process(tmp_path, fake)
    process.refuses = lambda parameters: "sensor.bad" in str(parameters["entity_ids"])
    process.refusal = CommandFailed(HISTORY, code="unknown_error", message="Unknown error")
    async with running(process):
        house.set_state(SENSOR, "2")
        await process.until_filled()
        points = await process.points()
        gap = process.gap()

    assert states(points) == numbers(0, 3)
    assert states(points, "sensor.bad") == ["1"]
    assert "Home Assistant fails to show the history of sensor.bad." in gap.limitations


async def test_a_gap_that_always_fails_does_not_block_newer_gaps(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """An answer that cannot be decoded costs its own gap, and health names that one."""
    house.restart_time(lambda: now() - timedelta(hours=3))
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    spoiled = str(house.set_state(SENSOR, "1")["time_fired"])
    house.let_pass(seconds=1_000)

    def refuses(parameters: Mapping[str, object]) -> bool:
        return str(parameters["start_time"]) < spoiled < str(parameters["end_time"])

    process = Process(tmp_path, fake)
    process.refuses = refuses
    async with running(process):
        await lived(process, house, 2, 3)
        await process.until(lambda: process.backfill.status().reason is not None)
        house.let_pass(seconds=60)
        house.set_state(SENSOR, "3")
        await process.until_journaled(2)
    house.let_pass(seconds=3600)
    house.set_state(SENSOR, "4")

    process = Process(tmp_path, fake)
    process.refuses = refuses
    async with running(process):
        house.set_state(SENSOR, "5")
        await process.until(lambda: process.coverage.count("filled") == 1)
        newer, older = process.coverage.gaps()
        reason = process.backfill.status().reason
        assert (newer.state, older.state) == ("filled", "open")
        process.refuses = lambda _: False
        await process.until_filled(2)
        points = await process.points()

    assert reason is not None
    assert "cannot be read back" in reason
    assert process.backfill.status().reason is None
    assert_once(points)
    assert states(points) == numbers(0, 6)


async def test_what_an_earlier_process_missed_without_ever_connecting_is_read_back(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """Home Assistant was absent at the first start, and there when the service started again."""
    async with Process(tmp_path, fake).journal:
        house.set_state(SENSOR, "0")
        house.set_state(SENSOR, "1")

    async with running(Process(tmp_path, fake)) as process:
        await process.until_filled()
        points = await process.points()

    assert states(points) == ["0", "1"]


@pytest.mark.parametrize("kept", [5, 1_000])
async def test_a_gap_says_that_the_recorder_does_not_reach_back_to_its_start(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path, kept: int
) -> None:
    """It was purged: what is left is read back, and what is missing is not passed over."""
    house.restart_time(lambda: now() - timedelta(hours=12))
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    for number in range(1, 10):
        house.let_pass(seconds=3_600)
        house.set_state(SENSOR, str(number))
    house.recorded[SENSOR] = house.recorded[SENSOR][-kept:]

    async with running(Process(tmp_path, fake)) as process:
        await process.until_filled()

    is_named = any("holds no state from before" in text for text in process.gap().limitations)
    assert is_named == (kept == 5)


@pytest.mark.parametrize(
    ("hours", "retention_h", "asked", "is_said"),
    [(3, 2, 1, True), (3, 4, 1, False), (3, None, 1, False), (0.5, 0.25, 0, False)],
)
async def test_a_gap_says_that_the_database_does_not_retain_its_start(
    house: StillHouse,
    fake: FakeHomeAssistant,
    tmp_path: Path,
    hours: float,
    retention_h: float | None,
    *,
    asked: int,
    is_said: bool,
) -> None:
    """All of it is read back nevertheless: the database decides. None retains less than an hour."""
    house.restart_time(lambda: now() - timedelta(hours=hours))
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    house.set_state(SENSOR, "1")
    house.restart_time(now)
    process = Process(tmp_path, fake)
    process.retention_s = retention_h and retention_h * 3600
    async with running(process):
        house.set_state(SENSOR, "2")
        await process.until_filled()
        points = await process.points()

    said = "The database keeps points for 2 h and does not store older ones."
    assert any(text.startswith(said) for text in process.gap().limitations) == is_said
    assert (states(points), process.asked["retention"]) == (numbers(0, 3), asked)


async def test_where_nothing_is_filled_by_itself_a_person_may_ask(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """BACKFILL_ENABLED=false: the gap is noted, and stays open until somebody wants it."""
    async with running(Process(tmp_path, fake, fills=False)) as process:
        await lived(process, house, 0, 1)
    house.set_state(SENSOR, "1")

    async with running(Process(tmp_path, fake, fills=False)) as process:
        await lived(process, house, 2, 3)
        assert process.gap().state == "open"
        assert process.asked[HISTORY] == 0
        since = nanoseconds(datetime.now(UTC) - timedelta(hours=1))
        process.coverage.request(Times(since, nanoseconds(datetime.now(UTC))), entity_ids=[])
        await process.until_filled()
        points = await process.points()

    assert_once(points)
    assert states(points) == ["0", "1", "2"]


async def test_what_is_older_than_wanted_is_given_up_alone(
    fake: FakeHomeAssistant, house: StillHouse, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """BACKFILL_MAX_HOURS before Home Assistant's newest state a gap is cut in two."""
    ago = datetime.now(UTC) - timedelta(hours=3)
    house._moments = iter([ago, ago + timedelta(minutes=30), ago + timedelta(hours=2)])
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    house.set_state(SENSOR, "1")
    house.set_state(SENSOR, "2")

    async with running(Process(tmp_path, fake, max_hours=1)) as process:
        await process.until_filled(gaps=2)
        points = await process.points()

    lost, rest = sorted(process.coverage.gaps(), key=lambda gap: gap.start_ns)
    assert (lost.state, rest.state) == ("unfillable", "filled")
    assert lost.detail == "Older than BACKFILL_MAX_HOURS (1)"
    assert "is not filled: Older than BACKFILL_MAX_HOURS (1)" in caplog.text
    assert states(points) == ["0", "2"]
    assert previous(points) == [None, "1"]


async def test_what_a_full_journal_refused_is_read_back_when_there_is_room(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """With `drop_new` the gap stays open until then."""
    process = Process(tmp_path, fake)
    bounds = process.journal._bounds
    async with running(process):
        await lived(process, house, 0, 5)
        process.journal._bounds = replace(bounds, max_bytes=1)
        for number in range(5, 10):
            house.set_state(SENSOR, str(number))
        await process.until(lambda: process.telemetry.dropped["journal_full"] >= 5)
        reason = process.backfill.status().reason
        assert process.coverage.count("open") == 1
        process.journal._bounds = bounds
        house.set_state(SENSOR, "10")
        await process.until_journaled(6)
        await process.until_filled()
        points = await process.points()

    assert_once(points)
    assert reason is not None
    assert reason.startswith("Events were dropped before they were durable")
    assert process.backfill.status().reason is None
    assert process.coverage.gaps()[0].reason == "journal_full"
    assert numbers(0, 11) == states(points)


async def test_an_entity_that_was_renamed_in_the_gap(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """The old one was removed, the new one begins: as Home Assistant tells it live."""
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    house.remove(SENSOR)
    house.set_state("sensor.renamed", "0")

    async with running(Process(tmp_path, fake)) as process:
        await process.until_filled()
        points = await process.points()

    assert previous(points) == [None, "0"]
    assert points[1].fields["removed"] is True
    assert states(points, "sensor.renamed") == ["0"]
    assert previous(points, "sensor.renamed") == [None]


async def test_a_home_assistant_that_starts_is_waited_for(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """Its history is not there before it is RUNNING."""
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    house.set_state(SENSOR, "1")
    house.ha_state = "NOT_RUNNING"

    async with running(Process(tmp_path, fake)) as process:
        await process.until(lambda: 1.0 in process.time.slept)
        assert process.asked[HISTORY] == 0
        house.ha_state = "RUNNING"
        await process.until_filled()
        points = await process.points()

    assert states(points) == ["0", "1"]


async def test_what_is_remembered_is_brought_up_to_date_from_the_journal(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """A crash forgets what was not saved; the newest points know it, and old ones do no harm."""
    folder, killed = tmp_path / "first", tmp_path / "killed"
    process = Process(folder, fake)
    async with running(process):
        house.set_state(SENSOR, "0", {"n": 0})
        house.set_state(SENSOR, "1", {"n": 0})
        await process.until_journaled(2)
        process.journal._housekeeping._states_saved_at = 0.0
        await tidy(process.journal)
        process.journal._housekeeping._save_states_s = 3600.0
        house.set_state(SENSOR, "1", {"n": 1})
        await process.until_journaled(3)
        known = {name: process.last_states.get(name) for name in [SENSOR]}
        old = Lines(b'events,entity_id=%s backfilled=true,state_value="x" 1\n' % SENSOR.encode(), 1)
        await process.journal.append(old, received_at=time.time())
        shutil.copytree(folder, killed)

    async with running(Process(killed, fake)) as process:
        recalled = {name: process.last_states.get(name) for name in [SENSOR]}

    assert known == recalled


@pytest.mark.parametrize("missed", [["1"], ["1", "0"]])
async def test_what_is_recalled_across_a_gap_says_not_since_when_a_state_lasts(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path, missed: Sequence[str]
) -> None:
    """An update of attributes does not tell that either; the recorder does."""
    folder, killed = tmp_path / "first", tmp_path / "killed"
    start = datetime.now(UTC) - timedelta(seconds=200)
    house._moments = (start + timedelta(seconds=n) for n in itertools.count())
    async with running(Process(folder, fake)) as process:
        await lived(process, house, 0, 1)
    for state in missed:
        house.set_state(SENSOR, state)
    process = Process(folder, fake)
    process.refuses = lambda _: True
    process.journal._housekeeping._save_states_s = 3600.0
    async with running(process):
        house.set_state(SENSOR, missed[-1], {"n": 1})
        await process.until_journaled(1)
        shutil.copytree(folder, killed)
    house.set_state(SENSOR, "2")

    async with running(Process(killed, fake)) as process:
        await process.until_filled(2)
        points = await process.points()

    assert states(points) == ["0", *missed, missed[-1], "2"]
    durations = [point.fields["duration_in_state_seconds"] for point in points[1:]]
    assert durations == [*[1.0 for _ in missed], 0.0, 2.0]


async def test_a_damaged_row_does_not_stop_the_start(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """It is counted as missing, and its time is read back."""
    process = Process(tmp_path, fake)
    process.journal._housekeeping._save_states_s = 3600.0
    async with running(process):
        await lived(process, house, 0, 1)
        shutil.copytree(tmp_path, tmp_path / "killed")
    with contextlib.closing(sqlite3.connect(tmp_path / "killed" / "journal.db")) as connection:
        connection.execute("UPDATE journal_rows SET gzip = zeroblob(9)")
        connection.execute("UPDATE journal SET states_through = 0")
        connection.commit()
        # The log holds the row as it was, from which it would be recovered.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    async with running(Process(tmp_path / "killed", fake)) as process:
        await process.until_filled(2)
        reasons = [gap.reason for gap in process.coverage.gaps() if gap.state != "unfillable"]

    assert sorted(reasons) == ["damage", "restart"]


# Which entities


async def test_entities_that_lived_only_in_the_gap_are_read_back(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """The logbook, the statistics and the registry name them; the gap names its sources."""
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    for entity_id in ("switch.guest", "sensor.rented_meter", "light.disabled"):
        house.set_state(entity_id, "1")
        row = house.remove(entity_id)
        assert row
    when = now().timestamp()
    house.logbook_entries = [{"entity_id": "switch.guest", "state": "1", "when": when}]
    house.statistic_ids = ["sensor.rented_meter", "recorder:external"]
    house.rows["entity"] = [
        {"entity_id": "light.disabled", "platform": "demo", "disabled_by": "user", "id": "1"}
    ]

    async with running(Process(tmp_path, fake)) as process:
        await process.until_filled()
        points = await process.points()

    for entity_id in ("switch.guest", "sensor.rented_meter", "light.disabled"):
        assert states(points, entity_id) == ["1", None]
        assert previous(points, entity_id) == [None, "1"]
    assert process.gap().sources == (
        "states",
        "captured",
        "entity_registry",
        "statistics",
        "logbook",
    )
    assert "single state" in process.gap().limitations[0]


async def test_a_gap_without_a_row_is_not_filled_but_nothing_recorded(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """The recorder was purged, or nothing changed: it does not say."""
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)

    async with running(Process(tmp_path, fake)) as process:
        await process.until_filled()

    assert (process.gap().state, process.gap().changes) == ("nothing_recorded", 0)
    assert "holds nothing" in str(process.gap().detail)


async def test_an_entity_that_nothing_knows_is_named(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """Whether before the request or, without a connection then, when the gap is read."""
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
        house.set_state("sensor.removed", "1")
        house.remove("sensor.removed")
        await process.until_journaled(3)
        process.last_states.__init__()  # type: ignore[misc]  # a new service has seen nothing
        unknown = await process.backfill.unknown_entities([SENSOR, "sensor.removed", "sensor.typo"])
        since = nanoseconds(datetime.now(UTC) - timedelta(hours=1))
        (gap,) = process.coverage.request(
            Times(since, nanoseconds(datetime.now(UTC))), entity_ids=["sensor.typo"]
        )
        await process.until_filled()
        closed = process.coverage.gap(gap.id)

    assert unknown == ["sensor.typo"]
    assert closed is not None
    assert (closed.state, closed.detail) == ("unfillable", "Nothing knows sensor.typo")


# A recorder that is behind


async def test_a_gap_stays_open_while_the_recorder_is_behind(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """However long its database is locked; health says why."""
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    house.set_state(SENSOR, "1")
    late, house.recorded[SENSOR] = house.recorded[SENSOR], house.recorded[SENSOR][:1]
    house.backlog = 979

    process = Process(tmp_path, fake)
    async with running(process):
        await process.until(lambda: sum(process.time.slept) > 600)
        reason = process.backfill.status().reason
        states_meanwhile = {gap.state for gap in process.coverage.gaps()}
        house.backlog, house.recorded[SENSOR] = 0, late
        await process.until_filled()
        points = await process.points()

    assert "yet to write 979 events" in str(reason)
    assert states_meanwhile == {"open"}
    assert states(points) == ["0", "1"]
    assert process.backfill.status().reason is None


async def test_an_event_that_ends_a_gap_does_not_prove_that_the_gap_is_recorded(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """It comes while the recorder is waited for: a row inside the gap is no row past its end."""
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    house.set_state(SENSOR, "1")
    house.set_state("light.late", "on")
    house.uncommitted_since = str(house.recorded["light.late"][-1]["last_updated"])
    house.backlog = 1

    async with running(Process(tmp_path, fake)) as process:
        await process.until(lambda: 1.0 in process.time.slept)
        house.set_state(SENSOR, "2")
        await process.until_journaled(1)
        polls = process.asked["recorder/info"]
        await process.until(lambda: process.asked["recorder/info"] > polls + 3)
        assert process.gap().state == "open"
        house.uncommitted_since = None
        await process.until_filled()
        points = await process.points()

    assert states(points) == numbers(0, 3)
    assert states(points, "light.late") == ["on"]


async def test_a_row_past_the_end_of_a_gap_is_enough(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """A busy home always has a backlog."""
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    house.set_state(SENSOR, "1")
    house.backlog = 7

    async with running(Process(tmp_path, fake)) as process:
        await process.until(lambda: process.asked["recorder/info"] > 3)
        house.set_state(SENSOR, "2")
        await process.until_filled()
        points = await process.points()

    assert states(points) == ["0", "1", "2"]


async def test_without_a_recorder_a_gap_waits_for_one(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is unfillable with the reason, and filled once Home Assistant has a recorder again."""
    monkeypatch.setattr("app.backfill.backfill._RECORDER_CHECK_S", 0.05)
    house.components = ["history", "sun"]
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    house.set_state(SENSOR, "1")

    process = Process(tmp_path, fake)
    async with running(process):
        await process.until(lambda: process.coverage.count("unfillable") == 1)
        detail = process.gap().detail
        house.components.append("recorder")
        await process.until(lambda: process.coverage.count("filled") == 1)

    assert detail == "Home Assistant runs without the integration 'recorder'"


# What stood before


async def test_what_was_read_back_stands_before_the_next_gap(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """A door that changed in one gap, and again in the next one, with nothing live between."""
    door = "binary_sensor.door"
    async with running(Process(tmp_path, fake)) as process:
        house.set_state(door, "off")
        await process.until_journaled(1)
    house.set_state(door, "on")
    async with running(Process(tmp_path, fake)) as process:
        await process.until_filled()
        await lived(process, house, 0, 1)
    house.set_state(door, "off")
    async with running(Process(tmp_path, fake)) as process:
        await process.until_filled(gaps=2)
        points = [p for p in await process.points() if p.tags["entity_id"] == door]

    assert previous(points, door) == [None, "off", "on"]
    durations = [point.fields.get("duration_in_state_seconds") for point in points]
    assert durations[1:] == [
        pytest.approx((after.time_ns - before.time_ns) / 1e9) for before, after in pairwise(points)
    ]


async def _with_an_unread_gap(house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path) -> None:
    """Miss the change to 1; capture those to 0 and 2; end before the gap is read."""
    async with running(Process(tmp_path, fake)) as process:
        await lived(process, house, 0, 1)
    house.set_state(SENSOR, "1")
    process = Process(tmp_path, fake)
    process.refuses = lambda _: True
    async with running(process):
        await lived(process, house, 2, 3)


async def test_each_gap_counts_its_own_changes(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """Also when the older one is read later, because its first attempt failed."""
    await _with_an_unread_gap(house, fake, tmp_path)
    house.set_state(SENSOR, "3")

    process = Process(tmp_path, fake)
    process.failures = [SourceProtocolError("No answer within 30 s")]
    async with running(process):
        await process.until_filled(gaps=2)
        points = await process.points()

    assert [gap.changes for gap in process.coverage.gaps()] == [1, 1]
    assert (states(points), previous(points)) == (numbers(0, 4), [None, *numbers(0, 3)])


async def test_what_changed_in_a_later_gap_is_left_to_that_gap(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """An entity that the recorder has yet to write there is not one without recorded history."""
    await _with_an_unread_gap(house, fake, tmp_path)
    house.set_state("light.new", "off")
    house.set_state("light.new", "on")
    house.uncommitted_since = str(house.recorded["light.new"][0]["last_updated"])
    house.backlog = 2

    async with running(Process(tmp_path, fake)) as process:
        await process.until(lambda: process.coverage.count("filled") == 1)
        house.uncommitted_since, house.backlog = None, 0
        await process.until_filled(gaps=2)
        points = await process.points()

    assert [gap.unrecorded for gap in process.coverage.gaps()] == [(), ()]
    assert states(points) == numbers(0, 3)
    assert (states(points, "light.new"), previous(points, "light.new")) == (
        ["off", "on"],
        [None, "off"],
    )


@pytest.mark.parametrize("is_recent", [True, False])
@pytest.mark.parametrize("returns", [True, False])
async def test_an_entity_that_became_unavailable_in_a_gap_stays_in_its_series(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path, *, returns: bool, is_recent: bool
) -> None:
    """With the class and unit it had before, whether it is still unavailable or has others now.

    The state before is within what is requested, or older.
    """
    start = datetime.now(UTC) - timedelta(seconds=300)
    house._moments = (start + timedelta(seconds=n * 60) for n in itertools.count())
    async with running(Process(tmp_path, fake)) as process:
        house.set_state("sensor.power", "5", {"device_class": "power", "unit_of_measurement": "kW"})
        if not is_recent:
            house.set_state("light.other", "on")
        await process.until(lambda: process.telemetry.journaled == (1 if is_recent else 2))
    house.set_state("sensor.power", "unavailable", {})
    process = Process(tmp_path, fake)
    process.time.holding = lambda: not process.telemetry.journaled
    async with running(process):
        if returns:
            house.set_state("sensor.power", "9", {"unit_of_measurement": "W"})
        else:
            house.set_state(SENSOR, "1")
        await process.until_filled()
        points = [p for p in await process.points() if p.tags["entity_id"] == "sensor.power"]

    assert previous(points, "sensor.power")[1] == "5"
    assert [points[1].tags.get(name) for name in ("device_class", "unit_of_measurement")] == [
        "power",
        "kW",
    ]


@pytest.mark.parametrize("is_clean", [True, False])
async def test_the_first_states_after_a_restart_have_no_previous_state(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path, *, is_clean: bool
) -> None:
    """As in the live events of a Home Assistant that has just started."""
    start = datetime.now(UTC) - timedelta(seconds=200)
    house._moments = (start + timedelta(seconds=n / 10) for n in itertools.count())
    async with running(Process(tmp_path, fake)) as process:
        house.set_state("light.lamp", "on")
        await lived(process, house, 0, 1)
        await process.until_journaled(2)
    house.set_state(SENSOR, "1")
    house.restart(is_clean=is_clean)
    house.set_state(SENSOR, "2")

    async with running(Process(tmp_path, fake)) as process:
        await process.until_filled()
        points = await process.points()

    assert states(points) == ["0", "1", "1", "2"]
    assert previous(points) == [None, "0", None, "1"]
    assert previous(points, "light.lamp") == [None, None]
