"""The interface of sinks: batches, and the outcomes of writing them.

An outcome says what happened; `retry_policy` decides what to do about it, for all sinks. A sink
translates each foreign status and exception into an outcome; an exception from `write` is a bug.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias


class Batch(Protocol):
    """Points of the journal in order, at least one, to be written in one request.

    They are consecutive, but for pieces of a batch that a limit of the database refused in part.
    """

    @property
    def first(self) -> int:
        """Sequence number of the first point."""
        ...

    @property
    def last(self) -> int:
        """Sequence number of the last point."""
        ...

    @property
    def points(self) -> int:
        """How many lines it holds."""
        ...

    @property
    def received_at(self) -> float:
        """When the oldest point was received, in seconds since the epoch."""
        ...

    def lines(self) -> list[bytes]:
        """Return the lines in order, without newlines; may decompress, so call it in a thread.

        Raises:
            StorageDamaged: the journal's bytes are not the lines they should be.
        """
        ...

    @property
    def gzip(self) -> bytes | None:
        """All lines as one gzip stream; None when the lines must be compressed first."""
        ...


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


@dataclass(frozen=True, slots=True)
class FieldName:
    """A field as a database names it."""

    name: str
    measurement: str | None = None
    """None when the database does not name it."""


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

    @property
    def name(self) -> str:
        """Its name in the journal's cursor and the metrics; a short lower-case word."""
        ...

    async def write(self, batch: Batch) -> Outcome:
        """Write a batch and return the outcome; writing it again changes nothing."""
        ...

    async def ping(self) -> bool:
        """Return within a few seconds whether the sink responds at all."""
        ...
