"""Every database fault, under load: nothing is lost or repeated, and /health names it."""

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

WAITING = r"InfluxDB has not been taking writes for \d+ s: {}. Points wait in the journal"
HOLDING = r"InfluxDB has been refusing writes for \d+ s: {}"

_STATE = re.compile(rb'state_value="(\d+)"')


@dataclass(frozen=True, slots=True)
class Fault:
    """What the database does to every write, and the reason that /health gives."""

    reply: fake.Reply
    sentence: str | None
    """A pattern; None where points are still written, only slower."""


def retry_after(text: str) -> fake.Reply:
    """Return a 429 with a Retry-After header."""
    return fake.error(429, "slow down", code="too many requests", Retry_After=text)


def in_a_second() -> str:
    """Return the time in one second as an HTTP date."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)


NOT_INFLUXDB = "is not InfluxDB's answer to a write; check INFLUXDB_URL"
FAULTS = {
    "401": Fault(
        fake.UNAUTHORIZED, HOLDING.format("401 unauthorized access. Check INFLUXDB_TOKEN")
    ),
    "403": Fault(
        fake.error(403, "no write permission", code="forbidden"),
        HOLDING.format("403 no write permission. .*INFLUXDB_TOKEN.*INFLUXDB_BUCKET"),
    ),
    "404": Fault(
        fake.Reply(status=404, body="404 page not found"),
        HOLDING.format("404 404 page not found. Check INFLUXDB_URL"),
    ),
    "429 in seconds": Fault(retry_after("1"), WAITING.format("429 slow down")),
    "429 as a date": Fault(retry_after(in_a_second()), WAITING.format("429 slow down")),
    "503": Fault(fake.error(503, "starting", code="unavailable"), WAITING.format("503 starting")),
    "302": Fault(
        fake.Reply(status=302, headers={"Location": "/login"}),
        WAITING.format(f"302 to /login {NOT_INFLUXDB}"),
    ),
    "200": Fault(
        fake.Reply(status=200, body="OK"), WAITING.format(f"200 instead of 204 {NOT_INFLUXDB}")
    ),
    "HTML 500": Fault(fake.HTML_500, WAITING.format("500 500 Internal Server Error Oh no")),
    "reset": Fault(fake.RESET, WAITING.format(".*(reset|[Dd]isconnected).*")),
    "reset after storing": Fault(
        fake.Reply(act="reset", keeps=True), WAITING.format(".*(reset|[Dd]isconnected).*")
    ),
    "hang": Fault(fake.HANG, WAITING.format("no answer in time")),
    "half an answer": Fault(fake.Reply(act="half", keeps=True), WAITING.format(".+")),
    "a body cut short": Fault(fake.BODY_CUT_SHORT, WAITING.format(".+")),
    "slow": Fault(fake.Reply(act="slow", keeps=True), None),
}


@pytest.fixture
def settings(environment: dict[str, str]) -> dict[str, str]:
    """Return settings with short timeouts, so that a fault shows at once."""
    return environment | {
        "INFLUXDB_TOKEN": FakeInflux().token,
        "INFLUXDB_API": "v2",
        "INFLUXDB_TIMEOUT": "1",
        "BATCH_TIMEOUT": "0.1",
        "CIRCUIT_BREAKER_RESET_SECONDS": "1",
    }


async def until_health_reports(running: Service, sentence: str) -> None:
    """Wait until /health gives the reason; assert that the service is degraded and ready."""
    health = await running.until(
        "/health",
        lambda health: any(re.match(sentence, reason) for reason in health["reasons"]),
    )
    ready = await running.get("/health/ready")
    assert (health["status"], ready["status"]) == ("degraded", "ready")


async def until_writes_succeed(running: Service) -> None:
    """Wait until points are written again and the service is healthy."""
    before = (await running.get("/health"))["sinks"][0]["points_written"]
    await running.until(
        "/health",
        lambda health: (
            health["status"] == "healthy" and health["sinks"][0]["points_written"] > before
        ),
    )


def has_more_requests(requests: int) -> Callable[[FakeInflux], bool]:
    """Return a condition: the database received more than `requests` requests."""
    return lambda influx: len(influx.requests) > requests


async def until_all_durable(running: Service, count: Count) -> None:
    """Wait until every change is durable."""
    await running.until(
        "/health", lambda h: h["accounting"]["events"]["journaled"] == count.changes
    )


async def assert_nothing_is_missing(running: Service, influx: FakeInflux, changes: int) -> None:
    """Assert that the database has every change once and in order, and the totals balance."""
    with contextlib.suppress(TimeoutError):  # the assertions below show what is missing
        await influx.wait_for(lambda influx: len(set(influx.lines)) >= changes, within_s=20)
    health = await running.until("/health", lambda health: health["sinks"][0]["held"] == 0)
    metrics = await running.text("/metrics")
    stored = [int(number) for line in influx.lines for number in _STATE.findall(line)]
    assert list(dict.fromkeys(stored)) == list(range(changes)), "lost, or out of order"
    assert len(influx.points()) == changes, "a point is stored twice"
    assert health["accounting"]["events"]["dropped"] == {}
    assert 'ingest_sink_points_dropped_total{sink="influxdb"} 0.0' in metrics
    assert "ingest_dead_letters 0.0" in metrics


async def go_through_faults(running: Service, influx: FakeInflux, faults: Sequence[str]) -> None:
    """Go through the faults one by one, and leave an absurd Retry-After at the end."""
    await until_writes_succeed(running)
    process = psutil.Process(running.process.pid)
    rss_at_first = process.memory_info().rss
    for name in faults:
        fault = FAULTS[name]
        influx.fault = fault.reply
        if fault.sentence is not None:
            await until_health_reports(running, fault.sentence)
        else:
            await influx.wait_for(has_more_requests(len(influx.requests) + 1))
        influx.fault = None
        await until_writes_succeed(running)
        assert process.memory_info().rss < RSS_MAX_MB * 1e6, name
    influx.max_body_bytes = 600
    await influx.wait_for(lambda influx: 413 in influx.statuses[-3:])
    influx.max_body_bytes = None
    await until_writes_succeed(running)
    influx.fault = retry_after("99999999999")
    await until_health_reports(running, WAITING.format("429 slow down"))
    assert process.memory_info().rss - rss_at_first < RSS_GROWTH_MB * 1e6


@pytest.mark.long
@pytest.mark.timeout(300)  # sixteen faults, each slow on a busy machine
async def test_no_database_fault_loses_a_point(
    settings: dict[str, str], house: StillHouse, tmp_path: Path
) -> None:
    """One fault after the other, at 500 events a second, without growing memory.

    Two services take half of the faults each, to save time. A restart ends the test, because an
    absurd Retry-After may pause delivery for five minutes.
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
                await asyncio.gather(*map(go_through_faults, services, servers, halves))
            for running in services:
                await until_all_durable(running, count)
                assert await running.stop() == 0

        for folder, environment, server in zip(folders, reached, servers, strict=True):
            server.fault = None
            async with service(folder, environment) as running:
                await assert_nothing_is_missing(running, server, count.changes)


async def test_an_unreachable_database_loses_no_point(
    settings: dict[str, str], house: StillHouse, tmp_path: Path
) -> None:
    """Unknown host name, expired certificate, closed port: then it recovers."""
    count, influx = Count(), FakeInflux()
    trusted = settings | {"SSL_CERT_FILE": str(CERTIFICATES / "authority.pem")}
    nowhere = {"INFLUXDB_URL": "https://influxdb.invalid:8086"}
    async with service(tmp_path, trusted | nowhere) as running:
        await running.until("/health", lambda h: h["subscription"]["is_subscribed"])
        async with changing(house, per_s=CHANGES_PER_S, count=count):
            await until_health_reports(running, WAITING.format(".*influxdb.invalid.*"))
        await until_all_durable(running, count)
        assert await running.stop() == 0

    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(influx.serving(tls=tls("expired")))
        port = int(influx.url.rpartition(":")[2])
        async with service(tmp_path, trusted | {"INFLUXDB_URL": influx.url}) as running:
            await running.until("/health", lambda h: h["subscription"]["is_subscribed"])
            async with changing(house, per_s=CHANGES_PER_S, count=count):
                await until_health_reports(running, WAITING.format(".*certificate has expired.*"))
                await stack.aclose()
                await until_health_reports(running, WAITING.format(".*nothing listens there"))
                await stack.enter_async_context(influx.serving(port=port, tls=tls("valid")))
                await until_writes_succeed(running)
            await assert_nothing_is_missing(running, influx, count.changes)


async def test_the_service_is_live_and_ready_without_its_dependencies(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """An outage elsewhere is no reason to restart it; /health names the problem."""
    unreachable = {"HOME_ASSISTANT_URL": "http://127.0.0.1:9", "INFLUXDB_URL": "http://127.0.0.1:9"}
    async with service(tmp_path, settings | unreachable) as running:
        health = await running.until("/health", lambda health: health["status"] == "degraded")
        live, ready = await running.get("/health/live"), await running.get("/health/ready")

    assert (live["status"], ready["status"]) == ("alive", "ready")
    assert "Home Assistant" in health["reasons"][0]


@pytest.mark.slow
@pytest.mark.timeout(3_600)
async def test_a_ten_minute_outage_fits_the_journal_and_drains(tmp_path: Path) -> None:
    """At 5,000 events a second it fits JOURNAL_MAX_MB, and the lag then falls at that rate.

    `make bench-smoke` measures a few seconds of the same and extrapolates.
    """
    figures = await measure(Outage(), tmp_path)

    assert misses(figures) == []
    assert figures.rss_max_mb < RSS_MAX_MB


def tls(name: str) -> ssl.SSLContext:
    """Return a server-side TLS context with one of the test certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / f"{name}.pem")
    return context
