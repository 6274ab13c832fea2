"""Run a module of the service with a fault injected from outside its code.

`python -m tests.service.driver --at "before COMMIT" -- app run`. What follows `--` runs as with
`python -m`, so the service is built as it is for users. SIGUSR1 arms a fault that happens once:
a signal at a statement, or the end of a loop.
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
"""The message of the exception in a loop that was made to end."""

When = Literal["before", "after"]


class Failpoint:
    """Sends this process a signal before or after the next matching statement or step."""

    def __init__(self, place: str, *, number: signal.Signals, armed: bool) -> None:
        """Set the place, such as `before COMMIT`; without `armed`, SIGUSR1 arms it."""
        self._when, _, self._statement = place.partition(" ")
        self._number = number
        self._armed = armed
        if not armed:
            signal.signal(signal.SIGUSR1, self._arm)

    def passes(self, when: When, statement: str) -> None:
        """Send the signal if this is the place and the failpoint is armed."""
        if self._armed and when == self._when and statement.startswith(self._statement):
            self._armed = False
            os.kill(os.getpid(), self._number)

    def _arm(self, *_: object) -> None:
        self._armed = True


def instrument_statements(
    *, failpoint: Failpoint | None, synchronous: str | None, ledger: int | None
) -> None:
    """Intercept every statement on the journal's file from now on.

    Each commit that has returned is marked by an empty write to the ledger. A reader of the
    ledger gets nothing, but a trace of system calls shows it, with the committing thread.
    """

    class Intercepted(sqlite3.Connection):
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
        is_journal = Path(path).name == "journal.db"
        return plain(path, **options, factory=Intercepted if is_journal else sqlite3.Connection)

    sqlite3.connect = connect  # type: ignore[assignment]


def instrument_acks(failpoint: Failpoint) -> None:
    """Add the failpoints `before ack` and `after ack`: the sink accepted, only memory knows it."""
    ack = SqliteJournal.ack

    def acked(self: SqliteJournal, sink: str, through: int) -> None:
        failpoint.passes("before", "ack")
        ack(self, sink, through)
        failpoint.passes("after", "ack")

    SqliteJournal.ack = acked  # type: ignore[method-assign]


def acknowledge_to(ledger: int) -> None:
    """Write the lines to a descriptor once the journal's `append` has made them durable."""
    append = SqliteJournal.append
    stream = os.fdopen(ledger, "wb")

    async def acknowledged(self: SqliteJournal, lines: Lines, **rest: Any) -> None:
        await append(self, lines, **rest)
        if lines.points:  # not the commit of nothing new
            stream.write(frame(lines.data))
            stream.flush()

    SqliteJournal.append = acknowledged  # type: ignore[method-assign]


def end_loop(name: str) -> None:
    """Make a loop raise at SIGUSR1."""
    plain = Supervisor.running

    @contextlib.asynccontextmanager
    async def running(
        self: Supervisor, loops: Mapping[str, Loop], **rest: Any
    ) -> AsyncIterator[None]:
        if name in loops:
            loops = {**loops, name: partial(_until_signalled, loops[name])}
        async with plain(self, loops, **rest):
            yield

    Supervisor.running = running  # type: ignore[method-assign]


def forget_at_once() -> None:
    """Make the journal delete acked rows at once instead of after two minutes."""
    Coverage.keep_from = property(lambda _: math.inf)  # type: ignore[assignment]


async def _until_signalled(loop: Loop) -> None:
    signalled = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, signalled.set)
    tasks = {
        asyncio.ensure_future(loop()),
        asyncio.create_task(signalled.wait(), name="driver.signalled"),
    }
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    if signalled.is_set():
        raise RuntimeError(WHY)


def main() -> None:
    """Inject the faults that the options name, then run the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.service.driver", description=__doc__)
    parser.add_argument("--ledger", type=int, help="descriptor for the durable lines")
    parser.add_argument("--synchronous", help="another value of the pragma, for the journal")
    parser.add_argument("--at", help='"before" or "after", and how a statement begins')
    parser.add_argument("--signal", default="SIGKILL", help="the signal to send there")
    parser.add_argument("--armed", action="store_true", help="do not wait for SIGUSR1")
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
