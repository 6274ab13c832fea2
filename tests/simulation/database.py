"""The simulated database: the tests' InfluxDB, behind simulated connections."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from typing import Literal, NamedTuple, TypeAlias, get_args

from aiohttp import web

from app.model import StoredPoint
from app.schema.line_protocol import parse_line
from tests.fakes.influx import FakeInflux, Fault
from tests.simulation.network import Link, Transport

Dialect: TypeAlias = Literal["v1", "v2", "v3", "victoria"]
"""A version of InfluxDB, or VictoriaMetrics."""

DIALECTS: tuple[Dialect, ...] = get_args(Dialect)
PORT = 8086
_FLUSH_S = 9.0
"""VictoriaMetrics flushes within INFLUXDB_FLUSH_INTERVAL, which is 10 s."""
_CLIENT_TIMEOUT_S = 30.0
"""INFLUXDB_TIMEOUT: how long a client waits for an answer that never comes."""
_KEY = re.compile(rb"((?:[^ \\]|\\.)+) .* (-?\d+)$", re.DOTALL)


class Arrival(NamedTuple):
    """The first arrival of a line."""

    request: int
    size: int
    """How many lines of the request were stored."""
    line: bytes


class Database(FakeInflux):
    """Stores points by identity, and remembers the order in which lines first arrived."""

    def __init__(self, link: Link, dialect: Dialect, *, token: str) -> None:
        """Serve behind this link."""
        version = "v1" if dialect == "victoria" else dialect
        super().__init__(version=version, token="" if version == "v1" else token)
        self._restarts = count(1) if dialect == "victoria" else None
        self.stored: dict[tuple[bytes, bytes], bytes] = {}
        """The newest line of each series and time."""
        self.arrivals: list[Arrival] = []
        self.refused: defaultdict[bytes, set[int]] = defaultdict(set)
        """The requests in which each line was refused."""
        self.writes = 0
        self.in_refused_requests: set[bytes] = set()
        """Lines of requests that were refused, whether it was for them or not."""
        self.kept_at = 0.0
        """When lines were last stored, on the loop's clock."""
        self.not_before = 0.0
        """When the last Retry-After ends; a new process of the service does not know of it."""
        self.early = 0
        """Writes before that."""
        self.lost = 0
        """How many accepted points a kill took."""
        self._awaited_until = 0.0
        """When the client of the last request that hangs has given up."""
        self._request = 0
        self._arrived: set[bytes] = set()
        self._unflushed: dict[tuple[bytes, bytes], float] = {}
        """When VictoriaMetrics accepted what may not be on its disk."""
        self._link = link
        self._life: contextlib.AsyncExitStack | None = None

    @property
    def takes_writes(self) -> bool:
        """Whether it runs without a fault, has lost nothing, and nobody waits for an answer."""
        is_awaited = asyncio.get_running_loop().time() < self._awaited_until
        return self._life is not None and self.fault is None and not self.lost and not is_awaited

    async def start(self) -> None:
        """Listen, unless it already does."""
        if self._life is None:
            if self._restarts is not None:
                self.started_at = next(self._restarts)
            self._life = contextlib.AsyncExitStack()
            await self._life.enter_async_context(self.serving(port=PORT))

    async def kill(self) -> None:
        """Stop at once; VictoriaMetrics loses what it has not flushed."""
        life, self._life = self._life, None
        if life is not None:
            self._link.cut()
            if self._restarts is not None:
                self._lose()
            await life.aclose()

    def points_of(self, lines: Sequence[bytes] | None = None) -> list[StoredPoint]:
        """Return what a query would find."""
        return [parse_line(line) for line in (self.stored.values() if lines is None else lines)]

    def expect_type(self, field: str, kind: type) -> None:
        """Let points whose field has another type be a conflict, until `forget_types`."""
        self._types[0, "home_assistant_events", field] = kind

    def _lose(self) -> None:
        bound = asyncio.get_running_loop().time() - _FLUSH_S
        for each, accepted_at in self._unflushed.items():
            if accepted_at > bound:
                self.lost += self.stored.pop(each, None) is not None
        self._unflushed.clear()

    def _faults(self, lines: Sequence[bytes]) -> list[Fault]:
        self._request += 1
        faults = super()._faults(lines)
        for fault in faults:
            self.refused[fault.line].add(self._request)
        return faults

    def _keep(self, lines: Sequence[bytes]) -> None:
        super()._keep(lines)
        self.lines.clear()
        self.kept_at = asyncio.get_running_loop().time()
        for line in lines:
            if line not in self._arrived:
                self._arrived.add(line)
                self.arrivals.append(Arrival(self._request, len(lines), line))
            if self._restarts is not None and identity(line) not in self.stored:
                self._unflushed[identity(line)] = asyncio.get_running_loop().time()
            self.stored[identity(line)] = line

    def _record(self, request: web.Request, lines: Sequence[bytes], status: int) -> None:
        now_s = asyncio.get_running_loop().time()
        self.writes += 1
        self.early += now_s < self.not_before
        if self.fault is not None and self.fault.act == "hang":
            self._awaited_until = now_s + _CLIENT_TIMEOUT_S
        if status in {400, 413, 422}:
            self.in_refused_requests.update(lines)
        if self.fault is not None and status in {429, 503} and _is_awaited(request):
            self.not_before = now_s + float(self.fault.headers.get("Retry-After", 0))


def _is_awaited(request: web.Request) -> bool:
    """Whether the client still waits for the answer: a silent link may deliver a request later."""
    transport = request.transport
    return isinstance(transport, Transport) and not transport.peer.is_closing()


def identity(line: bytes) -> tuple[bytes, bytes]:
    """Return the series and the time of a line."""
    match = _KEY.match(line)
    assert match is not None, line
    return match[1], match[2]
