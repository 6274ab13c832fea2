"""What the journal does to its file: plain functions of a connection, each one transaction.

They run in the database's own threads, on values gathered on the event loop before. `journal.py`
calls them. First the rows and cursors of the points, then coverage and last states.
"""

from __future__ import annotations

import contextlib
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import msgspec

from app.backfill.coverage import CoverageChanges, Covered
from app.journal.cursors import Overflow, Span, missing
from app.journal.rows import StoredRow, checksum, live_times_of, record_of, rows_of, take
from app.model import MAX_SECONDS, SECOND_NS, Gap, LastState, Lines, Row, Times
from app.runtime.errors import JournalFull, StorageDamaged, StorageFull
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
    # Coverage, gaps, and the last state of each entity.
    """
    CREATE TABLE covered (
        since_ns INTEGER NOT NULL,
        through_ns INTEGER NOT NULL,
        edge_at REAL NOT NULL
    ) STRICT;
    CREATE TABLE gaps (
        id INTEGER PRIMARY KEY,
        start_ns INTEGER NOT NULL,
        end_ns INTEGER NOT NULL,
        reason TEXT NOT NULL,
        found_at REAL NOT NULL,
        edge_at REAL NOT NULL,
        state TEXT NOT NULL,
        filled_ns INTEGER,
        changes INTEGER NOT NULL,
        entities INTEGER NOT NULL,
        unrecorded TEXT NOT NULL,
        entity_ids TEXT NOT NULL,
        detail TEXT,
        closed_at REAL
    ) STRICT;
    CREATE TABLE last_states (
        entity_id TEXT PRIMARY KEY,
        state TEXT,
        changed_ns INTEGER,
        time_ns INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    ALTER TABLE journal ADD COLUMN states_through INTEGER NOT NULL DEFAULT 0;
    UPDATE journal SET states_through = tail
""",
    # Checks: a checksum for each row, tail and cursors twice, and the holes. Those that a file of
    # an older version has are listed as known.
    """
    ALTER TABLE journal_rows ADD COLUMN checksum INTEGER;
    ALTER TABLE journal ADD COLUMN tail_check INTEGER;
    ALTER TABLE journal ADD COLUMN sinks INTEGER;
    ALTER TABLE journal ADD COLUMN has_covered INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE cursors ADD COLUMN settled_check INTEGER;
    ALTER TABLE covered ADD COLUMN through_check INTEGER;
    CREATE TABLE holes (first INTEGER PRIMARY KEY, points INTEGER NOT NULL) STRICT;
    UPDATE journal SET tail_check = ~tail,
        sinks = (SELECT count(*) FROM cursors), has_covered = (SELECT count(*) FROM covered);
    UPDATE covered SET through_check = ~through_ns;
    INSERT INTO holes SELECT before + 1, first - before - 1 FROM (
        SELECT first, lag(first + points - 1, 1, 0) OVER (ORDER BY first) AS before FROM (
            SELECT first, points FROM journal_rows
            UNION ALL SELECT tail + 1, 1 FROM journal
        )
    ) WHERE first > before + 1
""",
    """
    ALTER TABLE journal ADD COLUMN keep_from INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE gaps ADD COLUMN start_known INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE gaps ADD COLUMN end_known INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE gaps ADD COLUMN keep_from INTEGER NOT NULL DEFAULT 0
    """,
    """
    ALTER TABLE gaps ADD COLUMN sources TEXT NOT NULL DEFAULT '[]';
    ALTER TABLE gaps ADD COLUMN limitations TEXT NOT NULL DEFAULT '[]'
    """,
    "ALTER TABLE gaps ADD COLUMN acknowledged INTEGER NOT NULL DEFAULT 0",
    # Rows may hold two encodings, which older versions would take for damage.
    "UPDATE journal SET tail = tail",
)
CHECKED_VERSION = 3
"""The first version of the file that has checks."""

_ROWS_PER_DELETE = 100
_ROWS_PER_DROP = 2
_BYTES_PER_SHRINK = 1_000_000
_ROWS_BESIDE_HOLE = 20
"""How many rows beside missing numbers are searched for a live point."""
_MOVED = "settled = max(settled, ?1), settled_check = settled_check + settled - max(settled, ?1)"
"""Moves a cursor, never back, and its check as far the other way."""
_STORED = "SELECT first, points, received_at, gzip, checksum FROM journal_rows"
_FROM_NEXT = (
    "WHERE first >= coalesce((SELECT max(first) FROM journal_rows WHERE first <= :next), :next)"
)
"""The row that holds the point `:next`, or the one before it, and all rows behind it."""
_GAP_COLUMNS = tuple(field.name for field in fields(Gap))
_JSON_COLUMNS = frozenset(field.name for field in fields(Gap) if field.default == ())
_BOOLEAN_COLUMNS = frozenset(field.name for field in fields(Gap) if field.type == "bool")


@dataclass(frozen=True, slots=True)
class Bounds:
    """How large the journal may become, and what happens then."""

    path: Path | None
    max_bytes: int
    min_free_bytes: int
    overflow: Overflow
    free_bytes: Callable[[Path], int]

    def room(self, size: Size) -> tuple[int, int]:
        """Return how many bytes may be added to a file of this size, and how many the disk has."""
        # A WAL shrinks only when the file is closed; it may never take the whole bound.
        bound = max(self.max_bytes - size.wal_bytes, self.max_bytes // 2)
        on_disk = sys.maxsize
        if self.path is not None:  # pages that were freed are used again, so they count
            on_disk = size.free_bytes + max(0, self.free_bytes(self.path) - self.min_free_bytes)
        return bound - size.live_bytes, on_disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Coverage and last states, as a file holds them."""

    covered: Covered | None = None
    gaps: Sequence[Gap] = ()
    states: Mapping[str, LastState] = field(default_factory=dict)
    states_through: int = 0
    """Sequence number up to which `states` are true; newer rows have to be read."""


@dataclass(frozen=True, slots=True)
class Stock:
    """What an opened file holds."""

    tail: int
    cursors: Mapping[str, int]
    holes: Sequence[Span]
    oldest_at: Mapping[str, float | None]
    size: Size
    saved: Saved
    was_unused: bool
    """Whether an earlier process opened the file and appended nothing."""


@dataclass(frozen=True, slots=True)
class Appended:
    """What one append did."""

    rows: Sequence[Row]
    """The rows of its own lines."""
    dropped_through: int
    """The last sequence number dropped from some sink, or 0."""
    oldest_at: float | None
    size: Size
    room: int
    """How many bytes more could be appended without a drop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What a transaction saves besides rows."""

    cursors: Mapping[str, int]
    holes: Sequence[Span]
    """Those that the file does not list yet."""
    coverage: CoverageChanges


def take_stock(connection: Connection, sinks: Sequence[str], bounds: Bounds) -> Stock:
    """Give each new sink a cursor at the tail; return what the file, already checked, holds."""
    (tail,) = connection.execute("SELECT tail FROM journal").fetchone()
    (was_opened,) = connection.execute("SELECT EXISTS (SELECT 1 FROM cursors)").fetchone()
    save_new_cursors(connection, dict.fromkeys(sinks, tail))
    cursors = dict(connection.execute("SELECT sink, settled FROM cursors"))
    # A row with numbers of a known hole is never read.
    present = connection.execute(
        "SELECT first, first + points - 1 FROM journal_rows WHERE NOT EXISTS ("
        "SELECT 1 FROM holes WHERE holes.first < journal_rows.first + journal_rows.points"
        " AND holes.first + holes.points > journal_rows.first)"
    )
    return Stock(
        tail=tail,
        cursors=cursors,
        holes=missing(present, after=min(cursors.values(), default=tail), through=tail),
        oldest_at={sink: _oldest_at(connection, cursors[sink]) for sink in cursors},
        size=size_of(connection, bounds.path),
        saved=load(connection),
        was_unused=bool(was_opened) and not tail,
    )


def append_lines(
    connection: Connection,
    *,
    uncommitted: Sequence[Row],
    lines: Lines,
    tail: int,
    received_at: float,
    configured: int,
    metadata: Metadata,
    bounds: Bounds,
) -> Appended:
    """Append uncommitted rows and new lines at the tail, and save the metadata.

    `configured` is the last number that every configured sink has acked.

    Raises:
        JournalFull: there is no room and the policy is `drop_new`.
        StorageFull: the disk is at its bound.
    """
    # Few statements: on a busy loop each may wait some milliseconds for the interpreter's lock.
    new = rows_of(lines, first=tail + 1, received_at=received_at) if lines.points else []
    rows = [*uncommitted, *new]
    dropped = _make_room(connection, rows, (configured, tail), bounds)
    if dropped:
        connection.execute(
            f"UPDATE cursors SET {_MOVED}",  # noqa: S608 - words of ours
            (dropped,),
        )
    insert_rows(connection, rows)
    save_tail(connection, tail + lines.points)
    _save(connection, metadata)
    lost = dropped > min(metadata.cursors.values(), default=dropped)
    size = size_of(connection, bounds.path)
    return Appended(
        rows=new,
        dropped_through=dropped if lost else 0,
        oldest_at=_oldest_at(connection, dropped) if lost else None,
        size=size,
        room=min(bounds.room(size)),
    )


def _make_room(
    connection: Connection, rows: Sequence[Row], limits: tuple[int, int], bounds: Bounds
) -> int:
    """Delete the oldest rows until the new ones fit; return the last number deleted, or 0.

    Rows up to the first limit, which every configured sink has acked, go first, also if an orphan
    has not. Rows up to the second one go only with `drop_oldest`.
    """
    size = size_of(connection, bounds.path)
    page = size.page_bytes
    needed = sum((len(row.gzip) // page + 2) * page for row in rows)
    through = 0
    for limit in limits if bounds.overflow == "drop_oldest" else limits[:1]:
        while min(bounds.room(size)) < needed:
            last = _delete_rows(connection, limit, _ROWS_PER_DROP)
            if last is None:
                break
            through = last
            size = size_of(connection, bounds.path)
    in_journal, on_disk = bounds.room(size)
    if on_disk < needed:
        raise StorageFull("the disk has no more than JOURNAL_MIN_FREE_MB left")
    if in_journal < needed:
        raise JournalFull(f"{needed} bytes are needed and the journal is at its bound")
    return through


def tidy_block(
    connection: Connection,
    metadata: Metadata,
    *,
    states: Mapping[str, LastState],
    states_through: int,
    deletable: int,
    path: Path | None,
) -> tuple[bool, Size]:
    """Save, and delete some rows; return whether there may be more, and the size.

    Rows up to `deletable` are needed by no sink and no open gap.
    """
    _save(connection, metadata)
    if states:
        save_states(connection, states, states_through)
    connection.execute("DELETE FROM holes WHERE first + points - 1 <= ?", (deletable,))
    more = _delete_rows(connection, deletable, _ROWS_PER_DELETE) is not None
    shrink(connection, at_most_bytes=_BYTES_PER_SHRINK)
    return more, size_of(connection, path)


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


def _save(connection: Connection, metadata: Metadata) -> None:
    connection.executemany(
        f"UPDATE cursors SET {_MOVED} WHERE sink = ?2",  # noqa: S608 - words of ours
        [(settled, sink) for sink, settled in metadata.cursors.items()],
    )
    coverage = metadata.coverage
    if coverage.covered is not None:
        save_covered(connection, coverage.covered)
    if coverage.gaps:
        save_gaps(connection, coverage.gaps)
    if coverage.deleted:
        connection.executemany(
            "DELETE FROM gaps WHERE id = ?", [(number,) for number in coverage.deleted]
        )
    if metadata.holes:
        save_holes(connection, metadata.holes)


def settled_check(sink: str, settled: int) -> int:
    """Return the check beside a cursor: its complement, less a number derived from its name."""
    return ~settled - zlib.crc32(sink.encode())


def settled_by(sink: str, check: int) -> int:
    """Return the cursor that belongs to a check."""
    return ~(check + zlib.crc32(sink.encode()))


def save_new_cursors(connection: Connection, cursors: Mapping[str, int]) -> None:
    """Write the cursors of new sinks, and the checks that a file of an older version lacks."""
    connection.executemany(
        "INSERT OR IGNORE INTO cursors (sink, settled, settled_check) VALUES (?, ?, ?)",
        [(sink, at, settled_check(sink, at)) for sink, at in cursors.items()],
    )
    unchecked = connection.execute("SELECT sink, settled FROM cursors WHERE settled_check IS NULL")
    connection.executemany(
        "UPDATE cursors SET settled_check = ? WHERE sink = ?",
        [(settled_check(sink, at), sink) for sink, at in unchecked.fetchall()],
    )
    connection.execute("UPDATE journal SET sinks = (SELECT count(*) FROM cursors)")


def save_tail(connection: Connection, tail: int) -> None:
    """Write the number of the newest point."""
    connection.execute("UPDATE journal SET tail = ?, tail_check = ?", (tail, ~tail))


def save_holes(connection: Connection, holes: Iterable[Span]) -> None:
    """Write which numbers are known to be missing."""
    connection.executemany(
        "INSERT OR REPLACE INTO holes (first, points) VALUES (?, ?)",
        [(hole.first, hole.points) for hole in holes],
    )


def insert_rows(connection: Connection, rows: Iterable[Row]) -> None:
    """Write rows, each with its checksum."""
    connection.executemany(
        "INSERT INTO journal_rows (first, points, received_at, gzip, checksum)"
        " VALUES (?, ?, ?, ?, ?)",
        (
            (*columns, checksum(*columns))
            for row in rows
            for columns in [(row.first, row.points, row.received_at, row.gzip)]
        ),
    )


def rows_after(connection: Connection, cursor: int, max_points: int) -> list[Row]:
    """Return the row of the point after the cursor, and those behind it that fit.

    Damaged rows are left out.
    """
    found = connection.execute(f"{_STORED} {_FROM_NEXT} ORDER BY first", {"next": cursor + 1})
    with contextlib.closing(found):  # a statement left open would hold the WAL
        stored = (StoredRow(*columns) for columns in found)
        rows = (each.row for each in stored if each.row.last > cursor and each.is_whole())
        return take(rows, max_points=max_points)


def retained_rows(connection: Connection, after: int, limit: int) -> tuple[list[Row], int | None]:
    """Return the first rows that hold a point after a number, damaged ones left out.

    And the number after which there may be more, None when there are no more.
    """
    found = connection.execute(
        f"{_STORED} {_FROM_NEXT} AND first + points > :next ORDER BY first LIMIT :limit",
        {"next": after + 1, "limit": limit},
    ).fetchall()
    stored = [StoredRow(*columns) for columns in found]
    last = max(after + 1, stored[-1].row.last) if len(stored) == limit else None
    return [each.row for each in stored if each.is_whole()], last


def times_around(connection: Connection, span: Span) -> tuple[Times | None, Times | None]:
    """Return when the live points before and after missing numbers happened, where known."""
    before = connection.execute(
        f"{_STORED} WHERE first < ? ORDER BY first DESC LIMIT {_ROWS_BESIDE_HOLE}", (span.first,)
    )
    after = connection.execute(
        f"{_STORED} WHERE first > ? ORDER BY first LIMIT {_ROWS_BESIDE_HOLE}", (span.last,)
    )
    return _nearest_times(before), _nearest_times(after)


def _nearest_times(found: Cursor) -> Times | None:
    with contextlib.closing(found):
        for stored in (StoredRow(*columns) for columns in found):
            if stored.is_whole():
                lines = Lines(record_of(stored.gzip), stored.points)
                if (times := live_times_of(lines)) is not None:
                    return times
    return None


def _oldest_at(connection: Connection, cursor: int) -> float | None:
    """Return when the row of the next point, or the one before it, was received."""
    oldest = connection.execute(
        f"SELECT received_at FROM journal_rows {_FROM_NEXT}"  # noqa: S608 - words of ours
        " ORDER BY first LIMIT 1",
        {"next": cursor + 1},
    ).fetchone()
    return oldest[0] if oldest else None


def load(connection: Connection) -> Saved:
    """Read coverage and last states.

    Raises:
        StorageDamaged: a value is impossible.
    """
    (journal,) = _all(connection, "journal")
    covered = _all(connection, "covered")
    states_through = journal["states_through"]
    assert isinstance(states_through, int)
    return Saved(
        covered=covered_of({**journal, **covered[0]}) if covered else None,
        gaps=[gap_of(row) for row in _all(connection, "gaps")],
        states={
            entity_id: LastState(*columns)
            for entity_id, *columns in connection.execute(
                "SELECT entity_id, state, changed_ns, time_ns FROM last_states"
            )
        },
        states_through=states_through,
    )


def _all(connection: Connection, table: str) -> list[dict[str, object]]:
    """Return the rows of a small table; an older version may lack columns."""
    found = connection.execute(f"SELECT * FROM {table}")  # noqa: S608 - names of ours
    names = [name for name, *_ in found.description]
    return [dict(zip(names, row, strict=True)) for row in found]


def save_covered(connection: Connection, covered: Covered) -> None:
    """Write which time the journal covers."""
    columns = (covered.since_ns, covered.through_ns, covered.edge_at, ~covered.through_ns)
    changed = connection.execute(
        "UPDATE covered SET since_ns = ?, through_ns = ?, edge_at = ?, through_check = ?", columns
    )
    if not changed.rowcount:
        connection.execute(
            "INSERT INTO covered (since_ns, through_ns, edge_at, through_check)"
            " VALUES (?, ?, ?, ?)",
            columns,
        )
        connection.execute("UPDATE journal SET has_covered = 1")
    connection.execute("UPDATE journal SET keep_from = ?", (covered.keep_from,))


def save_gaps(connection: Connection, gaps: Iterable[Gap]) -> None:
    """Write gaps, in place of their former versions."""
    connection.executemany(
        f"INSERT OR REPLACE INTO gaps ({', '.join(_GAP_COLUMNS)})"  # noqa: S608 - names of ours
        f" VALUES ({', '.join('?' * len(_GAP_COLUMNS))})",
        [
            [json.dumps(value) if isinstance(value, tuple) else value for value in values]
            for gap in gaps
            for values in [(getattr(gap, name) for name in _GAP_COLUMNS)]
        ],
    )


def save_states(connection: Connection, states: Mapping[str, LastState], through: int) -> None:
    """Write the newest states of some entities, true up to a sequence number.

    States with a time that a check would call damage are left out.
    """
    connection.executemany(
        "INSERT OR REPLACE INTO last_states (entity_id, state, changed_ns, time_ns)"
        " VALUES (?, ?, ?, ?)",
        [
            (entity_id, last.state, last.changed_ns, last.time_ns)
            for entity_id, last in states.items()
            if is_time_ns(last.time_ns) and is_time_ns(last.changed_ns or 0)
        ],
    )
    connection.execute("UPDATE journal SET states_through = ?", (through,))


def gap_of(row: Mapping[str, object]) -> Gap:
    """Return the gap that a row holds; what it lacks has its default.

    Raises:
        StorageDamaged: a value is impossible.
    """
    columns = {name: value for name, value in row.items() if value is not None}
    try:
        for name in _JSON_COLUMNS & columns.keys():
            columns[name] = json.loads(str(columns[name]))
        for name in _BOOLEAN_COLUMNS & columns.keys():
            columns[name] = bool(columns[name])
        gap = msgspec.convert(columns, Gap)
    except (ValueError, RecursionError) as exc:
        raise StorageDamaged(f"gap {columns.get('id')} cannot be read: {exc}") from exc
    moments_ns = (gap.start_ns, gap.end_ns, gap.filled_ns or 0)
    moments = (gap.found_at, gap.edge_at, gap.closed_at or 0.0)
    if not all(map(is_time_ns, moments_ns)) or not all(map(is_time, moments)):
        raise StorageDamaged(f"gap {gap.id} has a time that cannot be right")
    if gap.start_ns > gap.end_ns or gap.id < 1:
        raise StorageDamaged(f"gap {gap.id} ends before it starts")
    return gap


def is_time(seconds: object) -> bool:
    """Return whether a value can be a moment in seconds since the epoch."""
    return isinstance(seconds, int | float) and 0 <= seconds < MAX_SECONDS


def is_time_ns(time_ns: object) -> bool:
    """Return whether a value can be a moment in nanoseconds since the epoch."""
    return isinstance(time_ns, int) and 0 <= time_ns < MAX_SECONDS * SECOND_NS


def covered_of(row: Mapping[str, object]) -> Covered:
    """Return the covered time that a row contains.

    Raises:
        StorageDamaged: it is impossible.
    """
    try:
        covered = msgspec.convert(row, Covered)
    except ValueError as exc:
        raise StorageDamaged(f"the time that it covers cannot be read: {exc}") from exc
    if not all(map(is_time_ns, (covered.since_ns, covered.through_ns))):
        raise StorageDamaged("the time that it covers cannot be right")
    return covered
