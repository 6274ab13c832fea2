"""The catalog on disk: what is stored, what is served, and what other senders may add."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.discovery.catalog import Catalog
from app.discovery.refresh import RegistryUpdate
from app.discovery.registries import Registries, list_registries
from app.discovery.store import CatalogStore
from app.model import LastNames
from tests.fakes.discovery import Answers
from tests.fakes.recordings import VERSIONS, recording

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOME: dict[str, object] = {
    "config_entry": [{"entry_id": "e1", "domain": "mqtt"}],
    "device": [
        {
            "id": "d1",
            "name": "Lamp",
            "name_by_user": None,
            "manufacturer": "Ikea",
            "model": 7,
            "sw_version": "1.2",
            "area_id": "hall",
            "config_entries": ["e1"],
            "via_device_id": "hub",
            "labels": ["radio"],
            "created_at": 1795456447.25,
        },
        {"id": "d2", "name": "Plug", "manufacturer": "Aqara", "area_id": "attic"},
    ],
    "entity": [
        {
            "entity_id": "light.lamp",
            "device_id": "d1",
            "platform": "mqtt",
            "unique_id": 5,
            "name": None,
            "original_name": "Lamp",
            "disabled_by": None,
            "labels": ["night"],
        },
        {"entity_id": "sensor.lamp_power", "device_id": "d1", "platform": "hue"},
        {"entity_id": "switch.plug", "device_id": "d2", "platform": "hue", "disabled_by": "user"},
    ],
    "area": [{"area_id": "hall", "name": "Hall"}],
}


@pytest.fixture
async def metadata(tmp_path: Path) -> AsyncIterator[CatalogStore]:
    """Return an empty catalog on disk."""
    async with opened(tmp_path) as kept:
        yield kept


def opened(folder: Path, *, catalog: Catalog | None = None) -> CatalogStore:
    """Return the catalog in a folder."""
    return CatalogStore(folder / "metadata.db", catalog=catalog or Catalog(), source="home")


async def listed(rows: dict[str, object]) -> Registries:
    """Return these rows as Home Assistant would list them."""
    return await list_registries(Answers(rows).call)


async def refresh(
    metadata: CatalogStore, rows: dict[str, object], *, at: datetime = NOON, is_full: bool = True
) -> Registries:
    """Let the catalog on disk follow a refresh that found these rows."""
    now = await listed(rows)
    await metadata.refreshed(RegistryUpdate(former=Registries(), now=now, at=at, is_full=is_full))
    return now


async def shown(metadata: CatalogStore, kind: str, **filters: Any) -> list[Any]:
    """Return the documents that a client would see."""
    page = await getattr(metadata, kind)(**filters)
    return list(json.loads(msgspec.json.encode(page.documents)))


async def ids(metadata: CatalogStore, kind: str, **filters: Any) -> list[str]:
    """Return the ids of what fits."""
    key = {"devices": "device_id", "entities": "entity_id"}[kind]
    return [document[key] for document in await shown(metadata, kind, **filters)]


def execute(folder: Path, sql: str) -> None:
    """Do something to the file behind the back of the catalog."""
    connection = sqlite3.connect(folder / "metadata.db")
    with connection:
        connection.execute(sql)
    connection.close()


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_catalog_is_restored_at_the_next_start(tmp_path: Path, version: str) -> None:
    """The catalog is there before the first event: a restart changes no tag."""
    rows = {
        kind: recording(version, f"config_{kind}_registry_list")["result"]
        for kind in ("device", "entity", "area", "floor", "label")
    }
    async with opened(tmp_path) as metadata:
        now = await refresh(metadata, rows)
    before, after = Catalog(), Catalog()
    before.replace(now)

    async with opened(tmp_path, catalog=after):
        pass

    for entity in now.entities:
        assert before.placement(entity.entity_id) == after.placement(entity.entity_id)
    assert after.last_refresh == NOON
    assert len(after.registries.areas) == len(now.areas) == 3


async def test_the_catalog_is_empty_at_the_first_start(tmp_path: Path) -> None:
    """So events wait for the first listing."""
    catalog = Catalog()

    async with opened(tmp_path, catalog=catalog):
        assert catalog.last_refresh is None


async def test_removed_rows_are_not_restored_at_the_next_start(tmp_path: Path) -> None:
    """A removed entity must not come back with its area."""
    catalog = Catalog()
    async with opened(tmp_path) as metadata:
        await refresh(metadata, HOME)
        await refresh(metadata, {**HOME, "entity": []})

    async with opened(tmp_path, catalog=catalog):
        assert catalog.registries.entities == ()
        assert len(catalog.registries.devices) == 2


async def test_the_tables_of_the_catalog_keep_their_columns(
    metadata: CatalogStore, tmp_path: Path
) -> None:
    """`metadata.db` is opened by other programs: names and contents of columns are a contract."""
    await refresh(metadata, HOME)

    with sqlite3.connect(tmp_path / "metadata.db") as connection:
        connection.row_factory = sqlite3.Row
        device = dict(connection.execute("SELECT * FROM devices WHERE device_id = 'd1'").fetchone())
        entity = dict(
            connection.execute("SELECT * FROM entities WHERE entity_id = 'light.lamp'").fetchone()
        )
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    connection.close()

    assert mode == "wal"
    assert device == {
        "device_id": "d1",
        "name": "Lamp",
        "name_by_user": None,
        "manufacturer": "Ikea",
        "model": "7",
        "sw_version": "1.2",
        "area_id": "hall",
        "integration": "mqtt",
        "entry_type": None,
        "configuration_url": None,
        "suggested_area": None,
        "config_entry_id": "e1",
        "via_device": "hub",
        "last_seen": NOON.isoformat(),
        "created_at": "2026-11-23T17:54:07.250000+00:00",
        "labels": '["radio"]',
        "source": "home",
        "removed_at": None,
    }
    assert entity == {
        "entity_id": "light.lamp",
        "device_id": "d1",
        "domain": "light",
        "platform": "mqtt",
        "unique_id": "5",
        "area_id": None,
        "disabled": 0,
        "name": None,
        "name_by_user": None,
        "original_name": "Lamp",
        "friendly_name": "Lamp",
        "supported_features": None,
        "capabilities": None,
        "icon": None,
        "device_class": None,
        "unit_of_measurement": None,
        "config_entry_id": None,
        "created_at": NOON.isoformat(),
        "updated_at": NOON.isoformat(),
        "labels": '["night"]',
        "source": None,
        "removed_at": None,
    }


@pytest.mark.parametrize(
    ("kind", "filters", "found"),
    [
        ("devices", {}, ["d1", "d2"]),
        ("devices", {"manufacturer": "Ikea"}, ["d1"]),
        ("devices", {"model": "7"}, ["d1"]),
        ("devices", {"area_id": "attic"}, ["d2"]),
        ("devices", {"platform": "mqtt"}, ["d1"]),
        ("devices", {"platform": "hue"}, ["d1", "d2"]),
        ("devices", {"platform": "hue", "area_id": "hall"}, ["d1"]),
        ("devices", {"manufacturer": "'; DROP TABLE devices; --"}, []),
        ("entities", {}, ["light.lamp", "sensor.lamp_power", "switch.plug"]),
        ("entities", {"domain": "light"}, ["light.lamp"]),
        ("entities", {"platform": "hue"}, ["sensor.lamp_power", "switch.plug"]),
        ("entities", {"device_id": "d1"}, ["light.lamp", "sensor.lamp_power"]),
        ("entities", {"label": "night"}, ["light.lamp"]),
        ("entities", {"label": "nigh"}, []),
        ("entities", {"platform": "hue", "domain": "switch"}, ["switch.plug"]),
    ],
)
async def test_devices_and_entities_are_filtered_as_documented(
    metadata: CatalogStore, kind: str, filters: dict[str, str], found: list[str]
) -> None:
    """Each narrows the answer, and together they narrow it more."""
    await refresh(metadata, HOME)

    assert found == await ids(metadata, kind, **filters)


async def test_pages_of_the_catalog_have_every_row_once(metadata: CatalogStore) -> None:
    """By id, each row once."""
    await refresh(metadata, HOME)

    first = await metadata.entities(limit=2)
    second = await metadata.entities(limit=2, cursor=first.next_cursor)

    assert [len(first.documents), len(second.documents)] == [2, 1]
    assert first.next_cursor == "sensor.lamp_power"
    assert second.next_cursor is None


async def test_a_device_is_served_with_the_number_of_its_entities(metadata: CatalogStore) -> None:
    """Those that were removed do not count."""
    await refresh(metadata, HOME)
    rows: Any = HOME["entity"]
    await refresh(metadata, {**HOME, "entity": rows[:1]})

    counts = {
        device["device_id"]: device["entity_count"] for device in await shown(metadata, "devices")
    }

    assert counts == {"d1": 1, "d2": 0}


async def test_rows_that_home_assistant_removed_are_marked(metadata: CatalogStore) -> None:
    """Not deleted: history still names it. What comes back is there again."""
    later = NOON + timedelta(hours=1)
    await refresh(metadata, HOME)

    await refresh(metadata, {**HOME, "device": []}, at=later)
    device = await metadata.device("d1")
    assert device is not None
    assert device["removed_at"] == later.isoformat()
    assert await ids(metadata, "devices") == []

    await refresh(metadata, HOME, at=later)
    assert await ids(metadata, "devices") == ["d1", "d2"]


async def test_a_full_refresh_updates_last_seen(metadata: CatalogStore) -> None:
    """Also of devices whose rows did not change; a listing of something else notes nothing."""
    later, latest = NOON + timedelta(hours=1), NOON + timedelta(hours=2)
    await refresh(metadata, HOME)

    await refresh(metadata, HOME, at=later)
    await refresh(metadata, HOME, at=latest, is_full=False)

    seen = [device["last_seen"] for device in await shown(metadata, "devices")]
    assert seen == [later.isoformat()] * 2


async def test_a_device_gets_its_integration_once_that_is_known(metadata: CatalogStore) -> None:
    """Its own row stays the same when the entries could not be listed at first."""
    await refresh(metadata, {**HOME, "config_entry": []})

    await refresh(metadata, HOME)

    devices = await shown(metadata, "devices")
    assert [device["integration"] for device in devices] == ["mqtt", None]


async def test_a_column_that_another_sender_leaves_out_keeps_its_value(
    metadata: CatalogStore,
) -> None:
    """A row changes only the columns it has."""
    await metadata.upsert(
        "entities",
        [b'{"entity_id":"light.a","name":"Given","platform":"mqtt","device_class":"lamp"}'],
    )

    upserted = await metadata.upsert(
        "entities",
        [b'{"entity_id":"light.a","platform":null,"original_name":"Made","area_id":"x"}'],
    )

    entity = await metadata.entity("light.a")
    assert upserted == 1
    assert entity is not None
    assert entity["friendly_name"] == "Given"
    assert entity["device_class"] == "lamp"
    assert entity["platform"] is None
    assert entity["area_id"] == "x"


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (['{"entity_id":"light.a_b"}'], "A B"),
        (['{"entity_id":"light.a","original_name":"O"}'], "O"),
        (['{"entity_id":"light.a","name":"N","original_name":"O"}'], "N"),
        (['{"entity_id":"light.a","name_by_user":"U","name":"N"}'], "U"),
        (['{"entity_id":"light.a","name":"N"}', '{"entity_id":"light.a","name":null}'], "A"),
        (['{"entity_id":"light.a","name":"N"}', '{"entity_id":"light.a","area_id":"x"}'], "N"),
    ],
)
async def test_the_friendly_name_is_the_best_known_name(
    metadata: CatalogStore, rows: list[str], name: str
) -> None:
    """The user's name, the given, the integration's, else one made of the id."""
    for row in rows:
        await metadata.upsert("entities", [row.encode()])

    (entity,) = await shown(metadata, "entities")
    assert entity["friendly_name"] == name


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (['{"id":"d1","name":"N","name_by_user":"U"}'], "U"),
        (['{"id":"d1","name_by_user":"U"}', '{"id":"d1","name":"N"}'], "U"),
        (['{"id":"d1","name":"N"}', '{"id":"d1","model":"x"}'], "N"),
        (['{"device_id":"d1","name":"N"}', '{"id":"d1","name":"M","name_by_user":null}'], "M"),
    ],
)
async def test_the_name_of_a_device_is_the_one_its_user_gave(
    metadata: CatalogStore, rows: list[str], name: str
) -> None:
    """And stays it when a sender knows only the other."""
    for row in rows:
        await metadata.upsert("devices", [row.encode()])

    (device,) = await shown(metadata, "devices")
    assert device["name"] == name


async def test_rows_without_an_id_are_skipped_alone(metadata: CatalogStore) -> None:
    """The sender gets the number of rows that were stored."""
    rows = [b"{}", b"[]", b'{"id":""}', b'{"id":7}', b'{"id":"\\ud800"}', b'{"id":"d1"}']

    assert await metadata.upsert("devices", rows) == 1
    assert await ids(metadata, "devices") == ["d1"]


async def test_values_of_any_type_are_converted_to_the_column_type(metadata: CatalogStore) -> None:
    """The row is stored, whatever an integration wrote."""
    row = {
        "entity_id": "light.a",
        "supported_features": 2**70,
        "capabilities": {"min": 1, "modes": ["a"]},
        "disabled_by": "user",
        "unique_id": 1.5,
        "name": ["no", "text"],
        "created_at": 1e300,
    }

    await metadata.upsert("entities", [json.dumps(row).encode()])

    (entity,) = await shown(metadata, "entities")
    assert entity["supported_features"] is None
    assert entity["capabilities"] == {"min": 1, "modes": ["a"]}
    assert entity["disabled"] is True
    assert entity["unique_id"] == "1.5"
    assert entity["name"] is None


async def test_a_refresh_leaves_rows_of_other_senders_alone(metadata: CatalogStore) -> None:
    """One instance may be the data API of another home."""
    await metadata.upsert("devices", [b'{"id":"theirs","source":"cabin"}'])

    await refresh(metadata, HOME)

    assert await ids(metadata, "devices") == ["d1", "d2", "theirs"]


async def test_a_sender_can_mark_a_row_as_removed(metadata: CatalogStore) -> None:
    """Which the contract has no word for; who does not know it sees a row like any other."""
    await metadata.upsert("devices", [b'{"id":"d1"}'])

    await metadata.upsert("devices", [b'{"id":"d1","removed":true}'])

    device = await metadata.device("d1")
    assert device is not None
    assert device["removed_at"] is not None


async def test_a_catalog_that_cannot_be_stored_is_stored_later(
    metadata: CatalogStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that cannot be written costs nothing but the next start."""
    execute(tmp_path, "ALTER TABLE registry RENAME TO elsewhere")
    await refresh(metadata, HOME)
    assert "The catalog was not stored; the next refresh stores it: no such table" in caplog.text
    execute(tmp_path, "ALTER TABLE elsewhere RENAME TO registry")

    await refresh(metadata, HOME, is_full=False)

    assert await ids(metadata, "devices") == ["d1", "d2"]


@pytest.mark.parametrize("damage", ["file", "row"])
async def test_a_damaged_catalog_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """It can be listed again: nothing of it is worth a service that does not start."""
    async with opened(tmp_path) as metadata:
        await refresh(metadata, HOME)
    path = tmp_path / "metadata.db"
    if damage == "file":
        path.write_bytes(b"not a database" * 1_000)
    else:
        execute(tmp_path, "UPDATE registry SET row = CAST('{' AS BLOB)")
    catalog = Catalog()

    async with opened(tmp_path, catalog=catalog) as metadata:
        assert catalog.last_refresh is None
        await refresh(metadata, HOME)
        assert await ids(metadata, "devices") == ["d1", "d2"]

    assert "metadata.db was damaged" in caplog.text
    assert await asyncio.to_thread(lambda: len(list(tmp_path.glob("*.damaged-*")))) >= 1


class LastKnown:
    """The last known class, unit and name of each entity, as a normalizer holds them."""

    def __init__(self, **names: LastNames) -> None:
        self.names: Mapping[str, LastNames] = names

    def restore(self, names: Mapping[str, LastNames]) -> None:
        """Set them."""
        self.names = names

    def last_names(self) -> Mapping[str, LastNames]:
        """Return them."""
        return self.names


def with_names(folder: Path, names: LastKnown) -> CatalogStore:
    """Return the catalog in a folder, with what it stores of the entities' last state."""
    return CatalogStore(folder / "metadata.db", catalog=Catalog(), source="home", names=names)


async def test_the_last_known_names_of_entities_are_restored(tmp_path: Path) -> None:
    """Stored after each whole refresh and at the end; what is gone by then is deleted."""
    first = LastKnown()
    async with with_names(tmp_path, first) as metadata:
        first.names = {
            "power": LastNames("power", "W", None),
            "door": LastNames("door", None, "Door"),
        }
        await refresh(metadata, HOME)
        with contextlib.closing(sqlite3.connect(tmp_path / "metadata.db")) as connection:
            stored = connection.execute("SELECT * FROM last_names ORDER BY entity_id").fetchall()
        first.names = {"door": LastNames("window", None, "Door")}
    after = LastKnown()
    async with with_names(tmp_path, after):
        pass

    assert stored == [("door", "door", None, "Door"), ("power", "power", "W", None)]
    assert after.names == {"door": LastNames("window", None, "Door")}


async def test_a_catalog_file_of_the_first_version_is_opened(tmp_path: Path) -> None:
    """Nothing of it is lost, and the tables it lacks are added."""
    async with opened(tmp_path) as metadata:
        await refresh(metadata, HOME)
    execute(tmp_path, "DROP TABLE last_names")
    execute(tmp_path, "DROP TABLE identity_changes")
    execute(tmp_path, "PRAGMA user_version = 1")

    catalog, names = Catalog(), LastKnown(door=LastNames("door", None, None))
    async with CatalogStore(
        tmp_path / "metadata.db", catalog=catalog, source="home", names=names
    ) as metadata:
        restored = dict(names.names)
        names.names = {"door": LastNames("door", None, None)}

    assert restored == {}
    assert catalog.last_refresh == NOON
    again = LastKnown()
    async with with_names(tmp_path, again):
        assert again.names == {"door": LastNames("door", None, None)}
