"""A home in which something changes all the time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from tests.fakes.still_house import StillHouse

_ENTITIES = 50
_TURN_S = 0.01
_MOST_PER_TURN = 500


@contextlib.asynccontextmanager
async def changing(house: StillHouse, *, per_s: float) -> AsyncIterator[None]:
    """Let the home change so often until the block ends; each state occurs once."""
    task = asyncio.create_task(_change(house, per_s), name="pace")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.result()


async def _change(house: StillHouse, per_s: float) -> None:
    begun = time.perf_counter()
    changes = 0
    while True:
        due = int((time.perf_counter() - begun) * per_s)
        for number in range(changes, min(due, changes + _MOST_PER_TURN)):
            house.set_state(f"sensor.number_{number % _ENTITIES}", str(number))
            changes = number + 1
        await asyncio.sleep(_TURN_S)
