"""The journal on disk: an ordered log in SQLite with one cursor per sink.

What is done to the file, in its own thread, is in `transactions.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Self

from app.backfill.coverage import Coverage
from app.backfill.last_states import LastStates
from app.health import JournalStatus
from app.journal.checks import check_contents
from app.journal.cursors import Cursors, Hole, Overflow, Pending
from app.journal.lent import UncommittedRows
from app.journal.repair import Salvage, salvage
from app.journal.rows import RowBuffer, compress, numbered
from app.journal.transactions import (
    MIGRATIONS,
    Appended,
    Bounds,
    Tidying,
    append_lines,
    around,
    retained_rows,
    rows_after,
    take_stock,
    tidy_block,
)
from app.model import LastState, Lines, Row, Times, spanned
from app.runtime.errors import JournalFull, StorageDamaged, StorageError
from app.runtime.logging import RateLimitedLog
from app.runtime.metrics import Telemetry
from app.runtime.sqlite import RESTART_ADVICE, Connection, Database, finish_replacing, opening

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

_ROWS_PER_PAGE = 50
_MAX_WAL_BYTES = 4_000_000

_FULL_REASONS: dict[Overflow, str] = {
    "drop_oldest": (
        "The journal is full (JOURNAL_MAX_MB, JOURNAL_MIN_FREE_MB) and drops the oldest points."
        " Mend the sink that is behind, or give the journal more room."
    ),
    "drop_new": (
        "The journal is full (JOURNAL_MAX_MB, JOURNAL_MIN_FREE_MB) and drops new points."
        " Mend the sink that is behind, or give the journal more room."
    ),
}


def free_disk_bytes(path: Path) -> int:
    """Return the bytes that are free on the disk of `path`."""
    return shutil.disk_usage(path.parent).free


class SqliteJournal:
    """Points between receipt and the sinks, through crash and restart.

    Use as `async with`. Sequence numbers count points, start at 1 and are never reused. A sink
    that is new starts at the tail; the cursor of one that is not configured any more stays.
    """

    def __init__(
        self,
        path: Path,
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
        """Take the bounds: of the file with its WAL, and of the disk that is never used.

        The newest rows stay in memory up to `recent_bytes`, so that a sink that keeps up
        costs no reading. `housekeeping_s` is how long a settled cursor may stay unsaved,
        `save_states_s` how long the newest states of entities may.
        """
        self._path = path
        self._sinks = tuple(sinks)
        self._bounds = Bounds(path, max_bytes, min_free_bytes, overflow, free_bytes)
        self._recent_bytes = recent_bytes
        self._housekeeping_s = housekeeping_s
        self._save_states_s = save_states_s
        self._coverage = coverage or Coverage()
        self._last_states = last_states or LastStates()
        self._cursors = Cursors(sinks, telemetry=telemetry)
        self._recent = RowBuffer()
        self._lent = UncommittedRows(self._cursors)
        self._lent_times: Times | None = None
        """When what was lent since the last commit happened."""
        self._durable_through = 0
        self._order = asyncio.Lock()
        self._appending: set[asyncio.Task[None]] = set()
        self._closing = contextlib.AsyncExitStack()
        self._database: Database | None = None
        self._saved: Mapping[str, int] = {}
        self._tidied = 0
        """Up to which number rows were deleted."""
        self._states_saved_at = time.monotonic()
        self._oldest_at: dict[str, float | None] = {}
        self._bytes = 0
        self._full = False
        self._salvage: Salvage | None = None
        self._unreadable_points = 0
        """Lost on the disk since the journal was opened."""
        self._damage: StorageDamaged | None = None
        """What the disk said when rows could not be read."""

    async def __aenter__(self) -> Self:
        """Open, or create, the file; what cannot be read any more is set aside and counted.

        Raises:
            StorageNewer: a newer version of this service wrote the file.
            StorageFull: a damaged file cannot be copied, the disk is full.
            StorageError: the folder or file cannot be opened.
        """
        with opening(self._path):
            finish_replacing(self._path)
            try:
                await self._open()
            except StorageDamaged as exc:
                self._salvage = await salvage(
                    self._path, migrations=MIGRATIONS, sinks=self._sinks, cause=exc
                )
                await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the append at hand, save the cursors and close the file."""
        if self._appending:
            await asyncio.wait(self._appending)
        async with self._closing:
            await self._commit_at_last()
            try:
                await self._tidy(closing=True)
            except StorageError as exc:
                # Nothing is lost: what was settled since the last save is delivered once more.
                logger.warning("The cursors of the journal were not saved: %s", exc)
        self._database = None

    @property
    def orphaned(self) -> list[str]:
        """The sinks with a cursor that are not configured any more; they go first at the bound."""
        return self._cursors.orphaned

    @property
    def missing_points(self) -> int:
        """How many sequence numbers a damaged file took with it and some sink still waited for."""
        return sum(hole.points for hole in self._cursors.holes)

    async def append(self, lines: Lines, *, received_at: float) -> None:
        """Make points durable at the tail; `received_at` is that of the oldest, since the epoch.

        When the caller is cancelled, an append that has begun still ends and is counted.

        Raises:
            JournalFull: there is no room and the policy is `drop_new`; nothing was taken.
            StorageError: nothing was taken; try again.
        """
        await self._to_its_end(self._append(lines, received_at))

    @property
    def uncommitted_points(self) -> int:
        """How many points sinks may have although they are only in memory."""
        return self._lent.points

    @property
    def uncommitted_since(self) -> float | None:
        """When the oldest of them was received, in seconds since the epoch."""
        return self._lent.since

    async def append_uncommitted(self, lines: Lines, *, received_at: float) -> None:
        """Let the sinks have points at the tail that could not be appended; see `commit`.

        They are numbered for good in this process. One that ends before they are durable
        loses what no sink has taken, and gives their numbers to others in its next life.
        """
        members = await asyncio.to_thread(compress, lines)
        async with self._order:  # nobody is giving out numbers now
            first = self._cursors.tail + 1
            self._lent_times = spanned(self._lent_times, lines.times)
            self._lent.lend(numbered(members, first=first, received_at=received_at))

    async def commit(self) -> None:
        """Make what is lent durable, as far as a sink still needs it.

        Raises:
            StorageError: it cannot be yet; nothing was changed.
        """
        if self._cursors.tail > self._durable_through:
            await self._to_its_end(self._append(Lines(b"", 0), 0.0))

    async def read(self, sink: str, *, max_points: int, after: int = 0) -> list[Row]:
        """Return the next rows the sink has not settled, in order, at least one if any.

        The first may be settled in part; then come whole rows while all fit `max_points`. With
        `after`, rows that end there or before are left out as well.

        Raises:
            StorageError: the rows cannot be read.
        """
        ledger = self._cursors
        while ledger.points_between(max(ledger.acked[sink], after), ledger.tail) > 0:
            cursor = ledger.acked[sink]
            start = ledger.skip_holes(max(cursor, after))
            rows = self._recent.after(start, max_points=max_points)
            if rows is None:
                rows = self._lent.after(start, max_points=max_points)
            if rows is None:
                work = partial(rows_after, cursor=start, max_points=max_points)
                rows = await self._read_disk(work)
            rows = _consecutive(rows, start, ledger)
            if rows and cursor == ledger.acked[sink]:
                if after <= cursor:
                    self._oldest_at[sink] = rows[0].received_at
                return rows
            # An append at its bound has dropped these rows, and perhaps not said so yet.
            async with self._order:
                if cursor == ledger.acked[sink]:
                    await self._lose(start + 1, await self._readable_from(start) - 1)
        return []

    async def _read_disk(self, work: Callable[[Connection], list[Row]]) -> list[Row]:
        try:
            return await self._open_database().read(work)
        except StorageDamaged as exc:
            self._damage = exc
            raise

    async def _readable_from(self, cursor: int) -> int:
        """Return the first number after a cursor that can be read, or the one after the tail."""
        rows = await self._read_disk(partial(rows_after, cursor=cursor, max_points=1))
        first_in_memory = self._cursors.tail + 1
        for row in (*self._recent.all(), *self._lent.rows):
            if row.last > cursor:
                first_in_memory = row.first
                break
        return min([first_in_memory, *(row.first for row in rows)])

    async def _lose(self, first: int, last: int) -> None:
        """Count points that the disk has lost, and open a gap for their time."""
        if last < first:
            return
        before, after = await self._open_database().read(partial(around, first=first, last=last))
        points = self._cursors.lost(first, last)
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
            first,
            kind="damage",
            topic="drops",
        )

    def cursor(self, sink: str) -> int:
        """Return the last sequence number the sink has settled."""
        return self._cursors.acked[sink]

    def ack(self, sink: str, through: int) -> None:
        """Note that the sink is done with every point up to `through`.

        It is on disk with the next append, or within a second.
        """
        self._cursors.ack(sink, through)
        if self._lent.points and not self._order.locked():
            self._lent.release()

    async def retained(self, *, after: int = 0) -> AsyncIterator[Row]:
        """Yield the rows in the file, settled or not, that hold a point after a number, in order.

        The newest two minutes of live points stay, and longer while a gap is open that they touch.

        Raises:
            StorageError: the rows cannot be read.
        """
        while True:
            rows, last = await self._open_database().read(
                partial(retained_rows, after=after, limit=_ROWS_PER_PAGE)
            )
            for row in rows:
                yield row
            if last is None:
                return
            after = last

    def pending(self, sink: str, *, after: int = 0) -> Pending:
        """Return what the sink has not settled, and its age as of the last read.

        With `after`, only what comes after that number.
        """
        cursor = self._cursors.acked[sink]
        start = max(cursor, after)
        points = self._cursors.points_between(start, self._cursors.tail)
        if not points:
            return Pending(points=0, oldest_at=None)
        row = self._recent.holding(start + 1) or self._lent.holding(start + 1)
        if row is not None:
            return Pending(points=points, oldest_at=row.received_at)
        return Pending(points=points, oldest_at=self._oldest_at.get(sink))

    def held_at_start(self, sink: str) -> int:
        """Return how many points waited for the sink when the journal was opened."""
        return self._cursors.held_at_start(sink)

    async def grown(self, sink: str, *, points: int) -> None:
        """Wait until at least `points` are pending for the sink."""
        await self._cursors.grown(sink, points=points)

    async def run(self) -> None:
        """Save cursors and delete what every sink has settled, for ever."""
        while True:
            await asyncio.sleep(self._housekeeping_s)
            try:
                await self._tidy()
            except StorageError as exc:
                limited_log.warning(
                    "Housekeeping of the journal failed, it is tried again: %s",
                    exc,
                )
            else:
                limited_log.resolved("Housekeeping of the journal goes on")

    def status(self) -> JournalStatus:
        """Return the journal's part of the snapshot."""
        return JournalStatus(
            bytes=self._bytes,
            max_bytes=self._bounds.max_bytes,
            free_disk_bytes=self._free_disk_bytes(),
            durable=True,
            salvaged=self._salvage.points if self._salvage else 0,
            appended_points=self._cursors.appended_points,
            reason=self._reason(),
        )

    def _reason(self) -> str | None:
        if self._full:
            return _FULL_REASONS[self._bounds.overflow]
        if self._damage:
            return f"{self._path} is damaged: {self._damage}. {RESTART_ADVICE}"
        reasons = [self._salvage.reason] if self._salvage else []
        if self._unreadable_points:
            reasons.append(
                f"{self._unreadable_points} points in {self._path} could not be read any more and"
                " are missing. Their time is a gap, see /api/v1/gaps. Check the disk."
            )
        return " ".join(reasons) or None

    def _open_database(self) -> Database:
        assert self._database is not None, "the journal is not open"
        return self._database

    async def _open(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            wal_bytes = min(_MAX_WAL_BYTES, self._bounds.max_bytes // 8)
            database = await stack.enter_async_context(
                Database(
                    self._path, migrations=MIGRATIONS, wal_bytes=wal_bytes, check=check_contents
                )
            )
            stock = await database.write(
                partial(take_stock, sinks=self._sinks, bounds=self._bounds)
            )
            self._closing = stack.pop_all()
        self._database = database
        self._cursors.open(tail=stock.tail, cursors=stock.cursors, holes=stock.holes)
        self._durable_through = stock.tail
        self._saved = stock.cursors
        remembered = stock.remembered
        self._coverage.open(remembered.covered, remembered.gaps, was_absent=stock.was_unused)
        self._last_states.open(remembered.states, through=remembered.states_through)
        self._oldest_at = dict(stock.oldest_at)
        self._bytes = stock.bytes
        for sink in self._cursors.orphaned:
            held = self._cursors.held(sink)
            logger.warning("The journal holds %d points for %r, which is not set up", held, sink)

    async def _to_its_end(self, work: Coroutine[object, object, None]) -> None:
        """Do something that goes on when the caller is cancelled; closing waits for it."""
        task = asyncio.create_task(work, name="journal.append")
        self._appending.add(task)
        task.add_done_callback(self._appending.discard)
        await asyncio.shield(task)

    async def _commit_at_last(self) -> None:
        with contextlib.suppress(StorageError):
            await self.commit()
        if self._lent.points:
            logger.error("Lost %d points that were never durable", self._lent.points)

    async def _append(self, lines: Lines, received_at: float) -> None:
        async with self._order:  # rows come back in the order of their sequence numbers
            cursors = dict(self._cursors.acked)
            holes = tuple(self._cursors.unsaved_holes)
            unsaved = self._coverage.unsaved(
                spanned(self._lent_times, lines.times),
                # A commit of what was lent has no time of its own.
                received_at=self._lent.since or received_at or time.time(),
                first=self._durable_through + 1,
            )
            work = partial(
                append_lines,
                lent=tuple(self._lent.rows),
                lines=lines,
                tail=self._cursors.tail,
                received_at=received_at,
                cursors=cursors,
                unsaved=unsaved,
                configured=self._cursors.acked_by_configured,
                unsaved_holes=holes,
                bounds=self._bounds,
            )
            try:
                appended = await self._open_database().write(work)
            except StorageError as exc:
                self._full = self._full or isinstance(exc, JournalFull)
                self._lent.release()  # what was settled while they were being written
                raise
            # From here on nothing waits: rows, cursors and counters are of one moment.
            self._full = self._still_full(appended)
            self._saved = cursors
            self._lent_times = None
            self._coverage.saved(unsaved)
            self._cursors.saved_holes(holes)
            self._bytes = appended.bytes
            if appended.dropped_through:
                self._drop(appended.dropped_through, appended.oldest_at)
            self._recent.forget(self._cursors.acked_by_all)
            self._recent.extend(self._lent.written())
            self._recent.extend(appended.rows)
            self._recent.shrink(self._recent_bytes)
            self._cursors.appended(lines.points)
            self._durable_through = self._cursors.tail

    def _free_disk_bytes(self) -> int | None:
        try:
            return self._bounds.free_bytes(self._path)
        except OSError:
            return None  # a disk that is gone: the next commit says so

    def _still_full(self, appended: Appended) -> bool:
        """Whether a person should look: not only in the very moment of a drop."""
        if appended.dropped_through:
            return True
        drained = self._cursors.acked_by_all == self._cursors.tail
        return self._full and not drained and appended.room < self._bounds.max_bytes // 4

    def _drop(self, through: int, oldest_at: float | None) -> None:
        for sink, cursor in self._cursors.acked.items():
            if cursor < through:
                self._oldest_at[sink] = oldest_at
        self._cursors.dropped(through)
        limited_log.error(
            "The journal is full: dropped the oldest points up to number %d", through, topic="drops"
        )

    async def _tidy(self, *, closing: bool = False) -> None:
        """Save what changed since the last time, and delete what nobody needs any more."""
        deletable = min(self._cursors.acked_by_all, self._coverage.keep_from - 1)
        states = self._states_to_save(closing=closing)
        unsaved = self._coverage.unsaved()
        if (
            self._saved == self._cursors.acked
            and self._tidied == deletable
            and not (states or unsaved.covered or unsaved.gaps or self._durable_holes())
        ):
            return
        more = True
        while more:  # each block is a transaction of its own, so that appends come between
            tidying = Tidying(
                # A cursor may stand among the lent rows; the tail on disk is before them.
                cursors={
                    sink: min(cursor, self._durable_through)
                    for sink, cursor in self._cursors.acked.items()
                },
                deletable=deletable,
                unsaved=unsaved,
                states=states,
                # What is not yet appended is recalled from the rows behind this number.
                states_through=self._durable_through,
                holes=self._durable_holes(),
            )
            more, self._bytes = await self._open_database().write(
                partial(tidy_block, tidying=tidying, path=self._path)
            )
            self._saved = tidying.cursors
            self._coverage.saved(unsaved)
            self._cursors.saved_holes(tidying.holes)
            self._last_states.saved(states)
            unsaved, states = self._coverage.unsaved(), {}
        self._tidied = deletable

    def _durable_holes(self) -> Sequence[Hole]:
        """Return the unsaved holes before the tail on disk.

        Numbers after it are given out again when the process is killed.
        """
        return tuple(
            hole
            for hole in self._cursors.unsaved_holes
            if hole.first + hole.points - 1 <= self._durable_through
        )

    def _states_to_save(self, *, closing: bool) -> Mapping[str, LastState]:
        now_s = time.monotonic()
        if not closing and now_s - self._states_saved_at < self._save_states_s:
            return {}
        self._states_saved_at = now_s
        return self._last_states.unsaved()


def _consecutive(rows: list[Row], cursor: int, ledger: Cursors) -> list[Row]:
    """Return the rows after the cursor up to the first point that is held and in none of them.

    A row may be on disk before its append has ended; it is not counted until then.
    """
    for index, row in enumerate(rows):
        if row.last > ledger.tail or ledger.points_between(cursor, row.first - 1) > 0:
            return rows[:index]
        cursor = row.last
    return rows
