"""The registries of a real Home Assistant are listed, followed as they change, and stored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.real.servers import HomeAssistant
from tests.service.process import Service, service

pytestmark = pytest.mark.real

_QUICK = {"BATCH_SIZE": "1", "BATCH_TIMEOUT": "0.1", "JOURNAL_COMMIT_INTERVAL": "0.02"}
_LIGHT = "light.bed_light"


async def _asked(home_assistant: HomeAssistant, command: str, **parameters: object) -> Any:
    call = partial(home_assistant.call, command, token=home_assistant.token, **parameters)
    return await asyncio.to_thread(call)


async def _changed(home_assistant: HomeAssistant, entity_id: str, state: str) -> None:
    """Set an entity's state, as any API client may."""
    async with httpx.AsyncClient(base_url=home_assistant.url, timeout=10) as client:
        answer = await client.post(
            f"/api/states/{entity_id}",
            headers={"Authorization": f"Bearer {home_assistant.token}"},
            json={"state": state},
        )
    answer.raise_for_status()


async def _event(running: Service, entity_id: str, state: str) -> Mapping[str, Any]:
    """Return the event of a state."""

    def met(page: Any) -> bool:
        return any(event["state"] == state for event in page.get("events", ()))

    page = await running.until(f"/api/v1/events/{entity_id}", met)
    found: Mapping[str, Any] = next(event for event in page["events"] if event["state"] == state)
    return found


async def _until_area(
    home_assistant: HomeAssistant, running: Service, area_id: str | None, *, within_s: float
) -> float:
    """Change the light repeatedly until an event carries the area; return the seconds."""
    began = time.monotonic()
    number = 0
    while True:
        at_s = time.monotonic() - began
        state = f"{area_id}-{number}"
        await _changed(home_assistant, _LIGHT, state)
        if (await _event(running, _LIGHT, state))["area_id"] == area_id:
            return at_s
        assert at_s < within_s, f"not in {area_id} after {at_s:.1f} s"
        number += 1


def _reading(home_assistant: HomeAssistant, token: str) -> dict[str, str]:
    return {"HOME_ASSISTANT_URL": home_assistant.url, "HOME_ASSISTANT_TOKEN": token, **_QUICK}


async def _discovered(running: Service) -> Any:
    return await running.until(
        "/health",
        lambda health: (
            health["discovery"]["entities"] > 0 and health["subscription"]["is_subscribed"]
        ),
        timeout_s=60,
    )


@pytest.mark.parametrize("user", ["owner", "reader"])
async def test_all_registries_are_listed(
    home_assistant: HomeAssistant, tmp_path: Path, user: str
) -> None:
    """A read-only token is enough."""
    token = home_assistant.token if user == "owner" else home_assistant.read_only_token
    devices = await _asked(home_assistant, "config/device_registry/list")
    entities = await _asked(home_assistant, "config/entity_registry/list")
    entries = await _asked(home_assistant, "config_entries/get")

    async with service(tmp_path, _reading(home_assistant, token)) as running:
        health = await _discovered(running)
        found = await running.post("/api/v1/discovery/trigger", None)
        shown = await running.get("/api/devices?limit=1000")
        registered = await running.get("/api/entities?limit=1000")
        await running.stop()

    assert health["discovery"]["is_stale"] is False
    assert (found["devices"], found["entities"]) == (len(devices), len(entities))
    assert found["duration_seconds"] < 2
    domains = {entry["entry_id"]: entry["domain"] for entry in entries}
    assert {device["device_id"]: device["integration"] for device in shown["devices"]} == {
        device["id"]: domains[device["config_entries"][0]] for device in devices
    }
    assert {entity["entity_id"]: entity["platform"] for entity in registered["entities"]} == {
        entity["entity_id"]: entity["platform"] for entity in entities
    }


async def test_the_next_event_after_a_registry_change_carries_the_new_area(
    home_assistant: HomeAssistant, tmp_path: Path
) -> None:
    """Within 2 s of moving an entity or its device, or of deleting an area."""
    lab = (await _asked(home_assistant, "config/area_registry/create", name="Lab"))["area_id"]
    shed = (await _asked(home_assistant, "config/area_registry/create", name="Shed"))["area_id"]
    entity = await _asked(home_assistant, "config/entity_registry/get", entity_id=_LIGHT)
    update = partial(_asked, home_assistant, "config/entity_registry/update", entity_id=_LIGHT)

    async with service(tmp_path, _reading(home_assistant, home_assistant.token)) as running:
        await _discovered(running)
        seconds = []
        await update(area_id=lab)
        seconds.append(await _until_area(home_assistant, running, lab, within_s=2))

        await update(area_id=None)
        await _asked(
            home_assistant,
            "config/device_registry/update",
            device_id=entity["device_id"],
            area_id=shed,
        )
        seconds.append(await _until_area(home_assistant, running, shed, within_s=2))

        # The catalog is persistent: the first event after a restart is in the same series.
        await running.stop()
    async with service(tmp_path, _reading(home_assistant, home_assistant.token)) as running:
        await _discovered(running)
        await _changed(home_assistant, _LIGHT, "after the restart")
        restarted = await _event(running, _LIGHT, "after the restart")

        await _asked(home_assistant, "config/area_registry/delete", area_id=shed)
        seconds.append(await _until_area(home_assistant, running, None, within_s=2))
        await running.stop()

    assert restarted["area_id"] == shed
    assert max(seconds) < 2


async def test_a_renamed_entity_keeps_its_area(
    home_assistant: HomeAssistant, tmp_path: Path
) -> None:
    """From the removal of the old id to the first state under the new one."""
    entity_id, new_id = "light.kitchen_lights", "light.renamed_lights"
    area = await _asked(home_assistant, "config/area_registry/create", name="Renamed")
    update = partial(_asked, home_assistant, "config/entity_registry/update")
    await update(entity_id=entity_id, area_id=area["area_id"])

    async with service(tmp_path, _reading(home_assistant, home_assistant.token)) as running:
        await _discovered(running)
        await update(entity_id=entity_id, new_entity_id=new_id)
        removed = await running.until(
            f"/api/v1/events/{entity_id}", lambda page: page.get("count", 0) > 0
        )
        added = await running.until(
            f"/api/v1/events/{new_id}", lambda page: page.get("count", 0) > 0
        )
        shown = await running.until(f"/api/entities/{new_id}", lambda found: "entity_id" in found)
        await running.stop()

    assert removed["events"][0]["removed"] is True
    assert removed["events"][0]["area_id"] == area["area_id"]
    assert added["events"][-1]["area_id"] == area["area_id"]
    assert shown["area_id"] == area["area_id"]
