"""Entities that are renamed while the service is down, with a recorder that moves their history."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.model import StoredPoint
from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.captured_home import (
    SENSOR,
    Process,
    assert_once,
    numbers,
    previous,
    running,
    states,
)
from tests.fakes.still_house import StillHouse, now

RENAMED = "sensor.renamed"
ATTRIBUTES = {"unit_of_measurement": "W", "device_class": "power"}


@pytest.fixture
def house() -> StillHouse:
    """A home with a registered entity."""
    house = StillHouse(clock=now)
    row = {"entity_id": SENSOR, "platform": "demo", "unique_id": 1, "area_id": "hall"}
    house.put_row("entity", row, id_name="entity_id")
    house.put_row("area", {"area_id": "hall", "name": "Hall"}, id_name="area_id")
    return house


async def counted(process: Process, house: StillHouse, entity_id: str, first: int) -> None:
    """Let an entity count three changes, and have them committed."""
    before = process.telemetry.journaled
    for number in range(first, first + 3):
        house.set_state(entity_id, str(number), ATTRIBUTES)
    await process.until_journaled(before + 3)


def restarted(process: Process, folder: Path, fake: FakeHomeAssistant) -> Process:
    """Return the next process, with the registries as they were stored."""
    after = Process(folder, fake)
    after.catalog.restore(process.catalog.registries, last_refresh=datetime.now(UTC))
    return after


def of(points: list[StoredPoint], entity_id: str) -> list[StoredPoint]:
    """Return the points of one entity."""
    return [point for point in points if point.tags["entity_id"] == entity_id]


async def test_an_entity_renamed_while_the_service_was_down_is_read_back(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """The old id ends with its removal, and nothing that was captured is written again."""
    async with running(Process(tmp_path, fake)) as first:
        await counted(first, house, SENSOR, 0)
    house.rename_with_history(SENSOR, RENAMED)
    async with running(restarted(first, tmp_path, fake)) as second:
        await counted(second, house, RENAMED, 3)
        await second.until_filled()
        points = await second.points()

    assert_once(points)
    assert states(points) == [*numbers(0, 3), None]
    removal = of(points, SENSOR)[-1]
    assert removal.fields["removed"] is True
    assert removal.fields["backfilled"] is True
    assert removal.fields["previous_state"] == "2"
    assert removal.tags == of(points, SENSOR)[0].tags
    assert states(points, RENAMED) == ["2", "3", "4", "5"]
    assert of(points, RENAMED)[0].time_ns >= removal.time_ns


async def test_changes_missed_before_a_rename_carry_the_new_id_once(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """Home Assistant knows it under no other."""
    async with running(Process(tmp_path, fake)) as first:
        await counted(first, house, SENSOR, 0)
    house.set_state(SENSOR, "3", ATTRIBUTES)
    house.rename_with_history(SENSOR, RENAMED)
    async with running(restarted(first, tmp_path, fake)) as second:
        await second.until_filled()
        points = await second.points()
    async with running(restarted(second, tmp_path, fake)) as third:
        await third.until_filled(gaps=2)
        again = await third.points()

    assert_once(points)
    assert states(points) == [*numbers(0, 3), None]
    assert states(points, RENAMED) == ["3", "3"]
    assert len(again) == len(points)


async def test_a_rename_that_was_captured_is_not_reported_again(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """Its removal came live; a gap before it is filled without what was captured."""
    async with running(Process(tmp_path, fake)) as first:
        await counted(first, house, SENSOR, 0)
        house.rename_with_history(SENSOR, RENAMED)
        await first.until_journaled(5)
    async with running(restarted(first, tmp_path, fake)) as second:
        await second.until_filled()
        points = await second.points()

    assert_once(points)
    assert states(points) == [*numbers(0, 3), None]
    assert previous(points, RENAMED) == [None]
