"""Makes influxdb-client's asynchronous client as the sink and queries need it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync

from app.runtime.tls import ClientTls

_HEADER_BYTES = 1_048_576
"""InfluxDB 1 repeats the whole of a refused line in a header."""


class _Protocol(ResponseHandler):
    """Replaces NUL in the head of a response by a space, as RFC 9110, section 5.5, allows.

    aiohttp rejects the response instead, and with it the status of a refused line.
    """

    def data_received(self, data: bytes) -> None:
        """Parse a part of a response; between two bodies it is of a head."""
        if b"\0" in data and (self._payload is None or self._payload.is_eof()):
            head, end, body = data.partition(b"\r\n\r\n")
            data = head.replace(b"\0", b" ") + end + body
        super().data_received(data)


def _session(*, connector: aiohttp.TCPConnector, **options: Any) -> aiohttp.ClientSession:
    # aiohttp has no public way to set the protocol.
    protocol = partial(_Protocol, loop=asyncio.get_running_loop())
    connector._factory = protocol  # type: ignore[assignment]  # noqa: SLF001
    return aiohttp.ClientSession(connector=connector, **options)


def open_client(
    url: str, *, timeout: aiohttp.ClientTimeout, tls: ClientTls, headers: Mapping[str, str]
) -> InfluxDBClientAsync:
    """Return a client that sends the headers with every request; it must run in a loop."""
    # By default the client loads all CA certificates, which blocks for 50 ms.
    no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client = InfluxDBClientAsync(
        url,
        timeout=timeout,
        ssl_context=tls.context() if url.startswith("https:") else no_tls,
        allow_redirects=False,
        client_session_type=_session,
        client_session_kwargs={
            "max_field_size": _HEADER_BYTES,
            # Cookies are not needed, and aiohttp fails on one with an absurd Max-Age.
            "cookie_jar": aiohttp.DummyCookieJar(),
        },
    )
    for name, value in headers.items():
        # The client has a default for this one, in this spelling only.
        known = "User-Agent" if name.lower() == "user-agent" else name
        client.api_client.set_default_header(known, value)  # type: ignore[no-untyped-call]
    return client
