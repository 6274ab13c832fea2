"""Delivery: the journal, in order, to one sink; one request in flight."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Protocol, TypeVar

from app.errors import StorageDamaged, StorageError
from app.logs import Repeats
from app.model import Row
from app.resilience import Backoff, Breaker
from app.sink.answers import (
    Accepted,
    Answer,
    Busy,
    Held,
    Refused,
    Sink,
    TimedOut,
    TooLarge,
    Unavailable,
)
from app.sink.batches import Part, WholeRows, after, cut, halves, whole_rows
from app.sink.steps import (
    Advance,
    Attempt,
    DeadLetter,
    Limits,
    Split,
    State,
    Wait,
    needs_ping,
    probed_index,
    refusing,
    step,
)
from app.sink.trouble import Pace, Trouble, impersonal
from app.snapshot import BreakerStatus, SinkStatus
from app.telemetry import Telemetry

logger = logging.getLogger(__name__)

Taken = TypeVar("Taken")


class PendingPoints(Protocol):
    """What a sink has not settled yet."""

    @property
    def points(self) -> int:
        """How many points."""
        ...

    @property
    def oldest_at(self) -> float | None:
        """When the oldest was received, in seconds since the epoch; None without points."""
        ...


class Log(Protocol):
    """The journal, as far as delivery reads and settles it."""

    async def read(self, sink: str, *, max_points: int) -> list[Row]:
        """Return the next unsettled rows, at least one if any, then as many as fit."""
        ...

    def cursor(self, sink: str) -> int:
        """Return the last settled sequence number."""
        ...

    def settle(self, sink: str, through: int) -> None:
        """Move the cursor forward."""
        ...

    def pending(self, sink: str) -> PendingPoints:
        """Return what is not settled."""
        ...

    async def grown(self, sink: str, *, points: int) -> None:
        """Wait until at least so many points are pending."""
        ...


class PutsAside(Protocol):
    """Where lines go that no retry will get into the sink."""

    async def insert(self, sink: str, *, sequence: int, line: bytes, reason: str) -> None:
        """Keep a line durably; doing so twice keeps it once."""
        ...


class Delivery:
    """Brings every point of the journal to one sink, or knows why not.

    What an answer means is decided in `steps`; here is only the I/O around it. A point is
    settled in the same synchronous stretch in which its sink's acceptance is seen and
    counted, so a cancellation at any moment loses nothing and counts nothing twice.
    """

    def __init__(
        self,
        *,
        sink: Sink,
        journal: Log,
        dead_letters: PutsAside,
        breaker: Breaker,
        backoff: Backoff,
        telemetry: Telemetry,
        batch_points: int = 100,
        batch_timeout_s: float = 5.0,
        max_batch_points: int = 5_000,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Take the neighbors and the bounds: a request leaves at `batch_points` or the timeout.

        `clock` only moves forward; `wall_clock` gives seconds since the epoch.
        """
        self.name = sink.name
        self._sink = sink
        self._journal = journal
        self._dead_letters = dead_letters
        self._breaker = breaker
        self._backoff = backoff
        self._telemetry = telemetry
        self._batch_points = batch_points
        self._batch_timeout_s = batch_timeout_s
        self._limits = Limits(max_points=max_batch_points)
        self._clock = clock
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._state = State.starting(self._limits)
        self._parts: deque[Part] = deque()
        """What is in hand: read from the journal and not yet settled, in order."""
        self._held_at_start = 0
        self._finishing = False
        self._patience: asyncio.Timeout | None = None
        self._trouble: Trouble | None = None
        self._last_error: str | None = None
        self._pace = Pace()
        self._troubles = Repeats(logger, clock=clock)
        self._losses = Repeats(logger, clock=clock)

    async def run(self) -> None:
        """Deliver for ever; after `finish` until nothing is left or the sink cannot take it."""
        self._held_at_start = self._journal.pending(self.name).points
        while await self._due():
            try:
                await self._take_turn()
            except StorageError as exc:
                self._state = replace(self._state, condition="waiting")
                self._note(f"its journal or its dead letters cannot be used: {exc}")
                await self._pause(0.0)

    def finish(self) -> None:
        """Send what is pending without waiting for more, then let `run` end."""
        self._finishing = True
        if self._patience is not None and not self._patience.expired():
            self._patience.reschedule(0.0)

    def status(self) -> SinkStatus:
        """Return this sink's part of the snapshot."""
        pending = self._journal.pending(self.name)
        counts = self._telemetry.sink(self.name)
        oldest_at, last_write_at = pending.oldest_at, counts.last_write_at
        return SinkStatus(
            name=self.name,
            state=self._state.condition,
            held_at_start=self._held_at_start,
            points_written=counts.written,
            points_dead_lettered=counts.dead_lettered,
            points_dropped=counts.dropped,
            held=pending.points,
            lag_seconds=0.0 if oldest_at is None else max(0.0, self._wall_clock() - oldest_at),
            drained_in_seconds=(
                self._pace.drained_in_s(pending.points)
                if pending.points > self._batch_points
                else None
            ),
            last_write=(
                None if last_write_at is None else datetime.fromtimestamp(last_write_at, UTC)
            ),
            last_error=self._last_error,
            breaker=BreakerStatus(
                state=self._breaker.state,
                failure_count=self._breaker.failure_count,
                last_failure=self._breaker.last_failure,
            ),
            reason=self._trouble.sentence(self._clock()) if self._trouble else None,
        )

    async def _due(self) -> bool:
        """Wait until something is to be sent; False when the loop is to end."""
        if not self._parts:
            await self._unless_finished(lambda: self._journal.grown(self.name, points=1))
            oldest_at = self._journal.pending(self.name).oldest_at
            left_s = (oldest_at or 0.0) + self._batch_timeout_s - self._wall_clock()
            await self._unless_finished(
                lambda: self._journal.grown(self.name, points=self._batch_points),
                # The wall clock may jump: never wait longer than the setting says.
                within_s=min(max(left_s, 0.0), self._batch_timeout_s),
            )
        if not self._finishing:
            return True
        can_send = self._state.condition == "ok" and self._breaker.state != "open"
        return can_send and self._journal.pending(self.name).points > 0

    async def _take_turn(self) -> None:
        part = await self._in_hand()
        if part is None:
            return
        started_s = self._clock()
        answer = await self._sink.write(part)
        attempt = Attempt(points=part.points, last=part.last, now_s=self._clock())
        if needs_ping(self._state, answer, attempt, self._limits):
            attempt = replace(attempt, alive=await self._sink.ping())
        self._state, action = step(self._state, answer, attempt, self._limits)
        self._learn_from(answer)
        match action:
            case Advance():
                self._advance(part, seconds=attempt.now_s - started_s)
            case Split(wait=wait):
                await self._halve()
                if wait:
                    await self._pause(0.0)
            case DeadLetter(reason=reason):
                await self._put_aside(part, reason)
            case Wait(at_least_s=at_least_s):
                await self._pause(at_least_s)
            case _:
                pass  # Send: the next turn does

    async def _in_hand(self) -> Part | None:
        """Return what is to be sent now; None when there turns out to be nothing."""
        cursor = self._journal.cursor(self.name)
        # At its bound the journal drops the oldest points, also those in hand.
        while self._parts and self._parts[0].last <= cursor:
            self._parts.popleft()
        if not self._parts:
            rows = await self._journal.read(self.name, max_points=self._state.target)
            if not rows:
                if self._journal.pending(self.name).points:
                    raise StorageError("the journal counts pending points but returns none")
                return None
            self._parts.append(whole_rows(rows))
        return await self._fitting(self._parts[0])

    async def _fitting(self, head: Part) -> Part | None:
        cursor = self._journal.cursor(self.name)
        if head.first <= cursor:
            if (unsettled := await self._apart(lambda part: after(part, cursor))) is None:
                return None
            head = self._parts[0] = unsettled
        if refusing(self._state, self._limits):
            index = probed_index(self._state, head.points)
            return await self._apart(lambda part: cut(part, index, index + 1))
        while self._parts and self._parts[0].points > self._state.target:
            await self._halve()
        return self._parts[0] if self._parts else None

    async def _halve(self) -> None:
        if (pair := await self._apart(halves)) is not None:
            self._parts.popleft()
            self._parts.extendleft(reversed(pair))

    async def _apart(self, take: Callable[[Part], Taken]) -> Taken | None:
        """Take something from the first part in hand, in a thread; None when it is damaged."""
        head = self._parts[0]
        try:
            return await asyncio.to_thread(take, head)
        except StorageDamaged as exc:
            self._give_up(head, exc)
            return None

    def _give_up(self, part: Part, exc: StorageDamaged) -> None:
        if isinstance(part, WholeRows) and len(part.rows) > 1:
            self._parts.popleft()
            self._parts.extendleft(WholeRows((row,)) for row in reversed(part.rows))
            return
        points = self._settle(part)
        self._telemetry.points_dropped(self.name, points)
        self._losses.tell(
            logging.ERROR, "Lost %d points for %s: %s", points, self.name, exc, kind="damaged"
        )

    def _advance(self, part: Part, *, seconds: float) -> None:
        points = self._settle(part)
        self._telemetry.batch_written(
            self.name, points, seconds=seconds, received_at=part.received_at
        )
        self._pace.sample(self._clock(), held=self._journal.pending(self.name).points)

    async def _put_aside(self, part: Part, reason: str) -> None:
        if (lines := await self._apart(lambda head: head.lines())) is None:
            return
        # Durable first: if the process dies between the two, the line is refused again and
        # put aside again, which keeps it once.
        await self._dead_letters.insert(
            self.name, sequence=part.first, line=lines[0], reason=reason
        )
        self._telemetry.points_dead_lettered(self.name, self._settle(part))
        self._losses.tell(
            logging.ERROR,
            "Point %d is a dead letter of %s: %r",
            part.first,
            self.name,
            impersonal(reason),
            kind="dead letter",
        )

    def _settle(self, part: Part) -> int:
        """Move the cursor behind the head of what is in hand; return how many points that settled.

        Fewer than the part holds when the journal has meanwhile dropped, and counted, some.
        """
        cursor = self._journal.cursor(self.name)
        points = max(0, part.last - max(cursor, part.first - 1))
        if points:
            self._journal.settle(self.name, part.last)
        self._parts.popleft()
        return points

    async def _pause(self, at_least_s: float) -> None:
        if refusing(self._state, self._limits) and len(self._parts) > 1:
            # Probes choose among what is in hand: all that was read, not only one bad line.
            self._parts.clear()
        wait_s = max(at_least_s, self._backoff.next_s(), self._breaker.wait_s)
        await self._unless_finished(lambda: self._sleep(wait_s))

    async def _unless_finished(
        self, wait: Callable[[], Awaitable[None]], *, within_s: float | None = None
    ) -> None:
        """Wait, but no longer than `within_s` and not after `finish` was called."""
        if self._finishing:
            return
        try:
            async with asyncio.timeout(within_s) as self._patience:
                await wait()
        except TimeoutError:
            pass  # the time is up, or finish() made it so
        finally:
            self._patience = None

    def _learn_from(self, answer: Answer) -> None:
        match answer:
            case Accepted():
                self._backoff.reset()
                self._breaker.succeeded()
            case Refused() | TooLarge() | Held():
                self._breaker.succeeded()
            case Busy(status=HTTPStatus.TOO_MANY_REQUESTS):
                pass  # a working database that sets a pace: no reason to cut it off
            case _:
                self._breaker.failed(answer.reason)
        advice = answer.advice if isinstance(answer, Held | Refused) else None
        said = _said(answer)
        self._note(said and impersonal(said), advice=advice)

    def _note(self, said: str | None, *, advice: str | None = None) -> None:
        """Keep what a person should read, and log it."""
        now_s = self._clock()
        self._last_error = said or self._last_error
        before = self._trouble
        if self._state.condition == "ok":
            self._trouble = None
            if before:
                self._troubles.over("%s", before.ended())
            return
        self._pace.reset()
        self._trouble = Trouble(
            sink=self.name,
            condition=self._state.condition,
            since_s=before.since_s if before else now_s,
            said=said or "",
            advice=advice,
        )
        condition = self._state.condition
        level = logging.WARNING if condition == "waiting" else logging.ERROR
        self._troubles.tell(level, "%s", self._trouble.sentence(now_s), kind=condition)


def _said(answer: Answer) -> str | None:
    match answer:
        case Accepted():
            return None
        case TooLarge() | TimedOut() | Unavailable():
            return answer.reason
        case _:
            return answer.reason if answer.status is None else f"{answer.status} {answer.reason}"
