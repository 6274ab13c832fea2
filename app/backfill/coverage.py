"""Which spans of Home Assistant's time the journal covers; what lies between two is a gap.

All times here are Home Assistant's own, from events and states: no header and no clock of this
machine decides where a gap begins or ends. The accounting does no I/O. The journal saves it in
the transactions that make points durable, so that no crash leaves a point without its span, or a
span without its points.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from app.backfill.requests import includes, overlaps, spans_read, waits_for_request
from app.backfill.row_retention import RowRetention
from app.model import MAX_SECONDS, SECOND_NS, Gap, GapReason, GapState, Times, moment_of
from app.runtime.logging import RateLimitedLog

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

_LAST_NS = (MAX_SECONDS - 86_400) * SECOND_NS
"""Later than any clock shows, and what is computed from it can still be stored."""
_MERGED_NS = 10 * SECOND_NS
_SET_BACK_NS = 5 * SECOND_NS
_BEFORE_SET_BACK_NS = 3600 * SECOND_NS
"""How far before the first event after a clock was set back changes are requested: to when it
was set back is unknown."""
_BEFORE_START_NS = 60 * SECOND_NS
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
    keep_from: int = 0
    """Sequence number of the oldest row near that moment."""


@dataclass(frozen=True, slots=True)
class CoverageChanges:
    """What one transaction has to save."""

    covered: Covered | None
    before: Covered | None
    """What was covered before these changes."""
    gaps: Sequence[Gap]
    deleted: Sequence[int]
    """Ids of the oldest closed gaps, of which only so many are retained."""
    edge: tuple[int, int] | None = None
    """Number of the first live point that the transaction appends, and the newest time."""


class Coverage:
    """The spans and gaps of one journal.

    Every method is synchronous, so results of one moment are consistent. A journal in memory
    (`is_persistent` is False) forgets everything at a restart, so no gap is opened automatically.
    """

    def __init__(
        self,
        *,
        is_persistent: bool = True,
        fills: bool = True,
        compare_s: float = 120.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Start without any span.

        `is_persistent`: the journal outlives the process. `fills`: gaps are filled automatically.
        Live points that happened at most `compare_s` before the newest one stay in the journal,
        to be compared with what is read back: more than is requested beyond the bounds of a gap.
        Negative: none stay. `clock` is ours, in seconds since the epoch; what it shows is only
        displayed.
        """
        self.opened = asyncio.Event()
        """Set when there is something to do for gaps; the backfill clears it."""
        self.fills = fills
        """Whether gaps are filled automatically."""
        self.awaits_event = False
        """Whether events stream and none has come yet: the bounds are open."""
        self._is_persistent = is_persistent
        self._retention = RowRetention(compare_s)
        self._clock = clock
        self._covered: Covered | None = None
        self._gaps: dict[int, Gap] = {}
        self._last_id = 0
        self._unsaved: set[int] = set()
        self._covered_unsaved = False
        self._filling_id: int | None = None
        """The gap that is being filled."""
        self._has_begun = False
        self._latest_ns: int | None = None
        """The newest time in the batch received last; None before the first of a connection."""
        self._missed_from_ns: int | None = None
        """Where the gap begins that a journal in memory does not keep."""

    def open(
        self, covered: Covered | None, gaps: Iterable[Gap], *, was_absent: bool = False
    ) -> None:
        """Continue where an earlier process stopped; with `was_absent` it captured nothing."""
        self._covered = covered
        self._has_begun = was_absent
        self._gaps = {gap.id: gap for gap in gaps}
        self._last_id = max(self._gaps, default=0)
        if covered is not None:
            self._retention.add(covered.keep_from, covered.through_ns)
        if self.open_gaps():
            self.opened.set()

    @property
    def covered(self) -> Covered | None:
        """What is covered from first to last; None before the first connection."""
        return self._covered

    @property
    def now_ns(self) -> int:
        """Now, by our clock or the newest moment that is covered, whichever is later."""
        now_ns = int(self._clock() * SECOND_NS)
        return now_ns if self._covered is None else max(now_ns, self._covered.through_ns)

    @property
    def keep_from(self) -> int:
        """The sequence number from which rows stay in the journal, settled or not.

        What is read back near the bounds of a gap is compared with them. A gap that will not be
        filled retains none, or they would fill the journal.
        """
        waiting = [gap.keep_from for gap in self.open_gaps() if self.will_be_filled(gap)]
        return min([self._retention.keep_from, *waiting])

    @property
    def is_unbounded(self) -> bool:
        """Whether Home Assistant's states are needed to bound a gap, or the first span."""
        unknown = any(not (gap.start_known and gap.end_known) for gap in self.open_gaps())
        is_first = self.awaits_event and self._covered is None
        return unknown or is_first or self._missed_from_ns is not None

    def will_be_filled(self, gap: Gap) -> bool:
        """Whether a gap is filled automatically, or because a person requested it."""
        return self.fills or gap.reason == "requested"

    def gaps(self) -> list[Gap]:
        """Return all gaps, the newest first."""
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

    def connected(
        self, *, reason: Literal["restart", "disconnect"], was_absent: bool = False
    ) -> Gap | None:
        """Begin a span: events stream now. Return the gap before it, None when there is none.

        The gap begins at the newest moment that is covered. Its end is known when the first
        event comes, or from Home Assistant's states: see `received` and `bound`. The first
        connection of a new journal has no gap before it, except when Home Assistant
        `was_absent`, or an earlier process captured nothing: what it recorded since its start was
        missed.
        """
        received_ns, self._latest_ns = self._latest_ns, None
        self.awaits_event = True
        is_first = self._covered is None and not self._has_begun and not was_absent
        self._has_begun = True
        self.opened.set()
        for gap in self._unended():
            if gap.start_ns == gap.end_ns and gap.id != self._filling_id:
                return gap  # nothing is known yet of the connection that it ends with
            # The rest is in the next gap: this one is being filled and must not grow.
            self._put(replace(gap, end_known=True))
        if is_first:
            return None
        start_ns = None if self._covered is None else self._covered.through_ns
        if not self._is_persistent:
            # Nothing is ever committed: only received events count as covered.
            covered_ns = start_ns if received_ns is None else received_ns
            self._missed_from_ns = self._missed_from_ns or covered_ns
            return None
        gap = self._open(Times(start_ns or 0, start_ns or 0), reason)
        return self._put(replace(gap, start_known=start_ns is not None, end_known=False))

    def received(self, times: Times) -> None:
        """Record when live changes happened that were received now, before they are committed.

        On the hot path, once per batch.
        """
        times = within_range(times)
        self._latest_ns = times.newest_ns
        if self.awaits_event:
            self.awaits_event = False
            self._end(times)

    def bound(self, *, oldest_ns: int, newest_ns: int, reach_ns: int) -> None:
        """Bound what is open by Home Assistant's states, listed after events began to stream.

        `oldest_ns` and `newest_ns` are the oldest and newest moments in them, `reach_ns` is how
        long a gap of unknown start may be.
        """
        oldest_ns, newest_ns = within_range(Times(oldest_ns, newest_ns))
        for gap in self.open_gaps():
            if not gap.start_known:
                start_ns = max(0, oldest_ns - _BEFORE_START_NS, newest_ns - reach_ns)
                self._put(
                    replace(
                        gap, start_known=True, start_ns=start_ns, end_ns=max(start_ns, gap.end_ns)
                    )
                )
            elif gap.reason == "requested" and not gap.end_known:
                end_ns = max(gap.start_ns, min(gap.end_ns, newest_ns))
                self._put(replace(gap, end_known=True, end_ns=end_ns))
        if not self.awaits_event:
            return
        for gap in self._unended():
            self._put(replace(gap, end_ns=max(gap.end_ns, newest_ns)))
        self._log_command(newest_ns)
        if self._covered is None:
            self._cover(newest_ns, newest_ns)
        else:
            self._cover(self._covered.since_ns, max(self._covered.through_ns, newest_ns))

    def lost(
        self, times: Times | None, reason: Literal["journal_stalled", "journal_full", "damage"]
    ) -> None:
        """Open a gap for a span whose changes were received and are not in the journal."""
        if times is None or not self._is_persistent:
            return
        times = within_range(times)
        for gap in self.open_gaps():
            near = times.oldest_ns - _MERGED_NS <= gap.end_ns and (
                times.newest_ns + _MERGED_NS >= gap.start_ns
            )
            begun = gap.filled_ns is not None or gap.id == self._filling_id
            if near and gap.reason == reason and not begun:
                start_ns = min(gap.start_ns, times.oldest_ns)
                end_ns = max(gap.end_ns, times.newest_ns)
                found_at = self._clock()  # what comes last counts: the recorder lags behind it
                self._put(replace(gap, start_ns=start_ns, end_ns=end_ns, found_at=found_at))
                return
        self._open(times, reason)

    def request(self, times: Times, *, entity_ids: Sequence[str]) -> list[Gap]:
        """Open what is not covered in this span, because a person requests it; return the gaps.

        That is all before the journal began, and the gaps in it that were not filled. Named
        entities are also requested for gaps that were read before: they may have been unknown then.
        """
        # A name that is there twice would end a window before its time.
        entity_ids = tuple(dict.fromkeys(entity_ids))
        found = [
            self._put(replace(gap, state="open", reason="requested", detail=None, closed_at=None))
            for gap in self.gaps()
            if waits_for_request(gap, fills=self.fills) and overlaps(gap, times)
        ]
        is_bounded = self._is_persistent and self._covered is not None
        since_ns = self._covered.since_ns if is_bounded and self._covered else _LAST_NS
        oldest_ns, newest_ns = within_range(times)
        before = Times(oldest_ns, min(newest_ns, since_ns))
        if before.oldest_ns < before.newest_ns and not self._was_requested(before, entity_ids):
            gap = self._open(before, "requested", entity_ids)
            found.append(self._put(replace(gap, end_known=is_bounded)))
        if entity_ids:
            found += [
                self._open(span, "requested", entity_ids)
                for span in spans_read(self._gaps.values(), times)
                if not self._was_requested(span, entity_ids)
            ]
        if found:
            self.opened.set()
        return found

    def _was_requested(self, times: Times, entity_ids: Sequence[str]) -> bool:
        return any(includes(gap, times, entity_ids) for gap in self._gaps.values())

    def start_filling(self, gap: Gap) -> None:
        """Record that this gap is being filled: its start stays as it is."""
        self._filling_id = gap.id

    def stop_filling(self) -> None:
        """Record that no gap is being filled."""
        self._filling_id = None

    def update(self, gap: Gap) -> Gap:
        """Replace the former version of a gap and return the new one; its bounds stay."""
        return self._put(self._with_bounds(gap))

    def close(
        self,
        gap: Gap,
        state: Literal["filled", "nothing_recorded", "unfillable"],
        *,
        detail: str | None,
    ) -> Gap:
        """Close a gap that is filled, or record why it cannot be."""
        gap = self._with_bounds(gap)
        gap = replace(gap, state=state, detail=detail, closed_at=self._clock())
        return self._put(replace(gap, acknowledged=False))

    def acknowledge(self) -> int:
        """Mark the gaps that cannot be filled as acknowledged; return how many were not before."""
        gaps = self.unacknowledged()
        for gap in gaps:
            self._put(replace(gap, acknowledged=True))
        return len(gaps)

    def unacknowledged(self) -> list[Gap]:
        """Return the gaps that cannot be filled and are not acknowledged, newest first."""
        return [gap for gap in self.gaps() if gap.state == "unfillable" and not gap.acknowledged]

    def reopen(self, gap: Gap) -> Gap:
        """Open a closed gap again, so that it is filled."""
        self.opened.set()
        return self._put(replace(gap, state="open", detail=None, closed_at=None))

    def split(self, gap: Gap, before_ns: int, *, detail: str) -> tuple[Gap, Gap]:
        """Give up the part of a gap before a moment; return that part, and the rest."""
        gap = self._with_bounds(gap)
        lost = self._new(Times(gap.start_ns, before_ns), gap.reason, gap.entity_ids)
        lost = replace(lost, state="unfillable", detail=detail, closed_at=self._clock())
        # Marked as partly filled: the states from before the gap no longer hold at its new start.
        rest = replace(gap, start_ns=before_ns, filled_ns=before_ns)
        return self._put(lost), self._put(rest)

    def changes_to_save(
        self, times: Times | None = None, *, received_at: float = 0.0, first: int = 0
    ) -> CoverageChanges:
        """Return what a transaction has to save that appends points of this span.

        `received_at` is that of the oldest, `first` the number of the first; `times` is None for
        points that did not come live.
        """
        covered = self._covered if self._covered_unsaved else None
        if times is not None:
            times = within_range(times)
            covered = self._grown(times, received_at, first=first)
        return CoverageChanges(
            covered=covered,
            before=self._covered,
            gaps=[self._gaps[number] for number in sorted(self._unsaved)],
            deleted=self._too_many() if len(self._gaps) > _MAX_CLOSED else [],
            edge=None if times is None else (first, times.newest_ns),
        )

    def mark_saved(self, changes: CoverageChanges) -> None:
        """Record that a transaction has saved these changes."""
        if changes.edge is not None:
            self._retention.add(*changes.edge)
        if changes.covered is not None and changes.before is self._covered:
            self._covered = changes.covered
            self._covered_unsaved = False  # else a connection has come since
        for gap in changes.gaps:
            if self._gaps.get(gap.id) is gap:  # else it has changed since
                self._unsaved.discard(gap.id)
        for number in changes.deleted:
            if number not in self._unsaved:  # else it was requested again since
                self._gaps.pop(number, None)

    @property
    def _edge_at(self) -> float:
        return self._clock() if self._covered is None else self._covered.edge_at

    def _end(self, times: Times) -> None:
        """End the gap before this connection with the first changes that came live over it.

        What was missed happened before them. Only a clock that was set back meanwhile makes
        them older than what is covered; then what was missed after that is a gap of its own.
        """
        covered = self._covered
        if covered is None or times.newest_ns >= covered.through_ns - _SET_BACK_NS:
            for gap in self._unended():
                self._put(replace(gap, end_known=True, end_ns=max(gap.end_ns, times.newest_ns)))
            self._log_command(times.newest_ns)
            if covered is None:
                self._cover(*times)
            else:
                self._cover(covered.since_ns, max(covered.through_ns, times.newest_ns))
            return
        since_ns = max(0, times.oldest_ns - _BEFORE_SET_BACK_NS)
        for gap in self._unended():
            end_ns = max(gap.end_ns, gap.start_ns + _BEFORE_SET_BACK_NS)
            self._put(replace(gap, end_known=True, end_ns=end_ns))
        if self._is_persistent:
            self._open(Times(since_ns, times.newest_ns), "clock")
        else:
            self._missed_from_ns = since_ns
            self._log_command(times.newest_ns)
        self._cover(min(covered.since_ns, since_ns), times.newest_ns)

    def _unended(self) -> list[Gap]:
        """Return the gaps before this connection whose end is not known, the newest first."""
        return [
            gap
            for gap in self.gaps()
            if gap.state == "open" and not gap.end_known and gap.reason != "requested"
        ]

    def _with_bounds(self, gap: Gap) -> Gap:
        """Return a gap with the bounds that are known now: the first event may have come since."""
        known = self._gaps.get(gap.id, gap)
        if not gap.start_known:
            gap = replace(gap, start_ns=known.start_ns, start_known=known.start_known)
        return replace(
            gap, end_ns=max(gap.end_ns, known.end_ns), end_known=known.end_known or gap.end_known
        )

    def _too_many(self) -> Sequence[int]:
        return [gap.id for gap in self.gaps() if gap.state != "open"][_MAX_CLOSED:]

    def _grown(self, times: Times, received_at: float, *, first: int) -> Covered:
        """Return what is covered with points of this span."""
        covered, keep_from = self._covered, min(self._retention.keep_from, first)
        if covered is None:
            return Covered(times.oldest_ns, times.newest_ns, received_at, keep_from)
        through_ns = max(covered.through_ns, times.newest_ns)
        set_back_ns = covered.through_ns - _SET_BACK_NS
        latest_ns = times.newest_ns if self._latest_ns is None else self._latest_ns
        if max(times.newest_ns, latest_ns) < set_back_ns:
            # The clock was set back while events stream: the next gap begins at the last one.
            # Points that were received before a reconnect are older than what came since.
            through_ns = times.newest_ns
        return Covered(covered.since_ns, through_ns, received_at, keep_from)

    def _cover(self, since_ns: int, through_ns: int) -> None:
        keep_from = self._retention.first
        covered = Covered(since_ns, through_ns, self._edge_at, keep_from)
        if covered != self._covered:
            self._covered = covered
            self._covered_unsaved = True

    def _open(self, times: Times, reason: GapReason, entity_ids: Sequence[str] = ()) -> Gap:
        found = self.open_gaps()
        if len(found) >= _MAX_OPEN and found[-1].reason == reason != "requested":
            # A connection that comes and goes for days must not fill the disk with gaps.
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
                keep_from=self._retention.first,
            )
        )

    def _put(self, gap: Gap) -> Gap:
        self._gaps[gap.id] = gap
        self._unsaved.add(gap.id)
        return gap

    def _log_command(self, end_ns: int) -> None:
        """Log how to request what was missed when the journal is not persistent."""
        start_ns, self._missed_from_ns = self._missed_from_ns, None
        if start_ns is None or self._is_persistent:
            return
        # A second later: the command takes whole seconds.
        since, until = (
            moment_of(time_ns).strftime("%Y-%m-%dT%H:%M:%SZ")
            for time_ns in (start_ns, end_ns + SECOND_NS)
        )
        limited_log.warning(
            "Nothing was captured from %s to %s, and JOURNAL=memory keeps no account of it."
            " To read it back: python -m app backfill --since %s --until %s",
            since,
            until,
            since,
            until,
        )


def within_range(times: Times) -> Times:
    """Return a span as it can be stored: an event may carry any time."""
    oldest_ns, newest_ns = times
    if oldest_ns >= 0 and newest_ns <= _LAST_NS:
        return times
    return Times(min(max(0, oldest_ns), _LAST_NS), min(max(0, newest_ns), _LAST_NS))
