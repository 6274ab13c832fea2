"""The messages by which Home Assistant's MQTT integration creates the sensors. Pure.

https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery, as of the versions before
2024.12, too: one message for each sensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from app import __version__
from app.health_report.sensors import SENSORS, HealthSensor, Reading, prefix_of, title_of

ONLINE, OFFLINE = "online", "offline"
_PROJECT_URL = "https://github.com/websocket-ingestion/websocket-ingestion"
_NAME = "websocket-ingestion"


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttMessage:
    """A message that the broker retains."""

    topic: str
    payload: str


class MqttMessages:
    """The messages of one service; `instance` distinguishes several at one broker."""

    def __init__(self, *, instance: str | None) -> None:
        self.prefix = prefix_of(instance)
        self._title = title_of(instance)

    def availability(self, payload: str) -> MqttMessage:
        """Return the message that makes all sensors available or unavailable."""
        return MqttMessage(topic=self._topic("availability"), payload=payload)

    def discovery(self) -> list[MqttMessage]:
        """Return the messages that create the sensors."""
        return [
            MqttMessage(
                topic=f"homeassistant/{sensor.domain}/{self.prefix}/{sensor.key}/config",
                payload=json.dumps(self._discovered(sensor)),
            )
            for sensor in SENSORS
        ]

    def states(self, values: Mapping[str, Reading]) -> list[MqttMessage]:
        """Return the messages with these values."""
        return [
            MqttMessage(
                topic=self._topic(key),
                payload=json.dumps({"state": reading.state, "attributes": {**reading.attributes}}),
            )
            for key, reading in values.items()
        ]

    def _topic(self, name: str) -> str:
        return f"{_NAME}/{self.prefix}/{name}"

    def _discovered(self, sensor: HealthSensor) -> dict[str, object]:
        payloads = {"payload_on": "on", "payload_off": "off"}
        return {
            "name": sensor.name,
            "unique_id": f"{self.prefix}_{sensor.key}",
            "default_entity_id": sensor.entity_id(self.prefix),
            "state_topic": self._topic(sensor.key),
            "value_template": "{{ value_json.state }}",
            "json_attributes_topic": self._topic(sensor.key),
            "json_attributes_template": "{{ value_json.attributes | tojson }}",
            "availability_topic": self._topic("availability"),
            "entity_category": "diagnostic",
            **sensor.description,
            **(payloads if sensor.domain == "binary_sensor" else {}),
            "device": {
                "identifiers": [self.prefix],
                "name": self._title,
                "manufacturer": _NAME,
                "sw_version": __version__,
            },
            "origin": {"name": _NAME, "sw_version": __version__, "support_url": _PROJECT_URL},
        }
