"""An entity's attributes: the JSON that is passed on, and the three that are read.

Home Assistant sends compact JSON, so nearly always the bytes are passed on as they came;
everything else here is for the day they are not.
"""

from __future__ import annotations

import contextlib
import re

import msgspec

from app.runtime.tolerant_json import MAX_DIGITS, repaired

MAX_BYTES = 65_536
"""Longest JSON passed on: InfluxDB documents no longer string."""

MAX_READ_BYTES = 4_000_000
"""Of a longer object only the three names are read; Home Assistant records at most 16,384 bytes."""

_MAX_MEMBERS = MAX_BYTES // 5
"""Of more members only the three names are read, too: most could not be kept."""

_TRUNCATED = "_truncated"
_ALL_TRUNCATED = b'{"_truncated":["*"]}'
_LONG_NUMBER = re.compile(rb"(?<![0-9])[0-9]{%d}" % MAX_DIGITS)
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
    if len(raw) > MAX_READ_BYTES:
        return _read_names(raw)
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
        attributes = _bounded(attributes)
    return _attributes(attributes, names)


def _check_skipped(raw: bytes) -> None:
    """Refuse what msgspec does not look at in values that it skips, and other parsers do.

    Raises:
        ValueError: it is not UTF-8, or a number has thousands of digits.
    """
    raw.isascii() or raw.decode()
    if len(raw) > MAX_DIGITS and _LONG_NUMBER.search(raw):
        raise ValueError("A number has too many digits")


def _read_names(raw: bytes) -> Attributes:
    """Return the three that are read, and nothing else of what would take seconds to look at."""
    names = _NAMES.decode(raw)
    return _attributes(_ALL_TRUNCATED, names)


def _attributes(json: bytes, names: _Names) -> Attributes:
    device_class, unit, name = names.device_class, names.unit_of_measurement, names.friendly_name
    return Attributes(
        json,
        device_class[:MAX_BYTES] if device_class else None,
        unit[:MAX_BYTES] if unit else None,
        name[:MAX_BYTES] if name else None,
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
    if len(members) > _MAX_MEMBERS:
        return _ALL_TRUNCATED
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
