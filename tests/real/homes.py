"""A Home Assistant for tests in a browser: changes happen by themselves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from simulator.fake_home_assistant import FakeHomeAssistant
from simulator.home import SimulatedHome
from tests.service.process import TOKEN


@contextlib.asynccontextmanager
async def simulated_home(folder: Path) -> AsyncIterator[FakeHomeAssistant]:
    """Run the simulated home in this process; it accepts TOKEN."""
    house = SimulatedHome(folder / "house")
    async with FakeHomeAssistant(house, token=TOKEN) as home_assistant:
        living = asyncio.create_task(house.run(home_assistant.fire), name="house")
        try:
            yield home_assistant
        finally:
            living.cancel()
            await asyncio.wait({living})
