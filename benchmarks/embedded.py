"""The embedded store with a million events: asking it, and deleting while it is written to.

`python -m benchmarks.embedded` measures and prints a table; it takes about two minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.model import Change, Context, Placement
from app.schema.homeiq import HomeiqEncoder
from app.schema.line_protocol import parse_line
from app.sinks.batches import Batch
from app.sinks.embedded import EmbeddedStore
from app.sinks.outcomes import Accepted
from benchmarks.tables import percentile, print_table

ROWS = 1_000_000
ENTITIES = 500

_BATCH = 5_000
_LIVE_BATCH = 100
_LIVE_EVERY_S = 0.1
_UNDISTURBED = 50
_ASKED = 200
_PAGE = 1_000
_DAYS = 10
_RETENTION_DAYS = 5
_PRUNE_STEP_S = 0.01
"""A tenth of the service's own: ten times its pressure, in a tenth of the time."""
_NS = 10**9
_DAY_NS = 86_400 * _NS
_NOW_NS = 1_795_435_200 * _NS
_PLACES = [
    Placement(device_id=f"device_{number}", area_id=f"area_{number % 12}", integration="mqtt")
    for number in range(ENTITIES)
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the embedded store does with `rows` events; every write is durable."""

    rows: int
    rows_written_per_s: float
    last_day_p50_ms: float
    """One entity's last day, newest first."""
    last_day_max_ms: float
    undisturbed_write_max_ms: float
    """A write of 100 events, ten times a second, with nothing else going on."""
    rows_pruned: int
    rows_pruned_per_s: float
    pruning_write_p50_ms: float
    """The same while half of all events are deleted."""
    pruning_write_max_ms: float
    pruning_last_day_max_ms: float


async def measure(*, rows: int = ROWS) -> Figures:
    """Fill a store with ten days of events, ask it, then have it delete the older half."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.db"
        async with _store(path, retention_days=_DAYS) as store:
            started_s = time.perf_counter()
            for batch in _batches(rows):
                await _write(store, batch)
            fill_s = time.perf_counter() - started_s
            asked_ms = [await _ask(store, number) for number in range(_ASKED)]
            calm = _Live(store)
            await calm.write(_UNDISTURBED)
        async with _store(path, retention_days=_RETENTION_DAYS) as store:
            busy = _Live(store, after=calm.events)
            pruned, prune_s = await _prune_beside(store, busy)
    return Figures(
        rows=rows,
        rows_written_per_s=rows / fill_s,
        last_day_p50_ms=percentile(asked_ms, 0.5),
        last_day_max_ms=max(asked_ms),
        undisturbed_write_max_ms=max(calm.writes_ms),
        rows_pruned=pruned,
        rows_pruned_per_s=pruned / prune_s,
        pruning_write_p50_ms=percentile(busy.writes_ms, 0.5),
        pruning_write_max_ms=max(busy.writes_ms),
        pruning_last_day_max_ms=max(busy.asked_ms),
    )


def print_figures(figures: Figures) -> None:
    """Print them as a table."""
    print_table(
        ["the embedded store", "measured"],
        [
            ["events in it", f"{figures.rows:,}"],
            ["events written per second", f"{figures.rows_written_per_s:,.0f}"],
            ["one entity's last day, median", f"{figures.last_day_p50_ms:.1f} ms"],
            ["one entity's last day, slowest", f"{figures.last_day_max_ms:.1f} ms"],
            ["write of 100 events, slowest", f"{figures.undisturbed_write_max_ms:.1f} ms"],
            ["events deleted beside writing", f"{figures.rows_pruned:,}"],
            ["events deleted per second", f"{figures.rows_pruned_per_s:,.0f}"],
            ["write meanwhile, median", f"{figures.pruning_write_p50_ms:.1f} ms"],
            ["write meanwhile, slowest", f"{figures.pruning_write_max_ms:.1f} ms"],
            ["last day meanwhile, slowest", f"{figures.pruning_last_day_max_ms:.1f} ms"],
        ],
    )


class _Live:
    """What goes on while the service runs: a batch every tenth of a second, a question each."""

    def __init__(self, store: EmbeddedStore, *, after: int = 0) -> None:
        self.writes_ms: list[float] = []
        self.asked_ms: list[float] = []
        self.events = after
        self._store = store
        self._encoder = _encoder()

    async def write(self, batches: int | None = None) -> None:
        """Write the given number of batches, or until cancelled."""
        while batches is None or len(self.writes_ms) < batches:
            changes = [
                _change(number, time_ns=_NOW_NS + number * 1_000_000)
                for number in range(self.events, self.events + _LIVE_BATCH)
            ]
            self.events += _LIVE_BATCH
            batch = _batch(self._encoder.encode(changes).split())
            self.writes_ms.append(await _write(self._store, batch))
            self.asked_ms.append(await _ask(self._store, self.events))
            await asyncio.sleep(_LIVE_EVERY_S)


async def _prune_beside(store: EmbeddedStore, live: _Live) -> tuple[int, float]:
    """Delete expired events while the store is written to; return how many and the time."""
    kept_ns = _NOW_NS - _RETENTION_DAYS * _DAY_NS
    before = await _count_before(store, kept_ns)
    started_s = time.perf_counter()
    writing = asyncio.create_task(live.write(), name="live")
    try:
        more = True
        while more:
            more = await store.prune()
            await asyncio.sleep(_PRUNE_STEP_S)
        return before, time.perf_counter() - started_s
    finally:
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing


async def _count_before(store: EmbeddedStore, end_ns: int) -> int:
    count, cursor = 0, None
    while True:
        page = await store.events(end_ns=end_ns, limit=10_000, cursor=cursor)
        count += len(page.events)
        cursor = page.next_cursor
        if cursor is None:
            return count


async def _write(store: EmbeddedStore, batch: Batch) -> float:
    """Return how long it took, in milliseconds."""
    started_s = time.perf_counter()
    answer = await store.write(batch)
    took_ms = (time.perf_counter() - started_s) * 1e3
    assert isinstance(answer, Accepted), answer
    return took_ms


async def _ask(store: EmbeddedStore, number: int) -> float:
    """Return how long one entity's last day takes, in milliseconds."""
    started_s = time.perf_counter()
    page = await store.events(entity_id=_entity_id(number), start_ns=_NOW_NS - _DAY_NS, limit=_PAGE)
    took_ms = (time.perf_counter() - started_s) * 1e3
    assert page.events, "nothing happened on the last day"
    return took_ms


def _store(path: Path, *, retention_days: float) -> EmbeddedStore:
    return EmbeddedStore(
        path,
        parse=parse_line,
        retention_days=retention_days,
        clock=lambda: _NOW_NS / _NS,
    )


def _batch(lines: Sequence[bytes]) -> Batch:
    """Return the lines as cut from rows; this store has no use for compressed ones."""
    points = len(lines)
    return Batch(
        numbers=range(1, points + 1),
        first=1,
        last=points,
        points=points,
        received_at=0.0,
        gzip=None,
        cut=tuple(lines),
    )


def _batches(rows: int) -> Iterator[Batch]:
    """Yield the events of the days before now, in order, entities in turn."""
    encoder = _encoder()
    step_ns = _DAYS * _DAY_NS // rows
    first_ns = _NOW_NS - rows * step_ns
    for start in range(0, rows, _BATCH):
        yield _batch(
            encoder.encode(
                [
                    _change(number, time_ns=first_ns + number * step_ns)
                    for number in range(start, min(start + _BATCH, rows))
                ]
            ).split()
        )


def _encoder() -> HomeiqEncoder:
    return HomeiqEncoder("events", instance=None, attribute_fields=())


def _entity_id(number: int) -> str:
    return f"sensor.number_{number % ENTITIES}"


def _change(number: int, *, time_ns: int) -> Change:
    name = f"Sensor {number % ENTITIES}"
    return Change(
        entity_id=_entity_id(number),
        domain="sensor",
        time_ns=time_ns,
        state=str(number),
        previous_state=str(number - ENTITIES),
        duration_s=60.5,
        attributes=(
            '{"state_class":"measurement","unit_of_measurement":"W","device_class":"power",'
            f'"friendly_name":"{name}","voltage":231.{number % 10},"current":0.4,"linkquality":90}}'
        ).encode(),
        device_class="power",
        unit_of_measurement="W",
        friendly_name=name,
        context=Context(id=f"01JDC{number:021d}"),
        placement=_PLACES[number % ENTITIES],
    )


if __name__ == "__main__":
    print_figures(asyncio.run(measure()))
