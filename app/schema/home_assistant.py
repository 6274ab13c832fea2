r"""The point schema `home_assistant`: the lines of Home Assistant's `influxdb` integration; pure.

The rules are those of Home Assistant 2026.11; docs/SCHEMA.md states them. Two of its clients write
different text: `v1` for InfluxDB 1 and `v2` for InfluxDB 2.

InfluxDB refuses, or ignores, some lines that Home Assistant writes. They are sent without the
offending part, and counted. These are the only differences, the members of `Correction`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from app.model import Change
from app.schema.home_assistant_options import (
    EntityOptions,
    Options,
    Precision,
    entity_options,
    selection,
)
from app.schema.python_text import text_of, with_digits_of_3_14

Text: TypeAlias = Literal["v1", "v2"]
"""The client whose escaping, floats and rounding of times are used."""

Correction: TypeAlias = Literal[
    "comment",
    "empty_measurement",
    "time_tag",
    "reserved_tag",
    "backslash",
    "backslash_key",
    "empty_key",
    "not_finite",
    "no_fields",
]
"""What is left out because InfluxDB would refuse, or ignore, the line:

* `comment`: `#` at the beginning of a measurement, which makes the line a comment; if nothing is
  left, the default measurement or the entity id is used;
* `empty_measurement`: a measurement that is empty, or of characters that InfluxDB skips; the
  default measurement or the entity id is used;
* `time_tag`: a tag named `time`;
* `reserved_tag`: in `v2`, a tag whose name InfluxDB 2 reserves;
* `backslash`: backslashes at the end of a tag's value, in `v1`, where they escape what follows;
* `backslash_key`: a tag, or the last field, whose key ends in a backslash; in `v2` also a field
  whose key has an unescaped one at the end or before a separator;
* `empty_key`: a field without a name, in `v2`;
* `not_finite`: a state that is NaN or infinite, in `v1`;
* `no_fields`: the whole point, because no field is left.
"""

_UNWRITTEN_STATES = frozenset({"", "unknown", "unavailable"})
_ONES = frozenset({"on", "locked", "above_horizon", "open", "home"})
_ZEROS = frozenset({"off", "unlocked", "below_horizon", "closed", "not_home"})

_UNIT = "unit_of_measurement"
_CLASS = "device_class"

_UNIT_NS: Mapping[Precision | None, int] = {
    None: 1,
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
}

_MAX_CACHED_STATE_CHARS = 64
_MAX_CACHED_VALUE_BYTES = 100

_ENTITY_BYTES = 200
_FIELD_BYTES = 300
"""Estimates, with Python's overhead."""


class EncodedChanges(NamedTuple):
    """The lines of some changes."""

    lines: Sequence[bytes | None]
    """A line with its newline for each change; None for one that this schema does not write."""
    corrections: Mapping[Correction, int]
    """How often something was left out."""


_V1_ESCAPES = str.maketrans({"\\": "\\\\", " ": "\\ ", ",": "\\,", "=": "\\=", "\n": "\\n"})
_V2_MEASUREMENT_ESCAPES = str.maketrans(
    {",": "\\,", " ": "\\ ", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
)
_V2_ESCAPES = {**_V2_MEASUREMENT_ESCAPES, ord("="): "\\="}
_STRING_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"'})


class _State(NamedTuple):
    """The fields of a state."""

    first: bytes
    second: bytes
    """Those that are written, `state` before `value`; empty for one that is not."""
    fields: tuple[str, ...]
    """The names that attributes must not take, even when the field is not written."""
    written: tuple[str, ...]
    """Those of `fields` that are written; no two `fields` have the same."""
    is_corrected: bool
    """Whether a number was left out."""


_Fields: TypeAlias = tuple[tuple[str, bytes], ...]
"""Fields by their unescaped key."""


class _Head(NamedTuple):
    """The beginning of a line, and what follows from the same attributes."""

    data: bytes
    """Measurement, tags and a space."""
    left_out: frozenset[str | None]
    """Attributes that are not fields."""
    corrections: tuple[Correction, ...]


class _Template(NamedTuple):
    """What the lines of an entity with the same attributes and kind of state share.

    A line consists of the start, the first field of the state, the middle, the second, and the end.
    """

    start: bytes
    middle: bytes
    end: bytes
    corrections: tuple[Correction, ...]
    has_fields: bool
    """False if there is nothing to write: no attributes, and no field of the state."""


class _Entity:
    """An entity's options and its latest templates."""

    __slots__ = ("attributes", "fields", "head", "head_key", "options", "size", "templates")

    def __init__(self, options: EntityOptions | None) -> None:
        self.options = options
        """None when the filter leaves the entity out."""
        self.attributes: bytes | None = None
        self.fields: dict[str, tuple[msgspec.Raw, _Fields]] = {}
        """By name of an attribute: its JSON, and its fields if they clash with no other."""
        self.head: _Head | None = None
        self.head_key: tuple[bytes | None, ...] = ()
        """The attributes that the head depends on."""
        self.templates: dict[tuple[str, ...], _Template] = {}
        self.size = 0


class HomeAssistantEncoder:
    """Encodes changes as Home Assistant does; caches the parts that repeat, within bounds."""

    def __init__(
        self,
        options: Options,
        *,
        text: Text,
        verbatim: bool = False,
        max_cached_bytes: int = 32_000_000,
        max_cached_states: int = 20_000,
    ) -> None:
        """Store the options and the client whose text is written.

        `verbatim`: nothing is corrected, and times are in the unit of `precision`, which Home
        Assistant sends beside the lines. Otherwise they are nanoseconds, cut to that unit.
        """
        self._options = options
        self._options_of = entity_options(options)
        self._selects = selection(options)
        self._comment = _COMMENTS[text]
        self._is_v1 = text == "v1"
        self._escapes = _V1_ESCAPES if self._is_v1 else _V2_ESCAPES
        self._in_head = (_UNIT, _CLASS, *options.tags_attributes)
        self._time_of = _time_writer(options.precision, text, verbatim=verbatim)
        self._verbatim = verbatim
        self._max_cached_bytes = max_cached_bytes
        self._max_cached_states = max_cached_states
        self._entities: dict[str, _Entity] = {}
        self._cached_bytes = 0
        self._states: dict[str, _State] = {}
        self._fields: dict[tuple[str, bytes], _Fields] = {}
        """By name and JSON of an attribute that is not a number: many entities repeat those."""

    def encode(self, changes: Sequence[Change]) -> EncodedChanges:
        """Return the line of each change, in order."""
        # The hot path, measured as "encode_home_assistant" in benchmarks/README.md.
        if self._cached_bytes > self._max_cached_bytes:
            self._entities.clear()
            self._cached_bytes = 0
        lines: list[bytes | None] = []
        corrections: Counter[Correction] = Counter()
        for change in changes:
            state_text = change.state
            if state_text is None or state_text in _UNWRITTEN_STATES:
                lines.append(None)
                continue
            entity = self._entities.get(change.entity_id) or self._new_entity(change.entity_id)
            if entity.options is None:
                lines.append(None)
                continue
            state = self._states.get(state_text) or self._new_state(state_text)
            template = self._template(entity, change, state)
            if template.corrections:
                corrections.update(template.corrections)
            if state.is_corrected:
                corrections["not_finite"] += 1
            if not template.has_fields:
                corrections["no_fields"] += 1
                lines.append(b"\n" if self._verbatim else None)
                continue
            time = self._time_of(change.time_ns if change.fired_ns is None else change.fired_ns)
            parts = (template.start, state.first, template.middle, state.second, template.end)
            lines.append(b"%b %d\n" % (b"".join(parts), time))
        return EncodedChanges(lines, corrections)

    def _new_entity(self, entity_id: str) -> _Entity:
        options = self._options_of(entity_id) if self._selects(entity_id) else None
        entity = self._entities[entity_id] = _Entity(options)
        self._cached_bytes += _ENTITY_BYTES
        return entity

    def _new_state(self, text: str) -> _State:
        value, has_text = _value_of(text)
        is_finite = value is None or math.isfinite(value)
        # The second client leaves out what is not finite.
        is_written = is_finite or (self._is_v1 and self._verbatim)
        fields = (("state",) if has_text else ()) + (("value",) if value is not None else ())
        text_field = self._field("state", _single_line(text)) if has_text else b""
        number_field = b"" if value is None or not is_written else self._field("value", value)
        state = _State(
            first=text_field or number_field,
            second=number_field if has_text else b"",
            fields=fields,
            written=fields if is_written else fields[:-1],
            is_corrected=self._is_v1 and not is_written,
        )
        if len(text) <= _MAX_CACHED_STATE_CHARS:
            if len(self._states) >= self._max_cached_states:
                self._states.clear()
            self._states[text] = state
        return state

    def _template(self, entity: _Entity, change: Change, state: _State) -> _Template:
        attributes = change.attributes if change.all_attributes is None else change.all_attributes
        if entity.attributes != attributes:
            self._cached_bytes -= entity.size
            entity.attributes, entity.templates, entity.size = attributes, {}, 0
        template = entity.templates.get(state.written)
        if template is None:
            template = self._new_template(entity, change, attributes, state)
            entity.templates[state.written] = template
            size = _FIELD_BYTES * len(entity.fields) + sum(map(len, template[:3]))
            entity.size += size
            self._cached_bytes += size
        return template

    def _new_template(
        self, entity: _Entity, change: Change, attributes: bytes, state: _State
    ) -> _Template:
        members = _MEMBERS.decode(attributes)
        key = tuple([bytes(members[name]) if name in members else None for name in self._in_head])
        if entity.head is None or entity.head_key != key:
            entity.head, entity.head_key = self._new_head(entity.options, change, attributes), key
        head = entity.head
        fields = self._fields_without_clash(entity, members, head.left_out, state.fields)
        if fields is None:
            found = _attribute_fields(_VALUES.decode(attributes), head.left_out, state.fields)
            fields = {key: self._field(key, value) for key, value in found.items()}
        corrections = head.corrections
        if self._is_v1:
            fields.pop("", None)
        if not self._verbatim and ("" in fields or b"\\" in attributes):
            corrections += tuple(_remove_refused(fields, state.written, is_v1=self._is_v1))
        start, middle, end = _segments(fields, state.written)
        return _Template(head.data + start, middle, end, corrections, bool(fields or state.written))

    def _fields_without_clash(
        self,
        entity: _Entity,
        members: Mapping[str, msgspec.Raw],
        left_out: Collection[str | None],
        state_fields: Collection[str],
    ) -> dict[str, bytes] | None:
        """Return the fields of attributes; None if the order of the attributes matters."""
        known = entity.fields
        fields = dict.fromkeys(state_fields, b"")
        for name, raw in members.items():
            if name in left_out:
                continue
            if name in fields or name == "time":
                return None
            before = known.get(name)
            if before is None or before[0] != raw:
                value = bytes(raw)  # a copy: `raw` would keep all attributes in memory
                before = known[name] = (msgspec.Raw(value), self._new_fields(name, value))
            for key, field in before[1]:
                if key in fields:
                    return None
                fields[key] = field
        if len(known) > 2 * len(members):  # names that come and go
            known.clear()
        for key in state_fields:
            del fields[key]
        return fields

    def _new_fields(self, name: str, value: bytes) -> _Fields:
        if value[0] in _DIGITS:
            plain = float(value)
            return ((name, self._field(name, plain)),) if math.isfinite(plain) else ()
        fields = self._fields.get((name, value))
        if fields is not None:
            return fields
        number, text = _converted(msgspec.json.decode(value))
        found = [] if text is None else [(f"{name}_str", self._field(f"{name}_str", text))]
        if number is not None and math.isfinite(number):
            found.append((name, self._field(name, number)))
        fields = tuple(found)
        if len(value) <= _MAX_CACHED_VALUE_BYTES:
            if len(self._fields) >= self._max_cached_states:
                self._fields.clear()
            self._fields[name, value] = fields
        return fields

    def _new_head(self, entity: EntityOptions | None, change: Change, attributes: bytes) -> _Head:
        assert entity is not None, "an entity that is left out has no lines"
        members = _VALUES.decode(attributes)
        measurement, source = _measurement(change, members, entity, self._options)
        tags = _tags(change, members, self._options)
        corrections: list[Correction] = []
        if not self._verbatim:
            # InfluxDB skips these at the beginning of a line.
            skipped = "\t\0" if self._is_v1 else "\0"
            plain = self._comment.sub("", measurement)
            if plain != measurement:
                corrections.append("comment")
            elif not plain.strip(skipped):
                corrections.append("empty_measurement")
            if corrections:
                names = (plain, _default_measurement(change, self._options), change.entity_id)
                plain_names = (self._comment.sub("", name) for name in names)
                measurement = next(name for name in plain_names if name.strip(skipped))
            self._correct(tags, corrections)
        escapes = _V1_ESCAPES if self._is_v1 else _V2_MEASUREMENT_ESCAPES
        written = b"".join(self._tag(key, tags[key]) for key in sorted(tags) if key and tags[key])
        return _Head(
            b"%b%b " % (measurement.translate(escapes).encode(), written),
            frozenset((source, *self._options.tags_attributes, *entity.ignored)),
            tuple(corrections),
        )

    def _correct(self, tags: dict[str, str], corrections: list[Correction]) -> None:
        """Remove the tags that InfluxDB would refuse, or parts of them."""
        if tags.pop("time", ""):
            corrections.append("time_tag")
        for key, value in [*tags.items()]:
            if value and not self._is_v1 and key in _RESERVED:
                del tags[key]
                corrections.append("reserved_tag")
            elif value and key.endswith("\\"):
                del tags[key]
                corrections.append("backslash_key")
            elif self._is_v1 and value.endswith("\\"):
                tags[key] = value.rstrip("\\")
                corrections.append("backslash")

    def _tag(self, key: str, value: str) -> bytes:
        end = " " if not self._is_v1 and value.endswith("\\") else ""
        return f",{key.translate(self._escapes)}={value.translate(self._escapes)}{end}".encode()

    def _field(self, key: str, value: float | str) -> bytes:
        if not key.isidentifier():
            key = key.translate(self._escapes)
        if isinstance(value, str):
            if "\\" in value or '"' in value:
                value = value.translate(_STRING_ESCAPES)
            return f'{key}="{value}"'.encode()
        text = repr(value) if self._is_v1 else repr(value).removesuffix(".0")
        return f"{key}={text}".encode()


_RESERVED = frozenset({"_field", "_measurement", "\0"})

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_VALUES = msgspec.json.Decoder(dict[str, object])
_DIGITS = b"-0123456789"
"""What JSON of a number begins with."""


def _remove_refused(
    fields: dict[str, bytes], state_fields: Collection[str], *, is_v1: bool
) -> Iterator[Correction]:
    """Remove the fields whose keys InfluxDB would refuse."""
    for key in [*fields]:
        if not is_v1 and (not key or _ESCAPING.search(key)):
            del fields[key]
            yield "backslash_key" if key else "empty_key"
    written = {*state_fields, *fields}
    while (last := max(written, default="")).endswith("\\"):
        written.remove(last)
        del fields[last]
        yield "backslash_key"


_ESCAPING = re.compile(r"(?<!\\)(?:\\\\)*\\(?=[,= ]|\Z)")
"""A backslash that escapes what the second client writes behind it, unless another escapes it."""


def _segments(fields: Mapping[str, bytes], written: Collection[str]) -> list[bytes]:
    """Return what precedes, separates and follows the fields of a state, with their commas."""
    segments: list[bytes] = []
    parts: list[bytes] = []
    for key in sorted((*fields, *written)):
        if key in written:
            segments.append(b",".join((*parts, b"")))
            parts = [b""]
        else:
            parts.append(fields[key])
    segments.append(b",".join(parts))
    return [*segments, b"", b""][:3]


_COMMENTS = {"v1": re.compile(r"\A[\t\0#]*#"), "v2": re.compile(r"\A[\0#]*#")}
"""The beginning of a measurement that makes a comment: InfluxDB skips whitespace before the `#`."""


def _single_line(text: str) -> str:
    return " ".join(text.splitlines())


def _value_of(state: str) -> tuple[float | None, bool]:
    """Return the number that a state stands for, and whether its text is written as well."""
    if (number := _number(state)) is not None:
        return number, False
    if state in _ONES:
        return 1.0, True
    return (0.0 if state in _ZEROS else None), True


def _measurement(
    change: Change, members: Mapping[str, object], entity: EntityOptions, options: Options
) -> tuple[str, str | None]:
    """Return the measurement, and the attribute that it was made of, if any."""
    if entity.override_measurement:
        return _single_line(entity.override_measurement), None
    source = None
    found: object = change.entity_id
    match options.measurement_attr:
        case "unit_of_measurement":
            source, found = _UNIT, members.get(_UNIT)
        case "domain__device_class" if members.get(_CLASS) is None:
            found = change.domain
        case "domain__device_class":
            source, found = _CLASS, f"{change.domain}__{text_of(members[_CLASS])}"
        case _:
            pass
    if found is None or found == "":
        return _default_measurement(change, options), None
    return _single_line(found) if isinstance(found, str) else text_of(found), source


def _default_measurement(change: Change, options: Options) -> str:
    return _single_line(options.default_measurement or change.entity_id)


def _tags(change: Change, members: Mapping[str, object], options: Options) -> dict[str, str]:
    """Return the tags, empty ones included: their attributes are not fields either."""
    tags = {"domain": change.domain, "entity_id": change.entity_id.partition(".")[2]}
    for key in options.tags_attributes:
        if key in members:
            value = members[key]
            tags[key] = _single_line(value) if isinstance(value, str) else _tag_text(value)
    tags.update((key, _single_line(value)) for key, value in options.tags.items())
    return tags


def _tag_text(value: object) -> str:
    return "" if value is None else text_of(value)


def _attribute_fields(
    members: Mapping[str, object], left_out: Collection[str | None], taken: Collection[str]
) -> dict[str, float | str]:
    """Return the fields of attributes; `taken` are the names of the state's own fields."""
    fields: dict[str, float | str] = dict.fromkeys(taken, 0.0)
    for name, value in members.items():
        if name in left_out:
            continue
        key = f"{name}_" if name in fields else name
        number, text = _converted(value)
        if text is not None:
            fields[f"{key}_str"] = text
        if number is not None:
            fields[key] = number
        if isinstance(found := fields.get(key), float) and not math.isfinite(found):
            del fields[key]
    if "time" in fields:
        key = "time_"
        while key in fields:
            key += "_"
        fields[key] = fields.pop("time")
    return {key: value for key, value in fields.items() if key not in taken}


def _converted(value: object) -> tuple[float | None, str | None]:
    """Return the number and the text that a JSON value becomes."""
    if (number := _number(value)) is not None:
        return number, None
    text = _single_line(text_of(value))
    return _number_in(text), text


def _number(value: object) -> float | None:
    """Return what Python's `float` makes of a JSON value; None if it refuses it."""
    if not isinstance(value, str | int | float):
        return None
    try:
        return float(with_digits_of_3_14(value) if isinstance(value, str) else value)
    except ValueError:
        return None
    except OverflowError:  # an integer of more than 308 digits, which Home Assistant cannot send
        return math.inf


_TWO_DIGITS = re.compile(r"\d\d")
_NOT_NUMERIC = re.compile(r"[^\d.]+")


def _number_in(text: str) -> float | None:
    """Return the digits of a text as a number, if they look like one number.

    In linear time: Home Assistant's regular expression takes minutes for a few hundred digits.
    """
    text = with_digits_of_3_14(text)
    before, dot, after = text.partition(".")
    if dot:
        is_number = "." not in after and before[-1:].isdecimal() and after[:1].isdecimal()
    else:
        is_number = _TWO_DIGITS.search(text) is not None
    return float(_NOT_NUMERIC.sub("", text)) if is_number else None


def _time_writer(
    precision: Precision | None, text: Text, *, verbatim: bool
) -> Callable[[int], int]:
    unit_ns = _UNIT_NS[precision]
    if unit_ns == 1:
        return int
    # The second client divides floats, which loses one unit at some times.
    divisor = unit_ns if text == "v1" else float(unit_ns)
    factor = 1 if verbatim else unit_ns
    return lambda time_ns: int(time_ns / divisor) * factor
