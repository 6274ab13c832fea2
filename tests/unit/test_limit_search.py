"""The search for points over a limit: pieces never separate the lines of a series."""

from __future__ import annotations

import gzip
from collections.abc import Sequence

import pytest

from app.model import Row
from app.sinks.batches import CutLines, WholeRows
from app.sinks.limit_search import by_series, series_in


def part_of(series: Sequence[str]) -> WholeRows:
    """Return the points 101 to …, each of the series named, with its number as time."""
    lines = [f"{name} v=1 {number}\n" for number, name in enumerate(series, start=101)]
    return WholeRows((Row(101, len(lines), gzip.compress("".join(lines).encode()), 7.0),))


def names_in(part: CutLines) -> list[str]:
    """Return the series of the lines, in order."""
    return [line.split(b" v=")[0].decode() for line in part.lines()]


def test_series_that_were_accepted_before_come_first() -> None:
    """Each piece knows the numbers of its lines, and is what the database gets."""
    part = part_of(["m,e=a", "m,e=new1", "m,e=b", "m,e=a", "m,e=new2"])

    known, unknown = by_series(part, series_in(part_of(["m,e=b", "m,e=a", "m,e=c"])))

    assert (names_in(known), list(known.numbers)) == (["m,e=a", "m,e=b", "m,e=a"], [101, 103, 104])
    assert (names_in(unknown), list(unknown.numbers)) == (["m,e=new1", "m,e=new2"], [102, 105])
    assert (known.first, known.last, known.points, known.received_at) == (101, 104, 3, 7.0)
    assert gzip.decompress(unknown.gzip) == b"m,e=new1 v=1 102\nm,e=new2 v=1 105\n"


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
