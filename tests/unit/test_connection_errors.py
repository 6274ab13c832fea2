"""What a person reads about a failed connection: our sentence, never a library's text."""

from __future__ import annotations

import errno
import os
import socket
import ssl

import aiohttp
import httpx
import pytest
from aiohttp.client_reqrep import ConnectionKey

from app.discovery.data_api import _why_unanswered
from app.homeassistant.endpoint import _unavailable
from app.runtime.connection_errors import SERVICE, obstacle
from app.sinks.influxdb.response import failure

_KEY = ConnectionKey(
    host="db",
    port=8086,
    is_ssl=False,
    ssl=True,
    proxy=None,
    proxy_auth=None,
    proxy_headers_hash=None,
)
_CAUSES = [
    *(
        OSError(number, os.strerror(number))
        for number in (
            errno.ECONNREFUSED,
            errno.ECONNRESET,
            errno.EHOSTUNREACH,
            errno.ENETUNREACH,
            errno.EPIPE,
            errno.ETIMEDOUT,
        )
    ),
    socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    OSError(
        "Multiple exceptions: [Errno 111] Connect call failed, [Errno 111] Connect call failed"
    ),
    ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)"),
]


def _caused(exc: Exception, cause: Exception) -> Exception:
    exc.__cause__ = cause
    return exc


@pytest.mark.parametrize("cause", _CAUSES, ids=str)
def test_no_error_number_reaches_a_person(cause: OSError) -> None:
    """Neither `[Errno 111]` nor aiohttp's `ssl:default`, for any server."""
    texts = [
        str(failure(_caused(aiohttp.ClientConnectorError(_KEY, cause), cause))),
        str(failure(_caused(aiohttp.ClientOSError(*cause.args), cause))),
        _why_unanswered(_caused(httpx.ConnectError(str(cause)), cause), "http://data-api:8006"),
        str(_unavailable("ws://ha:8123/api/websocket", cause)),
        str(obstacle(SERVICE, _caused(httpx.ReadError(str(cause)), cause))),
    ]

    assert [text for text in texts if "Errno" in text or "ssl:" in text or "_ssl.c" in text] == []
    assert all(texts)


def test_a_server_that_hangs_up_during_the_tls_handshake_is_described() -> None:
    """The message of httpx is empty in this case."""
    assert _why_unanswered(httpx.ConnectError(""), "https://data-api") == (
        "the connection is cut at once"
    )
