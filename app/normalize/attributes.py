"""An entity's attributes: the JSON that is passed on, and the three that are read.

Home Assistant sends compact JSON, so nearly always the bytes are passed on as they came;
everything else here is for the day they are not.
"""

from __future__ import annotations

import contextlib
import json
import math
import re

import msgspec

MAX_BYTES = 65_536
"""Longest JSON passed on: InfluxDB documents no longer string."""

_TRUNCATED = "_truncated"
_MAX_NAME_LENGTH = 64
"""Longest name listed in `_truncated`; a longer one is cut."""


class Attributes(msgspec.Struct, frozen=True, gc=False):
    """One entity's attributes; of the three that are read, None for what is no text or empty."""

    json: bytes = b"{}"
    """A compact JSON object in UTF-8 of at most `MAX_BYTES`."""
    device_class: str | None = None
    unit_of_measurement: str | None = None
    friendly_name: str | None = None

    @property
    def complete(self) -> bool:
        """Whether all three are there."""
        return None not in (self.device_class, self.unit_of_measurement, self.friendly_name)


NO_ATTRIBUTES = Attributes()


class _Names(msgspec.Struct, gc=False):
    device_class: str | None = None
    unit_of_measurement: str | None = None
    friendly_name: str | None = None


_NAMES = msgspec.json.Decoder(_Names)
_TEXT = msgspec.json.Decoder(str | None)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_attributes(raw: bytes) -> Attributes:
    """Return what the JSON says; anything but an object says nothing.

    NaN and infinities become null, invalid UTF-8 and lone surrogates become U+FFFD, and of
    an object that is too large the largest values are left out and named in `_truncated`.

    Raises:
        ValueError: it is not JSON, or nested too deep to be read.
    """
    try:
        return _read(raw)
    except RecursionError as exc:
        raise ValueError("Nested too deep") from exc


def _read(raw: bytes) -> Attributes:
    try:
        names = _names(raw)
        raw.isascii() or raw.decode()  # msgspec does not look into strings that it skips
    except (msgspec.DecodeError, UnicodeDecodeError):
        raw = _mended(raw)
        names = _names(raw)
    if names is None:
        return NO_ATTRIBUTES
    attributes = _compact(raw)
    if len(attributes) > MAX_BYTES:
        attributes = _bounded(attributes)
    return Attributes(
        attributes,
        names.device_class or None,
        names.unit_of_measurement or None,
        names.friendly_name or None,
    )


def _names(raw: bytes) -> _Names | None:
    """Return the three attributes that are read; None when it is not an object."""
    try:
        return _NAMES.decode(raw)
    except msgspec.ValidationError:
        return _odd_names(raw)


def _odd_names(raw: bytes) -> _Names | None:
    """Return those of the three that are text, when not all are."""
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
"""A space beside punctuation. Only because it begins with a letter is it found fast."""


def _compact(raw: bytes) -> bytes:
    """Return the JSON without whitespace between its parts."""
    # Whitespace outside strings touches punctuation; all but spaces cannot stand in strings.
    # Looking for it costs a third of rewriting the whole, and there is next to none.
    raw = raw.strip()
    is_loose = _NEWLINE in raw or _TAB in raw or _RETURN in raw or _LOOSE_SPACE.search(raw)
    return msgspec.json.format(raw, indent=-1) if is_loose else raw


_TAB, _NEWLINE, _RETURN = b"\t\n\r"  # as numbers: bytes look for those ten times faster


def _bounded(attributes: bytes) -> bytes:
    """Leave out the largest values, and list their names in `_truncated`."""
    members = _MEMBERS.decode(attributes)
    members.pop(_TRUNCATED, None)
    left_out: list[str] = []
    size = len(_encoded({**members, _TRUNCATED: left_out}))
    for name in sorted(members, key=lambda name: len(members[name]), reverse=True):
        if size <= MAX_BYTES:
            break
        size -= len(_encoded({name: members.pop(name)})) - 1  # two braces less, a comma more
        left_out.append(name[:_MAX_NAME_LENGTH])
        size += len(_encoded(left_out[-1])) + 1
    while size > MAX_BYTES:  # nothing is left but thousands of names
        size -= len(_encoded(left_out.pop())) + 1
    return _encoded({**members, _TRUNCATED: left_out})


_encoded = msgspec.json.Encoder().encode
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def _mended(raw: bytes) -> bytes:
    """Return what Python's more tolerant parser can read as JSON that every parser can."""
    value = json.loads(
        raw.decode(errors="replace"), parse_constant=lambda _: None, parse_float=_finite
    )
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _SURROGATE.sub("\ufffd", text).encode()


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None
