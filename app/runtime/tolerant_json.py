"""Decoding of invalid JSON: the errors it raises, and a repair."""

from __future__ import annotations

import json
import math
import re

UNREADABLE = (ValueError, RecursionError)
"""`msgspec.DecodeError`, `UnicodeDecodeError` and `json.JSONDecodeError` are ValueErrors; JSON that
is nested too deep raises a RecursionError."""

MAX_REPAIRED_BYTES = 8_000_000
"""Repairing longer JSON would block the event loop for seconds."""

MAX_DIGITS = 4_000
"""Python's own parser refuses integers of more than 4,300 digits."""

_SURROGATE = re.compile(r"[\ud800-\udfff]")


def repaired(raw: bytes, *, control_characters: bool = True) -> bytes:
    """Return as valid compact JSON what Python's more tolerant parser reads.

    NaN, numbers outside a float's range and integers of thousands of digits become null; invalid
    UTF-8 and lone surrogates become U+FFFD. `control_characters` permits them in strings.

    Raises:
        ValueError: it is not JSON, or too long to be repaired.
        RecursionError: it is nested too deep.
    """
    if len(raw) > MAX_REPAIRED_BYTES:
        raise ValueError(f"{len(raw)} bytes are too many to repair")
    decoder = DECODER if control_characters else _STRICTER
    value = decoder.decode(raw.decode(errors="replace"))
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # Python's parser has joined the halves of pairs that were escaped one by one.
    return _SURROGATE.sub("\ufffd", text).encode()


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _short(digits: str) -> int | None:
    return int(digits) if len(digits) <= MAX_DIGITS else None


DECODER = json.JSONDecoder(
    parse_constant=lambda _: None, parse_float=_finite, parse_int=_short, strict=False
)
_STRICTER = json.JSONDecoder(parse_constant=lambda _: None, parse_float=_finite, parse_int=_short)
