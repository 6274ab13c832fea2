"""Fills gaps: what was missed is read back from Home Assistant's recorder and journaled.

One gap at a time, the oldest first, while events stream. A gap that is half filled when the
connection or the process ends goes on from there: it is a row of the journal, and what was
written twice by then is the same point.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

from app import members
from app.errors import CommandFailed, SourceError, SourceProtocolError, StorageError
from app.journal.coverage import Coverage
from app.journal.last_states import LastStates
from app.logs import Repeats
from app.model import (
    MAX_TIME_NS,
    Change,
    Gap,
    LastState,
    Lines,
    Placements,
    Row,
    State,
    StoredPoint,
    Times,
    moment_of,
    nanoseconds,
)
from app.normalize.recorded import Identity, Recovery
from app.resilience import Backoff, contained
from app.snapshot import GapsStatus
from app.source.backfill import Answer, Call, Patience, Recorder, all_entities
from app.telemetry import Telemetry

logger = logging.getLogger(__name__)

_SECOND_NS = 1_000_000_000
_REQUESTED_BEYOND_NS = 30 * _SECOND_NS
"""How far beyond the bounds of a gap changes are requested: events are not strictly in the order
of their times, and a clock may be corrected by seconds. What is there twice has one identity."""
_LONGEST_NS = 366 * 86_400 * _SECOND_NS
"""A gap that is longer comes from a wrong clock, which must not decide that it is too old."""
_COMPARED_PER_S = 50_000
"""So many points of the journal are looked at in a second: a tenth of a core."""
_CHANGES_PER_APPEND = 200
_LOOKS_FOR_COMMIT = 600
_COMMIT_LOOK_S = 0.1
_LOOKS_FOR_START = 600
_START_LOOK_S = 1.0
# Home Assistant's own trouble, which may pass: its recorder is busy, migrates, or failed once.
_PASSING = frozenset({"unknown_error", "home_assistant_error", "timeout"})
_ATTEMPTS = 10
_DROPPED = frozenset({"journal_stalled", "journal_full"})


class Commands(Protocol):
    """A connection to Home Assistant for questions."""

    @property
    def call(self) -> Call:
        """What sends a command."""
        ...


class Journal(Protocol):
    """What is needed of the journal."""

    async def append(self, lines: Lines, *, received_at: float) -> None:
        """Make points durable, or raise a `StorageError`."""

    def kept(self, *, after: int = 0) -> AsyncIterator[Row]:
        """Yield the rows that are still there, settled or not, in order."""
        ...


class Waiting(Protocol):
    """The intake, as far as one must know what it still holds."""

    @property
    def put_points(self) -> int:
        """How many points have ever been received."""
        ...

    def is_done_with(self, put_points: int) -> bool:
        """Whether the first so many of them are durable, or dropped."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """How changes become lines, and what can be read from a line again."""

    encode: Callable[[Sequence[Change]], Lines]
    parse: Callable[[bytes], StoredPoint]
    identity_of: Callable[[bytes], Identity | None]
    last_state_of: Callable[[StoredPoint, LastState | None], LastState]


class Backfill:
    """Fills one open gap after the other."""

    def __init__(
        self,
        *,
        commands: Callable[[], AbstractAsyncContextManager[Commands]],
        caught_up: Callable[[], Awaitable[None]],
        streaming: asyncio.Event,
        is_running: Callable[[], bool],
        coverage: Coverage,
        last_states: LastStates,
        journal: Journal,
        intake: Waiting,
        schema: Schema,
        placements: Callable[[], Placements],
        keep: Callable[[Sequence[Change]], Sequence[Change]],
        telemetry: Telemetry,
        backoff: Backoff,
        max_hours: float = 240.0,
        points_per_s: float = 2_000.0,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Store the parts and the settings BACKFILL_*.

        `caught_up` waits until every event sent so far was received. `streaming` is set while
        events stream and the registries are known; `is_running` returns whether Home Assistant
        is. `keep` returns what transforms and filter leave of changes; `clock` gives seconds
        since the epoch.
        """
        self._commands = commands
        self._caught_up = caught_up
        self._streaming = streaming
        self._is_running = is_running
        self._coverage = coverage
        self._last_states = last_states
        self._journal = journal
        self._intake = intake
        self._schema = schema
        self._placements = placements
        self._keep = keep
        self._telemetry = telemetry
        self._backoff = backoff
        self._max_hours = max_hours
        self._points_per_s = points_per_s
        self._patience = patience or Patience()
        self._clock = clock
        self._sleep = sleep
        self._reason: str | None = None
        self._failures = Repeats(logger)
        self._endings = Repeats(logger)
        self._oddities = Repeats(logger)

    def status(self) -> GapsStatus:
        """Return this part of the snapshot."""
        return GapsStatus(
            open=self._coverage.count("open"),
            filled=self._coverage.count("filled"),
            unfillable=self._coverage.count("unfillable"),
            backfilled=self._telemetry.backfilled,
            reason=self._reason or self._losing(),
        )

    def _losing(self) -> str | None:
        dropped = [gap for gap in self._coverage.open_gaps() if gap.reason in _DROPPED]
        if not dropped:
            return None
        return (
            "Events were dropped before they were durable, because the disk or this machine did not"
            " keep up; what Home Assistant recorded of them is read back, see /api/v1/gaps."
        )

    async def recall(self) -> None:
        """Bring what is remembered of each entity up to date from the journal's newest points.

        Raises:
            StorageError: the journal cannot be read.
        """
        states: dict[str, LastState] = {}
        async for row in self._journal.kept(after=self._last_states.through):
            await asyncio.to_thread(self._recall, row, states)
        for entity_id, state in states.items():
            self._last_states.recall(entity_id, state)

    async def run(self) -> None:
        """Fill what is open, for ever; what fails is tried again, later and later."""
        while True:
            await self._streaming.wait()
            gap = self._next()
            if gap is None:
                self._coverage.opened.clear()
                if not self._coverage.is_unbounded or await self._bounded():
                    await self._coverage.opened.wait()
                continue
            try:
                with contained("filling a gap", error=SourceProtocolError):
                    await self._fill(gap)
            except (SourceError, StorageError) as exc:
                await self._failed(gap, exc)
            else:
                self._backoff.reset()
                self._reason = None
                self._failures.over("What was missed is read back again")

    def _next(self) -> Gap | None:
        gaps = self._coverage.open_gaps()
        return next(filter(self._coverage.will_be_filled, gaps), None)

    async def _bounded(self) -> bool:
        """Bound gaps that are not filled now, and the first span; return whether it succeeded."""
        try:
            async with self._commands() as commands:
                self._bound(await self._recorder(commands).newest_states())
        except SourceError as exc:
            logger.debug("Home Assistant's states cannot be listed: %s", exc)
            await self._sleep(self._backoff.next_s())
            return False
        self._backoff.reset()
        return True

    def _bound(self, states: Mapping[str, State]) -> int:
        """Bound gaps by the times in Home Assistant's states; return the newest, or 0."""
        moments = {nanoseconds(state.last_updated) for state in states.values()}
        if not moments:
            return 0
        self._coverage.bound(
            oldest_ns=min(moments),
            newest_ns=max(moments),
            reach_ns=int(self._max_hours * 3600 * _SECOND_NS),
        )
        return max(moments)

    async def _failed(self, gap: Gap, exc: SourceError | StorageError) -> None:
        if not self._streaming.is_set():
            return  # the connection was lost, which is said elsewhere
        wait_s = self._backoff.next_s()
        self._reason = (
            f"What was missed {_span(gap)} cannot be read back from Home Assistant: {exc}."
            " It is tried again by itself; see /api/v1/gaps."
        )
        self._failures.tell(
            logging.WARNING,
            "Backfill of %s failed, next attempt in %.1fs: %s",
            _span(gap),
            wait_s,
            exc,
            kind=type(exc).__name__,
        )
        await self._sleep(wait_s)

    async def _fill(self, gap: Gap) -> None:
        self._coverage.take(gap)
        try:
            await self._until_running()
            async with self._commands() as commands:
                gap = await self._recover(gap, self._recorder(commands))
        finally:
            self._coverage.release()
        self._last_states.thaw(gap)

    def _recorder(self, commands: Commands) -> Recorder:
        return Recorder(
            commands.call,
            patience=self._patience,
            clock=self._clock,
            sleep=self._sleep,
            oddities=self._oddities,
        )

    def _within_reach(self, gap: Gap, newest_ns: int) -> Gap:
        """Give up what is older than the recorder keeps, and return the rest.

        Both clocks must agree on that: `newest_ns` is the newest moment in Home Assistant's
        states, and our own clock may not be set yet.
        """
        if gap.reason == "requested" or gap.filled_ns is not None:
            return gap
        now_ns = min(newest_ns, int(self._clock() * _SECOND_NS))
        oldest_ns = now_ns - int(self._max_hours * 3600 * _SECOND_NS)
        detail = f"Older than BACKFILL_MAX_HOURS ({self._max_hours:g})"
        if gap.start_ns >= oldest_ns or newest_ns - gap.start_ns > _LONGEST_NS:
            return gap
        if gap.end_ns <= oldest_ns:
            lost = gap = self._coverage.close(gap, "unfillable", detail=detail)
        else:
            lost, gap = self._coverage.split(gap, oldest_ns, detail=detail)
        self._endings.tell(
            logging.WARNING, "The gap %s is not filled: %s", _span(lost), detail, kind="lost"
        )
        return gap

    async def _until_running(self) -> None:
        """Wait for Home Assistant: while it starts its history is not there yet."""
        for _ in range(_LOOKS_FOR_START):
            if self._is_running() or not self._streaming.is_set():
                return
            await self._sleep(_START_LOOK_S)

    async def _recover(self, gap: Gap, recorder: Recorder) -> Gap:
        """Journal what the recorder has of the gap, then close it."""
        await recorder.until_written()
        newest = await recorder.newest_states()
        newest_ns = self._bound(newest)
        gap = self._within_reach(self._coverage.update(gap), newest_ns)
        if gap.state != "open":
            return gap
        entity_ids = gap.entity_ids or all_entities(newest, self._last_states.entity_ids())
        times, requested = _still_to_fill(gap), _requested(gap)
        captured = _Captured(requested, after=self._coverage.keep_from - 1)
        await self._catch_up(captured, newest_ns)
        recovery = Recovery(
            requested,
            changed_from_ns=gap.start_ns,
            placements=self._placements,
            before=self._last_states.before(gap),
            newest=newest,
        )
        unknown = {name for name in entity_ids if not recovery.knows_before(name)}
        history = recorder.history(
            Times(requested.oldest_ns, max(requested.oldest_ns, times.newest_ns)),
            entity_ids,
            with_start=unknown,
            is_new=gap.reason != "requested",
            reach_ns=requested.newest_ns,
        )
        gap, detail = await self._read_back(gap, history, recovery, captured)
        changes = self._keep(recovery.unrecorded(entity_ids, committed=captured.identities))
        await self._journal_slowly(changes)
        gap = replace(
            gap,
            entities=max(gap.entities, len(recovery.recorded)),
            unrecorded=tuple(change.entity_id for change in changes),
        )
        gap = self._coverage.close(gap, "unfillable" if detail else "filled", detail=detail)
        self._tell(gap)
        return gap

    async def _read_back(
        self,
        gap: Gap,
        history: AsyncGenerator[Answer, None],
        recovery: Recovery,
        captured: _Captured,
    ) -> tuple[Gap, str | None]:
        """Journal all answers; return the gap as it is then, and why no more can be had."""
        try:
            async with aclosing(history) as answers:
                async for answer in answers:
                    await self._catch_up(captured, _newest_ns(answer))
                    journaled = await self._journal_answer(answer, recovery, captured.identities)
                    gap = self._progressed(gap, journaled, answer.through_ns)
        except CommandFailed as exc:
            if exc.code in _PASSING and self._backoff.attempt < _ATTEMPTS:
                raise
            return gap, f"Home Assistant shows no history: {exc}"
        return gap, None

    async def _catch_up(self, captured: _Captured, through_ns: int) -> None:
        """Add to what is known to be captured all that came live up to a moment.

        A change that was read back may have come live as well, and still be on its way.
        """
        if through_ns <= captured.through_ns:
            return
        await self._caught_up()
        await self._until_committed()
        async for row in self._journal.kept(after=captured.after):
            captured.identities |= await asyncio.to_thread(
                self._identities, row, captured.requested
            )
            captured.after = row.last
            # Points were dropped because too many came: the rest of them must not be hindered.
            await self._sleep(row.points / _COMPARED_PER_S)
        captured.through_ns = through_ns

    async def _until_committed(self) -> None:
        """Wait until all that was received so far is durable, or dropped."""
        received = self._intake.put_points
        for _ in range(_LOOKS_FOR_COMMIT):
            if self._intake.is_done_with(received):
                return
            await self._sleep(_COMMIT_LOOK_S)
        raise StorageError("the journal takes no points")

    async def _journal_answer(
        self, answer: Answer, recovery: Recovery, committed: Collection[Identity]
    ) -> int:
        """Journal the changes of one answer, and return how many there were.

        Some at a time: an answer may hold tens of thousands, and events come meanwhile.
        """
        journaled = 0
        changes: list[Change] = []
        for entity_id, rows in answer.history.items():
            for start in range(0, len(rows), _CHANGES_PER_APPEND):
                some = rows[start : start + _CHANGES_PER_APPEND]
                changes += self._keep(recovery.changes(entity_id, some, committed=committed))
                while len(changes) >= _CHANGES_PER_APPEND:
                    journaled += _CHANGES_PER_APPEND
                    await self._journal_slowly(changes[:_CHANGES_PER_APPEND])
                    del changes[:_CHANGES_PER_APPEND]
                await asyncio.sleep(0)
        await self._journal_slowly(changes)
        return journaled + len(changes)

    async def _journal_slowly(self, changes: Sequence[Change]) -> None:
        """Journal changes, no faster than BACKFILL_RATE and never many at once."""
        for start in range(0, len(changes), _CHANGES_PER_APPEND):
            lines = self._schema.encode(changes[start : start + _CHANGES_PER_APPEND])
            await self._journal.append(lines, received_at=self._clock())
            self._telemetry.points_backfilled(lines.points)
            await self._sleep(lines.points / self._points_per_s)

    def _progressed(self, gap: Gap, changes: int, through_ns: int | None) -> Gap:
        filled_ns = gap.filled_ns if through_ns is None else through_ns
        return self._coverage.update(
            replace(gap, changes=gap.changes + changes, filled_ns=filled_ns)
        )

    def _recall(self, row: Row, states: dict[str, LastState]) -> None:
        for line in _lines(row):
            with contextlib.suppress(ValueError):  # not a line of ours
                point = self._schema.parse(line)
                entity_id = point.tags.get("entity_id")
                if entity_id is None or "event_type" not in point.tags:
                    continue  # device history, which is no change of state
                former = states.get(entity_id) or self._last_states.get(entity_id)
                # Points that were read back come later than newer ones that came live.
                if former is None or former.time_ns <= point.time_ns:
                    states[entity_id] = self._schema.last_state_of(point, former)

    def _tell(self, gap: Gap) -> None:
        self._endings.tell(
            logging.INFO,
            "Backfilled %s: %s changes of %s entities; %s entities have no recorded history",
            _span(gap),
            f"{gap.changes:,}",
            f"{gap.entities:,}",
            f"{len(gap.unrecorded):,}",
        )
        if gap.detail:
            self._endings.tell(
                logging.WARNING,
                "The gap %s cannot be filled: %s",
                _span(gap),
                gap.detail,
                kind="unfillable",
            )

    def _identities(self, row: Row, times: Times) -> set[Identity]:
        identities = (self._schema.identity_of(line) for line in _lines(row))
        return {
            identity
            for identity in identities
            if identity is not None and times.oldest_ns <= identity[1] <= times.newest_ns
        }


@dataclass(slots=True)
class _Captured:
    """What the journal holds of the time that is requested for a gap."""

    requested: Times
    after: int
    """Sequence number through which the journal was read."""
    through_ns: int = -1
    """Changes up to here that came live are among the identities."""
    identities: set[Identity] = field(default_factory=set)


def _still_to_fill(gap: Gap) -> Times:
    start_ns = gap.start_ns if gap.filled_ns is None else gap.filled_ns + 1
    return Times(start_ns, max(start_ns, gap.end_ns))


def _requested(gap: Gap) -> Times:
    """Return the span that is requested for what is still to fill: it goes beyond the bounds."""
    times = _still_to_fill(gap)
    if gap.reason == "requested":
        return times  # a person decided on the bounds
    start_ns = times.oldest_ns if gap.filled_ns else times.oldest_ns - _REQUESTED_BEYOND_NS
    end_ns = times.newest_ns + _REQUESTED_BEYOND_NS if gap.end_known else MAX_TIME_NS
    return Times(max(0, start_ns), min(end_ns, MAX_TIME_NS))


def _newest_ns(answer: Answer) -> int:
    """Return the newest time in an answer, or 0."""
    newest_s = max((rows[-1].lu for rows in answer.history.values() if rows), default=0.0)
    return nanoseconds(datetime.fromtimestamp(newest_s, UTC))


def _span(gap: Gap) -> str:
    """Return the bounds for a person: hours only when both are of the same day."""
    start, end = moment_of(gap.start_ns), moment_of(gap.end_ns)
    form = "%H:%M:%S" if start.date() == end.date() else "%Y-%m-%d %H:%M:%S"
    return f"{start:{form}}\N{EN DASH}{end:{form}}"


def _lines(row: Row) -> list[bytes]:
    try:
        return Lines(members.decompressed(row.gzip), row.points).split()
    except members.Damaged:
        return []  # who delivers it says that it is damaged
