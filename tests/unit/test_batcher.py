"""The batcher: when a commit begins, what happens at the bound, and that the books balance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from app.journal.batcher import Batcher
from app.journal.cursors import Overflow
from app.model import Lines
from app.runtime.errors import JournalFull, StorageDamaged, StorageError, StorageFull
from app.runtime.metrics import Telemetry
from tests.fakes.points import new_telemetry, numbered_lines

HOUR = 3600.0
NOW = 1_000_000.0


class FakeJournal:
    """Records what is appended; can be made to block, or to fail a few times."""

    def __init__(self, *failures: StorageError) -> None:
        self.appended: list[tuple[Lines, float]] = []
        self.uncommitted: list[tuple[Lines, float]] = []
        """What the sinks have from memory and no disk has yet."""
        self.lent_sizes: list[int] = []
        """The points of each loan there ever was."""
        self.begun = 0
        self.letting_through = asyncio.Event()
        self.letting_through.set()
        self.telemetry = new_telemetry()
        """Set to that of the batcher."""
        self._failures = list(failures)

    async def append(
        self, lines: Lines, *, received_at: float, counted: Callable[[], None]
    ) -> None:
        """Append and count, or raise the next failure."""
        self.begun += 1
        await self.letting_through.wait()
        if self._failures:
            raise self._failures.pop(0)
        self.appended.append((lines, received_at))
        counted()

    async def append_uncommitted(self, lines: Lines, *, received_at: float) -> None:
        """Record uncommitted lines."""
        self.uncommitted.append((lines, received_at))
        self.lent_sizes.append(lines.points)

    async def commit(self) -> None:
        """Append the uncommitted lines, or raise the next failure."""
        if self._failures:
            raise self._failures.pop(0)
        self.secure()

    def secure(self) -> None:
        """Mark all lines as durable, or as received by every sink."""
        self.telemetry.points_journaled(self.uncommitted_points)
        self.appended += self.uncommitted
        self.uncommitted = []

    @property
    def uncommitted_points(self) -> int:
        """How many points are not committed."""
        return sum(lines.points for lines, _ in self.uncommitted)

    @property
    def uncommitted_since(self) -> float | None:
        """When the oldest uncommitted point was received."""
        return self.uncommitted[0][1] if self.uncommitted else None

    @property
    def sizes(self) -> list[int]:
        """The points of each commit."""
        return [lines.points for lines, _ in self.appended]

    @property
    def data(self) -> bytes:
        """All bytes that were appended."""
        return b"".join(lines.data for lines, _ in self.appended)


class Books:
    """A batcher with its journal and its telemetry, and what was put into it."""

    def __init__(
        self,
        journal: FakeJournal,
        *,
        commit_interval_s: float = HOUR,
        commit_points: int = 10,
        max_pending_points: int = 20_000,
        overflow: Overflow = "drop_oldest",
        now: float = NOW,
    ) -> None:
        self.journal = journal
        self.telemetry: Telemetry = new_telemetry()
        journal.telemetry = self.telemetry
        self.put_points = 0
        self.waits_s: list[float] = []
        self.batcher = Batcher(
            journal,
            telemetry=self.telemetry,
            commit_interval_s=commit_interval_s,
            commit_points=commit_points,
            max_pending_points=max_pending_points,
            overflow=overflow,
            retry_s=1.0,
            clock=lambda: now,
            sleep=self._sleep,
        )

    def put(self, first: int, count: int, *, received_at: float = NOW) -> None:
        """Put numbered points, and look at the books."""
        self.put_points += count
        self.batcher.put(numbered_lines(first, count), received_at=received_at)
        self.check()

    def check(self) -> None:
        """Taken in = journaled + dropped + pending, at any moment."""
        dropped = self.telemetry.dropped.total()
        assert self.telemetry.journaled + dropped + self.batcher.pending_points == self.put_points

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds, looking at the books at every turn of the loop."""
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0)
                self.check()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the batcher for as long as the block lasts, then close it and wait."""
        task = asyncio.create_task(self.batcher.run(), name="batcher")
        yield
        self.batcher.close()
        async with asyncio.timeout(5):
            await task
        self.check()

    async def _sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)
        await asyncio.sleep(0)


async def test_a_full_commit_begins_at_once() -> None:
    """`commit_points` are reason enough, however long the interval."""
    books = Books(FakeJournal())
    async with books.running():
        books.put(1, 4)
        books.put(5, 4)
        await asyncio.sleep(0)
        assert books.journal.begun == 0

        books.put(9, 4)
        await books.until(lambda: books.journal.sizes == [12])

    assert books.journal.data == numbered_lines(1, 12).data


async def test_a_commit_waits_no_longer_than_the_interval() -> None:
    """A single event on a quiet day is durable after the interval."""
    books = Books(FakeJournal(), commit_interval_s=0.01)
    async with books.running():
        books.put(1, 1)
        await books.until(lambda: books.journal.sizes == [1])


async def test_the_interval_counts_from_receipt() -> None:
    """Points that have waited behind another commit are due at once, not after an interval."""
    books = Books(FakeJournal())
    async with books.running():
        books.put(1, 1, received_at=NOW - HOUR)
        await books.until(lambda: books.journal.sizes == [1])


async def test_a_clock_that_was_set_back_does_not_hold_a_commit() -> None:
    """Receipt in the future waits the interval, and not until then."""
    books = Books(FakeJournal(), commit_interval_s=0.01)
    async with books.running():
        books.put(1, 1, received_at=NOW + HOUR)
        await books.until(lambda: books.journal.sizes == [1])


async def test_a_commit_carries_the_time_of_its_oldest_point() -> None:
    """Lag is measured from there."""
    books = Books(FakeJournal())
    async with books.running():
        books.put(1, 5, received_at=NOW - 3)
        books.put(6, 5, received_at=NOW - 2)
        await books.until(lambda: len(books.journal.appended) == 1)

    assert books.journal.appended[0][1] == NOW - 3


async def test_what_arrives_during_a_commit_becomes_the_next_one() -> None:
    """Batches merge while the disk is busy, up to about twenty times `commit_points`."""
    journal = FakeJournal()
    journal.letting_through.clear()
    books = Books(journal, commit_interval_s=0.0)
    async with books.running():
        books.put(1, 1)
        await books.until(lambda: journal.begun == 1)
        for first in range(2, 272):
            books.put(first, 1)
        journal.letting_through.set()
        await books.until(lambda: journal.sizes == [1, 200, 70])

    assert all(len(lines.split()) == lines.points for lines, _ in journal.appended)


async def test_a_batch_larger_than_a_commit_is_one_commit() -> None:
    """It is not cut: one frame of Home Assistant may hold thousands of events."""
    books = Books(FakeJournal())
    async with books.running():
        books.put(1, 35)
        await books.until(lambda: books.journal.sizes == [35])


async def test_an_empty_batch_is_none() -> None:
    """Events that were all malformed or filtered leave no lines."""
    books = Books(FakeJournal(), commit_interval_s=0.0)
    async with books.running():
        books.put(1, 0)

    assert books.journal.begun == 0


async def test_pending_points_have_an_age() -> None:
    """Health shows how long the oldest event has waited."""
    journal = FakeJournal()
    journal.letting_through.clear()
    books = Books(journal, commit_interval_s=0.0)
    async with books.running():
        assert books.batcher.oldest_at is None
        books.put(1, 1, received_at=NOW - 5)
        assert books.batcher.oldest_at == NOW - 5
        books.put(2, 1, received_at=NOW - 4)
        await books.until(lambda: journal.begun == 1)
        books.put(3, 9, received_at=NOW - 1)
        assert books.batcher.pending_points == 11
        assert books.batcher.oldest_at == NOW - 5

        journal.letting_through.set()
        await books.until(lambda: books.batcher.pending_points == 0)
        assert books.batcher.oldest_at is None


@pytest.mark.parametrize(
    ("overflow", "kept"),
    [("drop_oldest", [1, 2, 6, 7, 8, 9]), ("drop_new", [1, 2, 3, 4, 5])],
)
async def test_at_the_bound_the_policy_decides_who_is_lost(
    overflow: Overflow, kept: list[int]
) -> None:
    """A stalled disk costs the oldest batches that wait, or the new one; both are counted."""
    journal = FakeJournal()
    journal.letting_through.clear()
    books = Books(journal, commit_points=2, max_pending_points=6, overflow=overflow)
    async with books.running():
        books.put(1, 2)
        await books.until(lambda: journal.begun == 1)
        books.put(3, 3)
        books.put(6, 4)
        journal.letting_through.set()

    dropped = {"drop_oldest": 3, "drop_new": 4}[overflow]
    assert dict(books.telemetry.dropped) == {"journal_stalled": dropped}
    assert journal.data == b"".join(numbered_lines(number, 1).data for number in kept)


async def test_a_batch_that_can_never_fit_is_dropped() -> None:
    """Nothing in front of it is thrown away for what the bound does not allow anyway."""
    books = Books(FakeJournal(), max_pending_points=20)
    books.put(1, 5)
    books.put(6, 21)

    assert dict(books.telemetry.dropped) == {"journal_stalled": 21}
    assert books.batcher.pending_points == 5


async def test_a_sick_disk_keeps_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    """The commit is tried again every second, and nothing is lost or counted twice."""
    journal = FakeJournal(StorageFull("disk full"), StorageError("locked"), StorageFull("again"))
    books = Books(journal, commit_interval_s=0.0)
    async with books.running():
        books.put(1, 3)
        await books.until(lambda: not books.batcher.durable)
        assert "Events are not durable: disk full" in str(books.batcher.reason)
        await books.until(lambda: journal.sizes == [3])

    assert books.waits_s == [1.0, 1.0, 1.0]
    assert books.telemetry.journaled == 3
    assert books.batcher.durable
    assert books.batcher.reason is None
    assert caplog.text.count("Events are not durable") == 2, "each reason is logged once"


async def test_while_commits_fail_the_sinks_are_fed_in_order() -> None:
    """New points follow the uncommitted ones, and are pending until they are safe."""
    journal = FakeJournal(*[StorageError("failing")] * 1000)
    books = Books(journal, commit_interval_s=0.0, max_pending_points=100)
    async with books.running():
        books.put(1, 3)
        await books.until(lambda: journal.uncommitted_points == 3)
        books.put(4, 2)
        books.put(6, 4)
        await books.until(lambda: journal.uncommitted_points == 9)
        assert books.batcher.pending_points == 9
        assert books.batcher.oldest_at == NOW
        journal._failures.clear()
        await books.until(lambda: books.batcher.durable)
        books.put(10, 10)
        await books.until(lambda: books.batcher.pending_points == 0)

    assert journal.data == numbered_lines(1, 19).data
    assert books.telemetry.journaled == 19


async def test_what_every_sink_has_needs_no_disk() -> None:
    """A disk may fail indefinitely: the bound is for points at risk."""
    journal = FakeJournal(*[StorageError("failing")] * 100_000)
    books = Books(journal, commit_interval_s=0.0, max_pending_points=20)
    async with books.running():
        for first in range(1, 1001, 10):
            books.put(first, 10)
            await books.until(lambda: journal.uncommitted_points == 10)
            journal.secure()
            books.check()
        assert not books.batcher.durable
        journal._failures.clear()

    assert books.telemetry.dropped.total() == 0
    assert journal.data == numbered_lines(1, 1000).data


@pytest.mark.parametrize(
    ("overflow", "kept"),
    [("drop_oldest", [*range(1, 11), *range(15, 25)]), ("drop_new", [*range(1, 21)])],
)
async def test_disk_and_sinks_away_at_once_leave_the_policy(
    overflow: Overflow, kept: list[int]
) -> None:
    """Half of the bound is readable, the other half waits where the policy can choose."""
    journal = FakeJournal(*[StorageError("failing")] * 1000)
    books = Books(
        journal, commit_interval_s=0.0, commit_points=2, max_pending_points=20, overflow=overflow
    )
    async with books.running():
        for first in range(1, 25, 2):
            books.put(first, 2)
            await books.until(lambda first=first: journal.uncommitted_points == min(first + 1, 10))  # type: ignore[misc]
        assert journal.uncommitted_points == 10
        assert books.batcher.pending_points == 20
        journal._failures.clear()

    assert dict(books.telemetry.dropped) == {"journal_stalled": 4}
    assert journal.data == b"".join(numbered_lines(number, 1).data for number in kept)


async def test_closing_on_a_failing_disk_gives_all_that_is_left_to_the_sinks() -> None:
    """After one more attempt the loop ends: what remains of the time to stop is the sinks'."""
    journal = FakeJournal(*[StorageError("failing")] * 1000)
    books = Books(journal, commit_interval_s=0.0, max_pending_points=20)
    async with books.running():
        for first in range(1, 20, 2):
            books.put(first, 2)
        await books.until(lambda: not books.batcher.durable)

    assert journal.appended == []
    assert 20 == journal.uncommitted_points == books.batcher.pending_points


async def test_a_damaged_file_asks_for_a_restart() -> None:
    """It does not recover while it is open."""
    books = Books(FakeJournal(StorageDamaged("malformed")), commit_interval_s=0.0)
    async with books.running():
        books.put(1, 1)
        await books.until(lambda: not books.batcher.durable)

        assert "restart the service" in str(books.batcher.reason)


async def test_a_full_journal_loses_the_batch_and_goes_on() -> None:
    """`drop_new` at the journal's bound: the loss has a number and the disk is fine."""
    journal = FakeJournal(JournalFull("at its bound"))
    books = Books(journal, commit_interval_s=0.0)
    async with books.running():
        books.put(1, 3)
        await books.until(lambda: books.batcher.pending_points == 0)
        books.put(4, 2)
        await books.until(lambda: journal.sizes == [2])

    assert dict(books.telemetry.dropped) == {"journal_full": 3}
    assert books.batcher.durable
    assert books.waits_s == []


async def test_a_sick_disk_and_a_full_memory_are_one_loss() -> None:
    """What does not fit while commits fail is lost, and that is over with the next commit."""
    journal = FakeJournal(*[StorageFull("disk full")] * 3)
    books = Books(journal, commit_interval_s=0.0, max_pending_points=5)
    seen = []
    books.put(1, 6)
    seen.append(books.batcher.losing)
    async with books.running():
        books.put(7, 5)
        await books.until(lambda: not books.batcher.durable)
        seen.append(books.batcher.losing)
        books.put(12, 1)
        seen.append(books.batcher.losing)
        await books.until(lambda: journal.sizes != [])
        seen.append(books.batcher.losing)

    assert seen == [False, False, True, False]


async def test_closing_commits_what_is_left() -> None:
    """`run` ends by itself, without waiting for an interval, once all is durable."""
    books = Books(FakeJournal())
    async with books.running():
        for first in range(1, 276):
            books.put(first, 1)

    assert books.journal.sizes == [200, 75]
    assert books.batcher.pending_points == 0


async def test_closing_an_idle_batcher_ends_it() -> None:
    """Nothing was put, nothing is committed."""
    books = Books(FakeJournal())
    async with books.running():
        await asyncio.sleep(0)

    assert books.journal.begun == 0


async def test_what_comes_after_closing_is_counted() -> None:
    """A straggler at shutdown is lost, and lies in the gap that the next start finds."""
    books = Books(FakeJournal())
    books.batcher.close()
    books.put(1, 3)

    assert dict(books.telemetry.dropped) == {"shutdown": 3}


async def test_cancelling_between_commits_leaves_points_pending() -> None:
    """They are neither journaled nor dropped; the books still know them."""
    books = Books(FakeJournal())
    running = asyncio.create_task(books.batcher.run(), name="batcher")
    books.put(1, 3)
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running})

    assert books.batcher.pending_points == 3
    books.check()


async def test_a_defect_of_the_journal_ends_the_loop() -> None:
    """Only a `StorageError` is worth another attempt; anything else is for the supervisor."""

    class BrokenJournal(FakeJournal):
        async def append(
            self, lines: Lines, *, received_at: float, counted: Callable[[], None]
        ) -> None:
            raise ZeroDivisionError

    books = Books(BrokenJournal(), commit_interval_s=0.0)
    books.put(1, 1)
    with pytest.raises(ZeroDivisionError):
        await books.batcher.run()


async def test_a_burst_of_a_hundred_thousand_events_is_journaled_in_order() -> None:
    """Frames of fifty events, as fast as the loop can put them, with the disk in the way."""
    books = Books(
        FakeJournal(), commit_interval_s=0.1, commit_points=1000, max_pending_points=100_000
    )
    batches = [numbered_lines(first, 50) for first in range(1, 100_001, 50)]
    async with books.running():
        for number, lines in enumerate(batches):
            books.put_points += 50
            books.batcher.put(lines, received_at=NOW)
            if number % 100 == 0:
                await asyncio.sleep(0)
                books.check()
        await books.until(lambda: books.batcher.pending_points < 1000)

    assert books.telemetry.journaled == 100_000
    assert books.telemetry.dropped.total() == 0
    assert 1000 < max(books.journal.sizes) <= 20_000
    assert books.journal.data == b"".join(lines.data for lines in batches)
