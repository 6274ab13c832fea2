"""No credential follows a redirect to another origin, for any connection the service makes."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.commands.doctor import command
from app.commands.service_api import service_api
from app.discovery.data_api import DataApi
from app.homeassistant.commands import open_commands
from app.homeassistant.endpoint import Endpoint
from app.model import Row
from app.runtime.errors import SourceUnavailable, StorageLocked
from app.runtime.retry import Backoff, Breaker
from app.settings import load_settings, variables
from app.sinks.batches import whole_rows
from app.sinks.influxdb.sink import InfluxSink
from app.sinks.outcomes import Unavailable
from tests.fakes.front import Front

TOKEN = "redirected-token-0123456789-0123456789-0123456789"
REDIRECTS = (300, 301, 302, 303, 307, 308)
BATCH = whole_rows([Row(1, 1, gzip.compress(b"m v=1 1\n"), 0.0)])
HEADERS = {"CF-Access-Client-Secret": "hush"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove every variable of ours from the environment, and set the required ones."""
    for variable in variables():
        for name in variable.names:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME_ASSISTANT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("HOME_ASSISTANT_TOKEN", TOKEN)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WEBSOCKET_INGESTION_PORT", "0")


@asynccontextmanager
async def two_origins(status: int, path: str, scheme: str = "http") -> AsyncIterator[list[Front]]:
    """Serve an origin that redirects to another, which accepts everything."""
    async with Front(204).serving() as other:
        location = other.url(scheme) + path
        async with Front(status, headers={"Location": location}).serving() as front:
            yield [front, other]


def endpoint_of(url: str) -> Endpoint:
    """Return an endpoint with every secret that another origin must not receive."""
    return Endpoint(
        url.replace("//", "//ada:pass@") + "/api/websocket",
        token=TOKEN,
        ssl_verify=False,
        headers=HEADERS,
    )


@pytest.mark.parametrize("status", REDIRECTS)
@pytest.mark.parametrize("scheme", ["http", "ws"])
async def test_the_token_does_not_follow_a_redirect_of_home_assistant(
    status: int, scheme: str
) -> None:
    """The library would follow it and send the token to whatever accepts the connection."""
    async with two_origins(status, "/api/websocket?of=hush", scheme) as (front, other):
        with pytest.raises(SourceUnavailable) as caught:
            async with open_commands(endpoint_of(front.url("ws"))):
                pass

    assert len(front.requests) == 1
    assert other.requests == []
    assert f"redirects to {other.url()}/api/websocket ({status})" in str(caught.value)
    assert "hush" not in f"{caught.value} {caught.value.advice}"
    assert "HOME_ASSISTANT_URL" in str(caught.value.advice)


async def test_a_redirect_to_another_path_of_home_assistant_is_followed() -> None:
    """It is the same origin, so it may receive the token and the headers."""
    async with Front(307, headers={"Location": "/behind/websocket"}).serving() as front:
        with pytest.raises(SourceUnavailable, match="redirects to"):
            async with open_commands(endpoint_of(front.url("ws"))):
                pass

    assert [each.path for each in front.requests] == ["/api/websocket", "/behind/websocket"]
    assert front.sent("CF-Access-Client-Secret") == ["hush", "hush"]
    assert None not in front.sent("Authorization")


@pytest.mark.parametrize(
    "location", ["//127.0.0.1:1/api/websocket", "http://[", "", "wss:", "x" * 9]
)
async def test_a_malformed_redirect_is_an_ordinary_error(location: str) -> None:
    """Whatever the server writes into `Location`."""
    async with Front(302, headers={"Location": location}).serving() as front:
        with pytest.raises(SourceUnavailable):
            async with open_commands(endpoint_of(front.url("ws"))):
                pass


async def test_a_redirect_of_home_assistant_to_https_is_explained() -> None:
    """The advice is the same host with TLS."""
    async with Front(301, headers={"Location": "https://127.0.0.1/api/websocket"}).serving() as it:
        with pytest.raises(SourceUnavailable, match=r"redirects to https:// \(301\)") as caught:
            async with open_commands(endpoint_of(it.url("ws"))):
                pass

    assert caught.value.advice == "Write https://127.0.0.1 in HOME_ASSISTANT_URL."


@pytest.mark.parametrize("status", REDIRECTS)
@pytest.mark.parametrize(
    "credentials", [{"token": TOKEN}, {"username": "ada", "password": "p"}, {}]
)
async def test_credentials_do_not_follow_a_redirect_of_the_database(
    status: int, credentials: dict[str, str]
) -> None:
    """Neither with a write, nor with the requests before it."""
    async with two_origins(status, "/write?token=hush") as (front, other):
        sink = InfluxSink(
            front.url(),
            **{"token": "", **credentials},  # type: ignore[arg-type]
            org="o",
            bucket="b",
            timeout_s=5.0,
            headers=HEADERS,
        )
        async with sink:
            answer = await sink.write(BATCH)
            await sink.ping()

    assert isinstance(answer, Unavailable)
    assert f"{status} to {other.url()}/write is not" in answer.reason
    assert "hush" not in answer.reason
    assert len(front.requests) >= 2
    assert other.requests == []


async def test_a_redirect_of_the_database_to_https_is_explained() -> None:
    """The advice is the same host with TLS."""
    async with Front(301, headers={"Location": "https://127.0.0.1/write"}).serving() as front:
        sink = InfluxSink(front.url(), token=TOKEN, org="o", bucket="b", timeout_s=5.0)
        async with sink:
            answer = await sink.write(BATCH)

    assert isinstance(answer, Unavailable)
    assert "write https://127.0.0.1 in INFLUXDB_URL" in answer.reason


@pytest.mark.parametrize("status", REDIRECTS[1:])
async def test_the_key_does_not_follow_a_redirect_of_the_data_api(status: int) -> None:
    """The key and the device rows are meant for one origin."""
    async with two_origins(status, "/internal/devices/bulk_upsert") as (front, other):
        api = DataApi(
            front.url(),
            key=TOKEN,
            source="home",
            backoff=Backoff(max_s=1.0),
            breaker=Breaker("data API", threshold=1, reset_s=1.0),
        )
        why = await api.probe()

    assert f"it redirects to {other.url()}/internal/devices/bulk_upsert ({status})" in str(why)
    assert "Write the address of the data API itself in DATA_API_URL" in str(why)
    assert (len(front.requests), other.requests) == (1, [])


async def test_a_key_with_non_ascii_letters_is_sent_to_the_data_api() -> None:
    """HTTP headers given as text must be ASCII in httpx, whose error stopped the service."""
    async with Front(200).serving() as front:
        api = DataApi(
            front.url(),
            key="schlüssel",
            source="home",
            backoff=Backoff(max_s=1.0),
            breaker=Breaker("data API", threshold=1, reset_s=1.0),
        )
        assert await api.probe() is None

    (request,) = front.requests
    assert (b"Authorization", "Bearer schlüssel".encode()) in request.raw_headers


@asynccontextmanager
async def in_use(_: object) -> AsyncIterator[None]:
    """Pretend that another process uses DATA_DIR."""
    raise StorageLocked("in use")
    yield


@pytest.mark.parametrize("status", REDIRECTS[1:])
async def test_the_api_key_does_not_follow_a_redirect(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """`--url` may name something other than the service."""
    monkeypatch.setenv("API_KEY", "schlüssel-hush")
    async with (
        two_origins(status, "/api/v1/gaps") as (front, other),
        service_api(load_settings(), url=front.url(), opened=in_use) as service,
    ):
        with pytest.raises(StorageLocked) as caught:
            await service.request("GET", "/api/v1/gaps")

    assert f"it redirects to {other.url()}, where the key is not sent" in str(caught.value)
    assert (len(front.requests), other.requests) == (1, [])


async def test_a_command_with_a_malformed_url_fails_with_one_line() -> None:
    """Instead of a traceback of the library."""
    async with service_api(load_settings(), url="http://[", opened=in_use) as service:
        with pytest.raises(StorageLocked, match="set --url"):
            await service.request("GET", "/api/v1/gaps")


async def test_no_secret_of_the_doctor_follows_a_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes the same connections as the service."""
    async with two_origins(302, "/api/websocket") as (front, other):
        monkeypatch.setenv("HOME_ASSISTANT_URL", front.url())
        monkeypatch.setenv("HOME_ASSISTANT_HEADERS", json.dumps(HEADERS))
        monkeypatch.setenv("INFLUXDB_URL", front.url())
        monkeypatch.setenv("INFLUXDB_TOKEN", TOKEN)
        monkeypatch.setenv("INFLUXDB_HEADERS", json.dumps(HEADERS))
        monkeypatch.setenv("DATA_API_URL", front.url())
        monkeypatch.setenv("DATA_API_KEY", TOKEN)
        monkeypatch.setenv("WEBSOCKET_INGESTION_PORT", str(front.port))
        monkeypatch.setenv("API_KEY", TOKEN)
        out = io.StringIO()
        async with asyncio.timeout(60):
            await command.run(None, out, as_json=True)

    assert len(front.requests) >= 4
    assert other.requests == []
    checks: dict[str, Any] = {each["name"]: each for each in json.loads(out.getvalue())["checks"]}
    assert "it redirects to" in checks["home_assistant"]["what"]
    assert "it redirects to" in checks["data_api"]["what"]
    assert "302" in checks["database_write"]["what"] + checks["database"]["what"]
    assert "hush" not in out.getvalue()


async def test_the_log_of_a_redirect_has_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    """Also at log level DEBUG."""
    caplog.set_level(logging.DEBUG)
    async with two_origins(302, "/login?state=hush") as (front, _):
        with pytest.raises(SourceUnavailable):
            async with open_commands(endpoint_of(front.url("ws"))):
                pass

    shown = [record for record in caplog.records if record.name.startswith("app")]
    assert [text for text in map(str, shown) if "hush" in text or TOKEN in text] == []
