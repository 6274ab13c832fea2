"""Turns `state_changed` events into changes; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from app.homeassistant.messages import Event, EventState
from app.model import (
    MAX_SECONDS,
    MAX_TIME_NS,
    NOWHERE,
    UNAVAILABLE,
    Change,
    LastNames,
    Placements,
    is_representable,
    nanoseconds,
)
from app.normalize.attributes import NO_ATTRIBUTES, Attributes, read_attributes

_MAX_ENTITY_ID_CHARS = 1_024
"""Home Assistant allows 255."""
_MAX_STATE_CHARS = 65_536
"""Home Assistant allows 255; InfluxDB documents no longer string."""
_MAX_EXCERPT_LENGTH = 200


class MalformedEvent(NamedTuple):
    """An event that cannot be used."""

    kind: str
    """What is missing or wrong: `entity_id`, `state`, `time` or `attributes`."""
    excerpt: str
    """Which event it was, without its values."""


class Normalizer:
    """Turns events into changes; caches each entity's attributes, class, unit and name."""

    def __init__(
        self,
        placements: Callable[[], Placements],
        *,
        max_cached_bytes: int = 64_000_000,
        max_cached_entities: int = 50_000,
    ) -> None:
        """Store the source of the current placements, and the bounds of the cache.

        `max_cached_bytes` bounds the attributes. The entity whose attributes are oldest is evicted.
        """
        self._placements = placements
        self._max_cached_bytes = max_cached_bytes
        self._max_cached_entities = max_cached_entities
        self._entities: dict[str, _Entity] = {}
        self._restored: dict[str, LastNames] = {}
        """Names from an earlier process, of entities that have not changed since the start."""
        self._cached_bytes = 0

    def restore(self, names: Mapping[str, LastNames]) -> None:
        """Set names from an earlier process: an unavailable entity stays in its series."""
        self._restored = dict(names)

    def last_names(self) -> dict[str, LastNames]:
        """Return the class, unit and name of each entity, as of when it was last available."""
        names = {name: entity.names for name, entity in self._entities.items() if any(entity.names)}
        return {**self._restored, **names}

    def changes(self, events: Sequence[Event]) -> tuple[list[Change], list[MalformedEvent]]:
        """Return the changes of all usable events, in order, and the unusable events."""
        changes: list[Change] = []
        malformed: list[MalformedEvent] = []
        placements = self._placements()
        for event in events:
            try:
                changes.append(self._change(event, placements))
            except _Unusable as exc:
                malformed.append(MalformedEvent(str(exc), _excerpt(event)))
        return changes, malformed

    def _change(self, event: Event, placements: Placements) -> Change:
        data = event.data
        entity_id, old, new = data.entity_id, data.old_state, data.new_state
        if entity_id is None:
            raise _Unusable("entity_id")
        if old is None and new is None:
            raise _Unusable("state")
        time_ns, changed_ns, changed = _times(event)
        entity = self._entity(entity_id, new=new, old=old)
        if new is None:
            self._forget(entity_id)
        device_class, unit_of_measurement, friendly_name = entity.names
        placement = placements.get(entity_id, NOWHERE)
        return Change(
            entity_id=entity_id,
            domain=entity.domain,
            time_ns=time_ns,
            state=None if new is None else new.state[:_MAX_STATE_CHARS],
            previous_state=None if old is None else old.state[:_MAX_STATE_CHARS],
            duration_s=None if old is None else _duration_s(old, until=changed),
            attributes=b"{}" if new is None else entity.attributes.json,
            device_class=device_class,
            unit_of_measurement=unit_of_measurement,
            friendly_name=friendly_name or placement.name,
            context=event.context,
            placement=placement,
            changed_ns=changed_ns,
            fired_ns=(
                None if new is None or event.time_fired == new.last_updated else _fired_ns(event)
            ),
            all_attributes=None if new is None else entity.attributes.unbounded,
        )

    def _entity(self, entity_id: str, *, new: EventState | None, old: EventState | None) -> _Entity:
        """Return what is known of an entity, updated from the event's states."""
        entity = self._entities.get(entity_id)
        # An available entity that repeats its attributes has nothing new; comparing bytes is far
        # cheaper than decoding them.
        if (
            entity is None
            or new is None
            or entity.raw != new.attributes
            or not entity.is_available
            or new.state in UNAVAILABLE
        ):
            entity = self._update(entity_id, new=new, old=old)
        return entity

    def _update(self, entity_id: str, *, new: EventState | None, old: EventState | None) -> _Entity:
        entity = self._entities.pop(entity_id, None)
        if entity is None:
            entity = _Entity(_domain(entity_id), self._restored.pop(entity_id, _NO_NAMES))
        self._cached_bytes -= entity.size
        try:
            entity.update(new=new, old=old)
        finally:
            self._entities[entity_id] = entity  # at the end: the first one is evicted first
            self._cached_bytes += entity.size
        while (
            self._cached_bytes > self._max_cached_bytes
            or len(self._entities) > self._max_cached_entities
        ):
            self._forget(next(iter(self._entities)))
        return entity

    def _forget(self, entity_id: str) -> None:
        self._restored.pop(entity_id, None)
        if (entity := self._entities.pop(entity_id, None)) is not None:
            self._cached_bytes -= entity.size


class _Unusable(Exception):
    """The event makes no change; the argument is the kind of `MalformedEvent`."""


_NO_NAMES = LastNames(None, None, None)


class _Entity:
    """The latest attributes of an entity, and its current class, unit and name."""

    __slots__ = ("attributes", "domain", "is_available", "names", "raw", "size")

    def __init__(self, domain: str, names: LastNames) -> None:
        self.domain = domain
        self.names = names
        self.raw = msgspec.Raw(b"")
        """The latest attributes as received; `attributes` holds them decoded."""
        self.attributes = NO_ATTRIBUTES
        self.is_available = False
        """Whether the latest state was available, so that `names` are those of `attributes`."""
        self.size = 0
        """Bytes that the attributes occupy."""

    def update(self, *, new: EventState | None, old: EventState | None) -> None:
        """Update attributes and names from the states of an event.

        An available entity has the names in its attributes, and no others. One that is unavailable
        or removed drops its attributes and must stay in its series: names that its state lacks
        come from the old state, else they stay.

        Raises:
            _Unusable: the new state's attributes are not JSON; nothing has changed then.
        """
        present = NO_ATTRIBUTES if new is None else self._decode(new.attributes)
        self.is_available = new is not None and new.state not in UNAVAILABLE
        if self.is_available:
            self.names = present.names
            return
        past = NO_ATTRIBUTES if old is None else _old_attributes(old.attributes)
        self.names = LastNames(
            *(
                now or before or last
                for now, before, last in zip(present.names, past.names, self.names, strict=True)
            )
        )

    def _decode(self, raw: msgspec.Raw) -> Attributes:
        if raw == self.raw:
            return self.attributes
        data = bytes(raw)  # a copy: `raw` would keep the whole frame in memory
        try:
            attributes = read_attributes(data)
        except ValueError as exc:
            raise _Unusable("attributes") from exc
        self.raw = msgspec.Raw(data)
        self.attributes = attributes
        self.size = len(data) + (0 if attributes.json is data else len(attributes.json))
        return attributes


def _old_attributes(raw: msgspec.Raw) -> Attributes:
    try:
        return read_attributes(bytes(raw))
    except ValueError:
        return NO_ATTRIBUTES  # only the new state is written


def _fired_ns(event: Event) -> int | None:
    """Return when the event was fired; None without a time that a point can have."""
    time_ns = None if event.time_fired is None else nanoseconds(event.time_fired)
    return time_ns if time_ns is not None and is_representable(time_ns) else None


def _times(event: Event) -> tuple[int, int, datetime]:
    """Return when the state was updated, and twice when it changed: as a number and as a moment.

    A removal has no state of its own: all are the time of the event.
    """
    new = event.data.new_state
    updated = event.time_fired if new is None else new.last_updated
    changed = event.time_fired if new is None else new.last_changed
    if updated is None or changed is None:
        raise _Unusable("time")
    time_ns = changed_ns = nanoseconds(updated)
    if changed != updated:
        changed_ns = nanoseconds(changed)
    if abs(time_ns) > MAX_TIME_NS or abs(changed_ns) > MAX_TIME_NS:
        raise _Unusable("time")
    return time_ns, changed_ns, changed


def _duration_s(old: EventState, *, until: datetime) -> float | None:
    """Return how long the old state lasted: 0 if the clock was set back, None if unknown."""
    duration_s = (until - old.last_changed).total_seconds()
    if 0.0 <= duration_s <= MAX_SECONDS:
        return duration_s
    return 0.0 if is_representable(nanoseconds(old.last_changed)) else None


def _excerpt(event: Event) -> str:
    """Name the event without its states and attributes, which are private."""
    entity_id = event.data.entity_id and event.data.entity_id[:_MAX_EXCERPT_LENGTH]
    named = f"{event.event_type[:40]} of {entity_id!r}, fired at {event.time_fired}"
    return named[:_MAX_EXCERPT_LENGTH]


def _domain(entity_id: str) -> str:
    domain, _, object_id = entity_id.partition(".")
    if not domain or not object_id or len(entity_id) > _MAX_ENTITY_ID_CHARS:
        raise _Unusable("entity_id")
    return domain
