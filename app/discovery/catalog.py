"""The registries joined: the area, device and integration of each entity."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime

import msgspec

from app.discovery.identity import followed_renames
from app.discovery.registries import AreaRow, DeviceRow, EntityRow, Registries
from app.health import DiscoveryStatus
from app.model import NOWHERE, Placement, Placements, Rename
from app.runtime.time import utc_now

_MAX_RENAMES = 10_000
_ENTITIES_PER_SLICE = 100
"""Joined without yielding to the event loop: less than a millisecond."""


class Catalog:
    """Placements of all registered entities, as of the last `replace`."""

    def __init__(self, *, now: Callable[[], datetime] = utc_now) -> None:
        """`now` dates a refresh."""
        self._now = now
        self._placements: Placements = {}
        self._renamed: dict[str, str] = {}
        """New ids that are not listed yet, by their former ids."""
        self._renames: dict[str, Rename] = {}
        self._announced: deque[Rename] = deque(maxlen=_MAX_RENAMES)
        """Renames that an event announced and no listing has shown, in order."""
        self._postponed: Sequence[Rename] = ()
        """Announced renames that the last listing was too early for."""
        self._listed: deque[Rename] = deque(maxlen=_MAX_RENAMES)
        """Renames that listings have shown, until `take_renames`."""
        self.registries = Registries()
        """The registries that the placements were joined from."""
        self.last_refresh: datetime | None = None
        """When Home Assistant last listed them; None before the first time."""

    def replace(self, registries: Registries) -> None:
        """Replace the registries; what they no longer list is forgotten.

        An entity whose placement did not change keeps the same object: caches compare by identity.
        """
        for _ in self._replacing(registries):
            pass

    async def replace_gently(self, registries: Registries) -> None:
        """Replace the registries in slices: thousands of entities would stall events."""
        for _ in self._replacing(registries):
            await asyncio.sleep(0)

    def restore(self, registries: Registries, *, last_refresh: datetime) -> None:
        """Set the registries that an earlier process stored."""
        self.replace(registries)
        self.last_refresh = last_refresh

    def rename(self, entity_id: str, *, former: str, at_s: float | None = None) -> None:
        """Give an entity its former placement under its new id, until it is listed.

        The former id keeps it as well, because the removal of its state is still to come. `at_s`
        is when Home Assistant announced it.
        """
        self._renamed[former] = entity_id
        rename = Rename(former, entity_id, at_s=at_s)
        self._announced.append(rename)
        self._add_rename(rename)
        if former in self._placements:
            self._placements = {entity_id: self._placements[former], **self._placements}

    def renames(self) -> Sequence[Rename]:
        """Return the renames of entities since the start."""
        return tuple(self._renames.values())

    def take_renames(self) -> Sequence[Rename]:
        """Return the renames that listings have shown since the last call, in order."""
        found = tuple(self._listed)
        self._listed.clear()
        return found

    def _add_rename(self, rename: Rename) -> None:
        while len(self._renames) >= _MAX_RENAMES:
            del self._renames[next(iter(self._renames))]
        self._renames[rename.former] = rename

    def placement(self, entity_id: str) -> Placement:
        """Return where an entity is; `NOWHERE` when it is not registered."""
        return self._placements.get(entity_id, NOWHERE)

    def placements(self) -> Placements:
        """Return where all registered entities are; another mapping after any change."""
        return self._placements

    def status(self) -> DiscoveryStatus:
        """Return what the last refresh found."""
        return DiscoveryStatus(
            devices=len(self.registries.devices),
            entities=len(self.registries.entities),
            areas=len(self.registries.areas),
            last_refresh=self.last_refresh,
        )

    def _replacing(self, registries: Registries) -> Iterator[None]:
        former, placements = self._placements, dict[str, Placement]()
        for number, (entity_id, placement) in enumerate(_joined(registries), start=1):
            same = former.get(entity_id)
            placements[entity_id] = same if same is not None and same == placement else placement
            if not number % _ENTITIES_PER_SLICE:
                yield
        # No yield from here to the end, so that no other task sees a partial update.
        for before, entity_id in self._renamed.items():
            if before in placements:  # listed before the rename, so it is listed again
                placements.setdefault(entity_id, placements[before])
        self._renamed = {
            before: entity_id for before, entity_id in self._renamed.items() if before in placements
        }
        self._follow_renames(registries)
        self._placements = placements
        self.registries = registries
        self.last_refresh = self._now()

    def _follow_renames(self, registries: Registries) -> None:
        listed, early = followed_renames(self.registries, registries, tuple(self._announced))
        for rename in listed:
            if rename.is_missed:
                self._add_rename(rename)
        self._listed.extend(listed)
        # A second listing that does not show it was requested after the event: the id changed back.
        self._announced.clear()
        self._announced.extend(rename for rename in early if rename not in self._postponed)
        self._postponed = early


def _joined(registries: Registries) -> Iterator[tuple[str, Placement]]:
    areas = {area.area_id: area for area in registries.areas}
    rows = {device.id: device for device in registries.devices}
    devices: dict[str, DeviceRow] = {}
    for entity in registries.entities:
        device = devices.get(entity.device_id or "", _NO_DEVICE)
        if device is _NO_DEVICE and (row := rows.get(entity.device_id or "")) is not None:
            device = devices[row.id] = with_ancestors(row, rows)
        area_id = entity.area_id or device.area_id
        area = areas.get(area_id or "", _NO_AREA)
        placement = Placement(
            device_id=entity.device_id,
            area_id=area_id,
            area_name=area.name,
            integration=entity.platform,
            name=_name(entity),
            manufacturer=text_of(device.manufacturer),
            model=text_of(device.model),
            sw_version=text_of(device.sw_version),
            floor_id=area.floor_id,
            labels=_labels(entity, device, area),
        )
        yield entity.entity_id, placement


_NO_DEVICE = DeviceRow("")
_NO_AREA = AreaRow("")


def with_ancestors(device: DeviceRow, rows: Mapping[str, DeviceRow]) -> DeviceRow:
    """Return the device with the area, manufacturer and model that it inherits."""
    if device.parent_device_id is None:
        return device
    area_id, manufacturer, model = device.area_id, device.manufacturer, device.model
    seen = {device.id}
    parent = rows.get(device.parent_device_id)
    while parent is not None and parent.id not in seen:
        seen.add(parent.id)
        area_id = area_id or parent.area_id
        manufacturer = manufacturer or parent.manufacturer
        model = model or parent.model
        parent = rows.get(parent.parent_device_id or "")
    return msgspec.structs.replace(device, area_id=area_id, manufacturer=manufacturer, model=model)


def _name(entity: EntityRow) -> str:
    """Return the user's name for an entity, else the integration's, else one from the id."""
    given = entity.name_by_user or entity.name or entity.original_name
    return given or entity.entity_id.partition(".")[2].replace("_", " ").title()


def _labels(entity: EntityRow, device: DeviceRow, area: AreaRow) -> tuple[str, ...]:
    """Return the labels that apply to an entity, as in Home Assistant's label targets."""
    if not device.labels and not area.labels:
        return entity.labels
    return tuple(dict.fromkeys((*entity.labels, *device.labels, *area.labels)))


def text_of(value: object) -> str | None:
    """Return an integration's value as text; some write numbers."""
    return str(value) if isinstance(value, str | int | float) and value != "" else None
