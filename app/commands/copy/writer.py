"""Writes lines to the target: splits, waits and repeats until each is stored or refused.

What follows from an outcome is decided by the sinks' `retry_policy`, with these differences: a
person waits, so an outcome that needs one ends the copy; and however many lines are refused, each
is refused by itself.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from app.commands.copy.source import DAY_NS
from app.runtime.errors import DatabaseRefused
from app.runtime.retry import Backoff
from app.sinks.batches import Batch, FieldName, has_field
from app.sinks.outcomes import Accepted, Held, Outcome, OutOfBounds, Refused, Sink
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


class LineWriter:
    """Writes lines to one target, one request at a time."""

    def __init__(
        self,
        target: Sink,
        refuse: Callable[[bytes, str], None],
        *,
        backoff: Backoff,
        max_points: int,
        waiting: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Assign the target.

        `refuse` gets each line that cannot be written, and why; `waiting` the reason of each wait.
        """
        self._target = target
        self._refuse = refuse
        self._backoff = backoff
        self._limits = Limits(max_points=max_points, refusing_after=_NEVER, stuck_s=_STUCK_S)
        self._state = DeliveryState.starting(self._limits)
        self._waiting = waiting
        self._clock = clock
        self._sleep = sleep
        self._next = 1
        self._accepted: bytes | None = None

    async def write(self, lines: Sequence[bytes]) -> None:
        """Write the lines; each is stored, or was refused, when this returns.

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
        if isinstance(outcome, Refused) and outcome.conflict and part.points > 1 and not is_probe:
            return self._conflicting(part, outcome, outcome.conflict)
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
            case DeadLetter(reason=reason):
                self._refuse_all(part, reason)
            case Wait(at_least_s=at_least_s):
                await self._wait(outcome, at_least_s)
                return (part,)
            case Send():
                return (part,)
            case split:
                if getattr(split, "wait", False):
                    await self._wait(outcome, 0.0)
                return _cut(part, part.points // 2)
        return ()

    def _out_of_bounds(self, part: Batch, outcome: OutOfBounds) -> Sequence[Batch]:
        """Find the points beyond the retention or a limit; the others are stored already."""
        if part.points > 1 and outcome.dropped != part.points:
            return _cut(part, part.points // 2)
        self._refuse_all(part, outcome.reason)
        return ()

    def _conflicting(self, part: Batch, outcome: Refused, conflict: FieldName) -> Sequence[Batch]:
        """Separate the points that have the field; refuse them together if none is stored.

        InfluxDB 1 and 2 state how many points of one shard have it, so a count of all is certain.
        Types may differ between shards, so such points are split in order of time.
        """
        others = [line for line in part.cut if not has_field(line, conflict)]
        if others and len(others) < part.points:
            conflicting = [line for line in part.cut if has_field(line, conflict)]
            first = part.first + len(others)
            return _batch(part.first, others), _batch(first, sorted(conflicting, key=_time_ns))
        if outcome.dropped == part.points:
            self._refuse_all(part, outcome.reason)
            return ()
        middle = _middle(part.cut)
        rest = _batch(part.first + middle, part.cut[middle:])
        return _batch(part.first, part.cut[:middle]), rest

    def _refuse_all(self, part: Batch, reason: str) -> None:
        for line in part.cut:
            self._refuse(line, reason)

    async def _wait(self, outcome: Outcome, at_least_s: float) -> None:
        if not isinstance(outcome, Accepted):
            self._waiting(outcome.reason)
        await self._sleep(max(self._backoff.next_s(), at_least_s))


def _middle(lines: Sequence[bytes]) -> int:
    """Return where a day begins nearest to the middle, because shards begin with a day."""
    days = [_time_ns(line) // DAY_NS for line in lines]
    middle = len(lines) // 2
    starts = [at for at in range(1, len(lines)) if days[at] != days[at - 1]]
    return min(starts, key=lambda at: abs(at - middle), default=middle)


def _time_ns(line: bytes) -> int:
    return int(line[line.rfind(b" ") :])


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
