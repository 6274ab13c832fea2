"""Journals changes that were read back, slowly enough that live events do not wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from app.backfill.last_states import LastStates
from app.model import Change, Lines
from app.runtime.metrics import Telemetry

CHANGES_PER_APPEND = 200


class Append(Protocol):
    """Makes points durable, or raises a `StorageError`."""

    async def __call__(self, lines: Lines, *, received_at: float) -> None:
        """Append them to the journal."""


class BackfillWriter:
    """Journals changes in small appends, no faster than BACKFILL_RATE."""

    def __init__(
        self,
        append: Append,
        *,
        encode: Callable[[Sequence[Change]], Lines],
        last_states: LastStates,
        telemetry: Telemetry,
        points_per_s: float = 2_000.0,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`clock` gives seconds since the epoch."""
        self._append = append
        self._encode = encode
        self._last_states = last_states
        self._telemetry = telemetry
        self._points_per_s = points_per_s
        self._clock = clock
        self._sleep = sleep

    async def write(self, batches: Iterable[Sequence[Change]]) -> int:
        """Journal the changes of all batches, which are made one by one; return how many."""
        written, pending = 0, list[Change]()
        for batch in batches:
            pending += batch
            while len(pending) >= CHANGES_PER_APPEND:
                written += await self._write(pending[:CHANGES_PER_APPEND])
                del pending[:CHANGES_PER_APPEND]
            await asyncio.sleep(0)
        return written + await self._write(pending)

    async def _write(self, changes: Sequence[Change]) -> int:
        if changes:
            lines = self._encode(changes)
            await self._append(lines, received_at=self._clock())
            self._last_states.backfilled(changes)
            self._telemetry.points_backfilled(lines.points)
            await self._sleep(lines.points / self._points_per_s)
        return len(changes)
