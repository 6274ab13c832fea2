"""The tables of the journal's file that hold its coverage and the newest state of each entity."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from app.errors import StorageDamaged
from app.journal.coverage import Covered, Unsaved
from app.model import Gap, LastState
from app.storage import Connection

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

_GAP_COLUMNS = (
    "id, start_ns, end_ns, reason, found_at, edge_at, state, filled_ns, changes, entities,"
    " unrecorded, entity_ids, detail, closed_at"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What a file says of the time it covers."""

    covered: Covered | None = None
    gaps: Sequence[Gap] = ()
    states: Mapping[str, LastState] = field(default_factory=dict)
    states_through: int = 0
    """The sequence number up to which `states` are true; what follows must be recalled."""


def load(connection: Connection) -> Remembered:
    """Read all of it."""
    covered = connection.execute("SELECT since_ns, through_ns, edge_at FROM covered").fetchone()
    (states_through,) = connection.execute("SELECT states_through FROM journal").fetchone()
    return Remembered(
        covered=Covered(*covered) if covered else None,
        gaps=[_gap(row) for row in connection.execute(f"SELECT {_GAP_COLUMNS} FROM gaps")],  # noqa: S608 - names of ours
        states={
            entity_id: LastState(*columns)
            for entity_id, *columns in connection.execute(
                "SELECT entity_id, state, changed_ns, time_ns FROM last_states"
            )
        },
        states_through=states_through,
    )


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
    columns = (covered.since_ns, covered.through_ns, covered.edge_at)
    changed = connection.execute(
        "UPDATE covered SET since_ns = ?, through_ns = ?, edge_at = ?", columns
    )
    if not changed.rowcount:
        connection.execute("INSERT INTO covered VALUES (?, ?, ?)", columns)


def save_gaps(connection: Connection, gaps: Iterable[Gap]) -> None:
    """Write gaps in the place of what is there of them."""
    connection.executemany(
        f"INSERT OR REPLACE INTO gaps ({_GAP_COLUMNS})"  # noqa: S608 - names of ours
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [_columns(gap) for gap in gaps],
    )


def save_states(connection: Connection, states: Mapping[str, LastState], through: int) -> None:
    """Write the newest states of some entities, true up to a sequence number."""
    connection.executemany(
        "INSERT OR REPLACE INTO last_states VALUES (?, ?, ?, ?)",
        [
            (entity_id, last.state, last.changed_ns, last.time_ns)
            for entity_id, last in states.items()
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
    )


def _gap(row: Sequence[object]) -> Gap:
    names = [name.strip() for name in _GAP_COLUMNS.split(",")]
    columns = dict(zip(names, row, strict=True))
    try:
        for name in ("unrecorded", "entity_ids"):
            columns[name] = tuple(json.loads(str(columns[name])))
    except ValueError as exc:
        raise StorageDamaged(f"gap {columns['id']} cannot be read: {exc}") from exc
    return Gap(**columns)  # type: ignore[arg-type]  # what `_columns` wrote
