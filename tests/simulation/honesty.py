"""What health, breakers and dead letters say, compared with what really is.

A `Watch` belongs to one world: some promises are about how long something lasts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from app.model import SECOND_NS, Times
from app.schema.homeiq import identity_of
from tests.simulation import truth
from tests.simulation.database import identity
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World

_NOTICED_S = 90.0
"""Health may take so long to show what is wrong: pings, timeouts and retries."""
_SILENT_S = 180.0
_HELD = 20
_BEFORE_SET_BACK_NS = 3_600 * SECOND_NS


class Watch:
    """Since when something is wrong in a world."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def meanwhile(self, world: World, health: Mapping[str, Any]) -> None:
        """Check that health admits what is wrong for a while."""
        now_s = world.loop.time()
        problems = dict(_problems(world, health))
        self._since = {
            name: self._since.get(name, now_s) for name, wrong in problems.items() if wrong
        }
        lasting = [name for name, at_s in self._since.items() if now_s - at_s >= _NOTICED_S]
        if lasting and health["status"] == "healthy":
            raise Violation(f"honesty: health is healthy although {', '.join(lasting)}")
        if health["status"] == "unhealthy":  # only then the service is not ready
            raise Violation(f"readiness: nothing is dropped, but {health['reasons']}")
        if world.database.early:
            raise Violation(f"courtesy: {world.database.early} writes within a Retry-After")
        if health["dead_letters"] and not world.database.in_refused_requests:
            raise Violation("conservation: there are dead letters although nothing was refused")


def _problems(world: World, health: Mapping[str, Any]) -> dict[str, bool]:
    """Return what is wrong in this process of the service."""
    life, recorder = world.lives, world.house.recorder_
    held = sum(sink["held"] for sink in health["sinks"] if sink["name"] == "influxdb")
    silent_s = world.loop.time() - world.database.kept_at
    problems = {
        f"Home Assistant is down ({life})": not world.is_home_assistant_up,
        f"the database stores nothing ({life})": held > _HELD and silent_s > _SILENT_S,
    }
    if recorder.backlog(world.loop.time()):
        problems |= {
            f"the recorder of gap {gap.id} is behind ({life})": True
            for gap in world.coverage.open_gaps()
        }
    return problems


def check_settled(world: World, health: Mapping[str, Any]) -> None:
    """Check that nothing is left of the faults."""
    breakers = {sink["name"]: sink["breaker"] for sink in health["sinks"]}
    breakers["home_assistant"] = health["circuit_breaker"]["state"]
    if set(breakers.values()) != {"closed"}:
        raise Violation(f"honesty: breakers are {breakers} although all is settled")
    _check_once(world)
    _check_places(world)
    _check_filter(world)


def _check_once(world: World) -> None:
    """What came live was journaled once; the span before a gap may be read back again.

    So may what was only in memory while the disk failed (sinks that have it need no journal), what
    is near a gap that was given up (rows are retained for open gaps), and the times that a clock
    shows twice, with the hour before them.
    """
    lines: dict[tuple[bytes, bytes], set[bytes]] = defaultdict(set)
    for line in world.acknowledged:
        lines[identity(line)].add(line)
    gaps = [gap for gap in world.coverage.gaps() if gap.reason == "clock"]
    spans = [truth.requested(gap) for gap in (*gaps, *world.given_up.values())]
    spans += [Times(each.to_ns - _BEFORE_SET_BACK_NS, each.from_ns) for each in world.clock_sets]
    twice = [
        sorted(each)
        for each in lines.values()
        if len(each) > 1
        and not all(b"backfilled=true" in line for line in each)
        and (change := identity_of(min(each))) is not None
        and change not in world.uncommitted
        and not any(span.oldest_ns <= change[1] <= span.newest_ns for span in spans)
    ]
    if twice:
        raise Violation(f"conservation: {len(twice)} changes were journaled twice: {twice[:2]}")


def _check_places(world: World) -> None:
    """Entities are where the registries say."""
    assert world.life.container is not None
    catalog = world.life.container.catalog()
    areas = {row["id"]: row["area_id"] for row in world.house.rows["device"]}
    for row in world.house.rows["entity"]:
        entity_id = str(row["entity_id"])
        known, area = catalog.placement(entity_id).area_id, areas[row["device_id"]]
        if known != area:
            raise Violation(f"honesty: {entity_id} is in {area} and known to be in {known}")


def _check_filter(world: World) -> None:
    """Everything that is written has passed the filter, live or when it was read back."""
    points = world.database.points_of(list(world.acknowledged))
    identities = {(point.tags["entity_id"], point.time_ns) for point in points}
    if wrong := [each for each in identities if not world.filter.has_passed(each)]:
        raise Violation(f"filter: {len(wrong)} changes were written and not asked for: {wrong[:3]}")
