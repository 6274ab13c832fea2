"""From the recorder's rows to changes: the same rules as for live events, row after row."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from app.model import (
    Change,
    Event,
    EventData,
    LastState,
    Placements,
    RecordedState,
    State,
    Times,
    moment_of,
    nanoseconds,
)
from app.normalize.changes import Normalizer

Identity = tuple[str, int]
"""An entity id and `last_updated` in nanoseconds: what tells one change from all others."""


class Recovery:
    """Makes changes of what is read back for one gap; asked window after window, in order."""

    def __init__(
        self,
        times: Times,
        *,
        changed_from_ns: int,
        placements: Callable[[], Placements],
        before: Mapping[str, LastState],
        newest: Mapping[str, State],
    ) -> None:
        """Take the bounds and what is known of the gap's two sides.

        Args:
            times: from when to when changes are made, both included; rows before that only
                say what was true.
            changed_from_ns: where the gap begins; earlier than `times` when it is half filled.
            placements: tells where the entities are now.
            before: the newest change before the gap, of each entity of which it is known.
            newest: the states as they are now.
        """
        self._times = times
        self._changed_from_ns = changed_from_ns
        self._before = before
        self._newest = newest
        self._normalizer = Normalizer(placements)
        self._last: dict[str, _Last] = {}
        """The row before the next, of entities that have had one."""
        self._read_through: dict[str, float] = {}
        """The newest row of each entity that was read."""
        self.recorded: set[str] = set()
        """The entities that have a row in the gap."""

    def knows_before(self, entity_id: str) -> bool:
        """Whether the row before the next one is known.

        In a gap that is half filled it is not: the entity may have changed in the first half.
        """
        return entity_id in self._last or self._is_remembered(entity_id)

    def changes(
        self, entity_id: str, rows: Sequence[RecordedState], *, committed: Collection[Identity]
    ) -> list[Change]:
        """Return the changes of an entity's next rows that lie in the gap, oldest first.

        Those whose identity is in `committed` are left out, and are the row before all the same.
        """
        found = []
        read_through = self._read_through.get(entity_id, -math.inf)
        for row in rows:
            if row.lu <= read_through:
                # Home Assistant compares fractions of a microsecond: a row on the boundary of
                # two windows comes in both.
                continue
            self._read_through[entity_id] = read_through = row.lu
            updated = datetime.fromtimestamp(row.lu, UTC)
            if nanoseconds(updated) < self._times.oldest_ns:
                self._begin_with(entity_id, row, updated)
            elif nanoseconds(updated) <= self._times.newest_ns:
                self.recorded.add(entity_id)
                change = self._change(entity_id, self._state(entity_id, row, updated), at=updated)
                if change is not None and (entity_id, change.time_ns) not in committed:
                    found.append(change)
        return found

    def unrecorded(
        self, entity_ids: Iterable[str], *, committed: Collection[Identity]
    ) -> list[Change]:
        """Return the newest state of each entity that changed in the gap and has no row in it.

        Changes that came and went without being recorded cannot be known.
        """
        found = []
        for entity_id in entity_ids:
            state = self._newest.get(entity_id)
            if state is None or entity_id in self.recorded or not self._changed_inside(state):
                continue
            # With its beginning committed the state is: later updates that changed nothing
            # move `last_updated`, and there is no event for them.
            moments = {nanoseconds(state.last_changed), nanoseconds(state.last_updated)}
            if not any((entity_id, moment_ns) in committed for moment_ns in moments):
                change = self._change(entity_id, state, at=state.last_updated)
                found += [change] if change is not None else []
        return found

    def _is_remembered(self, entity_id: str) -> bool:
        is_half_filled = self._times.oldest_ns > self._changed_from_ns
        return entity_id in self._before and not is_half_filled

    def _changed_inside(self, state: State) -> bool:
        changed_ns, updated_ns = nanoseconds(state.last_changed), nanoseconds(state.last_updated)
        last = self._before.get(state.entity_id)
        is_known = last is not None and (last.state, last.changed_ns) == (state.state, changed_ns)
        # A later update of nothing but attributes came live, and brought the state with it.
        return (
            not is_known
            and self._changed_from_ns <= changed_ns
            and updated_ns <= self._times.newest_ns
        )

    def _begin_with(self, entity_id: str, row: RecordedState, at: datetime) -> None:
        # The made-up row may be followed by one that lies a microsecond before the bounds.
        if self._is_remembered(entity_id):
            return
        if row.s is None:
            self._last[entity_id] = self._nothing(entity_id)
        else:
            state = State(row.s, at, at, _own(row.a), entity_id=entity_id)
            self._last[entity_id] = _Last(state, says_since=False)

    def _state(self, entity_id: str, row: RecordedState, updated: datetime) -> State | None:
        if row.s is None:
            return None
        newest = self._newest.get(entity_id)
        if newest is not None and newest.last_updated == updated and newest.state == row.s:
            return newest  # with all attributes, and the context, which the recorder does not tell
        changed = updated if row.lc is None else datetime.fromtimestamp(row.lc, UTC)
        return State(row.s, changed, updated, _own(row.a), entity_id=entity_id)

    def _change(self, entity_id: str, state: State | None, *, at: datetime) -> Change | None:
        """Return the change to this state, or to none, and make it the row before the next."""
        last = self._last.get(entity_id)
        if last is None:
            known = self._is_remembered(entity_id)
            last = self._last_before(entity_id) if known else self._nothing(entity_id)
        event = Event(
            "state_changed",
            EventData(entity_id=entity_id, old_state=last.state, new_state=state),
            time_fired=at,
            context=None if state is None else state.context,
        )
        self._last[entity_id] = self._nothing(entity_id) if state is None else _Last(state)
        # An update of nothing but attributes says itself that the state lasts.
        says_since = last.says_since or (
            state is not None and state.last_changed < state.last_updated
        )
        for change in self._normalizer.changes((event,))[0]:
            return msgspec.structs.replace(
                change,
                backfilled=True,
                previous_state=change.previous_state if last.says_state else None,
                duration_s=change.duration_s if last.says_state and says_since else None,
            )
        return None

    def _last_before(self, entity_id: str) -> _Last:
        last = self._before.get(entity_id)
        if last is None or last.state is None:
            return self._nothing(entity_id)
        changed = moment_of(last.time_ns if last.changed_ns is None else last.changed_ns)
        state = State(
            last.state,
            changed,
            moment_of(last.time_ns),
            self._attributes(entity_id),
            entity_id=entity_id,
        )
        return _Last(state, says_since=last.changed_ns is not None)

    def _nothing(self, entity_id: str) -> _Last:
        start = moment_of(self._times.oldest_ns)
        state = State("", start, start, self._attributes(entity_id), entity_id=entity_id)
        return _Last(state, says_state=False)

    def _attributes(self, entity_id: str) -> msgspec.Raw:
        """Return today's attributes: they tell the class and the unit of the series.

        A row that says `unavailable` has none, and must stay in its series.
        """
        newest = self._newest.get(entity_id)
        return newest.attributes if newest else msgspec.Raw(b"{}")


@dataclass(frozen=True, slots=True)
class _Last:
    """The row before the next one."""

    state: State
    says_state: bool = True
    """False when nothing is known, or there was none."""
    says_since: bool = True
    """False when it is not known how long it had lasted."""


def _own(raw: msgspec.Raw) -> msgspec.Raw:
    # A copy: what came is a part of the whole answer, and would keep it in memory.
    return msgspec.Raw(bytes(raw))
