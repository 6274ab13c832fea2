"""The real servers behave as the other tests expect."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.real.servers import HomeAssistant, Server, ServerFailed, ServerMissing, program

# The first test includes the start of Home Assistant, minutes on a busy machine.
pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


def test_a_server_that_is_not_installed_fails_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test may be skipped silently."""
    monkeypatch.setenv("REAL_SERVERS_DIR", str(tmp_path))

    with pytest.raises(ServerMissing, match="run: make real-servers"):
        program("hass")


def test_a_server_that_exits_at_once_fails_with_the_end_of_its_log(tmp_path: Path) -> None:
    """Its last output shows the cause."""
    server = Server(
        ["/bin/sh", "-c", "echo no room at the inn; exit 1"],
        folder=tmp_path,
        url="http://127.0.0.1:9",
        ready="/ping",
    )

    with pytest.raises(ServerFailed, match="no room at the inn"), server:
        pass


def test_influxdb_1_has_the_version_the_tests_are_written_for(influx_1: Server) -> None:
    """Its answers differ by version; those in the tests are of 1.6.7."""
    answer = httpx.get(f"{influx_1.url}/ping")

    assert (answer.status_code, answer.headers["X-Influxdb-Version"][:5]) == (204, "1.6.7")


def test_the_load_generator_keeps_its_rate_and_logs_what_it_emitted(
    home_assistant: HomeAssistant,
) -> None:
    """Other tests rely on its log."""
    emitted = home_assistant.emit(2_000, rate=2_000, sensors=50)
    states = home_assistant.call("get_states", token=home_assistant.read_only_token)

    assert isinstance(states, list)
    newest = {change.entity_id: change.state for change in emitted}
    shown = {
        row["entity_id"]: row["state"]
        for row in states
        if row["entity_id"].startswith("sensor.load")
    }
    assert len(set(emitted)) == 2_000
    assert len(newest) == 50
    assert newest == {entity_id: shown[entity_id] for entity_id in newest}
    assert (emitted[-1].last_updated - emitted[0].last_updated).total_seconds() < 5
