"""A stored catalog, as a service that ran before has left it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from app.discovery.catalog import Catalog
from app.discovery.refresh import RegistryUpdate
from app.discovery.registries import Kind, Registries, read_registries
from app.discovery.store import CatalogStore
from app.model import IdentityChange, LastNames

ROWS: Mapping[Kind, Sequence[Mapping[str, object]]] = {
    "device": [{"id": "d1", "area_id": "hall"}],
    "entity": [
        {"entity_id": "sensor.t", "device_id": "d1", "platform": "mqtt", "unique_id": "1"},
        {"entity_id": "light.lamp", "area_id": "attic", "platform": "hue", "unique_id": "2"},
        {"entity_id": "sensor.new", "area_id": "roof", "platform": "mqtt", "unique_id": "3"},
        {"entity_id": "sensor.reused", "area_id": "cellar", "platform": "mqtt", "unique_id": "4"},
    ],
    "area": [{"area_id": name} for name in ("hall", "attic", "roof", "cellar")],
}
NAMES = {
    "sensor.t": LastNames("temperature", "°C", "T"),
    "sensor.new": LastNames("power", "W", "New"),
    "sensor.plain": LastNames(None, None, "Plain"),
}


class _Names:
    def restore(self, names: Mapping[str, LastNames]) -> None:
        pass

    def last_names(self) -> Mapping[str, LastNames]:
        return NAMES


def renamed(former: str, entity_id: str, unique_id: str, at: datetime) -> IdentityChange:
    """Return a recorded rename of a sensor of MQTT."""
    entry = msgspec.json.encode(("sensor", "mqtt", unique_id)).decode()
    return IdentityChange(
        what="entity_id", entity_id=entity_id, old=former, new=entity_id, at=at,
        at_source="event", entry=entry,
    )  # fmt: skip


async def store_catalog(folder: Path, *changes: IdentityChange) -> None:
    """Store `ROWS`, `NAMES` and changes of identity in a folder."""
    raw = {kind: [msgspec.json.encode(row) for row in rows] for kind, rows in ROWS.items()}
    async with CatalogStore(
        folder / "metadata.db", catalog=Catalog(), source="home", names=_Names()
    ) as store:
        await store.refreshed(
            RegistryUpdate(
                former=Registries(),
                now=read_registries(raw),
                at=datetime(2026, 11, 1, tzinfo=UTC),
                is_full=True,
                changes=changes,
            )
        )
