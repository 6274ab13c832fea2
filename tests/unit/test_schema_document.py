"""docs/SCHEMA.md describes what the encoder does."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from app.model import Change, Context, Placement
from app.normalize.attributes import MAX_BYTES
from app.schema.homeiq import VALUES_OF_WORDS, HomeiqEncoder, category_of
from app.schema.line_protocol import MAX_NAME_BYTES, MAX_STRING_BYTES, parse_line
from tests.fakes.documents import queries

DOCUMENT = (Path(__file__).parents[2] / "docs" / "SCHEMA.md").read_text()
_CODE = re.compile(r"`([^`]+)`")


def _rows(head: str) -> list[list[str]]:
    """Return the cells of the table under the head that begins so."""
    _, _, rest = DOCUMENT.partition(f"\n| {head}")
    lines = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def _codes(cell: str) -> list[str]:
    return _CODE.findall(cell)


FULL = Change(
    entity_id="sensor.kitchen",
    domain="sensor",
    time_ns=1_795_435_200_123_456_000,
    state="21.5",
    previous_state="21.4",
    duration_s=61.2,
    attributes=b'{"NAME":1,"other":null}',
    device_class="temperature",
    unit_of_measurement="C",
    friendly_name="Kitchen",
    context=Context(id="1", parent_id="2", user_id="3"),
    placement=Placement(
        device_id="d", area_id="a", integration="i", manufacturer="m", model="o", sw_version="s"
    ),
    backfilled=True,
)


def _encoded(*changes: Change) -> list[str]:
    encoder = HomeiqEncoder("m", instance="home", attribute_fields=("*",))
    points = [parse_line(line) for line in encoder.encode(changes).split()]
    return [name for point in points for name in (*point.tags, *point.fields)]


def test_the_tables_of_tags_and_fields_are_complete() -> None:
    """Each tag and field of the fullest points is there, and no other is."""
    removed = msgspec.structs.replace(FULL, state=None, attributes=b'{"NAME":"text"}')

    written = set(_encoded(FULL, removed))

    named = {name for head in ("tag", "field ") for row in _rows(head) for name in _codes(row[0])}
    assert named == written


def test_the_documented_binary_words_are_those_of_the_code() -> None:
    """Each word of the left column is 1 and of the right 0."""
    words = {
        word: value
        for row in _rows("1 | 0")
        for cell, value in zip(row, (1.0, 0.0), strict=True)
        for word in _codes(cell)
    }

    assert words == VALUES_OF_WORDS


def test_the_documented_categories_are_in_the_order_of_the_code() -> None:
    """An entity that fits two is of the one that stands first."""
    rows = [(_codes(row[0])[0], _codes(row[1]), _codes(row[2])) for row in _rows("category")]

    for category, domains, classes in rows:
        assert [category_of(domain, None) for domain in domains] == [category] * len(domains)
        assert [category_of("sun", name) for name in classes] == [category] * len(classes)
    assert category_of("light", "door") == rows[0][0]
    assert category_of("sun", None) == rows[-1][0]


def test_the_documented_bounds_are_those_of_the_code() -> None:
    """The text contains three numbers."""
    assert MAX_BYTES == MAX_STRING_BYTES
    assert f"64 KB ({MAX_STRING_BYTES:,} bytes)" in DOCUMENT
    assert f"more than {MAX_NAME_BYTES:,} bytes" in DOCUMENT
    assert "cut\nafter 64 characters" in DOCUMENT


def _columns(language: str, query: str) -> tuple[set[str], set[str]]:
    """Return the names of ours that a query uses, and those that it makes itself."""
    if language == "flux":
        named = set(re.findall(r"\br\.(\w+)|r\._field == \"(\w+)\"", query))
        named |= {(name,) for name in re.findall(r"columns?: \[?\"(\w+)\"", query)}
        return {name for names in named for name in names if name}, set()
    words = re.sub(r"'[^']*'|\b\d+[dhms]?\b", " ", query)
    made = set(re.findall(r"\bAS (\w+)", words))
    return set(re.findall(r"\b[a-z_]{2,}\b", words)) - _FUNCTIONS, made


_FUNCTIONS = {
    *("now", "last", "mean", "sum", "fill", "none", "previous", "non_negative_difference"),
    *("date_bin", "avg", "lag", "last_value"),
}
_OF_FLUX = {"_measurement", "_field", "_time", "_value"}


@pytest.mark.parametrize("language", ["influxql", "flux", "sql"])
def test_every_documented_query_uses_documented_names(language: str) -> None:
    """In each language, of the measurement, with tags and fields that points have."""
    known = {name for head in ("tag", "field ") for row in _rows(head) for name in _codes(row[0])}

    assert len(queries()) == 8
    for languages in queries().values():
        named, made = _columns(language, languages[language])
        assert "home_assistant_events" in languages[language]
        assert named - made - known - _OF_FLUX <= {"home_assistant_events", "time"}
