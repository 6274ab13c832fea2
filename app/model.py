"""Types and times that the packages share: changes, encoded points, journal rows and gaps; pure."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple, TypeAlias

import msgspec

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND_NS = 1_000_000_000
MEGABYTE = 1_000_000
"""What the settings that end in `_MB` count in."""
MAX_SECONDS = 9_223_372_036
MAX_TIME_NS = 2**63 - 2
"""InfluxDB's first and last moment are this far from the epoch, in 1677 and 2262.

Times outside are refused where they are decoded: neither a point nor SQLite can hold them.
"""
_MAX_DATE_CHARS = 100
"""An HTTP date has 29 characters."""


def is_representable(time_ns: int) -> bool:
    """Whether a point, a gap or a query can have this time."""
    return -MAX_TIME_NS <= time_ns <= MAX_TIME_NS


def nanoseconds(moment: datetime) -> int:
    """Return nanoseconds since the epoch, exact to the microsecond."""
    since_epoch = moment - EPOCH
    seconds = since_epoch.days * 86_400 + since_epoch.seconds
    # Whole numbers: microseconds since the epoch do not fit a float's 53 bits for ever.
    return (seconds * 1_000_000 + since_epoch.microseconds) * 1_000


def moment_of(time_ns: int) -> datetime:
    """Return the moment, to the microsecond, that many nanoseconds after the epoch.

    A time that no point can have becomes the nearest one that a point can have.
    """
    # The first microsecond is not a whole one: rounding down would leave what fits.
    bounded_ns = max(-MAX_TIME_NS + 999, min(time_ns, MAX_TIME_NS))
    seconds, rest_ns = divmod(bounded_ns, SECOND_NS)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest_ns // 1_000)


def iso_time(time_ns: int) -> str:
    """Return nanoseconds since the epoch as ISO 8601 in UTC, to the microsecond."""
    seconds, rest_ns = divmod(time_ns, SECOND_NS)
    return f"{_iso_second(seconds)}.{rest_ns // 1000:06d}Z"


@functools.lru_cache(maxsize=256)  # most events of a batch fall into one second
def _iso_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def moment_at(seconds: float) -> datetime:
    """Return the moment that many seconds after the epoch, from a file or a clock.

    It is bounded like `moment_of`; what is no number becomes the epoch.
    """
    if math.isnan(seconds):
        return EPOCH
    return datetime.fromtimestamp(max(-MAX_SECONDS, min(seconds, MAX_SECONDS)), UTC)


def http_date(text: str | None) -> datetime | None:
    """Return the moment, in UTC, that an HTTP date names.

    None without one, when it is garbled, and when a point could not have that time.

    https://www.rfc-editor.org/rfc/rfc9110#field.date
    """
    try:
        moment = parsedate_to_datetime((text or "")[:_MAX_DATE_CHARS])
        if moment.tzinfo is None:  # `-0000`: in UTC, of unknown origin
            moment = moment.replace(tzinfo=UTC)
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):  # the standard library raises both for absurd numbers
        return None
    return moment if is_representable(nanoseconds(moment)) else None


UNAVAILABLE = frozenset({"unavailable", "unknown"})
"""States in which Home Assistant does not know what an entity is like."""


class Context(msgspec.Struct, frozen=True, gc=False):
    """Who or what caused a change."""

    id: str | None = None
    parent_id: str | None = None
    user_id: str | None = None


class Placement(msgspec.Struct, frozen=True, gc=False):
    """What the registries know of an entity; None where they know nothing.

    The catalog hands out the same object until something in it changes, so identity
    (`is`) may stand for equality in caches.
    """

    device_id: str | None = None
    area_id: str | None = None
    area_name: str | None = None
    integration: str | None = None
    name: str | None = None
    """The name people gave the entity, or the registry's own."""
    manufacturer: str | None = None
    model: str | None = None
    sw_version: str | None = None
    floor_id: str | None = None
    labels: tuple[str, ...] = ()


NOWHERE = Placement()
"""The placement of an entity that no registry knows."""

Placements: TypeAlias = Mapping[str, Placement]
"""Where entities are, by their ids. It never changes: when one moves, there is another mapping."""


class LastNames(NamedTuple):
    """What an entity keeps while it is unavailable; None for what it does not have."""

    device_class: str | None
    unit_of_measurement: str | None
    friendly_name: str | None


class Rename(NamedTuple):
    """An entity that got another id."""

    former: str
    entity_id: str
    is_missed: bool = False
    """Whether it happened while nobody listened: the removal of the former id is in no event."""
    at_s: float | None = None
    """When the registry says that it was changed, in seconds since the epoch."""


class Change(msgspec.Struct, frozen=True, gc=False):
    """One normalized and enriched state change: all that a point or a watcher needs."""

    entity_id: str
    domain: str
    time_ns: int
    """Nanoseconds since the epoch: `last_updated`, or `time_fired` of a removal."""
    state: str | None
    """None when the entity was removed."""
    previous_state: str | None
    duration_s: float | None
    """How long the previous state lasted; None when there was none."""
    attributes: bytes
    """A compact JSON object in UTF-8 that always parses; `{}` when there are none."""
    device_class: str | None
    unit_of_measurement: str | None
    friendly_name: str | None
    context: Context | None
    placement: Placement
    event_type: str = "state_changed"
    backfilled: bool = False
    changed_ns: int | None = None
    """When the entity came into this state, `last_changed`; None when nobody said."""

    @property
    def removed(self) -> bool:
        """Whether the entity was removed."""
        return self.state is None


_LINE = re.compile(
    rb"(?:[^ \\\n]|\\.)++ "  # measurement and tags: quotes mean nothing, a space ends them
    rb'(?:"(?:[^"\\]|\\.)*+"|[^"\n])*+\n',  # fields and time: a newline may stand in quotes
    re.DOTALL,
)


class Times(NamedTuple):
    """The span of Home Assistant's time in which some changes happened, both ends included."""

    oldest_ns: int
    newest_ns: int


def spanned(some: Times | None, others: Times | None) -> Times | None:
    """Return the span that holds both."""
    if some is None or others is None:
        return some or others
    return Times(min(some.oldest_ns, others.oldest_ns), max(some.newest_ns, others.newest_ns))


@dataclass(frozen=True, slots=True)
class Lines:
    """Encoded points: line protocol, each line ended by a newline.

    A newline may also stand inside a quoted string field, so only `split` may cut.
    """

    data: bytes
    points: int
    times: Times | None = None
    """When they happened; None for points that did not come live from Home Assistant."""

    def split(self) -> list[bytes]:
        """Return the lines one by one, without their final newline."""
        lines = self.data.split(b"\n")
        lines.pop()
        if len(lines) == self.points:
            return lines
        lines, end = [], 0
        # Up to the first that is no line: what a damaged row holds is not searched for others.
        while (match := _LINE.match(self.data, end)) is not None:
            lines.append(self.data[end : match.end() - 1])
            end = match.end()
        return lines


@dataclass(frozen=True, slots=True)
class Row:
    """What one commit put into the journal: consecutive points, compressed."""

    first: int
    """Sequence number of the first point; they count up by one, starting at 1."""
    points: int
    gzip: bytes
    """One gzip stream with the lines."""
    received_at: float
    """When the oldest point of the row was received, in seconds since the epoch."""

    @property
    def last(self) -> int:
        """Sequence number of the last point."""
        return self.first + self.points - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """What one sink has not acked yet."""

    points: int
    oldest_at: float | None
    """When the oldest of them was received, in seconds since the epoch; None without points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPoint:
    """A line of line protocol, parsed back."""

    measurement: str
    tags: Mapping[str, str]
    fields: Mapping[str, str | float | bool | int]
    time_ns: int


GapReason = Literal[
    "restart", "disconnect", "clock", "journal_stalled", "journal_full", "damage", "requested"
]
"""Why nothing was captured: the service was not running, the connection was lost, the clock of
Home Assistant was set back, points were dropped before they were durable, a damaged journal took
them with it; or a person asks for history from before."""

GapState = Literal["open", "filled", "nothing_recorded", "unfillable"]
"""Whether a gap is still to be filled, was filled from the recorder, was read although the recorder
holds nothing of it, or cannot be filled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A span of Home Assistant's time that the journal does not cover, both ends included."""

    id: int
    start_ns: int
    end_ns: int
    reason: GapReason
    found_at: float
    """Seconds since the epoch, on our clock."""
    edge_at: float
    """When the last point before it was received, in seconds since the epoch on our clock."""
    state: GapState = "open"
    filled_ns: int | None = None
    """Up to where it is filled; None when nothing is yet."""
    changes: int = 0
    """How many changes were read back."""
    entities: int = 0
    """Of how many entities."""
    unrecorded: tuple[str, ...] = ()
    """Entities that changed in it and have no recorded history."""
    entity_ids: tuple[str, ...] = ()
    """Only these are to be read back; empty for all."""
    start_known: bool = True
    """False until Home Assistant's states show since when it runs: `start_ns` is then 0."""
    end_known: bool = True
    """False until a live event shows that all that was missed is older: `end_ns` is then the
    newest moment seen so far, and everything after it is requested as well."""
    acknowledged: bool = False
    """Whether a person has noted that it cannot be filled."""
    keep_from: int = 0
    """From this sequence number on, rows of the journal stay while the gap is open: what is read
    back near its bounds is compared with them."""
    sources: tuple[str, ...] = ()
    """Where the entities were found that were requested from the recorder."""
    limitations: tuple[str, ...] = ()
    """What cannot be known of it, in sentences."""
    detail: str | None = None
    """Why it cannot be filled, or what the last attempt said."""
    closed_at: float | None = None
    """When it was filled or given up; None while open."""


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """When Home Assistant began to stop and had started, in nanoseconds, oldest first."""

    stopped_ns: Sequence[int] = ()
    started_ns: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class LastState:
    """What is remembered of an entity's newest change."""

    state: str | None
    changed_ns: int | None
    time_ns: int
