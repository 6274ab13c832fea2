"""The queries of docs/SCHEMA.md, asked of a real InfluxDB 1."""

from __future__ import annotations

import re

import pytest

from app.model import Change, Placement
from app.schema.homeiq import HomeiqEncoder
from tests.real.influx_1 import Database
from tests.real.servers import PROJECT, Server

pytestmark = [pytest.mark.real, pytest.mark.timeout(60)]

_DOCUMENT = (PROJECT / "docs" / "SCHEMA.md").read_text()
_QUERIES = re.findall(r"```sql\n(.*?)\n```", _DOCUMENT, re.DOTALL)
_MINUTE_NS = 60 * 10**9


@pytest.fixture(scope="module")
def database(influx_1: Server) -> Database:
    """Return a database where a sensor moved to another room and a light was on for a minute."""
    database = Database(influx_1.url, "home_assistant_events")
    database.create()
    changes = [
        _change("sensor.kitchen", "21.5", area_id="kitchen", minute=1),
        _change("sensor.kitchen", "22.5", area_id="kitchen", minute=2),
        _change("sensor.kitchen", "19.5", area_id="cellar", minute=3),
        _change("light.kitchen", "on", area_id="kitchen", minute=4),
        _change("light.kitchen", "off", area_id="kitchen", minute=5, previous_state="on"),
    ]
    encoder = HomeiqEncoder("home_assistant_events", instance=None, attribute_fields=())
    database.write(encoder.encode(changes).data)
    return database


def test_an_entity_is_found_whole_by_its_id(database: Database) -> None:
    """Two rooms are two series, and one question finds both, newest first."""
    rows = database.rows(_QUERIES[0])

    assert [row["state_value"] for row in rows] == ["19.5", "22.5", "21.5"]
    assert database.count("SHOW SERIES CARDINALITY") == 3


def test_a_mean_over_time_takes_both_series(database: Database) -> None:
    """Nothing in the last day of this long-gone home, and no error either."""
    assert database.rows(_QUERIES[1]) == []
    everything = (
        _QUERIES[1].replace("now() - 1d", "0").replace("GROUP BY time(5m) fill(previous)", "")
    )
    assert [row["mean"] for row in database.rows(everything)] == [pytest.approx(63.5 / 3)]


def test_the_last_value_of_each_area(database: Database) -> None:
    """Where the sensor was, the last value is from when it was there."""
    assert sorted((row["area_id"], row["last"]) for row in database.rows(_QUERIES[2])) == [
        ("cellar", 19.5),
        ("kitchen", 22.5),
    ]


def test_how_long_a_state_lasted(database: Database) -> None:
    """The sum over the changes that ended it."""
    assert [row["sum"] for row in database.rows(_QUERIES[3])] == [60.0]
    assert len(_QUERIES) == 4, "a query that nobody asks"


def _change(
    entity_id: str, state: str, *, area_id: str, minute: int, previous_state: str | None = None
) -> Change:
    domain = entity_id.partition(".")[0]
    return Change(
        entity_id=entity_id,
        domain=domain,
        time_ns=1_577_880_000 * 10**9 + minute * _MINUTE_NS,
        state=state,
        previous_state=previous_state,
        duration_s=60.0,
        attributes=b"{}",
        device_class="temperature" if domain == "sensor" else None,
        unit_of_measurement=None,
        friendly_name=None,
        context=None,
        placement=Placement(area_id=area_id),
    )
