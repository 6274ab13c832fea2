"""The disk under SQLite: every statement is a step that can fail, or be the last one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

_FULL = "database or disk is full"
_ERROR = "disk I/O error"


class Crash(BaseException):
    """Unwinds code of a process that has been killed in the middle of a statement."""


class Disk:
    """What happens at each SQL statement of the running process."""

    def __init__(self) -> None:
        self.statements = 0
        self.kill_at: int | None = None
        """The number of the statement at which the process is killed."""
        self.killed: Callable[[], None] = lambda: None
        self.error: tuple[str, int] | None = None
        """Text and code of the error that statements which write raise."""

    def step(self, sql: str) -> None:
        """Run before each statement."""
        self.statements += 1
        if self.kill_at is not None and self.statements >= self.kill_at:
            self.kill_at = None
            self.killed()
            raise Crash
        if self.error is not None and _writes(sql):
            text, code = self.error
            exc = sqlite3.OperationalError(text)
            exc.sqlite_errorcode = code
            raise exc

    @property
    def usage(self) -> tuple[int, int, int]:
        """Total, used and free bytes."""
        free = 0 if self.error is not None and self.error[0] == _FULL else 10**11
        return 10**12, 10**12 - free, free

    def fill(self) -> None:
        """Let every write fail because the disk is full."""
        self.error = _FULL, sqlite3.SQLITE_FULL

    def fail(self) -> None:
        """Let every write fail with EIO."""
        self.error = _ERROR, sqlite3.SQLITE_IOERR


def _writes(sql: str) -> bool:
    return sql.lstrip()[:6].upper() in {"INSERT", "UPDATE", "DELETE", "REPLAC", "COMMIT"}


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
