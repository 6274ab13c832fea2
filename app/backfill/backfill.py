"""Backfill: reads missed changes from Home Assistant's recorder and journals them.

One gap at a time, the oldest first, while events stream; one that fails waits, and the others get
their turn. A gap that is half filled when the connection or the process ends continues from there:
it is a row of the journal, and a point that was written twice is the same point.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Container,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

from app.backfill.coverage import Coverage
from app.backfill.last_states import LastStates
from app.backfill.reader import (
    CapturedIdentities,
    GapReader,
    HomeAssistantStarts,
    starts_of,
    unknown_to,
)
from app.backfill.retries import GapRetries
from app.backfill.spans import attempted, requested_times, span_text, still_to_fill
from app.health import GapsStatus
from app.homeassistant.messages import RecordedState, State
from app.homeassistant.recorded_entities import Entities, find_entities
from app.homeassistant.recorder import Call, HistoryPage, Recorder
from app.model import (
    MICROSECOND_NS,
    NOWHERE,
    SECOND_NS,
    Change,
    Gap,
    LastNames,
    LastState,
    Lines,
    Placement,
    Placements,
    Rename,
    Row,
    StoredPoint,
    Times,
    nanoseconds,
)
from app.normalize.recorded import Identity, Recovery
from app.normalize.restarts import around
from app.runtime import gzip_stream
from app.runtime.errors import CommandFailed, SourceError, SourceProtocolError, StorageError
from app.runtime.logging import RateLimitedLog
from app.runtime.metrics import Telemetry
from app.runtime.retry import Backoff, contained
from app.runtime.text import duration

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

_LONGEST_NS = 366 * 86_400 * SECOND_NS
"""A gap that is longer comes from a wrong clock, which must not decide that it is too old."""
_COMPARED_PER_S = 50_000
"""So many points of the journal are looked at in a second: a tenth of a core."""
_CHANGES_PER_APPEND = 200
_LOOKS_FOR_COMMIT = 600
_COMMIT_LOOK_S = 0.1
_LOOKS_FOR_START = 600
_START_LOOK_S = 1.0
# Home Assistant's own errors, which may be temporary: its recorder is busy or migrates.
_PASSING = frozenset({"unknown_error", "home_assistant_error", "timeout"})
_ATTEMPTS = 10
_RETRY_LOOK_S = 1.0
_LATE_S = 10.0
"""How long the recorder may be behind before health names it: a busy home always has a backlog."""
_RECORDER_CHECK_S = 60.0
_NO_RECORDER = "Home Assistant runs without the integration"
_NOTHING_RECORDED = "Home Assistant's recorder holds nothing of this time"
_NOT_REACHED = (
    "The recorder holds no state from before this span, so changes at its beginning may be missing:"
    " they were purged, or its database is new."
)
_NOT_RETAINED = (
    "The database keeps points for {} and does not store older ones. Raise the retention of"
    " INFLUXDB_BUCKET and request the span again, if they are wanted."
)
_SHORTEST_RETENTION_NS = 3600 * SECOND_NS
"""InfluxDB refuses a shorter one."""
_REACHED_NS = 2_000
"""How far behind the start of a gap a state is asked for: the last captured change counts."""
_DROPPED = frozenset({"journal_stalled", "journal_full"})


class CommandConnection(Protocol):
    """A connection to Home Assistant for commands."""

    @property
    def call(self) -> Call:
        """The function that sends a command."""
        ...


class BackfillJournal(Protocol):
    """The part of the journal that backfill uses."""

    async def append(self, lines: Lines, *, received_at: float) -> None:
        """Make points durable, or raise a `StorageError`."""

    def retained(self, *, after: int = 0) -> AsyncIterator[Row]:
        """Yield the rows that are retained, acked by the sinks or not, in order."""
        ...


class Waiting(Protocol):
    """The part of the batcher that shows when received points are durable."""

    @property
    def put_points(self) -> int:
        """How many points have ever been received."""
        ...

    def is_done_with(self, put_points: int) -> bool:
        """Whether that many of the first points received are durable or dropped."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """How changes become lines, and how lines are read back."""

    encode: Callable[[Sequence[Change]], Lines]
    parse: Callable[[bytes], StoredPoint]
    identity_of: Callable[[bytes], Identity | None]
    last_state_of: Callable[[StoredPoint, LastState | None], LastState]


class Backfill:
    """Fills open gaps, one after the other."""

    def __init__(
        self,
        *,
        commands: Callable[[], AbstractAsyncContextManager[CommandConnection]],
        caught_up: Callable[[], Awaitable[None]],
        streaming: asyncio.Event,
        is_running: Callable[[], bool],
        missing_component: Callable[[], str | None] = lambda: None,
        coverage: Coverage,
        last_states: LastStates,
        journal: BackfillJournal,
        batcher: Waiting,
        schema: Schema,
        placements: Callable[[], Placements],
        names: Callable[[], Mapping[str, LastNames]],
        keep: Callable[[Sequence[Change]], Sequence[Change]],
        telemetry: Telemetry,
        backoffs: Callable[[], Backoff],
        max_hours: float = 240.0,
        points_per_s: float = 2_000.0,
        commit_interval_s: float = 5.0,
        past: Mapping[str, Callable[[], Awaitable[Collection[str]]]] | None = None,
        renames: Callable[[], Sequence[Rename]] = tuple,
        retention_s: Callable[[], Awaitable[float | None]] | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Store the parts and the settings BACKFILL_*.

        `caught_up` waits until every event sent so far was received. `streaming` is set while
        events stream and the registries are known; `is_running` returns whether Home Assistant
        is, and `missing_component` which integration that history needs it lacks. `names` returns
        the class, unit and name that each entity has, or had when last available. `keep` returns
        what transforms and filter leave of changes; `past` returns the entities that our own stores
        know, by the name of the store; `renames` returns the renames that are known; `retention_s`
        asks the database how long it keeps points, None when forever or not known; `clock` gives
        seconds since the epoch.
        """
        self._commands = commands
        self._caught_up = caught_up
        self._streaming = streaming
        self._is_running = is_running
        self._missing_component = missing_component
        self._coverage = coverage
        self._last_states = last_states
        self._journal = journal
        self._batcher = batcher
        self._schema = schema
        self._placements = placements
        self._names = names
        self._keep = keep
        self._telemetry = telemetry
        self._backoff = backoffs()
        self._failing = GapRetries(backoffs, clock)
        self._max_hours = max_hours
        self._points_per_s = points_per_s
        self._commit_interval_s = commit_interval_s
        self._past = past or {}
        self._renames = renames
        self._retention_s = retention_s
        self._clock = clock
        self._sleep = sleep
        self._behind: tuple[str, float] | None = None
        """Why the recorder is behind, and since when."""

    def status(self) -> GapsStatus:
        """Return this part of the snapshot."""
        nothing_recorded = self._coverage.count("nothing_recorded")
        return GapsStatus(
            open=self._coverage.count("open"),
            filled=self._coverage.count("filled") + nothing_recorded,
            nothing_recorded=nothing_recorded,
            unfillable=self._coverage.count("unfillable"),
            backfilled=self._telemetry.backfilled,
            reason=self._failing.reason(self._waiting_gaps())
            or self._waiting()
            or self._losing()
            or self._without_recorder()
            or self._given_up(),
        )

    def _waiting(self) -> str | None:
        """Return why a gap stays open although Home Assistant answers."""
        if self._behind is None or self._clock() - self._behind[1] < _LATE_S:
            return None
        return (
            f"Missed changes cannot be read back from Home Assistant yet: {self._behind[0]}."
            " The gap stays open until it has caught up; see /api/v1/gaps."
        )

    def _obstructed(self, obstacle: str | None) -> None:
        """Note why the recorder is behind; None when it is not."""
        if obstacle is None:
            self._behind = None
        else:
            self._behind = (obstacle, self._behind[1] if self._behind else self._clock())

    def _losing(self) -> str | None:
        dropped = [gap for gap in self._coverage.open_gaps() if gap.reason in _DROPPED]
        if not dropped:
            return None
        return (
            "Events were dropped before they were durable, because the disk or this machine did not"
            " keep up; what Home Assistant recorded of them is read back, see /api/v1/gaps."
        )

    def _without_recorder(self) -> str | None:
        missing = self._missing_component()
        if missing is None or not self._coverage.fills:
            return None
        return (
            f"{_NO_RECORDER} {missing!r}, so what is missed while this service or the connection is"
            f" down cannot be read back. Add `default_config:` or `{missing}:` to Home Assistant's"
            " configuration.yaml and restart it, or set BACKFILL_ENABLED=false."
        )

    def _given_up(self) -> str | None:
        """Return what is known to be missing, until a person acknowledges it."""
        gaps = self._coverage.unacknowledged()
        if not gaps:
            return None
        return (
            f"{len(gaps)} gaps cannot be filled, so changes are missing; the newest is"
            f" {span_text(gaps[0])}: {gaps[0].detail}. See /api/v1/gaps. Request them again with"
            " `python -m app backfill`, or acknowledge them with POST /api/v1/gaps/acknowledge."
        )

    async def recall(self) -> None:
        """Bring what is remembered of each entity up to date from the journal's newest points.

        Raises:
            StorageError: the journal cannot be read.
        """
        states: dict[str, LastState] = {}
        gaps = self._coverage.gaps()
        async for row in self._journal.retained(after=self._last_states.through):
            await asyncio.to_thread(self._recall, row, states, gaps)
        for entity_id, state in states.items():
            self._last_states.recall(entity_id, state)

    async def run(self) -> None:
        """Fill the open gaps, forever; retry each that fails at growing intervals.

        A gap that fails does not hold up the others.
        """
        while True:
            await self._streaming.wait()
            gap = self._failing.next(self._waiting_gaps())
            try:
                with contained("filling a gap", error=SourceProtocolError):
                    if gap is None:
                        await self._until_opened()
                        continue
                    await self._fill(gap)
            except (SourceError, StorageError) as exc:
                await self._failed(gap, exc)
            else:
                self._backoff.reset()
                self._failing.forget(gap)
                if not self._failing.any(self._waiting_gaps()):
                    limited_log.resolved("Missed changes are read back again")

    async def _until_opened(self) -> None:
        """Wait for a gap; meanwhile look whether the recorder of those without one is there."""
        if self._waiting_gaps():
            await self._sleep(_RETRY_LOOK_S)
            return
        self._coverage.opened.clear()
        if self._coverage.is_unbounded and not await self._bounded():
            return
        waiting = [gap for gap in self._coverage.gaps() if _lacks_recorder(gap)]
        if not waiting:
            await self._coverage.opened.wait()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RECORDER_CHECK_S):
                await self._coverage.opened.wait()
            return
        if not self._streaming.is_set():
            return
        async with self._recorder() as recorder:
            missing = await recorder.missing_component()
        if missing is None:
            for gap in waiting:
                self._coverage.reopen(gap)

    def _waiting_gaps(self) -> list[Gap]:
        return list(filter(self._coverage.will_be_filled, self._coverage.open_gaps()))

    async def _bounded(self) -> bool:
        """Bound gaps that are not filled now, and the first span; return whether it succeeded."""
        try:
            async with self._recorder() as recorder:
                self._bound(await recorder.newest_states())
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
            reach_ns=int(self._max_hours * 3600 * SECOND_NS),
        )
        return max(moments)

    async def _failed(self, gap: Gap | None, exc: SourceError | StorageError) -> None:
        self._behind = None
        if not self._streaming.is_set():
            return  # the connection was lost, which is reported elsewhere
        if gap is None:
            await self._sleep(self._backoff.next_s())
            return
        gap = self._coverage.gap(gap.id) or gap  # with the bounds and the progress of now
        wait_s = self._failing.failed(gap, exc)
        limited_log.warning(
            "Backfill of %s failed, next attempt in %.1fs: %s",
            span_text(gap),
            wait_s,
            exc,
            kind=type(exc).__name__,
        )
        # Many gaps may fail for one cause: Home Assistant is not asked without a pause.
        await self._sleep(_RETRY_LOOK_S)

    async def _fill(self, gap: Gap) -> None:
        self._coverage.start_filling(gap)
        try:
            await self._until_running()
            async with self._recorder() as recorder:
                gap = await self._recover(gap, recorder)
        finally:
            self._coverage.stop_filling()
        self._last_states.discard_before(gap)

    @contextlib.asynccontextmanager
    async def _recorder(self) -> AsyncIterator[Recorder]:
        async with self._commands() as commands:
            yield Recorder(
                commands.call,
                commit_interval_s=self._commit_interval_s,
                sleep=self._sleep,
            )

    async def unknown_entities(self, entity_ids: Collection[str]) -> list[str]:
        """Return which of these ids nothing knows: no store of ours, and no Home Assistant.

        Without a connection to Home Assistant all may be known.
        """
        unknown = {*entity_ids} - self._last_states.entity_ids()
        for stored in self._past.values():
            unknown -= {*await stored()} if unknown else set()
        if not unknown or not self._streaming.is_set():
            return []
        try:
            async with self._recorder() as recorder:
                return await unknown_to(recorder, unknown)
        except SourceError:
            return []

    def _within_reach(self, gap: Gap, newest_ns: int) -> Gap:
        """Give up what is older than the recorder keeps, and return the rest.

        Both clocks must agree on that: `newest_ns` is the newest moment in Home Assistant's
        states, and our own clock may not be set yet.
        """
        if gap.reason == "requested" or gap.filled_ns is not None:
            return gap
        now_ns = min(newest_ns, int(self._clock() * SECOND_NS))
        oldest_ns = now_ns - int(self._max_hours * 3600 * SECOND_NS)
        detail = f"Older than BACKFILL_MAX_HOURS ({self._max_hours:g})"
        if gap.start_ns >= oldest_ns or newest_ns - gap.start_ns > _LONGEST_NS:
            return gap
        if gap.end_ns <= oldest_ns:
            lost = gap = self._coverage.close(gap, "unfillable", detail=detail)
        else:
            lost, gap = self._coverage.split(gap, oldest_ns, detail=detail)
        limited_log.warning(
            "The gap %s is not filled: %s", span_text(lost), detail, kind="lost", topic="endings"
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
        missing = await recorder.missing_component()
        if missing is None:
            await self._until_written(gap, recorder)
        newest = await recorder.newest_states()
        newest_ns = self._bound(newest)
        gap = self._within_reach(self._coverage.update(gap), newest_ns)
        if gap.state != "open":
            return gap
        entities = await self._entities(gap, recorder, newest)
        limitations = (*entities.limitations, *await self._not_retained(gap, newest_ns))
        gap = self._coverage.update(attempted(gap, entities.sources, limitations))
        requested = requested_times(gap, self._coverage.open_gaps())
        captured = CapturedIdentities(
            requested, present=newest.keys(), after=self._coverage.keep_from - 1
        )
        await self._catch_up(captured, newest_ns)
        recovery = Recovery(
            requested,
            gap=Times(gap.start_ns, gap.end_ns),
            placements=self._placements,
            before=self._before(gap),
            newest=newest,
            names=self._names(),
        )
        reading = GapReader(recorder, recovery, gap.entity_ids or tuple(entities.entity_ids))
        if missing is None:
            gap, detail = await self._read_back(gap, reading, captured, starts_of(entities, newest))
        else:
            detail = f"{_NO_RECORDER} {missing!r}"
        gap = await self._unrecorded(gap, reading, captured)
        gap = await self._renamed(gap, reading, captured, newest)
        gap = await self._closed(gap, recorder, entities, detail)
        self._report(gap)
        return gap

    async def _not_retained(self, gap: Gap, newest_ns: int) -> Sequence[str]:
        """Return what a gap says that begins before the time that the database retains.

        `newest_ns` is the newest moment in Home Assistant's states.
        """
        age_ns = newest_ns - gap.start_ns
        if self._retention_s is None or age_ns <= _SHORTEST_RETENTION_NS:
            return ()
        retention_s = await self._retention_s()
        if retention_s is None or age_ns <= retention_s * SECOND_NS:
            return ()
        return (_NOT_RETAINED.format(duration(retention_s)),)

    async def _unrecorded(self, gap: Gap, reading: GapReader, captured: CapturedIdentities) -> Gap:
        """Journal the newest state of each entity that changed without a row."""
        recovery = reading.recovery
        changes = self._keep(recovery.unrecorded(reading.entity_ids, committed=captured))
        await self._journal_slowly(changes)
        return replace(
            gap,
            entities=max(gap.entities, len(recovery.recorded_inside)),
            unrecorded=tuple(change.entity_id for change in changes),
        )

    async def _renamed(
        self,
        gap: Gap,
        reading: GapReader,
        captured: CapturedIdentities,
        newest: Mapping[str, State],
    ) -> Gap:
        """Journal the removal of each id that an entity lost by a rename that no event announced.

        Home Assistant does not record it: the whole history moves to the new id.
        """
        before, placements, changes = self._before(gap), self._placements(), list[Change]()
        for rename in self._renames():
            former, renamed = rename.former, newest.get(rename.entity_id)
            last = before.get(former)
            was_there = last is not None and last.state is not None
            is_gone = former not in newest and former not in reading.recovery.recorded
            if not rename.is_missed or renamed is None or not (was_there and is_gone):
                continue
            removal = RecordedState(None, _renamed_at_s(rename, renamed, gap))
            # The tags of its series: the registry places it under the new id.
            recovery = Recovery(
                captured.requested,
                gap=Times(gap.start_ns, gap.end_ns),
                placements=partial(_placed, former, placements.get(rename.entity_id, NOWHERE)),
                before=before,
                newest={},
                names=self._names(),
            )
            recovery.describe(former, RecordedState(renamed.state, 0.0, a=renamed.attributes))
            changes += recovery.changes(former, [removal], committed=captured)
        selected = self._keep(changes)
        await self._journal_slowly(selected)
        return replace(gap, changes=gap.changes + len(selected))

    def _before(self, gap: Gap) -> Mapping[str, LastState]:
        """Return the newest change before the rest of a gap of each entity where it is known."""
        # What was missed in an earlier gap, and not read back, may be newer than what we know.
        missed_ns = max(
            (
                other.end_ns
                for other in self._coverage.gaps()
                if other.state in {"open", "unfillable"} and other.start_ns < gap.start_ns
            ),
            default=0,
        )
        return {
            name: state
            for name, state in self._last_states.before(gap).items()
            if missed_ns < state.time_ns
        }

    async def _until_written(self, gap: Gap, recorder: Recorder) -> None:
        """Wait until the recorder has written the whole gap."""
        await self._caught_up()  # its end is past when a later event has been received
        await recorder.until_written(
            later_changes=partial(self._later_changes, gap), obstructed=self._obstructed
        )

    def _later_changes(self, gap: Gap) -> tuple[int, Sequence[str]]:
        """Return from when on changes are later than a gap, and the entities that have one.

        The first live event ends a gap, and may come while the recorder is waited for.
        """
        now = self._coverage.gap(gap.id) or gap
        since_ns = now.end_ns if now.end_known else now.end_ns + MICROSECOND_NS
        return since_ns, self._last_states.changed_since(since_ns)

    async def _entities(
        self, gap: Gap, recorder: Recorder, newest: Mapping[str, State]
    ) -> Entities:
        past = {name: await stored() for name, stored in self._past.items()}
        own = {"states": newest, "captured": self._last_states.entity_ids(), **past}
        return await find_entities(recorder, around(Times(gap.start_ns, gap.end_ns)), own=own)

    async def _closed(
        self, gap: Gap, recorder: Recorder, entities: Entities, detail: str | None
    ) -> Gap:
        if detail is not None:
            return self._coverage.close(gap, "unfillable", detail=detail)
        if gap.changes or gap.entities:
            return self._coverage.close(gap, "filled", detail=None)
        if unknown := {*gap.entity_ids}.difference(entities.entity_ids):
            unknown = {*await unknown_to(recorder, unknown)}
        if unknown:
            detail = f"Nothing knows {', '.join(sorted(unknown))}"
            return self._coverage.close(gap, "unfillable", detail=detail)
        return self._coverage.close(gap, "nothing_recorded", detail=_NOTHING_RECORDED)

    async def _read_back(
        self,
        gap: Gap,
        reading: GapReader,
        captured: CapturedIdentities,
        starts: HomeAssistantStarts,
    ) -> tuple[Gap, str | None]:
        """Journal all rows; return the gap as it is then, and why no more can be had."""
        times, requested = still_to_fill(gap), captured.requested
        end_ns = max(requested.oldest_ns, times.newest_ns)
        try:
            if self._failing.attempts(gap) >= _ATTEMPTS:  # one entity may be to blame
                gap = await self._readable(gap, reading, requested)
            gap = await self._limited(gap, reading)
            await reading.look_back(requested.oldest_ns)
            await reading.find_restarts(starts, times)
            history = reading.recorder.history(
                Times(requested.oldest_ns, end_ns), reading.readable, reach_ns=requested.newest_ns
            )
            async with aclosing(history) as answers:
                async for answer in answers:
                    await self._catch_up(captured, _newest_ns(answer))
                    await reading.look_up_names(answer, requested.oldest_ns)
                    journaled = await self._journal_answer(answer, reading, captured)
                    gap = self._progressed(gap, journaled, answer.through_ns)
        except CommandFailed as exc:
            if exc.code in _PASSING and self._failing.attempts(gap) < _ATTEMPTS:
                raise
            return gap, f"Home Assistant shows no history: {exc}"
        return gap, None

    async def _readable(self, gap: Gap, reading: GapReader, times: Times) -> Gap:
        """Leave out the entities whose history Home Assistant fails to show, and name them."""
        failing = await reading.recorder.failing(reading.entity_ids, times)
        if not failing:
            return gap
        reading.readable = [name for name in reading.entity_ids if name not in {*failing}]
        limitation = f"Home Assistant fails to show the history of {', '.join(failing)}."
        return self._coverage.update(replace(gap, limitations=(*gap.limitations, limitation)))

    async def _limited(self, gap: Gap, reading: GapReader) -> Gap:
        """Return a gap that says so when the recorder does not reach back to its start."""
        known = sorted({*self._before(gap)}.intersection(reading.readable))
        if gap.reason == "requested" or gap.filled_ns is not None or not known:
            return gap
        if await reading.recorder.states_at(gap.start_ns + _REACHED_NS, known):
            return gap
        return self._coverage.update(replace(gap, limitations=(*gap.limitations, _NOT_REACHED)))

    async def _catch_up(self, captured: CapturedIdentities, through_ns: int) -> None:
        """Add to what is known to be captured all that came live up to a moment.

        A change that was read back may have come live as well, and still be on its way.
        """
        if through_ns <= captured.through_ns:
            return
        await self._caught_up()
        await self._until_committed()
        async for row in self._journal.retained(after=captured.after):
            captured.add(await asyncio.to_thread(self._identities, row, captured.requested))
            captured.after = row.last
            # Points were dropped because too many came: the rest of them must not be hindered.
            await self._sleep(row.points / _COMPARED_PER_S)
        captured.through_ns = through_ns

    async def _until_committed(self) -> None:
        """Wait until all that was received so far is durable, or dropped."""
        received = self._batcher.put_points
        for _ in range(_LOOKS_FOR_COMMIT):
            if self._batcher.is_done_with(received):
                return
            await self._sleep(_COMMIT_LOOK_S)
        raise StorageError("the journal takes no points")

    async def _journal_answer(
        self, answer: HistoryPage, reading: GapReader, committed: Container[Identity]
    ) -> int:
        """Journal the changes of one answer, and return how many there were.

        Some at a time: an answer may hold tens of thousands, and events come meanwhile.
        """
        journaled = 0
        changes: list[Change] = []
        for entity_id, rows in answer.history.items():
            for start in range(0, len(rows), _CHANGES_PER_APPEND):
                some = rows[start : start + _CHANGES_PER_APPEND]
                changes += self._keep(
                    reading.recovery.changes(entity_id, some, committed=committed)
                )
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
            self._last_states.backfilled(changes[start : start + _CHANGES_PER_APPEND])
            self._telemetry.points_backfilled(lines.points)
            await self._sleep(lines.points / self._points_per_s)

    def _progressed(self, gap: Gap, changes: int, through_ns: int | None) -> Gap:
        filled_ns = gap.filled_ns if through_ns is None else through_ns
        return self._coverage.update(
            replace(gap, changes=gap.changes + changes, filled_ns=filled_ns)
        )

    def _recall(self, row: Row, states: dict[str, LastState], gaps: Sequence[Gap]) -> None:
        for line in _lines(row):
            with contextlib.suppress(ValueError):  # not a line of ours
                point = self._schema.parse(line)
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
        state = self._schema.last_state_of(point, former)
        if former is None or state.changed_ns != former.changed_ns:
            return state
        # An update of nothing but attributes; the state may have changed in a gap before it.
        if any(gap.start_ns < point.time_ns and former.time_ns < gap.end_ns for gap in gaps):
            return LastState(state.state, None, state.time_ns)
        return state

    def _report(self, gap: Gap) -> None:
        limited_log.info(
            "Backfilled %s: %s changes of %s entities; %s entities have no recorded history%s."
            " Entities from: %s. %s",
            span_text(gap),
            f"{gap.changes:,}",
            f"{gap.entities:,}",
            f"{len(gap.unrecorded):,}",
            "; nothing is recorded of this time" if gap.state == "nothing_recorded" else "",
            ", ".join(gap.sources),
            " ".join(gap.limitations),
            topic="endings",
        )
        if gap.state == "unfillable":
            limited_log.warning(
                "The gap %s cannot be filled: %s",
                span_text(gap),
                gap.detail,
                kind="unfillable",
                topic="endings",
            )

    def _identities(self, row: Row, times: Times) -> set[Identity]:
        identities = (self._schema.identity_of(line) for line in _lines(row))
        return {
            identity
            for identity in identities
            if identity is not None and times.oldest_ns <= identity[1] <= times.newest_ns
        }


def _lacks_recorder(gap: Gap) -> bool:
    return gap.state == "unfillable" and (gap.detail or "").startswith(_NO_RECORDER)


def _newest_ns(answer: HistoryPage) -> int:
    """Return the newest time in an answer, or 0."""
    newest_s = max((rows[-1].lu for rows in answer.history.values() if rows), default=0.0)
    return nanoseconds(datetime.fromtimestamp(newest_s, UTC))


def _renamed_at_s(rename: Rename, renamed: State, gap: Gap) -> float:
    """Return when an entity was renamed: as its registry row says, else its newest state."""
    for at_s in (rename.at_s, renamed.last_changed.timestamp()):
        if at_s is not None and gap.start_ns < at_s * SECOND_NS <= gap.end_ns:
            return at_s
    return gap.end_ns / SECOND_NS


def _placed(entity_id: str, placement: Placement) -> Placements:
    return {entity_id: placement}


def _lines(row: Row) -> list[bytes]:
    try:
        return Lines(gzip_stream.decompressed(row.gzip), row.points).split()
    except gzip_stream.Damaged:
        return []  # delivery reports that it is damaged
