"""Retries and circuit breakers, with tenacity and pybreaker.

pybreaker has two traps for asynchronous code, which `Breaker` avoids: `calling()` around an
`await` counts a cancelled attempt, and a breaker that is open waits by the wall clock, which jumps.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeVar

import pybreaker
import tenacity

from app.runtime.errors import IngestError, Unforeseen
from app.runtime.logging import RateLimitedLog
from app.runtime.time import utc_now

BreakerState = Literal["closed", "open", "half-open"]
Result = TypeVar("Result")

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

_JITTER = 0.1


@contextlib.contextmanager
def contained(what: str, *, error: type[IngestError] = Unforeseen) -> Iterator[None]:
    """Raise `error` in place of an unexpected exception, and log that with its traceback.

    Every loop that reads input from outside, or calls a peer, does so once per such block: bad
    input costs itself, not the loop.
    """
    try:
        yield
    except IngestError:
        raise
    except Exception as exc:
        limited_log.error("Unhandled error while %s", what, kind=what, exc_info=exc)
        raise error(f"Unhandled error while {what}: {type(exc).__name__}") from exc


class Backoff(tenacity.wait_exponential):
    """Wait strategy: doubles from `first_s` up to `max_s`, each wait within ±10 %.

    `until_success` passes it to tenacity. Loops that decide for themselves whether an attempt
    failed call `next_s` and `reset` instead.
    """

    def __init__(
        self,
        *,
        max_s: float,
        first_s: float = 1.0,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`chance` returns a number in [0, 1)."""
        super().__init__(multiplier=first_s, max=max_s)
        self._chance = chance
        self.reset()

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        """Return the seconds to wait before the next attempt."""
        return super().__call__(retry_state) * (1 + _JITTER * (2 * self._chance() - 1))

    @property
    def attempt(self) -> int:
        """How many waits were given out since the last reset."""
        return self._state.attempt_number - 1

    def next_s(self) -> float:
        """Count one more attempt and return the seconds to wait before it."""
        wait_s = self(self._state)
        self._state.prepare_for_next_attempt()
        return wait_s

    def reset(self) -> None:
        """Start again with the shortest wait, after a real success."""
        self._state = tenacity.RetryCallState(tenacity.AsyncRetrying(), None, (), {})


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerStatus:
    """A circuit breaker."""

    state: BreakerState = "closed"
    failure_count: int = 0
    last_failure: datetime | None = None


class _TimelessStorage(pybreaker.CircuitMemoryStorage):
    """pybreaker's state in memory, without the wall clock's time of opening."""

    @property
    def opened_at(self) -> None:
        """None, so that pybreaker waits for nothing: `Breaker.wait_s` does."""

    @opened_at.setter
    def opened_at(self, datetime: datetime) -> None:
        pass


class Breaker(pybreaker.CircuitBreakerListener):
    """Circuit breaker: opens for `reset_s` after `threshold` failures in a row.

    The caller waits for `wait_s` before an attempt and reports the outcome afterwards. An attempt
    that was cancelled, or does not show whether the dependency works, is not reported.
    """

    def __init__(
        self,
        name: str,
        *,
        threshold: int,
        reset_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`name` is the dependency's, for log messages."""
        self.name = name
        self.last_failure: datetime | None = None
        self._reset_s = reset_s
        self._clock = clock
        self._opened_s = 0.0
        self._last_cause = ""
        self._breaker = pybreaker.CircuitBreaker(
            name=name,
            fail_max=threshold,
            listeners=[self],
            state_storage=_TimelessStorage(pybreaker.STATE_CLOSED),
            throw_new_error_on_trip=False,
        )

    @property
    def state(self) -> BreakerState:
        """`half-open` once an open breaker lets the next attempt through."""
        if self._breaker.current_state != pybreaker.STATE_OPEN:
            return "closed"
        return "open" if self.wait_s > 0 else "half-open"

    @property
    def failure_count(self) -> int:
        """How many attempts failed since the last success."""
        return self._breaker.fail_counter

    @property
    def wait_s(self) -> float:
        """Seconds until an attempt is allowed; 0 when it is allowed now."""
        if self._breaker.current_state != pybreaker.STATE_OPEN:
            return 0.0
        return max(0.0, self._opened_s + self._reset_s - self._clock())

    def status(self) -> BreakerStatus:
        """Return its part of the snapshot."""
        return BreakerStatus(
            state=self.state, failure_count=self.failure_count, last_failure=self.last_failure
        )

    def succeeded(self) -> None:
        """Report that the dependency answered: the breaker closes."""
        if self._breaker.fail_counter:
            self._breaker.close()

    def failed(self, cause: BaseException | str) -> None:
        """Report a failed attempt: the breaker opens at the threshold."""
        with contextlib.suppress(_AttemptFailed):
            self._breaker.call(_fail, cause)

    def failure(self, _: pybreaker.CircuitBreaker, exc: BaseException) -> None:
        """Handle pybreaker's notice of a failure."""
        self.last_failure, self._last_cause = utc_now(), str(exc)

    def state_change(
        self,
        _: pybreaker.CircuitBreaker,
        old_state: pybreaker.CircuitBreakerState | None,
        new_state: pybreaker.CircuitBreakerState,
    ) -> None:
        """Handle pybreaker's notice of a new state: start the timer, and log it."""
        was_closed = old_state is not None and old_state.name == pybreaker.STATE_CLOSED
        if new_state.name == pybreaker.STATE_CLOSED:
            limited_log.resolved("Circuit breaker closed: %s answers", self.name, topic=self.name)
        if new_state.name != pybreaker.STATE_OPEN:
            return
        self._opened_s = self._clock()
        if was_closed:  # not after a failed trial
            limited_log.warning(
                "Circuit breaker open: %s failed %d times in a row, last: %s",
                self.name,
                self.failure_count,
                self._last_cause,
                topic=self.name,
            )


async def until_success(
    attempt: Callable[[], Awaitable[Result]],
    *,
    backoff: Backoff,
    failed: Callable[[IngestError, float], None],
    breaker: Breaker | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Result:
    """Return the result of `attempt`, retried indefinitely after each of our own errors.

    `failed` gets the error and the seconds until the next attempt. A breaker counts the failures
    and lengthens the waits; the caller reports its successes.
    """

    async def once() -> Result:
        try:
            return await attempt()
        except IngestError as exc:
            if breaker is not None:
                breaker.failed(exc)
            raise

    def wait_s(state: tenacity.RetryCallState) -> float:
        return max(backoff(state), 0.0 if breaker is None else breaker.wait_s)

    def report(state: tenacity.RetryCallState) -> None:
        assert state.outcome is not None
        exc = state.outcome.exception()
        assert isinstance(exc, IngestError)
        failed(exc, state.upcoming_sleep)

    retrying = tenacity.AsyncRetrying(
        wait=wait_s,
        retry=tenacity.retry_if_exception_type(IngestError),
        before_sleep=report,
        sleep=sleep,
    )
    return await retrying(once)


class _AttemptFailed(Exception):
    """Carries the cause of a failure into pybreaker."""


def _fail(cause: BaseException | str) -> None:
    raise _AttemptFailed(str(cause))
