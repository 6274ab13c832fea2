"""What must be true of a journal's file, and of single values in it.

SQLite notices damage to the structure of a file, not to what is in it. So each row carries a
checksum, the numbers that everything depends on stand there twice, the second time as their
complement, and the numbers that are known to be missing are listed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from isal import isal_zlib

from app.journal.cursors import Span, missing
from app.journal.tables import is_time_ns, load
from app.model import Lines, Row
from app.runtime import gzip_stream
from app.runtime.errors import StorageDamaged
from app.runtime.sqlite import Connection, pragma, quick_check

MIGRATION = """
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
"""
"""Holes that a file of an older version has are taken as known, because it does not list them."""

VERSION = 3
"""The version of the file whose values can be checked."""

MAX_NUMBER = 2**53
"""No journal gets there: at 20,000 points a second it takes 14,000 years."""


class StoredRow(NamedTuple):
    """A row as it lies in the file."""

    first: int
    points: int
    received_at: float
    gzip: bytes
    checksum: int | None
    """None in a row that an older version wrote."""

    @property
    def row(self) -> Row:
        """The row as the journal hands it out."""
        return Row(self.first, self.points, self.gzip, self.received_at)


def checksum(first: int, points: int, received_at: float, gzip: bytes) -> int:
    """Return the checksum of a row."""
    numbers = struct.pack("<qqd", first, points, received_at)
    return isal_zlib.crc32(gzip, isal_zlib.crc32(numbers))


def is_whole(stored: StoredRow) -> bool:
    """Return whether a row is as it was written; one without a checksum is unpacked for it."""
    if stored.checksum is not None:
        return stored.checksum == checksum(*stored[:4])
    if stored.first < 1 or stored.points < 1:
        return False
    return points_in(stored.gzip, expected=stored.points) == stored.points


def points_in(gzip: bytes, *, expected: int) -> int | None:
    """Return how many points a row holds; None when it cannot be unpacked."""
    try:
        data = gzip_stream.decompressed(gzip)
    except gzip_stream.Damaged:
        return None
    return len(Lines(data, expected).split())


def check_contents(connection: Connection) -> None:
    """Check a journal's file: its structure, its rows, and the numbers that go with them.

    Raises:
        StorageDamaged: something in it cannot be right.
    """
    quick_check(connection)
    version = pragma(connection, "user_version")
    is_older = version < VERSION
    tail = _check_tail(connection, is_older=is_older)
    settled = _check_cursors(connection, tail, is_older=is_older)
    _check_rows(connection, settled=settled, tail=tail, is_older=is_older)
    if version > 1:
        _check_remembered(connection, is_older=is_older)


def _check_tail(connection: Connection, *, is_older: bool) -> int:
    columns = "tail, ~tail, 0" if is_older else "tail, tail_check, states_through"
    found = connection.execute(f"SELECT {columns} FROM journal").fetchall()  # noqa: S608 - names of ours
    if len(found) != 1:
        raise StorageDamaged(f"it says {len(found)} times where it ends")
    tail, tail_check, states_through = found[0]
    if not 0 <= tail < MAX_NUMBER or tail_check != ~tail:
        raise StorageDamaged(f"the number of its newest point, {tail}, cannot be right")
    if not 0 <= states_through <= tail:
        raise StorageDamaged(f"the last states are of number {states_through}, after the newest")
    return int(tail)


def _check_cursors(connection: Connection, tail: int, *, is_older: bool) -> int:
    """Return the last number that every sink has."""
    check = "NULL" if is_older else "settled_check"
    cursors = connection.execute(f"SELECT sink, settled, {check} FROM cursors").fetchall()  # noqa: S608 - names of ours
    for sink, settled, found in cursors:
        if not 0 <= settled <= tail or found not in (None, settled_check(sink, settled)):
            raise StorageDamaged(f"the cursor of {sink}, {settled}, cannot be right")
    if not is_older:
        (expected,) = connection.execute("SELECT sinks FROM journal").fetchone()
        if expected != len(cursors):
            raise StorageDamaged(f"it has {len(cursors)} cursors and should have {expected}")
    return min((settled for _, settled, _ in cursors), default=tail)


def settled_check(sink: str, settled: int) -> int:
    """Return what stands beside a cursor: its complement, less a number that its name gives."""
    return ~settled - isal_zlib.crc32(sink.encode())


def settled_by(sink: str, check: int) -> int:
    """Return the cursor that such a number stands beside."""
    return ~(check + isal_zlib.crc32(sink.encode()))


def _check_remembered(connection: Connection, *, is_older: bool) -> None:
    remembered = load(connection)
    for entity_id, state in remembered.states.items():
        if not is_time_ns(state.time_ns) or not is_time_ns(state.changed_ns or 0):
            raise StorageDamaged(f"the last state of {entity_id} has a time that cannot be right")
    if is_older:
        return
    ends = connection.execute("SELECT through_ns, through_check FROM covered").fetchall()
    if len(ends) > 1 or any(check != ~through_ns for through_ns, check in ends):
        raise StorageDamaged("the end of the time that it covers cannot be right")
    (has_covered,) = connection.execute("SELECT has_covered FROM journal").fetchone()
    if has_covered and not ends:
        raise StorageDamaged("the time that it covers is missing")


def _check_rows(connection: Connection, *, settled: int, tail: int, is_older: bool) -> None:
    rows = stored_rows(connection, after=settled, is_older=is_older)
    present, before = [], 0
    for stored in rows:
        if not is_whole(stored):
            if is_older:
                raise StorageDamaged(f"the row at number {stored.first} cannot be read")
            continue  # its numbers may be known to be missing
        if stored.first <= before or stored.row.last > tail:
            raise StorageDamaged(f"the row at number {stored.first} has numbers of another one")
        before = stored.row.last
        present.append((stored.first, before))
    if is_older:
        return  # it does not say which numbers are known to be missing
    known = known_holes(connection)
    if any(not 0 < first <= last <= tail for first, last in known):
        raise StorageDamaged("a hole has numbers that cannot be right")
    lost = missing([*present, *known], after=settled, through=tail)
    if lost:
        count = sum(last - first + 1 for first, last in lost)
        raise StorageDamaged(f"{count} points cannot be read, from number {lost[0][0]} on")


def stored_rows(
    connection: Connection, *, after: int = 0, is_older: bool = False
) -> Iterator[StoredRow]:
    """Yield the rows that end after a number, in order."""
    checksum_column = "NULL" if is_older else "checksum"
    found = connection.execute(
        f"SELECT first, points, received_at, gzip, {checksum_column} FROM journal_rows"  # noqa: S608 - names of ours
        " WHERE first + points - 1 > ? ORDER BY first",
        (after,),
    )
    return (StoredRow(*columns) for columns in found)


def known_holes(connection: Connection) -> list[Span]:
    """Return the numbers that are known to be missing."""
    found = connection.execute("SELECT first, points FROM holes ORDER BY first")
    return [(first, first + points - 1) for first, points in found]
