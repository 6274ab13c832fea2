"""`python -m app doctor` as users run it: a process, its exit status and its output."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.fakes.influx import FakeInflux
from tests.service.process import ROOT, service

INFLUX_TOKEN = "token-of-the-database-0123456789"


async def doctor(
    folder: Path, environment: Mapping[str, str], *options: str
) -> tuple[int | None, str, str]:
    """Run the command in a separate environment; return its status, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "app", "doctor", *options),
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "DATA_DIR": str(folder / "data"),
            "WEBSOCKET_INGESTION_PORT": "0",
            **{name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")},
            **environment,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_the_doctor_passes_while_the_service_runs(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """Status 0; the port and folder in use are no problem, and the service is not disturbed."""
    async with FakeInflux(token=INFLUX_TOKEN).serving() as influx:
        settings = {
            **environment,
            "INFLUXDB_URL": influx.url,
            "INFLUXDB_TOKEN": INFLUX_TOKEN,
            "INFLUXDB_API": "v2",
        }
        async with service(tmp_path, settings) as running:
            await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
            port = running.url.rpartition(":")[2]
            settings["WEBSOCKET_INGESTION_PORT"] = port
            status, out, err = await doctor(tmp_path, settings)
            health = await running.get("/health")

    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert {line.split("  ")[0] for line in lines[:-2]} <= {"ok", "warning"}
    assert f"This service already runs at http://127.0.0.1:{port}" in out
    assert health["status"] == "healthy", health["reasons"]


async def test_the_doctor_prints_json_and_sets_the_exit_status(tmp_path: Path) -> None:
    """Status 1 when a check failed; only the JSON document is printed."""
    status, out, err = await doctor(
        tmp_path,
        {"HOME_ASSISTANT_URL": "http://127.0.0.1:1", "HOME_ASSISTANT_TOKEN": "t" * 40},
        "--json",
    )

    document = json.loads(out)
    assert (status, err) == (1, "")
    assert document["verdict"] == "failed"
    assert [check["name"] for check in document["checks"] if check["status"] == "failed"] == [
        "home_assistant"
    ]


async def test_invalid_settings_end_the_doctor_with_status_2(tmp_path: Path) -> None:
    """One line per mistake, including those of .env in the working directory."""
    (tmp_path / ".env").write_text("BATCH_SIZE=none\n")

    status, out, err = await doctor(tmp_path, {"HOME_ASSISTANT_URL": "ftp://x"})

    failed = [line for line in out.splitlines() if line.startswith("failed")]
    assert (status, err) == (2, "")
    assert [
        any(name in line for line in failed)
        for name in ("HOME_ASSISTANT_URL", "HOME_ASSISTANT_TOKEN", "BATCH_SIZE")
    ] == [True] * 3
    assert len(failed) == 3
