"""A full, read-only, forbidden or damaged disk: the service continues, reports it, recovers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.influx import FakeInflux
from tests.fakes.still_house import StillHouse
from tests.service.disk import Disk, every_write_failing, small_disk
from tests.service.pace import changing
from tests.service.process import Service

CHANGES_PER_S = 500
USER_VERSION_AT = 60
"""https://www.sqlite.org/fileformat2.html#the_database_header"""

_STATE = re.compile(rb'state_value="(\d+)"')


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Disk]:
    """Mount a disk of 6 MB."""
    async with small_disk(tmp_path, megabytes=6) as mounted:
        yield mounted


@pytest.fixture
def settings(influx_settings: dict[str, str]) -> dict[str, str]:
    """Return settings for Home Assistant and InfluxDB; the journal may fill the disk."""
    return influx_settings | {
        "JOURNAL_MIN_FREE_MB": "0",
    }


def states(influx: FakeInflux) -> list[int]:
    """Return the states that were written, as numbers, in the order of arrival."""
    return [int(number) for line in influx.lines for number in _STATE.findall(line)]


def is_durable(health: Any) -> bool:
    """Return whether commits succeed."""
    return bool(health["journal"]["durable"])


def written(count: int) -> Any:
    """Return a condition on /health: at least `count` points were written."""
    return lambda health: health["sinks"][0]["points_written"] >= count


async def delivered_while_degraded(running: Service) -> tuple[Any, Any]:
    """Wait until commits fail and a second's worth of points is delivered anyway.

    Return /health and /metrics of that moment.
    """
    degraded = await running.until("/health", lambda health: not is_durable(health))
    before = degraded["sinks"][0]["points_written"]
    health = await running.until("/health", written(before + CHANGES_PER_S))
    return health, await running.text("/metrics")


async def recovered(running: Service) -> Any:
    """Wait until commits succeed again, and return /health."""
    return await running.until("/health", lambda h: is_durable(h) and h["status"] == "healthy")


def assert_nothing_is_missing(health: Any, influx: FakeInflux) -> None:
    """Assert that every change is in the database, once and in order, and the totals balance."""
    events = health["accounting"]["events"]
    assert events["received"] == events["journaled"] + events["pending"]
    assert events["dropped"] == {}
    numbers = states(influx)
    assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize(
    "problem", ["full", "forbidden", pytest.param("broken", marks=pytest.mark.slow)]
)
async def test_points_reach_the_database_in_order_while_commits_fail(
    settings: dict[str, str],
    house: StillHouse,
    influx: FakeInflux,
    disk: Disk,
    tmp_path: Path,
    *,
    problem: str,
) -> None:
    """No space, no permission or failing writes: nothing is lost, and commits resume."""
    async with disk.service(tmp_path, settings) as running:
        await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
        async with changing(house, per_s=CHANGES_PER_S):
            await running.until("/health", written(100))
            with contextlib.ExitStack() as stack:
                match problem:
                    case "full":
                        disk.fill()
                        stack.callback(disk.empty)
                    case "forbidden":
                        disk.path.chmod(0o000)
                        stack.callback(disk.path.chmod, 0o700)
                    case _:
                        stack.enter_context(every_write_failing(running))
                health, metrics = await delivered_while_degraded(running)
            await recovered(running)
        after = await running.until("/health", lambda health: health["sinks"][0]["held"] == 0)
        status = await running.stop()

    assert status == 0
    assert health["status"] == "degraded"
    assert "Events are not durable: " in " ".join(health["reasons"])
    assert "ingest_journal_durable 0.0" in metrics
    assert "ingest_ready 1.0" in metrics
    assert_nothing_is_missing(after, influx)


async def test_uncommitted_points_are_delivered_or_committed_at_a_stop(
    settings: dict[str, str], house: StillHouse, influx: FakeInflux, disk: Disk, tmp_path: Path
) -> None:
    """SIGTERM on a full disk: uncommitted points are delivered within SHUTDOWN_TIMEOUT."""
    patient = settings | {"BATCH_TIMEOUT": "60", "BATCH_SIZE": "5000"}
    async with disk.service(tmp_path, patient) as running:
        await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
        disk.fill()
        for number in range(700):
            house.set_state("sensor.counter", str(number))
        health = await running.until("/health", lambda health: not is_durable(health))
        assert health["sinks"][0]["points_written"] == 0
        status = await running.stop()

    assert status == 0
    assert states(influx) == list(range(700))


@pytest.mark.slow  # the journal tests cover such a kill in every run
async def test_a_kill_on_a_full_disk_loses_no_delivered_point(
    settings: dict[str, str], house: StillHouse, influx: FakeInflux, disk: Disk, tmp_path: Path
) -> None:
    """Points delivered uncommitted are there once, and the next run continues after them."""
    async with disk.service(tmp_path, settings) as running:
        await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
        disk.fill()
        for number in range(700):
            house.set_state("sensor.counter", str(number))
        await running.until("/health", written(700))
        await running.stop(signal.SIGKILL)
    disk.empty()

    async with disk.service(tmp_path, settings) as running:
        await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
        for number in range(700, 800):
            house.set_state("sensor.counter", str(number))
        health = await running.until("/health", written(100))

    assert health["status"] == "healthy"
    assert list(dict.fromkeys(states(influx))) == list(range(800))


@pytest.mark.parametrize("problem", ["read-only", "forbidden"])
async def test_an_unwritable_folder_stops_the_start_with_one_line(
    settings: dict[str, str], disk: Disk, problem: str
) -> None:
    """Status 2; the line names DATA_DIR and gives the reason."""
    if problem == "read-only":
        await disk.remount("ro")
    else:
        disk.path.chmod(0o000)

    status, stderr = await disk.refused(settings)

    assert status == 2
    assert re.fullmatch(
        r"websocket-ingestion: DATA_DIR: the folder \S+ cannot be written"
        r" \((Read-only file system|Permission denied)\)\. .*\n",
        stderr,
    )


async def test_a_full_disk_stops_the_start_and_names_the_folder(
    settings: dict[str, str], disk: Disk
) -> None:
    """Status 2 and one line; SQLite's own message would name no folder."""
    disk.fill()

    status, stderr = await disk.refused(settings | {"LOG_OUTPUT": "stdout"})

    assert status == 2
    assert stderr.count("\n") == 1
    assert "DATA_DIR: the" in stderr
    assert "full" in stderr or "No space left" in stderr


async def test_an_unusable_database_file_stops_the_start_with_one_line(
    settings: dict[str, str], disk: Disk, tmp_path: Path
) -> None:
    """For example a file left behind by a container with another user."""
    async with disk.service(tmp_path, settings) as running:
        assert await running.stop() == 0

    for name, mode in product(("journal.db", "dead_letters.db", "metadata.db"), (0o000, 0o444)):
        path = disk.path / name
        before = path.stat().st_mode
        os.chown(path, 0, 0)
        path.chmod(mode)
        status, stderr = await disk.refused(settings)
        path.chmod(before)
        for left in disk.path.glob(f"{name}-*"):  # SQLite gives them the mode of the file
            left.unlink()

        assert (status, stderr.count("\n")) == (2, 1), (name, oct(mode), stderr)
        assert re.search(rf"DATA_DIR: \S+/{name} cannot be opened", stderr), oct(mode)


async def test_a_journal_of_a_newer_version_is_not_modified(
    settings: dict[str, str], disk: Disk, tmp_path: Path
) -> None:
    """Status 2 and one line; the file stays unchanged."""
    async with disk.service(tmp_path, settings) as running:
        assert await running.stop() == 0
    path = disk.path / "journal.db"
    with path.open("r+b") as file:  # SQLite could not open a path in the namespace
        file.seek(USER_VERSION_AT)
        file.write((99).to_bytes(4))
    before = path.read_bytes()

    status, stderr = await disk.refused(settings)

    assert status == 2
    assert stderr.count("\n") == 1
    assert "was written by a newer version of this service" in stderr
    assert before == path.read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        "cut short",
        pytest.param("a corrupt page", marks=pytest.mark.slow),
        pytest.param("emptied", marks=pytest.mark.slow),
    ],
)
async def test_a_damaged_journal_is_reported_and_only_unreadable_points_are_lost(
    settings: dict[str, str],
    house: StillHouse,
    influx: FakeInflux,
    disk: Disk,
    tmp_path: Path,
    *,
    damage: str,
) -> None:
    """The rest is delivered, the missing points are counted, and new events follow."""
    unreachable = settings | {
        "INFLUXDB_URL": "http://127.0.0.1:9",
        "JOURNAL_COMMIT_INTERVAL": "0.01",
    }
    async with disk.service(tmp_path, unreachable) as running:
        await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
        for number in range(2_000):
            house.set_state("sensor.counter", str(number))
            if number % 20 == 0:
                await asyncio.sleep(0.001)
        await running.until(
            "/health", lambda health: health["accounting"]["events"]["journaled"] == 2_000
        )
        assert await running.stop() == 0
    spoil(disk.path / "journal.db", damage)

    async with disk.service(tmp_path, settings) as running:
        await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
        house.set_state("sensor.counter", "2000")
        health = await running.until("/health", lambda health: health["sinks"][0]["held"] == 0)
        assert await running.stop() == 0

    numbers = states(influx)
    (damage_reason,) = (reason for reason in health["reasons"] if "was damaged" in reason)
    saved, missing = map(
        int, re.findall(r"(\d+) points were saved, (\d+) are missing", damage_reason)[0]
    )
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 2_000
    assert len(numbers) == saved + 1
    assert health["journal"]["salvaged"] == saved
    # For an emptied file, the number of missing points is unknown.
    assert saved + missing == (0 if damage == "emptied" else 2_000)
    assert len(list(disk.path.glob("journal.db.damaged-*"))) == 1


def spoil(path: Path, damage: str) -> None:
    """Damage a closed file."""
    size = path.stat().st_size
    match damage:
        case "a corrupt page":
            with path.open("r+b") as file:
                file.seek(size // 2 // 4096 * 4096)
                file.write(os.urandom(4096))
        case "cut short":
            os.truncate(path, size * 3 // 4)
        case _:
            os.truncate(path, 0)
