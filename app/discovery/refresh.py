"""Keeps the catalog current: decides when the registries are listed again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import NoReturn, Protocol

import msgspec

from app.discovery.catalog import Catalog
from app.discovery.identity import identity_changes
from app.discovery.registries import KINDS, Kind, Registries, list_registries
from app.discovery.schedule import RefreshSchedule
from app.health import DiscoveryStatus
from app.homeassistant.messages import Event
from app.model import IdentityChange
from app.runtime.errors import IngestError, SourceError, SourceProtocolError, SourceUnavailable
from app.runtime.logging import RateLimitedLog
from app.runtime.retry import Backoff, contained, until_success
from app.runtime.time import utc_now

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

_SETTLE_S = 0.25
"""How long other registry events may follow the first one before the registries are listed."""
_PAUSE_FACTOR = 4
"""After a refresh, the next one waits this many times as long as it took."""
_STALE_AFTER_INTERVALS = 2
_CHECK_EVERY_S = 30.0

_LISTED_FOR: Mapping[str, tuple[Kind, ...]] = {
    # The config entry of a new device may be new as well, and has no event of its own.
    "device_registry_updated": ("device", "config_entry"),
    "entity_registry_updated": ("entity",),
    "area_registry_updated": ("area",),
    "floor_registry_updated": ("floor",),
    "label_registry_updated": ("label",),
}


class RegistryCommands(Protocol):
    """A connection for commands."""

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
    """The registries before and after a refresh."""

    former: Registries
    now: Registries
    at: datetime
    is_full: bool
    """Whether all registries were listed, and not just those that an event named."""
    changes: Sequence[IdentityChange] = ()
    """Ids, devices and areas that changed, in order."""


class RefreshListener(Protocol):
    """Called after each refresh; handles its own errors."""

    async def refreshed(self, update: RegistryUpdate) -> None:
        """Handle a refresh; the next one waits for this."""
        ...


class Discovery:
    """Lists the registries on every connection, every interval, and when they change.

    It uses a connection of its own, so that no response delays an event.
    """

    def __init__(
        self,
        *,
        commands: Callable[[], AbstractAsyncContextManager[RegistryCommands]],
        catalog: Catalog,
        listeners: Sequence[RefreshListener] = (),
        backoff: Backoff,
        interval_s: float,
        first_seen_ns: Callable[[str], int | None] = lambda _: None,
        settle_s: float = _SETTLE_S,
        now: Callable[[], datetime] = utc_now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Store the parts.

        `commands` opens a connection for commands; a full refresh happens every `interval_s`.
        `first_seen_ns` returns when an entity id last appeared live.
        """
        self._commands = commands
        self._catalog = catalog
        self._listeners = tuple(listeners)
        self._backoff = backoff
        self._interval_s = interval_s
        self._settle_s = settle_s
        self._first_seen_ns = first_seen_ns
        self._now = now
        self._clock = clock
        self._started = now()
        self._schedule = RefreshSchedule(interval_s=interval_s, clock=clock)
        self._changed = asyncio.Event()
        """Set when the next refresh may be due earlier than before."""
        self._waiters: list[asyncio.Future[RefreshResult]] = []
        self._failure: IngestError | None = None

    @property
    def known(self) -> bool:
        """Whether the registries are known, from Home Assistant or from the last run."""
        return self._catalog.last_refresh is not None

    def status(self) -> DiscoveryStatus:
        """Return what is known and whether it is out of date."""
        status = self._catalog.status()
        age = self._age(status)
        limit = timedelta(seconds=_STALE_AFTER_INTERVALS * self._interval_s)
        if age <= limit:
            return status
        return replace(status, is_stale=True, reason=self._stale_reason(age))

    def _age(self, status: DiscoveryStatus) -> timedelta:
        # The wall clock is used only for the age of a stored catalog: it may be set at any time.
        if (age_s := self._schedule.age_s()) is not None:
            return timedelta(seconds=age_s)
        return self._now() - (status.last_refresh or self._started)

    def connected(self) -> None:
        """List everything now: changes during a disconnection are not known."""
        self._schedule.is_connected = True
        self._request_all()

    def lost(self) -> None:
        """Send no command until the next connection."""
        self._schedule.is_connected = False
        self._fail_waiters(SourceUnavailable("The connection to Home Assistant was lost"))

    def registry_updated(self, event: Event) -> None:
        """Request a refresh of the registry that changed; the event itself has only ids."""
        data = event.data
        if event.event_type == "entity_registry_updated" and data.old_entity_id and data.entity_id:
            # The removal of the old state and the first state under the new id follow at once.
            at_s = event.time_fired.timestamp() if event.time_fired else None
            self._catalog.rename(data.entity_id, former=data.old_entity_id, at_s=at_s)
        kinds = _LISTED_FOR.get(event.event_type, KINDS)
        self._schedule.request(kinds, within_s=self._settle_s)
        self._changed.set()

    async def trigger(self) -> RefreshResult:
        """List everything now and return what was found.

        Raises:
            SourceError: Home Assistant could not be reached, or refused.
        """
        if not self._schedule.is_connected:
            raise SourceUnavailable("Home Assistant is not connected")
        waiter: asyncio.Future[RefreshResult] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._request_all()
        return await waiter

    async def run(self, refreshed: Callable[[], None]) -> NoReturn:
        """Refresh the catalog whenever it is due, indefinitely; call `refreshed` each time.

        `refreshed` is called before the listeners.
        """
        try:
            while True:
                await self._until_due()
                await until_success(
                    partial(self._refresh_due, refreshed),
                    backoff=self._backoff,
                    failed=self._failed,
                    sleep=self._pause,
                )
        finally:
            self._fail_waiters(SourceUnavailable("The service is stopping"))

    async def _refresh_due(self, refreshed: Callable[[], None]) -> None:
        kinds, is_periodic = self._schedule.take()
        waiters, self._waiters = self._waiters, []
        answer: RefreshResult | IngestError = SourceUnavailable("The service is stopping")
        try:
            with contained("listing registries", error=SourceProtocolError):
                if is_periodic:
                    logger.info("PERIODIC DISCOVERY REFRESH")
                answer = await self._refresh(kinds, refreshed)
                if is_periodic:
                    logger.info("Periodic discovery refresh completed successfully")
        except IngestError as exc:
            answer = exc
            if not is_periodic:  # else it is still due
                self._schedule.request(kinds)
            raise
        finally:
            _answer(waiters, answer)

    async def _refresh(
        self, kinds: Collection[Kind], refreshed: Callable[[], None]
    ) -> RefreshResult:
        began_s = self._clock()
        former = self._catalog.registries
        async with self._commands() as commands:
            registries = await list_registries(commands.call, kinds=kinds, former=former)
        await self._catalog.replace_gently(registries)
        refreshed()
        self._failure = None
        limited_log.resolved("Home Assistant lists its registries again")
        is_full = len(kinds) == len(KINDS)
        if is_full:
            self._schedule.all_listed(began_s)
        at = self._now()
        changes = identity_changes(
            former,
            registries,
            self._catalog.take_renames(),
            at=at,
            first_seen_ns=self._first_seen_ns,
        )
        update = RegistryUpdate(
            former=former, now=registries, at=at, is_full=is_full, changes=changes
        )
        for listener in self._listeners:
            await listener.refreshed(update)
        took_s = self._clock() - began_s
        self._schedule.pause(_PAUSE_FACTOR * took_s)
        counts = (len(registries.devices), len(registries.entities), len(registries.areas))
        message = "Discovered %d devices, %d entities, %d areas in %.2fs"
        if is_full:  # limited, because an unstable connection lists them at every attempt
            limited_log.info(message, *counts, took_s, topic="findings")
        else:
            logger.debug(message, *counts, took_s)
        devices, entities, areas = counts
        return RefreshResult(devices=devices, entities=entities, areas=areas, took_s=took_s)

    def _failed(self, exc: IngestError, wait_s: float) -> None:
        self._failure = exc
        limited_log.warning(
            "Discovery failed, next attempt in %.1fs: %s", wait_s, exc, kind=type(exc).__name__
        )

    def _request_all(self) -> None:
        self._schedule.request_all()
        self._changed.set()

    async def _pause(self, wait_s: float) -> None:
        """Wait after a failure; a new connection or a person cuts it short."""
        self._schedule.pause(wait_s)
        await self._until_due()

    async def _until_due(self) -> None:
        while (wait_s := self._schedule.wait_s()) > 0:
            self._changed.clear()
            try:
                async with asyncio.timeout(min(wait_s, _CHECK_EVERY_S)):
                    await self._changed.wait()
            except TimeoutError:
                self._warn_if_stale()

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

    def _fail_waiters(self, exc: SourceError) -> None:
        waiters, self._waiters = self._waiters, []
        _answer(waiters, exc)


def _answer(
    waiters: Iterable[asyncio.Future[RefreshResult]], answer: RefreshResult | IngestError
) -> None:
    for future in waiters:
        if future.done():
            continue
        if isinstance(answer, IngestError):
            future.set_exception(answer)
        else:
            future.set_result(answer)
