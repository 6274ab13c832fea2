"""Delivery from a journal to one database, with a clock whose waits take no time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.journal.journal import SqliteJournal
from app.model import Lines
from app.runtime.metrics import Telemetry
from app.runtime.retry import Backoff, Breaker
from app.sinks.dead_letters import DeadLetters, RefusedPoint
from app.sinks.delivery import Delivery
from app.sinks.influxdb.sink import Api, InfluxSink
from tests.fakes.points import new_telemetry

NAME = "influxdb"


def line(number: int) -> bytes:
    """Return a line whose value and time are its number."""
    return b"m,entity_id=sensor.a v=%d %d" % (number, number)


def lines(first: int, last: int) -> Lines:
    """Return a line for every number."""
    return Lines(b"".join(line(n) + b"\n" for n in range(first, last + 1)), last - first + 1)


def number_of(text: bytes) -> int:
    """Return the number of a line."""
    return int(text.rsplit(b" ", 1)[1])


class Clock:
    """Wall clock that a sleep advances at once."""

    def __init__(self) -> None:
        self.slept_s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return time.time() + self.slept_s

    async def sleep(self, seconds: float) -> None:
        """Advance the clock without waiting."""
        self.slept_s += seconds
        await asyncio.sleep(0)


class RealTime(Clock):
    """Real wall clock, for databases that need real time."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        self.slept_s += seconds
        await asyncio.sleep(seconds)

    def __call__(self) -> float:
        """Return the time."""
        return time.time()


class Address(Protocol):
    """URL and credentials of a database."""

    url: str
    token: str
    org: str
    username: str
    password: str


@dataclass
class House:
    """A journal on disk, dead letters on disk, and one database."""

    journal: SqliteJournal
    dead_letters: DeadLetters
    delivery: Delivery
    telemetry: Telemetry
    clock: Clock

    async def letters(self) -> list[RefusedPoint]:
        """Return all dead letters, oldest first."""
        return (await self.dead_letters.newest(limit=10_000))[::-1]

    async def delivered(self, *, within_s: float = 20.0) -> None:
        """Wait until nothing is buffered."""
        async with asyncio.timeout(within_s):
            while self.journal.pending(NAME).points:
                await asyncio.sleep(0.001)

    @property
    def books(self) -> tuple[int, int, int, int]:
        """Points written, dead-lettered, dropped and pending."""
        counts = self.telemetry.sink(NAME)
        held = self.journal.pending(NAME).points
        return counts.written, counts.dead_lettered, counts.dropped, held


@asynccontextmanager
async def house(
    folder: Path,
    server: Address,
    *,
    max_batch_points: int = 1000,
    api: Api = "auto",
    flush_s: float | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[House]:
    """Run delivery with its files in a folder; running it again on that folder is a restart."""
    telemetry, clock = new_telemetry(), clock or Clock()
    async with AsyncExitStack() as stack:
        dead_letters = await stack.enter_async_context(DeadLetters(folder / "dead_letters.db"))
        journal = await stack.enter_async_context(
            SqliteJournal(
                folder / "journal.db", sinks=[NAME], max_bytes=50_000_000, telemetry=telemetry
            )
        )
        sink = await stack.enter_async_context(
            InfluxSink(
                server.url,
                token=server.token,
                org=server.org,
                bucket="home_assistant_events",
                timeout_s=5.0,
                api=api,
                username=server.username,
                password=server.password,
                flush_s=flush_s,
            )
        )
        delivery = Delivery(
            sink=sink,
            journal=journal,
            dead_letters=dead_letters,
            breaker=Breaker(NAME, threshold=5, reset_s=30.0, clock=clock),
            backoff=Backoff(max_s=60.0, chance=lambda: 0.5),
            telemetry=telemetry,
            batch_points=1000,
            batch_timeout_s=0.0,
            max_batch_points=max_batch_points,
            clock=clock,
            wall_clock=clock,
            sleep=clock.sleep,
            process=sink.process,
            retention_s=sink.retention_s,
        )
        running = asyncio.create_task(delivery.run(), name="deliver")
        try:
            yield House(journal, dead_letters, delivery, telemetry, clock)
        finally:
            running.cancel()
            await asyncio.wait({running})
