"""schemathesis reads /openapi.json and tries every route: no 500, no undocumented response."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from simulator.fake_home_assistant import FakeHomeAssistant
from simulator.home import SimulatedHome
from tests.fakes.influx import FakeInflux
from tests.service.process import TOKEN, Service, service

# It needs 20 s of processor time, which can take minutes on a busy machine.
pytestmark = pytest.mark.timeout(300)

KEY = "correct-horse-battery-staple"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "missing_required_header",
    "unsupported_method",
)


@pytest.fixture
async def influx() -> AsyncIterator[FakeInflux]:
    """Serve an InfluxDB that permanently rejects some points."""
    fake = FakeInflux()
    fake.refuses = lambda line: "no lights here" if b"domain=light" in line else None
    async with fake.serving():
        yield fake


@pytest.fixture
async def running(tmp_path: Path, influx: FakeInflux) -> AsyncIterator[Service]:
    """Return a service with a key, and with events, dead letters and a catalog to serve."""
    moments = [1_795_435_200.0]
    house = SimulatedHome(tmp_path / "house", clock=lambda: moments[-1])
    async with FakeHomeAssistant(house, token=TOKEN) as home_assistant:
        settings = {
            "HOME_ASSISTANT_URL": home_assistant.url,
            "HOME_ASSISTANT_TOKEN": TOKEN,
            "INFLUXDB_URL": influx.url,
            "INFLUXDB_TOKEN": influx.token,
            "EMBEDDED_STORE": "on",
            "API_KEY": KEY,
            "BATCH_TIMEOUT": "0.1",
        }
        async with service(tmp_path, settings) as started:
            await started.until("/health", lambda health: health["discovery"]["last_refresh"])
            house.wake()
            for _ in range(400):
                moments.append(moments[-1] + 5)
                for event in house.advance():
                    home_assistant.fire(event)
                await asyncio.sleep(0)  # else Home Assistant disconnects it as a slow client
            await started.until(
                "/health",
                lambda health: (
                    any("dead letters" in reason for reason in health["reasons"])
                    and all(sink["points_written"] for sink in health["sinks"])
                ),
            )
            yield started


@pytest.mark.long
async def test_every_route_conforms_to_its_openapi_description(
    running: Service, tmp_path: Path
) -> None:
    """With the key and without it, on a service that has data to serve."""
    with_key, without = await asyncio.gather(
        _schemathesis(
            running.url,
            tmp_path / "with",
            *("--header", f"Authorization: Bearer {KEY}"),
            *("--phases", "coverage,fuzzing", "--max-examples", "5"),
        ),
        # Without a key every request is refused alike, so the examples are enough.
        _schemathesis(running.url, tmp_path / "without", "--phases", "examples"),
    )
    health = await running.get("/health")

    assert not with_key, with_key
    assert not without, without
    assert health["status"] != "unhealthy"
    assert "Traceback" not in running.output.read_text()


async def _schemathesis(url: str, folder: Path, *more: str) -> str:
    """Test the API at a URL and return the report of failures; empty when there are none."""
    folder.mkdir()
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        "run",
        f"{url}/openapi.json",
        *("--checks", ",".join(CHECKS)),
        # CPython 3.11 breaks when threads parse at the same time (its issue 106905).
        *("--workers", "1"),
        # Deterministic: every machine finds the same failures.
        *("--seed", "1", "--generation-deterministic"),
        "--continue-on-failure",
        "--no-color",
        *more,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return "" if process.returncode == 0 else output.decode(errors="replace")
