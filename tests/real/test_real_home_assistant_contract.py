"""The contract of Home Assistant's answers, checked with a real one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import httpx
import pytest

from app.homeassistant.commands import open_commands
from app.homeassistant.endpoint import Endpoint
from tests.contracts.home_assistant import Home, HomeAssistantContract
from tests.real.servers import HomeAssistant

# The first test includes the start of Home Assistant, minutes on a busy machine.
pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.fixture
async def home(home_assistant: HomeAssistant) -> AsyncIterator[Home]:
    """Yield Home Assistant with its demo devices, for a read-only user."""
    owner = {"Authorization": f"Bearer {home_assistant.token}"}
    endpoint = Endpoint(
        home_assistant.url.replace("http", "ws", 1) + "/api/websocket",
        token=home_assistant.read_only_token,
        ssl_verify=True,
    )
    async with (
        httpx.AsyncClient(base_url=home_assistant.url, headers=owner, timeout=30) as client,
        open_commands(endpoint) as commands,
    ):

        async def set_state(entity_id: str, state: str, attributes: Mapping[str, object]) -> None:
            body = {"state": state, "attributes": dict(attributes)}
            (await client.post(f"/api/states/{entity_id}", json=body)).raise_for_status()

        async def remove(entity_id: str) -> None:
            (await client.delete(f"/api/states/{entity_id}")).raise_for_status()

        yield Home(call=commands.call, set_state=set_state, remove=remove)


class TestRealHomeAssistant(HomeAssistantContract):
    """Runs in `make test-real`."""
