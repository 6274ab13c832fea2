"""`python -m benchmarks.soak --minutes 20`: everything goes wrong, at random, for long.

A home changes all the time, in every minute something fails: Home Assistant hangs up, falls
silent, restarts; the database refuses, breaks, hangs, is away; in the last third the service is
killed and stopped, too. At the end the home's own record is held against the database. While it
runs the books are checked every second, and memory and open files are watched for a slope.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
import signal
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from app.model import moment_of
from benchmarks.tables import machine, print_table, save
from simulator.fake_home_assistant import (
    FakeHomeAssistant,
    JsonObject,
    RegistryKind,
    state_changed,
    state_row,
)
from tests.fakes.influx import HANG, HTML_500, RESET, UNAUTHORIZED, FakeInflux, Reply, error
from tests.service.process import TOKEN, Service, service

_ENTITIES = 200
_TURN_S = 0.02
_PATIENCE_S = 240.0
_IDENTITY = re.compile(rb",entity_id=sensor\.soak_(\d+),.*,?state_value=\"(\d+)\".* (\d+)$")
_US = 1_000


class House:
    """Sensors that count, each change one more; it stores all counts compactly."""

    def __init__(self) -> None:
        self.times_us: list[int] = []
        """When each change happened; the change of that number is of sensor number % 200."""

    def change(self) -> tuple[JsonObject | None, JsonObject]:
        """Let the next sensor change; return its row before and now."""
        number = len(self.times_us)
        now_us = time.time_ns() // _US
        self.times_us.append(max(now_us, self.times_us[-1] + 1) if self.times_us else now_us)
        before = self._row(number - _ENTITIES) if number >= _ENTITIES else None
        return before, self._row(number)

    def states(self) -> Sequence[JsonObject]:
        """Return the newest row of each sensor."""
        total = len(self.times_us)
        return [self._row(number) for number in range(max(0, total - _ENTITIES), total)]

    def registry(self, kind: RegistryKind) -> Sequence[JsonObject]:  # noqa: ARG002 - a house's
        """Return nothing: these sensors are in no registry."""
        return []

    def config(self) -> JsonObject:
        """Return the name of the home."""
        return {"location_name": "Soak"}

    def config_entries(self) -> Sequence[JsonObject]:
        """Return none."""
        return []

    def recorder(self) -> JsonObject:
        """Return an idle recorder."""
        return {}

    def history(
        self, start: datetime, end: datetime, entity_ids: Sequence[str]
    ) -> Mapping[str, Sequence[JsonObject]]:
        """Return what was recorded between start and end."""
        first = bisect_right(self.times_us, _microseconds(start))
        last = bisect_left(self.times_us, _microseconds(end))
        rows: dict[str, list[JsonObject]] = {entity_id: [] for entity_id in entity_ids}
        for number in range(first, last):
            if (entity_id := _entity_id(number)) in rows:
                rows[entity_id].append(self._row(number))
        return rows

    def _row(self, number: int) -> JsonObject:
        return state_row(
            _entity_id(number),
            str(number),
            {"unit_of_measurement": "W", "device_class": "power", "friendly_name": "Soak"},
            at=moment_of(self.times_us[number] * _US),
            context={"id": f"SOAK{number:022d}", "parent_id": None, "user_id": None},
        )


@dataclass(slots=True, kw_only=True)
class Sample:
    """What the process held at one moment."""

    life: int
    seconds: float
    rss_mb: float
    files: int


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of it all."""

    minutes: float
    changes: int
    faults: dict[str, int]
    lives: int
    missing: int
    extra: int
    repeated_differently: int
    """Points that came with the same identity as another, and another state."""
    unbalanced: int
    """Looks at /health at which the books did not balance."""
    looks: int
    gaps: dict[str, int]
    rss_max_mb: float
    rss_slope_mb_per_hour: float
    files_slope_per_hour: float
    events_dropped: dict[str, int] = field(default_factory=dict)


class Soak:
    """The stage: the home, the database, and the service between them."""

    def __init__(self, folder: Path, influx: FakeInflux, *, rate: float, seed: int) -> None:
        self.house = House()
        self.home_assistant = FakeHomeAssistant(self.house, token=TOKEN)
        self.samples: list[Sample] = []
        self.unbalanced: list[Any] = []
        self.faults: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.lives = 0
        self._influx = influx
        self._folder = folder
        self._rate = rate
        self._chance = random.Random(seed)
        self._life = contextlib.AsyncExitStack()
        self.running: Service | None = None

    async def start(self) -> None:
        """Start the service."""
        settings = {
            "HOME_ASSISTANT_URL": self.home_assistant.url,
            "HOME_ASSISTANT_TOKEN": TOKEN,
            "INFLUXDB_URL": self._influx.url,
            "INFLUXDB_TOKEN": self._influx.token,
            "INFLUXDB_TIMEOUT": "3",
            "EMBEDDED_STORE": "on",
            "WEBSOCKET_MAX_RETRY_DELAY": "5",
            "CIRCUIT_BREAKER_RESET_SECONDS": "5",
        }
        self.lives += 1
        self.running = await self._life.enter_async_context(service(self._folder, settings))

    async def end(self, number: signal.Signals) -> None:
        """Kill or stop the service."""
        running, self.running = self.running, None
        if running is not None:
            await running.stop(number)
        await self._life.aclose()

    async def change(self) -> None:
        """Change states at the configured rate until cancelled."""
        begun, done = time.perf_counter(), 0
        while True:
            due = int((time.perf_counter() - begun) * self._rate)
            for _ in range(min(due - done, int(self._rate))):
                before, now = self.house.change()
                at = moment_of(self.house.times_us[-1] * _US)
                self.home_assistant.fire(state_changed(before, now, at=at))
                done += 1
            await asyncio.sleep(_TURN_S)

    async def watch(self) -> None:
        """Check the totals, memory and open files once a second until cancelled."""
        begun = time.monotonic()
        while True:
            running = self.running
            if running is not None:
                with contextlib.suppress(httpx.HTTPError, psutil.NoSuchProcess):
                    self._look(await running.get("/health"))
                    process = psutil.Process(running.process.pid)
                    self.samples.append(
                        Sample(
                            life=self.lives,
                            seconds=time.monotonic() - begun,
                            rss_mb=process.memory_info().rss / 1e6,
                            files=process.num_fds(),
                        )
                    )
            await asyncio.sleep(1)

    async def fail(self, *, until: float, may_end: bool) -> None:
        """Let one thing after the other go wrong."""
        external: list[Callable[[], Awaitable[None]]] = [
            self.home_assistant_hangs_up,
            self.home_assistant_resets,
            self.home_assistant_falls_silent,
            self.home_assistant_restarts,
            self.home_assistant_is_away,
            self.database_answers_badly,
            self.database_is_away,
            self.database_refuses_points,
        ]
        own = [self.service_is_killed, self.service_is_stopped] if may_end else []
        while time.monotonic() < until:
            await asyncio.sleep(self._chance.uniform(1, 10))
            fault = self._chance.choice([*external, *own])
            self.faults[fault.__name__.replace("_", " ")] += 1
            await fault()

    async def home_assistant_hangs_up(self) -> None:
        """Close as for a slow client."""
        await self.home_assistant.drop()

    async def home_assistant_resets(self) -> None:
        """Reset all connections."""
        self.home_assistant.abort()

    async def home_assistant_falls_silent(self) -> None:
        """Say nothing, longer than a ping may take."""
        self.home_assistant.fall_silent()
        await asyncio.sleep(self._chance.uniform(5, 25))
        self.home_assistant.speak_again()

    async def home_assistant_restarts(self) -> None:
        """Be gone for some seconds, at the same port."""
        await self.home_assistant.__aexit__()
        await asyncio.sleep(self._chance.uniform(1, 8))
        await self.home_assistant.__aenter__()

    async def home_assistant_is_away(self) -> None:
        """Answer with 503."""
        self.home_assistant.refusing = True
        self.home_assistant.abort()
        await asyncio.sleep(self._chance.uniform(1, 20))
        self.home_assistant.refusing = False

    async def database_answers_badly(self) -> None:
        """Answer the next writes with anything but what should be."""
        kinds: list[Reply] = [
            UNAUTHORIZED,
            error(403, "no write permission", code="forbidden"),
            error(413, "too large", code="request too large"),
            error(429, "slow down", code="too many requests", Retry_After="2"),
            error(503, "unavailable", code="unavailable"),
            HTML_500,
            RESET,
            HANG,
        ]
        kind = self._chance.choice(kinds)
        self._influx.script.extend([kind] * self._chance.randint(1, 6))
        await asyncio.sleep(self._chance.uniform(2, 15))
        self._influx.script.clear()

    async def database_is_away(self) -> None:
        """Answer nothing but 503 for a while."""
        self._influx.delay_s = 4.0
        await asyncio.sleep(self._chance.uniform(5, 40))
        self._influx.delay_s = 0.0

    async def database_refuses_points(self) -> None:
        """Refuse a point in a thousand, until a person retries the dead letters."""
        unlucky = self._chance.randint(0, 999)
        ending = b"%03d" % unlucky
        self._influx.refuses = lambda line: (
            "unlucky" if (found := _IDENTITY.search(line)) and found[2].endswith(ending) else None
        )
        await asyncio.sleep(self._chance.uniform(5, 20))
        self._influx.refuses = lambda _: None

    async def service_is_killed(self) -> None:
        """End it as a power cut would, and start it again."""
        await self.end(signal.SIGKILL)
        await asyncio.sleep(self._chance.uniform(0, 5))
        await self.start()

    async def service_is_stopped(self) -> None:
        """End it as an operator would, and start it again."""
        await self.end(signal.SIGTERM)
        await asyncio.sleep(self._chance.uniform(0, 5))
        await self.start()

    def _look(self, health: Any) -> None:
        events = health["accounting"]["events"]
        known = sum(events[name] for name in ("journaled", "filtered", "malformed", "pending"))
        if events["received"] != known + sum(events["dropped"].values()):
            self.unbalanced.append(health)
        for cause, count in events["dropped"].items():
            self.dropped[cause] = max(self.dropped[cause], count)


async def soak(*, minutes: float, rate: float, seed: int) -> Outcome:
    """Run it and return what came of it."""
    with tempfile.TemporaryDirectory(prefix="soak-", dir="/var/tmp") as folder:
        influx = FakeInflux()
        async with influx.serving():
            stage = Soak(Path(folder), influx, rate=rate, seed=seed)
            async with stage.home_assistant:
                return await _play(stage, influx, minutes=minutes)


async def _play(stage: Soak, influx: FakeInflux, *, minutes: float) -> Outcome:
    await stage.start()
    assert stage.running is not None
    await stage.running.until("/health", _is_connected)
    first = len(stage.house.times_us)
    watching = asyncio.create_task(stage.watch(), name="soak.watch")
    changing = asyncio.create_task(stage.change(), name="soak.change")
    try:
        begun = time.monotonic()
        await stage.fail(until=begun + minutes * 40, may_end=False)
        await stage.fail(until=begun + minutes * 60, may_end=True)
        changing.cancel()
        await asyncio.wait([changing])
        assert stage.running is not None
        async with httpx.AsyncClient(base_url=stage.running.url, timeout=60) as client:
            await client.post("/api/v1/dead-letters/retry")
        health = await stage.running.until("/health", _is_settled, timeout_s=_PATIENCE_S)
    finally:
        watching.cancel()
        changing.cancel()
        await asyncio.wait([watching, changing])
        await stage.end(signal.SIGTERM)
    return _judge(stage, influx, health, first=first, minutes=minutes)


def _judge(stage: Soak, influx: FakeInflux, health: Any, *, first: int, minutes: float) -> Outcome:
    found = [match for line in influx.lines if (match := _IDENTITY.search(line))]
    arrived = {(int(match[2]), int(match[3]) // _US) for match in found}
    happened = set(enumerate(stage.house.times_us))
    wanted = {(number, at_us) for number, at_us in happened if number >= first}
    identities = Counter((int(number) % _ENTITIES, at_us) for number, at_us in arrived)
    steady = [sample for sample in stage.samples if sample.life == 1]
    return Outcome(
        minutes=minutes,
        changes=len(happened),
        faults=dict(stage.faults),
        lives=stage.lives,
        missing=len(wanted - arrived),
        extra=len(arrived - happened),
        repeated_differently=sum(count - 1 for count in identities.values()),
        unbalanced=len(stage.unbalanced),
        looks=len(stage.samples),
        gaps=health["gaps"],
        rss_max_mb=max(sample.rss_mb for sample in stage.samples),
        rss_slope_mb_per_hour=_slope([(s.seconds, s.rss_mb) for s in steady]) * 3600,
        files_slope_per_hour=_slope([(s.seconds, s.files) for s in steady]) * 3600,
        events_dropped=dict(stage.dropped),
    )


def _slope(points: Iterable[tuple[float, float]]) -> float:
    """Return the slope of the line that fits best, per second, in the second half.

    In the first half caches fill: of states, of attributes, of pages of the embedded store.
    """
    found = list(points)
    warm = found[len(found) // 2 :]
    if len(warm) < 2:
        return 0.0
    middle_x = sum(x for x, _ in warm) / len(warm)
    middle_y = sum(y for _, y in warm) / len(warm)
    spread = sum((x - middle_x) ** 2 for x, _ in warm)
    return sum((x - middle_x) * (y - middle_y) for x, y in warm) / spread


def _is_connected(health: Any) -> bool:
    return bool(health["subscription"]["is_subscribed"])


def _is_settled(health: Any) -> bool:
    held = sum(sink["held"] for sink in health["sinks"])
    return not held and not health["gaps"]["open"] and _is_connected(health)


def _entity_id(number: int) -> str:
    return f"sensor.soak_{number % _ENTITIES}"


def _microseconds(moment: datetime) -> int:
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def print_outcome(outcome: Outcome) -> None:
    """Print it as a table."""
    rows = [
        ["minutes", f"{outcome.minutes:g}"],
        ["changes that happened", f"{outcome.changes:,}"],
        ["faults", str(sum(outcome.faults.values()))],
        ["lives of the service", str(outcome.lives)],
        ["changes missing in the database", str(outcome.missing)],
        ["points that never happened", str(outcome.extra)],
        ["points with two states", str(outcome.repeated_differently)],
        ["looks at the books, unbalanced", f"{outcome.looks:,}, {outcome.unbalanced}"],
        [
            "gaps filled, open, unfillable",
            ", ".join(str(outcome.gaps[s]) for s in ("filled", "open", "unfillable")),
        ],
        ["dropped on the way, all read back", str(sum(outcome.events_dropped.values()))],
        ["memory at most (RSS)", f"{outcome.rss_max_mb:.0f} MB"],
        [
            "slope of memory, second half of the first life",
            f"{outcome.rss_slope_mb_per_hour:+.1f} MB per hour",
        ],
        ["slope of open files, likewise", f"{outcome.files_slope_per_hour:+.1f} per hour"],
    ]
    print_table(["soak", "measured"], rows)
    print_table(
        ["fault", "times"], [[name, str(times)] for name, times in sorted(outcome.faults.items())]
    )


def main() -> int:
    """Run it, print it, and return 1 when anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=400.0, help="changes per second")
    parser.add_argument("--seed", type=int, default=random.randrange(1, 1_000_000))
    parser.add_argument("--publish", action="store_true", help="keep the figures in results/")
    chosen = parser.parse_args()
    print(f"{machine()}; seed {chosen.seed}", flush=True)
    outcome = asyncio.run(soak(minutes=chosen.minutes, rate=chosen.rate, seed=chosen.seed))
    print_outcome(outcome)
    save("soak", outcome, published=chosen.publish)
    lost = outcome.missing + outcome.extra + outcome.repeated_differently + outcome.unbalanced
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
