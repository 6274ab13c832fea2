"""Run a module of the service with something done to it, which its own code knows nothing of.

`python -m tests.service.driver --at "before COMMIT" -- app run`. What follows `--` runs as
`python -m` would run it, so everything is built as users have it. SIGUSR1 arms what is to
happen once: a signal at a statement, or the end of a loop.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import runpy
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from app.backfill.coverage import Coverage
from app.journal.journal import SqliteJournal
from app.model import Lines
from app.runtime.supervisor import Loop, Supervisor
from tests.service.ledger import frame

WHY = "the test wanted it"
"""What a loop says that was made to end."""

When = Literal["before", "after"]


class Failpoint:
    """A signal to this very process before or after the next statement, or step, that begins so."""

    def __init__(self, place: str, *, number: signal.Signals, armed: bool) -> None:
        """Take the place, such as `before COMMIT`; without `armed`, SIGUSR1 arms it."""
        self._when, _, self._statement = place.partition(" ")
        self._number = number
        self._armed = armed
        if not armed:
            signal.signal(signal.SIGUSR1, self._arm)

    def passes(self, when: When, statement: str) -> None:
        """Send the signal when this is the place."""
        if self._armed and when == self._when and statement.startswith(self._statement):
            self._armed = False
            os.kill(os.getpid(), self._number)

    def _arm(self, *_: object) -> None:
        self._armed = True


def instrument_statements(
    *, failpoint: Failpoint | None, synchronous: str | None, ledger: int | None
) -> None:
    """Watch every statement on the journal's file from now on.

    Each commit that has returned is marked by an empty write to the ledger: nothing for who
    reads it, but a line in a trace of system calls, from the thread that committed.
    """

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
            if synchronous and sql.startswith("PRAGMA synchronous"):
                sql = f"PRAGMA synchronous = {synchronous}"
            self._passes("before", sql)
            cursor = super().execute(sql, parameters)
            self._passes("after", sql)
            return cursor

        def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
            self._passes("before", sql)
            cursor = super().executemany(sql, parameters)
            self._passes("after", sql)
            return cursor

        def _passes(self, when: When, sql: str) -> None:
            if ledger is not None and when == "after" and sql == "COMMIT":
                os.write(ledger, b"")
            if failpoint is not None:
                failpoint.passes(when, sql)

    plain = sqlite3.connect

    def connect(path: Path, **options: Any) -> sqlite3.Connection:
        watched = Path(path).name == "journal.db"
        return plain(path, **options, factory=Watched if watched else sqlite3.Connection)

    sqlite3.connect = connect  # type: ignore[assignment]


def instrument_acks(failpoint: Failpoint) -> None:
    """Pass `before ack` and `after ack`: a sink has accepted, and only memory knows."""
    ack = SqliteJournal.ack

    def acked(self: SqliteJournal, sink: str, through: int) -> None:
        failpoint.passes("before", "ack")
        ack(self, sink, through)
        failpoint.passes("after", "ack")

    SqliteJournal.ack = acked  # type: ignore[method-assign]


def acknowledge_to(ledger: int) -> None:
    """Write what the journal has made durable to a descriptor, when its `append` returns."""
    append = SqliteJournal.append
    stream = os.fdopen(ledger, "wb")

    async def acknowledged(self: SqliteJournal, lines: Lines, **rest: Any) -> None:
        await append(self, lines, **rest)
        stream.write(frame(lines.data))
        stream.flush()

    SqliteJournal.append = acknowledged  # type: ignore[method-assign]


def end_loop(name: str) -> None:
    """Let a loop raise when SIGUSR1 comes."""
    plain = Supervisor.running

    @contextlib.asynccontextmanager
    async def running(
        self: Supervisor, loops: Mapping[str, Loop], **rest: Any
    ) -> AsyncIterator[None]:
        if name in loops:
            loops = {**loops, name: partial(_until_told, loops[name])}
        async with plain(self, loops, **rest):
            yield

    Supervisor.running = running  # type: ignore[method-assign]


def forget_at_once() -> None:
    """Let the journal delete what is acked, and not keep it for two minutes."""
    Coverage.keep_from = property(lambda _: math.inf)  # type: ignore[assignment]


async def _until_told(loop: Loop) -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, told.set)
    tasks = {
        asyncio.ensure_future(loop()),
        asyncio.create_task(told.wait(), name="driver.told"),
    }
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    if told.is_set():
        raise RuntimeError(WHY)


def main() -> None:
    """Do what the options say, then run the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.service.driver", description=__doc__)
    parser.add_argument("--ledger", type=int, help="descriptor to write what is durable to")
    parser.add_argument("--synchronous", help="another value of the pragma, for the journal")
    parser.add_argument("--at", help='"before" or "after", and how a statement begins')
    parser.add_argument("--signal", default="SIGKILL", help="what is sent there")
    parser.add_argument("--armed", action="store_true", help="without waiting for SIGUSR1")
    parser.add_argument("--forget", action="store_true", help="delete acked rows at once")
    parser.add_argument("--end", help="the name of a loop that raises at SIGUSR1")
    parser.add_argument("module", nargs=argparse.REMAINDER, help="-- MODULE ARGUMENTS")
    chosen = parser.parse_args()
    failpoint = None
    if chosen.at:
        number = signal.Signals[chosen.signal]
        failpoint = Failpoint(chosen.at, number=number, armed=chosen.armed)
        instrument_acks(failpoint)
    instrument_statements(failpoint=failpoint, synchronous=chosen.synchronous, ledger=chosen.ledger)
    if chosen.ledger is not None:
        acknowledge_to(chosen.ledger)
    if chosen.forget:
        forget_at_once()
    if chosen.end:
        end_loop(chosen.end)
    _, module, *arguments = chosen.module
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
