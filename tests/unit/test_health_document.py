"""The JSON of `/health`: a contract with dashboards and scripts that read it."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from app.health import Snapshot
from tests.fakes.service import api_client, components
from tests.fakes.snapshots import DEGRADED, HEALTHY, UNHEALTHY

HEALTHY_DOCUMENT: dict[str, object] = {
    "status": "healthy",
    "reasons": [],
    "service": "websocket-ingestion",
    "version": "0.1.0",
    "timestamp": "2026-11-23T12:00:00.123456Z",
    "uptime": "0:37:39.078000",
    "uptime_seconds": 2259.078,
    "connection": {
        "is_running": True,
        "current_state": "connected",
        "connection_attempts": 15,
        "successful_connections": 1,
        "failed_connections": 14,
        "last_successful": "2026-11-23T12:00:00.123456Z",
        "next_attempt_in_seconds": None,
        "ha_version": "2026.11.0",
        "ha_state": "RUNNING",
    },
    "subscription": {
        "is_subscribed": True,
        "total_events_received": 15,
        "event_rate_per_minute": 17.65,
        "last_event": "2026-11-23T12:00:00.123456Z",
    },
    "circuit_breaker": {"state": "closed", "failure_count": 0, "last_failure": None},
    "journal": {
        "pending_points": 2,
        "oldest_pending_seconds": 0.052,
        "bytes": 4096,
        "durable": True,
        "salvaged": 0,
    },
    "sinks": [
        {
            "name": "influxdb",
            "state": "ok",
            "points_written": 6,
            "held": 3,
            "lag_seconds": 1.5,
            "drained_in_seconds": 0.25,
            "last_write": "2026-11-23T12:00:00.123456Z",
            "last_error": None,
            "breaker": "closed",
        }
    ],
    "discovery": {
        "devices": 31,
        "entities": 108,
        "areas": 8,
        "last_refresh": "2026-11-23T12:00:00.123456Z",
        "is_stale": False,
    },
    "accounting": {
        "events": {
            "received": 15,
            "journaled": 8,
            "filtered": 1,
            "malformed": 1,
            "dropped": {"journal_stalled": 3},
            "pending": 2,
        }
    },
    "gaps": {"open": 0, "filled": 2, "unfillable": 0},
    "performance": {"memory_mb": 90.2, "cpu_percent": 2.3},
}
DEGRADED_DOCUMENT = HEALTHY_DOCUMENT | {
    "status": "degraded",
    "reasons": [
        "Home Assistant refuses the token. Check HOME_ASSISTANT_TOKEN.",
        (
            "2 points were refused by the database and wait as dead letters."
            " See /api/v1/dead-letters for why, then retry or delete them."
        ),
    ],
    "connection": {
        "is_running": True,
        "current_state": "waiting",
        "connection_attempts": 4,
        "successful_connections": 0,
        "failed_connections": 4,
        "last_successful": None,
        "next_attempt_in_seconds": 7.778,
        "ha_version": None,
        "ha_state": None,
    },
    "subscription": {
        "is_subscribed": False,
        "total_events_received": 15,
        "event_rate_per_minute": 17.65,
        "last_event": "2026-11-23T12:00:00.123456Z",
    },
    "circuit_breaker": {
        "state": "open",
        "failure_count": 5,
        "last_failure": "2026-11-23T12:00:00.123456Z",
    },
}
UNHEALTHY_DOCUMENT = HEALTHY_DOCUMENT | {
    "status": "unhealthy",
    "reasons": [
        "The source loop ended: KeyError('id'). The service is stopping; see the log.",
    ],
    "connection": {**HEALTHY_DOCUMENT["connection"], "is_running": False},  # type: ignore[dict-item]
}


def _subset(found: object, expected: object) -> object:
    """Return the values in `found` of the members that `expected` names."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return {name: _subset(found[name], each) for name, each in expected.items()}
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        return [_subset(*pair) for pair in zip(found, expected, strict=True)]
    return found


@pytest.mark.parametrize(
    ("snapshot", "document"),
    [(HEALTHY, HEALTHY_DOCUMENT), (DEGRADED, DEGRADED_DOCUMENT), (UNHEALTHY, UNHEALTHY_DOCUMENT)],
    ids=["healthy", "degraded", "unhealthy"],
)
async def test_health_keeps_every_member_with_its_type_and_meaning(
    snapshot: Snapshot, document: dict[str, object]
) -> None:
    """Members may be added; none is renamed, removed or turned into something else."""
    async with api_client(components(snapshot=lambda: snapshot)) as client:
        found = (await client.get("/health")).json()

    assert _subset(found, document) == document


async def test_every_field_of_the_snapshot_is_a_member_of_health() -> None:
    """So a new field is served, and documented in `/docs`, without another edit."""
    async with api_client(components(snapshot=lambda: DEGRADED)) as client:
        found = (await client.get("/health")).json()
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]

    assert _names(found) == _names(asdict(DEGRADED))
    assert set(schemas["Snapshot"]["properties"]) == set(found)
    assert set(schemas["SinkStatus"]["properties"]) == set(found["sinks"][0])


def _names(value: object) -> object:
    """Return the names of all members, in their places."""
    match value:
        case dict():
            return {name: _names(each) for name, each in value.items()}
        case list() | tuple():
            return [_names(each) for each in value]
    return None
