"""Batches: a single row costs nothing, everything else is compressed once."""

from __future__ import annotations

import gzip

import pytest

from app.model import Row
from app.runtime.errors import StorageDamaged
from app.sinks.batches import WholeRows, after, cut, fields_in, halves, whole_rows
from app.sinks.outcomes import FieldName

LINES = [b"m,e=%d v=%d %d" % (n, n, n) for n in range(1, 11)]


def row(first: int, lines: list[bytes], *, received_at: float = 7.0) -> Row:
    """Return a row as a journal keeps it."""
    data = b"".join(line + b"\n" for line in lines)
    return Row(first, len(lines), gzip.compress(data), received_at)


def test_a_single_row_is_sent_as_it_lies_in_the_journal() -> None:
    """Its own bytes, which nobody has to unpack; several rows have to be compressed again."""
    only = row(1, LINES[:4])

    assert whole_rows([only]).gzip == only.gzip
    assert whole_rows([only, row(5, LINES[4:])]).gzip is None


def test_several_rows_are_one_batch() -> None:
    """It was received when its oldest point was."""
    batch = whole_rows([row(1, LINES[:4]), row(5, LINES[4:], received_at=9.0)])

    assert (batch.first, batch.last, batch.points, batch.received_at) == (1, 10, 10, 7.0)
    assert batch.lines() == LINES


def test_a_batch_with_a_damaged_row_names_it() -> None:
    """Delivery splits the batch and drops that row alone."""
    batch = whole_rows([row(1, LINES[:4]), Row(5, 1, b"garbage", 0.0)])

    with pytest.raises(StorageDamaged, match="points 5 to 5"):
        batch.lines()


def test_a_batch_ends_where_numbers_are_missing() -> None:
    """Within a batch they count up by one, so that a line's place gives its number."""
    batch = whole_rows([row(1, LINES[:4]), row(5, LINES[4:6]), row(9, LINES[6:])])

    assert batch.last == 6


def test_halves_hold_the_lines_in_order() -> None:
    """Of an odd number the first half is the smaller one."""
    first, second = halves(whole_rows([row(1, LINES[:3]), row(4, LINES[3:9])]))

    assert (first.first, first.last, first.points) == (1, 4, 4)
    assert (second.first, second.last, second.points) == (5, 9, 5)
    assert first.lines() + second.lines() == LINES[:9]
    assert gzip.decompress(first.gzip) == b"".join(line + b"\n" for line in LINES[:4])
    assert second.received_at == 7.0


def test_cut_lines_can_be_cut_again() -> None:
    """Down to one, with its number."""
    part = cut(cut(whole_rows([row(100, LINES)]), 2, 8), 3, 4)

    assert (part.first, part.last, part.lines()) == (105, 105, [LINES[5]])


def test_lines_that_are_acked_are_cut_off() -> None:
    """A restart may leave the cursor inside a row; what lies behind it is left alone."""
    batch = whole_rows([row(1, LINES[:5]), row(6, LINES[5:])])

    assert after(batch, 0) is batch
    rest = after(batch, 3)
    assert (rest.first, rest.last, rest.lines()) == (4, 10, LINES[3:])


def test_a_newline_in_a_string_does_not_cut_a_line() -> None:
    """Line protocol allows one inside quotes."""
    lines = [b'm v="a\nb" 1', b"m v=2 2"]

    assert whole_rows([row(1, lines)]).lines() == lines


@pytest.mark.parametrize(
    "damaged",
    [
        Row(1, 2, b"garbage", 0.0),
        Row(1, 2, b"", 0.0),
        Row(1, 2, gzip.compress(b"m v=1 1\nm v=2 2\n")[:-9], 0.0),
        Row(1, 3, gzip.compress(b"m v=1 1\nm v=2 2\n"), 0.0),
        Row(1, 1, gzip.compress(b"m v=1 1\nm v=2 2\n"), 0.0),
    ],
)
def test_a_row_that_is_not_what_it_should_be_is_damaged(damaged: Row) -> None:
    """Its lines have no numbers that could be trusted."""
    with pytest.raises(StorageDamaged, match="points 1 to"):
        WholeRows((damaged,)).lines()


@pytest.mark.parametrize(
    ("line", "wanted", "found"),
    [
        (b'home,e=a value=1,x="b" 1', FieldName("value", "home"), True),
        (b'home,e=a x="q,value=1",value=2i 1', FieldName("value", "home"), True),
        (b'home,e=a x="q,value=1" 1', FieldName("value", "home"), False),
        (b"home,value=3 x=1 1", FieldName("value", "home"), False),
        (b"homes value=1 1", FieldName("value", "home"), False),
        (b"home value=1 1", FieldName("value"), True),
        (rb"a\ b\,c,e=a my\ f\,\=x=1 1", FieldName("my f,=x", "a b,c"), True),
    ],
)
def test_a_field_is_found_only_where_it_is_one(
    line: bytes, wanted: FieldName, *, found: bool
) -> None:
    """Not in a tag, a text or another measurement."""
    part = WholeRows((Row(1, 1, gzip.compress(line + b"\n"), 0.0),))

    assert fields_in(part, [wanted]) == (frozenset({wanted}) if found else frozenset())
