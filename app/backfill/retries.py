"""Which gap is filled next, after some failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.backfill.spans import span_text
from app.model import Gap
from app.runtime.retry import Backoff


@dataclass(frozen=True, slots=True)
class _Failure:
    """The last attempt to fill a gap, which failed."""

    backoff: Backoff
    at: float
    wait_s: float
    filled_ns: int | None
    why: str


class GapRetries:
    """The gaps whose last attempt failed, and so which one is tried next."""

    def __init__(self, backoffs: Callable[[], Backoff], clock: Callable[[], float]) -> None:
        self._backoffs = backoffs
        self._clock = clock
        self._failures: dict[int, _Failure] = {}

    def next(self, gaps: Sequence[Gap]) -> Gap | None:
        """Return the gap with the fewest failures, the oldest of these; None while all wait."""
        ready = filter(self._is_ready, gaps)
        return min(ready, key=lambda gap: (self.attempts(gap), gap.start_ns, gap.id), default=None)

    def failed(self, gap: Gap, exc: Exception) -> float:
        """Record that an attempt failed; return the seconds until the next."""
        former = self._failures.get(gap.id)
        # After an attempt that filled a part of the gap the waits start again.
        is_stuck = former is not None and former.filled_ns == gap.filled_ns
        backoff = former.backoff if former is not None and is_stuck else self._backoffs()
        wait_s = backoff.next_s()
        self._failures[gap.id] = _Failure(backoff, self._clock(), wait_s, gap.filled_ns, str(exc))
        return wait_s

    def attempts(self, gap: Gap) -> int:
        """Return how many attempts in a row failed without progress."""
        failure = self._failures.get(gap.id)
        return 0 if failure is None else failure.backoff.attempt

    def forget(self, gap: Gap) -> None:
        """Record that an attempt succeeded."""
        self._failures.pop(gap.id, None)

    def reason(self, gaps: Sequence[Gap]) -> str | None:
        """Return why the first of these gaps that failed did so; None without one."""
        gap = next((gap for gap in gaps if gap.id in self._failures), None)
        if gap is None:
            return None
        return (
            f"The gap {span_text(gap)} cannot be read back from Home Assistant:"
            f" {self._failures[gap.id].why}."
            " The next attempt follows automatically; see /api/v1/gaps."
        )

    def _is_ready(self, gap: Gap) -> bool:
        failure = self._failures.get(gap.id)
        # A clock that was set back meanwhile ends the wait.
        return failure is None or not 0 <= self._clock() - failure.at < failure.wait_s
