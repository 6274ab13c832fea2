"""The simulated database: the tests' InfluxDB, behind simulated connections."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from app.model import StoredPoint
from app.schema.line_protocol import parse_line
from tests.fakes.influx import FakeInflux
from tests.simulation.network import Link

PORT = 8086
_KEY = re.compile(rb"((?:[^ \\]|\\.)+) .* (-?\d+)$", re.DOTALL)


class Database(FakeInflux):
    """Stores points by identity, and remembers the order in which lines first arrived."""

    def __init__(self, link: Link, **options: Any) -> None:
        """Serve behind this link."""
        super().__init__(**options)
        self.stored: dict[tuple[bytes, bytes], bytes] = {}
        """The newest line of each series and time."""
        self.arrivals: list[tuple[int, bytes]] = []
        """First arrivals: how many lines the request had, and the line."""
        self.writes = self.refusals = 0
        self.kept_at = 0.0
        """When lines were last stored, on the loop's clock."""
        self.not_before = 0.0
        """When the last Retry-After ends; a new process of the service does not know of it."""
        self.early = 0
        """Writes before that."""
        self._arrived: set[bytes] = set()
        self._link = link
        self._life: contextlib.AsyncExitStack | None = None

    async def start(self) -> None:
        """Listen, unless it already does."""
        if self._life is None:
            self._life = contextlib.AsyncExitStack()
            await self._life.enter_async_context(self.serving(port=PORT))

    async def kill(self) -> None:
        """Stop at once; what was accepted is on its disk."""
        life, self._life = self._life, None
        if life is not None:
            self._link.cut()
            await life.aclose()

    def points_of(self, lines: Sequence[bytes] | None = None) -> list[StoredPoint]:
        """Return what a query would find."""
        return [parse_line(line) for line in (self.stored.values() if lines is None else lines)]

    def _keep(self, lines: Sequence[bytes]) -> None:
        super()._keep(lines)
        self.lines.clear()
        self.kept_at = asyncio.get_running_loop().time()
        for line in lines:
            if line not in self._arrived:
                self._arrived.add(line)
                self.arrivals.append((len(lines), line))
            self.stored[identity(line)] = line

    def _record(self, request: web.Request, lines: Sequence[bytes], status: int) -> None:
        now_s = asyncio.get_running_loop().time()
        self.writes += 1
        self.early += now_s < self.not_before
        self.refusals += status in {400, 413, 422}
        if self.fault is not None and status in {429, 503}:
            self.not_before = now_s + float(self.fault.headers.get("Retry-After", 0))


def identity(line: bytes) -> tuple[bytes, bytes]:
    """Return the series and the time of a line."""
    match = _KEY.match(line)
    assert match is not None, line
    return match[1], match[2]
