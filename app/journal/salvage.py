"""What to do with a journal file that is damaged: save every row that can still be read."""

from __future__ import annotations

import logging
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from app import storage
from app.errors import StorageDamaged, StorageError
from app.journal.coverage import Coverage, Covered
from app.journal.remembered import Remembered, load, save_covered, save_gaps, save_states
from app.journal.rows import times_of
from app.model import Lines, Row, Times
from app.storage import Connection, Database

logger = logging.getLogger(__name__)

_ROWS_PER_COPY = 100
_MAX_ATTEMPTS = 20_000
_GZIP_WINDOW = 31


@dataclass(frozen=True, slots=True)
class Salvage:
    """What was saved from a damaged file."""

    points: int
    missing: int
    """Sequence numbers between the slowest cursor and the tail that could not be read."""
    set_aside: Path

    @property
    def reason(self) -> str:
        """Return one sentence for a person."""
        return (
            f"The journal file was damaged: {self.points} points were saved, {self.missing} are"
            f" missing. Check the disk; the damaged file is kept as {self.set_aside}."
        )


@dataclass(frozen=True, slots=True)
class _Books:
    """What a damaged file still says about its cursors, its tail, and what it covers."""

    cursors: dict[str, int]
    tail: int | None
    remembered: Remembered | None

    @property
    def settled(self) -> int:
        return min(self.cursors.values(), default=0)


async def salvage(
    path: Path, *, migrations: Sequence[str], sinks: Sequence[str], cause: StorageDamaged
) -> Salvage:
    """Put a new file in the place of a damaged one, with all that can still be read.

    The damaged file is renamed and kept. Cursors that cannot be read start before the first
    row saved: a point may be delivered twice, but none is skipped.
    """
    logger.error("The journal %s is damaged, saving what can be read: %s", path, cause)
    fresh = _fresh(path)
    storage.remove(fresh)
    async with Database(fresh, migrations=migrations) as database:
        with storage.opened_as_it_is(path) as damaged:
            # The damaged file is read in the new one's thread, a block per transaction.
            books = await database.write(lambda _: _books(damaged))
            rows = _readable_rows(damaged, books)
            while await database.write(partial(_copy, rows=rows)):
                pass
        points, missing = await database.write(partial(_settle_books, books=books, sinks=sinks))
    saved = Salvage(points, missing, storage.set_aside(path))
    fresh.rename(path)
    logger.error("%s", saved.reason)
    return saved


def finish_salvage(path: Path) -> None:
    """Put the new file in its place when a salvage was cut off just before that."""
    fresh = _fresh(path)
    if not path.exists() and fresh.exists():
        storage.set_aside(path)
        fresh.rename(path)


def _fresh(path: Path) -> Path:
    return path.with_name(path.name + ".salvage")


def _books(damaged: Connection) -> _Books:
    cursors: dict[str, int] = {}
    tail: int | None = None
    try:
        with storage.translated_errors():
            (tail,) = damaged.execute("SELECT tail FROM journal").fetchone()
            cursors = dict(damaged.execute("SELECT sink, settled FROM cursors"))
    except StorageError as exc:
        logger.warning("The cursors of the damaged journal cannot be read: %s", exc)
    remembered = None
    try:
        with storage.translated_errors():
            remembered = load(damaged)
    except StorageError as exc:
        logger.warning("What the damaged journal covers cannot be read: %s", exc)
    return _Books(cursors, tail, remembered)


def _readable_rows(damaged: Connection, books: _Books) -> Iterator[Row]:
    """Yield every row that can be read, by halving the ranges that cannot."""
    ranges = deque([(1, books.tail or 2**62)])
    attempts = 0
    while ranges and attempts < _MAX_ATTEMPTS:
        attempts += 1
        first, last = ranges.popleft()
        try:
            with storage.translated_errors():
                for row in _rows(damaged, first, last):
                    first = row.last + 1
                    if row.last > books.settled and _whole(row):
                        yield row
        except StorageError:
            middle = (first + last) // 2
            if first < last:
                ranges.extend([(first, middle), (middle + 1, last)])


def _rows(damaged: Connection, first: int, last: int) -> Iterator[Row]:
    for columns in damaged.execute(
        "SELECT first, points, gzip, received_at FROM journal_rows"
        " WHERE first BETWEEN ? AND ? ORDER BY first",
        (first, last),
    ):
        yield Row(*columns)


def _whole(row: Row) -> bool:
    try:
        lines = zlib.decompress(row.gzip, _GZIP_WINDOW)
    except zlib.error:
        return False
    return lines.count(b"\n") >= row.points


def _copy(connection: Connection, rows: Iterator[Row]) -> int:
    block = [
        (row.first, row.points, row.received_at, row.gzip) for row in islice(rows, _ROWS_PER_COPY)
    ]
    connection.executemany("INSERT OR IGNORE INTO journal_rows VALUES (?, ?, ?, ?)", block)
    return len(block)


def _settle_books(connection: Connection, books: _Books, sinks: Sequence[str]) -> tuple[int, int]:
    points, first, last = connection.execute(
        "SELECT coalesce(sum(points), 0), min(first), max(first + points - 1) FROM journal_rows"
    ).fetchone()
    # Numbers are never reused, because dead letters carry them: when the tail is unknown it
    # is set beyond all that can have been given out.
    unknown = last if last is not None else int(time.time() * 1000)
    known_tail = books.tail if books.tail is not None else unknown
    tail = max(last or 0, known_tail, *books.cursors.values())
    before = tail if first is None else first - 1
    cursors = books.cursors or dict.fromkeys(sinks, before)
    connection.execute("UPDATE journal SET tail = ?", (tail,))
    connection.executemany("INSERT INTO cursors VALUES (?, ?)", cursors.items())
    start = min(cursors.values(), default=tail)
    _settle_coverage(connection, books.remembered or Remembered(), start=start, tail=tail)
    held = points - max(0, start - before)
    return held, max(0, tail - start - held)


def _settle_coverage(
    connection: Connection, remembered: Remembered, *, start: int, tail: int
) -> None:
    """Save what the file covers, and a gap for the time of the points that are lost.

    Points lost at the end are in no gap here: the journal then covers no further than the
    last one saved, and the next connection finds the gap.
    """
    coverage = Coverage()
    coverage.open(None, remembered.gaps, edge_at=None)
    newest_ns = max((state.time_ns for state in remembered.states.values()), default=None)
    expected, through_ns = start + 1, None
    for row in _saved_rows(connection):
        times = times_of(Lines(zlib.decompress(row.gzip, _GZIP_WINDOW), row.points))
        if row.first > expected:
            since_ns = through_ns or newest_ns or times.oldest_ns
            coverage.lost(Times(since_ns, max(since_ns, times.newest_ns)), "damage")
        expected = row.last + 1
        through_ns = max(through_ns or 0, times.newest_ns)
    covered, end_ns = remembered.covered, through_ns or newest_ns
    if end_ns is not None and (covered is None or expected <= tail):
        covered = Covered(covered.since_ns if covered else end_ns, end_ns)
    if covered is not None:
        save_covered(connection, covered)
    save_gaps(connection, coverage.gaps())
    save_states(connection, remembered.states, remembered.states_through)


def _saved_rows(connection: Connection) -> Iterator[Row]:
    for columns in connection.execute(
        "SELECT first, points, gzip, received_at FROM journal_rows ORDER BY first"
    ):
        yield Row(*columns)
