"""Rows that sinks may have before they are durable: what is left while commits fail."""

from __future__ import annotations

from collections.abc import Sequence

from app.journal.cursors import Cursors
from app.journal.rows import RowBuffer
from app.model import Row


class UncommittedRows:
    """Rows at the tail that are only in memory, numbered and readable like all others.

    A row leaves when it is durable, or when every configured sink has settled it: then no
    disk has to know it any more. Either way its points count as journaled from there on.
    """

    def __init__(self, ledger: Cursors) -> None:
        self.points = 0
        """How many points are lent."""
        self._cursors = ledger
        self._rows = RowBuffer()

    @property
    def rows(self) -> Sequence[Row]:
        """Return all of them, oldest first."""
        return self._rows.all()

    @property
    def since(self) -> float | None:
        """When the oldest was received, in seconds since the epoch; None without rows."""
        rows = self._rows.all()
        return rows[0].received_at if rows else None

    def lend(self, rows: Sequence[Row]) -> None:
        """Let the sinks have rows; the first continues at the tail."""
        points = sum(row.points for row in rows)
        self._rows.extend(rows)
        self.points += points
        self._cursors.appended(points)

    def after(self, cursor: int, *, max_points: int) -> list[Row] | None:
        """Return the next rows after `cursor`, at least one, or None when they are not here."""
        return self._rows.after(cursor, max_points=max_points)

    def holding(self, sequence: int) -> Row | None:
        """Return the row that holds a sequence number, or None when none does."""
        return self._rows.holding(sequence)

    def release(self) -> None:
        """Let go of the rows that every configured sink has settled; never while they are written.

        A sink that is not configured loses them, counted: it could be away for ever.
        """
        through = self._cursors.acked_by_configured
        while (rows := self._rows.all()) and rows[0].last <= through:
            row = self._rows.popleft()
            self.points -= row.points
            self._cursors.skipped(row.first, row.points)
            self._cursors.secured(row.points)

    def written(self) -> Sequence[Row]:
        """Let go of all of them, because they are durable, and return them."""
        rows = tuple(self._rows.all())
        self._cursors.secured(self.points)
        self._rows, self.points = RowBuffer(), 0
        return rows
