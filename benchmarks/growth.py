"""Whether cost grows: with the entities of a home, and with what waits in the journal.

`python -m benchmarks.growth --journal-mb 1000` measures and prints a table.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from prometheus_client import CollectorRegistry

from app.journal.journal import SqliteJournal
from app.normalize.changes import Normalizer
from app.runtime.metrics import Telemetry
from benchmarks.stages import make_material, new_encoder, ready_session
from benchmarks.tables import print_table

JOURNAL_MB = 1_000

_HOMES = (200, 2_000, 20_000)
_EVENTS_PER_HOME = 40_000
_COMMITS = 100
_SINK = "away"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What one event costs at one size."""

    size: str
    cpu_us: float
    wall_us: float


def measure_entities(*, rounds: int = 5) -> list[Point]:
    """Decode, normalize and encode the same number of events in homes of several sizes."""
    return [_home(entities, rounds=rounds) for entities in _HOMES]


async def measure_journal(*, megabytes: int = JOURNAL_MB) -> list[Point]:
    """Append to a journal that no sink empties: empty, half full, and full."""
    material = make_material()
    commits = cycle(material.commits)
    # /tmp may be in memory; the journal must meet a disk.
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir="/var/tmp") as folder:
        async with SqliteJournal(
            Path(folder) / "journal.db",
            sinks=(_SINK,),
            max_bytes=4 * megabytes * 1_000_000,
            telemetry=Telemetry(CollectorRegistry()),
        ) as journal:
            points = []
            for share in (0.0, 0.5, 1.0):
                while journal.status().bytes < share * megabytes * 1_000_000:
                    await journal.append(next(commits), received_at=time.time())
                megabytes_now = journal.status().bytes / 1e6
                cpu_s, wall_s = time.process_time(), time.perf_counter()
                events = 0
                for lines in islice(commits, _COMMITS):
                    await journal.append(lines, received_at=time.time())
                    events += lines.points
                points.append(
                    Point(
                        size=f"journal of {megabytes_now:,.0f} MB",
                        cpu_us=(time.process_time() - cpu_s) / events * 1e6,
                        wall_us=(time.perf_counter() - wall_s) / events * 1e6,
                    )
                )
    return points


def print_growth(points: list[Point]) -> None:
    """Print each cost, and how many times the first of its kind it is."""
    first = points[0].cpu_us
    print_table(
        ["cost of an event", "CPU µs", "wall µs", "times the first"],
        [
            [
                point.size,
                f"{point.cpu_us:.2f}",
                f"{point.wall_us:.2f}",
                f"{point.cpu_us / first:.2f}",
            ]
            for point in points
        ],
    )


def _home(entities: int, *, rounds: int) -> Point:
    material = make_material(_EVENTS_PER_HOME, entities_in_home=entities)
    session, encoder = ready_session(), new_encoder()
    normalizer = Normalizer(material.catalog.placements)
    times = []
    for _ in range(rounds):
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        for frame in material.frames:
            encoder.encode(normalizer.changes(session.feed(frame).events)[0])
        times.append((time.process_time() - cpu_s, time.perf_counter() - wall_s))
    cpu_s, wall_s = min(times)
    return Point(
        size=f"home of {entities:,} entities",
        cpu_us=cpu_s / material.count * 1e6,
        wall_us=wall_s / material.count * 1e6,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--journal-mb", type=int, default=JOURNAL_MB)
    chosen = parser.parse_args()
    print_growth(measure_entities())
    print_growth(asyncio.run(measure_journal(megabytes=chosen.journal_mb)))
