"""Home Assistant's registries, as its WebSocket API lists them.

Only the fields used here are decoded, and only ids are required, because fields differ between
versions (2024.3.3 has no labels of devices, 2026.11 added parent devices). `Registries.raw` has
each row as received, to be stored and sent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args, get_type_hints

import msgspec

from app.runtime.errors import CommandFailed, SourceProtocolError
from app.runtime.tolerant_json import UNREADABLE, repaired

Kind = Literal["config_entry", "device", "entity", "area", "floor", "label", "split"]
"""The kinds of registries."""

KINDS: tuple[Kind, ...] = get_args(Kind)

_ROWS_PER_SLICE = 200
"""Decoded without yielding to the event loop: less than a millisecond."""


class ConfigEntryRow(msgspec.Struct, frozen=True, gc=False):
    """A config entry; `domain` is the integration."""

    entry_id: str
    domain: str | None = None


class DeviceRow(msgspec.Struct, frozen=True, gc=False):
    """A device; `manufacturer`, `model` and `sw_version` may have any type."""

    id: str
    area_id: str | None = None
    name: str | None = None
    name_by_user: str | None = None
    manufacturer: object = None
    model: object = None
    sw_version: object = None
    parent_device_id: str | None = None
    labels: tuple[str, ...] = ()
    config_entry_id: str | None = None
    primary_config_entry: str | None = None
    config_entries: tuple[str, ...] = ()
    modified_at: object = None
    """When the row was changed, in seconds since the epoch; versions before 2024.8 have none."""


class EntityRow(msgspec.Struct, frozen=True, gc=False):
    """An entity; `platform` is its integration."""

    entity_id: str
    area_id: str | None = None
    device_id: str | None = None
    platform: str | None = None
    name_by_user: str | None = None
    name: str | None = None
    """The user's name for it."""
    original_name: str | None = None
    """The integration's name for it."""
    labels: tuple[str, ...] = ()
    unique_id: object = None
    modified_at: object = None
    """When the row was changed, in seconds since the epoch; versions before 2024.8 have none."""
    disabled_by: str | None = None


class AreaRow(msgspec.Struct, frozen=True, gc=False):
    """An area."""

    area_id: str
    name: str | None = None
    floor_id: str | None = None
    labels: tuple[str, ...] = ()


class FloorRow(msgspec.Struct, frozen=True, gc=False):
    """A floor."""

    floor_id: str
    name: str | None = None


class LabelRow(msgspec.Struct, frozen=True, gc=False):
    """A label."""

    label_id: str
    name: str | None = None


class SplitRow(msgspec.Struct, frozen=True, gc=False):
    """A device that Home Assistant 2026.8 replaced by one device per config entry."""

    composite_id: str
    """The former id, which no listed device has."""
    split_ids: tuple[str, ...] = ()


class Registries(msgspec.Struct, frozen=True, kw_only=True):
    """All registries as they were at one time."""

    config_entries: tuple[ConfigEntryRow, ...] = ()
    devices: tuple[DeviceRow, ...] = ()
    entities: tuple[EntityRow, ...] = ()
    areas: tuple[AreaRow, ...] = ()
    floors: tuple[FloorRow, ...] = ()
    labels: tuple[LabelRow, ...] = ()
    splits: tuple[SplitRow, ...] = ()
    raw: Mapping[Kind, Mapping[str, bytes]] = {}
    """Each row as received, in JSON, by its id."""


Row: TypeAlias = ConfigEntryRow | DeviceRow | EntityRow | AreaRow | FloorRow | LabelRow | SplitRow
Call = Callable[[str], Awaitable[msgspec.Raw]]


class _Registry(NamedTuple):
    """How one registry is listed."""

    command: str
    row: type[Row]
    member: str
    """Its attribute in `Registries`."""
    id_name: str
    optional: bool = False
    """Older versions of Home Assistant lack it, and read-only users may not list it."""
    is_mapping: bool = False
    """Whether Home Assistant lists it as an object, whose members are named by the id."""


_REGISTRIES: Mapping[Kind, _Registry] = {
    "config_entry": _Registry(
        "config_entries/get", ConfigEntryRow, "config_entries", "entry_id", optional=True
    ),
    "device": _Registry("config/device_registry/list", DeviceRow, "devices", "id"),
    "entity": _Registry("config/entity_registry/list", EntityRow, "entities", "entity_id"),
    "area": _Registry("config/area_registry/list", AreaRow, "areas", "area_id"),
    "floor": _Registry("config/floor_registry/list", FloorRow, "floors", "floor_id", optional=True),
    "label": _Registry("config/label_registry/list", LabelRow, "labels", "label_id", optional=True),
    # https://developers.home-assistant.io/blog/2026/08/19/device-registry-websocket-api-changes
    "split": _Registry(
        "config/device_registry/list_composite_splits",
        SplitRow,
        "splits",
        "composite_id",
        optional=True,
        is_mapping=True,
    ),
}


async def list_registries(
    call: Call, *, kinds: Collection[Kind] = KINDS, former: Registries | None = None
) -> Registries:
    """List the registries with `call`, which sends a command and returns its result.

    Those not in `kinds` stay as in `former`. Rows are decoded in slices, so that the event loop
    is blocked for a few milliseconds at most.

    Raises:
        SourceError: what `call` raised for devices, entities or areas; try again later.
        SourceProtocolError: a result is not a list of rows with ids.
    """
    listed: dict[Kind, list[msgspec.Raw]] = {}
    for kind in KINDS:
        if kind in kinds:
            listed[kind] = await _list(call, _REGISTRIES[kind])
    registries = former or Registries()
    for kind, rows in listed.items():
        decoded: list[_Decoded] = []
        try:
            for number, row in enumerate(_decoded(kind, rows), start=1):
                decoded.append(row)
                if not number % _ROWS_PER_SLICE:
                    await asyncio.sleep(0)
        except UNREADABLE as exc:
            raise SourceProtocolError(f"{_REGISTRIES[kind].command}: {exc}") from exc
        registries = _replaced(registries, kind, decoded)
    return registries


def read_registries(raw: Mapping[Kind, Iterable[bytes]]) -> Registries:
    """Return the registries from stored rows.

    Raises:
        one of UNREADABLE: a row is not a JSON object.
    """
    registries = Registries()
    for kind, rows in raw.items():
        registries = _replaced(registries, kind, list(_decoded(kind, rows)))
    return registries


async def _list(call: Call, registry: _Registry) -> list[msgspec.Raw]:
    try:
        result = await call(registry.command)
    except CommandFailed:
        if registry.optional:
            return []
        raise
    try:
        if not registry.is_mapping:
            return msgspec.json.decode(result, type=list[msgspec.Raw])
        rows = msgspec.json.decode(result, type=dict[str, dict[str, object]])
    except UNREADABLE as exc:
        raise SourceProtocolError(f"{registry.command}: {exc}") from exc
    return [
        msgspec.Raw(msgspec.json.encode({**row, registry.id_name: row_id}))
        for row_id, row in rows.items()
    ]


_Decoded: TypeAlias = tuple[str, Row, bytes]
"""Id and fields of a row, and the row itself."""


def _decoded(kind: Kind, rows: Iterable[msgspec.Raw | bytes]) -> Iterator[_Decoded]:
    """Yield the rows that have an id."""
    registry = _REGISTRIES[kind]
    decode = msgspec.json.Decoder(registry.row).decode
    for raw in rows:
        # A copy: the slice would keep the whole response in memory.
        data = bytes(raw)
        try:
            _DOCUMENT.decode(data)  # the whole row is stored and sent
            row: Row | None = decode(data)
        except UNREADABLE:
            data = repaired(data)
            row = _readable(data, registry.row)
            if row is not None and "\ufffd" in getattr(row, registry.id_name):
                raise ValueError("an id that is not text") from None
        if row is not None:
            yield getattr(row, registry.id_name), row, data


def _replaced(registries: Registries, kind: Kind, decoded: Sequence[_Decoded]) -> Registries:
    """Return the registries with one replaced."""
    rows: dict[str, Any] = {_REGISTRIES[kind].member: tuple(row for _, row, _ in decoded)}
    raw = {**registries.raw, kind: {row_id: data for row_id, _, data in decoded}}
    return msgspec.structs.replace(registries, raw=raw, **rows)


_DOCUMENT = msgspec.json.Decoder(dict[str, object])


def _readable(raw: bytes, row: type[Row]) -> Row | None:
    """Decode the valid fields of a row with an id; an invalid one does not cost the others."""
    types = get_type_hints(row)
    members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    values = {}
    for name in types.keys() & members:
        with contextlib.suppress(msgspec.ValidationError):
            values[name] = msgspec.json.decode(members[name], type=types[name])
    try:
        return row(**values)
    except TypeError:  # it has no id
        return None


def read_device(raw: bytes) -> DeviceRow | None:
    """Return the valid fields of a device.

    Raises:
        msgspec.DecodeError: it is not a JSON object.
    """
    try:
        return msgspec.json.decode(raw, type=DeviceRow)
    except msgspec.ValidationError:
        row = _readable(raw, DeviceRow)
        return row if isinstance(row, DeviceRow) else None


def domains_of(registries: Registries) -> dict[str, str | None]:
    """Return the integration of each config entry, by its id."""
    return {entry.entry_id: entry.domain for entry in registries.config_entries}


def integration_of(device: DeviceRow, domains: Mapping[str, str | None]) -> str | None:
    """Return the integration of a device; `domains` maps config entries to integrations."""
    candidates = (device.primary_config_entry, device.config_entry_id, *device.config_entries)
    found = (domains.get(entry_id) for entry_id in candidates if entry_id)
    return next((domain for domain in found if domain), None)
