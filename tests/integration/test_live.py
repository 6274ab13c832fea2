"""`/ws`, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import cast

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app import __version__
from app.api.access import AccessRules
from app.api.throttle import AuthThrottle, Challenges
from app.fanout.hub import Hub
from tests.fakes.service import components, received, serving
from tests.fakes.snapshots import change

KEY = "correct-horse-battery-staple"


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def _state(message: object) -> str:
    assert isinstance(message, dict)
    return cast("str", message["event"]["state"])


async def test_a_websocket_client_gets_hello_and_then_every_event() -> None:
    """One frame per event, in order."""
    hub = Hub()
    async with serving(components(hub=hub)) as service, service.watching() as socket:
        hello = await received(socket)
        hub.publish([change(state="1"), change(state="2")])
        messages = [await received(socket) for _ in range(2)]

    assert {
        "type": "hello",
        "service": "websocket-ingestion",
        "version": __version__,
        "coalesce": False,
    } == hello
    assert [message["type"] for message in messages] == ["event", "event"]
    assert [_state(message) for message in messages] == ["1", "2"]


async def test_coalesced_events_come_in_lists_and_few_frames() -> None:
    """A frame is one message or a list; there are at most 25 frames a second."""
    hub = Hub()
    async with (
        serving(components(hub=hub)) as service,
        service.watching("?coalesce=1") as socket,
    ):
        assert (await received(socket))["coalesce"] is True
        hub.publish([change(state="0")])
        frames = [await received(socket)]
        began = time.monotonic()
        states: list[str] = []
        for number in range(1, 400):
            hub.publish([change(state=str(number))])
            if number % 20 == 0:
                await asyncio.sleep(0.005)
        count = 0
        async with asyncio.timeout(5):
            while len(states) < 399:
                frame = json.loads(await socket.recv())
                count += 1
                states += [_state(message) for message in frame]
        took = time.monotonic() - began

    assert [_state(frame) for frame in frames] == ["0"]
    assert [str(number) for number in range(1, 400)] == states
    assert count <= took * 25 + 1


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("?entity_id=*.hall&entity_id=sensor.attic", ["light.hall", "sensor.hall", "sensor.attic"]),
        ("?domain=light", ["light.hall"]),
        ("?area_id=hall&device_class=temp*", ["sensor.hall"]),
    ],
)
async def test_a_websocket_client_selects_events_by_globs(query: str, wanted: list[str]) -> None:
    """Query parameters may be repeated."""
    hub = Hub()
    async with serving(components(hub=hub)) as service, service.watching(query) as socket:
        await received(socket)
        hub.publish(
            [
                change("light.hall", area_id="hall", device_class=None),
                change("sensor.hall", area_id="hall"),
                change("sensor.attic"),
                change("person.anna", device_class=None),
            ]
        )
        messages = [await received(socket) for _ in wanted]
        await socket.send('{"type":"ping"}')
        last = await received(socket)

    assert wanted == [cast("dict[str, str]", message["event"])["entity_id"] for message in messages]
    assert last == {"type": "pong"}


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ('{"type":"ping"}', {"type": "pong"}),
        ('{"type":"ping","id":7,"more":[1]}', {"type": "pong", "id": 7}),
        (b'{"type":"ping"}', {"type": "pong"}),
        ("{", {"type": "error", "message": "Only ping is understood here"}),
        (b"\xff", {"type": "error", "message": "Only ping is understood here"}),
        ('{"type":"subscribe"}', {"type": "error", "message": "Only ping is understood here"}),
        (
            '{"type":"ping","x":' + "[" * 20_000 + "]" * 20_000 + "}",
            {"type": "error", "message": "Only ping is understood here"},
        ),
    ],
)
async def test_messages_of_a_websocket_client_are_answered(
    sent: str | bytes, answer: object
) -> None:
    """A ping with a pong, anything else with what is understood; nothing ends the connection."""
    async with serving(components()) as service, service.watching() as socket:
        await received(socket)
        await socket.send(sent)
        first = await received(socket)
        await socket.send('{"type":"ping"}')
        second = await received(socket)

    assert [answer, {"type": "pong"}] == [first, second]


async def test_a_slow_websocket_client_loses_its_oldest_events_and_delays_no_other() -> None:
    """Publishing stays fast, others get everything, and the slow one gets the number it missed."""
    hub = Hub(max_events=50)
    big = b'{"x":"' + b"y" * 20_000 + b'"}'
    async with (
        serving(components(hub=hub)) as service,
        service.watching("?coalesce=1", max_size=None, max_queue=1) as slow,
        service.watching(max_size=None) as quick,
    ):
        await received(quick)
        slow.transport.pause_reading()  # a client that has stopped to read
        seen: list[str] = []
        for number in range(1_500):
            hub.publish([change(state=str(number), attributes=big)])
            message = await received(quick)
            seen.append(_state(message))
        slow.transport.resume_reading()
        messages: list[dict[str, object]] = []
        async with asyncio.timeout(10):
            while not messages or "1499" not in map(_state, _events(messages[-1:])):
                frame = json.loads(await slow.recv())
                messages += frame if isinstance(frame, list) else [frame]

    states = [int(_state(message)) for message in _events(messages)]
    lost = sum(
        cast("int", message["count"]) for message in messages if message["type"] == "dropped"
    )
    assert [str(number) for number in range(1_500)] == seen
    assert sorted(states) == states
    assert lost > 0
    assert len(states) + lost == 1_500


def _events(messages: list[dict[str, object]]) -> list[dict[str, object]]:
    return [message for message in messages if message["type"] == "event"]


async def test_a_websocket_client_that_closes_is_forgotten() -> None:
    """Its place in the hub is free again."""
    hub = Hub()
    async with serving(components(hub=hub)) as service:
        async with service.watching() as socket:
            await received(socket)
            inside = hub.subscribers
        await _until(lambda: hub.subscribers == 0)

    assert inside == 1


async def test_a_websocket_client_that_resets_is_forgotten() -> None:
    """Also when it goes without a word while events are on their way to it."""
    hub = Hub()
    async with serving(components(hub=hub)) as service:
        socket = await service.watching()
        await received(socket)
        socket.transport.abort()
        while hub.subscribers:
            hub.publish([change()])
            await asyncio.sleep(0)

    assert hub.subscribers == 0


async def test_a_stopping_server_does_not_wait_for_websocket_clients() -> None:
    """With clients that only listen, coalescing or not, the end comes in less than 3 s."""
    parts = components()
    async with contextlib.AsyncExitStack() as stack:
        service = await stack.enter_async_context(serving(parts))
        sockets: list[ClientConnection] = [
            await stack.enter_async_context(service.watching(query))
            for query in ("", "?coalesce=1", "?domain=light")
        ]
        for socket in sockets:
            await received(socket)
        parts.hub.publish([change()])

        began = time.monotonic()
        await service.stop()
        took = time.monotonic() - began

    assert took < 3
    assert parts.hub.subscribers == 0


async def test_websocket_clients_beyond_the_limit_are_refused() -> None:
    """The next one is refused with a problem before its WebSocket opens."""
    hub = Hub(max_subscribers=1)
    async with serving(components(hub=hub)) as service, service.watching() as socket:
        await received(socket)
        with pytest.raises(InvalidStatus) as refused:
            await service.watching()

    assert refused.value.response.status_code == 503
    assert json.loads(refused.value.response.body)["code"] == "too_many_clients"


async def test_a_websocket_client_may_send_the_key_in_a_header() -> None:
    """Then hello comes first, as without a key."""
    access = AccessRules(api_key=KEY)
    async with (
        serving(components(access=access)) as service,
        service.watching(headers={"Authorization": f"Bearer {KEY}"}) as socket,
    ):
        assert (await received(socket))["type"] == "hello"


async def test_a_websocket_client_may_send_the_key_in_its_first_message() -> None:
    """A browser cannot set headers; it is asked, as Home Assistant asks."""
    hub = Hub()
    access = AccessRules(api_key=KEY)
    async with (
        serving(components(hub=hub, access=access)) as service,
        service.watching() as socket,
    ):
        asked = await received(socket)
        hub.publish([change()])
        before = hub.subscribers
        await socket.send(json.dumps({"type": "auth", "api_key": KEY}))
        hello = await received(socket)

    assert asked == {"type": "auth_required"}
    assert before == 0
    assert hello["type"] == "hello"


@pytest.mark.parametrize(
    "sent",
    [
        '{"type":"auth","api_key":"wrong"}',
        '{"type":"auth","api_key":"\\ud800"}',
        '{"type":"auth"}',
        '{"type":"ping"}',
        "{",
    ],
)
async def test_a_wrong_key_ends_the_websocket(sent: str) -> None:
    """The client gets `auth_invalid` and never an event."""
    access = AccessRules(api_key=KEY)
    async with serving(components(access=access)) as service, service.watching() as socket:
        await received(socket)
        await socket.send(sent)
        replies = await received(socket)
        with pytest.raises(ConnectionClosed) as closed:
            await received(socket)

    assert replies == {"type": "auth_invalid", "message": "The key is not the API_KEY"}
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


async def test_many_wrong_websocket_keys_must_wait_and_the_right_one_still_works() -> None:
    """The first message counts like a header; who shares the address is not locked out."""
    attempts = AuthThrottle(most=1, clock=lambda: 0.0)
    parts = components(access=AccessRules(api_key=KEY), key_attempts=attempts)
    replies = []
    async with serving(parts) as service:
        for key in ("wrong", "wrong", KEY):
            async with service.watching() as socket:
                await received(socket)
                await socket.send(json.dumps({"type": "auth", "api_key": key}))
                replies.append(await received(socket))

    assert replies[0] == {"type": "auth_invalid", "message": "The key is not the API_KEY"}
    assert replies[1] == {
        "type": "auth_invalid",
        "message": "Too many wrong keys came from this address; try again in 60 s.",
    }
    assert replies[2]["type"] == "hello"


async def test_silent_clients_do_not_lock_out_holders_of_the_key() -> None:
    """A new client takes the place of the one that has been silent for longest."""
    challenges = Challenges(total=2)
    parts = components(access=AccessRules(api_key=KEY), challenges=challenges)
    async with serving(parts) as service, AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(service.watching()) for _ in range(2)]
        for socket in silent:
            await received(socket)
        by_header = await stack.enter_async_context(service.watching(headers={"X-API-Key": KEY}))
        by_message = await stack.enter_async_context(service.watching())
        await received(by_message)
        await by_message.send(json.dumps({"type": "auth", "api_key": KEY}))
        replies = [await received(by_header), await received(by_message), await received(silent[0])]

    assert [message["type"] for message in replies] == ["hello", "hello", "auth_invalid"]
    assert challenges.waiting == 0


async def test_a_websocket_client_must_send_its_key_in_time() -> None:
    """A silent client is disconnected."""
    access = AccessRules(api_key=KEY, auth_timeout_s=0.01)
    async with serving(components(access=access)) as service, service.watching() as socket:
        replies = [await received(socket), await received(socket)]
        with pytest.raises(ConnectionClosed):
            await received(socket)

    assert replies[1] == {"type": "auth_invalid", "message": "No key came in time"}


async def test_a_websocket_client_may_close_instead_of_sending_its_key() -> None:
    """That is no mistake of anybody's."""
    parts = components(access=AccessRules(api_key=KEY))
    async with serving(parts) as service, service.watching() as socket:
        await received(socket)

    assert parts.hub.subscribers == 0


async def test_the_last_websocket_place_may_be_taken_during_authentication() -> None:
    """It is closed with "try again later"."""
    access = AccessRules(api_key=KEY)
    parts = components(access=access, hub=Hub(max_subscribers=1))
    async with serving(parts) as service, service.watching() as late:
        await received(late)
        async with service.watching(headers={"X-API-Key": KEY}) as first:
            await received(first)
            await late.send(json.dumps({"type": "auth", "api_key": KEY}))
            with pytest.raises(ConnectionClosed) as closed:
                await received(late)

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1013


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"X-API-Key": "wrong"}, 401, "api_key_wrong"),
        ({"Origin": "https://evil.example"}, 403, "foreign_origin"),
    ],
)
async def test_a_refused_handshake_carries_a_problem(
    headers: dict[str, str],
    status: int,
    code: str,
) -> None:
    """A client learns why, as with HTTP."""
    parts = components(access=AccessRules(api_key=KEY))
    async with serving(parts) as service:
        with pytest.raises(InvalidStatus) as refused:
            await service.watching(headers=headers)

    assert status == refused.value.response.status_code
    assert code == json.loads(refused.value.response.body)["code"]
    assert refused.value.response.headers["content-type"] == "application/problem+json"


async def test_plain_http_on_the_websocket_route_gets_426() -> None:
    """GET /ws is answered with 426 and names the protocol."""
    async with serving(components()) as service, httpx.AsyncClient() as client:
        response = await client.get(f"{service.url}/ws")

    assert (response.status_code, response.headers["upgrade"]) == (426, "websocket")
    assert response.json()["code"] == "upgrade_required"
