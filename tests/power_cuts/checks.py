"""Starts the service on a folder, and reports what is missing or untrue."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from app.container import Container
from app.main import running
from app.schema.line_protocol import parse_line
from app.settings import load_settings
from tests.fakes.influx import FakeInflux

SETTINGS = {
    "HOME_ASSISTANT_TOKEN": "t" * 40,
    "INFLUXDB_API": "v2",
    "EMBEDDED_STORE": "on",
    "EMBEDDED_RETENTION_DAYS": "36500",
    "BATCH_TIMEOUT": "0.02",
    "JOURNAL_COMMIT_INTERVAL": "0.01",
    "JOURNAL_MIN_FREE_MB": "0",
    "BACKFILL_ENABLED": "false",
    "SHUTDOWN_TIMEOUT": "5",
}
_LONGEST_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a start found and delivered."""

    lines: Sequence[bytes]
    """What the database accepted, in order of arrival."""
    events: Collection[tuple[str, int]]
    dead_letters: Collection[bytes]
    devices: Collection[str]
    damage: Sequence[str]
    """Reports of damage."""
    lost_points: int
    """Points that were counted as dropped."""
    lost_spans: int
    """Gaps whose reason is damage."""
    set_aside: Sequence[str]
    """Files that were renamed."""
    covered_through_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What must be there after a start."""

    lines: Sequence[bytes]
    """Points that the journal acknowledged and the database had not accepted, in order."""
    accepted: Collection[bytes] = ()
    """Points that the database had accepted, which may come again."""
    events: Collection[tuple[str, int]] = ()
    dead_letters: Collection[bytes] = ()
    devices: Collection[str] = ()
    is_damaged: bool = False
    """Whether files were damaged before, so that a report of damage is true."""


def expected(
    acknowledged: Iterable[bytes], *, before: Found | None = None, is_damaged: bool = False
) -> Expected:
    """Read the acknowledgements of a workload; `before` is what was there when it began."""
    found: dict[str, list[str]] = {"journal": [], "influx": [], "devices": []}
    for message in acknowledged:
        for kind, items in json.loads(message).items():
            found[kind] += items
    new = [line.encode() for line in found["journal"]]
    accepted = {line.encode() for line in found["influx"]}
    lines = [*(before.lines if before else ()), *new]
    points = {line: parse_line(line) for line in new}
    refused = {line for line, point in points.items() if "entity_id" not in point.tags}
    return Expected(
        lines=[line for line in lines if line not in accepted],
        accepted=accepted,
        events={
            *(before.events if before else ()),
            *(
                (p.tags["entity_id"], p.time_ns)
                for line, p in points.items()
                if line not in refused
            ),
        },
        dead_letters={*(before.dead_letters if before else ()), *refused},
        devices={*(before.devices if before else ()), *found["devices"]},
        is_damaged=is_damaged,
    )


async def start(data: Path, influx: FakeInflux) -> Found:
    """Start the service on a folder, let it deliver all, and stop it."""
    influx.lines.clear()
    environment = SETTINGS | {
        "HOME_ASSISTANT_URL": "http://127.0.0.1:9",
        "INFLUXDB_URL": influx.url,
        "INFLUXDB_TOKEN": influx.token,
        "DATA_DIR": str(data),
    }
    with mock.patch.dict(os.environ, environment):
        container = Container(settings=load_settings(None))
    async with asyncio.timeout(_LONGEST_S), running(container):
        journal = container.journal()
        while any(journal.pending(sink).points for sink in ("influxdb", "embedded")):
            await asyncio.sleep(0.005)
        snapshot = container.observer().snapshot()
    dropped = sum(sink.points_dropped for sink in snapshot.sinks)
    return read(data, lines=influx.lines, reasons=snapshot.reasons, dropped=dropped)


def read(data: Path, *, lines: Sequence[bytes], reasons: Iterable[str], dropped: int) -> Found:
    """Read the files of a service that was stopped; the rest is what it reported before."""
    ((gaps,),) = _rows(data / "journal.db", "SELECT count(*) FROM gaps WHERE reason = 'damage'")
    return Found(
        lines=tuple(lines),
        events={
            (str(entity_id), int(time_ns))
            for entity_id, time_ns in _rows(
                data / "events.db", "SELECT entity_id, time_ns FROM events"
            )
        },
        dead_letters={
            bytes(line)
            for (line,) in _rows(data / "dead_letters.db", "SELECT line FROM dead_letters")
        },
        devices={
            str(name) for (name,) in _rows(data / "metadata.db", "SELECT device_id FROM devices")
        },
        damage=[reason for reason in reasons if "damaged" in reason or "missing" in reason],
        lost_points=dropped,
        lost_spans=gaps,
        set_aside=sorted(path.name for path in data.glob("*.damaged-*")),
        covered_through_ns=next(
            (
                int(through)
                for (through,) in _rows(data / "journal.db", "SELECT through_ns FROM covered")
            ),
            None,
        ),
    )


def _rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def problems(expected: Expected, found: Found) -> list[str]:
    """Return what is lost, out of order or untrue, in sentences."""
    arrived = dict.fromkeys(found.lines)
    wanted = set(expected.lines)
    lost = [line for line in expected.lines if line not in arrived]
    times_ns = [parse_line(line).time_ns for line in (*arrived, *expected.accepted)]
    newest_ns = max(times_ns, default=0)
    faults: dict[str, object] = {
        f"{len(lost)} acknowledged points are lost": lost,
        "events are missing in the embedded store": {*expected.events} - {*found.events},
        "dead letters are lost": {*expected.dead_letters} - {*found.dead_letters},
        "devices are lost": {*expected.devices} - {*found.devices},
    }
    if not expected.is_damaged:
        ordered = [line for line in expected.lines if line in arrived]
        faults |= {
            "points are out of order": [line for line in arrived if line in wanted] != ordered,
            f"a false report: {found.damage}": found.damage,
            f"{found.lost_points} points are counted as dropped": found.lost_points,
            f"{found.lost_spans} gaps are damage": found.lost_spans,
            f"files were set aside: {found.set_aside}": found.set_aside,
            "the covered time ends after the newest point": (found.covered_through_ns or 0)
            > newest_ns,
        }
    return [text for text, is_true in faults.items() if is_true]
