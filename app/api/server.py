"""uvicorn's HTTP server, with limits on the resources that a client may use.

uvicorn has no limit on the time that a client takes for its headers or its body, on unread
responses, or on the number of WebSocket messages. The protocols here add them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.protocols.utils import ClientDisconnected, get_remote_addr
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame, Opcode

from app.api.clients import client_group
from app.api.connections import Connections
from app.api.middleware import security_headers
from app.api.problems import MEDIA_TYPE, Problem
from app.runtime.logging import RateLimitedLog

MAX_HEADER_BYTES = 16_384
MAX_MESSAGE_BYTES = 65_536

_READ_BYTES = 16_384
"""Read at once: bounds a head that arrives in one piece, and the time to parse it."""
_GRACE_S = 10.0
_MIN_BYTES_PER_S = 10_000.0
"""After the grace period a request must have arrived at this rate on average."""
_STALLED_S = 60.0
"""How long a client may read nothing of what was sent to it."""
_CLOSING_S = 10.0
_MAX_FRAGMENTS = 64
_BURST_FRAMES = 1_000
_FRAMES_PER_S = 100.0

_REPEATED = frozenset({"Invalid HTTP request received.", "Unsupported upgrade request."})

_TOO_MANY = Problem(
    status=503,
    code="too_many_connections",
    detail="As many connections as this service serves at once are open; try again later.",
    headers={"Retry-After": "10"},
)
_MALFORMED = Problem(
    status=400, code="malformed_request", detail="This is not a valid HTTP request."
)

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)


def server_config(app: FastAPI, connections: Connections) -> uvicorn.Config:
    """Return uvicorn's configuration for the service."""
    return uvicorn.Config(
        app,
        lifespan="off",  # the caller enters it, so that what it raises reaches the caller
        log_config=None,
        access_log=False,
        server_header=False,
        # Only the access rules decide whose X-Forwarded-For is trusted (TRUSTED_PROXIES).
        proxy_headers=False,
        backlog=connections.limits.at_once,
        http=partial(HttpConnection, connections=connections),  # type: ignore[arg-type]
        ws=partial(WebSocketConnection, connections=connections),  # type: ignore[arg-type]
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
    )


class Server(uvicorn.Server):
    """uvicorn's server, without its signal handlers and with a callback when it listens."""

    def __init__(
        self,
        app: FastAPI,
        connections: Connections,
        *,
        on_started: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(server_config(app, connections))
        self._client_connections = connections
        self._on_started = on_started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone: uvicorn would raise them again and spoil the exit status."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then call `on_started`."""
        logging.getLogger("uvicorn.error").addFilter(_is_not_repeated)
        await super().startup(sockets=sockets)
        self._on_started()

    async def on_tick(self, counter: int) -> bool:
        """Close overdue connections once a second; uvicorn calls this ten times a second."""
        if counter % 10 == 0:
            self._client_connections.close_overdue()
        return await super().on_tick(counter)


if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

    _Base = asyncio.Protocol
else:
    _Base = object


class _ClientState(_Base):
    """State that both protocols share: who the client is, and whether it reads."""

    transport: asyncio.Transport
    _connections: Connections

    def identify(self, transport: asyncio.BaseTransport) -> None:
        """Remember the client."""
        address = get_remote_addr(transport)  # type: ignore[arg-type]
        self.peer = address[0] if address else None
        self.group = client_group(self.peer)
        self._stalled_since: float | None = None
        self._closing_since: float | None = None

    def unread_bytes(self) -> int:
        """Return the number of bytes that the client has not read yet."""
        return self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

    def pause_writing(self) -> None:
        """Record that the client does not read."""
        self._stalled_since = self._connections.clock()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Record that the client reads again."""
        self._stalled_since = None
        super().resume_writing()

    def _does_not_read(self, now_s: float) -> bool:
        if self.transport.is_closing():
            # asyncio waits until the client has read everything, however long that takes.
            self._closing_since = self._closing_since or now_s
            return now_s - self._closing_since > _CLOSING_S
        return self._stalled_since is not None and now_s - self._stalled_since > _STALLED_S


class HttpConnection(_ClientState, H11Protocol):
    """An HTTP connection whose client must keep up."""

    def __init__(self, *args: object, connections: Connections, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._connections = connections
        self._began = 0.0
        self._received_bytes = 0
        """Since `_began`: when the connection was made, or the last response was complete."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve the connection, or refuse it when too many are open."""
        assert isinstance(transport, asyncio.Transport)
        self.identify(transport)
        self._began = self._connections.clock()
        if not self._connections.admit(transport, self):
            transport.write(_response_bytes(_TOO_MANY))
            transport.close()
            return
        # An attribute of asyncio's own transports; other event loops ignore it.
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self.transport is not None:
            self._connections.closed(self.transport)
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes, then parse them."""
        self._received_bytes += len(data)
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._began, self._received_bytes = self._connections.clock(), 0
        super().on_response_complete()

    def waiting_since(self) -> float | None:
        """Return since when it waits for its client to send or to read."""
        if self._stalled_since is not None:
            return self._stalled_since
        return self._began if self._is_receiving() else None

    def is_overdue(self, now_s: float) -> bool:
        """Return whether the client sends or reads too slowly."""
        if self._does_not_read(now_s):
            return True
        allowed_s = _GRACE_S
        if not self._ignores_body():
            allowed_s += self._received_bytes / _MIN_BYTES_PER_S
        return self._is_receiving() and now_s - self._began > allowed_s

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """Answer a malformed request, unless a response has begun, and close."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            # The route sees the same as when a client disconnects.
            cycle.disconnected = True
            cycle.message_event.set()
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.write(_response_bytes(_MALFORMED))
        self.transport.close()

    def shutdown(self) -> None:
        """Close now if it waits for its client, else when the response is complete."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            self.transport.close()
        elif self.waiting_since() is not None:
            self.abort()
        else:
            cycle.keep_alive = False

    def _should_upgrade(self) -> bool:
        # "A server MUST ignore an Upgrade header field that is received in an HTTP/1.0
        # request" (RFC 9110, 7.8); uvicorn would also present it to the application as 1.1.
        return self.scope["http_version"] != "1.0" and super()._should_upgrade()

    def _is_receiving(self) -> bool:
        """Whether it waits for bytes of a head or a body, or for the next request."""
        if self.conn.their_state is h11.IDLE:
            return True
        return self.conn.their_state is h11.SEND_BODY and not self.flow.read_paused

    def _ignores_body(self) -> bool:
        """Whether the response is complete and further bytes are discarded."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY


class WebSocketConnection(_ClientState, WebSocketsSansIOProtocol):
    """A WebSocket whose client must keep up, and send no more than a person could mean."""

    def __init__(self, *args: object, connections: Connections, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._connections = connections
        self._frames_left = float(_BURST_FRAMES)
        self._counted_at = connections.clock()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Replace the HTTP protocol of the connection."""
        self.identify(transport)
        self._connections.replace(transport, self)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._connections.closed(self.transport)
        super().connection_lost(exc)

    def waiting_since(self) -> float | None:
        """Return since when it waits for its client to read or to close.

        Otherwise None: the hub and `Challenges` limit how many WebSockets there are.
        """
        if self._stalled_since is not None:
            return self._stalled_since
        return self._counted_at if self.close_sent else None

    def is_overdue(self, now_s: float) -> bool:
        """Return whether the client does not read."""
        return self._does_not_read(now_s)

    def shutdown(self) -> None:
        """Close; abort when the client does not read."""
        if self._stalled_since is None:
            super().shutdown()
        else:
            self.abort()

    async def send(self, message: ASGISendEvent) -> None:
        """Send a message, or raise ClientDisconnected once the connection closes.

        uvicorn would let the application accept a closing connection, and fail when it sends.
        """
        if self.transport.is_closing() and not self.handshake_complete:
            raise ClientDisconnected
        await super().send(message)

    def handle_events(self) -> None:
        """Process the frames that arrived, as long as the client may send more."""
        for event in self.conn.events_received():
            if isinstance(event, Frame) and not self._may_send(event):
                continue
            self.conn.events = [event]
            super().handle_events()

    def send_receive_event_to_app(self) -> None:
        """Pass a message to the application; text that is not UTF-8 ends the connection."""
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self._fail(CloseCode.INVALID_DATA, "not UTF-8")
                return
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """End the connection; before the handshake is complete there is no close frame."""
        if self.conn.close_sent is not None:
            super().handle_parser_exception()
            return
        if not self.handshake_initiated:
            self.transport.write(_response_bytes(_MALFORMED))
        self.close_sent = True
        self.transport.close()

    def _may_send(self, frame: Frame) -> bool:
        """Count a frame; return whether the connection still accepts it."""
        if frame.opcode is Opcode.CLOSE:
            return True
        if self.close_sent or self.transport.is_closing():
            return False
        if frame.opcode is Opcode.CONT and len(self.frames) >= _MAX_FRAGMENTS:
            self._fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            return False
        now_s = self._connections.clock()
        refilled = self._frames_left + (now_s - self._counted_at) * _FRAMES_PER_S
        self._frames_left, self._counted_at = min(_BURST_FRAMES, refilled) - 1, now_s
        if self._frames_left < 0:
            self._fail(CloseCode.POLICY_VIOLATION, "too many messages")
        return self._frames_left >= 0

    def _fail(self, code: CloseCode, reason: str) -> None:
        self.frames = []
        self.conn.fail(code, reason)
        self.handle_parser_exception()


def _response_bytes(problem: Problem) -> bytes:
    """Return a whole response that closes the connection."""
    body = json.dumps(problem.document()).encode()
    headers = {
        "Content-Type": MEDIA_TYPE,
        "Content-Length": str(len(body)),
        "Connection": "close",
        **security_headers("/api"),
        **problem.headers,
    }
    status = f"HTTP/1.1 {problem.status} {problem.document()['title']}\r\n"
    head = status + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{head}\r\n".encode("ascii") + body


def _is_not_repeated(record: logging.LogRecord) -> bool:
    """Rate-limit uvicorn's warnings about malformed requests."""
    if record.msg not in _REPEATED:
        return True
    limited_log.warning("%s", record.msg, kind=str(record.msg))
    return False
