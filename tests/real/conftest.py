"""Real dependencies, each started once for all tests here. A missing one fails the tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest
from playwright.async_api import Browser

from tests.real.browser import chromium
from tests.real.servers import (
    VICTORIA_RELEASES,
    HomeAssistant,
    Server,
    VictoriaRelease,
    influxdb,
    victoria_metrics,
)


@pytest.fixture(scope="session")
def home_assistant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HomeAssistant]:
    """Yield a real Home Assistant, onboarded and RUNNING."""
    with HomeAssistant(tmp_path_factory.mktemp("home-assistant")) as server:
        yield server


@pytest.fixture(scope="session")
def victoria_of(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[VictoriaRelease], Server]]:
    """Yield a function that returns a release of VictoriaMetrics, started at its first use."""
    with ExitStack() as running:

        @cache
        def started(release: VictoriaRelease) -> Server:
            folder = tmp_path_factory.mktemp("victoria-metrics")
            return running.enter_context(victoria_metrics(folder, release))

        yield started


@pytest.fixture(params=VICTORIA_RELEASES)
def victoria(
    request: pytest.FixtureRequest, victoria_of: Callable[[VictoriaRelease], Server]
) -> Server:
    """Return each real VictoriaMetrics in turn, initially empty."""
    return victoria_of(request.param)


@pytest.fixture(scope="session")
def influx_1(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a real InfluxDB 1, initially empty."""
    with influxdb(tmp_path_factory.mktemp("influxdb")) as server:
        yield server


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Yield a browser."""
    async with chromium() as started:
        yield started
