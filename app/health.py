"""The one picture of health: `/health`, `/metrics` and the dashboard render this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from app.runtime.retry import BreakerState

Status = Literal["healthy", "degraded", "unhealthy"]
ConnectionState = Literal[
    "disconnected", "connecting", "authenticating", "subscribing", "connected", "waiting"
]
SinkState = Literal["ok", "waiting", "holding", "refusing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerStatus:
    """One circuit breaker."""

    state: BreakerState = "closed"
    failure_count: int = 0
    last_failure: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionStatus:
    """The connection to Home Assistant."""

    current_state: ConnectionState = "disconnected"
    connection_attempts: int = 0
    successful_connections: int = 0
    failed_connections: int = 0
    last_successful: datetime | None = None
    next_attempt_in_seconds: float | None = None
    ha_version: str | None = None
    ha_state: str | None = None
    """Home Assistant's own `RUNNING`, `NOT_RUNNING`, …; None before it was asked."""
    is_subscribed: bool = False
    reason: str | None = None
    """One sentence that says what is wrong and what a person can do; None when all is well."""
    token_refused: bool = False
    """Whether the last attempt ended because Home Assistant refused the token."""
    breaker: BreakerStatus = field(default_factory=BreakerStatus)


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalStatus:
    """What waits between receipt and the sinks."""

    pending_points: int = 0
    """Received and not yet committed, those that sinks may have from memory included."""
    oldest_pending_seconds: float = 0.0
    bytes: int = 0
    max_bytes: int = 0
    """The bound of `bytes`, as JOURNAL_MAX_MB sets it."""
    free_disk_bytes: int | None = None
    """What is free on the disk of DATA_DIR; None when the journal is in memory
    or the disk does not say."""
    durable: bool = True
    """False while commits fail, or when the journal is in memory."""
    losing: bool = False
    """Whether events are dropped because neither disk nor memory takes them."""
    salvaged: int = 0
    appended_points: int = 0
    """Points appended since the start of the process."""
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkStatus:
    """One sink and its place in the journal."""

    name: str
    state: SinkState = "ok"
    held_at_start: int = 0
    points_written: int = 0
    points_dead_lettered: int = 0
    points_dropped: int = 0
    points_expired: int = 0
    """Of the dropped: not stored by the database because they are older than its retention."""
    held: int = 0
    """Points journaled, or buffered while commits fail, and not yet acknowledged by this sink."""
    lag_seconds: float = 0.0
    """Age of the oldest held point."""
    drained_in_seconds: float | None = None
    """When the backlog will be gone at the present pace; None when unknown or nothing is held."""
    last_write: datetime | None = None
    last_error: str | None = None
    breaker: BreakerStatus = field(default_factory=BreakerStatus)
    reason: str | None = None
    """One sentence that says what is wrong and what a person can do; None when all is well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryStatus:
    """What is known of Home Assistant's registries."""

    devices: int = 0
    entities: int = 0
    areas: int = 0
    last_refresh: datetime | None = None
    is_stale: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataApiStatus:
    """How far the data API is behind the registries."""

    rows_sent: int = 0
    rows_waiting: int = 0
    rows_refused: int = 0
    """Given up until they change: it takes their neighbors."""
    last_sent: datetime | None = None
    reason: str | None = None
    breaker: BreakerStatus = field(default_factory=BreakerStatus)


@dataclass(frozen=True, slots=True, kw_only=True)
class GapsStatus:
    """Spans of Home Assistant's time in which nothing was captured."""

    open: int = 0
    filled: int = 0
    nothing_recorded: int = 0
    unfillable: int = 0
    backfilled: int = 0
    """Points read back from the recorder since the start of the process."""
    reason: str | None = None
    """One sentence when what was missed cannot be read back now; None when all is well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventAccounting:
    """Where every received event went: received is the sum of all the others."""

    received: int = 0
    journaled: int = 0
    filtered: int = 0
    malformed: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    pending: int = 0

    @property
    def balance(self) -> int:
        """Events that no book knows; anything but 0 is a defect of ours."""
        known = self.journaled + self.filtered + self.malformed + self.pending
        return self.received - known - sum(self.dropped.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything a person or a program may ask about the state of this process."""

    version: str
    timestamp: datetime
    uptime_seconds: float
    connection: ConnectionStatus
    journal: JournalStatus
    sinks: Sequence[SinkStatus]
    discovery: DiscoveryStatus
    gaps: GapsStatus
    events: EventAccounting
    events_per_minute: float
    last_event: datetime | None
    dead_letters: int
    dead_letters_discarded: int
    """Dead letters lost since the start because there were too many of them."""
    watchers: int
    """Clients connected to `/ws`."""
    memory_mb: float
    memory_limit_mb: float
    cpu_percent: float
    failures: Mapping[str, str]
    """Loops of ours that ended early, with why."""
    data_api: DataApiStatus | None = None
    """None without DATA_API_URL."""
    damage: Sequence[str] = ()
    """A sentence for each local file, beside the journal's, that is or was damaged."""
    filter_reason: str | None = None
    """One sentence while the file of the entity filter cannot be used."""
    monitor_failures: int = 0
    """Readings of memory and processor time, and rounds of the monitor, that failed."""
    transform_failures: Mapping[str, int] = field(default_factory=dict)
    """Changes that broke a transform and went on as they were, by its name."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Return what a person should look at, worst first; empty when all is well."""
        return (*self._broken(), *self._troubled())

    @property
    def status(self) -> Status:
        """Return `unhealthy` only when this process itself is broken, never for a neighbor."""
        if self._broken():
            return "unhealthy"
        return "degraded" if self.reasons else "healthy"

    @property
    def memory_reason(self) -> str | None:
        """Return a sentence while memory is over the limit, else None."""
        if self.memory_mb <= self.memory_limit_mb:
            return None
        return (
            f"Memory is {self.memory_mb:.0f} MB, over MAX_MEMORY_MB ="
            f" {self.memory_limit_mb:.0f}. Raise the limit or report a leak."
        )

    @property
    def ready(self) -> bool:
        """Whether events can be journaled."""
        return not self._broken()

    def _broken(self) -> tuple[str, ...]:
        reasons = [
            f"The {name} loop ended: {why}. The service is stopping; see the log."
            for name, why in self.failures.items()
        ]
        if self.journal.losing:
            reasons.append(
                "Events are being dropped: neither the disk nor memory takes any more of them."
            )
        return tuple(reasons)

    def _troubled(self) -> tuple[str, ...]:
        parts = [
            self.connection.reason,
            self.journal.reason,
            *self.damage,
            *(sink.reason for sink in self.sinks),
            self.discovery.reason,
            self.data_api.reason if self.data_api else None,
            self.filter_reason,
            self.gaps.reason,
        ]
        reasons = [reason for reason in parts if reason]
        if self.dead_letters:
            reasons.append(
                f"{self.dead_letters} points were refused by the database and wait as dead"
                " letters. See /api/v1/dead-letters for why, then retry or delete them."
            )
        if self.dead_letters_discarded:
            reasons.append(
                f"{self.dead_letters_discarded} dead letters were lost because there were too many."
                " Mend what the database refuses, then retry or delete them."
            )
        if self.memory_reason:
            reasons.append(self.memory_reason)
        return tuple(reasons)
