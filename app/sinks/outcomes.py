"""What a sink is given and what it may answer: the whole vocabulary of delivery.

An answer says what happened, never what to do about it: that is decided in one place, for
every sink alike. A sink translates each foreign status and exception into one of these; an
exception that leaves `write` is a defect of ours.
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

    def gzip_at_hand(self) -> bytes | None:
        """Return all lines as one gzip member if that is no work; None: call `gzip_body`."""
        ...

    def gzip_body(self) -> bytes:
        """Return all lines as one gzip member; may compress, so call it in a thread.

        Raises:
            StorageDamaged: the journal's bytes cannot be unpacked.
        """
        ...


@dataclass(frozen=True, slots=True)
class Accepted:
    """Every point is stored, and stays stored: the only success."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The content was refused, wholly or in part: sending it again unchanged will not help."""

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
    """How many it did not store; None when it does not say."""
    status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TooLarge:
    """The request was too large, whatever it holds."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Nothing will be accepted until a person acts: a wrong token, bucket or address."""

    reason: str
    advice: str
    """One sentence that names what to look at, for example `Check INFLUXDB_TOKEN.`"""
    status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """The sink asks to be left alone for a while."""

    reason: str
    retry_after_s: float | None = None
    """How long it asked for, in seconds; None when it did not say."""
    status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOut:
    """No answer came in time; the points may or may not be stored."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """The sink was not reached, or what answered was not it: reset, DNS, TLS, redirect, a 200."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFailed:
    """The sink was reached and broke down over the request: a 5xx other than 503."""

    reason: str
    status: int | None = None


Outcome: TypeAlias = (
    Accepted
    | Refused
    | OutOfBounds
    | TooLarge
    | Held
    | Busy
    | TimedOut
    | Unavailable
    | ServerFailed
)


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
    """When the process started, in the database's words; None when it does not say."""


class Sink(Protocol):
    """A place that points are written to; one request at a time."""

    @property
    def name(self) -> str:
        """What the journal's cursor and the metrics call it; a short lower-case word."""
        ...

    async def write(self, batch: Batch) -> Outcome:
        """Write a batch and say how it went; writing the same points again changes nothing."""
        ...

    async def ping(self) -> bool:
        """Say within a few seconds whether the sink answers at all."""
        ...
