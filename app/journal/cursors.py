"""How far a journal reaches and how far each sink has come: the books, without I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from app.runtime.metrics import Telemetry

Overflow = Literal["drop_oldest", "drop_new"]
"""Who loses at the bound: the slowest sink its oldest points, or all sinks the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """What one sink has not settled yet."""

    points: int
    oldest_at: float | None
    """When the oldest of them was received, in seconds since the epoch; None without points."""


@dataclass(frozen=True, slots=True)
class Hole:
    """Sequence numbers whose points are not there: lost with a damaged file, or never written."""

    first: int
    points: int


Span: TypeAlias = tuple[int, int]
"""The first and the last of consecutive sequence numbers."""


class Cursors:
    """The cursors of all sinks and the tail of one journal.

    Every method is synchronous but `grown`, and moves the counters of `Telemetry` in the
    same stretch as the cursors: held at start + appended = settled + dropped + held.
    """

    def __init__(self, sinks: Sequence[str], *, telemetry: Telemetry) -> None:
        """Take the names of the sinks that are configured."""
        self.tail = 0
        """Sequence number of the newest point."""
        self.appended_points = 0
        """Points appended since the journal was opened."""
        self.holes: Sequence[Hole] = ()
        self.unsaved_holes: list[Hole] = []
        """Those that the file does not list yet."""
        self._sinks = tuple(sinks)
        self._telemetry = telemetry
        self._cursors = dict.fromkeys(sinks, 0)
        self._held_at_start = dict.fromkeys(sinks, 0)
        self._waiting: dict[asyncio.Future[None], tuple[str, int]] = {}

    def open(self, *, tail: int, cursors: Mapping[str, int], holes: Sequence[Hole]) -> None:
        """Continue where an earlier process stopped; `cursors` names every configured sink."""
        self.tail = tail
        self.holes = tuple(holes)
        self._cursors = dict(cursors)
        self._held_at_start = {sink: self.held(sink) for sink in cursors}

    @property
    def acked(self) -> Mapping[str, int]:
        """The last settled sequence number by sink, orphans included."""
        return self._cursors

    @property
    def orphaned(self) -> list[str]:
        """The sinks that have a cursor and are not configured any more."""
        return sorted(self._cursors.keys() - set(self._sinks))

    @property
    def acked_by_all(self) -> int:
        """The last sequence number that no sink, orphaned or not, still needs."""
        return min(self._cursors.values(), default=self.tail)

    @property
    def acked_by_configured(self) -> int:
        """The last sequence number that no configured sink still needs."""
        return min((self._cursors[sink] for sink in self._sinks), default=self.tail)

    def held(self, sink: str) -> int:
        """Return how many points the sink has not settled."""
        return self.points_between(self._cursors[sink], self.tail)

    def points_between(self, cursor: int, through: int) -> int:
        """Return how many points come after `cursor` and not after `through`, holes left out."""
        points = through - cursor
        for hole in self.holes:
            lost = min(hole.first + hole.points - 1, through) - max(hole.first - 1, cursor)
            points -= max(0, lost)
        return points

    def held_at_start(self, sink: str) -> int:
        """Return how many points waited for the sink when the journal was opened."""
        return self._held_at_start[sink]

    def ack(self, sink: str, through: int) -> None:
        """Move the sink's cursor forward to `through`; it never moves back."""
        assert through <= self.tail, "points are settled before they were appended"
        self._cursors[sink] = max(self._cursors[sink], through)

    def appended(self, points: int) -> None:
        """Count points that stand behind the tail now, and wake who waits for them."""
        self.tail += points
        self.appended_points += points
        for future, (sink, wanted) in self._waiting.items():
            if self.held(sink) >= wanted and not future.done():
                future.set_result(None)

    def dropped(self, through: int) -> None:
        """Count, for each sink that still needed them, the points lost up to `through`."""
        for sink, cursor in self._cursors.items():
            if cursor < through:
                self._telemetry.points_dropped(sink, self.points_between(cursor, through))
                self._cursors[sink] = through

    def skipped(self, first: int, points: int) -> None:
        """Note numbers that no row on disk will hold; whoever still needed them loses them."""
        behind = [sink for sink, cursor in self._cursors.items() if cursor < first]
        for sink in behind:
            self._telemetry.points_dropped(sink, points)
        if not behind:
            return
        if self.holes and self.holes[-1].first + self.holes[-1].points == first:
            *before, last = self.holes
            self.holes = (*before, Hole(last.first, last.points + points))
        else:
            self.holes = (*self.holes, Hole(first, points))
        self.unsaved_holes.append(self.holes[-1])

    def skip_holes(self, sequence: int) -> int:
        """Return the end of the holes that follow a number directly, or else the number itself."""
        for hole in self.holes:
            if hole.first <= sequence + 1 < hole.first + hole.points:
                sequence = hole.first + hole.points - 1
        return sequence

    def lost(self, first: int, last: int) -> int:
        """Count points on disk that cannot be read any more; return how many some sink needed."""
        if not (points := self.points_between(first - 1, last)):
            return 0
        for sink, cursor in self._cursors.items():
            if cursor < last:
                count = self.points_between(max(cursor, first - 1), last)
                self._telemetry.points_dropped(sink, count)
        known = [(hole.first, hole.first + hole.points - 1) for hole in self.holes]
        new = [
            Hole(start, end - start + 1)
            for start, end in missing(known, after=first - 1, through=last)
        ]
        self.holes = tuple(sorted((*self.holes, *new), key=lambda hole: hole.first))
        self.unsaved_holes += new
        return points

    def saved_holes(self, saved: Sequence[Hole]) -> None:
        """Take note that the file lists these holes."""
        self.unsaved_holes = [hole for hole in self.unsaved_holes if hole not in saved]

    def secured(self, points: int) -> None:
        """Count lent points that are durable now, or in every sink that is configured."""
        self._telemetry.points_journaled(points)

    async def grown(self, sink: str, *, points: int) -> None:
        """Wait until the sink holds at least `points`."""
        if self.held(sink) >= points:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = (sink, points)
        try:
            await future
        finally:
            del self._waiting[future]


def missing(present: Iterable[Span], *, after: int, through: int) -> list[Span]:
    """Return the numbers between two bounds that are in no span; spans may overlap."""
    found, expected = [], after + 1
    for first, last in sorted(present):
        if first > through:
            break
        if first > expected:
            found.append((expected, first - 1))
        expected = max(expected, last + 1)
    if expected <= through:
        found.append((expected, through))
    return found
