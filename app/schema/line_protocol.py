"""InfluxDB line protocol: escaping text, and parsing lines; pure.

https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/

Whatever the text is, the line remains one line with the same parts. Sequences that the databases
parse differently are not written:

* in measurements, tags and field keys, control characters become spaces, and backslashes
  before a comma, an equals sign, a space or the end become slashes (some parsers read two
  backslashes as one, and then the comma after them as a separator);
* in field keys, quotes become apostrophes, so that a quote always begins or ends a string;
* a measurement never begins with `#`, which would make its line a comment;
* lone surrogates become U+FFFD.

Strings retain all characters, including newlines.
"""

from __future__ import annotations

import math
import re

from app.model import MAX_TIME_NS, StoredPoint

MAX_STRING_BYTES = 65_536
"""Longest string field that InfluxDB documents; longer text is cut."""

MAX_NAME_BYTES = 2_048
"""Longest tag key or value; longer text is cut.

InfluxDB refuses a series (the measurement and all tags together) of more than 65,535
escaped bytes; even 15 tags of spaces must fit.
"""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SEPARATING_BACKSLASHES = re.compile(r"\\+(?=[,= ]|\Z)")
_SPECIAL = re.compile(r"[,= ]")
_SPECIAL_IN_MEASUREMENT = re.compile(r"[, ]")


def escape_measurement(name: str) -> bytes:
    """Escape the name of a measurement, which must not be empty."""
    if not name:
        raise ValueError("A measurement needs a name")
    name = name[:MAX_NAME_BYTES]
    plain = _name("_" + name[1:] if name.startswith("#") else name)
    return _SPECIAL_IN_MEASUREMENT.sub(r"\\\g<0>", plain).encode()


def escape_tag(text: str) -> bytes:
    """Escape a tag's key or value. An empty one stays empty; such a tag must be left out."""
    return _SPECIAL.sub(r"\\\g<0>", _name(text)).encode()


def escape_field_key(name: str) -> bytes:
    """Escape the key of a field."""
    return escape_tag(name[:MAX_NAME_BYTES].replace('"', "'"))


def quote(text: str | bytes) -> bytes:
    """Return text, or its UTF-8, as a string field, quotes included."""
    if isinstance(text, bytes):
        data = text
    else:
        text = text[:MAX_STRING_BYTES]
        data = (text if text.isascii() else _SURROGATE.sub("\ufffd", text)).encode()
    if len(data) > MAX_STRING_BYTES:
        data = _cut(data, MAX_STRING_BYTES)
    return b'"' + data.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def _name(text: str) -> str:
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
    r"|.++",  # no search inside what is not a field: it would take quadratic time
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
    """Parse a line, without its newline, into the point that it encodes.

    Raises:
        ValueError: it is not line protocol with a time.
    """
    text = line.decode()
    measurement, tags, start = _series(text)
    fields, _, time_ns = text[start:].rpartition(" ")
    if not _TIME.fullmatch(time_ns) or abs(int(time_ns)) > MAX_TIME_NS:
        raise _not_line_protocol(text)
    return StoredPoint(
        measurement=measurement, tags=tags, fields=_fields("," + fields), time_ns=int(time_ns)
    )


def _series(text: str) -> tuple[str, dict[str, str], int]:
    """Return the measurement, the tags, and the index where the fields begin."""
    series = text.partition(" ")[0]
    if "\\" in series:
        match = _SERIES.match(text)
        if match is None:
            raise _not_line_protocol(text)
        pairs = _EACH_TAG.findall(match[2])
        tags = {_unescaped(key): _unescaped(value) for key, value in pairs}
        return _unescaped(match[1]), tags, match.end()
    measurement, *pairs = series.split(",")
    tags = dict([pair.split("=") for pair in pairs])  # raises ValueError for what is not a pair
    if not measurement or "" in tags or "" in tags.values():
        raise _not_line_protocol(text)
    return measurement, tags, len(series) + 1


def _fields(text: str) -> dict[str, str | float | bool | int]:
    """Return the fields; a comma precedes each."""
    fields: dict[str, str | float | bool | int] = {}
    for key, string, other in _EACH_FIELD.findall(text):
        if not key:
            raise _not_line_protocol(text)
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
        raise _not_line_protocol(text)
    if text[-1] in "iu":
        return int(text[:-1])
    number = float(text)
    if not math.isfinite(number):
        raise _not_line_protocol(text)
    return number


def _unescaped(name: str) -> str:
    return _ESCAPED.sub(r"\1", name)


def _unquoted(text: str) -> str:
    # Read from the left, backslashes come in pairs; between the pairs only quotes are escaped.
    return "\\".join([piece.replace('\\"', '"') for piece in text.split("\\\\")])


def _not_line_protocol(text: str) -> ValueError:
    return ValueError(f"Not line protocol: {text[:100]!r}")
