"""WebSocket client for Home Assistant: the event stream, with reconnects."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Protocol

import msgspec

from app.health import ConnectionStatus
from app.homeassistant.commands import Commands, open_commands
from app.homeassistant.endpoint import Endpoint, closes_translated, exchange, log_malformed
from app.homeassistant.frames import FrameSocket
from app.homeassistant.messages import Event
from app.homeassistant.protocol import Phase, Received, Session
from app.homeassistant.reconnect import ReconnectPolicy
from app.homeassistant.status import Config, SourceStatus, advice_of
from app.runtime.errors import (
    SourceAuthRejected,
    SourceError,
    SourceProtocolError,
    SourceUnavailable,
)
from app.runtime.logging import RateLimitedLog, shown_url
from app.runtime.metrics import Telemetry
from app.runtime.retry import contained
from app.runtime.tolerant_json import UNREADABLE

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

_BATCH_EVENTS = 50
"""Enough to share the cost of a batch, and few enough to stay in the processor's caches: with 200
an event costs a quarter more."""


class Listener(Protocol):
    """The receiver of events. No method may wait: Home Assistant disconnects slow readers."""

    def changed(self, events: Sequence[Event]) -> None:
        """Process `state_changed` events, in order."""
        ...

    def registry_updated(self, event: Event) -> None:
        """Process a `*_registry_updated` event."""
        ...

    def connected(self, *, was_absent: bool) -> None:
        """Expect events from now on.

        `was_absent`: at least one attempt failed before the first connection of this process.
        """
        ...

    def lost(self) -> None:
        """Expect no more events over the connection that had been reported."""
        ...


class HomeAssistantSource:
    """The event stream from Home Assistant, over as many connections as it takes."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        reconnect: ReconnectPolicy,
        telemetry: Telemetry,
        steady_s: float = 30.0,
        readiness_poll_s: float = 5.0,
    ) -> None:
        """Store the parts.

        Args:
            endpoint: opens connections.
            reconnect: the delays between attempts.
            telemetry: counts received and malformed messages.
            steady_s: after this long, a subscribed connection is good even without an event.
            readiness_poll_s: the interval of asking Home Assistant whether it is RUNNING.
        """
        self._endpoint = endpoint
        self._reconnect = reconnect
        self._telemetry = telemetry
        self._steady_s = steady_s
        self._readiness_poll_s = readiness_poll_s
        self._status = SourceStatus()
        self._is_subscribed = False
        """Whether the current or latest attempt has reached the subscription."""
        self._is_proved = False
        """Whether it has received an event, or lasted `steady_s`."""
        self._live: tuple[FrameSocket, Session] | None = None
        """The connection that streams events."""
        self._pongs: dict[int, asyncio.Future[bool]] = {}
        """By command id: True once a ping on it is answered, False if the connection is lost."""

    def status(self) -> ConnectionStatus:
        """Return the status of the connection as of now."""
        return self._status.snapshot(self._reconnect.breaker)

    @property
    def is_running(self) -> bool:
        """Whether Home Assistant has reported RUNNING over this connection."""
        return self._status.is_running

    @property
    def missing_component(self) -> str | None:
        """The integration that history needs and Home Assistant runs without, if any."""
        return self._status.missing_component

    def commands(self) -> contextlib.AbstractAsyncContextManager[Commands]:
        """Open a second connection, for commands."""
        return open_commands(self._endpoint)

    async def caught_up(self) -> None:
        """Wait until the listener has every event that Home Assistant has sent so far.

        Home Assistant sends in order, so the answer to a ping comes after every event.

        Raises:
            SourceError: no events stream, or the connection was lost meanwhile.
        """
        if self._live is None:
            raise SourceUnavailable("Home Assistant is not connected")
        socket, session = self._live
        command_id, frame = session.command("ping")
        pong = self._pongs[command_id] = asyncio.get_running_loop().create_future()
        timeout_s = self._endpoint.command_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                with closes_translated():
                    await socket.send(frame, text=True)
                if not await pong:
                    raise SourceUnavailable("The connection was lost")
        except TimeoutError as exc:
            raise SourceProtocolError(f"No answer to a ping within {timeout_s:g} s") from exc
        finally:
            self._pongs.pop(command_id, None)

    async def run(self, listener: Listener) -> None:
        """Pass events to the listener until cancelled, reconnecting as needed.

        Raises:
            SourceUnavailable: `max_retries` reconnections failed in a row.
        """
        try:
            while True:
                try:
                    with contained("reading events", error=SourceProtocolError):
                        await self._stream(listener)
                except SourceError as exc:
                    delay_s = self._failed(exc)
                self._status.waiting(delay_s)
                try:
                    await asyncio.sleep(delay_s)
                finally:
                    self._status.waited()
        finally:
            self._status.state = "disconnected"

    async def _stream(self, listener: Listener) -> None:
        """Stream events over one connection until it ends, which always raises an error."""
        self._is_subscribed = self._is_proved = False
        self._status.connecting()
        async with self._endpoint.open() as socket:
            session = Session(self._endpoint.token)
            self._status.state = "authenticating"
            await self._endpoint.authenticate(socket, session)
            self._status.ha_version = session.ha_version
            self._status.state = "subscribing"
            first = await self._subscribe(socket, session)
            with self._streaming(listener, socket, session):
                async with self._watching_readiness():
                    for received in first:
                        self._deliver(received, listener)
                    while True:  # until an error: pings detect a silent peer
                        self._deliver_frames(await socket.frames(), session, listener)

    async def _subscribe(self, socket: FrameSocket, session: Session) -> list[Received]:
        """Wait for the answer to the subscription; return what was received until then."""
        received = []
        timeout_s = self._endpoint.command_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                while session.phase is Phase.SUBSCRIBING:
                    received.append(await exchange(socket, session))
        except TimeoutError as exc:
            raise SourceProtocolError(
                f"No answer to the subscription within {timeout_s:g} s"
            ) from exc
        return received

    @contextlib.contextmanager
    def _streaming(
        self, listener: Listener, socket: FrameSocket, session: Session
    ) -> Iterator[None]:
        was_absent = not self._status.successes and self._status.attempts > 1
        self._status.connected()
        self._is_subscribed = True
        self._live = (socket, session)
        proving = asyncio.get_running_loop().call_later(self._steady_s, self._prove)
        limited_log.info(
            "Connected to Home Assistant %s at %s",
            self._status.ha_version,
            shown_url(self._endpoint.url),
            topic="connections",
        )
        listener.connected(was_absent=was_absent)
        try:
            yield
        finally:
            proving.cancel()
            self._live = None
            for pong in self._pongs.values():
                if not pong.done():
                    pong.set_result(False)
            self._status.disconnected()
            listener.lost()

    def _prove(self) -> None:
        self._is_proved = True
        self._reconnect.streaming()
        limited_log.resolved("Home Assistant streams events again")

    @contextlib.asynccontextmanager
    async def _watching_readiness(self) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._watch_readiness(), name="home_assistant.readiness")
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait({watching})

    async def _watch_readiness(self) -> None:
        """Poll Home Assistant's own state until it is RUNNING."""
        while not self._status.is_running:
            try:
                with contained("asking whether it runs", error=SourceProtocolError):
                    async with self.commands() as commands:
                        answer = await commands.call("get_config")
                self._status.configured(msgspec.json.decode(answer, type=Config))
            except (SourceError, *UNREADABLE) as exc:
                logger.debug("Home Assistant did not say whether it runs: %s", exc)
            if not self._status.is_running:
                await asyncio.sleep(self._readiness_poll_s)

    def _deliver_frames(
        self, frames: Sequence[bytes], session: Session, listener: Listener
    ) -> None:
        """Deliver what has arrived; small frames of nothing but state changes in batches."""
        # The hot path: a batch shares the cost of counting, normalizing, encoding and queueing;
        # see "the whole way" in benchmarks/README.md.
        events: list[Event] = []
        try:
            for frame in frames:
                received = session.feed(frame)
                is_plain = received.is_plain
                if is_plain:
                    events += received.events
                if not is_plain or len(events) >= _BATCH_EVENTS:
                    self._changed(events, listener)
                    events = []
                if not is_plain:
                    self._deliver(received, listener)
        finally:  # also what came before a frame that ends the connection
            self._changed(events, listener)

    def _changed(self, events: Sequence[Event], listener: Listener) -> None:
        if not events:
            return
        self._telemetry.events_received(len(events))
        if not self._is_proved:
            self._prove()
        listener.changed(events)

    def _deliver(self, received: Received, listener: Listener) -> None:
        if malformed := received.malformed:
            self._telemetry.events_received(len(malformed))
            for frame in malformed:
                self._telemetry.events_malformed(1, kind=frame.kind)
        # Registry events first: a frame may hold a rename and the first state of the new id.
        for event in received.registry_events:
            listener.registry_updated(event)
        self._changed(received.events, listener)
        log_malformed(malformed)
        for answer in received.answers:
            if (pong := self._pongs.get(answer.command_id)) and not pong.done():
                pong.set_result(True)
            if answer.failure is not None:
                limited_log.info(
                    "Home Assistant refused %s; going on without",
                    answer.failure,
                    kind=str(answer.failure),
                    topic="connections",
                )

    def _failed(self, error: SourceError) -> float:
        """Record and log how an attempt or a connection ended; return the delay until the next.

        Raises:
            SourceUnavailable: there is no next attempt.
        """
        self._status.failed(error, was_subscribed=self._is_subscribed)
        delay_s = self._reconnect.delay_s(error, has_streamed=self._is_proved)
        if isinstance(error, SourceAuthRejected):
            assert delay_s is not None, "a refused token is tried again indefinitely"
            limited_log.error(
                "%s Next attempt in %.0fs", self._status.reason(), delay_s, kind="token"
            )
            return delay_s
        what = "Lost Home Assistant" if self._is_proved else "No connection to Home Assistant"
        why = f"{error}. {advice}" if (advice := advice_of(error)) else str(error)
        limited_log.warning("%s: %s", what, why, kind=f"{what}: {error}")
        if delay_s is None:
            logger.error(
                "Gave up on Home Assistant after %s reconnection attempts", self._reconnect.limit
            )
            raise SourceUnavailable(f"Home Assistant cannot be reached: {error}") from error
        # Of one kind, whatever the error: one line at first, then one summary for all.
        limited_log.info(
            "Reconnection attempt %s in %.1fs", self._reconnect.attempt, delay_s, kind="attempt"
        )
        return delay_s
