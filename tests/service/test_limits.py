"""Size limits of requests and messages, on the service as users start it."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.service.process import Service, service

MAX_BYTES = 65_536
ENDLESS_BYTES = 64_000_000


async def test_an_oversized_event_or_request_is_refused_without_side_effects(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Messages on /ws, bodies and headers are bounded; another client is not affected."""
    async with service(tmp_path, environment) as running:
        live = f"{running.url.replace('http', 'ws')}/ws"
        async with connect(live) as bystander, connect(live) as greedy, asyncio.timeout(20):
            await bystander.recv()
            await greedy.recv()
            await greedy.send("x" * MAX_BYTES)
            within = await greedy.recv()
            await greedy.send("x" * (MAX_BYTES + 1))
            with pytest.raises(ConnectionClosed) as closed:
                await greedy.recv()
            status = await _status_of_a_large_body(running)
            sent = await _headers_without_end(running)
            await bystander.send('{"type":"ping"}')
            pong = await bystander.recv()
        health = await running.get("/health")

    assert "Only ping is understood here" in str(within)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009
    assert status == 413
    assert sent < ENDLESS_BYTES
    assert pong == '{"type":"pong"}'
    assert health["status"] == "healthy"


async def _status_of_a_large_body(running: Service) -> int:
    async with httpx.AsyncClient(base_url=running.url, timeout=10) as client:
        answer = await client.post("/api/v1/dead-letters/retry", content=b"x" * 1_000_001)
    return answer.status_code


async def _headers_without_end(running: Service) -> int:
    """Send an endless header until the service disconnects; return the bytes sent."""
    url = httpx.URL(running.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    sent = 0
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
    with contextlib.suppress(ConnectionError):
        while sent < ENDLESS_BYTES and not reader.at_eof():
            writer.write(b"x" * MAX_BYTES)
            await writer.drain()
            sent += MAX_BYTES
    writer.transport.abort()
    return sent
