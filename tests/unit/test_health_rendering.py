"""The snapshot in the words of `/health` and of `/metrics`."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from app.api.health import render
from app.api.metrics import SnapshotCollector
from app.health import DataApiStatus, SinkStatus
from tests.fakes.snapshots import DEGRADED, HEALTHY, UNHEALTHY


def test_health_is_exactly_the_agreed_json() -> None:
    """Dashboards of the predecessor read these names; none may be missing or renamed."""
    assert json.loads(render(HEALTHY).model_dump_json()) == {
        "status": "healthy",
        "reasons": [],
        "service": "websocket-ingestion",
        "version": "0.1.0",
        "timestamp": "2026-11-23T12:00:00.123456Z",
        "uptime": "0:37:39.078230",
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


def test_a_degraded_service_says_why() -> None:
    """The reasons are the snapshot's sentences; the next attempt is rounded for people."""
    report = render(DEGRADED)

    assert report.status == "degraded"
    assert list(DEGRADED.reasons) == report.reasons
    assert report.connection.next_attempt_in_seconds == 7.778
    assert (report.circuit_breaker.state, report.circuit_breaker.failure_count) == ("open", 5)


def test_a_source_that_ended_does_not_run() -> None:
    """`is_running` is about our loop, not about Home Assistant."""
    assert [
        render(DEGRADED).connection.is_running,
        render(UNHEALTHY).connection.is_running,
    ] == [True, False]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("401 unauthorized access", "401 unauthorized access"),
        (
            "400 unable to parse 'm,area_id=annas\\ room,entity_id=sensor.anna value=x 1': no",
            "400 unable to parse 'm…",
        ),
        ('422 bad field friendly_name="Anna\'s lamp" of a point', "422 bad field …"),
        (
            '400 input field "value" on measurement "m" is type string, already exists as float',
            '400 input field "value" on measurement "m" is type string, already exists as float',
        ),
    ],
)
def test_a_point_that_a_database_quotes_is_not_shown(said: str, shown: str) -> None:
    """Health is open to everyone, and names neither entities nor people."""
    sink = SinkStatus(
        name="influxdb", state="refusing", last_error=said, reason=f"InfluxDB refuses: {said}"
    )

    report = render(replace(HEALTHY, sinks=(sink,)))

    assert report.sinks[0].last_error == shown
    assert report.reasons == [f"InfluxDB refuses: {shown}"]


def _samples(registry: CollectorRegistry) -> dict[str, float]:
    lines = generate_latest(registry).decode().splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }


def test_the_books_of_the_metrics_balance() -> None:
    """Events and the points of every sink: what came in is what went, by name, or waits."""
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(lambda: HEALTHY))

    sample = _samples(registry)

    assert sample["ingest_events_received_total"] == (
        sample["ingest_events_journaled_total"]
        + sample["ingest_events_filtered_total"]
        + sample["ingest_events_malformed_total"]
        + sample['ingest_events_dropped_total{cause="journal_stalled"}']
        + sample["ingest_events_pending"]
    )
    sink = '{sink="influxdb"}'
    assert sample[f"ingest_sink_points_held_at_start{sink}"] + sample[
        "ingest_journal_points_total"
    ] == (
        sample[f"ingest_sink_points_written_total{sink}"]
        + sample[f"ingest_sink_points_dead_lettered_total{sink}"]
        + sample[f"ingest_sink_points_dropped_total{sink}"]
        + sample[f"ingest_sink_points_held{sink}"]
    )


def test_points_too_old_for_the_database_are_dropped_with_a_cause() -> None:
    """Beside those that the journal dropped, so that the sum of both is what a sink never had."""
    registry = CollectorRegistry()
    sinks = (SinkStatus(name="influxdb", points_dropped=12, points_expired=10),)
    registry.register(SnapshotCollector(lambda: replace(HEALTHY, sinks=sinks)))

    sample = _samples(registry)

    assert sample['ingest_sink_points_dropped_total{sink="influxdb"}'] == 2
    assert sample['ingest_sink_points_dropped_total{cause="retention",sink="influxdb"}'] == 10


def test_states_are_told_as_one_of_many() -> None:
    """Exactly one of the possible states is 1."""
    registry = CollectorRegistry()
    sinks = (SinkStatus(name="influxdb", state="holding"), SinkStatus(name="embedded"))
    registry.register(SnapshotCollector(lambda: replace(DEGRADED, sinks=sinks)))

    sample = _samples(registry)

    ones = {name for name, value in sample.items() if "state=" in name and value == 1}
    assert {
        'ingest_health_status{state="degraded"}',
        'ingest_connection_state{state="waiting"}',
        'ingest_connection_breaker_state{state="open"}',
        'ingest_sink_state{sink="influxdb",state="holding"}',
        'ingest_sink_state{sink="embedded",state="ok"}',
        'ingest_sink_breaker_state{sink="influxdb",state="closed"}',
        'ingest_sink_breaker_state{sink="embedded",state="closed"}',
    } == ones


def test_registering_takes_no_snapshot() -> None:
    """The collector is registered before the parts it shows are open."""

    def too_early() -> None:
        raise AssertionError

    CollectorRegistry().register(SnapshotCollector(too_early))  # type: ignore[arg-type]


def test_names_keep_the_house_rules() -> None:
    """Everything is called `ingest_…`, and all that counts up ends in `_total`."""
    metrics = list(SnapshotCollector(lambda: HEALTHY).collect())

    assert all(metric.name.startswith("ingest_") for metric in metrics)
    assert all(
        sample.name.endswith("_total")
        for metric in metrics
        if metric.type == "counter"
        for sample in metric.samples
    )


def test_the_data_api_the_filter_and_transforms_are_told() -> None:
    """What a person must mend stands in /health, how much it is in /metrics."""
    snapshot = replace(
        HEALTHY,
        data_api=DataApiStatus(
            rows_sent=3, rows_waiting=2, rows_refused=1, reason="The data API is away."
        ),
        filter_reason="The entity filter is broken.",
        transform_failures={"mine:f": 4},
    )
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(lambda: snapshot))

    metrics = generate_latest(registry).decode()

    assert render(snapshot).status == "degraded"
    assert render(snapshot).reasons == ["The data API is away.", "The entity filter is broken."]
    assert "ingest_data_api_rows_sent_total 3.0" in metrics
    assert "ingest_data_api_rows_refused_total 1.0" in metrics
    assert "ingest_data_api_rows_waiting 2.0" in metrics
    assert 'ingest_transform_failures_total{transform="mine:f"} 4.0' in metrics
    assert "ingest_discovery_last_refresh_timestamp_seconds" in metrics


def test_stale_registries_are_told() -> None:
    """Events still come, but a person should look."""
    stale = replace(HEALTHY.discovery, is_stale=True, reason="Areas are stale.")

    report = render(replace(HEALTHY, discovery=stale))

    assert report.status == "degraded"
    assert report.reasons == ["Areas are stale."]
    assert report.discovery.is_stale
