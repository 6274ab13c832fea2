"""Helper processes of a benchmark, so that what they cost is not counted as the service's.

They are asked in JSON lines: one on standard input, one back on standard output.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

Answer = TypeVar("Answer")

ROOT = Path(__file__).parents[1]
HELPER_TOKEN = "benchmark-" + "0" * 32
"""The token that every helper accepts."""

_GOODBYE_S = 5.0


class Where(msgspec.Struct, frozen=True):
    """Where a helper listens."""

    url: str


class Written(msgspec.Struct, frozen=True):
    """How many lines a helper wrote to a file."""

    lines: int


class Peer:
    """A running helper."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def ask(self, answer: type[Answer], command: str, **arguments: object) -> Answer:
        """Have the helper do something and return its answer, of the type given.

        Raises:
            RuntimeError: the helper has ended; why stands on standard error.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(msgspec.json.encode({"command": command, **arguments}) + b"\n")
        if not (line := await stdout.readline()):
            raise RuntimeError(f"a helper ended before it had done {command!r}")
        return msgspec.json.decode(line, type=answer)


@asynccontextmanager
async def peer(module: str, *arguments: str) -> AsyncIterator[Peer]:
    """Run a module of this package as a helper until the block ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, cwd=ROOT, stdin=PIPE, stdout=PIPE
    )
    try:
        yield Peer(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def answer_commands(commands: Mapping[str, Callable[..., Awaitable[object]]]) -> None:
    """Be a helper: answer each line of standard input until it ends.

    It ends with the process that started this one, so no helper is left running.
    """
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    while line := await lines.readline():
        arguments = msgspec.json.decode(line, type=dict[str, object])
        command = commands[str(arguments.pop("command"))]
        answer = await command(**arguments)
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.flush()
