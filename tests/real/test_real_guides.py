"""The guides of docs/UPGRADING.md, followed on real servers with the document's own commands."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.documents import ROOT
from tests.real.influx_1 import Database
from tests.real.servers import VICTORIA_RELEASES, HomeAssistant, Server, VictoriaRelease
from tests.real.test_real_predecessor import PREDECESSOR
from tests.service.process import Service, service

# Home Assistant starts twice, which takes minutes on a busy machine.
pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

GIVEN = os.environ.get("INFLUXDB_TEST_URL", "")
_BLOCK = re.compile(r"^ *```([a-z]+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_ADDITIONAL = {"BATCH_TIMEOUT": "0.5", "WEBSOCKET_INGESTION_PORT": "0"}


class Guide:
    """One guide, followed in a folder of its own."""

    def __init__(self, letter: str, folder: Path, **own: str) -> None:
        """Name the guide; `own` are a reader's own values of settings that the guide names."""
        document = (ROOT / "docs" / "UPGRADING.md").read_text()
        chapter = document.partition(f"\n## {letter}. ")[2].partition("\n## ")[0]
        self._blocks = [
            (language, textwrap.dedent(text)) for language, text in _BLOCK.findall(chapter)
        ]
        self._folder = folder
        self._own = own
        folder.mkdir(exist_ok=True)

    def write_settings(self, *, blocks: int = 1, **own: str) -> None:
        """Write `.env` from the guide's first blocks of settings, with the reader's values."""
        own = {**self._own, **own}
        settings: dict[str, str] = {}
        for text in self.texts("ini")[:blocks]:
            settings |= dict(line.split("=", 1) for line in text.splitlines())
        unknown = own.keys() - settings.keys()
        assert not unknown, f"the guide does not name {unknown}"
        left = [name for name, text in settings.items() if text.startswith("<")]
        # A reader leaves out a user and a password that the database does not have.
        for name in left:
            del settings[name]
        lines = {**settings, **_ADDITIONAL, **own}.items()
        (self._folder / ".env").write_text("".join(f"{name}={text}\n" for name, text in lines))

    def texts(self, language: str) -> list[str]:
        """Return the texts of the guide's blocks in a language."""
        return [text.strip() for found, text in self._blocks if found == language]

    async def run(self, command: str) -> str:
        """Run a command that the guide has, and return what it printed; it must succeed."""
        assert command in "\n".join(self.texts("sh")).splitlines(), f"not in the guide: {command}"
        python, *words = shlex.split(command)
        assert python == "python"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *words,
            cwd=self._folder,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        printed = (await process.communicate())[0].decode()
        assert process.returncode == 0, printed
        return printed

    @asynccontextmanager
    async def started(self) -> AsyncIterator[Service]:
        """Run the service as the guide says, with nothing but the guide's settings."""
        own: Mapping[str, str] = {"DATA_DIR": str(self._folder / "data")}
        async with service(self._folder, own, cwd=self._folder) as running:
            await running.until("/health", _is_capturing, timeout_s=100)
            yield running


def _is_capturing(health: Any) -> bool:
    return bool(
        health["subscription"]["is_subscribed"] and health["discovery"]["last_refresh"] is not None
    )


async def _emitted(home: HomeAssistant, running: Service, count: int) -> None:
    """Emit changes, and wait until the service has delivered them."""
    before = (await running.get("/health"))["accounting"]["events"]["journaled"]
    await asyncio.to_thread(lambda: home.emit(count, rate=200, sensors=20))
    await running.until(
        "/health",
        lambda health: (
            health["accounting"]["events"]["journaled"] >= before + count
            and not health["sinks"][0]["held"]
        ),
        timeout_s=60,
    )


def _of_generator(database: Database, query: str) -> int:
    """Return what the guide's query counts of the load generator's sensors."""
    return database.count(query.replace("WHERE", 'WHERE "entity_id" =~ /^load_/ AND'))


async def _counted(database: Database, query: str, expected: int) -> int:
    """Return that count, once it is the expected one or has not become so in 20 s."""
    deadline_s = time.monotonic() + 20
    while (count := _of_generator(database, query)) != expected and time.monotonic() < deadline_s:
        await asyncio.sleep(0.5)
    return count


async def test_guide_a_keeps_the_dashboards_of_home_assistants_integration(
    influx_1: Server, tmp_path: Path
) -> None:
    """Both write for a while, each point exists once, and nothing is missing afterwards."""
    database = Database(influx_1.url, "guide_a")
    database.create()
    port = influx_1.url.rpartition(":")[2]
    block = (
        f"influxdb:\n  host: 127.0.0.1\n  port: {port}\n  database: {database.name}\n"
        "  tags:\n    source: home\n  ignore_attributes: sequence\n"
    )
    folder = tmp_path / "guide"
    guide = Guide("A", folder, INFLUXDB_URL=influx_1.url, INFLUXDB_BUCKET=database.name)
    (query,) = guide.texts("influxql")

    with HomeAssistant(tmp_path / "home-assistant", timeout_s=300.0, more=block) as home:
        await asyncio.to_thread(lambda: home.emit(100, rate=200, sensors=20))
        assert await _counted(database, query, 100) == 100
        (folder / "influxdb.yaml").write_text(block)
        guide.write_settings(HOME_ASSISTANT_URL=home.url, HOME_ASSISTANT_TOKEN=home.token)
        await guide.run("python -m app doctor")
        async with guide.started() as running:
            await _emitted(home, running, 100)
            await asyncio.sleep(3)  # the integration writes a second later, and nothing says when
            both = _of_generator(database, query)
            home.configure("")
            await asyncio.to_thread(home.restart)
            await running.until("/health", _is_capturing, timeout_s=100)
            await _emitted(home, running, 100)
            health = await running.get("/health")

        points = database.points('SELECT * FROM "W" GROUP BY *')
        old_ns = (int(time.time()) - 30 * 86_400) * 10**9
        database.write(
            "\n".join(
                f"W,domain=sensor,entity_id=old_meter value={n} {old_ns + n * 10**9}"
                for n in range(100)
            ).encode()
        )
        guide.write_settings(
            blocks=2,
            HOME_ASSISTANT_URL=home.url,
            HOME_ASSISTANT_TOKEN=home.token,
            COPY_FROM_URL=influx_1.url,
            COPY_FROM_BUCKET=database.name,
        )
        async with guide.started():
            expected = await guide.run("python -m app copy --to-schema homeiq --dry-run")
            converted = await guide.run("python -m app copy --to-schema homeiq")

    events = "FROM home_assistant_events WHERE entity_id = 'sensor.old_meter'"
    assert "W: about 100 values" in expected
    assert "Compared: the target has every value of the source" in converted
    assert database.count(f"SELECT count(state_value) {events}") == 100
    assert both == 200
    assert _of_generator(database, query) == 300
    assert {point.tags.get("source") for point in points} == {"home"}
    assert {key for point in points for key in point.tags} == {"domain", "entity_id", "source"}
    assert health["sinks"][0]["points_dead_lettered"] == 0


@pytest.fixture(params=[*VICTORIA_RELEASES, *(["influxdb-2"] if GIVEN else [])])
def new_database(
    request: pytest.FixtureRequest, victoria_of: Callable[[VictoriaRelease], Server]
) -> dict[str, str]:
    """Return the settings of each database to move to, in turn."""
    bucket = f"guide_b_{time.time_ns()}"
    if request.param != "influxdb-2":
        return {"INFLUXDB_URL": victoria_of(request.param).url, "INFLUXDB_BUCKET": bucket}
    names = ("TOKEN", "ORG")
    given = {f"INFLUXDB_{name}": os.environ[f"INFLUXDB_TEST_{name}"] for name in names}
    return {"INFLUXDB_URL": GIVEN, "INFLUXDB_BUCKET": bucket, **given}


async def test_guide_b_moves_the_history_of_influxdb_1(
    home_assistant: HomeAssistant, influx_1: Server, new_database: dict[str, str], tmp_path: Path
) -> None:
    """The copy ends as the guide says, beside the service, and the guide's query answers."""
    old = Database(influx_1.url, "guide_b")
    old.create()
    start_ns = time.time_ns() // 1_000_000_000 * 1_000_000_000 - 30 * 86_400_000_000_000
    history = [
        f"°C,domain=sensor,entity_id=kitchen_temperature value={n / 4}"
        f" {start_ns + n * 600_000_000_000}"
        for n in range(4_000)
    ]
    old.write("\n".join(history).encode())
    guide = Guide(
        "B",
        tmp_path / "guide",
        HOME_ASSISTANT_URL=home_assistant.url,
        HOME_ASSISTANT_TOKEN=home_assistant.token,
        COPY_FROM_URL=influx_1.url,
        COPY_FROM_BUCKET=old.name,
        **new_database,
    )
    is_2 = "INFLUXDB_TOKEN" in new_database
    guide.write_settings(blocks=2 if is_2 else 1)

    async with guide.started() as running:
        await _emitted(home_assistant, running, 100)
        expected = await guide.run("python -m app copy --dry-run")
        copied = await guide.run("python -m app copy")

    (query,) = guide.texts("promql")
    values = _influxql(new_database) if is_2 else _promql(new_database["INFLUXDB_URL"], query)
    assert "°C" in expected
    assert copied.splitlines()[-1] == "Compared: the target has every value of the source"
    assert sorted(values) == [n / 4 for n in range(4_000)]


def _promql(url: str, query: str) -> list[float]:
    httpx.get(f"{url}/internal/force_flush").raise_for_status()
    answer = httpx.get(f"{url}/api/v1/query", params={"query": f"{query}[31d]"}, timeout=30)
    (series,) = answer.raise_for_status().json()["data"]["result"]
    return [float(text) for _, text in series["values"]]


def _influxql(settings: Mapping[str, str]) -> list[float]:
    """Ask InfluxDB 2 as Grafana does after guide B."""
    answer = httpx.get(
        f"{settings['INFLUXDB_URL']}/query",
        params={"db": settings["INFLUXDB_BUCKET"], "q": 'SELECT "value" FROM "°C"'},
        headers={"Authorization": f"Token {settings['INFLUXDB_TOKEN']}"},
        timeout=30,
    )
    (series,) = answer.raise_for_status().json()["results"][0]["series"]
    return [value for _, value in series["values"]]


async def test_guide_c_replaces_homeiq(
    home_assistant: HomeAssistant, influx_1: Server, tmp_path: Path
) -> None:
    """Its points stay, what changed in between is read back, and the guide's query answers."""
    database = Database(influx_1.url, "guide_c")
    database.create()
    database.write("\n".join(PREDECESSOR).encode(), precision="ms")
    old = database.points()
    await asyncio.to_thread(lambda: home_assistant.emit(100, rate=200, sensors=20))
    guide = Guide(
        "C",
        tmp_path / "guide",
        HOME_ASSISTANT_URL=home_assistant.url,
        HOME_ASSISTANT_TOKEN=home_assistant.token,
        INFLUXDB_URL=influx_1.url,
        INFLUXDB_BUCKET=database.name,
        API_KEY="a new key of this service",
        DATA_DIR=str(tmp_path / "guide/data"),
    )
    guide.write_settings()

    await guide.run("python -m app doctor")
    async with guide.started() as running:
        await _emitted(home_assistant, running, 100)
        await running.stop()
    await guide.run("python -m app backfill --since yesterday")

    (query,) = guide.texts("influxql")
    answer = database.rows(query.replace("sensor.kitchen", "sensor.load_3"))
    load = database.points(
        "SELECT * FROM home_assistant_events WHERE entity_id =~ /load_/ GROUP BY *"
    )
    recorded = {(each.entity_id, each.state) for each in home_assistant.emitted()}
    assert [point for point in database.points() if point in old] == old
    assert {(point.tags["entity_id"], point.fields["state_value"]) for point in load} >= recorded
    assert any(row["mean"] is not None for row in answer)
