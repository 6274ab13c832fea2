"""Makes influxdb-client's asynchronous client as the sink and queries need it."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import aiohttp
from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync

from app.runtime.tls import ClientTls

_HEADER_BYTES = 1_048_576
"""InfluxDB 1 repeats the whole of a refused line in a header."""


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
