"""The comparison of the recorder with InfluxDB finds every difference and excuses few."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import pytest

from app.model import StoredPoint
from tests.real.reconcile import Comparison, History, Row, Rule, compare, read_rows

Fields: TypeAlias = Mapping[str, str | float | bool]

SECOND_NS = 1_000_000_000
WATTS = {"device_class": "power", "unit_of_measurement": "W"}


def _row(number: int, state: str | None, **changes: object) -> Row:
    """Return the row of second `number`; each follows the one before it."""
    values: dict[str, object] = {
        "state_id": number,
        "old_state_id": number - 1 or None,
        "entity_id": "sensor.a",
        "state": state,
        "updated_ns": number * SECOND_NS,
        "changed_ns": number * SECOND_NS,
        "attributes": {} if state in (None, "unavailable") else WATTS,
    }
    return Row(**{**values, **changes})  # type: ignore[arg-type]


def _point(number: int, fields: Fields, tags: Mapping[str, str] = WATTS) -> StoredPoint:
    return StoredPoint(
        measurement="home_assistant_events",
        tags={"entity_id": "sensor.a", **tags},
        fields=fields,
        time_ns=number * SECOND_NS,
    )


def _fields(state: str, *, before: str | None = None, lasted_s: float = 1.0) -> Fields:
    """Return the fields of a number, after another one or as the first."""
    fields: Fields = {"state_value": state, "value": float(state), "available": True}
    if before is None:
        return fields
    return {**fields, "previous_state": before, "duration_in_state_seconds": lasted_s}


ROWS = [_row(1, "20"), _row(2, "20", changed_ns=SECOND_NS), _row(3, "unavailable"), _row(4, None)]
POINTS = [
    _point(1, _fields("20")),
    _point(2, _fields("20", before="20", lasted_s=0.0)),
    _point(
        3,
        {
            "state_value": "unavailable",
            "available": False,
            "previous_state": "20",
            "duration_in_state_seconds": 2.0,
        },
    ),
    _point(4, {"removed": True, "previous_state": "unavailable", "duration_in_state_seconds": 1.0}),
]


def _compared(
    rows: list[Row],
    points: list[StoredPoint],
    history: History | None = None,
    *,
    since_s: int = 0,
    until_s: int = 100,
) -> Comparison:
    return compare(
        rows,
        points,
        since_ns=since_s * SECOND_NS,
        until_ns=until_s * SECOND_NS,
        history=history or History(),
    )


def _found(result: Comparison) -> list[tuple[str, int]]:
    return [(found.what, found.time_ns // SECOND_NS) for found in result.differences]


def test_points_that_match_the_rows_of_the_recorder_do_not_differ() -> None:
    """A new state, an update of attributes, a state without attributes, and a removal."""
    result = _compared(ROWS, POINTS)

    assert result.differences == []
    assert (result.rows, result.points, result.backfilled) == (4, 4, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("state_value", "21"),
        ("value", 20.5),
        ("available", False),
        ("previous_state", "19"),
        ("duration_in_state_seconds", 0.5),
        ("removed", True),
    ],
)
def test_reconciling_finds_each_field_that_differs(field: str, value: object) -> None:
    """Also in a point that is equal otherwise."""
    wrong = _point(2, {**POINTS[1].fields, field: value})  # type: ignore[dict-item]

    assert _found(_compared(ROWS, [POINTS[0], wrong, *POINTS[2:]])) == [(field, 2)]


@pytest.mark.parametrize("field", ["previous_state", "duration_in_state_seconds", "value"])
def test_reconciling_finds_a_field_that_is_absent(field: str) -> None:
    """Nothing is a value that only some fields may have."""
    fields = {name: value for name, value in POINTS[1].fields.items() if name != field}

    assert _found(_compared(ROWS, [POINTS[0], _point(2, fields), *POINTS[2:]])) == [(field, 2)]


def test_reconciling_finds_missing_extra_and_duplicate_points() -> None:
    """Twice is the same moment of one entity in two series."""
    moved = _point(4, POINTS[3].fields, {**WATTS, "area_id": "attic"})
    extra = _point(9, _fields("5"))

    result = _compared(ROWS, [POINTS[0], *POINTS[2:], moved, extra])

    assert _found(result) == [("missing", 2), ("twice", 4), ("extra", 9)]


def test_rows_before_the_first_moment_are_only_the_past_of_those_after_it() -> None:
    """The row of second 1 is what the one of second 2 follows."""
    result = _compared(ROWS, POINTS[1:], since_s=2)

    assert (result.differences, result.rows) == ([], 3)


def test_what_happened_after_the_last_moment_is_not_compared() -> None:
    """The recorder may not have committed it, or the service not be there any more."""
    result = _compared([*ROWS, _row(8, "1")], [*POINTS, _point(9, _fields("5"))], until_s=4)

    assert (result.differences, result.rows, result.points) == ([], 4, 4)


def test_an_available_state_has_the_unit_it_says_and_no_other() -> None:
    """Only states that say nothing inherit."""
    rows = [_row(1, "20"), _row(2, "21", attributes={"device_class": "power"})]
    fields = _fields("21", before="20")
    correct = _point(2, fields, {"device_class": "power"})

    assert _found(_compared(rows, [POINTS[0], correct])) == []
    assert _found(_compared(rows, [POINTS[0], _point(2, fields)])) == [("unit_of_measurement", 2)]


def test_a_state_without_attributes_inherits_what_a_gap_named_only_if_it_was_filled() -> None:
    """A live point cannot have what is read back only later."""
    rows = [_row(1, "20"), _row(2, "unavailable"), _row(3, "unavailable", changed_ns=2 * SECOND_NS)]
    fields: Fields = {
        "state_value": "unavailable",
        "available": False,
        "previous_state": "unavailable",
    }
    plain = _point(3, {**fields, "duration_in_state_seconds": 0.0}, {})
    before = {**POINTS[2].fields, "duration_in_state_seconds": 1.0}
    read_back = [_point(1, {**POINTS[0].fields, "backfilled": True}), _point(2, before)]

    live = _compared(rows, [POINTS[0], _point(2, before), plain])

    assert _found(live) == [("device_class", 3), ("unit_of_measurement", 3)]
    assert _compared(rows, [*read_back, plain]).explained == {Rule.NAMED_IN_GAP: 2}


def test_a_state_without_attributes_inherits_what_a_kill_made_the_service_forget() -> None:
    """Class and unit that were named live before the kill, and not since."""
    rows = [_row(1, "20"), _row(2, "unavailable")]
    fields: Fields = {
        "state_value": "unavailable",
        "available": False,
        "previous_state": "20",
        "duration_in_state_seconds": 1.0,
    }
    points = [POINTS[0], _point(2, fields, {})]

    for kill_s, explained in ((0.5, 0), (1.5, 2), (2.5, 0)):
        result = _compared(rows, points, History(service_kills_ns=[int(kill_s * SECOND_NS)]))
        assert result.explained[Rule.FORGOTTEN] == explained
        assert len(result.differences) == 2 - explained


def test_rows_of_one_commit_are_in_no_order() -> None:
    """A removal may have a smaller number than the state that it ends."""
    removed_ns = 4 * SECOND_NS
    row = _row(1, None, old_state_id=2, updated_ns=removed_ns, changed_ns=removed_ns)
    rows = [row, _row(2, "20", old_state_id=None)]
    removal: Fields = {"removed": True, "previous_state": "20", "duration_in_state_seconds": 2.0}

    assert _compared(rows, [_point(2, _fields("20")), _point(4, removal)]).differences == []


def test_only_the_first_point_of_an_entity_may_lack_what_came_before() -> None:
    """The service knows nothing of an entity that it never saw; once it did, it does."""
    rows = [_row(number, str(18 + number)) for number in range(1, 4)]
    first = _point(2, {**_fields("20"), "backfilled": True})
    second = _point(3, {**_fields("21"), "backfilled": True})

    result = _compared(rows, [first, second], since_s=2)

    assert result.explained == {Rule.FIRST_KNOWN: 2}
    assert _found(result) == [("previous_state", 3), ("duration_in_state_seconds", 3)]


def test_an_update_of_attributes_has_a_previous_state_although_the_recorder_missed_it() -> None:
    """Home Assistant sets some states before its recorder listens; the next row says since when."""
    row = _row(2, "20", old_state_id=None, changed_ns=SECOND_NS)

    assert _compared([row], [POINTS[1]]).differences == []


def test_a_renamed_entity_keeps_its_history_under_either_id() -> None:
    """The recorder moves it to the new id; points that came live keep the old one."""
    history = History(renames={"sensor.old": "sensor.a"})
    old = {**WATTS, "entity_id": "sensor.old"}
    live = _point(1, POINTS[0].fields, old)
    removal = _point(9, {"removed": True, "previous_state": "20"}, old)

    result = _compared(ROWS[:1], [live, removal], history)

    assert (result.differences, result.explained) == ([], {Rule.RENAMED: 1})
    assert _found(_compared(ROWS[:1], [live, POINTS[0]], history)) == [("twice", 1)]


def test_an_entity_that_no_source_can_name_is_explained() -> None:
    """The logbook omits a single state and whatever has a unit; two texts it names."""
    single = [_row(1, "here", entity_id="sensor.b", attributes={})]
    metered = [_row(1, "1", entity_id="sensor.b"), _row(2, "2", entity_id="sensor.b")]
    texts = [*single, _row(2, "there", entity_id="sensor.b", attributes={})]

    assert _compared(single, []).explained == {Rule.UNKNOWABLE: 1}
    assert _found(_compared(single, [], History(present=["sensor.b"]))) == [("missing", 1)]
    assert _compared(metered, []).explained == {Rule.UNKNOWABLE: 2}
    assert _found(_compared(texts, [])) == [("missing", 1), ("missing", 2)]


def test_a_life_that_ended_before_any_point_is_explained_only_if_the_logbook_omits_it() -> None:
    """It ends with a removal, or with a restart: the next row has no old state."""
    metered = [_row(1, "1"), _row(2, "2")]
    texts = [_row(1, "here", attributes={}), _row(2, "there", attributes={})]
    later = _row(9, "9", old_state_id=None)
    point = _point(9, _fields("9"))

    for end in ([], [_row(3, None)]):
        omitted = _compared([*metered, *end, later], [point])
        assert (omitted.differences, omitted.explained) == ([], {Rule.UNKNOWABLE: 2 + len(end)})
        listed = _compared([*texts, *end, later], [point])
        assert {found for found, _ in _found(listed)} == {"missing"}
    goes_on = _compared([*metered, _row(3, "3")], [_point(3, _fields("3", before="2"))])
    assert _found(goes_on) == [("missing", 1), ("missing", 2)]


def test_an_entity_that_was_read_back_is_not_known_before_it_is_captured_live() -> None:
    """An older gap may be read later than a newer one, which nothing named the entity for."""
    rows = [_row(number, str(number), old_state_id=None) for number in range(1, 5)]
    first = _point(1, {**_fields("1"), "backfilled": True})
    third, fourth = _point(3, _fields("3")), _point(4, _fields("4"))

    assert _compared(rows, [first, third, fourth]).explained == {Rule.UNKNOWABLE: 1}
    assert _found(_compared(rows, [POINTS[0], third, fourth])) == [
        ("state_value", 1),
        ("value", 1),
        ("missing", 2),
    ]


def test_a_life_that_was_read_in_part_is_not_explained() -> None:
    """Something knew the entity."""
    rows = [_row(1, "1"), _row(2, "2"), _row(3, None), _row(4, "4", old_state_id=None)]
    first = _point(1, {**_fields("1"), "backfilled": True})

    result = _compared(rows, [first, _point(4, _fields("4"))])

    assert _found(result) == [("missing", 2), ("missing", 3)]


def test_what_a_killed_recorder_lost_is_explained_up_to_the_kill() -> None:
    """It commits in order: nothing before its newest row, and nothing after the kill."""
    history = History(kills_ns=[6 * SECOND_NS])
    points = [_point(second, _fields("5")) for second in (5, 7)]

    result = _compared(ROWS, [*POINTS, *points], history)

    assert result.explained == {Rule.KILLED: 1}
    assert _found(result) == [("extra", 7)]


def test_rows_are_read_as_home_assistant_reads_them(tmp_path: Path) -> None:
    """To the microsecond; without `last_changed` it is `last_updated`."""
    path = tmp_path / "home-assistant_v2.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript("""
            CREATE TABLE states_meta (metadata_id INTEGER, entity_id TEXT);
            CREATE TABLE state_attributes (attributes_id INTEGER, shared_attrs TEXT);
            CREATE TABLE states (state_id INTEGER, old_state_id INTEGER, metadata_id INTEGER,
              state TEXT, last_updated_ts FLOAT, last_changed_ts FLOAT, attributes_id INTEGER);
            INSERT INTO states_meta VALUES (1, 'sensor.a');
            INSERT INTO state_attributes VALUES (1, '{"device_class":"power"}');
            INSERT INTO states VALUES (1, NULL, 1, '20', 1796043728.441285, NULL, 1);
            INSERT INTO states VALUES (2, 1, 1, NULL, 1796043729.5, 1796043728.441285, NULL);
        """)

    first, second = read_rows(path)

    assert (first.updated_ns, first.changed_ns) == (1796043728441285000, 1796043728441285000)
    assert first.attributes == {"device_class": "power"}
    assert (second.old_state_id, second.state, second.attributes) == (1, None, {})
    assert (second.updated_ns, second.changed_ns) == (1796043729500000000, 1796043728441285000)
