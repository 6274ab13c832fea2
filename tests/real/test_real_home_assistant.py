"""The service between a real Home Assistant and real databases, started as users start it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.real.servers import Emitted, HomeAssistant, Server
from tests.service.process import Service, service

# The first test includes the start of Home Assistant, minutes on a busy machine.
pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

_QUICK = {
    "BATCH_TIMEOUT": "0.5",
    "WEBSOCKET_MAX_RETRY_DELAY": "1",
    "CIRCUIT_BREAKER_RESET_SECONDS": "1",
}


async def test_20_000_changes_arrive_once_in_both_databases(
    home_assistant: HomeAssistant, victoria: Server, tmp_path: Path
) -> None:
    """At 1,000 a second, the databases hold exactly what Home Assistant emitted."""
    environment = _reading(home_assistant, home_assistant.token) | {
        "EMBEDDED_STORE": "on",
        "INFLUXDB_URL": victoria.url,
        "INFLUXDB_TOKEN": "any",
    }

    async with service(tmp_path, environment) as running:
        await _connected(running)
        emitted = await _emitted(home_assistant, 20_000, rate=1_000)
        health = await _settled(running, emitted)
        stored = await _stored(running, emitted)
    exported = _exported(victoria)

    assert timedelta(seconds=25) > emitted[-1].last_updated - emitted[0].last_updated
    assert sorted(emitted) == sorted(stored)
    assert Counter((change.entity_id, float(change.state)) for change in emitted) == exported
    assert [sink["name"] for sink in health["sinks"]] == ["influxdb", "embedded"]
    assert health["status"] == "healthy", health["reasons"]


async def test_a_read_only_token_receives_events_and_registries(
    home_assistant: HomeAssistant, tmp_path: Path
) -> None:
    """The service needs no more rights than reading."""
    environment = _reading(home_assistant, home_assistant.read_only_token)

    async with service(tmp_path, environment) as running:
        await _connected(running)
        emitted = await _emitted(home_assistant, 200, rate=1_000)
        health = await _settled(running, emitted)
        stored = await _stored(running, emitted)

    assert sorted(emitted) == sorted(stored)
    assert health["status"] == "healthy", health["reasons"]
    assert health["discovery"]["devices"] > 0


async def test_a_wrong_token_makes_the_service_degraded_with_advice(
    home_assistant: HomeAssistant, tmp_path: Path
) -> None:
    """The service keeps running, and health says what to do."""
    async with service(tmp_path, _reading(home_assistant, "x" * 64)) as running:
        health = await running.until("/health", lambda health: health["status"] == "degraded")
        health = await running.until("/health", lambda health: health["reasons"])

    assert any("HOME_ASSISTANT_TOKEN" in reason for reason in health["reasons"]), health
    assert not health["subscription"]["is_subscribed"]


async def test_after_a_restart_of_home_assistant_every_event_arrives_once(
    home_assistant: HomeAssistant, tmp_path: Path
) -> None:
    """The service reconnects by itself, and subscribes once."""
    async with service(tmp_path, _reading(home_assistant, home_assistant.token)) as running:
        await _connected(running)
        before = await _emitted(home_assistant, 500, rate=1_000)
        await _settled(running, before)
        await asyncio.to_thread(home_assistant.restart)
        health = await _connected(running, times=2)
        after = await _emitted(home_assistant, 500, rate=1_000)
        await _settled(running, after)
        stored = await _stored(running, before + after)

    assert sorted(before + after) == sorted(stored)
    assert health["connection"]["successful_connections"] == 2


def _reading(home_assistant: HomeAssistant, token: str) -> dict[str, str]:
    return {"HOME_ASSISTANT_URL": home_assistant.url, "HOME_ASSISTANT_TOKEN": token, **_QUICK}


async def _connected(running: Service, *, times: int = 1) -> Any:
    """Wait until events stream over this connection, counted from 1, and Home Assistant runs.

    The registries are listed by then, so no event waits for them.
    """

    def met(health: Any) -> bool:
        connection, subscription = health["connection"], health["subscription"]
        return (
            connection["successful_connections"] >= times
            and subscription["is_subscribed"]
            and health["discovery"]["last_refresh"] is not None
        )

    return await running.until("/health", met, timeout_s=60)


async def _emitted(home_assistant: HomeAssistant, count: int, *, rate: int) -> list[Emitted]:
    return await asyncio.to_thread(partial(home_assistant.emit, count, rate=rate, sensors=200))


async def _settled(running: Service, emitted: Sequence[Emitted]) -> Any:
    """Wait until this many events were received and all of them are written."""

    def met(health: Any) -> bool:
        received = health["accounting"]["events"]["received"]
        settled = [sink["held"] == 0 for sink in health["sinks"]]
        written = [sink["points_written"] >= len(emitted) for sink in health["sinks"]]
        return received >= len(emitted) and all(settled) and all(written)

    return await running.until("/health", met, timeout_s=30)


async def _stored(running: Service, emitted: Sequence[Emitted]) -> list[Emitted]:
    """Return the generator's states in the embedded store since the first of these."""
    stored: list[Emitted] = []
    query = {"start": emitted[0].last_updated.isoformat(), "domain": "sensor", "limit": "1000"}
    while True:
        page = await running.get(f"/api/v1/events?{httpx.QueryParams(query)}")
        assert "events" in page, page
        stored += [
            Emitted(event["entity_id"], datetime.fromisoformat(event["time"]), event["state"])
            for event in page["events"]
            if event["entity_id"].startswith("sensor.load_")
        ]
        if page["next_cursor"] is None:
            return stored
        query["cursor"] = page["next_cursor"]


def _exported(victoria: Server) -> Counter[tuple[str, float]]:
    """Return how often VictoriaMetrics has each value of each of the generator's sensors."""
    httpx.get(f"{victoria.url}/internal/force_flush", timeout=30).raise_for_status()
    answer = httpx.get(
        f"{victoria.url}/api/v1/export",
        params={"match[]": '{__name__="home_assistant_events_value",entity_id=~"sensor.load_.*"}'},
        timeout=60,
    ).raise_for_status()
    return Counter(
        (series.metric["entity_id"], value)
        for series in _series(answer.content)
        for value in series.values
    )


class _Series(msgspec.Struct):
    metric: Mapping[str, str]
    values: list[float]


def _series(lines: bytes) -> Iterator[_Series]:
    yield from msgspec.json.Decoder(_Series).decode_lines(lines)
