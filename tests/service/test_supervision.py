"""A loop that ends stops the process in order; memory over its limit raises an alarm."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.container import Container
from app.main import running
from app.runtime.supervisor import Loop, Supervisor
from app.settings import load_settings
from tests.fakes.influx import HANG, FakeInflux
from tests.fakes.still_house import StillHouse
from tests.service.driver import WHY
from tests.service.process import service

LOOPS = (
    "source",
    "discovery",
    "backfill",
    "batcher",
    "deliver[influxdb]",
    "deliver[embedded]",
    "journal",
    "memory",
    "retention",
)
ENDS_WITHIN_S = 5.0

_UVICORN = re.compile(r"Uvicorn running on (http://\S+)")


@pytest.fixture
def settings(influx_settings: dict[str, str]) -> dict[str, str]:
    """Return settings with both sinks, so that every loop runs."""
    return influx_settings | {
        "EMBEDDED_STORE": "on",
    }


def is_connected(health: Any) -> bool:
    """Return whether the service is subscribed to events."""
    return bool(health["subscription"]["is_subscribed"])


async def test_every_supervised_loop_is_tested(
    settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new loop must be added to LOOPS."""
    names: list[str] = []

    class RecordingSupervisor(Supervisor):
        @contextlib.asynccontextmanager
        async def running(self, loops: Mapping[str, Loop], **rest: Any) -> AsyncIterator[None]:
            names.extend(loops)
            async with super().running(loops, **rest):
                yield

    for name, value in {**settings, "DATA_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    container = Container(settings=load_settings(None))
    with container.supervisor.override(RecordingSupervisor(grace_s=1.0)):
        async with running(container):
            pass

    assert sorted(names) == sorted(LOOPS)


async def test_the_thread_switch_interval_is_short_while_the_service_runs(
    settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A committing thread must not block the event loop for a whole default interval."""
    before_s = sys.getswitchinterval()
    for name, value in {**settings, "DATA_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)

    async with running(Container(settings=load_settings(None))):
        during_s = sys.getswitchinterval()

    assert during_s < before_s / 10
    assert sys.getswitchinterval() == before_s


@pytest.mark.parametrize("loop", LOOPS)
async def test_a_loop_that_ends_early_stops_the_process(
    settings: dict[str, str], tmp_path: Path, loop: str
) -> None:
    """Status 1 within 5 s, the reason as the last log line, and the journal closed."""
    command = ("-m", "tests.service.driver", "--end", loop, "--", "app", "run")
    async with service(tmp_path, settings, command=command) as running:
        await running.until("/health", is_connected)
        begun = time.monotonic()
        status = await running.stop(signal.SIGUSR1)
        took_s = time.monotonic() - begun

    last = running.output.read_text().splitlines()[-1]
    assert status == 1
    assert last.endswith(f"Stopped with status 1: the {loop} loop ended: RuntimeError: {WHY}")
    assert took_s <= ENDS_WITHIN_S
    assert not (tmp_path / "data" / "journal.db-wal").exists()


async def test_a_hanging_database_and_a_slow_client_do_not_delay_the_exit(
    settings: dict[str, str], house: StillHouse, influx: FakeInflux, tmp_path: Path
) -> None:
    """Of a failed loop, even when SHUTDOWN_TIMEOUT is a minute."""
    influx.script.append(HANG)
    command = ("-m", "tests.service.driver", "--end", "journal", "--", "app", "run")
    patient = settings | {"SHUTDOWN_TIMEOUT": "60"}
    async with service(tmp_path, patient, command=command) as running:
        await running.until("/health", is_connected)
        house.set_state("sensor.counter", "1")
        await influx.wait_for(lambda influx: influx.requests != [])
        host, _, port = running.url.removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /api/v1/dead-letters/retry HTTP/1.1\r\nHost: localhost\r\n")
        writer.write(b"Content-Length: 100\r\n\r\n{")
        await writer.drain()
        await running.get("/health")  # answered only after the other request arrived
        begun = time.monotonic()
        status = await running.stop(signal.SIGUSR1)
        took_s = time.monotonic() - begun
        writer.transport.abort()

    assert status == 1
    assert took_s <= ENDS_WITHIN_S


async def test_under_uvicorn_an_ended_loop_gives_a_nonzero_status(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """After the journal is closed, with the reason in the log."""
    command = ("-m", "tests.service.driver", "--end", "batcher", "--")
    uvicorn = ("uvicorn", "app.main:app", "--port", "0")
    async with service(
        tmp_path, settings, command=(*command, *uvicorn), listening=_UVICORN
    ) as running:
        await running.until("/health", is_connected)
        begun = time.monotonic()
        status = await running.stop(signal.SIGUSR1)
        took_s = time.monotonic() - begun

    assert status != 0
    assert f"The batcher loop ended: RuntimeError: {WHY}" in running.output.read_text()
    assert took_s <= ENDS_WITHIN_S
    assert not (tmp_path / "data" / "journal.db-wal").exists()


async def test_memory_over_its_limit_raises_an_alarm(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """Once in the log, and in /health and /metrics while it lasts; the service stays ready."""
    async with service(tmp_path, settings | {"MAX_MEMORY_MB": "1"}) as running:
        health = await running.until("/health", is_connected)
        metrics = await running.text("/metrics")
        async with httpx.AsyncClient(base_url=running.url) as client:
            ready = await client.get("/health/ready")
        await running.stop()

    alarms = [line for line in running.output.read_text().splitlines() if "MAX_MEMORY_MB" in line]
    (reason,) = health["reasons"]
    assert health["status"] == "degraded"
    assert re.fullmatch(r"Memory is \d+ MB, over MAX_MEMORY_MB = 1\. Raise .*", reason)
    assert len(alarms) == 1
    assert "ERROR" in alarms[0]
    assert "ingest_memory_limit_bytes 1e+06" in metrics
    assert 'ingest_health_status{state="degraded"} 1.0' in metrics
    assert ready.status_code == 200
