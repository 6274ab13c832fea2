"""The part of Home Assistant's REST API that sets states and shows notifications."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web


class FakeRestApi:
    """Keeps what is posted; a restart of Home Assistant forgets it."""

    def __init__(self, *, token: str) -> None:
        self.states: dict[str, dict[str, Any]] = {}
        self.history: list[tuple[str, str]] = []
        """Entity id and state of each post."""
        self.notifications: dict[str, dict[str, Any]] = {}
        self.is_admin = True
        self.fails_with: int | None = None
        self.hangs = False
        self.requests = 0
        self._token = token

    def add_routes(self, app: web.Application, path: str) -> None:
        """Serve below this path."""
        app.router.add_post(path + "/states/{entity_id}", self._set_state)
        app.router.add_post(path + "/services/persistent_notification/{action}", self._notify)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve on a free port and return the address of the WebSocket API beside it."""
        app = web.Application()
        self.add_routes(app, "/api")
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            yield f"ws://{host}:{port}/api/websocket"
        finally:
            await runner.cleanup()

    async def _set_state(self, request: web.Request) -> web.Response:
        await self._check(request)
        if not self.is_admin:
            raise web.HTTPUnauthorized
        entity_id, body = request.match_info["entity_id"], await request.json()
        is_new = entity_id not in self.states
        self.states[entity_id] = body
        self.history.append((entity_id, body["state"]))
        return web.json_response(body, status=201 if is_new else 200)

    async def _notify(self, request: web.Request) -> web.Response:
        await self._check(request)
        body = await request.json()
        notification_id = body.pop("notification_id")
        match request.match_info["action"]:
            case "create":
                self.notifications[notification_id] = body
            case "dismiss":
                self.notifications.pop(notification_id, None)
            case _:
                raise web.HTTPBadRequest
        return web.json_response([])

    async def _check(self, request: web.Request) -> None:
        self.requests += 1
        if self.hangs:
            await asyncio.sleep(3600)
        if self.fails_with is not None:
            raise _Failure(self.fails_with)
        if request.headers.get("Authorization") != f"Bearer {self._token}":
            raise web.HTTPUnauthorized


class _Failure(web.HTTPException):
    status_code = 0

    def __init__(self, status: int) -> None:
        self.status_code = status
        super().__init__()
