"""The contract of Home Assistant's answers, asked of the fake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import pytest

from app.homeassistant.commands import open_commands
from app.homeassistant.endpoint import Endpoint
from simulator.fake_home_assistant import FakeHomeAssistant
from tests.contracts.home_assistant import Home, HomeAssistantContract
from tests.fakes.recordings import recording
from tests.fakes.still_house import StillHouse, now

TOKEN = "fake-token-0123456789-0123456789-0123456789"


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    """A still house with the registries of a recorded home."""
    house = StillHouse(clock=now)
    for kind in ("device", "entity", "area", "floor", "label"):
        answer = recording("2025.4.4", f"config_{kind}_registry_list")
        house.rows[kind] = answer["result"]

    async def set_state(entity_id: str, state: str, attributes: Mapping[str, object]) -> None:
        house.set_state(entity_id, state, attributes)

    async def remove(entity_id: str) -> None:
        house.remove(entity_id)

    async with FakeHomeAssistant(house, token=TOKEN) as fake:
        endpoint = Endpoint(
            fake.url,
            token=TOKEN,
            ssl_verify=True,
        )
        async with open_commands(endpoint) as commands:
            yield Home(call=commands.call, set_state=set_state, remove=remove)


class TestFake(HomeAssistantContract):
    """In `make test`."""
