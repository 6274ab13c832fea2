"""Home Assistant's registries, read from three versions and from odd ones."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from app.discovery.registries import (
    AreaRow,
    ConfigEntryRow,
    DeviceRow,
    EntityRow,
    FloorRow,
    Kind,
    LabelRow,
    Registries,
    SplitRow,
    integration_of,
    list_registries,
    read_registries,
)
from app.runtime.errors import CommandFailed, SourceProtocolError, SourceUnavailable
from tests.fakes.discovery import Answers
from tests.fakes.recordings import VERSIONS, recording

REQUIRED = ("device", "entity", "area")
OPTIONAL = ("config_entry", "floor", "label", "split")
RECORDED = ("device", "entity", "area", "floor", "label")


@pytest.mark.parametrize("version", VERSIONS)
async def test_recorded_registries_are_read(version: str) -> None:
    """Every row of every version, though none has all fields of the others."""
    rows = {kind: recording(version, f"config_{kind}_registry_list")["result"] for kind in RECORDED}

    registries = await list_registries(Answers(rows).call)

    assert [device.id for device in registries.devices] == [row["id"] for row in rows["device"]]
    for entity, row in zip(registries.entities, rows["entity"], strict=True):
        assert entity == EntityRow(
            entity_id=row["entity_id"],
            device_id=row["device_id"],
            platform=row["platform"],
            original_name=row["original_name"],
            unique_id=row["unique_id"],
            modified_at=row.get("modified_at"),
            disabled_by=row["disabled_by"],
        )
    assert [area.name for area in registries.areas] == ["Living Room", "Kitchen", "Bedroom"]
    kept = [json.loads(row) for row in registries.raw["entity"].values()]
    assert rows["entity"] == kept


@pytest.mark.parametrize("version", VERSIONS)
async def test_stored_registry_rows_are_read_again(version: str) -> None:
    """What one version wrote to disk is what the next start knows."""
    rows = {kind: recording(version, f"config_{kind}_registry_list")["result"] for kind in RECORDED}
    listed = await list_registries(Answers(rows).call)

    read = read_registries({kind: rows.values() for kind, rows in listed.raw.items()})

    assert listed == read


async def test_all_registries_are_listed() -> None:
    """What is there is read; what is not there is None."""
    answers = Answers(
        {
            "device": [{"id": "d1", "parent_device_id": "d0", "sw_version": 7, "new": [1]}],
            "entity": [{"entity_id": "light.a", "labels": ["energy"], "name": "Given"}],
            "config_entry": [{"entry_id": "e1", "domain": "mqtt", "title": "Broker"}],
            "area": [{"area_id": "lab", "floor_id": "ground"}],
            "floor": [{"floor_id": "ground", "name": "Ground", "level": 0}],
            "label": [{"label_id": "energy", "name": "Energy"}],
            "split": {"d7": {"split_ids": ["d8", "d9"], "primary_id": "d8"}},
        }
    )

    registries = await list_registries(answers.call)

    assert without_raw(registries) == Registries(
        config_entries=(ConfigEntryRow("e1", domain="mqtt"),),
        devices=(DeviceRow("d1", parent_device_id="d0", sw_version=7),),
        entities=(EntityRow("light.a", labels=("energy",), name="Given"),),
        areas=(AreaRow("lab", floor_id="ground"),),
        floors=(FloorRow("ground", "Ground"),),
        labels=(LabelRow("energy", "Energy"),),
        splits=(SplitRow("d7", split_ids=("d8", "d9")),),
    )
    assert set(answers.asked) == set(REQUIRED + OPTIONAL)


async def test_only_the_wanted_registries_are_listed_again() -> None:
    """The rest stays as it was: a changed label is no reason to ask for megabytes."""
    first = await list_registries(
        Answers({"device": [{"id": "d1"}], "label": [{"label_id": "old"}]}).call
    )
    answers = Answers({"label": [{"label_id": "new"}]})

    wanted: tuple[Kind, ...] = ("label",)
    second = await list_registries(answers.call, kinds=wanted, former=first)

    assert answers.asked == ["label"]
    assert second.devices == first.devices
    assert second.labels == (LabelRow("new"),)
    assert second.raw["label"] == {"new": b'{"label_id": "new"}'}


async def test_thousands_of_rows_do_not_block_the_event_loop() -> None:
    """They are read in slices: others have their turn in between."""
    rows = [{"entity_id": f"sensor.s{number}"} for number in range(5_000)]
    turns = 0

    async def another() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(another())
    registries = await list_registries(Answers({"entity": rows}).call)
    other.cancel()

    assert len(registries.entities) == 5_000
    assert turns >= 5_000 // 200


@pytest.mark.parametrize(
    ("device", "integration"),
    [
        (DeviceRow("d", primary_config_entry="mqtt", config_entries=("hue", "mqtt")), "MQTT"),
        (DeviceRow("d", config_entry_id="hue"), "HUE"),
        (DeviceRow("d", config_entries=("gone", "hue")), "HUE"),
        (DeviceRow("d", config_entries=("gone",)), None),
        (DeviceRow("d"), None),
    ],
)
def test_the_integration_of_a_device_is_that_of_its_entry(
    device: DeviceRow, integration: str | None
) -> None:
    """The primary entry first; 2024.3.3 has only the list, 2026.11 also the one."""
    assert integration == integration_of(device, {"mqtt": "MQTT", "hue": "HUE"})


@pytest.mark.parametrize("kind", OPTIONAL)
@pytest.mark.parametrize("code", ["unknown_command", "unauthorized"])
async def test_floors_and_labels_may_be_missing(kind: str, code: str) -> None:
    """An older Home Assistant has none, and not every user may see them."""
    refusal = CommandFailed("list", code=code, message="No")

    registries = await list_registries(Answers({kind: refusal, "area": [{"area_id": "a"}]}).call)

    assert without_raw(registries) == Registries(areas=(AreaRow("a"),))


@pytest.mark.parametrize("kind", REQUIRED)
async def test_devices_entities_and_areas_must_be_listed(kind: str) -> None:
    """Half a catalog would move every entity out of its area."""
    refusal = CommandFailed("list", code="unauthorized", message="No")

    with pytest.raises(CommandFailed):
        await list_registries(Answers({kind: refusal}).call)


@pytest.mark.parametrize("kind", REQUIRED + OPTIONAL)
async def test_a_lost_connection_is_never_an_empty_registry(kind: str) -> None:
    """Only a result can show that a registry does not exist."""
    with pytest.raises(SourceUnavailable):
        await list_registries(Answers({kind: SourceUnavailable("gone")}).call)


async def test_an_invalid_field_of_a_row_costs_only_itself() -> None:
    """One integration that writes a number for a name must not stop discovery."""
    rows = [
        {"id": "d1", "name": 5, "area_id": "lab"},
        {"id": "d2", "name": "Fine", "area_id": ["x"]},
        {"id": None, "name": "Nameless"},
        {"name": "Nameless"},
    ]

    registries = await list_registries(Answers({"device": rows}).call)

    assert registries.devices == (DeviceRow("d1", area_id="lab"), DeviceRow("d2", name="Fine"))


@pytest.mark.parametrize("answer", [b"{}", b"null", b"[1]", b"[", b'[{"id":"\xff"}]', b"[[]]"])
async def test_a_result_that_is_not_a_list_of_rows_is_a_protocol_error(answer: bytes) -> None:
    """It differs from an empty registry."""
    with pytest.raises(SourceProtocolError, match="config/device_registry/list: "):
        await list_registries(Answers({"device": answer}).call)


def without_raw(registries: Registries) -> Registries:
    """Return only what is read of the rows."""
    return msgspec.structs.replace(registries, raw={})
