"""What is copied and compared already, in a file that survives a kill at any moment."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple, Self, TypeAlias

from app.commands.copy.source import Period
from app.runtime.sqlite import Connection, Database, translated_errors

State: TypeAlias = Literal["copied", "verified"]

_MIGRATIONS = (
    """
    CREATE TABLE days (
        measurement TEXT NOT NULL,
        start_ns INTEGER NOT NULL,
        end_ns INTEGER NOT NULL,
        state TEXT NOT NULL,
        PRIMARY KEY (measurement, start_ns, end_ns)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE refused (
        number INTEGER PRIMARY KEY,
        measurement TEXT NOT NULL,
        time_ns INTEGER NOT NULL,
        line BLOB NOT NULL,
        reason TEXT NOT NULL
    );
    CREATE INDEX refused_of_span ON refused (measurement, time_ns);
    """,
)


class UncopiedPoint(NamedTuple):
    """A point that could not be copied."""

    time_ns: int
    line: bytes
    """As much of it as line protocol can express."""
    reason: str


class CopyProgress:
    """The days of each measurement that one copy has done. Use as `async with`."""

    def __init__(self, path: Path) -> None:
        """Assign the file."""
        self._database = Database(path, migrations=_MIGRATIONS)

    async def __aenter__(self) -> Self:
        """Open, or create, the file; raises like `Database`."""
        await self._database.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the file."""
        await self._database.__aexit__()

    async def states(self, measurement: str) -> dict[Period, State]:
        """Return the state of each day that is copied."""

        def found(connection: Connection) -> dict[Period, State]:
            rows = connection.execute(
                "SELECT start_ns, end_ns, state FROM days WHERE measurement = ?", (measurement,)
            )
            return {Period(start_ns, end_ns): state for start_ns, end_ns, state in rows}

        return await self._database.read(found)

    async def record(self, measurement: str, days: Iterable[Period], state: State) -> None:
        """Record days, durable when this returns."""
        rows = [(measurement, *day, state) for day in days]

        def upsert(connection: Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO days VALUES (?, ?, ?, ?)", rows)

        await self._database.write(upsert)

    async def forget(self, measurement: str, days: Iterable[Period]) -> None:
        """Record that days are to be copied again."""
        rows = [(measurement, *day) for day in days]

        def delete(connection: Connection) -> None:
            connection.executemany(
                "DELETE FROM days WHERE measurement = ? AND start_ns = ? AND end_ns = ?", rows
            )

        await self._database.write(delete)

    async def clear(self) -> None:
        """Record that everything is to be copied again."""

        def delete(connection: Connection) -> None:
            connection.execute("DELETE FROM days")
            connection.execute("DELETE FROM refused")

        await self._database.write(delete)

    async def count_days(self) -> int:
        """Return how many days are copied, each measurement counted."""
        return await self._database.read(
            lambda connection: int(connection.execute("SELECT count(*) FROM days").fetchone()[0])
        )

    async def forget_refused(self, measurement: str, times: Period) -> None:
        """Delete the refused points of a span."""

        def delete(connection: Connection) -> None:
            connection.execute(
                "DELETE FROM refused WHERE measurement = ? AND time_ns >= ? AND time_ns < ?",
                (measurement, *times),
            )

        await self._database.write(delete)

    async def add_refused(self, measurement: str, points: Iterable[UncopiedPoint]) -> None:
        """Add refused points, durable when this returns."""
        rows = [(measurement, *point) for point in points]

        def insert(connection: Connection) -> None:
            connection.executemany(
                "INSERT INTO refused (measurement, time_ns, line, reason) VALUES (?, ?, ?, ?)", rows
            )

        await self._database.write(insert)

    async def list_refused(self, path: Path) -> int:
        """List the refused points in a file, without any in none, and return their number."""

        def write(connection: Connection) -> int:
            rows = connection.execute("SELECT reason, line FROM refused ORDER BY number")
            with translated_errors():
                return _write_refused(path, rows)

        return await self._database.read(write)


def _write_refused(path: Path, rows: Iterable[tuple[str, bytes]]) -> int:
    unfinished = path.with_name(path.name + ".new")
    count = 0
    with unfinished.open("wb") as file:
        for reason, line in rows:
            file.write(b"# %b\n%b\n" % (reason.encode(errors="replace"), line))
            count += 1
        file.flush()
        os.fsync(file.fileno())
    if count:
        unfinished.replace(path)
    else:
        unfinished.unlink()
        path.unlink(missing_ok=True)
    return count
