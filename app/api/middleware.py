"""Rules for every request, before any route: known methods, bounded bodies, safe headers."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import METHODS, path_in, refuse
from app.api.bodies import BodyBudget
from app.api.problems import Problem

_CONTENT_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self';"
    " object-src 'none'"
)
_DOCS_CONTENT_POLICY = f"{_CONTENT_POLICY}; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
"""Swagger UI styles its parts from JavaScript and carries its pictures in its style sheet."""

_HEADERS = {
    "Content-Security-Policy": _CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Without a key this is what keeps a foreign page from loading data as a script or picture.
    "Cross-Origin-Resource-Policy": "same-origin",
}

_MAX_DIGITS = 19
_MAX_HEADERS = 100

_KNOWN_METHODS = frozenset((*METHODS, "QUERY", "TRACE"))
"""No route has the last two, but they are standard methods: the answer is 405."""

_UNKNOWN_METHOD = Problem(
    status=501, code="unknown_method", detail="This service does not know the method."
)
_TOO_LARGE = Problem(
    status=413, code="body_too_large", detail="The body is larger than this service reads."
)
_TOO_MANY_HEADERS = Problem(
    status=431,
    code="too_many_headers",
    detail=f"The request has more than {_MAX_HEADERS} headers.",
)


class GuardMiddleware:
    """Refuses malformed and oversized requests, and adds security headers to every answer."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        max_total_bytes: int,
        larger: Mapping[str, int] | None = None,
    ) -> None:
        self._app = app
        self._budget = BodyBudget(max_total_bytes)
        self._max_body_bytes = max_body_bytes
        self._larger = dict(larger or {})
        """Larger bounds, by path prefix."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a problem."""
        if scope["type"] == "websocket" and len(scope["headers"]) > _MAX_HEADERS:
            await refuse(_TOO_MANY_HEADERS, scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = path_in(scope)
        safe = _with_headers(send, path)
        larger = (size for prefix, size in self._larger.items() if path.startswith(prefix))
        max_body_bytes = next(larger, self._max_body_bytes)
        # Each unknown method would become a label of /metrics.
        if scope["method"] not in _KNOWN_METHODS:
            await refuse(_UNKNOWN_METHOD, scope, receive, safe)
        elif len(scope["headers"]) > _MAX_HEADERS:
            await refuse(_TOO_MANY_HEADERS, scope, receive, safe)
        elif _content_length(scope) > max_body_bytes:
            await refuse(_TOO_LARGE, scope, receive, safe)
        else:
            body = _BoundedBody(receive, max_bytes=max_body_bytes, budget=self._budget)
            try:
                await self._app(scope, body.receive, safe)
            finally:
                body.release()


def security_headers(path: str) -> dict[str, str]:
    """Return the security headers for the response of a path."""
    headers = dict(_HEADERS)
    if path == "/docs":
        headers["Content-Security-Policy"] = _DOCS_CONTENT_POLICY
    # Browsers revalidate pages, and never store data.
    is_page = path in {"/", "/docs"} or path.startswith("/static/")
    headers["Cache-Control"] = "no-cache" if is_page else "no-store"
    return headers


def _with_headers(send: Send, path: str) -> Send:
    async def send_safe(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in security_headers(path).items():
                headers.setdefault(name, value)
        await send(message)

    return send_safe


class _BoundedBody:
    """Counts a body while it is read: its length may not have been announced."""

    def __init__(self, receive: Receive, *, max_bytes: int, budget: BodyBudget) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._budget = budget
        self._read_bytes = 0

    async def receive(self) -> Message:
        """Return the next message.

        Raises:
            HTTPException: the body, or all bodies together, are too large. It is raised within
                a route and becomes a problem document there.
        """
        message = await self._receive()
        size = len(message.get("body", b""))
        if self._read_bytes + size > self._max_bytes:
            raise HTTPException(413)
        if not self._budget.take(size):
            raise HTTPException(503, headers={"Retry-After": "5"})
        self._read_bytes += size
        return message

    def release(self) -> None:
        """Give back what the body took of the budget."""
        self._budget.give_back(self._read_bytes)


def _content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value[:_MAX_DIGITS]) if value.isdigit() else 0
    return 0
