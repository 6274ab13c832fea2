"""The only place that opens SQLite: pragmas, threads, versions and migrations.

https://www.sqlite.org/wal.html and https://www.sqlite.org/pragma.html#pragma_synchronous
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Self, TypeAlias, TypeVar, TypeVarTuple
from urllib.parse import quote

from app.runtime import sqlite_pages
from app.runtime.errors import (
    StorageDamaged,
    StorageError,
    StorageFull,
    StorageLocked,
    StorageNewer,
)
from app.runtime.sqlite_pages import PAGE_BYTES
from app.runtime.time import utc_now

logger = logging.getLogger(__name__)

Connection: TypeAlias = sqlite3.Connection
Cursor: TypeAlias = sqlite3.Cursor
Work = TypeVar("Work")
Arguments = TypeVarTuple("Arguments")
Steps: TypeAlias = Generator[None, None, Work]
"""Work in parts, each a transaction; the generator returns the result."""

_CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_NOT_DAMAGE = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_INTERRUPT,
    }
)
"""Errors of a check that do not mean damage."""
_COMPANIONS = ("-wal", "-shm", "-journal")
_WAL_MODE = b"\x02\x02"
_WAL_MODE_AT = 18
_SPARE_BYTES = 4_096_000
_MAX_VERSION = 1_000
"""No version of this service gets there: a higher number is damage."""

RESTART_ADVICE = "Check the disk and restart the service: it recovers everything that can be read."


class Database:
    """One SQLite file in WAL mode: one thread that writes, one that reads.

    Use as `async with`. Work is a plain function of a connection; it runs in the file's
    own thread and never on the event loop. Without a path the database is in memory, and the
    thread that writes reads as well.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        migrations: Sequence[str],
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        page_bytes: int = PAGE_BYTES,
        cache_bytes: int = 2_000_000,
        wal_bytes: int = 4_000_000,
        check: Callable[[Connection], object] | None = None,
    ) -> None:
        """`migrations` are the SQL scripts from an empty file to today's tables, in order.

        `user_version` counts the scripts already run; never change a released one, append another.
        `page_bytes` is for a new file; one that exists keeps its size of pages.
        `cache_bytes` is the writer's page cache; a WAL of `wal_bytes` is checkpointed. `check`
        raises `StorageDamaged` for impossible contents, by default `quick_check`; it gets a
        read-only connection to a file that may be of an older version.
        """
        self.path = path
        self._migrations = tuple(migrations)
        self._synchronous = synchronous
        self._page_bytes = page_bytes
        self._cache_bytes = cache_bytes
        self._wal_bytes = wal_bytes
        self._check = check or quick_check
        self._writer: _Worker | None = None
        self._reader: _Worker | None = None

    async def __aenter__(self) -> Self:
        """Open, or create, the file and bring its tables up to date.

        It is checked first, on a read-only connection: damage in it or its WAL can then still be
        repaired.

        Raises:
            StorageNewer: a newer version of this service wrote the file.
            StorageDamaged: the file is not a readable database.
            StorageError: the folder or file cannot be opened; the message names it.
        """
        path = self.path
        if path is None:
            connect = partial(_connect, ":memory:", self._prepare_writer)
            self._writer = self._reader = await _started("sqlite[memory]", connect)
            return self
        with opening(path):
            connect = partial(self._open_for_writing, path)
            writer = await _started(f"sqlite-write[{path.name}]", connect)
            try:
                connect = partial(_connect, path, _prepare_reader)
                self._reader = await _started(f"sqlite-read[{path.name}]", connect)
            except BaseException:
                await writer.close()
                raise
        self._writer = writer
        return self

    async def __aexit__(self, *_: object) -> None:
        """Finish the work under way, checkpoint the WAL and close the file."""
        reader, writer = self._reader, self._writer
        self._reader = self._writer = None
        if reader is not None and reader is not writer:
            await reader.close()
        if writer is not None:
            await writer.close()

    async def write(self, work: Callable[[Connection], Work]) -> Work:
        """Run `work` in one transaction, durable (with FULL) when this returns.

        Raises:
            StorageFull: the disk is full; nothing was changed.
            StorageDamaged: the file is damaged.
            StorageError: any other error of SQLite; nothing was changed.
        """
        assert self._writer is not None, "the database is not open"
        return await self._writer.run(partial(_in_transaction, work))

    async def read(self, work: Callable[[Connection], Work]) -> Work:
        """Run `work` on a read-only connection, in parallel with the writer.

        Raises:
            StorageDamaged: the file is damaged.
            StorageError: any other error of SQLite.
        """
        assert self._reader is not None, "the database is not open"
        return await self._reader.run(work)

    def _open_for_writing(self, path: Path) -> Connection:
        make_folder(path.parent)
        self._examine(path)
        if not path.exists():
            self._create(path)
        return _connect(path, self._prepare_writer)

    def _create(self, path: Path) -> None:
        """Create the file under another name: after a power cut, half a file would be damage."""
        for parent in path.parent.parents:  # a killed process may have created one, not synced
            with contextlib.suppress(OSError):
                sync_folder(parent)
        unfinished = path.with_name(path.name + ".new")
        remove(unfinished)
        _connect(unfinished, self._prepare_writer).close()
        _check_complete(unfinished)
        rename(unfinished, path)

    def _examine(self, path: Path) -> None:
        """Check a closed file, its WAL and its rollback journal; change nothing in them."""
        _check_kind(path)
        _set_stray_journal_aside(path)
        if not path.exists():
            return
        with _connected_read_only(path) as connection:
            version = _check_schema(connection, path, self._migrations)
            if version:
                self._check(connection)
        if sqlite_pages.has_lost_commits(path):
            raise StorageDamaged("commits in its write-ahead log cannot be read")

    def _prepare_writer(self, connection: Connection) -> None:
        connection.execute(f"PRAGMA page_size = {self._page_bytes}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute(f"PRAGMA cache_size = -{self._cache_bytes // 1024}")
        wal_pages = self._wal_bytes // pragma(connection, "page_size")
        connection.execute(f"PRAGMA wal_autocheckpoint = {max(1, wal_pages)}")
        _migrate(connection, self._migrations)


def _prepare_reader(connection: Connection) -> None:
    connection.execute("PRAGMA query_only = ON")


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Raise errors of SQLite and the file system as `StorageError`s."""
    try:
        yield
    except _FOREIGN_ERRORS as exc:
        raise _storage_error(exc) from exc


_FOREIGN_ERRORS = (sqlite3.Error, UnicodeDecodeError, OSError)


def _storage_error(exc: Exception) -> StorageError:
    if isinstance(exc, UnicodeDecodeError):  # a name or an error text, quoted from the file
        return StorageDamaged(f"a text in it is not UTF-8: {exc}")
    if isinstance(exc, OSError):
        words = (part for part in (exc.strerror or str(exc), exc.filename) if part)
        error = StorageFull if exc.errno == errno.ENOSPC else StorageError
        return error(": ".join(map(str, words)))
    code = _primary_code(exc)
    if code == sqlite3.SQLITE_FULL:
        return StorageFull(str(exc))
    return (StorageDamaged if code in _CORRUPT else StorageError)(str(exc))


def _primary_code(exc: Exception) -> int:
    code: int = getattr(exc, "sqlite_errorcode", 0)
    return code & 0xFF


@contextlib.contextmanager
def opening(path: Path) -> Iterator[None]:
    """Add the path, and what a person can do, to errors while a file is opened."""
    try:
        yield
    except (StorageDamaged, StorageNewer, StorageLocked):
        raise
    except StorageFull as exc:
        raise StorageFull(
            f"DATA_DIR: the disk of the folder {path.parent} is full ({path.name}: {exc})."
            " Free some space, or set DATA_DIR to another folder"
        ) from exc
    except StorageError as exc:
        raise StorageError(
            f"DATA_DIR: {path} cannot be opened ({exc})."
            " Check who owns the file and the folder, whether they can be written, and the disk"
        ) from exc


@dataclass(frozen=True, slots=True)
class Size:
    """Size of a database on disk."""

    live_bytes: int
    free_bytes: int
    """Unused pages inside the file; SQLite uses them first."""
    wal_bytes: int
    page_bytes: int

    @property
    def total_bytes(self) -> int:
        """What the database takes with its WAL, without unused pages."""
        return self.live_bytes + self.wal_bytes


def size_of(connection: Connection, path: Path | None) -> Size:
    """Measure the database that `connection` has opened at `path`, or in memory."""
    page, pages, free = connection.execute(
        "SELECT * FROM pragma_page_size, pragma_page_count, pragma_freelist_count"
    ).fetchone()
    wal_bytes = 0
    if path is not None:
        with contextlib.suppress(FileNotFoundError):
            wal_bytes = path.with_name(f"{path.name}-wal").stat().st_size
    return Size((pages - free) * page, free * page, wal_bytes, page)


def pragma(connection: Connection, name: str) -> int:
    """Return the value of a pragma that is a number."""
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    assert isinstance(value, int)
    return value


def shrink(connection: Connection, *, at_most_bytes: int) -> None:
    """Return free pages to the disk; some are left for reuse."""
    page_bytes = pragma(connection, "page_size")
    spare = pragma(connection, "freelist_count") - _SPARE_BYTES // page_bytes
    for _ in range(min(spare, at_most_bytes // page_bytes)):
        # One by one: the module sqlite3 stops this pragma after its first page.
        connection.execute("PRAGMA incremental_vacuum(1)")


@contextlib.contextmanager
def opened_as_it_is(path: Path) -> Iterator[Connection]:
    """Open a closed file that may be damaged, for reading; use within `translated_errors`."""
    with _connected_read_only(path) as connection:
        # Without the pragma SQLite refuses to read a file that is shorter than its header states.
        connection.execute("PRAGMA writable_schema = ON")
        yield connection


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Connection]:
    """Open a file for reading, also while another process writes to it.

    Raises:
        StorageDamaged: the file is damaged.
        StorageError: it cannot be read, or does not exist.
    """
    with translated_errors(), _connected_read_only(path) as connection:
        yield connection


def copy(path: Path, target: Path) -> None:
    """Copy a database as it is at one moment, also while another process writes to it.

    Raises:
        StorageError: it cannot be read, or the copy cannot be written.
    """
    with reading(path) as connection, contextlib.closing(sqlite3.connect(target)) as copied:
        connection.backup(copied)


def set_aside(path: Path) -> Path:
    """Rename a closed database that is damaged, with its WAL, and return its new path.

    Each name is durable before the next one changes: without its WAL the file would look healthy.
    """
    target = _aside(path)
    with translated_errors():
        for suffix in ("", *_COMPANIONS):
            with contextlib.suppress(FileNotFoundError):
                _rename(_companion(path, suffix), _companion(target, suffix))
    return target


async def replace_damaged(
    path: Path,
    *,
    migrations: Sequence[str],
    page_bytes: int = PAGE_BYTES,
    fill: Callable[[Connection], Steps[Work]],
) -> tuple[Path, Work]:
    """Replace a damaged database by a new one; return its new path, and the result of `fill`.

    `fill` copies what can still be read, and yields after each part, which is a transaction. The
    old file stays in its place until all is durable; see `finish_replacing`.
    """
    fresh = _fresh(path)
    with opening(path):
        remove(fresh)
        async with Database(fresh, migrations=migrations, page_bytes=page_bytes) as database:
            steps = await database.write(fill)
            while not (done := await database.write(lambda _: _advance(steps))):
                pass
        _check_complete(fresh)
        aside = set_aside(path)
        rename(fresh, path)
    return aside, done[0]


def _check_complete(path: Path) -> None:
    """Check that closing a database has emptied its WAL: SQLite does not report when it cannot."""
    if _companion(path, "-wal").exists():
        raise StorageError(f"{path.name} could not be completed")


def _advance(steps: Steps[Work]) -> tuple[Work] | None:
    """Do the next step; return the result, alone in a tuple, after the last one."""
    try:
        next(steps)
    except StopIteration as exc:
        return (exc.value,)
    return None


def finish_replacing(path: Path) -> None:
    """Complete a replacement that was interrupted after the copy."""
    fresh = _fresh(path)
    if not path.exists() and fresh.exists():
        set_aside(path)
        rename(fresh, path)


def _fresh(path: Path) -> Path:
    return path.with_name(path.name + ".salvage")


async def open_or_replace(
    database: Database, *, load: Callable[[], Awaitable[None]], consequence: str
) -> str | None:
    """Open a database and load from it; set a damaged file aside and create a new one.

    Return a sentence about the damage that ends with `consequence`; None without damage.
    """

    async def opened() -> None:
        await database.__aenter__()
        try:
            await load()
        except BaseException:
            await database.__aexit__()
            raise

    try:
        await opened()
    except StorageDamaged as exc:
        path = database.path
        assert path is not None, "a database in memory is not damaged"
        aside = set_aside(path)
        reason = f"{path.name} was damaged ({exc}) and is kept as {aside}. {consequence}"
        logger.error("%s", reason)  # noqa: TRY400 - the cause is in the line
        await opened()
        return reason
    return None


def remove(path: Path) -> None:
    """Delete a closed database with its companions, if it exists."""
    with translated_errors():
        for suffix in ("", *_COMPANIONS):
            _companion(path, suffix).unlink(missing_ok=True)


def rename(path: Path, target: Path) -> None:
    """Rename a closed database without companions, durable when this returns."""
    with translated_errors():
        _rename(path, target)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, as fsync does for the contents of a file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create a folder with its parents, durable when this returns."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for created in missing:
        sync_folder(created.parent)


def _rename(path: Path, target: Path) -> None:
    path.rename(target)
    sync_folder(path.parent)


def _aside(path: Path) -> Path:
    stamp = utc_now().strftime("%Y%m%dT%H%M%S.%fZ")
    return path.with_name(f"{path.name}.damaged-{stamp}")


@dataclass(frozen=True, slots=True)
class _Worker:
    """A thread that owns one connection."""

    executor: ThreadPoolExecutor
    connection: Connection

    def run(self, work: Callable[[Connection], Work]) -> asyncio.Future[Work]:
        """Run `work` in the thread.

        Work that has begun ends there, also when the caller is cancelled: a transaction is never
        left open, and `close` queues behind it.
        """
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self.executor, _translated, work, self.connection)

    async def close(self) -> None:
        with contextlib.suppress(StorageError):
            await self.run(Connection.close)
        self.executor.shutdown(wait=False)


async def _started(name: str, connect: Callable[[], Connection]) -> _Worker:
    """Start a thread and open its connection there."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
    try:
        loop = asyncio.get_running_loop()
        return _Worker(executor, await loop.run_in_executor(executor, _translated, connect))
    except BaseException:
        executor.shutdown(wait=False)
        raise


def _translated(work: Callable[[*Arguments], Work], *arguments: *Arguments) -> Work:
    try:
        return work(*arguments)
    except _FOREIGN_ERRORS as exc:
        raise _storage_error(exc) from exc


def _companion(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _connect(path: Path | str, prepare: Callable[[Connection], object]) -> Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA busy_timeout = 5000")
        prepare(connection)
    except BaseException:
        connection.close()  # or its lock would stay until it is collected
        raise
    return connection


def _in_transaction(work: Callable[[Connection], Work], connection: Connection) -> Work:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def _check_kind(path: Path) -> None:
    """Check that the database and its companions are files, and that it is not empty."""
    for suffix in ("", *_COMPANIONS):
        companion = _companion(path, suffix)
        if companion.exists() and not companion.is_file():
            raise StorageDamaged(f"{companion.name} is not a file")
    if path.exists():
        with path.open("rb"):
            pass  # raises PermissionError, which is clearer than an error of SQLite
    is_empty = not path.exists() or path.stat().st_size == 0
    if is_empty and sqlite_pages.has_frames(path):
        # SQLite would delete the log and begin an empty file.
        raise StorageDamaged("the file is missing or empty, and its write-ahead log is not")
    if is_empty and path.exists():  # SQLite would take it for a new file and start over
        raise StorageDamaged("the file is empty")


def _set_stray_journal_aside(path: Path) -> None:
    """Rename a rollback journal that cannot belong to the file: SQLite would apply it."""
    journal = _companion(path, "-journal")
    if not journal.exists() or not path.exists():
        return
    with path.open("rb") as file:
        header = file.read(_WAL_MODE_AT + len(_WAL_MODE))
    if header.endswith(_WAL_MODE):
        aside = _aside(journal)
        _rename(journal, aside)
        logger.warning("%s does not belong to this database and was renamed to %s", journal, aside)


@contextlib.contextmanager
def _connected_read_only(path: Path) -> Iterator[Connection]:
    """Open a file that may be damaged, and change neither it nor its WAL.

    Use within `translated_errors` or in a worker.
    """
    # Without a WAL, SQLite would create one.
    mode = "mode=ro" if _companion(path, "-wal").exists() else "immutable=1"
    connection = sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, isolation_level=None)
    try:
        connection.execute("PRAGMA busy_timeout = 5000")
        yield connection
    except sqlite3.Error as exc:
        if _primary_code(exc) in _NOT_DAMAGE:
            raise
        raise StorageDamaged(str(exc)) from exc
    finally:
        connection.close()


def _check_schema(connection: Connection, path: Path, migrations: Sequence[str]) -> int:
    """Check that the file has the tables of its version, and return the version."""
    version = pragma(connection, "user_version")
    expected = tables_of(migrations[: max(0, version)])
    found = _tables(connection)
    if len(migrations) < version < _MAX_VERSION and expected.keys() <= found.keys():
        raise StorageNewer(
            f"{path} was written by a newer version of this service"
            f" (its tables are of version {version}, this one knows {len(migrations)});"
            " start that version again, or move the file away"
        )
    if version < 0 or version > len(migrations) or (not version and found):
        raise StorageDamaged("it is a database of another program")
    for name, table in expected.items():
        if name not in found:
            raise StorageDamaged(f"the table {name} is missing")
        if found[name] != table:
            raise StorageDamaged(f"the table {name} has other columns or indexes than it should")
    return version


@dataclass(frozen=True, slots=True)
class TableShape:
    """Columns and indexes of a table."""

    columns: tuple[sqlite_pages.Column, ...]
    names: tuple[str, ...]
    indexes: frozenset[tuple[bool, tuple[str, ...]]]
    """Whether each is unique, and its columns."""
    is_index: bool
    """Whether it is a table WITHOUT ROWID."""


def tables_of(migrations: Sequence[str]) -> dict[str, TableShape]:
    """Return the tables that the migrations create, by name."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        _migrate(connection, migrations)
        return _tables(connection)
    finally:
        connection.close()


def _tables(connection: Connection) -> dict[str, TableShape]:
    listed = connection.execute("SELECT name, wr FROM pragma_table_list WHERE schema = 'main'")
    return {
        name: _shape(connection, name, is_index=bool(without_rowid))
        for name, without_rowid in listed.fetchall()
        if not name.startswith("sqlite_")
    }


def _shape(connection: Connection, table: str, *, is_index: bool) -> TableShape:
    info = connection.execute(
        'SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_info(?)', (table,)
    ).fetchall()
    keys = [name for name, *_, key in info if key]
    indexes = connection.execute(
        'SELECT name, "unique" FROM pragma_index_list(?)', (table,)
    ).fetchall()
    return TableShape(
        columns=tuple(
            sqlite_pages.Column(
                kind,
                nullable=not is_required or default is not None,
                rowid=not is_index and kind == "INTEGER" and keys == [name],
                default=int(default) if default is not None and default.isdecimal() else None,
            )
            for name, kind, is_required, default, _ in info
        ),
        names=tuple(name for name, *_ in info),
        indexes=frozenset(
            (
                bool(is_unique),
                tuple(
                    str(column)
                    for (column,) in connection.execute(
                        "SELECT name FROM pragma_index_info(?) ORDER BY seqno", (name,)
                    )
                ),
            )
            for name, is_unique in indexes
        ),
        is_index=is_index,
    )


def quick_check(connection: Connection) -> None:
    """Read each page of a file once.

    Raises:
        StorageDamaged: SQLite finds damage.
    """
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StorageDamaged(str(verdict))


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
        make_folder(path)
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StorageError(
            f"DATA_DIR: the folder {path} cannot be written ({exc.strerror})."
            " Fix that, or set DATA_DIR to another one"
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
