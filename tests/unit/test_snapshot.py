"""The status of a snapshot: what degrades it, and what makes it unhealthy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.health import DataApiStatus, Snapshot
from tests.fakes.snapshots import HEALTHY, UNHEALTHY

DISK = "Events cannot be made durable: disk full."
LOSING = replace(HEALTHY, journal=replace(HEALTHY.journal, durable=False, losing=True, reason=DISK))
PROBLEMS = {
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
    "memory": replace(HEALTHY, performance=replace(HEALTHY.performance, memory_mb=501.0)),
    "the data API": replace(HEALTHY, data_api=DataApiStatus(reason="The data API is down.")),
    "the entity filter": replace(HEALTHY, filter_reason="The entity filter is invalid."),
    "gaps": replace(HEALTHY, gaps=replace(HEALTHY.gaps, reason="A gap cannot be filled.")),
    "a damaged file": replace(HEALTHY, damage=["metadata.db was damaged."]),
}


def test_a_service_without_problems_is_healthy() -> None:
    """It gives no reasons, and events can be journaled."""
    assert (HEALTHY.status, HEALTHY.reasons, HEALTHY.ready) == ("healthy", (), True)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_failing_dependency_makes_the_service_degraded_and_not_unhealthy(name: str) -> None:
    """One sentence says why; events are still captured."""
    snapshot = PROBLEMS[name]

    assert (snapshot.status, len(snapshot.reasons), snapshot.ready) == ("degraded", 1, True)


@pytest.mark.parametrize(
    ("snapshot", "reason"),
    [
        (UNHEALTHY, "The source loop ended: KeyError('id')."),
        (LOSING, "Events are being dropped: neither the disk nor memory has room for more"),
    ],
)
def test_a_broken_process_is_unhealthy_and_not_ready(snapshot: Snapshot, reason: str) -> None:
    """A task ended, or neither disk nor memory has room."""
    assert (snapshot.status, snapshot.ready) == ("unhealthy", False)
    assert snapshot.reasons[0].startswith(reason)


def test_the_worst_reason_of_health_comes_first() -> None:
    """What makes the service unhealthy comes before what only degrades it."""
    assert len(LOSING.reasons) == 2
    assert LOSING.reasons[1] == DISK
