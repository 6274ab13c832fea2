"""What each fault must change in a world: a fault without an effect tests nothing.

`python -m tests.simulation --each-kind` runs a short world with each kind of fault, and the same
world without it. The effect must show in the first and not in the second.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from tests.simulation.house import EXCLUDED

if TYPE_CHECKING:
    from tests.simulation.world import World

_DELAY_S = 0.1
"""Nothing takes longer without a fault: neither a statement nor a packet."""


@dataclass(frozen=True, slots=True)
class Effect:
    """How a fault shows."""

    shows: Callable[[World], object]
    """Return something true if it shows in a world that has ended."""
    beside: tuple[str, ...] = ()
    """Other kinds of faults that it needs, which then are in both worlds."""


def logged(*patterns: str) -> Callable[[World], bool]:
    """Return whether each pattern is in what the service did, according to the log."""

    def shows(world: World) -> bool:
        lines = [line for line in world.log if "  --- " not in line]
        return all(any(re.search(pattern, line) for line in lines) for pattern in patterns)

    return shows


def _kills_in_a_row(world: World) -> bool:
    kills = world.service_kills_ns
    return any(after - kill < 15e9 for kill, after in pairwise(kills))


def _has_moved(world: World) -> bool:
    areas = defaultdict(set)
    for point in world.database.points_of():
        areas[point.tags["entity_id"]].add(point.tags.get("area_id"))
    return any(len(each) > 1 for each in areas.values())


def _has_added_sink(world: World) -> bool:
    return any(0 < since < world.calm_since for since in world.sinks_since.values())


def _has_left_out(world: World) -> bool:
    return any(entity_id != EXCLUDED for entity_id, _ in world.filter.left_out)


EFFECTS: Mapping[str, Effect] = {
    "crash": Effect(logged(r"service is killed$", r"Backfilled")),
    "crash_in_statement": Effect(logged(r"service is killed inside a statement")),
    "crash_between_steps": Effect(logged(r"service is killed between two steps")),
    "crash_in_start": Effect(logged(r"service is killed between two steps while it starts")),
    "crash_in_stop": Effect(logged(r"service is killed between two steps while it stops")),
    "crash_in_backfill": Effect(
        logged(r"service is killed between two steps$"), beside=("cut_home_assistant",)
    ),
    "crash_repeatedly": Effect(_kills_in_a_row),
    "terminate": Effect(lambda world: world.restarts and not world.service_kills_ns),
    "remove_sink": Effect(logged(r"points for '\w+', which is not set up")),
    "add_sink": Effect(_has_added_sink),
    "change_filter": Effect(_has_left_out),
    "set_our_clock": Effect(lambda world: world.clocks_apart_s > _DELAY_S),
    "disk_fails": Effect(logged(r"Events are not durable")),
    "slow_disk": Effect(lambda world: world.loop.longest_work_s > _DELAY_S),
    "revoke_token": Effect(logged(r"Home Assistant refused the token")),
    "cut_home_assistant": Effect(logged(r"Lost Home Assistant: .*no close frame")),
    "silence_home_assistant": Effect(logged(r"Lost Home Assistant: .*ping timeout")),
    "slow_home_assistant": Effect(lambda world: world.home_link.longest_s > _DELAY_S),
    "split_frames": Effect(lambda world: world.home_link.pieces + world.database_link.pieces),
    "cut_inside_frame": Effect(lambda world: world.home_link.torn + world.database_link.torn),
    "half_close": Effect(lambda world: world.database_link.halves),
    "garbled_frame": Effect(logged(r"Unreadable message from Home Assistant")),
    "restart_home_assistant": Effect(
        logged(r"Lost Home Assistant: .*received 1000", r"No connection to Home Assistant")
    ),
    "kill_home_assistant": Effect(
        logged(r"Lost Home Assistant: .*no close frame", r"No connection to Home Assistant")
    ),
    "lock_recorder": Effect(lambda world: world.house.recorder_.held_back),
    "remove_entity": Effect(
        lambda world: any(b"removed=true" in line for line in world.database.stored.values())
    ),
    "move_area": Effect(_has_moved),
    "kill_database": Effect(logged(r"InfluxDB has not been taking writes .*nothing listens")),
    "silence_database": Effect(logged(r"InfluxDB has not been taking writes .*no answer in time")),
    "cut_database": Effect(lambda world: world.database_link.resets),
    "database_answers": Effect(logged(r"InfluxDB has (not been taking|been refusing) writes")),
    "refuse_lines": Effect(logged(r"is a dead letter of influxdb: .*unable to parse: simulated")),
    "late_recorder": Effect(lambda world: world.house.recorder_.late),
    "purge_recorder": Effect(lambda world: world.house.recorder_.purged_s),
    "purge_between_queries": Effect(
        lambda world: world.house.recorder_.purged_s, beside=("cut_home_assistant",)
    ),
    "remove_recorder": Effect(lambda world: world.house.recorder_.missed),
    "refuse_command": Effect(logged(r"Unknown command"), beside=("cut_home_assistant",)),
    "fail_history": Effect(lambda world: world.house.failures, beside=("cut_home_assistant",)),
    "set_state": Effect(lambda world: world.house.states_set),
    "set_home_clock": Effect(lambda world: world.clock_sets),
    "field_type_conflict": Effect(logged(r"is a dead letter of influxdb: .*type conflict")),
}
