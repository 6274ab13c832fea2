"""Reads from the journal what it already holds, before changes are read back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Container, Sequence
from typing import Protocol

from app.backfill.coverage import Coverage
from app.backfill.last_states import LastStates
from app.model import Gap, LastState, Lines, Row, StoredPoint, Times
from app.normalize.recorded import Identity
from app.runtime import gzip_stream
from app.runtime.errors import StorageError

_COMPARED_PER_S = 50_000
"""Points of the journal that are compared per second: a tenth of a core."""
_COMMIT_POLLS = 600
_COMMIT_POLL_S = 0.1


class RetainedRows(Protocol):
    """The part of the journal that is read."""

    def retained(self, *, after: int = 0) -> AsyncIterator[Row]:
        """Yield the rows that are retained, acked by the sinks or not, in order."""
        ...


class PointQueue(Protocol):
    """The part of the batcher that shows when received points are durable."""

    @property
    def put_points(self) -> int:
        """How many points have ever been received."""
        ...

    def is_done_with(self, put_points: int) -> bool:
        """Whether that many of the first points received are durable or dropped."""
        ...


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


class JournalReader:
    """Reads identities and last states from the rows that the journal retains."""

    def __init__(
        self,
        journal: RetainedRows,
        *,
        batcher: PointQueue,
        caught_up: Callable[[], Awaitable[None]],
        coverage: Coverage,
        last_states: LastStates,
        parse: Callable[[bytes], StoredPoint],
        identity_of: Callable[[bytes], Identity | None],
        last_state_of: Callable[[StoredPoint, LastState | None], LastState],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`caught_up` waits until every event sent so far was received."""
        self._journal = journal
        self._batcher = batcher
        self._caught_up = caught_up
        self._coverage = coverage
        self._last_states = last_states
        self._parse = parse
        self._identity_of = identity_of
        self._last_state_of = last_state_of
        self._sleep = sleep

    async def recall(self) -> None:
        """Update the last state of each entity from points journaled after they were saved.

        Raises:
            StorageError: the journal cannot be read.
        """
        states: dict[str, LastState] = {}
        gaps = self._coverage.gaps()
        async for row in self._journal.retained(after=self._last_states.through):
            await asyncio.to_thread(self._recall_row, row, states, gaps)
        for entity_id, state in states.items():
            self._last_states.recall(entity_id, state)

    def _recall_row(self, row: Row, states: dict[str, LastState], gaps: Sequence[Gap]) -> None:
        for line in _lines(row):
            with contextlib.suppress(ValueError):  # not a line of ours
                point = self._parse(line)
                entity_id = point.tags.get("entity_id")
                if entity_id is None or "event_type" not in point.tags:
                    continue  # device history, which is no change of state
                former = states.get(entity_id) or self._last_states.get(entity_id)
                # Points that were read back come later than newer ones that came live.
                if former is None or former.time_ns <= point.time_ns:
                    states[entity_id] = self._recalled(point, former, gaps)

    def _recalled(
        self, point: StoredPoint, former: LastState | None, gaps: Sequence[Gap]
    ) -> LastState:
        state = self._last_state_of(point, former)
        if former is None or state.changed_ns != former.changed_ns:
            return state
        # An update of nothing but attributes; the state may have changed in a gap before it.
        if any(gap.start_ns < point.time_ns and former.time_ns < gap.end_ns for gap in gaps):
            return LastState(state.state, None, state.time_ns)
        return state

    async def captured(
        self, requested: Times, *, present: Container[str], through_ns: int
    ) -> CapturedIdentities:
        """Return what was captured of a span; `present` are the entities that have a state now."""
        captured = CapturedIdentities(
            requested, present=present, after=self._coverage.keep_from - 1
        )
        await self.catch_up(captured, through_ns)
        return captured

    async def catch_up(self, captured: CapturedIdentities, through_ns: int) -> None:
        """Add everything that came live up to a moment.

        A change that is read back may have come live as well and not be committed yet.

        Raises:
            SourceError: the connection was lost.
            StorageError: the journal cannot be read, or takes no points.
        """
        if through_ns <= captured.through_ns:
            return
        await self._caught_up()
        await self._until_committed()
        async for row in self._journal.retained(after=captured.after):
            captured.add(await asyncio.to_thread(self._identities, row, captured.requested))
            captured.after = row.last
            # Live points are committed meanwhile: the more there are, the less they can wait.
            await self._sleep(row.points / _COMPARED_PER_S)
        captured.through_ns = through_ns

    async def _until_committed(self) -> None:
        """Wait until everything received so far is durable or dropped."""
        received = self._batcher.put_points
        for _ in range(_COMMIT_POLLS):
            if self._batcher.is_done_with(received):
                return
            await self._sleep(_COMMIT_POLL_S)
        raise StorageError("the journal takes no points")

    def _identities(self, row: Row, times: Times) -> set[Identity]:
        identities = map(self._identity_of, _lines(row))
        return {
            identity
            for identity in identities
            if identity is not None and times.oldest_ns <= identity[1] <= times.newest_ns
        }


def _domain(entity_id: str) -> str:
    return entity_id.partition(".")[0]


def _lines(row: Row) -> list[bytes]:
    try:
        return Lines(gzip_stream.decompressed(row.gzip), row.points).split()
    except gzip_stream.Damaged:
        return []  # delivery reports that it is damaged
