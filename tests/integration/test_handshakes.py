"""Reasons for failed handshakes; headers and client certificates for proxies."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import logging
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from app.commands.doctor import command
from app.homeassistant.connection import HomeAssistantSource
from app.homeassistant.endpoint import Endpoint
from app.homeassistant.reconnect import ReconnectPolicy
from app.model import Row
from app.runtime.errors import SourceUnavailable
from app.runtime.metrics import Telemetry
from app.runtime.retry import Backoff, Breaker
from app.settings import variables
from app.sinks.batches import whole_rows
from app.sinks.influxdb.sink import InfluxSink
from app.sinks.outcomes import Accepted, Unavailable
from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.front import Front
from tests.fakes.influx import FakeInflux
from tests.fakes.still_house import StillHouse
from tests.integration.test_connection import RecordingListener, running, until

TOKEN = "handshake-token-0123456789-0123456789-0123456789"
BATCH = whole_rows([Row(1, 1, gzip.compress(b"m v=1 1\n"), 0.0)])
HEADERS = {"CF-Access-Client-Id": "id.access", "CF-Access-Client-Secret": "hush"}


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that runs the doctor with some settings and returns each check's text."""
    for variable in variables():
        for name in variable.names:
            monkeypatch.delenv(name, raising=False)

    async def checked(**values: str) -> dict[str, str]:
        values = {
            "HOME_ASSISTANT_URL": "http://127.0.0.1:1",
            "HOME_ASSISTANT_TOKEN": TOKEN,
            "DATA_DIR": str(tmp_path / "data"),
            "WEBSOCKET_INGESTION_PORT": "0",
            **values,
        }
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        out = io.StringIO()
        async with asyncio.timeout(60):
            await command.run(None, out, as_json=True)
        checks = json.loads(out.getvalue())["checks"]
        return {
            each["name"]: f"{each['status']}: {each['what']} {each['advice'] or ''}"
            for each in checks
        }

    return checked


def source_of(url: str, **options: Any) -> HomeAssistantSource:
    """Return a source that retries almost at once."""
    return HomeAssistantSource(
        Endpoint(url, token=TOKEN, **{"ssl_verify": True, **options}),
        reconnect=ReconnectPolicy(
            backoff=Backoff(max_s=1.0, first_s=0.001, chance=lambda: 0.5),
            breaker=Breaker("Home Assistant", threshold=3, reset_s=0.0),
        ),
        telemetry=Telemetry(CollectorRegistry()),
        readiness_poll_s=0.001,
    )


def sink_of(url: str, **options: Any) -> InfluxSink:
    """Return a sink for an InfluxDB 2."""
    return InfluxSink(url, token="token", org="org", bucket="bucket", timeout_s=5.0, **options)


NGINX = "<html><h1>400 Bad Request</h1>The plain HTTP request was sent to HTTPS port</html>"
AIOHTTP = 'No WebSocket UPGRADE hdr: None\n Can "Upgrade" only to "WebSocket".'
LOGIN = {"Location": "https://login.example/auth?next=hush"}
CLOUDFLARE = {"CF-Ray": "8a1b2c3d4e5f-VIE"}
CAUSES: list[tuple[Front, str, str]] = [
    (Front(200, body="<html>Welcome to our Wi-Fi</html>"), "captive portal", "in a browser"),
    (Front(204), "a web page answers (204)", "Write the address"),
    (
        Front(302, headers=LOGIN),
        "redirects to https://login.example/auth",
        "HOME_ASSISTANT_HEADERS",
    ),
    (Front(400, body="400: Bad Request"), "does not trust the reverse proxy", "trusted_proxies"),
    (Front(400, body=NGINX), "the port is for TLS", "Write https:// in HOME_ASSISTANT_URL"),
    (
        Front(400, body="400 No required SSL certificate was sent"),
        "requires a client certificate",
        "HOME_ASSISTANT_CLIENT_CERT",
    ),
    (
        Front(400, body="400 The SSL certificate error"),
        "refuses our client certificate",
        "HOME_ASSISTANT_CLIENT_CERT",
    ),
    (Front(400, body=AIOHTTP), "does not pass WebSockets on", "Upgrade and Connection"),
    (Front(401), "asks for a login of its own", "HOME_ASSISTANT_HEADERS"),
    (Front(403, body="403: Forbidden"), "bans this machine", "ip_bans.yaml"),
    (Front(403, headers=CLOUDFLARE), "Cloudflare refuses", "CF-Access-Client-Secret"),
    (Front(404), "no WebSocket API at this path (404)", "without a path"),
    (Front(405), "no WebSocket API at this path (405)", "without a path"),
    (Front(418), "refuses the WebSocket handshake (418)", "HOME_ASSISTANT_URL"),
    (Front(426), "does not pass WebSockets on", "Upgrade and Connection"),
    (Front(429), "limits requests (429)", "further apart"),
    (Front(500), "fails (500)", "Look at the log"),
    (Front(502), "answers 502: Home Assistant is starting", "Wait if it is restarting"),
    (Front(503), "answers 503: Home Assistant is starting", "Wait if it is restarting"),
    (Front(504), "answers 504: Home Assistant is starting", "Wait if it is restarting"),
    (Front(511), "captive portal", "in a browser"),
    (Front(530, headers=CLOUDFLARE), "Cloudflare answers 530", "Wait if it is restarting"),
]


@pytest.mark.parametrize(("front", "why", "advice"), CAUSES)
async def test_a_refused_handshake_has_the_same_reason_in_health_log_and_doctor(
    doctor: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    front: Front,
    why: str,
    advice: str,
) -> None:
    """The sentences are the same in all three."""
    caplog.set_level(logging.INFO)
    async with front.serving():
        source = source_of(front.url("ws") + "/api/websocket")
        async with running(source, RecordingListener()):
            await until(lambda: source.status().reason)
            reason = source.status().reason or ""
        report = (await doctor(HOME_ASSISTANT_URL=front.url()))["home_assistant"]

    logged = next(line for line in caplog.messages if "No connection to Home Assistant" in line)
    for text in (reason, logged, report):
        assert why in text
        assert advice in text
        assert "hush" not in text
    sentences = logged.removeprefix("No connection to Home Assistant: ")
    assert sentences in reason
    assert sentences in report


async def test_an_endless_page_is_not_read_to_its_end() -> None:
    """A captive portal may send anything."""
    async with Front(400, body="x" * 3_000_000).serving() as front:
        with pytest.raises(SourceUnavailable):
            async with source_of(front.url("ws")).commands():
                pass


async def test_headers_are_sent_with_every_connection_to_home_assistant(
    doctor: Callable[..., Any],
) -> None:
    """Cloudflare Access and similar proxies check the handshake."""
    async with Front(403).serving() as front:
        with pytest.raises(SourceUnavailable):
            async with source_of(front.url("ws"), headers=HEADERS).commands():
                pass
        report = await doctor(
            HOME_ASSISTANT_URL=front.url(), HOME_ASSISTANT_HEADERS=json.dumps(HEADERS)
        )

    assert front.sent("CF-Access-Client-Id") == ["id.access"] * 2
    assert front.sent("CF-Access-Client-Secret") == ["hush"] * 2
    assert "hush" not in str(report)


async def test_home_assistant_accepts_additional_headers() -> None:
    """It ignores headers it does not know."""
    async with FakeHomeAssistant(StillHouse(), token=TOKEN) as home_assistant:
        headers = {**HEADERS, "User-Agent": "mine", "Authorization": "Basic YTpi", "Origin": "x"}
        async with source_of(home_assistant.url, headers=headers).commands() as commands:
            assert await commands.call("get_states")


@pytest.mark.parametrize("api", ["v1", "v2", "v3", "auto"])
async def test_headers_are_sent_to_the_database_with_every_request(api: Any) -> None:
    """Writes, version requests, and those that create a bucket."""
    async with Front(404, body='{"message": "bucket not found"}').serving() as front:
        sink = sink_of(front.url(), api=api, headers={**HEADERS, "user-agent": "mine"})
        async with sink:
            await sink.write(BATCH)
            await sink.ping()

    assert len(front.requests) >= 2
    assert set(front.sent("CF-Access-Client-Secret")) == {"hush"}
    assert {request.headers.getall("User-Agent")[0] for request in front.requests} == {"mine"}
    assert {len(request.headers.getall("User-Agent")) for request in front.requests} == {1}


async def test_a_header_that_the_database_echoes_is_redacted(doctor: Callable[..., Any]) -> None:
    """A proxy's error page may show the request."""
    headers = {"X-Key": "hush-hush"}
    async with Front(403, body="no such key: hush-hush").serving() as front:
        async with sink_of(front.url(), headers=headers) as sink:
            answer = await sink.write(BATCH)
        report = await doctor(
            INFLUXDB_URL=front.url(), INFLUXDB_TOKEN="t", INFLUXDB_HEADERS=json.dumps(headers)
        )

    assert set(front.sent("X-Key")) == {"hush-hush"}
    assert "no such key: ***" in str(answer)
    assert "hush" not in str(report)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a CA, a server certificate and two client certificates."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificates")
    folder = tmp_path_factory.mktemp("authority")
    new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    commands = [f"req -x509 {new} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"]
    signed = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names"
    for name in ("server", "client", "renewed"):
        commands.append(f"req {new} -subj /CN={name} -keyout {name}.key -out {name}.csr")
        commands.append(f"x509 -req -in {name}.csr {signed} -out {name}.pem")
    commands.append(f"req -x509 {new} -days 2 -subj /CN=other -keyout other.key -out other.pem")
    for each in commands:
        subprocess.run([openssl, *each.split()], check=True, capture_output=True, cwd=folder)
    return folder


def mutual_tls(authority: Path, *, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """Return the TLS context of a server that requires a client certificate of the CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem", authority / "server.key")
    context.load_verify_locations(authority / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    if version is not None:
        context.maximum_version = version
    return context


def certificate(authority: Path, name: str) -> dict[str, Path]:
    """Return the files of a client certificate as options."""
    return {"client_cert": authority / f"{name}.pem", "client_key": authority / f"{name}.key"}


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS)
async def test_home_assistant_behind_mutual_tls_needs_the_client_certificate(
    monkeypatch: pytest.MonkeyPatch,
    doctor: Callable[..., Any],
    authority: Path,
    version: ssl.TLSVersion,
) -> None:
    """Without the certificate, or with another, the connection fails and the reason is reported."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca.pem"))
    tls = mutual_tls(authority, version=version)
    async with FakeHomeAssistant(StillHouse(), token=TOKEN, tls=tls) as it:
        async with source_of(it.url, **certificate(authority, "client")).commands() as commands:
            assert await commands.call("get_states")
        with pytest.raises(SourceUnavailable) as without:
            async with source_of(it.url).commands():
                pass
        with pytest.raises(SourceUnavailable) as wrong:
            async with source_of(it.url, **certificate(authority, "other")).commands():
                pass
        report = await doctor(
            HOME_ASSISTANT_URL=it.url,
            HOME_ASSISTANT_CLIENT_CERT=str(authority / "client.pem"),
            HOME_ASSISTANT_CLIENT_KEY=str(authority / "client.key"),
        )

    # asyncio's server closes without an alert; see the next test.
    assert "HOME_ASSISTANT_CLIENT_CERT" in str(without.value.advice)
    assert "HOME_ASSISTANT_CLIENT_CERT" in str(wrong.value.advice)
    assert report["home_assistant"].startswith("ok")


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_database_behind_mutual_tls_needs_the_client_certificate(
    monkeypatch: pytest.MonkeyPatch,
    doctor: Callable[..., Any],
    authority: Path,
    version: ssl.TLSVersion,
) -> None:
    """Without it, writes fail and the reason is reported."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca.pem"))
    server = FakeInflux(token="token", org="org")
    async with server.serving(tls=mutual_tls(authority, version=version)):
        async with sink_of(server.url, **certificate(authority, "client")) as sink:
            assert await sink.write(BATCH) == Accepted()
        async with sink_of(server.url) as sink:
            without = await sink.write(BATCH)
        report = await doctor(INFLUXDB_URL=server.url, INFLUXDB_TOKEN="token", INFLUXDB_ORG="org")
        report_with = await doctor(
            INFLUXDB_CLIENT_CERT=str(authority / "client.pem"),
            INFLUXDB_CLIENT_KEY=str(authority / "client.key"),
            INFLUXDB_URL=server.url,
        )

    assert isinstance(without, Unavailable)
    assert "INFLUXDB_CLIENT_CERT" in report["database"]
    assert report_with["database"].startswith("ok")
    assert report_with["database_write"].startswith("ok")


@pytest.fixture
def alerting(authority: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    """Run a TLS server that sends OpenSSL's alerts, and yield its port."""
    context = mutual_tls(authority, version=request.param)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        ended = threading.Event()

        def accept() -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    accepted, _ = listening.accept()
                    accepted.settimeout(1.0)
                    with accepted.dup() as lingering:
                        with contextlib.suppress(OSError):
                            context.wrap_socket(accepted, server_side=True).recv(1)
                        # Closing with unread data would reset the connection.
                        lingering.shutdown(socket.SHUT_WR)
                        while lingering.recv(4096):
                            pass

        thread = threading.Thread(target=accept)
        thread.start()
        yield listening.getsockname()[1]
        ended.set()
        thread.join()


@pytest.mark.parametrize("alerting", VERSIONS, indirect=True)
@pytest.mark.parametrize(
    ("name", "words"),
    [(None, "it requires a client certificate"), ("other", "it refuses our client certificate")],
)
async def test_a_refused_client_certificate_is_named(
    monkeypatch: pytest.MonkeyPatch, authority: Path, alerting: int, name: str | None, words: str
) -> None:
    """The server sends an alert; with TLS 1.3 it arrives only after the handshake."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca.pem"))
    files = certificate(authority, name) if name else {}
    with pytest.raises(SourceUnavailable) as caught:
        async with source_of(f"wss://127.0.0.1:{alerting}", **files).commands():
            pass
    async with sink_of(f"https://127.0.0.1:{alerting}", **files) as sink:
        answer = await sink.write(BATCH)

    assert words in str(caught.value)
    assert "HOME_ASSISTANT_CLIENT_CERT" in str(caught.value.advice)
    assert isinstance(answer, Unavailable)
    assert words in answer.reason
    assert "INFLUXDB_CLIENT_CERT" in answer.reason


async def test_certificate_checks_of_a_database_can_be_disabled(
    doctor: Callable[..., Any], authority: Path
) -> None:
    """INFLUXDB_SSL_VERIFY=false encrypts without authenticating, and the doctor warns about it."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(authority / "other.pem", authority / "other.key")
    server = FakeInflux(token="token", org="org")
    async with server.serving(tls=tls):
        async with sink_of(server.url) as sink:
            refused = await sink.write(BATCH)
        async with sink_of(server.url, ssl_verify=False) as sink:
            accepted = await sink.write(BATCH)
        values = {"INFLUXDB_URL": server.url, "INFLUXDB_TOKEN": "token", "INFLUXDB_ORG": "org"}
        report = await doctor(**values)
        report_unchecked = await doctor(**values, INFLUXDB_SSL_VERIFY="false")

    assert isinstance(refused, Unavailable)
    assert accepted == Accepted()
    assert "INFLUXDB_SSL_VERIFY=false" in report["database"]
    assert report_unchecked["database"].startswith("warning")
    assert "INFLUXDB_SSL_VERIFY=false" in report_unchecked["database"]
    assert report_unchecked["database_write"].startswith("ok")


def replace(authority: Path, folder: Path, name: str) -> None:
    """Install a certificate and its key where the service reads them."""
    for ending in ("pem", "key"):
        shutil.copy(authority / f"{name}.{ending}", folder / f"new.{ending}")
        (folder / f"new.{ending}").replace(folder / f"mine.{ending}")


async def test_a_renewed_certificate_is_used_for_the_next_home_assistant_connection(
    monkeypatch: pytest.MonkeyPatch, authority: Path, tmp_path: Path
) -> None:
    """No restart is needed, and a half replaced pair changes nothing."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca.pem"))
    seen: list[object] = []
    tls = mutual_tls(authority)
    replace(authority, tmp_path, "client")
    files = {"client_cert": tmp_path / "mine.pem", "client_key": tmp_path / "mine.key"}
    house = StillHouse()
    async with FakeHomeAssistant(house, token=TOKEN, tls=tls) as it:
        source = source_of(it.url, **files)

        async def connect() -> None:
            async with source.commands() as commands:
                transport = next(iter(it._clients)).socket.transport
                subject = transport.get_extra_info("peercert")["subject"]
                seen.append(subject[0][0][1])
                await commands.call("get_states")

        await connect()
        shutil.copy(authority / "renewed.pem", tmp_path / "mine.pem")
        await connect()
        replace(authority, tmp_path, "renewed")
        await connect()
        (tmp_path / "mine.key").unlink()
        await connect()

    assert seen == ["client", "client", "renewed", "renewed"]


async def test_a_renewed_certificate_is_used_for_the_next_database_connection(
    monkeypatch: pytest.MonkeyPatch, authority: Path, tmp_path: Path
) -> None:
    """The HTTP client opens new connections of its pool by itself."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca.pem"))
    replace(authority, tmp_path, "client")
    files = {"client_cert": tmp_path / "mine.pem", "client_key": tmp_path / "mine.key"}
    front = Front(204, headers={"Connection": "close"})
    async with (
        front.serving(tls=mutual_tls(authority)),
        sink_of(front.url(), api="v2", **files) as sink,
    ):
        assert await sink.write(BATCH) == Accepted()
        replace(authority, tmp_path, "renewed")
        assert await sink.write(BATCH) == Accepted()

    assert front.subjects == ["client", "renewed"]


async def test_a_missing_client_certificate_is_a_failed_connection(tmp_path: Path) -> None:
    """It existed when the settings were read; the next attempt reads it again."""
    source = source_of("wss://127.0.0.1:1", client_cert=tmp_path / "gone.pem")

    with pytest.raises(SourceUnavailable, match="the client certificate cannot be used"):
        async with source.commands():
            pass


@pytest.mark.parametrize(
    ("mode", "words"),
    [("recovery_mode", "runs in recovery mode"), ("safe_mode", "runs in safe mode")],
)
async def test_a_limited_home_assistant_is_reported(
    monkeypatch: pytest.MonkeyPatch, doctor: Callable[..., Any], mode: str, words: str
) -> None:
    """It is RUNNING, but most entities are missing."""
    house = StillHouse()
    config = {**house.config(), mode: True}
    monkeypatch.setattr(house, "config", lambda: config)
    async with FakeHomeAssistant(house, token=TOKEN) as it:
        source = source_of(it.url)
        async with running(source, RecordingListener()):
            await until(lambda: source.status().ha_state == "RUNNING")
            reason = source.status().reason
            config[mode] = None  # invalid, but the rest is still valid
            await it.drop()
            await until(lambda: source.status().successful_connections == 2)
            await until(lambda: source.status().ha_state == "RUNNING")
            later = source.status().reason
        config[mode] = True
        report = await doctor(HOME_ASSISTANT_URL=it.url)

    assert reason is not None
    assert words in reason
    assert later is None
    assert report["version"].startswith("warning")
    assert words in report["version"]


ACCEPTING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
ODD = [
    b"",
    b"\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"HTTP/1.1 999999 ?\r\n\r\n",
    b"HTTP/2 200\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: /a\r\nLocation: https://b\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://[\xff\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 400 Bad\r\nContent-Length: 99999999999999999999\r\n\r\nx",
    b"HTTP/1.1 400 Bad\r\nContent-Length: -1\r\n\r\nx",
    b"HTTP/1.1 400 Bad\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\nDate: x\r\nDate: y\r\nContent-Length: 0\r\n\r\n",
    ACCEPTING + b"\r\n",
    ACCEPTING + b"Sec-WebSocket-Accept: a\r\nSec-WebSocket-Accept: b\r\n\r\n",
    ACCEPTING + b"Sec-WebSocket-Accept: x\r\nSec-WebSocket-Extensions: odd\r\n\r\n",
    b"\x15\x03\x01\x00\x02\x02\x46",
    bytes(range(256)),
]


@pytest.mark.parametrize("answer", ODD)
async def test_a_malformed_handshake_answer_is_a_failed_connection(answer: bytes) -> None:
    """Whatever listens there, the service goes on, and the reason is one printable line."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(reply, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(SourceUnavailable) as caught:
            async with source_of(f"ws://127.0.0.1:{port}/api/websocket").commands():
                pass

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    assert caught.value.advice


async def test_two_date_headers_in_a_handshake_are_accepted() -> None:
    """A proxy may add its own, and the library raises when a single value is requested."""

    async def greet(socket: ServerConnection) -> None:
        await socket.send('{"type": "auth_required", "ha_version": "2026.11.0"}')
        await socket.recv()
        await socket.send('{"type": "auth_ok", "ha_version": "2026.11.0"}')
        await socket.wait_closed()

    def date_twice(_: ServerConnection, __: Request, response: Response) -> None:
        response.headers["Date"] = "Mon, 30 Nov 2026 12:00:00 GMT"

    async with serve(greet, "127.0.0.1", 0, process_response=date_twice) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with source_of(f"ws://127.0.0.1:{port}/api/websocket").commands() as commands:
            assert commands.ha_version == "2026.11.0"
