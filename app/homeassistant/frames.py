"""A WebSocket whose frames are taken many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from websockets.asyncio.client import ClientConnection
from websockets.client import ClientProtocol
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import Event, State

_MOST_WAITING = 256
"""So many frames may wait for one who does not take them; then the socket is not read."""

_MAX_FRAGMENTS = 4_096
"""Home Assistant sends whole messages; a proxy that cuts them sends kilobytes at a time."""

_DATA = {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}


class FrameSocket(ClientConnection):
    """A client's connection, for `connect(create_connection=…)`.

    One read of the socket may bring hundreds of small frames. The library's `recv` hands them
    out one by one, each for the price of two coroutines; here they are a list.
    """

    def __init__(self, protocol: ClientProtocol, **settings: object) -> None:
        """Take what `connect` gives."""
        super().__init__(protocol, **settings)  # type: ignore[arg-type]
        self._frames: list[bytes] = []
        self._begun = bytearray()
        """The beginning of a message whose end is still to come."""
        self._fragments = 0
        """In how many fragments it came: empty ones cost time, too."""
        self._arrived = asyncio.Event()
        self._is_paused = False

    async def frame(self) -> bytes:
        """Wait for the next frame and return it; call it only when nobody else waits.

        Raises:
            ConnectionClosed: no more will come.
        """
        first, *rest = await self.frames()
        self._frames = rest
        return first

    async def frames(self) -> Sequence[bytes]:
        """Wait for a frame, and return it with all that are behind it.

        Raises:
            ConnectionClosed: no more will come.
        """
        while not self._frames:
            if self.state is State.CLOSED:
                await self.recv()  # nothing is ever left for it: it raises what ended it all
            self._arrived.clear()
            await self._arrived.wait()
        frames, self._frames = self._frames, []
        if self._is_paused:
            self._is_paused = False
            self.transport.resume_reading()
        return frames

    def process_event(self, event: Event) -> None:
        """Take a frame that was read; a message in fragments counts as one frame."""
        if not isinstance(event, Frame) or event.opcode not in _DATA:
            super().process_event(event)
            return
        frame = bytes(event.data)
        if self._fragments or not event.fin:
            self._begun += frame
            self._fragments += 1
            if self._fragments > _MAX_FRAGMENTS:
                self._give_up()
                return
            if not event.fin:
                return
            frame = bytes(self._begun)
            self._begun.clear()
            self._fragments = 0
        self._frames.append(frame)
        self._arrived.set()
        if len(self._frames) >= _MOST_WAITING and not self._is_paused:
            self._is_paused = True
            self.transport.pause_reading()

    def _give_up(self) -> None:
        """Close the connection: the message comes in too many fragments."""
        if self.protocol.state is State.OPEN:
            reason = f"over {_MAX_FRAGMENTS} fragments"
            self.protocol.fail(CloseCode.MESSAGE_TOO_BIG, reason)
            self.send_data()
            self.transport.abort()  # it may go on without end, and never close its side

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake whoever waits: nothing more comes."""
        super().connection_lost(exc)
        if exc is not None and self.protocol.handshake_exc is not None:
            # The library blames the missing response; this says why there is none.
            self.protocol.handshake_exc.__cause__ = exc
        self._arrived.set()
