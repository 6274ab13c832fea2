"""`/health`: the snapshot as JSON, and the two questions that orchestrators ask."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter, Response

from app.api.dependencies import ComponentsDep
from app.api.models import (
    AccountingHealth,
    Alive,
    BreakerHealth,
    ConnectionHealth,
    DiscoveryHealth,
    EventAccountingHealth,
    GapsHealth,
    Health,
    JournalHealth,
    PerformanceHealth,
    ProblemDocument,
    Ready,
    SinkHealth,
    SubscriptionHealth,
)
from app.api.problems import Problem, ProblemRaised
from app.health import Snapshot
from app.sinks.status_text import impersonal

router = APIRouter(tags=["health"])


@router.get(
    "/health",
    summary="State of the service and of its neighbors",
    responses={503: {"model": Health, "description": "This process itself is broken"}},
)
async def health(components: ComponentsDep, response: Response) -> Health:
    """Answer 200 while the process does its work, also when a neighbor is away."""
    report = render(components.snapshot())
    if report.status == "unhealthy":
        response.status_code = 503
    return report


@router.get("/health/live", summary="Whether the process answers")
async def live() -> Alive:
    """Ask nothing of anyone: a database that is down is no reason to restart this."""
    return Alive()


@router.get(
    "/health/ready",
    summary="Whether events can be journaled",
    responses={503: {"model": ProblemDocument, "description": "They cannot; `detail` says why"}},
)
async def ready(components: ComponentsDep) -> Ready:
    """Answer 503 with the reason when they cannot."""
    snapshot = components.snapshot()
    if not snapshot.ready:
        raise ProblemRaised(
            Problem(status=503, code="not_ready", detail=" ".join(_reasons(snapshot)))
        )
    return Ready()


def render(snapshot: Snapshot) -> Health:
    """Return the snapshot in the words of `/health`."""
    connection, journal, discovery = snapshot.connection, snapshot.journal, snapshot.discovery
    breaker, events = connection.breaker, snapshot.events
    return Health(
        status=snapshot.status,
        reasons=_reasons(snapshot),
        version=snapshot.version,
        timestamp=snapshot.timestamp,
        uptime=str(timedelta(seconds=snapshot.uptime_seconds)),
        uptime_seconds=round(snapshot.uptime_seconds, 3),
        connection=ConnectionHealth(
            is_running="source" not in snapshot.failures,
            current_state=connection.current_state,
            connection_attempts=connection.connection_attempts,
            successful_connections=connection.successful_connections,
            failed_connections=connection.failed_connections,
            last_successful=connection.last_successful,
            next_attempt_in_seconds=_rounded(connection.next_attempt_in_seconds),
            ha_version=connection.ha_version,
            ha_state=connection.ha_state,
        ),
        subscription=SubscriptionHealth(
            is_subscribed=connection.is_subscribed,
            total_events_received=events.received,
            event_rate_per_minute=round(snapshot.events_per_minute, 2),
            last_event=snapshot.last_event,
        ),
        circuit_breaker=BreakerHealth(
            state=breaker.state,
            failure_count=breaker.failure_count,
            last_failure=breaker.last_failure,
        ),
        journal=JournalHealth(
            pending_points=journal.pending_points,
            oldest_pending_seconds=round(journal.oldest_pending_seconds, 3),
            bytes=journal.bytes,
            durable=journal.durable,
            salvaged=journal.salvaged,
        ),
        sinks=[
            SinkHealth(
                name=sink.name,
                state=sink.state,
                points_written=sink.points_written,
                held=sink.held,
                lag_seconds=round(sink.lag_seconds, 3),
                drained_in_seconds=_rounded(sink.drained_in_seconds),
                last_write=sink.last_write,
                last_error=impersonal(sink.last_error or "") or None,
                breaker=sink.breaker.state,
            )
            for sink in snapshot.sinks
        ],
        discovery=DiscoveryHealth(
            devices=discovery.devices,
            entities=discovery.entities,
            areas=discovery.areas,
            last_refresh=discovery.last_refresh,
            is_stale=discovery.is_stale,
        ),
        accounting=AccountingHealth(
            events=EventAccountingHealth(
                received=events.received,
                journaled=events.journaled,
                filtered=events.filtered,
                malformed=events.malformed,
                dropped=dict(events.dropped),
                pending=events.pending,
            )
        ),
        gaps=GapsHealth(
            open=snapshot.gaps.open,
            filled=snapshot.gaps.filled + snapshot.gaps.nothing_recorded,
            unfillable=snapshot.gaps.unfillable,
        ),
        performance=PerformanceHealth(
            memory_mb=round(snapshot.memory_mb, 1), cpu_percent=round(snapshot.cpu_percent, 1)
        ),
    )


def _reasons(snapshot: Snapshot) -> list[str]:
    return [impersonal(reason) for reason in snapshot.reasons]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
