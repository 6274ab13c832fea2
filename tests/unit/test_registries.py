"""Home Assistant's registries, read from three versions and from odd ones."""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec
import pytest

from app.discovery.registries import (
    AreaRow,
    DeviceRow,
    EntityRow,
    FloorRow,
    LabelRow,
    Registries,
    list_registries,
)
from app.errors import CommandFailed, SourceProtocolError, SourceUnavailable
from tests.fakes.recordings import VERSIONS, recording

REQUIRED = ("device", "entity", "area")
OPTIONAL = ("floor", "label")


class Answers:
    """Answers each list command with what it was given: rows, bytes, or an error."""

    def __init__(self, answers: Mapping[str, object]) -> None:
        self._answers = answers
        self.asked: list[str] = []

    async def call(self, command: str) -> msgspec.Raw:
        """Answer one command."""
        self.asked.append(command)
        kind = command.removeprefix("config/").removesuffix("_registry/list")
        answer = self._answers.get(kind, [])
        if isinstance(answer, Exception):
            raise answer
        return msgspec.Raw(answer if isinstance(answer, bytes) else json.dumps(answer).encode())


@pytest.mark.parametrize("version", VERSIONS)
async def test_recorded_registries_are_read(version: str) -> None:
    """Every row of every version, though none has all fields of the others."""
    rows = {
        kind: recording(version, f"config_{kind}_registry_list")["result"]
        for kind in REQUIRED + OPTIONAL
    }

    registries = await list_registries(Answers(rows).call)

    assert [device.id for device in registries.devices] == [row["id"] for row in rows["device"]]
    for entity, row in zip(registries.entities, rows["entity"], strict=True):
        assert entity == EntityRow(
            entity_id=row["entity_id"],
            device_id=row["device_id"],
            platform=row["platform"],
            original_name=row["original_name"],
        )
    assert [area.name for area in registries.areas] == ["Living Room", "Kitchen", "Bedroom"]


async def test_all_five_registries_are_listed() -> None:
    """What is there is read; what is not there is None."""
    answers = Answers(
        {
            "device": [{"id": "d1", "parent_device_id": "d0", "sw_version": 7, "new": [1]}],
            "entity": [{"entity_id": "light.a", "labels": ["energy"], "name": "Given"}],
            "area": [{"area_id": "lab", "floor_id": "ground"}],
            "floor": [{"floor_id": "ground", "name": "Ground", "level": 0}],
            "label": [{"label_id": "energy", "name": "Energy"}],
        }
    )

    registries = await list_registries(answers.call)

    assert registries == Registries(
        devices=(DeviceRow("d1", parent_device_id="d0", sw_version=7),),
        entities=(EntityRow("light.a", labels=("energy",), name="Given"),),
        areas=(AreaRow("lab", floor_id="ground"),),
        floors=(FloorRow("ground", "Ground"),),
        labels=(LabelRow("energy", "Energy"),),
    )
    assert answers.asked == [f"config/{kind}_registry/list" for kind in REQUIRED + OPTIONAL]


@pytest.mark.parametrize("kind", OPTIONAL)
@pytest.mark.parametrize("code", ["unknown_command", "unauthorized"])
async def test_floors_and_labels_may_be_missing(kind: str, code: str) -> None:
    """An older Home Assistant has none, and not every user may see them."""
    refusal = CommandFailed("list", code=code, message="No")

    registries = await list_registries(Answers({kind: refusal, "area": [{"area_id": "a"}]}).call)

    assert registries == Registries(areas=(AreaRow("a"),))


@pytest.mark.parametrize("kind", REQUIRED)
async def test_the_others_are_needed(kind: str) -> None:
    """Half a catalog would move every entity out of its area."""
    refusal = CommandFailed("list", code="unauthorized", message="No")

    with pytest.raises(CommandFailed):
        await list_registries(Answers({kind: refusal}).call)


@pytest.mark.parametrize("kind", REQUIRED + OPTIONAL)
async def test_a_lost_connection_is_never_an_empty_registry(kind: str) -> None:
    """Only an answer says that a registry is not there."""
    with pytest.raises(SourceUnavailable):
        await list_registries(Answers({kind: SourceUnavailable("gone")}).call)


async def test_an_odd_field_costs_only_itself() -> None:
    """One integration that writes a number for a name must not stop discovery for ever."""
    rows = [
        {"id": "d1", "name": 5, "area_id": "lab"},
        {"id": "d2", "name": "Fine", "area_id": ["x"]},
        {"id": None, "name": "Nameless"},
        {"name": "Nameless"},
    ]

    registries = await list_registries(Answers({"device": rows}).call)

    assert registries.devices == (DeviceRow("d1", area_id="lab"), DeviceRow("d2", name="Fine"))


@pytest.mark.parametrize("answer", [b"{}", b"null", b"[1]", b"[", b'[{"id":"\xff"}]', b"[[]]"])
async def test_what_is_no_list_of_rows_breaks_the_protocol(answer: bytes) -> None:
    """It is told apart from an empty registry."""
    with pytest.raises(SourceProtocolError, match="config/device_registry/list: "):
        await list_registries(Answers({"device": answer}).call)
