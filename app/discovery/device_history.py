"""Device history: a point per device and entity after a refresh that changed something.

Each change of an entity's id, device or area is a point as well.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from app.discovery.catalog import Catalog, text_of, with_ancestors
from app.discovery.columns import difference
from app.discovery.refresh import RegistryUpdate
from app.discovery.registries import DeviceRow, EntityRow
from app.model import Lines, nanoseconds
from app.runtime.errors import StorageError
from app.runtime.logging import RateLimitedLog
from app.schema.devices import (
    DevicePoint,
    EntityPoint,
    encode_devices,
    encode_entities,
    encode_identity_changes,
)

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

Row = TypeVar("Row")

_POINTS_PER_APPEND = 500


class DeviceHistory:
    """Writes points for devices and entities through the journal, as for events.

    A full refresh that changed something writes every one, a registry event only those it
    concerns.
    """

    def __init__(
        self,
        append: Callable[[Lines], Awaitable[None]],
        *,
        catalog: Catalog,
        instance: str | None,
    ) -> None:
        """`append` journals lines, durable when it returns; `instance` becomes a tag."""
        self._append = append
        self._catalog = catalog
        self._instance = instance

    async def refreshed(self, update: RegistryUpdate) -> None:
        """Journal the points; if that fails, this refresh is missing from the history."""
        devices, entities = _concerned(update)
        there = {device.id: device for device in update.now.devices}
        counts = Counter(entity.device_id for entity in update.now.entities)
        time_ns = nanoseconds(update.at)
        try:
            for device_rows in _sliced(devices):
                device_points = [
                    _device_point(with_ancestors(row, there), entity_count=counts[row.id])
                    for row in device_rows
                ]
                await self._append(
                    encode_devices(device_points, time_ns=time_ns, instance=self._instance)
                )
            for entity_rows in _sliced(entities):
                entity_points = [self._entity_point(row) for row in entity_rows]
                await self._append(
                    encode_entities(entity_points, time_ns=time_ns, instance=self._instance)
                )
            for changes in _sliced(update.changes):
                await self._append(encode_identity_changes(changes, instance=self._instance))
        except StorageError as exc:
            limited_log.warning("The device history misses this refresh: %s", exc)
        else:
            limited_log.resolved("The device history is written again")

    def _entity_point(self, row: EntityRow) -> EntityPoint:
        return EntityPoint(
            entity_id=row.entity_id,
            device_id=row.device_id,
            area_id=self._catalog.placement(row.entity_id).area_id,
            platform=row.platform,
            unique_id=text_of(row.unique_id),
            disabled=row.disabled_by is not None,
        )


def _device_point(device: DeviceRow, *, entity_count: int) -> DevicePoint:
    return DevicePoint(
        device_id=device.id,
        area_id=device.area_id,
        manufacturer=text_of(device.manufacturer),
        model=text_of(device.model),
        name=device.name_by_user or device.name,
        sw_version=text_of(device.sw_version),
        entity_count=entity_count,
    )


def _concerned(update: RegistryUpdate) -> tuple[Sequence[DeviceRow], Sequence[EntityRow]]:
    """Return the devices and entities that get a point; none when nothing changed."""
    devices = difference(update.former, update.now, "device")
    entities = difference(update.former, update.now, "entity")
    if update.is_full:
        something = devices.changed or devices.removed or entities.changed or entities.removed
        return (update.now.devices, update.now.entities) if something else ((), ())
    # An entity may inherit the area of its device, and a device counts its entities.
    changed_devices, changed_entities = set(devices.changed), set(entities.changed)
    touched = {
        row.device_id
        for registries in (update.former, update.now)
        for row in registries.entities
        if row.entity_id in changed_entities or row.entity_id in entities.removed
    }
    return (
        [row for row in update.now.devices if row.id in changed_devices or row.id in touched],
        [
            row
            for row in update.now.entities
            if row.entity_id in changed_entities or row.device_id in changed_devices
        ],
    )


def _sliced(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for first in range(0, len(rows), _POINTS_PER_APPEND):
        yield rows[first : first + _POINTS_PER_APPEND]
