"""Batches read from the journal: whole rows as stored, or lines cut from them.

A row is one gzip stream, and so is the body of a request. Functions that decompress rows block;
call them in a thread.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain

from app.model import Lines, Row
from app.runtime import gzip_stream
from app.runtime.errors import StorageDamaged
from app.sinks.outcomes import FieldName

_SERIES = re.compile(rb"(?:[^ \\]|\\.)+ ")
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
_ESCAPED_IN_KEYS = re.compile(rb"[,= ]")
_ESCAPED_IN_MEASUREMENTS = re.compile(rb"[, ]")


@dataclass(frozen=True, slots=True)
class WholeRows:
    """Consecutive rows of the journal, none of them acked."""

    rows: tuple[Row, ...]

    @property
    def first(self) -> int:
        """Sequence number of the first point."""
        return self.rows[0].first

    @property
    def last(self) -> int:
        """Sequence number of the last point."""
        return self.rows[-1].last

    @property
    def points(self) -> int:
        """How many lines the rows hold."""
        return self.last - self.first + 1

    @property
    def numbers(self) -> range:
        """Sequence numbers of the points."""
        return range(self.first, self.last + 1)

    @property
    def received_at(self) -> float:
        """When the oldest point was received, in seconds since the epoch."""
        return self.rows[0].received_at

    def lines(self) -> list[bytes]:
        """Return the lines in order.

        Raises:
            StorageDamaged: a row does not hold what the journal says.
        """
        return list(chain.from_iterable(map(_unpacked, self.rows)))

    @property
    def gzip(self) -> bytes | None:
        """The lines as one gzip stream; None if rows must be compressed again to make one."""
        if len(self.rows) == 1:
            return self.rows[0].gzip
        return gzip_stream.joined([row.gzip for row in self.rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class CutLines:
    """Lines cut from rows, compressed once."""

    numbers: Sequence[int]
    """Sequence numbers of the points, rising; only `picked` leaves some out."""
    cut: tuple[bytes, ...]
    gzip: bytes
    received_at: float
    """That of the oldest point of the batch they were cut from."""

    @property
    def first(self) -> int:
        """Sequence number of the first point."""
        return self.numbers[0]

    @property
    def last(self) -> int:
        """Sequence number of the last point."""
        return self.numbers[-1]

    @property
    def points(self) -> int:
        """How many lines there are."""
        return len(self.cut)

    def lines(self) -> list[bytes]:
        """Return the lines in order."""
        return list(self.cut)


Part = WholeRows | CutLines


def whole_rows(rows: Sequence[Row]) -> WholeRows:
    """Return the rows up to the first gap in their numbers.

    Numbers are missing where a damaged journal was repaired. Within a batch they must be
    consecutive, because a line's number is computed from its position.
    """
    end = 1
    while end < len(rows) and rows[end].first == rows[end - 1].last + 1:
        end += 1
    return WholeRows(tuple(rows[:end]))


def after(part: Part, cursor: int) -> Part:
    """Return the lines after the cursor; blocks unless that is the whole part.

    Raises:
        StorageDamaged: a row cannot be unpacked.
    """
    if part.first > cursor:
        return part
    return cut(part, cursor + 1 - part.first, part.points)


def halves(part: Part) -> tuple[CutLines, CutLines]:
    """Cut a part of at least two points in the middle, the smaller half first; blocks.

    Raises:
        StorageDamaged: a row cannot be unpacked.
    """
    middle = part.points // 2
    return cut(part, 0, middle), cut(part, middle, part.points)


def cut(part: Part, start: int, stop: int) -> CutLines:
    """Return the lines with the indices from `start` up to, not including, `stop`; blocks.

    Raises:
        StorageDamaged: a row cannot be unpacked.
    """
    return _compressed(part, part.numbers[start:stop], part.lines()[start:stop])


def picked(part: Part, indices: Sequence[int]) -> CutLines:
    """Return the lines with the indices; blocks.

    Raises:
        StorageDamaged: the part cannot be taken apart.
    """
    numbers, lines = part.numbers, part.lines()
    return _compressed(part, [numbers[i] for i in indices], [lines[i] for i in indices])


def line_from(part: Part, number: int, conflict: FieldName | None = None) -> CutLines | None:
    """Return the line with a number, or the next one that has the field; blocks.

    Raises:
        StorageDamaged: a row cannot be unpacked.
    """
    start = max(0, number - part.first)
    for index, line in enumerate(part.lines()[start:], start=start):
        if conflict is None or _has_field(line, conflict):
            return cut(part, index, index + 1)
    return None


def fields_in(part: Part, wanted: Collection[FieldName]) -> frozenset[FieldName]:
    """Return the wanted fields that occur in the readable lines; blocks."""
    left = set(wanted)
    with contextlib.suppress(StorageDamaged):
        for line in part.lines():
            left -= {name for name in left if _has_field(line, name)}
            if not left:
                break
    return frozenset(wanted) - left


def _has_field(line: bytes, wanted: FieldName) -> bool:
    series = _SERIES.match(line)
    if series is None or not _is_of(series[0], wanted.measurement):
        return False
    fields = _TEXT.sub(b"", line[series.end() :])
    return b"," + _ESCAPED_IN_KEYS.sub(rb"\\\g<0>", wanted.name.encode()) + b"=" in b"," + fields


def _is_of(series: bytes, measurement: str | None) -> bool:
    if measurement is None:
        return True
    name = _ESCAPED_IN_MEASUREMENTS.sub(rb"\\\g<0>", measurement.encode())
    return series.startswith((name + b",", name + b" "))


def _unpacked(row: Row) -> list[bytes]:
    try:
        lines = Lines(gzip_stream.decompressed(row.gzip), row.points).split()
    except gzip_stream.Damaged as exc:
        raise StorageDamaged(f"points {row.first} to {row.last} cannot be unpacked") from exc
    if len(lines) != row.points:
        raise StorageDamaged(
            f"points {row.first} to {row.last} are {row.points}, but the row holds {len(lines)}"
        )
    return lines


def _compressed(part: Part, numbers: Sequence[int], lines: Sequence[bytes]) -> CutLines:
    data = b"".join([line + b"\n" for line in lines])
    return CutLines(
        numbers=numbers,
        cut=tuple(lines),
        gzip=gzip_stream.compressed(data),
        received_at=part.received_at,
    )
