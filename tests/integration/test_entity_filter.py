"""The filter in use: counted, served, and read again when its file changes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app.normalize.filter import EntityFilter
from app.runtime.errors import FilterInvalid
from tests.fakes.service import api_client, components
from tests.fakes.snapshots import change

NO_LIGHTS = '{"patterns":[{"domain":"light"}],"exceptions":[{"entity_id":"light.hall"}]}'


@contextlib.asynccontextmanager
async def watching(entity_filter: EntityFilter) -> AsyncIterator[None]:
    """Let it look at its file."""
    task = asyncio.create_task(entity_filter.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def until(met: Callable[[], object]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(5):
        while not met():
            await asyncio.sleep(0.001)


async def test_a_changed_filter_file_is_read_again(tmp_path: Path) -> None:
    """What it held back before, it may keep from then on; the totals stay."""
    file = tmp_path / "filter.json"
    file.write_text(NO_LIGHTS)
    entity_filter = EntityFilter.of_file(file, poll_s=0.001)
    light, sensor = change("light.a"), change("sensor.a")
    assert entity_filter.selected([light, sensor]) == [sensor]

    async with watching(entity_filter):
        file.write_text('{"patterns":[{"domain":"sensor"}]}')
        await until(lambda: entity_filter.passes(light))

    assert entity_filter.selected([light, sensor]) == [light]
    status = entity_filter.status()
    assert (status.passed, status.filtered) == (2, 2)
    assert status.matched == (1,)
    assert status.problem is None


@pytest.mark.parametrize("damage", ["broken", "not UTF-8", "gone", "a pipe"])
async def test_a_broken_filter_file_is_refused_and_the_previous_filter_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """The log, /health and the statistics say so until the file is fixed."""
    file = tmp_path / "filter.json"
    file.write_text(NO_LIGHTS)
    entity_filter = EntityFilter.of_file(file, poll_s=0.001)

    async with watching(entity_filter):
        if damage in {"gone", "a pipe"}:
            file.unlink()
            if damage == "a pipe":
                os.mkfifo(file)
        else:
            file.write_bytes(b'{"patterns":' if damage == "broken" else b"\xff")
        await until(lambda: entity_filter.reason)
        assert not entity_filter.passes(change("light.a"))
        assert entity_filter.status().problem is not None
        assert "cannot be used, the one before stays" in caplog.text

        file.unlink(missing_ok=True)
        file.write_text("{}")
        await until(lambda: entity_filter.reason is None)
        assert entity_filter.passes(change("light.a"))


def test_a_missing_filter_file_stops_the_start(tmp_path: Path) -> None:
    """Starting without it would keep what it was to hold back."""
    with pytest.raises(FilterInvalid, match="cannot be read: No such file"):
        EntityFilter.of_file(tmp_path / "none.json")


def test_a_filter_file_that_is_a_device_or_a_pipe_is_refused(tmp_path: Path) -> None:
    """Reading it may never end."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    for endless in (Path("/dev/zero"), pipe):
        with pytest.raises(FilterInvalid, match="it is not a regular file"):
            EntityFilter.of_file(endless)


async def test_the_filter_statistics_count_each_rule() -> None:
    """So that a person can see whether a pattern ever fits."""
    entity_filter = EntityFilter.of_text(NO_LIGHTS)
    entity_filter.selected([change("light.a"), change("light.hall"), change("sensor.a")])

    async with api_client(components(entity_filter=entity_filter)) as client:
        stats = (await client.get("/api/v1/filter/stats")).json()

    assert stats.pop("loaded_at")
    assert stats == {
        "active": True,
        "source": "ENTITY_FILTER_CONFIG",
        "mode": "exclude",
        "passed": 2,
        "filtered": 1,
        "patterns": [{"rule": {"domain": "light"}, "matched": 1}],
        "exceptions": [{"rule": {"entity_id": "light.hall"}, "matched": 1}],
        "problem": None,
    }


async def test_without_a_filter_the_filter_statistics_are_inactive() -> None:
    """Everything passes."""
    async with api_client() as client:
        stats = (await client.get("/api/v1/filter/stats")).json()

    assert stats["active"] is False
    assert json.dumps(stats["patterns"]) == "[]"
