"""History over HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from app.model import Context
from app.sinks.embedded import Page, StoredEvent
from tests.fakes.service import api_client, components
from tests.fakes.snapshots import NOON_NS

STORED = StoredEvent(
    time="2026-11-23T12:00:00.123456Z",
    entity_id="sensor.kitchen",
    event_type="state_changed",
    domain="sensor",
    area_id="kitchen",
    device_id="d1",
    integration="mqtt",
    device_class="temperature",
    unit_of_measurement="°C",
    event_category="climate",
    instance=None,
    state="21.5",
    previous_state="21.4",
    value=21.5,
    available=True,
    duration_s=60.0,
    attributes=msgspec.Raw(b'{"state_class":"measurement"}'),
    context=Context("01JQ8T3X5E7W9V0R2M4N6B8C1D"),
    friendly_name="Kitchen",
    manufacturer="Aqara",
    model="WSDCGQ11LM",
    sw_version="3000-0001",
    backfilled=False,
    removed=False,
)


@dataclass
class _Store:
    """Answers with one page and remembers what it was asked."""

    page: Page
    asked: list[dict[str, object]] = field(default_factory=list)

    async def events(self, **asked: object) -> Page:
        if asked.get("cursor") == "wrong":
            raise ValueError("not a cursor")
        self.asked.append(asked)
        return self.page


async def test_history_has_the_format_of_the_live_stream() -> None:
    """The same names, the same time format; ids of the context together."""
    stored = [STORED, msgspec.structs.replace(STORED, context=None, state=None, removed=True)]
    store = _Store(Page(events=stored, next_cursor="123_4"))

    async with api_client(components(event_store=store)) as client:
        page = (await client.get("/api/v1/events")).json()

    event, removal = page["events"]
    assert (page["count"], page["next_cursor"]) == (2, "123_4")
    assert (removal["context"], removal["state"], removal["removed"]) == (None, None, True)
    assert event == {
        "entity_id": "sensor.kitchen",
        "domain": "sensor",
        "event_type": "state_changed",
        "state": "21.5",
        "previous_state": "21.4",
        "value": 21.5,
        "available": True,
        "duration": 60.0,
        "removed": False,
        "backfilled": False,
        "attributes": {"state_class": "measurement"},
        "device_class": "temperature",
        "unit_of_measurement": "°C",
        "event_category": "climate",
        "friendly_name": "Kitchen",
        "manufacturer": "Aqara",
        "model": "WSDCGQ11LM",
        "sw_version": "3000-0001",
        "area_id": "kitchen",
        "device_id": "d1",
        "integration": "mqtt",
        "instance": None,
        "time": "2026-11-23T12:00:00.123456Z",
        "context": {"id": "01JQ8T3X5E7W9V0R2M4N6B8C1D", "parent_id": None, "user_id": None},
    }


async def test_query_parameters_of_history_reach_the_store() -> None:
    """Times are nanoseconds there, whatever offset they were asked with."""
    store = _Store(Page(events=[], next_cursor=None))
    parameters = {
        "start": "2026-11-23T13:00:00.123456+01:00",
        "end": "2026-11-24T00:00:00Z",
        "domain": "sensor",
        "area": "kitchen",
        "limit": "7",
        "cursor": "123_4",
    }

    async with api_client(components(event_store=store)) as client:
        await client.get("/api/v1/events", params=parameters)
        await client.get("/api/v1/events/sensor.kitchen", params={"limit": 1000})

    assert store.asked == [
        {
            "start_ns": NOON_NS,
            "end_ns": 1_795_478_400_000_000_000,
            "domain": "sensor",
            "area_id": "kitchen",
            "limit": 7,
            "cursor": "123_4",
        },
        {
            "entity_id": "sensor.kitchen",
            "start_ns": None,
            "end_ns": None,
            "limit": 1000,
            "cursor": None,
        },
    ]


async def test_an_invalid_cursor_of_history_is_refused() -> None:
    """The problem document explains what to do."""
    store = _Store(Page(events=[], next_cursor=None))

    async with api_client(components(event_store=store)) as client:
        response = await client.get("/api/v1/events?cursor=wrong")

    assert (response.status_code, response.json()["code"]) == (422, "invalid_cursor")


async def test_history_accepts_times_beyond_the_range_of_a_point() -> None:
    """Nanoseconds of the year 1 or 9999 do not fit 64 bits; nothing was stored there anyway."""
    store = _Store(Page(events=[], next_cursor=None))
    parameters = {"start": "0001-01-01T00:00:00Z", "end": "9999-12-31T00:00:00Z"}

    async with api_client(components(event_store=store)) as client:
        await client.get("/api/v1/events", params=parameters)

    assert [store.asked[0]["start_ns"], store.asked[0]["end_ns"]] == [-(2**63) + 1, 2**63 - 1]
