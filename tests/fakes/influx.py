"""A fake InfluxDB 1, 2 or 3 on a real socket: stores accepted lines, and fails on request.

`FakeInflux` has the common behavior, a class of rules that of each version.

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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self, TypeAlias

from aiohttp import web

from app.model import StoredPoint
from app.schema.line_protocol import parse_line
from tests.fakes.influx_queries import influxql
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
    """The status of the response; 0 for none."""
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
    """Whether the line is valid, but one of its fields already has another type."""


class FakeInflux:
    """One organization with buckets, or databases, and one token or one user.

    Writes are answered from `script` until it is empty, then by the rules of a real InfluxDB:
    credentials, organization and bucket must be right, lines must parse, and the first write
    fixes the type of a field.
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
        """Set the first answers, credentials and bucket; without credentials anyone may write."""
        self.script = deque(script)
        self.version = version
        self.token = token
        self.username = username
        self.password = password
        self.org = org
        self.buckets = {bucket}
        self.refuses: Callable[[bytes], str | None] = lambda _: None
        """Returns a further reason to refuse a line, or None."""
        self.partial = False
        """Store the valid lines of a partly invalid body and answer 422, as for type conflicts."""
        self.oldest_ns: int | None = None
        """Earlier points are outside the retention; None accepts all."""
        self.status_of_old: int | None = None
        """The status for points outside the retention; None for that of the version."""
        self.most_series: int | None = None
        """Limit of series per database; None for none."""
        self.most_tag_values: int | None = None
        """Limit of values per tag; None for none."""
        self.takes_gzip = True
        """Whether gzip bodies are accepted; otherwise they are answered with `gzip_refusal`."""
        self.gzip_refusal = Reply(status=415, body="Unsupported Media Type")
        self.breaks_on: Callable[[bytes], bool] = lambda _: False
        """A body with a matching line is answered with 500."""
        self.max_body_bytes: int | None = None
        """Larger bodies are answered with 413; None for no limit."""
        self.shard_ns: int | None = None
        """Duration of a shard, in which a field has one type; None for a single shard."""
        self.mappings: list[dict[str, str]] = []
        """InfluxQL's names of the buckets of InfluxDB 2, beside those that it makes itself."""
        self.makes_mappings = True
        """Whether InfluxDB 2 makes them itself, as since 2.4."""
        self.other_orgs = 0
        """How many other organizations of InfluxDB 2 have a bucket of the same name."""
        self.may_create_buckets = True
        self.may_write = True
        """Whether the token or user may write; otherwise it may only read."""
        self.may_read = True
        self.forgets = False
        """Whether accepted lines are discarded."""
        self.silent_on: frozenset[str] = frozenset()
        """Paths where requests get no response."""
        self.delay_s = 0.0
        """Delay of every write."""
        self.answers: Callable[[list[bytes]], Iterable[bytes]] = lambda chunks: chunks
        """Changes the chunks of an answer to a query."""
        self.answer_delay_s = 0.0
        """Delay of each chunk."""
        self.chunk_rows = 10
        """Rows of a chunk, at most."""
        self.cuts_answer = False
        """Whether the connection is reset after the chunks of an answer."""
        self.fault: Reply | None = None
        """The answer to every write after the script, regardless of the rules."""
        self.pings = 0
        self.alive = True
        """Whether `/ping` succeeds; otherwise it answers 503."""
        self.started_at: int | None = None
        """Process start time, as VictoriaMetrics reports at `/metrics`; None for InfluxDB."""
        self.metrics_reply: Reply | None = None
        """Replaces the response of `/metrics`."""
        self.metrics_asked = 0
        self.ping_reply: Reply | None = None
        """Replaces the response of `/ping`."""
        self.lines: list[bytes] = []
        """Every accepted line, in order, repeats included."""
        self.requests: list[Request] = []
        self.url = ""
        self._rules = _RULES[version]()
        self._types: dict[tuple[int, str, str], type] = {}
        self._series: set[bytes] = set()
        self._ended = asyncio.Event()

    @property
    def statuses(self) -> list[int]:
        """The statuses of the writes, in order."""
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
        """Wait until the condition holds."""
        async with asyncio.timeout(within_s):
            while not condition(self):
                await asyncio.sleep(0.005)

    def found(self, measurement: str, time_ns: int) -> list[StoredPoint]:
        """Return the points of a measurement at one time."""
        return [
            point
            for point in self.points()
            if point.measurement == measurement and point.time_ns == time_ns
        ]

    def delete(self, measurement: str) -> None:
        """Delete all points of a measurement."""
        self.lines = [line for line in self.lines if parse_line(line).measurement != measurement]

    def forget_types(self) -> None:
        """Forget all field types, as after their measurement was dropped."""
        self._types.clear()

    def points(self) -> list[StoredPoint]:
        """Return the points that a query would find: those of one identity are one point."""
        found: dict[object, StoredPoint] = {}
        for point in map(parse_line, self.lines):
            identity = (point.measurement, *sorted(point.tags.items()), point.time_ns)
            former = found.get(identity)
            fields = point.fields if former is None else {**former.fields, **point.fields}
            found[identity] = replace(point, fields=fields)
        return list(found.values())

    async def stream(
        self, request: web.Request, chunks: list[bytes], *, content_type: str
    ) -> web.StreamResponse:
        """Answer a query."""
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(request)
        for chunk in self.answers(chunks):
            await asyncio.sleep(self.answer_delay_s)
            await response.write(chunk)
        if self.cuts_answer:
            assert request.transport is not None
            request.transport.abort()
        return response

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
        """Return the lines within the retention, and those outside it."""
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
                reason, is_conflict = _flaw(line, types, self._rules, self.shard_ns)
            if reason is not None:
                fault = Fault(number=number, line=line, reason=reason, is_conflict=is_conflict)
                faults.append(fault)
        return faults

    def _over_limits(self, lines: Sequence[bytes]) -> dict[bytes, str]:
        """Return the refused series and the reasons, checked once per request as in InfluxDB 1.

        All new series of a request are refused when they exceed the limit together. Any number
        of new values of a tag is accepted while the tag is below its limit.
        """
        started = {line.split(b" ", 1)[0] for line in lines} - self._series
        limit, max_values = self.most_series, self.most_tag_values
        if limit is not None and len(self._series) + len(started) > limit:
            return dict.fromkeys(started, f"max-series-per-database limit exceeded: ({limit})")
        if max_values is None:
            return {}
        values: dict[bytes, set[bytes]] = {}
        for tag in (tag for series in self._series for tag in series.split(b",")[1:]):
            values.setdefault(tag.split(b"=")[0], set()).add(tag)
        full = {key: tags for key, tags in values.items() if len(tags) >= max_values}
        return {
            series: f"max-values-per-tag limit exceeded ({len(full[key])}/{max_values}):"
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
            _flaw(line, self._types, self._rules, self.shard_ns)
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
    """The behavior of one version."""

    path: str
    unparsable: str
    """Message for a `{line}` that it cannot parse."""
    conflict: str
    """Message for a `{field}` of another type."""

    def add_routes(self, router: web.UrlDispatcher, server: FakeInflux) -> None:
        """Add the routes other than `/ping` and the path of writes."""
        ...

    def unpacked(self, body: bytes) -> bytes:
        """Decompress a gzip body as this version does."""
        ...

    def ping(self, request: web.Request, server: FakeInflux) -> Reply:
        """Answer `/ping`."""
        ...

    def refusal(self, request: web.Request, server: FakeInflux) -> Reply | None:
        """Return the answer to a request without permission; None if it is allowed."""
        ...

    def missing(self, request: web.Request, server: FakeInflux) -> Reply | None:
        """Return the answer to a write to a missing bucket or database; None if it exists."""
        ...

    def too_large(self, max_bytes: int) -> Reply:
        """Answer a body that is too large."""
        ...

    def verdict(self, faults: Sequence[Fault], lines: Sequence[bytes], *, partial: bool) -> Reply:
        """Answer a body with faulty lines."""
        ...

    def too_old(self, old: Sequence[bytes], *, status: int | None) -> Reply:
        """Answer a body with lines outside the retention."""
        ...


class RulesOf1:
    """InfluxDB 1: stores the valid lines and answers 400 for the others, also in a header."""

    path = "/write"
    unparsable = "unable to parse '{line}': invalid boolean"
    conflict = (
        'field type conflict: input field "{field}" on measurement "{measurement}"'
        " is type {found}, already exists as type {wanted}"
    )

    def add_routes(self, router: web.UrlDispatcher, server: FakeInflux) -> None:
        """Add queries, which create databases."""

        async def query(request: web.Request) -> web.StreamResponse:  # noqa: PLR0911 - one per statement
            if (refusal := self.refusal(request, server)) is not None:
                return server.respond(refusal)
            statement = str((await request.post()).get("q", ""))
            chunks = influxql(statement, server.points(), rows=server.chunk_rows)
            if chunks is not None:
                kind = "application/x-msgpack"
                return await server.stream(request, chunks, content_type=kind)
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
        """Read every concatenated gzip stream."""
        return gzip.decompress(body)

    def ping(self, request: web.Request, server: FakeInflux) -> Reply:
        """Return the version, without authentication."""
        return Reply(headers={"X-Influxdb-Version": "1.6.7~rc0", "X-Influxdb-Build": "OSS"})

    def refusal(self, request: web.Request, server: FakeInflux) -> Reply | None:
        """Require user and password, if there are users."""
        pair = base64.b64encode(f"{server.username}:{server.password}".encode()).decode()
        if not server.username or request.headers.get("Authorization") == f"Basic {pair}":
            return None
        return _error_of_1(401, "authorization failed")

    def missing(self, request: web.Request, server: FakeInflux) -> Reply | None:
        """Require an existing database."""
        assert request.query["precision"] == "ns"
        name = request.query.get("db", "")
        if name in server.buckets:
            return None
        return _error_of_1(404, f'database not found: "{name}"')

    def too_large(self, max_bytes: int) -> Reply:
        """Answer with the status 413."""
        return _error_of_1(413, "Request Entity Too Large")

    def verdict(self, faults: Sequence[Fault], lines: Sequence[bytes], *, partial: bool) -> Reply:
        """Store the valid lines; report limits before conflicts, and both before parse errors."""
        conflicts = [fault for fault in faults if fault.is_conflict]
        limited = [fault for fault in faults if "limit exceeded" in fault.reason]
        message = "\n".join(fault.reason for fault in (limited[:1] or conflicts[:1] or faults))
        if not conflicts and not limited and len(faults) == len(lines):
            return _error_of_1(400, message)
        dropped = len(conflicts) + len(limited)
        return _error_of_1(400, f"partial write: {message} dropped={dropped}", keeps=True)

    def too_old(self, old: Sequence[bytes], *, status: int | None) -> Reply:
        """Store the others and count the old ones."""
        message = f"partial write: points beyond retention policy dropped={len(old)}"
        return _error_of_1(status or 400, message, keeps=True)


class RulesOf2:
    """InfluxDB 2: stores a body whole or not at all, except for type conflicts."""

    path = "/api/v2/write"
    unparsable = "unable to parse '{line}': invalid boolean"
    conflict = (
        'field type conflict: input field "{field}" on measurement "{measurement}"'
        " is type {found}, already exists as type {wanted}"
    )

    def add_routes(  # noqa: C901 - one function per route
        self, router: web.UrlDispatcher, server: FakeInflux
    ) -> None:
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
            name = request.query["name"]
            found = [
                {"id": f"{n:x}", "orgID": "00000000000000a1", "name": name, "retentionRules": rules}
                for n in range(1 if "org" in request.query else 1 + server.other_orgs)
            ]
            listed = {"buckets": found if name in server.buckets else []}
            return guarded(lambda _: web.json_response(listed))(request)

        async def health(_: web.Request) -> web.Response:
            return web.json_response({"name": "influxdb", "status": "pass", "version": "v2.7.12"})

        async def dbrps(request: web.Request) -> web.Response:
            names = {"db": "database", "rp": "retention_policy", "bucketID": "bucketID"}
            wanted = {names[key]: value for key, value in request.query.items() if key in names}
            listed = [
                each
                for each in self._mappings(server)
                if all(each[key] == value for key, value in wanted.items())
            ]
            return guarded(lambda _: web.json_response({"content": listed}))(request)

        async def influxql_query(request: web.Request) -> web.StreamResponse:
            if (refusal := self.refusal(request, server)) is not None:
                return server.respond(refusal)
            statement = str((await request.post())["q"])
            (mapping,) = (
                each
                for each in self._mappings(server)
                if each["database"] == request.query["db"] and each["bucketID"] == "0"
            )
            policy = mapping["retention_policy"]
            chunks = influxql(statement, server.points(), rows=server.chunk_rows, policy=policy)
            assert chunks is not None, statement
            return await server.stream(request, chunks, content_type="application/x-msgpack")

        async def query(request: web.Request) -> web.StreamResponse:
            text = (await request.json())["query"]
            if (refusal := self.refusal(request, server)) is not None:
                return server.respond(refusal)
            sought = _FLUX.search(text)
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
        router.add_get("/api/v2/dbrps", dbrps)
        router.add_post("/query", influxql_query)
        router.add_get("/health", health)

    def unpacked(self, body: bytes) -> bytes:
        """Read every concatenated gzip stream."""
        return gzip.decompress(body)

    def ping(self, request: web.Request, server: FakeInflux) -> Reply:
        """Return the version, without authentication."""
        return Reply(headers={"X-Influxdb-Version": "v2.7.12", "X-Influxdb-Build": "OSS"})

    def refusal(self, request: web.Request, server: FakeInflux) -> Reply | None:
        """Require the token and the organization."""
        if request.headers.get("Authorization") != f"Token {server.token}":
            return UNAUTHORIZED
        if request.query.get("org", server.org) != server.org:
            return error(404, "organization name not found", code="not found")
        return None

    def missing(self, request: web.Request, server: FakeInflux) -> Reply | None:
        """Require an existing bucket."""
        bucket = request.query.get("bucket", "")
        if bucket in server.buckets:
            return None
        return error(404, f'bucket "{bucket}" not found', code="not found")

    def too_large(self, max_bytes: int) -> Reply:
        """Answer with the status 413."""
        return error(413, "request too large", code="request too large")

    def verdict(self, faults: Sequence[Fault], lines: Sequence[bytes], *, partial: bool) -> Reply:
        """Store the valid lines at a conflict, and nothing at a line that does not parse."""
        worst = [fault for fault in faults if not fault.is_conflict]
        is_limit = bool(worst) and all("limit exceeded" in fault.reason for fault in worst)
        if worst and not partial and not is_limit:
            return error(400, worst[0].reason)
        message = f"failure writing points to database: partial write: {faults[0].reason}"
        reply = error(422, f"{message} dropped={len(faults)}", code="unprocessable entity")
        return Reply(status=422, body=reply.body, headers=reply.headers, keeps=True)

    def too_old(self, old: Sequence[bytes], *, status: int | None) -> Reply:
        """Store the others; count the old ones and name the oldest, as 2.7 does; 500 as 2.0."""
        if status == web.HTTPInternalServerError.status_code:
            message = f"unexpected error writing points to database: partial write: {_BEYOND}"
            reply = error(status, f"{message} dropped={len(old)}", code="internal error")
        else:
            key = old[0].split(b" ", 1)[0].decode()
            why = (
                "dropped because it violates a Retention Policy Lower Bound at 2026-01-01T00:00:00Z"
            )
            message = (
                f"failure writing points to database: partial write: dropped {len(old)} points"
                f" outside retention policy of duration 1h0m0s - oldest point {key} at"
                f" 2020-01-01T00:00:00Z {why}, newest point {key} at 2020-01-01T00:00:00Z {why}"
                f" dropped={len(old)} for database: 610c26001281c704 for retention policy: autogen"
            )
            reply = error(status or 422, message, code="unprocessable entity")
        return replace(reply, keeps=True)

    def _mappings(self, server: FakeInflux) -> list[dict[str, str]]:
        """Return the given mappings, and that of the bucket unless one has the same names."""
        database, _, policy = min(server.buckets).partition("/")
        made = {"database": database, "retention_policy": policy or "autogen", "bucketID": "0"}
        taken = [(each["database"], each["retention_policy"]) for each in server.mappings]
        if not server.makes_mappings or (made["database"], made["retention_policy"]) in taken:
            return server.mappings
        return [*server.mappings, made]

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
    """InfluxDB 3.0: requires a token even for `/ping`, and reads only the first gzip stream.

    The real one creates databases itself and accepts the write paths of versions 1 and 2; here
    a database must exist, as for a token that may only write, and there is one path.
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
        """Read the first gzip stream and silently ignore the others."""
        return zlib.decompressobj(wbits=31).decompress(body)

    def ping(self, request: web.Request, server: FakeInflux) -> Reply:
        """Return the version, to requests with a token."""
        if (refusal := self.refusal(request, server)) is not None:
            return refusal
        return Reply(
            status=200,
            body='{"version":"3.0.3","revision":"8f7d5b2","process_id":"1"}',
            headers={"X-Influxdb-Version": "3.0.3", "X-Influxdb-Build": "Core"},
        )

    def refusal(self, request: web.Request, server: FakeInflux) -> Reply | None:
        """Require the token, if there is one."""
        authorization = request.headers.get("Authorization", "")
        allowed = {f"Bearer {server.token}", f"Token {server.token}"}
        if not server.token or authorization in allowed:
            return None
        if authorization and " " not in authorization:
            return Reply(status=400, body='{"error": "Authorization header was malformed, …"}')
        return Reply(status=401)

    def missing(self, request: web.Request, server: FakeInflux) -> Reply | None:
        """Require an existing database with an ASCII name."""
        assert request.query["precision"] == "nanosecond"
        assert request.query["no_sync"] == "false"
        name = request.query["db"]
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            return _error_of_3("invalid character in database name: must be ASCII, …")
        if name in server.buckets:
            return None
        return Reply(status=404, body=f"database not found {name}")

    def too_large(self, max_bytes: int) -> Reply:
        """Answer 500, as the real one does."""
        return Reply(status=500, body=f"max request size ({max_bytes} bytes) exceeded")

    def verdict(self, faults: Sequence[Fault], lines: Sequence[bytes], *, partial: bool) -> Reply:
        """Store the valid lines, and list the others with their text."""
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
        """Accept the points; the real one deletes them later."""
        return OK


_RULES: dict[str, Callable[[], Rules]] = {"v1": RulesOf1, "v2": RulesOf2, "v3": RulesOf3}
_TYPES: dict[type, str] = {str: "string", float: "float", bool: "boolean", int: "integer"}


def _flaw(
    line: bytes, types: dict[tuple[int, str, str], type], rules: Rules, shard_ns: int | None
) -> tuple[str | None, bool]:
    """Return the error of a line, if any, and whether it is a type conflict; learn its types."""
    try:
        point = parse_line(line)
    except ValueError:
        return rules.unparsable.format(line=line.decode()), False
    shard = 0 if shard_ns is None else point.time_ns // shard_ns
    for name, value in point.fields.items():
        wanted = types.setdefault((shard, point.measurement, name), type(value))
        if wanted is not type(value):
            message = rules.conflict.format(
                field=name,
                measurement=point.measurement,
                found=_TYPES[type(value)],
                wanted=_TYPES[wanted],
            )
            return message, True
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
