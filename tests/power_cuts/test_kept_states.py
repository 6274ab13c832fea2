"""Moments of a power cut that once cost something, each with many legal states of the disk."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from app.runtime.sqlite import Database
from tests.power_cuts.disk import Acknowledged, History, Names, after_cut, write_tree
from tests.power_cuts.recording import record
from tests.service.process import ROOT

_CREATE = """
import asyncio, pathlib, sys
from app.runtime.sqlite import Database

async def main():
    async with Database(pathlib.Path(sys.argv[1]) / "x.db", migrations=["CREATE TABLE x (y)"]):
        pass

asyncio.run(main())
"""
_SET_ASIDE = """
import pathlib, sys
from app.runtime.sqlite import set_aside

set_aside(pathlib.Path(sys.argv[1]) / "x.db")
"""
_SUSPECT = """
import asyncio, os, pathlib, sys
from tests.integration.test_embedded_store import batch_of, series, store_at

async def main():
    folder, ledger = map(pathlib.Path, sys.argv[1:])
    async with store_at(folder) as store:
        await store.write(batch_of(*series(200)))
    async with store_at(folder) as store:
        events = os.open(folder / "events.db", os.O_RDWR)
        os.pwrite(events, bytes(os.fstat(events).st_size - 4096), 4096)
        outcome = await store.write(batch_of(*series(200)))
        os.write(os.open(ledger, os.O_WRONLY | os.O_CREAT), type(outcome).__name__.encode())

asyncio.run(main())
"""
_FIRST_START = """
import asyncio, os, pathlib, sys
from app.runtime.sqlite import Database, owned_folder

async def main():
    data, ledger = pathlib.Path(sys.argv[1]) / "new" / "data", sys.argv[2]
    with owned_folder(data):
        async with Database(data / "x.db", migrations=["CREATE TABLE x (y)"]):
            os.write(os.open(ledger, os.O_WRONLY | os.O_CREAT), b"started")

asyncio.run(main())
"""


@pytest.fixture
def recorded(folder: Path) -> Callable[..., History]:
    """Return what runs a program on the folder `disk`, twice if it is killed the first time."""
    (folder / "disk").mkdir()

    def run(code: str, *, kill_at: str | None = None) -> History:
        command = [sys.executable, "-c", code, str(folder / "disk"), str(folder / "ledger")]
        return record(
            folder / "disk",
            *([command, command] if kill_at else [command]),
            kill_at=kill_at,
            trace=folder / "trace",
            acknowledgements=folder / "ledger",
            environment={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        )

    return run


def states(history: History, folder: Path, *, each: int, first: int = 0) -> Iterator[Path]:
    """Yield a folder with some states after each operation from the first on."""
    chance = Random(0)
    for cut in range(first, len(history.operations)):
        for _ in range(each):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write_tree(after_cut(history, cut, chance), folder)
            yield folder


async def test_a_cut_while_a_file_is_created_is_not_damage(
    recorded: Callable[..., History], folder: Path
) -> None:
    """It left an empty file, or a rollback journal: a first start reported damage and a repair."""
    history = recorded(_CREATE)

    for state in states(history, folder / "state", each=8):
        async with Database(state / "x.db", migrations=["CREATE TABLE x (y)"]) as database:
            await database.write(lambda connection: connection.execute("INSERT INTO x VALUES (1)"))
        assert list(state.glob("*.damaged-*")) == []


def test_a_damaged_file_is_never_in_its_place_without_its_log(
    recorded: Callable[..., History], folder: Path
) -> None:
    """The renamed log reached the disk first: the next start took the rest for a healthy file."""
    disk = folder / "disk"
    with closing(sqlite3.connect(disk / "x.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE x (y)")
        shutil.copytree(disk, folder / "killed")
    shutil.rmtree(disk)
    shutil.copytree(folder / "killed", disk)
    history = recorded(_SET_ASIDE)

    assert [each for each in history.operations if isinstance(each, Names)] != []
    for state in states(history, folder / "state", each=50):
        assert not (state / "x.db").exists() or (state / "x.db-wal").exists()


def test_a_store_that_reported_damage_is_checked_after_a_cut(
    recorded: Callable[..., History], folder: Path
) -> None:
    """The mark for the next start was not synced: that start read little and missed the damage."""
    history = recorded(_SUSPECT)
    held = history.operations.index(Acknowledged(b"Held"))

    for state in states(history, folder / "state", each=20, first=held):
        assert (state / "events.db.suspect").exists()


def test_folders_that_a_killed_process_created_are_durable(
    recorded: Callable[..., History], folder: Path
) -> None:
    """The next one took them for old ones and did not sync their names."""
    history = recorded(_FIRST_START, kill_at="fsync:when=1")
    started = history.operations.index(Acknowledged(b"started"))

    for state in states(history, folder / "state", each=20, first=started):
        assert (state / "new" / "data" / "x.db").exists()
