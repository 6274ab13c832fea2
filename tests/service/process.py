"""The service as users start it: a separate process, queried over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
TOKEN = "t" * 40

_LISTENING = re.compile(r"Listening on (http://\S+?)(?=[\"\s])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A running service."""

    process: asyncio.subprocess.Process
    url: str
    output: Path
    """Holds everything the service has printed, logs included."""

    async def get(self, path: str) -> Any:
        """Return the JSON body of a route."""
        async with httpx.AsyncClient(base_url=self.url, timeout=10) as client:
            response = await client.get(path)
        return response.json()

    async def post(self, path: str, body: object) -> Any:
        """Post JSON to a route and return the JSON body of the response."""
        async with httpx.AsyncClient(base_url=self.url, timeout=10) as client:
            response = await client.post(path, json=body)
        return response.json()

    async def text(self, path: str) -> str:
        """Return the body of a route."""
        async with httpx.AsyncClient(base_url=self.url, timeout=10) as client:
            response = await client.get(path)
        return response.text

    async def until(
        self,
        path: str,
        condition: Callable[[Any], bool],
        *,
        timeout_s: float = 20,
        ask: Callable[[str], Awaitable[Any]] | None = None,
    ) -> Any:
        """Poll a route until its JSON, or the result of `ask`, meets the condition; return it."""
        ask = ask or self.get
        last: object = None
        try:
            async with asyncio.timeout(timeout_s):
                while not condition(last := await ask(path)):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{path} stayed {last}\n{self.output.read_text()}") from None
        return last

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and return the exit status."""
        self.process.send_signal(number)
        async with asyncio.timeout(20):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def service(
    folder: Path,
    environment: Mapping[str, str],
    *,
    command: Sequence[str] = ("-m", "app", "run"),
    python: str = sys.executable,
    cwd: Path = ROOT,
    inherits: Sequence[int] = (),
    listening: re.Pattern[str] = _LISTENING,
) -> AsyncIterator[Service]:
    """Start the service with DATA_DIR in `folder`, isolated from the environment of the tests.

    It inherits the descriptors in `inherits`; `listening` finds its address in its output. It
    is killed when the block ends, and also when it never listens.
    """
    output = folder / "output.txt"
    settings = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "DATA_DIR": str(folder / "data"),
        "WEBSOCKET_INGESTION_PORT": "0",
        "LOG_FORMAT": "text",
        **{name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")},
        **environment,
    }
    with output.open("ab") as stream:
        start = output.stat().st_size
        process = await asyncio.create_subprocess_exec(
            python,
            *command,
            cwd=cwd,
            env=settings,
            stdout=stream,
            stderr=stream,
            pass_fds=inherits,
        )
    try:
        url = await _listening(process, output, start, listening)
        yield Service(process=process, url=url, output=output)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _listening(
    process: asyncio.subprocess.Process, output: Path, start: int, listening: re.Pattern[str]
) -> str:
    async with asyncio.timeout(30):
        while True:
            text = output.read_bytes()[start:].decode(errors="replace")
            if match := listening.search(text):
                return match[1]
            if process.returncode is not None:
                raise AssertionError(f"the service ended with {process.returncode}:\n{text}")
            await asyncio.sleep(0.02)
