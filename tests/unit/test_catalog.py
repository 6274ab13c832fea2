"""The catalog: where an entity is, joined from its row, its device and its area."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import msgspec
import pytest

from app.discovery.catalog import Catalog
from app.discovery.registries import AreaRow, DeviceRow, EntityRow, Registries
from app.health import DiscoveryStatus
from app.model import NOWHERE, Placement
from tests.fakes.recordings import VERSIONS, recording

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
HUB = DeviceRow("d1", area_id="hall", manufacturer="Ikea", model="T1", sw_version="1.2", name="Hub")
HALL = AreaRow("hall", name="Hall", floor_id="ground")
LAMP = EntityRow("light.lamp", device_id="d1", platform="zha", original_name="Lamp")


def _placement(
    entity: EntityRow, *devices: DeviceRow, areas: tuple[AreaRow, ...] = (HALL,)
) -> Placement:
    catalog = Catalog()
    catalog.replace(Registries(devices=devices, entities=(entity,), areas=areas))
    return catalog.placement(entity.entity_id)


def test_a_placement_joins_three_registries() -> None:
    """The entity's row, its device's and its area's."""
    entity = msgspec.structs.replace(LAMP, labels=("energy",))

    assert _placement(entity, HUB) == Placement(
        device_id="d1",
        area_id="hall",
        area_name="Hall",
        integration="zha",
        name="Lamp",
        manufacturer="Ikea",
        model="T1",
        sw_version="1.2",
        floor_id="ground",
        labels=("energy",),
    )


def test_the_entitys_own_area_comes_first() -> None:
    """People move an entity away from its device."""
    moved = msgspec.structs.replace(LAMP, area_id="garden")

    placement = _placement(moved, HUB, areas=(HALL, AreaRow("garden", name="Garden")))

    assert placement.area_id == "garden"
    assert placement.area_name == "Garden"
    assert placement.floor_id is None


def test_an_unlisted_area_or_device_keeps_its_id() -> None:
    """Registries are listed one after the other and may be a moment apart."""
    assert _placement(LAMP, HUB, areas=()).area_id == "hall"
    assert _placement(LAMP, HUB, areas=()).area_name is None
    assert _placement(LAMP).device_id == "d1"
    assert _placement(LAMP).area_id is None


def test_a_child_device_inherits_from_its_parents() -> None:
    """Area, maker and model come from the nearest that has them; the version does not."""
    middle = DeviceRow("d2", parent_device_id="d1", model="T2")
    child = DeviceRow("d3", parent_device_id="d2")
    lamp = msgspec.structs.replace(LAMP, device_id="d3")

    placement = _placement(lamp, child, middle, HUB)

    assert placement.device_id == "d3"
    assert placement.area_id == "hall"
    assert placement.manufacturer == "Ikea"
    assert placement.model == "T2"
    assert placement.sw_version is None


def test_a_child_device_keeps_its_own_values() -> None:
    """Inheritance fills only gaps."""
    child = DeviceRow("d3", parent_device_id="d1", area_id="garden", manufacturer="M", model="X")

    placement = _placement(msgspec.structs.replace(LAMP, device_id="d3"), child, HUB)

    assert (placement.area_id, placement.manufacturer, placement.model) == ("garden", "M", "X")


def test_devices_that_are_their_own_ancestors_are_joined() -> None:
    """Two devices that are each other's parent, or one whose parent is gone."""
    first = DeviceRow("d1", parent_device_id="d2", model="A")
    second = DeviceRow("d2", parent_device_id="d1", area_id="hall")

    assert _placement(LAMP, first, second).area_id == "hall"
    assert _placement(LAMP, DeviceRow("d1", parent_device_id="gone", model="A")).model == "A"


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (EntityRow("light.a_b", name_by_user="U", name="N", original_name="O"), "U"),
        (EntityRow("light.a_b", name="N", original_name="O"), "N"),
        (EntityRow("light.a_b", name="", original_name="O"), "O"),
        (EntityRow("light.a_b"), "A B"),
    ],
)
def test_the_name_given_by_the_user_comes_first(row: EntityRow, name: str) -> None:
    """Then the integration's, then one made of the id."""
    assert _placement(row).name == name


@pytest.mark.parametrize(
    ("written", "text"), [("1.2", "1.2"), (5, "5"), (0, "0"), ("", None), (None, None), ([1], None)]
)
def test_registry_values_of_any_type_become_text(written: object, text: str | None) -> None:
    """Some write numbers where others write texts."""
    assert _placement(LAMP, DeviceRow("d1", sw_version=written)).sw_version == text


def test_an_entity_that_the_catalog_does_not_list_has_no_placement() -> None:
    """Before the first refresh, and when no registry lists it."""
    catalog = Catalog()

    assert catalog.placement("sun.sun") is NOWHERE
    catalog.replace(Registries(entities=(LAMP,)))
    assert catalog.placement("sun.sun") is NOWHERE


def test_an_unchanged_placement_is_the_same_object() -> None:
    """Caches compare by identity: a refresh without news must not empty them."""
    catalog = Catalog()
    other = EntityRow("light.other", device_id="d2")
    devices = (HUB, DeviceRow("d2"))
    catalog.replace(Registries(devices=devices, entities=(LAMP, other), areas=(HALL,)))
    lamp, unmoved = catalog.placement("light.lamp"), catalog.placement("light.other")

    catalog.replace(
        Registries(
            devices=devices, entities=(LAMP, other), areas=(AreaRow("hall", name="Entrance"),)
        )
    )

    assert catalog.placement("light.other") is unmoved
    assert catalog.placement("light.lamp") is not lamp
    assert catalog.placement("light.lamp").area_name == "Entrance"


def test_entities_that_are_no_longer_listed_are_forgotten() -> None:
    """A removed entity is nowhere."""
    catalog = Catalog()
    catalog.replace(Registries(entities=(LAMP,)))
    catalog.replace(Registries())

    assert catalog.placement("light.lamp") is NOWHERE


def test_labels_reach_an_entity_from_its_device_and_its_area() -> None:
    """As Home Assistant's own label targets do; its own come first."""
    entity = msgspec.structs.replace(LAMP, labels=("mine",))
    device = msgspec.structs.replace(HUB, labels=("mine", "radio"))
    area = msgspec.structs.replace(HALL, labels=("inside",))

    assert _placement(entity, device, areas=(area,)).labels == ("mine", "radio", "inside")
    assert _placement(entity, HUB).labels == ("mine",)


def test_a_rename_is_followed_before_it_is_listed() -> None:
    """The last event under the old id and the first under the new one are placed alike."""
    catalog = Catalog()
    catalog.replace(Registries(devices=(HUB,), entities=(LAMP,), areas=(HALL,)))
    before, all_before = catalog.placement("light.lamp"), catalog.placements()

    catalog.rename("light.reading", former="light.lamp")
    assert catalog.placements() is not all_before, "who remembers one looks it up again"
    assert catalog.placement("light.reading") is before
    assert catalog.placement("light.lamp") is before

    # A listing that was under way when the name changed does not undo it.
    catalog.replace(Registries(devices=(HUB,), entities=(LAMP,), areas=(HALL,)))
    assert catalog.placement("light.reading") is before

    renamed = msgspec.structs.replace(LAMP, entity_id="light.reading")
    catalog.replace(Registries(devices=(HUB,), entities=(renamed,), areas=(HALL,)))
    assert catalog.placement("light.reading") == before
    assert catalog.placement("light.lamp") is NOWHERE


def test_a_rename_of_an_unknown_entity_changes_nothing() -> None:
    """It may have been registered a moment ago; its row will be listed."""
    catalog = Catalog()

    catalog.rename("light.new", former="light.unknown")

    assert catalog.placement("light.new") is NOWHERE


async def test_the_catalog_is_joined_in_slices_and_replaced_at_once() -> None:
    """No reader sees half a catalog, and none waits until all of it is joined."""
    catalog = Catalog()
    entities = tuple(EntityRow(f"sensor.s{number}", area_id="hall") for number in range(2_000))
    seen = set()

    async def another() -> None:
        while True:
            seen.add(len([e for e in entities if catalog.placement(e.entity_id) is not NOWHERE]))
            await asyncio.sleep(0)

    other = asyncio.create_task(another())
    await catalog.replace_gently(Registries(entities=entities, areas=(HALL,)))
    other.cancel()

    assert catalog.placement("sensor.s1999").area_name == "Hall"
    assert seen <= {0, 2_000}
    assert 0 in seen


def test_a_restored_catalog_keeps_the_date_of_its_refresh() -> None:
    """A catalog from disk is as old as it is."""
    catalog = Catalog()

    catalog.restore(Registries(devices=(HUB,), entities=(LAMP,)), last_refresh=NOON)

    assert catalog.status() == DiscoveryStatus(devices=1, entities=1, last_refresh=NOON)
    assert catalog.placement("light.lamp").area_id == "hall"


def test_the_status_of_a_catalog_has_its_last_refresh() -> None:
    """How much was found, and when."""
    catalog = Catalog(now=lambda: NOON)
    assert catalog.status() == DiscoveryStatus()

    catalog.replace(Registries(devices=(HUB,), entities=(LAMP, EntityRow("sun.a")), areas=(HALL,)))

    assert catalog.status() == DiscoveryStatus(devices=1, entities=2, areas=1, last_refresh=NOON)


def test_the_date_of_a_refresh_is_in_utc() -> None:
    """The clock of a catalog is the system's, with an offset."""
    catalog = Catalog()
    before = datetime.now(UTC)
    catalog.replace(Registries())

    refreshed = catalog.status().last_refresh

    assert refreshed is not None
    assert before <= refreshed <= datetime.now(UTC)


@pytest.mark.parametrize("version", VERSIONS)
def test_entities_of_recorded_registries_have_their_integration(version: str) -> None:
    """Every row of a real Home Assistant is placed."""
    rows = recording(version, "config_entity_registry_list")["result"]
    catalog = Catalog()

    catalog.replace(
        Registries(entities=tuple(msgspec.convert(row, type=EntityRow) for row in rows))
    )

    assert [catalog.placement(row["entity_id"]).integration for row in rows] == [
        row["platform"] for row in rows
    ]
