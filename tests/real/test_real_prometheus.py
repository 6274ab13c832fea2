"""docker/prometheus, checked with a real Prometheus and its promtool."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
import yaml

from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.still_house import StillHouse
from tests.real.servers import PROJECT, program, prometheus
from tests.service.process import TOKEN, service

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

FILES = PROJECT / "docker" / "prometheus"


@pytest.mark.parametrize(
    "question",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts.test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_accepts_the_configuration_and_the_rules(question: tuple[str, ...]) -> None:
    """Each alert fires when it should and at no other time."""
    assert promtool(FILES, *question) == (0, "")


def test_every_alert_is_tested_to_fire(tmp_path: Path) -> None:
    """With rules that never fire, every rule test fails."""
    folder = Path(shutil.copytree(FILES, tmp_path / "prometheus"))
    rules = yaml.safe_load((folder / "alerts.yml").read_text())
    names = {rule["alert"] for rule in rules["groups"][0]["rules"]}
    for rule in rules["groups"][0]["rules"]:
        rule["expr"] = "vector(0) > 1"
    (folder / "alerts.yml").write_text(yaml.safe_dump(rules))

    status, output = promtool(folder, "test", "rules", "alerts.test.yml")

    assert status == 1
    assert set(re.findall(r'exp: \{alertname="(\w+)"\}', output)) == names


async def test_a_real_prometheus_scrapes_the_service_and_fires_an_alert(tmp_path: Path) -> None:
    """None fires while healthy; one fires while Home Assistant is down, and resolves afterwards."""
    house = StillHouse()
    async with FakeHomeAssistant(house, token=TOKEN) as home_assistant:
        house.fire = home_assistant.fire
        settings = {
            "HOME_ASSISTANT_URL": home_assistant.url,
            "HOME_ASSISTANT_TOKEN": TOKEN,
            "BACKFILL_ENABLED": "false",
            "WEBSOCKET_MAX_RETRY_DELAY": "0.5",
            "CIRCUIT_BREAKER_RESET_SECONDS": "0.5",
            "API_KEY": "not-needed-for-the-metrics",
        }
        (tmp_path / "service").mkdir()
        async with service(tmp_path / "service", settings) as running:
            await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
            house.set_state("sensor.a", "1")
            config = impatient(tmp_path / "config", target=urlsplit(running.url).netloc)
            server = prometheus(tmp_path / "prometheus", config=config)
            with server:
                async with httpx.AsyncClient(base_url=server.url, timeout=10) as client:
                    await until(client, "count(up == 1)", 1.0)
                    # All rules were evaluated three times.
                    await until(client, "sum(count_over_time(up[1m])) > bool 3", 1.0)
                    await until(client, FIRING, None)
                    assert await value_of(client, "count(ingest_events_received_total)") == 1.0

                    home_assistant.refusing = True
                    await home_assistant.drop()
                    await until(client, f"{FIRING} == 1", 1.0)
                    assert await alerts(client) == {"HomeAssistantDown"}

                    home_assistant.refusing = False
                    await until(client, FIRING, None)


FIRING = 'count(ALERTS{alertstate="firing"})'


class _Sample(msgspec.Struct):
    metric: dict[str, str]
    value: tuple[float, str]


class _Data(msgspec.Struct):
    result: list[_Sample]


class _Answer(msgspec.Struct):
    data: _Data


async def samples(client: httpx.AsyncClient, query: str) -> list[_Sample]:
    """Return the samples of a query now."""
    answer = await client.get("/api/v1/query", params={"query": query})
    return msgspec.json.decode(answer.content, type=_Answer).data.result


async def value_of(client: httpx.AsyncClient, query: str) -> float | None:
    """Return the single value of a query; None without one."""
    found = await samples(client, query)
    return float(found[0].value[1]) if found else None


async def alerts(client: httpx.AsyncClient) -> set[str]:
    """Return the names of the firing alerts."""
    found = await samples(client, 'ALERTS{alertstate="firing"}')
    return {sample.metric["alertname"] for sample in found}


async def until(client: httpx.AsyncClient, query: str, value: float | None) -> None:
    """Wait until a query has this value."""
    seen: float | None = None
    try:
        async with asyncio.timeout(40):
            while (seen := await value_of(client, query)) != value:
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"{query} stayed {seen}: {await alerts(client)}") from None


def impatient(folder: Path, *, target: str) -> Path:
    """Return the configuration with one target and seconds in place of minutes."""
    shutil.copytree(FILES, folder)
    config, rules = folder / "prometheus.yml", folder / "alerts.yml"
    text = re.sub(r"1[05]s", "1s", config.read_text())
    assert "websocket-ingestion:8001" in text
    config.write_text(text.replace("websocket-ingestion:8001", target))
    rules.write_text(re.sub(r"for: \w+", "for: 2s", rules.read_text()))
    return config


def promtool(folder: Path, *question: str) -> tuple[int, str]:
    """Return promtool's exit status and its output."""
    done = subprocess.run(
        [program("promtool"), *question], cwd=folder, capture_output=True, text=True, check=False
    )
    complaints = done.stdout + done.stderr if done.returncode else ""
    return done.returncode, complaints
