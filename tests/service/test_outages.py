"""Every fault of a database, under load: nothing lost, each point once, and /health names it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import psutil
import pytest

from benchmarks.outage import Outage, measure, misses
from tests.fakes import replies as fake
from tests.fakes.influx import FakeInflux
from tests.fakes.still_house import StillHouse
from tests.service.pace import Count, changing
from tests.service.process import Service, service

CHANGES_PER_S = 500
RSS_MAX_MB = 200
RSS_GROWTH_MB = 40
CERTIFICATES = Path(fake.__file__).with_name("certificates")

WAITS = r"InfluxDB has not been taking writes for \d+ s: {}. Points wait in the journal"
HOLDS = r"InfluxDB has been refusing writes for \d+ s: {}"

_STATE = re.compile(rb'state_value="(\d+)"')


@dataclass(frozen=True, slots=True)
class Fault:
    """What the database does to every write, and the sentence a person reads then."""

    reply: fake.Reply
    sentence: str | None
    """A pattern; None where points still go through, only slower."""


def retry_after(text: str) -> fake.Reply:
    """Return a 429 that says when to come back."""
    return fake.error(429, "slow down", code="too many requests", Retry_After=text)


def in_a_second() -> str:
    """Return a moment as HTTP writes it."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)


NOT_INFLUXDB = "is not InfluxDB's answer to a write; check INFLUXDB_URL"
FAULTS = {
    "401": Fault(fake.UNAUTHORIZED, HOLDS.format("401 unauthorized access. Check INFLUXDB_TOKEN")),
    "403": Fault(
        fake.error(403, "no write permission", code="forbidden"),
        HOLDS.format("403 no write permission. .*INFLUXDB_TOKEN.*INFLUXDB_BUCKET"),
    ),
    "404": Fault(
        fake.Reply(status=404, body="404 page not found"),
        HOLDS.format("404 404 page not found. Check INFLUXDB_URL"),
    ),
    "429 in seconds": Fault(retry_after("1"), WAITS.format("429 slow down")),
    "429 as a date": Fault(retry_after(in_a_second()), WAITS.format("429 slow down")),
    "503": Fault(fake.error(503, "starting", code="unavailable"), WAITS.format("503 starting")),
    "302": Fault(
        fake.Reply(status=302, headers={"Location": "/login"}),
        WAITS.format(f"302 to /login {NOT_INFLUXDB}"),
    ),
    "200": Fault(
        fake.Reply(status=200, body="OK"), WAITS.format(f"200 instead of 204 {NOT_INFLUXDB}")
    ),
    "HTML 500": Fault(fake.HTML_500, WAITS.format("500 500 Internal Server Error Oh no")),
    "reset": Fault(fake.RESET, WAITS.format(".*(reset|[Dd]isconnected).*")),
    "reset after storing": Fault(
        fake.Reply(act="reset", keeps=True), WAITS.format(".*(reset|[Dd]isconnected).*")
    ),
    "hang": Fault(fake.HANG, WAITS.format("no answer in time")),
    "half an answer": Fault(fake.Reply(act="half", keeps=True), WAITS.format(".+")),
    "a body cut short": Fault(fake.BODY_CUT_SHORT, WAITS.format(".+")),
    "slow": Fault(fake.Reply(act="slow", keeps=True), None),
}


@pytest.fixture
def settings(environment: dict[str, str]) -> dict[str, str]:
    """Return settings with little patience, so that a fault shows at once."""
    return environment | {
        "INFLUXDB_TOKEN": FakeInflux().token,
        "INFLUXDB_API": "v2",
        "INFLUXDB_TIMEOUT": "1",
        "BATCH_TIMEOUT": "0.1",
        "CIRCUIT_BREAKER_RESET_SECONDS": "1",
    }


async def says(running: Service, sentence: str) -> None:
    """Wait until /health says it, and calls the service degraded and ready."""
    health = await running.until(
        "/health",
        lambda health: any(re.match(sentence, reason) for reason in health["reasons"]),
    )
    ready = await running.get("/health/ready")
    assert (health["status"], ready["status"]) == ("degraded", "ready")


async def takes_writes(running: Service) -> None:
    """Wait until points go through again and nothing is wrong any more."""
    before = (await running.get("/health"))["sinks"][0]["points_written"]
    await running.until(
        "/health",
        lambda health: (
            health["status"] == "healthy" and health["sinks"][0]["points_written"] > before
        ),
    )


def asked_again(requests: int) -> Callable[[FakeInflux], bool]:
    """Return whether there were more requests."""
    return lambda influx: len(influx.requests) > requests


async def all_received(running: Service, count: Count) -> None:
    """Wait until everything that changed is durable."""
    await running.until(
        "/health", lambda h: h["accounting"]["events"]["journaled"] == count.changes
    )


async def assert_all_is_there(running: Service, influx: FakeInflux, changes: int) -> None:
    """Hold the database against what changed, and the books against each other."""
    with contextlib.suppress(TimeoutError):  # what is missing then is shown below
        await influx.wait_for(lambda influx: len(set(influx.lines)) >= changes, within_s=20)
    health = await running.until("/health", lambda health: health["sinks"][0]["held"] == 0)
    metrics = await running.text("/metrics")
    stored = [int(number) for line in influx.lines for number in _STATE.findall(line)]
    assert list(dict.fromkeys(stored)) == list(range(changes)), "lost, or out of order"
    assert len(influx.points()) == changes, "a point is there twice"
    assert health["accounting"]["events"]["dropped"] == {}
    assert 'ingest_sink_points_dropped_total{sink="influxdb"} 0.0' in metrics
    assert "ingest_dead_letters 0.0" in metrics


async def weather(running: Service, influx: FakeInflux, faults: Sequence[str]) -> None:
    """Let the database have one fault after the other, at last an absurd Retry-After for good."""
    await takes_writes(running)
    process = psutil.Process(running.process.pid)
    rss_at_first = process.memory_info().rss
    for name in faults:
        fault = FAULTS[name]
        influx.fault = fault.reply
        if fault.sentence is not None:
            await says(running, fault.sentence)
        else:
            await influx.wait_for(asked_again(len(influx.requests) + 1))
        influx.fault = None
        await takes_writes(running)
        assert process.memory_info().rss < RSS_MAX_MB * 1e6, name
    influx.max_body_bytes = 600
    await influx.wait_for(lambda influx: 413 in influx.statuses[-3:])
    influx.max_body_bytes = None
    await takes_writes(running)
    influx.fault = retry_after("99999999999")
    await says(running, WAITS.format("429 slow down"))
    assert process.memory_info().rss - rss_at_first < RSS_GROWTH_MB * 1e6


@pytest.mark.timeout(300)  # sixteen faults; on a busy machine each takes its time
async def test_no_database_fault_loses_a_point(
    settings: dict[str, str], house: StillHouse, tmp_path: Path
) -> None:
    """One after the other, 500 events a second all the while; memory stays where it was.

    Half of them with each of two services, to save time. Then a restart, because nobody waits
    for the five minutes that an absurd Retry-After may hold.
    """
    names, count = list(FAULTS), Count()
    halves = [names[::2], names[1::2]]
    folders = [tmp_path / "a", tmp_path / "b"]
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(FakeInflux().serving()) for _ in halves]
        reached = [settings | {"INFLUXDB_URL": server.url} for server in servers]
        async with contextlib.AsyncExitStack() as life:
            services = []
            for folder, environment in zip(folders, reached, strict=True):
                folder.mkdir()
                services.append(await life.enter_async_context(service(folder, environment)))
            for running in services:
                await running.until("/health", lambda h: h["subscription"]["is_subscribed"])
            async with changing(house, per_s=CHANGES_PER_S, count=count):
                await asyncio.gather(*map(weather, services, servers, halves))
            for running in services:
                await all_received(running, count)
                assert await running.stop() == 0

        for folder, environment, server in zip(folders, reached, servers, strict=True):
            server.fault = None
            async with service(folder, environment) as running:
                await assert_all_is_there(running, server, count.changes)


async def test_an_unreachable_database_loses_no_point(
    settings: dict[str, str], house: StillHouse, tmp_path: Path
) -> None:
    """Its name is not known, its certificate has expired, nobody listens: then all is well."""
    count, influx = Count(), FakeInflux()
    trusting = settings | {"SSL_CERT_FILE": str(CERTIFICATES / "authority.pem")}
    nowhere = {"INFLUXDB_URL": "https://influxdb.invalid:8086"}
    async with service(tmp_path, trusting | nowhere) as running:
        await running.until("/health", lambda h: h["subscription"]["is_subscribed"])
        async with changing(house, per_s=CHANGES_PER_S, count=count):
            await says(running, WAITS.format(".*influxdb.invalid.*"))
        await all_received(running, count)
        assert await running.stop() == 0

    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(influx.serving(tls=tls("expired")))
        port = int(influx.url.rpartition(":")[2])
        async with service(tmp_path, trusting | {"INFLUXDB_URL": influx.url}) as running:
            await running.until("/health", lambda h: h["subscription"]["is_subscribed"])
            async with changing(house, per_s=CHANGES_PER_S, count=count):
                await says(running, WAITS.format(".*certificate has expired.*"))
                await stack.aclose()
                await says(running, WAITS.format(".*nothing listens there"))
                await stack.enter_async_context(influx.serving(port=port, tls=tls("valid")))
                await takes_writes(running)
            await assert_all_is_there(running, influx, count.changes)


async def test_the_service_is_live_and_ready_without_its_dependencies(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """Nobody should restart it for what others do; /health says what is the matter."""
    alone = {"HOME_ASSISTANT_URL": "http://127.0.0.1:9", "INFLUXDB_URL": "http://127.0.0.1:9"}
    async with service(tmp_path, settings | alone) as running:
        health = await running.until("/health", lambda health: health["status"] == "degraded")
        live, ready = await running.get("/health/live"), await running.get("/health/ready")

    assert (live["status"], ready["status"]) == ("alive", "ready")
    assert "Home Assistant" in health["reasons"][0]


@pytest.mark.slow
@pytest.mark.timeout(3_600)
async def test_a_ten_minute_outage_fits_the_journal_and_drains(tmp_path: Path) -> None:
    """They fit JOURNAL_MAX_MB, and then the lag falls while as many new events come.

    `make bench-smoke` asks the same of a few seconds, and extrapolates.
    """
    figures = await measure(Outage(), tmp_path)

    assert misses(figures) == []
    assert figures.rss_max_mb < RSS_MAX_MB


def tls(name: str) -> ssl.SSLContext:
    """Return a server's side with one of the certificates of the tests."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / f"{name}.pem")
    return context
