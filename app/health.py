"""The state of the service at one moment: the body of `/health` and the source of `/metrics`.

`Snapshot` is served as it is: each field is a member of the JSON and appears in `/docs`;
properties are not served. To add a fact, add a field with a default here and set it in the
`status()` of its component or in `HealthCollector`. No third file is involved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from app.runtime.retry import BreakerState, BreakerStatus

Status = Literal["healthy", "degraded", "unhealthy"]
ConnectionState = Literal[
    "disconnected", "connecting", "authenticating", "subscribing", "connected", "waiting"
]
SinkState = Literal["ok", "waiting", "holding", "refusing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionStatus:
    """The connection to Home Assistant."""

    is_running: bool = True
    """Whether our task that connects and reconnects runs."""
    current_state: ConnectionState = "disconnected"
    connection_attempts: int = 0
    successful_connections: int = 0
    failed_connections: int = 0
    last_successful: datetime | None = None
    next_attempt_in_seconds: float | None = None
    ha_version: str | None = None
    ha_state: str | None = None
    """`RUNNING`, `NOT_RUNNING`, … as Home Assistant reports it; None before it was asked."""
    is_subscribed: bool = False
    reason: str | None = None
    """What is wrong and what to do, in one sentence; None when nothing is."""
    token_refused: bool = False
    """Whether Home Assistant refused the token at the last attempt."""
    breaker: BreakerStatus = field(default_factory=BreakerStatus)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionStatus:
    """The event stream from Home Assistant."""

    is_subscribed: bool = False
    total_events_received: int = 0
    event_rate_per_minute: float = 0.0
    last_event: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalStatus:
    """The journal and the events on their way into it."""

    pending_points: int = 0
    """Received and not committed, including those that sinks may read from memory."""
    oldest_pending_seconds: float = 0.0
    last_commit_delay_seconds: float | None = None
    """From receipt of the oldest event of the last commit until the commit was durable."""
    bytes: int = 0
    max_bytes: int = 0
    """JOURNAL_MAX_MB."""
    free_disk_bytes: int | None = None
    """Free space on the disk of DATA_DIR; None for a journal in memory, or when unknown."""
    durable: bool = True
    """False while commits fail, and for a journal in memory."""
    losing: bool = False
    """Whether events are dropped because neither disk nor memory has room."""
    salvaged: int = 0
    """Points recovered from a damaged file at this start."""
    appended_points: int = 0
    """Points appended since the start."""
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkStatus:
    """A sink and its position in the journal."""

    name: str
    state: SinkState = "ok"
    held_at_start: int = 0
    """Points buffered for this sink when the process started."""
    points_written: int = 0
    points_dead_lettered: int = 0
    points_dropped: int = 0
    """Points that this sink will never receive: lost at a bound, damaged, or expired."""
    points_expired: int = 0
    """Part of `points_dropped`: older than the database's retention, so not stored by it."""
    points_left_out: int = 0
    """Points that are not in this sink's schema, such as unavailable states."""
    held: int = 0
    """Points buffered for this sink."""
    lag_seconds: float = 0.0
    """Age of the oldest buffered point."""
    last_delay_seconds: float | None = None
    """From receipt of the oldest event of the last batch until the sink accepted the batch."""
    drained_in_seconds: float | None = None
    """Estimated time until the backlog is written; None when unknown or without a backlog."""
    last_write: datetime | None = None
    last_error: str | None = None
    breaker: BreakerState = "closed"
    reason: str | None = None


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
    """The transfer of devices and entities to the data API."""

    rows_sent: int = 0
    rows_waiting: int = 0
    rows_refused: int = 0
    """Rows that were given up until they change."""
    last_sent: datetime | None = None
    reason: str | None = None
    breaker: BreakerStatus = field(default_factory=BreakerStatus)


@dataclass(frozen=True, slots=True, kw_only=True)
class GapsStatus:
    """Spans of time in which nothing was captured."""

    open: int = 0
    filled: int = 0
    """Read back, including those of which the recorder holds nothing."""
    nothing_recorded: int = 0
    """Part of `filled`: the recorder holds nothing of these."""
    unfillable: int = 0
    backfilled: int = 0
    """Points read back from the recorder since the start."""
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventAccounting:
    """What became of every received event: `received` is the sum of all the others."""

    received: int = 0
    journaled: int = 0
    filtered: int = 0
    malformed: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    """By cause."""
    pending: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """The totals, which must balance."""

    events: EventAccounting


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformanceStatus:
    """Memory and processor time of this process."""

    memory_mb: float = 0.0
    memory_limit_mb: float = 0.0
    """MAX_MEMORY_MB; above it the service is degraded."""
    cpu_percent: float = 0.0
    """100 is one core."""
    monitor_failures: int = 0
    """Readings of the above, and rounds of the monitor, that failed."""

    @property
    def reason(self) -> str | None:
        """A sentence while memory is over the limit, else None."""
        if self.memory_mb <= self.memory_limit_mb:
            return None
        return (
            f"Memory is {self.memory_mb:.0f} MB, over MAX_MEMORY_MB ="
            f" {self.memory_limit_mb:.0f}. Raise the limit or report a leak."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of the service at one moment."""

    status: Status = field(init=False, default="healthy")
    """`unhealthy` only when this process itself is broken, never because a dependency is."""
    reasons: Sequence[str] = field(init=False, default=())
    """What needs attention, worst first: sentences with the problem and what to do."""
    service: Literal["websocket-ingestion"] = "websocket-ingestion"
    version: str
    timestamp: datetime
    uptime: str = field(init=False, default="")
    uptime_seconds: float
    connection: ConnectionStatus
    subscription: SubscriptionStatus
    circuit_breaker: BreakerStatus = field(init=False, default_factory=BreakerStatus)
    """The breaker of the connection to Home Assistant."""
    journal: JournalStatus
    sinks: Sequence[SinkStatus]
    discovery: DiscoveryStatus
    accounting: Accounting
    gaps: GapsStatus
    performance: PerformanceStatus
    dead_letters: int = 0
    """Dead letters stored, of all sinks."""
    dead_letters_discarded: int = 0
    """Dead letters lost since the start because there were too many."""
    clients: int = 0
    """Clients connected to `/ws`."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Tasks of this process that ended early, with the cause."""
    data_api: DataApiStatus | None = None
    """None without DATA_API_URL."""
    damage: Sequence[str] = ()
    """A sentence for each local file, except the journal, that is or was damaged."""
    filter_reason: str | None = None
    """A sentence while the file of the entity filter cannot be used."""
    transform_failures: Mapping[str, int] = field(default_factory=dict)
    """Changes that a transform failed on and that were written unchanged, by transform."""
    corrections: Mapping[str, int] = field(default_factory=dict)
    """Parts of points that were left out because InfluxDB would refuse them, by kind; see
    docs/SCHEMA.md."""

    def __post_init__(self) -> None:
        """Derive the members that follow from the others."""
        broken, degraded = self._broken(), self._degraded()
        status = "unhealthy" if broken else "degraded" if degraded else "healthy"
        derived = {
            "status": status,
            "reasons": (*broken, *degraded),
            "uptime": str(timedelta(seconds=self.uptime_seconds)),
            "circuit_breaker": self.connection.breaker,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)  # frozen: only while it is made

    @property
    def ready(self) -> bool:
        """Whether events can be journaled."""
        return self.status != "unhealthy"

    def _broken(self) -> list[str]:
        reasons = [
            f"The {name} loop ended: {why}. The service is stopping; see the log."
            for name, why in self.failures.items()
        ]
        if self.journal.losing:
            reasons.append(
                "Events are being dropped: neither the disk nor memory has room for more."
            )
        return reasons

    def _degraded(self) -> list[str]:
        reasons = [
            self.connection.reason,
            self.journal.reason,
            *self.damage,
            *(sink.reason for sink in self.sinks),
            self.discovery.reason,
            self.data_api.reason if self.data_api else None,
            self.filter_reason,
            self.gaps.reason,
            self.dead_letters
            and f"{self.dead_letters} points were refused by the database and wait as dead"
            " letters. See /api/v1/dead-letters for why, then retry or delete them.",
            self.dead_letters_discarded
            and f"{self.dead_letters_discarded} dead letters were lost because there were too many."
            " Fix what the database refuses, then retry or delete them.",
            self.performance.reason,
        ]
        return [reason for reason in reasons if reason]
