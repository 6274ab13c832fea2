"""Line protocol: every text stays where it was put, and comes back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from app.model import StoredPoint
from app.schema.line_protocol import (
    MAX_NAME_BYTES,
    MAX_STRING_BYTES,
    escape_field_key,
    escape_measurement,
    escape_tag,
    parse_line,
    quote,
)
from tests.fakes.hostile import texts
from tests.fakes.reference_encoder import stored_name, stored_text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("kitchen", "kitchen"),
        ("a,b=c d", r"a\,b\=c\ d"),
        ('15" screen', r'15"\ screen'),
        ("°C", "°C"),
        ("", ""),
        (r"a\b\\c", r"a\b\\c"),
        ("a\nb\r\tc\0d\x7fe", r"a\ b\ \ c\ d\ e"),
        ("a\ud800b", "a\ufffdb"),
    ],
)
def test_tags_escape_their_separators(text: str, escaped: str) -> None:
    """Quotes and single backslashes are plain text; what a tag cannot contain is replaced."""
    assert escape_tag(text).decode() == escaped


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("C:\\", "C:/"),
        ("\\\\", "//"),
        ("\\,x", "/\\,x"),
        ("a\\\\=b", "a//\\=b"),
        ("a\\ b\\c", "a/\\ b\\c"),
        ("a\\\n", "a/\\ "),
    ],
)
def test_a_backslash_never_stands_before_a_separator(text: str, escaped: str) -> None:
    """Parsers disagree whether two backslashes and a comma are an escaped comma."""
    assert escape_tag(text).decode() == escaped


def test_a_long_tag_is_cut_between_characters() -> None:
    """A series of more than 65,535 bytes is refused, and half a character is no text."""
    assert escape_tag("a" + "é" * MAX_NAME_BYTES).decode() == "a" + "é" * (MAX_NAME_BYTES // 2 - 1)
    assert escape_tag("é" * 10 + "\\" * MAX_NAME_BYTES).endswith(b"/")


@pytest.mark.parametrize("character", ["é", "€", "🔥"])
@pytest.mark.parametrize("characters", [512, 513, 700, 1_024, 1_025, 2_047, 2_048])
def test_a_tag_is_bounded_in_bytes_however_few_its_characters(
    character: str, characters: int
) -> None:
    """A text within the bound in characters may exceed it in bytes."""
    most = MAX_NAME_BYTES // len(character.encode())

    assert escape_tag(character * characters).decode() == character * min(characters, most)


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("home assistant,events", r"home\ assistant\,events"),
        ("a=b", "a=b"),
        ("#comment", "_comment"),
        ("a#b", "a#b"),
        ("ends\\", "ends/"),
    ],
)
def test_measurements_are_never_comments(name: str, escaped: str) -> None:
    """A line that begins with # is skipped in silence, and an equals sign separates nothing."""
    assert escape_measurement(name).decode() == escaped


def test_a_measurement_needs_a_name() -> None:
    """A line cannot begin with its tags."""
    with pytest.raises(ValueError, match="needs a name"):
        escape_measurement("")


def test_field_keys_hold_no_quotes() -> None:
    """A reader of a line takes every quote among the fields for the edge of a string."""
    assert escape_field_key('15" screen') == rb"15'\ screen"


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", '""'),
        ('say "hi"\\', r'"say \"hi\"\\"'),
        ("two\nlines\r\n", '"two\nlines\r\n"'),
        ("a, b=c\0\t", '"a, b=c\0\t"'),
        ("\ud800x\udfff", '"\ufffdx\ufffd"'),
    ],
)
def test_string_fields_keep_every_character(text: str, quoted: str) -> None:
    """Only quotes and backslashes are escaped in a string; half a character is none."""
    assert quote(text).decode() == quoted


def test_long_strings_are_cut_before_they_are_escaped() -> None:
    """InfluxDB counts what is stored, and a cut never parts a character or an escape."""
    assert quote(b'"' * (MAX_STRING_BYTES + 1)) == b'"' + b'\\"' * MAX_STRING_BYTES + b'"'
    assert quote("a" + "é" * MAX_STRING_BYTES) == quote("a" + "é" * (MAX_STRING_BYTES // 2 - 1))


def test_every_kind_of_field_is_read_back() -> None:
    """Each of InfluxDB's types has its type in Python."""
    line = rb'm,a=b\ c,d=e\,f\=g\h s="q\"\\\\n\\",f=21.0,e=-1e+22,i=-5i,u=5u,t=T,n=false,x\ y=1 -7'

    assert parse_line(line) == StoredPoint(
        measurement="m",
        tags={"a": "b c", "d": r"e,f=g\h"},
        fields={
            "s": 'q"\\\\n\\',
            "f": 21.0,
            "e": -1e22,
            "i": -5,
            "u": 5,
            "t": True,
            "n": False,
            "x y": 1.0,
        },
        time_ns=-7,
    )


def test_field_types_survive_parsing() -> None:
    """A float that looks whole is a float, and neither number is a boolean."""
    fields = parse_line(b"m f=1,i=1i,b=t 1").fields

    assert [type(value) for value in fields.values()] == [float, int, bool]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"m",
        b"m x=1",
        b"m 1",
        b"m x= 1",
        b"m x=1  1",
        b"m x=1 1\n",
        b"m x=1 1 ",
        b"m x=1,, y=2 1",
        b"m,a= x=1 1",
        b"m,a x=1 1",
        b"m,a=b=c x=1 1",
        b"m x=NaN 1",
        b"m x=inf 1",
        b"m x=1e400 1",
        b"m x=1_0 1",
        b"m x=0x1 1",
        b"m x=yes 1",
        b'm x="open 1',
        b'm x="a"b" 1',
        b"m x=1,y=2,abc 1",
        b"m x=1abc=2 1",
        b'm x="1"y=2 1',
        b'm x="1"abcd 1',
        b"m x=1 9223372036854775807",
        b"m x=1 9223372036854775808",
        b"m x=1 99999999999999999999999",
        b"m x=1 1.5",
        b"m x=\xff 1",
        b"m\\",
    ],
)
def test_text_that_is_not_line_protocol_is_refused(line: bytes) -> None:
    """What is not a line raises, and is never half read."""
    with pytest.raises(ValueError):
        parse_line(line)


@settings(deadline=None)
@given(texts, texts, texts, texts)
def test_any_text_in_a_line_parses_back_unchanged(
    measurement: str, tag: str, key: str, value: str
) -> None:
    """Reading a line gives what was written, whatever the text: replaced, but never misplaced."""
    line = b"%b,t=%b %b=%b 1" % (
        escape_measurement("m" + measurement),
        escape_tag("t" + tag),
        escape_field_key("k" + key),
        quote(value),
    )

    assert parse_line(line) == StoredPoint(
        measurement=stored_name("m" + measurement),
        tags={"t": stored_name("t" + tag)},
        fields={stored_name("k" + key.replace('"', "'")): stored_text(value)},
        time_ns=1,
    )
