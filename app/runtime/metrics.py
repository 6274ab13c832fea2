"""Counters and histograms of what the components do.

Counts are plain numbers; the `Snapshot` reports them. Durations go into Prometheus histograms,
because a snapshot cannot hold a distribution.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Histogram

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SLOW = (*_FAST, 30.0, 60.0, 300.0, 3600.0)
_RATE_WINDOW_S = 15 * 60


@dataclass(slots=True)
class SinkCounts:
    """The points of one sink since the start of the process."""

    written: int = 0
    dead_lettered: int = 0
    dropped: int = 0
    expired: int = 0
    """Part of `dropped`: older than the database's retention, so not stored by it."""
    left_out: int = 0
    """Not in the sink's schema."""
    last_write_at: float | None = None
    """Seconds since the epoch."""
    last_delay_s: float | None = None
    """From receipt of the oldest event of the last batch until the sink accepted it."""


class _Histograms:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.commit_seconds = Histogram(
            "ingest_commit_duration_seconds",
            "Time of a commit, until fsync returned.",
            buckets=_FAST,
            registry=registry,
        )
        self.commit_delay = Histogram(
            "ingest_commit_delay_seconds",
            "Time from receipt of the oldest event of a commit until it was durable.",
            buckets=_FAST,
            registry=registry,
        )
        self.write_seconds = Histogram(
            "ingest_sink_write_duration_seconds",
            "Time from sending a batch until the sink accepted it.",
            ["sink"],
            buckets=_SLOW,
            registry=registry,
        )
        self.write_delay = Histogram(
            "ingest_sink_delay_seconds",
            "Time from receipt of the oldest event of a batch until the sink accepted it.",
            ["sink"],
            buckets=_SLOW,
            registry=registry,
        )


class Telemetry:
    """Counters and histograms of one process."""

    def __init__(
        self, registry: CollectorRegistry, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Register the histograms with `registry`; `clock` gives seconds since the epoch."""
        self._clock = clock
        self.received = 0
        self.journaled = 0
        """Durable in the journal, or accepted by every sink before a commit succeeded."""
        self.filtered = 0
        self.malformed: Counter[str] = Counter()
        """By kind of defect."""
        self.dropped: Counter[str] = Counter()
        """By cause, for example `journal_stalled`."""
        self.unplaced = 0
        """Journaled without areas and devices, because the registries could not be listed."""
        self.transform_failures: Counter[str] = Counter()
        """By name of the transform."""
        self.corrections: Counter[str] = Counter()
        """Parts of points that InfluxDB would refuse, by kind."""
        self.backfilled = 0
        """Points read back from the recorder and journaled; not among the received events."""
        self.last_event_at: float | None = None
        self.last_commit_delay_s: float | None = None
        """From receipt of the oldest event of the last commit until it was durable."""
        self._sinks: defaultdict[str, SinkCounts] = defaultdict(SinkCounts)
        self._per_second: deque[tuple[int, int]] = deque(maxlen=_RATE_WINDOW_S)
        self._histograms = _Histograms(registry)

    def events_received(self, count: int) -> None:
        """Count received state changes, including malformed ones."""
        now = self._clock()
        self.received += count
        self.last_event_at = now
        second = int(now)
        if self._per_second and self._per_second[-1][0] == second:
            count += self._per_second.pop()[1]
        self._per_second.append((second, count))

    def events_malformed(self, count: int, *, kind: str) -> None:
        """Count messages that could not be decoded."""
        self.malformed[kind] += count

    def events_filtered(self, count: int) -> None:
        """Count changes that the entity filter excluded."""
        self.filtered += count

    def events_dropped(self, count: int, *, cause: str) -> None:
        """Count changes lost before they were committed."""
        self.dropped[cause] += count

    def events_unplaced(self, count: int) -> None:
        """Count changes that waited for the registries in vain and went on without them."""
        self.unplaced += count

    def transform_failed(self, name: str) -> None:
        """Count a change that a transform failed on; it is written unchanged."""
        self.transform_failures[name] += 1

    def points_backfilled(self, points: int) -> None:
        """Count points that were read back from the recorder and are durable now."""
        self.backfilled += points

    def batch_committed(self, points: int, *, seconds: float, received_at: float) -> None:
        """Count committed points; `received_at` is that of the oldest."""
        self.journaled += points
        self._histograms.commit_seconds.observe(seconds)
        delay_s = max(0.0, self._clock() - received_at)
        self.last_commit_delay_s = round(delay_s, 3)
        self._histograms.commit_delay.observe(delay_s)

    def points_journaled(self, points: int) -> None:
        """Count points that sinks had from memory and that a crash cannot take any more."""
        self.journaled += points

    def batch_written(self, sink: str, points: int, *, seconds: float, received_at: float) -> None:
        """Count points that a sink accepted; `received_at` is that of the oldest."""
        now = self._clock()
        counts = self._sinks[sink]
        counts.written += points
        counts.last_write_at = now
        self._histograms.write_seconds.labels(sink).observe(seconds)
        delay_s = max(0.0, now - received_at)
        counts.last_delay_s = round(delay_s, 3)
        self._histograms.write_delay.labels(sink).observe(delay_s)

    def points_dead_lettered(self, sink: str, points: int) -> None:
        """Count points that a sink rejected and that became dead letters."""
        self.sink(sink).dead_lettered += points

    def points_dropped(self, sink: str, points: int) -> None:
        """Count points that a sink will never receive."""
        self.sink(sink).dropped += points

    def points_expired(self, sink: str, points: int) -> None:
        """Count points that a sink did not store because they are older than its retention."""
        self.points_dropped(sink, points)
        self.sink(sink).expired += points

    def points_left_out(self, sink: str, points: int) -> None:
        """Count points that are not in a sink's schema."""
        self.sink(sink).left_out += points

    def lines_corrected(self, corrections: Mapping[str, int]) -> None:
        """Count parts of points that InfluxDB would refuse, by kind."""
        self.corrections.update(corrections)

    def sink(self, name: str) -> SinkCounts:
        """Return the counts of one sink."""
        return self._sinks[name]

    def event_rates(self) -> list[tuple[int, int]]:
        """Return (second since the epoch, events received in it), oldest first.

        Seconds without events are left out; nothing older than 15 minutes is in it.
        """
        oldest = int(self._clock()) - _RATE_WINDOW_S
        return [rate for rate in self._per_second if rate[0] > oldest]

    def events_per_minute(self) -> float:
        """Return the events received in the last 60 full seconds."""
        now = int(self._clock())
        return float(sum(count for second, count in self._per_second if now - 60 <= second < now))
