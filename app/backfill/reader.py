"""Reads the recorder's rows of one gap, and what is needed to interpret them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Container, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from app.homeassistant.messages import State
from app.homeassistant.recorded_entities import Entities
from app.homeassistant.recorder import HistoryPage, Recorder, is_entity_id
from app.model import Lifecycle, Times, nanoseconds
from app.normalize.recorded import Identity, Recovery
from app.normalize.restarts import Written, around, first_write_ns, searches, written_rows
from app.runtime.errors import CommandFailed


@dataclass(frozen=True, slots=True)
class HomeAssistantStarts:
    """What is known of Home Assistant's starts without its recorder's rows."""

    lifecycle: Lifecycle
    oldest_state_ns: int | None
    """The oldest `last_changed` of all current states."""


def starts_of(entities: Entities, newest: Mapping[str, State]) -> HomeAssistantStarts:
    """Return what the logbook and the current states show of Home Assistant's starts."""
    oldest_ns = (nanoseconds(state.last_changed) for state in newest.values())
    return HomeAssistantStarts(entities.lifecycle, min(oldest_ns, default=None))


class GapReader:
    """What is read for one gap: the entities, and what is made of their rows."""

    def __init__(self, recorder: Recorder, recovery: Recovery, entity_ids: Sequence[str]) -> None:
        self.recorder = recorder
        self.recovery = recovery
        self.entity_ids = entity_ids
        self.readable = entity_ids
        """Those whose history Home Assistant shows."""

    async def look_back(self, oldest_ns: int) -> None:
        """Read the row before a moment of each entity whose newest change is not remembered."""
        missing = [name for name in self.readable if not self.recovery.knows_before(name)]
        found, older = await self.recorder.rows_before(oldest_ns, missing)
        for name, row in found.items():
            self.recovery.begin_with(name, row)
        for name, row in older.items():
            self.recovery.begin_with(name, row, says_since=False)

    async def look_up_names(self, answer: HistoryPage, oldest_ns: int) -> None:
        """Read the row before a moment that names the class and unit of entities without them."""
        lacking = [
            name for name, rows in answer.history.items() if self.recovery.lacks_names(name, rows)
        ]
        for name, row in (await self.recorder.available_before(oldest_ns, lacking)).items():
            self.recovery.describe(name, row)

    async def find_restarts(self, starts: HomeAssistantStarts, times: Times) -> None:
        """Find when Home Assistant wrote its first state after each restart."""
        restarts_ns = []
        for search in searches(
            around(times), lifecycle=starts.lifecycle, oldest_state_ns=starts.oldest_state_ns
        ):
            rows = await self._written(search.read)
            if (restart_ns := first_write_ns(search, rows)) is not None:
                restarts_ns.append(restart_ns)
        self.recovery.restarted(restarts_ns)

    async def _written(self, times: Times) -> list[Written]:
        """Return what the rows of a span say about restarts."""
        written: list[Written] = []
        before = await self.recorder.states_at(times.oldest_ns, self.readable)
        states = {name: row.s for name, row in before.items()}
        async with aclosing(self.recorder.history(times, self.readable)) as answers:
            async for answer in answers:
                for name, rows in answer.history.items():
                    written += written_rows(name, rows, states.get(name))
                    states[name] = rows[-1].s if rows else states.get(name)
                await asyncio.sleep(0)
        return written


class CapturedIdentities:
    """The identities of what the journal holds of the time that is requested for a gap.

    Home Assistant moves the history of a renamed entity to its new id: a row is also captured if
    an entity of its domain that is gone now was captured at the same microsecond.
    """

    def __init__(self, requested: Times, *, present: Container[str], after: int) -> None:
        """Start with none; `present` are the entities that have a state now."""
        self.requested = requested
        self.after = after
        """Sequence number through which the journal was read."""
        self.through_ns = -1
        """Changes up to here that came live are among the identities."""
        self._present = present
        self._identities: set[Identity] = set()
        self._gone: set[Identity] = set()
        """By domain: those of entities that have no state now."""

    def add(self, identities: Collection[Identity]) -> None:
        """Add what a row of the journal holds."""
        self._identities.update(identities)
        for name, at_ns in identities:
            if name not in self._present:
                self._gone.add((_domain(name), at_ns))

    def __contains__(self, identity: object) -> bool:
        """Whether a change was captured."""
        match identity:
            case str(name), int(at_ns):
                return identity in self._identities or (_domain(name), at_ns) in self._gone
        return False


async def unknown_to(recorder: Recorder, entity_ids: Collection[str]) -> list[str]:
    """Return which of these ids neither Home Assistant nor its recorder knows."""
    states = await recorder.newest_states()
    unknown = {*entity_ids} - states.keys()
    for known in (recorder.registered, recorder.with_statistics):
        with contextlib.suppress(CommandFailed):
            unknown -= await known()
    now_ns = max((nanoseconds(state.last_updated) for state in states.values()), default=0)
    with contextlib.suppress(CommandFailed):
        unknown -= await recorder.ever_recorded(
            sorted(filter(is_entity_id, unknown)), near_ns=now_ns
        )
    return sorted(unknown)


def _domain(entity_id: str) -> str:
    return entity_id.partition(".")[0]
