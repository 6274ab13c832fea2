"""The database away under load, and how it catches up: what the journal takes, how fast it drains.

`python -m benchmarks.outage --seconds 600` is ten minutes away at 5,000 events/s, then the
backlog while 5,000 new events/s come, then a backlog with nothing new. With `--real` a real
InfluxDB 1, as `make real-servers` installs it, takes the last one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from benchmarks.end_to_end import Memory, beside, compare, cpu_s, is_connected
from benchmarks.house import Played
from benchmarks.peers import HELPER_TOKEN, Peer, Where, peer
from benchmarks.sink import Count
from benchmarks.tables import machine, print_table, save
from tests.real.servers import influxdb
from tests.service.process import Service, service

_BACKLOG_PER_S = 20_000
TEN_MINUTES_EVENTS = 10 * 60 * 5_000
JOURNAL_MAX_MB = 1_024
"""The default of the setting."""
MOST_CPU_US_PER_POINT = 20.0
"""What a drained point may cost, so that one core drains 50,000 a second."""

_SAMPLE_S = 0.25
_DRAIN_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """How long the database is away, and what happens meanwhile and afterwards."""

    rate: float = 5_000
    """Events per second, while it is away and while it catches up."""
    seconds: float = 600
    backlog_events: int = 500_000
    """The size of the second backlog, which drains with nothing new; 0 for none."""
    check: bool = True
    """Compare every point in the database with what happened."""
    influxdb_url: str | None = None
    """A real database for the second backlog; None for the helper."""
    max_pending_points: int = 100_000
    """INFLUXDB_MAX_PENDING_POINTS: on a busy machine events may be late, but not lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What came of it."""

    events: int
    away_s: float
    journal_mb: float
    """The journal with its WAL at the end of the outage."""
    bytes_per_event: float
    ten_minutes_mb: float
    """What ten minutes at 5,000 events/s take of JOURNAL_MAX_MB."""
    rss_max_mb: float
    caught_up_s: float
    """From the first accepted write until nothing was held, while new events came."""
    lag_first_s: float
    lag_rise_max_s: float
    """The most that the lag ever rose above its lowest value before; 0 when it only fell."""
    drained_points_per_s: float
    """The second backlog, with nothing new."""
    drain_cpu_us_per_point: float
    """CPU time of the service per point of it."""
    written: int
    dropped: int
    missing: int
    repeated: int


async def measure(outage: Outage, folder: Path) -> Figures:
    """Put the service through an outage, with its DATA_DIR in `folder`."""
    sink_arguments = ["--keep"] if outage.check else []
    async with (
        peer("benchmarks.house") as house,
        peer("benchmarks.sink", *sink_arguments) as sink,
    ):
        environment = {
            "HOME_ASSISTANT_URL": (await house.ask(Where, "where")).url,
            "HOME_ASSISTANT_TOKEN": HELPER_TOKEN,
            "INFLUXDB_URL": (await sink.ask(Where, "be_away", away=True)).url,
            "INFLUXDB_TOKEN": HELPER_TOKEN,
            "INFLUXDB_MAX_PENDING_POINTS": str(outage.max_pending_points),
            "CIRCUIT_BREAKER_RESET_SECONDS": "1",
        }
        async with service(folder, environment) as running:
            await running.until("/health", is_connected)
            figures = await _first_backlog(outage, running, house, sink)
            if outage.influxdb_url is None and outage.backlog_events:
                figures = await _second_backlog(outage, figures, running, house, sink)
            await running.stop()  # so that the cursors are saved
        if outage.influxdb_url is not None:
            figures = await _into_a_real_one(outage, figures, folder, environment, house)
        if outage.check and outage.influxdb_url is None:
            missing, repeated = await compare(house, sink, folder)
            figures = replace(figures, missing=missing, repeated=repeated)
    return figures


async def _first_backlog(outage: Outage, running: Service, house: Peer, sink: Peer) -> Figures:
    memory = Memory(psutil.Process(running.process.pid))
    async with beside(memory.sample()):
        away = await _play(house, rate=outage.rate, seconds=outage.seconds)
        await _settled(running, away.events)
        health = await running.get("/health")
        await sink.ask(Where, "be_away", away=False)
        lags, caught_up_s, events = await _caught_up(outage, running, house)
    journal_bytes, held = health["journal"]["bytes"], health["sinks"][0]["held"]
    end = await running.get("/health")
    written = (await sink.ask(Count, "count")).lines
    return Figures(
        events=away.events + events,
        away_s=away.seconds,
        journal_mb=journal_bytes / 1e6,
        bytes_per_event=journal_bytes / held,
        ten_minutes_mb=journal_bytes / held * TEN_MINUTES_EVENTS / 1e6,
        rss_max_mb=memory.max_bytes / 1e6,
        caught_up_s=caught_up_s,
        lag_first_s=lags[0],
        lag_rise_max_s=_rise(lags),
        drained_points_per_s=0.0,
        drain_cpu_us_per_point=0.0,
        written=written,
        dropped=sum(end["accounting"]["events"]["dropped"].values()),
        missing=max(0, away.events + events - written),
        repeated=max(0, written - away.events - events),
    )


async def _caught_up(
    outage: Outage, running: Service, house: Peer
) -> tuple[Sequence[float], float, int]:
    """Let new events come until nothing old is held; return the lags, how long, how many."""
    lags: list[float] = []
    events, began = 0, 0.0
    give_up_at = time.monotonic() + _DRAIN_S
    while True:
        playing = asyncio.create_task(_play(house, rate=outage.rate, seconds=1.0))
        while not playing.done():
            health = await running.get("/health")
            (sink,) = health["sinks"]
            if sink["points_written"]:
                began = began or time.perf_counter()
                lags.append(sink["lag_seconds"])
            await asyncio.sleep(_SAMPLE_S)
        events += (await playing).events
        # One batch's worth of waiting is no lag: BATCH_TIMEOUT is 5 s.
        if (lags and lags[-1] < 1.0) or time.monotonic() > give_up_at:
            break
    took_s = time.perf_counter() - began
    await running.until("/health", lambda health: health["sinks"][0]["held"] == 0, timeout_s=60)
    return lags, took_s, events


async def _second_backlog(
    outage: Outage, figures: Figures, running: Service, house: Peer, sink: Peer
) -> Figures:
    await sink.ask(Where, "be_away", away=True)
    before = (await running.get("/health"))["sinks"][0]["points_written"]
    events = await _backlog(outage, running, house, figures.events)
    await sink.ask(Where, "be_away", away=False)
    per_s, cpu_us = await _drained(running, written=before, events=events)
    written = (await sink.ask(Count, "count")).lines
    return replace(
        figures,
        events=figures.events + events,
        written=written,
        drained_points_per_s=per_s,
        drain_cpu_us_per_point=cpu_us,
    )


async def _into_a_real_one(
    outage: Outage, figures: Figures, folder: Path, environment: Mapping[str, str], house: Peer
) -> Figures:
    """Gather a backlog, and let the next life of the service bring it to a real database."""
    nowhere = {**environment, "INFLUXDB_URL": "http://127.0.0.1:9"}
    async with service(folder, nowhere) as running:
        await running.until("/health", is_connected)
        events = await _backlog(outage, running, house, 0)
        await running.stop()
    assert outage.influxdb_url is not None
    real = {**environment, "INFLUXDB_URL": outage.influxdb_url, "INFLUXDB_API": "v1"}
    del real["INFLUXDB_TOKEN"]
    async with service(folder, real) as running:
        per_s, cpu_us = await _drained(running, written=0, events=events)
    return replace(figures, drained_points_per_s=per_s, drain_cpu_us_per_point=cpu_us)


async def _backlog(outage: Outage, running: Service, house: Peer, before: int) -> int:
    """Gather a backlog as fast as all of it can be durable, and return how many there are."""
    events = 0
    while events < outage.backlog_events:
        events += (await _play(house, rate=_BACKLOG_PER_S, seconds=1.0)).events
    await _settled(running, before + events)
    return events


async def _settled(running: Service, events: int) -> None:
    """Wait until every event is durable."""
    await running.until(
        "/health",
        lambda health: (
            health["accounting"]["events"]["received"] == events
            and health["accounting"]["events"]["pending"] == 0
        ),
        timeout_s=60,
    )


async def _drained(running: Service, *, written: int, events: int) -> tuple[float, float]:
    """Return points per second and CPU µs per point, from the first accepted request on."""
    process = psutil.Process(running.process.pid)
    first = await running.until(
        "/health", lambda health: health["sinks"][0]["points_written"] > written, timeout_s=90
    )
    start, start_cpu_s = time.perf_counter(), cpu_s(process)
    left = first["sinks"][0]["held"]
    end = await running.until(
        "/health", lambda health: health["sinks"][0]["held"] == 0, timeout_s=_DRAIN_S
    )
    took_s = time.perf_counter() - start
    came = end["sinks"][0]["points_written"] - written
    assert came == events, f"{came} of {events} points were written, the others refused"
    return left / took_s, (cpu_s(process) - start_cpu_s) / left * 1e6


async def _play(house: Peer, *, rate: float, seconds: float) -> Played:
    return await house.ask(Played, "play", rate=rate, seconds=seconds, patient=True)


def _rise(lags: Sequence[float]) -> float:
    lowest, rise = lags[0], 0.0
    for lag in lags:
        lowest = min(lowest, lag)
        rise = max(rise, lag - lowest)
    return rise


def figure_rows(figures: Figures) -> list[list[str]]:
    """Return a table, a row for each figure."""
    cells: Mapping[str, Callable[[Figures], str]] = {
        "database away": lambda f: f"{f.away_s:.0f} s",
        "events": lambda f: f"{f.events:,}",
        "journal at the end of it": lambda f: f"{f.journal_mb:.0f} MB",
        "bytes per event": lambda f: f"{f.bytes_per_event:.0f}",
        f"10 minutes at 5,000/s, of {JOURNAL_MAX_MB:,} MB": lambda f: f"{f.ten_minutes_mb:.0f} MB",
        "memory at most (RSS)": lambda f: f"{f.rss_max_mb:.0f} MB",
        "lag at the first accepted write": lambda f: f"{f.lag_first_s:.0f} s",
        "caught up, with new events, after": lambda f: f"{f.caught_up_s:.1f} s",
        "lag rose meanwhile by, at most": lambda f: f"{f.lag_rise_max_s:.2f} s",
        "drained, with nothing new": lambda f: f"{f.drained_points_per_s:,.0f} points/s",
        "CPU of the service meanwhile": lambda f: f"{f.drain_cpu_us_per_point:.1f} µs per point",
        "dropped, missing, repeated": lambda f: f"{f.dropped}, {f.missing}, {f.repeated}",
    }
    return [[name, cell(figures)] for name, cell in cells.items()]


def lag_fell(figures: Figures) -> bool:
    """Say whether the lag fell steadily, with patience for a machine that does other things."""
    return figures.lag_rise_max_s < max(2.0, figures.lag_first_s / 2)


def misses(figures: Figures) -> list[str]:
    """Return what is worse than it may be on any machine."""
    found = []
    if figures.drain_cpu_us_per_point > MOST_CPU_US_PER_POINT:
        found.append(f"a drained point costs {figures.drain_cpu_us_per_point:.1f} µs of CPU time")
    if figures.ten_minutes_mb > JOURNAL_MAX_MB:
        found.append(f"10 minutes at 5,000 events/s take {figures.ten_minutes_mb:.0f} MB")
    if not lag_fell(figures):
        found.append(f"the lag rose by {figures.lag_rise_max_s:.1f} s while the database caught up")
    if figures.dropped or figures.missing or figures.repeated:
        found.append(
            f"the outage: {figures.dropped} dropped, {figures.missing} missing,"
            f" {figures.repeated} repeated"
        )
    return found


async def run(outage: Outage) -> Figures:
    """Measure, print and return the figures."""
    # /tmp may be in memory; the journal must meet a disk.
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir="/var/tmp") as folder:
        figures = await measure(outage, Path(folder))
    print_table(["outage", "measured"], figure_rows(figures))
    return figures


def main() -> None:
    """Measure what the command line requests."""
    plain = Outage()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=plain.rate, help="events/s")
    parser.add_argument("--seconds", type=float, default=plain.seconds, help="away so long")
    parser.add_argument("--backlog", type=int, default=plain.backlog_events, help="of the second")
    parser.add_argument("--real", action="store_true", help="the second into a real InfluxDB 1")
    parser.add_argument("--publish", action="store_true", help="as results/outage.json")
    chosen = parser.parse_args()
    print(machine())
    outage = Outage(rate=chosen.rate, seconds=chosen.seconds, backlog_events=chosen.backlog)
    if not chosen.real:
        save("outage", asyncio.run(run(outage)), published=chosen.publish)
        return
    with (
        tempfile.TemporaryDirectory(prefix="influxdb-", dir="/var/tmp") as folder,
        influxdb(Path(folder)) as server,
    ):
        figures = asyncio.run(run(replace(outage, influxdb_url=server.url)))
    save("outage-influxdb-1", figures, published=chosen.publish)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
