"""`/metrics`: the snapshot in Prometheus' format, with the histograms and the HTTP metrics.

A metric of a field of the snapshot is one line in a table below. Labels never hold an entity, an
address or a person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import TypeAlias, get_args

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
from app.health import ConnectionState, SinkState, SinkStatus, Snapshot, Status
from app.model import MEGABYTE
from app.runtime.retry import BreakerState
from app.schema.home_assistant import Correction

router = APIRouter(tags=["health"])


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
    """Return the HTTP metrics (`http_*`) and those of the service (`ingest_*`)."""
    return Response(generate_latest(components.registry), media_type=CONTENT_TYPE_LATEST)


_Table: TypeAlias = Mapping[str, tuple[str, str]]
"""Metric to field and help text. A field that is None leaves the metric out."""

GAUGES: _Table = {
    "ingest_ready": ("ready", "Whether events can be journaled."),
    "ingest_uptime_seconds": ("uptime_seconds", "Time since the start."),
    "ingest_watchers": ("clients", "Clients connected to /ws."),
    "ingest_dead_letters": ("dead_letters", "Dead letters stored."),
    "ingest_events_pending": ("accounting.events.pending", "Events received, not committed yet."),
    "ingest_connection_token_refused": (
        "connection.token_refused",
        "Whether Home Assistant refused the token at the last attempt.",
    ),
    "ingest_discovery_devices": ("discovery.devices", "Devices known."),
    "ingest_discovery_entities": ("discovery.entities", "Entities known."),
    "ingest_discovery_areas": ("discovery.areas", "Areas known."),
    "ingest_discovery_stale": ("discovery.is_stale", "Whether the registries are out of date."),
    "ingest_discovery_last_refresh_timestamp_seconds": (
        "discovery.last_refresh",
        "Time of the last refresh of the registries.",
    ),
    "ingest_journal_bytes": ("journal.bytes", "Size of the journal."),
    "ingest_journal_max_bytes": ("journal.max_bytes", "JOURNAL_MAX_MB."),
    "ingest_disk_free_bytes": ("journal.free_disk_bytes", "Free space on the disk of DATA_DIR."),
    "ingest_journal_durable": ("journal.durable", "Whether committed events survive a crash."),
    "ingest_journal_oldest_pending_seconds": (
        "journal.oldest_pending_seconds",
        "Age of the oldest event that is not committed yet.",
    ),
    "ingest_journal_salvaged": ("journal.salvaged", "Points recovered from a damaged journal."),
    "ingest_data_api_rows_waiting": ("data_api.rows_waiting", "Rows not sent yet."),
}
COUNTERS: _Table = {
    "ingest_monitor_failures": (
        "performance.monitor_failures",
        "Failed readings of memory and processor time.",
    ),
    "ingest_dead_letters_discarded": (
        "dead_letters_discarded",
        "Dead letters lost because there were too many.",
    ),
    "ingest_events_received": ("accounting.events.received", "State changes received."),
    "ingest_events_journaled": ("accounting.events.journaled", "Events committed to the journal."),
    "ingest_events_filtered": ("accounting.events.filtered", "Events the entity filter excluded."),
    "ingest_events_malformed": ("accounting.events.malformed", "Events that cannot be decoded."),
    "ingest_connection_attempts": ("connection.connection_attempts", "Connection attempts."),
    "ingest_connection_successes": (
        "connection.successful_connections",
        "Connection attempts after which events streamed.",
    ),
    "ingest_connection_failures": (
        "connection.failed_connections",
        "Connection attempts that failed before events streamed.",
    ),
    "ingest_journal_points": ("journal.appended_points", "Points appended to the journal."),
    "ingest_backfilled_points": ("gaps.backfilled", "Points read back from the recorder."),
    "ingest_data_api_rows_sent": ("data_api.rows_sent", "Rows accepted by the data API."),
    "ingest_data_api_rows_refused": ("data_api.rows_refused", "Rows given up until they change."),
}
_SINK_GAUGES: _Table = {
    "ingest_sink_points_held_at_start": ("held_at_start", "Points buffered at the start."),
    "ingest_sink_points_held": ("held", "Points buffered for the sink."),
    "ingest_sink_lag_seconds": ("lag_seconds", "Age of the oldest point buffered for the sink."),
}
_SINK_COUNTERS: _Table = {
    "ingest_sink_points_written": ("points_written", "Points accepted by the sink."),
    "ingest_sink_points_dead_lettered": (
        "points_dead_lettered",
        "Points rejected by the sink and stored as dead letters.",
    ),
    "ingest_sink_points_left_out": (
        "points_left_out",
        "Points that are not in the sink's schema.",
    ),
}
_DROP_CAUSES = dict.fromkeys(("journal_stalled", "journal_full", "shutdown"), 0)
"""Reported from the start: Prometheus sees no increase in a series that begins above 0."""


class SnapshotCollector(Collector):
    """Renders one fresh snapshot at every scrape, so that its totals balance."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        """Return nothing: at registration there is no snapshot yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of one snapshot."""
        snapshot = self._snapshot()
        yield InfoMetricFamily("ingest_build", "This service.", {"version": snapshot.version})
        for name, (path, text) in GAUGES.items():
            if (value := _value(snapshot, path)) is not None:
                yield GaugeMetricFamily(name, text, value)
        for name, (path, text) in COUNTERS.items():
            if (value := _value(snapshot, path)) is not None:
                yield CounterMetricFamily(name, text, value)
        yield from _performance(snapshot)
        yield from _states(snapshot)
        yield from _causes(snapshot)
        yield from _sinks(snapshot)


def _value(snapshot: Snapshot, path: str) -> float | None:
    value: object = snapshot
    for name in path.split("."):
        value = getattr(value, name, None)
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if isinstance(value, int | float) else None


def _performance(snapshot: Snapshot) -> Iterator[Metric]:
    used = snapshot.performance
    for name, text, value in (
        ("ingest_memory_bytes", "Resident memory.", used.memory_mb * MEGABYTE),
        ("ingest_memory_limit_bytes", "MAX_MEMORY_MB.", used.memory_limit_mb * MEGABYTE),
        ("ingest_cpu_ratio", "Processor time used; 1 is one core.", used.cpu_percent / 100),
    ):
        yield GaugeMetricFamily(name, text, value)


def _states(snapshot: Snapshot) -> Iterator[Metric]:
    """Yield the gauges that have one series per possible state, of which one is 1."""
    for name, text, states, state in (
        ("health_status", "status of /health", Status, snapshot.status),
        (
            "connection_state",
            "state of the connection to Home Assistant",
            ConnectionState,
            snapshot.connection.current_state,
        ),
        (
            "connection_breaker_state",
            "state of the circuit breaker",
            BreakerState,
            snapshot.circuit_breaker.state,
        ),
    ):
        family = GaugeMetricFamily(f"ingest_{name}", f"1 for the {text}.", labels=["state"])
        for each in get_args(states):
            family.add_metric([each], float(each == state))
        yield family


def _causes(snapshot: Snapshot) -> Iterator[Metric]:
    dropped = CounterMetricFamily(
        "ingest_events_dropped", "Events lost before they were committed.", labels=["cause"]
    )
    for cause, count in {**_DROP_CAUSES, **snapshot.accounting.events.dropped}.items():
        dropped.add_metric([cause], count)
    yield dropped
    failures = CounterMetricFamily(
        "ingest_transform_failures", "Events that a transform failed on.", labels=["transform"]
    )
    for name, count in snapshot.transform_failures.items():
        failures.add_metric([name], count)
    yield failures
    corrected = CounterMetricFamily(
        "ingest_points_corrected",
        "Parts of points left out because InfluxDB would refuse them.",
        labels=["part"],
    )
    for part in get_args(Correction):
        corrected.add_metric([part], snapshot.corrections.get(part, 0))
    yield corrected
    gaps = snapshot.gaps
    spans = GaugeMetricFamily(
        "ingest_gaps", "Spans of time in which nothing was captured.", labels=["state"]
    )
    spans.add_metric(["open"], gaps.open)
    spans.add_metric(["filled"], gaps.filled - gaps.nothing_recorded)
    spans.add_metric(["nothing_recorded"], gaps.nothing_recorded)
    spans.add_metric(["unfillable"], gaps.unfillable)
    yield spans


def _sinks(snapshot: Snapshot) -> Iterator[Metric]:
    sinks = snapshot.sinks
    for kind, table in (
        (GaugeMetricFamily, _SINK_GAUGES),
        (CounterMetricFamily, _SINK_COUNTERS),
    ):
        for name, (field, text) in table.items():
            family = kind(name, text, labels=["sink"])
            for sink in sinks:
                family.add_metric([sink.name], getattr(sink, field))
            yield family
    for name, text, field, states in (
        ("ingest_sink_state", "1 for the state of the sink.", "state", SinkState),
        (
            "ingest_sink_breaker_state",
            "1 for the state of the circuit breaker.",
            "breaker",
            BreakerState,
        ),
    ):
        family = GaugeMetricFamily(name, text, labels=["sink", "state"])
        for sink in sinks:
            for each in get_args(states):
                family.add_metric([sink.name, each], float(each == getattr(sink, field)))
        yield family
    yield _dropped_points(sinks)


def _dropped_points(sinks: Iterable[SinkStatus]) -> Metric:
    """Return the points each sink will never receive; those without a cause the journal lost."""
    name = "ingest_sink_points_dropped"
    dropped = CounterMetricFamily(
        name, "Points lost at the bound of the journal, or too old for the database's retention."
    )
    for sink in sinks:
        labels = {"sink": sink.name}
        dropped.add_sample(f"{name}_total", labels, sink.points_dropped - sink.points_expired)
        dropped.add_sample(f"{name}_total", {**labels, "cause": "retention"}, sink.points_expired)
    return dropped
