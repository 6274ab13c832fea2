"""Rows: what one append becomes, and a run of them in memory."""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
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
        rows.append(Row(first, part.points, gzip_stream.compressed(part.data), received_at))
        first += part.points
    return rows


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
        data = gzip_stream.decompressed(gzip)
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
    """Take the first row, if any, and then whole rows while their points fit `max_points`."""
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
    elif data.count(b"\n") != points:
        each = lines.split()
        for start in range(0, len(each), _CUT_ROW_POINTS):
            part = each[start : start + _CUT_ROW_POINTS]
            yield Lines(b"\n".join((*part, b"")), len(part))
    else:
        size = len(data) // -(-points // _CUT_ROW_POINTS)
        start = 0
        while start < len(data):
            end = 1 + data.rfind(b"\n", start, start + size) or 1 + data.find(b"\n", start)
            yield from _cut(Lines(data[start:end], data.count(b"\n", start, end)))
            start = end
