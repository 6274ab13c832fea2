"""No secret leaves the process: each is searched for in everything a full run produces."""

from __future__ import annotations

import asyncio
import gc
import json
import secrets
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import httpx
import psutil
import pytest
from websockets.asyncio.client import connect

from app.container import Container
from app.homeassistant.protocol import Session
from app.main import create_app
from app.settings import load_settings
from app.sinks.influxdb.dialects import Target, dialect_for
from app.sinks.influxdb.http import Request
from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.influx import FakeInflux
from tests.fakes.replies import error
from tests.fakes.still_house import StillHouse
from tests.service.process import Service, service

OPEN = ("/health", "/health/live", "/health/ready", "/metrics", "/", "/docs", "/openapi.json")
DATA = ("/api/v1/diagnostics", "/api/v1/event-rate", "/api/v1/events", "/api/v1/dead-letters")
WRONG = ("/api/v1/events?limit=x", "/nowhere", "/api/v1/events?cursor=x", "/ws")


@pytest.fixture
def hidden() -> dict[str, str]:
    """Return a random secret for each setting that takes one."""
    names = ("HOME_ASSISTANT_TOKEN", "INFLUXDB_TOKEN", "INFLUXDB_PASSWORD", "API_KEY")
    return {name: f"{name.lower()}-{secrets.token_urlsafe(32)}" for name in names}


@pytest.mark.parametrize(
    ("version", "right"), [("v2", True), ("v1", False)], ids=["right secrets", "wrong secrets"]
)
async def test_nothing_a_run_produces_contains_a_secret(
    tmp_path: Path, hidden: Mapping[str, str], version: str, *, right: bool
) -> None:
    """Logs at DEBUG, files, every route, errors and the command line; also when refused.

    The fake database repeats credentials in its error messages, as some databases do.
    """
    house = StillHouse()
    influx = _influx(hidden, version=version, right=right)
    async with (
        FakeHomeAssistant(house, token=_token(hidden, right=right)) as home_assistant,
        influx.serving(),
    ):
        house.fire = home_assistant.fire
        settings = {
            **hidden,
            "HOME_ASSISTANT_URL": home_assistant.url,
            "INFLUXDB_URL": influx.url,
            "HOME_ASSISTANT_HEADERS": f"X-Key: {hidden['INFLUXDB_TOKEN']}",
            "INFLUXDB_HEADERS": f"X-Key: {hidden['API_KEY']}",
            "INFLUXDB_API": version,
            "INFLUXDB_USERNAME": "writer" if version == "v1" else "",
            "EMBEDDED_STORE": "on",
            "BATCH_TIMEOUT": "0.1",
            "LOG_LEVEL": "DEBUG",
            "LOG_OUTPUT": "both",
        }
        async with service(tmp_path, settings) as running:
            await _until_busy(running, house, right=right)
            produced = dict(await _responses(running, hidden["API_KEY"]))
            produced["process list"] = " ".join(psutil.Process(running.process.pid).cmdline())
            assert await running.stop(signal.SIGTERM) == 0
        produced |= {
            str(file.relative_to(tmp_path)): file.read_bytes().decode(errors="replace")
            for file in tmp_path.rglob("*")
            if file.is_file()
        }

    assert "data/service.log" in produced
    assert "DEBUG" in produced["data/service.log"]
    found = [
        (place, name)
        for place, text in produced.items()
        for name, secret in hidden.items()
        if secret in text or quote(secret) in text
    ]
    assert found == []


def _token(hidden: Mapping[str, str], *, right: bool) -> str:
    return hidden["HOME_ASSISTANT_TOKEN"] if right else "another-" + "0" * 32


def _influx(hidden: Mapping[str, str], *, version: str, right: bool) -> FakeInflux:
    secret = hidden["INFLUXDB_PASSWORD" if version == "v1" else "INFLUXDB_TOKEN"]
    refusals = [
        error(401, f"unauthorized: {secret}", code="unauthorized"),
        error(500, f"cannot authenticate {secret}", code="internal error"),
    ]
    if version == "v1":
        password = hidden["INFLUXDB_PASSWORD"] if right else "another"
        return FakeInflux(*refusals, version="v1", token="", username="writer", password=password)
    return FakeInflux(*refusals, token=hidden["INFLUXDB_TOKEN"] if right else "another")


async def _until_busy(running: Service, house: StillHouse, *, right: bool) -> None:
    """Wait until the service has used its credentials."""
    if not right:
        await running.until("/health", lambda health: health["connection"]["failed_connections"])
        return
    await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
    house.set_state("sensor.a", "1")
    # The database rejects the first write; the next attempt is half a minute later.
    await running.until("/health", lambda health: health["sinks"][0]["last_error"])


async def _responses(running: Service, key: str) -> list[tuple[str, str]]:
    """Return the responses of every kind of route, with the key, a wrong one and none."""
    responses = []
    async with httpx.AsyncClient(base_url=running.url, timeout=10) as client:
        for headers in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key[:-1]}, {}):
            for path in (*OPEN, *DATA, *WRONG):
                answer = await client.get(path, headers=headers)
                responses.append((f"{path} {headers}"[:60], f"{answer.headers} {answer.text}"))
    for sent in (key[:-1], key):
        async with connect(f"{running.url.replace('http', 'ws')}/ws") as socket, asyncio.timeout(5):
            request = str(await socket.recv())
            await socket.send(json.dumps({"type": "auth", "api_key": sent}))
            responses.append(("/ws", request + str(await socket.recv())))
    return responses


def _app_objects() -> Iterator[object]:
    """Yield every object of this process whose class is in `app`."""
    for each in gc.get_objects():
        if str(type(each).__module__).startswith("app."):
            yield each


def test_no_repr_shows_a_secret(
    tmp_path: Path, hidden: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any object that a traceback or a debugger may show: settings, sinks, source, rules."""
    settings = {
        **hidden,
        "HOME_ASSISTANT_URL": "http://127.0.0.1:9",
        "INFLUXDB_URL": "http://127.0.0.1:9",
        "INFLUXDB_USERNAME": "writer",
        "DATA_DIR": str(tmp_path),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)

    container = Container(settings=load_settings())
    app = create_app(container)
    container.observer()
    session = Session(hidden["HOME_ASSISTANT_TOKEN"])
    step = session.feed(b'{"type":"auth_required"}')
    target = Target(bucket="b", token=hidden["INFLUXDB_TOKEN"])
    request = dialect_for("v2", target).authorized(Request(path="/"))
    reprs = {f"{type(each).__qualname__}": repr(each) for each in _app_objects()}

    assert hidden["HOME_ASSISTANT_TOKEN"] in step.send[0].decode()
    assert hidden["INFLUXDB_TOKEN"] in request.headers["Authorization"]
    assert app.title
    # The classes that hold a secret are among those inspected.
    assert {
        *("ServingSettings", "HomeAssistantSettings", "InfluxSettings", "AccessRules"),
        *("InfluxSink", "Target", "HomeAssistantSource", "Session", "Received", "Request"),
    } <= set(reprs)
    assert [
        kind for kind, text in reprs.items() if any(secret in text for secret in hidden.values())
    ] == []
