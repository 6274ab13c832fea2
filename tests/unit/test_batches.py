"""Batches: a single row costs nothing, everything else is compressed once."""

from __future__ import annotations

import gzip
from collections.abc import Sequence

import pytest

from app.model import Row
from app.runtime.errors import StorageDamaged
from app.sinks.batches import (
    Batch,
    FieldName,
    by_series,
    cut,
    fields_in,
    halves,
    series_in,
    whole_rows,
)

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
    assert gzip.decompress(first.gzip or b"") == b"".join(line + b"\n" for line in LINES[:4])
    assert second.received_at == 7.0


def test_cut_lines_can_be_cut_again() -> None:
    """Down to one, with its number."""
    part = cut(cut(whole_rows([row(100, LINES)]), range(2, 8)), [3])

    assert (part.first, part.last, part.lines()) == (105, 105, [LINES[5]])


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
        whole_rows([damaged]).lines()


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
    part = whole_rows([Row(1, 1, gzip.compress(line + b"\n"), 0.0)])

    assert fields_in(part, [wanted]) == (frozenset({wanted}) if found else frozenset())


def part_of(series: Sequence[str]) -> Batch:
    """Return the points 101 to …, each of the series named, with its number as time."""
    lines = [f"{name} v=1 {number}\n" for number, name in enumerate(series, start=101)]
    return whole_rows([Row(101, len(lines), gzip.compress("".join(lines).encode()), 7.0)])


def names_in(part: Batch) -> list[str]:
    """Return the series of the lines, in order."""
    return [line.split(b" v=")[0].decode() for line in part.lines()]


def test_series_that_were_accepted_before_come_first() -> None:
    """Each piece knows the numbers of its lines, and is what the database gets."""
    part = part_of(["m,e=a", "m,e=new1", "m,e=b", "m,e=a", "m,e=new2"])

    known, unknown = by_series(part, series_in(part_of(["m,e=b", "m,e=a", "m,e=c"])))

    assert (names_in(known), list(known.numbers)) == (["m,e=a", "m,e=b", "m,e=a"], [101, 103, 104])
    assert (names_in(unknown), list(unknown.numbers)) == (["m,e=new1", "m,e=new2"], [102, 105])
    assert (known.first, known.last, known.points, known.received_at) == (101, 104, 3, 7.0)
    assert gzip.decompress(unknown.gzip or b"") == b"m,e=new1 v=1 102\nm,e=new2 v=1 105\n"


@pytest.mark.parametrize("is_known", [True, False])
def test_of_series_of_one_kind_the_ones_with_the_most_lines_come_first(*, is_known: bool) -> None:
    """A series over a limit is likely a new one."""
    part = part_of(["new1", "a", "new2", "b", "a", "new3", "b"])

    first, second = by_series(part, series_in(part) if is_known else ())

    assert names_in(first) == ["a", "b", "a", "b"]
    assert names_in(second) == ["new1", "new2", "new3"]


def test_lines_of_a_single_series_are_halved() -> None:
    """A limit of columns refuses some lines of a series and not the others."""
    first, second = by_series(part_of(["a", "a", "a"]), ())

    assert ([*first.numbers], [*second.numbers]) == ([101], [102, 103])


def test_a_piece_can_be_split_again() -> None:
    """Down to single series, each line once and with its own number."""
    names = [f"m,e={number % 5}" for number in range(20)]
    pieces, done = [*by_series(part_of(names), ())], []
    while pieces:
        piece = pieces.pop()
        if len(series_in(piece)) == 1:
            done.append(piece)
        else:
            pieces += by_series(piece, ())

    assert len(done) == 5
    assert sorted(number for piece in done for number in piece.numbers) == [*range(101, 121)]
    assert all(
        line.endswith(b" %d" % number)
        for piece in done
        for number, line in zip(piece.numbers, piece.lines(), strict=True)
    )


def test_a_series_ends_at_the_first_space_that_is_not_escaped() -> None:
    """What cannot be read is a series of its own."""
    assert len(series_in(part_of([r"m\ n,e=a\ b", r"m\ n,e=a\ c", r"m\ n,e=a\ b"]))) == 2
    assert len(series_in(part_of(["", "", "m"]))) == 3
