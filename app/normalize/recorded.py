"""Turns the recorder's rows into changes by the same rules as live events, row after row."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from app.homeassistant.messages import Event, EventData, RecordedState, State
from app.model import (
    Change,
    LastNames,
    LastState,
    Placements,
    Times,
    moment_of,
    nanoseconds,
)
from app.normalize.changes import Normalizer

Identity = tuple[str, int]
"""An entity id and `last_updated` in nanoseconds: what identifies a change."""


_NO_ATTRIBUTES = msgspec.Raw(b"{}")


class Recovery:
    """Turns the recorder's rows of one gap into changes; fed window after window, in order.

    The changes equal those of the live events, except for what the recorder does not keep: the
    context, and some attributes.
    """

    def __init__(
        self,
        times: Times,
        *,
        gap: Times,
        placements: Callable[[], Placements],
        before: Mapping[str, LastState],
        newest: Mapping[str, State],
        names: Mapping[str, LastNames],
    ) -> None:
        """Store the bounds and what is known at both ends of the gap.

        Args:
            times: from when to when changes are made, both included.
            gap: the bounds of the gap. `times` reaches beyond them, and begins later in a gap that
                is half filled.
            placements: returns where the entities are now.
            before: the newest change before the gap of each entity of which it is known.
            newest: the current states.
            names: the class, unit and name that each entity has, or had when last available; for
                rows without attributes that no earlier row describes.
        """
        self._times = times
        self._gap = gap
        self._before = before
        self._preceding = before
        """The changes before the gap that the next row of their entity may follow."""
        self._newest = newest
        self._normalizer = Normalizer(placements)
        self._normalizer.restore(names)
        self._restarts_ns: Sequence[int] = ()
        self._last: dict[str, _RowBefore] = {}
        """The newest row or change before the next row of each entity."""
        self._read_through: dict[str, float] = {}
        """The newest row of each entity that was read."""
        self.recorded: set[str] = set()
        """The entities that have a row in `times`."""
        self.recorded_inside: set[str] = set()
        """Those that have a row after the last one that was captured before the gap."""

    def knows_before(self, entity_id: str) -> bool:
        """Whether the row or change before the entity's next row is known."""
        last = self._preceding.get(entity_id)
        return entity_id in self._last or (
            last is not None
            and last.changed_ns is not None
            and last.time_ns < self._times.oldest_ns
        )

    def set_row_before(
        self, entity_id: str, row: RecordedState, *, since_known: bool = True
    ) -> None:
        """Set the entity's newest row before `times`.

        `since_known` is False when the times of the row are made up.
        """
        updated = datetime.fromtimestamp(row.lu, UTC)
        state = None if row.s is None else _recorded_state(entity_id, row, updated)
        last = _RowBefore(state, since_known=since_known) if state else _no_row(entity_id, updated)
        self._last[entity_id] = last
        self._normalized(entity_id, state, old=last.state, at=updated)

    def interrupt(self) -> None:
        """Forget which row or change is before the next row of each entity: rows are missing."""
        self._preceding = {}
        self._last.clear()

    def lacks_names(self, entity_id: str, rows: Sequence[RecordedState]) -> bool:
        """Whether class and unit of an entity's next row are those of an unknown earlier row."""
        return bool(rows) and not rows[0].is_available and entity_id not in self._last

    def describe(self, entity_id: str, row: RecordedState) -> None:
        """Learn class and unit from a row before the entity's next row."""
        updated = datetime.fromtimestamp(row.lu, UTC)
        state = None if row.s is None else _recorded_state(entity_id, row, updated)
        old = _no_row(entity_id, updated).state if state is None else None
        self._normalized(entity_id, state, old=old, at=updated)

    def restarted(self, restarts_ns: Sequence[int]) -> None:
        """Set when Home Assistant wrote its first state after each restart, oldest first."""
        self._restarts_ns = restarts_ns

    def changes(
        self, entity_id: str, rows: Sequence[RecordedState], *, committed: Container[Identity]
    ) -> list[Change]:
        """Return the changes of an entity's next rows that lie in the gap, oldest first.

        Changes in `committed` are left out, but still count as the row before the next one.
        """
        found = []
        read_through = self._read_through.get(entity_id, -math.inf)
        for row in rows:
            if row.lu <= read_through:
                # Home Assistant compares fractions of a microsecond: a row on the boundary of
                # two windows is in both answers.
                continue
            self._read_through[entity_id] = read_through = row.lu
            updated = datetime.fromtimestamp(row.lu, UTC)
            if nanoseconds(updated) < self._times.oldest_ns:
                self.set_row_before(entity_id, row)
            elif nanoseconds(updated) <= self._times.newest_ns:
                self._note_recorded(entity_id, nanoseconds(updated))
                state = self._state(entity_id, row, updated)
                last = self._row_before(entity_id, state, updated)
                change = self._change(entity_id, state, at=updated, last=last)
                if change is not None and (entity_id, change.time_ns) not in committed:
                    found.append(change)
        return found

    def _note_recorded(self, entity_id: str, time_ns: int) -> None:
        self.recorded.add(entity_id)
        if self._gap.oldest_ns < time_ns <= self._gap.newest_ns:
            self.recorded_inside.add(entity_id)

    def unrecorded(
        self, entity_ids: Iterable[str], *, committed: Container[Identity]
    ) -> list[Change]:
        """Return the newest state of each entity that changed in the gap and has no row in it.

        Changes between that were not recorded cannot be known.
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
                last = self._change_before(entity_id, state.last_updated)
                change = self._change(entity_id, state, at=state.last_updated, last=last)
                found += [change] if change is not None else []
        return found

    def _changed_inside(self, state: State) -> bool:
        changed_ns, updated_ns = nanoseconds(state.last_changed), nanoseconds(state.last_updated)
        last = self._before.get(state.entity_id)
        if last is not None and (
            last.time_ns == updated_ns or (last.state, last.changed_ns) == (state.state, changed_ns)
        ):
            return False
        # A state that differs from the last known one may have begun in an earlier gap.
        differs = last is not None and last.state != state.state
        since_ns = updated_ns if differs else changed_ns
        # A later update of nothing but attributes came live, and brought the state with it.
        return self._gap.oldest_ns <= since_ns and updated_ns <= self._times.newest_ns

    def _state(self, entity_id: str, row: RecordedState, updated: datetime) -> State | None:
        if row.s is None:
            return None
        newest = self._newest.get(entity_id)
        if newest is not None and newest.last_updated == updated and newest.state == row.s:
            return newest  # with all attributes and the context, which the recorder does not show
        return _recorded_state(entity_id, row, updated)

    def _change(
        self, entity_id: str, state: State | None, *, at: datetime, last: _RowBefore
    ) -> Change | None:
        """Return the change to this state, or to none, and make it the row before the next."""
        self._last[entity_id] = _no_row(entity_id, at) if state is None else _RowBefore(state)
        change = self._normalized(entity_id, state, old=last.state, at=at)
        return change and msgspec.structs.replace(
            change,
            backfilled=True,
            previous_state=change.previous_state if last.state_known else None,
            duration_s=change.duration_s if last.since_known else None,
        )

    def _normalized(
        self, entity_id: str, state: State | None, *, old: State | None, at: datetime
    ) -> Change | None:
        """Return the change of a live event, from which the normalizer learns class and unit."""
        event = Event(
            "state_changed",
            EventData(entity_id=entity_id, old_state=old, new_state=state),
            time_fired=at,
            context=None if state is None else state.context,
        )
        return next(iter(self._normalizer.changes((event,))[0]), None)

    def _row_before(self, entity_id: str, state: State | None, at: datetime) -> _RowBefore:
        if state is not None and state.last_changed < state.last_updated:
            # An update of nothing but attributes: the state before was the same, whatever we know.
            last = self._newest_before(entity_id, at)
            return _RowBefore(msgspec.structs.replace(state, attributes=last.state.attributes))
        return self._change_before(entity_id, at)

    def _change_before(self, entity_id: str, at: datetime) -> _RowBefore:
        last = self._newest_before(entity_id, at)
        if self._restarted_between(last.state.last_updated, at):
            return _RowBefore(last.state, state_known=False, since_known=False)
        return last

    def _newest_before(self, entity_id: str, at: datetime) -> _RowBefore:
        """Return the newer of the last row and the last known change before the gap.

        They are the same for an entity that is recorded, unless the last row is inside the gap.
        """
        last = self._last.get(entity_id)
        change = self._preceding.get(entity_id)
        if change is not None and change.time_ns < nanoseconds(at):
            before_gap = self._row_of_change(entity_id, change)
            # Of the same moment, a row may show since when the state lasts.
            if last is None or (last.state.last_updated, last.since_known) <= (
                before_gap.state.last_updated,
                before_gap.since_known,
            ):
                return before_gap
        return last or _no_row(entity_id, moment_of(self._times.oldest_ns))

    def _restarted_between(self, before: datetime, at: datetime) -> bool:
        if not self._restarts_ns:
            return False
        next_restart = bisect_right(self._restarts_ns, nanoseconds(before))
        restarts_ns = self._restarts_ns[next_restart:]
        return bool(restarts_ns) and restarts_ns[0] <= nanoseconds(at)

    def _row_of_change(self, entity_id: str, last: LastState) -> _RowBefore:
        updated = moment_of(last.time_ns)
        if last.state is None:
            return _no_row(entity_id, updated)
        changed = updated if last.changed_ns is None else moment_of(last.changed_ns)
        state = State(last.state, changed, updated, _NO_ATTRIBUTES, entity_id=entity_id)
        return _RowBefore(state, since_known=last.changed_ns is not None)


@dataclass(frozen=True, slots=True)
class _RowBefore:
    """The row before the next one."""

    state: State
    state_known: bool = True
    """False when nothing is known, or there was no state."""
    since_known: bool = True
    """False when it is not known since when it had that state."""


def _no_row(entity_id: str, at: datetime) -> _RowBefore:
    state = State("", at, at, _NO_ATTRIBUTES, entity_id=entity_id)
    return _RowBefore(state, state_known=False, since_known=False)


def _recorded_state(entity_id: str, row: RecordedState, updated: datetime) -> State:
    assert row.s is not None, "a removal has no state"
    changed = updated if row.lc is None else datetime.fromtimestamp(row.lc, UTC)
    # A copy: what came is a part of the whole answer, and would keep it in memory.
    attributes = msgspec.Raw(bytes(row.a))
    return State(row.s, changed, updated, attributes, entity_id=entity_id)
