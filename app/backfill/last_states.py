"""The newest change of each entity, which is its state before a gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.model import Change, Gap, LastState

_MAX_GAPS = 20


class LastStates:
    """The newest change of every entity; the journal saves them every few seconds.

    After a crash the saved ones may be some seconds old: `recall` updates them from the journal's
    newest points.
    """

    def __init__(self) -> None:
        self.through = 0
        """The number of the newest point that is included; later ones are to be recalled."""
        self._states: dict[str, LastState] = {}
        self._first_ns: dict[str, int] = {}
        """When each entity that appeared since the start did so."""
        self._unsaved: dict[str, LastState] = {}
        """Those that have changed since they were last saved."""
        self._before_gaps: dict[int, tuple[int, dict[str, LastState]]] = {}
        """The start of each open gap and the states before it, by the gap's id."""

    def open(self, states: Mapping[str, LastState], *, through: int) -> None:
        """Continue where an earlier process stopped."""
        self._states = dict(states)
        self.through = through

    def update(self, changes: Sequence[Change]) -> None:
        """Set the states of live changes."""
        for change in changes:
            state = LastState(change.state, change.changed_ns, change.time_ns)
            self._states[change.entity_id] = self._unsaved[change.entity_id] = state
            if change.previous_state is None and change.state is not None:
                self._first_ns[change.entity_id] = change.time_ns

    def first_seen_ns(self, entity_id: str) -> int | None:
        """Return when an entity last appeared live under this id; None if it did not."""
        return self._first_ns.get(entity_id)

    def backfilled(self, changes: Sequence[Change]) -> None:
        """Set the states of backfilled changes where they are newer.

        They are also the states before open gaps that begin later.
        """
        for change in changes:
            state = LastState(change.state, change.changed_ns, change.time_ns)
            newest = self._states.get(change.entity_id)
            if newest is None or newest.time_ns < state.time_ns:
                self._states[change.entity_id] = self._unsaved[change.entity_id] = state
            for start_ns, before in self._before_gaps.values():
                former = before.get(change.entity_id)
                is_newer = former is None or former.time_ns < state.time_ns
                if is_newer and state.time_ns <= start_ns:
                    before[change.entity_id] = state

    def changed_since(self, time_ns: int) -> list[str]:
        """Return the entities whose newest change is not before a time."""
        return [name for name, state in self._states.items() if state.time_ns >= time_ns]

    def recall(self, entity_id: str, state: LastState) -> None:
        """Set the newest change that an earlier process committed.

        It is saved again: the next save includes this change, so a later process does not recall
        it.
        """
        self._states[entity_id] = self._unsaved[entity_id] = state

    def retain_before(self, gap: Gap) -> None:
        """Retain the states before a gap until it is closed."""
        if gap.id in self._before_gaps:
            return  # the gap continues over another connection, with no event in between
        while len(self._before_gaps) >= _MAX_GAPS:
            del self._before_gaps[next(iter(self._before_gaps))]
        self._before_gaps[gap.id] = gap.start_ns, self._before(gap.start_ns)

    def discard_before(self, gap: Gap) -> None:
        """Discard the states before a gap."""
        self._before_gaps.pop(gap.id, None)

    def before(self, gap: Gap) -> Mapping[str, LastState]:
        """Return the newest known change of each entity before the unfilled rest of a gap."""
        retained = self._before_gaps.get(gap.id)
        if retained is None or gap.filled_ns is not None or retained[0] != gap.start_ns:
            return self._before(gap.start_ns if gap.filled_ns is None else gap.filled_ns)
        return retained[1]

    def get(self, entity_id: str) -> LastState | None:
        """Return the newest change of an entity."""
        return self._states.get(entity_id)

    def entity_ids(self) -> set[str]:
        """Return all entities with a known change."""
        return {*self._states}

    def states_to_save(self) -> Mapping[str, LastState]:
        """Return the states that have changed since the last successful save."""
        return dict(self._unsaved)

    def mark_saved(self, states: Mapping[str, LastState]) -> None:
        """Record that these are saved."""
        for name, state in states.items():
            if self._unsaved.get(name) is state:  # else it has changed since
                del self._unsaved[name]

    def _before(self, time_ns: int) -> dict[str, LastState]:
        # A change that was received but not durable before a crash is in the gap. If an entity has
        # changed since, its change before is not known here.
        return {name: state for name, state in self._states.items() if state.time_ns <= time_ns}
