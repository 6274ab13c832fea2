"""An HTTP server in front or in place of the real one: all requests get the same response."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from aiohttp import web


class Front:
    """An HTTP server on 127.0.0.1 that records its requests."""

    def __init__(
        self, status: int = 200, *, headers: Mapping[str, str] | None = None, body: str = ""
    ) -> None:
        """Set the response."""
        self.status = status
        self.headers = dict(headers or {})
        self.body = body
        self.requests: list[web.BaseRequest] = []
        self.subjects: list[str] = []
        """The common name in the client certificate of each request."""
        self.port = 0
        self._tls = False

    def url(self, scheme: str = "http") -> str:
        """Return the URL; `http` and `ws` become `https` and `wss` with TLS."""
        return f"{scheme}{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    def sent(self, name: str) -> list[str | None]:
        """Return the values of a header, one per request."""
        return [request.headers.get(name) for request in self.requests]

    @asynccontextmanager
    async def serving(self, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Front]:
        """Listen until the block ends."""
        self._tls = tls is not None
        server = web.Server(self._answer)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
            self.port = runner.addresses[0][1]
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        self.requests.append(request)
        if certificate := request.get_extra_info("peercert"):
            self.subjects.append(certificate["subject"][0][0][1])
        return web.Response(status=self.status, headers=self.headers, text=self.body)
