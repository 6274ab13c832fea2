"""Attributes: JSON that always parses, never too long, and passed on untouched when it can be."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings

from app.model import LastNames
from app.normalize.attributes import MAX_BYTES, NO_ATTRIBUTES, Attributes, read_attributes
from tests.fakes.hostile import raw_json
from tests.fakes.recordings import VERSIONS, recording


def test_class_unit_and_name_are_read_from_attributes() -> None:
    """Class, unit and name become tags and a field of their own."""
    raw = b'{"unit_of_measurement":"W","friendly_name":"A, b","x":1,"device_class":"power"}'

    assert read_attributes(raw) == Attributes(raw, LastNames("power", "W", "A, b"))


def test_compact_attributes_are_passed_on_unchanged() -> None:
    """Home Assistant sends it compact: no byte is touched, and none copied."""
    raw = '{"friendly_name":"Room 1 a b","x":[1.0,"é"],"y":"\\\\u0041"}'.encode()

    assert read_attributes(raw).json is raw


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": 1,"b":2}',
        b'{"a":1, "b":2}',
        b'{"a" :1,"b":2}',
        b'{"a":1 ,"b":2}',
        b'{ "a":1,"b":2}',
        b'{"a":1,"b":2 }',
        b' {"a":1,"b":2}',
        b'{"a":1,"b":2}\n',
        b'\t{"a":1,"b":2}  ',
        b'{\n\t"a":1,\r\n\t"b":2\n}',
    ],
)
def test_whitespace_between_attributes_is_removed(raw: bytes) -> None:
    """Wherever it stands."""
    assert read_attributes(raw).json == b'{"a":1,"b":2}'


def test_whitespace_inside_attribute_strings_stays() -> None:
    """Even where it looks like whitespace between parts."""
    raw = b'{"a":" , ","b\\" : ":"{ }","c": [1, " ]"]}'

    assert read_attributes(raw).json == b'{"a":" , ","b\\" : ":"{ }","c":[1," ]"]}'


@pytest.mark.parametrize("raw", [b"null", b"[]", b'["device_class"]', b'"text"', b"1", b"true"])
def test_attributes_that_are_not_an_object_count_as_empty(raw: bytes) -> None:
    """Attributes are an object, or there are none."""
    assert read_attributes(raw) == NO_ATTRIBUTES


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b'{"device_class":5,"unit_of_measurement":"W"}', (None, "W", None)),
        (b'{"device_class":null,"friendly_name":["x"]}', (None, None, None)),
        (b'{"device_class":1e400,"friendly_name":"x"}', (None, None, "x")),
        (b'{"device_class":"","unit_of_measurement":"","friendly_name":""}', (None, None, None)),
        (b'{"device_class":"a","device_class":"b"}', ("b", None, None)),
    ],
)
def test_an_attribute_of_an_unexpected_type_is_ignored_alone(
    raw: bytes, named: tuple[str | None, ...]
) -> None:
    """What is not a text, or an empty one, is not known; the rest is."""
    read = read_attributes(raw)

    assert read.names == named
    assert read.json == raw


@pytest.mark.parametrize(
    ("raw", "repaired"),
    [
        (b'{"x":NaN,"y":[Infinity,-Infinity,1.5]}', '{"x":null,"y":[null,null,1.5]}'),
        (b'{"x":NaN,"y":1e400}', '{"x":null,"y":null}'),
        (b'{"x":"a\\ud800b"}', '{"x":"a\ufffdb"}'),
        (b'{"\\udc00":"\\ud83d\\ude00\\ud800"}', '{"\ufffd":"\U0001f600\ufffd"}'),
        (b'{"x":"\xff","y":1}', '{"x":"\ufffd","y":1}'),
        (b'{"x":"\xed\xa0\x80"}', '{"x":"\ufffd\ufffd\ufffd"}'),
        (b'{"friendly_name":"\xff", "x":1}', '{"friendly_name":"\ufffd","x":1}'),
    ],
)
def test_attributes_that_some_json_parsers_refuse_are_repaired(raw: bytes, repaired: str) -> None:
    """NaN is no JSON, and half a character no text."""
    assert read_attributes(raw).json.decode() == repaired


def test_repaired_attributes_are_read_too() -> None:
    """A bad attribute does not hide the name."""
    assert read_attributes(b'{"x":NaN,"friendly_name":"A\\ud800"}').names.friendly_name == "A\ufffd"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"x":}',
        b"{'x':1}",
        b'{"x":1}}',
        b'{"x":"\n"}',
        b'{"x":\xff}',
        b'{"x":' + b"[" * 100_000,
    ],
)
def test_attributes_that_are_not_json_are_refused(raw: bytes) -> None:
    """There is nothing to pass on."""
    with pytest.raises(ValueError):
        read_attributes(raw)


def test_the_largest_attributes_are_left_out_and_named() -> None:
    """InfluxDB limits strings; small attributes are kept, and the missing ones are named."""
    attributes = {
        "friendly_name": "Camera",
        "picture": "x" * 70_000,
        "entity_picture": "y" * 60_000,
        "list": list(range(2_000)),
        "_truncated": "what someone else called so",
    }

    read = read_attributes(msgspec.json.encode(attributes))

    assert json.loads(read.json) == {
        "friendly_name": "Camera",
        "list": list(range(2_000)),
        "_truncated": ["picture", "entity_picture"],
    }
    assert read.names.friendly_name == "Camera"


@pytest.mark.parametrize("size", [MAX_BYTES - 1, MAX_BYTES, MAX_BYTES + 1, MAX_BYTES + 20])
def test_attributes_that_fit_to_the_byte_stay_whole(size: int) -> None:
    """Attributes of exactly the maximum size are not cut."""
    attributes = {"a": 1, "x": "x" * (size - len('{"a":1,"x":""}'))}
    raw = msgspec.json.encode(attributes)
    assert len(raw) == size

    read = json.loads(read_attributes(raw).json)

    assert read == (attributes if size <= MAX_BYTES else {"a": 1, "_truncated": ["x"]})


def test_thousands_of_names_stay_within_the_bound() -> None:
    """When even the names of what was left out are too many, some go unnamed."""
    attributes = {f"{number:04}" + "\0" * 300: "x" * 10 for number in range(2_000)}

    result = read_attributes(msgspec.json.encode(attributes)).json

    assert MAX_BYTES - 400 < len(result) <= MAX_BYTES
    assert list(json.loads(result)) == ["_truncated"]


def test_the_size_of_attributes_is_counted_to_the_byte() -> None:
    """As many attributes are kept as fit."""
    attributes = {f"é{number}": "x" * 900 for number in range(100)}

    result = read_attributes(msgspec.json.encode(attributes)).json

    kept = json.loads(result)
    assert len(kept) - 1 + len(kept["_truncated"]) == 100
    assert MAX_BYTES - 920 < len(result) <= MAX_BYTES


@settings(deadline=None)
@given(raw_json())
def test_any_attributes_become_compact_json_that_parses(raw: msgspec.Raw) -> None:
    """However it was written, every parser reads it, and no byte is wasted."""
    result = read_attributes(bytes(raw)).json

    assert isinstance(json.loads(result, parse_constant=pytest.fail), dict)
    assert msgspec.json.format(result, indent=-1) == result


@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_attributes_keep_their_meaning(version: str) -> None:
    """What real Home Assistants sent is passed on, compact or not."""
    for state in recording(version, "get_states")["result"]:
        attributes = state["attributes"]
        for text in (json.dumps(attributes), json.dumps(attributes, separators=(",", ":"))):
            read = read_attributes(text.encode())
            assert json.loads(read.json) == attributes
            assert read.names.friendly_name == attributes.get("friendly_name")


@pytest.mark.parametrize(
    "value",
    [
        b'"' + b"x" * 5_000_000 + b'"',
        b" " * 5_000_000 + b"1",
        b"[" + b"1," * 3_000_000 + b"1]",
        b"1" + b"".join(b',"%d":1' % number for number in range(100_000)),
    ],
)
def test_of_megabytes_of_attributes_only_the_names_are_read(value: bytes) -> None:
    """Looking at all of it would keep the event loop busy for seconds."""
    raw = b'{"device_class":"power","unit_of_measurement":"W","big":%b}' % value

    assert read_attributes(raw) == Attributes(
        b'{"_truncated":["*"]}', LastNames("power", "W", None)
    )


def test_an_integer_that_other_parsers_refuse_becomes_null() -> None:
    """Python refuses more than 4,300 digits, wherever the attributes are read again."""
    assert read_attributes(b'{"n":' + b"1" * 5_000 + b',"m":1}').json == b'{"n":null,"m":1}'
