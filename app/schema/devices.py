"""The points of the device history: devices, entities and changes of identity; pure.

Measurement `devices`, tags area_id, device_id, instance, manufacturer, model; measurement
`entities`, tags area_id, device_id, domain, entity_id, instance, platform; measurement
`identity_changes`, tags device_id, entity_id, instance, what. Tags are sorted by key; unknown
ones are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from app.model import IdentityChange, Lines, nanoseconds
from app.schema.line_protocol import escape_tag, quote


class DevicePoint(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A device as of a time."""

    device_id: str
    area_id: str | None
    manufacturer: str | None
    model: str | None
    name: str | None
    sw_version: str | None
    entity_count: int


class EntityPoint(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """An entity as of a time."""

    entity_id: str
    device_id: str | None
    area_id: str | None
    platform: str | None
    unique_id: str | None
    disabled: bool


def encode_devices(
    points: Sequence[DevicePoint], *, time_ns: int, instance: str | None = None
) -> Lines:
    """Return a line for each device, in order."""
    return Lines(b"".join(_device(point, instance, time_ns) for point in points), len(points))


def encode_entities(
    points: Sequence[EntityPoint], *, time_ns: int, instance: str | None = None
) -> Lines:
    """Return a line for each entity, in order."""
    return Lines(b"".join(_entity(point, instance, time_ns) for point in points), len(points))


def encode_identity_changes(
    changes: Sequence[IdentityChange], *, instance: str | None = None
) -> Lines:
    """Return a line for each change, at its own time, in order."""
    return Lines(b"".join(_identity_change(change, instance) for change in changes), len(changes))


def _identity_change(change: IdentityChange, instance: str | None) -> bytes:
    tags = _tags(
        (b"device_id", change.device_id),
        (b"entity_id", change.entity_id),
        (b"instance", instance),
        (b"what", change.what),
    )
    texts = _texts((b"old", change.old), (b"new", change.new))
    time_ns = nanoseconds(change.at)
    source = quote(change.at_source)
    return b"identity_changes%b %bat_source=%b %d\n" % (tags, texts, source, time_ns)


def _device(point: DevicePoint, instance: str | None, time_ns: int) -> bytes:
    tags = _tags(
        (b"area_id", point.area_id),
        (b"device_id", point.device_id),
        (b"instance", instance),
        (b"manufacturer", point.manufacturer),
        (b"model", point.model),
    )
    texts = _texts((b"name", point.name), (b"sw_version", point.sw_version))
    return b"devices%b %bentity_count=%di %d\n" % (tags, texts, point.entity_count, time_ns)


def _entity(point: EntityPoint, instance: str | None, time_ns: int) -> bytes:
    tags = _tags(
        (b"area_id", point.area_id),
        (b"device_id", point.device_id),
        (b"domain", point.entity_id.partition(".")[0]),
        (b"entity_id", point.entity_id),
        (b"instance", instance),
        (b"platform", point.platform),
    )
    texts = _texts((b"unique_id", point.unique_id))
    disabled = b"true" if point.disabled else b"false"
    return b"entities%b %bdisabled=%b %d\n" % (tags, texts, disabled, time_ns)


def _tags(*tags: tuple[bytes, str | None]) -> bytes:
    escaped = ((key, escape_tag(value)) for key, value in tags if value)
    return b"".join(b",%b=%b" % tag for tag in escaped)


def _texts(*fields: tuple[bytes, str | None]) -> bytes:
    return b"".join(b"%b=%b," % (key, quote(value)) for key, value in fields if value is not None)
