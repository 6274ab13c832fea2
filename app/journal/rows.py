"""Rows of the journal: cutting an append into rows, and the buffer of recent rows in memory."""

from __future__ import annotations

import struct
import zlib
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

from app.model import Lines, Row, Times, is_representable, spanned
from app.runtime import gzip_stream

_MOST_ROW_POINTS = 2_500
"""A larger append is cut: this bounds what is read at once, and two rows fit 5,000 lines."""
_CUT_ROW_POINTS = 2_400

_ROW_OVERHEAD_BYTES = 250
_FIRST = attrgetter("first")


def rows_of(lines: Lines, *, first: int, received_at: float) -> list[Row]:
    """Compress an append whose first point has the number `first`; call it in a thread."""
    rows = []
    for part in _cut(lines):
        stream = gzip_stream.compressed(part.data)
        data = stream if part.database is None else _packed(part, stream, part.database)
        rows.append(Row(first, part.points, data, received_at))
        first += part.points
    return rows


PACKED = b"2enc"
"""How the content of a row with two encodings begins."""
_PACKED = struct.Struct("<4sIHH")


def _packed(part: Lines, stream: bytes, database: bytes) -> bytes:
    """Return both encodings of a row as its content, and which points have no line in each.

    A retried line of one schema has none in the other.
    """
    lines = database.split(b"\n")
    lines.pop()
    missing = array("H", [index for index, line in enumerate(lines) if not line])
    record_missing = array("H", range(0 if part.data.strip(b"\n") else part.points))
    if missing:
        database = b"".join([line + b"\n" for line in lines if line])
    if record_missing:
        stream = gzip_stream.compressed(b"")
    header = _PACKED.pack(PACKED, len(stream), len(record_missing), len(missing))
    missing_bytes = record_missing.tobytes() + missing.tobytes()
    return header + missing_bytes + stream + gzip_stream.compressed(database)


def unpacked(row: Row, *, for_database: bool) -> Row:
    """Return the row with the lines of one encoding; a row without a second one is unchanged."""
    if not row.gzip.startswith(PACKED) or len(row.gzip) < _PACKED.size:
        return row
    _, length, *counts = _PACKED.unpack_from(row.gzip)
    start = _PACKED.size + 2 * sum(counts)
    if len(row.gzip) < start:
        return row  # damaged, which shows when it is decompressed
    missing = array("H", row.gzip[_PACKED.size : start])
    if for_database:
        return replace(row, gzip=row.gzip[start + length :], left_out=tuple(missing[counts[0] :]))
    stream = row.gzip[start : start + length]
    return replace(row, gzip=stream, left_out=tuple(missing[: counts[0]]))


def record_of(content: bytes) -> bytes:
    """Return the lines by which the journal itself knows the points of a row.

    Raises:
        Damaged: they cannot be read.
    """
    return gzip_stream.decompressed(unpacked(Row(1, 1, content, 0.0), for_database=False).gzip)


class StoredRow(NamedTuple):
    """A row as the file holds it."""

    first: int
    points: int
    received_at: float
    gzip: bytes
    checksum: int | None
    """None in a row that an older version wrote."""

    @property
    def row(self) -> Row:
        """The row as sinks read it."""
        return Row(self.first, self.points, self.gzip, self.received_at)

    def is_whole(self) -> bool:
        """Return whether the row is as it was written; one without a checksum is unpacked."""
        if self.checksum is not None:
            return self.checksum == checksum(*self[:4])
        if self.first < 1 or self.points < 1:
            return False
        return points_in(self.gzip, expected=self.points) == self.points


def checksum(first: int, points: int, received_at: float, gzip: bytes) -> int:
    """Return the checksum of a row."""
    numbers = struct.pack("<qqd", first, points, received_at)
    return zlib.crc32(gzip, zlib.crc32(numbers))


def points_in(gzip: bytes, *, expected: int) -> int | None:
    """Return how many points a row holds; None when it cannot be unpacked."""
    try:
        data = record_of(gzip)
    except gzip_stream.Damaged:
        return None
    return len(Lines(data, expected).split())


def live_times_of(lines: Lines) -> Times | None:
    """Return when the oldest and the newest of some points happened, of those that came live.

    Lines without a time that a point can have are left out: a retried dead letter may be one.
    """
    live = [line for line in lines.split() if b",backfilled=true" not in line]
    times_ns = [time_ns for line in live if (time_ns := _time_ns_of(line)) is not None]
    return Times(min(times_ns), max(times_ns)) if times_ns else None


def _time_ns_of(line: bytes) -> int | None:
    try:
        time_ns = int(line.rpartition(b" ")[2])
    except ValueError:
        return None
    return time_ns if is_representable(time_ns) else None


class RecentRows:
    """The newest rows in memory, oldest first: sinks that keep up read no disk.

    Rows after `durable_through` are not committed yet; memory is the only place they are in.
    """

    def __init__(self, *, max_bytes: int) -> None:
        """`max_bytes` bounds the durable rows."""
        self.bytes = 0
        """What the rows take, with an estimate of Python's overhead."""
        self.durable_through = 0
        """Sequence number of the last point on disk."""
        self.uncommitted_points = 0
        self.uncommitted_times: Times | None = None
        """When the uncommitted points happened."""
        self._max_bytes = max_bytes
        self._rows: deque[Row] = deque()

    def __iter__(self) -> Iterator[Row]:
        """Yield all rows, oldest first."""
        return iter(self._rows)

    @property
    def uncommitted(self) -> list[Row]:
        """The rows that are not committed yet."""
        if not self.uncommitted_points:
            return []
        return [row for row in self._rows if row.first > self.durable_through]

    def add_uncommitted(self, rows: Sequence[Row], times: Times | None) -> None:
        """Add rows at the tail; `times` is when their points happened."""
        self._rows.extend(rows)
        self.bytes += sum(len(row.gzip) + _ROW_OVERHEAD_BYTES for row in rows)
        self.uncommitted_points += sum(row.points for row in rows)
        self.uncommitted_times = spanned(self.uncommitted_times, times)

    def committed(self, rows: Sequence[Row], *, through: int, acked: int) -> None:
        """Add rows at the tail and mark all as durable, up to the number `through`.

        Then remove those that every sink has acked, and the oldest ones above the bound.
        """
        self._rows.extend(rows)
        self.bytes += sum(len(row.gzip) + _ROW_OVERHEAD_BYTES for row in rows)
        self.durable_through = through
        self.uncommitted_points = 0
        self.uncommitted_times = None
        while self._rows and (self._rows[0].last <= acked or self.bytes > self._max_bytes):
            self.bytes -= len(self._rows.popleft().gzip) + _ROW_OVERHEAD_BYTES

    def discard_uncommitted(self, through: int) -> list[Row]:
        """Remove, and return, the uncommitted rows that end at or before a number."""
        removed = [row for row in self.uncommitted if row.last <= through]
        for row in removed:
            self._rows.remove(row)
            self.bytes -= len(row.gzip) + _ROW_OVERHEAD_BYTES
            self.uncommitted_points -= row.points
        return removed

    def after(self, cursor: int, *, max_points: int) -> list[Row] | None:
        """Return the next rows after `cursor`, at least one, or None when they are not here."""
        index = bisect_right(self._rows, cursor + 1, key=_FIRST) - 1
        if index < 0 or self._rows[index].last <= cursor:
            return None
        return take(islice(self._rows, index, None), max_points=max_points)


def take(rows: Iterator[Row], *, max_points: int) -> list[Row]:
    """Return the first row, if any, and then whole rows while their points fit `max_points`."""
    taken: list[Row] = []
    points = 0
    for row in rows:
        points += row.points
        if taken and points > max_points:
            break
        taken.append(row)
    return taken


def _cut(lines: Lines) -> Iterator[Lines]:
    """Cut an append into rows; only a newline inside a string makes that cost a split."""
    data, points = lines.data, lines.points
    if points <= _MOST_ROW_POINTS:
        yield lines
    elif lines.database is not None or data.count(b"\n") != points:
        each = lines.split()
        others = None if lines.database is None else lines.database.split(b"\n")
        for start in range(0, len(each), _CUT_ROW_POINTS):
            part = each[start : start + _CUT_ROW_POINTS]
            other = others and b"\n".join([*others[start : start + len(part)], b""])
            yield Lines(b"\n".join((*part, b"")), len(part), database=other or None)
    else:
        size = len(data) // -(-points // _CUT_ROW_POINTS)
        start = 0
        while start < len(data):
            end = 1 + data.rfind(b"\n", start, start + size) or 1 + data.find(b"\n", start)
            yield from _cut(Lines(data[start:end], data.count(b"\n", start, end)))
            start = end
