"""`make demo`: the whole service with a simulated home, and nothing else installed."""

import asyncio
import contextlib
import re
import signal
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.service.process import ROOT, service

HOSTILE = {
    # None of these may reach the demo.
    "HOME_ASSISTANT_URL": "http://192.0.2.1:8123",
    "HOME_ASSISTANT_TOKEN": "x" * 64,
    "HA_WS_URL": "ws://192.0.2.1/api/websocket",
    "INFLUXDB_URL": "http://192.0.2.1:8086",
    "DATA_API_URL": "http://192.0.2.1:8006",
    # These are not even valid.
    "HA_SSL_VERIFY": "perhaps",
    "INFLUXDB_API": "v9",
}


@pytest.mark.long
async def test_the_demo_streams_a_simulated_home_and_continues_where_it_stopped(
    tmp_path: Path,
) -> None:
    """It ignores the settings of real servers, and backfills the changes of the downtime."""
    command = ("-m", "app", "demo")
    environment = HOSTILE | {
        "WEBSOCKET_INGESTION_PORT": "",
        "LOG_LEVEL": "INFO",
        "BATCH_TIMEOUT": "0.2",
    }
    (tmp_path / ".env").write_text("BATCH_SIZE=none\nINFLUXDB_URL=http://192.0.2.1:8086\n")

    async with service(tmp_path, environment, command=command, cwd=tmp_path) as first:
        health = await first.until(
            "/health", lambda health: health["sinks"][0]["points_written"] >= 8, timeout_s=60
        )
        page = await first.get("/api/v1/events?limit=1000")
        status = await first.stop(signal.SIGINT)
    output = first.output.read_text()

    assert health["status"] == "healthy", health["reasons"]
    assert health["discovery"]["areas"] == 8
    assert 30 <= health["discovery"]["devices"] <= 60
    assert [sink["name"] for sink in health["sinks"]] == ["embedded"]
    assert any(event["area_id"] for event in page["events"])
    assert status == 0
    for line in (f"Dashboard  {first.url}/", f"API        {first.url}/docs", "/health"):
        assert line in output
    assert output.startswith("Starting the service and a simulated home")
    assert "192.0.2.1" not in output
    assert "Traceback" not in output
    summary = re.search(r"Stopped\. Stored ([\d,]+) points of this run in data/demo", output)
    assert summary is not None
    assert int(summary[1].replace(",", "")) >= 8

    assert urlsplit(first.url).port in range(8001, 8100)
    assert not (tmp_path / "data" / "journal.db").exists()

    async with service(tmp_path, environment, command=command, cwd=tmp_path) as second:
        await second.until(
            "/health",
            lambda health: health["gaps"]["filled"] and not health["gaps"]["open"],
            timeout_s=60,
        )
        (gap,) = (await second.get("/api/v1/gaps"))["gaps"]
        before = {(event["entity_id"], event["time"]) for event in page["events"]}
        after = await second.get("/api/v1/events?limit=1000")
        status = await second.stop(signal.SIGINT)

    assert status == 0
    assert (gap["reason"], gap["state"]) == ("restart", "filled")
    assert gap["changes"] > 0
    assert before & {(event["entity_id"], event["time"]) for event in after["events"]}


async def test_the_demo_takes_the_next_free_port_when_none_is_set(tmp_path: Path) -> None:
    """Here another program listens on 8001."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(socket.create_server(("127.0.0.1", 8001)))
        settings = {"WEBSOCKET_INGESTION_PORT": "", "LOG_LEVEL": "INFO"}
        async with service(
            tmp_path, settings, command=("-m", "app", "demo"), cwd=tmp_path
        ) as running:
            alive = await running.get("/health/live")
            status = await running.stop(signal.SIGINT)

    assert urlsplit(running.url).port in range(8002, 8100)
    assert alive == {"status": "alive"}
    assert status == 0


@pytest.mark.parametrize("after_s", [0.0, 0.3, 0.7, 1.2, 2.0])
async def test_ctrl_c_ends_the_demo_without_a_traceback_at_any_moment(
    tmp_path: Path, after_s: float
) -> None:
    """While importing, starting and running; the last line reports what was stored."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "demo"),
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        first = await process.stdout.readline()
        await asyncio.sleep(after_s)
        process.send_signal(signal.SIGINT)
        output = (first + await process.stdout.read()).decode()
        status = await process.wait()

    assert "Traceback" not in output
    last = output.splitlines()[-1]
    assert last.startswith(("Interrupted", "Stopped. "))
    assert status == (130 if last.startswith("Interrupted") else 0)


async def refused(folder: Path, port: int | str) -> str:
    """Start a demo that must be refused, and return the one line it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "app",
        "demo",
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "WEBSOCKET_INGESTION_PORT": str(port)},
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        _, stderr = await process.communicate()
    (line,) = stderr.decode().splitlines()
    assert process.returncode == 2
    return line


async def test_a_taken_port_is_one_clear_message(tmp_path: Path) -> None:
    """A configured port is used or refused, never replaced by another one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = await refused(tmp_path, port)

    assert line.startswith(
        f"websocket-ingestion: WEBSOCKET_INGESTION_PORT: cannot listen on 127.0.0.1:{port}"
    )


async def test_a_second_demo_beside_the_first_is_refused(tmp_path: Path) -> None:
    """With the reason, and without touching the home of the first one."""
    settings = {"WEBSOCKET_INGESTION_PORT": "", "LOG_LEVEL": "INFO"}
    async with service(tmp_path, settings, command=("-m", "app", "demo"), cwd=tmp_path) as first:
        await first.until("/health", lambda health: health["subscription"]["is_subscribed"])
        home = tmp_path / "data" / "demo" / "home"
        before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
        line = await refused(tmp_path, "")
        after = {path: path.stat().st_mtime_ns for path in home.rglob("*")}

    assert "another process already works in DATA_DIR data/demo" in line
    assert before == after


@pytest.mark.parametrize("port", ["8001x", "-1", "65536"])
async def test_an_invalid_port_is_one_clear_message(tmp_path: Path, port: str) -> None:
    """It names the variable and its valid values."""
    assert await refused(tmp_path, port) == (
        f"websocket-ingestion: WEBSOCKET_INGESTION_PORT: {port!r} is not a port number;"
        " set one up to 65535"
    )
