"""What the journal does to its file: plain functions of a connection, each one transaction.

They run in the database's own threads, on values that were gathered on the event loop before;
`sqlite.py` is the journal that calls them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.backfill.coverage import Unsaved
from app.journal import checks
from app.journal.cursors import Hole, Overflow, missing
from app.journal.rows import compress, live_times_of, numbered, take
from app.journal.tables import (
    ACKNOWLEDGED_MIGRATION,
    BOUNDS_MIGRATION,
    MIGRATION,
    SOURCES_MIGRATION,
    Remembered,
    load,
    save_coverage,
    save_states,
)
from app.model import LastState, Lines, Row, Times
from app.runtime import gzip_stream
from app.runtime.errors import JournalFull, StorageFull
from app.runtime.sqlite import Connection, Cursor, Size, shrink, size_of

MIGRATIONS = (
    """
    CREATE TABLE journal_rows (
        first INTEGER PRIMARY KEY,
        points INTEGER NOT NULL,
        received_at REAL NOT NULL,
        gzip BLOB NOT NULL
    ) STRICT;
    CREATE TABLE journal (tail INTEGER NOT NULL) STRICT;
    INSERT INTO journal VALUES (0);
    CREATE TABLE cursors (sink TEXT PRIMARY KEY, settled INTEGER NOT NULL) STRICT
    """,
    MIGRATION,
    checks.MIGRATION,
    BOUNDS_MIGRATION,
    SOURCES_MIGRATION,
    ACKNOWLEDGED_MIGRATION,
)

_ROWS_PER_DELETE = 100
_ROWS_PER_DROP = 2
_PAGES_PER_SHRINK = 256
_MOVED = "settled = max(settled, ?1), settled_check = settled_check + settled - max(settled, ?1)"
"""How a cursor moves, never back; what stands beside it moves as far the other way."""
_STORED = "SELECT first, points, received_at, gzip, checksum FROM journal_rows"
_NEIGHBORS = 20
"""How many rows beside missing numbers are looked at for a live point."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How large the file may become, and what happens then."""

    path: Path
    max_bytes: int
    min_free_bytes: int
    overflow: Overflow
    free_bytes: Callable[[Path], int]

    def room(self, size: Size) -> int:
        """Return how many bytes an append may add to a file of this size."""
        # A WAL shrinks only when the file is closed; it may never take the whole bound.
        bound = max(self.max_bytes - size.wal_bytes, self.max_bytes // 2)
        return min(bound - size.live_bytes, self.disk_room(size))

    def disk_room(self, size: Size) -> int:
        """Return how many bytes the disk has for it; freed pages are used again, so they count."""
        return size.free_bytes + max(0, self.free_bytes(self.path) - self.min_free_bytes)


@dataclass(frozen=True, slots=True)
class Stock:
    """What an opened file holds."""

    tail: int
    cursors: Mapping[str, int]
    holes: Sequence[Hole]
    oldest_at: Mapping[str, float | None]
    bytes: int
    remembered: Remembered
    was_unused: bool
    """Whether an earlier process opened the file and appended nothing."""


@dataclass(frozen=True, slots=True)
class Appended:
    """What one append did."""

    rows: Sequence[Row]
    """Those of its own lines; what was lent is known already."""
    dropped_through: int
    """The last sequence number dropped from some sink, or 0."""
    oldest_at: float | None
    bytes: int
    room: int
    """How many bytes more could be appended without a drop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tidying:
    """What one transaction of housekeeping does."""

    cursors: Mapping[str, int]
    deletable: int
    """Rows up to this number are needed by no sink and no open gap."""
    unsaved: Unsaved
    states: Mapping[str, LastState]
    states_through: int
    holes: Sequence[Hole] = ()
    """Numbers that are newly known to be missing."""


def around(connection: Connection, first: int, last: int) -> tuple[Times | None, Times | None]:
    """Return when what stands before and after some missing numbers happened, as far as known."""
    before = connection.execute(
        f"{_STORED} WHERE first < ? ORDER BY first DESC LIMIT {_NEIGHBORS}", (first,)
    )
    after = connection.execute(
        f"{_STORED} WHERE first > ? ORDER BY first LIMIT {_NEIGHBORS}", (last,)
    )
    return _nearest_times(before), _nearest_times(after)


def take_stock(connection: Connection, sinks: Sequence[str], bounds: Bounds) -> Stock:
    """Give each new sink a cursor at the tail, and return what a file holds that was checked."""
    tail = _tail(connection)
    (was_opened,) = connection.execute("SELECT EXISTS (SELECT 1 FROM cursors)").fetchone()
    save_new_cursors(connection, dict.fromkeys(sinks, tail))
    cursors = dict(connection.execute("SELECT sink, settled FROM cursors"))
    return Stock(
        tail=tail,
        cursors=cursors,
        holes=list(_holes(connection, min(cursors.values(), default=tail), tail)),
        oldest_at={sink: _oldest_at(connection, cursors[sink]) for sink in cursors},
        bytes=_bytes(connection, bounds.path),
        remembered=load(connection),
        was_unused=bool(was_opened) and not tail,
    )


def _holes(connection: Connection, cursor: int, tail: int) -> Iterator[Hole]:
    """Yield the numbers that no row holds; what lies at a known hole is not to be read."""
    present = connection.execute(
        "SELECT first, first + points - 1 FROM journal_rows WHERE NOT EXISTS ("
        "SELECT 1 FROM holes WHERE holes.first < journal_rows.first + journal_rows.points"
        " AND holes.first + holes.points > journal_rows.first)"
    )
    for first, last in missing(present, after=cursor, through=tail):
        yield Hole(first, last - first + 1)


def append_lines(
    connection: Connection,
    *,
    lent: Sequence[Row],
    lines: Lines,
    tail: int,
    received_at: float,
    cursors: Mapping[str, int],
    configured: int,
    unsaved: Unsaved,
    unsaved_holes: Sequence[Hole],
    bounds: Bounds,
) -> Appended:
    """Save cursors and coverage, and put lent rows and new lines behind the tail.

    Raises:
        JournalFull: there is no room and the policy is `drop_new`.
        StorageFull: the disk is at its bound.
    """
    # Few statements: on a busy loop each may wait some milliseconds for the interpreter's lock.
    new = numbered(compress(lines), first=tail + 1, received_at=received_at) if lines.points else []
    rows = [*lent, *new]
    _save_cursors(connection, cursors)
    dropped = _make_room(connection, rows, configured, bounds)
    if dropped:
        connection.execute(
            f"UPDATE cursors SET {_MOVED}",  # noqa: S608 - words of ours
            (dropped,),
        )
    insert_rows(connection, rows)
    save_tail(connection, tail + lines.points)
    if unsaved_holes:
        save_holes(connection, unsaved_holes)
    save_coverage(connection, unsaved)
    lost = dropped > min(cursors.values(), default=dropped)
    size = size_of(connection, bounds.path)
    return Appended(
        rows=new,
        dropped_through=dropped if lost else 0,
        oldest_at=_oldest_at(connection, dropped) if lost else None,
        bytes=size.live_bytes + size.wal_bytes,
        room=bounds.room(size),
    )


def _make_room(connection: Connection, rows: Sequence[Row], configured: int, bounds: Bounds) -> int:
    """Delete the oldest rows until the new ones fit; return the last number deleted, or 0.

    Rows that no configured sink needs go first, whatever orphans may want.
    """
    size = size_of(connection, bounds.path)
    page = size.page_bytes
    needed = sum((len(row.gzip) // page + 2) * page for row in rows)
    through = 0
    limits = [configured]
    if bounds.overflow == "drop_oldest":
        limits.append(_tail(connection))
    for limit in limits:
        while bounds.room(size) < needed:
            last = _delete_rows(connection, limit, _ROWS_PER_DROP)
            if last is None:
                break
            through = last
            size = size_of(connection, bounds.path)
    if bounds.disk_room(size) < needed:
        raise StorageFull("the disk has no more than JOURNAL_MIN_FREE_MB left")
    if bounds.room(size) < needed:
        raise JournalFull(f"{needed} bytes are needed and the journal is at its bound")
    return through


def tidy_block(connection: Connection, tidying: Tidying, path: Path) -> tuple[bool, int]:
    """Save, and delete some rows; say whether there may be more, and the bytes then taken."""
    _save_cursors(connection, tidying.cursors)
    save_coverage(connection, tidying.unsaved)
    if tidying.states:
        save_states(connection, tidying.states, tidying.states_through)
    save_holes(connection, tidying.holes)
    connection.execute("DELETE FROM holes WHERE first + points - 1 <= ?", (tidying.deletable,))
    more = _delete_rows(connection, tidying.deletable, _ROWS_PER_DELETE) is not None
    shrink(connection, pages=_PAGES_PER_SHRINK)
    return more, _bytes(connection, path)


def _delete_rows(connection: Connection, through: int, limit: int) -> int | None:
    """Delete the oldest rows that end at or before `through`; return the last number, if any."""
    (last,) = connection.execute(
        "SELECT max(first + points - 1) FROM (SELECT first, points FROM journal_rows"
        " WHERE first <= :through AND first + points - 1 <= :through ORDER BY first LIMIT :limit)",
        {"through": through, "limit": limit},
    ).fetchone()
    if last is not None:
        connection.execute("DELETE FROM journal_rows WHERE first <= ?", (last,))
    assert last is None or isinstance(last, int)
    return last


def _save_cursors(connection: Connection, cursors: Mapping[str, int]) -> None:
    connection.executemany(
        f"UPDATE cursors SET {_MOVED} WHERE sink = ?2",  # noqa: S608 - words of ours
        [(settled, sink) for sink, settled in cursors.items()],
    )


def save_new_cursors(connection: Connection, cursors: Mapping[str, int]) -> None:
    """Write the cursors of sinks that have none yet, and the checks that an older version lacks."""
    connection.executemany(
        "INSERT OR IGNORE INTO cursors (sink, settled, settled_check) VALUES (?, ?, ?)",
        [(sink, at, checks.settled_check(sink, at)) for sink, at in cursors.items()],
    )
    unchecked = connection.execute("SELECT sink, settled FROM cursors WHERE settled_check IS NULL")
    connection.executemany(
        "UPDATE cursors SET settled_check = ? WHERE sink = ?",
        [(checks.settled_check(sink, at), sink) for sink, at in unchecked.fetchall()],
    )
    connection.execute("UPDATE journal SET sinks = (SELECT count(*) FROM cursors)")


def save_tail(connection: Connection, tail: int) -> None:
    """Write the number of the newest point."""
    connection.execute("UPDATE journal SET tail = ?, tail_check = ?", (tail, ~tail))


def save_holes(connection: Connection, new: Iterable[Hole]) -> None:
    """Write which numbers are known to be missing."""
    connection.executemany(
        "INSERT OR REPLACE INTO holes (first, points) VALUES (?, ?)",
        [(hole.first, hole.points) for hole in new],
    )


def insert_rows(connection: Connection, rows: Iterable[Row]) -> None:
    """Write rows, each with its checksum."""
    connection.executemany(
        "INSERT INTO journal_rows (first, points, received_at, gzip, checksum)"
        " VALUES (?, ?, ?, ?, ?)",
        (
            (*columns, checks.checksum(*columns))
            for row in rows
            for columns in [(row.first, row.points, row.received_at, row.gzip)]
        ),
    )


def rows_after(connection: Connection, cursor: int, max_points: int) -> list[Row]:
    """Return the row of the point after the cursor, and those behind it that fit.

    Rows that are not as they were written are left out.
    """
    found = connection.execute(
        f"{_STORED} WHERE first >= coalesce("  # noqa: S608 - words of ours
        "(SELECT max(first) FROM journal_rows WHERE first <= :next), :next) ORDER BY first",
        {"next": cursor + 1},
    )
    with contextlib.closing(found):  # a statement left open would hold the WAL
        stored = (checks.StoredRow(*columns) for columns in found)
        rows = (each.row for each in stored if each.row.last > cursor and checks.is_whole(each))
        return take(rows, max_points=max_points)


def _nearest_times(found: Cursor) -> Times | None:
    with contextlib.closing(found):
        for stored in (checks.StoredRow(*columns) for columns in found):
            if checks.is_whole(stored):
                lines = Lines(gzip_stream.decompressed(stored.gzip), stored.points)
                if (times := live_times_of(lines)) is not None:
                    return times
    return None


def _oldest_at(connection: Connection, cursor: int) -> float | None:
    """Return when the row of the next point, or the one before it, was received."""
    oldest = connection.execute(
        "SELECT received_at FROM journal_rows WHERE first >= coalesce("
        "(SELECT max(first) FROM journal_rows WHERE first <= :next), :next) ORDER BY first LIMIT 1",
        {"next": cursor + 1},
    ).fetchone()
    return oldest[0] if oldest else None


def retained_rows(connection: Connection, after: int, limit: int) -> tuple[list[Row], int | None]:
    """Return the first rows that hold a point after a number.

    And the number after which there may be more, None when there are no more. Rows that are not
    as they were written are left out.
    """
    found = connection.execute(
        f"{_STORED} WHERE first >= coalesce("  # noqa: S608 - words of ours
        "(SELECT max(first) FROM journal_rows WHERE first <= :next), :next)"
        " AND first + points > :next ORDER BY first LIMIT :limit",
        {"next": after + 1, "limit": limit},
    ).fetchall()
    stored = [checks.StoredRow(*columns) for columns in found]
    last = max(after + 1, stored[-1].row.last) if len(stored) == limit else None
    return [each.row for each in stored if checks.is_whole(each)], last


def _bytes(connection: Connection, path: Path) -> int:
    size = size_of(connection, path)
    return size.live_bytes + size.wal_bytes


def _tail(connection: Connection) -> int:
    (tail,) = connection.execute("SELECT tail FROM journal").fetchone()
    assert isinstance(tail, int)
    return tail
