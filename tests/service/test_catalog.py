"""The catalog of a running service: across restarts, and as the registries change."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.influx import FakeInflux
from tests.fakes.still_house import StillHouse
from tests.service.process import Service, service

_QUICK = {"BATCH_SIZE": "1", "BATCH_TIMEOUT": "0.1"}


def furnish(house: StillHouse) -> None:
    """Add a lamp in the hall to the registries."""
    house.put_row("area", {"area_id": "hall", "name": "Hall"}, id_name="area_id")
    house.put_row("device", {"id": "d1", "area_id": "hall", "name": "Lamp"}, id_name="id")
    lamp = {"entity_id": "light.lamp", "device_id": "d1", "platform": "demo"}
    house.put_row("entity", lamp, id_name="entity_id")


async def placed(running: Service, entity_id: str, *, count: int) -> list[str | None]:
    """Wait for `count` events of an entity and return their areas, oldest first."""
    page: Any = await running.until(
        f"/api/v1/events/{entity_id}", lambda page: page.get("count") == count
    )
    return [event["area_id"] for event in reversed(page["events"])]


async def connected(running: Service, fake: FakeHomeAssistant) -> None:
    """Wait until the service is subscribed to events."""
    await running.until(
        "/health",
        lambda health: health["subscription"]["is_subscribed"] and fake.subscribers > 0,
    )


async def test_a_restart_changes_no_tag(
    tmp_path: Path,
    environment: dict[str, str],
    home_assistant: FakeHomeAssistant,
    house: StillHouse,
) -> None:
    """The catalog is read from disk before the first event, even if it cannot be listed."""
    furnish(house)
    async with service(tmp_path, {**environment, **_QUICK}) as running:
        await running.until("/health", lambda health: health["discovery"]["entities"] == 1)
        house.set_state("light.lamp", "on")
        await placed(running, "light.lamp", count=1)
        await running.stop()

    home_assistant.unknown_commands.add("config/entity_registry/list")
    async with service(tmp_path, {**environment, **_QUICK}) as running:
        await connected(running, home_assistant)
        house.set_state("light.lamp", "off")
        assert await placed(running, "light.lamp", count=2) == ["hall", "hall"]
        await running.stop()


async def test_an_area_change_applies_to_the_next_event(
    tmp_path: Path,
    environment: dict[str, str],
    home_assistant: FakeHomeAssistant,
    house: StillHouse,
) -> None:
    """A registry event is enough; no restart or refresh interval is needed."""
    furnish(house)
    async with service(tmp_path, {**environment, **_QUICK}) as running:
        await running.until("/health", lambda health: health["discovery"]["entities"] == 1)
        house.set_state("light.lamp", "on")
        await placed(running, "light.lamp", count=1)

        house.put_row("area", {"area_id": "attic", "name": "Attic"}, id_name="area_id")
        house.change_row("entity", "entity_id", "light.lamp", area_id="attic")
        await running.until(
            "/api/entities/light.lamp", lambda entity: entity.get("area_id") == "attic"
        )
        house.set_state("light.lamp", "off")

        assert await placed(running, "light.lamp", count=2) == ["hall", "attic"]
        await running.stop()


async def test_a_renamed_entity_keeps_its_area(
    tmp_path: Path,
    environment: dict[str, str],
    home_assistant: FakeHomeAssistant,
    house: StillHouse,
) -> None:
    """At once: from the removal of the old id to the first event of the new one."""
    furnish(house)
    async with service(tmp_path, {**environment, **_QUICK}) as running:
        await running.until("/health", lambda health: health["discovery"]["entities"] == 1)
        house.set_state("light.lamp", "on")

        house.rename("light.lamp", "light.reading")
        house.remove("light.lamp")
        house.set_state("light.reading", "on")

        assert await placed(running, "light.lamp", count=2) == ["hall", "hall"]
        assert await placed(running, "light.reading", count=1) == ["hall"]
        await running.stop()


async def test_the_ids_of_an_entity_are_known_across_renames_and_restarts(
    tmp_path: Path,
    environment: dict[str, str],
    home_assistant: FakeHomeAssistant,
    house: StillHouse,
) -> None:
    """Renamed while connected and while the service was down; this Home Assistant has no splits."""
    row = {"entity_id": "light.lamp", "platform": "demo", "unique_id": 1}
    house.put_row("entity", row, id_name="entity_id")
    async with service(tmp_path, {**environment, **_QUICK}) as running:
        await connected(running, home_assistant)
        await running.until("/health", lambda health: health["discovery"]["entities"] == 1)
        house.set_state("light.lamp", "on")
        house.rename_with_history("light.lamp", "light.reading")
        await running.until(
            "/api/v1/identity?entity_id=light.lamp",
            lambda identity: identity.get("entity_id") == "light.reading",
        )
        page: Any = await running.until(
            "/api/v1/events/light.reading", lambda page: page.get("count") == 1
        )
        await running.stop()
    house.rename_with_history("light.reading", "light.bedside")
    async with service(tmp_path, {**environment, **_QUICK}) as running:
        identity: Any = await running.until(
            "/api/v1/identity?entity_id=light.lamp",
            lambda identity: identity.get("entity_id") == "light.bedside",
        )
        await running.stop()

    names = identity["names"]
    assert [name["entity_id"] for name in names] == ["light.lamp", "light.reading", "light.bedside"]
    assert [name["since_source"] for name in names] == [None, "event", "registry"]
    assert moment(names[1]["first_point"]) == moment(page["events"][0]["time"])
    assert moment(names[0]["until"]) < moment(names[1]["first_point"]) < moment(names[1]["until"])
    commands = [command for each in home_assistant.conversations for command in each]
    assert "config/device_registry/list_composite_splits" in commands
    assert "splits" not in running.output.read_text()


def moment(text: str) -> datetime:
    """Return a time of the API."""
    return datetime.fromisoformat(text)


async def test_the_device_history_uses_the_same_pipeline_as_events(
    tmp_path: Path,
    environment: dict[str, str],
    home_assistant: FakeHomeAssistant,
    house: StillHouse,
) -> None:
    """Through the journal to every sink, without counting as events."""
    furnish(house)
    async with FakeInflux().serving() as influx:
        settings = {
            **environment,
            **_QUICK,
            "STORE_DEVICE_HISTORY_IN_INFLUXDB": "true",
            "EMBEDDED_STORE": "on",
            "INFLUXDB_URL": influx.url,
            "INFLUXDB_TOKEN": influx.token,
        }
        async with service(tmp_path, settings) as running:
            health = await running.until(
                "/health",
                lambda health: [sink["points_written"] for sink in health["sinks"]] == [2, 2],
            )
            await running.stop()

    assert sorted(line.partition(b",")[0] for line in influx.lines) == [b"devices", b"entities"]
    assert health["accounting"]["events"]["received"] == 0
    assert health["accounting"]["events"]["journaled"] == 0
    assert health["status"] == "healthy"


async def test_an_unavailable_entity_stays_in_its_series_across_a_restart(
    tmp_path: Path,
    environment: dict[str, str],
    home_assistant: FakeHomeAssistant,
    house: StillHouse,
) -> None:
    """Its events carry no class or unit, so the last known ones are used until it is available."""
    furnish(house)
    named = {"device_class": "power", "unit_of_measurement": "W"}
    async with service(tmp_path, {**environment, **_QUICK}) as running:
        await connected(running, home_assistant)
        house.set_state("sensor.meter", "1", {**named})
        house.set_state("sensor.meter", "unavailable", {})
        await placed(running, "sensor.meter", count=2)
        await running.stop()

    async with service(tmp_path, {**environment, **_QUICK}) as running:
        await connected(running, home_assistant)
        house.set_state("sensor.meter", "unknown", {})
        house.set_state("sensor.meter", "2", {"device_class": "power"})
        house.set_state("sensor.meter", "unavailable", {})
        await placed(running, "sensor.meter", count=5)
        page: Any = await running.get("/api/v1/events/sensor.meter")
        await running.stop()

    units = [event["unit_of_measurement"] for event in reversed(page["events"])]
    assert units == ["W", "W", "W", None, None]
    assert {event["device_class"] for event in page["events"]} == {"power"}
