"""The filter and the transforms of a running service, and invalid ones at its start."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.fakes.still_house import StillHouse
from tests.service.process import ROOT, TOKEN, service

_RUN = ("-m", "app", "run")
_UVICORN = ("-m", "uvicorn", "app.main:app")
_MODULE = """
import msgspec

from app.model import Change


def louder(change: Change) -> Change | None:
    if change.entity_id == "sensor.secret":
        return None
    if change.entity_id == "sensor.bad":
        raise ValueError("cannot bear it")
    return msgspec.structs.replace(change, state=change.state + "!")
"""


async def test_filtered_and_transformed_events_are_accounted_for(
    tmp_path: Path, environment: dict[str, str], house: StillHouse
) -> None:
    """Received = journaled + filtered, also after the filter is changed at run time."""
    shared, rules = tmp_path / "shared", tmp_path / "filter.json"
    shared.mkdir()
    (shared / "rules_of_mine.py").write_text(_MODULE)
    rules.write_text('{"patterns":[{"domain":"light"}]}')
    settings = {
        **environment,
        "ENTITY_FILTER_CONFIG_FILE": str(rules),
        "HOMEIQ_SHARED_PATH": str(shared),
        "INGEST_TRANSFORMS": "rules_of_mine:louder",
        "BATCH_SIZE": "1",
    }
    async with service(tmp_path, settings) as running:
        await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
        for entity_id in ("light.a", "sensor.a", "sensor.secret", "sensor.bad"):
            house.set_state(entity_id, "on")
        await running.until(
            "/health", lambda health: health["accounting"]["events"]["journaled"] == 2
        )
        rules.write_text('{"patterns":[{"entity_id":"sensor.*"}]}')
        await running.until(
            "/api/v1/filter/stats",
            lambda stats: stats["patterns"][0]["rule"] == {"entity_id": "sensor.*"},
        )
        house.set_state("light.a", "off")
        house.set_state("sensor.a", "off")
        health = await running.until(
            "/health",
            lambda health: (
                health["accounting"]["events"]["received"] == 6
                and health["accounting"]["events"]["pending"] == 0
                and health["sinks"][0]["points_written"] == 3
            ),
        )
        page = await running.get("/api/v1/events")
        metrics = await running.text("/metrics")
        await running.stop()

    events = health["accounting"]["events"]
    assert (events["journaled"], events["filtered"]) == (3, 3)
    assert [(event["entity_id"], event["state"]) for event in page["events"]] == [
        ("light.a", "off!"),
        ("sensor.bad", "on"),
        ("sensor.a", "on!"),
    ]
    assert 'ingest_transform_failures_total{transform="rules_of_mine:louder"} 1.0' in metrics
    assert "ingest_events_filtered_total 3.0" in metrics


@pytest.mark.parametrize(
    ("command", "variable", "value", "message"),
    [
        (_RUN, "ENTITY_FILTER_CONFIG", '{"mode": only}', "line 1, column 10: Expecting value"),
        (_RUN, "ENTITY_FILTER_CONFIG_FILE", "/no/such/file", "cannot be read: No such file"),
        (_RUN, "INGEST_TRANSFORMS", "no_such_module:f", "No module named 'no_such_module'"),
        (_UVICORN, "INGEST_TRANSFORMS", "no_such_module:f", "No module named 'no_such_module'"),
    ],
)
async def test_an_unusable_filter_or_transform_stops_the_start(
    tmp_path: Path, command: tuple[str, ...], variable: str, value: str, message: str
) -> None:
    """Status 2, and one line that names the variable and the position."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "DATA_DIR": str(tmp_path),
        "HOME_ASSISTANT_URL": "http://127.0.0.1:9",
        "HOME_ASSISTANT_TOKEN": TOKEN,
        "WEBSOCKET_INGESTION_PORT": "0",
        variable: value,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, env=environment, cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        _, stderr = await process.communicate()

    (line,) = stderr.decode().splitlines()
    assert process.returncode == 2
    assert line.startswith(f"websocket-ingestion: {variable}: ")
    assert message in line
