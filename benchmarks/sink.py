"""A helper process: a database that accepts every line at once, and counts."""

from __future__ import annotations

import argparse
import array
import asyncio
import re
import time
from pathlib import Path

import msgspec
from aiohttp import web
from isal import igzip

from benchmarks.peers import Where, Written, answer_commands
from benchmarks.tables import percentile

_LINE = re.compile(rb",entity_id=([^, ]+).* (\d+)\n")
_SAMPLED = 20
"""One in so many lines has its latency taken."""


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """What was written so far."""

    lines: int
    requests: int


class Latencies(msgspec.Struct, frozen=True, kw_only=True):
    """From the time of an event until its line was here, in milliseconds."""

    p50_ms: float
    p99_ms: float


class Cursors:
    """Counts what is written, and keeps which points when it is to be proved."""

    def __init__(self, *, keep: bool, answer_delay_s: float) -> None:
        self.url = ""
        self.is_away = False
        """Whether every connection is cut."""
        self._keep = keep
        self._answer_delay_s = answer_delay_s
        self._lines = 0
        self._requests = 0
        self._identities: list[bytes] = []
        self._latencies = array.array("d")

    async def write(self, request: web.Request) -> web.Response:
        """Read a body and respond that it is stored."""
        if self.is_away:
            return _cut(request)
        body = await request.read()
        arrived_ns = time.time_ns()
        if request.headers.get("Content-Encoding") == "gzip":
            body = igzip.decompress(body)  # type: ignore[no-untyped-call]  # every member
        # The corpus has no newline inside a string.
        self._lines += body.count(b"\n") + (not body.endswith(b"\n"))
        self._requests += 1
        self._read(body, arrived_ns)
        if self._answer_delay_s:
            await asyncio.sleep(self._answer_delay_s)
        return web.Response(status=204)

    async def ping(self, request: web.Request) -> web.Response:
        """Answer as InfluxDB 2 does."""
        if self.is_away:
            return _cut(request)
        return web.Response(status=204, headers={"X-Influxdb-Version": "v2.7.0"})

    async def where(self) -> Where:
        """Say where to write."""
        return Where(self.url)

    async def be_away(self, *, away: bool) -> Where:
        """Cut every connection from now on, or answer again."""
        self.is_away = away
        return Where(self.url)

    async def count(self) -> Count:
        """Say what was written so far."""
        return Count(lines=self._lines, requests=self._requests)

    async def latencies(self) -> Latencies:
        """Say how long the lines were under way."""
        return Latencies(
            p50_ms=percentile(self._latencies, 0.5), p99_ms=percentile(self._latencies, 0.99)
        )

    async def write_identities(self, *, path: str) -> Written:
        """Write `entity_id time_ns` of every line, as often as it came, a line each."""
        Path(path).write_bytes(b"\n".join(self._identities))  # noqa: ASYNC240 - all is over
        return Written(len(self._identities))

    def _read(self, body: bytes, arrived_ns: int) -> None:
        if self._keep:
            found = _LINE.findall(body)
            self._identities += [b"%b %b" % identity for identity in found]
            times = [time_ns for _, time_ns in found[::_SAMPLED]]
        else:
            times = [line[line.rfind(b" ") :] for line in body.splitlines()[::_SAMPLED]]
        self._latencies.extend((arrived_ns - int(time_ns)) / 1e6 for time_ns in times)


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=503)


async def main(*, keep: bool, answer_delay_s: float) -> None:
    """Serve until standard input ends."""
    ledger = Cursors(keep=keep, answer_delay_s=answer_delay_s)
    app = web.Application(client_max_size=0)
    app.router.add_post("/api/v2/write", ledger.write)
    app.router.add_get("/ping", ledger.ping)
    runner = web.AppRunner(app, auto_decompress=False, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ledger.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        await answer_commands(
            {
                "where": ledger.where,
                "be_away": ledger.be_away,
                "count": ledger.count,
                "latencies": ledger.latencies,
                "write_identities": ledger.write_identities,
            }
        )
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="remember every point, to prove it")
    parser.add_argument("--answer-delay", type=float, default=0.0, help="seconds per request")
    chosen = parser.parse_args()
    asyncio.run(main(keep=chosen.keep, answer_delay_s=chosen.answer_delay))
