"""The snapshot of all parts for health and metrics, and the monitor of memory."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

import psutil

from app import __version__
from app.backfill.backfill import Backfill
from app.discovery.refresh import Discovery
from app.fanout.hub import Hub
from app.health import EventAccounting, JournalStatus, Snapshot
from app.homeassistant.connection import HomeAssistantSource
from app.journal.batcher import Batcher
from app.journal.journal import SqliteJournal
from app.journal.memory import MemoryJournal
from app.model import MEGABYTE
from app.normalize.entity_filter import EntityFilter
from app.pipeline import Pipeline
from app.runtime.logging import RateLimitedLog, repeats
from app.runtime.metrics import Telemetry
from app.runtime.supervisor import Supervisor
from app.sinks.dead_letters import DeadLetters
from app.sinks.delivery import Delivery

if TYPE_CHECKING:
    from app.discovery.data_api import DataApi

_WELL_BELOW = 0.9

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)


class LocalFile(Protocol):
    """A database of this service that may be damaged."""

    damage: str | None
    """One sentence when it is, or was at the start."""


class ProcessUsage:
    """Memory and processor time of this process, as last read.

    Reading needs a file descriptor. When there is none left, or the reading fails otherwise,
    the last numbers stay and the failure is counted.
    """

    def __init__(self, process: psutil.Process | None = None) -> None:
        self.memory_mb = 0.0
        self.cpu_percent = 0.0
        self.failures = 0
        self._process = process or psutil.Process()

    def read(self) -> None:
        """Read both; call it before looking at them."""
        try:
            with self._process.oneshot():
                self.memory_mb = self._process.memory_info().rss / MEGABYTE
                self.cpu_percent = self._process.cpu_percent()
        except (OSError, psutil.Error) as exc:
            self.failures += 1
            limited_log.warning("Cannot read memory and processor time: %s", exc, topic="process")
        else:
            limited_log.resolved("Memory and processor time can be read again", topic="process")


class HealthCollector:
    """Knows every part that has a state, and shows them all at one moment."""

    def __init__(
        self,
        *,
        source: HomeAssistantSource,
        pipeline: Pipeline,
        backfill: Backfill,
        intake: Batcher,
        journal: SqliteJournal | MemoryJournal,
        deliveries: Sequence[Delivery],
        discovery: Discovery,
        data_api: DataApi | None = None,
        entity_filter: EntityFilter | None = None,
        dead_letters: DeadLetters,
        local_files: Sequence[LocalFile | None] = (),
        hub: Hub,
        telemetry: Telemetry,
        supervisor: Supervisor,
        memory_limit_mb: float,
        watch_s: float = 5.0,
        usage: ProcessUsage | None = None,
    ) -> None:
        """Observe the parts; above `memory_limit_mb` the snapshot is degraded.

        `watch` looks every `watch_s` seconds.
        """
        self._source = source
        self._pipeline = pipeline
        self._backfill = backfill
        self._intake = intake
        self._journal = journal
        self._deliveries = deliveries
        self._discovery = discovery
        self._data_api = data_api
        self._filter = entity_filter
        self._dead_letters = dead_letters
        self._local_files = local_files
        self._hub = hub
        self._telemetry = telemetry
        self._supervisor = supervisor
        self._memory_limit_mb = memory_limit_mb
        self._watch_s = watch_s
        self._usage = usage or ProcessUsage()
        self.watch_failures = 0
        """Rounds of `watch` that failed."""
        self._started = time.monotonic()

    def snapshot(self) -> Snapshot:
        """Return the picture; nothing in it awaits, so its books are of one moment."""
        telemetry = self._telemetry
        usage = self._usage
        usage.read()
        return Snapshot(
            version=__version__,
            timestamp=datetime.now(UTC),
            uptime_seconds=time.monotonic() - self._started,
            connection=self._source.status(),
            journal=self._journal_status(),
            sinks=tuple(delivery.status() for delivery in self._deliveries),
            discovery=self._discovery.status(),
            gaps=self._backfill.status(),
            events=EventAccounting(
                received=telemetry.received,
                journaled=telemetry.journaled,
                filtered=telemetry.filtered,
                malformed=telemetry.malformed.total(),
                dropped=dict(telemetry.dropped),
                pending=self._intake.pending_points + self._pipeline.held_events,
            ),
            events_per_minute=telemetry.events_per_minute(),
            last_event=_moment(telemetry.last_event_at),
            dead_letters=self._dead_letters.count,
            dead_letters_discarded=self._dead_letters.discarded,
            watchers=self._hub.watchers,
            memory_mb=usage.memory_mb,
            memory_limit_mb=self._memory_limit_mb,
            cpu_percent=usage.cpu_percent,
            monitor_failures=usage.failures + self.watch_failures,
            failures=dict(self._supervisor.failures),
            damage=[file.damage for file in self._local_files if file and file.damage],
            data_api=self._data_api.status() if self._data_api else None,
            filter_reason=self._filter.reason if self._filter else None,
            transform_failures=dict(telemetry.transform_failures),
        )

    async def watch(self) -> None:
        """Log when memory passes the limit, when it is below again, and repeated messages.

        It runs forever, whatever it fails at: a monitor must not end what it monitors.
        """
        over = False
        while True:
            try:
                over = self._check_memory(over=over)
                repeats.summarize()
            except Exception as exc:  # noqa: BLE001 - the boundary that the docstring names
                self.watch_failures += 1
                limited_log.error(
                    "The monitor failed: %s",
                    exc,
                    kind=str(type(exc)),
                    exc_info=exc,
                    topic="monitor",
                )
            await asyncio.sleep(self._watch_s)

    def _check_memory(self, *, over: bool) -> bool:
        """Log when memory passes the limit in either direction; return whether it is over."""
        snapshot = self.snapshot()
        if snapshot.memory_reason and not over:
            limited_log.error("%s", snapshot.memory_reason, topic="memory")
            return True
        # Not at the limit itself: memory that moves around it would fill the log.
        if over and snapshot.memory_mb < _WELL_BELOW * snapshot.memory_limit_mb:
            limited_log.resolved(
                "Memory is %.0f MB, below MAX_MEMORY_MB again", snapshot.memory_mb, topic="memory"
            )
            return False
        return over

    def _journal_status(self) -> JournalStatus:
        status = self._journal.status()
        oldest_at = self._intake.oldest_at
        return replace(
            status,
            pending_points=self._intake.pending_points + self._pipeline.held_events,
            oldest_pending_seconds=max(0.0, time.time() - oldest_at) if oldest_at else 0.0,
            durable=status.durable and self._intake.durable,
            losing=self._intake.losing,
            reason=self._intake.reason or status.reason,
        )


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
