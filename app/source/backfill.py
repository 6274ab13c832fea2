"""What Home Assistant's recorder remembers, asked for in answers that stay small.

The commands are `get_states`, `recorder/info` and `history/history_during_period` of the
WebSocket API, https://developers.home-assistant.io/docs/api/websocket/. What the last one
returns, and with which options it returns all of it, was found out by experiment.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

import msgspec

from app.errors import CommandFailed, SourceProtocolError
from app.logs import Repeats
from app.model import RecordedState, State, Times, moment_of
from app.tolerant import UNREADABLE

logger = logging.getLogger(__name__)

_SECOND_NS = 1_000_000_000
_MICROSECOND = timedelta(microseconds=1)
_MICROSECOND_NS = 1_000
_STATES_PER_SLICE = 200
_ENTITY_ID = re.compile(r"(?!.*__)[a-z0-9][a-z0-9_]*(?<!_)\.[a-z0-9][a-z0-9_]*(?<!_)")
_ENTITIES_PER_QUESTION = 100
_WINDOW_S = (10.0, 60.0, 86_400.0)
"""The shortest window of time that one question spans, the first, and the longest."""
_ROWS = (500, 2_000)
"""Fewer rows in the largest answer make the next window longer, more make it shorter."""

History = Mapping[str, Sequence[RecordedState]]
"""Rows by entity id, oldest first."""


class Call(Protocol):
    """Sends a command with its parameters and returns the result, unread.

    Raises `CommandFailed` when the command is refused, else another `SourceError`.
    """

    async def __call__(self, command: str, **parameters: object) -> msgspec.Raw:
        """Return the JSON value."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the recorder, which lags behind, is given; all in seconds."""

    tail_s: float = 30.0
    """The end of a span that is asked for again until two answers agree."""
    between_s: float = 6.0
    """From one such answer to the next."""
    most_s: float = 120.0
    """How long that may go on."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A part of what was recorded."""

    history: History
    through_ns: int | None
    """Up to where nothing is missing after this part; None in the middle of a window."""


class Recorder:
    """Home Assistant's recorder, asked over one connection."""

    def __init__(
        self,
        call: Call,
        *,
        patience: Patience,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        oddities: Repeats | None = None,
    ) -> None:
        """Take what sends a command; `clock` gives seconds since the epoch.

        `oddities` tells of rows that cannot be read, over more than one recorder.
        """
        self._call = call
        self._patience = patience
        self._oddities = oddities or Repeats(logger)
        self._clock = clock
        self._sleep = sleep

    async def until_written(self) -> None:
        """Give the recorder some time to write what it has still in memory.

        Raises:
            SourceError: the connection was lost.
        """
        until = self._clock() + self._patience.most_s
        while await self._backlog() and self._clock() < until:
            await self._sleep(1.0)

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

    async def history(
        self,
        times: Times,
        entity_ids: Sequence[str],
        *,
        with_start: Collection[str],
        is_new: bool,
        reach_ns: int = 0,
    ) -> AsyncGenerator[Answer, None]:
        """Yield every recorded row of these entities, window after window of time.

        Of those in `with_start` the first row may say what was true before; its time is
        made up and lies before `times`. `is_new` says that the recorder may not have written
        the end yet: it is asked for until two answers agree. The last questions reach beyond
        `times`, up to `reach_ns`.

        Raises:
            CommandFailed: Home Assistant has no history, or does not show it.
            SourceError: the connection was lost or no answer came in time; try again.
        """
        at_ns = times.oldest_ns
        tail_ns = max(at_ns, times.newest_ns - int(self._patience.tail_s * _SECOND_NS))
        shortest_s, window_s, longest_s = _WINDOW_S
        few_rows, many_rows = _ROWS
        while at_ns < tail_ns:
            window = Times(at_ns, min(tail_ns, at_ns + int(window_s * _SECOND_NS)))
            most_rows = 0
            async for answer in self._window(window, entity_ids, with_start):
                most_rows = max(most_rows, sum(map(len, answer.history.values())))
                yield answer
            at_ns, with_start = window.newest_ns + _MICROSECOND_NS, frozenset()
            if most_rows < few_rows:
                window_s = min(longest_s, window_s * 2)
            elif most_rows > many_rows:
                window_s = max(shortest_s, window_s / 2)
        tail = Times(at_ns, max(at_ns, times.newest_ns))
        if is_new:
            await self._until_agreed(tail, entity_ids)
        beyond = Times(at_ns, max(tail.newest_ns, reach_ns))
        async for answer in self._window(beyond, entity_ids, with_start):
            through_ns = None if answer.through_ns is None else tail.newest_ns
            yield replace(answer, through_ns=through_ns)

    async def _window(
        self, times: Times, entity_ids: Sequence[str], with_start: Collection[str]
    ) -> AsyncGenerator[Answer, None]:
        for some in _questions(entity_ids):
            ask_start = any(entity_id in with_start for entity_id in some)
            history = await self._recorded(times, some, with_start=ask_start)
            is_last = some[-1] == entity_ids[-1]
            yield Answer(history, times.newest_ns if is_last else None)

    async def _until_agreed(self, times: Times, entity_ids: Sequence[str]) -> None:
        """Ask until two answers in a row are the same, or it has taken too long."""
        until = self._clock() + self._patience.most_s
        answer = await self._identities(times, entity_ids)
        while self._clock() < until:
            await self._sleep(self._patience.between_s)
            before, answer = answer, await self._identities(times, entity_ids)
            if answer == before:
                return

    async def _identities(self, times: Times, entity_ids: Sequence[str]) -> set[tuple[str, float]]:
        found = set()
        for some in _questions(entity_ids):
            history = await self._recorded(times, some, with_start=False)
            found |= {(name, row.lu) for name, rows in history.items() for row in rows}
        return found

    async def _recorded(
        self, times: Times, entity_ids: Sequence[str], *, with_start: bool
    ) -> History:
        answer = await self._call(
            "history/history_during_period",
            # Home Assistant leaves out both ends.
            start_time=(moment_of(times.oldest_ns) - _MICROSECOND).isoformat(),
            end_time=(moment_of(times.newest_ns) + _MICROSECOND).isoformat(),
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
        odd = sum(found.count(None) for found in read.values())
        self._oddities.tell(
            logging.WARNING, "Left out %d rows of the recorder that cannot be read", odd
        )
        return {
            entity_id: [row for row in found if row is not None]
            for entity_id, found in read.items()
        }

    async def _backlog(self) -> int:
        try:
            answer = await self._call("recorder/info")
            return msgspec.json.decode(answer, type=_RecorderInfo).backlog or 0
        except (CommandFailed, *UNREADABLE):
            return 0  # it does not say


class _RecorderInfo(msgspec.Struct, frozen=True):
    backlog: int | None = None


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


def all_entities(newest: Collection[str], remembered: Collection[str]) -> list[str]:
    """Return whom to ask for: who has a state, and who had one.

    Of those who have none, Home Assistant refuses the whole question for one name that it
    would not give today.
    """
    return sorted({*newest, *filter(_ENTITY_ID.fullmatch, remembered)})


def _questions(entity_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(entity_ids), _ENTITIES_PER_QUESTION):
        yield entity_ids[start : start + _ENTITIES_PER_QUESTION]


def _state(row: bytes) -> State | None:
    try:
        return msgspec.json.decode(row, type=State)
    except UNREADABLE:
        return None  # one odd row must not cost all others
