"""The whole service under load: a fake Home Assistant, the real process, a fake database.

`python -m benchmarks.end_to_end --rate 10000 --seconds 60 --uncoalesced --check`
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

import msgspec
import psutil
from websockets.asyncio.client import connect

from benchmarks.corpus import ENTITIES
from benchmarks.crowd import Crowded
from benchmarks.house import Played
from benchmarks.peers import HELPER_TOKEN, Peer, Where, Written, peer
from benchmarks.sink import Count, Latencies
from benchmarks.tables import percentile, print_table
from tests.service.process import Service, service

_SAMPLE_S = 0.1
_DRAIN_S = 30.0
_QUIET_RATE = 100
_SETTLE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the service is put through."""

    rate: float = 10_000
    """Events per second; 0 for as many as it takes."""
    seconds: float = 60
    coalesced: bool = True
    """50 events per frame, else one."""
    watchers: int = 1
    """Clients of `/ws?coalesce=1` whose latency is taken."""
    crowd: int = 0
    """More of them, in a process of their own, that offer permessage-deflate and only read."""
    answer_delay_s: float = 0.0
    """How long the database takes to answer."""
    embedded: bool = False
    """The embedded store is the only sink."""
    max_pending_points: int = 20_000
    """The setting INFLUXDB_MAX_PENDING_POINTS: beyond it the service drops."""
    patient: bool = False
    """Home Assistant waits when the service lags, instead of hanging up."""
    check: bool = False
    """Compare every point in the database with what happened."""

    @property
    def name(self) -> str:
        """Return a few words for a table."""
        rate = f"{self.rate:,g}/s" if self.rate else "full speed"
        frames = "coalesced" if self.coalesced else "one per frame"
        watchers = f", {self.watchers + self.crowd} watching" if self.watchers + self.crowd else ""
        slow = f", database in {self.answer_delay_s * 1000:.0f} ms" if self.answer_delay_s else ""
        store = ", embedded store only" if self.embedded else ""
        return f"{rate}, {frames}{watchers}{slow}{store}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of it."""

    name: str
    events: int
    events_per_s: float
    cpu_us_per_event: float
    """CPU time of all threads of the service, from the first event until all were written."""
    core_percent: float
    """The same as a share of one core while events came."""
    rss_max_mb: float
    disk_bytes_per_event: float
    """What the service caused to be written to disk: journal, log, and embedded store."""
    wakeups_per_s: float
    """How often its main thread went to sleep while events came."""
    disconnects: int
    commit_p99_ms: float
    """From receiving the oldest event of a commit until it was durable; a histogram's bound."""
    write_p99_ms: float
    """From sending a request until it was accepted; a histogram's bound."""
    database_p50_ms: float
    database_p99_ms: float
    watcher_p50_ms: float
    watcher_p99_ms: float
    watcher_dropped: int
    drained_s: float
    """From the last event until all were in the database."""
    written: int
    dropped: int
    """Events that the service counted as dropped: more came than it could make durable."""
    missing: int
    """Points that happened, were not dropped, and are not in the database."""
    repeated: int
    """Points that are there twice, or never happened."""
    requests: int
    house_cpu_us_per_event: float


async def measure(load: Load, folder: Path) -> Outcome:
    """Put the service through a load, with its DATA_DIR in `folder`.

    Raises:
        TimeoutError: the service did not connect, or did not write everything.
    """
    house_arguments = [] if load.coalesced else ["--uncoalesced"]
    sink_arguments = ["--answer-delay", str(load.answer_delay_s)]
    if load.check:
        sink_arguments.append("--keep")
    async with (
        peer("benchmarks.house", *house_arguments) as house,
        peer("benchmarks.sink", *sink_arguments) as sink,
    ):
        environment = {
            "HOME_ASSISTANT_URL": (await house.ask(Where, "where")).url,
            "HOME_ASSISTANT_TOKEN": HELPER_TOKEN,
            "INFLUXDB_MAX_PENDING_POINTS": str(load.max_pending_points),
        }
        if not load.embedded:
            environment["INFLUXDB_URL"] = (await sink.ask(Where, "where")).url
            environment["INFLUXDB_TOKEN"] = HELPER_TOKEN
        async with service(folder, environment) as running:
            await running.until("/health", is_connected)
            return await _measure(load, folder, running, house, sink)


async def _measure(load: Load, folder: Path, running: Service, house: Peer, sink: Peer) -> Outcome:
    process = psutil.Process(running.process.pid)
    memory = Memory(process)
    watched = _Watched()
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(beside(memory.sample()))
        if load.crowd:
            crowd = await stack.enter_async_context(peer("benchmarks.crowd"))
            await crowd.ask(Crowded, "gather", url=running.url, clients=load.crowd)
            await _admitted(running, load.crowd)
        for _ in range(load.watchers):
            ready = asyncio.Event()
            await stack.enter_async_context(beside(watched.watch(running.url, ready)))
            await ready.wait()
        if 0 < load.rate < _QUIET_RATE:
            await asyncio.sleep(_SETTLE_S)  # what a start writes and does is not the events'
        before = _Used.by(process)
        played = await house.ask(
            Played, "play", rate=load.rate, seconds=load.seconds, patient=load.patient
        )
        end = time.perf_counter()
        playing = _Used.by(process) - before
        dropped = await _dropped(running, played.events)
        count = await _drained(running if load.embedded else sink, played.events - dropped)
        drained_s = time.perf_counter() - end
        used = _Used.by(process) - before
    metrics = await running.text("/metrics")
    latencies = await sink.ask(Latencies, "latencies")
    arrived = count.lines + dropped
    missing, repeated = max(0, played.events - arrived), max(0, arrived - played.events)
    if load.check and not load.embedded:
        missing, repeated = await compare(house, sink, folder)
        missing -= dropped
    return Outcome(
        name=load.name,
        events=played.events,
        events_per_s=played.events / played.seconds,
        cpu_us_per_event=used.cpu_s / played.events * 1e6,
        core_percent=playing.cpu_s / played.seconds * 100,
        rss_max_mb=memory.max_bytes / 1e6,
        disk_bytes_per_event=used.disk_bytes / played.events,
        wakeups_per_s=playing.sleeps / played.seconds,
        commit_p99_ms=_percentile_ms(metrics, "ingest_commit_delay_seconds"),
        write_p99_ms=_percentile_ms(metrics, "ingest_sink_write_duration_seconds"),
        disconnects=max(played.cut_off, played.subscriptions - 1),
        database_p50_ms=latencies.p50_ms,
        database_p99_ms=latencies.p99_ms,
        watcher_p50_ms=percentile(watched.latencies_ms, 0.5),
        watcher_p99_ms=percentile(watched.latencies_ms, 0.99),
        watcher_dropped=watched.dropped,
        drained_s=drained_s,
        written=count.lines,
        dropped=dropped,
        missing=missing,
        repeated=repeated,
        requests=count.requests,
        house_cpu_us_per_event=played.cpu_s / played.events * 1e6,
    )


def cpu_s(process: psutil.Process) -> float:
    """Return the CPU time that a process has spent."""
    times = process.cpu_times()
    return times.user + times.system


def is_connected(health: dict[str, dict[str, object]]) -> bool:
    """Return whether events stream and the registries are known, according to /health."""
    return health["discovery"]["entities"] == ENTITIES and bool(
        health["subscription"]["is_subscribed"]
    )


async def _admitted(running: Service, clients: int) -> None:
    """Wait until the service counts so many clients of `/ws`."""
    async with asyncio.timeout(_DRAIN_S):
        while f"ingest_watchers {clients:.1f}" not in await running.text("/metrics"):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)


@dataclass(frozen=True, slots=True)
class _Used:
    """What a process has used since it began."""

    cpu_s: float
    disk_bytes: int
    sleeps: int

    @classmethod
    def by(cls, process: psutil.Process) -> Self:
        """Return what a process has used until now."""
        times = process.cpu_times()
        disk_bytes = process.io_counters().write_bytes
        return cls(times.user + times.system, disk_bytes, process.num_ctx_switches().voluntary)

    def __sub__(self, before: Self) -> Self:
        return type(self)(
            self.cpu_s - before.cpu_s,
            self.disk_bytes - before.disk_bytes,
            self.sleeps - before.sleeps,
        )


async def _dropped(running: Service, events: int) -> int:
    """Wait until all events were received, and return how many were dropped."""
    give_up_at = time.monotonic() + _DRAIN_S
    while True:
        counted = (await running.get("/health"))["accounting"]["events"]
        if counted["received"] >= events or time.monotonic() > give_up_at:
            return sum(counted["dropped"].values())
        await asyncio.sleep(0.05)


async def _drained(to: Peer | Service, events: int) -> Count:
    """Wait until all is in the database, or no more comes; what is missing is a result."""
    give_up_at = time.monotonic() + _DRAIN_S
    count = await _stored(to)
    while count.lines < events and time.monotonic() < give_up_at:
        await asyncio.sleep(0.02)
        count = await _stored(to)
    return count


async def _stored(to: Peer | Service) -> Count:
    if isinstance(to, Peer):
        return await to.ask(Count, "count")
    (embedded,) = (await to.get("/health"))["sinks"]
    return Count(lines=embedded["points_written"], requests=0)


def _percentile_ms(metrics: str, name: str, part: float = 0.99) -> float:
    """Return the bound below which this part of a histogram lies, in milliseconds."""
    pattern = rf'^{name}_bucket{{.*?le="(.+?)".*?}} (.+)$'
    buckets = [(float(le), float(n)) for le, n in re.findall(pattern, metrics, re.MULTILINE)]
    wanted = max((count for _, count in buckets), default=0.0) * part
    return next((bound * 1000 for bound, count in buckets if count >= wanted > 0), 0.0)


async def compare(house: Peer, sink: Peer, folder: Path) -> tuple[int, int]:
    """Return how many points are missing, and how many there are too many."""
    happened, arrived = folder / "happened.txt", folder / "arrived.txt"
    await house.ask(Written, "write_identities", path=str(happened))
    await sink.ask(Written, "write_identities", path=str(arrived))
    expected = Counter(happened.read_bytes().splitlines())
    found = Counter(arrived.read_bytes().splitlines())
    return (expected - found).total(), (found - expected).total()


@contextlib.asynccontextmanager
async def beside(work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Do something until the block ends; if it has failed by then, raise why."""
    task = asyncio.create_task(work, name="benchmark.beside")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


class Memory:
    """The most memory a process ever took, as far as one sees by looking now and then."""

    def __init__(self, process: psutil.Process) -> None:
        self.max_bytes = 0
        self._process = process

    async def sample(self) -> None:
        """Poll until cancelled."""
        while True:
            self.max_bytes = max(self.max_bytes, self._process.memory_info().rss)
            await asyncio.sleep(_SAMPLE_S)


class _WatchedEvent(msgspec.Struct, frozen=True, gc=False):
    time: datetime


class _WatchedMessage(msgspec.Struct, frozen=True, gc=False):
    type: str
    event: _WatchedEvent | None = None
    count: int = 0


_decoder = msgspec.json.Decoder(list[_WatchedMessage] | _WatchedMessage)


class _Watched:
    """What the clients of `/ws` saw."""

    def __init__(self) -> None:
        self.latencies_ms = array("d")
        self.dropped = 0

    async def watch(self, url: str, ready: asyncio.Event) -> None:
        """Watch until cancelled; set `ready` after the greeting."""
        address = url.replace("http", "ws", 1) + "/ws?coalesce=1"
        async with connect(address, compression=None, max_size=None) as socket:
            while True:
                frame = await socket.recv(decode=False)
                self._take(frame, time.time())
                ready.set()

    def _take(self, frame: bytes | str, now: float) -> None:
        messages = _decoder.decode(frame)
        for message in messages if isinstance(messages, list) else [messages]:
            if message.event is not None:
                self.latencies_ms.append((now - message.event.time.timestamp()) * 1000)
            elif message.type == "dropped":
                self.dropped += message.count


def outcome_rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Return a table: a column for each outcome, a row for each figure."""
    figures: Mapping[str, Callable[[Outcome], str]] = {
        "events": lambda outcome: f"{outcome.events:,}",
        "events/s": lambda outcome: f"{outcome.events_per_s:,.0f}",
        "CPU µs per event": lambda outcome: f"{outcome.cpu_us_per_event:.1f}",
        "share of one core": lambda outcome: f"{outcome.core_percent:.1f} %",
        "memory at most (RSS)": lambda outcome: f"{outcome.rss_max_mb:.0f} MB",
        "bytes to disk per event": lambda outcome: f"{outcome.disk_bytes_per_event:,.0f}",
        "wakeups per second": lambda outcome: f"{outcome.wakeups_per_s:.0f}",
        "disconnects": lambda outcome: str(outcome.disconnects),
        "dropped, counted": lambda outcome: f"{outcome.dropped:,}",
        "missing, repeated points": lambda outcome: f"{outcome.missing}, {outcome.repeated}",
        "receipt to commit p99, below": lambda outcome: f"{outcome.commit_p99_ms:.0f} ms",
        "request p99, below": lambda outcome: f"{outcome.write_p99_ms:.0f} ms",
        "event to database p50 / p99": lambda outcome: (
            f"{outcome.database_p50_ms:.0f} / {outcome.database_p99_ms:.0f} ms"
        ),
        "event to /ws p50 / p99": lambda outcome: (
            f"{outcome.watcher_p50_ms:.0f} / {outcome.watcher_p99_ms:.0f} ms"
        ),
        "all in the database after": lambda outcome: f"{outcome.drained_s:.1f} s",
        "lines per request": lambda outcome: f"{outcome.written / max(1, outcome.requests):,.0f}",
    }
    return [[name, *(figure(outcome) for outcome in outcomes)] for name, figure in figures.items()]


async def run(*loads: Load) -> list[Outcome]:
    """Measure one load after the other, each with a new service, and print each as it ends."""
    outcomes = []
    for load in loads:
        # /tmp may be in memory; the journal must meet a disk.
        with tempfile.TemporaryDirectory(prefix="benchmark-", dir="/var/tmp") as folder:
            outcome = await measure(load, Path(folder))
        print_table(["end to end", outcome.name], outcome_rows([outcome]))
        outcomes.append(outcome)
    return outcomes


def _load_of_arguments() -> Load:
    plain = Load()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=plain.rate, help="events/s; 0: full speed")
    parser.add_argument("--seconds", type=float, default=plain.seconds)
    parser.add_argument("--uncoalesced", action="store_true", help="one event per frame")
    parser.add_argument("--watchers", type=int, default=plain.watchers, help="clients of /ws")
    parser.add_argument("--crowd", type=int, default=0, help="more clients, that only read")
    parser.add_argument("--answer-delay", type=float, default=0.0, help="of the database, s")
    parser.add_argument("--embedded", action="store_true", help="the embedded store only")
    parser.add_argument(
        "--max-pending", type=int, default=plain.max_pending_points, help="points, at most"
    )
    parser.add_argument("--check", action="store_true", help="prove that each point came once")
    chosen = parser.parse_args()
    return Load(
        rate=chosen.rate,
        seconds=chosen.seconds,
        coalesced=not chosen.uncoalesced,
        watchers=chosen.watchers,
        crowd=chosen.crowd,
        answer_delay_s=chosen.answer_delay,
        max_pending_points=chosen.max_pending,
        embedded=chosen.embedded,
        check=chosen.check,
    )


if __name__ == "__main__":
    asyncio.run(run(_load_of_arguments()))
