"""Fills one gap: reads it from Home Assistant's recorder, journals what is missing, closes it."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from app.backfill.coverage import Coverage
from app.backfill.journal_reader import JournalReader
from app.backfill.last_states import LastStates
from app.backfill.reader import GapReader, unknown_to
from app.backfill.spans import attempted, requested_times, span_text, still_to_fill
from app.backfill.writer import BackfillWriter
from app.homeassistant.messages import RecordedState, State
from app.homeassistant.recorded_entities import Entities, find_entities
from app.homeassistant.recorder import Recorder
from app.model import (
    NOWHERE,
    SECOND_NS,
    Change,
    Gap,
    LastNames,
    LastState,
    Placement,
    Placements,
    Rename,
    Times,
    nanoseconds,
)
from app.normalize.recorded import Recovery
from app.normalize.restarts import around
from app.runtime.errors import CommandFailed
from app.runtime.logging import RateLimitedLog
from app.runtime.text import duration

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

NO_RECORDER = "Home Assistant runs without the integration"
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
_LONGEST_NS = 366 * 86_400 * SECOND_NS
"""A gap that is longer comes from a wrong clock, which must not decide that it is too old."""
_REACHED_NS = 2_000
"""How far behind the start of a gap a state is requested: the last captured change counts."""
_TEMPORARY = frozenset({"unknown_error", "home_assistant_error", "timeout"})
"""Errors of Home Assistant that may be temporary: its recorder is busy or migrates."""


class GapFiller:
    """Fills one gap after the other, each as far as the recorder allows."""

    def __init__(
        self,
        *,
        coverage: Coverage,
        last_states: LastStates,
        journal: JournalReader,
        writer: BackfillWriter,
        caught_up: Callable[[], Awaitable[None]],
        select: Callable[[Sequence[Change]], Sequence[Change]],
        placements: Callable[[], Placements],
        names: Callable[[], Mapping[str, LastNames]],
        renames: Callable[[], Sequence[Rename]] = tuple,
        stores: Mapping[str, Callable[[], Awaitable[Collection[str]]]] | None = None,
        retention_s: Callable[[], Awaitable[float | None]] | None = None,
        max_hours: float = 240.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Store the parts.

        `caught_up` waits until every event sent so far was received. `select` returns what
        transforms and filter leave of changes. `names` returns the class, unit and name that each
        entity has, or had when last available; `stores` the entities that our own stores know, by
        the name of the store; `retention_s` how long the database keeps points, None when forever
        or not known. `max_hours` is BACKFILL_MAX_HOURS; `clock` gives seconds since the epoch.
        """
        self._coverage = coverage
        self._last_states = last_states
        self._journal = journal
        self._writer = writer
        self._caught_up = caught_up
        self._select = select
        self._placements = placements
        self._names = names
        self._renames = renames
        self._stores = stores or {}
        self._retention_s = retention_s
        self._max_hours = max_hours
        self._clock = clock

    async def fill(
        self,
        gap: Gap,
        recorder: Recorder,
        *,
        is_last_attempt: bool,
        report_obstacle: Callable[[str | None], None],
    ) -> None:
        """Journal what the recorder has of a gap, then close it.

        The last attempt closes the gap also when the recorder fails. `report_obstacle` is called
        with the reason while the recorder is behind, else with None.

        Raises:
            SourceError: the connection was lost, or the recorder fails; try again.
            StorageError: the journal cannot be read or written.
        """
        missing = await recorder.missing_component()
        if missing is None:
            await self._caught_up()  # its end is past when a later event has been received
            await recorder.until_written(
                later_changes=partial(self._later_changes, gap), obstructed=report_obstacle
            )
        states = await recorder.newest_states()
        newest_ns = self.set_bounds(states)
        gap = self._within_reach(self._coverage.update(gap), newest_ns)
        if gap.state == "open":
            entities = await self._entities(gap, recorder, states)
            limitations = (*entities.limitations, *await self._not_retained(gap, newest_ns))
            gap = self._coverage.update(attempted(gap, entities.sources, limitations))
            reading = await self._reader(gap, recorder, entities, states, newest_ns)
            if missing is None:
                gap, detail = await self._read_back(gap, reading, is_last_attempt=is_last_attempt)
            else:
                detail = f"{NO_RECORDER} {missing!r}"
            gap = await self._write_unrecorded(gap, reading)
            gap = await self._write_renamed(gap, reading)
            gap = await self._close(gap, reading, detail)
            _log_result(gap)
        self._last_states.discard_before(gap)

    def _later_changes(self, gap: Gap) -> tuple[int, Sequence[str]]:
        """Return from when on changes are later than a gap, and the entities that have one.

        The first live event ends a gap, and may come while the recorder is behind. Before it, only
        changes that the filter excludes may have come: the gap may go on after them.
        """
        now = self._coverage.gap(gap.id) or gap
        is_ended = now.end_known
        return now.end_ns, self._last_states.changed_since(now.end_ns) if is_ended else ()

    def set_bounds(self, states: Mapping[str, State]) -> int:
        """Bound gaps by the times in Home Assistant's states; return the newest, or 0."""
        moments = {nanoseconds(state.last_updated) for state in states.values()}
        if not moments:
            return 0
        self._coverage.bound(
            oldest_ns=min(moments), newest_ns=max(moments), reach_ns=self._max_reach_ns
        )
        return max(moments)

    @property
    def _max_reach_ns(self) -> int:
        return int(self._max_hours * 3600 * SECOND_NS)

    def _within_reach(self, gap: Gap, newest_ns: int) -> Gap:
        """Give up what is older than the recorder keeps, and return the rest.

        Both clocks must agree on that: `newest_ns` is the newest moment in Home Assistant's
        states, and our own clock may not be set yet.
        """
        if gap.reason == "requested" or gap.filled_ns is not None:
            return gap
        oldest_ns = min(newest_ns, int(self._clock() * SECOND_NS)) - self._max_reach_ns
        if gap.start_ns >= oldest_ns or newest_ns - gap.start_ns > _LONGEST_NS:
            return gap
        detail = f"Older than BACKFILL_MAX_HOURS ({self._max_hours:g})"
        if gap.end_ns <= oldest_ns:
            lost = gap = self._coverage.close(gap, "unfillable", detail=detail)
        else:
            lost, gap = self._coverage.split(gap, oldest_ns, detail=detail)
        limited_log.warning(
            "The gap %s is not filled: %s", span_text(lost), detail, kind="lost", topic="endings"
        )
        return gap

    async def known_entities(self) -> dict[str, Collection[str]]:
        """Return the entities that this service knows, by the name of the source."""
        stored = {name: await entity_ids() for name, entity_ids in self._stores.items()}
        return {"captured": self._last_states.entity_ids(), **stored}

    async def _entities(
        self, gap: Gap, recorder: Recorder, states: Mapping[str, State]
    ) -> Entities:
        own = {"states": states, **await self.known_entities()}
        return await find_entities(recorder, around(Times(gap.start_ns, gap.end_ns)), own=own)

    async def _not_retained(self, gap: Gap, newest_ns: int) -> Sequence[str]:
        """Return the limitation of a gap that begins before the database's retention.

        `newest_ns` is the newest moment in Home Assistant's states.
        """
        age_ns = newest_ns - gap.start_ns
        if self._retention_s is None or age_ns <= _SHORTEST_RETENTION_NS:
            return ()
        retention_s = await self._retention_s()
        if retention_s is None or age_ns <= retention_s * SECOND_NS:
            return ()
        return (_NOT_RETAINED.format(duration(retention_s)),)

    async def _reader(
        self,
        gap: Gap,
        recorder: Recorder,
        entities: Entities,
        states: Mapping[str, State],
        newest_ns: int,
    ) -> GapReader:
        requested = requested_times(gap, self._coverage.open_gaps())
        recovery = Recovery(
            requested,
            gap=Times(gap.start_ns, gap.end_ns),
            placements=self._placements,
            before=self._before(gap),
            newest=states,
            names=self._names(),
        )
        return GapReader(
            recorder,
            recovery,
            captured=await self._journal.captured(
                requested, present=states.keys(), through_ns=newest_ns
            ),
            entities=entities,
            entity_ids=gap.entity_ids or tuple(entities.entity_ids),
            states=states,
        )

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

    async def _read_back(
        self, gap: Gap, reading: GapReader, *, is_last_attempt: bool
    ) -> tuple[Gap, str | None]:
        """Journal all rows; return the gap as it is then, and why no more is available."""
        try:
            if is_last_attempt:  # one entity may be the cause
                gap = await self._without_failing_entities(gap, reading)
            times = still_to_fill(gap)
            await reading.prepare(times)
            async with aclosing(reading.pages(times)) as pages:
                async for page in pages:
                    gap = await self._check_reach(gap, reading)
                    await self._journal.catch_up(reading.captured, page.newest_ns)
                    changes = await self._writer.write(map(self._select, reading.changes(page)))
                    gap = self._progressed(gap, changes, page.through_ns)
        except CommandFailed as exc:
            if exc.code in _TEMPORARY and not is_last_attempt:
                raise
            return gap, f"Home Assistant shows no history: {exc}"
        return gap, None

    async def _without_failing_entities(self, gap: Gap, reading: GapReader) -> Gap:
        failing = ", ".join(await reading.leave_out_failing())
        if not failing:
            return gap
        return self._limited(gap, f"Home Assistant fails to show the history of {failing}.")

    async def _check_reach(self, gap: Gap, reading: GapReader) -> Gap:
        """Add a limitation when the recorder does not reach back to what was just read.

        It may have purged rows since the fill began. What is read next then follows nothing known.
        """
        since_ns = gap.start_ns + _REACHED_NS if gap.filled_ns is None else gap.filled_ns + 1
        if await reading.reaches(since_ns):
            return gap
        reading.recovery.interrupt()
        return gap if _NOT_REACHED in gap.limitations else self._limited(gap, _NOT_REACHED)

    def _limited(self, gap: Gap, limitation: str) -> Gap:
        return self._coverage.update(replace(gap, limitations=(*gap.limitations, limitation)))

    def _progressed(self, gap: Gap, changes: int, through_ns: int | None) -> Gap:
        filled_ns = gap.filled_ns if through_ns is None else through_ns
        return self._coverage.update(
            replace(gap, changes=gap.changes + changes, filled_ns=filled_ns)
        )

    async def _write_unrecorded(self, gap: Gap, reading: GapReader) -> Gap:
        """Journal the newest state of each entity that changed without a row."""
        recovery = reading.recovery
        changes = self._select(recovery.unrecorded(reading.entity_ids, committed=reading.captured))
        await self._writer.write([changes])
        return replace(
            gap,
            entities=max(gap.entities, len(recovery.recorded_inside)),
            unrecorded=tuple(change.entity_id for change in changes),
        )

    async def _write_renamed(self, gap: Gap, reading: GapReader) -> Gap:
        """Journal the removal of each id that an entity lost by a rename that no event announced.

        Home Assistant does not record it: the whole history moves to the new id.
        """
        before, placements, changes = self._before(gap), self._placements(), list[Change]()
        for rename in self._renames():
            former, renamed = rename.former, reading.states.get(rename.entity_id)
            last = before.get(former)
            was_there = last is not None and last.state is not None
            is_gone = former not in reading.states and former not in reading.recovery.recorded
            if not rename.is_missed or renamed is None or not (was_there and is_gone):
                continue
            removal = RecordedState(None, _renamed_at_s(rename, renamed, gap))
            # The tags of its series: the registry places it under the new id.
            recovery = Recovery(
                reading.captured.requested,
                gap=Times(gap.start_ns, gap.end_ns),
                placements=partial(_placed, former, placements.get(rename.entity_id, NOWHERE)),
                before=before,
                newest={},
                names=self._names(),
            )
            recovery.describe(former, RecordedState(renamed.state, 0.0, a=renamed.attributes))
            changes += recovery.changes(former, [removal], committed=reading.captured)
        written = await self._writer.write([self._select(changes)])
        return replace(gap, changes=gap.changes + written)

    async def _close(self, gap: Gap, reading: GapReader, detail: str | None) -> Gap:
        if detail is not None:
            return self._coverage.close(gap, "unfillable", detail=detail)
        if gap.changes or gap.entities:
            return self._coverage.close(gap, "filled", detail=None)
        if unknown := {*gap.entity_ids}.difference(reading.entities.entity_ids):
            unknown = {*await unknown_to(reading.recorder, unknown)}
        if unknown:
            detail = f"Nothing knows {', '.join(sorted(unknown))}"
            return self._coverage.close(gap, "unfillable", detail=detail)
        return self._coverage.close(gap, "nothing_recorded", detail=_NOTHING_RECORDED)


def _renamed_at_s(rename: Rename, renamed: State, gap: Gap) -> float:
    """Return when an entity was renamed: from its registry row, else from its newest state."""
    for at_s in (rename.at_s, renamed.last_changed.timestamp()):
        if at_s is not None and gap.start_ns < at_s * SECOND_NS <= gap.end_ns:
            return at_s
    return gap.end_ns / SECOND_NS


def _placed(entity_id: str, placement: Placement) -> Placements:
    return {entity_id: placement}


def _log_result(gap: Gap) -> None:
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
