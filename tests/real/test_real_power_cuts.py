"""Power cuts on a mounted file system that forgets what the running service has not synced."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.influx import FakeInflux, error
from tests.fakes.still_house import StillHouse
from tests.real.write_back_disk import cut_power, mounted
from tests.service.ledger import Acknowledged, Verdict, compare
from tests.service.pace import Count, changing
from tests.service.process import TOKEN, service

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

DATA = Path("new/data")
MOST_COMMITS = 30
"""In one life of the service."""


@pytest.fixture
async def influx() -> AsyncIterator[FakeInflux]:
    """Serve an InfluxDB 2."""
    async with FakeInflux().serving() as fake:
        yield fake


async def survivors(
    folder: Path, influx: FakeInflux, *, cuts: int, options: Sequence[str] = ()
) -> Verdict:
    """Cut the power again and again; compare what was acknowledged with what is delivered."""
    image, mountpoint = folder / "image", folder / "mountpoint"
    image.mkdir()
    mountpoint.mkdir()
    house, ledger, count = StillHouse(), Acknowledged(), Count()
    async with FakeHomeAssistant(house, token=TOKEN) as home_assistant:
        house.fire = home_assistant.fire
        settings = {
            "HOME_ASSISTANT_URL": home_assistant.url,
            "HOME_ASSISTANT_TOKEN": TOKEN,
            "INFLUXDB_URL": influx.url,
            "INFLUXDB_TOKEN": influx.token,
            "INFLUXDB_API": "v2",
            "EMBEDDED_STORE": "on",
            "BACKFILL_ENABLED": "false",
            "JOURNAL_MIN_FREE_MB": "0",
        }
        influx.fault = error(503, "down")  # all stays in the journal
        for _ in range(cuts):
            wanted = ledger.commits + random.randint(1, MOST_COMMITS)
            async with (
                mounted(image, mountpoint),
                ledger.recording() as descriptor,
                service(
                    folder,
                    settings | {"DATA_DIR": str(mountpoint / DATA)},
                    command=(
                        *("-m", "tests.service.driver", "--ledger", str(descriptor)),
                        *(*options, "--", "app", "run"),
                    ),
                    inherits=[descriptor],
                ),
                changing(house, per_s=500, count=count),
                asyncio.timeout(60),
            ):
                while ledger.commits < wanted:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(cut_power, mountpoint)
        influx.fault = None
        async with service(folder, settings | {"DATA_DIR": str(image / DATA)}) as running:
            health = await running.until(
                "/health", lambda health: not any(sink["held"] for sink in health["sinks"])
            )
            assert await running.stop() == 0
    if not options:
        assert [reason for reason in health["reasons"] if "damaged" in reason] == []
    return compare(ledger.lines, influx.lines)


async def test_twenty_power_cuts_lose_nothing_acknowledged(
    tmp_path: Path, influx: FakeInflux
) -> None:
    """The first of them right after the start in a new folder."""
    found = await survivors(tmp_path, influx, cuts=20)

    assert found.committed > 20
    assert found.lost == 0
    assert found.in_order


async def test_power_cuts_lose_points_when_commits_are_not_synced(
    tmp_path: Path, influx: FakeInflux
) -> None:
    """The control, with `synchronous = NORMAL`."""
    found = await survivors(tmp_path, influx, cuts=3, options=["--synchronous", "NORMAL"])

    assert found.lost > 0
