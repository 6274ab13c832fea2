"""Damage of the journal: how it is found before the file is opened, and what is saved from it.

SQLite notices damage to the structure of a file, not to its contents. So each row has a checksum,
the tail and the cursors are stored twice, and numbers that are known to be missing are listed.

A repair writes nothing to the damaged file. It reads the small tables through SQLite, or from the
pages where SQLite refuses; rows always from the pages, see `sqlite_pages.py`.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from app.backfill.coverage import Covered, within_range
from app.journal.cursors import Span, missing
from app.journal.rows import StoredRow, live_times_of, points_in, record_of
from app.journal.transactions import (
    CHECKED_VERSION,
    Saved,
    covered_of,
    gap_of,
    insert_rows,
    is_time,
    is_time_ns,
    load,
    save_covered,
    save_gaps,
    save_holes,
    save_new_cursors,
    save_states,
    save_tail,
    settled_by,
    settled_check,
)
from app.model import SECOND_NS, Gap, LastState, Lines, Row, Times
from app.runtime import sqlite, sqlite_pages
from app.runtime.errors import StorageDamaged, StorageError
from app.runtime.sqlite import Connection, Steps, TableShape, pragma, quick_check
from app.runtime.sqlite_pages import Value

logger = logging.getLogger(__name__)

MAX_NUMBER = 2**53
"""No journal gets there: at 20,000 points a second it takes 14,000 years."""
_ROWS_PER_COPY = 100
_LEAST_HOLE_NS = 60 * SECOND_NS
_MERGED_NS = 10 * SECOND_NS


def check_contents(connection: Connection) -> None:
    """Check a journal's file: its structure, its rows, and the numbers that go with them.

    Raises:
        StorageDamaged: something in it is impossible.
    """
    quick_check(connection)
    version = pragma(connection, "user_version")
    is_older = version < CHECKED_VERSION
    tail = _check_tail(connection, is_older=is_older)
    settled = _check_cursors(connection, tail, is_older=is_older)
    _check_rows(connection, settled=settled, tail=tail, is_older=is_older)
    if version > 1:
        _check_coverage(connection, is_older=is_older)


def _check_tail(connection: Connection, *, is_older: bool) -> int:
    columns = "tail, ~tail, 0" if is_older else "tail, tail_check, states_through"
    found = connection.execute(f"SELECT {columns} FROM journal").fetchall()  # noqa: S608 - names of ours
    if len(found) != 1:
        raise StorageDamaged(f"the table journal has {len(found)} rows, not one")
    tail, tail_check, states_through = found[0]
    if not 0 <= tail < MAX_NUMBER or tail_check != ~tail:
        raise StorageDamaged(f"the number of the newest point, {tail}, is impossible")
    if not 0 <= states_through <= tail:
        raise StorageDamaged(f"the last states are of number {states_through}, after the newest")
    return int(tail)


def _check_cursors(connection: Connection, tail: int, *, is_older: bool) -> int:
    """Return the last number that every sink has acked."""
    check = "NULL" if is_older else "settled_check"
    cursors = connection.execute(f"SELECT sink, settled, {check} FROM cursors").fetchall()  # noqa: S608 - names of ours
    for sink, settled, found in cursors:
        if not 0 <= settled <= tail or found not in (None, settled_check(sink, settled)):
            raise StorageDamaged(f"the cursor of {sink}, {settled}, is impossible")
    if not is_older:
        (expected,) = connection.execute("SELECT sinks FROM journal").fetchone()
        if expected != len(cursors):
            raise StorageDamaged(f"it has {len(cursors)} cursors and should have {expected}")
    return min((settled for _, settled, _ in cursors), default=tail)


def _check_coverage(connection: Connection, *, is_older: bool) -> None:
    saved = load(connection)
    for entity_id, state in saved.states.items():
        if not is_time_ns(state.time_ns) or not is_time_ns(state.changed_ns or 0):
            raise StorageDamaged(f"the last state of {entity_id} has an impossible time")
    if is_older:
        return
    ends = connection.execute("SELECT through_ns, through_check FROM covered").fetchall()
    if len(ends) > 1 or any(check != ~through_ns for through_ns, check in ends):
        raise StorageDamaged("the end of the covered time is impossible")
    (has_covered,) = connection.execute("SELECT has_covered FROM journal").fetchone()
    if has_covered and not ends:
        raise StorageDamaged("the covered time is missing")


def _check_rows(connection: Connection, *, settled: int, tail: int, is_older: bool) -> None:
    checksum = "NULL" if is_older else "checksum"
    found = connection.execute(
        f"SELECT first, points, received_at, gzip, {checksum} FROM journal_rows"  # noqa: S608 - names of ours
        " WHERE first + points - 1 > ? ORDER BY first",
        (settled,),
    )
    present, before = [], 0
    for stored in (StoredRow(*columns) for columns in found):
        if not stored.is_whole():
            if is_older:
                raise StorageDamaged(f"the row at number {stored.first} cannot be read")
            continue  # its numbers may be known to be missing
        if stored.first <= before or stored.row.last > tail:
            raise StorageDamaged(f"the row at number {stored.first} has numbers of another one")
        before = stored.row.last
        present.append(Span(stored.first, before))
    if is_older:
        return  # it does not list which numbers are known to be missing
    holes = connection.execute("SELECT first, first + points - 1 FROM holes")
    known = [Span(*hole) for hole in holes]
    if any(not 0 < hole.first <= hole.last <= tail for hole in known):
        raise StorageDamaged("a hole has impossible numbers")
    if lost := missing([*present, *known], after=settled, through=tail):
        points = sum(span.points for span in lost)
        raise StorageDamaged(f"{points} points cannot be read, from number {lost[0].first} on")


@dataclass(frozen=True, slots=True)
class Repair:
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


class _Number(NamedTuple):
    """A number that the file holds twice, the second time in another form."""

    values: tuple[int, ...]
    """One, or two that contradict each other; none when neither is possible."""
    is_sure: bool
    """Whether both agree."""


@dataclass(frozen=True, slots=True)
class _SmallTables:
    """What can be read of a damaged file, without its rows."""

    tail: _Number
    cursors: Mapping[str, _Number]
    holes: Sequence[Span]
    saved: Saved


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Tail and cursors of the new file."""

    tail: int
    end: int
    """The last point; numbers between it and the tail may never have been used."""
    cursors: Mapping[str, int]

    @property
    def acked(self) -> int:
        """The last number that every sink has acked."""
        return min(self.cursors.values(), default=self.tail)


class _Taken:
    """Sequence numbers of the new file's rows: spans in order that do not overlap."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def add(self, span: Span) -> bool:
        """Add a span; return False when some of its numbers are taken."""
        at = bisect_left(self.spans, span)
        if at > 0 and self.spans[at - 1].last >= span.first:
            return False
        if at < len(self.spans) and self.spans[at].first <= span.last:
            return False
        self.spans.insert(at, span)
        return True


async def repair(
    path: Path, *, migrations: Sequence[str], sinks: Sequence[str], cause: StorageDamaged
) -> Repair:
    """Replace a damaged file with a new one that contains everything still readable.

    The damaged file is renamed. A cursor that cannot be read starts before the first row saved:
    a point may be delivered twice, but none is skipped.
    """
    logger.error("The journal %s is damaged, saving what can be read: %s", path, cause)
    fill = partial(_fill, path=path, tables=sqlite.tables_of(migrations), sinks=sinks)
    aside, (points, lost) = await sqlite.replace_damaged(
        path, migrations=migrations, page_bytes=sqlite_pages.SMALL_PAGE_BYTES, fill=fill
    )
    saved = Repair(points, lost, aside)
    logger.error("%s", saved.reason)
    return saved


def _fill(
    connection: Connection, path: Path, tables: Mapping[str, TableShape], sinks: Sequence[str]
) -> Steps[tuple[int, int]]:
    """Copy what can be read; return how many points some sink needs, and how many are missing."""
    small = _small_tables(path, tables)
    yield
    taken = _Taken()
    doubtful = yield from _copy_rows(connection, _stored_rows(path, tables["journal_rows"]), taken)
    numbers = _numbers(small, taken.spans, sinks)
    unused = [Span(numbers.end + 1, numbers.tail)] if numbers.end < numbers.tail else []
    known = [*(hole for hole in small.holes if hole.last <= numbers.tail), *unused]

    def lost() -> list[Span]:
        return missing([*taken.spans, *known], after=numbers.acked, through=numbers.tail)

    placed, at_end = _placed(doubtful, lost(), taken, tail=numbers.tail)
    insert_rows(connection, [*placed, *at_end])
    _save_coverage(connection, small.saved, known=known, numbers=numbers)
    through = small.saved.states_through
    save_states(connection, small.saved.states, through if through <= numbers.tail else 0)

    save_tail(connection, at_end[-1].last if at_end else numbers.tail)
    save_new_cursors(connection, numbers.cursors)
    save_holes(connection, [*known, *lost()])
    appended = sum(row.points for row in at_end)
    held = sum(max(0, span.last - max(span.first - 1, numbers.acked)) for span in taken.spans)
    return held + appended, max(0, sum(span.points for span in lost()) - appended)


def _small_tables(path: Path, tables: Mapping[str, TableShape]) -> _SmallTables:
    ends = _table(path, "journal", tables)
    tails = [_number(row["tail"], row["tail_check"], operator.invert) for row in ends]
    # SQLite may see an older state: it reads the log up to the first damaged frame.
    in_pages = [
        _number(row[0], row[2], operator.invert)
        for view in sqlite_pages.views(path)
        for row in sqlite_pages.rows(view, tables["journal"].columns)
    ]
    sure = [number for number in (*tails, *in_pages) if number.is_sure]
    contradicting = tuple(sorted({value for number in tails for value in number.values}))
    through = [row["states_through"] for row in ends]
    return _SmallTables(
        tail=max(sure, default=_Number(contradicting, is_sure=False)),
        cursors={
            sink: _number(row["settled"], row["settled_check"], partial(settled_by, sink))
            for row in _table(path, "cursors", tables)
            for sink in [str(row["sink"])]
        },
        holes=[
            Span(first, first + points - 1)
            for row in _table(path, "holes", tables)
            for first, points in [(row["first"], row["points"])]
            if isinstance(first, int) and isinstance(points, int)
            if 0 < first < MAX_NUMBER and 0 < points < MAX_NUMBER
        ],
        saved=Saved(
            covered=_covered_before(_table(path, "covered", tables)),
            gaps=[gap for row in _table(path, "gaps", tables) if (gap := _gap(row))],
            states=_states(_table(path, "last_states", tables)),
            states_through=min((t for t in through if isinstance(t, int) and t > 0), default=0),
        ),
    )


def _table(path: Path, name: str, tables: Mapping[str, TableShape]) -> list[dict[str, Value]]:
    """Return the rows of a small table, from SQLite or else from the pages."""
    shape = tables[name]
    rows: Sequence[Sequence[Value]] = ()
    try:
        rows = _by_sql(path, name, shape)
    except StorageError as exc:
        logger.warning("%s of the damaged journal are read from its pages: %s", name, exc)
        for view in sqlite_pages.views(path):
            rows = list(sqlite_pages.rows(view, shape.columns, is_index=shape.is_index))
            if rows:
                break
    defaults = [column.default for column in shape.columns]
    return [dict(zip(shape.names, [*row, *defaults[len(row) :]], strict=True)) for row in rows]


def _by_sql(path: Path, name: str, shape: TableShape) -> list[list[Value]]:
    if not path.is_file() or not path.stat().st_size:
        raise StorageDamaged("the file is missing or empty")  # SQLite would delete its WAL
    with sqlite.translated_errors(), sqlite.opened_as_it_is(path) as connection:
        found = connection.execute(f"SELECT * FROM {name}")  # noqa: S608 - names of ours
        names = tuple(column for column, *_ in found.description)
        if names != shape.names[: len(names)]:
            raise StorageDamaged("it has other columns than expected")
        return [list(row) for row in found]


def _number(value: Value, check: Value, decode: Callable[[int], int]) -> _Number:
    """Return the number that is stored as `value` and again as `check`."""
    again = decode(check) if isinstance(check, int) else None
    values = {each for each in (value, again) if isinstance(each, int) and 0 <= each < MAX_NUMBER}
    return _Number(tuple(sorted(values)), value == again and len(values) == 1)


def _numbers(small: _SmallTables, spans: Sequence[Span], sinks: Sequence[str]) -> _Numbers:
    """Return tail and cursors: no number is used twice, and no point is skipped."""
    newest = max((last for _, last in spans), default=0)
    sure = [number.values[0] for number in small.cursors.values() if number.is_sure]
    tail = max(newest, *small.tail.values, *sure, 0)
    if not small.tail.is_sure:
        tail = max(tail, *(value for each in small.cursors.values() for value in each.values), 0)
    if not tail:
        # Nothing is known. Dead letters have numbers; the new ones are beyond all old ones.
        tail = int(time.time() * 1000)
    end = newest
    if small.tail.is_sure:
        end = max(newest, small.tail.values[0])
    elif likely := [value for value in small.tail.values if value >= newest]:
        end = min(likely)
    before = min((first for first, _ in spans), default=tail + 1) - 1
    limit = max(newest, *small.tail.values, 0)
    cursors = {
        sink: min(
            (value for value in number.values if number.is_sure or value <= limit), default=before
        )
        for sink, number in small.cursors.items()
    }
    return _Numbers(tail, end, dict.fromkeys(sinks, before) | cursors)


def _stored_rows(path: Path, shape: TableShape) -> Iterator[StoredRow]:
    """Yield what in the pages looks like a row, the most likely version of each first."""
    for dropped in (None, 1, 2):  # `points` or `received_at`, by hand
        columns = [column for index, column in enumerate(shape.columns) if index != dropped]
        found = False
        for view in sqlite_pages.views(path):
            for values in sqlite_pages.rows(view, columns):
                found = True
                if dropped is not None:
                    values.insert(dropped, 0)
                yield StoredRow(*values)  # type: ignore[arg-type]  # the types are those of the table
        if found:
            return


def _copy_rows(
    connection: Connection, found: Iterable[StoredRow], taken: _Taken
) -> Steps[list[StoredRow]]:
    """Copy the rows that are whole; return the others.

    Acked rows are copied as well: they bound the time of a hole, and what is read back near a gap
    is compared with them.
    """
    copied: set[int] = set()
    doubtful: list[StoredRow] = []
    block: list[Row] = []
    for stored in found:
        is_whole = stored.is_whole() and stored.row.last < MAX_NUMBER
        if not is_whole or not taken.add(Span(stored.first, stored.row.last)):
            doubtful.append(stored)  # perhaps an older version of a page that was copied
            continue
        copied.add(hash(stored.gzip))
        block.append(replace(stored.row, received_at=_received_at(stored)))
        if len(block) == _ROWS_PER_COPY:
            insert_rows(connection, block)
            block.clear()
            yield
    insert_rows(connection, block)
    return [stored for stored in doubtful if hash(stored.gzip) not in copied]


def _placed(
    doubtful: Iterable[StoredRow], lost: Sequence[Span], taken: _Taken, *, tail: int
) -> tuple[list[Row], list[Row]]:
    """Return rows with a wrong checksum and readable points: those with a place, and the others.

    A row keeps its numbers if all of these are lost. The others get numbers after the tail, so
    that every sink gets them, perhaps once more.
    """
    placed: list[Row] = []
    at_end: list[Row] = []
    seen: set[int] = set()
    for stored in doubtful:
        points = points_in(stored.gzip, expected=max(0, stored.points))
        if not points or hash(stored.gzip) in seen:
            continue
        seen.add(hash(stored.gzip))
        span = Span(stored.first, stored.first + points - 1)
        fits = any(hole.first <= span.first and span.last <= hole.last for hole in lost)
        if fits and taken.add(span):
            placed.append(Row(stored.first, points, stored.gzip, _received_at(stored)))
        else:
            at_end.append(Row(tail + 1, points, stored.gzip, time.time()))
            tail += points
    return placed, at_end


def _received_at(stored: StoredRow) -> float:
    return float(stored.received_at) if is_time(stored.received_at) else time.time()


def _covered_before(rows: Iterable[Mapping[str, Value]]) -> Covered | None:
    """Return the covered time; of two ends that contradict each other, the earlier one."""
    for row in rows:
        through_ns, check = row["through_ns"], row["through_check"]
        ends = [through_ns, ~check if isinstance(check, int) else through_ns]
        likely = [end for end in ends if is_time_ns(end)]
        with contextlib.suppress(StorageDamaged):
            if likely:
                return covered_of({**row, "through_ns": min(likely)})  # type: ignore[type-var]
    return None


def _gap(row: Mapping[str, Value]) -> Gap | None:
    """Return a gap as it was, else an open one of the same time; None when that is unknown."""
    try:
        return gap_of(row)
    except StorageDamaged as exc:
        logger.warning("A gap is opened again: %s", exc)
    number, start_ns, end_ns = row["id"], row["start_ns"], row["end_ns"]
    if not (isinstance(start_ns, int) and isinstance(end_ns, int) and isinstance(number, int)):
        return None
    if not (is_time_ns(start_ns) and is_time_ns(end_ns)) or number < 1:
        return None
    return Gap(
        id=number,
        start_ns=min(start_ns, end_ns),
        end_ns=max(start_ns, end_ns),
        reason="damage",
        found_at=time.time(),
        edge_at=min(start_ns, end_ns) / SECOND_NS,
    )


def _states(rows: Iterable[Mapping[str, Value]]) -> dict[str, LastState]:
    states: dict[str, LastState] = {}
    for row in rows:
        entity_id, time_ns = row["entity_id"], row["time_ns"]
        state, changed_ns = row["state"], row["changed_ns"]
        if not isinstance(entity_id, str) or not isinstance(time_ns, int):
            continue
        if not is_time_ns(time_ns) or not (changed_ns is None or is_time_ns(changed_ns)):
            continue
        known = states.get(entity_id)
        if known is None or known.time_ns < time_ns:
            states[entity_id] = LastState(state, changed_ns, time_ns)  # type: ignore[arg-type]
    return states


def _save_coverage(
    connection: Connection, saved: Saved, *, known: Sequence[Span], numbers: _Numbers
) -> None:
    # A known hole has its gap already: it counts as a row without live points.
    holes = [RowTimes(first, last, None, 0.0) for first, last in known]
    spans = sorted([*_row_times(connection), *holes], key=lambda span: span.first)
    gaps, lost_at_end = damage_gaps(spans, saved.covered, acked=numbers.acked, tail=numbers.tail)
    covered = _covered(spans, saved, lost_at_end=lost_at_end)
    if covered is not None:
        save_covered(connection, covered)
    else:
        logger.warning(
            "The start of the gap is unknown. To read it back: python -m app backfill --since …"
        )
    last_id = max((gap.id for gap in saved.gaps), default=0)
    new = [replace(gap, id=last_id + number) for number, gap in enumerate(gaps, start=1)]
    save_gaps(connection, [*saved.gaps, *new])


@dataclass(frozen=True, slots=True)
class RowTimes:
    """Numbers of a saved row, and when its points happened."""

    first: int
    last: int
    times: Times | None
    """None without live points."""
    received_at: float


def damage_gaps(
    spans: Sequence[RowTimes], covered: Covered | None, *, acked: int, tail: int
) -> tuple[list[Gap], int]:
    """Return gaps, without ids, for the time of lost points, and how many are lost at the end.

    Points lost at the end are in no gap: the journal then covers time up to the last live row
    saved, and the next connection opens the gap. Without such a row all covered time is a gap.
    """
    gaps: list[Gap] = []
    before: RowTimes | None = None
    expected, lost = acked + 1, 0
    for span in spans:
        lost += max(0, span.first - expected)
        expected = max(expected, span.last + 1)
        if span.times is None:
            continue
        if lost:
            since_ns = _since_ns(spans, lost, before=before, after=span.times)
            edge_at = (before or span).received_at
            _add(gaps, Times(since_ns, max(since_ns, span.times.newest_ns)), edge_at)
            lost = 0
        before = span
    lost += max(0, tail + 1 - expected)
    if before is None and covered is not None and lost:
        _add(gaps, Times(covered.since_ns, covered.through_ns), covered.edge_at)
        lost = 0
    return gaps, lost


def _since_ns(
    spans: Sequence[RowTimes], missing: int, *, before: RowTimes | None, after: Times
) -> int:
    """Return where a hole begins: with the row before it, else estimated from the average rate."""
    if before is not None and before.times is not None:
        return min(before.times.newest_ns, after.oldest_ns)
    live = [(span.times, span.last - span.first + 1) for span in spans if span.times]
    whole_ns = max(times.newest_ns for times, _ in live) - min(times.oldest_ns for times, _ in live)
    ns_per_point = whole_ns // sum(points for _, points in live)
    return max(0, after.oldest_ns - max(_LEAST_HOLE_NS, 2 * missing * ns_per_point))


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


def _covered(spans: Sequence[RowTimes], saved: Saved, *, lost_at_end: int) -> Covered | None:
    """Return the covered time: up to the last row when points after it are lost."""
    covered, live = saved.covered, [span for span in spans if span.times]
    if covered is not None and not lost_at_end:
        return covered
    if live and (last := live[-1]).times and (first := live[0]).times:
        since_ns = covered.since_ns if covered else first.times.oldest_ns
        return Covered(since_ns, last.times.newest_ns, last.received_at)
    newest_ns = max((state.time_ns for state in saved.states.values()), default=None)
    if newest_ns is None:
        return None
    return Covered(newest_ns, newest_ns, newest_ns / SECOND_NS)


def _row_times(connection: Connection) -> Iterator[RowTimes]:
    for first, points, gzip, received_at in connection.execute(
        "SELECT first, points, gzip, received_at FROM journal_rows ORDER BY first"
    ):
        times = live_times_of(Lines(record_of(gzip), points))
        bounded = None if times is None else within_range(times)
        yield RowTimes(first, first + points - 1, bounded, received_at)
