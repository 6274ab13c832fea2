"""The service with an InfluxDB that is down or rejects points: nothing is lost."""

import re
import signal
import socket
from pathlib import Path

import httpx
import pytest

from tests.fakes.influx import FakeInflux
from tests.fakes.still_house import StillHouse
from tests.service.process import service

_STATE = re.compile(rb'state_value="(\d+)"')


@pytest.fixture
def settings(environment: dict[str, str], influx: FakeInflux) -> dict[str, str]:
    """Return settings for Home Assistant and InfluxDB, with short waits."""
    return environment | {
        "INFLUXDB_URL": influx.url,
        "INFLUXDB_TOKEN": influx.token,
        "BATCH_TIMEOUT": "0.1",
    }


def states(influx: FakeInflux) -> list[int]:
    """Return the states that were written, as numbers, in the order of arrival."""
    return [int(number) for line in influx.lines for number in _STATE.findall(line)]


def count_up(house: StillHouse, numbers: range) -> None:
    """Set one entity to each number."""
    for number in numbers:
        house.set_state("sensor.counter", str(number))


async def test_every_change_is_written_once_and_in_order(
    settings: dict[str, str], influx: FakeInflux, house: StillHouse, tmp_path: Path
) -> None:
    """The plain case; without an embedded store the events API answers 409."""
    async with service(tmp_path, settings) as running:
        await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
        count_up(house, range(1_000))
        health = await running.until(
            "/health", lambda health: health["sinks"][0]["points_written"] == 1_000
        )
        problem = await running.get("/api/v1/events")

    assert states(influx) == list(range(1_000))
    assert [sink["name"] for sink in health["sinks"]] == ["influxdb"]
    assert problem["status"] == 409
    assert "EMBEDDED_STORE" in problem["detail"]


@pytest.mark.long
async def test_a_kill_while_the_database_is_unavailable_loses_nothing_committed(
    settings: dict[str, str], house: StillHouse, influx: FakeInflux, tmp_path: Path
) -> None:
    """Points that /health reported as journaled before the kill are written after it."""
    unreachable = settings | {"INFLUXDB_URL": "http://127.0.0.1:9"}
    async with service(tmp_path, unreachable) as first:
        await first.until("/health", lambda health: health["subscription"]["is_subscribed"])
        count_up(house, range(500))
        # The first request may fail only after the last event was journaled.
        health = await first.until(
            "/health",
            lambda health: (
                (health["accounting"]["events"]["journaled"], health["status"]) == (500, "degraded")
            ),
        )
        await first.stop(signal.SIGKILL)

    assert health["sinks"][0]["points_written"] == 0
    assert "InfluxDB" in " ".join(health["reasons"])

    async with service(tmp_path, settings) as second:
        health = await second.until("/health", lambda health: health["sinks"][0]["held"] == 0)

    assert states(influx) == list(range(500))
    assert health["sinks"][0]["points_written"] == 500


async def test_every_point_waits_until_a_wrong_token_is_fixed(
    settings: dict[str, str], house: StillHouse, influx: FakeInflux, tmp_path: Path
) -> None:
    """No point becomes a dead letter, and /health names the variable."""
    wrong = settings | {"INFLUXDB_TOKEN": "wrong-token"}
    async with service(tmp_path, wrong) as first:
        await first.until("/health", lambda health: health["subscription"]["is_subscribed"])
        count_up(house, range(50))
        health = await first.until(
            "/health", lambda health: health["sinks"][0]["state"] == "holding"
        )
        metrics = await first.text("/metrics")
        status = await first.stop()

    assert status == 0
    assert "INFLUXDB_TOKEN" in " ".join(health["reasons"])
    assert "ingest_dead_letters 0.0" in metrics
    assert "wrong-token" not in first.output.read_text()

    async with service(tmp_path, settings) as second:
        await second.until("/health", lambda health: health["status"] == "healthy")
        await second.until("/health", lambda health: health["sinks"][0]["held"] == 0)

    assert states(influx) == list(range(50))


async def test_capture_does_not_wait_for_the_detection_of_the_database(
    settings: dict[str, str], house: StillHouse, tmp_path: Path
) -> None:
    """INFLUXDB_API=auto detects it before the first write; meanwhile events become durable."""
    with socket.create_server(("127.0.0.1", 0)) as silent_server:
        url = f"http://127.0.0.1:{silent_server.getsockname()[1]}"
        unknown = settings | {"INFLUXDB_URL": url, "INFLUXDB_TOKEN": "", "SHUTDOWN_TIMEOUT": "2"}
        async with service(tmp_path, unknown) as running:
            await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
            count_up(house, range(50))
            health = await running.until(
                "/health", lambda health: health["accounting"]["events"]["journaled"] == 50
            )
            status = await running.stop()

    assert health["sinks"][0]["held"] == 50
    assert status == 0


async def test_a_rejected_point_becomes_a_dead_letter_that_can_be_retried(
    settings: dict[str, str], house: StillHouse, influx: FakeInflux, tmp_path: Path
) -> None:
    """The other points are written at once; a retry writes it when the database accepts it."""
    influx.refuses = lambda line: "no sevens" if b'state_value="7"' in line else None
    async with service(tmp_path, settings) as running:
        await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
        count_up(house, range(20))
        health = await running.until(
            "/health", lambda health: health["sinks"][0]["points_written"] == 19
        )
        letters = await running.until("/api/v1/dead-letters", lambda letters: letters["count"] == 1)
        influx.refuses = lambda _: None
        async with httpx.AsyncClient(base_url=running.url) as client:
            retried = await client.post("/api/v1/dead-letters/retry")
        await running.until("/health", lambda health: health["sinks"][0]["points_written"] == 20)
        left = await running.get("/api/v1/dead-letters")

    assert health["sinks"][0]["held"] == 0
    assert "no sevens" in str(letters)
    assert retried.status_code == 200
    assert left["count"] == 0
    assert states(influx) == [*range(7), *range(8, 20), 7]


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_new"])
async def test_a_journal_in_memory_works_and_is_reported_as_not_durable(
    settings: dict[str, str], house: StillHouse, influx: FakeInflux, tmp_path: Path, overflow: str
) -> None:
    """JOURNAL=memory: the same pipeline, and /health reports that a crash loses points."""
    memory = settings | {"JOURNAL": "memory", "INFLUXDB_OVERFLOW_STRATEGY": overflow}
    async with service(tmp_path, memory) as running:
        await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
        count_up(house, range(100))
        health = await running.until(
            "/health", lambda health: health["sinks"][0]["points_written"] == 100
        )
        status = await running.stop()

    assert status == 0
    assert health["journal"]["durable"] is False
    assert states(influx) == list(range(100))
    assert not (tmp_path / "data" / "journal.db").exists()


async def test_points_that_a_database_forgets_in_a_restart_are_sent_again(
    environment: dict[str, str], house: StillHouse, tmp_path: Path
) -> None:
    """A database that acknowledges before it stores, as VictoriaMetrics does."""
    async with FakeInflux(version="v1").serving() as server:
        server.started_at = 1_000
        settings = environment | {
            "INFLUXDB_URL": server.url,
            "INFLUXDB_API": "v1",
            "INFLUXDB_FLUSH_INTERVAL": "2",
            "BATCH_TIMEOUT": "0.1",
        }
        async with service(tmp_path, settings) as running:
            await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
            count_up(house, range(100))
            await server.wait_for(lambda fake: len(fake.lines) == 100)
            server.lines.clear()
            server.started_at = 2_000
            count_up(house, range(100, 200))
            health = await running.until(
                "/health", lambda health: health["sinks"][0]["points_written"] == 200
            )

    assert sorted(set(states(server))) == list(range(200))
    assert health["status"] == "healthy"


async def test_points_too_old_for_the_database_block_nothing_and_are_reported(
    settings: dict[str, str], influx: FakeInflux, house: StillHouse, tmp_path: Path
) -> None:
    """Points older than the retention are dropped and counted, until the retention is raised."""
    influx.oldest_ns = 2**62
    async with service(tmp_path, settings) as running:
        await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
        count_up(house, range(300))
        health = await running.until(
            "/health", lambda health: "older than its retention" in " ".join(health["reasons"])
        )
        await running.until(
            "/health",
            lambda health: (
                health["subscription"]["total_events_received"] == 300
                and health["journal"]["pending_points"] == health["sinks"][0]["held"] == 0
            ),
        )
        influx.oldest_ns = None
        count_up(house, range(300, 400))
        await running.until("/health", lambda health: health["sinks"][0]["points_written"] == 100)
        metrics = await running.text("/metrics")

    assert states(influx) == list(range(300, 400))
    assert health["sinks"][0]["state"] == "ok"
    assert 'ingest_sink_points_dropped_total{cause="retention",sink="influxdb"} 300.0' in metrics
    assert 'ingest_sink_points_dropped_total{sink="influxdb"} 0.0' in metrics
