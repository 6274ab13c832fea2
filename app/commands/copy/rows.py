"""Rows: points in the form in which they are copied and compared; pure.

A row is the encoded series (measurement and tags, sorted), the encoded fields one by one, and the
time. Names are escaped and nothing else: unlike `schema.line_protocol`, which writes new points,
nothing is cut or replaced here, so a point of one database is the same point in another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

Row: TypeAlias = tuple[bytes, Sequence[bytes], int]
"""Series, fields (`key=value`), and nanoseconds since the epoch."""


class RefusedRow(NamedTuple):
    """A point that cannot be copied."""

    text: bytes
    """As much of it as can be shown."""
    reason: str
    time_ns: int
    values: int = 1
    """How many fields it has."""


@dataclass(slots=True)
class Chunk:
    """Some rows of a database."""

    rows: list[Row] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)
    read_values: int | None = None
    """How many values were read for it, unless each is in a row or refused."""

    @property
    def values(self) -> int:
        """How many values of the source it accounts for."""
        if self.read_values is not None:
            return self.read_values
        return sum(len(row[1]) for row in self.rows) + sum(each.values for each in self.refused)


class Unwritable(ValueError):
    """A name that line protocol cannot express."""


_SPECIAL = re.compile(rb"[,= ]")
_SPECIAL_IN_MEASUREMENT = re.compile(rb"[, ]")
_UNWRITABLE = re.compile(rb"[\r\n]|\\(?=[,= ]|\Z)")
_ESCAPED = re.compile(rb"\\([,= ])")
_ESCAPED_IN_TEXT = re.compile(r'\\([\\"])')
_HEAD = re.compile(rb"((?:[^, \\]|\\.)+)((?:,(?:[^ \\]|\\.)*)?)", re.DOTALL)
_LINE = re.compile(rb"((?:[^ \\]|\\.)+) (.*) (-?[0-9]+)", re.DOTALL)
_FIELD = re.compile(rb'((?:[^,= \\]|\\.)+)=("(?:[^"\\]|\\.)*"|[^,"]+)(?:,|\Z)', re.DOTALL)


def series(measurement: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    """Return the encoded series; tags without a value do not exist in a database.

    Raises:
        Unwritable: a name has a line break, or a backslash where it would escape what follows.
    """
    if not measurement or measurement.startswith(b"#") or _UNWRITABLE.search(measurement):
        raise Unwritable(f"line protocol cannot express the measurement {measurement!r}")
    pairs = [b",%b=%b" % (name(key), name(tags[key])) for key in sorted(tags) if tags[key]]
    return _SPECIAL_IN_MEASUREMENT.sub(rb"\\\g<0>", measurement) + b"".join(pairs)


def name(text: bytes) -> bytes:
    """Return the encoded key or value of a tag, or key of a field; raises like `series`."""
    if not text or _UNWRITABLE.search(text):
        raise Unwritable(f"line protocol cannot express the name {text!r}")
    return _SPECIAL.sub(rb"\\\g<0>", text)


def string(text: bytes) -> bytes:
    """Return an encoded string field."""
    return b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def _boolean(value: object) -> bytes:
    return b"true" if value else b"false"


ENCODERS: Mapping[type, Callable[..., bytes]] = {
    float: lambda value: b"%a" % value,
    int: lambda value: b"%di" % value,
    bool: _boolean,
    bytes: string,
    str: lambda value: string(value.encode(errors="replace")),
}
"""Encode a field's value by its type."""


def line_of(row: Row) -> bytes:
    """Return a row as line protocol, without a newline."""
    head, fields, time_ns = row
    return b"%b %b %d" % (head, b",".join(fields), time_ns)


def row_of(line: bytes) -> Row:
    """Return the row of a line of line protocol.

    Raises:
        ValueError: it is not one.
    """
    parts = _LINE.fullmatch(line)
    fields = [] if parts is None else [found[0].rstrip(b",") for found in _FIELD.finditer(parts[2])]
    if parts is None or b",".join(fields) != parts[2]:
        raise ValueError(f"Not line protocol: {line[:100]!r}")
    return parts[1], fields, int(parts[3])


def pair(encoded: bytes) -> tuple[bytes, bytes]:
    """Return the encoded key and value of an encoded field."""
    key, _, value = encoded.partition(b"=")
    if key.endswith(b"\\"):  # the key has an equals sign
        parts = _FIELD.fullmatch(encoded)
        assert parts is not None, encoded
        return parts[1], parts[2]
    return key, value


def text_in(encoded: bytes) -> str:
    """Return the text of an encoded string field; bytes that are not UTF-8 become U+FFFD."""
    text = encoded[1:-1].decode(errors="replace")
    return _ESCAPED_IN_TEXT.sub(r"\1", text) if "\\" in text else text


_MILLISECOND_NS = 1_000_000
_DECIMAL = re.compile(rb"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_OTHER_NUMBER = re.compile(rb"[-+]?(?:inf|nan|0x)", re.IGNORECASE)


def samples(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the rows as VictoriaMetrics stores them: a sample for each field.

    Its metric is named by measurement and field, its time is in milliseconds, and its value is a
    number, or empty where that depends on the version of VictoriaMetrics.
    """
    for head, fields, time_ns in rows:
        measurement, tags = _split(head)
        in_milliseconds_ns = time_ns - time_ns % _MILLISECOND_NS
        for each in fields:
            key, value = pair(each)
            metric = measurement + b"_" + _SPECIAL_IN_MEASUREMENT.sub(rb"\\\g<0>", unescaped(key))
            yield metric + tags, (_number(value),), in_milliseconds_ns


def _number(value: bytes) -> bytes:
    if value in _NUMBERS:
        return _NUMBERS[value]
    if value.startswith(b'"'):
        text = value[1:-1]
        if not _DECIMAL.fullmatch(text):
            return b"" if _OTHER_NUMBER.match(text) else b"0.0"
        return b"%a" % float(text)
    return b"%a" % float(value.rstrip(b"iu"))


_NUMBERS = {b"true": b"1.0", b"false": b"0.0"}


def _split(head: bytes) -> tuple[bytes, bytes]:
    parts = _HEAD.fullmatch(head)
    assert parts is not None, head
    return parts[1], parts[2]


def unescaped(text: bytes) -> bytes:
    """Return a name without its escapes."""
    return _ESCAPED.sub(rb"\1", text)
