"""One bad point never blocks or loses the others: the real parts, against refusing databases."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path

import pytest

from tests.fakes.delivering import NAME, house, line, lines, number_of
from tests.fakes.influx import FakeInflux

THOUSAND = 1000
PLACES = [1, 2, 3, 62, 63, 64, 125, 250, 333, 499, 500, 501, 667, 750, 876, 938, 998, 999, 1000]


@pytest.fixture
async def server() -> AsyncIterator[FakeInflux]:
    """Serve a database that takes everything; a test makes it picky."""
    async with FakeInflux().serving() as fake:
        yield fake


def bound(points: int, bad: int) -> int:
    """Return the requests that `app.sinks.retry_policy` promises at most."""
    return 1 + 2 * bad * math.ceil(math.log2(points))


def refusing(bad: Collection[int], reason: str) -> Callable[[bytes], str | None]:
    """Return a rule that refuses these numbers."""
    return lambda text: reason if number_of(text) in bad else None


REFUSALS = [
    pytest.param("unable to parse 'm,entity_id=sensor.a v=': missing field value", False, id="400"),
    pytest.param("invalid", False, id="400 that names no line"),
    pytest.param('field type conflict: input field "v"', True, id="422 conflict"),
]


@pytest.mark.parametrize(("reason", "partial"), REFUSALS)
async def test_one_bad_line_in_a_thousand_at_any_place(
    tmp_path: Path, server: FakeInflux, reason: str, *, partial: bool
) -> None:
    """It alone becomes a dead letter, in at most 21 requests per thousand; all others arrive."""
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
    # The reason follows the last colon; the line itself may come before it.
    message = reason.rsplit(": ", 1)[-1]
    assert all(message in letter.reason for letter in letters)
    assert first_time == [n for n in range(1, total + 1) if n not in bad]
    assert (total - len(bad), len(bad), 0, 0) == books
    assert max(requests) <= bound(THOUSAND, 1) == 21


async def test_the_batch_that_the_database_took_in_part_is_sent_again(
    tmp_path: Path, server: FakeInflux
) -> None:
    """After a 422 it is unknown what is stored; sending the same points again changes nothing."""
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
    Every other request of the ten minutes sends another line, which is accepted.
    """
    server.breaks_on = lambda text: number_of(text) == bad
    async with house(tmp_path, server) as parts:
        await parts.journal.append(lines(1, THOUSAND), received_at=time.time())
        await parts.delivered()
        letters = await parts.letters()
        books, slept_s = parts.books, parts.clock.slept_s

    assert [(letter.sequence, letter.reason) for letter in letters] == [(bad, "engine broke down")]
    stored = set(map(number_of, server.lines))
    assert stored == set(range(1, 1001)) - {bad}
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
