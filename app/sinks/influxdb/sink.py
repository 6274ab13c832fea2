"""Sink for InfluxDB 1, 2 and 3, and for other databases with one of their write APIs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Literal, Self, TypeAlias
from urllib.parse import unquote, urlsplit

import aiohttp
from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync

from app.runtime import gzip_stream
from app.runtime.errors import StorageDamaged
from app.runtime.logging import RateLimitedLog
from app.runtime.tls import ClientTls
from app.sinks.batches import Batch
from app.sinks.influxdb.client import open_client
from app.sinks.influxdb.detect import detect, server_process, stated_version
from app.sinks.influxdb.dialects import Dialect, Target, Version, dialect_for, is_missing
from app.sinks.influxdb.http import Reply, Request
from app.sinks.influxdb.response import NO_ANSWER, failure, outcome_of
from app.sinks.outcomes import Accepted, Held, Outcome, Refused, ServerProcess, Unavailable

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

Api: TypeAlias = Literal["auto"] | Version

_CONNECT_TIMEOUT_S = 10.0
_PING_TIMEOUT_S = 3.0
_REPLY_BYTES = 65_536
_MAX_FAILED_PROCESS_REQUESTS = 3
_METRICS_BYTES = 4_194_304
_WRONG_PATH = {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}
_HOLDING = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, *_WRONG_PATH}


class InfluxSink:
    """Writes batches to one bucket or database, and creates it when it is missing.

    Use as `async with`. The client supplies the session; decision 0023 says why its write and
    management APIs are not used.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str,
        org: str,
        bucket: str,
        timeout_s: float,
        api: Api = "auto",
        username: str = "",
        password: str = "",
        ssl_verify: bool = True,
        headers: Mapping[str, str] | None = None,
        client_cert: Path | None = None,
        client_key: Path | None = None,
        flush_s: float | None = None,
    ) -> None:
        """Assign the address and the bound of a request.

        With `auto`, a username means v1 and a token v2; otherwise, and when that API is not
        found, the version is detected. `headers` are sent with every request; a client
        certificate is read again when its file has changed. `flush_s` is how many seconds after
        an acknowledgement the database has the points on disk; None to detect it.
        """
        self.name = "influxdb"
        self._url = str(url).rstrip("/")
        self._uses_tls = self._url.startswith("https:")
        self._target = Target(
            bucket=bucket, org=org, token=token, username=username, password=password
        )
        self._headers = dict(headers or {})
        self._tls = ClientTls(verify=ssl_verify, client_cert=client_cert, client_key=client_key)
        self._timeout_s = timeout_s
        self._api = api
        self._flush_s = flush_s
        self._process = ServerProcess(flush_s=flush_s or 0.0)
        self._gzip: Literal["untried", "accepted", "refused"] = "untried"
        self._accepted_since_request = False
        self._failed_process_requests = 0
        """Failed requests for the process in a row, with accepted writes between them."""
        self._dialect = self._chosen()
        self._client: InfluxDBClientAsync | None = None

    async def __aenter__(self) -> Self:
        """Make the client; nothing is sent yet, so the database may be down."""
        self._client = open_client(
            self._url,
            timeout=aiohttp.ClientTimeout(
                total=self._timeout_s, connect=min(_CONNECT_TIMEOUT_S, self._timeout_s)
            ),
            tls=self._tls,
            headers=self._headers,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()  # type: ignore[no-untyped-call]
            self._client = None

    async def write(self, batch: Batch) -> Outcome:
        """Write a batch and return the outcome."""
        try:
            dialect = self._dialect or await self._detected()
            if isinstance(dialect, Held | Unavailable):
                return dialect
            reply = await self._write(batch, dialect, is_gzip=self._gzip != "refused")
            if reply.status != HTTPStatus.NO_CONTENT:
                reply, dialect = await self._corrected(reply, batch, dialect)
        except StorageDamaged as exc:
            return Refused(reason=str(exc))  # delivery splits the batch and finds the damaged row
        except NO_ANSWER as exc:
            return failure(exc)
        if reply.status == HTTPStatus.NO_CONTENT:
            self._accepted_since_request = True
            return Accepted()
        return outcome_of(reply, dialect=dialect, secrets=self._secrets, url=self._url)

    async def process(self) -> ServerProcess | None:
        """Return the database's process; None when nothing responds."""
        try:
            async with asyncio.timeout(_PING_TIMEOUT_S):
                reply = await self.ask(Request(path="/metrics"), max_bytes=_METRICS_BYTES)
                if reply.status in _WRONG_PATH | {HTTPStatus.BAD_REQUEST} and self._has_path():
                    reply = await self.ask(Request(path="/../metrics"), max_bytes=_METRICS_BYTES)
        except NO_ANSWER:
            return self._unknown_process()
        process, known = server_process(reply, flush_s=self._flush_s), self._process
        # While a database restarts, a proxy may respond in its place, with any status.
        is_another = bool(known.started and known.flush_s) and not process.started
        if is_another or reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return self._unknown_process()
        self._failed_process_requests = 0
        self._process = process
        return process

    def _unknown_process(self) -> ServerProcess | None:
        """Return None, unless only `/metrics` does not respond."""
        self._failed_process_requests += self._accepted_since_request
        self._accepted_since_request = False
        if self._failed_process_requests < _MAX_FAILED_PROCESS_REQUESTS:
            return None
        return ServerProcess(flush_s=self._process.flush_s)

    async def retention_s(self) -> float | None:
        """Return how long the bucket retains points; None for forever, or when unknown."""
        if self._dialect is None or self._dialect.retention_request is None:
            return None
        try:
            async with asyncio.timeout(_PING_TIMEOUT_S):
                return self._dialect.retention_s(await self.ask(self._dialect.retention_request))
        except NO_ANSWER:
            return None

    async def ping(self) -> bool:
        """Return whether something other than a failing server responds at the address."""
        try:
            async with asyncio.timeout(_PING_TIMEOUT_S):
                reply = await self.ask(Request(path="/ping"))
        except NO_ANSWER:
            return False
        return reply.status < HTTPStatus.INTERNAL_SERVER_ERROR

    @property
    def dialect(self) -> Dialect | None:
        """The dialect in use; None until it is known."""
        return self._dialect

    async def ask(self, request: Request, *, max_bytes: int = _REPLY_BYTES) -> Reply:
        """Send a request that is no write, with the credentials of the dialect if it is known.

        Raises:
            one of NO_ANSWER: there was no response.
        """
        dialect = self._dialect
        return await self._ask(
            dialect.authorized(request) if dialect else request, max_bytes=max_bytes
        )

    def _chosen(self) -> Dialect | None:
        if self._api != "auto":
            return dialect_for(self._api, self._target)
        if self._target.username:
            return dialect_for("v1", self._target)
        # The organization has a default, so it does not imply a version.
        return dialect_for("v2", self._target) if self._target.token else None

    async def _detected(self) -> Dialect | Held | Unavailable:
        found = await detect(self._ask)
        if isinstance(found, Held | Unavailable):
            return found
        limited_log.info("Writing to InfluxDB as %s", found)
        self._dialect = dialect_for(found, self._target)
        return self._dialect

    async def _other_than(self, dialect: Dialect) -> Dialect | None:
        """Return the dialect to try when this one was not found; None when there is none."""
        if self._api != "auto":
            return None
        found = await stated_version(lambda request: self._ask(dialect.authorized(request)))
        if isinstance(found, Reply) or found == dialect.version:
            return None
        return dialect_for(found, self._target)

    async def _write(self, batch: Batch, dialect: Dialect, *, is_gzip: bool) -> Reply:
        data = batch.gzip if is_gzip else None
        if data is None:
            data = await asyncio.to_thread(_body, batch, is_gzip=is_gzip)
        reply = await self._ask(dialect.write(data, is_gzip=is_gzip))
        if is_gzip and reply.status == HTTPStatus.NO_CONTENT:
            self._gzip = "accepted"
        return reply

    async def _corrected(
        self, reply: Reply, batch: Batch, dialect: Dialect
    ) -> tuple[Reply, Dialect]:
        """Write again if the bucket is missing, or the dialect or gzip may be the reason."""
        is_gzip = self._gzip != "refused"
        reply = await self._with_bucket(reply, batch, dialect, is_gzip=is_gzip)
        if reply.status in _WRONG_PATH and (other := await self._other_than(dialect)):
            other_reply = await self._write(batch, other, is_gzip=is_gzip)
            other_reply = await self._with_bucket(other_reply, batch, other, is_gzip=is_gzip)
            if other_reply.status not in _HOLDING:
                limited_log.info("Writing to InfluxDB as %s", other.version)
                self._dialect, dialect, reply = other, other, other_reply
        if self._may_be_about_gzip(reply, batch):
            reply = await self._write_uncompressed(reply, batch, dialect)
        return reply, dialect

    async def _with_bucket(
        self, reply: Reply, batch: Batch, dialect: Dialect, *, is_gzip: bool
    ) -> Reply:
        """Create the bucket and write again, if the reply says that it is missing."""
        if reply.status != HTTPStatus.NOT_FOUND or not is_missing(reply):
            return reply
        is_there = await dialect.create(lambda request: self._ask(dialect.authorized(request)))
        return await self._write(batch, dialect, is_gzip=is_gzip) if is_there else reply

    def _may_be_about_gzip(self, reply: Reply, batch: Batch) -> bool:
        """Whether the lines may be accepted without gzip; a 400 may be due to a line instead."""
        if self._gzip == "refused":
            return False
        if _is_about_gzip(reply):
            return True
        is_untried = self._gzip == "untried" and batch.points == 1
        return is_untried and reply.status == HTTPStatus.BAD_REQUEST

    async def _write_uncompressed(self, reply: Reply, batch: Batch, dialect: Dialect) -> Reply:
        """Write again without gzip; return the first reply when that is no better.

        If the uncompressed line is accepted, gzip was the reason and not the line.
        """
        plain = await self._write(batch, dialect, is_gzip=False)
        plain = await self._with_bucket(plain, batch, dialect, is_gzip=False)
        if plain.status != HTTPStatus.NO_CONTENT:
            return plain if _is_about_gzip(reply) else reply
        self._gzip = "refused"
        logger.warning(
            "The database, or a proxy in front of it, refuses gzip: points are sent uncompressed"
            " from now on"
        )
        return plain

    async def _ask(self, request: Request, *, max_bytes: int = _REPLY_BYTES) -> Reply:
        assert self._client is not None, "the sink is not open"
        if self._uses_tls:
            self._tls.context()  # reads a renewed client certificate
        # Without preloading the client returns aiohttp's own response, whatever its status.
        response: aiohttp.ClientResponse = await self._client.api_client.call_api(  # type: ignore[no-untyped-call]
            request.path,
            request.method,
            query_params=list(request.query.items()),
            header_params=dict(request.headers),
            body=request.body,
            _preload_content=False,
        )
        async with response:
            text = bytearray()
            # A proxy's error page may have any length: the rest is not read.
            while len(text) < max_bytes and (chunk := await response.content.read(max_bytes)):
                text += chunk
        return Reply(status=response.status, headers=response.headers, body=bytes(text))

    def _has_path(self) -> bool:
        return bool(urlsplit(self._url).path)

    @cached_property
    def _secrets(self) -> list[str]:
        in_url = unquote(urlsplit(self._url).password or "")
        basic = dialect_for("v1", self._target).credentials.get("Authorization", "")
        return [
            secret
            for secret in (
                self._target.token,
                self._target.password,
                in_url,
                basic.partition(" ")[2],
                *self._headers.values(),
            )
            if secret
        ]


def _is_about_gzip(reply: Reply) -> bool:
    return reply.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE


def _body(batch: Batch, *, is_gzip: bool) -> bytes:
    data = b"".join([line + b"\n" for line in batch.lines() if line])
    return gzip_stream.compressed(data) if is_gzip else data
