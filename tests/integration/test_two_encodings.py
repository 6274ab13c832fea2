"""A journal whose points have another encoding for the database."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from app.journal.batcher import Batcher
from app.journal.journal import SqliteJournal
from app.journal.rows import points_in, rows_of
from app.model import Lines
from app.runtime.metrics import Telemetry
from app.schema.encodings import is_for_database_only
from app.sinks.batches import whole_rows
from app.sinks.dead_letters import DeadLetters
from app.sinks.outcomes import RefusedLine
from tests.fakes.delivering import NAME, house
from tests.fakes.influx import FakeInflux
from tests.fakes.points import new_telemetry


def _record(number: int) -> bytes:
    return b"home_assistant_events,entity_id=sensor.a v=%d %d" % (number, number)


def _other(number: int) -> bytes:
    """Return the line for the database; empty for every third point."""
    return b"" if number % 3 == 0 else b"W,domain=sensor,entity_id=a v=%d %d" % (number, number)


def _lines(first: int, last: int, *, others: bool = True) -> Lines:
    numbers = range(first, last + 1)
    database = b"".join(_other(number) + b"\n" for number in numbers)
    data = b"".join(_record(number) + b"\n" for number in numbers)
    return Lines(data, len(numbers), database=database if others else None)


def _journal(path: Path, telemetry: Telemetry | None = None) -> SqliteJournal:
    return SqliteJournal(
        path / "journal.db",
        sinks=["influxdb", "embedded"],
        telemetry=telemetry or new_telemetry(),
        max_bytes=100_000_000,
    )


async def _read(journal: SqliteJournal, sink: str) -> list[bytes]:
    """Read, and ack, everything."""
    found: list[bytes] = []
    while rows := await journal.read(sink, max_points=1_000):
        found += whole_rows(rows).lines()
        journal.ack(sink, rows[-1].last)
    return found


@pytest.mark.parametrize("reopened", [False, True])
async def test_each_sink_reads_its_own_encoding(tmp_path: Path, *, reopened: bool) -> None:
    """Appends with one and with two encodings, and one that is cut into several rows."""
    async with _journal(tmp_path) as journal:
        await journal.append(_lines(1, 4), received_at=1.0)
        await journal.append(_lines(5, 6, others=False), received_at=1.0)
        await journal.append(_lines(7, 6_000), received_at=1.0)
        if not reopened:
            read = [await _read(journal, sink) for sink in ("influxdb", "embedded")]
    if reopened:
        async with _journal(tmp_path) as journal:
            read = [await _read(journal, sink) for sink in ("influxdb", "embedded")]

    numbers = range(1, 6_001)
    assert read[0] == [_record(n) if n in {5, 6} else _other(n) for n in numbers]
    assert read[1] == [_record(n) for n in numbers]


async def test_points_that_are_not_durable_have_both_encodings(tmp_path: Path) -> None:
    """Sinks read them from memory."""
    async with _journal(tmp_path) as journal:
        await journal.append_uncommitted(_lines(1, 3), received_at=1.0)

        assert await _read(journal, "influxdb") == [_other(n) for n in (1, 2, 3)]
        assert await _read(journal, "embedded") == [_record(n) for n in (1, 2, 3)]


async def test_the_journal_knows_its_points_by_its_own_encoding(tmp_path: Path) -> None:
    """Backfill compares identities with what is retained."""
    async with _journal(tmp_path) as journal:
        await journal.append(_lines(1, 3), received_at=1.0)

        retained = [line async for row in journal.retained() for line in whole_rows([row]).lines()]

    assert retained == [_record(n) for n in (1, 2, 3)]


async def test_the_batcher_joins_batches_of_one_and_of_two_encodings(tmp_path: Path) -> None:
    """What has one is the same for every sink."""
    async with _journal(tmp_path) as journal:
        batcher = Batcher(journal, telemetry=new_telemetry())
        batcher.put(_lines(1, 2), received_at=1.0)
        batcher.put(_lines(3, 3, others=False), received_at=1.0)
        batcher.put(_lines(4, 4), received_at=1.0)
        batcher.close()
        await batcher.run()

        expected = [_other(1), _other(2), _record(3), _other(4)]
        assert await _read(journal, "influxdb") == expected


async def test_left_out_points_are_counted_and_cost_no_request(tmp_path: Path) -> None:
    """No body has an empty line, and the totals balance."""
    async with FakeInflux().serving() as influx, house(tmp_path, influx) as home:
        await home.journal.append(_lines(1, 10), received_at=1.0)
        await home.journal.append(_lines(12, 12), received_at=1.0)
        await home.delivered()

        counts = home.telemetry.sink(NAME)
        assert (counts.written, counts.left_out) == (7, 4)
        sent = [line for request in influx.requests for line in request.lines]
        assert sent == [_other(n) for n in range(1, 11) if _other(n)]


async def test_a_refused_line_among_left_out_points_keeps_its_number(tmp_path: Path) -> None:
    """Halving finds it, and the others are written."""
    async with FakeInflux().serving() as influx, house(tmp_path, influx) as home:
        lines = _lines(1, 10)
        assert lines.database is not None
        database = lines.database.replace(b" v=5 5\n", b" v= 5\n")
        lines = Lines(lines.data, lines.points, database=database)
        await home.journal.append(lines, received_at=1.0)
        await home.delivered()

        counts = home.telemetry.sink(NAME)
        letters = await home.dead_letters.newest(limit=5)

    assert (counts.written, counts.left_out, counts.dead_lettered) == (6, 3, 1)
    assert [(letter.sequence, letter.line) for letter in letters] == [
        (5, b"W,domain=sensor,entity_id=a v= 5")
    ]


async def test_a_retried_line_of_the_databases_schema_reaches_no_other_sink(
    tmp_path: Path,
) -> None:
    """A line of the journal's own encoding goes to all sinks, as ever."""
    letters = DeadLetters(tmp_path / "dead_letters.db", is_for_database_only=is_for_database_only)
    async with _journal(tmp_path) as journal, letters:
        refused = [RefusedLine(1, _record(1), "bad"), RefusedLine(2, _other(2), "bad")]
        await letters.insert("influxdb", refused)

        async def append(lines: Lines) -> None:
            await journal.append(lines, received_at=1.0)

        assert await letters.retry(append) == 2
        await asyncio.sleep(0)

        assert await _read(journal, "influxdb") == [_record(1), _other(2)]
        assert await _read(journal, "embedded") == [_record(1), b""]


def test_a_damaged_row_of_two_encodings_is_recognized_as_such() -> None:
    """A repair looks at rows whose checksum is wrong; whatever they hold must not end it."""
    (row,) = rows_of(_lines(1, 9), first=1, received_at=1.0)

    for end in range(len(row.gzip)):
        assert points_in(row.gzip[:end], expected=9) in {None, 9}
    for index in range(24):
        changed = bytearray(row.gzip)
        changed[index] ^= 0xFF
        assert points_in(bytes(changed), expected=9) in {None, 9}


async def test_a_repaired_journal_has_both_encodings(tmp_path: Path) -> None:
    """Rows are copied as they are."""
    async with _journal(tmp_path) as journal:
        await journal.append(_lines(1, 9), received_at=1.0)
    database = sqlite3.connect(tmp_path / "journal.db")
    database.execute("UPDATE journal SET tail_check = 0")
    database.commit()
    database.close()

    async with _journal(tmp_path) as journal:
        assert journal.status().salvaged
        read = [await _read(journal, sink) for sink in ("influxdb", "embedded")]

    assert read == [[_other(n) for n in range(1, 10)], [_record(n) for n in range(1, 10)]]
