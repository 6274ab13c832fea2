"""The contract of Home Assistant's answers, asked of the fake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import pytest

from app.homeassistant.connection import HomeAssistantSource
from app.runtime.retry import Backoff, Breaker
from simulator.fake_home_assistant import FakeHomeAssistant
from tests.contracts.home_assistant import Home, HomeAssistantContract
from tests.fakes.points import new_telemetry
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
        source = HomeAssistantSource(
            fake.url,
            token=TOKEN,
            ssl_verify=True,
            backoff=Backoff(max_s=1.0),
            breaker=Breaker("Home Assistant", threshold=5, reset_s=1.0),
            telemetry=new_telemetry(),
            max_retries=0,
        )
        async with source.commands() as commands:
            yield Home(call=commands.call, set_state=set_state, remove=remove)


class TestFake(HomeAssistantContract):
    """In `make test`."""
