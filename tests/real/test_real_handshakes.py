"""How a real Home Assistant refuses a connection, and the reason that is reported."""

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
def own_home_assistant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HomeAssistant]:
    """Yield a Home Assistant for these tests only: it gets broken, and bans us."""
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


async def test_an_untrusted_proxy_is_named(home_assistant: HomeAssistant) -> None:
    """Home Assistant answers 400 to requests forwarded by a proxy it does not trust."""
    source = source_to(
        home_assistant, token=home_assistant.token, **{"X-Forwarded-For": "192.0.2.1"}
    )
    with pytest.raises(SourceUnavailable, match="does not trust the reverse proxy") as caught:
        async with source.commands():
            pass

    assert "trusted_proxies" in str(caught.value.advice)


async def test_a_wrong_path_is_named(home_assistant: HomeAssistant) -> None:
    """Home Assistant answers 404."""
    source = source_to(home_assistant, token=home_assistant.token, path="/behind")
    with pytest.raises(SourceUnavailable, match=r"no WebSocket API at this path \(404\)"):
        async with source.commands():
            pass


async def test_recovery_mode_is_reported(own_home_assistant: HomeAssistant) -> None:
    """With an unreadable configuration it is RUNNING, but has almost no entities."""
    file = configuration(own_home_assistant)
    good = file.read_text()
    file.write_text(good + "\nsensor: [\n")
    await asyncio.to_thread(own_home_assistant.restart)
    source = source_to(own_home_assistant, token=own_home_assistant.token)
    try:
        async with running(source, RecordingListener()):
            await until(lambda: source.status().ha_state == "RUNNING")
            reason = source.status().reason
    finally:
        file.write_text(good)

    assert reason is not None
    assert "Home Assistant runs in recovery mode" in reason


async def test_a_banned_address_is_named(own_home_assistant: HomeAssistant) -> None:
    """After wrong tokens the address is banned, and every request is answered with 403."""
    file = configuration(own_home_assistant)
    banning = "http:\n  ip_ban_enabled: true\n  login_attempts_threshold: 2"
    file.write_text(file.read_text().replace("http:", banning, 1))
    await asyncio.to_thread(own_home_assistant.restart)
    for _ in range(2):
        with pytest.raises(SourceAuthRejected):
            async with source_to(own_home_assistant, token=WRONG_TOKEN).commands():
                pass

    with pytest.raises(SourceUnavailable, match=r"bans this machine \(403\)") as caught:
        async with source_to(own_home_assistant, token=own_home_assistant.token).commands():
            pass

    assert "ip_bans.yaml" in str(caught.value.advice)
