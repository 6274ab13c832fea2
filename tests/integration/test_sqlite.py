"""SQLite files: durable, migrated in order, and explicit about errors."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from app.runtime import sqlite, sqlite_pages
from app.runtime.errors import (
    StorageDamaged,
    StorageError,
    StorageFull,
    StorageLocked,
    StorageNewer,
)
from app.runtime.sqlite import Connection, Database, owned_folder, translated_errors

TABLE = "CREATE TABLE numbers (number INTEGER PRIMARY KEY)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A place for a database, in a folder that is not there yet."""
    return tmp_path / "deep" / "numbers.db"


def database_at(
    path: Path,
    *,
    migrations: Sequence[str] = (TABLE,),
    synchronous: Literal["FULL", "NORMAL"] = "FULL",
) -> Database:
    """Return a database that is not open yet."""
    return Database(path, migrations=migrations, synchronous=synchronous)


def insert(connection: Connection, number: int = 1) -> None:
    """Insert a number; twice is an error."""
    connection.execute("INSERT INTO numbers VALUES (?)", (number,))


def numbers(connection: Connection) -> list[int]:
    """Return all numbers."""
    return [number for (number,) in connection.execute("SELECT number FROM numbers")]


async def test_written_rows_are_there_after_a_restart(path: Path) -> None:
    """The folder is made, the file is kept."""
    async with database_at(path) as database:
        await database.write(insert)

    async with database_at(path) as database:
        assert await database.read(numbers) == [1]


async def test_a_failed_transaction_changes_nothing(path: Path) -> None:
    """All of it or none of it, and the next one works."""

    def half(connection: Connection) -> None:
        insert(connection, 2)
        raise ZeroDivisionError

    async with database_at(path) as database:
        await database.write(insert)
        with pytest.raises(ZeroDivisionError):
            await database.write(half)
        with pytest.raises(StorageError, match="UNIQUE"):
            await database.write(insert)

        assert await database.read(numbers) == [1]


async def test_the_read_connection_of_a_database_cannot_write(path: Path) -> None:
    """There is one writer, so nothing ever waits for a lock."""
    async with database_at(path) as database:
        with pytest.raises(StorageError, match="readonly"):
            await database.read(insert)


async def test_database_work_runs_in_its_own_threads(path: Path) -> None:
    """The event loop never touches the disk; reading goes on beside writing."""

    def thread(_: Connection) -> str:
        return threading.current_thread().name

    async with database_at(path) as database:
        writer, reader = await database.write(thread), await database.read(thread)

    assert writer.startswith("sqlite-write[numbers.db]")
    assert reader.startswith("sqlite-read[numbers.db]")


@pytest.mark.parametrize(("synchronous", "expected"), [("FULL", 2), ("NORMAL", 1)])
async def test_a_commit_has_the_requested_durability(
    path: Path, synchronous: Literal["FULL", "NORMAL"], expected: int
) -> None:
    """FULL waits for the disk at every commit."""

    def asked(connection: Connection) -> tuple[int, int]:
        return sqlite.pragma(connection, "synchronous"), sqlite.pragma(connection, "auto_vacuum")

    async with database_at(path, synchronous=synchronous) as database:
        (mode,) = await database.write(
            lambda connection: connection.execute("PRAGMA journal_mode").fetchone()
        )
        synced, vacuum = await database.write(asked)

    assert (mode, synced, vacuum) == ("wal", expected, 2)


async def test_a_cancelled_write_is_still_completed(path: Path) -> None:
    """A transaction is never left open, and closing queues behind it."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        begun.set()
        go_on.wait(5)
        insert(connection)

    async with database_at(path) as database:
        writing = asyncio.create_task(database.write(slow), name="writing")
        await asyncio.to_thread(begun.wait, 5)
        writing.cancel()
        await asyncio.wait({writing})
        assert writing.cancelled()
        go_on.set()

    async with database_at(path) as database:
        assert await database.read(numbers) == [1]


async def test_database_migrations_run_once_and_in_order(path: Path) -> None:
    """A file of any earlier version becomes one of today."""
    more = (
        TABLE,
        "ALTER TABLE numbers ADD COLUMN name TEXT",
        "INSERT INTO numbers VALUES (7, 'x')",
    )
    async with database_at(path) as database:
        await database.write(insert)
    for _ in range(2):
        async with database_at(path, migrations=more) as database:
            assert await database.read(numbers) == [1, 7]


async def test_a_failed_migration_leaves_the_version_before_it(path: Path) -> None:
    """It may be tried again with a fixed program."""
    async with database_at(path) as database:
        await database.write(insert)
    broken = (TABLE, "CREATE TABLE other (id); INSERT INTO nowhere VALUES (1)")
    with pytest.raises(StorageError, match="nowhere"):
        async with database_at(path, migrations=broken):
            pass

    async with database_at(path, migrations=(TABLE, "CREATE TABLE other (id)")) as database:
        assert await database.read(numbers) == [1]


async def test_a_file_of_a_newer_version_is_not_touched(path: Path) -> None:
    """After a downgrade the error explains what to do."""
    async with database_at(path, migrations=(TABLE, "CREATE TABLE other (id)")):
        pass
    with pytest.raises(StorageNewer, match="newer version"):
        async with database_at(path):
            pass


@pytest.mark.parametrize("version", [1 | 1 << 10, 1 | 1 << 30, -(2**31)])
async def test_an_impossible_schema_version_counts_as_damage(path: Path, version: int) -> None:
    """A flipped bit in it is repaired, where a newer version would be left alone."""
    async with database_at(path):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    with pytest.raises(StorageDamaged, match="another program"):
        async with database_at(path):
            pass


async def test_a_file_that_is_not_a_database_counts_as_damage(path: Path) -> None:
    """The owner decides what becomes of it."""
    path.parent.mkdir()
    path.write_bytes(b"\xa5" * 10_000)
    with pytest.raises(StorageDamaged):
        async with database_at(path):
            pass


async def test_a_full_disk_raises_its_own_error(path: Path) -> None:
    """Nothing was changed, and it may be tried again when there is room."""

    def fill(connection: Connection) -> None:
        pages = sqlite.pragma(connection, "page_count")
        connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        connection.executemany("INSERT INTO numbers VALUES (?)", [(n,) for n in range(10_000)])

    async with database_at(path) as database:
        with pytest.raises(StorageFull):
            await database.write(fill)

        assert await database.read(numbers) == []


async def test_a_folder_that_cannot_be_created_raises_our_error(tmp_path: Path) -> None:
    """No foreign exception leaves this file."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        async with database_at(tmp_path / "file" / "numbers.db"):
            pass


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, StorageFull), (errno.EACCES, StorageError)]
)
def test_file_system_errors_become_storage_errors(
    number: int, expected: type[StorageError]
) -> None:
    """A full disk is reported as one, whichever call finds it."""
    with pytest.raises(StorageError) as caught, sqlite.translated_errors():
        raise OSError(number, "no")

    assert type(caught.value) is expected


async def test_the_size_of_a_database_counts_live_and_free_pages_and_the_wal(path: Path) -> None:
    """Freed pages stay in the file and are used again."""
    async with database_at(path) as database:
        await database.write(
            lambda connection: connection.executemany(
                "INSERT INTO numbers VALUES (?)", [(n,) for n in range(10_000)]
            )
        )
        full = await database.write(lambda connection: sqlite.size_of(connection, path))
        await database.write(lambda connection: connection.execute("DELETE FROM numbers"))
        empty = await database.write(lambda connection: sqlite.size_of(connection, path))

    assert full.free_bytes == 0
    assert full.wal_bytes > full.live_bytes > 50_000
    assert empty.live_bytes < 20_000
    assert empty.live_bytes + empty.free_bytes == full.live_bytes


def test_a_database_without_a_wal_has_none(tmp_path: Path) -> None:
    """Closed files and those of other programs have no WAL."""
    path = tmp_path / "plain.db"
    with sqlite3.connect(path) as connection:
        connection.execute(TABLE)
    connection.close()

    with sqlite.opened_as_it_is(path) as connection:
        assert sqlite.size_of(connection, tmp_path / "plain.db").wal_bytes == 0


async def test_shrinking_a_database_returns_a_few_pages_and_keeps_some(path: Path) -> None:
    """Small steps, so that no writer waits; a reserve, so that the file does not breathe."""

    def free_pages(connection: Connection) -> int:
        return sqlite.pragma(connection, "freelist_count")

    def shrink(connection: Connection) -> int:
        before = free_pages(connection)
        sqlite.shrink(connection, at_most_bytes=100 * sqlite_pages.PAGE_BYTES)
        return before - free_pages(connection)

    async with database_at(path) as database:
        await database.write(
            lambda connection: connection.execute("CREATE TABLE blobs (blob)").execute(
                "INSERT INTO blobs VALUES (zeroblob(5000000))"
            )
        )
        await database.write(lambda connection: connection.execute("DELETE FROM blobs"))
        steps = [await database.write(shrink) for _ in range(5)]

        assert steps[:2] == [100, 100]
        assert steps[-1] == 0
        assert await database.write(free_pages) == 1000


async def test_a_database_is_set_aside_with_its_wal(path: Path) -> None:
    """What was committed and not folded in yet belongs to it."""
    path.parent.mkdir()
    for name in ("numbers.db", "numbers.db-wal", "numbers.db-shm"):
        (path.parent / name).write_text(name)
    aside = sqlite.set_aside(path)

    assert aside.read_text() == "numbers.db"
    assert aside.with_name(aside.name + "-wal").read_text() == "numbers.db-wal"
    assert len(list(path.parent.iterdir())) == 3
    assert not path.exists()


def test_removing_a_database_removes_its_wal(path: Path) -> None:
    """And what is not there need not be removed."""
    path.parent.mkdir()
    for name in ("numbers.db", "numbers.db-wal"):
        (path.parent / name).write_text(name)
    sqlite.remove(path)
    sqlite.remove(path)

    assert list(path.parent.iterdir()) == []


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    """Two processes on one journal would deliver twice and delete from under each other."""
    folder = tmp_path / "data"
    with (
        owned_folder(folder),
        pytest.raises(StorageLocked, match="--workers"),
        owned_folder(folder),
    ):
        pass

    with owned_folder(folder):
        assert (folder / "lock").exists()


def test_a_folder_that_cannot_be_locked_raises_our_error(tmp_path: Path) -> None:
    """For example a file where the folder should be."""
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(StorageError), owned_folder(tmp_path / "data"):
        pass


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        (errno.ENOSPC, StorageFull, "No space left on device: /data/x"),
        (errno.EIO, StorageError, "Input/output error: /data/x"),
    ],
)
def test_a_file_system_error_is_described_without_its_number(
    number: int, error: type[StorageError], words: str
) -> None:
    """The log and `/health` show it to a person."""
    with pytest.raises(error) as caught, translated_errors():
        raise OSError(number, os.strerror(number), "/data/x")

    assert (type(caught.value), str(caught.value)) == (error, words)
