"""Rows are read from the pages of a damaged file."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from app.runtime import sqlite_pages
from app.runtime.sqlite import Connection, Database

_MIGRATIONS = ("CREATE TABLE numbers (number INTEGER PRIMARY KEY, blob BLOB NOT NULL) STRICT",)
_TABLE = (sqlite_pages.Column("INTEGER", rowid=True), sqlite_pages.Column("BLOB"))


async def _file(path: Path, *, page_bytes: int, rows: int, blob_bytes: int) -> None:
    chance = random.Random(1)

    def fill(connection: Connection) -> None:
        connection.executemany(
            "INSERT INTO numbers VALUES (?, ?)",
            [(number, chance.randbytes(blob_bytes)) for number in range(rows)],
        )

    async with Database(path, migrations=_MIGRATIONS, page_bytes=page_bytes) as database:
        await database.write(fill)


@pytest.mark.parametrize("blob_bytes", [40, 300, 3_000, 30_000])
@pytest.mark.parametrize("rows", [3, 100])
@pytest.mark.parametrize("page_bytes", sqlite_pages.PAGE_SIZES_IN_USE)
async def test_the_rows_of_a_file_without_its_header_are_found(
    tmp_path: Path, page_bytes: int, rows: int, blob_bytes: int
) -> None:
    """The header states the size of a page, and no log states it when the file was closed."""
    path = tmp_path / "numbers.db"
    await _file(path, page_bytes=page_bytes, rows=rows, blob_bytes=blob_bytes)
    with path.open("r+b") as file:
        file.write(os.urandom(100))

    found = {row[0] for view in sqlite_pages.views(path) for row in sqlite_pages.rows(view, _TABLE)}

    assert found == set(range(rows))
