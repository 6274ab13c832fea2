"""Frames of a WebSocket, many at a time, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import chain

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from app.homeassistant.frames import FrameSocket

MANY = 20_000
PATIENCE_S = 10


@asynccontextmanager
async def hearing(
    talk: Callable[[ServerConnection], Awaitable[None]],
) -> AsyncIterator[FrameSocket]:
    """Connect to a server that talks."""
    async with (
        asyncio.timeout(PATIENCE_S),
        serve(talk, "127.0.0.1", 0, compression=None, close_timeout=0.1) as server,
        connect(
            f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}",
            compression=None,
            create_connection=FrameSocket,
        ) as socket,
    ):
        assert isinstance(socket, FrameSocket)
        yield socket


async def lists_of(socket: FrameSocket) -> list[Sequence[bytes]]:
    """Read frames until no more arrive."""
    lists: list[Sequence[bytes]] = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            lists.append(await socket.frames())
    return lists


async def test_frames_are_read_in_order_and_several_at_once() -> None:
    """What one read of the socket brought is one list."""

    async def talk(socket: ServerConnection) -> None:
        for number in range(MANY):
            await socket.send(str(number))

    async with hearing(talk) as socket:
        first = await socket.frame()
        lists = await lists_of(socket)

    taken = [first, *chain(*lists)]
    assert taken == [b"%d" % number for number in range(MANY)]
    assert len(lists) < MANY / 10


async def test_a_message_in_fragments_is_one_frame() -> None:
    """Home Assistant sends none, but a proxy may cut what it passes on."""

    async def talk(socket: ServerConnection) -> None:
        await socket.send("whole")
        await socket.send(["in ", "three ", "parts"])
        await socket.send([b"by", b"tes"])
        await socket.send("the end")

    async with hearing(talk) as socket:
        assert [*chain(*await lists_of(socket))] == [
            b"whole",
            b"in three parts",
            b"bytes",
            b"the end",
        ]


async def test_frames_that_are_not_taken_pause_the_socket() -> None:
    """A peer that floods a busy reader fills the socket buffers, not the memory."""
    sent = 0

    async def talk(socket: ServerConnection) -> None:
        nonlocal sent
        for number in range(MANY):
            await socket.send(b"%d " % number + bytes(1_000))
            sent = number

    async with hearing(talk) as socket:
        before = -1
        while before < sent or sent == 0:
            before = sent
            await asyncio.sleep(0.2)
        assert sent < MANY - 1, "the socket took it all"

        waiting = len(await socket.frames())
        assert waiting < 1_000
        assert waiting + sum(map(len, await lists_of(socket))) == MANY


async def test_frames_received_before_the_end_are_delivered() -> None:
    """Every later call raises that the connection is closed."""

    async def talk(socket: ServerConnection) -> None:
        await socket.send("last words")
        socket.transport.abort()

    async with hearing(talk) as socket:
        await socket.wait_closed()
        assert await socket.frames() == [b"last words"]
        for _ in range(2):
            with pytest.raises(ConnectionClosed):
                await socket.frame()


@pytest.mark.parametrize("fragment", ["", "x"])
async def test_a_message_in_too_many_fragments_ends_the_connection(fragment: str) -> None:
    """Their number is bounded, not only their size: a message may have empty ones without end."""

    async def endless() -> AsyncIterator[str]:
        yield "begin"
        while True:
            yield fragment
            await asyncio.sleep(0)  # both ends share this loop

    async def talk(socket: ServerConnection) -> None:
        await socket.send("whole")
        with contextlib.suppress(ConnectionClosed):
            await socket.send(endless())

    async with hearing(talk) as socket:
        assert await socket.frame() == b"whole"
        with pytest.raises(ConnectionClosed) as closed:
            await socket.frame()

    assert closed.value.sent is not None
    assert closed.value.sent.code == CloseCode.MESSAGE_TOO_BIG
    assert "fragments" in closed.value.sent.reason


async def test_fragments_are_counted_for_each_message() -> None:
    """Many messages of a few fragments are no reason to hang up."""

    async def talk(socket: ServerConnection) -> None:
        for _ in range(3):
            await socket.send(["x"] * 3_000)

    async with hearing(talk) as socket:
        assert [*chain(*await lists_of(socket))] == [b"x" * 3_000] * 3
