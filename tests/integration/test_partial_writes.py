"""Points that a database refuses for its own limits never hold up or lose the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest

from app.model import Lines
from tests.fakes.delivering import House, house, number_of
from tests.fakes.influx import FakeInflux

OLD = 12_000
LIVE = 2_000
BOUND_NS = 1_000_000

VERSIONS: list[tuple[Literal["v1", "v2"], int | None]] = [("v1", None), ("v2", None), ("v2", 500)]
NAMES = ["400 of InfluxDB 1", "422 of InfluxDB 2.7", "500 of InfluxDB 2.0"]


def at(times_ns: Sequence[int]) -> Lines:
    """Return a line for each time, which is also its number."""
    data = b"".join(b"m,entity_id=light.secret v=%d %d\n" % (ns, ns) for ns in times_ns)
    return Lines(data, len(times_ns))


async def appended(parts: House, times_ns: Sequence[int]) -> None:
    """Append points in commits of a thousand."""
    for start in range(0, len(times_ns), 1000):
        await parts.journal.append(at(times_ns[start : start + 1000]), received_at=time.time())


@pytest.fixture(params=VERSIONS, ids=NAMES)
async def server(request: pytest.FixtureRequest) -> AsyncIterator[FakeInflux]:
    """Serve a database whose retention ends at `BOUND_NS`."""
    version, status = request.param
    credentials = {"username": "u", "password": "p"} if version == "v1" else {}
    async with FakeInflux(version=version, **credentials).serving() as fake:
        fake.oldest_ns, fake.status_of_old = BOUND_NS, status
        yield fake


async def test_live_points_do_not_wait_behind_points_older_than_the_retention(
    tmp_path: Path, server: FakeInflux
) -> None:
    """12,000 old points cost a request per batch, and are counted as dropped."""
    live = range(BOUND_NS, BOUND_NS + LIVE)
    async with house(tmp_path, server) as parts:
        await appended(parts, range(OLD))
        await appended(parts, live)
        await parts.delivered()
        letters, books = await parts.letters(), parts.books
        expired, slept_s = parts.telemetry.sink("influxdb").expired, parts.clock.slept_s
        reason = parts.delivery.status().reason or ""

    assert [number_of(line) for line in server.lines] == list(live)
    assert letters == []
    assert books == (LIVE, 0, OLD, 0)
    assert expired == OLD
    assert slept_s < 5
    assert len(server.requests) < 30
    assert "12000 points that are older than its retention of 60 min" in reason


async def test_every_second_point_older_than_the_retention_costs_no_halving(
    tmp_path: Path, server: FakeInflux
) -> None:
    """The database reports how many it did not store, and stores the others."""
    mixed = [n // 2 if n % 2 else BOUND_NS + n // 2 for n in range(4_000)]
    async with house(tmp_path, server) as parts:
        await appended(parts, mixed)
        await parts.delivered()
        books = parts.books

    assert [number_of(line) for line in server.lines] == [n for n in mixed if n >= BOUND_NS]
    assert books == (2_000, 0, 2_000, 0)
    assert len(server.requests) < 10


async def test_old_points_among_bad_lines_are_told_apart(
    tmp_path: Path, server: FakeInflux
) -> None:
    """A batch with both is halved: the bad line is a dead letter, the old ones are counted."""
    bad = BOUND_NS + 7
    server.refuses = lambda line: "unable to parse" if number_of(line) == bad else None
    times = [*range(500), *range(BOUND_NS, BOUND_NS + 500)]
    async with house(tmp_path, server) as parts:
        await appended(parts, times)
        await parts.delivered()
        letters, books = await parts.letters(), parts.books

    assert [number_of(letter.line) for letter in letters] == [bad]
    assert {number_of(line) for line in server.lines} == set(times[500:]) - {bad}
    assert books == (499, 1, 500, 0)


async def test_the_series_key_of_an_old_point_is_neither_logged_nor_shown(
    tmp_path: Path, server: FakeInflux, caplog: pytest.LogCaptureFixture
) -> None:
    """InfluxDB 2.7 quotes the oldest and the newest point."""
    async with house(tmp_path, server) as parts:
        await appended(parts, range(10))
        await parts.delivered()
        status = parts.delivery.status()

    assert "retention" in caplog.text
    assert "secret" not in f"{caplog.text} {status}"


async def test_a_count_that_cannot_be_is_not_believed(tmp_path: Path) -> None:
    """More points dropped than were sent: the batch is halved, and each point counted alone."""
    async with FakeInflux().serving() as server:
        told = "partial write: points beyond retention policy dropped=99"
        server.refuses, server.partial = (lambda line: told if number_of(line) < 5 else None), True
        async with house(tmp_path, server) as parts:
            await appended(parts, range(20))
            await parts.delivered()
            books = parts.books

    assert {number_of(line) for line in server.lines} == set(range(5, 20))
    assert books == (15, 0, 5, 0)


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_points_over_a_series_limit_are_dead_letters_and_hold_up_nothing(
    tmp_path: Path, version: Literal["v1", "v2"]
) -> None:
    """Thousands of them in a row are no refusing database: known series are still written."""
    credentials = {"username": "u", "password": "p"} if version == "v1" else {}

    def series(names: Sequence[str]) -> Lines:
        lines = [f"m,entity_id={name} v=1 {number}\n" for number, name in enumerate(names, start=1)]
        return Lines("".join(lines).encode(), len(lines))

    async with FakeInflux(version=version, **credentials).serving() as server:
        server.most_series = 1
        async with house(tmp_path, server) as parts:
            await parts.journal.append(series(["known"]), received_at=time.time())
            await parts.delivered()
            for start in range(0, 3000, 1000):
                names = [f"new_{number}" for number in range(start, start + 1000)]
                await parts.journal.append(series(names), received_at=time.time())
            mixed = ["known", "newer"] * 100
            await parts.journal.append(series(mixed), received_at=time.time())
            await parts.delivered()
            letters, books = await parts.letters(), parts.books
            slept_s = parts.clock.slept_s

    assert len(letters) == 3_100
    assert "max-series-per-database limit exceeded" in letters[0].reason
    assert books == (101, 3_100, 0, 0)
    assert slept_s < 5


LIMITS = ["most_series", "most_tag_values"]


class Numbered:
    """Makes lines whose time is the next number."""

    def __init__(self) -> None:
        self.last = 0

    def lines(self, names: Sequence[str]) -> Lines:
        """Return a line for each entity."""
        first, self.last = self.last + 1, self.last + len(names)
        lines = [f"m,entity_id={name} v=1 {n}\n" for n, name in enumerate(names, start=first)]
        return Lines("".join(lines).encode(), len(lines))


async def journaled(parts: House, points: Numbered, names: Sequence[str]) -> None:
    """Append points in commits of a thousand."""
    for start in range(0, len(names), 1000):
        commit = points.lines(names[start : start + 1000])
        await parts.journal.append(commit, received_at=time.time())


def is_new(line: bytes) -> bool:
    """Whether the line is of a series that was never accepted."""
    return line.startswith(b"m,entity_id=new")


@asynccontextmanager
async def limited(limit: str, most: int) -> AsyncIterator[FakeInflux]:
    """Serve an InfluxDB 1 with a limit."""
    async with FakeInflux(version="v1", username="u", password="p").serving() as server:
        setattr(server, limit, most)
        yield server


KNOWN = [f"known{number}" for number in range(100)]
WORST = [f"new{n}" if n % 2 else KNOWN[n // 2 % 100] for n in range(10_000)]
"""Every second point starts a series over the limit."""


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
async def test_points_over_a_limit_do_not_delay_the_points_among_and_behind_them(
    tmp_path: Path, limit: str, *, restarted: bool
) -> None:
    """10,000 points, half of them dead letters, take tens of requests and not 20,000."""
    points = Numbered()
    async with limited(limit, len(KNOWN)) as server, AsyncExitStack() as stack:
        parts = await stack.enter_async_context(house(tmp_path, server, max_batch_points=5_000))
        await journaled(parts, points, KNOWN)
        await parts.delivered()
        if restarted:
            await stack.aclose()
            parts = await stack.enter_async_context(house(tmp_path, server, max_batch_points=5_000))
        server.requests.clear()
        await journaled(parts, points, [*WORST, *KNOWN])
        await parts.delivered()
        letters, books = await parts.letters(), parts.books

    written = 5_100 if restarted else 5_200
    assert books == (written, 5_000, 0, 0)
    assert len(server.requests) <= 3 * 11 + (30 if restarted else 0)
    assert [number_of(letter.line) for letter in letters] == [*range(102, 10_101, 2)]
    assert all(letter.sequence == number_of(letter.line) for letter in letters)
    assert len(server.points()) == 5_200


@pytest.mark.parametrize("limit", LIMITS)
async def test_the_search_for_points_over_a_limit_takes_a_tenth_as_many_requests_at_most(
    tmp_path: Path, limit: str
) -> None:
    """Series that come once each and were never seen: the rest becomes dead letters, untried.

    Some of these are stored nevertheless, and their reason states that.
    """
    known = [f"known{number}" for number in range(500)]
    mixed = [f"new{n}" if n % 2 else known[n // 2] for n in range(1_000)]
    points = Numbered()
    async with limited(limit, len(known)) as server:
        async with house(tmp_path, server) as parts:
            await journaled(parts, points, known)
            await parts.delivered()
        server.requests.clear()
        async with house(tmp_path, server) as parts:
            await journaled(parts, points, [*mixed, *known])
            await parts.delivered()
            letters, (written, dead, dropped, held) = await parts.letters(), parts.books

    untried = [letter for letter in letters if "may be stored" in letter.reason]
    assert (written + dead, dropped, held) == (1_500, 0, 0)
    assert len(server.requests) <= 101 + len(known) // 1000 + 1
    assert {letter.line for letter in letters if is_new(letter.line)} == {
        f"m,entity_id={name} v=1 {number}".encode()
        for number, name in enumerate(mixed, start=501)
        if name.startswith("new")
    }
    assert all("may be stored" in letter.reason for letter in letters if not is_new(letter.line))
    assert len(untried) < dead
    assert len(server.points()) == 1_500


async def test_points_of_one_series_keep_their_order_while_a_limit_is_searched(
    tmp_path: Path,
) -> None:
    """The newest of points with the same time is the one a query finds."""
    names = [["known0", "known1", f"new{n}"][n % 3] for n in range(300)]
    lines = [f"m,entity_id={name} v={n} 7\n" for n, name in enumerate(names)]
    async with limited("most_series", 2) as server, house(tmp_path, server) as parts:
        await parts.journal.append(
            Lines(b"m,entity_id=known0 v=0 1\nm,entity_id=known1 v=0 1\n", 2),
            received_at=time.time(),
        )
        await parts.delivered()
        await parts.journal.append(Lines("".join(lines).encode(), 300), received_at=time.time())
        await parts.delivered()
        books = parts.books

    found = {p.tags["entity_id"]: p.fields["v"] for p in server.points() if p.time_ns == 7}
    assert books == (202, 100, 0, 0)
    assert found == {"known0": 297, "known1": 298}


async def test_bad_lines_and_old_points_among_points_over_a_limit_are_told_apart(
    tmp_path: Path,
) -> None:
    """A limit hides the other reasons: every point still gets its own outcome."""
    points = Numbered()
    async with limited("most_series", 2) as server, house(tmp_path, server) as parts:
        await journaled(parts, points, ["known0", "known1"])
        await parts.delivered()
        server.refuses = lambda line: "unable to parse" if number_of(line) == 30 else None
        server.oldest_ns = 10
        await journaled(parts, points, [["known0", "new", "known1"][n % 3] for n in range(90)])
        await parts.delivered()
        letters, books = await parts.letters(), parts.books

    old, over, bad = range(3, 10), range(10, 93, 3), 30
    reasons = {number_of(letter.line): letter.reason for letter in letters}
    assert [*reasons] == sorted([*over, bad])
    assert "unable to parse" in reasons.pop(bad)
    assert all("max-series-per-database" in reason for reason in reasons.values())
    assert books == (92 - len(old) - len(over) - 1, len(over) + 1, len(old), 0)


@pytest.mark.parametrize("share", [1.0, 0.975, 0.3])
async def test_a_field_of_another_type_is_held_however_it_is_spread(
    tmp_path: Path, share: float
) -> None:
    """Points without the field are accepted in between, and prove nothing about it."""
    numbers = range(1, 1001)
    with_field = {number for number in numbers if number * share % 1 < share}
    lines = [
        b"home,e=a value=1,state=1 %d\n" % n if n in with_field else b"home,e=a state=1 %d\n" % n
        for n in numbers
    ]
    async with FakeInflux().serving() as server, house(tmp_path, server) as parts:
        await parts.journal.append(Lines(b'home value="text" 0\n', 1), received_at=time.time())
        await parts.delivered()
        await parts.journal.append(Lines(b"".join(lines), 1000), received_at=time.time())
        async with asyncio.timeout(20):
            while parts.clock.slept_s < 3600:
                await asyncio.sleep(0)
        status, letters = parts.delivery.status(), await parts.letters()
        server.forget_types()
        await parts.delivered()

    assert status.state == "refusing"
    assert "the field value" in (status.reason or "")
    assert len(letters) == 99
    assert {number_of(line) for line in server.lines} == {
        0,
        *numbers,
    } - {number_of(letter.line) for letter in letters}


async def test_one_entity_with_a_field_of_another_type_does_not_hold_the_others(
    tmp_path: Path,
) -> None:
    """As long as others with that field are accepted, its lines are bad lines."""
    lines = [
        b'home,e=bad value="on" %d\n' % n if n % 4 == 0 else b"home,e=good value=1 %d\n" % n
        for n in range(1, 1001)
    ]
    async with FakeInflux().serving() as server, house(tmp_path, server) as parts:
        await parts.journal.append(Lines(b"".join(lines), 1000), received_at=time.time())
        await parts.delivered()
        books = parts.books

    assert books == (750, 250, 0, 0)
