"""The InfluxQL queries of docs/SCHEMA.md, asked of a real InfluxDB 1 as they stand there."""

from __future__ import annotations

import time

import pytest

from app.model import Change, Placement
from app.schema.homeiq import HomeiqEncoder
from tests.fakes.documents import queries
from tests.real.influx_1 import Database
from tests.real.servers import Server

pytestmark = [pytest.mark.real, pytest.mark.timeout(60)]

_QUERIES = {title: languages["influxql"] for title, languages in queries().items()}
_SECOND_NS = 10**9
_HOUR_S = 3_600
_DAY_S = 24 * _HOUR_S


@pytest.fixture(scope="module")
def database(influx_1: Server) -> Database:
    """Return a database where a sensor moved, a light was on, a meter counted, a door was open."""
    database = Database(influx_1.url, "home_assistant_events")
    database.create()
    now_s = int(time.time())
    hour_s = now_s - now_s % _HOUR_S
    day_s = now_s - now_s % _DAY_S
    changes = [
        # Two hours and two rooms; the third value is of this very minute.
        _change("sensor.kitchen", "21.5", area_id="kitchen", at_s=hour_s - 2 * _HOUR_S),
        _change("sensor.kitchen", "22.5", area_id="kitchen", at_s=hour_s - 2 * _HOUR_S + 60),
        _change("sensor.kitchen", "19.5", area_id="cellar", at_s=now_s - 30),
        _change("sensor.hall", "17.0", area_id="cellar", at_s=now_s - 20),
        _change("light.kitchen", "on", area_id="kitchen", at_s=hour_s - 120),
        _change("light.kitchen", "off", area_id="kitchen", at_s=hour_s, previous_state="on"),
        _change("light.cellar", "on", area_id="cellar", at_s=hour_s - 5),
        # At the end of a day it counted so far.
        _change("sensor.energy", "100", at_s=day_s - 2 * _DAY_S - 60),
        _change("sensor.energy", "102", at_s=day_s - _DAY_S - 7_200),
        _change("sensor.energy", "104.5", at_s=day_s - _DAY_S - 60),
        _change("sensor.energy", "106", at_s=day_s - 60),
        # It was open for a minute twice on one day and once on the next, and closed for hours.
        _change("binary_sensor.door", "off", at_s=day_s - _DAY_S - 600, previous_state="on"),
        _change("binary_sensor.door", "on", at_s=day_s - _DAY_S - 500, previous_state="off"),
        _change("binary_sensor.door", "off", at_s=day_s - _DAY_S - 440, previous_state="on"),
        _change("binary_sensor.door", "off", at_s=day_s - 600, previous_state="on"),
    ]
    encoder = HomeiqEncoder("home_assistant_events", instance=None, attribute_fields=())
    database.write(encoder.encode(changes).data)
    return database


def test_an_entity_is_found_whole_by_its_id(database: Database) -> None:
    """Two rooms are two series, and one question finds both, newest first."""
    rows = database.rows(_QUERIES["What an entity did"])

    assert [row["state_value"] for row in rows] == ["19.5", "22.5", "21.5"]


def test_the_last_state_of_each_light(database: Database) -> None:
    """One row for each entity of the domain."""
    rows = database.rows(_QUERIES["The last state"])

    assert sorted((row["entity_id"], row["state"]) for row in rows) == [
        ("light.cellar", "on"),
        ("light.kitchen", "off"),
    ]


def test_the_mean_of_each_hour_takes_both_series(database: Database) -> None:
    """Hours without a value have no row."""
    rows = database.rows(_QUERIES["The mean of each hour"])

    assert [row["mean"] for row in rows] == [22.0, 19.5]


def test_the_energy_of_each_day(database: Database) -> None:
    """What the meter counted since the end of the day before; nothing while it stands still."""
    rows = database.rows(_QUERIES["The energy of each day"])

    assert [row["used"] for row in rows][:2] == [4.5, 1.5]
    assert [row["used"] for row in rows][2:] == [0.0] * (len(rows) - 2)


def test_how_long_a_door_was_open(database: Database) -> None:
    """The sum over the changes that ended it; what a closed door lasted is not in it."""
    rows = database.rows(_QUERIES["How long a door was open"])

    assert [row["seconds"] for row in rows] == [120.0, 60.0]


def test_the_mean_of_each_area(database: Database) -> None:
    """Of the last hour; where the sensor was before has no value any more."""
    rows = database.rows(_QUERIES["By area"])

    assert [(row["area_id"], row["mean"]) for row in rows] == [("cellar", 18.25)]


def test_every_query_is_asked() -> None:
    """A new one in the document needs a test here."""
    assert list(_QUERIES) == [
        "What an entity did",
        "The last state",
        "The mean of each hour",
        "The energy of each day",
        "How long a door was open",
        "By area",
    ]


def _change(
    entity_id: str,
    state: str,
    *,
    at_s: int,
    area_id: str | None = None,
    previous_state: str | None = None,
) -> Change:
    domain, _, name = entity_id.partition(".")
    is_temperature = domain == "sensor" and name != "energy"
    return Change(
        entity_id=entity_id,
        domain=domain,
        time_ns=at_s * _SECOND_NS,
        state=state,
        previous_state=previous_state,
        duration_s=60.0,
        attributes=b"{}",
        device_class="temperature" if is_temperature else None,
        unit_of_measurement=None,
        friendly_name=None,
        context=None,
        placement=Placement(area_id=area_id),
    )
