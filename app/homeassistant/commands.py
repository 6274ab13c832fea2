"""A second connection to Home Assistant, for commands: no answer delays an event."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

import msgspec

from app.homeassistant.endpoint import Endpoint, closes_translated, exchange, log_malformed
from app.homeassistant.frames import FrameSocket
from app.homeassistant.protocol import Session
from app.runtime.errors import SourceProtocolError


@contextlib.asynccontextmanager
async def open_commands(endpoint: Endpoint) -> AsyncIterator[Commands]:
    """Open a connection for commands for as long as the block lasts.

    Raises:
        SourceError: the connection cannot be opened or authenticated.
    """
    async with endpoint.open() as socket:
        session = Session(endpoint.token, subscribe=False)
        await endpoint.authenticate(socket, session)
        yield Commands(socket, session=session, timeout_s=endpoint.command_timeout_s)


class Commands:
    """An authenticated connection for commands; concurrent calls take turns."""

    def __init__(self, socket: FrameSocket, *, session: Session, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._socket = socket
        self._session = session
        # Only one coroutine may read a socket, and one answer of 6 MB at a time is enough.
        self._turn = asyncio.Lock()

    @property
    def ha_version(self) -> str | None:
        """The version in Home Assistant's greeting."""
        return self._session.ha_version

    async def call(self, command: str, **parameters: object) -> msgspec.Raw:
        """Send a command and return its result, a JSON value that is not decoded.

        Raises:
            CommandFailed: Home Assistant refused the command.
            SourceError: the connection was lost, or no answer came in time.
        """
        async with self._turn:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await self._call(command, parameters)
            except TimeoutError as exc:
                raise SourceProtocolError(
                    f"No answer to {command} within {self._timeout_s:g} s"
                ) from exc

    async def _call(self, command: str, parameters: Mapping[str, object]) -> msgspec.Raw:
        command_id, frame = self._session.command(command, **parameters)
        with closes_translated():
            await self._socket.send(frame, text=True)
            while True:
                received = await exchange(self._socket, self._session)
                log_malformed(received.malformed)
                for answer in received.answers:
                    if answer.command_id != command_id:
                        continue  # a late answer to a call that timed out
                    if answer.failure is not None:
                        raise answer.failure
                    return answer.result
