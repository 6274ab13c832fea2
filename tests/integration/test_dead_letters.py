"""Dead letters on disk."""

from __future__ import annotations

import itertools
import sqlite3
from pathlib import Path

import pytest

from app.model import Lines
from app.runtime.errors import StorageFull
from app.sinks.dead_letters import DeadLetters, RefusedPoint
from app.sinks.outcomes import RefusedLine

SINK = "influxdb"


def letters_in(folder: Path, *, max_points: int = 100_000) -> DeadLetters:
    """Return the dead letters of a folder, with a clock that counts."""
    ticks = itertools.count(1000)
    return DeadLetters(
        folder / "dead_letters.db", max_points=max_points, clock=lambda: float(next(ticks))
    )


async def fill(letters: DeadLetters, count: int, *, sink: str = SINK) -> None:
    """Put the lines 1 to `count` aside."""
    for number in range(1, count + 1):
        await letters.insert(sink, [RefusedLine(number, b"m v=%d 1" % number, "bad")])


async def fill_fast(letters: DeadLetters, count: int) -> None:
    """Do the same in one transaction."""
    rows = [(SINK, number, b"m v=%d 1" % number) for number in range(1, count + 1)]
    await letters._database.write(
        lambda connection: connection.executemany(
            "INSERT INTO dead_letters (sink, sequence, line, reason, refused_at)"
            " VALUES (?, ?, ?, 'bad', 0)",
            rows,
        )
    )


async def test_a_dead_letter_is_kept_with_its_reason(tmp_path: Path) -> None:
    """With everything a person needs to decide; also after a restart."""
    async with letters_in(tmp_path) as letters:
        await letters.insert(SINK, [RefusedLine(7, b'm v="a\nb" 1', "field type conflict")])
        assert letters.count == 1

    async with letters_in(tmp_path) as letters:
        expected = RefusedPoint(
            id=1,
            sink=SINK,
            sequence=7,
            line=b'm v="a\nb" 1',
            reason="field type conflict",
            refused_at=1000.0,
        )
        assert await letters.newest(limit=10) == [expected]
        assert letters.count == 1


async def test_the_same_line_of_the_same_number_is_kept_once(tmp_path: Path) -> None:
    """A crash after the insert refuses it again; another sink's is another letter."""
    async with letters_in(tmp_path) as letters:
        await fill(letters, 1)
        await fill(letters, 1)
        assert letters.count == 1

        await fill(letters, 1, sink="embedded")
        await letters.insert(SINK, [RefusedLine(1, b"m v=2 1", "bad")])
        assert letters.count == 3


async def test_pages_go_from_the_newest_to_the_oldest(tmp_path: Path) -> None:
    """The next page is before the last id of this one."""
    async with letters_in(tmp_path) as letters:
        await fill(letters, 5)

        first = await letters.newest(limit=2)
        second = await letters.newest(limit=2, before_id=first[-1].id)
        third = await letters.newest(limit=2, before_id=second[-1].id)

    assert [[point.sequence for point in page] for page in (first, second, third)] == [
        [5, 4],
        [3, 2],
        [1],
    ]


async def test_dead_letters_of_one_sink_can_be_listed_and_cleared(tmp_path: Path) -> None:
    """In pages, exports, retries and deletes."""
    async with letters_in(tmp_path) as letters:
        await fill(letters, 3)
        await fill(letters, 2, sink="embedded")

        assert [point.sequence for point in await letters.newest(limit=9, sink="embedded")] == [
            2,
            1,
        ]
        assert [block async for block in letters.export(sink="embedded")] == [b"m v=1 1\nm v=2 1\n"]
        assert await letters.clear(sink="embedded") == 2
        assert letters.count == 3


async def test_the_export_is_line_protocol_in_order(tmp_path: Path) -> None:
    """In blocks, so that any number fits into memory."""
    async with letters_in(tmp_path) as letters:
        await fill_fast(letters, 1001)

        blocks = [block async for block in letters.export()]

    assert len(blocks) == 3
    assert b"".join(blocks) == b"".join(b"m v=%d 1\n" % number for number in range(1, 1002))


async def test_a_retry_appends_every_dead_letter_and_then_deletes_it(tmp_path: Path) -> None:
    """Only what `append` has taken is deleted."""
    returned: list[Lines] = []
    counts: list[int] = []
    async with letters_in(tmp_path) as letters:
        await fill_fast(letters, 600)

    async with letters_in(tmp_path) as letters:

        async def append(lines: Lines) -> None:
            returned.append(lines)
            counts.append(letters.count)

        assert await letters.retry(append) == 600
        assert letters.count == 0

    assert counts == [600, 100]
    assert [lines.points for lines in returned] == [500, 100]
    assert returned[1].split()[0] == b"m v=501 1"


async def test_a_failed_retry_keeps_the_dead_letters_it_did_not_append(tmp_path: Path) -> None:
    """A full journal refuses the append; nothing is lost."""

    async def refuse(lines: Lines) -> None:
        raise StorageFull("no space")

    async with letters_in(tmp_path) as letters:
        await fill(letters, 3)
        with pytest.raises(StorageFull):
            await letters.retry(refuse)

        assert letters.count == 3


async def test_a_line_refused_again_waits_for_the_next_retry(tmp_path: Path) -> None:
    """Else a retry of lines that stay bad would never end."""
    async with letters_in(tmp_path) as letters:
        await fill(letters, 2)

        async def append(lines: Lines) -> None:
            for number, line in enumerate(lines.split(), start=100):
                await letters.insert(SINK, [RefusedLine(number, line, "bad again")])

        assert await letters.retry(append) == 2
        assert [point.reason for point in await letters.newest(limit=9)] == ["bad again"] * 2
        assert letters.count == 2


async def test_letters_are_deleted_by_id_or_all_at_once(tmp_path: Path) -> None:
    """And it reports how many there were."""
    async with letters_in(tmp_path) as letters:
        await fill(letters, 5)

        assert await letters.delete([2, 4, 99]) == 2
        assert [point.id for point in await letters.newest(limit=9)] == [5, 3, 1]
        assert await letters.delete([]) == 0
        assert await letters.clear() == 3
        assert letters.count == 0
        assert await letters.retry(_never) == 0


async def test_at_the_bound_the_oldest_dead_letters_are_discarded_and_counted(
    tmp_path: Path,
) -> None:
    """A refusing database cannot fill the disk."""
    async with letters_in(tmp_path, max_points=3) as letters:
        await fill(letters, 5)

        assert [point.sequence for point in await letters.newest(limit=9)] == [5, 4, 3]
        assert (letters.count, letters.discarded) == (3, 2)


async def test_a_file_that_is_no_database_does_not_prevent_the_start(tmp_path: Path) -> None:
    """It is set aside, and a sentence names it."""
    (tmp_path / "dead_letters.db").write_bytes(b"not a database" * 100)

    async with letters_in(tmp_path) as letters:
        await fill(letters, 1)
        assert "dead_letters.db was damaged" in str(letters.damage)
        assert letters.count == 1

    (aside,) = tmp_path.glob("dead_letters.db.damaged-*")
    assert aside.read_bytes() == b"not a database" * 100
    async with letters_in(tmp_path) as letters:
        assert (letters.count, letters.damage) == (1, None)


@pytest.mark.parametrize("damage", ["first page", "tree", "emptied", "number", "text", "table"])
async def test_what_can_be_read_of_damaged_dead_letters_is_saved(
    tmp_path: Path, damage: str
) -> None:
    """All letters whose pages are whole, each once."""
    path = tmp_path / "dead_letters.db"
    async with letters_in(tmp_path) as letters:
        await fill(letters, 500)
        before = {point.line for point in await letters.newest(limit=500)}
    spoil(path, damage)

    async with letters_in(tmp_path) as letters:
        saved = [point.line for point in await letters.newest(limit=1_000)]

        assert "dead_letters.db was damaged" in str(letters.damage)
        assert f"{letters.count} dead letters were saved" in str(letters.damage)
        assert len(saved) == len(set(saved))
        assert set(saved) <= before
        lost = {"first page": 0, "tree": 0, "number": 1, "text": 1}
        if damage in lost:
            assert len(saved) >= 500 - lost[damage]


def spoil(path: Path, damage: str) -> None:
    """Damage a closed file of dead letters."""
    statements = {
        "number": "UPDATE dead_letters SET sequence = -5 WHERE id = 7",
        "text": "UPDATE dead_letters SET sink = CAST(x'ff' AS TEXT) WHERE id = 7",
        "table": "DROP TABLE dead_letters",
    }
    if damage in statements:
        with sqlite3.connect(path) as connection:
            connection.execute(statements[damage])
        connection.close()
    elif damage == "emptied":
        path.write_bytes(b"")
    else:
        with path.open("r+b") as file:
            file.seek(0 if damage == "first page" else root_page(path) * 4096 - 4096)
            file.write(b"\xa5" * 4096)


def root_page(path: Path) -> int:
    """Return the page at which the tree of the table begins."""
    with sqlite3.connect(path) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'dead_letters'"
        ).fetchone()
    connection.close()
    return int(page)


async def _never(lines: Lines) -> None:
    raise AssertionError
