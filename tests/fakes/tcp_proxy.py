"""TCP proxy that delays, throttles, freezes and cuts the connections of one link."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Self

_CHUNK_BYTES = 65_536


class TcpProxy:
    """One link of the network: every connection to `url` continues at the upstream port.

    The attributes apply from the next chunk on, the handshake's to the next connection.
    """

    def __init__(self, upstream_port: int) -> None:
        self.handshake_delay_s = 0.0
        """How long the first answer on each new connection is held back."""
        self.rewrite_answer: Callable[[bytes], bytes] | None = None
        """Changes the first chunk of the first answer on each new connection."""
        self.chunk_delay_s = 0.0
        """Added before each chunk, in both directions."""
        self.bytes_per_s: float | None = None
        """Throughput in each direction; None is as fast as it goes."""
        self.url = ""
        self._upstream_port = upstream_port
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._connections: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Self]:
        """Listen on a free port of 127.0.0.1 until the block ends, then cut all connections."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            await self.cut()

    def freeze(self) -> None:
        """Stop forwarding without closing anything: each side sees silence, not even an end."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Forward again, beginning with what was held back."""
        self._flowing.set()

    async def cut(self) -> None:
        """Reset every connection on both sides."""
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def restore(self) -> None:
        """Forward everything at once and unchanged, as at first."""
        self.handshake_delay_s = self.chunk_delay_s = 0.0
        self.rewrite_answer = self.bytes_per_s = None
        self.thaw()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._connection(reader, writer), name="proxy.connection")
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # A reset is the end of this connection and of nothing else.
            with contextlib.suppress(OSError):
                await self._forward(reader, writer)
        finally:
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        directions = [
            asyncio.create_task(self._pump(reader, up_writer), name="proxy.up"),
            asyncio.create_task(self._pump(up_reader, writer, answers=True), name="proxy.down"),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            up_writer.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        answers: bool = False,
    ) -> None:
        is_first = answers
        while chunk := await reader.read(_CHUNK_BYTES):
            if is_first:
                await asyncio.sleep(self.handshake_delay_s)
                chunk = self.rewrite_answer(chunk) if self.rewrite_answer else chunk
                is_first = False
            await asyncio.sleep(self.chunk_delay_s + len(chunk) / (self.bytes_per_s or 1e12))
            await self._flowing.wait()
            writer.write(chunk)
            await writer.drain()
        # The end travels the same way as the bytes before it.
        await self._flowing.wait()
        writer.write_eof()
        await writer.drain()
