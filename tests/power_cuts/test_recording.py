"""A recording is complete, or fails."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.power_cuts.disk import Acknowledged, Names, Operation, Sync, Write
from tests.power_cuts.recording import record

_FILES = """
import os, sys
folder, ledger = sys.argv[1:]
acknowledge = os.open(ledger, os.O_WRONLY | os.O_CREAT)
file = os.open(folder + "/a", os.O_RDWR | os.O_CREAT)
os.pwrite(file, b"some", 4)
os.fsync(file)
os.rename(folder + "/a", folder + "/b")
os.write(acknowledge, b"done")
"""
_MAPPED = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1] + "/x.db")
connection.execute("PRAGMA mmap_size = 1000000")
connection.execute("CREATE TABLE x (y)")
connection.execute("SELECT * FROM x").fetchall()
"""


def operations(code: str, folder: Path) -> list[Operation]:
    """Return what a program did to the folder `disk`."""
    (folder / "disk").mkdir()
    ledger = folder / "ledger"
    return record(
        folder / "disk",
        [sys.executable, "-c", code, str(folder / "disk"), str(ledger)],
        trace=folder / "trace",
        acknowledgements=ledger,
        environment={"PATH": os.environ["PATH"]},
    ).operations


def test_a_program_is_recorded_in_order(folder: Path) -> None:
    """A new file, a write, a sync that covers both, a rename, and what was acknowledged then."""
    assert operations(_FILES, folder) == [
        Names(0, (("a", 1),)),
        Write(1, 4, b"some"),
        Sync(1, 2),
        Names(0, (("b", 1), ("a", None))),
        Acknowledged(b"done"),
    ]


def test_a_memory_mapped_database_cannot_be_recorded(folder: Path) -> None:
    """Writes to it would not be in the trace."""
    with pytest.raises(AssertionError, match=r"the recording does not know this: .*mmap"):
        operations(_MAPPED, folder)
