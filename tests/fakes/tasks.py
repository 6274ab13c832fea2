"""Tasks that belong together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence


async def until_one_ends(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait until one of the tasks has ended, then cancel the others and wait for them."""
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
