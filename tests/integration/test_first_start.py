"""The first start of a new journal, and what a person is told of changes that cannot be had."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.captured_home import (
    HISTORY,
    SENSOR,
    TOKEN,
    Process,
    assert_once,
    numbers,
    running,
    states,
)
from tests.fakes.service import api_client, components
from tests.fakes.still_house import StillHouse


async def test_what_an_absent_home_assistant_recorded_before_the_first_connection_is_read_back(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """It starts after the service, and records for a while before the service connects."""
    fake.refusing = True
    process = Process(tmp_path, fake)

    async def start() -> None:
        await process.until(lambda: process.source.status().failed_connections >= 2)
        house.set_state("sensor.old", "on")
        for number in range(5):
            house.set_state(SENSOR, str(number))
        fake.refusing = False

    starting = asyncio.create_task(start(), name="test.start")
    async with running(process):
        await starting
        house.set_state(SENSOR, "5")
        await process.until_journaled(1)
        await process.until_filled()
        points = await process.points()

    assert_once(points)
    assert states(points) == numbers(0, 6)
    assert states(points, "sensor.old") == ["on"]


async def test_history_from_before_the_first_connection_is_left_to_a_request(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """Home Assistant was there when the service came."""
    house.set_state(SENSOR, "0")
    async with running(Process(tmp_path, fake)) as process:
        house.set_state(SENSOR, "1")
        await process.until_journaled(1)

        assert process.coverage.gaps() == []
        assert states(await process.points()) == ["1"]


async def test_a_gap_that_cannot_be_filled_is_shown_until_it_is_acknowledged(
    house: StillHouse, tmp_path: Path
) -> None:
    """Also after a restart: it is a loss that a person must be able to see."""
    async with FakeHomeAssistant(house, token=TOKEN, unknown_commands=[HISTORY]) as fake:
        house.fire = fake.fire
        async with running(Process(tmp_path, fake)) as process:
            house.set_state(SENSOR, "0")
            await process.until_journaled(1)
        house.set_state(SENSOR, "1")
        async with running(Process(tmp_path, fake)) as process:
            await process.until_filled()
            shown = process.backfill.status().reason
            house.set_state(SENSOR, "2")
            await process.until_journaled(1)
        after = Process(tmp_path, fake, fills=False)
        async with running(after):
            again = after.backfill.status().reason
            async with api_client(components(coverage=after.coverage)) as client:
                answer = await client.post("/api/v1/gaps/acknowledge")
            quiet = after.backfill.status().reason
            await after.until(lambda: not after.coverage.changes_to_save().gaps)
        last = Process(tmp_path, fake, fills=False)
        async with running(last):
            still_quiet = last.backfill.status().reason

    assert shown == again
    assert "1 gaps cannot be filled" in str(shown)
    assert "POST /api/v1/gaps/acknowledge" in str(shown)
    assert (answer.status_code, answer.json()) == (200, {"acknowledged": 1})
    assert (quiet, still_quiet) == (None, None)
    assert last.coverage.count("unfillable") == 1


@pytest.mark.parametrize(
    ("components", "missing"),
    [
        (["api", "history"], "recorder"),
        (["api", "recorder"], "history"),
        (["recorder", "history"], None),
    ],
)
async def test_home_assistant_without_a_recorder_is_shown_before_anything_is_missed(
    house: StillHouse,
    fake: FakeHomeAssistant,
    tmp_path: Path,
    components: list[str],
    missing: str | None,
) -> None:
    """The first gap would be too late to learn of it."""
    house.components = components
    async with running(Process(tmp_path, fake)) as process:
        await process.until(lambda: process.source.is_running)
        reason = process.backfill.status().reason

    assert (reason is None) == (missing is None)
    assert missing is None or f"without the integration {missing!r}" in str(reason)


async def test_with_backfill_disabled_a_missing_recorder_is_not_reported(
    house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path
) -> None:
    """BACKFILL_ENABLED=false: a person has decided so."""
    house.components = ["api"]
    async with running(Process(tmp_path, fake, fills=False)) as process:
        await process.until(lambda: process.source.is_running)

        assert process.backfill.status().reason is None
