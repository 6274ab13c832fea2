"""Scripted responses of an HTTP server: valid, invalid or missing."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from aiohttp import web

Act: TypeAlias = Literal["answer", "reset", "hang", "early", "half", "cut", "garbled", "slow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One scripted response to a write; refused lines are not stored."""

    status: int = 204
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    keeps: bool = False
    """Whether the lines are stored anyway, as by a server that fails afterwards."""
    act: Act = "answer"
    """`reset` resets the connection, `hang` never responds, `early` responds before reading,
    `half` ends within the headers, `cut` within the body, `garbled` has an invalid header, `slow`
    takes `slow_s`."""
    slow_s: float = 0.5


def error(status: int, message: str, *, code: str = "invalid", **headers: str) -> Reply:
    """Return a response with InfluxDB 2's error document; `Retry_After="3"` sets a header."""
    return Reply(
        status=status,
        body=json.dumps({"code": code, "message": message}),
        headers={
            "Content-Type": "application/json; charset=utf-8",
            "X-Platform-Error-Code": code,
            **{name.replace("_", "-"): value for name, value in headers.items()},
        },
    )


OK = Reply()
RESET = Reply(act="reset")
HANG = Reply(act="hang")
SLOW = Reply(act="slow")
HALF_AN_ANSWER = Reply(act="half")
BODY_CUT_SHORT = Reply(status=400, act="cut")
UNAUTHORIZED = error(401, "unauthorized access", code="unauthorized")
HTML_500 = Reply(
    status=500,
    body="<html><head><title>500 Internal Server Error</title></head>\n<body>Oh no</body></html>",
    headers={"Content-Type": "text/html"},
)

_BEGINNINGS = {
    "half": b"HTTP/1.1 204 No Content\r\nX-Influxdb-Ver",
    "cut": b'HTTP/1.1 400 Bad Request\r\nContent-Length: 500\r\n\r\n{"code":"inv',
    "garbled": b"HTTP/1.1 400 Bad Request\r\nX-Influxdb-Error: unable to parse '\x1f\x08'\r\n\r\n",
}


async def play(request: web.Request, reply: Reply, *, ended: asyncio.Event) -> web.Response:
    """Respond as scripted; `ended` ends every wait."""
    transport = request.transport
    match reply.act:
        case "reset":
            if transport is not None:
                transport.abort()
        case "half" | "cut" | "garbled":
            if transport is not None:
                transport.write(_BEGINNINGS[reply.act])
                transport.close()
        case "hang":
            await ended.wait()
        case "slow":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), reply.slow_s)
        case _:
            pass
    response = web.Response(
        status=reply.status, body=reply.body.encode() or None, headers=reply.headers
    )
    if reply.act == "early":
        response.force_close()
    return response
