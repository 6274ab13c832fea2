"""Delivery: the journal, in order, to one sink; one request in flight."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from http import HTTPStatus

from app.health import SinkStatus
from app.runtime.errors import StorageError, Unforeseen
from app.runtime.metrics import Telemetry
from app.runtime.retry import Backoff, Breaker, contained
from app.sinks.batches import Batch, fields_in
from app.sinks.outcomes import (
    Accepted,
    Busy,
    Held,
    Outcome,
    OutOfBounds,
    Refused,
    ServerProcess,
    Sink,
    TooLarge,
    Unavailable,
)
from app.sinks.progress import Log, Progress
from app.sinks.report import DeliveryReport
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
    needs_ping,
    step,
)
from app.sinks.send_queue import DeadLetterStore, SendQueue


class Delivery:
    """Sends every point of the journal to one sink, in order.

    `retry_policy` decides what follows from an outcome, `SendQueue` holds what is sent next, and
    this class does the I/O. The position moves in the same synchronous stretch in which an
    acceptance is processed, so a cancellation at any moment loses nothing and counts nothing
    twice.
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
        self._breaker = breaker
        self._backoff = backoff
        self._batch_points = batch_points
        self._batch_timeout_s = batch_timeout_s
        self._limits = Limits(max_points=max_batch_points)
        self._clock = clock
        self._wall_clock = wall_clock
        self._waits = _Waits(sleep)
        self._progress = Progress(
            journal, sink.name, telemetry=telemetry, clock=clock, process=process
        )
        self._report = DeliveryReport(
            sink.name,
            telemetry=telemetry,
            clock=clock,
            wall_clock=wall_clock,
            retention_s=retention_s,
        )
        self._queue = SendQueue(
            sink.name,
            journal=journal,
            progress=self._progress,
            dead_letters=dead_letters,
            report=self._report,
            limits=self._limits,
        )
        self._state = DeliveryState.starting(self._limits)

    async def run(self) -> None:
        """Deliver indefinitely; after `finish`, until nothing is pending or the sink fails."""
        self._report.held_at_start = self._progress.unacked_points
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

    def finish(self) -> None:
        """Send what is pending without waiting for more, then end `run`."""
        self._waits.finish()

    def status(self) -> SinkStatus:
        """Return this sink's part of the snapshot."""
        pending = self._progress.pending()
        return self._report.status(
            condition=self._state.condition,
            pending=pending,
            held=self._progress.unacked_points,
            breaker=self._breaker.state,
            has_backlog=pending.points > self._batch_points,
        )

    async def _due(self) -> bool:
        """Wait until a batch is due; False when the loop should end.

        While nothing is pending, ack what the database has written to disk meanwhile.
        """
        while not self._queue.batches and not self._waits.finishing:
            pending = self._progress.pending()
            if not pending.points:
                within_s = self._progress.check_in_s if self._progress.unconfirmed_through else None
                if within_s == 0.0:
                    await self._check_progress()
                else:
                    await self._waits.wait(partial(self._progress.grown, 1), within_s=within_s)
                continue
            due_at = (pending.oldest_at or 0.0) + self._batch_timeout_s
            left_s = due_at - self._wall_clock()
            await self._waits.wait(
                partial(self._progress.grown, self._batch_points),
                # The wall clock may jump: never wait longer than the setting says.
                within_s=min(max(left_s, 0.0), self._batch_timeout_s),
            )
            break
        if not self._waits.finishing:
            return True
        can_send = self._state.condition == "ok" and self._breaker.state != "open"
        return can_send and self._progress.pending().points > 0

    async def _send_next(self) -> None:
        if self._progress.check_in_s == 0.0:
            await self._check_progress()
        probe = await self._queue.other_line(self._state) if self._state.probe_next else None
        batch = probe or await self._queue.next_batch(self._state)
        if batch is None:
            return
        if batch.left_out == batch.points:
            await self._queue.skip(batch)
            return
        started_s = self._clock()
        outcome = await self._sink.write(batch)
        search = self._queue.search
        attempt = Attempt(
            points=batch.points,
            last=batch.last,
            now_s=self._clock(),
            is_probe=probe is not None,
            splits=search.splits if search else 0,
            batch_points=search.points if search else 0,
        )
        if not isinstance(outcome, Accepted):
            if needs_ping(self._state, outcome, attempt, self._limits):
                attempt = replace(attempt, alive=await self._sink.ping())
        elif self._state.conflicts:
            carried = await asyncio.to_thread(fields_in, batch, tuple(self._state.conflicts))
            attempt = replace(attempt, carried=carried)
        self._state, action = step(self._state, outcome, attempt, self._limits)
        self._record(outcome, is_probe=attempt.is_probe)
        await self._do(action, batch, outcome, seconds=attempt.now_s - started_s)

    async def _do(self, action: Action, batch: Batch, outcome: Outcome, *, seconds: float) -> None:
        match action:
            case Advance(expired=expired):
                await self._queue.accepted(batch, seconds=seconds, expired=expired)
                self._report.drain_rate.sample(self._clock(), held=self._progress.pending().points)
                if expired:
                    await self._report.expired(expired, outcome)
            case Split(wait=wait):
                await self._queue.halve()
                if wait:
                    await self._pause(0.0)
            case SplitBySeries():
                await self._queue.split_by_series()
            case DeadLetter(reason=reason):
                await self._queue.reject(batch, reason, seconds=seconds)
            case Wait(at_least_s=at_least_s):
                await self._pause(at_least_s)
            case _:
                pass  # Send: the next turn does

    async def _check_progress(self) -> None:
        if points := await self._progress.check():
            self._queue.clear()
            self._report.restarted(points)

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
        if not is_probe:  # a probe's reason would hide that of the failing line
            self._report.outcome(self._state.condition, outcome)

    async def _failed(self, why: str) -> None:
        self._state = replace(self._state, condition="waiting")
        self._report.outcome("waiting", Unavailable(reason=why))
        await self._pause(0.0)

    async def _pause(self, at_least_s: float) -> None:
        wait_s = max(at_least_s, self._backoff.next_s(), self._breaker.wait_s)
        await self._waits.wait(partial(self._waits.sleep, wait_s))


class _Waits:
    """Waits of one loop, which `finish` ends early."""

    def __init__(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        self.sleep = sleep
        self.finishing = False
        self._timeout: asyncio.Timeout | None = None

    def finish(self) -> None:
        """End the current wait, and make all later ones end at once."""
        self.finishing = True
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(0.0)

    async def wait(
        self, until: Callable[[], Awaitable[None]], *, within_s: float | None = None
    ) -> None:
        """Wait for at most `within_s`, and no longer once `finish` is called."""
        if self.finishing:
            return
        try:
            async with asyncio.timeout(within_s) as self._timeout:
                await until()
        except TimeoutError:
            pass  # the time is up, or finish() ended it
        finally:
            self._timeout = None
