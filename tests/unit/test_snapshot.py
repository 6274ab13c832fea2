"""How the picture of health is judged: what degrades it, and what breaks it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.health import Snapshot
from tests.fakes.snapshots import HEALTHY, UNHEALTHY

DISK = "Events cannot be made durable: disk full."
LOSING = replace(HEALTHY, journal=replace(HEALTHY.journal, durable=False, losing=True, reason=DISK))
TROUBLES = {
    "Home Assistant": replace(
        HEALTHY, connection=replace(HEALTHY.connection, reason="Home Assistant is away.")
    ),
    "the journal": replace(HEALTHY, journal=replace(HEALTHY.journal, reason=DISK)),
    "a database": replace(HEALTHY, sinks=[replace(HEALTHY.sinks[0], reason="InfluxDB is away.")]),
    "stale registries": replace(
        HEALTHY, discovery=replace(HEALTHY.discovery, is_stale=True, reason="They are old.")
    ),
    "dead letters": replace(HEALTHY, dead_letters=2),
    "lost dead letters": replace(HEALTHY, dead_letters_discarded=2),
    "memory": replace(HEALTHY, memory_mb=501.0, memory_limit_mb=500.0),
}


def test_a_service_without_troubles_is_healthy() -> None:
    """There is nothing to say, and events can be journaled."""
    assert (HEALTHY.status, HEALTHY.reasons, HEALTHY.ready) == ("healthy", (), True)


@pytest.mark.parametrize("name", TROUBLES)
def test_a_neighbor_in_trouble_degrades_and_nothing_more(name: str) -> None:
    """A person should look, and one sentence says why; capture goes on all the same."""
    snapshot = TROUBLES[name]

    assert (snapshot.status, len(snapshot.reasons), snapshot.ready) == ("degraded", 1, True)


@pytest.mark.parametrize(
    ("snapshot", "reason"),
    [
        (UNHEALTHY, "The source loop ended: KeyError('id')."),
        (LOSING, "Events are being dropped: neither the disk nor memory takes any more"),
    ],
)
def test_a_broken_process_is_unhealthy_and_not_ready(snapshot: Snapshot, reason: str) -> None:
    """A loop ended, or disk and memory both refuse."""
    assert (snapshot.status, snapshot.ready) == ("unhealthy", False)
    assert snapshot.reasons[0].startswith(reason)


def test_the_worst_is_said_first() -> None:
    """What breaks the process stands before what only troubles it."""
    assert len(LOSING.reasons) == 2
    assert LOSING.reasons[1] == DISK
