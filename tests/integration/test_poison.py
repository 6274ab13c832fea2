"""One bad point never blocks or loses its neighbors: the real parts, against refusing databases."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.journal.sqlite import SqliteJournal
from app.model import Lines
from app.resilience import Backoff, Breaker
from app.sink.dead_letters import DeadLetters, RefusedPoint
from app.sink.delivery import Delivery
from app.sink.influx import InfluxSink
from app.telemetry import Telemetry
from tests.fakes.influx import FakeInflux
from tests.fakes.points import new_telemetry

NAME = "influxdb"
THOUSAND = 1000
PLACES = [1, 2, 3, 62, 63, 64, 125, 250, 333, 499, 500, 501, 667, 750, 876, 938, 998, 999, 1000]


def line(number: int) -> bytes:
    """Return a line that carries its number."""
    return b"m,entity_id=sensor.a v=%d %d" % (number, number)


def lines(first: int, last: int) -> Lines:
    """Return a line for every number."""
    return Lines(b"".join(line(n) + b"\n" for n in range(first, last + 1)), last - first + 1)


def number_of(text: bytes) -> int:
    """Return the number that a line carries."""
    return int(text.rsplit(b" ", 1)[1])


class Clock:
    """Seconds since the epoch that pass when somebody sleeps."""

    def __init__(self) -> None:
        self.slept_s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return time.time() + self.slept_s

    async def sleep(self, seconds: float) -> None:
        """Let time pass at once."""
        self.slept_s += seconds
        await asyncio.sleep(0)


@dataclass
class House:
    """A journal on disk, dead letters on disk, and one database."""

    server: FakeInflux
    journal: SqliteJournal
    dead_letters: DeadLetters
    delivery: Delivery
    telemetry: Telemetry
    clock: Clock

    async def letters(self) -> list[RefusedPoint]:
        """Return all dead letters, oldest first."""
        return (await self.dead_letters.newest(limit=10_000))[::-1]

    async def delivered(self) -> None:
        """Wait until nothing is held."""
        async with asyncio.timeout(20):
            while self.journal.pending(NAME).points:
                await asyncio.sleep(0.001)

    @property
    def books(self) -> tuple[int, int, int, int]:
        """Written, dead-lettered, dropped, held."""
        counts = self.telemetry.sink(NAME)
        held = self.journal.pending(NAME).points
        return counts.written, counts.dead_lettered, counts.dropped, held


@asynccontextmanager
async def house(
    folder: Path, server: FakeInflux, *, max_batch_points: int = THOUSAND
) -> AsyncIterator[House]:
    """Run everything on a folder; again on the same folder is a restart."""
    telemetry, clock = new_telemetry(), Clock()
    async with AsyncExitStack() as stack:
        dead_letters = await stack.enter_async_context(DeadLetters(folder / "dead_letters.db"))
        journal = await stack.enter_async_context(
            SqliteJournal(
                folder / "journal.db", sinks=[NAME], max_bytes=50_000_000, telemetry=telemetry
            )
        )
        sink = await stack.enter_async_context(
            InfluxSink(
                server.url,
                token=server.token,
                org=server.org,
                bucket="home_assistant_events",
                timeout_s=5.0,
            )
        )
        delivery = Delivery(
            sink=sink,
            journal=journal,
            dead_letters=dead_letters,
            breaker=Breaker(NAME, threshold=5, reset_s=30.0, clock=clock),
            backoff=Backoff(max_s=60.0, chance=lambda: 0.5),
            telemetry=telemetry,
            batch_points=THOUSAND,
            batch_timeout_s=0.0,
            max_batch_points=max_batch_points,
            clock=clock,
            wall_clock=clock,
            sleep=clock.sleep,
        )
        running = asyncio.create_task(delivery.run(), name="deliver")
        try:
            yield House(server, journal, dead_letters, delivery, telemetry, clock)
        finally:
            running.cancel()
            await asyncio.wait({running})


@pytest.fixture
async def server() -> AsyncIterator[FakeInflux]:
    """Serve a database that takes everything; a test makes it picky."""
    async with FakeInflux().serving() as fake:
        yield fake


def bound(points: int, bad: int) -> int:
    """Return the requests that `app.sink.steps` promises at most."""
    return 1 + 2 * bad * math.ceil(math.log2(points))


def refusing(bad: Collection[int], reason: str) -> Callable[[bytes], str | None]:
    """Return a rule that refuses these numbers."""
    return lambda text: reason if number_of(text) in bad else None


REFUSALS = [
    pytest.param("unable to parse 'm,entity_id=sensor.a v=': missing field value", False, id="400"),
    pytest.param("invalid", False, id="400 that names no line"),
    pytest.param('field type conflict: input field "v"', True, id="422 conflict"),
    pytest.param("points beyond retention policy", True, id="422 retention"),
]


@pytest.mark.parametrize(("reason", "partial"), REFUSALS)
async def test_one_bad_line_in_a_thousand_at_any_place(
    tmp_path: Path, server: FakeInflux, reason: str, *, partial: bool
) -> None:
    """It alone is put aside, with at most 21 requests for its thousand; all others arrive."""
    bad = [THOUSAND * turn + place for turn, place in enumerate(PLACES)]
    server.refuses, server.partial = refusing(bad, reason), partial
    requests = []
    async with house(tmp_path, server) as parts:
        for turn in range(len(PLACES)):
            before = len(server.requests)
            await parts.journal.append(
                lines(THOUSAND * turn + 1, THOUSAND * turn + THOUSAND), received_at=time.time()
            )
            await parts.delivered()
            requests.append(len(server.requests) - before)
        letters = await parts.letters()
        books = parts.books

    total = THOUSAND * len(PLACES)
    first_time = list(dict.fromkeys(map(number_of, server.lines)))
    assert [number_of(letter.line) for letter in letters] == bad
    assert {letter.sequence: number_of(letter.line) for letter in letters} == {n: n for n in bad}
    # What follows the last colon says why; before it may stand the line itself.
    said = reason.rsplit(": ", 1)[-1]
    assert all(said in letter.reason for letter in letters)
    assert first_time == [n for n in range(1, total + 1) if n not in bad]
    assert (total - len(bad), len(bad), 0, 0) == books
    assert max(requests) <= bound(THOUSAND, 1) == 21


async def test_the_batch_that_the_database_took_in_part_is_sent_again(
    tmp_path: Path, server: FakeInflux
) -> None:
    """After a 422 nobody knows what is stored; the same points once more change nothing."""
    server.refuses, server.partial = refusing([7], "partial write"), True
    async with house(tmp_path, server) as parts:
        await parts.journal.append(lines(1, 8), received_at=time.time())
        await parts.delivered()

    stored = [number_of(text) for text in server.lines]
    assert set(stored) == {1, 2, 3, 4, 5, 6, 8}
    assert server.statuses == [422, 204, 422, 204, 422, 422, 204]


async def test_many_bad_lines_in_one_request_cost_no_more_than_is_promised(
    tmp_path: Path, server: FakeInflux
) -> None:
    """One in a hundred of five thousand, at places that are far apart: the worst for halving."""
    bad = range(37, 5001, 100)
    server.refuses = refusing(bad, "unable to parse")
    async with house(tmp_path, server, max_batch_points=5000) as parts:
        await parts.journal.append(lines(1, 5000), received_at=time.time())
        await parts.delivered()
        letters = await parts.letters()

    assert [number_of(letter.line) for letter in letters] == list(bad)
    assert [n for n in range(1, 5001) if n not in bad] == [number_of(text) for text in server.lines]
    assert len(server.requests) <= bound(5000, len(bad))


@pytest.mark.parametrize("bad", [1, 613, 1000])
async def test_a_line_that_breaks_the_server_is_found_and_put_aside(
    tmp_path: Path, server: FakeInflux, bad: int
) -> None:
    """Five failures while pings are answered, halving, ten minutes alone: then it is the line.

    Five requests for the batch, two for each halving, and those of ten minutes of backoff: 44.
    """
    server.breaks_on = lambda text: number_of(text) == bad
    async with house(tmp_path, server) as parts:
        await parts.journal.append(lines(1, THOUSAND), received_at=time.time())
        await parts.delivered()
        letters = await parts.letters()
        books, slept_s = parts.books, parts.clock.slept_s

    assert [(letter.sequence, letter.reason) for letter in letters] == [(bad, "engine broke down")]
    assert [n for n in range(1, 1001) if n != bad] == [number_of(text) for text in server.lines]
    assert books == (999, 1, 0, 0)
    assert len(server.requests) <= 44
    assert 600 <= slept_s <= 1800


async def test_a_server_that_breaks_on_everything_makes_no_dead_letter(
    tmp_path: Path, server: FakeInflux
) -> None:
    """Nothing answers its ping either, so it is an outage, however long it lasts."""
    server.breaks_on = lambda _: True
    server.alive = False
    async with house(tmp_path, server) as parts:
        await parts.journal.append(lines(1, THOUSAND), received_at=time.time())
        await server.wait_for(lambda fake: len(fake.requests) > 60)
        assert parts.clock.slept_s > 1800
        server.breaks_on, server.alive = (lambda _: False), True
        await parts.delivered()
        books = parts.books

    assert books == (1000, 0, 0, 0)
    assert list(range(1, 1001)) == [number_of(text) for text in server.lines]


async def test_a_restart_in_the_middle_of_the_search_loses_and_doubles_nothing(
    tmp_path: Path, server: FakeInflux
) -> None:
    """Whatever request was the last one: each bad line is one dead letter, all others arrive."""
    bad = [3, 500, 998]
    server.refuses = refusing(bad, "unable to parse")
    async with house(tmp_path, server) as parts:
        await parts.journal.append(lines(1, THOUSAND), received_at=time.time())
    for stop_after in range(0, 60, 4):
        async with house(tmp_path, server) as parts:
            before = len(server.requests)
            held = parts.journal.pending(NAME).points
            async with asyncio.timeout(20):
                while len(server.requests) < before + stop_after:
                    if not parts.journal.pending(NAME).points:
                        break
                    await asyncio.sleep(0)
            written, dead_lettered, dropped, still_held = parts.books
            assert written + dead_lettered + dropped + still_held == held
    async with house(tmp_path, server) as parts:
        await parts.delivered()
        letters = await parts.letters()

    assert [number_of(letter.line) for letter in letters] == bad
    assert {number_of(text) for text in server.lines} == set(range(1, 1001)) - set(bad)


async def test_what_was_refused_arrives_by_a_retry_once_the_database_is_mended(
    tmp_path: Path, server: FakeInflux
) -> None:
    """And what is refused again is a dead letter again, under its new number."""
    server.refuses = refusing([3, 9], "unable to parse")
    async with house(tmp_path, server) as parts:
        await parts.journal.append(lines(1, 20), received_at=time.time())
        await parts.delivered()
        server.refuses = refusing([9], "still unable to parse")

        retried = await parts.dead_letters.retry(
            lambda again: parts.journal.append(again, received_at=time.time())
        )
        await parts.delivered()
        letters = await parts.letters()
        books = parts.books

    assert retried == 2
    assert number_of(server.lines[-1]) == 3
    assert [(letter.sequence, letter.line, letter.reason) for letter in letters] == [
        (22, line(9), "still unable to parse")
    ]
    assert books == (19, 3, 0, 0)
