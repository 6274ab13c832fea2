"""What the recorder gives back makes the points that the live events would have made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.homeassistant.messages import Event, RecordedState, State
from app.model import Change, LastNames, LastState, Lifecycle, Times, moment_of, nanoseconds
from app.normalize.changes import Normalizer
from app.normalize.recorded import Identity, Recovery
from app.normalize.restarts import (
    around,
    first_write_ns,
    searches,
    written_rows,
)
from simulator.fake_home_assistant import JsonObject
from tests.fakes.recordings import VERSIONS, recording
from tests.fakes.still_house import NOON, StillHouse

MILLISECOND = 1_000_000
LONG = Times(0, 2**62)


def live(events: Sequence[object]) -> list[Change]:
    """Return the changes that live events make."""
    return live_with_names(events)[0]


def live_with_names(events: Sequence[object]) -> tuple[list[Change], Mapping[str, LastNames]]:
    """Return the changes that live events make, and the class, unit and name of each entity."""
    normalizer = Normalizer(dict)
    changes, malformed = normalizer.changes(
        msgspec.json.decode(msgspec.json.encode(events), type=list[Event])
    )
    assert not malformed
    return changes, normalizer.last_names()


def rows_of(answer: Mapping[str, object]) -> dict[str, list[RecordedState]]:
    """Return the rows of an answer as the source reads them."""
    return msgspec.json.decode(msgspec.json.encode(answer), type=dict[str, list[RecordedState]])


def state(row: object) -> State:
    """Return a row of `get_states` as the source reads it."""
    return msgspec.json.decode(msgspec.json.encode(row), type=State)


def recovery(
    times: Times = LONG,
    *,
    before: Mapping[str, LastState] | None = None,
    newest: Mapping[str, State] | None = None,
    names: Mapping[str, LastNames] | None = None,
) -> Recovery:
    """Return one without any earlier knowledge."""
    return Recovery(
        times,
        gap=times,
        placements=dict,
        before=before or {},
        newest=newest or {},
        names=names or {},
    )


def row(
    value: str | None, at_ms: int, *, changed_ms: int | None = None, **attributes: object
) -> RecordedState:
    """Return a row, so many milliseconds after noon."""
    return RecordedState(
        value,
        (NOON + timedelta(milliseconds=at_ms)).timestamp(),
        None if changed_ms is None else (NOON + timedelta(milliseconds=changed_ms)).timestamp(),
        msgspec.Raw(msgspec.json.encode(attributes)),
    )


def at(ms: int) -> int:
    """Return nanoseconds, so many milliseconds after noon."""
    return nanoseconds(NOON + timedelta(milliseconds=ms))


def newest_state(
    entity_id: str, value: str, changed_ms: int, updated_ms: int | None = None, **attributes: object
) -> State:
    """Return the result of `get_states`."""
    return State(
        value,
        moment_of(at(changed_ms)),
        moment_of(at(changed_ms if updated_ms is None else updated_ms)),
        msgspec.Raw(msgspec.json.encode(attributes)),
        entity_id=entity_id,
    )


def comparable(change: Change, *, attributes: bool = True) -> Change:
    """Return a change without what the recorder does not know."""
    return msgspec.structs.replace(
        change,
        context=None,
        backfilled=False,
        attributes=change.attributes if attributes else b"",
    )


# Recordings of real Home Assistants


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("entity_id", ["sensor.hist", "sensor.fast_00000"])
def test_recorded_rows_make_the_points_of_the_live_events(version: str, entity_id: str) -> None:
    """Identity, state, previous state, duration, attributes, class and unit: all the same."""
    recorded = recording(version, "history_backfill")
    events = [event for event in recorded["live_events"] if event["data"]["entity_id"] == entity_id]
    rows = rows_of(recorded["ws_no_start_state"]["response"]["result"])[entity_id]

    recovered = recovery().changes(entity_id, rows, committed=())

    assert [comparable(change) for change in live(events)] == [
        comparable(change) for change in recovered
    ]
    assert all(change.backfilled for change in recovered)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("entity_id", ["light.kitchen_lights", "climate.heatpump"])
def test_updates_of_attributes_are_recovered_without_those_that_are_not_recorded(
    version: str, entity_id: str
) -> None:
    """The made-up first row has the earlier state; the attributes are those the recorder has."""
    recorded = recording(version, "history_backfill")
    events = [event for event in recorded["live_events"] if event["data"]["entity_id"] == entity_id]
    alive = live(events)
    rows = rows_of(recorded["ws_significant_false"]["response"]["result"])[entity_id]
    times = Times(alive[0].time_ns, alive[-1].time_ns)

    recovered = recovery(times).changes(entity_id, rows, committed=())

    assert [comparable(change, attributes=False) for change in alive] == [
        comparable(change, attributes=False) for change in recovered
    ]
    for was, became in zip(alive, recovered, strict=True):
        kept = msgspec.json.decode(became.attributes)
        full = msgspec.json.decode(was.attributes)
        assert kept.items() <= full.items()
        assert "supported_features" not in kept


@pytest.mark.parametrize("version", VERSIONS)
def test_the_newest_row_takes_all_attributes_from_the_present_state(version: str) -> None:
    """When they are of the same moment they are the same state; the context comes as well."""
    recorded = recording(version, "history_backfill")
    events = [e for e in recorded["live_events"] if e["data"]["entity_id"].startswith("light.")]
    rows = rows_of(recorded["ws_no_start_state"]["response"]["result"])["light.kitchen_lights"]
    newest = {"light.kitchen_lights": state(events[-1]["data"]["new_state"])}

    recovered = recovery(newest=newest).changes("light.kitchen_lights", rows, committed=())

    assert live(events)[-1].attributes == recovered[-1].attributes
    assert recovered[-1].context is not None
    assert live(events)[-2].attributes != recovered[-2].attributes


# What stood before


def test_the_first_row_follows_the_last_journaled_change() -> None:
    """Previous state and duration come from before the gap."""
    before = {"sensor.a": LastState("1", at(0), at(500))}

    (change,) = recovery(before=before).changes("sensor.a", [row("2", 2_000)], committed=())

    assert (change.previous_state, change.duration_s) == ("1", 2.0)


def test_the_first_row_follows_the_row_before_the_gap() -> None:
    """It has the state and its beginning."""
    times = Times(at(1_000), at(9_000))
    reading = recovery(times)
    assert not reading.knows_before("sensor.a")

    reading.set_row_before("sensor.a", row("1", 900, changed_ms=500))
    changes = reading.changes("sensor.a", [row("2", 2_000), row("3", 3_500)], committed=())

    assert [(c.previous_state, c.duration_s) for c in changes] == [("1", 1.5), ("2", 1.5)]
    assert reading.knows_before("sensor.a")


def test_an_update_of_attributes_has_a_duration_of_zero() -> None:
    """Its own times show that the state began earlier, and so which state came before."""
    times = Times(at(1_000), at(9_000))

    changes = recovery(times).changes(
        "sensor.a", [row("1", 2_000, changed_ms=0), row("2", 3_000)], committed=()
    )

    assert [(c.previous_state, c.duration_s) for c in changes] == [("1", 0.0), ("1", 3.0)]


def test_a_live_change_takes_precedence_over_its_own_row() -> None:
    """It is known for certain since when it lasts."""
    times = Times(at(1_000), at(9_000))
    before = {"sensor.a": LastState("1", at(0), at(999))}

    (change,) = recovery(times, before=before).changes(
        "sensor.a", [row("1", 999), row("2", 2_000)], committed=()
    )

    assert (change.previous_state, change.duration_s) == ("1", 2.0)


def test_a_row_newer_than_the_last_known_change_is_the_previous_state() -> None:
    """Its change was missed, or not kept."""
    before = {"sensor.a": LastState("1", at(0), at(0))}
    reading = recovery(Times(at(1_000), at(9_000)), before=before)
    reading.set_row_before("sensor.a", row("2", 500))

    (change,) = reading.changes("sensor.a", [row("3", 2_000)], committed=())

    assert (change.previous_state, change.duration_s) == ("2", 1.5)


def test_the_last_known_change_is_not_the_previous_state_of_older_rows() -> None:
    """What is requested begins before the gap does."""
    before = {"sensor.a": LastState("2", at(800), at(800))}
    reading = recovery(Times(at(100), at(9_000)), before=before)
    assert not reading.knows_before("sensor.a")

    changes = reading.changes(
        "sensor.a",
        [row("1", 300), row("2", 800), row("3", 2_000)],
        committed={("sensor.a", at(800))},
    )

    assert [(c.state, c.previous_state) for c in changes] == [("1", None), ("3", "2")]


@pytest.mark.parametrize(("last", "previous"), [("7", "7"), (None, None)])
def test_the_last_row_before_a_gap_is_the_previous_state(
    last: str | None, previous: str | None
) -> None:
    """A row on the boundary may follow the one that was looked up, and it may be a removal."""
    times = Times(at(1_000), at(9_000))

    (change,) = recovery(times).changes(
        "sensor.a", [row("6", 998), row(last, 999), row("8", 2_000)], committed=()
    )

    assert change.previous_state == previous


def test_the_first_row_of_a_window_follows_the_last_of_the_window_before() -> None:
    """The last row of one is before the first of the next."""
    reading = recovery()

    first = reading.changes("sensor.a", [row("1", 0)], committed=())
    second = reading.changes("sensor.a", [row("2", 500)], committed=())

    assert [change.previous_state for change in first + second] == [None, "1"]
    assert second[0].duration_s == 0.5


def test_a_row_in_two_windows_becomes_one_change() -> None:
    """Home Assistant keeps fractions of a microsecond, so both windows may hold the boundary."""
    reading = recovery()
    twice = row("1", 0)

    found = reading.changes("sensor.a", [twice], committed=())
    found += reading.changes("sensor.a", [twice, row("2", 500)], committed=())

    assert [change.state for change in found] == ["1", "2"]
    assert found[-1].previous_state == "1"


@pytest.mark.parametrize("value", ["1", "2"])
def test_the_first_row_after_a_restart_has_no_previous_state(value: str) -> None:
    """Home Assistant starts without states, so its event has no old state."""
    reading = recovery(before={"sensor.a": LastState("1", at(0), at(0))})
    reading.restarted([at(20_000)])

    changes = reading.changes(
        "sensor.a", [row("1", 10_000), row(value, 25_000), row("3", 26_000)], committed=()
    )

    assert [(c.previous_state, c.duration_s) for c in changes] == [
        ("1", 10.0),
        (None, None),
        (value, 1.0),
    ]


def test_after_a_restart_in_the_gap_the_last_journaled_change_is_no_previous_state() -> None:
    """Whether the newest change before it came live or was looked up."""
    reading = recovery(before={"sensor.a": LastState("1", at(0), at(0))})
    reading.set_row_before("sensor.b", row("1", 0))
    reading.restarted([at(500)])

    changes = [
        *reading.changes("sensor.a", [row("1", 600)], committed=()),
        *reading.changes("sensor.b", [row("1", 600)], committed=()),
    ]

    assert [(c.previous_state, c.duration_s) for c in changes] == [(None, None)] * 2


def test_a_removal_has_the_previous_state_of_the_live_event() -> None:
    """And how long it lasted."""
    reading = recovery(before={"sensor.a": LastState("1", at(0), at(0))})

    (change,) = reading.changes("sensor.a", [row(None, 2_000)], committed=())

    assert (change.removed, change.previous_state, change.duration_s) == (True, "1", 2.0)


def test_an_entity_removed_and_added_again_has_no_previous_state() -> None:
    """As live: the removal has a previous state, what comes after it has none."""
    rows = [row("1", 0, unit_of_measurement="W"), row(None, 1_000), row("2", 3_000)]

    changes = recovery().changes("sensor.a", rows, committed=())

    assert [(change.state, change.previous_state, change.duration_s) for change in changes] == [
        ("1", None, None),
        (None, "1", 1.0),
        ("2", None, None),
    ]
    assert changes[1].removed
    assert changes[1].unit_of_measurement == "W"


def test_an_empty_state_is_recovered_as_a_state() -> None:
    """A text field that was cleared is not gone."""
    changes = recovery().changes("input_text.a", [row("x", 0), row("", 1_000)], committed=())

    assert (changes[1].state, changes[1].previous_state, changes[1].removed) == ("", "x", False)


@pytest.mark.parametrize("value", ["unavailable", "unknown", None])
def test_rows_without_attributes_stay_in_their_series(value: str | None) -> None:
    """Class and unit are those of the row before, or else the last known ones."""
    first, _, third = recovery(names={"sensor.a": LastNames("power", "W", None)}).changes(
        "sensor.a",
        [
            row(value, 0),
            row("1", 1_000, device_class="power", unit_of_measurement="kW"),
            row(value, 2_000),
        ],
        committed=(),
    )

    assert (first.device_class, first.unit_of_measurement) == ("power", "W")
    assert (third.device_class, third.unit_of_measurement) == ("power", "kW")


@pytest.mark.parametrize("value", ["unavailable", "unknown", None])
@pytest.mark.parametrize("unit", ["kW", None])
def test_a_first_row_without_attributes_has_the_series_of_the_row_before_the_gap(
    value: str | None, unit: str | None
) -> None:
    """The last known class and unit may be of a later time."""
    reading = recovery(
        Times(at(1_000), at(9_000)),
        before={"sensor.a": LastState("5", at(0), at(0))},
        names={"sensor.a": LastNames("power", "W", None)},
    )
    assert reading.lacks_names("sensor.a", [row(value, 2_000)])
    assert not reading.lacks_names("sensor.a", [row("6", 2_000), row(value, 3_000)])

    reading.describe("sensor.a", row("5", 999, unit_of_measurement=unit))
    (change,) = reading.changes("sensor.a", [row(value, 2_000)], committed=())

    assert change.unit_of_measurement == unit
    assert (change.device_class, change.previous_state, change.duration_s) == (None, "5", 2)
    assert not reading.lacks_names("sensor.a", [row(value, 3_000)])


def test_class_and_unit_do_not_survive_a_removal() -> None:
    """As live: a new entity of that name has its own class and unit."""
    reading = recovery(names={"sensor.a": LastNames("power", "W", None)})
    reading.set_row_before("sensor.a", row(None, -500))

    first, _, third = reading.changes(
        "sensor.a", [row("unknown", 0), row(None, 1_000), row("unknown", 2_000)], committed=()
    )

    assert (first.device_class, first.unit_of_measurement) == (None, None)
    assert (third.device_class, third.unit_of_measurement) == (None, None)


# Bounds and identities


def test_only_rows_in_the_requested_span_become_changes() -> None:
    """Both edges included."""
    times = Times(at(1_000), at(3_000))

    changes = recovery(times).changes(
        "sensor.a",
        [row("0", 999), row("1", 1_000), row("2", 3_000), row("3", 3_001)],
        committed=(),
    )

    assert [change.state for change in changes] == ["1", "2"]


def test_a_committed_change_is_left_out_and_is_the_previous_state_of_the_next() -> None:
    """It came live, near the edge."""
    reading = recovery()

    changes = reading.changes(
        "sensor.a",
        [row("1", 0), row("2", 1_000), row("3", 2_000)],
        committed={("sensor.a", at(1_000))},
    )

    assert [(c.state, c.previous_state) for c in changes] == [("1", None), ("3", "2")]
    assert reading.recorded == {"sensor.a"}


# Entities without recorded history


def unrecorded(
    *states: State,
    before: Mapping[str, LastState] | None = None,
    committed: set[Identity] | None = None,
) -> list[tuple[str, str | None, str | None]]:
    """Return the points written for them in a gap from noon to nine seconds past."""
    newest = {one.entity_id: one for one in states}
    changes = recovery(Times(at(0), at(9_000)), before=before, newest=newest).unrecorded(
        newest, committed=committed or set()
    )
    return [(change.entity_id, change.state, change.previous_state) for change in changes]


def test_an_entity_that_changed_without_a_row_gets_its_current_state() -> None:
    """That it changed is known by its state, or by its last_changed."""
    before = {
        "sensor.changed": LastState("1", at(-5_000), at(-5_000)),
        "sensor.returned": LastState("1", at(-5_000), at(-5_000)),
        "sensor.same": LastState("1", at(-5_000), at(-5_000)),
    }

    found = unrecorded(
        newest_state("sensor.changed", "2", 500),
        newest_state("sensor.returned", "1", 600),
        newest_state("sensor.same", "1", -5_000),
        newest_state("sensor.new", "7", 700),
        before=before,
    )

    assert found == [
        ("sensor.changed", "2", "1"),
        ("sensor.returned", "1", "1"),
        ("sensor.new", "7", None),
    ]


@pytest.mark.parametrize(
    ("changed_ms", "updated_ms"), [(-1, -1), (9_001, 9_001), (500, 9_001), (-1, 500)]
)
def test_an_entity_that_changed_outside_the_gap_without_a_row_gets_no_change(
    changed_ms: int, updated_ms: int
) -> None:
    """Before: it was journaled. Later, or updated later: it came live."""
    assert unrecorded(newest_state("sensor.a", "2", changed_ms, updated_ms)) == []


@pytest.mark.parametrize(("state", "found"), [("2", [("sensor.a", "2", "1")]), ("1", [])])
def test_an_entity_changed_in_an_earlier_gap_and_updated_in_this_one_gets_its_current_state(
    state: str, found: object
) -> None:
    """That state was never captured and has no row; it is known only from the same state."""
    before = {"sensor.a": LastState("1", None, at(-5_000))}

    assert unrecorded(newest_state("sensor.a", state, -100, 500), before=before) == found


def test_an_unrecorded_state_before_a_continued_fill_is_not_written_again() -> None:
    """Also when it is not known since when the state lasts, as after a crash."""
    before = {"sensor.a": LastState("1", None, at(500))}

    assert unrecorded(newest_state("sensor.a", "1", 400, 500), before=before) == []


def test_a_committed_current_state_is_not_written_as_unrecorded() -> None:
    """Also when an identical write, which is no event, has moved `last_updated` since."""
    moved = newest_state("sensor.a", "2", 500, 800)

    assert unrecorded(moved, committed={("sensor.a", at(800))}) == []
    assert unrecorded(moved, committed={("sensor.a", at(500))}) == []
    assert unrecorded(moved, committed={("sensor.a", at(300))}) == [("sensor.a", "2", None)]


def test_an_entity_with_a_row_is_not_unrecorded() -> None:
    """The recorder is asked first."""
    reading = recovery(
        Times(at(0), at(9_000)), newest={"sensor.a": newest_state("sensor.a", "2", 500)}
    )
    reading.changes("sensor.a", [row("1", 100)], committed=())

    assert reading.unrecorded(["sensor.a", "sensor.unknown"], committed=()) == []


# Whatever happens


CLASSES: Mapping[str, JsonObject] = {
    "sensor.a": {"device_class": "power", "unit_of_measurement": "W"},
    "light.b": {},
    "sensor.c": {"device_class": "energy"},
}
BEGINNING = [(entity_id, "1", 0) for entity_id in CLASSES]
STOPPED, KILLED = ("restart", None, 0), ("restart", None, 1)
"""A restart, and one that the logbook shows only afterwards."""
Story = list[tuple[str, str | None, int]]
"""Entity, state or None for a removal, and an attribute that changes; in order."""

stories: st.SearchStrategy[Story] = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(sorted(CLASSES)),
            st.sampled_from(["1", "2", "", "unavailable", "on", None]),
            st.integers(0, 2),
        ),
        st.sampled_from([STOPPED, KILLED]),
    ),
    max_size=25,
)


def listed_states(story: Story, house: StillHouse) -> list[JsonObject]:
    """Return the live events of a story, a millisecond apart."""
    events = []
    for entity_id, value, number in [*BEGINNING, *story, *BEGINNING]:
        if entity_id == "restart":
            events += house.restart(is_clean=number == 0)
            continue
        is_known = entity_id in {one["entity_id"] for one in house.states()}
        if value is None and is_known:
            events.append(house.remove(entity_id))
        elif value == "unavailable" and is_known:
            events.append(house.set_state(entity_id, value, {}))
        elif value is not None:
            named = {**CLASSES[entity_id], "n": number}  # as a new entity does
            events.append(house.set_state(entity_id, value.replace("unavailable", "1"), named))
    return events


@given(
    story=stories,
    cuts=st.tuples(st.integers(0, 25), st.integers(0, 25)).map(sorted),
    window=st.integers(1, 30),
    overlap=st.integers(0, 3),
    looks_back=st.booleans(),
)
def test_live_and_recovered_changes_together_are_the_whole_history(
    story: Story, cuts: list[int], window: int, overlap: int, *, looks_back: bool
) -> None:
    """What came live before and after a gap, and what was recovered in it, is live alone."""
    house = StillHouse()
    alone, names = live_with_names(listed_states(story, house))
    start, end = (min(cut + 3, len(alone) - 3) for cut in cuts)
    # The edges are found late, by a second that came live as well: those are committed.
    first, last = max(0, start - overlap), min(len(alone), end + overlap)
    gap = alone[first:last]
    committed = {(c.entity_id, c.time_ns) for c in alone[first:start] + alone[end:last]}
    before: dict[str, LastState] = {}
    for change in alone[:first]:
        before[change.entity_id] = LastState(change.state, change.changed_ns, change.time_ns)
    times = Times(gap[0].time_ns, gap[-1].time_ns) if gap else Times(0, -1)
    newest = {str(one["entity_id"]): state(one) for one in house.states()}
    if looks_back:  # as after a crash, or for a span that a person requests
        before = {}
    reading = recovery(times, before=before, newest=newest, names=names)
    for entity_id in CLASSES:
        for one in _recorded(house, entity_id, alone[:first]):
            reading.set_row_before(entity_id, one)
    reading.restarted(_restarts(house, times, newest, alone))

    recovered: list[Change] = []
    for begin in range(0, len(alone), window):
        for entity_id in CLASSES:
            rows = _recorded(house, entity_id, alone[begin : begin + window])
            recovered += reading.changes(entity_id, rows, committed=committed)
    lost = reading.unrecorded(CLASSES, committed=committed)

    assert lost == []
    by_time: Callable[[Change], int] = lambda change: change.time_ns  # noqa: E731 - its type is the point
    assert [comparable(change) for change in alone[start:end]] == [
        comparable(change) for change in sorted(recovered, key=by_time)
    ]


def _restarts(
    house: StillHouse, times: Times, newest: Mapping[str, State], changes: Sequence[Change]
) -> list[int]:
    """Return the restarts that the logbook, the states and the rows show."""
    span = around(times)
    when: dict[str, list[int]] = {"stopped": [], "started": []}
    for entry in house.logbook(moment_of(span.oldest_ns), moment_of(max(span))):
        moment = datetime.fromtimestamp(float(str(entry["when"])), UTC)
        when[str(entry["message"])].append(nanoseconds(moment))
    found = searches(
        span,
        lifecycle=Lifecycle(when["stopped"], when["started"]),
        oldest_state_ns=min(nanoseconds(one.last_changed) for one in newest.values()),
    )
    restarts = []
    for search in found:
        rows = [
            row
            for entity_id in CLASSES
            for row in written_rows(entity_id, _recorded(house, entity_id, changes), None)
            if search.read.oldest_ns <= row.time_ns <= search.read.newest_ns
        ]
        if (restart_ns := first_write_ns(search, rows)) is not None:
            restarts.append(restart_ns)
    return restarts


def _recorded(house: StillHouse, entity_id: str, changes: Sequence[Change]) -> list[RecordedState]:
    """Return an entity's rows of the time of these changes, as the WebSocket API shows them."""
    times = {change.time_ns for change in changes}
    rows = []
    for one in house.recorded.get(entity_id, ()):
        updated = datetime.fromisoformat(str(one["last_updated"])).astimezone(UTC)
        changed = datetime.fromisoformat(str(one["last_changed"])).astimezone(UTC)
        if nanoseconds(updated) in times:
            rows.append(
                RecordedState(
                    None if one["state"] is None else str(one["state"]),
                    updated.timestamp(),
                    None if changed == updated else changed.timestamp(),
                    msgspec.Raw(msgspec.json.encode(one["attributes"])),
                )
            )
    return rows
