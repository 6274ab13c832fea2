"""Home Assistant's recorder over the WebSocket API, in answers that stay small.

The commands are `get_states`, `get_config`, `recorder/info`, `history/history_during_period`,
`logbook/get_events`, `recorder/list_statistic_ids` and `config/entity_registry/list`; a read-only
token may send them all. https://developers.home-assistant.io/docs/api/websocket/ describes the
first two; the rest was found by experiment with Home Assistant 2024.3 to 2026.11.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Protocol, TypeVar

import msgspec

from app.homeassistant.messages import RecordedState, State
from app.model import (
    MAX_SECONDS,
    MAX_TIME_NS,
    MICROSECOND_NS,
    SECOND_NS,
    Lifecycle,
    Times,
    moment_of,
    nanoseconds,
)
from app.runtime.errors import CommandFailed, SourceProtocolError
from app.runtime.logging import RateLimitedLog
from app.runtime.tolerant_json import UNREADABLE

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

_MICROSECOND = timedelta(microseconds=1)
_STATES_PER_SLICE = 200
_ENTITY_ID = re.compile(r"(?!.*__)[a-z0-9][a-z0-9_]*(?<!_)\.[a-z0-9][a-z0-9_]*(?<!_)")
_ENTITIES_PER_REQUEST = 100
_DAY_S = 86_400
_LOOK_BACK_S = (60, 600, 3_600, 6 * 3_600, *(day * _DAY_S for day in range(1, 11)))
"""How far back the newest row before a moment is searched, span after span: ten days are what
Home Assistant keeps by default."""
_UNAVAILABLE_S = 600
"""How far back the last available state of an entity is searched that was unavailable."""
_SHOWN_AFTER_S = 120
_MAX_SHOWN = 20
_LOGBOOK_S = (900, 6 * 3_600, 64 * _DAY_S)
"""The shortest part of the logbook that is requested, the first, and the longest."""
_ENTRIES = (1_000, 20_000)
"""Fewer entries in a part make the next longer, more make it shorter."""
_WINDOW_S = (10.0, 60.0, 86_400.0)
"""The shortest window of time that one request spans, the first, and the longest."""
_POLL_S = 1.0
_DAY_NS = 86_400 * SECOND_NS
_FAILURES = frozenset({"unknown_error", "home_assistant_error"})
"""Errors of Home Assistant that may concern one entity of a request."""
_MOST_FAILING = 20
"""So many entities that fail one after another, before any request is answered, mean all."""
_NEEDED = ("recorder", "history")
_ROWS = (500, 2_000)
"""Fewer rows in the largest answer make the next window longer, more make it shorter."""

_Item = TypeVar("_Item", bound=msgspec.Struct)

History = Mapping[str, Sequence[RecordedState]]
"""Rows by entity id, oldest first."""


class Call(Protocol):
    """Sends a command with its parameters and returns the result, unread.

    Raises `CommandFailed` when the command is refused, else another `SourceError`.
    """

    async def __call__(self, command: str, **parameters: object) -> msgspec.Raw:
        """Return the JSON value."""
        ...


class CommandConnection(Protocol):
    """A connection to Home Assistant for commands."""

    @property
    def call(self) -> Call:
        """The function that sends a command."""
        ...


@contextlib.asynccontextmanager
async def open_recorder(
    commands: Callable[[], contextlib.AbstractAsyncContextManager[CommandConnection]],
    *,
    commit_interval_s: float,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[Recorder]:
    """Open a connection for commands, as `commands` does, and return the recorder behind it."""
    async with commands() as connection:
        yield Recorder(connection.call, commit_interval_s=commit_interval_s, sleep=sleep)


class RecorderStatus(msgspec.Struct, frozen=True):
    """Answer of `recorder/info`; None for fields that a version does not have."""

    backlog: int | None = None
    recording: bool | None = None
    migration_in_progress: bool | None = None
    thread_running: bool | None = None

    @property
    def obstacle(self) -> str | None:
        """Why the recorder has not written everything; None when it has taken all events."""
        if self.thread_running is False:
            return "its recorder is not running"
        if self.migration_in_progress:
            return "its recorder is migrating the database"
        if self.recording is False:
            return "its recorder does not record (recorder.disable, or it could not start)"
        if self.backlog:
            return f"its recorder has yet to write {self.backlog:,} events"
        return None


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """A part of what was recorded."""

    history: History
    through_ns: int | None
    """Up to where nothing is missing after this part; None in the middle of a window."""

    @property
    def newest_ns(self) -> int:
        """The newest time in it, or 0."""
        newest_s = max((rows[-1].lu for rows in self.history.values() if rows), default=0.0)
        return nanoseconds(datetime.fromtimestamp(newest_s, UTC))


class Recorder:
    """Home Assistant's recorder, over one connection for commands."""

    def __init__(
        self,
        call: Call,
        *,
        commit_interval_s: float = 5.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Store what sends commands.

        `commit_interval_s` is the recorder's own setting, which Home Assistant does not show.
        """
        self._call = call
        self._commit_interval_s = commit_interval_s
        self._sleep = sleep

    async def until_written(
        self,
        *,
        later_changes: Callable[[], tuple[int, Sequence[str]]],
        obstructed: Callable[[str | None], None],
    ) -> None:
        """Wait until the recorder has written a whole gap, however long it takes.

        That is proven by a row of a later change, because the recorder writes in order, or by an
        idle recorder: nothing in its backlog for two commit intervals.

        Args:
            later_changes: returns a moment from which on every change is later than the gap, and
                the entities that are known to have changed since then.
            obstructed: is called with the reason while the recorder is behind, else with None.

        Raises:
            SourceError: the connection was lost.
        """
        idle_s = 0.0
        while not await self._shows_row_since(*later_changes()):
            obstacle = await self._obstacle()
            obstructed(obstacle)
            if obstacle is None and idle_s >= 2 * self._commit_interval_s:
                break
            await self._sleep(_POLL_S)
            idle_s = idle_s + _POLL_S if obstacle is None else 0.0
        obstructed(None)

    async def _shows_row_since(self, start_ns: int, entity_ids: Sequence[str]) -> bool:
        if not entity_ids:
            return False
        # Some of many: one row is enough, and entities that are not recorded have none.
        some = entity_ids[:: 1 + len(entity_ids) // _MAX_SHOWN]
        since = Times(start_ns, start_ns + _SHOWN_AFTER_S * SECOND_NS)
        try:
            return any((await self._recorded(since, some)).values())
        except CommandFailed:
            return False  # reading the gap will fail as well, and close it with the reason

    async def _obstacle(self) -> str | None:
        try:
            answer = await self._call("recorder/info")
            return msgspec.json.decode(answer, type=RecorderStatus).obstacle
        except (CommandFailed, *UNREADABLE) as exc:
            return f"it does not show the state of its recorder ({exc})"

    async def missing_component(self) -> str | None:
        """Return which integration that history needs is not set up; None when all are.

        Raises:
            SourceError: the connection was lost.
        """
        # Without the recorder `recorder/info` is never answered.
        try:
            answer = await self._call("get_config")
            components = msgspec.json.decode(answer, type=_Config).components
        except (CommandFailed, *UNREADABLE):
            return None
        if not components:
            return None
        return next((name for name in _NEEDED if name not in components), None)

    async def newest_states(self) -> dict[str, State]:
        """Return the state of every entity as it is now, by entity id.

        In a large home the answer is megabytes: it is read in slices, so that no event waits.

        Raises:
            SourceError: the connection was lost, or the answer is not a list.
        """
        answer = await self._call("get_states")
        try:
            rows = msgspec.json.decode(answer, type=list[msgspec.Raw])
        except UNREADABLE as exc:
            raise SourceProtocolError(f"get_states: {exc}") from exc
        states: dict[str, State] = {}
        for start in range(0, len(rows), _STATES_PER_SLICE):
            for row in rows[start : start + _STATES_PER_SLICE]:
                if (state := _state(bytes(row))) is not None:
                    states[state.entity_id] = state
            await asyncio.sleep(0)
        return states

    async def registered(self) -> set[str]:
        """Return the ids of all registered entities, disabled ones included.

        Raises:
            CommandFailed: Home Assistant does not show them.
            SourceError: the connection was lost.
        """
        rows = await self._list("config/entity_registry/list", _Registered)
        return {row.entity_id for row in rows}

    async def with_statistics(self) -> set[str]:
        """Return the ids of all entities that have long-term statistics.

        Raises:
            CommandFailed: Home Assistant does not show them.
            SourceError: the connection was lost.
        """
        rows = await self._list("recorder/list_statistic_ids", _Statistic)
        return {row.statistic_id for row in rows if is_entity_id(row.statistic_id)}

    async def logbook(self, times: Times) -> Logbook:
        """Return which entities the logbook names in a span, and when Home Assistant started.

        Raises:
            CommandFailed: Home Assistant has no logbook, or does not show it.
            SourceError: the connection was lost.
        """
        entity_ids: set[str] = set()
        stopped, started = list[int](), list[int]()
        async for entries in self._logbook_parts(times):
            for entry in entries:
                if entry.entity_id is not None and is_entity_id(entry.entity_id):
                    entity_ids.add(entry.entity_id)
                elif entry.domain == "homeassistant" and entry.message in {"started", "stopped"}:
                    # The logbook shows the time as a float.
                    moment = nanoseconds(datetime.fromtimestamp(entry.when, UTC))
                    (started if entry.message == "started" else stopped).append(moment)
        return Logbook(entity_ids, Lifecycle(sorted(stopped), sorted(started)))

    async def _logbook_parts(self, times: Times) -> AsyncGenerator[list[_LogbookEntry], None]:
        at_ns = times.oldest_ns
        shortest_s, span_s, longest_s = _LOGBOOK_S
        few, many = _ENTRIES
        while at_ns <= times.newest_ns:
            part = Times(at_ns, min(times.newest_ns, at_ns + span_s * SECOND_NS))
            start, end = _bounds(part)
            entries = await self._list(
                "logbook/get_events", _LogbookEntry, start_time=start, end_time=end
            )
            yield entries
            at_ns = part.newest_ns + MICROSECOND_NS
            if len(entries) < few:
                span_s = min(longest_s, span_s * 2)
            elif len(entries) > many:
                span_s = max(shortest_s, span_s // 2)

    async def _list(self, command: str, item: type[_Item], **parameters: object) -> list[_Item]:
        answer = await self._call(command, **parameters)
        try:
            return msgspec.json.decode(answer, type=list[item])  # type: ignore[valid-type]
        except UNREADABLE:
            return list(_readable_items(command, answer, item))

    async def rows_before(
        self, at_ns: int, entity_ids: Sequence[str]
    ) -> tuple[dict[str, RecordedState], dict[str, RecordedState]]:
        """Return the newest row before a moment of each entity that has one.

        The second mapping is of entities whose newest row is older than ten days: its state is
        true, its time is made up.

        Raises:
            CommandFailed: Home Assistant has no history, or does not show it.
            SourceError: the connection was lost.
        """
        missing = await self.states_at(at_ns, entity_ids)
        found: dict[str, RecordedState] = {}
        newest_ns = at_ns - MICROSECOND_NS
        for span_s in _LOOK_BACK_S:
            if not missing:
                break
            oldest_ns = max(0, at_ns - span_s * SECOND_NS)
            for some in _batches(list(missing)):
                history = await self._recorded(Times(oldest_ns, newest_ns), some)
                found |= {name: rows[-1] for name, rows in history.items() if rows}
            missing = {name: row for name, row in missing.items() if name not in found}
            newest_ns = oldest_ns
        return found, missing

    async def states_at(self, at_ns: int, entity_ids: Sequence[str]) -> dict[str, RecordedState]:
        """Return the state at a moment of each entity that has a row before it."""
        found: dict[str, RecordedState] = {}
        for some in _batches(entity_ids):
            history = await self._recorded(Times(at_ns, at_ns), some, with_start=True)
            found |= {
                name: rows[0]
                for name, rows in history.items()
                if rows and nanoseconds(datetime.fromtimestamp(rows[0].lu, UTC)) < at_ns
            }
        return found

    async def reaches(self, at_ns: int, entity_ids: Sequence[str]) -> bool:
        """Whether any of these entities has a row before a moment."""
        for some in _batches(entity_ids):
            if await self.states_at(at_ns, some):
                return True
        return False

    async def naming_rows(
        self, at_ns: int, entity_ids: Sequence[str]
    ) -> dict[str, list[RecordedState]]:
        """Return the rows before a moment that name class and unit of each entity, oldest first.

        They begin with the last available one. An entity that was unavailable at that moment is
        searched ten minutes back, because later rows may name only one of the two, or none.
        """
        found = {name: [row] for name, row in (await self.states_at(at_ns, entity_ids)).items()}
        unavailable = [name for name, (row,) in found.items() if not row.is_available]
        times = Times(max(0, at_ns - _UNAVAILABLE_S * SECOND_NS), at_ns - MICROSECOND_NS)
        for some in _batches(unavailable):
            history = await self._recorded(times, some)
            found |= {name: _since_available(rows) for name, rows in history.items() if rows}
        return found

    async def ever_recorded(self, entity_ids: Sequence[str], *, near_ns: int) -> set[str]:
        """Return which entities have a row.

        `near_ns` is a recent moment by Home Assistant's clock: it shows nothing of the future.
        """
        found: set[str] = set()
        for some in _batches(entity_ids):
            history = await self._recorded(Times(near_ns, MAX_TIME_NS), some, with_start=True)
            found |= {name for name, rows in history.items() if rows}
        return found

    async def failing(self, entity_ids: Sequence[str], times: Times) -> list[str]:
        """Return the entities whose history Home Assistant fails to show, by halving batches.

        At most the first day of a span is read.

        Raises:
            CommandFailed: Home Assistant shows no history at all.
            SourceError: the connection was lost or no answer came in time; try again.
        """
        failing: list[str] = []
        times = Times(times.oldest_ns, min(times.newest_ns, times.oldest_ns + _DAY_NS))
        batches = list(_batches(entity_ids))[::-1]
        has_answered = False
        while batches:
            some = batches.pop()
            try:
                await self._recorded(times, some)
            except CommandFailed as exc:
                if exc.code not in _FAILURES:
                    raise
                if len(some) > 1:
                    middle = len(some) // 2
                    batches += [some[middle:], some[:middle]]
                    continue
                failing += some
                is_last = not batches or len(failing) >= _MOST_FAILING
                if not has_answered and is_last:
                    raise
            else:
                has_answered = True
        return failing

    async def history(
        self, times: Times, entity_ids: Sequence[str], *, reach_ns: int = 0
    ) -> AsyncGenerator[HistoryPage, None]:
        """Yield all rows of a span, window after window; nothing is between two windows.

        The last window reaches beyond the span, up to `reach_ns`.

        Raises:
            CommandFailed: Home Assistant has no history, or does not show it.
            SourceError: the connection was lost or no answer came in time; try again.
        """
        at_ns = times.oldest_ns
        shortest_s, window_s, longest_s = _WINDOW_S
        few_rows, many_rows = _ROWS
        while at_ns <= times.newest_ns:
            end_ns = min(times.newest_ns, at_ns + int(window_s * SECOND_NS))
            most_rows = 0
            is_last = end_ns == times.newest_ns
            window = Times(at_ns, max(end_ns, reach_ns) if is_last else end_ns)
            async for answer in self._window(window, entity_ids):
                most_rows = max(most_rows, sum(map(len, answer.history.values())))
                yield replace(answer, through_ns=answer.through_ns and end_ns)
            at_ns = end_ns + MICROSECOND_NS
            if most_rows < few_rows:
                window_s = min(longest_s, window_s * 2)
            elif most_rows > many_rows:
                window_s = max(shortest_s, window_s / 2)

    async def _window(
        self, times: Times, entity_ids: Sequence[str]
    ) -> AsyncGenerator[HistoryPage, None]:
        for some in _batches(entity_ids):
            history = await self._recorded(times, some)
            is_last = some[-1] == entity_ids[-1]
            yield HistoryPage(history, times.newest_ns if is_last else None)

    async def _recorded(
        self, times: Times, entity_ids: Sequence[str], *, with_start: bool = False
    ) -> History:
        try:
            return await self._history(times, entity_ids, with_start=with_start)
        except CommandFailed as exc:
            if exc.code != "invalid_entity_ids":
                raise
        # Home Assistant refuses the whole request for one id that it would not give today,
        # unless the entity has a state: it may have lost that since then.
        valid = list(filter(is_entity_id, entity_ids))
        return await self._history(times, valid, with_start=with_start) if valid else {}

    async def _history(
        self, times: Times, entity_ids: Sequence[str], *, with_start: bool
    ) -> History:
        start, end = _bounds(times)
        answer = await self._call(
            "history/history_during_period",
            start_time=start,
            end_time=end,
            entity_ids=list(entity_ids),
            # The defaults leave out changes of nothing but attributes.
            significant_changes_only=False,
            minimal_response=False,
            no_attributes=False,
            include_start_time_state=with_start,
        )
        try:
            return _history_decoder.decode(answer)
        except UNREADABLE:
            read = _readable(answer)
        unreadable = sum(found.count(None) for found in read.values())
        limited_log.warning("Left out %d rows of the recorder that cannot be read", unreadable)
        return {
            entity_id: [row for row in found if row is not None]
            for entity_id, found in read.items()
        }


@dataclass(frozen=True, slots=True)
class Logbook:
    """What the logbook holds of a span."""

    entity_ids: Collection[str]
    lifecycle: Lifecycle


class _Config(msgspec.Struct, frozen=True):
    components: frozenset[str] = frozenset()


class _Registered(msgspec.Struct, frozen=True):
    entity_id: str


class _Statistic(msgspec.Struct, frozen=True):
    statistic_id: str


class _LogbookEntry(msgspec.Struct, frozen=True):
    when: Annotated[float, msgspec.Meta(ge=0, lt=MAX_SECONDS)]
    entity_id: str | None = None
    domain: str | None = None
    message: str | None = None


_history_decoder = msgspec.json.Decoder(dict[str, list[RecordedState]])


def _readable(answer: msgspec.Raw) -> Mapping[str, list[RecordedState | None]]:
    """Return each row, or None for one that cannot be read: it must not cost all others."""
    try:
        rows = msgspec.json.decode(answer, type=dict[str, list[msgspec.Raw]])
    except UNREADABLE as exc:
        raise SourceProtocolError(f"history/history_during_period: {exc}") from exc
    return {entity_id: list(map(_recorded_state, found)) for entity_id, found in rows.items()}


def _recorded_state(row: msgspec.Raw) -> RecordedState | None:
    try:
        return msgspec.json.decode(row, type=RecordedState)
    except UNREADABLE:
        return None


def is_entity_id(text: str) -> bool:
    """Whether Home Assistant gives such an id today; older ones may break its rules."""
    return _ENTITY_ID.fullmatch(text) is not None


def _readable_items(command: str, answer: msgspec.Raw, item: type[_Item]) -> Iterator[_Item]:
    """Yield the items of a list that can be read."""
    try:
        rows = msgspec.json.decode(answer, type=list[msgspec.Raw])
    except UNREADABLE as exc:
        raise SourceProtocolError(f"{command}: {exc}") from exc
    for row in rows:
        with contextlib.suppress(*UNREADABLE):
            yield msgspec.json.decode(row, type=item)


def _bounds(times: Times) -> tuple[str, str]:
    """Return the parameters `start_time` and `end_time`: Home Assistant leaves out both ends."""
    start = moment_of(times.oldest_ns) - _MICROSECOND
    end = moment_of(times.newest_ns) + _MICROSECOND
    return start.isoformat(), end.isoformat()


def _batches(entity_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(entity_ids), _ENTITIES_PER_REQUEST):
        yield entity_ids[start : start + _ENTITIES_PER_REQUEST]


def _since_available(rows: Sequence[RecordedState]) -> list[RecordedState]:
    """Return the last available row and those after it; all when none is available."""
    available = [place for place, row in enumerate(rows) if row.is_available]
    return [*rows[available[-1] if available else 0 :]]


def _state(row: bytes) -> State | None:
    try:
        return msgspec.json.decode(row, type=State)
    except UNREADABLE:
        return None  # one unreadable row must not cost all others
