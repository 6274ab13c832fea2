"""Why a server cannot be used, in a sentence, and what to do about it. Pure.

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
_PLAIN_ON_TLS = re.compile(
    r"plain HTTP request was sent to HTTPS|speaking plain HTTP to an SSL|HTTP request to an HTTPS",
    re.IGNORECASE,
)
"""What nginx, Apache and Go answer on a port for TLS."""
_CLIENT_CERTIFICATE = re.compile(r"No required SSL certificate", re.IGNORECASE)
_WRONG_CERTIFICATE = re.compile(r"SSL certificate error", re.IGNORECASE)
"""What nginx answers within TLS to a client without its certificate, or with another."""
_NO_UPGRADE = re.compile(r"upgrade", re.IGNORECASE)
"""aiohttp's answer when a proxy has removed the header `Upgrade`."""
_SAME_ERRNO = re.compile(r"\[Errno (\d+)\]")
_CLIENT_CERTIFICATE_ALERT = re.compile(r"ALERT_(CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE)")
_REFUSED_CERTIFICATE_ALERT = re.compile(
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


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What is wrong, and what to do about it."""

    why: str
    """The rest of a sentence, without a full stop."""
    advice: str
    """Whole sentences."""


def obstacle(party: Party, exc: BaseException, *, url: str = "") -> Obstacle:
    """Return why a connection to `url` failed, from the exception at the bottom of the chain."""
    cause = _bottom(exc)
    with_tls = url.startswith(("https:", "wss:"))
    match cause:
        case ssl.SSLError():
            return _tls(party, cause)
        case ConnectionResetError() | ConnectionAbortedError() | EOFError() if with_tls:
            return _closed_with_tls(party)
        case OSError():
            return _no_connection(party, cause)
        case EOFError():
            return Obstacle(
                "the connection is closed without an HTTP response",
                f"Write https:// in {party.variable} if that port is for TLS, else check the host"
                f" and the port. {party.also}".strip(),
            )
        case _:
            return Obstacle(
                f"what answers there is something else ({_shown(str(cause))})",
                f"Check the host, the port and the path in {party.variable}; write https:// where"
                f" TLS is wanted. {party.also}".strip()
                + _certificate_hint(party, with_tls=with_tls),
            )


def is_os_error(exc: BaseException) -> bool:
    """Whether an error of the operating system is at the bottom of the chain."""
    return isinstance(_bottom(exc), OSError)


def is_tls_failure(exc: BaseException) -> bool:
    """Whether TLS is at the bottom of the chain."""
    return isinstance(_bottom(exc), ssl.SSLError)


def sentence(found: Obstacle) -> str:
    """Return what is wrong and what to do, without the last full stop."""
    return f"{found.why}. {found.advice}".removesuffix(".")


def refused_handshake(  # noqa: C901, PLR0911, PLR0912 - a table: a row each
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
    text = body[:_BODY_BYTES].decode(errors="replace")
    by_proxy = "Cloudflare" if "cf-ray" in header_names else "a proxy in front of it"
    match status:
        case status if status < HTTPStatus.MULTIPLE_CHOICES:
            return Obstacle(
                f"a web page answers ({status}) and not the WebSocket API: the login page of a"
                " network (captive portal) or of a proxy, or another program",
                f"Open {party.variable} in a browser on this machine."
                f" {_write_plain_address(party)}",
            )
        case HTTPStatus.BAD_REQUEST if _PLAIN_ON_TLS.search(text):
            return Obstacle(
                "the port is for TLS, and the address begins with http:// (400)",
                f"Write https:// in {party.variable}.",
            )
        case HTTPStatus.BAD_REQUEST if _CLIENT_CERTIFICATE.search(text):
            return _certificate_missing(party)
        case HTTPStatus.BAD_REQUEST if _WRONG_CERTIFICATE.search(text):
            return _certificate_refused(party)
        case HTTPStatus.BAD_REQUEST if _NO_UPGRADE.search(text):
            return _no_websockets(status)
        case HTTPStatus.BAD_REQUEST:
            return Obstacle(
                f"{party.name} answers 400: it does not trust the reverse proxy in between",
                "Add the proxy's address to trusted_proxies below http: in Home Assistant's"
                " configuration.yaml, with use_x_forwarded_for: true, and restart it; its log names"
                " the address.",
            )
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            return Obstacle(
                f"{by_proxy} asks for a login of its own ({status})",
                f"Set {party.prefix}_HEADERS to the header it requires, for example"
                " `Authorization: Basic …`, or let it pass /api/websocket without one.",
            )
        case HTTPStatus.FORBIDDEN if "cf-ray" in header_names:
            return Obstacle(
                "Cloudflare refuses the connection (403)",
                f"Set {party.prefix}_HEADERS to the CF-Access-Client-Id and CF-Access-Client-Secret"
                " of a service token that its policy allows.",
            )
        case HTTPStatus.FORBIDDEN:
            return Obstacle(
                f"{party.name} or a proxy in front of it bans this machine (403)",
                "Remove this machine's address from ip_bans.yaml in Home Assistant's configuration"
                " folder and restart it; a wrong token repeated may have put it there. Else look at"
                f" the rules of the proxy, and {party.prefix}_HEADERS.",
            )
        case HTTPStatus.NOT_FOUND | HTTPStatus.METHOD_NOT_ALLOWED:
            return Obstacle(
                f"there is no WebSocket API at this path ({status})",
                f"{_write_plain_address(party)} {party.also}",
            )
        case HTTPStatus.UPGRADE_REQUIRED:
            return _no_websockets(status)
        case HTTPStatus.TOO_MANY_REQUESTS:
            return Obstacle(
                f"{by_proxy} limits requests (429)", "Nothing to do; attempts grow further apart."
            )
        case HTTPStatus.INTERNAL_SERVER_ERROR:
            return Obstacle(
                f"{party.name} or a proxy in front of it fails (500)",
                "Look at the log of Home Assistant and of the proxy.",
            )
        case HTTPStatus.NETWORK_AUTHENTICATION_REQUIRED:
            return Obstacle(
                "the network asks for a login of its own (511: captive portal)",
                f"Open {party.variable} in a browser on this machine and log in there.",
            )
        case status if status > HTTPStatus.INTERNAL_SERVER_ERROR:
            return Obstacle(
                f"{by_proxy} answers {status}: {party.name} is starting, stopped, or not where the"
                " proxy looks for it",
                "Wait if it is restarting; else check that it runs, and the address in the proxy.",
            )
        case _:
            return Obstacle(
                f"what answers there refuses the WebSocket handshake ({status})",
                f"{_write_plain_address(party)} {party.also}",
            )


def redirect(party: Party, url: str, *, location: str, status: int) -> Obstacle:
    """Return why a redirect is not followed: credentials are meant for one origin."""
    target = redirect_target(url, location)
    if is_upgrade(url, target):
        return Obstacle(
            f"it redirects to https:// ({status})",
            f"Write {_shown(origin(target))} in {party.variable}.",
        )
    shown = _shown(origin(target) + urlsplit(target).path)
    return Obstacle(
        f"it redirects to {shown} ({status}), where no credentials are sent",
        f"Write the address of {party.name} itself in {party.variable}.{_login(party)}",
    )


def _login(party: Party) -> str:
    if not party.prefix:
        return ""
    return (
        " If the redirect is to the login page of a proxy, set"
        f" {party.prefix}_HEADERS to what it requires instead."
    )


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
    reason = getattr(exc, "reason", None) or ""
    if isinstance(exc, ssl.SSLCertVerificationError):
        said = getattr(exc, "verify_message", "") or exc.strerror or "it cannot be checked"
        return Obstacle(
            f"its certificate is refused (CERTIFICATE_VERIFY_FAILED: {_shown(said)})",
            "Renew the certificate, or make this machine trust who signed it"
            + (f", or set {party.tls_off} where you trust the way." if party.tls_off else "."),
        )
    if _CLIENT_CERTIFICATE_ALERT.search(reason):
        return _certificate_missing(party)
    if _REFUSED_CERTIFICATE_ALERT.search(reason):
        return _certificate_refused(party)
    if reason == "UNEXPECTED_EOF_WHILE_READING":
        return _closed_with_tls(party)
    return Obstacle(
        "what answers there does not speak TLS",
        f"Write http:// instead of https:// in {party.variable}, or name its port for TLS.",
    )


def _certificate_missing(party: Party) -> Obstacle:
    return Obstacle(
        "it requires a client certificate",
        f"Set {party.prefix}_CLIENT_CERT and {party.prefix}_CLIENT_KEY to one that it accepts.",
    )


def _certificate_refused(party: Party) -> Obstacle:
    return Obstacle(
        "it refuses our client certificate",
        f"Set {party.prefix}_CLIENT_CERT to a valid certificate, signed by an authority that it"
        " trusts.",
    )


def _closed_with_tls(party: Party) -> Obstacle:
    """Return what it may mean that the server hung up without saying why."""
    advice = (
        f"Check that {party.variable} begins with http:// or https:// as that port wants it, and"
        " names the right port."
    )
    return Obstacle("the connection is cut at once", advice + _certificate_hint(party))


def _certificate_hint(party: Party, *, with_tls: bool = True) -> str:
    if not with_tls or not party.prefix:
        return ""
    return (
        f" If the server requires a client certificate, set {party.prefix}_CLIENT_CERT and"
        f" {party.prefix}_CLIENT_KEY to one that it accepts."
    )


def _no_connection(party: Party, exc: OSError) -> Obstacle:
    variable = party.variable
    match exc if exc.errno is not None else _one_of_many(exc):
        case socket.gaierror():
            return Obstacle(
                "the name of the host is not known",
                f"Check the spelling in {variable}, or write the address in numbers; in a container"
                " a name must be known there.",
            )
        case ConnectionRefusedError():
            return Obstacle(
                "nothing listens there",
                f"Check that it runs, and the host and the port in {variable}.",
            )
        case ConnectionResetError():
            return Obstacle(
                "the connection is cut at once",
                f"Check that {variable} begins with http:// or https:// as that port wants it, and"
                " names the right port.",
            )
        case TimeoutError():
            return Obstacle(
                "no answer in time",
                f"Check that it runs, host and port in {variable}, and firewalls in between.",
            )
        case _:
            return Obstacle(
                # asyncio's own text is "Connect call failed" and the address.
                os.strerror(exc.errno) if exc.errno else _shown(str(exc)) or type(exc).__name__,
                f"Check that it runs, and the host and the port in {variable}.",
            )


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


def _no_websockets(status: int) -> Obstacle:
    return Obstacle(
        f"a proxy in between does not pass WebSockets on ({status})",
        "Let it pass the headers Upgrade and Connection, and HTTP/1.1.",
    )


def _write_plain_address(party: Party) -> str:
    return (
        f"Write the address in {party.variable} as you open it in a browser, without a path:"
        " for example http://homeassistant.local:8123."
    )
