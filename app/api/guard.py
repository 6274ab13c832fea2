"""What holds for every request, before any route: known methods, small bodies, safe headers."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import METHODS, path_in, refuse
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

_KNOWN_METHODS = frozenset((*METHODS, "QUERY", "TRACE"))
"""No route has the last two, but they are no strangers: the answer is 405 as for any other."""

_UNKNOWN_METHOD = Problem(
    status=501, code="unknown_method", detail="This service does not know the method."
)
_TOO_LARGE = Problem(
    status=413, code="body_too_large", detail="The body is larger than this service reads."
)


class GuardMiddleware:
    """Refuses what no route should see, and adds the security headers to every answer."""

    def __init__(
        self, app: ASGIApp, *, max_body_bytes: int, larger: Mapping[str, int] | None = None
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._larger = dict(larger or {})
        """Other bounds, by how a path begins."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a problem."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = path_in(scope)
        safe = _with_headers(send, path)
        larger = (size for prefix, size in self._larger.items() if path.startswith(prefix))
        max_body_bytes = next(larger, self._max_body_bytes)
        # An unknown method would become a label of /metrics, one for each name one can think of.
        if scope["method"] not in _KNOWN_METHODS:
            await refuse(_UNKNOWN_METHOD, scope, receive, safe)
        elif _content_length(scope) > max_body_bytes:
            await refuse(_TOO_LARGE, scope, receive, safe)
        else:
            await self._app(scope, _bounded(receive, max_body_bytes), safe)


def security_headers(path: str) -> dict[str, str]:
    """Return the headers that keep a browser from doing harm with the answer of a path."""
    headers = dict(_HEADERS)
    if path == "/docs":
        headers["Content-Security-Policy"] = _DOCS_CONTENT_POLICY
    # Pages ask again whether a file changed; data is never kept.
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


def _bounded(receive: Receive, max_bytes: int) -> Receive:
    """Return a `receive` that ends a body whose length was not told, at the bound."""
    read = 0

    async def receive_bounded() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > max_bytes:
            raise HTTPException(413)  # within a route: it becomes a problem there
        return message

    return receive_bounded


def _content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value[:_MAX_DIGITS]) if value.isdigit() else 0
    return 0
