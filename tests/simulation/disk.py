"""The disk under SQLite: every statement is a step that can fail, or be the last one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

DiskError = tuple[str, int]
"""Text and code of an error of SQLite."""

FULL: DiskError = "database or disk is full", sqlite3.SQLITE_FULL
BROKEN: DiskError = "disk I/O error", sqlite3.SQLITE_IOERR
READ_ONLY: DiskError = "attempt to write a readonly database", sqlite3.SQLITE_READONLY

_WRITING = ("INSERT", "UPDATE", "DELETE", "REPLACE", "COMMIT", "CREATE", "ALTER", "DROP", "VACUUM")


class Crash(BaseException):
    """Unwinds code of a process that has been killed in the middle of a statement."""


class Disk:
    """What happens at each SQL statement of the running process."""

    def __init__(self) -> None:
        self.statements = 0
        self.kill_at: int | None = None
        """The number of the statement at which the process is killed."""
        self.killed: Callable[[], None] = lambda: None
        self.error: DiskError | None = None
        """What statements that write raise."""
        self.failed = 0
        """How many statements have failed."""

    def step(self, sql: str) -> None:
        """Run before each statement."""
        self.statements += 1
        if self.kill_at is not None and self.statements >= self.kill_at:
            self.kill_at = None
            self.killed()
            raise Crash
        if self.error is not None and _writes(sql):
            self.failed += 1
            text, code = self.error
            exc = sqlite3.OperationalError(text)
            exc.sqlite_errorcode = code
            raise exc

    @property
    def usage(self) -> tuple[int, int, int]:
        """Total, used and free bytes."""
        free = 0 if self.error == FULL else 10**11
        return 10**12, 10**12 - free, free


def _writes(sql: str) -> bool:
    return sql.lstrip().upper().startswith(_WRITING)


def connect(disk: Disk, real: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Open a database whose statements are steps of this disk."""

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            disk.step(sql)
            return super().execute(sql, *values)

        def executemany(self, sql: str, values: Any) -> sqlite3.Cursor:
            disk.step(sql)
            return super().executemany(sql, values)

        def executescript(self, sql: str) -> sqlite3.Cursor:
            disk.step(sql)
            return super().executescript(sql)

    return real(*args, **{**options, "factory": Connection})
