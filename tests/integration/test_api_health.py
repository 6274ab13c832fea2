"""`/health`, `/metrics`, the event rate and diagnostics."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry

from app.health import Snapshot
from app.runtime.metrics import Telemetry
from tests.fakes.service import api_client, components
from tests.fakes.snapshots import DEGRADED, HEALTHY, NOON, UNHEALTHY


@pytest.mark.parametrize(
    ("snapshot", "path", "status", "word"),
    [
        (HEALTHY, "/health", 200, "healthy"),
        (DEGRADED, "/health", 200, "degraded"),
        (UNHEALTHY, "/health", 503, "unhealthy"),
        (HEALTHY, "/health/live", 200, "alive"),
        (UNHEALTHY, "/health/live", 200, "alive"),
        (DEGRADED, "/health/ready", 200, "ready"),
        (UNHEALTHY, "/health/ready", 503, 503),
    ],
)
async def test_only_a_broken_process_answers_health_with_503(
    snapshot: Snapshot, path: str, status: int, word: object
) -> None:
    """Only a broken process is 503; a dependency that is down is not."""
    async with api_client(components(snapshot=lambda: snapshot)) as client:
        response = await client.get(path)

    assert (status, word) == (response.status_code, response.json()["status"])


async def test_a_service_that_is_not_ready_gives_the_reason() -> None:
    """The problem carries the reasons of the snapshot."""
    async with api_client(components(snapshot=lambda: UNHEALTHY)) as client:
        response = await client.get("/health/ready")

    assert response.headers["content-type"] == "application/problem+json"
    assert "The source loop ended: KeyError('id')" in response.json()["detail"]


async def test_the_liveness_check_contacts_no_dependency() -> None:
    """Also when no picture of health can be had."""

    def broken() -> Snapshot:
        raise RuntimeError

    async with api_client(components(snapshot=broken)) as client:
        response = await client.get("/health/live")

    assert response.status_code == 200


async def test_health_is_open_to_everyone() -> None:
    """Without a key, from anywhere, through any proxy."""
    async with api_client(peer="192.168.1.7") as client:
        headers = {"Host": "nas", "X-Forwarded-For": "1.2.3.4"}
        answers = [
            await client.get(path, headers=headers)
            for path in ("/health", "/health/live", "/health/ready", "/metrics")
        ]

    assert [answer.status_code for answer in answers] == [200] * 4


async def test_metrics_cover_the_service_and_its_http_requests() -> None:
    """One registry holds the snapshot, the histograms and the HTTP metrics."""
    async with api_client() as client:
        await client.get("/health")
        await client.get("/api/v1/events/sensor.bedroom_of_anna?limit=1")
        await client.get("/api/v1/events/sensor.bedroom_of_anna/")
        await client.get("/person.anna")
        metrics = await client.get("/metrics")

    text = metrics.text
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "\ningest_events_received_total 15.0\n" in text
    assert 'http_requests_total{handler="/health",method="GET",status="2xx"} 1.0' in text
    assert 'handler="/api/v1/events/{entity_id}"' in text
    assert "ingest_commit_duration_seconds_bucket" in text
    assert "anna" not in text


async def test_unknown_http_methods_add_no_metrics() -> None:
    """Otherwise anyone could fill the memory with labels."""
    async with api_client() as client:
        refused = await client.request("MADEUP", "/health")
        text = (await client.get("/metrics")).text

    assert (refused.status_code, refused.json()["code"]) == (501, "unknown_method")
    assert "MADEUP" not in text


async def test_the_event_rate_is_listed_per_second() -> None:
    """The seconds that had events, oldest first."""
    registry = CollectorRegistry()
    now = [NOON.timestamp() - 70]
    telemetry = Telemetry(registry, clock=lambda: now[0])
    telemetry.events_received(3)
    now[0] += 65
    telemetry.events_received(2)
    now[0] += 5

    async with api_client(components(telemetry=telemetry)) as client:
        rate = (await client.get("/api/v1/event-rate")).json()

    assert rate == {
        "events_per_minute": 2.0,
        "events_total": 5,
        "window_seconds": 900,
        "seconds": [
            {"time": "2026-11-23T11:58:50Z", "events": 3},
            {"time": "2026-11-23T11:59:55Z", "events": 2},
        ],
    }


async def test_diagnostics_contain_no_secret() -> None:
    """They are made to be shown to others."""
    token = "eyJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJhYmMifQ.c2lnbmF0dXJl"
    diagnosed = {
        "version": "0.1.0",
        "settings": {
            "token": "abc",
            "api_key": None,
            "INFLUXDB_PASSWORD": "",
            "nested": [{"secret": "x"}, f"used {token} here"],
            "tokens": ["a", "b"],
            "url": "http://user:pass@influx:8086/x",
            "odd_url": "http://user:p@ss@influx:8086/x",
            "port": 8001,
            "peers": ("127.0.0.0/8",),
        },
    }

    async with api_client(components(diagnostics=lambda: diagnosed)) as client:
        shown = (await client.get("/api/v1/diagnostics")).json()

    assert shown == {
        "version": "0.1.0",
        "settings": {
            "token": "**REDACTED**",
            "api_key": None,
            "INFLUXDB_PASSWORD": "",
            "nested": [{"secret": "**REDACTED**"}, "used **REDACTED** here"],
            "tokens": ["**REDACTED**", "**REDACTED**"],
            "url": "http://**REDACTED**@influx:8086/x",
            "odd_url": "http://**REDACTED**@influx:8086/x",
            "port": 8001,
            "peers": ["127.0.0.0/8"],
        },
    }


async def test_no_metric_names_an_entity_or_a_person() -> None:
    """Labels come from a small fixed set of words."""
    async with api_client() as client:
        text = (await client.get("/metrics")).text

    names = set(re.findall(r'[{,](\w+)="', text))
    assert names <= {
        "cause",
        "handler",
        "implementation",
        "le",
        "method",
        "part",
        "sink",
        "state",
        "status",
        "version",
    }
