"""What to do with a journal file that is damaged: save every row that can still be read."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from app import members, storage
from app.errors import StorageDamaged, StorageError
from app.journal.coverage import Covered
from app.journal.remembered import Remembered, load, save_covered, save_gaps, save_states
from app.journal.rows import live_times_of
from app.model import Gap, Lines, Row, Times
from app.storage import Connection, Database

logger = logging.getLogger(__name__)

_ROWS_PER_COPY = 100
_MAX_ATTEMPTS = 20_000
_SECOND_NS = 1_000_000_000
_LEAST_HOLE_NS = 60 * _SECOND_NS
_MERGED_NS = 10 * _SECOND_NS


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
                    # Settled rows as well: they tell when a hole began, and what is read back
                    # near a gap is compared with them.
                    if _whole(row):
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
        lines = members.decompressed(row.gzip)
    except members.Damaged:
        return False
    return lines.count(b"\n") >= row.points


def _copy(connection: Connection, rows: Iterator[Row]) -> int:
    block = [
        (row.first, row.points, row.received_at, row.gzip) for row in islice(rows, _ROWS_PER_COPY)
    ]
    connection.executemany("INSERT OR IGNORE INTO journal_rows VALUES (?, ?, ?, ?)", block)
    return len(block)


def _settle_books(connection: Connection, books: _Books, sinks: Sequence[str]) -> tuple[int, int]:
    first, last = connection.execute(
        "SELECT min(first), max(first + points - 1) FROM journal_rows"
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
    settled = min(cursors.values(), default=tail)
    (held,) = connection.execute(
        "SELECT coalesce(sum(min(points, first + points - 1 - :settled)), 0) FROM journal_rows"
        " WHERE first + points - 1 > :settled",
        {"settled": settled},
    ).fetchone()
    remembered = books.remembered or Remembered()
    spans = list(_spans(connection))
    gaps, lost_at_end = damage_gaps(spans, remembered.covered, settled=settled, tail=tail)
    covered = _covered(spans, remembered, lost_at_end=lost_at_end)
    if covered is not None:
        save_covered(connection, covered)
    else:
        logger.warning(
            "Since when nothing was captured cannot be known."
            " To read it back: python -m app backfill --since …"
        )
    last_id = max((gap.id for gap in remembered.gaps), default=0)
    new = [replace(gap, id=last_id + number) for number, gap in enumerate(gaps, start=1)]
    save_gaps(connection, [*remembered.gaps, *new])
    save_states(connection, remembered.states, remembered.states_through)
    return held, max(0, tail - settled - held)


@dataclass(frozen=True, slots=True)
class Span:
    """A row that was saved: its numbers, and when what it holds happened."""

    first: int
    last: int
    times: Times | None
    """None when nothing in it came live from Home Assistant."""
    received_at: float


def damage_gaps(
    spans: Sequence[Span], covered: Covered | None, *, settled: int, tail: int
) -> tuple[list[Gap], int]:
    """Return gaps, without ids, for the time of lost points, and how many are lost at the end.

    Those are in no gap: the journal covers no further than the last live row that was saved,
    and the next connection finds the gap. Without such a row all that was covered is one.
    """
    gaps: list[Gap] = []
    before: Span | None = None
    expected, missing = settled + 1, 0
    for span in spans:
        missing += max(0, span.first - expected)
        expected = max(expected, span.last + 1)
        if span.times is None:
            continue
        if missing:
            since_ns = _since_ns(spans, missing, before=before, after=span.times)
            edge_at = (before or span).received_at
            _add(gaps, Times(since_ns, max(since_ns, span.times.newest_ns)), edge_at)
            missing = 0
        before = span
    missing += max(0, tail + 1 - expected)
    if before is None and covered is not None and missing:
        _add(gaps, Times(covered.since_ns, covered.through_ns), covered.edge_at)
        missing = 0
    return gaps, missing


def _since_ns(spans: Sequence[Span], missing: int, *, before: Span | None, after: Times) -> int:
    """Return where a hole begins: with the row before, else as the pace of the others says."""
    if before is not None and before.times is not None:
        return min(before.times.newest_ns, after.oldest_ns)
    live = [(span.times, span.last - span.first + 1) for span in spans if span.times]
    whole_ns = max(times.newest_ns for times, _ in live) - min(times.oldest_ns for times, _ in live)
    ns_per_point = whole_ns // sum(points for _, points in live)
    return after.oldest_ns - max(_LEAST_HOLE_NS, 2 * missing * ns_per_point)


def _add(gaps: list[Gap], times: Times, edge_at: float) -> None:
    if gaps and times.oldest_ns <= gaps[-1].end_ns + _MERGED_NS:
        last = gaps.pop()
        gaps.append(replace(last, end_ns=max(last.end_ns, times.newest_ns)))
        return
    gaps.append(
        Gap(
            id=0,
            start_ns=times.oldest_ns,
            end_ns=times.newest_ns,
            reason="damage",
            found_at=time.time(),
            edge_at=edge_at,
        )
    )


def _covered(spans: Sequence[Span], remembered: Remembered, *, lost_at_end: int) -> Covered | None:
    """Return what the file covers: no further than the last row, when points after it are lost."""
    covered, live = remembered.covered, [span for span in spans if span.times]
    if covered is not None and not lost_at_end:
        return covered
    if live and (last := live[-1]).times and (first := live[0]).times:
        since_ns = covered.since_ns if covered else first.times.oldest_ns
        return Covered(since_ns, last.times.newest_ns, last.received_at)
    newest_ns = max((state.time_ns for state in remembered.states.values()), default=None)
    if newest_ns is None:
        return None
    return Covered(newest_ns, newest_ns, newest_ns / _SECOND_NS)


def _spans(connection: Connection) -> Iterator[Span]:
    for row in _saved_rows(connection):
        lines = Lines(members.decompressed(row.gzip), row.points)
        yield Span(row.first, row.last, live_times_of(lines), row.received_at)


def _saved_rows(connection: Connection) -> Iterator[Row]:
    for columns in connection.execute(
        "SELECT first, points, gzip, received_at FROM journal_rows ORDER BY first"
    ):
        yield Row(*columns)
