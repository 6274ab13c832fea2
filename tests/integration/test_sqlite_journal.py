"""The journal on disk: what survives a restart, a full disk and a damaged file."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.backfill.coverage import Coverage
from app.backfill.last_states import LastStates
from app.journal.batcher import Batcher
from app.journal.cursors import Overflow
from app.journal.journal import SqliteJournal, free_disk_bytes
from app.model import MAX_TIME_NS, LastState, Lines, Row
from app.runtime.errors import JournalFull, StorageError, StorageFull
from app.runtime.metrics import Telemetry
from app.runtime.sqlite import Connection, finish_replacing
from app.runtime.sqlite_pages import SMALL_PAGE_BYTES
from tests.fakes.journal import tidy
from tests.fakes.points import new_telemetry, numbered_lines, numbers_in
from tests.unit.test_last_states import change

PAGE = SMALL_PAGE_BYTES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A place for the journal."""
    return tmp_path / "journal.db"


def journal_at(
    path: Path,
    *sinks: str,
    telemetry: Telemetry | None = None,
    max_bytes: int = 10_000_000,
    overflow: Overflow = "drop_oldest",
    recent_bytes: int = 8_000_000,
    housekeeping_s: float = 3600.0,
    min_free_bytes: int = 0,
    free_bytes: Callable[[Path], int] = free_disk_bytes,
    coverage: Coverage | None = None,
    last_states: LastStates | None = None,
) -> SqliteJournal:
    """Return a journal that is not open yet; its housekeeping waits for an hour."""
    return SqliteJournal(
        path,
        sinks=sinks,
        telemetry=telemetry or new_telemetry(),
        max_bytes=max_bytes,
        # What is acked may go at once; the two minutes it stays have tests of their own.
        coverage=coverage or Coverage(compare_s=-1.0),
        last_states=last_states,
        overflow=overflow,
        recent_bytes=recent_bytes,
        housekeeping_s=housekeeping_s,
        min_free_bytes=min_free_bytes,
        free_bytes=free_bytes,
    )


def bulky_lines(first: int, count: int = 10, *, line_bytes: int = 4000) -> Lines:
    """Return points that take half of `line_bytes` each, however well they are compressed."""
    lines = [
        numbered_lines(number, 1, padding=os.urandom(line_bytes // 2).hex().encode())
        for number in range(first, first + count)
    ]
    return Lines(b"".join(line.data for line in lines), count)


async def append(journal: SqliteJournal, first: int, count: int, *, at: float = 1.0) -> None:
    """Append numbered points."""
    await journal.append(numbered_lines(first, count), received_at=at)


async def numbers_held(journal: SqliteJournal, sink: str) -> list[int]:
    """Return all points that the sink has not acked, row by row."""
    return numbers_in(await journal.read(sink, max_points=10**9))


def missing_points(journal: SqliteJournal) -> int:
    """Return how many sequence numbers no row holds."""
    return sum(hole.points for hole in journal._cursors.holes)


async def on_disk(journal: SqliteJournal, query: str) -> list[tuple[object, ...]]:
    """Return what a second pair of eyes sees in the file."""
    return await journal._database.read(lambda connection: list(connection.execute(query)))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(5):
        while not await condition():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def housekeeping(journal: SqliteJournal) -> AsyncIterator[None]:
    """Run the journal's loop for as long as the block lasts."""
    running = asyncio.create_task(journal.run(), name="journal")
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait({running})


async def test_a_commit_writes_few_small_pages(path: Path) -> None:
    """An SD card wears out by them: a quiet home makes one commit for each event."""
    wal = path.with_name("journal.db-wal")
    async with journal_at(path, "influxdb") as journal:
        await append(journal, 1, 1)
        before = wal.stat().st_size
        for number in range(2, 22):
            await append(journal, number, 1)
        written = wal.stat().st_size - before

    assert written <= 20 * 5 * (PAGE + 24)


# Restart


async def test_a_restart_keeps_points_and_cursors(path: Path) -> None:
    """What was appended and not acked is there again, and counted as held at start."""
    async with journal_at(path, "a") as journal:
        await append(journal, 1, 5, at=7.0)
        await append(journal, 6, 5, at=8.0)
        journal.ack("a", 7)

    async with journal_at(path, "a") as journal:
        assert journal.cursor("a") == 7
        assert journal.pending("a").points == 3
        assert journal.pending("a").oldest_at == 8.0
        assert journal.status().appended_points == 0
        assert await numbers_held(journal, "a") == [6, 7, 8, 9, 10]


async def test_what_append_returned_for_survives_a_kill(path: Path, tmp_path: Path) -> None:
    """Durable when append returns: the files as they lie there are enough."""
    killed = tmp_path / "killed"
    async with journal_at(path, "a") as journal:
        await append(journal, 1, 5)
        journal.ack("a", 2)
        await append(journal, 6, 5)
        shutil.copytree(tmp_path, killed)

    async with journal_at(killed / "journal.db", "a") as journal:
        assert journal.cursor("a") == 2
        assert journal.pending("a").points == 8
        assert list(range(1, 11)) == await numbers_held(journal, "a")


async def test_numbers_are_not_reused_after_all_rows_are_gone(path: Path) -> None:
    """Dead letters carry sequence numbers, so a number identifies one point permanently."""
    async with journal_at(path, "a") as journal:
        await append(journal, 1, 5)
        journal.ack("a", 5)

    async with journal_at(path, "a") as journal:
        assert await on_disk(journal, "SELECT first FROM journal_rows") == []
        await append(journal, 6, 2)
        rows = await journal.read("a", max_points=10)

        assert [(row.first, row.last) for row in rows] == [(6, 7)]


async def test_a_new_sink_starts_at_the_tail(path: Path) -> None:
    """A sink that is set up today is not sent what was meant for another."""
    async with journal_at(path, "a") as journal:
        await append(journal, 1, 5)

    async with journal_at(path, "a", "b") as journal:
        assert journal.cursor("b") == 5
        assert journal.pending("b").points == 0
        assert journal.pending("a").points == 5


async def test_a_backlog_on_disk_is_read_on_into_memory(path: Path) -> None:
    """Old rows come from disk, new ones from memory, and nothing is skipped between."""
    async with journal_at(path, "a") as journal:
        await append(journal, 1, 5)

    async with journal_at(path, "a") as journal:
        await append(journal, 6, 5)
        seen: list[int] = []
        while rows := await journal.read("a", max_points=5):
            seen += numbers_in(rows)
            journal.ack("a", rows[-1].last)

        assert list(range(1, 11)) == seen


# Cursors and housekeeping


async def test_a_cursor_rides_on_the_next_append(path: Path) -> None:
    """A sink that keeps up costs no transaction of its own."""
    async with journal_at(path, "a") as journal:
        await append(journal, 1, 5)
        journal.ack("a", 3)
        assert await on_disk(journal, "SELECT settled FROM cursors") == [(0,)]

        await append(journal, 6, 1)

        assert await on_disk(journal, "SELECT settled FROM cursors") == [(3,)]


async def test_a_cursor_is_saved_without_an_append(path: Path) -> None:
    """On a quiet day housekeeping saves it, and deletes what is behind it."""
    async with journal_at(path, "a", "b", housekeeping_s=0.001) as journal, housekeeping(journal):
        for first in range(1, 1001, 4):
            await append(journal, first, 4)
        journal.ack("a", 1000)
        journal.ack("b", 998)

        async def tidy() -> bool:
            cursors = await on_disk(journal, "SELECT settled FROM cursors ORDER BY sink")
            rows = await on_disk(journal, "SELECT first FROM journal_rows")
            return cursors == [(1000,), (998,)] and rows == [(997,)]

        await until(tidy)


async def test_housekeeping_survives_a_sick_disk(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Saving cursors is tried again; a failure costs a second delivery at most."""
    async with journal_at(path, "a", housekeeping_s=0.001) as journal:
        await append(journal, 1, 5)
        await make_read_only(journal, read_only=True)
        journal.ack("a", 5)
        async with housekeeping(journal):

            async def warned() -> bool:
                return "Housekeeping of the journal failed" in caplog.text

            await until(warned)
            await make_read_only(journal, read_only=False)

            async def saved() -> bool:
                return await on_disk(journal, "SELECT settled FROM cursors") == [(5,)]

            await until(saved)


async def test_closing_on_a_sick_disk_says_so(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The process still ends; what was acked is delivered once more."""
    async with journal_at(path, "a") as journal:
        await append(journal, 1, 5)
        await make_read_only(journal, read_only=True)
        journal.ack("a", 5)

    assert "cursors of the journal were not saved" in caplog.text
    async with journal_at(path, "a") as journal:
        assert journal.pending("a").points == 5


async def make_read_only(journal: SqliteJournal, *, read_only: bool) -> None:
    """Make every statement that writes fail, as on a disk that went read-only."""

    def set_query_only(connection: Connection) -> None:
        connection.execute(f"PRAGMA query_only = {int(read_only)}")

    writer = journal._database._writer
    assert writer is not None
    await writer.run(set_query_only)


async def test_an_append_on_a_sick_disk_changes_nothing(path: Path) -> None:
    """It may be tried again with the same points."""
    async with journal_at(path, "a") as journal:
        await append(journal, 1, 5)
        await make_read_only(journal, read_only=True)
        with pytest.raises(StorageError):
            await append(journal, 6, 5)
        assert 5 == journal.pending("a").points == journal.status().appended_points

        await make_read_only(journal, read_only=False)
        await append(journal, 6, 5)

        assert list(range(1, 11)) == await numbers_held(journal, "a")


async def test_closing_waits_for_the_append_under_way(path: Path) -> None:
    """An append that has begun ends and is counted, even when its caller no longer waits."""
    async with journal_at(path, "a") as journal:
        appending = asyncio.create_task(append(journal, 1, 5), name="appending")
        await asyncio.sleep(0)
        appending.cancel()
        await asyncio.wait({appending})

    assert journal.status().appended_points == 5
    async with journal_at(path, "a") as journal:
        assert journal.pending("a").points == 5


async def test_a_cancelled_batcher_waits_for_its_append_and_counts_it_once(path: Path) -> None:
    """An append that has begun ends in the journal, so its points are journaled."""
    telemetry = new_telemetry()
    async with journal_at(path, "a", telemetry=telemetry) as journal, asyncio.timeout(5):
        batcher = Batcher(journal, telemetry=telemetry, commit_interval_s=0.0)
        running = asyncio.create_task(batcher.run(), name="batcher")
        batcher.put(numbered_lines(1, 3), received_at=1.0)
        while not journal._order.locked():
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait({running})

        assert running.cancelled()
        assert 3 == telemetry.journaled == journal.status().appended_points
        assert batcher.pending_points == 0


async def test_recent_rows_stay_within_their_bytes(path: Path) -> None:
    """A sink that is down must not make the process grow."""
    async with journal_at(path, "a", recent_bytes=100_000) as journal:
        for first in range(1, 201, 10):
            await journal.append(bulky_lines(first), received_at=1.0)

        assert 0 < journal._recent.bytes <= 100_000
        assert list(range(1, 201)) == await numbers_held(journal, "a")


async def test_acked_rows_leave_memory_with_the_next_append(path: Path) -> None:
    """Points that no sink will read again are not worth keeping."""
    async with journal_at(path, "a") as journal:
        await append(journal, 1, 5)
        journal.ack("a", 5)
        await append(journal, 6, 5)

        assert journal._recent.after(4, max_points=1) is None
        assert journal._recent.after(5, max_points=1) is not None


# Uncommitted rows, while commits fail


async def append_uncommitted(journal: SqliteJournal, first: int, count: int) -> None:
    """Append numbered points without a commit."""
    await journal.append_uncommitted(numbered_lines(first, count), received_at=2.0)


async def test_uncommitted_points_are_on_disk_after_a_commit(path: Path) -> None:
    """With the cursors that stand among them, so that a restart goes on there."""
    telemetry = new_telemetry()
    async with journal_at(path, "a", "b", telemetry=telemetry) as journal:
        await append(journal, 1, 5)
        await append_uncommitted(journal, 6, 5)
        await append_uncommitted(journal, 11, 5)
        journal.ack("a", 12)
        assert (journal.uncommitted_points, journal.uncommitted_since) == (10, 2.0)
        assert await on_disk(journal, "SELECT tail FROM journal") == [(5,)]

        await journal.commit()

        assert journal.uncommitted_points == 0
        assert telemetry.journaled == 10
        assert await on_disk(journal, "SELECT tail FROM journal") == [(15,)]

    async with journal_at(path, "a", "b") as journal:
        assert list(range(11, 16)) == await numbers_held(journal, "a")
        assert list(range(1, 16)) == await numbers_held(journal, "b")


async def test_points_that_every_sink_acked_before_a_commit_are_never_written(path: Path) -> None:
    """It is in the databases; only its numbers are taken for good."""
    telemetry = new_telemetry()
    async with journal_at(path, "a", "b", telemetry=telemetry) as journal:
        await append(journal, 1, 5)
        await append_uncommitted(journal, 6, 5)
        await append_uncommitted(journal, 11, 5)
        journal.ack("a", 15)
        assert journal.uncommitted_points == 10
        journal.ack("b", 10)
        assert (journal.uncommitted_points, telemetry.journaled) == (5, 5)

        await journal.commit()

        assert await on_disk(journal, "SELECT first FROM journal_rows") == [(1,), (11,)]
        assert list(range(11, 16)) == await numbers_held(journal, "b")

    async with journal_at(path, "a", "b") as journal:
        assert missing_points(journal) == 0
        await append(journal, 16, 1)
        assert [*range(11, 17)] == await numbers_held(journal, "b")
        assert await numbers_held(journal, "a") == [16]


async def test_a_row_is_not_read_before_its_append_has_ended(path: Path) -> None:
    """It is on disk already, and not counted yet."""
    async with journal_at(path, "a", recent_bytes=0) as journal:
        await append(journal, 1, 5)
        await append(journal, 6, 5)
        tail, journal._cursors.tail = journal._cursors.tail, 5
        early = await numbers_held(journal, "a")
        journal._cursors.tail = tail

        assert early == [*range(1, 6)]
        assert await numbers_held(journal, "a") == [*range(1, 11)]


async def test_a_kill_while_commits_fail_is_no_damage_at_the_next_start(
    path: Path, tmp_path: Path
) -> None:
    """Numbers that were given out in memory only are not saved as missing."""
    killed = tmp_path / "killed"
    async with journal_at(path, "a", "b"):
        pass
    async with journal_at(path, "a") as journal:
        await append(journal, 1, 5)
        await append_uncommitted(journal, 6, 5)
        journal.ack("a", 10)
        await tidy(journal)
        shutil.copytree(tmp_path, killed)

    async with journal_at(killed / "journal.db", "a") as journal:
        assert journal.status().reason is None
        await append(journal, 6, 1)
        assert await numbers_held(journal, "a") == [6]


async def test_numbers_that_were_never_written_are_skipped_while_commits_fail(path: Path) -> None:
    """Rows that are not on disk yet are read, although the numbers before them are missing."""
    async with journal_at(path, "a", "b"):
        pass
    async with journal_at(path, "a") as journal:
        await append_uncommitted(journal, 1, 5)
        journal.ack("a", 5)
        await journal.commit()

    async with journal_at(path, "b") as journal, asyncio.timeout(5):
        await append_uncommitted(journal, 6, 5)

        assert await numbers_held(journal, "b") == [*range(6, 11)]


async def test_a_kill_before_the_commit_skips_no_point_of_the_next_life(
    path: Path, tmp_path: Path
) -> None:
    """No cursor on disk is ever ahead of the tail on disk: numbers are given out again."""
    killed = tmp_path / "killed"
    async with journal_at(path, "a", housekeeping_s=0.001) as journal, housekeeping(journal):
        await append(journal, 1, 5)
        await append_uncommitted(journal, 6, 5)
        journal.ack("a", 10)

        async def saved() -> bool:
            return await on_disk(journal, "SELECT settled FROM cursors") == [(5,)]

        await until(saved)
        shutil.copytree(tmp_path, killed)

    async with journal_at(killed / "journal.db", "a") as journal:
        await append(journal, 11, 3)
        assert await numbers_held(journal, "a") == [11, 12, 13]


async def test_a_failed_commit_changes_nothing_and_is_tried_again(path: Path) -> None:
    """Rows that were acked during the attempt are discarded after it."""
    telemetry = new_telemetry()
    async with journal_at(path, "a", telemetry=telemetry) as journal:
        await make_read_only(journal, read_only=True)
        await append_uncommitted(journal, 1, 5)
        await append_uncommitted(journal, 6, 5)
        committing = asyncio.create_task(journal.commit(), name="committing")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert journal._order.locked()
        journal.ack("a", 5)
        assert journal.uncommitted_points == 10
        with pytest.raises(StorageError):
            await committing
        assert (journal.uncommitted_points, telemetry.journaled) == (5, 5)

        await make_read_only(journal, read_only=False)
        await journal.commit()

        assert (journal.uncommitted_points, telemetry.journaled) == (0, 10)
        assert list(range(6, 11)) == await numbers_held(journal, "a")


async def test_an_append_commits_the_uncommitted_points_before_it(path: Path) -> None:
    """Retried dead letters are appended, whatever else goes on."""
    async with journal_at(path, "a") as journal:
        await append_uncommitted(journal, 1, 5)
        await append(journal, 6, 2)

        assert journal.uncommitted_points == 0
        assert await on_disk(journal, "SELECT first, points FROM journal_rows ORDER BY first") == [
            (1, 5),
            (6, 2),
        ]


async def test_closing_commits_uncommitted_points(path: Path) -> None:
    """The disk may have recovered since the last attempt."""
    async with journal_at(path, "a") as journal:
        await append_uncommitted(journal, 1, 5)

    async with journal_at(path, "a") as journal:
        assert journal.pending("a").points == 5


async def test_closing_on_a_sick_disk_says_what_is_lost(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a disk nor a sink took them."""
    async with journal_at(path, "a") as journal:
        await append_uncommitted(journal, 1, 5)
        await make_read_only(journal, read_only=True)

    assert "Lost 5 points that were never durable" in caplog.text


async def test_a_sink_that_is_not_configured_loses_points_that_were_never_committed(
    path: Path,
) -> None:
    """Counted; it keeps what is on disk. Memory cannot wait for somebody who may never come."""
    async with journal_at(path, "a", "b") as journal:
        await append(journal, 1, 5)

    telemetry = new_telemetry()
    async with journal_at(path, "a", telemetry=telemetry) as journal:
        for first in (6, 11):
            await append_uncommitted(journal, first, 5)
            journal.ack("a", first + 4)
        assert telemetry.sink("b").dropped == 10
        assert journal.pending("b").points == 5
        await journal.commit()
        await append(journal, 16, 1)
        assert journal.pending("b").points == 6

    async with journal_at(path, "a", "b") as journal:
        assert missing_points(journal) == 10
        seen: list[int] = []
        while rows := await journal.read("b", max_points=1):
            seen += numbers_in(rows)
            journal.ack("b", rows[-1].last)

        assert [*range(1, 6), 16] == seen


# Bounds


async def test_a_cursor_without_a_sink_stays_and_is_reported(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A sink that was removed for a day still has its points."""
    async with journal_at(path, "a", "b") as journal:
        await append(journal, 1, 5)
        journal.ack("a", 5)

    async with journal_at(path, "a") as journal:
        assert journal.orphaned == ["b"]
        assert journal.pending("b").points == 5
        assert "holds 5 points for 'b'" in caplog.text
        await append(journal, 6, 1)
        journal.ack("a", 6)

    async with journal_at(path, "a", "b") as journal:
        assert journal.orphaned == []
        assert list(range(1, 7)) == await numbers_held(journal, "b")


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_new"])
async def test_orphans_go_first_at_the_bound(path: Path, overflow: Overflow) -> None:
    """Points only for a removed sink are dropped before a configured sink loses any."""
    async with journal_at(path, "a", "b") as journal:
        await journal.append(bulky_lines(1), received_at=1.0)
        journal.ack("a", 10)

    telemetry = new_telemetry()
    async with journal_at(
        path, "a", telemetry=telemetry, max_bytes=400_000, overflow=overflow
    ) as journal:
        for first in range(11, 401, 10):
            await journal.append(bulky_lines(first), received_at=1.0)
            journal.ack("a", first + 9)

        assert telemetry.sink("a").dropped == 0
        assert 0 < telemetry.sink("b").dropped == journal.cursor("b")
        assert 400 - telemetry.sink("b").dropped == journal.pending("b").points


async def test_the_bound_covers_the_wal(path: Path) -> None:
    """Size is live pages and WAL, as a person with `du` would count it."""
    async with journal_at(path, "a", max_bytes=1_000_000) as journal:
        for first in range(1, 1001, 10):
            await journal.append(bulky_lines(first), received_at=1.0)
            wal = path.with_name("journal.db-wal")
            # What a file cannot give back at once is a commit's worth.
            assert path.stat().st_size + wal.stat().st_size <= 1_000_000 + 100_000

        assert journal.status().bytes <= 1_000_000
        assert 0 < journal.pending("a").points < 1000


async def test_a_disk_that_runs_full_is_a_bound_too(path: Path) -> None:
    """The journal leaves JOURNAL_MIN_FREE_MB to others, and goes on in the pages it has."""
    free = 1_000_000
    telemetry = new_telemetry()
    async with journal_at(
        path, "a", telemetry=telemetry, min_free_bytes=500_000, free_bytes=lambda _: free
    ) as journal:
        for first in range(1, 101, 10):
            await journal.append(bulky_lines(first), received_at=1.0)
        assert telemetry.sink("a").dropped == 0

        free = 400_000
        pages = await on_disk(journal, "PRAGMA page_count")
        for first in range(101, 301, 10):
            await journal.append(bulky_lines(first), received_at=1.0)

        assert 0 < telemetry.sink("a").dropped < 300
        assert telemetry.sink("a").dropped + journal.pending("a").points == 300
        assert pages == await on_disk(journal, "PRAGMA page_count")
        assert "JOURNAL_MIN_FREE_MB" in str(journal.status().reason)


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_new"])
async def test_a_full_disk_is_no_reason_to_drop_what_is_new(path: Path, overflow: Overflow) -> None:
    """The database may be well: points that do not fit go to the sinks from memory."""
    telemetry = new_telemetry()
    async with journal_at(
        path, "a", overflow=overflow, telemetry=telemetry, min_free_bytes=1, free_bytes=lambda _: 0
    ) as journal:
        with pytest.raises(StorageFull, match="JOURNAL_MIN_FREE_MB") as raised:
            await journal.append(bulky_lines(1, 100), received_at=1.0)

        assert not isinstance(raised.value, JournalFull)
        assert telemetry.sink("a").dropped == 0
        assert journal.status().reason is None


async def test_acked_rows_are_no_reason_to_refuse(path: Path) -> None:
    """`drop_new` makes room from what is acked before it refuses anything."""
    async with journal_at(path, "a", max_bytes=400_000, overflow="drop_new") as journal:
        for first in range(1, 1001, 10):
            await journal.append(bulky_lines(first), received_at=1.0)
            journal.ack("a", first + 9)

        assert journal.status().appended_points == 1000
        assert journal.status().reason is None


async def test_the_reason_stands_until_the_backlog_shrinks(path: Path) -> None:
    """A person who looks a second after the drop still learns of it."""
    async with journal_at(path, "a", max_bytes=1_000_000) as journal:
        for first in range(1, 1001, 10):
            await journal.append(bulky_lines(first), received_at=1.0)
        await append(journal, 1001, 1)
        assert "drops the oldest points" in str(journal.status().reason)

        journal.ack("a", 1001)
        await append(journal, 1002, 1)

        assert journal.status().reason is None


async def test_pages_go_back_to_the_disk_after_a_backlog(path: Path) -> None:
    """A file that grew in an outage shrinks again, in small steps."""
    async with journal_at(path, "a", housekeeping_s=0.0001) as journal, housekeeping(journal):
        for first in range(1, 2001, 100):
            await journal.append(bulky_lines(first, 100, line_bytes=10_000), received_at=1.0)
        grown = path.stat().st_size + path.with_name("journal.db-wal").stat().st_size
        journal.ack("a", 2000)
        number = 2000

        async def shrunk() -> bool:
            nonlocal number
            number += 1
            await append(journal, number, 1)
            journal.ack("a", number)
            return path.stat().st_size < grown // 2

        await until(shrunk)


async def test_rows_dropped_while_they_are_read_are_not_delivered(path: Path) -> None:
    """A read that crosses a drop sees the rows after it, and no point is counted twice."""
    telemetry = new_telemetry()
    async with journal_at(
        path, "a", telemetry=telemetry, max_bytes=400_000, recent_bytes=0
    ) as journal:
        seen = 0
        async with asyncio.timeout(30):
            for first in range(1, 1001, 10):
                rows, _ = await asyncio.gather(
                    journal.read("a", max_points=10),
                    journal.append(bulky_lines(first), received_at=1.0),
                )
                if rows and first % 40 == 1:
                    before = journal.cursor("a")
                    journal.ack("a", max(before, rows[-1].last))
                    seen += journal.cursor("a") - before

        assert telemetry.sink("a").dropped > 0
        assert seen > 0
        assert seen + telemetry.sink("a").dropped + journal.pending("a").points == 1000


async def test_a_read_between_a_drop_and_its_books_waits_for_them(path: Path) -> None:
    """The disk may know of a drop before the ledger does; then the ledger is asked again."""
    async with journal_at(path, "a", recent_bytes=0) as journal, asyncio.timeout(5):
        await append(journal, 1, 5)
        await append(journal, 6, 5)
        await journal._order.acquire()
        await journal._database.write(
            lambda connection: connection.execute("DELETE FROM journal_rows WHERE first = 1")
        )
        reading = asyncio.create_task(journal.read("a", max_points=5), name="reading")
        while not journal._order._waiters:
            await asyncio.sleep(0)
        journal._cursors.dropped(5)
        journal._order.release()
        rows = await reading

        assert [(row.first, row.last) for row in rows] == [(6, 10)]


async def test_rows_that_vanish_while_running_are_counted_and_stepped_over(path: Path) -> None:
    """The sink continues after them; health reports how many are missing."""
    telemetry = new_telemetry()
    async with journal_at(path, "a", recent_bytes=0, telemetry=telemetry) as journal:
        for first in (1, 6, 11):
            await append(journal, first, 5)
        await journal._database.write(
            lambda connection: connection.execute("DELETE FROM journal_rows WHERE first < 11")
        )
        (row,) = await journal.read("a", max_points=5)
        assert (row.first, row.last) == (11, 15)
        assert telemetry.sink("a").dropped == 10
        assert journal.pending("a").points == 5
        assert "10 points in" in str(journal.status().reason)
        assert str(path) in str(journal.status().reason)
        await append(journal, 16, 5)

    async with journal_at(path, "a") as journal:
        assert [*range(11, 21)] == await numbers_held(journal, "a")
        assert journal.status().reason is None


@pytest.mark.parametrize("max_points", [5, 1_000])
@pytest.mark.parametrize("column", ["gzip = zeroblob(50)", "points = 4", "received_at = 7.5"])
async def test_a_row_that_rots_while_running_is_not_sent(
    path: Path, column: str, max_points: int
) -> None:
    """Its checksum shows it, whichever column was hit; its time becomes a gap.

    It makes no difference whether the rows around it are read one by one or together.
    """
    coverage, telemetry = Coverage(compare_s=-1.0), new_telemetry()
    journal = journal_at(path, "a", recent_bytes=0, telemetry=telemetry, coverage=coverage)
    async with journal:
        for first in (1, 6, 11):
            await append(journal, first, 5)
        await journal._database.write(
            lambda connection: connection.execute(
                f"UPDATE journal_rows SET {column} WHERE first = 6"
            )
        )
        seen = []
        while rows := await journal.read("a", max_points=max_points):
            seen += numbers_in(rows)
            journal.ack("a", rows[-1].last)

        assert [*range(1, 6), *range(11, 16)] == seen
        assert telemetry.sink("a").dropped == 5
        assert "5 points in" in str(journal.status().reason)
        assert [gap.reason for gap in coverage.gaps()] == ["damage"]
    async with journal_at(path, "a") as journal:
        assert journal.status().reason is None


async def test_rows_that_are_gone_at_the_start_are_not_held(path: Path) -> None:
    """Holes in the sequence are counted, and stepped over by the sinks."""
    async with journal_at(path, "a", "b") as journal:
        for first in range(1, 31, 5):
            await append(journal, first, 5)
        journal.ack("b", 18)
        await journal._database.write(
            lambda connection: connection.execute(
                "DELETE FROM journal_rows WHERE first IN (1, 16, 26)"
            )
        )

    async with journal_at(path, "a", "b") as journal:
        assert missing_points(journal) == 15
        assert journal.pending("a").points == 15
        assert journal.pending("b").points == 5
        await append(journal, 31, 1)
        seen: list[int] = []
        while rows := await journal.read("a", max_points=1):
            seen += numbers_in(rows)
            journal.ack("a", rows[-1].last)

        assert [*range(6, 16), *range(21, 26), 31] == seen


# Damage


async def filled(path: Path, *sinks: str, rows: int = 60) -> None:
    """Leave a journal of rows of ten bulky points, about 24 kB each, behind."""
    async with journal_at(path, *(sinks or ("a",))) as journal:
        for number in range(rows):
            await journal.append(bulky_lines(number * 10 + 1), received_at=float(number))


def overwrite(path: Path, *, start: int, count: int) -> None:
    """Write nonsense over a part of the file."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xa5" * count)


def set_aside(path: Path) -> list[Path]:
    """Return the damaged files that were kept."""
    return sorted(path.parent.glob("journal.db.damaged-*"))


@pytest.mark.parametrize("where", [0.3, 0.6, 0.9])
async def test_rows_around_the_damage_are_saved(
    path: Path, where: float, caplog: pytest.LogCaptureFixture
) -> None:
    """The file is set aside, every row that can be read is kept, the rest is counted."""
    await filled(path)
    size = path.stat().st_size
    overwrite(path, start=int(size * where) // PAGE * PAGE, count=20 * PAGE)

    async with journal_at(path, "a") as journal:
        saved = await numbers_held(journal, "a")
        status = journal.status()

        assert 400 <= len(saved) < 600
        assert sorted(saved) == saved
        assert len(saved) == journal.pending("a").points == status.salvaged
        assert len(saved) + missing_points(journal) == 600
        assert f"{600 - len(saved)} are missing" in str(status.reason)
        assert "is damaged" in caplog.text
        await append(journal, 601, 1)
        assert [*saved, 601] == await numbers_held(journal, "a")

    assert len(set_aside(path)) == 1
    async with journal_at(path, "a") as journal:
        assert [*saved, 601] == await numbers_held(journal, "a")
        assert journal.status().salvaged == 0
    assert len(set_aside(path)) == 1


@pytest.mark.parametrize("left", [0.2, 0.5, 0.9])
async def test_a_file_cut_short_keeps_what_is_left(path: Path, left: float) -> None:
    """Rows in the missing part are counted, those before it are saved."""
    await filled(path)
    os.truncate(path, int(path.stat().st_size * left))

    async with journal_at(path, "a") as journal:
        saved = await numbers_held(journal, "a")
        status = journal.status()

        assert sorted(set(saved)) == saved
        assert (200 if left >= 0.5 else 0) <= len(saved) < 600
        assert len(saved) + missing_points(journal) == 600
        assert "is damaged" in str(status.reason) or "was damaged" in str(status.reason)
        await append(journal, 601, 1)
        assert [*saved, 601] == await numbers_held(journal, "a")
    assert len(set_aside(path)) == 1


async def test_an_emptied_file_is_not_taken_for_a_new_one(path: Path) -> None:
    """It is reported, and assigned numbers are never assigned again."""
    await filled(path, rows=5)
    os.truncate(path, 0)

    async with journal_at(path, "a") as journal:
        assert "0 points were saved" in str(journal.status().reason)
        await append(journal, 1, 1)
        (row,) = await journal.read("a", max_points=1)
        assert row.first > 50
    assert len(set_aside(path)) == 1


async def test_repaired_points_are_delivered_past_the_holes(path: Path) -> None:
    """A sink reads on behind the missing numbers, and its books balance."""
    await filled(path)
    overwrite(path, start=path.stat().st_size // 2 // PAGE * PAGE, count=20 * PAGE)

    async with journal_at(path, "a") as journal:
        held = journal.pending("a").points
        seen: list[int] = []
        while rows := await journal.read("a", max_points=10):
            seen += numbers_in(rows)
            journal.ack("a", rows[-1].last)
            assert held == len(seen) + journal.pending("a").points

        assert held == len(seen)


async def test_cursors_are_kept_when_they_can_be_read(path: Path) -> None:
    """A sink goes on where it was, and acked points are not counted as saved or missing."""
    async with journal_at(path, "a", "b") as journal:
        for number in range(60):
            await journal.append(bulky_lines(number * 10 + 1), received_at=float(number))
        journal.ack("a", 305)
        journal.ack("b", 600)
    overwrite(path, start=path.stat().st_size - 60 * PAGE, count=20 * PAGE)

    async with journal_at(path, "a", "b") as journal:
        assert journal.cursor("a") == 305
        assert journal.cursor("b") == 600
        assert (
            journal.status().salvaged
            == journal.pending("a").points
            == 295 - missing_points(journal)
        )
        assert journal.pending("b").points == 0


async def test_a_file_that_is_no_database_is_not_the_end(path: Path) -> None:
    """Nothing can be saved; that is reported, the file is kept, and numbers are not reused."""
    await filled(path, rows=5)
    overwrite(path, start=0, count=path.stat().st_size)

    async with journal_at(path, "a") as journal:
        assert await numbers_held(journal, "a") == []
        assert "0 points were saved" in str(journal.status().reason)
        await append(journal, 1, 1)
        (row,) = await journal.read("a", max_points=1)
        assert row.first > 50

    assert len(set_aside(path)) == 1


async def test_without_cursors_every_saved_point_is_sent_again(path: Path) -> None:
    """At least once: when it is unknown what was acked, all that is there counts as not."""
    await filled(path, rows=5)
    async with journal_at(path, "a") as journal:
        journal.ack("a", 20)
        (root,) = await on_disk(
            journal, "SELECT rootpage FROM sqlite_schema WHERE name = 'cursors'"
        )
        await append(journal, 51, 1)
    assert isinstance(root[0], int)
    overwrite(path, start=(root[0] - 1) * PAGE, count=PAGE)

    async with journal_at(path, "a") as journal:
        assert list(range(21, 52)) == await numbers_held(journal, "a")
        assert 31 == journal.pending("a").points == journal.status().salvaged
        assert missing_points(journal) == 0


async def test_a_row_that_does_not_unpack_counts_as_missing(path: Path) -> None:
    """A page may be whole for SQLite and its bytes still be wrong: gzip's checksum shows it."""
    await filled(path)
    async with journal_at(path, "a") as journal:

        def spoil(connection: Connection) -> None:
            connection.execute("UPDATE journal_rows SET gzip = zeroblob(99) WHERE first = 11")

        await journal._database.write(spoil)
    overwrite(path, start=path.stat().st_size - 60 * PAGE, count=20 * PAGE)

    async with journal_at(path, "a") as journal:
        saved = await numbers_held(journal, "a")

        assert set(range(11, 21)).isdisjoint(saved)
        assert len(saved) + missing_points(journal) == 600


@pytest.mark.parametrize("time_ns", [-1, -MAX_TIME_NS, MAX_TIME_NS])
async def test_a_state_of_any_time_that_a_point_can_have_is_no_damage_at_the_next_start(
    path: Path, time_ns: int
) -> None:
    """One from before 1970 is not kept: read back, it would look like a flipped bit."""
    states = LastStates()
    states.update([change("sensor.a", "on", time_ns), change("sensor.b", "on", 5)])
    async with journal_at(path, "a", last_states=states):
        pass

    restored = LastStates()
    async with journal_at(path, "a", last_states=restored) as journal:
        assert journal.status().reason is None
        assert restored.get("sensor.a") is None
        assert restored.get("sensor.b") == LastState("on", 5, 5)


async def test_gaps_around_points_of_absurd_times_can_be_read_at_the_next_start(path: Path) -> None:
    """A salvage bounds what it derives from the rows, and leaves out lines without a time."""
    async with journal_at(path, "a") as journal:
        for time in (b"-1000", b"1700", b"%d" % 10**30, b"garbage", b"%d" % MAX_TIME_NS):
            await journal.append(Lines(b"events value=1 %s\n" % time, 1), received_at=1.0)
        await journal._database.write(
            lambda connection: connection.execute("DELETE FROM journal_rows WHERE first = 2")
        )
    async with journal_at(path, "a", coverage=(coverage := Coverage())) as journal:
        assert journal.status().reason
        gaps = coverage.gaps()
        assert [gap.reason for gap in gaps] == ["damage"]

    async with journal_at(path, "a", coverage=(coverage := Coverage())) as journal:
        assert journal.status().reason is None
        assert coverage.gaps() == gaps


async def test_a_repair_that_was_interrupted_begins_again(path: Path) -> None:
    """A kill while rows are copied leaves the damaged file in its place."""
    await filled(path)
    overwrite(path, start=path.stat().st_size // 2 // PAGE * PAGE, count=20 * PAGE)
    await filled(path.with_name("journal.db.salvage"), rows=1)

    async with journal_at(path, "a") as journal:
        assert journal.pending("a").points > 300
    assert not path.with_name("journal.db.salvage").exists()


async def test_a_repair_that_was_interrupted_at_its_end_is_finished(path: Path) -> None:
    """Between the two renames there is no journal file."""
    await filled(path.with_name("journal.db.salvage"), rows=3)

    async with journal_at(path, "a") as journal:
        assert list(range(1, 31)) == await numbers_held(journal, "a")


def test_finishing_a_repair_leaves_an_undamaged_journal_alone(path: Path) -> None:
    """Without a salvage there is nothing to finish."""
    path.write_bytes(b"the journal")
    path.with_name("journal.db.salvage").write_bytes(b"half a copy")
    finish_replacing(path)

    assert path.read_bytes() == b"the journal"


async def test_a_commit_reaches_the_disk_before_it_is_acknowledged(path: Path) -> None:
    """In the mode of SQLite that syncs the write-ahead log at each commit; see also test-real."""

    def modes(connection: Connection) -> tuple[object, ...]:
        pragmas = ("journal_mode", "synchronous")
        return tuple(connection.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas)

    async with journal_at(path, "a") as journal:
        found = await journal._database.write(modes)

    full = 2
    assert found == ("wal", full)


def test_a_row_knows_its_last_number() -> None:
    """Rows hold consecutive points."""
    assert Row(10, 5, b"", 0.0).last == 14


def test_the_free_bytes_of_the_disk_are_those_of_its_folder(path: Path) -> None:
    """The file itself need not exist yet."""
    assert free_disk_bytes(path) > 0
