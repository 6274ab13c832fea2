"""A fake InfluxDB 1, 2 or 3 on a real socket: keeps every line it accepts, misbehaves on request.

What they have in common is here, what sets them apart in the rules of each version.

https://docs.influxdata.com/influxdb/v1/tools/api/
https://docs.influxdata.com/influxdb/v2/api/v2/
https://docs.influxdata.com/influxdb3/core/api/v3/
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import re
import ssl
import zlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self, TypeAlias

from aiohttp import web

from app.model import StoredPoint
from app.schema.line_protocol import parse_line
from tests.fakes.replies import HANG, HTML_500, OK, RESET, UNAUTHORIZED, Reply, error, play

__all__ = ["HANG", "HTML_500", "OK", "RESET", "UNAUTHORIZED", "FakeInflux", "Reply", "error"]

_LINE = re.compile(
    rb'(?:[^ \\\n]|\\.)+ (?:"(?:[^"\\]|\\.)*"|[^"\n])*(?:\n|$)|[^\n]+(?:\n|$)',
    re.DOTALL,
)

_BEYOND = "points beyond retention policy"
_SELECT = re.compile(r'SELECT probe FROM "(?P<measurement>\w+)" WHERE time = (?P<time>\d+)')
_FLUX = re.compile(r'time\(v: (?P<time>\d+)\), .*_measurement == "(?P<measurement>\w+)"')
_SQL = re.compile(
    r"SELECT probe FROM (?P<measurement>\w+) WHERE time = to_timestamp_nanos\((?P<time>\d+)\)"
)

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One write as it arrived."""

    lines: tuple[bytes, ...]
    status: int
    """What was answered; 0 when nothing was."""
    query: dict[str, str]
    headers: dict[str, str]
    peer: str
    """Address and port of the client's end of the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a line is not stored."""

    number: int
    line: bytes
    reason: str
    is_conflict: bool = False
    """Whether the line is well-formed, but a field of it has another type already."""


class FakeInflux:
    """One organization with buckets, or databases, and one token or one user.

    Writes take their answers from `script` while there are any; after that the rules of a
    real InfluxDB hold: credentials, organization and bucket must be right, lines must parse,
    and a field keeps the type it was first written with.
    """

    def __init__(  # noqa: PLR0915 - a fake has many switches
        self,
        *script: Reply,
        version: Literal["v1", "v2", "v3"] = "v2",
        token: str = "token-of-the-test",
        username: str = "",
        password: str = "",
        org: str = "homeiq",
        bucket: str = "home_assistant_events",
    ) -> None:
        """Take the first answers, and what exists; without a token or user all may write."""
        self.script = deque(script)
        self.version = version
        self.token = token
        self.username = username
        self.password = password
        self.org = org
        self.buckets = {bucket}
        self.refuses: Callable[[bytes], str | None] = lambda _: None
        """Gives the reason why a line is refused beside those of the real ones."""
        self.partial = False
        """Store the good lines of a body with bad ones and answer 422, as for type conflicts."""
        self.oldest_ns: int | None = None
        """Points before it are outside of the retention; None keeps all."""
        self.status_of_old: int | None = None
        """What is answered then; None for what this version answers."""
        self.most_series: int | None = None
        """Series that one database may have; None for no limit."""
        self.most_tag_values: int | None = None
        """Values that a tag may have; None for no limit."""
        self.takes_gzip = True
        """Whether gzipped bodies are unpacked, or answered with `gzip_refusal`."""
        self.gzip_refusal = Reply(status=415, body="Unsupported Media Type")
        self.breaks_on: Callable[[bytes], bool] = lambda _: False
        """A body with such a line is answered with 500."""
        self.max_body_bytes: int | None = None
        """More is answered with 413; None for no limit."""
        self.may_create_buckets = True
        self.may_write = True
        """Whether the token, or the user, may write; else it may only read."""
        self.may_read = True
        self.forgets = False
        """Whether what is accepted is kept nowhere."""
        self.silent_on: frozenset[str] = frozenset()
        """Paths whose requests are never answered."""
        self.delay_s = 0.0
        """How long every write takes."""
        self.fault: Reply | None = None
        """What every write is answered after the script, whatever the rules say."""
        self.pings = 0
        self.alive = True
        """Whether `/ping` says so."""
        self.started_at: int | None = None
        """When its process started, as VictoriaMetrics says at `/metrics`; None for InfluxDB."""
        self.metrics_reply: Reply | None = None
        """What `/metrics` is answered instead."""
        self.metrics_asked = 0
        self.ping_reply: Reply | None = None
        """What `/ping` is answered instead of the version."""
        self.lines: list[bytes] = []
        """Every line accepted, in order, as often as it was accepted."""
        self.requests: list[Request] = []
        self.url = ""
        self._rules = _RULES[version]()
        self._types: dict[tuple[str, str], type] = {}
        self._series: set[bytes] = set()
        self._ended = asyncio.Event()

    @property
    def statuses(self) -> list[int]:
        """What the writes were answered, in order."""
        return [request.status for request in self.requests]

    @asynccontextmanager
    async def serving(
        self, *, port: int = 0, tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[Self]:
        """Listen on a port of 127.0.0.1 until the block ends; may be entered again."""
        self._ended.clear()
        app = web.Application(client_max_size=0, middlewares=[self._silence])
        app.router.add_post(self._rules.path, self._write)
        app.router.add_get("/ping", self._ping)
        app.router.add_get("/metrics", self._metrics)
        self._rules.add_routes(app.router, self)
        runner = web.AppRunner(app, shutdown_timeout=1.0, auto_decompress=False)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls)
            await site.start()
            bound = runner.addresses[0][1]
            self.url = f"{'https' if tls else 'http'}://127.0.0.1:{bound}"
            yield self
        finally:
            self._ended.set()
            await runner.cleanup()

    async def wait_for(self, condition: Callable[[Self], bool], *, within_s: float = 5.0) -> None:
        """Wait until the condition holds; it is looked at after every request."""
        async with asyncio.timeout(within_s):
            while not condition(self):
                await asyncio.sleep(0.005)

    def found(self, measurement: str, time_ns: int) -> list[StoredPoint]:
        """Return the points of a measurement at one moment."""
        return [
            point
            for point in self.points()
            if point.measurement == measurement and point.time_ns == time_ns
        ]

    def delete(self, measurement: str) -> None:
        """Delete all points of a measurement."""
        self.lines = [line for line in self.lines if parse_line(line).measurement != measurement]

    def forget_types(self) -> None:
        """Let every field have any type again, as after its measurement was dropped."""
        self._types.clear()

    def points(self) -> list[StoredPoint]:
        """Return what a query would find: of points with the same identity the last one."""
        parsed = [parse_line(line) for line in self.lines]
        identities = {
            (point.measurement, *sorted(point.tags.items()), point.time_ns): point
            for point in parsed
        }
        return list(identities.values())

    def respond(self, reply: Reply) -> web.Response:
        """Return a reply as a response."""
        return web.Response(
            status=reply.status, body=reply.body.encode() or None, headers=reply.headers
        )

    @web.middleware
    async def _silence(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in self.silent_on:
            await self._ended.wait()
        return await handler(request)

    async def _write(self, request: web.Request) -> web.StreamResponse:
        reply = self.script.popleft() if self.script else self.fault
        if reply is not None and reply.act == "early":
            self._record(request, [], reply.status)
            return await play(request, reply, ended=self._ended)
        body = await request.read()
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if _is_gzip(request) and not self.takes_gzip:
            self._record(request, [], self.gzip_refusal.status)
            return await play(request, self.gzip_refusal, ended=self._ended)
        lines = _split(self._rules.unpacked(body) if _is_gzip(request) else body)
        lines, old = self._by_age(lines)
        faults = self._faults(lines)
        if reply is None:
            reply = self._judge(request, lines, faults, len(body))
            if old and reply is OK:
                reply = self._rules.too_old(old, status=self.status_of_old)
        if reply.status == web.HTTPNoContent.status_code and reply.act == "answer":
            self._keep(lines)
        elif reply.keeps:
            bad = {fault.number for fault in faults}
            self._keep([line for number, line in enumerate(lines, start=1) if number not in bad])
        self._record(request, [*lines, *old], reply.status if reply.act == "answer" else 0)
        return await play(request, reply, ended=self._ended)

    def _by_age(self, lines: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Return the lines that are young enough to be kept, and the others."""
        bound = self.oldest_ns
        if bound is None:
            return lines, []
        old = [line for line in lines if int(line.rsplit(b" ", 1)[-1]) < bound]
        return [line for line in lines if int(line.rsplit(b" ", 1)[-1]) >= bound], old

    def _judge(
        self, request: web.Request, lines: Sequence[bytes], faults: Sequence[Fault], size: int
    ) -> Reply:
        if (refusal := self._rules.refusal(request, self)) is not None:
            return refusal
        if not self.may_write:
            return error(403, "insufficient permissions for write", code="forbidden")
        if (missing := self._rules.missing(request, self)) is not None:
            return missing
        if self.max_body_bytes is not None and size > self.max_body_bytes:
            return self._rules.too_large(self.max_body_bytes)
        if any(self.breaks_on(line) for line in lines):
            return error(500, "engine broke down", code="internal error")
        return self._rules.verdict(faults, lines, partial=self.partial) if faults else OK

    def _faults(self, lines: Sequence[bytes]) -> list[Fault]:
        types, over = dict(self._types), self._over_limits(lines)
        faults = []
        for number, line in enumerate(lines, start=1):
            reason, is_conflict = self.refuses(line), False
            if reason is None:
                reason = over.get(line.split(b" ", 1)[0])
            if reason is None:
                reason, is_conflict = _flaw(line, types, self._rules)
            if reason is not None:
                fault = Fault(number=number, line=line, reason=reason, is_conflict=is_conflict)
                faults.append(fault)
        return faults

    def _over_limits(self, lines: Sequence[bytes]) -> dict[bytes, str]:
        """Say which series are refused, as InfluxDB 1 does, which looks once per request.

        All that a request would start are refused when there is no room for all of them. Any
        number of new values of a tag is taken while the tag has fewer than it may have.
        """
        started = {line.split(b" ", 1)[0] for line in lines} - self._series
        most, most_values = self.most_series, self.most_tag_values
        if most is not None and len(self._series) + len(started) > most:
            return dict.fromkeys(started, f"max-series-per-database limit exceeded: ({most})")
        if most_values is None:
            return {}
        values: dict[bytes, set[bytes]] = {}
        for tag in (tag for series in self._series for tag in series.split(b",")[1:]):
            values.setdefault(tag.split(b"=")[0], set()).add(tag)
        full = {key: tags for key, tags in values.items() if len(tags) >= most_values}
        return {
            series: f"max-values-per-tag limit exceeded ({len(full[key])}/{most_values}):"
            f' measurement="{series.split(b",")[0].decode()}" tag="{key.decode()}" value="…"'
            for series in started
            for tag in series.split(b",")[1:]
            if (key := tag.split(b"=")[0]) in full and tag not in full[key]
        }

    def _keep(self, lines: Sequence[bytes]) -> None:
        if self.forgets:
            return
        self.lines.extend(lines)
        for line in lines:
            _flaw(line, self._types, self._rules)
            self._series.add(line.split(b" ", 1)[0])

    def _record(self, request: web.Request, lines: Sequence[bytes], status: int) -> None:
        self.requests.append(
            Request(
                lines=tuple(lines),
                status=status,
                query=dict(request.query),
                headers=dict(request.headers),
                peer=_peer(request),
            )
        )

    async def _metrics(self, _: web.Request) -> web.Response:
        self.metrics_asked += 1
        if self.metrics_reply is not None:
            return self.respond(self.metrics_reply)
        if self.started_at is None:
            return web.Response(status=404)
        started = f"process_start_time_seconds {self.started_at}\nvm_app_version 1\n"
        return web.Response(text=started)

    async def _ping(self, request: web.Request) -> web.Response:
        self.pings += 1
        if not self.alive:
            return web.Response(status=503)
        if self.ping_reply is not None:
            return self.respond(self.ping_reply)
        return self.respond(self._rules.ping(request, self))


class Rules(Protocol):
    """What one version does in its own way."""

    path: str
    unparsable: str
    """What it says of a `{line}` that it cannot parse."""
    conflict: str
    """What it says of a `{field}` of another type."""

    def add_routes(self, router: web.UrlDispatcher, server: FakeInflux) -> None:
        """Add what there is beside `/ping` and the path of writes."""
        ...

    def unpacked(self, body: bytes) -> bytes:
        """Unpack a gzipped body as this version does."""
        ...

    def ping(self, request: web.Request, server: FakeInflux) -> Reply:
        """Answer `/ping`."""
        ...

    def refusal(self, request: web.Request, server: FakeInflux) -> Reply | None:
        """Answer whoever may not do this; None for all others."""
        ...

    def missing(self, request: web.Request, server: FakeInflux) -> Reply | None:
        """Answer a write to what does not exist; None when it does."""
        ...

    def too_large(self, max_bytes: int) -> Reply:
        """Answer a body that is too large."""
        ...

    def verdict(self, faults: Sequence[Fault], lines: Sequence[bytes], *, partial: bool) -> Reply:
        """Answer a body some of whose lines have faults."""
        ...

    def too_old(self, old: Sequence[bytes], *, status: int | None) -> Reply:
        """Answer a body some of whose lines are outside of the retention."""
        ...


class RulesOf1:
    """InfluxDB 1: writes the good lines and answers 400 for the others; errors in a header too."""

    path = "/write"
    unparsable = "unable to parse '{line}': invalid boolean"
    conflict = (
        'field type conflict: input field "{field}" on measurement "{measurement}"'
        " is type {found}, already exists as type {wanted}"
    )

    def add_routes(self, router: web.UrlDispatcher, server: FakeInflux) -> None:
        """Add queries, which create databases."""

        async def query(request: web.Request) -> web.Response:
            if (refusal := self.refusal(request, server)) is not None:
                return server.respond(refusal)
            if (sought := _SELECT.fullmatch(request.query["q"])) is not None:
                found = server.found(sought["measurement"], int(sought["time"]))
                rows = {
                    "name": sought["measurement"],
                    "columns": ["time", "probe"],
                    "values": [[point.time_ns] for point in found],
                }
                result = {"series": [rows]} if found else {"statement_id": 0}
                return web.json_response({"results": [result]})
            if request.query["q"].startswith("SHOW RETENTION POLICIES"):
                names = ["name", "duration", "shardGroupDuration", "replicaN", "default"]
                policy = ["autogen", "1h0m0s" if server.oldest_ns else "0s", "1h0m0s", 1, True]
                rows = {"columns": names, "values": [policy]}
                return web.json_response({"results": [{"series": [rows]}]})
            if (deleted := re.fullmatch(r'DELETE FROM "(\w+)"', request.query["q"])) is not None:
                server.delete(deleted[1])
                return web.json_response({"results": [{"statement_id": 0}]})
            name = re.fullmatch(r'CREATE DATABASE "((?:[^"\\]|\\.)*)"', request.query["q"])
            assert name is not None, request.query["q"]
            if not server.may_create_buckets:
                return server.respond(
                    _error_of_1(403, f"error authorizing query: {server.username} not authorized")
                )
            server.buckets.add(re.sub(r"\\(.)", r"\1", name[1]))
            return web.json_response({"results": [{"statement_id": 0}]})

        router.add_route("*", "/query", query)

    def unpacked(self, body: bytes) -> bytes:
        """Read every member."""
        return gzip.decompress(body)

    def ping(self, request: web.Request, server: FakeInflux) -> Reply:
        """Name the version, to anyone."""
        return Reply(headers={"X-Influxdb-Version": "1.6.7~rc0", "X-Influxdb-Build": "OSS"})

    def refusal(self, request: web.Request, server: FakeInflux) -> Reply | None:
        """Want user and password, if there are users."""
        pair = base64.b64encode(f"{server.username}:{server.password}".encode()).decode()
        if not server.username or request.headers.get("Authorization") == f"Basic {pair}":
            return None
        return _error_of_1(401, "authorization failed")

    def missing(self, request: web.Request, server: FakeInflux) -> Reply | None:
        """Want a database that exists."""
        assert request.query["precision"] == "ns"
        name = request.query.get("db", "")
        if name in server.buckets:
            return None
        return _error_of_1(404, f'database not found: "{name}"')

    def too_large(self, max_bytes: int) -> Reply:
        """Say so with its own status."""
        return _error_of_1(413, "Request Entity Too Large")

    def verdict(self, faults: Sequence[Fault], lines: Sequence[bytes], *, partial: bool) -> Reply:
        """Keep the good lines; a limit hides conflicts, and both hide what cannot be parsed."""
        conflicts = [fault for fault in faults if fault.is_conflict]
        limited = [fault for fault in faults if "limit exceeded" in fault.reason]
        told = "\n".join(fault.reason for fault in (limited[:1] or conflicts[:1] or faults))
        if not conflicts and not limited and len(faults) == len(lines):
            return _error_of_1(400, told)
        dropped = len(conflicts) + len(limited)
        return _error_of_1(400, f"partial write: {told} dropped={dropped}", keeps=True)

    def too_old(self, old: Sequence[bytes], *, status: int | None) -> Reply:
        """Keep the others and count the old ones."""
        told = f"partial write: points beyond retention policy dropped={len(old)}"
        return _error_of_1(status or 400, told, keeps=True)


class RulesOf2:
    """InfluxDB 2: stores a body whole or not at all, except for type conflicts."""

    path = "/api/v2/write"
    unparsable = "unable to parse '{line}': invalid boolean"
    conflict = (
        'field type conflict: input field "{field}" on measurement "{measurement}"'
        " is type {found}, already exists as type {wanted}"
    )

    def add_routes(self, router: web.UrlDispatcher, server: FakeInflux) -> None:
        """Add organizations, buckets, queries, deletions and `/health`."""

        def guarded(
            answer: Callable[[web.Request], web.Response],
        ) -> Callable[[web.Request], web.Response]:
            def answered(request: web.Request) -> web.Response:
                refusal = self.refusal(request, server)
                return answer(request) if refusal is None else server.respond(refusal)

            return answered

        async def orgs(request: web.Request) -> web.Response:
            listed = {"orgs": [{"id": "00000000000000a1", "name": server.org}]}
            return guarded(lambda _: web.json_response(listed))(request)

        async def create(request: web.Request) -> web.Response:
            wanted = await request.json()
            return guarded(lambda _: self._created(wanted, server))(request)

        async def buckets(request: web.Request) -> web.Response:
            rules = [{"type": "expire", "everySeconds": 3600}] if server.oldest_ns else []
            listed = {"buckets": [{"name": request.query["name"], "retentionRules": rules}]}
            return guarded(lambda _: web.json_response(listed))(request)

        async def health(_: web.Request) -> web.Response:
            return web.json_response({"name": "influxdb", "status": "pass", "version": "v2.7.12"})

        async def query(request: web.Request) -> web.Response:
            sought = _FLUX.search((await request.json())["query"])
            assert sought is not None
            if not server.may_read:
                reply = error(404, "could not find bucket", code="not found")
                return server.respond(reply)
            found = server.found(sought["measurement"], int(sought["time"]))
            table = "".join(f",_result,0,{point.measurement}\r\n" for point in found)
            return guarded(lambda _: web.Response(text=table or "\r\n"))(request)

        async def delete(request: web.Request) -> web.Response:
            predicate = (await request.json())["predicate"]
            server.delete(predicate.removeprefix('_measurement="').removesuffix('"'))
            return guarded(lambda _: web.Response(status=204))(request)

        router.add_post("/api/v2/query", query)
        router.add_post("/api/v2/delete", delete)
        router.add_get("/api/v2/orgs", orgs)
        router.add_post("/api/v2/buckets", create)
        router.add_get("/api/v2/buckets", buckets)
        router.add_get("/health", health)

    def unpacked(self, body: bytes) -> bytes:
        """Read every member."""
        return gzip.decompress(body)

    def ping(self, request: web.Request, server: FakeInflux) -> Reply:
        """Name the version, to anyone."""
        return Reply(headers={"X-Influxdb-Version": "v2.7.12", "X-Influxdb-Build": "OSS"})

    def refusal(self, request: web.Request, server: FakeInflux) -> Reply | None:
        """Want the token and the organization."""
        if request.headers.get("Authorization") != f"Token {server.token}":
            return UNAUTHORIZED
        if request.query.get("org", server.org) != server.org:
            return error(404, "organization name not found", code="not found")
        return None

    def missing(self, request: web.Request, server: FakeInflux) -> Reply | None:
        """Want a bucket that exists."""
        bucket = request.query.get("bucket", "")
        if bucket in server.buckets:
            return None
        return error(404, f'bucket "{bucket}" not found', code="not found")

    def too_large(self, max_bytes: int) -> Reply:
        """Say so with its own status."""
        return error(413, "request too large", code="request too large")

    def verdict(self, faults: Sequence[Fault], lines: Sequence[bytes], *, partial: bool) -> Reply:
        """Keep the good lines for a conflict, and nothing for a line that does not parse."""
        worst = [fault for fault in faults if not fault.is_conflict]
        is_limit = bool(worst) and all("limit exceeded" in fault.reason for fault in worst)
        if worst and not partial and not is_limit:
            return error(400, worst[0].reason)
        said = f"failure writing points to database: partial write: {faults[0].reason}"
        reply = error(422, f"{said} dropped={len(faults)}", code="unprocessable entity")
        return Reply(status=422, body=reply.body, headers=reply.headers, keeps=True)

    def too_old(self, old: Sequence[bytes], *, status: int | None) -> Reply:
        """Keep the others, count the old ones, and name the oldest, as 2.7 does; 500 as 2.0."""
        if status == web.HTTPInternalServerError.status_code:
            told = f"unexpected error writing points to database: partial write: {_BEYOND}"
            reply = error(status, f"{told} dropped={len(old)}", code="internal error")
        else:
            key = old[0].split(b" ", 1)[0].decode()
            why = (
                "dropped because it violates a Retention Policy Lower Bound at 2026-01-01T00:00:00Z"
            )
            told = (
                f"failure writing points to database: partial write: dropped {len(old)} points"
                f" outside retention policy of duration 1h0m0s - oldest point {key} at"
                f" 2020-01-01T00:00:00Z {why}, newest point {key} at 2020-01-01T00:00:00Z {why}"
                f" dropped={len(old)} for database: 610c26001281c704 for retention policy: autogen"
            )
            reply = error(status or 422, told, code="unprocessable entity")
        return replace(reply, keeps=True)

    def _created(self, wanted: dict[str, str], server: FakeInflux) -> web.Response:
        if not server.may_create_buckets:
            return server.respond(
                error(403, "write:orgs/x/buckets is unauthorized", code="forbidden")
            )
        assert wanted["orgID"] == "00000000000000a1"
        if wanted["name"] in server.buckets:
            return server.respond(error(422, "bucket already exists", code="conflict"))
        server.buckets.add(wanted["name"])
        return web.json_response({"name": wanted["name"]}, status=201)


class RulesOf3:
    """InfluxDB 3.0: wants a token even for `/ping`, and reads only the first gzip member.

    The real one creates databases by itself and knows the write paths of versions 1 and 2; here
    a database must exist, as where a token may only write, and there is one path.
    """

    path = "/api/v3/write_lp"
    unparsable = "Could not parse entire line. Found trailing content: `{line}`"
    conflict = (
        "invalid column type for column '{field}', expected"
        " iox::column_type::field::{wanted}, got iox::column_type::field::{found}"
    )

    def add_routes(self, router: web.UrlDispatcher, server: FakeInflux) -> None:
        """Add databases, queries and `/health`."""

        async def create(request: web.Request) -> web.Response:
            wanted = await request.json()
            if (refusal := self.refusal(request, server)) is not None:
                return server.respond(refusal)
            if not server.may_create_buckets:
                return web.Response(status=403)
            if wanted["db"] in server.buckets:
                return web.Response(status=409, text="already exists")
            server.buckets.add(wanted["db"])
            return web.Response(status=200)

        async def health(request: web.Request) -> web.Response:
            refusal = self.refusal(request, server)
            return web.Response(text="OK") if refusal is None else server.respond(refusal)

        async def query(request: web.Request) -> web.Response:
            sought = _SQL.fullmatch(request.query["q"])
            assert sought is not None
            found = server.found(sought["measurement"], int(sought["time"]))
            return web.json_response([{"probe": 1} for _ in found])

        router.add_get("/api/v3/query_sql", query)
        router.add_post("/api/v3/configure/database", create)
        router.add_get("/health", health)

    def unpacked(self, body: bytes) -> bytes:
        """Read the first member; nothing tells of the others."""
        return zlib.decompressobj(wbits=31).decompress(body)

    def ping(self, request: web.Request, server: FakeInflux) -> Reply:
        """Name the version, to those with a token."""
        if (refusal := self.refusal(request, server)) is not None:
            return refusal
        return Reply(
            status=200,
            body='{"version":"3.0.3","revision":"8f7d5b2","process_id":"1"}',
            headers={"X-Influxdb-Version": "3.0.3", "X-Influxdb-Build": "Core"},
        )

    def refusal(self, request: web.Request, server: FakeInflux) -> Reply | None:
        """Want the token, if there is one."""
        authorization = request.headers.get("Authorization", "")
        allowed = {f"Bearer {server.token}", f"Token {server.token}"}
        if not server.token or authorization in allowed:
            return None
        if authorization and " " not in authorization:
            return Reply(status=400, body='{"error": "Authorization header was malformed, …"}')
        return Reply(status=401)

    def missing(self, request: web.Request, server: FakeInflux) -> Reply | None:
        """Want a database that exists, with a name of plain letters."""
        assert request.query["precision"] == "nanosecond"
        assert request.query["no_sync"] == "false"
        name = request.query["db"]
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            return _error_of_3("invalid character in database name: must be ASCII, …")
        if name in server.buckets:
            return None
        return Reply(status=404, body=f"database not found {name}")

    def too_large(self, max_bytes: int) -> Reply:
        """Call it an error of its own."""
        return Reply(status=500, body=f"max request size ({max_bytes} bytes) exceeded")

    def verdict(self, faults: Sequence[Fault], lines: Sequence[bytes], *, partial: bool) -> Reply:
        """Keep the good lines and list the others, with their text."""
        return _error_of_3(
            "partial write of line protocol occurred",
            [
                {
                    "original_line": fault.line.decode(),
                    "line_number": fault.number,
                    "error_message": fault.reason,
                }
                for fault in faults
            ],
        )

    def too_old(self, old: Sequence[bytes], *, status: int | None) -> Reply:
        """Take it, and delete it at its next look."""
        return OK


_RULES: dict[str, Callable[[], Rules]] = {"v1": RulesOf1, "v2": RulesOf2, "v3": RulesOf3}
_TYPES: dict[type, str] = {str: "string", float: "float", bool: "boolean", int: "integer"}


def _flaw(line: bytes, types: dict[tuple[str, str], type], rules: Rules) -> tuple[str | None, bool]:
    """Say what is wrong with a line, and whether it is a type; learn the types of its fields."""
    try:
        point = parse_line(line)
    except ValueError:
        return rules.unparsable.format(line=line.decode()), False
    for name, value in point.fields.items():
        wanted = types.setdefault((point.measurement, name), type(value))
        if wanted is not type(value):
            told = rules.conflict.format(
                field=name,
                measurement=point.measurement,
                found=_TYPES[type(value)],
                wanted=_TYPES[wanted],
            )
            return told, True
    return None, False


def _error_of_1(status: int, message: str, *, keeps: bool = False) -> Reply:
    return Reply(
        status=status,
        body=json.dumps({"error": message}),
        headers={
            "Content-Type": "application/json",
            "X-Influxdb-Error": message.replace("\n", " "),
            "X-Influxdb-Version": "1.6.7~rc0",
        },
        keeps=keeps,
    )


def _error_of_3(message: str, data: list[dict[str, object]] | None = None) -> Reply:
    return Reply(
        status=400, body=json.dumps({"error": message, "data": data}), keeps=data is not None
    )


def _peer(request: web.Request) -> str:
    name = request.transport.get_extra_info("peername") if request.transport else None
    return f"{name[0]}:{name[1]}" if name else ""


def _is_gzip(request: web.Request) -> bool:
    return request.headers.get("Content-Encoding") == "gzip"


def _split(body: bytes) -> list[bytes]:
    return [line.removesuffix(b"\n") for line in _LINE.findall(body)]
