"""Collects the `Snapshot` from all components, and monitors memory."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
from app.runtime.time import utc_now
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

    def __init__(
        self,
        process: psutil.Process | None = None,
        *,
        times: Callable[[], tuple[float, float]] = lambda: (time.monotonic(), time.process_time()),
    ) -> None:
        """`times` returns the seconds that passed, and those that this process computed."""
        self.memory_mb = 0.0
        self.cpu_percent = 0.0
        """Since the `read` before; 100 is one core."""
        self.failures = 0
        self._process = process or psutil.Process()
        self._times = times
        self._read_at = times()

    def read(self) -> None:
        """Read both."""
        before, self._read_at = self._read_at, self._times()
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


@dataclass(kw_only=True)
class HealthCollector:
    """Collects the status of every component into one `Snapshot`.

    It has as many attributes as there are components with a status.
    """

    source: HomeAssistantSource
    pipeline: Pipeline
    backfill: Backfill
    batcher: Batcher
    journal: SqliteJournal
    deliveries: Sequence[Delivery]
    discovery: Discovery
    data_api: DataApi | None = None
    entity_filter: EntityFilter | None = None
    dead_letters: DeadLetters
    local_files: Sequence[LocalFile | None] = ()
    hub: Hub
    telemetry: Telemetry
    supervisor: Supervisor
    memory_limit_mb: float
    """Above this the snapshot is degraded."""
    watch_s: float = 5.0
    """The interval of `watch`."""
    usage: ProcessUsage = field(default_factory=ProcessUsage)
    watch_failures: int = field(init=False, default=0)
    """Rounds of `watch` that failed."""
    _started: float = field(init=False, default_factory=time.monotonic)

    def snapshot(self) -> Snapshot:
        """Return the state now; nothing here awaits, so all totals are of one moment."""
        telemetry = self.telemetry
        failures = dict(self.supervisor.failures)
        connection = replace(self.source.status(), is_running="source" not in failures)
        return Snapshot(
            version=__version__,
            timestamp=utc_now(),
            uptime_seconds=round(time.monotonic() - self._started, 3),
            connection=connection,
            subscription=SubscriptionStatus(
                is_subscribed=connection.is_subscribed,
                total_events_received=telemetry.received,
                event_rate_per_minute=round(telemetry.events_per_minute(), 2),
                last_event=_moment(telemetry.last_event_at),
            ),
            journal=self._journal_status(),
            sinks=tuple(delivery.status() for delivery in self.deliveries),
            discovery=self.discovery.status(),
            accounting=Accounting(events=self._event_accounting()),
            gaps=self.backfill.status(),
            performance=self._performance(),
            dead_letters=self.dead_letters.count,
            dead_letters_discarded=self.dead_letters.discarded,
            clients=self.hub.subscribers,
            failures=failures,
            damage=[file.damage for file in self.local_files if file and file.damage],
            data_api=self.data_api.status() if self.data_api else None,
            filter_reason=self.entity_filter.reason if self.entity_filter else None,
            transform_failures=dict(telemetry.transform_failures),
            corrections=dict(telemetry.corrections),
        )

    async def watch(self) -> None:
        """Read memory and processor time, log when memory passes the limit, summarize repeats.

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
            await asyncio.sleep(self.watch_s)

    def _check_memory(self, *, over: bool) -> bool:
        """Read memory, and log when it passes the limit either way; return whether it is over.

        Not in `snapshot`: reading costs as much as the rest of it.
        """
        self.usage.read()
        performance = self._performance()
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

    def _performance(self) -> PerformanceStatus:
        """Return what was read last: at most `watch_s` ago while the monitor runs."""
        usage = self.usage
        return PerformanceStatus(
            memory_mb=usage.memory_mb,
            memory_limit_mb=self.memory_limit_mb,
            cpu_percent=usage.cpu_percent,
            monitor_failures=usage.failures + self.watch_failures,
        )

    def _event_accounting(self) -> EventAccounting:
        telemetry = self.telemetry
        return EventAccounting(
            received=telemetry.received,
            journaled=telemetry.journaled,
            filtered=telemetry.filtered,
            malformed=telemetry.malformed.total(),
            dropped=dict(telemetry.dropped),
            pending=self.batcher.pending_points + self.pipeline.waiting_events,
        )

    def _journal_status(self) -> JournalStatus:
        status = self.journal.status()
        oldest_at = self.batcher.oldest_at
        return replace(
            status,
            pending_points=self.batcher.pending_points + self.pipeline.waiting_events,
            oldest_pending_seconds=(
                max(0.0, round(time.time() - oldest_at, 3)) if oldest_at else 0.0
            ),
            last_commit_delay_seconds=self.telemetry.last_commit_delay_s,
            durable=status.durable and self.batcher.durable,
            losing=self.batcher.losing,
            reason=self.batcher.reason or status.reason,
        )


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
