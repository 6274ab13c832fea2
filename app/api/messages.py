"""The messages of `/ws`, as they are sent, read and documented."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from app import __version__
from app.fanout.hub import EventMessage


class AuthRequired(Struct, tag="auth_required"):
    """Sent first when a key is needed and the client sent none: reply with `auth`."""


class AuthInvalid(Struct, tag="auth_invalid"):
    """The key was wrong or did not arrive in time; the connection is closed."""

    message: str


class Hello(Struct, tag="hello"):
    """Sent first, or after `auth`; events follow."""

    coalesce: bool
    service: Literal["websocket-ingestion"] = "websocket-ingestion"
    version: str = __version__


class Dropped(Struct, tag="dropped"):
    """The client was too slow and missed this many events, older than those that follow."""

    count: int


class Pong(Struct, tag="pong", omit_defaults=True):
    """The reply to a ping, with its id."""

    id: int | None = None


class MessageError(Struct, tag="error"):
    """The reply to a message that is not understood."""

    message: str


class Auth(Struct, tag="auth"):
    """The API key, within ten seconds of `auth_required`."""

    api_key: str


class Ping(Struct, tag="ping"):
    """Requests a `pong`."""

    id: int | None = None


ServerMessage: TypeAlias = (
    AuthRequired | AuthInvalid | Hello | EventMessage | Dropped | Pong | MessageError
)
"""What `/ws` sends."""

ClientMessage: TypeAlias = Auth | Ping
"""What `/ws` reads; other members are ignored."""
