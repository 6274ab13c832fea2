"""`python -m app doctor` against a real Home Assistant and real databases."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.commands.doctor import command
from app.doctor.probe import MEASUREMENT
from app.settings import variables
from tests.real.influx_1 import Database
from tests.real.servers import HomeAssistant, Server

# The first test includes the start of Home Assistant, minutes on a busy machine.
pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

Set = Callable[..., None]


@pytest.fixture
def set_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Set:
    """Return a function that sets variables; the folder and the port are set already."""
    for variable in variables():
        for name in variable.names:
            monkeypatch.delenv(name, raising=False)

    def set_variables(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    set_variables(DATA_DIR=str(tmp_path / "data"), WEBSOCKET_INGESTION_PORT="0")
    return set_variables


async def doctor() -> dict[str, Any]:
    """Return the checks by name, and the verdict."""
    out = io.StringIO()
    verdict = await command.run(None, out, as_json=True)
    checks = {check["name"]: check for check in json.loads(out.getvalue())["checks"]}
    return {"verdict": verdict, **checks}


@pytest.mark.parametrize("is_admin", [True, False])
async def test_every_check_passes_with_either_token(
    home_assistant: HomeAssistant, influx_1: Server, set_: Set, *, is_admin: bool
) -> None:
    """Rights, version, clock and recorder are real; the probe is written, read and deleted."""
    database = Database(influx_1.url, "doctor")
    database.run('DROP DATABASE "doctor"')
    set_(
        HOME_ASSISTANT_URL=home_assistant.url,
        HOME_ASSISTANT_TOKEN=home_assistant.token if is_admin else home_assistant.read_only_token,
        INFLUXDB_URL=influx_1.url,
        INFLUXDB_BUCKET="doctor",
    )

    report = await doctor()

    assert report["verdict"] == "ok", report
    assert report["rights"]["readings"] == {"is_admin": is_admin}
    assert report["version"]["readings"]["ha_state"] == "RUNNING"
    assert report["recorder"]["readings"] == {"present": True, "hours_back": 1.0}
    assert abs(report["ha_clock"]["readings"]["difference_s"]) <= 5.0
    assert report["database"]["readings"]["version"].startswith("1.6.7")
    assert report["database_read_back"]["readings"] == {"found": True, "removed": True}
    assert database.points(f'SELECT * FROM "{MEASUREMENT}" GROUP BY *') == []


async def test_a_wrong_token_and_a_wrong_address_are_distinguished(
    home_assistant: HomeAssistant, influx_1: Server, set_: Set
) -> None:
    """A wrong path of Home Assistant, the database's address in its place, and the reverse."""
    set_(
        HOME_ASSISTANT_URL=home_assistant.url,
        HOME_ASSISTANT_TOKEN="x" * 64,
        INFLUXDB_URL=home_assistant.url,
    )
    report = await doctor()
    set_(HOME_ASSISTANT_URL=influx_1.url)
    again = await doctor()
    set_(HOME_ASSISTANT_URL=home_assistant.url.replace("http:", "https:"))
    tls = await doctor()

    assert report["home_assistant"]["status"] == "ok"
    assert report["token"]["status"] == "failed"
    assert "HOME_ASSISTANT_TOKEN" in report["token"]["advice"]
    assert "INFLUXDB_URL" in report["database"]["advice"]
    assert again["home_assistant"]["status"] == "failed"
    assert "404" in again["home_assistant"]["what"]
    assert "does not speak TLS" in tls["home_assistant"]["what"]


async def test_the_probe_point_stays_in_victoria_metrics(
    home_assistant: HomeAssistant, victoria: Server, set_: Set
) -> None:
    """It is accepted; that InfluxDB's query API cannot read it back is a warning."""
    set_(
        HOME_ASSISTANT_URL=home_assistant.url,
        HOME_ASSISTANT_TOKEN=home_assistant.read_only_token,
        INFLUXDB_URL=victoria.url,
    )

    report = await doctor()

    assert report["verdict"] == "warning", report
    assert report["database_write"]["status"] == "ok"
    assert report["database_read_back"]["status"] == "warning"
    assert MEASUREMENT in report["database_read_back"]["what"]
