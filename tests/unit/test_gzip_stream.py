"""gzip streams: every reader reads all of one, and damage is noticed."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.runtime import gzip_stream

DATA = st.binary(max_size=2_000) | st.binary(min_size=1, max_size=30).map(lambda part: part * 500)


def only_stream(data: bytes) -> bytes:
    """Read the first stream as a strict reader does; nothing may follow it."""
    reader = zlib.decompressobj(wbits=31)
    read = reader.decompress(data)
    assert (reader.eof, reader.unused_data) == (True, b"")
    return read


@given(data=DATA)
def test_any_gzip_reads_a_compressed_stream(data: bytes) -> None:
    """Checksum and length included."""
    stream = gzip_stream.compressed(data)

    assert only_stream(stream) == data
    assert gzip_stream.decompressed(stream) == data


@pytest.mark.parametrize(
    "broken",
    [b"", b"garbage", gzip.compress(b"whole")[:-9]],
    ids=["empty", "not gzip", "cut short"],
)
def test_an_incomplete_gzip_stream_is_an_error(broken: bytes) -> None:
    """They must not be taken for fewer points."""
    with pytest.raises(gzip_stream.Damaged):
        gzip_stream.decompressed(broken)


@given(parts=st.lists(DATA, min_size=1, max_size=5))
def test_joined_streams_are_one_stream_with_all_data(parts: list[bytes]) -> None:
    """A strict reader finds nothing behind it."""
    joined = gzip_stream.joined([gzip_stream.compressed(part) for part in parts])

    assert joined is not None
    assert only_stream(joined) == b"".join(parts)


def test_a_joined_stream_can_be_joined_again() -> None:
    """It is a stream like any other."""
    first = gzip_stream.joined([gzip_stream.compressed(b"a"), gzip_stream.compressed(b"b")])
    assert first is not None
    twice = gzip_stream.joined([first, gzip_stream.compressed(b"c")])

    assert twice is not None
    assert only_stream(twice) == b"abc"


@pytest.mark.parametrize(
    "foreign", [b"", b"garbage", gzip.compress(b"whole")], ids=["empty", "not gzip", "gzip"]
)
def test_streams_of_another_program_are_not_joined(foreign: bytes) -> None:
    """Their blocks may end inside a byte, so they must be compressed again."""
    assert gzip_stream.joined([gzip_stream.compressed(b"good"), foreign]) is None
