"""The plain way, to compare with: json, a `Point` per event, the client's own write API.

This file is frozen: what it costs is the yardstick, so it is never made faster. It stands in
for a straightforward service, and leaves out what that would pay for the WebSocket.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.client.write.point import Point
from influxdb_client.client.write_api import SYNCHRONOUS

from simulator.fake_home_assistant import JsonObject

_BATCH_POINTS = 100

Entities = Mapping[str, JsonObject]


def write_plainly(frames: Iterable[bytes], *, entities: Entities, url: str) -> tuple[int, float]:
    """Write the events of all frames to a database; return how many, and the CPU seconds."""
    start = time.process_time()
    written = 0
    batch: list[object] = []
    with InfluxDBClient(url=url, token="benchmark", org="homeiq") as client:
        api = client.write_api(write_options=SYNCHRONOUS)
        for frame in frames:
            messages = json.loads(frame)
            for message in messages if isinstance(messages, list) else [messages]:
                batch.append(_point(message["event"], entities))
                written += 1
                if len(batch) == _BATCH_POINTS:
                    api.write(bucket="home_assistant_events", record=batch)
                    batch = []
        if batch:
            api.write(bucket="home_assistant_events", record=batch)
    return written, time.process_time() - start


def entities_by_id(rows: Sequence[JsonObject]) -> Entities:
    """Return the rows of the entity registry by entity_id."""
    return {str(row["entity_id"]): row for row in rows}


def _point(event: dict[str, Any], entities: Entities) -> object:
    data = event["data"]
    new, old = data["new_state"], data["old_state"]
    state = new or old
    entity_id = data["entity_id"]
    attributes = state["attributes"]
    row = entities.get(entity_id, {})
    point: Any = Point("home_assistant_events")  # type: ignore[no-untyped-call]
    point = (
        point.tag("entity_id", entity_id)
        .tag("domain", entity_id.split(".")[0])
        .tag("event_type", event["event_type"])
        .tag("device_id", row.get("device_id"))
        .tag("area_id", row.get("area_id"))
        .tag("integration", row.get("platform"))
        .tag("device_class", attributes.get("device_class"))
        .tag("unit_of_measurement", attributes.get("unit_of_measurement"))
        .field("friendly_name", attributes.get("friendly_name"))
        .field("attributes", json.dumps(attributes, ensure_ascii=False))
        .field("context_id", event["context"]["id"])
        .field("context_user_id", event["context"]["user_id"])
        .time(datetime.fromisoformat(event["time_fired"]))
    )
    if new is not None:
        point.field("state_value", new["state"])
        with contextlib.suppress(ValueError):
            point.field("value", float(new["state"]))
    if old is not None:
        point.field("previous_state", old["state"])
    if new is not None and old is not None:
        changed = datetime.fromisoformat(new["last_changed"])
        duration = changed - datetime.fromisoformat(old["last_changed"])
        point.field("duration_in_state_seconds", duration.total_seconds())
    return point
