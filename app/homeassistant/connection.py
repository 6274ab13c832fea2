"""The connection to Home Assistant: sockets, reconnecting, and a second line for questions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.frames import CloseCode

from app.health import BreakerStatus, ConnectionState, ConnectionStatus
from app.homeassistant.frames import FrameSocket
from app.homeassistant.messages import Event
from app.homeassistant.protocol import MalformedFrame, Phase, Received, Session
from app.runtime.addresses import origin, redirect_target
from app.runtime.connection_errors import HOME_ASSISTANT, limited_mode, obstacle, refused_handshake
from app.runtime.errors import (
    SourceAuthRejected,
    SourceError,
    SourceProtocolError,
    SourceUnavailable,
)
from app.runtime.logging import RateLimitedLog, shown_url
from app.runtime.metrics import Telemetry
from app.runtime.retry import Backoff, Breaker, contained
from app.runtime.tls import ClientTls
from app.runtime.tolerant_json import UNREADABLE

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

# At DEBUG the library shows frames, and so the token: it never gets to see that level.
_wire_logger = logging.getLogger(f"{__name__}.wire")
_wire_logger.setLevel(logging.WARNING)

_RUNNING = "RUNNING"
_CLOSE_TIMEOUT_S = 0.3
_BATCH_EVENTS = 50
"""Enough to share what a batch costs, and few enough to be worked on while they are in the
processor's caches: of 200 each costs a quarter more."""
_USER_AGENT = "websocket-ingestion"


class Listener(Protocol):
    """Whoever takes the events. Nothing in it may wait: Home Assistant cuts off slow readers."""

    def changed(self, events: Sequence[Event]) -> None:
        """Take the `state_changed` events of one frame, in order."""
        ...

    def registry_updated(self, event: Event) -> None:
        """Take one `*_registry_updated` event."""
        ...

    def connected(self, *, was_absent: bool) -> None:
        """Note that events stream from now on.

        `was_absent`: at least one attempt failed before the first connection of this process.
        """
        ...

    def lost(self) -> None:
        """Note that a connection that had streamed has ended."""
        ...


class HomeAssistantSource:
    """Events from Home Assistant, across as many connections as it takes."""

    def __init__(
        self,
        url: str,
        *,
        token: str,
        ssl_verify: bool,
        headers: Mapping[str, str] | None = None,
        client_cert: Path | None = None,
        client_key: Path | None = None,
        backoff: Backoff,
        breaker: Breaker,
        telemetry: Telemetry,
        max_retries: int = -1,
        auth_retry_s: float = 300.0,
        open_timeout_s: float = 10.0,
        auth_timeout_s: float = 10.0,
        command_timeout_s: float = 30.0,
        ping_interval_s: float = 10.0,
        ping_timeout_s: float = 10.0,
        steady_s: float = 30.0,
        readiness_poll_s: float = 5.0,
        max_message_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        """Take where Home Assistant is and how patient to be.

        Args:
            url: the WebSocket address, `ws(s)://…/api/websocket`.
            token: a long-lived access token; a read-only user's is enough.
            ssl_verify: whether a wss certificate must be valid.
            headers: HTTP headers of the handshake, for a proxy in between.
            client_cert: a client certificate for wss, as PEM; read again when it has changed.
            client_key: its key; None when it is in the same file.
            backoff: the waits between attempts.
            breaker: the circuit breaker of this neighbor.
            telemetry: where received and malformed messages are counted.
            max_retries: reconnections that may fail in a row; -1 for ever.
            auth_retry_s: the wait after the token was refused.
            open_timeout_s: how long opening a connection may take.
            auth_timeout_s: how long authenticating may take.
            command_timeout_s: how long one command may remain unanswered.
            ping_interval_s: how often a quiet connection is probed.
            ping_timeout_s: how long a probe may remain unanswered.
            steady_s: after this long a subscribed connection counts as good without an event.
            readiness_poll_s: how often a starting Home Assistant is asked whether it runs.
            max_message_bytes: the longest frame accepted; 14,000 entities answer with 6 MB.
        """
        self._url = url
        self._token = token
        self._ssl_verify = ssl_verify
        self._headers = dict(headers or {})
        self._client_cert = client_cert
        self._client_key = client_key
        self._backoff = backoff
        self._breaker = breaker
        self._telemetry = telemetry
        self._max_retries = max_retries
        self._auth_retry_s = auth_retry_s
        self._open_timeout_s = open_timeout_s
        self._auth_timeout_s = auth_timeout_s
        self._command_timeout_s = command_timeout_s
        self._ping_interval_s = ping_interval_s
        self._ping_timeout_s = ping_timeout_s
        self._steady_s = steady_s
        self._readiness_poll_s = readiness_poll_s
        self._max_message_bytes = max_message_bytes
        self._tls: ClientTls | None = None
        self._state: ConnectionState = "disconnected"
        self._attempts = 0
        self._successes = 0
        self._failures = 0
        self._last_successful: datetime | None = None
        self._next_attempt_at: float | None = None
        self._ha_version: str | None = None
        self._ha_state: str | None = None
        self._limited: str | None = None
        self.missing_component: str | None = None
        """The integration that history needs and Home Assistant runs without; None when all are."""
        self._trouble: SourceError | None = None
        """Why events do not stream; None while they do, and before the first attempt ended."""
        self._trouble_since = 0.0
        self._subscribed = False
        """Whether the present attempt, or the last one, came as far as the subscription."""
        self._proved = False
        """Whether it came as far as showing that events really stream."""
        self._live: tuple[FrameSocket, Session] | None = None
        """The connection over which events stream."""
        self._pongs: dict[int, asyncio.Future[bool]] = {}
        """Set when a ping over it was answered, or False when it ended; by command id."""

    def status(self) -> ConnectionStatus:
        """Return the connection as it is now."""
        next_attempt_s = None
        if self._next_attempt_at is not None:
            next_attempt_s = max(0.0, round(self._next_attempt_at - time.monotonic(), 3))
        return ConnectionStatus(
            current_state=self._state,
            connection_attempts=self._attempts,
            successful_connections=self._successes,
            failed_connections=self._failures,
            last_successful=self._last_successful,
            next_attempt_in_seconds=next_attempt_s,
            ha_version=self._ha_version,
            ha_state=self._ha_state,
            is_subscribed=self._state == "connected",
            reason=self._reason(),
            token_refused=isinstance(self._trouble, SourceAuthRejected),
            breaker=BreakerStatus(
                state=self._breaker.state,
                failure_count=self._breaker.failure_count,
                last_failure=self._breaker.last_failure,
            ),
        )

    @property
    def is_running(self) -> bool:
        """Whether Home Assistant has said that it is RUNNING, over this connection."""
        return self._ha_state == _RUNNING

    async def caught_up(self) -> None:
        """Wait until the listener has every event that Home Assistant has sent so far.

        Home Assistant sends in order, so the answer to a ping comes after all of them.

        Raises:
            SourceError: no events stream, or the connection was lost meanwhile.
        """
        if self._live is None:
            raise SourceUnavailable("Home Assistant is not connected")
        socket, session = self._live
        command_id, frame = session.command("ping")
        pong = self._pongs[command_id] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._command_timeout_s):
                with _translated():
                    await socket.send(frame, text=True)
                if not await pong:
                    raise SourceUnavailable("The connection was lost")
        except TimeoutError as exc:
            raise SourceProtocolError(
                f"No answer to a ping within {self._command_timeout_s:g} s"
            ) from exc
        finally:
            self._pongs.pop(command_id, None)

    async def run(self, listener: Listener) -> None:
        """Hand events to the listener until cancelled, reconnecting whenever it is needed.

        Home Assistant closes with 1000 for a shutdown, a slow reader and a revoked token
        alike, so every close means the same: connect again.

        Raises:
            SourceUnavailable: `max_retries` reconnections failed in a row.
        """
        try:
            while True:
                try:
                    with contained("reading events", error=SourceProtocolError):
                        await self._stream_once(listener)
                except SourceError as exc:
                    wait_s = self._failed(exc)
                await self._wait(wait_s)
        finally:
            self._state = "disconnected"

    @contextlib.asynccontextmanager
    async def commands(self) -> AsyncIterator[Commands]:
        """Open a connection of its own for questions, so that no answer delays an event.

        Raises:
            SourceError: the connection cannot be opened or authenticated.
        """
        async with self._open() as socket:
            session = Session(self._token, subscribe=False)
            await self._authenticate(socket, session)
            yield Commands(
                socket,
                session=session,
                timeout_s=self._command_timeout_s,
                warn=self._warn,
            )

    async def _stream_once(self, listener: Listener) -> None:
        """Hold one connection until it ends; it always ends with an error."""
        self._attempts += 1
        self._subscribed = self._proved = False
        self._state = "connecting"
        async with self._open() as socket:
            session = Session(self._token)
            self._state = "authenticating"
            await self._authenticate(socket, session)
            self._ha_version = session.ha_version
            self._state = "subscribing"
            first = await self._subscribe(socket, session)
            with self._streaming(listener, socket, session):
                async with self._watching_readiness():
                    for step in first:
                        self._deliver(step, listener)
                    while True:  # bounded by the pings: a silent peer ends it with an error
                        self._take_turn(await socket.frames(), session, listener)

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[FrameSocket]:
        try:
            socket = await _Connect(
                self._url,
                ssl=self._context(),
                additional_headers=self._headers or None,
                compression=None,  # costs the receiver about as much again per event
                max_size=self._max_message_bytes,
                create_connection=FrameSocket,
                open_timeout=self._open_timeout_s,
                close_timeout=_CLOSE_TIMEOUT_S,
                ping_interval=self._ping_interval_s,
                ping_timeout=self._ping_timeout_s,
                proxy=None,  # Home Assistant is a neighbor; a proxy set for downloads is not meant
                user_agent_header=_USER_AGENT,
                logger=_wire_logger,
            )
        except (OSError, ValueError, LookupError, WebSocketException) as exc:
            raise _unavailable(self._url, exc) from exc
        assert isinstance(socket, FrameSocket), "that is what was asked for"
        try:
            with _translated():
                yield socket
        finally:
            try:
                await socket.close()
            finally:
                socket.transport.abort()

    def _context(self) -> ssl.SSLContext | None:
        if urlsplit(self._url).scheme != "wss":
            return None
        if self._tls is None:
            self._tls = ClientTls(
                verify=self._ssl_verify, client_cert=self._client_cert, client_key=self._client_key
            )
        return self._tls.context()

    async def _authenticate(self, socket: FrameSocket, session: Session) -> None:
        try:
            async with asyncio.timeout(self._auth_timeout_s):
                while session.phase in {Phase.GREETING, Phase.AUTHENTICATING}:
                    step = await _exchange(socket, session)
                    self._warn(step.malformed)
        except TimeoutError as exc:
            raise SourceProtocolError(
                f"No end of authentication within {self._auth_timeout_s:g} s"
            ) from exc

    async def _subscribe(self, socket: FrameSocket, session: Session) -> list[Received]:
        """Wait for the required subscription and return what came until then."""
        steps = []
        try:
            async with asyncio.timeout(self._command_timeout_s):
                while session.phase is Phase.SUBSCRIBING:
                    steps.append(await _exchange(socket, session))
        except TimeoutError as exc:
            raise SourceProtocolError(
                f"No answer to the subscription within {self._command_timeout_s:g} s"
            ) from exc
        return steps

    @contextlib.contextmanager
    def _streaming(
        self, listener: Listener, socket: FrameSocket, session: Session
    ) -> Iterator[None]:
        was_absent = not self._successes and self._attempts > 1
        self._state = "connected"
        self._subscribed = True
        self._live = (socket, session)
        self._successes += 1
        self._last_successful = datetime.now(UTC)
        self._trouble = None
        # A server that accepts, subscribes and hangs up must not be hammered, so the waits
        # start anew only when an event has come, or on a quiet home after a while.
        proving = asyncio.get_running_loop().call_later(self._steady_s, self._prove)
        limited_log.info(
            "Connected to Home Assistant %s at %s",
            self._ha_version,
            shown_url(self._url),
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
            self._state = "disconnected"
            self._ha_state = self._limited = None
            listener.lost()

    def _prove(self) -> None:
        self._proved = True
        self._backoff.reset()
        self._breaker.succeeded()
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
        """Ask for Home Assistant's own state until it is RUNNING."""
        while self._ha_state != _RUNNING:
            try:
                with contained("asking whether it runs", error=SourceProtocolError):
                    async with self.commands() as commands:
                        answer = await commands.call("get_config")
                config = msgspec.json.decode(answer, type=_Config)
                self._ha_state, self._limited = config.state, config.limited
                self.missing_component = config.missing_component
            except (SourceError, *UNREADABLE) as exc:
                logger.debug("Home Assistant did not say whether it runs: %s", exc)
            if self._ha_state != _RUNNING:
                await asyncio.sleep(self._readiness_poll_s)

    def _take_turn(self, frames: Sequence[bytes], session: Session, listener: Listener) -> None:
        """Hand over what has arrived: small frames of nothing but state changes in batches."""
        # The hot path: what is paid per batch below (counting, normalizing, encoding, queueing)
        # is paid once for several frames; see "the whole way" in benchmarks/README.md.
        events: list[Event] = []
        try:
            for frame in frames:
                step = session.feed(frame)
                is_plain = step.is_plain
                if is_plain:
                    events += step.events
                if not is_plain or len(events) >= _BATCH_EVENTS:
                    self._changed(events, listener)
                    events = []
                if not is_plain:
                    self._deliver(step, listener)
        finally:  # also those that came before a frame that ends the connection
            self._changed(events, listener)

    def _changed(self, events: Sequence[Event], listener: Listener) -> None:
        if not events:
            return
        self._telemetry.events_received(len(events))
        if not self._proved:
            self._prove()
        listener.changed(events)

    def _deliver(self, step: Received, listener: Listener) -> None:
        if unreadable := len(step.malformed):
            self._telemetry.events_received(unreadable)
            for problem in step.malformed:
                self._telemetry.events_malformed(1, kind=problem.kind)
        # First, because a frame may hold a renaming and the first state under the new id.
        for event in step.registry_events:
            listener.registry_updated(event)
        self._changed(step.events, listener)
        self._warn(step.malformed)
        for answer in step.answers:
            if (pong := self._pongs.get(answer.command_id)) and not pong.done():
                pong.set_result(True)
            if answer.failure is not None:
                limited_log.info(
                    "Home Assistant refused %s; going on without",
                    answer.failure,
                    kind=str(answer.failure),
                    topic="connections",
                )

    def _warn(self, malformed: Iterable[MalformedFrame]) -> None:
        for problem in malformed:
            limited_log.warning(
                "Unreadable message from Home Assistant (%s): %r",
                problem.kind,
                problem.excerpt,
                kind=problem.kind,
                topic="malformed",
            )

    def _failed(self, exc: SourceError) -> float:
        """Note how an attempt or a connection ended; return the seconds until the next."""
        self._failures += not self._subscribed
        if self._trouble is None:
            self._trouble_since = time.monotonic()
        self._trouble = exc
        if isinstance(exc, SourceAuthRejected):
            limited_log.error(
                "%s Next attempt in %.0fs",
                self._reason(),
                self._auth_retry_s,
                kind="token",
            )
            return self._auth_retry_s
        if not self._proved:
            self._breaker.failed(exc)
        what = "Lost Home Assistant" if self._proved else "No connection to Home Assistant"
        limited_log.warning("%s: %s", what, _with_advice(exc), kind=f"{what}: {exc}")
        return self._next_wait_s(exc)

    def _next_wait_s(self, exc: SourceError) -> float:
        limit = "∞" if self._max_retries < 0 else self._max_retries
        if 0 <= self._max_retries <= self._backoff.attempt:
            logger.error("Gave up on Home Assistant after %s reconnection attempts", limit)
            raise SourceUnavailable(f"Home Assistant cannot be reached: {exc}") from exc
        wait_s = max(self._backoff.next_s(), self._breaker.wait_s)
        # Each says no more than the loss before it: one line for the first, and for all of them.
        limited_log.info(
            "Reconnection attempt %d/%s in %.1fs",
            self._backoff.attempt,
            limit,
            wait_s,
            kind="attempt",
        )
        return wait_s

    async def _wait(self, wait_s: float) -> None:
        self._state = "waiting"
        self._next_attempt_at = time.monotonic() + wait_s
        try:
            await asyncio.sleep(wait_s)
        finally:
            self._next_attempt_at = None

    def _reason(self) -> str | None:
        match self._trouble:
            case SourceAuthRejected() as exc:
                return (
                    f"Home Assistant refused the token: {exc}. In Home Assistant open your profile,"
                    " Security, create a long-lived access token, set HOME_ASSISTANT_TOKEN to it"
                    " and restart this service."
                )
            case SourceError() as exc:
                return (
                    "Home Assistant cannot be reached for"
                    f" {time.monotonic() - self._trouble_since:.0f} s: {exc}."
                    f" {_advice(exc) or 'Check that it runs and that HOME_ASSISTANT_URL is right.'}"
                )
        if self._ha_state not in {None, _RUNNING}:
            return (
                f"Home Assistant says it is {self._ha_state}: it is starting or stopping,"
                " and entities may be missing until it is RUNNING."
            )
        return self._limited


class Commands:
    """A connection for questions. Calls made at the same time are asked one after another."""

    def __init__(
        self,
        socket: FrameSocket,
        *,
        session: Session,
        timeout_s: float,
        warn: Callable[[Iterable[MalformedFrame]], None],
    ) -> None:
        """Take an authenticated connection and how long an answer may take."""
        self._socket = socket
        self._session = session
        self._timeout_s = timeout_s
        self._warn = warn
        # Only one coroutine may read a socket, and an answer of 6 MB is enough at a time.
        self._turn = asyncio.Lock()

    @property
    def ha_version(self) -> str | None:
        """Return the version that Home Assistant's greeting names."""
        return self._session.ha_version

    async def call(self, command: str, **parameters: object) -> msgspec.Raw:
        """Return what Home Assistant answers to a command: a JSON value, unread.

        Raises:
            CommandFailed: Home Assistant refused the command.
            SourceError: the connection was lost, or no answer came in time.
        """
        async with self._turn:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await self._ask(command, parameters)
            except TimeoutError as exc:
                raise SourceProtocolError(
                    f"No answer to {command} within {self._timeout_s:g} s"
                ) from exc

    async def _ask(self, command: str, parameters: Mapping[str, object]) -> msgspec.Raw:
        command_id, frame = self._session.command(command, **parameters)
        with _translated():
            await self._socket.send(frame, text=True)
            while True:
                step = await _exchange(self._socket, self._session)
                self._warn(step.malformed)
                for answer in step.answers:
                    if answer.command_id != command_id:
                        continue  # late, to a call that was given up
                    if answer.failure is not None:
                        raise answer.failure
                    return answer.result


class _Config(msgspec.Struct, frozen=True):
    """The part of `get_config` that is read."""

    state: str
    recovery_mode: object = False
    safe_mode: object = False
    components: Sequence[str] = ()

    @property
    def missing_component(self) -> str | None:
        """Which integration that history needs is not set up; None when all are, or unknown."""
        if not self.components or self.state != _RUNNING:
            return None
        return next((name for name in ("recorder", "history") if name not in self.components), None)

    @property
    def limited(self) -> str | None:
        """Why entities are missing although Home Assistant runs; None when they are not."""
        return limited_mode(recovery=self.recovery_mode is True, safe=self.safe_mode is True)


class _Connect(connect):
    """`connect` that follows a redirect only to another WebSocket path of the same origin.

    The token is sent to whatever has accepted the connection, so it must be the server that the
    token is meant for. The same is true of headers, client certificates and a user in the URL.
    """

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Return the URL to connect to instead, else the error."""
        location = _location(exc)
        if location is None:
            return exc
        target = redirect_target(self.uri, location)
        ours, theirs = urlsplit(self.uri), urlsplit(target)
        elsewhere = urlunsplit((ours.scheme, ours.netloc, theirs.path, theirs.query, ""))
        is_ours = origin(target) == origin(self.uri) and theirs.path.endswith("/websocket")
        return elsewhere if is_ours and elsewhere != self.uri else exc


def _location(exc: Exception) -> str | None:
    """Return where a refused handshake redirects to; None when it does not."""
    if not isinstance(exc, InvalidStatus):
        return None
    is_redirect = HTTPStatus.MULTIPLE_CHOICES <= exc.response.status_code < HTTPStatus.BAD_REQUEST
    locations = exc.response.headers.get_all("Location")
    return locations[0] if is_redirect and locations else None


def _unavailable(url: str, exc: Exception) -> SourceUnavailable:
    """Return what it means that no connection could be opened."""
    if isinstance(exc, InvalidStatus):
        found = refused_handshake(
            HOME_ASSISTANT,
            url,
            status=exc.response.status_code,
            location=_location(exc),
            body=bytes(exc.response.body or b""),
            header_names={name.lower() for name, _ in exc.response.headers.raw_items()},
        )
    else:
        found = obstacle(HOME_ASSISTANT, exc, url=url)
    return SourceUnavailable(found.why, advice=found.advice)


def _advice(exc: SourceError) -> str | None:
    return exc.advice if isinstance(exc, SourceUnavailable) else None


def _with_advice(exc: SourceError) -> str:
    advice = _advice(exc)
    return f"{exc}. {advice}" if advice else str(exc)


async def _exchange(socket: FrameSocket, session: Session) -> Received:
    """Receive one frame and send what it asks for."""
    step = session.feed(await socket.frame())
    for frame in step.send:
        await socket.send(frame, text=True)
    return step


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ConnectionClosed as exc:
        if exc.sent is not None and exc.sent.code == CloseCode.MESSAGE_TOO_BIG:
            raise SourceProtocolError(
                f"Home Assistant sent too large a message: {exc.sent.reason}"
            ) from exc
        raise SourceUnavailable(f"Connection closed: {exc}") from exc
