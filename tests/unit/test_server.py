"""When a client is too slow: the server's protocols over a transport that a test moves."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from fastapi import FastAPI, Request, WebSocket
from starlette.responses import Response
from uvicorn.server import ServerState

from app.api.connections import ConnectionLimits, Connections
from app.api.server import HttpConnection, WebSocketConnection, server_config

HEAD = b"POST /%s HTTP/1.1\r\nHost: localhost\r\n"
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class FakeTransport(asyncio.Transport):
    """A connection of 192.0.2.1 without a socket."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 5), "sockname": ("192.0.2.2", 80)})
        self.written = b""
        self.protocol: asyncio.BaseProtocol | None = None
        self.closing = self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep what is sent."""
        self.written += bytes(data)

    def close(self) -> None:
        """Begin to close, as when something is still to be sent."""
        self.closing = True

    def is_closing(self) -> bool:
        """Return whether that began."""
        return self.closing

    def get_write_buffer_size(self) -> int:
        """Return that all was read."""
        return 0

    def abort(self) -> None:
        """Close at once."""
        self.aborted = True

    def pause_reading(self) -> None:
        """Do nothing."""

    def resume_reading(self) -> None:
        """Do nothing."""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Let another protocol speak."""
        self.protocol = protocol


class Bench:
    """A connection, its transport and a clock."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.transport = FakeTransport()
        self.connections = Connections(clock=lambda: self.now_s)
        app = FastAPI()

        @app.post("/read")
        async def read(request: Request) -> Response:
            return Response(await request.body())

        @app.post("/leave")
        async def leave() -> Response:
            return Response()

        @app.websocket("/greeting")
        async def greet(socket: WebSocket) -> None:
            await socket.accept()
            await socket.send_text("hello")

        config = server_config(app, self.connections)
        config.load()
        self.http = HttpConnection(config, ServerState(), {}, connections=self.connections)
        self.http.connection_made(self.transport)

    def overdue_at(self, *after_s: float) -> list[bool]:
        """Return whether it is overdue so many seconds after the connection was made."""
        return [self.http.is_overdue(100.0 + each_s) for each_s in after_s]


@pytest.fixture
async def bench() -> Bench:
    """Return a fresh connection."""
    return Bench()


async def _settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_connection_whose_headers_are_late_is_closed(bench: Bench) -> None:
    """More bytes now and then are no excuse: 10 kB/s after ten seconds."""
    bench.http.data_received(b"GET / HTTP/1.1\r\n")
    few = bench.overdue_at(9, 11)
    bench.http.data_received(b"X: " + b"y" * 10_000)
    many = bench.overdue_at(10.5, 12)

    assert (few, many) == ([False, True], [False, True])
    assert bench.http.waiting_since() == 100.0


async def test_a_connection_whose_body_is_late_is_closed(bench: Bench) -> None:
    """It waits for its client, and may be displaced, until the body is complete."""
    bench.http.data_received(HEAD % b"read" + b"Content-Length: 30000\r\n\r\n")
    await _settled()
    empty = bench.overdue_at(9, 11)
    bench.http.data_received(b"x" * 20_000)
    await _settled()
    some = bench.overdue_at(11, 13)
    waiting = bench.http.waiting_since()
    bench.http.data_received(b"x" * 10_000)
    working, complete = bench.http.waiting_since(), bench.overdue_at(1_000)
    await _settled()

    assert (empty, some, complete) == ([False, True], [False, True], [False])
    assert (waiting, working) == (100.0, None)
    assert bench.transport.written.startswith(b"HTTP/1.1 200")


async def test_an_ignored_request_body_must_end_within_the_grace_period(bench: Bench) -> None:
    """However fast it comes, after the response there are ten seconds for the rest."""
    bench.http.data_received(HEAD % b"leave" + b"Content-Length: 100000000\r\n\r\n")
    await _settled()
    bench.http.data_received(b"x" * 1_000_000)

    assert bench.transport.written.startswith(b"HTTP/1.1 200")
    assert bench.overdue_at(9, 11) == [False, True]


async def test_a_client_that_does_not_read_its_response_is_closed(bench: Bench) -> None:
    """Within a minute something of it, and within ten seconds all of it once we close."""
    bench.http.data_received(HEAD % b"leave" + b"\r\n")
    bench.now_s = 150.0
    bench.http.pause_writing()
    stalled, waiting = bench.overdue_at(100, 111), bench.http.waiting_since()
    bench.http.resume_writing()
    read = bench.http.is_overdue(1_000.0)
    bench.transport.close()
    closing = [bench.http.is_overdue(now_s) for now_s in (1_000.0, 1_009.0, 1_011.0)]

    assert (stalled, waiting) == ([False, True], 150.0)
    assert (read, closing) == (False, [False, False, True])


async def test_a_websocket_waits_for_its_client_only_to_read_and_to_close(bench: Bench) -> None:
    """It keeps its place when the connection is handed over."""
    bench.http.data_received(HANDSHAKE)
    socket = cast("WebSocketConnection", bench.transport.protocol)
    open_ = socket.waiting_since()
    socket.pause_writing()
    stalled = socket.waiting_since(), socket.is_overdue(159.0), socket.is_overdue(161.0)
    socket.resume_writing()
    await _settled()  # there is no such route: the handshake is refused
    closed = socket.waiting_since(), len(bench.connections)
    socket.connection_lost(None)

    assert isinstance(socket, WebSocketConnection)
    assert (open_, stalled) == (None, (100.0, False, True))
    assert closed == (100.0, 1)
    assert len(bench.connections) == 0


async def test_a_handshake_during_the_shutdown_is_no_error(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection closes between the request and the acceptance of the application."""
    bench.http.data_received(HANDSHAKE.replace(b"/ws", b"/greeting"))
    socket = cast("WebSocketConnection", bench.transport.protocol)
    socket.shutdown()
    await _settled()

    assert b"hello" not in bench.transport.written
    assert "Exception in ASGI application" not in caplog.text


async def test_a_connection_beyond_the_limit_gets_a_503() -> None:
    """In a response of its own, before it has asked for anything."""
    bench = Bench()
    bench.http.data_received(HEAD % b"leave" + b"\r\n")
    others = Connections(ConnectionLimits(total=4))
    others.admit(bench.transport, bench.http)
    late = FakeTransport()
    refused = HttpConnection(bench.http.config, ServerState(), {}, connections=others)
    refused.connection_made(late)
    refused.connection_lost(None)

    assert late.written.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b'"code": "too_many_connections"' in late.written
    assert late.closing
