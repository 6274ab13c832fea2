"""Batcher, journal and delivery against a model: whatever happens, in whatever order.

Hypothesis plays events, disks, databases and restarts. Nothing here runs on time: every
database answers when a rule says so, every wait ends when a rule says so, and each rule lasts
until all loops rest again, so that an example plays the same way each time.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.journal.batcher import Batcher
from app.journal.cursors import Overflow, Span
from app.journal.journal import SqliteJournal
from app.model import Lines, Pending, Row
from app.runtime.errors import JournalFull, StorageError
from app.runtime.metrics import Telemetry
from app.runtime.retry import Backoff, Breaker
from app.sinks.batches import Batch
from app.sinks.delivery import Delivery
from app.sinks.outcomes import (
    Accepted,
    Busy,
    Held,
    Outcome,
    OutOfBounds,
    Refused,
    RefusedLine,
    ServerFailed,
    TimedOut,
    TooLarge,
    Unavailable,
)
from app.sinks.retry_policy import refusing
from tests.fakes.journal import tidy
from tests.fakes.points import new_telemetry

SinkProblem = Literal["held", "busy", "timed out", "unavailable", "failed", "too large"]

SINKS = ("a", "b")
MAX_PENDING = 60
MAX_BYTES = 200_000
MOST_RESTARTS = 4
"""Per example: with more no process runs long enough to fail."""
IN_CI = bool(os.environ.get("CI"))


def line_of(number: int) -> bytes:
    """Return a line that carries its number and takes 500 bytes however it is compressed."""
    text = random.Random(number).randbytes(500).hex().encode()
    return b'm,e=%d v="%s" %d' % (number % 7, text, number)


def number_of(line: bytes) -> int:
    """Return the number that a line carries."""
    return int(line.rsplit(b" ", 1)[1])


def is_refused(sink: str, number: int) -> bool:
    """Whether the database of a sink refuses a line; each has its own taste."""
    return number % 17 == 5 if sink == "a" else number % 23 in {7, 8}


def is_over_limit(sink: str, number: int) -> bool:
    """Whether the line is of a series for which the database of a sink has no room."""
    return sink == "b" and number % 7 == 3


def breaks(sink: str, number: int) -> bool:
    """Whether the database of a sink breaks down over a line."""
    return sink == "a" and number % 71 == 11


def is_bad(sink: str, number: int) -> bool:
    """Whether a line never gets into the database of a sink."""
    return is_refused(sink, number) or is_over_limit(sink, number) or breaks(sink, number)


def never_written(holes: Sequence[Span], cursor: int, through: int) -> int:
    """Return how many numbers a sink missed: never committed while it was not configured."""
    return sum(max(0, min(hole.last, through) - max(hole.first - 1, cursor)) for hole in holes)


class Model:
    """What has happened, through all restarts: the truth that everything is held against."""

    def __init__(self) -> None:
        self.log: list[int] = []
        """The number of the event at each place of the journal, from sequence number 1."""
        self.databases: dict[str, Database] = {}


class Database:
    """What one sink's database holds, with its dead letters."""

    def __init__(self, name: str, log: list[int]) -> None:
        self.name = name
        self.starts_after = len(log)
        self.stored: set[int] = set()
        """Sequence numbers."""
        self.newest = 0
        self.dead: set[int] = set()
        self.dropped_before = 0
        """Points dropped for it in earlier lives."""
        self._log = log

    def store(self, batch: Batch, *, partly: bool = False, is_probe: bool = False) -> None:
        """Store a batch, or what is good of it; what is new must be newer than all before.

        A probe is a single line that may be ahead of its turn.
        """
        for sequence, number in self.points_of(batch):
            if partly and is_bad(self.name, number):
                continue
            if sequence not in self.stored:
                assert sequence > self.newest, "a point arrived behind a newer one"
                self.stored.add(sequence)
                if not is_probe:
                    self.newest = sequence

    def points_of(self, batch: Batch) -> list[tuple[int, int]]:
        """Return (sequence, number) of a batch, which must be what the journal took there."""
        found = [number_of(line) for line in batch.lines()]
        assert found == [self._log[n - 1] for n in batch.numbers], "not what was journaled there"
        return list(zip(batch.numbers, found, strict=True))

    def forget_numbers_after(self, tail: int) -> None:
        """Treat later numbers as never used: the next process uses them again."""
        self.stored = {sequence for sequence in self.stored if sequence <= tail}
        self.dead = {sequence for sequence in self.dead if sequence <= tail}
        self.newest = min(self.newest, tail)

    async def insert(self, sink: str, refused: Sequence[RefusedLine]) -> None:
        """Keep dead letters; durable at once."""
        for sequence, line, reason in refused:
            number = number_of(line)
            assert self._log[sequence - 1] == number
            assert is_bad(sink, number), f"{reason}: it is a good line"
            self.dead.add(sequence)


class Sink:
    """The way to a database: a request waits until a rule answers it."""

    def __init__(self, database: Database) -> None:
        self.name = database.name
        self.delivery: Delivery | None = None
        self.asked: Batch | None = None
        self.waiting: asyncio.Future[None] | None = None
        """Where delivery pauses."""
        self.now_s = 0.0
        self._database = database
        self._answering: asyncio.Future[Outcome] | None = None
        self._alive = False

    async def write(self, batch: Batch) -> Outcome:
        """Wait for the answer."""
        self._database.points_of(batch)
        self.asked = batch
        self._answering = asyncio.get_running_loop().create_future()
        return await self._answering

    @property
    def is_probed(self) -> bool:
        """Whether delivery may try a line ahead of its turn."""
        assert self.delivery is not None
        assert self.asked is not None
        state, limits = self.delivery._state, self.delivery._limits
        return self.asked.points == 1 and (state.probe_next or refusing(state, limits))

    async def ping(self) -> bool:
        """Say whether it was a line that broke it."""
        return self._alive

    async def sleep(self, seconds: float) -> None:
        """Pause until a rule ends it."""
        self.waiting = asyncio.get_running_loop().create_future()
        await self.waiting
        self.now_s += seconds

    def wake(self) -> None:
        """End the pause, if there is one."""
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.set_result(None)

    def judge(self, *, stores_partly: bool) -> None:
        """Answer as a database that is well."""
        if self.asked is None:
            return
        numbers = [number for _, number in self._database.points_of(self.asked)]
        if any(breaks(self.name, number) for number in numbers):
            self._answer(ServerFailed(reason="panic", status=500), alive=True)
        elif over := sum(is_over_limit(self.name, number) for number in numbers):
            self._database.store(self.asked, partly=True, is_probe=self.is_probed)
            self._answer(OutOfBounds(cause="limit", reason="limit exceeded", dropped=over))
        elif any(is_refused(self.name, number) for number in numbers):
            if stores_partly:
                self._database.store(self.asked, partly=True, is_probe=self.is_probed)
            self._answer(Refused(reason="unable to parse", status=400))
        else:
            self._database.store(self.asked, is_probe=self.is_probed)
            self._answer(Accepted())

    def fail(self, problem: SinkProblem, *, stores: bool) -> None:
        """Answer as one that is not well; it may have stored the batch all the same."""
        if self.asked is None:
            return
        answers: dict[SinkProblem, Outcome] = {
            "held": Held(reason="unauthorized", status=401, advice="Check the token."),
            "busy": Busy(reason="slow down", status=429, retry_after_s=5.0),
            "timed out": TimedOut(reason="no answer in time"),
            "unavailable": Unavailable(reason="reset"),
            "failed": ServerFailed(reason="engine", status=500),
            "too large": TooLarge(reason="413"),
        }
        if problem == "too large" and self.asked.points == 1:
            return  # it would be the line's fault, and no line here is so long
        if stores and problem in {"timed out", "unavailable", "failed"}:
            self._database.store(self.asked, partly=True, is_probe=self.is_probed)
        self._answer(answers[problem])

    def _answer(self, answer: Outcome, *, alive: bool = False) -> None:
        assert self._answering is not None
        self.asked, self._alive = None, alive
        self._answering.set_result(answer)


class WatchedJournal:
    """A journal whose commits can be held back or made to fail, and that knows who waits."""

    def __init__(self, inner: SqliteJournal, log: list[int]) -> None:
        self.inner = inner
        self.gate = asyncio.Event()
        self.gate.set()
        self.at_the_gate = False
        self.is_sick = False
        """Whether every commit fails."""
        self.napping: asyncio.Future[None] | None = None
        """Where the batcher waits before it tries a commit again."""
        self.is_forgotten = False
        """Set when the process counts as killed: what it still does never happened."""
        self.idle: set[str] = set()
        self._log = log

    async def append(
        self, lines: Lines, *, received_at: float, counted: Callable[[], None]
    ) -> None:
        """Append, and note in the model what stands where."""
        await self._pass_the_gate()
        before = len(self._log)
        self._note(lines)
        try:
            await self.inner.append(lines, received_at=received_at, counted=counted)
        except JournalFull:
            del self._log[before:]
            raise

    async def append_uncommitted(self, lines: Lines, *, received_at: float) -> None:
        """Append without a commit, and note in the model what stands where."""
        self._note(lines)
        await self.inner.append_uncommitted(lines, received_at=received_at)

    async def commit(self) -> None:
        """Commit."""
        await self._pass_the_gate()
        await self.inner.commit()

    @property
    def uncommitted_points(self) -> int:
        """Return how many points are not committed."""
        return self.inner.uncommitted_points

    @property
    def uncommitted_since(self) -> float | None:
        """Return since when."""
        return self.inner.uncommitted_since

    async def nap(self, _: float) -> None:
        """Wait until a rule has a commit tried again."""
        self.napping = asyncio.get_running_loop().create_future()
        await self.napping

    def wake(self) -> None:
        """Have a commit tried again, if one failed."""
        napping, self.napping = self.napping, None
        if napping is not None:
            napping.set_result(None)

    async def _pass_the_gate(self) -> None:
        self.at_the_gate = True
        await self.gate.wait()
        self.at_the_gate = False
        if self.is_sick:
            raise StorageError("failing")

    def _note(self, lines: Lines) -> None:
        if not self.is_forgotten:
            self._log += map(number_of, lines.split())

    async def read(self, sink: str, *, max_points: int, after: int = 0) -> list[Row]:
        """Read."""
        return await self.inner.read(sink, max_points=max_points, after=after)

    def cursor(self, sink: str) -> int:
        """Return the cursor."""
        return self.inner.cursor(sink)

    def ack(self, sink: str, through: int) -> None:
        """Ack, which must move the cursor."""
        assert self.inner.cursor(sink) < through <= len(self._log) or self.is_forgotten
        self.inner.ack(sink, through)

    def pending(self, sink: str, *, after: int = 0) -> Pending:
        """Return what is not acked."""
        return self.inner.pending(sink, after=after)

    async def grown(self, sink: str, *, points: int) -> None:
        """Wait."""
        self.idle.add(sink)
        try:
            await self.inner.grown(sink, points=points)
        finally:
            self.idle.discard(sink)


def _let_threads_work() -> None:
    """Give up the interpreter's lock: a loop that only polls keeps it for 5 ms."""
    time.sleep(0.000_05)


class Life:
    """One process, from its start to its end."""

    def __init__(
        self, inner: SqliteJournal, model: Model, sinks: tuple[str, ...], overflow: Overflow
    ):
        self.telemetry: Telemetry = new_telemetry()
        inner._cursors._telemetry = self.telemetry
        self.journal = WatchedJournal(inner, model.log)
        self.put_points = 0
        self.sinks = {name: Sink(model.databases[name]) for name in sinks}
        self.batcher = Batcher(
            self.journal,
            telemetry=self.telemetry,
            commit_interval_s=0.0,
            commit_points=20,
            max_pending_points=MAX_PENDING,
            overflow=overflow,
            clock=lambda: 0.0,
            sleep=self.journal.nap,
        )
        self.started_at = {name: inner.cursor(name) for name in sinks}
        self.held_at_start = {name: inner.pending(name).points for name in sinks}
        self.holes = inner._cursors.holes
        deliveries = [
            Delivery(
                sink=sink,
                journal=self.journal,
                dead_letters=model.databases[name],
                breaker=Breaker(name, threshold=5, reset_s=30.0, clock=lambda: 0.0),
                backoff=Backoff(max_s=60.0, chance=lambda: 0.5),
                telemetry=self.telemetry,
                batch_points=1,
                batch_timeout_s=0.0,
                max_batch_points=50,
                clock=lambda sink=sink: sink.now_s,  # type: ignore[misc]
                wall_clock=lambda: 0.0,
                sleep=sink.sleep,
            )
            for name, sink in self.sinks.items()
        ]
        for sink, delivery in zip(self.sinks.values(), deliveries, strict=True):
            sink.delivery = delivery
        self.delivering = [asyncio.create_task(delivery.run()) for delivery in deliveries]
        self.taking_in = asyncio.create_task(self.batcher.run())

    async def rest(self) -> None:
        """Wait until everything waits for a rule."""
        async with asyncio.timeout(20):
            while not self._rests():
                await asyncio.sleep(0)
                _let_threads_work()
        for task in (self.taking_in, *self.delivering):
            if task.done():
                task.result()

    def _rests(self) -> bool:
        if any(task.done() for task in (self.taking_in, *self.delivering)):
            return True
        journal = self.journal
        # What every sink has is not pending any more, while its numbers may still be committed.
        if journal.inner._order.locked():
            return False
        is_calm = self.batcher.pending_points == 0 or journal.at_the_gate
        return (is_calm or journal.napping is not None) and all(
            sink.asked is not None
            or sink.waiting is not None
            or (name in journal.idle and not journal.pending(name).points)
            for name, sink in self.sinks.items()
        )

    async def end(self) -> None:
        """Stop as at a signal: everything received is committed, requests are given up."""
        self.journal.gate.set()
        self.journal.is_sick = False
        self.batcher.close()
        self.journal.wake()
        await self.taking_in
        for task in self.delivering:
            task.cancel()
        await asyncio.wait(self.delivering)
        await self.journal.inner.__aexit__(None, None, None)


class MemoryMachine(RuleBasedStateMachine):
    """The journal in memory: one life, two sinks."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.model = Model()
        self.events = 0
        self.overflow: Overflow = "drop_oldest"
        self.life: Life | None = None

    @initialize(overflow=st.sampled_from(["drop_oldest", "drop_new"]))
    def start(self, overflow: Overflow) -> None:
        """Start with both sinks."""
        self.overflow = overflow
        self.play(self.begin(SINKS))

    @rule(points=st.integers(1, 30), is_sick=st.booleans())
    def receive(self, points: int, *, is_sick: bool) -> None:
        """Events come in, and from now on every commit fails or succeeds."""
        self.now.journal.is_sick = is_sick
        numbers = range(self.events, self.events + points)
        self.events += points
        data = b"".join(line_of(number) + b"\n" for number in numbers)
        self.now.put_points += points
        self.now.batcher.put(Lines(data, points), received_at=0.0)
        self.play(self.now.rest())
        # A second has passed: where commits fail, sinks get what came, and a commit is tried.
        self.now.journal.wake()
        self.play(self.now.rest())

    @rule()
    def stall(self) -> None:
        """The disk hangs."""
        self.now.journal.gate.clear()

    @rule()
    def go_on(self) -> None:
        """The disk goes on, and is well."""
        self.now.journal.is_sick = False
        self.now.journal.gate.set()
        self.now.journal.wake()
        self.play(self._after_the_gate())

    @rule(
        name=st.sampled_from(SINKS),
        problem=st.sampled_from(
            ["held", "busy", "timed out", "unavailable", "failed", "too large"]
        ),
        stores=st.booleans(),
    )
    def fail_a_request(self, name: str, problem: SinkProblem, *, stores: bool) -> None:
        """A database answers anything but what it should."""
        if (sink := self.now.sinks.get(name)) is not None:
            sink.wake()
            self.play(self.now.rest())
            sink.fail(problem, stores=stores)
            self.play(self.now.rest())

    @rule(name=st.sampled_from(SINKS), turns=st.integers(1, 50), stores_partly=st.booleans())
    def serve(self, name: str, turns: int, *, stores_partly: bool) -> None:
        """A database is well for some requests."""
        self.play(self._serve(name, turns, stores_partly=stores_partly))

    @rule(turns=st.integers(1, 50))
    def serve_all(self, turns: int) -> None:
        """All databases are well for some requests."""
        for name in self.now.sinks:
            self.play(self._serve(name, turns, stores_partly=False))

    @rule(points=st.integers(1, 30), name=st.sampled_from(SINKS))
    def receive_and_serve(self, points: int, name: str) -> None:
        """Events come in while commits fail, and one database takes what it can."""
        self.receive(points, is_sick=True)
        self.play(self._serve(name, 50, stores_partly=False))

    @invariant()
    def the_events_balance(self) -> None:
        """Received = journaled + dropped + pending."""
        if self.life is None:
            return
        telemetry = self.now.telemetry
        assert self.now.put_points == (
            telemetry.journaled + telemetry.dropped.total() + self.now.batcher.pending_points
        )

    @invariant()
    def the_points_balance(self) -> None:
        """Held at start + appended = written + dead-lettered + dropped + held, for each sink."""
        if self.life is None:
            return
        inner = self.now.journal.inner
        for name in self.now.sinks:
            counts = self.now.telemetry.sink(name)
            left = counts.written + counts.dead_lettered + counts.dropped
            held = inner.pending(name).points
            assert self.now.held_at_start[name] + inner.status().appended_points == left + held
            # Acked once each: the cursor moved by exactly what was counted.
            start, cursor, end = self.now.started_at[name], inner.cursor(name), len(self.model.log)
            assert cursor - start - never_written(self.now.holes, start, cursor) == left
            assert cursor + held + never_written(self.now.holes, cursor, end) == end

    @invariant()
    def nothing_accepted_is_lost(self) -> None:
        """What a cursor has passed is stored, a dead letter, or counted as dropped."""
        if self.life is None:
            return
        for name in self.now.sinks:
            database = self.model.databases[name]
            passed = range(database.starts_after + 1, self.now.journal.cursor(name) + 1)
            lost = set(passed) - database.stored - database.dead
            assert len(lost) <= self.dropped(name)
            assert not database.stored & database.dead
            for sequence in set(passed) - lost:
                number = self.model.log[sequence - 1]
                assert is_bad(name, number) == (sequence in database.dead)

    def teardown(self) -> None:
        """Let everything be well at last; then nothing is held and nothing is missing."""
        if self.life is not None:
            self.go_on()
            for name in self.now.sinks:
                self.play(self._serve(name, 3000, stores_partly=False))
                assert not self.now.journal.pending(name).points, "it never ends"
            self.the_events_balance()
            self.the_points_balance()
            self.nothing_accepted_is_lost()
            self.play(self.now.end())
        self.runner.close()

    @property
    def now(self) -> Life:
        """The process that runs."""
        assert self.life is not None
        return self.life

    def dropped(self, name: str) -> int:
        """Return how many points were counted as dropped for a sink, ever."""
        now = self.now.telemetry.sink(name).dropped
        return self.model.databases[name].dropped_before + now

    def play(self, act: Coroutine[object, object, None]) -> None:
        """Run something to its end on the loop of the machine."""
        self.runner.run(act)

    def journal(self, sinks: tuple[str, ...]) -> SqliteJournal:
        """Return the journal of the next life."""
        return self._journal(None, sinks)

    def _journal(self, path: Path | None, sinks: tuple[str, ...]) -> SqliteJournal:
        return SqliteJournal(
            path,
            sinks=sinks,
            max_bytes=MAX_BYTES,
            overflow=self.overflow,
            telemetry=new_telemetry(),
            recent_bytes=10_000,
            free_bytes=lambda _: 10**12,
        )

    async def begin(self, sinks: tuple[str, ...]) -> None:
        """Start a process with these sinks."""
        for name in sinks:
            self.model.databases.setdefault(name, Database(name, self.model.log))
        inner = await self.journal(sinks).__aenter__()
        self.life = Life(inner, self.model, sinks, self.overflow)
        await self.life.rest()

    async def _after_the_gate(self) -> None:
        await asyncio.sleep(0)  # let who stood there pass
        await self.now.rest()

    async def _serve(self, name: str, turns: int, *, stores_partly: bool) -> None:
        sink = self.now.sinks.get(name)
        for _ in range(turns if sink is not None else 0):
            assert sink is not None
            if name in self.now.journal.idle and not self.now.journal.pending(name).points:
                return
            sink.wake()
            await self.now.rest()
            sink.judge(stores_partly=stores_partly)
            await self.now.rest()


class SqliteMachine(MemoryMachine):
    """The journal on disk: restarts, kills, sinks that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.folders = tempfile.TemporaryDirectory()
        self.lives = 0
        self.restarts = 0

    @precondition(lambda self: self.restarts < MOST_RESTARTS)
    @rule(
        sinks=st.sampled_from([("a",), ("b",), SINKS]),
        is_killed=st.booleans(),
        is_tidy=st.booleans(),
    )
    def restart(self, sinks: tuple[str, ...], *, is_killed: bool, is_tidy: bool) -> None:
        """The process ends, in order or not, and starts again with other sinks perhaps.

        Cursors may have been saved just before, even while commits fail.
        """
        self.restarts += 1
        if is_tidy:
            self.play(tidy(self.now.journal.inner))
        self.play(self._restart(sinks, is_killed=is_killed))

    def teardown(self) -> None:
        """Leave nothing behind."""
        super().teardown()
        self.folders.cleanup()

    def journal(self, sinks: tuple[str, ...]) -> SqliteJournal:
        """Return the journal of the next life."""
        return self._journal(self.folder / "journal.db", sinks)

    @property
    def folder(self) -> Path:
        """Where the files of this life are."""
        return Path(self.folders.name) / str(self.lives)

    async def _restart(self, sinks: tuple[str, ...], *, is_killed: bool) -> None:
        before, life = self.folder, self.now
        if is_killed:
            self.lives += 1
            shutil.copytree(before, self.folder)
            self._note_dropped(life)
            self._forget_uncommitted(life)
            life.journal.is_forgotten = True
        await life.end()
        if not is_killed:
            self._note_dropped(life)
            if life.journal.inner._recent.durable_through < len(self.model.log):
                # Only a full journal, with drop_new, may refuse the last commit of a stop.
                assert (self.overflow, life.journal.inner._full) == ("drop_new", True)
                self._forget_uncommitted(life)
        await self.begin(sinks)

    def _forget_uncommitted(self, life: Life) -> None:
        inner = life.journal.inner
        del self.model.log[inner._recent.durable_through :]
        for database in self.model.databases.values():
            database.forget_numbers_after(inner._recent.durable_through)

    def _note_dropped(self, life: Life) -> None:
        for name, database in self.model.databases.items():
            database.dropped_before += life.telemetry.sink(name).dropped


# Thirty lives of forty steps take ten seconds, and much longer while coverage is measured.
MemoryTest = pytest.mark.timeout(600)(MemoryMachine.TestCase)
MemoryTest.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, derandomize=IN_CI
)
SqliteTest = pytest.mark.timeout(600)(SqliteMachine.TestCase)
SqliteTest.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, derandomize=IN_CI
)
