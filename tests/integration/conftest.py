"""A home that changes only when a test changes it, its Home Assistant, and who captures it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.captured_home import TOKEN, CapturedHome
from tests.fakes.still_house import StillHouse, now


@pytest.fixture
def house() -> StillHouse:
    """A home whose clock is ours."""
    return StillHouse(clock=now)


@pytest.fixture
async def fake(house: StillHouse) -> AsyncIterator[FakeHomeAssistant]:
    """Home Assistant for that home."""
    async with FakeHomeAssistant(house, token=TOKEN) as server:
        house.fire = server.fire
        yield server


@pytest.fixture
def home(house: StillHouse, fake: FakeHomeAssistant, tmp_path: Path) -> CapturedHome:
    """The home, its Home Assistant, and the folder of the journal."""
    return CapturedHome(house, fake, tmp_path)
