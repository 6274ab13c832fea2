"""Events in, changes out: the rules by which a state change becomes a point in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    """Which event it was, for a person; none of its values."""


class Normalizer:
    """Makes changes of events; remembers the last attributes of each entity, within a bound."""

    def __init__(
        self,
        placements: Callable[[], Placements],
        *,
        max_known_bytes: int = 64_000_000,
        max_known_entities: int = 50_000,
    ) -> None:
        """Take what tells where the entities are now, and how much may be remembered."""
        self._placements = placements
        self._max_known_bytes = max_known_bytes
        self._max_known_entities = max_known_entities
        self._known: dict[str, _Known] = {}
        self._restored: dict[str, LastNames] = {}
        """What an earlier process knew of entities that have not changed since the start."""
        self._known_bytes = 0
        self._placed_by: Placements = {}
        self._moves = 0
        """How often somebody moved. What is known of an entity says as of how many moves; if it
        held the placements, silent entities would keep every generation of them in memory."""

    def restore(self, names: Mapping[str, LastNames]) -> None:
        """Set what an earlier process knew: an unavailable entity stays in its series."""
        self._restored = dict(names)

    def last_names(self) -> dict[str, LastNames]:
        """Return the class, unit and name that each entity has now, or had when last available."""
        names = {name: known.names for name, known in self._known.items() if any(known.names)}
        return {**self._restored, **names}

    def changes(self, events: Sequence[Event]) -> tuple[list[Change], list[MalformedEvent]]:
        """Return the change of each event that has one, in order, and the events that have none."""
        changes: list[Change] = []
        malformed: list[MalformedEvent] = []
        placements = self._placements()
        if placements is not self._placed_by:
            self._placed_by = placements
            self._moves += 1
        for event in events:
            try:
                changes.append(self._change(event))
            except _Unusable as exc:
                malformed.append(MalformedEvent(str(exc), _excerpt(event)))
        return changes, malformed

    def _change(self, event: Event) -> Change:
        data = event.data
        entity_id, old, new = data.entity_id, data.old_state, data.new_state
        if entity_id is None:
            raise _Unusable("entity_id")
        # A removal has no state of its own: its time is the event's, its tags the old state's.
        state = old if new is None else new
        if state is None:
            raise _Unusable("state")
        updated = event.time_fired if new is None else new.last_updated
        changed = event.time_fired if new is None else new.last_changed
        if updated is None or changed is None:
            raise _Unusable("time")
        time_ns = nanoseconds(updated)
        changed_ns = time_ns if changed == updated else nanoseconds(changed)
        if not (
            -MAX_TIME_NS <= time_ns <= MAX_TIME_NS and -MAX_TIME_NS <= changed_ns <= MAX_TIME_NS
        ):
            raise _Unusable("time")

        # Comparing bytes is far cheaper than reading them, and most entities repeat theirs.
        known = self._known.get(entity_id)
        if (
            known is None
            or known.raw != state.attributes
            or (not known.complete and known.depends_on(new=new, old=old))
        ):
            known = self._learn(entity_id, new=new, old=old)
        if known.moves != self._moves:
            known.moves, known.placement = self._moves, self._placed_by.get(entity_id, NOWHERE)
        if new is None:
            self._forget(entity_id)

        previous_state = duration_s = None
        if old is not None:
            previous_state = _bounded(old.state)
            duration_s = (changed - old.last_changed).total_seconds()
            if not 0.0 <= duration_s <= MAX_SECONDS:
                duration_s = _odd_duration(old)
        return Change(
            known.entity_id,
            known.domain,
            time_ns,
            None if new is None else _bounded(new.state),
            previous_state,
            duration_s,
            b"{}" if new is None else known.attributes.json,
            known.device_class,
            known.unit_of_measurement,
            known.friendly_name or known.placement.name,
            event.context,
            known.placement,
            changed_ns=changed_ns,
        )

    def _learn(self, entity_id: str, *, new: EventState | None, old: EventState | None) -> _Known:
        """Bring up to date what is known of an entity."""
        known = self._known.pop(entity_id, None)
        if known is None:
            known = _Known(entity_id, self._restored.pop(entity_id, _NO_NAMES))
        self._known_bytes -= known.size
        try:
            known.learn(new=new, old=old)
        finally:
            # Put in again at the end: the first is the one that had no news for longest.
            self._known[known.entity_id] = known
            self._known_bytes += known.size
        while (
            self._known_bytes > self._max_known_bytes or len(self._known) > self._max_known_entities
        ):
            self._forget(next(iter(self._known)))
        return known

    def _forget(self, entity_id: str) -> None:
        self._restored.pop(entity_id, None)
        if (known := self._known.pop(entity_id, None)) is not None:
            self._known_bytes -= known.size


class _Unusable(Exception):
    """The event makes no change; the argument is the kind of `MalformedEvent`."""


_NO_NAMES = LastNames(None, None, None)


class _Known:
    """Per-entity cache: the latest attributes, and the class, unit and name that hold."""

    __slots__ = (
        "attributes",
        "available",
        "complete",
        "device_class",
        "domain",
        "entity_id",
        "friendly_name",
        "moves",
        "placement",
        "raw",
        "size",
        "unit_of_measurement",
    )

    def __init__(self, entity_id: str, restored: LastNames) -> None:
        self.entity_id = entity_id
        """Always the same object, so that whoever looks it up compares no letters."""
        self.domain = _domain(entity_id)
        self.moves = -1
        self.placement = NOWHERE
        """Where it is, as of that many moves."""
        self.raw = msgspec.Raw(b"")
        """The last attributes as they came, and as they were read."""
        self.attributes = NO_ATTRIBUTES
        self.complete = False
        """Whether these name the class, the unit and the name."""
        self.available = False
        """Whether the last change brought a state in which they hold as they are."""
        self.size = 0
        """Bytes held by the attributes."""
        self.device_class, self.unit_of_measurement, self.friendly_name = restored

    @property
    def names(self) -> LastNames:
        """The class, the unit and the name."""
        return LastNames(self.device_class, self.unit_of_measurement, self.friendly_name)

    def learn(self, *, new: EventState | None, old: EventState | None) -> None:
        """Update class, unit and name.

        An available entity has those that its state names, and no others. One that is unavailable
        or removed drops its attributes and must stay in its series: what its state does not name
        comes from the old state, else it is the last known.
        """
        former, former_raw = self.attributes, self.raw
        present = NO_ATTRIBUTES if new is None else self._read_new(new.attributes)
        self.available = new is not None and new.state not in UNAVAILABLE
        if self.available:
            self._set(present.device_class, present.unit_of_measurement, present.friendly_name)
            return
        past = NO_ATTRIBUTES
        if old is not None and not (new is not None and self.complete):
            past = former if old.attributes == former_raw else _read_old(old.attributes)
        self._set(
            present.device_class or past.device_class or self.device_class,
            present.unit_of_measurement or past.unit_of_measurement or self.unit_of_measurement,
            present.friendly_name or past.friendly_name or self.friendly_name,
        )

    def depends_on(self, *, new: EventState | None, old: EventState | None) -> bool:
        """Whether the class, the unit and the name may be others, with the same attributes."""
        if new is not None and new.state not in UNAVAILABLE:
            return not self.available
        return self.available or (old is not None and self.raw != old.attributes)

    def _set(
        self, device_class: str | None, unit_of_measurement: str | None, friendly_name: str | None
    ) -> None:
        # What says the same stays the same object: the encoder compares those first.
        if device_class != self.device_class:
            self.device_class = device_class
        if unit_of_measurement != self.unit_of_measurement:
            self.unit_of_measurement = unit_of_measurement
        if friendly_name != self.friendly_name:
            self.friendly_name = friendly_name

    def _read_new(self, raw: msgspec.Raw) -> Attributes:
        if raw == self.raw:
            return self.attributes
        # A copy: what came is a part of the whole message, and would keep it in memory.
        data = bytes(raw)
        try:
            attributes = read_attributes(data)
        except ValueError as exc:
            raise _Unusable("attributes") from exc
        self.raw = msgspec.Raw(data)
        self.attributes = attributes
        self.complete = attributes.complete
        self.size = len(data) + (0 if attributes.json is data else len(attributes.json))
        return attributes


def _read_old(raw: msgspec.Raw) -> Attributes:
    try:
        return read_attributes(bytes(raw))
    except ValueError:
        return NO_ATTRIBUTES  # the new state is what counts


def _bounded(state: str) -> str:
    return state if len(state) <= _MAX_STATE_CHARS else state[:_MAX_STATE_CHARS]


def _odd_duration(old: EventState) -> float | None:
    """Return 0 when the clock was set back, and None when nobody knows since when a state was."""
    return 0.0 if is_representable(nanoseconds(old.last_changed)) else None


def _excerpt(event: Event) -> str:
    """Name the event without its states and attributes: they say what goes on in a home."""
    entity_id = event.data.entity_id and event.data.entity_id[:_MAX_EXCERPT_LENGTH]
    named = f"{event.event_type[:40]} of {entity_id!r}, fired at {event.time_fired}"
    return named[:_MAX_EXCERPT_LENGTH]


def _domain(entity_id: str) -> str:
    domain, _, object_id = entity_id.partition(".")
    if not domain or not object_id or len(entity_id) > _MAX_ENTITY_ID_CHARS:
        raise _Unusable("entity_id")
    return domain
