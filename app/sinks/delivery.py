"""Delivery: the journal, in order, to one sink; one request in flight."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Protocol, TypeVar

from app.health import SinkStatus
from app.runtime.errors import StorageDamaged, StorageError, Unforeseen
from app.runtime.logging import RateLimitedLog
from app.runtime.metrics import Telemetry
from app.runtime.retry import Backoff, Breaker, contained
from app.sinks.batches import (
    Part,
    WholeRows,
    after,
    cut,
    fields_in,
    halves,
    line_from,
    whole_rows,
)
from app.sinks.limit_search import LimitSearch, by_series, series_in
from app.sinks.outcomes import (
    Accepted,
    Busy,
    Failure,
    FieldName,
    Held,
    Outcome,
    OutOfBounds,
    Refused,
    RefusedLine,
    ServerProcess,
    Sink,
    TimedOut,
    TooLarge,
    Unavailable,
)
from app.sinks.progress import Log, Progress
from app.sinks.retry_policy import (
    Action,
    Advance,
    Attempt,
    DeadLetter,
    DeliveryState,
    Limits,
    Split,
    SplitBySeries,
    Wait,
    blamed,
    needs_ping,
    probed_index,
    refusing,
    step,
)
from app.sinks.status_text import DrainRate, Expired, SinkProblem, impersonal, title

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

Work = TypeVar("Work")

_MOST_SERIES = 100_000
"""Accepted series remembered at most; with more, all are forgotten and searched for again."""


class DeadLetterStore(Protocol):
    """Stores permanently rejected lines."""

    async def insert(self, sink: str, refused: Sequence[RefusedLine]) -> None:
        """Store lines durably, in one transaction; doing so twice stores them once."""
        ...


class Delivery:
    """Sends every point of the journal to one sink, in order.

    `retry_policy` decides what follows from an outcome, and `Progress` holds the position; this
    class does the I/O. The position moves in the same synchronous stretch in which an acceptance
    is processed, so a cancellation at any moment loses nothing and counts nothing twice.
    """

    def __init__(
        self,
        *,
        sink: Sink,
        journal: Log,
        dead_letters: DeadLetterStore,
        breaker: Breaker,
        backoff: Backoff,
        telemetry: Telemetry,
        batch_points: int = 100,
        batch_timeout_s: float = 5.0,
        max_batch_points: int = 5_000,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        process: Callable[[], Awaitable[ServerProcess | None]] | None = None,
        retention_s: Callable[[], Awaitable[float | None]] | None = None,
    ) -> None:
        """Assign the parts and bounds: a request is sent at `batch_points` or the timeout.

        `clock` is monotonic; `wall_clock` returns seconds since the epoch. `process` returns the
        process of a database that may acknowledge points before they are on disk; `retention_s`
        returns how long a database retains points.
        """
        self.name = sink.name
        self._sink = sink
        self._journal = journal
        self._progress = Progress(journal, sink.name, clock=clock, process=process)
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
        self._state = DeliveryState.starting(self._limits)
        self._parts: deque[Part] = deque()
        """Read from the journal and not yet accepted, in order."""
        self._search: LimitSearch | None = None
        """For the first part, once a limit refused some of its points."""
        self._accepted_series: set[int] = set()
        """Hashes; a wrong one costs a request and never a point."""
        self._held_at_start = 0
        self._last_accepted: Part | None = None
        self._finishing = False
        self._timeout: asyncio.Timeout | None = None
        self._problem: SinkProblem | None = None
        self._last_error: str | None = None
        self._drain_rate = DrainRate()
        self._expired = Expired()
        self._retention_s = retention_s

    async def run(self) -> None:
        """Deliver indefinitely; after `finish`, until nothing is pending or the sink fails."""
        self._held_at_start = self._journal.pending(self.name).points
        is_running = True
        while is_running:
            try:
                with contained(f"delivering to {self.name}"):
                    if is_running := await self._due():
                        await self._send_next()
            except StorageError as exc:
                await self._failed(f"its journal or its dead letters cannot be used: {exc}")
            except Unforeseen as exc:
                await self._failed(str(exc))

    async def _failed(self, why: str) -> None:
        self._state = replace(self._state, condition="waiting")
        self._report(why)
        await self._pause(0.0)

    def finish(self) -> None:
        """Send what is pending without waiting for more, then end `run`."""
        self._finishing = True
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(0.0)

    def status(self) -> SinkStatus:
        """Return this sink's part of the snapshot."""
        pending = self._progress.pending()
        counts = self._telemetry.sink(self.name)
        oldest_at, last_write_at = pending.oldest_at, counts.last_write_at
        return SinkStatus(
            name=self.name,
            state=self._state.condition,
            held_at_start=self._held_at_start,
            points_written=counts.written,
            points_dead_lettered=counts.dead_lettered,
            points_dropped=counts.dropped,
            points_expired=counts.expired,
            held=self._journal.pending(self.name).points,
            lag_seconds=(
                0.0 if oldest_at is None else max(0.0, round(self._wall_clock() - oldest_at, 3))
            ),
            last_delay_seconds=counts.last_delay_s,
            drained_in_seconds=(
                self._drain_rate.drained_in_s(pending.points)
                if pending.points > self._batch_points
                else None
            ),
            last_write=(
                None if last_write_at is None else datetime.fromtimestamp(last_write_at, UTC)
            ),
            last_error=self._last_error,
            breaker=self._breaker.state,
            reason=self._reason(),
        )

    def _reason(self) -> str | None:
        now_s = self._clock()
        if self._problem is not None:
            return self._problem.sentence(now_s)
        return self._expired.sentence(self.name, now_s)

    async def _due(self) -> bool:
        """Wait until a batch is due; False when the loop should end."""
        if not self._parts:
            await self._something_pending()
            oldest_at = self._progress.pending().oldest_at
            left_s = (oldest_at or 0.0) + self._batch_timeout_s - self._wall_clock()
            await self._unless_finished(
                partial(self._progress.grown, points=self._batch_points),
                # The wall clock may jump: never wait longer than the setting says.
                within_s=min(max(left_s, 0.0), self._batch_timeout_s),
            )
        if not self._finishing:
            return True
        can_send = self._state.condition == "ok" and self._breaker.state != "open"
        return can_send and self._progress.pending().points > 0

    async def _something_pending(self) -> None:
        """Wait for the first point; meanwhile ack what the database has written to disk."""
        while True:
            within_s = self._progress.check_in_s if self._progress.retained_points else None
            await self._unless_finished(partial(self._progress.grown, points=1), within_s=within_s)
            if self._finishing or self._progress.pending().points:
                return
            await self._check_progress()

    async def _send_next(self) -> None:
        if self._progress.check_in_s == 0.0:
            await self._check_progress()
        part = probe = await self._another_line() if self._state.probe_next else None
        if part is None and (part := await self._next_part()) is None:
            return
        started_s = self._clock()
        outcome = await self._sink.write(part)
        attempt = Attempt(
            points=part.points, last=part.last, now_s=self._clock(), is_probe=probe is not None
        )
        if (search := self._search) is not None:
            attempt = replace(attempt, splits=search.splits, batch_points=search.points)
        if needs_ping(self._state, outcome, attempt, self._limits):
            attempt = replace(attempt, alive=await self._sink.ping())
        if self._state.conflicts and isinstance(outcome, Accepted):
            carried = await asyncio.to_thread(fields_in, part, tuple(self._state.conflicts))
            attempt = replace(attempt, carried=carried)
        self._state, action = step(self._state, outcome, attempt, self._limits)
        self._record(outcome, is_probe=attempt.is_probe)
        await self._do(action, part, seconds=attempt.now_s - started_s, outcome=outcome)

    async def _do(self, action: Action, part: Part, *, seconds: float, outcome: Outcome) -> None:
        match action:
            case Advance(expired=expired):
                is_first = bool(expired) and self._expired.is_over(self._clock())
                if expired:
                    self._log_expired(outcome, expired)
                await self._advance(part, seconds=seconds, expired=expired)
                if is_first and self._retention_s is not None:
                    self._expired.retention_s = await self._retention_s()
            case Split(wait=wait):
                await self._replace_front(halves)
                if wait:
                    await self._pause(0.0)
            case SplitBySeries():
                await self._split_by_series()
            case DeadLetter(reason=reason):
                await self._reject(part, reason, seconds=seconds)
            case Wait(at_least_s=at_least_s):
                await self._pause(at_least_s)
            case _:
                pass  # Send: the next turn does

    async def _check_progress(self) -> None:
        if points := await self._progress.check():
            self._parts.clear()
            self._search = None
            limited_log.warning(
                "%s may have restarted: %d points that it may have lost are sent again",
                title(self.name),
                points,
                topic=f"{self.name} restarts",
            )

    async def _next_part(self) -> Part | None:
        """Return what to send now; None when nothing is left."""
        position = self._progress.position
        # At its bound the journal drops the oldest points, including those read here.
        while self._parts and self._parts[0].last <= position:
            self._parts.popleft()
            self._search = None
        if not self._parts:
            rows = await self._progress.read(max_points=self._state.target)
            if not rows:
                if self._progress.pending().points:
                    raise StorageError("the journal counts pending points but returns none")
                return None
            self._parts.append(whole_rows(rows))
        return await self._fitting(self._parts[0])

    async def _fitting(self, head: Part) -> Part | None:
        position = self._progress.position
        if head.first <= position or refusing(self._state, self._limits):
            self._search = None
        if head.first <= position:
            if (unacked := await self._run_on_front(lambda part: after(part, position))) is None:
                return None
            head = self._parts[0] = unacked
        if refusing(self._state, self._limits):
            return await self._probe(head)
        while self._front and self._front[0].points > self._state.target:
            await self._replace_front(halves)
        return self._front[0] if self._front else None

    @property
    def _front(self) -> deque[Part]:
        """What is sent next: the first part, or the pieces of it."""
        return self._parts if self._search is None else self._search.pieces

    async def _probe(self, head: Part) -> Part | None:
        """Return the line that shows whether a refusing database accepts any."""
        pending = self._progress.pending().points
        index = probed_index(self._state, max(1, pending))
        first_line = await self._run_on_front(lambda part: cut(part, 0, 1))
        if index == 0 or first_line is None:
            return first_line
        conflict = blamed(self._state, self._limits)
        return await self._line_from(head.first + index, conflict) or first_line

    async def _another_line(self) -> Part | None:
        """Return a line other than the failing one; None when there is none.

        It is one that was accepted before, which keeps the order, else a later one.
        """
        if (known := self._last_accepted) is not None:
            try:
                return await asyncio.to_thread(cut, known, known.points - 1, known.points)
            except StorageDamaged:
                self._last_accepted = None
        behind = self._progress.pending().points - 1
        if not self._parts or behind < 1:
            return None
        return await self._line_from(self._parts[0].last + 1 + probed_index(self._state, behind))

    async def _line_from(self, number: int, conflict: FieldName | None = None) -> Part | None:
        """Return the line with a number, or the next one that exists and has the field."""
        rows = await self._progress.read(max_points=1, after=number - 1)
        if not rows:
            return None
        try:
            return await asyncio.to_thread(line_from, WholeRows((rows[0],)), number, conflict)
        except StorageDamaged:
            return None  # it is reported when it is sent

    async def _split_by_series(self) -> None:
        if self._search is None:
            await self._remember(self._last_accepted)
            head = self._parts[0]
            self._search = LimitSearch(points=head.points, pieces=deque([head]))
        self._search.splits += 1
        await self._replace_front(partial(by_series, accepted=self._accepted_series))

    async def _remember(self, part: Part | None) -> None:
        """Remember the series of an accepted part."""
        with suppress(StorageDamaged):
            if part is not None:
                self._accepted_series |= await asyncio.to_thread(series_in, part)
        if len(self._accepted_series) > _MOST_SERIES:
            self._accepted_series.clear()

    async def _replace_front(self, split: Callable[[Part], tuple[Part, Part]]) -> None:
        if (pair := await self._run_on_front(split)) is not None:
            self._front.popleft()
            self._front.extendleft(reversed(pair))

    async def _run_on_front(self, work: Callable[[Part], Work]) -> Work | None:
        """Run `work` on what is sent next, in a thread; None when it is damaged."""
        head = self._front[0]
        try:
            return await asyncio.to_thread(work, head)
        except StorageDamaged as exc:
            self._drop_damaged(head, exc)
            return None

    def _drop_damaged(self, part: Part, exc: StorageDamaged) -> None:
        self._search = None
        if isinstance(part, WholeRows) and len(part.rows) > 1:
            self._parts.popleft()
            self._parts.extendleft(WholeRows((row,)) for row in reversed(part.rows))
            return
        self._progress.done(part, lambda points: self._telemetry.points_dropped(self.name, points))
        self._parts.popleft()
        limited_log.error(
            "Lost %d points for %s: %s",
            part.points,
            self.name,
            exc,
            kind="damaged",
            topic=f"{self.name} losses",
        )

    async def _advance(self, part: Part, *, seconds: float, expired: int) -> None:
        if not expired:
            self._last_accepted = part
            if self._search is not None:
                await self._remember(part)
        await self._settle(part, seconds=seconds, expired=expired)

    async def _reject(self, part: Part, reason: str, *, seconds: float) -> None:
        if (lines := await self._run_on_front(lambda head: head.lines())) is None:
            return
        numbered = zip(part.numbers, lines, strict=True)
        refused = [RefusedLine(number, line, reason) for number, line in numbered]
        if self._search is not None:
            self._accepted_series -= await asyncio.to_thread(series_in, part)
        await self._settle(part, seconds=seconds, refused=refused)

    async def _settle(
        self,
        part: Part,
        *,
        seconds: float,
        expired: int = 0,
        refused: Sequence[RefusedLine] = (),
    ) -> None:
        """Move the position behind a part, or behind a whole batch with its last piece."""
        if (search := self._search) is not None:
            search.pieces.popleft()
            search.expired += expired
            search.refused += refused
            if search.pieces:
                return
            self._search = None
            part, expired, refused = self._parts[0], search.expired, sorted(search.refused)
        # Durable first: if the process dies in between, the lines are refused again, and storing
        # them again changes nothing.
        if refused:
            await self._dead_letters.insert(self.name, refused)
        # Progress may retain the count for a while; it must not keep the lines in memory.
        self._progress.done(part, self._counts(part, refused, seconds=seconds, expired=expired))
        self._parts.popleft()
        if refused:
            self._log_refused(refused)
        self._drain_rate.sample(self._clock(), held=self._progress.pending().points)

    def _counts(
        self, part: Part, refused: Sequence[RefusedLine], *, seconds: float, expired: int
    ) -> Callable[[int], None]:
        """Return the function that counts a part; it must not keep the lines in memory."""
        numbers = [line.sequence for line in refused]
        last, received_at = part.last, part.received_at

        def count(points: int) -> None:
            # The journal may have dropped, and counted, the oldest ones in between.
            dead = sum(number > last - points for number in numbers)
            dropped = min(expired, points - dead)
            written = points - dead - dropped
            if dead:
                self._telemetry.points_dead_lettered(self.name, dead)
            if dropped:
                self._telemetry.points_expired(self.name, dropped)
            if written or not (numbers or expired):
                self._telemetry.batch_written(
                    self.name, written, seconds=seconds, received_at=received_at
                )

        return count

    def _log_refused(self, refused: Sequence[RefusedLine]) -> None:
        first, last = refused[0], refused[-1]
        which = f"Point {first.sequence} is a dead letter"
        if len(refused) > 1:
            points = f"{len(refused)} points between {first.sequence} and {last.sequence}"
            which = f"{points} are dead letters"
        limited_log.error(
            "%s of %s: %r",
            which,
            self.name,
            impersonal(first.reason),
            kind="dead letter",
            topic=f"{self.name} losses",
        )

    def _log_expired(self, outcome: Outcome, points: int) -> None:
        reason = outcome.reason if isinstance(outcome, OutOfBounds) else ""
        self._expired.add(points, self._clock())
        limited_log.warning(
            "%s did not store %d points that are older than its retention: %s",
            title(self.name),
            points,
            impersonal(reason),
            kind="retention",
            topic=f"{self.name} losses",
        )

    async def _pause(self, at_least_s: float) -> None:
        wait_s = max(at_least_s, self._backoff.next_s(), self._breaker.wait_s)
        await self._unless_finished(partial(self._sleep, wait_s))

    async def _unless_finished(
        self, wait: Callable[[], Awaitable[None]], *, within_s: float | None = None
    ) -> None:
        """Wait for at most `within_s`, and no longer once `finish` is called."""
        if self._finishing:
            return
        try:
            async with asyncio.timeout(within_s) as self._timeout:
                await wait()
        except TimeoutError:
            pass  # the time is up, or finish() ended it
        finally:
            self._timeout = None

    def _record(self, outcome: Outcome, *, is_probe: bool) -> None:
        match outcome:
            case Accepted():
                if not is_probe:
                    self._backoff.reset()
                self._breaker.succeeded()
            case Refused() | OutOfBounds() | TooLarge():
                self._breaker.succeeded()
            case Held():
                self._breaker.succeeded()
                self._progress.connection_lost()  # a proxy may respond while it restarts
            case Busy(status=HTTPStatus.TOO_MANY_REQUESTS):
                pass  # a rate limit, not a failure
            case _:
                self._breaker.failed(outcome.reason)
                self._progress.connection_lost()
        if is_probe:
            return  # a probe's reason would hide that of the failing line
        advice = outcome.advice if isinstance(outcome, Held | Refused) else None
        reason = None if isinstance(outcome, Accepted) else _reason_of(outcome)
        self._report(reason, advice=advice)

    def _report(self, reason: str | None, *, advice: str | None = None) -> None:
        """Set and log the problem that `/health` shows."""
        now_s = self._clock()
        reason = reason and impersonal(reason)
        self._last_error = reason or self._last_error
        before = self._problem
        if self._state.condition == "ok":
            self._problem = None
            if before:
                limited_log.resolved("%s", before.ended(), topic=self.name)
            return
        self._drain_rate.reset()
        self._problem = SinkProblem(
            sink=self.name,
            condition=self._state.condition,
            since_s=before.since_s if before else now_s,
            reason=reason or "",
            advice=advice,
        )
        condition = self._state.condition
        level = logging.WARNING if condition == "waiting" else logging.ERROR
        limited_log.log(level, "%s", self._problem.sentence(now_s), kind=condition, topic=self.name)


def _reason_of(failure: Failure) -> str:
    match failure:
        case OutOfBounds() | TooLarge() | TimedOut() | Unavailable():
            status = None
        case _:
            status = failure.status
    return failure.reason if status is None else f"{status} {failure.reason}"
