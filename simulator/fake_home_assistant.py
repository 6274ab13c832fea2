"""A fake Home Assistant: its WebSocket API, for the demo, the tests and the benchmarks.

They differ in the house behind it: anything with the methods of `House`. A house that changes
gets `fire` (the bound method `FakeHomeAssistant.fire`). It changes its own state first, then
fires the event, so that `get_states` never lags behind the stream.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Literal, Protocol, Self, cast, get_args, runtime_checkable

import msgspec
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State

JsonObject = Mapping[str, object]
RegistryKind = Literal["device", "entity", "area", "floor", "label"]
Fire = Callable[[JsonObject], None]
"""Sends one event, `{"event_type": …, "data": …, …}`, to everyone who subscribed to its type."""

_PATH = "/api/websocket"
_EVERYTHING = "*"
_GOODBYE_S = 1.0
_ACCEPTING_TURNS = 10
_PEAK_MESSAGES, _MAX_MESSAGES = 1024, 4096
_MAX_CLIENT_BYTES = 4 * 1024 * 1024
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LISTS = {f"config/{kind}_registry/list": kind for kind in get_args(RegistryKind)}
_ENTITY_ID = re.compile(r"(?!.*__)(?!_)[a-z0-9_]+(?<!_)\.(?!_)[a-z0-9_]+(?<!_)")
_IDLE_RECORDER: JsonObject = {
    "backlog": 0,
    "max_backlog": 65000,
    **dict.fromkeys(("db_in_default_location", "recording", "thread_running"), True),
    **dict.fromkeys(("migration_in_progress", "migration_is_live"), False),
}
# The event types that a token of an ordinary user may subscribe to.
_NEW_READ_ONLY_EVENTS = frozenset({"floor_registry_updated", "label_registry_updated"})
_READ_ONLY_EVENTS = _NEW_READ_ONLY_EVENTS | {
    *("state_changed", "component_loaded", "core_config_updated"),
    *("device_registry_updated", "entity_registry_updated", "area_registry_updated"),
}
# Commands with the parameters they require, and those they allow.
_PARAMETERS: Mapping[str, tuple[set[str], set[str]]] = {
    "supported_features": ({"features"}, set()),
    "subscribe_events": (set(), {"event_type"}),
    "unsubscribe_events": ({"subscription"}, set()),
    "history/history_during_period": (
        {"start_time", "entity_ids"},
        {"end_time", "include_start_time_state", "significant_changes_only"}
        | {"minimal_response", "no_attributes"},
    ),
    "config_entries/get": (set(), {"domain", "type_filter"}),
    "logbook/get_events": ({"start_time"}, {"end_time", "entity_ids", "device_ids", "context_id"}),
    "recorder/list_statistic_ids": (set(), {"statistic_type"}),
    **dict.fromkeys(
        ("get_states", "auth/current_user", "get_config", "recorder/info", *_LISTS), (set(), set())
    ),
}
# In these domains a change of attributes alone is significant to the recorder.
_CLIMATE_DOMAINS = frozenset({"climate", "humidifier", "water_heater"})


class House(Protocol):
    """The home behind the API. Every row has Home Assistant's own shape."""

    def states(self) -> Sequence[JsonObject]:
        """Return the states of all entities, rows of `state_row`, for `get_states`."""

    def registry(self, kind: RegistryKind) -> Sequence[JsonObject]:
        """Return the rows of one registry, for `config/{kind}_registry/list`."""

    def config(self) -> JsonObject:
        """Return what `get_config` contains beyond `version`; `state` defaults to `RUNNING`."""

    def config_entries(self) -> Sequence[JsonObject]:
        """Return rows with entry_id, domain and title, for `config_entries/get`."""

    def recorder(self) -> JsonObject:
        """Return what `recorder/info` adds to that of an idle recorder, such as `backlog`."""

    def history(
        self, start: datetime, end: datetime, entity_ids: Sequence[str]
    ) -> Mapping[str, Sequence[JsonObject]]:
        """Return what was recorded with `start < last_updated < end`, oldest first, by entity.

        The rows are those of `state_row`; a removal is a row whose `state` is None. Entities
        without a row may be left out.
        """


@runtime_checkable
class Chronicle(Protocol):
    """A house with a logbook and statistics; other houses refuse these commands."""

    def logbook(self, start: datetime, end: datetime) -> Sequence[JsonObject]:
        """Return the logbook's entries with `start < when < end`, oldest first."""

    def statistics(self) -> Sequence[JsonObject]:
        """Return the answer to `recorder/list_statistic_ids`."""


def timestamp(moment: datetime) -> str:
    """Return a moment as Home Assistant writes it: UTC, microseconds, `+00:00`."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def new_context(*, at: datetime, user_id: str | None = None) -> JsonObject:
    """Return a context with an id of its own, a ULID that sorts by time."""
    number = int(at.timestamp() * 1000) << 80 | secrets.randbits(80)
    characters = (_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))
    return {"id": "".join(characters), "parent_id": None, "user_id": user_id}


def state_row(
    entity_id: str,
    state: str | None,
    attributes: JsonObject,
    *,
    at: datetime,
    changed_at: datetime | None = None,
    context: JsonObject | None = None,
) -> JsonObject:
    """Return one state as `get_states` and `state_changed` show it.

    Pass `changed_at` when only attributes moved: `last_changed` then stays at that moment.
    """
    return {
        "entity_id": entity_id,
        "state": state,
        "attributes": attributes,
        "last_changed": timestamp(changed_at or at),
        "last_reported": timestamp(at),
        "last_updated": timestamp(at),
        "context": context or new_context(at=at),
    }


def state_changed(old: JsonObject | None, new: JsonObject | None, *, at: datetime) -> JsonObject:
    """Return the event for a change from `old` to `new`, both rows of `state_row`.

    `old` is None for a new entity, `new` for a removed one; `at` is `time_fired`, which is
    `last_updated` of `new`.
    """
    row = new or old
    assert row is not None
    data = {"entity_id": row["entity_id"], "old_state": old, "new_state": new}
    return _event("state_changed", data, at, context=new["context"] if new else None)


def registry_updated(kind: RegistryKind, data: JsonObject, *, at: datetime) -> JsonObject:
    """Return the event for a changed registry row; `data` has `action` and the row's id."""
    return _event(f"{kind}_registry_updated", data, at)


def _event(
    event_type: str, data: JsonObject, at: datetime, *, context: object = None
) -> JsonObject:
    event = {"event_type": event_type, "data": data, "origin": "LOCAL"}
    return {**event, "time_fired": timestamp(at), "context": context or new_context(at=at)}


class FakeHomeAssistant:
    """Home Assistant's WebSocket API for one house, on a port of 127.0.0.1.

    An async context manager that may be entered again: it keeps its port, so leaving and
    entering is a restart of Home Assistant. Slow clients are cut off as the real one does.
    """

    def __init__(
        self,
        house: House,
        *,
        token: str,
        version: str = "2026.11.0",
        port: int = 0,
        read_only: bool = False,
        denied_events: Iterable[str] = (),
        unknown_commands: Iterable[str] = (),
        enforce_limits: bool = True,
        auth_timeout_s: float = 10.0,
        peak_s: float = 10.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Assign.

        `port` 0 chooses a free port, `read_only` gives the token to a user without rights, and
        `peak_s` is how long more than 1,024 messages may wait for a client before it is cut off.
        """
        self.version = version
        self.port = port
        self.refusing = False
        """While True, new connections are answered with 503."""
        self.cut_off = 0
        """How many clients were cut off because they were too slow."""
        self.conversations: deque[list[str]] = deque(maxlen=100)
        """The commands of each connection, oldest connection first."""
        self.unknown_commands = set(unknown_commands)
        """Commands that are refused as unknown."""
        self._house = house
        self.token = token
        """The token that is accepted."""
        self._denied = frozenset(denied_events)
        self._read_only = read_only
        self._peak_s = peak_s if enforce_limits else None
        self._auth_timeout_s = auth_timeout_s
        self._tls = tls
        self._clients: set[_Client] = set()
        self._silence: asyncio.Event | None = None
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """The address of the WebSocket API."""
        return f"{'wss' if self._tls else 'ws'}://127.0.0.1:{self.port}{_PATH}"

    @property
    def subscribers(self) -> int:
        """How many clients are subscribed to `state_changed`."""
        connected = [client for client in self._clients if client.socket.state is State.OPEN]
        return sum("state_changed" in client.subscribed.values() for client in connected)

    @property
    def pending(self) -> int:
        """How many messages wait for the slowest client."""
        return max((len(client.pending) for client in self._clients), default=0)

    async def __aenter__(self) -> Self:
        """Start to listen."""
        self._server = await serve(
            self._converse,
            "127.0.0.1",
            self.port,
            process_request=self._greet,
            max_size=_MAX_CLIENT_BYTES,
            ping_interval=None,
            ssl=self._tls,
            server_header=None,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening and end all connections with 1000, as Home Assistant does."""
        assert self._server is not None
        await self._stop_listening(self._server)
        self._server.close(close_connections=False)
        self.speak_again()
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await self.drop()
        except TimeoutError:
            self.abort()
        await self._server.wait_closed()

    def fire(self, event: JsonObject) -> None:
        """Send an event to everyone who subscribed to its type."""
        self.fire_many([msgspec.json.encode(event)], event_type=str(event["event_type"]))

    def fire_many(self, events: Sequence[bytes], *, event_type: str = "state_changed") -> None:
        """Send events of one type that are encoded already.

        They wait in memory until the connections take them: more than 4,096 without letting
        the event loop run, and the clients are cut off.
        """
        for client in tuple(self._clients):
            for command_id, subscribed in client.subscribed.items():
                if subscribed in {event_type, _EVERYTHING}:
                    end = b',"id":%d}' % command_id
                    client.send([b'{"type":"event","event":' + event + end for event in events])

    def send_raw(self, message: bytes) -> None:
        """Send any bytes to every subscriber in place of a message."""
        for client in tuple(self._clients):
            if client.subscribed:
                client.send([message])

    async def drop(self, code: int = 1000) -> None:
        """Close all connections with this code."""
        await asyncio.gather(*(client.socket.close(code) for client in tuple(self._clients)))

    def abort(self) -> None:
        """Reset all connections, as a crash does."""
        for client in tuple(self._clients):
            client.socket.transport.abort()

    def fall_silent(self) -> None:
        """Keep all connections open, but send nothing more, and answer no new connection."""
        self._silence = asyncio.Event()
        for client in tuple(self._clients):
            client.silence = self._silence
            client.socket.transport.pause_reading()

    def speak_again(self) -> None:
        """End the silence for new connections, and abort those that were silenced."""
        if self._silence is not None:
            self._silence.set()
            self._silence = None
        for client in tuple(self._clients):
            if client.silence is not None:
                client.socket.transport.abort()

    def _greet(self, connection: ServerConnection, request: Request) -> Response | None:
        if self.refusing:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "starting\n")
        if request.path != _PATH:
            return connection.respond(HTTPStatus.NOT_FOUND, "404: Not Found\n")
        return None

    async def _stop_listening(self, server: Server) -> None:
        """Accept no new connection, and let the loop finish those that it is accepting.

        CPython 3.11's own close leaves their transports open forever.
        """
        for listening in server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        for _ in range(_ACCEPTING_TURNS):
            await asyncio.sleep(0)

    async def _converse(self, socket: ServerConnection) -> None:
        conversation: list[str] = []
        self.conversations.append(conversation)
        client = _Client(socket, peak_s=self._peak_s)
        client.silence = self._silence
        self._clients.add(client)
        try:
            if client.silence is not None:
                await client.silence.wait()
            if await self._authenticated(socket):
                await self._serve(client, conversation)
        except ConnectionClosed:
            pass  # clients come and go
        finally:
            self._clients.discard(client)
            self.cut_off += client.too_slow

    async def _authenticated(self, socket: ServerConnection) -> bool:
        await _say(socket, {"type": "auth_required", "ha_version": self.version})
        try:
            async with asyncio.timeout(self._auth_timeout_s):
                message = msgspec.json.decode(await socket.recv())
        except (TimeoutError, ValueError):
            return False
        match message:
            case {"type": "auth", "access_token": self.token}:
                await _say(socket, {"type": "auth_ok", "ha_version": self.version})
                return True
            case {"type": "auth", **rest} if rest.keys() <= {"access_token", "api_password"}:
                reason = "Invalid access token or password"
            case _:
                reason = "Auth message incorrectly formatted"
        await _say(socket, {"type": "auth_invalid", "message": reason})
        return False

    async def _serve(self, client: _Client, conversation: list[str]) -> None:
        tasks = [
            asyncio.create_task(self._read(client, conversation), name="fake.read"),
            asyncio.create_task(client.write(), name="fake.write"),
            # The writer may hang in a send to a client that does not read.
            asyncio.create_task(client.stopped.wait(), name="fake.stopped"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            client.stop()
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _read(self, client: _Client, conversation: list[str]) -> None:
        async for frame in client.socket:
            try:
                message = msgspec.json.decode(frame)
            except ValueError:
                return  # Home Assistant hangs up on what is not JSON
            for command in message if isinstance(message, list) else [message]:
                conversation.append(str(command.get("type")) if isinstance(command, dict) else "")
                client.send([msgspec.json.encode(self._answer(client, command))])

    def _answer(self, client: _Client, message: object) -> JsonObject:
        match message:
            case {"id": int(command_id), "type": str(command), **rest}:
                parameters = {str(name): value for name, value in rest.items()}
            case _:
                return _refusal(None, "invalid_format", "Message incorrectly formatted.")
        if command_id <= client.last_id:
            return _refusal(command_id, "id_reuse", "Identifier values have to increase.")
        client.last_id = command_id
        if command == "ping":
            return {"id": command_id, "type": "pong"}
        try:
            result = self._result(client, command, parameters)
        except Refused as exc:
            return _refusal(command_id, exc.code, exc.message)
        return {"id": command_id, "type": "result", "success": True, "result": result}

    def _result(self, client: _Client, command: str, parameters: Mapping[str, object]) -> object:
        if command in self.unknown_commands or command not in _PARAMETERS:
            raise Refused("unknown_command", "Unknown command.")
        _check(command, parameters)
        if kind := _LISTS.get(command):
            return self._house.registry(kind)
        answers: Mapping[str, Callable[[], object]] = {
            "supported_features": lambda: client.accept(parameters["features"]),
            "subscribe_events": lambda: self._subscribe(client, parameters),
            "unsubscribe_events": lambda: client.unsubscribe(parameters["subscription"]),
            "get_states": self._house.states,
            "auth/current_user": self._user,
            "get_config": lambda: {
                "state": "RUNNING",
                **self._house.config(),
                "version": self.version,
            },
            "config_entries/get": self._house.config_entries,
            "recorder/info": lambda: {**_IDLE_RECORDER, **self._house.recorder()},
            "history/history_during_period": lambda: self._history(parameters),
            "logbook/get_events": lambda: self._logbook(parameters),
            "recorder/list_statistic_ids": lambda: self._chronicle().statistics(),
        }
        return answers[command]()

    def _user(self) -> JsonObject:
        is_admin = not self._read_only
        return {
            "id": "0123456789abcdef0123456789abcdef",
            "name": "Owner" if is_admin else "Reader",
            **dict.fromkeys(("is_owner", "is_admin"), is_admin),
            "credentials": [{"auth_provider_type": "homeassistant", "auth_provider_id": None}],
            "mfa_modules": [],
        }

    def _subscribe(self, client: _Client, parameters: JsonObject) -> None:
        event_type = str(parameters.get("event_type", _EVERYTHING))
        allowed = _READ_ONLY_EVENTS
        if self.version.startswith("2024."):
            allowed -= _NEW_READ_ONLY_EVENTS
        if event_type in self._denied or (self._read_only and event_type not in allowed):
            raise Refused("unauthorized", "Unauthorized")
        client.subscribed[client.last_id] = event_type

    def _logbook(self, parameters: Mapping[str, object]) -> Sequence[JsonObject]:
        start = _moment(parameters, "start_time")
        end = _moment(parameters, "end_time") if "end_time" in parameters else datetime.now(UTC)
        return self._chronicle().logbook(start, end)

    def _chronicle(self) -> Chronicle:
        if not isinstance(self._house, Chronicle):
            raise Refused("unknown_command", "Unknown command.")
        return self._house

    def _history(self, parameters: Mapping[str, object]) -> JsonObject:
        entity_ids = cast("Sequence[str]", parameters["entity_ids"])
        start = _moment(parameters, "start_time")
        has_end = "end_time" in parameters
        end = _moment(parameters, "end_time") if has_end else start + timedelta(days=1)
        known = {str(row["entity_id"]) for row in self._house.states()}
        if not all(name in known or _ENTITY_ID.fullmatch(name) for name in entity_ids):
            raise Refused("invalid_entity_ids", "Invalid entity_ids")
        recorded = self._house.history(start, end, entity_ids)
        past: Mapping[str, Sequence[JsonObject]] = {}
        if parameters.get("include_start_time_state", True):
            past = self._house.history(_LONG_AGO, start, entity_ids)
        rows = {
            entity_id: _history_rows(
                past.get(entity_id, ())[-1:], recorded.get(entity_id, ()), start, parameters
            )
            for entity_id in entity_ids
        }
        return {entity_id: found for entity_id, found in rows.items() if found}


class _Client:
    """One connection: its subscriptions and what waits to be sent to it."""

    def __init__(self, socket: ServerConnection, *, peak_s: float | None) -> None:
        self.socket = socket
        self.coalesce = False
        self.last_id = 0
        self.subscribed: dict[int, str] = {}
        """Event types by the id of the command that subscribed to them."""
        self.pending: deque[bytes] = deque()
        self.silence: asyncio.Event | None = None
        self.too_slow = False
        self._peak_s = peak_s
        self._peak: asyncio.TimerHandle | None = None
        self._more = asyncio.Event()
        self.stopped = asyncio.Event()

    def send(self, messages: Sequence[bytes]) -> None:
        """Queue messages; a client that has too many waiting is cut off instead."""
        self.pending.extend(messages)
        self._more.set()
        if self._peak_s is None or len(self.pending) <= _PEAK_MESSAGES:
            return
        if len(self.pending) > _MAX_MESSAGES:
            self._cut_off()
        elif self._peak is None:
            loop = asyncio.get_running_loop()
            self._peak = loop.call_later(self._peak_s, self._check_peak)

    async def write(self) -> None:
        """Send what waits, in order, until the client is cut off."""
        while not self.stopped.is_set():
            await self._more.wait()
            self._more.clear()
            while self.pending and self.silence is None:
                # With coalescing all that waits becomes one frame, so a client that is
                # slow for a moment costs one send and not thousands.
                if self.coalesce and len(self.pending) > 1:
                    frame = b"[" + b",".join(self.pending) + b"]"
                    self.pending.clear()
                else:
                    frame = self.pending.popleft()
                await self.socket.send(frame, text=True)

    def accept(self, features: object) -> None:
        """Note what the client can read."""
        self.coalesce = isinstance(features, dict) and features.get("coalesce_messages") == 1

    def unsubscribe(self, subscription: object) -> None:
        """End the subscription that began with this command id."""
        if not isinstance(subscription, int) or self.subscribed.pop(subscription, None) is None:
            raise Refused("not_found", "Subscription not found.")

    def stop(self) -> None:
        """Forget what waits."""
        self.stopped.set()
        self._more.set()
        self.pending.clear()
        if self._peak is not None:
            self._peak.cancel()

    def _check_peak(self) -> None:
        self._peak = None
        if len(self.pending) > _PEAK_MESSAGES:
            self._cut_off()

    def _cut_off(self) -> None:
        self.too_slow = True
        self.stop()


class Refused(Exception):
    """A command that Home Assistant does not carry out; a house may raise it, too."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code)
        self.code = code
        self.message = message


def _refusal(command_id: int | None, code: str, message: str) -> JsonObject:
    error = {"code": code, "message": message}
    return {"id": command_id, "type": "result", "success": False, "error": error}


def _check(command: str, parameters: JsonObject) -> None:
    required, optional = _PARAMETERS[command]
    if missing := required - parameters.keys():
        name = min(missing)
        raise Refused("invalid_format", f"required key not provided @ data['{name}']. Got None")
    if parameters.keys() - required - optional:
        raise Refused("invalid_format", f"extra keys not allowed. Got {dict(parameters)}")


async def _say(socket: ServerConnection, message: JsonObject) -> None:
    await socket.send(msgspec.json.encode(message), text=True)


def _history_rows(
    before: Sequence[JsonObject],
    recorded: Sequence[JsonObject],
    start: datetime,
    parameters: JsonObject,
) -> list[JsonObject]:
    """Return one entity's rows as the recorder shows them: s, a, lu, and lc where it differs.

    `before` is what was true at the start; it is shown with a made-up `lu`.
    """
    minimal = bool(parameters.get("minimal_response", False))
    if minimal or parameters.get("significant_changes_only", True):
        recorded = [row for row in recorded if _is_significant(row)]
    rows: list[JsonObject] = []
    for row in (*before, *recorded):
        updated = start.timestamp() if row in before else _seconds(row["last_updated"])
        shown: dict[str, object] = {"s": row["state"]}
        if not (minimal and rows):
            no_attributes = parameters.get("no_attributes", False)
            shown["a"] = {} if no_attributes else row["attributes"]
        shown["lu"] = updated
        if not minimal and row not in before and _seconds(row["last_changed"]) != updated:
            shown["lc"] = _seconds(row["last_changed"])
        rows.append(shown)
    return rows


def _is_significant(row: JsonObject) -> bool:
    domain = str(row["entity_id"]).partition(".")[0]
    return row["last_changed"] == row["last_updated"] or domain in _CLIMATE_DOMAINS


def _moment(parameters: JsonObject, name: str) -> datetime:
    try:
        return datetime.fromisoformat(str(parameters[name]))
    except ValueError as exc:
        raise Refused(f"invalid_{name}", f"Invalid {name}") from exc


def _seconds(moment: object) -> float:
    return datetime.fromisoformat(str(moment)).timestamp()
