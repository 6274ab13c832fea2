"""Decodes an entity's attributes: passes the JSON on, and reads three attributes.

Home Assistant sends compact JSON, so the bytes are nearly always passed on unchanged. The rest of
this module repairs, compacts and bounds JSON that is not like that; pure.
"""

from __future__ import annotations

import contextlib
import re
from typing import NamedTuple

import msgspec

from app.model import LastNames
from app.runtime.tolerant_json import MAX_DIGITS, repaired

MAX_BYTES = 65_536
"""Longest JSON passed on: the longest string that InfluxDB documents."""

MAX_READ_BYTES = 4_000_000
"""Only the three are read of a longer object; Home Assistant records at most 16,384 bytes."""

_MAX_UNBOUNDED_BYTES = 1_000_000
"""Longer JSON, or that with more members, is not passed on whole in any case."""

_MAX_MEMBERS = MAX_BYTES // 5
"""Only the three are read of an object with more members: most would be left out."""

_TRUNCATED = "_truncated"
_ALL_TRUNCATED = b'{"_truncated":["*"]}'
_LONG_NUMBER = re.compile(rb"(?<![0-9])[0-9]{%d}" % MAX_DIGITS)
_MAX_NAME_LENGTH = 64
"""Names listed in `_truncated` are cut to this length."""


class Attributes(NamedTuple):
    """An entity's attributes."""

    json: bytes = b"{}"
    """A compact JSON object in UTF-8 of at most `MAX_BYTES`."""
    names: LastNames = LastNames(None, None, None)
    """The three that are read; None for one that is missing, empty, or not text."""
    unbounded: bytes | None = None
    """The whole object when `json` leaves out a part of it; None if it is too large as well."""


NO_ATTRIBUTES = Attributes()


class _Names(msgspec.Struct, gc=False):
    device_class: str | None = None
    unit_of_measurement: str | None = None
    friendly_name: str | None = None


_NAMES = msgspec.json.Decoder(_Names)
_TEXT = msgspec.json.Decoder(str | None)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_attributes(raw: bytes) -> Attributes:
    """Return the attributes in a JSON object; none for any other JSON value.

    NaN and infinities become null; invalid UTF-8 and lone surrogates become U+FFFD. If the object
    is too large, its largest values are left out and listed in `_truncated`.

    Raises:
        ValueError: it is not JSON, or nested too deep.
    """
    try:
        return _read(raw)
    except RecursionError as exc:
        raise ValueError("Nested too deep") from exc


def _read(raw: bytes) -> Attributes:
    if len(raw) > MAX_READ_BYTES:  # scanning all of it would take seconds
        return _attributes(_ALL_TRUNCATED, _NAMES.decode(raw))
    try:
        names = _names(raw)
        _check_skipped(raw)
    except ValueError:
        raw = repaired(raw, control_characters=False)
        names = _names(raw)
    if names is None:
        return NO_ATTRIBUTES
    attributes = _compact(raw)
    if len(attributes) > MAX_BYTES:
        bounded = _bounded(attributes)
        is_usable = bounded is not _ALL_TRUNCATED and len(attributes) <= _MAX_UNBOUNDED_BYTES
        return _attributes(bounded, names, unbounded=attributes if is_usable else None)
    return _attributes(attributes, names)


def _check_skipped(raw: bytes) -> None:
    """Check what msgspec does not check in the values that it skips, but other parsers do.

    Raises:
        ValueError: it is not UTF-8, or a number has thousands of digits.
    """
    raw.isascii() or raw.decode()
    if len(raw) > MAX_DIGITS and _LONG_NUMBER.search(raw):
        raise ValueError("A number has too many digits")


def _attributes(json: bytes, names: _Names, *, unbounded: bytes | None = None) -> Attributes:
    device_class, unit, name = names.device_class, names.unit_of_measurement, names.friendly_name
    bounded = LastNames(
        device_class[:MAX_BYTES] if device_class else None,
        unit[:MAX_BYTES] if unit else None,
        name[:MAX_BYTES] if name else None,
    )
    return Attributes(json, bounded, unbounded)


def _names(raw: bytes) -> _Names | None:
    """Return the three attributes that are read; None if it is not an object."""
    try:
        return _NAMES.decode(raw)
    except msgspec.ValidationError:
        return _odd_names(raw)


def _odd_names(raw: bytes) -> _Names | None:
    """Return those of the three that are text."""
    try:
        members = _MEMBERS.decode(raw)
    except msgspec.ValidationError:
        return None
    texts = {}
    for name in _Names.__struct_fields__:
        with contextlib.suppress(msgspec.ValidationError):
            texts[name] = _TEXT.decode(members.get(name, b"null"))
    return _Names(**texts)


_LOOSE_SPACE = re.compile(rb" (?:(?<=[{}\[\],:] )|(?=[{}\[\],:]))")
"""A space next to punctuation. Searching is fast because the pattern starts with a literal."""


def _compact(raw: bytes) -> bytes:
    """Return the JSON without whitespace between its parts."""
    # Whitespace outside strings touches punctuation, and only spaces are allowed inside strings.
    # Searching costs a third of rewriting, and there is hardly ever anything to rewrite.
    raw = raw.strip()
    is_loose = _NEWLINE in raw or _TAB in raw or _RETURN in raw or _LOOSE_SPACE.search(raw)
    return msgspec.json.format(raw, indent=-1) if is_loose else raw


_TAB, _NEWLINE, _RETURN = b"\t\n\r"  # as integers, which bytes find ten times faster


def _bounded(attributes: bytes) -> bytes:
    """Return the object without its largest values, whose names `_truncated` lists."""
    members = _MEMBERS.decode(attributes)
    if len(members) > _MAX_MEMBERS:
        return _ALL_TRUNCATED
    members.pop(_TRUNCATED, None)
    left_out: list[str] = []
    size = len(_encoded({**members, _TRUNCATED: left_out}))
    for name in sorted(members, key=lambda name: len(members[name]), reverse=True):
        if size <= MAX_BYTES:
            break
        size -= len(_encoded({name: members.pop(name)})) - 1  # without two braces, with a comma
        left_out.append(name[:_MAX_NAME_LENGTH])
        size += len(_encoded(left_out[-1])) + 1
    while size > MAX_BYTES:  # only thousands of names are left
        size -= len(_encoded(left_out.pop())) + 1
    return _encoded({**members, _TRUNCATED: left_out})


_encoded = msgspec.json.Encoder().encode
