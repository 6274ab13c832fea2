"""Access to the service as users start it: proxies, wrong keys and WebSocket limits."""

from __future__ import annotations

import asyncio
import json
import re
import struct
from pathlib import Path
from typing import Literal

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.frames import Opcode

from tests.service.process import Service, service

KEY = "correct-horse-battery-staple"


async def _status(running: Service, request: str) -> int:
    """Send a raw request and return the status of the response."""
    url = httpx.URL(running.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(request.format(host=f"127.0.0.1:{url.port}").replace("\n", "\r\n").encode())
    async with asyncio.timeout(10):
        line = await reader.readline()
    writer.transport.abort()
    return int(line.split()[1])


async def test_a_proxied_request_without_a_key_is_refused(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Even though it comes from this machine and names this machine as its host."""
    line = "DELETE /api/v1/dead-letters?sink=x HTTP/{version}\nHost: {{host}}\n{more}\n"
    requests = {
        "nginx, as delivered": line.format(version="1.0", more="Connection: close\n"),
        "nginx with HTTP/1.1": line.format(version="1.1", more="X-Real-IP: 192.0.2.1\n"),
        "Apache": line.format(version="1.1", more="Via: 1.1 proxy\n"),
        "cloudflared": line.format(version="1.1", more="CF-Connecting-IP: 192.0.2.1\n"),
        "a client of uvicorn's headers": line.format(
            version="1.1", more="X-Forwarded-For: 127.0.0.1\nX-Forwarded-Proto: http\n"
        ),
        "a handshake of nginx": "GET /ws HTTP/1.0\nHost: {host}\nUpgrade: websocket\n"
        "Connection: upgrade\nSec-WebSocket-Version: 13\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\n\n",
    }
    async with service(tmp_path, environment) as running:
        refused = {name: await _status(running, text) for name, text in requests.items()}
        direct = await _status(running, line.format(version="1.1", more=""))

    assert refused == dict.fromkeys(requests, 403)
    assert direct == 200


@pytest.mark.parametrize(
    ("proxies", "last"), [("", 429), ("127.0.0.1", 401), ("127.0.0.0/8, ::1", 401)]
)
async def test_only_a_trusted_proxy_can_name_the_client_that_sent_a_wrong_key(
    environment: dict[str, str], tmp_path: Path, proxies: str, last: int
) -> None:
    """Otherwise a guesser could use a new address per guess; the right key always works."""
    settings = environment | {"API_KEY": KEY, "TRUSTED_PROXIES": proxies}
    async with (
        service(tmp_path, settings) as running,
        httpx.AsyncClient(base_url=running.url) as client,
    ):
        statuses = [
            (
                await client.get(
                    "/api/v1/event-rate",
                    headers={"X-API-Key": "wrong", "X-Forwarded-For": f"192.0.2.{number}"},
                )
            ).status_code
            for number in range(11)
        ]
        right = await client.get("/api/v1/event-rate", headers={"X-API-Key": KEY})

    assert statuses == [*[401] * 10, last]
    assert right.status_code == 200


async def test_plain_uvicorn_ignores_forwarded_headers_when_counting_wrong_keys(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Clients that send X-Forwarded-For share one count; the right key always works."""
    command = ("-m", "uvicorn", "app.main:app", "--port", "0")
    listening = re.compile(r"Uvicorn running on (http://\S+)")
    settings = environment | {"API_KEY": KEY}
    async with (
        service(tmp_path, settings, command=command, listening=listening) as running,
        httpx.AsyncClient(base_url=running.url) as client,
    ):
        statuses = []
        for number in range(11):
            headers = {"X-API-Key": "wrong", "X-Forwarded-For": f"192.0.2.{number}"}
            answer = await client.get("/api/v1/event-rate", headers=headers)
            statuses.append(answer.status_code)
        right = await client.get("/api/v1/event-rate", headers={"X-API-Key": KEY})

    assert statuses == [*[401] * 10, 429]
    assert right.status_code == 200


def _frame(opcode: int, data: bytes = b"", *, fin: bool = True) -> bytes:
    """Return a frame as a client sends it, masked with zeros."""
    size = len(data)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack("!H", size)
    return bytes([(0x80 if fin else 0) | opcode]) + length + b"\0\0\0\0" + data


async def _closed_with(running: Service, frames: bytes) -> int | Literal["open", "reset"]:
    """Open `/ws`, send raw frames, and return the close code of the service.

    The code is lost ("reset") when the service closes while the client is still sending.
    """
    url = httpx.URL(running.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        f"GET /ws HTTP/1.1\r\nHost: localhost:{url.port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    received = b""
    try:
        async with asyncio.timeout(10):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(frames)
            while piece := await reader.read(65_536):
                received += piece
    except TimeoutError:
        return "open"
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    position = received.rfind(b"\x88")
    if position < 0:
        return "reset"
    (code,) = struct.unpack("!H", received[position + 2 : position + 4])
    return int(code)


async def test_websocket_client_messages_are_bounded(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """In size, number and fragments; exceeding a limit is not an error of the service."""
    start, more = _frame(Opcode.TEXT, b"x", fin=False), _frame(Opcode.CONT, fin=False)
    floods = {
        "a large message in fragments": (
            start + _frame(Opcode.CONT, b"x" * 60_000, fin=False) * 2,
            1009,
        ),
        "empty fragments": (start + more * 100_000, 1009),
        "empty messages": (_frame(Opcode.TEXT) * 100_000, 1008),
        "pings": (_frame(Opcode.PING, b"a" * 100) * 20_000, 1008),
        "not UTF-8": (_frame(Opcode.TEXT, b"\xff\xfe"), 1007),
        "not UTF-8 in fragments": (start + _frame(Opcode.CONT, b"\xff"), 1007),
        "not a frame": (b"\xff" * 100, 1002),
        "deep JSON": (_frame(Opcode.TEXT, b"[" * 60_000) + _frame(Opcode.CLOSE, b"\x03\xe8"), 1000),
        "a huge number": (
            _frame(Opcode.TEXT, b'{"type":"ping","id":' + b"9" * 10_000 + b"}")
            + _frame(Opcode.TEXT, b'{"type":"ping","id":1e400}')
            + _frame(Opcode.CLOSE, b"\x03\xe8"),
            1000,
        ),
    }
    async with service(tmp_path, environment) as running:
        codes = {name: await _closed_with(running, frames) for name, (frames, _) in floods.items()}
        async with connect(f"{running.url.replace('http', 'ws')}/ws") as fine:
            hello = json.loads(await fine.recv())
        health = await running.get("/health")
        status = await running.stop()

    wrong = {
        name: (codes[name], code)
        for name, (_, code) in floods.items()
        if codes[name] not in {code, "reset"}
    }
    assert wrong == {}
    assert hello["type"] == "hello"
    assert (health["status"], status) == ("healthy", 0)
    assert "Traceback" not in running.output.read_text()
