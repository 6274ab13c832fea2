"""Explains a failed connection in a sentence, with advice. Pure.

The log, `/health` and the doctor show the same words.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from urllib.parse import urlsplit

from app.runtime.addresses import is_upgrade, origin, redirect_target
from app.runtime.text import one_line

_shown = partial(one_line, max_chars=200)
_BODY_BYTES = 4_096
_SAME_ERRNO = re.compile(r"\[Errno (\d+)\]")
_CERTIFICATE_MISSING_ALERT = re.compile(r"ALERT_(CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE)")
_CERTIFICATE_REFUSED_ALERT = re.compile(
    r"ALERT_(UNKNOWN_CA|BAD_CERTIFICATE|CERTIFICATE_\w+|UNSUPPORTED_CERTIFICATE|ACCESS_DENIED)"
)


@dataclass(frozen=True, slots=True)
class Party:
    """A server that connections are made to, and the settings that concern it."""

    name: str
    variable: str
    """The setting with its address."""
    prefix: str = ""
    """The beginning of the names of its settings for headers and certificates, if it has any."""
    tls_off: str = ""
    """The setting that accepts any certificate."""
    also: str = ""
    """A sentence for when something else answers."""


HOME_ASSISTANT = Party(
    "Home Assistant",
    "HOME_ASSISTANT_URL",
    "HOME_ASSISTANT",
    tls_off="HA_SSL_VERIFY=false",
    also="A proxy in between must pass WebSockets on.",
)
DATA_API = Party("the data API", "DATA_API_URL")
DATABASE = Party("the database", "INFLUXDB_URL", "INFLUXDB", tls_off="INFLUXDB_SSL_VERIFY=false")
BROKER = Party("the MQTT broker", "MQTT_URL", tls_off="MQTT_SSL_VERIFY=false")
SERVICE = Party("the service", "WEBSOCKET_INGESTION_PORT")


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What is wrong, and what to do about it."""

    why: str
    """The rest of a sentence, without a full stop."""
    advice: str
    """Whole sentences."""

    @classmethod
    def of(cls, text: str) -> Obstacle:
        """Split at the end of the first sentence."""
        why, _, advice = text.strip().partition(". ")
        return cls(why, advice)

    def __str__(self) -> str:
        return f"{self.why}. {self.advice}".removesuffix(".")


def obstacle(party: Party, exc: BaseException, *, url: str = "") -> Obstacle:
    """Return why a connection to `url` failed, from the exception at the bottom of the chain."""
    cause = _bottom(exc)
    variable, with_tls = party.variable, url.startswith(("https:", "wss:"))
    match cause:
        case ssl.SSLError():
            return _tls(party, cause)
        case ConnectionResetError() | ConnectionAbortedError() | EOFError() if with_tls:
            return _closed(party, with_tls=True)
        case OSError():
            return _no_connection(party, cause)
        case EOFError():
            why = "the connection is closed without an HTTP response"
            advice = f"Write https:// in {variable} if that port is for TLS, else check the host"
            return Obstacle(why, f"{advice} and the port. {party.also}".strip())
        case _ if not str(cause):  # as when the server hangs up during the TLS handshake
            return _closed(party, with_tls=with_tls)
        case _:
            advice = f"Check the host, the port and the path in {variable}; write https:// where"
            return Obstacle(
                f"what answers there is something else ({_shown(str(cause))})",
                f"{advice} TLS is wanted. {party.also}".strip()
                + (_certificate_hint(party) if with_tls else ""),
            )


def is_tls_failure(exc: BaseException) -> bool:
    """Whether TLS is at the bottom of the chain."""
    return isinstance(_bottom(exc), ssl.SSLError)


def refused_handshake(
    party: Party,
    url: str,
    *,
    status: int,
    location: str | None,
    body: bytes,
    header_names: Collection[str],
) -> Obstacle:
    """Return why a WebSocket handshake was answered with this status.

    Args:
        party: whom the handshake was sent to.
        url: where it was sent to.
        status: the status of the response.
        location: its header `Location`.
        body: the beginning of its body.
        header_names: the names of its headers in lower case.
    """
    if location is not None and 300 <= status < 400:  # noqa: PLR2004 - the class of redirects
        return redirect(party, url, location=location, status=status)
    by_cloudflare = "cf-ray" in header_names
    row = _handshake_row(status, body, by_cloudflare=by_cloudflare)
    words = {
        "status": status,
        "party": party.name,
        "variable": party.variable,
        "prefix": party.prefix,
        "proxy": "Cloudflare" if by_cloudflare else "a proxy in front of it",
        "address": f"Write the address in {party.variable} as you open it in a browser, without a"
        " path: for example http://homeassistant.local:8123.",
        "also": party.also,
    }
    return Obstacle.of(row.format_map(words))


def _handshake_row(status: int, body: bytes, *, by_cloudflare: bool) -> str:
    if status == HTTPStatus.BAD_REQUEST:
        text = body[:_BODY_BYTES].decode(errors="replace")
        return next(row for pattern, row in _BAD_REQUEST.items() if re.search(pattern, text))
    if status == HTTPStatus.FORBIDDEN and by_cloudflare:
        return _CLOUDFLARE_403
    if status < HTTPStatus.MULTIPLE_CHOICES:
        return _WEB_PAGE
    return _HANDSHAKE.get(status) or (_NOT_RUNNING if status > 500 else _OTHER)  # noqa: PLR2004


# What is wrong, up to the first full stop, and what to do.
_NO_WEBSOCKETS = (
    "a proxy in between does not pass WebSockets on ({status}). Let it pass the headers Upgrade and"
    " Connection, and HTTP/1.1."
)
_CERTIFICATE_MISSING = (
    "it requires a client certificate. Set {prefix}_CLIENT_CERT and {prefix}_CLIENT_KEY to one that"
    " it accepts."
)
_CERTIFICATE_REFUSED = (
    "it refuses our client certificate. Set {prefix}_CLIENT_CERT to a valid certificate, signed by"
    " an authority that it trusts."
)
_LOGIN = (
    "{proxy} asks for a login of its own ({status}). Set {prefix}_HEADERS to the header it"
    " requires, for example `Authorization: Basic …`, or let it pass /api/websocket without one."
)
_CLOUDFLARE_403 = (
    "Cloudflare refuses the connection (403). Set {prefix}_HEADERS to the CF-Access-Client-Id and"
    " CF-Access-Client-Secret of a service token that its policy allows."
)
_WEB_PAGE = (
    "a web page answers ({status}) and not the WebSocket API: the login page of a network (captive"
    " portal) or of a proxy, or another program. Open {variable} in a browser on this machine."
    " {address}"
)
_NO_API = "there is no WebSocket API at this path ({status}). {address} {also}"
_NOT_RUNNING = (
    "{proxy} answers {status}: {party} is starting, stopped, or not where the proxy looks for it."
    " Wait if it is restarting; else check that it runs, and the address in the proxy."
)
_OTHER = "what answers there refuses the WebSocket handshake ({status}). {address} {also}"
_HANDSHAKE = {
    401: _LOGIN,
    403: "{party} or a proxy in front of it bans this machine (403). Remove this machine's address"
    " from ip_bans.yaml in Home Assistant's configuration folder and restart it; a wrong token"
    " repeated may have put it there. Else look at the rules of the proxy, and {prefix}_HEADERS.",
    404: _NO_API,
    405: _NO_API,
    407: _LOGIN,
    426: _NO_WEBSOCKETS,
    429: "{proxy} limits requests (429). Nothing to do; attempts grow further apart.",
    500: "{party} or a proxy in front of it fails (500). Look at the log of Home Assistant and of"
    " the proxy.",
    511: "the network asks for a login of its own (511: captive portal). Open {variable} in a"
    " browser on this machine and log in there.",
}
_BAD_REQUEST = {
    # nginx, Apache and Go on a port for TLS
    r"(?i)plain HTTP request was sent to HTTPS|speaking plain HTTP to an SSL"
    r"|HTTP request to an HTTPS": "the port is for TLS, and the address begins with http:// (400)."
    " Write https:// in {variable}.",
    # nginx within TLS, to a client without its certificate, or with another
    r"(?i)No required SSL certificate": _CERTIFICATE_MISSING,
    r"(?i)SSL certificate error": _CERTIFICATE_REFUSED,
    # aiohttp when a proxy has removed the header `Upgrade`
    r"(?i)upgrade": _NO_WEBSOCKETS,
    r"": "{party} answers 400: it does not trust the reverse proxy in between. Add the proxy's"
    " address to trusted_proxies below http: in Home Assistant's configuration.yaml, with"
    " use_x_forwarded_for: true, and restart it; its log names the address.",
}
"""By a pattern in the body, tried in this order."""


def redirect(party: Party, url: str, *, location: str, status: int) -> Obstacle:
    """Return why a redirect is not followed: credentials are meant for one origin."""
    target = redirect_target(url, location)
    if is_upgrade(url, target):
        return Obstacle(
            f"it redirects to https:// ({status})",
            f"Write {_shown(origin(target))} in {party.variable}.",
        )
    shown = _shown(origin(target) + urlsplit(target).path)
    advice = f"Write the address of {party.name} itself in {party.variable}."
    if party.prefix:
        advice += (
            " If the redirect is to the login page of a proxy, set"
            f" {party.prefix}_HEADERS to what it requires instead."
        )
    return Obstacle(f"it redirects to {shown} ({status}), where no credentials are sent", advice)


def limited_mode(*, recovery: bool, safe: bool) -> str | None:
    """Return what it means that Home Assistant runs with a part of its integrations; None: all."""
    if recovery:
        return (
            "Home Assistant runs in recovery mode: it could not load its configuration, so most"
            " integrations and their entities are missing. Look at its log, fix what it names and"
            " restart it."
        )
    if safe:
        return (
            "Home Assistant runs in safe mode: custom integrations are not loaded and their"
            " entities are missing. Restart it normally."
        )
    return None


def _tls(party: Party, exc: ssl.SSLError) -> Obstacle:
    if isinstance(exc, ssl.SSLCertVerificationError):
        problem = getattr(exc, "verify_message", "") or exc.strerror or "it cannot be checked"
        advice = "Renew the certificate, or make this machine trust who signed it"
        return Obstacle(
            f"its certificate is refused (CERTIFICATE_VERIFY_FAILED: {_shown(problem)})",
            f"{advice}, or set {party.tls_off} where you trust the way."
            if party.tls_off
            else f"{advice}.",
        )
    reason = getattr(exc, "reason", None) or ""
    if reason == "UNEXPECTED_EOF_WHILE_READING":
        return _closed(party, with_tls=True)
    if _CERTIFICATE_MISSING_ALERT.search(reason):
        return Obstacle.of(_CERTIFICATE_MISSING.format(prefix=party.prefix))
    if _CERTIFICATE_REFUSED_ALERT.search(reason):
        return Obstacle.of(_CERTIFICATE_REFUSED.format(prefix=party.prefix))
    return Obstacle(
        "what answers there does not speak TLS",
        f"Write http:// instead of https:// in {party.variable}, or name its port for TLS.",
    )


def _closed(party: Party, *, with_tls: bool) -> Obstacle:
    """Return what it may mean that the server hung up without saying why."""
    return Obstacle(
        "the connection is cut at once",
        f"Check that {party.variable} begins with http:// or https:// as that port wants it, and"
        " names the right port." + (_certificate_hint(party) if with_tls else ""),
    )


def _certificate_hint(party: Party) -> str:
    if not party.prefix:
        return ""
    return (
        f" If the server requires a client certificate, set {party.prefix}_CLIENT_CERT and"
        f" {party.prefix}_CLIENT_KEY to one that it accepts."
    )


def _no_connection(party: Party, exc: OSError) -> Obstacle:
    check = f"Check that it runs, and the host and the port in {party.variable}."
    match exc if exc.errno is not None else _one_of_many(exc):
        case socket.gaierror():
            return Obstacle(
                "the name of the host is not known",
                f"Check the spelling in {party.variable}, or write the address in numbers; in a"
                " container a name must be known there.",
            )
        case ConnectionRefusedError():
            return Obstacle("nothing listens there", check)
        case ConnectionResetError():
            return _closed(party, with_tls=False)
        case TimeoutError():
            return Obstacle(
                "no answer in time",
                f"Check that it runs, host and port in {party.variable}, and firewalls in between.",
            )
        case _:
            # asyncio's own text is "Connect call failed" and the address.
            why = os.strerror(exc.errno) if exc.errno else _shown(str(exc)) or type(exc).__name__
            return Obstacle(why, check)


def _one_of_many(exc: OSError) -> OSError:
    """Return the error that every address of a host gave, as asyncio sums them up in a text."""
    numbers = set(_SAME_ERRNO.findall(str(exc)))
    return OSError(int(numbers.pop()), "") if len(numbers) == 1 else exc


def _bottom(exc: BaseException) -> BaseException:
    while (cause := _cause(exc)) is not None:
        exc = cause
    return exc


def _cause(exc: BaseException) -> Exception | None:
    # Of several addresses the first, and httpx leaves the cause in the arguments only. A
    # cancellation, which a timeout begins as, is no cause.
    several = exc.exceptions if isinstance(exc, ExceptionGroup) else ()
    candidates = (exc.__cause__, *several[:1], *exc.args[:1])
    return next((each for each in candidates if isinstance(each, Exception)), None)
