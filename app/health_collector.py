"""Collects the `Snapshot` from all components, and monitors memory."""

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
from app.health import (
    Accounting,
    EventAccounting,
    JournalStatus,
    PerformanceStatus,
    Snapshot,
    SubscriptionStatus,
)
from app.homeassistant.connection import HomeAssistantSource
from app.journal.batcher import Batcher
from app.journal.journal import SqliteJournal
from app.model import MEGABYTE
from app.normalize.filter import EntityFilter
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
    """A database file of this service."""

    damage: str | None
    """A sentence when the file is damaged, or was at the start."""


class ProcessUsage:
    """Memory and processor time of this process, as of the last `read`.

    Reading memory needs a file descriptor. When reading fails, the last value stays and the
    failure is counted.
    """

    def __init__(self, process: psutil.Process | None = None) -> None:
        self.memory_mb = 0.0
        self.cpu_percent = 0.0
        """Since the `read` before; 100 is one core."""
        self.failures = 0
        self._process = process or psutil.Process()
        self._read_at = (time.monotonic(), time.process_time())

    def read(self) -> None:
        """Read both."""
        before, self._read_at = self._read_at, (time.monotonic(), time.process_time())
        elapsed_s, used_s = (now - then for now, then in zip(self._read_at, before, strict=True))
        if elapsed_s > 0:
            self.cpu_percent = round(100 * used_s / elapsed_s, 1)
        try:
            self.memory_mb = round(self._process.memory_info().rss / MEGABYTE, 1)
        except (OSError, psutil.Error) as exc:
            self.failures += 1
            limited_log.warning("Cannot read the memory usage: %s", exc, topic="process")
        else:
            limited_log.resolved("The memory usage can be read again", topic="process")


class HealthCollector:
    """Collects the status of every component into one `Snapshot`."""

    def __init__(
        self,
        *,
        source: HomeAssistantSource,
        pipeline: Pipeline,
        backfill: Backfill,
        intake: Batcher,
        journal: SqliteJournal,
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
        """Above `memory_limit_mb` the snapshot is degraded; `watch` checks every `watch_s`."""
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
        """Return the state now; nothing here awaits, so all totals are of one moment."""
        telemetry, usage = self._telemetry, self._usage
        usage.read()
        failures = dict(self._supervisor.failures)
        connection = replace(self._source.status(), is_running="source" not in failures)
        return Snapshot(
            version=__version__,
            timestamp=datetime.now(UTC),
            uptime_seconds=round(time.monotonic() - self._started, 3),
            connection=connection,
            subscription=SubscriptionStatus(
                is_subscribed=connection.is_subscribed,
                total_events_received=telemetry.received,
                event_rate_per_minute=round(telemetry.events_per_minute(), 2),
                last_event=_moment(telemetry.last_event_at),
            ),
            journal=self._journal_status(),
            sinks=tuple(delivery.status() for delivery in self._deliveries),
            discovery=self._discovery.status(),
            accounting=Accounting(events=self._event_accounting()),
            gaps=self._backfill.status(),
            performance=PerformanceStatus(
                memory_mb=usage.memory_mb,
                memory_limit_mb=self._memory_limit_mb,
                cpu_percent=usage.cpu_percent,
                monitor_failures=usage.failures + self.watch_failures,
            ),
            dead_letters=self._dead_letters.count,
            dead_letters_discarded=self._dead_letters.discarded,
            clients=self._hub.subscribers,
            failures=failures,
            damage=[file.damage for file in self._local_files if file and file.damage],
            data_api=self._data_api.status() if self._data_api else None,
            filter_reason=self._filter.reason if self._filter else None,
            transform_failures=dict(telemetry.transform_failures),
        )

    async def watch(self) -> None:
        """Log when memory passes the limit and when it is below again; summarize repeated logs.

        Runs forever and survives any error: a monitor must not end what it monitors.
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
        performance = self.snapshot().performance
        if performance.reason and not over:
            limited_log.error("%s", performance.reason, topic="memory")
            return True
        # Not at the limit itself: memory that moves around it would fill the log.
        if over and performance.memory_mb < _WELL_BELOW * performance.memory_limit_mb:
            limited_log.resolved(
                "Memory is %.0f MB, below MAX_MEMORY_MB again",
                performance.memory_mb,
                topic="memory",
            )
            return False
        return over

    def _event_accounting(self) -> EventAccounting:
        telemetry = self._telemetry
        return EventAccounting(
            received=telemetry.received,
            journaled=telemetry.journaled,
            filtered=telemetry.filtered,
            malformed=telemetry.malformed.total(),
            dropped=dict(telemetry.dropped),
            pending=self._intake.pending_points + self._pipeline.waiting_events,
        )

    def _journal_status(self) -> JournalStatus:
        status = self._journal.status()
        oldest_at = self._intake.oldest_at
        return replace(
            status,
            pending_points=self._intake.pending_points + self._pipeline.waiting_events,
            oldest_pending_seconds=(
                max(0.0, round(time.time() - oldest_at, 3)) if oldest_at else 0.0
            ),
            last_commit_delay_seconds=self._telemetry.last_commit_delay_s,
            durable=status.durable and self._intake.durable,
            losing=self._intake.losing,
            reason=self._intake.reason or status.reason,
        )


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
