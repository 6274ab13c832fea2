"""A home with a recorder, and all parts that capture it: real, with a clock that jumps."""

from __future__ import annotations

import asyncio
import shutil
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

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
from app.model import Gap, Lines, Row, StoredPoint
from app.normalize.changes import Normalizer
from app.normalize.filter import EntityFilter
from app.pipeline import Pipeline
from app.runtime.errors import CommandFailed, SourceProtocolError
from app.runtime.retry import Backoff, Breaker
from app.schema.homeiq import HomeiqEncoder, identity_of, last_state_of
from app.schema.line_protocol import parse_line
from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.points import new_telemetry
from tests.fakes.still_house import StillHouse
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
class FaultyCommands:
    """A connection for commands that a test may make fail."""

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
        entity_filter: EntityFilter | None = None,
    ) -> None:
        self.time = Time()
        self.failures: list[Exception] = []
        """Raised by the next requests for history, one each."""
        self.refuses: Callable[[Mapping[str, object]], bool] = lambda _: False
        """Whether a request for history, with these parameters, is refused."""
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
            entity_filter=entity_filter,
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
                retention_s=self._database_retention_s,
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
    async def _commands(self) -> AsyncIterator[FaultyCommands]:
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

            yield FaultyCommands(call)

    async def _database_retention_s(self) -> float | None:
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


class CapturedHome:
    """A home with a recorder, and the processes that capture it one after another."""

    def __init__(self, house: StillHouse, fake: FakeHomeAssistant, folder: Path) -> None:
        self.house = house
        self.fake = fake
        self.folder = folder

    def process(self, **options: Any) -> Process:
        """Return the next process; `options` are those of `Process`."""
        return Process(self.folder, self.fake, **options)

    def count(self, first: int, end: int) -> None:
        """Let the sensor count."""
        for number in range(first, end):
            self.house.set_state(SENSOR, str(number))

    async def counted(self, process: Process, first: int, end: int) -> None:
        """Let the sensor count, and a process capture it."""
        self.count(first, end)
        await process.until_journaled(end - first)

    async def capture(self, first: int, end: int, **options: Any) -> Process:
        """Run a process while the sensor counts, and end it."""
        async with running(self.process(**options)) as process:
            await self.counted(process, first, end)
        return process

    async def fill(
        self, process: Process | None = None, *, gaps: int = 1
    ) -> tuple[Process, list[StoredPoint]]:
        """Run a process until so many gaps are closed; return it and all points."""
        filling = process or self.process()
        async with running(filling):
            await filling.until_filled(gaps)
            return filling, await filling.points()

    @asynccontextmanager
    async def interrupted_fill(
        self, *, refused_commands: Sequence[str] = ()
    ) -> AsyncIterator[Process]:
        """Run a process until its gap is filled, after a pause and a failure of the connection.

        The block is run in the pause, when a part of the gap is filled.
        """
        process, is_paused = self.process(), True
        process.refused_commands = {*refused_commands}
        process.time.holding = lambda: is_paused and process.telemetry.backfilled >= 20
        async with running(process):
            await process.until(lambda: process.telemetry.backfilled >= 20)
            yield process
            process.failures = [SourceProtocolError("No answer within 30 s")]
            is_paused = False
            await process.until_filled()
        assert not process.failures

    async def points(self) -> list[StoredPoint]:
        """Return all points of the journal while no process runs."""
        process = self.process()
        async with process.journal:
            return await process.points()

    def kill(self, folder: Path) -> None:
        """Have the next process start with the files as they are now, as after a kill."""
        shutil.copytree(self.folder, folder)
        self.folder = folder
