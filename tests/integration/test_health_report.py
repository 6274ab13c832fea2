"""Health in Home Assistant over real sockets: its REST API, and an MQTT broker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.health import Snapshot
from app.health_report.mqtt import MqttSensors
from app.health_report.reporter import Channel, HealthReport
from app.health_report.rest import RestApi, RestNotifications, RestSensors
from app.health_report.sensors import SENSORS, Reading
from app.runtime.retry import Backoff
from tests.fakes.home_assistant_rest import FakeRestApi
from tests.fakes.mqtt_broker import FakeBroker
from tests.fakes.snapshots import DEGRADED, HEALTHY

TOKEN = "t" * 40
STATUS = "sensor.websocket_ingestion_status"
WRITTEN = "sensor.websocket_ingestion_points_buffered"
AVAILABILITY = "websocket-ingestion/websocket_ingestion/availability"
MQTT_STATUS = "websocket-ingestion/websocket_ingestion/status"
CERTIFICATES = Path(__file__).parents[1] / "fakes" / "certificates"
(SINK,) = HEALTHY.sinks


class Reported:
    """A service whose snapshot the test sets."""

    def __init__(self) -> None:
        self.snapshot: Snapshot = HEALTHY
        self.checks = 0
        """How often the snapshot was looked at."""

    def risk(self) -> None:
        """Put data at risk."""
        journal = replace(HEALTHY.journal, reason="Events are not durable.", losing=True)
        self.snapshot = replace(HEALTHY, journal=journal)

    def look(self) -> Snapshot:
        """Return the snapshot."""
        self.checks += 1
        return self.snapshot

    @contextlib.asynccontextmanager
    async def by(
        self, sensors: Channel[Reading], notifications: RestNotifications, *, interval_s: float = 30
    ) -> AsyncIterator[asyncio.Task[None]]:
        """Report by these channels, with short waits."""
        report = HealthReport(
            snapshot=self.look,
            sensors=sensors,
            notifications=notifications,
            backoffs=partial(Backoff, first_s=0.01, max_s=0.02),
            interval_s=interval_s,
            check_s=0.005,
        )
        task = asyncio.create_task(report.run())
        try:
            yield task
            assert not task.done(), "it reports forever"
        finally:
            task.cancel()
            await asyncio.wait([task])

    @contextlib.asynccontextmanager
    async def by_rest(self, url: str, **options: float) -> AsyncIterator[asyncio.Task[None]]:
        """Report by the REST API only."""
        api = rest(url)
        async with self.by(
            RestSensors(api, instance=None), RestNotifications(api, instance=None), **options
        ) as task:
            yield task


def rest(url: str, *, timeout_s: float = 5.0) -> RestApi:
    """Return the REST API beside this WebSocket API."""
    return RestApi(url, token=TOKEN, ssl_verify=True, timeout_s=timeout_s)


def mqtt(port: int, *, scheme: str = "mqtt", **options: Any) -> MqttSensors:
    """Return the sensors at a broker on this port."""
    chosen: dict[str, Any] = {
        "username": "",
        "password": "",
        "ssl_verify": True,
        "instance": None,
        "timeout_s": 0.5,
    }
    chosen |= options
    return MqttSensors(f"{scheme}://127.0.0.1:{port}", **chosen)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_the_rest_api_gets_every_sensor_with_its_description() -> None:
    """As the frontend needs it: name, unit and class."""
    api, reported = FakeRestApi(token=TOKEN), Reported()
    async with api.serving() as url, reported.by_rest(url):
        await until(lambda: len(api.states) == len(SENSORS))
        states = dict(api.states)

    assert list(states) == [sensor.entity_id("websocket_ingestion") for sensor in SENSORS]
    assert states[STATUS] == {
        "state": "healthy",
        "attributes": {
            "friendly_name": "websocket-ingestion Status",
            "device_class": "enum",
            "options": ["healthy", "degraded", "unhealthy"],
            "icon": "mdi:heart-pulse",
            "reasons": [],
        },
    }
    assert {state for entity_id, state in api.history[len(SENSORS) :]} == {"unavailable"}


async def test_a_change_of_status_is_reported_at_once_and_other_changes_are_not() -> None:
    """A sensor that changes all the time has one update per interval."""
    api, reported = FakeRestApi(token=TOKEN), Reported()
    async with api.serving() as url, reported.by_rest(url):
        await until(lambda: len(api.states) == len(SENSORS))
        reported.snapshot = replace(HEALTHY, sinks=(replace(SINK, held=50),))
        checks = reported.checks
        await until(lambda: reported.checks > checks + 10)
        before = len(api.history)
        reported.snapshot = replace(DEGRADED, sinks=(replace(SINK, held=60),))
        await until(lambda: api.states[WRITTEN]["state"] == "60")
        after = api.history[before:]

    assert before == len(SENSORS)
    assert after[:1] == [(STATUS, "degraded")]


async def test_the_notification_is_created_while_data_is_at_risk_and_then_dismissed() -> None:
    """Also one that the run before has left."""
    api, reported = FakeRestApi(token=TOKEN), Reported()
    notification_id = "websocket_ingestion_data_at_risk"
    api.notifications[notification_id] = {"message": "of the run before"}
    async with api.serving() as url, reported.by_rest(url):
        await until(lambda: not api.notifications)
        reported.risk()
        await until(lambda: api.notifications)
        created = dict(api.notifications)
        reported.snapshot = HEALTHY
        await until(lambda: not api.notifications)

    assert created == {
        notification_id: {
            "title": "websocket-ingestion: data is at risk",
            "message": "Events are being dropped.\n\nEvents are not durable.",
        }
    }


async def test_a_restart_of_home_assistant_brings_everything_back() -> None:
    """It forgets such states and notifications."""
    api, reported = FakeRestApi(token=TOKEN), Reported()
    reported.risk()
    async with api.serving() as url, reported.by_rest(url):
        await until(lambda: len(api.states) == len(SENSORS) and api.notifications)
        api.states.clear()
        api.notifications.clear()
        again = replace(HEALTHY.connection, successful_connections=2)
        reported.snapshot = replace(reported.snapshot, connection=again)

        await until(lambda: len(api.states) == len(SENSORS) and api.notifications)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500, 502, 599])
async def test_an_api_that_refuses_is_tried_again_and_named_once(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The notification and the sensors recover by themselves."""
    api, reported = FakeRestApi(token=TOKEN), Reported()
    api.fails_with = status
    async with api.serving() as url, reported.by_rest(url):
        await until(lambda: api.requests >= 6)
        api.fails_with = None
        await until(lambda: len(api.states) == len(SENSORS))

    warned = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warned) == 2
    assert any(f"does not get the health sensors: {status}" in each for each in warned), warned


async def test_a_token_that_is_no_administrators_still_notifies(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only states require one."""
    api, reported = FakeRestApi(token=TOKEN), Reported()
    api.is_admin = False
    reported.risk()
    async with api.serving() as url, reported.by_rest(url):
        await until(lambda: api.notifications and "administrator" in caplog.text)

    assert not api.states


async def test_an_api_that_hangs_delays_the_stop_by_half_a_second() -> None:
    """Closing the journal is more important."""
    api, reported = FakeRestApi(token=TOKEN), Reported()
    clock = asyncio.get_running_loop().time
    async with api.serving() as url:
        async with reported.by_rest(url):
            await until(lambda: api.requests == len(SENSORS) + 1)
            api.hangs = True
            stopped_s = clock()
        took_s = clock() - stopped_s
        requests = api.requests

    assert requests == len(SENSORS) + 2, "it tried to make the first sensor unavailable"
    assert took_s < 3


async def test_a_peer_that_is_no_home_assistant_is_no_reason_to_stop() -> None:
    """Whatever it sends."""
    reported = Reported()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp ready\r\n")
        writer.close()

    connections = 0

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await answer(reader, writer)

    async with await asyncio.start_server(counted, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with reported.by_rest(f"ws://127.0.0.1:{port}/api/websocket"):
            await until(lambda: connections > 4)


@contextlib.asynccontextmanager
async def by_mqtt(reported: Reported, sensors: MqttSensors) -> AsyncIterator[asyncio.Task[None]]:
    """Report sensors by MQTT, and notifications to nobody."""
    notifications = RestNotifications(rest("ws://127.0.0.1:1/api/websocket"), instance=None)
    async with reported.by(sensors, notifications) as task:
        yield task


async def test_the_broker_gets_the_sensors_their_values_and_the_end() -> None:
    """Retained, so that Home Assistant knows them whenever it starts."""
    broker, reported = FakeBroker(username="ada", password="hush"), Reported()
    async with broker.serving() as port:
        async with by_mqtt(reported, mqtt(port, username="ada", password="hush")):
            await until(lambda: MQTT_STATUS in broker.retained)
            online = broker.retained[AVAILABILITY]
            reported.snapshot = DEGRADED
            await until(lambda: json.loads(broker.retained[MQTT_STATUS])["state"] == "degraded")
        offline = broker.retained[AVAILABILITY]

    assert (online, offline) == ("online", "offline")
    configs = [topic for topic in broker.retained if topic.startswith("homeassistant/")]
    assert len(configs) == len(SENSORS)
    assert broker.client_ids == ["websocket_ingestion"]


async def test_the_last_will_makes_the_sensors_unavailable() -> None:
    """The service may be killed; here the connection breaks, and comes back."""
    broker, reported = FakeBroker(), Reported()
    async with broker.serving() as port, by_mqtt(reported, mqtt(port)):
        await until(lambda: MQTT_STATUS in broker.retained)
        broker.history.clear()
        broker.disconnect()
        reported.snapshot = DEGRADED
        await until(lambda: (AVAILABILITY, "online") in broker.history)

    assert (AVAILABILITY, "offline") in broker.history


async def test_a_broker_that_forgot_everything_gets_everything_again() -> None:
    """It was restarted without its retained messages."""
    broker, reported = FakeBroker(), Reported()
    async with broker.serving() as port, by_mqtt(reported, mqtt(port)):
        # A description and a value of each, and the availability of all.
        await until(lambda: len(broker.retained) == 2 * len(SENSORS) + 1)
        expected = set(broker.retained)
        broker.disconnect()
        broker.retained.clear()
        reported.snapshot = DEGRADED
        await until(lambda: set(broker.retained) == expected)


async def test_a_broker_that_refuses_the_password_is_named_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log does not show the password."""
    broker, reported = FakeBroker(username="ada", password="hush"), Reported()
    async with broker.serving() as port:
        sensors = mqtt(port, username="ada", password="wrong-one")
        async with by_mqtt(reported, sensors):
            await until(lambda: len(broker.client_ids) > 2)

    assert (
        "does not get the health sensors by MQTT: the broker at MQTT_URL: Not authorized"
        in caplog.text
    )
    assert "wrong-one" not in caplog.text


async def test_a_broker_that_does_not_acknowledge_is_given_up_and_tried_again() -> None:
    """A publish waits for a limited time."""
    broker, reported = FakeBroker(), Reported()
    broker.acknowledges = False
    async with broker.serving() as port, by_mqtt(reported, mqtt(port, timeout_s=0.05)):
        await until(lambda: len(broker.client_ids) > 1)
        broker.acknowledges = True
        await until(lambda: MQTT_STATUS in broker.retained)


# After a failed handshake paho leaves its socket to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_broker_with_tls_is_verified_unless_that_is_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its certificate is from an authority that this machine does not know."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(CERTIFICATES / "valid.pem")
    broker, reported = FakeBroker(), Reported()
    async with broker.serving(tls=tls) as port:
        async with by_mqtt(reported, mqtt(port, scheme="mqtts")):
            await until(lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text)
        assert not broker.client_ids
        async with by_mqtt(reported, mqtt(port, scheme="mqtts", ssl_verify=False)):
            await until(lambda: MQTT_STATUS in broker.retained)
