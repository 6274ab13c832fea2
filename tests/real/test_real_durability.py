"""Acknowledged means synced to disk, checked in the system calls of a running service.

A kill does not clear the page cache, so only system calls show that a power cut loses nothing.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.still_house import StillHouse
from tests.real.servers import program
from tests.service.ledger import Acknowledged
from tests.service.pace import changing
from tests.service.process import TOKEN, service

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

CALLS = "write,writev,pwrite64,pwritev,fsync,fdatasync"

# 4711  fdatasync(12</data/journal.db-wal>) = 0
# 4711  fdatasync(12</data/journal.db-wal> <unfinished ...>
# 4711  <... fdatasync resumed>) = 0
_CALL = re.compile(r"(\d+) +(\w+)\(\d+<([^>]*)>(.*)")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>.*= 0$")


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a trace."""

    acknowledged: int
    """Writes to the ledger."""
    unsynced: int
    """Commits that returned although their thread had not synced what it wrote to the WAL."""
    uncommitted: int
    """Acknowledgements with no commit since the one before that wrote to the WAL."""


@dataclass(slots=True)
class _Reading:
    acknowledged: int = 0
    unsynced: int = 0
    uncommitted: int = 0
    commits: int = 0
    written: set[str] = field(default_factory=set)
    """Threads that have written to the WAL since their last commit."""
    unsafe: set[str] = field(default_factory=set)
    """Threads that have written to the WAL since it was last synced."""
    syncing: set[str] = field(default_factory=set)
    """Threads whose sync of the WAL has begun and not returned."""

    def take(self, line: str) -> None:
        """Process one line of the trace."""
        if found := _RESUMED.match(line):
            if found[1] in self.syncing:
                self.syncing.discard(found[1])
                self.unsafe.discard(found[1])
            return
        if not (found := _CALL.match(line)):
            return
        thread, call, file, rest = found.groups()
        if file.endswith("journal.db-wal"):
            self._wal(thread, call, rest)
        elif file.startswith("pipe:") and call == "write":
            self._ledger(thread, rest)

    def _wal(self, thread: str, call: str, rest: str) -> None:
        if "write" in call:
            self.written.add(thread)
            self.unsafe.add(thread)
        elif "unfinished" in rest:
            self.syncing.add(thread)
        elif rest.endswith("= 0"):
            self.unsafe.discard(thread)

    def _ledger(self, thread: str, rest: str) -> None:
        if rest.startswith(', "", 0'):  # the driver's mark: a commit of this thread returned
            self.unsynced += thread in self.unsafe
            self.commits += thread in self.written
            self.written.discard(thread)
        else:
            self.acknowledged += 1
            self.uncommitted += not self.commits
            self.commits = 0


def read_trace(lines: Iterator[str]) -> Found:
    """Check every acknowledgement in a trace against the syncs before it."""
    reading = _Reading()
    for line in lines:
        reading.take(line)
    return Found(reading.acknowledged, reading.unsynced, reading.uncommitted)


async def traced(folder: Path, *options: str, commits: int) -> Found:
    """Run the service under strace until it acknowledged this many commits; check the trace."""
    trace = folder / "trace.txt"
    house, ledger = StillHouse(), Acknowledged()
    # -D: strace is not the parent, so signals and exit status are the service's own.
    strace = ("-D", "-f", "-y", "-s", "0", "-e", f"trace={CALLS}", "-o", str(trace))
    async with (
        FakeHomeAssistant(house, token=TOKEN) as home_assistant,
        ledger.recording() as descriptor,
    ):
        house.fire = home_assistant.fire
        driver = ("-m", "tests.service.driver", "--ledger", str(descriptor), *options)
        async with service(
            folder,
            {"HOME_ASSISTANT_URL": home_assistant.url, "HOME_ASSISTANT_TOKEN": TOKEN},
            python=str(program("strace")),
            command=(*strace, sys.executable, *driver, "--", "app", "run"),
            inherits=[descriptor],
        ) as running:
            async with changing(house, per_s=500), asyncio.timeout(60):
                while ledger.commits < commits:
                    await asyncio.sleep(0.05)
            assert await running.stop() == 0
            # A short number is followed by more than one space.
            exited = re.compile(rf"^{running.process.pid} +\+\+\+ exited", re.MULTILINE)
            async with asyncio.timeout(20):
                while not exited.search(trace.read_text()):
                    await asyncio.sleep(0.05)
    with trace.open() as lines:
        return read_trace(lines)


async def test_every_acknowledged_commit_was_synced_before(tmp_path: Path) -> None:
    """The WAL is on disk when a commit returns, and only then is the commit acknowledged."""
    found = await traced(tmp_path, commits=50)

    assert found.acknowledged >= 50
    assert (found.unsynced, found.uncommitted) == (0, 0)


async def test_the_trace_check_detects_a_journal_that_does_not_sync(tmp_path: Path) -> None:
    """With `synchronous = OFF` it finds every commit unsafe."""
    found = await traced(tmp_path, "--synchronous", "OFF", commits=50)

    assert found.acknowledged >= 50
    assert found.unsynced >= 50
