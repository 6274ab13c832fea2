"""The routes of the set-up and of the settings."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from app.api.access import AccessRules
from app.api.setup_access import COOKIE, SetupLink
from app.api.setup_application import build_setup_api
from app.runtime.environment import read_environment
from app.runtime.settings_file import write_settings
from app.settings import stored_settings, variables
from app.settings_store import SettingsStore
from app.setup import finding
from app.setup.choices import DATABASE_KINDS, DATABASE_SETTINGS
from app.setup.setup import BrowserSetup
from tests.fakes.influx import FakeInflux
from tests.fakes.service import api_client, client_of
from tests.fakes.supervisor import FakeSupervisor

TOKEN = "t" * 40
HOME = {"HOME_ASSISTANT_URL": "http://127.0.0.1:9", "HOME_ASSISTANT_TOKEN": TOKEN}
STRANGER = "192.168.1.7"


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return DATA_DIR/settings.json, in an environment that sets only DATA_DIR."""
    for variable in variables():
        for name in variable.names:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setattr(finding, "HOME_ASSISTANTS", ())
    return tmp_path / "settings.json"


class Restarts:
    """Counts restarts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        """Count one."""
        self.count += 1


@pytest.fixture
def restarts() -> Restarts:
    """Return the counter of the application under test."""
    return Restarts()


Client = Callable[..., httpx.AsyncClient]


@pytest.fixture
def link() -> SetupLink:
    """Return the link of this start."""
    return SetupLink()


@pytest.fixture
def client(restarts: Restarts, link: SetupLink) -> Client:
    """Return a function that makes a client of the set-up mode, or of a service that is set up."""

    def make(
        *, peer: str = "127.0.0.1", is_setup: bool = True, **options: Any
    ) -> httpx.AsyncClient:
        store = SettingsStore(restart=restarts, is_setup=is_setup)
        backend = BrowserSetup(store, **options)
        access = AccessRules()
        app = build_setup_api(lambda: backend, store=store, access=access, link=link)
        return client_of(app, peer=peer)

    return make


async def settings_of(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    """Return every setting by name."""
    page = (await client.get("/api/v1/settings")).json()
    return {setting["name"]: setting for setting in page["settings"]}


def stored() -> dict[str, str]:
    """Return what settings.json has."""
    return dict(stored_settings(read_environment(None))[1])


async def test_the_link_sets_a_cookie_for_one_browser(client: Client, link: SetupLink) -> None:
    """It has no path, so it is for the folder of the page, also below a prefix."""
    async with client(peer=STRANGER) as first, client(peer=STRANGER) as second:
        page = await first.get("/setup", params={"key": link.key})
        mine = await first.get("/api/v1/setup")
        again = await first.get("/setup", params={"key": link.key})
        theirs = await second.get("/setup", params={"key": link.key})
        api = await second.get("/api/v1/settings")

    assert (page.status_code, mine.status_code, again.status_code) == (200, 200, 200)
    cookie = rf"{COOKIE}=[\w-]{{43}}; HttpOnly; SameSite=strict"
    assert re.fullmatch(cookie, page.headers["Set-Cookie"]), page.headers["Set-Cookie"]
    assert "Set-Cookie" not in again.headers
    assert "Set-Cookie" not in theirs.headers
    assert (api.status_code, api.json()["code"]) == (403, "setup_refused")


async def test_whoever_came_by_the_link_gets_an_api_key(
    client: Client, link: SetupLink, file: Path, restarts: Restarts
) -> None:
    """Afterwards the service would not answer them without one; it is stored with the choice."""
    async with client(peer=STRANGER) as remote:
        await remote.get("/setup", params={"key": link.key})
        saved = await remote.put("/api/v1/setup", json={"database": {"kind": "embedded"}})

    # Home Assistant is still missing, so nothing could be saved.
    assert saved.status_code == 409
    assert restarts.count == 0

    write_settings(file, HOME)
    async with client(peer=STRANGER) as remote:
        remote.cookies.set(COOKIE, _session(link))
        saved = await remote.put("/api/v1/setup", json={"database": {"kind": "embedded"}})
        again = await remote.put("/api/v1/setup", json={"database": {"kind": "embedded"}})

    key = saved.json()["api_key"]
    assert len(key) >= 43
    assert stored()["API_KEY"] == key
    assert again.json()["api_key"] is None, "there is one already"
    assert restarts.count == 2


def _session(link: SetupLink) -> str:
    assert link._session is not None
    return link._session


async def test_this_machine_gets_no_api_key(client: Client, file: Path) -> None:
    """It is answered without one."""
    write_settings(file, HOME)
    async with client() as local:
        saved = await local.put("/api/v1/setup", json={"database": {"kind": "embedded"}})

    assert saved.json() == {"saved": True, "api_key": None}
    assert "API_KEY" not in stored()


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/setup/home-assistant"),
        ("POST", "/api/v1/setup/database"),
        ("PUT", "/api/v1/setup"),
        ("PUT", "/api/v1/settings"),
    ],
)
async def test_a_form_of_another_site_cannot_send_a_change(
    client: Client, method: str, path: str, content_type: str, restarts: Restarts
) -> None:
    """A browser sends JSON to another site only after asking, which is refused."""
    headers = {"Content-Type": content_type} if content_type else {}
    content = b'{"values": {}, "kind": "embedded", "url": "x", "token": "y"}'
    async with client() as local:
        refused = await local.request(method, path, content=content, headers=headers)
        preflight = await local.options(
            path,
            headers={
                "Origin": "https://evil.example",
                "Access-Control-Request-Method": method,
                "Access-Control-Request-Headers": "content-type",
            },
        )

    assert refused.status_code == 422
    assert "access-control-allow-origin" not in preflight.headers
    assert restarts.count == 0


async def test_a_tested_database_is_written_to_and_read_back(client: Client) -> None:
    """With the doctor's sentences, and without the password."""
    fake = FakeInflux()
    async with fake.serving(), client() as local:
        good = {"kind": "influxdb2", "url": fake.url, "token": fake.token}
        tested = (await local.post("/api/v1/setup/database", json=good)).json()
        wrong = {**good, "token": "wrong-and-secret"}
        refused = await local.post("/api/v1/setup/database", json=wrong)

    assert tested["ok"], tested
    names = [check["name"] for check in tested["checks"]]
    assert names == ["database", "database_clock", "database_write", "database_read_back"]
    assert not refused.json()["ok"]
    assert "wrong-and-secret" not in refused.text


async def test_a_malformed_choice_is_a_failed_check_of_its_field(client: Client) -> None:
    """With the sentence of the setting."""
    async with client() as local:
        url = {"kind": "influxdb1", "url": "influxdb:8086"}
        database = (await local.post("/api/v1/setup/database", json=url)).json()
        home = {"url": "http://ha:8123", "token": "hush-hush"}
        house = await local.post("/api/v1/setup/home-assistant", json=home)

    (check,) = database["checks"]
    assert (check["name"], check["status"], check["field"]) == ("settings", "failed", "url")
    assert "must be a URL that starts with http:// or https://" in check["text"]
    assert [check["field"] for check in house.json()["checks"]] == ["token"]
    assert "hush-hush" not in house.text


@pytest.mark.parametrize("server", ["home-assistant", "database"])
async def test_a_server_that_never_answers_is_not_waited_for(client: Client, server: str) -> None:
    """The person sees which check took too long."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        choice = {"url": f"http://127.0.0.1:{silent.getsockname()[1]}", "token": TOKEN}
        if server == "database":
            choice["kind"] = "influxdb2"
        async with client(within_s=0.2) as local:
            tested = (await local.post(f"/api/v1/setup/{server}", json=choice)).json()

    first, *others = tested["checks"]
    assert not tested["ok"]
    assert (first["status"], first["text"]) == ("failed", "It took longer than 0.2 s.")
    assert {check["status"] for check in others} == {"not tried"}


async def test_the_environment_decides_about_the_database_if_it_sets_any_of_it(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a choice would be overridden."""
    monkeypatch.setenv("INFLUXDB_ORG", "home")
    async with client() as local:
        state = (await local.get("/api/v1/setup")).json()
        given = (await local.post("/api/v1/setup/database", json={"kind": "environment"})).json()
        other = (await local.post("/api/v1/setup/database", json={"kind": "embedded"})).json()

    assert [kind["kind"] for kind in state["kinds"]] == ["environment"]
    assert given["ok"]
    assert [check["text"] for check in other["checks"]] == [
        "INFLUXDB_ORG is set in the environment, which overrides any other value."
    ]


async def test_a_choice_replaces_the_one_before_it(client: Client, file: Path) -> None:
    """No password of an InfluxDB stays behind when the embedded store is chosen."""
    before = {**HOME, "INFLUXDB_URL": "http://x", "INFLUXDB_PASSWORD": "p", "INFLUXDB_API": "v1"}
    write_settings(file, {**before, "BATCH_SIZE": "7"})
    async with client(is_setup=False) as local:
        await local.put("/api/v1/setup", json={"database": {"kind": "embedded"}})

    assert stored() == {**HOME, "BATCH_SIZE": "7"}


def test_every_kind_of_database_sets_settings_that_exist() -> None:
    """And only those that a file may set."""
    allowed = {each.names[0] for each in variables() if not each.is_environment_only}

    assert allowed >= DATABASE_SETTINGS
    assert "INFLUXDB_URL" in DATABASE_SETTINGS
    assert all(kind.fixed or kind.kind == "embedded" for kind in DATABASE_KINDS.values())


async def test_database_apps_that_run_are_found_by_the_supervisor(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those that are stopped or not installed."""
    supervisor = FakeSupervisor(home_assistant="", home_assistant_token="", token="app-token")
    running = {"state": "started", "hostname": "a0d7b954-influxdb"}
    supervisor.apps["a0d7b954_influxdb"] = running
    async with supervisor.serving() as url:
        monkeypatch.setattr(finding, "SUPERVISOR", url)
        async with client(is_setup=False, supervisor_token="app-token") as local:
            found = (await local.get("/api/v1/setup")).json()
        supervisor.apps["a0d7b954_influxdb"] = {**running, "state": "stopped"}
        async with client(is_setup=False, supervisor_token="app-token") as local:
            stopped = (await local.get("/api/v1/setup")).json()
        async with client(is_setup=False, supervisor_token="wrong") as local:
            refused = (await local.get("/api/v1/setup")).json()

    assert found["needed"] is False
    assert found["found"]["database"] == [
        {"url": "http://a0d7b954-influxdb:8086", "found_by": "Supervisor", "kind": "influxdb1"}
    ]
    assert stopped["found"]["database"] == []
    assert refused["found"]["database"] == []


@pytest.fixture
async def addresses() -> AsyncIterator[dict[str, str]]:
    """Serve something that is Home Assistant, something that is not, and have one that is down."""
    manifests = {"/ha": '{"name": "Home Assistant"}', "/other": '{"name": "Other"}', "/page": "<p>"}

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=manifests[request.path.removesuffix("/manifest.json")])

    app = web.Application()
    app.router.add_get("/{any:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    base = f"http://{host}:{port}"
    yield {
        "ha": f"{base}/ha",
        "other": f"{base}/other",
        "page": f"{base}/page",
        "down": "http://x.",
    }
    await runner.cleanup()


async def test_home_assistant_is_found_by_its_usual_names(addresses: dict[str, str]) -> None:
    """By what it serves: another program may have the port."""
    candidates = [(url, "name") for url in addresses.values()]

    found = await finding.find_home_assistant(candidates)

    assert [(each.url, each.found_by) for each in found] == [(addresses["ha"], "name")]


async def test_every_setting_is_listed_with_its_source(
    client: Client, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment's are read-only, and secrets have no value."""
    secret = tmp_path / "password"
    secret.write_text("hush")
    monkeypatch.setenv("INFLUXDB_PASSWORD_FILE", str(secret))
    monkeypatch.setenv("LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("INFLUXDB_URL", "http://ada:hush@influxdb:8086")
    write_settings(file, {**HOME, "BATCH_SIZE": "7"})
    async with client(is_setup=False) as local:
        response = await local.get("/api/v1/settings")
        settings = await settings_of(local)

    assert "hush" not in response.text
    assert TOKEN not in response.text
    expected = {
        "LOG_LEVEL": ("DEBUG", "environment", True, True),
        "INFLUXDB_URL": ("http://influxdb:8086", "environment", True, True),
        "INFLUXDB_PASSWORD": (None, "environment", True, True),
        "HOME_ASSISTANT_TOKEN": (None, "file", False, True),
        "BATCH_SIZE": ("7", "file", False, True),
        "BATCH_TIMEOUT": (None, "default", False, False),
        "LOG_FILE": (None, "default", True, False),
        "INGEST_TRANSFORMS": (None, "default", True, False),
    }
    assert {
        name: tuple(settings[name][key] for key in ("value", "source", "is_read_only", "is_set"))
        for name in expected
    } == expected
    assert settings["LOG_LEVEL"]["choices"] == ["DEBUG", "INFO", "WARNING", "ERROR"]
    assert (settings["BATCH_SIZE"]["group"], settings["BATCH_SIZE"]["default"]) == (
        "Batches",
        "100",
    )
    assert "INFLUXDB_PASSWORD_FILE" not in settings
    names = {each.names[0] for each in variables() if each.group}
    assert set(settings) == names


async def test_a_change_is_saved_and_restarts_the_service(
    client: Client, file: Path, restarts: Restarts
) -> None:
    """Null removes a setting; the same value again changes nothing."""
    write_settings(file, {**HOME, "BATCH_SIZE": "7", "LOG_LEVEL": "DEBUG"})
    async with client(is_setup=False) as local:
        change = {"values": {"BATCH_SIZE": " 8 ", "LOG_LEVEL": None}}
        first = await local.put("/api/v1/settings", json=change)
        second = await local.put("/api/v1/settings", json=change)

    assert (first.status_code, first.json()) == (202, {"restarts": True})
    assert second.json() == {"restarts": False}
    assert restarts.count == 1
    assert stored() == {**HOME, "BATCH_SIZE": "8"}


async def test_an_address_that_is_shown_without_its_password_keeps_it(
    client: Client, file: Path, restarts: Restarts
) -> None:
    """A page may send back what it was shown."""
    url = "http://ada:hush@influxdb:8086"
    write_settings(file, {**HOME, "INFLUXDB_URL": url})
    async with client(is_setup=False) as local:
        shown = (await settings_of(local))["INFLUXDB_URL"]["value"]
        await local.put("/api/v1/settings", json={"values": {"INFLUXDB_URL": shown}})

    assert shown == "http://influxdb:8086"
    assert stored()["INFLUXDB_URL"] == url
    assert restarts.count == 0


@pytest.mark.parametrize("source", ["file", "environment"])
async def test_a_secret_does_not_follow_a_changed_address(
    client: Client, file: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Otherwise whoever may change settings could read it on a server of their own."""
    secrets = {"INFLUXDB_TOKEN": "hush", "INFLUXDB_HEADERS": "X-Key: hush"}
    write_settings(file, {**HOME, "INFLUXDB_URL": "http://influxdb:8086"})
    if source == "file":
        write_settings(file, {**stored(), **secrets})
    else:
        for name, value in secrets.items():
            monkeypatch.setenv(name, value)
    before = stored()
    async with client(is_setup=False) as local:
        change = {"INFLUXDB_URL": "http://evil.example:8086"}
        moved = await local.put("/api/v1/settings", json={"values": change})
        house = {"url": "http://evil.example:8123", "token": "u" * 40}
        write_settings(file, {**before, "HOME_ASSISTANT_HEADERS": "X-Key: hush"})
        tested = await local.post("/api/v1/setup/home-assistant", json=house)
        write_settings(file, before)
        if source == "file":
            both = {**change, "INFLUXDB_TOKEN": "new", "INFLUXDB_HEADERS": None}
            allowed = await local.put("/api/v1/settings", json={"values": both})
            assert allowed.status_code == 202

    assert moved.status_code == 422
    assert {error["location"] for error in moved.json()["errors"]} == set(secrets)
    assert [check["text"] for check in tested.json()["checks"]] == [
        "HOME_ASSISTANT_HEADERS is for the HOME_ASSISTANT_URL before. Enter it again, or remove it."
    ]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("BATCH_SIZE", "0", "BATCH_SIZE: input should be greater than 0"),
        ("HOME_ASSISTANT_TOKEN", None, "HOME_ASSISTANT_TOKEN or HA_TOKEN: is missing"),
        ("HOME_ASSISTANT_TOKEN", "short-secret", "does not look like a token"),
        ("EMBEDDED_STORE", "off", "EMBEDDED_STORE: is off while INFLUXDB_URL is unset"),
        ("LOG_LEVEL", "INFO", "LOG_LEVEL is set in the environment, which overrides"),
        ("DATA_DIR", "/x", "DATA_DIR is set in the environment"),
        ("LOG_FILE", "/etc/passwd", "LOG_FILE can only be set in the environment"),
        ("INGEST_TRANSFORMS", "os:system", "INGEST_TRANSFORMS can only be set in the environment"),
        ("INGRESS_PEERS", "0.0.0.0/0", "INGRESS_PEERS can only be set in the environment"),
        ("API_KEY_FILE", "/x", "'API_KEY_FILE' is not a setting"),
        ("BATCH_SIZ", "1", "'BATCH_SIZ' is not a setting"),
    ],
)
async def test_a_change_that_cannot_be_used_is_refused_with_a_sentence(
    *,
    client: Client,
    file: Path,
    restarts: Restarts,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str | None,
    sentence: str,
) -> None:
    """Nothing is saved, not even the other values."""
    monkeypatch.setenv("LOG_LEVEL", "DEBUG")
    write_settings(file, HOME)
    async with client(is_setup=False) as local:
        change = {"values": {"BATCH_TIMEOUT": "2", name: value}}
        refused = await local.put("/api/v1/settings", json=change)

    (error,) = refused.json()["errors"]
    assert refused.status_code == 422
    assert error["location"] == name
    assert sentence in error["message"]
    assert "short-secret" not in refused.text
    assert (stored(), restarts.count) == (HOME, 0)


async def test_a_service_that_cannot_restart_refuses_changes() -> None:
    """The demo has its own settings."""
    async with api_client() as demo:
        refused = await demo.put("/api/v1/settings", json={"values": {"BATCH_SIZE": "7"}})

    assert (refused.status_code, refused.json()["code"]) == (409, "cannot_restart")


async def test_a_folder_that_cannot_be_written_is_named(
    client: Client, file: Path, restarts: Restarts
) -> None:
    """The settings stay as they were."""
    write_settings(file, HOME)
    file.with_name("settings.json.new").mkdir()
    async with client(is_setup=False) as local:
        refused = await local.put("/api/v1/settings", json={"values": {"BATCH_SIZE": "7"}})

    assert (refused.status_code, refused.json()["code"]) == (503, "storage_failed")
    assert (stored(), restarts.count) == (HOME, 0)
