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

from app.logs import Repeats
from app.model import Gap, GapReason, GapState, LastState, Times, moment_of

logger = logging.getLogger(__name__)

_SECOND_NS = 1_000_000_000
_MERGED_NS = 10 * _SECOND_NS
_SET_BACK_NS = 5 * _SECOND_NS
_MAX_CLOSED = 1_000
_MAX_OPEN = 1_000


@dataclass(frozen=True, slots=True)
class Covered:
    """The whole time since the journal began, gaps included."""

    since_ns: int
    through_ns: int
    """The newest moment that is covered: the next gap begins here."""
    edge_at: float
    """When that moment was received, in seconds since the epoch on our clock."""


@dataclass(frozen=True, slots=True)
class Unsaved:
    """What one transaction has to save of the coverage."""

    covered: Covered | None
    before: Covered | None
    """What was covered when this was put together."""
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
        fills: bool = True,
        compare_s: float = 120.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take whether the journal outlives the process, and whether gaps are filled unasked.

        `compare_s` is how far from the edge of a gap, in seconds, what is read back is
        compared with what was committed; `clock` is ours, since the epoch.
        """
        self.opened = asyncio.Event()
        """Set when a gap was opened; whoever fills gaps clears it."""
        self._kept = kept
        self._fills = fills
        self._compare_s = compare_s
        self._clock = clock
        self._covered: Covered | None = None
        self._gaps: dict[int, Gap] = {}
        self._untold = Repeats(logger)
        self._last_id = 0
        self._unsaved: set[int] = set()
        self._covered_unsaved = False
        self._taken: int | None = None
        self._began_at = clock()
        """When this span began, on our clock."""

    def open(self, covered: Covered | None, gaps: Iterable[Gap]) -> None:
        """Continue where an earlier process stopped."""
        self._covered = covered
        self._gaps = {gap.id: gap for gap in gaps}
        self._last_id = max(self._gaps, default=0)
        if self.open_gaps():
            self.opened.set()

    @property
    def covered(self) -> Covered | None:
        """What is covered from first to last; None before the first connection."""
        return self._covered

    @property
    def keep_from(self) -> float:
        """The time of receipt from which points stay in the journal, settled or not.

        What is read back near the edge of a gap is compared with them. A gap that nobody is
        going to fill keeps none, or they would pile up to the bound of the journal.
        """
        waiting = [gap.edge_at for gap in self.open_gaps() if self.will_be_filled(gap)]
        return min([self._edge_at, *waiting]) - self._compare_s

    def will_be_filled(self, gap: Gap) -> bool:
        """Whether a gap is filled by itself, or because a person asked for it."""
        return self._fills or gap.reason == "requested"

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
        self._began_at = self._clock()
        if self._covered is None:
            self._cover(at_ns, at_ns)
            return None
        start_ns = self._covered.through_ns
        cause: GapReason = reason
        if start_ns > end_ns + _SECOND_NS:
            cause = "clock"
            start_ns = self._newest_by(at_ns, last)
        if not self._kept:
            self._tell_the_command(start_ns, end_ns)
            self._cover(self._covered.since_ns, end_ns)
            return None
        gap = self._open(Times(start_ns, max(start_ns, end_ns)), cause)
        self._cover(min(self._covered.since_ns, start_ns), gap.end_ns)
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
            begun = gap.filled_ns is not None or gap.id == self._taken
            if near and gap.reason == reason and not begun:
                start_ns = min(gap.start_ns, times.oldest_ns)
                end_ns = max(gap.end_ns, times.newest_ns)
                found_at = self._clock()  # what comes last counts: the recorder lags behind it
                self._put(replace(gap, start_ns=start_ns, end_ns=end_ns, found_at=found_at))
                return
        self._open(times, reason)

    def request(self, times: Times, *, entity_ids: Sequence[str]) -> list[Gap]:
        """Open what is not covered in this span, because a person asks for it; return the gaps.

        That is all before the journal began, and the gaps in it that nobody filled.
        """
        found = [
            self._put(replace(gap, state="open", reason="requested", detail=None, closed_at=None))
            for gap in self.gaps()
            if self._waits_for_a_person(gap)
            and gap.start_ns <= times.newest_ns
            and gap.end_ns >= times.oldest_ns
        ]
        end_ns = min(times.newest_ns, int(self._clock() * _SECOND_NS))
        if self._kept and self._covered is not None:
            end_ns = min(end_ns, self._covered.since_ns)
        wanted = Times(max(0, times.oldest_ns), end_ns)
        if wanted.oldest_ns < end_ns and not self._was_requested(wanted, entity_ids):
            # A name that is there twice would end a window before its time.
            found.append(self._open(wanted, "requested", tuple(dict.fromkeys(entity_ids))))
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

    def split(self, gap: Gap, before_ns: int, *, detail: str) -> tuple[Gap, Gap]:
        """Give up the part of a gap before a moment; return that part, and the rest."""
        lost = self._new(Times(gap.start_ns, before_ns), gap.reason, gap.entity_ids)
        lost = replace(lost, state="unfillable", detail=detail, closed_at=self._clock())
        # As if it were half filled: what was true at its start is not what stood before the gap.
        rest = replace(gap, start_ns=before_ns, filled_ns=before_ns)
        return self._put(lost), self._put(rest)

    def unsaved(self, times: Times | None = None, *, received_at: float = 0.0) -> Unsaved:
        """Return what a transaction has to save that appends points of this span.

        `received_at` is that of the oldest; `times` is None for points that did not come live.
        """
        covered = self._covered if self._covered_unsaved else None
        if times is not None:
            covered = self._grown(times, received_at)
        return Unsaved(
            covered=covered,
            before=self._covered,
            gaps=[self._gaps[number] for number in sorted(self._unsaved)],
            forgotten=self._too_many(),
        )

    def saved(self, unsaved: Unsaved) -> None:
        """Note that a transaction has saved this."""
        if unsaved.covered is not None and unsaved.before is self._covered:
            self._covered = unsaved.covered
            self._covered_unsaved = False  # else a connection has come since
        for gap in unsaved.gaps:
            if self._gaps.get(gap.id) is gap:  # else it has changed since
                self._unsaved.discard(gap.id)
        for number in unsaved.forgotten:
            if number not in self._unsaved:  # else somebody has asked for it since
                self._gaps.pop(number, None)

    @property
    def _edge_at(self) -> float:
        return self._began_at if self._covered is None else self._covered.edge_at

    def _too_many(self) -> Sequence[int]:
        # Asked at every commit, and nearly always there are a few gaps: nothing to sort then.
        if len(self._gaps) <= _MAX_CLOSED:
            return []
        return [gap.id for gap in self.gaps() if gap.state != "open"][_MAX_CLOSED:]

    def _grown(self, times: Times, received_at: float) -> Covered:
        """Return what is covered with points of this span."""
        covered = self._covered
        if covered is None:
            return Covered(times.oldest_ns, times.newest_ns, received_at)
        through_ns = max(covered.through_ns, times.newest_ns)
        if received_at >= self._began_at and times.newest_ns < covered.through_ns - _SET_BACK_NS:
            # The clock was set back while events stream: the next gap begins at the last of them.
            through_ns = times.newest_ns
        return Covered(covered.since_ns, through_ns, received_at)

    def _newest_by(self, at_ns: int, last: Callable[[], Iterable[LastState]]) -> int:
        """Return the time of the newest change that is not in the future."""
        assert self._covered is not None
        times_ns = [state.time_ns for state in last() if state.time_ns <= at_ns]
        return max(times_ns, default=min(self._covered.since_ns, at_ns))

    def _waits_for_a_person(self, gap: Gap) -> bool:
        is_unasked = self._fills and gap.reason != "requested"
        return gap.state == "unfillable" or (gap.state == "open" and not is_unasked)

    def _was_requested(self, times: Times, entity_ids: Sequence[str]) -> bool:
        """Whether all of it is being read back, or was."""
        for gap in self._gaps.values():
            spans = gap.start_ns <= times.oldest_ns and gap.end_ns >= times.newest_ns
            names = not gap.entity_ids or (entity_ids and {*entity_ids} <= {*gap.entity_ids})
            if gap.reason == "requested" and gap.state != "unfillable" and spans and names:
                return True
        return False

    def _cover(self, since_ns: int, through_ns: int) -> None:
        self._covered = Covered(since_ns, through_ns, self._began_at)
        self._covered_unsaved = True

    def _open(self, times: Times, reason: GapReason, entity_ids: Sequence[str] = ()) -> Gap:
        found = self.open_gaps()
        if len(found) >= _MAX_OPEN and found[-1].reason == reason != "requested":
            # A connection that comes and goes for days must not fill the disk with its story.
            last = found[-1]
            return self._put(replace(last, end_ns=max(last.end_ns, times.newest_ns)))
        self.opened.set()
        return self._new(times, reason, entity_ids)

    def _new(self, times: Times, reason: GapReason, entity_ids: Sequence[str]) -> Gap:
        self._last_id += 1
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

    def _tell_the_command(self, start_ns: int, end_ns: int) -> None:
        since, until = (
            moment_of(time_ns).strftime("%Y-%m-%dT%H:%M:%SZ") for time_ns in (start_ns, end_ns)
        )
        self._untold.tell(
            logging.WARNING,
            "Nothing was captured from %s to %s, and JOURNAL=memory keeps no account of it."
            " To read it back: python -m app backfill --since %s --until %s",
            since,
            until,
            since,
            until,
        )
