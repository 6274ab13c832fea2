"""Home Assistant's registries, as its WebSocket API lists them.

Only what is used here is read, and nothing but ids is required: the fields differ from
version to version (2024.3.3 has no floors, 2026.11 added parent devices).
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar, get_type_hints

import msgspec

from app.errors import CommandFailed, SourceProtocolError


class DeviceRow(msgspec.Struct, frozen=True, gc=False):
    """A device; `manufacturer`, `model` and `sw_version` are whatever its integration wrote."""

    id: str
    area_id: str | None = None
    name: str | None = None
    name_by_user: str | None = None
    manufacturer: object = None
    model: object = None
    sw_version: object = None
    parent_device_id: str | None = None


class EntityRow(msgspec.Struct, frozen=True, gc=False):
    """An entity; `platform` is the integration that made it."""

    entity_id: str
    area_id: str | None = None
    device_id: str | None = None
    platform: str | None = None
    name_by_user: str | None = None
    name: str | None = None
    """The name people gave it."""
    original_name: str | None = None
    """The name its integration gave it."""
    labels: tuple[str, ...] = ()


class AreaRow(msgspec.Struct, frozen=True, gc=False):
    """An area."""

    area_id: str
    name: str | None = None
    floor_id: str | None = None


class FloorRow(msgspec.Struct, frozen=True, gc=False):
    """A floor."""

    floor_id: str
    name: str | None = None


class LabelRow(msgspec.Struct, frozen=True, gc=False):
    """A label."""

    label_id: str
    name: str | None = None


class Registries(msgspec.Struct, frozen=True, kw_only=True):
    """All registries as they were at one time."""

    devices: tuple[DeviceRow, ...] = ()
    entities: tuple[EntityRow, ...] = ()
    areas: tuple[AreaRow, ...] = ()
    floors: tuple[FloorRow, ...] = ()
    labels: tuple[LabelRow, ...] = ()


Call = Callable[[str], Awaitable[msgspec.Raw]]
Row = TypeVar("Row")


async def list_registries(call: Call) -> Registries:
    """List the registries with `call`, which sends a command and returns its result.

    Floors and labels are optional: an older Home Assistant does not have them, and a
    read-only user may not be allowed to see them.

    Raises:
        SourceError: what `call` raised for devices, entities or areas; try again later.
        SourceProtocolError: a result is not a list of rows with ids.
    """
    return Registries(
        devices=await _list(call, "config/device_registry/list", DeviceRow),
        entities=await _list(call, "config/entity_registry/list", EntityRow),
        areas=await _list(call, "config/area_registry/list", AreaRow),
        floors=await _list_if_allowed(call, "config/floor_registry/list", FloorRow),
        labels=await _list_if_allowed(call, "config/label_registry/list", LabelRow),
    )


async def _list_if_allowed(call: Call, command: str, row: type[Row]) -> tuple[Row, ...]:
    try:
        return await _list(call, command, row)
    except CommandFailed:
        return ()


async def _list(call: Call, command: str, row: type[Row]) -> tuple[Row, ...]:
    result = await call(command)
    try:
        try:
            return msgspec.json.decode(result, type=tuple[row, ...])  # type: ignore[valid-type]
        except msgspec.ValidationError:
            return tuple(_readable(result, row))
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise SourceProtocolError(f"{command}: {exc}") from exc


def _readable(result: msgspec.Raw, row: type[Row]) -> Iterator[Row]:
    """Read what can be read of each row that has an id: one odd row must not cost all others."""
    types = get_type_hints(row)
    for members in msgspec.json.decode(result, type=list[dict[str, msgspec.Raw]]):
        values = {}
        for name in types.keys() & members:
            with contextlib.suppress(msgspec.ValidationError):
                values[name] = msgspec.json.decode(members[name], type=types[name])
        with contextlib.suppress(TypeError):  # it has no id
            yield row(**values)
