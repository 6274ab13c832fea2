"""The tail of a journal and the cursor of each sink, with their counters: no I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from app.runtime.metrics import Telemetry

Overflow = Literal["drop_oldest", "drop_new"]
"""What is dropped at the bound: the oldest points of the slowest sink, or new points for all."""


class Span(NamedTuple):
    """Consecutive sequence numbers."""

    first: int
    last: int

    @property
    def points(self) -> int:
        """How many numbers there are."""
        return self.last - self.first + 1


class Cursors:
    """The cursors of all sinks and the tail of one journal.

    Every method except `grown` is synchronous and moves the counters of `Telemetry` together
    with the cursors: held at start + appended = acked + dropped + held.
    """

    def __init__(self, sinks: Sequence[str], *, telemetry: Telemetry) -> None:
        """`sinks` are those that are configured."""
        self.tail = 0
        """Sequence number of the newest point."""
        self.appended_points = 0
        """Points appended since the journal was opened."""
        self.holes: Sequence[Span] = ()
        """Numbers whose points are missing: lost with a damaged file, or never written."""
        self.unsaved_holes: list[Span] = []
        """Holes that the file does not list yet."""
        self.configured = tuple(sinks)
        self._telemetry = telemetry
        self.acked = dict.fromkeys(sinks, 0)
        """The last acked sequence number by sink, orphans included."""
        self._waiting: dict[asyncio.Future[None], tuple[str, int]] = {}

    def open(self, *, tail: int, cursors: Mapping[str, int], holes: Sequence[Span]) -> None:
        """Continue where an earlier process stopped; `cursors` has every configured sink."""
        self.tail = tail
        self.holes = tuple(holes)
        self.acked = dict(cursors)

    @property
    def orphaned(self) -> list[str]:
        """The sinks that have a cursor and are not configured any more."""
        return sorted(self.acked.keys() - set(self.configured))

    @property
    def acked_by_all(self) -> int:
        """The last sequence number that every sink has acked, orphans included."""
        return min(self.acked.values(), default=self.tail)

    @property
    def acked_by_configured(self) -> int:
        """The last sequence number that every configured sink has acked."""
        return min((self.acked[sink] for sink in self.configured), default=self.tail)

    def points_between(self, cursor: int, through: int) -> int:
        """Return how many points come after `cursor` up to `through`, without holes."""
        points = through - cursor
        for hole in self.holes:
            points -= max(0, min(hole.last, through) - max(hole.first - 1, cursor))
        return points

    def ack(self, sink: str, through: int) -> None:
        """Move the sink's cursor forward to `through`; it never moves back."""
        assert through <= self.tail, "points are acked before they were appended"
        self.acked[sink] = max(self.acked[sink], through)

    def appended(self, points: int) -> None:
        """Count points added at the tail, and wake the sinks that wait for them."""
        self.tail += points
        self.appended_points += points
        for future, (sink, wanted) in self._waiting.items():
            held = self.points_between(self.acked[sink], self.tail)
            if held >= wanted and not future.done():
                future.set_result(None)

    def journaled(self, points: int) -> None:
        """Count uncommitted points that are durable now, or acked by every configured sink."""
        self._telemetry.points_journaled(points)

    def dropped(self, through: int) -> None:
        """Move the cursors behind points dropped at the bound, counted for each sink."""
        for sink, cursor in self.acked.items():
            if cursor < through:
                self._telemetry.points_dropped(sink, self.points_between(cursor, through))
                self.acked[sink] = through

    def lost(self, span: Span) -> int:
        """Record numbers that no row holds, as dropped for each sink that has not acked them.

        Return how many are newly missing; 0 when every sink has acked them.
        """
        behind = [sink for sink, cursor in self.acked.items() if cursor < span.last]
        points = self.points_between(span.first - 1, span.last)
        if not behind or not points:
            return 0
        for sink in behind:
            after = max(self.acked[sink], span.first - 1)
            self._telemetry.points_dropped(sink, self.points_between(after, span.last))
        for first, last in missing(self.holes, after=span.first - 1, through=span.last):
            # Joined with the hole before it: while commits fail one may grow for hours.
            joined = [hole for hole in self.holes if hole.last == first - 1]
            hole = Span(joined[0].first if joined else first, last)
            others = [other for other in self.holes if other not in joined]
            self.holes = tuple(sorted([*others, hole]))
            self.unsaved_holes.append(hole)
        return points

    def skip_holes(self, sequence: int) -> int:
        """Return the end of the holes that follow a number directly, or else the number itself."""
        for hole in self.holes:
            if hole.first <= sequence + 1 <= hole.last:
                sequence = hole.last
        return sequence

    def saved_holes(self, saved: Sequence[Span]) -> None:
        """Note that the file lists these holes."""
        self.unsaved_holes = [hole for hole in self.unsaved_holes if hole not in saved]

    async def grown(self, sink: str, *, points: int) -> None:
        """Wait until the sink holds at least `points`."""
        if self.points_between(self.acked[sink], self.tail) >= points:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = (sink, points)
        try:
            await future
        finally:
            del self._waiting[future]


def missing(present: Iterable[tuple[int, int]], *, after: int, through: int) -> list[Span]:
    """Return the numbers between two bounds that are in no span; spans may overlap."""
    found, expected = [], after + 1
    for first, last in sorted(present):
        if first > through:
            break
        if first > expected:
            found.append(Span(expected, first - 1))
        expected = max(expected, last + 1)
    if expected <= through:
        found.append(Span(expected, through))
    return found
