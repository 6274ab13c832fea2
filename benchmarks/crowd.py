"""A helper process: many clients of `/ws?coalesce=1` that read as fast as they can, and count.

They offer permessage-deflate, as browsers do, and never look into what they are sent.
"""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import msgspec

from benchmarks.peers import answer_commands

_GREETING = (
    "GET /ws?coalesce=1 HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
)


class Crowded(msgspec.Struct, frozen=True, kw_only=True):
    """What the crowd has seen so far."""

    connected: int
    bytes: int


class _Client(asyncio.Protocol):
    """Reads and forgets."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(_GREETING.format(host=self._crowd.host).encode())

    def data_received(self, data: bytes) -> None:
        self._crowd.bytes += len(data)


class Crowd:
    """The clients of one service."""

    def __init__(self) -> None:
        self.host = ""
        self.bytes = 0
        self._connected = 0

    async def gather(self, *, url: str, clients: int) -> Crowded:
        """Connect so many clients, one after the other."""
        parts = urlsplit(url)
        assert parts.hostname is not None, "the URL of a service has host and port"
        assert parts.port is not None, "the URL of a service has host and port"
        self.host = parts.netloc
        for _ in range(clients):
            await asyncio.get_running_loop().create_connection(
                lambda: _Client(self), parts.hostname, parts.port
            )
            self._connected += 1
        return await self.seen()

    async def seen(self) -> Crowded:
        """Print how much was sent to all clients together."""
        return Crowded(connected=self._connected, bytes=self.bytes)


async def main() -> None:
    """Watch until standard input ends."""
    crowd = Crowd()
    await answer_commands({"gather": crowd.gather, "seen": crowd.seen})


if __name__ == "__main__":
    asyncio.run(main())
