"""The shared words: lines are cut where they end, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.model import Lines
from app.schema.line_protocol import escape_field_key, escape_tag, quote
from tests.fakes.hostile import texts

_TAGS = st.lists(texts.map(lambda text: b",t=" + escape_tag("v" + text)), max_size=3)
_FIELDS = st.lists(
    st.tuples(texts, texts).map(lambda kv: escape_field_key("k" + kv[0]) + b"=" + quote(kv[1])),
    min_size=1,
    max_size=3,
)
_LINES = st.tuples(_TAGS, _FIELDS).map(
    lambda parts: b"m" + b"".join(parts[0]) + b" " + b",".join(parts[1]) + b" 1"
)


@pytest.mark.parametrize(
    "line",
    [
        b"m x=1 1",
        b'm x="two\nlines" 1',
        b'm x="a\n",y="\nb\n" 1',
        rb'm x="ends in a backslash\\",y="' + b'\n" 1',
        b'm x="an escaped \\" quote\n" 1',
        b'm,a=15" x="\n" 1',
        b'm,a=15"\\ b,c=d" x="\n" 1',
        b'm,a=b\\"c x="y z=\n" 1',
        b"m,a=b x\\ y=1,z\\=\\,=2 1",
    ],
)
def test_a_batch_of_lines_is_split_only_at_line_ends(line: bytes) -> None:
    """A newline inside a string, or a quote inside a tag, ends nothing."""
    batch = [b"m x=1 1", line, b'm x="" 2', line]

    assert Lines(b"".join(one + b"\n" for one in batch), len(batch)).split() == batch


@settings(deadline=None)
@given(st.lists(_LINES, max_size=4))
def test_any_batch_is_split_into_its_lines(batch: list[bytes]) -> None:
    """Whatever the texts: joined and cut, the lines are the same."""
    assert Lines(b"".join(line + b"\n" for line in batch), len(batch)).split() == batch
