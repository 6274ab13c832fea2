"""`python -m app copy` between real databases."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.commands.copy.embedded_store import FILE_NAME
from app.model import Change, Context, Placement, StoredPoint, nanoseconds
from app.schema.homeiq import HomeiqEncoder
from app.schema.line_protocol import parse_line
from app.sinks.embedded import EmbeddedStore
from app.sinks.outcomes import Accepted
from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.catalogs import store_catalog
from tests.fakes.copying import Copying, required
from tests.fakes.documents import ROOT
from tests.fakes.points import batch_of
from tests.fakes.still_house import StillHouse
from tests.real.influx_1 import Database
from tests.real.servers import Server
from tests.service.process import TOKEN, service

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

DAY_NS = 86_400_000_000_000
START_NS = 1_760_000_000_123_456_789
OLD_NS = 11_000 * DAY_NS
_NUMBERS = count()
GIVEN = os.environ.get("INFLUXDB_TEST_URL", "")

HOSTILE = "\n".join(
    [
        f'm,host=a v=1i,s="quote \\" backslash \\\\ and \\\\\\" break\nbreak",b=true {START_NS}',
        f'm,host=b v=7i,s="" {START_NS + 1}',
        f'm,host=b host="a field named as a tag" {START_NS + 2}',
        f"m,host=c w=-0 {START_NS + 3}",
        f"m v=9223372036854775807i,w=1e300,b=false {START_NS + 4}",
        f"m v=-9223372036854775808i,w=5e-324 {START_NS + 5}",
        f'a\\,\\ =b,ünï=日\\,\\ \\=本,o=\\\\x f\\ \\,\\=g=1,日本=2i,q"k=3 {START_NS}',
        "old,e=x v=1 -5000",
        "old,e=x v=2 0",
        f"old,e=x v=3 {DAY_NS}",
        f"old,e=x v=4 {DAY_NS - 1}",
    ]
)

OTHER_SHARDS = "\n".join(
    [
        f"m,host=a v=1.5 {START_NS + 20 * DAY_NS}",
        f'm,host=a v="text" {START_NS + 40 * DAY_NS}',
        f"m,host=a v=true {START_NS + 60 * DAY_NS}",
    ]
)
"""A field of `HOSTILE` with other types in other shards."""


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Copying:
    """Return the command with a folder of its own."""
    return Copying(monkeypatch, tmp_path / "data")


@pytest.fixture
def source(influx_1: Server) -> Database:
    """Return an empty database to read."""
    database = Database(influx_1.url, f"copied_from_{next(_NUMBERS)}")
    database.create()
    return database


@pytest.fixture
def target(influx_1: Server) -> Database:
    """Return an empty database to write."""
    database = Database(influx_1.url, f"copied_to_{next(_NUMBERS)}")
    database.create()
    return database


def home(points: int, *, every_ns: int = 500_000_000) -> bytes:
    """Return lines as Home Assistant's own integration writes them."""
    return "".join(
        f"°C,domain=sensor,entity_id=e{n % 50} value={20 + n % 100 / 10},battery={n % 100},"
        f'friendly_name_str="Sensor \\"{n % 50}\\"" {START_NS + n * every_ns}\n'
        for n in range(points)
    ).encode()


def sorted_points(database: Database) -> list[str]:
    """Return all points of a database, one type of a field after the other."""
    kinds = ("float", "integer", "string", "boolean")
    fields = sorted({str(row["fieldKey"]) for row in database.rows("SHOW FIELD KEYS")})
    found = set()
    for field in fields:
        quoted = '"' + field.replace('"', '\\"') + '"'
        for kind in kinds:
            for point in database.points(f"SELECT {quoted}::{kind} FROM /.*/ GROUP BY *"):
                found.add(f"{kind} {point}")
    return sorted(found)


async def test_a_copy_to_victoria_metrics_has_every_number(
    copying: Copying, influx_1: Server, victoria: Server, source: Database
) -> None:
    """As floats in milliseconds; a text becomes 0, and two points in a millisecond one."""
    source.write(
        f'm,e=x v=1i,b=true,s="on",n="21.5" {START_NS}\n'
        f"m,e=x v=2i {START_NS + 1}\nm,e=y v=-5i {START_NS + 2_000_000}\n".encode()
    )
    source.write(home(5_000))
    bucket = f"copied_{next(_NUMBERS)}"

    result = await copying(
        "--from", influx_1.url, "--from-bucket", source.name,
        INFLUXDB_URL=victoria.url, INFLUXDB_BUCKET=bucket,
    )  # fmt: skip

    assert result.status == 0, result.printed
    assert "the target has every value of the source" in result.printed
    stored = exported(victoria, bucket)
    assert stored["m_v", "y"] == {(START_NS + 2_000_000) // 1_000_000: -5.0}
    assert set(stored["m_v", "x"]) == {START_NS // 1_000_000}
    assert set(stored["m_b", "x"].values()) == {1.0}
    assert set(stored["m_s", "x"].values()) == {0.0}
    assert set(stored["m_n", "x"].values()) == {21.5}


def exported(server: Server, bucket: str) -> dict[tuple[str, str], dict[int, float]]:
    """Return the samples by time, by metric and the label `e`."""
    httpx.get(f"{server.url}/internal/force_flush").raise_for_status()
    answer = httpx.get(f"{server.url}/api/v1/export", params={"match[]": f'{{db="{bucket}"}}'})
    found: dict[tuple[str, str], dict[int, float]] = {}
    for line in answer.raise_for_status().text.splitlines():
        row = json.loads(line)
        place = row["metric"]["__name__"], row["metric"].get("e", "")
        samples = zip(row["timestamps"], row["values"], strict=True)
        found.setdefault(place, {}).update(samples)
    return found


@pytest.fixture(
    params=[("1", "1"), *([("1", "2"), ("2", "1"), ("2", "2")] if GIVEN else [])],
    ids="-".join,
)
def ends(request: pytest.FixtureRequest, influx_1: Server) -> tuple[Database, Database]:
    """Return two empty databases, on each pair of versions of InfluxDB in turn."""
    found = []
    for version in request.param:
        name = f"copied_{next(_NUMBERS)}_{time.time_ns()}"
        database = Database(influx_1.url, name)
        if version == "2":
            token, org = (os.environ[f"INFLUXDB_TEST_{each}"] for each in ("TOKEN", "ORG"))
            database = Database(GIVEN, name, org=org, token=token)
        database.create()
        found.append(database)
    return found[0], found[1]


def between(source: Database, target: Database) -> dict[str, str]:
    """Return the settings of a copy."""
    return {
        "COPY_FROM_URL": source.url, "COPY_FROM_BUCKET": source.name,
        "COPY_FROM_TOKEN": source.token, "COPY_FROM_ORG": source.org or "homeiq",
        "INFLUXDB_URL": target.url, "INFLUXDB_BUCKET": target.name,
        "INFLUXDB_TOKEN": target.token, "INFLUXDB_ORG": target.org or "homeiq",
    }  # fmt: skip


async def test_all_versions_of_influxdb_are_equal_after_a_copy(
    copying: Copying, ends: tuple[Database, Database]
) -> None:
    """Types, types that change, escapes, nanoseconds, times before 1970, and ordinary points."""
    source, target = ends
    source.write(f"{HOSTILE}\n{OTHER_SHARDS}".encode())
    source.write(home(10_000))

    result = await copying(**between(source, target))

    assert result.status == 0, result.printed
    assert "the target has every value of the source" in result.printed
    assert sorted_points(target) == sorted_points(source)
    assert target.rows("SHOW FIELD KEYS") == source.rows("SHOW FIELD KEYS")
    assert copying.refused == b""


async def test_a_copy_that_is_killed_again_and_again_is_complete(
    ends: tuple[Database, Database], tmp_path: Path
) -> None:
    """With SIGKILL, in the middle of its writes."""
    source, target = ends
    source.write(f"{HOSTILE}\n{OTHER_SHARDS}".encode())
    source.write(rooms(6_000))

    await killed_copies(tmp_path, source, target, 'SELECT count("value") FROM /room/')

    assert sorted_points(target) == sorted_points(source)


async def test_a_conversion_that_is_killed_again_and_again_writes_each_point_once(
    ends: tuple[Database, Database], tmp_path: Path
) -> None:
    """With SIGKILL, in the middle of its writes."""
    await store_catalog(tmp_path)
    source, target = ends
    source.write(rooms(6_000))
    counting = 'SELECT count("copied") FROM home_assistant_events'

    await killed_copies(tmp_path, source, target, counting, "--to-schema", "homeiq")

    converted = target.points("SELECT * FROM home_assistant_events GROUP BY *")
    expected = {(point.time_ns, f"{point.fields['value']:g}") for point in source.points()}
    assert len(converted) == len(expected) == 6_000
    assert {(point.time_ns, point.fields["state_value"]) for point in converted} == expected


def rooms(points: int) -> bytes:
    """Return lines of six sensors, each in a measurement of its own, over some weeks."""
    return "".join(
        f"room{n % 6},domain=sensor,entity_id=room{n % 6} value={n} {START_NS + n * 300 * 10**9}\n"
        for n in range(points)
    ).encode()


async def killed_copies(
    folder: Path, source: Database, target: Database, counting: str, *words: str
) -> None:
    """Run the command to its end, after it was killed with ever more points in the target."""
    environment = {"PATH": os.environ["PATH"], **required(folder), **between(source, target)}
    environment["INFLUXDB_MAX_BATCH_POINTS"] = "100"
    statuses = []
    for wanted in (1, 2_000, 4_000, None):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "app", "copy", "--points-per-second", "2000", *words,
            cwd=ROOT, env=environment, stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        if wanted is not None:
            while _sum(target, counting) < wanted and process.returncode is None:
                await asyncio.sleep(0.05)
            process.kill()
        statuses.append(await process.wait())
    assert statuses == [*[-signal.SIGKILL] * 3, 0]


def _sum(database: Database, counting: str) -> int:
    return sum(int(str(row["count"])) for row in database.rows(counting))


async def test_victoria_metrics_is_copied_to_influxdb_1_by_measurement_and_field(
    copying: Copying, victoria: Server, target: Database
) -> None:
    """Its metrics are measurement and field joined; its days are found without a list."""
    bucket = f"copied_{next(_NUMBERS)}"
    first_ns = START_NS - START_NS % 1_000_000
    lines = [
        *(f"°C,entity_id=e{n % 3} value={n},battery_level=7 {first_ns + n * 3_600_000_000_000}"
          for n in range(100)),
        f"home_assistant_events,entity_id=a value=1,available=true {first_ns}",
        f"old v_x=5 {OLD_NS}",
        f"old v_x=6 {OLD_NS + DAY_NS - 1_000_000}",
    ]  # fmt: skip
    write(victoria, bucket, "\n".join(lines))

    result = await copying(
        "--from", victoria.url, "--from-bucket", bucket,
        INFLUXDB_URL=target.url, INFLUXDB_BUCKET=target.name,
    )  # fmt: skip

    assert result.status == 0, result.printed
    assert "the target has every value of the source" in result.printed
    assert target.count('SELECT count(value) FROM "°C"') == 100
    assert target.count('SELECT count(battery_level) FROM "°C"') == 100
    assert target.count("SELECT sum(available) FROM home_assistant_events") == 1
    old = target.points("SELECT * FROM old_v GROUP BY *")
    assert [point.fields for point in old] == [{"x": 5}, {"x": 6}]
    assert [point.time_ns for point in old] == [OLD_NS, OLD_NS + DAY_NS - 1_000_000]
    assert all("db" not in point.tags for point in target.points())


def write(server: Server, bucket: str, lines: str) -> None:
    """Write lines to VictoriaMetrics."""
    httpx.post(
        f"{server.url}/write", params={"db": bucket, "precision": "ns"}, content=lines.encode()
    ).raise_for_status()
    httpx.get(f"{server.url}/internal/force_flush").raise_for_status()


async def test_the_embedded_store_is_copied_as_the_service_writes_it(
    copying: Copying, influx_1: Server, target: Database
) -> None:
    """Every line that went into the store comes out of the target."""
    encoder = HomeiqEncoder("home_assistant_events", instance="here", attribute_fields=["a*"])
    changes = [change(n) for n in range(5_000)]
    lines = encoder.encode(changes).split()
    store = EmbeddedStore(copying.folder / FILE_NAME, parse=parse_line, retention_days=36_500)
    async with store:
        assert await store.write(batch_of(lines)) == Accepted()

        result = await copying(
            "--from", "embedded",
            INFLUXDB_URL=influx_1.url, INFLUXDB_BUCKET=target.name, INFLUXDB_ATTRIBUTE_FIELDS="a*",
        )  # fmt: skip

    assert result.status == 0, result.printed
    expected = sorted(map(described, map(parse_line, lines)))
    assert sorted(map(described, target.points())) == expected


def described(point: StoredPoint) -> str:
    """Return a point as text, its fields in order; JSON has no floats without a fraction."""
    fields = {
        key: float(value) if type(value) is int else value for key, value in point.fields.items()
    }
    parts = sorted(point.tags.items()), sorted(fields.items())
    return repr((point.measurement, *parts, point.time_ns))


def change(number: int) -> Change:
    """Return a change with everything that differs between changes."""
    return Change(
        entity_id=f"sensor.s{number % 40}",
        domain="sensor",
        time_ns=START_NS - START_NS % 1_000 + number * 60_000_000_000,
        state=None if number % 97 == 5 else str(number) if number % 3 else 'te"x\\t\n',
        previous_state="on" if number % 2 else None,
        duration_s=number / 7 if number % 5 else None,
        attributes=json.dumps({"a": number, "b": ["ü", '"']}).encode(),
        device_class="temperature" if number % 2 else None,
        unit_of_measurement="°C",
        friendly_name="A, b = c",
        context=Context(f"c{number}", None, "u") if number % 4 else None,
        placement=Placement(device_id="d", area_id="küche", integration="mqtt", model="m 1"),
        backfilled=number % 10 == 0,
    )


async def test_home_assistants_own_points_become_points_of_the_service(
    copying: Copying, ends: tuple[Database, Database]
) -> None:
    """Within one database, beside points of the service, and twice."""
    _, source = ends
    await store_catalog(copying.folder)
    source.write(home(6_000))
    source.write(
        f'light.lamp,domain=light,entity_id=lamp state="on",value=1 {START_NS}\n'
        f'climate.c,domain=climate,entity_id=c state="say \\"heat\\"" {START_NS}'.encode()
    )
    live = (
        'home_assistant_events,domain=sensor,entity_id=sensor.e1 state_value="20.10",value=20.1'
        f" {START_NS + 500_000_000}"
    )
    source.write(live.encode())
    given = between(source, source)

    first = await copying("--to-schema", "homeiq", **given)
    second = await copying("--to-schema", "homeiq", "--again", **given)

    assert first.status == 0, first.printed
    assert second.status == 0, second.printed
    assert "the target has every value of the source" in first.printed
    assert "Left out: 1 points" in first.printed
    assert "Left out: 6,002 points" in second.printed
    events = "FROM home_assistant_events"
    assert source.count(f"SELECT count(state_value) {events}") == 6_002
    assert source.count(f"SELECT count(copied) {events}") == 6_001
    (lamp,) = source.points(f"SELECT * {events} WHERE entity_id = 'light.lamp' GROUP BY *")
    assert (lamp.tags["area_id"], lamp.fields["state_value"]) == ("attic", "on")
    (said,) = source.rows(f"SELECT state_value {events} WHERE entity_id = 'climate.c'")
    assert said["state_value"] == 'say "heat"'


async def test_a_conversion_beside_the_running_service_has_each_change_once(
    copying: Copying, ends: tuple[Database, Database], tmp_path: Path
) -> None:
    """The service writes changes before the command, meanwhile, and after it."""
    source, target = ends
    house = StillHouse()
    start = house.change_every(1.0, since_s=172_800)
    times = [nanoseconds(start) + n * 10**9 for n in range(3_000)]
    source.write(
        "\n".join(
            f"sensor.number_{n % 50},domain=sensor,entity_id=number_{n % 50} value={n} {at}"
            for n, at in enumerate(times)
        ).encode()
    )
    given = between(source, target)
    async with FakeHomeAssistant(house, token=TOKEN) as home:
        house.fire = home.fire
        own = {
            "HOME_ASSISTANT_URL": home.url,
            "HOME_ASSISTANT_TOKEN": TOKEN,
            "BACKFILL_ENABLED": "false",
            "BATCH_TIMEOUT": "0.1",
        }
        async with service(tmp_path, {**given, **own}) as running:
            await running.until("/health", _is_capturing)
            await _change_sensors(house, range(1_000))
            await running.until("/health", lambda health: _has_written(health, 1_000))
            converting = asyncio.create_task(copying("--to-schema", "homeiq", **given), name="copy")
            await _change_sensors(house, range(1_000, 2_000))
            result = await converting
            await _change_sensors(house, range(2_000, 3_000))
            await running.until("/health", lambda health: _has_written(health, 3_000))

    stored = target.points("SELECT * FROM home_assistant_events GROUP BY *")
    assert result.status == 0, result.printed
    assert sorted(point.time_ns for point in stored) == times
    assert {point.fields["state_value"] for point in stored} == {str(n) for n in range(3_000)}
    # A converted point gets the fields of the service's own, which is written afterwards.
    assert 1_000 <= sum("copied" in point.fields for point in stored) <= 2_000
    assert sum("previous_state" in point.fields for point in stored) == 3_000 - 50


async def _change_sensors(house: StillHouse, numbers: range) -> None:
    """Change the sensors in turn, about a thousand times per second."""
    for number in numbers:
        house.set_state(f"sensor.number_{number % 50}", str(number))
        if number % 50 == 0:
            await asyncio.sleep(0.05)


def _has_written(health: Any, changes: int) -> bool:
    journaled = health["accounting"]["events"]["journaled"]
    return bool(journaled == changes and not health["sinks"][0]["held"])


def _is_capturing(health: Any) -> bool:
    return bool(
        health["subscription"]["is_subscribed"] and health["discovery"]["last_refresh"] is not None
    )


async def test_numbers_in_victoria_metrics_become_points_of_the_service(
    copying: Copying, victoria: Server, target: Database
) -> None:
    """It does not store texts: words stay numbers, and other states are refused."""
    await store_catalog(copying.folder)
    bucket = f"copied_{next(_NUMBERS)}"
    first_ns = START_NS - START_NS % 1_000_000
    lines = [
        f"°C,domain=sensor,entity_id=t value=21.5 {first_ns}",
        f'light.lamp,domain=light,entity_id=lamp state="on",value=1 {first_ns}',
        f'climate.c,domain=climate,entity_id=c state="heat" {first_ns}',
    ]
    write(victoria, bucket, "\n".join(lines))

    result = await copying(
        "--from", victoria.url, "--from-bucket", bucket, "--to-schema", "homeiq",
        INFLUXDB_URL=target.url, INFLUXDB_BUCKET=target.name,
    )  # fmt: skip

    assert result.status == 1
    assert "Refused: 1 points" in result.printed
    assert b"its state is text, which VictoriaMetrics does not store" in copying.refused
    found = {point.tags["entity_id"]: point for point in target.points()}
    assert found["sensor.t"].fields["state_value"] == "21.5"
    assert found["sensor.t"].tags["area_id"] == "hall"
    assert found["light.lamp"].fields["value"] == 1
    assert "state_value" not in found["light.lamp"].fields
    assert set(found) == {"sensor.t", "light.lamp"}


async def test_a_type_conflict_goes_to_a_file_and_the_rest_is_copied(
    copying: Copying, influx_1: Server, source: Database, target: Database
) -> None:
    """The command ends with status 1, and names the day on which values are missing."""
    source.write(home(1_000) + b"m,e=x v=1 %d\nm,e=y w=1 %d\n" % (START_NS, START_NS))
    target.write(b'm,e=z v="text" %d\n' % START_NS)

    result = await copying(
        "--from", influx_1.url, "--from-bucket", source.name,
        INFLUXDB_URL=influx_1.url, INFLUXDB_BUCKET=target.name,
    )  # fmt: skip

    assert result.status == 1
    assert copying.refused.endswith(b"\nm,e=x v=1.0 %d\n" % START_NS)
    assert b"field type conflict" in copying.refused
    assert f"missing: m,e=x v=1.0 {START_NS}" in result.printed
    assert target.count('SELECT count(value) FROM "°C"') == 1_000
    assert target.count("SELECT count(w) FROM m") == 1


async def test_points_older_than_the_retention_are_in_the_file(
    copying: Copying, influx_1: Server, source: Database, target: Database
) -> None:
    """All of them, also those of a request with newer points."""
    now_ns = time.time_ns()
    policy = f'autogen ON "{target.name}" DURATION 2h SHARD DURATION 1h DEFAULT'
    target.run(f"ALTER RETENTION POLICY {policy}")
    lines = [b"m,e=%d v=%d %d" % (n, n, now_ns - n * 60_000_000_000) for n in range(1, 301)]
    source.write(b"\n".join(lines))

    result = await copying(
        "--from", influx_1.url, "--from-bucket", source.name,
        INFLUXDB_URL=influx_1.url, INFLUXDB_BUCKET=target.name,
    )  # fmt: skip

    stored = {int(str(row["v"])) for row in target.rows("SELECT v FROM m")}
    refused = {int(number) for number in re.findall(rb"\nm,e=(\d+) ", copying.refused)}
    assert result.status == 1
    assert 60 < len(stored) < 300
    # InfluxDB stores an old point beside newer ones of its shard, and refuses it alone.
    assert stored | refused == set(range(1, 301))
    assert min(refused) > 60
