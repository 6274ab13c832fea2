"""What the service said was durable, and whether the database has it."""

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
    """Return one acknowledgement: the committed lines behind their length."""
    return len(data).to_bytes(4) + data


class Cursors:
    """Every point that the service acknowledged, over all its lives."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        """In the order of the acknowledgements."""
        self.commits = 0

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[int]:
        """Return a descriptor that one process inherits and writes to, until it ends.

        An acknowledgement that a kill cut short was never given.
        """
        reading, writing = os.pipe()
        # With less the service would wait for this process, and be killed there too often.
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
                # The lines of the house in these tests have no newline inside a text.
                self.lines += Lines(data, data.count(b"\n")).split()
                self.commits += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A ledger against a database."""

    committed: int
    lost: int
    """Acknowledged and not in the database."""
    repeated: int
    """How often the database got a point that it had."""
    unacknowledged: int
    """Points in the database whose acknowledgement a kill prevented."""
    differing: int
    """Points that came with the same series and time as another, and other fields."""
    in_order: bool
    """Whether points arrived, for the first time, as they were committed."""


def compare(committed: Sequence[bytes], stored: Sequence[bytes]) -> Verdict:
    """Hold the ledger against the lines of the database, in the order of arrival."""
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
