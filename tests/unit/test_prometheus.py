"""The snapshot as Prometheus reads it from `/metrics`."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import CollectorRegistry, generate_latest

from app.api import metrics
from app.api.metrics import SnapshotCollector
from app.health import DataApiStatus, GapsStatus, SinkStatus
from tests.fakes.snapshots import DEGRADED, HEALTHY


def _samples(registry: CollectorRegistry) -> dict[str, float]:
    lines = generate_latest(registry).decode().splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }


def test_the_totals_of_the_metrics_balance() -> None:
    """Of events and of the points of each sink: what was received left by a name, or is pending."""
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


def test_exactly_one_of_the_possible_states_of_a_gauge_is_1() -> None:
    """Each possible state is a series, so that an alert can compare with 0."""
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


def test_registering_the_collector_takes_no_snapshot() -> None:
    """It is registered before the components are open."""

    def too_early() -> None:
        raise AssertionError

    CollectorRegistry().register(SnapshotCollector(too_early))  # type: ignore[arg-type]


def test_metric_names_begin_with_ingest_and_counters_end_in_total() -> None:
    """As Prometheus recommends."""
    found = list(SnapshotCollector(lambda: HEALTHY).collect())

    assert all(metric.name.startswith("ingest_") for metric in found)
    assert all(
        sample.name.endswith("_total")
        for metric in found
        if metric.type == "counter"
        for sample in metric.samples
    )


def test_the_data_api_and_failed_transforms_have_metrics() -> None:
    """Those of the data API only with DATA_API_URL."""
    snapshot = replace(
        HEALTHY,
        data_api=DataApiStatus(rows_sent=3, rows_waiting=2, rows_refused=1),
        transform_failures={"mine:f": 4},
    )
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(lambda: snapshot))

    text = generate_latest(registry).decode()

    assert "ingest_data_api_rows_sent_total 3.0" in text
    assert "ingest_data_api_rows_refused_total 1.0" in text
    assert "ingest_data_api_rows_waiting 2.0" in text
    assert 'ingest_transform_failures_total{transform="mine:f"} 4.0' in text
    assert "ingest_discovery_last_refresh_timestamp_seconds" in text


def test_gaps_of_which_the_recorder_holds_nothing_are_not_counted_as_filled() -> None:
    """`/health` counts them as filled, `/metrics` counts them separately."""
    registry = CollectorRegistry()
    gaps = GapsStatus(open=1, filled=5, nothing_recorded=2, unfillable=4)
    registry.register(SnapshotCollector(lambda: replace(HEALTHY, gaps=gaps)))

    sample = _samples(registry)

    assert [
        sample[f'ingest_gaps{{state="{state}"}}']
        for state in ("open", "filled", "nothing_recorded", "unfillable")
    ] == [1, 3, 2, 4]


def test_every_metric_of_the_tables_names_a_field_of_the_snapshot() -> None:
    """A misspelt field would leave its metric out without an error."""
    snapshot = replace(
        HEALTHY,
        data_api=DataApiStatus(),
        journal=replace(HEALTHY.journal, free_disk_bytes=1),
    )

    found = {metric.name for metric in SnapshotCollector(lambda: snapshot).collect()}

    assert {*metrics.GAUGES, *metrics.COUNTERS} - found == set()
