"""Supervision of the service's loops: one that ends early stops the service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import TypeAlias

Loop: TypeAlias = Callable[[], Coroutine[None, None, None]]

_CLOSING_S = 1.5
"""At most this much of the time for stopping is reserved for closing files."""
_FAILURE_S = 5.0
"""How long the service may take to end after a loop did."""

logger = logging.getLogger(__name__)


def ask_to_stop() -> None:
    """Send SIGTERM to this process, so that everything is closed in order."""
    os.kill(os.getpid(), signal.SIGTERM)


class Supervisor:
    """Runs named loops; stops the service when one ends before its block is left.

    `grace_s` is the time for stopping: for all loops together, and for closing files.
    """

    def __init__(self, *, grace_s: float, on_failure: Callable[[], None] = ask_to_stop) -> None:
        self.failures: dict[str, str] = {}
        """Loops that ended early, with the reason."""
        self._grace_s = grace_s
        self._on_failure = on_failure
        self._stop_by: float | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def remaining_s(self) -> float:
        """Seconds left for loops to finish; only after `begin_stop`."""
        assert self._stop_by is not None
        return max(0.0, self._stop_by - time.monotonic())

    def begin_stop(self) -> None:
        """Start the grace period; later calls change nothing."""
        self._stop_within(self._grace_s)

    def cancel(self, name: str) -> None:
        """Cancel one loop before its block is left; an unknown name is ignored."""
        task = self._tasks.get(name)
        if task is not None:
            task.remove_done_callback(self._ended_early)
            task.cancel()

    @contextlib.asynccontextmanager
    async def running(
        self, loops: Mapping[str, Loop], *, finish: Callable[[], None] | None = None
    ) -> AsyncIterator[None]:
        """Run the loops, by name, for as long as the block lasts.

        On leaving, `finish` signals that no more work comes, and the loops have the rest of the
        grace period to end by themselves; without `finish` they are cancelled.
        """
        tasks = {asyncio.create_task(loop(), name=name) for name, loop in loops.items()}
        for task in tasks:
            self._tasks[task.get_name()] = task
            task.add_done_callback(self._ended_early)
        try:
            yield
        finally:
            self.begin_stop()
            await self._end(tasks, finish)

    async def _end(self, tasks: set[asyncio.Task[None]], finish: Callable[[], None] | None) -> None:
        for task in tasks:
            task.remove_done_callback(self._ended_early)
            del self._tasks[task.get_name()]
        if finish is not None:
            finish()
            await asyncio.wait(tasks, timeout=self.remaining_s)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            failed = not task.cancelled() and task.exception() is not None
            if failed and task.get_name() not in self.failures:
                logger.error("%s failed while stopping", task.get_name(), exc_info=task.exception())

    def _stop_within(self, grace_s: float) -> None:
        stop_by = time.monotonic() + grace_s - min(_CLOSING_S, grace_s / 3)
        self._stop_by = min(stop_by, self._stop_by or stop_by)

    def _ended_early(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            why = "it was cancelled"
        elif exc := task.exception():
            why = f"{type(exc).__name__}: {exc}"
            logger.critical("The %s loop ended: %s", task.get_name(), why, exc_info=exc)
        else:
            why = "it returned"
        self.failures[task.get_name()] = why
        self._stop_within(min(_FAILURE_S, self._grace_s))
        self._on_failure()
