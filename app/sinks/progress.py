"""The position of a sink in the journal: what it accepted, and what is on its disk.

Most databases acknowledge a write when it is on disk; then both are the same, and the cursor
moves with every acknowledgement. Others lose the points of their last seconds when their process
is killed. For these the cursor follows once the flush interval has passed and the same process
still runs. After a restart of the database, reading begins again at the cursor.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from app.model import Pending, Row
from app.runtime.metrics import Telemetry
from app.sinks.batches import Batch
from app.sinks.outcomes import ServerProcess

_ON_DISK = ServerProcess()
_RETRY_S = 1.0


class Log(Protocol):
    """The journal, as far as delivery reads it."""

    async def read(self, sink: str, *, max_points: int, after: int = 0) -> list[Row]:
        """Return the next rows after the cursor and `after`, one or more if there are any."""
        ...

    def cursor(self, sink: str) -> int:
        """Return the last sequence number that the sink has acked."""
        ...

    def ack(self, sink: str, through: int) -> None:
        """Move the cursor forward."""
        ...

    def pending(self, sink: str, *, after: int = 0) -> Pending:
        """Return the points after the cursor and `after`."""
        ...

    async def grown(self, sink: str, *, points: int) -> None:
        """Wait until there are at least this many points after the cursor."""
        ...


class _Done(NamedTuple):
    """Points that are not sent again unless the database loses them; without their lines."""

    at_s: float
    first: int
    last: int
    received_at: float
    seconds: float
    dead: Sequence[int]
    expired: int
    left_out: int
    damaged: int


class Progress:
    """One sink's position in the journal.

    The cursor and the telemetry move in the same synchronous stretch: buffered at start +
    journaled = written + dead-lettered + dropped + left out + buffered, at any moment.
    """

    def __init__(
        self,
        journal: Log,
        sink: str,
        *,
        telemetry: Telemetry,
        clock: Callable[[], float],
        process: Callable[[], Awaitable[ServerProcess | None]] | None = None,
    ) -> None:
        """`process` returns the database's process; None: accepted points are on disk at once."""
        self.unconfirmed_through = 0
        """The last accepted point, if it may not be on the database's disk yet; 0 if none."""
        self._journal = journal
        self._sink = sink
        self._telemetry = telemetry
        self._clock = clock
        self._find_process = process
        self._process = None if process else _ON_DISK
        self._unconfirmed: deque[_Done] = deque()
        self._next_check_s = -math.inf
        self._connection_lost = False

    @property
    def position(self) -> int:
        """Sequence number of the last point that was accepted, dropped or dead-lettered."""
        return max(self._journal.cursor(self._sink), self.unconfirmed_through)

    @property
    def unacked_points(self) -> int:
        """How many points come after the cursor."""
        return self._journal.pending(self._sink).points

    def pending(self) -> Pending:
        """Return the points after the position."""
        return self._journal.pending(self._sink, after=self.unconfirmed_through)

    async def grown(self, points: int) -> None:
        """Wait until there are at least this many points after the position."""
        if self.unconfirmed_through:
            points += self.unacked_points - self.pending().points
        await self._journal.grown(self._sink, points=points)

    def done(
        self,
        batch: Batch,
        *,
        seconds: float = 0.0,
        dead: Sequence[int] = (),
        expired: int = 0,
        damaged: int = 0,
    ) -> None:
        """Move the position behind a batch; its points are counted when the cursor follows.

        `dead` are the numbers of those that are dead letters now; `expired` are older than the
        database's retention, `damaged` could not be read; the others are written, but for those
        that the sink does not get. `seconds` is how long the request took.
        """
        now_s, first, last = self._clock(), batch.first, batch.last
        kinds = (dead, expired, batch.left_out, damaged)
        done = _Done(now_s, first, last, batch.received_at, seconds, *kinds)
        if self._process is not None and not self._process.flush_s:
            self._ack(done)
        else:
            self._unconfirmed.append(done)
            self.unconfirmed_through = last

    def connection_lost(self) -> None:
        """Note that the database may have restarted, or been replaced."""
        on_disk = self._process is not None and not self._process.flush_s
        self._connection_lost = on_disk or bool(self._unconfirmed)

    @property
    def check_in_s(self) -> float | None:
        """Seconds until `check` is due; None when it is not needed."""
        if self._find_process is None:
            return None
        if self._process is None or self._connection_lost:
            due_s = self._next_check_s
        elif self._unconfirmed:
            due_s = max(self._next_check_s, self._unconfirmed[0].at_s + self._process.flush_s)
        else:
            return None
        return max(0.0, due_s - self._clock())

    async def check(self) -> int:
        """Ack what is on the database's disk by now; return how many points to send again.

        Call it when `check_in_s` is 0. Nothing changes when the database does not respond.
        """
        if self._find_process is None:
            return 0
        requested_s = self._clock()
        found = await self._find_process()
        if found is None:
            self._next_check_s = self._clock() + _RETRY_S
            return 0
        known, self._process = self._process, found
        lost, self._connection_lost = self._connection_lost, False
        if not found.flush_s:
            self._ack_until(requested_s)
            return 0
        is_same = known is not None and (
            known.started == found.started if found.started else not lost
        )
        if not is_same:
            points = self.unacked_points - self.pending().points
            self._unconfirmed.clear()
            self.unconfirmed_through = 0
            return points
        self._ack_until(requested_s - found.flush_s)
        # Twice per interval, so that a steady stream does not cost a request per batch.
        self._next_check_s = self._clock() + found.flush_s / 2
        return 0

    def _ack_until(self, at_s: float) -> None:
        while self._unconfirmed and self._unconfirmed[0].at_s <= at_s:
            self._ack(self._unconfirmed.popleft())
        if not self._unconfirmed:
            self.unconfirmed_through = 0

    def _ack(self, done: _Done) -> None:
        # The journal may have dropped, and counted, the oldest ones in between.
        cursor = max(self._journal.cursor(self._sink), done.first - 1)
        points = max(0, done.last - cursor)
        if points:
            self._journal.ack(self._sink, done.last)
        dead = sum(number > cursor for number in done.dead)
        damaged = min(done.damaged, points)
        left_out = min(done.left_out, points - dead - damaged)
        expired = min(done.expired, points - dead - damaged - left_out)
        written = points - dead - expired - damaged - left_out
        if dead:
            self._telemetry.points_dead_lettered(self._sink, dead)
        if expired:
            self._telemetry.points_expired(self._sink, expired)
        if left_out:
            self._telemetry.points_left_out(self._sink, left_out)
        if damaged:
            self._telemetry.points_dropped(self._sink, damaged)
        if written or not (done.dead or done.expired or done.damaged or done.left_out):
            self._telemetry.batch_written(
                self._sink, written, seconds=done.seconds, received_at=done.received_at
            )
