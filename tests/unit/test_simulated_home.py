"""The simulated home is plausible; its clock and its seed are the test's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from simulator.behavior import sun_elevation
from simulator.devices import AREAS, DEVICES, placed_entities
from simulator.home import SimulatedHome
from tests.fakes.recordings import recording

MORNING = datetime(2026, 11, 23, 5, tzinfo=UTC)
"""Dark for forty minutes more."""
HOURS = 2.0
NOWHERE = Path("/nowhere")
"""A folder that is not there: nothing is restored, and nothing saved."""


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self, moment: datetime = MORNING) -> None:
        self.seconds = moment.timestamp()

    def __call__(self) -> float:
        """Return seconds since the epoch."""
        return self.seconds


def awake(clock: Clock, *, seed: int = 1) -> SimulatedHome:
    """Return a home that has woken."""
    house = SimulatedHome(NOWHERE, seed=seed, clock=clock)
    house.wake()
    return house


def lived(house: SimulatedHome, clock: Clock, *, hours: float) -> list[Any]:
    """Let the house live, a second at a time, and return its events."""
    events: list[Any] = []
    for _ in range(int(hours * 3600)):
        clock.seconds += 1
        events += house.advance()
    return events


def rows(house: SimulatedHome) -> dict[str, Any]:
    """Return the states by entity."""
    return {str(row["entity_id"]): row for row in house.states()}


@pytest.fixture(scope="module")
def morning() -> list[Any]:
    """The events of a morning."""
    clock = Clock()
    return lived(awake(clock), clock, hours=HOURS)


def test_the_simulated_home_changes_like_a_real_one(morning: list[Any]) -> None:
    """Two to six changes a second, from most of its entities, are a living picture."""
    moving = {event["data"]["entity_id"] for event in morning}

    assert 2 <= len(morning) / (HOURS * 3600) <= 6
    assert len(moving) >= 0.8 * len(placed_entities())


def test_a_simulated_home_changes_within_the_first_seconds() -> None:
    """A person who starts the demo does not wait for it."""
    clock = Clock()

    assert len(lived(awake(clock), clock, hours=10 / 3600)) >= 10


def test_the_simulated_home_has_the_size_of_a_home() -> None:
    """30 to 60 devices in 8 areas, every id once."""
    entity_ids = [placed.entity_id for placed in placed_entities()]

    assert 30 <= len(DEVICES) <= 60
    assert len(AREAS) == 8
    assert {device.area_id for device in DEVICES} - {None} == set(AREAS)
    assert len(set(entity_ids)) == len(entity_ids)
    assert len({device.id for device in DEVICES}) == len(DEVICES)


@pytest.mark.parametrize("kind", ["device", "entity", "area", "floor", "label"])
def test_registry_rows_have_the_keys_of_a_real_home_assistant(kind: Any) -> None:
    """What reads these rows was written for the rows of 2026.11."""
    real = {
        "floor": recording("2026.11.0", "registry_changes")["floor_create"]["result"]["result"],
        "label": recording("2026.11.0", "registry_changes")["label_create"]["result"]["result"],
    }
    wanted = real.get(kind) or (recording("2026.11.0", f"config_{kind}_registry_list")["result"][0])

    rows = SimulatedHome(NOWHERE, clock=Clock()).registry(kind)

    assert rows
    assert [set(wanted)] * len(rows) == [set(row) for row in rows]


def test_registry_rows_of_the_simulated_home_refer_to_each_other() -> None:
    """Every entity's device, every device's area, bridge and label, every floor is there."""
    house = SimulatedHome(NOWHERE, clock=Clock())
    devices: list[Any] = list(house.registry("device"))
    entities: list[Any] = list(house.registry("entity"))
    areas: list[Any] = list(house.registry("area"))
    entries = {entry["entry_id"] for entry in house.config_entries()}

    assert {row["device_id"] for row in entities} - {None} <= {row["id"] for row in devices}
    assert {row["via_device_id"] for row in devices} - {None} <= {row["id"] for row in devices}
    assert {row["area_id"] for row in devices} - {None} == {row["area_id"] for row in areas}
    assert {row["floor_id"] for row in areas} - {None} == {
        row["floor_id"] for row in house.registry("floor")
    }
    assert {label for row in devices for label in row["labels"]} == {
        row["label_id"] for row in house.registry("label")
    }
    assert {row["config_entry_id"] for row in devices} == entries


def test_states_have_the_keys_of_a_real_home_assistant() -> None:
    """What reads these states was written for those of 2026.11."""
    wanted = recording("2026.11.0", "get_states")["result"][0]
    house = SimulatedHome(NOWHERE, clock=Clock())

    assert {frozenset(row) for row in house.states()} == {frozenset(wanted)}
    assert all(row["attributes"]["friendly_name"] for row in rows(house).values())


def test_the_simulated_home_assistant_reports_that_it_is_running() -> None:
    """The service waits for this word."""
    house = SimulatedHome(NOWHERE, clock=Clock())

    assert house.config()["state"] == "RUNNING"
    assert house.recorder() == {}


def test_each_event_carries_the_state_before(morning: list[Any]) -> None:
    """The old state of a change is the new state of the change before, and time moves on."""
    last: dict[str, Any] = rows(awake(Clock()))
    for event in morning:
        entity_id, old = event["data"]["entity_id"], event["data"]["old_state"]
        before = last[entity_id]
        assert (before["state"], before["attributes"]) == (old["state"], old["attributes"])
        assert before["last_changed"] == old["last_changed"]
        last[entity_id] = event["data"]["new_state"]
    moments = [event["time_fired"] for event in morning]

    assert all(earlier < later for earlier, later in pairwise(moments))
    assert moments == [event["data"]["new_state"]["last_updated"] for event in morning]


def test_a_change_of_attributes_alone_leaves_last_changed(morning: list[Any]) -> None:
    """`last_changed` changes only with the state, and without a change there is no event."""
    kinds: Counter[tuple[bool, bool]] = Counter()
    for event in morning:
        old, new = event["data"]["old_state"], event["data"]["new_state"]
        assert (old["state"], old["attributes"]) != (new["state"], new["attributes"])
        kinds[old["state"] == new["state"], old["last_changed"] == new["last_changed"]] += 1

    assert set(kinds) == {(True, True), (False, False)}


def test_the_newest_states_are_those_of_the_events() -> None:
    """`get_states` never lags behind the stream."""
    clock = Clock()
    house = awake(clock)
    newest = {event["data"]["entity_id"]: event["data"] for event in lived(house, clock, hours=0.2)}
    shown = rows(house)

    assert {entity_id: data["new_state"] for entity_id, data in newest.items()} == {
        entity_id: shown[entity_id] for entity_id in newest
    }


def test_a_device_goes_unavailable_and_returns(morning: list[Any]) -> None:
    """All entities of a device fall silent together, keep their names, and come back."""
    words = Counter(
        word
        for event in morning
        for word in (_availability(event["data"]["old_state"], event["data"]["new_state"]),)
    )
    lost = [
        event["data"]["new_state"]
        for event in morning
        if event["data"]["new_state"]["state"] == "unavailable"
    ]

    assert words["lost"] > 0
    assert 0 <= words["lost"] - words["found"] <= 8
    assert words["still lost"] == 0
    assert all("friendly_name" in state["attributes"] for state in lost)
    assert not any("brightness" in state["attributes"] for state in lost)


def _availability(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    match old["state"] == "unavailable", new["state"] == "unavailable":
        case False, True:
            return "lost"
        case True, False:
            return "found"
        case True, True:
            return "still lost"
        case _:
            return "as ever"


def test_motion_lights_a_dark_room_and_the_light_goes_out_again(morning: list[Any]) -> None:
    """Lights follow people, as in a home with automations."""
    assert _words(morning, domain="light") >= {"on", "off"}


def test_simulated_people_come_and_go_through_the_door(morning: list[Any]) -> None:
    """A person who leaves unlocks and opens the front door, and the zone counts who is in."""
    assert _words(morning, domain="person") == {"home", "not_home"}
    assert _words(morning, domain="device_tracker") == {"home", "not_home"}
    assert _words(morning, domain="lock") == {"locked", "unlocked"}
    assert {"0", "1", "2"} >= _words(morning, domain="zone") > {"1"}


def _words(events: Sequence[Any], *, domain: str) -> set[str]:
    return {
        event["data"]["new_state"]["state"]
        for event in events
        if event["data"]["entity_id"].startswith(f"{domain}.")
    }


def test_simulated_sensors_stay_in_a_plausible_range(morning: list[Any]) -> None:
    """Temperatures drift and stay those of a home; meters only count up; the sun rises."""
    celsius = _numbers(morning, "temperature")
    totals = _numbers(morning, "energy", "gas")
    batteries = _numbers(morning, "battery")

    assert _words(morning, domain="sun") == {"above_horizon", "below_horizon"}
    assert all(0 < value < 30 for values in celsius.values() for value in values)
    assert all(len(set(values)) > 10 for values in celsius.values())
    assert all(values == sorted(values) for values in totals.values())
    assert all(0 <= value <= 100 for values in batteries.values() for value in values)


def _numbers(events: Sequence[Any], *device_classes: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for event in events:
        new = event["data"]["new_state"]
        if (
            new["attributes"].get("device_class") in device_classes
            and new["state"] != "unavailable"
        ):
            found.setdefault(new["entity_id"], []).append(float(new["state"]))
    return found


def test_the_same_seed_gives_the_same_simulated_changes() -> None:
    """A picture in the documentation can be made again."""
    lives = []
    for seed in (7, 7, 8):
        clock = Clock()
        events = lived(awake(clock, seed=seed), clock, hours=0.05)
        lives.append([(event["time_fired"], event["data"]["entity_id"]) for event in events])

    assert lives[0] == lives[1]
    assert lives[0] != lives[2]


def test_changes_are_not_simulated_for_time_the_machine_slept() -> None:
    """After eight hours of sleep what is overdue happens once, not a thousand times."""
    clock = Clock()
    house = awake(clock)
    lived(house, clock, hours=0.05)
    clock.seconds += 8 * 3600

    events: list[Any] = house.advance()

    ten_seconds_ago = datetime.fromtimestamp(clock.seconds - 10, UTC).isoformat()
    assert 10 < len(events) < 400
    assert all(event["time_fired"] >= ten_seconds_ago for event in events)


def test_simulated_history_has_the_rows_of_the_requested_time() -> None:
    """Strictly between start and end, oldest first, by entity; unknown ones are left out."""
    clock = Clock()
    house = awake(clock)
    power = "sensor.electricity_meter_power"
    mine: list[Any] = [
        event["data"]["new_state"]
        for event in lived(house, clock, hours=1.2)
        if event["data"]["entity_id"] == power
    ]
    start = datetime.fromisoformat(mine[100]["last_updated"])
    end = datetime.fromisoformat(mine[-100]["last_updated"])

    found = house.history(start, end, [power, "sensor.unknown"])

    assert set(found) == {power}
    assert [_told(row) for row in mine[101:-100]] == [_told(row) for row in found[power]]


def _told(row: Mapping[str, Any]) -> tuple[object, ...]:
    return row["state"], row["attributes"], row["last_changed"], row["last_updated"]


def test_nobody_operates_a_device_while_the_simulated_home_is_empty() -> None:
    """An empty home opens no doors, sees no motion and plays no music, until somebody comes."""
    clock = Clock()
    home = awake(clock)
    at_entrance = {"binary_sensor.hallway_front_door", "binary_sensor.hallway_sensor_motion"}
    by_hand = {"playing", "opening"}
    seen = Counter[bool]()
    for event in lived(home, clock, hours=6):
        new = event["data"]["new_state"]
        if new["entity_id"] == "zone.home":
            is_empty = new["state"] == "0"
            seen[is_empty] += 1
        elif seen and is_empty and new["entity_id"] not in at_entrance:
            domain = new["entity_id"].split(".")[0]
            was_unreachable = event["data"]["old_state"]["state"] == "unavailable"
            assert new["state"] not in by_hand or domain not in {"media_player", "cover"}
            assert (domain, new["state"]) != ("binary_sensor", "on") or was_unreachable

    assert seen[True] > 0
    assert seen[False] > 0


def test_the_simulated_sun_is_up_at_noon() -> None:
    """Daylight follows the clock."""
    noon = MORNING.replace(hour=12)

    assert sun_elevation(noon) > 40
    assert sun_elevation(noon + timedelta(hours=12)) < 0
