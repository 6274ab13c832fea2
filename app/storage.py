"""The only place that opens SQLite: pragmas, threads, versions and migrations.

https://www.sqlite.org/wal.html and https://www.sqlite.org/pragma.html#pragma_synchronous
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self, TypeAlias, TypeVar

from app.errors import (
    StorageDamaged,
    StorageError,
    StorageFull,
    StorageLocked,
    StorageNewer,
)

Connection: TypeAlias = sqlite3.Connection
Work = TypeVar("Work")

_CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_COMPANIONS = ("-wal", "-shm")
_SPARE_PAGES = 1000


class Database:
    """One SQLite file in WAL mode: one thread that writes, one that reads.

    Use as `async with`. Work is a plain function of a connection; it runs in the file's
    own thread and never on the event loop.
    """

    def __init__(
        self,
        path: Path,
        *,
        migrations: Sequence[str],
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        cache_bytes: int = 2_000_000,
        wal_bytes: int = 4_000_000,
    ) -> None:
        """Take the SQL scripts that lead from an empty file to today's tables, in order.

        The number of scripts already run is kept in `user_version`; never change one that
        was released, append another. `cache_bytes` is the writer's page cache, `wal_bytes` how
        far the WAL grows before it is folded into the file.
        """
        self.path = path
        self._migrations = tuple(migrations)
        self._synchronous = synchronous
        self._cache_bytes = cache_bytes
        self._wal_bytes = wal_bytes
        self._writer: _Worker | None = None
        self._reader: _Worker | None = None

    async def __aenter__(self) -> Self:
        """Open, or create, the file and bring its tables up to date.

        Raises:
            StorageNewer: a newer version of this service wrote the file.
            StorageDamaged: the file is not a readable database.
            StorageError: the folder or file cannot be opened.
        """
        writer = _Worker(f"sqlite-write[{self.path.name}]")
        reader = _Worker(f"sqlite-read[{self.path.name}]")
        try:
            await writer.open(self._open_for_writing)
            await reader.open(self._open_for_reading)
        except BaseException:
            await reader.close()
            await writer.close()
            raise
        self._writer, self._reader = writer, reader
        return self

    async def __aexit__(self, *_: object) -> None:
        """Finish the work at hand, fold the WAL into the file and close it."""
        for worker in (self._reader, self._writer):
            if worker is not None:
                await worker.close()
        self._reader = self._writer = None

    async def write(self, work: Callable[[Connection], Work]) -> Work:
        """Run `work` in one transaction, durable (with FULL) when this returns.

        Raises:
            StorageFull: the disk is full; nothing was changed.
            StorageDamaged: the file is damaged.
            StorageError: anything else SQLite says; nothing was changed.
        """
        assert self._writer is not None, "the database is not open"
        return await self._writer.run(lambda connection: _in_transaction(connection, work))

    async def read(self, work: Callable[[Connection], Work]) -> Work:
        """Run `work` on a connection that cannot write, beside the writer.

        Raises:
            StorageDamaged: the file is damaged.
            StorageError: anything else SQLite says.
        """
        assert self._reader is not None, "the database is not open"
        return await self._reader.run(work)

    def _open_for_writing(self) -> Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return _connect(self.path, self._prepare_writer)

    def _prepare_writer(self, connection: Connection) -> None:
        _refuse_newer(connection, self.path, self._migrations)  # before anything is written
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute(f"PRAGMA cache_size = -{self._cache_bytes // 1024}")
        wal_pages = self._wal_bytes // pragma(connection, "page_size")
        connection.execute(f"PRAGMA wal_autocheckpoint = {max(1, wal_pages)}")
        _migrate(connection, self._migrations)

    def _open_for_reading(self) -> Connection:
        return _connect(self.path, lambda reader: reader.execute("PRAGMA query_only = ON"))


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Raise what SQLite or the file system say as one of our `StorageError`s."""
    try:
        yield
    except sqlite3.Error as exc:
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise StorageFull(str(exc)) from exc
        if code in _CORRUPT:
            raise StorageDamaged(str(exc)) from exc
        raise StorageError(str(exc)) from exc
    except OSError as exc:
        if exc.errno == errno.ENOSPC:
            raise StorageFull(str(exc)) from exc
        raise StorageError(str(exc)) from exc


@dataclass(frozen=True, slots=True)
class Size:
    """What a database takes on disk."""

    live_bytes: int
    free_bytes: int
    """Pages inside the file that hold nothing and are used again first."""
    wal_bytes: int
    page_bytes: int


def size_of(connection: Connection, path: Path) -> Size:
    """Measure the database that `connection` has opened at `path`."""
    page, pages, free = connection.execute(
        "SELECT * FROM pragma_page_size, pragma_page_count, pragma_freelist_count"
    ).fetchone()
    try:
        wal_bytes = _companion(path, "-wal").stat().st_size
    except FileNotFoundError:
        wal_bytes = 0
    return Size((pages - free) * page, free * page, wal_bytes, page)


def pragma(connection: Connection, name: str) -> int:
    """Return the value of a pragma that is a number."""
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    assert isinstance(value, int)
    return value


def shrink(connection: Connection, *, pages: int) -> None:
    """Give at most `pages` free pages back to the disk, and keep some: they are used again."""
    spare = pragma(connection, "freelist_count") - _SPARE_PAGES
    for _ in range(min(spare, pages)):
        # One by one: the module sqlite3 stops this pragma after its first page.
        connection.execute("PRAGMA incremental_vacuum(1)")


@contextlib.contextmanager
def opened_as_it_is(path: Path) -> Iterator[Connection]:
    """Open a file that may be damaged: no migrations, no promise that anything can be read.

    Work on it belongs under `translated_errors`.
    """
    # Without the pragma SQLite reads nothing of a file that is shorter than its header says.
    connection = _connect(path, lambda raw: raw.execute("PRAGMA writable_schema = ON"))
    try:
        yield connection
    finally:
        connection.close()


def is_emptied(path: Path) -> bool:
    """Say whether a closed database is there and holds not even a header."""
    with translated_errors():
        return path.exists() and path.stat().st_size == 0 and not _companion(path, "-wal").exists()


def set_aside(path: Path) -> Path:
    """Rename a closed database that is damaged, with its WAL, and return its new path."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    target = path.with_name(f"{path.name}.damaged-{stamp}")
    with translated_errors():
        for suffix in ("", *_COMPANIONS):
            with contextlib.suppress(FileNotFoundError):
                _companion(path, suffix).rename(_companion(target, suffix))
    return target


def remove(path: Path) -> None:
    """Delete a closed database, and what it may have left behind; missing is fine."""
    with translated_errors():
        for suffix in ("", *_COMPANIONS):
            _companion(path, suffix).unlink(missing_ok=True)


class _Worker:
    """A thread of its own that owns one connection."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._connection: Connection | None = None

    async def open(self, connect: Callable[[], Connection]) -> None:
        self._connection = await self._call(connect)

    async def run(self, work: Callable[[Connection], Work]) -> Work:
        connection = self._connection
        assert connection is not None, "the worker is not open"
        return await self._call(lambda: work(connection))

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(StorageError):
                await self._call(connection.close)
        self._executor.shutdown(wait=False)

    async def _call(self, work: Callable[[], Work]) -> Work:
        def translated() -> Work:
            with translated_errors():
                return work()

        # Work that has begun ends, also when its caller is cancelled: a transaction is
        # never left open, and close() queues behind it.
        future = asyncio.get_running_loop().run_in_executor(self._executor, translated)
        return await asyncio.shield(future)


def _companion(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _connect(path: Path, prepare: Callable[[Connection], object]) -> Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA busy_timeout = 5000")
        prepare(connection)
    except BaseException:
        connection.close()  # or its lock would stay until it is collected
        raise
    return connection


def _in_transaction(connection: Connection, work: Callable[[Connection], Work]) -> Work:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def _refuse_newer(connection: Connection, path: Path, migrations: Sequence[str]) -> None:
    version = pragma(connection, "user_version")
    if version > len(migrations):
        raise StorageNewer(
            f"{path} was written by a newer version of this service"
            f" (its tables are of version {version}, this one knows {len(migrations)});"
            " start that version again, or move the file away"
        )


def _migrate(connection: Connection, migrations: Sequence[str]) -> None:
    version = pragma(connection, "user_version")
    for number, script in enumerate(migrations[version:], start=version + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{script};\nPRAGMA user_version={number};COMMIT;"
        )


@contextlib.contextmanager
def owned_folder(path: Path) -> Iterator[None]:
    """Hold the folder for this process alone, creating it when missing.

    Raises:
        StorageLocked: another process holds it.
        StorageError: it cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StorageError(
            f"DATA_DIR: the folder {path} cannot be written ({exc.strerror})."
            " Mend it, or set DATA_DIR to another one"
        ) from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise StorageLocked(
                f"another process already works in DATA_DIR {path}: stop it, or give this one"
                " a DATA_DIR of its own (uvicorn's --workers and --reload start several)"
            ) from exc
        yield
    finally:
        os.close(descriptor)
