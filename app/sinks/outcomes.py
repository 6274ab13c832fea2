"""The interface of sinks, and the outcomes of writing a batch.

An outcome says what happened; `retry_policy` decides what to do about it, for all sinks. A sink
translates each foreign status and exception into an outcome; an exception from `write` is a bug.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

from app.sinks.batches import Batch, FieldName


@dataclass(frozen=True, slots=True)
class Accepted:
    """Every point is stored durably: the only success."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The content was refused, wholly or in part; sending it again unchanged will not help."""

    reason: str
    """The database's own words: one line, at most 500 characters, without secrets."""
    status: int | None = None
    """The HTTP status; None from a sink that does not speak HTTP."""
    advice: str | None = None
    """One sentence that says what a person can do when every point is refused like this."""
    conflict: FieldName | None = None
    """The field that the database holds with another type, when that is the reason."""
    dropped: int | None = None
    """How many points have such a field, of one shard or more; None when unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfBounds:
    """Points were refused for a limit of the database, not for what they hold.

    The other points of the batch, if there are any, are stored.
    """

    cause: Literal["retention", "limit"]
    """Their age, or a limit of series, tag values, tables or columns."""
    reason: str
    """The database's own words, without series keys and tag values."""
    dropped: int | None = None
    """How many it did not store; None when unknown."""
    status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TooLarge:
    """The request was too large, whatever it holds."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Nothing is accepted until a person acts: a wrong token, bucket or address."""

    reason: str
    advice: str
    """One sentence that says what to check, for example `Check INFLUXDB_TOKEN.`"""
    status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """The sink limits the rate or is temporarily unavailable: 429, 503."""

    reason: str
    retry_after_s: float | None = None
    """Retry-After in seconds; None without one."""
    status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOut:
    """No response came in time; the points may or may not be stored."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """The sink was not reached, or something else responded: reset, DNS, TLS, redirect, a 200."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFailed:
    """The sink failed on the request: a 5xx other than 503."""

    reason: str
    status: int | None = None


Failure: TypeAlias = (
    Refused | OutOfBounds | TooLarge | Held | Busy | TimedOut | Unavailable | ServerFailed
)
Outcome: TypeAlias = Accepted | Failure


class RefusedLine(NamedTuple):
    """A line that becomes a dead letter."""

    sequence: int
    """Its number in the journal."""
    line: bytes
    reason: str
    """The database's own words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProcess:
    """The running process of a database, for databases that acknowledge before they store."""

    flush_s: float = 0.0
    """Seconds from an acknowledgement until its points are on disk; 0 when they already are."""
    started: str | None = None
    """When the process started, as the database states it; None when unknown."""


class Sink(Protocol):
    """A destination of points; one request at a time."""

    name: str
    """Its name in the journal's cursor and the metrics; a short lower-case word."""

    async def write(self, batch: Batch) -> Outcome:
        """Write a batch and return the outcome; writing it again changes nothing."""
        ...

    async def ping(self) -> bool:
        """Return within a few seconds whether the sink responds at all."""
        ...
