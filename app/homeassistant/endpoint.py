"""Where Home Assistant is, and how to open an authenticated WebSocket to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.frames import CloseCode

from app.homeassistant.frames import FrameSocket
from app.homeassistant.protocol import MalformedFrame, Phase, Received, Session
from app.runtime.addresses import origin, redirect_target
from app.runtime.connection_errors import HOME_ASSISTANT, obstacle, refused_handshake
from app.runtime.errors import SourceProtocolError, SourceUnavailable
from app.runtime.logging import RateLimitedLog
from app.runtime.tls import ClientTls

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

# At DEBUG the library logs frames, and so the token.
_wire_logger = logging.getLogger(f"{__name__}.wire")
_wire_logger.setLevel(logging.WARNING)

_CLOSE_TIMEOUT_S = 0.3
_USER_AGENT = "websocket-ingestion"


class Endpoint:
    """Opens authenticated connections to one Home Assistant."""

    def __init__(
        self,
        url: str,
        *,
        token: str,
        ssl_verify: bool,
        headers: Mapping[str, str] | None = None,
        client_cert: Path | None = None,
        client_key: Path | None = None,
        open_timeout_s: float = 10.0,
        auth_timeout_s: float = 10.0,
        command_timeout_s: float = 30.0,
        ping_interval_s: float = 10.0,
        ping_timeout_s: float = 10.0,
        max_message_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        """Store the address, the credentials and the timeouts.

        Args:
            url: the WebSocket address, `ws(s)://…/api/websocket`.
            token: a long-lived access token; a read-only user's is enough.
            ssl_verify: whether a wss certificate must be valid.
            headers: HTTP headers of the handshake, for a proxy in between.
            client_cert: a client certificate for wss, as PEM; read again when it has changed.
            client_key: its key; None when it is in the same file.
            open_timeout_s: for opening a connection.
            auth_timeout_s: for authenticating.
            command_timeout_s: for the answer to a command.
            ping_interval_s: the time between pings on a quiet connection.
            ping_timeout_s: for the answer to a ping.
            max_message_bytes: the longest frame accepted; 14,000 entities answer with 6 MB.
        """
        self.url = url
        self.token = token
        self.command_timeout_s = command_timeout_s
        self._tls = ClientTls(verify=ssl_verify, client_cert=client_cert, client_key=client_key)
        self._headers = dict(headers or {})
        self._open_timeout_s = open_timeout_s
        self._auth_timeout_s = auth_timeout_s
        self._ping_interval_s = ping_interval_s
        self._ping_timeout_s = ping_timeout_s
        self._max_message_bytes = max_message_bytes

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[FrameSocket]:
        """Open a connection for as long as the block lasts.

        Raises:
            SourceUnavailable: it cannot be opened; or from the block, when it was closed.
        """
        try:
            socket = await _Connect(
                self.url,
                ssl=self._tls.context() if urlsplit(self.url).scheme == "wss" else None,
                additional_headers=self._headers or None,
                compression=None,  # doubles what an event costs
                max_size=self._max_message_bytes,
                create_connection=FrameSocket,
                open_timeout=self._open_timeout_s,
                close_timeout=_CLOSE_TIMEOUT_S,
                ping_interval=self._ping_interval_s,
                ping_timeout=self._ping_timeout_s,
                proxy=None,  # Home Assistant is local; a proxy in the environment is for downloads
                user_agent_header=_USER_AGENT,
                logger=_wire_logger,
            )
        except (OSError, ValueError, LookupError, WebSocketException) as exc:
            raise _unavailable(self.url, exc) from exc
        assert isinstance(socket, FrameSocket), "create_connection makes it one"
        try:
            with closes_translated():
                yield socket
        finally:
            try:
                await socket.close()
            finally:
                socket.transport.abort()

    async def authenticate(self, socket: FrameSocket, session: Session) -> None:
        """Exchange frames until the session is authenticated.

        Raises:
            SourceAuthRejected: Home Assistant refused the token.
            SourceProtocolError: it takes too long, or the peer is not Home Assistant.
        """
        try:
            async with asyncio.timeout(self._auth_timeout_s):
                while session.phase in {Phase.GREETING, Phase.AUTHENTICATING}:
                    log_malformed((await exchange(socket, session)).malformed)
        except TimeoutError as exc:
            raise SourceProtocolError(
                f"No end of authentication within {self._auth_timeout_s:g} s"
            ) from exc


def log_malformed(frames: Iterable[MalformedFrame]) -> None:
    """Log messages that could not be read."""
    for malformed in frames:
        limited_log.warning(
            "Unreadable message from Home Assistant (%s): %r",
            malformed.kind,
            malformed.excerpt,
            kind=malformed.kind,
        )


async def exchange(socket: FrameSocket, session: Session) -> Received:
    """Receive one frame and send the replies to it."""
    received = session.feed(await socket.frame())
    for frame in received.send:
        await socket.send(frame, text=True)
    return received


@contextlib.contextmanager
def closes_translated() -> Iterator[None]:
    """Raise a SourceError in place of the library's ConnectionClosed."""
    try:
        yield
    except ConnectionClosed as exc:
        if exc.sent is not None and exc.sent.code == CloseCode.MESSAGE_TOO_BIG:
            raise SourceProtocolError(
                f"Home Assistant sent too large a message: {exc.sent.reason}"
            ) from exc
        raise SourceUnavailable(f"Connection closed: {exc}") from exc


class _Connect(connect):
    """`connect` that follows a redirect only to another WebSocket path of the same origin.

    The token is sent to the server that accepts the connection, so that server must be the one it
    is meant for. The same holds for headers, client certificates and a user in the URL.
    """

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Return the URL to connect to instead, else the error."""
        location = _location(exc)
        if location is None:
            return exc
        target = redirect_target(self.uri, location)
        ours, theirs = urlsplit(self.uri), urlsplit(target)
        redirected = urlunsplit((ours.scheme, ours.netloc, theirs.path, theirs.query, ""))
        is_ours = origin(target) == origin(self.uri) and theirs.path.endswith("/websocket")
        return redirected if is_ours and redirected != self.uri else exc


def _location(exc: Exception) -> str | None:
    """Return where a refused handshake redirects to, if it does."""
    if not isinstance(exc, InvalidStatus):
        return None
    is_redirect = HTTPStatus.MULTIPLE_CHOICES <= exc.response.status_code < HTTPStatus.BAD_REQUEST
    locations = exc.response.headers.get_all("Location")
    return locations[0] if is_redirect and locations else None


def _unavailable(url: str, exc: Exception) -> SourceUnavailable:
    """Return why no connection could be opened, with advice."""
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
