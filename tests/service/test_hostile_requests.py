"""Malformed and hostile requests to every route, over a plain socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import psutil
import pytest

from tests.service.process import Service, service

DEEP = 100_000
HEAD = b"Host: localhost\r\nContent-Type: application/json\r\n"
BODIES: dict[str, bytes] = {
    "empty": b"",
    "deep arrays": b"[" * DEEP,
    "deep arrays, closed": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep in a row": b'[{"id":"a","labels":' + b"[" * DEEP + b"]" * DEEP + b"}]",
    "half a surrogate pair": b'{"since":"\\ud800","entity_ids":["\\udfff"],"\\ud800":1}',
    "half a surrogate pair in a row": b'[{"id":"\\ud800","name":"\\udfff"}]',
    "not UTF-8": b'{"since":"\xff\xfe"}',
    "not UTF-8 in a row": b'[{"id":"\xff","name":"\xc3\x28"}]',
    "UTF-16": '[{"id":"a"}]'.encode("utf-16"),
    "a huge integer": b'{"since":' + b"9" * 10_000 + b"}",
    "a huge integer in a row": b'[{"entity_id":"a.b","supported_features":' + b"9" * 10_000 + b"}]",
    "large integers in a row": b'[{"id":"a","created_at":1e300,"name":18446744073709551616}]',
    "a huge exponent": b'{"since":1e999999,"until":-1e308}',
    "NaN": b'{"since":NaN,"until":-Infinity}',
    "NaN in a row": b'[{"id":"a","created_at":NaN}]',
    "NUL": b'{"since":"\\u0000","entity_ids":["\\u0000"]}',
    "NUL in a row": b'[{"id":"\\u0000","name":"\\u0000"}]',
    "years": b'{"since":"0001-01-01T00:00:00+23:59","until":"9999-12-31T23:59:59-23:59"}',
    "many errors": b'{"since":0,"entity_ids":[' + b"1," * 200_000 + b"1]}",
    "truncated": b'{"since":"2026-11-01T00',
    "truncated rows": b'[{"id":"a"},{"id":',
    "not rows": b"[1,null,[],{}]",
    "a number": b"1",
    "multipart without an end": b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n',
}
CHUNK = b"186a0\r\n" + b" " * 100_000 + b"\r\n"
BROKEN: dict[str, bytes] = {
    "too few bytes": b"Content-Length: 1000\r\n\r\n[",
    "too many bytes": b"Content-Length: 2\r\n\r\n[]and some more\r\n\r\n",
    "no length": b"Content-Length: x\r\n\r\n[]",
    "a negative length": b"Content-Length: -1\r\n\r\n[]",
    "a length of 30 digits": b"Content-Length: " + b"9" * 30 + b"\r\n\r\n[]",
    "two lengths": b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n[]",
    "a chunk without a size": b"Transfer-Encoding: chunked\r\n\r\nz\r\n[]\r\n",
    "a chunk that does not end": b"Transfer-Encoding: chunked\r\n\r\n2\r\n[]xx\r\n",
    "chunks that do not end": b"Transfer-Encoding: chunked\r\n\r\n1\r\n[\r\n",
    "an unknown encoding": b"Transfer-Encoding: gzip\r\n\r\n[]",
    "gzip": b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b",
    "a bad chunk after the first": b"Transfer-Encoding: chunked\r\n\r\n1\r\n[\r\n-1\r\n\r\n",
    "more than is read": b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK * 400,
}
HEADS: dict[str, bytes] = {
    "nonsense": b"\x00\xff\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 300,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9": b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a long target": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a long query": b"GET /api/devices?" + b"a&" * 100_000 + b" HTTP/1.1\r\nHost: l\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 2_000 + b"\r\n",
    "many headers of a handshake": b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    "a handshake with POST": b"POST /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nContent-Length: 2\r\n\r\n{}",
    "a handshake of HTTP/1.0": b"GET /ws HTTP/1.0\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\n\r\n",
    "h2c": b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    "CONNECT": b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "NUL in a file": b"GET /static/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a long file": b"GET /static/" + b"a" * 5_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "out of the folder": b"GET /static/..%2f..%2fmain.py HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "not UTF-8": b"GET /api/devices/%ff%fe?limit=%ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "pipelined after an error": b"POST /health HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Length: 5\r\n\r\nGET / HTTP/1.1\r\n\r\n",
}
VALUES = (
    "",
    "\x00",
    "\ud800",
    "9" * 5_000,
    "-" + "9" * 30,
    "NaN",
    "1e999",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59-23:59",
    "[" * 5_000,
    "*a" * 2_000,
    "[!",
    "'; DROP TABLE devices; --",
)


_AT_ONCE = 8
"""Requests in flight: most of the time is spent waiting for clients to be given up."""


async def _answers(
    running: Service, requests: Iterable[tuple[str, bytes]]
) -> list[tuple[str, bytes]]:
    """Send each request on its own connection; return its name and what it received."""
    waiting = iter(requests)
    received: list[tuple[str, bytes]] = []

    async def send() -> None:
        for name, request in waiting:
            received.append((name, await _answer(running, request)))

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(send())
    return received


async def _answer(running: Service, request: bytes) -> bytes:
    """Send a request; return the bytes received until the service closes or is silent for 2 s."""
    url = httpx.URL(running.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    received = b""
    writer.write(request)
    with contextlib.suppress(ConnectionError, TimeoutError):
        while True:
            async with asyncio.timeout(2):
                piece = await reader.read(65_536)
            received += piece
            if not piece:
                break
    writer.transport.abort()
    return received


def _status(received: bytes) -> int | None:
    return int(received[9:12]) if received else None


async def _operations(running: Service) -> list[tuple[str, str, list[str]]]:
    """Return the method, path and parameter names of every route."""
    document = await running.get("/openapi.json")
    return [
        (method.upper(), path, [each["name"] for each in operation.get("parameters", [])])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]


def _requests(operations: list[tuple[str, str, list[str]]]) -> Iterator[tuple[str, bytes]]:
    close = b"Connection: close\r\n"
    for method, path, names in operations:
        target = path.replace("{", "").replace("}", "")
        start = f"{method} {target} HTTP/1.1\r\n".encode() + HEAD
        for name, body in BODIES.items():
            length = f"Content-Length: {len(body)}\r\n\r\n".encode()
            yield f"{method} {path}: {name}", start + close + length + body
        for name, rest in BROKEN.items():
            yield f"{method} {path}: {name}", start + close + rest
        for value in VALUES:
            text = quote(value, errors="surrogatepass")
            query = "&".join(f"{each}={text}" for each in names if f"{{{each}}}" not in path)
            target = path.replace("{entity_id}", text).replace("{device_id}", text)
            line = f"{method} {target}?{query} HTTP/1.1\r\n".encode()
            yield f"{method} {path}: {value[:20]!r}", line + HEAD + close + b"\r\n"


@pytest.fixture
async def running(environment: dict[str, str], tmp_path: Path) -> AsyncIterator[Service]:
    """Start the service; assert afterwards that it is healthy and logged no traceback."""
    async with service(tmp_path, environment) as started:
        yield started
        health = await started.get("/health")
        status = await started.stop()
    output = started.output.read_text()
    assert (health["status"], status) == ("healthy", 0)
    assert "Traceback" not in output, output
    assert "Fatal error" not in output


@pytest.mark.long
async def test_no_request_body_or_parameter_causes_a_server_error(running: Service) -> None:
    """Every status is below 500; a truncated request may get no response."""
    answers = await _answers(running, _requests(await _operations(running)))

    assert len(answers) > 1_000
    wrong = {name: answer[:300] for name, answer in answers if (_status(answer) or 400) >= 500}
    assert wrong == {}


async def test_no_request_head_causes_a_server_error(running: Service) -> None:
    """A refusal is a problem document, even when uvicorn itself refuses the request."""
    wrong = {}
    for name, received in await _answers(running, HEADS.items()):
        status = _status(received) or 400
        is_problem = not received or status < 400 or b"application/problem+json" in received
        if (status >= 500 and status != 501) or not is_problem:
            wrong[name] = received[:300]

    assert wrong == {}


async def test_an_upload_costs_no_more_memory_than_its_size(running: Service) -> None:
    """27 MB of empty rows are refused without creating an object for each."""
    process = psutil.Process(running.process.pid)
    before = process.memory_info().rss
    body = b"[" + b"{}," * 9_000_000 + b"{}]"
    async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
        answers = await asyncio.gather(
            *(client.post("/internal/devices/bulk_upsert", content=body) for _ in range(2))
        )
    grown = process.memory_info().rss - before

    assert {answer.status_code for answer in answers} == {413}
    assert answers[0].json()["code"] == "body_too_large"
    assert grown < 200_000_000


async def test_concurrent_uploads_are_bounded(running: Service) -> None:
    """Beyond the bound they are refused with 503 and Retry-After; then there is room again."""
    body = b"[" + b" " * 30_000_000 + b"]"
    async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
        together = await asyncio.gather(
            *(client.post("/internal/devices/bulk_upsert", content=body) for _ in range(6))
        )
        after = await client.post("/internal/devices/bulk_upsert", content=body)

    statuses = [answer.status_code for answer in together]
    assert set(statuses) == {200, 503}
    refused = together[statuses.index(503)]
    assert (refused.json()["code"], refused.headers["retry-after"]) == ("too_many_uploads", "5")
    assert after.status_code == 200


async def test_a_large_upload_does_not_block_other_requests(running: Service) -> None:
    """Its rows are split in a thread, so a probe is answered meanwhile."""
    rows = [{"id": f"{number}", "name": "x" * 200, "labels": ["a"]} for number in range(90_000)]
    body = json.dumps(rows).encode()
    async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
        upload = asyncio.create_task(client.post("/internal/devices/bulk_upsert", content=body))
        waits_s = []
        while not upload.done():
            began_s = asyncio.get_running_loop().time()
            await client.get("/health/live")
            waits_s.append(asyncio.get_running_loop().time() - began_s)
        answer = await upload

    assert (answer.status_code, answer.json()["upserted"]) == (200, 90_000)
    assert max(waits_s) < 2
