"""The position of a sink in the journal: what it accepted, and what is on its disk.

Most databases acknowledge a write when it is on disk; then both are the same, and the cursor
moves with every acknowledgement. Others lose the points of their last seconds when their process
is killed. For these the cursor follows once the flush interval has passed and the same process
still runs. After a restart of the database, reading begins again at the cursor.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from app.model import Pending, Row
from app.sinks.outcomes import Batch, ServerProcess

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


Count = Callable[[int], None]
"""Counts the points of a span in the telemetry, when they are acked."""


@dataclass(frozen=True, slots=True)
class _Done:
    first: int
    last: int
    at_s: float
    count: Count


class Progress:
    """One sink's position in the journal.

    The cursor and the telemetry move in the same synchronous stretch: buffered at start +
    journaled = written + dead-lettered + dropped + buffered, at any moment.
    """

    def __init__(
        self,
        journal: Log,
        sink: str,
        *,
        clock: Callable[[], float],
        process: Callable[[], Awaitable[ServerProcess | None]] | None = None,
    ) -> None:
        """`process` returns the database's process; None: accepted points are on disk at once."""
        self._journal = journal
        self._sink = sink
        self._clock = clock
        self._ask = process
        self._process = None if process else _ON_DISK
        self._retained: deque[_Done] = deque()
        self._next_check_s = -math.inf
        self._connection_lost = False

    @property
    def position(self) -> int:
        """Sequence number of the last point that was accepted, dropped or dead-lettered."""
        cursor = self._journal.cursor(self._sink)
        return max(cursor, self._retained[-1].last) if self._retained else cursor

    @property
    def retained_points(self) -> int:
        """How many accepted points may not be on the database's disk yet."""
        if not self._retained:
            return 0
        cursor = self._journal.cursor(self._sink)
        return sum(_points_after(cursor, done) for done in self._retained)

    async def read(self, *, max_points: int, after: int = 0) -> list[Row]:
        """Return the next rows after the position and `after`."""
        after = max(after, self.position)
        if after == self._journal.cursor(self._sink):
            return await self._journal.read(self._sink, max_points=max_points)
        return await self._journal.read(self._sink, max_points=max_points, after=after)

    def pending(self) -> Pending:
        """Return the points after the position."""
        if not self._retained:
            return self._journal.pending(self._sink)
        return self._journal.pending(self._sink, after=self.position)

    async def grown(self, *, points: int) -> None:
        """Wait until there are at least this many points after the position."""
        await self._journal.grown(self._sink, points=points + self.retained_points)

    def done(self, span: Batch, count: Count) -> None:
        """Move the position behind a span; it is counted when the cursor follows."""
        done = _Done(span.first, span.last, self._clock(), count)
        if self._process is not None and not self._process.flush_s:
            self._ack(done)
        else:
            self._retained.append(done)

    def connection_lost(self) -> None:
        """Note that the database may have restarted, or been replaced."""
        on_disk = self._process is not None and not self._process.flush_s
        self._connection_lost = on_disk or bool(self._retained)

    @property
    def check_in_s(self) -> float | None:
        """Seconds until `check` is due; None when it is not needed."""
        if self._ask is None:
            return None
        if self._process is None or self._connection_lost:
            due_s = self._next_check_s
        elif self._retained:
            due_s = max(self._next_check_s, self._retained[0].at_s + self._process.flush_s)
        else:
            return None
        return max(0.0, due_s - self._clock())

    async def check(self) -> int:
        """Ack what is on the database's disk by now; return how many points to send again.

        Call it when `check_in_s` is 0. Nothing changes when the database does not respond.
        """
        if self._ask is None:
            return 0
        requested_s = self._clock()
        found = await self._ask()
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
            points = self.retained_points
            self._retained.clear()
            return points
        self._ack_until(requested_s - found.flush_s)
        # Twice per interval, so that a steady stream does not cost a request per batch.
        self._next_check_s = self._clock() + found.flush_s / 2
        return 0

    def _ack_until(self, at_s: float) -> None:
        while self._retained and self._retained[0].at_s <= at_s:
            self._ack(self._retained.popleft())

    def _ack(self, done: _Done) -> None:
        # Fewer than the span holds if the journal has dropped, and counted, some in between.
        points = _points_after(self._journal.cursor(self._sink), done)
        if points:
            self._journal.ack(self._sink, done.last)
        done.count(points)


def _points_after(cursor: int, done: _Done) -> int:
    return max(0, done.last - max(cursor, done.first - 1))
