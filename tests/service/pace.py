"""A home whose states change at a constant rate."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from tests.fakes.still_house import StillHouse

_ENTITIES = 50
_TURN_S = 0.01
_MOST_PER_TURN = 500


class Count:
    """The number of changes so far; their states are the integers below it."""

    def __init__(self, changes: int = 0) -> None:
        self.changes = changes


@contextlib.asynccontextmanager
async def changing(
    house: StillHouse, *, per_s: float, count: Count | None = None
) -> AsyncIterator[None]:
    """Change states `per_s` times a second until the block ends; each state occurs once.

    With a `count`, continue where an earlier block with the same count ended.
    """
    task = asyncio.create_task(_change(house, per_s, count or Count()), name="pace")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.result()


async def _change(house: StillHouse, per_s: float, count: Count) -> None:
    begun, before = time.perf_counter(), count.changes
    while True:
        due = before + int((time.perf_counter() - begun) * per_s)
        for number in range(count.changes, min(due, count.changes + _MOST_PER_TURN)):
            house.set_state(f"sensor.number_{number % _ENTITIES}", str(number))
            count.changes = number + 1
        await asyncio.sleep(_TURN_S)
