"""Example health snapshots and state changes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from app.health import (
    Accounting,
    ConnectionStatus,
    DiscoveryStatus,
    EventAccounting,
    GapsStatus,
    JournalStatus,
    PerformanceStatus,
    SinkStatus,
    Snapshot,
    SubscriptionStatus,
)
from app.model import NOWHERE, Change, Context, Placement
from app.runtime.retry import BreakerStatus

NOON = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)
NOON_NS = 1_795_435_200_123_456_000

HEALTHY = Snapshot(
    version="0.1.0",
    timestamp=NOON,
    uptime_seconds=2259.078,
    connection=ConnectionStatus(
        current_state="connected",
        connection_attempts=15,
        successful_connections=1,
        failed_connections=14,
        last_successful=NOON,
        ha_version="2026.11.0",
        ha_state="RUNNING",
        is_subscribed=True,
    ),
    subscription=SubscriptionStatus(
        is_subscribed=True,
        total_events_received=15,
        event_rate_per_minute=17.65,
        last_event=NOON,
    ),
    journal=JournalStatus(
        pending_points=2, oldest_pending_seconds=0.052, bytes=4096, appended_points=8
    ),
    sinks=(
        SinkStatus(
            name="influxdb",
            held_at_start=3,
            points_written=6,
            points_dead_lettered=1,
            points_dropped=1,
            held=3,
            lag_seconds=1.5,
            drained_in_seconds=0.25,
            last_write=NOON,
        ),
    ),
    gaps=GapsStatus(filled=2, backfilled=12),
    discovery=DiscoveryStatus(devices=31, entities=108, areas=8, last_refresh=NOON),
    accounting=Accounting(
        events=EventAccounting(
            received=15,
            journaled=8,
            filtered=1,
            malformed=1,
            dropped={"journal_stalled": 3},
            pending=2,
        )
    ),
    performance=PerformanceStatus(memory_mb=90.2, memory_limit_mb=500.0, cpu_percent=2.3),
)
DEGRADED = replace(
    HEALTHY,
    connection=ConnectionStatus(
        current_state="waiting",
        connection_attempts=4,
        failed_connections=4,
        next_attempt_in_seconds=7.778,
        reason="Home Assistant refuses the token. Check HOME_ASSISTANT_TOKEN.",
        breaker=BreakerStatus(state="open", failure_count=5, last_failure=NOON),
    ),
    subscription=replace(HEALTHY.subscription, is_subscribed=False),
    dead_letters=2,
)
UNHEALTHY = replace(
    HEALTHY,
    connection=replace(HEALTHY.connection, is_running=False),
    failures={"source": "KeyError('id')"},
)


def change(
    entity_id: str = "sensor.kitchen",
    state: str | None = "21.5",
    *,
    number: int = 0,
    area_id: str | None = None,
    device_class: str | None = "temperature",
    attributes: bytes = b'{"state_class":"measurement"}',
    friendly_name: str | None = "Kitchen",
) -> Change:
    """Return a change; `number` shifts its time by so many microseconds."""
    return Change(
        entity_id=entity_id,
        domain=entity_id.partition(".")[0],
        time_ns=NOON_NS + number * 1_000,
        state=state,
        previous_state="21.4",
        duration_s=60.0,
        attributes=attributes,
        device_class=device_class,
        unit_of_measurement="°C",
        friendly_name=friendly_name,
        context=Context(id="01JQ8T3X5E7W9V0R2M4N6B8C1D"),
        placement=Placement(area_id=area_id, area_name=area_id and area_id.title())
        if area_id
        else NOWHERE,
    )
