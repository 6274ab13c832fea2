"""The joined view of the registries: where each entity is, and what it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import msgspec

from app.discovery.registries import DeviceRow, EntityRow, Registries
from app.model import NOWHERE, Placement
from app.snapshot import DiscoveryStatus


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Catalog:
    """Knows the placement of every registered entity, as of the last `replace`."""

    def __init__(self, *, now: Callable[[], datetime] = _utc_now) -> None:
        """Take the clock that dates a refresh."""
        self._now = now
        self._placements: dict[str, Placement] = {}
        self._status = DiscoveryStatus()

    def replace(self, registries: Registries) -> None:
        """Take the registries as they are now; what they no longer list is forgotten.

        An entity whose placement did not change keeps the same object: caches compare by identity.
        """
        former = self._placements
        placements = placements_of(registries)
        for entity_id, placement in placements.items():
            if former.get(entity_id) == placement:
                placements[entity_id] = former[entity_id]
        self._placements = placements
        self._status = DiscoveryStatus(
            devices=len(registries.devices),
            entities=len(registries.entities),
            areas=len(registries.areas),
            last_refresh=self._now(),
        )

    def placement(self, entity_id: str) -> Placement:
        """Return where an entity is; `NOWHERE` when it is not registered."""
        return self._placements.get(entity_id, NOWHERE)

    def status(self) -> DiscoveryStatus:
        """Return what the last refresh found."""
        return self._status


def placements_of(registries: Registries) -> dict[str, Placement]:
    """Return the placement of each registered entity, by its id."""
    areas = {area.area_id: area for area in registries.areas}
    rows = {device.id: device for device in registries.devices}
    devices = {device.id: _with_ancestors(device, rows) for device in registries.devices}
    placements = {}
    for entity in registries.entities:
        device = devices.get(entity.device_id or "", _NO_DEVICE)
        area_id = entity.area_id or device.area_id
        area = areas.get(area_id or "")
        placements[entity.entity_id] = Placement(
            device_id=entity.device_id,
            area_id=area_id,
            area_name=area.name if area else None,
            integration=entity.platform,
            name=_name(entity),
            manufacturer=_text(device.manufacturer),
            model=_text(device.model),
            sw_version=_text(device.sw_version),
            floor_id=area.floor_id if area else None,
            labels=entity.labels,
        )
    return placements


_NO_DEVICE = DeviceRow("")


def _with_ancestors(device: DeviceRow, rows: Mapping[str, DeviceRow]) -> DeviceRow:
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
    """Return the name people gave an entity, else its integration's, else one made of the id."""
    given = entity.name_by_user or entity.name or entity.original_name
    return given or entity.entity_id.partition(".")[2].replace("_", " ").title()


def _text(value: object) -> str | None:
    """Return what an integration wrote as text; integrations write numbers, too."""
    return str(value) if isinstance(value, str | int | float) and value != "" else None
