"""Receiving: from the socket to decoded events, in CPU time of this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from app.homeassistant.connection import HomeAssistantSource
from app.homeassistant.endpoint import Endpoint
from app.homeassistant.messages import Event
from app.homeassistant.reconnect import ReconnectPolicy
from app.runtime.metrics import Telemetry
from app.runtime.retry import Backoff, Breaker
from benchmarks.peers import HELPER_TOKEN, Peer, Where, peer

_PATIENCE_S = 60.0


class Counter:
    """A listener that only counts."""

    def __init__(self) -> None:
        self.events = 0
        self.streaming = asyncio.Event()
        self._wanted = 0
        self._reached = asyncio.Event()

    def changed(self, events: Sequence[Event]) -> None:
        """Count them."""
        self.events += len(events)
        if self.events >= self._wanted:
            self._reached.set()

    def registry_updated(self, event: Event) -> None:
        """Count nothing."""

    def connected(self, *, was_absent: bool) -> None:  # noqa: ARG002 - the protocol of a listener
        """Note that the events may come."""
        self.streaming.set()

    def lost(self) -> None:
        """Do nothing: it is over."""

    async def until(self, events: int) -> None:
        """Wait until so many more events have come."""
        self._wanted = self.events + events
        self._reached.clear()
        async with asyncio.timeout(_PATIENCE_S):
            await self._reached.wait()


async def measure_receiving(*, events: int, per_frame: int, rounds: int) -> tuple[float, float]:
    """Return CPU and wall seconds of the cheapest round."""
    arguments = ("--events", str(events), "--per-frame", str(per_frame))
    async with peer("benchmarks.flood", *arguments) as flood:
        source = HomeAssistantSource(
            Endpoint((await flood.ask(Where, "where")).url, token=HELPER_TOKEN, ssl_verify=True),
            reconnect=ReconnectPolicy(
                backoff=Backoff(max_s=1), breaker=Breaker("Home Assistant", threshold=5, reset_s=1)
            ),
            telemetry=Telemetry(CollectorRegistry()),
        )
        counter = Counter()
        receiving = asyncio.create_task(source.run(counter), name="benchmark.source")
        try:
            await counter.streaming.wait()
            times = [await _round(flood, counter, events) for _ in range(rounds)]
        finally:
            receiving.cancel()
            await asyncio.wait([receiving])
    return min(times)


async def _round(flood: Peer, counter: Counter, events: int) -> tuple[float, float]:
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    waiting = asyncio.create_task(counter.until(events), name="benchmark.count")
    await asyncio.sleep(0)
    await flood.ask(type(None), "pour")
    await waiting
    return time.process_time() - cpu_s, time.perf_counter() - wall_s
