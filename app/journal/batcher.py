"""The batcher: encoded points wait here, in memory, for the next commit to the journal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

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

_LOOK_AT_THE_DISK = "Look at the disk of DATA_DIR; the commit is tried again every second."


class JournalWriter(Protocol):
    """The part of a journal that the batcher uses."""

    @property
    def uncommitted_points(self) -> int:
        """How many points sinks can read although they are not durable."""
        ...

    @property
    def uncommitted_since(self) -> float | None:
        """When the oldest of them was received, in seconds since the epoch."""
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
        self.durable = True
        """False while the journal cannot make points durable."""
        self.reason: str | None = None
        """One sentence for a person while commits fail."""
        self.losing = False
        """Whether events were dropped because neither disk nor memory takes them."""
        self._journal = journal
        self._telemetry = telemetry
        self._coverage = coverage or Coverage(is_persistent=False)
        self._commit_interval_s = commit_interval_s
        self._commit_points = commit_points
        self._max_pending_points = max_pending_points
        self._overflow: Overflow = overflow
        self._retry_s = retry_s
        self._clock = clock
        self._sleep = sleep
        # Bounded by points, not by batches: a batch is a frame, of one event or of thousands.
        self._queue: asyncio.Queue[tuple[Lines, float] | None] = asyncio.Queue()
        self._queued_points = 0
        self._pending_points = 0
        self._put_points = 0
        self._oldest_at = 0.0
        self._wanted_points = commit_points
        self._enough = asyncio.Event()
        self._closed = False

    @property
    def pending_points(self) -> int:
        """Points received and not journaled yet, those of a commit under way included."""
        return self._pending_points + self._journal.uncommitted_points

    @property
    def oldest_at(self) -> float | None:
        """When the oldest pending point was received, or None when none is pending."""
        uncommitted_since = self._journal.uncommitted_since
        if uncommitted_since is not None:
            return uncommitted_since
        return self._oldest_at if self._pending_points else None

    @property
    def put_points(self) -> int:
        """How many points have ever been put; see `is_done_with`."""
        return self._put_points

    def is_done_with(self, put_points: int) -> bool:
        """Whether the first so many points that were put are committed or dropped."""
        return not self._journal.uncommitted_points and (
            self._put_points - self._pending_points >= put_points
        )

    def put(self, lines: Lines, *, received_at: float) -> None:
        """Queue points for the next commit; at the bound, drop by the policy and count."""
        points = lines.points
        if not points:
            return
        if self._closed:
            self._telemetry.events_dropped(points, cause="shutdown")
            return
        if self.pending_points + points > self._max_pending_points and not self._fits(points):
            self._drop(lines, cause="journal_stalled")
            return
        if not self._pending_points:
            self._oldest_at = received_at
        self._put_points += points
        self._pending_points += points
        self._queued_points += points
        self._queue.put_nowait((lines, received_at))
        if self._queued_points >= self._wanted_points:
            self._enough.set()

    def close(self) -> None:
        """Accept no more points; `run` commits what is left and ends."""
        self._closed = True
        self._queue.put_nowait(None)
        self._enough.set()

    async def run(self) -> None:
        """Commit what is put until closed and empty.

        A commit begins when `commit_points` are there, and at the latest
        `commit_interval_s` after the oldest of them was received.
        """
        while (batch := await self._next()) is not None:
            if not await self._commit(*batch):
                await self._append_uncommitted(*batch)
                await self._retry()

    async def _retry(self) -> None:
        """Give what comes to the sinks from memory until the journal commits again.

        Once closed, all that is left goes to the sinks and one last commit is tried here: sinks
        have the rest of the time to stop, and the journal tries again when it is closed.
        """
        is_last = False
        while not is_last:
            await self._sleep(self._retry_s)
            is_last = self._closed
            while self._closed or (2 * self._journal.uncommitted_points < self._max_pending_points):
                if self._queue.empty() or (batch := await self._next(waits=False)) is None:
                    break
                await self._append_uncommitted(*batch)
            try:
                await self._journal.commit()
            except StorageError as exc:
                self._failed(exc)
            else:
                self._recovered()
                return

    async def _append_uncommitted(self, lines: Lines, received_at: float) -> None:
        await self._journal.append_uncommitted(lines, received_at=received_at)
        self._pending_points -= lines.points

    async def _next(self, *, waits: bool = True) -> tuple[Lines, float] | None:
        """Return what is queued as one batch, up to a commit's worth; None when closed and empty.

        With `waits`, a commit's worth or the commit interval is waited for.
        """
        if (first := await self._queue.get()) is None:
            self._queue.put_nowait(None)
            return None
        lines, self._oldest_at = first
        self._queued_points -= lines.points
        if waits:
            await self._wait_for_more(lines.points, self._oldest_at)
        return self._merged(lines), self._oldest_at

    async def _wait_for_more(self, points: int, received_at: float) -> None:
        """Wait for `commit_points` or the commit interval, whichever comes first."""
        self._wanted_points = self._commit_points - points
        if self._queued_points >= self._wanted_points or self._closed:
            return
        self._enough.clear()
        waited_s = max(0.0, self._clock() - received_at)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._commit_interval_s - waited_s)):
                await self._enough.wait()

    def _merged(self, first: Lines) -> Lines:
        data, points, times = [first.data], first.points, first.times
        while points < _LATE_COMMITS * self._commit_points and not self._queue.empty():
            if (batch := self._queue.get_nowait()) is None:
                self._queue.put_nowait(None)  # the next call of `_next` has to see it, too
                break
            lines = batch[0]
            data.append(lines.data)
            points += lines.points
            times = spanned(times, lines.times)
            self._queued_points -= lines.points
        return Lines(b"".join(data), points, times) if len(data) > 1 else first

    async def _commit(self, lines: Lines, received_at: float) -> bool:
        """Append once; return False when the batch has to be kept because the commit failed."""
        started = time.perf_counter()

        def counted() -> None:
            self._pending_points -= lines.points
            seconds = time.perf_counter() - started
            self._telemetry.batch_committed(lines.points, seconds=seconds, received_at=received_at)
            self._recovered()

        try:
            await self._journal.append(lines, received_at=received_at, counted=counted)
        except JournalFull:
            self._pending_points -= lines.points
            self._drop(lines, cause="journal_full")
        except StorageError as exc:
            self._failed(exc)
            return False
        return True

    def _fits(self, points: int) -> bool:
        """Make room by the policy; points in a commit under way stay."""
        in_hand = self.pending_points - self._queued_points
        if self._overflow == "drop_new" or in_hand + points > self._max_pending_points:
            return False
        while self.pending_points + points > self._max_pending_points:
            oldest = self._queue.get_nowait()
            assert oldest is not None, "nothing is put after close"
            self._pending_points -= oldest[0].points
            self._queued_points -= oldest[0].points
            self._drop(oldest[0], cause="journal_stalled")
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
        self._telemetry.commit_failed()
        limited_log.error(
            "Events are not durable, the commit is tried again: %s",
            exc,
            kind=type(exc).__name__,
        )
        self.durable = False
        advice = RESTART_ADVICE if isinstance(exc, StorageDamaged) else _LOOK_AT_THE_DISK
        self.reason = (
            f"Events are not durable: {exc}. They go to the sinks from memory"
            f" (INFLUXDB_MAX_PENDING_POINTS). {advice}"
        )

    def _recovered(self) -> None:
        limited_log.resolved("The journal makes events durable again")
        self.durable = True
        self.losing = False
        self.reason = None
