"""When to connect again: which error leads to which delay."""

from __future__ import annotations

from app.runtime.errors import SourceAuthRejected, SourceError
from app.runtime.retry import Backoff, Breaker


class ReconnectPolicy:
    """Delays between connection attempts.

    Home Assistant closes with 1000 for a shutdown, a slow reader and a revoked token alike, so
    every close means the same: connect again.

    | after | next attempt |
    |---|---|
    | a refused token | in `auth_retry_s`: only a person can change it |
    | any other error | after the longer of backoff and circuit breaker |
    | `max_retries` such errors in a row | never; -1 retries indefinitely |

    A server that accepts, subscribes and closes must not be hammered, so delays start anew only
    with `streaming`, which is reported when an event has arrived.
    """

    def __init__(
        self,
        *,
        backoff: Backoff,
        breaker: Breaker,
        max_retries: int = -1,
        auth_retry_s: float = 300.0,
    ) -> None:
        self.breaker = breaker
        self._backoff = backoff
        self._max_retries = max_retries
        self._auth_retry_s = auth_retry_s

    @property
    def attempt(self) -> str:
        """The number of the next attempt and the limit, for the log."""
        return f"{self._backoff.attempt}/{self.limit}"

    @property
    def limit(self) -> str:
        """`max_retries` for the log."""
        return "∞" if self._max_retries < 0 else str(self._max_retries)

    def delay_s(self, error: SourceError, *, has_streamed: bool) -> float | None:
        """Count an error and return the seconds until the next attempt; None to give up.

        `has_streamed`: events streamed before the connection was lost, so the next attempt may well
        succeed and the breaker does not count the error.
        """
        if isinstance(error, SourceAuthRejected):
            return self._auth_retry_s
        if not has_streamed:
            self.breaker.failed(error)
        if 0 <= self._max_retries <= self._backoff.attempt:
            return None
        return max(self._backoff.next_s(), self.breaker.wait_s)

    def streaming(self) -> None:
        """Start the delays anew: events stream."""
        self._backoff.reset()
        self.breaker.succeeded()
