"""The batcher: encoded points wait here, in memory, for the next commit to the journal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

from app.errors import JournalFull, StorageError
from app.journal.coverage import Coverage
from app.journal.ledger import Overflow
from app.logs import Brake
from app.model import Lines, Times
from app.telemetry import Telemetry

logger = logging.getLogger(__name__)


class Journal(Protocol):
    """What the intake needs of a journal."""

    async def append(self, lines: Lines, *, received_at: float) -> None:
        """Make points durable, or raise `JournalFull` or another `StorageError`."""


class Intake:
    """A bounded queue in front of the journal, so that the reader never waits.

    What leaves it is counted in the same synchronous stretch in which `pending_points`
    shrinks: taken in = journaled + dropped + pending, at any moment.
    """

    def __init__(
        self,
        journal: Journal,
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
        """Take the rules of a commit, the bound, and seconds between attempts on a sick disk.

        `coverage` is told when points are dropped, so that they can be read back; `clock` gives
        seconds since the epoch, as `received_at` does.
        """
        self.durable = True
        """False while the journal cannot make points durable."""
        self.reason: str | None = None
        """One sentence for a person while commits fail."""
        self.losing = False
        """True once events were dropped while commits fail: disk and memory both refuse."""
        self._journal = journal
        self._telemetry = telemetry
        self._coverage = coverage or Coverage(kept=False)
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
        self._oldest_at = 0.0
        self._wanted_points = commit_points
        self._enough = asyncio.Event()
        self._closed = False
        self._brake = Brake(every_s=60.0)

    @property
    def pending_points(self) -> int:
        """Points received and not yet committed, those of a commit under way included."""
        return self._pending_points

    @property
    def oldest_at(self) -> float | None:
        """When the oldest pending point was received, or None when none is pending."""
        return self._oldest_at if self._pending_points else None

    def put(self, lines: Lines, *, received_at: float) -> None:
        """Take points for the next commit; at the bound, drop by the policy and count."""
        points = lines.points
        if not points:
            return
        if self._closed:
            self._telemetry.events_dropped(points, cause="shutdown")
            return
        if self._pending_points + points > self._max_pending_points and not self._fits(points):
            self._drop(lines, cause="journal_stalled")
            return
        if not self._pending_points:
            self._oldest_at = received_at
        self._pending_points += points
        self._queued_points += points
        self._queue.put_nowait((lines, received_at))
        if self._queued_points >= self._wanted_points:
            self._enough.set()

    def close(self) -> None:
        """Take nothing more; `run` commits what is left and ends."""
        self._closed = True
        self._queue.put_nowait(None)
        self._enough.set()

    async def run(self) -> None:
        """Commit what is put until closed and empty.

        A commit begins when `commit_points` are there, and at the latest
        `commit_interval_s` after the oldest of them was received.
        """
        while (batch := await self._next()) is not None:
            lines, received_at = batch
            while not await self._commit(lines, received_at):
                await self._sleep(self._retry_s)

    async def _next(self) -> tuple[Lines, float] | None:
        first = await self._queue.get()
        if first is None:
            return None
        lines, received_at = first
        self._oldest_at = received_at
        self._queued_points -= lines.points
        await self._wait_for_more(lines.points, received_at)
        return self._merged(lines), received_at

    async def _wait_for_more(self, points: int, received_at: float) -> None:
        """Wait until a commit is worth its while; nobody is woken for a single batch."""
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
        while points < self._commit_points and not self._queue.empty():
            batch = self._queue.get_nowait()
            if batch is None:
                self._queue.put_nowait(None)  # closed: the next round shall see it, too
                break
            data.append(batch[0].data)
            points += batch[0].points
            times = _spanned(times, batch[0].times)
            self._queued_points -= batch[0].points
        return Lines(b"".join(data), points, times) if len(data) > 1 else first

    async def _commit(self, lines: Lines, received_at: float) -> bool:
        """Append once; return whether the batch is done with, one way or the other."""
        appending = asyncio.create_task(self._append(lines, received_at), name="intake.append")
        try:
            return await asyncio.shield(appending)
        except asyncio.CancelledError:
            # An append that has begun ends in the journal whether we wait or not; only
            # its end tells how to count it.
            await asyncio.wait({appending})
            raise

    async def _append(self, lines: Lines, received_at: float) -> bool:
        started = time.perf_counter()
        try:
            await self._journal.append(lines, received_at=received_at)
        except JournalFull:
            self._pending_points -= lines.points
            self._drop(lines, cause="journal_full")
            return True
        except StorageError as exc:
            self._failed(exc)
            return False
        self._pending_points -= lines.points
        seconds = time.perf_counter() - started
        self._telemetry.batch_committed(lines.points, seconds=seconds, received_at=received_at)
        self._recovered()
        return True

    def _fits(self, points: int) -> bool:
        """Make room by the policy; what a commit has in hand stays."""
        in_hand = self._pending_points - self._queued_points
        if self._overflow == "drop_new" or in_hand + points > self._max_pending_points:
            return False
        while self._pending_points + points > self._max_pending_points:
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
        if (held_back := self._brake.admit(cause)) is not None:
            logger.error(
                "Dropped %d events before they were durable: %s (%d more times since the last)",
                lines.points,
                cause,
                held_back,
            )

    def _failed(self, exc: StorageError) -> None:
        self._telemetry.commit_failed()
        if self.durable:
            logger.error("The journal cannot make events durable, trying again: %s", exc)
        self.durable = False
        self.reason = (
            f"Events cannot be made durable: {exc}. They wait in memory"
            " (INFLUXDB_MAX_PENDING_POINTS); look at the disk of DATA_DIR."
        )

    def _recovered(self) -> None:
        if not self.durable:
            logger.info("The journal makes events durable again")
        self.durable = True
        self.losing = False
        self.reason = None


def _spanned(some: Times | None, others: Times | None) -> Times | None:
    """Return the span that holds both."""
    if some is None or others is None:
        return some or others
    return Times(min(some.oldest_ns, others.oldest_ns), max(some.newest_ns, others.newest_ns))
