"""Every refusal and error is a problem document without a secret."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping

import httpx
import pytest
from fastapi import Request

from app.api.access import AccessMiddleware, AccessRules
from app.api.application import build_api
from app.api.throttle import AuthThrottle
from app.runtime.errors import StorageDamaged
from tests.fakes.service import api_client, client_of, components, serving
from tests.fakes.snapshots import HEALTHY

KEY = "correct-horse-battery-staple"
LOCKED = AccessRules(api_key=KEY, cors_origins=("https://panel.example",))


def _is_problem(response: httpx.Response) -> bool:
    body = response.json()
    return (
        response.headers["content-type"] == "application/problem+json"
        and {"type", "title", "status", "detail", "code"} <= set(body)
        and body["status"] == response.status_code
    )


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/static/nothing.js", 404, "not_found"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("POST", "/static/app.js", 405, "method_not_allowed"),
        ("GET", "/api/v1/events?limit=0", 422, "invalid_request"),
        ("GET", "/api/v1/events?start=yesterday", 422, "invalid_request"),
        ("GET", "/api/v1/events?start=2026-11-23T00:00:00", 422, "invalid_request"),
        ("GET", "/api/v1/events?entity=sensor.a", 422, "invalid_request"),
        ("GET", "/api/v1/gaps?limit=1", 422, "invalid_request"),
        ("GET", "/api/v1/diagnostics?_=1", 422, "invalid_request"),
        ("POST", "/api/v1/dead-letters/retry?sinks=influxdb", 422, "invalid_request"),
        ("GET", "/api/v1/events", 409, "embedded_store_off"),
        ("GET", "/api/v1/events/sensor.kitchen", 409, "embedded_store_off"),
        ("GET", "/ws", 426, "upgrade_required"),
        ("OPTIONS", "/health", 405, "method_not_allowed"),
    ],
)
async def test_errors_are_problem_documents(method: str, path: str, status: int, code: str) -> None:
    """Each has its status and a stable code for programs."""
    async with api_client() as client:
        response = await client.request(method, path)

    assert (status, code) == (response.status_code, response.json()["code"])
    assert _is_problem(response)


async def test_history_without_an_embedded_store_is_refused_with_advice() -> None:
    """The problem document names the setting that enables it."""
    async with api_client() as client:
        response = await client.get("/api/v1/events")

    assert "EMBEDDED_STORE" in response.json()["detail"]


async def test_an_unknown_query_parameter_is_refused_by_name() -> None:
    """A misspelt filter that is ignored would return more than was asked for."""
    async with api_client() as client:
        response = await client.get("/api/v1/events?entity=sensor.a&domian=light&limit=1")

    assert response.json()["errors"] == [
        {"location": "query.domian", "message": "Unknown parameter"},
        {"location": "query.entity", "message": "Unknown parameter"},
    ]


async def test_the_predecessors_routes_ignore_unknown_parameters() -> None:
    """Its clients may send some."""
    async with api_client() as client:
        areas = await client.get("/api/areas?include=all")
        health = await client.get("/health?_=1")

    assert (areas.status_code, health.status_code) == (200, 200)


async def test_the_error_of_an_invalid_value_has_its_place_and_not_the_value() -> None:
    """`errors` has the location; the value itself is not repeated."""
    async with api_client() as client:
        response = await client.get("/api/v1/events?limit=hunter2&start=2026-11-23")

    errors = response.json()["errors"]
    assert [error["location"] for error in errors] == ["query.start", "query.limit"]
    assert "hunter2" not in response.text


async def test_an_internal_error_reveals_no_details() -> None:
    """The answer is a problem with the security headers, without the exception's words."""

    def broken() -> Mapping[str, object]:
        raise RuntimeError(KEY)

    async with api_client(components(diagnostics=broken)) as client:
        response = await client.get("/api/v1/diagnostics")

    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert _is_problem(response)
    assert KEY not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_a_local_database_that_fails_is_503() -> None:
    """Its file may be damaged; the request is valid, and the log has the details."""

    def damaged() -> Mapping[str, object]:
        raise StorageDamaged("/data/events.db is not a database")

    async with api_client(components(diagnostics=damaged)) as client:
        response = await client.get("/api/v1/diagnostics")

    assert (response.status_code, response.json()["code"]) == (503, "storage_failed")
    assert "/data" not in response.text


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "api_key_missing"),
        ({"X-API-Key": "wrong"}, 401, "api_key_wrong"),
        ({"Authorization": f"Bearer {KEY}"}, 200, None),
        ({"X-API-Key": KEY}, 200, None),
    ],
)
async def test_routes_with_data_require_the_key(
    headers: dict[str, str], status: int, code: str | None
) -> None:
    """The problem document explains how to authenticate."""
    async with api_client(components(access=LOCKED), peer="192.168.1.7") as client:
        response = await client.get("/api/v1/event-rate", headers=headers)

    assert (status, code) == (response.status_code, response.json().get("code"))
    assert ("www-authenticate" in response.headers) == (status == 401)


async def test_many_wrong_keys_get_429_and_the_right_one_still_works() -> None:
    """One client must not lock out the others behind its address."""
    parts = components(access=LOCKED, key_attempts=AuthThrottle(most=3, clock=lambda: 0.0))
    app = build_api(parts)
    wrong, right = {"X-API-Key": "wrong"}, {"X-API-Key": KEY}
    async with client_of(app, peer="192.168.1.7") as guesser, client_of(app) as other:
        guesses = [await guesser.get("/api/v1/event-rate", headers=wrong) for _ in range(4)]
        late = await guesser.get("/api/v1/event-rate", headers=right)
        both = await guesser.get(
            "/api/v1/event-rate", headers={**wrong, "Authorization": f"Bearer {KEY}"}
        )
        without = await guesser.get("/api/v1/event-rate")
        open_ = await guesser.get("/health", headers=wrong)
        others = await other.get("/api/v1/event-rate", headers=right)

    assert [guess.status_code for guess in guesses] == [401, 401, 401, 429]
    assert guesses[3].json()["code"] == "too_many_wrong_keys"
    assert _is_problem(guesses[3])
    assert guesses[3].headers["retry-after"] == "20"
    assert (late.status_code, both.status_code) == (200, 200)
    assert (without.status_code, open_.status_code, others.status_code) == (401, 200, 200)


async def test_without_a_key_other_machines_are_refused() -> None:
    """The problem names API_KEY."""
    async with api_client(peer="192.168.1.7") as client:
        response = await client.get("/")

    assert response.status_code == 403
    assert _is_problem(response)
    assert "API_KEY" in response.json()["detail"]


async def test_pages_of_allowed_origins_may_read() -> None:
    """CORS is for CORS_ORIGINS only, also on refusals, and a preflight needs no key."""
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "x-api-key"}
    async with api_client(components(access=LOCKED)) as client:
        ours = {"Origin": "https://panel.example"}
        preflight = await client.options("/api/v1/event-rate", headers=ours | asked)
        refused = await client.get("/api/v1/event-rate", headers=ours)
        foreign = await client.get(
            "/api/v1/event-rate", headers={"Origin": "https://evil.example", "X-API-Key": KEY}
        )

    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://panel.example"
    assert refused.headers["access-control-allow-origin"] == "https://panel.example"
    assert "access-control-allow-origin" not in foreign.headers
    assert "access-control-allow-credentials" not in preflight.headers


async def test_no_response_sets_a_cookie() -> None:
    """A key is sent each time, so no other page can use a person's session."""
    async with api_client() as client:
        answers = [await client.get(path) for path in ("/", "/docs", "/health", "/nowhere")]

    assert not any("set-cookie" in answer.headers for answer in answers)


async def test_a_large_body_is_refused_before_it_is_read() -> None:
    """Its length is looked at first."""
    async with api_client() as client:
        response = await client.post("/health", content=b"x" * 1_000_001)

    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert _is_problem(response)


@pytest.mark.parametrize("length", [b"abc", b"-1"])
async def test_an_invalid_content_length_is_left_to_the_server(length: bytes) -> None:
    """The guard does not fail on it."""
    async with api_client() as client:
        response = await client.get("/health", headers={b"content-length": length})

    assert response.status_code == 200


async def test_a_server_that_cannot_refuse_a_handshake_closes_it() -> None:
    """Without the extension for it there is no answer but a close."""
    sent: list[Mapping[str, object]] = []

    async def send(message: Mapping[str, object]) -> None:
        sent.append(message)

    async def unreached(*_: object) -> None:
        raise AssertionError

    scope: dict[str, object] = {"type": "websocket", "path": "/ws", "headers": [], "client": None}
    guarded = AccessMiddleware(unreached, rules=AccessRules(), attempts=AuthThrottle())
    await guarded(scope, unreached, send)  # type: ignore[arg-type]

    assert sent == [{"type": "websocket.close", "code": 1008, "reason": "api_key_needed"}]


async def test_the_guard_passes_lifespan_events_on() -> None:
    """A lifespan event of the server is not a request."""
    seen: list[str] = []

    async def app(scope: Mapping[str, str], *_: object) -> None:
        seen.append(scope["type"])

    guarded = AccessMiddleware(app, rules=AccessRules(), attempts=AuthThrottle())
    await guarded({"type": "lifespan"}, None, None)  # type: ignore[arg-type]

    assert seen == ["lifespan"]


async def test_problem_documents_are_sent_over_a_real_socket() -> None:
    """A HEAD has no body; what is no HTTP gets no answer of ours."""
    async with serving(components(snapshot=lambda: HEALTHY)) as service:
        async with httpx.AsyncClient() as client:
            head = await client.head(f"{service.url}/nowhere")
            chunked = await client.post(f"{service.url}/nowhere", content=_chunks(20))
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        async with asyncio.timeout(5):
            old = await reader.read()
        writer.close()
        await writer.wait_closed()

    assert (head.status_code, head.text) == (404, "")
    assert chunked.status_code == 404
    assert b"403 Forbidden" in old
    assert json.loads(old.partition(b"\r\n\r\n")[2])["code"] == "api_key_needed"


async def _chunks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * 100_000


async def test_a_chunked_body_ends_at_the_bound() -> None:
    """Counted while it is read, it is refused as any other that is too large."""
    app = build_api(components())

    @app.post("/api/v1/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    async with client_of(app) as client:
        small = await client.post("/api/v1/echo", content=_chunks(10))
        large = await client.post("/api/v1/echo", content=_chunks(11))

    assert (small.status_code, small.json()) == (200, 1_000_000)
    assert (large.status_code, large.json()["code"]) == (413, "body_too_large")
