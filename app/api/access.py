"""Access rules: one pure decision, and the ASGI middleware that applies it.

Without an API key only direct requests from this machine are answered: a page of a foreign
site (DNS rebinding) fails on the Host, a reverse proxy on the headers it adds or on HTTP/1.0.
With a key, everything that holds data requires it. As a Home Assistant app, requests through
ingress are answered: Home Assistant has authenticated their user.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.clients import LOOPBACK, Network, client_behind, is_in, parse_address
from app.api.problems import Problem, problem_response
from app.api.proxies import is_sent_by_proxies
from app.api.throttle import AuthThrottle

MUST_AUTHENTICATE = "must_authenticate"
"""Key in a WebSocket's scope: its first message must carry the API key."""

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")

ALWAYS_OPEN = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
_WITHOUT_DATA = frozenset({"/", "/docs", "/openapi.json", "/setup"})
_STATIC = "/static/"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRules:
    """The settings that decide who is answered."""

    api_key: str | None = field(default=None, repr=False)
    trusted_peers: Sequence[Network] = LOOPBACK
    """Without a key, the addresses that are answered."""
    ingress_peers: Sequence[Network] = ()
    """Addresses of the Supervisor's ingress proxy; empty unless the service is an app."""
    trusted_proxies: Sequence[Network] = ()
    """Proxies whose `X-Forwarded-For` names the client. They need a key all the same."""
    cors_origins: Sequence[str] = ()
    """Foreign origins whose pages may use the API."""
    auth_timeout_s: float = 10.0
    """How long a `/ws` client may take to send its key."""

    def is_key(self, offered: str) -> bool:
        """Compare with the API key in constant time."""
        return self.api_key is not None and hmac.compare_digest(
            # Half a surrogate pair can come in JSON, and escaped bytes in a header.
            offered.encode(errors="surrogatepass"),
            self.api_key.encode(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The parts of a request that the decision depends on."""

    websocket: bool = False
    method: str = "GET"
    http_version: str = "1.1"
    path: str
    """Below the prefix that the service is mounted at."""
    peer: str | None = None
    """Address at the other end of the connection; None for a UNIX socket."""
    headers: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    """By lower-case name, every value that was sent."""


@dataclass(frozen=True, slots=True)
class User:
    """The Home Assistant user whose request came through ingress, as the Supervisor names them."""

    id: str
    name: str | None = None
    """What the user enters to log in."""
    display_name: str | None = None


@dataclass(frozen=True, slots=True)
class Allow:
    """Pass the request on."""

    user: User | None = None
    is_by_link: bool = False
    """Whether only the one-time link of the set-up allows it."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """Open the WebSocket and ask for the key in its first message."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with a problem."""

    problem: Problem


Decision: TypeAlias = Allow | Challenge | Refuse


def decide(rules: AccessRules, asked: Asked) -> Decision:
    """Return what to do with a request."""
    if asked.path in ALWAYS_OPEN and not asked.websocket:
        return Allow()
    if is_foreign(rules, asked):
        return Refuse(FOREIGN_ORIGIN)
    if is_ingress(rules, asked):
        return Allow(user_in(asked.headers))
    if rules.api_key is None:
        reason = not_of_this_machine(rules, asked)
        return Refuse(_api_key_needed(reason)) if reason else Allow()
    if holds_no_data(asked):
        return Allow()
    return _decide_by_key(rules, asked)


def _decide_by_key(rules: AccessRules, asked: Asked) -> Decision:
    offered = offered_keys(asked.headers)
    if any(rules.is_key(key) for key in offered):
        return Allow()
    if offered:
        return Refuse(API_KEY_WRONG)
    # A browser cannot add headers to a WebSocket.
    return Challenge() if asked.websocket else Refuse(API_KEY_MISSING)


def holds_no_data(asked: Asked) -> bool:
    """Whether the answer is the same for everyone, such as a page that asks for the key."""
    return not asked.websocket and (asked.path in _WITHOUT_DATA or asked.path.startswith(_STATIC))


def is_foreign(rules: AccessRules, asked: Asked) -> bool:
    """Whether a page of another origin requests a change, or events."""
    if not asked.websocket and asked.method in _SAFE_METHODS:
        return False
    hosts = {host.lower() for host in asked.headers.get("host", ())}
    if is_ingress(rules, asked):
        hosts.update(host.lower() for host in asked.headers.get("x-forwarded-host", ()))
    return any(
        origin not in rules.cors_origins and _host_of(origin) not in hosts
        for origin in asked.headers.get("origin", ())
    )


def is_ingress(rules: AccessRules, asked: Asked) -> bool:
    """Whether the Supervisor forwards a request of a user that Home Assistant has authenticated.

    The headers alone prove nothing: any client can send them.
    """
    return "x-ingress-path" in asked.headers and is_in(asked.peer, rules.ingress_peers)


def user_in(headers: Mapping[str, Sequence[str]]) -> User | None:
    """Return the user in the Supervisor's headers; it removes those that a client sent."""

    def sent(part: str) -> str | None:
        return next(iter(headers.get(f"x-remote-user-{part}", ())), None)

    user_id = sent("id")
    return User(user_id, sent("name"), sent("display-name")) if user_id else None


def _host_of(origin: str) -> str | None:
    # The scheme is left out: behind a proxy that ends TLS ours differs from the browser's.
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def not_of_this_machine(rules: AccessRules, asked: Asked) -> str | None:
    """Return why a request without a key is not answered; None when it is."""
    if not is_in(asked.peer, rules.trusted_peers):
        return "this request does not come from a network in TRUSTED_PEERS"
    hosts = asked.headers.get("host", ())
    if len(hosts) != 1 or not _is_loopback(hosts[0]):
        return "the Host of this request is not localhost"
    if name := next(filter(is_sent_by_proxies, asked.headers), None):
        return f"this request was forwarded by a proxy, which sent {name}"
    if asked.http_version == "1.0":
        return "this request uses HTTP/1.0, as only proxies do"
    return None


def _is_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    address = parse_address(name)
    return name == "localhost" if address is None else address.is_loopback


def offered_keys(headers: Mapping[str, Sequence[str]]) -> list[str]:
    """Return every API key in the headers."""
    keys = list(headers.get("x-api-key", ()))
    for value in headers.get("authorization", ()):
        scheme, _, key = value.partition(" ")
        if scheme.lower() == "bearer":
            keys.append(key.strip())
    return keys


FOREIGN_ORIGIN = Problem(
    status=403,
    code="foreign_origin",
    detail="A page of another origin may not do this. Add its origin to CORS_ORIGINS if it may;"
    " behind a proxy, let it pass the Host header on.",
)
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="websocket-ingestion"'}
API_KEY_MISSING = Problem(
    status=401,
    code="api_key_missing",
    detail="Send the API_KEY of this service as `Authorization: Bearer …` or as `X-API-Key`.",
    headers=_CHALLENGE,
)
API_KEY_WRONG = Problem(
    status=401,
    code="api_key_wrong",
    detail="The key is not the API_KEY of this service.",
    headers=_CHALLENGE,
)


def _api_key_needed(reason: str) -> Problem:
    return Problem(
        status=403,
        code="api_key_needed",
        detail=f"Without an API_KEY only this machine is answered, and {reason}."
        " Set API_KEY and send it as `Authorization: Bearer …` or as `X-API-Key`.",
    )


class AccessMiddleware:
    """Applies the decision to every HTTP request and WebSocket."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        rules: AccessRules,
        attempts: AuthThrottle,
        decision: Callable[[AccessRules, Asked], Decision] = decide,
    ) -> None:
        self._app = app
        self._rules = rules
        self._attempts = attempts
        self._decide = decision

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a problem."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        asked = asked_in(scope)
        decision = self._decide(self._rules, asked)
        client = client_behind(
            asked.peer, asked.headers.get("x-forwarded-for", ()), self._rules.trusted_proxies
        )
        if client != _address_in(scope):
            scope = {**scope, "client": None if client is None else (client, 0)}
        if decision == Refuse(API_KEY_WRONG):
            decision = Refuse(self._attempts.refusal(client) or API_KEY_WRONG)
        match decision:
            case Refuse(problem):
                await refuse(problem, scope, receive, send)
            case Challenge():
                await self._app({**scope, MUST_AUTHENTICATE: True}, receive, send)
            case Allow(user, is_by_link):
                allowed = {**scope, "user": user, "is_by_link": is_by_link}
                await self._app(allowed, receive, send)


def asked_in(scope: Scope) -> Asked:
    """Read an ASGI scope."""
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        text = value.decode("utf-8", errors="surrogateescape")
        headers.setdefault(name.decode("latin-1").lower(), []).append(text)
    return Asked(
        websocket=scope["type"] == "websocket",
        method=scope.get("method", "GET"),
        path=path_in(scope),
        peer=None if _is_from_header(scope) else _address_in(scope),
        http_version=scope.get("http_version", "1.1"),
        headers=headers,
    )


def _address_in(scope: Scope) -> str | None:
    client = scope.get("client")
    return client[0] if client else None


def _is_from_header(scope: Scope) -> bool:
    """Whether uvicorn took the address from X-Forwarded-For, which it marks with port 0.

    `python -m app` disables that, but `uvicorn app.main:app` trusts every local program.
    """
    client = scope.get("client")
    return client is not None and client[1] == 0


def path_in(scope: Scope) -> str:
    """Return the path below the prefix that the service is mounted at."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(f"{root}/"):
        return path.removeprefix(root)
    return path


async def refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request, or the handshake of a WebSocket, with a problem."""
    if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
        await problem_response(problem)(scope, receive, send)
        return
    await send({"type": "websocket.close", "code": 1008, "reason": problem.code})
