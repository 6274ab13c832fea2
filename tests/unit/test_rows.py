"""Rows: what one append becomes."""

from __future__ import annotations

from app.journal.rows import rows_of
from app.model import Lines
from app.runtime.gzip_stream import decompressed


def lines_of(points: int) -> Lines:
    """Return lines, some with a string of two lines of text."""
    texts = [b"one\ntwo" if number % 7 == 0 else b"one" for number in range(points)]
    data = b"".join(b'm s="%b" %d\n' % (text, number) for number, text in enumerate(texts))
    return Lines(data, points)


def test_a_large_append_is_cut_into_rows_of_whole_lines() -> None:
    """Each row holds as many points as it says, and two rows fit a request of 5,000 lines."""
    lines = lines_of(6_000)

    rows = rows_of(lines, first=1, received_at=0.0)

    parts = [decompressed(row.gzip) for row in rows]
    assert b"".join(parts) == lines.data
    assert [row.points for row in rows] == [2_400, 2_400, 1_200]
    for part, row in zip(parts, rows, strict=True):
        assert len(Lines(part, row.points).split()) == row.points


def test_lines_of_any_length_are_cut_into_rows_of_whole_lines() -> None:
    """Without line breaks inside strings the lines are cut by size, however their sizes differ."""
    for sizes in ([20] * 6_000, [1] * 2_999 + [90_000], [90_000] + [1] * 2_999, [1, 900] * 3_000):
        data = b"".join(
            b'm s="%b" %d\n' % (b"x" * size, number) for number, size in enumerate(sizes)
        )

        rows = rows_of(Lines(data, len(sizes)), first=1, received_at=0.0)

        parts = [decompressed(row.gzip) for row in rows]
        assert b"".join(parts) == data
        assert max(row.points for row in rows) <= 2_500
        assert [part.count(b"\n") for part in parts] == [row.points for row in rows]
