"""What is copied and compared already, in a file that survives a kill at any moment."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self, TypeAlias

from app.commands.copy.source import Period
from app.runtime.sqlite import Connection, Database

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
)


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
        await self._database.write(lambda connection: connection.execute("DELETE FROM days"))
