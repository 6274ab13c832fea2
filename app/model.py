"""The words the packages share: Home Assistant's events, changes, and encoded points."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import msgspec

Timestamp = Annotated[datetime, msgspec.Meta(tz=True)]
"""A point in time with an offset, to the microsecond, as Home Assistant writes it."""


class Context(msgspec.Struct, frozen=True, gc=False):
    """Who or what caused a change."""

    id: str | None = None
    parent_id: str | None = None
    user_id: str | None = None


class State(msgspec.Struct, frozen=True, gc=False):
    """One entity's state as Home Assistant sends it.

    https://developers.home-assistant.io/docs/core/entity/#state-property
    """

    entity_id: str
    state: str
    last_changed: Timestamp
    last_updated: Timestamp
    attributes: msgspec.Raw = msgspec.Raw(b"{}")
    """The JSON object, unread: most of it is only passed on."""
    context: Context | None = None


class EventData(msgspec.Struct, frozen=True, gc=False):
    """What an event is about: `state_changed` fills the states, registry events the rest."""

    entity_id: str | None = None
    old_state: State | None = None
    new_state: State | None = None
    action: str | None = None
    device_id: str | None = None
    area_id: str | None = None
    old_entity_id: str | None = None


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event of Home Assistant's bus."""

    event_type: str
    data: EventData
    time_fired: Timestamp | None = None
    context: Context | None = None


class Placement(msgspec.Struct, frozen=True, gc=False):
    """What the registries know of an entity; None where they know nothing.

    The catalog hands out the same object until something in it changes, so identity
    (`is`) may stand for equality in caches.
    """

    device_id: str | None = None
    area_id: str | None = None
    area_name: str | None = None
    integration: str | None = None
    name: str | None = None
    """The name people gave the entity, or the registry's own."""
    manufacturer: str | None = None
    model: str | None = None
    sw_version: str | None = None
    floor_id: str | None = None
    labels: tuple[str, ...] = ()


NOWHERE = Placement()
"""The placement of an entity that no registry knows."""


class Change(msgspec.Struct, frozen=True, gc=False):
    """One normalized and enriched state change: all that a point or a watcher needs."""

    entity_id: str
    domain: str
    time_ns: int
    """Nanoseconds since the epoch: `last_updated`, or `time_fired` of a removal."""
    state: str | None
    """None when the entity was removed."""
    previous_state: str | None
    duration_s: float | None
    """How long the previous state lasted; None when there was none."""
    attributes: bytes
    """A compact JSON object in UTF-8 that always parses; `{}` when there are none."""
    device_class: str | None
    unit_of_measurement: str | None
    friendly_name: str | None
    context: Context | None
    placement: Placement
    event_type: str = "state_changed"
    backfilled: bool = False

    @property
    def removed(self) -> bool:
        """Whether the entity was removed."""
        return self.state is None


_LINE = re.compile(
    rb"(?:[^ \\\n]|\\.)+ "  # measurement and tags: quotes mean nothing, a space ends them
    rb'(?:"(?:[^"\\]|\\.)*"|[^"\n])*\n',  # fields and time: a newline may stand in quotes
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Lines:
    """Encoded points: line protocol, each line ended by a newline.

    A newline may also stand inside a quoted string field, so only `split` may cut.
    """

    data: bytes
    points: int

    def split(self) -> list[bytes]:
        """Return the lines one by one, without their final newline."""
        lines = self.data.split(b"\n")
        lines.pop()
        if len(lines) == self.points:
            return lines
        return [line[:-1] for line in _LINE.findall(self.data)]


@dataclass(frozen=True, slots=True)
class Row:
    """What one commit put into the journal: consecutive points, compressed."""

    first: int
    """Sequence number of the first point; they count up by one, starting at 1."""
    points: int
    gzip: bytes
    """One gzip member holding the lines; members may be concatenated."""
    received_at: float
    """When the oldest point of the row was received, in seconds since the epoch."""

    @property
    def last(self) -> int:
        """Sequence number of the last point."""
        return self.first + self.points - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPoint:
    """A line of line protocol, parsed back."""

    measurement: str
    tags: Mapping[str, str]
    fields: Mapping[str, str | float | bool | int]
    time_ns: int
