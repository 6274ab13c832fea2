"""The service as a Home Assistant app, behind the Supervisor's proxies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from app.commands import home_assistant_app
from app.health_report.sensors import SENSORS
from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.mqtt_broker import FakeBroker
from tests.fakes.still_house import StillHouse
from tests.fakes.supervisor import INGRESS, INGRESS_PEER, FakeSupervisor
from tests.service.process import TOKEN, Service, service

APP_TOKEN = "f" * 112
LAMP = "light.lamp"

# The addresses of the Supervisor and the user are those of this machine; all else is the app's
# command.
_COMMAND = f"""
import os, sys
from app.__main__ import main
from app.commands import home_assistant_app
from app.setup import finding
home_assistant_app.MQTT_SERVICE_URL = os.environ.get("MQTT_SERVICE_URL", "")
home_assistant_app.INGRESS_PEER = {INGRESS_PEER!r}
home_assistant_app.USER_ID = os.getuid()
finding.SUPERVISOR = os.environ.get("SUPERVISOR_URL", finding.SUPERVISOR)
raise SystemExit(main(["home-assistant-app", "--data", os.environ["APP_DATA"], *sys.argv[1:]]))
"""
_NOBODY = 65_534


@dataclass(frozen=True, slots=True)
class Home:
    """A home with a Supervisor, without the app."""

    house: StillHouse
    supervisor: FakeSupervisor
    url: str
    data: Path

    @contextlib.asynccontextmanager
    async def app(self, **options: Any) -> AsyncIterator[Service]:
        """Start the app with these options, as the Supervisor does."""
        proxy = {"name": "HOME_ASSISTANT_URL", "value": f"{self.url}/core/websocket"}
        settings = {"environment": [proxy], **options}
        self.data.mkdir(exist_ok=True)
        (self.data / "options.json").write_text(json.dumps(settings))
        environment = {
            "SUPERVISOR_TOKEN": APP_TOKEN,
            "APP_DATA": str(self.data),
            "MQTT_SERVICE_URL": f"{self.url}/services/mqtt",
            "SUPERVISOR_URL": self.url,
        }
        async with service(self.data.parent, environment, command=("-c", _COMMAND)) as running:
            port = running.url.rpartition(":")[2]
            self.supervisor.app = f"http://127.0.0.1:{port}"
            local = Service(process=running.process, url=self.supervisor.app, output=running.output)
            await local.until("/health", lambda health: health["connection"]["is_subscribed"])
            yield local

    async def until_stored(self, app: Service, state: str) -> None:
        """Wait until the embedded store has this newest state of the lamp."""
        await app.until(
            f"/api/v1/events/{LAMP}?limit=1",
            lambda page: [event["state"] for event in page["events"]] == [state],
        )

    async def command(self, step: str) -> None:
        """Run a step as the Supervisor does, in the app's container."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _COMMAND,
            step,
            env={**os.environ, "APP_DATA": str(self.data)},
        )
        assert await process.wait() == 0


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    """Yield a home whose lamp is off."""
    async with supervised_home(tmp_path) as started:
        yield started


@contextlib.asynccontextmanager
async def supervised_home(folder: Path) -> AsyncIterator[Home]:
    """Run a home whose lamp is off, with a Supervisor."""
    house = StillHouse()
    async with FakeHomeAssistant(house, token=TOKEN) as home_assistant:
        house.fire = home_assistant.fire
        house.set_state(LAMP, "off")
        supervisor = FakeSupervisor(
            home_assistant=home_assistant.url, home_assistant_token=TOKEN, token=APP_TOKEN
        )
        async with supervisor.serving() as url:
            yield Home(house, supervisor, url, folder / "app")


async def test_the_app_stores_events_without_any_setting(home: Home) -> None:
    """From an empty folder, with the embedded store, over the Supervisor's proxy."""
    async with home.app() as app:
        home.house.set_state(LAMP, "on")
        await home.until_stored(app, "on")


async def test_the_app_connects_again_when_home_assistant_was_restarted(home: Home) -> None:
    """The Supervisor answers 502 meanwhile."""
    async with home.app() as app:
        await home.supervisor.restart_core(down_s=0.5)
        await app.until("/health", lambda health: health["connection"]["is_subscribed"])
        home.house.set_state(LAMP, "on")
        await home.until_stored(app, "on")

    assert home.supervisor.connections >= 2


async def test_the_pages_work_through_ingress(home: Home) -> None:
    """The dashboard, its files, the API, downloads, Swagger UI and the stream."""
    async with home.app(), httpx.AsyncClient(base_url=home.url) as browser:
        download = "/api/v1/dead-letters/export"
        paths = (
            "/",
            "/docs",
            "/static/app.js",
            "/openapi.json",
            "/api/v1/events",
            "/health",
            download,
        )
        found = {path: (await browser.get(INGRESS + path)).status_code for path in paths}
        page = (await browser.get(f"{INGRESS}/")).text
        frames = (await browser.get(f"{INGRESS}/")).headers
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{home.url}{INGRESS}/ws", origin=home.url) as stream,
        ):
            greeting = await stream.receive_json(timeout=5)
            home.house.set_state(LAMP, "on")
            messages = [await stream.receive_json(timeout=5)]

    assert found == dict.fromkeys(paths, 200)
    assert 'src="/' not in page, "an address of the server's root leads out of the app"
    assert 'href="/' not in page, "an address of the server's root leads out of the app"
    # Home Assistant shows the page in a frame of its own origin.
    assert frames["X-Frame-Options"] == "SAMEORIGIN"
    assert greeting["type"] != "auth_required"
    assert LAMP in json.dumps(messages)


async def test_ingress_names_the_user_and_removes_what_a_browser_claims(home: Home) -> None:
    """The name may have letters outside of ASCII."""
    async with home.app() as app, httpx.AsyncClient() as client:
        forged = {"X-Remote-User-Name": "admin", "X-Remote-User-Id": "1"}
        named = await client.get(f"{home.url}{INGRESS}/api/v1/session", headers=forged)
        local = await client.get(f"{app.url}/api/v1/session")

    assert named.json()["user"] == {
        "id": "0123456789abcdef",
        "name": "anna",
        "display_name": "Anna Müller",
    }
    assert local.json() == {"user": None}


async def test_a_setting_that_is_changed_through_ingress_applies_after_a_restart(
    home: Home,
) -> None:
    """In place: the Supervisor sees no stop, and the files move as at any other."""
    async with home.app() as app, httpx.AsyncClient(base_url=home.url, timeout=20) as browser:
        home.house.set_state(LAMP, "on")
        await home.until_stored(app, "on")
        url = f"{INGRESS}/api/v1/settings"
        given = await browser.put(url, json={"values": {"INFLUXDB_URL": "http://x:8086"}})
        missing = await browser.put(url, json={"values": {"HOME_ASSISTANT_TOKEN": "t" * 40}})
        await app.until(
            "/api/v1/diagnostics",
            lambda found: found["settings"]["influx"]["url"] == "http://x:8086",
        )
        await app.until("/health", lambda health: health["connection"]["is_subscribed"])
        stored = json.loads((home.data / "live" / "settings.json").read_text())

    assert (given.status_code, missing.status_code) == (202, 422)
    assert stored["settings"] == {"INFLUXDB_URL": "http://x:8086"}
    assert not (home.data / "stored").exists()


async def test_headers_of_ingress_from_another_address_are_refused(home: Home) -> None:
    """Other apps share the network with the Supervisor."""
    forged = {"X-Ingress-Path": INGRESS, "X-Remote-User-Id": "1", "Host": "localhost"}
    async with home.app() as app, httpx.AsyncClient(base_url=app.url) as client:
        page = await client.get("/", headers=forged)
        data = await client.get("/api/v1/events", headers=forged)

    assert (page.status_code, data.status_code) == (403, 403)
    assert data.json()["code"] == "api_key_needed"


async def test_the_app_shows_its_health_in_home_assistant(home: Home) -> None:
    """Without a broker and without any setting, by the Supervisor's proxy; also after a restart."""
    states = home.supervisor.rest.states
    async with home.app() as app:
        await _until(lambda: len(states) == len(SENSORS))
        healthy = states["sensor.websocket_ingestion_status"]["state"]
        await home.supervisor.restart_core(down_s=0.2)
        states.clear()
        await _until(lambda: len(states) == len(SENSORS))
        assert await app.stop() == 0

    assert healthy in {"healthy", "degraded"}
    assert {state["state"] for state in states.values()} == {"unavailable"}


async def test_the_app_shows_its_health_by_the_broker_that_an_app_provides(home: Home) -> None:
    """The Supervisor gives it user and password."""
    broker = FakeBroker(username="addons", password="hush-hush")
    async with broker.serving() as port:
        home.supervisor.broker = {
            "addon": "core_mosquitto",
            "host": "127.0.0.1",
            "port": port,
            "ssl": False,
            "username": "addons",
            "password": "hush-hush",
            "protocol": "3.1.1",
        }
        async with home.app() as app:
            topic = "websocket-ingestion/websocket_ingestion/availability"
            await _until(lambda: broker.retained.get(topic) == "online")
            assert await app.stop() == 0
        assert broker.retained[topic] == "offline"

    assert not home.supervisor.rest.states
    assert "hush-hush" not in app.output.read_text()


async def test_the_apps_own_sensors_are_not_captured(home: Home) -> None:
    """They count as filtered."""
    async with home.app() as app:
        home.house.set_state("sensor.websocket_ingestion_points_buffered", "7")
        home.house.set_state(LAMP, "on")
        await home.until_stored(app, "on")
        health = await app.get("/health")
        page = await app.get("/api/v1/events?limit=100")

    assert health["accounting"]["events"]["filtered"] == 1
    assert {event["entity_id"] for event in page["events"]} == {LAMP}


async def test_a_failing_rest_api_and_a_missing_broker_disturb_nothing(home: Home) -> None:
    """Events are stored, the service is healthy, and it stops in time."""
    home.supervisor.rest.fails_with = 500
    home.supervisor.broker = {"host": "127.0.0.1", "port": 1}
    async with home.app() as app:
        await _until(lambda: "health sensors by MQTT" in app.output.read_text())
        await _until(lambda: home.supervisor.rest.requests)
        home.house.set_state(LAMP, "on")
        await home.until_stored(app, "on")
        health = await app.get("/health")
        home.supervisor.rest.hangs = True
        assert await app.stop() == 0

    assert health["status"] == "healthy", health["reasons"]


async def test_a_restored_backup_of_the_running_app_loses_nothing_that_was_in_it(
    home: Home, tmp_path: Path
) -> None:
    """The Supervisor leaves `live` out; what is restored is continued."""
    backup = tmp_path / "backup"
    async with home.app() as app:
        home.house.set_state(LAMP, "on")
        await home.until_stored(app, "on")
        await home.command("before-backup")
        await _save(home.data, backup)
        await home.command("after-backup")
        assert not (home.data / "stored").exists()
        home.house.set_state(LAMP, "later")
        await home.until_stored(app, "later")
    (home.data).rename(tmp_path / "lost")
    backup.rename(home.data)

    async with home.app() as app:
        states = await _states(app)
        home.house.set_state(LAMP, "after")
        await home.until_stored(app, "after")
        health = await app.get("/health")

    assert "on" in states
    assert "later" not in states
    assert not health["sinks"][0]["points_dropped"]


async def test_a_backup_of_the_stopped_app_has_its_files(home: Home) -> None:
    """Without a command before it: the Supervisor runs none while the app is stopped."""
    async with home.app() as app:
        home.house.set_state(LAMP, "on")
        await home.until_stored(app, "on")
        assert await app.stop() == 0

    assert (home.data / "stored" / "events.db").exists()
    assert not (home.data / "live").exists()
    async with home.app() as app:
        assert "on" in await _states(app)


_PREPARED = """
import json, os, sys
from pathlib import Path
from app.commands import home_assistant_app
home_assistant_app.MQTT_SERVICE_URL = "http://127.0.0.1:9/"
home_assistant_app.prepare(Path(sys.argv[1]))
try:
    os.setuid(0)
except PermissionError:
    pass
print(json.dumps([os.getresuid(), os.getresgid(), os.getgroups()]))
"""


def test_the_app_becomes_an_unprivileged_user_who_owns_its_folder() -> None:
    """The Supervisor starts it as root, and restores a backup as root."""
    is_root = os.geteuid() == 0
    user_id = home_assistant_app.USER_ID if is_root else os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "stored"
        stored.mkdir()
        (stored / "journal.db").write_bytes(b"")
        (Path(folder) / "options.json").write_text("{}")
        ended = subprocess.run(
            [sys.executable, "-c", _PREPARED, folder],
            env={**os.environ, "SUPERVISOR_TOKEN": APP_TOKEN},
            check=True,
            capture_output=True,
            text=True,
        )
        owned = [Path(folder), Path(folder, "live"), Path(folder, "live", "journal.db")]
        assert {path.stat().st_uid for path in owned} == {user_id}
        assert Path(folder, "options.json").stat().st_uid == os.geteuid()

    users, groups, others = json.loads(ended.stdout)
    assert users == [user_id] * 3
    assert not is_root or (groups, others) == ([user_id] * 3, [])


def test_the_copy_for_a_backup_belongs_to_the_service() -> None:
    """The Supervisor runs the command as root, and the service has to remove what it finds."""
    user_id = _NOBODY if os.geteuid() == 0 else os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        live = Path(folder) / "live"
        live.mkdir()
        with closing(sqlite3.connect(live / "journal.db")) as database:
            database.execute("CREATE TABLE t (x)")
        for path in (Path(folder), live, live / "journal.db"):
            os.chown(path, user_id, user_id)
        command = _COMMAND.replace("os.getuid()", str(user_id))
        subprocess.run(
            [sys.executable, "-c", command, "before-backup"],
            env={**os.environ, "APP_DATA": folder},
            check=True,
        )
        copied = [Path(folder, "stored"), *Path(folder, "stored").iterdir()]
        assert {path.name for path in copied} == {"stored", "journal.db"}
        assert {path.stat().st_uid for path in copied} == {user_id}


async def _save(data: Path, backup: Path) -> None:
    """Copy the folder as the Supervisor does, without what `backup_exclude` matches."""
    excluded = ("live/*", "stored.new/*")

    def copy() -> None:
        for path in sorted(data.rglob("*")):
            if path.is_file() and not any(path.match(each) for each in excluded):
                target = backup / path.relative_to(data)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())

    await asyncio.to_thread(copy)


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


async def _states(app: Service) -> list[str]:
    page = await app.get(f"/api/v1/events/{LAMP}")
    return [event["state"] for event in page["events"]]
