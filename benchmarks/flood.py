"""A helper process: a Home Assistant that sends one round of the corpus as fast as it is read.

Its frames are made beforehand, so that it is never what is measured.
"""

from __future__ import annotations

import argparse
import asyncio

import msgspec
from websockets.asyncio.server import ServerConnection, serve
from websockets.frames import Frame, Opcode

from benchmarks.corpus import EVENT_ID, make_corpus, make_frames
from benchmarks.peers import Where, answer_commands


class _Command(msgspec.Struct, frozen=True):
    id: int
    type: str


class Flood:
    """Answers a client's commands until it is asked to send the events."""

    def __init__(self, frames: list[bytes]) -> None:
        self.url = ""
        self._poured = b"".join(Frame(Opcode.TEXT, frame).serialize(mask=False) for frame in frames)
        self._subscribers: set[ServerConnection] = set()

    async def where(self) -> Where:
        """Say where to connect."""
        return Where(self.url)

    async def pour(self) -> None:
        """Send the round to every subscriber."""
        for socket in self._subscribers:
            socket.transport.write(self._poured)

    async def talk(self, socket: ServerConnection) -> None:
        """Let anyone in and say yes to everything."""
        await socket.send('{"type":"auth_required","ha_version":"2026.11.0"}')
        await socket.recv()
        await socket.send('{"type":"auth_ok","ha_version":"2026.11.0"}')
        async for message in socket:
            command = msgspec.json.decode(message, type=_Command)
            answer = {"id": command.id, "type": "result", "success": True}
            await socket.send(
                msgspec.json.encode({**answer, "result": {"state": "RUNNING"}}), text=True
            )
            if command.id == EVENT_ID:
                self._subscribers.add(socket)


async def main(*, events: int, per_frame: int) -> None:
    """Serve until standard input ends."""
    flood = Flood(make_frames(make_corpus(events), per_frame=per_frame))
    async with serve(flood.talk, "127.0.0.1", 0, compression=None, close_timeout=0.1) as server:
        port = server.sockets[0].getsockname()[1]
        flood.url = f"ws://127.0.0.1:{port}/api/websocket"
        await answer_commands({"where": flood.where, "pour": flood.pour})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--per-frame", type=int, required=True)
    chosen = parser.parse_args()
    asyncio.run(main(events=chosen.events, per_frame=chosen.per_frame))
