"""The runs that are recorded: what is on the disk before, and what the service then does."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random

from app.runtime.sqlite_pages import SMALL_PAGE_BYTES
from tests.fakes.influx import FakeInflux
from tests.power_cuts.checks import SETTINGS, Expected, Found, expected, start
from tests.power_cuts.disk import History, Names, Tree, after_cut, write_tree
from tests.power_cuts.recording import record
from tests.service.process import ROOT, TOKEN

DATA = Path("new/folder/data")
"""DATA_DIR on the disk that loses its power."""
_ARCHIVE = ROOT / "tests/recordings/data-folder-of-ed0780b/data.tar.xz"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A run of the service."""

    workloads: tuple[str, ...]
    """Those of `workload.py` that run one after another."""
    prepare: Callable[[Path], object] = lambda _: None
    """Puts files on an empty disk."""
    is_damaged: bool = False
    options: Sequence[str] = ()
    kill_at: str | None = None
    """The system call in which the first workload is killed."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded run."""

    history: History
    before: Found | None
    """What an uninterrupted start delivers of the files that were there before."""
    is_damaged: bool
    originals: Sequence[bytes] = ()
    """The contents of the damaged files, which are never deleted."""

    def cut(self, chance: Random) -> tuple[int, Tree]:
        """Return a cut at random, every other one near a changed name, and a state after it."""
        operations = self.history.operations
        number = chance.randrange(len(operations))
        if chance.random() < 0.5:  # names change seldom, and most of these are new files
            changed = [(at, each) for at, each in enumerate(operations) if isinstance(each, Names)]
            renamed = [(at, each) for at, each in changed if len(each.changes) > 1]
            number, _ = chance.choice(chance.choice((changed, renamed or changed)))
            number = min(number + chance.randrange(3), len(operations) - 1)
        return number, after_cut(self.history, number, chance)

    def expected(self, cut: int) -> Expected:
        """Return what must be there after a cut."""
        acknowledged = self.history.acknowledged(cut)
        return expected(acknowledged, before=self.before, is_damaged=self.is_damaged)


def _environment(data: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        **SETTINGS,
        "HOME_ASSISTANT_TOKEN": TOKEN,
        "INFLUXDB_TOKEN": FakeInflux().token,
        "DATA_DIR": str(data),
        "JOURNAL_MAX_MB": "2",  # a checkpoint every 250 kB
        "LOG_LEVEL": "ERROR",
    }


def older_version(disk: Path) -> None:
    """Files that an older version wrote."""
    with tarfile.open(_ARCHIVE) as archive:
        archive.extractall(disk / "new/folder", filter="data")


def damaged(disk: Path) -> None:
    """Each file of a killed service is damaged, the journal in its write-ahead log."""
    _killed(disk / DATA)
    _damage(disk / DATA)


def interrupted_repair(disk: Path) -> None:
    """The journal is copied and renamed, its log is not; of the dead letters half is copied."""
    data = disk / DATA
    _killed(data)
    for suffix in ("", "-wal"):
        shutil.copyfile(data / f"journal.db{suffix}", data / f"journal.db.salvage{suffix}")
    _checkpoint(data / "journal.db.salvage")
    _damage(data)
    (data / "journal.db").rename(data / "journal.db.damaged-20261130T120000.000000Z")
    shutil.copyfile(data / "dead_letters.db", data / "dead_letters.db.salvage")


def _killed(data: Path) -> None:
    command = [sys.executable, "-m", "tests.power_cuts.workload", "first_start", os.devnull]
    subprocess.run(command, env=_environment(data), check=True, timeout=60)


def _damage(data: Path) -> None:
    with (data / "journal.db-wal").open("r+b") as file:
        file.seek(32 + 2 * (24 + SMALL_PAGE_BYTES) + 100)
        file.write(b"\xa5" * 100)
    _checkpoint(data / "dead_letters.db")
    with (data / "dead_letters.db").open("r+b") as file:
        file.write(b"\xa5" * 4096)
    (data / "metadata.db").write_text("hello " * 2_000)
    (data / "events.db").write_bytes(b"")


def _checkpoint(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("SELECT * FROM sqlite_schema").fetchall()  # closing it empties its log


SCENARIOS = {
    "first start": Scenario(("first_start",)),
    "busy": Scenario(("busy",)),
    "kill in a commit": Scenario(("busy", "start"), kill_at="fdatasync:when=30"),
    "older version": Scenario(("start",), older_version),
    "damaged files": Scenario(("start",), damaged, is_damaged=True),
    "interrupted repair": Scenario(("start",), interrupted_repair, is_damaged=True),
}


async def recorded(scenario: Scenario, folder: Path, influx: FakeInflux) -> Recorded:
    """Run a scenario under strace, in an empty folder."""
    disk = folder / "disk"
    (disk / DATA.parent.parent.parent).mkdir(parents=True)
    scenario.prepare(disk)
    before, originals = None, list[bytes]()
    if (disk / DATA).exists():
        copy = folder / "copy"
        shutil.copytree(disk / DATA, copy)
        before = await start(copy, influx)
        aside = [path for path in copy.glob("*.damaged-*") if not path.name.endswith("-shm")]
        originals = [path.read_bytes() for path in aside]
    acknowledgements = folder / "acknowledgements"
    module = [sys.executable, "-m", "tests.power_cuts.workload"]
    history = record(
        disk,
        *([*module, name, str(acknowledgements), *scenario.options] for name in scenario.workloads),
        kill_at=scenario.kill_at,
        trace=folder / "trace",
        acknowledgements=acknowledgements,
        environment=_environment(disk / DATA),
    )
    return Recorded(history, before, scenario.is_damaged, originals)


def put_on_disk(tree: Tree, folder: Path) -> Path:
    """Write a state to a new folder; return its DATA_DIR."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_tree(tree, folder)
    return folder / DATA
