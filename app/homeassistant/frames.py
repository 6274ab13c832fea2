"""A WebSocket connection that returns all received frames at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from websockets.asyncio.client import ClientConnection
from websockets.client import ClientProtocol
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import Event, State

_MAX_BUFFERED = 256
"""The number of buffered frames at which reading the socket is paused."""

_MAX_FRAGMENTS = 4_096
"""Home Assistant sends whole messages; a proxy that splits them sends kilobytes at a time."""

_DATA = {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}


class FrameSocket(ClientConnection):
    """A client connection, for `connect(create_connection=…)`.

    One read of the socket may return hundreds of small frames. The library's `recv` returns them
    one by one, at the cost of two coroutines each; `frames` returns a list.
    """

    def __init__(self, protocol: ClientProtocol, **settings: object) -> None:
        """Initialize with the arguments of `connect`."""
        super().__init__(protocol, **settings)  # type: ignore[arg-type]
        self._frames: list[bytes] = []
        self._partial = bytearray()
        """The beginning of an incomplete message."""
        self._fragments = 0
        """The number of its fragments: empty ones cost time, too."""
        self._arrived = asyncio.Event()
        self._is_paused = False

    async def frame(self) -> bytes:
        """Wait for the next frame; only one coroutine may wait at a time.

        Raises:
            ConnectionClosed: the connection has ended.
        """
        first, *rest = await self.frames()
        self._frames = rest
        return first

    async def frames(self) -> Sequence[bytes]:
        """Wait for a frame, and return every frame received so far.

        Raises:
            ConnectionClosed: the connection has ended.
        """
        while not self._frames:
            if self.state is State.CLOSED:
                await (
                    self.recv()
                )  # no frame is ever left for it, so it raises why the connection ended
            self._arrived.clear()
            await self._arrived.wait()
        frames, self._frames = self._frames, []
        if self._is_paused:
            self._is_paused = False
            self.transport.resume_reading()
        return frames

    def process_event(self, event: Event) -> None:
        """Buffer a frame; a message in fragments counts as one frame."""
        if not isinstance(event, Frame) or event.opcode not in _DATA:
            super().process_event(event)
            return
        frame = bytes(event.data)
        if self._fragments or not event.fin:
            self._partial += frame
            self._fragments += 1
            if self._fragments > _MAX_FRAGMENTS:
                self._fail_fragments()
                return
            if not event.fin:
                return
            frame = bytes(self._partial)
            self._partial.clear()
            self._fragments = 0
        self._frames.append(frame)
        self._arrived.set()
        if len(self._frames) >= _MAX_BUFFERED and not self._is_paused:
            self._is_paused = True
            self.transport.pause_reading()

    def _fail_fragments(self) -> None:
        """Close the connection: the message has too many fragments."""
        if self.protocol.state is State.OPEN:
            reason = f"over {_MAX_FRAGMENTS} fragments"
            self.protocol.fail(CloseCode.MESSAGE_TOO_BIG, reason)
            self.send_data()
            self.transport.abort()  # the peer may go on sending and never close its side

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake the waiting coroutine: no more frames will arrive."""
        super().connection_lost(exc)
        if exc is not None and self.protocol.handshake_exc is not None:
            # The library reports a missing response; this is the reason.
            self.protocol.handshake_exc.__cause__ = exc
        self._arrived.set()
