"""The contract of every journal, checked for each kind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.journal.cursors import Overflow
from app.journal.journal import SqliteJournal
from app.model import Lines, Pending, Row
from app.runtime.errors import JournalFull
from app.runtime.metrics import Telemetry
from tests.fakes.points import new_telemetry, numbered_lines, numbers_in

BOUND = 400_000


class Workshop:
    """Makes journals of one kind, on a folder of the test's own."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.telemetry = new_telemetry()
        self._folder = folder

    def journal(
        self,
        *sinks: str,
        max_bytes: int = 10_000_000,
        overflow: Overflow = "drop_oldest",
        recent_bytes: int = 8_000_000,
    ) -> SqliteJournal:
        """Return a journal that is not open yet."""
        return SqliteJournal(
            None if self.kind == "memory" else self._folder / "journal.db",
            sinks=sinks,
            max_bytes=max_bytes,
            overflow=overflow,
            telemetry=self.telemetry,
            recent_bytes=0 if self.kind == "sqlite-cold" else recent_bytes,
        )


@pytest.fixture(params=["sqlite", "sqlite-cold", "memory"])
def workshop(request: pytest.FixtureRequest, tmp_path: Path) -> Workshop:
    """Each journal in turn; the cold one keeps no row in memory and reads all from disk."""
    return Workshop(request.param, tmp_path)


async def append(journal: SqliteJournal, first: int, count: int, *, at: float = 1.0) -> None:
    """Append numbered points."""
    await journal.append(numbered_lines(first, count), received_at=at)


def bulky_lines(first: int, count: int, *, line_bytes: int) -> Lines:
    """Return points that take half of `line_bytes` each, however well they are compressed."""
    lines = [
        numbered_lines(number, 1, padding=os.urandom(line_bytes // 2).hex().encode())
        for number in range(first, first + count)
    ]
    return Lines(b"".join(line.data for line in lines), count)


async def append_bulky(journal: SqliteJournal, first: int) -> None:
    """Append ten points that take about 20 kB."""
    await journal.append(bulky_lines(first, 10, line_bytes=4000), received_at=float(first))


async def fill(journal: SqliteJournal) -> None:
    """Append until the journal refuses."""
    for first in range(1, 1000, 10):
        await append_bulky(journal, first)


def spans(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """Return the sequence numbers of rows as (first, last)."""
    return [(row.first, row.last) for row in rows]


def assert_balanced(journal: SqliteJournal, telemetry: Telemetry, sink: str, *, acked: int) -> None:
    """Appended = acked + dropped + held, in a journal that was empty."""
    came = journal.status().appended_points
    dropped = telemetry.sink(sink).dropped
    assert came == acked + dropped + journal.pending(sink).points


async def test_an_empty_journal_has_nothing_to_read(workshop: Workshop) -> None:
    """Reading never waits: without points it returns no rows."""
    async with workshop.journal("a") as journal:
        assert await journal.read("a", max_points=100) == []
        assert Pending(points=0, oldest_at=None) == journal.pending("a")
        assert journal.cursor("a") == 0
        assert journal.status().appended_points == 0


async def test_points_come_back_in_order_under_consecutive_numbers(workshop: Workshop) -> None:
    """Sequence numbers count points from 1; rows hold them in the order of the appends."""
    async with workshop.journal("a") as journal:
        await append(journal, 1, 3, at=10.0)
        await append(journal, 4, 1, at=11.0)
        await append(journal, 5, 4, at=12.0)
        rows = await journal.read("a", max_points=100)

    assert spans(rows) == [(1, 3), (4, 4), (5, 8)]
    assert [row.received_at for row in rows] == [10.0, 11.0, 12.0]
    assert list(range(1, 9)) == numbers_in(rows)


async def test_reading_takes_whole_rows_that_fit(workshop: Workshop) -> None:
    """At least one row, then whole rows while their points fit."""
    async with workshop.journal("a") as journal:
        for first in (1, 11, 21):
            await append(journal, first, 10)

        assert spans(await journal.read("a", max_points=1)) == [(1, 10)]
        assert spans(await journal.read("a", max_points=19)) == [(1, 10)]
        assert spans(await journal.read("a", max_points=20)) == [(1, 10), (11, 20)]
        assert spans(await journal.read("a", max_points=99)) == [(1, 10), (11, 20), (21, 30)]


@pytest.mark.parametrize("text", [b"plain", b"two\nlines"])
async def test_a_large_append_is_cut_into_rows(workshop: Workshop, text: bytes) -> None:
    """A read of at least one row must not return a hundred thousand points."""
    large = Lines(
        b"".join(
            numbered_lines(number, 1, padding=text * (number % 7)).data
            for number in range(1, 20_001)
        ),
        20_000,
    )
    async with workshop.journal("a") as journal:
        await journal.append(large, received_at=1.0)
        rows = await journal.read("a", max_points=100_000)

    assert all(1 <= row.points <= 3_000 for row in rows)
    assert len(rows) <= 10
    assert list(range(1, 20_001)) == numbers_in(rows)
    assert spans(rows) == [(numbers_in([row])[0], numbers_in([row])[-1]) for row in rows]


async def test_acked_points_are_not_read_again(workshop: Workshop) -> None:
    """What a sink has acked is behind it."""
    async with workshop.journal("a") as journal:
        await append(journal, 1, 3)
        await append(journal, 4, 3, at=2.0)
        journal.ack("a", 3)

        assert spans(await journal.read("a", max_points=100)) == [(4, 6)]
        assert journal.cursor("a") == 3
        assert Pending(points=3, oldest_at=2.0) == journal.pending("a")


async def test_a_row_acked_in_part_is_read_whole(workshop: Workshop) -> None:
    """Delivery acks single points; the row that contains them is returned until all are acked."""
    async with workshop.journal("a") as journal:
        await append(journal, 1, 5)
        await append(journal, 6, 5)
        journal.ack("a", 3)

        assert spans(await journal.read("a", max_points=5)) == [(1, 5)]
        assert journal.pending("a").points == 7

        journal.ack("a", 5)

        assert spans(await journal.read("a", max_points=5)) == [(6, 10)]


async def test_an_ack_never_moves_a_cursor_back(workshop: Workshop) -> None:
    """An answer that comes late must not bring old points back."""
    async with workshop.journal("a") as journal:
        await append(journal, 1, 5)
        journal.ack("a", 4)
        journal.ack("a", 2)

        assert journal.cursor("a") == 4


async def test_everything_acked_leaves_nothing(workshop: Workshop) -> None:
    """The end of the journal is as quiet as its beginning, and goes on from there."""
    async with workshop.journal("a") as journal:
        await append(journal, 1, 5)
        journal.ack("a", 5)

        assert await journal.read("a", max_points=5) == []
        assert Pending(points=0, oldest_at=None) == journal.pending("a")

        await append(journal, 6, 1)

        assert spans(await journal.read("a", max_points=5)) == [(6, 6)]


async def test_each_sink_has_a_pace_of_its_own(workshop: Workshop) -> None:
    """A slow sink neither holds up a fast one nor loses what the fast one is done with."""
    async with workshop.journal("fast", "slow") as journal:
        for first in (1, 11, 21):
            await append(journal, first, 10)
            journal.ack("fast", first + 9)
        journal.ack("slow", 10)

        assert await journal.read("fast", max_points=100) == []
        assert spans(await journal.read("slow", max_points=100)) == [(11, 20), (21, 30)]
        assert journal.pending("fast").points == 0
        assert journal.pending("slow").points == 20


async def test_waiting_for_growth_ends_when_enough_is_pending(workshop: Workshop) -> None:
    """A sink asks for a number of points and is woken by the append that completes it."""
    async with workshop.journal("a", "b") as journal, asyncio.timeout(5):
        waiting = asyncio.create_task(journal.grown("a", points=3), name="waiting")
        await append(journal, 1, 2)
        assert not waiting.done()

        await append(journal, 3, 1)
        await waiting
        await journal.grown("a", points=3)


async def test_what_is_acked_does_not_count_as_growth(workshop: Workshop) -> None:
    """Growth is about what is pending, not about what was ever appended."""
    async with workshop.journal("a") as journal, asyncio.timeout(5):
        await append(journal, 1, 3)
        journal.ack("a", 2)
        waiting = asyncio.create_task(journal.grown("a", points=3), name="waiting")
        await append(journal, 4, 1)
        assert not waiting.done()

        await append(journal, 5, 1)
        await waiting


async def test_giving_up_waiting_leaves_nothing_behind(workshop: Workshop) -> None:
    """A delivery waits with a timeout, all day long."""
    async with workshop.journal("a") as journal:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await journal.grown("a", points=1)
        await append(journal, 1, 1)

        assert journal._cursors._waiting == {}


async def test_reading_and_appending_at_once_keep_the_order(workshop: Workshop) -> None:
    """Points are read while others are appended; each comes once and in order."""
    async with workshop.journal("a") as journal, asyncio.timeout(30):

        async def produce() -> None:
            for first in range(1, 1001, 10):
                await append(journal, first, 10)

        producing = asyncio.create_task(produce(), name="produce")
        seen: list[int] = []
        while len(seen) < 1000:
            await journal.grown("a", points=1)
            rows = await journal.read("a", max_points=50)
            seen += numbers_in(rows)
            journal.ack("a", rows[-1].last)
        await producing

        assert list(range(1, 1001)) == seen
        assert_balanced(journal, workshop.telemetry, "a", acked=1000)


async def test_appends_at_once_are_numbered_without_gaps(workshop: Workshop) -> None:
    """Two who append at the same time get their own numbers."""
    async with workshop.journal("a") as journal:
        await asyncio.gather(*(append(journal, 100 * n, 7) for n in range(1, 11)))
        rows = await journal.read("a", max_points=100)

        assert [(7 * n + 1, 7 * n + 7) for n in range(10)] == spans(rows)


async def test_a_cancelled_append_happens_or_does_not(workshop: Workshop) -> None:
    """Whatever became of it, the books are right and the next append follows it."""
    async with workshop.journal("a") as journal, asyncio.timeout(10):
        for turns in range(6):
            before = journal.status().appended_points
            appending = asyncio.create_task(append(journal, 1, 5), name="appending")
            for _ in range(turns):
                await asyncio.sleep(0)
            appending.cancel()
            await asyncio.wait({appending})
            await append(journal, 100, 1)

            assert journal.status().appended_points - before in {1, 6}
            assert journal.status().appended_points == journal.pending("a").points
        rows = await journal.read("a", max_points=1000)

        assert sum(row.points for row in rows) == journal.pending("a").points
        assert [row.first for row in rows[1:]] == [row.last + 1 for row in rows[:-1]]


async def test_at_the_bound_the_slowest_sink_loses_its_oldest(workshop: Workshop) -> None:
    """`drop_oldest` makes room at the old end, and counts each lost point for its sink."""
    async with workshop.journal("fast", "slow", max_bytes=BOUND) as journal:
        for first in range(1, 401, 10):
            await append_bulky(journal, first)
            journal.ack("fast", first + 9)
        dropped = workshop.telemetry.sink("slow").dropped
        rows = await journal.read("slow", max_points=10_000)

        assert 0 < dropped < 400
        assert dropped == journal.cursor("slow")
        assert list(range(dropped + 1, 401)) == numbers_in(rows)
        assert workshop.telemetry.sink("fast").dropped == 0
        assert_balanced(journal, workshop.telemetry, "slow", acked=0)
        assert_balanced(journal, workshop.telemetry, "fast", acked=400)
        assert rows[0].received_at == journal.pending("slow").oldest_at
        assert journal.status().bytes <= BOUND
        assert "drops the oldest points" in str(journal.status().reason)


async def test_a_drop_that_overtakes_part_of_a_row_counts_the_rest(workshop: Workshop) -> None:
    """Points of a row that were acked before it was dropped are not counted as lost."""
    async with workshop.journal("a", max_bytes=BOUND) as journal:
        await append_bulky(journal, 1)
        journal.ack("a", 4)
        for first in range(11, 401, 10):
            await append_bulky(journal, first)

        assert_balanced(journal, workshop.telemetry, "a", acked=4)
        assert workshop.telemetry.sink("a").dropped == journal.cursor("a") - 4


async def test_at_the_bound_new_points_may_be_refused_instead(workshop: Workshop) -> None:
    """`drop_new` refuses the append for all sinks, and changes nothing."""
    async with workshop.journal("fast", "slow", max_bytes=BOUND, overflow="drop_new") as journal:
        with pytest.raises(JournalFull):
            await fill(journal)
        appended = journal.status().appended_points
        journal.ack("fast", appended)
        with pytest.raises(JournalFull):
            await append_bulky(journal, appended + 1)

        assert 0 < appended < 400
        assert appended == journal.status().appended_points
        assert appended == journal.pending("slow").points
        assert journal.pending("fast").points == 0
        assert workshop.telemetry.sink("slow").dropped == 0
        assert "drops new points" in str(journal.status().reason)


async def test_acks_make_room_again(workshop: Workshop) -> None:
    """A full journal takes points as soon as its sinks are done with some."""
    async with workshop.journal("a", max_bytes=BOUND, overflow="drop_new") as journal:
        with pytest.raises(JournalFull):
            await fill(journal)
        appended = journal.status().appended_points
        journal.ack("a", appended)
        await append_bulky(journal, appended + 1)

        assert appended + 10 == journal.status().appended_points
        assert journal.status().reason is None


async def test_uncommitted_points_are_read_like_all_others(workshop: Workshop) -> None:
    """In order behind what was appended, and durable, where anything is, after a commit."""
    async with workshop.journal("a", "b") as journal, asyncio.timeout(5):
        await append(journal, 1, 5)
        waiting = asyncio.create_task(journal.grown("a", points=10), name="waiting")
        await journal.append_uncommitted(numbered_lines(6, 5), received_at=2.0)
        await waiting
        journal.ack("a", 5)
        rows = await journal.read("a", max_points=100)

        assert spans(rows) == [(6, 10)]
        assert journal.pending("a") == Pending(points=5, oldest_at=2.0)
        journal.ack("a", 7)
        await journal.commit()
        await append(journal, 11, 5)

        assert (journal.uncommitted_points, journal.uncommitted_since) == (0, None)
        assert list(range(6, 16)) == numbers_in(await journal.read("a", max_points=100))
        assert_balanced(journal, workshop.telemetry, "a", acked=7)
        assert_balanced(journal, workshop.telemetry, "b", acked=0)


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_new"])
async def test_an_append_larger_than_the_bound_is_refused(
    workshop: Workshop, overflow: Overflow
) -> None:
    """Nothing is thrown away for what cannot fit anyway."""
    async with workshop.journal("a", max_bytes=BOUND, overflow=overflow) as journal:
        await append_bulky(journal, 1)
        huge = bulky_lines(11, 10, line_bytes=BOUND // 2)
        with pytest.raises(JournalFull):
            await journal.append(huge, received_at=1.0)

        assert journal.pending("a").points == 10
        assert workshop.telemetry.sink("a").dropped == 0
        assert spans(await journal.read("a", max_points=100)) == [(1, 10)]


async def test_without_sinks_points_are_taken_and_kept_within_the_bound(
    workshop: Workshop,
) -> None:
    """Without a sink, the journal stays bounded and continues."""
    async with workshop.journal(max_bytes=BOUND) as journal:
        for first in range(1, 401, 10):
            await append_bulky(journal, first)

        assert journal.status().appended_points == 400
        assert journal.orphaned == []
        assert journal.status().bytes <= BOUND


async def test_housekeeping_runs_until_it_is_cancelled(workshop: Workshop) -> None:
    """`run` is a loop of the supervisor: one that returned would stop the service."""
    async with workshop.journal("a") as journal:
        running = asyncio.create_task(journal.run(), name="run")
        await append(journal, 1, 1)
        assert not running.done()
        running.cancel()
        await asyncio.wait({running})

        assert running.cancelled()
