"""The point schema `homeiq`: how a change is encoded as a line; pure.

Tags, sorted by key: area_id, device_class, device_id, domain,
entity_id, event_category, event_type, instance, integration, unit_of_measurement.

Fields, in this order: friendly_name, manufacturer, model,
sw_version; available, state_value, value (or removed); previous_state; attributes,
attr_*; duration_in_state_seconds; context_id, context_parent_id, context_user_id;
backfilled.

Unknown tags and fields are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import msgspec

from app.model import UNAVAILABLE, Change, LastState, Lines, Placement, StoredPoint
from app.runtime.globs import glob_matcher
from app.schema.line_protocol import escape_field_key, escape_measurement, escape_tag, quote

_SeriesKey: TypeAlias = tuple[Placement, str, str | None, str | None, str | None, str]
"""What a series' tags and names are made of, besides the entity id."""

VALUES_OF_WORDS = {
    "on": 1.0,
    "off": 0.0,
    "open": 1.0,
    "closed": 0.0,
    "home": 1.0,
    "not_home": 0.0,
    "locked": 1.0,
    "unlocked": 0.0,
    "above_horizon": 1.0,
    "below_horizon": 0.0,
    "true": 1.0,
    "false": 0.0,
    "True": 1.0,
    "False": 0.0,
    "yes": 1.0,
    "no": 0.0,
}
"""Binary states: Home Assistant's own pairs, and how templates write booleans.

States of entities with more than two (`opening`, `jammed`, `idle`, `paused`) are not here, nor are
names of zones: a person in the zone `work` is neither 1 nor 0.
"""

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")

_MAX_NUMBER_CHARS = 1_024
"""A state has at most 255."""

_SECURITY_CLASSES = frozenset({"door", "window", "motion", "lock", "smoke", "gas"})

_MAX_CACHED_STATE_LENGTH = 64


def value_of(state: str) -> float | None:
    """Return the number that a state stands for, if any."""
    if len(state) <= _MAX_NUMBER_CHARS and _NUMBER.fullmatch(state):
        value = float(state)
        return value if math.isfinite(value) else None
    return VALUES_OF_WORDS.get(state)


def category_of(domain: str, device_class: str | None) -> str:
    """Return the event category; the first rule that matches decides."""
    if domain in {"alarm_control_panel", "lock"} or device_class in _SECURITY_CLASSES:
        return "security"
    if domain == "climate" or device_class in {"temperature", "humidity"}:
        return "climate"
    if domain == "light":
        return "lighting"
    if domain in {"switch", "fan", "vacuum"} or device_class in {"power", "energy"}:
        return "appliance"
    return "monitoring" if domain in {"sensor", "binary_sensor"} else "general"


class _Series:
    """The encoded parts that an entity's lines share."""

    __slots__ = ("attributes", "attributes_fields", "head", "key")

    def __init__(self, key: _SeriesKey, head: bytes) -> None:
        self.key = key
        self.head = head
        """Measurement, tags, and the fields that name the entity and its device."""
        self.attributes: bytes | None = None
        self.attributes_fields = b""


class _StateFields(NamedTuple):
    """The fields of a state: of the present one, and of the same state as the previous one."""

    present: bytes
    previous: bytes


class HomeiqEncoder:
    """Encodes changes as lines; caches the parts that repeat, within bounds."""

    def __init__(
        self,
        measurement: str,
        *,
        instance: str | None,
        attribute_fields: Sequence[str],
        max_cached_bytes: int = 32_000_000,
        max_cached_states: int = 20_000,
    ) -> None:
        """Store the names of the measurement and of this Home Assistant, and compile the globs.

        `attribute_fields`: globs of attributes that become fields of their own.
        """
        self._measurement = escape_measurement(measurement)
        self._instance = instance
        self._is_field = glob_matcher(attribute_fields) if attribute_fields else None
        self._max_cached_bytes = max_cached_bytes
        self._max_cached_states = max_cached_states
        self._series: dict[str, _Series] = {}
        self._cached_bytes = 0
        self._states: dict[str, _StateFields] = {}

    def encode(self, changes: Sequence[Change]) -> Lines:
        """Return exactly one line for each change, in order."""
        # The hot path, measured as "encode" in benchmarks/README.md: most bytes of a line are
        # cached parts.
        if self._cached_bytes > self._max_cached_bytes:
            self._series.clear()
            self._cached_bytes = 0
        states = self._states
        parts: list[bytes] = []
        for change in changes:
            series = self._series_of(change)
            now, before = b"removed=true", b""
            if (state := change.state) is not None:
                now = (states.get(state) or self._state_fields(state)).present
            if (previous := change.previous_state) is not None:
                before = (states.get(previous) or self._state_fields(previous)).previous
            parts += (series.head, now, before, series.attributes_fields, _end(change))
        return Lines(b"".join(parts), len(changes))

    def _series_of(self, change: Change) -> _Series:
        key = (
            change.placement,
            change.domain,
            change.device_class,
            change.unit_of_measurement,
            change.friendly_name,
            change.event_type,
        )
        series = self._series.get(change.entity_id)
        if series is None or series.key != key:
            series = self._new_series(change, key)
        if series.attributes != change.attributes:
            self._set_attributes(series, change.attributes)
        return series

    def _new_series(self, change: Change, key: _SeriesKey) -> _Series:
        tags = b"".join(
            b",%b=%b" % (name, escape_tag(value))
            for name, value in tags_of(change, self._instance)
            if value
        )
        fields = b"".join(
            b"%b=%b," % (name, quote(value)) for name, value in _names(change) if value is not None
        )
        series = _Series(key, b"%b%b %b" % (self._measurement, tags, fields))
        if (former := self._series.get(change.entity_id)) is not None:
            self._cached_bytes -= len(former.head) + len(former.attributes_fields)
        self._cached_bytes += len(series.head)
        self._series[change.entity_id] = series
        return series

    def _set_attributes(self, series: _Series, attributes: bytes) -> None:
        fields = b",attributes=" + quote(attributes)
        if self._is_field is not None:
            fields += _attribute_fields(attributes, self._is_field)
        self._cached_bytes += len(fields) - len(series.attributes_fields)
        series.attributes = attributes
        series.attributes_fields = fields

    def _state_fields(self, state: str) -> _StateFields:
        value = value_of(state)
        quoted = quote(state)
        available = b"false" if state in UNAVAILABLE else b"true"
        number = b"" if value is None else b",value=%a" % value
        fields = _StateFields(
            present=b"available=%b,state_value=%b%b" % (available, quoted, number),
            previous=b",previous_state=" + quoted,
        )
        if len(state) <= _MAX_CACHED_STATE_LENGTH:
            if len(self._states) >= self._max_cached_states:
                self._states.clear()
            self._states[state] = fields
        return fields


def tags_of(change: Change, instance: str | None) -> tuple[tuple[bytes, str | None], ...]:
    """Return the tags of a change in order; those without a value are not written."""
    placement = change.placement
    return (
        (b"area_id", placement.area_id),
        (b"device_class", change.device_class),
        (b"device_id", placement.device_id),
        (b"domain", change.domain),
        (b"entity_id", change.entity_id),
        (b"event_category", category_of(change.domain, change.device_class)),
        (b"event_type", change.event_type),
        (b"instance", instance),
        (b"integration", placement.integration),
        (b"unit_of_measurement", change.unit_of_measurement),
    )


def _names(change: Change) -> tuple[tuple[bytes, str | None], ...]:
    placement = change.placement
    return (
        (b"friendly_name", change.friendly_name),
        (b"manufacturer", placement.manufacturer),
        (b"model", placement.model),
        (b"sw_version", placement.sw_version),
    )


def _end(change: Change) -> bytes:
    """Return the end of a line: the parts that differ every time."""
    end = b""
    if change.duration_s is not None:
        end = b",duration_in_state_seconds=%a" % change.duration_s
    if (context := change.context) is not None:
        if context.id is not None:
            end += b",context_id=" + quote(context.id)
        if context.parent_id is not None:
            end += b",context_parent_id=" + quote(context.parent_id)
        if context.user_id is not None:
            end += b",context_user_id=" + quote(context.user_id)
    if change.backfilled:
        end += b",backfilled=true"
    return b"%b %d\n" % (end, change.time_ns)


_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _attribute_fields(attributes: bytes, is_field: Callable[[str], object]) -> bytes:
    """Return the chosen attributes as fields of their own, each with a comma before it."""
    fields: dict[bytes, bytes] = {}
    for name, value in _MEMBERS.decode(attributes).items():
        if is_field(name):
            fields.update(_attribute_field(escape_field_key("attr_" + name), bytes(value)))
    return b"".join(b",%b=%b" % field for field in fields.items())


def _attribute_field(key: bytes, value: bytes) -> dict[bytes, bytes]:
    """Return one attribute as a float field, else as a text field; none for null.

    Keys of text fields, and only they, end in `_str`: so a number whose name ends in it is text.
    """
    if value == b"null":
        return {}
    if not key.endswith(b"_str"):
        number = _BOOLEANS.get(value)
        if number is None and value[0] in b"-0123456789":
            number = float(value)
        if number is not None and math.isfinite(number):
            return {key: repr(number).encode()}
    text = quote(msgspec.json.decode(value, type=str) if value[0] == _QUOTE else bytes(value))
    return {key + b"_str": text}


_BOOLEANS = {b"true": 1.0, b"false": 0.0}
_QUOTE = ord('"')


_ENTITY_ID = re.compile(rb",entity_id=((?:[^,= \\]|\\.)+)")
_ESCAPED = re.compile(r"\\([,= ])")


def identity_of(line: bytes) -> tuple[str, int] | None:
    """Return the entity id and time in nanoseconds of a line; None if it is of another schema."""
    # Far cheaper than parsing the whole line, and a restart may read hundreds of thousands.
    match = _ENTITY_ID.search(line)
    if match is None:
        return None
    try:
        return _ESCAPED.sub(r"\1", match[1].decode()), int(line[line.rfind(b" ") + 1 :])
    except ValueError:
        return None


def last_state_of(point: StoredPoint, former: LastState | None) -> LastState:
    """Return the state that a parsed point records; `former` is its entity's state before it."""
    state, previous = (_text(point.fields.get(name)) for name in ("state_value", "previous_state"))
    if previous != state or point.fields.get("duration_in_state_seconds"):
        changed_ns: int | None = point.time_ns
    else:
        changed_ns = former.changed_ns if former and former.state == state else None
    return LastState(state, changed_ns, point.time_ns)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
