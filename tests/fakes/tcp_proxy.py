"""A TCP proxy that delays, rewrites, throttles, freezes and cuts the connections of one link."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Self

from tests.fakes.tasks import until_one_ends

_CHUNK_BYTES = 65_536


class TcpProxy:
    """Forwards connections to a port of 127.0.0.1; use as `async with`.

    The attributes apply to the next chunk; those of the first answer to the next connection.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.port = 0
        self.delay_s = 0.0
        """How long the first bytes of each answer are delayed."""
        self.rewrite: Callable[[bytes], bytes] = _unchanged
        """Applied to the first bytes of each answer: the HTTP response of a handshake."""
        self.refusing = False
        """While True, new connections are closed at once."""
        self.chunk_delay_s = 0.0
        """Added before each chunk, in both directions."""
        self.bytes_per_s: float | None = None
        """Throughput in each direction; None is as fast as it goes."""
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Where Home Assistant's WebSocket API is, through the proxy."""
        return f"ws://127.0.0.1:{self.port}/api/websocket"

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all connections."""
        self._server.close()
        self.thaw()
        self.cut()
        async with asyncio.timeout(5):
            while self._writers:
                await asyncio.sleep(0.001)

    def cut(self) -> None:
        """Reset all connections, on both sides."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def freeze(self) -> None:
        """Stop forwarding without closing anything: each side sees only silence."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Forward again, beginning with what was held back."""
        self._flowing.set()

    def restore(self) -> None:
        """Reset all faults: forward everything at once and unchanged."""
        self.delay_s = self.chunk_delay_s = 0.0
        self.bytes_per_s, self.rewrite, self.refusing = None, _unchanged, False
        self.thaw()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A reset ends only this connection.
        with contextlib.suppress(OSError):
            async with self._registered(writer):
                if not self.refusing:
                    await self._forward(reader, writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await asyncio.open_connection("127.0.0.1", self._target)
        async with self._registered(requests):
            await until_one_ends(
                [
                    asyncio.create_task(self._copied(reader, requests), name="proxy.requests"),
                    asyncio.create_task(self._answered(answers, writer), name="proxy.answers"),
                ]
            )

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(_CHUNK_BYTES)
        await asyncio.sleep(self.delay_s)
        await self._write(writer, self.rewrite(first))
        await self._copied(reader, writer)

    async def _copied(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            await self._write(writer, chunk)
        await self._flowing.wait()  # a freeze also delays the end of the stream

    async def _write(self, writer: asyncio.StreamWriter, chunk: bytes) -> None:
        throttle_s = len(chunk) / self.bytes_per_s if self.bytes_per_s else 0.0
        await asyncio.sleep(self.chunk_delay_s + throttle_s)
        await self._flowing.wait()
        writer.write(chunk)
        await writer.drain()

    @contextlib.asynccontextmanager
    async def _registered(self, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
        self._writers.add(writer)
        try:
            yield
        finally:
            writer.transport.abort()
            self._writers.discard(writer)


def _unchanged(chunk: bytes) -> bytes:
    return chunk
