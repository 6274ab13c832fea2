"""Two instances, one of which is the data API of the other."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.still_house import StillHouse
from tests.service.process import TOKEN, Service, service

_KEY = "the-key-of-the-data-api"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _stored(running: Service) -> Any:
    async with httpx.AsyncClient(base_url=running.url, timeout=10) as client:
        headers = {"Authorization": f"Bearer {_KEY}"}
        devices = (await client.get("/api/devices", headers=headers)).json()["devices"]
        entities = (await client.get("/api/entities", headers=headers)).json()["entities"]
    return devices, entities


@pytest.mark.long
async def test_one_instance_can_be_the_data_api_of_another(
    tmp_path: Path,
    environment: dict[str, str],
    home_assistant: FakeHomeAssistant,
    house: StillHouse,
) -> None:
    """Rows arrive there, missed ones are sent later, and events never wait for it."""
    house.entries = [{"entry_id": "e1", "domain": "mqtt", "title": "Broker"}]
    house.put_row("device", {"id": "d1", "name": "Lamp", "config_entries": ["e1"]}, id_name="id")
    lamp = {"entity_id": "light.lamp", "device_id": "d1", "platform": "mqtt"}
    house.put_row("entity", lamp, id_name="entity_id")
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    port = _free_port()
    sender_settings = {
        **environment,
        "INSTANCE_NAME": "home",
        "DATA_API_URL": f"http://127.0.0.1:{port}",
        "DATA_API_KEY": _KEY,
        "CIRCUIT_BREAKER_RESET_SECONDS": "1",
        "BATCH_SIZE": "1",
        # Nothing listens at the proxy, and the data API must not be reached through it.
        "http_proxy": "http://127.0.0.1:9",
    }
    async with FakeHomeAssistant(StillHouse(), token=TOKEN) as elsewhere:
        receiver_settings = {
            "HOME_ASSISTANT_URL": elsewhere.url,
            "HOME_ASSISTANT_TOKEN": TOKEN,
            "API_KEY": _KEY,
            "WEBSOCKET_INGESTION_PORT": str(port),
        }
        async with service(here, sender_settings) as sender:
            # The data API is down: events are captured anyway, and /health gives the reason.
            health = await sender.until(
                "/health",
                lambda health: any("data API" in reason for reason in health["reasons"]),
            )
            house.set_state("light.lamp", "on")
            await sender.until("/api/v1/events", lambda page: page["count"] == 1)
            async with service(there, receiver_settings) as receiver:
                await sender.until("/health", lambda health: health["status"] == "healthy")
                devices, entities = await _stored(receiver)
                await receiver.stop()

            house.change_row("device", "id", "d1", name_by_user="Reading lamp")
            await sender.until("/health", lambda health: health["status"] == "degraded")
            async with service(there, receiver_settings) as receiver:
                await sender.until("/health", lambda health: health["status"] == "healthy")
                (renamed,), _ = await _stored(receiver)
                refused = await sender.post("/internal/devices/bulk_upsert", [])
                await receiver.stop()
            await sender.stop()

    assert health["accounting"]["events"]["dropped"] == {}
    (device,) = devices
    assert (device["device_id"], device["integration"], device["source"]) == ("d1", "mqtt", "home")
    assert [entity["entity_id"] for entity in entities] == ["light.lamp"]
    assert renamed["name"] == "Reading lamp"
    assert refused["code"] == "has_data_api"
