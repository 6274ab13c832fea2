"""Reads the recorder's rows of one gap, and what is needed to interpret them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing

from app.backfill.journal_reader import CapturedIdentities
from app.homeassistant.messages import State
from app.homeassistant.recorded_entities import Entities
from app.homeassistant.recorder import HistoryPage, Recorder, is_entity_id
from app.model import Change, Times, nanoseconds
from app.normalize.recorded import Recovery
from app.normalize.restarts import Written, around, first_write_ns, searches, written_rows
from app.runtime.errors import CommandFailed

_ROWS_PER_SLICE = 200
"""Turned into changes without yielding to the event loop."""


class GapReader:
    """Reads the rows of one gap, page after page, and turns them into changes."""

    def __init__(
        self,
        recorder: Recorder,
        recovery: Recovery,
        *,
        captured: CapturedIdentities,
        entities: Entities,
        entity_ids: Sequence[str],
        states: Mapping[str, State],
    ) -> None:
        """`entity_ids` are read, `states` are Home Assistant's current states."""
        self.recorder = recorder
        self.recovery = recovery
        self.captured = captured
        self.entities = entities
        self.entity_ids = entity_ids
        self.states = states
        self.readable = entity_ids
        """Those whose history Home Assistant shows."""

    async def leave_out_failing(self) -> Sequence[str]:
        """Leave out the entities whose history Home Assistant fails to show; return them."""
        failing = await self.recorder.failing(self.entity_ids, self.captured.requested)
        self.readable = [name for name in self.entity_ids if name not in {*failing}]
        return failing

    async def prepare(self, times: Times) -> None:
        """Read what is needed to interpret the rows of a span."""
        await self._look_back()
        await self._find_restarts(times)

    async def reaches(self, at_ns: int) -> bool:
        """Whether the recorder holds any row from before a moment, so that none after is purged."""
        return await self.recorder.reaches(at_ns, self.readable)

    async def _look_back(self) -> None:
        """Read the row before the first one of each entity whose newest change is unknown."""
        missing = [name for name in self.readable if not self.recovery.knows_before(name)]
        oldest_ns = self.captured.requested.oldest_ns
        found, older = await self.recorder.rows_before(oldest_ns, missing)
        rows = {**found, **older}
        await self._describe(name for name, row in rows.items() if not row.is_available)
        for name, row in rows.items():
            self.recovery.set_row_before(name, row, since_known=name in found)

    async def _find_restarts(self, times: Times) -> None:
        """Find when Home Assistant wrote its first state after each restart."""
        oldest_ns = (nanoseconds(state.last_changed) for state in self.states.values())
        restarts_ns = []
        for search in searches(
            around(times),
            lifecycle=self.entities.lifecycle,
            oldest_state_ns=min(oldest_ns, default=None),
        ):
            rows = await self._written(search.read)
            if (restart_ns := first_write_ns(search, rows)) is not None:
                restarts_ns.append(restart_ns)
        self.recovery.restarted(restarts_ns)

    async def _written(self, times: Times) -> list[Written]:
        """Return what the rows of a span show of restarts."""
        written: list[Written] = []
        before = await self.recorder.states_at(times.oldest_ns, self.readable)
        states = {name: row.s for name, row in before.items()}
        async with aclosing(self.recorder.history(times, self.readable)) as pages:
            async for page in pages:
                for name, rows in page.history.items():
                    written += written_rows(name, rows, states.get(name))
                    states[name] = rows[-1].s if rows else states.get(name)
                await asyncio.sleep(0)
        return written

    async def pages(self, times: Times) -> AsyncGenerator[HistoryPage, None]:
        """Yield the rows of a span, and of what is requested beyond it.

        Raises:
            CommandFailed: Home Assistant has no history, or does not show it.
            SourceError: the connection was lost or no answer came in time; try again.
        """
        requested = self.captured.requested
        pages = self.recorder.history(
            Times(requested.oldest_ns, max(requested.oldest_ns, times.newest_ns)),
            self.readable,
            reach_ns=requested.newest_ns,
        )
        async with aclosing(pages):
            async for page in pages:
                await self._look_up_names(page)
                yield page

    async def _look_up_names(self, page: HistoryPage) -> None:
        """Look up the class and unit of entities whose first row may not name them."""
        await self._describe(
            name for name, rows in page.history.items() if self.recovery.lacks_names(name, rows)
        )

    async def _describe(self, entity_ids: Iterable[str]) -> None:
        """Read the rows before the gap that name the class and unit of each entity."""
        oldest_ns = self.captured.requested.oldest_ns
        described = await self.recorder.naming_rows(oldest_ns, [*entity_ids])
        for name, rows in described.items():
            for row in rows:
                self.recovery.describe(name, row)

    def changes(self, page: HistoryPage) -> Iterator[Sequence[Change]]:
        """Yield the changes of a page that were not captured, a slice of its rows at a time."""
        for entity_id, rows in page.history.items():
            for start in range(0, len(rows), _ROWS_PER_SLICE):
                some = rows[start : start + _ROWS_PER_SLICE]
                yield self.recovery.changes(entity_id, some, committed=self.captured)


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
