"""Many, silent and slow clients, against the service as users start it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.service.process import Service, service

KEY = "correct-horse-battery-staple"
_TO_CLOSE_S = 25
"""Ten seconds of grace, and a margin for a busy machine."""

_BURST = 50

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _opened(running: Service, sent: bytes = b"") -> Stream:
    url = httpx.URL(running.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(sent)
    return reader, writer


@contextlib.asynccontextmanager
async def _many(running: Service, count: int, sent: bytes = b"") -> AsyncIterator[list[Stream]]:
    streams: list[Stream] = []
    try:
        for _ in range(0, count, _BURST):  # in bursts, faster than the service accepts them
            streams += await asyncio.gather(*(_opened(running, sent) for _ in range(_BURST)))

        yield streams
    finally:
        for _, writer in streams:
            writer.transport.abort()


async def _is_closed(stream: Stream, *, drip: bytes, every_s: float = 0.2) -> bool:
    """Send a few bytes repeatedly; return whether the service disconnected in time."""
    reader, writer = stream
    try:
        async with asyncio.timeout(_TO_CLOSE_S):
            while not reader.at_eof():
                writer.write(drip)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(every_s):
                        await reader.read(65_536)
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    finally:
        writer.transport.abort()
    return True


@pytest.mark.parametrize(("key", "descriptors"), [(None, 1_024), (KEY, 1_024), (None, 256)])
async def test_idle_connections_neither_stop_the_service_nor_block_a_probe(
    environment: dict[str, str], tmp_path: Path, key: str | None, descriptors: int
) -> None:
    """Even more connections than open files allowed, with and without an API key."""
    settings = environment | ({"API_KEY": key} if key else {})
    limited = f'ulimit -n {descriptors}; exec "$0" "$@"'
    command = ("-c", limited, sys.executable, "-m", "app", "run")
    async with (
        service(tmp_path, settings, python="/bin/bash", command=command) as running,
        _many(running, descriptors + 350),
        asyncio.timeout(30),
    ):
        health = await running.get("/health")
        metrics = await running.text("/metrics")
        headers = {"X-API-Key": key} if key else {}
        live = f"{running.url.replace('http', 'ws')}/ws"
        async with connect(live, additional_headers=headers) as socket:
            hello = json.loads(await socket.recv())
        status = await running.stop()

    output = running.output.read_text()
    assert health["status"] == "healthy"
    numbers = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line[0] != "#")
    assert float(numbers["ingest_http_connections"]) > 1
    assert float(numbers['ingest_http_connections_closed_total{cause="displaced"}']) > 0
    assert hello["type"] == "hello"
    assert status == 0
    assert "Traceback" not in output


HOST = b"Host: localhost\r\n"
UNFINISHED = {
    "silent": (b"", b""),
    "half a head": (b"GET /health HTTP/1.1\r\n" + HOST, b""),
    "slow headers": (b"GET /health HTTP/1.1\r\n" + HOST, b"X: y\r\n"),
    "idle after a response": (b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n", b""),
    "empty lines": (b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n", b"\r\n"),
    "half a handshake": (b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\n" + HOST, b""),
    "slow body": (
        b"POST /api/v1/backfill HTTP/1.1\r\nContent-Length: 100000\r\n" + HOST + b"\r\n",
        b" ",
    ),
    "slow chunks": (
        b"POST /internal/devices/bulk_upsert HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
        + HOST
        + b"\r\n",
        b"1\r\n \r\n",
    ),
    "a body after the response": (
        b"POST /health HTTP/1.1\r\nContent-Length: 100000\r\n" + HOST + b"\r\n",
        b" " * 50,
    ),
}


async def test_silent_and_slow_clients_are_disconnected(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Whatever they leave unfinished, without an error of the service."""
    async with service(tmp_path, environment) as running:
        late = {}
        async with asyncio.TaskGroup() as clients:
            for name, (sent, drip) in UNFINISHED.items():
                stream = await _opened(running, sent)
                late[name] = clients.create_task(_is_closed(stream, drip=drip))
        health = await running.get("/health")
        status = await running.stop()

    assert [name for name, task in late.items() if not task.result()] == []
    assert health["status"] == "healthy"
    assert status == 0
    assert "Traceback" not in running.output.read_text()


@pytest.mark.parametrize("descriptors", [1_024, 256])
async def test_silent_websocket_clients_do_not_lock_out_holders_of_the_key(
    environment: dict[str, str], tmp_path: Path, descriptors: int
) -> None:
    """Whether they send the key in a header or as a message."""
    limited = f'ulimit -n {descriptors}; exec "$0" "$@"'
    command = ("-c", limited, sys.executable, "-m", "app", "run")
    async with (
        service(
            tmp_path, environment | {"API_KEY": KEY}, python="/bin/bash", command=command
        ) as running,
        AsyncExitStack() as on,
    ):
        live = f"{running.url.replace('http', 'ws')}/ws"
        async with asyncio.timeout(30):
            for _ in range(110):
                await (await on.enter_async_context(connect(live))).recv()
            by_header = await on.enter_async_context(
                connect(live, additional_headers={"X-API-Key": KEY})
            )
            by_message = await on.enter_async_context(connect(live))
            await by_message.recv()
            await by_message.send(json.dumps({"type": "auth", "api_key": KEY}))
            messages = [json.loads(await by_header.recv()), json.loads(await by_message.recv())]

    assert [message["type"] for message in messages] == ["hello", "hello"]


async def test_sigterm_does_not_wait_for_silent_clients(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Idle, half a head, half a body, an unread response: status 0 within the timeout."""
    half_a_body = (
        b"POST /internal/devices/bulk_upsert HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Length: 100000\r\n\r\n["
    )
    unread = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50
    async with (
        service(tmp_path, environment) as running,
        _many(running, 50),
        _many(running, 50, b"GET / HTTP/1.1\r\n"),
        _many(running, 50, half_a_body),
        _many(running, 20, unread),
        asyncio.timeout(20),
    ):
        await running.get("/health")
        status = await running.stop()

    assert status == 0
    assert "Traceback" not in running.output.read_text()
