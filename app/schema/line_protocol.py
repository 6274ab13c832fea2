"""InfluxDB line protocol, both ways: text to escaped bytes, and a line back to its point.

https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/

Whatever text comes in, the line stays one line with the same parts. Where the databases
read a sequence differently, it is not written at all:

* in measurements, tags and field keys, control characters become spaces, and backslashes
  before a comma, an equals sign, a space or the end become slashes (some parsers take two
  backslashes for one, and then the comma after them for a separator);
* in field keys, quotes become apostrophes, so that a quote always begins or ends a string;
* a measurement never begins with `#`, which would make its line a comment;
* lone surrogates become U+FFFD.

Strings keep every character, newlines included.
"""

from __future__ import annotations

import math
import re

from app.model import MAX_TIME_NS, StoredPoint

MAX_STRING_BYTES = 65_536
"""Longest string field that InfluxDB documents; a longer text is cut."""

MAX_NAME_BYTES = 2_048
"""Longest tag value or key; a longer text is cut.

InfluxDB refuses a series (the measurement and all tags together) of more than 65,535
escaped bytes, so that even 15 tags of spaces must fit.
"""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SEPARATING_BACKSLASHES = re.compile(r"\\+(?=[,= ]|\Z)")
_SPECIAL = re.compile(r"[,= ]")
_SPECIAL_IN_MEASUREMENT = re.compile(r"[, ]")


def escape_measurement(name: str) -> bytes:
    """Escape the name of a measurement; it must not be empty."""
    if not name:
        raise ValueError("A measurement needs a name")
    name = name[:MAX_NAME_BYTES]
    bare = _bare("_" + name[1:] if name.startswith("#") else name)
    return _SPECIAL_IN_MEASUREMENT.sub(r"\\\g<0>", bare).encode()


def escape_tag(text: str) -> bytes:
    """Escape a tag's key or value; empty stays empty, and such a tag must be left out."""
    return _SPECIAL.sub(r"\\\g<0>", _bare(text)).encode()


def escape_field_key(name: str) -> bytes:
    """Escape the key of a field."""
    return escape_tag(name[:MAX_NAME_BYTES].replace('"', "'"))


def quote(text: str) -> bytes:
    """Return the text as a string field, quotes included."""
    text = text[:MAX_STRING_BYTES]
    return quote_utf8((text if text.isascii() else _SURROGATE.sub("\ufffd", text)).encode())


def quote_utf8(data: bytes) -> bytes:
    """Return text that is UTF-8 already as a string field, quotes included."""
    if len(data) > MAX_STRING_BYTES:
        data = _cut(data, MAX_STRING_BYTES)
    return b'"' + data.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def _bare(text: str) -> str:
    text = _SURROGATE.sub("\ufffd", _CONTROL.sub(" ", text[:MAX_NAME_BYTES]))
    if len(text) > MAX_NAME_BYTES // 4:
        text = _cut(text.encode(), MAX_NAME_BYTES).decode()
    return _SEPARATING_BACKSLASHES.sub(lambda run: "/" * len(run[0]), text)


def _cut(data: bytes, max_bytes: int) -> bytes:
    """Cut UTF-8 between two characters."""
    return data[:max_bytes].decode(errors="ignore").encode()


_NAME = r"(?:[^,= \\]++|\\.)++"
_SERIES = re.compile(rf"((?:[^, \\]++|\\.)++)((?:,{_NAME}={_NAME})*+) ", re.DOTALL)
_EACH_TAG = re.compile(rf",({_NAME})=({_NAME})", re.DOTALL)
_EACH_FIELD = re.compile(
    r',((?:[^,= "\\]++|\\.)++)=(?:"([^"\\]*+(?:\\.[^"\\]*+)*+)"|([^, "]++))'
    r"|.++",  # what is no field is not searched for others: that would take quadratic time
    re.DOTALL,
)
_ESCAPED = re.compile(r"\\([,= ])")
_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|-?[0-9]+[iu]")
_TIME = re.compile(r"-?[0-9]{1,19}")
_BOOLEANS = {
    **dict.fromkeys(("true", "t", "T", "True", "TRUE"), True),
    **dict.fromkeys(("false", "f", "F", "False", "FALSE"), False),
}


def parse_line(line: bytes) -> StoredPoint:
    """Read one line, without its newline, back into the point it was made from.

    Raises:
        ValueError: it is not a line of line protocol with a time.
    """
    text = line.decode()
    measurement, tags, start = _series(text)
    fields, _, time_ns = text[start:].rpartition(" ")
    if not _TIME.fullmatch(time_ns) or abs(int(time_ns)) > MAX_TIME_NS:
        raise _nonsense(text)
    return StoredPoint(
        measurement=measurement, tags=tags, fields=_fields("," + fields), time_ns=int(time_ns)
    )


def _series(text: str) -> tuple[str, dict[str, str], int]:
    """Return the measurement, the tags, and where the fields begin."""
    series = text.partition(" ")[0]
    if "\\" in series:
        match = _SERIES.match(text)
        if match is None:
            raise _nonsense(text)
        pairs = _EACH_TAG.findall(match[2])
        tags = {_unescaped(key): _unescaped(value) for key, value in pairs}
        return _unescaped(match[1]), tags, match.end()
    measurement, *pairs = series.split(",")
    tags = dict([pair.split("=") for pair in pairs])  # refuses what is not a pair
    if not measurement or "" in tags or "" in tags.values():
        raise _nonsense(text)
    return measurement, tags, len(series) + 1


def _fields(text: str) -> dict[str, str | float | bool | int]:
    """Return the fields; each has a comma before it."""
    fields: dict[str, str | float | bool | int] = {}
    for key, string, other in _EACH_FIELD.findall(text):
        if not key:
            raise _nonsense(text)
        name = _unescaped(key) if "\\" in key else key
        if other:
            fields[name] = _value(other)
        else:
            fields[name] = _unquoted(string) if "\\" in string else string
    return fields


def _value(text: str) -> float | bool | int:
    if (boolean := _BOOLEANS.get(text)) is not None:
        return boolean
    if not _NUMBER.fullmatch(text):
        raise _nonsense(text)
    if text[-1] in "iu":
        return int(text[:-1])
    number = float(text)
    if not math.isfinite(number):
        raise _nonsense(text)
    return number


def _unescaped(name: str) -> str:
    return _ESCAPED.sub(r"\1", name)


def _unquoted(text: str) -> str:
    # Backslashes come in pairs, read from the left; between the pairs only quotes are escaped.
    return "\\".join([piece.replace('\\"', '"') for piece in text.split("\\\\")])


def _nonsense(text: str) -> ValueError:
    return ValueError(f"Not line protocol: {text[:100]!r}")
