"""Fixtures: a home where only the test changes states, InfluxDB, and settings for both."""

from collections.abc import AsyncIterator

import pytest

from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.influx import FakeInflux
from tests.fakes.still_house import StillHouse
from tests.service.process import TOKEN


@pytest.fixture
def house() -> StillHouse:
    """Return a home whose states only the test changes."""
    return StillHouse()


@pytest.fixture
async def home_assistant(house: StillHouse) -> AsyncIterator[FakeHomeAssistant]:
    """Serve that home."""
    async with FakeHomeAssistant(house, token=TOKEN) as fake:
        house.fire = fake.fire
        yield fake


@pytest.fixture
def environment(home_assistant: FakeHomeAssistant) -> dict[str, str]:
    """Return the settings that connect to that home."""
    return {
        "HOME_ASSISTANT_URL": home_assistant.url,
        "HOME_ASSISTANT_TOKEN": TOKEN,
        # The time in this home is fictitious; tests of history use a real clock instead.
        "BACKFILL_ENABLED": "false",
    }


@pytest.fixture
async def influx() -> AsyncIterator[FakeInflux]:
    """Serve a healthy InfluxDB 2."""
    async with FakeInflux().serving() as fake:
        yield fake


@pytest.fixture
def influx_settings(environment: dict[str, str], influx: FakeInflux) -> dict[str, str]:
    """Return the settings that connect to both, with short waits."""
    return environment | {
        "INFLUXDB_URL": influx.url,
        "INFLUXDB_TOKEN": influx.token,
        "INFLUXDB_API": "v2",
        "BATCH_TIMEOUT": "0.1",
    }
