"""Home Assistant's WebSocket protocol without I/O; pure.

https://developers.home-assistant.io/docs/api/websocket/
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterable, Iterator

import msgspec

from app.homeassistant.messages import Event
from app.runtime.errors import CommandFailed, SourceAuthRejected, SourceProtocolError
from app.runtime.tolerant_json import DECODER, MAX_REPAIRED_BYTES, UNREADABLE, repaired

REGISTRY_EVENTS = tuple(
    f"{kind}_registry_updated" for kind in ("device", "entity", "area", "floor", "label")
)
"""Optional subscriptions: a user without rights, or an old version, may be refused some."""

_EXCERPT_CHARS = 200
_REASON_CHARS = 90
_MAX_MESSAGES = 10_000
"""Home Assistant queues at most 4,096 messages for a client."""
_LONG_FRAME_BYTES = 1_000_000
_MAX_TYPES = 10 * _MAX_MESSAGES


class Phase(enum.Enum):
    """The phase of a session."""

    GREETING = "greeting"
    AUTHENTICATING = "authenticating"
    SUBSCRIBING = "subscribing"
    READY = "ready"
    """Events stream, or commands may be sent."""


class CommandResult(msgspec.Struct, frozen=True):
    """The answer to a command."""

    command_id: int
    result: msgspec.Raw
    """The JSON value, not decoded; it holds the whole frame in memory."""
    failure: CommandFailed | None = None
    """Why the command was refused; None when it was not."""


class MalformedFrame(msgspec.Struct, frozen=True):
    """A message that cannot be used."""

    kind: str
    """`not_json`, `unexpected_shape`, `unexpected_type` or `unexpected_id`."""
    excerpt: str
    """What is wrong, and the beginning of the message without values; at most 200 characters."""


class Received(msgspec.Struct, frozen=True):
    """The content of a frame, and the reply to it."""

    send: list[bytes] = []
    """Text frames to send, in order. They may contain the token: never log them."""
    events: list[Event] = []
    """The `state_changed` events."""
    registry_events: list[Event] = []
    """All other events: the `*_registry_updated` ones."""
    answers: list[CommandResult] = []
    malformed: list[MalformedFrame] = []
    phase: Phase | None = None
    """The phase that this frame began; None if it began none."""
    is_plain: bool = False
    """Whether it holds only state changes, like nearly every frame."""

    def __repr__(self) -> str:
        """Return counts: `send` may contain the token."""
        return (
            f"Received(send={len(self.send)}, events={len(self.events)},"
            f" registry_events={len(self.registry_events)}, answers={len(self.answers)},"
            f" malformed={self.malformed}, phase={self.phase})"
        )


class Session:
    """The protocol of one connection; a new connection needs a new one.

    Feed it each frame in order, and send what it returns. It never waits or logs. It subscribes to
    `state_changed` and the registries; with `subscribe=False` it is ready for commands once it is
    authenticated.
    """

    def __init__(self, token: str, *, subscribe: bool = True) -> None:
        self._token = token
        self._subscribe = subscribe
        self._last_id = 0
        self._required_id = 0
        self._commands: dict[int, str] = {}
        """Unanswered commands, by id."""
        self.phase = Phase.GREETING
        self.ha_version: str | None = None

    def command(self, command: str, **parameters: object) -> tuple[int, bytes]:
        """Return a command's id, which its answer repeats, and its frame."""
        self._last_id += 1
        self._commands[self._last_id] = command
        return self._last_id, msgspec.json.encode(
            {"id": self._last_id, "type": command, **parameters}
        )

    def feed(self, frame: bytes) -> Received:
        """Decode a frame: a message, or a list of messages.

        A message that cannot be decoded is in `Received.malformed`, and does not affect others.

        Raises:
            SourceAuthRejected: the token is wrong; reconnecting does not help.
            SourceProtocolError: a message is not allowed in this phase, the subscription to
                `state_changed` was refused, or the frame has too many messages or too much
                malformed JSON.
        """
        # The hot path, measured as "decode" in benchmarks/README.md: one call decodes a whole
        # frame, attributes stay bytes, and a frame of only state changes returns early. The decoder
        # does not check that raw values are UTF-8: the normalizer does for attributes, once for
        # those that an entity repeats, and the check below does for answers.
        malformed: list[MalformedFrame] = []
        messages: list[_Message] | _Message
        if len(frame) > _LONG_FRAME_BYTES:
            _check_long(frame)
        try:
            messages = _frame_decoder.decode(frame)
        except UNREADABLE:
            messages = self._salvage(frame, malformed)
        if not isinstance(messages, list):  # faster than isinstance of a Struct
            messages = [messages]
        if len(messages) > _MAX_MESSAGES:
            raise _too_many()
        if self.phase is Phase.READY:
            events = [
                event
                for message in messages
                if (event := message.event) is not None and event.event_type == "state_changed"
            ]
            if len(events) == len(messages):
                return Received(events=events, malformed=malformed, is_plain=not malformed)
        if not malformed and not _is_utf8(frame):
            messages = self._salvage(frame, malformed)
        return self._process(messages, malformed)

    def _process(self, messages: Iterable[_Message], malformed: list[MalformedFrame]) -> Received:
        before = self.phase
        received = Received(malformed=malformed)
        for message in messages:
            if self.phase in {Phase.GREETING, Phase.AUTHENTICATING}:
                self._authenticate(message, received)
            else:
                self._receive(message, received)
        return (
            received
            if self.phase is before
            else msgspec.structs.replace(received, phase=self.phase)
        )

    def _authenticate(self, message: _Message, received: Received) -> None:
        match self.phase, message.type:
            case Phase.GREETING, "auth_required":
                self.phase = Phase.AUTHENTICATING
                self.ha_version = message.ha_version
                auth = {"type": "auth", "access_token": self._token}
                received.send.append(msgspec.json.encode(auth))
            case Phase.AUTHENTICATING, "auth_ok":
                self.ha_version = message.ha_version or self.ha_version
                self.phase = Phase.SUBSCRIBING if self._subscribe else Phase.READY
                received.send.extend(self._subscriptions() if self._subscribe else ())
            case Phase.AUTHENTICATING, "auth_invalid":
                raise SourceAuthRejected(self._redact(message.message or "no reason given"))
            case _:
                raise self._not_allowed(message)

    def _subscriptions(self) -> Iterator[bytes]:
        # Home Assistant wants the features first; versions that know none refuse the command.
        yield self.command("supported_features", features={"coalesce_messages": 1})[1]
        for event_type in ("state_changed", *REGISTRY_EVENTS):
            command_id, frame = self.command("subscribe_events", event_type=event_type)
            self._commands[command_id] = f"subscribe_events {event_type}"
            if event_type == "state_changed":
                self._required_id = command_id
            yield frame

    def _receive(self, message: _Message, received: Received) -> None:
        match message:
            case _Message(type="event", event=Event(event_type="state_changed") as event):
                received.events.append(event)
            case _Message(type="event", event=Event() as event):
                received.registry_events.append(event)
            case _Message(type="result" | "pong"):
                self._answered(message, received)
            case _Message(type="auth_required" | "auth_ok" | "auth_invalid"):
                raise self._not_allowed(message)
            case _Message(type="event"):
                received.malformed.append(
                    MalformedFrame("unexpected_shape", "An event without content")
                )
            case _:
                excerpt = self._redact(f"A message of type {message.type[:_LONGEST_OPAQUE]!r}")
                received.malformed.append(MalformedFrame("unexpected_type", excerpt))

    def _answered(self, message: _Message, received: Received) -> None:
        command = self._commands.pop(message.id, None) if message.id is not None else None
        if message.id is None or command is None:
            reason = (
                f"{message.error.code}: {message.error.message}" if message.error else "no error"
            )
            excerpt = self._redact(f"Answer to no command of ours: id {message.id}, {reason}")
            received.malformed.append(MalformedFrame("unexpected_id", excerpt))
            return
        failure = None
        if message.type == "result" and not message.success:
            error = message.error or _Error()
            failure = CommandFailed(
                command, code=str(error.code), message=self._redact(error.message)
            )
        if message.id == self._required_id:
            if failure is not None:
                raise SourceProtocolError(f"Home Assistant refused {failure}") from failure
            self.phase = Phase.READY
        received.answers.append(CommandResult(message.id, message.result, failure))

    def _not_allowed(self, message: _Message) -> SourceProtocolError:
        kind = self._redact(message.type)
        return SourceProtocolError(f"Unexpected message {kind!r} while {self.phase.value}")

    def _salvage(self, frame: bytes, malformed: list[MalformedFrame]) -> list[_Message]:
        """Decode message by message a frame that cannot be decoded as a whole."""
        messages: list[_Message] = []
        for piece in _pieces(frame):
            if len(messages) + len(malformed) >= _MAX_MESSAGES:
                raise _too_many()
            try:
                messages.append(_read(piece))
            except _Unreadable as exc:
                excerpt = f"{exc.reason[:_REASON_CHARS]}: {_without_values(piece)}"
                malformed.append(MalformedFrame(exc.kind, self._redact(excerpt)))
        return messages

    def _redact(self, text: str) -> str:
        # Cut first, because the text may be megabytes, but not inside a token to be masked.
        text = text[: _EXCERPT_CHARS + max(_LONGEST_OPAQUE, len(self._token))]
        text = text.replace(self._token, "***")
        return _OPAQUE.sub(_masked, text)[:_EXCERPT_CHARS]


class _Error(msgspec.Struct, frozen=True):
    code: str | int = "unknown"
    message: str = "no reason given"


class _Message(msgspec.Struct, frozen=True, gc=False):
    """Any message of Home Assistant; absent members have their defaults."""

    type: str
    id: int | None = None
    event: Event | None = None
    success: bool = False
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: _Error | None = None
    ha_version: str | None = None
    message: str | None = None


class _Unreadable(Exception):
    def __init__(self, kind: str, reason: Exception) -> None:
        super().__init__(kind)
        self.kind = kind
        self.reason = str(reason)


_frame_decoder = msgspec.json.Decoder(list[_Message] | _Message)
_message_decoder = msgspec.json.Decoder(_Message)


def _is_utf8(frame: bytes) -> bool:
    try:
        return frame.isascii() or bool(frame.decode())
    except UnicodeDecodeError:
        return False


def _read(piece: bytes) -> _Message:
    try:
        piece.decode()
        return _message_decoder.decode(piece)
    except UNREADABLE:
        pass  # decoded again below, which raises what is wrong
    try:
        strict = repaired(piece)
    except UNREADABLE as exc:
        raise _Unreadable("not_json", exc) from exc
    try:
        return _message_decoder.decode(strict)
    except UNREADABLE as exc:
        raise _Unreadable("unexpected_shape", exc) from exc


_SEPARATOR = re.compile(r"[\s,]*")
_MOST_SCANNED = 8
"""The bound for scanning parts of a malformed frame again, as a multiple of its size."""
_COUNTED_FASTER = 32
_NEXT_MESSAGE = re.compile(r',\s*(?=\{\s*"(?:id|type)"\s*:)')


def _pieces(frame: bytes) -> Iterator[bytes]:
    """Cut a frame into its messages, even if one message is not JSON.

    Raises:
        SourceProtocolError: this would take seconds.
    """
    if frame.lstrip()[:1] != b"[":
        yield frame
        return
    if len(frame) > MAX_REPAIRED_BYTES:
        raise SourceProtocolError(f"Unreadable frame of {len(frame)} bytes")
    yield from _torn(frame.decode(errors="replace").strip())


def _torn(text: str) -> Iterator[bytes]:
    at = 1
    scanned_chars = 0
    last = len(text) - 1 if text.endswith("]") else len(text)
    while True:
        separator = _SEPARATOR.match(text, at)
        assert separator is not None, "it matches the empty string, too"
        at = separator.end()
        if at in {len(text), last}:
            return
        try:
            end = DECODER.raw_decode(text, at)[1]
        except UNREADABLE as exc:
            scanned_chars += _scanned(exc, at, len(text))
            if scanned_chars > _MOST_SCANNED * len(text):
                raise SourceProtocolError("A frame has too much in it that is not JSON") from exc
            boundary = _NEXT_MESSAGE.search(text, at)
            end = boundary.start() if boundary else len(text)
        yield text[at:end].encode()
        at = max(end, at + 1)


def _scanned(exc: Exception, at: int, length: int) -> int:
    """Return roughly how many characters were scanned from `at` until the error."""
    if not isinstance(exc, json.JSONDecodeError):
        return length - at
    # The error counts line numbers from the beginning of the text.
    return exc.pos - at + exc.pos // _COUNTED_FASTER


def _check_long(frame: bytes) -> None:
    # Only for long frames, which may hold millions of messages: it costs a tenth of decoding.
    if frame.lstrip()[:1] == b"[" and frame.count(b'"type"') > _MAX_TYPES:
        raise _too_many()


def _too_many() -> SourceProtocolError:
    return SourceProtocolError(f"More than {_MAX_MESSAGES} messages in a frame")


# What the log may show: words of the protocol and entity ids, but nothing private or secret.
_SHOWN_KEYS = frozenset({"type", "event_type", "entity_id", "success"})
_OPAQUE = re.compile(r"[A-Za-z0-9_-]{32,}")
_LONGEST_OPAQUE = 1_000


def _masked(match: re.Match[str]) -> str:
    """Mask a word with digits, which is a token, but not a long word."""
    return "***" if any(sign.isdecimal() for sign in match[0]) else match[0]


_JSON_TOKEN = re.compile(
    r'"(?P<text>(?:[^"\\]|\\.)*)(?:"(?P<colon>\s*:)?|\Z)|(?P<number>-?\d[\d.eE+-]*)', re.DOTALL
)


def _without_values(piece: bytes) -> str:
    """Return the beginning of a message, with `…` for each value that may be private."""
    key = ""

    def shown(match: re.Match[str]) -> str:
        nonlocal key
        if match["colon"]:
            key = match["text"]
            return match[0]
        # Ids of commands are numbers; other ids are those of contexts, or attributes.
        is_shown = key in _SHOWN_KEYS or (key == "id" and match["number"] is not None)
        return match[0] if is_shown else "…"

    return _JSON_TOKEN.sub(shown, piece[:1000].decode(errors="replace"))
