"""The reported reason when no connection to a database or a data API can be made."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app.discovery.data_api import DataApi
from app.model import Row
from app.runtime.retry import Backoff, Breaker
from app.sinks.batches import whole_rows
from app.sinks.influxdb.sink import InfluxSink
from app.sinks.outcomes import Unavailable
from tests.fakes import influx as fake
from tests.fakes.influx import FakeInflux

CERTIFICATES = Path(fake.__file__).with_name("certificates")


@contextlib.asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """Answer the beginning of every request with the same bytes, then close."""

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(answered, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def closed_port() -> AsyncIterator[int]:
    """Reserve a port that nothing listens on."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


async def reason_of_sink(url: str) -> str:
    """Write a point and return why it failed."""
    sink = InfluxSink(url, token="t", org="o", bucket="b", timeout_s=5.0)
    async with sink:
        answer = await sink.write(whole_rows([Row(1, 1, gzip.compress(b"m v=1 1\n"), 0.0)]))
    assert isinstance(answer, Unavailable)
    return answer.reason


async def reason_of_data_api(url: str) -> str:
    """Probe a data API and return why it failed."""
    api = DataApi(
        url,
        key="",
        source="home",
        backoff=Backoff(max_s=1),
        breaker=Breaker("data API", threshold=5, reset_s=30.0),
        timeout_s=5.0,
    )
    reason = await api.probe()
    assert reason is not None
    return reason


CASES: dict[str, tuple[Callable[[], contextlib.AbstractAsyncContextManager[int]], str, str]] = {
    "nothing listens": (
        closed_port,
        "no connection to 127.0.0.1:{port}: nothing listens there",
        "nothing listens there",
    ),
    "half a response": (
        lambda: answering(b"HTTP/1.1 204 No"),
        "the server disconnected in the middle of its response",
        "the response is incomplete or not HTTP",
    ),
    "no HTTP": (
        lambda: answering(b"SSH-2.0-OpenSSH\r\n\r\n"),
        "the response is incomplete or not HTTP",
        "the response is incomplete or not HTTP",
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_failed_connection_is_described_in_our_own_words(case: str) -> None:
    """A library's text differs between versions and may be empty."""
    server, of_database, of_data_api = CASES[case]

    async with server() as port:
        url = f"http://127.0.0.1:{port}"
        assert await reason_of_sink(url) == of_database.format(port=port)
        assert await reason_of_data_api(url) == of_data_api


async def test_an_unknown_host_is_described_in_our_own_words() -> None:
    """Whether the name server answers or cannot be reached."""
    assert (
        await reason_of_sink("http://no-such-host.invalid:8086")
        == "no connection to no-such-host.invalid:8086: the name of the host is not known"
    )
    assert (
        await reason_of_data_api("http://no-such-host.invalid:8006")
        == "the name of the host is not known"
    )


async def test_a_data_api_with_a_bad_certificate_or_without_tls_is_described() -> None:
    """It has no settings for either, so the advice names none."""
    server = FakeInflux()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(CERTIFICATES / "expired.pem")
    async with server.serving(tls=tls):
        reason = await reason_of_data_api(server.url)
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        plain = await reason_of_data_api(f"https://127.0.0.1:{port}")

    assert reason.startswith("its certificate is refused (CERTIFICATE_VERIFY_FAILED: ")
    assert plain == "what answers there does not speak TLS"
