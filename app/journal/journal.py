"""The journal: an ordered log in SQLite with one cursor per sink.

`transactions.py` has what is done to the file, in its own thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

from app.backfill.coverage import Coverage
from app.backfill.last_states import LastStates
from app.health import JournalStatus
from app.journal.cursors import Cursors, Overflow, Span
from app.journal.housekeeping import Housekeeping
from app.journal.repair import Repair, check_contents, repair
from app.journal.rows import PACKED, RecentRows, rows_of, unpacked
from app.journal.transactions import (
    MIGRATIONS,
    Appended,
    Bounds,
    Metadata,
    append_lines,
    retained_rows,
    rows_after,
    take_stock,
    times_around,
)
from app.model import Lines, Pending, Row, Times, spanned
from app.runtime.errors import JournalFull, StorageDamaged, StorageError
from app.runtime.logging import RateLimitedLog
from app.runtime.metrics import Telemetry
from app.runtime.sqlite import RESTART_ADVICE, Connection, Database, finish_replacing, opening
from app.runtime.sqlite_pages import SMALL_PAGE_BYTES

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

_RECORD_SINKS = frozenset({"embedded"})
"""They read the lines by which the journal knows its points, others those for the database."""
_ROWS_PER_PAGE = 50
_MAX_WAL_BYTES = 4_000_000

_FULL_REASONS: dict[Overflow, str] = {
    "drop_oldest": (
        "The journal is full (JOURNAL_MAX_MB, JOURNAL_MIN_FREE_MB) and drops the oldest points."
        " Fix the sink that is behind, or give the journal more room."
    ),
    "drop_new": (
        "The journal is full (JOURNAL_MAX_MB, JOURNAL_MIN_FREE_MB) and drops new points."
        " Fix the sink that is behind, or give the journal more room."
    ),
}


def free_disk_bytes(path: Path) -> int:
    """Return the bytes that are free on the disk of `path`."""
    return shutil.disk_usage(path.parent).free


class SqliteJournal:
    """Durable log of points between receipt and the sinks; it survives crashes and restarts.

    Use as `async with`. Sequence numbers count points, start at 1 and are never reused. A new
    sink starts at the tail; the cursor of a sink that is not configured any more stays.

    While commits fail, points are numbered and buffered in memory after the tail, where sinks
    read them like any others, until a commit succeeds or every configured sink has acked them.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        sinks: Sequence[str],
        max_bytes: int,
        telemetry: Telemetry,
        coverage: Coverage | None = None,
        last_states: LastStates | None = None,
        min_free_bytes: int = 0,
        overflow: Overflow = "drop_oldest",
        recent_bytes: int = 8_000_000,
        housekeeping_s: float = 1.0,
        save_states_s: float = 10.0,
        free_bytes: Callable[[Path], int] = free_disk_bytes,
    ) -> None:
        """`max_bytes` bounds the file with its WAL, `min_free_bytes` are left free on the disk.

        Without a path all is in memory and lost when the process ends. The newest rows stay in
        memory up to `recent_bytes`, so that a sink that keeps up reads no disk. A cursor is saved
        within `housekeeping_s`, the newest states of entities within `save_states_s`.
        """
        self._path = path
        self._database = Database(
            path,
            migrations=MIGRATIONS,
            page_bytes=SMALL_PAGE_BYTES,
            wal_bytes=min(_MAX_WAL_BYTES, max_bytes // 8),
            check=check_contents,
        )
        self._bounds = Bounds(path, max_bytes, min_free_bytes, overflow, free_bytes)
        self._coverage = coverage or Coverage()
        self._last_states = last_states or LastStates()
        self._cursors = Cursors(sinks, telemetry=telemetry)
        self._recent = RecentRows(max_bytes=recent_bytes)
        self._housekeeping = Housekeeping(
            cursors=self._cursors,
            recent=self._recent,
            coverage=self._coverage,
            last_states=self._last_states,
            interval_s=housekeeping_s,
            save_states_s=save_states_s,
        )
        self._order = asyncio.Lock()
        """Held while numbers are given out."""
        self._closing = contextlib.AsyncExitStack()
        self._oldest_at: dict[str, float | None] = {}
        self._full = False
        self._repair: Repair | None = None
        self._unreadable_points = 0
        """Points lost on the disk since the journal was opened."""
        self._damage: StorageDamaged | None = None
        """Why rows could not be read."""

    async def __aenter__(self) -> Self:
        """Open, or create, the file; a damaged one is set aside and repaired.

        Raises:
            StorageNewer: a newer version of this service wrote the file.
            StorageFull: a damaged file cannot be copied, the disk is full.
            StorageError: the folder or file cannot be opened.
        """
        if self._path is None:
            await self._open()
            return self
        with opening(self._path):
            finish_replacing(self._path)
            try:
                await self._open()
            except StorageDamaged as exc:
                self._repair = await repair(
                    self._path, migrations=MIGRATIONS, sinks=self._cursors.configured, cause=exc
                )
                await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the append under way, save the cursors and close the file."""
        async with self._closing:
            with contextlib.suppress(StorageError):
                await self.commit()
            if lost := self._recent.uncommitted_points:
                logger.error("Lost %d points that were never durable", lost)
            try:
                await self._housekeeping.tidy(self._database, closing=True)
            except StorageError as exc:
                # Nothing is lost: what was acked since the last save is delivered once more.
                logger.warning("The cursors of the journal were not saved: %s", exc)

    @property
    def orphaned(self) -> list[str]:
        """The sinks with a cursor that are not configured any more; they go first at the bound."""
        return self._cursors.orphaned

    @property
    def uncommitted_points(self) -> int:
        """How many points sinks can read although they are only in memory."""
        return self._recent.uncommitted_points

    @property
    def uncommitted_since(self) -> float | None:
        """When the oldest uncommitted point was received, in seconds since the epoch."""
        rows = self._recent.uncommitted
        return rows[0].received_at if rows else None

    async def append(
        self, lines: Lines, *, received_at: float, counted: Callable[[], None] = lambda: None
    ) -> None:
        """Make points durable at the tail; `received_at` is that of the oldest, since the epoch.

        When the caller is cancelled, an append that has begun still ends and is counted: this
        returns, with the cancellation, only then. `counted` is called as the points are counted.

        Raises:
            JournalFull: there is no room and the policy is `drop_new`; nothing was appended.
            StorageError: nothing was appended; try again.
        """
        task = asyncio.create_task(self._append(lines, received_at, counted), name="journal.append")
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})
            task.exception()  # or asyncio would log that it was never retrieved
            raise

    async def append_uncommitted(self, lines: Lines, *, received_at: float) -> None:
        """Let sinks read points from memory that could not be appended; see `commit`.

        If the process ends before they are durable, points that no sink has acked are lost, and
        the next process gives their numbers to others.
        """
        async with self._order:
            rows = await asyncio.to_thread(
                rows_of, lines, first=self._cursors.tail + 1, received_at=received_at
            )
            self._recent.add_uncommitted(rows, lines.times)
            self._cursors.appended(lines.points)

    async def commit(self) -> None:
        """Make uncommitted points durable, unless every configured sink has acked them.

        Raises:
            StorageError: nothing was changed; try again.
        """
        await self.append(Lines(b"", 0), received_at=0.0)

    async def read(self, sink: str, *, max_points: int, after: int = 0) -> list[Row]:
        """Return the next rows the sink has not acked, in order, at least one if any.

        The first may be acked in part; then come whole rows while all fit `max_points`. With
        `after`, rows that end there or before are left out as well.

        Raises:
            StorageError: the rows cannot be read.
        """
        cursors = self._cursors
        while cursors.points_between(max(cursors.acked[sink], after), cursors.tail) > 0:
            cursor = cursors.acked[sink]
            start = cursors.skip_holes(max(cursor, after))
            rows = self._recent.after(start, max_points=max_points)
            if rows is None:
                rows = await self._read_disk(
                    partial(rows_after, cursor=start, max_points=max_points)
                )
            rows = _consecutive(rows, start, cursors)
            if rows and cursor == cursors.acked[sink]:
                if after <= cursor:
                    self._oldest_at[sink] = rows[0].received_at
                for index, row in enumerate(rows):
                    if row.gzip.startswith(PACKED):
                        rows[index] = unpacked(row, for_database=sink not in _RECORD_SINKS)
                return rows
            # An append at its bound has dropped these rows, and may not have counted them yet.
            async with self._order:
                if cursor == cursors.acked[sink]:
                    await self._lose(Span(start + 1, await self._readable_from(start) - 1))
        return []

    async def _read_disk(self, work: Callable[[Connection], list[Row]]) -> list[Row]:
        try:
            return await self._database.read(work)
        except StorageDamaged as exc:
            self._damage = exc
            raise

    async def _readable_from(self, cursor: int) -> int:
        """Return the first number after a cursor that can be read, or the one after the tail."""
        on_disk = await self._read_disk(partial(rows_after, cursor=cursor, max_points=1))
        rows = [*on_disk, *(row for row in self._recent if row.last > cursor)]
        return min((row.first for row in rows), default=self._cursors.tail + 1)

    async def _lose(self, span: Span) -> None:
        """Count points that cannot be read from disk, and open a gap for their time."""
        if span.last < span.first:
            return
        before, after = await self._database.read(partial(times_around, span=span))
        points = self._cursors.lost(span)
        self._unreadable_points += points
        covered = self._coverage.covered
        start_ns = before.newest_ns if before else covered.since_ns if covered else None
        end_ns = after.oldest_ns if after else covered.through_ns if covered else None
        if start_ns is not None and end_ns is not None:
            self._coverage.lost(Times(min(start_ns, end_ns), max(start_ns, end_ns)), "damage")
        limited_log.error(
            "%d points in %s cannot be read any more, from number %d on",
            points,
            self._path,
            span.first,
            kind="damage",
            topic="drops",
        )

    def cursor(self, sink: str) -> int:
        """Return the last sequence number the sink has acked."""
        return self._cursors.acked[sink]

    def ack(self, sink: str, through: int) -> None:
        """Note that the sink is done with every point up to `through`.

        It is on disk with the next append, or within a second.
        """
        self._cursors.ack(sink, through)
        if self._recent.uncommitted_points and not self._order.locked():
            self._discard_acked()

    async def retained(self, *, after: int = 0) -> AsyncIterator[Row]:
        """Yield the committed rows that hold a point after a number, acked or not, in order.

        The newest two minutes of live points stay, and longer while a gap is open that they touch.

        Raises:
            StorageError: the rows cannot be read.
        """
        while True:
            rows, last = await self._database.read(
                partial(retained_rows, after=after, limit=_ROWS_PER_PAGE)
            )
            for row in rows:
                yield unpacked(row, for_database=False)
            if last is None:
                return
            after = last

    def pending(self, sink: str, *, after: int = 0) -> Pending:
        """Return what the sink has not acked, and its age as of the last read.

        With `after`, only what comes after that number.
        """
        start = max(self._cursors.acked[sink], after)
        points = self._cursors.points_between(start, self._cursors.tail)
        if not points:
            return Pending(points=0, oldest_at=None)
        rows = self._recent.after(start, max_points=1)
        oldest_at = rows[0].received_at if rows else self._oldest_at.get(sink)
        return Pending(points=points, oldest_at=oldest_at)

    async def grown(self, sink: str, *, points: int) -> None:
        """Wait until at least `points` are pending for the sink."""
        await self._cursors.grown(sink, points=points)

    async def run(self) -> None:
        """Save cursors and delete rows that are not needed any more, forever."""
        await self._housekeeping.run(self._database)

    def status(self) -> JournalStatus:
        """Return the journal's part of the snapshot."""
        return JournalStatus(
            bytes=self._housekeeping.size.total_bytes,
            max_bytes=self._bounds.max_bytes,
            free_disk_bytes=self._free_disk_bytes(),
            durable=self._path is not None,
            salvaged=self._repair.points if self._repair else 0,
            appended_points=self._cursors.appended_points,
            reason=self._reason(),
        )

    def _reason(self) -> str | None:
        if self._full:
            return _FULL_REASONS[self._bounds.overflow]
        if self._damage:
            return f"{self._path} is damaged: {self._damage}. {RESTART_ADVICE}"
        reasons = [self._repair.reason] if self._repair else []
        if self._unreadable_points:
            reasons.append(
                f"{self._unreadable_points} points in {self._path} could not be read any more and"
                " are missing. Their time is a gap, see /api/v1/gaps. Check the disk."
            )
        return " ".join(reasons) or None

    async def _open(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._database)
            stock = await self._database.write(
                partial(take_stock, sinks=self._cursors.configured, bounds=self._bounds)
            )
            self._closing = stack.pop_all()
        self._cursors.open(tail=stock.tail, cursors=stock.cursors, holes=stock.holes)
        self._recent.committed((), through=stock.tail, acked=stock.tail)
        self._housekeeping.saved = stock.cursors
        saved = stock.saved
        self._coverage.open(saved.covered, saved.gaps, was_absent=stock.was_unused)
        self._last_states.open(saved.states, through=saved.states_through)
        self._oldest_at = dict(stock.oldest_at)
        self._housekeeping.size = stock.size
        for sink in self._cursors.orphaned:
            held = self._cursors.points_between(self._cursors.acked[sink], stock.tail)
            logger.warning("The journal holds %d points for %r, which is not set up", held, sink)

    async def _append(self, lines: Lines, received_at: float, counted: Callable[[], None]) -> None:
        async with self._order:  # rows are read in the order of their sequence numbers
            if not lines.points and self._cursors.tail == self._recent.durable_through:
                return
            uncommitted = self._recent.uncommitted
            metadata = Metadata(
                cursors=dict(self._cursors.acked),
                holes=tuple(self._cursors.unsaved_holes),
                coverage=self._coverage.changes_to_save(
                    spanned(self._recent.uncommitted_times, lines.times),
                    # A commit of uncommitted points has no time of its own.
                    received_at=(
                        uncommitted[0].received_at if uncommitted else received_at or time.time()
                    ),
                    first=self._recent.durable_through + 1,
                ),
            )
            work = partial(
                append_lines,
                uncommitted=uncommitted,
                lines=lines,
                tail=self._cursors.tail,
                received_at=received_at,
                configured=self._cursors.acked_by_configured,
                metadata=metadata,
                bounds=self._bounds,
            )
            try:
                appended = await self._database.write(work)
            except StorageError as exc:
                self._full = self._full or isinstance(exc, JournalFull)
                self._discard_acked()  # what was acked during the attempt
                raise
            # From here on nothing waits: rows, cursors and counters are consistent.
            self._housekeeping.saved = metadata.cursors
            self._housekeeping.size = appended.size
            self._coverage.mark_saved(metadata.coverage)
            if metadata.holes:
                self._cursors.saved_holes(metadata.holes)
            if self._full or appended.dropped_through:
                self._note_fullness(appended)
            if uncommitted:
                self._cursors.journaled(self._recent.uncommitted_points)
            self._cursors.appended(lines.points)
            self._recent.committed(
                appended.rows, through=self._cursors.tail, acked=self._cursors.acked_by_all
            )
            counted()

    def _discard_acked(self) -> None:
        """Remove uncommitted rows that every configured sink has acked; never during an append.

        A sink that is not configured loses them, counted: it may never come back.
        """
        for row in self._recent.discard_uncommitted(self._cursors.acked_by_configured):
            self._cursors.lost(Span(row.first, row.last))
            self._cursors.journaled(row.points)

    def _free_disk_bytes(self) -> int | None:
        if self._path is None:
            return None
        try:
            return self._bounds.free_bytes(self._path)
        except OSError:
            return None  # a disk that is gone: the next commit reports it

    def _note_fullness(self, appended: Appended) -> None:
        """Count what was dropped; the journal counts as full until there is room again."""
        through = appended.dropped_through
        if not through:
            drained = self._cursors.acked_by_all == self._cursors.tail
            self._full = not drained and appended.room < self._bounds.max_bytes // 4
            return
        self._full = True
        for sink, cursor in self._cursors.acked.items():
            if cursor < through:
                self._oldest_at[sink] = appended.oldest_at
        self._cursors.dropped(through)
        limited_log.error(
            "The journal is full: dropped the oldest points up to number %d", through, topic="drops"
        )


def _consecutive(rows: list[Row], cursor: int, cursors: Cursors) -> list[Row]:
    """Return the rows after the cursor, up to the first pending point that no row contains.

    A row may be on disk before its append has ended; it is not counted until then.
    """
    for index, row in enumerate(rows):
        if row.last > cursors.tail or cursors.points_between(cursor, row.first - 1) > 0:
            return rows[:index]
        cursor = row.last
    return rows
