"""Keeping the catalog current: when to list the registries again, and who is told."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

import msgspec

from app.discovery.catalog import Catalog
from app.discovery.registries import KINDS, Kind, Registries, list_registries
from app.health import DiscoveryStatus
from app.homeassistant.messages import Event
from app.runtime.errors import SourceError, SourceProtocolError, SourceUnavailable
from app.runtime.logging import RateLimitedLog
from app.runtime.retry import Backoff, contained

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

_QUIET_S = 0.25
"""A registry event is followed by others; this long after the last of them they are listed."""
_PATIENCE_S = 1.0
"""And at the latest this long after the first."""
_REST = 4
"""After a refresh that took a second, this many seconds are for other things."""
_STALE_AFTER_INTERVALS = 2
_LOOK_EVERY_S = 30.0


_LISTED_FOR: Mapping[str, tuple[Kind, ...]] = {
    # What a new device belongs to may be new as well, and has no event of its own.
    "device_registry_updated": ("device", "config_entry"),
    "entity_registry_updated": ("entity",),
    "area_registry_updated": ("area",),
    "floor_registry_updated": ("floor",),
    "label_registry_updated": ("label",),
}


class Commands(Protocol):
    """A connection for questions."""

    async def call(self, command: str) -> msgspec.Raw:
        """Return the result of a command, or raise a `SourceError`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshResult:
    """What one refresh found."""

    devices: int
    entities: int
    areas: int
    took_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryUpdate:
    """The registries after a refresh, and before it."""

    former: Registries
    now: Registries
    at: datetime
    whole: bool
    """Whether all registries were listed, and not just those that an event named."""


class RefreshListener(Protocol):
    """Whoever is told after each refresh. It keeps its own troubles to itself."""

    async def refreshed(self, news: RegistryUpdate) -> None:
        """Take the news; the next refresh waits for this."""
        ...


class Discovery:
    """Lists the registries on every connection, every interval, and when they change.

    They are asked for over a connection of their own, so that no answer delays an event.
    """

    def __init__(
        self,
        *,
        ask: Callable[[], AbstractAsyncContextManager[Commands]],
        catalog: Catalog,
        followers: Sequence[RefreshListener] = (),
        backoff: Backoff,
        interval_s: float,
        quiet_s: float = _QUIET_S,
        patience_s: float = _PATIENCE_S,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what opens a connection for questions, and the seconds between two refreshes.

        `quiet_s` and `patience_s` are how long events may gather before they are acted on.
        """
        self._ask = ask
        self._catalog = catalog
        self._followers = tuple(followers)
        self._backoff = backoff
        self._interval_s = interval_s
        self._quiet_s = quiet_s
        self._patience_s = patience_s
        self._now = now
        self._clock = clock
        self._started = now()
        self._connected = False
        self._wanted: set[Kind] = set()
        self._first_wanted_at = 0.0
        self._due_at = 0.0
        self._rest_until = 0.0
        self._whole_at = clock()
        """When all registries were last listed."""
        self._stir = asyncio.Event()
        self._waiting: list[asyncio.Future[RefreshResult]] = []
        self._failure: SourceError | None = None

    @property
    def known(self) -> bool:
        """Whether the registries are known, from Home Assistant or from the last run."""
        return self._catalog.last_refresh is not None

    def status(self) -> DiscoveryStatus:
        """Return what is known and whether it is out of date."""
        status = self._catalog.status()
        age = self._now() - (status.last_refresh or self._started)
        limit = timedelta(seconds=_STALE_AFTER_INTERVALS * self._interval_s)
        if age <= limit:
            return status
        return replace(status, is_stale=True, reason=self._stale_reason(age))

    def connected(self) -> None:
        """List everything now: whatever changed while we were away is not known."""
        self._connected = True
        self._rest_until = 0.0
        self._want(KINDS, at_once=True)

    def lost(self) -> None:
        """Ask nothing until the next connection."""
        self._connected = False
        self._disappoint(SourceUnavailable("The connection to Home Assistant was lost"))

    def registry_updated(self, event: Event) -> None:
        """List again what an event says has changed; of its values only ids are believed."""
        data = event.data
        if event.event_type == "entity_registry_updated" and data.old_entity_id and data.entity_id:
            # The removal of the old state and the first state under the new id follow at once.
            self._catalog.rename(data.entity_id, former=data.old_entity_id)
        self._want(_LISTED_FOR.get(event.event_type, KINDS))

    async def trigger(self) -> RefreshResult:
        """List everything now and return what was found.

        Raises:
            SourceError: Home Assistant could not be asked.
        """
        if not self._connected:
            raise SourceUnavailable("Home Assistant is not connected")
        waiting: asyncio.Future[RefreshResult] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._rest_until = 0.0
        self._want(KINDS, at_once=True)
        return await waiting

    async def run(self, refreshed: Callable[[], None]) -> None:
        """Refresh the catalog whenever it is time, for ever; `refreshed` is told first."""
        try:
            while True:
                await self._until_due()
                periodic = self._is_periodic()
                wanted, self._wanted = self._wanted, set()
                waiting, self._waiting = self._waiting, []
                kinds = KINDS if periodic else tuple(wanted)
                try:
                    with contained("listing registries", error=SourceProtocolError):
                        found = await self._refresh(kinds, periodic=periodic, refreshed=refreshed)
                except SourceError as exc:
                    self._failed(exc, wanted)
                    _answer(waiting, exc)
                else:
                    _answer(waiting, found)
                finally:
                    _answer(waiting, SourceUnavailable("The service is stopping"))
        finally:
            self._disappoint(SourceUnavailable("The service is stopping"))

    async def _refresh(
        self, kinds: Collection[Kind], *, periodic: bool, refreshed: Callable[[], None]
    ) -> RefreshResult:
        began = self._clock()
        if periodic:
            logger.info("PERIODIC DISCOVERY REFRESH")
        former = self._catalog.registries
        async with self._ask() as commands:
            registries = await list_registries(commands.call, kinds=kinds, former=former)
        await self._catalog.replace_gently(registries)
        refreshed()
        self._backoff.reset()
        self._failure = None
        limited_log.resolved("Home Assistant lists its registries again")
        whole = len(kinds) == len(KINDS)
        if whole:
            self._whole_at = began
        news = RegistryUpdate(former=former, now=registries, at=self._now(), whole=whole)
        for follower in self._followers:
            await follower.refreshed(news)
        found = RefreshResult(
            devices=len(registries.devices),
            entities=len(registries.entities),
            areas=len(registries.areas),
            took_s=self._clock() - began,
        )
        self._rest_until = self._clock() + _REST * found.took_s
        self._say(found, whole=whole, periodic=periodic)
        return found

    def _say(self, found: RefreshResult, *, whole: bool, periodic: bool) -> None:
        message = "Discovered %d devices, %d entities, %d areas in %.2fs"
        counts = (found.devices, found.entities, found.areas, found.took_s)
        if whole:  # a connection that is lost again and again lists them as often
            limited_log.info(message, *counts, topic="findings")
        else:
            logger.debug(message, *counts)
        if periodic:
            logger.info("Periodic discovery refresh completed successfully")

    def _failed(self, exc: SourceError, wanted: Collection[Kind]) -> None:
        wait_s = self._backoff.next_s()
        limited_log.warning(
            "Discovery failed, next attempt in %.1fs: %s",
            wait_s,
            exc,
            kind=type(exc).__name__,
        )
        self._failure = exc
        self._rest_until = self._clock() + wait_s
        if wanted:
            self._want(wanted, at_once=True)

    def _want(self, kinds: Iterable[Kind], *, at_once: bool = False) -> None:
        now = self._clock()
        if not self._wanted:
            self._first_wanted_at = now
        self._wanted.update(kinds)
        latest = self._first_wanted_at + self._patience_s
        self._due_at = now if at_once else min(now + self._quiet_s, latest)
        self._stir.set()

    def _is_periodic(self) -> bool:
        """Whether it is the interval, and no connection or person, that wants a refresh now."""
        over = self._clock() >= self._whole_at + self._interval_s
        return over and len(self._wanted) < len(KINDS)

    async def _until_due(self) -> None:
        while (wait_s := self._wait_s()) > 0:
            self._stir.clear()
            try:
                async with asyncio.timeout(min(wait_s, _LOOK_EVERY_S)):
                    await self._stir.wait()
            except TimeoutError:
                self._warn_if_stale()

    def _wait_s(self) -> float:
        """Return the seconds until the next refresh; 0 or less for now."""
        if not self._connected:
            return _LOOK_EVERY_S
        due_at = self._whole_at + self._interval_s
        if self._wanted:
            due_at = min(due_at, self._due_at)
        return max(due_at, self._rest_until) - self._clock()

    def _warn_if_stale(self) -> None:
        status = self.status()
        if status.is_stale:
            limited_log.warning("%s", status.reason, kind="stale")

    def _stale_reason(self, age: timedelta) -> str:
        why = f": {self._failure}" if self._failure else ""
        return (
            f"Devices, entities and areas were not refreshed for {age.total_seconds() / 60:.0f}"
            f" min{why}. Check the connection to Home Assistant and the rights of the token."
        )

    def _disappoint(self, exc: SourceError) -> None:
        waiting, self._waiting = self._waiting, []
        _answer(waiting, exc)


def _answer(
    waiting: Iterable[asyncio.Future[RefreshResult]], answer: RefreshResult | SourceError
) -> None:
    for future in waiting:
        if future.done():
            continue
        if isinstance(answer, SourceError):
            future.set_exception(answer)
        else:
            future.set_result(answer)
