"""What must hold in every world, throughout and at the end."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from app.model import MAX_TIME_NS, StoredPoint, moment_of
from app.schema.homeiq import identity_of
from tests.real.reconcile import Difference, compare
from tests.simulation.database import identity
from tests.simulation.honesty import check_settled
from tests.simulation.house import EXCLUDED
from tests.simulation.truth import history, why_missing
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World

_LISTED = 12
_UNNOTICED_S = 120.0
"""How long health may be good while nothing arrives: pings notice a silent connection."""
_NEAR = timedelta(seconds=31)
"""How far beyond a gap changes are read back."""
_UNMARKED_NS = 1_200 * 1_000_000_000
"""How near a restart without an entry in the logbook others may be misjudged."""


async def check_meanwhile(world: World) -> Mapping[str, Any]:
    """Check what must hold at any moment: the totals, and that health is honest; return health."""
    life = world.life
    assert life.client is not None
    response = await life.client.get("/health")
    health: Mapping[str, Any] = response.json()
    if life.process.is_dead:
        return health
    events = health["accounting"]["events"]
    known = events["journaled"] + events["filtered"] + events["malformed"] + events["pending"]
    if events["received"] != known + sum(events["dropped"].values()):
        raise Violation(f"conservation: the totals of events do not balance: {events}")
    journal = health["journal"]["appended_points"]
    for sink in health["sinks"]:
        ends = ("written", "dead_lettered", "dropped", "left_out")
        accounted = sum(sink[f"points_{end}"] for end in ends)
        if sink["held_at_start"] + journal != accounted + sink["held"]:
            raise Violation(
                f"conservation: the totals of a sink do not balance: {sink}, appended {journal}"
            )
    is_complete = health["connection"]["is_subscribed"] and not health["gaps"]["open"]
    if health["status"] == "healthy" and is_complete and not events["pending"]:
        _check_nothing_is_missing(world)
    world.watch.meanwhile(world, health)
    return health


def _check_nothing_is_missing(world: World) -> None:
    """While health is good, events stream and no gap is open, nothing is missing in the journal."""
    table, fired = world.house.recorder_.table, world.house.fired
    for row in table[world.verified_rows :]:
        identity = row.entity_id, row.updated_ns
        if fired[identity] > world.loop.time() - _UNNOTICED_S:
            break
        is_missing = identity not in world.captured and fired[identity] >= world.since_s
        is_left_out = world.filter.is_left_out(identity)
        if is_missing and not is_left_out and why_missing(world, identity) is None:
            raise Violation(f"honesty: health is good, and the journal lacks {row}")
        world.verified_rows += 1


async def check_end(world: World) -> None:
    """Check everything at the end, when all is settled."""
    check_settled(world, await check_meanwhile(world))
    _check_conservation(world)
    _check_order(world)
    _check_recorder(world)
    await _check_views(world)


def _check_conservation(world: World) -> None:
    """Each sink has what the journal acknowledged since it was configured, and nothing before."""
    lines = list(world.acknowledged)
    events = world.life.folder / "events.db"
    with closing(sqlite3.connect(events)) as connection:
        embedded = {*connection.execute("SELECT entity_id, time_ns FROM events")}
    points = world.database.points_of(lines)
    _check_sink(world, "influxdb", world.database.stored, list(map(identity, lines)))
    _check_sink(world, "embedded", embedded, [_identity_of(point) for point in points])


def _check_sink(world: World, sink: str, stored: Container[Any], identities: list[Any]) -> None:
    """`identities` are those of all acknowledged lines."""
    since, places = world.sinks_since[sink], list(world.acknowledged.values())
    late = {each for each, (_, last) in zip(identities, places, strict=True) if last > since}
    if missing := [each for each in late if each not in stored]:
        raise Violation(f"conservation: {len(missing)} lines are not in {sink}: {_some(missing)}")
    if early := [each for each in identities if each not in late and each in stored]:
        raise Violation(
            f"conservation: {sink} got {len(early)} lines from before it was configured:"
            f" {_some(early)}"
        )


def _identity_of(point: StoredPoint) -> tuple[str, int]:
    return point.tags["entity_id"], point.time_ns


def _check_order(world: World) -> None:
    """Lines arrive for the first time in the journal's order.

    Probes of one line may be ahead, and dead letters arrive when they are sent again. A line that
    was refused may arrive behind newer ones of the same request, which the database stored.
    """
    arrived: list[tuple[int, int]] = []
    newest = -1
    for request, size, line in world.database.arrivals:
        places = world.acknowledged.get(line)
        if places is None or line in world.dead_letters:
            continue
        first, last = places
        if last < newest:
            refused = world.database.refused[line]
            if last < max((place for place, in_ in arrived if in_ not in refused), default=-1):
                raise Violation(f"order: {line!r} arrived behind a newer line")
        if size > 1:
            newest = max(newest, first)
            arrived.append((first, request))


def _before_database(world: World) -> list[bytes]:
    """Return what was journaled before InfluxDB was configured: only the journal had it."""
    since = world.sinks_since["influxdb"]
    return [line for line, (_, last) in world.acknowledged.items() if last <= since]


def _check_recorder(world: World) -> None:
    """The database has every row of the recorder since it was configured, once, with its fields."""
    points = world.database.points_of([*_before_database(world), *world.database.stored.values()])
    fired = world.house.fired
    invented = [point for point in points if (point.tags["entity_id"], point.time_ns) not in fired]
    if invented:
        raise Violation(f"conservation: {len(invented)} points never happened: {invented[:3]}")
    result = compare(
        world.house.recorder_.table,
        [point for point in points if point.tags["entity_id"] != EXCLUDED],
        since_ns=0,
        until_ns=MAX_TIME_NS,
        history=history(world),
    )
    world.note(result.summary().replace("\n", "; "))
    differences = [
        found
        for found in result.differences
        if not (
            _is_of_unmarked_start(found, world)
            or _is_sent_from_memory(found, world)
            or _is_left_out(found, world)
        )
    ]
    if differences:
        raise Violation(
            f"conservation: {len(differences)} differences from the recorder:"
            f" {_some(map(str, differences))}"
        )


def _is_left_out(found: Difference, world: World) -> bool:
    """Whether the filter excluded the change whenever it came, live or read back."""
    return found.what == "missing" and world.filter.is_left_out((found.entity_id, found.time_ns))


def _is_of_unmarked_start(found: Difference, world: World) -> bool:
    """Whether a previous state stands there because a kill took the mark of a start."""
    if found.what not in {"previous_state", "duration_in_state_seconds"}:
        return False
    recorder = world.house.recorder_
    read_s = world.captured.get((found.entity_id, found.time_ns), 0.0)
    # The other signs of a start may be purged, and its mark not be committed yet.
    late = [at_ns for at_ns, at_s in recorder.marked_s.items() if at_s > read_s]
    unmarked = [*world.house.unmarked_ns, *(late if recorder.purged_s else ())]
    after_ns = (found.time_ns - at_ns for at_ns in unmarked)
    return found.is_backfilled and any(abs(time_ns) < _UNMARKED_NS for time_ns in after_ns)


def _is_sent_from_memory(found: Difference, world: World) -> bool:
    """Whether a change has a second series only because a kill took what was never durable.

    The database got it from memory while the disk failed, and then it was read back with the
    tags of another area.
    """
    if found.what != "twice" or not (world.disk_faults and world.service_kills_ns):
        return False
    change = found.entity_id, found.time_ns
    lines = [line for line in world.database.stored.values() if identity_of(line) == change]
    return sum(line in world.acknowledged for line in lines) == 1


async def _check_views(world: World) -> None:
    """`/api/v1/gaps` and `/metrics` say what `/health` says, and no gap is left."""
    client = world.life.client
    assert client is not None
    gaps = (await client.get("/api/v1/gaps")).json()["gaps"]
    metrics = _metrics((await client.get("/metrics")).text)
    health = (await client.get("/health")).json()
    states = Counter(gap["state"] for gap in gaps)
    if set(states) - {"filled", "nothing_recorded"}:
        raise Violation(f"honesty: gaps are {states} although the recorder has everything")
    _check_bounds(world, gaps)
    filled = states["filled"] + states["nothing_recorded"]
    if (filled, states["nothing_recorded"]) != (
        health["gaps"]["filled"],
        health["gaps"]["nothing_recorded"],
    ):
        raise Violation(f"honesty: /health has {health['gaps']} and /api/v1/gaps {states}")
    events = health["accounting"]["events"]
    shown = {
        "ingest_events_received_total": events["received"],
        "ingest_events_journaled_total": events["journaled"],
        **{
            f'ingest_sink_points_written_total{{sink="{sink["name"]}"}}': sink["points_written"]
            for sink in health["sinks"]
        },
    }
    for name, value in shown.items():
        if metrics.get(name) != value:
            raise Violation(f"honesty: /metrics has {name} {metrics.get(name)}, /health {value}")


def _check_bounds(world: World, gaps: Sequence[Mapping[str, Any]]) -> None:
    """What was read back lies within a gap, or near it, and what a gap lists was read back."""
    points = world.database.points_of([x for x in world.acknowledged if b"backfilled=true" in x])
    found = [(point.tags["entity_id"], moment_of(point.time_ns)) for point in points]
    spans = [
        (datetime.fromisoformat(gap["start"]) - _NEAR, datetime.fromisoformat(gap["end"]) + _NEAR)
        for gap in gaps
    ]
    for name, moment in found:
        if not any(start <= moment <= end for start, end in spans):
            raise Violation(f"honesty: {name} at {moment} was read back, and lies in no gap")
    for gap, (start, end) in zip(gaps, spans, strict=True):
        here = {name for name, moment in found if start <= moment <= end}
        if missing := {*gap["unrecorded"]} - here:
            raise Violation(f"honesty: {missing} were not read back, and a gap says so: {gap}")


def _metrics(text: str) -> Mapping[str, float]:
    """Return the value of each sample by its name and labels."""
    samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def _some(things: Any) -> str:
    listed = [str(thing) for thing in things]
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return "\n  ".join(["", *listed[:_LISTED]]) + more
