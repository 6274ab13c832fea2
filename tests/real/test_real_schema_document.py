"""The queries of docs/SCHEMA.md, run against real databases.

InfluxQL is run verbatim against InfluxDB 1. Flux is run when INFLUXDB_TEST_URL, _TOKEN, _ORG and
_BUCKET name an InfluxDB 2, whose measurement `home_assistant_events` is emptied first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.client.write_api import SYNCHRONOUS

from app.model import Change, Placement
from app.schema.homeiq import HomeiqEncoder
from tests.fakes.documents import queries
from tests.real.influx_1 import Database
from tests.real.servers import Server

pytestmark = [pytest.mark.real, pytest.mark.timeout(60)]

_QUERIES = {title: languages["influxql"] for title, languages in queries().items()}
_FLUX = {title: languages["flux"] for title, languages in queries().items()}
_GIVEN = os.environ.get("INFLUXDB_TEST_URL", "")
_SECOND_NS = 10**9
_HOUR_S = 3_600
_DAY_S = 24 * _HOUR_S


@pytest.fixture(scope="module")
def database(influx_1: Server) -> Database:
    """Return a database with a moved sensor, a light, a meter and a door."""
    database = Database(influx_1.url, "home_assistant_events")
    database.create()
    database.write(_lines())
    return database


def _lines() -> bytes:
    now_s = int(time.time())
    hour_s = now_s - now_s % _HOUR_S
    day_s = now_s - now_s % _DAY_S
    changes = [
        # Two hours and two areas; the third value is from the current minute.
        _change("sensor.kitchen", "21.5", area_id="kitchen", at_s=hour_s - 2 * _HOUR_S),
        _change("sensor.kitchen", "22.5", area_id="kitchen", at_s=hour_s - 2 * _HOUR_S + 60),
        _change("sensor.kitchen", "19.5", area_id="cellar", at_s=now_s - 30),
        _change("sensor.hall", "17.0", area_id="cellar", at_s=now_s - 20),
        _change("light.kitchen", "on", area_id="kitchen", at_s=hour_s - 120),
        _change("light.kitchen", "off", area_id="kitchen", at_s=hour_s, previous_state="on"),
        _change("light.cellar", "on", area_id="cellar", at_s=hour_s - 5),
        # The meter's total at the end of each day.
        _change("sensor.energy", "100", at_s=day_s - 2 * _DAY_S - 60),
        _change("sensor.energy", "102", at_s=day_s - _DAY_S - 7_200),
        _change("sensor.energy", "104.5", at_s=day_s - _DAY_S - 60),
        _change("sensor.energy", "106", at_s=day_s - 60),
        # Open for a minute twice on one day and once on the next, and closed for hours.
        _change("binary_sensor.door", "off", at_s=day_s - _DAY_S - 600, previous_state="on"),
        _change("binary_sensor.door", "on", at_s=day_s - _DAY_S - 500, previous_state="off"),
        _change("binary_sensor.door", "off", at_s=day_s - _DAY_S - 440, previous_state="on"),
        _change("binary_sensor.door", "off", at_s=day_s - 600, previous_state="on"),
        # Renamed to sensor.kitchen, and moved to another device on the day before.
        _change("sensor.thermometer", "10.0", at_s=day_s - 2 * _DAY_S - 120),
        _change("sensor.thermometer", "12.0", at_s=day_s - 2 * _DAY_S - 60),
        # Two entities of a device that was split into two; the third is of another device.
        _change("sensor.power_1", "1", at_s=day_s - 60, device_id="5c1f"),
        _change("sensor.power_1", "2", at_s=day_s - 30, device_id="8cd9"),
        _change("sensor.power_2", "3", at_s=day_s - 60, device_id="5c1f"),
        _change("sensor.power_2", "4", at_s=day_s - 30, device_id="e02a"),
        _change("sensor.power_3", "5", at_s=day_s - 30, device_id="77aa"),
    ]
    encoder = HomeiqEncoder("home_assistant_events", instance=None, attribute_fields=())
    return encoder.encode(changes).data


def test_one_query_finds_an_entity_in_all_its_areas(database: Database) -> None:
    """Two areas are two series; the newest point is first."""
    rows = database.rows(_QUERIES["What an entity did"])

    assert [row["state_value"] for row in rows] == ["19.5", "22.5", "21.5"]


def test_the_light_query_returns_the_last_state_of_each_light(database: Database) -> None:
    """One row per entity of the domain."""
    rows = database.rows(_QUERIES["The last state"])

    assert sorted((row["entity_id"], row["state"]) for row in rows) == [
        ("light.cellar", "on"),
        ("light.kitchen", "off"),
    ]


def test_the_hourly_query_returns_the_mean_of_both_series(database: Database) -> None:
    """Hours without a value have no row."""
    rows = database.rows(_QUERIES["The mean of each hour"])

    assert [row["mean"] for row in rows] == [22.0, 19.5]


def test_the_energy_query_returns_the_use_of_each_day(database: Database) -> None:
    """What the meter counted since the end of the previous day; 0 on a day without change."""
    rows = database.rows(_QUERIES["The energy of each day"])

    assert [row["used"] for row in rows][:2] == [4.5, 1.5]
    assert [row["used"] for row in rows][2:] == [0.0] * (len(rows) - 2)


def test_the_door_query_returns_how_long_the_door_was_open(database: Database) -> None:
    """The sum over the changes that end it, without the time the door was closed."""
    rows = database.rows(_QUERIES["How long a door was open"])

    assert [row["seconds"] for row in rows] == [120.0, 60.0]


def test_the_area_query_returns_the_mean_of_each_area(database: Database) -> None:
    """Over the last hour; the sensor's earlier area has no value any more."""
    rows = database.rows(_QUERIES["By area"])

    assert [(row["area_id"], row["mean"]) for row in rows] == [("cellar", 18.25)]


def test_the_rename_query_returns_one_series_under_both_ids(database: Database) -> None:
    """Days before the rename have the values of the old id, those after it of the new one."""
    rows = database.rows(_QUERIES["One entity across renames"])

    means = [round(float(row["mean"] or 0), 6) for row in rows]
    # The values of sensor.kitchen are of one day, or of two around midnight.
    assert means in ([11.0, 21.166667], [11.0, 22.0, 19.5])


def test_the_split_query_returns_each_entity_of_the_former_device_once(
    database: Database,
) -> None:
    """With its last state, which it has under the new device."""
    rows = database.rows(_QUERIES["A device across a split"])

    assert sorted((row["entity_id"], row["state"]) for row in rows) == [
        ("sensor.power_1", "2"),
        ("sensor.power_2", "4"),
    ]


def test_every_query_of_the_schema_document_is_tested() -> None:
    """A new query in the document needs a test here."""
    assert list(_QUERIES) == [
        "What an entity did",
        "The last state",
        "The mean of each hour",
        "The energy of each day",
        "How long a door was open",
        "By area",
        "One entity across renames",
        "A device across a split",
    ]


@pytest.fixture(scope="module")
def influx_2() -> Iterator[InfluxDBClient]:
    """Yield a client of an InfluxDB 2 with the same points."""
    if not _GIVEN:
        pytest.skip("INFLUXDB_TEST_URL is not set")
    token, org = os.environ["INFLUXDB_TEST_TOKEN"], os.environ["INFLUXDB_TEST_ORG"]
    bucket = os.environ["INFLUXDB_TEST_BUCKET"]
    with InfluxDBClient(_GIVEN, token=token, org=org) as client:
        former = '_measurement="home_assistant_events"'
        client.delete_api().delete("2020-01-01T00:00:00Z", "2100-01-01T00:00:00Z", former, bucket)
        with client.write_api(SYNCHRONOUS) as writing:
            writing.write(bucket, record=_lines())
        yield client


@pytest.mark.parametrize(
    ("title", "columns", "expected"),
    [
        ("What an entity did", ["_value"], [("19.5",), ("22.5",), ("21.5",)]),
        (
            "The last state",
            ["entity_id", "_value"],
            [("light.cellar", "on"), ("light.kitchen", "off")],
        ),
        ("The mean of each hour", ["_value"], [(22.0,), (19.5,)]),
        ("The energy of each day", ["_value"], [(4.5,), (1.5,)]),
        ("How long a door was open", ["duration_in_state_seconds"], [(120.0,), (60.0,)]),
        ("By area", ["area_id", "_value"], [("cellar", 18.25)]),
        ("One entity across renames", ["_value"], [(11.0,), (21.166667,)]),
        (
            "A device across a split",
            ["entity_id", "_value"],
            [("sensor.power_1", "2"), ("sensor.power_2", "4")],
        ),
    ],
)
def test_each_flux_query_returns_what_it_says(
    influx_2: InfluxDBClient, title: str, columns: list[str], expected: list[tuple[Any, ...]]
) -> None:
    """As documented, but for the name of the bucket and the time of the rename."""
    now_s = int(time.time())
    renamed_at = datetime.fromtimestamp(now_s - now_s % _DAY_S - _DAY_S, UTC).isoformat()
    query = _FLUX[title].replace("2026-11-23T10:02:11Z", renamed_at)
    bucket = os.environ["INFLUXDB_TEST_BUCKET"]
    tables = influx_2.query_api().query(
        query.replace('"home_assistant_events")', f'"{bucket}")', 1)
    )

    rows = [tuple(row[column] for column in columns) for table in tables for row in table.records]
    rounded = [tuple(round(v, 6) if isinstance(v, float) else v for v in row) for row in rows]
    if title == "One entity across renames" and len(rounded) == 3:
        expected = [(11.0,), (22.0,), (19.5,)]  # two days around midnight
    assert rounded == expected


def _change(
    entity_id: str,
    state: str,
    *,
    at_s: int,
    area_id: str | None = None,
    device_id: str | None = None,
    previous_state: str | None = None,
) -> Change:
    domain, _, name = entity_id.partition(".")
    is_temperature = domain == "sensor" and name in {"kitchen", "hall"}
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
        placement=Placement(area_id=area_id, device_id=device_id),
    )
