"""Live events for many watchers: each encoded once, no watcher waits for another.

The JSON of one event is `EventBody`; on the wire it stands in `{"type":"event","event":…}`.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import fnmatch
import functools
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from app.model import Change, Context, iso_time

_MAX_VERDICTS = 10_000
_MAX_ANSWERS = 16
_LONG_TEXT = 64


class EventBody(msgspec.Struct, frozen=True, gc=False):
    """One state change as watchers read it; unknown values are null, no key is ever missing."""

    entity_id: str
    domain: str
    event_type: str
    time: str
    """When Home Assistant updated the state: ISO 8601, UTC, always six decimals and a `Z`."""
    state: str | None
    """None when the entity was removed."""
    previous_state: str | None
    duration: float | None
    """Seconds that the previous state lasted."""
    removed: bool
    attributes: msgspec.Raw
    """The JSON object as Home Assistant sent it."""
    device_class: str | None
    unit_of_measurement: str | None
    friendly_name: str | None
    area_id: str | None
    area_name: str | None
    device_id: str | None
    integration: str | None
    context: Context | None


class EventMessage(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="event"):
    """The message around one event."""

    event: EventBody


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which events a watcher wants: globs, any of a kind, and every kind that is given."""

    entity_id: tuple[str, ...] = ()
    domain: tuple[str, ...] = ()
    area_id: tuple[str, ...] = ()
    device_class: tuple[str, ...] = ()

    def compiled(self) -> Callable[[Change], bool] | None:
        """Return the test of one change, or None when everything is wanted.

        The verdict is remembered per entity, area and class: a house has few of them, and
        four regular expressions per event would cost more than sending it.
        """
        matches = [
            (_matcher(globs), index)
            for index, globs in enumerate(
                (self.entity_id, self.domain, self.area_id, self.device_class)
            )
            if globs
        ]
        if not matches:
            return None
        verdicts: dict[tuple[str, str | None, str | None], bool] = {}

        def wanted(change: Change) -> bool:
            key = (change.entity_id, change.placement.area_id, change.device_class)
            verdict = verdicts.get(key)
            if verdict is None:
                if len(verdicts) >= _MAX_VERDICTS:
                    verdicts.clear()
                values = (key[0], change.domain, key[1], key[2])
                verdict = all(match(values[index] or "") for match, index in matches)
                verdicts[key] = verdict
            return verdict

        return wanted


class Subscriber:
    """One client's place in the hub: a bounded queue of what it is to be sent."""

    def __init__(self, selection: Selection, *, max_events: int) -> None:
        self._wanted = selection.compiled()
        self._cells: deque[_Cell] = deque(maxlen=max_events)
        self._answers: deque[str] = deque(maxlen=_MAX_ANSWERS)
        self._lost = 0
        self._filled = asyncio.Event()

    async def filled(self) -> None:
        """Wait until there is something to take."""
        await self._filled.wait()

    def take(self, max_events: int) -> list[str]:
        """Return the messages to send now, as JSON in ASCII; empty when there are none.

        Answers come first, then how many events were lost, if any, then the oldest events.
        An event's message is the same object for all watchers.
        """
        cells = self._cells
        if len(cells) <= max_events:
            taken = list(cells)
            cells.clear()
            self._filled.clear()
        else:
            taken = [cells.popleft() for _ in range(max_events)]
        messages = list(self._answers)
        self._answers.clear()
        if self._lost:
            messages.append(f'{{"type":"dropped","count":{self._lost}}}')
            self._lost = 0
        messages += [cell.message or _encoded(cell) for cell in taken]
        return messages

    def answer(self, message: str) -> None:
        """Send this client a message of its own; of too many unsent ones the oldest is lost."""
        self._answers.append(message)
        self._filled.set()

    def offer(self, cells: Sequence[_Cell]) -> None:
        """Take what this watcher wants; for what there is no room, the oldest is lost."""
        wanted = self._wanted
        if wanted is not None:
            cells = [cell for cell in cells if wanted(cell.change)]
            if not cells:
                return
        queue = self._cells
        before = len(queue)
        queue.extend(cells)  # the bound is the deque's own, which forgets the oldest in C
        self._lost += before + len(cells) - len(queue)
        self._filled.set()


class Hub:
    """Hands every change to every watcher that wants it."""

    def __init__(self, *, max_watchers: int = 100, max_events: int = 5_000) -> None:
        """Take the number of watchers served at once, and of events kept for a slow one.

        Watchers share the events they keep, so the slow ones together hold about as many in
        memory as one of them.
        """
        self._max_watchers = max_watchers
        self._max_events = max_events
        self._watchers: set[Subscriber] = set()

    @property
    def watchers(self) -> int:
        """How many watch now."""
        return len(self._watchers)

    @property
    def full(self) -> bool:
        """Whether no more watchers are served."""
        return len(self._watchers) >= self._max_watchers

    def publish(self, changes: Sequence[Change]) -> None:
        """Offer the changes, in order, to everyone who watches; never waits."""
        if not self._watchers or not changes:
            return
        # A cell per event costs 0.1 µs once. After it an unfiltered watcher costs a
        # deque.extend and a join, 0.1 to 0.2 µs, and each glob verdict 0.2 µs; the 2 to 5 µs
        # of encoding are paid once, and only for what somebody takes (benchmarks/README.md).
        cells = [_Cell(change) for change in changes]
        for watcher in self._watchers:
            watcher.offer(cells)

    @contextlib.contextmanager
    def watching(self, selection: Selection) -> Iterator[Subscriber]:
        """Watch for as long as the block lasts."""
        watcher = Subscriber(selection, max_events=self._max_events)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)


class _Cell(msgspec.Struct, gc=False):
    """One event on its way to many: encoded by the first who takes it."""

    change: Change
    message: str = ""


_encode = msgspec.json.Encoder().encode


def _encoded(cell: _Cell) -> str:
    cell.message = encode_event(cell.change)
    return cell.message


def encode_event(change: Change) -> str:
    """Return the message of one change as JSON in ASCII.

    Every watcher's frame is joined and encoded anew; what is not ASCII, a `°C` for example,
    makes CPython's encoder leave its fast path, which costs each of them 3 µs per event.
    Escaping it here costs less, and once.
    """
    placement = change.placement
    message = _encode(
        EventMessage(
            EventBody(
                entity_id=change.entity_id,
                domain=change.domain,
                event_type=change.event_type,
                time=iso_time(change.time_ns),
                state=change.state,
                previous_state=change.previous_state,
                duration=change.duration_s,
                removed=change.state is None,
                attributes=msgspec.Raw(change.attributes),
                device_class=change.device_class,
                unit_of_measurement=change.unit_of_measurement,
                friendly_name=change.friendly_name or placement.name,
                area_id=placement.area_id,
                area_name=placement.area_name,
                device_id=placement.device_id,
                integration=placement.integration,
                context=change.context,
            )
        )
    ).decode()
    return message if message.isascii() else message.encode("ascii", _ESCAPED).decode("ascii")


def _escape(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    characters = error.object[error.start : error.end]
    # A house repeats itself, °C and the words of its names, but not its long texts.
    escapes = _known_escapes if len(characters) <= _LONG_TEXT else _escapes
    return escapes(characters), error.end


def _escapes(characters: str) -> str:
    """Return the JSON escapes of characters that are not ASCII; only strings hold any."""
    units = characters.encode("utf-16-be")
    return "".join(
        f"\\u{high:02x}{low:02x}" for high, low in zip(units[::2], units[1::2], strict=True)
    )


_known_escapes = functools.lru_cache(maxsize=4096)(_escapes)
_ESCAPED = "websocket_ingestion.json"
codecs.register_error(_ESCAPED, _escape)


def _matcher(globs: Sequence[str]) -> Callable[[str], object]:
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs)).match
