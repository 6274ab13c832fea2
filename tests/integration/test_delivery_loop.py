"""The loop around the decisions: what is sent when, what is acked, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from app.journal.journal import SqliteJournal
from app.model import Lines, Row
from app.runtime.errors import StorageDamaged, StorageFull
from app.runtime.logging import repeats
from app.runtime.metrics import Telemetry
from app.runtime.retry import Backoff, Breaker
from app.sinks.batches import Batch
from app.sinks.dead_letters import DeadLetters
from app.sinks.delivery import Delivery
from app.sinks.influxdb.sink import InfluxSink
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
from tests.fakes.influx import FakeInflux, error
from tests.fakes.journal import FakeJournal

NAME = "influxdb"
REFUSED = Refused(reason="unable to parse", status=400)
UNAUTHORIZED = Held(reason="unauthorized", status=401, advice="Check INFLUXDB_TOKEN.")


def lines(first: int, last: int) -> list[bytes]:
    """Return a line for every number."""
    return [b"m v=%d %d" % (number, number) for number in range(first, last + 1)]


def series(first: int, last: int) -> list[bytes]:
    """Return a line for every number, of four series in turn."""
    return [b"m,e=%d v=1 %d" % (number % 4, number) for number in range(first, last + 1)]


def is_over_limit(line: bytes) -> bool:
    """Whether the line is of the fourth of these series."""
    return line.startswith(b"m,e=3 ")


class FakeSink:
    """Answers from a script, then accepts whatever has no bad line in it."""

    name = NAME

    def __init__(self) -> None:
        self.script: list[Outcome] = []
        self.bad: set[bytes] = set()
        self.breaks = False
        """A body with a bad line breaks it, instead of being refused."""
        self.alive = True
        self.pings = 0
        self.has_limit = False
        """Whether it has no room for the fourth series."""
        self.accepted: list[bytes] = []
        self.sizes: list[int] = []
        self.before_answer: Callable[[], Awaitable[None]] | None = None

    async def write(self, batch: Batch) -> Outcome:
        """Receive a batch."""
        self.sizes.append(batch.points)
        try:
            found = batch.lines()
        except StorageDamaged:
            if self.script:
                return self.script.pop(0)
            return Refused(reason="gzip: invalid header", status=400)
        if self.before_answer is not None:
            await self.before_answer()
        answer = self.script.pop(0) if self.script else self._judge(found)
        if isinstance(answer, Accepted):
            self.accepted += found
        return answer

    def _judge(self, found: list[bytes]) -> Outcome:
        if self.has_limit and (over := sum(map(is_over_limit, found))):
            return OutOfBounds(cause="limit", reason="limit exceeded", dropped=over)
        if not self.bad.intersection(found):
            return Accepted()
        return ServerFailed(reason="panic", status=500) if self.breaks else REFUSED

    async def ping(self) -> bool:
        """Say whether it is alive."""
        self.pings += 1
        return self.alive


class FakeDeadLetters:
    """Stores dead letters, or fails."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int, bytes], str] = {}
        self.errors: list[Exception] = []
        self.seen: Callable[[], None] | None = None

    async def insert(self, sink: str, refused: Sequence[RefusedLine]) -> None:
        """Keep each line once."""
        if self.seen is not None:
            self.seen()
        if self.errors:
            raise self.errors.pop(0)
        for sequence, line, reason in refused:
            self.kept[sink, sequence, line] = reason


class Clock:
    """Seconds that pass when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.waits_s: list[float] = []
        self.watch: Callable[[], None] | None = None
        self.stands_still = False
        """Sleeps forever."""

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        """Let time pass at once."""
        self.waits_s.append(seconds)
        if self.stands_still:
            await asyncio.Event().wait()
        self.now_s += seconds
        if self.watch is not None:
            self.watch()
        await asyncio.sleep(0)


@dataclass
class Bench:
    """A delivery with everything around it."""

    journal: FakeJournal = field(default_factory=FakeJournal)
    sink: FakeSink = field(default_factory=FakeSink)
    dead_letters: FakeDeadLetters = field(default_factory=FakeDeadLetters)
    clock: Clock = field(default_factory=Clock)
    telemetry: Telemetry = field(
        default_factory=lambda: Telemetry(CollectorRegistry(), clock=lambda: 0.0)
    )
    threshold: int = 1000

    def __post_init__(self) -> None:
        """Put it together."""
        self.breaker = Breaker(NAME, threshold=self.threshold, reset_s=30.0, clock=self.clock)
        self.delivery = self.another()

    def another(self, *, batch_timeout_s: float = 5.0, max_batch_points: int = 5000) -> Delivery:
        """Return a delivery as after a restart, with the cursor where it is."""
        return Delivery(
            sink=self.sink,
            journal=self.journal,
            dead_letters=self.dead_letters,
            breaker=self.breaker,
            backoff=Backoff(max_s=60.0, chance=lambda: 0.5),
            telemetry=self.telemetry,
            batch_timeout_s=batch_timeout_s,
            max_batch_points=max_batch_points,
            clock=self.clock,
            wall_clock=self.clock,
            sleep=self.clock.sleep,
        )

    async def drain(self) -> None:
        """Deliver until nothing is pending, through all waits, then end the loop."""
        async with self.running():
            await self.until(lambda: self.journal.pending(NAME).points == 0)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """Run the loop meanwhile, and end it as a stopping service does."""
        async with asyncio.timeout(10):
            task = asyncio.create_task(self.delivery.run(), name="deliver")
            try:
                yield task
                self.delivery.finish()
                await task
            finally:
                task.cancel()
                await asyncio.wait([task])

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition."""
        while not condition():
            await asyncio.sleep(0.001)

    @property
    def books(self) -> tuple[int, int, int, int]:
        """Written, dead-lettered, dropped, held."""
        status = self.delivery.status()
        return (
            status.points_written,
            status.points_dead_lettered,
            status.points_dropped,
            status.held,
        )


async def test_a_full_batch_leaves_at_once_and_in_order() -> None:
    """A hundred points need not wait for the timeout; rows are sent as they are."""
    bench = Bench()
    bench.journal.add(lines(1, 60))
    bench.journal.add(lines(61, 120))

    await bench.drain()

    assert bench.sink.accepted == lines(1, 120)
    assert bench.sink.sizes == [120]
    assert bench.journal.acks == [120]
    assert bench.books == (120, 0, 0, 0)


async def test_a_backlog_is_sent_in_large_batches() -> None:
    """Up to 5,000 points each, whole rows."""
    bench = Bench()
    for number in range(12):
        bench.journal.add(lines(1000 * number + 1, 1000 * number + 1000))

    await bench.drain()

    assert bench.sink.sizes == [5000, 5000, 2000]
    assert bench.sink.accepted == lines(1, 12_000)


async def test_a_few_points_leave_when_the_oldest_is_old_enough() -> None:
    """They wait for company no longer than the batch timeout."""
    bench = Bench()
    bench.journal.add(lines(1, 3), received_at=bench.clock.now_s - 5.0)

    async with bench.running():
        await bench.until(lambda: bench.sink.sizes == [3])


async def test_a_few_young_points_wait_for_company() -> None:
    """A request waits for enough points."""
    bench = Bench()
    async with bench.running():
        await bench.journal.append(lines(1, 3), received_at=bench.clock.now_s)
        for _ in range(20):
            await asyncio.sleep(0)
        assert bench.sink.sizes == []

        await bench.journal.append(lines(4, 100), received_at=bench.clock.now_s)
        await bench.until(lambda: bench.sink.sizes == [100])


async def test_the_batch_timeout_passes() -> None:
    """A few young points leave by themselves; also when the wall clock jumps back."""
    bench = Bench()
    bench.delivery = bench.another(batch_timeout_s=0.02)
    bench.journal.add(lines(1, 3), received_at=bench.clock.now_s + 3600.0)

    async with bench.running():
        await bench.until(lambda: bench.sink.sizes == [3])


async def test_finishing_sends_what_is_pending_without_waiting() -> None:
    """Three young points leave when the service stops."""
    bench = Bench()
    async with bench.running():
        await asyncio.sleep(0)
        await bench.journal.append(lines(1, 3), received_at=bench.clock.now_s)

    assert bench.sink.accepted == lines(1, 3)
    assert bench.books == (3, 0, 0, 0)


async def test_finishing_without_anything_pending_ends_at_once() -> None:
    """Also when the loop was waiting for the first point."""
    bench = Bench()
    async with bench.running() as task:
        await asyncio.sleep(0)
        assert not task.done()

    assert task.done()


async def test_finish_before_run_sends_once() -> None:
    """A service that stops while it starts leaves nothing behind that it could send."""
    bench = Bench()
    bench.journal.add(lines(1, 3))
    bench.delivery.finish()

    async with asyncio.timeout(5):
        await bench.delivery.run()

    assert bench.journal.acked == 3


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (Unavailable(reason="reset"), "waiting"),
        (Busy(reason="busy", status=429, retry_after_s=300.0), "waiting"),
        (UNAUTHORIZED, "holding"),
    ],
)
async def test_a_sink_that_cannot_take_it_is_not_waited_for(answer: Outcome, state: str) -> None:
    """What was not flushed is in the journal for the next start."""
    bench = Bench()
    bench.sink.script = [answer] * 100
    bench.journal.add(lines(1, 100))
    bench.clock.stands_still = True

    async with bench.running():
        await bench.until(lambda: bool(bench.clock.waits_s))

    assert bench.delivery.status().state == state
    assert bench.journal.acked == 0
    assert bench.sink.sizes == [100]


async def test_a_sink_in_trouble_is_asked_once_more_at_most_while_stopping() -> None:
    """A request under way ends; after its answer the loop ends too."""
    bench = Bench()
    bench.sink.script = [UNAUTHORIZED]
    bench.journal.add(lines(1, 100))
    asked = asyncio.Event()

    async def finish() -> None:
        bench.delivery.finish()
        asked.set()

    bench.sink.before_answer = finish
    async with bench.running():
        await asked.wait()

    assert bench.sink.sizes == [100]
    assert bench.clock.waits_s == []


async def test_waits_grow_to_a_minute_and_start_again_after_success() -> None:
    """1, 2, 4 … 60 seconds; ten failures cost what they should and lose nothing."""
    bench = Bench()
    bench.sink.script = [*[Unavailable(reason="refused")] * 8, Accepted(), UNAUTHORIZED]
    bench.sink.alive = False
    bench.journal.add(lines(1, 5000))
    bench.journal.add(lines(5001, 5100))

    await bench.drain()

    assert bench.clock.waits_s == [1, 2, 4, 8, 16, 32, 60, 60, 1]
    assert bench.sink.accepted == lines(1, 5100)


async def test_the_longer_of_what_was_asked_and_our_own_wait_counts() -> None:
    """A database that asks for an hour gets five minutes."""
    bench = Bench()
    bench.sink.script = [
        Busy(reason="b", status=429, retry_after_s=0.1),
        Busy(reason="b", status=503, retry_after_s=17.0),
        Busy(reason="b", status=429, retry_after_s=3600.0),
    ]
    bench.journal.add(lines(1, 100))

    await bench.drain()

    assert bench.clock.waits_s == [1, 17, 300]
    assert bench.breaker.failure_count == 0


async def test_an_open_breaker_lengthens_the_wait() -> None:
    """The next attempt is at the later of backoff and breaker; success closes it."""
    bench = Bench(threshold=3)
    bench.sink.script = [Unavailable(reason="refused")] * 4
    bench.journal.add(lines(1, 100))
    states: list[str] = []
    bench.clock.watch = lambda: states.append(bench.delivery.status().breaker)

    await bench.drain()

    assert bench.clock.waits_s == [1, 2, 30, 30]
    assert states == ["closed", "closed", "half-open", "half-open"]
    assert bench.breaker.state == "closed"


@pytest.mark.parametrize("answer", [REFUSED, TooLarge(reason="413"), UNAUTHORIZED])
async def test_a_refusal_says_nothing_about_the_health_of_a_sink(answer: Outcome) -> None:
    """It was reached, so the breaker stays closed."""
    bench = Bench(threshold=1)
    bench.sink.script = [answer]
    bench.journal.add(lines(1, 100))

    await bench.drain()

    assert bench.breaker.last_failure is None
    assert bench.sink.accepted == lines(1, 100)


@pytest.mark.parametrize(("status", "failures"), [(429, 0), (503, 1)])
async def test_of_the_busy_answers_only_503_counts_for_the_breaker(
    status: int, failures: int
) -> None:
    """429 comes from a working database that sets a pace."""
    bench = Bench()
    bench.sink.script = [Busy(reason="busy", status=status)]
    bench.journal.add(lines(1, 100))
    bench.clock.stands_still = True

    async with bench.running():
        await bench.until(lambda: bool(bench.clock.waits_s))

    assert bench.breaker.failure_count == failures


async def test_one_bad_line_is_put_aside_and_its_neighbors_are_written() -> None:
    """With the database's reason, its number, and the books balanced."""
    bench = Bench()
    bench.journal.add(lines(1, 1000))
    bench.sink.bad = set(lines(700, 700))

    await bench.drain()

    assert bench.dead_letters.kept == {(NAME, 700, *lines(700, 700)): "unable to parse"}
    assert bench.sink.accepted == lines(1, 699) + lines(701, 1000)
    assert bench.journal.acks == sorted(bench.journal.acks)
    assert bench.books == (999, 1, 0, 0)
    assert len(bench.sink.sizes) <= 21


async def test_a_dead_letter_is_durable_before_the_cursor_moves() -> None:
    """A crash between the two keeps the line in both places, never in none."""
    bench = Bench()
    bench.journal.add(lines(1, 100))
    bench.sink.bad = set(lines(1, 1))
    cursors: list[int] = []
    bench.dead_letters.seen = lambda: cursors.append(bench.journal.acked)

    await bench.drain()

    assert cursors == [0]


async def test_a_dead_letter_that_cannot_be_kept_is_tried_again() -> None:
    """A full disk pauses delivery with a reason, and nothing is lost or counted twice."""
    bench = Bench()
    bench.journal.add(lines(1, 1), received_at=0.0)
    bench.sink.bad = set(lines(1, 1))
    bench.dead_letters.errors = [StorageFull("database or disk is full")]
    reasons: list[str | None] = []
    bench.clock.watch = lambda: reasons.append(bench.delivery.status().reason)

    await bench.drain()

    assert len(bench.dead_letters.kept) == 1
    assert bench.books == (0, 1, 0, 0)
    (reason,) = reasons
    assert "database or disk is full" in (reason or "")


async def test_a_journal_that_cannot_be_read_is_tried_again() -> None:
    """A failing local database is no reason to end."""
    bench = Bench()
    bench.journal.add(lines(1, 100))
    bench.journal.errors = [StorageFull("x"), StorageFull("x")]

    await bench.drain()

    assert bench.clock.waits_s == [1, 2]
    assert bench.sink.accepted == lines(1, 100)


async def test_an_unforeseen_exception_of_a_sink_is_a_failed_attempt() -> None:
    """Whatever an answer breaks in a library, the points are sent again."""
    bench = Bench()
    bench.journal.add(lines(1, 100))
    failures = [OverflowError("int too large to convert to float"), RecursionError()]

    async def fail() -> None:
        if failures:
            raise failures.pop()

    bench.sink.before_answer = fail

    await bench.drain()

    assert bench.sink.accepted == lines(1, 100)
    assert bench.clock.waits_s == [1, 2]


async def test_a_refusing_database_holds_everything_and_recovers_by_itself() -> None:
    """99 lines become dead letters before that is clear; all others wait and arrive in order."""
    bench = Bench()
    bench.journal.add(lines(1, 2000))
    bench.journal.add(lines(2001, 4000))
    bench.sink.bad = set(lines(1, 4000))
    seen: list[tuple[str, int]] = []

    def watch() -> None:
        status = bench.delivery.status()
        seen.append((status.state, status.held))
        assert "Points wait in the journal" in (status.reason or "")
        if len(seen) == 9:
            bench.sink.bad.clear()

    bench.clock.watch = watch
    await bench.drain()

    assert seen == [("refusing", 3901)] * 9
    assert bench.clock.waits_s == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert len(bench.dead_letters.kept) == 99
    assert bench.sink.accepted[1:] == lines(100, 4000)
    assert bench.books == (3901, 99, 0, 0)
    assert bench.delivery.status().reason is None


async def test_a_probe_counts_nothing_as_written() -> None:
    """It is sent again with the other points, and only then acked."""
    bench = Bench()
    bench.journal.add(lines(1, 300))
    bench.sink.bad = set(lines(1, 250))

    await bench.drain()

    assert bench.books == (50, 250, 0, 0)
    assert bench.sink.accepted[-50:] == lines(251, 300)


async def test_a_line_that_breaks_the_sink_is_found_and_put_aside() -> None:
    """While it answers pings: halved at the fifth failure, a dead letter after ten minutes."""
    bench = Bench()
    bench.journal.add(lines(1, 100))
    bench.sink.bad = set(lines(42, 42))
    bench.sink.breaks = True

    await bench.drain()

    assert bench.dead_letters.kept == {(NAME, 42, *lines(42, 42)): "panic"}
    assert list(dict.fromkeys(bench.sink.accepted)) == lines(1, 41) + lines(43, 100)
    assert bench.books == (99, 1, 0, 0)
    assert bench.sink.sizes[:7] == [100, 100, 100, 100, 100, 50, 25]


async def test_nothing_is_blamed_while_the_sink_is_dead() -> None:
    """The batch stays whole through an outage of any length."""
    bench = Bench()
    bench.journal.add(lines(1, 100))
    bench.sink.alive = False
    bench.sink.script = [ServerFailed(reason="bad gateway", status=502)] * 30

    await bench.drain()

    assert bench.sink.sizes == [100] * 31
    assert bench.sink.pings == 26
    assert bench.dead_letters.kept == {}


async def test_a_timeout_halves_what_is_sent() -> None:
    """And what follows is no larger, until it succeeds."""
    bench = Bench()
    for number in range(4):
        bench.journal.add(lines(2000 * number + 1, 2000 * number + 2000))
    bench.sink.script = [TimedOut(reason="no answer in time")] * 2

    await bench.drain()

    assert bench.sink.sizes == [4000, 2000, 1000, 1000, 2000, 4000]
    assert bench.sink.accepted == lines(1, 8000)


async def test_a_request_that_is_too_large_is_halved_without_waiting() -> None:
    """The first half leaves at once."""
    bench = Bench()
    bench.journal.add(lines(1, 1000))
    bench.sink.script = [TooLarge(reason="413"), TooLarge(reason="413")]

    await bench.drain()

    assert bench.clock.waits_s == []
    assert bench.sink.sizes[:4] == [1000, 500, 250, 250]
    assert bench.sink.accepted == lines(1, 1000)


async def test_a_restart_inside_a_row_sends_only_the_rest() -> None:
    """The cursor may stand anywhere after a bad line was isolated."""
    bench = Bench()
    bench.journal.add(lines(1, 200))
    bench.journal.drop(150)

    await bench.drain()

    assert bench.sink.accepted == lines(151, 200)
    assert bench.books == (50, 0, 0, 0)


async def test_points_the_journal_dropped_meanwhile_are_not_counted_again() -> None:
    """The journal has counted them as dropped, so they are not written as well."""
    bench = Bench()
    bench.journal.add(lines(1, 100))

    async def drop() -> None:
        bench.journal.drop(70)

    bench.sink.before_answer = drop
    await bench.drain()

    assert bench.delivery.status().points_written == 30


async def test_parts_the_journal_dropped_are_not_sent_any_more() -> None:
    """What is in hand is forgotten where the cursor has passed it."""
    bench = Bench()
    bench.journal.add(lines(1, 100))
    bench.journal.add(lines(101, 200))
    bench.sink.script = [REFUSED]
    bench.clock.stands_still = True

    async def drop() -> None:
        bench.journal.drop(120)
        bench.sink.before_answer = None

    bench.sink.before_answer = drop
    await bench.drain()

    assert bench.sink.accepted == lines(121, 200)
    assert bench.journal.acks == [200]


async def test_everything_dropped_meanwhile_leaves_nothing_to_do() -> None:
    """Neither sent, nor acked, nor counted."""
    bench = Bench()
    bench.journal.add(lines(1, 100))
    bench.sink.script = [Unavailable(reason="reset")]
    bench.clock.watch = lambda: bench.journal.drop(100)

    await bench.drain()

    assert bench.sink.sizes == [100]
    assert bench.journal.acks == []


async def test_everything_dropped_while_it_is_read_leaves_nothing_to_do() -> None:
    """The journal is asked for rows that are gone when it looks."""

    class Dropping(FakeJournal):
        async def read(self, sink: str, *, max_points: int, after: int = 0) -> list[Row]:
            self.drop(100)
            return await super().read(sink, max_points=max_points, after=after)

    bench = Bench(journal=Dropping())
    bench.journal.add(lines(1, 100))

    await bench.drain()

    assert bench.sink.sizes == []
    assert bench.clock.waits_s == []


async def test_a_journal_that_contradicts_itself_does_not_spin_the_loop() -> None:
    """Points pending and none returned: it waits, and reports that."""

    class Forgetful(FakeJournal):
        async def read(self, sink: str, *, max_points: int, after: int = 0) -> list[Row]:
            found = await super().read(sink, max_points=max_points, after=after)
            return found if self.reads > 2 else []

    bench = Bench(journal=Forgetful())
    bench.journal.add(lines(1, 100))

    await bench.drain()

    assert bench.clock.waits_s == [1, 2]
    assert bench.sink.accepted == lines(1, 100)


async def test_a_dead_letter_the_journal_dropped_meanwhile_is_not_counted_again() -> None:
    """It is one point with one fate in the books: dropped."""
    bench = Bench()
    bench.journal.add(lines(1, 1))
    bench.sink.bad = set(lines(1, 1))
    bench.dead_letters.seen = lambda: bench.journal.drop(1)

    await bench.drain()

    assert bench.delivery.status().points_dead_lettered == 0


@pytest.mark.parametrize("dropped", [50, 100])
async def test_points_that_the_journal_drops_in_a_search_are_not_sent_any_more(
    dropped: int,
) -> None:
    """Pieces of a batch are forgotten with the batch; what is left of it is searched again."""
    bench = Bench()
    bench.journal.add(series(1, 100))
    bench.journal.add(series(101, 120))
    bench.sink.has_limit = True

    async def drop() -> None:
        if len(bench.sink.sizes) == 3:
            bench.journal.drop(dropped)
        if len(bench.sink.sizes) == 4:
            bench.sink.accepted.clear()

    bench.sink.before_answer = drop
    bench.delivery = bench.another(max_batch_points=100)
    await bench.drain()

    left = series(dropped + 1, 120)
    over = [line for line in left if is_over_limit(line)]
    assert {*bench.sink.accepted} == {*left} - {*over}
    assert [key[2] for key in bench.dead_letters.kept] == over
    assert bench.books == (len(left) - len(over), len(over), 0, 0)


async def test_a_series_that_is_refused_after_it_was_accepted_costs_a_search_only_once() -> None:
    """Afterwards three requests: the batch, the accepted series, the others."""
    bench = Bench()
    async with bench.running():
        for first in (1, 101, 201):
            bench.sink.has_limit = first > 1
            bench.sink.sizes.clear()
            await bench.journal.append(series(first, first + 99))
            await bench.until(lambda: bench.journal.pending(NAME).points == 0)

    assert bench.sink.sizes == [100, 75, 25]


async def test_a_damaged_row_in_a_search_costs_only_itself() -> None:
    """The batch is taken apart by rows before anything else."""
    bench = Bench()
    bench.journal.add(series(1, 100))
    damaged = bench.journal.add(series(101, 120))
    bench.journal.rows[-1] = Row(damaged.first, damaged.points, b"garbage", 0.0)
    bench.journal.add(series(121, 140))
    bench.sink.has_limit = True
    bench.sink.script = [OutOfBounds(cause="limit", reason="limit exceeded", dropped=30)]

    await bench.drain()

    good = [*series(1, 100), *series(121, 140)]
    assert {*bench.sink.accepted} == {line for line in good if not is_over_limit(line)}
    assert bench.books == (90, 30, 20, 0)


async def test_points_that_the_journal_drops_at_the_end_of_a_search_are_not_counted_again() -> None:
    """Of the points over a limit only those that it still had."""
    bench = Bench()
    bench.journal.add(series(1, 100))
    bench.sink.has_limit = True
    bench.dead_letters.seen = lambda: bench.journal.drop(97)

    await bench.drain()

    assert bench.books == (2, 1, 0, 0)


async def test_a_database_that_begins_to_refuse_everything_in_a_search_gets_every_other_point() -> (
    None
):
    """The search is given up: what it took for bad lines was not yet a dead letter."""
    bench = Bench()
    everything = series(1, 1_000)
    bench.journal.add(everything)
    bench.sink.has_limit = True

    async def refuse() -> None:
        if len(bench.sink.sizes) == 2:
            bench.sink.bad = {line for line in everything if not is_over_limit(line)}

    bench.sink.before_answer = refuse
    async with bench.running():
        await bench.until(lambda: bench.delivery.status().state == "refusing")
        refused_while_refusing = dict(bench.dead_letters.kept)
        bench.sink.bad = set()
        await bench.until(lambda: bench.journal.pending(NAME).points == 0)

    assert refused_while_refusing == {}
    assert [key[2] for key in bench.dead_letters.kept] == [*filter(is_over_limit, everything)]
    assert bench.books == (750, 250, 0, 0)


async def test_a_damaged_row_costs_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    """It is found when a refused batch is taken apart; its points are counted as dropped."""
    bench = Bench()
    bench.journal.add(lines(1, 100))
    good = bench.journal.add(lines(101, 200))
    bench.journal.rows[-1] = Row(good.first, good.points, b"garbage", 0.0)
    bench.journal.add(lines(201, 300))

    with caplog.at_level(logging.ERROR):
        await bench.drain()

    assert bench.sink.accepted == lines(1, 100) + lines(201, 300)
    assert bench.books == (200, 0, 100, 0)
    assert "Lost 100 points" in caplog.text


async def test_a_damaged_row_with_the_cursor_in_it_costs_only_its_rest() -> None:
    """What was acked before stays acked."""
    bench = Bench()
    bench.journal.add_row(Row(1, 100, b"garbage", 0.0))
    bench.journal.add(lines(101, 150))
    bench.journal.drop(90)

    await bench.drain()

    assert bench.sink.accepted == lines(101, 150)
    assert bench.books == (50, 0, 10, 0)


async def test_a_damaged_row_of_one_point_is_no_dead_letter() -> None:
    """There is no line to keep."""
    bench = Bench()
    bench.journal.add_row(Row(1, 1, b"garbage", 0.0))

    await bench.drain()

    assert bench.books == (0, 0, 1, 0)
    assert bench.dead_letters.kept == {}


async def test_a_damaged_row_larger_than_a_batch_is_given_up_before_it_is_sent() -> None:
    """It cannot be halved."""
    bench = Bench()
    bench.journal.add_row(Row(1, 6000, b"garbage", 0.0))
    bench.journal.add(lines(6001, 6100))

    await bench.drain()

    assert bench.sink.sizes == [100]
    assert bench.books == (100, 0, 6000, 0)


async def test_a_damaged_row_while_refusing_is_given_up() -> None:
    """A probe cannot be cut from it, and the rows behind it are still tried."""
    bench = Bench()
    bench.journal.add(lines(1, 100))
    bench.journal.add_row(Row(101, 10, b"garbage", 0.0))
    bench.journal.add(lines(111, 300))
    bench.sink.bad = set(lines(1, 100))
    bench.clock.watch = bench.sink.bad.clear

    await bench.drain()

    assert bench.books[2:] == (10, 0)
    assert bench.sink.accepted[-190:] == lines(111, 300)


async def test_missing_numbers_are_nobodys_points() -> None:
    """Where a salvaged journal has a hole, batches end and nothing is counted for it."""
    bench = Bench()
    bench.journal.add(lines(1, 100))
    row = bench.journal.add(lines(101, 200))
    bench.journal.rows[-1] = Row(501, 100, row.gzip, 0.0)

    await bench.drain()

    assert bench.sink.sizes == [100, 100]
    assert bench.books == (200, 0, 0, 0)


async def test_a_cancellation_at_any_moment_loses_and_counts_nothing_twice() -> None:
    """Cut off after every possible number of steps, the next delivery completes it."""
    steps = 0
    while True:
        bench = Bench()
        bench.journal.add(lines(1, 120))
        bench.sink.bad = set(lines(77, 77))
        bench.sink.script = [Unavailable(reason="reset")]
        task = asyncio.create_task(bench.delivery.run(), name="deliver")
        for _ in range(steps):
            await asyncio.sleep(0.0002)
        task.cancel()
        await asyncio.wait([task])
        completed = bench.journal.acked == 120

        bench.delivery = bench.another()
        await bench.drain()

        assert {*bench.sink.accepted} == {*lines(1, 76), *lines(78, 120)}
        assert len(bench.dead_letters.kept) == 1
        assert bench.books == (119, 1, 0, 0)
        if completed:
            break
        steps += 1


async def test_the_status_shows_the_sink_and_its_place_in_the_journal() -> None:
    """Held, lag and pace while it drains; nothing to say once all is well."""
    bench = Bench()
    for number in range(6):
        row_lines = lines(1000 * number + 1, 1000 * number + 1000)
        bench.journal.add(row_lines, received_at=990.0)
    bench.delivery = bench.another(max_batch_points=1000)
    pictures = []

    async def pass_a_second() -> None:
        bench.clock.now_s += 1.0
        pictures.append(bench.delivery.status())

    bench.sink.before_answer = pass_a_second
    await bench.drain()
    end = bench.delivery.status()

    assert [picture.held for picture in pictures] == [6000, 5000, 4000, 3000, 2000, 1000]
    assert [picture.held_at_start for picture in pictures] == [6000] * 6
    assert [picture.lag_seconds for picture in pictures] == [11, 12, 13, 14, 15, 16]
    assert pictures[1].drained_in_seconds is None
    assert pictures[3].drained_in_seconds == pytest.approx(3.0)
    assert (end.held, end.lag_seconds, end.drained_in_seconds) == (0, 0.0, None)
    assert (end.name, end.state, end.last_error, end.reason) == (NAME, "ok", None, None)
    assert end.last_write is not None


async def test_the_status_says_what_a_person_must_do(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its beginning and the reason of the database; logged once, and once at its end."""
    bench = Bench()
    monkeypatch.setattr(repeats, "clock", bench.clock)
    bench.journal.add(lines(1, 100))
    bench.sink.script = [Unavailable(reason="reset"), *[UNAUTHORIZED] * 5]
    reasons: list[str | None] = []
    bench.clock.watch = lambda: reasons.append(bench.delivery.status().reason)

    with caplog.at_level(logging.INFO):
        await bench.drain()

    assert reasons[-1] == (
        "InfluxDB has been refusing writes for 63 s: 401 unauthorized. Check INFLUXDB_TOKEN."
    )
    assert bench.delivery.status().last_error == "401 unauthorized"
    assert [
        (record.levelname, record.getMessage().split(" for ")[0]) for record in caplog.records
    ] == [
        ("WARNING", "InfluxDB has not been taking writes"),
        ("ERROR", "InfluxDB has been refusing writes"),
        ("INFO", "InfluxDB takes writes again (failed 6 times in 63 s)"),
    ]


async def test_many_dead_letters_make_few_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    """The first in full, with the reason that the database gave, then how many."""
    bench = Bench()
    bench.journal.add(lines(1, 100))
    bench.sink.bad = set(lines(10, 60))

    with caplog.at_level(logging.ERROR):
        await bench.drain()

    assert len(bench.dead_letters.kept) == 51
    assert [record.getMessage() for record in caplog.records] == [
        "Point 10 is a dead letter of influxdb: 'unable to parse'"
    ]


async def test_journal_sink_and_dead_letters_work_together(tmp_path: Path) -> None:
    """The real ones, against a database that stores a body whole or not at all."""
    telemetry = Telemetry(CollectorRegistry())
    server = FakeInflux(error(503, "starting", Retry_After="0"))
    server.refuses = lambda line: "unable to parse" if b"v=13 " in line else None
    journal = SqliteJournal(
        tmp_path / "journal.db",
        sinks=[NAME],
        max_bytes=10_000_000,
        min_free_bytes=1,
        telemetry=telemetry,
    )
    dead_letters = DeadLetters(tmp_path / "dead_letters.db")
    async with asyncio.timeout(10), server.serving(), dead_letters, journal:
        sink = InfluxSink(
            server.url,
            token=server.token,
            org=server.org,
            bucket="home_assistant_events",
            timeout_s=5.0,
        )
        delivery = Delivery(
            sink=sink,
            journal=journal,
            dead_letters=dead_letters,
            breaker=Breaker(NAME, threshold=5, reset_s=30.0),
            backoff=Backoff(max_s=0.01, first_s=0.01),
            telemetry=telemetry,
            batch_timeout_s=0.05,
        )
        async with sink, asyncio.TaskGroup() as tasks:
            tasks.create_task(delivery.run(), name="deliver")
            data = b"".join(line + b"\n" for line in lines(1, 40))
            await journal.append(Lines(data, 40), received_at=time.time())
            await server.wait_for(lambda fake: len(fake.lines) == 39)
            await journal.append(Lines(b"m v=41 41\n", 1), received_at=time.time())
            delivery.finish()

        letters = await dead_letters.newest(limit=10)

    assert server.lines == lines(1, 12) + lines(14, 41)
    assert [(letter.sequence, letter.line) for letter in letters] == [(13, *lines(13, 13))]
    assert journal.pending(NAME).points == 0
