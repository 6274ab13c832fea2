"""Hostile input from Home Assistant is read back equal from a real InfluxDB 1.

What line protocol cannot carry is replaced as docs/SCHEMA.md says. Values are compared to the
last bit of a float and the last character of a text.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from app.homeassistant.messages import Event
from app.model import Change, Placement, Row, StoredPoint
from app.normalize.changes import Normalizer
from app.schema.homeiq import HomeiqEncoder
from app.sinks.batches import whole_rows
from app.sinks.influxdb.sink import InfluxSink
from app.sinks.outcomes import Accepted
from tests.fakes import hostile
from tests.fakes.reference_encoder import expected_point
from tests.real.influx_1 import Database
from tests.real.servers import Server

pytestmark = [pytest.mark.real, pytest.mark.timeout(60)]

MEASUREMENT = 'home, \\events=of "all"'
ALL_ATTRIBUTES = ("*",)
_MADE_POINTS = 300
_NOON_NS = 1_795_435_200_000_000_000

UNCHANGED = {
    "a comma": "a,b",
    "a space": " a  b ",
    "quotes": "\"a\" 'b' `c`",
    "an equals sign": "a=b==",
    "backslashes": "\\a\\\\b",
    "a backslash and an n": "a\\nb",
    "a line of its own": "m,t=a v=1 1",
    "an emoji": "👩‍👩‍👧‍👦 🇺🇳",
    "right to left": "\u202e\u05e9\u05dc\u05d5\u05dd\u202c \u0639",
    "letters and their marks": "e\u0301 n\u0303",
    "C1 controls": "a\x85b\x9f",
    "separators": "a\u2028b\u2029c",
    "noncharacters": "\ufeffa\uffff\U0010ffff",
    "a comment": "#a",
    "time": "time",
    "a reserved word": "_field",
    "a boolean": "true",
    "an integer": "5i",
    "null": "null",
}
"""Texts that are stored unchanged as state, name, attribute, context and tag."""

REPLACED = {
    "newline": ("a\nb", "a b"),
    "carriage return": ("a\r\nb", "a  b"),
    "tabulator": ("a\tb", "a b"),
    "NUL": ("a\0b", "a b"),
    "delete": ("a\x7fb", "a b"),
    "escape": ("\x1b[31m", " [31m"),
    "backslash at the end": ("a\\", "a/"),
    "backslashes at the end": ("a\\\\", "a//"),
    "backslash before a comma": ("a\\,b", "a/,b"),
    "backslash before a space": ("a\\ b", "a/ b"),
    "backslash before an equals sign": ("a\\\\=b", "a//=b"),
    "long": ("ä" * 2_000, "ä" * 1_024),
}
"""Texts that a string field stores, with what a tag stores instead."""

SURROGATE = ("a\ud83db", "a\ufffdb")
"""A lone surrogate, which our JSON parsers never return."""

VALUES: Mapping[str, float | None] = {
    "1.7976931348623157e308": 1.7976931348623157e308,
    "-1.7976931348623157E+308": -1.7976931348623157e308,
    "1.7976931348623159e308": None,  # rounds to infinity
    "1e400": None,
    "2.2250738585072014e-308": 2.2250738585072014e-308,
    "2.225073858507201e-308": 2.225073858507201e-308,
    "5e-324": 5e-324,
    "1e-400": 0.0,
    "-0": -0.0,
    "-0.0": -0.0,
    "0": 0.0,
    "0.1": 0.1,
    "9007199254740993": 9007199254740992.0,
    "9223372036854775808": 9223372036854775808.0,
    "18446744073709551616": 18446744073709551616.0,
    "9" * 300: 1e300,
    "9" * 400: None,
    "1e16": 1e16,
    "1e-5": 1e-5,
    "on": 1.0,
    "not_home": 0.0,
    "nan": None,
    "inf": None,
    "-Infinity": None,
    "1_000": None,
    "0x10": None,
    "007": None,
    "+1": None,
    "1.": None,
    ".5": None,
    " 1": None,
    "1\n": None,
    "٣": None,
    "½": None,
}
"""Edge cases of numeric states."""


@pytest.fixture
def database(influx_1: Server) -> Database:
    """Return an empty database."""
    database = Database(influx_1.url, "hostile corpus")
    database.create()
    return database


async def test_every_text_is_stored_unchanged_in_a_field(
    influx_1: Server, database: Database
) -> None:
    """State, previous state, names, context and attributes: newlines, NUL and all."""
    texts = [*UNCHANGED.values(), *(text for text, _ in REPLACED.values())]
    changes = _changes(
        _event(
            number,
            text,
            attributes={"friendly_name": text, "note": text, "list": [text, {text: text}]},
            context={"id": text, "parent_id": text, "user_id": text},
        )
        for number, text in enumerate(texts)
    )

    await _write(influx_1, database, changes)
    stored = database.points()

    assert [
        [point.fields[name] for name in ("state_value", "friendly_name", "context_id")]
        for point in _by_time(stored)
    ] == [[text] * 3 for text in texts]
    assert [json.loads(str(point.fields["attributes"])) for point in _by_time(stored)] == [
        {"friendly_name": text, "note": text, "list": [text, {text: text}]} for text in texts
    ]
    _assert_equal(stored, changes)


async def test_every_text_is_stored_as_a_tag_or_its_replacement(
    influx_1: Server, database: Database
) -> None:
    """No text breaks out of its tag or loses its point."""
    table = [*((text, text) for text in UNCHANGED.values()), *REPLACED.values(), SURROGATE]
    changes = [
        msgspec.structs.replace(
            change,
            placement=Placement(device_id=text, area_id=text, integration=text),
            device_class=text,
            unit_of_measurement=text,
        )
        for (text, _), change in zip(
            table, _changes(_event(number, "1") for number in range(len(table))), strict=True
        )
    ]

    await _write(influx_1, database, changes)
    stored = database.points()

    names = ("device_id", "area_id", "integration", "device_class", "unit_of_measurement")
    assert [[point.tags[name] for name in names] for point in _by_time(stored)] == [
        [tag] * 5 for _, tag in table
    ]
    _assert_equal(stored, changes)


async def test_empty_tags_are_omitted(influx_1: Server, database: Database) -> None:
    """InfluxDB has no empty tags and refuses a line with one."""
    (change,) = _changes([_event(0, "", attributes={"device_class": "", "friendly_name": ""})])
    change = msgspec.structs.replace(
        change, placement=Placement(device_id="", area_id="", integration="", model="")
    )

    await _write(influx_1, database, [change])
    (stored,) = database.points()

    assert sorted(stored.tags) == [
        "domain",
        "entity_id",
        "event_category",
        "event_type",
        "instance",
    ]
    assert (stored.fields["state_value"], stored.fields["model"]) == ("", "")
    _assert_equal([stored], [change])


async def test_every_attribute_name_becomes_a_field(influx_1: Server, database: Database) -> None:
    """Also `time`, which no field may be called, and numbers beside texts of one name."""
    names = [*UNCHANGED.values(), *(text for text, _ in REPLACED.values()), "x", "x_str", "value"]
    values: Sequence[object] = (21, "warm", True, 2.5, None, [1, "a"], {"b": 2}, -0.0, 1e300, 2**80)
    changes = _changes(
        _event(number, "1", attributes=dict.fromkeys(names, value))
        for number, value in enumerate(values)
    )

    await _write(influx_1, database, changes)
    stored = _by_time(database.points())

    assert [
        (point.fields.get("attr_time"), point.fields.get("attr_time_str")) for point in stored
    ] == [
        (21.0, None),
        (None, "warm"),
        (1.0, None),
        (2.5, None),
        (None, None),
        (None, '[1,"a"]'),
        (None, '{"b":2}'),
        (-0.0, None),
        (1e300, None),
        (float(2**80), None),
    ]
    _assert_equal(stored, changes)


async def test_numbers_are_stored_to_the_last_bit(influx_1: Server, database: Database) -> None:
    """A state that is a finite number is stored as one; any other is unchanged text."""
    changes = _changes(_event(number, state) for number, state in enumerate(VALUES))

    await _write(influx_1, database, changes)
    stored = _by_time(database.points())

    assert {
        str(point.fields["state_value"]): _exact(point.fields.get("value")) for point in stored
    } == {state: _exact(value) for state, value in VALUES.items()}
    _assert_equal(stored, changes)


async def test_70_kb_of_attributes_are_truncated_to_the_limit_of_a_string(
    influx_1: Server, database: Database
) -> None:
    """The largest are removed and named in `_truncated`; the rest is JSON; a long state is cut."""
    large = 'ä, "\\\n' * 10_000
    (change,) = _changes([_event(0, large, attributes={"large": large, "small": "\\" * 20_000})])

    await _write(influx_1, database, [change])
    (stored,) = database.points()

    truncated = large.encode()[:65_536].decode(errors="ignore")
    assert json.loads(str(stored.fields["attributes"])) == {
        "small": "\\" * 20_000,
        "_truncated": ["large"],
    }
    assert stored.fields["state_value"] == truncated
    _assert_equal([stored], [change])


async def test_every_time_that_influxdb_can_represent_is_stored(
    influx_1: Server, database: Database
) -> None:
    """From 1677 to 2262, to the microsecond."""
    times = [
        "1677-09-21T00:12:43.145225+00:00",
        "1969-12-31T23:59:59.999999+00:00",
        "1970-01-01T00:00:00+00:00",
        "2026-10-25T02:30:00.000001+02:00",
        "2026-10-25T02:30:00.000001+01:00",
        "2262-04-11T23:47:16.854775+00:00",
    ]
    changes = _changes(_event(0, "1", time=time) for time in times)

    await _write(influx_1, database, changes)
    stored = database.points()

    assert [point.time_ns for point in _by_time(stored)] == [
        -9223372036854775000,
        -1_000,
        0,
        1792888200_000_001_000,
        1792891800_000_001_000,
        9223372036854775000,
    ]
    _assert_equal(stored, changes)


async def test_generated_points_are_read_back_equal(influx_1: Server, database: Database) -> None:
    """Changes and whole events generated by hypothesis, always the same, in one request each."""
    changes = [*_made_changes(), *_changes(_made_events())]
    changes = [
        # Times are compared in another test; here each identifies its point.
        msgspec.structs.replace(change, time_ns=_NOON_NS + number * 1_000)
        for number, change in enumerate(changes)
    ]

    await _write(influx_1, database, changes)
    stored = database.points()

    assert len(stored) == len(changes) > _MADE_POINTS
    _assert_equal(stored, changes)


def _event(
    number: int,
    state: str,
    *,
    attributes: Mapping[str, object] | None = None,
    context: Mapping[str, object] | None = None,
    time: str | None = None,
) -> Event:
    """Return an event decoded from Home Assistant's JSON, `number` seconds after noon."""
    time = time or f"2026-11-23T12:{number // 60:02d}:{number % 60:02d}.123456+00:00"
    row = {
        "entity_id": "sensor.kitchen",
        "state": state,
        "last_changed": time,
        "last_updated": time,
        "attributes": attributes or {},
    }
    message = {
        "event_type": "state_changed",
        "data": {"entity_id": "sensor.kitchen", "old_state": row, "new_state": row},
        "time_fired": time,
        "context": context,
    }
    return msgspec.json.decode(json.dumps(message), type=Event)


def _changes(events: Iterator[Event] | Sequence[Event]) -> list[Change]:
    """Return the changes of events that all have one."""
    changes: list[Change] = []
    for event in events:
        # Each with an empty cache: earlier attributes are not part of these cases.
        found, malformed = Normalizer(dict).changes([event])
        assert not malformed
        changes += found
    return changes


def _made_changes() -> list[Change]:
    made: list[Change] = []

    @settings(
        max_examples=_MADE_POINTS,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(hostile.changes)
    def collect(change: Change) -> None:
        made.append(change)

    collect()
    return made


def _made_events() -> list[Event]:
    made: list[Event] = []

    @settings(
        max_examples=_MADE_POINTS,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(hostile.events)
    def collect(event: Event) -> None:
        if not Normalizer(dict).changes([event])[1]:
            made.append(event)

    collect()
    return made


async def _write(server: Server, database: Database, changes: Sequence[Change]) -> None:
    """Encode the changes and write them with the sink, in one request."""
    lines = _encoder().encode(changes)
    row = Row(first=1, points=lines.points, gzip=gzip.compress(lines.data, 1), received_at=0.0)
    async with InfluxSink(
        server.url, token="", org="", bucket=database.name, timeout_s=30.0, api="v1"
    ) as sink:
        answer = await sink.write(whole_rows([row]))
    assert answer == Accepted()


def _encoder() -> HomeiqEncoder:
    return HomeiqEncoder(MEASUREMENT, instance="home=1, \\", attribute_fields=ALL_ATTRIBUTES)


def _assert_equal(stored: Sequence[StoredPoint], changes: Sequence[Change]) -> None:
    """Compare the stored points with the schema's tables, which are written down here again."""
    expected = [
        expected_point(
            change,
            measurement=MEASUREMENT,
            instance="home=1, \\",
            attribute_fields=ALL_ATTRIBUTES,
        )
        for change in changes
    ]
    for found, wanted in zip(_by_time(stored), _by_time(expected), strict=True):
        assert _comparable(found) == _comparable(wanted)


def _by_time(points: Sequence[StoredPoint]) -> list[StoredPoint]:
    return sorted(points, key=lambda point: point.time_ns)


def _comparable(point: StoredPoint) -> object:
    fields = {name: _exact(value) for name, value in point.fields.items()}
    return point.measurement, point.tags, fields, point.time_ns


def _exact(value: str | float | None) -> object:
    """Return a value that differs if any bit of a float does: -0.0 equals 0.0."""
    if isinstance(value, str | bool | None):
        return value
    return math.copysign(1.0, value), float(value)
