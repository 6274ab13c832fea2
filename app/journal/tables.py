"""The tables of the journal's file that hold its coverage and the newest state of each entity."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from app.backfill.coverage import Covered, Unsaved
from app.model import MAX_SECONDS, SECOND_NS, Gap, LastState
from app.runtime.errors import StorageDamaged
from app.runtime.sqlite import Connection, Cursor

MIGRATION = """
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
"""

BOUNDS_MIGRATION = """
    ALTER TABLE journal ADD COLUMN keep_from INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE gaps ADD COLUMN start_known INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE gaps ADD COLUMN end_known INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE gaps ADD COLUMN keep_from INTEGER NOT NULL DEFAULT 0
"""

SOURCES_MIGRATION = """
    ALTER TABLE gaps ADD COLUMN sources TEXT NOT NULL DEFAULT '[]';
    ALTER TABLE gaps ADD COLUMN limitations TEXT NOT NULL DEFAULT '[]'
"""

ACKNOWLEDGED_MIGRATION = """
    ALTER TABLE gaps ADD COLUMN acknowledged INTEGER NOT NULL DEFAULT 0
"""

_GAP_COLUMNS = (
    "id, start_ns, end_ns, reason, found_at, edge_at, state, filled_ns, changes, entities,"
    " unrecorded, entity_ids, detail, closed_at, start_known, end_known, keep_from, sources,"
    " limitations, acknowledged"
)

GAP_COLUMNS = tuple(name.strip() for name in _GAP_COLUMNS.split(","))
_ADDED = {
    "start_known": "1",
    "end_known": "1",
    "keep_from": "0",
    "sources": "'[]'",
    "limitations": "'[]'",
    "acknowledged": "0",
}
"""Columns that a file of an older version lacks, and what they are there."""
_COVERED_COLUMNS = ("since_ns", "through_ns", "edge_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What a file says of the time it covers."""

    covered: Covered | None = None
    gaps: Sequence[Gap] = ()
    states: Mapping[str, LastState] = field(default_factory=dict)
    states_through: int = 0
    """The sequence number up to which `states` are true; what follows must be recalled."""


def load(connection: Connection) -> Remembered:
    """Read all of it.

    Raises:
        StorageDamaged: a value cannot be right.
    """
    covered = _select(connection, "covered", _COVERED_COLUMNS).fetchone()
    states_through, keep_from = _select(
        connection, "journal", ("states_through", "keep_from")
    ).fetchone()
    return Remembered(
        covered=replace(covered_of(covered), keep_from=keep_from) if covered else None,
        gaps=[gap_of(row) for row in _select(connection, "gaps", GAP_COLUMNS)],
        states={
            entity_id: LastState(*columns)
            for entity_id, *columns in connection.execute(
                "SELECT entity_id, state, changed_ns, time_ns FROM last_states"
            )
        },
        states_through=states_through,
    )


def _select(connection: Connection, table: str, columns: Sequence[str]) -> Cursor:
    present = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    chosen = [name if name in present else _ADDED[name] for name in columns]
    return connection.execute(f"SELECT {', '.join(chosen)} FROM {table}")  # noqa: S608 - names of ours


def save_coverage(connection: Connection, unsaved: Unsaved) -> None:
    """Write what has changed of spans and gaps."""
    if unsaved.covered is not None:
        save_covered(connection, unsaved.covered)
    save_gaps(connection, unsaved.gaps)
    connection.executemany(
        "DELETE FROM gaps WHERE id = ?", [(number,) for number in unsaved.forgotten]
    )


def save_covered(connection: Connection, covered: Covered) -> None:
    """Write from when to when the journal covers."""
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
    """Write gaps in the place of what is there of them."""
    connection.executemany(
        f"INSERT OR REPLACE INTO gaps ({_GAP_COLUMNS})"  # noqa: S608 - names of ours
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [_columns(gap) for gap in gaps],
    )


def save_states(connection: Connection, states: Mapping[str, LastState], through: int) -> None:
    """Write the newest states of some entities, true up to a sequence number.

    Those of a time that is damage when it is read back are left out.
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


def _columns(gap: Gap) -> tuple[object, ...]:
    return (
        gap.id,
        gap.start_ns,
        gap.end_ns,
        gap.reason,
        gap.found_at,
        gap.edge_at,
        gap.state,
        gap.filled_ns,
        gap.changes,
        gap.entities,
        json.dumps(gap.unrecorded),
        json.dumps(gap.entity_ids),
        gap.detail,
        gap.closed_at,
        gap.start_known,
        gap.end_known,
        gap.keep_from,
        json.dumps(gap.sources),
        json.dumps(gap.limitations),
        gap.acknowledged,
    )


def gap_of(row: Sequence[object]) -> Gap:
    """Return the gap that a row holds.

    Raises:
        StorageDamaged: a value cannot be right.
    """
    columns = dict(zip(GAP_COLUMNS, row, strict=True))
    try:
        for name in ("unrecorded", "entity_ids", "sources", "limitations"):
            columns[name] = json.loads(str(columns[name]))
        for name in ("start_known", "end_known", "acknowledged"):
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


def covered_of(row: Sequence[object]) -> Covered:
    """Return the time that a row says is covered.

    Raises:
        StorageDamaged: it cannot be right.
    """
    try:
        covered = msgspec.convert(dict(zip(_COVERED_COLUMNS, row, strict=True)), Covered)
    except ValueError as exc:
        raise StorageDamaged(f"the time that it covers cannot be read: {exc}") from exc
    if not all(map(is_time_ns, (covered.since_ns, covered.through_ns))):
        raise StorageDamaged("the time that it covers cannot be right")
    return covered
