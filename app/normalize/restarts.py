"""Restarts of Home Assistant, as revealed by the recorder's rows.

After a restart the first state of every entity has no old state, so a live event carries no
previous state. The recorder keeps no such mark: its rows simply continue. A restart shows in three
ways: the logbook has an entry when Home Assistant has started (and, unless it was killed, one when
it began to stop); no current state is older than the newest restart; and every entity that kept its
state repeats it with a new `last_changed`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from app.homeassistant.messages import RecordedState
from app.model import SECOND_NS, Lifecycle, Times, nanoseconds

_SEARCHED_NS = 600 * SECOND_NS
"""How long before its end a start is searched when no stop was recorded."""
_SILENCE_NS = 2 * SECOND_NS
"""Home Assistant takes at least this long from its last write to the first after a restart."""
_FIRST_STATES_NS = 60 * SECOND_NS
"""How long after its first state Home Assistant still writes first states."""
_MIN_REPEATING = 2


@dataclass(frozen=True, slots=True)
class Search:
    """A span in which Home Assistant began to run again."""

    times: Times
    is_certain: bool
    """False when only the current states hint at a restart: the rows must confirm it."""
    state_ns: int | None = None
    """When the oldest current state began, if it did so in this span."""

    @property
    def read(self) -> Times:
        """The span whose rows are needed to find the moment."""
        extra_ns = 0 if self.is_certain else _FIRST_STATES_NS
        return Times(self.times.oldest_ns, self.times.newest_ns + extra_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The part of a recorded row that can reveal a restart."""

    time_ns: int
    changed_ns: int
    entity_id: str
    repeats: bool
    """Whether the state is that of the row before, with a new `last_changed`."""


def written_rows(
    entity_id: str, rows: Iterable[RecordedState], state_before: str | None
) -> Iterator[Written]:
    """Yield what an entity's rows, oldest first, say about restarts."""
    for row in rows:
        changed = row.lu if row.lc is None else row.lc
        yield Written(
            time_ns=nanoseconds(datetime.fromtimestamp(row.lu, UTC)),
            changed_ns=nanoseconds(datetime.fromtimestamp(changed, UTC)),
            entity_id=entity_id,
            repeats=row.lc is None and row.s is not None and row.s == state_before,
        )
        state_before = row.s


def around(span: Times) -> Times:
    """Return the span in which to look for restarts that matter in a span.

    Home Assistant may have begun to start before it, and have started after it. A start that was
    complete some time before it may have first states in it, and is itself searched.
    """
    return Times(max(0, span.oldest_ns - 2 * _SEARCHED_NS), span.newest_ns + _SEARCHED_NS)


def searches(span: Times, *, lifecycle: Lifecycle, oldest_state_ns: int | None) -> list[Search]:
    """Return where in a span, as `around` returns it, to search for restarts, oldest first.

    `oldest_state_ns` is the oldest `last_changed` of all current states: no restart is newer.
    A start that may have begun before the span is left out: only part of it could be searched, and
    its first states would seem to be from before it.
    """
    found: list[Search] = []
    after_ns = span.oldest_ns

    def may_begin_before(search: Search) -> bool:
        is_cut_off = search.times.newest_ns - _SEARCHED_NS < span.oldest_ns
        return is_cut_off and search.times.oldest_ns == span.oldest_ns

    for started_ns in lifecycle.started_ns:
        stops = [at_ns for at_ns in lifecycle.stopped_ns if after_ns <= at_ns < started_ns]
        found += _interrupted(stops)
        oldest_ns = stops[-1] if stops else max(after_ns, started_ns - _SEARCHED_NS)
        newest_ns, state_ns = started_ns, None
        if oldest_state_ns is not None and oldest_ns < oldest_state_ns < newest_ns:
            newest_ns = state_ns = oldest_state_ns
        found.append(Search(Times(oldest_ns, newest_ns), is_certain=True, state_ns=state_ns))
        after_ns = started_ns
    if oldest_state_ns is not None and after_ns < oldest_state_ns <= span.newest_ns:
        stops = [at_ns for at_ns in lifecycle.stopped_ns if after_ns <= at_ns < oldest_state_ns]
        found += _interrupted(stops)
        oldest_ns = stops[-1] if stops else max(after_ns, oldest_state_ns - _SEARCHED_NS)
        times = Times(oldest_ns, oldest_state_ns)
        found.append(Search(times, is_certain=False, state_ns=oldest_state_ns))
    return [search for search in found if not may_begin_before(search)]


def _interrupted(stops: Sequence[int]) -> list[Search]:
    """Return a search for each start that was stopped before Home Assistant had started."""
    return [Search(Times(*times), is_certain=True) for times in pairwise(stops)]


def first_write_ns(search: Search, rows: Iterable[Written]) -> int | None:
    """Return when Home Assistant set its first state after the restart; None without one.

    It may have done so before the recorder listened, so that no row has this time.
    """
    ordered = sorted(rows, key=lambda row: row.time_ns)
    # Before the first silence, the previous start may still write first states.
    silent_until_ns = _first_silence_end_ns(search, ordered)
    repeated = [at_ns for at_ns in _first_repeats(ordered) if at_ns >= silent_until_ns]
    if not search.is_certain and len(repeated) < _MIN_REPEATING:
        return None
    latest_ns = min([search.times.newest_ns, *repeated])
    if search.state_ns is not None:
        state = Written(
            time_ns=search.state_ns, changed_ns=search.state_ns, entity_id="", repeats=False
        )
        ordered = sorted([*ordered, state], key=lambda row: row.time_ns)
    possible = _possible_starts(search, ordered, latest_ns)
    if not possible:
        return latest_ns
    long_silences = [at_ns for silence_ns, at_ns in possible if silence_ns >= _SILENCE_NS]
    return max(long_silences) if long_silences else max(possible)[1]


def _first_repeats(rows: Sequence[Written]) -> list[int]:
    """Return when entities repeated their state; those that always do (`force_update`) left out."""
    repeats = Counter(row.entity_id for row in rows if row.repeats)
    return [row.time_ns for row in rows if row.repeats and repeats[row.entity_id] == 1]


def _first_silence_end_ns(search: Search, rows: Sequence[Written]) -> int:
    """Return when the first silence ends that is long enough for a restart."""
    before_ns = search.times.oldest_ns
    for row in rows:
        if row.time_ns - before_ns >= _SILENCE_NS:
            return row.time_ns
        before_ns = row.time_ns
    return search.times.newest_ns


def _possible_starts(
    search: Search, rows: Sequence[Written], latest_ns: int
) -> list[tuple[int, int]]:
    """Return the silence before, and the time of, each state that may be the first after a start.

    A state that began before a silence and is written again after it was not lost in it, which
    rules the silence out. One that began in the silence may be the first state.
    """
    began_ns = latest_ns
    possible = []
    ends = [search.times.oldest_ns, *(row.time_ns for row in rows)]
    for before_ns, row in reversed(list(zip(ends, rows, strict=False))):
        began_ns = min(began_ns, row.changed_ns)
        if before_ns < began_ns:
            possible.append((row.time_ns - before_ns, min(row.time_ns, began_ns)))
    return possible
