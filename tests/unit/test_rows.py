"""Rows: what one append becomes."""

from __future__ import annotations

from app.journal.rows import compress
from app.model import Lines
from app.runtime.gzip_stream import decompressed


def _joined(sizes: list[int]) -> Lines:
    """Return lines, some of two lines of text, that were joined of parts of these sizes."""
    data, points, ends = b"", 0, []
    for size in sizes:
        for _ in range(size):
            text = b"one\ntwo" if points % 7 == 0 else b"one"
            data += b'm s="%b" %d\n' % (text, points)
            points += 1
        ends.append((len(data), points))
    return Lines(data, points, ends=tuple(ends))


def test_what_was_joined_is_cut_where_its_parts_ended() -> None:
    """Each row holds whole lines, as many as it says, and two of them fit a request of 5,000."""
    lines = _joined([50] * 49 + [1] * 99 + [300] * 7)

    rows = compress(lines)

    parts = [decompressed(row.gzip) for row in rows]
    assert b"".join(parts) == lines.data
    assert [row.points for row in rows] == [2_400, 2_249]
    for part, row in zip(parts, rows, strict=True):
        assert len(Lines(part, row.points).split()) == row.points


def test_a_part_that_is_too_large_is_cut_itself() -> None:
    """A frame may hold thousands of events."""
    lines = _joined([10, 6_000, 10])

    rows = compress(lines)

    assert b"".join(decompressed(row.gzip) for row in rows) == lines.data
    assert sum(row.points for row in rows) == lines.points
    assert max(row.points for row in rows) <= 2_500
