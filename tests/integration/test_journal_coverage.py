"""What the journal's file knows of the time it covers, through crash, bound and damage."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import struct
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from app.backfill.coverage import Coverage, Covered
from app.backfill.last_states import LastStates
from app.journal.journal import SqliteJournal
from app.journal.repair import RowTimes, damage_gaps
from app.journal.transactions import MIGRATIONS
from app.model import NOWHERE, Change, Gap, LastState, Lines, Times
from app.runtime.errors import StorageError
from app.runtime.sqlite_pages import SMALL_PAGE_BYTES
from tests.fakes.journal import tidy
from tests.fakes.points import new_telemetry, numbers_in

SECOND = 1_000_000_000
START = 1_795_000_000
PAGE = SMALL_PAGE_BYTES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A place for the journal."""
    return tmp_path / "journal.db"


class Rig:
    """A journal, and what it saves beside the points."""

    def __init__(
        self, path: Path, *, max_bytes: int = 10_000_000, housekeeping_s: float = 3600.0
    ) -> None:
        self.coverage = Coverage(clock=lambda: float(START))
        self.states = LastStates()
        self.journal = SqliteJournal(
            path,
            sinks=["a"],
            max_bytes=max_bytes,
            telemetry=new_telemetry(),
            coverage=self.coverage,
            last_states=self.states,
            housekeeping_s=housekeeping_s,
            save_states_s=0.0,
        )

    async def append(self, second: int, *, padding: int = 10, entity: str = "sensor.a") -> None:
        """Append a live point that happened and was received then, after the start."""
        lines = live_lines(second, padding=padding, entity=entity)
        assert lines.times is not None
        self.coverage.received(lines.times)
        await self.journal.append(lines, received_at=float(START + second))

    def begin(self, second: int) -> Gap | None:
        """Begin a span: Home Assistant's newest state is of that second after the start."""
        gap = self.coverage.connected(reason="restart")
        self.coverage.bound(oldest_ns=at(second), newest_ns=at(second), reach_ns=0)
        return gap

    def covered(self) -> Covered | None:
        """Return what is covered, whatever rows stay for it."""
        found = self.coverage.covered
        return None if found is None else replace(found, keep_from=0)

    async def kept(self) -> list[int]:
        """Return the seconds of the points in the file."""
        return [number async for row in self.journal.retained() for number in numbers_in([row])]

    def bounds(self) -> list[tuple[str, int, int]]:
        """Return all gaps, oldest first: reason, start and end in seconds after the start."""
        found = sorted(self.coverage.gaps(), key=lambda gap: gap.start_ns)
        return [
            (gap.reason, gap.start_ns // SECOND - START, gap.end_ns // SECOND - START)
            for gap in found
        ]


def at(second: int) -> int:
    """Return nanoseconds."""
    return (START + second) * SECOND


def live_lines(second: int, *, padding: int = 10, entity: str = "sensor.a") -> Lines:
    """Return one point whose value is its second."""
    line = b'events,entity_id=%s value=%di,text="%s" %d\n' % (
        entity.encode(),
        second,
        os.urandom(padding // 2).hex().encode(),
        at(second),
    )
    return Lines(line, 1, Times(at(second), at(second)))


def spans(*seconds: int | None, received: int = 0) -> list[RowTimes]:
    """Return rows of one point each, numbered from 1; None is a row that came not live."""
    return [
        RowTimes(
            number,
            number,
            None if second is None else Times(at(second), at(second)),
            float(START + (second or received)),
        )
        for number, second in enumerate(seconds, start=1)
    ]


def overwrite_table(path: Path, *names: str) -> None:
    """Write nonsense over the root pages of some tables of a closed file, and below them."""
    with sqlite3.connect(path) as connection:
        roots = [
            connection.execute(
                "SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)
            ).fetchone()[0]
            for name in names
        ]
    connection.close()
    with path.open("r+b") as file:
        for root in roots:
            file.seek((root - 1) * PAGE)
            for page in (root, *children(file.read(PAGE))):
                file.seek((page - 1) * PAGE)
                file.write(b"\xa5" * PAGE)


def children(page: bytes) -> list[int]:
    """Return the pages below an interior page of a table; a leaf has none."""
    if page[0] != 0x05:
        return []
    count, _, last = struct.unpack_from(">HHxI", page, 3)
    cells = struct.unpack_from(f">{count}H", page, 12)
    return [*(int.from_bytes(page[cell : cell + 4]) for cell in cells), last]


async def test_a_point_and_its_span_are_durable_together(path: Path, tmp_path: Path) -> None:
    """The files as they lie there when append returns hold both."""
    rig = Rig(path)
    async with rig.journal:
        rig.begin(0)
        await rig.append(10)
        shutil.copytree(tmp_path, tmp_path / "killed")

    again = Rig(tmp_path / "killed" / "journal.db")
    async with again.journal:
        assert await again.kept() == [10]
        assert again.covered() == Covered(at(0), at(10), START + 10)


async def test_an_append_that_fails_leaves_neither(path: Path) -> None:
    """Nor does it move what is covered."""
    rig = Rig(path)
    async with rig.journal:
        rig.begin(0)
        await rig.append(10)
        await rig.journal._database.write(
            lambda connection: connection.execute(
                "CREATE TRIGGER failing BEFORE INSERT ON journal_rows"
                " BEGIN SELECT RAISE(FAIL, 'disk I/O error'); END"
            )
        )
        rig.coverage.lost(Times(at(11), at(12)), "journal_stalled")
        with pytest.raises(StorageError):
            await rig.append(20)

        assert rig.covered() == Covered(at(0), at(10), START + 10)
        saved = await rig.journal._database.read(
            lambda connection: connection.execute(
                "SELECT through_ns, (SELECT count(*) FROM gaps) FROM covered"
            ).fetchone()
        )
        assert saved == (at(10), 0)


async def test_a_crash_right_after_connecting_finds_one_gap_without_a_hole(
    path: Path, tmp_path: Path
) -> None:
    """What was not saved of the connection is found again by the next."""
    rig = Rig(path)
    async with rig.journal:
        rig.begin(0)
        await rig.append(10)
        rig.begin(60)
        shutil.copytree(tmp_path, tmp_path / "killed")

    again = Rig(tmp_path / "killed" / "journal.db")
    async with again.journal:
        again.begin(90)
        assert again.bounds() == [("restart", 10, 90)]


async def test_gaps_are_saved_without_a_point(path: Path) -> None:
    """Housekeeping saves what changed, and a gap comes back as it was."""
    rig = Rig(path)
    async with rig.journal:
        rig.begin(0)
        gap = rig.begin(60)
        assert gap is not None
        rig.coverage.update(
            replace(gap, filled_ns=at(30), changes=7, unrecorded=("sensor.ä",), entity_ids=("a.b",))
        )
        await tidy(rig.journal)

    again = Rig(path)
    async with again.journal:
        assert rig.coverage.gaps() == again.coverage.gaps()
        assert rig.coverage.covered == again.coverage.covered
        assert again.coverage.opened.is_set()


async def test_a_point_that_is_read_back_covers_nothing(path: Path) -> None:
    """Its time lies in a gap that is still open."""
    rig = Rig(path)
    async with rig.journal:
        rig.begin(0)
        await rig.append(10)
        lines = live_lines(500)
        await rig.journal.append(Lines(lines.data, 1), received_at=START + 5_000.0)

        assert rig.covered() == Covered(at(0), at(10), START + 10)
        assert rig.coverage.keep_from == 1


async def test_acked_rows_stay_for_two_minutes(path: Path) -> None:
    """What is read back near the next gap is compared with them; then they go."""
    rig = Rig(path)
    async with rig.journal:
        rig.begin(0)
        for second in (1, 100, 200):
            await rig.append(second)
        rig.journal.ack("a", 3)
        await tidy(rig.journal)
        assert await rig.kept() == [100, 200]

        await rig.append(300)
        rig.journal.ack("a", 4)
        await tidy(rig.journal)
        assert await rig.kept() == [200, 300]


async def test_acked_rows_stay_as_long_as_a_gap_they_touch_is_open(path: Path) -> None:
    """However long that takes."""
    rig = Rig(path)
    async with rig.journal:
        rig.begin(0)
        for second in (1, 100):
            await rig.append(second)
        gap = rig.begin(1_000)
        assert gap is not None
        await rig.append(5_000)
        rig.journal.ack("a", 3)
        await tidy(rig.journal)
        assert await rig.kept() == [1, 100, 5_000]

        rig.coverage.close(gap, "filled", detail=None)
        await tidy(rig.journal)
        assert await rig.kept() == [5_000]


async def test_acked_rows_are_the_first_to_go_at_the_bound(path: Path) -> None:
    """They are for comparing; what a sink still needs is worth more."""
    rig = Rig(path, max_bytes=2_000_000)
    async with rig.journal:
        rig.begin(0)
        rig.coverage.lost(Times(at(0), at(0)), "journal_stalled")
        for second in range(1, 21):
            await rig.append(second, padding=60_000)
        rig.journal.ack("a", 10)
        for second in range(21, 500):
            await rig.append(second, padding=60_000)
            rig.journal.ack("a", second - 10)

        kept = await rig.kept()
        assert kept[-10:] == list(range(490, 500))
        assert kept[0] > 1
        assert rig.journal.pending("a").points == 10
        assert rig.journal.status().reason is None


async def test_the_newest_states_are_saved_and_loaded(path: Path) -> None:
    """With the number up to which they are true; a crash recalls the rest from the rows."""
    rig = Rig(path)
    change = Change(
        "sensor.a",
        "sensor",
        at(1),
        "1",
        None,
        None,
        b"{}",
        None,
        None,
        None,
        None,
        NOWHERE,
        changed_ns=at(1),
    )
    async with rig.journal:
        await rig.append(1)
        rig.states.update([change])
        await tidy(rig.journal)
        assert rig.states.states_to_save() == {}
        await rig.append(2)

    again = Rig(path)
    async with again.journal:
        assert again.states.get("sensor.a") == LastState("1", at(1), at(1))
        assert again.states.through == 1


async def test_rows_are_found_behind_a_number_page_by_page(path: Path) -> None:
    """Also behind one in the middle of a row."""
    rig = Rig(path)
    async with rig.journal:
        for second in range(1, 121):
            lines = [live_lines(second * 10 + part) for part in range(2)]
            await rig.journal.append(
                Lines(b"".join(line.data for line in lines), 2), received_at=float(second)
            )

        everything = await rig.kept()
        behind = [row.first async for row in rig.journal.retained(after=101)]

    assert len(everything) == 240
    assert sorted(everything) == everything
    assert behind == list(range(101, 241, 2))


# An older file


async def test_a_file_of_an_older_version_keeps_its_points_and_cursors(path: Path) -> None:
    """It learns what it covers from the first connection on."""
    rig = Rig(path)
    with sqlite3.connect(path) as connection:
        connection.executescript(f"PRAGMA journal_mode=WAL; {MIGRATIONS[0]}; PRAGMA user_version=1")
    connection.close()
    old = Rig(path.with_name("old.db"))
    async with old.journal:
        for second in range(1, 6):
            await old.append(second)
        rows = await old.journal.read("a", max_points=99)
    with sqlite3.connect(path) as connection:
        connection.executemany(
            "INSERT INTO journal_rows VALUES (?, ?, ?, ?)",
            [(row.first, row.points, row.received_at, row.gzip) for row in rows],
        )
        connection.execute("UPDATE journal SET tail = 5")
        connection.execute("INSERT INTO cursors VALUES ('a', 2)")
    connection.close()

    async with rig.journal:
        assert rig.journal.cursor("a") == 2
        assert numbers_in(await rig.journal.read("a", max_points=99)) == [3, 4, 5]
        assert rig.coverage.covered is None
        assert rig.states.through == 5
        assert rig.begin(60) is None
        await rig.append(61)
        assert rig.covered() == Covered(at(60), at(61), START + 61)


async def test_gaps_of_an_older_version_are_read(path: Path) -> None:
    """They name no sources and no limitations."""
    with sqlite3.connect(path) as connection:
        connection.executescript(
            f"PRAGMA journal_mode=WAL; {MIGRATIONS[0]}; {MIGRATIONS[1]}; PRAGMA user_version=2;"
            "INSERT INTO gaps VALUES (1, 10, 20, 'restart', 1.0, 0.5, 'filled', 20, 7, 2,"
            """ '["sensor.secret"]', '[]', NULL, 3.0)"""
        )
    connection.close()
    rig = Rig(path)

    async with rig.journal:
        (gap,) = rig.coverage.gaps()

    assert (gap.state, gap.changes, gap.unrecorded) == ("filled", 7, ("sensor.secret",))
    assert (gap.sources, gap.limitations) == ((), ())


async def test_sources_and_limitations_of_a_gap_are_kept(path: Path) -> None:
    """They are asked for long after it was filled."""
    rig = Rig(path)
    async with rig.journal:
        (gap,) = rig.coverage.request(Times(1_000, 2_000), entity_ids=[])
        rig.coverage.update(replace(gap, sources=("states", "logbook"), limitations=("No more.",)))
    again = Rig(path)

    async with again.journal:
        (kept,) = again.coverage.gaps()

    assert (kept.sources, kept.limitations) == (("states", "logbook"), ("No more.",))


# Damage


@pytest.mark.parametrize(
    ("found", "acked", "gaps"),
    [
        ([10, 20, 30], 0, []),
        ([10, "lost", 30], 0, [(10, 30)]),
        ([10, "lost", "lost", 30, 40, 50, "lost", 70], 0, [(10, 30), (50, 70)]),
        ([10, "lost", 12, "lost", 14], 0, [(10, 14)]),
        (["acked", "acked", 30], 2, []),
        ([10, "acked", "lost", 40], 2, [(10, 40)]),
        ([10, "lost", None, 40], 0, [(10, 40)]),
        ([10, None, "lost", 40], 0, [(10, 40)]),
        ([10, 20, "lost"], 0, []),
        ([None, "lost", None], 0, [(-1_000, 500)]),
        (["lost", "lost"], 0, [(-1_000, 500)]),
        (["acked", "acked"], 2, []),
        (["lost", 1_000, 1_001], 0, [(940, 1_000)]),
        (["lost", 1_000, 2_000], 0, [(0, 1_000)]),
    ],
)
def test_the_time_of_lost_points_lies_between_their_neighbors(
    found: Sequence[int | str | None], acked: int, gaps: list[tuple[int, int]]
) -> None:
    """The times of live rows around it, without backfilled ones; without live rows, its own."""
    rows = [
        span
        for span, what in zip(
            spans(*(None if isinstance(what, str) else what for what in found)), found, strict=True
        )
        if not isinstance(what, str)
    ]
    covered = Covered(at(-1_000), at(500), START + 500.0)

    placed, _ = damage_gaps(rows, covered, acked=acked, tail=len(found))

    assert gaps == [
        (gap.start_ns // SECOND - START, gap.end_ns // SECOND - START) for gap in placed
    ]
    assert {"damage"} >= {gap.reason for gap in placed}


@pytest.mark.parametrize(
    ("found", "lost"), [([10, 20], 0), ([10, None], 0), ([10, "lost"], 1), ([10, "lost", None], 1)]
)
def test_what_is_lost_at_the_end_is_counted(found: list[int | str | None], lost: int) -> None:
    """The journal then covers less."""
    rows = [
        span
        for span, what in zip(
            spans(*(w if isinstance(w, int) else None for w in found)), found, strict=True
        )
        if what != "lost"
    ]

    assert ([], lost) == damage_gaps(rows, None, acked=0, tail=len(found))


def test_rows_beside_a_hole_are_kept_to_be_compared() -> None:
    """They may have been received long ago, and wait for a database that is away."""
    first, _, last = spans(10, 20, 30)

    ((gap,), _) = damage_gaps([first, last], None, acked=0, tail=3)

    assert gap.edge_at == START + 10


async def damaged(path: Path, *tables: str, lost: Sequence[int] = (5, 6)) -> Rig:
    """Return a journal, not yet open, of ten points a second apart that lost some, and tables."""
    rig = Rig(path)
    async with rig.journal:
        rig.begin(-60)
        rig.coverage.close(
            rig.coverage.request(Times(at(-600), at(-60)), entity_ids=[])[0], "filled", detail=None
        )
        for second in range(1, 11):
            await rig.append(second)
        await rig.journal._database.write(
            lambda connection: connection.execute(
                f"DELETE FROM journal_rows WHERE first IN ({','.join(map(str, lost))})"
            )
        )
        rig.journal.ack("a", 2)
    overwrite_table(path, *tables)
    return Rig(path)


async def test_missing_numbers_become_a_gap(path: Path) -> None:
    """And the rest of the file is kept."""
    rig = await damaged(path, "sqlite_autoindex_cursors_1")

    async with rig.journal:
        assert sum(hole.points for hole in rig.journal._cursors.holes) == 2
        assert await rig.kept() == [1, 2, 3, 4, 7, 8, 9, 10]
        assert rig.journal.pending("a").points >= 6
        assert rig.bounds()[-1] == ("damage", 4, 7)
        assert ("requested", -600, -60) in rig.bounds()
        assert rig.covered() == Covered(at(-60), at(10), START + 10)
        assert rig.coverage.opened.is_set()


@pytest.mark.parametrize("table", ["covered", "gaps", "last_states"])
async def test_missing_numbers_become_a_gap_without_the_books(path: Path, table: str) -> None:
    """What is covered is read from the points themselves."""
    rig = await damaged(path, table)

    async with rig.journal:
        assert rig.journal.cursor("a") == 2
        assert numbers_in(await rig.journal.read("a", max_points=99)) == [3, 4, 7, 8, 9, 10]
        assert ("damage", 4, 7) in rig.bounds()
        assert rig.coverage.covered is not None
        assert rig.coverage.covered.through_ns == at(10)
        gap = rig.begin(60)
        assert gap is not None
        assert rig.bounds()[-1] == ("restart", 10, 60)


async def test_a_gap_that_cannot_be_read_is_opened_again(path: Path) -> None:
    """Its time is still known; better read twice than lost."""
    rig = await damaged(path, lost=())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE gaps SET entity_ids = '[\"sensor'")
    connection.close()

    async with rig.journal:
        assert rig.bounds() == [("damage", -600, -60)]
        assert rig.coverage.count("open") == 1
        assert sum(hole.points for hole in rig.journal._cursors.holes) == 0
        assert rig.coverage.covered is not None
        assert rig.coverage.covered.through_ns == at(10)


async def test_points_lost_at_the_end_lie_in_the_next_gap(path: Path) -> None:
    """The journal covers no further than the last one saved."""
    rig = await damaged(path, "last_states", lost=(9, 10))

    async with rig.journal:
        assert sum(hole.points for hole in rig.journal._cursors.holes) == 2
        rig.begin(60)
        assert [gap for gap in rig.bounds() if gap[0] != "requested"] == [("restart", 8, 60)]


async def test_when_every_row_is_lost_all_of_the_time_is(path: Path) -> None:
    """Their time is unknown; better read twice than lost."""
    rig = await damaged(path, "journal_rows", lost=())

    async with rig.journal:
        assert sum(hole.points for hole in rig.journal._cursors.holes) == 8
        assert ("damage", -60, 10) in rig.bounds()


async def test_a_file_that_is_no_database_names_the_command(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It covers nothing that anybody could know."""
    path.write_bytes(b"\xa5" * 100_000)
    rig = Rig(path)

    async with rig.journal:
        assert rig.coverage.covered is None
        assert rig.bounds() == []
    assert "python -m app backfill" in caplog.text


async def test_housekeeping_saves_by_itself(path: Path, tmp_path: Path) -> None:
    """Within a second in the service."""
    rig = Rig(path, housekeeping_s=0.01)
    async with rig.journal:
        running = asyncio.create_task(rig.journal.run(), name="journal")
        rig.begin(0)
        deadline = time.monotonic() + 5
        while rig.coverage.changes_to_save().covered is not None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
        shutil.copytree(tmp_path, tmp_path / "killed")
        running.cancel()
        await asyncio.wait({running})

    again = Rig(tmp_path / "killed" / "journal.db")
    async with again.journal:
        assert again.covered() == Covered(at(0), at(0), START)
