"""The batcher: encoded points wait here, in memory, for the next commit to the journal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, Protocol, TypeAlias

from app.backfill.coverage import Coverage
from app.journal.cursors import Overflow
from app.model import Lines, spanned
from app.runtime.errors import JournalFull, StorageDamaged, StorageError
from app.runtime.logging import RateLimitedLog
from app.runtime.metrics import Telemetry
from app.runtime.sqlite import RESTART_ADVICE

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

_LATE_COMMITS = 20
"""How many times `commit_points` a late commit may take: on a busy machine commits are slow, not
points."""

_Batch: TypeAlias = tuple[Lines, float]
"""Points, and when the oldest was received, in seconds since the epoch."""

_LOOK_AT_THE_DISK = "Look at the disk of DATA_DIR; the commit is tried again every second."


class JournalWriter(Protocol):
    """The part of a journal that the batcher uses."""

    @property
    def uncommitted_points(self) -> int:
        """How many points sinks can read although they are not durable."""
        ...

    @property
    def uncommitted_since(self) -> float | None:
        """When the oldest uncommitted point was received, in seconds since the epoch."""
        ...

    async def append(
        self, lines: Lines, *, received_at: float, counted: Callable[[], None]
    ) -> None:
        """Make points durable, or raise `JournalFull` or another `StorageError`.

        Calls `counted` as they are counted, also when the caller is cancelled meanwhile.
        """

    async def append_uncommitted(self, lines: Lines, *, received_at: float) -> None:
        """Let sinks read points that could not be made durable."""

    async def commit(self) -> None:
        """Make uncommitted points durable, or raise a `StorageError`."""


class Batcher:
    """A bounded queue in front of the journal, so that the reader never waits.

    While commits fail, sinks read points from memory in the same order, and a commit is tried
    again every `retry_s`. Up to half of the bound may be uncommitted; other points wait in the
    queue, where the overflow policy decides which are dropped.

    Points are counted as they leave: taken in = journaled + dropped + pending, at any moment.
    """

    def __init__(
        self,
        journal: JournalWriter,
        *,
        telemetry: Telemetry,
        coverage: Coverage | None = None,
        commit_interval_s: float = 0.1,
        commit_points: int = 1000,
        max_pending_points: int = 20_000,
        overflow: Overflow = "drop_oldest",
        retry_s: float = 1.0,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """A commit begins at `commit_points`, or `commit_interval_s` after the oldest one.

        Dropped points become a gap in `coverage`; `clock` gives seconds since the epoch, as
        `received_at` does.
        """
        self.reason: str | None = None
        """One sentence for a person while commits fail."""
        self.losing = False
        """Whether events were dropped because neither disk nor memory takes them."""
        self._journal = journal
        self._telemetry = telemetry
        self._coverage = coverage or Coverage(is_persistent=False)
        self._max_pending_points = max_pending_points
        self._overflow: Overflow = overflow
        self._retry_s = retry_s
        self._sleep = sleep
        self._queue = _Queue(
            commit_points=commit_points, commit_interval_s=commit_interval_s, clock=clock
        )
        self._put_points = 0
        self._committing_points = 0
        """Those that have left the queue and are not counted yet."""
        self._committing_since = 0.0

    @property
    def durable(self) -> bool:
        """False while the journal cannot make points durable."""
        return self.reason is None

    @property
    def pending_points(self) -> int:
        """Points received and not journaled yet, those of a commit under way included."""
        return self._queue.points + self._committing_points + self._journal.uncommitted_points

    @property
    def oldest_at(self) -> float | None:
        """When the oldest pending point was received, or None when none is pending."""
        uncommitted_since = self._journal.uncommitted_since
        if uncommitted_since is not None:
            return uncommitted_since
        return self._committing_since if self._committing_points else self._queue.oldest_at

    @property
    def put_points(self) -> int:
        """How many points have ever been put; see `is_done_with`."""
        return self._put_points

    def is_done_with(self, put_points: int) -> bool:
        """Whether the first so many points that were put are committed or dropped."""
        return not self._journal.uncommitted_points and (
            self._put_points - self.pending_points >= put_points
        )

    def put(self, lines: Lines, *, received_at: float) -> None:
        """Queue points for the next commit; at the bound, drop by the policy and count."""
        points = lines.points
        if not points:
            return
        if self._queue.is_closed:
            self._telemetry.events_dropped(points, cause="shutdown")
            return
        if self.pending_points + points > self._max_pending_points and not self._fits(points):
            self._drop(lines, cause="journal_stalled")
            return
        self._put_points += points
        self._queue.put(lines, received_at)

    def close(self) -> None:
        """Accept no more points; `run` commits what is left and ends."""
        self._queue.close()

    async def run(self) -> None:
        """Commit queued points until closed and empty.

        A commit begins once `commit_points` are queued, and at the latest `commit_interval_s`
        after the oldest was received.
        """
        while (batch := await self._queue.next()) is not None:
            if not await self._commit(*batch):
                await self._append_uncommitted(*batch)
                await self._retry()

    async def _retry(self) -> None:
        """Serve new points to the sinks from memory until the journal commits again.

        Once closed, pass the remaining points to the sinks and try one last commit here: the
        sinks have the rest of SHUTDOWN_TIMEOUT, and the journal tries again when it closes.
        """
        is_last = False
        while not is_last:
            await self._sleep(self._retry_s)
            is_last = self._queue.is_closed
            while self._queue.points and (
                self._queue.is_closed
                or 2 * self._journal.uncommitted_points < self._max_pending_points
            ):
                await self._append_uncommitted(*self._queue.take())
            try:
                await self._journal.commit()
            except StorageError as exc:
                self._failed(exc)
            else:
                self._recovered()
                return

    async def _append_uncommitted(self, lines: Lines, received_at: float) -> None:
        self._committing_points, self._committing_since = lines.points, received_at
        await self._journal.append_uncommitted(lines, received_at=received_at)
        self._committing_points = 0

    async def _commit(self, lines: Lines, received_at: float) -> bool:
        """Append once; return False if the commit failed and the batch is still uncommitted."""
        self._committing_points, self._committing_since = lines.points, received_at
        started = time.perf_counter()

        def counted() -> None:
            self._committing_points = 0
            seconds = time.perf_counter() - started
            self._telemetry.batch_committed(lines.points, seconds=seconds, received_at=received_at)
            if self.reason is not None:
                self._recovered()

        try:
            await self._journal.append(lines, received_at=received_at, counted=counted)
        except JournalFull:
            self._committing_points = 0
            self._drop(lines, cause="journal_full")
        except StorageError as exc:
            self._failed(exc)
            return False
        return True

    def _fits(self, points: int) -> bool:
        """Make room by the policy; points in a commit under way stay."""
        in_commit = self.pending_points - self._queue.points
        if self._overflow == "drop_new" or in_commit + points > self._max_pending_points:
            return False
        while self.pending_points + points > self._max_pending_points:
            self._drop(self._queue.drop_oldest(), cause="journal_stalled")
        return True

    def _drop(self, lines: Lines, *, cause: Literal["journal_stalled", "journal_full"]) -> None:
        self._telemetry.events_dropped(lines.points, cause=cause)
        self._coverage.lost(lines.times, cause)
        self.losing = self.losing or not self.durable
        limited_log.error(
            "Dropped %d events before they were durable: %s",
            lines.points,
            cause,
            kind=cause,
            topic="drops",
        )

    def _failed(self, exc: StorageError) -> None:
        limited_log.error(
            "Events are not durable, the commit is tried again: %s",
            exc,
            kind=type(exc).__name__,
        )
        advice = RESTART_ADVICE if isinstance(exc, StorageDamaged) else _LOOK_AT_THE_DISK
        self.reason = (
            f"Events are not durable: {exc}. They go to the sinks from memory"
            f" (INFLUXDB_MAX_PENDING_POINTS). {advice}"
        )

    def _recovered(self) -> None:
        limited_log.resolved("The journal makes events durable again")
        self.losing = False
        self.reason = None


def _joined_for_database(batches: Sequence[Lines]) -> bytes | None:
    if all(lines.database is None for lines in batches):
        return None
    return b"".join([lines.data if lines.database is None else lines.database for lines in batches])


class _Queue:
    """Batches in the order of their receipt.

    Counted in points, not in batches: a batch is a frame, of one event or of thousands.
    """

    def __init__(
        self, *, commit_points: int, commit_interval_s: float, clock: Callable[[], float]
    ) -> None:
        self.points = 0
        self.is_closed = False
        self._commit_points = commit_points
        self._commit_interval_s = commit_interval_s
        self._clock = clock
        self._batches: deque[_Batch] = deque()
        self._wanted_points = 1
        self._arrived = asyncio.Event()

    @property
    def oldest_at(self) -> float | None:
        """When the first batch was received; None when there is none."""
        return self._batches[0][1] if self._batches else None

    def put(self, lines: Lines, received_at: float) -> None:
        self._batches.append((lines, received_at))
        self.points += lines.points
        if self.points >= self._wanted_points:
            self._arrived.set()

    def close(self) -> None:
        self.is_closed = True
        self._arrived.set()

    async def next(self) -> _Batch | None:
        """Wait for `commit_points` or the commit interval, whichever comes first, and `take`.

        Return None when closed and empty.
        """
        while not self._batches:
            if self.is_closed:
                return None
            self._wanted_points = 1
            self._arrived.clear()
            await self._arrived.wait()
        if self.points < self._commit_points and not self.is_closed:
            self._wanted_points = self._commit_points
            self._arrived.clear()
            waited_s = max(0.0, self._clock() - self._batches[0][1])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._commit_interval_s - waited_s)):
                    await self._arrived.wait()
        return self.take()

    def take(self) -> _Batch:
        """Remove what is queued, up to a late commit's worth, and return it as one batch."""
        first, received_at = self._batches.popleft()
        batches, points, times = [first], first.points, first.times
        while self._batches and points < _LATE_COMMITS * self._commit_points:
            lines, _ = self._batches.popleft()
            batches.append(lines)
            points += lines.points
            times = spanned(times, lines.times)
        self.points -= points
        if len(batches) == 1:
            return first, received_at
        data = b"".join([lines.data for lines in batches])
        return Lines(data, points, times, _joined_for_database(batches)), received_at

    def drop_oldest(self) -> Lines:
        """Remove the first batch and return its lines."""
        lines, _ = self._batches.popleft()
        self.points -= lines.points
        return lines
