"""A fake journal in a list, for tests that control its rows."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Sequence

from app.journal.journal import SqliteJournal
from app.model import Pending, Row


class FakeJournal:
    """Rows and one cursor, which all sink names share."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.acked = 0
        self.acks: list[int] = []
        """Every cursor move, in order."""
        self.errors: list[Exception] = []
        """Raised by the next reads, one per read."""
        self.reads = 0
        self._grown = asyncio.Condition()

    def add(self, lines: Sequence[bytes], *, received_at: float = 0.0) -> Row:
        """Append one row."""
        data = b"".join(line + b"\n" for line in lines)
        first = self.rows[-1].last + 1 if self.rows else 1
        return self.add_row(Row(first, len(lines), gzip.compress(data, 1), received_at))

    def add_row(self, row: Row) -> Row:
        """Append a row unchecked, even an invalid one."""
        self.rows.append(row)
        return row

    async def append(self, lines: Sequence[bytes], *, received_at: float = 0.0) -> None:
        """Append one row and wake the waiting readers."""
        async with self._grown:
            self.add(lines, received_at=received_at)
            self._grown.notify_all()

    async def read(self, sink: str, *, max_points: int, after: int = 0) -> list[Row]:
        """Return unacked rows, as the contract of the journal requires."""
        self.reads += 1
        after = max(after, self.acked)
        if self.errors:
            raise self.errors.pop(0)
        found: list[Row] = []
        for row in self.rows:
            if row.last > after:
                if found and sum(r.points for r in found) + row.points > max_points:
                    break
                found.append(row)
        return found

    def cursor(self, sink: str) -> int:
        """Return the last acked number."""
        return self.acked

    def ack(self, sink: str, through: int) -> None:
        """Move the cursor, never backward."""
        assert through > self.acked, "acked twice"
        self.acked = through
        self.acks.append(through)

    def drop(self, through: int) -> None:
        """Advance the cursor as `drop_oldest` does."""
        self.acked = max(self.acked, through)

    def pending(self, sink: str, *, after: int = 0) -> Pending:
        """Return what is not acked."""
        after = max(after, self.acked)
        rows = [row for row in self.rows if row.last > after]
        points = sum(row.last - max(row.first - 1, after) for row in rows)
        return Pending(points=points, oldest_at=rows[0].received_at if rows else None)

    async def grown(self, sink: str, *, points: int) -> None:
        """Wait until so many points are pending."""
        async with self._grown:
            await self._grown.wait_for(lambda: self.pending(sink).points >= points)


async def tidy(journal: SqliteJournal) -> None:
    """Do the housekeeping of a journal once."""
    await journal._housekeeping.tidy(journal._database)
