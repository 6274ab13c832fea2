"""The messages of Home Assistant's WebSocket API that are read, as msgspec types; pure."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from app.model import MAX_SECONDS, UNAVAILABLE, Context

Timestamp = Annotated[datetime, msgspec.Meta(tz=True)]
"""A time with an offset, to the microsecond."""

RecordedTime = Annotated[float, msgspec.Meta(ge=0, lt=MAX_SECONDS)]
"""Seconds since the epoch, within the range of a point's time."""


class EventState(msgspec.Struct, frozen=True, gc=False):
    """A state in an event; the event names the entity and the context."""

    state: str
    last_changed: Timestamp
    last_updated: Timestamp
    attributes: msgspec.Raw = msgspec.Raw(b"{}")
    """The JSON object, not decoded: most of it is only passed on."""


class State(EventState, frozen=True, gc=False, kw_only=True):
    """An entity's state as `get_states` lists it.

    https://developers.home-assistant.io/docs/core/entity/#state-property
    """

    entity_id: str
    context: Context | None = None


class RecordedState(msgspec.Struct, frozen=True, gc=False):
    """A row of the recorder's history.

    https://developers.home-assistant.io/docs/api/websocket/ calls these states compressed.
    """

    s: str | None
    """The state; None when the entity was removed."""
    lu: RecordedTime
    """`last_updated`."""
    lc: RecordedTime | None = None
    """`last_changed`; None when it is the same."""
    a: msgspec.Raw = msgspec.Raw(b"{}")
    """The attributes that the recorder stores, as a JSON object."""

    @property
    def is_available(self) -> bool:
        """Whether the entity was available, and so its attributes name its class and unit."""
        return self.s is not None and self.s not in UNAVAILABLE


class EventData(msgspec.Struct, frozen=True, gc=False):
    """The data of an event: `state_changed` fills the states, registry events the rest."""

    entity_id: str | None = None
    old_state: EventState | None = None
    new_state: EventState | None = None
    action: str | None = None
    device_id: str | None = None
    area_id: str | None = None
    old_entity_id: str | None = None


class Event(msgspec.Struct, frozen=True, gc=False):
    """An event of Home Assistant's bus."""

    event_type: str
    data: EventData
    time_fired: Timestamp | None = None
    context: Context | None = None
