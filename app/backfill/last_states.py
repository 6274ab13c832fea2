"""The newest change of each entity: the state before a gap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from app.model import Change, Gap, LastState

_MAX_FROZEN = 20


_Fresh: TypeAlias = tuple[str | None, int | None, int]
"""The fields of a `LastState`, in order."""


class LastStates:
    """Remembers the newest change of every entity; the journal saves it now and then.

    What is saved may be some seconds old: `recall` brings it up to date from the journal's
    newest points.
    """

    def __init__(self) -> None:
        self.through = 0
        """The number of the newest point that is known here; later ones are to be recalled."""
        self._known: dict[str, LastState] = {}
        self._unsaved: dict[str, LastState] = {}
        self._fresh: dict[str, _Fresh] = {}
        """What came since `unsaved` was asked."""
        self._frozen: dict[int, tuple[int, dict[str, LastState]]] = {}
        """The start of each open gap, and what was known before it, by the gap's id."""

    def open(self, states: Mapping[str, LastState], *, through: int) -> None:
        """Continue where an earlier process stopped."""
        self._known = dict(states)
        self.through = through

    def update(self, changes: Sequence[Change]) -> None:
        """Take changes as they come; on the hot path, see `make bench`."""
        # Tuples, because each replaces a former one, and what is freed late costs most.
        fresh = self._fresh
        for change in changes:
            fresh[change.entity_id] = (change.state, change.changed_ns, change.time_ns)

    def backfilled(self, changes: Sequence[Change]) -> None:
        """Add changes that were read back, where they are newer than what is known.

        They also stand before the gaps that begin later and are still open.
        """
        for change in changes:
            state = LastState(change.state, change.changed_ns, change.time_ns)
            known = self._newest(change.entity_id)
            if known is None or known.time_ns < state.time_ns:
                self._fresh[change.entity_id] = (state.state, state.changed_ns, state.time_ns)
            for start_ns, frozen in self._frozen.values():
                former = frozen.get(change.entity_id)
                is_newer = former is None or former.time_ns < state.time_ns
                if is_newer and state.time_ns <= start_ns:
                    frozen[change.entity_id] = state

    def _newest(self, entity_id: str) -> LastState | None:
        fresh = self._fresh.get(entity_id)
        return self._known.get(entity_id) if fresh is None else LastState(*fresh)

    def changed_since(self, time_ns: int) -> list[str]:
        """Return the entities whose newest change is not before a moment."""
        return [name for name, state in self._all().items() if state.time_ns >= time_ns]

    def recall(self, entity_id: str, state: LastState) -> None:
        """Take the newest change that an earlier process made durable."""
        self._known[entity_id] = state

    def freeze(self, gap: Gap) -> None:
        """Keep how everything was before this gap, until it is closed."""
        if gap.id in self._frozen:
            return  # it goes on over another connection, and nothing came in between
        while len(self._frozen) >= _MAX_FROZEN:
            del self._frozen[next(iter(self._frozen))]
        self._frozen[gap.id] = gap.start_ns, self._before(gap.start_ns)

    def thaw(self, gap: Gap) -> None:
        """Forget what was kept for this gap."""
        self._frozen.pop(gap.id, None)

    def before(self, gap: Gap) -> Mapping[str, LastState]:
        """Return the newest change before the rest of a gap of each entity where it is known."""
        frozen = self._frozen.get(gap.id)
        if frozen is None or gap.filled_ns is not None or frozen[0] != gap.start_ns:
            return self._before(gap.start_ns if gap.filled_ns is None else gap.filled_ns)
        return frozen[1]

    def get(self, entity_id: str) -> LastState | None:
        """Return the newest change of one entity, as far as it was known when opened."""
        return self._known.get(entity_id)

    def values(self) -> Iterable[LastState]:
        """Return the newest change of each entity."""
        return self._all().values()

    def entity_ids(self) -> set[str]:
        """Return all entities that are remembered."""
        return {*self._known, *self._fresh}

    def unsaved(self) -> Mapping[str, LastState]:
        """Return what has changed since the last save that went well."""
        fresh, self._fresh = self._fresh, {}
        for name, values in fresh.items():
            self._known[name] = self._unsaved[name] = LastState(*values)
        return dict(self._unsaved)

    def saved(self, states: Mapping[str, LastState]) -> None:
        """Note that these are saved."""
        for name, state in states.items():
            if self._unsaved.get(name) is state:  # else it has changed since
                del self._unsaved[name]

    def _before(self, time_ns: int) -> dict[str, LastState]:
        # A change that was received and not made durable before a crash lies in the gap. Of an
        # entity that has changed since, the change before is not known here.
        return {name: state for name, state in self._all().items() if state.time_ns <= time_ns}

    def _all(self) -> dict[str, LastState]:
        return self._known | {name: LastState(*values) for name, values in self._fresh.items()}
