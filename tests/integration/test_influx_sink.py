"""The InfluxDB sink against a fake server on a real socket."""

from __future__ import annotations

import asyncio
import gzip
import logging
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from app.model import Row
from app.sinks.batches import Batch, whole_rows
from app.sinks.influxdb.http import Request
from app.sinks.influxdb.sink import InfluxSink
from app.sinks.outcomes import (
    Accepted,
    Busy,
    Held,
    Outcome,
    Refused,
    ServerFailed,
    TimedOut,
    TooLarge,
    Unavailable,
)
from tests.fakes import influx as fake
from tests.fakes.influx import FakeInflux

CERTIFICATES = Path(fake.__file__).with_name("certificates")
LINES = [b'm,e=a s="x\ny" 1', b"m,e=b v=2 2", b"m,e=c v=3 3"]


def batch_of(lines: list[bytes] = LINES) -> Batch:
    """Return a batch of one row for each line."""
    rows = [
        Row(number, 1, gzip.compress(line + b"\n"), 0.0)
        for number, line in enumerate(lines, start=1)
    ]
    return whole_rows(rows)


@asynccontextmanager
async def sink_to(
    server: FakeInflux,
    *,
    url: str = "",
    token: str = "",
    org: str = "",
    bucket: str = "home_assistant_events",
    timeout_s: float = 5.0,
) -> AsyncIterator[InfluxSink]:
    """Open a sink that writes to the server, by default with the right settings."""
    sink = InfluxSink(
        url or server.url,
        token=token or server.token,
        org=org or server.org,
        bucket=bucket,
        timeout_s=timeout_s,
    )
    async with asyncio.timeout(10), sink:
        yield sink


async def answers_to(server: FakeInflux, *, timeout_s: float = 5.0) -> Outcome:
    """Return what one write is answered."""
    async with sink_to(server, timeout_s=timeout_s) as sink:
        return await sink.write(batch_of())


async def test_rows_are_sent_as_they_are_and_arrive_as_lines() -> None:
    """As one gzip member, in nanoseconds, with the token."""
    async with FakeInflux().serving() as server:
        assert await answers_to(server) == Accepted()

    (request,) = server.requests
    assert server.lines == LINES
    assert request.query == {
        "org": "homeiq",
        "bucket": "home_assistant_events",
        "precision": "ns",
    }
    assert request.headers["Content-Encoding"] == "gzip"
    assert request.headers["Content-Type"].startswith("text/plain")
    assert request.headers["Authorization"] == f"Token {server.token}"


@asynccontextmanager
async def responding(head: bytes, *more: bytes) -> AsyncIterator[str]:
    """Respond to every request with the same bytes, in as many segments; then close."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if found := re.search(rb"Content-Length: (\d+)", request):
            await reader.readexactly(int(found[1]))
        with suppress(ConnectionError):
            for part in (head, *more):
                writer.write(part)
                for _ in range(3):  # the client, in the same loop, reads each part alone
                    await asyncio.sleep(0)
            writer.close()
            await writer.wait_closed()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


_PARSE_ERROR = b"unable to parse 'a,b\0=%b': missing tag value"
_QUOTES_NUL = b"X-Influxdb-Error: " + _PARSE_ERROR % b"v" + b"\r\n"
_BODY = rb"""{"error":"unable to parse 'a,b\u0000=v': missing tag value"}"""
_REFUSAL = b"Content-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        pytest.param(
            [b"HTTP/1.1 400 Bad Request\r\n" + _QUOTES_NUL + _REFUSAL], Refused, id="one segment"
        ),
        pytest.param(
            [b"HTTP/1.1 400 Bad Request\r\nX-Influxdb-Error: a", b"b\0c\r\n" + _REFUSAL],
            Refused,
            id="NUL in a later segment",
        ),
        pytest.param(
            [
                b"HTTP/1.1 400 Bad Request\r\nX-Influxdb-Error: ",
                _PARSE_ERROR % (b"v" * 65_536) + b"\r\n" + _REFUSAL,
            ],
            Refused,
            id="a line of 64 kB",
        ),
        pytest.param(
            [
                b"HTTP/1.1 500 Internal Server Error\r\n"
                + _QUOTES_NUL
                + b"Content-Length: 0\r\n\r\n"
            ],
            ServerFailed,
            id="500",
        ),
        pytest.param([b"HTTP/1.1 204 No Content\r\n" + _QUOTES_NUL + b"\r\n"], Accepted, id="204"),
        pytest.param(
            [b"HTTP/1.1 400 Bad Request\r\nX-Influxdb-Error: a\0"], Unavailable, id="truncated"
        ),
    ],
)
async def test_a_response_that_quotes_a_nul_in_a_header_has_the_meaning_of_its_status(
    response: list[bytes], kind: type[Outcome]
) -> None:
    """InfluxDB 1 quotes a line that it cannot parse in `X-Influxdb-Error`, with any NUL."""
    async with responding(*response) as url:
        sink = InfluxSink(url, token="", org="", bucket="b", api="v1", timeout_s=5.0)
        async with sink:
            outcome = await sink.write(batch_of())

    assert isinstance(outcome, kind), outcome
    if isinstance(outcome, Refused):
        assert outcome.reason.endswith("unable to parse a point: missing tag value")


async def test_a_nul_in_the_body_of_a_response_is_kept() -> None:
    """Only a header must not hold one."""
    head = b"HTTP/1.1 200 OK\r\nX-Influxdb-Error: \0\r\nContent-Length: 6\r\n\r\n"
    async with responding(head + b"a\0b", b"c\0d") as url:
        sink = InfluxSink(url, token="", org="", bucket="b", api="v1", timeout_s=5.0)
        async with sink:
            reply = await sink.ask(Request(path="/query"))

    assert reply.body == b"a\0bc\0d"


async def test_compressing_does_not_happen_on_the_event_loop() -> None:
    """Several rows are compressed anew, for milliseconds that the reader must not wait."""
    here = asyncio.get_running_loop()
    found: list[bool] = []

    class WatchedRows(Batch):
        def lines(self) -> list[bytes]:
            try:
                found.append(asyncio.get_running_loop() is here)
            except RuntimeError:
                found.append(False)
            return super().lines()

    fields = {name: getattr(batch_of(), name) for name in Batch.__slots__}
    async with FakeInflux().serving() as server, sink_to(server) as sink:
        assert await sink.write(WatchedRows(**fields)) == Accepted()

    assert found == [False]
    assert server.lines == LINES


async def test_many_writes_use_one_connection() -> None:
    """The client is made once; also an address with a path and a slash works."""
    async with FakeInflux().serving() as server, sink_to(server, url=f"{server.url}/") as sink:
        for _ in range(3):
            assert await sink.write(batch_of()) == Accepted()

    assert server.lines == LINES * 3
    assert len({request.peer for request in server.requests}) == 1


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (fake.error(400, "unable to parse"), Refused),
        (fake.error(422, "field type conflict"), Refused),
        (fake.error(413, "too large"), TooLarge),
        (fake.UNAUTHORIZED, Held),
        (fake.error(403, "forbidden"), Held),
        (fake.Reply(status=404, body="404 page not found"), Held),
        (fake.HTML_500, ServerFailed),
        (fake.Reply(status=200, body="OK"), Unavailable),
        (fake.Reply(status=302, headers={"Location": "/login"}), Unavailable),
        (fake.Reply(status=307, headers={"Location": "/api/v2/write"}), Unavailable),
        (fake.RESET, Unavailable),
        (fake.Reply(status=413, act="early"), TooLarge),
        (fake.error(429, "slow down", Retry_After="30"), Busy),
        (fake.error(503, "starting"), Busy),
    ],
)
async def test_every_status_of_a_write_has_an_outcome(
    reply: fake.Reply, expected: type[Outcome]
) -> None:
    """Over a socket as in the table of statuses."""
    async with FakeInflux(reply).serving() as server:
        assert type(await answers_to(server)) is expected

    assert server.lines == []


async def test_a_silent_server_is_a_timeout() -> None:
    """After INFLUXDB_TIMEOUT."""
    async with FakeInflux(fake.HANG).serving() as server:
        assert isinstance(await answers_to(server, timeout_s=0.1), TimedOut)


async def test_a_refused_connection_is_unavailable() -> None:
    """And nothing hangs or leaks."""
    async with FakeInflux().serving() as server:
        pass

    assert isinstance(await answers_to(server), Unavailable)


@pytest.mark.parametrize(
    ("url", "token"),
    [
        ("http://host..invalid:8086", "token-1"),
        ("http://127.0.0.1:99999", "token-1"),
        ("", "with\nbreak"),
    ],
)
async def test_settings_that_no_request_can_be_made_of_are_held(url: str, token: str) -> None:
    """They are named instead of ending the service."""
    async with FakeInflux().serving() as server, sink_to(server, url=url, token=token) as sink:
        held = await sink.write(batch_of())
        assert not await sink.ping()

    assert isinstance(held, Held)
    assert "INFLUXDB_URL" in held.advice
    assert token not in held.reason


async def test_an_expired_certificate_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no fault of the settings, and points wait until it is renewed."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / "authority.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(CERTIFICATES / "expired.pem")
    async with FakeInflux().serving(tls=tls) as server, sink_to(server) as sink:
        answer = await sink.write(batch_of())

    assert isinstance(answer, Unavailable)
    assert answer.reason.startswith(
        "its certificate is refused (CERTIFICATE_VERIFY_FAILED: certificate has expired). Renew"
    )


async def test_a_server_without_tls_is_unavailable() -> None:
    """Https to an http port."""
    async with (
        FakeInflux().serving() as server,
        sink_to(server, url=server.url.replace("http:", "https:")) as sink,
    ):
        assert isinstance(await sink.write(batch_of()), Unavailable)


async def test_retry_after_may_be_a_date() -> None:
    """https://www.rfc-editor.org/rfc/rfc9110#field.retry-after."""
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    async with FakeInflux(fake.error(429, "slow", Retry_After=moment)).serving() as server:
        busy = await answers_to(server)

    assert isinstance(busy, Busy)
    assert busy.retry_after_s == pytest.approx(60, abs=5)


async def test_a_long_error_page_is_not_read_to_its_end() -> None:
    """The beginning of it makes the reason; the next write works."""
    page = fake.Reply(status=502, body="x" * 1_000_000)
    async with FakeInflux(page).serving() as server, sink_to(server) as sink:
        failed = await sink.write(batch_of())
        assert await sink.write(batch_of()) == Accepted()

    assert failed == ServerFailed(reason="x" * 500, status=502)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"token": "wrong"}, "INFLUXDB_TOKEN"), ({"org": "wrong"}, "INFLUXDB_ORG")],
)
async def test_wrong_settings_hold_and_are_named(wrong: dict[str, str], named: str) -> None:
    """Nothing is written until a person fixes them."""
    async with FakeInflux().serving() as server, sink_to(server, **wrong) as sink:  # type: ignore[arg-type]
        held = await sink.write(batch_of())

    assert isinstance(held, Held)
    assert named in held.advice
    assert server.lines == []


async def test_a_missing_bucket_is_created(caplog: pytest.LogCaptureFixture) -> None:
    """When the token may; the batch is written in the same turn."""
    with caplog.at_level(logging.INFO, logger="app"):
        async with FakeInflux().serving() as server, sink_to(server, bucket="new") as sink:
            assert await sink.write(batch_of()) == Accepted()

    assert "new" in server.buckets
    assert server.lines == LINES
    assert [record.getMessage() for record in caplog.records] == [
        "Created bucket 'new' in organization 'homeiq'"
    ]


async def test_a_missing_bucket_that_may_not_be_created_holds() -> None:
    """With a word about the bucket and the rights of the token."""
    server = FakeInflux()
    server.may_create_buckets = False
    async with server.serving(), sink_to(server, bucket="new") as sink:
        held = await sink.write(batch_of())

    assert isinstance(held, Held)
    assert "INFLUXDB_BUCKET" in held.advice
    assert "INFLUXDB_TOKEN" in held.advice
    assert held.reason == 'bucket "new" not found'


async def test_a_missing_bucket_in_an_unknown_organization_holds() -> None:
    """Without the organization's id none can be created."""
    server = FakeInflux(fake.error(404, "bucket not found", code="not found"))
    async with server.serving(), sink_to(server, token="wrong") as sink:
        assert isinstance(await sink.write(batch_of()), Held)


async def test_a_bucket_that_somebody_else_just_created_is_written_to() -> None:
    """Two services may start at once."""
    server = FakeInflux(fake.error(404, "bucket not found", code="not found"))
    async with server.serving(), sink_to(server) as sink:
        assert await sink.write(batch_of()) == Accepted()


async def test_the_token_never_stands_in_a_reason() -> None:
    """Even when a server repeats it."""
    server = FakeInflux()
    server.script.append(fake.error(401, f"token {server.token} is unknown"))
    async with server.serving():
        held = await answers_to(server)

    assert isinstance(held, Held)
    assert held.reason == "token *** is unknown"


async def test_a_ping_says_whether_the_server_answers() -> None:
    """A 503 is not an answer, nor is silence."""
    async with FakeInflux().serving() as server, sink_to(server) as sink:
        assert await sink.ping()
        server.alive = False
        assert not await sink.ping()

    async with sink_to(server) as sink:
        assert not await sink.ping()


async def test_closing_twice_or_unopened_is_harmless() -> None:
    """The exit of a stack that failed half-way."""
    sink = InfluxSink("http://127.0.0.1:1", token="t", org="o", bucket="b", timeout_s=1.0)

    await sink.__aexit__()
    async with sink:
        pass
    await sink.__aexit__()
