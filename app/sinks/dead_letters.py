"""Dead letters: lines that a sink rejected permanently, stored with the reason."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from app.model import MAX_SECONDS, Lines
from app.runtime import sqlite_pages
from app.runtime.errors import StorageDamaged
from app.runtime.sqlite import (
    RESTART_ADVICE,
    Connection,
    Database,
    Steps,
    finish_replacing,
    quick_check,
    replace_damaged,
    tables_of,
)
from app.sinks.outcomes import RefusedLine

logger = logging.getLogger(__name__)

_MIGRATIONS = (
    """
    CREATE TABLE dead_letters (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        sink TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        line BLOB NOT NULL,
        reason TEXT NOT NULL,
        refused_at REAL NOT NULL,
        UNIQUE (sink, sequence, line)
    ) STRICT;
    """,
)
_SELECT = """
    SELECT id, sink, sequence, line, reason, refused_at FROM dead_letters
    WHERE id BETWEEN ?1 AND ?2 AND (?3 IS NULL OR sink = ?3) ORDER BY id
    """
_MAX_ID = 2**63 - 1
_BLOCK = 500


@dataclass(frozen=True, slots=True)
class RefusedPoint:
    """One dead letter."""

    id: int
    """Increases in the order in which points were rejected."""
    sink: str
    sequence: int
    """Its number in the journal when it was refused."""
    line: bytes
    """Line protocol, without a newline at its end."""
    reason: str
    """The database's own words."""
    refused_at: float
    """Seconds since the epoch."""


class DeadLetters:
    """Store of rejected points in its own file; at the bound the oldest are discarded.

    Use as `async with`. Every method may raise `StorageError`.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_points: int = 100_000,
        is_for_database_only: Callable[[bytes], bool] = lambda _: False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`is_for_database_only` returns whether the embedded store must not get a line.

        `clock` returns seconds since the epoch.
        """
        self.damage: str | None = None
        """One sentence when the file was damaged."""
        self._path = path
        self._database = Database(path, migrations=_MIGRATIONS, check=_check)
        self._max_points = max_points
        self._is_for_database_only = is_for_database_only
        self._clock = clock
        self.count = 0
        """How many dead letters there are."""
        self.discarded = 0
        """How many were discarded at the bound since the start of the process."""

    async def __aenter__(self) -> Self:
        """Open, or create, the file; save what can be read of a damaged one.

        Raises:
            StorageNewer: a newer version of this service wrote the file.
            StorageError: it cannot be opened.
        """
        finish_replacing(self._path)
        try:
            await self._open()
        except StorageDamaged as exc:
            await self._replace(exc)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the file."""
        await self._database.__aexit__()

    async def insert(self, sink: str, refused: Sequence[RefusedLine]) -> None:
        """Store lines durably, in one transaction; the same line with the same number only once."""
        now = self._clock()
        rows = [(sink, sequence, line, reason, now) for sequence, line, reason in refused]

        def work(connection: Connection) -> tuple[int, int]:
            connection.executemany(
                "INSERT OR IGNORE INTO dead_letters"
                " (sink, sequence, line, reason, refused_at) VALUES (?, ?, ?, ?, ?)",
                rows,
            )
            count = _count(connection)
            surplus = max(0, count - self._max_points)
            connection.execute(
                "DELETE FROM dead_letters WHERE id IN"
                " (SELECT id FROM dead_letters ORDER BY id LIMIT ?)",
                (surplus,),
            )
            return count - surplus, surplus

        try:
            self.count, surplus = await self._database.write(work)
        except StorageDamaged as exc:
            self.damage = f"{self._path.name} is damaged ({exc}). {RESTART_ADVICE}"
            raise
        self.discarded += surplus

    async def newest(
        self, *, limit: int, before_id: int | None = None, sink: str | None = None
    ) -> list[RefusedPoint]:
        """Return a page, newest first; the next page is before the last id of this one."""
        through_id = _MAX_ID if before_id is None else before_id - 1

        def work(connection: Connection) -> list[RefusedPoint]:
            found = connection.execute(f"{_SELECT} DESC LIMIT ?4", (0, through_id, sink, limit))
            return [RefusedPoint(*row) for row in found]

        return await self._database.read(work)

    async def export(self, *, sink: str | None = None) -> AsyncGenerator[bytes, None]:
        """Yield all dead letters as line protocol, oldest first, some hundred lines at a time."""
        last_id = 0
        while block := await self._block(last_id + 1, _MAX_ID, sink):
            yield _lines(block).data
            last_id = block[-1].id

    async def retry(
        self, append: Callable[[Lines], Awaitable[None]], *, sink: str | None = None
    ) -> int:
        """Pass every dead letter to `append`, then delete it; return how many.

        `append` must be durable when it returns. A crash between the two sends a line twice,
        which changes nothing in the database. A line that is rejected again becomes a new dead
        letter, which this call ignores.
        """
        retried, last_id = 0, 0
        through_id = await self._database.read(_newest_id)
        while block := await self._block(last_id + 1, through_id, sink):
            for lines in self._retried(block):
                await append(lines)
            await self.delete([point.id for point in block])
            last_id = block[-1].id
            retried += len(block)
        return retried

    def _retried(self, block: Sequence[RefusedPoint]) -> Iterator[Lines]:
        """Yield the lines for all sinks, and those for the database only."""
        others = [point for point in block if self._is_for_database_only(point.line)]
        if len(others) < len(block):
            yield _lines([point for point in block if point not in others])
        if others:
            lines = _lines(others)
            yield Lines(b"\n" * lines.points, lines.points, database=lines.data)

    async def delete(self, ids: Sequence[int]) -> int:
        """Delete dead letters by id and return how many there were."""
        return await self._delete(
            "DELETE FROM dead_letters WHERE id = ?", [(number,) for number in ids]
        )

    async def clear(self, *, sink: str | None = None) -> int:
        """Delete all dead letters, or all of one sink, and return how many there were."""
        return await self._delete(
            "DELETE FROM dead_letters WHERE ?1 IS NULL OR sink = ?1", [(sink,)]
        )

    async def _open(self) -> None:
        await self._database.__aenter__()
        try:
            self.count = await self._database.read(_count)
        except BaseException:
            await self._database.__aexit__()
            raise

    async def _replace(self, cause: StorageDamaged) -> None:
        """Set a damaged file aside and begin a new one with what can be read of it."""
        aside, saved = await replace_damaged(
            self._path, migrations=_MIGRATIONS, fill=partial(_save, path=self._path)
        )
        self.damage = (
            f"{self._path.name} was damaged ({cause}) and is kept as {aside}. {saved} dead letters"
            " were saved; how many it held beside them cannot be known."
        )
        logger.error("%s", self.damage)
        await self._open()

    async def _delete(self, statement: str, values: Sequence[tuple[str | int | None]]) -> int:
        def work(connection: Connection) -> tuple[int, int]:
            deleted = connection.executemany(statement, values)
            return deleted.rowcount, _count(connection)

        deleted, self.count = await self._database.write(work)
        return deleted

    async def _block(self, first_id: int, through_id: int, sink: str | None) -> list[RefusedPoint]:
        def work(connection: Connection) -> list[RefusedPoint]:
            values = (first_id, through_id, sink, _BLOCK)
            return [RefusedPoint(*row) for row in connection.execute(f"{_SELECT} LIMIT ?4", values)]

        return await self._database.read(work)


def _check(connection: Connection) -> None:
    quick_check(connection)
    rows = connection.execute(
        "SELECT id, sink, sequence, line, reason, refused_at FROM dead_letters"
    )
    if not all(map(_is_plausible, rows)):
        raise StorageDamaged("a dead letter has a number or a time that cannot be right")


def _save(connection: Connection, path: Path) -> Steps[int]:
    """Copy the rows in the pages of a damaged file, including recently deleted ones."""
    columns = tables_of(_MIGRATIONS)["dead_letters"].columns
    for view in sqlite_pages.views(path):
        connection.executemany(
            "INSERT OR IGNORE INTO dead_letters VALUES (?, ?, ?, ?, ?, ?)",
            (row for row in sqlite_pages.rows(view, columns) if _is_plausible(row)),
        )
        yield
    return _count(connection)


def _is_plausible(row: Sequence[sqlite_pages.Value]) -> bool:
    number, sink, sequence, _, _, refused_at = row
    return (
        isinstance(number, int)
        and number > 0
        and isinstance(sequence, int)
        and sequence >= 0
        and bool(sink)
        and isinstance(refused_at, int | float)
        and 0 <= refused_at < MAX_SECONDS
    )


def _count(connection: Connection) -> int:
    (count,) = connection.execute("SELECT count(*) FROM dead_letters").fetchone()
    return int(count)


def _newest_id(connection: Connection) -> int:
    (newest,) = connection.execute("SELECT max(id) FROM dead_letters").fetchone()
    return int(newest or 0)


def _lines(points: Sequence[RefusedPoint]) -> Lines:
    return Lines(b"".join([point.line + b"\n" for point in points]), len(points))
