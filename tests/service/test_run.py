"""`python -m app run` and `uvicorn app.main:app`: start, stop and exit status."""

import asyncio
import contextlib
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.influx import FakeInflux
from tests.fakes.still_house import StillHouse
from tests.service.process import ROOT, TOKEN, service


async def test_every_change_is_in_the_store_once_after_sigterm(
    environment: dict[str, str], house: StillHouse, tmp_path: Path
) -> None:
    """Even if it was received right before the signal."""
    async with service(tmp_path, environment) as running:
        await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
        for number in range(500):
            house.set_state("sensor.counter", str(number))
        await running.until(
            "/health", lambda health: health["subscription"]["total_events_received"] >= 500
        )
        status = await running.stop()

    assert status == 0
    with sqlite3.connect(tmp_path / "data" / "events.db") as database:
        rows = database.execute("SELECT state FROM events ORDER BY time_ns").fetchall()
    database.close()
    assert [row[0] for row in rows] == [str(number) for number in range(500)]


async def test_the_event_totals_balance(
    environment: dict[str, str], house: StillHouse, tmp_path: Path
) -> None:
    """Received = journaled + filtered + malformed + dropped + pending, at every moment."""
    async with service(tmp_path, environment) as running:
        await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
        for number in range(2_000):
            house.set_state("sensor.counter", str(number))
            if number % 100 == 0:
                events = (await running.get("/health"))["accounting"]["events"]
                assert events["received"] == sum(
                    events[name] for name in ("journaled", "filtered", "malformed", "pending")
                ) + sum(events["dropped"].values())
        health = await running.until(
            "/health", lambda health: health["sinks"][0]["points_written"] == 2_000
        )

    assert health["accounting"]["events"]["journaled"] == 2_000


@contextlib.asynccontextmanager
async def subscriber(address: str) -> AsyncIterator[None]:
    """Subscribe to `/ws` and send nothing."""
    async with connect(f"ws://{address}/ws") as socket:
        await socket.recv()
        yield


@contextlib.asynccontextmanager
async def slow_request(address: str) -> AsyncIterator[None]:
    """Send a request whose body never ends."""
    host, _, port = address.partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /api/v1/dead-letters/retry HTTP/1.1\r\nHost: localhost\r\n")
    writer.write(b"Content-Length: 100\r\n\r\n{")
    await writer.drain()
    try:
        yield
    finally:
        writer.close()


CLIENTS = {"a subscriber": subscriber, "a slow request": slow_request}


@pytest.mark.parametrize("client", CLIENTS)
async def test_connected_clients_do_not_delay_the_stop(
    environment: dict[str, str], tmp_path: Path, client: str
) -> None:
    """The service stops within SHUTDOWN_TIMEOUT, whatever clients are connected."""
    async with service(tmp_path, environment) as running:
        address = running.url.removeprefix("http://")
        async with CLIENTS[client](address), asyncio.timeout(8):
            status = await running.stop()

    assert status == 0


async def test_plain_uvicorn_runs_the_service(environment: dict[str, str], tmp_path: Path) -> None:
    """`uvicorn app.main:app` works from settings alone."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with_port = ("-m", "uvicorn", "app.main:app", "--port", "0")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *with_port,
        cwd=ROOT,
        env=environment | {"DATA_DIR": str(folder), "LOG_FORMAT": "text"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        lines: list[bytes] = []
        while b"Uvicorn running on" not in (line := await process.stdout.readline()):
            assert line, b"".join(lines).decode()
            lines.append(line)
        url = line.decode().partition("http://")[2].split()[0]
        async with httpx.AsyncClient(base_url=f"http://{url}") as client:
            while (await client.get("/health")).json()["status"] != "healthy":
                await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        await process.communicate()

    assert process.returncode in {0, -signal.SIGTERM}
    assert (folder / "journal.db").exists()


def run_to_exit(
    tmp_path: Path, settings: dict[str, str], command: tuple[str, ...] = ("-m", "app", "run")
) -> subprocess.CompletedProcess[str]:
    """Run the service without a Home Assistant, and wait for its exit."""
    environment = {
        "PYTHONPATH": str(ROOT),
        "HOME_ASSISTANT_URL": "http://127.0.0.1:9",
        "HOME_ASSISTANT_TOKEN": TOKEN,
        "DATA_DIR": str(tmp_path / "data"),
        "WEBSOCKET_INGESTION_PORT": "0",
    }
    return subprocess.run(
        [sys.executable, *command],
        check=False,
        cwd=tmp_path,
        env=environment | settings,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize("command", [("-m", "app", "run"), ("-m", "uvicorn", "app.main:app")])
def test_bad_settings_give_status_2_and_one_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    """No traceback: the line names the variable and the fix."""
    process = run_to_exit(tmp_path, {"HOME_ASSISTANT_TOKEN": ""}, command)

    (line,) = process.stderr.splitlines()
    assert process.returncode == 2
    assert line.startswith("websocket-ingestion: HOME_ASSISTANT_TOKEN or HA_TOKEN: is missing.")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"DATA_DIR": "file/data"},
            r"DATA_DIR: the folder file/data cannot be written \(.*\)\. Fix that, or set DATA_DIR",
        ),
        (
            {"LOG_OUTPUT": "file", "LOG_FILE": "file/service.log"},
            r"LOG_FILE or DATA_DIR: cannot write the log file file/service.log \(.*Set a file",
        ),
        (
            {"WEBSOCKET_INGESTION_HOST": "192.0.2.1"},
            r"WEBSOCKET_INGESTION_HOST: cannot listen on 192.0.2.1 \(.*Set an address of this",
        ),
        (
            {"WEBSOCKET_INGESTION_HOST": "ä..b"},
            r"WEBSOCKET_INGESTION_HOST: cannot listen on ä..b \(not a host name\)",
        ),
    ],
)
def test_an_unusable_folder_log_file_or_address_is_reported_like_a_bad_setting(
    tmp_path: Path, settings: dict[str, str], line: str
) -> None:
    """They are only checked at startup, and also exit with status 2."""
    (tmp_path / "file").write_text("in the way")

    process = run_to_exit(tmp_path, settings)

    (message,) = process.stderr.splitlines()
    assert process.returncode == 2
    assert re.match(f"websocket-ingestion: {line}", message), message


@pytest.mark.parametrize(
    "command", [("-m", "app", "run"), ("-m", "uvicorn", "app.main:app", "--port", "0")]
)
def test_a_misspelt_setting_is_warned_about_in_the_log(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    """Whether the service is started with `app run` or with uvicorn."""
    settings = {"BATCH_SIZ": "5", "WEBSOCKET_MAX_RETRIES": "0"}

    process = run_to_exit(tmp_path, settings, command)

    assert process.returncode != 0
    assert "BATCH_SIZ is not a setting; did you mean BATCH_SIZE?" in process.stdout


async def test_a_second_process_on_the_same_folder_is_refused(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Two writers would corrupt the journal."""
    async with service(tmp_path, environment) as first:
        second = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "app",
            "run",
            cwd=ROOT,
            env=environment | {"DATA_DIR": str(tmp_path / "data"), "WEBSOCKET_INGESTION_PORT": "0"},
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(30):
            _, stderr = await second.communicate()
        still = await first.get("/health/live")

    assert second.returncode == 2
    assert "another process already works in DATA_DIR" in stderr.decode()
    assert "Traceback" not in stderr.decode()
    assert still


async def test_a_loop_that_gives_up_stops_the_process_with_status_1(tmp_path: Path) -> None:
    """The reason is the last log line."""
    environment = {
        "HOME_ASSISTANT_URL": "http://127.0.0.1:9",
        "HOME_ASSISTANT_TOKEN": TOKEN,
        "WEBSOCKET_MAX_RETRIES": "1",
    }
    async with service(tmp_path, environment) as running, asyncio.timeout(20):
        status = await running.process.wait()

    last = running.output.read_text().splitlines()[-1]
    assert status == 1
    assert "CRITICAL" in last
    assert "the source loop ended: SourceUnavailable" in last


async def test_no_secret_is_in_the_log_or_in_a_response(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Neither in the log at DEBUG nor in a response."""
    secrets = {"API_KEY": "key-" + "k" * 40, "INFLUXDB_TOKEN": "influx-" + "i" * 40}
    settings = environment | secrets | {"LOG_LEVEL": "DEBUG"}
    async with service(tmp_path, settings) as running:
        await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
        headers = {"X-API-Key": secrets["API_KEY"]}
        async with httpx.AsyncClient(base_url=running.url, headers=headers) as client:
            texts = [
                (await client.get(path)).text
                for path in ("/health", "/metrics", "/openapi.json", "/api/v1/diagnostics")
            ]
        await running.stop()

    everything = "".join(texts) + running.output.read_text()
    assert [secret for secret in (*secrets.values(), TOKEN) if secret in everything] == []


async def test_no_payload_is_in_the_log_above_debug(
    environment: dict[str, str],
    home_assistant: FakeHomeAssistant,
    house: StillHouse,
    tmp_path: Path,
) -> None:
    """When an event fails, the log names its entity but none of its values."""
    influx = FakeInflux()
    influx.refuses = lambda line: f"no to {line.decode()}" if b"sensor.refused" in line else None
    settings = environment | {"INFLUXDB_TOKEN": influx.token, "BATCH_TIMEOUT": "0.1"}

    async with (
        influx.serving(),
        service(tmp_path, settings | {"INFLUXDB_URL": influx.url}) as running,
    ):
        await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
        for entity_id in ("sensor.fine", "sensor.refused", "unusable"):
            house.set_state(entity_id, "s3cret", {"note": "s3cret"})
            house.set_state(entity_id, "s3cret too", {"note": "s3cret"})
        home_assistant.send_raw(b'{"type": "event", "event": {"data": {"note": "s3cret"')
        home_assistant.send_raw(b'{"type": "event", "id": "s3cret", "event": "s3cret"}')
        await running.until("/api/v1/dead-letters", lambda letters: letters["count"] == 2)
        health = await running.get("/health")
        await running.stop()

    log = running.output.read_text()
    assert health["accounting"]["events"]["malformed"] == 4
    assert len(influx.lines) == 2
    assert "state_changed of 'unusable'" in log
    assert "is a dead letter of influxdb" in log
    assert "s3cret" not in log + str(health)


async def test_a_refused_websocket_client_is_not_logged_as_an_error(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """A refused subscription needs no action by an operator."""
    async with service(tmp_path, environment) as running:
        address = running.url.removeprefix("http://")
        for _ in range(3):
            with pytest.raises(InvalidStatus, match="403"):
                await connect(f"ws://{address}/ws", origin=Origin("http://elsewhere.example"))
        await running.stop()

    log = running.output.read_text()
    assert log.count("connection rejected (403 Forbidden)") == 3
    assert "ERROR" not in log


def test_importing_the_run_command_loads_no_optional_client() -> None:
    """Such clients took half of the import time and a quarter of the memory."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, app.commands.run; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()

    assert {"httpx", "aiohttp", "influxdb_client"}.isdisjoint(loaded)
