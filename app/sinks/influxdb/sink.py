"""InfluxDB 1, 2 or 3, and whatever else speaks one of their write APIs, as a sink."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Mapping
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Literal, Self, TypeAlias
from urllib.parse import unquote, urlsplit

import aiohttp
from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync

from app.runtime.errors import StorageDamaged
from app.runtime.logging import RateLimitedLog
from app.runtime.tls import ClientTls
from app.sinks.influxdb.detect import detect, server_process, stated_version
from app.sinks.influxdb.dialects import Body, Dialect, Request, Target, Version, dialect, is_missing
from app.sinks.influxdb.response import NO_ANSWER, Reply, answer, failure
from app.sinks.outcomes import Batch, Held, Outcome, Refused, ServerProcess, Unavailable

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

Api: TypeAlias = Literal["auto"] | Version

_CONNECT_TIMEOUT_S = 10.0
_PING_TIMEOUT_S = 3.0
_REPLY_BYTES = 65_536
_ASKED_IN_VAIN = 3
_METRICS_BYTES = 4_194_304
_HEADER_BYTES = 1_048_576
"""InfluxDB 1 repeats the whole of a refused line in a header."""
_UNREADABLE = Reply(status=0, headers={})
"""InfluxDB 1 repeats in a header what it takes for a line, also when it is gzip and no text."""
_WRONG_PATH = {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}
_HOLDING = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, *_WRONG_PATH}


class InfluxSink:
    """Writes batches to one bucket or database, and creates it when it is missing.

    Use as `async with`. The client's own write API is not used: it knows only version 2,
    compresses on the event loop, follows redirects that lose the body, and takes any 2xx for
    success.
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
        """Assign the address, and how many seconds a request may take.

        With `auto` a username means v1 and a token v2; without either, and when what was
        chosen is not found there, the server is asked. The headers are sent with every request;
        a client certificate is read again when its file has changed. `flush_s` is how many
        seconds after an acknowledgement the database has the points on disk; None for what is
        known of it.
        """
        self.name = "influxdb"
        self._url = str(url).rstrip("/")
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
        self._accepted_since_asked = False
        self._asked_in_vain = 0
        """How often the process did not answer in a row, although it accepted writes between."""
        self._dialect = self._chosen()
        self._client: InfluxDBClientAsync | None = None

    async def __aenter__(self) -> Self:
        """Make the client; nothing is sent yet, so the database may be away."""
        # By default the client reads the certificates of all authorities, which blocks for 50 ms.
        no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client = InfluxDBClientAsync(
            self._url,
            timeout=aiohttp.ClientTimeout(
                total=self._timeout_s, connect=min(_CONNECT_TIMEOUT_S, self._timeout_s)
            ),
            ssl_context=self._tls.context() if self._uses_tls else no_tls,
            allow_redirects=False,
            client_session_kwargs={
                "max_field_size": _HEADER_BYTES,
                # Cookies mean nothing here, and aiohttp fails on one with an absurd Max-Age.
                "cookie_jar": aiohttp.DummyCookieJar(),
            },
        )
        for name, value in self._headers.items():
            # The client has a default of its own for this one, and knows only this spelling.
            known = "User-Agent" if name.lower() == "user-agent" else name
            self._client.api_client.set_default_header(known, value)  # type: ignore[no-untyped-call]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()  # type: ignore[no-untyped-call]
            self._client = None

    async def write(self, batch: Batch) -> Outcome:
        """Write a batch and return how it went."""
        try:
            body = await self._body(batch)
            spoken = self._dialect or await self._detected()
            if isinstance(spoken, Held | Unavailable):
                return spoken
            reply, spoken = await self._written(body, spoken)
            if self._may_be_about_gzip(reply, batch):
                reply = await self._plain(batch, reply, spoken)
        except StorageDamaged as exc:
            return Refused(reason=str(exc))  # delivery takes it apart and finds the damaged row
        except NO_ANSWER as exc:
            return failure(exc)
        if reply.status == HTTPStatus.NO_CONTENT:
            self._accepted_since_asked = True
        return answer(reply, dialect=spoken, secrets=self._secrets, url=self._url)

    async def process(self) -> ServerProcess | None:
        """Return what is known of the database's process; None when nothing answers."""
        try:
            async with asyncio.timeout(_PING_TIMEOUT_S):
                reply = await self.ask(Request(path="/metrics"), most_bytes=_METRICS_BYTES)
                if reply.status in _WRONG_PATH | {HTTPStatus.BAD_REQUEST} and self._has_path():
                    reply = await self.ask(Request(path="/../metrics"), most_bytes=_METRICS_BYTES)
        except NO_ANSWER:
            return self._unknown_process()
        process, known = server_process(reply, flush_s=self._flush_s), self._process
        # While a database restarts, a proxy may answer in its place, and with any status.
        is_another = bool(known.started and known.flush_s) and not process.started
        if is_another or reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return self._unknown_process()
        self._asked_in_vain = 0
        self._process = process
        return process

    def _unknown_process(self) -> ServerProcess | None:
        """Return None, unless it is only `/metrics` that is not answered."""
        self._asked_in_vain += self._accepted_since_asked
        self._accepted_since_asked = False
        if self._asked_in_vain < _ASKED_IN_VAIN:
            return None
        return ServerProcess(flush_s=self._process.flush_s)

    async def retention_s(self) -> float | None:
        """Return how long the bucket keeps points; None when forever, or when it is not known."""
        spoken = self._dialect
        question = spoken.retention_question() if spoken else None
        if spoken is None or question is None:
            return None
        try:
            async with asyncio.timeout(_PING_TIMEOUT_S):
                return spoken.retention_s(await self.ask(question))
        except NO_ANSWER:
            return None

    async def ping(self) -> bool:
        """Say whether anything that is not broken answers at the address."""
        try:
            async with asyncio.timeout(_PING_TIMEOUT_S):
                reply = await self.ask(Request(path="/ping"))
        except NO_ANSWER:
            return False
        return reply.status < HTTPStatus.INTERNAL_SERVER_ERROR

    @property
    def dialect(self) -> Dialect | None:
        """Return what is spoken to the server; None until that is known."""
        return self._dialect

    async def ask(self, request: Request, *, most_bytes: int = _REPLY_BYTES) -> Reply:
        """Send a question that is no write, with the credentials of the dialect if it is known.

        Raises:
            one of NO_ANSWER: there was no response.
        """
        spoken = self._dialect
        return await self._ask(
            spoken.authorized(request) if spoken else request, most_bytes=most_bytes
        )

    def _chosen(self) -> Dialect | None:
        if self._api != "auto":
            return dialect(self._api, self._target)
        if self._target.username:
            return dialect("v1", self._target)
        # The organization has a default, so it says nothing about what is meant.
        return dialect("v2", self._target) if self._target.token else None

    async def _detected(self) -> Dialect | Held | Unavailable:
        found = await detect(self._ask)
        if isinstance(found, Held | Unavailable):
            return found
        limited_log.info("Writing to InfluxDB as %s", found)
        self._dialect = dialect(found, self._target)
        return self._dialect

    async def _other_than(self, spoken: Dialect) -> Dialect | None:
        """Return the dialect to try after this one was not found; None when there is none."""
        if self._api != "auto":
            return None
        found = await stated_version(lambda request: self._ask(spoken.authorized(request)))
        if isinstance(found, Reply) or found == spoken.version:
            return None
        return dialect(found, self._target)

    async def _body(self, batch: Batch) -> Body:
        if self._gzip == "refused":
            return Body(await asyncio.to_thread(_joined, batch), is_gzip=False)
        # A thread takes some turns of the loop, which on a busy one are milliseconds.
        body = batch.gzip_at_hand()
        return Body(await asyncio.to_thread(batch.gzip_body) if body is None else body)

    async def _written(self, body: Body, spoken: Dialect) -> tuple[Reply, Dialect]:
        """Write, if need be in another dialect; return the dialect that was understood."""
        try:
            reply = await self._write(body, spoken)
        except aiohttp.ClientResponseError:
            if self._gzip != "untried":
                raise
            reply = _UNREADABLE
        if reply.status in _WRONG_PATH and (other := await self._other_than(spoken)):
            other_reply = await self._write(body, other)
            if other_reply.status not in _HOLDING:
                limited_log.info("Writing to InfluxDB as %s", other.version)
                self._dialect, spoken, reply = other, other, other_reply
        if body.is_gzip and reply.status == HTTPStatus.NO_CONTENT:
            self._gzip = "accepted"
        return reply, spoken

    def _may_be_about_gzip(self, reply: Reply, batch: Batch) -> bool:
        """Whether a body without gzip may be accepted; a 400 may be due to the line instead."""
        if self._gzip == "refused":
            return False
        if _is_about_gzip(reply):
            return True
        is_untried = self._gzip == "untried" and batch.points == 1
        return is_untried and reply.status == HTTPStatus.BAD_REQUEST

    async def _plain(self, batch: Batch, reply: Reply, spoken: Dialect) -> Reply:
        """Write again without gzip; return the first reply where that is no better.

        The same line accepted as it is proves that it was not the reason.
        """
        body = Body(await asyncio.to_thread(_joined, batch), is_gzip=False)
        plain = await self._write(body, spoken)
        if plain.status != HTTPStatus.NO_CONTENT:
            return plain if _is_about_gzip(reply) else reply
        self._gzip = "refused"
        logger.warning(
            "The database, or a proxy before it, refuses gzip: from now on points are sent"
            " uncompressed"
        )
        return plain

    async def _write(self, body: Body, spoken: Dialect) -> Reply:
        request = spoken.authorized(spoken.write(body))
        reply = await self._ask(request)
        if is_missing(reply) and await spoken.create(
            lambda creation: self._ask(spoken.authorized(creation))
        ):
            reply = await self._ask(request)
        return reply

    async def _ask(self, request: Request, *, most_bytes: int = _REPLY_BYTES) -> Reply:
        assert self._client is not None, "the sink is not open"
        if self._uses_tls:
            self._tls.context()  # reads a renewed client certificate
        # Without preloading the client hands over aiohttp's own response, whatever its status.
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
            # A proxy's error page may be of any length; what is not read is cut off.
            while len(text) < most_bytes and (chunk := await response.content.read(most_bytes)):
                text += chunk
        return Reply(status=response.status, headers=response.headers, body=bytes(text))

    @property
    def _uses_tls(self) -> bool:
        return self._url.startswith("https:")

    def _has_path(self) -> bool:
        return bool(urlsplit(self._url).path)

    @cached_property
    def _secrets(self) -> list[str]:
        in_url = unquote(urlsplit(self._url).password or "")
        basic = dialect("v1", self._target).authorized(Request(path="")).headers
        encoded = basic.get("Authorization", "").partition(" ")[2]
        return [
            secret
            for secret in (
                self._target.token,
                self._target.password,
                in_url,
                encoded,
                *self._headers.values(),
            )
            if secret
        ]


def _is_about_gzip(reply: Reply) -> bool:
    return reply is _UNREADABLE or reply.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE


def _joined(batch: Batch) -> bytes:
    return b"".join([line + b"\n" for line in batch.lines()])
