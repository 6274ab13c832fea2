"""Growing waits and circuit breakers: tenacity and pybreaker, wrapped once."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Literal

import pybreaker
import tenacity

from app.runtime.errors import IngestError, Unforeseen
from app.runtime.logging import RateLimitedLog

BreakerState = Literal["closed", "open", "half-open"]

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

_JITTER = 0.1


@contextlib.contextmanager
def contained(what: str, *, error: type[IngestError] = Unforeseen) -> Iterator[None]:
    """Raise `error` in place of an exception that nobody foresaw.

    Every loop that reads what comes from outside reads one input, or talks to its peer once, in
    such a block: the input costs itself, and not the loop. It is logged here, with its traceback.
    """
    try:
        yield
    except IngestError:
        raise
    except Exception as exc:
        limited_log.error("Unhandled error while %s", what, kind=what, exc_info=exc)
        raise error(f"Unhandled error while {what}: {type(exc).__name__}") from exc


class Backoff:
    """Waits that double from `first_s` up to `max_s`, each within ±10 %."""

    def __init__(
        self,
        *,
        max_s: float,
        first_s: float = 1.0,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Take the bounds in seconds; `chance` returns a number in [0, 1)."""
        self._wait = tenacity.wait_exponential(multiplier=first_s, max=max_s)
        self._chance = chance
        self._attempt = 0

    @property
    def attempt(self) -> int:
        """How many waits were given out since the last reset."""
        return self._attempt

    def next_s(self) -> float:
        """Count one more attempt and return the seconds to wait before it."""
        self._attempt += 1
        state = tenacity.RetryCallState(tenacity.AsyncRetrying(), None, (), {})
        state.attempt_number = self._attempt
        return self._wait(state) * (1 + _JITTER * (2 * self._chance() - 1))

    def reset(self) -> None:
        """Start again with the shortest wait, after a real success."""
        self._attempt = 0


class Breaker:
    """A circuit breaker: after `threshold` failures in a row, none is tried for `reset_s`.

    The caller asks `wait_s` before an attempt and says afterwards how it went; what is
    cancelled or says nothing about the neighbor is simply not reported. pybreaker keeps the
    states, but not around an `await`, where it would count a cancellation as a success.
    """

    def __init__(
        self,
        name: str,
        *,
        threshold: int,
        reset_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the neighbor's name for log lines, and `reset_s` in seconds."""
        self.name = name
        self.last_failure: datetime | None = None
        self._reset_s = reset_s
        self._clock = clock
        self._opened_at = 0.0
        # The wait is ours, on a monotonic clock: pybreaker's uses the wall clock, which jumps.
        self._breaker = pybreaker.CircuitBreaker(name=name, fail_max=threshold, reset_timeout=0)

    @property
    def state(self) -> BreakerState:
        """Return `half-open` once an open breaker lets the next attempt through."""
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
        return max(0.0, self._opened_at + self._reset_s - self._clock())

    def succeeded(self) -> None:
        """Report an attempt that reached the neighbor; the breaker closes."""
        self._breaker.call(lambda: None)
        limited_log.resolved("Circuit breaker closed: %s answers", self.name, topic=self.name)

    def failed(self, cause: BaseException | str) -> None:
        """Report an attempt that did not; the breaker opens at the threshold."""
        was_closed = self._breaker.current_state != pybreaker.STATE_OPEN
        self.last_failure = datetime.now(UTC)
        with contextlib.suppress(_AttemptFailed, pybreaker.CircuitBreakerError):
            self._breaker.call(_fail)
        if self._breaker.current_state == pybreaker.STATE_OPEN:
            self._opened_at = self._clock()
            if was_closed:
                limited_log.warning(
                    "Circuit breaker open: %s failed %d times in a row, last: %s",
                    self.name,
                    self.failure_count,
                    cause,
                    topic=self.name,
                )


class _AttemptFailed(Exception):
    """Carries a failure into pybreaker."""


def _fail() -> None:
    raise _AttemptFailed
