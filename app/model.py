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
MICROSECOND_NS = 1_000
MEGABYTE = 1_000_000
"""The unit of the settings that end in `_MB`."""
MAX_SECONDS = 9_223_372_036
MAX_TIME_NS = 2**63 - 2
"""Distance of InfluxDB's first and last time from the epoch, in 1677 and 2262.

Decoders refuse other times: neither a point nor SQLite can hold them.
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
    # Integers: from 2255 on, microseconds since the epoch exceed a float's 53 bits.
    return (seconds * 1_000_000 + since_epoch.microseconds) * 1_000


def moment_of(time_ns: int) -> datetime:
    """Return the time that many nanoseconds after the epoch, to the microsecond.

    A time outside the range of a point's time becomes the nearest inside.
    """
    # The range does not begin with a whole microsecond, and rounding down would leave it.
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
    """Return the time that many seconds after the epoch, from a file or a clock.

    It is bounded like `moment_of`; NaN becomes the epoch.
    """
    if math.isnan(seconds):
        return EPOCH
    return datetime.fromtimestamp(max(-MAX_SECONDS, min(seconds, MAX_SECONDS)), UTC)


def http_date(text: str | None) -> datetime | None:
    """Return the time in an HTTP date, in UTC.

    None if there is no date, it is malformed, or outside the range of a point's time.

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
"""States in which Home Assistant does not know the entity's real state."""


class Context(msgspec.Struct, frozen=True, gc=False):
    """Who or what caused a change."""

    id: str | None = None
    parent_id: str | None = None
    user_id: str | None = None


class Placement(msgspec.Struct, frozen=True, gc=False):
    """What the registries record of an entity; None for what they do not.

    The catalog returns the same object until something in it changes, so caches may compare by
    identity.
    """

    device_id: str | None = None
    area_id: str | None = None
    area_name: str | None = None
    integration: str | None = None
    name: str | None = None
    """The name that the user gave the entity, else its original name."""
    manufacturer: str | None = None
    model: str | None = None
    sw_version: str | None = None
    floor_id: str | None = None
    labels: tuple[str, ...] = ()


NOWHERE = Placement()
"""The placement of an entity that is in no registry."""

Placements: TypeAlias = Mapping[str, Placement]
"""Placements by entity id. Immutable: a change makes another mapping."""


class LastNames(NamedTuple):
    """The class, unit and name that an unavailable entity retains; None for what it lacks."""

    device_class: str | None
    unit_of_measurement: str | None
    friendly_name: str | None


class Rename(NamedTuple):
    """A change of an entity's id."""

    former: str
    entity_id: str
    is_missed: bool = False
    """Whether it happened during an outage, so that no event reported the removal."""
    at_s: float | None = None
    """The time of the change in Home Assistant, in seconds since the epoch."""
    entry: str = ""
    """What identifies the entity across renames; "" while only an event is known."""


IdentityKind: TypeAlias = Literal["entity_id", "device_id", "area_id", "split"]
"""Which id changed; `split`: a device was replaced by several."""
TimeSource: TypeAlias = Literal["event", "registry", "discovered"]
"""Whether a time is that of the event, of the registry row, or of our discovery."""


class IdentityChange(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A change of an entity's id, device or area, or of a device's id or area."""

    what: IdentityKind
    entity_id: str | None = None
    """The entity that changed, by its id after the change; None for a device."""
    device_id: str | None = None
    """The device that changed, by its id after the change; None for an entity."""
    old: str | None
    new: str | None
    at: datetime
    at_source: TimeSource
    first_point: datetime | None = None
    """The first point under a new entity id; None if it is not known."""
    entry: str | None = None
    """What identifies the entity across renames; None for a device."""


class Change(msgspec.Struct, frozen=True, gc=False):
    """A normalized state change with its placement: everything that points and subscribers need."""

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
    """When the entity entered this state, `last_changed`; None if unknown."""
    fired_ns: int | None = None
    """When the event was fired; None if that is `time_ns`, or unknown."""
    all_attributes: bytes | None = None
    """The attributes without the bound on `attributes`; None if they are the same."""

    @property
    def removed(self) -> bool:
        """Whether the entity was removed."""
        return self.state is None


_LINE = re.compile(
    rb"(?:[^ \\\n]|\\.)++ "  # measurement and tags: quotes mean nothing, a space ends them
    rb'(?:"(?:[^"\\]|\\.)*+"|[^"\n])*+\n',  # fields and time: quoted text may contain a newline
    re.DOTALL,
)


class Times(NamedTuple):
    """A span of Home Assistant's time, both ends included."""

    oldest_ns: int
    newest_ns: int


def spanned(some: Times | None, others: Times | None) -> Times | None:
    """Return the smallest span that includes both."""
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
    database: bytes | None = None
    """The lines for the database, if it gets another schema: one for each point, in which nothing
    but its end is a newline, and an empty one for a point that it does not get."""

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
    """Consecutive points of the journal, compressed."""

    first: int
    """Sequence number of the first point; they increase by one, from 1."""
    points: int
    gzip: bytes
    """One gzip stream with the lines."""
    received_at: float
    """When the oldest point of the row was received, in seconds since the epoch."""
    left_out: tuple[int, ...] = ()
    """Which of its points, counted from 0, have no line, because the sink does not get them."""

    @property
    def last(self) -> int:
        """Sequence number of the last point."""
        return self.first + self.points - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """What one sink has not acked yet."""

    points: int
    oldest_at: float | None
    """When the oldest point was received, in seconds since the epoch; None without points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPoint:
    """A parsed line of line protocol."""

    measurement: str
    tags: Mapping[str, str]
    fields: Mapping[str, str | float | bool | int]
    time_ns: int


GapReason = Literal[
    "restart", "disconnect", "clock", "journal_stalled", "journal_full", "damage", "requested"
]
"""Why nothing was captured: the service was not running, the connection was lost, the clock of
Home Assistant was set back, points were dropped before they were durable (the journal was slow, or
full), the journal was damaged; or a person requested older history."""

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
    """The time up to which it is filled; None if nothing is."""
    changes: int = 0
    """The number of changes read back."""
    entities: int = 0
    """The number of entities that these changes belong to."""
    unrecorded: tuple[str, ...] = ()
    """Entities that changed in it and have no recorded history."""
    entity_ids: tuple[str, ...] = ()
    """The entities to read back; empty for all."""
    start_known: bool = True
    """False until Home Assistant's states show when it started; `start_ns` is 0 until then."""
    end_known: bool = True
    """False until a live event shows that everything missed is older. Until then `end_ns` is the
    newest time seen, and everything after it is requested as well."""
    acknowledged: bool = False
    """Whether a person has noted that it cannot be filled."""
    keep_from: int = 0
    """While the gap is open, the journal retains rows from this sequence number on: changes read
    back near its bounds are compared with them."""
    sources: tuple[str, ...] = ()
    """The sources that listed the requested entities."""
    limitations: tuple[str, ...] = ()
    """What cannot be known of the gap, in sentences."""
    detail: str | None = None
    """Why it cannot be filled, or the result of the last attempt."""
    closed_at: float | None = None
    """When it was filled or given up; None while open."""


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """When Home Assistant began to stop, and had started, in nanoseconds, oldest first."""

    stopped_ns: Sequence[int] = ()
    started_ns: Sequence[int] = ()


class LastState(msgspec.Struct, frozen=True, gc=False):
    """An entity's newest change, as far as it is stored."""

    state: str | None
    changed_ns: int | None
    time_ns: int
