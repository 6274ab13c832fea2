"""Reads from a database: requests whose answers are streamed.

The writing side is `sink.py`; both use influxdb-client's session.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Literal, Self, TypeAlias
from urllib.parse import urlsplit

import aiohttp
from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync

from app.runtime.errors import DatabaseRefused, QueryFailed
from app.runtime.text import one_line
from app.runtime.tls import ClientTls
from app.sinks.influxdb.client import open_client
from app.sinks.influxdb.detect import stated_version
from app.sinks.influxdb.dialects import Target, dialect_for
from app.sinks.influxdb.http import Reply, Request, message
from app.sinks.influxdb.response import NO_ANSWER, failure
from app.sinks.outcomes import Held

Kind: TypeAlias = Literal["v1", "v2", "v3", "victoriametrics"]

_CONNECT_TIMEOUT_S = 10.0
_SILENCE_S = 300.0
"""How long a database may compute before it sends the next byte."""
_PART_BYTES = 262_144
_REPLY_BYTES = 4_194_304
_METRICS = Request(path="/metrics")


class QueryClient:
    """A database to read. Use as `async with`."""

    def __init__(
        self,
        url: str,
        target: Target,
        *,
        ssl_verify: bool = True,
        headers: Mapping[str, str] | None = None,
        client_cert: Path | None = None,
        client_key: Path | None = None,
    ) -> None:
        """Assign the address and the credentials."""
        self.target = target
        self._url = url.rstrip("/")
        self._headers = dict(headers or {})
        self._tls = ClientTls(verify=ssl_verify, client_cert=client_cert, client_key=client_key)
        self._client: InfluxDBClientAsync | None = None

    async def __aenter__(self) -> Self:
        """Make the client; nothing is sent yet."""
        timeout = aiohttp.ClientTimeout(
            total=None, connect=_CONNECT_TIMEOUT_S, sock_read=_SILENCE_S
        )
        credentials = dialect_for("v1" if self.target.username else "v2", self.target).credentials
        self._client = open_client(
            self._url,
            timeout=timeout,
            tls=self._tls,
            headers={**self._headers, **credentials},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()  # type: ignore[no-untyped-call]
            self._client = None

    async def kind(self) -> Kind:
        """Return which database it is.

        Raises:
            QueryFailed: nothing responds.
            DatabaseRefused: it does not say.
        """
        try:
            # Before anything else: behind a path like /influx it answers as InfluxDB 1 does.
            metrics = await self._reply(_METRICS)
            if metrics.status == HTTPStatus.OK and b"vm_app_version" in metrics.body:
                return "victoriametrics"
            version = await stated_version(self._reply)
        except NO_ANSWER as exc:
            raise _translated(exc, self._where) from exc
        if isinstance(version, Reply):
            raise DatabaseRefused(f"{self._where} does not say which database it is")
        return version

    async def stream(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the body of a successful response in parts.

        Raises:
            QueryFailed: the database is unavailable, or the response is incomplete.
            DatabaseRefused: it refuses the request.
        """
        try:
            async with await self._response(request) as response:
                if response.status != HTTPStatus.OK:
                    text = await response.content.read(_REPLY_BYTES)
                    raise self._refusal(
                        Reply(status=response.status, headers=response.headers, body=text)
                    )
                accepted = request.headers.get("Accept")
                if accepted and response.content_type != accepted:
                    raise DatabaseRefused(
                        f"{self._where} answers a query with {response.content_type} instead of"
                        f" {accepted}"
                    )
                async for part in response.content.iter_chunked(_PART_BYTES):
                    yield part
        except NO_ANSWER as exc:
            raise _translated(exc, self._where) from exc

    async def body(self, request: Request) -> bytes:
        """Return the body of a successful response that is short; raises like `stream`."""
        return b"".join([part async for part in self.stream(request)])

    @property
    def _where(self) -> str:
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    async def _reply(self, request: Request) -> Reply:
        async with await self._response(request) as response:
            text = bytearray()
            while len(text) < _REPLY_BYTES and (part := await response.content.read(_PART_BYTES)):
                text += part
        return Reply(status=response.status, headers=response.headers, body=bytes(text))

    async def _response(self, request: Request) -> aiohttp.ClientResponse:
        assert self._client is not None, "the client is not open"
        response: aiohttp.ClientResponse = await self._client.api_client.call_api(  # type: ignore[no-untyped-call]
            request.path,
            request.method,
            query_params=list(request.query.items()),
            # Compressing costs the database more than sending it: it delays the answer.
            header_params={"Accept-Encoding": "identity", **request.headers},
            body=request.body,
            _preload_content=False,
        )
        return response

    def _refusal(self, reply: Reply) -> QueryFailed | DatabaseRefused:
        secrets = [text for text in (self.target.token, self.target.password) if text]
        why = f"{self._where} answers {reply.status}: {one_line(message(reply), secrets)}"
        if reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return QueryFailed(why)
        if reply.status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUEST_TIMEOUT}:
            return QueryFailed(why)
        return DatabaseRefused(why)


def _translated(exc: Exception, where: str) -> QueryFailed | DatabaseRefused:
    outcome = failure(exc)
    if isinstance(outcome, Held):
        return DatabaseRefused(f"{where}: {outcome.reason}")
    return QueryFailed(f"{where}: {outcome.reason}")
