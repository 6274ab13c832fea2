"""gzip members: whatever is joined is one member that every reader takes for one."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.runtime import gzip_stream

Maker = Callable[[bytes], bytes]

DATA = st.binary(max_size=2_000) | st.binary(min_size=1, max_size=30).map(lambda part: part * 500)
MAKERS: st.SearchStrategy[Maker] = st.sampled_from([gzip_stream.compressed, gzip.compress])


def only_member(data: bytes) -> bytes:
    """Read the first member as a strict reader does, and nothing may stand behind it."""
    reader = zlib.decompressobj(wbits=31)
    read = reader.decompress(data)
    assert (reader.eof, reader.unused_data) == (True, b"")
    return read


@given(data=DATA)
def test_a_member_is_what_any_gzip_reads(data: bytes) -> None:
    """Checksum and length included."""
    member = gzip_stream.compressed(data)

    assert only_member(member) == data
    assert gzip_stream.decompressed(member) == data


@given(parts=st.lists(st.tuples(DATA, MAKERS), min_size=1, max_size=6))
def test_joined_members_are_one_member(parts: list[tuple[bytes, Maker]]) -> None:
    """Of all the data in order, whoever compressed it."""
    one = gzip_stream.joined([make(data) for data, make in parts])

    assert only_member(one) == b"".join(data for data, _ in parts)


def test_what_is_joined_can_be_joined_again() -> None:
    """It is like any other."""
    twice = gzip_stream.joined(
        [gzip_stream.joined([gzip_stream.compressed(b"a"), gzip_stream.compressed(b"b")])]
    )

    assert only_member(twice) == b"ab"


def test_joining_compresses_nothing_anew() -> None:
    """The blocks are the same bytes, so that a backlog costs no time to send."""
    first, second = gzip_stream.compressed(b"one " * 100), gzip_stream.compressed(b"two " * 100)

    joined = gzip_stream.joined([first, second])

    assert first[10:-10] + second[10:-10] == joined[10:-10]


@pytest.mark.parametrize(
    "broken",
    [b"", b"garbage", gzip.compress(b"whole")[:-9]],
    ids=["empty", "not gzip", "cut short"],
)
def test_what_is_no_member_is_an_error(broken: bytes) -> None:
    """Nobody makes a body of it."""
    with pytest.raises(gzip_stream.Damaged):
        gzip_stream.joined([gzip_stream.compressed(b"good"), broken])
    with pytest.raises(gzip_stream.Damaged):
        gzip_stream.decompressed(broken)
