"""Health in a real Home Assistant: by its REST API, and by a real broker and its integration."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.health_report.reporter import HealthReport
from app.health_report.rest import RestApi, RestNotifications, RestSensors
from app.health_report.sensors import SENSORS
from app.runtime.retry import Backoff
from tests.fakes.snapshots import HEALTHY
from tests.real.servers import Broker, HomeAssistant, mosquitto
from tests.service.process import service

# The first test includes the start of Home Assistant, minutes on a busy machine.
pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

IDS = {sensor.entity_id("websocket_ingestion_test") for sensor in SENSORS}
STATUS = "sensor.websocket_ingestion_test_status"


@pytest.fixture
def broker(home_assistant: HomeAssistant, tmp_path: Path) -> Iterator[Broker]:
    """Yield a broker that Home Assistant's MQTT integration uses."""
    with mosquitto(tmp_path) as broker:
        flow = "config/config_entries/flow"
        begun = home_assistant.request("POST", flow, handler="mqtt")
        done = home_assistant.request(
            "POST",
            f"{flow}/{begun['flow_id']}",
            broker="127.0.0.1",
            port=broker.port,
            username=broker.username,
            password=broker.password,
        )
        assert done["type"] == "create_entry", done
        try:
            yield broker
        finally:
            entry = done["result"]["entry_id"]
            home_assistant.request("DELETE", f"config/config_entries/entry/{entry}")


def settings(home_assistant: HomeAssistant, **others: str) -> dict[str, str]:
    """Return the settings of a service that reports as `test`."""
    return {
        "HOME_ASSISTANT_URL": home_assistant.url,
        "HOME_ASSISTANT_TOKEN": home_assistant.token,
        "INSTANCE_NAME": "test",
        **others,
    }


async def states(home_assistant: HomeAssistant) -> dict[str, Any]:
    """Return the states of our sensors by their ids."""
    every = await asyncio.to_thread(home_assistant.request, "GET", "states")
    return {each["entity_id"]: each for each in every if each["entity_id"] in IDS}


async def until(
    home_assistant: HomeAssistant, met: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Wait until our sensors have certain states."""
    async with asyncio.timeout(90):
        while not met(found := await states(home_assistant)):
            await asyncio.sleep(0.2)
    return found


async def notifications(home_assistant: HomeAssistant) -> dict[str, str]:
    """Return the messages of our notification, by id."""
    call = partial(home_assistant.call, "persistent_notification/get", token=home_assistant.token)
    every: Any = await asyncio.to_thread(call)
    return {
        each["notification_id"]: each["message"]
        for each in every
        if each["notification_id"].startswith("websocket_ingestion")
    }


async def test_the_sensors_appear_by_the_rest_api_and_are_not_captured(
    home_assistant: HomeAssistant, tmp_path: Path
) -> None:
    """With an administrator's token; a stop makes them unavailable."""
    environment = settings(home_assistant, HEALTH_IN_HOME_ASSISTANT="rest")
    async with service(tmp_path, environment) as running:
        found = await until(home_assistant, lambda found: set(found) == IDS)
        health = await running.until(
            "/health", lambda health: health["accounting"]["events"]["filtered"] > 0
        )
        stored = [await running.get(f"/api/v1/events/{entity_id}") for entity_id in IDS]
        assert await running.stop() == 0
    stopped = await states(home_assistant)

    assert found[STATUS]["state"] in {"healthy", "degraded"}
    assert found[STATUS]["attributes"]["friendly_name"] == "websocket-ingestion test Status"
    assert health["status"] != "unhealthy"
    assert [page["events"] for page in stored] == [[]] * len(IDS)
    assert {state["state"] for state in stopped.values()} == {"unavailable"}


async def test_the_sensors_appear_by_mqtt_with_a_device(
    home_assistant: HomeAssistant, broker: Broker, tmp_path: Path
) -> None:
    """The integration accepts each description; a kill makes them unavailable."""
    for entity_id in await states(home_assistant):
        path = f"states/{entity_id}"  # an id that another test has used would get a number
        await asyncio.to_thread(home_assistant.request, "DELETE", path)
    environment = settings(
        home_assistant,
        HEALTH_IN_HOME_ASSISTANT="auto",
        MQTT_URL=f"mqtt://127.0.0.1:{broker.port}",
        MQTT_USERNAME=broker.username,
        MQTT_PASSWORD=broker.password,
    )
    async with service(tmp_path, environment) as running:
        found = await until(
            home_assistant,
            lambda found: (
                set(found) == IDS
                and found[STATUS]["state"] in {"healthy", "degraded"}
                and found["sensor.websocket_ingestion_test_gaps_open"]["state"].isdigit()
                and found["binary_sensor.websocket_ingestion_test_database_reachable"]["state"]
                == "on"
            ),
        )
        entities: Any = await asyncio.to_thread(
            home_assistant.call, "config/entity_registry/list", token=home_assistant.token
        )
        running.process.kill()
        await running.process.wait()
    await until(
        home_assistant,
        lambda found: {state["state"] for state in found.values()} == {"unavailable"},
    )

    ours = {each["entity_id"]: each for each in entities if each["entity_id"] in IDS}
    assert {each["platform"] for each in ours.values()} == {"mqtt"}
    assert {each["unique_id"] for each in ours.values()} == {
        f"websocket_ingestion_test_{sensor.key}" for sensor in SENSORS
    }
    assert len({each["device_id"] for each in ours.values()} - {None}) == 1
    assert isinstance(found[STATUS]["attributes"]["reasons"], list)


@pytest.mark.parametrize("is_admin", [True, False])
async def test_the_notification_is_shown_while_data_is_at_risk(
    home_assistant: HomeAssistant, *, is_admin: bool
) -> None:
    """Any user's token is enough for it."""
    token = home_assistant.token if is_admin else home_assistant.read_only_token
    url = home_assistant.url.replace("http", "ws") + "/api/websocket"
    api = RestApi(url, token=token, ssl_verify=True)
    journal = replace(HEALTHY.journal, reason="Events are not durable.")
    now = [replace(HEALTHY, journal=journal)]
    report = HealthReport(
        snapshot=lambda: now[0],
        sensors=RestSensors(api, instance="test"),
        notifications=RestNotifications(api, instance="test"),
        backoffs=partial(Backoff, first_s=0.1, max_s=0.2),
        check_s=0.1,
    )
    running = asyncio.create_task(report.run())
    try:
        async with asyncio.timeout(60):
            while not (shown := await notifications(home_assistant)):
                await asyncio.sleep(0.1)
            now[0] = HEALTHY
            while await notifications(home_assistant):
                await asyncio.sleep(0.1)
    finally:
        running.cancel()
        await asyncio.wait([running])

    assert shown == {"websocket_ingestion_test_data_at_risk": "Events are not durable."}
