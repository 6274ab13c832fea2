"""Bounds on request bodies: bytes in memory, and rows of a JSON array."""

from __future__ import annotations

import re

import msgspec


class BodyBudget:
    """Bytes of request bodies in memory, of all requests together."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes

    def take(self, size: int) -> bool:
        """Reserve bytes; return False when there are not enough left."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def give_back(self, size: int) -> None:
        """Return what a request took."""
        self._left += size


class RowsInvalid(Exception):
    """The body is not a JSON array."""


class RowsTooLarge(Exception):
    """The array has too many elements, or one that is too large; the message says which."""


_MAX_DEPTH = 100
_PIECE_BYTES = 100_000

_SPACES = re.compile(rb"[ \t\n\r]*+")
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_UP_TO_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|' + _STRING + rb")*+", re.DOTALL)
_SCALAR = re.compile(_STRING + rb"|[^\[\]{}\", \t\n\r]++", re.DOTALL)


def split_rows(
    body: bytes, *, max_rows: int = 100_000, max_row_bytes: int = 1_000_000
) -> list[bytes]:
    """Return the elements of a JSON array, each as valid JSON.

    The time is linear in the size of the body, and Python's interpreter can switch threads
    after every bracket: unlike one call of a decoder this does not stop the event loop when it
    runs in another thread. Nothing is decoded, so memory is bounded by the size of the body.

    Raises:
        RowsInvalid: the body is not a JSON array.
        RowsTooLarge: a bound is exceeded.
    """
    if _count_opening(body) > 10 * max_rows:
        raise RowsTooLarge(f"It holds more than {10 * max_rows:,} objects and arrays.")
    rows: list[bytes] = []
    at = _skip_space(body, 0)
    if body[at : at + 1] != b"[":
        raise RowsInvalid
    at = _skip_space(body, at + 1)
    if body[at : at + 1] != b"]":
        while True:
            end = _end_of_value(body, at, max_row_bytes)
            if len(rows) >= max_rows:
                raise RowsTooLarge(f"It holds more than {max_rows:,} rows.")
            rows.append(_checked(body[at:end]))
            at = _skip_space(body, end)
            separator = body[at : at + 1]
            if separator == b"]":
                break
            if separator != b",":
                raise RowsInvalid
            at = _skip_space(body, at + 1)
    if _skip_space(body, at + 1) != len(body):
        raise RowsInvalid
    return rows


def _count_opening(body: bytes) -> int:
    """Count opening brackets, a piece at a time: one call would not let other threads run."""
    return sum(
        body.count(b"{", at, at + _PIECE_BYTES) + body.count(b"[", at, at + _PIECE_BYTES)
        for at in range(0, len(body), _PIECE_BYTES)
    )


def _skip_space(body: bytes, at: int) -> int:
    while True:
        match = _SPACES.match(body, at, at + _PIECE_BYTES)
        assert match is not None
        if match.end() < at + _PIECE_BYTES:
            return match.end()
        at = match.end()


def _end_of_value(body: bytes, start: int, max_bytes: int) -> int:
    """Return where a value ends, by its brackets; what is between them is checked later."""
    bound = min(len(body), start + max_bytes)
    if body[start : start + 1] not in {b"[", b"{"}:
        scalar = _SCALAR.match(body, start, bound)
        if scalar is None:
            raise _unfinished(body, bound)
        return scalar.end()
    depth, at = 0, start
    while True:
        skipped = _UP_TO_BRACKET.match(body, at, bound)
        assert skipped is not None
        at = skipped.end()
        bracket = body[at : at + 1] if at < bound else b""
        if bracket in {b"[", b"{"}:
            depth += 1
            if depth > _MAX_DEPTH:
                raise RowsInvalid
        elif bracket in {b"]", b"}"}:
            depth -= 1
            if depth == 0:
                return at + 1
        else:
            raise _unfinished(body, bound)
        at += 1


def _unfinished(body: bytes, bound: int) -> RowsInvalid | RowsTooLarge:
    if bound < len(body):
        return RowsTooLarge("One of its rows is too large.")
    return RowsInvalid()


def _checked(row: bytes) -> bytes:
    try:
        msgspec.json.decode(row, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise RowsInvalid from exc
    return row
