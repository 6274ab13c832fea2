"""The set-up in the browser: from an empty folder to events, without a setting."""

from __future__ import annotations

import re
import signal
import stat
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.influx import FakeInflux
from tests.fakes.still_house import StillHouse
from tests.service.process import TOKEN, Service, service

LAMP = "light.lamp"
RUN = ("-m", "app", "run")
UVICORN = ("-m", "uvicorn", "app.main:app", "--port", "{port}")
_ON_UVICORN = re.compile(r"running on (http://\S+)")


@dataclass(frozen=True, slots=True)
class Home:
    """A Home Assistant with a lamp, which is off."""

    house: StillHouse
    url: str

    @property
    def environment(self) -> dict[str, str]:
        """Return the settings of a service that is set up."""
        return {"HOME_ASSISTANT_URL": self.url, "HOME_ASSISTANT_TOKEN": TOKEN}

    def choice(self, **database: str) -> dict[str, object]:
        """Return what a person would save."""
        return {
            "home_assistant": {"url": self.url, "token": TOKEN},
            "database": database or {"kind": "embedded"},
        }


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    """Serve a home."""
    house = StillHouse()
    async with FakeHomeAssistant(house, token=TOKEN) as fake:
        house.fire = fake.fire
        house.set_state(LAMP, "off")
        yield Home(house, fake.url)


async def put(running: Service, path: str, body: object) -> httpx.Response:
    """Put JSON and return the response."""
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
        return await client.put(path, json=body)


async def test_a_service_without_settings_waits_for_its_set_up(tmp_path: Path) -> None:
    """It is alive and not ready, and DATA_DIR has nothing but the lock."""
    async with service(tmp_path, {}) as running:
        health = await running.get("/health")
        async with httpx.AsyncClient(base_url=running.url) as client:
            statuses = [
                (await client.get(path)).status_code
                for path in ("/health/live", "/health/ready", "/setup", "/docs", "/static/app.js")
            ]
            first = await client.get("/")
            other = await client.get("/api/v1/events")
        status = await running.stop()

    assert (health["status"], health["service"]) == ("setup", "websocket-ingestion")
    assert statuses == [200, 503, 200, 200, 200]
    assert (first.status_code, first.headers["Location"]) == (307, "setup")
    assert other.status_code == 404
    assert [each.name for each in (tmp_path / "data").iterdir()] == ["lock"]
    assert status == 0


@pytest.mark.parametrize("command", [RUN, UVICORN], ids=["run", "uvicorn"])
async def test_capture_begins_after_the_set_up_without_help(
    tmp_path: Path, home: Home, free_port: int, command: Sequence[str]
) -> None:
    """The same process continues at the same address, and the next start needs no set-up."""
    arguments = [each.format(port=free_port) for each in command]
    where = {} if command == RUN else {"listening": _ON_UVICORN}
    async with service(tmp_path, {}, command=arguments, **where) as running:  # type: ignore[arg-type]
        saved = await put(running, "/api/v1/setup", home.choice())
        await until_subscribed(running)
        home.house.set_state(LAMP, "on")
        await running.until(
            f"/api/v1/events/{LAMP}?limit=1",
            lambda page: [event["state"] for event in page["events"]] == ["on"],
        )
        async with httpx.AsyncClient(base_url=running.url) as client:
            afterwards = await client.get("/setup")
        await running.stop()
    async with service(tmp_path, {}, command=arguments, **where) as running:  # type: ignore[arg-type]
        await until_subscribed(running)

    file = tmp_path / "data" / "settings.json"
    assert (saved.status_code, saved.json()) == (202, {"saved": True, "api_key": None})
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (afterwards.status_code, afterwards.headers["Location"]) == (307, "./")
    assert TOKEN not in running.output.read_text()


async def until_subscribed(running: Service) -> None:
    """Wait until events are captured; the service may be starting again."""

    async def health(_: str) -> object:
        try:
            return await running.get("/health")
        except httpx.TransportError:
            return {}

    await running.until(
        "/health", lambda health: health.get("connection", {}).get("is_subscribed"), ask=health
    )


@pytest.fixture
def free_port(unused_tcp_port: int) -> int:
    """Return a port for uvicorn, which must have the same one after the restart."""
    return unused_tcp_port


async def test_no_connection_is_refused_during_the_restart(tmp_path: Path, home: Home) -> None:
    """The listening socket stays open; a request waits until the service answers again."""
    async with service(tmp_path, {}) as running:
        await put(running, "/api/v1/setup", home.choice())
        seen = []
        while "connection" not in (health := await running.get("/health")):
            seen.append(health["status"])

    assert set(seen) <= {"setup"}


async def test_what_was_saved_is_used_for_the_database(tmp_path: Path, home: Home) -> None:
    """Its credentials reach it, and no response or log shows them."""
    influx = FakeInflux()
    async with influx.serving(), service(tmp_path, {"BATCH_TIMEOUT": "0.1"}) as running:
        database = {"kind": "influxdb2", "url": influx.url, "token": influx.token}
        tested = await running.post("/api/v1/setup/database", database)
        saved = await put(running, "/api/v1/setup", home.choice(**database))
        await until_subscribed(running)
        home.house.set_state(LAMP, "on")
        await running.until("/health", lambda health: health["sinks"][0]["points_written"])
        settings = await running.text("/api/v1/settings")

    assert tested["ok"], tested
    assert saved.status_code == 202
    for shown in (str(tested), saved.text, settings, running.output.read_text()):
        assert influx.token not in shown
        assert TOKEN not in shown


async def test_nothing_is_saved_when_a_check_fails(tmp_path: Path, home: Home) -> None:
    """The answer has the checks, and the set-up goes on."""
    async with service(tmp_path, {}) as running:
        wrong = home.choice()
        wrong["home_assistant"] = {"url": home.url, "token": "w" * 40}
        refused = await put(running, "/api/v1/setup", wrong)
        health = await running.get("/health")

    failed = [check for check in refused.json()["checks"] if check["status"] == "failed"]
    assert refused.status_code == 409
    assert [(check["name"], check["field"]) for check in failed] == [("token", "token")]
    assert "w" * 40 not in refused.text + running.output.read_text()
    assert health["status"] == "setup"
    assert not (tmp_path / "data" / "settings.json").exists()


async def test_a_changed_setting_restarts_the_service_with_it(tmp_path: Path, home: Home) -> None:
    """What Home Assistant and the environment set stays as it is."""
    async with service(tmp_path, home.environment) as running:
        await until_subscribed(running)
        before = await running.get("/api/v1/diagnostics")
        same = await put(running, "/api/v1/settings", {"values": {}})
        changed = await put(running, "/api/v1/settings", {"values": {"BATCH_SIZE": "7"}})
        await running.until(
            "/api/v1/diagnostics", lambda found: found["settings"]["batch"]["size"] == 7
        )
        await until_subscribed(running)
        status = await running.stop()

    assert before["settings"]["batch"]["size"] == 100
    assert same.json() == {"restarts": False}
    assert (changed.status_code, changed.json()) == (202, {"restarts": True})
    assert status == 0


async def test_a_signal_ends_a_restart(tmp_path: Path, home: Home) -> None:
    """Whoever stops the service does not find it running again."""
    async with service(tmp_path, home.environment) as running:
        await until_subscribed(running)
        await put(running, "/api/v1/settings", {"values": {"BATCH_SIZE": "7"}})
        status = await running.stop(signal.SIGTERM)

    assert status == 0
