"""Health in Home Assistant: the values of the sensors, the notification, and what is sent when."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from app.health_report.mqtt_discovery import OFFLINE, MqttMessages
from app.health_report.schedule import Schedule
from app.health_report.sensors import (
    SENSORS,
    Reading,
    is_health_sensor,
    notice,
    prefix_of,
    readings,
)
from tests.fakes.snapshots import DEGRADED, HEALTHY, UNHEALTHY

(SINK,) = HEALTHY.sinks


def test_the_sensors_show_the_snapshot() -> None:
    """Two sinks that wait for the same point buffer it once."""
    behind = replace(SINK, name="embedded", held=7, last_write=None, state="waiting")

    shown = readings(replace(DEGRADED, sinks=(SINK, behind), gaps=replace(HEALTHY.gaps, open=1)))

    assert {key: reading.state for key, reading in shown.items()} == {
        "status": "degraded",
        "last_event_written": "2026-11-23T12:00:00+00:00",
        "points_buffered": "7",
        "gaps_open": "1",
        "dead_letters": "2",
        "database_reachable": "off",
    }
    assert shown["status"].attributes["reasons"] == [*DEGRADED.reasons]


def test_the_last_event_written_is_unknown_before_the_first() -> None:
    """A time in 1970 would be wrong."""
    shown = readings(replace(HEALTHY, sinks=(replace(SINK, last_write=None),)))

    assert shown["last_event_written"].state is None


@pytest.mark.parametrize(
    ("instance", "prefix"),
    [
        (None, "websocket_ingestion"),
        ("Cabin 2", "websocket_ingestion_cabin_2"),
        ("Jörgs Hütte!", "websocket_ingestion_jorgs_hutte"),
        ("家", "websocket_ingestion_42ee4c87"),
    ],
)
def test_entity_ids_name_the_instance(instance: str | None, prefix: str) -> None:
    """In the letters that an entity id may have."""
    assert prefix_of(instance) == prefix
    assert all(is_health_sensor(sensor.entity_id(prefix)) for sensor in SENSORS)


@pytest.mark.parametrize(
    ("entity_id", "is_own"),
    [
        ("sensor.websocket_ingestion_status", True),
        ("sensor.websocket_ingestion_status_2", True),
        ("sensor.websocket_ingestion_cabin_gaps_open", True),
        ("binary_sensor.websocket_ingestion_database_reachable", True),
        ("sensor.kitchen_status", False),
        ("sensor.websocket_ingestion_cpu_percent", False),
        ("binary_sensor.websocket_ingestion_running", False),
        ("sensor.websocket_ingestion_status_of_mine", False),
        ("sensor.my_websocket_ingestion_status", False),
        ("switch.websocket_ingestion_status", False),
    ],
)
def test_only_our_own_sensors_are_recognized(entity_id: str, is_own: bool) -> None:  # noqa: FBT001
    """With the number of a repeated id; not what Home Assistant shows of each app."""
    assert is_health_sensor(entity_id) is is_own


def test_an_outage_alone_puts_no_data_at_risk() -> None:
    """Points are buffered; dead letters and open gaps wait."""
    waiting = replace(SINK, state="waiting", reason="The database has not been taking writes.")

    assert notice(HEALTHY) is None
    assert notice(replace(DEGRADED, sinks=(waiting,))) is None


def test_the_notification_says_what_puts_data_at_risk() -> None:
    """With the reason of the sink that leads to it."""
    full = replace(HEALTHY.journal, bytes=81, max_bytes=100)
    waiting = replace(SINK, state="waiting", reason="InfluxDB has not been taking writes.")
    late = replace(HEALTHY, journal=full, sinks=(waiting,))
    undurable = replace(full, reason="Events are not durable.", losing=True)

    assert notice(replace(late, sinks=(SINK,))) is None
    assert notice(replace(late, journal=replace(full, bytes=79))) is None
    found = notice(late)
    assert found is not None
    assert found.kinds == ("nearly full",)
    assert found.text == (
        "The journal is 81 % full, and the database does not accept what is in it.\n\n"
        "InfluxDB has not been taking writes."
    )
    worse = notice(replace(late, journal=undurable))
    assert worse is not None
    assert worse.kinds == ("losing", "journal", "nearly full")
    stopping = notice(UNHEALTHY)
    assert stopping is not None
    assert "source loop ended" in stopping.text


def test_lost_dead_letters_are_a_risk_until_the_others_are_gone() -> None:
    """The count of lost ones never falls."""
    lost = replace(HEALTHY, dead_letters_discarded=3, dead_letters=100)

    assert notice(lost) is not None
    assert notice(replace(lost, dead_letters=0)) is None


def test_a_notification_is_another_one_when_the_risk_is_and_not_when_the_words_are() -> None:
    """Durations in the reasons change all the time."""
    now = replace(HEALTHY, journal=replace(HEALTHY.journal, reason="Broken for 1 min."))
    later = replace(HEALTHY, journal=replace(HEALTHY.journal, reason="Broken for 2 min."))
    worse = replace(later, journal=replace(later.journal, losing=True))

    assert notice(now) == notice(later)
    assert notice(later) != notice(worse)


class Clocked:
    """A schedule of one value, every 30 s, with a refresh after 300 s."""

    def __init__(self) -> None:
        self.schedule = Schedule[str](interval_s=30, refresh_s=300)

    def due(self, now_s: float, value: str, *, urgency: str = "", session: int = 0) -> bool:
        """Return whether the value is published at this time."""
        found = self.schedule.due({"a": value}, urgency=urgency, session=session, now_s=now_s)
        return found == {"a": value}


def test_a_value_that_changes_all_the_time_is_published_every_30_s() -> None:
    """And at once the first time."""
    clocked = Clocked()

    times = [second for second in range(100) if clocked.due(second, str(second))]

    assert times == [0, 30, 60, 90]


def test_a_value_that_does_not_change_is_published_again_after_300_s() -> None:
    """The receiver may have forgotten it."""
    clocked = Clocked()

    times = [second for second in range(700) if clocked.due(second, "same")]

    assert times == [0, 300, 600]


def test_a_change_of_urgency_publishes_what_changed_at_once() -> None:
    """And only that."""
    clocked = Clocked()
    clocked.due(0, "x")

    assert not clocked.due(1, "y")
    assert clocked.due(2, "y", urgency="degraded")
    assert not clocked.due(3, "z", urgency="degraded")
    assert not clocked.due(4, "y", urgency="healthy")


def test_a_new_session_publishes_everything() -> None:
    """Home Assistant forgets the states when it restarts."""
    clocked = Clocked()
    clocked.due(0, "x")

    assert clocked.due(1, "x", session=1)


def test_mqtt_discovery_describes_each_sensor() -> None:
    """A retained message for each, as the MQTT integration reads it."""
    messages = MqttMessages(instance="Cabin")
    found = {message.topic: json.loads(message.payload) for message in messages.discovery()}

    assert list(found) == [
        f"homeassistant/{sensor.domain}/websocket_ingestion_cabin/{sensor.key}/config"
        for sensor in SENSORS
    ]
    reachable = found[
        "homeassistant/binary_sensor/websocket_ingestion_cabin/database_reachable/config"
    ]
    assert reachable["unique_id"] == "websocket_ingestion_cabin_database_reachable"
    assert reachable["payload_on"] == "on"
    assert reachable["availability_topic"] == messages.availability(OFFLINE).topic
    states = messages.states({"database_reachable": Reading(state="off")})
    assert [state.topic for state in states] == [reachable["state_topic"]]
    assert {each["device"]["name"] for each in found.values()} == {"websocket-ingestion Cabin"}
