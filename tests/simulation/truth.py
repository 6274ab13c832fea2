"""What the faults of Home Assistant's recorder and clock take from what can be read back.

Each exemption is for the rows that a fault really took, not for all rows of such a world.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from app.model import SECOND_NS, Gap, Times
from tests.real.reconcile import History, Row, Rule
from tests.simulation.house import Identity

if TYPE_CHECKING:
    from tests.simulation.world import World

_BEYOND_NS = 30 * SECOND_NS
"""How far beyond the bounds of a gap changes are requested."""


def history(world: World) -> History:
    """Return what the recorder's table does not show."""
    house = world.house
    exempt = dict.fromkeys(house.recorder_.lost, Rule.KILLED)
    exempt |= dict.fromkeys(house.recorder_.missed, Rule.NOT_RECORDED)
    exempt |= {
        identity: rule
        for row in house.recorder_.table
        if (rule := why_missing(world, identity := _identity(row))) is not None
    }
    return History(
        renames=house.renames,
        present=[name for name, each in house.entities.items() if each.row is not None],
        service_kills_ns=world.service_kills_ns,
        exempt=exempt,
        before_doubtful={_identity(row) for row in _out_of_order(world)},
        before_unknown={_identity(row) for row in _after_purged(world)},
        outside={identity for identity, at_s in house.fired.items() if at_s < world.since_s},
    )


def requested(gap: Gap) -> Times:
    """Return the span of which changes were requested for a gap."""
    return Times(gap.start_ns - _BEYOND_NS, gap.end_ns + _BEYOND_NS)


def why_missing(world: World, identity: Identity) -> Rule | None:
    """Return why a row of the recorder may be missing.

    It had been purged when its gap was read, and the gap says so, or the clock was set twice.
    """
    if _is_between_sets(world, world.house.fired[identity]):
        return Rule.CLOCK_SET_TWICE
    purged_s = world.house.recorder_.purged_s.get(identity)
    if purged_s is None:
        return None
    for gap in world.coverage.gaps():
        span = requested(gap)
        is_of_gap = span.oldest_ns <= identity[1] <= span.newest_ns
        was_purged = purged_s <= world.closed_s.get(gap.id, -1.0)
        if is_of_gap and was_purged and _admits(gap):
            return Rule.PURGED
    return None


def _is_between_sets(world: World, at_s: float) -> bool:
    """Whether the clock was set at least twice while nothing was captured live around a moment."""
    if len(world.clock_sets) < 2:
        return False
    fired = world.house.fired
    live_s = [fired[identity] for identity in world.live if identity in fired]
    since_s = max((each for each in live_s if each <= at_s), default=0.0)
    until_s = min((each for each in live_s if each > at_s), default=math.inf)
    return sum(since_s <= each.at_s <= until_s for each in world.clock_sets) > 1


def _out_of_order(world: World) -> Iterator[Row]:
    """Yield the rows that do not follow the row before them in the order of their times.

    The clock was set back between the two, or shows the time of other rows a second time.
    """
    spans = [(each.to_ns, each.from_ns) for each in world.clock_sets]
    newest: dict[str, int] = {}
    for row in sorted(world.house.recorder_.table, key=lambda row: (row.updated_ns, row.state_id)):
        before, newest[row.entity_id] = newest.get(row.entity_id), row.state_id
        if row.old_state_id is not None:
            is_out_of_order = before != row.old_state_id
        else:
            is_out_of_order = any(start <= row.updated_ns <= end for start, end in spans)
        if is_out_of_order:
            yield row


def _admits(gap: Gap) -> bool:
    """Whether a gap says that rows may be missing because they were purged."""
    return gap.state == "nothing_recorded" or any("purged" in text for text in gap.limitations)


def _after_purged(world: World) -> Iterator[Row]:
    """Yield the rows that were read when the one before them had been purged.

    Not where the service must know that one itself.
    """
    table, purged_s = world.house.recorder_.table, world.house.recorder_.purged_s
    by_id = {row.state_id: _identity(row) for row in table}
    for row in table:
        before = None if row.old_state_id is None else by_id.get(row.old_state_id)
        if before not in purged_s or purged_s[before] > world.captured.get(_identity(row), -1.0):
            continue
        if not _is_remembered(world, before, row.updated_ns):
            yield row


def _is_remembered(world: World, before: Identity, time_ns: int) -> bool:
    """Whether a change came live, and all that was missed until a later time is one gap.

    The recorder reaches back to its beginning, so nothing else can be missing.
    """
    gaps = world.coverage.gaps()
    since = [gap for gap in gaps if before[1] <= gap.end_ns and gap.start_ns <= time_ns]
    if before not in world.live or len(since) != 1:
        return False
    (gap,) = since
    return before[1] < gap.start_ns and not _admits(gap)


def _identity(row: Row) -> Identity:
    return row.entity_id, row.updated_ns
