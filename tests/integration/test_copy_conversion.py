"""`python -m app copy --to-schema homeiq`: from Home Assistant's layout to the service's own."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.model import NOWHERE, Change, StoredPoint
from app.runtime.errors import SettingsError
from app.schema.home_assistant import HomeAssistantEncoder
from app.schema.home_assistant_options import Options
from app.schema.homeiq import HomeiqEncoder
from tests.fakes.catalogs import renamed, store_catalog
from tests.fakes.copying import Copying
from tests.fakes.influx import FakeInflux
from tests.integration.test_copy import databases, settings

START_NS = 1_760_000_000_123_456_000
AT = datetime.fromtimestamp(START_NS // 10**9, UTC)
SCHEMA = ("--to-schema", "homeiq")
LINES = [
    (
        '°C,domain=sensor,entity_id=t device_class_str="temperature",friendly_name_str="Old, name"'
        f",value=21.5,battery=80 {START_NS}"
    ),
    f'light.lamp,domain=light,entity_id=lamp state="on",value=1,brightness=200 {START_NS + 1000}',
    f'climate.c,domain=climate,entity_id=c state="heat \\"x\\"",value=7 {START_NS + 2000}',
    f"units,domain=sensor,entity_id=plain value=5 {START_NS + 3000}",
]


@pytest.fixture
async def copying(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Copying:
    """Return the command with a folder of its own, in which there is a catalog."""
    await store_catalog(
        tmp_path,
        renamed("sensor.old", "sensor.new", "3", AT),
        renamed("sensor.reused", "sensor.gone", "9", AT),
    )
    return Copying(monkeypatch, tmp_path)


def converted(database: FakeInflux) -> dict[str, StoredPoint]:
    """Return the points of the schema `homeiq` by entity id; there is one for each."""
    points = [p for p in database.points() if p.measurement == "home_assistant_events"]
    found = {point.tags["entity_id"]: point for point in points}
    assert len(found) == len(points)
    return found


@pytest.mark.parametrize("source", ["v1", "v2"])
@pytest.mark.parametrize("target", ["v1", "v2"])
async def test_points_of_home_assistant_become_points_of_the_service(
    copying: Copying, source: str, target: str
) -> None:
    """With area, device and class, and nothing unknown; a second run writes nothing."""
    async with databases(source, target, lines=[each.encode() for each in LINES]) as (ours, theirs):
        result = await copying(*SCHEMA, **settings(ours, theirs))
        requests = len(theirs.requests)
        again = await copying(*SCHEMA, **settings(ours, theirs))
        anew = await copying(*SCHEMA, "--again", **settings(ours, theirs))

    assert result.status == 0, result.printed
    assert "the target has every value of the source" in result.printed
    found = converted(theirs)
    common = {"event_type": "state_changed"}
    assert found["sensor.t"] == StoredPoint(
        measurement="home_assistant_events",
        tags={
            **common, "area_id": "hall", "device_class": "temperature", "device_id": "d1",
            "domain": "sensor", "entity_id": "sensor.t", "event_category": "climate",
            "integration": "mqtt", "unit_of_measurement": "°C",
        },
        fields={
            "friendly_name": "Old, name", "available": True, "state_value": "21.5", "value": 21.5,
            "copied": True,
        },
        time_ns=START_NS,
    )  # fmt: skip
    assert found["light.lamp"].fields == {
        "friendly_name": "Lamp", "available": True, "state_value": "on", "value": 1.0,
        "copied": True,
    }  # fmt: skip
    assert found["light.lamp"].tags["area_id"] == "attic"
    # The number beside a text that is no word is an attribute named `value`.
    assert found["climate.c"].fields == {
        "available": True, "state_value": 'heat "x"', "copied": True
    }  # fmt: skip
    assert "climate.c (1)" in result.printed
    assert "unit_of_measurement" not in found["sensor.plain"].tags
    assert (again.status, anew.status) == (0, 0)
    assert len(theirs.requests) == requests
    assert f"Left out: {len(LINES)} points" in anew.printed


async def test_source_and_target_may_be_one_database(copying: Copying) -> None:
    """What is written is not read as a source."""
    async with databases(lines=[each.encode() for each in LINES]) as (ours, _):
        for _ in range(2):
            result = await copying(*SCHEMA, "--again", **settings(ours, ours))

    assert result.status == 0, result.printed
    assert "home_assistant_events (of the schema homeiq)" in result.printed
    assert len(ours.points()) == 2 * len(LINES)


def change(number: int, *, state: str) -> Change:
    """Return a change with everything that a copied point lacks."""
    return Change(
        entity_id="sensor.t", domain="sensor", time_ns=START_NS + number * 60_000_000_000,
        state=state, previous_state="x", duration_s=60.0,
        attributes='{"unit_of_measurement":"°C","friendly_name":"T"}'.encode(),
        device_class=None, unit_of_measurement="°C", friendly_name="T", context=None,
        placement=NOWHERE,
    )  # fmt: skip


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_the_first_points_that_the_service_writes_meanwhile_are_found(
    copying: Copying, version: str
) -> None:
    """Also when the target had none of its measurement at the start."""
    live = (
        b'home_assistant_events,domain=sensor,entity_id=sensor.plain state_value="5",value=5 %d'
        % (START_NS + 3000)
    )
    async with databases(version, version, lines=[each.encode() for each in LINES]) as ends:
        ours, theirs = ends
        theirs.lines = [b"other v=1 1"]
        searches = 0

        def answers(chunks: list[bytes]) -> list[bytes]:
            nonlocal searches
            searches += 1
            if searches == 2:
                theirs.lines.append(live)
            return chunks

        theirs.answers = answers
        result = await copying(*SCHEMA, **settings(ours, theirs))

    assert result.status == 0, result.printed
    assert "Left out: 1 points" in result.printed
    assert converted(theirs)["sensor.plain"].fields == {"state_value": "5", "value": 5}


@pytest.mark.parametrize("precision", [None, "ms", "s"])
async def test_a_point_of_the_service_is_not_overwritten_by_a_copied_one(
    copying: Copying, precision: str | None
) -> None:
    """Nor is there a second one; also where the source cut the times."""
    changes = [change(number, state=f"{number}.50") for number in range(20)]
    options = Options.model_validate({} if precision is None else {"precision": precision})
    theirs_lines = HomeAssistantEncoder(options, text="v1").encode(changes).lines
    live = HomeiqEncoder("home_assistant_events", instance=None, attribute_fields=[])
    written = live.encode(changes[10:]).split()
    async with databases(lines=[line.strip() for line in theirs_lines if line]) as (ours, theirs):
        theirs.lines = list(written)
        result = await copying(*SCHEMA, **settings(ours, theirs))

    assert result.status == 0, result.printed
    assert "Left out: 10 points" in result.printed
    assert theirs.lines[:10] == written
    copied = [point for point in theirs.points() if "copied" in point.fields]
    assert len(copied) == 10
    assert len(theirs.points()) == 20


async def test_an_entity_is_recognized_by_the_id_it_had_at_the_time(copying: Copying) -> None:
    """Renamed, reused by another entity, and gone; ids stay as they were."""
    lines = [
        f"W,domain=sensor,entity_id=old value=1 {START_NS - 10**10}".encode(),
        f"W,domain=sensor,entity_id=new value=2 {START_NS + 10**10}".encode(),
        f"W,domain=sensor,entity_id=reused value=3 {START_NS - 10**10}".encode(),
        f"W,domain=sensor,entity_id=reused value=4 {START_NS + 10**10}".encode(),
        f"W,domain=sensor,entity_id=gone value=5 {START_NS + 10**10}".encode(),
    ]
    async with databases(lines=lines) as (ours, theirs):
        result = await copying(*SCHEMA, **settings(ours, theirs))

    areas = {
        (point.tags["entity_id"], point.fields["value"]): point.tags.get("area_id")
        for point in theirs.points()
    }
    assert result.status == 0, result.printed
    assert areas == {
        ("sensor.old", 1.0): "roof",
        ("sensor.new", 2.0): "roof",
        ("sensor.reused", 3.0): None,
        ("sensor.reused", 4.0): "cellar",
        ("sensor.gone", 5.0): None,
    }
    assert (
        "Without area and device: 2 points of 2 entities that are not in the catalog:"
        " sensor.gone (1), sensor.reused (1)"
    ) in result.printed


async def test_points_that_are_not_home_assistants_are_refused_with_the_reason(
    copying: Copying,
) -> None:
    """Measurements without states are named, and nothing is skipped silently."""
    lines = [
        b"W,domain=sensor,entity_id=sensor.t value=1 %d" % START_NS,
        b"W,host=a value=1 %d" % START_NS,
        b'W,domain=sensor,entity_id=t friendly_name_str="T" %d' % START_NS,
        b"cpu,host=a usage=1 %d" % START_NS,
    ]
    async with databases(lines=lines) as (ours, theirs):
        result = await copying(*SCHEMA, **settings(ours, theirs))

    assert result.status == 1
    assert theirs.lines == []
    assert "cpu (no field state or value)" in result.printed
    assert "Refused: 3 points" in result.printed
    assert b"Not converted: it has no tags domain and entity_id\nW,host=a" in copying.refused
    assert b"Not converted: its tags domain and entity_id are not" in copying.refused
    assert b"Not converted: it has neither a state nor a value" in copying.refused


async def test_a_missing_or_different_copied_point_is_found(copying: Copying) -> None:
    """By entity, time and state; the next run copies the day again."""
    async with databases(lines=[each.encode() for each in LINES]) as (ours, theirs):
        keep = theirs._keep
        theirs._keep = lambda lines: keep(  # type: ignore[method-assign]
            [line.replace(b"value=21.5", b"value=22.5") for line in lines if b"lamp" not in line]
        )
        first = await copying(*SCHEMA, **settings(ours, theirs))
        theirs._keep = keep  # type: ignore[method-assign]
        theirs.lines = [line for line in theirs.lines if b"22.5" not in line]
        second = await copying(*SCHEMA, **settings(ours, theirs))

    assert first.status == 1
    assert first.printed.count("    missing: home_assistant_events,") == 2
    assert second.status == 0, second.printed
    assert len(converted(theirs)) == len(LINES)


async def test_chosen_attributes_become_fields(copying: Copying) -> None:
    """As the service writes them; numbers that Home Assistant made of a text's digits do not."""
    lines = [
        b'light.lamp,domain=light,entity_id=lamp state="on",value=1,brightness=200,'
        b'mode_str="a1",version_str="v1.2",version=1.2,effect_str="None" %d' % START_NS
    ]
    async with databases(lines=lines) as (ours, theirs):
        given = settings(ours, theirs) | {
            "INFLUXDB_ATTRIBUTE_FIELDS": "brightness,mode,version,effect"
        }
        result = await copying(*SCHEMA, **given)

    assert result.status == 0, result.printed
    fields = converted(theirs)["light.lamp"].fields
    assert {name: value for name, value in fields.items() if name.startswith("attr_")} == {
        "attr_brightness": 200.0, "attr_mode_str": "a1", "attr_version_str": "v1.2"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "options", "unit", "device_class"),
    [
        ("W,domain=sensor,entity_id=x value=1", "", "W", None),
        ('state,domain=sensor,entity_id=x state="a"', "", None, None),
        ("state,domain=sensor,entity_id=x value=1", "default_measurement: state", None, None),
        ("all,domain=sensor,entity_id=x value=1", "override_measurement: all", None, None),
        ('all,domain=sensor,entity_id=x value=1,unit_of_measurement_str="W"', "", "W", None),
        ("sensor.x,domain=sensor,entity_id=x value=1", "", None, None),
        ("sensor__power,domain=sensor,entity_id=x value=1", "", None, "power"),
        ("sensor,domain=sensor,entity_id=x value=1", "", None, None),
    ],
    ids=["unit", "text", "default", "override", "overridden", "entity id", "class", "no class"],
)  # fmt: skip
async def test_the_measurement_is_the_unit_unless_an_option_made_it_something_else(
    copying: Copying, line: str, options: str, unit: str | None, device_class: str | None
) -> None:
    """`measurement_attr`, `default_measurement` and `override_measurement` of the source."""
    async with databases(lines=[f"{line} {START_NS}".encode()]) as (ours, theirs):
        given = {"INFLUXDB_SCHEMA_CONFIG": options} if options else {}
        result = await copying(*SCHEMA, **settings(ours, theirs), **given)

    assert result.status == 0, result.printed
    tags = converted(theirs)["sensor.x"].tags
    assert (tags.get("unit_of_measurement"), tags.get("device_class")) == (unit, device_class)


async def test_a_dry_run_shows_converted_points_and_writes_nothing(copying: Copying) -> None:
    """Nothing is looked for in the target, either."""
    async with databases(lines=[each.encode() for each in LINES]) as (ours, theirs):
        given = settings(ours, theirs) | {"INFLUXDB_URL": "http://127.0.0.1:1"}
        result = await copying(*SCHEMA, "--dry-run", **given)

    assert result.status == 0
    assert "Example: home_assistant_events,area_id=hall,device_class=temperature," in result.printed
    assert "copied=true" in result.printed


async def test_a_conversion_needs_a_catalog_and_a_target_that_can_be_searched(
    copying: Copying, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without them points would lack their area, or be written twice."""
    async with databases("v1", "v3", lines=[LINES[0].encode()]) as (ours, theirs):
        with pytest.raises(SettingsError, match="InfluxDB 1 or 2, which can be searched"):
            await copying(*SCHEMA, **settings(ours, theirs))
        with pytest.raises(SettingsError, match="Start the service once"):
            await Copying(monkeypatch, tmp_path / "other")(*SCHEMA, **settings(ours, theirs))

    assert theirs.lines == []
