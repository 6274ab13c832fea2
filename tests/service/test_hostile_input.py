"""The service survives any input from Home Assistant or a database, and stops in time."""

from __future__ import annotations

import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.influx import FakeInflux, Reply, error
from tests.fakes.still_house import StillHouse
from tests.service.process import Service, service

GOOD_TIME = "2026-11-23T12:00:00.5+00:00"
TIMES = (
    "0001-01-01T00:00:00+00:00",
    "0001-01-01T00:00:00+23:59",
    "1600-01-01T00:00:00+00:00",
    "2300-01-01T00:00:00.000001+00:00",
    "9999-12-31T23:59:59.999999+00:00",
    "9999-12-31T23:59:59.999999-23:59",
    "9999-12-31T23:59:60+00:00",
)
PLACES = (
    ("new_state", "last_updated"),
    ("new_state", "last_changed"),
    ("new_state", "last_reported"),
    ("old_state", "last_updated"),
    ("old_state", "last_changed"),
    ("removed", "last_changed"),
    ("", "time_fired"),
    ("removed", "time_fired"),
)
NESTED = b"[" * 100_000 + b"]" * 100_000


def event(place: str, name: str, moment: str, *, number: int) -> bytes:
    """Return a state change of a separate entity with one absurd time in it."""
    entity_id = f"sensor.absurd_{number}"
    state = {
        "entity_id": entity_id,
        "state": "1",
        "attributes": {},
        "last_changed": GOOD_TIME,
        "last_updated": GOOD_TIME,
    }
    states: dict[str, Any] = {"old_state": dict(state), "new_state": dict(state)}
    fired = GOOD_TIME
    if name == "time_fired":
        fired = moment
    else:
        states["old_state" if place == "removed" else place][name] = moment
    if place == "removed":
        states["new_state"] = None
    data = {"entity_id": entity_id, **states}
    return json.dumps(
        {"event_type": "state_changed", "data": data, "time_fired": fired, "origin": "LOCAL"}
    ).encode()


async def until_balanced(running: Service, *, received: int) -> Any:
    """Wait until `received` events are accounted for, and return /health of that moment."""

    def balanced(health: Any) -> bool:
        events = health["accounting"]["events"]
        known = events["journaled"] + events["filtered"] + events["malformed"]
        return bool(events["received"] >= received and events["received"] == known)

    return await running.until("/health", balanced)


@pytest.fixture
def settings(environment: dict[str, str]) -> dict[str, str]:
    """Return settings with a short shutdown timeout."""
    return environment | {"SHUTDOWN_TIMEOUT": "4", "BATCH_TIMEOUT": "0.1"}


async def test_no_event_time_stops_the_service_or_its_next_start(
    settings: dict[str, str],
    home_assistant: FakeHomeAssistant,
    house: StillHouse,
    tmp_path: Path,
) -> None:
    """Every time field with every absurd year: each event is journaled or counted as malformed."""
    absurd = [
        event(*place, moment, number=number)
        for number, (place, moment) in enumerate(product(PLACES, TIMES))
    ]

    for _ in range(2):
        async with service(tmp_path, settings) as running:
            await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
            home_assistant.fire_many(absurd)
            house.set_state("sensor.good", "42")
            health = await until_balanced(running, received=len(absurd) + 1)
            gaps = await running.get("/api/v1/gaps")
            status = await running.stop()

        assert status == 0, running.output.read_text()
        assert 0 < health["accounting"]["events"]["malformed"] < len(absurd)
        assert isinstance(gaps["gaps"], list)
    assert "Traceback" not in running.output.read_text()


@pytest.mark.long
async def test_no_frame_stops_the_service_or_delays_its_stop(
    settings: dict[str, str],
    home_assistant: FakeHomeAssistant,
    house: StillHouse,
    tmp_path: Path,
) -> None:
    """Deep, long, broken or many: the service keeps answering and stops in time."""
    head = b'{"type":"event","event":{"event_type":"state_changed","data":'
    state = (
        b'{"entity_id":"sensor.x","new_state":{"state":%b,"last_changed":"'
        + GOOD_TIME.encode()
        + b'","last_updated":"'
        + GOOD_TIME.encode()
        + b'","attributes":%b}}'
    )
    many = b",".join(b'"a%d":%d' % (number, number) for number in range(300_000))
    frames = [
        head + state % (b'"1"', NESTED) + b"}}",
        head + state % (b'"1"', b'{"a":%b}' % NESTED) + b"}}",
        head + state % (b'"1"', b"{%b}" % many) + b"}}",
        head + state % (b'"1"', b'{"a":' + b"1" * 100_000 + b"}") + b"}}",
        head + state % (b'"' + b"x" * 20_000_000 + b'"', b"{}") + b"}}",
        head + state % (b'"\\ud800"', b'{"a":"\\udfff"}') + b"}}",
        head + state % (b'"\xff"', b'{"\xff":"\xff"}') + b"}}",
        head + state % (b'"1"', b'{"a":[NaN%b]}' % (b",1" * 10_000_000)) + b"}}",
        b'{"type":"event","event":{"event_type":"entity_registry_updated","data":%b}}' % NESTED,
        b'{"type":"' + b"a" * 1_000_000 + b'"}',
        b"[" + b"1," * 1_000_000 + b"1]",
        b"[" + b'{"type":"x"},' * 50_000 + b'{"type":"x"}]',
        b'[1,{"id":[' + b',{"id":[' * 100_000,
    ]
    async with service(tmp_path, settings) as running:
        for number, frame in enumerate(frames):
            await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
            home_assistant.send_raw(frame)
            house.set_state("sensor.good", str(number))
            await running.get("/health/live")
        await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
        house.set_state("sensor.good", "last")
        health = await until_balanced(running, received=len(frames) // 2)
        began = time.monotonic()
        status = await running.stop()

    assert status == 0, running.output.read_text()[-3000:]
    assert time.monotonic() - began < 4.0
    assert health["accounting"]["events"]["malformed"] > 0
    assert "Traceback" not in running.output.read_text()


async def test_no_command_result_stops_the_service(
    settings: dict[str, str],
    home_assistant: FakeHomeAssistant,
    house: StillHouse,
    tmp_path: Path,
) -> None:
    """Registry rows with absurd numbers, texts and times are read, repaired or skipped."""
    house.rows["entity"] = [
        {
            "entity_id": "sensor.good",
            "area_id": "kitchen",
            "unique_id": 10**300,
            "created_at": 1e300,
            "modified_at": -1e300,
            "supported_features": 2**70,
            "name": "\N{RIGHT-TO-LEFT OVERRIDE}\x1b[2J\nforged",
            "capabilities": {"a": [10**300]},
        },
        {"entity_id": "sensor.other", "labels": [1e300], "disabled_by": {"a": 1}},
    ]
    async with service(tmp_path, settings) as running:
        await running.until("/health", lambda health: health["discovery"]["entities"] == 2)
        house.set_state("sensor.good", "42")
        await until_balanced(running, received=1)
        entities = await running.get("/api/entities")
        status = await running.stop()

    assert status == 0, running.output.read_text()
    assert len(entities["entities"]) == 2
    assert "\x1b" not in running.output.read_text()


@pytest.mark.long
async def test_no_database_response_stops_the_service_or_delays_its_stop(
    settings: dict[str, str], house: StillHouse, tmp_path: Path
) -> None:
    """Absurd numbers and dates, and bodies of tens of kilobytes."""
    long = "a" * 60_000
    replies = [
        error(429, "busy", Retry_After="Mon, 01 Jan 99999999999999999999 00:00:00 GMT"),
        error(429, "busy", Retry_After="Fri, 31 Dec 9999 23:59:59 -2359"),
        error(500, long),
        Reply(status=500, body="<" * 60_000),
        Reply(status=500, body="x", headers={"Set-Cookie": f"a=b; Max-Age={'9' * 400}"}),
        Reply(status=302, body="", headers={"Location": "http://[" + long[:6_000]}),
    ]
    for reply in replies:
        folder = tmp_path / str(id(reply))
        folder.mkdir()
        influx = FakeInflux(reply)
        async with influx.serving():
            connected = {"INFLUXDB_URL": influx.url, "INFLUXDB_TOKEN": influx.token}
            async with service(folder, settings | connected) as running:
                await running.until(
                    "/health", lambda health: health["subscription"]["is_subscribed"]
                )
                house.set_state("sensor.good", "42")
                await influx.wait_for(lambda fake: bool(fake.requests), within_s=20)
                await running.get("/health")
                began = time.monotonic()
                status = await running.stop()

        assert status == 0, running.output.read_text()
        assert time.monotonic() - began < 4.0
