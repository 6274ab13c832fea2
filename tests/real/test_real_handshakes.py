"""How a real Home Assistant turns a connection away, and what is said of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from app.homeassistant.connection import HomeAssistantSource
from app.homeassistant.endpoint import Endpoint
from app.homeassistant.reconnect import ReconnectPolicy
from app.runtime.addresses import websocket_url
from app.runtime.errors import SourceAuthRejected, SourceUnavailable
from app.runtime.metrics import Telemetry
from app.runtime.retry import Backoff, Breaker
from tests.integration.test_connection import RecordingListener, running, until
from tests.real.servers import HomeAssistant

WRONG_TOKEN = "wrong-token-0123456789-0123456789-0123456789"


@pytest.fixture(scope="module")
def home_of_ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HomeAssistant]:
    """Return a Home Assistant that no other test uses: it is broken, and bans us."""
    with HomeAssistant(tmp_path_factory.mktemp("home-of-ours")) as server:
        yield server


def configuration(server: HomeAssistant) -> Path:
    """Return the path of its configuration.yaml."""
    return server.server.log.parent / "config" / "configuration.yaml"


def source_to(
    server: HomeAssistant, *, token: str, path: str = "", **headers: str
) -> HomeAssistantSource:
    """Return a source for it."""
    return HomeAssistantSource(
        Endpoint(websocket_url(server.url + path), token=token, ssl_verify=True, headers=headers),
        reconnect=ReconnectPolicy(
            backoff=Backoff(max_s=1.0),
            breaker=Breaker("Home Assistant", threshold=3, reset_s=1.0),
        ),
        telemetry=Telemetry(CollectorRegistry()),
        readiness_poll_s=0.1,
    )


async def test_a_proxy_that_is_not_trusted_is_named(home_assistant: HomeAssistant) -> None:
    """Home Assistant answers 400 to what a proxy has forwarded, unless it trusts the proxy."""
    source = source_to(
        home_assistant, token=home_assistant.token, **{"X-Forwarded-For": "192.0.2.1"}
    )
    with pytest.raises(SourceUnavailable, match="does not trust the reverse proxy") as caught:
        async with source.commands():
            pass

    assert "trusted_proxies" in str(caught.value.advice)


async def test_a_path_that_is_not_there_is_named(home_assistant: HomeAssistant) -> None:
    """Home Assistant answers 404."""
    source = source_to(home_assistant, token=home_assistant.token, path="/behind")
    with pytest.raises(SourceUnavailable, match=r"no WebSocket API at this path \(404\)"):
        async with source.commands():
            pass


async def test_recovery_mode_is_reported(home_of_ours: HomeAssistant) -> None:
    """A configuration that cannot be read leaves it RUNNING, with next to nothing."""
    file = configuration(home_of_ours)
    good = file.read_text()
    file.write_text(good + "\nsensor: [\n")
    await asyncio.to_thread(home_of_ours.restart)
    source = source_to(home_of_ours, token=home_of_ours.token)
    try:
        async with running(source, RecordingListener()):
            await until(lambda: source.status().ha_state == "RUNNING")
            reason = source.status().reason
    finally:
        file.write_text(good)

    assert reason is not None
    assert "Home Assistant runs in recovery mode" in reason


async def test_a_ban_is_named(home_of_ours: HomeAssistant) -> None:
    """Wrong tokens have the address banned, and then every request is answered with 403."""
    file = configuration(home_of_ours)
    banning = "http:\n  ip_ban_enabled: true\n  login_attempts_threshold: 2"
    file.write_text(file.read_text().replace("http:", banning, 1))
    await asyncio.to_thread(home_of_ours.restart)
    for _ in range(2):
        with pytest.raises(SourceAuthRejected):
            async with source_to(home_of_ours, token=WRONG_TOKEN).commands():
                pass

    with pytest.raises(SourceUnavailable, match=r"bans this machine \(403\)") as caught:
        async with source_to(home_of_ours, token=home_of_ours.token).commands():
            pass

    assert "ip_bans.yaml" in str(caught.value.advice)
