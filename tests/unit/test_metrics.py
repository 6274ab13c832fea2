"""Counters say what happened, rates what happened lately."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from app.runtime.metrics import Telemetry


class Clock:
    """Seconds since the epoch, set by the test."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.5

    def __call__(self) -> float:
        """Return the seconds."""
        return self.now_s


def test_events_are_counted_by_their_outcome() -> None:
    """Each method moves the one number it names."""
    telemetry = Telemetry(CollectorRegistry(), clock=Clock())
    telemetry.events_received(10)
    telemetry.events_malformed(1, kind="no entity_id")
    telemetry.events_filtered(2)
    telemetry.events_dropped(3, cause="journal_stalled")
    telemetry.events_dropped(1, cause="journal_stalled")
    telemetry.events_unplaced(2)
    telemetry.batch_committed(3, seconds=0.004, received_at=1_000_000.0)

    assert telemetry.received == 10
    assert dict(telemetry.malformed) == {"no entity_id": 1}
    assert telemetry.filtered == 2
    assert dict(telemetry.dropped) == {"journal_stalled": 4}
    assert telemetry.unplaced == 2
    assert telemetry.journaled == 3
    assert telemetry.last_event_at == 1_000_000.5


def test_points_are_counted_by_sink() -> None:
    """One sink's losses are not another's."""
    telemetry = Telemetry(CollectorRegistry(), clock=Clock())
    telemetry.batch_written("influxdb", 5, seconds=0.1, received_at=999_999.0)
    telemetry.points_dead_lettered("influxdb", 1)
    telemetry.points_dropped("embedded", 7)
    influxdb, embedded = telemetry.sink("influxdb"), telemetry.sink("embedded")

    assert (influxdb.written, influxdb.dead_lettered, influxdb.dropped) == (5, 1, 0)
    assert influxdb.last_write_at == 1_000_000.5
    assert (embedded.written, embedded.dead_lettered, embedded.dropped) == (0, 0, 7)
    assert embedded.last_write_at is None


def test_durations_become_histograms() -> None:
    """A clock that was set back makes no negative delay."""
    registry = CollectorRegistry()
    telemetry = Telemetry(registry, clock=Clock())
    telemetry.batch_committed(3, seconds=0.25, received_at=1_000_000.0)
    telemetry.batch_written("influxdb", 3, seconds=0.5, received_at=2_000_000.0)

    assert registry.get_sample_value("ingest_commit_duration_seconds_sum") == 0.25
    assert registry.get_sample_value("ingest_commit_delay_seconds_sum") == 0.5
    labels = {"sink": "influxdb"}
    assert registry.get_sample_value("ingest_sink_write_duration_seconds_sum", labels) == 0.5
    assert registry.get_sample_value("ingest_sink_delay_seconds_sum", labels) == 0.0


def test_event_rates_are_counted_per_second() -> None:
    """Seconds in which nothing came are left out."""
    clock = Clock()
    telemetry = Telemetry(CollectorRegistry(), clock=clock)
    telemetry.events_received(2)
    telemetry.events_received(3)
    clock.now_s += 2
    telemetry.events_received(4)

    assert telemetry.event_rates() == [(1_000_000, 5), (1_000_002, 4)]


def test_the_event_rate_per_minute_counts_full_seconds() -> None:
    """The second that is not over yet would make the number flutter."""
    clock = Clock()
    telemetry = Telemetry(CollectorRegistry(), clock=clock)
    for _ in range(100):
        telemetry.events_received(2)
        clock.now_s += 1
    telemetry.events_received(1000)

    assert telemetry.events_per_minute() == 120.0


def test_event_rates_older_than_the_window_are_forgotten() -> None:
    """The last 15 minutes are kept, however long the process runs."""
    clock = Clock()
    telemetry = Telemetry(CollectorRegistry(), clock=clock)
    telemetry.events_received(1)
    clock.now_s += 900
    assert telemetry.event_rates() == []

    for _ in range(2000):
        telemetry.events_received(1)
        clock.now_s += 1

    assert len(telemetry.event_rates()) == 899
    assert telemetry.received == 2001
