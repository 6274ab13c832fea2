"""The point schema `homeiq`: what one change looks like as a line.

Tags, sorted by key, only those that are known: area_id, device_class, device_id, domain,
entity_id, event_category, event_type, instance, integration, unit_of_measurement.

Fields, in this order, only those that are known: friendly_name, manufacturer, model,
sw_version; available, state_value, value (or removed); previous_state; attributes,
attr_*; duration_in_state_seconds; context_id, context_parent_id, context_user_id;
backfilled.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from app.model import UNAVAILABLE, Change, LastState, Lines, StoredPoint
from app.schema.line_protocol import (
    MAX_STRING_BYTES,
    escape_field_key,
    escape_measurement,
    escape_tag,
    quote,
    quote_utf8,
)

_Octets: TypeAlias = str
"""UTF-8 as text of one character per byte: only so can an f-string put a line together."""

_ENCODING = "latin-1"
"""What makes bytes of such text, and such text of bytes, without changing any."""

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
"""States that are one of two: Home Assistant's own pairs, and how templates write booleans.

Words with a third neighbor are not here (`opening`, `jammed`, `idle`, `paused`), nor is a zone's
name: a person who is in the zone `work` is neither 1 nor 0.
"""

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")

_MAX_NUMBER_CHARS = 1_024
"""A state has at most 255."""

_SECURITY_CLASSES = frozenset({"door", "window", "motion", "lock", "smoke", "gas"})

_MAX_CACHED_STATE_LENGTH = 64


def value_of(state: str) -> float | None:
    """Return the number a state stands for; None when it stands for none."""
    if len(state) <= _MAX_NUMBER_CHARS and _NUMBER.fullmatch(state):
        value = float(state)
        return value if math.isfinite(value) else None
    return VALUES_OF_WORDS.get(state)


def category_of(domain: str, device_class: str | None) -> str:
    """Return the event category: the first that fits, in the order of the lines."""
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
    """What stays the same from one change of an entity to the next, already encoded.

    The pieces are `_Octets`: UTF-8 in a `str` of one character per byte.
    """

    __slots__ = (
        "attributes",
        "attributes_fields",
        "device_class",
        "event_type",
        "friendly_name",
        "head",
        "placement",
        "state",
        "state_fields",
        "unit_of_measurement",
    )

    def __init__(self, change: Change, head: _Octets) -> None:
        self._remember(change)
        self.head = head
        self.attributes: bytes | None = None
        self.attributes_fields: _Octets = ""
        self.state: str | None = None
        """The newest state, and its fields: it will be the next one's previous state."""
        self.state_fields: tuple[_Octets, _Octets] = ("", "")

    def fits(self, change: Change) -> bool:
        """Whether tags and names say the same; if so, remember the objects that say it now."""
        if (
            self.placement is not change.placement
            or self.device_class != change.device_class
            or self.unit_of_measurement != change.unit_of_measurement
            or self.friendly_name != change.friendly_name
            or self.event_type != change.event_type
        ):
            return False
        self._remember(change)
        return True

    def _remember(self, change: Change) -> None:
        self.placement = change.placement
        self.device_class = change.device_class
        self.unit_of_measurement = change.unit_of_measurement
        self.friendly_name = change.friendly_name
        self.event_type = change.event_type


class HomeiqEncoder:
    """Encodes changes as lines; remembers what repeats, within a bound."""

    def __init__(
        self,
        measurement: str,
        *,
        instance: str | None,
        attribute_fields: Sequence[str],
        max_cached_bytes: int = 32_000_000,
        max_cached_states: int = 20_000,
    ) -> None:
        """Take the name of the measurement, of this Home Assistant, and globs of attributes."""
        self._measurement = escape_measurement(measurement)
        self._instance = instance
        self._wanted = (
            re.compile("|".join(fnmatch.translate(glob) for glob in attribute_fields))
            if attribute_fields
            else None
        )
        self._max_cached_bytes = max_cached_bytes
        self._max_cached_states = max_cached_states
        self._series: dict[str, _Series] = {}
        self._cached_bytes = 0
        self._states: dict[str, tuple[_Octets, _Octets]] = {}

    def encode(self, changes: Sequence[Change]) -> Lines:
        """Return exactly one line for each change, in order."""
        # One loop, five parts a line and one join: what an entity repeats (tags, names,
        # attributes) is found encoded, which is most of the bytes. See `make bench`.
        if self._cached_bytes > self._max_cached_bytes:
            self._series.clear()
            self._cached_bytes = 0
        series_of = self._series.get
        fields_of = self._states.get
        parts: list[_Octets] = []
        for change in changes:
            series = series_of(change.entity_id)
            if (
                series is None
                or series.placement is not change.placement
                or series.device_class is not change.device_class
                or series.unit_of_measurement is not change.unit_of_measurement
                or series.friendly_name is not change.friendly_name
                or series.event_type is not change.event_type
            ):
                series = self._series_of(change)
            if series.attributes != change.attributes:
                self._renew_attributes(series, change.attributes)
            now, before = "removed=true", ""
            if (previous := change.previous_state) is not None:
                if previous == series.state:  # nearly always
                    before = series.state_fields[1]
                else:
                    before = (fields_of(previous) or self._state_fields(previous))[1]
            if (state := change.state) is not None:
                if state != series.state:
                    series.state_fields = fields_of(state) or self._state_fields(state)
                    series.state = state
                now = series.state_fields[0]
            parts += (series.head, now, before, series.attributes_fields, _end(change))
        return Lines("".join(parts).encode(_ENCODING), len(changes))

    def _series_of(self, change: Change) -> _Series:
        """Return the series of a change that does not hold the very objects of the last one."""
        series = self._series.get(change.entity_id)
        return series if series is not None and series.fits(change) else self._new_series(change)

    def _new_series(self, change: Change) -> _Series:
        tags = b"".join(
            b"," + key + b"=" + escape_tag(value)
            for key, value in _tags(change, self._instance)
            if value
        )
        fields = b"".join(
            key + b"=" + quote(value) + b"," for key, value in _names(change) if value is not None
        )
        series = _Series(change, _octets(self._measurement + tags + b" " + fields))
        self._cached_bytes += len(series.head)
        if (former := self._series.get(change.entity_id)) is not None:
            self._cached_bytes -= len(former.head) + len(former.attributes_fields)
        self._series[change.entity_id] = series
        return series

    def _renew_attributes(self, series: _Series, attributes: bytes) -> None:
        fields = b",attributes=" + quote_utf8(attributes)
        if self._wanted is not None:
            fields += _attribute_fields(attributes, self._wanted)
        self._cached_bytes += len(fields) - len(series.attributes_fields)
        series.attributes = attributes
        series.attributes_fields = _octets(fields)

    def _state_fields(self, state: str) -> tuple[_Octets, _Octets]:
        """Return the fields of the present state, and that of the same state when it is past."""
        value = value_of(state)
        if value is None or len(state) > _MAX_CACHED_STATE_LENGTH:
            quoted = _octets(quote(state))
        else:
            quoted = f'"{state}"'  # numbers and words hold nothing to escape
        available = "false" if state in UNAVAILABLE else "true"
        number = "" if value is None else f",value={value!r}"
        fields = (
            f"available={available},state_value={quoted}{number}",
            f",previous_state={quoted}",
        )
        if len(state) <= _MAX_CACHED_STATE_LENGTH:
            if len(self._states) >= self._max_cached_states:
                self._states.clear()
            self._states[state] = fields
        return fields


def _octets(data: bytes) -> _Octets:
    return data.decode(_ENCODING)


def _tags(change: Change, instance: str | None) -> tuple[tuple[bytes, str | None], ...]:
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


def _end(change: Change) -> _Octets:
    """Return the end of a line: what is different every time."""
    end = ""
    if (duration_s := change.duration_s) is not None:
        end = f",duration_in_state_seconds={duration_s!r}"
    if (context := change.context) is not None:
        if (context_id := context.id) is not None:
            end += f",context_id={_quoted(context_id)}"
        if (parent_id := context.parent_id) is not None:
            end += f",context_parent_id={_quoted(parent_id)}"
        if (user_id := context.user_id) is not None:
            end += f",context_user_id={_quoted(user_id)}"
    if change.backfilled:
        end += ",backfilled=true"
    return f"{end} {change.time_ns}\n"


def _quoted(text: str) -> _Octets:
    # An id of Home Assistant's holds nothing to escape, and this is cheaper than `quote`.
    if text.isascii() and '"' not in text and "\\" not in text and len(text) <= MAX_STRING_BYTES:
        return f'"{text}"'
    return _octets(quote(text))


_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _attribute_fields(attributes: bytes, wanted: re.Pattern[str]) -> bytes:
    """Return the wanted attributes as fields of their own, each with a comma before it."""
    fields: dict[bytes, bytes] = {}
    for name, value in _MEMBERS.decode(attributes).items():
        if wanted.match(name):
            fields.update(_attribute_field(escape_field_key("attr_" + name), bytes(value)))
    return b"".join(b",%b=%b" % field for field in fields.items())


def _attribute_field(key: bytes, value: bytes) -> dict[bytes, bytes]:
    """Return one attribute as a float, else as text; a null is no field.

    Keys of texts, and only they, end in `_str`: a number whose name ends so is text as well.
    """
    if value == b"null":
        return {}
    if not key.endswith(b"_str"):
        number = _BOOLEANS.get(value)
        if number is None and value[0] in b"-0123456789":
            number = float(value)
        if number is not None and math.isfinite(number):
            return {key: repr(number).encode()}
    text = quote(msgspec.json.decode(value, type=str)) if value[0] == _QUOTE else quote_utf8(value)
    return {key + b"_str": text}


_BOOLEANS = {b"true": 1.0, b"false": 0.0}
_QUOTE = ord('"')


_ENTITY_ID = re.compile(rb",entity_id=((?:[^,= \\]|\\.)+)")
_ESCAPED = re.compile(r"\\([,= ])")


def identity_of(line: bytes) -> tuple[str, int] | None:
    """Return the entity id and the nanoseconds of a line; None when it is not one of ours."""
    # Far cheaper than reading the whole line, and a restart may read hundreds of thousands.
    match = _ENTITY_ID.search(line)
    if match is None:
        return None
    try:
        return _ESCAPED.sub(r"\1", match[1].decode()), int(line[line.rfind(b" ") + 1 :])
    except ValueError:
        return None


def last_state_of(point: StoredPoint, former: LastState | None) -> LastState:
    """Return what a point, read back, says of its entity; `former` is what the one before said."""
    state, previous = (_text(point.fields.get(name)) for name in ("state_value", "previous_state"))
    if previous != state or point.fields.get("duration_in_state_seconds"):
        changed_ns: int | None = point.time_ns
    else:
        changed_ns = former.changed_ns if former and former.state == state else None
    return LastState(state, changed_ns, point.time_ns)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
