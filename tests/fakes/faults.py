"""A proxy for a real or fake database that injects faults into some writes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import aiohttp
from aiohttp import web

from tests.fakes.replies import Reply, play

_WRITES = ("/write", "/write_lp")
_HOPS = {"transfer-encoding", "connection", "content-length", "host", "date", "server"}


class FaultServer:
    """Forwards all requests, but answers writes from `script` until it is empty."""

    def __init__(self, upstream_url: str, *script: Reply) -> None:
        """Set the address of the database and the answers to the first writes."""
        self.script = deque(script)
        self.url = ""
        self._upstream_url = upstream_url
        self._ended = asyncio.Event()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Self]:
        """Listen on a port of 127.0.0.1 until the block ends."""
        app = web.Application(client_max_size=0)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        runner = web.AppRunner(app, shutdown_timeout=1.0, auto_decompress=False)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            self._ended.set()
            await runner.cleanup()

    async def _pass_on(self, request: web.Request) -> web.Response:
        is_scripted = self.script and request.path.endswith(_WRITES)
        reply = self.script.popleft() if is_scripted else None
        if reply is not None and reply.act == "early":
            return await play(request, reply, ended=self._ended)
        body = await request.read()
        if reply is None:
            return await self._answered(request, body)
        if reply.keeps:
            stored = await self._answered(request, body)
            assert stored.status == web.HTTPNoContent.status_code, stored.text
        return await play(request, reply, ended=self._ended)

    async def _answered(self, request: web.Request, body: bytes) -> web.Response:
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method,
                self._upstream_url + request.raw_path,
                headers={k: v for k, v in request.headers.items() if k.lower() not in _HOPS},
                data=body,
                allow_redirects=False,
            ) as answer,
        ):
            return web.Response(
                status=answer.status,
                body=await answer.read() or None,
                headers={k: v for k, v in answer.headers.items() if k.lower() not in _HOPS},
            )
