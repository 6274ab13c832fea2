"""A long outage of every dependency logs few lines, with its duration and failure count."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.influx import FakeInflux, error
from tests.fakes.still_house import StillHouse
from tests.service.process import service

ATTEMPTS = 100


@pytest.mark.long
async def test_a_long_outage_logs_few_lines(
    tmp_path: Path,
    environment: dict[str, str],
    home_assistant: FakeHomeAssistant,
    house: StillHouse,
) -> None:
    """A hundred refused attempts are one line, and one more at the recovery."""
    influx = FakeInflux()
    async with influx.serving():
        impatient = {
            **environment,
            "INFLUXDB_URL": influx.url,
            "INFLUXDB_TOKEN": influx.token,
            "DATA_API_URL": "http://127.0.0.1:9",
            "BATCH_TIMEOUT": "0.05",
            "WEBSOCKET_MAX_RETRY_DELAY": "0.01",
            "CIRCUIT_BREAKER_THRESHOLD": "100000",
        }
        async with service(tmp_path, impatient) as running:
            await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
            influx.script.extend([error(503, "starting")] * 3)
            house.set_state("sensor.a", "1")
            await running.until("/health", lambda health: health["sinks"][0]["state"] == "waiting")
            before = len(running.output.read_text().splitlines())

            home_assistant.refusing = True
            await home_assistant.drop()
            await running.until(
                "/health",
                lambda health: health["connection"]["failed_connections"] >= ATTEMPTS,
                timeout_s=60,
            )
            await influx.wait_for(lambda influx: len(influx.points()) == 1, within_s=30)
            lines = running.output.read_text().splitlines()[before:]
            home_assistant.refusing = False
            await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
            house.set_state("sensor.a", "2")
            ended = re.compile(r"Home Assistant streams events again \(failed ([\d,]+) times in ")
            await running.until(
                "/health", lambda _: ended.search(running.output.read_text()) is not None
            )

    text = running.output.read_text()
    failed = ended.search(text)
    assert failed is not None
    assert int(failed[1].replace(",", "")) >= ATTEMPTS
    assert len(lines) <= 15, "\n".join(lines)
    assert len(re.findall("No connection to Home Assistant", text)) <= 3
    assert len(re.findall("InfluxDB has not been taking writes", text)) == 1
    assert re.search(r"InfluxDB takes writes again \(failed 3 times in \d+ s\)", text)
    assert len(re.findall("The data API at .* does not take rows", text)) <= 1
