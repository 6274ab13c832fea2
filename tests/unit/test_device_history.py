"""The device history: which points are written, when, and how they look."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from app.discovery.catalog import Catalog
from app.discovery.device_history import DeviceHistory
from app.discovery.refresh import RegistryUpdate
from app.discovery.registries import Registries, list_registries
from app.model import IdentityChange, Lines
from app.runtime.errors import JournalFull
from app.schema.devices import DevicePoint, encode_devices
from app.schema.line_protocol import parse_line
from tests.fakes.discovery import Answers

AT = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)
AT_NS = 1_795_435_200_123_456_000
EMPTY = Registries()
LAMP = {
    "id": "d1",
    "name": "Lamp",
    "name_by_user": "Reading lamp",
    "manufacturer": "Ikea, AB",
    "model": "T 1",
    "sw_version": 2,
    "area_id": "hall",
}
LIGHT = {"entity_id": "light.lamp", "device_id": "d1", "platform": "mqtt", "unique_id": "u1"}
PLUG = {"id": "d2", "name": "Plug"}
SWITCH = {"entity_id": "switch.plug", "device_id": "d2", "disabled_by": "user"}


class Rig:
    """A history whose lines can be read."""

    def __init__(self, *, instance: str | None = None) -> None:
        self.lines: list[bytes] = []
        self.catalog = Catalog()
        self.history = DeviceHistory(self._append, catalog=self.catalog, instance=instance)

    async def _append(self, lines: Lines) -> None:
        assert lines.points == len(lines.split())
        self.lines += lines.split()

    async def refresh(
        self, now: Registries, *, former: Registries = EMPTY, is_full: bool = True
    ) -> list[str]:
        """Let it know of a refresh; return the ids that got a point."""
        self.lines.clear()
        self.catalog.replace(now)
        await self.history.refreshed(RegistryUpdate(former=former, now=now, at=AT, is_full=is_full))
        points = [parse_line(line) for line in self.lines]
        return [point.tags.get("entity_id") or point.tags["device_id"] for point in points]


async def home(devices: list[Any], entities: list[Any]) -> Registries:
    """Return registries with these rows."""
    return await list_registries(Answers({"device": devices, "entity": entities}).call)


async def test_device_history_points_have_the_documented_tags_and_fields() -> None:
    """Measurements, tags and fields of the predecessor, with the types they have there."""
    rig = Rig()

    await rig.refresh(await home([LAMP, PLUG], [LIGHT, SWITCH]))

    assert rig.lines == [
        (
            rb"devices,area_id=hall,device_id=d1,manufacturer=Ikea\,\ AB,model=T\ 1"
            b' name="Reading lamp",sw_version="2",entity_count=1i 1795435200123456000'
        ),
        b'devices,device_id=d2 name="Plug",entity_count=1i 1795435200123456000',
        (
            b"entities,area_id=hall,device_id=d1,domain=light,entity_id=light.lamp,platform=mqtt"
            b' unique_id="u1",disabled=false 1795435200123456000'
        ),
        (
            b"entities,device_id=d2,domain=switch,entity_id=switch.plug"
            b" disabled=true 1795435200123456000"
        ),
    ]
    assert parse_line(rig.lines[0]).time_ns == AT_NS


async def test_the_instance_is_a_tag_of_the_device_history() -> None:
    """As in the points of events."""
    rig = Rig(instance="cabin")

    await rig.refresh(await home([LAMP], [LIGHT]))

    assert [parse_line(line).tags["instance"] for line in rig.lines] == ["cabin", "cabin"]


async def test_a_change_of_identity_is_a_point_of_the_device_history() -> None:
    """At the time of the change, with the documented tags and fields."""
    rig = Rig(instance="cabin")
    at = datetime(2026, 11, 23, 11, 0, tzinfo=UTC)
    renamed = IdentityChange(
        what="entity_id",
        entity_id="light.reading",
        old="light.lamp",
        new="light.reading",
        at=at,
        at_source="event",
    )
    split = IdentityChange(
        what="split", device_id="d3", old="d1", new="d3", at=AT, at_source="discovered"
    )
    moved = IdentityChange(
        what="area_id", device_id="d3", old=None, new="hall", at=AT, at_source="registry"
    )

    await rig.history.refreshed(
        RegistryUpdate(
            former=EMPTY, now=EMPTY, at=AT, is_full=False, changes=(renamed, split, moved)
        )
    )

    assert rig.lines == [
        (
            b"identity_changes,entity_id=light.reading,instance=cabin,what=entity_id"
            b' old="light.lamp",new="light.reading",at_source="event" 1795431600000000000'
        ),
        (
            b"identity_changes,device_id=d3,instance=cabin,what=split"
            b' old="d1",new="d3",at_source="discovered" 1795435200123456000'
        ),
        (
            b"identity_changes,device_id=d3,instance=cabin,what=area_id"
            b' new="hall",at_source="registry" 1795435200123456000'
        ),
    ]


async def test_a_refresh_without_changes_writes_no_device_history() -> None:
    """Every half hour thousands of equal points would fill the disk."""
    registries = await home([LAMP], [LIGHT])

    assert await Rig().refresh(registries, former=registries) == []


async def test_a_full_refresh_with_changes_writes_the_whole_device_history() -> None:
    """So that one moment has the whole picture."""
    former = await home([LAMP, PLUG], [LIGHT, SWITCH])
    now = await home([LAMP, PLUG], [LIGHT, {**SWITCH, "name": "New"}])

    assert await Rig().refresh(now, former=former) == ["d1", "d2", "light.lamp", "switch.plug"]


@pytest.mark.parametrize(
    ("devices", "entities", "ids"),
    [
        ([LAMP, {**PLUG, "area_id": "x"}], [LIGHT, SWITCH], ["d2", "switch.plug"]),
        ([LAMP, PLUG], [{**LIGHT, "area_id": "x"}, SWITCH], ["d1", "light.lamp"]),
        ([LAMP, PLUG], [SWITCH], ["d1"]),
        ([LAMP, PLUG], [LIGHT, {**SWITCH, "device_id": "d1"}], ["d1", "d2", "switch.plug"]),
        ([LAMP, PLUG], [LIGHT, SWITCH], []),
    ],
)
async def test_a_registry_event_writes_the_devices_and_entities_it_concerns(
    devices: list[Any], entities: list[Any], ids: list[str]
) -> None:
    """A device's entities may have moved with it, and an entity's device counts one less."""
    former = await home([LAMP, PLUG], [LIGHT, SWITCH])

    now = await home(devices, entities)

    assert ids == await Rig().refresh(now, former=former, is_full=False)


async def test_thousands_of_history_points_are_appended_in_parts() -> None:
    """The journal takes events in between."""
    entities = [{"entity_id": f"sensor.s{number}"} for number in range(1_200)]
    rig = Rig()

    assert len(await rig.refresh(await home([], entities))) == 1_200


async def test_a_failing_journal_costs_the_device_history_one_refresh(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Discovery goes on."""

    async def full(_: Lines) -> None:
        raise JournalFull("at its bound")

    history = DeviceHistory(full, catalog=Catalog(), instance=None)
    now = await home([LAMP], [])

    await history.refreshed(RegistryUpdate(former=EMPTY, now=now, at=AT, is_full=True))

    assert "The device history misses this refresh: at its bound" in caplog.text


def test_hostile_device_names_stay_on_one_line() -> None:
    """Whatever an integration wrote, it is one point."""
    point = DevicePoint(
        device_id="d,1 =\n",
        area_id="",
        manufacturer="\\",
        model='"',
        name='a "quoted"\nname\\',
        sw_version=None,
        entity_count=0,
    )

    lines = encode_devices([point], time_ns=AT_NS)

    (line,) = lines.split()
    parsed = parse_line(line)
    assert parsed.fields == {"name": 'a "quoted"\nname\\', "entity_count": 0}
    assert parsed.tags["device_id"] == "d,1 = "
    assert "area_id" not in parsed.tags
