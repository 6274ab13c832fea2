"""Waits grow and end; breakers open, wait and close."""

from __future__ import annotations

import asyncio
from datetime import datetime, tzinfo
from typing import Self

import pybreaker
import pytest

from app.runtime.errors import SourceError, SourceProtocolError, StorageFull, Unforeseen
from app.runtime.retry import Backoff, Breaker, contained, until_success


class Clock:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        """Return the seconds."""
        return self.now_s


def breaker_of(clock: Clock, *, threshold: int = 3) -> Breaker:
    """Return a breaker that opens for half a minute."""
    return Breaker("InfluxDB", threshold=threshold, reset_s=30.0, clock=clock)


def test_waits_between_retries_double_up_to_the_longest() -> None:
    """1, 2, 4, … seconds, and never more than the setting."""
    backoff = Backoff(max_s=10.0, chance=lambda: 0.5)

    assert [backoff.next_s() for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert backoff.attempt == 6


@pytest.mark.parametrize(("chance", "expected"), [(0.0, 1.8), (0.5, 2.0), (1.0, 2.2)])
def test_jitter_is_ten_percent_either_way(chance: float, expected: float) -> None:
    """A house full of clients must not come back in the same second."""
    backoff = Backoff(max_s=60.0, first_s=2.0, chance=lambda: chance)

    assert backoff.next_s() == pytest.approx(expected)


def test_backoff_draws_its_own_jitter() -> None:
    """Production draws its own numbers."""
    backoff = Backoff(max_s=1.0)
    waits = [backoff.next_s() for _ in range(50)]

    assert all(0.9 <= wait <= 1.1 for wait in waits)
    assert len(set(waits)) > 1


def test_a_reset_backoff_starts_with_the_shortest_wait() -> None:
    """Only after a real success; the caller decides what that is."""
    backoff = Backoff(max_s=60.0, chance=lambda: 0.5)
    for _ in range(5):
        backoff.next_s()
    backoff.reset()

    assert backoff.attempt == 0
    assert backoff.next_s() == 1.0


def test_backoff_has_a_wait_after_thousands_of_attempts() -> None:
    """Two to the power of a month of attempts is no number that breaks."""
    backoff = Backoff(max_s=300.0, chance=lambda: 0.5)
    waits = [backoff.next_s() for _ in range(5000)]

    assert waits[-1] == 300.0


def test_a_new_breaker_is_closed() -> None:
    """Nothing failed yet, so everything may be tried."""
    breaker = breaker_of(Clock())

    assert (breaker.state, breaker.failure_count, breaker.wait_s) == ("closed", 0, 0.0)
    assert breaker.last_failure is None


def test_failures_in_a_row_open_a_breaker(caplog: pytest.LogCaptureFixture) -> None:
    """At the threshold, not before; people grep for the line."""
    breaker = breaker_of(Clock())
    breaker.failed("refused")
    breaker.failed("refused")
    assert breaker.wait_s == 0.0

    breaker.failed(ConnectionResetError("reset by peer"))

    assert breaker.state == "open"
    assert breaker.failure_count == 3
    assert breaker.wait_s == 30.0
    assert breaker.last_failure is not None
    expected = "Circuit breaker open: InfluxDB failed 3 times in a row, last: reset by peer"
    assert [record.getMessage() for record in caplog.records] == [expected]


def test_a_success_between_failures_keeps_a_breaker_closed() -> None:
    """In a row means in a row."""
    breaker = breaker_of(Clock())
    for _ in range(5):
        breaker.failed("no")
        breaker.failed("no")
        breaker.succeeded()

    assert (breaker.state, breaker.failure_count) == ("closed", 0)


def test_an_open_breaker_lets_an_attempt_through_after_its_wait() -> None:
    """The wait runs down on a clock that does not jump."""
    clock = Clock()
    breaker = breaker_of(clock, threshold=1)
    breaker.failed("no")
    clock.now_s += 20.0
    assert (breaker.state, breaker.wait_s) == ("open", 10.0)

    clock.now_s += 10.0

    assert (breaker.state, breaker.wait_s) == ("half-open", 0.0)


def test_a_success_closes_a_half_open_breaker() -> None:
    """The dependency is back."""
    clock = Clock()
    breaker = breaker_of(clock, threshold=1)
    breaker.failed("no")
    clock.now_s += 30.0
    breaker.succeeded()

    assert (breaker.state, breaker.failure_count, breaker.wait_s) == ("closed", 0, 0.0)


def test_a_failed_trial_opens_a_breaker_again(caplog: pytest.LogCaptureFixture) -> None:
    """One failure is enough then, for another full wait; the log has it only once."""
    clock = Clock()
    breaker = breaker_of(clock, threshold=3)
    for _ in range(3):
        breaker.failed("no")
    clock.now_s += 30.0
    breaker.failed("still no")

    assert (breaker.state, breaker.wait_s) == ("open", 30.0)
    assert caplog.text.count("Circuit breaker open") == 1


def test_a_success_closes_an_open_breaker() -> None:
    """An attempt that was under way when it opened has reached the dependency after all."""
    breaker = breaker_of(Clock(), threshold=1)
    breaker.failed("no")
    breaker.succeeded()

    assert breaker.state == "closed"


def test_a_wall_clock_that_is_set_back_does_not_hide_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pybreaker compares when a breaker opened with the wall clock; ours must not depend on it."""

    class Earlier(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls(1999, 1, 1, tzinfo=tz)

    clock = Clock()
    breaker = breaker_of(clock, threshold=1)
    breaker.failed("no")
    clock.now_s += 30.0
    monkeypatch.setattr(pybreaker, "datetime", Earlier)
    breaker.failed("still no")

    assert (breaker.state, breaker.failure_count, breaker.wait_s) == ("open", 2, 30.0)


@pytest.mark.parametrize(
    "unforeseen", [OverflowError("year 9999"), KeyError("x"), RecursionError()]
)
def test_an_unexpected_exception_becomes_one_of_our_errors(
    unforeseen: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop goes on with the next input; the traceback is in the log."""
    what = f"reading {unforeseen!r}"
    with pytest.raises(Unforeseen) as raised, contained(what):
        raise unforeseen
    with pytest.raises(SourceError), contained(what, error=SourceProtocolError):
        raise unforeseen

    assert raised.value.__cause__ is unforeseen
    assert what in str(raised.value)
    assert f"Unhandled error while {what}" in caplog.text


def test_our_own_errors_pass_and_so_does_a_cancellation() -> None:
    """What a loop knows how to handle is not hidden from it."""
    with pytest.raises(StorageFull), contained("reading a test"):
        raise StorageFull
    with pytest.raises(asyncio.CancelledError), contained("reading a test"):
        raise asyncio.CancelledError


class Attempts:
    """Attempts that fail until the last outcome; waits are recorded, not waited for."""

    def __init__(self, *outcomes: Exception | str) -> None:
        self._outcomes = iter(outcomes)
        self.waits: list[float] = []
        self.reported: list[tuple[str, float]] = []

    async def attempt(self) -> str:
        """Return or raise the next outcome."""
        outcome = next(self._outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def sleep(self, wait_s: float) -> None:
        """Record the wait."""
        self.waits.append(wait_s)

    async def result(self, breaker: Breaker | None = None) -> str:
        """Retry until one succeeds."""
        return await until_success(
            self.attempt,
            backoff=Backoff(max_s=60.0, chance=lambda: 0.5),
            breaker=breaker,
            failed=lambda exc, wait_s: self.reported.append((str(exc), wait_s)),
            sleep=self.sleep,
        )


async def test_an_attempt_is_retried_with_growing_waits_until_it_succeeds() -> None:
    """Each failure is reported with the wait that follows it."""
    attempts = Attempts(Unforeseen("a"), StorageFull("b"), "done")

    assert await attempts.result() == "done"
    assert attempts.waits == [1.0, 2.0]
    assert attempts.reported == [("a", 1.0), ("b", 2.0)]


async def test_an_open_breaker_lengthens_the_wait_before_a_retry() -> None:
    """The failure that opens it counts before the wait is computed."""
    breaker = breaker_of(Clock(), threshold=2)
    attempts = Attempts(Unforeseen("a"), Unforeseen("b"), "done")

    await attempts.result(breaker)

    assert attempts.waits == [1.0, 30.0]


async def test_an_unexpected_error_is_not_retried() -> None:
    """A bug must not become an endless loop."""
    attempts = Attempts(KeyError("x"))

    with pytest.raises(KeyError):
        await attempts.result()
    assert attempts.waits == []


async def test_a_cancelled_attempt_counts_as_nothing() -> None:
    """Neither a failure nor a success for the breaker, and no retry."""
    breaker = breaker_of(Clock())
    breaker.failed("no")
    started = asyncio.Event()

    async def attempt() -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(
        until_success(attempt, backoff=Backoff(max_s=1.0), breaker=breaker, failed=lambda *_: None),
        name="attempt",
    )
    await started.wait()
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert (breaker.state, breaker.failure_count) == ("closed", 1)
