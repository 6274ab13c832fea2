"""The proxy of the storm does to connections what its methods say."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from tests.fakes.tcp_proxy import TcpProxy

SILENCE_S = 0.1


class Client:
    """A connection through the proxy to a server that sends back what it gets."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def asked(self, text: bytes) -> bytes:
        """Send something and return the answer."""
        self.writer.write(text)
        async with asyncio.timeout(5):
            return await self.reader.readexactly(len(text))


@contextlib.asynccontextmanager
async def echoing() -> AsyncIterator[TcpProxy]:
    """Run a server that sends back what it gets, behind a proxy."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(1_000):
                writer.write(chunk)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, TcpProxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def connected(proxy: TcpProxy) -> AsyncIterator[Client]:
    """Connect to the proxy."""
    client = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    try:
        yield client
    finally:
        client.writer.transport.abort()


async def test_the_test_proxy_forwards_both_directions_and_the_end() -> None:
    """At first nothing is changed."""
    async with echoing() as proxy, connected(proxy) as client:
        assert await client.asked(b"hello") == b"hello"
        client.writer.write_eof()
        async with asyncio.timeout(5):
            assert await client.reader.read() == b""


async def test_a_frozen_link_is_silent_and_delivers_once_it_thaws() -> None:
    """Neither side sees an end meanwhile, as behind a router that forgot the connection."""
    async with echoing() as proxy, connected(proxy) as client:
        proxy.freeze()
        client.writer.write(b"hello")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), SILENCE_S)
        proxy.thaw()
        async with asyncio.timeout(5):
            assert await client.reader.readexactly(5) == b"hello"


async def test_a_cut_link_is_a_reset_and_the_next_connection_works() -> None:
    """Also while it is frozen."""
    async with echoing() as proxy:
        async with connected(proxy) as client:
            await client.asked(b"hello")
            proxy.freeze()
            proxy.cut()
            with contextlib.suppress(ConnectionError):
                assert await client.reader.read() == b""
        proxy.thaw()
        async with connected(proxy) as client:
            assert await client.asked(b"again") == b"again"


async def test_only_the_first_answer_of_a_connection_is_held_back_and_rewritten() -> None:
    """That is the handshake."""
    async with echoing() as proxy, connected(proxy) as client:
        proxy.delay_s = SILENCE_S
        proxy.rewrite = bytes.upper
        started = time.monotonic()

        assert await client.asked(b"hello") == b"HELLO"
        assert time.monotonic() - started >= SILENCE_S
        assert await client.asked(b"again") == b"again"


async def test_a_slow_link_delays_each_chunk_until_it_is_restored() -> None:
    """A chunk takes the delay, and its size over the throughput, each way."""
    async with echoing() as proxy, connected(proxy) as client:
        proxy.chunk_delay_s, proxy.bytes_per_s = 0.04, 100.0
        started = time.monotonic()
        await client.asked(b"a")
        assert time.monotonic() - started >= 0.1

        proxy.restore()
        async with asyncio.timeout(2):  # it took 20 s at that throughput
            assert await client.asked(b"h" * 1_000) == b"h" * 1_000
