"""Requests to a database and its replies, as values; the sink does the I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from app.runtime.text import MAX_FOREIGN_CHARS

# Every pattern here is linear: after a mismatch no pattern scans the same text again.
_HTML_TAG = re.compile(r"<[^<>]*>")
_MESSAGE = re.compile(r'"(?:message|error)"\s*:\s*"((?:[^"\\]|\\.)*)', re.DOTALL)
_VICTORIA_PREFIX = re.compile(r'(remoteAddr: "[^"]*"; )?(requestURI: \S*; )?')


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An HTTP request, without the address of the server."""

    method: Literal["GET", "POST"] = "GET"
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """They may hold the token or the password."""
    body: bytes | dict[str, object] | None = None
    """Bytes are sent as they are, a dict as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The part of an HTTP response that decides the outcome of a request."""

    status: int
    headers: Mapping[str, str]
    """Case-insensitive."""
    body: bytes = b""
    """The beginning of it."""


Ask: TypeAlias = Callable[[Request], Awaitable[Reply]]


def parsed(reply: Reply) -> object:
    """Return the JSON document of a reply; None when it is not one."""
    try:
        document: object = json.loads(reply.body)
    except (ValueError, RecursionError):
        return None
    return document


def message(reply: Reply) -> str:
    """Return the server's message without its envelope; empty when there is none."""
    match parsed(reply):
        case {"error": str() as error, "data": [{"error_message": str() as why}, *_]}:
            return f"{error}: {why}"
        case {"error": str() as error, "data": {"error_message": str() as why}}:
            return f"{error}: {why}"
        case {"message": str() as text} | {"error": str() as text}:
            return text
        case _:
            text = reply.body[:MAX_FOREIGN_CHARS].decode(errors="replace")
    if text.startswith("{") and (begun := _MESSAGE.search(text)):
        # The document was cut; the last escape may be incomplete.
        return begun[1].replace('\\"', '"').replace("\\n", "\n")
    return _VICTORIA_PREFIX.sub("", _HTML_TAG.sub(" ", text).strip(), count=1)
