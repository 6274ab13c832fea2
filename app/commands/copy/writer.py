"""Writes lines to the target: splits, waits and repeats until each is stored or refused.

What follows from an outcome is decided by the sinks' `retry_policy`, with these differences: a
person waits, so an outcome that needs one ends the copy; and however many lines are refused, each
goes to the file of refused lines.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from app.runtime.errors import DatabaseRefused
from app.runtime.retry import Backoff
from app.runtime.sqlite import translated_errors
from app.sinks.batches import Batch
from app.sinks.outcomes import Accepted, Held, Outcome, OutOfBounds, Sink
from app.sinks.retry_policy import (
    Advance,
    Attempt,
    DeadLetter,
    DeliveryState,
    Limits,
    Send,
    Wait,
    needs_ping,
    step,
)

_NEVER = sys.maxsize
_STUCK_S = 60.0


class RefusedLines:
    """A file with the lines that could not be written, each after its reason."""

    def __init__(self, path: Path) -> None:
        """Assign the path; the file is made for the first line."""
        self.path = path
        self.count = 0
        self._pending: list[bytes] = []

    def add(self, line: bytes, reason: str) -> None:
        """Add a line; durable after `sync`."""
        self.count += 1
        self._pending.append(b"# %b\n%b\n" % (reason.encode(errors="replace"), line))

    def sync(self) -> None:
        """Write what was added to the disk.

        Raises:
            StorageError: it cannot be written.
        """
        if not self._pending:
            return
        with translated_errors(), self.path.open("ab") as file:
            file.write(b"".join(self._pending))
            file.flush()
            os.fsync(file.fileno())
        self._pending.clear()


class LineWriter:
    """Writes lines to one target, one request at a time."""

    def __init__(
        self,
        target: Sink,
        refused: RefusedLines,
        *,
        backoff: Backoff,
        max_points: int,
        waiting: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Assign the target; `waiting` gets the reason of each wait."""
        self._target = target
        self._refused = refused
        self._backoff = backoff
        self._limits = Limits(max_points=max_points, refusing_after=_NEVER, stuck_s=_STUCK_S)
        self._state = DeliveryState.starting(self._limits)
        self._waiting = waiting
        self._clock = clock
        self._sleep = sleep
        self._next = 1
        self._accepted: bytes | None = None

    async def write(self, lines: Sequence[bytes]) -> None:
        """Write the lines; each is stored, or among the refused lines, when this returns.

        Raises:
            DatabaseRefused: the target accepts nothing until a person acts.
        """
        parts = deque([_batch(self._next, lines)] if lines else [])
        self._next += len(lines)
        while parts:
            part = parts[0]
            if part.points > self._state.target:
                parts.popleft()
                parts.extendleft(reversed(_cut(part, self._state.target)))
                continue
            for piece in reversed(await self._send(part)):
                parts.insert(1, piece)
            parts.popleft()

    async def _send(self, part: Batch) -> Sequence[Batch]:
        """Send a part and return what of it is to be sent next."""
        is_probe = self._state.probe_next and self._accepted is not None
        sent = _batch(self._next, [self._accepted or b""]) if is_probe else part
        outcome = await self._target.write(sent)
        if isinstance(outcome, Held):
            raise DatabaseRefused(f"The target refuses points: {outcome.reason}. {outcome.advice}")
        if isinstance(outcome, OutOfBounds) and not is_probe:
            return self._out_of_bounds(part, outcome)
        attempt = Attempt(
            points=part.points, last=part.last, now_s=self._clock(), is_probe=is_probe
        )
        if needs_ping(self._state, outcome, attempt, self._limits):
            is_alive = await self._target.ping()
            attempt = Attempt(
                points=part.points, last=part.last, now_s=self._clock(), alive=is_alive
            )
        self._state, action = step(self._state, outcome, attempt, self._limits)
        match action:
            case Advance():
                self._accepted = part.cut[-1]
                self._backoff.reset()
                return ()
            case DeadLetter(reason=reason):
                self._refuse(part, reason)
                return ()
            case Wait(at_least_s=at_least_s):
                await self._wait(outcome, at_least_s)
                return (part,)
            case Send():
                return (part,)
            case split:
                if getattr(split, "wait", False):
                    await self._wait(outcome, 0.0)
                return _cut(part, part.points // 2)

    def _out_of_bounds(self, part: Batch, outcome: OutOfBounds) -> Sequence[Batch]:
        """Find the points beyond the retention or a limit; the others are stored already."""
        if part.points > 1 and outcome.dropped != part.points:
            return _cut(part, part.points // 2)
        self._refuse(part, outcome.reason)
        return ()

    def _refuse(self, part: Batch, reason: str) -> None:
        for line in part.cut:
            self._refused.add(line, reason)

    async def _wait(self, outcome: Outcome, at_least_s: float) -> None:
        if not isinstance(outcome, Accepted):
            self._waiting(outcome.reason)
        await self._sleep(max(self._backoff.next_s(), at_least_s))


def _batch(first: int, lines: Sequence[bytes]) -> Batch:
    return Batch(
        numbers=range(first, first + len(lines)),
        first=first,
        last=first + len(lines) - 1,
        points=len(lines),
        received_at=0.0,
        gzip=None,
        cut=tuple(lines),
    )


def _cut(part: Batch, points: int) -> Sequence[Batch]:
    points = max(1, points)
    return [
        _batch(part.first + start, part.cut[start : start + points])
        for start in range(0, part.points, points)
    ]
