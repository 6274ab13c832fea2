"""The points that the service acknowledged as durable, compared with the database."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

from app.model import Lines

_PIPE_BYTES = 1 << 20


def frame(data: bytes) -> bytes:
    """Return one acknowledgement: the length of the committed lines, then the lines."""
    return len(data).to_bytes(4) + data


class Acknowledged:
    """Every point that the service acknowledged, over all its runs."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        """In the order of acknowledgement."""
        self.commits = 0

    @contextlib.asynccontextmanager
    async def recording(self) -> AsyncIterator[int]:
        """Yield a descriptor that one process inherits and writes acknowledgements to.

        An acknowledgement that a kill cut short does not count.
        """
        reading, writing = os.pipe()
        # With a smaller pipe the service would often wait for this process, and be killed there.
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        stream = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(reading, "rb")
        )
        task = asyncio.create_task(self._read(stream), name="ledger")
        try:
            yield writing
        finally:
            os.close(writing)
            await task
            transport.close()

    async def _read(self, stream: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                length = int.from_bytes(await stream.readexactly(4))
                data = await stream.readexactly(length)
                # The lines of these tests contain no newline inside a string.
                self.lines += Lines(data, data.count(b"\n")).split()
                self.commits += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of comparing a ledger with a database."""

    committed: int
    lost: int
    """Acknowledged, but not in the database."""
    repeated: int
    """How often the database received a point that it already had."""
    unacknowledged: int
    """Points in the database whose acknowledgement a kill prevented."""
    differing: int
    """Points with the series and time of another point, but with different fields."""
    in_order: bool
    """Whether the first arrivals of the points are in the order of the commits."""


def compare(committed: Sequence[bytes], stored: Sequence[bytes]) -> Verdict:
    """Compare the ledger with the lines of the database, in the order of arrival."""
    acknowledged, arrived = set(committed), dict.fromkeys(stored)
    return Verdict(
        committed=len(committed),
        lost=len(acknowledged - arrived.keys()),
        repeated=len(stored) - len(arrived),
        unacknowledged=len(arrived.keys() - acknowledged),
        differing=len(arrived) - len(_identities(arrived)),
        in_order=[line for line in arrived if line in acknowledged] == list(committed),
    )


def _identities(lines: Iterable[bytes]) -> set[tuple[bytes, bytes]]:
    return {(line.partition(b" ")[0], line.rpartition(b" ")[2]) for line in lines}
