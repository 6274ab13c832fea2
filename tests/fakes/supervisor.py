"""Home Assistant's Supervisor as an app sees it: its proxy to Home Assistant, and ingress.

Behaves as `supervisor/api/proxy.py` and `supervisor/api/ingress.py` of the Supervisor of August
2026, with the headers that Home Assistant's own half of ingress adds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TypeAlias

import aiohttp
from aiohttp import web

from tests.fakes.home_assistant_rest import FakeRestApi
from tests.fakes.tasks import until_one_ends

INGRESS = "/api/hassio_ingress/abc123"
INGRESS_PEER = "127.0.0.9"
"""Where ingress connects from, as 172.30.32.2 in the network of real apps."""

_Either: TypeAlias = web.WebSocketResponse | aiohttp.ClientWebSocketResponse
_NOT_FORWARDED = frozenset(
    {
        "content-length",
        "content-encoding",
        "transfer-encoding",
        "x-remote-user-id",
        "x-remote-user-name",
        "x-remote-user-display-name",
    }
)


class FakeSupervisor:
    """Serves on a loopback port; Home Assistant and the app are behind it."""

    def __init__(self, *, home_assistant: str, home_assistant_token: str, token: str) -> None:
        """`home_assistant` is its WebSocket URL; `token` is the app's."""
        self.app = ""
        """Base URL of the app, which is usually started later."""
        self.is_core_up = True
        self.apps: dict[str, dict[str, str]] = {}
        """What `/addons/SLUG/info` says of each installed app."""
        self.connections = 0
        """WebSockets that were proxied to Home Assistant."""
        self.rest = FakeRestApi(token=token)
        self.broker: dict[str, object] | None = None
        """What the app of an MQTT broker has published about itself."""
        self._home_assistant = home_assistant
        self._home_assistant_token = home_assistant_token
        self._token = token
        self._session: aiohttp.ClientSession | None = None
        self._proxied: set[web.WebSocketResponse] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve on a free port and return the base URL."""
        app = web.Application()
        app.router.add_get("/core/websocket", self._websocket)
        app.router.add_get("/addons/{slug}/info", self._app_info)
        app.router.add_get("/addons", self._forbidden)
        self.rest.add_routes(app, "/core/api")
        app.router.add_get("/services/mqtt", self._mqtt)
        app.router.add_route("*", INGRESS + "/{path:.*}", self._ingress)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        connector = aiohttp.TCPConnector(local_addr=(INGRESS_PEER, 0))
        try:
            async with aiohttp.ClientSession(connector=connector) as self._session:
                site = web.TCPSite(runner, "127.0.0.1", 0)
                await site.start()
                host, port = runner.addresses[0][:2]
                yield f"http://{host}:{port}"
        finally:
            await runner.cleanup()

    async def restart_core(self, *, down_s: float) -> None:
        """Restart Home Assistant: end the connections, and answer 502 for a while."""
        self.is_core_up = False
        for socket in list(self._proxied):
            await socket.close()
        await asyncio.sleep(down_s)
        self.is_core_up = True

    async def _app_info(self, request: web.Request) -> web.StreamResponse:
        """The role `default` may read it, of any app whose name it knows."""
        if request.headers.get("Authorization") != f"Bearer {self._token}":
            raise web.HTTPUnauthorized
        if (found := self.apps.get(request.match_info["slug"])) is None:
            return web.json_response({"result": "error", "message": "not installed"}, status=404)
        return web.json_response({"result": "ok", "data": found})

    async def _forbidden(self, _: web.Request) -> web.StreamResponse:
        """The list of apps needs the role `manager`."""
        raise web.HTTPForbidden

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        if not self.is_core_up:
            raise web.HTTPBadGateway
        socket = web.WebSocketResponse(heartbeat=30)
        await socket.prepare(request)
        await socket.send_json({"type": "auth_required", "ha_version": "2026.11.0"})
        asked = await socket.receive_json(timeout=10)
        if asked.get("access_token") != self._token:
            await socket.send_json({"type": "auth_invalid", "message": "Invalid access"})
            await socket.close()
            return socket
        await socket.send_json({"type": "auth_ok", "ha_version": "2026.11.0"})
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(self._home_assistant, max_msg_size=64 * 1024 * 1024) as core,
        ):
            await core.receive_json()
            await core.send_json({"type": "auth", "access_token": self._home_assistant_token})
            await core.receive_json()
            self.connections += 1
            self._proxied.add(socket)
            try:
                await _join(socket, core)
            finally:
                self._proxied.discard(socket)
        return socket

    async def _mqtt(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self._token}":
            raise web.HTTPUnauthorized
        if self.broker is None:
            failed = {"result": "error", "message": "Service not enabled"}
            return web.json_response(failed, status=400)
        return web.json_response({"result": "ok", "data": self.broker})

    async def _ingress(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None
        url = f"{self.app}/{request.match_info['path']}"
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in _NOT_FORWARDED and not name.lower().startswith("sec-websocket-")
        }
        headers |= {
            "X-Ingress-Path": INGRESS,
            "X-Hass-Source": "core.ingress",
            "X-Forwarded-For": f"{request.remote}, 172.30.32.1",
            "X-Forwarded-Host": request.host,
            "X-Forwarded-Proto": "http",
            "X-Remote-User-Id": "0123456789abcdef",
            "X-Remote-User-Name": "anna",
            "X-Remote-User-Display-Name": "Anna Müller",
        }
        if request.headers.get("Upgrade", "").lower() == "websocket":
            headers = {
                name: value
                for name, value in headers.items()
                if name.lower() not in {"upgrade", "connection"}
            }
            async with self._session.ws_connect(
                url, params=request.query, headers=headers
            ) as upstream:
                socket = web.WebSocketResponse()
                await socket.prepare(request)
                await _join(socket, upstream)
                return socket
        async with self._session.request(
            request.method,
            url,
            params=request.query,
            headers=headers,
            data=await request.read(),
            allow_redirects=False,
        ) as answer:
            kept = {
                name: value
                for name, value in answer.headers.items()
                if name.lower() not in {"transfer-encoding", "content-length", "content-encoding"}
            }
            return web.Response(status=answer.status, headers=kept, body=await answer.read())


async def _join(one: _Either, other: _Either) -> None:
    """Forward messages both ways until one side ends."""
    tasks = [asyncio.create_task(_forward(*pair)) for pair in ((one, other), (other, one))]
    try:
        await until_one_ends(tasks)
    finally:
        await one.close()


async def _forward(source: _Either, target: _Either) -> None:
    async for message in source:
        if message.type is aiohttp.WSMsgType.TEXT:
            await target.send_str(message.data)
        elif message.type is aiohttp.WSMsgType.BINARY:
            await target.send_bytes(message.data)
