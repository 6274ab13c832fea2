"""Discovery of a large home: how long it takes, and what live events and queries notice.

`python -m benchmarks.discovery` runs the service in this process, and in another a home of
5,000 devices and 14,000 entities whose events go on meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import tempfile
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import msgspec

from app.container import Container
from app.discovery.store import CatalogStore
from app.fanout.hub import Hub, Selection
from app.main import running
from app.settings import Settings, load_settings
from benchmarks.peers import HELPER_TOKEN, Peer, Where, answer_commands, peer
from benchmarks.tables import machine, percentile, print_table, save
from simulator.fake_home_assistant import (
    FakeHomeAssistant,
    JsonObject,
    RegistryKind,
    state_changed,
    state_row,
)

DEVICES = 5_000
ENTITIES = 14_000
AREAS = 40
RATE = 200
"""Events a second while all this happens."""

_ROUNDS = 10
_QUIET_S = 5.0
_QUERIES = 200
_PLATFORMS = ("mqtt", "zha", "hue", "esphome", "zwave_js")
_DOMAINS = ("sensor", "binary_sensor", "light", "switch")
_MAX_REFRESH_S = 2.0
_MAX_DELAY_MS = 50.0
_MAX_QUERY_MS = 10.0


class Delays(msgspec.Struct, frozen=True, kw_only=True):
    """How long after its timestamp a subscriber received an event."""

    phase: str
    events: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    longest_turn_cpu_ms: float
    """The most that one turn of the event loop took, in processor time: no busy machine adds."""


class Took(msgspec.Struct, frozen=True, kw_only=True):
    """How long something took, and the processor time of this process meanwhile."""

    name: str
    seconds: float
    cpu_s: float


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """How long one kind of query took."""

    name: str
    rows: int
    p50_ms: float
    p99_ms: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements."""

    took: list[Took]
    delays: list[Delays]
    queries: list[Query]


class LargeHouse:
    """A home whose registries are encoded once, so that the helper does not hold up events."""

    def __init__(self) -> None:
        self._answers: dict[RegistryKind, msgspec.Raw] = {}
        self.change_all(0)

    def change_all(self, generation: int) -> None:
        """Let every row be another."""
        rows: Mapping[RegistryKind, list[JsonObject]] = {
            "device": [_device(number, generation) for number in range(DEVICES)],
            "entity": [_entity(number, generation) for number in range(ENTITIES)],
            "area": [
                {"area_id": f"area_{number}", "name": f"Area {number}", "floor_id": "ground"}
                for number in range(AREAS)
            ],
            "floor": [{"floor_id": "ground", "name": "Ground"}],
            "label": [{"label_id": "energy", "name": "Energy"}],
        }
        self._answers = {
            kind: msgspec.Raw(msgspec.json.encode(found)) for kind, found in rows.items()
        }

    def states(self) -> Sequence[JsonObject]:
        """Return none."""
        return []

    def registry(self, kind: RegistryKind) -> Sequence[JsonObject]:
        """Return the rows, encoded already."""
        return cast("Sequence[JsonObject]", self._answers[kind])

    def config(self) -> JsonObject:
        """Return the name of the home."""
        return {"location_name": "Large"}

    def config_entries(self) -> Sequence[JsonObject]:
        """Return one entry for each integration."""
        return [{"entry_id": f"entry_{name}", "domain": name} for name in _PLATFORMS]

    def recorder(self) -> JsonObject:
        """Return nothing beyond an idle recorder."""
        return {}

    def history(
        self,
        start: datetime,  # noqa: ARG002 - the protocol of a house
        end: datetime,  # noqa: ARG002 - the protocol of a house
        entity_ids: Sequence[str],  # noqa: ARG002 - the protocol of a house
    ) -> Mapping[str, Sequence[JsonObject]]:
        """Return nothing."""
        return {}


def _device(number: int, generation: int) -> JsonObject:
    platform = _PLATFORMS[number % len(_PLATFORMS)]
    return {
        "area_id": f"area_{number % AREAS}",
        "config_entries": [f"entry_{platform}"],
        "config_entry_id": f"entry_{platform}",
        "configuration_url": None,
        "connections": [["mac", f"00:15:8d:{number:06x}"]],
        "created_at": 1795457890.341557,
        "disabled_by": None,
        "entry_type": None,
        "hw_version": None,
        "id": f"{number:032x}",
        "identifiers": [[platform, f"0x{number:016x}"]],
        "labels": [],
        "manufacturer": f"Maker {number % 30}",
        "model": f"Model {number % 200}",
        "model_id": None,
        "modified_at": 1795457890.341635 + generation,
        "name": f"Device {number}",
        "name_by_user": None,
        "parent_device_id": None,
        "serial_number": None,
        "sw_version": f"1.{generation}",
        "via_device_id": None,
    }


def _entity(number: int, generation: int) -> JsonObject:
    device = number % DEVICES
    platform = _PLATFORMS[device % len(_PLATFORMS)]
    return {
        "area_id": None,
        "categories": {},
        "config_entry_id": f"entry_{platform}",
        "config_subentry_id": None,
        "created_at": 1795457886.833397,
        "device_id": f"{device:032x}",
        "disabled_by": None,
        "entity_category": None,
        "entity_id": _entity_id(number),
        "has_entity_name": True,
        "hidden_by": None,
        "icon": None,
        "id": f"{number + DEVICES:032x}",
        "labels": ["energy"] if number % 50 == 0 else [],
        "modified_at": 1795457890.408387 + generation,
        "name": None,
        "options": {"conversation": {"should_expose": False}},
        "original_name": f"Measurement {number}",
        "platform": platform,
        "translation_key": None,
        "unique_id": f"0x{device:016x}-{number}",
    }


def _entity_id(number: int) -> str:
    return f"{_DOMAINS[number % len(_DOMAINS)]}.device_{number % DEVICES}_{number}"


async def serve_house() -> None:
    """Be the helper: serve the home until standard input ends."""
    house = LargeHouse()
    home_assistant = FakeHomeAssistant(house, token=HELPER_TOKEN)

    async def where() -> Where:
        return Where(home_assistant.url)

    async def change_all(*, generation: int) -> None:
        house.change_all(generation)

    async with home_assistant:
        moving = asyncio.create_task(_move(home_assistant), name="house")
        await answer_commands({"where": where, "change_all": change_all})
        moving.cancel()
        await asyncio.wait({moving})


async def _move(home_assistant: FakeHomeAssistant) -> None:
    """Fire events at an even pace, each with the time of its firing."""
    number = 0
    start = time.perf_counter()
    while True:
        entity_id = _entity_id(number % ENTITIES)
        now = datetime.now(UTC)
        home_assistant.fire(
            state_changed(None, state_row(entity_id, str(number), {}, at=now), at=now)
        )
        number += 1
        await asyncio.sleep(max(0.0, start + number / RATE - time.perf_counter()))


class _Watch:
    """A subscriber that records the age of each event it receives."""

    def __init__(self) -> None:
        self._ms: list[float] = []
        self._longest_turn_s = 0.0

    @contextmanager
    def timing_turns(self) -> Iterator[None]:
        """Measure the processor time of every callback of the event loop until the block ends."""
        plain = asyncio.events.Handle._run  # noqa: SLF001 - there is no other place to measure

        def timed(handle: asyncio.events.Handle) -> None:
            began = time.thread_time()
            plain(handle)
            self._longest_turn_s = max(self._longest_turn_s, time.thread_time() - began)

        asyncio.events.Handle._run = timed  # type: ignore[method-assign, assignment] # noqa: SLF001
        try:
            yield
        finally:
            asyncio.events.Handle._run = plain  # type: ignore[method-assign] # noqa: SLF001

    async def run(self, hub: Hub) -> None:
        with hub.subscribed(Selection()) as watcher:
            while True:
                await watcher.filled()
                now = time.time()
                for message in watcher.drain(1_000):
                    at = msgspec.json.decode(message, type=_Message).event.time
                    self._ms.append(1_000 * (now - at.timestamp()))

    def delays(self, phase: str) -> Delays:
        """Return what was noted since the last time."""
        noted, self._ms = self._ms, []
        longest_turn_s, self._longest_turn_s = self._longest_turn_s, 0.0
        return Delays(
            phase=phase,
            events=len(noted),
            p50_ms=percentile(noted, 0.5),
            p99_ms=percentile(noted, 0.99),
            max_ms=max(noted, default=0.0),
            longest_turn_cpu_ms=1_000 * longest_turn_s,
        )


class _Event(msgspec.Struct):
    time: datetime


class _Message(msgspec.Struct):
    event: _Event


@asynccontextmanager
async def _beside(work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def measure(folder: Path, house: Peer) -> Figures:
    """Start the service in this process twice, and let it discover again and again."""
    os.environ.update(
        HOME_ASSISTANT_URL=(await house.ask(Where, "where")).url,
        HOME_ASSISTANT_TOKEN=HELPER_TOKEN,
        DATA_DIR=str(folder),
    )
    settings = load_settings()
    container = Container(settings=settings)
    watch = _Watch()
    with watch.timing_turns():
        return await _measure(container, settings, watch, house)


async def _measure(container: Container, settings: Settings, watch: _Watch, house: Peer) -> Figures:
    delays, took = [], []
    clock = _Clock()
    async with running(container), _beside(watch.run(container.hub())):
        # As `python -m app run` does: what starting made is not looked through again.
        gc.freeze()
        catalog, metadata = container.catalog(), container.metadata()
        discovery = container.discovery()
        while catalog.last_refresh is None:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.002)
        took.append(clock.read("the first, from the start until events carry areas"))
        while not (await metadata.entities(limit=1)).documents:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.02)
        took.append(clock.read("the first, from the start until it is on disk, too"))
        await discovery.trigger()
        delays.append(watch.delays("the first, from the start"))
        await asyncio.sleep(_QUIET_S)
        delays.append(watch.delays("nothing else"))
        for _ in range(_ROUNDS):
            clock = _Clock()
            await discovery.trigger()
            took.append(clock.read("a refresh without news"))
        delays.append(watch.delays("refreshes without news"))
        await house.ask(type(None), "change_all", generation=1)
        await asyncio.sleep(1.0)
        watch.delays("the helper is busy")
        clock = _Clock()
        await discovery.trigger()
        took.append(clock.read("a refresh where every row is new, until it is on disk"))
        delays.append(watch.delays("a refresh where every row is new"))
        queries = [await _asked(name, query) for name, query in _queries(metadata).items()]
    clock = _Clock()
    async with Container(settings=settings).metadata():
        took.append(clock.read("a restart, until it is loaded and the socket may open"))
    return Figures(took=took, delays=delays, queries=queries)


class _Clock:
    """Wall time and processor time since it was made."""

    def __init__(self) -> None:
        self._began_s, self._cpu_s = time.perf_counter(), time.process_time()

    def read(self, name: str) -> Took:
        """Return what has passed."""
        return Took(
            name=name,
            seconds=time.perf_counter() - self._began_s,
            cpu_s=time.process_time() - self._cpu_s,
        )


def _queries(metadata: CatalogStore) -> Mapping[str, Callable[[int], Awaitable[int]]]:
    async def devices(**filters: str | int) -> int:
        page = await metadata.devices(**filters)  # type: ignore[arg-type] # names of ours
        return (
            len(page.documents) and len(msgspec.json.encode(page.documents)) and len(page.documents)
        )

    async def entities(**filters: str | int) -> int:
        page = await metadata.entities(**filters)  # type: ignore[arg-type] # names of ours
        return (
            len(page.documents) and len(msgspec.json.encode(page.documents)) and len(page.documents)
        )

    async def one(row_id: str) -> int:
        return int(await metadata.entity(row_id) is not None)

    return {
        "devices, the first 100": lambda _: devices(),
        "devices of a manufacturer": lambda n: devices(manufacturer=f"Maker {n % 30}"),
        "devices of an area": lambda n: devices(area_id=f"area_{n % AREAS}"),
        "devices of a platform": lambda n: devices(platform=_PLATFORMS[n % len(_PLATFORMS)]),
        "devices that do not exist": lambda _: devices(model="none"),
        "entities, the first 100": lambda _: entities(),
        "entities, a later page": lambda n: entities(cursor=_entity_id(n)),
        "entities of a domain": lambda n: entities(domain=_DOMAINS[n % len(_DOMAINS)]),
        "entities of a platform": lambda n: entities(platform=_PLATFORMS[n % len(_PLATFORMS)]),
        "entities of a domain and platform": lambda _: entities(domain="light", platform="zha"),
        "entities of a device": lambda n: entities(device_id=f"{n:032x}"),
        "entities with a label": lambda _: entities(label="energy"),
        "one entity": lambda n: one(_entity_id(n)),
        "entities, 1000 at once": lambda _: entities(limit=1_000),
    }


async def _asked(name: str, query: Callable[[int], Awaitable[int]]) -> Query:
    took_ms = []
    rows = 0
    for number in range(_QUERIES):
        began = time.perf_counter()
        rows = await query(number)
        took_ms.append(1_000 * (time.perf_counter() - began))
    return Query(
        name=name, rows=rows, p50_ms=percentile(took_ms, 0.5), p99_ms=percentile(took_ms, 0.99)
    )


def print_figures(figures: Figures) -> None:
    """Print a table of each."""
    by_name: dict[str, list[Took]] = {}
    for took in figures.took:
        by_name.setdefault(took.name, []).append(took)
    print_table(
        [f"{DEVICES:,} devices and {ENTITIES:,} entities", "s", "slowest s", "CPU s"],
        [
            [
                name,
                f"{percentile([took.seconds for took in found], 0.5):.2f}",
                f"{max(took.seconds for took in found):.2f}",
                f"{percentile([took.cpu_s for took in found], 0.5):.2f}",
            ]
            for name, found in by_name.items()
        ],
    )
    print_table(
        [
            f"delay of live events, {RATE}/s, during",
            "events",
            "p50 ms",
            "p99 ms",
            "max ms",
            "longest turn, CPU ms",
        ],
        [
            [
                found.phase,
                str(found.events),
                *_ms(found.p50_ms, found.p99_ms, found.max_ms, found.longest_turn_cpu_ms),
            ]
            for found in figures.delays
        ],
    )
    print_table(
        ["query", "rows", "p50 ms", "p99 ms"],
        [
            [query.name, str(query.rows), *_ms(query.p50_ms, query.p99_ms)]
            for query in figures.queries
        ],
    )


def _ms(*values: float) -> list[str]:
    return [f"{value:.1f}" for value in values]


def misses(figures: Figures) -> list[str]:
    """Return what is slower than was promised."""
    found = [
        f"{took.name} took {took.seconds:.2f} s"
        for took in figures.took
        if took.seconds > _MAX_REFRESH_S
    ]
    found += [
        f"events were {delays.p99_ms:.0f} ms late during {delays.phase}"
        for delays in figures.delays
        if delays.p99_ms > _MAX_DELAY_MS and delays is not figures.delays[0]
    ]
    found += [
        f"{query.name} took {query.p99_ms:.1f} ms"
        for query in figures.queries
        if query.p99_ms > _MAX_QUERY_MS and query.rows < 1_000
    ]
    return found


async def main() -> int:
    """Measure, print, and return the exit status."""
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        async with peer("benchmarks.discovery", "--house") as house:
            figures = await measure(Path(folder), house)
    print_figures(figures)
    found = misses(figures)
    # Figures of a busy machine are not worth recording.
    save("discovery", figures, published=not found)
    for miss in found:
        print(f"MISSED: {miss}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.discovery", description=__doc__)
    parser.add_argument("--house", action="store_true", help="be the helper")
    if parser.parse_args().house:
        asyncio.run(serve_house())
    else:
        sys.exit(asyncio.run(main()))
