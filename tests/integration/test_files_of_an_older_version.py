"""Files that the version at commit ed0780b wrote open unchanged, and nothing in them is lost."""

from __future__ import annotations

import gzip
import json
import sqlite3
import tarfile
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.influx import FakeInflux
from tests.fakes.still_house import StillHouse, now
from tests.service.process import TOKEN, service

_ARCHIVE = Path(__file__).parents[1] / "recordings" / "data-folder-of-ed0780b" / "data.tar.xz"
_AFTERWARDS = datetime(2026, 12, 1, tzinfo=UTC)
_TAIL = 341


@pytest.fixture
def house() -> StillHouse:
    """Return a home whose clock is past all that the files hold."""
    return StillHouse(clock=lambda: max(now(), _AFTERWARDS))


@pytest.fixture
async def home_assistant(house: StillHouse) -> AsyncIterator[FakeHomeAssistant]:
    """Serve that home."""
    async with FakeHomeAssistant(house, token=TOKEN) as fake:
        house.fire = fake.fire
        yield fake


@pytest.fixture
def replies(tmp_path: Path) -> Any:
    """Unpack the data folder; return what the older version replied before it stopped."""
    with tarfile.open(_ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return json.loads((tmp_path / "replies.json").read_text())


def settings(home_assistant: FakeHomeAssistant, influx: FakeInflux) -> dict[str, str]:
    """Return the settings that the older version had."""
    return {
        "HOME_ASSISTANT_URL": home_assistant.url,
        "HOME_ASSISTANT_TOKEN": TOKEN,
        "INFLUXDB_URL": influx.url,
        "INFLUXDB_TOKEN": influx.token,
        "INFLUXDB_API": "v2",
        "BATCH_TIMEOUT": "0.1",
        "EMBEDDED_STORE": "on",
        "EMBEDDED_RETENTION_DAYS": "36500",
        "BACKFILL_ENABLED": "false",
    }


def pending_lines(path: Path, sink: str) -> list[bytes]:
    """Return the lines in a journal that a sink has not accepted, by SQL alone."""
    with closing(sqlite3.connect(path)) as connection:
        (cursor,) = connection.execute(
            "SELECT settled FROM cursors WHERE sink = ?", (sink,)
        ).fetchone()
        rows = connection.execute("SELECT first, gzip FROM journal_rows ORDER BY first").fetchall()
    return [
        line
        for first, packed in rows
        for number, line in enumerate(gzip.decompress(packed).splitlines(), start=first)
        if number > cursor
    ]


def written(health: Any) -> tuple[int, ...]:
    """Return how many points each sink has accepted since the start."""
    return tuple(sink["points_written"] for sink in health["sinks"])


def contains(found: Iterable[Mapping[str, Any]], expected: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether the items are there in this order, each perhaps with keys that are newer."""
    pairs = zip(found, expected, strict=True)
    return all(ours.items() >= theirs.items() for ours, theirs in pairs)


async def test_pending_points_of_an_older_journal_are_delivered_once_and_in_order(
    home_assistant: FakeHomeAssistant, house: StillHouse, replies: Any, tmp_path: Path
) -> None:
    """Sequence numbers go on behind them, and the sink that was not behind gets none again."""
    journal = tmp_path / "data" / "journal.db"
    due = pending_lines(journal, "influxdb")

    async with (
        FakeInflux().serving() as influx,
        service(tmp_path, settings(home_assistant, influx)) as running,
    ):
        await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
        house.set_state("sensor.power", "new")
        await running.until("/health", lambda health: written(health) == (201, 1))
        events = await running.get("/api/v1/events?limit=1000")
        assert await running.stop() == 0

    with closing(sqlite3.connect(journal)) as connection:
        cursors = dict(connection.execute("SELECT sink, settled FROM cursors"))
    assert len(due) == 200
    assert [*due, influx.lines[-1]] == influx.lines
    assert b'state_value="new"' in influx.lines[-1]
    assert cursors == {"influxdb": _TAIL + 1, "embedded": _TAIL + 1}
    assert events["events"][1:] == replies["events"]["events"]


async def test_gaps_dead_letters_catalog_and_history_of_an_older_version_are_still_there(
    home_assistant: FakeHomeAssistant, replies: Any, tmp_path: Path
) -> None:
    """All from the files: Home Assistant refuses connections, and the database is down."""
    home_assistant.refusing = True
    influx = FakeInflux()
    async with influx.serving():
        pass
    async with service(tmp_path, settings(home_assistant, influx)) as running:
        gaps = await running.get("/api/v1/gaps")
        dead_letters = await running.get("/api/v1/dead-letters")
        devices, entities, areas = [
            await running.get(f"/api/{kind}") for kind in ("devices", "entities", "areas")
        ]
        events = await running.get("/api/v1/events?limit=1000")
        assert await running.stop() == 0

    assert [gap["state"] for gap in gaps["gaps"]] == ["open", "filled"]
    assert contains(gaps["gaps"], replies["gaps"]["gaps"])
    assert [letter["reason"] for letter in dead_letters["dead_letters"]] == ["no garages"]
    assert contains(dead_letters["dead_letters"], replies["dead_letters"]["dead_letters"])
    assert contains(devices["devices"], replies["devices"]["devices"])
    assert contains(entities["entities"], replies["entities"]["entities"])
    assert contains(areas["areas"], replies["areas"]["areas"])
    assert len(events["events"]) == _TAIL
    assert contains(events["events"], replies["events"]["events"])
