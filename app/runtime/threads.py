"""Threads that do not keep the process from ending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Read = TypeVar("Read")


async def in_thread(work: Callable[[], Read]) -> Read:
    """Run what may block forever in a thread that does not keep the process from ending."""
    future: Future[Read] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as exc:  # noqa: BLE001 - raised again where it is awaited
            future.set_exception(exc)

    threading.Thread(target=run, daemon=True, name="in_thread").start()
    return await asyncio.wrap_future(future)
