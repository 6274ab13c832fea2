"""An MQTT 3.1.1 broker for one publisher: retains messages, and publishes the will.

https://docs.oasis-open.org/mqtt/mqtt/v3.1.1/mqtt-v3.1.1.html
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

_REFUSED = 5


class FakeBroker:
    """Serves on a loopback port."""

    def __init__(self, *, username: str | None = None, password: str | None = None) -> None:
        """Without a user, everyone may connect."""
        self.retained: dict[str, str] = {}
        self.history: list[tuple[str, str]] = []
        """Topic and payload of each message."""
        self.client_ids: list[str] = []
        self.acknowledges = True
        self._credentials = (username, password)
        self._writers: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def serving(
        self, *, port: int = 0, tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[int]:
        """Serve and return the port."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", port, ssl=tls)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            self.disconnect()
            await server.wait_closed()

    def disconnect(self) -> None:
        """Abort all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        will: tuple[str, str] | None = None
        try:
            while True:
                kind, flags, body = await _packet(reader)
                match kind:
                    case 1:  # CONNECT
                        will, accepted = self._connect(body)
                        writer.write(bytes((0x20, 2, 0, 0 if accepted else _REFUSED)))
                        if not accepted:
                            will = None
                            return
                    case 3:  # PUBLISH
                        self._publish(flags, body, writer)
                    case 12:  # PINGREQ
                        writer.write(b"\xd0\x00")
                    case 14:  # DISCONNECT
                        will = None
                        return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            if will is not None:
                self._retain(*will)
            writer.close()

    def _connect(self, body: bytes) -> tuple[tuple[str, str] | None, bool]:
        """Return the will, and whether the user may connect."""
        fields = _Fields(body)
        assert fields.text() == "MQTT"
        _, flags = fields.take(1), fields.take(1)[0]
        fields.take(2)
        self.client_ids.append(fields.text())
        will = (fields.text(), fields.text()) if flags & 0x04 else None
        username = fields.text() if flags & 0x80 else None
        password = fields.text() if flags & 0x40 else None
        return will, self._credentials in {(None, None), (username, password)}

    def _publish(self, flags: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        fields = _Fields(body)
        topic = fields.text()
        number = fields.take(2)
        assert flags == 0b0011, "at least once, and retained"
        if self.acknowledges:
            self._retain(topic, fields.rest().decode())
            writer.write(b"\x40\x02" + number)

    def _retain(self, topic: str, payload: str) -> None:
        self.retained[topic] = payload
        self.history.append((topic, payload))


class _Fields:
    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def take(self, count: int) -> bytes:
        self._at += count
        return self._body[self._at - count : self._at]

    def text(self) -> str:
        return self.take(int.from_bytes(self.take(2), "big")).decode()

    def rest(self) -> bytes:
        return self._body[self._at :]


async def _packet(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    """Return kind, flags and body of a packet."""
    first = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return first >> 4, first & 0x0F, await reader.readexactly(length)
