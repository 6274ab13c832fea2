"""A slow `repr` and `float` of Python 3.14, from what it knows of Unicode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_RECORDING = Path(__file__).parents[1] / "recordings/python-3.14.2/unicode.json"
_UNICODE: dict[str, str] = json.loads(_RECORDING.read_text())


def _codes(ranges: str) -> set[int]:
    bounds = [part.split("-") for part in ranges.split()]
    return {code for pair in bounds for code in range(int(pair[0], 16), int(pair[-1], 16) + 1)}


_PRINTABLE = _codes(_UNICODE["printable"])
_DIGITS = {zero + n: n for zero in _codes(_UNICODE["zeros"]) for n in range(10)}


def is_printable(char: str) -> bool:
    """Return `char.isprintable()`."""
    return ord(char) in _PRINTABLE


def digit(char: str) -> int | None:
    """Return the value of a decimal digit."""
    return _DIGITS.get(ord(char))


def float_of(text: str) -> float:
    """Return `float(text)`."""
    return float("".join(map(_with_ascii_digit, text)))


def _with_ascii_digit(char: str) -> str:
    value = digit(char)
    if value is not None:
        return str(value)
    return "x" if char.isdecimal() else char


def repr_of(value: Any) -> str:
    """Return `repr` of a JSON value."""
    match value:
        case list():
            return f"[{', '.join(map(repr_of, value))}]"
        case dict():
            members = (f"{repr_of(key)}: {repr_of(member)}" for key, member in value.items())
            return f"{{{', '.join(members)}}}"
        case str():
            quote = '"' if "'" in value and '"' not in value else "'"
            return quote + "".join(_in_quotes(char, quote) for char in value) + quote
        case _:
            return repr(value)


def _in_quotes(char: str, quote: str) -> str:
    short = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", quote: f"\\{quote}"}
    if char in short:
        return short[char]
    if is_printable(char):
        return char
    code = ord(char)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
