"""The journal in memory: for those who would rather lose points than write to a disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Self

from app.health import JournalStatus
from app.journal.cursors import Cursors, Overflow, Pending
from app.journal.rows import RowBuffer, compress, numbered
from app.model import Lines, Row
from app.runtime.errors import JournalFull
from app.runtime.metrics import Telemetry

_FULL_REASONS: dict[Overflow, str] = {
    "drop_oldest": (
        "The journal in memory is full and drops the oldest points."
        " Mend the sink that is behind, or set JOURNAL=sqlite."
    ),
    "drop_new": (
        "The journal in memory is full and drops new points."
        " Mend the sink that is behind, or set JOURNAL=sqlite."
    ),
}


class MemoryJournal:
    """Points between receipt and the sinks, lost when the process ends.

    Use as `async with`; its face and its contract are those of `SqliteJournal`, durability
    apart.
    """

    def __init__(
        self,
        *,
        sinks: Sequence[str],
        max_bytes: int,
        telemetry: Telemetry,
        overflow: Overflow = "drop_oldest",
    ) -> None:
        """Take the names of the sinks and the bytes that compressed points may take."""
        self._max_bytes = max_bytes
        self._overflow: Overflow = overflow
        self._cursors = Cursors(sinks, telemetry=telemetry)
        self._rows = RowBuffer()
        self._full = False

    async def __aenter__(self) -> Self:
        """Return the journal; there is nothing to open."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave what is held to be counted; it is gone with the process."""

    @property
    def orphaned(self) -> list[str]:
        """The sinks with a cursor that are not configured: none, memory knows no past."""
        return self._cursors.orphaned

    async def append(self, lines: Lines, *, received_at: float) -> None:
        """Take points at the tail; `received_at` is that of the oldest, since the epoch.

        Raises:
            JournalFull: there is no room and the policy is `drop_new`; nothing was taken.
        """
        members = await asyncio.to_thread(compress, lines)
        # From here on nothing waits: rows, cursors and counters are of one moment.
        rows = numbered(members, first=self._cursors.tail + 1, received_at=received_at)
        incoming = RowBuffer()
        incoming.extend(rows)
        self._make_room(incoming.bytes)
        self._rows.extend(rows)
        self._cursors.appended(lines.points)

    @property
    def uncommitted_points(self) -> int:
        """Return 0: what is appended is as safe as it will be."""
        return 0

    @property
    def uncommitted_since(self) -> float | None:
        """Return None, for the same reason."""
        return None

    async def append_uncommitted(self, lines: Lines, *, received_at: float) -> None:
        """Take points as `append` does.

        Raises:
            JournalFull: there is no room and the policy is `drop_new`; nothing was taken.
        """
        await self.append(lines, received_at=received_at)

    async def commit(self) -> None:
        """Do nothing: nothing here is ever durable."""

    async def read(self, sink: str, *, max_points: int, after: int = 0) -> list[Row]:
        """Return the next rows the sink has not settled, in order, at least one if any.

        The first may be settled in part; then come whole rows while all fit `max_points`. With
        `after`, rows that end there or before are left out as well.
        """
        return self._rows.after(self._start(sink, after), max_points=max_points) or []

    def cursor(self, sink: str) -> int:
        """Return the last sequence number the sink has settled."""
        return self._cursors.acked[sink]

    async def retained(self, *, after: int = 0) -> AsyncIterator[Row]:
        """Yield the rows that some sink has not settled; memory keeps no others."""
        for row in tuple(self._rows.all()):
            if row.last > after:
                yield row

    def ack(self, sink: str, through: int) -> None:
        """Note that the sink is done with every point up to `through`."""
        self._cursors.ack(sink, through)
        self._rows.forget(self._cursors.acked_by_all)

    def pending(self, sink: str, *, after: int = 0) -> Pending:
        """Return what the sink has not settled; with `after`, only what comes after it."""
        start = self._start(sink, after)
        oldest = self._rows.holding(start + 1)
        return Pending(
            points=self._cursors.points_between(start, self._cursors.tail),
            oldest_at=oldest.received_at if oldest else None,
        )

    def held_at_start(self, sink: str) -> int:
        """Return 0: nothing outlives the process."""
        return self._cursors.held_at_start(sink)

    async def grown(self, sink: str, *, points: int) -> None:
        """Wait until at least `points` are pending for the sink."""
        await self._cursors.grown(sink, points=points)

    async def run(self) -> None:
        """Wait for ever: memory needs no housekeeping."""
        await asyncio.Event().wait()

    def status(self) -> JournalStatus:
        """Return the journal's part of the snapshot."""
        return JournalStatus(
            bytes=self._rows.bytes,
            max_bytes=self._max_bytes,
            durable=False,
            appended_points=self._cursors.appended_points,
            reason=_FULL_REASONS[self._overflow] if self._full else None,
        )

    def _start(self, sink: str, after: int) -> int:
        return max(self._cursors.acked[sink], after)

    def _make_room(self, needed_bytes: int) -> None:
        room = self._max_bytes - self._rows.bytes
        if room >= needed_bytes:
            self._full = self._full and room < self._max_bytes // 4
            return
        self._full = True
        if self._overflow == "drop_new" or needed_bytes > self._max_bytes:
            raise JournalFull(f"the journal holds {self._rows.bytes} of {self._max_bytes} bytes")
        while self._max_bytes - self._rows.bytes < needed_bytes:
            self._cursors.dropped(self._rows.popleft().last)
