"""Which spans of Home Assistant's time the journal covers; what lies between two is a gap.

The books are kept here, without I/O. The journal saves them in the transactions that make
points durable, so that no crash leaves a point without its span, or a span without its points.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from app.model import Gap, GapReason, GapState, LastState, Times, moment_of

logger = logging.getLogger(__name__)

_SECOND_NS = 1_000_000_000
_MERGED_NS = 10 * _SECOND_NS
_MAX_CLOSED = 1_000
_MAX_OPEN = 1_000


@dataclass(frozen=True, slots=True)
class Covered:
    """The whole time since the journal began, gaps included."""

    since_ns: int
    through_ns: int
    """The newest moment that is covered: the next gap begins here."""


@dataclass(frozen=True, slots=True)
class Unsaved:
    """What one transaction has to save of the coverage."""

    covered: Covered | None
    gaps: Sequence[Gap]
    forgotten: Sequence[int]
    """Ids of gaps so old that nobody asks for them any more."""


class Coverage:
    """The spans and gaps of one journal.

    Every method is synchronous, so what they say of one moment is true together. With `kept`
    False (a journal in memory) a restart forgets all, so no gap is noted by itself.
    """

    def __init__(
        self,
        *,
        kept: bool = True,
        compare_s: float = 120.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take whether the journal outlives the process; `clock` is ours, since the epoch.

        `compare_s` is how far from the edge of a gap, in seconds, what is read back is
        compared with what was committed.
        """
        self.opened = asyncio.Event()
        """Set when a gap was opened; whoever fills gaps clears it."""
        self._kept = kept
        self._compare_s = compare_s
        self._clock = clock
        self._covered: Covered | None = None
        self._gaps: dict[int, Gap] = {}
        self._last_id = 0
        self._unsaved: set[int] = set()
        self._covered_unsaved = False
        self._taken: int | None = None
        self._edge_at = clock()

    def open(self, covered: Covered | None, gaps: Iterable[Gap], *, edge_at: float | None) -> None:
        """Continue where an earlier process stopped; `edge_at` is when its last point came."""
        self._covered = covered
        self._gaps = {gap.id: gap for gap in gaps}
        self._last_id = max(self._gaps, default=0)
        if edge_at is not None:
            self._edge_at = edge_at
        if self.open_gaps():
            self.opened.set()

    @property
    def covered(self) -> Covered | None:
        """What is covered from first to last; None before the first connection."""
        return self._covered

    @property
    def keep_from(self) -> float:
        """The time of receipt from which points stay in the journal, settled or not.

        What is read back near the edge of a gap is compared with them.
        """
        return min([self._edge_at, *(gap.edge_at for gap in self.open_gaps())]) - self._compare_s

    def gaps(self) -> list[Gap]:
        """Return all gaps that are remembered, the newest first."""
        return sorted(self._gaps.values(), key=lambda gap: gap.id, reverse=True)

    def gap(self, gap_id: int) -> Gap | None:
        """Return one gap as it is now."""
        return self._gaps.get(gap_id)

    def open_gaps(self) -> list[Gap]:
        """Return the gaps that are not filled and not given up, in the order of their starts."""
        found = [gap for gap in self._gaps.values() if gap.state == "open"]
        return sorted(found, key=lambda gap: (gap.start_ns, gap.id))

    def count(self, state: GapState) -> int:
        """Return how many gaps are in a state."""
        return sum(gap.state == state for gap in self._gaps.values())

    def began(
        self,
        at_ns: int,
        *,
        reason: Literal["restart", "disconnect"],
        last: Callable[[], Iterable[LastState]],
    ) -> Gap | None:
        """Begin a span: events stream since `at_ns` of Home Assistant's own clock.

        Return the gap before it, None when there is none. `at_ns` may be a second early. `last`
        is the newest change of each entity; it is asked for only when the clock was set back.
        """
        # What comes in this second twice, live and read back, is told apart by its identity.
        end_ns = at_ns + _SECOND_NS
        if self._covered is None:
            self._cover(Covered(at_ns, at_ns))
            return None
        start_ns = self._covered.through_ns
        cause: GapReason = reason
        if start_ns > end_ns + _SECOND_NS:
            cause = "clock"
            start_ns = self._newest_by(at_ns, last)
        if not self._kept:
            _tell_the_command(start_ns, end_ns)
            self._cover(Covered(self._covered.since_ns, end_ns))
            return None
        gap = self._open(Times(start_ns, max(start_ns, end_ns)), cause)
        self._cover(Covered(min(self._covered.since_ns, start_ns), gap.end_ns))
        return gap

    def lost(
        self, times: Times | None, reason: Literal["journal_stalled", "journal_full", "damage"]
    ) -> None:
        """Note that what happened in this span was received and is not in the journal."""
        if times is None or not self._kept:
            return
        for gap in self.open_gaps():
            near = times.oldest_ns - _MERGED_NS <= gap.end_ns and (
                times.newest_ns + _MERGED_NS >= gap.start_ns
            )
            if near and gap.reason == reason and gap.id != self._taken:
                start_ns = min(gap.start_ns, times.oldest_ns)
                end_ns = max(gap.end_ns, times.newest_ns)
                self._put(replace(gap, start_ns=start_ns, end_ns=end_ns))
                return
        self._open(times, reason)

    def request(self, times: Times, *, entity_ids: Sequence[str]) -> list[Gap]:
        """Open what is not covered in this span, because a person asks for it; return the gaps.

        That is all before the journal began, and the gaps in it that were given up.
        """
        found = []
        for gap in self.gaps():
            overlaps = gap.start_ns <= times.newest_ns and gap.end_ns >= times.oldest_ns
            if overlaps and gap.state == "unfillable":
                found.append(self._put(replace(gap, state="open", detail=None, closed_at=None)))
        end_ns = times.newest_ns
        if self._kept and self._covered is not None:
            end_ns = min(end_ns, self._covered.since_ns)
        wanted = Times(times.oldest_ns, end_ns)
        if times.oldest_ns < end_ns and not self._was_read_back(wanted, entity_ids):
            found.append(self._open(wanted, "requested", entity_ids))
        if found:
            self.opened.set()
        return found

    def take(self, gap: Gap) -> None:
        """Note that this gap is being filled: its bounds stay as they are."""
        self._taken = gap.id

    def update(self, gap: Gap) -> Gap:
        """Put a gap in the place of its former self and return it."""
        return self._put(gap)

    def close(self, gap: Gap, state: Literal["filled", "unfillable"], *, detail: str | None) -> Gap:
        """Note that a gap is filled, or why it cannot be."""
        self._taken = None
        return self._put(replace(gap, state=state, detail=detail, closed_at=self._clock()))

    def too_old(self, gap: Gap, before_ns: int, *, detail: str) -> Gap:
        """Give up the part of a gap before a moment, as a gap of its own; return the rest."""
        lost = self._open(Times(gap.start_ns, before_ns), gap.reason, gap.entity_ids)
        self._put(replace(lost, state="unfillable", detail=detail, closed_at=self._clock()))
        return self._put(replace(gap, start_ns=before_ns))

    def unsaved(self, times: Times | None = None) -> Unsaved:
        """Return what a transaction has to save that appends points of this span."""
        covered = self._covered if self._covered_unsaved else None
        if times is not None:
            before = self._covered or Covered(times.oldest_ns, times.oldest_ns)
            covered = replace(before, through_ns=max(before.through_ns, times.newest_ns))
        closed = [gap.id for gap in self.gaps() if gap.state != "open"]
        return Unsaved(
            covered=covered,
            gaps=[self._gaps[number] for number in sorted(self._unsaved)],
            forgotten=closed[_MAX_CLOSED:],
        )

    def saved(self, unsaved: Unsaved, *, received_at: float | None = None) -> None:
        """Note that a transaction has saved this; `received_at` is that of its points."""
        if unsaved.covered is not None:
            through_ns = unsaved.covered.through_ns
            if self._covered is None or through_ns >= self._covered.through_ns:
                self._covered = unsaved.covered
                self._covered_unsaved = False
        for gap in unsaved.gaps:
            if self._gaps.get(gap.id) is gap:  # else it has changed since
                self._unsaved.discard(gap.id)
        for number in unsaved.forgotten:
            self._gaps.pop(number, None)
        if received_at is not None:
            self._edge_at = received_at

    def _newest_by(self, at_ns: int, last: Callable[[], Iterable[LastState]]) -> int:
        """Return the time of the newest change that is not in the future."""
        assert self._covered is not None
        times_ns = [state.time_ns for state in last() if state.time_ns <= at_ns]
        return max(times_ns, default=min(self._covered.since_ns, at_ns))

    def _was_read_back(self, times: Times, entity_ids: Sequence[str]) -> bool:
        for gap in self._gaps.values():
            spans = gap.start_ns <= times.oldest_ns and gap.end_ns >= times.newest_ns
            names = not gap.entity_ids or (entity_ids and {*entity_ids} <= {*gap.entity_ids})
            if gap.reason == "requested" and gap.state == "filled" and spans and names:
                return True
        return False

    def _cover(self, covered: Covered) -> None:
        self._covered = covered
        self._covered_unsaved = True

    def _open(self, times: Times, reason: GapReason, entity_ids: Sequence[str] = ()) -> Gap:
        found = self.open_gaps()
        if len(found) >= _MAX_OPEN and found[-1].reason == reason != "requested":
            # A connection that comes and goes for days must not fill the disk with its story.
            last = found[-1]
            return self._put(replace(last, end_ns=max(last.end_ns, times.newest_ns)))
        self._last_id += 1
        self.opened.set()
        return self._put(
            Gap(
                id=self._last_id,
                start_ns=times.oldest_ns,
                end_ns=times.newest_ns,
                reason=reason,
                found_at=self._clock(),
                edge_at=self._edge_at,
                entity_ids=tuple(entity_ids),
            )
        )

    def _put(self, gap: Gap) -> Gap:
        self._gaps[gap.id] = gap
        self._unsaved.add(gap.id)
        return gap


def _tell_the_command(start_ns: int, end_ns: int) -> None:
    since, until = (
        moment_of(time_ns).strftime("%Y-%m-%dT%H:%M:%SZ") for time_ns in (start_ns, end_ns)
    )
    logger.warning(
        "Nothing was captured from %s to %s, and JOURNAL=memory keeps no account of it."
        " To read it back: python -m app backfill --since %s --until %s",
        since,
        until,
        since,
        until,
    )
