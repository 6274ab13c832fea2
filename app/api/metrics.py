"""`/metrics`: the snapshot for Prometheus, beside the histograms and the HTTP metrics.

Nothing personal is in it: no label ever holds an entity, an address or a person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import get_args

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from app.api.dependencies import ComponentsDep
from app.health import ConnectionState, GapsStatus, SinkState, SinkStatus, Snapshot, Status
from app.model import MEGABYTE, GapState
from app.runtime.retry import BreakerState

router = APIRouter(tags=["health"])

_DROP_CAUSES = ("journal_stalled", "journal_full", "shutdown")


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={
        200: {
            "content": {"text/plain": {"example": "ingest_events_received_total 13.0\n"}},
            "description": "Prometheus' text format",
        }
    },
)
async def metrics(components: ComponentsDep) -> Response:
    """Return HTTP metrics (`http_*`) and the books and times of the service (`ingest_*`)."""
    return Response(generate_latest(components.registry), media_type=CONTENT_TYPE_LATEST)


class SnapshotCollector(Collector):
    """Renders a fresh snapshot at every scrape, so that its counters balance."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry would otherwise take a snapshot before there is one."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Return every metric of one snapshot."""
        snapshot = self._snapshot()
        yield from _process(snapshot)
        yield from _events(snapshot)
        yield from _connection(snapshot)
        yield from _journal(snapshot)
        yield from _gaps(snapshot.gaps)
        yield from _sinks(snapshot.sinks)


def _process(snapshot: Snapshot) -> Iterator[Metric]:
    yield InfoMetricFamily("ingest_build", "This service", {"version": snapshot.version})
    yield _one_of(
        "ingest_health_status", "1 for the status of /health", get_args(Status), snapshot.status
    )
    yield _gauge("ingest_ready", "Whether events can be journaled", snapshot.ready)
    yield _gauge("ingest_uptime_seconds", "Since the start", snapshot.uptime_seconds)
    yield _gauge("ingest_memory_bytes", "Resident memory", snapshot.memory_mb * MEGABYTE)
    yield _gauge("ingest_memory_limit_bytes", "MAX_MEMORY_MB", snapshot.memory_limit_mb * MEGABYTE)
    yield _gauge("ingest_cpu_ratio", "Processor time; 1 is one core", snapshot.cpu_percent / 100)
    yield _counter(
        "ingest_monitor_failures",
        "Readings of memory and processor time that failed",
        snapshot.monitor_failures,
    )
    yield _gauge("ingest_watchers", "Clients connected to /ws", snapshot.watchers)
    yield _gauge("ingest_dead_letters", "Points put aside", snapshot.dead_letters)
    yield _counter(
        "ingest_dead_letters_discarded",
        "Points lost because too many were put aside",
        snapshot.dead_letters_discarded,
    )


def _events(snapshot: Snapshot) -> Iterator[Metric]:
    events = snapshot.events
    yield _counter("ingest_events_received", "State changes that arrived", events.received)
    yield _counter("ingest_events_journaled", "Of them durable", events.journaled)
    yield _counter("ingest_events_filtered", "Of them held back by the filter", events.filtered)
    yield _counter("ingest_events_malformed", "Of them unreadable", events.malformed)
    dropped = CounterMetricFamily(
        "ingest_events_dropped", "Of them lost before they were durable", labels=["cause"]
    )
    # Also while nothing was: what first appears with a number has not grown, to Prometheus.
    for cause, count in {**dict.fromkeys(_DROP_CAUSES, 0), **events.dropped}.items():
        dropped.add_metric([cause], count)
    yield dropped
    failures = CounterMetricFamily(
        "ingest_transform_failures", "Events that broke a transform", labels=["transform"]
    )
    for name, count in snapshot.transform_failures.items():
        failures.add_metric([name], count)
    yield failures
    yield _gauge("ingest_events_pending", "Of them on their way to the journal", events.pending)


def _connection(snapshot: Snapshot) -> Iterator[Metric]:
    connection, discovery = snapshot.connection, snapshot.discovery
    yield _one_of(
        "ingest_connection_state",
        "1 for the state of the connection to Home Assistant",
        get_args(ConnectionState),
        connection.current_state,
    )
    yield _counter(
        "ingest_connection_attempts", "Connections tried", connection.connection_attempts
    )
    yield _counter(
        "ingest_connection_successes", "Of them streamed", connection.successful_connections
    )
    yield _counter("ingest_connection_failures", "Of them failed", connection.failed_connections)
    yield _gauge(
        "ingest_connection_token_refused",
        "Whether Home Assistant refused the token at the last attempt",
        connection.token_refused,
    )
    yield _one_of(
        "ingest_connection_breaker_state",
        "1 for the state of the circuit breaker",
        get_args(BreakerState),
        connection.breaker.state,
    )
    yield _gauge("ingest_discovery_devices", "Devices known", discovery.devices)
    yield _gauge("ingest_discovery_entities", "Entities known", discovery.entities)
    yield _gauge("ingest_discovery_areas", "Areas known", discovery.areas)
    yield _gauge("ingest_discovery_stale", "Whether they are out of date", discovery.is_stale)
    if discovery.last_refresh is not None:
        yield _gauge(
            "ingest_discovery_last_refresh_timestamp_seconds",
            "When they were last listed",
            discovery.last_refresh.timestamp(),
        )
    if (data_api := snapshot.data_api) is not None:
        yield _counter("ingest_data_api_rows_sent", "Rows it took", data_api.rows_sent)
        yield _counter("ingest_data_api_rows_refused", "Rows given up", data_api.rows_refused)
        yield _gauge("ingest_data_api_rows_waiting", "Rows that wait", data_api.rows_waiting)


def _journal(snapshot: Snapshot) -> Iterator[Metric]:
    journal = snapshot.journal
    yield _counter("ingest_journal_points", "Points appended", journal.appended_points)
    yield _gauge("ingest_journal_bytes", "Size of the journal", journal.bytes)
    yield _gauge("ingest_journal_max_bytes", "JOURNAL_MAX_MB", journal.max_bytes)
    if journal.free_disk_bytes is not None:
        yield _gauge(
            "ingest_disk_free_bytes", "Free on the disk of DATA_DIR", journal.free_disk_bytes
        )
    yield _gauge("ingest_journal_durable", "Whether a crash loses nothing", journal.durable)
    yield _gauge(
        "ingest_journal_oldest_pending_seconds",
        "Age of the oldest event on its way to the journal",
        journal.oldest_pending_seconds,
    )
    yield _gauge("ingest_journal_salvaged", "Rows saved from a damaged file", journal.salvaged)


def _gaps(gaps: GapsStatus) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "ingest_gaps", "Spans of time in which nothing was captured", labels=["state"]
    )
    for state in get_args(GapState):
        states.add_metric([state], getattr(gaps, state))
    yield states
    yield _counter(
        "ingest_backfilled_points", "Points read back from the recorder", gaps.backfilled
    )


_SINK_COUNTERS: Mapping[str, tuple[str, Callable[[SinkStatus], int]]] = {
    "ingest_sink_points_written": ("Points accepted", lambda sink: sink.points_written),
    "ingest_sink_points_dead_lettered": (
        "Points refused for good and put aside",
        lambda sink: sink.points_dead_lettered,
    ),
}
_SINK_GAUGES: Mapping[str, tuple[str, Callable[[SinkStatus], float]]] = {
    "ingest_sink_points_held_at_start": (
        "Points that waited when the process started",
        lambda sink: sink.held_at_start,
    ),
    "ingest_sink_points_held": ("Points that wait", lambda sink: sink.held),
    "ingest_sink_lag_seconds": ("Age of the oldest of them", lambda sink: sink.lag_seconds),
}


def _sinks(sinks: Sequence[SinkStatus]) -> Iterator[Metric]:
    for name, (text, count) in _SINK_COUNTERS.items():
        counter = CounterMetricFamily(name, text, labels=["sink"])
        for sink in sinks:
            counter.add_metric([sink.name], count(sink))
        yield counter
    yield _dropped_points(sinks)
    for name, (text, value) in _SINK_GAUGES.items():
        gauge = GaugeMetricFamily(name, text, labels=["sink"])
        for sink in sinks:
            gauge.add_metric([sink.name], value(sink))
        yield gauge
    states = GaugeMetricFamily(
        "ingest_sink_state", "1 for the state of the sink", labels=["sink", "state"]
    )
    for sink in sinks:
        for state in get_args(SinkState):
            states.add_metric([sink.name, state], float(sink.state == state))
    yield states
    breakers = GaugeMetricFamily(
        "ingest_sink_breaker_state",
        "1 for the state of the circuit breaker",
        labels=["sink", "state"],
    )
    for sink in sinks:
        for breaker_state in get_args(BreakerState):
            breakers.add_metric(
                [sink.name, breaker_state], float(sink.breaker.state == breaker_state)
            )
    yield breakers


def _dropped_points(sinks: Sequence[SinkStatus]) -> Metric:
    """Return what each sink will never have; without a cause it is the journal's doing."""
    name = "ingest_sink_points_dropped"
    dropped = CounterMetricFamily(
        name, "Points lost at the bound of the journal, or too old for the database's retention"
    )
    for sink in sinks:
        labels = {"sink": sink.name}
        dropped.add_sample(f"{name}_total", labels, sink.points_dropped - sink.points_expired)
        dropped.add_sample(f"{name}_total", {**labels, "cause": "retention"}, sink.points_expired)
    return dropped


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, float(value))


def _counter(name: str, text: str, value: int) -> Metric:
    """Return a counter; the text format adds `_total` to its name."""
    return CounterMetricFamily(name, text, value)


def _one_of(name: str, text: str, states: Iterable[str], state: str) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=["state"])
    for each in states:
        gauge.add_metric([each], float(each == state))
    return gauge
