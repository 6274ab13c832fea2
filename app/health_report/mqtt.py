"""Publishes health to an MQTT broker, from which Home Assistant creates the sensors.

paho's client runs in a thread of its own, so that nothing it does blocks the event loop. The thread
is a daemon: a broker that does not answer cannot delay the end of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from app.health_report.mqtt_discovery import OFFLINE, ONLINE, MqttMessage, MqttMessages
from app.health_report.reporter import ReportRefused
from app.health_report.sensors import Reading
from app.runtime.connection_errors import BROKER, obstacle
from app.runtime.tls import ClientTls

_AT_LEAST_ONCE = 1
_PORTS = {"mqtt": 1883, "mqtts": 8883}

# What the library logs at ERROR, a callback reports as well.
_library_logger = logging.getLogger(f"{__name__}.library")
_library_logger.setLevel(logging.CRITICAL)


class MqttSensors:
    """Sensors that Home Assistant's MQTT integration discovers."""

    name = "health sensors by MQTT"

    def __init__(
        self,
        url: str,
        *,
        username: str,
        password: str,
        ssl_verify: bool,
        instance: str | None,
        timeout_s: float = 5.0,
    ) -> None:
        """`url` is `mqtt(s)://host[:port]`; `username` is empty for none."""
        self._url = urlsplit(url)
        self._username = username
        self._password = password
        self._tls = ClientTls(verify=ssl_verify) if self._url.scheme == "mqtts" else None
        self._messages = MqttMessages(instance=instance)
        self._timeout_s = timeout_s

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[_MqttSensors]:
        """Connect for as long as the block lasts, and have the sensors created.

        Raises:
            ReportRefused: the broker cannot be reached, or refuses.
        """
        connection = _Connection(self._client(), timeout_s=self._timeout_s)
        try:
            port = self._url.port or _PORTS[self._url.scheme]
            await connection.open(self._url.hostname or "", port)
            await connection.send(
                [*self._messages.discovery(), self._messages.availability(ONLINE)]
            )
            yield _MqttSensors(connection, self._messages)
        finally:
            connection.close()

    def _client(self) -> Client:
        will = self._messages.availability(OFFLINE)
        client = Client(
            CallbackAPIVersion.VERSION2,
            # Always the same: the broker ends a connection that it still believes in, and publishes
            # its will, before the next one publishes that it is online.
            client_id=self._messages.prefix,
            reconnect_on_failure=False,
        )
        client.enable_logger(_library_logger)
        client.connect_timeout = self._timeout_s
        client.will_set(will.topic, will.payload, qos=_AT_LEAST_ONCE, retain=True)
        if self._username:
            client.username_pw_set(self._username, self._password)
        if self._tls is not None:
            client.tls_set_context(self._tls.context())
        return client


class _MqttSensors:
    def __init__(self, connection: _Connection, messages: MqttMessages) -> None:
        self._connection = connection
        self._messages = messages

    async def publish(self, values: Mapping[str, Reading]) -> None:
        """Publish the values."""
        await self._connection.send(self._messages.states(values))

    async def goodbye(self) -> None:
        """Make the sensors unavailable."""
        await self._connection.send([self._messages.availability(OFFLINE)])


class _Connection:
    """A connection of paho's client, whose callbacks come from its thread."""

    def __init__(self, client: Client, *, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._connected = self._loop.create_future()
        self._ended: asyncio.Future[str] = self._loop.create_future()
        """Why the connection ended, or could not be opened."""
        self._acks: dict[int, asyncio.Future[None]] = {}
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish

    async def open(self, host: str, port: int) -> None:
        """Connect.

        Raises:
            ReportRefused: the broker cannot be reached, or refuses.
        """
        threading.Thread(target=self._run, args=(host, port), name="mqtt", daemon=True).start()
        await self._until(self._connected)

    async def send(self, messages: Sequence[MqttMessage]) -> None:
        """Publish retained messages and wait until the broker has them.

        Raises:
            ReportRefused: it did not acknowledge one in time.
        """
        acks = [self._publish(message) for message in messages]
        for ack in acks:
            await self._until(ack)

    def close(self) -> None:
        """End the connection, whatever state it is in; nothing waits for its thread."""
        self._is_closed = True
        self._client.disconnect()

    def _publish(self, message: MqttMessage) -> asyncio.Future[None]:
        sent = self._client.publish(message.topic, message.payload, qos=_AT_LEAST_ONCE, retain=True)
        # The callback of the acknowledgement runs in this loop, so not before the next await.
        return self._acks.setdefault(sent.mid, self._loop.create_future())

    async def _until(self, event: asyncio.Future[None]) -> None:
        either: tuple[asyncio.Future[Any], ...] = (event, self._ended)
        await asyncio.wait(either, timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not event.done():
            why = self._ended.result() if self._ended.done() else "no answer in time"
            raise ReportRefused(f"the broker at MQTT_URL: {why}")

    def _run(self, host: str, port: int) -> None:
        """Connect and exchange packets until the connection ends: the thread."""
        try:
            self._client.connect(host, port)
            self._client.loop_forever()
        except (OSError, ValueError) as exc:
            self._call(self._end, obstacle(BROKER, exc).why)
        else:
            self._call(self._end, "the connection ended")

    def _on_connect(
        self, _: Client, __: object, ___: ConnectFlags, code: ReasonCode, ____: Properties | None
    ) -> None:
        if self._is_closed:  # while it was opened, when there is nothing to disconnect yet
            self._client.disconnect()
        elif code.is_failure:
            self._call(self._end, f"{code}; check MQTT_USERNAME and MQTT_PASSWORD")
        else:
            self._call(_resolve, self._connected)

    def _on_disconnect(
        self, _: Client, __: object, ___: DisconnectFlags, code: ReasonCode, ____: Properties | None
    ) -> None:
        self._call(self._end, f"the connection ended ({code})")

    def _on_publish(
        self, _: Client, __: object, mid: int, ___: ReasonCode, ____: Properties | None
    ) -> None:
        self._call(self._acknowledge, mid)

    def _acknowledge(self, mid: int) -> None:
        if ack := self._acks.pop(mid, None):
            _resolve(ack)

    def _end(self, why: str) -> None:
        if not self._ended.done():
            self._ended.set_result(why)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        """Call a function in the event loop, unless that has been closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
