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

_SERIES = re.compile(rb"(?:[^ \\]|\\.)+")
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
_ESCAPED_IN_KEYS = re.compile(rb"[,= ]")
_ESCAPED_IN_MEASUREMENTS = re.compile(rb"[, ]")


@dataclass(frozen=True, slots=True)
class FieldName:
    """A field as a database names it."""

    name: str
    measurement: str | None = None
    """None when the database does not name it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Points of the journal in order, at least one, to be written in one request."""

    numbers: Sequence[int]
    """Sequence numbers, rising; consecutive unless the lines were picked by series."""
    first: int
    last: int
    points: int
    received_at: float
    """When the oldest point was received, in seconds since the epoch; or earlier, if cut."""
    gzip: bytes | None
    """All lines as one gzip stream; None when they must be compressed first."""
    rows: tuple[Row, ...] = ()
    """The whole rows of the journal that it consists of; none if lines were cut from them."""
    cut: tuple[bytes, ...] = ()
    """The lines that were cut from rows."""
    left_out: int = 0
    """How many of the points the sink does not get."""

    def lines(self) -> list[bytes]:
        """Return the lines in order, without newlines; blocks.

        An empty line stands for a point that the sink does not get.

        Raises:
            StorageDamaged: a row does not hold what the journal says.
        """
        return [*self.cut, *chain.from_iterable(map(_unpacked, self.rows))]


def whole_rows(rows: Sequence[Row]) -> Batch:
    """Return the rows up to the first gap in their numbers.

    Numbers are missing where a damaged journal was repaired. Within a batch they must be
    consecutive, because a line's number is computed from its position.
    """
    end = 1
    while end < len(rows) and rows[end].first == rows[end - 1].last + 1:
        end += 1
    first, last = rows[0].first, rows[end - 1].last
    left_out = 0
    for row in rows[:end]:
        left_out += len(row.left_out)
    return Batch(
        numbers=range(first, last + 1),
        first=first,
        last=last,
        points=last - first + 1,
        received_at=rows[0].received_at,
        gzip=rows[0].gzip if end == 1 else gzip_stream.joined([row.gzip for row in rows[:end]]),
        rows=tuple(rows[:end]),
        left_out=left_out,
    )


def cut(batch: Batch, indices: Sequence[int]) -> Batch:
    """Return the lines with the indices; blocks.

    Raises:
        StorageDamaged: a row cannot be unpacked.
    """
    lines = batch.lines()
    chosen = tuple([lines[index] for index in indices])
    numbers = [batch.numbers[index] for index in indices]
    return Batch(
        numbers=numbers,
        first=numbers[0],
        last=numbers[-1],
        points=len(numbers),
        received_at=batch.received_at,
        gzip=gzip_stream.compressed(b"".join([line + b"\n" for line in chosen if line])),
        cut=chosen,
        left_out=chosen.count(b""),
    )


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Cut a batch of at least two points in the middle, the smaller half first; blocks.

    Raises:
        StorageDamaged: a row cannot be unpacked.
    """
    middle = batch.points // 2
    return cut(batch, range(middle)), cut(batch, range(middle, batch.points))


def line_from(batch: Batch, number: int, conflict: FieldName | None = None) -> Batch | None:
    """Return the line with a number, or the next one that has the field, or any; blocks.

    Raises:
        StorageDamaged: a row cannot be unpacked.
    """
    start = max(0, number - batch.first)
    for index, line in enumerate(batch.lines()[start:], start=start):
        if line and (conflict is None or has_field(line, conflict)):
            return cut(batch, [index])
    return None


def last_line(batch: Batch) -> Batch:
    """Return the last line of a batch that has one; blocks.

    Raises:
        StorageDamaged: a row cannot be unpacked.
    """
    return cut(batch, [max(index for index, line in enumerate(batch.lines()) if line)])


def fields_in(batch: Batch, wanted: Collection[FieldName]) -> frozenset[FieldName]:
    """Return the wanted fields that occur in the readable lines; blocks."""
    left = set(wanted)
    with contextlib.suppress(StorageDamaged):
        for line in batch.lines():
            left -= {name for name in left if has_field(line, name)}
            if not left:
                break
    return frozenset(wanted) - left


def has_field(line: bytes, wanted: FieldName) -> bool:
    """Return whether a line has a field, in the measurement if it is given."""
    series = _SERIES.match(line)
    if series is None or not _is_of(series[0], wanted.measurement):
        return False
    fields = _TEXT.sub(b"", line[series.end() + 1 :])
    return b"," + _ESCAPED_IN_KEYS.sub(rb"\\\g<0>", wanted.name.encode()) + b"=" in b"," + fields


def series_in(batch: Batch) -> set[int]:
    """Return a hash of the measurement and tags of each series; blocks.

    Raises:
        StorageDamaged: a row cannot be unpacked.
    """
    return set(map(_series, batch.lines()))


def by_series(batch: Batch, accepted: Collection[int]) -> tuple[Batch, Batch]:
    """Split a batch of at least two points without separating the lines of a series; blocks.

    Series that were accepted before come first. If all or none were, half of the series do,
    those with the most lines first: a series over a limit is likely a new one, with few lines.
    Lines of a single series are halved.

    Raises:
        StorageDamaged: a row cannot be unpacked.
    """
    places: dict[int, list[int]] = {}
    for place, line in enumerate(batch.lines()):
        places.setdefault(_series(line), []).append(place)
    if len(places) == 1:
        return halves(batch)
    first = [series for series in places if series in accepted]
    if len(first) in (0, len(places)):
        first = sorted(places, key=lambda series: -len(places[series]))[: len(places) // 2]
    chosen = sorted(chain.from_iterable(places.pop(series) for series in first))
    return cut(batch, chosen), cut(batch, sorted(chain.from_iterable(places.values())))


def _series(line: bytes) -> int:
    found = _SERIES.match(line)
    return hash(found[0] if found else line)


def _is_of(series: bytes, measurement: str | None) -> bool:
    if measurement is None:
        return True
    name = _ESCAPED_IN_MEASUREMENTS.sub(rb"\\\g<0>", measurement.encode())
    return series == name or series.startswith(name + b",")


def _unpacked(row: Row) -> list[bytes]:
    try:
        present = row.points - len(row.left_out)
        lines = Lines(gzip_stream.decompressed(row.gzip), present).split()
    except gzip_stream.Damaged as exc:
        raise StorageDamaged(f"points {row.first} to {row.last} cannot be unpacked") from exc
    if len(lines) != present:
        raise StorageDamaged(
            f"points {row.first} to {row.last} are {row.points}, but the row holds {len(lines)}"
        )
    for index in row.left_out:
        lines.insert(index, b"")
    return lines
