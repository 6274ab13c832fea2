"""Normalizes the addresses that people write in settings. Pure."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

_HOME_ASSISTANT_PORT = 8123
_WEBSOCKET_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}

_FRONTEND_PATH = re.compile(
    r"/(api|lovelace[^/]*|dashboard[^/]*|config|profile|developer-tools|logbook|history|energy"
    r"|map|media-browser|hassio|auth|onboarding\.html|home/overview|calendar|todo|shopping-list"
    r"|states|index\.html)(/.*)?$"
)
"""A page of Home Assistant or its REST API, copied from the address bar or from another tool."""

_DATABASE_PATH = re.compile(
    r"/(api/v[123](/.*)?|write|query|ping|health|metrics|orgs/.*|signin|onboarding/.*|vmui)$"
)
"""An endpoint of InfluxDB or a page of its user interface."""

_MQTT_SCHEMES = {"mqtt": "mqtt", "tcp": "mqtt", "mqtts": "mqtts", "ssl": "mqtts"}

_DATA_API_PATH = re.compile(r"/internal(/.*)?$")


def websocket_url(value: str) -> str:
    """Return the URL of Home Assistant's WebSocket API for what a person wrote.

    http, https, ws, wss and bare hosts are accepted; `/api/websocket` is appended unless the path
    ends in `/websocket`, and replaces a page's path. A bare host without a port means Home
    Assistant's own port 8123.
    """
    bare = "://" not in value
    url = urlsplit(f"ws://{value}" if bare else value)
    scheme = _WEBSOCKET_SCHEMES.get(url.scheme)
    if scheme is None or not url.hostname or url.hostname in _WEBSOCKET_SCHEMES:
        raise ValueError("must be a host, or a URL of http, https, ws or wss")
    check_host(url)
    if url.username is not None and url.password is None:
        raise ValueError("has a user without a password")
    netloc = url.netloc
    if bare and url.port is None:
        netloc = f"{netloc}:{_HOME_ASSISTANT_PORT}"
    path = url.path.rstrip("/")
    if not path.endswith("/websocket"):
        path = f"{_FRONTEND_PATH.sub('', path)}/api/websocket"
    return urlunsplit((scheme, netloc, path, "", ""))


def database_url(value: str) -> str:
    """Return the base URL of a database, also for the URL of one of its endpoints or pages."""
    return _base_url(
        value,
        endpoint=_DATABASE_PATH,
        instead="the bucket, organization and credentials have settings of their own",
    )


def data_api_url(value: str) -> str:
    """Return the base URL of a data API, also for the URL of one of its endpoints."""
    return _base_url(value, endpoint=_DATA_API_PATH, instead="the key is DATA_API_KEY")


def mqtt_url(value: str) -> str:
    """Return the address of an MQTT broker as `mqtt(s)://host[:port]`; bare hosts are accepted."""
    url = urlsplit(value if "://" in value else f"mqtt://{value}")
    scheme = _MQTT_SCHEMES.get(url.scheme)
    if scheme is None or not url.hostname:
        raise ValueError("must be a host, or a URL that starts with mqtt:// or mqtts://")
    check_host(url)
    if url.username is not None:
        raise ValueError("must not have a user: MQTT_USERNAME and MQTT_PASSWORD are for that")
    if url.path.strip("/") or url.query or url.fragment:
        raise ValueError("must not have a path")
    return urlunsplit((scheme, url.netloc, "", "", ""))


def check_host(url: SplitResult) -> None:
    """Raise ValueError unless the URL names a possible host and port, and user if any."""
    try:
        # Both raise: on a port above 65535, on a host like `a..b` or with a label too long.
        reachable = url.port != 0 and bool((url.hostname or "").encode("idna"))
    except ValueError:
        reachable = False
    if not reachable or re.search(r"\s", url.geturl()):
        raise ValueError("must name a host and, if any, a port from 1 to 65535")
    if ":" in unquote(url.username or ""):  # https://www.rfc-editor.org/rfc/rfc7617#section-2
        raise ValueError("has a user name with a colon in it, which HTTP does not allow")


def origin(url: str) -> str:
    """Return scheme, host and port of a URL, without credentials; http and ws are the same.

    https://www.rfc-editor.org/rfc/rfc6454#section-4
    """
    parts = urlsplit(url)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    try:
        port = parts.port
    except ValueError:  # a server may write anything into `Location`
        port = None
    if port in {None, _DEFAULT_PORTS.get(scheme)}:
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{port}"


def redirect_target(url: str, location: str) -> str:
    """Return the absolute URL that a response to a request for `url` redirects to.

    It is `url` itself, a target that leads nowhere, when `location` is not a URL.
    """
    scheme, rest = url.split(":", 1)
    as_http = {"ws": "http", "wss": "https"}.get(scheme, scheme)
    try:
        target = urljoin(f"{as_http}:{rest}", location)
        is_url = bool(urlsplit(target).hostname)
    except ValueError:
        is_url = False
    return target if is_url else url


def is_upgrade(url: str, target: str) -> bool:
    """Whether the target of a redirect is the same host with TLS."""
    ours, theirs = urlsplit(url), urlsplit(target)
    return (
        ours.scheme in {"http", "ws"}
        and theirs.scheme in {"https", "wss"}
        and ours.hostname == theirs.hostname
    )


def _base_url(value: str, *, endpoint: re.Pattern[str], instead: str) -> str:
    url = urlsplit(value)
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ValueError("must be a URL that starts with http:// or https://")
    check_host(url)
    if url.hostname in {"http", "https"}:
        raise ValueError("names http:// twice")
    base = endpoint.sub("", url.path.rstrip("/")).rstrip("/")
    if url.query or url.fragment:
        raise ValueError(f"must not have a query; write {origin(value)}{base}: {instead}")
    return urlunsplit((url.scheme, url.netloc, base, "", ""))
