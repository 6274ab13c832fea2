"""Converts points of Home Assistant's own layout into points of the schema `homeiq`; pure.

docs/COPY.md states what is carried over. Whatever cannot be known of a point is not written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from app.commands.copy.entity_history import Holder, KnownEntity
from app.commands.copy.rows import Row, pair, string, text_in, unescaped
from app.model import NOWHERE, Change
from app.schema.homeiq import tags_of, value_of
from app.schema.line_protocol import (
    escape_field_key,
    escape_measurement,
    escape_tag,
    parse_line,
    quote,
)

STATE, VALUE = "state", "value"
_NAME, _CLASS, _UNIT = "friendly_name", "device_class", "unit_of_measurement"
_TEXT_SUFFIX = "_str"
_NAMING = frozenset(name + _TEXT_SUFFIX for name in (_NAME, _CLASS, _UNIT))
OWN_FIELD = "state_value"
"""The field by which a measurement of the schema `homeiq` is recognized."""

_NULL = "None"
"""What Home Assistant writes for an attribute that is null."""
_MAX_EXACT_INTEGER = 2**53
_MAX_CACHED = 50_000
_OBJECT_ID = re.compile(r"[^.]+")
_COPIED = b"copied=true"


class Unconvertible(ValueError):
    """A point that is not of Home Assistant's own layout, or has no state."""


class ConvertedPoint(NamedTuple):
    """A point of the schema `homeiq`."""

    entity_id: str
    time_ns: int
    state: bytes
    """The encoded number, else the encoded text: what is compared with the target."""
    row: Row
    is_registered: bool
    """Whether the entity is in the catalog."""


class _Series(NamedTuple):
    """What the tags of a point say."""

    measurement: str
    entity_id: str
    domain: str
    tags: Mapping[str, str]
    holders: Sequence[Holder]


class _Head(NamedTuple):
    """The parts that points of an entity share."""

    series: bytes
    name: bytes | None
    is_registered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionOptions:
    """What decides how points are converted."""

    measurement: str
    instance: str | None
    is_attribute_field: Callable[[str], object] | None
    """Matches attributes that become fields of their own; None for none."""
    other_measurements: Collection[str] = ()
    """Measurements that are not units: the source's `default_measurement` and overrides."""
    has_texts: bool = True
    """Whether the source stores text."""


class Conversion:
    """Converts points; caches what the points of an entity share, within a bound."""

    def __init__(
        self, options: ConversionOptions, holders: Callable[[str], Sequence[Holder]]
    ) -> None:
        """`holders` returns which entities of the catalog had an entity id, oldest first."""
        self._options = options
        self._holders = holders
        self._measurement = escape_measurement(options.measurement)
        self._series: dict[bytes, _Series] = {}
        self._heads: dict[tuple[object, ...], _Head] = {}

    def wants(self, field: str) -> bool:
        """Whether a field of the source is needed."""
        if field in {STATE, VALUE, OWN_FIELD} or field in _NAMING:
            return True
        matches = self._options.is_attribute_field
        return matches is not None and bool(
            matches(field) or matches(field.removesuffix(_TEXT_SUFFIX))
        )

    def convert(self, row: Row) -> ConvertedPoint:
        """Return the point of a row that has all wanted fields of its point.

        Raises:
            Unconvertible: the row is not of Home Assistant's own layout, or has no state.
        """
        head, encoded, time_ns = row
        fields = dict(map(pair, encoded))
        series = self._series.get(head) or self._new_series(head)
        state, value = self._state(fields)
        shared = self._head(series, head, fields, time_ns, is_text=b"state" in fields)
        written = [] if shared.name is None else [shared.name]
        written.append(b"available=true")
        if state is not None:
            written.append(b"state_value=" + quote(state))
        if value is not None:
            written.append(b"value=%a" % value)
        if self._options.is_attribute_field is not None:
            written += self._attributes(fields)
        written.append(_COPIED)
        compared = quote(state or "") if value is None else b"%a" % value
        return ConvertedPoint(
            series.entity_id,
            time_ns,
            compared,
            (shared.series, written, time_ns),
            shared.is_registered,
        )

    def _state(self, fields: Mapping[bytes, bytes]) -> tuple[str | None, float | None]:
        """Return the state and its number; None for what is not known."""
        state, number = fields.get(b"state"), fields.get(b"value")
        if state is not None and state.startswith(b'"'):
            # A number beside a text is of a binary word, or an attribute named `value`.
            text = text_in(state)
            return text, value_of(text)
        value = None if number is None else _number(number)
        if value is None:
            raise Unconvertible(
                "it has neither a state nor a value"
                if self._options.has_texts
                else "its state is text, which VictoriaMetrics does not store"
            )
        if not self._options.has_texts and state is not None:
            return None, value  # a word, such as `on`, that is not known
        return _text_of(value), value

    def _new_series(self, head: bytes) -> _Series:
        try:
            point = parse_line(head + b" x=0 0")
        except ValueError as exc:
            raise Unconvertible("its tags cannot be read") from exc
        domain, object_id = point.tags.get("domain", ""), point.tags.get("entity_id", "")
        if not domain or not object_id:
            raise Unconvertible("it has no tags domain and entity_id")
        if not _OBJECT_ID.fullmatch(object_id) or "." in domain:
            raise Unconvertible("its tags domain and entity_id are not Home Assistant's")
        entity_id = f"{domain}.{object_id}"
        series = _Series(point.measurement, entity_id, domain, point.tags, self._holders(entity_id))
        if len(self._series) >= _MAX_CACHED:
            self._series.clear()
        self._series[head] = series
        return series

    def _head(
        self,
        series: _Series,
        head: bytes,
        fields: Mapping[bytes, bytes],
        time_ns: int,
        *,
        is_text: bool,
    ) -> _Head:
        place = 0
        while time_ns >= series.holders[place].until_ns and place < len(series.holders) - 1:
            place += 1
        own = tuple(fields.get(key) for key in _NAMING_KEYS)
        key = (head, place, is_text, own)
        shared = self._heads.get(key)
        if shared is None:
            shared = self._new_head(series, series.holders[place].entity, own, is_text=is_text)
            if len(self._heads) >= _MAX_CACHED:
                self._heads.clear()
            self._heads[key] = shared
        return shared

    def _new_head(
        self,
        series: _Series,
        entity: KnownEntity | None,
        own: Sequence[bytes | None],
        *,
        is_text: bool,
    ) -> _Head:
        name, device_class, unit = (
            text_in(text)
            if text is not None and text.startswith(b'"')
            else series.tags.get(attribute)
            for text, attribute in zip(own, (_NAME, _CLASS, _UNIT), strict=True)
        )
        placement = NOWHERE if entity is None else entity.placement
        if entity is not None:
            name = name or entity.names.friendly_name or placement.name
        change = Change(
            entity_id=series.entity_id,
            domain=series.domain,
            time_ns=0,
            state="",
            previous_state=None,
            duration_s=None,
            attributes=b"{}",
            device_class=device_class or _class_of(series, entity),
            unit_of_measurement=unit or self._unit_of(series, entity, is_text=is_text),
            friendly_name=name,
            context=None,
            placement=placement,
        )
        tags = b"".join(
            b",%b=%b" % (tag, escape_tag(value))
            for tag, value in tags_of(change, self._options.instance)
            if value
        )
        return _Head(
            self._measurement + tags,
            None if name is None else b"friendly_name=" + quote(name),
            entity is not None,
        )

    def _unit_of(self, series: _Series, entity: KnownEntity | None, *, is_text: bool) -> str | None:
        """Return the measurement if it is the unit, as with Home Assistant's default options."""
        measurement = series.measurement
        is_named_otherwise = (
            measurement in {series.entity_id, series.domain}
            or measurement.startswith(f"{series.domain}__")
            or measurement in self._options.other_measurements
        )
        has_none = entity is not None and entity.names.unit_of_measurement is None
        return None if is_text or is_named_otherwise or has_none else measurement

    def _attributes(self, fields: Mapping[bytes, bytes]) -> list[bytes]:
        matches = self._options.is_attribute_field
        assert matches is not None
        found = []
        for key, encoded in fields.items():
            field = unescaped(key).decode(errors="replace")
            is_text = encoded.startswith(b'"')
            name = field.removesuffix(_TEXT_SUFFIX) if is_text else field
            # A number beside a text of the same name was made of its digits.
            is_made = not is_text and key + b"_str" in fields
            if field in {STATE, VALUE} or is_made or not matches(name):
                continue
            if is_text and field.endswith(_TEXT_SUFFIX) and (text := text_in(encoded)) != _NULL:
                found.append(b"%b_str=%b" % (escape_field_key("attr_" + name), quote(text)))
            elif not is_text and not field.endswith(_TEXT_SUFFIX):
                number = _number(encoded)
                if number is not None:
                    found.append(b"%b=%a" % (escape_field_key("attr_" + name), number))
        return found


_NAMING_KEYS = tuple((name + _TEXT_SUFFIX).encode() for name in (_NAME, _CLASS, _UNIT))


def _class_of(series: _Series, entity: KnownEntity | None) -> str | None:
    prefix, _, device_class = series.measurement.partition("__")
    if prefix == series.domain and device_class:  # `measurement_attr: domain__device_class`
        return device_class
    return None if entity is None else entity.names.device_class


def _number(encoded: bytes) -> float | None:
    try:
        value = float(encoded.rstrip(b"iu"))
    except ValueError:  # a text or a boolean
        return None
    return value if math.isfinite(value) else None


def _text_of(value: float) -> str:
    """Return the shortest text of a number; the state may have had zeros at its end."""
    if value.is_integer() and abs(value) <= _MAX_EXACT_INTEGER:
        return str(int(value))
    return repr(value)


def state_of(fields: Mapping[bytes, bytes]) -> bytes:
    """Return what `ConvertedPoint.state` is for a point of the target."""
    value = fields.get(b"value")
    if value is not None:
        return b"%a" % _number(value)
    return fields.get(b"state_value", string(b""))
