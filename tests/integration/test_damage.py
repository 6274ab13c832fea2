"""Damages a journal in every way that a seed can think of, and opens it again.

`DAMAGE_SEEDS=5000 pytest tests/integration/test_damage.py` tries more than the sample below.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from app.backfill.coverage import Coverage
from app.backfill.last_states import LastStates
from app.journal.journal import SqliteJournal
from app.journal.transactions import save_states
from app.model import LastState, Lines, Times
from app.runtime.sqlite_pages import SMALL_PAGE_BYTES
from tests.fakes.journal import tidy
from tests.fakes.points import new_telemetry, numbers_in

SEEDS = int(os.environ.get("DAMAGE_SEEDS", "120"))
FIRST_SEED = int(os.environ.get("DAMAGE_FIRST_SEED", "0"))
PER_TEST = 20
POINTS, NEW_POINTS, ROW_POINTS = 3_000, 100, 50
SECOND = 1_000_000_000
START = 1_795_000_000
PAGE = SMALL_PAGE_BYTES
ACKED = {"a": 510, "b": 1_200}
NAMES = ("journal.db", "journal.db-wal", "journal.db-shm")

STATEMENTS = (
    "UPDATE journal SET tail = tail - 824",
    "UPDATE journal SET tail = 3",
    "UPDATE journal SET tail = -1",
    "UPDATE journal SET tail = 9223372036854775807",
    "UPDATE journal SET tail = 1 << 40",
    "UPDATE journal SET states_through = -7",
    "UPDATE journal SET states_through = 1 << 60",
    "DELETE FROM journal",
    "INSERT INTO journal (tail) SELECT tail FROM journal",
    "DROP TABLE journal",
    "UPDATE cursors SET settled = 9000",
    "UPDATE cursors SET settled = -9",
    "UPDATE cursors SET settled = 9223372036854775807 WHERE sink = 'a'",
    "DELETE FROM cursors",
    "DELETE FROM cursors WHERE sink = 'a'",
    "UPDATE cursors SET sink = 'z' WHERE sink = 'b'",
    "DROP TABLE cursors",
    "DELETE FROM journal_rows WHERE first BETWEEN 1501 AND 2000",
    "DELETE FROM journal_rows",
    "DROP TABLE journal_rows",
    "UPDATE journal_rows SET gzip = zeroblob(9) WHERE first > 2500",
    "UPDATE journal_rows SET points = -4 WHERE first = 1501",
    "UPDATE journal_rows SET points = 9223372036854775807 WHERE first = 1501",
    "UPDATE journal_rows SET points = 70 WHERE first = 1501",
    "UPDATE journal_rows SET first = first + 5 WHERE first = 1501",
    "UPDATE journal_rows SET first = -first WHERE first = 1501",
    "UPDATE journal_rows SET first = first + (1 << 50) WHERE first = 1501",
    "UPDATE journal_rows SET received_at = -1e300 WHERE first % 100 = 51",
    "UPDATE journal_rows SET received_at = 9e999",
    "UPDATE journal_rows SET checksum = NULL",
    "UPDATE journal_rows SET checksum = 5 WHERE first > 2000",
    "ALTER TABLE journal_rows RENAME TO rows_of_journal",
    "ALTER TABLE journal_rows DROP COLUMN received_at",
    "ALTER TABLE journal_rows DROP COLUMN points",
    "ALTER TABLE journal_rows ADD COLUMN more TEXT NOT NULL DEFAULT 'x'",
    "UPDATE covered SET through_ns = through_ns + 1000000000000",
    "UPDATE covered SET through_ns = -1, since_ns = 9223372036854775807",
    "DELETE FROM covered",
    "INSERT INTO covered SELECT * FROM covered",
    "DROP TABLE covered",
    "UPDATE gaps SET start_ns = end_ns, end_ns = start_ns",
    "UPDATE gaps SET state = 'half', reason = 'boredom'",
    "UPDATE gaps SET entity_ids = '{', unrecorded = '[[['",
    "UPDATE gaps SET start_ns = -5, found_at = 1e300",
    "DROP TABLE gaps",
    "UPDATE last_states SET time_ns = 9223372036854775807",
    "UPDATE last_states SET changed_ns = -1",
    "DROP TABLE last_states",
    "DROP TABLE holes",
    "INSERT INTO holes VALUES (-5, -5), (9223372036854775807, 9223372036854775807)",
    "PRAGMA user_version = 1",
    "PRAGMA user_version = 0",
    "PRAGMA user_version = -3",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA application_id = 77",
    "VACUUM",
)
"""What a person with a SQLite shell may do to a closed file."""
_HARMLESS = (
    "UPDATE journal_rows SET checksum = NULL",  # as in a file of an older version
    "PRAGMA journal_mode = DELETE",
    "PRAGMA application_id = 77",
    "VACUUM",
)


@dataclass(frozen=True)
class Corpus:
    """Journals as a kill and as an orderly stop leave them."""

    killed: Path
    stopped: Path
    rows: dict[bytes, range]
    """The numbers that each row holds, by its compressed bytes."""


def live_lines(first: int, count: int) -> Lines:
    """Return points, one a second, that do not shrink much when they are compressed."""
    line = b'events,entity_id=sensor.a value=%di,text="%s" %d\n'
    data = b"".join(
        line % (number, random.Random(number).randbytes(20).hex().encode(), at(number))
        for number in range(first, first + count)
    )
    return Lines(data, count, Times(at(first), at(first + count - 1)))


def at(number: int) -> int:
    """Return when a point happened, in nanoseconds."""
    return (START + number) * SECOND


class Rig:
    """A journal in a folder, and what it says about the time it covers."""

    def __init__(self, folder: Path) -> None:
        self.coverage = Coverage(compare_s=1e9, clock=lambda: float(START))
        self.journal = SqliteJournal(
            folder / "journal.db",
            sinks=["a", "b"],
            max_bytes=50_000_000,
            telemetry=new_telemetry(),
            coverage=self.coverage,
            last_states=LastStates(),
            housekeeping_s=3600.0,
            save_states_s=0.0,
        )

    async def append(self, first: int, count: int) -> None:
        """Append live points."""
        lines = live_lines(first, count)
        assert lines.times is not None
        self.coverage.received(lines.times)
        await self.journal.append(lines, received_at=float(START + first))

    async def delivered(self, sink: str) -> list[int]:
        """Return every point that a sink gets."""
        seen: list[int] = []
        while rows := await self.journal.read(sink, max_points=500):
            cursor = self.journal.cursor(sink)
            for row in rows:
                seen += numbers_in([row])[max(0, cursor + 1 - row.first) :]
            self.journal.ack(sink, rows[-1].last)
        return seen


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Write the journals once."""
    return asyncio.run(written(tmp_path_factory.mktemp("corpus")))


async def written(folder: Path) -> Corpus:
    """Write a journal, and copy it before and after it is closed."""
    killed, stopped, live = folder / "killed", folder / "stopped", folder / "live"
    live.mkdir()
    rig = Rig(live)
    async with rig.journal:
        rig.coverage.connected(reason="restart")
        rig.coverage.bound(oldest_ns=at(0), newest_ns=at(0), reach_ns=0)
        rig.coverage.request(Times(at(-600), at(0)), entity_ids=["sensor.a"])
        for first in range(1, POINTS + 1, ROW_POINTS):
            await rig.append(first, ROW_POINTS)
            if first == 2_001:  # the log begins anew, and keeps pages of its first round
                await rig.journal._database.write(lambda connection: None)
                with sqlite3.connect(live / "journal.db") as connection:
                    connection.execute("PRAGMA wal_checkpoint(RESTART)")
                connection.close()
        for sink, acked in ACKED.items():
            rig.journal.ack(sink, acked)
        await tidy(rig.journal)
        states = {"sensor.a": LastState("on", at(1), at(POINTS))}
        await rig.journal._database.write(partial(save_states, states=states, through=POINTS))
        stored = [row async for row in rig.journal.retained()]
        shutil.copytree(live, killed)
    shutil.copytree(live, stopped)
    return Corpus(killed, stopped, {row.gzip: range(row.first, row.last + 1) for row in stored})


def readable(corpus: Path, folder: Path, rows: dict[bytes, range]) -> set[int]:
    """Return the points whose pages are as they were: no damage excuses their loss."""
    found: set[int] = set()
    for name, header, step in (("journal.db", 0, PAGE), ("journal.db-wal", 56, PAGE + 24)):
        if not (corpus / name).is_file() or not (folder / name).is_file():
            continue
        before, after = (corpus / name).read_bytes(), (folder / name).read_bytes()
        for gzip, numbers in rows.items():
            start = before.find(gzip)
            if start < 0:
                continue
            page = header + (start - header) // step * step
            end = page + PAGE
            if start + len(gzip) <= end and before[page:end] == after[page:end]:
                found.update(numbers)
    return found


def flip_bits(folder: Path, chance: random.Random) -> None:
    """Flip up to eight bits."""
    path = some_file(folder, chance)
    data = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def flip_bits_of_the_small_tables(folder: Path, chance: random.Random) -> None:
    """Flip bits on the first pages, where cursors and tail are."""
    path = folder / "journal.db"
    data = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(min(len(data), 10 * PAGE))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def spoil_pages(folder: Path, chance: random.Random) -> None:
    """Fill pages with zeros or nonsense, the first ones often."""
    path = some_file(folder, chance)
    data = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 3)):
        most = len(data) // PAGE
        page = chance.randrange(min(most, 8) if chance.random() < 0.5 else most)
        fill = bytes(PAGE) if chance.random() < 0.5 else chance.randbytes(PAGE)
        data[page * PAGE : page * PAGE + PAGE] = fill
    path.write_bytes(data)


def cut(folder: Path, chance: random.Random) -> None:
    """Cut a file short, at the end of a page or anywhere."""
    path = some_file(folder, chance)
    size = chance.randrange(path.stat().st_size)
    os.truncate(path, size // PAGE * PAGE if chance.random() < 0.5 else size)


def swap_ranges(folder: Path, chance: random.Random) -> None:
    """Swap two pages, or two ranges of bytes."""
    path = some_file(folder, chance)
    data = bytearray(path.read_bytes())
    size, step = (PAGE, PAGE) if chance.random() < 0.7 else (chance.randint(1, 3_000), 1)
    one, other = (chance.randrange((len(data) - size) // step) * step for _ in range(2))
    data[one : one + size], data[other : other + size] = (
        data[other : other + size],
        data[one : one + size],
    )
    path.write_bytes(data)


def lose_files(folder: Path, chance: random.Random) -> None:
    """Delete or empty a file, or put something else in its place."""
    path = some_file(folder, chance)
    match chance.randrange(6):
        case 0:
            path.unlink()
        case 1:
            path.write_bytes(b"")
        case 2:
            path.write_bytes(bytes(path.stat().st_size))
        case 3:
            path.unlink()
            path.mkdir()
            (path / "file").write_bytes(b"something")
        case 4:
            path.write_bytes(b"This is not a database. " * 500)
        case _:
            path.unlink()
            with sqlite3.connect(path) as connection:
                connection.execute("CREATE TABLE recipes (name TEXT)")
            connection.close()


def add_files(folder: Path, chance: random.Random) -> None:
    """Put a rollback journal, or the log of another database, beside the file."""
    other = folder / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.executemany("INSERT INTO recipes VALUES (?)", [("x" * 900,) for _ in range(99)])
    if chance.random() < 0.5:
        shutil.copy(folder / "other.db-wal", folder / "journal.db-wal")
        (folder / "journal.db-shm").unlink(missing_ok=True)
    else:
        header = bytes.fromhex("d9d505f920a163d7") + (3).to_bytes(4) + chance.randbytes(16)
        (folder / "journal.db-journal").write_bytes(header.ljust(512) + chance.randbytes(9_000))
    connection.close()
    for path in folder.glob("other.db*"):
        path.unlink()


def vandalize(folder: Path, chance: random.Random) -> None:
    """Change the file with SQL."""
    run(folder, chance.choice(STATEMENTS))


def run(folder: Path, statement: str) -> None:
    """Run a statement on a closed journal, without the limits of its tables' types."""
    connection = sqlite3.connect(folder / "journal.db", isolation_level=None)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    try:
        connection.execute(statement)
    finally:
        connection.close()


def some_file(folder: Path, chance: random.Random) -> Path:
    """Return the database or its log, if there is one with something in it."""
    found = [folder / name for name in NAMES[:2]]
    return chance.choice([path for path in found if path.exists() and path.stat().st_size > PAGE])


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    flip_bits,
    flip_bits_of_the_small_tables,
    spoil_pages,
    cut,
    swap_ranges,
    lose_files,
    add_files,
    vandalize,
)


async def check(corpus: Corpus, folder: Path, source: Path, *, must_notice: bool) -> None:
    """Open a damaged journal, use it, and open it again."""
    surely = readable(source, folder, corpus.rows)
    rig = Rig(folder)
    async with rig.journal:
        reason = rig.journal.status().reason
        covered, gaps = rig.coverage.covered, rig.coverage.open_gaps()
        await rig.append(POINTS + 1, NEW_POINTS)
        delivered = {sink: await rig.delivered(sink) for sink in ACKED}
        assert rig.journal.status().reason == reason

    new = set(range(POINTS + 1, POINTS + NEW_POINTS + 1))
    for sink, acked in ACKED.items():
        due = set(range(acked + 1, POINTS + 1))
        got = set(delivered[sink])
        assert new <= got, f"{sink} does not get what is new"
        assert not (surely & due) - got, f"{sink} does not get what can be read"
        for number in due - got:
            after = covered is None or at(number) > covered.through_ns
            in_gap = any(gap.start_ns <= at(number) <= gap.end_ns for gap in gaps)
            assert after or in_gap, f"{number} is in no gap"
            assert after or reason, f"{number} is missing without a word"
            assert covered is not None or reason
    if must_notice:
        assert reason

    again = Rig(folder)
    async with again.journal:
        assert again.journal.status().reason is None
        assert await again.delivered("a") == []


@pytest.mark.parametrize("first", range(FIRST_SEED, FIRST_SEED + SEEDS, PER_TEST))
async def test_whatever_happens_to_the_file_the_journal_opens_and_loses_nothing_silently(
    corpus: Corpus, tmp_path: Path, first: int
) -> None:
    """It opens; what is readable is delivered, the rest is in a gap, and health reports it."""
    for seed in range(first, first + PER_TEST):
        chance = random.Random(seed)
        folder = tmp_path / str(seed)
        damage = chance.choice(DAMAGES)
        source = (
            corpus.stopped
            if damage is vandalize
            else chance.choice([corpus.killed, corpus.stopped])
        )
        shutil.copytree(source, folder)
        damage(folder, chance)
        if not any((folder / name).exists() for name in NAMES[:2]):
            continue  # a journal that was deleted with its log is a new one
        try:
            await check(corpus, folder, source, must_notice=False)
        except BaseException as exc:
            exc.add_note(f"seed {seed}: {damage.__name__} of the {source.name} journal")
            raise
        shutil.rmtree(folder)


@pytest.mark.parametrize("statement", STATEMENTS)
async def test_a_table_that_was_changed_by_hand_does_not_prevent_the_start(
    corpus: Corpus, tmp_path: Path, statement: str
) -> None:
    """Wrong numbers, missing tables and columns, and values of other types are found."""
    folder = tmp_path / "data"
    shutil.copytree(corpus.stopped, folder)
    run(folder, statement)

    await check(corpus, folder, corpus.stopped, must_notice=statement not in _HARMLESS)


async def delivered_after(corpus: Corpus, folder: Path, statement: str) -> list[int]:
    """Return what sink a gets from a journal that a statement has damaged."""
    shutil.copytree(corpus.stopped, folder)
    run(folder, statement)
    rig = Rig(folder)
    async with rig.journal:
        assert "The journal file was damaged" in str(rig.journal.status().reason)
        return await rig.delivered("a")


@pytest.mark.parametrize("column", ["checksum = checksum + 1", "received_at = received_at + 1"])
async def test_a_damaged_row_whose_points_are_readable_keeps_its_place(
    corpus: Corpus, tmp_path: Path, column: str
) -> None:
    """No other row has its numbers, so its points are delivered in order."""
    statement = f"UPDATE journal_rows SET {column} WHERE first = 1501"
    delivered = await delivered_after(corpus, tmp_path / "data", statement)

    assert delivered == [*range(ACKED["a"] + 1, POINTS + 1)]


async def test_a_readable_row_that_lost_its_numbers_is_delivered_at_the_end(
    corpus: Corpus, tmp_path: Path
) -> None:
    """Out of order, which is better than not at all."""
    statement = "UPDATE journal_rows SET first = first + (1 << 50) WHERE first = 1501"
    delivered = await delivered_after(corpus, tmp_path / "data", statement)

    moved = range(1501, 1501 + ROW_POINTS)
    others = [number for number in range(ACKED["a"] + 1, POINTS + 1) if number not in moved]
    assert delivered == [*others, *moved]


@pytest.mark.parametrize("moved_by", [-100, 100])
async def test_the_lower_of_two_contradicting_cursors_counts(
    corpus: Corpus, tmp_path: Path, moved_by: int
) -> None:
    """A point may be delivered twice, but none is skipped."""
    statement = f"UPDATE cursors SET settled = settled + {moved_by} WHERE sink = 'a'"
    delivered = await delivered_after(corpus, tmp_path / "data", statement)

    assert delivered == [*range(ACKED["a"] + min(0, moved_by) + 1, POINTS + 1)]
