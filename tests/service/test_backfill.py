"""Backfill: changes missed during downtime are in the database exactly once."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from app.schema.line_protocol import parse_line
from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.influx import FakeInflux
from tests.fakes.still_house import StillHouse, now
from tests.service.process import ROOT, Service, service

SENSOR = "sensor.counter"


@pytest.fixture
def house() -> StillHouse:
    """Return a home that uses the real clock."""
    return StillHouse(clock=now)


@pytest.fixture
def settings(influx_settings: dict[str, str]) -> dict[str, str]:
    """Return settings with backfill enabled and short waits; this recorder commits at once."""
    return influx_settings | {
        "WEBSOCKET_MAX_RETRY_DELAY": "0.2",
        "BACKFILL_ENABLED": "true",
        "BACKFILL_COMMIT_INTERVAL": "0.5",
    }


def filled(health: Any) -> bool:
    """Return whether all gaps are filled and all points delivered."""
    gaps = health["gaps"]
    return bool(gaps["filled"] and not gaps["open"] and not health["sinks"][0]["held"])


def connected(health: Any) -> bool:
    """Return whether the service is subscribed to events."""
    return bool(health["subscription"]["is_subscribed"])


def states(influx: FakeInflux, entity_id: str = SENSOR) -> list[object]:
    """Return the states of an entity in time order; assert that each point occurs once.

    A line that a killed service sent again is the same point and counts once.
    """
    points = sorted(map(parse_line, set(influx.lines)), key=lambda point: point.time_ns)
    own = [point for point in points if point.tags["entity_id"] == entity_id]
    assert len(own) == len({point.time_ns for point in own})
    return [point.fields["state_value"] for point in own]


def count(house: StillHouse, numbers: Iterable[int]) -> None:
    """Set the sensor to each number."""
    for number in numbers:
        house.set_state(SENSOR, str(number), {"unit_of_measurement": "W"})


async def capture(running: Service, house: StillHouse, numbers: Iterable[int]) -> None:
    """Set the sensor to five numbers, and wait until the service has written them."""
    await running.until("/health", connected)
    count(house, numbers)
    await running.until("/health", lambda health: health["sinks"][0]["points_written"] == 5)


async def test_changes_made_during_downtime_are_written_after_the_start(
    house: StillHouse, settings: dict[str, str], influx: FakeInflux, tmp_path: Path
) -> None:
    """Each change once, with its previous state, and marked as backfilled."""
    async with service(tmp_path, settings) as running:
        await capture(running, house, range(5))
        assert await running.stop() == 0
    count(house, range(5, 10))
    house.set_state("sensor.secret", "hidden")
    house.recorded.pop("sensor.secret")  # excluded from the recorder
    async with service(tmp_path, settings) as running:
        await running.until("/health", connected)
        house.set_state(SENSOR, "10")
        await running.until("/health", filled, timeout_s=40)
        gaps = await running.get("/api/v1/gaps")
        assert await running.stop() == 0

    points = sorted(map(parse_line, influx.lines), key=lambda point: point.time_ns)
    counted = [point for point in points if point.tags["entity_id"] == SENSOR]
    (hidden,) = (point for point in points if point.tags["entity_id"] == "sensor.secret")
    assert [*map(str, range(11))] == states(influx)
    assert [None, *map(str, range(10))] == [point.fields.get("previous_state") for point in counted]
    assert [number for number, point in enumerate(counted) if point.fields.get("backfilled")] == [
        5,
        6,
        7,
        8,
        9,
    ]
    assert all(
        point.fields["duration_in_state_seconds"]
        == pytest.approx((point.time_ns - before.time_ns) / 1e9)
        for before, point in pairwise(counted)
    )
    assert {"W"} == {point.tags["unit_of_measurement"] for point in counted}
    assert (hidden.fields["state_value"], hidden.fields["backfilled"]) == ("hidden", True)
    (gap,) = gaps["gaps"]
    assert (
        gap["reason"],
        gap["state"],
        gap["changes"],
        gap["unrecorded"],
    ) == ("restart", "filled", 5, ["sensor.secret"])


@pytest.mark.long
async def test_the_gaps_of_a_kill_and_of_a_lost_connection_are_both_filled(
    house: StillHouse,
    home_assistant: FakeHomeAssistant,
    settings: dict[str, str],
    influx: FakeInflux,
    tmp_path: Path,
) -> None:
    """Each gap is filled separately, with the changes inside it and nothing else."""
    async with service(tmp_path, settings) as running:
        await capture(running, house, range(5))
        await running.stop(signal.SIGKILL)
    count(house, range(5, 10))
    async with service(tmp_path, settings) as running:
        await running.until("/health", connected)
        count(house, range(10, 15))
        await running.until("/health", lambda health: health["sinks"][0]["points_written"] >= 5)
        home_assistant.refusing = True
        home_assistant.abort()
        await running.until("/health", lambda health: not connected(health))
        count(house, range(15, 20))
        home_assistant.refusing = False
        await running.until("/health", connected)
        count(house, range(20, 25))
        await running.until(
            "/health", lambda health: health["gaps"]["filled"] == 2 and filled(health), timeout_s=60
        )
        gaps = await running.get("/api/v1/gaps")
        metrics = await running.text("/metrics")
        assert await running.stop() == 0

    assert [*map(str, range(25))] == states(influx)
    assert [(gap["reason"], gap["state"]) for gap in gaps["gaps"]] == [
        ("disconnect", "filled"),
        ("restart", "filled"),
    ]
    assert 'ingest_gaps{state="filled"} 2.0' in metrics
    assert "ingest_backfilled_points_total 10.0" in metrics


@pytest.mark.long
async def test_a_stop_while_a_gap_is_filled_is_orderly_and_it_is_filled_later(
    house: StillHouse, settings: dict[str, str], influx: FakeInflux, tmp_path: Path
) -> None:
    """Status 0, at once; the next run continues, and also finds the gap of the stop."""
    async with service(tmp_path, settings) as running:
        await capture(running, house, range(5))
        assert await running.stop() == 0
    count(house, range(5, 300))
    async with service(tmp_path, settings | {"BACKFILL_RATE": "50"}) as running:
        await running.until("/metrics", backfilling, ask=running.text)
        begun = time.monotonic()
        assert await running.stop() == 0
        took_s = time.monotonic() - begun
    sent_before = len(influx.lines)
    async with service(tmp_path, settings) as running:
        health = await running.until("/health", filled, timeout_s=60)
        assert await running.stop() == 0

    assert sent_before < 300
    assert [*map(str, range(300))] == states(influx)
    assert health["gaps"]["filled"] == 2
    assert took_s < 8


async def test_a_process_that_is_suspended_while_it_connects_misses_nothing(
    house: StillHouse,
    home_assistant: FakeHomeAssistant,
    settings: dict[str, str],
    influx: FakeInflux,
    tmp_path: Path,
) -> None:
    """As when a virtual machine is paused or a laptop sleeps for some seconds."""
    async with service(tmp_path, settings) as running:
        await capture(running, house, range(5))
        number = 5
        for stopped_after_s in (0.0, 0.2, 0.22):  # WEBSOCKET_MAX_RETRY_DELAY is 0.2 s
            home_assistant.abort()
            await asyncio.sleep(stopped_after_s)
            running.process.send_signal(signal.SIGSTOP)
            for _ in range(30):
                count(house, [number])
                number += 1
                await asyncio.sleep(0.1)
            running.process.send_signal(signal.SIGCONT)
            await running.until("/health", connected)
        count(house, [number])
        await running.until("/health", filled, timeout_s=60)
        assert await running.stop() == 0

    assert [*map(str, range(number + 1))] == states(influx)


def backfilling(metrics: str) -> bool:
    """Return whether any points have been backfilled."""
    match = re.search(r"^ingest_backfilled_points_total (\S+)", metrics, re.MULTILINE)
    return match is not None and float(match[1]) > 0


@pytest.mark.long
async def test_a_journal_in_memory_logs_the_backfill_command_that_fills_the_gap(
    house: StillHouse,
    home_assistant: FakeHomeAssistant,
    settings: dict[str, str],
    influx: FakeInflux,
    tmp_path: Path,
) -> None:
    """Gaps are not recorded in memory, so an operator runs the command and the service fills."""
    async with service(tmp_path, settings | {"JOURNAL": "memory"}) as running:
        await capture(running, house, range(5))
        home_assistant.refusing = True
        home_assistant.abort()
        await running.until("/health", lambda health: not connected(health))
        count(house, range(5, 10))
        home_assistant.refusing = False
        await running.until("/health", connected)
        command = await logged(running, r"app (backfill --since \S+ --until \S+)")
        status, output = await run_command(
            tmp_path, settings, *command[1].split(), "--url", running.url
        )
        await running.until("/health", filled)
        assert await running.stop() == 0

    assert [*map(str, range(10))] == sorted(set(states_as_sent(influx)), key=int)
    assert status == 0
    assert "Read back" in output


async def logged(running: Service, pattern: str) -> re.Match[str]:
    """Wait for a log line; the bounds of a gap are known only after the states are listed."""
    async with asyncio.timeout(20):
        while (found := re.search(pattern, running.output.read_text())) is None:
            await asyncio.sleep(0.05)
    return found


async def test_the_backfill_command_reads_history_from_before_the_first_start(
    house: StillHouse, settings: dict[str, str], influx: FakeInflux, tmp_path: Path
) -> None:
    """Without a running service; a second run writes nothing again."""
    since = now().isoformat()
    count(house, range(10))
    # The very first subscription may count as up to a second earlier (docs/GUARANTEES.md), and
    # on a fast machine the service connects within it.
    await asyncio.sleep(1.1)
    async with service(tmp_path, settings) as running:
        await capture(running, house, range(10, 15))
        assert await running.stop() == 0
    first = await run_command(tmp_path, settings, "backfill", "--since", since)
    before = len(influx.lines)
    second = await run_command(tmp_path, settings, "backfill", "--since", since)

    assert [*map(str, range(15))] == states(influx)
    assert before == len(influx.lines) == 15
    assert (first[0], second[0]) == (0, 0)
    assert "Read back 10 changes; 0 entities have no recorded history" in first[1]
    assert "Nothing to read back" in second[1]


async def test_an_invalid_time_span_is_refused(settings: dict[str, str], tmp_path: Path) -> None:
    """Status 2 and one line."""
    status, output = await run_command(tmp_path, settings, "backfill", "--since", "2200-01-01")

    assert status == 2
    assert "--since must lie before --until" in output


def states_as_sent(influx: FakeInflux) -> list[str]:
    """Return the states of the sensor in the order of arrival, duplicates included."""
    return [str(parse_line(line).fields["state_value"]) for line in influx.lines]


async def run_command(
    folder: Path, settings: dict[str, str], *arguments: str
) -> tuple[int | None, str]:
    """Run `python -m app …` on the DATA_DIR of `service`; return status and output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "app",
        *arguments,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DATA_DIR": str(folder / "data"), **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    return process.returncode, output.decode()
