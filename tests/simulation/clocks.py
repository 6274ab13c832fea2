"""Replaces time and chance for the whole process, before the product is imported.

The product's defaults, such as `clock=time.time`, are bound when its modules are imported, so
`install` has to run first. Outside a simulation everything is real.
"""

from __future__ import annotations

import random
import secrets
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

EPOCH_S = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
"""The time of day at which every simulation starts."""


class Machine(Protocol):
    """What the simulated computer shows of time and chance, and its disk."""

    chance: random.Random
    clock_offset_s: float

    def time(self) -> float:
        """Return the monotonic time in seconds."""
        ...

    def disk_usage(self, path: object) -> object:
        """Return total, used and free bytes of the disk."""
        ...

    def connect(self, real: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Open a SQLite database."""
        ...


_machine: Machine | None = None


def use(machine: Machine | None) -> None:
    """Show this machine's time and chance from now on; None for the real ones."""
    global _machine  # noqa: PLW0603 - the clock of a process is global
    _machine = machine
    if machine is not None:
        random.seed(machine.chance.random())


def install() -> None:
    """Replace the functions of the standard library that show time or chance."""
    _replace(time, "monotonic", lambda machine: machine.time())
    _replace(time, "perf_counter", lambda machine: machine.time())
    _replace(time, "process_time", lambda machine: machine.time())
    _replace(time, "time", _wall_s)
    for name in ("monotonic", "perf_counter", "time"):
        seconds = getattr(time, name)
        setattr(time, f"{name}_ns", lambda seconds=seconds: int(seconds() * 1e9))
    _replace(secrets, "token_bytes", lambda machine, n=32: machine.chance.randbytes(n))
    _replace(secrets, "token_hex", lambda machine, n=32: machine.chance.randbytes(n).hex())
    _replace(secrets, "randbits", lambda machine, bits: machine.chance.getrandbits(bits))
    _replace(
        uuid, "uuid4", lambda machine: uuid.UUID(int=machine.chance.getrandbits(128), version=4)
    )
    _replace(shutil, "disk_usage", lambda machine, path: machine.disk_usage(path))
    connect = sqlite3.connect
    _replace(
        sqlite3,
        "connect",
        lambda machine, *args, **options: machine.connect(connect, *args, **options),
    )


def _replace(module: Any, name: str, simulated: Callable[..., Any]) -> None:
    real = getattr(module, name)

    def chosen(*args: Any, **options: Any) -> Any:
        if _machine is None:
            return real(*args, **options)
        return simulated(_machine, *args, **options)

    setattr(module, name, chosen)


def _wall_s(machine: Machine) -> float:
    return EPOCH_S + machine.time() + machine.clock_offset_s
