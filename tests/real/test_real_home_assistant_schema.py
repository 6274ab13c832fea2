"""Home Assistant's own influxdb integration and this service write the same."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.model import NOWHERE, Change, StoredPoint
from app.schema.home_assistant import HomeAssistantEncoder, Text
from app.schema.home_assistant_options import read_options
from simulator.fake_home_assistant import JsonObject
from tests.real.influx_1 import Database
from tests.real.servers import Emitted, HomeAssistant, Server
from tests.service.process import service

# The first test includes the start of Home Assistant, which may install the clients.
pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

_OPTIONS = """
  precision: ms
  default_measurement: units
  tags:
    source: real home
  tags_attributes:
    - friendly_name
  ignore_attributes: state_class
  component_config_glob:
    sensor.load_1?:
      override_measurement: ones
      ignore_attributes: sequence
  exclude:
    entities: sensor.load_7
    domains: [persistent_notification]
"""


@pytest.fixture(scope="module")
def own(influx_1: Server) -> Database:
    """Return the database that Home Assistant writes to."""
    database = Database(influx_1.url, "home_assistant")
    database.create()
    return database


@pytest.fixture(scope="module")
def home(
    influx_1: Server, own: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HomeAssistant]:
    """Yield a Home Assistant with its own integration."""
    port = influx_1.url.rpartition(":")[2]
    connection = f"  host: 127.0.0.1\n  port: {port}\n  database: {own.name}\n"
    folder = tmp_path_factory.mktemp("home-assistant")
    more = f"influxdb:\n{connection}{_OPTIONS}"
    with HomeAssistant(folder, timeout_s=300.0, more=more) as server:
        yield server


def _environment(home: HomeAssistant, database: Database, url: str) -> dict[str, str]:
    return {
        "HOME_ASSISTANT_URL": home.url,
        "HOME_ASSISTANT_TOKEN": home.token,
        "INFLUXDB_URL": url,
        "INFLUXDB_BUCKET": database.name,
        "INFLUXDB_API": "v1",
        "INFLUXDB_SCHEMA": "home_assistant",
        "INFLUXDB_SCHEMA_CONFIG": f"influxdb:\n{_OPTIONS}",
        "BACKFILL_ENABLED": "false",
        "BATCH_TIMEOUT": "0.5",
    }


async def _written(
    home: HomeAssistant, database: Database, url: str, folder: Path, count: int
) -> list[Emitted]:
    """Emit changes while the service runs, and return them."""
    async with service(folder, _environment(home, database, url)) as running:
        await running.until(
            "/health",
            lambda health: health["discovery"]["last_refresh"] is not None,
            timeout_s=60,
        )
        emitted = await asyncio.to_thread(lambda: home.emit(count, rate=400, sensors=50))

        def is_done(health: Any) -> bool:
            received = health["accounting"]["events"]["journaled"] >= count
            return received and not health["sinks"][0]["held"]

        await running.until("/health", is_done, timeout_s=60)
        await running.stop()
    return emitted


def _millisecond(moment: datetime) -> int:
    """Return a time as Home Assistant's integration cuts it."""
    return int(moment.replace(microsecond=0).timestamp()) * 1000 + moment.microsecond // 1000


def _expected(emitted: Sequence[Emitted]) -> int:
    """Return how many points there are: two changes of an entity in one millisecond are one."""
    return len(
        {
            (each.entity_id, _millisecond(each.last_updated))
            for each in emitted
            if each.entity_id != "sensor.load_7"
        }
    )


def _points(database: Database, emitted: Sequence[Emitted]) -> list[StoredPoint]:
    """Return the generator's points of the time of these changes."""
    first, last = (_millisecond(emitted[at].last_updated) for at in (0, -1))
    where = f"time >= {first}ms AND time <= {last}ms"
    points = database.points(f"SELECT * FROM /.*/ WHERE {where} GROUP BY *")
    return [point for point in points if point.tags.get("entity_id", "").startswith("load_")]


async def _complete(database: Database, emitted: Sequence[Emitted]) -> list[StoredPoint]:
    """Wait until Home Assistant, which writes some seconds later, has written all."""
    deadline_s = time.monotonic() + 60
    count = _expected(emitted)
    while len(found := _points(database, emitted)) < count and time.monotonic() < deadline_s:
        await asyncio.sleep(0.5)
    return found


def _sorted(points: list[StoredPoint]) -> list[tuple[int, str, str]]:
    return sorted(
        (point.time_ns, repr(sorted(point.tags.items())), repr((point.measurement, point.fields)))
        for point in points
    )


async def test_two_databases_have_the_same_contents(
    home: HomeAssistant, own: Database, influx_1: Server, tmp_path: Path
) -> None:
    """5,000 changes of 50 sensors, of which the options exclude one."""
    ours = Database(influx_1.url, "ours")
    ours.create()

    emitted = await _written(home, ours, influx_1.url, tmp_path, 5_000)
    theirs = await _complete(own, emitted)

    assert len(emitted) == 5_000
    assert _sorted(_points(ours, emitted)) == _sorted(theirs)
    assert len(theirs) == _expected(emitted)
    assert {point.measurement for point in theirs} == {"W", "ones"}


async def test_each_point_exists_once_while_both_write_into_one_database(
    home: HomeAssistant, own: Database, influx_1: Server, tmp_path: Path
) -> None:
    """That makes it safe to try the service beside the integration."""
    emitted = await _written(home, own, influx_1.url, tmp_path, 1_000)
    await _complete(own, emitted)
    await asyncio.sleep(3)  # Home Assistant writes at most a second later, and nothing says when

    points = _points(own, emitted)
    assert len(points) == _expected(emitted)
    assert len({(point.time_ns, *sorted(point.tags.items())) for point in points}) == len(points)


_PIECES = ["\\", ",", "=", " ", "\t", "a", "#", '"', "'", "\r", "\n", "\0"]
_HOSTILE = ["".join(pieces) for n in (1, 2) for pieces in itertools.product(_PIECES, repeat=n)]
_HOSTILE += ["".join(pieces) for pieces in itertools.product(_PIECES[:4], repeat=3)]
_PLACES: dict[str, Callable[[str], tuple[JsonObject, JsonObject]]] = {
    "measurement": lambda text: ({"unit_of_measurement": text}, {}),
    "tag": lambda text: ({"a": text}, {"tags_attributes": ["a"]}),
    "tag key": lambda text: ({}, {"tags": {text: "x"}}),
    "field": lambda text: ({"a": text}, {}),
    "field key": lambda text: ({text: 5}, {}),
    "last field key": lambda text: ({f"z{text}": 5}, {}),
}


@pytest.mark.parametrize("text", ["v1", "v2"])
@pytest.mark.parametrize("place", _PLACES)
def test_influxdb_accepts_hostile_text_in_every_place(
    influx_1: Server, place: str, text: Text
) -> None:
    """What it would refuse is left out of the line, and the rest of the point is written."""
    database = Database(influx_1.url, "hostile")
    database.create()
    lines = []

    for hostile in _HOSTILE:
        attributes, options = _PLACES[place](hostile)
        encoder = HomeAssistantEncoder(read_options(options, unread=frozenset()), text=text)
        (line,) = encoder.encode([_change(attributes)]).lines
        assert line is not None
        lines.append(line)

    database.write(b"".join(lines))  # raises if any is refused


def _change(attributes: JsonObject) -> Change:
    return Change(
        entity_id="sensor.a",
        domain="sensor",
        time_ns=1_796_044_207_123_456_000,
        state="1",
        attributes=msgspec.json.encode(attributes),
        previous_state=None,
        duration_s=None,
        device_class=None,
        unit_of_measurement=None,
        friendly_name=None,
        context=None,
        placement=NOWHERE,
    )
