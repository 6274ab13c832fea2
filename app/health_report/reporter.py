"""Reports the health of the service to Home Assistant: sensors, and a notification."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import NoReturn, Protocol, TypeVar

from app.health import Snapshot
from app.health_report.schedule import Schedule
from app.health_report.sensors import Notice, Reading, notice, readings
from app.runtime.errors import IngestError
from app.runtime.logging import RateLimitedLog
from app.runtime.retry import Backoff, contained

T_contra = TypeVar("T_contra", contravariant=True)
T = TypeVar("T")

_GOODBYE_S = 0.5
_REFRESH_S = 300.0
"""Also how soon it is noticed that a quiet broker is gone."""

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)


class ReportRefused(IngestError):
    """Health could not be published; the message says why."""


class Publisher(Protocol[T_contra]):
    """An open connection to the receiver of values."""

    async def publish(self, values: Mapping[str, T_contra]) -> None:
        """Publish values by their keys.

        Raises:
            ReportRefused: they were not accepted; the connection is unusable.
        """
        ...

    async def goodbye(self) -> None:
        """Publish that no more values come."""
        ...


class Channel(Protocol[T_contra]):
    """A way to a receiver of values."""

    name: str
    """What is reported, and by which way, for log messages."""

    def opened(self) -> AbstractAsyncContextManager[Publisher[T_contra]]:
        """Open a connection for as long as the block lasts.

        Raises:
            ReportRefused: there is none.
        """
        ...


class HealthReport:
    """Publishes the sensors and the notification, apart from each other and from all else."""

    def __init__(
        self,
        *,
        snapshot: Callable[[], Snapshot],
        sensors: Channel[Reading],
        notifications: Channel[Notice | None],
        backoffs: Callable[[], Backoff],
        interval_s: float = 30.0,
        check_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Store the parts.

        Each value is published at most once per `interval_s` unless the status changes, which is
        noticed within `check_s`.
        """
        self._snapshot = snapshot
        self._sensors = sensors
        self._notifications = notifications
        self._backoffs = backoffs
        self._interval_s = interval_s
        self._check_s = check_s
        self._clock = clock

    async def run(self) -> None:
        """Publish what changes, forever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._report(self._sensors, readings, refresh_s=_REFRESH_S))
            group.create_task(
                # Never again: a person may have dismissed it.
                self._report(self._notifications, _notices, refresh_s=math.inf)
            )

    async def _report(
        self,
        channel: Channel[T],
        read: Callable[[Snapshot], Mapping[str, T]],
        *,
        refresh_s: float,
    ) -> NoReturn:
        backoff = self._backoffs()
        while True:
            started_s = self._clock()
            try:
                with contained(f"reporting {channel.name}"):
                    schedule = Schedule[T](interval_s=self._interval_s, refresh_s=refresh_s)
                    await self._publish(channel, schedule, read)
            except IngestError as exc:
                limited_log.warning(
                    "Home Assistant does not get the %s: %s",
                    channel.name,
                    exc,
                    kind=str(exc),
                    topic=channel.name,
                )
            if self._clock() - started_s >= self._interval_s:
                backoff.reset()
            await asyncio.sleep(backoff.next_s())

    async def _publish(
        self,
        channel: Channel[T],
        schedule: Schedule[T],
        read: Callable[[Snapshot], Mapping[str, T]],
    ) -> NoReturn:
        """Publish over one connection until it fails."""
        async with channel.opened() as publisher:
            try:
                while True:
                    await self._publish_due(publisher, schedule, read)
                    limited_log.resolved(
                        "Home Assistant gets the %s again", channel.name, topic=channel.name
                    )
                    await asyncio.sleep(self._check_s)
            except asyncio.CancelledError:
                with contextlib.suppress(ReportRefused, TimeoutError):
                    async with asyncio.timeout(_GOODBYE_S):
                        await publisher.goodbye()
                raise

    async def _publish_due(
        self,
        publisher: Publisher[T],
        schedule: Schedule[T],
        read: Callable[[Snapshot], Mapping[str, T]],
    ) -> None:
        now = self._snapshot()
        due = schedule.due(
            read(now),
            urgency=(now.status, notice(now)),
            # A restart of Home Assistant removes notifications, and states set by its REST API.
            session=now.connection.successful_connections,
            now_s=self._clock(),
        )
        if due:
            await publisher.publish(due)


def _notices(snapshot: Snapshot) -> Mapping[str, Notice | None]:
    return {"notice": notice(snapshot)}
