"""Acknowledged points reach the database, whenever the process is killed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.influx import FakeInflux
from tests.fakes.still_house import StillHouse
from tests.service.ledger import Acknowledged, Verdict, compare
from tests.service.pace import changing
from tests.service.process import Service, service

CHANGES_PER_S = 2_000
SHARE_OF_STARTS = 0.25
"""The share of the random kills that hit a start."""

PLACES = (
    "before INSERT INTO journal_rows",
    "after INSERT INTO journal_rows",
    "after UPDATE journal SET tail",
    "before COMMIT",
    "after COMMIT",
    "before ack",
    "after ack",
    "before UPDATE cursors",
    "after UPDATE cursors",
    "before DELETE FROM journal_rows",
    "after DELETE FROM journal_rows",
)
"""In an append, between a sink's acceptance and the cursor on disk, and in a deletion."""

logger = logging.getLogger(__name__)


@pytest.fixture
def settings(influx_settings: dict[str, str]) -> dict[str, str]:
    """Return settings for Home Assistant and InfluxDB, with short waits and small requests."""
    return influx_settings | {
        "INFLUXDB_MAX_BATCH_POINTS": "500",
    }


@contextlib.asynccontextmanager
async def observed(
    folder: Path, settings: dict[str, str], ledger: Acknowledged, *options: str
) -> AsyncIterator[Service]:
    """Run the service under the driver, recording its acknowledgements in the ledger."""
    async with ledger.recording() as descriptor:
        command = ("-m", "tests.service.driver", "--ledger", str(descriptor), *options)
        async with service(
            folder, settings, command=(*command, "--", "app", "run"), inherits=[descriptor]
        ) as running:
            yield running


async def starting_s(folder: Path, settings: dict[str, str]) -> float:
    """Start the service once and return the seconds until it is subscribed."""
    begun = time.perf_counter()
    async with service(folder, settings) as running:
        await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
        took_s = time.perf_counter() - begun
        assert await running.stop() == 0
    return took_s


async def verdict(
    folder: Path, settings: dict[str, str], ledger: Acknowledged, influx: FakeInflux
) -> Verdict:
    """Let the service deliver its backlog, then compare the ledger with the database."""
    influx.delay_s = 0.0
    begun = time.perf_counter()
    async with service(folder, settings) as running:
        listening_s = time.perf_counter() - begun
        health = await running.until("/health", lambda health: health["sinks"][0]["held"] == 0)
        drained_s = time.perf_counter() - begun
        assert await running.stop() == 0
    found = compare(ledger.lines, influx.lines)
    logger.info(
        "Listening %.2f s after the start, %d points of the crash delivered after %.2f s; %s",
        listening_s,
        health["sinks"][0]["points_written"],
        drained_s,
        found,
    )
    return found


@pytest.mark.long
@pytest.mark.parametrize(
    ("kills", "longest_s"),
    [
        pytest.param(10, 1.0, marks=pytest.mark.timeout(300)),  # twelve starts
        pytest.param(100, 3.0, marks=[pytest.mark.slow, pytest.mark.timeout(3_600)]),
    ],
)
async def test_kills_at_random_moments_lose_nothing_that_was_acknowledged(
    settings: dict[str, str],
    house: StillHouse,
    influx: FakeInflux,
    tmp_path: Path,
    *,
    kills: int,
    longest_s: float,
) -> None:
    """While starting, streaming and draining a backlog; `SEED` repeats the moments.

    A quarter of the runs end while starting, the others at most `longest_s` after subscribing.
    """
    seed = int(os.environ.get("SEED", "0")) or random.randrange(1, 1_000_000)
    chance = random.Random(seed)
    ledger = Acknowledged()
    start_s = await starting_s(tmp_path, settings)

    async with changing(house, per_s=CHANGES_PER_S):
        for number in range(kills):
            # 500 points in 0.5 s: a backlog grows, and drains in every other run.
            influx.delay_s = 0.5 if number % 2 else 0.0
            if chance.random() < SHARE_OF_STARTS:
                with contextlib.suppress(TimeoutError):
                    async with (
                        asyncio.timeout(chance.uniform(0.2, 1.0) * start_s),
                        observed(tmp_path, settings, ledger),
                    ):
                        pass
                continue
            async with observed(tmp_path, settings, ledger) as running:
                await running.until("/health", lambda h: h["subscription"]["is_subscribed"])
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(chance.uniform(0.0, longest_s)):
                        ended = await running.process.wait()
                        raise AssertionError(f"the service ended by itself with status {ended}")
    found = await verdict(tmp_path, settings, ledger, influx)

    assert ledger.commits > kills / 2, "too few runs reached a commit"
    assert (found.lost, found.differing, found.in_order) == (0, 0, True), f"SEED={seed} {found}"


@pytest.mark.long
@pytest.mark.timeout(300)  # eleven runs
async def test_a_kill_inside_every_step_of_the_journal_loses_nothing(
    settings: dict[str, str], house: StillHouse, influx: FakeInflux, tmp_path: Path
) -> None:
    """Each run is killed at another place, and the next one must carry on."""
    ledger = Acknowledged()
    ends: list[int] = []

    async with changing(house, per_s=CHANGES_PER_S):
        for place in PLACES:
            async with observed(tmp_path, settings, ledger, "--at", place, "--forget") as running:
                await running.until(
                    "/health", lambda health: health["sinks"][0]["points_written"] > 0
                )
                running.process.send_signal(signal.SIGUSR1)
                async with asyncio.timeout(10):
                    ends.append(await running.process.wait())
    found = await verdict(tmp_path, settings, ledger, influx)

    assert [-signal.SIGKILL] * len(PLACES) == ends
    assert found.committed > 0
    assert (found.lost, found.differing, found.in_order) == (0, 0, True), found
