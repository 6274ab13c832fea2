"""A reverse proxy that serves another server below a path prefix."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

_CHUNK = 65_536


@contextlib.asynccontextmanager
async def below(path: str, url: str) -> AsyncIterator[str]:
    """Serve `url` below `/path/` on a port of this machine, and yield the new address.

    Bytes are forwarded unchanged, WebSockets included, except that the prefix is removed.
    """
    upstream = urlsplit(url)
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        task.add_done_callback(connections.discard)
        their_reader, their_writer = await asyncio.open_connection(upstream.hostname, upstream.port)
        await asyncio.gather(
            _pass_on(reader, their_writer, cut=f" /{path}/".encode()),
            _pass_on(their_reader, writer, cut=None),
        )

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/{path}/"
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, cut: bytes | None
) -> None:
    with contextlib.suppress(ConnectionError):
        try:
            while chunk := await reader.read(_CHUNK):
                # A browser sends one request at a time, and the request line in one piece.
                writer.write(chunk.replace(cut, b" /", 1) if cut else chunk)
                await writer.drain()
        finally:
            writer.close()
