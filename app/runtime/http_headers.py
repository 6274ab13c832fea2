"""Parses the extra HTTP headers that Cloudflare Access and other proxies require. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
"""https://www.rfc-editor.org/rfc/rfc9110#section-5.1"""
_VALUE = re.compile(r"[\t\x20-\x7e]{0,8192}")
_MAX_HEADERS = 50
_RESERVED = {
    *("accept", "accept-encoding", "connection", "content-encoding", "content-length"),
    *("content-type", "expect", "host", "keep-alive", "proxy-connection", "te", "trailer"),
    *("transfer-encoding", "upgrade"),
}
"""Headers that describe the request or the connection itself."""
_RESERVED_PREFIX = "sec-websocket-"


def parse_headers(text: str) -> Mapping[str, str]:
    """Return headers by name, from a JSON object or from `Name: value` lines.

    Raises:
        ValueError: the message names the header and never shows a value.
    """
    pairs = list(_json_pairs(text) if text.lstrip().startswith("{") else _line_pairs(text))
    if len(pairs) > _MAX_HEADERS:
        raise ValueError(f"has more than {_MAX_HEADERS} headers")
    headers: dict[str, str] = {}
    for name, value in pairs:
        _check(name, value)
        if name.lower() in {each.lower() for each in headers}:
            raise ValueError(f"names the header {name} twice")
        headers[name] = value
    return headers


def has_authorization(headers: Collection[str]) -> bool:
    """Whether one of the names is `Authorization`."""
    return any(name.lower() == "authorization" for name in headers)


def _json_pairs(text: str) -> Iterable[tuple[str, str]]:
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError):
        raise ValueError("is not a JSON object of header names and values") from None
    for name, value in pairs:
        if not isinstance(value, str):
            raise ValueError("must have a text in quotes as the value of each header")  # noqa: TRY004 - pydantic expects it
        yield name.strip(), value.strip()


def _line_pairs(text: str) -> Iterable[tuple[str, str]]:
    for line in filter(None, map(str.strip, text.splitlines())):
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError("must be a JSON object, or lines like `Name: value`")
        yield name.strip(), value.strip()


def _check(name: str, value: str) -> None:
    if not _NAME.fullmatch(name):
        # The name is not shown: without a colon in its place it may hold the value.
        raise ValueError("has a header name with characters that no name may have")
    if name.lower() in _RESERVED or name.lower().startswith(_RESERVED_PREFIX):
        raise ValueError(f"must not have the header {name}: the connection sets it itself")
    if not _VALUE.fullmatch(value):
        raise ValueError(
            f"has a value for {name} that is too long or not plain ASCII text on one line"
        )
    if not value:
        raise ValueError(f"has no value for {name}")
