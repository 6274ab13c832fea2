"""`/ws`: live events over WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query, WebSocket, WebSocketDisconnect

from app.api.access import MUST_AUTHENTICATE, AccessRules, refuse
from app.api.dependencies import Components, ComponentsDep
from app.api.messages import (
    Auth,
    AuthInvalid,
    AuthRequired,
    ClientMessage,
    Hello,
    MessageError,
    Ping,
    Pong,
    ServerMessage,
)
from app.api.models import ProblemDocument
from app.api.problems import Problem, ProblemRaised
from app.api.throttle import AuthThrottle
from app.fanout.hub import Selection, Subscriber

router = APIRouter(tags=["live"])

FRAME_INTERVAL_S = 0.04
"""At most 25 frames a second for a client with `coalesce`."""

_FRAME_EVENTS = 1_000
_TURN_EVENTS = 4
"""Frames sent before the event loop gets a turn.

Only then does it notice a lost connection; asyncio logs a warning at the fifth write after that.
"""

_MAX_PATTERNS = 100
_POLICY_VIOLATION = 1008
_TRY_AGAIN_LATER = 1013

_Globs = Annotated[tuple[str, ...], Query(max_length=_MAX_PATTERNS)]


async def _selection(
    *,
    entity_id: _Globs = (),
    domain: _Globs = (),
    area_id: _Globs = (),
    device_class: _Globs = (),
) -> Selection:
    return Selection(entity_id=entity_id, domain=domain, area_id=area_id, device_class=device_class)


SelectionDep = Annotated[Selection, Depends(_selection)]

_UPGRADE_REQUIRED = Problem(
    status=426,
    code="upgrade_required",
    detail="This is a WebSocket: connect with ws:// or wss://.",
    headers={"Upgrade": "websocket", "Connection": "Upgrade"},
)
_FULL = Problem(
    status=503,
    code="too_many_clients",
    detail="The maximum number of clients is connected; try again later.",
    headers={"Retry-After": "10"},
)


@router.get(
    "/ws",
    status_code=426,
    summary="Live events (WebSocket)",
    response_model=None,
    responses={
        426: {"model": ProblemDocument, "description": "Connect with a WebSocket instead"},
        503: {"model": ProblemDocument, "description": "Too many clients are connected"},
    },
    openapi_extra={
        "x-websocket-messages": {
            "server": {"$ref": "#/components/schemas/ServerMessage"},
            "client": {"$ref": "#/components/schemas/ClientMessage"},
        }
    },
)
async def upgrade(*, coalesce: bool = False, selection: SelectionDep) -> None:  # noqa: ARG001 - the WebSocket's
    """Describe the WebSocket at this address, because OpenAPI cannot.

    The first message is `hello`, or `auth_required` when a key is needed and none came in a
    header: reply with `{"type":"auth","api_key":…}` within ten seconds. Then each event is one
    frame `{"type":"event","event":{…}}`. With `coalesce=1` a frame is one message or a list
    of messages, at most 25 frames a second. `entity_id`, `domain`, `area_id` and
    `device_class` are globs that may be repeated: an event must match one of each kind given.
    `{"type":"ping"}` is answered with `pong`. A client that is too slow misses its oldest
    events and gets their number: `{"type":"dropped","count":n}`.

    The models of all messages are `ServerMessage` and `ClientMessage`.
    """
    raise ProblemRaised(_UPGRADE_REQUIRED)


@router.websocket("/ws")
async def live(
    socket: WebSocket,
    components: ComponentsDep,
    selection: SelectionDep,
    *,
    coalesce: bool = False,
) -> None:
    """Send every selected event until the client or the server disconnects."""
    hub = components.hub
    if hub.full:
        await refuse(_FULL, socket.scope, socket.receive, socket.send)
        return
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        if socket.scope.get(MUST_AUTHENTICATE) and not await _authenticated(socket, components):
            return
        if hub.full:  # others connected while this one authenticated
            await socket.close(_TRY_AGAIN_LATER, _FULL.code)
            return
        with hub.subscribed(selection) as subscriber:
            await _send(socket, Hello(coalesce=coalesce))
            await _converse(socket, subscriber, coalesce=coalesce)


async def _authenticated(socket: WebSocket, components: Components) -> bool:
    """Request the key, as Home Assistant does, and check it."""
    peer = socket.client.host if socket.client else None
    rules = components.access
    first = None
    with contextlib.suppress(TimeoutError):
        async with components.challenges.waiting_for_key(peer, timeout_s=rules.auth_timeout_s):
            await _send(socket, AuthRequired())
            first = await _received(socket)
    refusal = _refusal_of(first, rules, components.key_attempts, peer)
    if refusal is None:
        return True
    await _send(socket, AuthInvalid(refusal))
    await socket.close(_POLICY_VIOLATION, "auth_invalid")
    return False


def _refusal_of(
    first: bytes | str | None, rules: AccessRules, attempts: AuthThrottle, peer: str | None
) -> str | None:
    """Return why the first message does not authenticate the client; None when it does."""
    if first is None:
        return "No key came in time"
    message = _decoded(first)
    if isinstance(message, Auth) and rules.is_key(message.api_key):
        return None
    problem = attempts.refusal(peer)
    return problem.detail if problem else "The key is not the API_KEY"


async def _converse(socket: WebSocket, subscriber: Subscriber, *, coalesce: bool) -> None:
    send = _send_coalesced if coalesce else _send_one_by_one
    async with asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(send(socket, subscriber), name="live.send")
        # Reading is the only way to notice a disconnect without events; without it a stopping
        # server waits for this handler forever. Replies go through the sender: a client that
        # does not read must not block the detection.
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                subscriber.answer(_reply(await _received(socket)))
        sending.cancel()


async def _send_coalesced(socket: WebSocket, subscriber: Subscriber) -> None:
    clock = asyncio.get_running_loop().time
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await subscriber.filled()
            began_s = clock()
            messages = subscriber.drain(_FRAME_EVENTS)
            if len(messages) > 1:
                # Brackets at the ends, not around the frame: that would copy it once more.
                messages[0] = f"[{messages[0]}"
                messages[-1] = f"{messages[-1]}]"
            await socket.send_text(",".join(messages))
            await asyncio.sleep(max(0.0, began_s + FRAME_INTERVAL_S - clock()))


async def _send_one_by_one(socket: WebSocket, subscriber: Subscriber) -> None:
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await subscriber.filled()
            for message in subscriber.drain(_TURN_EVENTS):
                await socket.send_text(message)
            # Sending to a fast client never suspends: without this the reader would starve.
            await asyncio.sleep(0)


async def _received(socket: WebSocket) -> bytes | str:
    """Return the next message, of text or of bytes.

    Raises:
        WebSocketDisconnect: the client or the server disconnected.
    """
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"], message.get("reason"))
    text: str | None = message.get("text")
    received: bytes | str = message["bytes"] if text is None else text
    return received


def _reply(received: bytes | str) -> str:
    match _decoded(received):
        case Ping(id=number):
            return _encoded(Pong(number))
    return _encoded(MessageError("Only ping is understood here"))


_decoder: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)


def _decoded(received: bytes | str) -> ClientMessage | None:
    try:
        return _decoder.decode(received)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def _encoded(message: ServerMessage) -> str:
    return msgspec.json.encode(message).decode()


async def _send(socket: WebSocket, message: ServerMessage) -> None:
    await socket.send_text(_encoded(message))
