"""What each stage of an event's way costs by itself, in CPU time of this process.

Each is measured several times over the whole corpus; the cheapest time counts, because all
that disturbs a measurement only ever adds to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import msgspec
from prometheus_client import CollectorRegistry

from app.discovery.catalog import Catalog
from app.discovery.registries import AreaRow, DeviceRow, EntityRow, FloorRow, LabelRow, Registries
from app.fanout.hub import Hub, Selection
from app.homeassistant.messages import Event
from app.homeassistant.protocol import Phase, Session
from app.journal.batcher import Batcher
from app.journal.journal import SqliteJournal
from app.journal.rows import rows_of
from app.model import Change, Lines
from app.normalize.changes import Normalizer
from app.pipeline import Encoder
from app.runtime.metrics import Telemetry
from app.runtime.retry import Backoff, Breaker
from app.schema.encodings import TwoEncodings
from app.schema.home_assistant import HomeAssistantEncoder
from app.schema.home_assistant_options import Options
from app.schema.homeiq import HomeiqEncoder
from app.schema.line_protocol import parse_line
from app.sinks.dead_letters import DeadLetters
from app.sinks.delivery import Delivery
from app.sinks.embedded import EmbeddedStore
from app.sinks.influxdb.sink import InfluxSink
from app.sinks.outcomes import Sink
from benchmarks.corpus import ENTITIES, EVENT_ID, EVENTS, Corpus, make_corpus, make_frames
from benchmarks.peers import HELPER_TOKEN, Where, peer
from benchmarks.receive import measure_receiving
from benchmarks.tables import print_table
from benchmarks.way import measure_way

EVENTS_PER_FRAME = 50
LINES_PER_COMMIT = 1_000

_WATCHERS = (0, 1, 10, 100, 1_000)
_FRAMES_PER_TAKE = 10
_PENDING_POINTS = 5_000
_POLL_S = 0.001
_JOURNAL_BYTES = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one stage costs per event."""

    stage: str
    events: int
    cpu_us: float
    """Of all threads of the process."""
    wall_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What each stage is given: the corpus as the stage before leaves it."""

    frames: Sequence[bytes]
    single_frames: Sequence[bytes]
    events: Sequence[Sequence[Event]]
    changes: Sequence[Sequence[Change]]
    lines: Sequence[Lines]
    """A frame each."""
    commits: Sequence[Lines]
    """As many as one commit holds, each."""
    catalog: Catalog

    @property
    def count(self) -> int:
        """Return the number of events."""
        return len(self.single_frames)


def make_material(events: int = EVENTS, *, entities_in_home: int = ENTITIES) -> Material:
    """Run the corpus through all stages once."""
    corpus = make_corpus(events, entities_in_home)
    frames = make_frames(corpus, per_frame=EVENTS_PER_FRAME)
    catalog = _catalog(corpus)
    session, normalizer, encoder = ready_session(), Normalizer(catalog.placements), new_encoder()
    decoded = [session.feed(frame).events for frame in frames]
    changes = [normalizer.changes(batch)[0] for batch in decoded]
    return Material(
        frames=frames,
        single_frames=make_frames(corpus, per_frame=1),
        events=decoded,
        changes=changes,
        lines=[encoder.encode(batch) for batch in changes],
        commits=[
            encoder.encode([change for batch in some for change in batch])
            for some in _blocks(changes, LINES_PER_COMMIT // EVENTS_PER_FRAME)
        ],
        catalog=catalog,
    )


async def measure_stages(material: Material, *, rounds: int = 5) -> list[Cost]:
    """Return the cost of every stage, in the order of an event's way."""
    costs = [
        _cheapest(stage, material, [_timed(work) for _ in range(rounds)])
        for stage, work in _pure_stages(material)
    ]
    costs = [*await _receiving(material, rounds), *costs]
    async with peer("benchmarks.sink") as database:
        url = (await database.ask(Where, "where")).url
        stages: Mapping[str, Callable[[Material, Path], Awaitable[_Times]]] = {
            "batcher and journal, with compression": _commit,
            "delivery to InfluxDB": partial(_write, url=url),
            "delivery to the embedded store": _store,
        }
        for stage, work in stages.items():
            times = [await _with_folder(work, material) for _ in range(rounds)]
            costs.append(_cheapest(stage, material, times))
    return [*costs, *await _whole_way(material, rounds)]


async def _receiving(material: Material, rounds: int) -> list[Cost]:
    costs = []
    for per_frame, words in ((EVENTS_PER_FRAME, f"{EVENTS_PER_FRAME}"), (1, "one")):
        cpu_s, wall_s = await measure_receiving(
            events=material.count, per_frame=per_frame, rounds=rounds
        )
        stage = f"receive and decode, {words} per frame"
        costs.append(_cheapest(stage, material, [_Times(cpu_s, wall_s)]))
    return costs


async def _whole_way(material: Material, rounds: int) -> list[Cost]:
    costs = []
    for encoder, per_frame, words in (
        (new_encoder(), EVENTS_PER_FRAME, f"{EVENTS_PER_FRAME} per frame"),
        (new_encoder(), 1, "one per frame"),
        (two_encodings(), EVENTS_PER_FRAME, f"{EVENTS_PER_FRAME} per frame, two schemas"),
    ):
        cpu_s, wall_s = await measure_way(
            material.catalog,
            encoder,
            events=material.count,
            per_frame=per_frame,
            rounds=2 * rounds,
        )
        stage = f"the whole way to InfluxDB, {words}"
        costs.append(_cheapest(stage, material, [_Times(cpu_s, wall_s)]))
    return costs


def print_stages(costs: Sequence[Cost]) -> None:
    """Print the table of stages."""
    print_table(
        ["stage", "CPU µs per event", "events/s by wall clock"],
        [[cost.stage, f"{cost.cpu_us:.2f}", f"{1e6 / cost.wall_us:,.0f}"] for cost in costs],
    )


@dataclass(frozen=True, slots=True)
class _Times:
    cpu_s: float
    wall_s: float


def _cheapest(stage: str, material: Material, rounds: Sequence[_Times]) -> Cost:
    return Cost(
        stage=stage,
        events=material.count,
        cpu_us=min(times.cpu_s for times in rounds) / material.count * 1e6,
        wall_us=min(times.wall_s for times in rounds) / material.count * 1e6,
    )


class _Stopwatch:
    """Measures a block."""

    def __enter__(self) -> Self:
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.times = _Times(time.process_time() - self._cpu_s, time.perf_counter() - self._wall_s)


def _timed(work: Callable[[], None]) -> _Times:
    with _Stopwatch() as watch:
        work()
    return watch.times


async def _with_folder(
    work: Callable[[Material, Path], Awaitable[_Times]], material: Material
) -> _Times:
    # /tmp may be in memory; the journal must meet a disk.
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir="/var/tmp") as folder:
        return await work(material, Path(folder))


def _pure_stages(material: Material) -> Iterator[tuple[str, Callable[[], None]]]:
    yield f"decode, {EVENTS_PER_FRAME} per frame", partial(_decode, material.frames)
    yield "decode, one per frame", partial(_decode, material.single_frames)
    normalizer = Normalizer(material.catalog.placements)
    yield "normalize", partial(_normalize, normalizer, material.events)
    encoder = new_encoder()
    yield "encode", partial(_encode, encoder, material.changes)
    yield "encode for two schemas", partial(_encode, two_encodings(), material.changes)
    yield "compress", partial(_compress, material.commits)
    for watchers in _WATCHERS:
        stage = f"fan-out to {watchers}, without sending"
        yield stage, partial(_fan_out, material.changes, watchers)


def _decode(frames: Sequence[bytes]) -> None:
    session = ready_session()
    for frame in frames:
        session.feed(frame)


def _normalize(normalizer: Normalizer, batches: Sequence[Sequence[Event]]) -> None:
    for events in batches:
        normalizer.changes(events)


def _encode(encoder: Encoder, batches: Sequence[Sequence[Change]]) -> None:
    for changes in batches:
        encoder.encode(changes)


def _compress(commits: Sequence[Lines]) -> None:
    for lines in commits:
        rows_of(lines, first=1, received_at=0.0)


def _fan_out(batches: Sequence[Sequence[Change]], watchers: int) -> None:
    hub = Hub(max_subscribers=max(_WATCHERS))
    with contextlib.ExitStack() as stack:
        watching = [stack.enter_context(hub.subscribed(Selection())) for _ in range(watchers)]
        for some in _blocks(batches, _FRAMES_PER_TAKE):
            for changes in some:
                hub.publish(changes)
            for watcher in watching:
                watcher.drain(_FRAMES_PER_TAKE * EVENTS_PER_FRAME)


async def _commit(material: Material, folder: Path) -> _Times:
    telemetry = Telemetry(CollectorRegistry())
    async with SqliteJournal(
        folder / "journal.db", sinks=(), max_bytes=_JOURNAL_BYTES, telemetry=telemetry
    ) as journal:
        batcher = Batcher(journal, telemetry=telemetry)
        with _Stopwatch() as watch:
            committing = asyncio.create_task(batcher.run(), name="benchmark.batcher")
            for lines in material.lines:
                batcher.put(lines, received_at=time.time())
                while batcher.pending_points > _PENDING_POINTS:  # noqa: ASYNC110 - a counter has no event
                    await asyncio.sleep(_POLL_S)
            batcher.close()
            await committing
    assert telemetry.journaled == material.count, "nothing is dropped at this pace"
    return watch.times


async def _write(material: Material, folder: Path, *, url: str) -> _Times:
    sink = InfluxSink(url, token=HELPER_TOKEN, org="homeiq", bucket="measured", timeout_s=30)
    async with sink:
        return await _deliver(material, folder, sink)


async def _store(material: Material, folder: Path) -> _Times:
    async with EmbeddedStore(folder / "events.db", parse=parse_line, retention_days=36_500) as sink:
        return await _deliver(material, folder, sink)


async def _deliver(material: Material, folder: Path, sink: Sink) -> _Times:
    telemetry = Telemetry(CollectorRegistry())
    async with (
        SqliteJournal(
            None,
            sinks=(sink.name,),
            max_bytes=_JOURNAL_BYTES,
            recent_bytes=_JOURNAL_BYTES,
            telemetry=telemetry,
        ) as journal,
        DeadLetters(folder / "dead_letters.db") as dead_letters,
    ):
        for lines in material.commits:
            await journal.append(lines, received_at=time.time())
        delivery = Delivery(
            sink=sink,
            journal=journal,
            dead_letters=dead_letters,
            breaker=Breaker(sink.name, threshold=5, reset_s=1),
            backoff=Backoff(max_s=1),
            telemetry=telemetry,
        )
        delivery.finish()
        with _Stopwatch() as watch:
            await delivery.run()
    assert telemetry.sink(sink.name).written == material.count, "a helper accepts everything"
    return watch.times


def ready_session() -> Session:
    """Return a session in which events stream."""
    session = Session(HELPER_TOKEN)
    for message in (
        b'{"type":"auth_required","ha_version":"2026.11.0"}',
        b'{"type":"auth_ok","ha_version":"2026.11.0"}',
        b'{"type":"result","id":%d,"success":true,"result":null}' % EVENT_ID,
    ):
        session.feed(message)
    assert session.phase is Phase.READY, "the subscription is the second command"
    return session


def new_encoder() -> HomeiqEncoder:
    """Return the encoder of the service without any setting."""
    return HomeiqEncoder("home_assistant_events", instance=None, attribute_fields=())


def two_encodings() -> TwoEncodings:
    """Return that of a service with Home Assistant's schema and its defaults."""
    database = HomeAssistantEncoder(Options(), text="v1")
    return TwoEncodings(new_encoder(), database, corrected=lambda _: None)


def _catalog(corpus: Corpus) -> Catalog:
    catalog = Catalog()
    rows = {kind: msgspec.json.encode(rows) for kind, rows in corpus.registries.items()}
    catalog.replace(
        Registries(
            devices=msgspec.json.decode(rows["device"], type=tuple[DeviceRow, ...]),
            entities=msgspec.json.decode(rows["entity"], type=tuple[EntityRow, ...]),
            areas=msgspec.json.decode(rows["area"], type=tuple[AreaRow, ...]),
            floors=msgspec.json.decode(rows["floor"], type=tuple[FloorRow, ...]),
            labels=msgspec.json.decode(rows["label"], type=tuple[LabelRow, ...]),
        )
    )
    return catalog


Item = TypeVar("Item")


def _blocks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
