"""Live events for many subscribers: each is encoded once, and none waits for another.

The JSON of an event is `EventBody`; it is sent as `{"type":"event","event":…}`.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import functools
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from app.model import Change, Context, iso_time
from app.runtime.globs import glob_matcher

_MAX_VERDICTS = 10_000
_MAX_ANSWERS = 16


class EventBody(msgspec.Struct, frozen=True, gc=False):
    """A state change as subscribers get it; unknown values are null, and no key is missing."""

    entity_id: Annotated[str, Meta(examples=["sensor.kitchen_temperature"])]
    domain: Annotated[str, Meta(examples=["sensor"])]
    event_type: Annotated[str, Meta(examples=["state_changed"])]
    time: Annotated[
        str,
        Meta(
            examples=["2026-11-23T10:00:00.123456Z"],
            description="When Home Assistant updated the state; UTC, always six decimals",
            extra_json_schema={"format": "date-time"},
        ),
    ]
    state: Annotated[
        str | None, Meta(examples=["21.5"], description="null when the entity was removed")
    ]
    previous_state: Annotated[str | None, Meta(examples=["21.4"])]
    duration: Annotated[
        float | None, Meta(examples=[60.0], description="Seconds that the previous state lasted")
    ]
    removed: bool
    attributes: Annotated[
        msgspec.Raw,
        Meta(examples=[{"state_class": "measurement"}], extra_json_schema={"type": "object"}),
    ]
    device_class: Annotated[str | None, Meta(examples=["temperature"])]
    unit_of_measurement: Annotated[str | None, Meta(examples=["°C"])]
    friendly_name: Annotated[str | None, Meta(examples=["Kitchen temperature"])]
    area_id: Annotated[str | None, Meta(examples=["kitchen"])]
    area_name: Annotated[str | None, Meta(examples=["Kitchen"])]
    device_id: Annotated[str | None, Meta(examples=["a1b2c3"])]
    integration: Annotated[str | None, Meta(examples=["mqtt"])]
    context: Context | None


class EventMessage(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="event"):
    """One state change."""

    event: EventBody


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The events that a subscriber wants: any glob of a kind, and every kind that is given."""

    entity_id: tuple[str, ...] = ()
    domain: tuple[str, ...] = ()
    area_id: tuple[str, ...] = ()
    device_class: tuple[str, ...] = ()

    def compiled(self) -> Callable[[Change], bool] | None:
        """Return the test of a change; None when everything is wanted."""
        kinds = (self.entity_id, self.domain, self.area_id, self.device_class)
        if not any(kinds):
            return None
        matchers = [glob_matcher(globs) if globs else None for globs in kinds]

        @functools.lru_cache(maxsize=_MAX_VERDICTS)
        def matches(*values: str | None) -> bool:
            pairs = zip(matchers, values, strict=True)
            return all(matcher is None or matcher(value or "") for matcher, value in pairs)

        return lambda change: matches(
            change.entity_id, change.domain, change.placement.area_id, change.device_class
        )


class Subscriber:
    """A client of the hub: a bounded queue of what to send to it."""

    def __init__(self, selection: Selection, *, max_events: int) -> None:
        self._wanted = selection.compiled()
        self._events: deque[_QueuedEvent] = deque(maxlen=max_events)
        self._answers: deque[str] = deque(maxlen=_MAX_ANSWERS)
        self._dropped = 0
        self._filled = asyncio.Event()

    async def filled(self) -> None:
        """Wait until there is something to send."""
        await self._filled.wait()

    def push(self, events: Sequence[_QueuedEvent]) -> None:
        """Queue the events that this client wants; when full, the oldest are dropped."""
        if self._wanted is not None:
            events = [event for event in events if self._wanted(event.change)]
            if not events:
                return
        before = len(self._events)
        self._events.extend(events)
        self._dropped += before + len(events) - len(self._events)
        self._filled.set()

    def answer(self, message: str) -> None:
        """Queue a message for this client only; when there are too many, the oldest is dropped."""
        self._answers.append(message)
        self._filled.set()

    def drain(self, max_events: int) -> list[str]:
        """Return the messages to send now, as JSON in ASCII.

        Answers come first, then the number of dropped events, if any, then the oldest events.
        """
        messages = list(self._answers)
        self._answers.clear()
        if self._dropped:
            messages.append(f'{{"type":"dropped","count":{self._dropped}}}')
            self._dropped = 0
        count = min(max_events, len(self._events))
        for _ in range(count):
            event = self._events.popleft()
            if not event.message:  # a call for each subscriber would double what this costs
                event.message = encode_event(event.change)
            messages.append(event.message)
        if not self._events:
            self._filled.clear()
        return messages


class Hub:
    """Publishes every change to every subscriber that wants it."""

    def __init__(self, *, max_subscribers: int = 100, max_events: int = 5_000) -> None:
        """Store the number of subscribers served at once, and of events queued for each.

        Subscribers share the queued events, so many slow ones need little more memory than one.
        """
        self._max_subscribers = max_subscribers
        self._max_events = max_events
        self._subscribers: set[Subscriber] = set()

    @property
    def subscribers(self) -> int:
        """The number of subscribers."""
        return len(self._subscribers)

    @property
    def full(self) -> bool:
        """Whether no more subscribers are served."""
        return len(self._subscribers) >= self._max_subscribers

    def publish(self, changes: Sequence[Change]) -> None:
        """Push the changes, in order, to all subscribers; never waits."""
        if not self._subscribers or not changes:
            return
        # Encoding costs 2 to 5 µs, is paid once for all subscribers, and only when one drains;
        # each further subscriber costs 0.1 to 0.2 µs an event (benchmarks/README.md).
        events = [_QueuedEvent(change) for change in changes]
        for subscriber in self._subscribers:
            subscriber.push(events)

    @contextlib.contextmanager
    def subscribed(self, selection: Selection) -> Iterator[Subscriber]:
        """Subscribe for as long as the block lasts."""
        subscriber = Subscriber(selection, max_events=self._max_events)
        self._subscribers.add(subscriber)
        try:
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)


class _QueuedEvent(msgspec.Struct, gc=False):
    """An event in the queues of all subscribers, encoded when the first one drains it."""

    change: Change
    message: str = ""


_encode = msgspec.json.Encoder().encode


def encode_event(change: Change) -> str:
    """Return the message of a change as JSON in ASCII.

    Each subscriber's frame is encoded to bytes again, and CPython does so 3 µs faster per event
    if it is ASCII, so other characters (the `°` of `°C`) are escaped once.
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
    return message if message.isascii() else message.encode("ascii", _JSON_ESCAPES).decode()


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


# Ten times faster than a regular expression, which would look at each character.
_JSON_ESCAPES = "json_escapes"
codecs.register_error(_JSON_ESCAPES, _escaped)
