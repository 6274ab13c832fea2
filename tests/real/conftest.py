"""Real dependencies, each started once for all tests here. A missing one fails the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.real.servers import HomeAssistant, Server, influxdb, victoria_metrics


@pytest.fixture(scope="session")
def home_assistant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HomeAssistant]:
    """Yield a real Home Assistant, onboarded and RUNNING."""
    with HomeAssistant(tmp_path_factory.mktemp("home-assistant")) as server:
        yield server


@pytest.fixture(scope="session")
def victoria(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a real VictoriaMetrics, initially empty."""
    with victoria_metrics(tmp_path_factory.mktemp("victoria-metrics")) as server:
        yield server


@pytest.fixture(scope="session")
def influx_1(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a real InfluxDB 1, initially empty."""
    with influxdb(tmp_path_factory.mktemp("influxdb")) as server:
        yield server
